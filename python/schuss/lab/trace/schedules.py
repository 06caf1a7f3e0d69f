"""Schedules side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from schuss import schedules as library
from schuss.lab.options import BLUE
from schuss.lab.pictures import figure
from schuss.lab.trace.result import Array, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 100
SCHEDULES: tuple[library.Schedule, ...] = (
    library.inverse_time(1.0, 0.05),
    library.inverse_sqrt(1.0, 0.05),
    library.exponential(1.0, 0.03),
    library.step(1.0, 25, 0.5),
    library.piecewise([1.0, 0.3, 0.1], [30, 60]),
    library.linear(1.0, 100),
    library.polynomial(1.0, 100, power=2),
    library.cosine(1.0, 100),
    library.cosine_restarts(1.0, 25),
    library.one_cycle(1.0, 100),
    library.warmup(library.cosine(1.0, 80), 20),
    library.warmup(library.inverse_sqrt(1.0, 0.05), 20),
)


@dataclass(frozen=True)
class Schedules(Result):
    """The value of each schedule after every number of finished steps."""

    values: Array  # (schedules, STEPS)

    def rows(self) -> Iterator[Sequence[str]]:
        at = [*range(0, STEPS, 20), STEPS - 1]
        yield "schedule", *(f"n = {n}" for n in at)
        for schedule, values in zip(SCHEDULES, self.values, strict=True):
            yield short(schedule), *(f"{value:.4f}" for value in values[at])

    def painted(self) -> Figure:
        picture = figure(6.2, "Twelve ways for a learning rate to change in a hundred steps")
        grid = picture.subplots(3, 4, sharex=True, sharey=True)
        for axes, schedule in zip(grid.flat, SCHEDULES, strict=True):
            library.draw(schedule, STEPS, ax=axes)
            axes.lines[0].set_color(BLUE)
            axes.get_legend().remove()
            axes.set(title=short(schedule), ylim=(-0.03, 1.05), xlabel="finished steps")
            axes.set(ylabel="learning rate", yticks=[0, 0.5, 1])
            axes.label_outer()
        return picture


def short(schedule: library.Schedule) -> str:
    """Its name, and that of what it warms up to."""
    parts = [short(part) for part in schedule.parts if isinstance(part, library.Schedule)]
    return " to ".join([type(schedule).__name__, *parts])


def schedules() -> Schedules:
    """Twelve schedules of a learning rate."""
    return Schedules(np.array([[schedule(n) for n in range(STEPS)] for schedule in SCHEDULES]))
