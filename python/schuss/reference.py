"""The specification: every rule in a few lines of NumPy, simplest first.

A rule takes the parameter x, the gradient g, its state arrays and its scalars, updates the state in
place and returns the update u; `step` puts it into the order of a step. The compiled kernels
(cpp/rules.hpp) have the same letters and the same order of operations, and end on the same bits.
Only + - * / sqrt, comparison and selection occur: each is correctly rounded on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from schuss.stages import Stages as Stages
from schuss.stages import clamp as clamp
from schuss.stages import look as look
from schuss.stages import maximum as maximum
from schuss.stages import norm_squared as norm_squared
from schuss.stages import sign as sign
from schuss.stages import step as step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating]


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
