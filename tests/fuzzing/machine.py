"""A training of any rule, as a state machine: whatever happens to it, both backends agree.

Each action is done to an optimizer with kernels and to its twin in NumPy, which is the
specification; after it all bits of parameters, state and counters are the same.
"""

from __future__ import annotations

import copy
import os
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from schuss.engine.optimizer import Optimizer
from schuss.engine.structure import filled
from schuss.rules import RULES

F4, F8, BF = np.dtype(np.float32), np.dtype(np.float64), np.dtype(ml_dtypes.bfloat16)
SHAPES = [(3, 5), (7,), (), (0, 2), (33,)]

OPTIONS: dict[str, list[Any]] = {
    "ema": [0.5, 0.99],
    "master": [True, "remainder"],
    "nonfinite": ["skip"],
    "clip_norm": [0.1, 10.0],
    "zero_grad": [True],
    "maximize": [True],
    "cautious": ["mean", "plus1"],
    "weight_decay": [0.1],
    "l2": [0.1],
    "bounds": [(-1.0, 1.0)],
    "stochastic_rounding": [True],
    "state_dtype": ["bfloat16", "float16", "blockfloat8", {"exp_avg": "blockfloat8"}],
    "missing": ["skip"],
    "subnormals": ["keep"],
}
# What may be set later; a number, or one that follows the steps.
LATER: dict[str, list[Any]] = {
    "lr": [0.0, 0.25, 1e-3, lambda iterations: 0.5 / (1 + iterations)],
    "weight_decay": [0.0, 0.5],
    "l1": [0.0, 0.25],
    "clip_value": [0.5],
    "clip_norm": [1.0, 5.0],
    "maximize": [True, False],
    "nonfinite": ["propagate", "skip", "raise"],
    "grad_scale": [1.0, 8.0],
    "zero_grad": [True, False],
    "subnormals": ["zero", "keep"],
    "seed": [3],
    "momentum": [0.5],
    "betas": [(0.5, 0.75)],
    "missing": ["raise", "skip"],
}
GRADIENTS = st.sampled_from([0.0, 1.0, -2.0, 1e-30, 1e30, np.inf, np.nan])


def bits(opt: Optimizer) -> Any:
    """All that steps move; a NaN is any NaN."""
    found = {}
    for p in opt._parameters:
        for key, a in {"x": p.x, **p.saved}.items():
            wide = np.array(a, np.float64)
            wide[np.isnan(wide)] = np.nan
            found[p.name, key] = wide.tobytes()
    return found, repr((opt._moved(), opt.skipped_steps, opt.grad_norm))


class Training(RuleBasedStateMachine):
    """The optimizer, and its twin."""

    pair: list[Optimizer]

    @initialize(data=st.data(), which=st.sampled_from(RULES))
    def create(self, data: st.DataObject, which: type[Optimizer]) -> None:
        self.random = np.random.default_rng(data.draw(st.integers(0, 9)))
        dtype = data.draw(st.sampled_from([F4, F4, F8, BF]))
        order = data.draw(st.sampled_from(["C", "F"]))
        shapes = data.draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3))
        names = data.draw(st.sets(st.sampled_from(sorted(OPTIONS)), max_size=4))
        options = {name: data.draw(st.sampled_from(OPTIONS[name])) for name in sorted(names)}
        self.dtype, self.order, self.count = dtype, order, 0
        arrays = [self.array(shape) for shape in shapes]
        forms: list[Callable[[Any], Any]] = [list, tuple, named, groups]
        wrapped = data.draw(st.sampled_from(forms))

        def made(backend: str) -> Optimizer | Exception:
            try:
                return which(
                    wrapped([a.copy(order="K") for a in arrays]), backend=backend, **options
                )
            except (TypeError, ValueError) as error:
                return error

        pair = [made(backend) for backend in ("compiled", "numpy")]
        if isinstance(pair[0], Exception):
            assert str(pair[0]) == str(pair[1])
            pair = [which(list(map(np.copy, arrays)), backend=b) for b in ("compiled", "numpy")]
        self.pair = [opt for opt in pair if isinstance(opt, Optimizer)]
        assert len(self.pair) == 2
        self.saved: list[Any] | None = None

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        values = self.random.standard_normal(shape)
        return np.array(values, self.dtype, order=self.order)  # type: ignore[call-overload, no-any-return]

    def each(self, act: Callable[[Optimizer], Any]) -> Any:
        """Does it to both: with the same result, or the same error."""
        ends = []
        for opt in self.pair:
            try:
                with np.errstate(all="ignore"), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    ends.append(act(opt))
            except (TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError) as error:
                ends.append(f"{type(error).__name__}: {error}")
        assert ends[0] == ends[1], ends
        return ends[0]

    def gradients(self, value: float | None, frozen: int) -> list[np.ndarray | None]:
        """Drawn ones, in one of which there is a value; or none for one parameter."""
        kind = F8 if self.dtype == F8 else F4
        found: list[np.ndarray | None] = []
        for i, p in enumerate(self.pair[0]._parameters):
            g = np.array(self.random.standard_normal(p.x.shape), kind, order=self.order)  # type: ignore[call-overload]
            if value is not None and i == 0 and g.size:
                g.flat[g.size // 2] = value
            found.append(None if i == frozen else g)
        return found

    def step_with(self, grads: list[np.ndarray | None], **told: Any) -> Any:
        def act(opt: Optimizer) -> Any:
            own = [g if g is None else g.copy(order="K") for g in grads]
            done = opt.step(formed(opt, own), loss=1.5, **told)
            return done, [g if g is None else g.tobytes() for g in own]

        return self.each(act)

    # ---- Actions

    @rule(
        value=st.none() | GRADIENTS, frozen=st.sampled_from([-1, -1, 0, 1]), times=st.integers(1, 3)
    )
    def step(self, value: float | None, frozen: int, times: int) -> None:
        for _ in range(times):
            self.step_with(self.gradients(value, frozen))

    @rule(lr=st.sampled_from([0.0, 0.5, -1.0, "0.1"]))
    def step_at_a_rate(self, lr: Any) -> None:
        self.step_with(self.gradients(None, -1), lr=lr)

    @rule(wrong=st.sampled_from(["shape", "dtype", "order", "number", "read-only", "overlap"]))
    def step_wrongly(self, wrong: str) -> None:
        before, grads = bits(self.pair[0]), self.gradients(None, -1)
        p = self.pair[0]._parameters[-1]
        own: dict[str, Any] = {
            "shape": np.ones((*p.x.shape, 2), np.float32),
            "dtype": np.ones(p.x.shape, np.float32 if self.dtype == F8 else np.float64),
            "order": np.ones((*p.x.shape, 2), np.float32)[..., 0],
            "number": "1.0",
            "read-only": "1.0",
            "overlap": [1.0],
        }
        grads[-1] = own[wrong]
        said = self.each(lambda opt: opt.step(formed(opt, grads), loss=1.5))
        if isinstance(said, str):
            assert bits(self.pair[0]) == before

    @rule(name=st.sampled_from(sorted(LATER)), data=st.data())
    def change(self, name: str, data: st.DataObject) -> None:
        value = data.draw(st.sampled_from(LATER[name]))
        self.each(lambda opt: setattr(opt, name, value))

    @rule(name=st.sampled_from(["lr", "weight_decay", "l2"]), value=st.sampled_from([0.0, 0.125]))
    def change_a_group(self, name: str, value: float) -> None:
        self.each(lambda opt: opt.param_groups[-1].update({name: value}))

    @precondition(lambda self: len(self.pair[0]._parameters) < 6)
    @rule(shape=st.sampled_from(SHAPES), lr=st.sampled_from([0.0, 0.5]))
    def add(self, shape: tuple[int, ...], lr: float) -> None:
        a, self.count = self.array(shape), self.count + 1
        own = {f"more{self.count}": a}
        given = {"params": own, "lr": lr}
        self.each(
            lambda opt: opt.add_param_group(
                given | {"params": {k: v.copy(order="K") for k, v in own.items()}}
            )
        )

    @rule()
    def average(self) -> None:
        def act(opt: Optimizer) -> Any:
            before = bits(opt)
            with opt.averaged():
                inside = bits(opt)
            assert bits(opt) == before
            return inside

        self.each(act)

    @rule(others=st.booleans())
    def rebind(self, others: bool) -> None:
        factor = 0.5 if others else 1.0

        def act(opt: Optimizer) -> None:
            own = [p.x.copy(order="K") for p in opt._parameters]
            for a in own:
                np.multiply(a, a.dtype.type(factor), out=a)
            opt.rebind(formed(opt, own))

        self.each(act)

    @rule()
    def fill_and_refresh(self) -> None:
        def act(opt: Optimizer) -> None:
            for p in opt._parameters:
                p.x[...] = 0.5
            opt.refresh()

        self.each(act)

    @rule()
    def save(self) -> None:
        self.saved = [opt.state_dict() for opt in self.pair]

    @rule()
    def load(self) -> None:
        if self.saved and "nan" not in repr(self.saved[0]["shared"]):
            saved = dict(zip(map(id, self.pair), self.saved, strict=True))
            self.each(lambda opt: opt.load_state_dict(saved[id(opt)]))

    @rule(how=st.sampled_from(["deepcopy", "pickle", "exchange"]))
    def copy(self, how: str) -> None:
        """Goes on with copies; or with each loaded into the other backend's."""
        before = [bits(opt) for opt in self.pair]
        if how == "deepcopy":
            self.pair = [copy.deepcopy(opt) for opt in self.pair]
        elif how == "pickle":
            try:
                self.pair = [pickle.loads(pickle.dumps(opt)) for opt in self.pair]
            except (AttributeError, pickle.PicklingError):  # a function of this file's
                return
        elif "nan" not in repr(self.pair[0]._moved()):  # which is no number to go on with
            states = [opt.state_dict() for opt in self.pair]
            of_other = dict(zip(map(id, self.pair), reversed(states), strict=True))
            found = self.each(lambda opt: opt.load_state_dict(of_other[id(opt)]))
            # Options that exclude one another, set one by one: no step goes on with them, either.
            assert not isinstance(found, str) or " not with " in found, found
        assert [bits(opt)[0] for opt in self.pair] == [found[0] for found in before]
        self.saved = None

    @rule()
    def exchange_backends(self) -> None:
        for opt in self.pair:
            opt.backend = "numpy" if opt.backend == "compiled" else "compiled"

    @rule()
    def step_in_a_thread(self) -> None:
        thread = threading.Thread(target=self.step, args=(None, -1, 1))
        thread.start()
        thread.join()

    @rule()
    def step_in_a_child(self) -> None:
        """Which leaves nothing here."""
        before = bits(self.pair[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            code = 1
            try:
                self.step_with(self.gradients(None, -1))
                code = int(bits(self.pair[0]) != bits(self.pair[1]))
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert bits(self.pair[0]) == before

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "pair"):
            assert bits(self.pair[0]) == bits(self.pair[1])


def named(arrays: list[np.ndarray]) -> Any:
    return {f"w{i}": [a] for i, a in enumerate(arrays)}


def groups(arrays: list[np.ndarray]) -> Any:
    return [{"params": {f"w{i}": a}} for i, a in enumerate(arrays)]


def formed(opt: Optimizer, values: list[Any]) -> Any:
    """Values in the structure of the parameters."""
    trees = [filled(tree, values) for tree in opt._trees]
    return trees if opt._grouped else trees[0]
