"""Rounding to what a narrower type can hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from schuss.reference.elements import mix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]


def random_bits(shape: tuple[int, ...], position: int, key: int, x: Array) -> NDArray[np.uint32]:
    """32 random bits of each element: of its place, counted from `position`, and a key."""
    order: Any = "C" if x.flags.c_contiguous else "F"
    places = (np.arange(x.size, dtype=np.uint64) + np.uint64(position)).astype(np.uint32)
    return mix(mix(places) + np.uint32(key)).reshape(shape, order=order)


def dither(x: Array, random: NDArray[np.uint32], half: bool) -> Array:
    """X rounded to what 16 bits can hold: up with the probability of its distance from below.

    bfloat16 drops the last 16 bits, float16 13. Where float16's spacing is that of its subnormal
    numbers, 2^-24, the sum with 1/2 finds the nearest, and all that follows is exact.
    """
    dropped = np.uint32(0x1FFF if half else 0xFFFF)
    bits = x.view(np.uint32)
    normal = ((bits + (random & dropped)) & ~dropped).view(np.float32)
    size, spacing, none = np.abs(x), np.float32(2.0**-24), np.float32(0)
    nearest = (size + np.float32(0.5)) - np.float32(0.5)
    beyond = size - nearest
    least = (random >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-48)
    up = np.where(beyond > least, spacing, none)
    down = np.where(beyond <= least - spacing, spacing, none)
    sized = ((nearest + up) - down).view(np.uint32)
    small = (sized | (bits & np.uint32(0x80000000))).view(np.float32)
    finite = np.where(size < np.float32(2.0**-14), small, normal) if half else normal
    return np.where(size <= np.finfo(np.float32).max, finite, x).astype(np.float32)


def within(bounds: tuple[Any, Any], dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Two bounds, numbers or arrays, as numbers of a type: the nearest ones inside."""
    low, high = bounds
    return least(low, dtype), -least(np.negative(high), dtype)


def least(bound: Any, dtype: np.dtype[Any]) -> Array:
    """The smallest number of a type that is not below a bound."""
    with np.errstate(over="ignore", under="ignore"):
        found = np.asarray(bound).astype(dtype)
        above = np.nextafter(found, dtype.type(np.inf))
        return np.where(found.astype(np.float64) < bound, above, found)


def computing(dtype: np.dtype[Any]) -> Any:
    """The type in which a parameter of this type is stepped."""
    return np.float64 if dtype == np.float64 else np.float32


def is_narrow(dtype: np.dtype[Any]) -> bool:
    """Whether numbers of this type are brought to a wider one to compute with them."""
    return dtype.name in ("float16", "bfloat16")
