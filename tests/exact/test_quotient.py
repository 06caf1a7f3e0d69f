"""The quotient that rules take is the divider's, on every instruction set, however it is computed.

    python tests/exact/test_quotient.py

proves it for every significand of the divisor. First of the products of cpp/core/pack.hpp, whatever
estimate of 1/b they begin with: all quotients follow from a number for each divisor, and steps with
any estimates give the divider's bits. Then on the sets that this processor has: with random
numerators of all exponents, with those at either end, and with those whose quotient lies nearest
the middle of two floats, where rounding is hardest. Under pytest the numbers are those of all
divisors, and for the rest a sample of them stands for all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from schuss import _core

ISAS = _core.found_isas()
HALF = 1 << 23  # significands of float32 are the whole numbers from here to twice as many
BY_PRODUCTS = 2 * HALF - 64  # pack.hpp leaves those from here on to the divider

# Residuals of the hard quotients, in units of the divisor's last odd place; and which of the
# quotients that have one, as several have where the divisor ends in zeros.
RESIDUALS = [sign * r for r in (1, 3, 5, 7, 9) for sign in (1, -1)]
TURNS = range(4)


def differing(got: np.ndarray, a: np.ndarray, b: np.ndarray) -> int:
    """How many quotients differ from the processor's in a bit, where not both are a NaN."""
    with np.errstate(all="ignore"):
        want = a / b
    differ = got.view(np.uint32) != want.view(np.uint32)
    return int((~(np.isnan(got[differ]) & np.isnan(want[differ]))).sum())


def odd_and_shift(divisors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lowest = divisors & -divisors
    return divisors // lowest, np.log2(lowest).astype(np.int64)


def inverse(odd: np.ndarray) -> np.ndarray:
    """Of odd numbers modulo 2^64, by Newton's steps, which double the places that are right."""
    x = odd.copy()
    for _ in range(5):
        x = x * (2 - odd * x)
    return x


def hard_numerators(
    divisors: np.ndarray, residual: int, turn: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Significands a, with those of b, for which a/b is nearest the middle of two floats.

    The middle is an odd m over 2^24, or 2^25 where a < b, and a*2^24 = m*b + r with a small r.
    """
    odd, shift = odd_and_shift(divisors)
    for places in (24, 25):
        # m*odd = -residual modulo 2^(places - shift); of the m with 25 bits one for each turn.
        modulus = np.int64(1) << (places - shift)
        m = -residual * inverse(odd) % modulus
        m = m + modulus * ((2 * HALF - m + modulus - 1) // modulus + turn)
        a, rest = np.divmod(m * divisors + residual * (np.int64(1) << shift), np.int64(1) << places)
        assert (rest == 0).all()
        fits = (m < 4 * HALF) & (a >= HALF) & (a < 2 * HALF)
        yield a[fits], divisors[fits]


def scaled(significands: np.ndarray, exponents: np.ndarray | int) -> np.ndarray:
    """Significands from 1 to 2, times powers of 2."""
    return np.ldexp((significands / HALF).astype(np.float32), exponents).astype(np.float32)


def hard_pairs(divisors: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The hard numerators, and those at either end and beside the divisor."""
    for residual in RESIDUALS:
        for turn in TURNS:
            yield from hard_numerators(divisors, residual, turn)
    one, last = np.full_like(divisors, HALF), np.full_like(divisors, 2 * HALF - 1)
    for a in (one, one + 1, last - 1, last, divisors, np.minimum(divisors + 1, last)):
        yield a, divisors


def wrong_of(isa: str, divisors: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """How many quotients by these significands were tried, and how many differ."""
    _core.use_isa(isa)
    tried = wrong = 0
    for of_a, of_b in hard_pairs(divisors):
        a, b = scaled(of_a, 0), scaled(of_b, 0)
        tried += a.size
        wrong += differing(_core.divide(a, b), a, b)
    for _ in range(8):
        to_a, to_b = (rng.integers(-149, 128, divisors.size) for _ in "ab")
        a = scaled(rng.integers(HALF, 2 * HALF, divisors.size), to_a)
        a, b = rng.choice(np.array([-1, 1], np.float32), a.size) * a, scaled(divisors, to_b)
        tried += a.size
        wrong += differing(_core.divide(a, b), a, b)
    return tried, wrong


# ---- Whatever the estimate is


def inverses(divisors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest inverse that an estimate within 2^-14 leads to, in units of 2^-24.

    With e = 1 - b*estimate, (1 - e)*(1 + e + e^2) is 1 - e^3. Rounding e, at most 2^-14, moves it
    by 2^-39 at most, rounding e + e^2 that by 2^-38: before it is rounded the inverse is within
    2^-37 of 1/b. It is y if that lies from y - 1/2 to y + 1/2, and 1/b is 2^47/divisor.
    """
    least, largest = 2**48 - 2**11, 2**48 + 2**11
    return -(-least // divisors) // 2, (largest // divisors + 1) // 2


def by_any_inverse(divisors: np.ndarray) -> np.ndarray:
    """Of each divisor whether all quotients are right, whichever of its inverses y they are by.

    Before it is rounded the last sum is a/b + (near - a/b)*(1 - b*y). The floats around a/b are u
    apart, and a/b is d from the middle of two: at least (u/2)/divisor, since m*b is never a*2^k.
    Mostly near is one of the floats around a/b: its residual is exact, |near - a/b| <= u/2 + d, and
    the sum is less than d from a/b, and rounds as that, if |1 - b*y|*(divisor + 1) < 1.
    If |1 - b*y| <= 2^-24 - 2^-44, a*y is within u - u/2^20 of a/b: where near is a float beyond
    those, d is more than u/2^20, and the sum, whose residual may be rounded, within u/2^22 of a/b.
    """
    right = np.ones(divisors.shape, bool)
    for y in inverses(divisors):
        off = np.abs(divisors * y - 2**47)
        right &= (off * (divisors + 1) < 2**47) & (off <= 2**23 - 2**3)
    return right


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray | float) -> np.ndarray:
    """a*b + c rounded once: the sum of doubles is rounded to odd, which the next rounding bears."""
    product = np.multiply(a, b, dtype=np.float64)
    total: np.ndarray = product + c
    added = total - product
    rest = (product - (total - added)) + (c - added)
    bits = total.view(np.int64)
    bits += ((rest != 0) & (bits % 2 == 0)) * np.where((rest > 0) == (total > 0), 1, -1)
    return total.astype(np.float32)


def inverse_of(b: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """As pack.hpp takes it."""
    error = fused(-b, estimate, 1)
    return fused(estimate, fused(error, error, error), estimate)


def by_products(a: np.ndarray, b: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """As pack.hpp takes it."""
    near: np.ndarray = a * inverse
    return fused(-fused(b, near, -a), inverse, near)


def estimates(b: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Of 1/b: as far off as they may be, anywhere between, and of few bits, as from a table."""
    most = 2.0**-14 - 2.0**-23  # and rounding is 2^-24
    for off in (-most, most, rng.uniform(-most, most, b.size)):
        yield np.divide(1 + off, b, dtype=np.float64).astype(np.float32)
    yield np.rint(np.float32(2**15) / b) / np.float32(2**15)


def wrong_by_products(divisors: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """How many quotients were tried, and how many differ or are by an inverse that is none."""
    b = scaled(divisors, 0)
    least, largest = (y / 2**24 for y in inverses(divisors))
    found = [inverse_of(b, estimate) for estimate in estimates(b, rng)]
    tried, wrong = 0, sum(int(((y < least) | (y > largest)).sum()) for y in found)
    for of_a, of_b in hard_pairs(divisors):
        at = np.searchsorted(divisors, of_b)
        a = scaled(of_a, 0)
        for inverse in found:
            tried += a.size
            wrong += differing(by_products(a, b[at], inverse[at]), a, b[at])
    return tried, wrong


def parts_of(divisors: np.ndarray) -> list[np.ndarray]:
    """Few enough at a time for the caches."""
    return np.array_split(divisors, 64)


def test_quotients_by_any_inverse_are_right() -> None:
    """Of all divisors but some of those that pack.hpp leaves to the divider."""
    every = np.arange(HALF, 2 * HALF)
    failing = np.concatenate([part[~by_any_inverse(part)] for part in parts_of(every)])
    np.testing.assert_array_equal(failing, np.arange(2 * HALF - 45, 2 * HALF, 2))
    assert failing[0] >= BY_PRODUCTS


def test_sample_of_quotients_whatever_the_estimate_is(seed: int) -> None:
    """Of divisors with two inverses, of those at either end, and of some that are drawn."""
    rng = np.random.default_rng(seed)
    every = np.arange(HALF, BY_PRODUCTS)
    two = [part[np.not_equal(*inverses(part))] for part in parts_of(every)]
    ends = every[:100], every[-1000:]
    divisors = np.unique(np.concatenate([*two, *ends, rng.choice(every, 5000)]))
    tried, wrong = wrong_by_products(divisors, rng)
    assert tried > 500_000
    assert wrong == 0


# ---- As each instruction set takes it


def specials() -> np.ndarray:
    """Numbers at and beside the edges of what products may round, of both signs, and no numbers."""
    powers = np.ldexp(np.float32(1), np.arange(-149, 128)).astype(np.float32)
    around = [np.nextafter(powers, to) for to in np.array([0, np.inf], np.float32)]
    others = np.array([0, np.inf, np.nan, 3.4028235e38], np.float32)
    found = np.concatenate([powers, *around, others])
    return np.concatenate([found, -found])


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("isa", ISAS)
def test_quotients_of_special_numbers(isa: str) -> None:
    """All pairs, whose signs and exponents are everything that there is."""
    _core.use_isa(isa)
    numbers = specials()
    a, b = (m.ravel() for m in np.meshgrid(numbers, numbers))
    assert differing(_core.divide(a, b), a, b) == 0


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("isa", ISAS)
def test_sample_of_quotients(isa: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ends = np.arange(100)
    drawn = rng.integers(HALF, 2 * HALF, 30_000)
    tried, wrong = wrong_of(isa, np.concatenate([HALF + ends, 2 * HALF - 1 - ends, drawn]), rng)
    assert tried > 500_000
    assert wrong == 0


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("isa", ISAS)
def test_quotients_of_few(isa: str) -> None:
    """What is left over behind the registers."""
    _core.use_isa(isa)
    numbers = np.arange(1, 40, dtype=np.float32)
    for n in range(numbers.size):
        a, b = numbers[:n], numbers[::-1][:n].copy()
        assert differing(_core.divide(a, b), a, b) == 0


def prove() -> bool:
    """The proof over all significands of the divisor, printed as it goes."""
    test_quotients_by_any_inverse_are_right()
    proved = True
    rng = np.random.default_rng(1)
    ways = {"any estimate": wrong_by_products} | {isa: partial(wrong_of, isa) for isa in ISAS}
    for way, wrong_in in ways.items():
        start, tried, wrong = time.perf_counter(), 0, 0
        every = np.arange(HALF, BY_PRODUCTS if wrong_in is wrong_by_products else 2 * HALF)
        for part, divisors in enumerate(parts_of(every)):
            more, differ = wrong_in(divisors, rng)
            tried, wrong = tried + more, wrong + differ
            if sys.stdout.isatty():
                print(f"{way:12} {part + 1}/64", end="\r", flush=True)
        found = f"{every.size} divisors, {tried:.2e} quotients: {wrong} differ"
        print(f"{way:12} {found} ({time.perf_counter() - start:.0f} s)")
        proved &= wrong == 0
    return proved


if __name__ == "__main__":
    sys.exit(not prove())
