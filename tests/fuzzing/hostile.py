"""Python that runs within a step and does its worst: whole steps or none, and nothing breaks.

A scene is an optimizer whose arrays, keys, containers, numbers and loss scale are of classes whose
every hook springs a trap: at its k-th call it does one thing, such as to set an option, clear the
list of gradients or step again. Before, weak references, the garbage collector, warnings and a
profiler have been made to run Python, too. What a step leaves is looked over, and steps go on.
AddressSanitizer sees more than that: `.ci/sanitize python tests/fuzz.py --hostile 300`.
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import random
import sys
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import ml_dtypes
import numpy as np

import schuss
from schuss.engine.optimizer import Optimizer
from schuss.engine.structure import filled
from schuss.rules import RULES, matrix

F4, BF = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
SIZE = 300  # beyond what NumPy caches, so that memory that is freed is freed


class Trap:
    """Counts the calls of hooks within a step, and springs at one of them."""

    def __init__(self) -> None:
        self.armed = self.springing = False
        self.calls, self.at = 0, -1
        self.spring: Callable[[], object] = lambda: None
        self.place = ""

    def __call__(self, place: str) -> None:
        if not self.armed or self.springing:
            return
        self.calls += 1
        if self.calls != self.at:
            return
        self.springing, self.place = True, place
        try:
            self.spring()
        finally:
            self.springing = False


trap = Trap()  # there is one scene at a time

# ---- Classes whose hooks spring it


def hooked(cls: type, base: type, names: Sequence[str]) -> None:
    """Overrides methods of a base: they spring the trap, and do what they did."""
    for name in names:
        own = getattr(base, name)

        def method(self: Any, *given: Any, own: Any = own, name: str = name, **more: Any) -> Any:
            trap(f"{base.__name__}.{name}")
            return own(self, *given, **more)

        setattr(cls, name, method)


class Array(np.ndarray):
    def __getattribute__(self, name: str) -> Any:
        trap(f"ndarray.{name}")
        return super().__getattribute__(name)

    def __del__(self) -> None:
        trap("ndarray.__del__")


hooked(Array, np.ndarray, ["__array_finalize__", "__array_ufunc__", "__len__", "__getitem__"])


class Key:
    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        trap("key.__str__")
        return self.name

    def __hash__(self) -> int:
        trap("key.__hash__")
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        trap("key.__eq__")
        return isinstance(other, Key) and self.name == other.name

    def __del__(self) -> None:
        trap("key.__del__")


class List(list[Any]):
    pass


class Dict(dict[Any, Any]):
    pass


hooked(List, list, ["__len__", "__getitem__", "__iter__"])
hooked(Dict, dict, ["__len__", "__iter__", "keys", "items", "values", "__contains__"])


class Looked(Dict):
    """A mapping that finds its members in a way of its own."""


hooked(Looked, dict, ["__getitem__"])


class Other(Mapping[Any, Any]):
    def __init__(self, own: dict[Any, Any]) -> None:
        self.own = own

    def __getitem__(self, key: Any) -> Any:
        trap("mapping.__getitem__")
        return self.own[key]

    def __iter__(self) -> Iterator[Any]:
        trap("mapping.__iter__")
        return iter(self.own)

    def __len__(self) -> int:
        trap("mapping.__len__")
        return len(self.own)


class Double(float):
    """A number whose own code makes a float of it."""

    def __float__(self) -> float:
        trap("number.__float__")
        return float.__float__(self)

    def __del__(self) -> None:
        trap("number.__del__")


class Scale:
    def __float__(self) -> float:
        trap("scale.__float__")
        return 2.0

    def update(self, stepped: bool) -> None:
        trap("scale.update")


class Going:
    """What a dtype's metadata holds, or a cycle for the collector."""

    def __init__(self) -> None:
        self.own = self

    def __del__(self) -> None:
        trap("object.__del__")


def schedule(value: float) -> Callable[[int], float]:
    def at(iterations: int) -> float:
        trap("schedule")
        return Double(value)

    return at


# ---- A scene


class Scene:
    """An optimizer of arrays that are all alike, so that whole steps leave them alike."""

    def __init__(self, seed: int) -> None:
        self.random = choose = random.Random(seed)
        rules = [r for r in RULES if r.__module__ != matrix.__name__]
        often: list[type[Optimizer]] = [schuss.SGD, schuss.Adam]
        self.rule = choose.choice([*often, *choose.sample(rules, 4)])
        self.dtype = choose.choice([F4, F4, np.dtype(np.float64), np.dtype(np.float16), BF])
        self.keys = [Key(name) for name in "abcd"]
        self.arrays = [self.array(1.0, self.dtype) for _ in self.keys]
        self.params = self.held(self.arrays)
        self.chosen = options = dict(self.options())
        if "lr" in self.rule.hyperparameters and choose.random() < 0.4:
            options["lr"] = schedule(0.25)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.opt: Optimizer | None = self.made(options)
        self.listed = list(self.arrays)
        self.grads = self.held([self.gradient() for _ in self.keys])
        if choose.random() < 0.3:
            self.replace_one(choose.choice([None, self.odd(), self.odd()]))
        self.told: dict[str, Any] = {"loss": Double(1.5)} if choose.random() < 0.2 else {}
        if self.opt.reads_loss(self.opt.param_groups[0]):
            self.told["loss"] = Double(1.5)
        if choose.random() < 0.1:
            self.told["lr"] = Double(0.5)
        if choose.random() < 0.2:
            self.told["params"] = self.held(self.arrays)

    def made(self, options: dict[str, Any]) -> Optimizer:
        """With fewer options where a rule has not these or they don't go together."""
        while True:
            try:
                return self.rule(self.params, **options)
            except (TypeError, ValueError):
                options.popitem()

    def options(self) -> Iterator[tuple[str, Any]]:
        choose = self.random
        some: dict[str, list[Any]] = {
            "backend": ["compiled"] * 4 + ["numpy"],
            "nonfinite": ["skip", "raise"],
            "grad_scale": [Scale()],
            "clip_norm": [0.5, 100.0],
            "zero_grad": [True],
            "convert": [True],
            "ema": [0.5],
            "master": [True, "remainder"],
            "missing": ["skip"],
            "cautious": ["mean"],
            "weight_decay": [0.125],
            "bounds": [(-9.0, 9.0)],
        }
        for name, values in some.items():
            if choose.random() < 0.3:
                yield name, choose.choice(values)

    def array(self, value: float, dtype: Any) -> np.ndarray:
        made = np.full(SIZE, value, dtype)
        return made.view(Array) if self.random.random() < 0.5 else made

    def gradient(self) -> np.ndarray:
        choose = self.random
        dtype = self.dtype if self.dtype == np.float64 else choose.choice([F4, BF])
        if choose.random() < 0.3:
            dtype = np.dtype(dtype, metadata={"own": Going()})
        made = self.array(0.5, dtype)
        if isinstance(made, Array):
            weakref.finalize(made, trap, "finalizer").atexit = False
            self.reference = weakref.ref(made, lambda _: trap("weak reference"))
        return made

    def odd(self) -> Any:
        """No gradient that fits."""
        full = np.full(SIZE, 0.5)
        other: list[Any] = [
            full.astype(ml_dtypes.float8_e4m3fn),
            full.astype(">f4"),
            full.astype(">f8"),
            full[:-1],
            np.ones((2, SIZE))[:, ::2].T,
            full.astype(np.complex64),
            np.float32(0.5),
            object(),
            "no array",
        ]
        found = self.random.choice(other)
        return found.view(Array) if isinstance(found, np.ndarray) else found

    def held(self, arrays: list[Any]) -> Any:
        """The arrays in a container, sometimes in one within another."""
        pairs = list(zip(self.keys, arrays, strict=True))
        first, second = dict(pairs[:2]), dict(pairs[2:])
        if not hasattr(self, "form"):
            self.form = self.random.randrange(8)
        nested: list[Callable[[], Any]] = [
            lambda: list(arrays),
            lambda: List(arrays),
            lambda: dict(pairs),
            lambda: Dict(pairs),
            lambda: Looked(pairs),
            lambda: Other(dict(pairs)),
            lambda: {self.keys[0]: first, self.keys[1]: Dict(second)},
            lambda: [List(arrays[:2]), tuple(arrays[2:])],
        ]
        return nested[self.form]()

    def replace_one(self, value: Any) -> None:
        """Puts another object in the place of a gradient."""
        part = self.part()
        if isinstance(part, list):
            list.__setitem__(part, self.random.randrange(len(part)), value)
        elif part:
            dict.__setitem__(part, self.random.choice(list(dict.keys(part))), value)

    def part(self) -> Any:
        """A container that can be changed, with gradients in it."""
        found = self.grads.own if isinstance(self.grads, Other) else self.grads
        inner = list(found) if isinstance(found, list) else list(dict.values(found))
        parts = [p for p in inner if isinstance(p, list | dict)]
        return self.random.choice(parts) if parts else found

    # ---- What is done in the middle of a step

    def actions(self) -> dict[str, Callable[[], object]]:
        choose, opt = self.random, self.opt
        if opt is None:
            return {"nothing": gc.collect}
        x = choose.choice(self.arrays)

        def option() -> None:
            name, value = choose.choice(
                [
                    ("nonfinite", "skip"), ("nonfinite", "propagate"), ("missing", "skip"),
                    ("missing", "raise"), ("clip_norm", 3.0), ("grad_scale", 4.0),
                    ("zero_grad", True), ("convert", True), ("subnormals", "keep"),
                ]
            )  # fmt: skip
            setattr(opt, name, value)

        def load() -> None:
            opt.load_state_dict(
                self.saved
            )  # refused in the middle; else counters are what they were
            self.loaded = True

        def enter_means() -> None:
            self.entered = opt.averaged()
            self.entered.__enter__()

        def drop() -> None:
            self.opt = None
            gc.collect()

        def frozen() -> None:
            x.flags.writeable = False

        def swap() -> None:
            self.replace_one(choose.choice([None, self.gradient(), self.odd()]))

        def fail() -> None:
            raise choose.choice([ValueError, KeyError, KeyboardInterrupt, MemoryError])("mine")

        def step_again() -> None:
            opt.step(self.held([self.gradient() for _ in self.keys]), loss=1.5)

        def reshape() -> None:
            x.shape = (2, SIZE // 2)

        found: dict[str, Callable[[], object]] = {
            "option": option,
            "rate": lambda: setattr(opt, "lr", choose.choice([0.5, schedule(0.5)])),
            "group's rate": lambda: opt.param_groups[0].update(lr=0.5),
            "clear": lambda: self.part().clear(),
            "swap": swap,
            "clear params": lambda: None if isinstance(self.params, Other) else self.params.clear(),
            "add_param_group": lambda: opt.add_param_group({"params": {"e": np.ones(SIZE, F4)}}),
            "rebind": lambda: opt.rebind(self.held([a.copy() for a in self.arrays])),
            "step": step_again,
            "step of others": lambda: opt.step(self.grads, params=self.held(self.arrays)),
            "state_dict": opt.state_dict,
            "load_state_dict": load,
            "refresh": opt.refresh,
            "holds": lambda: opt.holds(self.params),
            "deepcopy": lambda: copy.deepcopy(opt),
            "pickle": lambda: pickle.dumps(opt),
            "repr": lambda: repr(opt),
            "means": lambda: opt.averaged().__enter__() and None,
            "stay in means": enter_means,
            "collect": gc.collect,
            "drop": drop,
            "freeze": frozen,
            "reshape": reshape,
            "fail": fail,
            "fork": self.fork,
        }
        # NumPy itself goes on with memory that is gone, where its own functions are at work.
        if opt.backend == "compiled" and not opt.convert and "profiler" not in self.running:
            state = [a for s in opt.state.values() for a in s.values() if np.ndim(a) == 1]
            one = choose.choice([*self.arrays, *state])
            found["resize"] = lambda: one.resize(1 << 16, refcheck=False)
        return found

    def fork(self) -> None:
        """The step goes on in the child."""
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
        else:
            self.is_child = True

    saved: dict[str, Any]
    is_child = loaded = False
    entered: Any = None

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """What else lets Python run: the collector, a profiler, warnings."""
        choose, threshold = self.random, gc.get_threshold()
        self.running = {n for n in ("collector", "profiler") if choose.random() < 0.15}
        if self.chosen.get("backend") == "numpy":  # between two arrays of a step, too
            self.running = set()
        with ExitStack() as after, warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda *_, **__: trap("warning")
            if "collector" in self.running:
                after.callback(gc.set_threshold, *threshold)
                callback = lambda *_: trap("collector")  # noqa: E731
                gc.callbacks.append(callback)
                after.callback(gc.callbacks.remove, callback)
                for _ in range(20):
                    Going()
                gc.set_threshold(1)
            if "profiler" in self.running:
                after.callback(sys.setprofile, None)
                sys.setprofile(profiled)
            yield

    # ---- What is left

    def look(self) -> Any:
        """Iterations, and of each parameter its count and bits."""
        opt = self.opt
        if opt is None:
            return None
        found = []
        for i, p in enumerate(opt._parameters):
            arrays = (p.x, *p.saved.values())
            bits = tuple(np.asarray(a).tobytes()[: SIZE * a.itemsize] for a in arrays)
            found.append((opt._plan.count(i), bits))
        return opt.iterations, found

    def restore(self) -> None:
        """Takes back what was done to arrays and to the optimizer, not to the counters."""
        if self.entered is not None:
            with suppress(RuntimeError):
                self.entered.__exit__(None, None, None)
        opt = self.opt
        state = [] if opt is None else [a for p in opt._parameters for a in p.saved.values()]
        params = [] if opt is None else [p.x for p in opt._parameters]
        for a in (*self.arrays, *params, *state):
            a.flags.writeable = True
            a.shape = a.size
            if a.size != SIZE:
                a.resize(SIZE, refcheck=False)

    def require_whole(self, before: Any, after: Any) -> None:
        if before is None or after is None or self.loaded:
            return
        (iterations, old), (more, new) = before, after
        assert 0 <= more - iterations <= 2, (iterations, more)  # a step before it, too
        ends: dict[Any, Any] = {}
        for (count, bits), (now, found) in zip(old, new, strict=False):
            assert 0 <= now - count <= more - iterations
            if now == count:
                assert found == bits, "changed without a step"
            else:
                assert found != bits or self.dtype.itemsize == 2, "a step without a change"
                assert ends.setdefault((count, now, bits), found) == found, "some of a step"

    def go_on(self) -> None:
        """Steps of the optimizer with gradients as they should be."""
        opt = self.opt
        if opt is None:
            return
        opt.rebind(formed(opt, [p.x for p in opt._parameters]))
        opt.refresh()  # where a master is no longer that of what was changed
        opt.missing, done = "raise", opt.iterations
        opt.grad_scale, opt.nonfinite = 1.0, "propagate"
        for _ in range(2):
            grads = [np.full(SIZE, 0.5, p.x.dtype) for p in opt._parameters]
            opt.step(formed(opt, grads), loss=1.5)
        assert opt.iterations == done + 2


def profiled(*_: object) -> None:
    with suppress(Exception, KeyboardInterrupt):  # CPython 3.11 itself crashes where one raises
        trap("profiler")


def formed(opt: Optimizer, values: list[Any]) -> Any:
    """Values in the structure of the parameters."""
    trees = [filled(tree, values) for tree in opt._trees]
    return trees if opt._grouped else trees[0]


def stepped(seed: int, at: int, which: int) -> tuple[int, str, str]:
    """One step, with something done at its call `at`: how many there were, what, and where."""
    trap.armed, trap.at = False, at
    scene = Scene(seed)
    opt = scene.opt
    assert opt is not None
    steps = scene.random.choice([0, 1, 2])  # the way of a first step, or of a later one
    for _ in range(0 if "zero_grad" in scene.chosen else steps):
        with suppress(TypeError, ValueError, FloatingPointError, RuntimeError, KeyError):
            opt.step(scene.grads, **scene.told)
    scene.saved = opt.state_dict()
    name = "nothing"
    with scene.surroundings():
        found = scene.actions()
        if at >= 0:
            name = random.Random(f"{seed} {at} {which}").choice(sorted(found))
            trap.spring = found[name]
            # What changes state by itself may do so once the step is over.
            alone = "fork", "fail", "rebind", "refresh", "load_state_dict"
            if which % 5 == 4 and name not in alone:
                trap.spring = beside(found[name])
        before = scene.look()
        trap.calls, trap.place, trap.armed = 0, "", True
        try:
            opt.step(scene.grads, **scene.told)
        except (SystemError, AssertionError):
            raise
        except (Exception, KeyboardInterrupt):  # whatever a hook raises comes through
            pass
        finally:
            del opt
            trap.armed = False
            sys.setprofile(None)
    for thread in threads:
        thread.join()
    threads.clear()
    scene.restore()
    with suppress(RuntimeError) if name == "stay in means" else ExitStack():
        scene.require_whole(before, scene.look())
        scene.go_on()
    if scene.is_child:
        os._exit(0)
    return trap.calls, name, trap.place


threads: list[threading.Thread] = []


def beside(action: Callable[[], object]) -> Callable[[], None]:
    """The same in another thread, which may have to wait until the step is over."""

    def act() -> None:
        with suppress(Exception):
            action()

    def spring() -> None:
        threads.append(threading.Thread(target=act))
        threads[-1].start()
        threads[-1].join(0.005)

    return spring


def fuzz(scenes: int, seed: int, each: int = 8) -> Counter[str]:
    """So many scenes, each with some actions at some calls; where they came, and what they were."""
    sys.unraisablehook = lambda _: None  # hooks that may not raise, do
    count: Counter[str] = Counter()
    for number in range(seed, seed + scenes):
        calls, *_ = stepped(number, -1, 0)
        chosen = random.Random(number)
        for which in range(min(each, calls)):
            at = chosen.randint(1, calls)
            try:
                _, name, place = stepped(number, at, which)
            except BaseException:
                print(f"scene {number}, call {at} of {calls}, {which}: {trap.place}", flush=True)
                raise
            count[f"at {place}"] += 1
            count[f"do {name}"] += 1
    return count
