"""Arrays of which each of several processes has a part, and what these do together.

Of processes it only knows what a `Team` can do: schuss.mpi.wire has one. All of them make the same
calls in the same order, and what goes wrong in one of them `everywhere` raises in all.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np


class Team(Protocol):
    """The processes: see schuss.mpi.wire.Wire."""

    rank: int
    size: int

    def exchange(self, sent: Any, received: Any) -> Any: ...
    def share(self, sent: Any, received: Any) -> Any: ...
    def gather(self, data: bytes, *, fixed: bool = False) -> list[bytes]: ...
    def agree(self, at: str, error: BaseException | None = None) -> None: ...


@contextmanager
def everywhere(team: Team | None, at: str) -> Iterator[None]:
    """What is raised within is raised in all processes, and before anything behind it.

    team   the processes; None: this one is alone
    """
    if team is None:
        yield
        return
    error = None
    try:
        yield
    except BaseException as found:
        error = found
    team.agree(at, error)


def require_same(team: Team, what: str, value: Any) -> None:
    """Raises ValueError in all processes where one has another value than process 0."""
    found = team.gather(zlib.crc32(repr(value).encode()).to_bytes(4, "little"), fixed=True)
    if others := [rank for rank, other in enumerate(found) if other != found[0]]:
        raise ValueError(f"{what}: not the same in process {others[0]} as in process 0")


@dataclass(frozen=True, eq=False)
class Spread:
    """An array whose parts lie on several processes, each a slice of it along its memory.

    Of one in Fortran order no process has a part of a file: there it is put together by one.
    """

    team: Team
    part: np.ndarray  # of this process, one axis, live
    slices: Sequence[tuple[int, int]]  # of each process: the first element, and the one behind
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    whole: np.ndarray | None = None  # where every process has all of it, with the same bits

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.part.dtype

    @property
    def nbytes(self) -> int:
        """Of all parts."""
        return self.slices[-1][1] * self.dtype.itemsize

    def room(self) -> np.ndarray:
        """An array for all of it, with no content."""
        return np.empty(self.shape, self.dtype, self.order)

    def put(self, room: np.ndarray) -> np.ndarray:
        """Fills all processes' arrays with all parts; returns this one's."""
        places = self._places(room)
        self.team.share([as_bytes(self.part)], places).wait()
        return room

    def put_at(self, rank: int, room: np.ndarray | None) -> None:
        """Fills an array of one process, the only one that has room, with all parts."""
        sent: list[list[np.ndarray]] = [[] for _ in self.slices]
        received = list(sent) if room is None else self._places(room)
        if room is None:
            sent[rank] = [as_bytes(self.part)]
        self.team.exchange(sent, received).wait()

    def _places(self, room: np.ndarray) -> list[list[np.ndarray]]:
        """Where the parts of the others come; its own is there."""
        along_memory, own = flat(room), self.team.rank
        parts = [along_memory[first:last] for first, last in self.slices]
        parts[own][...] = self.part
        return [[] if rank == own else [as_bytes(part)] for rank, part in enumerate(parts)]


def flat(array: np.ndarray) -> np.ndarray:
    """A contiguous array as one axis, in the order of memory: the same elements."""
    found: np.ndarray = np.asarray(array).ravel(order="K")
    return found


def as_bytes(part: np.ndarray) -> np.ndarray:
    """The bytes of a contiguous array of one axis: the same memory."""
    return part.view(np.uint8)


def along(array: np.ndarray, order: Literal["C", "F"], first: int, last: int) -> np.ndarray:
    """A slice of an array's elements in this order, as one axis: in place, where they lie so."""
    turned = array.T if order == "F" else array
    if turned.flags.c_contiguous:
        return turned.reshape(-1)[first:last]
    found: np.ndarray = turned.flat[first:last]
    return found


# ---- Checksums of parts


def joined(parts: Iterable[tuple[int, int]]) -> int:
    """The CRC-32 of bytes that follow one another, from that of each part and its length."""
    checksum = 0
    for own, length in parts:
        if length:
            checksum = times(zeros(length), checksum) ^ own
    return checksum


POLYNOMIAL = 0xEDB88320  # of CRC-32, the highest power in the lowest bit, as in all numbers here
ONE, BYTE = 1 << 31, 1 << 23  # x^0 and x^8


@functools.cache
def zeros(length: int) -> int:
    """What so many bytes of zeros multiply a checksum by: x^(8*length)."""
    power, square = ONE, BYTE
    while length:
        if length & 1:
            power = times(power, square)
        square = times(square, square)
        length >>= 1
    return power


def times(a: int, b: int) -> int:
    """The product of two polynomials of bits, modulo that of CRC-32."""
    product = 0
    for i in range(31, -1, -1):
        if a >> i & 1:
            product ^= b
        b = b >> 1 ^ (POLYNOMIAL if b & 1 else 0)
    return product
