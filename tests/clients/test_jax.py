"""JAX on the CPU: the recipe, and whose memory is whose."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest

import schuss
from clients.recipes import code, run

jax = pytest.importorskip("jax", reason="jax is not installed: its tests did not run")
jnp = import_module("jax.numpy")


def beginning_at(offset: int, a: np.ndarray) -> np.ndarray:
    """A copy whose memory begins so many bytes behind a multiple of 64."""
    room = np.empty(a.nbytes + 128, np.uint8)
    first = -room.ctypes.data % 64 + offset
    copy = room[first : first + a.nbytes].view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy


@pytest.mark.parametrize("steps", [20, 300])
def test_recipe(steps: int) -> None:
    """Both ways, with the Adam that comes with JAX, in float32; on the way, and at its end."""
    names = run("JAX on the CPU", range=lambda n: range(min(n, steps)))
    adam = import_module("jax.example_libraries.optimizers").adam
    begin, update, parameters = adam(0.1)
    update, gradient = jax.jit(update), jax.jit(jax.grad(names["loss"]))
    state = begin({"w": jnp.zeros(3), "b": jnp.zeros(())})
    for i in range(steps):
        state = update(i, gradient(parameters(state)), state)
    flat = names["unravel"](names["flat"])
    for name, a in parameters(state).items():
        np.testing.assert_allclose(names["params"][name], a, atol=2e-5)
        np.testing.assert_allclose(flat[name], a, atol=2e-5)


def test_the_recipe_waits() -> None:
    """A function that takes long reads parameters after it was called, so a step has to wait."""
    assert "jax.block_until_ready(value_and_grad(params))" in "".join(code("JAX on the CPU"))

    def loss(w: Any) -> Any:
        y = w
        for _ in range(20):
            y = jnp.tanh(y @ w)
        return y.sum()

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    w = np.full((400, 400), 0.01, np.float32)
    before, opt = w.copy(), schuss.SGD(w, lr=1.0)
    want, _ = jax.block_until_ready(value_and_grad(w))
    for _ in range(3):
        w[...] = before
        value, grads = jax.block_until_ready(value_and_grad(w))
        opt.step(np.asarray(grads))
        assert value == want


@pytest.mark.parametrize("way", [np.asarray, np.from_dlpack])
def test_gradients_are_views(way: Any) -> None:
    g = jax.jit(jax.grad(lambda w: (w**3).sum()))(np.full((4, 3), 2, np.float32))
    view = way(g)
    assert (view.flags.writeable, view.flags.owndata) == (False, False)
    x = np.zeros((4, 3), np.float32)
    schuss.SGD(x, lr=1.0).step(view)
    assert (x == -12).all()
    with pytest.raises(ValueError, match="read-only"):
        schuss.SGD(view)


def test_device_put_shares_memory() -> None:
    """The trap: what JAX takes for constant moves with a step; what jnp.array copied doesn't."""
    shared, copied = (beginning_at(0, np.ones(64, np.float32)) for _ in range(2))
    a, b = jax.block_until_ready((jax.device_put(shared), jnp.array(copied)))
    schuss.SGD([shared, copied], lr=1.0).step([np.ones(64, np.float32)] * 2)
    assert (float(a[0]), float(b[0])) == (0, 1)


def test_bfloat16() -> None:
    pytest.importorskip("ml_dtypes")
    bfloat16 = jnp.bfloat16
    w = np.ones(100, bfloat16)
    g = jax.block_until_ready(jax.jit(jax.grad(lambda w: (w * w).sum()))(w))
    schuss.SGD(w, lr=0.25).step(np.asarray(g))
    assert (w == bfloat16(0.5)).all()


def test_float64_wants_float64_of_jax() -> None:
    w = np.ones(3)
    g = jax.jit(jax.grad(lambda w: (w**2).sum()))(w)
    with pytest.raises(TypeError, match=r"float32, but params.* is float64"):
        schuss.SGD([w]).step([np.asarray(g)])
