"""The path of a rule on a function, and several of them on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import schuss
from schuss.engine.points import asked, reached
from schuss.lab.options import COLOURS, MARKERS
from schuss.lab.trace.objectives import OBJECTIVES, Objective
from schuss.lab.trace.result import LEVELS, STAR, Array, Result, numbers, plain

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
    """Paths over the level lines of bowls."""

    runs: tuple[Run, ...]
    paths: tuple[Array, ...]  # of each run, (n + 1, 2)

    def rows(self) -> Iterator[Sequence[str]]:
        yield "rule", "f(w)", "steps", "w1", "w2", "f there"
        for run, path in zip(self.runs, self.paths, strict=True):
            formula = run.objective.formula.replace("x", "w1").replace("y", "w2")
            value = f"{run.objective.value(path[-1]):.6g}"
            yield run.title, formula, str(run.steps), *numbers(*path[-1]), value

    def longest(self, rule: type[schuss.Optimizer]) -> dict[str, tuple[Run, Array]]:
        """The paths of a rule, by title; of those that differ in their steps alone the longest."""
        found: dict[str, tuple[Run, Array]] = {}
        for run, path in zip(self.runs, self.paths, strict=True):
            if run.rule is rule and run.steps >= found.get(run.title, (run, path))[0].steps:
                found[run.title] = run, path
        return found

    def draw_rule(self, rule: type[schuss.Optimizer], plane: Axes, curve: Axes) -> None:
        """All paths of a rule in one plane, and the function's values along each."""
        paths = self.longest(rule)
        objective = next(iter(paths.values()))[0].objective
        plane.set(xlim=(-5.5, 1.0), ylim=(-3.0, 1.0), aspect="equal", xlabel="w1", ylabel="w2")
        objective.contours(plane, LEVELS)
        plane.plot(0, 0, "*", color=STAR, markeredgecolor="black", markersize=14, zorder=3)
        styles = zip(COLOURS, MARKERS, strict=True)
        for (title, (_, path)), (colour, marker) in zip(paths.items(), styles, strict=False):
            style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4.5}
            style["markevery"] = max(1, len(path) // 20)
            plane.plot(*path.T, **style, label=title.removeprefix(f"{rule.__name__}, "))
            curve.plot(objective.value(path.T), **style)
        curve.set(xlabel="finished steps", ylabel="f(w)", yscale="log")
        plane.legend(loc="lower right", fontsize=8, framealpha=0.9)
        plain(curve)


def descend(runs: Sequence[Run]) -> tuple[tuple[Run, ...], tuple[Array, ...]]:
    """The runs, and their paths."""
    return tuple(runs), tuple(run.path() for run in runs)
