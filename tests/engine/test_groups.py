"""Groups: what is set, added or bound anew is taken as a whole or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import schuss
from engine.unchanged import Unchanged
from schuss.engine.optimizer import Optimizer

F4 = np.float32


def read_only() -> np.ndarray:
    a = np.zeros(10, F4)
    a.flags.writeable = False
    return a


def test_all_groups_or_none() -> None:
    groups = [{"params": [np.zeros(1)]}, {"params": [np.zeros(1)], "momentum": 0.9}]
    opt = schuss.SGD(groups)
    with Unchanged(opt, ValueError, "nesterov"):
        opt.nesterov = True


def test_update_of_a_group_is_all_or_none() -> None:
    opt = schuss.SGD(np.zeros(3), momentum=0.9, dampening=0.5)
    with Unchanged(opt, ValueError, "weight_decay"):
        opt.param_groups[0].update(lr=7.0, weight_decay=-1.0)
    opt.param_groups[0].update(nesterov=True, dampening=0.0)
    assert opt.nesterov


def test_group_keeps_its_options() -> None:
    opt = schuss.SGD(np.zeros(3))
    with Unchanged(opt, TypeError, "lr"):
        del opt.param_groups[0]["lr"]
    with Unchanged(opt, ValueError, "params: fixed"):
        opt.param_groups[0]["params"] = []
    with Unchanged(opt, TypeError, "lrr: unknown"):
        opt.param_groups[0]["lrr"] = 1.0


@pytest.mark.parametrize(
    ("group", "error", "says"),
    [
        ({"lr": 0.1}, TypeError, "group: pass a mapping"),
        ([np.zeros(3, F4)], TypeError, "group: pass a mapping"),
        ({"params": {"w1": np.zeros(3, F4)}}, ValueError, 'params["w1"]: two groups'),
        ({"params": {"n": np.zeros(3, int)}}, TypeError, 'params["n"]: dtype int64'),
        ({"params": {"n": np.zeros(3, F4)}, "lr": -1.0}, ValueError, "lr: -1.0"),
        ({"params": {"n": np.zeros(3, F4)}, "foo": 1.0}, TypeError, "foo: unknown"),
    ],
)
def test_add_param_group(group: Any, error: type[Exception], says: str, opt: Optimizer) -> None:
    with Unchanged(opt, error, says):
        opt.add_param_group(group)
    good = np.ones(10, F4)
    assert opt.step({"a": good, "w1": good, "z": good})


def test_add_param_group_that_overlaps(opt: Optimizer) -> None:
    with Unchanged(opt, ValueError, 'params["new"]: overlaps params["a"]'):
        opt.add_param_group({"params": {"new": opt.param_groups[0]["params"][0]}})


def test_bound_gradients_of_a_new_group() -> None:
    opt = schuss.SGD([np.zeros(3)], grads=[np.ones(3)], lr=1.0)
    with Unchanged(opt, ValueError, 'pass its "grads"'):
        opt.add_param_group({"params": [np.zeros(3)]})
    opt.add_param_group({"params": [np.zeros(3)], "grads": [np.ones(3)], "lr": 2.0})
    opt.step()
    assert [x[0] for g in opt.param_groups for x in g["params"]] == [-1, -2]


@pytest.mark.parametrize(
    ("w1", "says"),
    [
        (np.zeros(11, F4), "float32 of shape (11,) in C order where float32 of shape (10,)"),
        (np.zeros(10), "float64 of shape (10,)"),
        (np.zeros(20, F4)[::2], "in no contiguous order"),
        (1.0, "float where float32"),
        (read_only(), "read-only"),
    ],
)
def test_rebind(w1: Any, says: str, opt: Optimizer) -> None:
    with Unchanged(opt, ValueError, 'params["w1"]: ', says):
        opt.rebind({"a": np.zeros(10, F4), "w1": w1, "z": np.zeros(10, F4)})
    with Unchanged(opt, ValueError, "params: missing 'z'"):
        opt.rebind({"a": np.zeros(10, F4), "w1": np.zeros(10, F4)})


def test_groups_share_numbers_but_neither_arrays_nor_schedules() -> None:
    """Equal groups share their settings; what goes ways of its own stays each one's."""
    low, high = np.zeros(2), np.ones(2)
    x, y = np.full(2, 0.5), np.full(2, 0.5)
    opt = schuss.SGD(
        [{"params": [x], "bounds": (low, high)}, {"params": [y], "bounds": (0.0, 0.75)}], lr=1.0
    )
    opt.step([[np.full(2, -9.0)], [np.full(2, -9.0)]])
    assert (x == 1.0).all()
    assert (y == 0.75).all()
    rates = [schuss.schedules.ReduceOnPlateau(0.1) for _ in range(2)]
    opt = schuss.SGD([{"params": [a], "lr": r} for a, r in zip((x, y), rates, strict=True)])
    assert [g["lr"] for g in opt.param_groups] == rates
    assert opt.param_groups[1]["lr"] is rates[1]
