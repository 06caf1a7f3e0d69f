"""Schedules: their values and ends, what goes wrong, and what other libraries make of the same."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import schedules
from schuss.schedules import (
    ReduceOnPlateau,
    chain,
    cosine,
    cosine_restarts,
    draw,
    ema_warmup,
    exponential,
    inverse_sqrt,
    inverse_time,
    linear,
    momentum_ramp,
    one_cycle,
    piecewise,
    polynomial,
    steady,
    step,
    warmup,
)

F4 = np.float32
V = 0.8  # the value that all begin with, or climb to


def plain(n: int) -> float:
    """A callable of the user's own."""
    return 1.0 / (n + 1)


EXAMPLES: dict[str, Any] = {
    "inverse_time": inverse_time(V, 0.1),
    "inverse_time in stairs": inverse_time(V, 0.1, every=7, staircase=True),
    "inverse_sqrt": inverse_sqrt(V, 0.2),
    "exponential": exponential(V, 0.05),
    "step": step(V, 7, 0.3),
    "piecewise": piecewise([V, 0.9, 0.1], [3, 10]),
    "polynomial": polynomial(V, 20, 2.5, final=0.1),
    "linear": linear(V, 20, final=0.1),
    "linear, up": linear(0.1, 20, final=V),
    "cosine": cosine(V, 20, final=0.1),
    "cosine, warm": cosine(V, 20, warmup=6, final=0.1),
    "cosine_restarts": cosine_restarts(V, 6, final=0.1),
    "cosine_restarts, longer": cosine_restarts(V, 6, growth=2, shrink=0.5, final=0.1),
    "one_cycle": one_cycle(V, 20),
    "one_cycle, straight": one_cycle(V, 20, rise=0.5, shape="linear"),
    "warmup": warmup(cosine(V, 20, final=0.1), 5),
    "warmup to a number": warmup(V, 5),
    "chain": chain([0.3, linear(V, 5), step(0.2, 3)], [4, 9]),
    "momentum_ramp": momentum_ramp(0.9, every=4),
    "ema_warmup": ema_warmup(0.9),
    "steady": steady(V, momentum_ramp(0.9, every=4)),
    "ReduceOnPlateau": ReduceOnPlateau(V),
}


def test_all_are_here() -> None:
    assert {name.split(",")[0].split()[0] for name in EXAMPLES} | {"draw"} == set(schedules.__all__)


@pytest.mark.parametrize("name", EXAMPLES)
def test_printed_pickled_compared(name: str) -> None:
    schedule = EXAMPLES[name]
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule == copy.deepcopy(schedule)
    assert again != linear(0.123, 4)
    assert [again(n) for n in range(50)] == [schedule(n) for n in range(50)]
    assert all(type(schedule(n)) is float for n in range(50))
    if name != "ReduceOnPlateau":  # which has state
        assert hash(again) == hash(schedule)
        assert eval(repr(schedule), vars(schedules)) == schedule
        with pytest.raises(AttributeError):
            schedule.value = 3.0


@pytest.mark.parametrize("name", EXAMPLES)
def test_peak_and_documentation(name: str) -> None:
    schedule = EXAMPLES[name]
    values = [schedule(n) for n in range(200)]
    assert max(values) == pytest.approx(schedule.peak, rel=1e-15)
    assert min(schedule.ends) - 1e-15 <= min(values)
    text = type(schedule).__doc__ or ""
    assert "Source: " in text
    assert all(f"\n    {field}  " in text for field in schedule.__match_args__)
    opt = schuss.SGD(np.ones(3, F4), lr=schedule, weight_decay=0.1, decay_mode="corrected")
    assert opt.step(np.ones(3, F4))
    assert opt.current_learning_rate == schedule(1)


def test_a_value_changes_at_its_boundary() -> None:
    assert [piecewise([1.0, 0.1], [3])(n) for n in range(5)] == [1, 1, 1, 0.1, 0.1]
    of_arrays = piecewise(np.array([1.0, 0.1]), np.array([3]))  # type: ignore[arg-type]
    assert of_arrays == piecewise([1.0, 0.1], [3])
    assert repr(of_arrays) == "piecewise(values=(1.0, 0.1), boundaries=(3,))"
    assert [chain([1.0, 0.1], [3])(n) for n in range(5)] == [1, 1, 1, 0.1, 0.1]
    assert [step(1.0, 3, 0.5)(n) for n in range(7)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    stairs = inverse_time(1.0, 1.0, every=3, staircase=True)
    assert [stairs(n) for n in range(7)] == [1, 1, 1, 0.5, 0.5, 0.5, 1 / 3]


@pytest.mark.parametrize(
    "schedule",
    [
        polynomial(0.7, 9, 2.0, final=0.3),
        linear(0.7, 9, final=0.3),
        cosine(0.7, 9, final=0.3),
        one_cycle(7.5, 9, div_factor=5.0, final_div_factor=5.0),
        piecewise([0.5, 0.3], [9]),
        warmup(linear(0.7, 5, final=0.3), 4),
    ],
)
def test_the_final_value_is_that_of_n_steps(schedule: Any) -> None:
    assert schedule(8) != 0.3
    assert schedule(9) == schedule(10) == schedule(10**9) == pytest.approx(0.3, rel=1e-15)


def test_formulas() -> None:
    assert [inverse_time(1.0, 0.5)(n) for n in range(3)] == [1, 1 / 1.5, 0.5]
    assert inverse_time(1.0, 0.5, every=4)(2) == 1 / 1.25
    assert inverse_sqrt(2.0, 3.0)(1) == 1.0
    assert exponential(2.0, math.log(2))(3) == pytest.approx(0.25)
    assert polynomial(1.0, 4, power=2.0)(2) == 0.25
    assert linear(1.0, 4)(1) == 0.75
    assert [warmup(1.0, 4)(n) for n in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    transformer = warmup(inverse_sqrt(1.0, 1 / 100), 100)
    assert all(transformer(n) == pytest.approx(math.sqrt(100 / n)) for n in range(100, 2000, 50))
    long = cosine_restarts(1.0, 3, growth=2)
    assert [long(n) for n in (0, 3, 9, 21, 3 * (2**60 - 1))] == [1.0] * 5
    assert [momentum_ramp()(n) for n in (0, 249, 250, 500, 10**6)] == [0.5, 0.5, 0.75, 5 / 6, 0.99]
    assert [ema_warmup()(n) for n in (0, 7, 10**7)] == [0.0, pytest.approx(0.75), 0.9999]  # timm's
    tensorflow = ema_warmup(0.99, gamma=9.0, power=1.0)
    for n in (1, 5, 100, 10**4):
        assert tensorflow(n + 1) == pytest.approx(min(0.99, (1 + n) / (10 + n)))


def test_a_warm_up_in_front_of_any_is_the_cosines_own() -> None:
    own, any_ = cosine(V, 20, warmup=6, final=0.1), warmup(cosine(V, 14, final=0.1), 6)
    assert [own(n) for n in range(30)] == [any_(n) for n in range(30)]


def test_a_chain_begins_each_at_its_beginning() -> None:
    made = chain([plain, linear(1.0, 5), 0.25], [4, 9])
    values = [1, 1 / 2, 1 / 3, 1 / 4, 1, 0.8, 0.6, 0.4, 0.2]
    assert [made(n) for n in range(9)] == pytest.approx(values)
    assert made(9) == made(1000) == 0.25
    assert not hasattr(made, "peak")  # the user's callable doesn't know its own
    assert chain([linear(1.0, 5), 3.0], [4]).peak == 3.0


# ---- Momentum


def sudden(n: int) -> float:
    """A momentum of the user's own."""
    return 0.9 if n > 20 else 0.5


@pytest.mark.parametrize(
    "momentum", [momentum_ramp(0.99, every=5), linear(0.5, 40, final=0.9), sudden, 0.8]
)
def test_the_step_that_a_momentum_builds_up_to_stays(momentum: Any) -> None:
    """On a slope that is the same everywhere, each momentum comes to the same speed."""
    rate = steady(0.1, momentum)
    x = np.zeros(1)
    opt = schuss.SGD(x, lr=rate, momentum=momentum)
    for _ in range(6000):
        n, before = opt.iterations, x[0]
        mu = momentum(n) if callable(momentum) else momentum
        assert rate(n) / (1 - mu) == pytest.approx(0.1, rel=1e-13)
        opt.step(np.ones(1))
    assert before - x[0] == pytest.approx(0.1, rel=1e-9)
    assert steady(0.1, 0.99)(0) == pytest.approx(steady(0.1, 0.9)(0) / 10)


def test_training_with_a_ramp() -> None:
    ramp = momentum_ramp(0.95, every=25)
    x = np.array([-5.0, -2.0])
    opt = schuss.SGD(x, lr=steady(0.4, ramp), momentum=ramp)
    for _ in range(600):
        opt.step(np.array([0.2, 4.0]) * x)
    assert np.abs(x).max() < 1e-4
    assert opt.current_learning_rate == pytest.approx(0.02)


# ---- What goes wrong names the argument


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: inverse_time(1.0, -1.0), ValueError, r"decay: -1.0 is out of range, wanted \[0"),
        (lambda: inverse_time("1", 1.0), TypeError, "value: '1' is not a number"),  # type: ignore[arg-type]
        (lambda: inverse_time(1.0, 1.0, every=0), ValueError, "every: 0 is out of range"),
        (lambda: inverse_time(1.0, 1.0, staircase=2), ValueError, "staircase: 2 is unknown"),  # type: ignore[arg-type]
        (lambda: inverse_sqrt(math.nan, 1.0), ValueError, "value: nan is out of range"),
        (lambda: exponential(1.0, math.inf), ValueError, "decay: inf is out of range"),
        (lambda: step(1.0, 3, 1.5), ValueError, r"factor: 1.5 is out of range, wanted \[0, 1\]"),
        (lambda: step(1.0, 2.5), TypeError, "every: 2.5 is not a whole number"),  # type: ignore[arg-type]
        (lambda: piecewise([], []), ValueError, "values: none; wanted one more than boundaries"),
        (lambda: piecewise(3, []), TypeError, "values: 3 is not a sequence of numbers"),  # type: ignore[arg-type]
        (lambda: piecewise([1, "a"], [3]), TypeError, r"values\[1\]: 'a' is not a number"),  # type: ignore[list-item]
        (lambda: piecewise([1, 2], [3, 4]), ValueError, "boundaries: 2 of them; wanted 1, one"),
        (lambda: piecewise([1, 2, 3], [4, 4]), ValueError, r"boundaries: \(4, 4\) don't grow"),
        (lambda: piecewise([1, 2], [0]), ValueError, r"boundaries\[0\]: 0 is out of range"),
        (lambda: piecewise([1, 2], 3), TypeError, "boundaries: 3 is not a sequence"),  # type: ignore[arg-type]
        (lambda: polynomial(1.0, 0), ValueError, "steps: 0 is out of range"),
        (lambda: polynomial(1.0, 5, power=0.0), ValueError, "power: 0.0 is out of range"),
        (lambda: linear(1.0, True), TypeError, "steps: True is not a whole number"),
        (lambda: cosine(1.0, 5, final=math.inf), ValueError, "final: inf is out of range"),
        (lambda: cosine(1.0, 5, warmup=5), ValueError, "warmup: 5 is out of range; wanted 0 <="),
        (lambda: cosine_restarts(1.0, 5, growth=1.5), TypeError, "growth: 1.5 is not a whole"),  # type: ignore[arg-type]
        (lambda: cosine_restarts(1.0, 5, shrink=2.0), ValueError, "shrink: 2.0 is out of range"),
        (lambda: one_cycle(1.0, 5, rise=0.1), ValueError, "rise: 0.1 of 5 steps is less than one"),
        (lambda: one_cycle(1.0, 5, div_factor=0.5), ValueError, "div_factor: 0.5 is out of range"),
        (lambda: one_cycle(1.0, 5, shape="cos"), ValueError, "shape: 'cos' is unknown; wanted"),
        (lambda: warmup(1.0, 0), ValueError, "steps: 0 is out of range"),
        (lambda: warmup("fast", 3), TypeError, "schedule: 'fast' is not a number"),  # type: ignore[arg-type]
        (lambda: chain([], []), ValueError, "schedules: none; wanted one more than boundaries"),
        (lambda: chain(3, []), TypeError, "schedules: 3 is not a sequence of schedules"),  # type: ignore[arg-type]
        (lambda: chain([1.0, None], [3]), TypeError, r"schedules\[1\]: None is not a number"),  # type: ignore[list-item]
        (lambda: chain([1.0, 2.0], []), ValueError, "boundaries: 0 of them; wanted 1"),
        (lambda: momentum_ramp(1.0), ValueError, "value: 1.0 is out of range"),
        (lambda: momentum_ramp(0.3), ValueError, r"start: 0.5 is above value \(0.3\)"),
        (lambda: ema_warmup(1.5), ValueError, "decay: 1.5 is out of range"),
        (lambda: ema_warmup(gamma=0.0), ValueError, "gamma: 0.0 is out of range"),
        (lambda: ema_warmup(power=0.0), ValueError, "power: 0.0 is out of range"),
        (lambda: steady(0.1, "x"), TypeError, "momentum: 'x' is not a number"),  # type: ignore[arg-type]
        (lambda: draw(linear(1.0, 3), 0), ValueError, "steps: 0 is out of range"),
        (lambda: ReduceOnPlateau(-1.0), ValueError, "lr: -1.0 is out of range"),
        (lambda: ReduceOnPlateau(1.0, factor=1.0), ValueError, "factor: 1.0 is out of range"),
        (lambda: ReduceOnPlateau(1.0, threshold=-1), ValueError, "threshold: -1.0 is out of range"),
        (lambda: ReduceOnPlateau(1.0, patience=-1), ValueError, "patience: -1 is out of range"),
        (lambda: ReduceOnPlateau(1.0, cooldown=0.5), TypeError, "cooldown: 0.5 is not a whole"),  # type: ignore[arg-type]
        (lambda: ReduceOnPlateau(1.0, min_lr=2.0), ValueError, r"min_lr: 2.0 is above lr \(1.0\)"),
        (lambda: ReduceOnPlateau(1.0, eps=-1.0), ValueError, "eps: -1.0 is out of range"),
        (lambda: ReduceOnPlateau(1.0, mode="up"), ValueError, "mode: 'up' is unknown; wanted"),
        (
            lambda: ReduceOnPlateau(1.0, patience=0, patience_mode="optax"),
            ValueError,
            "patience: 0 is out of range, wanted whole numbers 1",
        ),
    ],
)
def test_errors(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        make()


def test_numpys_numbers_become_plain_ones() -> None:
    made = cosine(F4(0.5), np.int64(9), final=np.array(0.25))  # type: ignore[arg-type]
    assert repr(made) == "cosine(value=0.5, steps=9, warmup=0, final=0.25)"


def test_draw(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: no pictures")
    ax = draw(warmup(cosine(1.0, 20), 5), 30)
    draw(plain, 30, tmp_path / "lr.png", ax)
    assert len(ax.lines) == 2
    assert np.array_equal(np.asarray(ax.lines[1].get_ydata()), [plain(n) for n in range(30)])
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    draw(chain([cosine(1.0, 9)] * 5, [10, 20, 30, 40]), 50, tmp_path / "lr.pdf")  # a long name


# ---- A plateau


def fed(schedule: Any, metrics: Iterable[float]) -> list[float]:
    """The value after each metric."""
    values = []
    for metric in metrics:
        schedule.observe(metric)
        values.append(schedule(0))
    return values


def test_patience_of_each_library() -> None:
    """Patience 2, one good metric and bad ones: the third, the second, the second bad one."""
    for mode, first in {"torch": 3, "keras": 2, "optax": 2}.items():
        values = fed(ReduceOnPlateau(1.0, 0.5, 2, patience_mode=mode), [1.0] * 8)
        assert values.index(0.5) == first
    counted = {}
    for mode in ("torch", "keras", "optax"):
        values = fed(ReduceOnPlateau(1.0, 0.5, 1, cooldown=2, patience_mode=mode), [1.0] * 12)
        counted[mode] = [n + 1 for n, (a, b) in enumerate(pairwise(values)) if a != b]
    assert counted == {"torch": [2, 6, 10], "keras": [1, 3, 5, 7, 9, 11], "optax": [1, 4, 7, 10]}


def test_a_metric_that_is_not_a_number_is_a_bad_one() -> None:
    schedule = ReduceOnPlateau(1.0, 0.5, patience=1)
    assert fed(schedule, [math.nan, math.nan, math.inf, 3.0, math.nan, 2.0]) == [
        1.0,
        0.5,
        0.5,
        0.5,
        0.5,
        0.5,
    ]
    assert schedule.best == 2.0
    with pytest.raises(TypeError, match="metric: '3' is not a number"):
        schedule.observe("3")  # type: ignore[arg-type]
    schedule.observe(F4(1.0))  # type: ignore[arg-type]
    schedule.observe(np.array(0.5))  # type: ignore[arg-type]
    assert schedule.best == 0.5


def test_a_fall_no_larger_than_eps_is_left_out() -> None:
    assert fed(ReduceOnPlateau(1e-8, 0.5, 0), [1.0, 1.0]) == [1e-8, 1e-8]
    assert fed(ReduceOnPlateau(1e-8, 0.5, 0, eps=0.0), [1.0, 1.0]) == [1e-8, 5e-9]
    assert fed(ReduceOnPlateau(1.0, 0.1, 0, min_lr=0.05), [1.0] * 4) == [1.0, 0.1, 0.05, 0.05]


@pytest.mark.parametrize("threshold", [0.0, 0.25, 1.0, 3.0])
@pytest.mark.parametrize("best", [-8.0, -0.0, 0.0, 8.0, math.inf, -math.inf])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_relative_threshold_is_of_the_size_of_the_best(
    sign: float, best: float, threshold: float
) -> None:
    """By exact numbers, and a metric that shall grow is the mirror image."""
    schedule = ReduceOnPlateau(1.0, threshold=threshold, mode="min" if sign > 0 else "max")
    fed(schedule, [sign * best])
    wanted = best - threshold * abs(best) if math.isfinite(best) else best
    if not math.isnan(wanted):
        assert not schedule.better(sign * wanted)
        below = math.nextafter(wanted, -math.inf)
        assert schedule.better(sign * below) is (best > -math.inf)
    assert not schedule.better(sign * math.inf)
    assert not schedule.better(math.nan)


def test_a_relative_threshold_above_0_is_pytorchs_to_the_last_bit() -> None:
    for best in np.random.default_rng(0).uniform(0, 10, 1000).tolist():
        for mode, factor, towards in (("min", 1 - 1e-4, 0), ("max", 1 + 1e-4, math.inf)):
            schedule = ReduceOnPlateau(1.0, mode=mode)
            fed(schedule, [best])
            assert not schedule.better(best * factor)
            assert schedule.better(math.nextafter(best * factor, towards))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_metrics_of_either_sign_that_become_worse_or_better(sign: float, level: float) -> None:
    told: dict[str, Any] = {"patience": 2, "mode": "min" if sign > 0 else "max"}
    worse = [sign * (level + 1e-6 * k) for k in range(10)]
    assert fed(ReduceOnPlateau(0.1, **told), worse)[-1] < 0.1
    better = [sign * (level - 1e-3 * k) for k in range(10)]
    assert fed(ReduceOnPlateau(0.1, **told), better)[-1] == 0.1


@pytest.mark.parametrize(
    "wrong",
    [
        {"value": -1.0},
        {"value": 0.05},
        {"value": 1.5},
        {"value": math.nan},
        {"best": math.nan},
        {"best": "good"},
        {"bad": -1},
        {"bad": 1.0},
        {"bad": 2**62},
        {"cooling": 4},
        {"cooling": True},
        {"more": 1},
    ],
)
def test_the_state_of_a_plateau_is_checked(wrong: dict[str, Any]) -> None:
    """All or nothing, also where another schedule is loaded before."""
    opt = groups(lr=0.1)
    for group in opt.param_groups:
        group["lr"] = ReduceOnPlateau(1.0, 0.5, 1, cooldown=3, min_lr=0.1)
    good = {"value": 0.25, "best": -2.0, "bad": np.array(1), "cooling": np.int64(3)}
    state, before = opt.state_dict(), copy.deepcopy([g["lr"] for g in opt.param_groups])
    state |= {"schedules": {"0.lr": good, "1.lr": good | wrong}, "iterations": 5}
    with pytest.raises((TypeError, ValueError), match=f"{next(iter(wrong))}"):
        opt.load_state_dict(state)
    assert [g["lr"] for g in opt.param_groups] == before
    assert opt.iterations == 0
    state["schedules"]["1.lr"] = good
    opt.load_state_dict(state)
    assert opt.param_groups[1]["lr"].state_dict() == good
    assert opt.current_learning_rate == 0.25


def groups(**options: Any) -> schuss.Optimizer:
    return schuss.SGD([{"params": np.ones(2)}, {"params": np.ones(3)}], **options)


def test_observe() -> None:
    shared, own = ReduceOnPlateau(1.0, 0.5, 0), ReduceOnPlateau(0.9, 0.5, 0)
    opt = groups(lr=shared, momentum=warmup(own, 2), weight_decay=chain([shared, 0.1], [5]))
    for _ in range(3):
        opt.observe(1.0)
    assert shared(0) == 0.25  # twice, and not once for each of four places
    assert own(0) == 0.225
    assert opt.current_learning_rate == 0.25
    alone = schuss.Adam(np.ones(1), betas=(own, 0.999))
    alone.observe(1.0)
    assert alone.param_groups[0].settings.at(0)["betas"] == (0.1125, 0.999)
    with pytest.raises(ValueError, match="metric: no schedule here follows one"):
        groups(lr=cosine(1.0, 5)).observe(1.0)
    with pytest.raises(TypeError, match="metric: None is not a number"):
        opt.observe(None)  # type: ignore[arg-type]
    assert own.best == 1.0


def test_a_plateau_is_saved_with_the_optimizer() -> None:
    def fresh() -> tuple[schuss.Optimizer, ReduceOnPlateau]:
        schedule = ReduceOnPlateau(1.0, 0.5, 1, cooldown=1)
        return groups(lr=warmup(schedule, 2), momentum=0.5), schedule

    opt, schedule = fresh()
    for metric in (1.0, 1.0, 1.0, 0.5):
        opt.observe(metric)
    saved = pickle.loads(pickle.dumps(opt.state_dict()))
    state = {"value": 0.5, "best": 0.5, "bad": 0, "cooling": 0}
    assert saved["schedules"] == {"0.lr.0": state, "1.lr.0": state}
    other, loaded = fresh()
    other.load_state_dict(saved)
    assert loaded == schedule
    again = pickle.loads(pickle.dumps(opt))
    for o in (opt, other, again):
        for _ in range(2):
            o.observe(1.0)
    assert loaded == schedule == again.param_groups[1]["lr"].schedule
    assert schedule(0) == 0.25
    assert again.param_groups[0]["lr"] is again.param_groups[1]["lr"]  # still shared

    other, loaded = fresh()  # all or nothing
    broken = copy.deepcopy(saved)
    broken["schedules"]["1.lr.0"]["best"] = "good"
    with pytest.raises(ValueError, match="best: 'good' is not a number"):
        other.load_state_dict(broken)
    assert loaded == fresh()[1]
    assert other.iterations == 0
    broken["schedules"]["1.lr.0"] = {"value": 1.0}
    with pytest.raises(ValueError, match="is not that of a ReduceOnPlateau"):
        other.load_state_dict(broken)
    with pytest.raises(ValueError, match="schedules: 3 is not a mapping"):
        other.load_state_dict({**saved, "schedules": 3})
    assert loaded == fresh()[1]
    plain = groups(lr=0.1, momentum=0.5)
    with pytest.raises(ValueError, match=r"unknown schedules '0\.lr\.0', where nothing follows"):
        plain.load_state_dict(saved)
    lost = plain.load_state_dict(saved, strict=False).unexpected_keys
    assert lost == ["schedules '0.lr.0'", "schedules '1.lr.0'"]
    other.load_state_dict(groups(lr=0.1, momentum=0.5).state_dict())
    assert loaded == fresh()[1]


def test_an_observer_of_ones_own() -> None:
    class Halving:
        value = 1.0

        def __call__(self, n: int) -> float:
            return self.value

        def observe(self, metric: float) -> None:
            self.value /= 2

    own = Halving()
    opt = groups(lr=own)
    opt.observe(math.nan)
    assert opt.current_learning_rate == 0.5
    assert opt.state_dict()["schedules"] == {}


# ---- Other libraries, where they are installed


def installed(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    return pytest.importorskip(name, reason=f"{name} is not installed: nothing to compare with")


def same(ours: Callable[[int], float], theirs: Iterable[float], bound: float) -> None:
    theirs = [float(v) for v in theirs]
    assert [ours(n) for n in range(len(theirs))] == pytest.approx(
        theirs, rel=bound, abs=bound / 1e3
    )


def in_torch(
    torch: Any, make: Callable[[Any, Any], Any], steps: int, key: str = "lr"
) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=V, momentum=0.9)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0][key])
        optimizer.step()
        scheduler.step()
    return values


UP = 6  # steps that a cycle of 20 goes up; for PyTorch one of 21, which counts both ends
CYCLE = {"total_steps": 21, "pct_start": (UP + 1) / 21}

TORCH: dict[str, tuple[Any, Callable[[Any, Any], Any], int]] = {
    "StepLR": (step(V, 7, 0.3), lambda m, o: m.StepLR(o, 7, 0.3), 60),
    "MultiStepLR": (
        piecewise([V, V / 2, V / 4], [3, 10]),
        lambda m, o: m.MultiStepLR(o, [3, 10], 0.5),
        60,
    ),
    "ExponentialLR": (exponential(V, -math.log(0.9)), lambda m, o: m.ExponentialLR(o, 0.9), 60),
    "PolynomialLR": (polynomial(V, 20, 2.5), lambda m, o: m.PolynomialLR(o, 20, 2.5), 60),
    "LinearLR": (linear(V / 3, 5, V), lambda m, o: m.LinearLR(o), 60),
    "LinearLR, down": (linear(V, 9, V / 4), lambda m, o: m.LinearLR(o, 1.0, 0.25, 9), 60),
    "warm-up": (warmup(V, 5), lambda m, o: m.LinearLR(o, 1 / 5, 1.0, 4), 60),
    "CosineAnnealingLR": (
        cosine(V, 20, final=0.1),
        lambda m, o: m.CosineAnnealingLR(o, 20, 0.1),
        21,
    ),
    "warm restarts": (
        cosine_restarts(V, 5, growth=2, final=0.1),
        lambda m, o: m.CosineAnnealingWarmRestarts(o, 5, 2, 0.1),
        60,
    ),
    "OneCycleLR": (one_cycle(V, 20), lambda m, o: m.OneCycleLR(o, V, **CYCLE), 20),
    "OneCycleLR, straight": (
        one_cycle(V, 20, shape="linear"),
        lambda m, o: m.OneCycleLR(o, V, anneal_strategy="linear", **CYCLE),
        20,
    ),
    "SequentialLR": (
        chain([exponential(V, -math.log(0.9)), step(V, 3, 0.5)], [7]),
        lambda m, o: m.SequentialLR(o, [m.ExponentialLR(o, 0.9), m.StepLR(o, 3, 0.5)], [7]),
        60,
    ),
    "Adagrad's": (
        inverse_time(V, 0.3),
        lambda m, o: m.LambdaLR(o, lambda n: 1 / (1 + n * 0.3)),
        60,
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_pytorch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = installed("torch", monkeypatch)
    ours, make, steps = TORCH[name]
    same(ours, in_torch(torch, make, steps), 1e-12)


def test_pytorchs_cycle_of_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = installed("torch", monkeypatch)
    ours = chain([cosine(0.95, UP, final=0.85), cosine(0.85, 20 - UP, final=0.95)], [UP])
    theirs = in_torch(torch, lambda m, o: m.OneCycleLR(o, V, **CYCLE), 20, "momentum")
    same(ours, theirs, 1e-12)


OPTAX: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "polynomial": (polynomial(V, 20, 2.5, 0.1), lambda o: o.polynomial_schedule(V, 0.1, 2.5, 20)),
    "linear": (linear(V, 20, 0.1), lambda o: o.linear_schedule(V, 0.1, 20)),
    "piecewise": (
        piecewise([V, V / 2, V / 8], [3, 10]),
        lambda o: o.piecewise_constant_schedule(V, {3: 0.5, 10: 0.25}),
    ),
    "exponential": (
        exponential(V, -math.log(0.9) / 4),
        lambda o: o.exponential_decay(V, 4, 0.9),
    ),
    "step": (step(V, 4, 0.9), lambda o: o.exponential_decay(V, 4, 0.9, staircase=True)),
    "cosine": (cosine(V, 20, final=0.1), lambda o: o.cosine_decay_schedule(V, 20, 0.1 / V)),
    "warm cosine": (
        cosine(V, 20, warmup=5, final=0.1),
        lambda o: o.join_schedules(
            [o.linear_schedule(V / 5, V, 4), o.cosine_decay_schedule(V, 15, 0.1 / V)], [5]
        ),
    ),
    "warm restarts": (
        cosine_restarts(V, 5, growth=2, final=0.1),
        lambda o: o.join_schedules(
            [o.cosine_decay_schedule(V, 5 * 2**i, 0.1 / V) for i in range(4)], [5, 15, 35]
        ),
    ),
    "one_cycle": (one_cycle(V, 20), lambda o: o.cosine_onecycle_schedule(20, V)),
    "chain": (
        chain([polynomial(V, 9, 2.0), 0.3], [6]),
        lambda o: o.join_schedules(
            [o.polynomial_schedule(V, 0.0, 2.0, 9), o.constant_schedule(0.3)], [6]
        ),
    ),
}


@pytest.mark.parametrize("name", OPTAX)
def test_optax(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, make = OPTAX[name]
    theirs = make(installed("optax", monkeypatch))
    same(ours, map(theirs, range(60)), 2e-6)  # theirs in float32


KERAS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "InverseTimeDecay": (inverse_time(V, 0.3, 4), lambda k: k.InverseTimeDecay(V, 4, 0.3)),
    "InverseTimeDecay in stairs": (
        inverse_time(V, 0.3, 4, staircase=True),
        lambda k: k.InverseTimeDecay(V, 4, 0.3, staircase=True),
    ),
    "PolynomialDecay": (
        polynomial(V, 20, 2.5, 0.1),
        lambda k: k.PolynomialDecay(V, 20, 0.1, 2.5),
    ),
    "PiecewiseConstantDecay": (  # one step later
        piecewise([V, 0.3, 0.1], [4, 11]),
        lambda k: k.PiecewiseConstantDecay([3, 10], [V, 0.3, 0.1]),
    ),
    "ExponentialDecay": (
        step(V, 4, 0.9),
        lambda k: k.ExponentialDecay(V, 4, 0.9, staircase=True),
    ),
    "CosineDecay": (cosine(V, 20, final=0.1), lambda k: k.CosineDecay(V, 20, 0.1 / V)),
    "CosineDecayRestarts": (
        cosine_restarts(V, 5, growth=2, shrink=0.5, final=0.1),
        lambda k: k.CosineDecayRestarts(V, 5, 2.0, 0.5, 0.1 / V),
    ),
}


@pytest.mark.parametrize("name", KERAS)
def test_keras(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, make = KERAS[name]
    theirs = make(installed("keras", monkeypatch).optimizers.schedules)
    same(ours, map(theirs, range(60)), 2e-6)  # theirs in float32


# A metric that falls for a while, stays, is not a number, falls a little, and stays for long.
METRICS = [5.0, 4.0, 3.0, 3.0, 3.1, 2.9999, 2.5, math.nan, 2.5, 2.5, 2.6, 2.4, *[2.4] * 20, 1.0]
METRICS += [1.0] * 30

PLATEAUS: list[dict[str, Any]] = [
    {"patience": patience, "cooldown": cooldown, "min_lr": least}
    for patience in (1, 2, 4)
    for cooldown in (0, 1, 3)
    for least in (0.0, 0.15)
]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
def test_pytorchs_plateau(mode: str, threshold_mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = installed("torch", monkeypatch)
    metrics = METRICS if mode == "min" else [10 - m for m in METRICS]
    for options in [*PLATEAUS, {"patience": 0}]:
        told = options | {"factor": 0.5, "mode": mode, "threshold_mode": threshold_mode}
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, threshold=1e-3, **told)
        ours = ReduceOnPlateau(1.0, threshold=1e-3, **told)
        for metric in metrics:
            theirs.step(metric)
            ours.observe(metric)
            assert ours(0) == optimizer.param_groups[0]["lr"]


def test_keras_plateau(monkeypatch: pytest.MonkeyPatch) -> None:
    keras = installed("keras", monkeypatch)
    for options in [*PLATEAUS, {"patience": 0}]:
        theirs = keras.callbacks.ReduceLROnPlateau(
            factor=0.5, mode="min", min_delta=1e-3, **options
        )
        optimizer = SimpleNamespace(learning_rate=1.0)
        theirs.set_model(SimpleNamespace(optimizer=optimizer))
        theirs.on_train_begin()
        told = options | {"threshold_mode": "abs", "eps": 0.0, "patience_mode": "keras"}
        ours = ReduceOnPlateau(1.0, 0.5, threshold=1e-3, **told)
        for epoch, metric in enumerate(METRICS):
            theirs.on_epoch_end(epoch, {"val_loss": metric})
            ours.observe(metric)
            assert ours(0) == optimizer.learning_rate


def test_optax_plateau(monkeypatch: pytest.MonkeyPatch) -> None:
    optax, jax = installed("optax", monkeypatch), installed("jax", monkeypatch)
    for options in PLATEAUS[1::3]:
        rename = {"min_lr": "min_scale"}
        told = {rename.get(name, name): value for name, value in options.items()}
        theirs = optax.contrib.reduce_on_plateau(factor=0.5, rtol=1e-3, **told)
        state = theirs.init(np.ones(1, F4))
        update = jax.jit(theirs.update)
        ours = ReduceOnPlateau(1.0, 0.5, threshold=1e-3, eps=0.0, patience_mode="optax", **options)
        for metric in METRICS:
            _, state = update(np.ones(1, F4), state, value=metric)
            ours.observe(metric)
            assert ours(0) == pytest.approx(float(state.scale), rel=1e-6)
