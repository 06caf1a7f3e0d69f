"""Steps that are refused, by schedules that raise or calls within a step, and change nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import schuss
from engine.unchanged import Unchanged
from schuss.engine.optimizer import Optimizer

F4 = np.float32


@pytest.mark.parametrize("value", [np.nan, -1.0, "a", None])
def test_schedule_that_returns_nonsense(value: Any, opt: Optimizer) -> None:
    opt.param_groups[0]["lr"] = lambda n: value
    good = np.ones(10, F4)
    with Unchanged(opt, (TypeError, ValueError), "lr after 2 steps"):  # type: ignore[arg-type]
        opt.step({"a": good, "w1": good, "z": good})


def test_schedule_that_raises(opt: Optimizer) -> None:
    def broken(n: int) -> float:
        raise LookupError("nothing there")

    opt.param_groups[0]["lr"] = broken
    good = np.ones(10, F4)
    with Unchanged(opt, LookupError, "nothing there"):
        opt.step({"a": good, "w1": good, "z": good})


def test_reentered() -> None:
    opt = schuss.SGD(np.zeros(3))

    def again(n: int) -> float:
        opt.step(np.ones(3))
        return 0.1

    opt.lr = again
    with Unchanged(opt, RuntimeError, "re-entered"):
        opt.step(np.ones(3))
    opt.lr = 0.1
    assert opt.step(np.ones(3))


@pytest.mark.parametrize("method", ["step", "rebind", "add_param_group", "load_state_dict"])
def test_no_call_within_a_step(method: str) -> None:
    opt = schuss.SGD({"w": np.zeros(3)})
    arguments: dict[str, Any] = {
        "step": {"w": np.ones(3)},
        "rebind": {"w": np.zeros(3)},
        "add_param_group": {"params": {"b": np.zeros(3)}},
        "load_state_dict": opt.state_dict(),
    }

    def meddle(n: int) -> float:
        getattr(opt, method)(arguments[method])
        return 0.1

    opt.lr = meddle
    with Unchanged(opt, RuntimeError, "re-entered"):
        opt.step({"w": np.ones(3)})


def test_grad_scale_of_a_step(opt: Optimizer) -> None:
    good = np.ones(10, F4)
    for value in (0.0, -2.0, np.nan):
        with Unchanged(opt, ValueError, "grad_scale: "):
            opt.step({"a": good, "w1": good, "z": good}, grad_scale=value)


def test_zero_grad() -> None:
    opt = schuss.SGD([np.zeros(3), np.zeros(3)])
    with pytest.raises(ValueError, match="grads: none bound"):
        opt.zero_grad()
    first, second = np.ones(3), np.ones(3)
    opt = schuss.SGD([np.zeros(3), np.zeros(3)], grads=[first, second])
    second.flags.writeable = False
    with pytest.raises(ValueError, match=r"grads\[1\]: read-only"):
        opt.zero_grad()
    assert first.all()


def test_types_side_by_side() -> None:
    """What shares scalars goes through a kernel in one call, but for arrays of another type."""
    dtypes = (F4, np.float64, np.float16, F4, np.float64)
    together, apart = ([np.ones(5, dtype) for dtype in dtypes] for _ in range(2))
    schuss.Adam(together).step([np.full(5, 0.3, x.dtype) for x in together])
    for x in apart:
        schuss.Adam(x).step(np.full(5, 0.3, x.dtype))
    assert [x.tobytes() for x in together] == [x.tobytes() for x in apart]


def test_a_rule_of_ones_own_that_adapts_what_its_kernel_has_not() -> None:
    class Own(schuss.LAMB):
        @staticmethod
        def adapt(h: Any, t: int, sums: Any) -> dict[str, float]:
            return {"rating": 1.0}

    opt = Own([np.ones(3)])
    with Unchanged(opt, ValueError, "scalars: 'rating' is unknown"):
        opt.step([np.ones(3)])
