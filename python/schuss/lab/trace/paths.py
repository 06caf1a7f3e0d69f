"""The path of a rule on a function, and several of them on one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import schuss
from schuss.engine.points import asked, reached
from schuss.lab.options import COLOURS, MARKERS
from schuss.lab.pictures import name_lines
from schuss.lab.trace.objectives import OBJECTIVES, Objective
from schuss.lab.trace.result import LEVELS, Array, Result, numbers, star

if TYPE_CHECKING:
    from matplotlib.axes import Axes

START = (-5.0, -2.0)


def walk(
    rule: type[schuss.Optimizer],
    value: Callable[[Any], Any],
    gradient: Callable[[Any], Array],
    start: Sequence[float],
    steps: int,
    **options: Any,
) -> Array:
    """The start and what has been reached after each step, one a row, until one is not finite."""
    w = np.array(start, float)
    opt: Any = rule(w, **options)
    points = [w.copy()]
    with np.errstate(all="ignore"):
        for _ in range(steps):
            at = asked(opt, w)
            loss, g = float(value(at)), gradient(at)
            if not (np.isfinite(loss) and np.isfinite(g).all()):
                break
            opt.step(g, loss=loss)
            if not np.isfinite(w).all():
                break
            points.append(reached(opt, w))
    return np.array(points)


@dataclass(frozen=True)
class Run:
    """A rule with its numbers on a bowl."""

    title: str
    bowl: str
    rule: type[schuss.Optimizer]
    steps: int
    options: dict[str, Any]

    @property
    def objective(self) -> Objective:
        return OBJECTIVES[self.bowl]

    def path(self) -> Array:
        """From (-5, -2), n + 1 points."""
        value, gradient = self.objective.value, self.objective.gradient
        return walk(self.rule, value, gradient, START, self.steps, **self.options)


@dataclass(frozen=True)
class Paths(Result):
    """Paths over the level lines of a bowl."""

    runs: tuple[Run, ...]
    paths: tuple[Array, ...]  # of each run, (n + 1, 2)

    @property
    def objective(self) -> Objective:
        return self.runs[0].objective

    @property
    def formula(self) -> str:
        return self.objective.formula.replace("x", "w1").replace("y", "w2")

    def rows(self) -> Iterator[Sequence[str]]:
        yield "rule", "steps", "w1", "w2", self.formula
        for run, path in zip(self.runs, self.paths, strict=True):
            value = f"{self.objective.value(path[-1]):.6g}"
            yield run.title, str(run.steps), *numbers(*path[-1]), value

    def longest(self) -> dict[str, Array]:
        """The paths by title; of those that differ in their steps alone the longest."""
        found: dict[str, Array] = {}
        for run, path in zip(self.runs, self.paths, strict=True):
            found[run.title] = max(found.get(run.title, path), path, key=len)
        return found

    def draw_plane(self, axes: Axes, titles: Iterable[str]) -> None:
        """Paths over the level lines; a star in the minimum, a ring at the start."""
        paths = self.longest()
        axes.set(xlim=(-5.5, 1.0), ylim=(-2.5, 1.0), aspect="equal", xlabel="w1", ylabel="w2")
        self.objective.contours(axes, LEVELS)
        for title, colour, marker in zip(titles, COLOURS, MARKERS, strict=False):
            path = paths[title]
            every = max(1, len(path) // 20)
            axes.plot(*path.T, color=colour, marker=marker, markevery=every, label=title)
        star(axes, (0, 0))
        axes.plot(*START, "o", color="white", markeredgecolor="black", markersize=9)

    def draw_values(
        self, axes: Axes, names: Mapping[str, str], colours: Sequence[str] = COLOURS
    ) -> None:
        """The function's values along paths, and beside each its name; titles are the keys."""
        alongs = [self.objective.value(self.longest()[title].T) for title in names]
        steps = max(map(len, alongs)) - 1
        axes.set(xlabel="finished steps", yscale="log", xlim=(0, steps))
        for along, colour in zip(alongs, colours, strict=False):
            axes.plot(along, "-o", color=colour, markevery=max(1, steps // 20))
        axes.minorticks_off()
        name_lines(axes, list(names.values()))


def descend(runs: Sequence[Run]) -> tuple[tuple[Run, ...], tuple[Array, ...]]:
    """The runs, and their paths."""
    return tuple(runs), tuple(run.path() for run in runs)
