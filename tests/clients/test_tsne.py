"""t-SNE: descents of scikit-learn and openTSNE, and the rule that has their gains."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest

import schuss
from clients.recipes import run

MISSING = "is not installed: its t-SNE was not compared"
Objective = Callable[..., tuple[float, np.ndarray]]


def bowl(dtype: type[Any]) -> Objective:
    """An objective whose gradients change their signs in the course of a descent."""
    rng = np.random.default_rng(0)
    scale, to = rng.uniform(0.1, 2, 60).astype(dtype), rng.standard_normal(60).astype(dtype)

    def objective(p: np.ndarray, *args: Any, compute_error: bool = True) -> tuple[float, Any]:
        off = p.ravel() - to
        error = float(np.sum(scale * off * off)) if compute_error else np.nan
        return error, (scale * off + dtype(0.3) * np.sin(3 * off)).reshape(p.shape)

    return objective


def test_recipe() -> None:
    pytest.importorskip("sklearn", reason=f"scikit-learn {MISSING}")
    descend = run("t-SNE")["descend"]
    theirs = import_module("sklearn.manifold._t_sne")._gradient_descent
    cases: list[tuple[int, int, dict[str, Any]]] = [
        (0, 250, {"momentum": 0.5, "n_iter_check": 50}),
        (250, 300, {"momentum": 0.8, "n_iter_check": 7}),
        (0, 1000, {"n_iter_check": 10, "min_grad_norm": 1e-3}),  # ends early
        (0, 1000, {"n_iter_check": 10, "n_iter_without_progress": 20, "min_grad_norm": 0.0}),
        (5, 5, {}),
    ]
    for dtype, near in ((np.float32, 1e-4), (np.float64, 1e-11)):
        start = np.random.default_rng(1).standard_normal((30, 2)).astype(dtype)
        for it, max_iter, options in cases:
            given = (start, it, max_iter)
            want, want_error, want_last = theirs(bowl(dtype), *given, learning_rate=0.1, **options)
            p, error, last = descend(bowl(dtype), *given, learning_rate=0.1, **options)
            assert (p.shape, p.dtype) == (want.shape, want.dtype)
            np.testing.assert_allclose(p, want, atol=near)
            if dtype is np.float64:
                assert last == want_last
            if max_iter > it:
                assert error == pytest.approx(want_error, rel=near)


def test_gains_of_open_tsne() -> None:
    """They begin at 1.2, and shrink by a factor; openTSNE's min_gain, which it adds, is 0 here."""
    open_tsne = pytest.importorskip("openTSNE.tsne", reason=f"openTSNE {MISSING}")
    objective = bowl(np.float64)
    y = np.random.default_rng(1).standard_normal((30, 2))
    want, descent = y.copy(), open_tsne.gradient_descent()

    def theirs(y: np.ndarray, *args: Any, **options: Any) -> tuple[float, np.ndarray]:
        return objective(np.asarray(y))

    opt = schuss.DeltaBarDelta(
        {"y": y}, preset="tsne", lr=0.1, momentum=0.5, gain_min=0.0, initial_gain=1.2
    )
    for momentum in (0.5, 0.8):
        descent(want, np.ones(1), 40, theirs, 0.1, momentum, min_gain=0.0, max_step_norm=None)
        opt.momentum = momentum
        for _ in range(40):
            opt.step({"y": objective(y)[1]})
            y -= y.mean(axis=0)
    np.testing.assert_allclose(y, want, atol=1e-12)
