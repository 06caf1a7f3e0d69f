"""Rules with a learning rate of its own for each number, on an elongated bowl."""

from __future__ import annotations

from typing import TYPE_CHECKING

import schuss
from schuss.lab.trace.paths import Paths, Run, descend
from schuss.lab.trace.result import drawn, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Adaptive(Paths):
    """All paths of a rule in one plane."""

    def draw(self) -> Figure:
        picture = figure(14, 6)
        planes, curves = picture.subplots(2, 3, height_ratios=(5, 3))
        rules: list[type[schuss.Optimizer]] = [schuss.Adagrad, schuss.RMSprop, schuss.Adam]
        for plane, curve, rule in zip(planes, curves, rules, strict=True):
            self.draw_rule(rule, plane, curve)
            plane.set_title(rule.__name__)
        picture.suptitle(drawn("Rules with rates of their own on 0.1w1^2 + 2w2^2"))
        return picture


def adaptive() -> Adaptive:
    """Adagrad, RMSprop and Adam on the elongated bowl."""
    runs = [Run(f"Adagrad, lr {lr:g}", "bowl", schuss.Adagrad, 20, {"lr": lr}) for lr in (0.4, 2.0)]
    runs += [
        Run(
            f"RMSprop, lr {lr:g}, alpha {alpha:g}",
            "bowl",
            schuss.RMSprop,
            steps,
            {"lr": lr, "alpha": alpha},
        )
        for lr, alpha, steps in (
            (0.4, 0.9, 20),
            (0.1, 0.9, 20),
            (1.0, 0.9, 20),
            (0.4, 0.5, 20),
            (0.4, 0.7, 20),
            (0.4, 0.7, 100),
        )
    ]
    runs += [Run("Adam, lr 0.1", "bowl", schuss.Adam, n, {"lr": 0.1}) for n in (20, 100, 200)]
    for run in runs:
        run.options["preset"] = "tutorial"
    return Adaptive(*descend(runs))
