"""Stateless steps, for trainers that keep their own state: one call, one array, everything given.

    schuss.functional.adam(param, grad, exp_avg, exp_avg_sq, step=1, lr=1e-3)

param and the state arrays are written, grad is read. `step` is the array's step, 1 first. The other
keyword arguments are those of the rule's class, with its defaults, and grad_scale, subnormals and
backend, as every optimizer has them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from schuss import _core, rules
from schuss.groups import Group
from schuss.hyperparameters import check_int
from schuss.optimizer import Optimizer


def stateless(rule: type[Optimizer]) -> Callable[..., None]:
    """The functional form of a rule."""
    name = rule.__name__.lower()
    every_state = max(rule.states.values(), key=len)

    def step_once(
        param: np.ndarray,
        grad: np.ndarray,
        /,
        *state: np.ndarray | None,
        step: int,
        **options: Any,
    ) -> None:
        if len(state) > len(every_state):
            raise TypeError(f"{name}: {len(state)} state arrays given; it has {every_state}")
        given = dict(zip(every_state, state, strict=False))
        given |= {key: options.pop(key) for key in every_state if key in options}
        around = {key: o.check(options.pop(key, o.default)) for key, o in rule.options.items()}
        group = Group(rule, options)
        arrays = {key: array for key, array in given.items() if array is not None}
        if arrays.keys() != set(group.states):
            raise TypeError(
                f"{name}: state {tuple(arrays)} given; these options take {group.states}"
            )
        check_int("step", step, 1)
        scalars = rule.scalar_set(
            group.kernel,
            group.at(step - 1),
            step,
            True,
            around["grad_scale"],
            around["subnormals"],
        )
        ordered = [arrays[key] for key in group.states]
        plan = _core.Plan()
        plan.add(["param", "grad", *group.states], param, ordered, None, 0)
        plan.check([grad])
        if around["backend"] == "compiled":
            plan.run([scalars.packed()])
        else:
            scalars.step(param, grad, ordered)

    step_once.__name__ = step_once.__qualname__ = name
    step_once.__doc__ = rule.__doc__
    step_once.__signature__ = signature(rule, every_state)  # type: ignore[attr-defined]
    return step_once


def signature(rule: type[Optimizer], every_state: tuple[str, ...]) -> inspect.Signature:
    """What `help` shows: the arrays by name, and every option with its default."""
    parameter, empty = inspect.Parameter, inspect.Parameter.empty
    needed = min(map(len, rule.states.values()))
    defaults = {key: h.default for key, h in (rule.hyperparameters | rule.options).items()}
    return inspect.Signature(
        [
            parameter("param", parameter.POSITIONAL_ONLY),
            parameter("grad", parameter.POSITIONAL_ONLY),
            *(
                parameter(
                    key, parameter.POSITIONAL_OR_KEYWORD, default=empty if i < needed else None
                )
                for i, key in enumerate(every_state)
            ),
            parameter("step", parameter.KEYWORD_ONLY),
            *(parameter(key, parameter.KEYWORD_ONLY, default=v) for key, v in defaults.items()),
        ]
    )


def __getattr__(name: str) -> Callable[..., None]:
    """Only reached for what is no rule; tells type checkers what the rules' calls are."""
    raise AttributeError(f"schuss.functional has no rule {name!r}; it has {', '.join(__all__)}")


CALLS = {rule.__name__.lower(): stateless(rule) for rule in rules.RULES}
globals().update(CALLS)
__all__ = list(CALLS)
