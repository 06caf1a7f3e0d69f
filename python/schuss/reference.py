"""The specification: every rule in a few lines of NumPy, simplest first.

A rule takes the parameter x, the gradient g, its state arrays and its scalars, updates the state in
place and returns the update u; `step` puts it into the order of a step. The compiled kernels
(cpp/rules.hpp) have the same letters and the same order of operations, and end on the same bits.
Only + - * / sqrt, comparison and selection occur: each is correctly rounded on every machine.
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

    rule            a function of this module
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

    own   a function of this module: two numbers of each element, of the state before the step
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


def agreement(g: Array, p: Array, product: float) -> Array:
    """Above 0 where g and its predecessor p agree in sign, below 0 where they don't."""
    return g * p if product > 0 else sign(g) * sign(p)


def scaled(s: Array, q: Array, minus: float, plus: float) -> Array:
    """A step size after agreement q."""
    return np.where(q > 0, plus * s, np.where(q < 0, minus * s, s))


def zero(g: Array) -> Array:
    """What a look does not need."""
    return np.zeros_like(g)


def gained(k: Array, q: Array, add: float, mul: float) -> Array:
    """A gain after agreement q: it grows by a sum and shrinks by a factor."""
    return np.where(q > 0, k + add, np.where(q < 0, mul * k, k))


def sgd(x: Array, g: Array, *, lr: float) -> Array:
    return lr * g


def momentum(x: Array, g: Array, b: Array, *, mu: float, w: float, s: float) -> Array:
    b[...] = mu * b + w * g
    return s * b


def nesterov(x: Array, g: Array, b: Array, *, mu: float, w: float, a: float, s: float) -> Array:
    b[...] = mu * b + w * g
    return s * (a * g + mu * b)


def adagrad(
    x: Array, g: Array, s: Array, *, lr: float, inside: float, eps: float, guard: float
) -> Array:
    s[...] = s + g * g
    u = lr * g / (np.sqrt(s + inside) + eps)
    return np.where(s <= guard, 0, u).astype(g.dtype)


def rmsprop(
    x: Array,
    g: Array,
    v: Array,
    *,
    alpha: float,
    w: float,
    kv: float,
    inside: float,
    eps: float,
    lr: float,
) -> Array:
    v[...] = alpha * v + w * (g * g)
    u: Array = lr * (g / (np.sqrt(kv * v + inside) + eps))
    return u


def rmsprop_momentum(
    x: Array,
    g: Array,
    v: Array,
    b: Array,
    *,
    alpha: float,
    w: float,
    kv: float,
    inside: float,
    eps: float,
    mu: float,
    c: float,
    direct: float,
    s: float,
) -> Array:
    v[...] = alpha * v + w * (g * g)
    n: Array = c * (g / (np.sqrt(kv * v + inside) + eps))
    b[...] = mu * b + n
    return direct * n + s * b


def rmsprop_centered(
    x: Array,
    g: Array,
    v: Array,
    a: Array,
    *,
    alpha: float,
    w: float,
    kv: float,
    ka: float,
    least: float,
    inside: float,
    eps: float,
    lr: float,
) -> Array:
    v[...] = alpha * v + w * (g * g)
    a[...] = a + w * (g - a)
    q = maximum(kv * v - (ka * a) * (ka * a), least)
    u: Array = lr * (g / (np.sqrt(q + inside) + eps))
    return u


def rmsprop_centered_momentum(
    x: Array,
    g: Array,
    v: Array,
    a: Array,
    b: Array,
    *,
    alpha: float,
    w: float,
    kv: float,
    ka: float,
    least: float,
    inside: float,
    eps: float,
    mu: float,
    c: float,
    direct: float,
    s: float,
) -> Array:
    v[...] = alpha * v + w * (g * g)
    a[...] = a + w * (g - a)
    q = maximum(kv * v - (ka * a) * (ka * a), least)
    n: Array = c * (g / (np.sqrt(q + inside) + eps))
    b[...] = mu * b + n
    return direct * n + s * b


def adadelta(
    x: Array, g: Array, v: Array, d: Array, *, rho: float, w: float, eps: float, lr: float
) -> Array:
    v[...] = rho * v + w * (g * g)
    u: Array = np.sqrt(d + eps) / np.sqrt(v + eps) * g
    d[...] = rho * d + w * (u * u)
    return lr * u


def ftrl(
    x: Array, g: Array, n: Array, z: Array, *, per_lr: float, shrink: float, l1: float, l2: float
) -> Array:
    before = np.sqrt(n)
    n[...] = n + g * g
    root = np.sqrt(n)
    z[...] = z + ((g + shrink * x) - per_lr * (root - before) * x)
    u: Array = (z - clamp(z, -l1, l1)) / (per_lr * root + l2)
    return u


def adam(
    x: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    w1: float,
    beta2: float,
    w2: float,
    step: float,
    denom: float,
    eps: float,
) -> Array:
    m[...] = m + w1 * (g - m)
    v[...] = beta2 * v + w2 * (g * g)
    return step * (m / (denom * np.sqrt(v) + eps))


def adam_look(
    x: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    w1: float,
    beta2: float,
    w2: float,
    step: float,
    denom: float,
    eps: float,
) -> tuple[Array, Array]:
    square = g * g
    return square / maximum(beta2 * v + w2 * square, eps * eps), zero(g)


def general_adam(
    x: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    w1: float,
    beta2: float,
    w2: float,
    cm: float,
    cg: float,
    kv: float,
    inside: float,
    kd: float,
    least: float,
    eps: float,
    guard: float,
    under: float,
) -> Array:
    m[...] = m + w1 * (g - m)
    v[...] = beta2 * v + w2 * (g * g)
    n = cm * m + cg * g
    u = n / (maximum(np.sqrt(kv * v + inside) * kd, least) + eps)
    return np.where(v <= guard, under * n, u)


def decayed_adam(
    x: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    w1: float,
    beta2: float,
    w2: float,
    cm: float,
    cx: float,
    kd: float,
    eps: float,
) -> Array:
    m[...] = m + w1 * (g - m)
    v[...] = beta2 * v + w2 * (g * g)
    return (cm * m + cx * x) / (np.sqrt(v) * kd + eps)


def amsgrad(
    x: Array,
    g: Array,
    m: Array,
    v: Array,
    q: Array,
    *,
    w1: float,
    beta2: float,
    w2: float,
    ka: float,
    cm: float,
    kv: float,
    inside: float,
    kd: float,
    least: float,
    eps: float,
    guard: float,
    under: float,
) -> Array:
    m[...] = m + w1 * (g - m)
    v[...] = beta2 * v + w2 * (g * g)
    q[...] = maximum(q, ka * v)
    n = cm * m
    u = n / (maximum(np.sqrt(kv * q + inside) * kd, least) + eps)
    return np.where(q <= guard, under * n, u)


def adamax(
    x: Array,
    g: Array,
    m: Array,
    q: Array,
    *,
    w1: float,
    beta2: float,
    inside: float,
    step: float,
    eps: float,
) -> Array:
    m[...] = m + w1 * (g - m)
    q[...] = maximum(beta2 * q, np.abs(g) + inside)
    return step * (m / (q + eps))


def adabelief(
    x: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    w1: float,
    beta2: float,
    w2: float,
    inside: float,
    step: float,
    denom: float,
    eps: float,
) -> Array:
    m[...] = m + w1 * (g - m)
    d = g - m
    v[...] = beta2 * v + w2 * (d * d) + inside
    return step * (m / (denom * np.sqrt(v) + eps))


def yogi(
    x: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    w1: float,
    w2: float,
    step: float,
    denom: float,
    eps: float,
) -> Array:
    m[...] = m + w1 * (g - m)
    s = g * g
    v[...] = v - w2 * (sign(v - s) * s)
    return step * (m / (denom * np.sqrt(v) + eps))


def adopt(
    x: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    clip: float,
    eps: float,
    w1: float,
    beta2: float,
    w2: float,
    lr: float,
) -> Array:
    n = clamp(g / maximum(np.sqrt(v), eps), -clip, clip)
    m[...] = m + w1 * (n - m)
    v[...] = beta2 * v + w2 * (g * g)
    return lr * m


def grams(
    x: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    w1: float,
    beta2: float,
    w2: float,
    step: float,
    denom: float,
    eps: float,
) -> Array:
    m[...] = m + w1 * (g - m)
    v[...] = beta2 * v + w2 * (g * g)
    return sign(g) * (step * (np.abs(m) / (denom * np.sqrt(v) + eps)))


def ademamix(
    x: Array,
    g: Array,
    m: Array,
    s: Array,
    v: Array,
    *,
    w1: float,
    w3: float,
    beta2: float,
    w2: float,
    cm: float,
    cs: float,
    kv: float,
    inside: float,
    eps: float,
) -> Array:
    m[...] = m + w1 * (g - m)
    s[...] = s + w3 * (g - s)
    v[...] = beta2 * v + w2 * (g * g)
    u: Array = (cm * m + cs * s) / (np.sqrt(kv * v + inside) + eps)
    return u


def adan(
    x: Array,
    g: Array,
    m: Array,
    d: Array,
    v: Array,
    p: Array,
    *,
    first: float,
    w1: float,
    w2: float,
    beta3: float,
    w3: float,
    mix: float,
    cm: float,
    cd: float,
    kv: float,
    inside: float,
    eps: float,
) -> Array:
    diff = np.zeros_like(g) if first > 0 else g - p
    y = g + mix * diff
    m[...] = m + w1 * (g - m)
    d[...] = d + w2 * (diff - d)
    v[...] = beta3 * v + w3 * (y * y)
    p[...] = g
    u: Array = (cm * m + cd * d) / (np.sqrt(kv * v + inside) + eps)
    return u


def sophia(
    x: Array,
    g: Array,
    m: Array,
    h: Array,
    *,
    w1: float,
    cm: float,
    rho: float,
    least: float,
    eps: float,
    lr: float,
) -> Array:
    m[...] = m + w1 * (g - m)
    return lr * clamp(cm * m / (maximum(rho * h, least) + eps), -1, 1)


def signsgd(x: Array, g: Array, *, lr: float) -> Array:
    return lr * sign(g)


def lion(x: Array, g: Array, m: Array, *, w1: float, w2: float, lr: float) -> Array:
    c = m + w1 * (g - m)
    m[...] = m + w2 * (g - m)
    return lr * sign(c)


def rprop(
    x: Array,
    g: Array,
    p: Array,
    s: Array,
    *,
    product: float,
    minus: float,
    plus: float,
    low: float,
    high: float,
    least: float,
) -> Array:
    q = agreement(g, p, product)
    s[...] = clamp(scaled(s, q, minus, plus), low, high)
    p[...] = np.where(q < least, 0, g)
    return s * sign(p)


def rprop_backtracking(
    x: Array,
    g: Array,
    p: Array,
    s: Array,
    d: Array,
    *,
    product: float,
    minus: float,
    plus: float,
    low: float,
    high: float,
    back: float,
) -> Array:
    q = agreement(g, p, product)
    s[...] = clamp(scaled(s, q, minus, plus), low, high)
    p[...] = np.where(q < 0, 0, g)
    u = np.where(q < 0, -back * d, s * sign(g))
    d[...] = u
    return u


def delta_bar_delta(
    x: Array,
    g: Array,
    k: Array,
    p: Array,
    *,
    add: float,
    mul: float,
    low: float,
    high: float,
    lr: float,
) -> Array:
    k[...] = clamp(gained(k, agreement(g, p, 0), add, mul), low, high)
    p[...] = g
    return lr * (k * g)


def delta_bar_delta_velocity(
    x: Array,
    g: Array,
    k: Array,
    b: Array,
    *,
    add: float,
    mul: float,
    low: float,
    high: float,
    mu: float,
    lr: float,
) -> Array:
    k[...] = clamp(gained(k, agreement(g, b, 0), add, mul), low, high)
    b[...] = mu * b + k * g
    return lr * b


def delta_bar_delta_momentum(
    x: Array,
    g: Array,
    k: Array,
    p: Array,
    b: Array,
    *,
    add: float,
    mul: float,
    low: float,
    high: float,
    mu: float,
    lr: float,
) -> Array:
    k[...] = clamp(gained(k, agreement(g, p, 0), add, mul), low, high)
    p[...] = g
    b[...] = mu * b + k * g
    return lr * b


def asgd(x: Array, g: Array, a: Array, *, decay: float, rate: float, share: float) -> Array:
    u = decay * x + rate * g
    after = x - u
    start = a if share < 1 else after
    a[...] = start + share * (after - start)
    return u


def schedule_free(
    x: Array, g: Array, z: Array, *, first: float, ck: float, step: float, lr: float
) -> Array:
    start = x if first > 0 else z
    u = step * g - ck * (start - x)
    z[...] = start - lr * g
    return u


def schedule_free_adam(
    x: Array,
    g: Array,
    z: Array,
    v: Array,
    *,
    first: float,
    beta2: float,
    w2: float,
    denom: float,
    eps: float,
    decay: float,
    ck: float,
    step: float,
    lr: float,
) -> Array:
    v[...] = beta2 * v + w2 * (g * g)
    d = g / (denom * np.sqrt(v) + eps) + decay * x
    start = x if first > 0 else z
    u: Array = step * d - ck * (start - x)
    z[...] = start - lr * d
    return u


# ---- Rules whose scalars follow from sums over the array, or over all arrays


def lars(
    x: Array, g: Array, b: Array, *, decay: float, mu: float, w: float, a: float, s: float
) -> Array:
    b[...] = mu * b + w * (g + decay * x)
    return s * b + a * (g + decay * x)


def lars_look(
    x: Array, g: Array, b: Array, *, decay: float, mu: float, w: float, a: float, s: float
) -> tuple[Array, Array]:
    d = g + decay * x
    return d * d, zero(g)


def lamb(
    x: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    w1: float,
    beta2: float,
    w2: float,
    step: float,
    denom: float,
    eps: float,
    decay: float,
    rate: float,
) -> Array:
    m[...] = m + w1 * (g - m)
    v[...] = beta2 * v + w2 * (g * g)
    u: Array = rate * (step * (m / (denom * np.sqrt(v) + eps)) + decay * x)
    return u


def mars(
    x: Array,
    g: Array,
    m: Array,
    v: Array,
    p: Array,
    *,
    ahead: float,
    shrink: float,
    w1: float,
    beta2: float,
    w2: float,
    step: float,
    denom: float,
    eps: float,
) -> Array:
    c = shrink * (g + ahead * (g - p))
    p[...] = g
    m[...] = m + w1 * (c - m)
    v[...] = beta2 * v + w2 * (c * c)
    u: Array = step * (m / (denom * np.sqrt(v) + eps))
    return u


def mars_look(
    x: Array,
    g: Array,
    m: Array,
    v: Array,
    p: Array,
    *,
    ahead: float,
    shrink: float,
    w1: float,
    beta2: float,
    w2: float,
    step: float,
    denom: float,
    eps: float,
) -> tuple[Array, Array]:
    c = g + ahead * (g - p)
    return c * c, zero(g)


def prodigy(
    x: Array,
    g: Array,
    m: Array,
    v: Array,
    s: Array,
    o: Array,
    *,
    first: float,
    d: float,
    w1: float,
    beta2: float,
    w2: float,
    beta3: float,
    k: float,
    step: float,
    eps: float,
) -> Array:
    c = d * g
    m[...] = m + w1 * (c - m)
    v[...] = beta2 * v + w2 * (c * c)
    s[...] = beta3 * s + k * g
    o[...] = x if first > 0 else o
    u: Array = step * (m / (np.sqrt(v) + eps))
    return u


def prodigy_look(
    x: Array,
    g: Array,
    m: Array,
    v: Array,
    s: Array,
    o: Array,
    *,
    first: float,
    d: float,
    w1: float,
    beta2: float,
    w2: float,
    beta3: float,
    k: float,
    step: float,
    eps: float,
) -> tuple[Array, Array]:
    start = x if first > 0 else o
    return g * (start - x), np.abs(beta3 * s + k * g)


def dadapt_adam(
    x: Array,
    g: Array,
    m: Array,
    v: Array,
    s: Array,
    *,
    rate: float,
    w1: float,
    beta2: float,
    w2: float,
    beta3: float,
    k: float,
    eps: float,
) -> Array:
    m[...] = m + w1 * (rate * g - m)
    v[...] = beta2 * v + w2 * (g * g)
    s[...] = beta3 * s + k * g
    u: Array = m / (np.sqrt(v) + eps)
    return u


def dadapt_adam_look(
    x: Array,
    g: Array,
    m: Array,
    v: Array,
    s: Array,
    *,
    rate: float,
    w1: float,
    beta2: float,
    w2: float,
    beta3: float,
    k: float,
    eps: float,
) -> tuple[Array, Array]:
    return g * (s / (np.sqrt(v) + eps)), np.abs(beta3 * s + k * g)
