"""Constraints in any of SciPy's forms as one function between two bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import LinearConstraint, NonlinearConstraint  # type: ignore[import-untyped]

from schuss.engine.structure import listing
from schuss.scipy.differences import Differences
from schuss.scipy.values import EPS, NOT_FINITE, Array, Stop, dense, shaped


@dataclass(frozen=True)
class Constraint:
    """One constraint: low <= fun(x) <= high."""

    name: str
    fun: Callable[[Array], Any]
    jac: Callable[[Array], Any] | None  # None: central differences
    hess: Callable[[Array, Array], Any] | None  # of the sum of fun's values, each times a weight
    low: Any
    high: Any

    def values(self, x: Array, size: int) -> Array:
        """What fun returns, as many numbers as at the start."""
        return shaped(self.name, np.atleast_1d(self.fun(x.copy())), (size,))

    def jacobian(self, x: Array, size: int, differences: Differences) -> Array:
        """The derivatives of the values, a row for each."""
        if self.jac is None:
            rows = differences(lambda y: self.values(y, size), x)
        else:
            rows = dense(self.jac(x.copy()), x.size)
        return shaped(f"{self.name}, jac", np.atleast_2d(rows), (size, x.size))

    def hessian(self, x: Array, weights: Array, differences: Differences) -> Array:
        """The Hessian of the sum of the values, each times its weight."""
        shape = x.size, x.size
        if self.hess is not None:
            return shaped(f"{self.name}, hess", dense(self.hess(x.copy(), weights), x.size), shape)
        if not weights.any():
            return np.zeros(shape)
        hessian = differences(lambda y: weights @ self.jacobian(y, weights.size, differences), x)
        symmetric: Array = (hessian + hessian.T) / 2
        return symmetric

    def bound(self, ends: Any, size: int) -> Array:
        """One of the bounds, for each of the values."""
        try:
            return np.broadcast_to(np.asarray(ends, float), size)
        except ValueError:
            shape = np.shape(ends)
            raise ValueError(
                f"{self.name}: bounds of shape {shape}, but it returns {size} numbers"
            ) from None


class Constraints:
    """All constraints together: low <= c(x) <= high, in the order in which they were given."""

    def __init__(self, given: Sequence[Any], x0: Array, differences: Differences) -> None:
        self.n, self.differences = x0.size, differences
        read = [constraint(f"constraints[{i}]", c, x0.size) for i, c in enumerate(given)]
        self.sized = [(c, np.atleast_1d(c.fun(x0.copy())).size) for c in read]
        self.low = joined(c.bound(c.low, size) for c, size in self.sized)
        self.high = joined(c.bound(c.high, size) for c, size in self.sized)
        if not (self.low <= self.high).all():
            raise ValueError(f"constraints: low {self.low} is not below high {self.high}")

    def values(self, x: Array, finite: bool = True) -> Array:
        """c(x); raises Stop where it has to be finite and is not."""
        values = joined(c.values(x, size) for c, size in self.sized)
        if finite and not np.isfinite(values).all():
            raise Stop(NOT_FINITE, f"constraints: returned {values} at x = {x}")
        return values

    def jacobian(self, x: Array) -> Array:
        """The derivatives of c, one row for each number in it."""
        rows = [c.jacobian(x, size, self.differences) for c, size in self.sized]
        return np.concatenate([np.zeros((0, self.n)), *rows])

    def hessian(self, x: Array, weights: Array) -> Array:
        """The Hessian of the sum of c's numbers, each times its weight."""
        total, first = np.zeros((self.n, self.n)), 0
        for c, size in self.sized:
            total += c.hessian(x, weights[first : first + size], self.differences)
            first += size
        return total

    def violation(self, values: Array) -> float:
        """How far the values are from their bounds, at most."""
        return float(self.outside(values).max(initial=0.0))

    def outside(self, values: Array) -> Array:
        """How far each of the values is from its bounds."""
        outside: Array = np.abs(values - np.clip(values, self.low, self.high))
        return outside

    def named(self, sizes: Array) -> str:
        """The constraints of the larger ones of these numbers, as messages show them."""
        names = [
            c.name if size == 1 else f"{c.name}[{k}]" for c, size in self.sized for k in range(size)
        ]
        large = np.abs(sizes) >= 0.1 * np.abs(sizes).max(initial=0.0)
        return listing(name for name, is_large in zip(names, large, strict=True) if is_large)

    @property
    def accuracy(self) -> float:
        """Of a derivative, as a share of its row."""
        return 64 * EPS if all(c.jac is not None for c, _ in self.sized) else 1e-7


def joined(pieces: Iterable[Array]) -> Array:
    """One after the other, of none, too."""
    return np.concatenate([np.zeros(0), *pieces])


def constraint(name: str, c: Any, columns: int) -> Constraint:
    """A constraint in one of SciPy's three forms."""
    if np.any(getattr(c, "keep_feasible", False)):
        raise ValueError(f"{name}: keep_feasible: only bounds are kept to on the way")
    if isinstance(c, LinearConstraint):
        a = np.atleast_2d(np.asarray(dense(c.A, 0), float))
        if a.shape[1] != columns:
            raise ValueError(f"{name}: {a.shape[1]} columns, but x0 has {columns} elements")
        flat = np.zeros((columns, columns))
        return Constraint(name, lambda x: a @ x, lambda x: a, lambda x, v: flat, c.lb, c.ub)
    if isinstance(c, NonlinearConstraint):
        jac = c.jac if callable(c.jac) else None
        hess = c.hess if callable(c.hess) else None
        return Constraint(name, c.fun, jac, hess, c.lb, c.ub)
    if not isinstance(c, dict):
        wanted = "a LinearConstraint, a NonlinearConstraint or a dict"
        raise TypeError(f"{name}: {type(c).__name__}; wanted {wanted}")
    kind = str(c.get("type", "missing")).lower()
    if kind not in ("eq", "ineq") or not callable(c.get("fun")):
        raise ValueError(f'{name}: wanted "type", which is "eq" or "ineq", and "fun", a function')
    args = c.get("args", ())
    jac = c.get("jac")
    return Constraint(
        name,
        lambda x: c["fun"](x, *args),
        (lambda x: jac(x, *args)) if callable(jac) else None,
        None,
        0.0,
        0.0 if kind == "eq" else np.inf,
    )
