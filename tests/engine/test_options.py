"""Every hyperparameter and option refuses what it can't be, at construction and later."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest

import schuss
from engine.unchanged import Unchanged
from schuss import rules
from schuss.engine.declare import (
    Bounded,
    Choice,
    Constant,
    Flag,
    Hyperparameter,
    Pair,
    Several,
    Whole,
    check_state_dtype,
)
from schuss.engine.optimizer import Optimizer
from schuss.reference.storage import Trait

F4 = np.float32


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
    if isinstance(h, Whole):
        return [(value, [repr(value)]) for value in (h.least - 1, 0.5, "1", True, None)]
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
    with pytest.raises(TypeError, match=r"lrr: unknown; did you mean lr, an option of a group"):
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
    denominators = [opt.scalars(opt.param_groups[0], t, {})["under"] == 0 for t in range(1, 1000)]
    assert any(denominators) != warns


def test_radam_warns_when_it_is_set() -> None:
    opt = schuss.RAdam(np.zeros(1))
    with pytest.warns(UserWarning, match=NEVER):
        opt.betas = (0.9, 0.5)
    opt.betas = (0.9, lambda n: 0.5)  # who knows what it returns later


@pytest.mark.parametrize(
    ("name", "value"),
    [("grad_scale", 0.0), ("grad_scale", np.inf), ("subnormals", "flush"), ("backend", "cuda")],
)
def test_options(name: str, value: Any, opt: Optimizer) -> None:
    with Unchanged(opt, ValueError, f"{name}: "):
        setattr(opt, name, value)
    with pytest.raises(ValueError, match=f"{name}: "):
        schuss.SGD(np.zeros(3), **{name: value})


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


def test_no_decay() -> None:
    wrong: Any = ["b"]
    with pytest.raises(TypeError, match=r"no_decay: \['b'\] is no function"):
        schuss.AdamW(np.zeros(3), no_decay=wrong)


def test_the_base_is_no_rule() -> None:
    with pytest.raises(NotImplementedError, match="base of the rules"):
        Optimizer(np.zeros(3))


ADAM = {"exp_avg": Trait(), "exp_avg_sq": Trait(True, True), "prev": Trait(alone=True)}


@pytest.mark.parametrize(
    ("chosen", "states", "dtype", "says"),
    [
        (
            {"sum": F4},
            ADAM,
            F4,
            "no state 'sum'; params[\"w\"] has 'exp_avg' and 'exp_avg_sq' and 'prev'",
        ),
        ({"sum": F4, "m": F4, "exp_avg": F4}, ADAM, F4, "no state 'sum', 'm'; params[\"w\"] has"),
        ({"sum": F4}, {}, F4, "no state 'sum'; params[\"w\"] has none"),
        (
            {"": F4},
            ADAM,
            np.float64,
            'params["w"] is float64, and so is its state; leave state_dtype out, or make the '
            "parameter float32",
        ),
        ({"exp_avg": F4}, ADAM, np.float64, 'params["w"] is float64, and so is its state'),
        ({"prev": "blockfloat8"}, ADAM, F4, "'prev' of params[\"w\"] is no mean or sum"),
    ],
)
def test_state_dtype_of_a_parameter(
    chosen: dict[str, Any], states: dict[str, Trait], dtype: Any, says: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"state_dtype: {says}")):
        check_state_dtype(chosen, states, 'params["w"]', np.dtype(dtype))


def test_state_dtype_that_is_something_to_a_parameter() -> None:
    for chosen in ({}, {"": np.dtype(F4)}, {"exp_avg": np.dtype(np.float16)}):
        check_state_dtype(chosen, ADAM, "params[0]", np.dtype(F4))
    check_state_dtype({}, ADAM, "params[0]", np.dtype(float))


@pytest.mark.parametrize("of", [float, np.float64, F4, np.float16, np.array])
def test_numbers_of_all_kinds_are_stored_as_python_s(of: Any) -> None:
    opt = schuss.Adam(np.ones(3), lr=of(0.5))
    opt.betas = (of(0.25), of(0.5))
    group = opt.param_groups[0]
    assert [type(v) for v in (group["lr"], *group["betas"])] == [float] * 3
    assert (group["lr"], group["betas"]) == (0.5, (0.25, 0.5))
    with pytest.raises(ValueError, match=r"lr: -1\.0 is out of range"):
        opt.step(np.ones(3), lr=of(-1.0))
    assert opt.step(np.ones(3), lr=of(0.125))
