"""Adafactor of matrices: by its paper's formulas, an element at a time, and with all around it."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import schuss
from schuss import Adafactor, functional
from schuss.engine.declare import Backend

BACKENDS: tuple[Backend, ...] = ("compiled", "numpy")
F4 = np.dtype(np.float32)


# ---- By the paper's formulas, in plain Python


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def root_of_mean(matrix: list[list[float]]) -> float:
    return math.sqrt(mean([v * v for row in matrix for v in row]))


class Textbook:
    """One matrix, as lists of rows."""

    def __init__(self, x: list[list[float]], **options: Any) -> None:
        self.x, self.t = x, 0
        self.r, self.c = [0.0] * len(x), [0.0] * len(x[0])
        self.options: dict[str, Any] = {
            "lr": 1e-2,
            "beta2_decay": -0.8,
            "eps": (2.0**-52, 1e-3),
            "d": 1.0,
            "weight_decay": 0.0,
        } | options

    def step(self, g: list[list[float]]) -> None:
        self.t += 1
        o = self.options
        beta = 1.0 - self.t ** o["beta2_decay"]
        eps1, eps2 = o["eps"]
        for i, row in enumerate(g):
            self.r[i] = beta * self.r[i] + (1.0 - beta) * mean([v * v for v in row])
        for j in range(len(self.c)):
            column = [row[j] for row in g]
            self.c[j] = beta * self.c[j] + (1.0 - beta) * mean([v * v for v in column])
        divisor = max(mean(self.r), eps1)
        u = [
            [
                g[i][j] / math.sqrt(max(self.r[i] * self.c[j] / divisor, eps1 * eps1))
                for j in range(len(self.c))
            ]
            for i in range(len(self.r))
        ]
        rate = max(eps2, root_of_mean(self.x)) * min(o["lr"], 1.0 / math.sqrt(self.t))
        rate /= max(1.0, root_of_mean(u) / o["d"])
        keep = 1.0 - o["lr"] * o["weight_decay"]
        self.x = [
            [keep * v - rate * w for v, w in zip(x, w, strict=True)]
            for x, w in zip(self.x, u, strict=True)
        ]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"lr": 0.5, "weight_decay": 0.1, "d": 1.5, "beta2_decay": -0.5},
    {"eps": (0.5, 2.0)},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(3, 4), (1, 5), (5, 1), (40, 33), (2, 600)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_textbook(backend: Backend, shape: tuple[int, int], order: Any, options: Any) -> None:
    rng = np.random.default_rng(3)
    x = np.asarray(rng.standard_normal(shape), order=order)
    opt, book = Adafactor(x, backend=backend, **options), Textbook(x.tolist(), **options)
    for t in range(12):
        g = np.asarray(rng.standard_normal(shape), order=order)
        g[:, 0] = 0.0
        if t == 5:
            g[...] = 0.0
        if t == 8:
            g[-1, -1] = 1e3
        opt.step(g)
        book.step(g.tolist())
        np.testing.assert_allclose(x, book.x, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(opt.state[0]["row_var"], np.array(book.r)[:, None], rtol=1e-13)
    np.testing.assert_allclose(opt.state[0]["col_var"], np.array(book.c)[None, :], rtol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_axes_are_matrices_whose_lengths_are_taken_together(backend: Backend) -> None:
    """Each matrix has factors of its own; |x| and |u| are those of the whole array."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, 3, 4, 5))
    opt = Adafactor(x, backend=backend)
    r, c = np.zeros((2, 3, 4, 1)), np.zeros((2, 3, 1, 5))
    for t in range(1, 9):
        g, w = rng.standard_normal(x.shape), t**-0.8
        r = (1 - w) * r + w * np.mean(g * g, axis=-1, keepdims=True)
        c = (1 - w) * c + w * np.mean(g * g, axis=-2, keepdims=True)
        u = g / np.sqrt(r * c / r.mean(axis=-2, keepdims=True))
        rate = np.sqrt(np.mean(x * x)) * min(1e-2, 1 / math.sqrt(t))
        want = x - rate * u / max(1.0, np.sqrt(np.mean(u * u)))
        opt.step(g)
        np.testing.assert_allclose(x, want, rtol=1e-13)
    np.testing.assert_allclose(opt.state[0]["row_var"], r, rtol=1e-13)
    np.testing.assert_allclose(opt.state[0]["col_var"], c, rtol=1e-13)


def test_a_matrix_of_rank_one_is_estimated_exactly() -> None:
    """g*g = a b^T has the factors that it has: u is the sign of g, and all of x moves alike."""
    g = np.outer([1.0, 2.0, 4.0], [1.0, -8.0])
    x = np.ones((3, 2))
    Adafactor(x).step(g)
    np.testing.assert_allclose(x, 1.0 - 1e-2 * np.sign(g), rtol=1e-15)


@pytest.mark.parametrize(("dtype", "eps"), [("float64", 2.0**-52), ("float32", 2.0**-23)])
def test_eps_of_none_is_that_of_the_type(dtype: str, eps: float) -> None:
    """Types in one group, each with its own: gradients far below it."""
    for shape in ((5,), (2, 3)):
        xs = [np.ones(shape, t) for t in ("float32", "float64", dtype)]
        told = np.ones(shape, dtype)
        ours, theirs = Adafactor(xs), Adafactor(told, eps=(eps, 1e-3))
        for _ in range(3):
            ours.step([np.full_like(x, eps / 8) for x in xs])
            theirs.step(np.full_like(told, eps / 8))
        assert (xs[2] == told).all()
        assert (told != 1).all()


# ---- What there is of state


def test_state_is_two_factors() -> None:
    x = {"w": np.ones((300, 200), F4), "k": np.ones((4, 3, 2, 5), F4), "b": np.ones(7, F4)}
    opt = Adafactor(x)
    shapes = {
        n: {k: a.shape for k, a in s.items() if isinstance(a, np.ndarray)}
        for n, s in opt.state.items()
    }
    assert shapes == {
        "w": {"row_var": (300, 1), "col_var": (1, 200)},
        "k": {"row_var": (4, 3, 2, 1), "col_var": (4, 3, 1, 5)},
        "b": {"variance": (7,)},
    }
    assert opt.nbytes == 4 * (300 + 200 + 12 * 7 + 7)


MEMORY = """
import resource, sys
import numpy as np, schuss
schuss.set_num_threads(2)
x, g = np.ones((4096, 4096), sys.argv[1]), np.ones((4096, 4096), sys.argv[1])
opt = schuss.Adafactor(x, **eval(sys.argv[2]))
small = schuss.Adafactor(np.ones((64, 64), sys.argv[1]))
small.step(np.ones((64, 64), sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(2):
    opt.step(g)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("options", [{}, {"l1": 0.1, "clip_value": 1.0, "cautious": "mean"}])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_array_of_a_matrix_size(dtype: str, options: dict[str, Any]) -> None:
    """A matrix has 16 million elements; a step takes less than 4 MB more, also for a while."""
    command = [sys.executable, "-c", MEMORY, dtype, repr(options)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 4096


# ---- With all around the rule


def params() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        "w": rng.standard_normal((40, 30)).astype(F4),
        "f": np.asfortranarray(rng.standard_normal((5, 700)).astype(F4)),
        "b": rng.standard_normal(30).astype(F4),
    }


def grads(t: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(100 + t)
    found = {k: np.empty_like(x) for k, x in params().items()}
    for g in found.values():
        g[...] = rng.standard_normal(g.shape)
    return found


def bits(opt: schuss.Optimizer, x: dict[str, np.ndarray]) -> dict[str, bytes]:
    arrays = {f"{n} {k}": a for n, s in opt.state.items() for k, a in s.items() if k != "step"}
    return {k: np.asarray(a).tobytes() for k, a in (x | arrays).items()}


AROUND: list[dict[str, Any]] = [
    {"lr": schuss.schedules.cosine(0.1, steps=20), "ema": 0.9},
    {"clip_norm": 1.0, "nonfinite": "skip", "weight_decay": 0.1, "maximize": True},
    {"zero_grad": True, "bounds": (-1.0, 1.0), "l1": 0.1, "l1_mode": "prox"},
    {"cautious": "mean", "state_dtype": {"variance": "bfloat16"}},
]


@pytest.mark.parametrize("options", AROUND)
@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy", "file"])
def test_a_run_goes_on(how: str, options: dict[str, Any], tmp_path: Path) -> None:
    whole, x = params(), params()
    one, opt = Adafactor(whole, **options), Adafactor(x, **options)
    for t in range(3):
        one.step(grads(t))
        opt.step(grads(t))
    if how == "state_dict":
        other = Adafactor(x, **options)
        other.load_state_dict(opt.state_dict())
    elif how == "file":
        schuss.save(tmp_path / "run", params=x, opt=opt)
        x = params()
        other = Adafactor(x, **options)
        schuss.load(tmp_path / "run", params=x, opt=other)
    else:
        other = pickle.loads(pickle.dumps(opt)) if how == "pickle" else copy.deepcopy(opt)
        x = dict(zip(x, other.param_groups[0]["params"], strict=True))
    for t in range(3, 6):
        one.step(grads(t))
        other.step(grads(t))
    assert bits(one, whole) == bits(other, x)


def test_state_in_files_has_the_same_bits(tmp_path: Path) -> None:
    ends = []
    for folder in (None, tmp_path / "state"):
        x = params()
        opt = Adafactor(x, state_dir=folder)
        for t in range(4):
            opt.step(grads(t))
        ends.append(bits(opt, x))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_that_is_not_taken_leaves_the_factors(backend: Backend) -> None:
    """Also where the last thing that Python says of a step is an error, behind the first sweep."""

    class Broken(Adafactor):
        @staticmethod
        def adapt(h: Any, t: int, sums: Any) -> dict[str, float]:
            if t == 3:
                raise ZeroDivisionError
            return Adafactor.adapt(h, t, sums)

    x = params()
    opt = Broken(x, backend=backend, nonfinite="skip")
    for t in range(2):
        opt.step(grads(t))
    before = bits(opt, x)
    bad = grads(2)
    bad["w"][3, 3] = np.nan
    assert not opt.step(bad)
    with pytest.raises(ZeroDivisionError):
        opt.step(grads(2))
    assert bits(opt, x) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_arrays_without_a_gradient_stay(backend: Backend) -> None:
    x = params()
    opt = Adafactor(x, backend=backend)
    opt.step(grads(0))
    before = bits(opt, x)
    opt.step({**grads(1), "w": None})
    after = bits(opt, x)
    moved = {key for key in before if before[key] != after[key]}
    assert moved == {"f", "f row_var", "f col_var", "b", "b variance"}
    assert [s["step"] for s in opt.state.values()] == [1, 2, 2]
    opt.step(grads(2))
    alone = {"w": params()["w"]}
    own = Adafactor(alone, backend=backend)
    own.step({"w": grads(0)["w"]})
    own.step({"w": grads(2)["w"]})
    assert (alone["w"] == x["w"]).all()


def test_groups_and_no_decay() -> None:
    x = params()
    opt = Adafactor(
        [{"params": {"w": x["w"]}}, {"params": {k: x[k] for k in ("f", "b")}, "lr": 0.0}],
        no_decay=lambda name, a: a.ndim == 1,
        weight_decay=0.5,
        lr=0.1,
    )
    g = grads(0)
    opt.step([{"w": g["w"]}, {k: g[k] for k in ("f", "b")}])
    alone = params()
    Adafactor({"w": alone["w"]}, weight_decay=0.5, lr=0.1).step({"w": g["w"]})
    assert (x["w"] == alone["w"]).all()
    assert (x["f"] == alone["f"]).all()
    assert (x["b"] == alone["b"]).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_master_steps_as_float32(dtype: Any) -> None:
    narrow = params()["w"].astype(dtype)
    wide = narrow.astype(F4)
    a, b = Adafactor(narrow, master=True), Adafactor(wide)
    for t in range(5):
        g = grads(t)["w"].astype(dtype)
        a.step(g)
        b.step(g.astype(F4))
    assert (a.state[0]["master"] == wide).all()
    assert (narrow == wide.astype(dtype)).all()
    assert a.state[0]["row_var"].dtype == F4
    assert (a.state[0]["row_var"] == b.state[0]["row_var"]).all()


def test_stateless_calls_tell_types_apart() -> None:
    """Those with the same options are remembered, but eps is that of each type."""
    for dtype in ("float32", "float64", "float32"):
        x, v, g = np.ones(5, dtype), np.zeros(5, dtype), np.full(5, 1e-10, dtype)
        y = x.copy()
        functional.adafactor(x, g, v, step=1)
        Adafactor(y).step(g)
        assert (x == y).all()
    with pytest.raises(TypeError, match=r"adafactor: of 2 axes the class keeps factors"):
        functional.adafactor(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2)), step=1)
    with pytest.raises(TypeError, match=r"param: .*list"):
        functional.adafactor([1.0], np.ones(1), np.ones(1), step=1)  # type: ignore[arg-type]


def test_what_it_does_not_take() -> None:
    x = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"params\[0\]: 3 axes in Fortran order"):
        Adafactor(np.ones((2, 3, 4), order="F"))
    with pytest.raises(TypeError, match=r"adafactor: of 2 axes the class keeps factors"):
        functional.adafactor(x, x.copy(), x.copy(), step=1)
    opt = Adafactor(x)
    opt.state[0]["row_var"].flags.writeable = False
    with pytest.raises(ValueError, match=r'state\[0\]\["row_var"\]: read-only'):
        opt.step(np.ones((2, 3)))
    opt = Adafactor(np.ones((2, 1)))
    with pytest.raises(ValueError, match=r'grads\[0\]: overlaps state\[0\]\["row_var"\]'):
        opt.step(opt.state[0]["row_var"])
