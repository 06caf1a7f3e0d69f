"""The checkpoints that every later version has to read: `python tests/doors/golden.py` wrote them.

One for each kind of what is in a file. A format that has been released keeps its files.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import schuss

FOLDER = Path(__file__).parent / "golden"
F4, BF16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)


class Run:
    """A small training."""

    def __init__(
        self,
        rule: type[schuss.Optimizer],
        dtype: Any = F4,
        bits: type[Any] = np.random.PCG64,
        **options: Any,
    ) -> None:
        self.rng = np.random.Generator(bits(0))
        self.params = {
            "w": np.ones((2, 3), dtype, order="F"),
            "b": np.ones(3, dtype),
        }
        self.opt = rule(self.params, **options)

    def step(self) -> None:
        grads = {k: np.empty_like(x) for k, x in self.params.items()}
        for g in grads.values():
            g[...] = self.rng.standard_normal(g.shape)
        self.opt.step(grads)


CASES: dict[str, Callable[[], Run]] = {
    "1-adamw-schedule": lambda: Run(
        schuss.AdamW, lr=schuss.schedules.cosine(0.1, steps=9), ema=0.9, amsgrad=True
    ),
    "1-sgd-float64": lambda: Run(schuss.SGD, float, np.random.MT19937, lr=0.1, momentum=0.9),
    "1-lion-bfloat16": lambda: Run(schuss.Lion, BF16, np.random.Philox, master=True),
    "1-adam-float16": lambda: Run(schuss.Adam, np.float16, state_dtype="bfloat16"),
    "1-prodigy-plateau": lambda: Run(
        schuss.Prodigy, lr=schuss.schedules.ReduceOnPlateau(1.0), clip_norm=1.0, nonfinite="skip"
    ),
    "1-soap": lambda: Run(schuss.SOAP),
}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, case in CASES.items():
        path = FOLDER / f"{name}.safetensors"
        if path.exists() and "--force" not in sys.argv:
            continue
        run = case()
        for _ in range(3):
            run.step()
        schuss.save(path, params=run.params, opt=run.opt, rng=run.rng, step=3)
