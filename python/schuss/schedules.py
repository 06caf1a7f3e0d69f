"""Values that change from step to step: callables of the number of finished steps.

They serve for `lr` or any other number. A schedule is printable, picklable and comparable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class cosine:  # noqa: N801  a schedule reads as a function
    """Half a cosine from `value` down to `final` over `steps` steps, behind a linear warm-up.

        n < warmup:  value*(n + 1)/warmup
        n < steps:   final + (value - final)*(1 + cos(pi*(n - warmup)/(steps - warmup)))/2
        after:       final

    value    the peak
    steps    of the whole schedule, warm-up included
    warmup   steps of the warm-up, default 0; the first value is value/warmup, not 0
    final    default 0

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5.
    """

    value: float
    steps: int
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < self.steps:
            raise ValueError(
                f"warmup: {self.warmup} is out of range; wanted 0 <= warmup < steps ({self.steps})"
            )

    @property
    def peak(self) -> float:
        """The largest value."""
        return max(self.value, self.final)

    def __call__(self, n: int) -> float:
        if n < self.warmup:
            return self.value * (n + 1) / self.warmup
        progress = min(1.0, (n - self.warmup) / (self.steps - self.warmup))
        return self.final + (self.value - self.final) * (1.0 + math.cos(math.pi * progress)) / 2.0
