"""State dictionaries that don't fit, and copies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss
from engine.unchanged import Unchanged
from schuss.engine.optimizer import Optimizer

F4 = np.float32


def test_load_state_dict_lists_every_difference(opt: Optimizer) -> None:
    saved = opt.state_dict()
    saved["state"]["a"]["exp_avg"] = np.zeros(9, F4)
    saved["state"]["w1"]["exp_avg_sq"] = np.zeros(10)
    del saved["state"]["z"]
    saved["state"]["other"] = {}
    with Unchanged(
        opt,
        ValueError,
        "missing 'z'",
        "unknown 'other'",
        "'a' exp_avg: float32 of shape (9,)",
        "'w1' exp_avg_sq: float64",
    ):
        opt.load_state_dict(saved)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda s: s["param_groups"][0].update(lr=-1.0), "lr: -1.0"),
        (lambda s: s["param_groups"][0].update(foo=1.0), "foo: unknown"),
        (
            lambda s: s["param_groups"][0].update(params=["a"]),
            "param_groups: other parameters: ['a']; wanted ['a', 'w1', 'z']",
        ),
        (
            lambda s: s["param_groups"].pop(),
            "param_groups: other parameters: none; wanted ['a', 'w1', 'z']",
        ),
        (lambda s: s.update(iterations=-1), "iterations: -1"),
        (lambda s: s["state"]["a"].update(step=1.5), "'a' step: 1.5 is not a whole number"),
        (lambda s: s["state"]["a"].pop("exp_avg"), "missing 'a' exp_avg"),
        (lambda s: s["state"]["a"].update(sum=np.zeros(10, F4)), "unknown 'a' sum"),
        (lambda s: s["state"]["a"].update(step=2**70), "'a' step: "),
        (lambda s: s["state"]["a"].update(exp_avg=1.0), "'a' exp_avg: float"),
        (lambda s: s["state"].update(a=[1.0]), "'a': list, wanted a mapping"),
        (lambda s: s.pop("iterations"), "iterations: None"),
        (lambda s: s.pop("state"), "state_dict: wanted a mapping"),
    ],
)
def test_load_state_dict(spoil: Callable[[Any], None], says: str, opt: Optimizer) -> None:
    saved = opt.state_dict()
    spoil(saved)
    with Unchanged(opt, (TypeError, ValueError), says):  # type: ignore[arg-type]
        opt.load_state_dict(saved)


def test_load_state_dict_needs_arrays_whatever_the_type() -> None:
    """A missing dtype compares equal to float64's."""
    opt = schuss.Adam({"w": np.zeros(2)})
    saved = opt.state_dict()
    saved["state"]["w"]["exp_avg"] = [0.0, 0.0]
    with Unchanged(opt, ValueError, "'w' exp_avg: list"):
        opt.load_state_dict(saved)


def test_load_state_dict_into_read_only_state(opt: Optimizer) -> None:
    saved = opt.state_dict()
    saved["param_groups"][0]["lr"] = 9.0
    opt.state["z"]["exp_avg_sq"].flags.writeable = False
    with Unchanged(opt, ValueError, 'state["z"]["exp_avg_sq"]: read-only'):
        opt.load_state_dict(saved)


def test_copy() -> None:
    with pytest.raises(TypeError, match=r"use copy\.deepcopy"):
        copy.copy(schuss.SGD(np.zeros(3)))


def test_what_is_no_state_dictionary(opt: Optimizer) -> None:
    nothing: list[Any] = [None, [], "state", {}]
    for value in nothing:
        with Unchanged(opt, TypeError, "state_dict: wanted a mapping with"):
            opt.load_state_dict(value)


def test_parameters_in_other_groups() -> None:
    one = schuss.SGD([np.zeros(1) for _ in range(9)])
    two = schuss.SGD([{"params": [np.zeros(1) for _ in range(n)]} for n in (6, 3)])
    more = "['0', '1', '2', '3', '4', ... and 1 more] and ['6', '7', '8']"
    with Unchanged(one, ValueError, f"other parameters: {more}; wanted ['0', '1'"):
        one.load_state_dict(two.state_dict())
