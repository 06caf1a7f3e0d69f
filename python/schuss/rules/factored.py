"""Rules that keep the second moment of a matrix as the product of two small arrays.

Three sweeps read a matrix: one adds up its squared gradients, one measures the step, one takes it.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from schuss.engine.declare import DecayMode, Number, choice, number, numbers
from schuss.engine.optimizer import Optimizer, computing_type
from schuss.engine.rule import Numbers, Values
from schuss.reference.sums import Sums

# The cases of an array: whether it is of matrices, and whether it is computed in float64.
MATRICES, WIDE = 1, 2


class Adafactor(Optimizer):
    """RMSprop that keeps of a matrix' squared gradients the means of its rows and its columns.

        w = t^beta2_decay
        r = (1 - w)*r + w*(mean of g*g along each row)
        c = (1 - w)*c + w*(mean of g*g along each column)
        v = r c^T/max(mean(r), eps1)
        v = (1 - w)*v + w*g*g                           in place of all this where x is no matrix
        u = g/sqrt(max(v, eps1*eps1))
        x = (1 - lr*weight_decay)*x - max(eps2, |x|)*min(lr, 1/sqrt(t))*u/max(1, |u|/d)

    |x| is the root of the mean of the squares of an array's elements.

    lr             the largest relative learning rate, in [0, inf), default 1e-2
    beta2_decay    in (-inf, 0], default -0.8
    eps            (eps1, eps2), each in [0, inf), default (None, 1e-3); None: the distance from 1
                   to the next number of the type that is computed in
    d              above which |u| is scaled down, in [1, inf], default 1
    weight_decay   in [0, inf), default 0
    decay_mode     "decoupled" (default), or another: see Optimizer

    State: row_var (r) and col_var (c) of arrays with two axes or more, whose last two are matrices,
    always in the type that is computed in; variance (v) of others. Reads all arrays once more, the
    gradients of matrices twice, and allocates nothing of a matrix' size. Options of every rule: see
    Optimizer.
    Traps: lr is a factor of |x|, and so is the step: a mean over each array, so that how parameters
    are split into arrays matters. 1/sqrt(t) takes over where it is smaller than lr, after 10,000
    steps by default; a schedule's values are an upper bound. Weights of a convolution are many
    small matrices, which save little: pass w.reshape(len(w), -1). Of 16-bit parameters PyTorch's
    eps1 is that of their own type, in which it has its state, too. The stateless call is for arrays
    of one axis. A zero gradient doesn't move x. With eps = 0 an element whose gradients have all
    been 0 becomes NaN.
    Source: Shazeer and Stern 2018, arXiv 1804.04235, algorithms 4 and 5, with PyTorch's eps.
    """

    states: ClassVar = {"adafactor": ("variance",)}
    presets: ClassVar = {"torch": {}}
    lr: Number = number("[0, inf)", default=1e-2)
    beta2_decay: Number = number("(-inf, 0]", default=-0.8)
    eps: tuple[Number | None, Number] = numbers("[0, inf)", default=(None, 1e-3))
    d: Number = number("[1, inf]", default=1.0)
    weight_decay: Number = number("[0, inf)", default=0.0)
    decay_mode: DecayMode = choice(default="decoupled")

    @staticmethod
    def kernel(h: Values) -> str:
        return "adafactor"

    @staticmethod
    def factors(x: np.ndarray) -> bool:
        return x.ndim > 1

    @staticmethod
    def case(x: np.ndarray) -> int:
        return MATRICES * (x.ndim > 1) + WIDE * (computing_type(x) == np.float64)

    @staticmethod
    def in_case(h: Values, case: int) -> Values:
        eps1, eps2 = h["eps"]
        if eps1 is None:
            eps1 = float(np.finfo(np.float64 if case & WIDE else np.float32).eps)
        return {**h, "eps": (eps1, eps2), "factored": bool(case & MATRICES)}

    @staticmethod
    def sums(h: Values) -> tuple[str, ...]:
        return ("x", "u")

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        share, eps = float(t) ** h["beta2_decay"], h["eps"][0]
        least = {"least": eps * eps, "step": 1.0}
        if h["factored"]:  # v is brought forward already
            return {"beta2": 1.0, "w2": 0.0, **least, "share": share, "floor": eps}
        return {"beta2": 1.0 - share, "w2": share, **least}

    @staticmethod
    def adapt(h: Values, t: int, sums: Sums) -> dict[str, float]:
        x, u = (math.sqrt(s / max(sums.size, 1)) for s in (sums.x, sums.u))
        rate = max(h["eps"][1], x) * min(h["lr"], 1.0 / math.sqrt(t))
        return {"step": rate / max(1.0, u / h["d"])}
