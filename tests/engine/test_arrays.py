"""Arrays that are fine, and registered ones that change between steps."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest

import schuss
from engine.unchanged import Unchanged
from schuss.engine.optimizer import Optimizer

F4 = np.float32


def test_adjacent_slices_are_fine() -> None:
    a = np.zeros(10, F4)
    opt = schuss.SGD([a[:4], a[4:4], a[4:]], lr=1.0)
    opt.step([np.ones(4, F4), np.ones(0, F4), np.ones(6, F4)])
    assert (a == -1).all()


def read_only() -> np.ndarray:
    a = np.zeros(10, F4)
    a.flags.writeable = False
    return a


def test_read_only_gradient_is_fine() -> None:
    opt = schuss.SGD(np.zeros(10, F4), lr=1.0)
    assert opt.step(np.broadcast_to(F4(1), (1,)).repeat(10))
    assert opt.step(read_only())


def test_gradients_may_overlap_one_another() -> None:
    g = np.ones(10, F4)
    assert schuss.SGD([np.zeros(10, F4), np.zeros(10, F4), np.zeros(4, F4)]).step([g, g, g[2:6]])


def resized(a: np.ndarray) -> None:
    a.resize(7, refcheck=False)


def reshaped(a: np.ndarray) -> None:
    a.shape = (2, 5)


def frozen(a: np.ndarray) -> None:
    a.flags.writeable = False


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
@pytest.mark.parametrize("which", ["params", "exp_avg"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (resized, "shape (7,) is no longer the registered (10,)"),
        (reshaped, "shape (2, 5) is no longer the registered (10,)"),
        (frozen, "read-only"),
    ],
)
def test_changed_between_steps(
    change: Callable[[np.ndarray], None], says: str, which: str, opt: Optimizer
) -> None:
    array = opt.param_groups[0]["params"][1] if which == "params" else opt.state["w1"][which]
    change(array)
    good = np.ones(10, F4)
    with Unchanged(opt, ValueError, '"w1"]', says):
        opt.step({"a": good, "w1": good, "z": good})
    assert opt.step({"a": good, "w1": None, "z": good})


def test_resized_there_and_back_is_noticed() -> None:
    """The memory has moved, the contract holds: the step follows the array."""
    x = np.zeros(10, F4)
    opt = schuss.SGD(x, lr=1.0)
    opt.step(np.ones(10, F4))
    x.resize(1 << 20, refcheck=False)
    x.resize(10, refcheck=False)
    opt.step(np.ones(10, F4))
    assert (x == -2).all()


@pytest.mark.parametrize("which", ["params", "exp_avg"])
def test_memory_that_moved_is_checked_for_overlaps(which: str, opt: Optimizer) -> None:
    moved = opt.param_groups[0]["params"][1] if which == "params" else opt.state["w1"][which]
    good = np.ones(10, F4)
    moved.resize(1 << 20, refcheck=False)
    moved.resize(10, refcheck=False)
    with Unchanged(opt, ValueError, 'grads["z"]: overlaps', '"w1"]'):
        opt.step({"a": good, "w1": good, "z": moved[:]})
    assert opt.step({"a": good, "w1": good, "z": good})


class Lying(np.ndarray):
    """An array whose class says that it fits, and meddles where it is asked."""

    target: np.ndarray
    asked = 0
    lies: ClassVar[dict[str, Any]] = {
        "dtype": np.dtype(ml_dtypes.bfloat16),
        "shape": (10,),
        "strides": (2,),
    }

    def __getattribute__(self, name: str) -> Any:
        if name not in Lying.lies:
            return super().__getattribute__(name)
        Lying.asked += 1
        Lying.target.resize(1 << 16, refcheck=False)
        return Lying.lies[name]


LIES: dict[str, tuple[np.ndarray, str]] = {
    "float8": (np.ones(10, ml_dtypes.float8_e4m3fn), "dtype float8_e4m3fn is not supported"),
    "float64": (np.ones(10), "float64, but params[1] is float32"),
    "strides": (np.ones(20, F4)[::2], "not contiguous (strides (8,), shape (10,))"),
    "shape": (np.ones(9, F4), "shape (9,), but params[1] has shape (10,)"),
    "byte order": (np.ones(10, ">f4"), "not in native byte order (dtype >f4)"),
}


@pytest.mark.parametrize("case", LIES)
def test_what_an_array_is_counts_and_not_what_its_class_says(case: str) -> None:
    g, says = LIES[case]
    x, y = np.zeros(10, F4), np.zeros(10, F4)
    opt = schuss.SGD([x, y], lr=1.0)
    good = np.ones(10, F4)
    assert opt.step([good, good])
    Lying.target, Lying.asked = x, 0
    with pytest.raises((TypeError, ValueError), match=re.escape(f"grads[1]: {says}")):
        opt.step([good, g.view(Lying)])
    assert Lying.asked == 0
    assert opt.step([good, good])
    assert (x == -2).all()
    assert (y == -2).all()


@pytest.mark.parametrize("first", [1, 3, 5, 7])
def test_what_touches_a_parameter_with_either_end(first: int) -> None:
    memory = np.ones(12)
    opt = schuss.SGD([memory[4:8]])
    assert opt.step([np.ones(4)])
    touching = memory[first : first + 4]
    with Unchanged(opt, ValueError, "overlaps"):
        opt.step([touching])
    with Unchanged(opt, ValueError, "overlaps"):
        opt.add_param_group({"params": [touching]})
