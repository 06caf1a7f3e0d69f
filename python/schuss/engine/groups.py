"""Parameters and the groups that share hyperparameters."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from schuss.engine.codes import BlockFloat8, Remainder, arrays_of, saved_form
from schuss.engine.declare import REQUIRED, present_word
from schuss.engine.guard import shorten
from schuss.engine.rule import Rule
from schuss.engine.structure import described, label
from schuss.reference.storage import computing, weight, within
from schuss.reference.sums import WANTED

# What is counted of each row, by the option `rows`: its steps, or the array's at its last one.
ROW_COUNTS = {"counted": "row_step", "decayed": "row_last"}
FACTORS = ("row_var", "col_var")  # state in the place of a state array: see Rule.factors


@dataclass
class Parameter:
    """One registered array with what belongs to it."""

    name: str
    x: np.ndarray
    g: np.ndarray | None  # bound, or none
    state: dict[str, Any]  # of the rule: arrays, or BlockFloat8
    beside: dict[str, np.ndarray]  # by role: master, average, low, high of the stages, row counts
    group: int
    decays: bool  # whether its group's weight decay is for it, too
    position: int  # elements of the parameters before it
    memory: list[float] = field(default_factory=list)  # at the start: numbers beside the arrays
    starting: tuple[str, ...] = ()  # state that starts at the parameter
    case: int = 0  # of its rule
    matrices: dict[str, np.ndarray] = field(default_factory=dict)  # state that no kernel sees
    converted: np.ndarray | None = None  # room for a gradient of another type or order
    kind: str = field(init=False)  # what an array in its place has to be
    copies: list[np.ndarray] = field(init=False)  # what was taken from the parameter at the start

    def __post_init__(self) -> None:
        self.kind = described(self.x)
        beside = [a for role, a in self.beside.items() if role in ("master", "average")]
        self.copies = [*beside, *(self.state[key] for key in self.starting if key in self.state)]

    @property
    def saved(self) -> dict[str, np.ndarray]:
        """The arrays that a resumed run needs, under the names that the user sees."""
        master = "remainder" if self.has_remainder else "master"
        names = {"master": master, "average": "ema"} | {k: k for k in ROW_COUNTS.values()}
        beside = {names[k]: a for k, a in self.beside.items() if k in names}
        state = {key: saved_form(a) for key, a in arrays_of(self.state).items()}
        return state | self.matrices | beside

    def shown(self, x: np.ndarray) -> dict[str, Any]:
        """The same as numbers: codes and their scales are one, and so are x and its remainder.

        x   the parameter, or what is kept of it while something else stands in its place
        """
        shown = {**self.state, **self.matrices}
        for role, a in self.beside.items():
            if role == "master":
                shown[role] = Remainder(x, a) if a.dtype == np.int16 else a
            elif role == "average":
                shown["ema"] = a
            elif role in ROW_COUNTS.values():
                shown[role] = a
        return shown

    @property
    def has_remainder(self) -> bool:
        """Whether x is a part of its float32 weight."""
        return "master" in self.beside and self.beside["master"].dtype == np.int16

    @property
    def weight(self) -> np.ndarray:
        """What a step moves, in the type that it computes in."""
        x = np.asarray(self.x)
        return weight(x, self.beside.get("master"), computing(x.dtype))

    def anew(self, x: Any) -> list[tuple[np.ndarray, Any]]:
        """What the copies become where they are taken anew from the parameter, or another array."""
        return [(a, 0 if a.dtype == np.int16 else x) for a in self.copies]

    def require_writeable_copies(self) -> None:
        """Raises where `refresh` could not write."""
        if not all(a.flags.writeable for a in self.copies):
            raise ValueError(f"{label('state', self.name)}: read-only, but it is taken anew")

    def keeps(self) -> list[tuple[str, np.ndarray]]:
        """All arrays beside x and its gradient, each with its role in a step."""
        state: list[tuple[str, np.ndarray]] = []
        for key, a in self.state.items():
            own = key if key in FACTORS else "state"
            codes = isinstance(a, BlockFloat8)
            state += [("codes", a.codes), ("scales", a.scales)] if codes else [(own, a)]
        return [*state, *self.beside.items()]

    def labels(self) -> list[str]:
        """How messages name the array, its gradient and what is beside them."""
        state = label("state", self.name)
        return [
            label("params", self.name),
            label("grads", self.name),
            *(f'{state}["{key}"]' for key in (*arrays_of(self.state), *self.beside)),
        ]


class Swapped(NamedTuple):
    """What stands in the place of the parameters for a while, and what comes back."""

    form: str  # "averaged" or "evaluated"
    says: str  # why no step may be taken, and what ends it
    weights: list[tuple[Parameter, np.ndarray]]


class Averaging:
    """One `with opt.averaged()`, as long as it is open."""


class Reading(dict[str, Any]):
    """Values that know which of them have been read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)


class Form(NamedTuple):
    """What settings decide besides numbers; those with the same form differ in numbers alone."""

    kernel: str
    states: tuple[str, ...]
    wanted: int  # the sums that a step has to know first, as bits
    sums: bool  # whether the rule asks for some
    adapts: bool  # whether they change the scalars of each array
    reads_loss: bool
    clips: bool  # whether each element of a gradient is clipped, which clip_norm is not with
    decisive: frozenset[str]  # the hyperparameters that were read to find this out

    @classmethod
    def of(cls, rule: type[Rule], values: Mapping[str, Any]) -> Form:
        """Raises where the values don't go together."""
        h = Reading(values)
        kernel, sums = rule.kernel(h), rule.sums(h)
        names = (*sums, *(("agree",) if h["cautious"] else ()))
        wanted = functools.reduce(operator.or_, (WANTED[name] for name in names), 0)
        adapts = bool(h["cautious"] or (sums and not rule.shared))
        reads_loss = rule.reads_loss(h)
        clips = h["clip_value"] != math.inf
        states, decisive = rule.states[kernel], frozenset(h.read)
        return cls(kernel, states, wanted, bool(sums), adapts, reads_loss, clips, decisive)


class Settings(NamedTuple):
    """A group's hyperparameters at one moment: replaced as a whole, so that a step sees no half.

    The compiled sequence reads these fields by their places.
    """

    rule: type[Rule]
    values: dict[str, Any]
    scheduled: tuple[str, ...]  # those with a callable
    kernel: str
    states: tuple[str, ...]
    form: Form

    @classmethod
    def checked(cls, rule: type[Rule], values: dict[str, Any]) -> Settings:
        """Raises where the values don't go together."""
        form = Form.of(rule, values)
        scheduled = (k for k, h in rule.hyperparameters.items() if h.scheduled(values[k]))
        return cls(rule, values, tuple(scheduled), form.kernel, form.states, form)

    def is_like(self, other: Settings) -> bool:
        """Whether these have the same values, so that one of the two can stand for both."""
        if self.rule is not other.rule:
            return False
        return all(is_same(value, other.values[name]) for name, value in self.values.items())

    def with_number(self, name: str, value: Any) -> Settings | None:
        """These with another number, in the same form; None where more than a number changes.

        What a learning rate's schedule outside does before each step, so it is kept short.
        """
        rule, values, scheduled, kernel, states, form = self
        declared = rule.hyperparameters[name]
        if not declared.is_number or name in form.decisive or name in scheduled:
            return None
        value = declared.check(value)
        if declared.scheduled(value):
            return None
        own = rule, {**values, name: value}, scheduled, kernel, states, form
        return tuple.__new__(Settings, own)  # half as long as by the name of its class

    def at(self, iterations: int) -> dict[str, Any]:
        """The plain value of each hyperparameter after so many finished steps."""
        if not self.scheduled:
            return self.values
        values, declared = self.values.copy(), self.rule.hyperparameters
        for name in self.scheduled:
            values[name] = declared[name].at(values[name], iterations)
        return values


def is_same(a: Any, b: Any) -> bool:
    """Whether two values are equal numbers or words; anything else only is what it is itself.

    Schedules that are equal now may go ways of their own, and arrays have no single answer.
    """
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    return a is b or (isinstance(a, str | int | float) and type(a) is type(b) and bool(a == b))


def require_room(bounds: Any, dtype: np.dtype[Any], name: str) -> None:
    """Raises where no finite number of a parameter's type lies within the bounds."""
    if bounds is None:
        return
    low, high = within(bounds, dtype)
    if not np.all((low <= high) & (low < np.inf) & (high > -np.inf)):
        raise ValueError(f"bounds: {bounds!r} holds no number of {dtype}, the type of {name}")


def preset(rule: type[Rule], name: Any) -> dict[str, Any]:
    """The defaults of a rule in another library's or paper's convention; None: PyTorch's."""
    name = present_word("preset", name)
    if name is not None and not (isinstance(name, str) and name in rule.presets):
        has = ", ".join(rule.presets)
        raise ValueError(f"preset: {name!r} is unknown; {rule.__name__} has {has}")
    own = {} if name is None else rule.presets[name]
    return {key: h.default for key, h in rule.hyperparameters.items()} | own


# What other libraries call it.
ELSEWHERE = {
    "learning_rate": "lr",
    "epsilon": "eps",
    "beta1": "betas",
    "beta2": "betas",
    "beta_1": "betas",
    "beta_2": "betas",
    "clipnorm": "clip_norm",
    "global_clipnorm": "clip_norm",
    "clip_grad_norm": "clip_norm",
    "max_norm": "clip_norm",
    "max_grad_norm": "clip_norm",
    "clipvalue": "clip_value",
    "wd": "weight_decay",
    "use_ema": "ema",
    "ema_momentum": "ema",
    "mu": "momentum",
}


def meant(rule: type[Rule], name: str) -> str | None:
    """The option of which a name is a misspelling, or another library's word."""
    from difflib import get_close_matches  # noqa: PLC0415  rarely needed, and not light

    known = [*rule.hyperparameters, *rule.options]
    if ELSEWHERE.get(name) in known:
        return ELSEWHERE[name]
    return next(iter(get_close_matches(name, known, 1, 0.6)), None)


def nearest(rule: type[Rule], name: str) -> str:
    """What is wrong with a name that a group doesn't have, and which was meant."""
    if name in rule.options:
        return (
            f"an option of the optimizer, not of a group; pass it as {rule.__name__}(..., {name}=)"
        )
    found = meant(rule, name)
    if found is None:
        return f"unknown; {rule.__name__} has {', '.join([*rule.hyperparameters, *rule.options])}"
    where = "of the optimizer" if found in rule.options else "of a group"
    return f"unknown; did you mean {found}, an option {where}?"


class Group(MutableMapping[str, Any]):
    """One parameter group, live: "params", "param_names", "no_decay", and its hyperparameters.

    What is set is checked, and counts from the next step on. A value that would change which state
    arrays there are is refused, since they are allocated at construction.
    """

    FIXED = ("params", "param_names", "no_decay")

    def __init__(self, rule: type[Rule], values: Mapping[str, Any]) -> None:
        self.members: list[Parameter] = []
        self.lock: AbstractContextManager[Any] = nullcontext()  # the optimizer's, once it has one
        given = {name: value for name, value in values.items() if name != "preset"}
        defaults = preset(rule, values.get("preset"))
        chosen = defaults | self.read(rule, given)
        for name, value in chosen.items():
            if value is REQUIRED:
                raise TypeError(f"{name}: preset {values['preset']!r} has no default; pass one")
        self.settings = Settings.checked(rule, chosen)

    @property
    def rule(self) -> type[Rule]:
        return self.settings.rule

    @classmethod
    def read(cls, rule: type[Rule], values: Mapping[str, Any]) -> dict[str, Any]:
        """The values as they are stored; raises where one can't be."""
        for name in values:
            if name in cls.FIXED:
                raise ValueError(f"{name}: fixed; use rebind or add_param_group")
            if name not in rule.hyperparameters:
                raise TypeError(f"{name}: {nearest(rule, name)}")
        return {name: rule.hyperparameters[name].check(value) for name, value in values.items()}

    def changed(self, name: str, value: Any) -> Settings:
        """The settings with this value; raises and changes nothing where it can't be."""
        settings = self.settings
        quick = settings.with_number(name, value) if name in settings.values else None
        return self.with_values({name: value}) if quick is None else quick

    def with_values(self, values: Mapping[str, Any]) -> Settings:
        """The settings with these values; raises and changes nothing where they can't be."""
        rule, old, states = self.settings.rule, self.settings.values, self.settings.states
        new = self.read(rule, values)
        for name, value in new.items():
            if rule.hyperparameters[name].fixes(old[name], value):
                raise ValueError(f"{name}: {value!r} comes too late; fixed at construction")
        settings = Settings.checked(rule, old | new)
        if "bounds" in new:
            self.require_room(new["bounds"])
        if settings.states != states:
            other = {k: v for k, v in values.items() if not is_same(new[k], old[k])}
            wanted = ", ".join(f"{name}: {value!r}" for name, value in other.items())
            raise ValueError(
                f"{wanted} would change the state arrays from {states} to {settings.states}; "
                "they are fixed at construction"
            )
        return settings

    def require_room(self, bounds: Any) -> None:
        """Raises where a parameter's type has no number within these bounds."""
        for p in {p.x.dtype: p for p in self.members}.values():
            require_room(bounds, p.x.dtype, p.labels()[0])

    def update(self, *values: Any, **more: Any) -> None:
        """Sets several values: all of them or none."""
        try:
            with self.lock:
                self.settings = self.with_values(dict(*values, **more))
        except (TypeError, ValueError) as error:
            shorten(error)
            raise

    def __setitem__(self, name: str, value: Any) -> None:
        try:
            with self.lock:
                self.settings = self.changed(name, value)
        except (TypeError, ValueError) as error:
            shorten(error)
            raise

    def __getitem__(self, name: str) -> Any:
        if name == "params":
            return [p.x for p in self.members]
        if name == "param_names":
            return [p.name for p in self.members]
        if name == "no_decay":
            return [p.name for p in self.members if not p.decays]
        return self.settings.values[name]

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name}: a group keeps all its options; set it instead")

    def __iter__(self) -> Iterator[str]:
        return iter((*self.FIXED, *self.settings.values))

    def __len__(self) -> int:
        return len(self.FIXED) + len(self.settings.values)

    def __repr__(self) -> str:
        size = sum(p.x.size for p in self.members)
        rule, values = self.settings.rule, self.settings.values
        differ = {
            k: v for k, v in values.items() if rule.hyperparameters[k].differs(v) or k == "lr"
        }
        options = ", ".join(f"{name}={value!r}" for name, value in differ.items())
        return f"Group({len(self.members)} arrays, {size} parameters, {options})"

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"lock": nullcontext()}
