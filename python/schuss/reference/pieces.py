"""Gradients that come in pieces: their sums, in the order in which these are given.

Each piece is multiplied by its weight, in the type that is computed in; the first product begins
the sum, and the others are added to it one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]


def average(pieces: Sequence[Array | None], weights: Sequence[float], number: Any) -> Array | None:
    """The sum of weights*pieces, in a type, as a new array; None adds nothing, and is all of None.

    pieces    arrays of one shape and memory order, each of any kind
    weights   in double: one for each piece
    number    the type: np.float32 or np.float64
    """
    total: Array | None = None
    with np.errstate(all="ignore"):
        for piece, weight in zip(pieces, weights, strict=True):
            if piece is not None:
                own = product(piece, weight, number)
                total = own if total is None else np.add(total, own, out=total)
    return total


def coalesce(
    indices: Sequence[NDArray[np.integer[Any]]],
    values: Sequence[Array],
    weights: Sequence[float],
    number: Any,
) -> tuple[NDArray[np.int64], Array]:
    """The rows that pieces have something for, ascending, and for each one the sum of that.

    indices   of each piece the numbers of the rows that its values are for, as often as they like
    values    of each piece one for each number: arrays of any kind, alike but for their length
    weights   in double: one for each piece
    number    the type: np.float32 or np.float64
    """
    index = np.concatenate(indices).astype(np.int64, copy=False)
    order = np.argsort(index, kind="stable")
    rows, firsts, counts = np.unique(index[order], return_index=True, return_counts=True)
    with np.errstate(all="ignore"):
        products = np.concatenate(
            [product(v, weight, number) for v, weight in zip(values, weights, strict=True)]
        )
        sums = products[order[firsts]]
        for turn in range(1, counts.max(initial=0)):
            more = counts > turn
            sums[more] = sums[more] + products[order[firsts[more] + turn]]
    return rows, sums


def product(a: Array, factor: Any, number: Any) -> Array:
    """A new array of a type: factor*a, by a number or, of one for each row, that of its row."""
    factors = np.asarray(factor, dtype=number)
    found = np.empty_like(a, number, subok=False)
    shape = (*factors.shape, *(1,) * (found.ndim - factors.ndim))
    np.multiply(factors.reshape(shape), a.astype(number, copy=False), out=found)
    return found
