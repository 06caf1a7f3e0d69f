"""Steps between which nothing is set: the same bits as any other, until something is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest

import schuss
from schuss import rules
from schuss.engine.declare import Choice
from schuss.engine.optimizer import Optimizer
from schuss.engine.scalars import DECAY_MODES, Part

SIZES = (7, 1, 300)


def start(rule: Any = schuss.AdamW, backend: str = "compiled", **options: Any) -> Any:
    rng = np.random.default_rng(2)
    params = {f"p{i}": rng.standard_normal(n) for i, n in enumerate(SIZES)}
    return rule(params, backend=backend, **options), params


def gradients(t: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(t)
    return {f"p{i}": rng.standard_normal(n) for i, n in enumerate(SIZES)}


def same(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    a, b = one[0].state, other[0].state
    return all((one[1][k] == other[1][k]).all() for k in one[1]) and all(
        np.array_equal(a[k][s], b[k][s]) for k in a for s in a[k]
    )


@pytest.mark.parametrize("rule", rules.RULES)
def test_bits(rule: type[Optimizer]) -> None:
    """Many steps in a row, given and bound, end where the reference does."""
    ours, theirs = start(rule), start(rule, "numpy")
    for t in range(12):
        for opt, _ in (ours, theirs):
            opt.step(gradients(t), loss=1.0 if opt.reads_loss(opt.param_groups[0]) else None)
    assert same(ours, theirs)
    assert ours[0].iterations == 12


def test_where_nothing_is_set_only_the_rules_scalars_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    original = Part.__call__

    def counted(self: Part, *args: Any) -> Any:
        made.append(args[1])
        return original(self, *args)

    monkeypatch.setattr(Part, "__call__", counted)
    opt, _ = start()
    for t in range(5):
        opt.step(gradients(t))
    assert made == [1]
    opt.lr = 0.5
    for t in range(5, 8):
        opt.step(gradients(t))
    assert made == [1, 6]


CHANGES: dict[str, Callable[[Any, dict[str, np.ndarray]], Any]] = {
    "learning rate": lambda opt, params: setattr(opt, "lr", 0.5),
    "a group's learning rate": lambda opt, params: opt.param_groups[0].update(lr=0.5),
    "no change at all": lambda opt, params: setattr(opt, "lr", 1e-3),
    "schedule": lambda opt, params: setattr(opt, "lr", lambda n: 0.5 / (n + 1)),
    "grad_scale": lambda opt, params: setattr(opt, "grad_scale", 4.0),
    "clip_norm": lambda opt, params: setattr(opt, "clip_norm", 0.1),
    "nonfinite": lambda opt, params: setattr(opt, "nonfinite", "skip"),
    "zero_grad": lambda opt, params: setattr(opt, "zeroes_grad", True),
    "cautious": lambda opt, params: setattr(opt, "cautious", "mean"),
    "subnormals": lambda opt, params: setattr(opt, "subnormals", "keep"),
    "another gradient missing": lambda opt, params: opt.step({**gradients(50), "p1": None}),
    "a step with a scale": lambda opt, params: opt.step(gradients(51), grad_scale=8.0),
    "its own state": lambda opt, params: opt.load_state_dict(opt.state_dict()),
    "other parameters": lambda opt, params: opt.rebind(renewed(params)),
}


def renewed(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    params.update({key: a + 1.0 for key, a in params.items()})
    return params


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_set_counts_from_the_next_step_on(change: Any) -> None:
    ours, theirs = start(), start(backend="numpy")
    for t in range(3):
        for opt, _ in (ours, theirs):
            opt.step(gradients(t))
    for opt, params in (ours, theirs):
        change(opt, params)
    for t in range(3, 6):
        for opt, _ in (ours, theirs):
            opt.step(gradients(t))
    assert same(ours, theirs)


MEASURING: dict[str, dict[str, Any]] = {
    "clipped": {"clip_norm": 0.5},
    "clipped, now and then": {"clip_norm": 17.5},
    "uphill and scaled": {"clip_norm": 0.5, "maximize": True, "grad_scale": 4.0},
    "skipped": {"nonfinite": "skip"},
    "both": {"clip_norm": 3.0, "nonfinite": "skip", "zero_grad": True},
    "whatever comes": {"clip_norm": 3.0, "nonfinite": "propagate"},
}


@pytest.mark.parametrize("options", MEASURING.values(), ids=MEASURING)
def test_gradients_are_measured_all_the_same(options: dict[str, Any]) -> None:
    ours, theirs = start(**options), start(backend="numpy", **options)
    for t in range(12):
        done = []
        for opt, _ in (ours, theirs):
            g = gradients(t)
            if t == 7:
                g["p1"][0] = np.inf
            done.append((opt.step(g), {key: a.tobytes() for key, a in g.items()}))
        assert done[0] == done[1]
        assert np.array_equal(ours[0].grad_norm, theirs[0].grad_norm, equal_nan=True)
    assert ours[0].skipped_steps == theirs[0].skipped_steps
    a, b = ours[1], theirs[1]
    assert all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)


def test_finite_gradients_whose_squares_overflow_are_an_ordinary_step() -> None:
    for backend in ("compiled", "numpy"):
        x = np.ones(3)
        opt = schuss.SGD([x], lr=1e-200, nonfinite="skip", backend=backend)
        for _ in range(3):
            assert opt.step([np.full(3, 1e200)])
        assert (x == 1.0 - 3.0).all()
        assert opt.grad_norm == np.inf


def test_more_parameters_join() -> None:
    ours, theirs = start(), start(backend="numpy")
    for opt, params in (ours, theirs):
        for t in range(3):
            opt.step(gradients(t))
        params["more"] = np.ones(5)
        opt.add_param_group({"params": {"more": params["more"]}, "lr": 0.1})
        for t in range(3, 6):
            opt.step({**gradients(t), "more": np.full(5, 0.5)})
    assert same(ours, theirs)


def test_a_wrong_gradient_changes_nothing_and_the_next_step_is_right() -> None:
    ours, theirs = start(), start(backend="numpy")
    for t in range(6):
        if t == 3:
            for wrong in (
                {**gradients(t), "p0": np.ones(8)},
                {**gradients(t), "p0": np.ones(7, np.float32)},
                {**gradients(t), "p0": [1.0] * 7},
                {**gradients(t), "p0": ours[1]["p0"]},
                {"p0": np.ones(7)},
                {**gradients(t), "p3": np.ones(3)},
                list(gradients(t).values()),
            ):
                with pytest.raises((ValueError, TypeError), match="grads"):
                    ours[0].step(wrong)
        for opt, _ in (ours, theirs):
            opt.step(gradients(t))
    assert same(ours, theirs)


class Interrupted(schuss.AdamW):
    """Something comes in between, as a signal's handler does."""

    between: ClassVar[Callable[[], Any] | None] = None

    @staticmethod
    def scalars(h: Mapping[str, Any], t: int, memory: Mapping[str, float]) -> dict[str, float]:
        between, Interrupted.between = Interrupted.between, None
        if between is not None:
            between()
        return schuss.AdamW.scalars(h, t, memory)


@pytest.mark.parametrize(
    "between",
    [
        lambda opt: setattr(opt, "lr", 0.5),
        lambda opt: setattr(opt, "clip_norm", 0.1),
        lambda opt: opt.param_groups[0].update(lr=0.5),
    ],
)
def test_what_is_set_in_between_counts(between: Any) -> None:
    ours, theirs = start(Interrupted), start(backend="numpy")
    for t in range(6):
        if t == 3:
            Interrupted.between = functools.partial(between, ours[0])
            between(theirs[0])
        for opt, _ in (ours, theirs):
            opt.step(gradients(t))
        assert Interrupted.between is None
    assert same(ours, theirs)


@pytest.mark.parametrize(
    "between",
    [
        lambda opt, params: opt.step(gradients(50)),
        lambda opt, params: opt.load_state_dict(opt.state_dict()),
        lambda opt, params: opt.rebind(params),
        lambda opt, params: opt.add_param_group({"params": {"more": np.ones(5)}}),
    ],
)
@pytest.mark.parametrize("where", ["scalars", "schedule"])
def test_no_call_in_the_middle_of_a_step(between: Any, where: str) -> None:
    ours, theirs = start(Interrupted), start(backend="numpy")
    if where == "schedule":
        scheduled = False

        def lr(n: int) -> float:
            if scheduled:
                between(*ours)
            return 0.1

        ours[0].lr, theirs[0].lr = lr, 0.1
    for t in range(6):
        if t == 3:
            scheduled = where == "schedule"
            Interrupted.between = None if scheduled else functools.partial(between, *ours)
            with pytest.raises(RuntimeError, match="re-entered"):
                ours[0].step(gradients(t))
            scheduled = False
        for opt, _ in (ours, theirs):
            opt.step(gradients(t))
    assert same(ours, theirs)


@pytest.mark.parametrize("rule", rules.RULES)
@pytest.mark.parametrize("mode", DECAY_MODES)
def test_weight_decay_is_that_of_each_step(rule: type[Optimizer], mode: str) -> None:
    declared = rule.hyperparameters.get("decay_mode")
    if not (isinstance(declared, Choice) and mode in declared.choices):
        pytest.skip("the rule has no such mode")
    options: dict[str, Any] = {"weight_decay": 0.1, "decay_mode": mode}
    ours, theirs = start(rule, **options), start(rule, "numpy", **options)
    for t in range(4):
        for opt, _ in (ours, theirs):
            opt.step(gradients(t), loss=1.0 if opt.reads_loss(opt.param_groups[0]) else None)
    assert same(ours, theirs)


def test_within_averaged_there_is_no_step() -> None:
    opt, _ = start(ema=0.9)
    for t in range(3):
        opt.step(gradients(t))
    with opt.averaged(), pytest.raises(RuntimeError, match="averaged"):
        opt.step(gradients(3))
    opt.step(gradients(3))


def test_gradients_are_let_go() -> None:
    import sys  # noqa: PLC0415

    opt, _ = start()
    for t in range(3):
        g = gradients(t)
        before = {k: sys.getrefcount(a) for k, a in g.items()}
        opt.step(g)
        assert {k: sys.getrefcount(a) for k, a in g.items()} == before


@pytest.mark.parametrize("structure", [list, tuple, lambda a: [{"x": a[0]}, a[1:]]])
def test_every_structure(structure: Any) -> None:
    arrays = [[np.ones(n) for n in SIZES] for _ in range(2)]
    ours = schuss.SGD(structure(arrays[0]), momentum=0.9)
    theirs = schuss.SGD(structure(arrays[1]), momentum=0.9, backend="numpy")
    for t in range(5):
        g = list(gradients(t).values())
        ours.step(structure(g))
        theirs.step(structure(g))
    assert all((a == b).all() for a, b in zip(*arrays, strict=True))
