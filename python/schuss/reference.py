"""The specification: every rule in a few lines of NumPy, simplest first.

A rule takes the parameter x, the gradient g, its state arrays and its scalars, updates the state in
place and returns the update u; `step` puts it into the order of a step. The compiled kernels
(cpp/rules.hpp) have the same letters and the same order of operations, and end on the same bits.
Only + - * / sqrt, comparison and selection occur: each is correctly rounded on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]


def step(
    rule: Callable[..., Array],
    x: Array,
    g: Array,
    state: Sequence[Array],
    scalars: Mapping[str, float],
    *,
    scale: float = 1.0,
    l2: float = 0.0,
    keep: float = 1.0,
    flush: bool = True,
) -> None:
    """One step of one array, in the order that decides the bits.

        g = scale*g
        g = g + l2*x                    where l2 is not 0
        u = rule(x, g, state)           the state is updated
        state = 0                       where it is below the smallest normal number
        x = keep*x - u

    rule      a function of this module
    x, g      parameter (written) and gradient (read), of one shape and type: float32 or float64
    state     the rule's state arrays (written)
    scalars   the rule's keyword arguments, in double; each is rounded to the type of x once
    scale     1/grad_scale, negative to maximize, default 1
    l2        the coupled weight decay, default 0
    keep      1 - lr*weight_decay where the decay is decoupled, default 1
    flush     False keeps subnormal state, default True
    """
    number = x.dtype.type
    with np.errstate(all="ignore"):
        g = number(scale) * g
        if l2 != 0:
            g = g + number(l2) * x
        u = rule(x, g, *state, **{name: number(value) for name, value in scalars.items()})
        if flush:
            for s in state:
                s[np.abs(s) < np.finfo(s.dtype).smallest_normal] = 0
        x[...] = number(keep) * x - u


def maximum(a: Array, b: Array | float) -> Array:
    """The larger one; a NaN on either side comes through."""
    return np.where((a > b) | np.isnan(a), a, b).astype(a.dtype, copy=False)


def sgd(x: Array, g: Array, *, lr: float) -> Array:
    return lr * g


def momentum(x: Array, g: Array, b: Array, *, mu: float, w: float, s: float) -> Array:
    b[...] = mu * b + w * g
    return s * b


def nesterov(x: Array, g: Array, b: Array, *, mu: float, w: float, a: float, s: float) -> Array:
    b[...] = mu * b + w * g
    return s * (a * g + mu * b)


def adagrad(x: Array, g: Array, s: Array, *, lr: float, eps: float) -> Array:
    s[...] = s + g * g
    return lr * g / (np.sqrt(s) + eps)


def rmsprop(
    x: Array, g: Array, v: Array, *, alpha: float, w: float, lr: float, eps: float
) -> Array:
    v[...] = alpha * v + w * (g * g)
    return lr * g / (np.sqrt(v) + eps)


def rmsprop_momentum(
    x: Array,
    g: Array,
    v: Array,
    b: Array,
    *,
    alpha: float,
    w: float,
    lr: float,
    eps: float,
    mu: float,
) -> Array:
    v[...] = alpha * v + w * (g * g)
    b[...] = mu * b + g / (np.sqrt(v) + eps)
    return lr * b


def rmsprop_centered(
    x: Array, g: Array, v: Array, a: Array, *, alpha: float, w: float, lr: float, eps: float
) -> Array:
    v[...] = alpha * v + w * (g * g)
    a[...] = a + w * (g - a)
    return lr * g / (np.sqrt(maximum(v - a * a, 0.0)) + eps)


def rmsprop_centered_momentum(
    x: Array,
    g: Array,
    v: Array,
    a: Array,
    b: Array,
    *,
    alpha: float,
    w: float,
    lr: float,
    eps: float,
    mu: float,
) -> Array:
    v[...] = alpha * v + w * (g * g)
    a[...] = a + w * (g - a)
    b[...] = mu * b + g / (np.sqrt(maximum(v - a * a, 0.0)) + eps)
    return lr * b


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
    step: float,
    denom: float,
    eps: float,
) -> Array:
    m[...] = m + w1 * (g - m)
    v[...] = beta2 * v + w2 * (g * g)
    q[...] = maximum(q, v)
    return step * (m / (denom * np.sqrt(q) + eps))
