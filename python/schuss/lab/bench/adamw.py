"""AdamW as people write it, with the defaults of schuss.AdamW: in NumPy, and in Python alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LR, BETA1, BETA2, EPS, WEIGHT_DECAY = 1e-3, 0.9, 0.999, 1e-8, 1e-2


class InPlace:
    """In NumPy, in place and without a temporary array."""

    def __init__(self, params: Sequence[np.ndarray], grads: Sequence[np.ndarray]) -> None:
        self.params, self.grads = params, grads
        self.m, self.v, self.room = ([np.zeros_like(x) for x in params] for _ in range(3))
        self.t = 0

    def step(self) -> None:
        self.t += 1
        for arrays in zip(self.params, self.grads, self.m, self.v, self.room, strict=True):
            update(*arrays, self.t)


def update(
    x: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, a: np.ndarray, t: int
) -> None:
    step, denom = LR / (1 - BETA1**t), 1 / math.sqrt(1 - BETA2**t)
    m += np.multiply(1 - BETA1, np.subtract(g, m, out=a), out=a)
    v *= BETA2
    v += np.multiply(1 - BETA2, np.square(g, out=a), out=a)
    np.add(np.multiply(denom, np.sqrt(v, out=a), out=a), EPS, out=a)
    x *= 1 - LR * WEIGHT_DECAY
    x -= np.multiply(step, np.divide(m, a, out=a), out=a)


class Python:
    """Over lists of floats."""

    def __init__(self, x: list[float], g: list[float]) -> None:
        self.x, self.g = x, g
        self.m, self.v = [0.0] * len(x), [0.0] * len(x)
        self.t = 0

    def step(self) -> None:
        self.t += 1
        w1, w2, keep = 1 - BETA1, 1 - BETA2, 1 - LR * WEIGHT_DECAY
        step, denom = LR / (1 - BETA1**self.t), 1 / math.sqrt(1 - BETA2**self.t)
        x, m, v = self.x, self.m, self.v
        for i, g in enumerate(self.g):
            m[i] = mean = m[i] + w1 * (g - m[i])
            v[i] = square = BETA2 * v[i] + w2 * (g * g)
            x[i] = keep * x[i] - step * (mean / (denom * math.sqrt(square) + EPS))
