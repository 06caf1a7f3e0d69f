"""Newton's method under equality constraints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog  # type: ignore[import-untyped]

from schuss.scipy.method import Method
from schuss.scipy.newton import curved
from schuss.scipy.problem import Point, Problem
from schuss.scipy.values import EPS, NO_STEP, NOT_FINITE, SINGULAR, Array, Stop, solve


class KKT(Method):
    """Newton's method on the Karush-Kuhn-Tucker system: n numbers and K multipliers at once.

        L = f - sum of lambda_k*g_k
        | H_L  -J'| |dx|        | grad f - J'lambda |
        |         | |  |  =  -  |                   |           g(x) = 0
        | -J    0 | |dl|        |        -g         |

    maximize       f is maximised, which changes no step, but which solutions count. Default False
    backtracking   halves the step until the right side becomes smaller, and is finite: for
                   functions that are defined on one side only, such as logarithms. Default True

    For equality constraints. Where some repeat others, so that their gradients are combinations of
    the others', they share the multipliers; where they contradict them, the status is 4 and the
    message names them. It starts with lambda = 0. Any stationary point attracts it: the result is
    no success where f has, along the constraints, a saddle point, or the wrong one of minimum and
    maximum.

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
        at = self.at(p, p.x0.copy(), np.zeros(c.low.size))
        while True:
            yield at
            x, multipliers = at.x, at.more["multipliers"]
            j, wanted = c.jacobian(x), c.low - at.more["constr"]
            rows = independent(j, c.accuracy)
            left = rows.left(wanted)
            contradiction = ""
            if np.abs(left).max(initial=0.0) > gtol:
                named = c.named(contradicting(j, wanted, c.accuracy, gtol))
                contradiction = f"constraints contradict one another here: {named}"
                if max(np.abs(at.slope).max(), np.abs(wanted - left).max()) <= gtol:
                    raise Stop(SINGULAR, contradiction)
            h = p.hessian(x) - c.hessian(x, multipliers)
            a = rows.mix @ j
            matrix = np.block([[h, -a.T], [-a, np.zeros((len(a), len(a)))]])
            right = np.concatenate([at.slope, rows.mix @ wanted])
            try:
                step = solve(matrix, -right, "the Hessian has to be regular along the constraints")
                at = self.moved(p, at, np.concatenate([step[: p.n], rows.mix.T @ step[p.n :]]))
            except Stop as stop:
                if not contradiction or stop.status == NOT_FINITE:
                    raise
                raise Stop(SINGULAR, f"{stop}; {contradiction}") from None

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
        free = independent(p.constraints.jacobian(point.x), p.constraints.accuracy).free
        h = p.hessian(point.x) - p.constraints.hessian(point.x, point.more["multipliers"])
        along = np.linalg.eigvalsh(free.T @ h @ free)
        matrix = "the Lagrangian's Hessian along the constraints"
        if self.maximize:
            along, matrix = -along, f"minus {matrix}"
        return curved(along, matrix, reason) or super().judged(p, point, reason)


class Rows(NamedTuple):
    """What a Jacobian's rows have in common."""

    mix: Array  # mix @ rows are as many as are independent; rows themselves where all are
    free: Array  # columns: directions in which no row changes
    lengths: Array

    def left(self, values: Array) -> Array:
        """The part of one value a row that no step along the rows can make."""
        if len(self.mix) == len(values):
            return np.zeros_like(values)
        part: Array = values - self.lengths**2 * (self.mix.T @ (self.mix @ values))
        return part

    def certificate(self, left: Array) -> Array:
        """Weights of few rows, each of length 1, whose sum is 0 while that of their values isn't.

        Of all such weights those whose absolute values have the least sum.
        """
        values = left / self.lengths
        ends = np.vstack([self.mix * self.lengths, values / np.abs(values).max()])
        wanted = np.zeros(len(ends))
        wanted[-1] = 1.0
        found = linprog(np.ones(2 * len(left)), A_eq=np.hstack([ends, -ends]), b_eq=wanted)
        weights: Array = values  # if there is no solution
        if found.x is not None:
            weights = found.x[: len(left)] - found.x[len(left) :]
        return weights


def contradicting(jacobian: Array, values: Array, accuracy: float, tolerance: float) -> Array:
    """1 for each row whose value contradicts those of others that are 1, 0 for the others.

    Contradictions are taken out one after the other, until the rows that are left have none.
    """
    found = np.zeros(len(values))
    while True:
        rest = np.flatnonzero(found == 0)
        rows = independent(jacobian[rest], accuracy)
        left = rows.left(values[rest])
        if np.abs(left).max(initial=0.0) <= tolerance:
            return found
        weights = np.abs(rows.certificate(left))
        found[rest[weights > 1e-3 * weights.max()]] = 1.0


def independent(jacobian: Array, accuracy: float) -> Rows:
    """By singular values of the rows, each of them of length 1."""
    lengths = np.linalg.norm(jacobian, axis=1)
    lengths[lengths == 0] = 1.0
    u, sizes, v = np.linalg.svd(jacobian / lengths[:, None])
    rank = int((sizes > accuracy * max(jacobian.shape) * sizes.max(initial=0.0)).sum())
    mix = np.eye(len(u)) if rank == len(u) else u[:, :rank].T / lengths
    return Rows(mix, v[rank:].T, lengths)
