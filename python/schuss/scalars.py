"""What a step hands to a kernel: computed once, in double, for both backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from schuss import _core, reference

if TYPE_CHECKING:
    from schuss.groups import Parameter

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
    around: reference.Stages

    def packed(self) -> tuple[float, ...]:
        """What the compiled driver reads."""
        rule = self.rule
        return (NUMBERS[self.kernel], *self.around, *[rule[name] for name in NAMES[self.kernel]])

    def step(self, p: Parameter, g: np.ndarray) -> None:
        """One array's step, in NumPy: on the plain array behind a subclass."""
        reference.step(
            getattr(reference, self.kernel),
            np.asarray(p.x),
            np.asarray(g),
            list(p.state.values()),
            {name: self.rule[name] for name in NAMES[self.kernel]},
            self.around,
            position=p.position,
            **p.beside,
        )
