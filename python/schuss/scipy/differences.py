"""Derivatives by differences, whose points keep within bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from schuss.scipy.values import EPS, Array

KINDS = ("2-point", "3-point", "cs")


@dataclass(frozen=True)
class Differences:
    """Derivatives of functions of n numbers.

        2-point   (f(x + h) - f(x))/h
        3-point   (f(x + h) - f(x - h))/(2h), or (4f(x + h) - f(x + 2h) - 3f(x))/(2h) at a bound
        cs        Im f(x + ih)/h

    Divided by the difference of the points that there really are. h is negative where a bound wants
    it, and shorter between two that are near; a number that can't move has a derivative of 0.
    """

    low: Array
    high: Array
    eps: Array | None  # h, for all numbers or each; None: by the formula

    def __call__(
        self,
        f: Callable[[Array], Any],
        x: Array,
        kind: str = "3-point",
        *,
        f0: Any = None,
        step: Any = None,
    ) -> Array:
        """The derivatives of f at x, along the last axis; f0 is f(x), where it is known.

        step   h in place of eps
        """
        step = self.eps if step is None else step
        usual = (np.cbrt(EPS) if kind == "3-point" else np.sqrt(EPS)) * np.maximum(1.0, np.abs(x))
        steps = usual if step is None else np.broadcast_to(step, x.shape)
        steps = np.where(x + steps == x, usual, steps)

        def moved(i: int, by: Any) -> tuple[Any, Any]:
            """The way that x_i really goes, and the function there."""
            to = x.astype(np.result_type(x, by))
            to[i] += by
            return to[i] - x[i], np.asarray(f(to))

        def start() -> Any:
            return np.asarray(f(x) if f0 is None else f0)

        def along(i: int) -> Any:
            below, above, h = x[i].real - self.low[i], self.high[i] - x[i].real, float(steps[i])
            if not below + above > 0:
                return None
            if kind == "cs":
                return moved(i, 1j * h)[1].imag / h
            if kind == "2-point":
                farthest = above if above > below else -below
                by = next(by for by in (h, -h, farthest) if -below <= by <= above)
                way, there = moved(i, by)
                return (there - start()) / way
            near, far = min(below, above), max(below, above)
            if near >= min(h, far / 2):
                (back, left), (forth, right) = moved(i, -min(h, near)), moved(i, min(h, near))
                return (right - left) / (forth - back)
            by = min(h, far / 2) if above > below else -min(h, far / 2)
            (_, one), (way, two) = moved(i, by), moved(i, 2 * by)
            return (4 * one - two - 3 * start()) / way

        columns = [along(i) for i in range(x.size)]
        zero = np.zeros_like(next((c for c in columns if c is not None), start()))
        return np.stack([zero if c is None else c for c in columns], axis=-1)


def step_sizes(eps: Any, n: int) -> Array:
    """Steps of the differences, checked."""
    steps = np.asarray(eps)
    if steps.shape not in ((), (n,)):
        raise ValueError(f"eps: shape {steps.shape}; wanted a number, or {n} of them")
    if steps.dtype.kind not in "fiu" or not ((steps > 0) & (steps < np.inf)).all():
        raise ValueError(f"eps: {eps!r} is out of range, wanted (0, inf)")
    return steps.astype(np.float64)
