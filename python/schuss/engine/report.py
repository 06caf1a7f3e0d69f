"""How far a step went, by the sums that its kernels took on the way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Norms(NamedTuple):
    """Three norms of one array, or of all: exact to about 1e-6 in float32.

    They are added in the type that is computed in: of elements beyond 1e19 in float32 they are
    infinite, and elements below 1e-22 don't count.
    """

    grad: float  # of the gradient as the rule sees it
    update: float  # of what is taken from x, before any weight decay
    param: float  # of x before the step


class Report(Mapping[str, Norms]):
    """The norms of each array that stepped, by its name; and of all of them together."""

    def __init__(self, sums: Mapping[str, tuple[float, float, float]]) -> None:
        self._sums = sums

    def __getitem__(self, name: str) -> Norms:
        return Norms(*map(math.sqrt, self._sums[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._sums)

    def __len__(self) -> int:
        return len(self._sums)

    @property
    def total(self) -> Norms:
        """Of all arrays together."""
        g, u, x = (math.sqrt(sum(s)) for s in zip((0.0,) * 3, *self._sums.values(), strict=True))
        return Norms(g, u, x)

    @property
    def grad(self) -> float:
        return self.total.grad

    @property
    def update(self) -> float:
        return self.total.update

    @property
    def param(self) -> float:
        return self.total.param

    def __repr__(self) -> str:
        return f"Report(total={self.total!r}, {dict(self)!r})"
