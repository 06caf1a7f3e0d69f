"""Shares on any number of processes step to the bits of one process with all gradients in pieces.

The list of rules drives this as it does `exact/test_exact.py`: each rule with each storage, and in
random combinations of all of its options. Processes are threads here, and buckets and arrays such
that each process has slices of several of both.
"""

from __future__ import annotations

import copy
import functools
import math
import random
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from exact.combinations import (
    Ramp,
    by_kind,
    losses,
    nasty,
    options_of,
    random_row,
    same_bits,
    values_of_options,
)
from exact.ends import Ends, ends, require_same

import schuss
from mpi.communicators import run_mpi, together
from schuss import rules
from schuss.engine.optimizer import Optimizer
from schuss.mpi import Sharded, shares
from schuss.mpi.shares import Shares
from schuss.mpi.wire import RECORD

STEPS = 4
F4 = np.float32
CHUNK = shares.CHUNK
SIZES = [1, 2, 3, 4, 8]  # numbers of processes
SHARED = [rule for rule in rules.RULES if not rule.factors(np.empty((1, 1)))]
MATRIX: list[type[Optimizer]] = [*rules.matrix.RULES, rules.Adafactor]

Arrays = dict[str, np.ndarray]

pytestmark = pytest.mark.filterwarnings("ignore:betas. with beta2:UserWarning")


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "BUCKET", 1 << 12)


# ---- Arrays

SHAPES: dict[str, tuple[int, ...]] = {
    "scalar": (),
    "chunks": (3 * CHUNK + 5,),
    "empty": (0,),
    "small": (57,),
    "matrix": (70, 90),
    "one": (1,),
    "fortran": (90, 70),
    "edge": (2 * CHUNK,),
    "weights": (4, 1100),  # this and the next are views into one array
    "biases": (33,),
}


def placed(name: str, array: np.ndarray) -> np.ndarray:
    """In the shape and memory order that an array of this name has."""
    return array.reshape(SHAPES[name], order="F" if name == "fortran" else "C")


def start(dtype: str, seed: int = 1) -> Arrays:
    rng = np.random.default_rng(seed)
    made = {
        name: placed(name, nasty(rng, math.prod(shape), dtype, 0, wild=False))
        for name, shape in SHAPES.items()
    }
    flat = {name: made[name] for name in ("weights", "biases")}
    views: Arrays = schuss.flatten(flat)[1]
    return made | views


@functools.lru_cache(maxsize=32)
def gradients(kinds: tuple[str, ...], size: int, wild: str, absent: bool) -> list[list[Any]]:
    """Of each step, of each process: those of each array, in types that take turns.

    wild     "always", "never" or "sometimes", in every fourth step
    absent   whether some have none in all processes, and more in some
    """
    rng = np.random.default_rng(2)

    def one(t: int, rank: int, i: int, name: str) -> np.ndarray | None:
        kind = kinds[(t + rank + i) % len(kinds)]
        edges = wild == "always" or (wild == "sometimes" and t % 4 == 0)
        g = nasty(rng, math.prod(SHAPES[name]), kind, t, edges)
        if absent and ((t + i) % 5 == 4 or (t + 2 * i + rank) % 4 == 3):
            return None
        return placed(name, g)

    return [
        [{name: one(t, rank, i, name) for i, name in enumerate(SHAPES)} for rank in range(size)]
        for t in range(STEPS)
    ]


def kinds_beside(dtype: str) -> tuple[str, ...]:
    """The types of gradients that a parameter takes."""
    return ("float64",) if dtype == "float64" else ("float32", "bfloat16", "float16")


# ---- One process and many


class Scene(NamedTuple):
    """A training: the same for one process, and for many."""

    rule: type[Optimizer]
    dtype: str = "float32"
    options: Mapping[str, Any] = {}  # a copy for each process
    kinds: tuple[str, ...] = ()  # of gradients; else all that the parameters take
    wild: str = "never"
    absent: bool = True
    weights: Any = None
    live: Mapping[int, Mapping[str, Any]] = {}  # options that are set before a step
    asked: Mapping[str, Any] = {}  # of each step
    groups: Sequence[tuple[Sequence[str], Mapping[str, Any]]] = ()  # names, and what differs
    factor: float = 1.0  # of gradients

    def params(self, x: Arrays) -> Any:
        if not self.groups:
            return x
        return [
            {"params": {name: x[name] for name in names}, **copy.deepcopy(dict(own))}
            for names, own in self.groups
        ]

    def grads(self, size: int, t: int, rank: int) -> Any:
        kinds = self.kinds or kinds_beside(self.dtype)
        given = gradients(kinds, size, self.wild, self.absent)[t][rank]
        g = {name: None if a is None else a.copy(order="K") for name, a in given.items()}
        for a in g.values():
            if a is not None and self.factor != 1:
                np.multiply(a, a.dtype.type(self.factor), out=a)
        if self.groups:
            return [{name: g[name] for name in names} for names, _ in self.groups]
        return g

    def run(self, opt: Any, size: int, rank: int | None) -> Ends:
        """What the steps return, report and leave behind in an optimizer, beside arrays."""
        found: Ends = {}
        for t in range(STEPS):
            for name, value in self.live.get(t, {}).items():
                setattr(opt, name, value)
            asked = {"loss": losses(t), "weights": self.weights, **self.asked}
            pieces = [self.grads(size, t, r) for r in range(size) if rank in (None, r)]
            try:
                if rank is None:
                    done: Any = opt.step(pieces=pieces, **asked)
                else:
                    done = opt.step(pieces[0], **asked)
            except FloatingPointError:
                done = "raised"
            found[f"done {t}"] = np.array(done)
            norm = math.nan if opt.grad_norm is None else opt.grad_norm
            found[f"norm {t}"] = np.array(norm)
            found[f"counted {t}"] = np.array([opt.iterations, opt.skipped_steps])
            if opt.report is not None:
                for name, own in opt.report.items():
                    found[f"report of {name} {t}"] = np.array(own)
        return found | {"scale": np.array(float(opt.grad_scale))}


def alone(scene: Scene, size: int) -> tuple[Arrays, Ends, Ends]:
    """The arrays, the course and the state of one process."""
    x = start(scene.dtype)
    opt = scene.rule(scene.params(x), **copy.deepcopy(dict(scene.options)))
    return x, scene.run(opt, size, None), beside_params(ends(opt))


def shared(scene: Scene, comm: Any) -> tuple[Arrays, Ends, Ends]:
    """Those of one of many."""
    x = start(scene.dtype)
    opt = Sharded(scene.rule, scene.params(x), comm=comm, **copy.deepcopy(dict(scene.options)))
    course = scene.run(opt, comm.size, comm.rank)
    return x, course, beside_params(ends(opt.own))


def beside_params(found: Ends) -> Ends:
    """What is no parameter."""
    return {name: a for name, a in found.items() if not name.startswith("params ")}


def joined(states: Sequence[Ends]) -> Ends:
    """The states of shares as those of whole arrays, each as one axis; numbers are the same."""
    found = {}
    for name, first in states[0].items():
        if first.ndim:
            found[name] = np.concatenate([own[name] for own in states])
            continue
        assert all(same_bits(first, own[name]) for own in states), name
        found[name] = first
    return found


def require_bits_of_one(scene: Scene, size: int, later: bool = False) -> None:
    """That all processes end where one does."""
    many = together(size, lambda comm: shared(scene, comm), later=later)
    require_same_as_one(scene, many, f"{later = }")


def require_same_as_one(scene: Scene, many: Sequence[tuple[Arrays, Ends, Ends]], why: str) -> None:
    x, course, state = alone(scene, len(many))
    why = f"{len(many)} processes, {why}: {scene}"
    for other, other_course, _ in many:
        require_same(course, other_course, why)
        require_same(x, other, why)
    own = joined([state for _, _, state in many])
    flat = {k: np.ravel(a, order="K") if own[k].ndim else a for k, a in state.items()}
    require_same(flat, own, why)


# ---- Rules, storages, options

STORAGES: list[tuple[str, dict[str, Any]]] = [
    ("float64", {}),
    ("float32", {}),
    ("float16", {}),
    ("bfloat16", {}),
    ("float16", {"master": True}),
    ("bfloat16", {"master": True}),
    ("bfloat16", {"master": "remainder"}),
    ("float32", {"state_dtype": "bfloat16"}),
    ("float32", {"state_dtype": "float16"}),
    ("bfloat16", {"state_dtype": "blockfloat8", "master": "remainder"}),
    ("float32", {"state_dtype": "blockfloat8", "ema": 0.9}),
    ("bfloat16", {"stochastic_rounding": True, "seed": 5, "state_dtype": "bfloat16"}),
    ("float16", {"stochastic_rounding": True}),
]


@pytest.mark.parametrize("rule", by_kind(SHARED))
def test_each_rule_with_each_storage(rule: type[Optimizer]) -> None:
    for i, (dtype, options) in enumerate(STORAGES):
        size, later = SIZES[1 + i % 3], i % 2 == 0
        wild = ["never", "sometimes"][i % 2]
        require_bits_of_one(Scene(rule, dtype, options, wild=wild), size, later)


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_any_number_of_processes(size: int, later: bool) -> None:
    for scene in (
        Scene(rules.AdamW, "bfloat16", {"master": "remainder"}),
        Scene(rules.SGD, "float16", {"stochastic_rounding": True, "clip_norm": 0.5}),
        Scene(rules.LAMB, "float32", {"cautious": "mean"}),
        Scene(rules.Prodigy, "float64"),
    ):
        require_bits_of_one(scene._replace(asked={"report": True}), size, later)


FEW: tuple[type[Optimizer], ...] = (rules.SGD, rules.AdamW, rules.LAMB, rules.Prodigy)
WEIGHTS = [0.3, -1.0, 0.7]


def is_matrix(name: str, x: np.ndarray) -> bool:
    return x.ndim > 1 and x.shape[0] > 4


# What differs from a scene of float32.
CASES: dict[str, dict[str, Any]] = {
    "clip_norm": {"options": {"clip_norm": 0.7}},
    "clip_norm, weights": {"options": {"clip_norm": 0.7}, "weights": WEIGHTS},
    "weights": {"weights": WEIGHTS, "kinds": ("float16",), "dtype": "float16"},
    "clip_value": {"options": {"clip_value": 0.3}},
    "l2": {"options": {"l2": 0.1}},
    "l1": {"options": {"l1": 0.1}},
    "prox": {"options": {"l1": 0.1, "l1_mode": "prox"}},
    "weight_decay": {"options": {"weight_decay": 0.1}},
    "proximal": {"options": {"weight_decay": 0.1, "decay_mode": "proximal"}},
    "masked": {"options": {"weight_decay": 0.1, "decay_mode": "masked"}},
    "no_decay": {"options": {"weight_decay": 0.1, "no_decay": is_matrix}},
    "cautious mean": {"options": {"cautious": "mean"}},
    "cautious plus1": {"options": {"cautious": "plus1"}},
    "bounds": {"options": {"bounds": (-0.5, 0.7)}},
    "maximize": {"options": {"maximize": True}},
    "ema": {"options": {"ema": 0.9}, "dtype": "bfloat16"},
    "ema that is scheduled": {"options": {"ema": Ramp(0.2)}},
    "grad_scale": {"options": {"grad_scale": 8.0}},
    "grad_scale of a step": {"asked": {"grad_scale": 8.0}},
    "lr of a step": {"asked": {"lr": 0.25}},
    "LossScale": {
        "options": {"grad_scale": schuss.LossScale(init=64.0), "nonfinite": "skip"},
        "wild": "sometimes",
    },
    "skip": {"options": {"nonfinite": "skip"}, "wild": "sometimes"},
    "skip with a norm": {"options": {"nonfinite": "skip", "clip_norm": 1.0}, "wild": "sometimes"},
    "raise": {"options": {"nonfinite": "raise"}, "wild": "sometimes"},
    "an overflow behind grad_scale": {
        "options": {"nonfinite": "skip", "grad_scale": 1e-10},
        "kinds": ("float32", "bfloat16"),
        "factor": 1e27,
    },
    "subnormals": {"options": {"subnormals": "keep"}, "wild": "always", "factor": 1e-3},
    "a norm whose squares overflow": {
        "options": {"clip_norm": 0.5},
        "dtype": "float64",
        "factor": 1e200,
    },
    "a norm whose squares vanish": {
        "options": {"clip_norm": 1e-205},
        "dtype": "float64",
        "factor": 1e-200,
    },
    "a norm with NaN": {"options": {"clip_norm": 0.5}, "wild": "sometimes"},
    "a schedule": {"options": {"lr": Ramp(0.1), "weight_decay": Ramp(0.0)}},
    "a schedule of ours": {"options": {"lr": schuss.schedules.cosine(0.1, steps=4, warmup=2)}},
    "report": {"options": {"clip_norm": 0.5, "ema": 0.9}, "asked": {"report": True}},
    "report by bucket": {"options": {"state_dtype": "bfloat16"}, "asked": {"report": True}},
    "missing": {"options": {"missing": "skip", "zero_grad": True}},
    "options that change": {
        "live": {
            1: {"lr": 0.1, "weight_decay": 0.2},
            2: {"clip_norm": 0.5, "nonfinite": "skip", "seed": 3},
            3: {"clip_norm": math.inf, "nonfinite": "propagate", "maximize": True},
        },
        "options": {"stochastic_rounding": True},
        "dtype": "bfloat16",
    },
}


@pytest.mark.quick
@pytest.mark.parametrize("case", CASES)
def test_options(case: str) -> None:
    number = zlib.crc32(case.encode())
    for i, rule in enumerate(FEW):
        size = 3 if "weights" in CASES[case] else SIZES[1 + (number + i) % 4]
        require_bits_of_one(Scene(rule, **CASES[case]), size, later=bool((number + i) % 2))


# What goes with gradients, beside a rule's own options. Rows and norms of arrays are refused.
SURROUNDINGS: dict[str, list[Any]] = {
    "dtype": ["float32", "float64", "float16", "bfloat16"],
    "gradient": ["as the parameter", "float32", "float16", "bfloat16"],
    "wild": ["always", "sometimes", "never"],
    "absent": [False, True],
    "weights": [None, [0.5, -2.0, 1.0]],
    "report": [False, True],
}


@pytest.mark.parametrize("rule", by_kind(SHARED))
def test_combinations_of_all_options(rule: type[Optimizer], seed: int) -> None:
    factors = SURROUNDINGS | values_of_options(rule)
    choice = random.Random(f"{seed} {rule.__name__}")
    for n in range(4):
        row = random_row(factors, rule, choice, rows="lazy", clip_norm_per="all")
        assert row is not None
        kind = row["dtype"] if row["gradient"] == "as the parameter" else row["gradient"]
        scene = Scene(
            rule,
            row["dtype"],
            options_of(rule, row),
            (kind,),
            row["wild"],
            row["absent"],
            row["weights"],
            asked={"report": row["report"]},
        )
        require_bits_of_one(scene, 3, later=n % 2 == 0)


PRESETS = [(rule, preset) for rule in SHARED for preset in rule.presets]


@pytest.mark.parametrize(("rule", "preset"), PRESETS)
def test_presets(rule: type[Optimizer], preset: Any) -> None:
    require_bits_of_one(Scene(rule, options={"preset": preset, "lr": 0.1}), 2)


GROUPS: list[tuple[list[str], dict[str, Any]]] = [
    (["one", "fortran", "biases"], {"lr": 0.5, "weight_decay": 0.1, "no_decay": is_matrix}),
    (["matrix"], {"bounds": (np.linspace(-1, 0, 6300).reshape(70, 90), 0.5)}),
    (["chunks", "weights"], {"lr": Ramp(0.1), "maximize": True, "l2": 0.1}),
    (["small", "edge", "scalar", "empty"], {"clip_value": 0.5, "cautious": "mean"}),
]


@pytest.mark.parametrize("rule", FEW)
def test_groups(rule: type[Optimizer]) -> None:
    for i, (dtype, options) in enumerate(STORAGES[2:7]):
        own = GROUPS[:3] if rule is rules.Prodigy else GROUPS
        live = {2: {"lr": 0.25}, 3: {"weight_decay": 0.3}}
        scene = Scene(rule, dtype, options, groups=own, live=live, asked={"report": i == 3})
        require_bits_of_one(scene, SIZES[1 + i % 4], later=i % 2 == 1)


@pytest.mark.parametrize("name", ["fortran", "matrix", "chunks"])
@pytest.mark.parametrize("size", [2, 3])
def test_bounds_of_each_element(name: str, size: int) -> None:
    """In the memory order of the array, whatever theirs."""
    low = np.linspace(-1, 0, math.prod(SHAPES[name])).reshape(SHAPES[name])
    for bounds in ((low, -low), (low, 0.5), (np.asfortranarray(low), np.inf)):
        scene = Scene(rules.Adam, groups=[([name], {"bounds": bounds, "lr": 0.5})], absent=False)
        require_bits_of_one(scene, size)


def nested(kind: Any) -> tuple[list[np.ndarray], Any]:
    """Arrays, and a container of this kind with them."""
    arrays = [np.arange(5000, dtype=F4), np.ones((3, 4), F4)]
    return arrays, kind([arrays[0], {"b": kind([arrays[1]])}])


@pytest.mark.parametrize("kind", [list, tuple, lambda both: both[0]])
def test_one_array_and_nested_containers(kind: Any) -> None:
    """What a class takes for parameters, a Sharded takes."""
    arrays, params = nested(kind)
    pieces = [nested(kind)[1] for _ in range(2)]
    schuss.Adam(params, lr=0.1).step(pieces=pieces)

    def process(comm: Any) -> list[np.ndarray]:
        own, params = nested(kind)
        Sharded(schuss.Adam, params, comm=comm, lr=0.1).step(pieces[comm.rank])
        return own

    for found in together(2, process):
        assert all(same_bits(a, b) for a, b in zip(arrays, found, strict=True))


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5}, {"nonfinite": "skip"}])
def test_bound_gradients_that_are_zeroed(options: dict[str, Any]) -> None:
    """In each process its own, where another has none, too."""
    x = start("float32")
    one = schuss.Adam(x, **options)
    g = gradients(("float32",), 2, "never", False)[0]
    for _ in range(2):
        one.step(pieces=copy.deepcopy(g))

    def process(comm: Any) -> tuple[Arrays, bool]:
        x, own = start("float32"), copy.deepcopy(g[comm.rank])
        opt = Sharded(schuss.Adam, x, comm=comm, grads=own, zero_grad=True, **options)
        opt.step()
        left = any(a.any() for a in own.values())
        for name, a in own.items():
            a[...] = g[comm.rank][name]
        setattr(opt, "zero_grad", False)  # noqa: B010 -- a method, too
        opt.step()
        return x, left or not all(same_bits(own[k], a) for k, a in g[comm.rank].items())

    for found, wrong in together(2, process, later=True):
        assert not wrong
        require_same(x, found)


def test_gradients_of_another_type_and_order() -> None:
    """convert=True makes them fit, in each process its own."""
    given = [np.arange(6300).reshape(70, 90), np.ones((70, 90))]
    x = np.ones((70, 90), F4, order="F")
    schuss.Adam({"x": x}, lr=0.1).step(pieces=[{"x": np.asfortranarray(g, F4)} for g in given])

    def process(comm: Any) -> np.ndarray:
        own = np.ones((70, 90), F4, order="F")
        opt = Sharded(schuss.Adam, {"x": own}, comm=comm, lr=0.1, convert=True)
        opt.step({"x": given[comm.rank]})
        return own

    with pytest.warns(UserWarning, match="is converted at each step"):
        found = together(2, process)
    assert all(same_bits(x, own) for own in found)


# ---- What is refused


def test_bound_gradients_of_groups() -> None:
    x, y = start("float32"), start("float32")
    g = [gradients(("float32",), 2, "never", False)[0][rank] for rank in range(2)]

    def groups(of: Arrays, **own: Any) -> list[dict[str, Any]]:
        grads = own.get("grads")
        return [
            {"params": {name: of[name]}, **({"grads": {name: grads[name]}} if grads else {})}
            for name in SHAPES
        ]

    def process(comm: Any) -> Arrays:
        own = {name: a.copy(order="K") for name, a in x.items()}
        opt = Sharded(rules.Adam, groups(own, grads=g[comm.rank]), comm=comm)
        opt.step()
        opt.zero_grad()
        assert not any(a.any() for a in g[comm.rank].values())
        return own

    rules.Adam(groups(y)).step(pieces=[copy.deepcopy(groups_of(one)) for one in g])
    for found in together(2, process):
        require_same(y, found, "groups with bound gradients")


def groups_of(g: Any) -> list[dict[str, Any]]:
    return [{name: g[name]} for name in SHAPES]


class Cased(schuss.SGD):
    """A rule of a user's, which steps matrices at twice the rate."""

    @staticmethod
    def case(x: np.ndarray) -> int:
        return int(x.ndim > 1)

    @staticmethod
    def in_case(h: Any, case: int) -> Any:
        return {**h, "lr": (1 + case) * h["lr"]}


def test_cases_of_whole_arrays() -> None:
    require_bits_of_one(Scene(Cased, options={"lr": 0.1}), 3)


@pytest.mark.parametrize("rule", MATRIX)
def test_rules_that_look_at_matrices(rule: type[Optimizer]) -> None:
    def process(comm: Any) -> None:
        with pytest.raises(ValueError, match=f"rule: {rule.__name__} looks at matrices"):
            Sharded(rule, {"x": np.ones((4, 4), F4)}, comm=comm)

    together(2, process)


REFUSED: dict[str, Any] = {
    "rows": "counted",
    "backend": "numpy",
    "state_dir": "somewhere",
    "clip_norm_per": "array",
}
LATER = [name for name in REFUSED if not rules.Adam.options[name].declared.fixed]


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_want_whole_arrays(
    name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def process(comm: Any) -> None:
        with pytest.raises(ValueError, match=f"{name}: '{REFUSED[name]}'"):
            Sharded(rules.Adam, {"x": np.ones((4, 64), F4)}, comm=comm, **{name: REFUSED[name]})

    together(2, process)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", LATER)
def test_options_that_are_set_later(name: str) -> None:
    def process(comm: Any) -> tuple[np.ndarray, str]:
        x = np.ones((4, 64), F4)
        opt = Sharded(rules.Adam, {"x": x}, comm=comm)
        before = getattr(opt, name)
        with pytest.raises(ValueError, match=f"{name}: '{REFUSED[name]}'"):
            setattr(opt, name, REFUSED[name])
        assert getattr(opt, name) == before
        opt.step({"x": np.ones_like(x)})
        return x, before

    want = np.ones((4, 64), F4)
    rules.Adam({"x": want}).step({"x": np.ones_like(want)})
    assert all(same_bits(x, want) for x, _ in together(2, process))


# ---- MPI

OF_MPI = [
    Scene(rules.AdamW, "bfloat16", {"master": "remainder", "ema": 0.9}),
    Scene(rules.SGD, "float16", {"stochastic_rounding": True, "clip_norm": 0.5}),
    Scene(rules.LAMB, "float32", {"cautious": "mean", "state_dtype": "blockfloat8"}),
    Scene(rules.Prodigy, "float64", {"nonfinite": "skip"}, wild="sometimes"),
]


def require_bits_on(comm: Any) -> None:
    """That the processes of mpi4py's communicator end where one does: called by all of them."""
    shares.BUCKET = 1 << 12
    for scene in OF_MPI:
        many = comm.allgather(shared(scene, comm))
        if comm.rank == 0:
            require_same_as_one(scene, many, "of MPI")
    require_bytes(comm)


@pytest.mark.parametrize("size", [2, 4])
def test_processes_of_mpi(size: int) -> None:
    code = """
        from mpi4py import MPI
        from mpi.test_bits import require_bits_on

        require_bits_on(MPI.COMM_WORLD)
    """
    run_mpi(size, code)


# ---- Bytes


def require_bytes(comm: Any) -> tuple[int, int]:
    """What a step sends, as it is counted: each byte of gradients and parameters to whom it goes.

    Returns what a step of nothing sends, and one of all.
    """
    x = start("bfloat16")
    g = {name: a.astype(F4) if name == "matrix" else a.copy(order="K") for name, a in x.items()}
    opt = Sharded(rules.AdamW, x, comm=comm)
    counts = []
    for given in (dict.fromkeys(x), g, g | {"chunks": None}):
        before = opt.wire.sent_bytes
        opt.step(given)
        counts.append(opt.wire.sent_bytes - before)
    nothing, *others = counts
    # The record that all is well, a checksum of all settings, and the type of each gradient.
    assert 0 < nothing <= (comm.size - 1) * (RECORD + 16 + len(x))
    for sent, names in zip(
        others, (list(x), [name for name in x if name != "chunks"]), strict=True
    ):
        own = {
            name: last - first
            for name, mine in zip(x, opt.shares.slices, strict=True)
            for first, last in [mine[comm.rank]]
            if name in names
        }
        to_others = sum((x[name].size - own[name]) * g[name].itemsize for name in names)
        of_here = sum(own[name] * x[name].itemsize for name in names)
        assert sent - nothing == to_others + (comm.size - 1) * of_here
    return nothing, others[0]


@pytest.mark.parametrize("size", SIZES)
def test_bytes(size: int) -> None:
    """Over all processes, p - 1 times those of the gradients, and of the parameters: the bound."""

    def process(comm: Any) -> tuple[int, int]:
        if size > 1:
            return require_bytes(comm)
        opt = Sharded(rules.AdamW, start("bfloat16"), comm=comm)
        opt.step(start("bfloat16"))
        return 0, opt.wire.sent_bytes

    found = together(size, process)
    x = start("bfloat16")
    params = sum(a.nbytes for a in x.values())
    gradients = params + x["matrix"].nbytes
    sent = sum(all_of_it - nothing for nothing, all_of_it in found)
    assert sent == (size - 1) * (gradients + params)


class Counted:
    """A communicator that counts the bytes itself."""

    def __init__(self, comm: Any) -> None:
        self.rank, self.size, self.comm, self.sent = comm.rank, comm.size, comm, 0

    def alltoall(self, sent: Any, received: Any) -> Any:
        self.sent += sum(b.nbytes for own in sent for b in own)
        assert not sent[self.rank]
        return self.comm.alltoall(sent, received)

    def allgather(self, sent: Any, received: Any) -> Any:
        self.sent += (self.size - 1) * sum(b.nbytes for b in sent)
        return self.comm.allgather(sent, received)


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5}])
def test_all_that_is_sent_is_counted(options: dict[str, Any]) -> None:
    def process(comm: Any) -> None:
        counted = Counted(comm)
        opt = Sharded(rules.LAMB, start("float16"), comm=counted, **options)
        opt.step(start("float16"))
        assert opt.wire.sent_bytes == counted.sent

    together(3, process)


# ---- Shares


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 1000])
def test_shares(ranks: int, rng: np.random.Generator) -> None:
    """All elements once, in order, cut at chunks; each share as large as chunks allow."""
    for n in range(12):
        count = int(rng.integers(1, 40))
        sizes = [int(2.0 ** rng.uniform(0, [12, 20, 40, 55][n % 4])) for _ in range(count)]
        sizes += [0, 1, CHUNK, CHUNK + 1]
        widths = [int(w) for w in rng.choice([2, 4, 8], len(sizes))]
        cut = Shares(sizes, widths, ranks)
        require_shares(cut, sizes, widths, ranks)


@pytest.mark.parametrize("width", [2, 4, 8])
def test_shares_of_the_largest_arrays(width: int) -> None:
    for size in (2**31 - 1, 2**31 + 1, (2**63 - 1) // width):
        for ranks in (2, 3, 7, 4096):
            require_shares(Shares([size], [width], ranks), [size], [width], ranks)


def require_shares(cut: Shares, sizes: list[int], widths: list[int], ranks: int) -> None:
    assert [i for bucket in cut.buckets for i in bucket] == list(range(len(sizes)))
    for bucket in cut.buckets:
        have = [0] * ranks
        for i in bucket:
            edges = [0]
            for rank, (first, last) in enumerate(cut.slices[i]):
                assert first == edges[-1] <= last
                assert last == sizes[i] or last % CHUNK == 0
                assert cut.chunks(i, rank) == len(range(first, last, CHUNK))
                edges.append(last)
                have[rank] += (last - first) * widths[i]
            assert edges[-1] == sizes[i]
        fair = sum(have) / ranks
        chunk = CHUNK * max(widths[i] for i in bucket)
        assert all(abs(own - fair) <= chunk + sum(have) * 2**-50 for own in have)
    filled = [sum(sizes[i] * widths[i] for i in bucket) for bucket in cut.buckets]
    assert all(own >= ranks * shares.BUCKET for own in filled[:-1])


def free_memory() -> int:
    """Bytes that programs may take, where Linux says so."""
    lines = Path("/proc/meminfo")
    found = re.search(r"MemAvailable: *(\d+) kB", lines.read_text() if lines.exists() else "")
    return int(found[1]) << 10 if found else 0


@pytest.mark.thorough
def test_an_array_of_more_than_2_to_the_31_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    """On two processes with the same array, of which one has no gradient: that takes 7 GB."""
    if free_memory() < 12 << 30:
        pytest.skip(f"needs 12 GB of free memory, and {free_memory() >> 30} are")
    monkeypatch.setattr(shares, "BUCKET", 1 << 22)
    monkeypatch.setattr("schuss.mpi.sharded.digest", lambda array: bytes(32))  # of half a minute
    size = 2**31 + 5000
    x, g = np.zeros(size, np.float16), np.zeros(size, np.float16)
    places = [0, 2**30, 2**31 - 1, 2**31, size - 1]
    g[places] = [1, 2, 3, 4, 5]

    def process(comm: Any) -> None:
        opt = Sharded(rules.SGD, {"x": x}, comm=comm, lr=1.0)
        assert [mine[1] - mine[0] for mine in opt.shares.slices[0]] == [2**30, 2**30 + 5000]
        opt.step({"x": g if comm.rank == 0 else None}, weights=[1.0, 1.0])

    together(2, process, limit=240)
    assert x[places].tolist() == [-1, -2, -3, -4, -5]
    assert np.count_nonzero(x) == len(places)
