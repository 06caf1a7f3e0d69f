"""Derivatives by differences: each kind's order, the bounds, and functions of several values."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")

from schuss.scipy.differences import KINDS, Differences

X = np.array([0.5, -2.0, 3.0])
FREE = np.full(3, np.inf)


def several(x: np.ndarray) -> np.ndarray:
    return np.array([np.sin(x[0]) * x[1], x[1] ** 2 + np.exp(x[2])])


def jacobian(x: np.ndarray) -> np.ndarray:
    return np.array([[np.cos(x[0]) * x[1], np.sin(x[0]), 0], [0, 2 * x[1], np.exp(x[2])]])


def differences(low: np.ndarray, high: np.ndarray, eps: np.ndarray | None = None) -> Differences:
    return Differences(low, high, eps)


@pytest.mark.parametrize(("kind", "near"), [("2-point", 1e-6), ("3-point", 1e-8), ("cs", 1e-14)])
def test_derivatives(kind: str, near: float) -> None:
    found = differences(-FREE, FREE)(several, X, kind)
    np.testing.assert_allclose(found, jacobian(X), rtol=near, atol=near)
    alone = differences(-FREE, FREE)(lambda x: several(x)[1], X, kind)
    assert np.array_equal(alone, found[1])


@pytest.mark.parametrize("kind", ["2-point", "3-point"])
@pytest.mark.parametrize(
    ("below", "above"),
    [(0.0, 1.0), (1.0, 0.0), (1e-7, 1.0), (1.0, 1e-7), (1e-4, 2e-4), (2e-4, 1e-4), (0.0, 1e-3)],
)
@pytest.mark.parametrize("eps", [None, 0.01])
def test_no_point_lies_beyond_the_bounds(
    kind: str, below: float, above: float, eps: float | None
) -> None:
    low, high = X - below, X + above
    seen = []

    def watched(x: np.ndarray) -> np.ndarray:
        seen.append(x.copy())
        return several(x)

    found = differences(low, high, None if eps is None else np.array(eps))(watched, X, kind)
    assert all((low <= x).all() and (x <= high).all() for x in seen)
    near = (0.2 if kind == "2-point" else 2e-3) if eps else (1e-5 if kind == "2-point" else 1e-6)
    np.testing.assert_allclose(found, jacobian(X), rtol=near, atol=near)


def test_what_cannot_move_has_no_derivative() -> None:
    low, high = np.array([0.5, -np.inf, -np.inf]), np.array([0.5, np.inf, np.inf])
    for kind in KINDS:
        found = differences(low, high)(several, X, kind)
        assert not found[:, 0].any()
        np.testing.assert_allclose(found[:, 1:], jacobian(X)[:, 1:], rtol=1e-6, atol=1e-6)
        assert not differences(X, X)(several, X, kind).any()


def test_a_step_that_is_lost_is_replaced() -> None:
    found = differences(-FREE, FREE, np.array(1e-30))(several, X)
    np.testing.assert_allclose(found, jacobian(X), rtol=1e-8, atol=1e-8)


def test_a_known_value_is_not_asked_for_again() -> None:
    calls = []

    def counted(x: np.ndarray) -> np.ndarray:
        calls.append(1)
        return several(x)

    differences(-FREE, FREE)(counted, X, "2-point", f0=several(X))
    assert len(calls) == 3
