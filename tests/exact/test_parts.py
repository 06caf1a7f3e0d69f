"""The reference's rows, pieces, sums and fades against loops over numbers, and against whole steps.

That the kernels end on the same bits is the others' matter: here is what these bits have to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schuss import reference
from schuss.engine.codes import BlockFloat8, behind, blocks_of
from schuss.engine.scalars import KERNELS, NAMES, TRAITS
from schuss.reference import storage
from schuss.reference.storage import computing

BF16 = np.dtype(ml_dtypes.bfloat16)
NARROW = np.array([np.dtype(np.float32), np.dtype(np.float16), BF16])
WHOLE = np.array([np.dtype(np.int32), np.dtype(np.int64)])
seeds = st.integers(0, 2**32 - 1)
most = settings(deadline=None, max_examples=60)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def ordinary(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Numbers of several magnitudes, some of them zeros of either sign."""
    values = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3, shape)
    values[rng.random(shape) < 0.1] = 0.0
    values[rng.random(shape) < 0.1] = -0.0
    return values.astype(dtype)


# ---- Sums of pieces


@most
@given(
    seed=seeds,
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    double=st.booleans(),
    axes=st.sampled_from([(), (1,), (3,), (2, 2)]),
)
def test_coalesce_adds_what_is_of_one_row_in_order(
    seed: int, sizes: list[int], double: bool, axes: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(seed)
    number: Any = np.float64 if double else np.float32
    indices = [rng.integers(0, 8, n).astype(rng.choice(WHOLE)) for n in sizes]
    values = [
        ordinary(rng, (n, *axes), np.float64 if double else rng.choice(NARROW)) for n in sizes
    ]
    weights = [float(w) for w in rng.choice([1.0, -0.3, 1 / 3, 0.0], len(sizes))]
    found: dict[int, Any] = {}
    for index, value, weight in zip(indices, values, weights, strict=True):
        for row, v in zip(index.tolist(), value, strict=True):
            product = number(weight) * np.asarray(v, number)
            found[row] = found[row] + product if row in found else product
    rows, sums = reference.coalesce(indices, values, weights, number)
    assert rows.dtype == np.int64
    assert rows.tolist() == sorted(found)
    assert sums.dtype == number
    assert sums.shape == (len(found), *axes)
    assert all(same(np.asarray(s), np.asarray(found[r])) for r, s in zip(rows, sums, strict=True))


@most
@given(seed=seeds, count=st.integers(1, 6), double=st.booleans(), fortran=st.booleans())
def test_average_adds_from_the_first_to_the_last(
    seed: int, count: int, double: bool, fortran: bool
) -> None:
    rng = np.random.default_rng(seed)
    number: Any = np.float64 if double else np.float32
    order: Any = "F" if fortran else "C"
    pieces: list[Any] = [
        np.asarray(
            ordinary(rng, (3, 5), np.float64 if double else rng.choice(NARROW)),
            order=order,
        )
        for _ in range(count)
    ]
    weights = rng.standard_normal(count).tolist()
    pieces.insert(int(rng.integers(count + 1)), None)
    weights.insert(int(rng.integers(count + 1)), math.pi)
    before = [None if p is None else p.tobytes() for p in pieces]
    total = reference.average(pieces, weights, number)
    assert total is not None
    assert [None if p is None else p.tobytes() for p in pieces] == before
    assert total.flags.f_contiguous == fortran
    for i in np.ndindex(3, 5):
        want: Any = None
        for piece, weight in zip(pieces, weights, strict=True):
            if piece is not None:
                product = number(weight) * number(piece[i])
                want = product if want is None else want + product
        assert same(total[i], want)


def test_what_one_sum_is() -> None:
    """A product begins it, so that -0 stays; a weight is in the type before it multiplies."""
    zero = np.array([-0.0], np.float32)
    alone: Any = reference.average([zero], [1.0], np.float32)
    assert np.signbit(alone)
    assert np.signbit(reference.coalesce([np.array([3])], [zero], [1.0], np.float32)[1])
    third = reference.average([np.array([3.0], np.float32)], [1 / 3], np.float32)
    assert third == np.float32(1 / 3) * np.float32(3)
    assert reference.average([None, None], [1.0, 1.0], np.float32) is None
    total = reference.average([np.array(2.0), np.array(3.0)], [2.0, 1.0], np.float64)
    assert isinstance(total, np.ndarray)
    assert total.shape == ()
    assert total == 7


# ---- Sums in the tree


def tree(squares: list[float]) -> float:
    """The sum of an array, or of a row."""
    sums = []
    for start in range(0, len(squares), 4096):
        lanes = [0.0] * 16
        for i, a in enumerate(squares[start : start + 4096]):
            lanes[i % 16] += a
        for half in (8, 4, 2, 1):
            for k in range(half):
                lanes[k] += lanes[k + half]
        sums.append(lanes[0])
    return pairs(sums)


def pairs(sums: list[float]) -> float:
    """Neighbours are added until there is one."""
    while len(sums) > 1:
        rest = sums[len(sums) // 2 * 2 :]
        sums = [a + b for a, b in zip(sums[::2], sums[1::2], strict=False)] + rest
    return sums[0] if sums else 0.0


SHAPES = [(1, 1), (7, 1), (5, 3), (4, 16), (3, 4, 25), (3, 4096), (2, 4097), (6, 9000), (9,)]


@pytest.mark.parametrize("shape", SHAPES)
def test_each_row_is_summed_as_an_array_is(
    shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    g = rng.standard_normal(shape)
    each = [tree((row * row).ravel().tolist()) for row in g]
    assert reference.norm([g], [0]) == (pairs(each), 0, True)
    assert reference.norm([g]) == (tree((g * g).ravel().tolist()), 0, True)
    assert [reference.norm([row])[0] for row in g] == each
    np.testing.assert_allclose(pairs(each), math.fsum((g * g).ravel()), rtol=1e-14)
    both = reference.norm([g, g.astype(np.float32), g], [0])[0]
    wide = g.astype(np.float32).astype(np.float64)
    whole = (a.ravel().tolist() for a in (wide * wide, g * g))
    first, second = map(tree, whole)
    assert both == pairs(each) + first + second


def test_a_norm_of_rows_beyond_the_range_of_double() -> None:
    for size, exponent in ((1e200, 600), (1e-200, -600)):
        squares, k, finite = reference.norm([np.full((3, 2), size)], [0])
        assert (k, finite) == (exponent, True)
        np.testing.assert_allclose(math.ldexp(math.sqrt(squares), k), math.sqrt(6) * size)
    assert reference.norm([np.array([[1.0], [np.inf]])], [0])[2] is False
    for shape in ((0, 3), (3, 0)):
        assert reference.norm([np.ones(shape)], [0])[0] == 0


# ---- A step of rows

STAGES = reference.Stages(
    scale=0.7, clip=5.0, l2=0.01, l1=0.001, agree=1.5, oppose=0.0, keep=0.99, after=0.98,
    threshold=1e-4, low=-40.0, high=40.0, average=0.25, stochastic=True, key=12345,
)  # fmt: skip
KINDS = ["float64", "float32", "float16", "bfloat16", "codes", "master", "remainder", "bounds"]


def stepped(
    kernel: str, kind: str, rng: np.random.Generator, shape: tuple[int, ...]
) -> tuple[np.ndarray, list[Any], dict[str, Any]]:
    """A parameter with its state and what is beside it."""
    narrow = {"codes": BF16, "master": BF16, "remainder": BF16, "bounds": np.dtype(np.float32)}
    dtype = narrow.get(kind) or (BF16 if kind == "bfloat16" else np.dtype(kind))
    number = computing(dtype)
    x = ordinary(rng, shape, dtype)
    size = math.prod(shape)
    state: list[Any] = []
    for trait in TRAITS[kernel]:
        s = np.abs(ordinary(rng, shape, np.float32))
        if kind == "codes" and not trait.alone:
            state.append(BlockFloat8(s, signed=not trait.positive))
            assert state[-1].scales.size == blocks_of(size)
        else:
            state.append(s.astype(dtype if kind in ("float16", "bfloat16") else number))
    beside: dict[str, Any] = {"average": ordinary(rng, shape, number)}
    if kind == "master":
        beside["master"] = x.astype(np.float32)
    elif kind == "remainder":
        upper, beside["master"] = storage.split(ordinary(rng, shape, np.float32))
        x = upper.view(BF16)
    elif kind == "bounds":
        beside |= {"low": -np.abs(ordinary(rng, shape, number)), "high": np.ones(shape, number)}
    return x, state, beside


def copied(x: np.ndarray, state: list[Any], beside: dict[str, Any]) -> Any:
    twins = [
        BlockFloat8.of(s.codes.copy(), s.scales.copy()) if isinstance(s, BlockFloat8) else s.copy()
        for s in state
    ]
    return x.copy(), twins, {k: a.copy() for k, a in beside.items()}


def by_rows(x: np.ndarray, state: list[Any], beside: dict[str, Any]) -> list[np.ndarray]:
    """All arrays, each with a line of bytes for each row."""
    arrays = [x, *(a for s in state for a in behind(s)), *beside.values()]
    return [np.frombuffer(a.tobytes(), np.uint8).reshape(len(x), -1) for a in arrays]


def scalars(kernel: str, rng: np.random.Generator) -> dict[str, float]:
    return dict(zip(NAMES[kernel], rng.uniform(0.1, 0.9, len(NAMES[kernel])), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_step_as_they_do_in_the_whole_array(kernel: str, kind: str) -> None:
    rng = np.random.default_rng([KERNELS.index(kernel), KINDS.index(kind)])
    shape = (11, 2, 32) if kind in ("codes", "remainder") else (11, 3)
    rule, numbers = getattr(reference, kernel), scalars(kernel, rng)
    own = stepped(kernel, kind, rng, shape)
    for rows in (np.array([1, 4, 5, 10]), np.arange(11), np.array([7]), np.array([], np.int64)):
        x, state, beside = copied(*own)
        g = ordinary(rng, shape, np.float64 if kind == "float64" else np.float32)
        reference.step(rule, x, g, state, numbers, STAGES, position=977, **beside)
        some, its_state, its_beside = copied(*own)
        part = g[rows]
        reference.step(
            rule, some, part, its_state, numbers, STAGES,
            position=977, rows=rows.astype(np.int64), **its_beside,
        )  # fmt: skip
        before, whole = by_rows(*own), by_rows(x, state, beside)
        others = np.setdiff1d(np.arange(11), rows)
        for a, b, c in zip(by_rows(some, its_state, its_beside), whole, before, strict=True):
            assert (a[rows] == b[rows]).all()
            assert (a[others] == c[others]).all()
        assert same(part, g[rows])


def test_rows_of_one_axis_and_of_no_elements() -> None:
    for shape in ((6,), (6, 0), (0, 64)):
        rows = np.arange(shape[0])[1::2]
        x, s = np.zeros(shape, np.float32), BlockFloat8(np.zeros(shape), signed=True)
        state = [s] if math.prod(shape[1:]) % 64 == 0 else [np.zeros(shape, np.float32)]
        g = np.ones((len(rows), *shape[1:]), np.float32)
        around = reference.Stages(zero_grad=True)
        numbers = {"mu": 0.9, "w": 1.0, "s": 0.5}
        reference.step(reference.momentum, x, g, state, numbers, around, rows=rows)
        want = np.zeros(shape)
        want[rows] = -0.5
        assert (x == want).all()
        assert not g.any()


# ---- What a step reports, and what is measured, of rows


def in_blocks(a: Any) -> float:
    """The sum of squares of up to 4096 numbers, in their own type within blocks of 512."""
    lanes = [0.0] * 16
    for first in range(0, a.size, 512):
        own = [a.dtype.type(0)] * 16
        for i, x in enumerate(a[first : first + 512]):
            own[i % 16] += x * x
        lanes = [lane + float(more) for lane, more in zip(lanes, own, strict=True)]
    for half in (8, 4, 2, 1):
        lanes = [lanes[i] + lanes[i + half] for i in range(half)]
    return lanes[0]


@pytest.mark.parametrize("kind", ["float64", "bfloat16", "master", "remainder", "codes"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_report_is_of_what_moves_x(kernel: str, kind: str, rng: np.random.Generator) -> None:
    shape, rule, numbers = (6, 64), getattr(reference, kernel), scalars(kernel, rng)
    x, state, beside = stepped(kernel, kind, rng, shape)
    master = beside.get("master")
    stages = reference.Stages(scale=-0.5, l2=0.1, agree=1.25, oppose=0.5, keep=0.9)
    rows = np.array([0, 2, 3])
    g = ordinary(rng, (3, 64), np.float64 if kind == "float64" else np.float32)
    before = [a.copy() for a in by_rows(x, state, beside)]
    found = reference.report(rule, x, g, state, numbers, stages, master=master, rows=rows)
    assert all((a == b).all() for a, b in zip(by_rows(x, state, beside), before, strict=True))
    assert found.shape == (3, 3)
    number = computing(x.dtype)
    w = storage.weight(x, master, number)[rows]
    d = number(-0.5) * g + number(0.1) * w
    np.testing.assert_array_equal(found[0], [in_blocks(a) for a in d])
    np.testing.assert_array_equal(found[2], [in_blocks(a) for a in w])
    if kind == "float64":
        after = x.copy()
        reference.step(rule, after, g, state, numbers, stages, rows=rows)
        np.testing.assert_allclose(
            np.sqrt(found[1]), np.linalg.norm(0.9 * w - after[rows], axis=1), rtol=1e-6
        )
    x, state, beside = stepped(kernel, kind, rng, shape)
    g = ordinary(rng, shape, g.dtype)
    around: dict[str, Any] = {"master": beside.get("master")}
    whole = reference.report(rule, x, g, state, numbers, stages, **around)
    every = reference.report(rule, x, g, state, numbers, stages, rows=np.arange(6), **around)
    assert whole.shape == (3, 1)
    rtol = 1e-12 if kind == "float64" else 1e-6
    np.testing.assert_allclose(reference.pairwise(every), whole[:, 0], rtol=rtol)
    measured = reference.measure(rule, x, g, state, numbers, stages, **around)
    np.testing.assert_allclose([measured[i] for i in (1, 2, 0)], whole[:, 0], rtol=rtol)
    measured = reference.measure(rule, x, g, state, numbers, stages, rows=np.arange(6), **around)
    found = reference.pairwise(every)
    np.testing.assert_allclose([measured[i] for i in (1, 2, 0)], found, rtol=rtol)


# ---- Fades


def idle(stages: Any) -> Callable[..., None]:
    """A step with these stages, of arrays in double."""

    def step(kernel: str, x: Any, g: Any, state: Any, numbers: Any, **rows: Any) -> None:
        around = reference.Stages(**stages)
        reference.step(getattr(reference, kernel), x, g, state, numbers, around, **rows)

    return step


@pytest.mark.parametrize("missed", [0, 1, 2, 17, 400])
@pytest.mark.parametrize("keep", [1.0, 0.999])
@pytest.mark.parametrize("kernel", ["momentum", "nesterov"])
def test_a_fade_is_what_steps_without_a_gradient_do(
    missed: int, keep: float, kernel: str, rng: np.random.Generator
) -> None:
    """Of gradient descent with momentum: b = mu*b, and x = keep*x - c*b, so many times."""
    mu, s = 0.9, 0.1
    numbers = {"mu": mu, "w": 1.0, "s": s} | ({"a": 0.5} if kernel == "nesterov" else {})
    c = s * mu if kernel == "nesterov" else s  # of b, where there is no gradient
    x, b, g = (rng.standard_normal((5, 3)) for _ in range(3))
    y, d = x.copy(), b.copy()
    for _ in range(missed):
        idle({"keep": keep})(kernel, y, np.zeros_like(y), [d], numbers)
    idle({"keep": keep})(kernel, y, g, [d], numbers)
    drift = c * sum(keep ** (missed - j) * mu**j for j in range(1, missed + 1))
    fades = {"fade_x": keep**missed, "drift": drift, "fade_0": mu**missed}
    rows = np.array([0, 3])
    before = x.copy(), b.copy()
    idle({"keep": keep, **fades})(kernel, x, g[rows], [b], numbers, rows=rows)
    np.testing.assert_allclose(x[rows], y[rows], rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(b[rows], d[rows], rtol=1e-11, atol=1e-14)
    for a, old in zip((x, b), before, strict=True):
        assert (a[[1, 2, 4]] == old[[1, 2, 4]]).all()


def test_a_fade_of_two_moments(rng: np.random.Generator) -> None:
    numbers = {"w1": 0.1, "beta2": 0.99, "w2": 0.01, "step": 0.0, "denom": 1.0, "eps": 1e-8}
    m, v, g = rng.standard_normal((3, 4))
    v = v * v
    moments, faded, x = [m.copy(), v.copy()], [m.copy(), v.copy()], np.ones(4)
    for _ in range(9):
        idle({})("adam", x, np.zeros(4), moments, numbers)
    idle({})("adam", x, g, moments, numbers)
    idle({"fade_x": 0.5, "fade_0": 0.9**9, "fade_1": 0.99**9})("adam", x, g, faded, numbers)
    np.testing.assert_allclose(faded, moments, rtol=1e-13)
    assert (x == 0.5).all()


def test_what_does_not_fade_keeps_its_bits() -> None:
    """A factor of 1 is passed over, and so is a drift of 0: an infinite buffer makes no NaN."""
    x, b = np.array([-0.0, 1.0]), np.array([np.inf, 1.0])
    g = np.zeros(2)
    idle({"fade_x": 0.5})("momentum", x, g, [b], {"mu": 0.0, "w": 0.0, "s": 0.0})
    assert np.isnan(x[0])  # by the rule's 0*inf
    x, b = np.array([-0.0, 1.0]), np.array([np.inf, 1.0])
    found = reference.report(
        reference.momentum, x, g, [b], {"mu": 1.0, "w": 0.0, "s": 1.0}, reference.Stages(fade_x=0.5)
    )
    assert found[:, 0].tolist() == [0.0, np.inf, 0.25]
