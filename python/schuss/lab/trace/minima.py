"""The two minima of a curve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import schuss
from schuss.lab.trace.paths import walk
from schuss.lab.trace.result import FUNCTION, TRACE, Array, Result, drawn, figure, numbers, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Minima(Result):
    """The minima of w cos(pi w) between -1 and 2."""

    w: Array
    values: Array

    def rows(self) -> Iterator[Sequence[str]]:
        yield "minimum", "w", "f(w)"
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
        axes.set(xlabel="w", ylabel="f(w)", title=drawn("w cos(pi w)"))
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
