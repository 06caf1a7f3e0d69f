"""Some rows of an array, along its first axis: copies of them, and back.

A step of these is a step of the copies: an element goes the way that it goes in the whole array.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from schuss.reference.storage import CODED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]


class Codes(NamedTuple):
    """Of some rows, whose elements are whole blocks: their codes, and the scales of these."""

    codes: NDArray[Any]
    scales: NDArray[np.uint8]


def part(a: Any, rows: Numbers) -> Any:
    """A copy of these rows of an array, or of what has codes and scales; None of None."""
    if hasattr(a, "codes"):
        return Codes(a.codes[rows], scales_of(a)[rows].ravel())
    return None if a is None else a[rows]


def put_back(a: Any, own: Any, rows: Numbers) -> None:
    """Writes such a copy into its rows."""
    if hasattr(a, "codes"):
        a.codes[rows] = own.codes
        scales_of(a)[rows] = scales_of(own)
    elif a is not None:
        a[rows] = own


def scales_of(a: Any) -> NDArray[np.uint8]:
    """The scales of what has codes, those of a row in each line."""
    shape = len(a.codes), math.prod(a.codes.shape[1:]) // CODED
    found: NDArray[np.uint8] = a.scales.reshape(shape)
    return found


def firsts(shape: tuple[int, ...], rows: Numbers, position: int) -> NDArray[np.uint64]:
    """The number of each row's first element, where that of the array has this one."""
    each = np.uint64(math.prod(shape[1:]))
    return np.uint64(position) + rows.astype(np.uint64) * each
