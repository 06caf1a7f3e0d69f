"""Zig-zag on an elongated bowl."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import schuss
from schuss.lab.trace.paths import Paths, Run, descend
from schuss.lab.trace.result import LEVELS, STAR, TRACE, drawn, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Zigzag(Paths):
    """Each path in a plane of its own."""

    def draw(self) -> Figure:
        picture = figure(8.4, 6.6)
        grid = picture.subplots(2, 2, sharex=True, sharey=True)
        for axes, run, path in zip(grid.flat, self.runs, self.paths, strict=True):
            axes.set(xlim=(-5.5, 0.9), ylim=(-3.0, 3.0), xlabel="w1", ylabel="w2")
            run.objective.contours(axes, LEVELS)
            axes.plot(0, 0, "*", color=STAR, markeredgecolor="black", markersize=12, zorder=3)
            axes.plot(*path.T, "-o", color=TRACE, markersize=4)
            title = f"{run.title}, {run.steps} steps"
            if beyond := int(np.sum(np.abs(path[:, 1]) > 3)):
                title += f"\n{beyond} of its points lie beyond"
            axes.set_title(title)
            axes.label_outer()
        picture.suptitle(drawn("Zig-zag on 0.1w1^2 + 2w2^2, and momentum against it"))
        return picture


def zigzag() -> Zigzag:
    """Zig-zag on an elongated bowl, and momentum against it."""
    runs = [
        Run(f"gradient descent, lr {lr:g}", "bowl", schuss.SGD, 20, {"lr": lr}) for lr in (0.4, 0.6)
    ]
    runs += [
        Run(f"momentum {m:g}, lr 0.6", "bowl", schuss.Momentum, 20, {"lr": 0.6, "momentum": m})
        for m in (0.5, 0.25)
    ]
    return Zigzag(*descend(runs))
