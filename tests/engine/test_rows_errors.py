"""Gradients of rows that don't fit: the error names the gradient, and nothing has changed."""

from __future__ import annotations

import collections.abc
import gc
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import schuss
from engine.unchanged import Unchanged
from schuss import rules
from schuss.engine.declare import Backend
from schuss.engine.optimizer import Optimizer
from schuss.rules import matrix

F4 = np.float32
BACKENDS: list[Backend] = ["compiled", "numpy"]
ROWS, WIDTH = 10, 3
ERRORS: Any = (TypeError, ValueError)

SUMMING = [rule for rule in rules.RULES if rule.sums(rule.defaults())]


def params() -> dict[str, np.ndarray]:
    return {"a": np.ones((4, 2), F4), "w1": np.ones((ROWS, WIDTH), F4), "z": np.ones(10, F4)}


def stepped(rule: type[Optimizer] = schuss.AdamW, **options: Any) -> Optimizer:
    """With two steps behind it, so that there is something to lose."""
    opt = rule(params(), **options)
    for _ in range(2):
        opt.step({name: np.ones_like(x) for name, x in params().items()})
    return opt


@pytest.fixture(params=BACKENDS)
def opt(request: pytest.FixtureRequest) -> Optimizer:
    return stepped(backend=request.param)


def grads(w1: Any) -> dict[str, Any]:
    return {"a": np.ones((4, 2), F4), "w1": w1, "z": np.ones(10, F4)}


def values(n: int, *width: int, dtype: Any = F4) -> np.ndarray:
    return np.ones((n, *(width or (WIDTH,))), dtype)


def masked() -> Any:
    return np.ma.masked_array(values(2), np.zeros((2, WIDTH), bool))


TWO = np.array([1, 2])
WRONG_INDEX: dict[str, tuple[Any, int]] = {
    "beyond the end": (np.array([0, ROWS]), 2),
    "negative": (np.array([0, -1]), 2),
    "the smallest": (np.array([np.iinfo(np.int64).min, 0]), 2),
    "the largest": (np.array([0, np.iinfo(np.int64).max]), 2),
    "negative in 32 bits": (np.array([-1, 0], np.int32), 2),
    "beyond 32 bits": (np.array([2**32, 0]), 2),
    "too long": (np.array([1, 2, 3]), 2),
    "too short": (np.array([1]), 2),
    "empty beside values": (np.array([], np.int64), 2),
    "floating-point": (np.array([1.0, 2.0]), 2),
    "of 16 bits": (np.array([1, 2], np.int16), 2),
    "without a sign": (np.array([1, 2], np.uint64), 2),
    "a mask": (np.array([True, False]), 2),
    "objects": (np.array([1, 2], object), 2),
    "of another byte order": (np.array([1, 2]).astype(">i8"), 2),
    "two axes": (np.array([[1], [2]]), 2),
    "no axis": (np.array(1), 1),
    "a list": ([1, 2], 2),
    "a slice": (slice(1, 3), 2),
    "None": (None, 2),
}

WRONG_VALUES: dict[str, Any] = {
    "narrower": values(2, WIDTH - 1),
    "wider": values(2, WIDTH + 1),
    "one axis": values(2).ravel()[:2],
    "flat": values(2).ravel(),
    "three axes": values(2, WIDTH, 1),
    "the array as a whole": values(ROWS),
    "float64": values(2, dtype=np.float64),
    "complex": values(2, dtype=np.complex64),
    "whole numbers": values(2, dtype=np.int32),
    "8 bits": values(2, dtype=ml_dtypes.float8_e4m3),
    "of another byte order": values(2).astype(">f4"),
    "Fortran order": np.asfortranarray(values(2)),
    "with gaps": values(4)[::2],
    "with gaps between columns": values(2, 2 * WIDTH)[:, ::2],
    "masked": masked(),
    "a list": [[1.0] * WIDTH] * 2,
    "None": None,
    "rows": schuss.Rows(TWO, values(2)),
}


@pytest.mark.parametrize("case", WRONG_INDEX)
def test_wrong_index(case: str, opt: Optimizer) -> None:
    index, n = WRONG_INDEX[case]
    with Unchanged(opt, ERRORS, 'grads["w1"]'):
        opt.step(grads(schuss.Rows(index, values(n))))


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_wrong_values(case: str, opt: Optimizer) -> None:
    with Unchanged(opt, ERRORS, 'grads["w1"]'):
        opt.step(grads(schuss.Rows(TWO, WRONG_VALUES[case])))


@pytest.mark.parametrize("dtype", [F4, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_narrow_values_for_float64(dtype: Any, backend: Backend) -> None:
    opt = schuss.SGD({"w1": np.ones((ROWS, WIDTH))}, backend=backend)
    with Unchanged(opt, ERRORS, 'grads["w1"]'):
        opt.step({"w1": schuss.Rows(TWO, values(2, dtype=dtype))})


@pytest.mark.parametrize("backend", BACKENDS)
def test_arrays_without_rows_in_order(backend: Backend) -> None:
    scalar, turned = np.ones(()), np.ones((3, 4), order="F")
    opt = schuss.SGD({"s": scalar, "f": turned}, backend=backend)
    some = schuss.Rows(np.array([0]), np.ones((1, 4)))
    with Unchanged(opt, ERRORS, 'grads["f"]'):
        opt.step({"s": np.ones(()), "f": some})
    with Unchanged(opt, ERRORS, 'grads["s"]'):
        opt.step({"s": schuss.Rows(np.array([0]), np.ones(1)), "f": None})


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_are_no_whole_blocks_of_codes(backend: Backend) -> None:
    """They would share a scale with their neighbours; whole ones don't."""
    for shape in ((64,), (ROWS, 63), (ROWS, 96), (ROWS, 8, 9)):
        opt = schuss.AdamW({"w1": np.ones(shape, F4)}, state_dtype="blockfloat8", backend=backend)
        opt.step({"w1": np.ones(shape, F4)})
        with Unchanged(opt, ValueError, 'grads["w1"]', "64"):
            opt.step({"w1": schuss.Rows(TWO, np.ones((2, *shape[1:]), F4))})
    for shape in ((ROWS, 64), (ROWS, 8, 16)):
        opt = schuss.AdamW({"w1": np.ones(shape, F4)}, state_dtype="blockfloat8", backend=backend)
        assert opt.step({"w1": schuss.Rows(TWO, np.ones((2, *shape[1:]), F4))})


@pytest.mark.parametrize("mode", ["counted", "decayed"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_count_are_whole_blocks_of_codes(backend: Backend, mode: Any) -> None:
    """Also where an array steps all of them, each with numbers of its own."""
    x = np.ones((ROWS, WIDTH), F4)
    with pytest.raises(ValueError, match=r"(params|grads)\[0\].*64|64.*(params|grads)\[0\]"):
        schuss.AdamW(x, state_dtype="blockfloat8", rows=mode, backend=backend).step(x.copy())
    assert (x == 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", SUMMING)
def test_rules_that_look_at_whole_arrays(rule: type[Optimizer], backend: Backend) -> None:
    opt = stepped(rule, backend=backend)
    why = "factors" if rule is schuss.Adafactor else rule.__name__  # of the matrix
    with Unchanged(opt, ValueError, 'grads["w1"]', why):
        opt.step(grads(schuss.Rows(TWO, values(2))))
    with Unchanged(opt, ValueError, 'grads["z"]', rule.__name__):
        opt.step(grads(values(ROWS)) | {"z": schuss.Rows(TWO, np.ones(2, F4))})


@pytest.mark.parametrize("rule", matrix.RULES, ids=lambda rule: rule.__name__)
def test_matrices(rule: type[Optimizer]) -> None:
    opt = stepped(rule)
    with Unchanged(opt, ValueError, 'grads["w1"]', rule.__name__):
        opt.step(grads(schuss.Rows(TWO, values(2))))
    assert opt.step(grads(values(ROWS)) | {"z": schuss.Rows(TWO, np.ones(2, F4))})


def test_modes() -> None:
    x = np.ones((ROWS, WIDTH))
    with pytest.raises(ValueError, match="rows"):
        schuss.Adam(x, rows="eager")  # type: ignore[arg-type]
    for rule in rules.RULES:
        if rule not in (schuss.SGD, schuss.Momentum, schuss.NAG, schuss.Adam, schuss.AdamW):
            with pytest.raises(ValueError, match=r"rows.*decayed"):
                rule(x, rows="decayed")
    for rule in SUMMING:
        with pytest.raises(ValueError, match=r"rows.*counted"):
            rule(x, rows="counted")
    wrong: list[tuple[type[Optimizer], dict[str, Any]]] = [
        (schuss.Adam, {"weight_decay": 0.1, "decay_mode": "l2"}),
        (schuss.Adam, {"l2": 0.1}),
        (schuss.Adam, {"l1": 0.1}),
        (schuss.Adam, {"bounds": (0.0, 1.0)}),
        (schuss.Adam, {"ema": 0.9}),
        (schuss.Adam, {"cautious": "mean"}),
        (schuss.Momentum, {"weight_decay": 0.1, "decay_mode": "l2"}),
    ]
    for rule, options in wrong:
        with pytest.raises(ValueError, match="rows"):
            rule(x, rows="decayed", **options)
    opt = schuss.Adam(x)
    with pytest.raises(ValueError, match=r"rows: .*fixed at construction"):
        opt.rows = "counted"
    assert "row_step" not in opt.state[0]
    for mode in ("counted", "decayed"):
        with pytest.raises(ValueError, match=r"rows: .*params\[0\]"):
            schuss.Adam(np.ones((3, 4), order="F"), rows=mode)
        scalar = schuss.Adam(np.ones(()), rows=mode)  # which has no rows, and steps as it does
        assert scalar.step(np.ones(()))
        assert "row_step" not in scalar.state[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_overlaps(backend: Backend) -> None:
    """Values that lie in what the step writes, and what zero_grad would write twice."""
    opt = stepped(backend=backend)
    x = opt.param_groups[0]["params"][1]
    with Unchanged(opt, ValueError, 'grads["w1"]', "overlaps"):
        opt.step(grads(schuss.Rows(TWO, x[:2])))
    with Unchanged(opt, ValueError, 'grads["w1"]', "overlaps"):
        opt.step(grads(schuss.Rows(TWO, opt.state["w1"]["exp_avg"][:2])))
    zeroing = stepped(zero_grad=True, backend=backend)
    read_only = values(2)
    read_only.flags.writeable = False
    with Unchanged(zeroing, ValueError, 'grads["w1"]', "read-only"):
        zeroing.step(grads(schuss.Rows(TWO, read_only)))
    assert opt.step(grads(schuss.Rows(TWO, read_only)))
    shared = np.ones(2 * WIDTH, F4)
    with Unchanged(zeroing, ValueError, "overlaps"):
        zeroing.step(
            grads(schuss.Rows(TWO, shared.reshape(2, WIDTH)))
            | {"z": schuss.Rows(np.arange(2 * WIDTH), shared)}
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_index_that_is_read_only(backend: Backend) -> None:
    index = TWO.copy()
    index.flags.writeable = False
    assert stepped(zero_grad=True, backend=backend).step(grads(schuss.Rows(index, values(2))))


def test_what_rows_are() -> None:
    index, some = TWO.copy(), values(2)
    rows = schuss.Rows(index, some)
    assert rows.index is index
    assert rows.values is some
    assert repr(rows).startswith("Rows(")
    assert not isinstance(rows, tuple)
    with pytest.raises(TypeError):
        len(rows)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        rows.other = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("role", ["params", "pieces"])
def test_rows_in_other_places(role: str, opt: Optimizer) -> None:
    rows = schuss.Rows(TWO, values(2))
    if role == "params":
        with pytest.raises(TypeError, match=r'params\["w1"\]'):
            schuss.SGD({"w1": rows})
        return
    with Unchanged(opt, ERRORS, "w1"):
        opt.step(pieces=[grads(rows), grads(values(ROWS))])


def by_hand(index: list[int], some: np.ndarray) -> np.ndarray:
    """Gradient descent with lr 1, an element at a time."""
    x = np.ones((ROWS, WIDTH))
    for row, v in zip(index, some, strict=True):
        x[row] -= v
    return x


@given(
    index=st.lists(st.integers(-2, ROWS + 1), max_size=25),
    kind=st.sampled_from([np.int32, np.int64]),
    backend=st.sampled_from(BACKENDS),
)
def test_any_index(index: list[int], kind: Any, backend: Backend) -> None:
    """It steps by it, or says that there is no such row."""
    x = np.ones((ROWS, WIDTH))
    opt = schuss.SGD({"x": x}, lr=1.0, backend=backend)
    some = np.arange(len(index) * WIDTH, dtype=float).reshape(-1, WIDTH) / 4  # sums are exact
    rows = schuss.Rows(np.array(index, kind), some)
    if all(0 <= row < ROWS for row in index):
        assert opt.step({"x": rows})
        assert (x == by_hand(index, some)).all()
    else:
        wrong = next(row for row in index if not 0 <= row < ROWS)
        with Unchanged(opt, ERRORS, 'grads["x"]', str(wrong)):
            opt.step({"x": rows})


@given(st.integers(-(2**63), 2**63 - 1).filter(lambda row: not 0 <= row < ROWS))
def test_no_such_row(row: int) -> None:
    opt = schuss.SGD({"x": np.ones((ROWS, WIDTH))})
    with Unchanged(opt, ERRORS, 'grads["x"]'):
        opt.step({"x": schuss.Rows(np.array([0, row, 1]), np.ones((3, WIDTH)))})


# ---- What can't be had by a wrong array


def one(row: int) -> schuss.Rows:
    return schuss.Rows(np.array([row]), np.ones((1, WIDTH), F4))


def test_rows_without_anything_in_them(opt: Optimizer) -> None:
    never = schuss.Rows.__new__(schuss.Rows)
    with Unchanged(opt, TypeError, 'grads["w1"]'):
        opt.step(grads(never))
    with pytest.raises(TypeError, match="never initialized"):
        repr(never)


def test_an_index_with_a_mask(opt: Optimizer) -> None:
    masked: Any = np.ma.array([0, 1], mask=[False, True])
    with Unchanged(opt, TypeError, 'grads["w1"].index'):
        opt.step(grads(schuss.Rows(masked, np.ones((2, WIDTH), F4))))


def test_bound_rows_are_looked_at_when_they_are_bound() -> None:
    with pytest.raises(ValueError, match=r"grads\[0\].index: row 12"):
        schuss.SGD([np.ones((ROWS, WIDTH), F4)], grads=[one(12)])


class Longer(collections.abc.Sequence[float]):
    """Has more in it than it says."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: Any) -> Any:
        return [1.0, 2.0, 3.0][i]


def test_weights_are_as_many_as_there_are() -> None:
    opt = stepped()
    with Unchanged(opt, ValueError, "weights: 3 for 2 pieces"):
        opt.step(pieces=[grads(None)] * 2, weights=Longer())
    with Unchanged(opt, ValueError, "weights[0]"):  # which float32 doesn't have
        opt.step(pieces=[grads(None)] * 2, weights=[1e300, 1.0])


def test_counts_of_rows_are_loaded_as_what_they_are() -> None:
    counted = schuss.Adam({"t": np.ones((ROWS, WIDTH), F4)}, rows="counted")
    for row in (0, 0, 1):
        counted.step({"t": one(row)})
    decayed = schuss.Adam({"t": np.ones((ROWS, WIDTH), F4)}, rows="decayed")
    with pytest.raises(ValueError, match=r"row_step.*row_last"):
        decayed.load_state_dict(counted.state_dict())
    wrong = counted.state_dict()
    wrong["state"]["t"]["row_step"][0] = -1
    with pytest.raises(ValueError, match="row_step: -1"):
        counted.load_state_dict(wrong)


def test_state_without_counts_goes_on_as_if_no_row_had_missed_a_step() -> None:
    lazy = schuss.Adam({"t": np.ones((ROWS, WIDTH), F4)})
    for _ in range(5):
        lazy.step({"t": one(0)})
    decayed = schuss.Adam({"t": np.ones((ROWS, WIDTH), F4)}, rows="decayed")
    decayed.load_state_dict(lazy.state_dict(), strict=False)
    for opt in (lazy, decayed):
        opt.step({"t": one(0)})
    a, b = (opt.state["t"]["exp_avg"] for opt in (lazy, decayed))
    assert (a == b).all()


def test_a_group_whose_rows_cant_be_counted_is_refused() -> None:
    opt = schuss.Adam([{"params": {"t": np.ones((ROWS, WIDTH), F4)}}], rows="decayed")
    with Unchanged(opt, ValueError, "rows"):
        opt.add_param_group({"params": {"u": np.ones((2, 2), F4)}, "weight_decay": 0.1})


def test_what_is_counted_of_rows_may_go_in_the_middle_of_a_step() -> None:
    class Mine(schuss.Adam):
        hook: Any = None

        @staticmethod
        def scalars(h: Any, t: int, memory: Any) -> dict[str, float]:
            if Mine.hook:
                Mine.hook()
            return schuss.Adam.scalars(h, t, memory)

    opt = Mine({"t": np.ones((ROWS, WIDTH), F4)}, rows="counted")
    opt.step({"t": one(0)})
    calls = iter(range(100))

    def hook() -> None:
        if next(calls) == 1:
            opt.state["t"]["row_step"].resize(0, refcheck=False)

    Mine.hook = hook
    with pytest.raises(ValueError, match="row_step"):
        opt.step({"t": schuss.Rows(np.arange(ROWS), np.ones((ROWS, WIDTH), F4))})
    assert opt.iterations == 1


def test_rows_are_collected_with_what_leads_back_from_them() -> None:
    class Own(np.ndarray):
        opt: Any

    values = np.ones((1, WIDTH), F4).view(Own)
    bound = schuss.Rows(np.array([1]), values)
    opt = schuss.Adam([np.ones((ROWS, WIDTH), F4)], grads=[bound])
    values.opt = opt
    there = weakref.ref(opt)
    del opt, values, bound
    gc.collect()
    assert there() is None
