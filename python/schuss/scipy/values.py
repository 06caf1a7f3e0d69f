"""What functions return, checked, and why a run ends."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]

Array = np.ndarray
EPS = float(np.finfo(np.float64).eps)

# Why a run ended, as numbers; SciPy's where it has them.
CONVERGED, MAXITER, NO_STEP, NOT_FINITE, SINGULAR, NO_MINIMUM, CALLBACK = 0, 1, 2, 3, 4, 5, 99


class Stop(Exception):  # noqa: N818  it ends a run, and never leaves it
    """The run can't go on, for this reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def same(a: Array, b: Array) -> bool:
    """Whether two points are one."""
    return bool((a == b).all())


def shaped(name: str, value: Any, shape: tuple[int, ...], dtype: Any = np.float64) -> Array:
    """A copy of an array, which has to have this shape, or to be one number where that is one."""
    if np.shape(value) != shape and not np.size(value) == math.prod(shape) == 1:
        raise ValueError(f"{name}: returned shape {np.shape(value)}; wanted {shape}")
    return real(name, value, np.dtype(dtype)).reshape(shape)


def real(name: str, value: Any, dtype: np.dtype[Any]) -> Array:
    """A copy of numbers, which have to be real ones, unless complex ones are asked for."""
    found = np.array(value)
    if value is None or found.dtype.kind not in "biufO" + "c" * (dtype.kind == "c"):
        raise TypeError(f"{name}: returned {value!r}; wanted real numbers")
    return found.astype(dtype)


def dense(matrix: Any, columns: int) -> Any:
    """A matrix that may be sparse or an operator, with all its elements."""
    if scipy.sparse.issparse(matrix):
        return matrix.toarray()
    return matrix @ np.eye(columns) if hasattr(matrix, "matvec") else matrix


def solve(matrix: Array, right: Array, why: str) -> Array:
    """The solution of a system of equations; raises Stop, which says why, where it is singular."""
    rank = np.linalg.matrix_rank(matrix)
    if rank < len(matrix):
        raise Stop(SINGULAR, f"singular matrix: rank {rank} of {len(matrix)}; {why}")
    solution: Array = np.linalg.solve(matrix, right)
    return solution
