"""Parameters and the groups that share hyperparameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from schuss.structure import label

if TYPE_CHECKING:
    from schuss.optimizer import Optimizer


@dataclass
class Parameter:
    """One registered array with what belongs to it."""

    name: str
    x: np.ndarray
    g: np.ndarray | None  # bound, or none
    state: dict[str, np.ndarray]
    group: int
    decays: bool

    def labels(self) -> list[str]:
        """How messages name the array, its gradient and its state."""
        state = label("state", self.name)
        return [
            label("params", self.name),
            label("grads", self.name),
            *(f'{state}["{key}"]' for key in self.state),
        ]


class Group(MutableMapping[str, Any]):
    """One parameter group, live: "params", "param_names", "no_decay", and its hyperparameters.

    What is set is checked, and counts from the next step on. A value that would change which state
    arrays there are is refused, since they are allocated at construction.
    """

    FIXED = ("params", "param_names", "no_decay")

    def __init__(self, rule: type[Optimizer], values: Mapping[str, Any]) -> None:
        self._rule = rule
        self.members: list[Parameter] = []
        self._values: dict[str, Any] = {}
        self.take(self.merged(values))

    def merged(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """All hyperparameters, these among them; raises and changes nothing where one can't be."""
        declared = self._rule.hyperparameters
        for name in values:
            if name in self.FIXED:
                raise ValueError(f"{name}: fixed; use rebind or add_param_group")
            if name not in declared:
                raise TypeError(f"{name}: unknown; {self._rule.__name__} has {', '.join(declared)}")
        before = self._values
        all_old = before or {name: h.default for name, h in declared.items()}
        merged = all_old | {name: declared[name].check(value) for name, value in values.items()}
        states = self._rule.states[self._rule.kernel(merged)]
        for name in values:
            if before and declared[name].fixed and merged[name] != before[name]:
                raise ValueError(f"{name}: {merged[name]!r} comes too late; fixed at construction")
        if before and states != self.states:
            raise ValueError(
                f"{', '.join(f'{name}: {value!r}' for name, value in values.items())} would change "
                f"the state arrays from {self.states} to {states}; they are fixed at construction"
            )
        return merged

    def take(self, merged: dict[str, Any]) -> None:
        """Sets what `merged` has checked."""
        declared = self._rule.hyperparameters
        self._values = merged
        self._scheduled = [name for name in merged if declared[name].scheduled(merged[name])]
        self.kernel = self._rule.kernel(merged)
        self.states = self._rule.states[self.kernel]

    def at(self, iterations: int) -> dict[str, Any]:
        """The plain value of each hyperparameter after so many finished steps."""
        if not self._scheduled:
            return self._values
        declared = self._rule.hyperparameters
        now = {name: declared[name].at(self._values[name], iterations) for name in self._scheduled}
        return self._values | now

    def scheduled(self, name: str) -> bool:
        """Whether a callable is set."""
        return name in self._scheduled

    def __getitem__(self, name: str) -> Any:
        if name == "params":
            return [p.x for p in self.members]
        if name == "param_names":
            return [p.name for p in self.members]
        if name == "no_decay":
            return [p.name for p in self.members if not p.decays]
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.take(self.merged({name: value}))

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name}: a group keeps all its options; set it instead")

    def __iter__(self) -> Iterator[str]:
        return iter((*self.FIXED, *self._values))

    def __len__(self) -> int:
        return len(self.FIXED) + len(self._values)

    def __repr__(self) -> str:
        size = sum(p.x.size for p in self.members)
        options = ", ".join(f"{name}={value!r}" for name, value in self._values.items())
        return f"Group({len(self.members)} arrays, {size} parameters, {options})"
