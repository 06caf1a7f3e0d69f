"""schuss.LossScale: limits, several optimizers, what may change while it runs, and its state."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import LossScale, Optimizer

pytestmark = pytest.mark.quick

F4 = np.float32
ONE, BAD = np.ones(1, F4), np.full(1, np.inf, F4)
OLD = {"init": 8.0, "growth": 2.0, "backoff": 0.5, "interval": 3, "value": 4.0, "good_steps": 2}


def moved(scale: LossScale) -> dict[str, Any]:
    """What it is once it is read."""
    scale = copy.copy(scale)
    return {**scale.state_dict(), "value": scale.value, **scale.state_dict()}


def optimizer(scale: Any, **options: Any) -> tuple[Optimizer, np.ndarray]:
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


@pytest.mark.parametrize("value", [0.0, 2.0**-127, 1e-320, 2.0**128, 1e46, math.inf])
def test_a_scale_without_a_finite_inverse_in_float32_is_refused(value: float) -> None:
    for make in (lambda: LossScale(value), lambda: schuss.SGD(ONE.copy(), grad_scale=value)):
        with pytest.raises(ValueError, match=r"(init|grad_scale): .* is out of range, wanted \["):
            make()

    class Own:
        def __float__(self) -> float:
            return value

        def update(self, stepped: bool) -> None:
            """Nothing follows."""

    opt, x = optimizer(Own())
    with pytest.raises(ValueError, match=r"grad_scale: .* is out of range"):
        opt.step([ONE])
    assert x[0] == 1.0


@pytest.mark.parametrize("value", [2.0**-126, 2.0**127])
def test_a_scale_at_the_ends_is_divided_by(value: float) -> None:
    x = np.ones(1, F4)
    schuss.SGD([x], lr=1.0, grad_scale=value).step([np.full(1, value / 2, F4)])
    assert x[0] == 0.5


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
    before = moved(scale)
    says = r'grads\["a"\], grads\["c"\]: has elements .* 3 steps in a row .* is 8.19e\+03'
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=says):
            opt.step(grads)
        assert moved(scale) == before
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
            values.append(copy.copy(scale).value)
        assert values == [4, 8, 4, 4, 8]


def test_reading_between_two_losses_moves_it_for_the_second() -> None:
    scale = LossScale(init=4.0)
    (one, _), (other, x) = optimizer(scale), optimizer(scale)
    one.step([BAD])
    assert float(scale) == 2.0
    other.step([ONE])
    assert x[0] == 0.5


def test_a_step_takes_a_number_only_of_which_the_scale_hears_nothing() -> None:
    scale = LossScale(init=4.0, interval=1)
    opt, x = optimizer(scale)
    with pytest.raises(TypeError, match=r"grad_scale: a LossScale .* at construction"):
        opt.step([ONE], grad_scale=scale)  # type: ignore[arg-type]
    assert opt.step([ONE], grad_scale=2.0)
    assert not opt.step([BAD], grad_scale=2.0)
    assert x[0] == 0.5
    assert scale.state_dict() == LossScale(init=4.0, interval=1).state_dict()


def test_a_dead_optimizers_report_is_not_that_of_a_new_one() -> None:
    scale = LossScale(init=4.0)
    for _ in range(50):  # an address comes again
        scale.value = 4.0
        optimizer(scale)[0].step([BAD])
        opt, x = optimizer(scale)
        opt.step([ONE])
        assert x[0] == 0.75


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
        ("init", 1.0, ValueError),
        ("good_steps", 1, AttributeError),
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
    if name not in ("value", "good_steps", "intervall") and (name, value) != ("init", 1.0):
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
    assert scale.state_dict() == {**OLD, **own, "consecutive_skips": 0, "pending": None}
    old = LossScale.__new__(LossScale)
    old.__setstate__(dict(OLD))  # what a pickle of it holds
    assert old.state_dict() == {**LossScale().state_dict(), **OLD}


def weights(opt: Optimizer) -> np.ndarray:
    x: np.ndarray = opt.param_groups[0]["params"][0]
    return x


def pickled(what: Any) -> Any:
    return pickle.loads(pickle.dumps(what))


def reloaded(all_: list[Any]) -> list[Any]:
    for opt in all_[1:]:
        opt.load_state_dict(opt.state_dict())
    all_[0].load_state_dict(all_[0].state_dict())
    return all_


def resumed(all_: list[Any]) -> list[Any]:
    """In another process, as it were."""
    scale = LossScale()
    fresh: list[Any] = [scale, *(optimizer(scale)[0] for _ in all_[1:])]
    for opt, old in zip(fresh[1:], all_[1:], strict=True):
        weights(opt)[:] = weights(old)
        opt.load_state_dict(old.state_dict())
    return fresh


@pytest.mark.parametrize("copied", [list, copy.deepcopy, pickled, reloaded, resumed])
@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("first", [ONE, BAD])
def test_an_iteration_goes_on_where_it_was_saved(
    copied: Callable[..., Any], reads: bool, first: np.ndarray
) -> None:
    scale = LossScale(init=4.0, interval=2)
    pair = [optimizer(scale)[0], optimizer(scale)[0]]
    for opt in pair:
        opt.step([ONE])
    float(scale)
    pair[0].step([first])
    state = scale.state_dict()
    assert (state["value"], state["pending"]) == (4.0, first is ONE)
    scale, *pair = copied([scale, *pair])
    assert pair[0].grad_scale is pair[1].grad_scale is scale
    assert scale.state_dict() == state
    pair[1].step([ONE])
    assert weights(pair[1])[0] == 0.5  # divided by what the loss had
    wanted = 8.0 if first is ONE else 2.0
    if reads:
        assert float(scale) == wanted
    for k, opt in enumerate(pair):
        opt.step([ONE])
        own = 0.75 if k == 0 and first is BAD else 0.5
        assert weights(opt)[0] == own - 1 / wanted


@pytest.mark.parametrize("wrong", [1, "x", np.array([True, False])])
def test_a_wrong_report_is_refused(wrong: Any) -> None:
    scale = LossScale()
    opt, _ = optimizer(scale)
    before = opt.state_dict()
    for name in ("pending", "reported"):
        with pytest.raises((TypeError, ValueError), match=f"{name}: .* is none of True"):
            opt.load_state_dict({**before, "loss_scale": {**before["loss_scale"], name: wrong}})
    assert opt.state_dict()["loss_scale"] == before["loss_scale"]


def test_good_steps_stay_within_what_loads() -> None:
    scale = LossScale(interval=2**60)
    scale.load_state_dict({**scale.state_dict(), "good_steps": 2**53})
    scale.update(True)
    assert float(scale) == 65536.0
    LossScale().load_state_dict(scale.state_dict())


def test_a_subclass_may_have_attributes_of_its_own() -> None:
    class Own(LossScale):
        seen: list[float]

    scale = Own(4.0)
    scale.seen = [1.0]
    scale.interval = 5
    other = copy.deepcopy(scale)
    assert (other.seen, other.interval, other.state_dict()) == ([1.0], 5, scale.state_dict())
    assert other.seen is not scale.seen


# ---- Interrupts


def test_an_interrupt_anywhere_leaves_a_move_done_or_not() -> None:
    """Python runs signal handlers between instructions: a tracer raises at each line in turn."""
    for stop in range(200):
        scale, seen = LossScale(init=4.0), 0
        opt, _ = optimizer(scale)
        opt.step([BAD])

        def tracer(frame: Any, event: str, argument: Any, stop: int = stop) -> Any:
            nonlocal seen
            if event == "line" and frame.f_code.co_filename.endswith("loss_scale.py"):
                seen += 1
                if seen > stop:
                    raise KeyboardInterrupt
            return tracer

        before = sys.gettrace()
        sys.settrace(tracer)
        try:
            float(scale)
        except KeyboardInterrupt:
            pass
        else:
            assert stop > 5
            break
        finally:
            sys.settrace(before)
        assert float(scale) == 2.0
        assert float(scale) == 2.0
        assert scale.consecutive_skips == 1


@pytest.mark.parametrize("zero_grad", [False, True])
def test_an_interrupt_in_a_step_leaves_it_done_and_told_or_not(zero_grad: bool) -> None:
    ended = 0
    for g, stop in itertools.product((ONE, BAD), range(60)):
        scale, seen = LossScale(init=4.0, interval=1), 0
        opt, x = optimizer(scale, zero_grad=zero_grad)
        opt.step([ONE.copy()])
        float(scale)
        start = x[0]

        def tracer(frame: Any, event: str, argument: Any, stop: int = stop) -> Any:
            nonlocal seen
            if event == "line" and "schuss" in frame.f_code.co_filename:
                seen += 1
                if seen > stop:
                    raise KeyboardInterrupt
            return tracer

        before = sys.gettrace()
        sys.settrace(tracer)
        try:
            opt.step([g.copy()])
            ended += 1
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        done = opt.iterations == 2 if g is ONE else opt.skipped_steps == 1
        assert (x[0] != start) == (done and g is ONE)
        assert float(scale) == (8.0 if not done else 16.0 if g is ONE else 4.0)
    assert ended > 2


def test_numbers_of_bfloat16_are_metrics_and_losses() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    plateau = schuss.schedules.ReduceOnPlateau(0.1)
    plateau.observe(bfloat16(1.5))
    assert plateau.best == 1.5
    assert schuss.Eve([ONE.copy()], lr=0.1).step([ONE], loss=bfloat16(1.5))
    for metric in (10**400, -(10**5000)):
        with pytest.raises(ValueError, match=r"metric: out of range"):
            plateau.observe(metric)
    assert plateau.best == 1.5
