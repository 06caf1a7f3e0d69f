"""One number from all bits of a training state, to compare runs, ranks and processors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from io import BytesIO
from typing import Any

import numpy as np

from schuss.checkpoint import Stored, optimizers, stored
from schuss.engine.divided import holding, team_of
from schuss.engine.safetensors import pieces
from schuss.engine.spread import Spread, Team, everywhere
from schuss.engine.values import Encoder

__all__ = ["hash"]

ANYWHERE = ("backend", "state_dir")  # options of an optimizer that change no bit
BLOCK = 4096  # elements, at whose edges a step's work may be cut
SIZE = 32  # bytes of a digest
AT = "hash"  # where processes are


class Digests(Encoder):
    """Makes JSON of values as for a file, with the digest of an array in the place of its name.

    A spread array stays itself there, since its digest is made by all processes together.
    """

    def __init__(self) -> None:
        super().__init__(counted)
        self.spread: list[Spread] = []

    def name_of(self, array: np.ndarray | Spread, place: str) -> Any:
        self.require_storable(array, place)
        if not isinstance(array, Spread):
            return digest(array).hex()
        if array.whole is not None:  # which ought to be the same everywhere
            return digest(array.whole).hex()
        self.spread.append(array)
        return array


def digest(array: np.ndarray) -> bytes:
    """Of an array's type, shape and bits."""
    return folded(array, blocks(array))


def folded(array: np.ndarray | Spread, blocks: Iterable[bytes]) -> bytes:
    """The digest of an array, from those of its blocks in order."""
    whole = sha256(f"{array.dtype.name} {array.shape}".encode())
    for block in blocks:
        whole.update(block)
    return whole.digest()


def blocks(array: np.ndarray) -> Iterator[bytes]:
    """The digest of each block of an array, in C order."""
    size = BLOCK * array.itemsize
    block, room = sha256(), size
    for piece in pieces(array):
        for part in (piece[i : i + size] for i in range(0, len(piece), size)):
            first, rest = part[:room], part[room:]
            block.update(first)
            room -= len(first)
            if not room:
                yield block.digest()
                block, room = sha256(rest), size - len(rest)
    if room < size:
        yield block.digest()


def digests(team: Team, spread: Sequence[Spread]) -> dict[int, str]:
    """Those of spread arrays by their identity, in hexadecimal: each process makes a part.

    An array that isn't cut at the edges of blocks is put together by one process.
    """
    found: dict[int, str] = {}
    whole = [a for a in spread if not is_cut_at_blocks(a)]
    cut = [a for a in spread if is_cut_at_blocks(a)]
    own: list[bytes] = []
    for number, a in enumerate(whole):
        with everywhere(team, AT):
            room = a.room() if number % team.size == team.rank else None
        a.put_at(number % team.size, room)
        if room is not None:
            own.append(digest(room))
    with everywhere(team, AT):
        own += [block for a in cut for block in blocks(a.part)]
    of_ranks = [BytesIO(data) for data in team.gather(b"".join(own))]
    for number, a in enumerate(whole):
        found[id(a)] = of_ranks[number % team.size].read(SIZE).hex()
    for a in cut:
        lengths = [-((first - last) // BLOCK) for first, last in a.slices]
        parts = [of.read(n * SIZE) for of, n in zip(of_ranks, lengths, strict=True)]
        found[id(a)] = folded(a, parts).hex()
    return found


def is_cut_at_blocks(array: Spread) -> bool:
    """Whether every process has whole blocks of an array."""
    return array.order == "C" and all(
        first % BLOCK == 0 for first, last in array.slices if first < last
    )


def counted(value: Any) -> Stored | None:
    """What stands for the state of something: as in a file, but for where it is and who steps."""
    found = stored(value)
    if found is None or found.kind != "optimizer":
        return found
    options = {k: v for k, v in found.value["options"].items() if k not in ANYWHERE}
    return Stored(found.kind, {**found.value, "options": options})


def hash(value: Any, /) -> int:  # noqa: A001 -- the name is the package's: schuss.hash
    """One number below 2^64 from all bits of an optimizer, of parameters, or of what a run has.

        schuss.hash(params)
        schuss.hash({"params": params, "opt": opt, "rng": rng})

    value   anything that `schuss.save` stores: arrays, numbers, texts, None, random generators,
            objects with `state_dict`, lists, tuples and mappings of them. Of an optimizer its
            parameters, state, counters, hyperparameters and options count

    Equal bits have the same number on every machine, with any number of threads and any order in
    memory; others have another one, but for one case in 2^64. The order of a mapping counts, and so
    do types, shapes, the sign of zero and the bits of NaN. Steps of the optimizers wait. It reads
    at one to two GB/s (SHA-256, of which it is a part). That of a schuss.mpi.Sharded all processes
    call: it is the number of a single process with the same bits. Raises TypeError that names what
    can't be stored, and ValueError where a value contains itself.
    """
    try:
        owners = list(optimizers(value))
        team = team_of(owners)
        with holding(owners):
            encode = Digests()
            with everywhere(team, AT):
                values = encode(value, "value")
            found = {} if team is None else digests(team, encode.spread)
            text = json.dumps(values, separators=(",", ":"), default=lambda a: found[id(a)])
    except RecursionError:
        raise ValueError("value: nested too deep, or one contains itself") from None
    return int.from_bytes(sha256(text.encode()).digest()[:8], "little")
