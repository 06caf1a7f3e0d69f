"""Eve's six intervals: between which bounds its first version lets the loss be tracked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

import schuss
from schuss.lab.trace.result import FUNCTION, LEVELS, TRACE, Array, Result, figure, numbers, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What becomes of a loss in each interval.
WORDS = (
    "fell far:\nheld at 1/(1 + K)",
    "fell:\nas it is",
    "hardly fell:\ntaken for 1/(1 + k)",
    "hardly rose:\ntaken for 1 + k",
    "rose:\nas it is",
    "rose far:\nheld at 1 + K",
)


@dataclass(frozen=True)
class Eve(Result):
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

    def places(self, loss: Array) -> Array:
        """Where losses are drawn: all intervals are as wide, whatever k and K are."""
        ends = np.log([self.loss[0], *self.ends, self.loss[-1]])
        found: Array = np.interp(np.log(loss), ends, np.arange(len(ends)))
        return found

    def draw(self) -> Figure:
        picture = figure(11, 7)
        above, below = picture.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for side in (self.loss <= 1, self.loss > 1):  # it jumps over 1
            x = self.places(self.loss[side])
            above.plot(x, self.places(self.tracked[side]), color=TRACE, linewidth=2)
            below.plot(x, self.r[side], color=TRACE, linewidth=2)
        above.plot([0, 6], [0, 6], "--", color=LEVELS, zorder=1)
        above.text(3.2, 2.8, "the loss itself", color="#606060")
        for axes in (above, below):
            for i in range(1, 6, 2):
                axes.axvspan(i, i + 1, color=FUNCTION, alpha=0.15, linewidth=0)
            plain(axes)
        for i, sample in enumerate(self.samples):
            above.plot(*self.places(np.array(sample[:2])), "o", color=FUNCTION)
            above.text(i + 0.5, 1.02, f"{i + 1}\n{WORDS[i]}", ha="center",
                       transform=above.get_xaxis_transform())  # fmt: skip
        k, most = self.thresholds
        above.set(ylabel="the loss that Eve remembers", xlim=(0, 6), ylim=(0.6, 5.4))
        below.set(
            xlabel="the loss of this step, after one of 1; not to scale: each interval is as wide",
            ylabel="r: by its running mean\nthe step is divided",
            ylim=(0, None),
        )
        ticks = range(1, 6)
        names = ["1/(1 + K)", "1/(1 + k)", "1", "1 + k", "1 + K"]
        values = [f"{end:.3g}" if end != 1 else "" for end in self.ends]
        below.set_xticks(ticks, [f"{n}\n{v}" for n, v in zip(names, values, strict=True)])
        above.set_yticks(ticks, names)
        below.set_yticks([k, most], [f"k = {k:g}", f"K = {most:g}"])
        picture.suptitle("Eve follows the loss, and slows down where it jumps: six intervals")
        return picture


def followed(loss: float, thresholds: tuple[float, float]) -> tuple[float, float]:
    """The tracked loss and r of a step whose loss comes after one of 1."""
    w, g = np.zeros(1), np.ones(1)
    opt = schuss.Eve(w, variant="v1", betas=(0.9, 0.999, 0.0), thresholds=thresholds)
    opt.step(g, loss=1.0)
    opt.step(g, loss=loss)
    shared = opt.state_dict()["shared"]
    return shared["fhat"], shared["d"]  # with beta3 = 0, d is r


def eve(k: float = 0.5, most: float = 3.0) -> Eve:
    """Eve's six intervals: how its first version bounds the change of a loss."""
    thresholds = (k, most)
    ends = [0.5 / (1 + most), 1 / (1 + most), 1 / (1 + k), 1.0, 1 + k, 1 + most, 2 * (1 + most)]
    within = [np.geomspace(low, high, 65)[:-1] for low, high in pairwise(ends)]
    loss = np.concatenate([*within, ends[-1:]])
    tracked, r = np.array([followed(f, thresholds) for f in loss]).T
    middles = [float(np.sqrt(low * high)) for low, high in pairwise(ends)]
    samples = tuple((f, *followed(f, thresholds)) for f in middles)
    return Eve(thresholds, loss, tracked, r, samples)
