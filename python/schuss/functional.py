"""Stateless steps, for trainers that keep their own state: one call, one array, everything given.

    schuss.functional.adam(param, grad, exp_avg, exp_avg_sq, step=1, lr=1e-3)

param and the state arrays are written, grad is read. `step` is the array's step, 1 first. The other
keyword arguments are those of the rule's class, with its defaults, and grad_scale, subnormals and
backend, as every optimizer has them. Numbers that a rule remembers, such as NAdam's mu_product, are
float64 arrays of no dimension, and written, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from schuss import _core, rules
from schuss.checks import Interval, check_int
from schuss.engine.declare import REQUIRED
from schuss.engine.groups import Group, Parameter
from schuss.engine.optimizer import Optimizer, check_loss, signature
from schuss.engine.scalars import ScalarSet, Sums, scalar_set, wanted

# The options of an optimizer that a single call has, too.
STATELESS = ("grad_scale", "zero_grad", "stochastic_rounding", "seed", "subnormals", "backend")


def stateless(rule: type[Optimizer]) -> Callable[..., None]:  # noqa: PLR0915  one call, in its order
    """The functional form of a rule."""
    name = rule.__name__.lower()
    every_state = max(rule.states.values(), key=len)
    fixed = {key: h.default for key, h in rule.hyperparameters.items() if h.fixed}
    live = {key: rule.options[key] for key in STATELESS}
    defaults = {key: o.default for key, o in rule.options.items()}

    def step_once(
        param: np.ndarray,
        grad: np.ndarray,
        *state: np.ndarray | None,
        step: int,
        loss: float | None = None,
        master: np.ndarray | None = None,
        **options: Any,
    ) -> None:
        arrays = named(name, every_state, state, options)
        numbers = {key: options.pop(key, None) for key in (*rule.memory, *rule.shared)}
        around = {key: o.check(options.pop(key, o.default)) for key, o in live.items()}
        for key in [key for key in options if key in fixed]:
            raise TypeError(f"{name}: {key} is for the class; give the state its start yourself")
        settings = Group(rule, fixed | options).settings  # a preset may lack a default
        if arrays.keys() != set(settings.states):
            given = tuple(arrays)
            raise TypeError(f"{name}: state {given} given; these options take {settings.states}")
        check_int("step", step, 1)
        h = settings.at(step - 1)
        bits = wanted(settings, h)
        follows = rule.reads_loss(h) or bool(rule.sums(h))
        remembers = [*rule.memory, *(rule.shared if follows else ())]
        written = [param, *arrays.values(), *([] if master is None else [master])]
        memory: dict[str, Any] = {"sums": None}
        memory |= {key: remembered(name, key, numbers[key], written) for key in remembers}
        if rule.reads_loss(h):
            memory |= rule.follow(h | memory | {"loss": check_loss(loss)})

        def made() -> ScalarSet:
            scale = 1.0 / float(around["grad_scale"])  # a LossScale, too
            optimizers = {f"_{key}": value for key, value in (defaults | around).items()}
            return scalar_set(settings, h, step, True, memory, scale, optimizers)

        own: dict[str, Any] = {key: arrays[key] for key in settings.states}
        beside = {} if master is None else {"master": master}
        p = Parameter(name, param, grad, own, beside, group=0, decays=True, position=0)
        labels = ["param", "grad", *own, *p.beside]
        plan = _core.Plan()
        plan.add(labels, param, p.keeps(), grad, 0, True, [])
        plan.begin(None, around["zero_grad"])
        compiled = around["backend"] == "compiled"
        scalars = made()
        if not compiled:
            plan.check()
        if bits:
            look = (
                plan.look([scalars.packed()], bits)[0] if compiled else scalars.look(p, grad, bits)
            )
            memory["sums"] = memory["totals"] = Sums._make((*look, param.size))
            if rule.sums(h) and rule.shared:
                memory |= rule.follow(h | memory | {"t": step})
            scalars = made()
        if compiled:
            plan.run([scalars.packed()], [[]], [])
        else:
            scalars.step(p, grad)
        for key in remembers:
            numbers[key][...] = (scalars.rule if key in rule.memory else memory)[key]

    needed = min(map(len, rule.states.values()))
    arguments: dict[str, Any] = {"param": REQUIRED, "grad": REQUIRED}
    arguments |= {s: REQUIRED if i < needed else None for i, s in enumerate(every_state)}
    asked = {"step": REQUIRED, "loss": None, "master": None, "preset": None}
    asked |= dict.fromkeys((*rule.memory, *rule.shared))
    shown = {key: h.default for key, h in rule.hyperparameters.items() if key not in fixed}
    shown |= {key: o.default for key, o in live.items()}
    step_once.__name__ = step_once.__qualname__ = name
    step_once.__doc__ = rule.__doc__
    step_once.__signature__ = signature(arguments, asked | shown)  # type: ignore[attr-defined]
    return step_once


def named(
    rule: str,
    names: tuple[str, ...],
    state: tuple[np.ndarray | None, ...],
    options: dict[str, Any],
) -> dict[str, np.ndarray]:
    """The state arrays that were given, by position or among the options, which lose them."""
    if len(state) > len(names):
        raise TypeError(f"{rule}: {len(state)} state arrays given; it has {names}")
    arrays = dict(zip(names, state, strict=False))
    for key in names:
        if key in options and key in arrays:
            raise TypeError(f"{rule}: {key} is given twice")
        arrays[key] = options.pop(key, arrays.get(key))
    return {key: array for key, array in arrays.items() if array is not None}


def remembered(rule: str, name: str, array: Any, written: list[np.ndarray]) -> float:
    """The number in an array of no dimension, which the call will write beside the others."""
    if not (isinstance(array, np.ndarray) and array.shape == () and array.dtype == np.float64):
        given = "missing" if array is None else repr(array)
        raise TypeError(f"{rule}: {name} is {given}; pass a float64 array of no dimension")
    if not array.flags.writeable:
        raise ValueError(f"{rule}: {name} is read-only, but the step writes to it")
    if any(isinstance(a, np.ndarray) and np.may_share_memory(a, array) for a in written):
        raise ValueError(f"{rule}: {name} overlaps an array that the step writes to")
    return Interval("[-inf, inf]").check(f"{rule}: {name}", array)


def __getattr__(name: str) -> Callable[..., None]:
    """Only reached for what is no rule; tells type checkers what the rules' calls are."""
    raise AttributeError(f"schuss.functional has no rule {name!r}; it has {', '.join(__all__)}")


CALLS = {rule.__name__.lower(): stateless(rule) for rule in rules.RULES}
globals().update(CALLS)
__all__ = list(CALLS)
