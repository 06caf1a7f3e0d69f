"""Where a rule takes its gradients, and what it has come to, in descents on functions."""

from __future__ import annotations

from typing import Any

import numpy as np


def asked(opt: Any, x: np.ndarray) -> np.ndarray:
    """Where the gradient of the coming step belongs: at the parameters x, or ahead of them."""
    ahead = opt.param_groups[0].get("nesterov") == "lookahead"
    point: np.ndarray = opt.lookahead() if ahead else x
    return point


def reached(opt: Any, x: np.ndarray) -> np.ndarray:
    """What the steps have come to, as a copy: the parameters x, or the average of their points."""
    if hasattr(opt, "eval"):
        opt.eval()
        average = x.copy()
        opt.train()
        return average
    if "ax" in opt.state[0] and opt.iterations:
        return np.array(opt.state[0]["ax"])
    return x.copy()
