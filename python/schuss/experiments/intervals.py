"""Eve's six intervals: between which bounds its first version lets the loss be tracked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

import schuss
from schuss.experiments.result import FUNCTION, TRACE, Array, Result, figure, numbers, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Intervals(Result):
    """What the rule makes of a loss after one of 1."""

    thresholds: tuple[float, float]  # k, K
    loss: Array
    tracked: Array
    r: Array
    samples: tuple[tuple[float, float, float], ...]  # loss, tracked and r in each interval

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

    def draw(self) -> Figure:
        from matplotlib.ticker import NullLocator  # noqa: PLC0415  an optional package

        picture = figure(9, 7)
        above, below = picture.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for side in (self.loss <= 1, self.loss > 1):  # it jumps over 1
            above.plot(self.loss[side], self.tracked[side], color=TRACE)
            below.plot(self.loss[side], self.r[side], color=TRACE)
        ends = [self.loss[0], *self.ends, self.loss[-1]]
        for axes in (above, below):
            for i, (low, high) in enumerate(pairwise(ends)):
                if i % 2:
                    axes.axvspan(low, high, color=FUNCTION, alpha=0.15, linewidth=0)
            plain(axes)
        for i, sample in enumerate(self.samples):
            above.plot(*sample[:2], "o", color=FUNCTION)
            middle = np.sqrt(ends[i] * ends[i + 1])
            above.text(middle, 1.02, str(i + 1), ha="center", fontsize=13,
                       transform=above.get_xaxis_transform())  # fmt: skip
        k, most = self.thresholds
        above.set(xscale="log", yscale="log", ylabel="tracked loss",
                  xlim=(self.loss[0], self.loss[-1]))  # fmt: skip
        below.set(xlabel="loss, after one of 1", ylabel="r, which lies in [k, K]", ylim=(0, None))
        ticks = self.ends
        names = ["1/(1 + K)", "1/(1 + k)", "1", "1 + k", "1 + K"]
        values = [f"{t:.3g}" if t != 1 else "" for t in ticks]
        below.set_xticks(ticks, [f"{n}\n{v}" for n, v in zip(names, values, strict=True)])
        above.set_yticks(ticks, names)
        below.set_yticks([k, most], [f"k = {k:g}", f"K = {most:g}"])
        for axis in (below.xaxis, above.yaxis):
            axis.set_minor_locator(NullLocator())
        picture.suptitle("Eve's six intervals: in 2 and 5 a loss is tracked as it is")
        return picture


def followed(loss: float, thresholds: tuple[float, float]) -> tuple[float, float]:
    """The tracked loss and r of a step whose loss comes after one of 1."""
    w, g = np.zeros(1), np.ones(1)
    opt = schuss.Eve(w, variant="v1", betas=(0.9, 0.999, 0.0), thresholds=thresholds)
    opt.step(g, loss=1.0)
    opt.step(g, loss=loss)
    shared = opt.state_dict()["shared"]
    return shared["fhat"], shared["d"]  # with beta3 = 0, d is r


def intervals(k: float = 0.5, most: float = 3.0) -> Intervals:
    """Eve's six intervals: how its first version bounds the change of a loss."""
    thresholds = (k, most)
    loss = np.geomspace(1 / (1 + most) / 2, 2 * (1 + most), 401)
    tracked, r = np.array([followed(f, thresholds) for f in loss]).T
    ends = [0.5 / (1 + most), 1 / (1 + most), 1 / (1 + k), 1.0, 1 + k, 1 + most, 2 * (1 + most)]
    middles = [float(np.sqrt(low * high)) for low, high in pairwise(ends)]
    samples = tuple((f, *followed(f, thresholds)) for f in middles)
    return Intervals(thresholds, loss, tracked, r, samples)
