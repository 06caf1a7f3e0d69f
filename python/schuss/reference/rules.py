"""The specification: every rule in a few lines of NumPy, simplest first.

A rule takes the parameter x, the gradient g, its state arrays and its scalars, updates the state in
place and returns the update u; `step` puts it into the order of a step. The kernels' own rules
(cpp/core/rules.hpp) have the same letters and order of operations, and end on the same bits. Only
+ - * / sqrt, comparison and selection occur: each is correctly rounded on every machine. A weight
goes on one factor of a square, (w*g)*g as in PyTorch: g*g overflows far earlier, and what is
infinite once stays so.

The annotation of a state array says how it is stored in less than it is computed in:

    Mean     to nearest; in 8 bits by dither
    Slow     by dither: its change in a step may be less than the spacing of 16 bits
    Second   by dither, and it is never negative
    Peak     to nearest, and it is never negative
    Exact    to nearest, and not in 8 bits: no mean or sum of what is small
    Point    by dither, and not in 8 bits

What a rule measures of an element before its step is a function of its name with `_measures`.
"""

from __future__ import annotations

import numpy as np

from schuss.reference.elements import clamp, maximum, sign
from schuss.reference.storage import Exact, Mean, Peak, Point, Second, Slow


def agreement(g, p, product):
    """Above 0 where g and its predecessor p agree in sign, below 0 where they don't."""
    return g * p if product > 0 else sign(g) * sign(p)


def scaled(s, q, minus, plus):
    """A step size after agreement q."""
    return np.where(q > 0, plus * s, np.where(q < 0, minus * s, s))


def square(a):
    """A square in double, where that of no float32 overflows or vanishes."""
    return a.astype(np.float64) ** 2


def zero(g):
    """What a rule that measures one number returns as its second."""
    return np.zeros_like(g)


def gained(k, q, add, mul):
    """A gain after agreement q: it grows by a sum and shrinks by a factor."""
    return np.where(q > 0, k + add, np.where(q < 0, mul * k, k))


def sgd(x, g, *, lr):
    return lr * g


def momentum(x, g, b: Mean, *, mu, w, s):
    b[...] = mu * b + w * g
    return s * b


def nesterov(x, g, b: Mean, *, mu, w, a, s):
    b[...] = mu * b + w * g
    return s * (a * g + mu * b)


def adagrad(x, g, s: Second, *, lr, inside, eps, guard):
    s[...] = s + g * g
    u = lr * g / (np.sqrt(s + inside) + eps)
    return np.where(s <= guard, 0, u).astype(g.dtype)


def rmsprop(x, g, v: Second, *, alpha, w, kv, inside, eps, lr):
    v[...] = alpha * v + (w * g) * g
    return lr * (g / (np.sqrt(kv * v + inside) + eps))


def rmsprop_momentum(x, g, v: Second, b: Mean, *, alpha, w, kv, inside, eps, mu, c, direct, s):
    v[...] = alpha * v + (w * g) * g
    n = c * (g / (np.sqrt(kv * v + inside) + eps))
    b[...] = mu * b + n
    return direct * n + s * b


def rmsprop_centered(x, g, v: Second, a: Slow, *, alpha, w, kv, ka, least, inside, eps, lr):
    v[...] = alpha * v + (w * g) * g
    a[...] = a + w * (g - a)
    q = maximum(kv * v - (ka * a) * (ka * a), least)
    return lr * (g / (np.sqrt(q + inside) + eps))


def rmsprop_centered_momentum(
    x, g, v: Second, a: Slow, b: Mean, *, alpha, w, kv, ka, least, inside, eps, mu, c, direct, s
):
    v[...] = alpha * v + (w * g) * g
    a[...] = a + w * (g - a)
    q = maximum(kv * v - (ka * a) * (ka * a), least)
    n = c * (g / (np.sqrt(q + inside) + eps))
    b[...] = mu * b + n
    return direct * n + s * b


def adadelta(x, g, v: Second, d: Second, *, rho, w, eps, lr):
    v[...] = rho * v + (w * g) * g
    u = np.sqrt(d + eps) / np.sqrt(v + eps) * g
    d[...] = rho * d + (w * u) * u
    return lr * u


def ftrl(x, g, n: Second, z: Slow, *, per_lr, shrink, l1, l2):
    before = np.sqrt(n)
    n[...] = n + g * g
    root = np.sqrt(n)
    z[...] = z + ((g + shrink * x) - per_lr * (root - before) * x)
    return (z - clamp(z, -l1, l1)) / (per_lr * root + l2)


def adam(x, g, m: Mean, v: Second, *, w1, beta2, w2, step, denom, eps):
    m[...] = m + w1 * (g - m)
    v[...] = beta2 * v + (w2 * g) * g
    return step * (m / (denom * np.sqrt(v) + eps))


def adam_measures(x, g, m, v, *, beta2, w2, eps, **_):
    return g / maximum(beta2 * v + (w2 * g) * g, eps * eps) * g, zero(g)


def general_adam(
    x, g, m: Mean, v: Second, *, w1, beta2, w2, cm, cg, kv, inside, kd, least, eps, guard, under
):
    m[...] = m + w1 * (g - m)
    v[...] = beta2 * v + (w2 * g) * g
    n = cm * m + cg * g
    u = n / (maximum(np.sqrt(kv * v + inside) * kd, least) + eps)
    return np.where(v <= guard, under * n, u)


def decayed_adam(x, g, m: Mean, v: Second, *, w1, beta2, w2, cm, cx, kd, eps):
    m[...] = m + w1 * (g - m)
    v[...] = beta2 * v + (w2 * g) * g
    return (cm * m + cx * x) / (np.sqrt(v) * kd + eps)


def amsgrad(
    x,
    g,
    m: Mean,
    v: Second,
    q: Peak,
    *,
    w1,
    beta2,
    w2,
    ka,
    cm,
    kv,
    inside,
    kd,
    least,
    eps,
    guard,
    under,
):
    m[...] = m + w1 * (g - m)
    v[...] = beta2 * v + (w2 * g) * g
    q[...] = maximum(q, ka * v)
    n = cm * m
    u = n / (maximum(np.sqrt(kv * q + inside) * kd, least) + eps)
    return np.where(q <= guard, under * n, u)


def adamax(x, g, m: Mean, q: Second, *, w1, beta2, inside, step, eps):
    m[...] = m + w1 * (g - m)
    q[...] = maximum(beta2 * q, np.abs(g) + inside)
    return step * (m / (q + eps))


def adabelief(x, g, m: Mean, v: Second, *, w1, beta2, w2, inside, step, denom, eps):
    m[...] = m + w1 * (g - m)
    d = g - m
    v[...] = beta2 * v + (w2 * d) * d + inside
    return step * (m / (denom * np.sqrt(v) + eps))


def yogi(x, g, m: Mean, v: Second, *, w1, hold, w2, step, denom, eps):
    m[...] = m + w1 * (g - m)
    v[...] = hold * v - (w2 * sign(v - g * g) * g) * g
    return step * (m / (denom * np.sqrt(v) + eps))


def adopt(x, g, m: Mean, v: Second, *, clip, eps, w1, beta2, w2, lr):
    n = clamp(g / maximum(np.sqrt(v), eps), -clip, clip)
    m[...] = m + w1 * (n - m)
    v[...] = beta2 * v + (w2 * g) * g
    return lr * m


def grams(x, g, m: Mean, v: Second, *, w1, beta2, w2, step, denom, eps):
    m[...] = m + w1 * (g - m)
    v[...] = beta2 * v + (w2 * g) * g
    return sign(g) * (step * (np.abs(m) / (denom * np.sqrt(v) + eps)))


def ademamix(x, g, m: Mean, s: Slow, v: Second, *, w1, w3, beta2, w2, cm, cs, kv, inside, eps):
    m[...] = m + w1 * (g - m)
    s[...] = s + w3 * (g - s)
    v[...] = beta2 * v + (w2 * g) * g
    return (cm * m + cs * s) / (np.sqrt(kv * v + inside) + eps)


def adan(
    x,
    g,
    m: Slow,
    d: Mean,
    v: Second,
    p: Exact,
    *,
    first,
    w1,
    w2,
    beta3,
    w3,
    mix,
    cm,
    cd,
    kv,
    inside,
    eps,
):
    diff = np.zeros_like(g) if first > 0 else g - p
    y = g + mix * diff
    m[...] = m + w1 * (g - m)
    d[...] = d + w2 * (diff - d)
    v[...] = beta3 * v + (w3 * y) * y
    p[...] = g
    return (cm * m + cd * d) / (np.sqrt(kv * v + inside) + eps)


def sophia(x, g, m: Slow, h: Exact, *, w1, cm, rho, least, eps, lr):
    m[...] = m + w1 * (g - m)
    return lr * clamp(cm * m / (maximum(rho * h, least) + eps), -1, 1)


def signsgd(x, g, *, lr):
    return lr * sign(g)


def lion(x, g, m: Slow, *, w1, w2, lr):
    c = m + w1 * (g - m)
    m[...] = m + w2 * (g - m)
    return lr * sign(c)


def rprop(x, g, p: Exact, s: Exact, *, product, minus, plus, low, high, least):
    q = agreement(g, p, product)
    s[...] = clamp(scaled(s, q, minus, plus), low, high)
    p[...] = np.where(q < least, 0, g)
    return s * sign(p)


def rprop_backtracking(
    x, g, p: Exact, s: Exact, d: Exact, *, product, minus, plus, low, high, back
):
    q = agreement(g, p, product)
    s[...] = clamp(scaled(s, q, minus, plus), low, high)
    p[...] = np.where(q < 0, 0, g)
    u = np.where(q < 0, -back * d, s * sign(g))
    d[...] = u
    return u


def delta_bar_delta(x, g, k: Exact, p: Exact, *, add, mul, low, high, lr):
    k[...] = clamp(gained(k, agreement(g, p, 0), add, mul), low, high)
    p[...] = g
    return lr * (k * g)


def delta_bar_delta_velocity(x, g, k: Exact, b: Mean, *, add, mul, low, high, mu, lr):
    k[...] = clamp(gained(k, agreement(g, b, 0), add, mul), low, high)
    b[...] = mu * b + k * g
    return lr * b


def delta_bar_delta_momentum(x, g, k: Exact, p: Exact, b: Mean, *, add, mul, low, high, mu, lr):
    k[...] = clamp(gained(k, agreement(g, p, 0), add, mul), low, high)
    p[...] = g
    b[...] = mu * b + k * g
    return lr * b


def asgd(x, g, a: Point, *, decay, rate, share):
    u = decay * x + rate * g
    after = x - u
    start = a if share < 1 else after
    a[...] = start + share * (after - start)
    return u


def schedule_free(x, g, z: Point, *, first, ck, step, lr):
    start = x if first > 0 else z
    u = step * g - ck * (start - x)
    z[...] = start - lr * g
    return u


def schedule_free_adam(
    x, g, z: Point, v: Second, *, first, beta2, w2, denom, eps, decay, ck, step, lr
):
    v[...] = beta2 * v + (w2 * g) * g
    d = g / (denom * np.sqrt(v) + eps) + decay * x
    start = x if first > 0 else z
    u = step * d - ck * (start - x)
    z[...] = start - lr * d
    return u


# ---- Rules whose scalars follow from sums over the array, or over all arrays


def lars(x, g, b: Mean, *, decay, mu, w, a, s):
    b[...] = mu * b + w * (g + decay * x)
    return s * b + a * (g + decay * x)


def lars_measures(x, g, b, *, decay, **_):
    return square(g + decay * x), zero(g)


def lamb(x, g, m: Mean, v: Second, *, w1, beta2, w2, step, denom, eps, decay, rate):
    m[...] = m + w1 * (g - m)
    v[...] = beta2 * v + (w2 * g) * g
    return rate * (step * (m / (denom * np.sqrt(v) + eps)) + decay * x)


def adafactor(x, g, v: Second, *, beta2, w2, least, step):
    v[...] = beta2 * v + (w2 * g) * g
    return step * (g / np.sqrt(maximum(v, least)))


def mars(x, g, m: Mean, v: Second, p: Exact, *, ahead, shrink, w1, beta2, w2, step, denom, eps):
    c = shrink * (g + ahead * (g - p))
    p[...] = g
    m[...] = m + w1 * (c - m)
    v[...] = beta2 * v + (w2 * c) * c
    return step * (m / (denom * np.sqrt(v) + eps))


def mars_measures(x, g, m, v, p, *, ahead, **_):
    return square(g + ahead * (g - p)), zero(g)


def prodigy(
    x, g, m: Mean, v: Second, s: Slow, o: Exact, *, first, d, w1, beta2, w2, beta3, k, step, eps
):
    c = d * g
    m[...] = m + w1 * (c - m)
    v[...] = beta2 * v + (w2 * c) * c
    s[...] = beta3 * s + k * g
    o[...] = x if first > 0 else o
    return step * (m / (np.sqrt(v) + eps))


def prodigy_measures(x, g, m, v, s, o, *, first, beta3, k, **_):
    start = x if first > 0 else o
    return g * (start - x), np.abs(beta3 * s + k * g)


def dadapt_adam(x, g, m: Mean, v: Second, s: Slow, *, rate, w1, beta2, w2, beta3, k, eps):
    m[...] = m + w1 * (rate * g - m)
    v[...] = beta2 * v + (w2 * g) * g
    s[...] = beta3 * s + k * g
    return m / (np.sqrt(v) + eps)


def dadapt_adam_measures(x, g, m, v, s, *, beta3, k, eps, **_):
    return g * (s / (np.sqrt(v) + eps)), np.abs(beta3 * s + k * g)
