"""Errors are values for the user: the type, the argument, what was wrong; and nothing changed."""

from __future__ import annotations

import copy
import functools
import math
import mmap
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ml_dtypes import float8_e4m3fn

import schuss
from schuss import rules
from schuss.engine.declare import (
    REQUIRED,
    Backend,
    Bounded,
    Choice,
    Constant,
    Flag,
    Hyperparameter,
    Pair,
    Several,
)
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


def snapshot(opt: Optimizer) -> Any:
    """Everything that an error must leave as it was."""
    arrays = [(x.tobytes(), x.shape, x.dtype) for g in opt.param_groups for x in g["params"]]
    state = {
        name: {key: v.tobytes() if isinstance(v, np.ndarray) else v for key, v in s.items()}
        for name, s in opt.state.items()
    }
    groups = [(repr(g), g["param_names"]) for g in opt.param_groups]
    bound = [p.g.tobytes() for p in opt._parameters if p.g is not None]
    options = {name: getattr(opt, name) for name in opt.options}
    counters = opt.iterations, opt.skipped_steps, opt.grad_norm, opt.state_dict()["shared"]
    return arrays, bound, state, groups, counters, options


class Unchanged:
    """Raises an error of this type that names the array and says this; then nothing has changed."""

    def __init__(self, opt: Optimizer, error: type[Exception], *says: str) -> None:
        self.opt, self.before, self.says = opt, snapshot(opt), says
        self.raises = pytest.raises(error)

    def __enter__(self) -> None:
        self.info = self.raises.__enter__()

    def __exit__(self, *exception: Any) -> bool:
        swallowed = self.raises.__exit__(*exception)
        for part in self.says:
            assert part in str(self.info.value)
        assert snapshot(self.opt) == self.before
        return bool(swallowed)


def stepped(params: Any, **options: Any) -> Optimizer:
    """An optimizer with two steps behind it, so that there is something to lose."""
    opt = schuss.AdamW(params, **options)
    for _ in range(2):
        opt.step({name: np.ones_like(x) for name, x in params.items()})
    return opt


@pytest.fixture(params=["compiled", "numpy"])
def opt(request: pytest.FixtureRequest) -> Optimizer:
    return stepped(
        {"a": np.ones(10, F4), "w1": np.ones(10, F4), "z": np.ones(10, F4)}, backend=request.param
    )


# ---- Parameters


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


def test_adjacent_slices_are_fine() -> None:
    a = np.zeros(10, F4)
    opt = schuss.SGD([a[:4], a[4:4], a[4:]], lr=1.0)
    opt.step([np.ones(4, F4), np.ones(0, F4), np.ones(6, F4)])
    assert (a == -1).all()


# ---- Gradients


@cases(NO_ARRAYS, WRONG_ARRAYS)
def test_gradient(
    make: Callable[[], Any], error: type[Exception], says: str, opt: Optimizer
) -> None:
    good = np.ones(10, F4)
    with Unchanged(opt, error, 'grads["w1"]: ', says):
        opt.step({"a": good, "w1": make(), "z": good})


def test_read_only_gradient_is_fine() -> None:
    opt = schuss.SGD(np.zeros(10, F4), lr=1.0)
    assert opt.step(np.broadcast_to(F4(1), (1,)).repeat(10))
    assert opt.step(read_only())


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


def test_gradients_may_overlap_one_another() -> None:
    g = np.ones(10, F4)
    assert schuss.SGD([np.zeros(10, F4), np.zeros(10, F4), np.zeros(4, F4)]).step([g, g, g[2:6]])


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
    for grads, says in [
        ({"layers": [{"w": None}]}, 'grads["layers"]: 1 where params has 2'),
        ({"layers": {"w": None}}, 'grads["layers"]: dict where params has a sequence'),
        ({"layers": [{"w": None}, {}]}, "grads[\"layers.1\"]: missing 'w'"),
        (
            {"layers": [{"w": [1.0]}, {"w": None}]},
            'grads["layers.0.w"]: not a numpy.ndarray (list)',
        ),
    ]:
        with Unchanged(opt, (ValueError, TypeError), says):  # type: ignore[arg-type]
            opt.step(grads)


# ---- What happens to registered arrays between steps


def resized(a: np.ndarray) -> None:
    a.resize(7, refcheck=False)


def reshaped(a: np.ndarray) -> None:
    a.shape = (2, 5)


def frozen(a: np.ndarray) -> None:
    a.flags.writeable = False


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
@pytest.mark.parametrize("which", ["params", "exp_avg"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (resized, "shape (7,) is no longer the registered (10,)"),
        (reshaped, "shape (2, 5) is no longer the registered (10,)"),
        (frozen, "read-only"),
    ],
)
def test_changed_between_steps(
    change: Callable[[np.ndarray], None], says: str, which: str, opt: Optimizer
) -> None:
    array = opt.param_groups[0]["params"][1] if which == "params" else opt.state["w1"][which]
    change(array)
    good = np.ones(10, F4)
    with Unchanged(opt, ValueError, '"w1"]', says):
        opt.step({"a": good, "w1": good, "z": good})
    assert opt.step({"a": good, "w1": None, "z": good})


def test_resized_there_and_back_is_noticed() -> None:
    """The memory has moved, the contract holds: the step follows the array."""
    x = np.zeros(10, F4)
    opt = schuss.SGD(x, lr=1.0)
    opt.step(np.ones(10, F4))
    x.resize(1 << 20, refcheck=False)
    x.resize(10, refcheck=False)
    opt.step(np.ones(10, F4))
    assert (x == -2).all()


@pytest.mark.parametrize("which", ["params", "exp_avg"])
def test_memory_that_moved_is_looked_at_for_overlaps(which: str, opt: Optimizer) -> None:
    moved = opt.param_groups[0]["params"][1] if which == "params" else opt.state["w1"][which]
    good = np.ones(10, F4)
    moved.resize(1 << 20, refcheck=False)
    moved.resize(10, refcheck=False)
    with Unchanged(opt, ValueError, 'grads["z"]: overlaps', '"w1"]'):
        opt.step({"a": good, "w1": good, "z": moved[:]})
    assert opt.step({"a": good, "w1": good, "z": good})


class Meddling(np.ndarray):
    """A gradient that resizes a parameter when it is looked at."""

    target: np.ndarray

    def __getattribute__(self, name: str) -> Any:
        if name == "dtype":
            super().__getattribute__("target").resize(1 << 16, refcheck=False)
        return super().__getattribute__(name)


def test_python_that_runs_within_the_check_meddles_in_vain() -> None:
    x, y = np.zeros(10, F4), np.zeros(10, F4)
    opt = schuss.SGD([x, y], lr=1.0)
    g = np.ones(10).view(Meddling)
    g.target = x
    with pytest.raises(TypeError, match="float64"):
        opt.step([np.ones(10, F4), g])
    with Unchanged(opt, ValueError, "params[0]: shape (65536,) is no longer"):
        opt.step([np.ones(10, F4), np.ones(10, F4)])


# ---- Hyperparameters and options


WRONG_NUMBERS = [-1.0, np.nan, np.inf, "1", True, None, 1j, np.ones(2), [1.0]]
WRONG_BOUNDS: list[Any] = ["ab", 1.0, (1.0,), (1.0, 0.0), ("a", 1.0), (0.0, np.nan)]


def wrong_numbers(h: Bounded) -> list[Any]:
    """What is no number, or beyond the range."""
    wrong = [v for v in WRONG_NUMBERS if not (isinstance(v, float) and v in h.interval)]
    return [v for v in wrong if v is not None or h.default is not None]


def wrong_values(h: Hyperparameter) -> list[tuple[Any, list[str]]]:
    """Values that an option has to refuse, and what its message says beside the name."""
    if isinstance(h, Bounded):
        wrong = wrong_numbers(h)
        wrong += [lambda n: 0.5] if isinstance(h, Constant) else []
        return [(value, [repr(value), h.interval.text]) for value in wrong]
    if isinstance(h, Several):
        texts = [part.interval.text for part in h.parts]
        shapes = [0.9, (0.9,), (*h.default, 0.9), "ab", None, np.ones((1, 2))]
        of_shape: list[tuple[Any, list[str]]] = [(value, [repr(value), *texts]) for value in shapes]
        for i, part in enumerate(h.parts):
            for value in wrong_numbers(part):
                several = tuple(value if i == k else v for k, v in enumerate(h.default))
                of_shape.append((several, [f"[{i}]", repr(value), texts[i]]))
        return of_shape
    if isinstance(h, Pair):
        return [(value, []) for value in WRONG_BOUNDS]
    if isinstance(h, Flag):
        return [(value, [repr(value), "True or False"]) for value in ("yes", None, 3.5, 1, 0)]
    assert isinstance(h, Choice)
    wanted = " or ".join(map(repr, h.choices))
    return [(value, [repr(value), wanted]) for value in ("nonsense", None, 3.5, 1, 0, ("l2",))]


@pytest.mark.parametrize("rule", rules.RULES)
def test_hyperparameters(rule: type[Optimizer]) -> None:
    """Every option refuses what is no number or out of range, at construction and later."""
    opt = rule([np.zeros(3)], lr=0.5)
    for name, h in rule.hyperparameters.items():
        for value, says in wrong_values(h):
            with pytest.raises((TypeError, ValueError), match=name) as info:
                rule([np.zeros(3)], **{name: value})
            assert all(part in str(info.value) for part in says)
            with Unchanged(opt, (TypeError, ValueError), name, *says):  # type: ignore[arg-type]
                opt.param_groups[0][name] = value
            with Unchanged(opt, (TypeError, ValueError), name, *says):  # type: ignore[arg-type]
                setattr(opt, name, value)


@pytest.mark.parametrize("rule", rules.RULES)
def test_numpy_numbers_are_fine_for_every_option(rule: type[Optimizer]) -> None:
    defaults = {k: h.default for k, h in rule.hyperparameters.items() if h.default is not None}
    arrays: dict[str, Any] = {name: np.array(value) for name, value in defaults.items()}
    for options in (arrays, {name: array[()] for name, array in arrays.items()}):
        opt = rule([np.zeros(3)], **options)
        for name, default in defaults.items():
            own = opt.param_groups[0][name]
            assert own == default
            assert type(own) is type(default)


def test_range_and_value_are_named() -> None:
    with pytest.raises(ValueError, match=r"lr: -0\.1 is out of range, wanted \[0, inf\)"):
        schuss.SGD(np.zeros(1), lr=-0.1)
    with pytest.raises(ValueError, match=r"betas\[1\]: 1\.0 is out of range, wanted \[0, 1\)"):
        schuss.Adam(np.zeros(1), betas=(0.9, 1.0))
    with pytest.raises(TypeError, match=r"lrr: unknown; SGD has lr, momentum"):
        schuss.SGD(np.zeros(1), lrr=0.1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="decay_mode: 'l1' is unknown; wanted 'l2' or 'decoupled'"):
        schuss.SGD(np.zeros(1), decay_mode="l1")  # type: ignore[arg-type]


def test_numpy_numbers_are_fine() -> None:
    numbers: dict[str, Any] = {"lr": np.array(0.1), "betas": np.array([0.5, 0.9]), "eps": F4(0)}
    opt = schuss.Adam(np.zeros(1), **numbers)
    assert (opt.lr, opt.betas, opt.eps) == (0.1, (0.5, 0.9), 0.0)
    assert schuss.SGD(np.zeros(1), lr=1).lr == 1.0


def test_nesterov_needs_a_momentum() -> None:
    damped = {"momentum": 0.9, "dampening": 0.1}
    wrong: list[tuple[type[Optimizer], dict[str, Any]]] = [
        (schuss.SGD, {"nesterov": True}),
        (schuss.SGD, {"nesterov": "lookahead"}),
        (schuss.SGD, {"nesterov": True, **damped}),
        (schuss.SGD, {"nesterov": "lookahead", **damped}),
        (schuss.Momentum, {"nesterov": True, "momentum": 0.0}),
        (schuss.NAG, {"momentum": 0.0}),
        (schuss.NAG, {"dampening": 0.1}),
        (schuss.NAG, {"preset": "paper", "momentum": 0.0}),
    ]
    for rule, options in wrong:
        with pytest.raises(ValueError, match="nesterov: needs momentum > 0 and dampening = 0"):
            rule(np.zeros(1), **options)
    with pytest.raises(ValueError, match=r"nesterov: needs momentum > 0, got momentum=0\.0"):
        schuss.RMSprop(np.zeros(1), nesterov=True)
    opt = schuss.NAG(np.zeros(1))
    for name, value in (("momentum", 0.0), ("dampening", 0.5)):
        with Unchanged(opt, ValueError, "nesterov: needs momentum > 0 and dampening = 0"):
            setattr(opt, name, value)


def test_options_that_do_not_go_together() -> None:
    wrong: list[tuple[type[Optimizer], dict[str, Any], str]] = [
        (schuss.Adam, {"decay_mode": "course", "amsgrad": True}, "decay_mode: 'course' goes"),
        (schuss.AdamW, {"decay_mode": "course", "eps_mode": "clamp"}, "got eps_mode='clamp'"),
        (schuss.Rprop, {"step_sizes": (1.0, 0.5)}, "step_sizes: (1.0, 0.5) has a lower bound"),
    ]
    for rule, options, says in wrong:
        opt = rule(np.zeros(1))
        with pytest.raises(ValueError, match=re.escape(says)):
            rule(np.zeros(1), **options)
        with Unchanged(opt, ValueError, says):
            opt.param_groups[0].update(options)


NEVER = r"betas: with beta2 = 0\.\d+, rho\(t\) stays below threshold"


@pytest.mark.parametrize(
    ("beta2", "threshold", "warns"),
    [(0.6, 4.0, True), (0.61, 4.0, False), (0.6, 5.0, True), (0.66, 5.0, True), (0.67, 5.0, False)],
)
def test_radam_warns_where_it_never_divides(beta2: float, threshold: float, warns: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt = schuss.RAdam(np.zeros(1), betas=(0.9, beta2), threshold=threshold)
    assert [bool(re.match(NEVER, str(w.message))) for w in caught] == [True] * warns
    denominators = [opt.scalars(opt.param_groups[0], t)["under"] == 0 for t in range(1, 1000)]
    assert any(denominators) != warns


def test_radam_warns_when_it_is_set() -> None:
    opt = schuss.RAdam(np.zeros(1))
    with pytest.warns(UserWarning, match=NEVER):
        opt.betas = (0.9, 0.5)
    opt.betas = (0.9, lambda n: 0.5)  # who knows what it returns later


# ---- Presets


@pytest.mark.parametrize("rule", rules.RULES)
def test_unknown_preset(rule: type[Optimizer]) -> None:
    opt = rule({"a": np.zeros(3)})
    names = ", ".join(rule.presets)
    wrong: list[Any] = ["tensorflow", "Keras", "", 3, True, ["torch"], {}]
    for value in wrong:
        says = f"preset: {value!r} is unknown; {rule.__name__} has {names}"
        with pytest.raises(ValueError, match=re.escape(says)):
            rule(np.zeros(3), preset=value)
        with pytest.raises(ValueError, match=re.escape(says)):
            rule([{"params": np.zeros(3), "preset": value}])
        with Unchanged(opt, ValueError, says):
            opt.add_param_group({"params": {"b": np.zeros(3)}, "preset": value})


@pytest.mark.parametrize("rule", rules.RULES)
def test_preset(rule: type[Optimizer]) -> None:
    """Each gives what it says, wants what it lacks, and yields to what is passed beside it."""
    defaults = {name: h.default for name, h in rule.hyperparameters.items()}
    for preset, own in rule.presets.items():
        lacks = {name for name, value in own.items() if value is REQUIRED}
        for name in lacks:
            says = f"{name}: preset {preset!r} has no default; pass one"
            with pytest.raises(TypeError, match=re.escape(says)):
                rule(np.zeros(3), preset=preset)
            with pytest.raises(TypeError, match=re.escape(says)):
                rule([{"params": np.zeros(3), "preset": preset}])
        given: dict[str, Any] = dict.fromkeys(lacks, 0.25)
        for opt in (
            rule(np.zeros(3), preset=preset, **given),
            rule([{"params": np.zeros(3), "preset": preset, **given}]),
        ):
            group = {name: opt.param_groups[0][name] for name in rule.hyperparameters}
            assert group == defaults | own | given
        beside: dict[str, Any] = {"lr": 0.125, "weight_decay": 0.375, "decay_mode": "proximal"}
        opt = rule(np.zeros(3), preset=preset, **beside)
        group = {name: opt.param_groups[0][name] for name in rule.hyperparameters}
        assert group == defaults | own | beside


def test_preset_of_a_group() -> None:
    """It is that group's alone, and goes into its options: there is nothing to set later."""
    groups = [{"params": np.zeros(1)}, {"params": np.zeros(1), "preset": "keras"}]
    opt = schuss.Adam(groups, eps=1e-3)
    assert [g["eps_mode"] for g in opt.param_groups] == ["outside", "hat"]
    assert [g["eps"] for g in opt.param_groups] == [1e-3, 1e-3]
    assert all("preset" not in g for g in opt.param_groups)
    assert "preset" not in opt.state_dict()["param_groups"][1]
    with Unchanged(opt, TypeError, "preset: unknown; Adam has lr, betas"):
        opt.param_groups[0]["preset"] = "keras"
    of_all = schuss.Adam([*groups, {"params": np.zeros(1), "preset": None}], preset="tutorial")
    assert [g["eps_mode"] for g in of_all.param_groups] == ["inside", "hat", "outside"]


# ---- The loss


def reading_the_loss(backend: Backend = "compiled", **options: Any) -> Optimizer:
    """An optimizer whose rule reads the loss, with two steps behind it."""
    opt = schuss.Rprop({"w": np.ones(3)}, variant="irprop+", backend=backend, **options)
    for loss in (3.0, 2.0):
        opt.step({"w": np.ones(3)}, loss=loss)
    return opt


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
@pytest.mark.parametrize(
    ("loss", "error", "says"),
    [
        (None, ValueError, "this rule reads it; pass it with the gradients: loss=f"),
        (np.nan, ValueError, "nan is out of range, wanted (-inf, inf)"),
        (np.inf, ValueError, "inf is out of range"),
        (F4(-np.inf), ValueError, "-inf is out of range"),
        ("2.0", TypeError, "'2.0' is not a number"),
        (True, TypeError, "True is not a number"),
        (1j, TypeError, "1j is not a number"),
        (np.ones(1), TypeError, "array([1.]) is not a number"),
    ],
)
def test_loss(loss: Any, error: type[Exception], says: str, backend: Backend) -> None:
    opt = reading_the_loss(backend)
    with Unchanged(opt, error, "loss: ", says):
        opt.step({"w": np.ones(3)}, loss=loss)
    right: list[Any] = [1, F4(1), np.array(1.0)]
    assert all(opt.step({"w": np.ones(3)}, loss=value) for value in right)


def test_a_step_that_was_refused_or_skipped_has_read_no_loss() -> None:
    bad = np.array([1.0, np.nan, 1.0])
    for nonfinite, error in (("propagate", ValueError), ("raise", FloatingPointError)):
        opt = reading_the_loss(nonfinite=nonfinite)
        grads = {"w": np.ones(4) if nonfinite == "propagate" else bad}
        opt.grad_norm = None
        with pytest.raises(error):
            opt.step(grads, loss=7.0)
        assert opt.state_dict()["shared"] == {"previous_loss": 2.0}
    opt = reading_the_loss(nonfinite="skip")
    assert not opt.step({"w": bad}, loss=7.0)
    assert opt.state_dict()["shared"] == {"previous_loss": 2.0}


# ---- The point looked ahead to


def looking_ahead(**options: Any) -> schuss.NAG:
    opt = schuss.NAG({"a": np.ones(3), "b": np.ones((2, 3))}, nesterov="lookahead", **options)
    opt.step({"a": np.ones(3), "b": np.ones((2, 3))})
    return opt


def test_lookahead_is_for_the_nesterov_of_its_name() -> None:
    for opt in (schuss.SGD(np.zeros(1)), schuss.Momentum(np.zeros(1)), schuss.NAG(np.zeros(1))):
        with Unchanged(opt, ValueError, 'nesterov: lookahead is for nesterov="lookahead"'):
            opt.lookahead()
    groups = [{"params": np.zeros(1)}, {"params": np.zeros(1), "nesterov": "lookahead"}]
    opt = schuss.NAG(groups)
    with Unchanged(opt, ValueError, "nesterov: "):
        opt.lookahead()


def test_out_of_lookahead() -> None:
    opt = looking_ahead()
    a, b = np.zeros(3), np.zeros((2, 3))
    frozen_b = np.zeros((2, 3))
    frozen_b.flags.writeable = False
    both = np.zeros(8)
    params = dict(zip("ab", opt.param_groups[0]["params"], strict=True))
    buffer = opt.state["b"]["momentum_buffer"]
    wrong: list[tuple[Any, str]] = [
        (a, "out: ndarray where params has a mapping"),
        ({"a": a}, "out: missing 'b'"),
        ({"a": a, "b": b, "c": a}, "out: unknown 'c'"),
        ({"a": a, "b": None}, 'out["b"]: NoneType, wanted float64 of shape (2, 3)'),
        ({"a": a, "b": [[0.0] * 3] * 2}, 'out["b"]: list, wanted'),
        ({"a": a, "b": np.zeros(6)}, 'out["b"]: float64 of shape (6,)'),
        ({"a": a, "b": np.zeros((4, 2, 3))}, 'out["b"]: float64 of shape (4, 2, 3)'),
        ({"a": a, "b": b.astype(F4)}, 'out["b"]: float32 of shape (2, 3)'),
        ({"a": a, "b": np.zeros((4, 3))[::2]}, 'out["b"]: float64 of shape (2, 3) in no'),
        ({"a": a, "b": frozen_b}, 'out["b"]: read-only'),
        (params, '"]: overlaps params["'),
        ({"a": a, "b": params["b"]}, 'out["b"]: overlaps params["b"]'),
        ({"a": a, "b": buffer}, 'out["b"]: overlaps state["b"]["momentum_buffer"]'),
        ({"a": both[:3], "b": both[2:].reshape(2, 3)}, 'out["b"]: overlaps out["a"]'),
    ]
    for out, says in wrong:
        with Unchanged(opt, ValueError, says):
            opt.lookahead(out)
        assert not a.any()
        assert not both.any()
    right = {"a": a, "b": b}
    assert opt.lookahead(right) is right
    assert a.all()


def test_schedule_of_lookahead_that_returns_nonsense() -> None:
    opt = looking_ahead()
    opt.lr = lambda n: -1.0
    out = opt.empty_like_params()
    out["a"].fill(7.0)
    with Unchanged(opt, ValueError, "lr after 1 steps: -1.0"):
        opt.lookahead(out)
    assert (out["a"] == 7).all()


@pytest.mark.parametrize(
    ("rule", "name", "value"),
    [
        (schuss.SGD, "momentum", 0.9),
        (schuss.Adam, "amsgrad", True),
        (schuss.RMSprop, "centered", True),
        (schuss.Adagrad, "initial_accumulator_value", 0.1),
    ],
)
def test_state_is_fixed_at_construction(rule: type[Optimizer], name: str, value: Any) -> None:
    opt = rule({"w": np.zeros(3)})
    with Unchanged(opt, ValueError, name, "fixed at construction"):
        setattr(opt, name, value)
    with Unchanged(opt, ValueError, name, "fixed at construction"):
        opt.param_groups[0][name] = value


def test_all_groups_or_none() -> None:
    groups = [{"params": [np.zeros(1)]}, {"params": [np.zeros(1)], "momentum": 0.9}]
    opt = schuss.SGD(groups)
    with Unchanged(opt, ValueError, "nesterov"):
        opt.nesterov = True


def test_update_of_a_group_is_all_or_none() -> None:
    opt = schuss.SGD(np.zeros(3), momentum=0.9, dampening=0.5)
    with Unchanged(opt, ValueError, "weight_decay"):
        opt.param_groups[0].update(lr=7.0, weight_decay=-1.0)
    opt.param_groups[0].update(nesterov=True, dampening=0.0)
    assert opt.nesterov


def test_group_keeps_its_options() -> None:
    opt = schuss.SGD(np.zeros(3))
    with Unchanged(opt, TypeError, "lr"):
        del opt.param_groups[0]["lr"]
    with Unchanged(opt, ValueError, "params: fixed"):
        opt.param_groups[0]["params"] = []
    with Unchanged(opt, TypeError, "lrr: unknown"):
        opt.param_groups[0]["lrr"] = 1.0


@pytest.mark.parametrize("value", [np.nan, -1.0, "a", None])
def test_schedule_that_returns_nonsense(value: Any, opt: Optimizer) -> None:
    opt.param_groups[0]["lr"] = lambda n: value
    good = np.ones(10, F4)
    with Unchanged(opt, (TypeError, ValueError), "lr after 2 steps"):  # type: ignore[arg-type]
        opt.step({"a": good, "w1": good, "z": good})


def test_schedule_that_raises(opt: Optimizer) -> None:
    def broken(n: int) -> float:
        raise LookupError("nothing there")

    opt.param_groups[0]["lr"] = broken
    good = np.ones(10, F4)
    with Unchanged(opt, LookupError, "nothing there"):
        opt.step({"a": good, "w1": good, "z": good})


def test_reentered() -> None:
    opt = schuss.SGD(np.zeros(3))

    def again(n: int) -> float:
        opt.step(np.ones(3))
        return 0.1

    opt.lr = again
    with Unchanged(opt, RuntimeError, "re-entered"):
        opt.step(np.ones(3))
    opt.lr = 0.1
    assert opt.step(np.ones(3))


@pytest.mark.parametrize(
    ("name", "value"),
    [("grad_scale", 0.0), ("grad_scale", np.inf), ("subnormals", "flush"), ("backend", "cuda")],
)
def test_options(name: str, value: Any, opt: Optimizer) -> None:
    with Unchanged(opt, ValueError, f"{name}: "):
        setattr(opt, name, value)
    with pytest.raises(ValueError, match=f"{name}: "):
        schuss.SGD(np.zeros(3), **{name: value})


def test_grad_scale_of_a_step(opt: Optimizer) -> None:
    good = np.ones(10, F4)
    for value in (0.0, -2.0, np.nan):
        with Unchanged(opt, ValueError, "grad_scale: "):
            opt.step({"a": good, "w1": good, "z": good}, grad_scale=value)


# ---- Groups, rebind, state dictionaries, stateless calls


@pytest.mark.parametrize(
    ("group", "error", "says"),
    [
        ({"lr": 0.1}, TypeError, "group: pass a mapping"),
        ([np.zeros(3, F4)], TypeError, "group: pass a mapping"),
        ({"params": {"w1": np.zeros(3, F4)}}, ValueError, 'params["w1"]: two groups'),
        ({"params": {"n": np.zeros(3, int)}}, TypeError, 'params["n"]: dtype int64'),
        ({"params": {"n": np.zeros(3, F4)}, "lr": -1.0}, ValueError, "lr: -1.0"),
        ({"params": {"n": np.zeros(3, F4)}, "foo": 1.0}, TypeError, "foo: unknown"),
    ],
)
def test_add_param_group(group: Any, error: type[Exception], says: str, opt: Optimizer) -> None:
    with Unchanged(opt, error, says):
        opt.add_param_group(group)
    good = np.ones(10, F4)
    assert opt.step({"a": good, "w1": good, "z": good})


def test_add_param_group_that_overlaps(opt: Optimizer) -> None:
    with Unchanged(opt, ValueError, 'params["new"]: overlaps params["a"]'):
        opt.add_param_group({"params": {"new": opt.param_groups[0]["params"][0]}})


@pytest.mark.parametrize(
    ("w1", "says"),
    [
        (np.zeros(11, F4), "float32 of shape (11,) in C order where float32 of shape (10,)"),
        (np.zeros(10), "float64 of shape (10,)"),
        (np.zeros(20, F4)[::2], "in no contiguous order"),
        (1.0, "float where float32"),
        (read_only(), "read-only"),
    ],
)
def test_rebind(w1: Any, says: str, opt: Optimizer) -> None:
    with Unchanged(opt, ValueError, 'params["w1"]: ', says):
        opt.rebind({"a": np.zeros(10, F4), "w1": w1, "z": np.zeros(10, F4)})
    with Unchanged(opt, ValueError, "params: missing 'z'"):
        opt.rebind({"a": np.zeros(10, F4), "w1": np.zeros(10, F4)})


def test_load_state_dict_lists_every_difference(opt: Optimizer) -> None:
    saved = opt.state_dict()
    saved["state"]["a"]["exp_avg"] = np.zeros(9, F4)
    saved["state"]["w1"]["exp_avg_sq"] = np.zeros(10)
    del saved["state"]["z"]
    saved["state"]["other"] = {}
    with Unchanged(
        opt,
        ValueError,
        "missing 'z'",
        "unknown 'other'",
        "'a' exp_avg: float32 of shape (9,)",
        "'w1' exp_avg_sq: float64",
    ):
        opt.load_state_dict(saved)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda s: s["param_groups"][0].update(lr=-1.0), "lr: -1.0"),
        (lambda s: s["param_groups"][0].update(foo=1.0), "foo: unknown"),
        (lambda s: s["param_groups"][0].update(params=["a"]), "param_groups: other parameters"),
        (lambda s: s["param_groups"].pop(), "param_groups: other parameters"),
        (lambda s: s.update(iterations=-1), "iterations: -1"),
        (lambda s: s["state"]["a"].update(step=1.5), "'a' step: 1.5 is not a whole number"),
        (lambda s: s["state"]["a"].pop("exp_avg"), "missing 'a' exp_avg"),
        (lambda s: s["state"]["a"].update(sum=np.zeros(10, F4)), "unknown 'a' sum"),
        (lambda s: s["state"]["a"].update(step=2**70), "'a' step: "),
        (lambda s: s["state"]["a"].update(exp_avg=1.0), "'a' exp_avg: float"),
        (lambda s: s["state"].update(a=[1.0]), "'a': list, wanted a mapping"),
        (lambda s: s.pop("iterations"), "iterations: None"),
        (lambda s: s.pop("state"), "state_dict: wanted a mapping"),
    ],
)
def test_load_state_dict(spoil: Callable[[Any], None], says: str, opt: Optimizer) -> None:
    saved = opt.state_dict()
    spoil(saved)
    with Unchanged(opt, (TypeError, ValueError), says):  # type: ignore[arg-type]
        opt.load_state_dict(saved)


def test_load_state_dict_needs_arrays_whatever_the_type() -> None:
    """A missing dtype compares equal to float64's."""
    opt = schuss.Adam({"w": np.zeros(2)})
    saved = opt.state_dict()
    saved["state"]["w"]["exp_avg"] = [0.0, 0.0]
    with Unchanged(opt, ValueError, "'w' exp_avg: list"):
        opt.load_state_dict(saved)


def test_load_state_dict_into_read_only_state(opt: Optimizer) -> None:
    saved = opt.state_dict()
    saved["param_groups"][0]["lr"] = 9.0
    opt.state["z"]["exp_avg_sq"].flags.writeable = False
    with Unchanged(opt, ValueError, 'state["z"]["exp_avg_sq"]: read-only'):
        opt.load_state_dict(saved)


@pytest.mark.parametrize("method", ["step", "rebind", "add_param_group", "load_state_dict"])
def test_no_call_within_a_step(method: str) -> None:
    opt = schuss.SGD({"w": np.zeros(3)})
    arguments: dict[str, Any] = {
        "step": {"w": np.ones(3)},
        "rebind": {"w": np.zeros(3)},
        "add_param_group": {"params": {"b": np.zeros(3)}},
        "load_state_dict": opt.state_dict(),
    }

    def meddle(n: int) -> float:
        getattr(opt, method)(arguments[method])
        return 0.1

    opt.lr = meddle
    with Unchanged(opt, RuntimeError, "re-entered"):
        opt.step({"w": np.ones(3)})


def test_zero_grad() -> None:
    opt = schuss.SGD([np.zeros(3), np.zeros(3)])
    with pytest.raises(ValueError, match="grads: none bound"):
        opt.zero_grad()
    first, second = np.ones(3), np.ones(3)
    opt = schuss.SGD([np.zeros(3), np.zeros(3)], grads=[first, second])
    second.flags.writeable = False
    with pytest.raises(ValueError, match=r"grads\[1\]: read-only"):
        opt.zero_grad()
    assert first.all()


def test_bound_gradients_of_a_new_group() -> None:
    opt = schuss.SGD([np.zeros(3)], grads=[np.ones(3)], lr=1.0)
    with Unchanged(opt, ValueError, 'pass its "grads"'):
        opt.add_param_group({"params": [np.zeros(3)]})
    opt.add_param_group({"params": [np.zeros(3)], "grads": [np.ones(3)], "lr": 2.0})
    opt.step()
    assert [x[0] for g in opt.param_groups for x in g["params"]] == [-1, -2]


def test_copy() -> None:
    with pytest.raises(TypeError, match=r"use copy\.deepcopy"):
        copy.copy(schuss.SGD(np.zeros(3)))


def test_the_base_is_no_rule() -> None:
    with pytest.raises(NotImplementedError, match="base of the rules"):
        Optimizer(np.zeros(3))


def test_no_decay() -> None:
    wrong: Any = ["b"]
    with pytest.raises(TypeError, match=r"no_decay: \['b'\] is no function"):
        schuss.AdamW(np.zeros(3), no_decay=wrong)


def test_functional() -> None:
    x, g, m, v = (np.zeros(3, F4) for _ in range(4))
    adam = schuss.functional.adam
    for call, error, says in [
        (lambda: adam(x, g, m, v, step=0), ValueError, "step: 0 is out of range"),
        (lambda: adam(x, g, m, v, step=1.0), TypeError, "step: 1.0 is not a whole number"),
        (lambda: adam(x, g, m, step=1), TypeError, "these options take ('exp_avg', 'exp_avg_sq')"),
        (lambda: adam(x, g, m, v, m.copy(), step=1), TypeError, "adam: state"),
        (lambda: adam(x, g, m, v, step=1, foo=2), TypeError, "foo: unknown"),
        (lambda: adam(x, g, m, v, exp_avg=m, step=1), TypeError, "exp_avg is given twice"),
        (lambda: adam(x, g, m, m, step=1), ValueError, "exp_avg_sq: overlaps exp_avg"),
        (lambda: adam(x, x, m, v, step=1), ValueError, "grad: overlaps param"),
        (lambda: adam(x, g, m, v[:2], step=1), ValueError, "exp_avg_sq: shape (2,)"),
        (lambda: adam(x, g.astype(float), m, v, step=1), TypeError, "grad: float64"),
        (lambda: adam([0.0], g, m, v, step=1), TypeError, "param: not a numpy.ndarray (list)"),
        (lambda: adam(x, g, m, v, step=1, backend="no"), ValueError, "backend: 'no'"),
    ]:
        with pytest.raises(error) as info:
            call()  # type: ignore[no-untyped-call]
        assert says in str(info.value)
        assert not x.any()
        assert not m.any()


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
def test_numbers_of_a_stateless_call(backend: Backend) -> None:
    x, g, m, v = (np.ones(3) for _ in range(4))
    read_only = np.ones(())
    read_only.flags.writeable = False
    wrong: list[tuple[Any, type[Exception], str]] = [
        (None, TypeError, "mu_product is missing; pass a float64 array of no dimension"),
        (1.0, TypeError, "mu_product is 1.0; pass"),
        (np.float64(1.0), TypeError, "mu_product is np.float64(1.0); pass"),
        (np.ones((), F4), TypeError, "mu_product is array(1., dtype=float32); pass"),
        (np.ones(1), TypeError, "mu_product is array([1.]); pass"),
        (read_only, ValueError, "mu_product is read-only"),
        (np.array(np.nan), ValueError, "mu_product: nan is out of range"),
        (x[1:2].reshape(()), ValueError, "mu_product overlaps an array that the step writes to"),
        (v[2:].reshape(()), ValueError, "mu_product overlaps"),
    ]
    for number, error, says in wrong:
        given = {} if number is None else {"mu_product": number}
        with pytest.raises(error, match=re.escape(f"nadam: {says}")):
            schuss.functional.nadam(x, g, m, v, step=1, backend=backend, **given)
        assert all((a == 1).all() for a in (x, g, m, v))
    product = np.ones(())
    with pytest.raises(TypeError, match="mu_product: unknown; Adam has"):
        schuss.functional.adam(x, g, m, v, step=1, mu_product=product)
    with pytest.raises(ValueError, match="shape"):
        schuss.functional.nadam(x, g[:2], m, v, step=1, mu_product=product, backend=backend)
    assert product == 1
    schuss.functional.nadam(x, g, m, v, step=1, mu_product=product, backend=backend)
    assert 0.4 < product < 0.5


def test_loss_of_a_stateless_call() -> None:
    x, g, p, d = (np.ones(3) for _ in range(4))
    s, previous = np.full(3, 0.1), np.array(math.inf)
    call = functools.partial(schuss.functional.rprop, x, g, p, s, d, step=1, variant="irprop+")
    with pytest.raises(TypeError, match="rprop: previous_loss is missing"):
        call(loss=1.0)
    for loss in (None, np.nan, "1"):
        with pytest.raises((TypeError, ValueError), match="loss: "):
            call(loss=loss, previous_loss=previous)
        assert math.isinf(previous)
        assert (x == 1).all()
    call(loss=1.0, previous_loss=previous)
    assert previous == 1


def test_preset_of_a_stateless_call() -> None:
    x, g, p, s = (np.ones(3) for _ in range(4))
    with pytest.raises(ValueError, match="preset: 'keras' is unknown; Rprop has torch, optax"):
        schuss.functional.rprop(x, g, p, s, step=1, preset="keras")
    with pytest.raises(TypeError, match="lr: preset 'optax' has no default; pass one"):
        schuss.functional.sgd(x, g, step=1, preset="optax")
    with pytest.raises(TypeError, match="rprop: lr is for the class"):
        schuss.functional.rprop(x, g, p, s, step=1, preset="optax", lr=0.1)
    assert (x == 1).all()
    schuss.functional.rprop(x, g, p, s, step=1, preset="optax")  # the start is in its state
    assert (x != 1).all()
