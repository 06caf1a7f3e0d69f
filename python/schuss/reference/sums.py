"""The first sweep, which writes nothing: what a step has to know of whole arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from schuss.reference.stages import Stages, prepared
from schuss.reference.storage import computing, weight, widened

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]


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
) -> tuple[float, float, float, float, float, float]:
    """What a step of one array would do, as sums: of x*x, g*g, u*u, u*g > 0, and of the rule's own.

    g is the gradient that the rule sees, u the update that it returns. Nothing is changed. Each is
    computed in the array's type and added in double, in the order of the norm.

    own   the rule's `_measures` in rules.py: two numbers of each element, from the state as it was
    """
    number = computing(x.dtype)
    with np.errstate(all="ignore"):
        w = weight(x, master, number)
        d = prepared(w, g, stages)
        rounded = {name: number(value) for name, value in scalars.items()}
        p, q = (
            (None, None)
            if own is None
            else own(w, d, *(widened(s, number) for s in state), **rounded)
        )
        u = rule(w, d, *(widened(s, number).copy(order="K") for s in state), **rounded)
        squares = [a.astype(np.float64) ** 2 for a in (w, d, u)]
        return (
            folded(squares[0]),
            folded(squares[1]),
            folded(squares[2]),
            folded(u * d > 0),
            0.0 if p is None else folded(p),
            0.0 if q is None else folded(q),
        )


def norm(gradients: Sequence[Array]) -> tuple[float, int, bool]:
    """The norm of all gradients as s and k, where it is sqrt(s)*2**k, and whether all are finite.

    k is 0 unless squares of float64 leave the range of double: then all elements are scaled by it.
    """
    squares, finite = norm_squared(gradients)
    if not finite or 2.0**-900 <= squares < np.inf:
        return squares, 0, finite
    exponent = -600 if squares < 1 else 600
    return norm_squared(gradients, exponent)[0], exponent, True


def norm_squared(gradients: Sequence[Array], exponent: int = 0) -> tuple[float, bool]:
    """The sum of the squares of all gradients, in double, and whether all elements are finite.

    exponent   each element is multiplied by 2**-exponent before it is squared

    Blocks of 4096 elements from each array's start: element i adds its square to lane i mod 16, in
    order; lanes fold 8-4-2-1; blocks fold pairwise by index; arrays are added in their order.
    """
    total, finite = 0.0, True
    with np.errstate(all="ignore"):
        for g in gradients:
            wide = np.asarray(g).astype(np.float64)
            finite = finite and bool(np.isfinite(wide).all())
            if exponent:
                wide = wide * 2.0**-exponent
            if wide.size:
                total += folded(wide * wide)
    return total, finite


def folded(a: Array | NDArray[np.bool_]) -> float:
    """The sum of an array's elements in double, in the fixed tree."""
    flat = a.ravel(order="K").astype(np.float64)
    padded = np.zeros(-(-flat.size // 4096) * 4096)
    padded[: flat.size] = flat
    rows = padded.reshape(-1, 256, 16)
    lanes = np.zeros((len(rows), 16))
    for i in range(256):
        lanes = lanes + rows[:, i]
    for half in (8, 4, 2, 1):
        lanes = lanes[:, :half] + lanes[:, half : 2 * half]
    sums = lanes[:, 0]
    while sums.size > 1:
        rest = sums[sums.size // 2 * 2 :]
        sums = np.concatenate([sums[: sums.size - rest.size : 2] + sums[1::2], rest])
    return float(sums[0]) if sums.size else 0.0
