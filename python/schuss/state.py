"""State as the user sees it, and how a saved one differs from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from schuss.structure import described


class States(Mapping[str | int, Mapping[str, Any]]):
    """State by parameter name; in a flat sequence the number itself works too."""

    def __init__(self, by_name: Mapping[str, dict[str, Any]]) -> None:
        self.by_name = {name: MappingProxyType(own) for name, own in by_name.items()}

    def __getitem__(self, key: str | int) -> Mapping[str, Any]:
        return self.by_name[key if isinstance(key, str) else str(key)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    def __repr__(self) -> str:
        return repr({name: dict(own) for name, own in self.by_name.items()})


def differences(own: Mapping[Any, Any], other: Mapping[str, Any]) -> list[str]:
    """How a saved state differs from this one in names, shapes and types."""
    found = [f"missing {name!r}" for name in own if name not in other]
    found += [f"unknown {name!r}" for name in other if name not in own]
    for name in [name for name in own if name in other]:
        if not isinstance(other[name], Mapping):
            found.append(f"{name!r}: {type(other[name]).__name__}, wanted a mapping")
            continue
        mine, theirs = own[name], other[name]
        found += [f"missing {name!r} {key}" for key in mine if key not in theirs]
        found += [f"unknown {name!r} {key}" for key in theirs if key not in mine]
        for key in [key for key in mine if key in theirs]:
            a, b = mine[key], theirs[key]
            if not isinstance(a, np.ndarray):  # a number, which is checked when it is read
                continue
            if not isinstance(b, np.ndarray) or (a.shape, a.dtype) != (b.shape, b.dtype):
                found.append(f"{name!r} {key}: {described(b)}, wanted {described(a)}")
    return found
