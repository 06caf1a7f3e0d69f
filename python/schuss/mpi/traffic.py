"""Slices of arrays on their way between processes, bucket by bucket."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from schuss.engine.safetensors import DTYPES, NAMES, dtype_of
from schuss.engine.spread import as_bytes
from schuss.mpi.shares import Shares
from schuss.mpi.wire import Pending, Wire

KINDS = list(DTYPES)  # by which processes tell one another of which type a gradient is
NONE = 255
LINE = 64  # bytes, at which what comes begins
AHEAD = 2  # buckets whose gradients are under way, or being stepped

Given = Mapping[int, np.ndarray]  # gradients by their arrays' numbers, each as one axis
Types = Mapping[int, np.dtype[Any]]  # those of a process' gradients
Pieces = tuple[np.ndarray | None, ...]  # of a gradient's slice, from each process


def encoded(given: Given, numbers: Iterable[int]) -> bytes:
    """The types of the gradients that these arrays have, for other processes."""
    return bytes(kind_of(given[i].dtype) if i in given else NONE for i in numbers)


@cache  # NumPy puts a type's name together each time
def kind_of(dtype: np.dtype[Any]) -> int:
    """The number of a type."""
    return KINDS.index(NAMES[dtype.name])


def decoded(data: bytes, numbers: Iterable[int]) -> Types:
    """The types of which `encoded` has made bytes."""
    types = {kind: dtype_of(KINDS[kind]) for kind in set(data) if kind != NONE}
    return {i: types[kind] for i, kind in zip(numbers, data, strict=True) if kind in types}


class Landing(NamedTuple):
    """Gradients of a bucket that are under way to this process, or there."""

    bucket: int
    pieces: dict[int, Pieces]  # by their arrays' numbers
    wait: Callable[[], object]


class Traffic:
    """The messages of a step.

    params   the arrays, each as one axis: what is stepped here goes to all from there
    """

    def __init__(self, shares: Shares, wire: Wire, params: Sequence[np.ndarray]) -> None:
        self.shares, self.wire = shares, wire
        self.rooms = [np.empty(0, np.uint8) for _ in range(AHEAD)]  # of buckets by turns
        self.sharing: deque[Pending] = deque()
        self.views = [  # of each bucket, of each process: its parts of the parameters
            [[(i, as_bytes(params[i][part])) for i, part in parts] for parts in of_ranks]
            for of_ranks in shares.parts
        ]

    def landings(self, given: Given, types: Sequence[Types]) -> Iterator[Landing]:
        """Each bucket's gradients, as soon as they are there; meanwhile the next ones come.

        given   the gradients here
        types   those of all processes
        """
        under_way: deque[Landing] = deque()
        for bucket in range(len(self.shares.buckets)):
            under_way.append(self.launch(bucket, given, types))
            if len(under_way) == AHEAD:
                yield landed(under_way.popleft())
        yield from map(landed, under_way)

    def launch(self, bucket: int, given: Given, types: Sequence[Types]) -> Landing:
        """Sends the slices of a bucket's gradients to whom they belong, as those for here come."""
        rank, numbers = self.wire.rank, self.shares.buckets[bucket]
        sent = [
            [as_bytes(given[i][part]) for i, part in parts if other != rank and i in given]
            for other, parts in enumerate(self.shares.parts[bucket])
        ]
        places = self.places(bucket, types)
        received = [
            [as_bytes(g) for g in own.values() if other != rank and g.size]
            for other, own in enumerate(places)
        ]
        for i in numbers:
            if i in given:
                places[rank][i] = given[i][slice(*self.shares.slices[i][rank])]
        pieces = {i: tuple(own.get(i) for own in places) for i in numbers}
        there = {i: each for i, each in pieces.items() if any(g is not None for g in each)}
        return Landing(bucket, there, self.wire.exchange(sent, received).wait)

    def places(self, bucket: int, types: Sequence[Types]) -> list[dict[int, np.ndarray]]:
        """Room for what comes from each other process, by the arrays' numbers."""
        rank, numbers = self.wire.rank, self.shares.buckets[bucket]
        wanted = [
            (other, i, last - first, own[i])
            for other, own in enumerate(types)
            for i in numbers
            if other != rank and i in own
            for first, last in [self.shares.slices[i][rank]]
        ]
        total = sum(size * dtype.itemsize + LINE for _, _, size, dtype in wanted)
        turn = bucket % AHEAD
        if self.rooms[turn].size < total:
            self.rooms[turn] = np.empty(total, np.uint8)
        room, found = self.rooms[turn], [{} for _ in types]  # type: ignore[var-annotated]
        begin = 0
        for other, i, size, dtype in wanted:
            end = begin + size * dtype.itemsize
            found[other][i] = room[begin:end].view(dtype)
            begin = -(-end // LINE) * LINE
        return found

    def share(self, bucket: int, numbers: Container[int]) -> None:
        """Sends what has been stepped here, of these arrays of a bucket, to all; the rest comes."""
        parts = [[part for i, part in own if i in numbers] for own in self.views[bucket]]
        own, parts[self.wire.rank] = parts[self.wire.rank], []
        self.sharing.append(self.wire.share(own, parts))

    def settle(self) -> None:
        """All that was shared is there."""
        while self.sharing:
            self.sharing.popleft().wait()


def landed(landing: Landing) -> Landing:
    """The same, once its gradients are there."""
    landing.wait()
    return landing
