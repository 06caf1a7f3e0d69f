"""What the arrays behind narrow forms of state stand for, as the user sees it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from schuss.engine.memory import order_of, write
from schuss.reference.storage import CODED, blocks, decode, encode, join, split

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray


SCALES = ".scales"  # what the scales of codes are called, behind the codes' name


class Narrow:
    """Numbers that lie in arrays of another kind: read by index, and written as a whole or in part.

    What is written is brought to the nearest numbers that can be held.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the numbers."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return math.prod(self.shape)

    def decoded(self) -> np.ndarray:
        """A copy of the numbers, in float32."""
        raise NotImplementedError

    def encoded(self, numbers: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each array behind the numbers, and what it is for others that lie as `decoded` does."""
        raise NotImplementedError

    def with_values(self, values: Any, key: Any = ...) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each array behind the numbers, and what it is once values are written at an index."""
        numbers = self.decoded()
        numbers[key] = values
        return self.encoded(numbers)

    def __getitem__(self, key: Any) -> Any:
        return self.decoded()[key]

    def __setitem__(self, key: Any, values: Any) -> None:
        pairs = self.with_values(values, key)
        if not all(array.flags.writeable for array, _ in pairs):
            raise ValueError("values: what they are to be written to is read-only")
        write(pairs)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a copy is needed: the numbers are decoded")
        return self.decoded().astype(dtype or np.float32, copy=False)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.decoded())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.decoded()!r})"


class BlockFloat8(Narrow):
    """Numbers in 8 bits each, with a scale byte for each 64 of them, in memory's order.

    values   an array of floating-point numbers
    signed   False for what is never negative, which then has twice the octaves; default True

    codes    int8 where signed, else uint8, in the shape and memory order of values (live)
    scales   uint8, one for each block (live)

    The numbers of a block have 16 steps an octave, 7 octaves below its largest one if they are
    signed, else 15, and equal steps below these; a NaN or an infinity makes NaN of its whole block.
    Raises ValueError where a number is negative and not signed. See reference.storage.
    """

    def __init__(self, values: Any, *, signed: bool = True) -> None:
        values = np.array(values, np.float32, order="A")  # blocks go along memory
        self.codes: NDArray[Any]
        self.scales: NDArray[np.uint8]
        self.codes, self.scales = encode(require_sign(values, signed), not signed)

    @classmethod
    def of(cls, codes: np.ndarray, scales: np.ndarray) -> BlockFloat8:
        """The numbers that lie in these arrays."""
        own = object.__new__(cls)
        own.codes, own.scales = codes, scales
        return own

    @property
    def signed(self) -> bool:
        """Whether numbers may be negative."""
        return self.codes.dtype == np.int8

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes

    def decoded(self) -> np.ndarray:
        return decode(self.codes, self.scales)

    def encoded(self, numbers: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        codes, scales = encode(require_sign(numbers, self.signed), not self.signed)
        # Blocks of the numbers that are there stay: encoded anew they may get another scale.
        stays = (blocks(numbers.ravel("K")) == blocks(self.decoded().ravel("K"))).all(axis=1)
        scales[stays] = self.scales[stays]
        stays = np.repeat(stays, CODED)[: codes.size].reshape(
            self.shape, order=order_of(self.codes)
        )
        return [(self.codes, np.where(stays, self.codes, codes)), (self.scales, scales)]


def require_sign(values: np.ndarray, signed: bool) -> np.ndarray:
    """The values; raises where one is negative and can't be."""
    if not signed and bool((values < 0).any()):
        raise ValueError("values: negative, where codes have no sign")
    return values


def behind(state: Any) -> tuple[Any, ...]:
    """The arrays in which a state array's numbers lie."""
    return (state.codes, state.scales) if isinstance(state, BlockFloat8) else (state,)


def blocks_of(size: int) -> int:
    """How many scales so many elements have."""
    return -(-size // CODED)


def arrays_of(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A rule's state as arrays by name: codes, and behind them their scales."""
    return {
        f"{key}{end}": array
        for key, a in state.items()
        for end, array in zip(("", SCALES), behind(a), strict=False)
    }


def saved_form(a: Any) -> Any:
    """An array as it is saved: codes in Fortran order lie as their blocks do, along memory."""
    coded = isinstance(a, np.ndarray) and a.dtype in (np.int8, np.uint8)
    turned = coded and a.flags.f_contiguous and not a.flags.c_contiguous
    return a.ravel(order="K") if turned else a


def numbers_of(codes: np.ndarray, scales: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers of codes in their saved form, in the shape of their parameter."""
    return decode(codes, scales).reshape(shape, order="C" if codes.shape == shape else "F")


class Remainder(Narrow):
    """The float32 numbers that a bfloat16 parameter and its remainder are together.

    What is written goes to both: the parameter becomes the bfloat16 next to it.
    """

    def __init__(self, x: np.ndarray, remainder: np.ndarray) -> None:
        self.x, self.remainder = x, remainder

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape

    def decoded(self) -> np.ndarray:
        return np.asarray(join(np.asarray(self.x), self.remainder))  # of no dimension, too

    def encoded(self, numbers: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        upper, lower = split(numbers)
        return [(np.asarray(self.x).view(np.uint16), upper), (self.remainder, lower)]
