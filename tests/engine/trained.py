"""Optimizers with some steps behind them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from schuss.engine.optimizer import Optimizer

F4 = np.float32
Params = dict[str, np.ndarray]


def trained(
    rule: type[Optimizer], steps: int = 3, params: Params | None = None, **options: Any
) -> tuple[Optimizer, Params]:
    if params is None:
        params = {"w": np.linspace(-1, 1, 35, dtype=F4).reshape(5, 7), "b": np.ones(7, F4)}
    opt = rule(params, **options)
    train(opt, params, steps)
    return opt, params


def train(opt: Optimizer, params: Params, steps: int) -> None:
    for _ in range(steps):
        t = opt.iterations
        grads = {n: np.cos(x.astype(np.float64) + t).astype(x.dtype) for n, x in params.items()}
        opt.step(grads, loss=2 + math.cos(t))
