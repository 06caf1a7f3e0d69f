"""neuralnetlib: the recipe of docs/keyed.md against its own Adam, through whole fits."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from clients.recipes import run

neuralnetlib: Any = pytest.importorskip(
    "neuralnetlib.optimizers", reason="neuralnetlib is not installed: its tests did not run"
)
layers: Any = pytest.importorskip("neuralnetlib.layers")
models: Any = pytest.importorskip("neuralnetlib.models")


def fitted(optimizer: Any) -> tuple[list[np.ndarray], list[float]]:
    """The weights of a small network, and its losses."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 8))
    y = np.eye(3)[(x[:, :3]).argmax(axis=1)]
    model = models.Sequential()
    for layer in (
        layers.Input(8),
        layers.Dense(32, random_state=1),
        layers.Activation("relu"),
        layers.Dense(3, random_state=2),
        layers.Activation("softmax"),
    ):
        model.add(layer)
    model.compile(loss_function="categorical_crossentropy", optimizer=optimizer)
    history = model.fit(x, y, epochs=4, batch_size=32, verbose=False, random_state=0)
    dense = [layer for layer in model.layers if hasattr(layer, "weights")]
    return [a for layer in dense for a in (layer.weights, layer.bias)], history["loss"]


@pytest.mark.parametrize(
    ("options", "near"),
    [({}, 1e-12), ({"clip_norm": 0.05}, 1e-4), ({"learning_rate": 0.02}, 1e-11)],
    ids=str,
)
def test_fits_are_its_own(options: dict[str, Any], near: float) -> None:
    adam = run("neuralnetlib", "keyed.md")["Adam"]
    weights, losses = fitted(adam(**options))
    expected, theirs = fitted(neuralnetlib.Adam(**options))
    assert theirs[-1] < theirs[0]
    assert np.allclose(losses, theirs, rtol=near, atol=0)
    assert all(np.allclose(a, b, rtol=0, atol=near) for a, b in zip(weights, expected, strict=True))


def test_rates_that_are_set(rng: np.random.Generator) -> None:
    """As its callbacks do, between two steps; of arrays alone, without a bias."""
    ours, theirs = run("neuralnetlib", "keyed.md")["Adam"](), neuralnetlib.Adam()
    x = rng.standard_normal((2, 5))
    x[1] = x[0]
    for rate in (0.1, 0.01, 0.5):
        g = rng.standard_normal(5)
        for own, optimizer in zip(x, (ours, theirs), strict=True):
            optimizer.learning_rate = rate
            optimizer.update("0.weights", own, g.copy())
    assert np.allclose(x[0], x[1], rtol=0, atol=1e-13)


def test_it_is_as_short_as_promised() -> None:
    adam = run("neuralnetlib", "keyed.md")["Adam"]
    assert issubclass(adam, neuralnetlib.Optimizer)
    wanted = inspect.signature(neuralnetlib.Adam.update)
    assert [*inspect.signature(adam.update).parameters] == [*wanted.parameters]
