"""Rules of one's choice on a function of one's choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import schuss
from schuss.lab.options import COLOURS, MARKERS
from schuss.lab.pictures import figure, name_lines
from schuss.lab.trace.objectives import Objective
from schuss.lab.trace.paths import walk
from schuss.lab.trace.result import LEVELS, Array, Result, drawn, star

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Own(Result):
    """The path of each rule, and what it starts from."""

    objective: Objective
    rules: tuple[type[schuss.Optimizer], ...]
    rates: tuple[float, ...]
    steps: int
    paths: tuple[Array, ...]  # (steps + 1, 2), or fewer where numbers leave what is finite

    @property
    def names(self) -> list[str]:
        rates = zip(self.rules, self.rates, strict=True)
        return [f"{rule.__name__}, lr {lr:g}" for rule, lr in rates]

    def values(self) -> list[Array]:
        """The function along each path."""
        with np.errstate(over="ignore", invalid="ignore"):
            return [self.objective.value(path.T) for path in self.paths]

    def ranges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """What is drawn: the objective's part of the plane, the start, and no path far beyond."""
        points = np.concatenate(self.paths)
        return wide(self.objective.x, points[:, 0]), wide(self.objective.y, points[:, 1])

    def rows(self) -> Iterator[Sequence[str]]:
        yield "rule", "lr", "steps", "x", "y", "f there", "distance"
        for rule, lr, path, values in zip(
            self.rules, self.rates, self.paths, self.values(), strict=True
        ):
            with np.errstate(over="ignore"):
                away = min(float(np.hypot(*(path[-1] - m))) for m in self.minima)
            x, y = path[-1]
            found = f"{x:.4g}", f"{y:.4g}", f"{values[-1]:.3g}", f"{away:.2g}"
            yield rule.__name__, f"{lr:g}", str(len(path) - 1), *found

    @property
    def minima(self) -> Array:
        return np.array(self.objective.minima)

    def painted(self) -> Figure:
        picture = figure(4.6, f"{self.objective.name}: f = {drawn(self.objective.formula)}")
        plane, curve = picture.subplots(1, 2)
        xlim, ylim = self.ranges()
        plane.set(xlim=xlim, ylim=ylim, xlabel="x", ylabel="y")
        plane.set_title("a ring at the start, a star in each minimum")
        self.objective.contours(plane, LEVELS)
        values = self.values()
        least = min(self.objective.least, *(along.min() for along in values))  # some have no end
        for path, along, colour, marker in zip(self.paths, values, COLOURS, MARKERS, strict=False):
            style: dict[str, Any] = {"color": colour, "marker": marker, "linewidth": 1.3}
            style["markevery"] = max(1, len(path) // 12)
            plane.plot(*path.T, **style)
            curve.plot(along - least, **style)
        star(plane, *self.objective.minima)
        plane.plot(*self.paths[0][0], "o", color="white", markeredgecolor="black", markersize=9)
        curve.set(xlabel="finished steps", title="f, above the least value known")
        curve.set_yscale("log", nonpositive="mask")
        low, high = curve.get_ylim()
        start = max(values[0][0] - least, 1e-12)
        # What diverges leaves the picture.
        curve.set(ylim=(max(low, 1e-12), min(high, 100 * start)), xlim=(0, self.steps))
        name_lines(curve, self.names)
        return picture


def wide(ends: tuple[float, float], along: Array) -> tuple[float, float]:
    """A range with the first of some numbers, and the others but for those far away."""
    low, high = ends
    near = np.append(along[np.abs(along - (low + high) / 2) <= high - low], along[0])
    margin = 0.05 * (high - low)
    left = low if near.min() >= low else float(near.min()) - margin
    right = high if near.max() <= high else float(near.max()) + margin
    return left, right


def own(
    objective: Objective,
    rules: Sequence[type[schuss.Optimizer]],
    rates: Sequence[float],
    start: tuple[float, float] | None = None,
    steps: int = 300,
) -> Own:
    """Rules of your choice on a function of your choice."""
    paths = tuple(
        walk(rule, objective.value, objective.gradient, start or objective.start, steps, lr=lr)
        for rule, lr in zip(rules, rates, strict=True)
    )
    return Own(objective, tuple(rules), tuple(rates), steps, paths)
