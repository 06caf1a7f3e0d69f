"""Projections against their definition: in the set, and nearer than anything else there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.optimize as so  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from schuss.projections import ball, nonnegative, simplex

numbers = st.floats(-1e6, 1e6, width=32)
arrays = st.lists(numbers, min_size=1, max_size=40).map(np.array)
CASES: dict[str, Callable[[Any], Any]] = {
    "nonnegative": nonnegative,
    "simplex": simplex,
    "simplex3": lambda x: simplex(x, total=3.0),
    "ball": ball,
    "ball1": lambda x: ball(x, 2.0, norm=1),
    "ball_inf": lambda x: ball(x, 0.5, norm=math.inf),
}


def outside(name: str, x: np.ndarray) -> float:
    """How far x is from the set."""
    if name == "nonnegative":
        return float(-x.min(initial=0.0))
    if name.startswith("simplex"):
        return max(abs(math.fsum(x) - (3.0 if name == "simplex3" else 1.0)), -float(x.min()))
    radius, norm = {"ball": (1.0, 2), "ball1": (2.0, 1), "ball_inf": (0.5, np.inf)}[name]
    return max(0.0, float(np.linalg.norm(x, norm)) - radius)


@settings(deadline=None, max_examples=100)
@given(x=arrays, seed=st.integers(0, 2**32 - 1), name=st.sampled_from(list(CASES)))
def test_the_nearest_point_of_the_set(x: np.ndarray, seed: int, name: str) -> None:
    """No point of the set makes an acute angle with the way to it."""
    project, before = CASES[name], x.copy()
    assert project(x) is x
    size = 1e-10 * (1 + np.abs(before).max())
    assert outside(name, x) <= size
    again = project(x.copy())
    np.testing.assert_allclose(again, x, rtol=1e-12, atol=size)
    other = project(np.random.default_rng(seed).normal(size=x.size) * np.abs(before).max() * 2)
    assert (before - x) @ (other - x) <= size * np.abs(before - x).sum() + size


def test_the_simplex_beside_scipy(rng: np.random.Generator) -> None:
    y = rng.standard_normal(6)
    theirs = so.minimize(
        lambda x: ((x - y) ** 2).sum(), np.full(6, 1 / 6), method="SLSQP", tol=1e-12,
        bounds=[(0, None)] * 6, constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
    )  # fmt: skip
    np.testing.assert_allclose(simplex(y), theirs.x, atol=1e-6)


def test_known_points() -> None:
    assert (simplex(np.array([0.5, 0.5])) == [0.5, 0.5]).all()
    assert (simplex(np.array([3.0, 0.0, -7.0])) == [1, 0, 0]).all()
    assert (simplex(np.array([1e300, 1e300])) == [0.5, 0.5]).all()
    assert (simplex(np.array([5.0]), 2.0) == 2).all()
    np.testing.assert_allclose(simplex(np.array([[0.4, 0.8], [-1, 0.3]])).sum(), 1)
    assert (ball(np.array([3.0, 4.0])) == [0.6000000000000001, 0.8]).all()
    assert (ball(np.array([0.3, 0.4])) == [0.3, 0.4]).all()
    np.testing.assert_allclose(ball(np.array([3e300, 4e300])), [0.6, 0.8])
    np.testing.assert_allclose(ball(np.array([3e-300, 4e-300]), 1e-300), [6e-301, 8e-301])
    assert (ball(np.array([3.0, -1.0]), norm=1) == [1, 0]).all()
    assert (ball(np.array([2.0, -2.0]), norm=1) == [0.5, -0.5]).all()
    assert (ball(np.array([2.0, -0.5, np.nan]), norm=np.inf)[:2] == [1, -0.5]).all()
    assert np.isnan(nonnegative(np.array([np.nan]))).all()
    largest = np.finfo(np.float64).max
    assert (ball(np.full(4, largest)) == 0.5).all()  # whose norm is no number
    assert (ball(np.full(4, largest), norm=1) == 0.25).all()
    assert (simplex(np.array([largest, 0.0, -largest])) == [1, 0, 0]).all()
    assert (ball(np.array([3, -4], np.float16), 1e6, norm=math.inf) == [3, -4]).all()
    for dtype in (np.float16, np.float32):  # both of which are nearest to 0.1 from above, or below
        for radius in (0.1, 0.3, 1e-9):
            assert np.abs(ball(np.ones(1, dtype), radius, norm=math.inf).astype(float)) <= radius
    empty = np.zeros(0)
    for name in ("nonnegative", "ball", "ball1", "ball_inf"):
        assert CASES[name](empty) is empty


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_types_orders_and_lengths(name: str, dtype: str, rng: np.random.Generator) -> None:
    """Computed in double, rounded once; how the elements lie makes no difference to the bits."""
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    x = rng.standard_normal((70, 90)).astype(kind)
    expected = CASES[name](x.astype(np.float64)).astype(kind)
    f = np.asfortranarray(x)
    spread = np.zeros((70, 180), kind)[:, ::2]
    spread[...] = x
    assert CASES[name](x).dtype == kind
    assert x.tobytes() == expected.tobytes()
    CASES[name](spread)
    assert spread.tobytes() == expected.tobytes()
    CASES[name](f)
    if name != "ball":  # whose sum follows the order in memory, as the gradients' norm
        assert f.tobytes("C") == expected.tobytes()
    else:
        np.testing.assert_allclose(f.astype(float), expected.astype(float), rtol=1e-2)


@pytest.mark.parametrize("name", ["simplex", "ball", "ball1"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_nearest_point(name: str, bad: float) -> None:
    x = np.array([1.0, bad])
    with pytest.raises(ValueError, match="not finite"):
        CASES[name](x)
    assert x[0] == 1


def test_wrong_arguments() -> None:
    frozen = np.ones(3)
    frozen.flags.writeable = False
    x = np.ones(3)
    wrong: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: simplex([1.0]), TypeError, "x: not a numpy.ndarray"),  # type: ignore[arg-type]
        (lambda: simplex(np.arange(3)), TypeError, "x: int64; wanted floating-point"),
        (lambda: nonnegative(np.zeros(2, "V2")), TypeError, r"x: \|V2; wanted floating-point"),
        (lambda: ball(np.ones(2, complex)), TypeError, r"pass z.view\(np.float64\)"),
        (lambda: nonnegative(frozen), ValueError, "x: read-only"),
        (lambda: simplex(x, 0), ValueError, r"total: 0.0 is out of range, wanted \(0, inf\)"),
        (lambda: simplex(np.ones(0)), ValueError, "x: has no elements"),
        (lambda: ball(x, -1), ValueError, "radius: -1.0 is out of range"),
        (lambda: ball(x, norm=3), ValueError, "norm: 3 is unknown; wanted 1 or 2 or inf"),
    ]
    for call, error, says in wrong:
        with pytest.raises(error, match=says):
            call()
    assert (x == 1).all()
