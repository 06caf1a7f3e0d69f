"""Checkpoints: what comes back is what was there, or else an error that changes nothing."""

from __future__ import annotations

import copy
import errno
import io
import json
import math
import os
import pickle
import stat
import struct
import sys
import threading
import tracemalloc
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from engine.unchanged import Unchanged, snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import schuss
from doors import golden
from schuss import checkpoint
from schuss.engine import replacing
from schuss.engine import safetensors as container
from schuss.engine import saved as saved_module
from schuss.engine.optimizer import Optimizer
from schuss.rules import RULES, matrix

F4 = np.float32
BF16 = ml_dtypes.bfloat16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.safetensors"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here needs the disk."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


# ---- Going on


class Run:
    """A training with all that it remembers."""

    def __init__(
        self, rule: type[Optimizer], dtype: Any = F4, order: Any = "C", **options: Any
    ) -> None:
        rng = np.random.default_rng(1)
        self.order, self.rng = order, np.random.default_rng(2)
        self.params: dict[str, Any] = {
            "w": [np.asarray(rng.standard_normal((5, 8)), dtype, order=order)],
            "b": np.asarray(rng.standard_normal(8), dtype),
            "s": np.asarray(0.5, dtype),
        }
        p = self.params
        groups = [{"params": {"w": p["w"]}}, {"params": {"b": p["b"], "s": p["s"]}, "l2": 0.01}]
        self.opt = rule(groups, **options)

    def train(self, steps: int) -> Run:
        draw, order = self.rng.standard_normal, self.order
        kind = self.params["b"].dtype
        for _ in range(steps):
            w = [np.asarray(draw((5, 8)), kind, order=order)]
            rest: dict[str, Any] = {"b": np.asarray(draw(8), kind), "s": np.asarray(draw(), kind)}
            if self.opt.iterations % 3 == 1:
                rest["b"] = None  # its count stays behind
            self.opt.step([{"w": w}, rest], loss=2 + math.cos(self.opt.iterations))
        return self

    def save(self, path: Path) -> None:
        schuss.save(path, params=self.params, opt=self.opt, rng=self.rng)

    def load(self, path: Path) -> Run:
        assert schuss.load(path, params=self.params, opt=self.opt, rng=self.rng) == {}
        return self

    @property
    def bits(self) -> Any:
        state = self.opt.state_dict()
        moved = {k: state[k] for k in ("iterations", "skipped_steps", "shared", "options")}
        return *snapshot(self.opt)[:4], moved, repr(self.rng.bit_generator.state)


def goes_on(path: Path, **options: Any) -> None:
    whole, half = Run(**options).train(9), Run(**options).train(5)
    half.save(path)
    after = half.bits
    again = Run(**options).train(1).load(path)
    assert again.bits == after
    assert again.train(4).bits == whole.bits == half.train(4).bits


@pytest.mark.parametrize("rule", [*RULES, *matrix.RULES], ids=lambda rule: rule.__name__)
def test_resuming_is_going_on(rule: type[Optimizer], path: Path) -> None:
    goes_on(path, rule=rule)
    goes_on(path, rule=rule, dtype=float, order="F", ema=0.9)


VARIANTS: dict[str, dict[str, Any]] = {
    "16 bits": {"dtype": BF16, "lr": schuss.schedules.cosine(0.1, steps=20, warmup=3)},
    "master, mean": {"dtype": BF16, "master": True, "ema": 0.99},
    "float16, stochastic": {"dtype": np.float16, "stochastic_rounding": True, "seed": 3},
    "16-bit state": {"state_dtype": "bfloat16", "amsgrad": True},
    "bounds": {"bounds": (-1.0, 1.0), "l1": 0.01, "l1_mode": "prox"},
    "skipping": {"clip_norm": 1.0, "nonfinite": "skip", "zero_grad": True},
    "NumPy": {"backend": "numpy", "order": "F"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resuming_with_options(variant: str, path: Path) -> None:
    goes_on(path, rule=schuss.Adam, **VARIANTS[variant])


def test_schedules_that_follow_a_metric_and_loss_scales_go_on(path: Path) -> None:
    def run() -> Run:
        return Run(
            schuss.Adam,
            lr=schuss.schedules.ReduceOnPlateau(0.1, patience=0),
            grad_scale=schuss.LossScale(8.0, interval=2),
            nonfinite="skip",
        )

    half = run().train(3)
    for metric in (1.0, 2.0, 3.0):
        half.opt.observe(metric)
    half.opt.step([{"w": [np.full((5, 8), np.inf, F4)]}, None])
    half.save(path)
    again = run().load(path)
    assert again.opt.current_learning_rate == half.opt.current_learning_rate < 0.1
    assert float(again.opt.grad_scale) == float(half.opt.grad_scale)
    assert again.opt.skipped_steps == 1
    assert again.train(3).bits == half.train(3).bits


def test_an_optimizer_brings_its_parameters(path: Path) -> None:
    half = Run(schuss.AdamW).train(3)
    schuss.save(path, half.opt)
    again = Run(schuss.AdamW)
    assert schuss.load(path, again.opt) == {}
    assert again.bits[:-1] == half.bits[:-1]
    stored = safetensors.numpy.load_file(path)
    assert stored.keys() == {
        f"opt.{n}"
        for name in ("w.0", "b", "s")
        for n in (f"params.{name}", f"state.{name}.exp_avg", f"state.{name}.exp_avg_sq")
    }
    assert np.array_equal(stored["opt.params.w.0"], half.params["w"][0])


def test_an_array_of_another_byte_order_goes_back_into_its_place(path: Path) -> None:
    schuss.save(path, a=np.arange(3, dtype=">f4"))
    place = np.zeros(3, ">f4")
    schuss.load(path, a=place)
    assert (place == [0, 1, 2]).all()


def test_what_is_no_path(path: Path) -> None:
    opt: Any = schuss.Adam([np.ones(3)])
    wrong: list[Any] = [None, 3, b"x", opt]
    for value in wrong:
        with pytest.raises(TypeError, match=r"path: .* is no path of a file"):
            schuss.save(value, opt)
        with pytest.raises(TypeError, match=r"path: .* is no path of a file"):
            schuss.load(value)


def test_an_array_is_stored_once(path: Path) -> None:
    run = Run(schuss.Adam).train(1)
    b = run.params["b"]
    schuss.save(path, opt=run.opt, params=run.params, again=[b, b[:], b[::-1], b[:2], b.view("i4")])
    stored = safetensors.numpy.load_file(path)
    shared = {name for name in stored if "state" not in name}
    assert shared == {"params.w.0", "params.b", "params.s", "again.2", "again.3", "again.4"}
    found = schuss.load(path)
    assert found["again"][0] is found["params"]["b"] is found["opt"]["params"]["b"]
    assert np.array_equal(found["again"][2], b[::-1])


def test_several_optimizers(path: Path) -> None:
    a, b = Run(schuss.Adam).train(2), Run(schuss.Lion).train(3)
    schuss.save(path, pair=[a.opt, {"other": b.opt}])
    c, d = Run(schuss.Adam), Run(schuss.Lion)
    schuss.load(path, pair=[c.opt, {"other": d.opt}])
    assert (c.bits[:-1], d.bits[:-1]) == (a.bits[:-1], b.bits[:-1])
    assert checkpoint.contents(path).rules == "Adam, Lion"


def test_what_is_returned_can_be_loaded(path: Path) -> None:
    run = Run(schuss.Adam).train(2)
    schuss.save(path, run.opt)
    found, again = schuss.load(path)["opt"], Run(schuss.Adam)
    again.opt.load_state_dict(found["state_dict"])
    assert again.opt.iterations == 2
    assert found["params"].keys() == again.opt.state.keys()


# ---- Values

NAN = struct.unpack(">d", bytes.fromhex("fff8000000001234"))[0]
VALUES: dict[str, Any] = {
    "none": None,
    "true": True,
    "whole": [0, -1, 2**63 - 1, -(2**63), 2**200, -(2**4000)],
    "float": [0.1, -0.0, 5e-324, math.inf, -math.inf, 1e308],
    "complex": [1j, complex(math.nan, -0.0)],
    "text": ["", "ü\n\0\"'", "\ud800", "$"],
    "tuple": (1, (2, [3]), ()),
    "dict": {"": {}, "a.b": 1, "$": 2},
    "keys": {1: "one", (2, None): "two", False: 3.0},
    "scalars": [np.float32(0.1), np.int8(-3), np.bool_(True), BF16(1.5), np.float64(2)],
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray | np.generic):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, float):
        return type(a) is type(b) and struct.pack(">d", a) == struct.pack(">d", b)
    return type(a) is type(b) and repr(a) == repr(b)


def test_values_come_back_as_they_were(path: Path) -> None:
    schuss.save(path, **VALUES, nan=NAN)
    assert same(schuss.load(path), {**VALUES, "nan": NAN})
    assert safetensors.numpy.load_file(path) == {}


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text()
kinds = npst.boolean_dtypes() | npst.integer_dtypes() | npst.floating_dtypes(sizes=(16, 32, 64))
arrays = npst.arrays(kinds, npst.array_shapes(min_dims=0, min_side=0, max_side=4))
strided = arrays.map(lambda a: a.T[::-1] if a.ndim else a)
keys = st.text() | st.integers() | st.tuples(st.booleans(), st.text())
anything = st.recursive(
    plain | arrays | strided,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


def native(value: Any) -> Any:
    """In this machine's byte order, as it comes back."""
    if isinstance(value, np.ndarray):
        return value.astype(value.dtype.newbyteorder("="), order="C")
    if isinstance(value, dict):
        return {key: native(v) for key, v in value.items()}
    return type(value)(map(native, value)) if isinstance(value, list | tuple) else value


@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(anything)
def test_anything_comes_back(path: Path, value: Any) -> None:
    schuss.save(path, x=value)
    assert same(schuss.load(path)["x"], native(value))
    checkpoint.contents(path, verified=True)


ARRAYS: dict[str, np.ndarray] = {
    "Fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "strided": np.arange(24, dtype=np.int16).reshape(4, 6)[::2, ::-3],
    "transposed": np.arange(24).reshape(2, 3, 4).T,
    "bfloat16": np.arange(6).astype(BF16).reshape(2, 3)[::-1],
    "none": np.zeros((0, 3), bool),
    "no dimension": np.array(np.nan, F4),
    "a.b": np.array([-0.0, math.inf, NAN]),
    "subclass": np.arange(3.0).view(np.recarray),
}


def test_arrays_come_back_into_any_order(path: Path) -> None:
    schuss.save(path, arrays=ARRAYS)
    places = {name: np.zeros(a.shape, a.dtype, order="F") for name, a in ARRAYS.items()}
    places["strided"] = np.zeros((8, 8), np.int16)[1:5:2, 6:2:-2]
    schuss.load(path, arrays=places)
    returned = schuss.load(path)["arrays"]
    for name, a in ARRAYS.items():
        assert np.asarray(a).tobytes() == places[name].tobytes() == returned[name].tobytes(), name
        assert returned[name].flags.writeable
        assert returned[name].flags.owndata


@pytest.mark.parametrize("name", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_generators(name: str, path: Path) -> None:
    bits = getattr(np.random, name)

    def draws(rng: np.random.Generator, old: np.random.RandomState) -> list[Any]:
        return [*rng.integers(9, size=5, dtype=np.int32), *old.normal(size=3)]

    before = np.random.Generator(bits(1)), np.random.RandomState(bits(2))
    draws(*before)
    schuss.save(path, generators=before)
    fresh = np.random.Generator(bits(5)), np.random.RandomState(bits(6))
    schuss.load(path, generators=fresh)
    assert draws(*schuss.load(path)["generators"]) == draws(*fresh) == draws(*before)


class Counter:
    """An object with state, which refuses 13."""

    def __init__(self, n: int = 0) -> None:
        self.n = n

    def state_dict(self) -> dict[str, Any]:
        return {"n": self.n, "seen": np.arange(self.n)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n = state["n"]
        if self.n == 13:
            raise ValueError("n: 13")


def test_objects_with_state(path: Path) -> None:
    schuss.save(path, counter=Counter(3), plateau=schuss.schedules.ReduceOnPlateau(0.5))
    counter, plateau = Counter(), schuss.schedules.ReduceOnPlateau(0.9)
    assert schuss.load(path, counter=counter, plateau=plateau) == {}
    assert (counter.n, plateau.value) == (3, 0.5)
    assert schuss.load(path)["counter"]["n"] == 3


class Odd:
    pass


itself: list[Any] = []
itself.append(itself)


@pytest.mark.parametrize(
    ("entries", "error", "says"),
    [
        ({"a": [{"b": Odd()}]}, TypeError, "a.0.b: Odd can't be stored; wanted numbers"),
        ({"a": {1, 2}}, TypeError, "a: set"),
        ({"a": b"x"}, TypeError, "a: bytes"),
        ({"a": lambda: 1}, TypeError, "a: function"),
        ({"a": Fraction(1, 2)}, TypeError, "a: Fraction"),
        ({"a": {Odd(): 1}}, TypeError, "a: Odd"),
        ({"a": np.zeros(2, complex)}, TypeError, "a: complex128 can't be stored; pass z.view"),
        ({"a": np.array([Odd()])}, TypeError, "a: object"),
        ({"a": np.array(["text"])}, TypeError, "a: <U4"),
        ({"a": np.zeros(2, "f4,i4")}, TypeError, "a: "),
        ({"a": np.datetime64("2024")}, TypeError, "a: datetime64"),
        ({"a": np.ma.array([1.0, 2.0], mask=[False, True])}, TypeError, "a: a masked array"),
        ({"a": itself}, ValueError, "entries: nested too deep, or one contains itself"),
        ({}, TypeError, "entries: none"),
        ({"progress": 3}, TypeError, "progress: 3"),
    ],
    ids=range(15),
)
def test_what_can_not_be_stored(
    entries: dict[str, Any], error: type[Exception], says: str, path: Path
) -> None:
    path.write_text("old")
    with pytest.raises(error, match=says):
        schuss.save(path, **entries)
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == [path.name]


def test_arguments(path: Path) -> None:
    opt = schuss.SGD(np.zeros(3))
    wrong: Any = {"w": np.zeros(3)}
    for call in (schuss.save, schuss.load):
        with pytest.raises(TypeError, match="opt: dict is no optimizer; pass it by a name"):
            call(path, wrong)
        with pytest.raises(TypeError, match="opt: given twice"):
            call(path, opt, opt=opt)


# ---- What doesn't fit


def test_all_differences_are_listed_and_nothing_changes(path: Path) -> None:
    run = Run(schuss.Adam).train(2)
    arrays = {f"a{i}": np.ones(i) for i in range(9)}
    schuss.save(path, params=run.params, opt=run.opt, rng=run.rng, arrays=arrays, n=[1, 2])
    other = Run(schuss.Adam, float).train(1)
    rng = np.random.Generator(np.random.MT19937(1))
    state = rng.bit_generator.state
    places = {f"b{i}": np.zeros(i) for i in range(8)} | {"a8": np.zeros(8, F4)}
    with Unchanged(
        other.opt,
        ValueError,
        str(path),
        *(f"missing arrays.b{i}; " for i in range(8)),
        *(f"unknown arrays.a{i}; " for i in range(8)),
        "arrays.a8: float64 of shape (8,), wanted float32 of shape (8,)",
        "opt.params.b: float32 of shape (8,), wanted float64 of shape (8,)",
        "opt: state_dict: 'w.0' exp_avg: float32",
        "missing more",
        "n: list, wanted float64",
        "rng: state must be for a MT19937",
    ):
        schuss.load(path, other.opt, arrays=places, rng=rng, n=np.zeros(2), more=np.zeros(1))
    assert not any(a.any() for a in places.values())
    assert repr(rng.bit_generator.state) == repr(state)


def test_another_rule(path: Path) -> None:
    schuss.save(path, Run(schuss.AdamW).opt)
    with Unchanged(Run(schuss.Adam).opt, ValueError, "rule: 'AdamW' was saved, but this is Adam"):
        schuss.load(path, Run(schuss.Adam).opt)


class Unfillable:
    pass


def frozen() -> np.ndarray:
    a = np.zeros(3)
    a.flags.writeable = False
    return a


@pytest.mark.parametrize(
    ("place", "error", "says"),
    [
        (3.0, TypeError, "x: float can't be filled; wanted arrays"),
        (None, TypeError, "x: NoneType can't be filled"),
        (Unfillable(), TypeError, "x: Unfillable can't be filled"),
        (frozen(), ValueError, "x: read-only"),
        (np.ma.zeros(3), TypeError, "x: a masked array"),
        (np.zeros(4), ValueError, r"x: float64 of shape \(3,\), wanted float64 of shape \(4,\)"),
        ([np.zeros(3)], ValueError, "x: ndarray, wanted a sequence"),
        ({"a": np.zeros(3)}, ValueError, "x: ndarray, wanted a mapping"),
        (np.random.default_rng(), ValueError, "x: ndarray, wanted Generator"),
        (np.random.RandomState(), ValueError, "x: ndarray, wanted RandomState"),
        (Counter(), ValueError, "x: ndarray, wanted the state of an object"),
        (schuss.SGD(np.zeros(3)), ValueError, "x: ndarray, wanted an optimizer"),
    ],
    ids=range(12),
)
def test_what_can_not_be_filled(place: Any, error: type[Exception], says: str, path: Path) -> None:
    schuss.save(path, x=np.ones(3), y=np.ones(3))
    y = np.zeros(3)
    with pytest.raises(error, match=says):
        schuss.load(path, y=y, x=place)
    assert not y.any()


def test_an_object_that_refuses_leaves_all_as_it_was(path: Path) -> None:
    run, fine = Run(schuss.Adam).train(2), Counter(5)
    schuss.save(path, fine=Counter(7), bad=Counter(13), opt=run.opt, a=np.ones(3))
    bad, a = Counter(6), np.zeros(3)
    with Unchanged(run.train(1).opt, ValueError, "bad: n: 13"):
        schuss.load(path, run.opt, fine=fine, bad=bad, a=a)
    assert (fine.n, bad.n) == (5, 6)
    assert not a.any()


@pytest.mark.parametrize("late", [False, True])
def test_an_interrupt_comes_before_all_is_filled_or_behind(
    late: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, assign = Run(schuss.ScheduleFreeAdamW, lr=0.1).train(3), saved_module.assign
    opt: Any = whole.opt
    opt.eval()
    whole.save(path)
    raised: list[bool] = []

    def interrupted(*args: Any) -> None:
        if late or raised:
            assign(*args)
        if not raised:
            raised.append(True)
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "assign", interrupted)
    again = Run(schuss.ScheduleFreeAdamW, lr=0.1).train(1)
    with pytest.raises(KeyboardInterrupt):
        again.load(path)
    assert again.bits == whole.bits
    resumed: Any = again.opt
    for one in (opt, resumed):
        one.train()
    assert again.train(2).bits == whole.train(2).bits


def test_one_array_in_two_places_of_the_file(path: Path) -> None:
    run = Run(schuss.SGD)
    schuss.save(path, params=copy.deepcopy(run.params), opt=run.opt)
    schuss.load(path, params=run.params, opt=run.opt)  # the same twice
    changed = copy.deepcopy(run.params)
    changed["b"][0] = 9
    schuss.save(path, params=changed, opt=run.opt)
    with Unchanged(run.opt, ValueError, "opt.params.b: one array here, but several in the file"):
        schuss.load(path, params=run.params, opt=run.opt)


def test_within_averaged(path: Path) -> None:
    run = Run(schuss.Adam, ema=0.5).train(3)
    with run.opt.averaged():
        run.save(path)
        with pytest.raises(RuntimeError, match="load: the parameters hold their means"):
            schuss.load(path, run.opt)
    assert Run(schuss.Adam, ema=0.5).load(path).bits == run.bits


def test_while_evaluated(path: Path) -> None:
    """The averages are where they were, and so is what is trained on."""
    run = Run(schuss.ScheduleFreeAdamW, lr=0.1).train(3)
    opt: Any = run.opt
    opt.eval()
    run.save(path)
    again = Run(schuss.ScheduleFreeAdamW, lr=0.1).load(path)
    resumed: Any = again.opt
    assert np.array_equal(again.params["b"], run.params["b"])
    for one in (opt, resumed):
        one.train()
    assert again.train(2).bits == run.train(2).bits


def test_from_within_a_step(path: Path) -> None:
    def rate(n: int) -> float:
        schuss.save(path, opt)
        return 0.1

    opt = schuss.SGD(np.zeros(3), lr=rate)
    with pytest.raises(RuntimeError, match="re-entered"):
        opt.step(np.ones(3))
    assert not path.exists()


# ---- Damage and malice


@pytest.fixture
def saved(path: Path) -> tuple[Path, bytes, dict[str, Any]]:
    """A small file, its bytes, and what is in it."""
    entries: dict[str, Any] = {
        "x": np.arange(500.0),
        "y": np.arange(3, dtype=np.int8),
        "z": [1.5, "text", None],
    }
    schuss.save(path, **entries)
    return path, path.read_bytes(), schuss.load(path)


def test_truncated_anywhere(saved: tuple[Path, bytes, Any]) -> None:
    path, content, _ = saved
    header = len(content) - 500 * 8 - 3
    lengths = [*range(header + 1), *np.linspace(header, len(content) - 1, 50, dtype=int)]
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"run\.safetensors': ."):
            schuss.load(path)


def test_flipped_bits(saved: tuple[Path, bytes, Any], rng: np.random.Generator) -> None:
    path, content, _ = saved
    header = 8 * (len(content) - 500 * 8 - 3)
    bits = [
        *range(8 * 8, 45 * 8),
        *rng.integers(header, size=400),
        *rng.integers(8 * len(content), size=300),
    ]
    for bit in bits:
        wrong = bytearray(content)
        wrong[bit // 8] ^= 1 << bit % 8
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"run\.safetensors': ."):
            schuss.load(path)


def test_damaged_arrays_are_listed(saved: tuple[Path, bytes, Any]) -> None:
    path, content, _ = saved
    path.write_bytes(content[:-4] + b"\xff" * 4)
    x = np.zeros(500)
    with pytest.raises(ValueError, match="damaged: wrong checksum of x, y"):
        schuss.load(path, x=x)
    assert not x.any()


def written(path: Path, values: Any, **metadata: Any) -> None:
    """A file with right checksums that says what it likes."""
    array = np.zeros(4, np.uint64)
    entries = container.layout({"a": ("uint64", (4,))})
    texts = {
        "schuss.format": "1",
        "schuss.version": "0",
        "schuss.rule": "",
        "schuss.crc32": json.dumps({"a": f"{zlib.crc32(array.tobytes()):08x}"}),
        "schuss.values": values if isinstance(values, str) else json.dumps(values),
    } | metadata
    texts = {key: text for key, text in texts.items() if text is not None}
    path.write_bytes(container.packed(entries, texts) + array.tobytes())


def tag(kind: Any, value: Any, **more: Any) -> dict[str, Any]:
    return {"x": {"$": kind, "value": value, **more}, "a": {"$": "array", "value": "a"}}


MT = {"bit_generator": "MT19937", "state": {"key": {"$": "array", "value": "a"}, "pos": 3}}
PHILOX = {"bit_generator": "Philox", "buffer_pos": 5, "state": {}}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "arrays that are nobody's: a"),
        ("[]", "no JSON"),
        ("{", "no JSON"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": 1, "a": 2}', "a key is there twice"),
        ('{"a":' * 10**5, "nested too deep"),
        ('{"x":' + "[" * 700 + "]" * 700 + "}", "nobody's|nested too deep"),
        (tag("array", "b"), "'b': no array of the file"),
        (tag("array", ["a"]), "no array of the file"),
        (tag("array", {"$": "array"}), "no array of the file"),
        (tag("nix", 1), "no nix|unknown"),
        (tag(["array"], 1), "no value"),
        (tag("int", "12", more=1), "no value"),
        (tag("int", "zz"), "no int"),
        (tag("int", 12), "no int"),
        (tag("float", "00"), "no float"),
        (tag("float", "zz"), "no float"),
        (tag("complex", [1, 2, 3]), "no complex"),
        (tag("scalar", ["float32", "00"]), "no scalar"),
        (tag("scalar", ["object", "00" * 8]), "no scalar"),
        (tag("scalar", ["float32", "00" * 8]), "no scalar"),
        (tag("tuple", 3), "no tuple"),
        (tag("dict", [[[], 1]]), "no dict"),
        (tag("dict", [1]), "no dict"),
        (tag("Generator", 3), "None is no bit generator"),
        (tag("Generator", {"bit_generator": "os.system"}), "no bit generator"),
        (tag("Generator", {"bit_generator": "PCG64"}), "no state of a generator"),
        (tag("Generator", {"bit_generator": "PCG64", "state": 3}), "no state of a generator"),
        (tag("Generator", MT), "no state of a generator|key"),
        (tag("Generator", MT | {"state": {"pos": 625}}), "pos: 625 is out of range"),
        (tag("Generator", PHILOX), "buffer_pos: 5 is out of range"),
        (tag("RandomState", MT | {"state": {"pos": -1}}), "pos: -1 is out of range"),
        (tag("RandomState", 3), "no bit generator"),
    ],
    ids=range(33),
)
def test_hostile_values(values: Any, says: str, path: Path) -> None:
    written(path, values)
    tracemalloc.start()
    with pytest.raises(ValueError, match=says):
        schuss.load(path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("value", [3, None, {}, {"params": 3}, {"state": {}, "param_groups": []}])
def test_hostile_optimizers(value: Any, path: Path) -> None:
    written(path, tag("optimizer", value))
    run = Run(schuss.Adam).train(1)
    with Unchanged(run.opt, ValueError, "x"):
        schuss.load(path, x=run.opt)
    schuss.load(path)


@pytest.mark.parametrize("key", ["format", "version", "rule", "crc32", "values"])
def test_metadata_is_whole(key: str, path: Path) -> None:
    written(path, tag("int", "1"), **{f"schuss.{key}": None})
    with pytest.raises(ValueError, match=f"damaged: its metadata lacks schuss.{key}"):
        schuss.load(path)


def test_a_pickle_is_no_checkpoint(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": np.zeros(100)}))
    with pytest.raises(ValueError, match="no safetensors file"):
        schuss.load(path)


def test_no_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run\.safetensors"):
        schuss.load(path)


# ---- Versions, and others' files


def test_a_later_format_is_refused(path: Path) -> None:
    for number in (str(checkpoint.FORMAT + 1), "0", "-1", "one", "1.0"):
        written(path, tag("int", "1"), **{"schuss.format": number, "schuss.version": "7.1"})
        with pytest.raises(
            ValueError, match=f"format {number} by schuss 7.1; this one reads up to"
        ):
            schuss.load(path)


def test_an_earlier_format_is_upgraded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schuss.save(path, old=1)
    monkeypatch.setattr(checkpoint, "FORMAT", 3)
    monkeypatch.setitem(checkpoint.UPGRADES, 1, lambda values: {"newer": values["old"]})
    monkeypatch.setitem(checkpoint.UPGRADES, 2, lambda values: {"new": values["newer"]})
    assert schuss.load(path) == {"new": 1}


@pytest.mark.parametrize("name", golden.CASES)
def test_files_of_this_format_are_read(name: str) -> None:
    """Written by golden.py once, and read for as long as the format is."""
    path = golden.FOLDER / f"{name}.safetensors"
    run = golden.CASES[name]()
    rest = schuss.load(path, params=run.params, opt=run.opt, rng=run.rng)
    assert rest == {"step": 3}
    assert run.opt.iterations == 3
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata()["schuss.format"] == "1"
    stored = safetensors.numpy.load_file(path)
    held = {f"opt.state.{n}.{k}": a for n, s in run.opt.state.items() for k, a in s.items()}
    held |= {f"params.{name}": a for name, a in run.params.items()}
    arrays = {name: a for name, a in held.items() if isinstance(a, np.ndarray)}
    assert arrays.keys() == {name for name in stored if not name.startswith("rng.")}
    assert all(arrays[name].tobytes() == stored[name].tobytes() for name in arrays)
    assert any(a.any() for a in arrays.values())
    run.step()


def test_files_of_other_libraries(path: Path) -> None:
    arrays = {"w": np.ones((2, 3), F4), "b.0": np.ones(3, BF16)}
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})
    w = np.zeros((2, 3), F4)
    rest = schuss.load(path, w=w)
    assert w.all()
    assert same(rest, {"b.0": arrays["b.0"]})
    with pytest.raises(ValueError, match="missing opt"):
        schuss.load(path, schuss.SGD(np.zeros(3)))


def test_without_ml_dtypes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schuss.save(path, x=np.ones(3, BF16))
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert checkpoint.contents(path, verified=True).arrays["x"].dtype == "BF16"
    with pytest.raises(ValueError, match="bfloat16 needs the package ml_dtypes"):
        schuss.load(path)


# ---- Files


def left(path: Path) -> set[str]:
    return {p.name for p in path.parent.iterdir()}


def test_onto_the_file_that_was_loaded(path: Path) -> None:
    a = np.arange(10_000.0)
    schuss.save(path, a=a)
    header = len(path.read_bytes()) - a.nbytes
    held = np.memmap(path, float, "r", header)  # and still is
    schuss.save(path, a=held[::-1])
    assert np.array_equal(schuss.load(path)["a"], a[::-1])
    assert np.array_equal(held, a)
    writeable = np.memmap(path, float, "r+", header)
    writeable[0] = 7
    schuss.save(path, a=writeable)
    assert schuss.load(path)["a"][0] == 7


def test_mode_and_links(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    before = os.umask(0o027)
    try:
        schuss.save(link, a=1)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    finally:
        os.umask(before)
    assert link.is_symlink()
    assert schuss.load(path) == {"a": 1}
    assert left(path) == {path.name, "link"}


def test_order_of_what_reaches_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file before it has its name, and then its name."""
    seen: list[str] = []
    schuss.save(path, a=1)

    def fsync(number: int) -> None:
        folder = stat.S_ISDIR(os.fstat(number).st_mode)
        seen.append("folder" if folder else "file")
        new = schuss.load(path) == {"a": 2}
        assert new == folder

    monkeypatch.setattr(os, "fsync", fsync)
    schuss.save(path, a=2)
    assert seen == ["file", "file", "folder"]


@pytest.mark.parametrize("call", ["fsync", "open", "replace", "write", "read"])
@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt(), MemoryError()],
    ids=repr,
)
def test_any_error_leaves_the_old_file(
    call: str, error: BaseException, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schuss.save(path, a=1)

    def fails(*args: Any, **more: Any) -> Any:
        raise error

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", fails)
    elif call == "write":
        monkeypatch.setattr(container, "pieces", fails)
    elif call == "read":
        monkeypatch.setattr(container, "checked", fails)
    else:
        monkeypatch.setattr(Path, call, fails)
    with pytest.raises(type(error)) as info:
        schuss.save(path, a=2, x=np.ones(3))
    if isinstance(error, OSError):
        assert (info.value.errno, info.value.filename) == (errno.EIO, str(path))  # type: ignore[attr-defined]
    monkeypatch.undo()
    assert schuss.load(path) == {"a": 1}
    assert left(path) == {path.name}


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_that_changes_meanwhile(
    order: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schuss.save(path, a=1)
    x, fine = np.zeros((700, 700), order=order), np.zeros(3)
    checked = container.checked

    def changed(*args: Any) -> str | None:
        x[-1, -1] = 1
        return checked(*args)

    monkeypatch.setattr(container, "checked", changed)
    with pytest.raises(OSError, match=r"not replaced; .* other bytes in x: changed meanwhile"):
        schuss.save(path, fine=fine, x=x)
    assert schuss.load(path) == {"a": 1}
    assert left(path) == {path.name}


def test_a_disk_that_writes_something_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schuss.save(path, a=1)
    packed = container.packed

    def spoilt(entries: Any, metadata: Any) -> bytes:
        text = packed(entries, metadata)
        spoils.append(bytes([text[0], *text[1:-1], ord("x")]) if len(spoils) == 1 else text)
        return spoils[-1]

    spoils: list[bytes] = []
    monkeypatch.setattr(container, "packed", spoilt)
    with pytest.raises(OSError, match="other bytes in the header"):
        schuss.save(path, a=2)
    monkeypatch.undo()
    assert schuss.load(path) == {"a": 1}


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("", IsADirectoryError),
        ("no/such/folder", FileNotFoundError),
        ("file/below", NotADirectoryError),
        ("x" * 300, OSError),
        ("pipe", OSError),
        ("/proc/schuss", OSError),
        ("/dev/null", OSError),
    ],
)
def test_where_no_file_can_be(name: str, error: type[OSError], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(error) as info:
        schuss.save(tmp_path / name, a=1)
    assert str(tmp_path / name) in str(info.value)
    assert {p.name for p in tmp_path.iterdir()} == {"file", "pipe"}
    assert not Path("/dev/null").is_file()


def test_what_killed_writers_left_is_removed(path: Path) -> None:
    beginning = replacing.beginning(path)
    gone, others = path.with_name(f"{beginning}1.tmp"), path.with_name(".schuss-0-1.tmp")
    at_work, file = replacing.opened_beside(path)
    gone.write_text("half")
    others.write_text("of another file")
    with file:
        schuss.save(path, a=1)
        assert left(path) == {path.name, at_work.name, others.name}
    schuss.save(path, a=1)
    assert left(path) == {path.name, others.name}


def test_many_writers_one_winner(path: Path) -> None:
    def write(n: int) -> None:
        for i in range(5):
            schuss.save(path, who=n, x=np.full(10_000, n), i=i)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = schuss.load(path)
    assert (found["x"] == found["who"]).all()
    assert left(path) == {path.name}


def test_steps_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, pieces = Run(schuss.Adam), container.pieces
    stepping = threading.Thread(target=run.train, args=(1,))

    def slow(array: np.ndarray) -> Any:
        if not stepping.ident:
            stepping.start()
            stepping.join(0.05)
        assert run.opt.iterations == 0
        return pieces(array)

    monkeypatch.setattr(container, "pieces", slow)
    schuss.save(path, run.opt)
    stepping.join()
    assert run.opt.iterations == 1
    assert schuss.load(path)["opt"]["state_dict"]["iterations"] == 0


def test_memory(path: Path) -> None:
    """Nothing is twice in memory, whatever its order, while it is saved or loaded."""
    places: dict[str, Any] = {"c": np.ones((2000, 1000)), "f": np.ones((2000, 1000), order="F")}
    places["opt"] = schuss.Adam([np.ones((2000, 500), order=o) for o in ("C", "F")])
    tracemalloc.start()
    schuss.save(path, **places)
    schuss.load(path, **places)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000 < places["c"].nbytes
    tracemalloc.stop()


# ---- What is shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    x, terminal = np.ones(1000), Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    schuss.save(path, x=x, progress=True)  # too small
    monkeypatch.setattr(checkpoint, "BIG", 1)
    schuss.save(path, x=x)
    schuss.load(path)
    assert terminal.getvalue() == ""
    schuss.save(path, x=x, progress=True)
    schuss.load(path, progress=True)
    assert "Saving" in terminal.getvalue()
    assert "100%" in terminal.getvalue()
    assert "Loading" in terminal.getvalue()
    terminal.truncate(0)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    schuss.save(path, x=x, progress=True)
    monkeypatch.setattr(sys, "stderr", None)
    schuss.save(path, x=x, progress=True)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    schuss.save(path, x=x, progress=True)
    assert terminal.getvalue().strip("\0") == ""
    assert capsys.readouterr() == ("", "")
