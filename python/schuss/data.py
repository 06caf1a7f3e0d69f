"""Data on its way into a trainer: batches, and inputs that don't hang together.

batches = schuss.data.Batches(x, y, size=64, rng=np.random.default_rng(0))
for epoch in range(10):
    for xb, yb in batches:                      # shuffled anew
        opt.step(gradients(params, xb, yb))
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from schuss.checks import check_fields, check_int
from schuss.engine.structure import described

__all__ = ["PCA", "Batches"]


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


@dataclass
class PCA:
    """Inputs whose components are uncorrelated, and with `whiten` of the same variance.

        pca = schuss.data.PCA(whiten=True, eps=1e-5).fit(x_train)
        x_train, x_test = pca.transform(x_train), pca.transform(x_test)

    Fitted on the training data alone: means and directions of other data would leak into it. On
    such inputs the loss of a linear neuron has the same curvature in each direction, and gradient
    descent goes straight to its minimum.

        transform(x) = (x - mean_) @ components_.T
        whitened, each component divided by sqrt(explained_variance_ + eps)

    n_components    how many components are kept, the most varied first; default None: as many as
                    there are columns, or rows if they are fewer
    whiten          default False
    eps             added to the variances before their root is taken, in [0, inf), default 0. It
                    keeps the noise of components that hardly vary from being blown up; with 0,
                    components that don't vary at all become 0

    Names and numbers are those of scikit-learn's PCA: where that is installed, it does as much and
    more, but for eps. This one needs NumPy alone, and fits into scikit-learn's pipelines, too.

    Source: Hotelling 1933; LeCun et al. 1998, Efficient BackProp, section 4.3.
    """

    n_components: int | None = None
    whiten: bool = False
    eps: float = 0.0
    mean_: np.ndarray = field(init=False, repr=False, compare=False)
    components_: np.ndarray = field(init=False, repr=False, compare=False)
    explained_variance_: np.ndarray = field(init=False, repr=False, compare=False)
    explained_variance_ratio_: np.ndarray = field(init=False, repr=False, compare=False)
    n_components_: int = field(init=False, repr=False, compare=False)
    n_features_in_: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.n_components is not None:
            check_fields(self, n_components=1)
        check_fields(self, whiten=(False, True), eps="[0, inf)")

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The three arguments, as scikit-learn asks for them when it clones and searches."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    def set_params(self, **params: Any) -> PCA:
        """Changes some of the arguments; returns itself."""
        for name, value in vars(PCA(**{**self.get_params(), **params})).items():
            setattr(self, name, value)
        return self

    def fit(self, x: np.ndarray, y: object = None) -> PCA:
        """Finds means, directions and variances of rows, in double; returns itself.

        x   a matrix with at least two rows
        y   ignored
        """
        x = matrix("x", x)
        rows, columns = x.shape
        if rows < 2:
            raise ValueError(f"x: {rows} rows; wanted at least two")
        most = min(rows, columns)
        kept = most if self.n_components is None else self.n_components
        if kept > most:
            raise ValueError(f"n_components: {kept} of a matrix of shape {x.shape}; {most} at most")
        if not np.isfinite(x).all():
            raise ValueError("x: has elements that are not finite")
        mean = x.mean(axis=0, dtype=np.float64)
        centred = x - mean
        _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
        lengths[lengths <= lengths[0] * max(x.shape) * np.finfo(np.float64).eps] = 0.0  # rounding
        values = lengths**2 / (rows - 1)
        components = directions[:kept]
        largest = np.abs(components).argmax(axis=1)  # a direction has no sign of its own
        signs = np.sign(components[np.arange(kept), largest])
        self.mean_ = mean
        self.components_ = components * signs[:, np.newaxis]
        self.explained_variance_ = values[:kept]
        self.explained_variance_ratio_ = values[:kept] / (values.sum() or 1.0)
        self.n_components_, self.n_features_in_ = kept, columns
        return self

    def transform(self, x: np.ndarray) -> np.ndarray:
        """The components of rows, as a new matrix: float32 of float32, else float64."""
        x = self._read(x, "n_features_in_")
        made: np.ndarray = (x - self.mean_) @ self.components_.T
        if self.whiten:
            scale = self._scale()
            made = np.divide(made, scale, out=np.zeros_like(made), where=scale > 0)
        return made.astype(result_type(x), copy=False)

    def fit_transform(self, x: np.ndarray, y: object = None) -> np.ndarray:
        """Fits rows, and transforms them."""
        return self.fit(x, y).transform(x)

    def inverse_transform(self, x: np.ndarray) -> np.ndarray:
        """Rows from their components: the same, if none was left out."""
        x = self._read(x, "n_components_")
        made: np.ndarray = (x * self._scale() if self.whiten else x) @ self.components_ + self.mean_
        return made.astype(result_type(x), copy=False)

    def _scale(self) -> np.ndarray:
        """What whitening divides by; 0 where there is nothing to be divided."""
        scale: np.ndarray = np.sqrt(self.explained_variance_ + self.eps)
        return scale

    def _read(self, x: Any, columns: str) -> np.ndarray:
        """A matrix with as many columns as this attribute says."""
        wanted = getattr(self, columns, None)
        if wanted is None:
            raise ValueError("PCA: not fitted yet; call fit with the training data")
        found = matrix("x", x)
        if found.shape[1] != wanted:
            raise ValueError(f"x: {found.shape[1]} columns; wanted {wanted}")
        return found


def matrix(name: str, x: Any) -> np.ndarray:
    """An array with rows and columns of real numbers."""
    if not (isinstance(x, np.ndarray) and x.ndim == 2 and x.dtype.kind in "fiub"):
        raise TypeError(f"{name}: {described(x)}; wanted a matrix of numbers")
    found: np.ndarray = x
    return found


def result_type(x: np.ndarray) -> np.dtype[Any]:
    """What is made of it."""
    return np.dtype(np.float32 if x.dtype == np.float32 else np.float64)
