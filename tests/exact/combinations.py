"""What tests of bits share: arrays from the edges of their types, and combinations of options."""

from __future__ import annotations

import functools
import math
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from schuss import _core, rules
from schuss.engine.declare import Bounded, Choice, Flag, Pair, Scheduled, Several, Storage, Whole
from schuss.engine.optimizer import Optimizer

ISAS = [os.environ["SCHUSS_ISA"]] if "SCHUSS_ISA" in os.environ else _core.found_isas()

# ---- Arrays


def nasty(
    rng: np.random.Generator, size: int, dtype: str, step: int, wild: bool = True
) -> np.ndarray:
    """Ordinary numbers of many magnitudes, zeros, and one element in 8 from the edges.

    NaN and infinity stay in lanes of their own, since they make all that follows a NaN.
    """
    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    smallest, largest = float(info.smallest_normal), float(info.max)
    values = rng.standard_normal(size) * 10.0 ** rng.integers(-3, 3, size)
    values[rng.random(size) < 0.1] = 0
    subnormal = [float(info.smallest_subnormal) * 3, -smallest / 5]
    edges = [largest, -largest / 3, largest**0.5 * 2, smallest, smallest**0.5, -0.0]
    finite = np.array([*edges, *subnormal])
    for lane, odd in ((5, [np.nan, np.inf, -np.inf, *finite]), (11, finite)):
        special = (np.arange(size) % 16 == lane) & wild
        values[special] = rng.choice(odd, special.sum())
    if step % 7 == 6:
        values[:] = 0
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def losses(t: int) -> float:
    """The loss of step t: it falls, and rises, for rules that read it."""
    return 2.0 + math.cos(3.0 * t)


def shifted(a: np.ndarray, offset: int) -> np.ndarray:
    """A copy that begins so many elements behind the start of its buffer."""
    view = np.empty(a.size + offset, a.dtype)[offset:]
    view[:] = a
    return view


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bit for bit; a NaN equals a NaN."""
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    if a.tobytes() == b.tobytes():  # which takes a tenth of the time
        return True
    bits = f"u{a.itemsize}"
    equal: np.ndarray = (a.view(bits) == b.view(bits)) | (np.isnan(a) & np.isnan(b))
    return bool(equal.all())


# ---- Rules

# One of each way through the driver: without state, with some, with sums of each array or of all,
# with numbers that each step moves, with factors. Where a rule is what varies least, the others are
# thorough ones.
KINDS = (rules.SGD, rules.AdamW, rules.LAMB, rules.Prodigy, rules.Eve, rules.Adafactor)


def by_kind(among: Sequence[type[Optimizer]] = rules.RULES) -> list[Any]:
    """Parameters of a test of these rules."""
    return [pytest.param(r, marks=() if r in KINDS else pytest.mark.thorough) for r in among]


# ---- Combinations

DONE = ("backend", "state_dir")  # what is compared with what, and where it lies


def values_of(h: Any) -> list[Any]:  # noqa: PLR0911  one for each kind of declaration
    """The values of an option that the tests go through, from its declaration alone."""
    if isinstance(h, Flag):
        return [False, True]
    if isinstance(h, Choice):
        return list(h.choices)
    if isinstance(h, Storage):
        return [None, "float16", "bfloat16", "blockfloat8"]
    if isinstance(h, Pair):
        return [None, (-0.5, 0.7), (-np.inf, 0.0)]
    if isinstance(h, Whole):
        return [0, 2**40 + 1]
    if isinstance(h, Several):
        halved = tuple(None if v is None else 0.5 * v for v in h.default)
        others = [halved, (0.0,) * len(h.default), (0.9, 1.7)]
        return [h.default, *(v for v in others if allowed(h, v))]
    assert isinstance(h, Bounded)
    low = max(h.interval.low, 0.0)
    among = dict.fromkeys([h.default, low, low + 0.37])
    values = [v for v in among if v is None or v in h.interval]
    low = min(low, h.interval.high - 0.5)
    return [*values, Ramp(low)] if isinstance(h, Scheduled) else values


def allowed(h: Several, value: tuple[Any, ...]) -> bool:
    same = len(value) == len(h.parts)
    parts = zip(h.parts, value, strict=True)
    return same and all(v == part.default or v in part.interval for part, v in parts)


class Ramp(NamedTuple):
    """A schedule whose values an option from `low` on allows."""

    low: float

    @property
    def peak(self) -> float:
        return self.low + 0.5

    def __call__(self, n: int) -> float:
        return self.low + 0.5 / (n + 1)


def values_of_options(rule: type[Optimizer]) -> dict[str, list[Any]]:
    """The values of each of a rule's options, of which it takes all alone."""
    declared = {name: o.declared for name, o in rule.options.items() if name not in DONE}
    found = {name: values_of(h) for name, h in (rule.hyperparameters | declared).items()}
    return found | {"rows": [mode for mode in found["rows"] if takes(rule, rows=mode)]}


def takes(rule: type[Optimizer], **options: Any) -> bool:
    """Whether the rule takes options for an array of two axes, or refuses them."""
    try:
        rule(np.ones((2, 64), np.float32), **options)
    except ValueError:
        return False
    return True


@functools.cache
def values_beside(rule: type[Optimizer], mode: str) -> dict[str, list[Any]]:
    """The values of each of a rule's options that this way to count rows goes with."""
    return {
        name: [v for v in values if beside(rule, mode, **{name: v})]
        for name, values in values_of_options(rule).items()
    }


def beside(rule: type[Optimizer], mode: str, **option: Any) -> bool:
    """Whether it is not because of this way to count rows if the rule refuses an option."""
    return takes(rule, **(option | {"rows": mode})) or not takes(rule, **option)


def options_of(rule: type[Optimizer], row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a combination the rule's constructor takes."""
    return {name: row[name] for name in (*rule.hyperparameters, *rule.options) if name in row}


def valid(rule: type[Optimizer], row: Mapping[str, Any]) -> bool:
    """Whether the values go together."""
    double = row["dtype"] == "float64"
    if double and (row["gradient"] != "as the parameter" or row["state_dtype"]):
        return False
    if row["master"] == "remainder" and row["dtype"] == "float16":
        return False
    if (row["master"] and row["stochastic_rounding"]) or (
        row["clip_norm"] < np.inf and row["clip_value"] != np.inf
    ):
        return False
    try:
        rule.kernel(row)
    except ValueError:
        return False
    return has_rows(rule, row)


def has_rows(rule: type[Optimizer], row: Mapping[str, Any]) -> bool:
    """Whether what looks at rows has them."""
    if row["clip_norm_per"] == "row" and row.get("shape") == "fortran":
        return False
    if row["rows"] == "lazy":
        return True
    # Rows that count are whole blocks of codes, and stand beside some of a rule's options only.
    whole = row["state_dtype"] != "blockfloat8" or row.get("shapes") == "blocks"
    return whole and takes(rule, **options_of(rule, row))


def random_row(
    factors: Mapping[str, list[Any]], rule: type[Optimizer], random: random.Random, **fixed: Any
) -> dict[str, Any] | None:
    """A valid combination of factors with some fixed values, or None where none is found."""
    for _ in range(200):
        mode = fixed.get("rows", random.choice(factors["rows"]))
        taken = factors if mode == "lazy" else {**factors, **values_beside(rule, mode)}
        row = {name: random.choice(values) for name, values in taken.items()}
        row |= {"rows": mode, **fixed}
        if row["dtype"] == "float64":  # whose gradient and state are of float64
            row |= {"gradient": "as the parameter", "state_dtype": None, **fixed}
        if valid(rule, row):
            return row
    return None


# Types and options for arrays that step one by one, to the bits of whole steps.
ONE_BY_ONE: list[tuple[str, dict[str, Any]]] = [
    ("float32", {}),
    ("float64", {"ema": 0.9, "weight_decay": 0.1, "decay_mode": "masked", "maximize": True}),
    ("float32", {"state_dtype": "blockfloat8", "cautious": "mean", "zero_grad": True}),
    ("float32", {"clip_norm": 0.7, "clip_norm_per": "array", "grad_scale": 4.0}),
    ("bfloat16", {"master": "remainder", "clip_norm": 0.7, "clip_norm_per": "row", "ema": 0.9}),
    ("float16", {"stochastic_rounding": True, "seed": 5, "l1": 0.1, "l1_mode": "prox"}),
]
