"""Rules with a learning rate of its own for each number, on an elongated bowl."""

from __future__ import annotations

from typing import TYPE_CHECKING

import schuss
from schuss.lab.options import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from schuss.lab.pictures import figure
from schuss.lab.trace.paths import Paths, Run, descend
from schuss.lab.trace.result import drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RMSPROP = "RMSprop, lr {lr}, alpha {alpha}"
# The best run of each rule has the rule's colour; the others are drawn beside it.
BEST = ("Adagrad, lr 2", RMSPROP.format(lr=0.4, alpha=0.9), "Adam, lr 0.1")
PANELS = (
    ("Adagrad slows down for good:\nit wants a large rate",
     BLUE, {BEST[0]: "lr 2", "Adagrad, lr 0.4": "lr 0.4"}),
    ("RMSprop, alpha 0.9:\nit jumps about with a large rate",
     VERMILION,
     {BEST[1]: "lr 0.4"} | {RMSPROP.format(lr=lr, alpha=0.9): f"lr {lr}" for lr in (0.1, 1)}),
    ("RMSprop, lr 0.4:\nit never rests with a short memory",
     VERMILION,
     {BEST[1]: "alpha 0.9"} | {RMSPROP.format(lr=0.4, alpha=a): f"alpha {a}" for a in (0.5, 0.7)}),
    ("Adam, lr 0.1:\nit arrives in waves", GREEN, {BEST[2]: ""}),
)  # fmt: skip


class Adaptive(Paths):
    """The best path of each rule in one plane; the values along it and those beside it."""

    def painted(self) -> Figure:
        picture = figure(6.4, "A rate of its own for each number makes a narrow valley easy")
        plane, *panels = picture.subplot_mosaic("001;234").values()
        self.draw_plane(plane, BEST)
        plane.legend([drawn(title) for title in BEST], loc="lower right", frameon=True,
                     framealpha=0.9, edgecolor="white")  # fmt: skip
        plane.set_title(f"the best path of each rule on {drawn(self.formula)}")
        for axes, (words, colour, names) in zip(panels, PANELS, strict=True):
            axes.set(title=drawn(words), ylim=(1e-10, 100))
            printed = {title: drawn(name) for title, name in names.items()}
            self.draw_values(axes, printed, (colour, PURPLE, ORANGE))
        for axes in panels[:2]:
            axes.set_ylabel("f(w)")
        return picture


def adaptive() -> Adaptive:
    """A rate for each number, by Adagrad, RMSprop and Adam."""
    runs = [Run(f"Adagrad, lr {lr:g}", "bowl", schuss.Adagrad, 20, {"lr": lr}) for lr in (0.4, 2.0)]
    runs += [
        Run(
            RMSPROP.format(lr=f"{lr:g}", alpha=f"{alpha:g}"),
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
