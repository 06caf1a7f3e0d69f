"""HIPS autograd: its optimizers and ours, on models like those of its examples."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import schuss.autograd
from clients.recipes import run

MISSING = "autograd is not installed: its tests did not run"
grad = pytest.importorskip("autograd", reason=MISSING).grad
anp = import_module("autograd.numpy")
optimizers = import_module("autograd.misc.optimizers")
flatten = import_module("autograd.misc.flatten").flatten
logsumexp = import_module("autograd.scipy.special").logsumexp

NAMES = schuss.autograd.__all__
Objective = Callable[[Any, int], Any]


# ---- Models


def layers(rng: np.random.Generator, *sizes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (0.3 * rng.standard_normal((m, n)), 0.3 * rng.standard_normal(n))
        for m, n in pairwise(sizes)
    ]


def predicted(params: Any, x: Any) -> Any:
    *hidden, (last, bias) = params
    for w, b in hidden:
        x = anp.tanh(anp.dot(x, w) + b)
    return anp.dot(x, last) + bias


def neural_net() -> tuple[Objective, Any]:
    """A classifier in a list of tuples, with a prior of all weights, in batches."""
    rng = np.random.default_rng(0)
    x, hot = rng.standard_normal((3, 20, 8)), np.eye(4)[rng.integers(4, size=(3, 20))]

    def objective(params: Any, i: int) -> Any:
        scores = predicted(params, x[i % 3])
        likelihood = anp.sum((scores - logsumexp(scores, axis=1, keepdims=True)) * hot[i % 3])
        flat, _ = flatten(params)
        return anp.dot(flat, flat) / 100 - likelihood

    return objective, layers(rng, 8, 10, 4)


def recurrent_net() -> tuple[Objective, Any]:
    """Characters, one after the other: a dict, whose arrays come back as sums over time."""
    text = "the river runs to the sea and the sea feeds the cloud and the rain"
    known = sorted(set(text))
    hot = np.eye(len(known))[[known.index(c) for c in text]]
    rng = np.random.default_rng(0)
    params = {
        "start": 0.1 * rng.standard_normal((1, 12)),
        "change": 0.1 * rng.standard_normal((len(known) + 12 + 1, 12)),
        "predict": 0.1 * rng.standard_normal((12 + 1, len(known))),
    }
    windows = [hot[i : i + 6] for i in range(0, len(hot) - 6, 3)]
    inputs = np.stack(windows, axis=1)

    def objective(params: Any, i: int) -> Any:
        one = np.ones((inputs.shape[1], 1))
        state = anp.repeat(params["start"], inputs.shape[1], axis=0)
        loss = 0.0
        for now in inputs:
            scores = anp.dot(anp.hstack((state, one)), params["predict"])
            loss -= anp.sum((scores - logsumexp(scores, axis=1, keepdims=True)) * now)
            state = anp.tanh(anp.dot(anp.hstack((now, state, one)), params["change"]))
        return loss / inputs.size

    return objective, params


def autoencoder() -> tuple[Objective, Any]:
    """A variational one: a tuple of two nets, noise that is drawn by the gradient."""
    rng = np.random.default_rng(0)
    x = (rng.random((15, 16)) < 0.4) * 2.0 - 1

    def objective(params: Any, i: int) -> Any:
        decoder, encoder = params
        code = predicted(encoder, x)
        mean, log_std = code[:, :3], code[:, 3:]
        noise = np.random.default_rng(i).standard_normal(mean.shape)
        scores = predicted(decoder, mean + anp.exp(log_std) * noise)
        likelihood = -anp.sum(anp.logaddexp(0, -scores * x), axis=1)
        apart = anp.sum(mean**2 + anp.exp(2 * log_std) - 2 * log_std, axis=1) / 2
        return anp.mean(apart - likelihood)

    return objective, (layers(rng, 3, 10, 16), layers(rng, 16, 10, 6))


def scalars() -> tuple[Objective, Any]:
    """Parameters of no dimension, one of them alone in its list, as plain numbers."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(30)
    y = 3 * x - 1

    def objective(params: Any, i: int) -> Any:
        residual = params["slope"] * x + params["rest"][0] - y
        return anp.mean(residual**2) * anp.exp(params["log"]) - params["log"]

    return objective, {"slope": 0.5, "rest": [np.float64(0.25)], "log": 0.0}


MODELS = [neural_net, recurrent_net, autoencoder, scalars]


def same_structure(a: Any, b: Any) -> bool:
    """Types, keys, and of arrays shape and dtype, too."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_structure(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_structure, a, b))
    return bool(a.shape == b.shape and a.dtype == b.dtype)


# ---- The same


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_trajectory(name: str, model: Callable[[], tuple[Objective, Any]]) -> None:
    """Parameters, and gradients at them, in each of 60 iterations."""
    objective, start = model()
    runs = []
    for home in (optimizers, schuss.autograd):
        seen: list[Any] = []

        def callback(x: Any, i: int, g: Any, seen: list[Any] = seen) -> None:
            seen.append((i, x, g))

        end = getattr(home, name)(grad(objective), start, callback, 60, 0.02)
        runs.append((seen, end))
    (theirs, their_end), (ours, our_end) = runs
    assert same_structure(their_end, our_end)
    assert [i for i, *_ in ours] == list(range(60))
    for (_, x, g), (_, y, h) in zip(theirs, ours, strict=True):
        assert same_structure(x, y)
        np.testing.assert_allclose(flatten(y)[0], flatten(x)[0], rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(flatten(h)[0], flatten(g)[0], rtol=1e-7, atol=1e-8)
    moved = flatten(their_end)[0] - flatten(start)[0]
    assert np.abs(moved).max() > 1e-2
    np.testing.assert_allclose(flatten(our_end)[0] - flatten(start)[0], moved, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_signature(name: str) -> None:
    """Names, order and defaults: autograd wraps functions of a flat x."""
    (flat,) = (c.cell_contents for c in getattr(optimizers, name).__closure__)
    theirs = {k: p.default for k, p in inspect.signature(flat).parameters.items()}
    theirs = {"x0" if k == "x" else k: default for k, default in theirs.items()}
    own = inspect.signature(getattr(schuss.autograd, name)).parameters
    assert [(k, p.default) for k, p in own.items()] == [*theirs.items()]


def test_recipe() -> None:
    """The page's function, with autograd's Adam."""
    names = run("HIPS autograd")
    start = {"w": np.zeros(3), "b": 0.0}
    want = optimizers.adam(grad(names["loss"]), start, num_iters=300, step_size=0.1)
    for name in start:
        np.testing.assert_allclose(names["fitted"][name], want[name], rtol=1e-10, atol=1e-12)


# ---- What its users do


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_all_kinds(name: str) -> None:
    """Fortran order, a broadcast one, the parameter itself, numbers, float32."""
    start = {"a": np.ones((3, 2)), "b": np.ones((2, 3)), "c": np.ones(3), "d": 1.0, "e": 2.0}
    start["f"] = [np.ones(2)]

    def slope(x: Any, i: int) -> Any:
        return {
            "f": [np.ones(2, np.float32) / 3],
            "e": np.float64(i),
            "d": 0.5,
            "c": x["c"],
            "b": np.broadcast_to(np.arange(3.0), (2, 3)),
            "a": np.asfortranarray(x["a"] - np.arange(2)),
        }

    ours = getattr(schuss.autograd, name)(slope, start, num_iters=9, step_size=0.1)
    theirs = getattr(optimizers, name)(slope, start, num_iters=9, step_size=0.1)
    assert same_structure(theirs, ours)
    np.testing.assert_allclose(flatten(ours)[0], flatten(theirs)[0], rtol=1e-13)


def test_what_is_kept_stays() -> None:
    """x0, what callbacks were given, and gradients that are written over."""
    start: list[Any] = [np.ones(2), (np.ones(()),)]
    buffer: list[Any] = [np.zeros(2), (np.zeros(()),)]
    kept: list[Any] = []

    def slope(x: Any, i: int) -> Any:
        buffer[0][...] = i + 1
        return buffer

    end = schuss.autograd.sgd(slope, start, lambda x, i, g: kept.append(x), 3, 1.0, 0.0)
    assert start[0].tolist() == [1, 1]
    assert [x[0].tolist() for x in kept] == [[1, 1], [0, 0], [-2, -2]]
    assert end[0].tolist() == [-5, -5]


def test_types() -> None:
    """float32 stays, where autograd goes on in float64; numbers and integers are float64."""
    seen = []

    def slope(x: Any, i: int) -> Any:
        seen.append(x.dtype)
        return x * 1.0

    single = schuss.autograd.adam(slope, np.ones(4, np.float32), num_iters=50, step_size=0.1)
    double = optimizers.adam(slope, np.ones(4, np.float32), num_iters=50, step_size=0.1)
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(single, double, atol=1e-6)
    for start in (1.0, 1, True, np.ones(3, int), np.ones(3, np.int8), np.ones(3, bool)):
        assert schuss.autograd.sgd(slope, start, num_iters=2).dtype == float
    assert schuss.autograd.sgd(lambda x, i: x, [np.float32(1), 1.0], num_iters=1)[0].dtype == float
    assert schuss.autograd.sgd(slope, 3.0, num_iters=0) == 3.0


def returned(g: Any, x: Any, i: int) -> Any:
    return g


def test_gradients_that_are_no_gradients() -> None:
    start = {"w": np.ones((2, 3)), "b": [np.ones(3)]}
    wrong: list[tuple[Any, type[Exception], str]] = [
        ({"w": np.ones(3), "b": [np.ones(3)]}, ValueError, r"shape \(3,\), wanted \(2, 3\)"),
        ({"w": np.ones((2, 3)), "b": []}, ValueError, "shorter"),
        ({"b": [np.ones(3)]}, KeyError, "'w'"),
        ({"w": np.ones((2, 3)), "b": [np.ones(3) * 1j]}, TypeError, "Cannot cast"),
        ({"w": np.ones((2, 3)), "b": [None]}, ValueError, r"shape \(\)"),
    ]
    for g, error, says in wrong:
        with pytest.raises(error, match=says):
            schuss.autograd.adam(partial(returned, g), start)
    with pytest.raises(TypeError, match="Cannot cast"):
        schuss.autograd.adam(lambda x, i: None, 1.0)
    with pytest.raises(TypeError, match="complex"):
        schuss.autograd.adam(lambda x, i: x, np.ones(3, complex))


def test_errors_have_autograd_s_names() -> None:
    wrong: list[tuple[str, Any, dict[str, Any], str]] = [
        ("adam", 1.0, {"step_size": -1}, r"step_size: -1.0 is out of range, wanted \[0, inf\)"),
        ("adam", 1.0, {"b1": 1}, "b1: 1.0 is out of range"),
        ("adam", 1.0, {"b2": "a"}, "b2: 'a' is not a number"),
        ("adam", 1.0, {"eps": -1}, "eps: -1.0 is out of range"),
        ("sgd", 1.0, {"mass": -1}, "mass: -1.0 is out of range"),
        ("rmsprop", 1.0, {"gamma": 2}, "gamma: 2.0 is out of range"),
        ("sgd", np.ones(3, complex), {}, "x0: dtype complex128 is not supported"),
        ("sgd", [1.0, None], {}, "x0: dtype object is not supported"),
        ("sgd", {}, {}, "x0: no array in it"),
    ]
    for name, start, numbers, says in wrong:
        with pytest.raises((TypeError, ValueError), match=f"^{says}"):
            getattr(schuss.autograd, name)(lambda x, i: x, start, **numbers)
