"""Stateless steps, for trainers that keep their own state: one call, one array, everything passed in.

    schuss.functional.adam(param, grad, exp_avg, exp_avg_sq, step=1, lr=1e-3)

param and the state arrays are written, grad is read. `step` is the array's step, 1 first. The other keyword arguments are those of
the class of the rule, with its defaults, and of every optimizer: grad_scale, subnormals, backend.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from schuss import _core, rules
from schuss.hyperparameters import check_int
from schuss.optimizer import BACKENDS, GRAD_SCALE, SUBNORMALS, Group, Optimizer, check_word

Step = Callable[..., None]


def stateless(rule: type[Optimizer]) -> Step:
    """The functional form of a rule."""
    names = max(rule.states.values(), key=len)  # of all state arrays that the rule may have

    def call(
        param: np.ndarray,
        grad: np.ndarray,
        *state: np.ndarray | None,
        step: int,
        grad_scale: float = 1.0,
        subnormals: str = "zero",
        backend: str = "compiled",
        **options: Any,
    ) -> None:
        if len(state) > len(names):
            raise TypeError(
                f"{rule.__name__.lower()}: {len(state)} state arrays given; it has {', '.join(names)}"
            )
        arrays = dict(zip(names, state)) | {
            name: options.pop(name) for name in names if name in options
        }  # noqa: B905
        group = Group(rule, options)
        wanted = {name: arrays.get(name) for name in group.states}
        for name in names:
            if (arrays.get(name) is None) != (name not in wanted):
                raise TypeError(
                    f"{name}: {'missing' if name in wanted else 'not used'} with these options; they take {group.states}"
                )
        step = check_int("step", step, 1)
        scalars = rule.scalar_set(
            group.kernel,
            group.at(step - 1),
            step,
            grad_scale=GRAD_SCALE.check("grad_scale", grad_scale),
            subnormals=check_word("subnormals", subnormals, SUBNORMALS),
        )
        plan = _core.Plan()
        plan.add(["param", "grad", *wanted], param, list(wanted.values()), None, 0)
        plan.check([grad])
        if check_word("backend", backend, BACKENDS) == "compiled":
            plan.run([scalars.packed()])
        else:
            scalars.step(param, grad, list(wanted.values()))

    call.__name__ = call.__qualname__ = rule.__name__.lower()
    call.__doc__ = f"""One stateless step of {rule.__name__}, in place.

    param     written, of any shape, float32 or float64
    grad      read, of the shape and type of param
{"".join(f"    {name:<9} state, written; None where the options need none" + chr(10) for name in names)}    step      the array's step, 1 first

    {inspect.cleandoc(rule.__doc__ or "")}
    """
    call.__signature__ = signature(rule, names)  # type: ignore[attr-defined]
    return call


def signature(rule: type[Optimizer], names: tuple[str, ...]) -> inspect.Signature:
    """What `help` shows: the arrays by name, and every option with its default."""
    kinds = inspect.Parameter
    needed = min(map(len, rule.states.values()))
    return inspect.Signature(
        [
            kinds("param", kinds.POSITIONAL_ONLY),
            kinds("grad", kinds.POSITIONAL_ONLY),
            *(
                kinds(s, kinds.POSITIONAL_OR_KEYWORD, default=kinds.empty if i < needed else None)
                for i, s in enumerate(names)
            ),
            kinds("step", kinds.KEYWORD_ONLY),
            *(
                kinds(name, kinds.KEYWORD_ONLY, default=h.default)
                for name, h in rule.hyperparameters.items()
            ),
            *(
                kinds(name, kinds.KEYWORD_ONLY, default=default)
                for name, default in OPTIONS.items()
            ),
        ]
    )


OPTIONS = {"grad_scale": 1.0, "subnormals": "zero", "backend": "compiled"}

sgd = stateless(rules.SGD)
adagrad = stateless(rules.Adagrad)
rmsprop = stateless(rules.RMSprop)
adam = stateless(rules.Adam)
adamw = stateless(rules.AdamW)
