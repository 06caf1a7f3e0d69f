"""Codes of 8 bits, dither and remainders: what they hold, alone and through a step.

    python tests/exact/test_codes.py

proves, for the reference and for every instruction set that this processor has, that all 2^32
float32 are split into a bfloat16 and a remainder and joined to the same bits, a NaN to any NaN.
Under pytest a sample stands for all.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import schuss
from schuss import _core
from schuss.engine.optimizer import Optimizer
from schuss.reference.storage import CODED, LEAST, NOTHING, decode, encode, join, split

F4 = np.float32
BF16 = np.dtype(ml_dtypes.bfloat16)
TYPES = {"float16": np.dtype(np.float16), "bfloat16": BF16}
ISAS = _core.found_isas()
RUNS: list[tuple[str, Any]] = [*((isa, "compiled") for isa in ISAS), (ISAS[0], "numpy")]
SMALLEST = np.finfo(F4).smallest_normal
MOST = np.uint32(0x7F6FFFFF).view(F4)  # the largest magnitude that is coded
OCTAVES = {True: 16, False: 8}
SIGMA = 6  # of a mean: by chance beyond once in 5e8 times

signs = pytest.mark.parametrize("positive", [True, False], ids=["unsigned", "signed"])


def exponents(rng: np.random.Generator, positive: bool, octaves: float = 20) -> np.ndarray:
    """Eight blocks for each exponent of a normal number, of all magnitudes below its own."""
    top = np.repeat(np.arange(-126.0, 128), 8)[:, None]
    sizes = np.exp2(top - octaves * rng.random((top.size, CODED))) * (1 + rng.random(top.shape))
    sizes[:, 7] = np.exp2(top[:, 0]) * (1 + rng.random(top.size))
    sizes[rng.random(sizes.shape) < 0.05] = 0
    negative = (not positive) & (rng.random(sizes.shape) < 0.5)
    found: np.ndarray = np.where(negative, -sizes, sizes).astype(F4).ravel()
    return found


def spacings(x: np.ndarray, scales: np.ndarray, positive: bool) -> np.ndarray:
    """The distance of two codes around each number, in double, from its block's scale alone."""
    below = np.exp2(scales.astype(float) - 127 - OCTAVES[positive] + 1)
    zero = np.repeat(below, CODED)[: x.size]
    found: np.ndarray = np.exp2(np.floor(np.log2(np.abs(x.astype(float)) + zero)) - 4)
    return found


def uniform(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.integers(0, 2**32, size, dtype=np.uint32)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a.view(f"u{a.itemsize}") == b.view(f"u{b.itemsize}")).all())


# ---- Codes: what encode and decode promise


@signs
def test_error_is_half_a_spacing_or_below_one_by_dither(
    positive: bool, rng: np.random.Generator
) -> None:
    x = exponents(rng, positive)
    x = np.clip(x, -MOST, MOST)
    for random, bound in ((None, 0.5), (uniform(rng, x.size), 1.0)):
        codes, scales = encode(x, positive, random)
        error = np.abs(decode(codes, scales).astype(float) - x)
        spacing = spacings(x, scales, positive)
        raised = positive & (codes == 1)  # what is normal doesn't become 0
        assert (error[~raised] <= (bound + 2**-18) * spacing[~raised]).all()
        assert (error[raised] <= spacing[raised]).all()


@signs
def test_relative_error_over_the_octaves(positive: bool, rng: np.random.Generator) -> None:
    """1/32 to nearest, whatever the block's exponent; a third more in the last octaves but one."""
    low = LEAST - 127 + OCTAVES[positive]
    x = exponents(rng, positive, octaves=OCTAVES[positive] - 1.5)
    x = x[np.abs(x) <= MOST]
    x = x[: x.size // CODED * CODED]
    codes, scales = encode(x, positive)
    lowest = np.exp2(np.repeat(scales, CODED).astype(float) - 127 - OCTAVES[positive] + 2)
    large = (np.abs(x) > lowest) & (np.abs(x) > 2.0**low)
    assert large.mean() > 0.5
    error = np.abs(decode(codes, scales) / np.where(large, x, 1) - 1)
    assert (error[large] < 1 / 24).all()
    assert (error[large & (np.abs(x) > 4 * lowest)] < 1 / 31).all()


@signs
def test_codes_are_monotone(positive: bool, rng: np.random.Generator) -> None:
    """The larger of two numbers of a block has no smaller code, with the same dither."""
    x = np.sort(exponents(rng, positive).reshape(-1, CODED)).ravel()
    fixed = np.repeat(uniform(rng, x.size // CODED), CODED)
    for random in (None, fixed):
        codes, _ = encode(x, positive, random)
        rows = codes.astype(int).reshape(-1, CODED)
        assert (np.diff(rows) >= 0).all()
        assert len(np.unique(rows)) > 250


@signs
def test_what_is_decoded_is_encoded_to_the_same(positive: bool, rng: np.random.Generator) -> None:
    """While the scale stays, and always from the second time on."""
    codes, scales = encode(exponents(rng, positive), positive)
    for nth in range(3):
        again, others = encode(decode(codes, scales), positive)
        stays = np.repeat(others == scales, CODED)
        assert same_bits(again[stays], codes[stays])
        assert stays.mean() > 0.9
        assert nth == 0 or stays.all()
        codes, scales = again, others


@signs
def test_every_code_at_every_scale(positive: bool) -> None:
    """All codes are finite and grow, and their order is that of what they stand for."""
    kind: Any = np.uint8 if positive else np.int8
    info = np.iinfo(kind)
    codes = np.arange(info.min + (not positive), info.max + 1).astype(kind)
    for scale in range(LEAST, 255):
        scales = np.full(-(-codes.size // CODED), scale, np.uint8)
        found = decode(codes, scales)
        assert np.isfinite(found).all()
        assert (np.diff(found) > 0).all()
        assert found[codes == 0] == 0
        if not positive:
            assert (found == -found[::-1]).all()


@signs
def test_zeros(positive: bool) -> None:
    x = np.zeros(200, F4)
    x[1::2] = -0.0
    x[130] = 1.0
    codes, scales = encode(x, positive, np.full(x.size, 2**32 - 1, np.uint32))
    assert (np.flatnonzero(codes) == [130]).all()
    assert (scales == [LEAST, LEAST, 127, LEAST]).all()
    found = decode(codes, scales)
    assert np.delete(found, 130).tobytes() == bytes(4 * 199)
    assert abs(found[130] - 1) < 1 / 16


def test_what_is_normal_and_positive_has_a_code() -> None:
    """Of second moments: a quotient by their root is not infinite all of a sudden."""
    x = np.zeros(CODED * 4, F4)
    x[::CODED] = 1e30, 1.0, 1e-20, SMALLEST
    x[1::CODED] = SMALLEST
    x[2::CODED] = SMALLEST / 2  # subnormal: 0 here, however it falls
    for random in (None, np.zeros(x.size, np.uint32), np.full(x.size, 2**32 - 1, np.uint32)):
        codes, scales = encode(x, True, random)
        assert (codes[::CODED] >= 1).all()
        assert (codes[1::CODED] == 1).all()
        assert (codes[2::CODED] == 0).all()
        assert (decode(codes, scales)[1::CODED] > 0).all()


@signs
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_not_finite_marks_its_block_alone(positive: bool, odd: float) -> None:
    odd = abs(odd) if positive else odd
    x = np.full(5 * CODED, 3.0, F4)
    x[2 * CODED + 17] = odd
    codes, scales = encode(x, positive)
    assert (codes.reshape(5, CODED)[2] == 0).all()
    assert (scales == [128, 128, NOTHING, 128, 128]).all()
    found = decode(codes, scales).reshape(5, CODED)
    assert np.isnan(found[2]).all()
    assert (np.abs(found[[0, 1, 3, 4]] / 3 - 1) < 1 / 32).all()


@signs
def test_the_largest_stay_finite(positive: bool, rng: np.random.Generator) -> None:
    bits = np.arange(0x7F800000 - 64 * CODED, 0x7F800000, dtype=np.uint32)
    x = np.concatenate([bits.view(F4), np.exp2(rng.uniform(127, 128, 64 * CODED)).astype(F4)])
    x = np.minimum(x, np.finfo(F4).max)
    for random in (None, np.full(x.size, 2**32 - 1, np.uint32), np.zeros(x.size, np.uint32)):
        codes, scales = encode(x, positive, random)
        assert (scales == 254).all()
        found = decode(codes, scales).astype(float)
        assert (np.abs(found / x - 1) < 1 / 15).all()


@signs
def test_sizes_orders_and_dimensions(positive: bool, rng: np.random.Generator) -> None:
    """Codes lie as the numbers do, and blocks go along memory."""
    shapes: list[tuple[int, ...]] = [(n,) for n in range(131)]
    shapes += [(), (1, 1), (0, 3), (5, 0, 2), (9, 15), (2, 3, 4, 5), (65, 1), (1, 65), (7, 11, 13)]
    for shape in shapes:
        size = int(np.prod(shape))
        flat = np.resize(exponents(rng, positive), size) if size else np.zeros(0, F4)
        flat_codes, flat_scales = encode(flat, positive)
        assert flat_scales.shape == (-(-size // CODED),)
        orders: list[Any] = ["C", "F"]
        for order in orders:
            x = flat.reshape(shape, order=order)
            codes, scales = encode(x, positive)
            assert (codes.shape, codes.flags[f"{order}_CONTIGUOUS"]) == (shape, True)
            assert same_bits(codes.ravel(order="K"), flat_codes)
            assert same_bits(scales, flat_scales)
            found = decode(codes, scales)
            assert same_bits(found, decode(flat_codes, flat_scales).reshape(shape, order=order))


def test_values_in_any_memory_order() -> None:
    """What BlockFloat8 is made from may lie anyhow."""
    x = np.random.default_rng(3).standard_normal((6, 10, 4)).astype(F4)
    want = schuss.BlockFloat8(x).decoded()
    assert np.abs(want / x - 1).max() < 0.2
    spread = np.zeros((6, 20, 4), F4)[:, ::2]
    spread[:] = x
    turned = np.ascontiguousarray(x[::-1, :, ::-1])[::-1, :, ::-1]
    swapped = np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2)
    for other in (spread, turned, swapped, x.tolist(), x.astype(float)):
        found = schuss.BlockFloat8(other)
        assert found.shape == x.shape
        assert np.abs(found.decoded() / x - 1).max() < 0.2
    assert (schuss.BlockFloat8(spread).decoded() == want).all()


@signs
@pytest.mark.parametrize("order", ["C", "F"])
def test_blocks_that_are_not_written_stay(
    positive: bool, order: Any, rng: np.random.Generator
) -> None:
    """Although some of them would get another scale where what they hold is encoded anew."""
    x = exponents(rng, positive)[900 * CODED :][: 200 * CODED - 4].reshape(7, -1, order=order)
    own = schuss.BlockFloat8(x, signed=not positive)
    before = own.codes.ravel(order="K").copy(), own.scales.copy()
    assert (encode(own.decoded(), positive)[1] != own.scales).any()
    own[...] = own.decoded()
    assert same_bits(own.codes.ravel(order="K"), before[0])
    assert same_bits(own.scales, before[1])
    own[0, 0] = 3e30
    assert not same_bits(own.scales[:1], before[1][:1])
    assert same_bits(own.codes.ravel(order="K")[CODED:], before[0][CODED:])
    assert same_bits(own.scales[1:], before[1][1:])


@signs
def test_dither_of_codes_is_unbiased(positive: bool, rng: np.random.Generator) -> None:
    """The errors, in units of their spacing, add up to nothing."""
    x = np.clip(exponents(rng, positive), -MOST, MOST)
    x = np.repeat(x.reshape(-1, 1, CODED), 16, axis=1).ravel()
    codes, scales = encode(x, positive, uniform(rng, x.size))
    spacing = spacings(x, scales, positive)
    error = (decode(codes, scales).astype(float) - x) / spacing
    counts = (np.abs(x) > 2 * spacing) if positive else (np.abs(x) >= SMALLEST)
    error = np.where(x < 0, -error, error)[counts & (np.abs(x) < MOST)]
    assert abs(error.sum()) <= SIGMA * np.sqrt(np.square(error).sum())
    assert error.std() > 0.2


# ---- Codes through a step


# A rule whose state is a function of the first gradient: signed or not, and to nearest a peak.
ENDS: dict[str, tuple[type[Optimizer], dict[str, Any], str, Any]] = {
    "signed": (schuss.SGD, {"momentum": 0.9}, "momentum_buffer", lambda g: g),
    "unsigned to nearest": (
        schuss.Adam,
        {"amsgrad": True, "betas": (0.9, 0.0)},
        "max_exp_avg_sq",
        lambda g: g * g,
    ),
    "unsigned": (schuss.Adagrad, {}, "sum", lambda g: g * g),
}
ends = pytest.mark.parametrize("end", ENDS)


def stepped(end: str, grads: list[np.ndarray], backend: Any = "compiled") -> list[Any]:
    """The codes that a step leaves of these gradients, from zeros."""
    rule, options, name, _ = ENDS[end]
    xs = [np.zeros_like(g) for g in grads]
    opt = rule(xs, state_dtype="blockfloat8", backend=backend, lr=1e-3, **options)
    with np.errstate(all="ignore"):
        opt.step(grads)
    return [opt.state[i][name] for i in range(len(grads))]


@pytest.mark.usefixtures("any_isa", "many_threads")
@ends
def test_kernels_encode_every_exponent(end: str, rng: np.random.Generator) -> None:
    *_, function = ENDS[end]
    g = exponents(rng, "unsigned" in end)
    roots = np.sqrt(exponents(rng, True).astype(float)).astype(F4)
    odd = np.array([np.nan, np.inf, -np.inf, np.finfo(F4).max, SMALLEST, 0, -0.0, 1e-45], F4)
    mixed = np.resize(g, 40 * CODED)
    mixed[rng.integers(0, mixed.size, 64)] = np.resize(odd, 64)
    grads = [g, roots, mixed, rng.permutation(g)]
    (want,) = {tuple(a.codes.tobytes() + a.scales.tobytes() for a in stepped(end, grads, "numpy"))}
    for isa in ISAS:
        _core.use_isa(isa)
        got = stepped(end, grads)
        assert tuple(a.codes.tobytes() + a.scales.tobytes() for a in got) == want, isa
        with np.errstate(all="ignore"):
            for a, own in zip(got, grads, strict=True):
                numbers = function(own)
                numbers = np.where(np.abs(numbers) < SMALLEST, 0, numbers).astype(F4)
                codes, scales = encode(numbers, not a.signed)
                assert same_bits(a.scales, scales)
                off = np.abs(a.codes.astype(int) - codes.astype(int)).max()
                assert off <= ("nearest" not in end), isa


@pytest.mark.usefixtures("any_isa")
@ends
def test_kernels_encode_partial_blocks(end: str, rng: np.random.Generator) -> None:
    sizes = [*range(131), 511, 512, 513, 4095, 4097]
    grads = []
    for i, size in enumerate(sizes):
        buffer = np.zeros(size + 70, F4)
        view = buffer[i % 64 :][:size]
        view[:] = rng.standard_normal(size) * np.exp2(rng.integers(-8, 8, size))
        grads.append(view)
    want = stepped(end, grads, "numpy")
    for isa in ISAS:
        _core.use_isa(isa)
        for size, a, b in zip(sizes, stepped(end, grads), want, strict=True):
            assert same_bits(a.codes, b.codes), (isa, size)
            assert same_bits(a.scales, b.scales), (isa, size)


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("first", [0, 1, 5, 33, 63])
def test_views_that_begin_anywhere(first: int, rng: np.random.Generator) -> None:
    """Codes and scales at any address, with neighbours that nothing may touch."""
    n = 300
    for isa, backend in RUNS:
        _core.use_isa(isa)
        rooms = [np.full(n + 128, 77, kind) for kind in (np.int8, np.uint8)]
        scales = [np.full(n // CODED + 1 + 128, 77, np.uint8) for _ in range(2)]
        views: list[Any] = []
        for room, beside in zip(rooms, scales, strict=True):
            codes, scale = room[first:][:n], beside[first:][: n // CODED + 1]
            codes[:], scale[:] = 0, LEAST
            views.append(schuss.BlockFloat8.of(codes, scale))
        x, seen = np.ones(n, F4), np.random.default_rng(first)
        y = x.copy()
        opt = schuss.Adam(y, state_dtype="blockfloat8", backend="numpy")
        for step in range(1, 6):
            g = seen.standard_normal(n).astype(F4)
            schuss.functional.adam(x, g, *views, step=step, backend=backend)
            opt.step(g)
        assert same_bits(x, y), isa
        for view, own in zip(views, ("exp_avg", "exp_avg_sq"), strict=True):
            assert same_bits(view.codes, opt.state[0][own].codes)
        for room, size in [*((r, n) for r in rooms), *((s, n // CODED + 1) for s in scales)]:
            assert (room[:first] == 77).all()
            assert (room[first + size :] == 77).all()


FORMS = ["float32", "float16", "bfloat16", "blockfloat8"]


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize(("first", "second"), list(itertools.product(FORMS, FORMS)))
def test_state_in_different_forms(first: str, second: str, rng: np.random.Generator) -> None:
    """Each state array of a rule in a form of its own."""
    start = [rng.standard_normal(n).astype(F4) for n in (0, 1, 64, 300, 4100)]
    runs = []
    for isa, backend in RUNS:
        _core.use_isa(isa)
        xs = [x.copy() for x in start]
        forms = {"exp_avg": first, "exp_avg_sq": second}
        opt = schuss.AdamW(xs, state_dtype=forms, backend=backend)
        seen = np.random.default_rng(2)
        for _ in range(7):
            opt.step([seen.standard_normal(x.size).astype(F4) for x in xs])
        state = [a.tobytes() for p in opt._parameters for _, a in p.keeps()]
        runs.append([*(x.tobytes() for x in xs), *state])
    assert all(run == runs[0] for run in runs)


# ---- Dither: what stays right although a step changes it by less than can be held

DECAY = 0.2  # how far 8 bits may be off, on average, after 3000 steps of 0.999


@pytest.mark.parametrize("kind", TYPES)
def test_the_mean_holds_over_many_small_steps(kind: str) -> None:
    """200,000 steps of a 1024th of the spacing move every element by 195 spacings."""
    n, steps, part = 96, 200_000, 2.0**-10  # which float32 has beside 1, too
    spacing = 2.0 ** (-10 if kind == "float16" else -7)
    x = np.ones(n, TYPES[kind])
    opt = schuss.SGD(x, lr=1.0, stochastic_rounding=True)
    g = np.full(n, -spacing * part, F4)
    for _ in range(steps):
        opt.step(g)
    found, wanted = x.astype(float), 1 + steps * spacing * part
    assert (np.abs(found - wanted) <= 6 * spacing).all()
    assert abs(found.mean() - wanted) <= spacing


@pytest.mark.parametrize("form", ["bfloat16", "float16", "blockfloat8"])
def test_second_moments_converge(form: str, rng: np.random.Generator) -> None:
    """To g*g under a constant gradient, from above and below, where float32's do."""
    n = 2048
    g = rng.uniform(0.5, 2, n).astype(F4)
    xs = [np.zeros(n, F4) for _ in range(3)]
    opts = [
        schuss.RMSprop(x, alpha=0.999, lr=0.0, state_dtype=own)
        for x, own in zip(xs, (form, form, "float32"), strict=True)
    ]
    opts[1].state[0]["square_avg"][...] = 4 * g * g
    for _ in range(8000):
        for opt in opts:
            opt.step(g)
    below, above, wide = (np.asarray(opt.state[0]["square_avg"], float) for opt in opts)
    assert np.allclose(wide, g * g, rtol=1e-3)
    for found in (below, above):
        ratio = found / wide
        assert abs(ratio.mean() - 1) < 0.005
        assert np.abs(ratio - 1).max() < (0.15 if form == "blockfloat8" else 0.02)


@pytest.mark.parametrize("form", ["bfloat16", "float16", "blockfloat8"])
def test_second_moments_decay(form: str, rng: np.random.Generator) -> None:
    """As float32's do, where there are no gradients any more.

    Codes lie up to an eighth of an octave apart from it by then: each fall by one begins at the
    code, and so comes a little early.
    """
    n = 4096
    start = rng.uniform(0.5, 2, n).astype(F4)
    found = []
    for own in (form, "float32"):
        opt = schuss.RMSprop(np.zeros(n, F4), alpha=0.999, lr=0.0, state_dtype=own)
        opt.state[0]["square_avg"][...] = start
        for _ in range(3000):
            opt.step(np.zeros(n, F4))
        found.append(np.asarray(opt.state[0]["square_avg"], float))
    ratio = found[0] / found[1]
    assert abs(ratio.mean() - 1) < (DECAY if form == "blockfloat8" else 0.03)
    assert (ratio > 0.5).all()
    assert (ratio < 2).all()


@pytest.mark.parametrize("octaves", [0, 4, 8])
def test_quiet_neighbours_of_an_active_element(octaves: int, rng: np.random.Generator) -> None:
    """One element keeps its block's scale up, and the others' moments decay all the same."""
    n = 64 * CODED
    start = (rng.uniform(0.5, 1, n) * 2.0**-octaves).astype(F4)
    start[::CODED] = 1
    g = np.zeros(n, F4)
    g[::CODED] = 1
    found = []
    for own in ("blockfloat8", "float32"):
        opt = schuss.RMSprop(np.zeros(n, F4), alpha=0.999, lr=0.0, state_dtype=own)
        opt.state[0]["square_avg"][...] = start
        for _ in range(3000):
            opt.step(g)
        found.append(np.asarray(opt.state[0]["square_avg"], float).reshape(-1, CODED))
    ratio = found[0] / found[1]
    assert np.abs(ratio[:, 0] - 1).max() < 0.1
    assert abs(ratio[:, 1:].mean() - 1) < DECAY
    assert np.abs(ratio[:, 1:].mean(axis=1) - 1).max() < DECAY  # of each block


def test_quiet_first_moments() -> None:
    """Elements without gradients come to rest beside an active one, as float32's do.

    To nearest a first moment would stick at a few of the smallest codes and move them for ever, the
    faster the further their second moment has decayed: 139 lr on average, where a dither gives 1.
    """
    n, lr = 16 * CODED, 1e-3
    noise = np.random.default_rng(0).standard_normal(n).astype(F4)
    active = np.zeros(n, F4)
    active[::CODED] = 1
    ends = []
    for form in ("blockfloat8", "float32"):
        x = np.zeros(n, F4)
        opt = schuss.AdamW(x, lr=lr, weight_decay=0.0, state_dtype=form)
        for step in range(3100):
            opt.step(active + noise if step < 100 else active)
        ends.append(x.reshape(-1, CODED)[:, 1:] / lr)
    assert np.abs(ends[0] - ends[1]).mean() < 3  # of a move of 30; 141 to nearest


@pytest.mark.parametrize("momentum", [0.9, 0.99])
def test_momentum_comes_to_rest(momentum: float) -> None:
    g = np.random.default_rng(0).standard_normal(4 * CODED).astype(F4)
    ends = []
    for form in ("blockfloat8", "float32"):
        x = np.zeros(g.size, F4)
        opt = schuss.SGD(x, lr=1e-3, momentum=momentum, state_dtype=form)
        for step in range(2100):
            opt.step(g if step < 100 else 0 * g)
        ends.append(x)
    error = np.abs(ends[0] - ends[1]).mean() / np.abs(ends[1]).mean()
    assert error < 0.06  # to nearest 0.125 and 5.36


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("form", ["bfloat16", "float16", "blockfloat8"])
def test_a_finite_moment_never_becomes_infinite(form: str) -> None:
    most = {"float16": 65504.0}.get(form, float(np.finfo(F4).max))
    v = np.tile(np.array([most, most * (1 - 2**-12), most / 1.0625], F4), 1000)
    for isa, backend in RUNS:
        _core.use_isa(isa)
        for seed in range(4):
            opt = schuss.Adagrad(np.zeros(v.size, F4), state_dtype=form, seed=seed, backend=backend)
            with np.errstate(over="ignore"):
                g = np.sqrt(v.astype(float) * (1 - 2**-24)).astype(F4)
                g = np.where(np.isfinite(g * g), g, np.nextafter(g, F4(0)))
            assert np.isfinite(g * g).all()
            opt.step(g)
            held = np.asarray(opt.state[0]["sum"], float)
            assert np.isfinite(held).all(), isa
            assert (held > v / 1.2).all(), isa
            if form == "float16":  # above its range, too
                opt.step(g * 3)
                assert (np.asarray(opt.state[0]["sum"]) == 65504).all(), isa


# ---- Remainders


def wrong_joins(x: np.ndarray) -> int:
    """How many float32 the reference splits and joins to something else."""
    w, c = split(x)
    back = join(w.view(BF16), c)
    nan = np.isnan(x)
    wrong = (back.view(np.uint32) != x.view(np.uint32)) & ~(nan & np.isnan(back))
    wrong |= nan & ~np.isnan(w.view(BF16).astype(F4))
    return int(wrong.sum())


class Kept:
    """A bfloat16 weight with a remainder, and a running mean that is what a step sees of them."""

    def __init__(self, size: int) -> None:
        self.x = np.zeros(size, BF16)
        self.opt = schuss.SGD(
            self.x, lr=0.0, master="remainder", ema=0.0, subnormals="keep", nonfinite="propagate"
        )
        self.g = np.zeros(size, F4)
        self.opt.step(self.g)  # the first one takes the weight from x alone

    def wrong(self, isa: str, x: np.ndarray) -> int:
        """How many of these a step that does nothing joins or splits to something else."""
        _core.use_isa(isa)
        remainder = self.opt._parameters[0].beside["master"]
        w, c = split(x)
        self.x.view(np.uint16)[:], remainder[:] = w, c
        self.opt.step(self.g)
        nan, seen = np.isnan(x), self.opt.ema["0"]
        bits = x.view(np.uint32)
        wrong = (seen.view(np.uint32) != bits) & ~(nan & np.isnan(seen))
        wrong |= ((self.x.view(np.uint16) != w) | (remainder != c)) & ~nan
        wrong |= nan & ~np.isnan(self.x.astype(F4))
        wrong |= nan & ~np.isnan(join(self.x, remainder))
        return int(wrong.sum())


def parts(among: np.ndarray) -> Iterator[np.ndarray]:
    """All float32 that begin on these 10 bits, part by part."""
    lower = np.arange(1 << 22, dtype=np.uint32)
    for upper in among.astype(np.uint32):
        yield (lower | upper << np.uint32(22)).view(F4)


@pytest.mark.usefixtures("any_isa")
def test_sample_of_remainders(seed: int) -> None:
    """All that ends on some 16 bits, ties and their neighbours among them."""
    near = [0, 1, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF]
    others = np.random.default_rng(seed).integers(0, 1 << 16, 8)
    upper = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    x = (upper[:, None] | np.array([*near, *others], np.uint32)).view(F4).ravel()
    assert wrong_joins(x) == 0
    kept = Kept(x.size)
    assert {isa: kept.wrong(isa, x) for isa in ISAS} == dict.fromkeys(ISAS, 0)


def test_a_remainder_is_beside_the_nearest(rng: np.random.Generator) -> None:
    """What the network sees is the weight, rounded: halves away from 0."""
    x = uniform(rng, 1 << 16).view(F4)
    x = x[np.isfinite(x)]
    w, c = split(x)
    even = x.astype(BF16)
    assert same_bits(even[c != -0x8000], w.view(BF16)[c != -0x8000])
    ties = (np.arange(1, 100, dtype=np.uint32) << np.uint32(23) | np.uint32(0x8000)).view(F4)
    assert (split(ties)[0].view(BF16).astype(F4) > ties).all()
    assert (split(-ties)[0].view(BF16).astype(F4) < -ties).all()


def test_no_remainder_of_float16() -> None:
    """It would need more than 16 bits: so many float32 round to the same float16."""
    with pytest.raises(ValueError, match=r'master: "remainder" is not for params.*float16'):
        schuss.SGD(np.zeros(3, np.float16), master="remainder")

    def between(low: float, high: float) -> int:
        return int(F4(high).view(np.uint32)) - int(F4(low).view(np.uint32))

    assert between(1 - 2**-12, 1 + 2**-11) < 2**16  # where both have normal numbers
    assert between(0, 2**-25) > 2**16  # what rounds to 0
    assert between(65520, np.inf) > 2**16  # and to infinity
    bfloat16 = np.arange(0x7F80, dtype=np.uint16).view(BF16).astype(F4).view(np.uint32)
    assert (np.diff(bfloat16.astype(np.int64)) == 2**16).all()


ALL_STAGES: dict[str, Any] = {
    "maximize": True,
    "cautious": "mean",
    "l2": 1e-3,
    "l1": 1e-3,
    "l1_mode": "prox",
    "bounds": (-2.0, 1.5),
    "ema": 0.9,
    "clip_norm": 3.0,
    "grad_scale": 0.5,
    "weight_decay": 0.1,
}
STAGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": ALL_STAGES,
    "other": {"clip_value": 0.5, "cautious": "plus1", "l1": 0.01, "nonfinite": "skip"},
}


@pytest.mark.usefixtures("any_isa", "many_threads")
@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize("rule", [schuss.AdamW, schuss.Lion, schuss.LAMB, schuss.Prodigy])
def test_training_with_remainders(rule: type[Optimizer], stages: str) -> None:
    """Every bit of every float32 weight is that of a training with float32 masters."""
    for isa, backend in RUNS:
        _core.use_isa(isa)
        runs = []
        for master in (True, "remainder"):
            rng = np.random.default_rng(4)
            xs = [rng.standard_normal(n).astype(BF16) for n in (0, 1, 63, 5000)]
            opt = rule(xs, master=master, backend=backend, **STAGES[stages])
            for t in range(36):
                grads: list[Any] = [rng.standard_normal(x.size).astype(BF16) for x in xs]
                if t == 20:
                    grads[1] = None
                if t == 30 and stages == "other":
                    grads[3][5] = np.inf
                opt.step(grads)
            runs.append(
                [np.asarray(opt.state[i]["master"]).tobytes() for i in range(len(xs))]
                + [a.tobytes() for a in opt.ema.values()]
                + [opt.skipped_steps, opt.grad_norm]
            )
            moved = np.asarray(opt.state[3]["master"])
            assert (moved != xs[3].astype(F4)).mean() > 0.5
            assert (np.abs(moved - xs[3].astype(F4)) <= np.abs(moved) * 2.0**-8).all()
        assert runs[0] == runs[1], (isa, backend)


def prove() -> bool:
    """The proof over all float32, printed as it goes."""
    totals = dict.fromkeys(("reference", *ISAS), 0)
    kept, start = Kept(1 << 22), time.perf_counter()
    for n, x in enumerate(parts(np.arange(1 << 10))):
        totals["reference"] += wrong_joins(x)
        for isa in ISAS:
            totals[isa] += kept.wrong(isa, x)
        if sys.stdout.isatty():
            print(f"{n + 1}/1024", end="\r", flush=True)
    for name, wrong in totals.items():
        print(f"{name:9} all 2^32 split and joined: {wrong} differ")
    print(f"took {time.perf_counter() - start:.0f} s")
    return not any(totals.values())


if __name__ == "__main__":
    sys.exit(not prove())
