"""Values that change from step to step: callables of the number of finished steps, n.

    opt = schuss.SGD(params, lr=warmup(cosine(0.1, steps=9500), steps=500), momentum=0.9)

They serve for `lr` or any other number of an optimizer, as any callable does. These can be printed,
pickled, compared, put together and drawn, and know their `peak`, which some decay modes ask for.

An argument of the wrong type or out of its range raises a TypeError or ValueError with its name.

A value changes at n = boundary, the step after so many finished ones, as in PyTorch and optax (in
Keras one step later), and a schedule over `steps` steps has its final value at n = steps.
"""

from schuss.schedules.courses import Schedule as Schedule
from schuss.schedules.courses import (
    chain,
    cosine,
    cosine_restarts,
    draw,
    ema_warmup,
    exponential,
    inverse_sqrt,
    inverse_time,
    linear,
    momentum_ramp,
    one_cycle,
    piecewise,
    polynomial,
    steady,
    step,
    warmup,
)
from schuss.schedules.plateau import ReduceOnPlateau

__all__ = [
    "ReduceOnPlateau",
    "chain",
    "cosine",
    "cosine_restarts",
    "draw",
    "ema_warmup",
    "exponential",
    "inverse_sqrt",
    "inverse_time",
    "linear",
    "momentum_ramp",
    "one_cycle",
    "piecewise",
    "polynomial",
    "steady",
    "step",
    "warmup",
]
