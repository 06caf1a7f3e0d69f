"""A limit for the norm of each array, or of each row: the same bits everywhere, and by hand."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import numpy as np
import pytest

import schuss
from exact.combinations import by_kind, losses, nasty, same_bits
from exact.ends import Ends, ends, everywhere, require_same
from schuss import reference, rules
from schuss.engine.declare import Backend
from schuss.engine.optimizer import Optimizer
from schuss.rules import matrix

STEPS = 4
F4, F8 = np.float32, np.float64
SHAPES: list[tuple[int, ...]] = [(257,), (), (0,), (3, 4), (5, 4099), (40, 64), (0, 3), (4, 3, 5)]
BACKENDS: list[Backend] = ["compiled", "numpy"]
PER: list[Any] = ["array", "row"]
ALL: list[type[Optimizer]] = [*rules.RULES, *matrix.RULES]

pytestmark = pytest.mark.usefixtures("many_threads", "any_isa")


def factor(g: np.ndarray, limit: float, scale: float = 1.0) -> float:
    """By which a gradient becomes as short as the limit."""
    squares, exponent, _ = reference.norm([g])
    share = limit / (math.ldexp(math.sqrt(squares), exponent) / scale + 1e-6)
    return min(share, 1.0)


def clipped_rows(g: np.ndarray, limit: float, number: Any) -> np.ndarray:
    """Each row of the first axis multiplied by its factor, in the type that is computed in."""
    wide = g.astype(number)
    if g.ndim == 0:
        return np.asarray(number(factor(g, limit)) * wide, number)
    for row in range(len(g)):
        wide[row] = number(factor(g[row], limit)) * wide[row]
    return wide


def equal(rule: type[Optimizer], a: np.ndarray, b: np.ndarray) -> bool:
    """To the last bit, or as BLAS has it, which may go by where arrays lie."""
    if issubclass(rule, matrix.MatrixRule):
        return np.allclose(a.astype(F8), b.astype(F8), rtol=1e-2 if a.itemsize < 4 else 1e-5)
    return same_bits(a, b)


def grads(rng: np.random.Generator, dtype: str, shapes: Any, wild: bool = False) -> list[Any]:
    return [nasty(rng, math.prod(s), dtype, 0, wild).reshape(s) for s in shapes]


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("float32", {}),
    ("float64", {"ema": 0.9, "grad_scale": 4.0}),
    ("float32", {"state_dtype": "bfloat16", "nonfinite": "skip", "cautious": "mean"}),
    ("bfloat16", {"master": "remainder", "zero_grad": True, "maximize": True}),
    ("float16", {"stochastic_rounding": True, "l2": 0.1}),
]


@functools.cache
def training(dtype: str) -> list[list[Any]]:
    """Parameters, and the gradients of each step."""
    rng = np.random.default_rng(41)
    return [grads(rng, dtype, SHAPES, wild=t == 2) for t in range(-1, STEPS)]


@pytest.mark.parametrize("rule", by_kind())
def test_the_same_everywhere(rule: type[Optimizer]) -> None:
    """With a limit for each row; that for each array is among the pairs of test_exact.py."""
    for dtype, options in OPTIONS:

        def run(backend: Backend, dtype: Any = dtype, options: Any = options) -> Ends:
            x, *steps = copy.deepcopy(training(dtype))
            opt = rule(x, clip_norm=0.7, clip_norm_per="row", backend=backend, **options)
            for t, g in enumerate(steps):
                opt.step(g, loss=losses(t))
            return ends(opt)

        everywhere(run, f"{rule.__name__} {dtype} {options}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", [rule for rule in ALL if not rule.shared])
def test_each_array_as_if_alone(rule: type[Optimizer], backend: Backend) -> None:
    """With the limit for all arrays, of which there is one."""
    rng = np.random.default_rng(42)
    x = {str(k): rng.standard_normal(s).astype(F4) for k, s in enumerate([(9, 30), (7,), (4, 4)])}
    alone = {name: rule({name: a.copy()}, clip_norm=0.7, backend=backend) for name, a in x.items()}
    opt = rule(x, clip_norm=0.7, clip_norm_per="array", backend=backend)
    for t in range(STEPS):
        g = {name: rng.standard_normal(a.shape).astype(F4) for name, a in x.items()}
        opt.step(g, loss=losses(t))
        for name, own in alone.items():
            own.step({name: g[name]}, loss=losses(t))
    for name, own in alone.items():
        assert equal(rule, x[name], own._parameters[0].x), name


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", by_kind(ALL))
def test_each_row_is_multiplied_by_its_factor(
    rule: type[Optimizer], backend: Backend, dtype: str
) -> None:
    """Before all else that a step does: as gradients that come so."""
    rng = np.random.default_rng(43)
    number: Any = F8 if dtype == "float64" else F4
    shapes: Any = [(9, 30), (7,), (), (4, 3, 5), (2, 50, 100)]
    x = grads(rng, dtype, shapes)
    y = [a.copy() for a in x]
    one = rule(x, clip_norm=0.7, clip_norm_per="row", l2=0.1, backend=backend)
    other = rule(y, l2=0.1, backend=backend)
    for t in range(STEPS):
        g = grads(rng, dtype, shapes)
        one.step(g, loss=losses(t))
        other.step([clipped_rows(a, 0.7, number) for a in g], loss=losses(t))
    for a, b in zip(x, y, strict=True):
        assert equal(rule, a, b), a.shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_plain_numpy(backend: Backend) -> None:
    """Arrays by their norms, rows by theirs, elements of one axis by their sizes."""
    rng = np.random.default_rng(44)
    g = [rng.standard_normal((7, 300)) * np.logspace(-3, 1, 7)[:, None], np.array([0.3, -5.0, 0.0])]
    g.append(np.array(-9.0))
    for scale in (1.0, 4.0):
        for per in PER:
            x = [np.zeros_like(a) for a in g]
            opt = schuss.SGD(
                x, lr=1.0, clip_norm=0.8, clip_norm_per=per, grad_scale=scale, backend=backend
            )
            opt.step(g)
            for a, b in zip(x, g, strict=True):
                axes = None if per == "array" or a.ndim == 0 else tuple(range(1, a.ndim))
                given = b / scale
                lengths = np.sqrt(np.sum(given**2, axis=axes, keepdims=True))
                want = given * np.minimum(1.0, 0.8 / (lengths + 1e-6))
                np.testing.assert_allclose(-a, want, rtol=1e-12, atol=0)
                left = np.sqrt(np.sum(a**2, axis=axes))
                assert (left <= 0.8).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per", ["array", "row"])
def test_squares_beyond_double_in_one_of_many(per: Any, backend: Backend) -> None:
    """Each has an exponent of its own."""
    sizes = [1e200, 1e-200, 1.0, 1.2e308, 0.0]
    table = np.repeat(np.array(sizes)[:, None], 3, axis=1)
    g = [row[None] for row in table] if per == "array" else [table]
    x = [np.zeros_like(a) for a in g]
    opt = schuss.SGD(x, lr=1.0, clip_norm=1.0, clip_norm_per=per, backend=backend)
    opt.step(g)
    want = [3**-0.5, 1e-200, 1.0 / (math.sqrt(3) + 1e-6), 3**-0.5, 0.0]
    for found, value in zip(np.concatenate(x), want, strict=True):
        assert -found == pytest.approx([value] * 3, rel=1e-12, abs=0)


@pytest.mark.parametrize("per", ["array", "row"])
def test_what_is_not_finite_stays_in_its_array_or_row(per: Any) -> None:
    def run(backend: Backend) -> Ends:
        x = [np.zeros((3, 4)), np.zeros((3, 4))]
        opt = schuss.SGD(x, lr=1.0, clip_norm=1.0, clip_norm_per=per, backend=backend)
        g = np.ones((3, 4))
        g[1, 2] = np.nan
        opt.step([g, np.ones((3, 4))])
        assert np.isfinite(x[1]).all()
        assert np.isnan(x[0]).all(axis=1).tolist() == [per == "array", True, per == "array"]
        return ends(opt)

    everywhere(run)


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
@pytest.mark.parametrize("per", ["array", "row"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nonfinite(backend: Backend, per: Any, nonfinite: Any) -> None:
    x = [np.ones((3, 4)), np.ones(5)]
    opt = schuss.SGD(x, clip_norm=1.0, clip_norm_per=per, nonfinite=nonfinite, backend=backend)
    g = [np.ones((3, 4)), np.array([1, 2, 3, np.inf, 5.0])]
    before = ends(opt)
    if nonfinite == "skip":
        assert opt.step(g) is False
    else:
        with pytest.raises(FloatingPointError, match=r"grads\[1\]"):
            opt.step(g)
    assert all(same_bits(a, before[k]) for k, a in ends(opt).items() if k.startswith("params"))
    assert opt.step([g[0], np.ones(5)]) is True


@pytest.mark.parametrize("per", ["array", "row"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_rows(per: Any, dtype: str) -> None:
    """Duplicates are summed before, rows that have no gradient have no norm."""
    rng = np.random.default_rng(45)
    number: Any = F8 if dtype == "float64" else F4
    steps = []
    for _ in range(STEPS):
        index = rng.integers(0, 20, 25)
        steps.append((index, rng.standard_normal((25, 70)).astype(dtype)))

    def run(backend: Backend) -> Ends:
        x = [np.ones((20, 70), dtype), np.ones(9, dtype)]
        opt = schuss.AdamW(x, clip_norm=0.7, clip_norm_per=per, backend=backend)
        for index, values in steps:
            opt.step([schuss.Rows(index, values), np.full(9, 0.5, dtype)])
        return ends(opt)

    def by_hand() -> Ends:
        x = [np.ones((20, 70), dtype), np.ones(9, dtype)]
        opt = schuss.AdamW(x)
        for index, values in steps:
            rows = np.unique(index)
            sums = np.zeros((len(rows), 70), number)
            for k, row in enumerate(rows.tolist()):
                first, *more = values[index == row].astype(number)
                for v in more:
                    first = first + v
                sums[k] = first
            opt.step([schuss.Rows(rows, clipped_rows(sums, 0.7, number)), np.full(9, 0.5, dtype)])
        return ends(opt)

    found = everywhere(run)
    if per == "row":
        require_same(found | {"norm": np.array(np.nan)}, by_hand())


def test_pieces() -> None:
    """The norm is of their sum."""
    rng = np.random.default_rng(46)
    pieces = [rng.standard_normal((40, 70)).astype(F4) for _ in range(3)]
    total = F4(0.5) * pieces[0]
    for g in pieces[1:]:
        total = total + F4(0.5) * g
    for per in ("array", "row"):

        def run(backend: Backend, whole: bool = False, per: Any = per) -> Ends:
            x = np.ones((40, 70), F4)
            opt = schuss.Adam(x, clip_norm=0.7, clip_norm_per=per, backend=backend)
            for _ in range(STEPS):
                if whole:
                    opt.step(total)
                else:
                    opt.step(pieces=pieces, weights=[0.5] * 3)
            return ends(opt)

        require_same(everywhere(run), run("numpy", whole=True))


def test_per_what_is_checked() -> None:
    x = np.ones(3)
    with pytest.raises(ValueError, match="clip_norm_per"):
        schuss.SGD(x, clip_norm_per="column")  # type: ignore[arg-type]
    opt = schuss.SGD(x, lr=1.0, clip_norm=1.0)
    opt.clip_norm_per = "row"  # which is live
    opt.step(np.array([0.5, 3.0, -4.0]))
    assert x == pytest.approx([0.5, 0.0, 2.0], abs=1e-6)
    opt.clip_norm = math.inf
    opt.step(np.array([0.0, 3.0, 0.0]))
    assert x == pytest.approx([0.5, -3.0, 2.0], abs=1e-6)
