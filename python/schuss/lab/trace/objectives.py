"""Functions of two numbers to descend on, with their gradients and minima."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.contour import QuadContourSet

Array = np.ndarray
C = 0.15 * math.pi


@dataclass(frozen=True)
class Objective:
    """A function, what is known of it, and the part of the plane that is drawn."""

    name: str
    formula: str
    value: Callable[[Any], Any]  # of (x, y), numbers or arrays
    gradient: Callable[[Any], Array]
    minima: tuple[tuple[float, float], ...]
    start: tuple[float, float]
    x: tuple[float, float]
    y: tuple[float, float]

    @property
    def least(self) -> float:
        """The value in the deepest of its minima."""
        return float(min(self.value(point) for point in self.minima))

    def contours(self, axes: Axes, colour: str, levels: int | Array = 18) -> None:
        """Draws level lines, more of them where it is low, for the bottom of a valley to be seen.

        As many of the plane's points lie between two levels as between two others, but for that.
        levels   how many, or which
        """
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        x, y = np.meshgrid(np.linspace(left, right, 401), np.linspace(bottom, top, 401))
        values = self.value((x, y))
        if isinstance(levels, int):
            levels = np.quantile(values, np.linspace(0, 1, levels + 2)[1:-1] ** 1.5)
        thin(axes.contour(x, y, values, levels, colors=colour, linewidths=0.7, linestyles="solid"))


def thin(lines: QuadContourSet) -> None:
    """Leaves out the points of level lines that no eye would miss, for small files."""
    pixels = lines.axes.transData
    paths = [path.cleaned(pixels, simplify=True) for path in lines.get_paths()]
    lines.set_paths([pixels.inverted().transform_path(path) for path in paths])


def bowl(w: Any) -> Any:
    return 0.1 * w[0] ** 2 + 2 * w[1] ** 2


def bowl_gradient(w: Any) -> Array:
    return np.array([0.2 * w[0], 4 * w[1]])


def round_bowl(w: Any) -> Any:
    return w[0] ** 2 + 2 * w[1] ** 2


def round_bowl_gradient(w: Any) -> Array:
    return np.array([2 * w[0], 4 * w[1]])


def saddle(w: Any) -> Any:
    return w[0] ** 2 - w[1] ** 2 + w[1] ** 4 / 8


def saddle_gradient(w: Any) -> Array:
    return np.array([2 * w[0], w[1] ** 3 / 2 - 2 * w[1]])


def himmelblau(w: Any) -> Any:
    return (w[0] ** 2 + w[1] - 11) ** 2 + (w[0] + w[1] ** 2 - 7) ** 2


def himmelblau_gradient(w: Any) -> Array:
    a, b = w[0] ** 2 + w[1] - 11, w[0] + w[1] ** 2 - 7
    return np.array([4 * w[0] * a + 2 * b, 2 * a + 4 * w[1] * b])


def rosenbrock(w: Any) -> Any:
    return (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2


def rosenbrock_gradient(w: Any) -> Array:
    a = w[1] - w[0] ** 2
    return np.array([-2 * (1 - w[0]) - 400 * w[0] * a, 200 * a])


def beale(w: Any) -> Any:
    x, y = w
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def beale_gradient(w: Any) -> Array:
    x, y = w
    a, b, c = 1.5 - x + x * y, 2.25 - x + x * y**2, 2.625 - x + x * y**3
    return np.array(
        [
            2 * a * (y - 1) + 2 * b * (y**2 - 1) + 2 * c * (y**3 - 1),
            2 * a * x + 4 * b * x * y + 6 * c * x * y**2,
        ]
    )


def booth(w: Any) -> Any:
    return (w[0] + 2 * w[1] - 7) ** 2 + (2 * w[0] + w[1] - 5) ** 2


def booth_gradient(w: Any) -> Array:
    a, b = w[0] + 2 * w[1] - 7, 2 * w[0] + w[1] - 5
    return np.array([2 * a + 4 * b, 4 * a + 2 * b])


def wave(w: Any) -> Any:
    return sum(x * np.cos(C * x) for x in w)


def wave_gradient(w: Any) -> Array:
    return np.array([np.cos(C * x) - C * x * np.sin(C * x) for x in w])


# Where cos(c*w) = c*w*sin(c*w): the two minima of w*cos(c*w) between -10 and 10.
DEEP, SHALLOW = 7.269388146311475, -1.8256845786723392
OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective(
            "bowl", "0.1x^2 + 2y^2",
            bowl, bowl_gradient, ((0.0, 0.0),), (-5.0, -2.0), (-5.5, 1.0), (-3.0, 1.0),
        ),
        Objective(
            "round", "x^2 + 2y^2",
            round_bowl, round_bowl_gradient, ((0.0, 0.0),), (-5.0, -2.0), (-5.5, 1.0), (-3.0, 1.0),
        ),
        Objective(
            "saddle",
            "x^2 - y^2 + y^4/8",
            saddle, saddle_gradient, ((0.0, 2.0), (0.0, -2.0)), (-1.5, 0.001),
            (-2.0, 2.0), (-3.0, 3.0),
        ),
        Objective(
            "himmelblau",
            "(x^2 + y - 11)^2 + (x + y^2 - 7)^2",
            himmelblau, himmelblau_gradient,
            (
                (3.0, 2.0), (-2.805118086953, 3.131312518250),
                (-3.779310253378, -3.283185991286), (3.584428340330, -1.848126526964),
            ),
            (-1.0, 2.0), (-5.0, 5.0), (-5.0, 5.0),
        ),
        Objective(
            "rosenbrock",
            "(1 - x)^2 + 100(y - x^2)^2",
            rosenbrock, rosenbrock_gradient, ((1.0, 1.0),), (-1.2, 1.0), (-2.0, 2.0), (-1.0, 3.0),
        ),
        Objective(
            "beale",
            "(1.5 - x + xy)^2 + (2.25 - x + xy^2)^2 + (2.625 - x + xy^3)^2",
            beale, beale_gradient, ((3.0, 0.5),), (1.0, 1.5), (-1.0, 4.5), (-1.5, 2.0),
        ),
        Objective(
            "booth",
            "(x + 2y - 7)^2 + (2x + y - 5)^2",
            booth, booth_gradient, ((1.0, 3.0),), (-8.0, 6.0), (-10.0, 10.0), (-10.0, 10.0),
        ),
        Objective(
            "wave", "x cos(0.15pi x) + y cos(0.15pi y)",
            wave, wave_gradient,
            tuple((x, y) for x in (DEEP, SHALLOW) for y in (DEEP, SHALLOW)), (1.0, 2.0),
            (-10.0, 10.0), (-10.0, 10.0),
        ),
    )
}  # fmt: skip
