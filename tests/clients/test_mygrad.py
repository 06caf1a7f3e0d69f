"""MyGrad: the recipe, and what its graphs do to arrays."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

import schuss
from clients.recipes import run

mg = pytest.importorskip("mygrad", reason="mygrad is not installed: its tests did not run")


@pytest.mark.parametrize("steps", [20, 300])
def test_recipe(steps: int) -> None:
    """With MyNN's Adam in the place of ours; on the way, and at its end."""
    pytest.importorskip("mynn", reason="mynn is not installed: MyGrad's recipe was not compared")
    names = run("MyGrad", range=lambda n: range(min(n, steps)))
    theirs = {"w": mg.tensor(np.zeros(3)), "b": mg.tensor(0.0)}
    adam = import_module("mynn.optimizers.adam").Adam([*theirs.values()], learning_rate=0.1)
    for _ in range(steps):
        predicted = mg.matmul(names["x"], theirs["w"]) + theirs["b"]
        mg.mean((predicted - names["y"]) ** 2).backward()
        adam.step()
    for name, tensor in theirs.items():
        np.testing.assert_allclose(names["params"][name].data, tensor.data, rtol=1e-10, atol=1e-12)


def test_weight_decay_of_mynn() -> None:
    """Not multiplied by the rate, and none of vectors."""
    mynn = pytest.importorskip("mynn.optimizers.adam", reason="mynn is not installed")
    rng = np.random.default_rng(0)
    theirs = [mg.tensor(rng.standard_normal(shape)) for shape in ((4, 3), (3,))]
    own = [p.data.copy() for p in theirs]
    adam = mynn.Adam(theirs, learning_rate=0.05, weight_decay=0.02)
    opt = schuss.Adam(
        own,
        lr=0.05,
        weight_decay=0.02,
        decay_mode="decoupled_unscaled",
        no_decay=lambda _, a: a.ndim < 2,
    )
    for _ in range(30):
        grads = [rng.standard_normal(p.shape) for p in theirs]
        for p, g in zip(theirs, grads, strict=True):
            mg.sum(p * g).backward()
        adam.step()
        opt.step(grads)
    for x, p in zip(own, theirs, strict=True):
        np.testing.assert_allclose(x, p.data, atol=1e-13)


def test_a_graph_that_is_alive() -> None:
    """Its arrays are read-only: a step says so, and what ends a graph ends that."""
    w = mg.tensor(np.ones((3, 2)))
    opt = schuss.SGD({"w": w.data}, lr=1.0)
    for end in ("clear_graph", "backward"):
        loss = mg.sum(w * 2.0)
        with pytest.raises(ValueError, match=r'params\["w"\].*read-only'):
            opt.step({"w": np.ones((3, 2))})
        getattr(loss, end)()
        opt.step({"w": np.ones((3, 2))})
    with mg.no_autodiff:
        kept = mg.sum(w)
    assert kept.item() == -6
    assert opt.step({"w": np.ones((3, 2))})
    assert opt.iterations == 3


def test_a_tensor_that_is_set() -> None:
    """It has another array then; what is written to its array reaches the optimizer's."""
    w = mg.tensor(np.ones(3))
    opt = schuss.SGD({"w": w.data}, lr=1.0)
    w.data[...] = 2
    assert opt.holds({"w": w.data})
    w[...] = 3
    assert not opt.holds({"w": w.data})


def test_without_a_gradient() -> None:
    w, b = mg.tensor(np.ones(3)), mg.tensor(np.ones(3))
    opt = schuss.SGD([w.data, b.data], lr=1.0)
    mg.sum(w).backward()
    opt.step([w.grad, b.grad])
    assert (w.data.sum(), b.data.sum()) == (0, 3)
