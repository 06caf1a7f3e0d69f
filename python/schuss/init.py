"""Random weights to begin with, by the number of a neuron's inputs and outputs: its fans.

    rng = np.random.default_rng(0)
    w = schuss.init.he_normal((784, 512), rng, fans="keras", dtype=np.float32)    # a new array
    schuss.init.xavier_uniform(w, rng, gain=schuss.init.gain("tanh"))             # in place

Arguments that all have:

array    an array, which is filled in place, or the shape of a new one; returned either way
rng      a numpy.random.Generator
fans     which axes of the shape are a neuron's inputs and outputs:
         "keras"             (..., inputs, outputs), as in x @ w
         "torch"             (outputs, inputs, ...), as in x @ w.T
         (fan_in, fan_out)   the numbers themselves
         All other axes are those of a convolution's kernel, which multiplies both. The Xavier
         functions use the sum alone, and need no fans for two axes
dtype    of a new array, default float64

What is wrong among them raises a TypeError or ValueError with its name; nothing is written then.

Numbers are drawn in double and rounded to the array's type: a seed gives the same ones in each type
and in each order of the memory.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from schuss.checks import Interval, check_int
from schuss.engine.structure import is_floating

__all__ = [
    "gain",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "xavier_normal",
    "xavier_uniform",
]

Array = np.ndarray | tuple[int, ...] | list[int]
Fans = str | tuple[int, int]

GAINS = {
    "linear": 1.0,
    "sigmoid": 1.0,
    "tanh": 5.0 / 3.0,
    "relu": math.sqrt(2.0),
    "leaky_relu": math.nan,  # by its slope
    "selu": 0.75,
}

# The standard deviation of a standard normal number between -2 and 2.
TRUNCATED = 0.87962566103423978


def gain(name: str, slope: float = 0.01) -> float:
    """The factor that keeps the variance through an activation function, by PyTorch's names.

        linear, sigmoid 1    tanh 5/3    relu sqrt(2)    leaky_relu sqrt(2/(1 + slope^2))
        selu 3/4

    slope   of leaky_relu below 0

    Source: PyTorch's calculate_gain; He et al. 2015, arXiv 1502.01852, eq. 10 and 15.
    """
    if name not in GAINS:
        raise ValueError(f"name: {name!r} is unknown; wanted {' or '.join(map(repr, GAINS))}")
    slope = Interval("(-inf, inf)").check("slope", slope)
    return math.sqrt(2.0 / (1.0 + slope**2)) if name == "leaky_relu" else GAINS[name]


def xavier_uniform(
    array: Array,
    rng: np.random.Generator,
    *,
    gain: float = 1.0,
    fans: Fans | None = None,
    dtype: DTypeLike | None = None,
) -> np.ndarray:
    """Even between -a and a, with a = gain*sqrt(6/(fan_in + fan_out)).

    gain   in (0, inf), default 1: see `gain`

    Source: Glorot and Bengio 2010, AISTATS, eq. 16.
    """
    return _filled(array, rng, gain, fans, "mean", "uniform", dtype)


def xavier_normal(
    array: Array,
    rng: np.random.Generator,
    *,
    gain: float = 1.0,
    fans: Fans | None = None,
    truncated: bool = False,
    dtype: DTypeLike | None = None,
) -> np.ndarray:
    """Normal with standard deviation gain*sqrt(2/(fan_in + fan_out)).

    gain        in (0, inf), default 1: see `gain`
    truncated   Keras' GlorotNormal: none beyond two standard deviations of a normal one that is
                wider, so that the deviation of what is left is the same. Default False

    Source: Glorot and Bengio 2010, AISTATS, eq. 12.
    """
    return _filled(array, rng, gain, fans, "mean", _normal(truncated), dtype)


def he_uniform(
    array: Array,
    rng: np.random.Generator,
    *,
    gain: float = math.sqrt(2.0),
    fans: Fans,
    mode: str = "fan_in",
    dtype: DTypeLike | None = None,
) -> np.ndarray:
    """Even between -a and a, with a = gain*sqrt(3/fan_in).

    gain   in (0, inf), default sqrt(2), for relu: see `gain`
    mode   "fan_in" (default) keeps the variance forwards, "fan_out" backwards

    Source: He et al. 2015, arXiv 1502.01852; PyTorch's kaiming_uniform_.
    """
    return _filled(array, rng, gain, fans, mode, "uniform", dtype)


def he_normal(
    array: Array,
    rng: np.random.Generator,
    *,
    gain: float = math.sqrt(2.0),
    fans: Fans,
    mode: str = "fan_in",
    truncated: bool = False,
    dtype: DTypeLike | None = None,
) -> np.ndarray:
    """Normal with standard deviation gain/sqrt(fan_in).

    gain        in (0, inf), default sqrt(2), for relu: see `gain`
    mode        "fan_in" (default) keeps the variance forwards, "fan_out" backwards
    truncated   Keras' HeNormal: as for xavier_normal. Default False

    Source: He et al. 2015, arXiv 1502.01852, eq. 10; PyTorch's kaiming_normal_.
    """
    return _filled(array, rng, gain, fans, mode, _normal(truncated), dtype)


def lecun_uniform(
    array: Array, rng: np.random.Generator, *, fans: Fans, dtype: DTypeLike | None = None
) -> np.ndarray:
    """Even between -a and a, with a = sqrt(3/fan_in).

    Source: LeCun et al. 1998, Efficient BackProp, section 4.6.
    """
    return _filled(array, rng, 1.0, fans, "fan_in", "uniform", dtype)


def lecun_normal(
    array: Array,
    rng: np.random.Generator,
    *,
    fans: Fans,
    truncated: bool = False,
    dtype: DTypeLike | None = None,
) -> np.ndarray:
    """Normal with standard deviation 1/sqrt(fan_in), for selu.

    truncated   Keras' LecunNormal: as for xavier_normal. Default False

    Source: LeCun et al. 1998, Efficient BackProp, eq. 16.
    """
    return _filled(array, rng, 1.0, fans, "fan_in", _normal(truncated), dtype)


# ---- What they have in common


def _normal(truncated: bool) -> str:
    return "truncated" if truncated else "normal"


def _filled(
    array: Any,
    rng: np.random.Generator,
    gain: float,
    fans: Any,
    mode: str,
    distribution: str,
    dtype: DTypeLike | None,
) -> np.ndarray:
    """The array, or a new one, with random numbers of variance gain^2/fan."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng: {rng!r} is not a numpy.random.Generator")
    made: np.ndarray = array if isinstance(array, np.ndarray) else _new(array, dtype)
    if made is array and dtype is not None:
        raise ValueError("dtype: the array has its own; pass one with a shape alone")
    if not is_floating(made.dtype):
        raise TypeError(f"array: {made.dtype} elements; wanted floating-point ones")
    if not made.flags.writeable:
        raise ValueError("array: read-only, but it is filled in place")
    fan = _fan(made.shape, fans, mode)
    std = Interval("(0, inf)").check("gain", gain) / math.sqrt(fan)
    if distribution == "uniform":
        limit = math.sqrt(3.0) * std
        made[...] = rng.uniform(-limit, limit, made.shape)
    elif distribution == "normal":
        made[...] = rng.normal(0.0, std, made.shape)
    else:
        drawn = rng.standard_normal(made.shape)
        while (beyond := np.abs(drawn) > 2.0).any():
            drawn[beyond] = rng.standard_normal(np.count_nonzero(beyond))
        made[...] = drawn * (std / TRUNCATED)
    return made


def _new(shape: Any, dtype: DTypeLike | None) -> np.ndarray:
    """A new array, with whatever is in its memory."""
    if not isinstance(shape, tuple | list):
        raise TypeError(f"array: {shape!r} is neither an array nor a shape")
    return np.empty(
        [check_int("array", n, 0) for n in shape], np.float64 if dtype is None else dtype
    )


def _fan(shape: tuple[int, ...], fans: Any, mode: str) -> float:
    """The fan that counts; 1 where it is 0, in an array without elements."""
    if isinstance(fans, tuple | list) and len(fans) == 2:
        fan_in, fan_out = (check_int(f"fans[{i}]", n, 1) for i, n in enumerate(fans))
    elif len(shape) < 2:
        raise ValueError(f"fans: {shape} is the shape of no matrix; pass (fan_in, fan_out)")
    elif fans == "torch":
        fan_out, fan_in = (n * math.prod(shape[2:]) for n in shape[:2])
    elif fans == "keras" or (fans is None and mode == "mean" and len(shape) == 2):
        fan_in, fan_out = (n * math.prod(shape[:-2]) for n in shape[-2:])
    else:
        raise ValueError(f"fans: {fans!r}; wanted 'keras', 'torch' or (fan_in, fan_out)")
    chosen = {"fan_in": fan_in, "fan_out": fan_out, "mean": (fan_in + fan_out) / 2}
    if mode not in chosen:
        raise ValueError(f"mode: {mode!r} is unknown; wanted 'fan_in' or 'fan_out'")
    return max(1.0, chosen[mode])
