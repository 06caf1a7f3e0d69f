"""The two minima of a curve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import schuss
from schuss.lab.options import GREEN, VERMILION
from schuss.lab.pictures import figure
from schuss.lab.trace.paths import walk
from schuss.lab.trace.result import FUNCTION, Array, Result, drawn, numbers, star

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Where a descent starts, where it is said to, and in which colour; their minima in the same order.
STARTS = ((0.2, (0.02, 0.75), GREEN), (0.3, (0.6, 1.1), VERMILION))
NAMES = ("local minimum", "global minimum")


@dataclass(frozen=True)
class Minima(Result):
    """The minima of w cos(pi w) between -1 and 2, and the ways into them."""

    paths: tuple[Array, ...]  # of each start

    def rows(self) -> Iterator[Sequence[str]]:
        yield "minimum", "start", "w", "f(w)"
        for name, path in zip(NAMES, self.paths, strict=True):
            w = path[-1]
            yield name.split()[0], f"{path[0]:g}", *numbers(w, w * np.cos(np.pi * w))

    def painted(self) -> Figure:
        picture = figure(3.8, "Which minimum a descent finds depends on where it starts")
        axes = picture.subplots()
        w = np.linspace(-1, 2, 301)
        axes.plot(w, w * np.cos(np.pi * w), color=FUNCTION)
        for name, path, (start, at, colour) in zip(NAMES, self.paths, STARTS, strict=True):
            values = path * np.cos(np.pi * path)
            axes.plot(path, values, "-o", color=colour)
            star(axes, (path[-1], values[-1]))
            axes.annotate(name, (path[-1], values[-1]), (0, -20), textcoords="offset points",
                          ha="center")  # fmt: skip
            axes.annotate(f"starts at {start:g}", (start, values[0]), at, ha="center", color=colour,
                          arrowprops={"arrowstyle": "->", "color": colour})  # fmt: skip
        axes.set(xlabel="w", ylabel=f"f(w) = {drawn('w cos(pi w)')}", ylim=(-1.5, 2.1))
        return picture


def minima() -> Minima:
    """Two minima, found by descents from either side of a hill."""

    def value(w: Any) -> Any:
        return w[0] * np.cos(np.pi * w[0])

    def slope(w: Array) -> Array:
        own: Array = np.cos(np.pi * w) - np.pi * w * np.sin(np.pi * w)
        return own

    return Minima(
        tuple(walk(schuss.SGD, value, slope, [w], 200, lr=0.05)[:, 0] for w, _, _ in STARTS)
    )
