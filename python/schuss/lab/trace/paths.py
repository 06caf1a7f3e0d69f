"""The path of a rule on a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import schuss
from schuss.engine.points import asked, reached

Array = np.ndarray


def walk(
    rule: type[schuss.Optimizer],
    value: Callable[[Any], Any],
    gradient: Callable[[Any], Array],
    start: Sequence[float],
    steps: int,
    **options: Any,
) -> Array:
    """The start and what has been reached after each step, one a row, until one is not finite."""
    w = np.array(start, float)
    opt: Any = rule(w, **options)
    points = [w.copy()]
    with np.errstate(all="ignore"):
        for _ in range(steps):
            at = asked(opt, w)
            loss, g = float(value(at)), gradient(at)
            if not (np.isfinite(loss) and np.isfinite(g).all()):
                break
            opt.step(g, loss=loss)
            if not np.isfinite(w).all():
                break
            points.append(reached(opt, w))
    return np.array(points)
