"""Projections of whole arrays, in place: the nearest point of a set, after a step.

    opt.step(grads)
    schuss.projections.simplex(params["p"])

Sums are taken in double and in a fixed order, so that the same array gives the same bits anywhere:
on every machine, and for every instruction set and number of threads. Each function says what it
reads beside the array's one pass. They come after a step as a whole, and so after its stages:

ema=            the running mean is that of the points before the projection: project
                opt.ema["p"], too, before it is used
master=True     the next step begins with the master: project opt.state["p"]["master"], and write
                it into the parameter, p[...] = master. A parameter alone comes back as it was

Bounds of each element are an option of every optimizer, bounds=, and cost no pass at all.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from schuss import _core, reference
from schuss.checks import Interval
from schuss.engine.structure import is_floating, view_of_complex
from schuss.reference.storage import within

__all__ = ["ball", "nonnegative", "simplex"]

POSITIVE = Interval("(0, inf)")


def nonnegative(x: np.ndarray) -> np.ndarray:
    """The nearest array without negative elements.

        x = max(x, 0)

    x   an array of floating-point numbers; written

    Reads nothing more. A NaN stays one. Returns x.
    """
    _check(x, finite=False)
    x[...] = reference.maximum(x, np.zeros((), x.dtype))
    return x


def simplex(x: np.ndarray, total: float = 1.0) -> np.ndarray:
    """The nearest array without negative elements whose sum is `total`, such as probabilities.

        x = max(x - theta, 0)           theta such that the sum is `total`

    x       an array of floating-point numbers; written
    total   in (0, inf), default 1

    Reads more: a sort of all elements, in a copy in double. The sum is then right to rounding.
    Returns x. Raises ValueError where an element is not finite; nothing has changed then.
    Source: Held, Wolfe, Crowder 1974, as in Duchi et al. 2008, ICML, figure 1.
    """
    total = POSITIVE.check("total", total)
    values = _check(x)
    x[...] = _reduced(values, total)
    return x


def ball(x: np.ndarray, radius: float = 1.0, norm: float = 2) -> np.ndarray:
    """The nearest array whose norm is `radius` or less.

        norm=2:     x = x*min(1, radius/|x|)                    |x| = sqrt(sum of squares)
        norm=1:     x = sign(x)*max(|x| - theta, 0)             where sum |x| > radius
        norm=inf:   x = clamp(x, -radius, radius)               in x's type, rounded inwards

    x        an array of floating-point numbers; written
    radius   in (0, inf), default 1
    norm     1, 2 (default) or inf

    Reads more: all elements once for the norm with 2, a sort of their absolute values with 1, in
    a copy in double; nothing with inf, which lets a NaN through. The norm is then right to
    rounding. Returns x. Raises ValueError for 1 and 2 where an element is not finite; nothing has
    changed then.
    Source: norm=1: Duchi et al. 2008, ICML, section 4.
    """
    radius = POSITIVE.check("radius", radius)
    if norm not in (1, 2, math.inf):
        raise ValueError(f"norm: {norm!r} is unknown; wanted 1 or 2 or inf")
    if norm == math.inf:
        _check(x, finite=False)
        x[...] = reference.clamp(x, *within((-radius, radius), x.dtype))
        return x
    values = _check(x)
    if norm == 2:
        scaled, exponent = _scaled(values)
        size = math.sqrt(reference.norm_squared([scaled])[0])
        with np.errstate(over="ignore"):
            if np.ldexp(size, exponent) > radius:
                x[...] = scaled * (radius / size)
        return x
    sizes = np.abs(values)
    with np.errstate(over="ignore"):  # infinity is above every radius, too
        above = x.size and np.cumsum(sizes.ravel(order="K"))[-1] > radius
    if above:
        x[...] = np.copysign(_reduced(sizes, radius), values)
    return x


def _check(x: Any, finite: bool = True) -> np.ndarray:
    """The array's values in double, once it is one that can be written."""
    if not isinstance(x, np.ndarray):
        raise TypeError(_core.no_array(x, "x"))
    if not is_floating(x.dtype):
        hint = view_of_complex(x.dtype)
        raise TypeError(f"x: {x.dtype}; wanted floating-point numbers{hint}")
    if not x.flags.writeable:
        raise ValueError("x: read-only, but it is written in place")
    values = np.asarray(x).astype(np.float64)
    if finite and not np.isfinite(values).all():
        raise ValueError("x: has elements that are not finite, and so no nearest point")
    return values


def _reduced(values: np.ndarray, total: float) -> np.ndarray:
    """The values less theta, and 0 where that is negative, such that their sum is `total`."""
    if not values.size:
        raise ValueError("x: has no elements, so that their sum is 0")
    with np.errstate(over="ignore"):  # what is infinitely below the largest becomes 0
        below = values - values.max()  # exact enough, however large the values are
        descending = np.sort(below, axis=None)[::-1]
        theta = (np.cumsum(descending) - total) / np.arange(1, values.size + 1)
    kept = np.flatnonzero(descending > theta)[-1]  # the largest one always is
    reduced: np.ndarray = np.maximum(below - theta[kept], 0.0)
    return reduced


def _scaled(values: np.ndarray) -> tuple[np.ndarray, int]:
    """The values divided by a power of 2, which is exact, so that their squares stay in range."""
    exponent = int(np.frexp(np.abs(values).max(initial=0.0))[1])
    return np.ldexp(values, -exponent), exponent
