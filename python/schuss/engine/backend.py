"""A step in NumPy, in place of the kernels: what the compiled sequence calls for one array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from schuss import reference
from schuss.engine.codes import BlockFloat8
from schuss.engine.scalars import KERNELS, NAMES

if TYPE_CHECKING:
    from schuss.engine.groups import Parameter


class Numpy:
    """The specification as a backend; works on the plain array behind a subclass.

    What it computes is copied into place by the compiled sequence, once all of it is there: an
    interrupt leaves a whole step, or none.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = parameters

    def norm(self, gradients: list[Any]) -> tuple[float, int, bool]:
        return reference.norm(gradients)

    def scales_finite(self, number: int, g: np.ndarray, scalars: Any) -> bool:
        """Whether an array's finite gradient is so behind the stages scale and clip, too."""
        _, _, stages = read(scalars)
        return reference.scales_finite(np.asarray(self.parameters[number].x), g, stages)

    def measure(self, number: int, g: np.ndarray, scalars: Any, wanted: int) -> list[float]:
        """What the step would do to an array: all sums, of which only the wanted ones count."""
        p = self.parameters[number]
        rule, numbers, stages = read(scalars)
        own = getattr(reference, f"{rule.__name__}_measures", None)
        arrays = np.asarray(p.x), np.asarray(g), list(p.state.values())
        master = p.beside.get("master")
        sums = reference.measure(rule, *arrays, numbers, stages, own=own, master=master)
        bits = (1, 2, 4, 8, 16, 16)
        return [s if wanted & bit else 0.0 for s, bit in zip(sums, bits, strict=True)]

    def run(self, number: int, g: np.ndarray, scalars: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        """One array's step, in copies: each array that the step writes, with what it becomes."""
        p = self.parameters[number]
        rule, numbers, stages = read(scalars)
        pairs: list[tuple[np.ndarray, np.ndarray]] = []

        def copied(a: np.ndarray) -> np.ndarray:
            plain = np.asarray(a)
            pairs.append((plain, plain.copy(order="K")))
            return pairs[-1][1]

        def stored(a: Any) -> Any:
            codes = isinstance(a, BlockFloat8)
            return BlockFloat8.of(copied(a.codes), copied(a.scales)) if codes else copied(a)

        x, state = copied(p.x), [stored(a) for a in p.state.values()]
        beside: Any = {k: a if k in ("low", "high") else copied(a) for k, a in p.beside.items()}
        given = copied(g) if stages.zero_grad else np.asarray(g)
        reference.step(rule, x, given, state, numbers, stages, position=p.position, **beside)
        return pairs


def read(scalars: tuple[float, ...]) -> tuple[Callable[..., Any], dict[str, float], Any]:
    """A set of scalars in the compiled sequence's order: rule, its scalars, those of the stages."""
    kernel, count = KERNELS[int(scalars[0])], len(reference.Stages._fields)
    of_stages: Any = scalars[1 : 1 + count]
    stages = reference.Stages(*of_stages)
    numbers = dict(zip(NAMES[kernel], scalars[1 + count :], strict=True))
    return getattr(reference, kernel), numbers, stages._replace(key=int(stages.key))
