"""The loss, for rules that read it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import schuss
from engine.unchanged import Unchanged
from schuss.engine.declare import Backend
from schuss.engine.optimizer import Optimizer

F4 = np.float32


def reading_the_loss(backend: Backend = "compiled", **options: Any) -> Optimizer:
    """An optimizer whose rule reads the loss, with two steps behind it."""
    opt = schuss.Rprop({"w": np.ones(3)}, variant="irprop+", backend=backend, **options)
    for loss in (3.0, 2.0):
        opt.step({"w": np.ones(3)}, loss=loss)
    return opt


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
@pytest.mark.parametrize(
    ("loss", "error", "says"),
    [
        (None, ValueError, "this rule reads it; pass it with the gradients: loss=f"),
        (np.nan, ValueError, "nan is out of range, wanted (-inf, inf)"),
        (np.inf, ValueError, "inf is out of range"),
        (F4(-np.inf), ValueError, "-inf is out of range"),
        ("2.0", TypeError, "'2.0' is not a number"),
        (True, TypeError, "True is not a number"),
        (1j, TypeError, "1j is not a number"),
        (np.ones(1), TypeError, "array([1.]) is not a number"),
    ],
)
def test_loss(loss: Any, error: type[Exception], says: str, backend: Backend) -> None:
    opt = reading_the_loss(backend)
    with Unchanged(opt, error, "loss: ", says):
        opt.step({"w": np.ones(3)}, loss=loss)
    right: list[Any] = [1, F4(1), np.array(1.0)]
    assert all(opt.step({"w": np.ones(3)}, loss=value) for value in right)


def test_a_step_that_was_refused_or_skipped_has_read_no_loss() -> None:
    bad = np.array([1.0, np.nan, 1.0])
    for nonfinite, error in (("propagate", ValueError), ("raise", FloatingPointError)):
        opt = reading_the_loss(nonfinite=nonfinite)
        grads = {"w": np.ones(4) if nonfinite == "propagate" else bad}
        with pytest.raises(error):
            opt.step(grads, loss=7.0)
        assert opt.state_dict()["shared"] == {"previous_loss": 2.0}
    opt = reading_the_loss(nonfinite="skip")
    assert not opt.step({"w": bad}, loss=7.0)
    assert opt.state_dict()["shared"] == {"previous_loss": 2.0}
