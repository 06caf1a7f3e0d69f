"""Gradient descent along curves, with several learning rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import schuss
from schuss.lab.options import BLUE, GREEN, VERMILION
from schuss.lab.pictures import figure, name_lines, signed
from schuss.lab.trace.objectives import C
from schuss.lab.trace.paths import walk
from schuss.lab.trace.result import FUNCTION, Array, Result, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curve:
    """A function of one number."""

    formula: str
    value: Callable[[Any], Any]
    slope: Callable[[Any], Any]


class Run(NamedTuple):
    """A descent from w = 10."""

    curve: Curve
    lr: float
    steps: int


SQUARE = Curve("w^2", lambda w: w**2, lambda w: 2 * w)
WAVE = Curve(
    "w cos(0.15pi w)",
    lambda w: w * np.cos(C * w),
    lambda w: np.cos(C * w) - C * w * np.sin(C * w),
)
RUNS = (
    Run(SQUARE, 0.2, 10),
    Run(SQUARE, 0.2, 100),
    Run(SQUARE, 0.01, 100),
    Run(SQUARE, 1.1, 10),
    Run(WAVE, 2.0, 30),
    Run(WAVE, 1.0, 30),
)
# How each learning rate fares, and its colour.
WORDS = {
    (SQUARE, 0.01): ("is slow", GREEN),
    (SQUARE, 0.2): ("arrives", BLUE),
    (SQUARE, 1.1): ("diverges", VERMILION),
    (WAVE, 1.0): ("finds the deep minimum", GREEN),
    (WAVE, 2.0): ("jumps past it", VERMILION),
}
FACTORS = 20  # steps of which the distance is drawn


@dataclass(frozen=True)
class Descents(Result):
    """Paths on curves."""

    paths: tuple[Array, ...]  # of each run, n + 1 numbers

    def rows(self) -> Iterator[Sequence[str]]:
        yield "f(w)", "lr", "steps", "w at the end", "f there"
        for (curve, lr, steps), path in zip(RUNS, self.paths, strict=True):
            w = path[-1]
            yield curve.formula, f"{lr:g}", str(steps), f"{w:.9g}", f"{curve.value(w):.6g}"

    def longest(self, curve: Curve, lr: float) -> Array:
        """The path of the most steps."""
        found = (path for run, path in zip(RUNS, self.paths, strict=True) if run[:2] == (curve, lr))
        return max(found, key=len)

    def painted(self) -> Figure:
        picture = figure(
            5.8, "Too small a learning rate is slow, too large a one diverges or jumps"
        )
        grid = picture.subplots(2, 3)
        for axes, (curve, lr) in zip((*grid[0], *grid[1, 1:]), WORDS, strict=True):
            self.descent(axes, curve, lr)
        self.factors(grid[1, 0])
        return picture

    def descent(self, axes: Axes, curve: Curve, lr: float) -> None:
        """The curve, and the path on it."""
        path, (word, colour) = self.longest(curve, lr), WORDS[curve, lr]
        n = np.abs(path).max()
        line = np.linspace(-n, n, 201)
        axes.plot(line, curve.value(line), color=FUNCTION)
        axes.plot(path, curve.value(path), "-o", color=colour, linewidth=1)
        axes.plot(path[-1], curve.value(path[-1]), "*", color="black", markersize=11)
        end = signed(f"{path[-1]:.3g}")
        axes.set(title=f"lr {lr:g} {word}:\nw = {end} after {len(path) - 1} steps")
        axes.set(xlabel="w", ylabel=f"f(w) = {drawn(curve.formula)}")

    def factors(self, axes: Axes) -> None:
        """The distance from the minimum of the square, which each step multiplies."""
        rates = [lr for curve, lr in WORDS if curve is SQUARE]
        for lr in rates:
            path = self.longest(SQUARE, lr)[: FACTORS + 1]
            axes.plot(np.abs(path), "-o", color=WORDS[SQUARE, lr][1], markersize=3, linewidth=1)
        axes.set(xlabel="finished steps", ylabel="|w|", yscale="log", xlim=(0, 1.35 * FACTORS))
        axes.set(title="each step multiplies w\nby 1 \N{MINUS SIGN} 2 lr")
        axes.set_xticks([0, FACTORS // 2, FACTORS])
        axes.minorticks_off()
        name_lines(axes, [signed(f"by {1 - 2 * lr:.2g}") for lr in rates])


def curves() -> Descents:
    """Learning rates that are too small, right and too large."""
    return Descents(tuple(along(*run) for run in RUNS))


def along(curve: Curve, lr: float, steps: int) -> Array:
    """The path on a curve from w = 10."""

    def value(w: Array) -> float:
        return float(curve.value(w[0]))

    path: Array = walk(schuss.SGD, value, curve.slope, [10.0], steps, lr=lr)[:, 0]
    return path
