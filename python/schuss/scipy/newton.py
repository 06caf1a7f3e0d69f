"""Newton's method, and what keeps it from saddle points."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from schuss.checks import Interval
from schuss.scipy.method import Method
from schuss.scipy.problem import Point, Problem
from schuss.scipy.values import EPS, NO_MINIMUM, NO_STEP, SINGULAR, Array, Stop, solve


class Newton(Method):
    """Newton's method: the step to where the gradient of the quadratic model vanishes.

        x = x - step*d          (H + damping*I) d = g, solved; no inverse
        x = x - step*V (V'g/(|w| + damping))            saddle_free; H = V diag(w) V'

    step           in (0, inf), default 1
    damping        added to the eigenvalues, in [0, inf), default 0
    saddle_free    takes the absolute values of the eigenvalues: the step then leads away from a
                   saddle point, to which it otherwise leads like to a minimum. Default False
    backtracking   halves the step until fun falls by 1e-4 of what the gradient promises, and is
                   finite. Default False

    Without hess or hessp, the Hessian is that of differences. Where it comes to rest at a saddle
    point or a maximum, the result says so and is no success; its `hess` is the Hessian there. A
    step costs n^3.
    See Method for the options of minimize and the result; it takes neither bounds nor constraints.
    Source: saddle_free: Dauphin et al. 2014, arXiv 1406.2572.
    """

    def __init__(
        self,
        *,
        step: float = 1.0,
        damping: float = 0.0,
        saddle_free: bool = False,
        backtracking: bool = False,
    ) -> None:
        self.step = Interval("(0, inf)").check("step", step)
        self.damping = Interval("[0, inf)").check("damping", damping)
        self.saddle_free, self.backtracking = bool(saddle_free), bool(backtracking)

    def iterates(self, p: Problem, gtol: float) -> Iterator[Point]:
        point = p.point(p.x0.copy())
        while True:
            yield point
            direction = -self.direction(point.slope, p.hessian(point.x))
            step = self.shortened(p, point, direction) if self.backtracking else self.step
            point = p.point(point.x + step * direction)

    def direction(self, g: Array, h: Array) -> Array:
        """What is taken from x, but for the size of the step."""
        if not self.saddle_free:
            why = "the Hessian needs damping > 0, or another start"
            return solve(h + self.damping * np.eye(len(g)), g, why)
        w, v = np.linalg.eigh(h)
        sizes = np.abs(w) + self.damping
        if not sizes.min() > len(g) * EPS * sizes.max():
            left = f"an eigenvalue of the Hessian is {w[sizes.argmin()]:.3g}; it needs damping > 0"
            raise Stop(SINGULAR, f"singular matrix: {left}")
        found: Array = v @ (v.T @ g / sizes)
        return found

    def shortened(self, p: Problem, point: Point, direction: Array) -> float:
        """The largest of step, step/2, step/4 ... with which fun falls enough."""
        promised = float(point.slope @ direction)
        if not promised < 0:
            why = "the Hessian is not positive definite; saddle_free=True or damping helps"
            raise Stop(NO_STEP, f"no descent along Newton's direction: {why}")
        step = self.step
        while step > self.step * EPS:
            value = p.value(point.x + step * direction)
            if np.isfinite(value) and value <= point.fun + 1e-4 * step * promised:
                return step
            step /= 2
        raise Stop(NO_STEP, "no step along Newton's direction makes fun smaller")

    def judged(self, p: Problem, point: Point, reason: str) -> tuple[int, str]:
        h = p.hessian(point.x)
        point.more = {"hess": h}
        return curved(np.linalg.eigvalsh(h), "the Hessian", reason) or super().judged(
            p, point, reason
        )


def curved(eigenvalues: Array, matrix: str, reason: str) -> tuple[int, str] | None:
    """Status and message of a point that is no minimum, since some eigenvalue is negative."""
    if not eigenvalues.size or eigenvalues.min() >= -1e-5 * np.abs(eigenvalues).max():
        return None  # differences are no better
    kind = "maximum" if eigenvalues.max() <= 0 else "saddle point"
    least = f"the least eigenvalue of {matrix} is {eigenvalues.min():.3g}"
    return NO_MINIMUM, f"Not a minimum but a {kind}: {least}; {reason}"
