"""The order of a step: the stages around a rule, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from schuss.reference.elements import clamp, shrink, sign
from schuss.reference.rows import firsts, part, put_back
from schuss.reference.storage import (
    computing,
    in_order,
    lattice,
    numbered,
    put,
    rounded,
    split,
    traits,
    weight,
    widened,
    within,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]


class Stages(NamedTuple):
    """The numbers of the stages around a rule, in the order of a step; idle by default."""

    fade_x: float = 1.0  # these four: what steps without a gradient would have done meanwhile
    drift: float = 0.0
    fade_0: float = 1.0
    fade_1: float = 1.0
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
    key: int = 0  # of the step's dither, below 2**32


def step(
    rule: Callable[..., Array],
    x: Array,
    g: Array,
    state: Sequence[Any],
    scalars: Mapping[str, float],
    stages: Stages,
    *,
    master: Array | None = None,
    average: Array | None = None,
    low: Array | None = None,
    high: Array | None = None,
    position: int | NDArray[np.uint64] = 0,
    rows: NDArray[np.int64] | None = None,
) -> None:
    """One step of one array, in the order that decides the bits.

         0  x = fade_x*x - drift*s0             s0, s1: the first two state arrays
            s0 = fade_0*s0;  s1 = fade_1*s1
         1  g = scale*g
         2  g = clamp(g, -clip, clip)
         3  g = g + l2*x;  g = g + l1*sign(x)
         4  u = rule(x, g, state)               the state is updated
            u = (agree where u*g > 0, else oppose)*u
         5  x = keep*x - u                      masked: keep only where u and x have the same sign
         6  x = after*x
         7  x = shrink(x, threshold)
         8  x = clamp(x, low, high)             rounded inwards to numbers of x's type
         9  average = average + share*(x - average); x where share = 1
        10  x is rounded to its type, to nearest even or by a dither
        11  g = 0                               where zero_grad

    rule            a function of rules.py
    x, g            parameter (written) and gradient (read): of one shape, in float64 both, or each
                    in float32, float16 or bfloat16
    state           the rule's state arrays (written), or what has `codes` and `scales` of them
    scalars         the rule's keyword arguments, in double
    stages          the numbers of the stages, in double
    master          in float32: stands in for a 16-bit x, which is rounded from it; in int16: the
                    remainder of a bfloat16 x, with which it is a float32 (written)
    average         the running mean of x (written)
    low, high       bounds of each element, in place of those of the stages: numbers of x's type
    position        number of x's first element among those of all arrays, or of that of each row
    rows            numbers of the rows, ascending, each once, that alone are stepped: g has these,
                    and of all other arrays nothing else is read or written. Codes of a row are then
                    whole blocks, and arrays in C order. None: all of x

    Computed in float64 for float64, else in float32; each scalar is rounded to that type once. What
    is stored in a narrower type is rounded to nearest even, or as the trait of its state says.
    State and average below the smallest normal number of the computing type are stored as 0 where
    `stages.flush`.
    """
    if rows is not None:
        arrays = x, master, average, *state
        own, first = [part(a, rows) for a in arrays], firsts(x.shape, rows, int(position))
        step(
            rule,
            own[0],
            g,
            own[3:],
            scalars,
            stages,
            master=own[1],
            average=own[2],
            low=part(low, rows),
            high=part(high, rows),
            position=first,
        )
        for a, new in zip(arrays, own, strict=True):
            put_back(a, new, rows)
        return

    def chance(array: int) -> Callable[[], Any]:
        return lambda: in_order(lattice(numbered(x.size, position), stages.key, array), x)

    number = computing(x.dtype)
    tiny = np.finfo(number).smallest_normal if stages.flush else number(0)
    with np.errstate(all="ignore"):
        w, d, wide = opened(x, g, state, stages, master=master)
        u = update(rule, w, d, wide, scalars, stages)
        for i, (s, new, trait) in enumerate(zip(state, wide, traits(rule), strict=True)):
            put(s, np.where(np.abs(new) < tiny, number(0), new), trait, chance(i))
        keep = number(stages.keep)
        w = (np.where(u * w > 0, keep, number(1)) if stages.masked else keep) * w - u
        if stages.after != 1:
            w = number(stages.after) * w
        if stages.threshold != 0:
            w = shrink(w, number(stages.threshold))
        if low is not None and high is not None:
            w = clamp(w, low.astype(number), high.astype(number))
        elif stages.low > -np.inf or stages.high < np.inf:
            least, most = within((stages.low, stages.high), x.dtype)
            w = clamp(w, least.astype(number), most.astype(number))
        if average is not None:
            share = number(stages.average)
            moved = w if share == 1 else average + share * (w - average)  # which is rounded
            average[...] = np.where(np.abs(moved) < tiny, number(0), moved)
        if master is not None and master.dtype == np.int16:
            x.view(np.uint16)[...], master[...] = split(w)
        else:
            if master is not None:
                master[...] = w
            x[...] = rounded(w, x.dtype, chance(-1) if stages.stochastic else None)
    if stages.zero_grad:
        g.fill(0)


def opened(
    x: Array,
    g: Array,
    state: Sequence[Any],
    stages: Stages,
    *,
    master: Array | None = None,
    rows: NDArray[np.int64] | None = None,
) -> tuple[Array, Array, list[Array]]:
    """What a rule is to see, in the type that is computed in: steps 0 to 3. The state is copied."""
    if rows is not None:
        x, master, *state = (part(a, rows) for a in (x, master, *state))
    number = computing(x.dtype)
    w = weight(x, master, number)
    wide = [widened(s, number).copy(order="K") for s in state]
    if stages.drift != 0:
        w = number(stages.fade_x) * w - number(stages.drift) * wide[0]
    elif stages.fade_x != 1:
        w = number(stages.fade_x) * w
    for s, fade in zip(wide, (stages.fade_0, stages.fade_1), strict=False):
        if fade != 1:
            s[...] = number(fade) * s
    return w, prepared(w, g, stages), wide


def update(
    rule: Callable[..., Array],
    w: Array,
    d: Array,
    state: list[Array],
    scalars: Mapping[str, float],
    stages: Stages,
) -> Array:
    """What is taken from w for a prepared gradient: step 4."""
    number = w.dtype.type
    u = rule(w, d, *state, **in_type(number, scalars))
    if (stages.agree, stages.oppose) != (1.0, 1.0):
        u = np.where(u * d > 0, number(stages.agree), number(stages.oppose)) * u
    return u


def in_type(number: Any, scalars: Mapping[str, float]) -> dict[str, Any]:
    """A rule's scalars, each rounded to a type."""
    return {name: number(value) for name, value in scalars.items()}


def scaled(number: Any, g: Array, stages: Stages) -> Array:
    """Steps 1 and 2, in a type."""
    d: Array = number(stages.scale) * g.astype(number, copy=False)
    if stages.clip < np.inf:
        d = clamp(d, number(-stages.clip), number(stages.clip))
    return d


def scales_finite(x: Array, g: Array, stages: Stages) -> bool:
    """Whether the gradient of a parameter x is finite behind steps 1 and 2."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite(scaled(computing(x.dtype), g, stages)).all())


def prepared(w: Array, g: Array, stages: Stages) -> Array:
    """The gradient that a rule is to see, in the type of w: steps 1 to 3."""
    number: Any = w.dtype.type
    d = scaled(number, g, stages)
    if stages.l2 != 0:
        d = d + number(stages.l2) * w
    if stages.l1 != 0:
        d = d + number(stages.l1) * sign(w)
    return d
