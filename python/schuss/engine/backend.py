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
        self.estimates: dict[int, np.ndarray] = {}  # of the step at hand

    def norm(self, gradients: list[Any]) -> tuple[float, int, bool]:
        return reference.norm(gradients)

    def scales_finite(self, number: int, g: np.ndarray, scalars: Any) -> bool:
        """Whether an array's finite gradient is so behind the stages scale and clip, too."""
        _, _, stages = read(scalars)
        return reference.scales_finite(np.asarray(self.parameters[number].x), g, stages)

    def factor(
        self, number: int, g: np.ndarray, scalars: Any, share: float, floor: float
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The two factors of an array, each with what it becomes: the rule sees their product."""
        p = self.parameters[number]
        x, (row, column), (*_, stages) = np.asarray(p.x), p.state.values(), read(scalars)
        master = p.beside.get("master")
        new = reference.factors(x, np.asarray(g), row, column, stages, share=share, master=master)
        self.estimates[number] = reference.estimate(x, *new, floor)
        return list(zip((row, column), new, strict=True))

    def state(self, number: int) -> list[np.ndarray]:
        """The arrays that an array's rule sees."""
        found = self.estimates.get(number)
        return list(self.parameters[number].state.values()) if found is None else [found]

    def measure(self, number: int, g: np.ndarray, scalars: Any, wanted: int) -> list[float]:
        """What the step would do to an array: all sums, of which only the wanted ones count."""
        p = self.parameters[number]
        rule, numbers, stages = read(scalars)
        own = getattr(reference, f"{rule.__name__}_measures", None)
        arrays = np.asarray(p.x), np.asarray(g), self.state(number)
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

        estimate = self.estimates.pop(number, None)
        x = copied(p.x)
        state = [stored(a) for a in p.state.values()] if estimate is None else [estimate]
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
