"""Second moments of matrices as two factors, the means of their rows and of their columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from schuss.reference.stages import Stages, prepared
from schuss.reference.storage import computing, weight
from schuss.reference.sums import along

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]
    Doubles = NDArray[np.float64]


def factors(
    x: Array,
    g: Array,
    row: Array,
    column: Array,
    stages: Stages,
    *,
    share: float,
    master: Array | None = None,
) -> tuple[Array, Array]:
    """What the factors of an array become by a step: its last two axes are matrices.

        row     (1 - share)*row + share*(the mean of g*g along each row)
        column  (1 - share)*column + share*(the mean of g*g along each column)

    g is the gradient that the rule sees, computed in the array's type; all else is in double, and
    the factors are rounded to their type in the end. Below its smallest normal number they are 0
    where `stages.flush`. An array without elements leaves them as they are.
    """
    number = computing(x.dtype)
    if x.size == 0:
        return row.copy(), column.copy()
    with np.errstate(all="ignore"):
        squares = prepared(weight(x, master, number), g, stages).astype(np.float64) ** 2
        if x.flags.c_contiguous:
            rows, columns = along(squares)[..., None], across(squares)[..., None, :]
        else:
            rows, columns = across(squares.T)[..., None], along(squares.T)[..., None, :]
        means = rows / x.shape[-1], columns / x.shape[-2]
        new = [
            ((1.0 - share) * old.astype(np.float64) + share * mean).astype(number)
            for old, mean in zip((row, column), means, strict=True)
        ]
        tiny = np.finfo(number).smallest_normal if stages.flush else 0.0
        row, column = (np.where(np.abs(a) < tiny, number(0), a) for a in new)
    return row, column


def estimate(x: Array, row: Array, column: Array, floor: float) -> Array:
    """The second moment of each element of an array: row*column/(the mean of its matrix' rows).

    floor   the least that is divided by
    """
    found: Array = np.empty_like(x, computing(x.dtype), subok=False)
    if x.size:
        with np.errstate(all="ignore"):
            wide = row.astype(np.float64)
            mean = np.add.accumulate(wide, axis=-2)[..., -1:, :] / row.shape[-2]
            scaled = wide / np.where(mean < floor, floor, mean)
            found[...] = scaled.astype(found.dtype) * column
    return found


def across(lines: Doubles) -> Doubles:
    """The sums of all lines of each matrix: of bands in order, and then of these in order.

    A band has 64 lines, or more where there would be more than 16 bands.
    """
    *before, height, width = lines.shape
    size = max(64, -(-height // 16))
    total = np.zeros((*before, width))
    for first in range(0, height, size):
        band = np.zeros((*before, width))
        for line in range(first, min(first + size, height)):
            band = band + lines[..., line, :]
        total = total + band
    return total
