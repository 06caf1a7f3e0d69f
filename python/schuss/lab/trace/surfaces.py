"""Gradient descent on a round bowl."""

from __future__ import annotations

from typing import TYPE_CHECKING

import schuss
from schuss.lab.trace.paths import Paths, Run, descend
from schuss.lab.trace.result import drawn, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Surfaces(Paths):
    """Paths that cross each level line at a right angle."""

    def draw(self) -> Figure:
        picture = figure(11, 4.2)
        plane, curve = picture.subplots(1, 2, width_ratios=(3, 2))
        self.draw_rule(schuss.SGD, plane, curve)
        title = "Gradient descent on w1^2 + 2w2^2: each step at a right angle to the level line"
        picture.suptitle(drawn(title))
        return picture


def surfaces() -> Surfaces:
    """Gradient descent over the level lines of a round bowl."""
    runs = [
        Run(f"lr {lr:g}", "round", schuss.SGD, steps, {"lr": lr})
        for lr, steps in ((0.1, 5), (0.1, 10), (0.2, 10))
    ]
    return Surfaces(*descend(runs))
