"""The path of a rule on a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import schuss

Array = np.ndarray


def walk(
    rule: type[schuss.Optimizer],
    value: Callable[[Any], Any],
    gradient: Callable[[Any], Array],
    start: Sequence[float],
    steps: int,
    **options: Any,
) -> Array:
    """The start and the point after each step, one a row, until one is not finite."""
    w = np.array(start, float)
    opt: Any = rule(w, **options)
    ahead = opt.param_groups[0].get("nesterov") == "lookahead"
    points = [w.copy()]
    with np.errstate(all="ignore"):
        for _ in range(steps):
            at = opt.lookahead() if ahead else w
            loss, g = float(value(at)), gradient(at)
            if not (np.isfinite(loss) and np.isfinite(g).all()):
                break
            opt.step(g, loss=loss)
            if not np.isfinite(w).all():
                break
            points.append(w.copy())
    return np.array(points)
