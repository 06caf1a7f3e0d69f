"""Conjugate gradients, for quadratic functions and for others."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import scipy.optimize  # type: ignore[import-untyped]

from schuss.checks import check_int
from schuss.scipy.method import Method
from schuss.scipy.problem import Point, Problem
from schuss.scipy.values import NO_STEP, Array, Stop

# How much of the direction before stays in the next one: g, then the new gradient h, direction p.
BETAS: dict[str, Callable[[Array, Array, Array], float]] = {
    "FR": lambda g, h, p: h @ h / (g @ g),
    "PR+": lambda g, h, p: max(0.0, h @ (h - g) / (g @ g)),
    "HS": lambda g, h, p: h @ (h - g) / (p @ (h - g)),
    "DY": lambda g, h, p: h @ h / (p @ (h - g)),
}


class ConjugateGradient(Method):
    """Conjugate gradients: each direction keeps what the ones before have gained.

        x = x + a*p;  p = -g' + beta*p          g' the gradient at the new x, y = g' - g
        FR: beta = g'g'/gg      PR+: max(0, g'y/gg)     HS: g'y/py      DY: g'g'/py

    beta          "PR+" (default), "FR", "HS", "DY"
    line_search   "wolfe" (default): a by scipy.optimize.line_search, strong Wolfe conditions with
                  c1 1e-4 and c2 0.1; "exact": a = -gp/(p H p), for a quadratic function, whose
                  minimum it finds in n steps, but for rounding. H p comes from hess or hessp, or
                  is the difference of the gradients at x + p and x; status 2 where p H p <= 0
    restart       after so many steps p is -g again; default None: n. So it is where p leads uphill

    A linear system A x = b with A symmetric and positive definite is the minimum of xAx/2 - bx; for
    that alone, scipy.sparse.linalg.cg wants no function. See Method for the options of minimize and
    the result; it takes neither bounds nor constraints.
    Source: Hestenes and Stiefel 1952; Fletcher and Reeves 1964; Polak and Ribiere 1969; Dai and
    Yuan 1999.
    """

    def __init__(
        self, beta: str = "PR+", *, line_search: str = "wolfe", restart: int | None = None
    ) -> None:
        if beta not in BETAS:
            raise ValueError(f"beta: {beta!r} is unknown; wanted {' or '.join(BETAS)}")
        if line_search not in ("wolfe", "exact"):
            raise ValueError(f"line_search: {line_search!r} is unknown; wanted wolfe or exact")
        self.beta, self.line_search = beta, line_search
        self.restart = restart if restart is None else check_int("restart", restart, 1)

    def iterates(self, p: Problem, gtol: float) -> Iterator[Point]:
        find = self.exact if self.line_search == "exact" else self.wolfe
        restart = p.n if self.restart is None else self.restart
        point = p.point(p.x0.copy())
        direction, taken = -point.slope, 0
        before = point.fun + float(np.linalg.norm(point.slope)) / 2  # guesses a first step of 1
        while True:
            yield point
            step = find(p, point, direction, before)
            if step is None and taken:
                direction, taken = -point.slope, 0
                step = find(p, point, direction, before)
            if step is None:
                raise Stop(NO_STEP, "the line search found no step down the gradient")
            new = p.point(point.x + step * direction)
            with np.errstate(all="ignore"):
                beta = BETAS[self.beta](point.slope, new.slope, direction)
            taken += 1
            following = beta * direction - new.slope
            if taken >= restart or not following @ new.slope < 0:  # NaN, too
                following, taken = -new.slope, 0
            before, point, direction = point.fun, new, following

    def wolfe(self, p: Problem, point: Point, direction: Array, before: float) -> float | None:
        """A step under the strong Wolfe conditions, or none."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that it did not converge
            found = scipy.optimize.line_search(
                p.value, p.gradient, point.x, direction, point.slope, point.fun, before,
                c1=1e-4, c2=0.1, maxiter=30,
            )  # fmt: skip
        return None if found[0] is None else float(found[0])

    def exact(self, p: Problem, point: Point, direction: Array, before: float) -> float | None:
        """The step to the minimum of a quadratic function along the direction."""
        curvature = float(direction @ p.curvature(point.x, direction))
        if not curvature > 0:
            why = f"its curvature along the direction is {curvature:.3g}"
            raise Stop(NO_STEP, f"the Hessian is not positive definite: {why}")
        return -float(point.slope @ direction) / curvature
