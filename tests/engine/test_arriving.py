"""Gradients that step as they arrive: the bits of one step, what is refused, and how it ends."""

from __future__ import annotations

import copy
import functools
import gc
import math
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact.combinations import ONE_BY_ONE, by_kind, losses, nasty, same_bits, takes
from exact.ends import Ends, ends, everywhere, require_same

import schuss
from engine.unchanged import Unchanged, snapshot
from schuss import rules
from schuss.engine.declare import Backend
from schuss.engine.optimizer import Optimizer
from schuss.rules import matrix

STEPS = 4
F4, F8 = np.float32, np.float64
BACKENDS: list[Backend] = ["compiled", "numpy"]
SHAPES: dict[str, tuple[int, ...]] = {
    "w": (12, 64),
    "b": (65,),
    "s": (),
    "none": (0,),
    "long": (3, 1, 4099),
    "conv": (3, 4, 16),
}
Params = dict[str, np.ndarray]
Order = Callable[[list[str]], list[str]]

# Rules with a number that sums over all arrays make have to see them all before the first steps.
TOTALS = [rule for rule in rules.RULES if rule.shared and rule.sums(rule.defaults())]
ARRIVING = [rule for rule in rules.RULES if rule not in TOTALS]

pytestmark = pytest.mark.usefixtures("many_threads", "any_isa")


@functools.lru_cache(maxsize=64)
def numbers(seed: int, dtype: str, wild: bool) -> Params:
    rng = np.random.default_rng(seed)
    return {k: nasty(rng, math.prod(s), dtype, 0, wild).reshape(s) for k, s in SHAPES.items()}


def values(seed: int, dtype: str, wild: bool = False) -> Params:
    """Arrays of one's own."""
    return copy.deepcopy(numbers(seed, dtype, wild))


def shuffled(names: list[str]) -> list[str]:
    return random.Random(3).sample(names, len(names))


ORDERS: dict[str, Order] = {
    "as they lie": list,
    "from behind": lambda names: names[::-1],
    "in any": shuffled,
}


def steps(
    opt: Optimizer, dtype: str, order: Order | None, absent: str = "", **settings: Any
) -> None:
    """Some steps, at once or in an order of arrival; one array has no gradient at times."""
    for t in range(STEPS):
        grads: dict[str, Any] = values(50 + t, dtype, wild=t == 2)
        if absent and t % 2:
            grads[absent] = None
        if order is None:
            opt.step(grads, loss=losses(t), **settings)
            continue
        arrived = []
        with opt.arriving(loss=losses(t), **settings) as step:
            for name in order(list(grads)):
                if grads[name] is None and t == 1:
                    continue  # what never comes
                step(name, grads[name])
                arrived += [name] if grads[name] is not None else []
        assert opt.arrived == tuple(arrived)


@pytest.mark.parametrize("rule", by_kind(ARRIVING))
def test_bits_are_those_of_a_step(rule: type[Optimizer]) -> None:
    for number, (dtype, chosen) in enumerate(ONE_BY_ONE):
        options = {k: v for k, v in chosen.items() if k != "decay_mode" or takes(rule, **chosen)}
        order = list(ORDERS.values())[number % len(ORDERS)]

        def run(
            backend: Backend, order: Any = order, dtype: Any = dtype, options: Any = options
        ) -> Ends:
            opt = rule(values(1, dtype), backend=backend, **options)
            steps(opt, dtype, order, absent="b")
            return ends(opt)

        why = f"{rule.__name__} {dtype} {options}"
        require_same(everywhere(run, why), run("compiled", order=None), why)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rule", matrix.RULES, ids=lambda rule: rule.__name__)
def test_matrices(rule: type[Optimizer], order: str) -> None:
    """As BLAS has it, which is asked for the same products."""
    found = []
    for arrival in (None, ORDERS[order]):
        opt = rule(values(1, "float64"))
        for t in range(STEPS):
            grads = values(50 + t, "float64")
            if arrival is None:
                opt.step(grads)
            else:
                with opt.arriving() as step:
                    for name in arrival(list(grads)):
                        step(name, grads[name])
        found.append(ends(opt))
    one, other = found
    assert one.keys() == other.keys()
    for key, a in one.items():
        np.testing.assert_allclose(a, other[key], rtol=1e-9, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("backend", BACKENDS)
def test_settings_are_those_of_the_block(backend: Backend) -> None:
    """The rate, the scale, schedules and hyperparameters as they are when it is opened."""
    found = []
    for order in (None, shuffled):
        opt = schuss.AdamW(values(1, "float32"), lr=lambda n: 0.1 / (n + 1), backend=backend)
        steps(opt, "float32", order, lr=0.25, grad_scale=8.0)
        steps(opt, "float32", order)
        found.append(ends(opt))
    require_same(found[0], found[1])
    x = {"a": np.zeros(2), "b": np.zeros(2)}
    sgd = schuss.SGD(x, lr=1.0, backend=backend)
    with sgd.arriving() as step:
        step("a", np.ones(2))
        try:
            sgd.lr = 5.0
        except RuntimeError:
            return
        step("b", np.ones(2))
    assert (x["a"] == -1).all()
    assert (x["b"] == -1).all()
    assert sgd.lr == 5.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_parameter_steps_at_once(backend: Backend) -> None:
    """And counters when the block is left."""
    x = [np.zeros(2), np.zeros(2)]
    opt = schuss.SGD(x, lr=1.0, backend=backend)
    with opt.arriving() as step:
        assert (x[1] == 0).all()
        step(1, np.ones(2))
        assert (x[1] == -1).all()
        assert (x[0] == 0).all()
        assert opt.iterations == 0
        step("0", np.ones(2))
        assert (x[0] == -1).all()
    assert opt.iterations == 1
    assert [s["step"] for s in opt.state.values()] == [1, 1]
    assert opt.arrived == ("1", "0")


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_never_came_counts_as_none(backend: Backend) -> None:
    one, other = (schuss.Adam(values(1, "float32"), backend=backend) for _ in range(2))
    grads: dict[str, Any] = values(2, "float32")
    with one.arriving() as step:
        step("w", grads["w"])
        step("b", None)
    other.step({name: g if name == "w" else None for name, g in grads.items()})
    require_same(ends(one), ends(other))
    assert one.arrived == ("w",)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_came(backend: Backend) -> None:
    one, other = (schuss.Adam(values(1, "float32"), backend=backend) for _ in range(2))
    with one.arriving():
        pass
    other.step(dict.fromkeys(SHAPES))
    require_same(ends(one), ends(other))
    assert one.arrived == ()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_closes_it_as_it_is(error: type[BaseException], backend: Backend) -> None:
    one, other = (schuss.Adam(values(1, "float32"), ema=0.9, backend=backend) for _ in range(2))
    grads: dict[str, Any] = values(2, "float32")
    came = ["long", "w"]
    with pytest.raises(error), one.arriving() as step:  # noqa: PT012  it is the block's end
        for name in came:
            step(name, grads[name])
        raise error
    other.step({name: g if name in came else None for name, g in grads.items()})
    require_same(ends(one), ends(other))
    assert one.arrived == ("long", "w")
    for opt in (one, other):
        opt.step(values(3, "float32"))
    require_same(ends(one), ends(other))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_gradient_leaves_its_parameter_to_a_right_one(backend: Backend) -> None:
    one, other = (schuss.Adam(values(1, "float32"), backend=backend) for _ in range(2))
    grads = values(2, "float32")
    with one.arriving() as step:
        step("b", grads["b"])
        before = {k: x.copy() for k, x in zip(SHAPES, one.param_groups[0]["params"], strict=True)}
        wrong: list[Any] = [
            np.ones(3, F4),
            grads["w"].astype(F8),
            [[1.0]],
            one.param_groups[0]["params"][0],
        ]
        for g in wrong:
            with pytest.raises((TypeError, ValueError), match=r'grads\["w"\]'):
                step("w", g)
        for name in ("b", 1):
            with pytest.raises(ValueError, match='"b"'):
                step(name, grads["b"])
        for name in ("nobody", 99, -7):
            with pytest.raises((ValueError, IndexError), match=str(name)):
                step(name, grads["b"])
        for k, x in zip(SHAPES, one.param_groups[0]["params"], strict=True):
            assert same_bits(x, before[k])
        for name in ("w", "s", "none", "long", "conv"):
            step(name, grads[name])
    other.step(grads)
    require_same(ends(one), ends(other))


def test_a_closed_block_steps_no_more() -> None:
    x = {"a": np.zeros(2), "b": np.zeros(2)}
    opt = schuss.SGD(x, lr=1.0)
    with opt.arriving() as step:
        step("a", np.ones(2))
    with pytest.raises(RuntimeError):
        step("b", np.ones(2))
    assert (x["a"] == -1).all()
    assert (x["b"] == 0).all()


# ---- What is refused


def refused() -> dict[str, tuple[type[Optimizer], dict[str, Any], str]]:
    """Options with which nothing can step before all gradients are there, and what is named."""
    scale = schuss.LossScale()
    around: dict[str, tuple[type[Optimizer], dict[str, Any], str]] = {
        "skip": (schuss.Adam, {"nonfinite": "skip"}, "nonfinite"),
        "raise": (schuss.Adam, {"nonfinite": "raise"}, "nonfinite"),
        "loss scale": (schuss.Adam, {"nonfinite": "skip", "grad_scale": scale}, "nonfinite"),
        "clip_norm": (schuss.Adam, {"clip_norm": 1.0}, "clip_norm"),
    }
    return around | {rule.__name__: (rule, {}, rule.__name__) for rule in TOTALS}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", refused())
def test_refused(case: str, backend: Backend) -> None:
    rule, options, says = refused()[case]
    opt = rule(values(1, "float32"), backend=backend, **options)
    opt.step(values(2, "float32"))
    with Unchanged(opt, ValueError, says), opt.arriving():
        pytest.fail("it was opened")
    assert opt.step(values(3, "float32"))


def test_wrong_settings_are_refused_when_it_is_opened() -> None:
    opt = schuss.Adam(values(1, "float32"))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"lr": -1.0}, "lr"),
        ({"grad_scale": 0.0}, "grad_scale"),
        ({"clip_norm": "next"}, "clip_norm"),
        ({"clip_norm": 1.0}, "clip_norm"),
    ]
    for settings, says in wrong:
        with Unchanged(opt, (TypeError, ValueError), says), opt.arriving(**settings):  # type: ignore[arg-type]
            pytest.fail("it was opened")
    eve = schuss.Eve(values(1, "float32"))
    with Unchanged(eve, (TypeError, ValueError), "loss"), eve.arriving():  # type: ignore[arg-type]
        pytest.fail("it was opened")


def opened(opt: Optimizer) -> None:
    with opt.arriving():
        pass


def inside(opt: Optimizer, folder: Path) -> dict[str, Callable[[], Any]]:
    """Calls that a block has no room for."""
    x = values(1, "float32")
    saved = opt.state_dict()
    return {
        "step": lambda: opt.step(values(2, "float32")),
        "arriving": lambda: opened(opt),
        "load_state_dict": lambda: opt.load_state_dict(saved),
        "state_dict": opt.state_dict,
        "save": lambda: schuss.save(folder / "run", params=x, opt=opt),
        "add_param_group": lambda: opt.add_param_group({"params": {"new": np.ones(3, F4)}}),
        "rebind": lambda: opt.rebind(x),
        "deepcopy": lambda: copy.deepcopy(opt),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("call", inside(schuss.Adam(values(1, "float32")), Path()))
def test_calls_inside(call: str, backend: Backend, tmp_path: Path) -> None:
    """They raise, and the block goes on."""
    one, other = (schuss.Adam(values(1, "float32"), backend=backend) for _ in range(2))
    calls, grads = inside(one, tmp_path), values(2, "float32")
    with one.arriving() as step:
        for name in ("b", "w"):
            with pytest.raises(RuntimeError):
                calls[call]()
            step(name, grads.pop(name))
        for name, g in grads.items():
            step(name, g)
    other.step(values(2, "float32"))
    require_same(ends(one), ends(other))
    calls[call]()


def test_a_callable_can_not_open_it() -> None:
    def lr(n: int) -> float:
        if n:
            opened(opt)
        return 0.1

    opt = schuss.SGD([np.ones(3)], lr=lr)
    opt.step([np.ones(3)])
    before = snapshot(opt)
    with pytest.raises(RuntimeError):
        opt.step([np.ones(3)])
    assert snapshot(opt) == before


# ---- The limit of the step before


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_clipping_by_the_norm_before(backend: Backend, scale: float) -> None:
    """By hand: none in the first step, then the factor that the gradients before would have had."""
    rng = np.random.default_rng(61)
    x: Params = {"a": np.zeros(9), "b": np.zeros((3, 4)), "c": np.zeros(5000)}
    want = copy.deepcopy(x)
    opt = schuss.SGD(x, lr=1.0, clip_norm=2.0, grad_scale=scale, backend=backend)
    factor = 1.0
    for t in range(6):
        g = {k: rng.standard_normal(a.shape) * 10.0 ** (t % 3 - 1) for k, a in x.items()}
        with opt.arriving(clip_norm="previous") as step:
            for name in shuffled(list(g)):
                step(name, g[name])
        length = math.sqrt(sum(float((a**2).sum()) for a in g.values())) / scale
        assert opt.grad_norm == pytest.approx(length, rel=1e-13)
        for name, a in g.items():
            want[name] -= factor * a / scale
            np.testing.assert_allclose(x[name], want[name], rtol=1e-12, atol=1e-14)
        factor = min(1.0, 2.0 / (length + 1e-6))


def test_clipping_by_the_norm_before_has_the_same_bits_everywhere() -> None:
    def run(backend: Backend) -> Ends:
        opt = schuss.AdamW(values(1, "float32"), clip_norm=0.7, backend=backend)
        opt.step(values(49, "float32"))  # whose norm counts in the first one
        for t in range(STEPS):
            grads = values(50 + t, "float32")
            with opt.arriving(clip_norm="previous") as step:
                for name in shuffled(list(grads)):
                    step(name, grads[name])
        return ends(opt)

    everywhere(run)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_norm_that_was_not_finite_before(backend: Backend) -> None:
    """Its factor goes as it does in a step: what is beyond it is one step late."""
    x = {"a": np.zeros(3)}
    opt = schuss.SGD(x, lr=1.0, clip_norm=1.0, backend=backend)
    with opt.arriving(clip_norm="previous") as step:
        step("a", np.array([3.0, 0.0, 4.0]))
    assert opt.grad_norm == 5.0
    assert x["a"].tolist() == [-3, 0, -4]
    with opt.arriving(clip_norm="previous") as step:
        step("a", np.array([3.0, 0.0, 4.0]))
    assert x["a"] == pytest.approx([-3.6, 0, -4.8], rel=1e-6)


# ---- With all around


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_arrive(backend: Backend) -> None:
    rng = np.random.default_rng(62)
    for mode in ("lazy", "counted", "decayed"):
        one, other = (
            schuss.AdamW(values(1, "float32"), rows=mode, backend=backend) for _ in range(2)
        )
        for t in range(STEPS):
            grads: dict[str, Any] = values(50 + t, "float32")
            index = rng.integers(0, 12, 9)
            grads["w"] = schuss.Rows(index, rng.standard_normal((9, 64)).astype(F4))
            with one.arriving() as step:
                for name in shuffled(list(grads)):
                    step(name, grads[name])
            other.step(grads)
        require_same(ends(one), ends(other), mode)


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_by_name_and_position(backend: Backend) -> None:
    def made() -> Optimizer:
        x = values(1, "float32")
        some = {"params": {k: x.pop(k) for k in ("w", "b")}, "lr": 0.5}
        return schuss.AdamW([some, {"params": x, "weight_decay": 0.3}], backend=backend)

    one, other = made(), made()
    names = [name for group in one.param_groups for name in group["param_names"]]
    grads = values(2, "float32")
    with one.arriving() as step:
        for i in reversed(range(len(names))):
            step(names[i] if i % 2 else i, grads[names[i]])
    other.step([{k: grads[k] for k in group["param_names"]} for group in other.param_groups])
    require_same(ends(one), ends(other))


@pytest.mark.parametrize("backend", BACKENDS)
def test_reports(backend: Backend) -> None:
    """Of each array as of a step; of all together, to the rounding of a sum in another order."""
    one, other = (schuss.AdamW(values(1, "float32"), backend=backend) for _ in range(2))
    grads = values(2, "float32")
    with one.arriving(report=True) as step:
        for name in shuffled(list(grads)):
            step(name, grads[name])
    other.step(grads, report=True)
    mine: Any = one.report
    theirs: Any = other.report
    assert {name: tuple(own) for name, own in mine.items()} == {
        name: tuple(own) for name, own in theirs.items()
    }
    for key in ("grad", "update", "param"):
        assert getattr(mine, key) == pytest.approx(getattr(theirs, key), rel=1e-14)
    require_same(ends(one), ends(other))


def left_in_files(folder: Path) -> tuple[Ends, Params]:
    """What a run with its state in files ends on, behind a block that an error has closed."""
    opt = schuss.Adam(values(1, "float32"), state_dir=folder)
    other = schuss.Adam(values(1, "float32"))
    steps(opt, "float32", shuffled)
    steps(other, "float32", None)
    require_same(ends(opt), ends(other))
    with pytest.raises(ZeroDivisionError), opt.arriving() as step:  # noqa: PT012  the block's end
        step("w", np.ones((12, 64), F4))
        raise ZeroDivisionError
    x = zip(SHAPES, opt.param_groups[0]["params"], strict=True)
    return ends(opt), {name: a.copy() for name, a in x}


def test_state_in_files(tmp_path: Path) -> None:
    """The files are whole behind a block, also behind one that an error has closed."""
    left, x = left_in_files(tmp_path / "state")
    gc.collect()  # the files' optimizer
    opt = schuss.Adam(x)
    schuss.load(tmp_path / "state", opt)
    require_same(ends(opt), left)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("missing", ["raise", "skip"])
@pytest.mark.parametrize("convert", [False, True])
def test_bound_gradients(backend: Backend, missing: Any, convert: bool) -> None:
    """What arrives counts, and not what is bound."""
    x: Params = {"a": np.zeros(3), "b": np.zeros(3)}
    bound = {name: np.full(3, 100.0) for name in x}
    opt = schuss.SGD(x, lr=1.0, grads=bound, missing=missing, convert=convert, backend=backend)
    with opt.arriving() as step:
        step("b", np.ones(3))
    assert (x["a"] == 0).all()
    assert (x["b"] == -1).all()
    opt.step()
    assert (x["a"] == -100).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_swapped_parameters_bar_it(backend: Backend) -> None:
    opt = schuss.Adam(values(1, "float32"), ema=0.9, backend=backend)
    opt.step(values(2, "float32"))
    with opt.averaged(), pytest.raises(RuntimeError, match="averaged"), opt.arriving() as step:
        step("w", np.ones((12, 64), F4))
    opt.step(values(3, "float32"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_zeroed_as_they_arrive(backend: Backend) -> None:
    opt = schuss.Adam(values(1, "float32"), zero_grad=True, backend=backend)
    grads = values(2, "float32")
    with opt.arriving() as step:
        step("w", grads["w"])
        assert not grads["w"].any()
        assert grads["b"].any()


def test_a_name_that_is_a_number_comes_before_a_position() -> None:
    a, b = np.zeros(2), np.zeros(2)
    opt = schuss.SGD({1: a, 0: b}, lr=1.0)
    with opt.arriving() as step:
        step(1, np.ones(2))
    assert (opt.arrived, a.tolist(), b.tolist()) == (("1",), [-1.0, -1.0], [0.0, 0.0])


def test_the_norm_before_is_saved() -> None:
    def arrived(opt: Optimizer) -> None:
        with opt.arriving(clip_norm="previous") as step:
            step("w", np.full(4, 10.0))

    first = schuss.SGD({"w": np.zeros(4)}, lr=1.0, clip_norm=1.0)
    arrived(first)
    loaded = schuss.SGD({"w": first.param_groups[0]["params"][0].copy()}, lr=1.0, clip_norm=1.0)
    loaded.load_state_dict(first.state_dict())
    copied = copy.deepcopy(first)
    for opt in (first, loaded, copied):
        arrived(opt)
    x, *others = (opt.param_groups[0]["params"][0] for opt in (first, loaded, copied))
    assert all((x == y).all() for y in others)


def test_interrupts_leave_no_step_open() -> None:
    """Wherever they fall: where it begins, within it, and where it ends."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    g, rng = np.ones((4, 4), F4), random.Random(1)
    opt = schuss.Adam({"w": np.ones((4, 4), F4)}, lr=lambda n: 0.1)
    interrupted = 0
    for _ in range(1500):
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 60e-6))
            try:
                for _ in range(3):
                    with opt.arriving() as step:
                        step("w", g)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupted += 1
        assert opt.step({"w": g})
    assert interrupted > 50
