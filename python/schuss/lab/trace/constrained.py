"""Maxima under a constraint, with their multipliers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from schuss.lab.options import BLUE, GREEN, PURPLE
from schuss.lab.pictures import figure, signed
from schuss.lab.trace.result import LEVELS, TRACE, Array, Result, drawn, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


ROUNDS = "augmented Lagrangian's rounds, over Adam"
ARROW = {"width": 7, "headwidth": 18, "headlength": 14, "color": "#d0d0d0", "shrink": 0.0}


@dataclass(frozen=True)
class Example:
    """A function to maximise where g = 0."""

    name: str
    constraint: str  # g
    value: Callable[[Any], Any]
    gradient: Callable[[Any], Array]
    hessian: Callable[[Any], Array]
    normal: Array  # g = normal'x - total
    total: float
    start: tuple[float, ...]
    free: tuple[float, ...]  # where the maximum without the constraint is


def entropy(states: int, name: str, constraint: str) -> Example:
    """That of probabilities, -sum of p*log(p)."""
    return Example(
        name,
        constraint,
        lambda p: -sum(q * np.log(q) for q in p),
        lambda p: -np.log(p) - 1,
        lambda p: np.diag(-1 / p),
        np.ones(states),
        1.0,
        tuple(0.8 / 2**i for i in range(states)),
        (1 / math.e,) * states,
    )


PARABOLOID = Example(
    "paraboloid",
    "x - y",
    lambda x: -((x[0] - 2) ** 2) - (x[1] - 1) ** 2 + 10,
    lambda x: np.array([-2 * (x[0] - 2), -2 * (x[1] - 1)]),
    lambda x: np.diag([-2.0, -2.0]),
    np.array([1.0, -1.0]),
    0.0,
    (0.0, 0.0),
    (2.0, 1.0),
)
EXAMPLES = (
    PARABOLOID,
    entropy(2, "entropy of a coin", "p1 + p2 - 1"),
    entropy(5, "entropy of 5 states", "p1 + ... + p5 - 1"),
)


@dataclass(frozen=True)
class Solution:
    """Where an example is maximal, and the way there."""

    path: Array  # Newton's, on the KKT system
    x: Array
    value: float
    multiplier: float
    rounds: Array  # of the augmented Lagrangian, over a rule: where each ends
    found: Any  # the last one's result


@dataclass(frozen=True)
class Constrained(Result):
    """The solution of each example."""

    solutions: tuple[Solution, ...]

    def rows(self) -> Iterator[Sequence[str]]:
        yield "example", "method", "steps", "f", "multiplier", "x"
        for example, s in zip(EXAMPLES, self.solutions, strict=True):
            free = float(example.value(np.array(example.free)))
            yield example.name, "free", "", *numbers(free), "", listed(example.free)
            steps = str(len(s.path) - 1)
            yield example.name, "Newton", steps, *numbers(s.value, s.multiplier), listed(s.x)
            r, rounds = s.found, str(len(s.rounds) - 1)
            yield example.name, "augmented", rounds, *numbers(r.fun, *r.multipliers), listed(r.x)

    def painted(self) -> Figure:
        finding = "At a maximum under g = 0, grad f is the multiplier times grad g"
        picture = figure(4.3, finding)
        grid = picture.subplots(1, 3)
        ranges = (((-0.5, 3.5), (-0.5, 3.5)), ((0.001, 1.0), (0.001, 1.0)))
        arrows = ((0.35, (8, 6)), (0.25, (-40, 6)))  # its length by the multiplier; the text
        for axes, example, s, (xs, ys), (length, beside) in zip(
            grid, EXAMPLES, self.solutions, ranges, arrows, strict=False
        ):
            x, y = np.meshgrid(np.linspace(*xs, 121), np.linspace(*ys, 121))
            lines = axes.contour(x, y, example.value((x, y)), 12, colors=LEVELS,
                                 linewidths=0.8, linestyles="solid")  # fmt: skip
            axes.clabel(lines, fontsize=7, manual=beyond(example, s, lines.levels))
            a, b = example.normal
            across = np.array(xs)
            axes.plot(across, (example.total - a * across) / b, color="black", label="g = 0")
            axes.plot(*s.path.T, "-o", color=TRACE, markersize=5, label="Newton's steps")
            axes.plot(*s.rounds.T, "--D", color=PURPLE, label=ROUNDS)
            axes.plot(*example.free, "^", color=GREEN, markersize=9, label="maximum without g")
            axes.plot(*s.x, "*", color=BLUE, markersize=11, label="maximum on g = 0")
            arrow = s.multiplier * example.normal * length
            axes.annotate("", s.x + arrow, s.x, arrowprops=ARROW, zorder=1)
            axes.annotate("grad f", s.x + arrow, beside, textcoords="offset points")
            axes.set(xlim=xs, ylim=ys, aspect="equal", title=titled(example, s))
        grid[0].set(xlabel="x", ylabel="y")
        grid[1].set(xlabel="p1", ylabel="p2")
        picture.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        bars, s = grid[2], self.solutions[2]
        states = np.arange(len(s.x)) + 1
        bars.bar(states - 0.2, s.path[0], 0.4, color=TRACE)
        bars.bar(states + 0.2, s.x, 0.4, color=BLUE)
        bars.text(1.3, 0.75, "where it starts", color=TRACE)
        bars.text(2.6, 0.23, "maximum: 1/5 each", color=BLUE)
        bars.set(xlabel="state", ylabel="probability", xticks=states, title=titled(EXAMPLES[2], s))
        return picture


def listed(x: Any) -> str:
    """The elements of a point, for a row of a table."""
    texts = [f"{value:.4f}" for value in x]
    return f"{texts[0]} each" if len({*texts}) == 1 else " ".join(texts)


def beyond(example: Example, s: Solution, levels: Array) -> list[tuple[float, float]]:
    """Where level lines bear their numbers: on the side of the free maximum without the paths."""
    free = np.array(example.free)
    ray = free + np.linspace(0, 2.1, 500)[:, None] * (free - s.x)
    along = example.value(ray.T)
    inside = levels[(levels > along.min()) & (levels < along.max())]
    return [tuple(ray[np.abs(along - level).argmin()]) for level in inside]


def titled(example: Example, s: Solution) -> str:
    found = signed(f"f = {s.value:.4f}, multiplier {s.multiplier:.4f}")
    return f"{example.name}\ng = {drawn(example.constraint)}\n{found}"


def solve(example: Example) -> Solution:
    """By Newton's method on the Karush-Kuhn-Tucker system, and by descents on a Lagrangian."""
    from scipy.optimize import (  # type: ignore[import-untyped]  # noqa: PLC0415
        Bounds,
        LinearConstraint,
    )

    import schuss.scipy  # noqa: PLC0415  it needs SciPy

    def by(method: Any, low: float) -> Any:
        found = schuss.scipy.minimize(
            example.value,
            example.start,
            jac=example.gradient,
            hess=example.hessian,
            method=method,
            constraints=[LinearConstraint([example.normal], example.total, example.total)],
            bounds=Bounds(low),
            options={"return_all": True},
        )
        if not found.success:
            raise ArithmeticError(found.message)
        return found

    newton = by(schuss.scipy.KKT(maximize=True), -np.inf)
    rule = schuss.scipy.Adam(lr=0.01)
    low = 1e-3 if example.value is not PARABOLOID.value else -np.inf
    rounds = by(schuss.scipy.AugmentedLagrangian(rule, penalty=1, maximize=True), low)
    return Solution(
        np.array(newton.allvecs), newton.x, float(newton.fun), float(newton.multipliers[0]),
        np.array(rounds.allvecs), rounds,
    )  # fmt: skip


def constrained() -> Constrained:
    """Maxima under a constraint and their multipliers, in two ways."""
    return Constrained(tuple(solve(example) for example in EXAMPLES))
