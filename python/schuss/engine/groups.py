"""Parameters and the groups that share hyperparameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from schuss.engine.declare import REQUIRED, present_word
from schuss.engine.structure import described, label

if TYPE_CHECKING:
    from schuss.engine.optimizer import Optimizer


@dataclass
class Parameter:
    """One registered array with what belongs to it."""

    name: str
    x: np.ndarray
    g: np.ndarray | None  # bound, or none
    state: dict[str, np.ndarray]  # of the rule
    beside: dict[str, np.ndarray]  # of the stages, by role: master, average, low, high
    group: int
    decays: bool  # whether its group's weight decay is for it, too
    position: int  # elements of the parameters before it
    memory: list[float] = field(default_factory=list)  # at the start: numbers beside the arrays
    matrices: dict[str, np.ndarray] = field(default_factory=dict)  # state that no kernel sees
    kind: str = field(init=False)  # what an array in its place has to be

    def __post_init__(self) -> None:
        self.kind = described(self.x)

    @property
    def saved(self) -> dict[str, np.ndarray]:
        """The arrays that a resumed run needs, under the names that the user sees."""
        names = {"master": "master", "average": "ema"}
        beside = {names[k]: a for k, a in self.beside.items() if k in names}
        return self.state | self.matrices | beside

    def keeps(self) -> list[tuple[str, np.ndarray]]:
        """All arrays beside x and its gradient, each with its role in a step."""
        return [*(("state", a) for a in self.state.values()), *self.beside.items()]

    def labels(self) -> list[str]:
        """How messages name the array, its gradient and what is beside them."""
        state = label("state", self.name)
        return [
            label("params", self.name),
            label("grads", self.name),
            *(f'{state}["{key}"]' for key in (*self.state, *self.beside)),
        ]


class Settings(NamedTuple):
    """A group's hyperparameters at one moment: replaced as a whole, so that a step sees no half."""

    rule: type[Optimizer]
    values: dict[str, Any]
    scheduled: tuple[str, ...]  # those with a callable
    kernel: str
    states: tuple[str, ...]

    @classmethod
    def checked(cls, rule: type[Optimizer], values: dict[str, Any]) -> Settings:
        """Raises where the values don't go together."""
        kernel = rule.kernel(values)
        scheduled = (k for k, h in rule.hyperparameters.items() if h.scheduled(values[k]))
        return cls(rule, values, tuple(scheduled), kernel, rule.states[kernel])

    def at(self, iterations: int) -> dict[str, Any]:
        """The plain value of each hyperparameter after so many finished steps."""
        if not self.scheduled:
            return self.values
        declared, values = self.rule.hyperparameters, self.values
        return values | {k: declared[k].at(values[k], iterations) for k in self.scheduled}


def preset(rule: type[Optimizer], name: Any) -> dict[str, Any]:
    """The defaults of a rule in another library's or paper's convention; None: PyTorch's."""
    name = present_word("preset", name)
    if name is not None and not (isinstance(name, str) and name in rule.presets):
        has = ", ".join(rule.presets)
        raise ValueError(f"preset: {name!r} is unknown; {rule.__name__} has {has}")
    own = {} if name is None else rule.presets[name]
    return {key: h.default for key, h in rule.hyperparameters.items()} | own


class Group(MutableMapping[str, Any]):
    """One parameter group, live: "params", "param_names", "no_decay", and its hyperparameters.

    What is set is checked, and counts from the next step on. A value that would change which state
    arrays there are is refused, since they are allocated at construction.
    """

    FIXED = ("params", "param_names", "no_decay")

    def __init__(self, rule: type[Optimizer], values: Mapping[str, Any]) -> None:
        self.members: list[Parameter] = []
        self.lock: AbstractContextManager[Any] = nullcontext()  # the optimizer's, once it has one
        given = {name: value for name, value in values.items() if name != "preset"}
        defaults = preset(rule, values.get("preset"))
        chosen = defaults | self.read(rule, given)
        for name, value in chosen.items():
            if value is REQUIRED:
                raise TypeError(f"{name}: preset {values['preset']!r} has no default; pass one")
        self.settings = Settings.checked(rule, chosen)

    @classmethod
    def read(cls, rule: type[Optimizer], values: Mapping[str, Any]) -> dict[str, Any]:
        """The values as they are stored; raises where one can't be."""
        for name in values:
            if name in cls.FIXED:
                raise ValueError(f"{name}: fixed; use rebind or add_param_group")
            if name not in rule.hyperparameters:
                has = ", ".join(rule.hyperparameters)
                raise TypeError(f"{name}: unknown; {rule.__name__} has {has}")
        return {name: rule.hyperparameters[name].check(value) for name, value in values.items()}

    def changed(self, values: Mapping[str, Any]) -> Settings:
        """The settings with these values; raises and changes nothing where they can't be."""
        rule, old, _, _, states = self.settings
        new = self.read(rule, values)
        for name, value in new.items():
            if rule.hyperparameters[name].fixes(old[name], value):
                raise ValueError(f"{name}: {value!r} comes too late; fixed at construction")
        settings = Settings.checked(rule, old | new)
        if settings.states != states:
            wanted = ", ".join(f"{name}: {value!r}" for name, value in values.items())
            raise ValueError(
                f"{wanted} would change the state arrays from {states} to {settings.states}; "
                "they are fixed at construction"
            )
        return settings

    def update(self, *values: Any, **more: Any) -> None:
        """Sets several values: all of them or none."""
        with self.lock:
            self.settings = self.changed(dict(*values, **more))

    def __setitem__(self, name: str, value: Any) -> None:
        self.update({name: value})

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
        options = ", ".join(f"{name}={value!r}" for name, value in self.settings.values.items())
        return f"Group({len(self.members)} arrays, {size} parameters, {options})"

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"lock": nullcontext()}
