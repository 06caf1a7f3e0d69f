"""Zig-zag on an elongated bowl."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import schuss
from schuss.lab.options import COLOURS
from schuss.lab.pictures import figure, name_lines
from schuss.lab.trace.paths import Paths, Run, descend
from schuss.lab.trace.result import LEVELS, Array, drawn, star

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORDS = {  # by short names of the runs
    "lr 0.4": "zig-zags, then crawls",
    "lr 0.6": "diverges",
    "momentum 0.5": "cancels the zig-zag",
    "momentum 0.25": "cancels less of it",
}
LEFT, RIGHT, HIGH = -5.5, 0.9, 3.0  # what is drawn of the plane


class Zigzag(Paths):
    """Each path in a plane of its own, and the values along all."""

    def painted(self) -> Figure:
        picture = figure(5.4, "Across a narrow valley descent zig-zags; momentum cancels that")
        grid = picture.subplot_mosaic("abe;cde", width_ratios=(5, 5, 4))
        curve = grid.pop("e")
        planes = [*grid.values()]
        for axes in planes[1:]:
            axes.sharex(planes[0])
            axes.sharey(planes[0])
        for axes, run, path, word, colour in zip(
            planes, self.runs, self.paths, WORDS.values(), COLOURS, strict=False
        ):
            axes.set(xlim=(LEFT, RIGHT), ylim=(-HIGH, HIGH), xlabel="w1", ylabel="w2")
            run.objective.contours(axes, LEVELS, 10)
            axes.plot(*until_it_leaves(path).T, "-o", color=colour)
            star(axes, (0, 0))
            axes.set_title(f"{run.title}:\n{word}", color=colour)
            axes.label_outer()
            curve.plot(self.objective.value(path.T), "-o", color=colour, markersize=3)
        curve.set(xlabel="finished steps", yscale="log", xlim=(0, 20))
        curve.set(title=f"f(w) =\n{drawn(self.formula)}")
        name_lines(curve, list(WORDS), gap=0.04)
        return picture


def until_it_leaves(path: Array) -> Array:
    """The points of a path up to the first one that is beyond the picture, and all if none is."""
    beyond = np.flatnonzero(np.abs(path[:, 1]) > HIGH)
    return path[: beyond[0] + 1] if beyond.size else path


def zigzag() -> Zigzag:
    """Zig-zag in a narrow valley, and momentum against it."""
    runs = [
        Run(f"gradient descent, lr {lr:g}", "bowl", schuss.SGD, 20, {"lr": lr}) for lr in (0.4, 0.6)
    ]
    runs += [
        Run(f"momentum {m:g}, lr 0.6", "bowl", schuss.Momentum, 20, {"lr": 0.6, "momentum": m})
        for m in (0.5, 0.25)
    ]
    return Zigzag(*descend(runs))
