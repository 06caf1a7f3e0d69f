"""Parameters in one array: the same numbers in the same order, and steps that go on as before."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import schuss
from schuss import reference, rules
from schuss.engine.optimizer import Optimizer

BF16 = np.dtype(ml_dtypes.bfloat16)
TYPES = [np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.float16), BF16]


def model(rng: np.random.Generator, dtype: Any) -> dict[str, Any]:
    """Arrays of both orders, of no dimension and without elements, in a nested structure."""
    shapes = [(3, 4), (2, 3, 5), (), (0, 7), (9,)]
    arrays = [np.asarray(rng.standard_normal(shape)).astype(dtype) for shape in shapes]
    arrays[1] = np.asfortranarray(arrays[1])
    return {"layers": [{"w": arrays[0], "b": arrays[4]}, (arrays[1], arrays[2])], "none": arrays[3]}


def arrays_in(value: Any) -> list[np.ndarray]:
    if isinstance(value, np.ndarray):
        return [value]
    inner = value.values() if isinstance(value, dict) else value
    return [a for part in inner for a in arrays_in(part)]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_views_follow_one_another(dtype: Any, rng: np.random.Generator) -> None:
    params = model(rng, dtype)
    before = [(a, a.tobytes(order="A")) for a in arrays_in(params)]
    flat, views = schuss.flatten(params)
    assert flat.shape == (sum(a.size for a, _ in before),)
    assert flat.dtype == dtype
    assert flat.flags.owndata
    assert list(views) == ["layers", "none"]
    assert list(views["layers"][0]) == ["w", "b"]
    assert isinstance(views["layers"][1], list)
    assert b"".join(own for _, own in before) == flat.tobytes()
    for (a, own), view in zip(before, arrays_in(views), strict=True):
        assert (view.shape, view.dtype) == (a.shape, a.dtype)
        assert view.flags.f_contiguous == a.flags.f_contiguous
        assert view.base is flat
        assert a.tobytes(order="A") == view.tobytes(order="A") == own
        assert not np.shares_memory(a, flat)
    flat.fill(2)
    assert all((view == 2).all() for view in arrays_in(views))


@settings(deadline=None, max_examples=50)
@given(
    shapes=st.lists(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0), min_size=1, max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shapes(shapes: list[tuple[int, ...]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(rng.standard_normal(s), order=rng.choice(["C", "F"])) for s in shapes]
    flat, views = schuss.flatten(iter(arrays))
    np.testing.assert_array_equal(flat, np.concatenate([a.ravel(order="K") for a in arrays]))
    assert all((a == b).all() for a, b in zip(arrays, views, strict=True))
    alone, view = schuss.flatten(arrays[0])
    assert view.base is alone
    assert (view == arrays[0]).all()


def test_bits_that_are_no_numbers_stay() -> None:
    bits = np.array([0x7FC12345, 0xFF812345, 0x80000000, 1], np.uint32)
    assert schuss.flatten(bits.view(np.float32))[0].view(np.uint32).tolist() == bits.tolist()


@pytest.mark.parametrize("rule", rules.RULES)
def test_steps_are_those_of_arrays_apart(
    rule: type[Optimizer], rng: np.random.Generator, many_threads: None
) -> None:
    """State, parameters and dither to the last bit: an element's place is that of its array."""
    sizes = {"a": (70, 3), "b": (1,), "c": (4099,), "d": (5, 5)}
    apart: dict[str, Any] = {
        k: rng.standard_normal(shape).astype(BF16) for k, shape in sizes.items()
    }
    flat, views = schuss.flatten(apart)
    options: dict[str, Any] = {"stochastic_rounding": True, "state_dtype": "bfloat16", "ema": 0.9}
    opts = [rule(params, **options) for params in (apart, views)]
    for t in range(3):
        grads = {k: rng.standard_normal(shape).astype(np.float32) for k, shape in sizes.items()}
        for opt in opts:
            opt.step(grads, loss=1.0 - t / 9 if opt._recipe().reads_loss else None)
    assert b"".join(a.tobytes() for a in apart.values()) == flat.tobytes()
    for name in sizes:
        own, theirs = (opt.state_dict()["state"][name] for opt in opts)
        assert own.keys() == theirs.keys()
        assert all(np.asarray(own[k]).tobytes() == np.asarray(theirs[k]).tobytes() for k in own)


def test_what_is_refused() -> None:
    x = np.ones(3)
    wrong: list[tuple[Any, type[Exception], str]] = [
        ({}, ValueError, "params: no array in it"),
        ({"a": x, "b": np.ones(2, np.float32)}, TypeError, r'params\["b"\]: float32, .* float64'),
        ({"a": x, "b": [x]}, ValueError, r'params\["b.0"\]: overlaps params\["a"\]'),
        ([x, x[1:]], ValueError, r"params\[1\]: overlaps params\[0\]"),
        ([x[1:], np.ones(2), x], ValueError, r"params\[2\]: overlaps params\[0\]"),
        ([x, x[:2]], ValueError, r"params\[1\]: overlaps params\[0\]"),
        ({"a": [1.0, 2.0]}, TypeError, r'params\["a.0"\]: not a numpy.ndarray'),
        ([np.ones(3, int)], TypeError, r"params\[0\]: dtype int64"),
        ([np.ones(6)[::2]], ValueError, r"params\[0\]: not contiguous"),
        ([np.ma.masked_array(x)], TypeError, r"params\[0\]: a masked array"),
    ]
    for params, error, says in wrong:
        with pytest.raises(error, match=says):
            schuss.flatten(params)
    assert schuss.flatten([x[2:], x[:0], x[:2]])[0].size == 3
    x.flags.writeable = False
    flat, view = schuss.flatten(x)
    assert flat.flags.writeable
    assert view.flags.writeable


# ---- Gradients in one array


def flattened() -> tuple[dict[str, np.ndarray], Optimizer]:
    params = schuss.flatten({"w": np.ones((4, 3)), "b": np.zeros(3)})[1]
    return params, schuss.Adam(params, lr=0.1)


def test_arrays_without_elements_part_nothing() -> None:
    for shapes in ([(3,), (0, 4), (2,)], [(0,), (3,)], [(3,), (2, 0)], [(0, 4)]):
        arrays = [np.ones(shape) for shape in shapes]
        flat, views = schuss.flatten(arrays)
        opt, apart = schuss.Adam(views, lr=0.1), schuss.Adam(arrays, lr=0.1)
        opt.flat_grads[...] = np.arange(flat.size)
        own = [np.asarray(p.g) for p in opt._parameters]
        assert [g.shape for g in own] == shapes
        means = [p.state["exp_avg"] for p in opt._parameters]
        assert len({id(m.base) for m in means if m.size}) <= 1
        opt.step()
        apart.step(own)
        assert b"".join(a.tobytes() for a in arrays) == flat.tobytes()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_a_copy_has_no_flat_gradients(copied: Any) -> None:
    params, opt = flattened()
    opt.flat_grads[...] = 1
    assert opt.step()
    other = copied(opt)
    with pytest.raises(ValueError, match="grads: none bound"):
        other.zero_grad()
    with pytest.raises((TypeError, ValueError), match="grads"):
        other.step()
    assert other.step({k: np.ones_like(x) for k, x in params.items()})
    assert opt.step()
    assert all((p.x == params[p.name]).all() for p in other._parameters)
    assert opt.flat_grads.any()


def test_a_copy_keeps_gradients_that_are_apart() -> None:
    x, g = np.ones(3), np.ones(3)
    other = copy.deepcopy(schuss.SGD([x], grads=[g], lr=1.0))
    assert other.step()


def test_flat_gradients_are_not_bound_while_others_arrive() -> None:
    params, opt = flattened()
    with opt.arriving() as step:
        with pytest.raises(RuntimeError, match="gradients are arriving"):
            _ = opt.flat_grads
        step("w", np.ones((4, 3)))
    with pytest.raises(ValueError, match="grads: none bound"):
        opt.zero_grad()
    own = opt.flat_grads
    with opt.arriving() as step:
        assert opt.flat_grads is own
        step("b", np.ones(3))
    assert params["b"][0] == pytest.approx(-0.1)


def test_flat_gradients_may_come_while_means_stand() -> None:
    params = schuss.flatten([np.ones(3), np.ones(2)])[1]
    opt = schuss.SGD(params, lr=1.0, ema=0.5)
    with opt.averaged():
        opt.flat_grads.fill(1)
        with pytest.raises(RuntimeError, match="averaged"):
            opt.step()
    assert opt.step()
    assert (params[1] == 0).all()


class Interrupting:
    """Interrupts at the k-th line that is run in this package, but for what holds the lock."""

    def __init__(self, k: int) -> None:
        self.left = k

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        name = frame.f_globals.get("__name__", "")
        if event == "line" and name.startswith("schuss.") and name != "schuss.engine.guard":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


def test_flat_gradients_are_bound_whole_whatever_interrupts() -> None:
    interrupted, bound, k = True, set(), 0
    while interrupted:
        k += 1
        params, opt = flattened()
        grads = {name: np.ones_like(x) for name, x in params.items()}
        opt.step(grads)
        interrupted = False
        before = sys.gettrace()
        try:
            sys.settrace(Interrupting(k))
            _ = opt.flat_grads
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(before)
        assert opt.iterations == 1
        own = [p.g is not None for p in opt._parameters]
        assert own == [opt._bound] * 2
        assert (opt._flat_grads is not None) == opt._bound
        bound.add(opt._bound)
        if opt._bound:
            opt.flat_grads.fill(1)
            opt.step()
        else:
            with pytest.raises((TypeError, ValueError), match="grads"):
                opt.step()
            opt.step(grads)
        assert [opt.state[name]["step"] for name in params] == [2, 2]
        assert params["b"] == pytest.approx(-0.2)
        opt.flat_grads.fill(0)
        opt.step()
        assert opt.iterations == 3
    assert k > 20
    assert bound == {False, True}


def test_what_an_optimizer_no_longer_steps_is_let_go() -> None:
    flat, views = schuss.flatten([np.ones(3), np.ones(2)])
    opt, old = schuss.Adam(views, lr=0.1), weakref.ref(flat)
    opt.rebind([np.ones(3), np.ones(2)])
    del flat, views
    gc.collect()
    assert old() is None
    flat, views = schuss.flatten([np.ones(3), np.ones(2)])
    old = weakref.ref(flat)
    with pytest.raises(ValueError, match="two groups have this name"):
        opt.add_param_group({"params": {"0": views[0], "1": views[1]}})
    del flat, views
    gc.collect()
    assert old() is None


# ---- The sum of arrays alone


@pytest.mark.parametrize("out", TYPES, ids=str)
def test_an_average_is_rounded_once(out: Any, rng: np.random.Generator) -> None:
    types = TYPES[:1] if out == np.float64 else TYPES[1:]
    number: Any = np.float64 if out == np.float64 else np.float32
    for shape in ((), (5,), (0,), (3, 7), (4099,)):
        arrays = [
            np.asarray(rng.standard_normal(shape)).astype(types[i % len(types)]) for i in range(5)
        ]
        every: list[Any] = [None, rng.standard_normal(5).tolist(), np.arange(5.0)]
        for weights in every:
            found = np.empty(shape, out)
            assert schuss.average(arrays, weights, found) is found
            want = reference.average(
                arrays, [0.2] * 5 if weights is None else list(weights), number
            )
            assert want is not None
            assert want.astype(out).tobytes() == found.tobytes()
    first = schuss.average(arrays)
    assert first.dtype == arrays[0].dtype
    np.testing.assert_allclose(
        schuss.average([np.arange(9.0), np.ones(9)], [2, -1]), 2 * np.arange(9) - 1
    )


def test_an_average_in_place_and_in_fortran_order(rng: np.random.Generator) -> None:
    a, b = np.asfortranarray(rng.standard_normal((2, 5, 700)))
    a, b = np.asfortranarray(a), np.asfortranarray(b)
    want = 0.5 * a + 0.5 * b
    assert schuss.average([a, b], out=b) is b
    assert b.flags.f_contiguous
    assert (b == want).all()


def test_what_an_average_refuses() -> None:
    x, narrow, buffer = np.ones(4), np.ones(4, np.float32), np.ones(5)
    frozen = np.ones(4)
    frozen.flags.writeable = False
    wrong: list[tuple[Any, type[Exception], str]] = [
        (([],), ValueError, "arrays: none"),
        (([x, [1.0]],), TypeError, r"arrays\[1\]: not a numpy.ndarray"),
        (([x, np.ones(3)],), ValueError, r"arrays\[1\]: float64 of shape \(3,\)"),
        (([x, narrow],), ValueError, r"arrays\[1\]: float32"),
        (([np.ones((2, 3)), np.asfortranarray(np.ones((2, 3)))],), ValueError, r"arrays\[1\]:"),
        (([x, x], [1.0]), ValueError, "weights: 1 for 2 arrays"),
        (([x], [np.nan]), ValueError, r"weights\[0\]: nan is out of range"),
        (([x], ["1"]), TypeError, r"weights\[0\]: '1' is not a number"),
        (([x], None, frozen), ValueError, "out: read-only"),
        (([x], None, narrow), ValueError, "out: float32"),
        (([buffer[:4]], None, buffer[1:]), ValueError, r"out: overlaps arrays\[0\]"),
    ]
    for arguments, error, says in wrong:
        with pytest.raises(error, match=says):
            schuss.average(*arguments)
    assert (x == 1).all()
    assert (buffer == 1).all()
    assert (schuss.average([frozen, x]) == 1).all()
