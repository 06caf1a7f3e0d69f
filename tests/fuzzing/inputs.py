"""Arrays and numbers of all kinds: what is taken steps as in NumPy, what isn't is named.

An error is a TypeError or ValueError whose text begins with the argument's or the array's name, and
nothing has changed then. Whether an input is good is not said here: what is taken has to step, with
the same bits in both backends.
"""

from __future__ import annotations

import math
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import partial
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from random import Random
from typing import Any

import ml_dtypes
import numpy as np
from engine.unchanged import snapshot

import schuss
from schuss import functional
from schuss.engine.optimizer import Optimizer
from schuss.rules import RULES

EPS = 2.0**-52

NUMBERS: list[Any] = [
    0, -0.0, 1, 0.1, 0.5, 0.9, 1 - EPS, 1 + EPS, 5e-324, 1e-300, 1e300, -1, -0.5, 3, 7.5, 2**63,
    -(2**70), 10**400, math.inf, -math.inf, math.nan, True, False, None, "0.1", "", "mean", b"1",
    1j,     Decimal("0.25"), Decimal("NaN"), Decimal("1e400"), Fraction(1, 3), Fraction(10**400, 3),
    np.float16(0.5), np.float32(0.5), np.float64(0.5), np.longdouble(0.5), np.int8(1),
    np.uint64(2**64 - 1), np.bool_(True), np.str_("skip"), np.complex64(1), np.datetime64("2000"),
    ml_dtypes.bfloat16(0.5), np.array(0.5), np.array(1), np.array(True), np.array("0.1"),
    np.array(None), np.array(math.nan, np.float32), np.array([0.5]), np.array([]), np.ma.masked,
    (), (0.9,), (0.9, 0.999), (0.9, 1.0), (0.9, math.nan), (0.9, "b"), (0.9, 0.99, 0.9), [0.9, 0.9],
    [0.5], {}, {"a": 1}, set(), range(2), slice(1), float, object(), ..., NotImplemented,
    np.random.default_rng(0), schuss.LossScale(),
]  # fmt: skip

DTYPES: list[Any] = [
    *["f4", "f8", "f2", ml_dtypes.bfloat16] * 4, ">f4", ">f8", ">f2", "i4", "u1", "?", "c8", "c16",
    "O", "S4", "U2", "M8[s]", "m8[s]", np.longdouble, ml_dtypes.float8_e4m3fn, ml_dtypes.int4,
    [("a", "f4")], "V4", np.dtype("f4", metadata={"a": 1}),
]  # fmt: skip


class Own(np.ndarray):
    """A class of the user's, which changes nothing."""


class Failed(AssertionError):  # noqa: N818  an input has
    """An input that was neither taken nor refused as it should be."""


# ---- Numbers


def returning(value: Any) -> Callable[[int], Any]:
    return lambda iterations: value


def a_number(random: Random) -> Any:
    value = random.choice(NUMBERS)
    return returning(value) if random.random() < 0.2 else value


def good(rule: type[Optimizer], **options: Any) -> Optimizer:
    random = np.random.default_rng(3)
    params = {k: random.standard_normal((4, 3)).astype(np.float32) for k in "ab"}
    return rule(params, **options)


def step(opt: Optimizer, **told: Any) -> None:
    random = np.random.default_rng((4, opt.iterations))
    with np.errstate(all="ignore"):
        opt.step({k: random.standard_normal((4, 3), np.float32) for k in "ab"}, loss=1.5, **told)


def try_number(random: Random) -> str:
    """One value for one argument, at one of the places where it may be passed."""
    rule, value = random.choice(RULES), a_number(random)
    names = [*rule.hyperparameters, *rule.options]
    where = random.choice(["made", "made", "set", "group", "told", "call"])
    name = random.choice(names)
    if where == "group":
        name = random.choice(list(rule.hyperparameters))
    if where == "told":
        name = random.choice(["lr", "grad_scale", "loss"])
    if name == "state_dir" and isinstance(value, str | bytes):  # it would be made
        value = 3
    twins = [] if where == "made" else [good(rule), good(rule, backend="numpy")]
    what = f"{rule.__name__}, {where}: {name}={value!r}"

    def make() -> None:
        twins[:] = [good(rule, **{name: value}) for _ in range(2)]
        if name != "backend":
            twins[1].backend = "numpy"

    def each(act: Callable[[Optimizer], None]) -> None:
        for opt in twins:
            act(opt)

    def call() -> None:
        random = np.random.default_rng(3)
        states = max(rule.states.values(), key=len)
        arrays = [random.random(5, np.float32) for _ in range(2 + len(states))]
        numbers = {k: np.array(v) for k, v in (rule.memory | rule.shared).items()}
        own = getattr(functional, rule.__name__.lower())
        with np.errstate(all="ignore"):
            own(*arrays[:2], *arrays[2:], step=2, **{"loss": 1.0, name: value}, **numbers)

    if where == "call":
        needed = {len(s) for s in rule.states.values()}
        if len(needed) > 1 or name in rule.options:  # where the state hangs on the argument
            return "taken"
        return refused(what, [rule.__name__.lower(), *names], [], call)
    act: dict[str, Callable[[], None]] = {
        "made": make,
        "set": lambda: each(lambda opt: setattr(opt, name, value)),
        "group": lambda: each(lambda opt: opt.param_groups[0].update({name: value})),
        "told": lambda: each(lambda opt: step(opt, **{name: value})),
    }
    if where == "told" and name == "loss":
        act["told"] = lambda: None
    said = refused(what, [name, *names], twins[:1], act[where])
    if said == "taken" and twins:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = agree(what, [name, *names, "params", "state"], twins)
    return said


def agree(what: str, names: list[str], twins: list[Optimizer]) -> str:
    """Steps in both backends, which end on the same bits or on the same error."""
    ends = []
    for opt in twins:
        said = [refused(what, names, [opt], partial(step, opt)) for _ in range(2)]
        ends.append((said, bits(opt)))
    if ends[0] != ends[1]:
        raise Failed(f"{what}: compiled {ends[0][0]}, numpy {ends[1][0]}, or other bits")
    return "refused" if "refused" in ends[0][0] else "taken"


def bits(opt: Optimizer) -> Any:
    arrays = [a for p in opt._parameters for a in (p.x, *p.saved.values())]
    return [np.nan_to_num(np.asarray(a, float)).tobytes() for a in arrays], repr(opt._moved())


MESSAGE = re.compile(r"""^(?P<name>[a-z]\w*)(\[[^\]]*\])*(\.\w+)*(\["[^"]*"\])*:? .{3,}""", re.S)
messages: set[str] = set()


def refused(
    what: str, names: list[str], unchanged: list[Optimizer], act: Callable[[], object]
) -> str:
    """Whether it is taken or refused; as it should be, or it fails."""
    before = [snapshot(opt) for opt in unchanged]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            act()
    except (TypeError, ValueError) as error:
        text = str(error)
        found = MESSAGE.match(text)
        if not found or found["name"] not in names:
            raise Failed(f"{what}: {type(error).__name__}: {text!r} names no argument") from error
        messages.add(re.sub(r"[\d.]+", "#", text.partition(":")[2])[:60])
        if repr([snapshot(opt)[:5] for opt in unchanged]) != repr([b[:5] for b in before]):
            raise Failed(f"{what}: changed, and then {text!r}") from error
        return "refused"
    except (ArithmeticError, LookupError, AttributeError, RuntimeError, RuntimeWarning) as error:
        raise Failed(f"{what}: {type(error).__name__}: {error}") from error
    return "taken"


# ---- Arrays


def an_array(random: Random, shape: tuple[int, ...], folder: Path) -> Any:  # noqa: PLR0912
    """An array, mostly of a shape, or something that is none."""
    if random.random() < 0.1:
        return random.choice(
            [None, 0.5, [1.0, 2.0], [[0.0] * 3] * 4, "abc", b"abcd", {}, object(), np.float32(1),
             np.random.default_rng(0), memoryview(b"abcd"), ((1.0,),), iter([]), set(), {"a": 1}]
        )  # fmt: skip
    if random.random() < 0.2:
        shape = random.choice([(), (0,), (1,), (3, 4), (12,), (4, 3, 1), (2, 0, 3), (4, 1), (5, 3)])
    dtype = np.dtype(random.choice(DTYPES))
    a = np.zeros(shape, dtype)
    kind = random.randrange(14)
    if kind == 1:
        a = np.asfortranarray(a)
    elif kind == 2:
        a = np.zeros((*shape, 2), dtype)[..., 0]
    elif kind == 3 and a.ndim:
        a = a[::-1]
    elif kind == 4:
        a = np.broadcast_to(np.zeros((), dtype), shape)
    elif kind == 5 and not dtype.hasobject:
        memory = np.zeros(a.nbytes + dtype.itemsize + 1, np.uint8)
        a = memory[1 : 1 + a.nbytes].view(dtype).reshape(shape)
    elif kind == 6:
        a.flags.writeable = False
    elif kind == 7:
        a = a.view(Own)
    elif kind == 8 and a.ndim == 2:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PendingDeprecationWarning)
            a = np.asmatrix(a)
    elif kind == 9 and not dtype.hasobject:
        a = np.ma.masked_array(a, mask=False)
    elif kind == 10 and a.nbytes and not dtype.hasobject:
        mode: Any = random.choice(["w+", "c"])
        path = Path(folder, "map")
        path.write_bytes(bytes(a.nbytes + 64))
        mode = "r+" if mode == "w+" else mode
        a = np.memmap(path, dtype, mode, offset=random.choice([0, 1, 8]), shape=shape)
    elif kind == 11 and dtype.names is None:
        a = a.view(np.recarray)
    elif kind == 12:
        a = a.T
    return a


def copied(a: Any) -> Any:
    """The same again, elsewhere."""
    return a.copy(order="K") if type(a) in (np.ndarray, Own) and a.flags.forc else a


def try_array(random: Random, folder: Path) -> str:
    """One array at one of the places where one is passed."""
    shape = (4, 3)
    a = an_array(random, shape, folder)
    some: list[type[Optimizer]] = [schuss.SGD, schuss.Adam, schuss.AdamW, schuss.Lion]
    rule = random.choice(some)
    shown = f"{a.dtype} {a.shape} {a.flags.num:x}" if isinstance(a, np.ndarray) else repr(a)
    where = random.choice(["params", "grads", "bound", "rebind", "add", "call", "state", "step of"])
    what = f"{rule.__name__}, {where}: {type(a).__name__} {shown}"
    params = {"a": np.ones(shape, np.float32), "b": np.ones(shape, np.float32)}
    names = ["params", "grads", "state", "group", "param", "grad", "exp_avg", "momentum_buffer"]
    names += ["exp_avg_sq"]
    if where == "params":
        return refused(what, names, [], lambda: began(rule, {"a": a}))
    if where == "call":
        one = np.ones(shape, np.float32)
        arrays = [one.copy() for _ in range(4)]
        arrays[random.randrange(4)] = a
        return refused(what, [*names, "adam"], [], lambda: functional.adam(*arrays, step=1))
    opt = rule(params, convert=random.random() < 0.2, zero_grad=random.random() < 0.2)
    one = np.ones(shape, np.float32)
    step_of = {"a": a, "b": one.copy()}

    def rebind() -> None:
        opt.rebind(step_of)
        opt.step({"a": one, "b": one.copy()})

    acts: dict[str, Callable[[], object]] = {
        "grads": lambda: opt.step(step_of),
        "bound": lambda: rule(params, grads=step_of).step(),
        "rebind": rebind,
        "add": lambda: opt.add_param_group({"params": {"c": a}}),
        "state": lambda: opt.load_state_dict(with_array(opt.state_dict(), a)),
        "step of": lambda: opt.step({"a": one, "b": one.copy()}, params=step_of),
    }
    names += ["state_dict"]
    return refused(what, names, [opt], acts[where])


def with_array(state: dict[str, Any], a: Any) -> dict[str, Any]:
    own = state["state"]["a"]
    for key, value in own.items():
        if isinstance(value, np.ndarray):
            own[key] = a
            break
    return state


def began(rule: Callable[..., Optimizer], params: Any) -> None:
    """An optimizer of an array that is taken steps it as one of the other backend does."""
    x = params["a"]
    opt = rule(params)
    other = rule({"a": np.asarray(x).copy(order="K")}, backend="numpy")
    g = np.ones_like(np.asarray(x), subok=False)
    for one in (opt, other):
        one.step({"a": g})
    if bits(opt) != bits(other):
        raise Failed("other bits in NumPy")


# ---- Arrays that become others between two steps


def try_changed(random: Random, folder: Path) -> str:
    """A registered array, or a bound gradient, is another one at the next step."""
    params = {k: np.ones((4, 3), np.float32) for k in "ab"}
    grads = {k: np.ones((4, 3), np.float32) for k in "ab"}
    opt = schuss.Adam(params, grads=grads)
    opt.step()
    pool = [params["a"], grads["b"], opt.state["b"]["exp_avg"], opt.state["a"]["exp_avg_sq"]]
    a = random.choice(pool)
    kind = random.randrange(7)

    def change() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            if kind == 0:
                a.resize(random.choice([(4, 4), (2, 3), (0, 3), (400, 300)]), refcheck=False)
            elif kind == 1:
                a.shape = random.choice([(12,), (3, 4), (4, 3, 1), (4, 3)])
            elif kind == 2:
                a.dtype = random.choice(["i4", ">f4", "f2", "f4"])
            elif kind == 3:
                a.flags.writeable = False
            elif kind == 4:
                a.strides = random.choice([(4, 16), (0, 4), (12, 4)])
            elif kind == 5:
                a.resize((400, 300), refcheck=False)
                a.resize((4, 3), refcheck=False)
            elif kind == 6:
                a.setflags(align=False)

    what = f"changed between steps, {kind}, {next(i for i, b in enumerate(pool) if b is a)}"
    counts = opt._moved()[:2]
    change()
    rest = [b.tobytes() for b in pool if b is not a]
    said = refused(what, ["params", "grads", "state"], [], opt.step)
    if said == "refused" and (
        opt._moved()[:2] != counts or [b.tobytes() for b in pool if b is not a] != rest
    ):
        raise Failed(f"{what}: refused, and changed")
    return said


# ---- All of them


def try_one(random: Random, folder: Path) -> str:
    """One input: "taken", or "refused"."""
    kind = random.random()
    if kind < 0.5:
        return "number " + try_number(random)
    if kind < 0.85:
        return "array " + try_array(random, folder)
    return "changed array " + try_changed(random, folder)


def try_shared_memory() -> None:
    """Parameters in memory that processes share step as any others."""
    memory = SharedMemory(create=True, size=48)
    try:
        x = np.ndarray((4, 3), np.float32, memory.buf)
        x[...] = 1
        schuss.SGD([x], lr=1.0).step([np.ones((4, 3), np.float32)])
        if x.any():
            raise Failed("shared memory")
        del x
    finally:
        memory.close()
        memory.unlink()


def fuzz(bad: int, seed: int) -> Counter[str]:
    """Inputs until so many were refused; how many of each kind, and how many messages there are."""
    count: Counter[str] = Counter()
    number = seed
    with tempfile.TemporaryDirectory() as folder:
        while sum(n for name, n in count.items() if name.endswith("refused")) < bad:
            try:
                count[try_one(Random(number), Path(folder))] += 1
            except BaseException:
                print(f"--seed {number}", flush=True)
                raise
            number += 1
    count["different messages"] = len(messages)
    return count
