"""Arrays that are fine, and registered ones that change between steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


class Meddling(np.ndarray):
    """A gradient that resizes a parameter when it is looked at."""

    target: np.ndarray

    def __getattribute__(self, name: str) -> Any:
        if name == "dtype":
            super().__getattribute__("target").resize(1 << 16, refcheck=False)
        return super().__getattribute__(name)


def test_python_that_runs_within_the_check_meddles_in_vain() -> None:
    x, y = np.zeros(10, F4), np.zeros(10, F4)
    opt = schuss.SGD([x, y], lr=1.0)
    g = np.ones(10).view(Meddling)
    g.target = x
    with pytest.raises(TypeError, match="float64"):
        opt.step([np.ones(10, F4), g])
    with Unchanged(opt, ValueError, "params[0]: shape (65536,) is no longer"):
        opt.step([np.ones(10, F4), np.ones(10, F4)])
