"""What is wrong with an array, and what to do about it: the type, the array, the remedy."""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ml_dtypes import float8_e4m3fn

import schuss
from engine.unchanged import Unchanged
from schuss.engine.optimizer import Optimizer

F4 = np.float32


def odd_byte() -> np.ndarray:
    return np.frombuffer(bytearray(41), F4, count=10, offset=1)


def read_only() -> np.ndarray:
    a = np.zeros(10, F4)
    a.flags.writeable = False
    return a


def record() -> np.ndarray:
    return np.zeros(10, [("a", "f4")])


NO_ARRAYS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("scalar", lambda: 1.0, TypeError, "not a numpy.ndarray (float)"),
    ("numpy scalar", lambda: F4(1), TypeError, "not a numpy.ndarray (float32)"),
    ("string", lambda: "w", TypeError, "not a numpy.ndarray (str)"),
    ("memory", lambda: mmap.mmap(-1, 4096), TypeError, "not a numpy.ndarray (mmap)"),
]


WRONG_ARRAYS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("object", lambda: np.zeros(10, object), TypeError, "dtype object is not supported"),
    ("complex", lambda: np.zeros(10, complex), TypeError, "dtype complex128 is not supported"),
    ("int", lambda: np.zeros(10, int), TypeError, "wanted float32, float64, float16 or bfloat16"),
    ("bool", lambda: np.zeros(10, bool), TypeError, "dtype bool is not supported"),
    ("long double", lambda: np.zeros(10, np.longdouble), TypeError, "is not supported"),
    ("8 bits", lambda: np.zeros(10, float8_e4m3fn), TypeError, "float8_e4m3fn is not supported"),
    ("record", record, TypeError, "is not supported"),
    ("masked", lambda: np.ma.zeros(10, F4), TypeError, "a masked array"),
    ("big-endian", lambda: np.zeros(10, ">f4"), ValueError, "not in native byte order (dtype >f4)"),
    ("stride 0", lambda: np.broadcast_to(F4(0), 10), ValueError, "not contiguous (strides (0,)"),
    ("negative stride", lambda: np.zeros(10, F4)[::-1], ValueError, "(strides (-4,), shape (10,))"),
    ("step 2", lambda: np.zeros(20, F4)[::2], ValueError, "pass a contiguous array"),
    ("column", lambda: np.zeros((10, 3), F4)[:, 0], ValueError, "not contiguous"),
    ("odd byte", odd_byte, ValueError, "not aligned"),
]


READ_ONLY: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("flag", read_only, ValueError, "read-only, but the step writes to it"),
    ("bytes", lambda: np.frombuffer(bytes(40), F4), ValueError, "read-only"),
]


def cases(
    *tables: list[tuple[str, Callable[[], Any], type[Exception], str]],
) -> pytest.MarkDecorator:
    rows = [pytest.param(*row[1:], id=row[0]) for table in tables for row in table]
    return pytest.mark.parametrize(("make", "error", "says"), rows)


@cases(NO_ARRAYS, WRONG_ARRAYS, READ_ONLY)
def test_parameter(make: Callable[[], Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error) as info:
        schuss.AdamW({"b": np.zeros(3, F4), "w1": make()})
    assert str(info.value).startswith('params["w1"]: ')
    assert says in str(info.value)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ([], "params: no array"),
        ({}, "params: no array"),
        ([{"params": []}], "params: no array"),
        ({"a": {"b": []}}, "params: no array"),
        ({"a.b": np.zeros(1), "a": {"b": np.zeros(1)}}, 'params["a.b"]: two arrays'),
        (
            [{"params": {"w": np.zeros(1)}}, {"params": {"w": np.zeros(1)}}],
            'params["w"]: two groups',
        ),
    ],
)
def test_parameters_together(params: Any, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        schuss.SGD(params)


def overlapping() -> dict[str, Any]:
    a = np.zeros(10, F4)
    d = np.zeros(10)
    m = np.zeros((4, 4), F4)
    return {
        "twice": ([a, a], "params[1]: overlaps params[0]"),
        "slices": ([a[:-1], a[1:]], "params[1]: overlaps params[0]"),
        "one element": ([a[:6], a[5:]], "params[1]: overlaps params[0]"),
        "one element of 8 bytes": ([d[:6], d[5:]], "params[1]: overlaps params[0]"),
        "inside": ([a[2:4], a], "overlaps"),
        "row of a matrix": ([m, m[2]], "overlaps"),
        "transposed": ([m, m.T], "overlaps"),
    }


@pytest.mark.parametrize("case", overlapping())
def test_overlap(case: str) -> None:
    params, says = overlapping()[case]
    with pytest.raises(ValueError, match=re.escape(says)):
        schuss.Adam(params)


@cases(NO_ARRAYS, WRONG_ARRAYS)
def test_gradient(
    make: Callable[[], Any], error: type[Exception], says: str, opt: Optimizer
) -> None:
    good = np.ones(10, F4)
    with Unchanged(opt, error, 'grads["w1"]: ', says):
        opt.step({"a": good, "w1": make(), "z": good})


@pytest.mark.parametrize(
    ("gradient", "error", "says"),
    [
        (np.ones(11, F4), ValueError, "shape (11,), but params[0] has shape (10,)"),
        (np.ones((2, 5), F4), ValueError, "shape (2, 5), but params[0] has shape (10,)"),
        (np.ones((), F4), ValueError, "shape (), but params[0] has shape (10,)"),
        (np.ones(10), TypeError, "float64, but params[0] is float32; pass the gradient as .astype"),
    ],
)
def test_gradient_against_parameter(gradient: Any, error: type[Exception], says: str) -> None:
    opt = schuss.Adam([np.ones(10, F4)])
    with Unchanged(opt, error, "grads[0]: ", says):
        opt.step([gradient])


def test_the_most_frequent_mistakes_say_which_side_to_change() -> None:
    x, dy = np.ones((7, 4), F4), np.ones((7, 3), F4)
    opt = schuss.SGD({"w": np.zeros((4, 3), F4)})
    with Unchanged(opt, ValueError, 'grads["w"]: in Fortran order', "x.T @ dy, not (dy.T @ x).T"):
        opt.step({"w": (dy.T @ x).T})
    with Unchanged(opt, TypeError, 'grads["w"]: float64', "np.float32", "parameter float64"):
        opt.step({"w": x.T @ dy.astype(float)})
    fortran = schuss.SGD({"w": np.zeros((4, 3), F4, order="F")})
    with Unchanged(fortran, ValueError, "in C order", "np.asfortranarray"):
        fortran.step({"w": np.zeros((4, 3), F4)})
    assert fortran.step({"w": (dy.T @ x).T})


def test_gradient_overlaps_what_is_written() -> None:
    a = np.zeros(20, F4)
    opt = schuss.Adam({"w": a[:10]})
    with Unchanged(opt, ValueError, 'grads["w"]: overlaps params["w"]'):
        opt.step({"w": a[:10]})
    with Unchanged(opt, ValueError, 'grads["w"]: overlaps params["w"]'):
        opt.step({"w": a[9:19]})
    with Unchanged(opt, ValueError, 'grads["w"]: overlaps state["w"]["exp_avg_sq"]'):
        opt.step({"w": opt.state["w"]["exp_avg_sq"]})
    assert opt.step({"w": a[10:]})
    with Unchanged(opt, ValueError, 'grads["w"]: overlaps params["w"]'):
        opt.step({"w": a[9:19]})
    assert opt.step({"w": a[10:]})
    with pytest.raises(ValueError, match="overlaps params"):
        schuss.Adam({"w": a[:10]}, grads={"w": a[5:15]})


@pytest.mark.parametrize(
    ("grads", "says"),
    [
        (None, "grads: none given and none bound"),
        ({"a": None, "w1": None}, "grads: missing 'z'"),
        ({"a": None, "w1": None, "z": None, "zz": None}, "grads: unknown 'zz'"),
        ([None] * 3, "grads: list where params has a mapping"),
        (np.ones(10, F4), "grads: ndarray where params has a mapping"),
    ],
)
def test_structure_of_gradients(grads: Any, says: str, opt: Optimizer) -> None:
    with Unchanged(opt, ValueError, says):
        opt.step(grads)


def test_structure_of_nested_gradients() -> None:
    opt = schuss.SGD({"layers": [{"w": np.zeros(2)}, {"w": np.zeros(2)}]})
    wrong: list[tuple[Any, str]] = [
        ({"layers": [{"w": None}]}, 'grads["layers"]: 1 where params has 2'),
        ({"layers": {"w": None}}, 'grads["layers"]: dict where params has a sequence'),
        ({"layers": [{"w": None}, {}]}, "grads[\"layers.1\"]: missing 'w'"),
        (
            {"layers": [{"w": [1.0]}, {"w": None}]},
            'grads["layers.0.w"]: not a numpy.ndarray (list)',
        ),
    ]
    for grads, says in wrong:
        with Unchanged(opt, (ValueError, TypeError), says):  # type: ignore[arg-type]
            opt.step(grads)
