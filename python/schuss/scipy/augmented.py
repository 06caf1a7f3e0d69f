"""The augmented Lagrangian: constraints for methods that know none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import scipy.optimize  # type: ignore[import-untyped]

from schuss.checks import Interval
from schuss.scipy.constraints import Constraints
from schuss.scipy.method import Method
from schuss.scipy.problem import Point, Problem
from schuss.scipy.values import Array


class AugmentedLagrangian(Method):
    """The method of multipliers: a penalty whose centre moves until the constraints hold.

        z = c(x) - lambda/rho;  r = z - clamp(z, low, high)             low <= c(x) <= high
        x = argmin f + rho/2*|r|^2                                      by another method, from x
        lambda = -rho*r

    For an equality c = 0 that is f - lambda*c + rho/2*c^2 and lambda = lambda - rho*c. Descending
    on the Lagrangian alone leads nowhere: its solution is a saddle point.

    method     what minimises over x: a method of schuss, such as schuss.scipy.Adam(lr=0.01), or the
               name of one of SciPy's. Default "L-BFGS-B", which takes bounds, as every rule does
    options    of that method's minimize, such as {"maxiter": 500}; its gtol is a tenth of gtol
    penalty    rho at the start, in (0, inf), default 10
    growth     of rho, where a round leaves more than a quarter of the violation, and no larger a
               gradient; in [1, inf), default 2. A rule's lr has to bear rho: for SGD about
               lr < 2/(rho*|J|^2)
    maximize   f is maximised, default False; not for the method to know

    Equality and inequality constraints as LinearConstraint, NonlinearConstraint or dict. An
    iteration (nit, maxiter) is a round, of which each begins with a new optimizer; `inner_nit` are
    the method's own.

    The result's `multipliers` are lambda, in the order of the constraints: grad f = sum of
    lambda_k*grad c_k of the f that was passed. Of a minimum, they are 0 or more where a lower bound
    holds x back, 0 or less where an upper one does; the other way round with maximize. That is
    SLSQP's sign, and the opposite of trust-constr's `v`. `constr` is c, and `maxcv` the largest
    violation. See Method for the options of minimize; gtol is 1e-6, and the violation's limit, too.
    Source: Hestenes 1969; Powell 1969; Rockafellar 1973 for inequalities.
    """

    maxiter = 200
    gtol = 1e-6
    takes_bounds = True
    takes_constraints = True

    def __init__(
        self,
        method: Any = "L-BFGS-B",
        *,
        options: Mapping[str, Any] | None = None,
        penalty: float = 10.0,
        growth: float = 2.0,
        maximize: bool = False,
    ) -> None:
        self.method = method
        known = {"maxiter": 1000, "ftol": 0.0} if method == "L-BFGS-B" else {}
        self.options = {**known, **(options or {})}
        self.penalty = Interval("(0, inf)").check("penalty", penalty)
        self.growth = Interval("[1, inf)").check("growth", growth)
        self.maximize = bool(maximize)
        if (getattr(method, "options", None) or {}).get("maximize"):
            raise ValueError("maximize: is for AugmentedLagrangian to know, not for its method")
        if getattr(method, "bounds", None) is not None:
            raise ValueError(
                "bounds: are for minimize to know, not for AugmentedLagrangian's method"
            )

    def iterates(self, p: Problem, gtol: float) -> Iterator[Point]:
        c = p.constraints
        sign = self.sign
        multipliers, rho, x, inner = np.zeros(c.low.size), self.penalty, p.x0.copy(), 0
        options = {"gtol": gtol / 10, **self.options}
        before = np.inf

        def lagrangian(x: Array) -> tuple[float, Array]:
            r = beyond(c, c.values(x, finite=False), multipliers, rho)
            return (
                sign * p.value(x) + rho / 2 * float(r @ r),
                sign * p.gradient(x) + rho * (r @ c.jacobian(x)),
            )

        while True:
            point = p.point(x)
            values = c.values(x)
            point.slope = sign * point.slope - multipliers @ c.jacobian(x)
            # of an inactive constraint's multiplier, too
            point.violation = float(
                np.abs(beyond(c, values, multipliers, rho) + multipliers / rho).max(initial=0.0)
            )
            point.more = {
                "multipliers": sign * multipliers,
                "maxcv": c.violation(values),
                "constr": values,
                "inner_nit": inner,
            }
            yield point
            # Where the minimisation lags behind the violation, a larger rho would hinder it more.
            if point.violation > max(gtol, before / 4) and self.rest(p, point) <= point.violation:
                rho *= self.growth
            before = point.violation
            found = scipy.optimize.minimize(
                lagrangian, x, jac=True, method=self.method, options=options,
                bounds=scipy.optimize.Bounds(p.low, p.high) if p.bounded else None,
            )  # fmt: skip
            inner += int(found.nit)
            x = found.x
            multipliers = -rho * beyond(c, c.values(x), multipliers, rho)

    def project(self, p: Problem, x: Array) -> Array:
        known = isinstance(self.method, Method)
        return self.method.project(p, x) if known else super().project(p, x)


def beyond(c: Constraints, values: Array, multipliers: Array, rho: float) -> Array:
    """The part of c - lambda/rho that lies outside of the bounds: r."""
    z = values - multipliers / rho
    outside: Array = z - np.clip(z, c.low, c.high)
    return outside
