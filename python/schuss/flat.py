"""Arrays side by side in one: parameters that are a single span of memory."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from schuss import _core
from schuss.engine.memory import address, order_of
from schuss.engine.structure import Arrays, filled, label, listed
from schuss.engine.structure import flatten as found_in

__all__ = ["flatten"]


def flatten(params: Arrays) -> tuple[np.ndarray, Any]:
    """Copies arrays into one, and returns it, and views of it in their place.

        flat, params = schuss.flatten(params)
        opt = schuss.AdamW(params)                  which steps them as one array

    params   an array, or arrays in sequences and mappings: of one type, each in C or Fortran order

    The flat array has one axis, in which the arrays follow one another in the order of the
    structure, each as it lay in memory: so their order stays. The structure is of dicts and lists.
    Raises TypeError where there are several types; TypeError or ValueError, too, where one is no
    array that an optimizer takes, or overlaps another: the two would share nothing any more.
    """
    tree, arrays = found_in(listed(params))
    if not arrays:
        raise ValueError("params: no array in it; pass at least one")
    first = next(iter(arrays))
    dtype = arrays[first].dtype
    for name, x in arrays.items():
        _core.require_array(x, label("params", name))
        if x.dtype != dtype:
            of = f"{label('params', first)} is {dtype}"
            raise TypeError(f"{label('params', name)}: {x.dtype}, but {of}; flatten each by itself")
    require_apart(arrays)
    flat = np.empty(sum(x.size for x in arrays.values()), dtype)
    views, begin = [], 0
    for x in arrays.values():
        views.append(flat[begin : begin + x.size].reshape(x.shape, order=order_of(x)))
        views[-1][...] = x
        begin += x.size
    return flat, filled(tree, views)


def require_apart(arrays: dict[str, np.ndarray]) -> None:
    """Raises where contiguous arrays share memory."""
    extents = [(address(x), address(x) + x.nbytes, i) for i, x in enumerate(arrays.values())]
    for (_, end, i), (begin, _, k) in pairwise(sorted(e for e in extents if e[0] < e[1])):
        if begin < end:
            first, then = (label("params", list(arrays)[n]) for n in sorted((i, k)))
            raise ValueError(f"{then}: overlaps {first}, but their copies would not; pass one")
