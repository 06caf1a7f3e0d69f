"""The first sweep, which writes nothing: what a step has to know of whole arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from schuss.reference.stages import Stages, in_type, opened, update

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]
    Doubles = NDArray[np.float64]


class Sums(NamedTuple):
    """What was measured of an array, or of all of them, before the step."""

    x: float  # of x*x
    g: float  # of g*g, as the rule is to see it
    u: float  # of u*u
    agree: float  # elements with u*g > 0
    p: float  # these two are the rule's own
    q: float
    size: int  # elements


# The bit of each of the sums, as the kernels count; p and q come together.
WANTED = {"x": 1, "g": 2, "u": 4, "agree": 8, "own": 16}


def measure(
    rule: Callable[..., Array],
    x: Array,
    g: Array,
    state: Sequence[Array],
    scalars: Mapping[str, float],
    stages: Stages,
    *,
    own: Callable[..., tuple[Array, Array]] | None = None,
    master: Array | None = None,
    rows: NDArray[np.int64] | None = None,
) -> tuple[float, float, float, float, float, float]:
    """What a step of one array would do, as sums: of x*x, g*g, u*u, u*g > 0, and of the rule's own.

    g is the gradient that the rule sees, u the update that it returns. Nothing is changed. Each is
    computed in the array's type and added in double, in the order of the norm.

    own    the rule's `_measures` in rules.py: two numbers of each element, from the state as it was
    rows   those that alone are to be stepped, as `step` takes them: each is summed by itself
    """
    with np.errstate(all="ignore"):
        w, d, seen = opened(x, g, state, stages, master=master, rows=rows)
        p, q = (None, None)
        if own is not None:
            p, q = own(w, d, *seen, **in_type(w.dtype.type, scalars))
        u = update(rule, w, d, seen, scalars, stages)

        def total(a: Any) -> float:
            return 0.0 if a is None else folded(a, rows is not None)

        squares = [total(a.astype(np.float64) ** 2) for a in (w, d, u)]
        return squares[0], squares[1], squares[2], total(u * d > 0), total(p), total(q)


def report(
    rule: Callable[..., Array],
    x: Array,
    g: Array,
    state: Sequence[Any],
    scalars: Mapping[str, float],
    stages: Stages,
    *,
    master: Array | None = None,
    rows: NDArray[np.int64] | None = None,
) -> Doubles:
    """What a step of one array does, as sums: lines of g*g, u*u and x*x, a column for each row.

    g is the gradient that the rule sees, u the update as it is taken from x, and x what it is taken
    from. Nothing is changed. A single column where all of x is stepped; see `pairwise`. Squares are
    added in the type that is computed in within blocks of 512 elements, and these in double.
    """
    with np.errstate(all="ignore"):
        w, d, seen = opened(x, g, state, stages, master=master, rows=rows)
        u = update(rule, w, d, seen, scalars, stages)
        return np.array([squares(lines(a, rows is not None, a.dtype)) for a in (d, u, w)])


def norm(gradients: Sequence[Array], by_rows: Collection[int] = ()) -> tuple[float, int, bool]:
    """The norm of all gradients as s and k, where it is sqrt(s)*2**k, and whether all are finite.

    k is 0 unless squares of float64 leave the range of double: then all elements are scaled by it.
    """
    squares, finite = norm_squared(gradients, by_rows=by_rows)
    if not finite or 2.0**-900 <= squares < np.inf:
        return squares, 0, finite
    exponent = -600 if squares < 1 else 600
    return norm_squared(gradients, exponent, by_rows)[0], exponent, True


def norm_squared(
    gradients: Sequence[Array], exponent: int = 0, by_rows: Collection[int] = ()
) -> tuple[float, bool]:
    """The sum of the squares of all gradients, in double, and whether all elements are finite.

    exponent   each element is multiplied by 2**-exponent before it is squared
    by_rows    which of the gradients are rows of an array, each of which is summed by itself

    Blocks of 4096 elements from the start of an array, or of each row: element i adds its square to
    lane i mod 16, in order; lanes fold 8-4-2-1; blocks fold pairwise by index, and then rows;
    arrays are added in their order.
    """
    total, finite = 0.0, True
    with np.errstate(all="ignore"):
        for i, g in enumerate(gradients):
            wide = np.asarray(g).astype(np.float64)
            finite = finite and bool(np.isfinite(wide).all())
            if exponent:
                wide = wide * 2.0**-exponent
            if wide.size:
                total += folded(wide * wide, i in by_rows)
    return total, finite


def folded(a: Array | NDArray[np.bool_], of_rows: bool = False) -> float:
    """The sum of an array's elements in double, in the fixed tree; of rows, each has its own."""
    return float(pairwise(summed(lines(a, of_rows))))


def lines(a: Any, of_rows: bool, number: Any = np.float64) -> Any:
    """An array in a type, its elements as they lie in memory: in one line, or one for each row."""
    shape = (len(a), math.prod(a.shape[1:])) if of_rows else (1, a.size)
    return a.ravel(order="C" if of_rows else "K").astype(number).reshape(shape)


def squares(rows: Array) -> Doubles:
    """The sum of the squares of each line, added in its own type within blocks of 512."""
    count, size = rows.shape
    padded = np.zeros((count, -(-size // 4096) * 4096), rows.dtype)
    padded[:, :size] = rows
    blocks = (padded * padded).reshape(count, padded.shape[1] // 4096, 8, 32, 16)
    sums = np.zeros((*blocks.shape[:3], 16), rows.dtype)
    for i in range(32):
        sums = sums + blocks[..., i, :]
    lanes = np.zeros((*blocks.shape[:2], 16))
    for block in range(8):
        lanes = lanes + sums[..., block, :].astype(np.float64)
    return pairwise(fold(lanes))


def summed(rows: Doubles) -> Doubles:
    """The sum of each line: of its blocks of 4096, folded pairwise by index."""
    count, size = rows.shape
    block = max(1, min(size, 4096))
    blocks = -(-size // block)
    padded = np.zeros((count, blocks * block))
    padded[:, :size] = rows
    return pairwise(along(padded.reshape(count, blocks, block)))


def pairwise(sums: Doubles) -> Doubles:
    """Along the last axis, neighbours are added until there is one; 0 where there is none."""
    while sums.shape[-1] > 1:
        even = sums.shape[-1] // 2 * 2
        pairs = sums[..., 0:even:2] + sums[..., 1:even:2]
        sums = np.concatenate([pairs, sums[..., even:]], axis=-1)
    found: Doubles = sums[..., 0] if sums.shape[-1] else np.zeros(sums.shape[:-1])
    return found


def along(lines: Doubles) -> Doubles:
    """The sums of lines: element i goes to lane i mod 16, in order; lanes fold 8-4-2-1."""
    *before, size = lines.shape
    padded = np.zeros((*before, -(-size // 16) * 16))
    padded[..., :size] = lines
    sixteens = padded.reshape(*before, padded.shape[-1] // 16, 16)
    lanes = np.zeros((*before, 16))
    for i in range(sixteens.shape[-2]):
        lanes = lanes + sixteens[..., i, :]
    return fold(lanes)


def fold(lanes: Doubles) -> Doubles:
    """The sum of sixteen lanes: the upper half is added to the lower one, until there is one."""
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    return lanes[..., 0]
