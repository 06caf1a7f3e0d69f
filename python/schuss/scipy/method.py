"""What all methods share: SciPy's protocol, when to stop, and what is returned."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import scipy.optimize  # type: ignore[import-untyped]

from schuss.checks import Interval, check_int, unknown, unpacked
from schuss.scipy.problem import Point, Problem
from schuss.scipy.values import CALLBACK, CONVERGED, MAXITER, Array, Stop

OPTIONS = ("gtol", "ftol", "xtol", "maxiter", "eps", "disp", "return_all")
NOT_NEGATIVE = Interval("[0, inf)")


class Limits(NamedTuple):
    """When a run ends."""

    gtol: float
    ftol: float | None
    xtol: float | None
    maxiter: float


@dataclass
class Run:
    """How far a run has come."""

    problem: Problem
    path: list[Array] | None  # None: not asked for
    rank: Callable[[Point], Any]  # smaller for a better point
    last: Point | None = None
    best: Point | None = None
    nit: int = -1

    def take(self, point: Point) -> Point | None:
        """Goes on to a point; returns the one before."""
        before, self.last, self.nit = self.last, point, self.nit + 1
        if self.best is None or self.rank(point) <= self.rank(self.best):
            self.best = point
        if self.path is not None and before is not None:
            self.path.append(point.x.copy())
        return before

    def result(self, status: int, message: str) -> Any:
        """What SciPy returns."""
        p, last = self.problem, self.last
        if last is None:  # not even the start is finite
            last = Point(p.x0, p.value(p.x0), p.gradient(p.x0), p.x0)
        best = self.best or last
        result = scipy.optimize.OptimizeResult(
            x=last.x.copy(),
            fun=last.fun,
            best_x=best.x.copy(),
            best_fun=best.fun,
            jac=p.gradient(last.x) if last.jac is None else last.jac,
            nit=max(0, self.nit),
            nfev=p.nfev,
            njev=p.njev,
            nhev=p.nhev,
            status=status,
            success=status == CONVERGED,
            message=message,
            **last.more,
        )
        if self.path is not None:
            result.allvecs = self.path
        return result


class Method:
    """A minimiser for `scipy.optimize.minimize(fun, x0, method=...)` and `schuss.minimize`.

    jac         a function; True: fun returns the value and the gradient; "2-point", "3-point" or
                "cs": SciPy's differences. Default None: central differences, "3-point". SciPy's
                minimize passes no string on, so that it is "3-point" there
    hess        a function that returns a matrix, or as jac: differences of the gradient
    tol, gtol   stops where no element of the gradient is larger, and no constraint is violated by
                more; with bounds or a projection P, no element of x - P(x - gradient). gtol counts
                where both are given. Default 1e-5 for most
    ftol        stops where fun moves by no more than this; default None: no test. It is no share of
                fun, to which a constant may be added
    xtol        stops where no element of x moves by more than xtol*max(1, |x|); default None. The
                steps of a rule are not monotone: one short step proves little
    maxiter     iterations, 1e3 as well as 1000, and inf; default 10000 for rules, 1000 for the
                others
    eps         the step of the differences: a number, or one for each element. Default None:
                cbrt(machine epsilon)*max(1, |x_i|)
    callback    called after each iteration with a copy of x, or, where its only argument has the
                name intermediate_result, with an OptimizeResult of x and fun. StopIteration ends
    return_all  the result's allvecs is the path: x0, and x after each iteration
    disp        prints the message at the end

    The result is SciPy's: x, fun, jac, nit, nfev, njev, nhev, success, message and status: 0
    found, 1 maxiter, 2 no step lowers fun any more, 3 fun or a derivative is not finite (x is then
    the last point where they are), 4 a singular matrix or constraints that contradict one another,
    5 no minimum but a saddle point or maximum, 99 the callback. What has the wrong shape or type
    raises ValueError or TypeError. x0 is clipped into the bounds.

    x is the last point; best_x and best_fun are those of the path where fun is least (with
    maximize, largest) among the points that violate no constraint by more than gtol, and if there
    are none, where the violation is least.
    """

    maxiter: ClassVar[int] = 1000
    gtol: ClassVar[float] = 1e-5
    takes_bounds: ClassVar[bool] = False
    takes_constraints: ClassVar[bool] = False
    maximize: bool = False

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        if len(arguments) > 1:  # fun and x0
            raise TypeError(f"method: SciPy wants an object of the class, such as {cls.__name__}()")
        for option in OPTIONS:
            if option in options and not cls.takes(option):
                raise TypeError(f"{option}: belongs to minimize, in options={{{option!r}: ...}}")
        return super().__new__(cls)

    def __call__(
        self,
        fun: Callable[..., Any],
        x0: Any,
        args: Any = (),
        *,
        jac: Any = None,
        hess: Any = None,
        hessp: Any = None,
        bounds: Any = None,
        constraints: Any = (),
        callback: Callable[..., Any] | None = None,
        tol: float | None = None,
        gtol: float | None = None,
        ftol: float | None = None,
        xtol: float | None = None,
        maxiter: int | None = None,
        eps: Any = None,
        disp: bool = False,
        return_all: bool = False,
        **others: Any,
    ) -> Any:
        """Minimises; the arguments as SciPy passes them, its options by keyword."""
        name = type(self).__name__
        for option in others:
            own = f"; what {name} takes is passed to it, as {name}({option}=...)"
            raise TypeError(f"options: {unknown(option, OPTIONS)}{own * self.takes(option)}")
        if not (callback is None or callable(callback)):
            raise TypeError(f"callback: {callback!r} is no function")
        if listed(constraints) and not self.takes_constraints:
            raise ValueError(f"constraints: {name} takes none; AugmentedLagrangian and KKT do")
        problem = Problem(fun, x0, args, jac, hess, hessp, bounds, listed(constraints), eps)
        if problem.bounded and not self.takes_bounds:
            raise ValueError(f"bounds: {name} takes none; the rules do, as do methods of SciPy")
        tolerance = {"tol": tol, "gtol": gtol, "ftol": ftol, "xtol": xtol}
        given = {k: NOT_NEGATIVE.check(k, v) for k, v in tolerance.items() if v is not None}
        limits = Limits(
            given.get("gtol", given.get("tol", self.gtol)),
            given.get("ftol"),
            given.get("xtol"),
            self.maxiter if maxiter is None else whole("maxiter", maxiter),
        )

        def rank(point: Point) -> tuple[float, float]:
            violation = point.more.get("maxcv", 0.0)
            return max(violation, limits.gtol), self.sign * point.fun

        run = Run(problem, [problem.x0.copy()] if return_all else None, rank)
        status, message = self.followed(run, limits, callback and reporting(callback))
        if disp:
            print(f"{message}\n  nit: {run.nit}, nfev: {problem.nfev}, njev: {problem.njev}")
        return run.result(status, message)

    def followed(
        self, run: Run, limits: Limits, call: Callable[[Point], Any] | None
    ) -> tuple[int, str]:
        """Status and message of the end of a run."""
        try:
            for point in self.iterates(run.problem, limits.gtol):
                before = run.take(point)
                if call is not None and before is not None:
                    call(point)
                if reason := self.reached(run.problem, point, before, limits):
                    return self.judged(run.problem, point, reason)
                if run.nit >= limits.maxiter:
                    if point.jac is None:
                        self.complete(run.problem, point)
                    break
        except StopIteration:
            return CALLBACK, "`callback` raised `StopIteration`."
        except Stop as stop:
            where = "at the start" if run.last is None else f"in iteration {run.nit + 1}"
            return stop.status, f"{stop}, {where}"
        left = f"after {run.nit} {self.remainder(run.problem, point)}, gtol is {limits.gtol:g}"
        if point.more.get("maxcv", 0.0) > limits.gtol:
            c = run.problem.constraints
            left += f"; violated: {c.named(c.outside(point.more['constr']))}"
        return MAXITER, f"Maximum number of iterations has been exceeded: {left}"

    # ---- What a method says of itself

    @property
    def sign(self) -> float:
        """Of the way down the function."""
        return -1.0 if self.maximize else 1.0

    @classmethod
    def takes(cls, option: str) -> bool:
        """Whether an object of the class is made with this option."""
        return option in inspect.signature(cls).parameters

    def iterates(self, p: Problem, gtol: float) -> Iterator[Point]:
        """The start, and the point after each iteration, for ever; raises Stop if it can't go on.

        What it yields is x itself, of which no other point has a part.
        """
        raise NotImplementedError

    def complete(self, p: Problem, point: Point) -> None:
        """Puts the gradient at the point itself in; raises Stop where it is not finite."""
        point.jac = point.slope = p.finite_gradient(point.x)

    def project(self, p: Problem, x: Array) -> Array:
        """The nearest point that is allowed."""
        return np.clip(x, p.low, p.high) if p.bounded else x

    def judged(self, p: Problem, point: Point, reason: str) -> tuple[int, str]:
        """What the point is, at which the run has come to rest."""
        return CONVERGED, f"Optimization terminated successfully: {reason}"

    # ---- When to stop

    def reached(self, p: Problem, point: Point, before: Point | None, limits: Limits) -> str:
        """Why this is the solution, or nothing."""
        gtol, ftol, xtol, _ = limits
        if self.rest(p, point) <= gtol and point.violation <= gtol:
            if point.jac is None:  # the gradient is small elsewhere: here, too?
                self.complete(p, point)
                return self.reached(p, point, before, limits)
            return self.remainder(p, point)
        if before is None or point.violation > gtol:
            return ""
        moved = abs(point.fun - before.fun)
        if ftol is not None and moved <= ftol:
            return f"fun moved by {moved:.3g}"
        moved = float(np.abs(point.x - before.x).max())
        if xtol is not None and moved <= xtol * max(1.0, float(np.abs(before.x).max())):
            return f"x moved by {moved:.3g}"
        return ""

    def rest(self, p: Problem, point: Point) -> float:
        """How far the gradient is from vanishing."""
        to = self.project(p, point.x - point.slope)
        free = to == point.x - point.slope  # there the gradient itself, without rounding
        return float(np.abs(np.where(free, point.slope, point.x - to)).max())

    def remainder(self, p: Problem, point: Point) -> str:
        """What is left of it, for messages."""
        left = f"the gradient's largest element is {self.rest(p, point):.3g}"
        if point.violation:
            left += f", the largest violation {point.violation:.3g}"
        return left

    def __repr__(self) -> str:
        own = ", ".join(f"{k}={v!r}" for k, v in vars(self).items())
        return f"{type(self).__name__}({own})"


def whole(name: str, value: Any) -> float:
    """A whole number as SciPy takes it: 1e3, too, and infinity."""
    value = unpacked(value)
    if isinstance(value, float | np.floating) and (value.is_integer() or value == np.inf):
        return float(Interval("[0, inf]").check(name, value))
    return check_int(name, value, 0)


def listed(constraints: Any) -> list[Any]:
    """One constraint, or several, or none, as a list."""
    if constraints is None:
        return []
    return list(constraints) if isinstance(constraints, list | tuple) else [constraints]


def reporting(callback: Callable[..., Any]) -> Callable[[Point], Any]:
    """The callback in one of SciPy's two styles, which its argument's name tells."""
    try:
        names = set(inspect.signature(callback).parameters)
    except (TypeError, ValueError):  # a builtin may have no signature
        names = set()
    if names == {"intermediate_result"}:
        return lambda point: callback(
            intermediate_result=scipy.optimize.OptimizeResult(x=point.x.copy(), fun=point.fun)
        )
    return lambda point: callback(point.x.copy())
