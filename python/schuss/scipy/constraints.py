"""Constraints in any of SciPy's forms as one function between two bounds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import LinearConstraint, NonlinearConstraint  # type: ignore[import-untyped]

from schuss.scipy.problem import NOT_FINITE, Array, Problem, Stop, dense, shaped


class Part(NamedTuple):
    """One constraint: low <= fun(x) <= high."""

    name: str
    fun: Callable[[Array], Any]
    jac: Callable[[Array], Any] | None  # None: central differences
    hess: Callable[[Array, Array], Any] | None  # of the sum of fun's values, each times a weight
    low: Any
    high: Any


class Constraints:
    """All constraints together: low <= c(x) <= high, in the order in which they were given."""

    def __init__(self, given: list[Any], p: Problem) -> None:
        self.p = p
        self.parts = [part(f"constraints[{i}]", c, p.n) for i, c in enumerate(given)]
        self.sizes = [np.atleast_1d(c.fun(p.x0.copy())).size for c in self.parts]
        ends = []
        for which in ("low", "high"):
            bounds = []
            for c, size in zip(self.parts, self.sizes, strict=True):
                try:
                    bounds.append(np.broadcast_to(np.asarray(getattr(c, which), float), size))
                except ValueError:
                    shape = np.shape(getattr(c, which))
                    raise ValueError(
                        f"{c.name}: bounds of shape {shape}, but it returns {size} numbers"
                    ) from None
            ends.append(np.concatenate([np.zeros(0), *bounds]))
        self.low, self.high = ends
        if not (self.low <= self.high).all():
            raise ValueError(f"constraints: low {self.low} is not below high {self.high}")

    def values(self, x: Array, finite: bool = True) -> Array:
        """c(x); raises Stop where it has to be finite and is not."""
        found = [self._value(c, n, x) for c, n in zip(self.parts, self.sizes, strict=True)]
        values = np.concatenate([np.zeros(0), *found])
        if finite and not np.isfinite(values).all():
            raise Stop(NOT_FINITE, f"constraints: returned {values} at x = {x}")
        return values

    def _value(self, c: Part, size: int, x: Array) -> Array:
        return shaped(c.name, np.atleast_1d(c.fun(x.copy())), (size,))

    def jacobian(self, x: Array) -> Array:
        """The derivatives of c, one row for each number in it."""
        rows = [np.zeros((0, self.p.n))]
        for c, size in zip(self.parts, self.sizes, strict=True):
            if c.jac is None:
                found = self.p.differences(partial(self._value, c, size), x)
            else:
                found = dense(c.jac(x.copy()), self.p.n)
            rows.append(shaped(f"{c.name}, jac", np.atleast_2d(found), (size, self.p.n)))
        return np.concatenate(rows)

    def hessian(self, x: Array, weights: Array) -> Array:
        """The Hessian of the sum of c's numbers, each times its weight."""
        total = np.zeros((self.p.n, self.p.n))
        first = 0
        for c, size in zip(self.parts, self.sizes, strict=True):
            own = weights[first : first + size]
            first += size
            if c.hess is not None:
                found = dense(c.hess(x.copy(), own), self.p.n)
                total += shaped(f"{c.name}, hess", found, total.shape)
            elif own.any():
                alone = Constraints.__new__(Constraints)
                alone.p, alone.parts, alone.sizes = self.p, [c], [size]

                def slope(y: Array, alone: Constraints = alone, own: Array = own) -> Array:
                    weighted: Array = own @ alone.jacobian(y)
                    return weighted

                found = np.atleast_2d(self.p.differences(slope, x))
                total += (found + found.T) / 2
        return total

    def violation(self, values: Array) -> float:
        """How far the values are from their bounds, at most."""
        outside = np.abs(values - np.clip(values, self.low, self.high))
        return float(outside.max(initial=0.0))


def part(name: str, given: Any, columns: int) -> Part:
    """A constraint in one of SciPy's three forms."""
    if np.any(getattr(given, "keep_feasible", False)):
        raise ValueError(f"{name}: keep_feasible: only bounds are kept to on the way")
    if isinstance(given, LinearConstraint):
        a = np.atleast_2d(np.asarray(dense(given.A, 0), float))
        if a.shape[1] != columns:
            raise ValueError(f"{name}: {a.shape[1]} columns, but x0 has {columns} elements")
        flat = np.zeros((columns, columns))
        return Part(name, lambda x: a @ x, lambda x: a, lambda x, v: flat, given.lb, given.ub)
    if isinstance(given, NonlinearConstraint):
        jac = given.jac if callable(given.jac) else None
        hess = given.hess if callable(given.hess) else None
        return Part(name, given.fun, jac, hess, given.lb, given.ub)
    if not isinstance(given, dict):
        wanted = "a LinearConstraint, a NonlinearConstraint or a dict"
        raise TypeError(f"{name}: {type(given).__name__}; wanted {wanted}")
    kind = str(given.get("type", "missing")).lower()
    if kind not in ("eq", "ineq") or not callable(given.get("fun")):
        raise ValueError(f'{name}: wanted "type", which is "eq" or "ineq", and "fun", a function')
    args = given.get("args", ())
    jac = given.get("jac")
    return Part(
        name,
        lambda x: given["fun"](x, *args),
        (lambda x: jac(x, *args)) if callable(jac) else None,
        None,
        0.0,
        0.0 if kind == "eq" else np.inf,
    )
