"""A gradient that comes in pieces is their sum, in the type that is computed in, bit for bit."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from engine.unchanged import Unchanged, stepped

import schuss
from exact.combinations import by_kind, losses, nasty, same_bits, shifted
from exact.ends import Ends, ends, everywhere, require_same
from schuss.engine.declare import Backend
from schuss.engine.optimizer import Optimizer
from schuss.rules import matrix

STEPS = 5
F4, F8, BF = np.float32, np.float64, ml_dtypes.bfloat16
SHAPES: list[tuple[int, ...]] = [(257,), (), (0,), (3, 4), (3 * 4096 + 5,), (64, 3)]
KINDS = ["float32", "float16", "bfloat16"]
BACKENDS: list[Backend] = ["compiled", "numpy"]

pytestmark = pytest.mark.usefixtures("many_threads", "any_isa")


def summed(pieces: Sequence[Any], weights: Sequence[float] | None, dtype: str) -> Any:
    """Their sum as it is defined; None where there is none."""
    number: Any = F8 if dtype == "float64" else F4
    weights = [1 / len(pieces)] * len(pieces) if weights is None else weights
    found: Any = None
    with np.errstate(all="ignore"):
        for w, g in zip(weights, pieces, strict=True):
            if g is not None:
                part = number(w) * g.astype(number)
                found = part if found is None else found + part
    return found if found is None else np.asarray(found, number)


@functools.lru_cache(maxsize=8)
def pieces_of(dtype: str, count: int, wild: bool) -> list[list[list[np.ndarray]]]:
    """Of each step, of each piece the gradients: of every kind that goes with the parameter."""
    rng = np.random.default_rng(21)
    kinds = ["float64"] if dtype == "float64" else KINDS
    return [
        [
            [
                shifted(
                    nasty(rng, math.prod(s), kinds[(t + k + i) % len(kinds)], 0, wild), k + i
                ).reshape(s)
                for i, s in enumerate(SHAPES)
            ]
            for k in range(count)
        ]
        for t in range(STEPS)
    ]


def start(dtype: str) -> list[np.ndarray]:
    rng = np.random.default_rng(22)
    return [nasty(rng, math.prod(s), dtype, 0, wild=False).reshape(s) for s in SHAPES]


OPTIONS: list[tuple[str, Sequence[float] | None, dict[str, Any]]] = [
    ("float32", None, {}),
    ("float64", [0.1, -2.0, 1e-3], {"ema": 0.9}),
    ("float32", [1.0, 1.0, 1.0], {"clip_norm": 0.5, "nonfinite": "skip"}),
    ("bfloat16", (0.25, 0.5, 0.0), {"master": "remainder", "zero_grad": True}),
    ("float16", None, {"stochastic_rounding": True, "l2": 0.1, "clip_value": 0.5}),
    ("float32", [3, 2, 1], {"state_dtype": "bfloat16", "cautious": "mean", "grad_scale": 8.0}),
]


@pytest.mark.parametrize("rule", by_kind())
def test_a_step_of_pieces_is_that_of_their_sum(rule: type[Optimizer]) -> None:
    for dtype, weights, options in OPTIONS:
        steps = pieces_of(dtype, 3, wild=not options)

        def run(
            backend: Backend,
            whole: bool = False,
            dtype: Any = dtype,
            weights: Any = weights,
            options: Any = options,
            steps: Any = steps,
        ) -> Ends:
            opt = rule(start(dtype), backend=backend, **options)
            for t, pieces in enumerate(steps):
                given = copy.deepcopy(pieces)
                if whole:
                    each = zip(*pieces, strict=True)
                    opt.step([summed(p, weights, dtype) for p in each], loss=losses(t))
                    continue
                opt.step(pieces=given, weights=weights, loss=losses(t))
                for g, old in zip(chain(*given), chain(*pieces), strict=True):
                    assert not g.any() if opt.zeroes_grad else same_bits(g, old)
            return ends(opt)

        why = f"{rule.__name__} {dtype} {weights} {options}"
        require_same(everywhere(run, why), run("numpy", whole=True), why)


@pytest.mark.parametrize("count", [1, 2, 7, 33])
def test_any_number_of_pieces(count: int) -> None:
    steps = pieces_of("float32", count, wild=True)

    def run(backend: Backend, whole: bool = False) -> Ends:
        opt = schuss.AdamW(start("float32"), backend=backend)
        for pieces in steps[:2]:
            if whole:
                opt.step([summed(p, None, "float32") for p in zip(*pieces, strict=True)])
            else:
                opt.step(pieces=pieces)
        return ends(opt)

    require_same(everywhere(run), run("numpy", whole=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_piece_without_a_gradient_adds_nothing(backend: Backend) -> None:
    """Its weight goes with it; an array that no piece has a gradient for stays, with its count."""
    rng = np.random.default_rng(23)
    x = {"a": np.ones(9, F4), "b": np.ones(9, F4), "c": np.ones(9, F4)}
    y = copy.deepcopy(x)
    one, other = (schuss.Adam(p, backend=backend) for p in (x, y))
    g = [rng.standard_normal(9).astype(F4) for _ in range(4)]
    one.step(pieces=[{"a": g[0], "b": None, "c": None}, None, {"a": g[1], "b": g[2], "c": None}])
    third = F4(1 / 3)
    other.step({"a": third * g[0] + third * g[1], "b": third * g[2], "c": None})
    require_same(ends(one), ends(other))
    assert [s["step"] for s in one.state.values()] == [1, 1, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_are_factors_as_they_are(backend: Backend) -> None:
    x = np.zeros(2)
    opt = schuss.SGD(x, lr=1.0, backend=backend)
    pieces = [np.array([1.0, 2.0]), np.array([10.0, 20.0])]
    cases: list[tuple[Any, list[float]]] = [
        (None, [5.5, 11.0]),
        ([1, 1], [11, 22]),
        (np.array([2.0, -0.1]), [1, 2]),
    ]
    for weights, want in cases:
        x[:] = 0
        opt.step(pieces=pieces, weights=weights)
        assert (-x).tolist() == want


@pytest.mark.parametrize("backend", BACKENDS)
def test_pieces_in_structures_and_groups(backend: Backend) -> None:
    x = [np.zeros(2), np.zeros(3)]
    opt = schuss.SGD([{"params": {"a": [x[0]]}}, {"params": x[1]}], lr=1.0, backend=backend)
    piece = [{"a": [np.ones(2)]}, np.full(3, 2.0)]
    opt.step(pieces=(piece, piece, [{"a": [None]}, np.full(3, 8.0)]))
    assert x[0] == pytest.approx([-2 / 3] * 2)
    assert x[1] == pytest.approx([-4.0] * 3)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_pieces_of_rows(dtype: str) -> None:
    """As the rows of all pieces in their order, each multiplied by its weight."""
    rng = np.random.default_rng(24)
    shape = (20, 70)
    number: Any = F8 if dtype == "float64" else F4
    kinds: Any = [F8] if dtype == "float64" else [F4, np.float16, BF]
    weights = [0.3, -1.0, 0.7]
    steps = []
    for _ in range(STEPS):
        index = [rng.integers(0, 20, n).astype(k) for n, k in ((9, "i4"), (0, "i8"), (30, "i8"))]
        values = [
            rng.standard_normal((len(i), 70)).astype(kinds[k % len(kinds)])
            for k, i in enumerate(index)
        ]
        steps.append((index, values))

    def run(backend: Backend, whole: bool = False) -> Ends:
        x = np.linspace(-1, 1, 1400).reshape(shape).astype(dtype)
        opt = schuss.AdamW({"x": x}, stochastic_rounding=True, clip_norm=1.0, backend=backend)
        for index, values in steps:
            if whole:
                parts = [number(w) * v.astype(number) for w, v in zip(weights, values, strict=True)]
                opt.step({"x": schuss.Rows(np.concatenate(index), np.concatenate(parts))})
            else:
                given = [{"x": schuss.Rows(i, v)} for i, v in zip(index, values, strict=True)]
                opt.step(pieces=[given[0], None, *given[1:]], weights=[0.3, 9.0, -1.0, 0.7])
        return ends(opt)

    require_same(everywhere(run), run("numpy", whole=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_is_seen_in_the_sum(backend: Backend) -> None:
    """Two pieces that are finite, and whose sum isn't; and the other way round."""
    largest = float(np.finfo(F4).max)
    x = {"a": np.ones(3, F4)}
    for options in ({"nonfinite": "skip"}, {"nonfinite": "skip", "zero_grad": True}):
        opt = schuss.SGD(x, backend=backend, **options)
        pieces = [{"a": np.full(3, largest, F4)} for _ in range(2)]
        before = x["a"].copy()
        assert opt.step(pieces=pieces, weights=[1, 1]) is False
        assert same_bits(x["a"], before)
        assert all(p["a"].any() != opt.zeroes_grad for p in pieces)
    opt = schuss.SGD(x, nonfinite="raise", backend=backend)
    with pytest.raises(FloatingPointError, match=r'grads\["a"\]'):
        opt.step(pieces=[{"a": np.full(3, -largest, F4)} for _ in range(2)], weights=[1, 1])
    assert opt.step(pieces=[{"a": np.full(3, largest, F4)} for _ in range(2)], weights=[1, -1])


def wrong_pieces() -> dict[str, tuple[dict[str, Any], str]]:
    """What `step` is given, and what the error says."""
    ones = {name: np.ones(10, F4) for name in ("a", "w1", "z")}
    rows = schuss.Rows(np.array([0]), np.ones(1, F4))
    return {
        "both": ({"grads": ones, "pieces": [ones]}, "pieces"),
        "none of them": ({"pieces": []}, "pieces"),
        "one that is no sequence": ({"pieces": 3}, "pieces"),
        "weights alone": ({"grads": ones, "weights": [1.0]}, "weights"),
        "too few weights": ({"pieces": [ones, ones], "weights": [1.0]}, "weights"),
        "a weight that is nan": ({"pieces": [ones], "weights": [math.nan]}, "weights"),
        "an infinite weight": ({"pieces": [ones], "weights": [math.inf]}, "weights"),
        "a weight that is a word": ({"pieces": [ones], "weights": ["1"]}, "weights"),
        "another shape": ({"pieces": [ones, {**ones, "w1": np.ones(9, F4)}]}, "w1"),
        "float64": ({"pieces": [ones, {**ones, "w1": np.ones(10)}]}, "w1"),
        "a list": ({"pieces": [ones, {**ones, "w1": [1.0] * 10}]}, "w1"),
        "not contiguous": ({"pieces": [ones, {**ones, "w1": np.ones(20, F4)[::2]}]}, "w1"),
        "rows and an array": ({"pieces": [ones, {**ones, "w1": rows}]}, "w1"),
        "a missing key": ({"pieces": [ones, {"a": ones["a"]}]}, "w1"),
    }


@pytest.mark.parametrize("case", wrong_pieces())
def test_wrong_pieces(case: str, opt: Optimizer) -> None:
    given, says = wrong_pieces()[case]
    with Unchanged(opt, (TypeError, ValueError), says):  # type: ignore[arg-type]
        opt.step(**given)


@pytest.fixture(params=BACKENDS)
def opt(request: pytest.FixtureRequest) -> Optimizer:
    """With bound gradients nowhere."""
    return stepped({name: np.ones(10, F4) for name in ("a", "w1", "z")}, backend=request.param)


def test_bound_gradients_and_pieces() -> None:
    """What is given counts in this step."""
    x = np.zeros(3)
    opt = schuss.SGD(x, lr=1.0, grads=np.full(3, 100.0))
    opt.step(pieces=[np.ones(3), np.full(3, 3.0)])
    assert (x == -2).all()


# ---- The sum alone


@pytest.mark.usefixtures("many_threads", "any_isa")
@pytest.mark.parametrize("weights", [None, [0.1, -3.0, 2.0, 1.0]])
@pytest.mark.parametrize("to", ["float64", *KINDS])
@pytest.mark.parametrize("size", [0, 1, 5, 257, 3 * 4096 + 5])
def test_average(size: int, to: str, weights: Any) -> None:
    rng = np.random.default_rng(25)
    kinds = ["float64"] if to == "float64" else [*KINDS, "float32"]
    arrays = [shifted(nasty(rng, size, kinds[i % len(kinds)], 0), i) for i in range(4)]
    kept = copy.deepcopy(arrays)
    with np.errstate(over="ignore", invalid="ignore"):
        want = summed(arrays, weights, to).astype(to)

    def run(_: Backend) -> Ends:
        buffer = np.full(size + 3, 7, to)
        out = buffer[2 : 2 + size]
        assert schuss.average(arrays, weights, out=out) is out
        assert (buffer[[0, 1, -1]] == 7).all()
        return {"out": out}

    require_same(everywhere(run), {"out": want})
    assert all(same_bits(a, b) for a, b in zip(arrays, kept, strict=True))


def test_average_into_a_new_array() -> None:
    rng = np.random.default_rng(26)
    for dtype in (F4, F8):
        for order in ("C", "F"):
            arrays = [np.asarray(rng.standard_normal((5, 7)), dtype, order=order) for _ in range(3)]
            found = schuss.average(arrays)
            assert same_bits(found, summed(arrays, None, np.dtype(dtype).name))
            assert found.flags.f_contiguous == (order == "F")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"arrays": []}, "arrays"),
        ({"arrays": [np.ones(3), np.ones(4)]}, "arrays"),
        ({"arrays": [np.ones(3), np.ones(3, F4)]}, "arrays"),
        ({"arrays": [np.ones(3), [1.0, 1.0, 1.0]]}, "arrays"),
        ({"arrays": [np.ones(3, int)]}, "arrays"),
        ({"arrays": [np.ones(6)[::2]]}, "arrays"),
        ({"arrays": [np.ones(3)], "weights": [1.0, 2.0]}, "weights"),
        ({"arrays": [np.ones(3)], "weights": [math.nan]}, "weights"),
        ({"arrays": [np.ones(3)], "out": np.ones(4)}, "out"),
        ({"arrays": [np.ones(3)], "out": np.ones(3, F4)}, "out"),
        ({"arrays": [np.ones(3)], "out": np.ones(6)[::2]}, "out"),
        ({"arrays": [np.ones(3)], "out": [1.0, 1.0, 1.0]}, "out"),
    ],
)
def test_average_of_what_does_not_fit(given: dict[str, Any], says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        schuss.average(**given)
    read_only = np.ones(3)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="out"):
        schuss.average([np.ones(3)], out=read_only)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("zero_grad", [False, True])
@pytest.mark.parametrize("rule", matrix.RULES, ids=lambda rule: rule.__name__)
def test_matrices(rule: type[Optimizer], zero_grad: bool, backend: Backend) -> None:
    """And the vectors beside them, of which another rule takes care."""
    rng = np.random.default_rng(7)
    start = {"w": rng.standard_normal((4, 5)), "b": rng.standard_normal(5)}
    ends = []
    for in_pieces in (False, True):
        x = {name: a.astype(F4) for name, a in start.items()}
        opt = rule(x, zero_grad=zero_grad, backend=backend)
        for t in range(3):
            g = [{k: np.full_like(a, 1 + t + j) for k, a in x.items()} for j in range(3)]
            if in_pieces:
                opt.step(pieces=[g[0], {"w": None, "b": g[1]["b"]}, g[2]], weights=[0.5, 1.0, 0.25])
                left = [*g[0].values(), g[1]["b"], *g[2].values()]
                assert not zero_grad or not any(a.any() for a in left)
            else:
                w = F4(0.5) * g[0]["w"] + F4(0.25) * g[2]["w"]
                b = F4(0.5) * g[0]["b"] + g[1]["b"] + F4(0.25) * g[2]["b"]
                opt.step({"w": w, "b": b})
        opt.step(
            pieces=[{"w": None, "b": None}, {"w": np.ones((4, 5), F4), "b": None}], weights=[1, 1]
        )
        ends.append(x)
    for name in start:
        np.testing.assert_allclose(ends[0][name], ends[1][name], rtol=1e-5, err_msg=name)


def test_pieces_may_be_of_several_classes() -> None:
    class One(np.ndarray):
        pass

    class Other(np.ndarray):
        pass

    x = np.ones(3)
    schuss.SGD({"x": x}, lr=1.0).step(
        pieces=[{"x": np.ones(3).view(One)}, {"x": np.ones(3).view(Other)}]
    )
    assert (x == 0).all()


def test_a_class_is_new_behind_a_piece_that_is_known() -> None:
    """All of the gradient is looked over anew then, and none of it is left out."""

    class One(np.ndarray):
        pass

    class Other(np.ndarray):
        pass

    x = np.zeros((2, 3))
    schuss.SGD({"x": x}, lr=1.0).step(
        pieces=[{"x": np.ones((2, 3))}, {"x": np.full((2, 3), 2.0).view(One)}], weights=[1, 1]
    )
    assert (x == -3).all()
    rows = [schuss.Rows(np.array([1]), a) for a in (np.ones((1, 3)), np.ones((1, 3)).view(Other))]
    schuss.SGD({"x": x}, lr=1.0).step(pieces=[{"x": own} for own in rows], weights=[1, 1])
    assert (x == [[-3], [-5]]).all()


def test_the_sum_that_is_not_finite_is_named() -> None:
    x = {"a": np.zeros(3, F4), "b": np.zeros(3, F4)}
    opt = schuss.SGD(x, nonfinite="raise")
    large = {"a": np.ones(3, F4), "b": np.full(3, 3e38, F4)}
    with pytest.raises(FloatingPointError, match=r'^grads\["b"\]: has elements that are not'):
        opt.step(pieces=[large, large], weights=[1.0, 1.0])
    assert opt.iterations == 0
    assert not any(a.any() for a in x.values())
