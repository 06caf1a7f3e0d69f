"""What a run ends on, and that it is the same for all kernels as for the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from exact.combinations import ISAS, same_bits
from schuss import _core, threads
from schuss.engine.declare import Backend
from schuss.engine.optimizer import Optimizer

Ends = dict[str, np.ndarray]

TEAMS = [*((isa, 1) for isa in ISAS), (ISAS[-1], 3)]  # with shares at either end and between


def ends(opt: Optimizer, **others: Any) -> Ends:
    """Copies of all that a step moves: parameters, state, counters and the norm; and of others."""
    found = {
        f"params {name}": x.copy()
        for group in opt.param_groups
        for name, x in zip(group["param_names"], group["params"], strict=True)
    }
    saved = opt.state_dict()
    for name, state in saved["state"].items():
        found |= {f"{key} of {name}": np.array(a) for key, a in state.items()}
    norm = np.nan if opt.grad_norm is None else opt.grad_norm
    numbers = {"norm": norm, "iterations": opt.iterations, **saved["shared"], **others}
    return found | {name: np.array(a) for name, a in numbers.items()}


def require_same(one: Ends, other: Ends, why: str = "") -> None:
    """Fails where two runs differ in a bit."""
    assert one.keys() == other.keys(), why
    for name, a in one.items():
        assert same_bits(a, other[name]), f"{name}, {a.shape}: {why}"


def everywhere(scene: Callable[[Backend], Ends], why: str = "") -> Ends:
    """What a scene ends on in NumPy: its compiled run ends there on every instruction set, and
    with any number of threads.
    """
    want = scene("numpy")
    for isa, n in TEAMS:
        _core.use_isa(isa)
        with threads(n):
            require_same(scene("compiled"), want, f"{isa}, {n} threads: {why}")
    return want
