"""Stateless steps, for trainers that keep their own state: one call, one array, everything given.

    schuss.functional.adam(param, grad, exp_avg, exp_avg_sq, step=1, lr=1e-3)

param and the state arrays are written, grad is read. `step` is the array's step, 1 first. The other
keyword arguments are those of the rule's class, with its defaults, and grad_scale, subnormals and
backend, as every optimizer has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from schuss import _core, rules
from schuss.groups import Group, Parameter
from schuss.hyperparameters import check_int
from schuss.optimizer import NEEDED, Optimizer, signature
from schuss.scalars import scalar_set

# The options of an optimizer that a single call has, too.
STATELESS = ("grad_scale", "zero_grad", "stochastic_rounding", "seed", "subnormals", "backend")


def stateless(rule: type[Optimizer]) -> Callable[..., None]:
    """The functional form of a rule."""
    name = rule.__name__.lower()
    every_state = max(rule.states.values(), key=len)

    def step_once(
        param: np.ndarray,
        grad: np.ndarray,
        *state: np.ndarray | None,
        step: int,
        master: np.ndarray | None = None,
        **options: Any,
    ) -> None:
        if len(state) > len(every_state):
            raise TypeError(f"{name}: {len(state)} state arrays given; it has {every_state}")
        arrays = dict(zip(every_state, state, strict=False))
        for key in every_state:
            if key in options and key in arrays:
                raise TypeError(f"{name}: {key} is given twice")
            arrays[key] = options.pop(key, arrays.get(key))
        arrays = {key: array for key, array in arrays.items() if array is not None}
        around = {key: o.check(options.pop(key, o.default)) for key, o in live.items()}
        for key in [key for key in options if key in fixed]:
            raise TypeError(f"{name}: {key} is for the class; give the state its start yourself")
        settings = Group(rule, options).settings
        if arrays.keys() != set(settings.states):
            given = tuple(arrays)
            raise TypeError(f"{name}: state {given} given; these options take {settings.states}")
        check_int("step", step, 1)
        scalars = scalar_set(
            settings,
            settings.at(step - 1),
            step,
            True,
            1.0 / float(around["grad_scale"]),  # a LossScale, too
            {f"_{key}": value for key, value in (defaults | around).items()},
        )
        own: dict[str, Any] = {key: arrays[key] for key in settings.states}
        beside = {} if master is None else {"master": master}
        p = Parameter(name, param, grad, own, beside, group=0, decays=True, position=0)
        labels = ["param", "grad", *own, *p.beside]
        plan = _core.Plan()
        plan.add(labels, param, p.keeps(), grad, 0, True)
        plan.begin(None, around["zero_grad"])
        if around["backend"] == "compiled":
            plan.run([scalars.packed()])
        else:
            plan.check()
            scalars.step(p, grad)

    fixed = [key for key, h in rule.hyperparameters.items() if h.fixed]
    needed = min(map(len, rule.states.values()))
    arguments: dict[str, Any] = {"param": NEEDED, "grad": NEEDED}
    arguments |= {s: NEEDED if i < needed else None for i, s in enumerate(every_state)}
    live = {key: rule.options[key] for key in STATELESS}
    defaults = {key: o.default for key, o in rule.options.items()}
    shown = {key: h.default for key, h in rule.hyperparameters.items() if key not in fixed}
    shown |= {key: o.default for key, o in live.items()}
    step_once.__name__ = step_once.__qualname__ = name
    step_once.__doc__ = rule.__doc__
    step_once.__signature__ = signature(  # type: ignore[attr-defined]
        arguments, {"step": NEEDED, "master": None, **shown}
    )
    return step_once


def __getattr__(name: str) -> Callable[..., None]:
    """Only reached for what is no rule; tells type checkers what the rules' calls are."""
    raise AttributeError(f"schuss.functional has no rule {name!r}; it has {', '.join(__all__)}")


CALLS = {rule.__name__.lower(): stateless(rule) for rule in rules.RULES}
globals().update(CALLS)
__all__ = list(CALLS)
