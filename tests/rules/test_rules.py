"""What single rules do beside their step, and what they refuse."""

from __future__ import annotations

import copy
import math
import pickle
import re
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16

import schuss
from schuss.engine.declare import Backend, Bounded, Several
from schuss.engine.optimizer import Optimizer
from schuss.rules import RULES, matrix

F4 = np.float32
BACKENDS = ["compiled", "numpy"]


def bits(params: Any) -> list[bytes]:
    return [x.tobytes() for x in params]


# ---- Eve: the loss


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", [None, math.nan, math.inf, -1.0, 0.0])
def test_eve_refuses_a_loss_that_it_cannot_use(loss: Any, backend: Backend) -> None:
    x = np.ones(3)
    opt = schuss.Eve(x, variant="v1", backend=backend)
    for _ in range(3):
        opt.step(np.ones(3), loss=2.0)
    kept, saved = x.copy(), repr(opt.state_dict())
    with pytest.raises(ValueError, match=r"^loss: "):
        opt.step(np.ones(3), loss=loss)
    assert (x == kept).all()
    assert repr(opt.state_dict()) == saved


def test_eve_takes_any_finite_loss_in_its_other_variants() -> None:
    for variant in ("v3", "code"):
        x = np.ones(3)
        opt = schuss.Eve(x, variant=variant)
        for loss in (1.0, 0.0, 0.0, -1.0, 1e308, -1e308, 5e-324):
            opt.step(np.ones(3), loss=loss)
            assert 0.1 <= opt.state_dict()["shared"]["d"] <= 10.0
        assert np.isfinite(x).all()


def test_eve_has_one_feedback_for_all_arrays() -> None:
    """Also for one that had no gradient for a while; a skipped step doesn't count."""
    x, y = np.ones(3), np.ones(3)
    opt = schuss.Eve([x, y], betas=(0.9, 0.999, 0.5), nonfinite="skip")
    shared = []
    for loss, gradient in ((4.0, 1.0), (2.0, None), (9.0, math.nan), (1.0, 1.0)):
        g = None if gradient is None else np.full(3, gradient)
        opt.step([np.ones(3), g], loss=loss)
        shared.append(opt.state_dict()["shared"])
    assert [s["d"] for s in shared] == [1.0, 1.0, 1.0, 1.0]  # each loss is half of that before
    assert [s["fhat"] for s in shared] == [4.0, 2.0, 2.0, 1.0]
    assert [s["step"] for s in opt.state.values()] == [3, 2]


# ---- ScheduleFree: eval and train

FREE = [schuss.ScheduleFreeSGD, schuss.ScheduleFreeAdamW]


def descended(rule: Any, dtype: Any = np.float64, **options: Any) -> tuple[Any, list[np.ndarray]]:
    params = [np.linspace(-1, 1, 50).astype(dtype), np.ones(7).astype(dtype)]
    opt = rule(params, lr=0.1, **options)
    for t in range(10):
        opt.step([np.cos(x.astype(np.float64) + t).astype(dtype) for x in params])
    return opt, params


@pytest.mark.parametrize("rule", FREE)
@pytest.mark.parametrize("dtype", [np.float64, F4, np.float16, bfloat16])
def test_train_brings_the_same_bits_back(rule: Any, dtype: Any) -> None:
    opt, params = descended(rule, dtype)
    kept = bits(params)
    opt.train()  # nothing to do
    assert bits(params) == kept
    opt.eval()
    assert bits(params) != kept
    averages = bits(params)
    opt.eval()  # it is there already
    assert bits(params) == averages
    with pytest.raises(RuntimeError, match=r"step: .*opt\.train\(\)"):
        opt.step(params)
    with pytest.raises(RuntimeError, match=r"load_state_dict: .*opt\.train\(\)"):
        opt.load_state_dict(opt.state_dict())
    opt.train()
    assert bits(params) == kept
    assert opt.step([np.ones_like(x) for x in params])


@pytest.mark.parametrize("rule", FREE)
@pytest.mark.parametrize("way", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_goes_on_evaluating(rule: Any, way: Any) -> None:
    opt, params = descended(rule)
    kept = bits(params)
    opt.eval()
    other, theirs = way((opt, params))
    with pytest.raises(RuntimeError, match=r"opt\.train"):
        other.step(theirs)
    other.train()
    assert bits(theirs) == kept
    assert bits(params) != kept


@pytest.mark.parametrize("rule", FREE)
def test_the_average_is_that_of_the_descent(rule: Any) -> None:
    """With constant rates, of all points z so far, each with the same weight."""
    params = np.linspace(-1, 1, 50)
    opt = rule(params, lr=0.1)
    points = []
    for t in range(30):
        opt.step(np.cos(params + t))
        points.append(opt.state[0]["z"].copy())
    opt.eval()
    assert np.allclose(params, np.mean(points, axis=0), rtol=1e-12, atol=1e-14)


def test_eval_before_the_first_step_changes_nothing() -> None:
    x, y = np.ones(3), np.ones(3)
    opt = schuss.ScheduleFreeSGD([x, y])
    opt.step([np.ones(3), None])
    opt.step([np.ones(3), None])
    opt.eval()
    assert (y == 1).all()
    assert (x != 1).all()


def test_eval_of_a_master_and_of_new_parameters() -> None:
    opt, params = descended(schuss.ScheduleFreeSGD, bfloat16, master=True)
    plain, wide = descended(schuss.ScheduleFreeSGD, F4)
    kept = bits(params)
    opt.eval()
    assert opt.state[0]["master"].dtype == F4
    plain.eval()
    assert np.allclose(params[0].astype(F4), wide[0], atol=0.02)
    added = np.ones(2, bfloat16)
    opt.add_param_group({"params": [added]})
    opt.train()
    assert bits(params) == kept
    assert (added == 1).all()


def test_running_means_of_what_is_evaluated() -> None:
    opt, params = descended(schuss.ScheduleFreeAdamW, ema=0.5)
    kept = bits(params)
    opt.eval()
    averages = bits(params)
    with opt.averaged():
        assert bits(params) != averages
        with pytest.raises(RuntimeError, match=r"train: .*opt\.averaged"):
            opt.train()
    assert bits(params) == averages
    with pytest.raises(RuntimeError, match=r"opt\.train"):
        opt.step(params)
    opt.train()
    assert bits(params) == kept
    with opt.averaged(), pytest.raises(RuntimeError, match=r"eval: .*opt\.averaged"):
        opt.eval()


def test_parameters_may_be_filled_until_the_first_step() -> None:
    """Since z begins with the first step, where the parameters then are."""
    x, y = np.zeros(3), np.ones(3)
    first, second = schuss.ScheduleFreeSGD(x), schuss.ScheduleFreeSGD(y)
    x[:] = 1
    first.step(np.ones(3))
    second.step(np.ones(3))
    assert (x == y).all()
    assert (first.state[0]["z"] == second.state[0]["z"]).all()


# ---- ASGD: the average


def test_asgd_averages_from_t0_on() -> None:
    x = np.ones(4)
    opt = schuss.ASGD(x, lr=0.1, t0=5.0)
    points: list[np.ndarray] = []
    for t in range(1, 21):
        opt.step(np.cos(np.arange(4) + t))
        points.append(x.copy())
        seen = points[-1:] if t <= 7 else points[6:]
        assert np.allclose(opt.state[0]["ax"], np.mean(seen, axis=0), rtol=1e-13)
        assert t > 7 or (opt.state[0]["ax"] == x).all()


# ---- Sophia: the curvature


def textbook_sophia(h: float, m: float, g: float) -> tuple[float, float]:
    m = 0.965 * m + 0.035 * g
    ratio = min(abs(m) / (0.04 * 2.0 * max(h, 0.0) + 1e-15), 1.0)
    return m, math.copysign(0.1 * ratio, m)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sophia_divides_by_the_curvature_that_it_is_told(backend: Backend) -> None:
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal(40), rng.standard_normal((2, 3))
    opt = schuss.Sophia({"x": x, "y": y}, lr=0.1, bs=2.0, weight_decay=0.0, backend=backend)
    want, h, m = x.copy(), np.zeros(40), np.zeros(40)
    for t in range(30):
        if t % 10 == 0:
            hhat = rng.standard_normal(40) * 5
            opt.update_hessian({"x": hhat, "y": None})
            h = 0.99 * h + 0.01 * hhat
        g = rng.standard_normal(40)
        opt.step({"x": g, "y": np.ones((2, 3))})
        for i in range(40):
            m[i], step = textbook_sophia(h[i], m[i], g[i])
            want[i] -= step
    assert np.allclose(opt.state["x"]["hessian"], h, rtol=1e-13)
    assert np.allclose(x, want, rtol=1e-12, atol=1e-13)
    assert (opt.state["y"]["hessian"] == 0).all()
    assert opt.state["x"]["step"] == 30


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_estimate_that_does_not_fit_changes_nothing(backend: Backend) -> None:
    x, y = np.ones(4, F4), np.ones(5, F4)
    opt = schuss.Sophia([x, y], backend=backend)
    opt.update_hessian([np.ones(4, F4), np.ones(5, F4)])
    kept = [opt.state[i]["hessian"].copy() for i in range(2)]
    wrong: list[tuple[Any, str]] = [
        (np.ones(4, F4), r"hhat\[1\]: shape \(4,\)"),
        (np.ones(5), r"hhat\[1\]: .*float64"),
        ([1.0] * 5, r"hhat\[1\]"),
        (np.ones(10, F4)[::2], r"hhat\[1\]: not contiguous"),
        (opt.state[1]["hessian"], r"hhat\[1\]: overlaps .*hessian"),
    ]
    for bad, match in wrong:
        with pytest.raises((TypeError, ValueError), match=match):
            opt.update_hessian([np.ones(4, F4), bad])
    with pytest.raises(ValueError, match=r"hhat: 1 where params has 2"):
        opt.update_hessian([np.ones(4, F4)])
    assert all((opt.state[i]["hessian"] == kept[i]).all() for i in range(2))


def test_each_group_has_its_own_memory_of_the_curvature() -> None:
    x, y = np.ones(4), np.ones(4)
    opt = schuss.Sophia([{"params": [x]}, {"params": [y], "betas": (0.9, lambda n: 0.5)}])
    opt.update_hessian([[np.ones(4)], [np.ones(4)]])
    assert np.allclose(opt.state[0]["hessian"], 0.01)
    assert (opt.state[1]["hessian"] == 0.5).all()


# ---- Others


@pytest.mark.parametrize("backend", BACKENDS)
def test_ftrl_leaves_exact_zeros(backend: Backend) -> None:
    x = np.ones(100)
    opt = schuss.Ftrl(x, lr=0.1, l1_regularization_strength=1.0, backend=backend)
    rng = np.random.default_rng(4)
    for _ in range(20):
        g = rng.standard_normal(100)
        g[:50] *= 1e-3
        opt.step(g)
    assert (x[:50] == 0).all()
    assert (x[50:] != 0).any()


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (schuss.SignSGD, {}),
        (schuss.Signum, {}),
        (schuss.Lion, {}),
        (schuss.Grams, {}),
        (schuss.Sophia, {}),
        (schuss.ADOPT, {}),
        (schuss.Yogi, {}),
        (schuss.DeltaBarDelta, {}),
        (schuss.DeltaBarDelta, {"momentum": 0.5}),
        (schuss.Ftrl, {}),
    ],
)
def test_a_nan_is_seen_in_the_parameter(rule: type[Optimizer], options: dict[str, Any]) -> None:
    x = np.ones(3, F4)
    opt = rule(x, **options)
    opt.step(np.ones(3, F4))
    opt.step(np.array([1, np.nan, 1], F4))
    assert np.isnan(x).tolist() == [False, True, False]


def test_what_a_rule_does_not_take() -> None:
    with pytest.raises(ValueError, match=r"thresholds: .* has a k above K"):
        schuss.Eve(np.ones(1), thresholds=(2.0, 1.0))
    with pytest.raises(ValueError, match=r"gain_min: 2\.0 is above gain_max=1\.0"):
        schuss.DeltaBarDelta(np.ones(1), gain_min=2.0, gain_max=1.0)
    with pytest.raises(ValueError, match=r"lr: 0\.0 is out of range"):
        schuss.Ftrl(np.ones(1), lr=0.0)
    for momentum in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"momentum: .* is out of range"):
            schuss.ScheduleFreeSGD(np.ones(1), momentum=momentum)


# ---- Large gradients

LARGE = 5e19  # whose square is beyond float32, but not a tenth of it

# Which sum squares without a weight, as their papers have it: here and in PyTorch they are beyond.
UNWEIGHTED = {schuss.Adagrad, schuss.Ftrl}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in UNWEIGHTED])
def test_a_large_gradient_does_not_stay(rule: type[Optimizer], backend: Backend) -> None:
    """A weight goes on one factor of a square: what is stored is finite, and x moves on."""
    seen = set()
    for choice in CHOICES:
        options = choice.copy()
        if not all(takes(rule, *option) for option in options.items()):
            continue
        x = np.ones(8, F4)
        if rule is schuss.Prodigy:  # whose v is of d*g
            options |= {"growth_rate": 1.0}
        opt = rule(x, backend=backend, **options)
        for size in (*[1.0, -1.0] * 10, LARGE, *[LARGE / 100] * 30):
            before = x.copy()
            opt.step(np.full(8, size, F4), loss=1.0)
        for name, a in opt.state[0].items():
            assert np.isfinite(a).all(), (options, name)
        assert np.isfinite(x).all()
        assert (x < before).all() or rule is schuss.Adadelta, options  # whose unit is x's
        seen.add(opt.param_groups[0].settings.kernel)
    assert {k for k, states in rule.states.items() if any("sq" in s for s in states)} <= seen


# docs/exactness.md: whose v is infinite after a first gradient of 1e20, and who waits only.
INFINITE = UNWEIGHTED | {schuss.ADOPT, schuss.StableAdamW, schuss.Adadelta, schuss.Adafactor}
WAITING = {schuss.AdEMAMix, schuss.Adan, schuss.LaProp}


@pytest.mark.parametrize("rule", RULES)
def test_a_first_gradient_that_is_large(rule: type[Optimizer]) -> None:
    x = np.ones(8, F4)
    opt = rule(x)
    opt.step(np.full(8, 1e20, F4), loss=1.0)
    finite = all(np.isfinite(a).all() for a in opt.state[0].values())
    assert finite == (rule not in INFINITE)
    still = WAITING | INFINITE - {schuss.Ftrl} | {schuss.Prodigy, schuss.DAdaptAdam}  # a small d
    assert (np.abs(x - 1) < 5e-5).all() == (rule in still)
    assert np.isnan(x).all() == (rule is schuss.Ftrl)


def takes(rule: type[Optimizer], name: str, value: Any) -> bool:
    declared = rule.hyperparameters.get(name)
    return declared is not None and value in getattr(declared, "choices", [value])


# They choose each kernel with a square.
CHOICES: list[dict[str, Any]] = [
    {},
    {"momentum": 0.5},
    {"centered": True},
    {"centered": True, "momentum": 0.5},
    {"amsgrad": True},
    {"eps_mode": "inside"},
    {"decay_mode": "course"},
]


@pytest.mark.parametrize(
    ("rule", "options"),
    [(schuss.LARS, {}), (schuss.LARS, {"preset": "optax", "lr": 1.0}), (schuss.MARS, {})],
)
def test_norms_of_arrays_are_right_where_squares_overflow(
    rule: type[Optimizer], options: dict[str, Any]
) -> None:
    """These rules divide by them, so that a first step is the same for gradients of any size."""
    ends = []
    for size in (1e5, 1e25, 1e36):
        x = np.ones(100, F4)
        rule(x, **options).step(np.linspace(0.5, 1, 100).astype(F4) * F4(size))
        ends.append(x)
    assert (ends[0] != 1).all()
    for x in ends[1:]:
        np.testing.assert_allclose(x, ends[0], rtol=1e-6)


# ---- eps = 0


@pytest.mark.parametrize("rule", [*RULES, *matrix.RULES], ids=lambda rule: rule.__name__)
def test_docstrings_say_where_eps_0_gives_nan(rule: type[Optimizer]) -> None:
    """Where all gradients have been 0: said of those rules that do so, and of no others."""
    zeros: dict[str, Any] = {
        name: 0.0
        for name, declared in rule.hyperparameters.items()
        if name.startswith("eps") and isinstance(declared, Bounded) and 0.0 in declared.interval
    }
    if isinstance(declared := rule.hyperparameters.get("eps"), Several):
        zeros["eps"] = (0.0,) * len(declared.parts)
    x = np.ones((3, 4))
    opt = rule(x, **zeros)
    for _ in range(12):
        opt.step(np.zeros_like(x), loss=1.0)
    text = " ".join((rule.__doc__ or "").split())
    said = re.search(r"with eps(?: and eps_root)? = 0[^.]* NaN", text, re.IGNORECASE)
    assert np.isnan(x).any() == bool(said)
