"""What is minimised: the function and its derivatives, checked and counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.optimize  # type: ignore[import-untyped]

from schuss.engine.structure import view_of_complex
from schuss.scipy.constraints import Constraints
from schuss.scipy.differences import KINDS, Differences, step_sizes
from schuss.scipy.values import EPS, NOT_FINITE, Array, Stop, dense, real, same, shaped


@dataclass
class Point:
    """Where a method is after an iteration."""

    x: Array
    fun: float
    jac: Array | None  # None where the gradient was taken elsewhere
    slope: Array  # what has to vanish at a solution: the gradient, or that of a Lagrangian
    violation: float = 0.0  # what has to vanish beside it
    more: Mapping[str, Any] = field(default_factory=dict)  # fields of the result


class Problem:
    """A function of n numbers, its gradient and its Hessian at x, and the constraints.

    Each of them remembers its last point, since methods and line searches ask twice. x may be
    complex, for differences with an imaginary step.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        x0: Any,
        args: Any = (),
        jac: Any = None,
        hess: Any = None,
        hessp: Any = None,
        bounds: Any = None,
        constraints: Sequence[Any] = (),
        eps: Any = None,
    ) -> None:
        self.low, self.high = box(bounds, np.size(x0))
        self.bounded = bool(np.any(self.low > -np.inf) or np.any(self.high < np.inf))
        self.x0 = np.clip(start(x0), self.low, self.high)
        self.n = self.x0.size
        self.args = args if isinstance(args, tuple) else (args,)
        self.fun, self.jac, self.hess, self.hessp = fun, jac, hess, hessp
        self.eps = None if eps is None else step_sizes(eps, self.n)
        self.differences = Differences(self.low, self.high, self.eps)
        if not callable(fun):
            raise TypeError(f"fun: {fun!r} is no function")
        if not (callable(jac) or jac is None or isinstance(jac, bool) or jac in KINDS):
            raise ValueError(f"jac: {jac!r} is neither a function nor True nor in {KINDS}")
        if not (callable(hess) or hess is None or hess in KINDS):
            raise TypeError(f"hess: {hess!r} is neither a function nor in {KINDS}")
        self.nfev = self.njev = self.nhev = 0
        self._value: tuple[Array, float] | None = None
        self._gradient: tuple[Array, Array] | None = None
        self.constraints = Constraints(constraints, self.x0, self.differences)

    def value(self, x: Array) -> float:
        """The function at x, whatever it is."""
        if self._value is not None and same(self._value[0], x):
            return self._value[1]
        self.nfev += 1
        value = self.fun(x.copy(), *self.args)
        if self.jac is True:
            value = self._pair(x, value)
        if np.size(value) != 1:
            raise ValueError(f"fun: returned shape {np.shape(value)}; wanted a number")
        number: float = real("fun", value, x.dtype).item()
        self._value = x.copy(), number
        return number

    def _pair(self, x: Array, value: Any) -> Any:
        """The value of a pair with the gradient, which is kept."""
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise TypeError("fun: with jac=True it has to return the value and the gradient")
        self.njev += 1
        self._gradient = x.copy(), shaped("jac", value[1], (self.n,), x.dtype)
        return value[0]

    def gradient(self, x: Array) -> Array:
        """The gradient at x, whatever it is."""
        if self._gradient is not None and same(self._gradient[0], x):
            return self._gradient[1]
        if self.jac is True:
            self._value = None  # so that fun is called, and leaves the gradient
            self.value(x)
            return self.gradient(x)
        self.njev += 1
        if callable(self.jac):
            found = self.jac(x.copy(), *self.args)
        else:
            found = self.differences(self.value, x, self.jac or "3-point", f0=self.value(x))
        self._gradient = x.copy(), shaped("jac", found, (self.n,), x.dtype)
        return self._gradient[1]

    def hessian(self, x: Array) -> Array:
        """The Hessian at x; raises Stop where it is not finite."""
        self.nhev += 1
        if callable(self.hess):
            h = shaped("hess", dense(self.hess(x.copy(), *self.args), self.n), (self.n, self.n))
        elif self.hessp is not None:
            columns = [self.hessp(x.copy(), e, *self.args) for e in np.eye(self.n)]
            h = shaped("hessp", np.stack(columns, axis=1), (self.n, self.n))
        else:
            step = self.eps
            if step is None and not callable(self.jac) and self.jac is not True:
                step = EPS**0.25 * np.maximum(1.0, np.abs(x))  # differences of differences
            h = self.differences(self.gradient, x, self.hess or "3-point", step=step)
            h = np.atleast_2d(h)
            h = (h + h.T) / 2
        if not np.isfinite(h).all():
            raise Stop(NOT_FINITE, f"hess: has elements that are not finite at x = {x}")
        return h

    def curvature(self, x: Array, p: Array) -> Array:
        """The Hessian at x times p; by a difference of gradients, exact where it is constant."""
        if callable(self.hess):
            product: Array = self.hessian(x) @ p
            return product
        if self.hessp is not None:
            self.nhev += 1
            return shaped("hessp", self.hessp(x.copy(), p.copy(), *self.args), (self.n,))
        at = self.gradient(x)
        difference: Array = self.gradient(x + p) - at
        return difference

    def point(self, x: Array) -> Point:
        """Function and gradient at x; raises Stop where they are not finite."""
        value, gradient = self.finite_value(x), self.finite_gradient(x)
        return Point(x, value, gradient, gradient)

    def finite_value(self, x: Array) -> float:
        """The function at x; raises Stop where it is not finite."""
        value = self.value(x)
        if not np.isfinite(value):
            raise Stop(NOT_FINITE, f"fun: returned {value} at x = {x}")
        return value

    def finite_gradient(self, x: Array) -> Array:
        """The gradient at x; raises Stop where it is not finite."""
        gradient = self.gradient(x)
        if not np.isfinite(gradient).all():
            raise Stop(NOT_FINITE, f"jac: returned {gradient} at x = {x}")
        return gradient


def start(x0: Any) -> Array:
    """A copy of the start, in float64."""
    x = np.atleast_1d(np.asarray(x0))
    if x.dtype.kind not in "fiub":
        raise TypeError(f"x0: {x.dtype}; wanted real numbers{view_of_complex(x.dtype)}")
    if x.ndim != 1 or not x.size:
        raise ValueError(f"x0: shape {x.shape}; wanted one dimension, and a number in it")
    x = x.astype(np.float64)
    if not np.isfinite(x).all():
        raise ValueError(f"x0: {x} has elements that are not finite")
    return x


def box(bounds: Any, n: int) -> tuple[Array, Array]:
    """Lower and upper bounds of n numbers, from SciPy's Bounds or pairs in which None is none."""
    if bounds is None:
        bounds = scipy.optimize.Bounds()
    if not isinstance(bounds, scipy.optimize.Bounds):
        pairs = list(bounds)
        if len(pairs) != n or any(np.size(pair) != 2 for pair in pairs):
            raise ValueError(f"bounds: wanted a pair for each of the {n} elements of x0")
        lows = [-np.inf if low is None else low for low, _ in pairs]
        highs = [np.inf if high is None else high for _, high in pairs]
        bounds = scipy.optimize.Bounds(lows, highs)
    try:
        low, high = (np.broadcast_to(b, n).astype(np.float64) for b in (bounds.lb, bounds.ub))
    except ValueError:
        shapes = np.shape(bounds.lb), np.shape(bounds.ub)
        raise ValueError(f"bounds: shapes {shapes}, but x0 has {n} elements") from None
    if not (low <= high).all():
        raise ValueError(f"bounds: low {low} is not below high {high} everywhere")
    return low, high
