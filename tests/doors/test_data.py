"""Batches."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss
from schuss.data import Batches

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
    ],
)
def test_errors(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        make()


def test_repr() -> None:
    assert repr(Batches(X, Y, size=4)) == "Batches((10, 2), (10,), size=4, 3 an epoch)"
