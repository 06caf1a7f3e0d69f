"""Stateless steps, for trainers that keep their own state: one call, one array, everything given.

    schuss.functional.adam(param, grad, exp_avg, exp_avg_sq, step=1, lr=1e-3)

param and the state arrays are written, grad is read. `step` is the array's step, 1 first. The other
keyword arguments are those of the rule's class, with its defaults, and grad_scale, subnormals and
backend, as every optimizer has them. Numbers that a rule remembers, such as NAdam's mu_product, are
float64 arrays of no dimension, and written, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Signature, getdoc
from textwrap import indent
from threading import local
from typing import TYPE_CHECKING, Any

import numpy as np

from schuss import _core, rules
from schuss._core import Rows
from schuss.checks import check_int, check_remembered
from schuss.engine.backend import Numpy
from schuss.engine.codes import BlockFloat8, arrays_of, behind
from schuss.engine.declare import REQUIRED, Pair
from schuss.engine.groups import Form, Group, Parameter, require_room
from schuss.engine.guard import shorten
from schuss.engine.optimizer import Optimizer, signature
from schuss.engine.scalars import TRAITS, Options
from schuss.engine.step import Recipe
from schuss.engine.structure import described

# The options of an optimizer that a single call has, too.
STATELESS = ("grad_scale", "zero_grad", "stochastic_rounding", "seed", "subnormals", "backend")

LAST = 2**62  # a step that a counter has room behind

MOST = 64  # calls with other options each, for which a thread keeps what was found out


@dataclass
class Call:
    """What calls with the same options have in common."""

    plan: _core.Plan  # its only parameter is that of the call at hand
    numpy: Numpy | None  # the backend, where it is not the kernels
    states: tuple[str, ...]
    remembers: tuple[str, ...]  # numbers that are read, and written
    shared: list[float]  # where none of these are of all arrays: what they are at the start
    bounds: tuple[float, float] | None
    coded: bool  # whether some of its state is a BlockFloat8

    def take(self, param: Any, grad: Any, kept: Sequence[Any], *rest: Any) -> None:
        """The step, after which no array is kept."""
        if self.bounds is not None:
            _core.require_parameter(param, "param")
            require_room(self.bounds, param.dtype, "param")
        arrays = [b for a in kept for b in behind(a)] if self.coded else kept
        if self.numpy is None:
            self.plan.once(param, grad, arrays, *rest)
            return
        self.numpy.parameters = [parameter(param, grad, kept, self.states)]
        try:
            self.plan.once(param, grad, arrays, *rest)
        finally:
            self.numpy.parameters = []


def make_call(
    rule: type[Optimizer],
    name: str,
    options: dict[str, Any],
    given: tuple[str, ...],
    case: int,
    arrays: Sequence[Any],
) -> Call:
    """Reads the options; raises where one can't be. The plan is made of the first call's arrays."""
    live = {key: rule.options[key] for key in STATELESS}
    fixed = {key: h.default for key, h in rule.hyperparameters.items() if h.fixed}
    around = {key: o.check(options.pop(key, o.default)) for key, o in live.items()}
    for key in [key for key in options if key in fixed]:
        raise TypeError(f"{name}: {key} is for the class; give the state its start yourself")
    group = Group(rule, fixed | options)  # a preset may lack a default
    if Pair.has_arrays(group["bounds"]):
        raise TypeError(f"{name}: bounds are arrays, which are for the class; pass numbers")
    form = group.settings.form
    follows = form.reads_loss or form.sums
    param, grad, *kept = arrays
    if isinstance(param, np.ndarray) and rule.factors(param):
        raise TypeError(f"{name}: of {param.ndim} axes the class keeps factors; use the class")
    if given != form.states:
        raise TypeError(f"{name}: state {given} given; these options take {form.states}")
    require_codes(form, kept)
    p = parameter(param, grad, kept, form.states)
    names = [*arrays_of(p.state), *p.beside]
    recipe = Recipe(
        [group],
        Options(
            None,
            around["stochastic_rounding"],
            around["seed"],
            around["subnormals"],
            around["zero_grad"],
        ),
        scale=around["grad_scale"],
        backend=None if around["backend"] == "compiled" else Numpy([p]),
    )
    plan = _core.Plan()
    memory = [0.0] * len(rule.memory)
    plan.add(["param", "grad", *names], param, p.keeps(), grad, 0, True, memory, case, 0)
    plan.serve(None, lambda: recipe, None)
    shared = tuple(rule.shared) if follows else ()
    start = [] if follows else list(rule.shared.values())
    remembers = (*rule.memory, *shared)
    coded = any(isinstance(a, BlockFloat8) for a in kept)
    return Call(plan, recipe.backend, form.states, remembers, start, group["bounds"], coded)


def require_codes(form: Form, kept: Sequence[Any]) -> None:
    """Raises where codes are not those that the class would make."""
    for key, a, trait in zip(form.states, kept, TRAITS[form.kernel], strict=False):
        codes = behind(a)[0]
        if isinstance(codes, np.ndarray) and (
            isinstance(a, BlockFloat8) != (codes.dtype in (np.int8, np.uint8))
        ):
            raise TypeError(f"{key}: {described(codes)}; pass a BlockFloat8, or floating-point")
        if not isinstance(a, BlockFloat8):
            continue
        if trait.alone:
            raise TypeError(f"{key}: no mean or sum that codes hold; pass an array")
        if a.signed == trait.positive:
            raise TypeError(f"{key}: codes of the other sign; pass signed={not a.signed}")


def first_call(*given: Any) -> Call:
    """A call, or an error that shows the user's line."""
    try:
        return make_call(*given)
    except (TypeError, ValueError) as error:
        shorten(error)
        raise


def parameter(param: Any, grad: Any, kept: Sequence[Any], states: Sequence[str]) -> Parameter:
    """The arrays of a call: those of the rule, and a master where there is one more."""
    state = dict(zip(states, kept, strict=False))
    beside = {"master": kept[-1]} if len(kept) > len(states) else {}
    return Parameter("", param, grad, state, beside, group=0, decays=True, position=0)


def stateless(rule: type[Optimizer]) -> Callable[..., None]:
    """The functional form of a rule."""
    name = rule.__name__.lower()
    every_state = max(rule.states.values(), key=len)
    remembered_names = (*rule.memory, *rule.shared)
    declared = rule.hyperparameters["lr"]
    case_of = None if rule.case is Optimizer.case else rule.case
    calls = local()

    def step_once(
        param: np.ndarray,
        grad: np.ndarray | Rows,
        *state: np.ndarray | None,
        step: int,
        loss: float | None = None,
        master: np.ndarray | None = None,
        **options: Any,
    ) -> None:
        given, kept = named(name, every_state, state, options)
        if master is not None:
            kept.append(master)
        numbers = [options.pop(key, None) for key in remembered_names]
        lr = options.get("lr")
        if lr is not None and not callable(lr) and not declared.fixed:
            lr = declared.check(options.pop("lr"))
        else:
            lr = None
        case = case_of(param) if case_of and isinstance(param, np.ndarray) else 0
        known = vars(calls).setdefault("by_options", {})
        try:
            kinds = tuple(
                [(a.codes.dtype,) if isinstance(a, BlockFloat8) else a.dtype for a in kept]
            )
            key = (given, kinds, case, *options.items())
            call = known.get(key)
        except (TypeError, AttributeError):  # no hash, as of bounds that are arrays; or no array
            key, call = None, None
        if call is None or call.plan.busy:  # by a callable of the call at hand
            arrays = (param, grad, *kept)
            call = first_call(rule, name, options, given, case, arrays)
            if key is not None and key not in known:
                if len(known) == MOST:
                    known.clear()
                known[key] = call
        step = check_int("step", step, 1, LAST)
        memory: list[float] = []
        if call.remembers:
            written = [param, *kept]
            memory = [
                remembered(name, key, array, written)
                for key, array in zip(call.remembers, numbers, strict=False)
            ]
        own = len(rule.memory)
        shared = memory[own:] or call.shared
        call.take(param, grad, kept, step - 1, memory[:own], shared, lr, loss)
        if memory:
            after = (*call.plan.memory(0), *call.plan.shared)
            for array, value in zip(numbers, after, strict=False):
                array[...] = value

    step_once.__name__ = step_once.__qualname__ = name
    step_once.__doc__ = document(rule, every_state)
    step_once.__signature__ = signature_of(rule, every_state)  # type: ignore[attr-defined]
    return step_once


def signature_of(rule: type[Optimizer], states: tuple[str, ...]) -> Signature:
    """What help shows: arrays by position, numbers by keyword."""
    needed = min(map(len, rule.states.values()))
    arguments: dict[str, Any] = {"param": REQUIRED, "grad": REQUIRED}
    arguments |= {s: REQUIRED if i < needed else None for i, s in enumerate(states)}
    asked = {"step": REQUIRED, "loss": None, "master": None, "preset": None}
    asked |= dict.fromkeys((*rule.memory, *rule.shared))
    shown = {key: h.default for key, h in rule.hyperparameters.items() if not h.fixed}
    shown |= {key: rule.options[key].default for key in STATELESS}
    return signature(arguments, asked | shown)


def document(rule: type[Optimizer], states: tuple[str, ...]) -> str:
    """What help shows of a call: its own arguments, and then the rule's."""
    arrays = "".join(f"    {name:<12} state of the rule (written)\n" for name in states)
    return f"""One step of one array by {rule.__name__}, which keeps nothing.

    param        the array (written)
    grad         its gradient (read), or schuss.Rows of it
{arrays}    step         the array's step, counted from 1
    loss         the loss at param, for rules that read it
    master       float32 values that a 16-bit param is rounded from, or the int16 remainder of a
                 bfloat16 one: at first zeros (written)

State may be in float32, float16, bfloat16 or a schuss.BlockFloat8.

    Everything else as the class:

{indent(getdoc(rule) or "", "    ")}
"""


def named(
    rule: str,
    names: tuple[str, ...],
    state: tuple[np.ndarray | None, ...],
    options: dict[str, Any],
) -> tuple[tuple[str, ...], list[Any]]:
    """The state that was given, by position or among the options, which lose it: names, arrays."""
    whole = len(state) == len(names) and not any(a is None for a in state)
    if whole and options.keys().isdisjoint(names):
        return names, list(state)
    if len(state) > len(names):
        raise TypeError(f"{rule}: {len(state)} state arrays given; it has {names}")
    arrays = dict(zip(names, state, strict=False))
    for key in names:
        if key in options and key in arrays:
            raise TypeError(f"{rule}: {key} is given twice")
        arrays[key] = options.pop(key, arrays.get(key))
    given = {key: arrays[key] for key in names if arrays[key] is not None}
    return tuple(given), list(given.values())


def remembered(rule: str, name: str, array: Any, written: Sequence[Any]) -> float:
    """The number in an array of no dimension, which the call will write beside the others."""
    if not (isinstance(array, np.ndarray) and array.shape == () and array.dtype == np.float64):
        given = "missing" if array is None else repr(array)
        raise TypeError(f"{rule}: {name} is {given}; pass a float64 array of no dimension")
    if not array.flags.writeable:
        raise ValueError(f"{rule}: {name} is read-only, but the step writes to it")
    if any(isinstance(a, np.ndarray) and np.may_share_memory(a, array) for a in written):
        raise ValueError(f"{rule}: {name} overlaps an array that the step writes to")
    return check_remembered(f"{rule}: {name}", array)


CALLS = {rule.__name__.lower(): stateless(rule) for rule in rules.RULES}
globals().update(CALLS)
__all__ = list(CALLS)

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., None]:
        """Only reached for what is no rule."""
        raise AttributeError(f"schuss.functional has no rule {name!r}; it has {', '.join(__all__)}")
