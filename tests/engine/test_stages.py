"""The stages around a rule do what their formulas say, and 16-bit storage what a trainer needs.

The exact tests hold kernel and reference together; here both are held to the definitions.
"""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

import schuss
from engine.unchanged import Unchanged
from schuss import _core, rules
from schuss.engine.declare import Backend
from schuss.engine.optimizer import Optimizer

F4 = np.float32

# The kernels of every instruction set, and their specification.
RUNS: list[tuple[Backend, str]] = [
    *(("compiled", isa) for isa in _core.found_isas()),
    ("numpy", _core.isa()),
]


def stepped(x: Any, g: Any, steps: int = 1, **options: Any) -> np.ndarray:
    """A parameter after plain gradient descent with lr 0.1 and these options."""
    array = np.array(x, float)
    opt = schuss.SGD(array, **{"lr": 0.1, **options})
    for _ in range(steps):
        opt.step(np.array(g, float))
    return array


@pytest.mark.parametrize(
    ("options", "x", "g", "want"),
    [
        ({"clip_value": 0.5}, [0, 0, 0], [1, -9, 0.25], [-0.05, 0.05, -0.025]),
        ({"clip_value": 0.5, "grad_scale": 2.0}, [0, 0], [0.8, 9], [-0.04, -0.05]),
        ({"clip_value": 0.5, "l2": 1.0}, [2.0], [9], [2 - 0.1 * (0.5 + 2)]),
        ({"l2": 0.5, "weight_decay": 0.25}, [2.0], [1], [2 - 0.1 * (1 + 0.75 * 2)]),
        ({"l1": 0.5}, [2, -2, 0], [1, 1, 1], [1.85, -2.05, -0.1]),
        ({"l1": 3, "l1_mode": "prox"}, [2, 0.25, -0.25, -2], [0] * 4, [1.7, 0, 0, -1.7]),
        ({"bounds": (-0.5, 0.5)}, [2, -2, 0.1], [0, 0, 0], [0.5, -0.5, 0.1]),
        ({"bounds": (0, math.inf)}, [0.05, 3], [1, 1], [0, 2.9]),
        ({"bounds": (-math.inf, 0)}, [-0.05, -3], [-1, -1], [0, -2.9]),
        ({"clip_norm": 1.0}, [0, 0], [3, 4], [-0.06, -0.08]),
        ({"clip_norm": 10.0}, [0, 0], [3, 4], [-0.3, -0.4]),
        ({"clip_norm": 1.0, "grad_scale": 10.0}, [0, 0], [3, 4], [-0.03, -0.04]),
    ],
)
def test_stage(options: dict[str, Any], x: Any, g: Any, want: Any) -> None:
    assert np.allclose(stepped(x, g, **options), want, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("mode", "want"),
    [
        ("l2", 2 - 0.1 * (1 + 0.5 * 2)),
        ("decoupled", 2 * (1 - 0.1 * 0.5) - 0.1),
        ("decoupled_unscaled", 2 * (1 - 0.1 / 0.4 * 0.5) - 0.1),
        ("corrected", 2 * (1 - 0.1**2 / 0.4 * 0.5) - 0.1),
        ("proximal", (2 - 0.1) / (1 + 0.1 * 0.5)),
        ("masked", 2 * (1 - 0.1 * 0.5) - 0.1),
    ],
)
def test_decay_mode(mode: str, want: float) -> None:
    """A schedule that has come down from 0.4 to 0.1, an update with the sign of x."""

    def lr(n: int) -> float:
        return 0.1

    lr.peak = 0.4  # type: ignore[attr-defined]
    options: dict[str, Any] = {"lr": lr, "weight_decay": 0.5, "decay_mode": mode}
    assert np.allclose(stepped([2.0], [1.0], **options), want, rtol=1e-14)
    against = stepped([-2.0], [1.0], lr=0.1, weight_decay=0.5, decay_mode="masked")
    assert np.allclose(against, -2.1)  # where update and x differ in sign, nothing decays


def test_a_decay_that_needs_the_peak_says_so() -> None:
    opt = schuss.SGD(np.ones(1), lr=lambda n: 0.1, weight_decay=1, decay_mode="corrected")
    with pytest.raises(ValueError, match="lr: this decay_mode needs the schedule's largest value"):
        opt.step(np.ones(1))
    schedule = schuss.schedules.cosine(0.4, steps=9, warmup=3)
    assert schuss.SGD(np.ones(1), lr=schedule, weight_decay=1, decay_mode="corrected").step(
        np.ones(1)
    )


def test_proximal_l1_finds_the_sparse_solution() -> None:
    """Lasso by proximal gradient descent: exact zeros, where coupled L1 has none."""
    rng = np.random.default_rng(0)
    a, truth = rng.standard_normal((200, 30)), np.zeros(30)
    truth[[3, 7, 20]] = [2.0, -1.0, 0.5]
    y = a @ truth
    zeros = {}
    for mode in ("prox", "coupled"):
        x = np.zeros(30)
        opt = schuss.SGD(x, lr=0.3, l1=0.1, l1_mode=mode)
        for _ in range(500):
            opt.step(a.T @ (a @ x - y) / 200)
        zeros[mode] = (x == 0).sum()
        assert np.abs(x - truth).max() < 0.2
    assert zeros == {"prox": 27, "coupled": 0}


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
def test_bounds_as_arrays(backend: Backend) -> None:
    x = np.zeros((2, 3), F4, order="F")
    low = np.arange(6.0).reshape(2, 3)
    opt = schuss.SGD(x, bounds=(low, 5.0), backend=backend)
    low[:] = 99  # it was copied
    opt.step(np.zeros((2, 3), F4, order="F"))
    assert (x == np.arange(6.0).reshape(2, 3)).all()
    with pytest.raises(ValueError, match=r"bounds: shape \(2,\), but params\[0\] has \(3,\)"):
        schuss.SGD(np.zeros(3), bounds=(np.zeros(2), 1.0))
    with pytest.raises(ValueError, match="fixed at construction"):
        opt.bounds = None


BOUNDS = [
    (0.0, 0.1),
    (1e-3, 0.999),
    (1e-9, 1.0),
    (-1.0, -1e-9),
    (-1e6, 1e6),
    (-0.7, math.inf),
    (1e-310, 1.1),
    (1 / 3, 1 / 3 + 1e-3),
]


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("as_arrays", [False, True])
@pytest.mark.parametrize("options", [{}, {"stochastic_rounding": True}, {"master": True}])
@pytest.mark.parametrize("dtype", [np.float64, F4, "float16", bfloat16])
def test_bounds_hold_for_what_is_stored(dtype: Any, options: Any, as_arrays: bool) -> None:
    """At the nearest numbers of the parameter's type inside, by every set of kernels."""
    for low, high in BOUNDS:
        ends = []
        for backend, isa in RUNS:
            _core.use_isa(isa)
            x = np.full(300, min(high, 0.5), dtype)
            bounds = (np.full(300, low), np.full(300, high)) if as_arrays else (low, high)
            opt = schuss.SGD(x, lr=1.0, bounds=bounds, backend=backend, **options)
            for pull in (-3e38, -0.01, 3e38, 0.01):
                opt.step(np.full(300, pull, np.float64 if dtype is np.float64 else F4))
                stored = x.astype(float)
                assert ((stored >= low) & (stored <= high)).all(), (low, high, pull)
                ends.append(x.copy())
                if abs(pull) > 1:
                    outwards = np.array(math.copysign(math.inf, -pull)).astype(dtype)
                    with np.errstate(over="ignore"):
                        beyond = float(np.nextafter(x[:1], outwards)[0])
                    assert not low <= beyond <= high or math.isinf(high)
        steps = bits(ends)
        assert steps == steps[:4] * len(RUNS)


@pytest.mark.parametrize("bounds", [(0.1, 0.1), (1e9, 2e9), (-1e-9, -1e-10)])
def test_bounds_between_which_a_type_has_no_number(bounds: Any) -> None:
    x, y = np.zeros(3), np.zeros(3, np.float16)
    arrays: Any = tuple(np.full(3, b) for b in bounds)
    says = r"bounds: \(.*\) holds no number of float16, the type of "
    for wrong in (bounds, arrays):
        with pytest.raises(ValueError, match=says + r"params\[1\]"):
            schuss.SGD([x, y], bounds=wrong)
    opt = schuss.SGD([{"params": [x]}, {"params": [y]}])  # groups of the same settings
    saved = schuss.SGD([{"params": [x]}, {"params": [x.copy()]}], bounds=bounds).state_dict()
    with pytest.raises(ValueError, match=says + r"params\[1\]"):
        opt.bounds = bounds
    with pytest.raises(ValueError, match=says + r"params\[1\]"):
        opt.param_groups[1].update(bounds=bounds, l2=1.0)
    with pytest.raises(ValueError, match=says + r"params\[1\]"):
        opt.load_state_dict(saved)
    assert [(g["bounds"], g["l2"]) for g in opt.param_groups] == [(None, 0.0)] * 2
    schuss.functional.sgd(x, np.ones(3), step=1, lr=1.0, bounds=bounds)
    with pytest.raises(ValueError, match=says + "param"):
        schuss.functional.sgd(y, np.ones(3, F4), step=1, lr=1.0, bounds=bounds)
    with pytest.raises(TypeError, match="sgd: bounds are arrays, which are for the class"):
        schuss.functional.sgd(x, np.ones(3), step=1, lr=1.0, bounds=arrays)
    assert (y == 0).all()


def test_running_mean() -> None:
    x = np.array([1.0, 2.0])
    opt = schuss.SGD({"x": x}, lr=1.0, ema=0.75)
    mean = x.copy()
    for _ in range(5):
        opt.step({"x": np.ones(2)})
        mean += 0.25 * (x - mean)
        assert (opt.ema["x"] == mean).all()
    kept = x.copy()
    with opt.averaged():
        assert (x == mean).all()
        with pytest.raises(RuntimeError, match=r"opt\.averaged"):
            opt.step({"x": np.ones(2)})
    assert x.tobytes() == kept.tobytes()
    with pytest.raises(ValueError, match="ema: no running means"), schuss.SGD(x).averaged():
        pass


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
def test_a_scheduled_running_mean(backend: Backend) -> None:
    """The schedule is asked for each array's own number of steps; both backends take its value."""
    asked = []

    def decay(n: int) -> float:
        asked.append(n)
        return n / (n + 2)

    x, y = np.array([1.0, 2.0]), np.array([3.0])
    opt = schuss.SGD({"x": x, "y": y}, lr=1.0, ema=decay, backend=backend)
    mean = {"x": x.copy(), "y": y.copy()}
    for n in range(5):
        opt.step({"x": np.ones(2), "y": np.ones(1) if n > 1 else None})
        mean["x"] += (1.0 - n / (n + 2)) * (x - mean["x"])
        if n > 1:
            mean["y"] += (1.0 - (n - 2) / n) * (y - mean["y"])
        assert all((opt.ema[name] == mean[name]).all() for name in mean)
    assert asked == [0, 1, 2, 0, 3, 1, 4, 2]
    assert "ema=" in repr(opt)


@pytest.mark.parametrize("dtype", [np.float64, F4, np.float16])
@pytest.mark.parametrize("backend", ["compiled", "numpy"])
def test_a_running_mean_of_share_1_is_the_parameter(dtype: Any, backend: Backend) -> None:
    """Of the old mean not even its rounding is left."""
    x = np.full(5000, 6e4, dtype)
    decay = schuss.schedules.ema_warmup()
    opt = schuss.SGD({"x": x}, lr=1.0, ema=decay, master=dtype == np.float16, backend=backend)
    opt.ema["x"][:] = 1e30
    opt.step({"x": (x - np.linspace(0, 1, 5000)).astype(dtype)})
    own = opt.state["x"]["master"] if dtype == np.float16 else x
    assert opt.ema["x"].tobytes() == own.tobytes()
    opt.step({"x": np.ones(5000, dtype)})
    assert opt.ema["x"].tobytes() != own.tobytes()


def test_a_running_mean_that_forgets_its_start() -> None:
    """After 1000 steps at 0.9999 the start is still nine tenths of the mean, or with a warm-up
    none of it; and without a limit it is the plain mean of all steps.
    """
    x = {"old": np.ones(1), "new": np.ones(1), "plain": np.ones(1)}
    warm, plain = schuss.schedules.ema_warmup(0.9999), schuss.schedules.ema_warmup(1.0, power=1.0)
    decays = {"old": 0.9999, "new": warm, "plain": plain}
    opts = {name: schuss.SGD({name: x[name]}, lr=1.0, ema=decay) for name, decay in decays.items()}
    for n in range(1000):
        for name, opt in opts.items():
            opt.step({name: x[name] - (0.0 if n < 900 else 1.0)})  # 0 first, and then 1
    means = {name: float(opt.ema[name][0]) for name, opt in opts.items()}
    assert means["old"] == pytest.approx(0.9999**1000 + 1 - 0.9999**100, abs=1e-12)
    assert means["plain"] == pytest.approx(0.1, abs=1e-12)
    kept = math.prod(warm(n) for n in range(900, 1000))
    assert means["new"] == pytest.approx(1 - kept, abs=1e-12)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, "x", None])
def test_a_scheduled_running_mean_out_of_range(value: Any) -> None:
    x = np.ones(3)
    opt = schuss.Adam({"x": x}, ema=lambda n: 0.5 if n < 2 else value)
    for _ in range(2):
        opt.step({"x": np.ones(3)})
    with Unchanged(opt, (TypeError, ValueError), "ema after 2 steps: "):  # type: ignore[arg-type]
        opt.step({"x": np.ones(3)})


def test_a_scheduled_running_mean_resumes() -> None:
    """The schedule isn't stored: that of the place where it is loaded goes on."""
    schedule, x = schuss.schedules.ema_warmup(0.9), np.ones(3)
    opt = schuss.Adam({"x": x}, ema=schedule)
    for _ in range(3):
        opt.step({"x": np.ones(3)})
    resumed = {
        name: schuss.Adam({"x": x.copy()}, ema=decay)
        for name, decay in (("schedule", schedule), ("number", 0.5))
    }
    twin = pickle.loads(pickle.dumps(opt))
    for other in resumed.values():
        other.load_state_dict(opt.state_dict())
    for each in (opt, twin, *resumed.values()):
        each.step({"x": np.ones(3)})
    assert opt.ema["x"].tobytes() == twin.ema["x"].tobytes()
    assert opt.ema["x"].tobytes() == resumed["schedule"].ema["x"].tobytes()
    assert opt.ema["x"].tobytes() != resumed["number"].ema["x"].tobytes()
    opt.load_state_dict(resumed["number"].state_dict())
    assert opt.ema_decay is schedule
    with pytest.raises(ValueError, match="ema"):
        schuss.Adam({"x": x}).load_state_dict(opt.state_dict())
    with pytest.raises(ValueError, match="ema"):
        opt.load_state_dict(schuss.Adam({"x": x.copy()}).state_dict())


def test_zero_grad_in_the_pass() -> None:
    g = np.ones(5000, F4)
    opt = schuss.SGD(np.zeros(5000, F4), grads=g, zero_grad=True)
    opt.step()
    assert not g.any()
    shared = np.ones(3)
    both = schuss.SGD([np.zeros(3), np.zeros(3)], zero_grad=True)
    with pytest.raises(ValueError, match=r"grads\[1\]: overlaps grads\[0\]"):
        both.step([shared, shared])
    shared.flags.writeable = False
    with pytest.raises(ValueError, match=r"grads\[0\]: read-only"):
        both.step([shared, np.ones(3)])


# ---- The second read


def test_norm_is_that_of_all_arrays() -> None:
    rng = np.random.default_rng(1)
    params = [np.zeros(n) for n in (1, 0, 4097, 300)]
    opt = schuss.SGD(params, clip_norm=1.0, grad_scale=4.0)
    grads = [rng.standard_normal(x.size) for x in params]
    opt.step(grads)
    want = math.sqrt(sum(float(g @ g) for g in grads)) / 4
    assert opt.grad_norm == pytest.approx(want, rel=1e-14)
    moved = math.sqrt(sum(float(x @ x) for x in params)) / opt.lr  # type: ignore[operator]
    assert moved == pytest.approx(1.0, rel=1e-5)


SUBNORMAL = 5e-324
LENGTHS: list[list[list[float]]] = [
    [[1e200, 1e200]],
    [[1.2e308, -1.2e308]],
    [[1e-200, 1e-200]],
    [[SUBNORMAL, -3 * SUBNORMAL]],
    [[1e-310], [2e-162, 1e-170]],
    [[1e180], [3e154, 4e154], [], [1.0]],
    [[1e-3], [1e-300]],
    [[0.0], [0.0]],
]


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("values", LENGTHS)
def test_norm_whose_squares_are_beyond_double(values: list[list[float]]) -> None:
    """Of many elements, by math.hypot, which scales as well; every set of kernels has its bits."""
    grads = [np.tile(np.array(v), 3000) for v in values]
    length = math.hypot(*np.concatenate(grads))
    found = []
    for backend, isa in RUNS:
        _core.use_isa(isa)
        params = [np.zeros(g.size) for g in grads]
        opt = schuss.SGD(params, lr=1.0, clip_norm=1e-3, nonfinite="raise", backend=backend)
        assert opt.step(grads)
        found.append((opt.grad_norm, *bits(params)))
        assert opt.grad_norm == pytest.approx(length, rel=1e-13, abs=0)
        if math.isfinite(length) and length > 1:
            moved = math.hypot(*np.concatenate(params))
            assert moved == pytest.approx(1e-3, rel=1e-12)
    assert found == [found[0]] * len(RUNS)


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
@pytest.mark.parametrize(
    ("value", "options"),
    [
        (1.7e308, {}),
        (1e300, {"grad_scale": 1e-10}),
        (-1e300, {"grad_scale": 1e-10, "maximize": True}),
    ],
)
def test_norm_beyond_double_is_clipped(
    value: float, options: dict[str, Any], backend: Backend
) -> None:
    x = np.zeros(3)
    opt = schuss.SGD(x, lr=1.0, clip_norm=1.0, nonfinite="skip", backend=backend, **options)
    assert opt.step(np.full(3, value))
    assert opt.grad_norm == math.inf
    assert x == pytest.approx(np.full(3, -(3**-0.5)), rel=1e-14)
    assert opt.step(np.array([value, math.inf, 0.0])) is False


def test_norm_of_the_largest_float32() -> None:
    """Whose squares double has room for."""
    largest = float(np.finfo(F4).max)
    for dtype, scale in ((F4, 1.0), (F4, 1e-40), (bfloat16, 0.9)):
        x = np.zeros(100, F4)
        opt = schuss.SGD(x, lr=1.0, clip_norm=1.0, nonfinite="skip")
        g = np.full(100, largest * scale).astype(dtype)
        assert opt.step(g)
        assert opt.grad_norm == pytest.approx(10 * float(g[0]), rel=1e-12)
        wanted = min(1.0, 10 * float(g[0]))
        assert math.hypot(*x) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
@pytest.mark.parametrize(
    ("dtype", "g", "options", "seen"),
    [
        (F4, 1e30, {"grad_scale": 1e-20}, False),
        (F4, 1e30, {"grad_scale": 1e-20, "maximize": True}, False),
        (F4, 1e30, {"grad_scale": 1e-8}, True),
        (F4, 3e38, {"grad_scale": 0.9}, True),
        (F4, 3e38, {"grad_scale": 0.8}, False),
        (F4, 1e30, {"grad_scale": 1e-20, "clip_value": 1.0}, True),
        (F4, 1e30, {"grad_scale": 1e-20, "clip_norm": 1.0}, True),
        (F4, 1e30, {"grad_scale": 1e-20, "clip_norm": 1e39}, False),
        (F4, 1e-30, {"grad_scale": 1e-30}, True),
        (np.float16, 6e4, {"grad_scale": 1e-30}, True),
        (bfloat16, 3e38, {"grad_scale": 0.5}, False),
        (np.float64, 1e30, {"grad_scale": 1e-20}, True),
        (np.float64, 1e300, {"grad_scale": 1e-20}, False),
        (np.float64, 1e300, {"grad_scale": 1e-20, "clip_norm": 1.0}, True),
        (np.float64, -1.7e308, {}, True),
        (F4, math.inf, {"clip_value": 1.0}, False),
    ],
)
def test_nonfinite_is_of_what_the_rule_sees(
    dtype: Any, g: float, options: dict[str, Any], seen: bool, backend: Backend
) -> None:
    params = [np.ones(5000, dtype), np.ones(0, dtype), np.ones(70, dtype)]
    grads = [np.zeros(5000, dtype), np.zeros(0, dtype), np.zeros(70, dtype)]
    grads[2][69] = g
    for policy in ("skip", "raise"):
        opt = schuss.Adam(params, nonfinite=policy, backend=backend, **options)
        kept = everything(opt, params)
        if seen:
            assert opt.step(grads)
            assert all(np.isfinite(x.astype(float)).all() for x in params)
            assert np.isfinite(opt.state[2]["exp_avg"]).all()
        elif policy == "skip":
            assert opt.step(grads) is False
            assert opt.skipped_steps == 1
        else:
            why = "are not finite" if math.isinf(g) else "overflow when grad_scale divides them"
            with pytest.raises(FloatingPointError, match=rf"grads\[2\]: .* {why}"):
                opt.step(grads)
        assert seen or everything(opt, params) == kept


def bits(params: list[np.ndarray]) -> list[bytes]:
    return [x.tobytes() for x in params]


def everything(opt: Optimizer, params: list[np.ndarray]) -> Any:
    state = {k: {n: np.asarray(a).tobytes() for n, a in s.items()} for k, s in opt.state.items()}
    return [x.tobytes() for x in params], state, opt.state_dict()["shared"], opt.iterations


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(rules.RULES),
    backend=st.sampled_from(["compiled", "numpy"]),
    dtype=st.sampled_from(["float32", "float64", "float16", "bfloat16"]),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    where=st.integers(0, 9000 + 33 + 1 - 1),
    before=st.integers(0, 2),
    policy=st.sampled_from(["skip", "raise"]),
)
def test_a_step_that_is_not_finite_leaves_no_trace(
    rule: Any, backend: Backend, dtype: str, bad: float, where: int, before: int, policy: str
) -> None:
    """Wherever the element is, the first step included."""
    sizes = [9000, 33, 1]
    params = [np.ones(n).astype(dtype) for n in sizes]
    opt = rule(params, nonfinite=policy, backend=backend, ema=0.9, master=True)
    good = [np.full(n, 0.5).astype(dtype) for n in sizes]
    for _ in range(before):
        assert opt.step(good, loss=1.0)
    kept = everything(opt, params)
    flat = np.full(sum(sizes), 0.5)
    flat[where] = bad
    spoilt = [g.astype(dtype) for g in np.split(flat, np.cumsum(sizes)[:-1])]
    if policy == "skip":
        assert opt.step(spoilt, loss=2.0) is False
        assert opt.skipped_steps == 1
    else:
        name = 0 if where < 9000 else 1 if where < 9033 else 2
        with pytest.raises(FloatingPointError, match=rf"grads\[{name}\]: has elements"):
            opt.step(spoilt, loss=2.0)
    assert everything(opt, params) == kept
    assert opt.step(good, loss=3.0)


def test_finite_numbers_whose_squares_overflow_are_finite() -> None:
    x = np.zeros(3)
    assert schuss.SGD(x, nonfinite="skip").step(np.full(3, 1e200))


def test_loss_scale() -> None:
    scale = schuss.LossScale(init=8.0, growth=4.0, backoff=0.5, interval=2)
    x = np.zeros(2, F4)
    opt = schuss.SGD(x, lr=1.0, grad_scale=scale, nonfinite="skip", zero_grad=True)
    seen = []
    for bad in (False, True, False, False, False, False):
        g = np.full(2, math.inf if bad else float(scale), F4)
        assert opt.step(g) is not bad
        assert not g.any()
        seen.append(float(scale))
    assert seen == [8, 4, 4, 16, 16, 64]
    assert (x == -5).all()
    assert opt.skipped_steps == 1
    other = schuss.SGD(x.copy(), grad_scale=schuss.LossScale(), nonfinite="skip")
    other.load_state_dict(opt.state_dict())
    assert float(other.grad_scale) == 64
    assert other.skipped_steps == 1
    y = np.zeros(2, F4)
    schuss.functional.sgd(y, np.full(2, 8, F4), step=1, lr=1.0, grad_scale=schuss.LossScale(8.0))
    assert (y == -1).all()
    for wrong in ({"init": 0}, {"growth": 1}, {"backoff": 1}, {"interval": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: "):
            schuss.LossScale(**wrong)


# ---- 16 bits


@pytest.mark.parametrize("dtype", ["float16", bfloat16])
def test_small_steps_are_lost_without_a_master_or_chance(dtype: Any) -> None:
    """A thousand steps of a thousandth of the spacing: nothing, all of it, or about all of it."""
    n = 4096
    plain, master, chance = (np.ones(n, dtype) for _ in range(3))
    spacing = float(np.nextafter(np.ones(1, dtype), np.zeros(1, dtype))[0] - 1)
    g = np.ones(n, F4)
    options: list[dict[str, Any]] = [{}, {"master": True}, {"stochastic_rounding": True, "seed": 3}]
    for x, o in zip((plain, master, chance), options, strict=True):
        opt = schuss.SGD(x, lr=-spacing / 1000, **o)
        for _ in range(1000):
            opt.step(g)
    assert (plain == 1).all()
    assert np.allclose(master.astype(float), 1 + spacing, atol=1e-6)
    assert abs(chance.astype(float).mean() - 1 - spacing) < 0.1 * abs(spacing)
    assert np.unique(chance).size > 1


def test_state_types_are_chosen_one_by_one() -> None:
    opt = schuss.Adam(np.ones(8, F4), state_dtype={"exp_avg": "bfloat16"})
    assert [str(opt.state[0][k].dtype) for k in ("exp_avg", "exp_avg_sq")] == [
        "bfloat16",
        "float32",
    ]
    opt = schuss.Adam(np.ones(8, bfloat16), state_dtype="float16", master=True, ema=0.9)
    kinds = {k: str(a.dtype) for k, a in opt.state[0].items() if k != "step"}
    assert kinds == {
        "exp_avg": "float16",
        "exp_avg_sq": "float16",
        "master": "float32",
        "ema": "float32",
    }
    assert opt.nbytes == 8 * (2 + 2 + 4 + 4)
    assert schuss.Adam(np.ones(8, bfloat16)).nbytes == 8 * 8


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"state_dtype": "int8"}, "state_dtype: int8 is unknown; wanted float32 or bfloat16"),
        ({"state_dtype": {"sum": "float16"}}, "state_dtype: no state 'sum'; params[0] has"),
        ({"master": True, "stochastic_rounding": True}, "stochastic_rounding: not with master"),
        ({"grad_scale": schuss.LossScale()}, 'grad_scale: a LossScale needs nonfinite="skip"'),
        ({"ema": 1.0}, "ema: 1.0 is out of range"),
        ({"nonfinite": "ignore"}, "nonfinite: 'ignore' is unknown"),
        ({"clip_norm": 0.0}, "clip_norm: 0.0 is out of range"),
        ({"l1_mode": "l2"}, "l1_mode: 'l2' is unknown"),
    ],
)
def test_wrong_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as info:  # noqa: PT011  the message is looked at below
        schuss.Adam(np.ones(3, F4), **options)
    assert says in str(info.value)


def test_options_that_exclude_one_another() -> None:
    with pytest.raises(ValueError, match=r"state_dtype: params\[0\] is float64, and so is its"):
        schuss.Adam(np.ones(3), state_dtype="float16")
    with pytest.raises(ValueError, match="clip_value: not with clip_norm"):
        schuss.Adam(np.ones(3), clip_norm=1.0, clip_value=1.0)
    opt = schuss.Adam(np.ones(3))
    with pytest.raises(ValueError, match=r"ema: 0\.5 comes too late"):
        opt.ema_decay = 0.5


def test_types_that_go_together() -> None:
    """All in float64, or each of the others as one likes."""
    for parameter in (F4, np.float16, bfloat16):
        opt = schuss.SGD(np.ones(3, parameter))
        for gradient in (F4, np.float16, bfloat16):
            assert opt.step(np.ones(3, gradient))
        with pytest.raises(TypeError, match=r"float64, but params\[0\] is"):
            opt.step(np.ones(3))
    with pytest.raises(TypeError, match=r"bfloat16, but params\[0\] is float64"):
        schuss.SGD(np.ones(3)).step(np.ones(3, bfloat16))


@pytest.mark.parametrize(
    "options", [{"master": True}, {"stochastic_rounding": True, "seed": 5}, {}]
)
def test_resume_in_16_bits(options: dict[str, Any]) -> None:
    def trained(steps: int) -> tuple[Optimizer, np.ndarray]:
        x = np.linspace(-1, 1, 99).astype(bfloat16)
        opt = schuss.AdamW(x, lr=0.01, ema=0.5, **options)
        train(opt, x, steps)
        return opt, x

    def train(opt: Optimizer, x: np.ndarray, steps: int) -> None:
        for _ in range(steps):
            opt.step(np.cos(x.astype(F4) + opt.iterations))

    six, want = trained(6)
    opt, x = trained(3)
    other = schuss.AdamW(x.copy(), lr=0.01, ema=0.5, **options)
    other.load_state_dict(opt.state_dict())
    for again in (opt, other, copy.deepcopy(opt)):
        y = again.param_groups[0]["params"][0]
        train(again, y, 3)
        assert y.tobytes() == want.tobytes()
        assert again.ema["0"].tobytes() == six.ema["0"].tobytes()
