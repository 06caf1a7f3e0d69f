"""What L1 and L2 penalties make of the weights of a regression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import schuss
from schuss.lab.options import COLOURS, MARKERS
from schuss.lab.trace.result import Array, Result, figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRUE = np.array([3.0, -2.0, 1.5, 0.5, 0.0, 0.0])
PENALTIES = np.geomspace(0.01, 10, 31)


@dataclass(frozen=True)
class Shrinkage(Result):
    """The weights for each strength of either penalty."""

    x: Array
    y: Array
    l1: Array  # (31, 6)
    l2: Array

    def rows(self) -> Iterator[Sequence[str]]:
        yield "penalty", "lambda", *(f"b{i + 1}" for i in range(TRUE.size)), "zeros"
        for name, path in (("L1", self.l1), ("L2", self.l2)):
            for i in range(0, len(PENALTIES), 5):
                zeros = str(int(np.sum(path[i] == 0)))
                yield name, f"{PENALTIES[i]:.4f}", *(f"{b:.4f}" for b in path[i]), zeros

    def draw(self) -> Figure:
        picture = figure(11, 4.8)
        for axes, path, name in zip(
            picture.subplots(1, 2, sharey=True),
            (self.l1, self.l2),
            ("L1, by the proximal step: exact zeros", "L2: shrunk together, none exactly zero"),
            strict=True,
        ):
            axes.axhline(0, color="#8a8a8a", linewidth=0.8)
            for i, weights in enumerate(path.T):
                axes.plot(PENALTIES, weights, color=COLOURS[i], marker=MARKERS[i], markersize=5,
                          markevery=(i, 6), label=f"b{i + 1}, made with {TRUE[i]:g}")  # fmt: skip
            axes.set(xscale="log", xlabel="\N{GREEK SMALL LETTER LAMDA}", title=name)
            plain(axes)
        picture.axes[0].set_ylabel("weight")
        picture.legend(*picture.axes[0].get_legend_handles_labels(), loc="outside right center")
        return picture


def fitted(x: Array, y: Array, lr: float, steps: int, **penalty: Any) -> Array:
    """The weights that minimise the mean squared error and the penalty."""
    b = np.zeros(x.shape[1])
    opt = schuss.SGD(b, lr=lr, **penalty)
    products, moments = 2 / len(x) * (x.T @ x), 2 / len(x) * (x.T @ y)
    for _ in range(steps):
        opt.step(products @ b - moments)
    return b


def shrinkage(seed: int = 0, number: int = 60, steps: int = 250) -> Shrinkage:
    """The paths of weights under L1 and L2 penalties of growing strength."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((number, TRUE.size))
    y = x @ TRUE + 0.5 * rng.standard_normal(number)
    largest = 2 * float(np.linalg.eigvalsh(x.T @ x / number)[-1])
    lasso = [fitted(x, y, 1 / largest, steps, l1=s, l1_mode="prox") for s in PENALTIES.tolist()]
    ridge = [  # a penalty s*|b|^2 has the gradient 2*s*b
        fitted(x, y, 1 / (largest + 2 * s), steps, l2=2 * s) for s in PENALTIES.tolist()
    ]
    return Shrinkage(x, y, np.array(lasso), np.array(ridge))
