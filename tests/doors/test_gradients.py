"""Central differences against derivatives, SciPy's differences, and what a step too large costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize as so  # type: ignore[import-untyped]
from scipy.optimize import rosen, rosen_der

import schuss


def wave(w: np.ndarray) -> float:
    return float(w[0] * np.cos(0.15 * np.pi * w[0]))


@pytest.mark.parametrize(("step", "error"), [(1e-2, 3.7e-6), (1e-4, 3.7e-10), (None, 2e-11)])
def test_central_differences(step: float | None, error: float) -> None:
    a = 0.15 * np.pi
    exact = np.cos(2 * a) - 2 * a * np.sin(2 * a)
    found = schuss.numerical_gradient(wave, np.array([2.0]), step=step)
    assert abs(found[0] - exact) < 1.05 * error
    theirs = so.approx_fprime(np.array([2.0]), wave)
    assert abs(found[0] - exact) < abs(theirs[0] - exact) or step == 1e-2


def test_differences_are_those_of_minimize(rng: np.random.Generator) -> None:
    x = 3 * rng.standard_normal(6)
    r = schuss.minimize(rosen, x, method="adam", options={"maxiter": 0})
    assert (schuss.numerical_gradient(rosen, x) == r.jac).all()


def test_differences_in_a_structure_of_arrays(rng: np.random.Generator) -> None:
    """What a trainer has: arrays that its loss reads by itself, and that come back bit for bit."""
    params: dict[str, Any] = {"w": rng.standard_normal((3, 2)), "layers": [np.array([-0.0, np.pi])]}
    before = {"w": params["w"].copy(), "b": params["layers"][0].copy()}

    def loss(_: Any) -> float:
        return float((params["w"] ** 2).sum() / 2 + np.sin(params["layers"][0]).sum())

    right = {"w": params["w"], "layers": [np.cos(params["layers"][0])]}
    assert schuss.check_grad(loss, right, params) < 1e-8
    assert schuss.check_grad(loss, lambda p: right, params) < 1e-8
    wrong = {"w": params["w"], "layers": [right["layers"][0] + np.array([0, 0.1])]}
    assert schuss.check_grad(loss, wrong, params) == pytest.approx(0.1, rel=1e-6)
    assert params["w"].tobytes() == before["w"].tobytes()
    assert params["layers"][0].tobytes() == before["b"].tobytes()
    steps = {"w": 1e-3, "layers": [np.array([1e-2, 1e-4])]}
    g = schuss.numerical_gradient(loss, params, step=steps)
    np.testing.assert_allclose(g["layers"][0], right["layers"][0], rtol=2e-5)
    single: dict[str, np.ndarray] = {"w": params["w"].astype(np.float32)}
    g = schuss.numerical_gradient(lambda p: (p["w"].astype(float) ** 2).sum() / 2, single)
    assert g["w"].dtype == np.float32
    np.testing.assert_allclose(g["w"], single["w"], rtol=1e-4, atol=1e-4)


def test_check_grad_at_a_minimum_and_beside_scipy() -> None:
    ones = np.ones(4)
    assert schuss.check_grad(rosen, rosen_der, ones) < 1e-2
    x = np.linspace(-1, 1, 4)
    assert schuss.check_grad(rosen, rosen_der, x) < 1e-9
    assert schuss.check_grad(rosen, lambda x: 1.01 * rosen_der(x), x) == pytest.approx(
        0.01 / 1.01, rel=1e-3
    )
    assert so.check_grad(rosen, rosen_der, x) < 1e-4


@pytest.mark.parametrize("wrong", ["a", "b"])
def test_a_nan_in_any_array_is_an_error(wrong: str) -> None:
    x = {"a": np.ones(2), "b": np.ones(3)}
    grad = {"a": np.ones(2), "b": np.ones(3)}
    assert schuss.check_grad(lambda x: x["a"].sum() + x["b"].sum(), grad, x) < 1e-9
    grad[wrong][-1] = np.nan
    assert np.isnan(schuss.check_grad(lambda x: x["a"].sum() + x["b"].sum(), grad, x))


def test_an_error_leaves_the_array_as_it_was() -> None:
    x = np.array([0.1, 0.3])
    before = x.tobytes()

    def fails(x: np.ndarray) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        schuss.numerical_gradient(fails, x)
    assert x.tobytes() == before
    frozen = x.copy()
    frozen.flags.writeable = False
    wrong: list[tuple[Any, Any, Any, type[Exception], str]] = [
        (rosen, frozen, None, ValueError, r"x\[0\]: read-only"),
        (rosen, np.arange(3), None, TypeError, r"x\[0\]: int64; wanted floating-point"),
        (rosen, [1.0, 2.0], None, TypeError, r"x\[0\]: not a numpy.ndarray"),
        (lambda x: x, x, None, ValueError, r"f: returned shape \(2,\); wanted a number"),
        (rosen, x, np.ones(3), ValueError, r"step: shape \(3,\), but x\[0\] has \(2,\)"),
        (rosen, x, 0.0, ValueError, "step: 0.0 is out of range"),
        (rosen, x + 1e9, 1e-9, ValueError, "step: 1e-09 is lost beside"),
        (
            np.min,
            np.array([1.0, 1.79769e308]),
            None,
            ValueError,
            "x: .*1.79769e.308.* is not finite",
        ),
        (np.sum, np.array([1.0, -np.inf]), None, ValueError, "x: .*inf.* is not finite"),
        (rosen, np.ones(2, np.complex64), None, TypeError, r"pass z.view\(np.float32\)"),
    ]
    for f, at, step, error, says in wrong:
        with pytest.raises(error, match=says):
            schuss.numerical_gradient(f, at, step=step)
    with pytest.raises(ValueError, match=r"grad\[0\]: shape \(3,\), wanted \(2,\)"):
        schuss.check_grad(rosen, np.ones(3), x)
