"""Where the arrays lie that an optimizer allocates beside a parameter."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import repeat
from typing import Any

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
    order: Any = "C" if x.flags.c_contiguous else "F"
    zeros: np.ndarray = buffer[start : start + size].view(dtype).reshape(x.shape, order=order)
    return zeros


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
