"""What rules and stages do to one element: selections in which a NaN comes through."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]


def sign(a: Array) -> Array:
    """1, -1, or the number itself where it is 0 or NaN."""
    return np.where(a > 0, 1, np.where(a < 0, -1, a)).astype(a.dtype)


def clamp(a: Array, low: Array | float, high: Array | float) -> Array:
    """The number, or the bound that it is beyond; a NaN comes through."""
    above = np.where(a < low, low, a)
    return np.where(above > high, high, above).astype(a.dtype)


def maximum(a: Array, b: Array | float) -> Array:
    """The larger one; a NaN on either side comes through."""
    return np.where((a > b) | np.isnan(a), a, b).astype(a.dtype, copy=False)


def shrink(a: Array, threshold: float) -> Array:
    """Closer to 0 by the threshold, and 0 where it is closer already."""
    return a - clamp(a, -threshold, threshold)
