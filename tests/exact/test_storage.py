"""Storage in 16 bits: conversions by way of every instruction set, and stochastic rounding.

    python tests/exact/test_storage.py

proves, for every instruction set that this processor has, that all 2^16 numbers of float16 and of
bfloat16 are widened and all 2^32 of float32 narrowed to the bits of NumPy and ml_dtypes, a NaN to
any NaN. Under pytest a sample of the narrowings stands for all.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

import schuss
from schuss import _core
from schuss.engine.declare import Backend

TYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
ISAS = _core.found_isas()
HALVES = np.arange(1 << 16, dtype=np.uint16)

# ---- Conversions


def differing(got: np.ndarray, want: np.ndarray) -> int:
    """In how many bit patterns two arrays differ, where not both are a NaN."""
    bits = f"u{want.itemsize}"
    differ = got.view(bits) != want.view(bits)
    return int((~(np.isnan(got[differ]) & np.isnan(want[differ]))).sum())


def widened_wrongly(kind: str) -> int:
    return differing(_core.widen(kind, HALVES), HALVES.view(TYPES[kind]).astype(np.float32))


def narrowed(kind: str, numbers: np.ndarray) -> np.ndarray:
    """By NumPy or ml_dtypes, on all cores: where it raises flags, NumPy takes 60 ns a number."""

    def cast(part: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return part.astype(TYPES[kind])

    with ThreadPoolExecutor() as pool:
        return np.concatenate(list(pool.map(cast, np.array_split(numbers, 64))))


def narrowed_wrongly(kind: str, numbers: np.ndarray) -> Iterator[tuple[str, int]]:
    """For each instruction set, how many of the numbers it narrows to other bits."""
    want = narrowed(kind, numbers)
    for isa in ISAS:
        _core.use_isa(isa)
        yield isa, differing(_core.narrow(kind, numbers).view(TYPES[kind]), want)


def with_lower_halves(lower: np.ndarray) -> np.ndarray:
    """All float32 that end on these 16 bits: every sign and exponent, and 7 bits of fraction."""
    bits: np.ndarray = HALVES.astype(np.uint32)[:, None] << 16 | lower
    return bits.view(np.float32).ravel()


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("kind", TYPES)
def test_all_widenings(kind: str) -> None:
    for isa in ISAS:
        _core.use_isa(isa)
        assert widened_wrongly(kind) == 0, isa


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("kind", TYPES)
def test_sample_of_narrowings(kind: str, seed: int) -> None:
    """Ties and their neighbours wherever float16 cuts, subnormal or not, and random ones."""
    cuts = [m << s for s in range(17) for m in (1, 3, 5)] + [m << 12 for m in range(16)]
    near = {(cut + d) & 0xFFFF for cut in cuts for d in (-1, 0, 1)}
    others = np.random.default_rng(seed).integers(0, 1 << 16, 100)
    numbers = with_lower_halves(np.array([*near, *others], np.uint32))
    assert dict(narrowed_wrongly(kind, numbers)) == dict.fromkeys(ISAS, 0)


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("kind", TYPES)
def test_conversions_of_few(kind: str) -> None:
    """What is left over behind the vectors."""
    bits = HALVES[1234:1251]
    for isa in ISAS:
        _core.use_isa(isa)
        for n in range(len(bits)):
            numbers = _core.widen(kind, bits[:n])
            assert (numbers == bits[:n].view(TYPES[kind])).all()
            assert (_core.narrow(kind, numbers) == bits[:n]).all()


def prove() -> bool:
    """The proof over all numbers, printed as it goes."""
    proved = True
    for kind in TYPES:
        for isa in ISAS:
            _core.use_isa(isa)
            wrong = widened_wrongly(kind)
            print(f"{kind:8} {isa:6} all 2^16 widened: {wrong} differ")
            proved &= wrong == 0
        total = dict.fromkeys(ISAS, 0)
        start = time.perf_counter()
        parts = 256
        for part in range(parts):
            lower = np.arange(part << 8, (part + 1) << 8, dtype=np.uint32)
            for isa, wrong in narrowed_wrongly(kind, with_lower_halves(lower)):
                total[isa] += wrong
            if sys.stdout.isatty():
                print(f"{kind:8} {part + 1}/{parts}", end="\r", flush=True)
        for isa, wrong in total.items():
            print(f"{kind:8} {isa:6} all 2^32 narrowed: {wrong} differ")
            proved &= wrong == 0
        print(f"{kind:8} took {time.perf_counter() - start:.0f} s", flush=True)
    return proved


# ---- Stochastic rounding

N = 1 << 16
SIGMA = 6  # of a binomial count: by chance beyond once in 5e8 times


def rounded(values: np.ndarray, kind: str, seed: int = 1, steps_before: int = 0) -> np.ndarray:
    """What a step leaves of these float32: from 0, against a gradient of -values, lr 1."""
    x = np.zeros(values.shape, TYPES[kind])
    opt = schuss.SGD(x, lr=1.0, stochastic_rounding=True, seed=seed)
    for _ in range(steps_before):
        opt.step(np.zeros_like(values))
    opt.step(-values)
    return x


def copies(kind: str, value: float) -> np.ndarray:
    return rounded(np.full(N, value, np.float32), kind)


def spread(kind: str) -> np.ndarray:
    """Numbers of the type across its whole range, subnormal ones among them, and both zeros."""
    numbers: np.ndarray = HALVES.view(TYPES[kind])
    with np.errstate(invalid="ignore"):
        finite: np.ndarray = numbers[np.isfinite(numbers)]
    return finite


def above(number: np.generic) -> np.generic:
    """The type's next number away from 0."""
    bits = np.array([number]).view(np.uint16) + np.uint16(1)
    next_one: np.generic = bits.view(number.dtype)[0]
    return next_one


LARGEST = {"float16": 65504.0, "bfloat16": 2.0**128 - 2.0**120}
NUMBERS = {  # what random values lie just above: normal, and in the subnormal range
    "float16": [1.0, -1.5, 333.0, 65472.0, 2.0**-14, 1e-5, 6e-8, -3e-5, 0.0, -0.0, 1023 * 2.0**-24],
    "bfloat16": [1.0, -1.5, 333.0, 3.3e38, 1e-30, 2.0**-126, -1e-39, 1e-40, 0.0, -0.0],
}


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, number) for kind in TYPES for number in NUMBERS[kind]]
)
def test_unbiased_and_monotone(kind: str, number: float) -> None:
    """Up as often as the place between the neighbours says, and nowhere else."""
    low = TYPES[kind].type(number)
    high = above(low)
    before = 0
    for share in (2**-10, 0.1, 0.25, 0.5, 0.7, 0.95, 1 - 2**-10):
        value = np.float32(float(low) + share * (float(high) - float(low)))
        exact = (float(value) - float(low)) / (float(high) - float(low))
        got = copies(kind, float(value)).view(np.uint16)
        up = got == np.array(high).view(np.uint16)
        assert (up | (got == np.array(low).view(np.uint16))).all()
        assert abs(up.sum() - N * exact) <= SIGMA * np.sqrt(N * exact * (1 - exact))
        assert up.sum() >= before  # the dither is the same: each rounds up once, and stays
        before = up.sum()


@pytest.mark.parametrize("kind", TYPES)
def test_unbiased_everywhere(kind: str) -> None:
    """The errors of random values, in units of their spacing, add up to nothing."""
    low = np.abs(spread(kind))
    low = np.repeat(low[low < TYPES[kind].type(3e4)], 8)
    high = (low.view(np.uint16) + np.uint16(1)).view(low.dtype)
    bottom, spacing = low.astype(float), high.astype(float) - low.astype(float)
    values = (bottom + np.random.default_rng(3).random(low.size) * spacing).astype(np.float32)
    error = (rounded(values, kind).astype(float) - values) / spacing
    assert np.abs(error).max() <= 1
    assert abs(error.sum()) <= SIGMA * np.sqrt(np.square(error).sum())


@pytest.mark.parametrize("kind", TYPES)
def test_representable_values_stay(kind: str) -> None:
    """Both zeros and every subnormal number included, with 64 random numbers for each."""
    exact = np.tile(spread(kind), 64)
    x = exact.copy()  # not `rounded`, whose 0 - 0 makes no negative zero
    schuss.SGD(x, lr=1.0, stochastic_rounding=True).step(np.zeros(x.shape, np.float32))
    assert (x.view(np.uint16) == exact.view(np.uint16)).all()


def test_odd_subnormal_values_stay() -> None:
    """Where the rounding of an intermediate sum would show first: the largest subnormal numbers."""
    exact = np.repeat(np.arange(0x3E1, 0x400, 2, dtype=np.uint16), N).view(np.float16)
    assert (rounded(exact.astype(np.float32), "float16") == exact).all()


@pytest.mark.parametrize("kind", TYPES)
def test_what_is_finite_stays_finite(kind: str) -> None:
    """Above the largest number there is nothing to round up to."""
    largest = np.float32(TYPES[kind].type(LARGEST[kind]))
    bits = largest.view(np.uint32) + np.arange(N, dtype=np.uint32)
    values = np.minimum(bits, np.uint32(0x7F7FFFFF)).view(np.float32)  # from it on
    for sign in (1, -1):
        for seed in range(3):
            assert (rounded(sign * values, kind, seed).astype(np.float32) == sign * largest).all()
    most = np.full(N, np.finfo(np.float32).max)
    assert (rounded(most, kind).astype(np.float32) == largest).all()
    found = rounded(np.full(N, np.nextafter(largest, np.float32(0))), kind).view(np.uint16)
    highest = np.array(largest).astype(TYPES[kind]).view(np.uint16)
    assert set(np.unique(found)) <= {highest.item(), highest.item() - 1}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(kind: str, value: float) -> None:
    assert differing(copies(kind, value), np.full(N, value, TYPES[kind])) == 0


def spacing(kind: str) -> float:
    """Of the numbers in [1, 2)."""
    return 2.0**-10 if kind == "float16" else 2.0**-7


@pytest.mark.parametrize("kind", TYPES)
def test_seeds_and_steps_round_others_up(kind: str) -> None:
    """The same again with the same seed; with another, or a step later, other elements."""
    for share in (1 / 4, 1 / 2):
        values = np.full(N, 1 + share * spacing(kind), np.float32)
        one = rounded(values, kind) > 1
        assert (one == (rounded(values, kind) > 1)).all()
        others = [rounded(values, kind, seed=seed) > 1 for seed in (0, 2, 3, 2**40 + 1)]
        others += [rounded(values, kind, steps_before=n) > 1 for n in (1, 2, 3)]
        for a, b in itertools.combinations([one, *others], 2):
            assert (a != b).mean() > 0.01
        assert len({other.tobytes() for other in others}) == len(others)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("share", [1 / 64, 3 / 16, 1 / 2, 13 / 16])
def test_neighbours_balance(kind: str, share: float) -> None:
    """Of any elements side by side the share that is rounded up is right to a few of them.

    And they aren't all alike, nor in the order of a short period.
    """
    values = np.full(N, 1 + share * spacing(kind), np.float32)
    up = (rounded(values, kind) > 1).astype(int)
    sums = np.concatenate([[0], np.cumsum(up)])
    for size in (16, 64, 256, 4096):
        assert np.abs(sums[size:] - sums[:-size] - size * share).max() < 6
    for period in range(1, 9):
        assert (up[period:] != up[:-period]).mean() > 0.01


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("share", [1 / 64, 1 / 8, 3 / 8, 1 / 2, 7 / 8])
@pytest.mark.parametrize("seed", [0, 1, 77])
def test_steps_balance(kind: str, share: float, seed: int) -> None:
    """After n steps by a share of the spacing each element has moved by n shares, or nearly.

    Independent random numbers would be off by sqrt(n*share*(1 - share)): 12 after 600 halves.
    """
    n, size = 600, 512
    x = np.full(size, 4096.0 if kind == "float16" else 512.0, TYPES[kind])
    gap = 4.0
    start = x.astype(float)
    opt = schuss.SGD(x, lr=1.0, stochastic_rounding=True, seed=seed)
    g = np.full(size, -share * gap, np.float32)
    for step in range(1, n + 1):
        opt.step(g)
        if (start + step * share * gap)[0] >= 1.9 * start[0]:  # the spacing is another soon
            break
    moved = (x.astype(float) - start) / gap
    assert np.abs(moved - step * share).max() < 4
    assert abs(moved.mean() - step * share) < 0.5


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("backend", ["compiled", "numpy"])
def test_split_arrays_round_alike(kind: str, backend: Backend, rng: np.random.Generator) -> None:
    g = rng.standard_normal(9001).astype(np.float32)
    cuts = [1, 64, 321, 4418]
    whole, parts = (np.ones(g.size, TYPES[kind]) for _ in range(2))
    one, many = (
        schuss.SGD(x, lr=0.1, stochastic_rounding=True, seed=5, backend=backend)
        for x in (whole, np.split(parts, cuts))
    )
    for _ in range(3):
        one.step(g)
        many.step(np.split(g, cuts))
    assert (whole.view(np.uint16) == parts.view(np.uint16)).all()
    assert len(np.unique(whole)) > 100


if __name__ == "__main__":
    sys.exit(not prove())
