"""Gradients that are no single array: rows of one, and pieces that are added up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from inspect import Parameter, Signature
from typing import Any

import numpy as np

from schuss._core import Rows
from schuss.checks import Interval
from schuss.engine.structure import is_sequence, listed

# Of a weight: what float32 has.
WEIGHT = Interval("[-3.4028234663852886e+38, 3.4028234663852886e+38]")

# What a compiled class doesn't tell by itself.
ARGUMENTS = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("index", "values")]
for name, value in {"__signature__": Signature(ARGUMENTS), "__module__": "schuss"}.items():
    setattr(Rows, name, value)


def arrays_of_gradient(g: Any) -> Iterator[np.ndarray]:
    """The arrays that a gradient consists of."""
    if isinstance(g, tuple):
        for piece in g:
            yield from arrays_of_gradient(piece)
    elif g is not None:
        yield g.values if isinstance(g, Rows) else g


def zero(gradients: Iterable[Any]) -> None:
    """Fills the arrays of gradients with zeros; one that is a number is nobody's."""
    for g in gradients:
        for a in arrays_of_gradient(g):
            if isinstance(a, np.ndarray):
                a.fill(0)


def check_pieces(grads: Any, pieces: Any, weights: Any) -> tuple[Any, list[float]]:
    """The pieces of a gradient and their weights; None, and no weights, where there are none."""
    if pieces is None:
        if weights is not None:
            raise TypeError("weights: of no pieces; pass pieces=")
        return None, []
    if grads is not None:
        raise TypeError("pieces: stand in place of grads; pass one of the two")
    pieces = listed(pieces)
    if not is_sequence(pieces):
        raise TypeError(f"pieces: {type(pieces).__name__}, wanted a sequence of gradients")
    return tuple(pieces), check_weights("pieces", len(pieces), weights)


def check_weights(role: str, count: int, weights: Any) -> list[float]:
    """The factors of so many pieces, as they are; not given: of their mean."""
    if count == 0:
        raise ValueError(f"{role}: none; pass at least one")
    if weights is None:
        return [1.0 / count] * count
    if not (is_sequence(weights) or (isinstance(weights, np.ndarray) and weights.ndim == 1)):
        raise TypeError(f"weights: {type(weights).__name__}, wanted a number for each of {role}")
    found: list[float] = [WEIGHT.check(f"weights[{i}]", w) for i, w in enumerate(list(weights))]
    if len(found) != count:
        raise ValueError(f"weights: {len(found)} for {count} {role}; pass one for each")
    return found


def check_flag(name: str, value: Any) -> bool:
    """Raises where it is neither True nor False."""
    if value is True or value is False:
        return bool(value)
    raise TypeError(f"{name}: {value!r}, wanted True or False")
