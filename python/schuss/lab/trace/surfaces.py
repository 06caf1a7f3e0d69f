"""Gradient descent on a round bowl."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import schuss
from schuss.lab.options import COLOURS
from schuss.lab.pictures import figure
from schuss.lab.trace.paths import Paths, Run, descend
from schuss.lab.trace.result import drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CROSSED = 4  # level lines of each path that are drawn in its colour


class Surfaces(Paths):
    """Paths that cross each level line at a right angle."""

    def painted(self) -> Figure:
        picture = figure(3.6, "Gradient descent leaves each level line at a right angle")
        plane, curve = picture.subplots(1, 2, width_ratios=(9, 5))
        titles = list(self.longest())
        self.draw_plane(plane, titles)
        for title, colour in zip(titles, COLOURS, strict=False):
            values = self.objective.value(self.longest()[title][:CROSSED].T)
            self.objective.contours(plane, colour, np.sort(values))
        self.draw_values(curve, {title: title for title in titles})
        plane.set_title("in the colour of a path: the level lines of its first points")
        curve.set_title(f"f(w) = {drawn(self.formula)}")
        return picture


def surfaces() -> Surfaces:
    """Level lines, and descents that leave them at a right angle."""
    runs = [
        Run(f"lr {lr:g}", "round", schuss.SGD, steps, {"lr": lr})
        for lr, steps in ((0.1, 5), (0.1, 10), (0.2, 10))
    ]
    return Surfaces(*descend(runs))
