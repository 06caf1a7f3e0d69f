"""The tutorial's descents: along curves, over contours, by the rules with rates of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import schuss
from schuss.lab.trace.objectives import OBJECTIVES, C, Objective
from schuss.lab.trace.paths import walk
from schuss.lab.trace.result import FUNCTION, TRACE, Array, Result, drawn, figure, numbers, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# ---- In one dimension


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
        yield "l(w)", "lr", "steps", "w at the end", "l there"
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
            axes.set(xlabel="w", ylabel="l(w)")
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


# ---- Two minima


@dataclass(frozen=True)
class Minima(Result):
    """The minima of w cos(pi w) between -1 and 2."""

    w: Array
    values: Array

    def rows(self) -> Iterator[Sequence[str]]:
        yield "minimum", "w", "l(w)"
        for name, w, value in zip(("local", "global"), self.w, self.values, strict=True):
            yield name, *numbers(w, value)

    def draw(self) -> Figure:
        picture = figure(6, 4)
        axes = picture.subplots()
        w = np.arange(-1.0, 2.0, 0.01)
        axes.plot(w, w * np.cos(np.pi * w), color=FUNCTION)
        axes.plot(self.w, self.values, "o", color=TRACE)
        texts = ("local minimum", "global minimum\nin this picture")
        for text, x, y, at in zip(
            texts, self.w, self.values, ((-0.75, -0.9), (0.5, 0.9)), strict=True
        ):
            axes.annotate(text, (x, y), at, arrowprops={"arrowstyle": "->"}, ha="center")
        axes.set(xlabel="w", ylabel="l(w)", title=drawn("w cos(pi w)"))
        plain(axes)
        return picture


def minima() -> Minima:
    """The local and the global minimum of w cos(pi w), by descents from their two sides."""

    def value(w: Any) -> Any:
        return w[0] * np.cos(np.pi * w[0])

    def slope(w: Array) -> Array:
        own: Array = np.cos(np.pi * w) - np.pi * w * np.sin(np.pi * w)
        return own

    ends = [walk(schuss.SGD, value, slope, [w], 200, lr=0.05)[-1, 0] for w in (-0.5, 0.8)]
    w = np.array(ends)
    return Minima(w, value([w]))


# ---- In two dimensions


@dataclass(frozen=True)
class Run:
    """A rule with its numbers on a bowl, from (-5, -2)."""

    title: str
    bowl: str
    rule: type[schuss.Optimizer]
    steps: int
    options: dict[str, Any]

    @property
    def objective(self) -> Objective:
        return OBJECTIVES[self.bowl]


@dataclass(frozen=True)
class Paths(Result):
    """Paths over the contours of bowls."""

    title: str
    runs: tuple[Run, ...]
    paths: tuple[Array, ...]  # of each run, (n + 1, 2)
    columns: int

    def rows(self) -> Iterator[Sequence[str]]:
        yield "rule", "l(w)", "steps", "w1", "w2", "l there"
        for run, path in zip(self.runs, self.paths, strict=True):
            formula = run.objective.formula.replace("x", "w1").replace("y", "w2")
            value = f"{run.objective.value(path[-1]):.6g}"
            yield run.title, formula, str(run.steps), *numbers(*path[-1]), value

    def draw(self) -> Figure:
        lines = math.ceil(len(self.runs) / self.columns)
        picture = figure(4.2 * self.columns, 3.1 * lines + 0.4)
        grid = list(picture.subplots(lines, self.columns, squeeze=False).flat)
        for axes, run, path in zip(grid, self.runs, self.paths, strict=False):
            top = max(1.0, min(3.0, path[:, 1].max() + 0.2))
            contours(axes, run.objective, top)
            axes.plot(*path.T, "-o", color=TRACE, markersize=4)
            title = drawn(f"{run.title}, {run.steps} steps")
            if beyond := int(np.sum((path[:, 1] < -3) | (path[:, 1] > top))):
                title += f"\n{beyond} of its points lie beyond"
            axes.set(title=title, xlabel="w1", ylabel="w2")
            axes.set(xlim=(-5.5, 0.9), ylim=(-3.0, top - 0.1))
        for axes in grid[len(self.runs) :]:
            axes.set_axis_off()
        picture.suptitle(drawn(self.title))
        return picture


def contours(axes: Axes, objective: Objective, top: float) -> None:
    """The document's, w2 < 1 but where the path goes higher; and a star in the minimum."""
    w1, w2 = np.meshgrid(np.arange(-5.5, 1.0, 0.1), np.arange(-3.0, top, 0.1))
    axes.contour(w1, w2, objective.value((w1, w2)), colors=FUNCTION)
    axes.plot(0, 0, "*", color="#7f3f98", markersize=11, zorder=3)


def run_all(title: str, runs: Sequence[Run], columns: int) -> Paths:
    paths = tuple(
        walk(
            run.rule, run.objective.value, run.objective.gradient, (-5.0, -2.0), run.steps,
            **run.options,
        )
        for run in runs
    )  # fmt: skip
    return Paths(title, tuple(runs), paths, columns)


def surfaces() -> Paths:
    """Gradient descent over the contours of a round bowl."""
    runs = [Run(f"lr {lr:g}", "round", schuss.SGD, n, {"lr": lr})
            for lr, n in ((0.1, 5), (0.1, 10), (0.2, 10))]  # fmt: skip
    return run_all("Gradient descent on w1^2 + 2w2^2; a star in the minimum", runs, 3)


def zigzag() -> Paths:
    """Zig-zag on an elongated bowl, and momentum against it."""
    runs = [Run(f"gradient descent, lr {lr:g}", "bowl", schuss.SGD, 20, {"lr": lr})
            for lr in (0.4, 0.6)]  # fmt: skip
    runs += [
        Run(f"momentum {m:g}, lr 0.6", "bowl", schuss.Momentum, 20, {"lr": 0.6, "momentum": m})
        for m in (0.5, 0.25)
    ]
    return run_all("Zig-zag on 0.1w1^2 + 2w2^2, and momentum against it", runs, 2)


def adaptive() -> Paths:
    """Adagrad, RMSprop and Adam on the elongated bowl, with the tutorial's numbers."""
    runs = [Run(f"Adagrad, lr {lr:g}", "bowl", schuss.Adagrad, 20, {"lr": lr})
            for lr in (0.4, 2.0)]  # fmt: skip
    runs += [
        Run(f"RMSprop, lr {lr:g}, alpha {alpha:g}", "bowl", schuss.RMSprop,
            n, {"lr": lr, "alpha": alpha})
        for lr, alpha, n in (
            (0.4, 0.9, 20), (0.1, 0.9, 20), (1.0, 0.9, 20),
            (0.4, 0.5, 20), (0.4, 0.7, 20), (0.4, 0.7, 100),
        )
    ]  # fmt: skip
    runs += [Run("Adam, lr 0.1", "bowl", schuss.Adam, n, {"lr": 0.1}) for n in (20, 100, 200)]
    for run in runs:
        run.options["preset"] = "tutorial"
    return run_all("Rules with rates of their own on 0.1w1^2 + 2w2^2", runs, 4)
