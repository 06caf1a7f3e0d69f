"""A file that several processes write, and read, each of them a part.

They share a file system: process 0 makes the file, and the others open it.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from schuss.engine import safetensors
from schuss.engine.replacing import naming, replacing
from schuss.engine.safetensors import Entry
from schuss.engine.spread import Spread, Team, everywhere, joined, require_same
from schuss.engine.structure import listing

MOST = 100  # differences that a message lists
AT = "save"  # where the processes are

Done = Callable[[int], object]  # told of the bytes of each piece


class Part(NamedTuple):
    """Bytes of an array, in the data of a file, that one process writes or reads."""

    name: str
    rank: int
    start: int
    stop: int


@contextmanager
def opened(path: str, team: Team) -> Iterator[BinaryIO]:
    """Within a `with`, a new file in all processes; behind it, it has taken the old one's place."""
    with ExitStack() as stack:
        file = None
        with everywhere(team, AT):
            if team.rank == 0:
                file = stack.enter_context(replacing(path))
        temporary = team.gather(b"" if file is None else os.fsencode(file.name))[0]
        with everywhere(team, AT), naming(path):
            if file is None:
                file = stack.enter_context(open(os.fsdecode(temporary), "r+b"))
        yield file
        replaced = stack.pop_all()
    with everywhere(team, AT):
        replaced.close()


def write(
    path: str,
    team: Team,
    arrays: Mapping[str, Any],
    layout: Mapping[str, Entry],
    header: Callable[[Mapping[str, str]], bytes],
    done: Done,
) -> None:
    """Writes and verifies a file, and puts it in place of the old one.

    arrays   Spread, or process 0's
    header   the file's beginning, from the checksums of the arrays

    What a process has written another one reads again.
    """
    start, told = b"", b""
    with everywhere(team, AT):
        if team.rank == 0:
            start = header(dict.fromkeys(layout, "0" * 8))  # as long as it will be
            data = len(start)
            told = json.dumps(
                {k: (data + e.start, data + e.stop) for k, e in layout.items()}
            ).encode()
    spread = {name: a for name, a in arrays.items() if isinstance(a, Spread)}
    require_same(team, "opt", [(name, a.dtype.name, a.shape) for name, a in spread.items()])
    with opened(path, team) as file:
        places = json.loads(team.gather(told)[0])
        parts = list(parts_of(places, spread, team.size))
        own = {part: 0 for part in parts if part.rank == team.rank}  # with their checksums
        with everywhere(team, AT), naming(path):
            if team.rank == 0:
                file.write(start)
            for part in own:
                array = arrays[part.name]
                if isinstance(array, Spread):
                    array = array.part if array.order == "C" else array.whole
                if array is not None:
                    own[part] = put(file, part, array, done)
        for part in parts:
            turned = spread.get(part.name)
            if turned is not None and turned.order == "F" and turned.whole is None:
                with everywhere(team, AT):
                    room = turned.room() if part in own else None
                turned.put_at(part.rank, room)
                with everywhere(team, AT), naming(path):
                    if room is not None:
                        own[part] = put(file, part, room, done)
        with everywhere(team, AT), naming(path):
            file.flush()
            os.fsync(file.fileno())
        with everywhere(team, AT), naming(path), open(file.name, "rb", buffering=0) as again:
            others = [part for part in parts if part.rank == (team.rank + 1) % team.size]
            read = summed(again, others, done)
        written, reread = gathered(team, parts, own), gathered(team, parts, read, ahead=1)
        wrong = {part.name for part in parts if written[part] != reread[part]}
        require_written(path, [name for name in places if name in wrong])
        with everywhere(team, AT), naming(path):
            if team.rank == 0:
                found = by_name(places, written)
                file.seek(0)
                file.write(header(found))
                file.flush()
                with open(file.name, "rb", buffering=0) as again:
                    same = again.read(len(start)) == header(found)
                require_written(path, [] if same else ["the header"])


def put(file: BinaryIO, part: Part, array: np.ndarray, done: Done) -> int:
    """Writes an array, or a slice of one, to its place; returns its checksum."""
    checksum = 0
    file.seek(part.start)
    for piece in safetensors.pieces(array):
        file.write(piece)
        checksum = zlib.crc32(piece, checksum)
        done(len(piece))
    return checksum


def require_written(path: str | os.PathLike[str], wrong: Sequence[str]) -> None:
    """Raises where something else is in a new file than was written to it."""
    if wrong:
        raise OSError(
            f"{os.fspath(path)!r}: not replaced; read again, the new file has other bytes in "
            f"{listing(wrong, most=MOST)}: changed meanwhile, or the disk fails"
        )


# ---- Parts, and their checksums


def parts_of(
    places: Mapping[str, tuple[int, int]], spread: Mapping[str, Spread], ranks: int
) -> Iterator[Part]:
    """Who writes what: of a spread array its part, but for one in Fortran order."""
    for number, (name, (start, stop)) in enumerate(places.items()):
        array = spread.get(name)
        if array is None:
            yield Part(name, 0, start, stop)
        elif array.order == "F":
            yield Part(name, number % ranks, start, stop)
        else:
            width = array.dtype.itemsize
            for rank, (first, last) in enumerate(array.slices):
                if first < last:
                    yield Part(name, rank, start + first * width, start + last * width)


def cut(places: Mapping[str, tuple[int, int]], ranks: int) -> Iterator[Part]:
    """Arrays that follow one another, as parts for processes that have as many bytes each."""
    begin = min((start for start, _ in places.values()), default=0)
    total = max((stop for _, stop in places.values()), default=0) - begin
    for rank in range(ranks):
        low, high = (begin + total * r // ranks for r in (rank, rank + 1))
        for name, (start, stop) in places.items():
            if max(low, start) < min(high, stop):
                yield Part(name, rank, max(low, start), min(high, stop))


def summed(file: BinaryIO, parts: Iterable[Part], done: Done) -> dict[Part, int]:
    """The checksums of parts of a file."""
    return {
        part: safetensors.checksum(file, part.name, part.start, part.stop, done) for part in parts
    }


def gathered(
    team: Team, parts: Iterable[Part], own: Mapping[Part, int], ahead: int = 0
) -> dict[Part, int]:
    """The checksums of all parts, of which each process has those of the one so far ahead."""
    found = team.gather(np.array([*own.values()], "<u4").tobytes())
    sums = [iter(np.frombuffer(data, "<u4").tolist()) for data in found]
    return {part: next(sums[(part.rank - ahead) % team.size]) for part in parts}


def by_name(names: Iterable[str], sums: Mapping[Part, int]) -> dict[str, str]:
    """The checksums of arrays, from those of their parts."""
    parts: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    for part, checksum in sums.items():
        parts[part.name].append((checksum, part.stop - part.start))
    return {name: f"{joined(own):08x}" for name, own in parts.items()}


# ---- Reading


def checksums(file: BinaryIO, header: safetensors.Header, team: Team, done: Done) -> dict[str, str]:
    """The checksum of each array, of which each process reads a part."""
    places = {
        name: (header.data + e.start, header.data + e.stop) for name, e in header.entries.items()
    }
    parts = list(cut(places, team.size))
    with everywhere(team, "load"):
        own = summed(file, [part for part in parts if part.rank == team.rank], done)
    return by_name(places, gathered(team, parts, own))
