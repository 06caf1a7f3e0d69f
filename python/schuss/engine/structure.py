"""Arrays in sequences and mappings, nested as one likes: their names, and their order.

A name is the path to an array, joined by dots, with numbers for sequences: "layers.0.w". The tree
keeps the structure, with the array's number in place of the array, so that gradients of the same
structure are brought into the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, ValuesView
from typing import Any, Protocol, SupportsIndex, TypeVar

import numpy as np

from schuss import _core

Tree = int | dict[Any, "Tree"] | list["Tree"]
T_co = TypeVar("T_co", covariant=True)


class SequenceNotStr(Protocol[T_co]):
    """A sequence to type checkers, but no str: that contains nothing but str."""

    def __getitem__(self, index: SupportsIndex, /) -> T_co: ...
    def __contains__(self, value: object, /) -> bool: ...
    def __iter__(self) -> Iterator[T_co]: ...
    def __len__(self) -> int: ...


# Parameters or gradients, nested as one likes, or groups. What is within stays unsaid: to a type
# checker a TypedDict is no mapping of arrays, and a list of groups mostly a list of objects.
Arrays = np.ndarray | Mapping[Any, Any] | SequenceNotStr[Any] | Iterator[Any] | ValuesView[Any]
Gradients = Arrays | _core.Rows


def is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def listed(value: Any) -> Any:
    """An iterator or the values of a mapping as a list: they can be walked through once only."""
    return list(value) if isinstance(value, Iterator | ValuesView) else value


def label(role: str, name: str) -> str:
    """How messages name an array: params["layers.0.w"], params[3] in a flat sequence."""
    return f"{role}[{name}]" if name.isdigit() else f'{role}["{name}"]'


def flatten(
    value: Any, number: int = 0, role: str = "params"
) -> tuple[Tree, dict[str, np.ndarray]]:
    """The tree of a structure and its arrays by name, counted from `number` on.

    One array alone, and the members of a sequence at the top, are named from `number` on as well.
    """
    arrays: dict[str, np.ndarray] = {}

    def walk(value: Any, path: tuple[str, ...], first: int = 0) -> Tree:
        name = ".".join(path) or str(number)
        if isinstance(value, np.ndarray):
            if name in arrays:
                raise ValueError(
                    f"{label(role, name)}: two arrays have this name; rename one of the keys"
                )
            arrays[name] = value
            return number + len(arrays) - 1
        if isinstance(value, Mapping):
            return {key: walk(inner, (*path, str(key))) for key, inner in value.items()}
        if is_sequence(value):
            return [walk(inner, (*path, str(first + i))) for i, inner in enumerate(value)]
        raise TypeError(_core.no_array(value, label(role, name)))

    tree = walk(value, (), number)
    return tree, arrays


def listing(parts: Iterable[str], separator: str = ", ", most: int = 5) -> str:
    """Parts of a message, the first few of many."""
    parts = list(parts)
    rest = [f"... and {len(parts) - most} more"] if len(parts) > most else []
    return separator.join(parts[:most] + rest)


def view_of_complex(dtype: np.dtype[Any]) -> str:
    """What a message about an array that is complex adds: the view to pass."""
    if dtype.kind != "c":
        return ""
    part = np.dtype(f"f{dtype.itemsize // 2}").name
    return (
        f"; pass z.view(np.{part}), which has real and imaginary parts side by side, in z's memory"
    )


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether these are floating-point numbers: NumPy's, or bfloat16, of which it knows no kind."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def described(x: Any) -> str:
    """What has to stay the same when an array takes another's place."""
    if not isinstance(x, np.ndarray):
        return type(x).__name__
    order = "C" if x.flags.c_contiguous else "Fortran" if x.flags.f_contiguous else "no contiguous"
    return f"{x.dtype} of shape {x.shape} in {order} order"


def gather(tree: Tree, values: Any, role: str, path: tuple[str, ...] = ()) -> list[Any]:
    """The members of `values` in the tree's order; ValueError where its structure is another.

    None in place of a part stands for all of it.
    """
    values = listed(values)
    name = label(role, ".".join(path)) if path else role
    if isinstance(tree, int):
        if is_sequence(values) or isinstance(values, Mapping):
            kind = type(values).__name__
            raise ValueError(f"{name}: {kind} where params is one array; pass the array itself")
        return [values]
    if values is None:
        parts = tree.values() if isinstance(tree, dict) else tree
        return [leaf for part in parts for leaf in gather(part, None, role)]
    if isinstance(tree, dict):
        if not isinstance(values, Mapping):
            keys = listing(map(repr, tree))
            raise ValueError(
                f"{name}: {type(values).__name__} where params has a mapping; pass a mapping with "
                f"its keys: {keys}"
            )
        if values.keys() != tree.keys():
            wrong = [f"missing {key!r}" for key in tree if key not in values]
            wrong += [f"unknown {key!r}" for key in values if key not in tree]
            raise ValueError(f"{name}: {listing(wrong)}; wanted the keys of params")
        pairs = ((key, inner, values[key]) for key, inner in tree.items())
    else:
        if not is_sequence(values):
            raise ValueError(
                f"{name}: {type(values).__name__} where params has a sequence; pass a list of "
                f"{len(tree)} in its order"
            )
        if len(values) != len(tree):
            raise ValueError(
                f"{name}: {len(values)} where params has {len(tree)}; pass one for each, or None"
            )
        pairs = ((i, inner, values[i]) for i, inner in enumerate(tree))
    leaves: list[Any] = []
    for key, inner, value in pairs:
        if isinstance(inner, int):
            leaves.append(value)
        else:
            leaves += gather(inner, value, role, (*path, str(key)))
    return leaves


def filled(tree: Tree, values: Sequence[Any]) -> Any:
    """The structure of the tree, with the value of each number in its place."""
    if isinstance(tree, int):
        return values[tree]
    if isinstance(tree, dict):
        return {key: filled(inner, values) for key, inner in tree.items()}
    return [filled(inner, values) for inner in tree]


def by_name(names: dict[str, int], values: Any, role: str, skip: bool) -> tuple[list[Any], Any]:
    """Arrays in any structure in which they lie at the places that they are named by, in order.

    None in place of a part stands for all that is named below it. Returned with them is the
    structure, or none where such a part hides some of it.
    Raises ValueError where one lies elsewhere, or one is missing, unless those are to be skipped.
    """
    found: list[Any] = [None] * len(names)
    seen: set[int] = set()
    unknown: list[str] = []
    whole = True

    def walk(value: Any, path: tuple[str, ...]) -> Tree:
        nonlocal whole
        name = ".".join(path)
        if name in names:
            found[names[name]] = value
            seen.add(names[name])
            return names[name]
        if value is None and (below := [i for n, i in names.items() if n.startswith(f"{name}.")]):
            seen.update(below)
            whole = False
            return list(below)
        if isinstance(value, Mapping):
            return {key: walk(inner, (*path, str(key))) for key, inner in value.items()}
        if is_sequence(value):
            return [walk(inner, (*path, str(i))) for i, inner in enumerate(value)]
        unknown.append(name)
        return {}

    tree = walk(values, ())
    wrong = [] if skip else [f"missing {name!r}" for name, i in names.items() if i not in seen]
    wrong += [f"unknown {name!r}" for name in unknown]
    if wrong:
        raise ValueError(f"{role}: {listing(wrong)}; wanted the places of params")
    return found, tree if whole else None
