"""What is wrong with an array, and what to do about it: the type, the array, the remedy.

A remedy for what a step writes never ends in a copy beside the user's array, which would be trained
in its place: "create it as ... and keep using that".
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
from ml_dtypes import float8_e4m3fn

import schuss
from engine.unchanged import Unchanged
from schuss.engine.optimizer import Optimizer

F4 = np.float32
KEEP = "and keep using that w"


class Wrong(NamedTuple):
    """Something that is no array of the right kind, and what messages say of it."""

    make: Callable[[], Any]
    error: type[Exception]
    says: str
    parameter: str  # the remedy where it is one
    gradient: str


def odd_byte() -> np.ndarray:
    return np.frombuffer(bytearray(41), F4, count=10, offset=1)


def read_only() -> np.ndarray:
    a = np.zeros(10, F4)
    a.flags.writeable = False
    return a


def record() -> np.ndarray:
    return np.zeros(10, [("a", "f4")])


def of(module: str, name: str) -> Callable[[], Any]:
    """What makes an instance of a user's class whose base is of another package."""
    return type("Own", (type(name, (), {"__module__": module}),), {})


def no_array(make: Callable[[], Any], says: str, parameter: str, gradient: str) -> Wrong:
    return Wrong(make, TypeError, f"not a numpy.ndarray ({says}); ", parameter, gradient)


def foreign(module: str, expression: str, *, shares: bool = False) -> Wrong:
    kept = f"pass {expression}, which shares its memory"
    created = f"create it as w = {expression} {KEEP}"
    return no_array(of(module, "T"), "Own", kept if shares else created, f"pass {expression}")


def number(make: Callable[[], Any], says: str) -> Wrong:
    made = "np.array(x, np.float32)"
    kept = (
        "a sum or mean keeps its dimensions with keepdims=True; for a parameter without any pass "
    )
    return no_array(make, says, f"create it as w = {made} {KEEP}", kept + made)


def dtype(make: Callable[[], Any], name: str) -> Wrong:
    wanted = "wanted float32, float64, float16 or bfloat16"
    return Wrong(make, TypeError, f"dtype {name} is not supported; ", wanted, wanted)


def complex_of(dtype: str, view: str) -> Wrong:
    says = f"dtype {dtype} is not supported; "
    remedy = f"pass {view}, which has real and imaginary parts side by side, in z's memory"
    return Wrong(lambda: np.zeros(10, dtype), TypeError, says, remedy, remedy)


def strided(make: Callable[[], Any], strides: str) -> Wrong:
    made = "np.ascontiguousarray(x)"
    parameter = f"pass the whole array that it is a view of, or create it as w = {made} {KEEP}"
    return Wrong(make, ValueError, f"not contiguous (strides {strides}", parameter, f"pass {made}")


ASK, OWN = "pass the array that is to be used in place", "pass the array of its gradient"
PAIRS = "pass a mapping of names to arrays, such as dict(pairs)"
AS_LIST = "np.asarray(x, np.float32)"
DATA = "whose mask would be ignored; pass its .data, which shares its memory"
NATIVE = "x.astype(x.dtype.newbyteorder('='))"

NO_ARRAYS = {
    "float": number(lambda: 1.0, "float"),
    "int": number(lambda: 1, "int"),
    "float of NumPy": number(lambda: F4(1), "float32"),
    "string": no_array(lambda: "w", "str", PAIRS, PAIRS),
    "memory": no_array(lambda: mmap.mmap(-1, 4096), "mmap", ASK, OWN),
    "torch": foreign("torch.nn.parameter", "x.detach().numpy()", shares=True),
    "tensorflow": foreign("tensorflow.python.ops", "x.numpy()"),
    "jax": foreign("jax._src", "np.asarray(x)"),
    "jaxlib": foreign("jaxlib._jax", "np.asarray(x)"),
    "cupy": foreign("cupy", "x.get()"),
    "pandas": foreign("pandas", "x.to_numpy()"),
    "polars": foreign("polars.series", "x.to_numpy()"),
    "xarray": foreign("xarray.core.dataarray", "x.to_numpy()"),
    "sparse": foreign("scipy.sparse._csr", "x.toarray()"),
    "of a name that begins like another": no_array(of("torchlight", "T"), "Own", ASK, OWN),
}
ARRAYS = {
    "object": dtype(lambda: np.zeros(10, object), "object"),
    "complex64": complex_of("complex64", "z.view(np.float32)"),
    "complex128": complex_of("complex128", "z.view(np.float64)"),
    "int64": dtype(lambda: np.zeros(10, int), "int64"),
    "bool": dtype(lambda: np.zeros(10, bool), "bool"),
    "long double": dtype(lambda: np.zeros(10, np.longdouble), str(np.dtype(np.longdouble))),
    "8 bits": dtype(lambda: np.zeros(10, float8_e4m3fn), "float8_e4m3fn"),
    "record": dtype(record, "[('a', '<f4')]"),
    "masked": Wrong(lambda: np.ma.zeros(10, F4), TypeError, "a masked array, ", DATA, DATA),
    "big-endian": Wrong(
        lambda: np.zeros(10, ">f4"),
        ValueError,
        "not in native byte order (dtype >f4); ",
        f"create it as w = {NATIVE} {KEEP}",
        f"pass {NATIVE}",
    ),
    "stride 0": strided(lambda: np.broadcast_to(F4(0), 10), "(0,), shape (10,)); "),
    "negative stride": strided(lambda: np.zeros(10, F4)[::-1], "(-4,), shape (10,)); "),
    "step 2": strided(lambda: np.zeros(20, F4)[::2], "(8,), shape (10,)); "),
    "column": strided(lambda: np.zeros((10, 3), F4)[:, 0], "(12,), shape (10,)); "),
    "odd byte": Wrong(
        odd_byte,
        ValueError,
        "not aligned to its element; ",
        f"create it as w = x.copy() {KEEP}",
        "pass x.copy()",
    ),
}
ALLOW = (
    "allow that (x.flags.writeable = True), or where its memory can't be written, create it as w = "
    f"x.copy() {KEEP}"
)
READ_ONLY = {
    "flag": Wrong(read_only, ValueError, "read-only, but the step writes to it; ", ALLOW, ""),
    "bytes": Wrong(
        lambda: np.frombuffer(bytes(40), F4), ValueError, "read-only, but the step", ALLOW, ""
    ),
}
# In flat structures a list is one more level, and each of its members an array.
LISTS = {
    "list": no_array(lambda: [1.0] * 10, "list", "", f"pass {AS_LIST}"),
    "tuple": no_array(lambda: (1.0,), "tuple", "", f"pass {AS_LIST}"),
    "list of it": no_array(
        lambda: [np.zeros(10, F4)], "list", "", "pass the array itself, without the list around it"
    ),
}


def each(*tables: Mapping[str, Wrong]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "wrong", [pytest.param(w, id=name) for table in tables for name, w in table.items()]
    )


@pytest.fixture
def good() -> np.ndarray:
    return np.ones(10, F4)


# ---- Parameters


@each(NO_ARRAYS, ARRAYS, READ_ONLY)
def test_parameter(wrong: Wrong) -> None:
    with pytest.raises(wrong.error) as info:
        schuss.AdamW({"b": np.zeros(3, F4), "w1": wrong.make()})
    assert str(info.value).startswith(f'params["w1"]: {wrong.says}')
    assert wrong.parameter in str(info.value)


def test_no_parameter_is_copied() -> None:
    """Who follows the advice trains the array that is used: the message says so where a copy is."""
    for wrong in (NO_ARRAYS | ARRAYS | READ_ONLY).values():
        with pytest.raises(wrong.error) as info:
            schuss.AdamW([wrong.make()])
        text = str(info.value)
        assert ("create it as w = " in text) == (KEEP in text)
        copies = ("copy(", "astype(", "asarray(", "np.array(", "contiguousarray(", "to_numpy(")
        assert KEEP in text or not any(word in text for word in copies)


@each({name: w for name, w in ARRAYS.items() if w.error is ValueError}, READ_ONLY)
def test_state_of_a_stateless_call(wrong: Wrong) -> None:
    """It is the user's, and written, too."""
    x, g, m = (np.zeros(10, F4) for _ in range(3))
    with pytest.raises(wrong.error) as info:
        schuss.functional.adam(x, g, m, wrong.make(), step=1)
    assert str(info.value).startswith(f"exp_avg_sq: {wrong.says}")
    assert wrong.parameter in str(info.value)


@pytest.mark.parametrize(
    ("state", "error", "says"),
    [
        (np.zeros((4, 3)), TypeError, "create it as w = x.astype(np.float32) and keep"),
        (
            np.zeros((4, 3), F4, "F"),
            ValueError,
            "create it as w = np.ascontiguousarray(x) and keep",
        ),
    ],
)
def test_state_against_parameter(state: np.ndarray, error: type[Exception], says: str) -> None:
    x = np.zeros((4, 3), F4)
    with pytest.raises(error) as info:
        schuss.functional.momentum(x, x.copy(), state, step=1)
    assert str(info.value).startswith("momentum_buffer: ")
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


def test_pairs_of_name_and_array() -> None:
    pairs = iter([("w", np.zeros(3))])
    with pytest.raises(TypeError) as info:
        schuss.SGD(pairs)
    assert str(info.value) == f'params["0.0"]: not a numpy.ndarray (str); {PAIRS}'


def overlapping() -> dict[str, Any]:
    a = np.zeros(10, F4)
    d = np.zeros(10)
    m = np.zeros((4, 4), F4)
    apart = "params[1]: overlaps params[0], and the step writes to both; pass arrays that share no"
    tied = (
        "params[1]: overlaps params[0]: it is the same array, which the step would move twice; "
        "register it once, and add up its gradients"
    )
    return {
        "twice": ([a, a], tied),
        "a view of all": ([a, a[:]], tied),
        "transposed": ([m, m.T], tied),
        "slices": ([a[:-1], a[1:]], apart),
        "one element": ([a[:6], a[5:]], apart),
        "one element of 8 bytes": ([d[:6], d[5:]], apart),
        "inside": ([a[2:4], a], "overlaps"),
        "row of a matrix": ([m, m[2]], apart),
    }


@pytest.mark.parametrize("case", overlapping())
def test_overlap(case: str) -> None:
    params, says = overlapping()[case]
    with pytest.raises(ValueError, match=re.escape(says)):
        schuss.Adam(params)


# ---- Gradients


@each(NO_ARRAYS, ARRAYS, LISTS)
def test_gradient(wrong: Wrong, opt: Optimizer, good: np.ndarray) -> None:
    says = f'grads["w1"]: {wrong.says}'
    with Unchanged(opt, wrong.error, says, wrong.gradient):
        opt.step({"a": good, "w1": wrong.make(), "z": good})


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


# ---- Structures


MAPPING = "where params has a mapping; pass a mapping with its keys: 'a', 'w1', 'z'"


@pytest.mark.parametrize(
    ("grads", "says"),
    [
        (None, "grads: none given and none bound"),
        ({"a": None, "w1": None}, "grads: missing 'z'; wanted the keys of params"),
        ({"a": None, "w1": None, "z": None, "zz": None}, "grads: unknown 'zz'; wanted the keys"),
        ([None] * 3, f"grads: list {MAPPING}"),
        (np.ones(10, F4), f"grads: ndarray {MAPPING}"),
    ],
)
def test_structure_of_gradients(grads: Any, says: str, opt: Optimizer) -> None:
    with Unchanged(opt, ValueError, says):
        opt.step(grads)


def test_structure_of_nested_gradients() -> None:
    opt = schuss.SGD({"layers": [{"w": np.zeros(2)}, {"w": np.zeros(2)}]})
    one = "1 where params has 2; pass one for each, or None"
    sequence = "dict where params has a sequence; pass a list of 2 in its order"
    wrong: list[tuple[Any, str]] = [
        ({"layers": [{"w": None}]}, f'grads["layers"]: {one}'),
        ({"layers": {"w": None}}, f'grads["layers"]: {sequence}'),
        ({"layers": [{"w": None}, {}]}, "grads[\"layers.1\"]: missing 'w'"),
        (
            {"layers": [{"w": [1.0]}, {"w": None}]},
            'grads["layers.0.w"]: not a numpy.ndarray (list)',
        ),
    ]
    for grads, says in wrong:
        with Unchanged(opt, (ValueError, TypeError), says):  # type: ignore[arg-type]
            opt.step(grads)


@pytest.mark.parametrize("grads", [[np.ones(3)], (np.ones(3),), {"w": np.ones(3)}])
def test_one_array_is_no_structure(grads: Any) -> None:
    opt = schuss.SGD(np.zeros(3))
    says = f"grads: {type(grads).__name__} where params is one array; pass the array itself"
    with Unchanged(opt, ValueError, says):
        opt.step(grads)


def test_long_lists_of_names_are_cut() -> None:
    opt = schuss.SGD({f"l{i}": np.zeros(1) for i in range(300)})
    first = ", ".join(f"missing 'l{i}'" for i in range(5))
    for grads in ({}, {"w": None}):
        with pytest.raises(ValueError, match="grads: ") as info:
            opt.step(grads)
        more = 295 + len(grads)
        assert str(info.value) == f"grads: {first}, ... and {more} more; wanted the keys of params"
    with pytest.raises(
        ValueError, match=r"its keys: 'l0', 'l1', 'l2', 'l3', 'l4', \.\.\. and 295 more"
    ):
        opt.step([])
    saved = opt.state_dict()
    saved["state"] = {}
    with pytest.raises(
        ValueError, match=r"state_dict: missing 'l0'; .*'l19'; \.\.\. and 280 more$"
    ):
        opt.load_state_dict(saved)
    five = schuss.SGD({f"l{i}": np.zeros(1) for i in range(5)})
    with pytest.raises(ValueError, match="missing 'l3', missing 'l4'; wanted"):
        five.step({})


def test_rebind_tells_the_view_of_complex_numbers() -> None:
    opt = schuss.SGD([np.ones(2)])
    with pytest.raises(ValueError, match=r"complex128 .* pass z.view\(np.float64\), which has"):
        opt.rebind([np.ones(2, complex)])


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_the_view_of_complex_numbers_steps(dtype: Any) -> None:
    """What the message says is right: the array that was passed moves, in both of its parts."""
    z, g = np.zeros(3, dtype), np.full(3, 1 - 2j, dtype)
    real: Any = np.float32 if dtype is np.complex64 else np.float64
    schuss.SGD([z.view(real)], lr=0.5).step([g.view(real)])
    assert (z == -0.5 + 1j).all()
