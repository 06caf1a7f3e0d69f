"""How a hyperparameter is declared: its default and its range once, in the class of the rule.

    class SGD(Optimizer):
        lr: Number = number(1e-3, "[0, inf)")

The declaration checks what is passed and what is set later, and makes `opt.lr` read the first group
and set all of them.
"""

from __future__ import annotations

import numbers as abstract
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from schuss.optimizer import Optimizer

Number = (
    float | Callable[[int], float]
)  # a callable takes the number of finished steps and returns the value of the coming one


class Interval:
    """A range of numbers, written as in mathematics: "[0, 1)"."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.low, self.high = (float(end) for end in text[1:-1].split(","))
        self.low_belongs, self.high_belongs = text[0] == "[", text[-1] == "]"

    def __contains__(self, value: float) -> bool:
        return (
            self.low < value < self.high
            or (self.low_belongs and value == self.low)
            or (self.high_belongs and value == self.high)
        )

    def check(self, name: str, value: Any) -> float:
        """The value as a float; the errors name the argument, the value and the range."""
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value[()]
        if isinstance(value, bool | np.bool_) or not isinstance(value, abstract.Real):
            raise TypeError(f"{name}: {value!r} is not a number; wanted one in {self.text}")
        if float(value) not in self:
            raise ValueError(
                f"{name}: {float(value)!r} is out of range; wanted a number in {self.text}"
            )
        return float(value)


class Hyperparameter:
    """The declaration of one hyperparameter; a descriptor on the rule's class."""

    fixed = False  # whether it counts at construction only

    def __init__(self, default: Any) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Optimizer | None, owner: type) -> Any:
        return self if optimizer is None else optimizer.param_groups[0][self.name]

    def __set__(self, optimizer: Optimizer, value: Any) -> None:
        merged = [group.merged({self.name: value}) for group in optimizer.param_groups]
        for group, values in zip(optimizer.param_groups, merged, strict=True):
            group.take(values)

    def check(self, value: Any) -> Any:
        """The value as it is stored; raises TypeError or ValueError."""
        raise NotImplementedError

    def scheduled(self, value: Any) -> bool:
        """Whether a stored value changes by itself from step to step."""
        return False

    def at(self, value: Any, iterations: int) -> Any:
        """The stored value's plain value after so many finished steps of the optimizer."""
        return value


class _Constant(Hyperparameter):
    fixed = True

    def __init__(self, default: float, interval: str) -> None:
        super().__init__(default)
        self.interval = Interval(interval)

    def check(self, value: Any) -> Any:
        return self.interval.check(self.name, value)


class _Number(_Constant):
    fixed = False

    def check(self, value: Any) -> Any:
        return value if callable(value) else super().check(value)

    def scheduled(self, value: Any) -> bool:
        return callable(value)

    def at(self, value: Any, iterations: int) -> Any:
        if not callable(value):
            return value
        return self.interval.check(f"{self.name} after {iterations} steps", value(iterations))


class _Numbers(Hyperparameter):
    def __init__(self, default: tuple[float, ...], interval: str) -> None:
        super().__init__(default)
        self.interval = interval

    def __set_name__(self, owner: type, name: str) -> None:
        super().__set_name__(owner, name)
        self.parts = [_Number(part, self.interval) for part in self.default]
        for i, part in enumerate(self.parts):
            part.name = f"{name}[{i}]"

    def check(self, value: Any) -> Any:
        if not isinstance(value, tuple | list | np.ndarray) or len(value) != len(self.parts):
            raise TypeError(
                f"{self.name}: {value!r} is not {len(self.parts)} numbers in {self.interval}"
            )
        return tuple(part.check(v) for part, v in zip(self.parts, value, strict=True))

    def scheduled(self, value: Any) -> bool:
        return any(map(callable, value))

    def at(self, value: Any, iterations: int) -> Any:
        return tuple(part.at(v, iterations) for part, v in zip(self.parts, value, strict=True))


class _Flag(Hyperparameter):
    def check(self, value: Any) -> Any:
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{self.name}: {value!r} is not True or False")
        return bool(value)


class _Choice(Hyperparameter):
    def __init__(self, default: str, choices: tuple[str, ...]) -> None:
        super().__init__(default)
        self.choices = choices

    def check(self, value: Any) -> Any:
        return check_word(self.name, value, self.choices)


def constant(default: float, interval: str) -> Any:
    """A number in an interval that counts at construction only."""
    return _Constant(default, interval)


def number(default: float, interval: str) -> Any:
    """A number in an interval, or a callable."""
    return _Number(default, interval)


def numbers(default: tuple[float, ...], interval: str) -> Any:
    """So many numbers in an interval, each of which may be a callable."""
    return _Numbers(default, interval)


def flag(default: bool) -> Any:
    """True or False."""
    return _Flag(default)


def choice(default: str, *choices: str) -> Any:
    """One of some words."""
    return _Choice(default, choices)


def check_word(name: str, value: Any, words: tuple[str, ...]) -> str:
    """One of some words."""
    if value not in words:
        raise ValueError(f"{name}: {value!r} is unknown; wanted {' or '.join(map(repr, words))}")
    return str(value)


def check_int(name: str, value: Any, low: int) -> int:
    """A whole number not below `low`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, abstract.Integral):
        raise TypeError(f"{name}: {value!r} is not a whole number")
    if value < low:
        raise ValueError(f"{name}: {value} is out of range; wanted a whole number in [{low}, inf)")
    return int(value)
