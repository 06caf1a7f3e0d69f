"""How Eve's first version divides its steps: by how much the loss changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

import schuss
from schuss.lab.options import BLUE, GREY, VERMILION
from schuss.lab.pictures import figure, name_lines
from schuss.lab.trace.result import Array, Result, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What a loss did, in each interval.
WORDS = ("fell\nfar", "fell", "hardly\nfell", "hardly\nrose", "rose", "rose\nfar")
# A loss as in training: it falls, stands still, jumps up by an odd batch, and stands still again.
LOSSES = (
    *(1.6**-n for n in range(10)),
    *(1.6**-9 * (1 + 0.02 * (-1) ** n) for n in range(12)),
    0.2,
    *(1.6**-9 * (1 + 0.02 * (-1) ** n) for n in range(14)),
)
BETA3 = 0.8  # of the mean over steps, in the example; the rule's own is 0.999


@dataclass(frozen=True)
class Eve(Result):
    """What the rule makes of a loss after one of 1, and of the losses of a training."""

    thresholds: tuple[float, float]  # k, K
    loss: Array
    tracked: Array
    r: Array
    samples: tuple[tuple[float, float, float], ...]  # loss, tracked and r in each interval
    course: Array  # of LOSSES: what is tracked
    divisors: tuple[Array, Array]  # r, and its mean d

    @property
    def ends(self) -> list[float]:
        """The five losses between the six intervals."""
        k, most = self.thresholds
        return [1 / (1 + most), 1 / (1 + k), 1.0, 1 + k, 1 + most]

    def rows(self) -> Iterator[Sequence[str]]:
        ends = [0.0, *self.ends, np.inf]
        yield "interval", "from", "to", "a loss", "is tracked as", "r"
        for i, sample in enumerate(self.samples):
            yield str(i + 1), *numbers(*ends[i : i + 2], *sample)

    def places(self, loss: Array) -> Array:
        """Where losses are drawn: all intervals are as wide, whatever k and K are."""
        ends = np.log([self.loss[0], *self.ends, self.loss[-1]])
        found: Array = np.interp(np.log(loss), ends, np.arange(len(ends)))
        return found

    def painted(self) -> Figure:
        picture = figure(6.4, "Eve takes longer steps while the loss hardly changes, and shorter "
                         "ones where it jumps")  # fmt: skip
        (divided, course), (tracked, divisors) = picture.subplots(2, 2, sharex="col")
        self.intervals(divided, tracked)
        self.training(course, divisors)
        return picture

    def intervals(self, divided: Axes, tracked: Axes) -> None:
        """What follows from one loss: r, and what is tracked in its place."""
        k, most = self.thresholds
        for side in (self.loss <= 1, self.loss > 1):  # it jumps over 1
            x = self.places(self.loss[side])
            divided.plot(x, self.r[side], color=VERMILION, linewidth=2)
            tracked.plot(x, self.places(self.tracked[side]), color=BLUE, linewidth=2)
        tracked.plot([0, 6], [0, 6], "--", color=GREY, zorder=1)
        tracked.text(3.2, 2.4, "the loss itself", color=GREY)
        ticks = range(1, 6)
        names = ["1/(1+K)", "1/(1+k)", "1", "1+k", "1+K"]
        values = [f"= {end:.3g}" if end != 1 else "" for end in self.ends]
        for axes in (divided, tracked):
            axes.set_xlim(0, 6)
            axes.set_xticks(ticks, [f"{n}\n{v}" for n, v in zip(names, values, strict=True)],
                            fontsize="small")  # fmt: skip
            for i in (0, 5):
                axes.axvspan(i, i + 1, color=VERMILION, alpha=0.12, linewidth=0)
            axes.axvspan(2, 4, color=BLUE, alpha=0.12, linewidth=0)
        for i, word in enumerate(WORDS):
            divided.text(i + 0.5, 1.12 * most, word, ha="center", va="center", fontsize="small")
        divided.set(title="r: how much the loss has changed", ylim=(0, 1.25 * most))
        divided.set_yticks([k, most], [f"k = {k:g}", f"K = {most:g}"])
        tracked.set(title="the loss that it remembers", ylim=(0.6, 5.4))
        tracked.set_yticks(ticks, names)
        tracked.set_xlabel("this loss over the remembered one, not to scale")

    def training(self, course: Axes, divisors: Axes) -> None:
        """What follows from the losses of a training."""
        course.plot(LOSSES, "o", color=GREY)
        course.plot(self.course, color=BLUE)
        course.set(
            yscale="log", xlim=(0, len(LOSSES)), title="an example: the losses of a training"
        )
        name_lines(course, ["loss", "remembered"])
        for values, colour in zip(self.divisors, (VERMILION, "black"), strict=True):
            divisors.plot(values, color=colour, drawstyle="steps-mid")
        divisors.axhline(1, color=GREY, linestyle="--", zorder=1)
        divisors.text(0.5, 1.05, "as Adam", color=GREY)
        divisors.set(ylim=(0, 1.1 * self.thresholds[1]))
        divisors.set(xlabel="finished steps", title="a step is divided by d, a mean of r")
        name_lines(divisors, ["r", "d"])


def followed(losses: Sequence[float], thresholds: tuple[float, float], beta3: float = 0.0) -> Array:
    """The tracked loss and d after each step, one a row; where beta3 is 0, d is r."""
    w, g = np.zeros(1), np.ones(1)
    opt = schuss.Eve(w, variant="v1", betas=(0.9, 0.999, beta3), thresholds=thresholds)
    found = []
    for loss in losses:
        opt.step(g, loss=float(loss))
        shared = opt.state_dict()["shared"]
        found.append((shared["fhat"], shared["d"]))
    return np.array(found)


def eve(k: float = 0.5, most: float = 3.0) -> Eve:
    """Steps that follow the loss: the six intervals of Eve."""
    thresholds = (k, most)
    ends = [0.5 / (1 + most), 1 / (1 + most), 1 / (1 + k), 1.0, 1 + k, 1 + most, 2 * (1 + most)]
    within = [np.geomspace(low, high, 65)[:-1] for low, high in pairwise(ends)]
    loss = np.concatenate([*within, ends[-1:]])
    tracked, r = np.array([followed([1.0, f], thresholds)[-1] for f in loss]).T
    middles = [float(np.sqrt(low * high)) for low, high in pairwise(ends)]
    samples = tuple((f, *followed([1.0, f], thresholds)[-1].tolist()) for f in middles)
    course, d = followed(LOSSES, thresholds, BETA3).T
    divisors = followed(LOSSES, thresholds)[:, 1], d
    return Eve(thresholds, loss, tracked, r, samples, course, divisors)
