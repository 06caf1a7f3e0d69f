"""Weights to begin with: limits and variance, against the formulas and PyTorch's and Keras' own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from schuss import init

FANS = (300, 100)
# The variance of each, times fan_in + fan_out for Xavier's and fan_in for the others.
DEVIATIONS: dict[str, tuple[Callable[..., np.ndarray], float]] = {
    "xavier_uniform": (init.xavier_uniform, math.sqrt(2 / 400)),
    "xavier_normal": (init.xavier_normal, math.sqrt(2 / 400)),
    "he_uniform": (init.he_uniform, math.sqrt(2 / 300)),
    "he_normal": (init.he_normal, math.sqrt(2 / 300)),
    "lecun_uniform": (init.lecun_uniform, math.sqrt(1 / 300)),
    "lecun_normal": (init.lecun_normal, math.sqrt(1 / 300)),
}


def seeded(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_all_are_here() -> None:
    assert {*DEVIATIONS, "gain"} == set(init.__all__)


@pytest.mark.parametrize("name", DEVIATIONS)
def test_mean_deviation_and_limits(name: str) -> None:
    """Of 30 000 numbers: the deviation is within 5 of its own standard deviations."""
    fill, std = DEVIATIONS[name]
    kinds: list[dict[str, Any]] = [{}, {"truncated": True}] if "normal" in name else [{}]
    for options in kinds:
        w = fill(FANS, seeded(), fans="keras", **options)
        assert w.shape == FANS
        assert w.dtype == np.float64
        assert w.std() == pytest.approx(std, rel=5 / math.sqrt(2 * w.size))
        assert abs(w.mean()) < 5 * std / math.sqrt(w.size)
        if "uniform" in name:
            limit = math.sqrt(3) * std
        elif options:
            limit = 2 * std / init.TRUNCATED
        else:
            limit = 5 * std
            assert np.abs(w).max() > 3 * std
        assert 0.9 * (limit if limit < 5 * std else 0) < np.abs(w).max() <= limit
        again = fill(FANS, seeded(), fans="keras", **options)
        assert np.array_equal(w, again)


@pytest.mark.parametrize("name", DEVIATIONS)
def test_in_place_in_each_type_and_order(name: str) -> None:
    fill, _ = DEVIATIONS[name]
    want = fill(FANS, seeded(), fans="keras")
    for dtype in (np.float16, np.float32, np.float64):
        for x in (
            np.empty(FANS, dtype),
            np.empty(FANS, dtype, order="F"),
            np.empty((600, 100), dtype)[::2],
        ):
            assert fill(x, seeded(), fans="keras") is x
            assert np.array_equal(x, want.astype(dtype))
        assert np.array_equal(
            fill([*FANS], seeded(), fans="keras", dtype=dtype), want.astype(dtype)
        )
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: no bfloat16")
    x = fill(np.empty(FANS, ml_dtypes.bfloat16), seeded(), fans="keras")
    assert np.array_equal(x, want.astype(ml_dtypes.bfloat16))


def test_fans() -> None:
    """A kernel of 3 by 5, from 20 channels to 40, in both conventions, and the numbers."""
    limit = math.sqrt(6 / (20 * 15))
    for shape, fans in {
        (3, 5, 20, 40): "keras",
        (40, 20, 3, 5): "torch",
        (12000,): (300, 600),
    }.items():
        w = init.he_uniform(shape, seeded(), fans=fans)  # type: ignore[arg-type]
        assert 0.999 * limit < np.abs(w).max() <= limit
        back = init.he_uniform(shape, seeded(), fans=fans, mode="fan_out")  # type: ignore[arg-type]
        assert np.allclose(back, w / math.sqrt(2))
    assert init.he_normal((0, 4), seeded(), fans="keras").shape == (0, 4)


def test_gain() -> None:
    names = {"linear": 1, "sigmoid": 1, "tanh": 5 / 3, "relu": 2**0.5, "selu": 0.75}
    assert {name: init.gain(name) for name in names} == names
    assert init.gain("leaky_relu", 0.2) == math.sqrt(2 / 1.04)
    one = init.xavier_normal((30, 40), seeded())
    assert np.allclose(init.xavier_normal((30, 40), seeded(), gain=init.gain("tanh")), one * 5 / 3)


def test_the_variance_of_a_signal_stays() -> None:
    """What the gains are for: ten wide layers of relu neither fade nor explode."""
    rng = seeded()
    x = rng.standard_normal((200, 400))
    for _ in range(10):
        x = np.maximum(x @ init.he_normal((400, 400), rng, fans="keras"), 0)
    assert 0.5 < (x**2).mean() < 2


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda r: init.gain("swish"), ValueError, "name: 'swish' is unknown; wanted 'linear' or"),
        (lambda r: init.gain("leaky_relu", "a"), TypeError, "slope: 'a' is not a number"),  # type: ignore[arg-type]
        (lambda r: init.xavier_uniform((2, 3), 7), TypeError, "rng: 7 is not a numpy.random.Gen"),  # type: ignore[arg-type]
        (
            lambda r: init.xavier_uniform(5, r),  # type: ignore[arg-type]
            TypeError,
            "array: 5 is neither an array nor a shape",
        ),
        (lambda r: init.xavier_uniform((2, -3), r), ValueError, "array: -3 is out of range"),
        (lambda r: init.xavier_uniform((2, 3), r, gain=0), ValueError, "gain: 0.0 is out of range"),
        (
            lambda r: init.xavier_uniform((2, 3), r, dtype=int),
            TypeError,
            "array: int64 elements; wan",
        ),
        (
            lambda r: init.xavier_uniform((2, 3), r, dtype="V2"),
            TypeError,
            r"array: \|V2 elements; wanted",
        ),
        (lambda r: init.xavier_uniform((2, 3, 4), r), ValueError, "fans: None; wanted 'keras'"),
        (
            lambda r: init.xavier_uniform((3,), r),
            ValueError,
            r"fans: \(3,\) is the shape of no mat",
        ),
        (
            lambda r: init.he_normal((3, 4), r, fans="jax"),
            ValueError,
            "fans: 'jax'; wanted 'keras'",
        ),
        (lambda r: init.he_normal((3,), r, fans=(0, 3)), ValueError, r"fans\[0\]: 0 is out of"),
        (lambda r: init.he_normal((3, 4), r, fans="torch", mode="in"), ValueError, "mode: 'in' is"),
        (lambda r: init.he_normal((3, 4), r, fans=None), ValueError, "fans: None; wanted 'keras'"),  # type: ignore[arg-type]
        (
            lambda r: init.xavier_normal(np.zeros((2, 2), int), r),
            TypeError,
            "array: int64 elements",
        ),
        (
            lambda r: init.xavier_normal(np.zeros((2, 2)), r, dtype=float),
            ValueError,
            "dtype: the array has its own",
        ),
        (
            lambda r: init.xavier_normal(np.frombuffer(bytes(32)).reshape(2, 2), r),
            ValueError,
            "array: read-only, but it is filled in place",
        ),
    ],
)
def test_errors(make: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        make(seeded())


# ---- Other libraries, where they are installed


def test_pytorch() -> None:
    """The limits and deviations of what PyTorch draws, for the kernel of a convolution."""
    torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
    theirs = torch.nn.init
    for name in ("linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"):
        assert init.gain(name) == theirs.calculate_gain(name)
    assert init.gain("leaky_relu", 0.3) == theirs.calculate_gain("leaky_relu", 0.3)
    shape = (40, 30, 3, 5)
    torch.manual_seed(7)
    cases: list[tuple[Any, Any, dict[str, Any]]] = [
        (init.xavier_uniform, theirs.xavier_uniform_, {"gain": 1.5}),
        (init.he_uniform, theirs.kaiming_uniform_, {}),
        (init.he_uniform, theirs.kaiming_uniform_, {"mode": "fan_out"}),
        (init.xavier_normal, theirs.xavier_normal_, {"gain": 1.5}),
        (init.he_normal, theirs.kaiming_normal_, {}),
    ]
    for fill, their_fill, options in cases:
        ours = fill(shape, seeded(), fans="torch", **options)
        other = their_fill(torch.empty(shape, dtype=torch.float64), **options).numpy()
        assert ours.std() == pytest.approx(other.std(), rel=7 / math.sqrt(2 * ours.size))
        if "uniform" in their_fill.__name__:
            assert np.abs(ours).max() == pytest.approx(np.abs(other).max(), rel=1e-3)


def test_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="keras is not installed: nothing to compare with")
    theirs = keras.initializers
    shape = (3, 5, 30, 40)
    cases: list[tuple[Any, Any, dict[str, Any]]] = [
        (init.xavier_uniform, theirs.GlorotUniform(7), {}),
        (init.xavier_normal, theirs.GlorotNormal(7), {"truncated": True}),
        (init.he_normal, theirs.HeNormal(7), {"truncated": True}),
        (init.he_uniform, theirs.HeUniform(7), {}),
        (init.lecun_normal, theirs.LecunNormal(7), {"truncated": True}),
        (init.lecun_uniform, theirs.LecunUniform(7), {}),
    ]
    for fill, made, options in cases:
        ours = fill(shape, seeded(), fans="keras", **options)
        other = np.asarray(made(shape))
        assert ours.std() == pytest.approx(other.std(), rel=7 / math.sqrt(2 * ours.size))
        assert np.abs(ours).max() == pytest.approx(np.abs(other).max(), rel=2e-3)
