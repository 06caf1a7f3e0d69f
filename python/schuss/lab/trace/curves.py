"""Gradient descent along curves, with several learning rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import schuss
from schuss.lab.trace.objectives import C
from schuss.lab.trace.paths import walk
from schuss.lab.trace.result import FUNCTION, TRACE, Array, Result, drawn, figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curve:
    """A function of one number."""

    formula: str
    value: Callable[[Any], Any]
    slope: Callable[[Any], Any]


SQUARE = Curve("w^2", lambda w: w**2, lambda w: 2 * w)
WAVE = Curve(
    "w cos(0.15pi w)",
    lambda w: w * np.cos(C * w),
    lambda w: np.cos(C * w) - C * w * np.sin(C * w),
)
# The curve, the learning rate and the number of steps from w = 10.
RUNS = (
    (SQUARE, 0.2, 10),
    (SQUARE, 0.2, 100),
    (SQUARE, 0.01, 100),
    (SQUARE, 1.1, 10),
    (WAVE, 2.0, 30),
    (WAVE, 1.0, 30),
)


@dataclass(frozen=True)
class Descents(Result):
    """Paths on curves."""

    paths: tuple[Array, ...]  # of each run, n + 1 numbers

    def rows(self) -> Iterator[Sequence[str]]:
        yield "f(w)", "lr", "steps", "w at the end", "f there"
        for (curve, lr, steps), path in zip(RUNS, self.paths, strict=True):
            w = path[-1]
            yield curve.formula, f"{lr:g}", str(steps), repr(float(w)), f"{curve.value(w):.6g}"

    def draw(self) -> Figure:
        picture = figure(11, 6)
        for axes, (curve, lr, steps), path in zip(
            picture.subplots(2, 3).flat, RUNS, self.paths, strict=True
        ):
            n = np.abs(path).max()
            line = np.arange(-n, n, 0.01)
            axes.plot(line, curve.value(line), color=FUNCTION)
            axes.plot(path, curve.value(path), "-o", color=TRACE, markersize=4)
            axes.plot(path[-1], curve.value(path[-1]), "*", color="black", markersize=11)
            axes.set(title=f"{drawn(curve.formula)}, lr {lr:g}, {steps} steps")
            axes.set(xlabel="w", ylabel="f(w)")
            plain(axes)
        picture.suptitle("Gradient descent from w = 10; a star where it ends")
        return picture


def curves() -> Descents:
    """Gradient descent on two curves: converging, slow, diverging, in either of two minima."""
    return Descents(tuple(along(curve, lr, steps) for curve, lr, steps in RUNS))


def along(curve: Curve, lr: float, steps: int) -> Array:
    """The path on a curve from w = 10."""

    def value(w: Array) -> float:
        return float(curve.value(w[0]))

    path: Array = walk(schuss.SGD, value, curve.slope, [10.0], steps, lr=lr)[:, 0]
    return path
