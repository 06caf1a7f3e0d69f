"""A step in NumPy, in place of the kernels: what the compiled sequence calls, array by array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from schuss import _core, reference
from schuss.engine.codes import BlockFloat8
from schuss.engine.groups import ROW_COUNTS
from schuss.engine.scalars import KERNELS, NAMES
from schuss.reference.storage import computing

if TYPE_CHECKING:
    from schuss.engine.groups import Parameter


class Given(NamedTuple):
    """An array's gradient in a step: as it came, or what its pieces make together."""

    values: Any
    rows: np.ndarray | None  # numbers of those that step by themselves; None: the array as a whole
    arrays: list[np.ndarray]  # the user's, which it is made of

    @classmethod
    def of(cls, gradient: Any, weights: Sequence[float] | None, p: Parameter) -> Given:
        """Of an array or Rows; with weights, of a tuple of pieces, some of which may be None."""
        counted = not p.beside.keys().isdisjoint(ROW_COUNTS.values())
        every = np.arange(len(p.x)) if counted else None
        if not isinstance(gradient, tuple):  # which came in place of pieces, or without any
            weights = None
        if weights is None and not isinstance(gradient, _core.Rows):
            return cls(np.asarray(gradient), every, [np.asarray(gradient)])
        pieces, weights = ([gradient], [1.0]) if weights is None else (gradient, weights)
        there = [(g, w) for g, w in zip(pieces, weights, strict=True) if g is not None]
        factors, number = [w for _, w in there], computing(p.x.dtype)
        if isinstance(there[0][0], _core.Rows):
            indices = [np.asarray(g.index) for g, _ in there]
            arrays = [np.asarray(g.values) for g, _ in there]
            rows, values = reference.coalesce(indices, arrays, factors, number)
            return cls(values, rows, arrays)
        arrays = [np.asarray(g) for g, _ in there]
        return cls(reference.average(arrays, factors, number), every, arrays)


class Numpy:
    """The specification as a backend; works on the plain array behind a subclass.

    What it computes is copied into place by the compiled sequence, once all of it is there: an
    interrupt leaves a whole step, or none. Arrays are told apart by their parameters' numbers. A
    step calls `take`, where it is asked for `norm` and then `clip`, and the others in the order in
    which they stand here.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = parameters
        self.given: dict[int, Given] = {}  # of the step at hand, as are these
        self.estimates: dict[int, np.ndarray] = {}
        self.sums: dict[int, np.ndarray] = {}

    def take(self, numbers: list[int], gradients: list[Any], weights: list[float] | None) -> None:
        """The gradients of a step, in place of those that came before.

        weights   those of each gradient's pieces; None: a gradient is an array or Rows
        """
        self.given = {
            number: Given.of(g, weights, self.parameters[number])
            for number, g in zip(numbers, gradients, strict=True)
        }

    def norm(self, per: str) -> list[tuple[float, int, bool]]:
        """The norm of all gradients, that of each "array", or of each "row" that has elements."""
        taken = list(self.given.values())
        if per == "all":
            by_rows = [i for i, given in enumerate(taken) if given.rows is not None]
            return [reference.norm([given.values for given in taken], by_rows)]
        if per == "array":
            return [reference.norm([g.values], [] if g.rows is None else [0]) for g in taken]
        rows = (row for g in taken if g.values.size for row in np.atleast_1d(g.values))
        return [reference.norm([row]) for row in rows]

    def clip(self, number: int, factors: np.ndarray) -> None:
        """Multiplies each row of a gradient by its factor; of no dimension, it is a row."""
        given, x = self.given[number], self.parameters[number].x
        by = factors if given.values.ndim else factors[0]
        with np.errstate(all="ignore"):
            values = reference.product(given.values, by, computing(x.dtype))
        self.given[number] = given._replace(values=values)

    def scales_finite(self, number: int, scalars: Any) -> bool:
        """Whether an array's finite gradient is so behind the stages scale and clip, too."""
        _, _, stages = read(scalars)
        x = np.asarray(self.parameters[number].x)
        return reference.scales_finite(x, self.given[number].values, stages)

    def factor(
        self, number: int, scalars: Any, share: float, floor: float
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The two factors of an array, each with what it becomes: the rule sees their product."""
        p, g = self.parameters[number], self.given[number].values
        x, (row, column), (*_, stages) = np.asarray(p.x), p.state.values(), read(scalars)
        master = p.beside.get("master")
        new = reference.factors(x, g, row, column, stages, share=share, master=master)
        self.estimates[number] = reference.estimate(x, *new, floor)
        return list(zip((row, column), new, strict=True))

    def state(self, number: int) -> list[Any]:
        """The arrays that an array's rule sees."""
        found = self.estimates.get(number)
        return list(self.parameters[number].state.values()) if found is None else [found]

    def measure(self, number: int, scalars: Any, wanted: int) -> list[float]:
        """What the step would do to an array: all sums, of which only the wanted ones count."""
        p, given = self.parameters[number], self.given[number]
        rule, numbers, stages = read(scalars)
        sums = reference.measure(
            rule,
            np.asarray(p.x),
            given.values,
            self.state(number),
            numbers,
            stages,
            own=getattr(reference, f"{rule.__name__}_measures", None),
            master=p.beside.get("master"),
            rows=given.rows,
        )
        bits = (1, 2, 4, 8, 16, 16)
        return [s if wanted & bit else 0.0 for s, bit in zip(sums, bits, strict=True)]

    def run(
        self, number: int, scalars: Any, sets: list[tuple[Any, Any]] | None, reports: bool
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """One array's step, in copies: each array that the step writes, with what it becomes.

        sets      None; or scalars that count in place of the others, each with the places of those
                  rows of the gradient that step with these
        reports   whether `report` is to know the sums
        """
        p, given = self.parameters[number], self.given.pop(number)
        rows, master = given.rows, p.beside.get("master")
        pairs: list[tuple[np.ndarray, np.ndarray]] = []

        def copied(a: np.ndarray) -> np.ndarray:
            plain = np.asarray(a)
            pairs.append((plain, plain.copy(order="K")))
            return pairs[-1][1]

        def stored(a: Any) -> Any:
            codes = isinstance(a, BlockFloat8)
            return BlockFloat8.of(copied(a.codes), copied(a.scales)) if codes else copied(a)

        x, before = np.asarray(p.x), self.state(number)
        estimate = self.estimates.pop(number, None)
        new_x = copied(x)
        state = [stored(a) for a in before] if estimate is None else [estimate]
        written = {k: copied(a) for k, a in p.beside.items() if k in ("master", "average")}
        bounds = {k: a for k, a in p.beside.items() if k in ("low", "high")}
        sums = np.zeros((3, 1 if rows is None else len(rows)))
        for own, places in [(scalars, ...)] if sets is None else sets:
            rule, numbers, stages = read(own)
            g, of = given.values[places], None if rows is None else rows[places]
            if reports:
                sums[:, places] = reference.report(
                    rule, x, g, before, numbers, stages, master=master, rows=of
                )
            stages = stages._replace(zero_grad=False)
            around: Any = {**written, **bounds, "position": p.position, "rows": of}
            reference.step(rule, new_x, g, state, numbers, stages, **around)
        if reports:
            self.sums[number] = reference.pairwise(sums)
        if read(scalars)[2].zero_grad:  # of the user's arrays: a sum of them is no one's
            pairs += [(a, np.zeros_like(a)) for a in given.arrays]
        return pairs

    def report(self, number: int) -> tuple[float, float, float]:
        """The sums of the squares of g, u and x in an array's last step that was to report them."""
        g, u, x = self.sums[number].tolist()
        return g, u, x


def read(scalars: tuple[float, ...]) -> tuple[Callable[..., Any], dict[str, float], Any]:
    """A set of scalars in the compiled sequence's order: rule, its scalars, those of the stages."""
    kernel, count = KERNELS[int(scalars[0])], len(reference.Stages._fields)
    of_stages: Any = scalars[1 : 1 + count]
    stages = reference.Stages(*of_stages)
    numbers = dict(zip(NAMES[kernel], scalars[1 + count :], strict=True))
    return getattr(reference, kernel), numbers, stages._replace(key=int(stages.key))
