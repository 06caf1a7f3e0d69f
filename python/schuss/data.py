"""Data on its way into a trainer: batches.

batches = schuss.data.Batches(x, y, size=64, rng=np.random.default_rng(0))
for epoch in range(10):
    for xb, yb in batches:                      # shuffled anew
        opt.step(gradients(params, xb, yb))
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from schuss.checks import check_int

__all__ = ["Batches"]


class Batches:
    """Rows of arrays, a batch at a time: each `for` over it is an epoch.

    arrays       any number, with the same number of rows; a batch is a tuple of as many
    size         rows of a batch; 1 is online; None (default) is the full batch
    rng          a numpy.random.Generator: each epoch has another order. None (default): the rows
                 come in order. In order, and in full batches, batches are views without a copy
    balanced     labels, one a row: each batch has as many rows of each class, as nearly as its size
                 allows. Rows of rare classes come several times in an epoch, and not all of
                 frequent ones. Default None
    stratify     labels: each batch has the classes in the proportions of all rows, as nearly as its
                 size allows. Each row comes once. Default None
    drop_last    whether the last batch of an epoch is left out where it is a short one, default
                 False

    `len` is the number of batches of an epoch. Labels may be anything that NumPy can sort.

    Whether a step is by the sum of the rows' gradients or by their mean is a factor, which a step
    takes as its grad_scale, in the same pass:

        gradients are the   step by the   opt.step(grads, grad_scale=...)
        mean                mean          not passed
        sum                 mean          len(xb)
        mean                sum           1/len(xb)
        mean                mean, where   size/len(xb)
                            each row of a short batch weighs as much as one of the others
    """

    def __init__(
        self,
        *arrays: np.ndarray,
        size: int | None = None,
        rng: np.random.Generator | None = None,
        balanced: Any = None,
        stratify: Any = None,
        drop_last: bool = False,
    ) -> None:
        if not arrays:
            raise TypeError("arrays: none given")
        for i, array in enumerate(arrays):
            if not isinstance(array, np.ndarray) or array.ndim == 0:
                raise TypeError(f"arrays[{i}]: {type(array).__name__}; wanted an array with rows")
            if len(array) != len(arrays[0]):
                rows = f"{len(array)} rows, but arrays[0] has {len(arrays[0])}"
                raise ValueError(f"arrays[{i}]: {rows}")
        if not (rng is None or isinstance(rng, np.random.Generator)):
            raise TypeError(f"rng: {rng!r} is not a numpy.random.Generator")
        if balanced is not None and stratify is not None:
            raise ValueError("stratify: not with balanced; choose one of the two")
        self.arrays = arrays
        self.rows = len(arrays[0])
        self.size = None if size is None else check_int("size", size, 1)
        self.rng = rng
        self.drop_last = drop_last
        self.balanced = balanced is not None
        self.classes: list[np.ndarray] | None = None  # the rows of each
        for name, labels in {"balanced": balanced, "stratify": stratify}.items():
            if labels is not None:
                self.classes = classes(name, labels, self.rows)
                if rng is None:
                    raise ValueError(f"rng: {name} batches are drawn; pass a Generator")

    def __len__(self) -> int:
        size = self.size or max(1, self.rows)
        return self.rows // size if self.drop_last else math.ceil(self.rows / size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        order = self.order()
        size = self.size or max(1, self.rows)
        for start in range(0, len(self) * size, size):
            rows = slice(start, start + size) if order is None else order[start : start + size]
            yield tuple(array[rows] for array in self.arrays)

    def order(self) -> np.ndarray | None:
        """The rows of the coming epoch; None for all as they are."""
        if self.rng is None or (self.classes is None and self.size is None):
            return None
        if self.classes is None:
            return self.rng.permutation(self.rows)
        even = math.ceil(self.rows / len(self.classes)) if self.balanced else None
        drawn = [shuffled(rows, even or len(rows), self.rng) for rows in self.classes]
        # A class of m rows has one in each m-th of the epoch, so that it is nowhere rarer.
        places = [(np.arange(len(rows)) + self.rng.random()) / len(rows) for rows in drawn]
        order = np.concatenate(drawn)[np.argsort(np.concatenate(places), kind="stable")]
        return order[: self.rows]

    def __repr__(self) -> str:
        shapes = ", ".join(str(array.shape) for array in self.arrays)
        return f"Batches({shapes}, size={self.size}, {len(self)} an epoch)"


def classes(name: str, labels: Any, rows: int) -> list[np.ndarray]:
    """The row numbers of each class."""
    labels = np.asarray(labels)
    if labels.shape != (rows,):
        raise ValueError(f"{name}: shape {labels.shape}; wanted one label a row, ({rows},)")
    if rows == 0:
        raise ValueError(f"{name}: no rows, and no classes")
    _, of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.split(np.argsort(of, kind="stable"), np.cumsum(counts)[:-1])


def shuffled(rows: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """So many rows in random order, each as often as the others, or once more."""
    rounds = math.ceil(number / len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(rounds)])[:number]
