"""The base of all rules: arrays, groups, options, step and state."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, dataclass_transform

import numpy as np

from schuss import _core, reference
from schuss.hyperparameters import Hyperparameter, Interval, choice, flag, number, numbers
from schuss.structure import Tree, flatten, gather, is_sequence, label, listed

BACKENDS = ("compiled", "numpy")
SUBNORMALS = ("zero", "keep")
GRAD_SCALE = Interval("(0, inf)")

KERNELS = {name: i for i, (name, _, _) in enumerate(_core.rules())}


def letters(kernel: str) -> tuple[str, ...]:
    """The names of a kernel's scalars, in the order of its struct: the keyword arguments of its reference."""
    code = getattr(reference, kernel).__code__
    return tuple(code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount])


class ScalarSet(NamedTuple):
    """What a step hands to a kernel, in double: computed here for both backends."""

    kernel: str
    scale: float
    l2: float
    keep: float
    flush: bool
    rule: dict[str, float]

    def packed(self) -> tuple[float, ...]:
        return (
            KERNELS[self.kernel],
            self.scale,
            self.l2,
            self.keep,
            self.flush,
            *self.rule.values(),
        )

    def step(self, x: np.ndarray, g: np.ndarray, state: list[np.ndarray]) -> None:
        """One array's step in NumPy."""
        rule = getattr(reference, self.kernel)
        reference.step(
            rule,
            x,
            g,
            state,
            self.rule,
            scale=self.scale,
            l2=self.l2,
            keep=self.keep,
            flush=self.flush,
        )


@dataclass
class Parameter:
    """One registered array with what belongs to it."""

    name: str
    x: np.ndarray
    g: np.ndarray | None
    state: dict[str, np.ndarray]
    group: int
    decays: bool

    def labels(self) -> list[str]:
        return [
            label("params", self.name),
            label("grads", self.name),
            *(f'{label("state", self.name)}["{s}"]' for s in self.state),
        ]


class Group(MutableMapping[str, Any]):
    """One parameter group: "params", "param_names", "no_decay", and its hyperparameters, checked when they are set.

    A value that would change which state arrays there are is refused: they are allocated at construction.
    """

    fixed = ("params", "param_names", "no_decay")

    def __init__(self, rule: type[Optimizer], values: Mapping[str, Any]) -> None:
        self._rule = rule
        self._values: dict[str, Any] = {
            name: h.check(h.default) for name, h in rule.hyperparameters.items()
        }
        self._members: list[Parameter] = []
        self._states: tuple[str, ...] | None = None
        self._values = self.checked(values)
        self._states = self.states

    @property
    def kernel(self) -> str:
        return self._rule.kernel(self._values)

    @property
    def states(self) -> tuple[str, ...]:
        """The names of the state arrays, in the order of the kernel's letters."""
        return self._rule.states[self.kernel]

    def checked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """All hyperparameters, with these values in place of the old ones; raises and changes nothing where that can't be."""
        for name in values:
            if name in self.fixed:
                raise ValueError(f"{name}: fixed at construction; use rebind or add_param_group")
            if name not in self._values:
                raise TypeError(
                    f"{name}: {self._rule.__name__} has no such option; it has {', '.join(self._values)}"
                )
        merged = self._values | {
            name: self._rule.hyperparameters[name].check(value) for name, value in values.items()
        }
        states = self._rule.states[self._rule.kernel(merged)]
        if self._states is not None and states != self._states:
            wanted = " and ".join(f"{name}={value!r}" for name, value in values.items())
            raise ValueError(
                f"{wanted} would change the state arrays from {self._states} to {states}; they are fixed at construction"
            )
        return merged

    def scheduled(self, name: str) -> bool:
        """Whether a callable is set."""
        return name in self._values and self._rule.hyperparameters[name].scheduled(
            self._values[name]
        )

    def at(self, iterations: int) -> dict[str, Any]:
        """The plain value of each hyperparameter after so many finished steps."""
        return {
            name: self._rule.hyperparameters[name].at(value, iterations)
            for name, value in self._values.items()
        }

    def __getitem__(self, name: str) -> Any:
        if name == "params":
            return [p.x for p in self._members]
        if name == "param_names":
            return [p.name for p in self._members]
        if name == "no_decay":
            return [p.name for p in self._members if not p.decays]
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._values = self.checked({name: value})

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name}: a group keeps all its options; set it instead")

    def __iter__(self) -> Iterator[str]:
        return iter((*self.fixed, *self._values))

    def __len__(self) -> int:
        return len(self.fixed) + len(self._values)

    def __repr__(self) -> str:
        return repr(dict(self))


class States(dict[str, dict[str, Any]]):
    """State by parameter name; in a flat sequence the number itself works too."""

    def __missing__(self, key: object) -> dict[str, Any]:
        if isinstance(key, int) and str(key) in self:
            return self[str(key)]
        raise KeyError(key)


class Turn:
    """One step at a time: another thread waits, the same thread is refused. A forked child starts with a free one."""

    forks: ClassVar[int] = 0

    def __init__(self) -> None:
        self.free()

    def free(self) -> None:
        self.lock, self.owner, self.born = threading.Lock(), 0, Turn.forks

    def __enter__(self) -> None:
        if self.born != Turn.forks:
            self.free()
        if self.owner == threading.get_ident():
            raise RuntimeError(
                "the optimizer is in the middle of a step of this thread; don't step, load or rebind it from a callable"
            )
        self.lock.acquire()
        self.owner = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self.owner = 0
        self.lock.release()

    @classmethod
    def forked(cls) -> None:
        cls.forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Turn.forked)


@dataclass_transform(kw_only_default=True, field_specifiers=(number, numbers, flag, choice))
class Declared:
    """Tells type checkers that the hyperparameters of a class are the keyword arguments of its constructor."""


class Optimizer(Declared):
    """Steps arrays in place, one compiled call for all of them; the base of every rule.

    params       an array, a sequence or mapping of arrays, nested as you like, or a list of groups: mappings with "params" and
                 what differs from the other groups
    grads        gradient arrays that stay, in the structure of params: bound, so that `step()` needs none
    no_decay     a function of a parameter's name and array: True takes it out of the weight decay
    grad_scale   the loss scale: gradients are multiplied by 1/grad_scale. In (0, inf), default 1
    subnormals   "zero" (default) stores a state element below the smallest normal number as zero, "keep" keeps it: each step of such
                 elements then costs 20 to 50 times as much
    backend      "compiled" (default), or "numpy": the same bits, in readable Python

    Every hyperparameter that is a number may be a callable: it is called with the number of finished steps (0 first) and returns
    the value of the coming one. Raises TypeError or ValueError, which name the argument; nothing has changed then.
    """

    states: ClassVar[dict[str, tuple[str, ...]]]
    hyperparameters: ClassVar[dict[str, Hyperparameter]] = {}

    def __init_subclass__(cls) -> None:
        own = {
            name: value for name, value in vars(cls).items() if isinstance(value, Hyperparameter)
        }
        cls.hyperparameters = cls.hyperparameters | own

    def __init__(
        self,
        params: Any,
        /,
        *,
        grads: Any = None,
        no_decay: Callable[[str, np.ndarray], bool] | None = None,
        grad_scale: float = 1.0,
        subnormals: str = "zero",
        backend: str = "compiled",
        **hyperparameters: Any,
    ) -> None:
        self.grad_scale = grad_scale
        self.subnormals = subnormals
        self.backend = backend
        self._turn = Turn()
        self._groups: list[Group] = []
        self._parameters: list[Parameter] = []
        self._tree: Tree = []
        params = listed(params)
        if is_groups(params):
            for group in params:
                self._add_group({"no_decay": no_decay, **hyperparameters, **group})
        else:
            self._add_group({"no_decay": no_decay, **hyperparameters, "params": params})
            self._tree = self._tree[0]  # type: ignore[index]
        if not self._parameters:
            raise ValueError("params: no array in it; pass at least one")
        if grads is not None:
            for p, g in zip(self._parameters, self._gather(grads), strict=True):
                p.g = g
        self._plan = self._planned(self._parameters)

    # ---- What a rule says of itself

    @staticmethod
    def kernel(h: Mapping[str, Any]) -> str:
        """The kernel for these hyperparameters, of which a callable is true; ValueError where they don't go together."""
        raise NotImplementedError

    @staticmethod
    def scalars(h: Mapping[str, Any], t: int) -> dict[str, float]:
        """The scalars of the rule's kernels at an array's step t, counted from 1, in double."""
        raise NotImplementedError

    @staticmethod
    def initial(h: Mapping[str, Any]) -> dict[str, float]:
        """The values that state arrays start with where that isn't 0."""
        return {}

    # ---- Parameters

    @property
    def param_groups(self) -> list[Group]:
        """The groups, live: `opt.param_groups[1]["lr"] = 0` counts from the next step on."""
        return self._groups

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Takes in more parameters: a mapping with "params" and what differs from the class's defaults.

        Gradients are then a sequence with the structure of each group, or one mapping by parameter name.
        """
        with self._turn:
            parameters, tree, groups = self._parameters[:], self._tree, self._groups[:]
            try:
                if len(groups) == 1 and not isinstance(tree, Groups):
                    self._tree = Groups([tree])
                self._add_group(group)
                plan = self._planned(self._parameters, self._plan)
            except BaseException:
                self._parameters, self._tree, self._groups = parameters, tree, groups
                raise
            self._plan = plan

    def rebind(self, params: Any) -> None:
        """Takes arrays of the same structure, shapes and types in place of the old ones; the state stays."""
        with self._turn:
            fresh = [copy.copy(p) for p in self._parameters]
            for p, x in zip(fresh, self._gather(params, "params"), strict=True):
                if not isinstance(x, np.ndarray) or (x.shape, x.dtype) != (p.x.shape, p.x.dtype):
                    found = (
                        f"{x.dtype} of shape {x.shape}"
                        if isinstance(x, np.ndarray)
                        else type(x).__name__
                    )
                    raise ValueError(
                        f"{p.labels()[0]}: {found}; rebind wants {p.x.dtype} of shape {p.x.shape}, as registered"
                    )
                p.x = x
            plan = self._planned(fresh, self._plan)
            for old, new in zip(self._parameters, fresh, strict=True):
                old.x = new.x
            self._plan = plan

    def zero_grad(self) -> None:
        """Fills the bound gradients with zeros."""
        for p in self._parameters:
            if p.g is not None:
                p.g.fill(0)

    def _add_group(self, group: Mapping[str, Any]) -> None:
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(
                f'param_groups: {group!r} is no group; pass a mapping with "params" and what differs'
            )
        values = {
            name: value for name, value in group.items() if name not in ("params", "no_decay")
        }
        no_decay = group.get("no_decay") or (lambda name, x: False)
        made = Group(type(self), values)
        tree, arrays = flatten(listed(group["params"]), len(self._parameters))
        names = {p.name for p in self._parameters}
        start = made._rule.initial(made._values)
        fresh = []
        for name, x in arrays.items():
            if name in names:
                raise ValueError(
                    f"{label('params', name)}: two groups have a parameter of this name; rename one of them"
                )
            state = {
                s: np.full_like(x, start[s], subok=False)
                if start.get(s)
                else np.zeros_like(x, subok=False)
                for s in made.states
            }
            fresh.append(Parameter(name, x, None, state, len(self._groups), not no_decay(name, x)))
        made._members = fresh
        self._tree = Groups([*self._tree, tree])  # type: ignore[misc]
        self._groups = [*self._groups, made]
        self._parameters = [*self._parameters, *fresh]

    @staticmethod
    def _planned(parameters: list[Parameter], before: _core.Plan | None = None) -> _core.Plan:
        """A plan of these parameters, with the counters of the one before; raises where an array breaks the contract."""
        plan = _core.Plan()
        for p in parameters:
            plan.add(p.labels(), p.x, list(p.state.values()), p.g, 2 * p.group + p.decays)
        plan.require_disjoint()
        if before is not None:
            counts = before.counts()
            plan.restore(before.iterations, counts + [0] * (len(parameters) - len(counts)))
        return plan

    def _gather(self, grads: Any, role: str = "grads") -> list[Any]:
        """Gradients in the parameters' order."""
        tree = self._tree
        if isinstance(tree, Groups) and isinstance(grads, Mapping):
            tree = {p.name: i for i, p in enumerate(self._parameters)}
        return list(gather(tree, grads, role))

    # ---- The step

    def step(self, grads: Any = None, *, grad_scale: float | None = None) -> bool:
        """Updates every parameter that has a gradient, in place; True when it did.

        grads        in the structure of params, None where there is no gradient; not given: the bound ones
        grad_scale   the loss scale of this step; not given: the optimizer's

        Everything is validated before anything changes. Raises TypeError or ValueError that name the array, and RuntimeError when
        called from within a step of the same thread.
        """
        with self._turn:
            plan = self._plan
            scale = (
                self._grad_scale
                if grad_scale is None
                else GRAD_SCALE.check("grad_scale", grad_scale)
            )
            at_work = [
                (group.kernel, group.at(plan.iterations)) for group in self._groups
            ]  # the user's callables run here
            flat = self._bound() if grads is None else self._gather(grads)
            sets = [
                self.scalar_set(
                    *at_work[key >> 1],
                    count + 1,
                    decays=bool(key & 1),
                    grad_scale=scale,
                    subnormals=self._subnormals,
                )
                for key, count in plan.check(flat)
            ]
            if self._backend == "compiled":
                plan.run([s.packed() for s in sets])
            else:
                for i, number_of_set in plan.active():
                    p = self._parameters[i]
                    sets[number_of_set].step(
                        p.x, p.g if flat is None else flat[i], list(p.state.values())
                    )
                plan.advance()
            return True

    def _bound(self) -> None:
        if all(p.g is None for p in self._parameters):
            raise ValueError(
                "grads: none given and none bound; pass them to step, or bind them at construction with grads="
            )

    @classmethod
    def scalar_set(
        cls,
        kernel: str,
        h: Mapping[str, Any],
        t: int,
        *,
        decays: bool = True,
        grad_scale: float = 1.0,
        subnormals: str = "zero",
    ) -> ScalarSet:
        """The scalars of an array's step t, counted from 1: those of the stages and those of the rule."""
        rule = cls.scalars(h, t)
        decay = h["weight_decay"] if decays else 0.0
        coupled = h["decay_mode"] == "l2"
        return ScalarSet(
            kernel,
            scale=(-1.0 if h["maximize"] else 1.0) / grad_scale,
            l2=decay if coupled else 0.0,
            keep=1.0 if coupled else 1.0 - h["lr"] * decay,
            flush=subnormals == "zero",
            rule={name: rule[name] for name in letters(kernel)},
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

    @property
    def grad_scale(self) -> float:
        """The loss scale: gradients are multiplied by 1/grad_scale."""
        return self._grad_scale

    @grad_scale.setter
    def grad_scale(self, value: float) -> None:
        self._grad_scale = GRAD_SCALE.check("grad_scale", value)

    @property
    def subnormals(self) -> str:
        """What becomes of state below the smallest normal number: "zero" or "keep"."""
        return self._subnormals

    @subnormals.setter
    def subnormals(self, value: str) -> None:
        self._subnormals = check_word("subnormals", value, SUBNORMALS)

    @property
    def backend(self) -> str:
        """What does the work: "compiled" or "numpy"."""
        return self._backend

    @backend.setter
    def backend(self, value: str) -> None:
        self._backend = check_word("backend", value, BACKENDS)

    # ---- State

    @property
    def state(self) -> States:
        """Each parameter's finished steps ("step") and its live state arrays: `opt.state["w1"]["exp_avg"]`."""
        return States(
            {
                p.name: {"step": t, **p.state}
                for p, t in zip(self._parameters, self._plan.counts(), strict=True)
            }
        )

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that a resumed run needs: numbers, names and arrays. Of a callable it holds the value of the coming step."""
        with self._turn:
            n = self._plan.iterations
            return {
                "state": {
                    name: {
                        key: np.copy(value, order="K") if key != "step" else value
                        for key, value in s.items()
                    }
                    for name, s in self.state.items()
                },
                "param_groups": [{"params": g["param_names"], **g.at(n)} for g in self._groups],
                "iterations": n,
            }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where `state_dict()` was taken: copies the arrays, sets the numbers; callables that are set here stay.

        Names, shapes and types have to be those of this optimizer: otherwise a ValueError lists every difference, and nothing changed.
        """
        with self._turn:
            wrong = []
            state, groups = state_dict["state"], state_dict["param_groups"]
            if set(state) != (names := {p.name for p in self._parameters}):
                wrong += [f"missing {name!r}" for name in sorted(names - set(state))] + [
                    f"unknown {name!r}" for name in sorted(set(state) - names)
                ]
            for p in self._parameters:
                for key, own in p.state.items():
                    theirs = state.get(p.name, {}).get(key)
                    if p.name in state and (
                        not isinstance(theirs, np.ndarray)
                        or (theirs.shape, theirs.dtype) != (own.shape, own.dtype)
                    ):
                        found = (
                            f"{theirs.dtype} of shape {theirs.shape}"
                            if isinstance(theirs, np.ndarray)
                            else repr(theirs)
                        )
                        wrong.append(
                            f"{p.name!r} {key}: {found}, wanted {own.dtype} of shape {own.shape}"
                        )
                if p.name in state and (extra := set(state[p.name]) - {"step", *p.state}):
                    wrong.append(f"{p.name!r}: unknown {', '.join(sorted(extra))}")
            if [list(g["params"]) for g in groups] != [g["param_names"] for g in self._groups]:
                wrong.append("param_groups: other parameters in them")
            if wrong:
                raise ValueError("state_dict: " + "; ".join(wrong))
            values = []
            for own_group, group in zip(self._groups, groups, strict=True):
                plain = {
                    name: v
                    for name, v in group.items()
                    if name != "params" and not own_group.scheduled(name)
                }
                values.append(own_group.checked(plain))
            counts = [int(state[p.name]["step"]) for p in self._parameters]
            iterations = int(state_dict["iterations"])

            for own_group, merged in zip(self._groups, values, strict=True):
                own_group._values = merged
            for p in self._parameters:
                for key, own in p.state.items():
                    own[...] = state[p.name][key]
            self._plan.restore(iterations, counts)

    def __getstate__(self) -> dict[str, Any]:
        with self._turn:
            keep = {
                name: value for name, value in vars(self).items() if name not in ("_turn", "_plan")
            }
            return keep | {"counters": (self._plan.iterations, self._plan.counts())}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        counters = kept.pop("counters")
        vars(self).update(kept)
        self._turn = Turn()
        self._plan = self._planned(self._parameters)
        self._plan.restore(*counters)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}("]
        for i, group in enumerate(self._groups):
            lines.append(
                f"  group {i}: {len(group['params'])} arrays, {sum(x.size for x in group['params'])} parameters"
            )
            lines += [f"    {name}: {value!r}" for name, value in group._values.items()]
        return "\n".join([*lines, ")"])


class Groups(list[Tree]):
    """The tree of an optimizer with groups: one tree each."""


def is_groups(params: Any) -> bool:
    """Whether params is a list of groups, and not a nested structure."""
    return (
        is_sequence(params)
        and len(params) > 0
        and all(isinstance(p, Mapping) and "params" in p for p in params)
    )


def check_word(name: str, value: Any, words: tuple[str, ...]) -> str:
    if value not in words:
        raise ValueError(
            f"{name}: {value!r} is unknown; wanted one of {', '.join(map(repr, words))}"
        )
    return str(value)
