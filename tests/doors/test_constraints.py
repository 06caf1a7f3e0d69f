"""Minimisation under constraints: known solutions and multipliers, and SciPy's on the same ones."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import scipy.optimize as so  # type: ignore[import-untyped]
import scipy.sparse  # type: ignore[import-untyped]
from scipy.optimize import LinearConstraint, NonlinearConstraint, rosen, rosen_der, rosen_hess

import schuss
from schuss.scipy import KKT, SGD, Adam, AugmentedLagrangian, ConjugateGradient, Newton

START = np.array([-1.2, 1.0])


def parabola(x: np.ndarray) -> float:
    """Least at (1, -2), where it is 3."""
    return float(0.5 * (x[0] - 1) ** 2 + 2 * (x[1] + 2) ** 2 + 3)


def parabola_der(x: np.ndarray) -> np.ndarray:
    gradient: np.ndarray = np.array([1.0, 4.0]) * (x - [1, -2])
    return gradient


# ---- Of a maximum of f, with L = f - sum of lambda*g


def hill(x: np.ndarray) -> float:
    return float(-((x[0] - 2) ** 2) - (x[1] - 1) ** 2 + 10)


HILL: dict[str, Any] = {
    "jac": lambda x: -2 * (x - [2, 1]),
    "hess": lambda x: -2 * np.eye(2),
}
DIAGONAL = [
    {"type": "eq", "fun": lambda x: x[0] - x[1]},
    {"type": "eq", "fun": lambda x, a: a * (x[0] - x[1]), "args": (1.0,),
     "jac": lambda x, a: np.array([a, -a])},
    LinearConstraint([1, -1], 0, 0),
    LinearConstraint(scipy.sparse.csr_array([[1.0, -1.0]]), 0, 0),
    NonlinearConstraint(lambda x: x[0] - x[1], 0, 0),
    NonlinearConstraint(lambda x: x[0] - x[1], 0, 0, jac=lambda x: [[1, -1]],
                        hess=lambda x, v: np.zeros((2, 2))),
]  # fmt: skip


def entropy(p: np.ndarray) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(-(p * np.log(p)).sum())


def entropy_der(p: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        gradient: np.ndarray = -np.log(p) - 1
        return gradient


ENTROPY: dict[str, Any] = {"jac": entropy_der, "hess": lambda p: np.diag(-1 / p)}


@pytest.mark.parametrize("constraint", DIAGONAL)
def test_the_constrained_paraboloid(constraint: Any) -> None:
    """X = y = 1.5, lambda = 1, f = 9.5, in one step of Newton's method from 0."""
    method = KKT(maximize=True)
    r = schuss.minimize(hill, [0, 0], method=method, constraints=constraint, tol=1e-6, **HILL)
    assert r.success
    assert r.nit == 1
    np.testing.assert_allclose([*r.x, *r.multipliers, r.fun], [1.5, 1.5, 1, 9.5], atol=1e-7)
    assert r.maxcv < 1e-9
    r = so.minimize(hill, [0, 0], constraints=constraint, method=AugmentedLagrangian(maximize=True))
    assert r.success
    np.testing.assert_allclose([*r.x, *r.multipliers, r.fun], [1.5, 1.5, 1, 9.5], atol=2e-6)


def test_signs_of_multipliers() -> None:
    """Those of the function that was passed, which is SLSQP's sign and not trust-constr's."""
    down = {"fun": lambda x: -hill(x), "x0": [0, 0], "constraints": DIAGONAL[2]}
    for method in (KKT(), AugmentedLagrangian(), None, "kkt"):
        r = schuss.minimize(**down, method=method)
        assert r.success
        np.testing.assert_allclose([*r.x, *r.multipliers], [1.5, 1.5, -1], atol=2e-6)
    theirs = so.minimize(**down, method="SLSQP")
    np.testing.assert_allclose(getattr(theirs, "multipliers", [-1]), -1, atol=1e-4)
    theirs = so.minimize(**down, method="trust-constr", hess=lambda x: 2 * np.eye(2))
    np.testing.assert_allclose(theirs.v[0], 1, atol=1e-4)
    more = schuss.minimize(**{**down, "constraints": LinearConstraint([1, -1], 1e-3, 1e-3)})
    assert (more.fun - r.fun) / 1e-3 == pytest.approx(r.multipliers[0], abs=1e-3)


def test_what_was_not_wanted_is_no_success() -> None:
    r = schuss.minimize(hill, [0, 0], constraints=DIAGONAL[2], method=KKT(), **HILL)
    assert (r.success, r.status) == (False, 5)
    assert "Not a minimum but a maximum: the least eigenvalue of the Lagrangian's" in r.message
    np.testing.assert_allclose(r.x, 1.5)


@pytest.mark.parametrize(("n", "multiplier"), [(2, -0.30685281944), (5, 0.60943791243)])
def test_entropy(n: int, multiplier: float) -> None:
    """A coin, and five states: all equal."""
    one = LinearConstraint(np.ones((1, n)), 1, 1)
    start = np.linspace(0.2, 0.9, n)
    kkt = schuss.minimize(entropy, start, method=KKT(maximize=True), constraints=one, **ENTROPY)
    augmented = schuss.minimize(
        entropy, start, method=AugmentedLagrangian(maximize=True), constraints=one,
        bounds=so.Bounds(1e-9, 1), jac=entropy_der, tol=1e-9,
    )  # fmt: skip
    for r in (kkt, augmented):
        assert r.success, r
        np.testing.assert_allclose(r.x, 1 / n, atol=1e-8)
        np.testing.assert_allclose(r.multipliers, multiplier, atol=1e-8)
        assert r.fun == pytest.approx(np.log(n), abs=1e-8)


def test_entropy_without_a_constraint() -> None:
    r = schuss.minimize(
        lambda p: -entropy(p), [0.2, 0.9], method=Newton(backtracking=True), tol=1e-9,
        jac=lambda p: -entropy_der(p), hess=lambda p: np.diag(1 / p),
    )  # fmt: skip
    assert r.success
    np.testing.assert_allclose(r.x, 0.36787944117, atol=1e-10)
    assert -r.fun == pytest.approx(0.73575888234)
    r = schuss.minimize(entropy, [0.2, 0.9], method=KKT(maximize=True), **ENTROPY)
    np.testing.assert_allclose(r.x, 0.36787944117, atol=1e-8)  # no constraint is one, too


@pytest.mark.parametrize(
    "method",
    [
        SGD(lr=0.02),
        Adam(lr=schuss.schedules.cosine(0.05, steps=2000, final=1e-4)),
        ConjugateGradient(),
        Newton(),
        "BFGS",
    ],
)
def test_the_augmented_lagrangian_over_other_methods(method: Any) -> None:
    augmented = AugmentedLagrangian(method, growth=1, maximize=True)
    r = schuss.minimize(
        hill, [0, 0], method=augmented, constraints=DIAGONAL[2], jac=HILL["jac"], tol=1e-4
    )
    assert r.success, r
    np.testing.assert_allclose([*r.x, *r.multipliers, r.fun], [1.5, 1.5, 1, 9.5], atol=1e-3)
    assert r.inner_nit >= r.nit > 0


def test_a_rule_under_constraints_is_under_the_augmented_lagrangian() -> None:
    method = SGD(lr=0.02, bounds=(-3.0, 3.0))
    options = {"maxiter": 1000, "return_all": True}
    r = so.minimize(
        lambda x: -hill(x), [0, 0], method=method, constraints=DIAGONAL[0], tol=1e-4,
        options=options,
    )  # fmt: skip
    assert r.success
    np.testing.assert_allclose([*r.x, *r.multipliers], [1.5, 1.5, -1], atol=1e-3)
    assert len(r.allvecs) == r.nit + 1
    with pytest.raises(ValueError, match="bounds: given to the rule and to minimize"):
        schuss.minimize(parabola, START, method=method, bounds=[(0, 1)] * 2)


def test_a_projection_under_constraints() -> None:
    """Of the distributions with mean 1.3 over 0, 1, 2 the one of least squares."""
    method = SGD(lr=0.02, projection=schuss.projections.simplex)
    mean = LinearConstraint([[0, 1, 2]], 1.3, 1.3)
    r = schuss.minimize(
        lambda p: p @ p / 2, np.ones(3) / 3, method=method, constraints=mean, tol=1e-4
    )
    assert r.success, r
    np.testing.assert_allclose(r.x, 1 / 3 + 0.15 * np.array([-1, 0, 1]), atol=1e-3)


# Hock and Schittkowski 1981, problem 71.
def hs71(x: np.ndarray) -> float:
    return float(x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2])


HS71: dict[str, Any] = {
    "x0": [1.0, 5.0, 5.0, 1.0],
    "bounds": so.Bounds(1, 5),
    "constraints": [
        {"type": "ineq", "fun": lambda x: np.prod(x) - 25},
        NonlinearConstraint(lambda x: x @ x, 40, 40, jac=lambda x: 2 * x),
    ],
}


@pytest.mark.parametrize("method", [None, AugmentedLagrangian(penalty=1.0, growth=4.0)])
def test_inequalities_beside_scipy(method: Any) -> None:
    theirs = so.minimize(hs71, **HS71, method="SLSQP", tol=1e-9)
    r = schuss.minimize(hs71, **HS71, method=method)
    assert theirs.success
    assert r.success, r
    np.testing.assert_allclose(r.x, [1, 4.7429994, 3.8211503, 1.3794082], atol=1e-4)
    np.testing.assert_allclose(r.fun, 17.0140173, atol=1e-5)
    np.testing.assert_allclose(r.x, theirs.x, atol=1e-4)
    assert r.maxcv <= 1e-6
    in_their_order = r.multipliers[[1, 0]]
    np.testing.assert_allclose(
        getattr(theirs, "multipliers", in_their_order), in_their_order, atol=1e-4
    )
    assert r.multipliers[0] > 0


def test_intervals_and_constraints_that_do_not_bind() -> None:
    """x0 + x1 is held back from above, x0 - x1 not at all."""
    sums = LinearConstraint([[1, 1], [1, -1]], [-5, -10], [-3, 10])
    r = schuss.minimize(parabola, START, constraints=sums)
    theirs = so.minimize(
        parabola, START, jac=parabola_der, hess=lambda x: np.diag([1.0, 4.0]), constraints=sums,
        method="trust-constr", tol=1e-10,
    )  # fmt: skip
    assert r.success
    np.testing.assert_allclose(r.x, theirs.x, atol=1e-4)
    np.testing.assert_allclose(r.multipliers, -theirs.v[0], atol=1e-4)
    assert r.multipliers[0] < -0.1
    assert abs(r.multipliers[1]) < 1e-6
    np.testing.assert_allclose(r.jac, [[1, 1], [1, -1]] @ r.multipliers, atol=1e-5)


def test_newton_on_a_curved_constraint() -> None:
    """Rosenbrock's function on the circle of radius 1, with and without Hessians."""
    circle: dict[str, Any] = {"lb": 1, "ub": 1, "jac": lambda x: 2 * x}
    theirs = so.minimize(
        rosen, [0.8, 0.6], jac=rosen_der, method="SLSQP", tol=1e-12,
        constraints=NonlinearConstraint(lambda x: x @ x, **circle),
    )  # fmt: skip
    for hess in (lambda x, v: 2 * v[0] * np.eye(2), so.BFGS()):
        constraint = NonlinearConstraint(lambda x: x @ x, hess=hess, **circle)
        r = schuss.minimize(
            rosen, [0.8, 0.6], jac=rosen_der, hess=rosen_hess, method="kkt", constraints=constraint
        )
        assert r.success, r
        assert r.nit < 12
        np.testing.assert_allclose(r.x, theirs.x, atol=1e-6)
        np.testing.assert_allclose(r.jac, 2 * r.x * r.multipliers[0], atol=1e-6)


def nearest(x: np.ndarray) -> float:
    """The squared distance from (2, 1, 1)."""
    return float(((x - [2, 1, 1]) ** 2).sum())


def circle(factor: float, power: int) -> dict[str, Any]:
    """x0^2 + x1^2 = 1, in one of many ways."""
    return {"type": "eq", "fun": lambda x: factor * ((x[0] ** 2 + x[1] ** 2) ** power - 1)}


ON_A_CIRCLE = [2 / 5**0.5, 1 / 5**0.5, 1]
REPEATED: dict[str, tuple[Any, list[float]]] = {
    "one twice": (LinearConstraint([[1, 1, 0], [2, 2, 0]], [1, 2], [1, 2]), [1, 0, 1]),
    "nothing": (LinearConstraint([[1, 1, 0], [0, 0, 0]], [1, 0], [1, 0]), [1, 0, 1]),
    "of other sizes": (
        LinearConstraint([[1e9, 1e9, 0], [1e-6, 1e-6, 0], [0, 0, 1e-9]], *[[1e9, 1e-6, 3e-9]] * 2),
        [1, 0, 3],
    ),
    "a sum of two": (
        [
            LinearConstraint([[1, 1, 0], [0, 0, 1]], [1, 3], [1, 3]),
            {"type": "eq", "fun": lambda x: x.sum() - 4},
        ],
        [1, 0, 3],
    ),
    "more than variables": (
        LinearConstraint([[1, 1, 0], [1, -1, 0], [0, 0, 1], [1, 1, 1]], *[[1, 0, 2, 3]] * 2),
        [0.5, 0.5, 2],
    ),
    "a point three times": (LinearConstraint(np.tile(np.eye(3), (3, 1)), 1, 1), [1, 1, 1]),
    "a circle twice": ([circle(1, 1), circle(3, 1)], ON_A_CIRCLE),
    "a circle of another power": ([circle(1, 1), circle(1, 2), circle(2, 1)], ON_A_CIRCLE),
}


@pytest.mark.parametrize("case", REPEATED)
@pytest.mark.parametrize("method", [None, AugmentedLagrangian()])
def test_constraints_that_repeat_others_are_solved(case: str, method: Any) -> None:
    constraints, wanted = REPEATED[case]
    for start in ([2.0, 1, 0], [0.1, 0.3, 5]):
        if method is not None and case == "of other sizes":
            continue  # a penalty knows no size but its own
        r = schuss.minimize(nearest, start, constraints=constraints, method=method)
        assert r.success, r
        np.testing.assert_allclose(r.x, wanted, atol=1e-5)
        given = constraints if isinstance(constraints, list) else [constraints]
        rows = [so.approx_fprime(r.x, c["fun"]) if isinstance(c, dict) else c.A for c in given]
        np.testing.assert_allclose(r.multipliers @ np.vstack(rows), r.jac, atol=1e-4)


def test_what_is_fixed_by_bounds_and_constraints() -> None:
    twice = LinearConstraint([[1, 1, 0], [2, 2, 0]], [1, 2], [1, 2])
    for bounds, wanted in (
        ([(0.2, 0.2), (-9, 9), (-9, 9)], [0.2, 0.8, 1]),
        ([(0.2, 0.2), (0.8, 0.8), (-9, 9)], [0.2, 0.8, 1]),
        ([(0.2, 0.2), (0.8, 0.8), (3, 3)], [0.2, 0.8, 3]),
    ):
        r = schuss.minimize(nearest, np.zeros(3), constraints=twice, bounds=bounds)
        assert r.success, r
        np.testing.assert_allclose(r.x, wanted, atol=1e-5)


def test_inequalities_that_repeat_others() -> None:
    """All of them hold x back."""
    above = [
        LinearConstraint([[-1, -1, 0], [-2, -2, 0]], [-1, -2], np.inf),
        {"type": "ineq", "fun": lambda x: 1 - x[0] - x[1]},
        LinearConstraint([0.5, 0.5, 0], 0.5, 0.5),
    ]
    r = schuss.minimize(nearest, np.zeros(3), constraints=above)
    assert r.success, r
    np.testing.assert_allclose(r.x, [1, 0, 1], atol=1e-5)


@pytest.mark.parametrize("backtracking", [True, False])
@pytest.mark.parametrize(
    ("constraints", "names"),
    [
        (LinearConstraint([[1, 1, 0], [2, 2, 0], [0, 0, 1]], *[[1, 3, 1]] * 2), "[0][0], [0][1]"),
        ([LinearConstraint([0, 0, 1], 3, 3), LinearConstraint([0, 0, 0], 1, 1)], "[1]"),
        ([circle(1, 1), {"type": "eq", "fun": lambda x: x[0] ** 2 + x[1] ** 2 - 2}], "[0], [1]"),
    ],
)
def test_constraints_that_contradict_one_another_are_named(
    constraints: Any, names: str, backtracking: bool
) -> None:
    r = schuss.minimize(
        nearest, [2.0, 1, 0], constraints=constraints, method=KKT(backtracking=backtracking)
    )
    assert (r.success, r.status) == (False, 4)
    named = names.replace("[", "constraints[").replace("]constraints", "]")
    assert f"constraints contradict one another here: {named}, in iteration" in r.message
    penalty = AugmentedLagrangian()
    r = schuss.minimize(
        nearest, [2.0, 1, 0], constraints=constraints, method=penalty, options={"maxiter": 9}
    )
    assert r.status == 1
    assert r.message.endswith(f"; violated: {named}")


@pytest.mark.parametrize(
    ("rows", "values", "names"),
    [
        ([[1, 0, 0], [1e-6, 0, 0], [0, 1, 0]], [0, 1e-6, 0], {0, 1}),
        ([[1, 1, 0], [2, 2, 0], [0, 1, 1], [1, 2, 1]], [1, 3, 1, 2], {0, 1}),
        ([[1, 0, 0], [0, 0, 1], [0, 3, 0], [2, 0, 0], [0, 1, 0]], range(5), {0, 2, 3, 4}),
        ([[1, 0, 0], [0, 1e3, 0], [1, 1, 0], [0, 0, 1]], [0, 0, 1, 1], {0, 1, 2}),
    ],
)
def test_only_constraints_that_contradict_one_another_are_named(
    rows: Any, values: Any, names: set[int]
) -> None:
    """In whatever units each of them is; not those that depend on one of the contradicting rows."""
    both = LinearConstraint(rows, values, values)
    r = schuss.minimize(nearest, [2.0, 1, 0], constraints=both, method=KKT())
    assert r.status == 4
    assert {int(k) for k in re.findall(r"constraints\[0\]\[(\d)\]", r.message)} == names


def test_constraints_that_can_not_be_met() -> None:
    flat = schuss.minimize(
        lambda x: 0.0, [0, 1], method=KKT(), constraints=DIAGONAL[2], jac=lambda x: 0 * x,
        hess=lambda x: np.zeros((2, 2)),
    )  # fmt: skip
    assert "the Hessian has to be regular along the constraints, in iteration 1" in flat.message
    apart = [LinearConstraint([1, -1], 0, 0), LinearConstraint([1, -1], 1, 1)]
    r = schuss.minimize(
        parabola, START, method=AugmentedLagrangian(), constraints=apart, options={"maxiter": 5}
    )
    assert (r.success, r.status, r.nit) == (False, 1, 5)
    assert "the largest violation" in r.message
    lost = {"type": "eq", "fun": lambda x: x[0] * np.nan}
    for method in (KKT(), AugmentedLagrangian()):
        r = schuss.minimize(hill, [0, 0], method=method, constraints=lost, **HILL)
        assert (r.success, r.status) == (False, 3)
        assert r.message == "constraints: returned [nan] at x = [0. 0.], at the start"
    nowhere = {"type": "eq", "fun": lambda x: x @ x + 1}
    r = schuss.minimize(parabola, START, method=KKT(), constraints=nowhere, options={"maxiter": 20})
    assert not r.success
    assert r.status in (1, 2, 4)


@pytest.mark.parametrize(
    ("constraint", "error", "says"),
    [
        ({"type": "ineq", "fun": lambda x: x}, ValueError, "KKT takes equalities only"),
        (
            LinearConstraint(np.ones(3), 0, 0),
            ValueError,
            r"constraints\[0\]: 3 columns, but x0 has 2",
        ),
        (
            LinearConstraint([1, 1], 0, 0, keep_feasible=True),
            ValueError,
            "keep_feasible: only bounds",
        ),
        ({"type": "le", "fun": lambda x: x}, ValueError, r'constraints\[0\]: wanted "type"'),
        ({"type": "eq"}, ValueError, r"constraints\[0\]: wanted"),
        ("x = 0", TypeError, r"constraints\[0\]: str; wanted a LinearConstraint"),
        (NonlinearConstraint(lambda x: x, [0, 0, 0], 0), ValueError, "but it returns 2 numbers"),
        (NonlinearConstraint(lambda x: x, 1, 0), ValueError, "constraints: low .* is not below"),
        (
            {"type": "eq", "fun": lambda x: x[0], "jac": lambda x: np.ones((2, 2))},
            ValueError,
            r"constraints\[0\], jac: returned shape \(2, 2\); wanted \(1, 2\)",
        ),
    ],
)
def test_wrong_constraints(constraint: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        schuss.minimize(hill, [0, 0], method="kkt", constraints=constraint, **HILL)


def test_hock_and_schittkowskis_problem_71() -> None:
    """With their solution and its multipliers: a product is at least 25, squares sum up to 40."""
    r = schuss.minimize(
        lambda x: x[0] * x[3] * x[:3].sum() + x[2],
        [1, 5, 5, 1],
        bounds=[(1, 5)] * 4,
        constraints=[
            NonlinearConstraint(np.prod, 25, np.inf),
            NonlinearConstraint(lambda x: x @ x, 40, 40),
        ],
    )
    assert r.success, r
    np.testing.assert_allclose(r.x, [1, 4.7429994, 3.8211503, 1.3794082], atol=1e-5)
    assert r.fun == pytest.approx(17.0140173, abs=1e-6)
    np.testing.assert_allclose(r.multipliers, [0.5522937, -0.1614686], atol=1e-5)


def test_the_penalty_stops_growing_where_it_would_hinder() -> None:
    """Else the rounds after a nearly found solution make it worse and worse."""
    for steep in (0.02, 0.05, 0.1):
        narrow = LinearConstraint([[1, 1], [1, 1 + steep]], [0, 0.1], [0, 0.1])
        r = schuss.minimize(
            parabola, START, jac=parabola_der, method=AugmentedLagrangian(), constraints=narrow
        )
        assert r.success, r
        np.testing.assert_allclose(r.x, [-0.1 / steep, 0.1 / steep], atol=1e-3)
    r = schuss.minimize(
        hill, [0, 0], method=AugmentedLagrangian(schuss.scipy.Rprop(lr=0.01), maximize=True,
        options={"maxiter": 300}), constraints=DIAGONAL[2], jac=HILL["jac"],
    )  # fmt: skip
    assert r.success, r
    np.testing.assert_allclose([*r.x, *r.multipliers], [1.5, 1.5, 1], atol=1e-5)
