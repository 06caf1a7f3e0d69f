"""The rules as optimizers of PyTorch's, which step tensors on the CPU where they lie."""

from __future__ import annotations

import copy
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import getdoc
from itertools import chain, islice
from textwrap import indent
from typing import Any, ClassVar
from weakref import proxy

import numpy as np
import torch
from torch.autograd import profiler
from torch.autograd.graph import increment_version
from torch.optim.optimizer import _global_optimizer_post_hooks as global_post_hooks
from torch.optim.optimizer import _global_optimizer_pre_hooks as global_pre_hooks

from schuss import _core
from schuss.engine.declare import REQUIRED, Hyperparameter, Pair, Scheduled
from schuss.engine.groups import Group
from schuss.engine.guard import shorten
from schuss.engine.memory import address
from schuss.engine.optimizer import Optimizer as OfArrays
from schuss.engine.optimizer import signature
from schuss.engine.saved import written
from schuss.reference.storage import CODED
from schuss.rules import RULES, matrix
from schuss.torch.state import (
    BESIDE,
    hyperparameters,
    is_state,
    plain,
    read,
    require_groups,
)
from schuss.torch.tensors import (
    array_of,
    axes_in_memory,
    require_like,
    require_steppable,
    rows_of,
    tensor_of,
)

# Arguments of PyTorch's classes that choose among its implementations: any will do of the first,
# the others may only be off.
IMPLEMENTATIONS = ("foreach", "fused")
REFUSED = ("capturable", "differentiable")

# DLPack's functions for tensors, which tell of one without making an object: PyTorch has them from
# 2.10 on. Without them each gradient is made an array.
EXCHANGE = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)

# What some of PyTorch's groups say in place of decay_mode, and what is not taken of groups.
DECOUPLED = "decoupled_weight_decay"
LEFT = ("params", "param_names", DECOUPLED)

LINE = 64  # bytes of a cache line

# Held where an optimizer of arrays is made: threads that step the same tensors have the same.
MAKING = threading.RLock()


class Link:
    """A group of PyTorch's, and those of the optimizer of arrays that follow it."""

    def __init__(self, group: dict[str, Any], own: Sequence[Group], rule: type[OfArrays]) -> None:
        self.group, self.own, self.declared = group, own, rule.hyperparameters
        self.given = values_of(group, self.declared)

    def follow(self) -> bool:
        """Sets what has changed, in each group that has it; whether some may change unseen."""
        given = values_of(self.group, self.declared)
        for (name, declared), value, before in zip(
            self.declared.items(), given, self.given, strict=True
        ):
            if name == "lr" and declared.fixed:
                continue  # where step sizes start: schedules set it all the same, as in PyTorch
            if value is not before and value != before:
                for own in self.own:
                    if own.rule.hyperparameters.get(name) is declared:
                        own[name] = value
        self.given = given
        return any(changes_in_place(self.group[name]) for name in self.declared)


class Member:
    """A tensor of the user's, and what is stepped for it: mostly the same."""

    def __init__(self, tensor: torch.Tensor, stepped: torch.Tensor, label: str) -> None:
        require_steppable(stepped, label)
        self.tensor, self.stepped, self.label = tensor, stepped, label
        self.axes = axes_in_memory(stepped)  # in which it is contiguous
        self.turned = self.axes != sorted(self.axes)
        self.memory = array_of(stepped)
        self.state: dict[str, torch.Tensor] = {}  # the memory of the arrays of its state

    def in_memory(self, a: Any) -> Any:
        """An array or tensor of the same shape, with its axes in that order."""
        same = self.turned and getattr(a, "shape", None) == self.stepped.shape
        if not same:
            return a
        return a.permute(self.axes) if isinstance(a, torch.Tensor) else a.transpose(self.axes)

    def show(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes arrays that lie beside it as its state."""
        shape = self.in_memory(self.memory).shape
        back = np.argsort(self.axes)
        self.state = {
            key: tensor_of(a.transpose(back) if self.turned and a.shape == shape else a)
            for key, a in arrays.items()
        }


class Optimizer(torch.optim.Optimizer):
    """Steps tensors on the CPU in place, by a rule of schuss; the base of a class for each.

        opt = schuss.torch.AdamW(model.parameters(), lr=3e-4)

    params   tensors, named tensors or groups, as PyTorch's optimizers take them: dense, on the CPU,
             in float32, float64, float16 or bfloat16
    lr       learning rate of the groups that have none of their own

    Hyperparameters, with PyTorch's defaults, are in `param_groups`; options of the whole, such as
    clip_norm, ema, state_dtype and master, go to the constructor alone: both as in the rule's
    class. State is made at the first step, in float32 for tensors of 16 bits, unless state_dtype
    says otherwise. `state` and `state_dict` have it in PyTorch's form, as tensors of the memory
    that is stepped, and `load_state_dict` takes PyTorch's, too. A sparse gradient counts as Rows.
    `arrays` is the optimizer of arrays that steps, with grad_norm, averaged() and more.

    foreach and fused are accepted, and change nothing; capturable and differentiable are refused.
    Raises TypeError or ValueError that name what is wrong, at the beginning or in a step, which has
    changed nothing then.
    """

    rule: ClassVar[type[OfArrays]] = OfArrays

    _state: dict[Any, Any]
    _picture: list[tuple[Any, Any]] | None  # of the state, as it was shown since the last step
    _arrays: OfArrays | None
    _members: Sequence[Member] = ()

    def __init__(self, params: Any, lr: Any = None, **options: Any) -> None:
        try:
            given = options if lr is None else {"lr": lr, **options}
            super().__init__(params, self._begin(given))
        except (TypeError, ValueError) as error:
            shorten(error)
            raise

    def _begin(self, options: dict[str, Any]) -> dict[str, Any]:
        """Keeps the options of the whole; returns the hyperparameters, with their defaults."""
        for name in REFUSED:
            if options.pop(name, False):
                raise ValueError(f"{name}: no step of schuss can be; leave it off")
        for name in IMPLEMENTATIONS:
            options.pop(name, None)
        rule = self.rule
        whole = {*rule.options, *rule.apart} - {"grads"}
        self._options = {name: options.pop(name) for name in whole & options.keys()}
        preset = options.pop("preset", "torch" if "torch" in rule.presets else None)
        plain = dict(zip(options, values_of(options, options), strict=True))
        values = dict(Group(rule, {"preset": preset, **plain}).settings.values)
        self._try(values | {"bounds": None})  # which may be for one array
        return values | options

    def _try(self, values: dict[str, Any]) -> OfArrays:
        """An optimizer of one small array, which raises where the options are wrong."""
        options = {
            name: value
            for name, value in self._options.items()
            if not (name == "state_dir" or (name in self.rule.apart and callable(value)))
        }
        return self.rule([np.zeros((1, CODED), np.float32)], **values, **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Takes in more tensors: {"params": tensors, **what differs from the constructor's}."""
        before = len(self.param_groups)
        super().add_param_group(param_group)
        try:
            group, declared = self.param_groups[-1], self.rule.hyperparameters
            Group(self.rule, dict(zip(declared, values_of(group, declared), strict=True)))
            first = len(self._tensors_of_groups()) - len(group["params"])
            for i, x in enumerate(group["params"], first):
                require_steppable(x, f"params[{i}]", self._is_elsewhere(x))
        except BaseException:
            del self.param_groups[before:]
            raise

    def _tensors_of_groups(self) -> list[torch.Tensor]:
        """The user's tensors, in their order."""
        return [x for group in self.param_groups for x in group["params"]]

    # ---- The step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps every tensor that has a gradient; returns what closure returned.

        closure   called first: clears the gradients, computes the loss and its gradients, and
                  returns the loss, of which rules hear that read it. Default None
        """
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or global_pre_hooks
            or global_post_hooks
            or profiler._is_profiler_enabled
        ):
            return self._hooked_step() if closure is None else self._hooked_step(closure)
        return self._step(closure)

    # PyTorch would wrap every step in what serves hooks, and takes as long as a small step.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        try:
            self._carry_out(plain(loss))
        except (TypeError, ValueError) as error:
            shorten(error)
            raise
        return loss

    _hooked_step = torch.optim.Optimizer.profile_hook_step(_step)

    def _carry_out(self, loss: Any) -> None:
        lr: Any = False
        if self._arrays is not None and self._picture is None:
            lr = self._tensors.rate(self.param_groups)
        arrays = self._arrays
        if arrays is None or lr is False:
            arrays, lr = self.arrays, None
        with arrays._changing():
            self._tensors.step(arrays._plan, lr, loss)

    @property
    def arrays(self) -> OfArrays:
        """The optimizer of arrays that steps the tensors' memory, with the groups' settings."""
        with MAKING:
            if self._arrays is None or not self._is_as_shown():
                return self._make()
            unseen = [link.follow() for link in self._links]
            if not any(unseen):
                self._tensors.follow()
            return self._arrays

    def _is_elsewhere(self, x: torch.Tensor) -> bool:
        """Whether a tensor is stepped in a copy of its own."""
        return False

    def _stepped(self, x: torch.Tensor) -> torch.Tensor:
        """The tensor on the CPU that is stepped in place, and has the gradient."""
        return x

    def _make(self) -> OfArrays:
        """It takes over what is in the state, and the state then has tensors of its arrays."""
        if self._members and "state_dir" in self._options:
            raise ValueError(
                "state_dir: the state of these tensors lies in files there; for other tensors, "
                "groups or state make another optimizer, with a folder of its own"
            )
        tensors = enumerate(self._tensors_of_groups())
        members = [Member(x, self._stepped(x), f"params[{i}]") for i, x in tensors]
        for m in members:
            if m.turned and self._looks_at_shapes():
                raise ValueError(
                    f"{m.label}: its axes lie in the order {m.axes}, but {self.rule.__name__} "
                    "looks at rows, matrices or places here; create it as x.contiguous()"
                )
        declared = self.rule.hyperparameters
        groups = [
            {**dict(zip(declared, values_of(group, declared), strict=True)), "params": own}
            for group, own in zip(self.param_groups, self._by_group(members), strict=True)
        ]
        arrays = self.rule(groups, **self._options_by_name())
        self._take_over(arrays, members)
        size = len(arrays.param_groups) // len(groups)  # those of matrices are two each
        self._links = [
            Link(group, arrays.param_groups[i * size : (i + 1) * size], self.rule)
            for i, group in enumerate(self.param_groups)
        ]
        rest = np.zeros(max(m.memory.nbytes for m in members) + LINE, np.uint8)
        rest = rest[-address(rest) % LINE :]  # read by nobody, so that it takes no memory
        own = proxy(self)  # or the last that holds it would leave it to the garbage collector

        def look(number: int, gradient: torch.Tensor) -> Any:
            return own._look(number, gradient)

        self._tensors = _core.Tensors(EXCHANGE, torch.Tensor, look, increment_version)
        names = "lr", *(name for name in declared if name != "lr")
        any_rate = len(arrays.param_groups) == 1 and takes_any(declared["lr"])
        pairs = zip(members, arrays._parameters, strict=True)
        for group in self.param_groups:
            self._tensors.begin_group(group, names, any_rate)
            for m, p in islice(pairs, len(group["params"])):
                g = np.ndarray(p.x.shape, p.x.dtype, rest, strides=p.x.strides)
                self._tensors.add(m.tensor, m.stepped, m.memory, g)
                m.show(p.saved)
        self._members, self._arrays = members, arrays
        self._show()
        return arrays

    def _options_by_name(self) -> dict[str, Any]:
        """Those of the whole; what asks by name hears the tensors' names, where they have some."""
        names = [name for group in self.param_groups for name in group.get("param_names", ())]

        def by_name(ask: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
            return lambda number, x: ask(names[int(number)], x)

        asked = {k: v for k, v in self._options.items() if k in self.rule.apart and callable(v)}
        return self._options | {k: by_name(ask) for k, ask in asked.items() if names}

    def _by_group(self, members: Iterable[Member]) -> list[list[np.ndarray]]:
        """The arrays that are stepped, in each group."""
        arrays = (m.in_memory(m.memory) for m in members)
        return [list(islice(arrays, len(group["params"]))) for group in self.param_groups]

    def _looks_at_shapes(self) -> bool:
        """Whether rows, matrices or places are told apart in a tensor, so that its axes count."""
        return (
            "matrix" in self.rule.apart
            or self.rule.factors is not OfArrays.factors
            or self._options.get("clip_norm_per") == "row"
            or any(Pair.has_arrays(group["bounds"]) for group in self.param_groups)
        )

    def _look(self, number: int, gradient: torch.Tensor) -> Any:
        """What stands for a gradient that doesn't lie as its tensor did when it was registered."""
        self._follow_memory()
        return self._as_array(number, gradient)

    def _as_array(self, number: int, gradient: torch.Tensor) -> Any:
        """A gradient as the optimizer of arrays takes it."""
        m = self._members[number]
        if gradient.layout is not torch.strided:
            if m.turned:
                raise ValueError(f"{m.label}.grad: {gradient.layout}, wanted {m.label} contiguous")
            return rows_of(gradient, f"{m.label}.grad")
        require_like(gradient, m.stepped, m.label)
        return m.in_memory(array_of(gradient.resolve_neg()))

    def _follow_memory(self) -> None:
        """Goes on in the memory that the tensors have now."""
        arrays = self._arrays
        assert arrays is not None
        now = [Member(m.tensor, self._stepped(m.tensor), m.label) for m in self._members]
        if all(
            address(m.memory) == address(p.x) for m, p in zip(now, arrays._parameters, strict=True)
        ):
            return
        arrays.rebind(self._by_group(now))
        for i, (m, p) in enumerate(zip(now, arrays._parameters, strict=True)):
            self._tensors.replace(i, m.memory)
            m.show(p.saved)
        self._members = now

    def refresh(self) -> None:
        """Takes masters and running means anew from the tensors, which were written to."""
        arrays = self.arrays
        self._follow_memory()
        arrays.refresh()

    # ---- State

    @property
    def state(self) -> dict[Any, Any]:
        """The state of each tensor that was stepped, by tensor, as PyTorch has it.

        Its tensors have the memory that is stepped; what is put in their place is taken over by the
        next step. Behind that, ask for the state again.
        """
        if self._arrays is not None and self._picture is None:
            self._show()
            self._picture = list(self._pictured())
        return self._state

    @state.setter
    def state(self, state: dict[Any, Any]) -> None:
        self._state = state
        self._arrays = None
        self._picture = None

    def _show(self) -> None:
        """Brings the state up to date."""
        arrays = self._arrays
        assert arrays is not None
        most = 0
        for i, m in enumerate(self._members):
            counters = arrays._counters_of(i)
            most = max(most, counters["step"])
            if counters["step"]:
                own = self._state.setdefault(m.tensor, {})
                own.update(m.state)
                for name, value in counters.items():
                    if not (name in own and own[name] == value):
                        kind = number_type(name, value)
                        own[name] = torch.tensor(value, dtype=kind, device="cpu")
        beside = {
            "iterations": arrays.iterations,
            "last_norm": arrays._plan.last_norm,
            "shared": dict(zip(arrays.shared, arrays._plan.shared, strict=True)),
        }
        self._state.pop(BESIDE, None)
        if most and beside != {"iterations": most, "last_norm": None, "shared": {}}:
            self._state[BESIDE] = beside

    def _pictured(self) -> Iterator[tuple[Any, Any]]:
        """Every entry that is ours, and of counters the number: these change in place."""
        yield self._state.get(BESIDE), None
        for m in self._members:
            own = self._state.get(m.tensor) or {}
            yield from ((own.get(name), None) for name in m.state)
            for name in ("step", *self.rule.memory):
                value = own.get(name)
                yield value, value.item() if isinstance(value, torch.Tensor) else None

    def _is_as_shown(self) -> bool:
        """Whether the user has left groups and state as they were."""
        before, self._picture = self._picture, None  # which is there where it was looked at
        held = self._tensors.holds(self.param_groups)
        if before is None and not held:
            self._show()  # what others in the groups go on from
        elif held and (before is None or same_pictures(before, [*self._pictured()])):
            return True
        self._arrays = None
        return False

    def _take_over(self, arrays: OfArrays, members: list[Member]) -> None:
        """Puts what is in the state into the optimizer of arrays."""
        found = {m.tensor: self._state.get(m.tensor) or {} for m in members}
        if not any(found.values()):
            return
        saved = written(arrays)
        settings = {id(p): g.settings for g in arrays.param_groups for p in g.members}
        for m, p in zip(members, arrays._parameters, strict=True):
            own = settings[id(p)]
            start = {**own.rule.memory, **own.rule.initial(own.values)}
            given = {
                key: m.in_memory(value)
                for key, value in found[m.tensor].items()
                if key in p.saved or is_state(key)  # others are the user's own
            }
            saved["state"][p.name] = read(p, given, start)
        steps = [own.get("step") for own in saved["state"].values()]
        most = max(n for n in steps if isinstance(n, int))
        arrays.load_state_dict(saved | {"iterations": most} | self._state.get(BESIDE, {}))

    def state_dict(self) -> dict[str, Any]:
        """Groups and state in PyTorch's form, by the tensors' positions; the memory is shared."""
        saved = super().state_dict()
        for group in saved["param_groups"]:
            if group["decay_mode"] == "decoupled":
                group[DECOUPLED] = True
        return saved

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where a state dictionary was taken, of this class or of PyTorch's same rule.

        state_dict   as `state_dict` gives it: by the tensors' positions

        The state is copied. Raises ValueError that lists what doesn't fit; nothing has changed
        then.
        """
        state_dict = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            other = before(self, state_dict)
            state_dict = state_dict if other is None else other
        saved = state_dict["param_groups"]
        require_groups(saved)
        sizes = [len(g["params"]) for g in saved], [len(g["params"]) for g in self.param_groups]
        if sizes[0] != sizes[1]:
            raise ValueError(f"param_groups: of {sizes[0]} parameters; wanted {sizes[1]}")
        tensors = dict(
            zip(
                chain.from_iterable(g["params"] for g in saved),
                self._tensors_of_groups(),
                strict=True,
            )
        )
        state: dict[Any, Any] = defaultdict(dict)
        for key, own in state_dict["state"].items():
            state[tensors.get(key, key)] = dict(own) if isinstance(own, Mapping) else own
        previous = self._state, self._arrays, self._picture
        groups = [dict(group) for group in self.param_groups]
        try:
            for group, own in zip(self.param_groups, saved, strict=True):
                values = {k: v for k, v in own.items() if k not in LEFT}
                group.update(copy.deepcopy(values) | hyperparameters(self.rule, own))
            self.state = state
            _ = self.arrays
        except BaseException as error:
            self._state, self._arrays, self._picture = previous
            for group, values in zip(self.param_groups, groups, strict=True):
                group.clear()
                group.update(values)
            if isinstance(error, TypeError | ValueError):
                shorten(error)
            raise
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        options = {k: v for k, v in self._options.items() if k != "state_dir"}  # as of arrays
        return super().__getstate__() | {"_options": options}

    def __setstate__(self, given: dict[str, Any]) -> None:
        given = dict(given)
        state = given.pop("state", None)
        super().__setstate__(given)
        if state is not None:
            self.state = state


def values_of(group: Mapping[str, Any], names: Iterable[str]) -> tuple[Any, ...]:
    """Hyperparameters as plain numbers, of which some may be tensors of one element."""

    def number(name: str, value: Any) -> Any:
        if isinstance(value, tuple | list):
            return tuple(number(name, one) for one in value)
        if not isinstance(value, torch.Tensor):
            return value
        if value.numel() != 1:
            raise ValueError(f"{name}: a tensor of {value.numel()} elements, wanted one")
        return value.item()

    return tuple(number(name, group[name]) for name in names)


def takes_any(rate: Hyperparameter) -> bool:
    """Whether a step may be told any rate that isn't negative."""
    return not rate.fixed and isinstance(rate, Scheduled) and 0.0 in rate.interval


def changes_in_place(value: Any) -> bool:
    """Whether a hyperparameter may be another number and yet the same object."""
    if isinstance(value, tuple):
        return any(map(changes_in_place, value))
    return isinstance(value, list | torch.Tensor)


def number_type(name: str, value: float) -> torch.dtype:
    """PyTorch's fused steps want a count in float32, as long as that has it."""
    return torch.float32 if name == "step" and value < 2**24 else torch.float64


def same_pictures(a: list[tuple[Any, Any]], b: list[tuple[Any, Any]]) -> bool:
    """Whether the same objects are at the same places, with the same numbers."""
    return len(a) == len(b) and all(
        x is y and own == other for (x, own), (y, other) in zip(a, b, strict=True)
    )


def optimizer_of(rule: type[OfArrays]) -> type[Optimizer]:
    """The class of a rule."""
    text = f"""{rule.__name__} of PyTorch's tensors on the CPU: see schuss.torch.Optimizer.

    The rule, with PyTorch's defaults where it has them:

{indent(getdoc(rule) or "", "    ")}
"""
    values = {"preset": None, **rule.defaults()}
    own = {"__doc__": text, "__module__": "schuss.torch", "rule": rule}
    own["__signature__"] = signature(
        {"params": REQUIRED, "lr": None}, {k: v for k, v in values.items() if k != "lr"}
    )
    return type(rule.__name__, (Optimizer,), own)


EACH: tuple[type[OfArrays], ...] = (*RULES, *matrix.RULES)
CLASSES = {rule.__name__: optimizer_of(rule) for rule in EACH}
globals().update(CLASSES)
