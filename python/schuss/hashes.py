"""One number from all bits of a training state, to compare runs, ranks and processors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import numpy as np

from schuss.checkpoint import Stored, optimizers, stored
from schuss.engine.guard import held
from schuss.engine.safetensors import pieces
from schuss.engine.values import Encoder

__all__ = ["hash"]

ANYWHERE = ("backend", "state_dir")  # options of an optimizer that change no bit
BLOCK = 4096  # elements, at whose edges a step's work may be cut


class Digests(Encoder):
    """Makes JSON of values as for a file, with the digest of an array in the place of its name."""

    def name_of(self, array: np.ndarray, place: str) -> str:
        self.require_storable(array, place)
        return digest(array).hex()


def digest(array: np.ndarray) -> bytes:
    """Of an array's type, shape and bits."""
    whole = sha256(f"{array.dtype.name} {array.shape}".encode())
    for block in blocks(array):
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
    at one to two GB/s (SHA-256, of which it is a part). Raises TypeError that names what can't be
    stored, and ValueError where a value contains itself.
    """
    try:
        with held(optimizers(value)):
            text = json.dumps(Digests(counted)(value, "value"), separators=(",", ":"))
    except RecursionError:
        raise ValueError("value: nested too deep, or one contains itself") from None
    return int.from_bytes(sha256(text.encode()).digest()[:8], "little")
