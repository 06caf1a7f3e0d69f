"""Kernel and reference end on the same bits: parameters, every state array, and nothing else moved.

The list of rules drives everything here. A combination is a rule with a value for each of its
options and for what surrounds them; every pair of values, and with it every value, and random full
combinations run on every instruction set and with one to five threads.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest

import schuss
from exact.combinations import (
    ISAS,
    KINDS,
    losses,
    nasty,
    options_of,
    random_row,
    same_bits,
    shifted,
    values_of_options,
)
from schuss import _core, functional, reference, rules, threads
from schuss.engine.codes import behind
from schuss.engine.optimizer import Optimizer

STEPS = 12
# Each kernel once, under the first rule that has it.
FIRST = {kernel: rule for rule in reversed(rules.RULES) for kernel in rule.states}
KERNELS = [(rule, kernel) for kernel, rule in reversed(FIRST.items())]
# Every set, and an even and an odd number of threads; pairs of values have all numbers of them.
TEAMS = [*((isa, 1) for isa in ISAS), (ISAS[0], 2), (ISAS[-1], 5)]

# ---- Arrays and gradients


class Layout(NamedTuple):
    """Sizes of a list of arrays, and where each begins: so many elements behind an aligned one."""

    sizes: tuple[int, ...]
    offsets: tuple[int, ...]


def spread(sizes: list[int]) -> Layout:
    return Layout(tuple(sizes), tuple(7 * i % 64 for i in range(len(sizes))))


AROUND = [m * n + d for m, n in [(1, 512), (2, 512), (1, 4096), (3, 4096)] for d in (-1, 0, 1)]
LAYOUTS = {
    "tails": spread([*range(131), *AROUND]),  # at each of 64 places beside an aligned one
    "large": spread([150_001, 1, 0, 4097]),
    "million": spread([1_000_003]),
    "few": spread([257, 0, 33, 4100]),
}
PAD = 64
FENCE = 1232.0  # a number of every type


class Arrays:
    """The arrays of a layout, cut out of buffers whose other elements nothing may touch."""

    def __init__(self, layout: Layout, dtype: str, wild: bool) -> None:
        rng = np.random.default_rng(1)
        self.buffers = []
        self.views = []
        for size, offset in zip(layout.sizes, layout.offsets, strict=True):
            buffer = np.full(size + 3 * PAD, FENCE, dtype)
            start = (-buffer.ctypes.data // buffer.itemsize) % PAD + offset
            self.buffers.append((buffer, start, size))
            self.views.append(buffer[start : start + size])
            self.views[-1][:] = nasty(rng, size, dtype, 0, wild)

    def untouched(self) -> bool:
        return all(
            (buffer[:start] == FENCE).all() and (buffer[start + size :] == FENCE).all()
            for buffer, start, size in self.buffers
        )


@functools.lru_cache(maxsize=32)
def gradients(layout: str, dtype: str, wild: str) -> list[list[np.ndarray]]:
    """The gradients of each step, with offsets of their own; wild ones "always", "never" or
    "sometimes", in every fourth step.
    """
    rng = np.random.default_rng(99)
    places = list(zip(*LAYOUTS[layout], strict=True))
    return [
        [
            shifted(
                nasty(rng, n, dtype, t, wild == "always" or (wild == "sometimes" and t % 4 == 0)),
                63 - o,
            )
            for n, o in places
        ]
        for t in range(STEPS)
    ]


def moved(state: Any, offset: int) -> Any:
    """A copy of a state array, codes or not, that begins elsewhere."""
    if isinstance(state, schuss.BlockFloat8):
        return schuss.BlockFloat8.of(*(shifted(a, offset) for a in behind(state)))
    return shifted(state, offset)


# ---- Combinations


SURROUNDINGS: dict[str, list[Any]] = {
    "dtype": ["float32", "float64", "float16", "bfloat16"],
    "gradient": ["as the parameter", "float32", "float16", "bfloat16"],
    "wild": ["always", "sometimes", "never"],
    "bound": [False, True],
    "absent": [False, True],
    "isa": ISAS,
    "threads": [1, 2, 3, 4, 5],
    "layout": ["few"],
    "steps": [STEPS],
}
# How the arrays lie of rules that keep factors of matrices.
SHAPES = ["vectors", "tall", "wide", "fortran", "several"]
OUTSIDE = ("isa", "threads")  # what must not change a bit, and so doesn't enter the reference's run


FACTORS = {
    rule: SURROUNDINGS
    | values_of_options(rule)
    | {"shape": SHAPES if rule.factors(np.empty((1, 1))) else SHAPES[:1]}
    # Rows by themselves have tests of their own: the reference takes each of these elements as one.
    | {"rows": ["lazy"], "clip_norm_per": ["all", "array"]}
    for rule in rules.RULES
}


def shaped(a: np.ndarray, shape: str) -> np.ndarray:
    """As much of an array as makes whole matrices."""
    if shape == "vectors":
        return a
    *several, rows, columns = {
        "tall": (-1, 17),
        "wide": (3, -1),
        "fortran": (-1, 19),
        "several": (-1, 5, 7),
    }[shape]
    size = abs(rows * columns)
    matrices = a[: a.size // size * size].reshape(*several, rows, columns)
    return matrices.T if shape == "fortran" else matrices


def gradient_dtype(row: Mapping[str, Any]) -> str:
    of: str = row["dtype"] if row["gradient"] == "as the parameter" else row["gradient"]
    return of


def pairwise(rule: type[Optimizer]) -> Iterator[dict[str, Any]]:
    """Combinations that hold every pair of values of any two options that can stand together."""
    rng = random.Random(5)
    every = [
        ((a, i), (b, j))
        for a, b in itertools.combinations(FACTORS[rule], 2)
        for i in range(len(FACTORS[rule][a]))
        for j in range(len(FACTORS[rule][b]))
    ]
    open_pairs = set(every)
    for pair in sorted(every, key=str):
        if pair not in open_pairs:
            continue
        (a, i), (b, j) = pair
        fixed = {a: FACTORS[rule][a][i], b: FACTORS[rule][b][j]}
        rows = [row for _ in range(10) if (row := random_row(FACTORS[rule], rule, rng, **fixed))]
        if not rows:  # no combination holds the two, for a reason
            assert "rows" in (a, b) or any({a, b} <= reason for reason in APART), (a, b)
            continue
        best: dict[str, Any] = max(rows, key=lambda row: len(open_pairs & pairs_of(rule, row)))
        open_pairs -= pairs_of(rule, best)
        yield best


APART: list[set[str]] = [
    {"nesterov", "momentum", "dampening"},
    {"decay_mode", "eps_mode", "amsgrad"},
    {"master", "stochastic_rounding"},
    {"master", "dtype"},
    {"clip_norm", "clip_value"},
    {"dtype", "gradient", "state_dtype"},
]


def values_in(rule: type[Optimizer], row: Mapping[str, Any]) -> list[Any]:
    return [(name, values.index(row[name])) for name, values in FACTORS[rule].items()]


def pairs_of(rule: type[Optimizer], row: Mapping[str, Any]) -> set[Any]:
    return set(itertools.combinations(values_in(rule, row), 2))


def with_new_values(rule: type[Optimizer]) -> Iterator[dict[str, Any]]:
    """Those of these combinations that hold every value already: the first of each."""
    still = {(name, i) for name, values in FACTORS[rule].items() for i in range(len(values))}
    for row in pairwise(rule):
        if still.intersection(values_in(rule, row)):
            yield row
        still.difference_update(values_in(rule, row))
        if not still:
            return
    raise AssertionError(f"no combination of {rule.__name__} holds {still}")


# ---- The comparison


class End(NamedTuple):
    """What a run ends on: parameters, the gradients that each step left, and the last norm."""

    arrays: list[np.ndarray]
    state: list[dict[str, Any]]


def run(rule: type[Optimizer], row: Mapping[str, Any], backend: str) -> End:
    """STEPS steps of one combination."""
    arrays = Arrays(LAYOUTS[row["layout"]], row["dtype"], row["wild"] != "never")
    steps = gradients(row["layout"], gradient_dtype(row), row["wild"])
    buffers = [np.zeros_like(g) for g in steps[0]]
    given = [shaped(b, row["shape"]) for b in buffers]
    bound = given if row["bound"] else None
    params = [shaped(x, row["shape"]) for x in arrays.views]
    opt = rule(params, grads=bound, backend=backend, **options_of(rule, row))
    left = []
    for t, step in enumerate(steps[: row["steps"]]):
        for buffer, g in zip(buffers, step, strict=True):
            buffer[:] = g
        some: list[np.ndarray | None] = list(given)
        if row["absent"] and t > 2:
            some[t % len(some)] = None
        if isinstance(opt, rules.Sophia) and t % 3 == 0:
            opt.update_hessian(some)
        try:
            stepped = opt.step(None if row["bound"] else some, loss=losses(t))
            assert stepped or row["nonfinite"] == "skip"
        except FloatingPointError:
            assert row["nonfinite"] == "raise"
        left += [buffer.copy() for buffer in buffers]
        assert opt.grad_norm is None or opt.grad_norm >= 0 or np.isnan(opt.grad_norm)
    assert arrays.untouched()
    norm = np.array([np.nan if opt.grad_norm is None else opt.grad_norm])
    return End([*arrays.views, *left, norm], list(opt.state_dict()["state"].values()))


@functools.lru_cache(maxsize=64)
def expected(rule: type[Optimizer], key: tuple[tuple[str, Any], ...]) -> End:
    return run(rule, dict(key), "numpy")


def compare(rule: type[Optimizer], row: Mapping[str, Any]) -> None:
    """The compiled run against the reference's."""
    inside = tuple((name, value) for name, value in row.items() if name not in OUTSIDE)
    want = expected(rule, inside)
    _core.use_isa(row["isa"])
    _core.widest_region()
    with threads(row["threads"]):
        got = run(rule, row, "compiled")
    assert _core.widest_region() == (row["threads"] if row["threads"] > 1 else 0)
    for x, y in zip(got.arrays, want.arrays, strict=True):
        assert same_bits(x, y), f"parameter of {x.size}: {row}"
    for mine, theirs in zip(got.state, want.state, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            if not isinstance(mine[name], np.ndarray):
                assert mine[name] == theirs[name], f"{name}: {row}"
                continue
            assert same_bits(mine[name], theirs[name]), f"{name} of {mine[name].size}: {row}"


FIXED = {n for rule in rules.RULES for n, h in rule.hyperparameters.items() if h.fixed}

pytestmark = [
    pytest.mark.timeout(1200),  # all pairs of a rule's options take minutes
    pytest.mark.usefixtures("many_threads", "any_isa"),
    pytest.mark.filterwarnings("ignore:betas. with beta2:UserWarning"),
]


PLAIN: dict[str, Any] = {
    "gradient": "as the parameter",
    "nonfinite": "propagate",
    "clip_norm": np.inf,
    "state_dtype": None,
    "master": False,
}


# In the quick part every rule has other types among its values.
DTYPES = [pytest.param(d, marks=pytest.mark.thorough) for d in SURROUNDINGS["dtype"][1:]]


def options_for(rule: type[Optimizer], kernel: str) -> dict[str, Any]:
    """Options, the same in every run, that choose a kernel."""
    rng = random.Random(3)
    # Sums of what is not finite would be NaN, and so all that they touch.
    plain = PLAIN | {"wild": "never" if rule.sums(rule.defaults()) else "always"}
    while True:
        row = random_row(FACTORS[rule], rule, rng, layout="few", absent=False, bound=False, **plain)
        assert row
        default_rate = row["lr"] == rule.hyperparameters["lr"].default
        if rule.kernel(row) == kernel and default_rate and row.get("eps") != 0:
            return row


@pytest.mark.parametrize("dtype", ["float32", *DTYPES])
@pytest.mark.parametrize(("rule", "kernel"), KERNELS, ids=lambda v: getattr(v, "__name__", v))
def test_sizes_and_offsets(rule: type[Optimizer], kernel: str, dtype: str) -> None:
    row = options_for(rule, kernel) | {"dtype": dtype, "layout": "tails", "steps": 4}
    teams = TEAMS if dtype == "float32" else [(isa, 1) for isa in ISAS]
    for shape, (isa, n) in itertools.product(FACTORS[rule]["shape"], teams):
        compare(rule, row | {"shape": shape, "isa": isa, "threads": n})


# Kernels of what is large are those of many chunks; the number of pieces and of sums is another.
@pytest.mark.parametrize("layout", ["large", pytest.param("million", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("rule", KINDS)
def test_many_chunks(rule: type[Optimizer], layout: str) -> None:
    row = options_for(rule, next(iter(rule.states))) | {"dtype": "float32", "wild": "never"}
    row |= {"layout": layout, "steps": 3, "clip_norm": 1.0, "clip_value": np.inf}
    for isa, n in [*((isa, 2) for isa in ISAS), (ISAS[0], 5)]:
        compare(rule, row | {"isa": isa, "threads": n})


@pytest.mark.parametrize("rule", rules.RULES)
def test_every_value(rule: type[Optimizer]) -> None:
    for row in with_new_values(rule):
        compare(rule, row)


@pytest.mark.thorough
@pytest.mark.parametrize("rule", rules.RULES)
def test_every_pair_of_values(rule: type[Optimizer]) -> None:
    done = list(with_new_values(rule))
    for row in pairwise(rule):
        if row not in done:
            compare(rule, row)


@pytest.mark.thorough
@pytest.mark.parametrize("rule", rules.RULES)
def test_random_combinations(rule: type[Optimizer], seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        row = random_row(FACTORS[rule], rule, rng)
        assert row
        compare(rule, row)


# ---- What else must not change a bit


@pytest.mark.parametrize("rule", [r for r in rules.RULES if not r.sums(r.defaults())])
@pytest.mark.parametrize("dtype", SURROUNDINGS["dtype"])
def test_split_into_arrays(rule: type[Optimizer], dtype: str, rng: np.random.Generator) -> None:
    """One array, or the same elements in many adjacent ones, for rules that measure none."""
    whole = nasty(rng, 9001, dtype, step=0)
    parts = whole.copy()
    cuts = [0, 1, 64, 321, 322, 4418, 9001]
    views = [parts[a:b] for a, b in itertools.pairwise(cuts)]
    one, many = rule(whole), rule(views)
    for t in range(STEPS):
        g = nasty(rng, 9001, dtype, t)
        one.step(g, loss=losses(t))
        many.step([g[a:b] for a, b in itertools.pairwise(cuts)], loss=losses(t))
    assert same_bits(whole, parts)


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
@pytest.mark.parametrize("rule", rules.RULES)
def test_functional(rule: type[Optimizer], backend: str, rng: np.random.Generator) -> None:
    """The stateless call and the class end on the same bits, for every kernel of the rule."""
    call = getattr(functional, rule.__name__.lower())
    for kernel in rule.states:
        row = options_for(rule, kernel)
        options = {name: row[name] for name in rule.hyperparameters}
        wild = not rule.sums(rule.defaults())  # a sum that is NaN once is refused in the next call
        x = nasty(rng, 300, "float32", 0, wild)
        y = x.copy()
        options |= {name: row[name] for name in functional.STATELESS if name != "backend"}
        opt = rule(x, **options)
        options = {n: v for n, v in options.items() if n not in FIXED}
        state = {s: moved(a, len(s)) for s, a in opt.state[0].items() if np.ndim(a)}
        numbers = {n: np.array(v) for n, v in {**rule.memory, **rule.shared}.items()}
        for t in range(1, 6):
            g = nasty(rng, 300, "float32", t, wild)
            opt.step(g.copy(), loss=losses(t))  # zero_grad may be among the options
            call(y, g, **state, **numbers, step=t, loss=losses(t), backend=backend, **options)
        assert same_bits(x, y)
        for s, a in state.items():
            assert all(map(same_bits, behind(opt.state[0][s]), behind(a)))


@pytest.mark.parametrize("state_dtype", ["float16", "bfloat16"])
def test_narrow_state_beside_gradients_that_are_zeroed(state_dtype: str) -> None:
    """The rule's loop zeroes them, and state that it doesn't take is opened by the block."""
    ends = []
    for backend in ("compiled", "numpy"):
        x = np.linspace(-1, 1, 9001, dtype=np.float32)
        opt = rules.AdamW(x, state_dtype=state_dtype, zero_grad=True, backend=backend)
        for _ in range(3):
            g = np.linspace(1, 2, 9001, dtype=np.float32)
            opt.step(g)
            assert not g.any()
        ends.append(x)
    assert same_bits(*ends)


def test_subnormal_state_becomes_zero() -> None:
    """Without it the first moment would stick at four units of the smallest subnormal for ever."""
    x = np.ones(100, np.float32)
    opt, keep = rules.Adam(x), rules.Adam(x.copy(), subnormals="keep")
    g = np.full(100, 1e-30, np.float32)
    for _ in range(2000):
        opt.step(g)
        keep.step(g)
        g[:] = 0
    assert (opt.state[0]["exp_avg"] == 0).all()
    assert (keep.state[0]["exp_avg"] == 4 * np.finfo(np.float32).smallest_subnormal).all()


@pytest.mark.parametrize(("subnormals", "kept"), [("zero", 0.0), ("keep", 1e-40)])
def test_subnormal_factors_of_matrices(subnormals: Literal["zero", "keep"], kept: float) -> None:
    ends = []
    for backend in ("compiled", "numpy"):
        x = np.ones((3, 5), np.float32)
        opt = rules.Adafactor([x], eps=(1e-45, 1e-3), subnormals=subnormals, backend=backend)
        opt.step([np.full_like(x, 1e-20)])
        ends.append(x)
        for factor in ("row_var", "col_var"):
            assert (opt.state[0][factor] == np.float32(kept)).all()
    assert same_bits(*ends)


def test_maximum_lets_nan_through() -> None:
    a = np.array([1, 2, np.nan, 1, np.nan])
    b = np.array([2, 1, 1, np.nan, np.nan])
    assert same_bits(reference.maximum(a, b), np.array([2, 2, np.nan, np.nan, np.nan]))
