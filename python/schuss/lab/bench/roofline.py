"""How fast memory can be stepped through here: kernels that do next to nothing but move it."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

import schuss
from schuss.lab.bench.clock import Timed
from schuss.lab.bench.workloads import staggered

LEAST = 2**16  # bytes: with fewer it's calls that are measured
MOST = 2**29  # bytes: far beyond any cache, more make no difference


class Traffic(NamedTuple):
    """A kernel, and the bytes that it moves."""

    name: str
    timed: Timed
    bytes: int


def place_state(opt: schuss.Optimizer) -> list[np.ndarray]:
    """Lays an optimizer's state out like everyone's, and returns what is saved of it."""
    held = opt._parameters
    kept = [arrays for p in held for arrays in (p.state, p.beside)]
    for place, name in enumerate(dict.fromkeys(name for arrays in kept for name in arrays), 2):
        owners = [arrays for arrays in kept if name in arrays]
        old = [arrays[name] for arrays in owners]
        new = staggered([a.shape for a in old], old[0].dtype, place)
        for arrays, before, after in zip(owners, old, new, strict=True):
            after[...] = before
            arrays[name] = after
    opt._register_anew()
    return [a for p in held for a in p.saved.values()]


def kernels(held: int) -> list[Traffic]:
    """Kernels with so many bytes of arrays: NumPy's sum, and steps with next to no arithmetic."""
    held = min(held, MOST)

    def arrays(number: int) -> tuple[np.ndarray, np.ndarray]:
        shape = (held // (4 * number),)
        (x,), (g,) = staggered([shape], np.float32, 0), staggered([shape], np.float32, 1)
        x.fill(1)
        g.fill(1e-3)
        return x, g

    x, g = arrays(2)
    found = [Traffic("numpy.add", Timed(partial(np.add, x, g, x)), 3 * x.nbytes)]
    for number, rule, options in (
        (2, schuss.SGD, {}),
        (3, schuss.Momentum, {}),
        (4, schuss.Momentum, {"ema": 0.999}),
    ):
        x, g = arrays(number)
        make: Any = rule
        opt = make([x], grads=[g], lr=1e-6, **options)
        place_state(opt)
        opt.step()
        name = f"{rule.__name__}{''.join(f' {key}' for key in options)}"
        found.append(Traffic(name, Timed(opt.step), (2 * number - 1) * x.nbytes))
    return found
