"""Adagrad with the whole matrix."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from schuss.checks import Interval
from schuss.scipy.method import Method
from schuss.scipy.problem import Point, Problem


class FullAdagrad(Method):
    """Adagrad with the full matrix of the gradients' products, of which Adagrad has the diagonal.

        G = G + g g'
        x = x - lr*(delta*I + G)^(-1/2) g

    lr      learning rate, in [0, inf), default 1e-2
    delta   in (0, inf), default 1e-8

    Its path does not depend on how the axes are turned. An eigendecomposition a step costs n^3.
    See Method for the options of minimize and the result; it takes neither bounds nor constraints.
    Source: Duchi, Hazan, Singer 2011, JMLR 12, section 1.1, with delta inside the root.
    """

    maxiter = 10_000

    def __init__(self, lr: float = 1e-2, *, delta: float = 1e-8) -> None:
        self.lr = Interval("[0, inf)").check("lr", lr)
        self.delta = Interval("(0, inf)").check("delta", delta)

    def iterates(self, p: Problem, gtol: float) -> Iterator[Point]:
        x, products = p.x0.copy(), np.zeros((p.n, p.n))
        while True:
            point = p.point(x)
            yield point
            g = point.slope
            products += np.outer(g, g)
            w, v = np.linalg.eigh(products)
            x = x - self.lr * (v @ (v.T @ g / np.sqrt(self.delta + np.maximum(w, 0))))
