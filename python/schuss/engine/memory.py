"""Where the arrays lie that an optimizer allocates beside a parameter."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, repeat
from typing import Any, Literal

import numpy as np

PAGE, LINE = 4096, 64

# From here on malloc gives pages of their own, all begun at the same place.
LARGE = 1 << 16

# How far each array begins behind the one before it, within a page: 11 cache lines.
STAGGER = 11 * LINE

# The first place that neither the parameter nor its gradient has.
FREE = 2


def room(x: np.ndarray, dtype: Any, place: int) -> np.ndarray:
    """Zeros in the shape and the memory order of x; large ones begin `place` steps behind x.

    A step walks along all arrays side by side. Where several begin at the same place of their pages
    and lie a power of two apart, as arrays of a power of two elements mostly do, AMD's processors
    take a line of one for the same line of another, and every access misses the first cache: AdamW
    then takes 1.5 to 2.3 times as long. x and its gradient are the user's; what stands beside them
    keeps out of their way.
    """
    dtype = np.dtype(dtype)
    size = x.size * dtype.itemsize
    if size < LARGE:
        return np.zeros_like(x, dtype=dtype, subok=False)
    buffer = np.zeros(size + PAGE, np.uint8)
    wanted = (address(x) + place * STAGGER) // LINE * LINE
    start = (wanted - address(buffer)) % PAGE
    zeros: np.ndarray = buffer[start : start + size].view(dtype).reshape(x.shape, order=order_of(x))
    return zeros


class Flat:
    """Which parameters lie side by side in one array, so that what is beside them does, too."""

    def __init__(self) -> None:
        self.whole: dict[int, np.ndarray] = {}  # of which an array is a part, by its id
        self.beside: dict[tuple[int, np.dtype[Any], int], np.ndarray] = {}

    @contextmanager
    def among(self, arrays: Iterable[np.ndarray]) -> Iterator[None]:
        """Within a `with`, `zeros` knows these; afterwards nothing is held of them, since others
        may take their place.
        """
        try:
            self.look([x for x in arrays if x.size])
            yield
        finally:
            self.whole, self.beside = {}, {}

    def look(self, arrays: Sequence[np.ndarray]) -> None:
        """Finds those that follow one another in an array of one axis."""
        first = 0
        for i in range(1, len(arrays) + 1):
            if i < len(arrays) and follows(arrays[i - 1], arrays[i]):
                continue
            if i - first > 1:
                whole = side_by_side(arrays[first:i])
                self.whole |= {id(x): whole for x in arrays[first:i] if whole is not None}
            first = i

    def zeros(self, x: np.ndarray, dtype: Any, place: int) -> np.ndarray:
        """As `room`; side by side for arrays that lie so."""
        whole = self.whole.get(id(x))
        if whole is None:
            return room(x, dtype, place)
        key = id(whole), np.dtype(dtype), place
        if key not in self.beside:
            self.beside[key] = room(whole, dtype, place)
        start = (address(x) - address(whole)) // x.itemsize
        part = self.beside[key][start : start + x.size]
        return part.reshape(x.shape, order=order_of(x))


def side_by_side(arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    """The part of one axis that these make up in their order; None where they make up none.

    Arrays without elements lie nowhere: NumPy's begin where their base does.
    """
    arrays = [x for x in arrays if x.size] or arrays[:1]
    base = arrays[0].base
    if not (isinstance(base, np.ndarray) and base.ndim == 1 and base.flags.c_contiguous):
        return None
    if base.dtype != arrays[0].dtype:
        return None
    if not all(follows(a, b) for a, b in pairwise(arrays)):
        return None
    start = (address(arrays[0]) - address(base)) // base.itemsize
    return base[start : start + sum(x.size for x in arrays)]


def follows(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether an array begins where another one ends, both in the same array."""
    return (
        before.base is not None
        and before.base is after.base
        and before.dtype == after.dtype
        and address(after) == address(before) + before.nbytes
    )


def order_of(x: np.ndarray) -> Literal["C", "F"]:
    """The memory order of an array that is contiguous."""
    return "C" if x.flags.c_contiguous else "F"


def address(a: np.ndarray) -> int:
    """Where the first element lies."""
    pointer: int = a.__array_interface__["data"][0]
    return pointer


def write(pairs: Iterable[tuple[np.ndarray, Any]]) -> None:
    """Writes each value into its array, which must be writeable: all of them, or an interrupt
    comes before the first one. No line of Python's runs in between, not even of a subclass.
    """
    arrays, values = zip(*pairs, strict=True) if (pairs := list(pairs)) else ((), ())
    with np.errstate(all="ignore"):  # a warning may be an error: what overflows is infinite
        deque(map(np.ndarray.__setitem__, arrays, repeat(...), values), maxlen=0)
