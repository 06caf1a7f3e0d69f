"""Plain values as JSON, bit for bit, with their arrays apart.

None, True, False, texts, lists, mappings with names as keys, whole numbers below 2^63 and finite
numbers are what they are in JSON; anything else is {"$": kind, "value": ...}.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from schuss.engine.safetensors import NAMES, dtype_of, pieces
from schuss.engine.spread import Spread
from schuss.engine.structure import is_sequence

KIND = "$"
STORABLE = (
    "numbers, texts, arrays, random generators, optimizers, objects with state_dict and "
    "load_state_dict, and lists, tuples and mappings of these"
)


# What stands for itself by a plain value: of an optimizer's, its state dictionary with its params.
KINDS = ("optimizer", "object", "Generator", "RandomState")


class Stored(NamedTuple):
    """What is no plain value: of which of the kinds, and the plain value that stands for it."""

    kind: str
    value: Any


class Encoder:
    """Makes JSON of values, and collects their arrays under the names of their places.

    other    makes Stored of what is no plain value, or returns None

    An array that is met at several places, or a view of just its elements, is stored once; one that
    every process has whole, each by its part, as soon as one place says so. Raises TypeError that
    names the place of what can't be stored.
    """

    def __init__(self, other: Callable[[Any], Stored | None]) -> None:
        self.other = other
        self.arrays: dict[str, Any] = {}  # arrays, or Spread
        self.names: dict[Any, str] = {}  # by what an array is a view of

    def __call__(self, value: Any, place: str) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str(value)
        if isinstance(value, np.generic | int | float | complex):
            return self.number(value, place)
        if isinstance(value, np.ndarray | Spread):
            return tagged("array", self.name_of(value, place))
        if isinstance(value, Mapping) or is_sequence(value):
            return self.container(value, place)
        if (stored := self.other(value)) is None:
            raise TypeError(f"{place}: {type(value).__name__} can't be stored; wanted {STORABLE}")
        return tagged(stored.kind, self(stored.value, place))

    def number(self, value: Any, place: str) -> Any:
        if isinstance(value, np.generic):
            self.require_storable(value, place)
            return tagged("scalar", [value.dtype.name, next(pieces(np.asarray(value))).hex()])
        if isinstance(value, int):
            return int(value) if abs(value) < 2**63 else tagged("int", hex(value))
        if isinstance(value, complex):
            return tagged("complex", [self(value.real, place), self(value.imag, place)])
        if math.isfinite(value):
            return float(value)
        return tagged("float", struct.pack(">d", value).hex())  # with the bits of a NaN

    def container(self, value: Any, place: str) -> Any:
        if is_sequence(value):
            parts = [self(part, f"{place}.{i}") for i, part in enumerate(value)]
            return tagged("tuple", parts) if isinstance(value, tuple) else parts
        pairs = [(key, self(v, f"{place}.{key}")) for key, v in value.items()]
        if all(isinstance(key, str) and key != KIND for key, _ in pairs):
            return dict(pairs)
        return tagged("dict", [[self(key, place), v] for key, v in pairs])

    def name_of(self, array: np.ndarray | Spread, place: str) -> Any:
        """The name under which an array is stored."""
        self.require_storable(array, place)
        what = lies(array)
        if what not in self.names:
            name = place.encode(errors="replace").decode()
            while name in self.arrays or name == "__metadata__":
                name += "'"
            self.names[what] = name
            self.arrays[name] = array
        elif isinstance(array, Spread):
            self.arrays[self.names[what]] = array
        return self.names[what]

    def require_storable(self, value: Any, place: str) -> None:
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"{place}: a masked array can't be stored; store its data and its mask")
        if value.dtype.name not in NAMES:
            hint = "; pass z.view(float)" if value.dtype.kind == "c" else ""
            raise TypeError(f"{place}: {value.dtype} can't be stored{hint}")


def lies(array: np.ndarray | Spread) -> Any:
    """What of an array is the same where it is met again."""
    if isinstance(array, Spread):
        return id(array.part) if array.whole is None else lies(array.whole)
    return array.__array_interface__["data"][0], array.shape, array.strides, array.dtype


def tagged(kind: str, value: Any) -> dict[str, Any]:
    return {KIND: kind, "value": value}


def decoded(value: Any, array: Callable[[Any], Any]) -> Any:
    """The value of which an Encoder made JSON, with Stored for what is no plain value.

    array   gives what stands for the one of a name

    Raises ValueError where it is none.
    """
    if isinstance(value, list):
        return [decoded(part, array) for part in value]
    if not isinstance(value, dict):
        return value
    if KIND not in value:
        return {key: decoded(v, array) for key, v in value.items()}
    kind, inner = value[KIND], value.get("value")
    if not isinstance(kind, str) or value.keys() != {KIND, "value"}:
        raise ValueError(f"{value!r:.60}: no value")
    if kind == "array":
        return array(inner)
    found = decoded(inner, array)
    if kind in KINDS:
        return Stored(kind, found)
    try:
        return READERS[kind](found)
    except (TypeError, ValueError, KeyError, OverflowError, struct.error):
        raise ValueError(f"{inner!r:.60}: no {kind}") from None


def scalar(value: Any) -> Any:
    """A NumPy scalar, from its type's name and its bytes."""
    name, data = value
    (found,) = np.frombuffer(bytes.fromhex(data), dtype_of(NAMES[name]))
    return found


READERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "float": lambda text: struct.unpack(">d", bytes.fromhex(text))[0],
    "complex": lambda parts: complex(*parts),
    "scalar": scalar,
    "tuple": tuple,
    "dict": dict,
}
