"""What a step reports of itself: the same bits everywhere, those of plain NumPy to rounding."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import numpy as np
import pytest

import schuss
from exact.combinations import by_kind, losses, nasty, same_bits, takes
from exact.ends import Ends, ends, everywhere, require_same
from schuss import rules
from schuss.engine.declare import Backend
from schuss.engine.optimizer import Optimizer

STEPS = 4
F4, F8 = np.float32, np.float64
SHAPES: list[tuple[int, ...]] = [(257,), (), (0,), (3, 4), (3 * 4096 + 5,)]
BACKENDS: list[Backend] = ["compiled", "numpy"]

pytestmark = pytest.mark.usefixtures("many_threads", "any_isa")


def reported(opt: Optimizer) -> Any:
    """What the last step reported."""
    assert opt.report is not None
    return opt.report


def norms(opt: Optimizer) -> Ends:
    """All of it."""
    report = reported(opt)
    found = {f"report of {name}": np.array(tuple(own), F8) for name, own in report.items()}
    return found | {"report": np.array([report.grad, report.update, report.param])}


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("float32", {}),
    ("float64", {"weight_decay": 0.1, "decay_mode": "masked", "clip_norm": 0.5}),
    ("float32", {"state_dtype": "blockfloat8", "cautious": "mean", "zero_grad": True}),
    ("float32", {"clip_value": 0.5, "l2": 0.1, "l1": 0.1, "maximize": True, "grad_scale": 8.0}),
    ("bfloat16", {"master": "remainder", "bounds": (-0.5, 0.5), "ema": 0.9}),
    ("bfloat16", {"state_dtype": "bfloat16", "stochastic_rounding": True}),
    ("float16", {"l1": 0.1, "l1_mode": "prox", "subnormals": "keep"}),
]


@functools.cache
def training(dtype: str) -> list[list[np.ndarray]]:
    """Parameters, and the gradients of each step."""
    rng = np.random.default_rng(31)
    return [
        [nasty(rng, math.prod(s), dtype, 0, wild=t == 2).reshape(s) for s in SHAPES]
        for t in range(-1, STEPS)
    ]


@pytest.mark.parametrize("rule", by_kind())
def test_reports_are_the_same_everywhere(rule: type[Optimizer]) -> None:
    """And change no bit of the step."""
    for dtype, chosen in OPTIONS:
        options = {k: v for k, v in chosen.items() if k != "decay_mode" or takes(rule, **chosen)}

        def run(
            backend: Backend, report: bool = True, dtype: Any = dtype, options: Any = options
        ) -> Ends:
            x, *steps = copy.deepcopy(training(dtype))
            opt = rule(x, backend=backend, **options)
            found: Ends = {}
            for t, g in enumerate(steps):
                opt.step(g, loss=losses(t), report=report)
                if report:
                    found |= {f"{key}, step {t}": a for key, a in norms(opt).items()}
            return found | ends(opt)

        why = f"{rule.__name__} {dtype} {options}"
        found, plain = everywhere(run, why), run("compiled", report=False)
        require_same({key: found[key] for key in plain}, plain, why)


def close(found: float, want: Any, *, rel: float = 1e-12, lost: Any = 0.0) -> bool:
    """To rounding, where so much of the value was lost."""
    return bool(abs(found - want) <= rel * want + lost)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", rules.RULES)
def test_by_plain_numpy(rule: type[Optimizer], backend: Backend) -> None:
    """The gradient as it is given, the way of x, and x before the step."""
    rng = np.random.default_rng(32)
    x = {str(k): rng.standard_normal(s) for k, s in enumerate(SHAPES)}
    opt = rule(x, backend=backend, weight_decay=0.0)
    for t in range(STEPS):
        g = {name: rng.standard_normal(a.shape) for name, a in x.items()}
        before = {name: a.copy() for name, a in x.items()}
        opt.step(g, loss=losses(t), report=True)
        report = reported(opt)
        # All of x is Ftrl's update: it keeps nothing.
        way = {k: a if rule is schuss.Ftrl else before[k] - a for k, a in x.items()}
        for name, own in report.items():
            assert close(own.grad, np.linalg.norm(g[name]))
            assert close(own.param, np.linalg.norm(before[name]))
            # The way of x is rounded as x is.
            lost = 4e-16 * (np.linalg.norm(before[name]) + np.linalg.norm(x[name]))
            assert close(own.update, np.linalg.norm(way[name]), lost=lost), name
        for key in ("grad", "update", "param"):
            each = [getattr(own, key) for own in report.values()]
            assert close(getattr(report, key), math.hypot(*each))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_measured(backend: Backend) -> None:
    """The gradient behind scale, clip and the coupled decays; the update behind caution, and before
    the weight decay and all that follows.
    """
    rng = np.random.default_rng(33)
    x, g = rng.standard_normal(9000), rng.standard_normal(9000)
    before = x.copy()
    opt = schuss.SGD(
        x,
        lr=0.5,
        grad_scale=4.0,
        maximize=True,
        clip_value=0.2,
        l2=0.3,
        l1=0.1,
        cautious="mean",
        weight_decay=0.7,
        decay_mode="decoupled",
        bounds=(-0.1, 0.1),
        backend=backend,
    )
    opt.step(g, report=True)
    seen = np.clip(-g / 4, -0.2, 0.2) + 0.3 * before + 0.1 * np.sign(before)
    own = reported(opt)["0"]
    assert close(own.grad, np.linalg.norm(seen))
    assert close(own.update, np.linalg.norm(0.5 * seen))  # whose signs all agree
    assert close(own.param, np.linalg.norm(before))


@pytest.mark.parametrize("backend", BACKENDS)
def test_caution_counts(backend: Backend) -> None:
    rng = np.random.default_rng(34)
    x = np.zeros(5000)
    opt = schuss.Momentum(x, lr=1.0, cautious="plus1", backend=backend)
    for _ in range(5):
        before = x.copy()
        opt.step(rng.standard_normal(5000), report=True)
        assert (x == before).any() == (opt.iterations > 1)
        assert close(reported(opt)["0"].update, np.linalg.norm(x - before), lost=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_master_is_what_is_measured(backend: Backend, dtype: str) -> None:
    x = np.linspace(-1, 1, 5000).astype(dtype)
    opt = schuss.SGD(x, lr=1e-3, master=True, backend=backend)
    for _ in range(3):
        master = opt.state[0]["master"].astype(F8)
        opt.step(np.ones(5000, F4), report=True)
        own = reported(opt)["0"]  # of sums in float32 within blocks
        assert close(own.param, np.linalg.norm(master), rel=1e-6)
        assert close(own.update, math.sqrt(5000) * 1e-3, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_none_before_and_arrays_without_a_gradient(backend: Backend) -> None:
    x = {"a": np.ones(3), "b": np.ones(3)}
    opt = schuss.Adam(x, backend=backend)
    assert opt.report is None
    opt.step({"a": np.ones(3), "b": np.ones(3)})
    assert opt.report is None
    opt.step({"a": None, "b": np.ones(3)}, report=True)
    report = reported(opt)
    assert list(report) == ["b"]
    assert (report.grad, report.update, report.param) == report["b"]
    assert tuple(report["b"]._fields) == ("grad", "update", "param")
    with pytest.raises(KeyError):
        report["a"]


def test_rows_are_measured_as_they_step() -> None:
    """Of the rows that the gradient is of, summed; for each way of counting them."""
    rng = np.random.default_rng(35)
    index, values = rng.integers(0, 40, 30), rng.standard_normal((30, 70)).astype(F4)
    rows = np.unique(index)
    dense = np.zeros((40, 70))
    np.add.at(dense, index, values)
    for mode in ("lazy", "counted", "decayed"):

        def run(backend: Backend, mode: Any = mode) -> Ends:
            x = np.ones((40, 70), F4)
            opt = schuss.AdamW(x, rows=mode, backend=backend)
            opt.step(schuss.Rows(index[:5], values[:5]), report=True)
            before = x.astype(F8)[rows]
            opt.step(schuss.Rows(index, values), report=True)
            own = reported(opt)["0"]
            assert own.grad == pytest.approx(np.linalg.norm(dense), rel=1e-5)
            if mode != "decayed":  # in which x moves before it is measured
                assert own.param == pytest.approx(np.linalg.norm(before), rel=1e-6)
            return norms(opt) | ends(opt)

        everywhere(run, mode)


def test_pieces_are_measured_in_their_sum() -> None:
    rng = np.random.default_rng(36)
    pieces = [rng.standard_normal(9000).astype(F4) for _ in range(3)]

    def run(backend: Backend) -> Ends:
        opt = schuss.Adam(np.ones(9000, F4), backend=backend)
        opt.step(pieces=pieces, report=True)
        return norms(opt)

    found = everywhere(run)
    want = np.linalg.norm(np.mean(np.array(pieces, F8), axis=0))
    assert found["report of 0"][0] == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "most"), [(F4, 1e18), (F8, 1e152)])
def test_large_and_not_finite(dtype: Any, most: float, backend: Backend) -> None:
    """Squares that the type that is computed in has room for; a NaN is one in the report, too."""
    opt = schuss.SGD({"x": np.ones(100, dtype), "y": np.ones(3, dtype)}, backend=backend)
    opt.step({"x": np.full(100, most, dtype), "y": np.ones(3, dtype)}, report=True)
    assert close(reported(opt)["x"].grad, 10 * most, rel=1e-6)
    assert close(reported(opt).grad, 10 * most, rel=1e-6)
    opt.step({"x": np.full(100, np.nan, dtype), "y": np.ones(3, dtype)}, report=True)
    assert np.isnan(reported(opt)["x"].grad)
    assert np.isnan(reported(opt).update)
    assert close(reported(opt)["y"].grad, math.sqrt(3), rel=1e-6)


def test_a_step_that_is_not_taken_reports_nothing_new() -> None:
    opt = schuss.SGD({"x": np.ones(3)}, nonfinite="skip")
    opt.step({"x": np.ones(3)}, report=True)
    before = norms(opt)
    assert opt.step({"x": np.full(3, np.nan)}, report=True) is False
    assert all(same_bits(a, before[key]) for key, a in norms(opt).items())
