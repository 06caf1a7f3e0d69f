"""What L1 and L2 penalties make of the weights of a regression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import schuss
from schuss.lab.options import COLOURS
from schuss.lab.pictures import figure, name_lines, signed
from schuss.lab.trace.result import Array, Result

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

    def painted(self) -> Figure:
        picture = figure(4.2, "L1 makes weights exactly zero, one after the other; L2 makes none")
        names = [signed(f"b{i + 1}, true: {true:g}") for i, true in enumerate(TRUE)]
        for axes, path, title in zip(
            picture.subplots(1, 2, sharey=True),
            (self.l1, self.l2),
            ("L1, by the proximal step; a dot where a weight becomes 0", "L2"),
            strict=True,
        ):
            for weights, colour in zip(path.T, COLOURS, strict=False):
                zero = np.flatnonzero(weights == 0)[:1].tolist()
                axes.plot(PENALTIES, weights, "-o", color=colour, markersize=6, markevery=zero)
            axes.set(xscale="log", xlim=(6e-4, 12), xlabel="penalty \N{GREEK SMALL LETTER LAMDA}")
            axes.set_xticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
            axes.minorticks_off()
            axes.set_title(title)
            name_lines(axes, names, at=0)
        picture.axes[0].set_ylabel("weight")
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
    """Penalties: weights become zero under L1, and small under L2."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((number, TRUE.size))
    y = x @ TRUE + 0.5 * rng.standard_normal(number)
    largest = 2 * float(np.linalg.eigvalsh(x.T @ x / number)[-1])
    lasso = [fitted(x, y, 1 / largest, steps, l1=s, l1_mode="prox") for s in PENALTIES.tolist()]
    ridge = [  # a penalty s*|b|^2 has the gradient 2*s*b
        fitted(x, y, 1 / (largest + 2 * s), steps, l2=2 * s) for s in PENALTIES.tolist()
    ]
    return Shrinkage(x, y, np.array(lasso), np.array(ridge))
