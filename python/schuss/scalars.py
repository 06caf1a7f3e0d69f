"""What a step hands to a kernel: computed once, in double, for both backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from schuss import _core, reference

NUMBERS = {name: number for number, (name, _, _) in enumerate(_core.rules())}


def scalar_names(kernel: str) -> tuple[str, ...]:
    """The members of a kernel's struct, in order: the keyword arguments of its reference."""
    code = getattr(reference, kernel).__code__
    return tuple(code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount])


NAMES = {kernel: scalar_names(kernel) for kernel in NUMBERS}


class ScalarSet(NamedTuple):
    """The scalars of one step of all arrays that share a group and a step count."""

    kernel: str
    rule: Mapping[str, float]  # what the kernel takes, and perhaps more
    scale: float
    l2: float
    keep: float
    flush: bool

    def packed(self) -> tuple[float, ...]:
        """What the compiled driver reads."""
        rule = self.rule
        stages = (NUMBERS[self.kernel], self.scale, self.l2, self.keep, self.flush)
        return (*stages, *[rule[name] for name in NAMES[self.kernel]])

    def step(self, x: np.ndarray, g: np.ndarray, state: list[np.ndarray]) -> None:
        """One array's step, in NumPy: on the plain array behind a subclass."""
        reference.step(
            getattr(reference, self.kernel),
            np.asarray(x),
            np.asarray(g),
            state,
            {name: self.rule[name] for name in NAMES[self.kernel]},
            scale=self.scale,
            l2=self.l2,
            keep=self.keep,
            flush=self.flush,
        )
