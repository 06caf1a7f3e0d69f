"""The base of all rules: arrays, groups, options, step and state."""

from __future__ import annotations

import copy
import functools
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import InitVar
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    ParamSpec,
    TypeVar,
    dataclass_transform,
)
from weakref import WeakSet

import numpy as np

from schuss import _core
from schuss.groups import Group, Parameter
from schuss.hyperparameters import (
    Choice,
    Constant,
    Hyperparameter,
    Option,
    check_int,
    choice,
    constant,
    flag,
    number,
    numbers,
    option,
)
from schuss.kernels import ScalarSet
from schuss.structure import Tree, flatten, gather, is_sequence, label, listed

P = ParamSpec("P")
R = TypeVar("R")


def one_at_a_time(
    method: Callable[Concatenate[Optimizer, P], R],
) -> Callable[Concatenate[Optimizer, P], R]:
    """A method that other threads wait for, and that its own thread can't enter a second time."""

    @functools.wraps(method)
    def guarded(self: Optimizer, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock:
            if self._busy:
                raise RuntimeError(
                    "re-entered: the optimizer is in the middle of a call of this thread"
                )
            self._busy = True
            try:
                return method(self, *args, **kwargs)
            finally:
                self._busy = False

    return guarded


def argument(*, default: Any = None, kw_only: bool = True) -> Any:
    """An argument of the constructor that is no attribute: only type checkers see it."""


@dataclass_transform(
    kw_only_default=True,
    field_specifiers=(number, numbers, constant, flag, choice, option, argument),
)
class Declared:
    """Tells type checkers that what a class declares are its constructor's arguments."""


class Optimizer(Declared):
    """Steps arrays in place, one compiled call for all of them; the base of every rule.

    params       an array, a sequence or mapping of arrays, nested as you like, or a list of groups:
                 mappings with "params" and what differs from the other groups
    grads        gradient arrays that stay, in the structure of params; then `step()` needs none
    no_decay     a function of a parameter's name and array: True takes it out of the weight decay
    grad_scale   the loss scale, in (0, inf), default 1: gradients are multiplied by 1/grad_scale
    subnormals   "zero" (default) stores a state element below the smallest normal number as zero;
                 "keep" keeps it, and each step of such an element costs 20 to 50 times as much
    backend      "compiled" (default), or "numpy": the same bits, in readable Python

    A hyperparameter that is a number may be a callable: it is called with the number of finished
    steps (0 first) and returns the value of the coming one. TypeError and ValueError name the
    argument or the array; nothing has changed then.
    """

    states: ClassVar[dict[str, tuple[str, ...]]]
    hyperparameters: ClassVar[dict[str, Hyperparameter]] = {}
    options: ClassVar[dict[str, Option]] = {}

    if TYPE_CHECKING:
        params: InitVar[Any] = argument(kw_only=False)
        grads: InitVar[Any] = argument(default=None)
        no_decay: InitVar[Callable[[str, np.ndarray], bool] | None] = argument(default=None)
    grad_scale: float = option(Constant, "(0, inf)", default=1.0)
    subnormals: str = option(Choice, "zero", "keep", default="zero")
    backend: str = option(Choice, "compiled", "numpy", default="compiled")

    def __init_subclass__(cls) -> None:
        declared = {name: d for c in reversed(cls.__mro__) for name, d in vars(c).items()}
        cls.hyperparameters = {k: d for k, d in declared.items() if isinstance(d, Hyperparameter)}
        cls.options = {k: d for k, d in declared.items() if isinstance(d, Option)}

    def __init__(
        self,
        params: Any,
        /,
        *,
        grads: Any = None,
        no_decay: Callable[[str, np.ndarray], bool] | None = None,
        **hyperparameters: Any,
    ) -> None:
        for name, declared in self.options.items():
            setattr(self, name, hyperparameters.pop(name, declared.default))
        self._groups: list[Group] = []
        self._trees: list[Tree] = []
        self._parameters: list[Parameter] = []
        params = listed(params)
        self._grouped = is_groups(params)
        for group in params if self._grouped else [{"params": params}]:
            self._add({"no_decay": no_decay, **hyperparameters, **group})
        if not self._parameters:
            raise ValueError("params: no array in it; pass at least one")
        self._bound = grads is not None
        if self._bound:
            for p, g in zip(self._parameters, self._gather(grads), strict=True):
                p.g = g
        self._plan = planned(self._parameters)
        self._free()

    def _free(self) -> None:
        """Nobody is in a call: at the start, and in a forked child, which has no other thread."""
        self._lock = threading.RLock()
        self._busy = False
        alive.add(self)

    # ---- What a rule says of itself

    @staticmethod
    def kernel(h: Mapping[str, Any]) -> str:
        """The kernel for these hyperparameters, of which a callable is true.

        Raises ValueError where they don't go together.
        """
        raise NotImplementedError

    @staticmethod
    def scalars(h: Mapping[str, Any], t: int) -> dict[str, float]:
        """The scalars of the rule's kernels at an array's step t, counted from 1, in double."""
        raise NotImplementedError

    @staticmethod
    def initial(h: Mapping[str, Any]) -> dict[str, float]:
        """What state arrays start with where it isn't 0."""
        return {}

    # ---- Parameters

    @property
    def param_groups(self) -> list[Group]:
        """The groups, live: `opt.param_groups[1]["lr"] = 0` counts from the next step on."""
        return self._groups

    @one_at_a_time
    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Takes in more parameters, with new state.

        group   a mapping with "params" and what differs from the class's defaults; "no_decay" too

        Gradients are then a sequence with the structure of each group, or one mapping by name.
        """
        before = self._groups, self._trees, self._parameters, self._grouped
        try:
            self._add(group)
            self._plan = planned(self._parameters, self._plan)
            self._grouped = True
        except BaseException:
            self._groups, self._trees, self._parameters, self._grouped = before
            raise

    @one_at_a_time
    def rebind(self, params: Any) -> None:
        """Takes arrays of the same structure, shapes and types in place of the old ones.

        The state stays, and goes on with the new arrays.
        """
        fresh = [copy.copy(p) for p in self._parameters]
        for p, x in zip(fresh, self._gather(params, "params"), strict=True):
            if described(x) != described(p.x):
                name = label("params", p.name)
                raise ValueError(f"{name}: {described(x)} where {described(p.x)} is registered")
            p.x = x
        self._plan = planned(fresh, self._plan)
        for old, new in zip(self._parameters, fresh, strict=True):
            old.x = new.x

    def zero_grad(self) -> None:
        """Fills the bound gradients with zeros."""
        for p in self._parameters:
            if p.g is not None:
                p.g.fill(0)

    def _add(self, group: Mapping[str, Any]) -> None:
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError('group: pass a mapping with "params" and what differs')
        options = {key: v for key, v in group.items() if key not in ("params", "no_decay")}
        no_decay = group.get("no_decay") or (lambda name, x: False)
        made = Group(type(self), options)
        tree, arrays = flatten(listed(group["params"]), len(self._parameters))
        taken = {p.name for p in self._parameters}
        start = self.initial(made)
        for name, x in arrays.items():
            if name in taken:
                raise ValueError(f"{label('params', name)}: two groups have this name; rename one")
            state = {key: np.zeros_like(x, subok=False) for key in made.states}
            for key, value in start.items():
                state[key].fill(value)
            made.members.append(
                Parameter(name, x, None, state, len(self._groups), not no_decay(name, x))
            )
        self._groups = [*self._groups, made]
        self._trees = [*self._trees, tree]
        self._parameters = [*self._parameters, *made.members]

    def _gather(self, grads: Any, role: str = "grads") -> list[Any]:
        """Gradients, or other arrays in the structure of params, in the parameters' order."""
        if not self._grouped:
            return gather(self._trees[0], grads, role)
        if isinstance(grads, Mapping):
            names: Tree = {p.name: number for number, p in enumerate(self._parameters)}
            return gather(names, grads, role)
        return gather(self._trees, grads, role)

    # ---- The step

    @one_at_a_time
    def step(self, grads: Any = None, *, grad_scale: float | None = None) -> bool:
        """Updates every parameter that has a gradient, in place; True when it did.

        grads        in the structure of params, None where there is no gradient: that parameter,
                     its state and its step count stay. Not given: the bound ones
        grad_scale   the loss scale of this step. Not given: the optimizer's

        Everything is validated before anything changes. Raises TypeError or ValueError that name
        the array, and RuntimeError when a callable calls it from within a step.
        """
        scale = self.grad_scale
        if grad_scale is not None:
            scale = self.options["grad_scale"].check(grad_scale)
        if grads is None and not self._bound:
            raise ValueError(
                "grads: none given and none bound; pass them, or bind them with grads="
            )
        plan = self._plan
        values = [
            group.at(plan.iterations) for group in self._groups
        ]  # the user's callables run here
        flat = None if grads is None else self._gather(grads)
        sets = []
        for key, count in plan.check(flat):
            group, decays = divmod(key, 2)
            kernel, h = self._groups[group].kernel, values[group]
            sets.append(self.scalar_set(kernel, h, count + 1, bool(decays), scale, self.subnormals))
        if self.backend == "compiled":
            plan.run([s.packed() for s in sets])
        else:
            gradients: list[Any] = [p.g for p in self._parameters] if flat is None else flat
            for i, number_of_set in plan.active():
                p = self._parameters[i]
                sets[number_of_set].step(p.x, gradients[i], list(p.state.values()))
            plan.advance()
        return True

    @classmethod
    def scalar_set(
        cls,
        kernel: str,
        h: Mapping[str, Any],
        t: int,
        decays: bool,
        grad_scale: float,
        subnormals: str,
    ) -> ScalarSet:
        """The scalars of an array's step t, counted from 1: the rule's and those of the stages."""
        decay = h["weight_decay"] if decays else 0.0
        coupled = h["decay_mode"] == "l2"
        return ScalarSet(
            kernel,
            cls.scalars(h, t),
            scale=(-1.0 if h["maximize"] else 1.0) / grad_scale,
            l2=decay if coupled else 0.0,
            keep=1.0 if coupled else 1.0 - h["lr"] * decay,
            flush=subnormals == "zero",
        )

    @property
    def iterations(self) -> int:
        """The number of finished steps."""
        return self._plan.iterations

    @property
    def current_learning_rate(self) -> float:
        """The learning rate of the coming step, of the first group."""
        rate: float = self._groups[0].at(self.iterations)["lr"]
        return rate

    # ---- State

    @property
    def state(self) -> States:
        """Each parameter's finished steps and its live state: `opt.state["w1"]["exp_avg"]`."""
        counts = self._plan.counts()
        pairs = zip(self._parameters, counts, strict=True)
        return States({p.name: {"step": count, **p.state} for p, count in pairs})

    @one_at_a_time
    def state_dict(self) -> dict[str, Any]:
        """A copy of what a resumed run needs, by name: numbers and arrays.

        Of a callable it holds the value of the coming step.
        """
        n = self.iterations
        return {
            "state": copy.deepcopy(dict(self.state)),
            "param_groups": [{"params": g["param_names"], **g.at(n)} for g in self._groups],
            "iterations": n,
        }

    @one_at_a_time
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken; callables that are set here stay.

        The arrays are copied into this optimizer's. Raises ValueError that lists every difference
        in names, shapes and types; nothing has changed then.
        """
        state, groups = state_dict["state"], state_dict["param_groups"]
        wrong = differences(self.state, state)
        if [list(g["params"]) for g in groups] != [g["param_names"] for g in self._groups]:
            wrong.append("param_groups: other parameters")
        if wrong:
            raise ValueError(f"state_dict: {'; '.join(wrong)}")
        merged = [
            own.merged({k: v for k, v in g.items() if k != "params" and not own.scheduled(k)})
            for own, g in zip(self._groups, groups, strict=True)
        ]
        counts = [
            check_int(f'state["{p.name}"]["step"]', state[p.name]["step"], 0)
            for p in self._parameters
        ]
        iterations = check_int("iterations", state_dict["iterations"], 0)

        for own, values in zip(self._groups, merged, strict=True):
            own.take(values)
        for p in self._parameters:
            for key, array in p.state.items():
                array[...] = state[p.name][key]
        self._plan.restore(iterations, counts)

    @one_at_a_time
    def __getstate__(self) -> dict[str, Any]:
        own = {k: v for k, v in vars(self).items() if k not in ("_plan", "_lock", "_busy")}
        return own | {"counters": (self._plan.iterations, self._plan.counts())}

    def __setstate__(self, own: dict[str, Any]) -> None:
        vars(self).update(own)
        iterations, counts = vars(self).pop("counters")
        self._plan = planned(self._parameters)
        self._plan.restore(iterations, counts)
        self._free()

    def __repr__(self) -> str:
        groups = "".join(f"\n  {group!r}," for group in self._groups)
        return f"{type(self).__name__}({groups}\n)"


class States(dict[str | int, dict[str, Any]]):
    """State by parameter name; in a flat sequence the number itself works too."""

    def __missing__(self, key: object) -> dict[str, Any]:
        if isinstance(key, int) and str(key) in self:
            return self[str(key)]
        raise KeyError(key)


def is_groups(params: Any) -> bool:
    """Whether params is a list of groups, and not a nested structure."""
    return (
        is_sequence(params)
        and len(params) > 0
        and all(isinstance(p, Mapping) and "params" in p for p in params)
    )


def described(x: Any) -> str:
    """What has to stay the same when an array takes another's place."""
    if not isinstance(x, np.ndarray):
        return type(x).__name__
    order = "C" if x.flags.c_contiguous else "Fortran" if x.flags.f_contiguous else "no contiguous"
    return f"{x.dtype} of shape {x.shape} in {order} order"


def differences(own: Mapping[Any, Any], other: Mapping[str, Any]) -> list[str]:
    """How a saved state differs from this one in names, shapes and types."""
    found = [f"missing {name!r}" for name in own if name not in other]
    found += [f"unknown {name!r}" for name in other if name not in own]
    for name in own.keys() & other.keys():
        for key in own[name].keys() | other[name].keys():
            mine, theirs = own[name].get(key), other[name].get(key)
            kind = (np.shape(mine), getattr(mine, "dtype", None))
            if mine is None or theirs is None:
                found.append(f"{'unknown' if mine is None else 'missing'} {name!r} {key}")
            elif key != "step" and (np.shape(theirs), getattr(theirs, "dtype", None)) != kind:
                found.append(f"{name!r} {key}: {described(theirs)}, wanted {described(mine)}")
    return found


def planned(parameters: list[Parameter], before: _core.Plan | None = None) -> _core.Plan:
    """A plan of these parameters; the first ones keep the counters of the plan before.

    Raises where an array breaks the contract.
    """
    plan = _core.Plan()
    for p in parameters:
        plan.add(p.labels(), p.x, list(p.state.values()), p.g, 2 * p.group + p.decays)
    plan.require_disjoint()
    if before is not None:
        counts = before.counts()
        plan.restore(before.iterations, counts + [0] * (len(parameters) - len(counts)))
    return plan


alive: WeakSet[Optimizer] = WeakSet()


def free_all() -> None:
    """A lock that another thread held when the process was forked would never be released."""
    for optimizer in list(alive):
        optimizer._free()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=free_all)
