"""How a hyperparameter is declared: its default and its range once, in the class of the rule.

    class SGD(Optimizer):
        lr: Number = number("[0, inf)", default=1e-3)

The declaration checks what is passed and what is set later, and makes `opt.lr` read the first group
and set all of them.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np

from schuss.checks import Interval, check_int, shown, unpacked
from schuss.reference.storage import Trait

# A callable takes the number of finished steps and returns the value of the coming one.
Number = float | Callable[[int], float]

# How weight_decay works on x: see Optimizer. A rule may have modes of its own, which are its own
# affair.
DecayMode = Literal["l2", "decoupled", "decoupled_unscaled", "corrected", "proximal", "masked"]

# What takes the steps: kernels or their reference.
Backend = Literal["compiled", "numpy"]

# Whose conventions the rules' presets are: another library's, the paper's, its authors' code's, or
# those of the texts that the rules' numbers are compared with. A rule has some of them.
Preset = Literal[
    "torch", "keras", "optax", "timm", "optimi", "flower", "openfl", "tsne", "paper", "code",
    "jordan", "moonlight", "article", "tutorial", "course",
]  # fmt: skip

# What a preset gives where its source has no default.
REQUIRED: Any = inspect.Parameter.empty

# Words that version 0.1 called otherwise; the old ones go with version 0.3.
RENAMED = {"seed000": "article", "seed001": "tutorial", "seed002": "course"}


def present_word(argument: str, value: Any) -> Any:
    """What a word for an argument is called now; an old one warns."""
    if not (isinstance(value, str) and value in RENAMED):
        return value
    new = RENAMED[value]
    text = f"{argument}: {str(value)!r} is now called {new!r}, and no longer known in version 0.3"
    warnings.warn(text, DeprecationWarning, stacklevel=user_level())
    return new


def user_level() -> int:
    """The stacklevel with which the caller's warning points at the line outside this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] == "schuss":
        level, frame = level + 1, frame.f_back
    return level


# A line on arguments in a class's docstring, with those that go on with it. CPython takes away the
# indent that all lines have from 3.13 on, and we do before.
ENTRY = re.compile(r"^(\w+(?:, \w+)*) {2,}(\S.*(?:\n {5,}\S.*)*)", re.MULTILINE)


@functools.cache
def entries(docstring: str) -> dict[str, str]:
    """What a class's docstring says of each argument."""
    return {
        name: " ".join(text.split())
        for names, text in ENTRY.findall(inspect.cleandoc(docstring))
        for name in names.split(", ")
    }


class Hyperparameter:
    """The declaration of one hyperparameter; a descriptor on the rule's class."""

    fixed = False  # whether it counts at construction only
    is_number = False  # or several

    def __init__(self, default: Any) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.__doc__ = entries(owner.__doc__ or "").get(name)

    def __get__(self, optimizer: Any, owner: type) -> Any:
        return self if optimizer is None else optimizer.param_groups[0][self.name]

    def __set__(self, optimizer: Any, value: Any) -> None:
        optimizer._set_hyperparameter(self, value)

    def check(self, value: Any) -> Any:
        """The value as it is stored; raises TypeError or ValueError."""
        raise NotImplementedError

    def scheduled(self, value: Any) -> bool:
        """Whether a stored value changes by itself from step to step."""
        return False

    def differs(self, value: Any) -> bool:
        """Whether a stored value is another than the default."""
        return bool(value != self.default)

    def fixes(self, old: Any, new: Any) -> bool:
        """Whether a change comes too late once there are arrays."""
        return self.fixed and bool(old != new)

    def saved(self, value: Any) -> Any:
        """What a state dictionary holds of a stored value: None in place of a callable."""
        return value

    def loaded(self, value: Any, own: Any) -> Any:
        """What becomes of the stored value when one is loaded: a callable stays."""
        return value

    def at(self, value: Any, iterations: int) -> Any:
        """The plain value of a stored one after so many finished steps of the optimizer."""
        return value


class Bounded(Hyperparameter):
    """A number in an interval; None too, where that is the default."""

    def __init__(self, interval: str, *, default: float | None) -> None:
        super().__init__(default)
        self.interval = Interval(interval)

    def check(self, value: Any) -> Any:
        if value is None and self.default is None:
            return None
        return self.interval.check(self.name, value)


class Constant(Bounded):
    """A number in an interval that counts at construction only."""

    fixed = True

    def loaded(self, value: Any, own: Any) -> Any:
        return own  # what it once did is in the state that is loaded with it


class Scheduled(Bounded):
    """A number in an interval, or a callable."""

    is_number = True

    def check(self, value: Any) -> Any:
        if callable(value) or (value is None and self.default is None):
            return value
        return self.interval.check(self.name, value)

    def scheduled(self, value: Any) -> bool:
        return callable(value)

    def saved(self, value: Any) -> Any:
        return None if callable(value) else value

    def loaded(self, value: Any, own: Any) -> Any:
        return own if value is None or callable(own) else value

    def at(self, value: Any, iterations: int) -> Any:
        if not callable(value):
            return value
        return self.interval.check(f"{self.name} after {iterations} steps", value(iterations))


class Several(Hyperparameter):
    """So many numbers, each in an interval or a callable: one interval for all, or one for each."""

    is_number = True

    def __init__(self, *intervals: str, default: tuple[float | None, ...]) -> None:
        super().__init__(default)
        self.intervals = " and ".join(intervals)
        each = intervals if len(intervals) > 1 else intervals * len(default)
        self.parts = [Scheduled(i, default=part) for i, part in zip(each, default, strict=True)]

    def __set_name__(self, owner: type, name: str) -> None:
        super().__set_name__(owner, name)
        for i, part in enumerate(self.parts):
            part.name = f"{name}[{i}]"

    def check(self, value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.ndim == 1:
            value = list(value)
        if not isinstance(value, tuple | list) or len(value) != len(self.parts):
            wanted = f"{len(self.parts)} numbers in {self.intervals}"
            raise TypeError(f"{self.name}: {shown(value)} is not {wanted}")
        return tuple(part.check(v) for part, v in zip(self.parts, value, strict=True))

    def scheduled(self, value: Any) -> bool:
        return any(map(callable, value))

    def saved(self, value: Any) -> Any:
        return tuple(part.saved(v) for part, v in zip(self.parts, value, strict=True))

    def loaded(self, value: Any, own: Any) -> Any:
        several = isinstance(value, tuple | list) or (
            isinstance(value, np.ndarray) and value.ndim == 1
        )
        if not several or len(value) != len(own):
            return value  # which the check refuses
        triples = zip(self.parts, value, own, strict=True)
        return tuple(part.loaded(v, o) for part, v, o in triples)

    def at(self, value: Any, iterations: int) -> Any:
        return tuple(part.at(v, iterations) for part, v in zip(self.parts, value, strict=True))


class Flag(Hyperparameter):
    """True or False."""

    def check(self, value: Any) -> Any:
        value = unpacked(value)
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{self.name}: {shown(value)} is not True or False")
        return bool(value)


class Choice(Hyperparameter):
    """One of the words that the attribute's annotation lists, among which True and False may be."""

    def __set_name__(self, owner: type, name: str) -> None:
        super().__set_name__(owner, name)
        annotation = owner.__annotations__[name]
        if isinstance(annotation, str):
            annotation = eval(annotation, vars(sys.modules[owner.__module__]))
        self.choices = words(annotation)

    def check(self, value: Any) -> Any:
        value = present_word(self.name, unpacked(value))
        if isinstance(value, np.bool_):
            value = bool(value)
        if not isinstance(value, str | bool) or value not in self.choices:
            wanted = " or ".join(map(repr, self.choices))
            raise ValueError(f"{self.name}: {shown(value)} is unknown; wanted {wanted}")
        return self.choices[self.choices.index(value)]  # a plain str, where NumPy's was passed


def words(annotation: Any) -> tuple[str | bool, ...]:
    """What a Literal lists, or the types of a union in turn; bool is False and True."""
    if annotation is bool:
        return False, True
    if isinstance(annotation, str | bool):
        return (annotation,)
    return tuple(word for part in get_args(annotation) for word in words(part))


class Pair(Hyperparameter):
    """Lower and upper bound, each a number or an array; or None."""

    def check(self, value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise TypeError(f"{self.name}: {shown(value)} is not a pair (low, high)")
        anything = Interval("[-inf, inf]")
        low, high = (
            v if isinstance(v, np.ndarray) and v.ndim else anything.check(self.name, v)
            for v in value
        )
        if not np.all(np.asarray(low) <= np.asarray(high)):
            raise ValueError(f"{self.name}: {shown(value)} has a lower bound above the upper one")
        return low, high

    @staticmethod
    def has_arrays(value: Any) -> bool:
        """Whether the bounds are arrays, which are laid beside the parameters at construction."""
        return value is not None and any(isinstance(v, np.ndarray) for v in value)

    def differs(self, value: Any) -> bool:
        return value is not None

    def fixes(self, old: Any, new: Any) -> bool:
        return self.has_arrays(old) or self.has_arrays(new)

    def saved(self, value: Any) -> Any:
        return "arrays" if self.has_arrays(value) else value

    def loaded(self, value: Any, own: Any) -> Any:
        if not (isinstance(value, str | np.ndarray) and np.ndim(value) == 0):
            return value
        if str(value) != "arrays":
            return value
        if not self.has_arrays(own):
            raise ValueError(f"{self.name}: arrays were saved, which are no state; pass them")
        return own


BLOCKFLOAT8 = "blockfloat8"  # 8 bits an element, which NumPy has no type for: see codes.py


class Storage(Hyperparameter):
    """The types that state is stored in: one for all, or one for each name; None for the usual."""

    TYPES = ("float32", "bfloat16", "float16", BLOCKFLOAT8)

    def check(self, value: Any) -> Any:
        if value is None:
            return {}
        given = value if isinstance(value, Mapping) else {"": value}
        return {name: self.read(v) for name, v in given.items()}

    def read(self, value: Any) -> np.dtype[Any] | str:
        """The dtype of a name; bfloat16 is ml_dtypes', which is asked for only here."""
        try:
            is_name = isinstance(value, str) and value in ("bfloat16", BLOCKFLOAT8)
            name = str(value) if is_name else str(np.dtype(value))
        except (TypeError, ValueError):
            name = shown(value)
        if name not in self.TYPES:
            raise ValueError(f"{self.name}: {name} is unknown; wanted {' or '.join(self.TYPES)}")
        if name != "bfloat16":
            return name if name == BLOCKFLOAT8 else np.dtype(name)
        try:
            from ml_dtypes import bfloat16  # noqa: PLC0415  an optional package
        except ImportError:
            raise ValueError(f"{self.name}: bfloat16 needs the package ml_dtypes") from None
        found: np.dtype[Any] = np.dtype(bfloat16)
        return found


def check_state_dtype(
    chosen: Mapping[str, Any], states: Mapping[str, Trait], parameter: str, dtype: np.dtype[Any]
) -> None:
    """Raises ValueError where what `state_dtype` has chosen is nothing to a parameter.

    chosen      dtypes by the state's name, "" for all, as Storage gives them
    states      the names of the parameter's state, with their traits
    parameter   how messages name it, and `dtype` what it is
    """
    unknown = [repr(name) for name in chosen if name not in ("", *states)]
    if unknown:
        has = " and ".join(map(repr, states)) or "none"
        raise ValueError(f"state_dtype: no state {', '.join(unknown)}; {parameter} has {has}")
    for name, trait in states.items():
        if isinstance(chosen.get(name), str) and trait.alone:
            raise ValueError(
                f"state_dtype: {name!r} of {parameter} is no mean or sum that {BLOCKFLOAT8} holds"
            )
    if chosen and dtype == np.float64:
        raise ValueError(
            f"state_dtype: {parameter} is float64, and so is its state; leave state_dtype out, or "
            "make the parameter float32"
        )


class Folder(Hyperparameter):
    """The path of a folder, as text; None for none."""

    def check(self, value: Any) -> Any:
        if value is None:
            return None
        if (
            not isinstance(value, str | os.PathLike)
            or not isinstance(os.fspath(value), str)
            or (not os.fspath(value))
        ):
            raise TypeError(f"{self.name}: {shown(value)} is no path of a folder")
        return os.fspath(value)


class Whole(Hyperparameter):
    """A whole number, 0 or larger unless told otherwise."""

    def __init__(self, *, default: int, least: int = 0) -> None:
        super().__init__(default)
        self.least = least

    def check(self, value: Any) -> Any:
        return check_int(self.name, value, self.least, 2**63 - 1)


@runtime_checkable
class Scale(Protocol):
    """A number that follows the steps, such as schuss.LossScale."""

    def __float__(self) -> float: ...
    def update(self, stepped: bool) -> None: ...


@runtime_checkable
class SharedScale(Scale, Protocol):
    """One that several optimizers may have, and that gives up in the end."""

    @property
    def given_up(self) -> str: ...  # why no more steps may be skipped, or nothing
    def reader(self, key: object) -> Scale: ...


class ScaleOrNumber(Bounded):
    """A number in an interval, or one that follows the steps."""

    def check(self, value: Any) -> Any:
        number = type(value) is float  # nearly always, and a protocol is slow to ask
        return value if not number and isinstance(value, Scale) else super().check(value)


class Option:
    """An option of the whole optimizer, declared and checked like a hyperparameter."""

    def __init__(self, declared: Hyperparameter, fixed: bool, argument: str) -> None:
        self.declared = declared
        self.default = declared.default
        self.fixed = fixed
        self.argument = argument

    def __set_name__(self, owner: type, name: str) -> None:
        self.argument = self.argument or name
        self.declared.__set_name__(owner, self.argument)
        self.__doc__ = self.declared.__doc__
        self.key = f"_{self.argument}"  # a method of the optimizer may have the argument's name

    def __get__(self, optimizer: Any, owner: type) -> Any:
        return self if optimizer is None else vars(optimizer)[self.key]

    def __set__(self, optimizer: Any, value: Any) -> None:
        if self.fixed and self.key in vars(optimizer):
            raise ValueError(f"{self.argument}: {value!r} comes too late; fixed at construction")
        optimizer._set_option(self.key, self.check(value))

    def check(self, value: Any) -> Any:
        """The value as it is stored; raises TypeError or ValueError."""
        return self.declared.check(value)

    def differs(self, value: Any) -> bool:
        """Whether a stored value is another than the default."""
        return bool(value != self.declared.check(self.default))

    def saved(self, value: Any) -> Any:
        """What a state dictionary holds of a stored value: plain numbers and words."""
        if isinstance(value, dict):  # the types of a state, by name
            return {name: str(dtype) for name, dtype in value.items()}
        return value if isinstance(value, str | int | float | None) else None


# ---- How a class writes its declarations down. They return Any, so that a type checker takes the
# annotation for the attribute's type, and the default for that of the constructor's argument.


def number(interval: str, *, default: float | None) -> Any:
    return Scheduled(interval, default=default)


def numbers(*intervals: str, default: tuple[float | None, ...]) -> Any:
    return Several(*intervals, default=default)


def constant(interval: str, *, default: float) -> Any:
    return Constant(interval, default=default)


def flag(*, default: bool) -> Any:
    return Flag(default)


def choice(*, default: str | bool) -> Any:
    return Choice(default)


def pair(*, default: None) -> Any:
    return Pair(default)


def whole(*, default: int, least: int = 0) -> Any:
    return Whole(default=default, least=least)


def option(
    kind: Callable[..., Hyperparameter],
    *allowed: str,
    default: Any,
    fixed: bool = False,
    argument: str = "",
) -> Any:
    return Option(kind(*allowed, default=default), fixed, argument)
