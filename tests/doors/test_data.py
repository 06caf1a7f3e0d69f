"""Batches and decorrelated inputs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss
from schuss.data import PCA, Batches

F4 = np.float32
X = np.arange(20, dtype=F4).reshape(10, 2)
Y = np.arange(10)


def seeded(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- Batches


def test_in_order_batches_are_views() -> None:
    for size, rows in ((None, [10]), (1, [1] * 10), (4, [4, 4, 2]), (10, [10]), (99, [10])):
        batches = Batches(X, Y, size=size)
        assert [len(xb) for xb, _ in batches] == rows
        assert len(batches) == len(rows)
        for xb, yb in batches:
            assert np.shares_memory(xb, X)
            assert np.shares_memory(yb, Y)
        assert np.array_equal(np.concatenate([yb for _, yb in batches]), Y)
    assert [len(yb) for (yb,) in Batches(Y, size=4, drop_last=True)] == [4, 4]
    assert len(Batches(Y, size=4, drop_last=True)) == 2
    assert list(Batches(np.zeros((0, 3)), size=4)) == []
    ((full,),) = Batches(Y, rng=seeded())
    assert np.shares_memory(full, Y)


def test_shuffled_anew_in_each_epoch_and_repeatable() -> None:
    batches, again = (Batches(X, Y, size=3, rng=seeded()) for _ in range(2))
    epochs = [[yb.tolist() for _, yb in batches] for _ in range(3)]
    assert epochs == [[yb.tolist() for _, yb in again] for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    for epoch in epochs:
        assert sorted(itertools.chain(*epoch)) == Y.tolist()
        assert [len(rows) for rows in epoch] == [3, 3, 3, 1]
    for xb, yb in batches:
        assert np.array_equal(xb, X[yb])
        assert not np.shares_memory(xb, X)
    order = seeded().permutation(10)
    assert np.array_equal(next(iter(Batches(Y, size=4, rng=seeded())))[0], order[:4])


RARE = np.repeat(["a", "b", "c"], [700, 250, 50])  # of 1000 rows


def test_balanced() -> None:
    rows = np.arange(1000)
    for size, counts in ((30, {10}), (32, {10, 11}), (1, {0, 1})):
        batches = Batches(rows, RARE, size=size, rng=seeded(), balanced=RARE)
        seen: Counter[int] = Counter()
        for ids, labels in batches:
            assert np.array_equal(RARE[ids], labels)
            found = Counter(labels.tolist())
            if len(ids) == size:
                assert {found["a"], found["b"], found["c"]} <= counts
            seen.update(ids.tolist())
        assert sum(seen.values()) == 1000
        assert {seen[i] for i in range(700, 950)} == {1, 2}  # 333 of 250
        assert {seen[i] for i in range(950, 1000)} == {6, 7}
        assert {seen[i] for i in range(700)} == {0, 1}


def test_stratified() -> None:
    rows = np.arange(1000)
    batches = Batches(rows, size=40, rng=seeded(), stratify=RARE)
    epochs = [np.concatenate([ids for (ids,) in batches]) for _ in range(2)]
    for order in epochs:
        assert np.array_equal(np.sort(order), rows)
        for start in range(0, 1000, 40):
            found = Counter(RARE[order[start : start + 40]].tolist())
            assert all(
                abs(found[label] - wanted) <= 2
                for label, wanted in {"a": 28, "b": 10, "c": 2}.items()
            )
    assert not np.array_equal(epochs[0], epochs[1])


def loss_gradient(w: np.ndarray, xb: np.ndarray, yb: np.ndarray) -> np.ndarray:
    """The sum of the rows' gradients of half the squared error."""
    gradient: np.ndarray = xb.T @ (xb @ w - yb)
    return gradient


def test_sum_and_mean_by_grad_scale() -> None:
    rng = seeded()
    x, y = rng.standard_normal((10, 3)), rng.standard_normal(10)

    def trained(factor: Callable[[int], float], scale: Callable[[int], float]) -> np.ndarray:
        w = np.zeros(3)
        opt = schuss.SGD(w, lr=0.02)
        for _ in range(3):
            for xb, yb in Batches(x, y, size=4):
                n = len(xb)
                opt.step(factor(n) * loss_gradient(w, xb, yb), grad_scale=scale(n))
        return w

    mean = trained(lambda n: 1 / n, lambda n: 1.0)
    total = trained(lambda n: 1.0, lambda n: 1.0)
    weighed = trained(lambda n: 1 / 4, lambda n: 1.0)
    assert np.allclose(trained(lambda n: 1.0, lambda n: n), mean, rtol=1e-13)
    assert np.allclose(trained(lambda n: 1 / n, lambda n: 1 / n), total, rtol=1e-13)
    assert np.allclose(trained(lambda n: 1 / n, lambda n: 4 / n), weighed, rtol=1e-13)
    assert not np.allclose(mean, weighed)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (Batches, TypeError, "arrays: none given"),
        (lambda: Batches([1, 2]), TypeError, r"arrays\[0\]: list; wanted an array with rows"),  # type: ignore[arg-type]
        (lambda: Batches(X, np.array(3)), TypeError, r"arrays\[1\]: ndarray; wanted an array"),
        (lambda: Batches(X, Y[1:]), ValueError, r"arrays\[1\]: 9 rows, but arrays\[0\] has 10"),
        (lambda: Batches(X, size=0), ValueError, "size: 0 is out of range"),
        (lambda: Batches(X, size=2.0), TypeError, "size: 2.0 is not a whole number"),  # type: ignore[arg-type]
        (lambda: Batches(X, rng=3), TypeError, "rng: 3 is not a numpy.random.Generator"),  # type: ignore[arg-type]
        (lambda: Batches(X, balanced=Y), ValueError, "rng: balanced batches are drawn; pass a Gen"),
        (
            lambda: Batches(X, balanced=Y[1:], rng=seeded()),
            ValueError,
            r"balanced: shape \(9,\); wanted one label a row, \(10,\)",
        ),
        (
            lambda: Batches(X, balanced=Y, stratify=Y, rng=seeded()),
            ValueError,
            "stratify: not with balanced",
        ),
        (lambda: Batches(X[:0], stratify=Y[:0], rng=seeded()), ValueError, "stratify: no rows"),
        (lambda: PCA(0), ValueError, "n_components: 0 is out of range"),
        (lambda: PCA(eps=-1.0), ValueError, "eps: -1.0 is out of range"),
        (lambda: PCA(whiten="yes"), ValueError, "whiten: 'yes' is unknown"),  # type: ignore[arg-type]
        (
            lambda: PCA(3).fit(X),
            ValueError,
            r"n_components: 3 of a matrix of shape \(10, 2\); 2 at",
        ),
        (lambda: PCA().fit(X[:1]), ValueError, "x: 1 rows; wanted at least two"),
        (lambda: PCA().fit(Y), TypeError, r"x: int64 of shape \(10,\) in C order; want"),
        (lambda: PCA().fit(X + np.inf), ValueError, "x: has elements that are not finite"),
        (lambda: PCA().transform(X), ValueError, "PCA: not fitted yet; call fit with the training"),
        (lambda: PCA().fit(X).transform(X[:, :1]), ValueError, "x: 1 columns; wanted 2"),
    ],
)
def test_errors(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        make()


def test_repr() -> None:
    assert repr(Batches(X, Y, size=4)) == "Batches((10, 2), (10,), size=4, 3 an epoch)"
    assert repr(PCA(2, whiten=True)) == "PCA(n_components=2, whiten=True, eps=0.0)"


# ---- Decorrelation


def mixed(rows: int = 200, columns: int = 6) -> np.ndarray:
    rng = seeded()
    return rng.standard_normal((rows, columns)) @ rng.standard_normal((columns, columns)) + 3


def test_decorrelated_and_whitened() -> None:
    x = mixed()
    kept = x.copy()
    pca = PCA().fit(x)
    z = pca.transform(x)
    assert np.allclose(np.cov(z.T), np.diag(pca.explained_variance_), atol=1e-12)
    assert (np.diff(pca.explained_variance_) < 0).all()
    assert np.allclose(pca.inverse_transform(z), x)
    white = PCA(whiten=True)
    assert np.allclose(np.cov(white.fit_transform(x).T), np.eye(6), atol=1e-12)
    assert np.allclose(white.inverse_transform(white.transform(x)), x)
    soft = PCA(whiten=True, eps=0.5).fit(x)
    variance = soft.explained_variance_ / (soft.explained_variance_ + 0.5)
    assert np.allclose(np.cov(soft.transform(x).T), np.diag(variance), atol=1e-12)
    assert np.allclose(soft.inverse_transform(soft.transform(x)), x)
    assert np.array_equal(x, kept)
    assert white.fit_transform(x.astype(F4)).dtype == F4
    assert white.fit_transform((100 * x).astype(int)).dtype == np.float64


def test_fitted_on_the_training_data_alone() -> None:
    x = mixed()
    pca = PCA(2, whiten=True).fit(x[:150])
    assert np.array_equal(pca.transform(x)[150:], pca.transform(x[150:]))
    assert not np.allclose(pca.transform(x[150:]).mean(axis=0), 0, atol=1e-3)
    assert pca.transform(x).shape == (200, 2)


def test_what_does_not_vary_becomes_zero() -> None:
    x = np.column_stack([mixed(), np.full(200, 0.1), mixed()[:, 0]])  # constant, and a twin
    z = PCA(whiten=True).fit_transform(x)
    assert np.allclose(z.std(axis=0, ddof=1), [1] * 6 + [0, 0])
    assert not z[:, 6:].any()
    few = PCA(whiten=True).fit(mixed(4, 6))
    assert few.n_components_ == 4
    assert few.explained_variance_[3] == 0
    assert not PCA(whiten=True).fit_transform(np.ones((3, 2))).any()


def test_gradient_descent_goes_straight_on_whitened_inputs() -> None:
    x = mixed() * [1, 10, 100, 1, 1, 1]
    y = x @ np.arange(6.0)
    z = PCA(whiten=True).fit_transform(x)
    w = np.zeros(6)
    opt = schuss.SGD(w, lr=1.0)
    opt.step(z.T @ (z @ w - (y - y.mean())) / (len(y) - 1))
    assert np.allclose(z @ w, y - y.mean())


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize(("rows", "columns", "kept"), [(200, 6, None), (200, 6, 2), (5, 8, 4)])
def test_scikit_learn(whiten: bool, rows: int, columns: int, kept: int | None) -> None:
    decomposition = pytest.importorskip(
        "sklearn.decomposition", reason="scikit-learn is not installed: nothing to compare with"
    )
    x = mixed(rows, columns)
    ours = PCA(kept, whiten=whiten).fit(x)
    theirs = decomposition.PCA(kept, whiten=whiten, svd_solver="full").fit(x)
    for name in ("mean_", "components_", "explained_variance_", "explained_variance_ratio_"):
        assert np.allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-10, atol=1e-12), name
    for name in ("n_components_", "n_features_in_"):
        assert getattr(ours, name) == getattr(theirs, name)
    other = mixed(30, columns)
    z = ours.transform(other)
    assert np.allclose(z, theirs.transform(other), rtol=1e-9, atol=1e-10)
    assert np.allclose(ours.inverse_transform(z), theirs.inverse_transform(z), rtol=1e-9)


def test_in_a_pipeline_that_is_cloned_and_searched() -> None:
    """With scikit-learn's own PCA the scores are the same."""
    sklearn = pytest.importorskip(
        "sklearn", reason="scikit-learn is not installed: nothing to compare with"
    )
    from sklearn import (  # type: ignore[import-untyped]  # noqa: PLC0415
        decomposition,
        linear_model,
        model_selection,
        pipeline,
    )

    x = mixed(60, 5)
    y = x @ np.arange(5)
    scores = [
        model_selection.cross_val_score(
            pipeline.make_pipeline(kind(3, whiten=True), linear_model.Ridge()), x, y
        )
        for kind in (PCA, decomposition.PCA)
    ]
    assert np.allclose(*scores)
    fitted = PCA(2, eps=0.5).fit(x)
    fresh = sklearn.base.clone(fitted)
    assert fresh == fitted
    assert not hasattr(fresh, "mean_")
    assert fresh.set_params(n_components=4, whiten=True) is fresh
    assert fresh == PCA(4, whiten=True, eps=0.5)
    with pytest.raises(ValueError, match="n_components: 0 is out of range"):
        fresh.set_params(n_components=0)
    assert fresh == PCA(4, whiten=True, eps=0.5)
