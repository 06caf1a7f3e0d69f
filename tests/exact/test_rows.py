"""Gradients of rows: kernel and reference end on the same bits, and other rows stay as they are.

The list of rules drives what can be driven by it: a combination is a rule with a value for each of
its options and for what surrounds them, and each value is in some combination of each rule.
"""

from __future__ import annotations

import copy
import functools
import math
import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import schuss
from exact.combinations import (
    by_kind,
    losses,
    nasty,
    options_of,
    random_row,
    same_bits,
    shifted,
    takes,
    values_of_options,
)
from exact.ends import Ends, ends, everywhere, require_same
from schuss import functional, reference, rules
from schuss.engine.declare import Backend
from schuss.engine.optimizer import Optimizer

STEPS = 6
F4, F8 = np.float32, np.float64
Shape = tuple[int, ...]

pytestmark = [
    pytest.mark.usefixtures("many_threads", "any_isa"),
    pytest.mark.filterwarnings("ignore:betas. with beta2:UserWarning"),
]

# Rows as long as one element, a pack, a block of codes and more than a chunk.
SHAPES: dict[str, list[Shape]] = {
    "any": [(300,), (40, 1), (0, 3), (30, 3), (20, 64), (12, 100), (5, 4097), (9, 4, 7)],
    "blocks": [(40, 64), (6, 4, 16), (5, 4160), (0, 64), (1, 128)],  # of 64 elements
}

SURROUNDINGS: dict[str, list[Any]] = {
    "dtype": ["float32", "float64", "float16", "bfloat16"],
    "gradient": ["as the parameter", "float32", "float16", "bfloat16"],
    "index": ["int32", "int64"],
    "wild": ["always", "sometimes", "never"],
    "shapes": list(SHAPES),
    "mixed": [False, True],  # whether arrays have no gradient at times, or a dense one
}

# Rules with sums look at whole arrays, and refuse rows.
TAKING = [rule for rule in rules.RULES if not rule.sums(rule.defaults())]
FACTORS = {rule: SURROUNDINGS | values_of_options(rule) for rule in TAKING}
COUNTED = [rule for rule in TAKING if takes(rule, rows="counted")]


def row_of(rule: type[Optimizer], rng: random.Random, **fixed: Any) -> dict[str, Any]:
    """A valid combination with these values: rows in codes are of whole blocks."""
    if fixed.get("shapes") == "any":
        fixed.setdefault("state_dtype", None)
    row = random_row(FACTORS[rule], rule, rng, **fixed)
    assert row, f"no valid combination of {rule.__name__} has {fixed}"
    return row | {"shapes": "blocks"} if row["state_dtype"] == "blockfloat8" else row


def covering(rule: type[Optimizer]) -> list[dict[str, Any]]:
    """Combinations that have each value of each option, each the most useful of a few."""
    rng = random.Random(13)
    still = {(name, i) for name, values in FACTORS[rule].items() for i in range(len(values))}
    rows = []
    while still:
        name, i = min(still)
        fixed = {name: FACTORS[rule][name][i]}
        some = [row_of(rule, rng, **fixed) for _ in range(20)]
        best: dict[str, Any] = max(some, key=lambda row: len(still & values_in(rule, row)))
        still -= values_in(rule, best) | {(name, i)}
        rows.append(best)
    return rows


def values_in(rule: type[Optimizer], row: Mapping[str, Any]) -> set[tuple[str, int]]:
    return {(name, values.index(row[name])) for name, values in FACTORS[rule].items()}


# ---- Gradients of each step


def some_rows(rng: np.random.Generator, n: int, step: int) -> np.ndarray:
    """None, one, all in any order, with duplicates, few in order, or the last one many times."""
    form = step % 6
    if n == 0 or form == 0:
        return rng.integers(0, max(n, 1), 0)
    if form == 1:
        return rng.permutation(n)
    if form == 2:
        return rng.integers(0, n, 2 * n)
    if form == 3:
        return np.sort(rng.choice(n, n // 3, replace=False))
    if form == 4:
        return np.full(5, n - 1)
    return rng.integers(0, n, 1 + n // 2)


def rows_for(
    rng: np.random.Generator, shape: Shape, step: int, dtype: str, index: str, wild: bool
) -> Any:
    """A gradient of some rows, whose values begin anywhere."""
    numbers = some_rows(rng, shape[0], step).astype(index)
    some: Shape = len(numbers), *shape[1:]
    values = shifted(nasty(rng, math.prod(some), dtype, 0, wild), step % 5)
    return schuss.Rows(numbers, values.reshape(some))


@functools.lru_cache(maxsize=8)
def gradients(shapes: str, dtype: str, index: str, wild: str, mixed: bool) -> list[list[Any]]:
    """Those of all arrays in each step."""
    rng = np.random.default_rng(99)
    found: list[list[Any]] = []
    for t in range(STEPS):
        odd = wild == "always" or (wild == "sometimes" and t == 3)
        step = [
            rows_for(rng, shape, t + i, dtype, index, odd) for i, shape in enumerate(SHAPES[shapes])
        ]
        if mixed and t % 2:
            step[t % len(step)] = None
            shape = SHAPES[shapes][(t + 1) % len(step)]
            step[(t + 1) % len(step)] = nasty(rng, math.prod(shape), dtype, 0, odd).reshape(shape)
        found.append(step)
    return found


def copied(g: Any) -> Any:
    """A gradient that a step may fill with zeros."""
    if isinstance(g, schuss.Rows):
        return schuss.Rows(g.index, shifted(g.values.ravel(), 3).reshape(g.values.shape))
    return None if g is None else g.copy()


# ---- The comparison


def other_rows(opt: Optimizer, number: int, g: Any) -> list[np.ndarray]:
    """All that the optimizer has of an array's rows that a gradient has nothing of."""
    p = opt._parameters[number]
    if p.x.size == 0 or isinstance(g, np.ndarray):
        return []
    stay = np.ones(len(p.x), bool)
    if g is not None:
        stay[g.index] = False
    return [a.reshape(len(p.x), -1)[stay] for a in (np.asarray(p.x), *p.saved.values())]


def scene(rule: type[Optimizer], row: Mapping[str, Any], backend: Backend) -> Ends:
    """All steps of one combination, in which other rows stay."""
    rng = np.random.default_rng(1)
    dtype = row["dtype"]
    params = [nasty(rng, math.prod(s), dtype, 0).reshape(s) for s in SHAPES[row["shapes"]]]
    opt = rule(params, backend=backend, **options_of(rule, row))
    kind = dtype if row["gradient"] == "as the parameter" else row["gradient"]
    steps = gradients(row["shapes"], kind, row["index"], row["wild"], row["mixed"])
    left: Ends = {}
    for t, step in enumerate(steps):
        given = [copied(g) for g in step]
        if isinstance(opt, rules.Sophia) and t % 3 == 0:
            opt.update_hessian([nasty(rng, x.size, dtype, 0).reshape(x.shape) for x in params])
        before = [other_rows(opt, i, g) for i, g in enumerate(given)]
        try:
            assert opt.step(given, loss=losses(t)) or row["nonfinite"] == "skip"
        except FloatingPointError:
            assert row["nonfinite"] == "raise"
        for i, (g, old) in enumerate(zip(given, before, strict=True)):
            for a, b in zip(old, other_rows(opt, i, g), strict=True):
                assert same_bits(a, b), f"other rows of params[{i}], step {t}: {row}"
            if isinstance(g, schuss.Rows):
                assert (g.index == step[i].index).all()
                left[f"values {i} of step {t}"] = g.values
    return ends(opt, **left)


def compare(rule: type[Optimizer], row: Mapping[str, Any]) -> None:
    everywhere(functools.partial(scene, rule, row), f"{rule.__name__} {row}")


@pytest.mark.parametrize("rule", by_kind(TAKING))
def test_every_value(rule: type[Optimizer]) -> None:
    for row in covering(rule):
        compare(rule, row)


@pytest.mark.thorough
@pytest.mark.parametrize("rule", TAKING)
def test_random_combinations(rule: type[Optimizer], seed: int) -> None:
    rng = random.Random(seed)
    for mode in FACTORS[rule]["rows"] * 2:
        compare(rule, row_of(rule, rng, rows=mode))


def test_which_rules_count_rows() -> None:
    """What a rule remembers beside its state is of whole arrays."""
    assert [rule for rule in TAKING if takes(rule, rows="decayed")] == [
        schuss.SGD,
        schuss.Momentum,
        schuss.NAG,
        schuss.Adam,
        schuss.AdamW,
    ]
    assert [rule for rule in TAKING if not (rule.memory or rule.shared)] == COUNTED


@pytest.mark.parametrize("mode", ["lazy", "counted"])
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_bounds_as_arrays(dtype: str, mode: Any) -> None:
    shape = (50, 5)
    high = np.linspace(0.0, 2.0, 250).reshape(shape)

    def run(backend: Backend) -> Ends:
        rng = np.random.default_rng(3)
        x = np.zeros(shape, dtype)
        opt = schuss.Adam(x, lr=0.5, bounds=(-high, high), rows=mode, backend=backend)
        for t in range(STEPS):
            opt.step(rows_for(rng, shape, t, dtype, "int32", wild=False))
            assert (np.abs(x.astype(F8)) <= high).all()
        assert (np.abs(x[1:]) > 0).any()
        return ends(opt)

    everywhere(run)


# ---- Rows and whole arrays

DENSE: list[tuple[str, dict[str, Any]]] = [
    ("float32", {}),
    ("float64", {"ema": 0.9, "bounds": (-1.0, 2.0)}),
    ("float32", {"state_dtype": "bfloat16", "cautious": "mean"}),
    ("float32", {"state_dtype": "blockfloat8", "l1": 0.1, "l1_mode": "prox"}),
    ("bfloat16", {"master": "remainder", "weight_decay": 0.1, "decay_mode": "masked"}),
    ("float16", {"stochastic_rounding": True, "clip_value": 0.5, "l2": 0.1}),
]


@pytest.mark.parametrize(("dtype", "options"), DENSE)
@pytest.mark.parametrize("backend", ["compiled", "numpy"])
@pytest.mark.parametrize("rule", TAKING)
def test_all_rows_are_the_array(
    rule: type[Optimizer], backend: Backend, dtype: str, options: dict[str, Any]
) -> None:
    """In any order, to the last bit: a sum of one is the number itself."""
    if not takes(rule, **options):  # which has decay modes of its own
        options = {k: v for k, v in options.items() if k != "decay_mode"}
    rng = np.random.default_rng(4)
    shapes = [(30, 64), (7, 128)]
    whole = [nasty(rng, math.prod(s), dtype, 0).reshape(s) for s in shapes]
    some = copy.deepcopy(whole)
    one, other = (rule(x, backend=backend, **options) for x in (whole, some))
    for t in range(STEPS):
        grads = [nasty(rng, x.size, dtype, t).reshape(x.shape) for x in whole]
        orders = [rng.permutation(len(x)) for x in whole]
        one.step(grads, loss=losses(t))
        given = [schuss.Rows(i, g[i]) for i, g in zip(orders, grads, strict=True)]
        other.step(given, loss=losses(t))
    require_same(ends(one), ends(other))


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_duplicates_are_summed_in_their_order(dtype: str, backend: Backend) -> None:
    """In the type that is computed in, and not in the one that they are given in."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((9, 70)).astype(dtype)
    y = x.copy()
    one, other = (schuss.AdamW(a, stochastic_rounding=True, backend=backend) for a in (x, y))
    number: Any = F8 if dtype == "float64" else F4
    for _ in range(STEPS):
        index = rng.integers(0, 9, 40)
        values = (rng.standard_normal((40, 70)) * 10.0 ** rng.integers(-3, 3, (40, 1))).astype(
            dtype
        )
        sums: dict[int, np.ndarray] = {}
        for row, v in zip(index.tolist(), values.astype(number), strict=True):
            sums[row] = sums[row] + v if row in sums else v
        one.step(schuss.Rows(index, values))
        rows = sorted(sums, reverse=True)
        other.step(schuss.Rows(np.array(rows), np.array([sums[row] for row in rows])))
    require_same(ends(one), ends(other))


def test_kinds_of_index_and_gradient_that_hold_the_same() -> None:
    rng = np.random.default_rng(6)
    index, values = rng.integers(0, 9, 20), rng.integers(-8, 8, (20, 5))
    found = []
    for kind in (np.int32, np.int64):
        for dtype in (F4, np.float16, ml_dtypes.bfloat16):
            x = np.ones((9, 5), F4)
            schuss.Adam(x).step(schuss.Rows(index.astype(kind), values.astype(dtype)))
            found.append(x.tobytes())
    assert found == found[:1] * 6


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
def test_cautious_measures_the_rows_that_step(backend: Backend) -> None:
    """As an array of these rows alone."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((20, 30))
    rows = np.array([17, 3, 4])
    alone = x[np.sort(rows)]
    options: dict[str, Any] = {"lr": 0.1, "cautious": "mean", "backend": backend}
    one, other = schuss.Adam(x, **options), schuss.Adam(alone, **options)
    for _ in range(STEPS):
        g = rng.standard_normal((3, 30))
        one.step(schuss.Rows(rows, g))
        other.step(g[np.argsort(rows)])
    assert same_bits(x[np.sort(rows)], alone)


# ---- The norm


def in_pairs(sums: list[float]) -> float:
    """Neighbours are added, then their sums, until one is left."""
    while len(sums) > 1:
        rest = sums[len(sums) // 2 * 2 :]
        sums = [a + b for a, b in zip(sums[::2], sums[1::2], strict=False)] + rest
    return sums[0] if sums else 0.0


@pytest.mark.parametrize("width", [1, 3, 64, 5000])
def test_norm_of_the_summed_rows(width: int) -> None:
    """Each row as an array, rows in ascending order, arrays one after the other."""
    rng = np.random.default_rng(8)
    index, values = rng.integers(0, 99, 50), rng.standard_normal((50, width)).astype(F4)
    dense = rng.standard_normal(300).astype(F4)
    sums: dict[int, np.ndarray] = {}
    for row, v in zip(index.tolist(), values, strict=True):
        sums[row] = sums[row] + v if row in sums else v
    squares = [reference.norm_squared([sums[row]])[0] for row in sorted(sums)]
    total = in_pairs(squares) + reference.norm_squared([dense])[0]

    def run(backend: Backend) -> Ends:
        params = [np.zeros((99, width), F4), np.zeros(300, F4)]
        opt = schuss.SGD(params, clip_norm=1.0, backend=backend)
        opt.step([schuss.Rows(index, values), dense])
        assert opt.grad_norm == math.sqrt(total)
        moved = math.sqrt(sum(float((x.astype(F8) ** 2).sum()) for x in params))
        assert moved == pytest.approx(1e-3, rel=1e-4)
        return ends(opt)

    everywhere(run)


@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_norm_whose_squares_are_beyond_double(size: float) -> None:
    def run(backend: Backend) -> Ends:
        x = np.zeros((9, 3))
        opt = schuss.SGD(x, lr=1.0, clip_norm=1.0, nonfinite="raise", backend=backend)
        opt.step(schuss.Rows(np.array([4, 2, 4]), np.full((3, 3), size)))
        assert opt.grad_norm == pytest.approx(size * math.sqrt(3 * 4 + 3), rel=1e-13)
        return ends(opt)

    everywhere(run)


# ---- Rows that count


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", ["compiled", "numpy"])
@pytest.mark.parametrize("rule", COUNTED)
def test_a_row_that_counts_is_as_if_alone(
    rule: type[Optimizer], backend: Backend, dtype: str
) -> None:
    """With another array beside it, by which schedules and what is of all arrays go."""
    rng = np.random.default_rng(9)
    n, width = 6, 21
    start = rng.standard_normal((n, width)).astype(dtype)

    def made(x: np.ndarray, **options: Any) -> Optimizer:
        rate = rule.hyperparameters["lr"]
        lr: Any = rate.default if rate.fixed else lambda t: 0.1 / (t + 1)
        params = {"x": x, "other": np.ones(3, dtype)}
        return rule(params, lr=lr, backend=backend, **options)

    table = start.copy()
    whole = made(table, rows="counted")
    single = [start[i : i + 1].copy() for i in range(n)]
    alone = [made(x) for x in single]
    for t in range(12):
        some = rng.permutation(n)[: rng.integers(0, n)]
        values = rng.standard_normal((len(some), width)).astype(dtype)
        other = rng.standard_normal(3).astype(dtype)
        if t == 7:  # an array steps all of its rows
            some, values = np.arange(n), rng.standard_normal((n, width)).astype(dtype)
        given = values if t == 7 else schuss.Rows(some, values)
        whole.step({"x": given, "other": other}, loss=losses(t))
        for i, opt in enumerate(alone):
            g = values[some == i] if i in some else None
            opt.step({"x": g, "other": other}, loss=losses(t))
    counts = whole.state["x"]["row_step"]
    assert (counts.dtype, counts.shape) == (np.dtype(np.int64), (n,))
    for i, opt in enumerate(alone):
        state = opt.state["x"]
        assert counts[i] == state["step"]
        assert same_bits(table[i : i + 1], single[i])
        for key, a in state.items():
            if isinstance(a, np.ndarray):
                assert same_bits(whole.state["x"][key][i : i + 1], a), key


@pytest.mark.parametrize("mode", ["counted", "decayed"])
@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy", "file"])
def test_a_run_goes_on(how: str, mode: Any, tmp_path: Path) -> None:
    def step(opt: Optimizer, t: int) -> None:
        rng = np.random.default_rng(t)
        opt.step({"w": rows_for(rng, (30, 5), t, "float32", "int64", wild=False)})

    whole, x = ({"w": np.ones((30, 5), F4)} for _ in range(2))
    one, opt = schuss.AdamW(whole, rows=mode), schuss.AdamW(x, rows=mode)
    for t in range(4):
        step(one, t)
        step(opt, t)
    if how == "state_dict":
        other = schuss.AdamW(x, rows=mode)
        other.load_state_dict(opt.state_dict())
    elif how == "file":
        schuss.save(tmp_path / "run", params=x, opt=opt)
        x = {"w": np.zeros((30, 5), F4)}
        other = schuss.AdamW(x, rows=mode)
        schuss.load(tmp_path / "run", params=x, opt=other)
    else:
        other = pickle.loads(pickle.dumps(opt)) if how == "pickle" else copy.deepcopy(opt)
    for t in range(4, 9):
        step(one, t)
        step(other, t)
    require_same(ends(one), ends(other))


@pytest.mark.parametrize("mode", ["lazy", "counted", "decayed"])
def test_state_in_files_has_the_same_bits(mode: Any, tmp_path: Path) -> None:
    found = []
    for folder in (None, tmp_path / "state"):
        rng = np.random.default_rng(2)
        opt = schuss.AdamW(np.ones((30, 5)), rows=mode, state_dir=folder)
        for t in range(STEPS):
            opt.step(rows_for(rng, (30, 5), t, "float64", "int32", wild=False))
        found.append(ends(opt))
    require_same(found[0], found[1])


# ---- Rows that make up for steps without a gradient

DECAYED: list[tuple[type[Optimizer], dict[str, Any]]] = [
    (schuss.SGD, {"lr": 0.1}),
    (schuss.SGD, {"lr": 0.1, "weight_decay": 0.2, "decay_mode": "decoupled"}),
    (schuss.Momentum, {"lr": 0.1}),
    (schuss.Momentum, {"lr": 0.1, "dampening": 0.3, "first_step": "accumulate"}),
    (schuss.Momentum, {"lr": 0.1, "weight_decay": 0.2, "decay_mode": "decoupled"}),
    (schuss.Momentum, {"lr": 0.1, "lr_in_buffer": True}),
    (schuss.Momentum, {"lr": 0.1, "momentum": 0.5, "lr_in_buffer": "both"}),
    (schuss.NAG, {"lr": 0.1}),
    (schuss.NAG, {"lr": 0.1, "weight_decay": 0.2, "decay_mode": "decoupled"}),
    # Without a mean the way of x is known, too.
    (schuss.Adam, {"lr": 0.1, "betas": (0.0, 0.9)}),
    (schuss.AdamW, {"lr": 0.1, "betas": (0.0, 0.9), "weight_decay": 0.2}),
]


def both_ways(
    rule: type[Optimizer], backend: Backend, **options: Any
) -> tuple[Optimizer, Optimizer]:
    """By rows that make up for what they missed, and by arrays with zeros; all rows come last."""
    rng = np.random.default_rng(10)
    x = rng.standard_normal((8, 13))
    some = rule(x.copy(), rows="decayed", backend=backend, **options)
    dense = rule(x, backend=backend, **options)
    for t in range(40):
        rows = np.arange(8) if t == 39 else rng.permutation(8)[: rng.integers(0, 3)]
        values = rng.standard_normal((len(rows), 13))
        g = np.zeros_like(x)
        g[rows] = values
        dense.step(g)
        if t == 20:  # an array has all rows, of which some have missed steps
            some.step(g)
        else:
            some.step(schuss.Rows(rows, values))
    return some, dense


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
@pytest.mark.parametrize(("rule", "options"), DECAYED)
def test_what_was_missed_is_made_up(
    rule: type[Optimizer], options: dict[str, Any], backend: Backend
) -> None:
    some, dense = both_ways(rule, backend, **options)
    x, y = (opt.param_groups[0]["params"][0] for opt in (some, dense))
    np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13)
    for key, a in dense.state[0].items():
        np.testing.assert_allclose(some.state[0][key], a, rtol=1e-12, atol=1e-14)
    assert (some.state[0]["row_last"] == 40).all()


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("rule", [schuss.Adam, schuss.AdamW])
def test_moments_that_were_missed_are_made_up(
    rule: type[Optimizer], amsgrad: bool, backend: Backend
) -> None:
    some, dense = both_ways(rule, backend, amsgrad=amsgrad)
    for key in ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])):
        np.testing.assert_allclose(some.state[0][key], dense.state[0][key], rtol=1e-12)


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
def test_row_step_is_the_count_at_the_last_step(backend: Backend) -> None:
    opt = schuss.Momentum(np.ones((4, 2)), rows="decayed", backend=backend)
    for row in (2, 2, 0, 3):
        opt.step(schuss.Rows(np.array([row]), np.ones((1, 2))))
    assert opt.state[0]["row_last"].tolist() == [3, 0, 2, 4]
    assert opt.state[0]["step"] == 4


# ---- Where rows come in


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
@pytest.mark.parametrize("rule", TAKING)
def test_functional(rule: type[Optimizer], backend: Backend) -> None:
    """The stateless call and the class end on the same bits."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal((30, 5)).astype(F4)
    y = x.copy()
    opt = rule(x, backend=backend)
    call = getattr(functional, rule.__name__.lower())
    state = {key: a.copy() for key, a in opt.state[0].items() if np.ndim(a)}
    numbers = {key: np.array(v) for key, v in {**rule.memory, **rule.shared}.items()}
    for t in range(1, 6):
        g = rows_for(rng, (30, 5), t, "float32", "int32", wild=False)
        opt.step(g, loss=losses(t))
        call(y, g, **state, **numbers, step=t, loss=losses(t), backend=backend)
    assert same_bits(x, y)
    for key, a in state.items():
        assert same_bits(opt.state[0][key], a), key


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
def test_bound(backend: Backend) -> None:
    """Values and index are read anew in each step; zero_grad fills the values."""
    rng = np.random.default_rng(12)
    x = {"w": np.ones((30, 5)), "b": np.ones(7)}
    y = copy.deepcopy(x)
    rows = schuss.Rows(np.zeros(10, np.int32), np.zeros((10, 5)))
    bound: dict[str, Any] = {"w": rows, "b": np.zeros(7)}
    one = schuss.Adam(x, grads=bound, zero_grad=True, backend=backend)
    other = schuss.Adam(y, backend=backend)
    for _ in range(STEPS):
        rows.index[:], rows.values[:] = rng.integers(0, 30, 10), rng.standard_normal((10, 5))
        bound["b"][:] = rng.standard_normal(7)
        other.step(bound)
        one.step()
        assert not rows.values.any()
        assert not bound["b"].any()
    require_same(ends(one), ends(other))
    rows.values[:] = 1.0
    one.zero_grad()
    assert not rows.values.any()


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
def test_nested_and_in_groups(backend: Backend) -> None:
    g = schuss.Rows(np.array([1, 1, 0]), np.ones((3, 2)))
    x = [np.zeros((3, 2)) for _ in range(2)]
    opt = schuss.SGD(
        [{"params": {"a": [x[0]]}, "lr": 1.0}, {"params": x[1], "lr": 0.5}], backend=backend
    )
    opt.step([{"a": [g]}, g])
    assert x[0].tolist() == [[-1, -1], [-2, -2], [0, 0]]
    assert x[1].tolist() == [[-0.5, -0.5], [-1, -1], [0, 0]]


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
def test_beside_matrices(backend: Backend) -> None:
    """What a rule of matrices leaves to AdamW takes rows as AdamW does."""
    rng = np.random.default_rng(13)
    x = {"head": rng.standard_normal((4, 3)), "words": rng.standard_normal((30, 5))}
    y = {"words": x["words"].copy()}
    one = schuss.Muon(x, matrix=lambda name, a: name == "head", backend=backend)
    rest = one.param_groups[1]
    options: dict[str, Any] = {name: rest[name] for name in schuss.AdamW.hyperparameters}
    other = schuss.AdamW(y, backend=backend, **options)
    for t in range(STEPS):
        g = rows_for(rng, (30, 5), t, "float64", "int64", wild=False)
        one.step({"head": rng.standard_normal((4, 3)), "words": g})
        other.step({"words": g})
    assert same_bits(x["words"], y["words"])
