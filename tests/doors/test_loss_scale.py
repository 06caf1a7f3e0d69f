"""schuss.LossScale: limits, several optimizers, what may change while it runs, and its state."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import LossScale, Optimizer

F4 = np.float32
ONE, BAD = np.ones(1, F4), np.full(1, np.inf, F4)
OLD = {"init": 8.0, "growth": 2.0, "backoff": 0.5, "interval": 3, "value": 4.0, "good_steps": 2}


def optimizer(scale: LossScale, **options: Any) -> tuple[Optimizer, np.ndarray]:
    x = np.ones(1, F4)
    return schuss.SGD([x], lr=1.0, grad_scale=scale, nonfinite="skip", **options), x


# ---- Limits


@pytest.mark.parametrize("options", [{}, {"min_scale": 0.25}, {"max_scale": 2.0**40}])
def test_no_move_leads_beyond_the_limits_and_the_inverse_is_finite(options: dict[str, Any]) -> None:
    scale = LossScale(interval=1, max_consecutive_skips=None, **options)
    opt, _ = optimizer(scale)
    for g, end in ((BAD, scale.min_scale), (ONE, scale.max_scale)):
        for _ in range(300):
            opt.step([g])
        assert float(scale) == end
        assert 0 < F4(1) / F4(end) < math.inf


@pytest.mark.parametrize("value", [0.0, 2.0**-127, 1e-320, math.inf])
def test_a_scale_without_a_finite_inverse_in_float32_is_refused(value: float) -> None:
    for make in (lambda: LossScale(value), lambda: schuss.SGD(ONE.copy(), grad_scale=value)):
        with pytest.raises(ValueError, match=r"(init|grad_scale): .* is out of range, wanted \["):
            make()


def test_a_floor_that_rises_lifts_the_scale_at_its_next_move() -> None:
    scale = LossScale(init=2.0)
    opt, _ = optimizer(scale)
    scale.min_scale = 16.0
    assert scale.value == 2.0
    opt.step([ONE])
    assert scale.value == 16.0


def test_after_so_many_skipped_steps_the_next_raises_and_names_the_gradients() -> None:
    scale = LossScale(max_consecutive_skips=3)
    params = {name: np.ones(1, F4) for name in "abc"}
    opt = schuss.Adam(params, grad_scale=scale, nonfinite="skip", zero_grad=True)
    grads = {"a": BAD.copy(), "b": ONE.copy(), "c": BAD.copy()}
    for _ in range(3):
        assert not opt.step({name: g.copy() for name, g in grads.items()})
    before = scale.state_dict()
    says = r'grads\["a"\], grads\["c"\]: has elements .* 3 steps in a row .* is 8.19e\+03'
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=says):
            opt.step(grads)
        assert scale.state_dict() == before
        assert (opt.skipped_steps, opt.iterations) == (3, 0)
        assert np.isinf(grads["a"]).all()
    assert opt.step({name: ONE.copy() for name in "abc"})
    assert scale.consecutive_skips == 0
    assert not opt.step(grads)


# ---- Several optimizers


def never(scale: LossScale) -> None:
    """The loss is scaled by something else."""


READERS: list[Callable[[LossScale], Any]] = [float, lambda scale: scale.value, never]


@pytest.mark.parametrize("read", READERS)
def test_a_scale_of_two_optimizers_moves_once_an_iteration(read: Callable[..., Any]) -> None:
    for bad in range(3):
        scale = LossScale(init=4.0, interval=2)
        pairs = [optimizer(scale), optimizer(scale)]
        values = []
        for t in range(5):
            read(scale)
            for k, (opt, x) in enumerate(pairs):
                x[:] = 1.0
                skipped = t == 2 and bad in (k, 2)
                assert opt.step([BAD if skipped else ONE]) is not skipped
                wanted = 4.0 if t < 2 else 8.0 if t == 2 else 4.0
                assert x[0] == (1.0 if skipped else 1.0 - 1.0 / wanted)
                pairs[0][0].lr = 1.0  # the recipe of a step is made anew
                pairs[1][0].clip_norm = math.inf
            values.append(scale.state_dict()["value"])
        assert values == [4, 8, 4, 4, 8]


def test_reading_between_two_losses_moves_it_for_the_second() -> None:
    scale = LossScale(init=4.0)
    (one, _), (other, x) = optimizer(scale), optimizer(scale)
    one.step([BAD])
    assert float(scale) == 2.0
    other.step([ONE])
    assert x[0] == 0.5


def test_a_scale_passed_to_the_step_is_read_as_the_optimizers_own() -> None:
    scale = LossScale(init=4.0)
    (one, _), (other, x) = optimizer(scale), optimizer(scale)
    one.step([BAD], grad_scale=scale)
    other.step([ONE], grad_scale=scale)
    assert x[0] == 0.75
    assert float(scale) == 2.0


def test_update_is_for_who_takes_steps_without_an_optimizer() -> None:
    scale = LossScale(init=4.0, interval=2)
    for stepped, wanted in ((True, 4), (True, 8), (False, 4)):
        scale.update(stepped)
        assert float(scale) == wanted


# ---- What may change


def test_a_shorter_interval_counts_at_once() -> None:
    scale = LossScale(init=4.0, interval=100)
    opt, _ = optimizer(scale)
    for _ in range(5):
        assert float(scale) == 4.0
        opt.step([ONE])
    scale.interval, scale.growth = 3, 8.0
    assert (scale.value, scale.good_steps) == (32.0, 0)
    scale.backoff = 0.25
    opt.step([BAD])
    scale.value = 64.0  # what was reported is done with
    assert scale.value == 64.0


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("init", 0.0, ValueError),
        ("growth", 1.0, ValueError),
        ("growth", math.inf, ValueError),
        ("backoff", 1.0, ValueError),
        ("backoff", "x", TypeError),
        ("interval", 0, ValueError),
        ("interval", 2.0, TypeError),
        ("interval", True, TypeError),
        ("min_scale", 2.0**20, ValueError),
        ("max_scale", 1.0, ValueError),
        ("max_scale", math.nan, ValueError),
        ("max_consecutive_skips", 0, ValueError),
        ("value", math.inf, ValueError),
        ("intervall", 3, AttributeError),
    ],
)
def test_arguments_are_checked_whenever_they_are_set(name: str, value: Any, error: Any) -> None:
    scale = LossScale(init=1024.0, min_scale=2.0, max_scale=2.0**16)
    before = scale.state_dict()
    with pytest.raises(error, match=f"{name}"):
        setattr(scale, name, value)
    assert scale.state_dict() == before
    if name not in ("value", "intervall"):
        with pytest.raises(error, match=f"{name}: |init: "):
            LossScale(**{name: value})


# ---- State


@pytest.mark.parametrize(
    "wrong",
    [
        [1, 2],
        {},
        {"value": 4.0},
        {**OLD, "nonsense": 1},
        {**OLD, "value": "x"},
        {**OLD, "value": math.nan},
        {**OLD, "value": 0.0},
        {**OLD, "growth": 0.5},
        {**OLD, "interval": 2.5},
        {**OLD, "good_steps": -1},
        {**OLD, "good_steps": 2**62},
        {**OLD, "min_scale": 8.0, "max_scale": 4.0},
    ],
)
def test_a_wrong_state_is_refused_and_nothing_changes(wrong: Any) -> None:
    scale = LossScale()
    opt, _ = optimizer(scale, momentum=0.9)
    opt.step([ONE])
    before, own = opt.state_dict(), scale.state_dict()
    whole = {**before, "loss_scale": wrong, "iterations": 7}
    loads: list[tuple[Callable[[Any], object], Any]]
    loads = [(scale.load_state_dict, wrong), (opt.load_state_dict, whole)]
    for load, state in loads:
        with pytest.raises(
            (TypeError, ValueError), match=r"state_dict: |: .* (range|number|above)"
        ):
            load(state)
        assert (scale.state_dict(), opt.iterations) == (own, 1)


def test_the_state_of_an_older_version_loads() -> None:
    scale = LossScale(max_scale=2.0**20, max_consecutive_skips=5)
    scale.load_state_dict({k: np.array(v) for k, v in OLD.items()})  # as np.savez has numbers
    own = {"min_scale": 2.0**-126, "max_scale": 2.0**20, "max_consecutive_skips": 5}
    assert scale.state_dict() == {**OLD, **own, "consecutive_skips": 0}
    assert scale.__class__.__reduce_ex__(scale, 2)[2] == scale.state_dict()
    old = LossScale.__new__(LossScale)
    old.__setstate__(dict(OLD))  # what a pickle of it holds
    assert old.state_dict() == {**LossScale().state_dict(), **OLD}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_and_states_of_an_iteration_that_is_not_over(copied: Callable[..., Any]) -> None:
    scale = LossScale(init=4.0)
    (one, _), (other, x) = optimizer(scale), optimizer(scale)
    one.step([BAD])
    assert scale.state_dict()["value"] == copied(scale).value == 2.0
    assert scale.consecutive_skips == 1
    assert "value=2.0" in repr(scale)
    first, second = copied([one, other])
    assert first.grad_scale is second.grad_scale is not scale
    other.step([ONE])  # divides by what the loss had all the same
    assert x[0] == 0.75
    fresh = LossScale()
    fresh.load_state_dict(scale.state_dict())
    assert fresh.state_dict() == scale.state_dict()
