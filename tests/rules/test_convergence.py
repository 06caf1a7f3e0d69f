"""Every rule finds its way down, and none of them does with the sign of its step turned round.

Each on the three tasks of tasks.py, with its learning rate there: a classifier of handwritten
digits, Rosenbrock's curved valley, and a long parabola.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from schuss.engine.optimizer import Optimizer
from schuss.lab.options import NAMED
from schuss.lab.tasks import LINEAR, RATES, run_task


def digits(rule: type[Optimizer], **options: Any) -> bool:
    """Whether five epochs know 9 of 10 digits that were held out."""
    return (
        run_task("digits", rule, RATES[rule.__name__].digits, 0, 225, **options).accuracy[-1] > 0.9
    )


def rosenbrock(rule: type[Optimizer], **options: Any) -> bool:
    """Whether 2000 steps find most of the way along the floor, which begins at 1."""
    return (
        run_task("rosenbrock", rule, RATES[rule.__name__].rosenbrock, 0, 2000, **options).loss[-1]
        < 0.2
    )


def regression(rule: type[Optimizer], **options: Any) -> bool:
    """Whether 1000 steps come to within a hundredth of the variance of the closed form."""
    return (
        run_task("regression", rule, RATES[rule.__name__].regression, 0, 1000, **options).loss[-1]
        < 0.01
    )


@pytest.mark.parametrize("rule", NAMED.values())
@pytest.mark.parametrize("landscape", [digits, rosenbrock, regression])
def test_downhill(landscape: Callable[..., bool], rule: type[Optimizer]) -> None:
    forgets = landscape is digits and rule.__name__ in LINEAR
    assert landscape(rule) or forgets


@pytest.mark.parametrize("rule", NAMED.values())
@pytest.mark.parametrize("landscape", [rosenbrock, regression])
def test_not_uphill(landscape: Callable[..., bool], rule: type[Optimizer]) -> None:
    """The sign of a step is that of all tasks; the short ones tell it."""
    assert not landscape(rule, maximize=True)
