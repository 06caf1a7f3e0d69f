"""What a plain argument may be; the errors name the argument, the value and what is wanted."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np

# What a rate mostly is: what cosines and means of NumPy's give, too.
FLOATS = (float, np.float64)


def unpacked(value: Any) -> Any:
    """What is in an array of no dimension, or the value itself."""
    return value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    if isinstance(value, np.ndarray) and value.size > 3:
        return f"an array of {value.dtype} of shape {value.shape}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:76]} ..."


def is_number(value: Any) -> bool:
    """Whether it is a real number, also one of bfloat16, of which Python knows nothing."""
    if isinstance(value, bool | np.bool_):
        return False
    if isinstance(value, numbers.Real):
        return True
    return isinstance(value, np.generic) and value.dtype.name == "bfloat16"


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
        if type(value) in FLOATS and self.low < value < self.high:
            return float(value)  # nearly always
        value = unpacked(value)
        if not is_number(value):
            raise TypeError(f"{name}: {shown(value)} is not a number; wanted one in {self.text}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if number not in self:
            raise ValueError(f"{name}: {number!r} is out of range, wanted {self.text}")
        return number


def check_remembered(name: str, value: Any, range_: str = "[-inf, inf]") -> float:
    """A number that a rule remembers: also NaN, which gradients may have made of it."""
    value = unpacked(value)
    if isinstance(value, float | np.floating) and math.isnan(value):
        return math.nan
    return Interval(range_).check(name, value)


def check_int(name: str, value: Any, low: int, high: float = math.inf) -> int:
    """A whole number from `low` to `high`; errors name the argument, the value and the range."""
    if type(value) is int and low <= value <= high:
        return value  # nearly always
    value = unpacked(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: {shown(value)} is not a whole number")
    if not low <= int(value) <= high:
        raise ValueError(f"{name}: {value} is out of range, wanted whole numbers {low} to {high}")
    return int(value)


def check_fields(instance: Any, **wanted: str | int | tuple[Any, ...]) -> None:
    """Checks a dataclass' fields: each against its interval, its least whole number, or choices.

    Plain numbers are stored where NumPy's were passed.
    """
    for name, range_ in wanted.items():
        value = unpacked(getattr(instance, name))
        if isinstance(range_, tuple):
            if not isinstance(value, str | bool | np.bool_) or value not in range_:
                choices = " or ".join(map(repr, range_))
                raise ValueError(f"{name}: {shown(value)} is unknown; wanted {choices}")
            value = range_[range_.index(value)]
        elif isinstance(range_, int):
            value = check_int(name, value, range_)
        else:
            value = Interval(range_).check(name, value)
        object.__setattr__(instance, name, value)


def check_loss(loss: Any) -> float:
    """The loss as a float, for a rule that reads it."""
    if loss is None:
        raise ValueError("loss: this rule reads it; pass it with the gradients: loss=f")
    return Interval("(-inf, inf)").check("loss", loss)


def unknown(name: str, known: Iterable[str], where: str = "") -> str:
    """Says that a name is none of those known: with the nearest, or else all of them.

    where   says instead of all where they are, for there are many
    """
    from difflib import get_close_matches  # noqa: PLC0415  rarely needed, and not light

    names = {other.lower(): other for other in known}
    nearest = get_close_matches(name.lower(), names, n=1)
    if nearest:
        return f"{name!r} is unknown; did you mean {names[nearest[0]]!r}?"
    return f"{name!r} is unknown; {where or 'wanted ' + ' or '.join(map(repr, names.values()))}"
