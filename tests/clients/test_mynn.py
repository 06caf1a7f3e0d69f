"""MyNN on MyGrad: whole steps of its layers' arrays against its own optimizers, in trainings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss

WHY = "mynn is not installed: its tests did not run"
optimizers: Any = pytest.importorskip("mynn.optimizers", reason=WHY)
dense: Any = pytest.importorskip("mynn.layers.dense", reason=WHY).dense
relu: Any = pytest.importorskip("mygrad.nnet.activations", reason=WHY).relu
losses: Any = pytest.importorskip("mygrad.nnet.losses", reason=WHY)


class Stepped:
    """One of ours in the place of one of MyNN's."""

    def __init__(self, params: list[Any], rule: Any = schuss.Adam, **options: Any) -> None:
        self.params = params
        self.opt = rule([p.data for p in params], **options)

    def step(self) -> None:
        self.opt.step([p.grad for p in self.params])


def trained(make: Callable[[list[Any]], Any], steps: int = 30) -> tuple[list[np.ndarray], float]:
    """The parameters of a small network behind some steps, and the last loss."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 8)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int)
    first, second = dense(8, 16), dense(16, 2)
    params = [*first.parameters, *second.parameters]
    for p in params:
        p.data[...] = rng.standard_normal(p.shape) / 4
    optimizer = make(params)
    arrays = [p.data for p in params]
    for _ in range(steps):
        loss = losses.softmax_crossentropy(second(relu(first(x))), y)
        loss.backward()
        optimizer.step()
    assert all(a is p.data for a, p in zip(arrays, params, strict=True))
    return arrays, float(loss.data)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (lambda p: optimizers.Adam(p, learning_rate=0.01), {"lr": 0.01}),
        (lambda p: optimizers.SGD(p, learning_rate=0.1), {"rule": schuss.SGD, "lr": 0.1}),
        (
            lambda p: optimizers.Adam(p, learning_rate=0.01, weight_decay=0.001),
            {
                "lr": 0.01,
                "weight_decay": 0.001,
                "decay_mode": "decoupled_unscaled",
                "no_decay": lambda name, array: array.ndim < 2,
            },
        ),
    ],
    ids=["Adam", "SGD", "Adam with decay"],
)
def test_trainings_are_its_own(theirs: Any, ours: dict[str, Any]) -> None:
    expected, there = trained(theirs)
    found, here = trained(lambda params: Stepped(params, **ours))
    assert there < 0.6
    assert np.isclose(here, there, rtol=1e-5)
    assert all(np.allclose(a, b, rtol=0, atol=2e-5) for a, b in zip(found, expected, strict=True))


def test_what_has_no_gradient_stays(rng: np.random.Generator) -> None:
    layer, unused = dense(3, 2), dense(2, 2)
    params = [*layer.parameters, *unused.parameters]
    optimizer = Stepped(params, lr=0.1)
    before = [p.data.copy() for p in params]
    layer(rng.standard_normal((4, 3)).astype(np.float32)).sum().backward()
    optimizer.step()
    moved = [not np.array_equal(a, p.data) for a, p in zip(before, params, strict=True)]
    assert moved == [True, True, False, False]
