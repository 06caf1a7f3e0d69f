"""Rules of one's choice on a function of one's choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import schuss
from schuss.lab.options import COLOURS, MARKERS
from schuss.lab.trace.objectives import Objective
from schuss.lab.trace.paths import walk
from schuss.lab.trace.result import LEVELS, STAR, Array, Result, drawn, figure, numbers, plain

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
        yield "rule", "steps", "x", "y", "value", "least value", "nearest minimum"
        for name, path, values in zip(self.names, self.paths, self.values(), strict=True):
            with np.errstate(over="ignore"):
                away = [np.hypot(*(path[-1] - m)) for m in np.array(self.objective.minima)]
            near = self.objective.minima[int(np.argmin(away))]
            found = f"{values[-1]:.6g}", f"{values.min():.6g}", f"({near[0]:.4g}, {near[1]:.4g})"
            yield name, str(len(path) - 1), *numbers(*path[-1]), *found

    def draw(self) -> Figure:
        picture = figure(12, 5.6)
        plane, curve = picture.subplots(1, 2, width_ratios=(5, 4))
        xlim, ylim = self.ranges()
        plane.set(xlim=xlim, ylim=ylim, xlabel="x", ylabel="y", title=self.objective.name)
        self.objective.contours(plane, LEVELS)
        for point in self.objective.minima:
            plane.plot(*point, "*", color=STAR, markeredgecolor="black", markersize=15)
        values = self.values()
        least = min(self.objective.least, *(along.min() for along in values))  # some have no end
        lines = zip(self.names, self.paths, values, COLOURS, MARKERS, strict=False)
        for i, (name, path, along, colour, marker) in enumerate(lines):
            every = max(1, len(path) // 12)
            style = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.3}
            plane.plot(*path.T, **style, markevery=(i * every // 7, every), label=name)
            curve.plot(along - least, **style, markevery=(i * every // 7, every))
        plane.plot(*self.paths[0][0], "o", color="white", markeredgecolor="black", markersize=9)
        curve.set(xlabel="finished steps", ylabel="value above the least",
                  title=f"f = {drawn(self.objective.formula)}")  # fmt: skip
        curve.set_yscale("log", nonpositive="mask")
        low, high = curve.get_ylim()
        start = max(values[0][0] - least, 1e-12)
        curve.set_ylim(max(low, 1e-12), min(high, 100 * start))  # what diverges leaves the picture
        curve.title.set_fontsize(10 if len(self.objective.formula) < 50 else 8)
        plain(curve)
        picture.legend(loc="outside lower center", ncols=min(len(self.rules), 4))
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
