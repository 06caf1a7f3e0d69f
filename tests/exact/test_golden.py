"""The bits of tests/core/golden.txt are the specification's.

The core's own tests find them with every set of instructions; here the same steps are taken in
NumPy, by `schuss.reference`, of the numbers that tests/core/golden.cpp makes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from schuss import reference
from schuss.reference.storage import traits

GOLDEN = Path(__file__).parents[1] / "core" / "golden.txt"
SIZES = (15, 0, 125, 1, 4096 + 577)
CORNERS = 2  # the number of the array of corners
STEPS = 3
CODED = 64

Words = np.ndarray[Any, np.dtype[np.uint64]]


class Layout(NamedTuple):
    """The bits of a type: behind the sign so many of an exponent and of a fraction."""

    dtype: np.dtype[Any]
    word: type[np.unsignedinteger[Any]]
    exponent: int
    fraction: int

    def corners(self) -> Words:
        sign = 1 << (self.exponent + self.fraction)
        infinity = ((1 << self.exponent) - 1) << self.fraction
        least = 1 << self.fraction
        one = ((1 << (self.exponent - 1)) - 1) << self.fraction
        large = one + (one + least) // 2
        subnormal = [0, sign, 1, sign + least - 1, least]
        beyond = [sign + infinity - 1, infinity, sign + infinity, infinity + least // 2]
        return np.array([*subnormal, *beyond, large, sign + one], np.uint64)


LAYOUTS = {
    "float32": Layout(np.dtype(np.float32), np.uint32, 8, 23),
    "float64": Layout(np.dtype(np.float64), np.uint64, 11, 52),
    "float16": Layout(np.dtype(np.float16), np.uint16, 5, 10),
    "bfloat16": Layout(np.dtype(ml_dtypes.bfloat16), np.uint16, 8, 7),
}


class Codes(NamedTuple):
    codes: np.ndarray
    scales: np.ndarray


def mix(bits: Any) -> Words:
    """A bijection of 64 bits."""
    bits = np.array(bits, np.uint64, ndmin=1) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    found: Words = bits ^ (bits >> np.uint64(31))
    return found


def digest(words: Words) -> np.uint64:
    places = np.arange(words.size, dtype=np.uint64)
    return np.sum(mix(words ^ mix(places)), dtype=np.uint64)


def words_of(a: Any) -> Iterator[Words]:
    """The bits of an array's elements, in which all NaNs are one."""
    if isinstance(a, Codes):
        yield a.codes.view(np.uint8).astype(np.uint64)
        yield a.scales.astype(np.uint64)
    elif a.dtype == np.int16:
        yield a.view(np.uint16).astype(np.uint64)
    else:
        layout = LAYOUTS[a.dtype.name]
        corners = layout.corners()
        yield np.where(np.isnan(a), corners[8], a.view(layout.word).astype(np.uint64))


# ---- Numbers

EITHER, NEVER_NEGATIVE, NEVER_POSITIVE = range(3)
X, STATE, AVERAGE, MASTER, LOW, HIGH, G, STREAMS = 0, 1, 16, 17, 18, 19, 24, 32


def randoms(array: int, stream: int) -> Words:
    places = np.arange(SIZES[array], dtype=np.uint64)
    return mix(mix(array * STREAMS + stream) + places)


@functools.cache
def bits_of(array: int, stream: int, name: str, sign: int) -> np.ndarray:
    """Numbers by chance, or corners."""
    layout = LAYOUTS[name]
    random, place = randoms(array, stream), np.arange(SIZES[array], dtype=np.uint64)
    top = np.uint64(layout.exponent + layout.fraction)
    corners = layout.corners()
    count = np.uint64(corners.size)
    if array == CORNERS and stream == X:
        bits = corners[place % count]
    elif array == CORNERS and stream < LOW:
        bits = corners[(place * np.uint64(stream + 1) + place // count) % count]
    elif array == CORNERS and stream >= G:
        bits = corners[(place // count + np.uint64(stream - G)) % count]
    else:
        octave = (random >> np.uint64(1)) % np.uint64(7) + np.uint64(1)
        one = np.uint64((1 << (layout.exponent - 1)) - 1)
        bits = (one - octave) << np.uint64(layout.fraction)
        bits += random >> np.uint64(64 - layout.fraction)
        bits += random % np.uint64(2) << top
    negative = np.uint64(1) << top
    if sign == NEVER_NEGATIVE:
        bits = bits & ~negative
    elif sign == NEVER_POSITIVE:
        bits = bits | negative
    found: np.ndarray = bits.astype(layout.word)
    return found


def numbers(array: int, stream: int, name: str, sign: int = EITHER) -> np.ndarray:
    """A new array of these."""
    found: np.ndarray = bits_of(array, stream, name, sign).copy().view(LAYOUTS[name].dtype)
    return found


def codes(array: int, stream: int, positive: bool) -> Codes:
    random = randoms(array, stream)
    code = random % np.uint64(256 if positive else 128)
    if not positive:
        code = np.where((random >> np.uint64(32)) % np.uint64(2) == 1, np.uint64(256) - code, code)
    scales = 120 + (random[::CODED] >> np.uint64(40)) % np.uint64(8)
    if array == CORNERS:
        scales[0] = 255
    found = code.astype(np.uint8)
    return Codes(found if positive else found.view(np.int8), scales.astype(np.uint8))


# ---- Steps


class Case(NamedTuple):
    """A rule with what is asked for around it."""

    rule: Any
    scalars: dict[str, list[float]]
    around: dict[str, float]

    def at_step(self, t: int) -> dict[str, float]:
        return {name: values[min(t, len(values) - 1)] for name, values in self.scalars.items()}

    def stages(self) -> reference.Stages:
        names = self.around.keys() & set(reference.Stages._fields)
        own: Any = {name: self.around[name] for name in names}
        return reference.Stages(**own)


def state_of(array: int, s: int, trait: Any, name: str) -> Any:
    if name == "blockfloat8" and not trait.alone:
        return codes(array, STATE + s, trait.positive)
    sign = NEVER_NEGATIVE if trait.positive else EITHER
    return numbers(array, STATE + s, "float32" if name == "blockfloat8" else name, sign)


def stepped(case: Case, kinds: tuple[str, str, str]) -> np.uint64:
    """A hash of what the steps leave."""
    name, of_g, of_state = kinds
    remains = name == "remainder"
    name = "bfloat16" if remains else name
    own = "float64" if name == "float64" else "float32"
    stages = case.stages()
    words: list[Words] = []
    reports: list[Words] = []
    position = 0
    for array, size in enumerate(SIZES):
        x = numbers(array, X, name)
        state = [state_of(array, s, t, of_state) for s, t in enumerate(traits(case.rule))]
        master: Any = None
        average = low = high = None
        if remains:
            master = randoms(array, MASTER).astype(np.uint16).view(np.int16)
            master[...] = 0 if array == CORNERS else master
        elif "master" in case.around and name != own:
            master = numbers(array, MASTER, own)
        if stages.average != 0:
            average = numbers(array, AVERAGE, own)
        if "bounds" in case.around:
            low = numbers(array, LOW, name, NEVER_POSITIVE)
            high = numbers(array, HIGH, name, NEVER_NEGATIVE)
        for t in range(STEPS):
            g = numbers(array, G + t, of_g)
            scalars = case.at_step(t)
            if "report" in case.around and t == STEPS - 1 and size:
                sums = reference.report(case.rule, x, g, state, scalars, stages, master=master)
                reports += words_of(sums.ravel())
            reference.step(
                case.rule,
                x,
                g,
                state,
                scalars,
                stages,
                master=master,
                average=average,
                low=low,
                high=high,
                position=position,
            )
        for a in (x, *state, master, average, g):
            words += [] if a is None else words_of(a)
        position += size
    return digest(np.concatenate(words + reports))


def measured(case: Case, name: str) -> np.uint64:
    """A hash of what is measured before the first step."""
    own = getattr(reference, case.rule.__name__ + "_measures", None)
    words: list[Words] = []
    for array, size in enumerate(SIZES):
        if size:
            x, g = numbers(array, X, name), numbers(array, G, name)
            state = [state_of(array, s, t, name) for s, t in enumerate(traits(case.rule))]
            sums = reference.measure(
                case.rule, x, g, state, case.at_step(0), case.stages(), own=own
            )
            words += words_of(np.array(sums))
    return digest(np.concatenate(words))


# ---- The file


def halves(half: str) -> list[tuple[str, str, str]]:
    full = "float32"
    return [
        (half, half, half),
        (full, half, half),
        (full, full, half),
        (full, half, full),
        (half, full, full),
    ]


STORAGES = {
    "float32": [("float32",) * 3],
    "float64": [("float64",) * 3],
    "bfloat16": halves("bfloat16"),
    "float16": halves("float16"),
    "blockfloat8": [("float32", "float32", "blockfloat8"), ("float16", "bfloat16", "blockfloat8")],
    "remainder": [
        ("remainder", "float32", "float32"),
        ("remainder", "bfloat16", "blockfloat8"),
    ],
}


def assignments(text: str) -> dict[str, list[float]]:
    pairs = (word.split("=") for word in text.split())
    return {name: [float(value) for value in values.split(",")] for name, values in pairs}


def numbers_of(text: str) -> dict[str, float]:
    return {name: values[0] for name, values in assignments(text).items()}


def sections() -> dict[str, tuple[str, dict[str, str]]]:
    """Of each section what stands behind its name, and the hash of each case."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    hashes: dict[str, str] = {}
    for line in GOLDEN.read_text().splitlines():
        if line.startswith("  "):
            case, hashed = line.rsplit(maxsplit=1)
            hashes[case.strip()] = hashed
        elif line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            hashes = {}
            found[name] = rest, hashes
    return found


SECTIONS = sections()
STAGES = list(SECTIONS["stages"][1])
RULES = [name for name in SECTIONS if name not in ("stages", "shared")]


def case_of(rule: str, around: str = "") -> Case:
    scalars, _, own = SECTIONS[rule][0].partition("|")
    return Case(
        getattr(reference, rule), assignments(scalars), numbers_of(own) | numbers_of(around)
    )


def folded(hashes: list[np.uint64]) -> str:
    return f"{digest(np.array(hashes)):016x}"


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    case = case_of(rule)
    got = {
        name: folded([stepped(case, kinds) for kinds in storages])
        for name, storages in STORAGES.items()
    }
    wide: list[tuple[str, str, str]] = [("float32",) * 3, ("float64",) * 3]
    with_stages = [text for text in STAGES if traits(case.rule) or "drift" not in text]
    got["stages"] = folded(
        [stepped(case_of(rule, text), kinds) for kinds in wide for text in with_stages]
    )
    got["sums"] = folded([measured(case, kinds[0]) for kinds in wide])
    assert got == SECTIONS[rule][1]


@pytest.mark.parametrize("stages", STAGES)
def test_stages(stages: str) -> None:
    case = case_of("adam", stages)
    hashes = [stepped(case, (k, k, k)) for k in ("float32", "float64", "bfloat16", "float16")]
    assert folded(hashes) == SECTIONS["stages"][1][stages]


# ---- What all rules share

LONGEST = 4
WEIGHTS = (0.5, 0.3, -1.7)
OTHERS = [array for array in range(len(SIZES)) if array != CORNERS]


def own_of(name: str) -> str:
    return "float64" if name == "float64" else "float32"


def words_of_norm(norm: tuple[float, int, bool]) -> Iterator[Words]:
    squares, exponent, finite = norm
    yield from words_of(np.array([squares]))
    yield np.array([exponent + 1000, finite], np.uint64)


def arrays_of(array: int, rule: str, kinds: tuple[str, str, str]) -> list[Any]:
    """x, state and g of a rule."""
    state = [
        state_of(array, s, t, kinds[2]) for s, t in enumerate(traits(getattr(reference, rule)))
    ]
    return [numbers(array, X, kinds[0]), *state, numbers(array, G, kinds[1])]


def norms(name: str) -> Iterator[Words]:
    grads = [numbers(array, G, name) for array in range(len(SIZES))]
    stages = reference.Stages(scale=3e38)
    x = np.zeros(0, own_of(name))
    for own in (grads, [grads[array] for array in OTHERS]):
        yield from words_of_norm(reference.norm(own))
        finite = [reference.scales_finite(x, g, stages) for g in own]
        yield np.array([[*finite, False].index(False)], np.uint64)

    rows = [grads[array] for array in OTHERS]
    rows[-1] = rows[-1][:-1]
    rows = [g.reshape(-1, max(1, g.size // 73)) for g in rows]
    each = [reference.norm([g], by_rows=[0]) if g.size else (0.0, 0, True) for g in rows]
    for all_of in (each, [reference.norm([row]) for g in rows for row in g]):
        for one in all_of:
            yield from words_of_norm(one)
        yield from words_of_norm((sum(one[0] for one in all_of), 0, all(o[2] for o in all_of)))
    yield from words_of_norm(reference.norm(rows, by_rows=range(len(rows))))

    for exponent in (600, -600) if name == "float64" else ():
        far = [np.ldexp(grads[array], exponent) for array in OTHERS]
        yield from words_of_norm(reference.norm(far))


def pieces(name: str) -> Iterator[Words]:
    own = own_of(name)
    of_g = (own, own, own) if own == "float64" else (own, "bfloat16", "float16")
    case = case_of("adam")
    stepped, sums = [], []
    position = 0
    for array, size in enumerate(SIZES):
        x, m, v, g = arrays_of(array, "adam", (name, own, own))
        parts = [numbers(array, G + k, of) for k, of in enumerate(of_g)]
        total: Any = reference.average(parts, WEIGHTS, np.dtype(own).type)
        scalars = case.at_step(0)
        reference.step(case.rule, x, total, (m, v), scalars, case.stages(), position=position)
        stepped += [x, m, v, g]
        with np.errstate(over="ignore"):
            sums += [total.astype(x.dtype), m, v, g]
        position += size
    for a in stepped:
        yield from words_of(a)
    for of in of_g:
        for array in range(len(SIZES)):
            x, m, v, g = arrays_of(array, "adam", (own, of, own))
            for a in (x, m, v, np.zeros_like(g)):
                yield from words_of(a)
    for a in sums:
        yield from words_of(a)


def some_rows(kinds: tuple[str, str, str]) -> Iterator[Words]:
    where, begins = [0, 3, 4, 9, 70, 72], [0, 1, 3, 4, 7, 8, 9]
    factors, sets = [1, 0.5, 0.25, 3, 1, 0.7], [0, 2, 2, 0, 0, 2]
    case, number = case_of("adam"), np.dtype(own_of(kinds[0])).type
    for folds in (False, True):
        x, m, v, g = arrays_of(LONGEST, "adam", kinds)
        parts = g[: 9 * CODED].reshape(9, CODED)
        rows: Any = [
            Codes(a.codes[:-1].reshape(-1, CODED), a.scales[:-1])
            if isinstance(a, Codes)
            else a[:-1].reshape(-1, CODED)
            for a in (x, m, v)
        ]
        for k, row in enumerate(where):
            if folds:
                own = range(begins[k], begins[k + 1])
                total: Any = reference.average(
                    [parts[i] for i in own], [WEIGHTS[i % 3] for i in own], number
                )
                seen = reference.product(total, factors[k], number)
            else:
                seen = parts[k]
            reference.step(
                case.rule,
                rows[0],
                seen.reshape(1, CODED),
                rows[1:],
                case.at_step(sets[k] if folds else 0),
                case.stages(),
                rows=np.array([row]),
                position=sum(SIZES[:LONGEST]),
            )
        others = [a for array in range(LONGEST) for a in arrays_of(array, "adam", kinds)]
        for a in (*others, x, m, v, g):
            yield from words_of(a)


def factored(name: str, count: int, height: int, width: int, across: bool) -> Iterator[Words]:
    """Matrices of the longest array, whose lines are their columns where that is `across`."""
    case, kinds = case_of("adafactor"), (name, name, name)
    x, v, g = arrays_of(LONGEST, "adafactor", kinds)
    own_x, own_g = (
        a[: count * height * width].reshape(count, height, width)[0 if across else slice(None)]
        for a in (x, g)
    )
    if across:
        own_x, own_g = own_x.T, own_g.T
    rows, columns = own_x.shape[-2:]
    row = numbers(LONGEST, AVERAGE, name, NEVER_NEGATIVE)[: count * rows]
    column = numbers(LONGEST, MASTER, name, NEVER_NEGATIVE)[: count * columns]
    row, column = reference.factors(
        own_x,
        own_g,
        row.reshape(*own_x.shape[:-1], 1),
        column.reshape(*own_x.shape[:-2], 1, columns),
        case.stages(),
        share=0.3,
    )
    scaled = reference.estimate(own_x[..., :1], row, np.ones_like(column[..., :1]), 1e-30)
    estimate = reference.estimate(own_x, row, column, 1e-30)
    reference.step(case.rule, own_x, own_g, [estimate], case.at_step(0), case.stages())
    others = [a for array in range(LONGEST) for a in arrays_of(array, "adafactor", kinds)]
    for a in (row.ravel(), column.ravel(), scaled.ravel(), *others, x, v, g):
        yield from words_of(a)


def factors(name: str) -> Iterator[Words]:
    for shape in ((4, 33, 35, False), (1, 130, 35, False), (1, 130, 35, True), (2, 3, 700, False)):
        yield from factored(name, *shape)


def any_bits(seed: int, count: int = 5003) -> Words:
    return mix(mix(seed) + np.arange(count, dtype=np.uint64))


def conversions(name: str) -> Iterator[Words]:
    half = LAYOUTS[name].dtype
    with np.errstate(all="ignore"):
        yield from words_of(any_bits(0).astype(np.uint32).view(np.float32).astype(half))
        yield from words_of(any_bits(1).astype(np.uint16).view(half).astype(np.float32))


def quotients() -> Iterator[Words]:
    a, b = (any_bits(seed).astype(np.uint32).view(np.float32) for seed in (0, 1))
    with np.errstate(all="ignore"):
        yield from words_of(a / b)


SHARED: dict[str, Callable[[], Iterator[Words]]] = {
    **{f"norm {k}": functools.partial(norms, k) for k in LAYOUTS},
    **{f"pieces {k}": functools.partial(pieces, k) for k in ("float32", "float64", "bfloat16")},
    **{
        f"rows {k}": functools.partial(some_rows, (k, k, k))
        for k in ("float32", "float64", "bfloat16")
    },
    "rows blockfloat8": functools.partial(some_rows, ("float32", "float32", "blockfloat8")),
    **{f"factors {k}": functools.partial(factors, k) for k in ("float32", "float64")},
    **{f"convert {k}": functools.partial(conversions, k) for k in ("bfloat16", "float16")},
    "quotient": quotients,
}


@pytest.mark.parametrize("name", SHARED)
def test_shared(name: str) -> None:
    found = digest(np.concatenate(list(SHARED[name]())))
    assert f"{found:016x}" == SECTIONS["shared"][1][name]
