"""What is stored in less than it is computed in: types of 16 bits, codes of 8, remainders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[np.floating]
    Words = NDArray[np.uint32]


class Trait(NamedTuple):
    """How a rule's state array is stored in less than it is computed in."""

    dithered: bool = False  # by chance: a step may change it by less than the spacing of 16 bits
    positive: bool = False  # never negative
    alone: bool = False  # no mean or sum of what is small: not in 8 bits


Mean = Annotated["Array", Trait()]
Slow = Annotated["Array", Trait(dithered=True)]
Second = Annotated["Array", Trait(dithered=True, positive=True)]
Peak = Annotated["Array", Trait(positive=True)]
Exact = Annotated["Array", Trait(alone=True)]
Point = Annotated["Array", Trait(dithered=True, alone=True)]


def trait_names(rule: Any) -> tuple[str, ...]:
    """The annotations of a rule's state arrays, in order."""
    code = rule.__code__
    return tuple(rule.__annotations__[name] for name in code.co_varnames[2 : code.co_argcount])


def traits(rule: Any) -> tuple[Trait, ...]:
    """What they mean."""
    return tuple(globals()[name].__metadata__[0] for name in trait_names(rule))


# ---- Dither: what is rounded by chance


def lattice(places: NDArray[np.uint64], key: int, array: int) -> Words:
    """32 bits for each of an array's elements, in a step with this key.

    places   their numbers among those of all arrays
    array    number of the state array, or -1 for the parameter
    """
    start = (key + (array + 1) * 0x6A09E667) % 2**32
    return ((places * np.uint64(0x85EBCA6B) + np.uint64(start)) & np.uint64(2**32 - 1)).astype(
        np.uint32
    )


def numbered(size: int, position: int | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The numbers of an array's elements: from that of the first on, or of each row's first."""
    firsts = np.array(position, np.uint64, ndmin=1)
    each = size // max(1, firsts.size)
    return np.add.outer(firsts, np.arange(each, dtype=np.uint64)).ravel()


def in_order(bits: Words, x: Array) -> Words:
    """The dither of each element of x, which are counted as they lie in memory."""
    order: Any = "C" if x.flags.c_contiguous else "F"
    return bits.reshape(x.shape, order=order)


def dither(x: Array, random: Words, half: bool) -> Array:
    """X rounded to what 16 bits can hold: up with the probability of its distance from below.

    bfloat16 drops the last 16 bits, float16 13. Where float16's spacing is that of its subnormal
    numbers, 2^-24, the sum with 1/2 finds the nearest, and all that follows is exact. What is
    finite stays so.
    """
    shift, most = np.uint32(19 if half else 16), np.float32(65504 if half else 2.0**128 - 2.0**120)
    dropped = np.uint32(0x1FFF if half else 0xFFFF)
    bits = x.view(np.uint32)
    normal = ((bits + (random >> shift)) & ~dropped).view(np.float32)
    normal = np.where(normal > most, most, np.where(normal < -most, -most, normal))
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


def rounded(new: Array, dtype: np.dtype[Any], chance: Callable[[], Words] | None) -> Array:
    """What an array of a type holds of new values: the nearest, or by a dither, if it is narrow."""
    if chance and is_narrow(dtype):
        new = dither(new, chance(), dtype.name == "float16")
    return new.astype(dtype, copy=False)


# ---- blockfloat8: codes of 64 elements, in memory's order, and a scale byte for each such block

CODED = 64
STEPS = np.uint32(19)  # bits of a float below a code's last one: 16 steps an octave
MOST = np.uint32(0x7F6FFFFF)  # bits of the largest magnitude that is coded
LEAST = 40  # the smallest scale: the smallest codes are 2^-106 unsigned, and 2^-98 signed
NOTHING = 255  # the scale of a block with a NaN or an infinity: all of it is read as NaN


def base(scales: NDArray[np.uint8], positive: bool) -> Words:
    """Bits of the float that is subtracted, in each block: the octaves are above it."""
    return (scales.astype(np.uint32) - np.uint32(15 if positive else 7)) << np.uint32(23)


def decode(codes: NDArray[Any], scales: NDArray[np.uint8]) -> Array:
    """The numbers that codes stand for, uint8 for what is never negative, else int8."""
    order: Any = "C" if codes.flags.c_contiguous else "F"
    flat = blocks(codes.ravel(order="K"))
    zero = base(scales, codes.dtype == np.uint8)[:, None]
    sizes = np.abs(flat.astype(np.int32)).astype(np.uint32)
    above = np.where(scales[:, None] == NOTHING, np.float32(np.nan), zero.view(np.float32))
    with np.errstate(invalid="ignore"):
        found = ((sizes << STEPS) + zero).view(np.float32) - above
    return np.where(flat < 0, -found, found).ravel()[: codes.size].reshape(codes.shape, order=order)


def encode(x: Array, positive: bool, random: Words | None = None) -> tuple[Any, NDArray[np.uint8]]:
    """Codes and scales of float32 numbers: the nearest codes, halves away from 0, or by a dither.

    The scale is the exponent of the block's largest magnitude, one more where its first three bits
    are ones. A code k is the float with the bits base + (k << 19), less that with the bits base:
    unsigned 16 octaves, signed 8, of which the last one goes down to 0. What is positive and no
    subnormal number, which is 0 here, has a code of 1 at least where there is no sign.
    """
    order: Any = "C" if x.flags.c_contiguous else "F"
    flat = blocks(x.ravel(order="K"))
    sizes = np.abs(flat).view(np.uint32)
    top = sizes.max(axis=1, initial=0)
    exponent = (np.minimum(top, MOST) + np.uint32(1 << 20)) >> np.uint32(23)
    scales = np.maximum(exponent, LEAST).astype(np.uint8)
    marked = top >= 0x7F800000
    zero = base(scales, positive)[:, None]
    with np.errstate(invalid="ignore"):
        sums = (np.minimum(sizes, MOST).view(np.float32) + zero.view(np.float32)).view(np.uint32)
    half = np.uint32(1 << 18)
    chance = half if random is None else blocks(random.ravel(order="K")) >> np.uint32(13)
    codes = (sums - zero + chance) >> STEPS
    if positive:
        codes = np.maximum(codes, sizes >= 0x00800000)
    signed = np.where((flat < 0) & (not positive), -codes.astype(np.int32), codes.astype(np.int32))
    signed[marked] = 0
    found = signed.ravel()[: x.size].astype(np.uint8 if positive else np.int8)
    return found.reshape(x.shape, order=order), np.where(marked, NOTHING, scales).astype(np.uint8)


def blocks(flat: NDArray[Any]) -> NDArray[Any]:
    """Rows of a block's elements, the last one filled with zeros."""
    padded = np.zeros((-(-flat.size // CODED), CODED), flat.dtype)
    padded.reshape(-1)[: flat.size] = flat
    return padded


# ---- A bfloat16 weight and 16 bits more, which together are a float32


def split(x: Array) -> tuple[NDArray[np.uint16], NDArray[np.int16]]:
    """The bits of the bfloat16 next to float32 numbers, halves away from 0, and what is left.

    bits(x) = (bits(w) << 16) + c. A NaN is the one of all bits, and its remainder 0.
    """
    bits, none = x.view(np.uint32), np.isnan(x)
    upper = np.where(none, 0xFFFF, (bits + np.uint32(0x8000)) >> np.uint32(16))
    return upper.astype(np.uint16), np.where(none, 0, bits).astype(np.uint16).view(np.int16)


def join(w: NDArray[Any], remainder: NDArray[np.int16]) -> Array:
    """The float32 numbers of bfloat16 ones and their remainders."""
    upper = w.view(np.uint16).astype(np.uint32) << np.uint32(16)
    return (upper + remainder.astype(np.int32).view(np.uint32)).view(np.float32)


# ---- Any of them


def widened(s: Any, number: Any) -> Array:
    """A state array in the type that is computed in: itself, if it is of that type."""
    if hasattr(s, "codes"):
        return decode(s.codes, s.scales)
    found: Array = s.astype(number, copy=False)
    return found


def put(s: Any, new: Array, trait: Trait, chance: Callable[[], Words]) -> None:
    """Stores new values in a state array, as its trait says."""
    if hasattr(s, "codes"):
        random = None if trait.positive and not trait.dithered else chance()
        s.codes[...], s.scales[...] = encode(new, s.codes.dtype == np.uint8, random)
    else:
        s[...] = rounded(new, s.dtype, chance if trait.dithered else None)


def weight(x: Array, master: Any, number: Any) -> Array:
    """What a step moves: x, its master, or what x and its remainder are together."""
    if master is None:
        return x.astype(number, copy=False)
    return join(x, master) if master.dtype == np.int16 else master.astype(number, copy=False)


# ---- Types


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
