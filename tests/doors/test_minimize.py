"""Minimisers against SciPy's and scikit-learn's, on problems whose solutions are known."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize as so  # type: ignore[import-untyped]
import scipy.sparse  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import rosen, rosen_der, rosen_hess
from sklearn.linear_model import LinearRegression, Ridge  # type: ignore[import-untyped]

import schuss
from schuss import rules
from schuss.engine.optimizer import Optimizer
from schuss.scipy import (
    KKT,
    SGD,
    Adam,
    AugmentedLagrangian,
    ConjugateGradient,
    FullAdagrad,
    Newton,
)

START = np.array([-1.2, 1.0])
RATES = {
    "SGD": 0.1,
    "Momentum": 0.03,
    "NAG": 0.03,
    "Adadelta": 0.7,
    "Adagrad": 1.0,
    "Rprop": 0.1,
    "AdEMAMix": 1.0,
    "LAMB": 0.01,
}


def parabola(x: np.ndarray) -> float:
    """Least at (1, -2), where it is 3."""
    return float(0.5 * (x[0] - 1) ** 2 + 2 * (x[1] + 2) ** 2 + 3)


def parabola_der(x: np.ndarray) -> np.ndarray:
    gradient: np.ndarray = np.array([1.0, 4.0]) * (x - [1, -2])
    return gradient


def saddle(x: np.ndarray) -> float:
    """A saddle point at 0 between two minima at (0, 1) and (0, -1)."""
    return float(x[0] ** 2 - 2 * x[1] ** 2 + x[1] ** 4)


def saddle_der(x: np.ndarray) -> np.ndarray:
    return np.array([2 * x[0], -4 * x[1] + 4 * x[1] ** 3])


def saddle_hess(x: np.ndarray) -> np.ndarray:
    return np.diag([2.0, -4 + 12 * x[1] ** 2])


def logarithm(x: np.ndarray) -> float:
    """Nothing but NaN below 0."""
    with np.errstate(invalid="ignore"):
        return float(x[0] - np.log(x[0]))


def evaluated(opt: Any, x: np.ndarray) -> np.ndarray:
    """The average that a Schedule-Free rule puts in place of the parameters, or these."""
    if not hasattr(opt, "eval"):
        return x
    opt.eval()
    average = x.copy()
    opt.train()
    return average


# ---- Every rule as a method


@pytest.mark.parametrize("rule", rules.RULES)
def test_every_rule_minimises(rule: type[Optimizer]) -> None:
    """In SciPy's own minimize as in ours, with the same bits as steps by hand."""
    name = rule.__name__
    lr = RATES.get(name, 0.1)
    method = getattr(schuss.scipy, name)(lr=lr, weight_decay=0.0)
    options = {"maxiter": 5000, "return_all": True}
    r = so.minimize(parabola, START, jac=parabola_der, method=method, tol=1e-3, options=options)
    assert r.success, r
    np.testing.assert_allclose(r.x, [1, -2], atol=2e-3)
    assert r.fun == parabola(r.x)
    assert r.nit == len(r.allvecs) - 1
    moved = np.diff(r.allvecs, axis=0).any(axis=1).sum()
    assert r.nfev == 1 + moved  # a point is asked once
    assert hasattr(rule, "eval") or r.njev == r.nfev
    x = START.copy()
    opt = rule(x, lr=lr, weight_decay=0.0)
    for before in r.allvecs[:-1]:
        assert (before == evaluated(opt, x)).all()
        opt.step(parabola_der(x), loss=parabola(x))
    assert (r.x == evaluated(opt, x)).all()
    assert (r.jac == parabola_der(r.x)).all()
    ours = schuss.minimize(
        parabola, START, jac=parabola_der, method=method, options=options, tol=1e-3
    )
    assert (ours.x == r.x).all()
    assert ours.keys() == r.keys()


def test_methods_follow_from_the_rules() -> None:
    assert list(schuss.scipy.__annotations__) == list(schuss.scipy.RULES)
    for rule in rules.RULES:
        method = getattr(schuss.scipy, rule.__name__)
        assert method.rule is rule
        assert rule.__name__ in schuss.scipy.__all__
        assert f"schuss.{rule.__name__}" in method.__doc__
    with pytest.raises(AttributeError, match=r"it has .*SGD, Momentum"):
        schuss.scipy.Adamant  # type: ignore[attr-defined]  # noqa: B018
    copy = pickle.loads(pickle.dumps(Adam(lr=0.5)))
    assert isinstance(copy, Adam)
    assert copy.options == {"lr": 0.5}
    assert repr(copy) == "Adam(lr=0.5)"
    assert repr(SGD(lr=0.1, bounds=(0, 1))) == "SGD(bounds=(0, 1), lr=0.1)"
    assert repr(KKT()) == "KKT(maximize=False, backtracking=True)"


@pytest.mark.parametrize("name", ["adam", "Adam", Adam, Adam()])
def test_a_method_by_name(name: Any) -> None:
    options = {"maxiter": 7}
    assert schuss.minimize(parabola, START, method=name, options=options).nit == 7


def test_scipys_methods_are_passed_on() -> None:
    ours = schuss.minimize(rosen, START, jac=rosen_der)
    assert (ours.x == so.minimize(rosen, START, jac=rosen_der).x).all()
    ours = schuss.minimize(rosen, START, (), "CG", rosen_der)
    assert ours.nit == so.minimize(rosen, START, jac=rosen_der, method="CG").nit


def test_schedules_and_options_of_the_rule() -> None:
    method = Adam(lr=schuss.schedules.cosine(0.3, steps=200), preset="keras")
    r = schuss.minimize(parabola, START, jac=parabola_der, method=method, tol=1e-2)
    assert r.success
    assert r.nit < 200
    with pytest.raises(ValueError, match=r"lr: -1.0 is out of range"):
        Adam(lr=-1)
    with pytest.raises(TypeError, match="momentum: unknown; Adam has"):
        Adam(momentum=0.9)
    for name in ("params", "grads", "zero_grad", "ema"):
        with pytest.raises(TypeError, match=f"{name}: unknown; the "):
            Adam(**{name: np.zeros(2)})  # type: ignore[arg-type]
        assert name not in inspect.signature(Adam).parameters
    with pytest.raises(TypeError, match="projection: 3 is no function"):
        Adam(projection=3)  # type: ignore[arg-type]


def test_maximize_ascends() -> None:
    r = schuss.minimize(lambda x: -parabola(x), START, method=SGD(lr=0.1, maximize=True))
    assert r.success
    np.testing.assert_allclose(r.x, [1, -2], atol=1e-4)


def test_the_gradient_is_taken_at_the_point_looked_ahead_to() -> None:
    x = START.copy()
    opt = schuss.NAG(x, lr=1e-3, nesterov="lookahead")
    for _ in range(50):
        opt.step(rosen_der(opt.lookahead()))
    method = schuss.scipy.NAG(lr=1e-3, nesterov="lookahead")
    r = schuss.minimize(rosen, START, jac=rosen_der, method=method, options={"maxiter": 50})
    assert (r.x == x).all()
    r = schuss.minimize(rosen, START, jac=rosen_der, method=method, tol=1e-4)
    assert r.success
    assert np.abs(r.jac).max() <= 1e-4  # at x itself
    assert (r.jac == rosen_der(r.x)).all()


@pytest.mark.parametrize("name", ["ScheduleFreeSGD", "ScheduleFreeAdamW"])
def test_the_result_is_the_average_where_a_rule_has_one(name: str) -> None:
    """Gradients are taken at the parameters, function and result are those of the average."""
    method, options = getattr(schuss.scipy, name)(lr=0.2), {"maxiter": 20, "return_all": True}
    seen: list[np.ndarray] = []

    def gradient(x: np.ndarray) -> np.ndarray:
        seen.append(x)
        return parabola_der(x)

    r = schuss.minimize(parabola, START, jac=gradient, method=method, options=options)
    x = START.copy()
    opt = getattr(schuss, name)(x, lr=0.2)
    for n in range(20):
        assert (seen[n] == x).all()
        opt.step(parabola_der(x))
    assert (r.x == evaluated(opt, x)).all()
    assert (r.x != x).any()
    assert r.fun == parabola(r.x)
    assert (r.jac == parabola_der(r.x)).all()
    assert f"the gradient's largest element is {np.abs(r.jac).max():.3g}" in r.message
    within = schuss.minimize(parabola, START, jac=gradient, method=method, bounds=[(0, 0.5)] * 2)
    assert within.success
    assert (within.x == [0.5, 0]).all()


def test_the_average_of_asgd() -> None:
    x, method = START.copy(), schuss.scipy.ASGD(lr=0.1, t0=5)
    opt = schuss.ASGD(x, lr=0.1, t0=5)
    for _ in range(30):
        opt.step(parabola_der(x))
    r = schuss.minimize(parabola, START, jac=parabola_der, method=method, options={"maxiter": 30})
    assert (r.x == opt.state[0]["ax"]).all()
    assert (r.x != x).any()


def test_ascent_of_a_rule_that_looks_ahead_stays_within_bounds() -> None:
    """It stops where the gradient points out of them, as it does for ever."""
    method = schuss.scipy.NAG(lr=0.05, nesterov="lookahead", maximize=True)
    r = schuss.minimize(lambda x: -parabola(x), START, method=method, bounds=[(-2, 0.5)] * 2)
    assert r.success
    assert r.x[0] == 0.5
    np.testing.assert_allclose(r.jac, [0.5, 0], atol=1e-4)


def test_a_rule_that_reads_the_loss_gets_it() -> None:
    method = schuss.scipy.Rprop(variant="irprop+", lr=0.1)
    assert schuss.minimize(parabola, START, jac=parabola_der, method=method).success


def test_a_schedule_may_follow_the_function() -> None:
    """At lr = 0.5 x[1] jumps to and fro for ever; each run begins with that."""
    falling = schuss.schedules.ReduceOnPlateau(0.5, patience=3, factor=0.5, min_lr=0.1)
    for method in (SGD(lr=0.5), SGD(lr=falling), SGD(lr=falling)):
        r = schuss.minimize(parabola, START, jac=parabola_der, method=method)
        assert r.success == (method.options["lr"] is falling)
        assert r.success or r.status == 1
    assert falling(0) == 0.5


@pytest.mark.parametrize("constant", [1e3, -1e6, 2.0**20])
def test_a_constant_added_to_the_function_changes_nothing(constant: float) -> None:
    """For ftol and for a plateau, whose threshold is relative."""

    def run(method: Any, constant: float, **options: Any) -> Any:
        return schuss.minimize(
            lambda x: parabola(x) + constant, START, jac=parabola_der, method=method,
            options={"return_all": True, "maxiter": 300, **options},
        )  # fmt: skip

    falling = schuss.schedules.ReduceOnPlateau(0.4, factor=0.5, patience=5, min_lr=1e-4)
    for method, options in ((SGD(lr=0.1), {"ftol": 1e-5}), (SGD(lr=falling), {"gtol": 0.0})):
        there, here = run(method, constant, **options), run(method, 0.0, **options)
        assert (there.nit, there.status) == (here.nit, here.status)
        assert np.array_equal(there.allvecs, here.allvecs)
    assert np.abs(np.diff(here.allvecs[-2:], axis=0)).max() == 0 or here.nit == 300
    moves = np.abs(np.diff([parabola(x) for x in run(SGD(lr=0.1), 0.0, ftol=1e-5).allvecs]))
    assert moves[-1] <= 1e-5 < moves[-2]


@pytest.mark.parametrize("bounds", [so.Bounds([0, -1], [0.5, np.inf]), [(0, 0.5), (-1, None)]])
@pytest.mark.parametrize("where", ["minimize", "rule"])
def test_bounds(bounds: Any, where: str) -> None:
    theirs = so.minimize(parabola, START, jac=parabola_der, method="L-BFGS-B", bounds=bounds)
    if where == "rule":
        inside = (np.array([0.0, -1]), np.array([0.5, np.inf]))
        r = schuss.minimize(parabola, START, method=Adam(lr=0.05, bounds=inside))
    else:
        r = so.minimize(parabola, START, method=Adam(lr=0.05), bounds=bounds)
    assert r.success
    np.testing.assert_allclose(r.x, theirs.x)
    assert (r.x == [0.5, -1]).all()


def test_numerical_derivatives_stay_within_bounds() -> None:
    seen = []

    def fun(x: np.ndarray) -> float:
        seen.append(x.min())
        return float(-np.sqrt(x).sum() + x.sum())

    r = schuss.minimize(fun, [0.0, 2.0], method=Adam(lr=0.1), bounds=so.Bounds(0, 5), tol=1e-4)
    assert r.success
    assert min(seen) >= 0
    np.testing.assert_allclose(r.x, 0.25, atol=1e-3)


def test_what_is_fixed_by_its_bounds_stays_and_is_not_asked() -> None:
    asked = []

    def fun(x: np.ndarray) -> float:
        asked.append(x[0])
        return parabola(x)

    bounds = [(2, 2), (-3, 3)]
    r = schuss.minimize(fun, START, method=Adam(lr=0.1), bounds=bounds)
    theirs = so.minimize(parabola, START, method="L-BFGS-B", bounds=bounds)
    assert r.success
    np.testing.assert_allclose(r.x, theirs.x, atol=1e-5)
    assert (np.array(asked) == 2).all()
    r = schuss.minimize(parabola, START, method=Adam(lr=0.1), bounds=[(1, 1), (2, 2)])
    assert (r.success, r.nit, r.x.tolist()) == (True, 0, [1, 2])


def test_a_projection_runs_after_each_step() -> None:
    """The most even distribution with a given mean cost is found on the simplex."""
    cost = np.array([1.0, 2.0, 4.0])
    method = SGD(lr=0.1, projection=schuss.projections.simplex)
    r = schuss.minimize(lambda p: p @ p / 2 + cost @ p / 10, np.ones(3), method=method)
    assert r.success
    expected = 1 / 3 - (cost - cost.mean()) / 10
    np.testing.assert_allclose(r.x, expected, atol=1e-4)


# ---- What is asked, counted and returned


def test_derivatives_in_every_form() -> None:
    def both(x: np.ndarray, scale: float) -> tuple[float, np.ndarray]:
        return scale * rosen(x), scale * rosen_der(x)

    def options(**more: Any) -> dict[str, Any]:
        return {"method": Adam(lr=0.05), "args": (1.0,), "options": {"maxiter": 30}, **more}

    exact = schuss.minimize(both, START, jac=True, **options())
    assert (exact.nfev, exact.njev) == (31, 31)
    theirs = so.minimize(both, START, jac=True, **options())
    assert (theirs.x == exact.x).all()
    for jac, calls in ((None, 5), ("3-point", 5), ("2-point", 3), ("cs", 3)):
        r = schuss.minimize(lambda x, a: a * rosen(x), START, jac=jac, **options())
        np.testing.assert_allclose(r.x, exact.x, rtol=1e-5)
        assert (r.nfev, r.njev) == (31 * calls, 31)  # one at x, the rest for the differences
    with pytest.raises(ValueError, match="jac: '4-point' is neither"):
        schuss.minimize(rosen, START, jac="4-point", method="adam")


def test_a_step_for_each_coordinate_of_the_differences() -> None:
    seen = []

    def fun(x: np.ndarray) -> float:
        seen.append(x.copy())
        return parabola(x)

    options = {"maxiter": 0, "eps": [0.25, 0.5]}
    schuss.minimize(fun, [0, 0], method="adam", options=options)
    expected = np.array([[0, 0], [-0.25, 0], [0.25, 0], [0, -0.5], [0, 0.5]])
    assert (np.array(seen) == expected).all()


def test_the_function_may_overwrite_what_it_is_given() -> None:
    def fun(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = parabola(x), parabola_der(x)
        x[...] = np.nan
        return value, gradient

    start = START.copy()
    assert schuss.minimize(fun, start, jac=True, method=SGD(lr=0.1)).success
    assert (start == START).all()


METHODS: list[Any] = [
    Adam(lr=0.01),
    Newton(saddle_free=True, backtracking=True),
    ConjugateGradient(),
    FullAdagrad(lr=0.1),
    KKT(backtracking=False),
    AugmentedLagrangian(),
]


@pytest.mark.parametrize("method", METHODS)
def test_callbacks(method: Any) -> None:
    seen: list[np.ndarray] = []
    values: list[float] = []

    def old(xk: np.ndarray) -> None:
        seen.append(xk)
        if len(seen) == 1:
            raise StopIteration

    def new(*, intermediate_result: so.OptimizeResult) -> None:
        values.append(intermediate_result.fun)
        raise StopIteration

    for callback in (old, new):
        r = so.minimize(
            rosen, START, jac=rosen_der, method=method, callback=callback,
            options={"return_all": True},
        )  # fmt: skip
        assert (r.status, r.success, r.nit) == (99, False, 1)
        assert r.message == "`callback` raised `StopIteration`."
    assert (seen[0] == r.x).all()
    assert (seen[0] == r.allvecs[-1]).all()
    assert len(r.allvecs) == 2
    assert values == [r.fun]


# ---- The best point, where the last one is another


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_best_point_of_the_path(sign: float) -> None:
    """A rate that is too large for one coordinate: the start is best, or some point between."""
    for lr, start in ((0.6, [5.0, -2.01]), (0.52, [5.0, -2.01]), (0.1, [5.0, 3.0])):
        method = SGD(lr=lr, maximize=sign < 0)
        r = schuss.minimize(
            lambda x: sign * parabola(x), start, jac=lambda x: sign * parabola_der(x),
            method=method, options={"maxiter": 30, "return_all": True},
        )  # fmt: skip
        values = [parabola(x) for x in r.allvecs]
        assert sign * r.best_fun == min(values)
        assert parabola(r.best_x) == min(values)
        assert not np.shares_memory(r.best_x, r.x)
        assert (r.x == r.allvecs[-1]).all()
        assert (r.best_fun == r.fun) is (lr == 0.1)


def test_the_best_point_violates_no_constraint() -> None:
    """The start is lower than the solution, and violates the constraint."""
    one = so.LinearConstraint([1, 1], 5, 5)
    for method in (KKT(), AugmentedLagrangian()):
        options = {"return_all": True}
        r = schuss.minimize(parabola, [1, -2], method=method, constraints=one, options=options)
        assert r.success
        assert r.best_x.sum() == pytest.approx(5, abs=2e-6)
        assert r.best_fun == pytest.approx(r.fun, abs=1e-4) != parabola(r.allvecs[0])
        r = schuss.minimize(
            parabola, [1, -2], method=method, constraints=one, options={"maxiter": 0}
        )
        assert r.best_x.tolist() == [1, -2]
    beyond = so.LinearConstraint([[1, 1], [1, 1]], [5, 6], [5, 6])
    r = schuss.minimize(
        parabola, [-9, 1], method=AugmentedLagrangian(), constraints=beyond, options={"maxiter": 3}
    )
    assert abs(r.best_x.sum() - 5.5) < 1.0  # none is allowed: the least violation


def test_the_best_point_where_not_even_the_start_is_finite() -> None:
    r = schuss.minimize(logarithm, [-1.0], method=Newton())
    assert r.best_x.tolist() == [-1.0]
    assert np.isnan(r.best_fun)


# ---- What SciPy takes


@pytest.mark.parametrize("method", [Adam(lr=0.1), ConjugateGradient(), Newton(), KKT()])
def test_one_variable_may_have_derivatives_without_a_dimension(method: Any) -> None:
    def slope(x: np.ndarray) -> float:
        return float(2 * (x[0] - 3))

    forms: list[Callable[[float], Any]] = [float, np.array, lambda a: [a], lambda a: [[a]]]
    starts: list[Any] = [0, [0], np.array(0.0), (0.0,)]
    more: dict[str, Any] = {"hess": lambda x: 2.0} if isinstance(method, Newton | KKT) else {}
    for form, x0 in zip(forms, starts, strict=True):
        told: list[dict[str, Any]] = [
            {
                "fun": lambda x, form=form: form(slope(x) ** 2 / 4),
                "jac": lambda x, f=form: f(slope(x)),
            },
            {"fun": lambda x, form=form: [slope(x) ** 2 / 4, form(slope(x))], "jac": True},
        ]
        for functions in told:
            r = schuss.minimize(x0=x0, method=method, tol=1e-6, **functions, **more)
            assert r.success, r
            np.testing.assert_allclose(r.x, [3.0], atol=1e-4)


@pytest.mark.parametrize("maxiter", [4, 4.0, np.float32(4), np.array(4.0), np.uint8(4)])
def test_a_number_of_iterations_may_be_a_float(maxiter: Any) -> None:
    for method in ("adam", Newton(step=0.1), "L-BFGS-B"):
        r = schuss.minimize(rosen, START, method=method, options={"maxiter": maxiter})
        assert r.nit == 4
    r = schuss.minimize(parabola, START, method=SGD(lr=0.1), options={"maxiter": np.inf})
    assert r.success


def test_stopping() -> None:
    def run(**options: Any) -> Any:
        return schuss.minimize(
            parabola, START, jac=parabola_der, method=SGD(lr=0.1), options=options
        )

    assert np.abs(run(gtol=0.5).jac).max() <= 0.5
    assert run(gtol=0.5).nit < run(gtol=0.4).nit
    by_fun, by_x = run(ftol=1e-4), run(xtol=1e-3)
    assert by_fun.success
    assert by_x.success
    assert "fun moved by" in by_fun.message
    assert "x moved by" in by_x.message
    assert max(by_fun.nit, by_x.nit) < run().nit
    r = run(maxiter=3)
    assert (r.success, r.status, r.nit) == (False, 1, 3)
    assert "after 3 the gradient's largest element is" in r.message
    r = schuss.minimize(parabola, START, method=SGD(lr=0.1), tol=1.0, options={"gtol": 0.1})
    assert np.abs(r.jac).max() <= 0.1


def test_disp_prints_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    r = schuss.minimize(parabola, START, method="adam", options={"maxiter": 2, "disp": True})
    assert capsys.readouterr().out == f"{r.message}\n  nit: 2, nfev: 15, njev: 3\n"


# ---- What is wrong, and says so


@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_not_finite(method: Any) -> None:
    def never(x: np.ndarray) -> float:
        return np.nan

    r = schuss.minimize(never, START, jac=parabola_der, method=method)
    assert (r.success, r.status, r.nit) == (False, 3, 0)
    assert r.message == "fun: returned nan at x = [-1.2  1. ], at the start"
    r = schuss.minimize(parabola, START, jac=lambda x: x * np.inf, method=method)
    assert (r.success, r.status) == (False, 3)
    assert r.message.startswith("jac: returned [-inf  inf] at x")


def test_a_nan_later_on_leaves_the_last_point_before() -> None:
    r = schuss.minimize(logarithm, [0.5], jac=lambda x: 1 + 1 / x, method=SGD(lr=0.1))
    assert (r.success, r.status) == (False, 3)
    assert r.message.startswith("fun: returned nan at x = [-")
    assert r.message.endswith(f"in iteration {r.nit + 1}")
    assert np.isfinite([r.x[0], r.fun, r.jac[0]]).all()
    with np.errstate(over="ignore"):
        r = schuss.minimize(parabola, START, jac=parabola_der, method=SGD(lr=1e200))
    assert (r.success, r.status) == (False, 3)
    assert "fun: returned inf" in r.message


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"x0": np.zeros((2, 2))}, ValueError, r"x0: shape \(2, 2\); wanted one dimension"),
        (
            {"x0": [1j, 1]},
            TypeError,
            r"x0: complex128; wanted real numbers; pass z.view\(np.float64\)",
        ),
        ({"x0": []}, ValueError, r"x0: shape \(0,\)"),
        ({"x0": [np.nan, 1]}, ValueError, "x0: .* not finite"),
        ({"x0": [1j, 1]}, TypeError, "x0: complex128; wanted real"),
        ({"fun": lambda x: x}, ValueError, r"fun: returned shape \(2,\); wanted a number"),
        ({"jac": lambda x: x[:1]}, ValueError, r"jac: returned shape \(1,\); wanted \(2,\)"),
        ({"jac": lambda x: x * 1j}, TypeError, "jac: returned .*j.*; wanted real numbers"),
        ({"fun": lambda x: None}, TypeError, "fun: returned None; wanted real numbers"),
        ({"fun": lambda x: "3"}, TypeError, "fun: returned '3'; wanted real numbers"),
        ({"fun": lambda x: x[0] + 1j}, TypeError, r"fun: returned .*\(-1.2\+1j\)"),
        ({"fun": 3}, TypeError, "fun: 3 is no function"),
        ({"callback": 3}, TypeError, "callback: 3 is no function"),
        ({"tol": -1}, ValueError, r"tol: -1.0 is out of range, wanted \[0, inf\)"),
        ({"options": {"gtol": np.nan}}, ValueError, "gtol: nan is out of range"),
        ({"options": {"ftol": "a"}}, TypeError, "ftol: 'a' is not a number"),
        ({"options": {"xtol": -1}}, ValueError, "xtol: -1.0 is out of range"),
        ({"options": {"maxiter": -1}}, ValueError, "maxiter: -1 is out of range"),
        ({"options": {"maxiter": 2.5}}, TypeError, "maxiter: 2.5 is not a whole number"),
        ({"options": {"maxiter": -np.inf}}, TypeError, "maxiter: -inf is not a whole number"),
        ({"options": {"maxiter": np.nan}}, TypeError, "maxiter: nan is not a whole number"),
        ({"options": {"eps": 0}}, ValueError, r"eps: 0 is out of range, wanted \(0, inf\)"),
        ({"options": {"eps": [1, -1]}}, ValueError, r"eps: \[1, -1\] is out of range"),
        ({"options": {"eps": [1, 2, 3]}}, ValueError, r"eps: shape \(3,\); wanted a number, or 2"),
        ({"jac": True}, TypeError, "fun: with jac=True it has to return the value and"),
        ({"hess": lambda x: x}, ValueError, r"hess: returned shape \(2,\); wanted \(2, 2\)"),
        ({"hess": so.BFGS()}, TypeError, "hess: .* is neither a function nor"),
        ({"bounds": [(0, 1)]}, ValueError, "bounds: wanted a pair for each of the 2 elements"),
        ({"bounds": so.Bounds([0, 0, 0])}, ValueError, "bounds: shapes .*, but x0 has 2"),
        ({"bounds": [(0, 1), (2, 1)]}, ValueError, "bounds: low .* is not below high"),
        ({"bounds": [(0, 1)] * 2}, ValueError, "bounds: Newton takes none"),
        ({"constraints": {"type": "eq"}}, ValueError, "constraints: Newton takes none"),
        (
            {"options": {"maxitre": 1}},
            TypeError,
            "'maxitre' is unknown; did you mean 'maxiter'",
        ),
        ({"options": {"damping": 1}}, TypeError, r"'damping' is unknown; .* Newton\(damping="),
        (
            {"method": "adam", "options": {"lr": 0.1}},
            TypeError,
            r"what Adam takes is passed to it, as Adam\(lr=\.\.\.\)$",
        ),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        schuss.minimize(**{"fun": parabola, "x0": START, "method": Newton(), **arguments})


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Newton(step=0), ValueError, r"step: 0.0 is out of range, wanted \(0, inf\)"),
        (lambda: Newton(damping=-1), ValueError, "damping: -1.0 is out of range"),
        (lambda: ConjugateGradient("PR"), ValueError, "beta: 'PR' is unknown; wanted FR or PR"),
        (lambda: ConjugateGradient(line_search="a"), ValueError, "line_search: 'a' is unknown"),
        (lambda: ConjugateGradient(restart=0), ValueError, "restart: 0 is out of range"),
        (lambda: FullAdagrad(lr=-1), ValueError, "lr: -1.0 is out of range"),
        (lambda: FullAdagrad(delta=0), ValueError, "delta: 0.0 is out of range"),
        (lambda: so.minimize(parabola, START, method=Adam), TypeError, "method: .* Adam()"),
        (lambda: so.minimize(parabola, START, method=KKT), TypeError, "method: .* KKT()"),
        (
            lambda: schuss.minimize(parabola, START, method=schuss.Adam),
            TypeError,
            r"method: schuss.Adam steps arrays; wanted schuss.scipy.Adam\(lr=",
        ),
        (
            lambda: schuss.minimize(parabola, START, method=schuss.Adam(START.copy())),
            TypeError,
            "method: schuss.Adam steps arrays",
        ),
        (
            lambda: schuss.minimize(parabola, START, method="adm"),
            ValueError,
            r"method: 'adm' is unknown; did you mean 'adam'\?$",
        ),
        (
            lambda: schuss.minimize(parabola, START, method="simulated"),
            ValueError,
            "method: 'simulated' is unknown; schuss.scipy and",
        ),
        (
            lambda: Adam(maxiter=50),
            TypeError,
            r"maxiter: belongs to minimize, in options={'maxiter': \.\.\.}$",
        ),
        (lambda: Newton(gtol=1e-3), TypeError, "gtol: belongs to minimize"),  # type: ignore[call-arg]
        (lambda: AugmentedLagrangian(penalty=0), ValueError, "penalty: 0.0 is out of range"),
        (lambda: AugmentedLagrangian(growth=0.5), ValueError, "growth: 0.5 is out of range"),
        (lambda: AugmentedLagrangian(SGD(maximize=True)), ValueError, "maximize: is for"),
        (lambda: AugmentedLagrangian(SGD(bounds=(0, 1))), ValueError, "bounds: are for minimize"),
    ],
)
def test_wrong_options(make: Callable[[], Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


# ---- Newton


def test_newton_takes_one_step_on_a_parabola() -> None:
    """The step is minus the Hessian's inverse times the gradient, found by solving."""
    for hess in (None, lambda x: np.diag([1.0, 4.0]), "2-point"):
        r = schuss.minimize(parabola, START, jac=parabola_der, hess=hess, method=Newton())
        assert r.nit == 1
        np.testing.assert_allclose(r.x, [1, -2], atol=1e-6)
    sparse = schuss.minimize(
        parabola, START, jac=parabola_der, method="newton",
        hess=lambda x: scipy.sparse.diags_array([1.0, 4.0]),
    )  # fmt: skip
    assert sparse.nit == 1
    by_products = schuss.minimize(
        parabola, START, jac=parabola_der, hessp=lambda x, p: [1, 4] * p, method=Newton()
    )
    assert by_products.nit == 1
    half = schuss.minimize(
        parabola, [3, 2], method=Newton(step=0.5), jac=parabola_der, options={"maxiter": 1}
    )
    np.testing.assert_allclose(half.x, [2, 0], atol=1e-6)
    damped = Newton(damping=4.0)
    r = schuss.minimize(parabola, [6, 2], method=damped, jac=parabola_der, options={"maxiter": 1})
    np.testing.assert_allclose(r.x, [5, 0], atol=1e-5)


@pytest.mark.parametrize("hess", [rosen_hess, None])
def test_newton_on_rosenbrock_beside_scipy(hess: Any) -> None:
    x0 = np.linspace(-1.2, 1, 5)
    theirs = so.minimize(rosen, x0, jac=rosen_der, hess=rosen_hess, method="trust-exact")
    r = schuss.minimize(rosen, x0, jac=rosen_der, hess=hess, method=METHODS[1])
    assert r.success
    np.testing.assert_allclose(r.x, theirs.x, atol=1e-4)
    assert r.nit <= 2 * theirs.nit
    assert (np.linalg.eigvalsh(r.hess) > 0).all()


def test_newton_without_any_derivative() -> None:
    r = schuss.minimize(rosen, START, method=METHODS[1])
    assert r.success
    np.testing.assert_allclose(r.x, 1, atol=1e-4)


def test_newton_goes_to_a_saddle_and_saddle_free_leaves_it() -> None:
    options: dict[str, Any] = {"jac": saddle_der, "hess": saddle_hess}
    plain = schuss.minimize(saddle, [0.5, 0.1], method=Newton(), **options)
    np.testing.assert_allclose(plain.x, 0, atol=1e-5)
    assert (plain.success, plain.status) == (False, 5)
    assert "Not a minimum but a saddle point: the least eigenvalue" in plain.message
    np.testing.assert_allclose(plain.hess, np.diag([2, -4]), atol=1e-6)
    free = schuss.minimize(saddle, [0.5, 0.1], method=Newton(saddle_free=True), **options)
    assert free.success
    np.testing.assert_allclose(free.x, [0, 1], atol=1e-5)
    backtracking = Newton(backtracking=True)
    r = schuss.minimize(saddle, [0.0, 0.1], method=backtracking, **options)
    assert (r.success, r.status) == (False, 2)
    assert "no descent along Newton's direction: the Hessian is not positive" in r.message
    top = schuss.minimize(lambda x: -parabola(x), START, method=Newton())
    assert "Not a minimum but a maximum" in top.message


def test_backtracking_keeps_newton_where_the_function_is() -> None:
    """The full step from 3 to 3 - (1 - 1/3)*9 = -3 leads out of the logarithm's domain."""
    options: dict[str, Any] = {"jac": lambda x: 1 - 1 / x, "hess": lambda x: np.diag(1 / x**2)}
    out = schuss.minimize(logarithm, [3.0], method=Newton(), **options)
    assert out.status == 3
    assert (out.x == 3).all()
    r = schuss.minimize(logarithm, [3.0], method=Newton(backtracking=True), **options)
    assert r.success
    np.testing.assert_allclose(r.x, 1, atol=1e-5)
    wrong: dict[str, Any] = {"jac": lambda x: -parabola_der(x), "hess": lambda x: np.eye(2)}
    r = schuss.minimize(parabola, START, method=Newton(backtracking=True), **wrong)
    assert "no step along Newton's direction makes fun smaller, in iteration 1" in r.message


def test_a_singular_hessian_says_so() -> None:
    def valley(x: np.ndarray) -> float:
        return float((x[0] + x[1] - 1) ** 2)

    options: dict[str, Any] = {
        "jac": lambda x: 2 * (x.sum() - 1) * np.ones(2),
        "hess": lambda x: np.full((2, 2), 2.0),
    }
    r = schuss.minimize(valley, [0, 0], method=Newton(), **options)
    assert (r.success, r.status, r.nit) == (False, 4, 0)
    assert r.message.startswith("singular matrix: rank 1 of 2; the Hessian needs damping > 0")
    r = schuss.minimize(valley, [0, 0], method=Newton(saddle_free=True), **options)
    assert r.message.startswith("singular matrix: an eigenvalue of the Hessian is")
    assert r.status == 4
    r = schuss.minimize(valley, [0, 0], method=Newton(damping=1e-6), **options)
    assert r.success
    r = schuss.minimize(parabola, [0, 0], method=Newton(), hess=lambda x: np.full((2, 2), np.inf))
    assert (r.status, r.message[:33]) == (3, "hess: has elements that are not f")


# ---- Conjugate gradients and the full Adagrad


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 12), seed=st.integers(0, 2**32 - 1), beta=st.sampled_from(["FR", "PR+"]))
def test_linear_conjugate_gradients_take_n_steps(n: int, seed: int, beta: str) -> None:
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    a = q @ np.diag(rng.uniform(1, 10, n)) @ q.T
    a, b = (a + a.T) / 2, rng.standard_normal(n)
    method = ConjugateGradient(beta, line_search="exact")
    for hess in (None, lambda x: a):
        r = schuss.minimize(
            lambda x: x @ a @ x / 2 - b @ x, np.zeros(n), method=method, tol=1e-8,
            jac=lambda x: a @ x - b, hess=hess,
        )  # fmt: skip
        assert r.success
        assert r.nit <= n
        np.testing.assert_allclose(r.x, np.linalg.solve(a, b), atol=1e-7)
    steps: list[np.ndarray] = []
    scipy.sparse.linalg.cg(a, b, rtol=0, atol=1e-8, callback=steps.append)
    assert abs(len(steps) - r.nit) <= 1


def test_exact_steps_need_a_positive_curvature() -> None:
    r = schuss.minimize(
        saddle, [0.0, 0.1], jac=saddle_der, method=ConjugateGradient(line_search="exact")
    )
    assert (r.success, r.status) == (False, 2)
    assert "the Hessian is not positive definite: its curvature along" in r.message


@pytest.mark.parametrize("beta", ["FR", "PR+", "HS", "DY"])
@pytest.mark.parametrize("n", [2, 10])
def test_nonlinear_conjugate_gradients_beside_scipy(beta: str, n: int) -> None:
    x0 = np.full(n, 1.5)
    theirs = so.minimize(rosen, x0, jac=rosen_der, method="CG")
    r = schuss.minimize(rosen, x0, jac=rosen_der, method=ConjugateGradient(beta))
    assert theirs.success
    assert r.success
    np.testing.assert_allclose(r.x, theirs.x, atol=1e-4)
    assert r.nfev <= 4 * theirs.nfev


def test_a_line_search_that_finds_nothing() -> None:
    r = schuss.minimize(parabola, START, jac=lambda x: -parabola_der(x), method="conjugategradient")
    assert (r.success, r.status) == (False, 2)
    assert "the line search found no step down the gradient, in iteration 1" in r.message


def test_full_adagrad() -> None:
    """One dimension is Adagrad; and turning the axes turns the path."""
    r = schuss.minimize(
        logarithm, [3.0], jac=lambda x: 1 - 1 / x, method=FullAdagrad(0.1, delta=1e-20),
        options={"maxiter": 20},
    )  # fmt: skip
    x = np.array([3.0])
    opt = schuss.Adagrad(x, lr=0.1)
    for _ in range(20):
        opt.step(1 - 1 / x)
    np.testing.assert_allclose(r.x, x, rtol=1e-9)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    turned = schuss.minimize(
        lambda y: parabola(turn @ y), turn.T @ START, jac=lambda y: turn.T @ parabola_der(turn @ y),
        method=FullAdagrad(0.5), options={"maxiter": 50},
    )  # fmt: skip
    straight = schuss.minimize(
        parabola, START, jac=parabola_der, method=FullAdagrad(0.5), options={"maxiter": 50}
    )
    np.testing.assert_allclose(turn @ turned.x, straight.x, rtol=1e-6)
    assert schuss.minimize(parabola, START, jac=parabola_der, method=FullAdagrad(1.0)).success


# ---- Least squares


def test_ridge_beside_scikit_learn(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((40, 5)), rng.standard_normal(40)
    ridge = Ridge(alpha=3.0, fit_intercept=False).fit(x, y).coef_

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        r = x @ w - y
        return float(r @ r), 2 * x.T @ r

    def both(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = loss(w)
        return value + 3 * float(w @ w), gradient + 6 * w

    closed = np.linalg.solve(x.T @ x + 3 * np.eye(5), x.T @ y)
    np.testing.assert_allclose(ridge, closed)
    methods: list[Any] = [Newton(), ConjugateGradient(line_search="exact"), SGD(lr=0.005)]
    for method in methods:
        r = schuss.minimize(both, np.zeros(5), jac=True, method=method)
        assert r.success
        np.testing.assert_allclose(r.x, ridge, atol=1e-6)
    by_the_rule = schuss.minimize(
        loss, np.zeros(5), jac=True, method=SGD(lr=0.005, l2=6.0), options={"xtol": 1e-12}
    )
    np.testing.assert_allclose(by_the_rule.x, ridge, atol=1e-8)


def test_descent_from_zero_finds_the_solution_of_least_norm() -> None:
    x, y = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]]), np.array([1.0, 1.0])
    pinv = np.linalg.pinv(x) @ y
    np.testing.assert_allclose(pinv, [-0.5, 0, 0.5], atol=1e-12)
    least = LinearRegression(fit_intercept=False).fit(x, y).coef_
    np.testing.assert_allclose(least, pinv, atol=1e-12)
    r = schuss.minimize(
        lambda w: float(((x @ w - y) ** 2).sum()), np.zeros(3),
        jac=lambda w: 2 * x.T @ (x @ w - y), method=SGD(lr=0.01), tol=1e-7,
    )  # fmt: skip
    assert r.success
    np.testing.assert_allclose(r.x, pinv, atol=1e-6)
