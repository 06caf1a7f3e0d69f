"""Mistakes that would train the wrong thing in silence: each is noticed, or does what was meant."""

from __future__ import annotations

import copy
import pickle
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import schuss
from engine.unchanged import Unchanged, snapshot
from schuss import rules
from schuss.engine.declare import Backend
from schuss.engine.optimizer import Optimizer

F4, F2 = np.float32, np.float16
ONE = np.ones(3, F4)


def backends() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("backend", ["compiled", "numpy"])


# ---- An array that is no longer the one in the user's container


def fresh() -> np.ndarray:
    return np.ones(3, F4)


def flat() -> dict[str, np.ndarray]:
    return {"w": fresh(), "b": fresh()}


def nested() -> dict[str, Any]:
    return {"body": [flat(), flat()], "head": {"w": fresh()}}


def replaced(container: Any, key: Any) -> None:
    container[key] = container[key] - F4(1)


# What is passed as params, what leaves a registered array behind, and how that one is named.
LEFT_BEHIND: dict[str, tuple[Callable[[], Any], Callable[[Any], None], str]] = {
    "mapping": (flat, lambda p: replaced(p, "w"), 'params["w"]'),
    "list": (lambda: [fresh(), fresh()], lambda p: replaced(p, 1), "params[1]"),
    "nested": (nested, lambda p: replaced(p["body"][1], "b"), 'params["body.1.b"]'),
    "a whole part": (nested, lambda p: p.update(head={"w": fresh()}), 'params["head.w"]'),
    "tuple of mappings": (lambda: (flat(), flat()), lambda p: replaced(p[1], "w"), 'params["1.w"]'),
    "groups": (
        lambda: [{"params": {"w": fresh()}}, {"params": {"b": fresh()}}],
        lambda p: replaced(p[1]["params"], "b"),
        'params["b"]',
    ),
    "no array at all": (flat, lambda p: p.update(w=[1.0, 1.0, 1.0]), 'params["w"]'),
    "another type": (flat, lambda p: p.update(w=p["w"].astype(float)), 'params["w"]'),
    "a view of a part": (
        lambda: {"w": np.ones((2, 3), F4), "b": fresh()},
        lambda p: p.update(w=p["w"].reshape(3, 2)),
        'params["w"]',
    ),
}


def like(params: Any) -> Any:
    """Gradients in the structure of params."""
    if isinstance(params, np.ndarray):
        return np.ones_like(params)
    if isinstance(params, dict):
        return (
            like(params["params"]) if "params" in params else {k: like(params[k]) for k in params}
        )
    return [like(p) for p in params]


@backends()
@pytest.mark.parametrize("case", LEFT_BEHIND)
def test_an_array_that_was_left_behind(case: str, backend: Backend) -> None:
    make, leave, name = LEFT_BEHIND[case]
    params = make()
    opt, grads = schuss.Adam(params, backend=backend), like(params)
    assert opt.step(grads)
    leave(params)
    with Unchanged(opt, ValueError, f"{name}: another array lies there", "W[...] =", "rebind"):
        opt.step(grads)


def test_a_group_that_was_added_is_watched() -> None:
    added = flat()
    opt = schuss.SGD({"v": fresh()})
    opt.add_param_group({"params": added})
    grads = {"v": ONE, "w": ONE, "b": ONE}
    assert opt.step(grads)
    replaced(added, "b")
    with Unchanged(opt, ValueError, 'params["b"]: another array'):
        opt.step(grads)


def same_memory(p: dict[str, np.ndarray]) -> None:
    p["w"] = p["w"][:]
    p["b"] = p["b"].view(type("Own", (np.ndarray,), {}))


FINE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "views of the same memory": same_memory,
    "removed": lambda p: p.pop("w"),
    "all removed": lambda p: p.clear(),
    "None": lambda p: p.update(w=None),
    "more of them": lambda p: p.update(other=fresh()),
    "written into": lambda p: np.copyto(p["w"], 0),
}


@pytest.mark.parametrize("change", FINE.values(), ids=FINE)
def test_what_leaves_no_array_behind(change: Callable[[Any], Any]) -> None:
    params = flat()
    x = params["b"]
    opt = schuss.SGD(params, lr=1.0)
    change(params)
    assert opt.step({"w": ONE, "b": ONE})
    assert (x == 0).all()


def several_steps(opt: Optimizer, grads: Any, number: int) -> None:
    for _ in range(number):
        opt.step(grads)


def test_all_are_looked_up_in_a_hundred_steps_and_then_eight_in_turn() -> None:
    params = [np.ones(1) for _ in range(50)]
    grads = [np.ones(1) for _ in range(50)]
    opt = schuss.SGD(params)
    for place in (0, 24, 49):  # early: at once
        kept = params[place]
        replaced(params, place)
        with pytest.raises(ValueError, match=rf"params\[{place}\]: another"):
            opt.step(grads)
        params[place] = kept
    while opt.iterations < 100:
        opt.step(grads)
    for place in (0, 24, 49):  # later: within a round of all
        kept = params[place]
        replaced(params, place)
        with pytest.raises(ValueError, match=rf"params\[{place}\]: another"):
            several_steps(opt, grads, -(-50 // 8))
        params[place] = kept
    assert opt.step(grads)


@pytest.mark.parametrize("number", [1, 8])
def test_few_are_always_looked_up(number: int) -> None:
    params = {str(i): np.ones(1) for i in range(number)}
    grads = like(params)
    opt = schuss.SGD(params)
    for _ in range(101):
        opt.step(grads)
    for key, kept in list(params.items()):
        replaced(params, key)
        with pytest.raises(ValueError, match=rf"params\[{key}\]: another"):
            opt.step(grads)
        params[key] = kept


def test_after_rebind_the_new_container_is_watched() -> None:
    old, new = flat(), flat()
    opt = schuss.SGD(old, lr=1.0)
    opt.rebind(new)
    replaced(old, "w")
    assert opt.step({"w": ONE, "b": ONE})
    assert (new["w"] == 0).all()
    replaced(new, "w")
    with Unchanged(opt, ValueError, 'params["w"]: another array'):
        opt.step({"w": ONE, "b": ONE})
    opt.rebind(new)
    assert opt.step({"w": ONE, "b": ONE})


@pytest.mark.parametrize("way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_watch_the_copied_container(way: Any) -> None:
    params = flat()
    opt, params = way((schuss.SGD(params), params))
    replaced(params, "w")
    with Unchanged(opt, ValueError, 'params["w"]: another array'):
        opt.step({"w": ONE, "b": ONE})


# ---- None for a whole part


NONE: dict[str, Callable[[], Any]] = {
    "one array": lambda: {"body": [flat(), {"w": ONE, "b": None}], "head": {"w": ONE}},
    "a mapping": lambda: {"body": [flat(), flat()], "head": None},
    "a list": lambda: {"body": None, "head": {"w": ONE}},
    "a part of a list": lambda: {"body": [None, flat()], "head": {"w": ONE}},
    "all but one": lambda: {"body": [None, {"w": None, "b": ONE}], "head": None},
    "all": lambda: {"body": None, "head": None},
}


def foreign(value: Any) -> Any:
    """The same in mappings that only Python can look into."""
    if isinstance(value, dict):
        return MappingProxyType({key: foreign(v) for key, v in value.items()})
    return tuple(map(foreign, value)) if isinstance(value, list) else value


def steps_of(grads: Any, prefix: str, names: list[str]) -> dict[str, int]:
    """How often each parameter is stepped by these gradients: once, or not at all."""
    if isinstance(grads, np.ndarray):
        return {prefix: 1}
    if grads is None:
        return {n: 0 for n in names if n == prefix or n.startswith(f"{prefix}.")}
    pairs = grads.items() if isinstance(grads, dict) else enumerate(grads)
    found: dict[str, int] = {}
    for key, g in pairs:
        found |= steps_of(g, f"{prefix}.{key}".lstrip("."), names)
    return found


@backends()
@pytest.mark.parametrize("container", [lambda g: g, foreign], ids=["compiled", "Python"])
@pytest.mark.parametrize("case", NONE)
def test_none_for_a_whole_part(case: str, container: Any, backend: Backend) -> None:
    params = nested()
    opt, grads = schuss.Adam(params, lr=1.0, backend=backend), NONE[case]()
    for _ in range(2):  # the second time the structure is known
        assert opt.step(container(grads))
    names = [p.name for p in opt._parameters]
    want = {n: 2 * count for n, count in steps_of(grads, "", names).items()}
    assert {n: opt.state[n]["step"] for n in names} == want
    moved = {p.name: bool((p.x != 1).any()) for p in opt._parameters}
    assert moved == {n: count > 0 for n, count in want.items()}
    assert opt.step(container(like(params)))


def test_a_mistake_beside_none_is_what_the_message_names() -> None:
    opt = schuss.SGD(nested())
    for container in (dict, foreign):
        with Unchanged(opt, ValueError, "grads[\"head\"]: missing 'w', unknown 'ww'"):
            opt.step(container({"body": None, "head": {"ww": ONE}}))


# ---- Added groups


def test_an_added_group_takes_what_the_constructor_was_given() -> None:
    opt = schuss.AdamW(
        {"w": fresh()},
        lr=0.5,
        weight_decay=0.25,
        cautious="mean",
        no_decay=lambda name, a: name.startswith("b"),
    )
    opt.lr = 0.125  # what is set later is the groups'
    opt.add_param_group({"params": {"v": fresh(), "b": fresh()}, "weight_decay": 0.75})
    group = opt.param_groups[1]
    assert (group["lr"], group["weight_decay"], group["cautious"]) == (0.5, 0.75, "mean")
    assert group["no_decay"] == ["b"]


def test_an_added_group_takes_the_constructors_preset() -> None:
    opt = schuss.Adam({"w": fresh()}, preset="keras", lr=0.5)
    for other in (opt, copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        other.add_param_group({"params": {"v": fresh()}})
        first, added = other.param_groups
        assert dict(first.settings.values) == dict(added.settings.values)
    opt.add_param_group({"params": {"u": fresh()}, "preset": "torch"})
    assert (opt.param_groups[2]["eps"], opt.param_groups[2]["lr"]) == (1e-8, 0.5)


def test_groups_of_matrices_that_are_added() -> None:
    opt = schuss.Muon({"w": np.ones((3, 3))}, lr=0.5, other={"lr": 0.25})
    opt.add_param_group({"params": {"v": np.ones((2, 2)), "b": np.ones(2)}})
    assert [g["lr"] for g in opt.param_groups] == [0.5, 0.25, 0.5, 0.25]


# ---- Gradients in any structure


def two_groups() -> Optimizer:
    opt = schuss.SGD({"head": {"w": fresh()}}, lr=1.0)
    opt.add_param_group({"params": {"body": [fresh(), fresh()]}, "lr": 2.0})
    return opt


def two_lists() -> Optimizer:
    return schuss.SGD(
        [{"params": [fresh(), fresh()], "lr": 1.0}, {"params": [fresh()], "lr": 2.0}], lr=3.0
    )


G = [np.full(3, i, F4) for i in range(3)]
STRUCTURES: dict[str, tuple[Callable[[], Optimizer], Any]] = {
    "of the network": (two_groups, {"body": [G[1], G[2]], "head": {"w": G[0]}}),
    "by group": (two_groups, [{"head": {"w": G[0]}}, {"body": [G[1], G[2]]}]),
    "as groups": (
        two_groups,
        [{"params": {"head": {"w": G[0]}}}, {"params": {"body": [G[1], G[2]]}}],
    ),
    "dotted names": (two_groups, {"head.w": G[0], "body.0": G[1], "body.1": G[2]}),
    "dotted names in part": (two_groups, {"head": {"w": G[0]}, "body.0": G[1], "body.1": G[2]}),
    "tuples": (two_groups, {"body": (G[1], G[2]), "head": {"w": G[0]}}),
    "numbers as keys": (two_groups, {"body": {0: G[1], 1: G[2]}, "head": {"w": G[0]}}),
    "flat list": (two_lists, [G[0], G[1], G[2]]),
    "list of lists": (two_lists, [[G[0], G[1]], [G[2]]]),
    "numbers by name": (two_lists, {"0": G[0], "1": G[1], "2": G[2]}),
}


@pytest.mark.parametrize("container", [lambda g: g, foreign], ids=["compiled", "Python"])
@pytest.mark.parametrize("case", STRUCTURES)
def test_gradients_in_any_structure(case: str, container: Any) -> None:
    make, grads = STRUCTURES[case]
    opt = make()
    for _ in range(2):
        assert opt.step(container(grads))
    rates = [g["lr"] for g in opt.param_groups for _ in g["params"]]
    xs = [x for g in opt.param_groups for x in g["params"]]
    assert [float(x[0]) for x in xs] == [1 - 2 * lr * i for i, lr in enumerate(rates)]


@pytest.mark.parametrize("container", [lambda g: g, foreign], ids=["compiled", "Python"])
def test_none_for_a_part_of_the_network_that_groups_divide(container: Any) -> None:
    opt = two_groups()
    for grads in ({"head": None, "body": [None, ONE]}, {"head": {"w": ONE}, "body": None}):
        for _ in range(2):
            assert opt.step(container(grads))
    assert [s["step"] for s in opt.state.values()] == [2, 0, 2]


WRONG_STRUCTURES: dict[str, tuple[Callable[[], Optimizer], Any, str]] = {
    "one missing": (two_groups, {"head": {"w": ONE}, "body": [ONE]}, "missing 'body.1'; wanted"),
    "one too many": (
        two_groups,
        {"head": {"w": ONE}, "body": [ONE, ONE], "tail": ONE},
        "grads: unknown 'tail'; wanted",
    ),
    "another name": (two_groups, {"head": {"v": ONE}, "body": [ONE, ONE]}, "head.w"),
    "too long": (two_lists, [ONE] * 4, "4 where params has 2"),
}


@pytest.mark.parametrize("case", WRONG_STRUCTURES)
def test_gradients_that_lie_nowhere(case: str) -> None:
    make, grads, says = WRONG_STRUCTURES[case]
    opt = make()
    with Unchanged(opt, ValueError, "grads: ", says):
        opt.step(grads)


# ---- Attributes and options that aren't there


class Mine(schuss.Adam):
    """A user's rule, which keeps what it likes."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self.history: list[float] = []


# What is set on an optimizer, and what the message says: the nearest name, and where it belongs.
ATTRIBUTES = {
    "learning_rate": "did you mean lr, an option of a group",
    "lrr": "did you mean lr",
    "beta1": "did you mean betas",
    "weigth_decay": "did you mean weight_decay",
    "clip_nrm": "did you mean clip_norm, an option of the optimizer",
    "clip_grad_norm": "did you mean clip_norm",
    "steps": "unknown",
    "foo": "unknown; Adam has lr, betas",
    "step": "step: ",
    "iterations": "iterations: can't be set",
    "state": "state: can't be set",
    "param_groups": "param_groups: can't be set",
    "grad_norm": "grad_norm: can't be set",
    "skipped_steps": "skipped_steps: can't be set",
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_that_are_not_there(name: str) -> None:
    opt = schuss.Adam({"w": fresh()})
    with Unchanged(opt, AttributeError, f"{name}: ", ATTRIBUTES[name]):
        setattr(opt, name, 1.0)


@pytest.mark.parametrize("name", ["learning_rate", "clip_nrm", "step", "iterations"])
def test_a_users_class_has_attributes_of_its_own_but_no_misspelt_ones(name: str) -> None:
    opt = Mine({"w": fresh()})
    opt.history.append(1.0)
    opt.epoch = 3  # type: ignore[attr-defined]
    with Unchanged(opt, AttributeError, f"{name}: "):
        setattr(opt, name, 1.0)
    other = pickle.loads(pickle.dumps(opt))
    assert (other.history, other.epoch) == ([1.0], 3)


def test_what_the_constructor_calls_zero_grad_is_set_by_that_name() -> None:
    g = fresh()
    opt = schuss.SGD({"w": fresh()}, grads={"w": g})
    opt.zero_grad = True
    assert opt.zeroes_grad
    assert opt.step()
    assert not g.any()
    g[:] = 1
    opt.zero_grad()
    assert not g.any()
    with Unchanged(opt, TypeError, "zero_grad: 'yes' is not True or False"):
        opt.zero_grad = "yes"


ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt": ({"clip_nrm": 1.0}, "clip_nrm: unknown; did you mean clip_norm, an option of the"),
    "of Keras": ({"global_clipnorm": 1.0}, "global_clipnorm: unknown; did you mean clip_norm"),
    "of the paper": ({"epsilon": 1.0}, "epsilon: unknown; did you mean eps, an option of a group"),
    "of nobody": ({"foo": 1.0}, "foo: unknown; Adam has lr, betas, eps"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_that_are_not_there(case: str) -> None:
    options, says = ARGUMENTS[case]
    with pytest.raises(TypeError) as info:
        schuss.Adam({"w": fresh()}, **options)
    assert str(info.value).startswith(says)
    opt = schuss.Adam({"w": fresh()})
    with Unchanged(opt, TypeError, says):
        opt.add_param_group({"params": {"b": fresh()}, **options})
    with Unchanged(opt, TypeError, says):
        opt.param_groups[0].update(options)
    if case == "of nobody":
        assert all(name in str(info.value) for name in schuss.Adam.options)


@pytest.mark.parametrize("name", schuss.Adam.options)
def test_options_of_the_optimizer_in_a_group(name: str) -> None:
    opt = schuss.Adam({"w": fresh()})
    value = opt.options[name].default
    says = f"{name}: an option of the optimizer, not of a group; pass it as Adam(..., {name}=)"
    with Unchanged(opt, TypeError, says):
        opt.add_param_group({"params": {"b": fresh()}, name: value})
    with Unchanged(opt, TypeError, says):
        opt.param_groups[0][name] = value


# ---- What is refused leaves the optimizer as usable as before


def with_mean() -> tuple[Optimizer, Any]:
    opt = schuss.SGD({"w": fresh()}, lr=0.5, ema=0.5)
    return opt, opt.averaged


class Evaluated:
    """The Schedule-Free rules' evaluation as a `with`."""

    def __init__(self, opt: schuss.ScheduleFreeAdamW) -> None:
        self.opt = opt

    def __enter__(self) -> None:
        self.opt.eval()

    def __exit__(self, *_: object) -> None:
        self.opt.train()


def schedule_free() -> tuple[Optimizer, Any]:
    opt = schuss.ScheduleFreeAdamW({"w": fresh()}, lr=0.5)
    return opt, lambda: Evaluated(opt)


# What is called, and whether it is done while something else stands where the parameters were.
CALLS: dict[str, tuple[Callable[[Optimizer], Any], bool]] = {
    "step": (lambda opt: opt.step({"w": ONE}), False),
    "step of other arrays": (lambda opt: opt.step({"w": ONE}, params={"w": fresh()}), False),
    "rebind": (lambda opt: opt.rebind({"w": fresh()}), False),
    "load_state_dict": (lambda opt: opt.load_state_dict(opt.state_dict()), False),
    "refresh": (lambda opt: opt.refresh(), False),
    "add_param_group": (lambda opt: opt.add_param_group({"params": {"b": fresh()}}), True),
    "state_dict": (lambda opt: opt.state_dict(), True),
    "an option": (lambda opt: setattr(opt, "lr", 0.5), True),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("make", [with_mean, schedule_free])
def test_while_something_else_stands_where_the_parameters_were(make: Any, call: str) -> None:
    (opt, elsewhere), (plain, _) = make(), make()
    for o in (opt, plain):
        for _ in range(3):
            o.step({"w": ONE})
    do, done = CALLS[call]
    x = opt.param_groups[0]["params"][0]
    before = x.copy()
    with elsewhere():
        assert (x != before).any()
        if done:
            do(opt)
        else:
            with Unchanged(opt, RuntimeError, "the parameters hold their"):
                do(opt)
    assert (x == before).all()
    grads = {p.name: ONE for p in opt._parameters}
    for _ in range(2):
        opt.step(grads)
        plain.step({"w": ONE})
    assert (x == plain.param_groups[0]["params"][0]).all()


def test_evaluation_that_was_saved_goes_on_the_same_path() -> None:
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((9, 3))
    w = np.ones(3)
    ours = schuss.ScheduleFreeAdamW([w], lr=0.1)
    for g in gradients[:5]:
        ours.step([g])
    ours.eval()
    saved, average = ours.state_dict(), w.copy()
    ours.train()
    fresh_w = average.copy()
    other = schuss.ScheduleFreeAdamW([fresh_w], lr=0.1)
    other.load_state_dict(saved)
    other.train()
    for g in gradients[5:]:
        ours.step([g])
        other.step([g])
    assert np.allclose(w, fresh_w, rtol=1e-12)


TOGETHER: dict[str, tuple[dict[str, Any], str, Any, str]] = {
    "no chance with a master": (
        {"master": True},
        "stochastic_rounding",
        True,
        "stochastic_rounding: not with master",
    ),
    "a loss scale needs steps that are skipped": (
        {"grad_scale": schuss.LossScale(), "nonfinite": "skip"},
        "nonfinite",
        "raise",
        'grad_scale: a LossScale needs nonfinite="skip"',
    ),
    "and is refused without": ({}, "grad_scale", schuss.LossScale(), "grad_scale: a LossScale"),
    "one of two ways to clip": ({"clip_value": 1.0}, "clip_norm", 1.0, "clip_value: not with"),
    "the other": ({"clip_norm": 1.0}, "clip_value", 1.0, "clip_value: not with clip_norm"),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_options_that_do_not_go_together(case: str) -> None:
    """Neither at construction nor later: where they only meet in a step, that changes nothing."""
    options, name, value, says = TOGETHER[case]
    with pytest.raises(ValueError, match=says.split(";", maxsplit=1)[0]):
        schuss.SGD({"w": fresh()}, **{**options, name: value}).step({"w": ONE})
    opt = schuss.SGD({"w": fresh()}, **options)
    before = getattr(opt, name)
    setattr(opt, name, value)
    for _ in range(2):
        with Unchanged(opt, ValueError, says):
            opt.step({"w": ONE})
    setattr(opt, name, before)
    assert opt.step({"w": ONE})


# ---- What was taken from the parameters before they were filled


# Rules and options that keep something of the parameter, its names in the state, and what a step of
# lr 0 leaves in it.
KEEPERS: dict[str, tuple[type[Optimizer], dict[str, Any], tuple[str, ...]]] = {
    "master": (schuss.SGD, {"master": True}, ("master",)),
    "mean": (schuss.SGD, {"ema": 0.5}, ("ema",)),
    "both": (schuss.Adam, {"master": True, "ema": 0.5}, ("master", "ema")),
    "Prodigy": (schuss.Prodigy, {}, ("p0",)),
    "ScheduleFreeSGD": (schuss.ScheduleFreeSGD, {}, ("z",)),
    "ScheduleFreeAdamW": (schuss.ScheduleFreeAdamW, {}, ("z",)),
    "ASGD": (schuss.ASGD, {}, ("ax",)),
}


def test_every_rule_that_keeps_something_of_the_parameter_is_here() -> None:
    keep = {rule for rule in rules.RULES if rule.starting}
    assert keep <= {rule for rule, *_ in KEEPERS.values()}


def keeper(case: str, backend: Backend, value: float = 0.0) -> tuple[Optimizer, np.ndarray]:
    rule, options, _ = KEEPERS[case]
    x = np.full(5, value, F2 if "master" in options else F4)
    own: dict[str, Any] = {"weight_decay": 0.0} if "weight_decay" in rule.hyperparameters else {}
    return rule({"w": x}, lr=0.0, backend=backend, **own, **options), x


def ones(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"w": np.ones_like(x)}


@backends()
@pytest.mark.parametrize("case", KEEPERS)
def test_weights_loaded_before_the_first_step_count(case: str, backend: Backend) -> None:
    opt, x = keeper(case, backend)
    x[:] = 5
    assert opt.step(ones(x))
    assert (x == 5).all()
    assert all((opt.state["w"][name] == 5).all() for name in KEEPERS[case][2])


@backends()
@pytest.mark.parametrize("way", ["refresh", "rebind", "step"])
@pytest.mark.parametrize("case", KEEPERS)
def test_what_was_taken_from_the_parameters_is_taken_anew(
    case: str, way: str, backend: Backend
) -> None:
    opt, x = keeper(case, backend)
    for _ in range(2):
        opt.step(ones(x))
    kept = {k: v.copy() for k, v in opt.state["w"].items() if isinstance(v, np.ndarray)}
    new = np.full_like(x, 5)
    if way == "refresh":
        x[:] = 5
        opt.refresh()
        new = x
    elif way == "rebind":
        opt.rebind({"w": new})
    if way == "step":
        opt.step(ones(x), params={"w": new})
    else:
        state, names = opt.state["w"], KEEPERS[case][2]
        assert all((state[name] == 5).all() for name in names)
        others = [k for k in kept if k not in names]
        assert all((state[k] == kept[k]).all() for k in others)
        assert (state["step"], opt.iterations) == (2, 2)
        opt.step(ones(x))
    assert (new == 5).all()
    assert (opt.state["w"]["step"], opt.iterations) == (3, 3)


@pytest.mark.parametrize("case", KEEPERS)
def test_arrays_of_equal_values_leave_what_was_taken(case: str) -> None:
    opt, x = keeper(case, "compiled")
    opt.lr = 0.5
    for _ in range(3):
        opt.step(ones(x))
    before = snapshot(opt)
    opt.rebind({"w": x.copy()})
    assert snapshot(opt) == before


def test_a_master_whose_rounding_is_no_longer_the_parameter() -> None:
    for dtype in (F2, ml_dtypes.bfloat16):
        for place in (0, -1, slice(None)):
            x = np.linspace(-1, 1, 100).astype(dtype)
            opt = schuss.AdamW({"w": x}, master=True)
            for _ in range(2):
                assert opt.step({"w": np.ones(100, F4)})
            x[place] = 7
            with Unchanged(opt, ValueError, 'params["w"]: no longer what its master', "refresh()"):
                opt.step({"w": np.ones(100, F4)})
            opt.refresh()
            assert opt.step({"w": np.ones(100, F4)})
            assert float(x[place].flat[0] if isinstance(place, slice) else x[place]) > 6.9


def test_a_master_of_a_stateless_call_is_the_callers() -> None:
    """At the first step, too; the optimizer's own begins there as the parameter is."""
    for backend in ("compiled", "numpy"):
        for step in (1, 2):
            x, master = np.full(3, 0.1, F2), np.full(3, 0.1, F4)
            g = np.ones(3, F4)
            schuss.functional.sgd(x, g, master=master, step=step, lr=1e-5, backend=backend)
            assert (master == F4(0.1) - F4(1e-5)).all()


def test_a_parameter_that_is_not_a_number_is_no_wrong_master() -> None:
    x = np.full(3, np.nan, F2)
    opt = schuss.AdamW({"w": x}, master=True)
    for _ in range(3):
        assert opt.step({"w": np.ones(3, F4)})


# ---- What a step is told: its rate, its arrays


@backends()
@pytest.mark.parametrize("rule", rules.RULES)
def test_rate_of_a_step(rule: type[Optimizer], backend: Backend) -> None:
    """As if it had been set for that step, and set back."""
    if rule.hyperparameters["lr"].fixed:
        pytest.skip("the rate is that of the start")
    told, sets = (rule({"w": np.linspace(-1, 1, 9)}, lr=0.5, backend=backend) for _ in range(2))
    for t, lr in enumerate((None, 0.25, 0.125, None, 0.0625, None)):
        g = {"w": np.cos(np.arange(9.0) + t)}
        told.step(g, lr=lr, loss=1.0)
        if lr is not None:
            sets.lr = lr
        sets.step(g, loss=1.0)
        sets.lr = 0.5
    assert told.lr == 0.5
    assert snapshot(told)[:-1] == snapshot(sets)[:-1]


def test_rate_of_a_step_is_that_of_all_groups() -> None:
    opt = schuss.SGD([{"params": [fresh()]}, {"params": [fresh()], "lr": lambda n: 9.0}], lr=9.0)
    opt.step([[ONE], [ONE]], lr=0.5)
    assert [x[0] for g in opt.param_groups for x in g["params"]] == [0.5, 0.5]
    assert opt.lr == 9.0


@pytest.mark.parametrize("lr", [-1.0, np.nan, np.inf, "1", True, lambda n: 0.1, np.ones(2)])
def test_rate_of_a_step_is_a_number(lr: Any) -> None:
    opt = schuss.SGD({"w": fresh()})
    with Unchanged(opt, (TypeError, ValueError), "lr: "):  # type: ignore[arg-type]
        opt.step({"w": ONE}, lr=lr)


def test_rate_of_a_step_where_it_is_fixed() -> None:
    opt = schuss.Rprop({"w": fresh()})
    with Unchanged(opt, TypeError, "lr: 0.5 is for one step, but fixed at construction"):
        opt.step({"w": ONE}, lr=0.5)


def test_arrays_of_a_step() -> None:
    ours, theirs = flat(), flat()
    opt = schuss.SGD(ours, lr=1.0, momentum=0.5)
    g = {"w": ONE, "b": ONE}
    assert opt.step(g, params=ours)
    assert opt.holds(ours)
    assert opt.step(g, params=theirs)
    assert opt.holds(theirs)
    assert not opt.holds(ours)
    assert (ours["w"] == 0).all()  # 1 - 1
    assert (theirs["w"] == -0.5).all()  # 1 - (1 + 0.5)
    replaced(ours, "w")  # is watched no longer
    assert opt.step(g)
    theirs["w"] = theirs["w"] + 1
    assert opt.step(g, params=theirs)


WRONG_STEPS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "gradient": ({"w": ONE, "b": np.ones(4, F4)}, flat, 'grads["b"]: shape (4,)'),
    "loss scale": ({"w": ONE, "b": ONE}, flat, "grad_scale: "),
    "shape": ({"w": ONE, "b": ONE}, lambda: {"w": fresh(), "b": np.ones(4, F4)}, 'params["b"]: '),
    "type": ({"w": ONE, "b": ONE}, lambda: {"w": fresh(), "b": np.ones(3)}, 'params["b"]: '),
    "structure": ({"w": ONE, "b": ONE}, lambda: {"w": fresh()}, "params: missing 'b'"),
    "overlap": ({"w": ONE, "b": ONE}, lambda: dict.fromkeys("wb", fresh()), "overlaps"),
    "None": ({"w": ONE, "b": ONE}, lambda: {"w": fresh(), "b": None}, 'params["b"]: NoneType'),
}


@pytest.mark.parametrize("options", [{}, {"ema": 0.5}])
@pytest.mark.parametrize("case", WRONG_STEPS)
def test_a_step_of_other_arrays_that_fails_leaves_the_old_ones(
    case: str, options: dict[str, Any]
) -> None:
    grads, make, says = WRONG_STEPS[case]
    params = flat()
    opt = schuss.Adam(params, **options)
    opt.step({"w": ONE, "b": ONE})
    scale: dict[str, Any] = {"grad_scale": -1.0} if case == "loss scale" else {}
    with Unchanged(opt, (TypeError, ValueError), says):  # type: ignore[arg-type]
        opt.step(grads, params=make(), **scale)
    assert opt.holds(params)
    assert opt.step({"w": ONE, "b": ONE})
    replaced(params, "w")
    with Unchanged(opt, ValueError, 'params["w"]: another array'):
        opt.step({"w": ONE, "b": ONE})


def test_holds() -> None:
    params = nested()
    opt = schuss.SGD(params)
    assert opt.holds(params)
    assert opt.holds(foreign(params))
    assert opt.holds(copy.copy(params))
    others: list[Any] = [nested(), {}, None, [], {**params, "more": fresh()}, params["body"], 3]
    assert not any(map(opt.holds, others))
    grouped = two_groups()
    (w,), (a, b) = (g["params"] for g in grouped.param_groups)
    assert grouped.holds({"head": {"w": w}, "body": [a, b]})
    assert not grouped.holds({"head": {"w": w}, "body": [b, a]})


# ---- Gradients of other kinds


@backends()
@pytest.mark.parametrize("dtype", [F4, float, F2])
@pytest.mark.parametrize("number", [2.0, 2, F4(2), float, np.float16(2)])
def test_a_number_for_a_parameter_of_no_dimension(
    number: Any, dtype: Any, backend: Backend
) -> None:
    if number is float:
        number = np.dtype(dtype).type(2)  # NumPy's own, of the parameter's type
    if isinstance(number, np.generic) and (number.dtype == float) != (dtype is float):
        pytest.skip("refused, as an array of this type is")
    x, y = np.zeros((), dtype), np.zeros((), dtype)
    one, other = (schuss.Adam({"s": a}, backend=backend, ema=0.5) for a in (x, y))
    for _ in range(3):
        assert one.step({"s": number})
        assert other.step({"s": np.array(number, dtype)})
    assert x == y != 0
    assert schuss.SGD(x, backend=backend).step(number)


@pytest.mark.parametrize("number", [True, np.float64(1), 1j, "1", np.int64(1)])
def test_what_is_no_such_number(number: Any) -> None:
    opt = schuss.SGD({"s": np.zeros((), F4)})
    with Unchanged(opt, TypeError, 'grads["s"]: '):
        opt.step({"s": number})


def test_missing() -> None:
    opt = schuss.SGD(nested(), lr=1.0, missing="skip")
    for container in (dict, foreign):
        assert opt.step(container({"head": {"w": ONE}}))
        assert opt.step(container({"body": [{"b": ONE}]}))
        assert opt.step({})
    steps = {name: s["step"] for name, s in opt.state.items()}
    assert steps == {"body.0.w": 0, "body.0.b": 2, "body.1.w": 0, "body.1.b": 0, "head.w": 2}
    assert opt.iterations == 6
    with Unchanged(opt, ValueError, "grads: unknown 'tail'; wanted"):
        opt.step({"tail": ONE})
    opt.missing = "raise"
    with Unchanged(opt, ValueError, "missing 'body'; wanted"):
        opt.step({"head": {"w": ONE}})


CONVERTED: dict[str, Callable[[], Any]] = {
    "type": lambda: np.arange(6.0).reshape(2, 3),
    "order": lambda: np.asfortranarray(np.arange(6, dtype=F4).reshape(2, 3)),
    "strides": lambda: np.arange(24, dtype=F4).reshape(4, 6)[::2, ::2],
    "byte order": lambda: np.arange(6, dtype=">f4").reshape(2, 3),
    "whole numbers": lambda: np.arange(6).reshape(2, 3),
    "list": lambda: [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
}


@backends()
@pytest.mark.parametrize("case", CONVERTED)
def test_convert(case: str, backend: Backend) -> None:
    x, y = np.zeros((2, 3), F4), np.zeros((2, 3), F4)
    opt = schuss.Adam({"w": x, "b": fresh()}, convert=True, backend=backend)
    plain = schuss.Adam({"w": y, "b": fresh()}, backend=backend)
    g = CONVERTED[case]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert opt.step({"w": g, "b": ONE})
            plain.step({"w": np.ascontiguousarray(g, F4), "b": ONE})
    (warning,) = caught
    text = str(warning.message)
    assert text.startswith('grads["w"]: ')
    assert "one more pass over it, and 24 bytes" in text
    assert warning.filename == __file__
    assert (x == y).all()
    assert x.any()


WRONG_CONVERTED: dict[str, Any] = {
    "shape": np.ones((3, 2), F4),
    "row": np.ones(3, F4),
    "number": 1.0,
    "complex": np.ones((2, 3), complex),
    "text": "w",
}


@pytest.mark.parametrize("case", WRONG_CONVERTED)
@pytest.mark.filterwarnings("ignore:grads")
def test_what_can_not_be_converted(case: str) -> None:
    opt = schuss.SGD({"w": np.zeros((2, 3), F4)}, convert=True)
    opt.step({"w": np.ones((2, 3))})
    with Unchanged(opt, (TypeError, ValueError), 'grads["w"]: '):  # type: ignore[arg-type]
        opt.step({"w": WRONG_CONVERTED[case]})


@backends()
@pytest.mark.filterwarnings("ignore:grads")
@pytest.mark.parametrize(
    "make",
    [
        lambda x: schuss.SGD(x, convert=True, zero_grad=True),
        lambda x: schuss.Muon(x, convert=True, zero_grad=True),
    ],
)
def test_the_users_own_gradient_is_zeroed(make: Any, backend: Backend) -> None:
    opt = make({"w": np.ones((2, 2), F4)})
    opt.backend = backend
    g = np.ones((2, 2))
    assert opt.step({"w": g})
    assert not g.any()
    opt.nonfinite = "skip"
    g[:] = np.inf
    assert not opt.step({"w": g})
    assert not g.any()
    read_only = np.ones((2, 2))
    read_only.flags.writeable = False
    for wrong in (read_only, [[1.0, 1.0], [1.0, 1.0]]):
        with Unchanged(opt, (TypeError, ValueError), 'grads["w"]: '):  # type: ignore[arg-type]
            opt.step({"w": wrong})


# ---- What is shown, what is saved


OTHER_OPTIONS: dict[str, Any] = {
    "grad_scale": 2.0,
    "clip_norm": 3.0,
    "nonfinite": "skip",
    "zero_grad": True,
    "clip_norm_per": "row",
    "rows": "counted",
    "ema": 0.5,
    "state_dtype": "float16",
    "state_dir": "a folder of its own",
    "master": True,
    "stochastic_rounding": True,
    "seed": 7,
    "subnormals": "keep",
    "missing": "skip",
    "convert": True,
    "backend": "numpy",
}


def test_all_options_are_here() -> None:
    assert OTHER_OPTIONS.keys() == schuss.SGD.options.keys()


@pytest.mark.parametrize("name", OTHER_OPTIONS)
@pytest.mark.parametrize("rule", [schuss.AdamW, schuss.Muon])
def test_what_differs_from_the_defaults_is_shown(
    rule: type[Optimizer], name: str, tmp_path: Path
) -> None:
    if rule is schuss.Muon and name in ("state_dtype", "rows"):
        pytest.skip("is not for matrices")
    value = str(tmp_path) if name == "state_dir" else OTHER_OPTIONS[name]
    plain = repr(rule({"w": np.ones((2, 2))}))
    assert not any(f"{option}=" in plain for option in OTHER_OPTIONS)
    options: dict[str, Any] = {name: value}
    opt = rule({"w": np.ones((2, 2), F4)}, **options)
    shown = value if name != "state_dtype" else opt.state_dtype
    assert f"{name}={shown!r}" in repr(opt)
    assert name in opt.state_dict()["options"]


def test_hyperparameters_that_differ_are_shown() -> None:
    opt = schuss.AdamW([{"params": [fresh()], "betas": (0.5, 0.9)}, {"params": [fresh()]}], l2=0.5)
    assert repr(opt.param_groups) == (
        "(Group(1 arrays, 3 parameters, lr=0.001, betas=(0.5, 0.9), l2=0.5), "
        "Group(1 arrays, 3 parameters, lr=0.001, l2=0.5))"
    )
    assert all(repr(group) in repr(opt) for group in opt.param_groups)


# Live options of which a run's result depends: what a resumed one goes on with.
LIVE = ("clip_norm", "nonfinite", "zero_grad", "stochastic_rounding", "seed", "subnormals")


@pytest.mark.parametrize("name", LIVE)
def test_live_options_are_loaded(name: str) -> None:
    value = OTHER_OPTIONS[name]
    saved = schuss.SGD({"w": fresh()}, **{name: value}).state_dict()
    opt = schuss.SGD({"w": fresh()})
    opt.load_state_dict(saved)
    assert vars(opt)[opt.options[name].key] == value
    assert opt.state_dict()["options"] == saved["options"]


def test_a_fixed_option_that_is_another_is_an_error() -> None:
    saved = schuss.SGD({"w": fresh()}, ema=0.5).state_dict()
    opt = schuss.SGD({"w": fresh()}, ema=0.25)
    with Unchanged(opt, ValueError, "ema: 0.5 was saved, but 0.25 is fixed here"):
        opt.load_state_dict(saved)


@pytest.mark.parametrize(
    ("name", "value"),
    [("clip_norm", -1.0), ("nonfinite", "no"), ("zero_grad", 3), ("seed", 0.5), ("seed", None)],
)
def test_a_saved_option_that_is_wrong_changes_nothing(name: str, value: Any) -> None:
    opt = schuss.SGD({"w": fresh()})
    saved = opt.state_dict()
    saved["options"].update({"clip_norm": 2.0, name: value})
    with Unchanged(opt, (TypeError, ValueError), f"{name}: "):  # type: ignore[arg-type]
        opt.load_state_dict(saved)


# ---- Python that runs within a step


class Meddling(np.ndarray):
    """A gradient that does something when the step reads its type."""

    between: Callable[[], Any] | None = None

    @property
    def dtype(self) -> Any:
        between, Meddling.between = Meddling.between, None
        if between is not None:
            between()
        return np.ndarray.dtype.__get__(self)


def meddles() -> dict[str, Callable[[Optimizer, dict[str, Any], dict[str, Any]], Any]]:
    return {
        "gradients go": lambda opt, params, grads: grads.clear(),
        "parameters go": lambda opt, params, grads: params.clear(),
        "an option": lambda opt, params, grads: setattr(opt, "nonfinite", "skip"),
        "the backend": lambda opt, params, grads: setattr(opt, "backend", "numpy"),
        "a number": lambda opt, params, grads: setattr(opt, "lr", 0.25),
        "a schedule": lambda opt, params, grads: setattr(opt, "lr", lambda n: 0.25),
        "a step": lambda opt, params, grads: opt.step(dict.fromkeys("abc", ONE)),
        "a rebind": lambda opt, params, grads: opt.rebind({k: fresh() for k in "abc"}),
        "a group": lambda opt, params, grads: opt.add_param_group({"params": {"d": fresh()}}),
        "a load": lambda opt, params, grads: opt.load_state_dict(opt.state_dict()),
        "refreshed": lambda opt, params, grads: opt.refresh(),
        "resized": lambda opt, params, grads: params["a"].resize(1 << 16, refcheck=False),
        "frozen": lambda opt, params, grads: params["c"].setflags(write=False),
    }


@pytest.mark.parametrize("place", "abc")
@pytest.mark.parametrize("case", meddles())
def test_python_within_a_step(case: str, place: str) -> None:
    """A whole step or none; and the optimizer goes on."""
    params: dict[str, Any] = {k: fresh() for k in "abc"}
    arrays = list(params.values())
    opt = schuss.Momentum(params, lr=0.5, ema=0.5)
    for _ in range(3):
        opt.step({k: fresh().view(Meddling) for k in "abc"})
    for dtype in (F4, float, ml_dtypes.float8_e4m3fn):
        before = [a.copy() for a in arrays]
        count = opt.iterations
        grads = {k: fresh().view(Meddling) for k in "abc"}
        grads[place] = np.ones(3, dtype).view(Meddling)
        meddle = meddles()[case]
        Meddling.between = lambda grads=grads, meddle=meddle: meddle(opt, params, grads)
        try:
            done = opt.step(grads)
        except (TypeError, ValueError, RuntimeError):
            done = False
        Meddling.between = None
        assert opt.iterations == count + done
        moved = [not np.array_equal(a[:3], b) for a, b in zip(arrays, before, strict=True)]
        assert moved == [done] * 3
        if case == "resized":
            arrays[0].resize(3, refcheck=False)
        arrays[2].flags.writeable = True
        params.update(zip("abc", arrays, strict=True))
        assert opt.step(dict.fromkeys("abc", ONE))


# ---- What an error shows


def wrong_calls() -> dict[str, Callable[[], Any]]:
    opt = schuss.AdamW(nested())
    muon = schuss.Muon({"w": np.ones((2, 2))})
    saved = opt.state_dict()
    saved["state"].pop("head.w")
    grads = like(nested())
    return {
        "lr": lambda: schuss.AdamW([fresh()], lr=-1.0),
        "unknown": lambda: schuss.AdamW([fresh()], lrr=1.0),  # type: ignore[call-arg]
        "preset": lambda: schuss.AdamW([fresh()], preset="no"),  # type: ignore[arg-type]
        "option": lambda: schuss.AdamW([fresh()], clip_norm=-1.0),
        "parameter": lambda: schuss.AdamW([1.0]),
        "integers": lambda: schuss.AdamW([np.ones(3, int)]),
        "overlap": lambda: schuss.AdamW([ONE, ONE]),
        "bound gradients": lambda: schuss.AdamW([fresh()], grads=[]),
        "of the last": lambda: schuss.Muon([fresh()], other={"lr": -1.0}),
        "kernels": lambda: schuss.SGD([fresh()], nesterov=True),
        "shape": lambda: opt.step({**grads, "head": {"w": np.ones(4, F4)}}),
        "type": lambda: opt.step({**grads, "head": {"w": np.ones(3)}}),
        "structure": lambda: opt.step({**grads, "head": {"v": ONE}}),
        "a list": lambda: opt.step([ONE]),
        "nothing": lambda: opt.step(None),
        "rate": lambda: opt.step(grads, lr=-1.0),
        "scale": lambda: opt.step(grads, grad_scale=-1.0),
        "arrays": lambda: opt.step(grads, params=[ONE]),
        "matrix": lambda: muon.step({"w": np.ones(2)}),
        "group": lambda: opt.add_param_group({"params": {"v": ONE}, "lr": -1.0}),
        "no group": lambda: opt.add_param_group([ONE]),  # type: ignore[arg-type]
        "rebind": lambda: opt.rebind([ONE]),
        "load": lambda: opt.load_state_dict(saved),
        "no state": lambda: opt.load_state_dict({}),
        "set": lambda: setattr(opt, "lr", -1.0),
        "set an option": lambda: setattr(opt, "clip_norm", -1.0),
        "set what isn't": lambda: setattr(opt, "learning_rate", 1.0),
        "set in a group": lambda: opt.param_groups[0].update(lr=-1.0),
        "metric": lambda: opt.observe("a"),  # type: ignore[arg-type]
        "stateless": lambda: schuss.functional.adam(ONE, ONE, ONE, ONE, step=1, lr=-1.0),
        "stateless option": lambda: schuss.functional.adam(ONE, ONE, ONE, ONE, step=1, eps=-1.0),
        "stateless array": lambda: schuss.functional.adam(ONE, ONE[:2], ONE, ONE, step=1),
        "loss scale": lambda: schuss.LossScale(init=-1.0),
    }


@pytest.mark.parametrize("case", wrong_calls())
def test_a_wrong_argument_shows_at_most_three_of_our_frames(case: str) -> None:
    with pytest.raises((TypeError, ValueError, AttributeError)) as info:
        wrong_calls()[case]()
    shown = traceback.extract_tb(info.value.__traceback__)
    ours = [frame for frame in shown if frame.filename != __file__]
    assert len(ours) <= 3, ours
    assert shown[1].filename == __file__  # where the user called


def test_what_was_raised_in_the_users_code_shows_its_line() -> None:
    def lr(n: int) -> float:
        raise ValueError("mine")

    def no_decay(name: str, a: np.ndarray) -> bool:
        raise TypeError("mine")

    opt = schuss.SGD([fresh()], lr=lr)
    calls: list[Callable[[], Any]] = [
        lambda: opt.step([ONE]),
        lambda: schuss.SGD([fresh()], no_decay=no_decay),
        lambda: opt.add_param_group({"params": [fresh()], "no_decay": no_decay}),
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError), match="mine") as info:
            call()
        names = [frame.name for frame in traceback.extract_tb(info.value.__traceback__)]
        assert names[-1] in ("lr", "no_decay")
