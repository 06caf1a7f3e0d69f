"""What a step of shares has to know of the arrays as a whole: the compiled sequence asks for it.

What is measured of an array is summed in a tree over chunks of 4096 elements, at whose edges it is
cut. So the processes exchange the sums of their chunks, eight bytes for each 4096 elements, and
each of them goes through the same tree to the same bits that one process would find.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from schuss import reference
from schuss.engine.spread import require_same
from schuss.mpi.shares import Shares
from schuss.mpi.wire import Wire

STEP = "step"  # wherever in it, since one that fails doesn't know how far the others are
NUMBERS = "step: what schedules, scales and measured arrays make of it"


class Whole:
    """The arrays whose shares an optimizer steps, and the other processes, which step the rest."""

    def __init__(self, shares: Shares, wire: Wire) -> None:
        self.shares, self.wire = shares, wire
        self.sizes = shares.sizes
        self.committed = False  # that there is no way back from the step at hand
        self.raised: BaseException | None = None  # what all processes have raised, the last time
        self.numbers = b""  # of an open step

    def open(self, numbers: np.ndarray) -> None:
        """By which all arrays will step, before their gradients come."""
        self.numbers = numbers.tobytes()

    def commit(self, numbers: np.ndarray) -> None:
        """Everything has been found good: from here on the step is done, everywhere."""
        own = numbers.tobytes()
        self.agree(STEP)
        with self.in_all():
            require_same(self.wire, NUMBERS, own)
        self.committed = True

    @contextmanager
    def in_all(self) -> Iterator[None]:
        """What is raised within is raised in all processes alike."""
        try:
            yield
        except BaseException as found:
            self.raised = found
            raise

    def agree(self, at: str, error: BaseException | None = None) -> None:
        """All processes are here, and none has failed; or all of them raise."""
        with self.in_all():
            self.wire.agree(at, error)

    def sums(self, sums: np.ndarray, numbers: list[int]) -> list[list[float]]:
        """Those of each array, from those of its chunks here: several side by side."""
        of_arrays, _ = self.gathered(sums, numbers)
        with np.errstate(all="ignore"):
            return [reference.pairwise(of_array.T).tolist() for of_array in of_arrays]

    def squares(self, sums: np.ndarray, numbers: list[int], finite: bool) -> tuple[float, bool]:
        """The sum of all squares, arrays added in their order; whether all gradients are finite."""
        mark = np.full((1, 1), float(finite))
        of_arrays, marks = self.gathered(np.concatenate([sums, mark]), numbers)
        total = 0.0
        with np.errstate(all="ignore"):
            for of_array in of_arrays:
                if len(of_array):
                    total += float(reference.pairwise(of_array[:, 0]))
        return total, bool(np.concatenate(marks).all())

    def first(self, number: int) -> int:
        """The smallest of these numbers."""
        self.agree(STEP)
        found = self.gather(number.to_bytes(8, "little"), fixed=True)
        return min(int.from_bytes(one, "little") for one in found)

    def gather(self, data: bytes, *, fixed: bool = False) -> list[bytes]:
        """What all processes have; where that fails they are no longer together."""
        try:
            return self.wire.gather(data, fixed=fixed)
        except BaseException:
            self.committed = True
            raise

    def gathered(
        self, sums: np.ndarray, numbers: list[int]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The sums of all chunks of each array, in their order, and what each has behind them."""
        columns, data = sums.shape[1], sums.tobytes()
        self.agree(STEP)
        parts = [np.frombuffer(one).reshape(-1, columns) for one in self.gather(data)]
        begins = [0] * len(parts)
        of_arrays = []
        for number in numbers:
            own = []
            for rank, part in enumerate(parts):
                end = begins[rank] + self.shares.chunks(number, rank)
                own.append(part[begins[rank] : end])
                begins[rank] = end
            of_arrays.append(np.concatenate(own))
        return of_arrays, [part[begin:] for part, begin in zip(parts, begins, strict=True)]
