"""The stages around a rule, and the norm: what every rule has in common, in NumPy.

Like the rules themselves (reference.py) it is the specification of what is compiled
(cpp/kernels.cpp): the same order of operations, and the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]


class Stages(NamedTuple):
    """The numbers of the stages around a rule, in the order of a step; idle by default."""

    scale: float = 1.0  # 1/grad_scale, negative to maximize
    clip: float = np.inf
    l2: float = 0.0
    l1: float = 0.0
    agree: float = 1.0  # of u where u and g have the same sign
    oppose: float = 1.0  # of u elsewhere
    keep: float = 1.0  # 1 - lr*weight_decay where the decay is decoupled
    masked: bool = False
    after: float = 1.0  # 1/(1 + lr*weight_decay) where it is proximal
    threshold: float = 0.0
    low: float = -np.inf
    high: float = np.inf
    average: float = 0.0  # the share of x in its running mean
    flush: bool = True
    zero_grad: bool = False
    stochastic: bool = False
    key: int = 0  # of the step's random numbers, below 2**32


def step(
    rule: Callable[..., Array],
    x: Array,
    g: Array,
    state: Sequence[Array],
    scalars: Mapping[str, float],
    around: Stages,
    *,
    master: Array | None = None,
    average: Array | None = None,
    low: Array | None = None,
    high: Array | None = None,
    position: int = 0,
) -> None:
    """One step of one array, in the order that decides the bits.

         1  g = scale*g
         2  g = clamp(g, -clip, clip)
         3  g = g + l2*x;  g = g + l1*sign(x)
         4  u = rule(x, g, state)               the state is updated
            u = (agree where u*g > 0, else oppose)*u
         5  x = keep*x - u                      masked: keep only where u and x have the same sign
         6  x = after*x
         7  x = shrink(x, threshold)
         8  x = clamp(x, low, high)
         9  average = average + share*(x - average)
        10  x is rounded to its type, to nearest even or stochastically
        11  g = 0                               where zero_grad

    rule            a function of reference.py
    x, g            parameter (written) and gradient (read): of one shape, in float64 both, or each
                    in float32, float16 or bfloat16
    state           the rule's state arrays (written)
    scalars         the rule's keyword arguments, in double
    around          the numbers of the stages, in double
    master          in float32: stands in for a 16-bit x, which is rounded from it (written)
    average         the running mean of x (written)
    low, high       bounds of each element, in place of those of the stages
    position        number of x's first element among those of all arrays

    Computed in float64 for float64, else in float32; each scalar is rounded to that type once. What
    is stored in a narrower type is rounded to nearest even. State and average below the smallest
    normal number of the computing type are stored as 0 where `around.flush`.
    """
    number: Any = np.float64 if x.dtype == np.float64 else np.float32
    computing = np.dtype(number)
    tiny = np.finfo(computing).smallest_normal if around.flush else number(0)
    with np.errstate(all="ignore"):
        w = (x if master is None else master).astype(computing, copy=False)
        d = prepared(w, g, around)
        wide = [s.astype(computing, copy=False) for s in state]
        u = rule(w, d, *wide, **{name: number(value) for name, value in scalars.items()})
        for s, new in zip(state, wide, strict=True):
            s[...] = np.where(np.abs(new) < tiny, number(0), new)
        if (around.agree, around.oppose) != (1.0, 1.0):
            u = np.where(u * d > 0, number(around.agree), number(around.oppose)) * u
        keep = number(around.keep)
        w = (np.where(u * w > 0, keep, number(1)) if around.masked else keep) * w - u
        if around.after != 1:
            w = number(around.after) * w
        if around.threshold != 0:
            w = shrink(w, number(around.threshold))
        if low is not None and high is not None:
            w = clamp(w, low.astype(computing), high.astype(computing))
        elif around.low > -np.inf or around.high < np.inf:
            w = clamp(w, number(around.low), number(around.high))
        if average is not None:
            moved = average + number(around.average) * (w - average)
            average[...] = np.where(np.abs(moved) < tiny, number(0), moved)
        if master is not None:
            master[...] = w
        if around.stochastic and x.dtype.itemsize == 2:
            w = dither(w, random_bits(w.shape, position, around.key, x), x.dtype.name == "float16")
        x[...] = w
    if around.zero_grad:
        g.fill(0)


def prepared(w: Array, g: Array, around: Stages) -> Array:
    """The gradient that a rule is to see, in the type of w: steps 1 to 3."""
    number: Any = w.dtype.type
    d: Array = number(around.scale) * g.astype(w.dtype, copy=False)
    if around.clip < np.inf:
        d = clamp(d, number(-around.clip), number(around.clip))
    if around.l2 != 0:
        d = d + number(around.l2) * w
    if around.l1 != 0:
        d = d + number(around.l1) * sign(w)
    return d


def look(
    rule: Callable[..., Array],
    x: Array,
    g: Array,
    state: Sequence[Array],
    scalars: Mapping[str, float],
    around: Stages,
    *,
    own: Callable[..., tuple[Array, Array]] | None = None,
    master: Array | None = None,
) -> tuple[float, float, float, float, float, float]:
    """What a step of one array would do, as sums: of x*x, g*g, u*u, u*g > 0, and of the own look.

    g is the gradient that the rule sees, u the update that it returns. Nothing is changed. Each is
    computed in the array's type and added in double, in the order of the norm.

    own   a function of reference.py: two numbers of each element, of the state before the step
    """
    number: Any = np.float64 if x.dtype == np.float64 else np.float32
    with np.errstate(all="ignore"):
        w = (x if master is None else master).astype(number, copy=False)
        d = prepared(w, g, around)
        rounded = {name: number(value) for name, value in scalars.items()}
        p, q = (
            (None, None)
            if own is None
            else own(w, d, *(s.astype(number, copy=False) for s in state), **rounded)
        )
        u = rule(w, d, *(s.astype(number) for s in state), **rounded)
        squares = [a.astype(np.float64) ** 2 for a in (w, d, u)]
        return (
            folded(squares[0]),
            folded(squares[1]),
            folded(squares[2]),
            folded(u * d > 0),
            0.0 if p is None else folded(p),
            0.0 if q is None else folded(q),
        )


def norm_squared(gradients: Sequence[Array]) -> tuple[float, bool]:
    """The sum of the squares of all gradients, in double, and whether all elements are finite.

    Blocks of 4096 elements from each array's start: element i adds its square to lane i mod 16, in
    order; lanes fold 8-4-2-1; blocks fold pairwise by index; arrays are added in their order.
    """
    total, finite = 0.0, True
    with np.errstate(all="ignore"):
        for g in gradients:
            wide = np.asarray(g).astype(np.float64)
            finite = finite and bool(np.isfinite(wide).all())
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


def sign(a: Array) -> Array:
    """1, -1, or the number itself where it is 0 or NaN."""
    return np.where(a > 0, 1, np.where(a < 0, -1, a)).astype(a.dtype)


def clamp(a: Array, low: Array | float, high: Array | float) -> Array:
    """The number, or the bound that it is beyond; a NaN comes through."""
    above = np.where(a < low, low, a)
    return np.where(above > high, high, above).astype(a.dtype)


def shrink(a: Array, threshold: float) -> Array:
    """Closer to 0 by the threshold, and 0 where it is closer already."""
    return a - clamp(a, -threshold, threshold)


def mix(h: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """32 bits in which every bit depends on every bit of `h` (Wellons 2018, "lowbias32")."""
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)
    return h ^ (h >> np.uint32(16))


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


def maximum(a: Array, b: Array | float) -> Array:
    """The larger one; a NaN on either side comes through."""
    return np.where((a > b) | np.isnan(a), a, b).astype(a.dtype, copy=False)
