"""Newton's method under equality constraints."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.linalg  # type: ignore[import-untyped]

from schuss.scipy.method import Method
from schuss.scipy.newton import curved
from schuss.scipy.problem import Point, Problem
from schuss.scipy.values import EPS, NO_STEP, Array, Stop, solve


class KKT(Method):
    """Newton's method on the Karush-Kuhn-Tucker system: n numbers and K multipliers at once.

        L = f - sum of lambda_k*g_k
        | H_L  -J'| |dx|        | grad f - J'lambda |
        |         | |  |  =  -  |                   |           g(x) = 0
        | -J    0 | |dl|        |        -g         |

    maximize       f is maximised, which changes no step, but which solutions count. Default False
    backtracking   halves the step until the right side becomes smaller, and is finite: for
                   functions that are defined on one side only, such as logarithms. Default True

    For equality constraints, K <= n of them and no one a combination of the others. It starts with
    lambda = 0. Any stationary point attracts it: the result is no success where f has, along the
    constraints, a saddle point, or the wrong one of minimum and maximum.

    The result's `multipliers` are lambda, in the order of the constraints, with the sign of L
    above: grad f = sum of lambda_k*grad g_k, of the f that was passed. That is SLSQP's sign, and
    the opposite of trust-constr's `v`. Where g = 0 becomes g = e, f changes by lambda*e. `constr`
    is g, and `maxcv` the largest violation. See Method for the options of minimize; gtol is 1e-8,
    and the violation's limit, too.
    Source: Nocedal and Wright 2006, Numerical Optimization, section 18.1.
    """

    gtol = 1e-8
    takes_constraints = True

    def __init__(self, *, maximize: bool = False, backtracking: bool = True) -> None:
        self.maximize, self.backtracking = bool(maximize), bool(backtracking)

    def iterates(self, p: Problem, gtol: float) -> Iterator[Point]:
        c = p.constraints
        if (c.low != c.high).any():
            raise ValueError("constraints: KKT takes equalities only; AugmentedLagrangian any")
        if c.low.size > p.n:
            raise ValueError(f"constraints: {c.low.size} equations, but x has {p.n} elements")
        at = self.at(p, p.x0.copy(), np.zeros(c.low.size))
        while True:
            yield at
            x, multipliers = at.x, at.more["multipliers"]
            j = c.jacobian(x)
            h = p.hessian(x) - c.hessian(x, multipliers)
            matrix = np.block([[h, -j.T], [-j, np.zeros((len(j), len(j)))]])
            why = "the Hessian has to be regular along the constraints"
            if (rank := np.linalg.matrix_rank(j)) < len(j):
                why = f"of the {len(j)} constraints' gradients {rank} are independent"
            step = solve(matrix, -self.right(p, at), why)
            at = self.moved(p, at, step)

    def at(self, p: Problem, x: Array, multipliers: Array) -> Point:
        """Where it is, with the gradient of the Lagrangian."""
        point = p.point(x)
        values = p.constraints.values(x)
        point.slope = point.slope - p.constraints.jacobian(x).T @ multipliers
        point.violation = p.constraints.violation(values)
        point.more = {"multipliers": multipliers, "maxcv": point.violation, "constr": values}
        return point

    def right(self, p: Problem, at: Point) -> Array:
        """What has to vanish, as one array."""
        return np.concatenate([at.slope, p.constraints.low - at.more["constr"]])

    def moved(self, p: Problem, at: Point, step: Array) -> Point:
        """The point after a step, or after half of it, a quarter ..."""
        size, before = 1.0, float(np.linalg.norm(self.right(p, at)))
        while size > EPS:
            to = at.x + size * step[: p.n], at.more["multipliers"] + size * step[p.n :]
            if not self.backtracking:
                return self.at(p, *to)
            try:
                new = self.at(p, *to)
            except Stop:  # not finite there
                new = None
            if new is not None and np.linalg.norm(self.right(p, new)) < (1 - 1e-4 * size) * before:
                return new
            size /= 2
        raise Stop(NO_STEP, "no step along Newton's direction makes the right side smaller")

    def judged(self, p: Problem, point: Point, reason: str) -> tuple[int, str]:
        free = scipy.linalg.null_space(p.constraints.jacobian(point.x))
        h = p.hessian(point.x) - p.constraints.hessian(point.x, point.more["multipliers"])
        along = np.linalg.eigvalsh(free.T @ h @ free)
        matrix = "the Lagrangian's Hessian along the constraints"
        if self.maximize:
            along, matrix = -along, f"minus {matrix}"
        return curved(along, matrix, reason) or super().judged(p, point, reason)
