"""The regression whose solutions are a line: where a descent ends depends on where it starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import schuss
from schuss.lab.options import BLUE, GREY
from schuss.lab.pictures import figure
from schuss.lab.trace.result import TRACE, Array, Result, drawn, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

X = np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]])
Y = np.array([0.0, 1.0])


@dataclass(frozen=True)
class Regression(Result):
    """Descents of (y - Xw)^2 from uniform random starts."""

    seed: int  # of the first start; the others' follow
    starts: Array  # (200, 3)
    ends: Array
    losses: Array  # of the first descent, before each step
    package: Array  # what scikit-learn answers

    def rows(self) -> Iterator[Sequence[str]]:
        a, b, c = self.ends.T
        yield "", "a", "b", "c"
        yield "scikit-learn", *numbers(*(self.package + 0.0))
        for seed in range(3):
            yield f"seed {self.seed + seed}, start", *numbers(*self.starts[seed])
            yield f"seed {self.seed + seed}, end", *numbers(*self.ends[seed])
        yield f"least of {len(self.ends)}", *numbers(*self.ends.min(axis=0))
        yield f"largest of {len(self.ends)}", *numbers(*self.ends.max(axis=0))
        yield "largest |a - (c - 1)|", *numbers(np.abs(a - (c - 1)).max()), "", ""
        yield "largest |b - (1 - 2c)|", "", *numbers(np.abs(b - (1 - 2 * c)).max()), ""

    def painted(self) -> Figure:
        finding = "Of many solutions, descent finds the one nearest to where it starts"
        picture = figure(4.6, finding)
        space = picture.add_subplot(1, 2, 1, projection="3d")
        c = np.array([min(0.0, self.ends[:, 2].min()), max(1.0, self.ends[:, 2].max())])
        space.plot(c - 1, 1 - 2 * c, c, color="black",
                   label=f"solutions: {drawn('a = c - 1, b = 1 - 2c')}")  # fmt: skip
        space.plot(*self.starts.T, ".", color=GREY, markersize=3, label="starts")
        space.plot(*self.ends.T, "o", color=TRACE, label="where they end")
        space.plot(*self.package[:, None], "*", color=BLUE, markersize=18, zorder=10,
                   label="scikit-learn's: nearest to 0")  # fmt: skip
        for way in np.stack([self.starts, self.ends], axis=1):
            space.plot(*way.T, color=TRACE, linewidth=0.5, alpha=0.4)
        space.set(xlabel="a", ylabel="b", zlabel="c")
        space.view_init(elev=30, azim=45)
        space.set_box_aspect(None, zoom=0.9)
        picture.legend(*space.get_legend_handles_labels(), loc="outside lower center", ncols=4)

        curve = picture.add_subplot(1, 2, 2)
        curve.plot(self.losses, color=TRACE)
        curve.set(xlabel="finished steps", ylabel="squared error", yscale="log",
                  title=f"descent of seed {self.seed}: steep at first, then flat")  # fmt: skip
        return picture


def regression(seed: int = 0, number: int = 200, steps: int = 1000) -> Regression:
    """Many solutions: 200 descents end along a line, near their starts."""
    from sklearn.linear_model import (  # type: ignore[import-untyped]  # noqa: PLC0415
        LinearRegression,
    )

    seeds = range(seed, seed + number)
    starts = np.array([np.random.RandomState(s % 2**32).uniform(-1, 1, 3) for s in seeds])
    w = starts.copy()
    opt = schuss.SGD(w, lr=0.01)  # element by element, so that all descend at once
    losses = []
    for _ in range(steps):
        losses.append(float(np.square(Y - X @ w[0]).sum()))
        opt.step(-2 * (Y @ X - w @ (X.T @ X)))
    package = LinearRegression(fit_intercept=False).fit(X, Y).coef_
    return Regression(seed, starts, w, np.array(losses), package)
