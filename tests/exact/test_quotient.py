"""The quotient that rules take is the divider's, on every instruction set, however it is computed.

    python tests/exact/test_quotient.py

proves it for every significand of the divisor, on the sets that this processor has: with random
numerators of all exponents, with those at either end, and with those whose quotient lies nearest
the middle of two floats, where rounding is hardest. Under pytest a sample of the divisors stands
for all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from schuss import _core

ISAS = _core.found_isas()
HALF = 1 << 23  # significands of float32 are the whole numbers from here to twice as many

# Residuals of the hard quotients, in units of the divisor's last odd place; and which of the
# quotients that have one, as several have where the divisor ends in zeros.
RESIDUALS = [sign * r for r in (1, 3, 5, 7, 9) for sign in (1, -1)]
TURNS = range(4)


def quotients(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """By the processor's division."""
    with np.errstate(all="ignore"):
        found: np.ndarray = a / b
    return found


def differing(a: np.ndarray, b: np.ndarray) -> int:
    """How many quotients differ from the processor's in a bit, where not both are a NaN."""
    got, want = _core.divide(a, b), quotients(a, b)
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


def wrong_of(divisors: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """How many quotients by these significands were tried, and how many differ."""
    tried = wrong = 0
    for residual in RESIDUALS:
        for turn in TURNS:
            for a, b in hard_numerators(divisors, residual, turn):
                tried += a.size
                wrong += differing(scaled(a, 0), scaled(b, 0))
    one, last = np.full_like(divisors, HALF), np.full_like(divisors, 2 * HALF - 1)
    for a in (one, one + 1, last - 1, last, divisors, np.minimum(divisors + 1, last)):
        tried += a.size
        wrong += differing(scaled(a, 0), scaled(divisors, 0))
    for _ in range(8):
        a = rng.integers(HALF, 2 * HALF, divisors.size)
        of_a, of_b = (rng.integers(-149, 128, divisors.size) for _ in "ab")
        tried += a.size
        sign = rng.choice(np.array([-1, 1], np.float32), divisors.size)
        wrong += differing(sign * scaled(a, of_a), scaled(divisors, of_b))
    return tried, wrong


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
    assert differing(a, b) == 0


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("isa", ISAS)
def test_sample_of_quotients(isa: str, seed: int) -> None:
    _core.use_isa(isa)
    rng = np.random.default_rng(seed)
    ends = np.arange(100)
    drawn = rng.integers(HALF, 2 * HALF, 30_000)
    tried, wrong = wrong_of(np.concatenate([HALF + ends, 2 * HALF - 1 - ends, drawn]), rng)
    assert tried > 500_000
    assert wrong == 0


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("isa", ISAS)
def test_quotients_of_few(isa: str) -> None:
    """What is left over behind the registers."""
    _core.use_isa(isa)
    numbers = np.arange(1, 40, dtype=np.float32)
    for n in range(numbers.size):
        assert differing(numbers[:n], numbers[::-1][:n].copy()) == 0


def prove() -> bool:
    """The proof over all significands of the divisor, printed as it goes."""
    proved = True
    rng = np.random.default_rng(1)
    parts = np.array_split(np.arange(HALF, 2 * HALF), 64)
    for isa in ISAS:
        _core.use_isa(isa)
        start, tried, wrong = time.perf_counter(), 0, 0
        for part, divisors in enumerate(parts):
            more, differ = wrong_of(divisors, rng)
            tried, wrong = tried + more, wrong + differ
            if sys.stdout.isatty():
                print(f"{isa:10} {part + 1}/{len(parts)}", end="\r", flush=True)
        seconds = time.perf_counter() - start
        print(
            f"{isa:10} all 2^23 divisors, {tried:.2e} quotients: {wrong} differ ({seconds:.0f} s)"
        )
        proved &= wrong == 0
    return proved


if __name__ == "__main__":
    sys.exit(not prove())
