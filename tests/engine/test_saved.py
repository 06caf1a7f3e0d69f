"""State dictionaries that don't fit, and copies."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss
from engine.trained import train, trained
from engine.unchanged import Unchanged, snapshot
from schuss import rules
from schuss.engine.optimizer import Optimizer
from schuss.rules import matrix

F4 = np.float32
ALL: tuple[type[Optimizer], ...] = (*rules.RULES, *matrix.RULES)


def evaluated() -> Optimizer:
    opt, _ = trained(schuss.ScheduleFreeAdamW, 2)
    opt.eval()  # type: ignore[attr-defined]
    return opt


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
        (
            lambda s: s["param_groups"][0].update(params=["a"]),
            "param_groups: other parameters: ['a']; wanted ['a', 'w1', 'z']",
        ),
        (
            lambda s: s["param_groups"].pop(),
            "param_groups: other parameters: none; wanted ['a', 'w1', 'z']",
        ),
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


def test_copy() -> None:
    with pytest.raises(TypeError, match=r"use copy\.deepcopy"):
        copy.copy(schuss.SGD(np.zeros(3)))


def test_what_is_no_state_dictionary(opt: Optimizer) -> None:
    nothing: list[Any] = [None, [], "state", {}]
    for value in nothing:
        with Unchanged(opt, TypeError, "state_dict: wanted a mapping with"):
            opt.load_state_dict(value)


def test_parameters_in_other_groups() -> None:
    one = schuss.SGD([np.zeros(1) for _ in range(9)])
    two = schuss.SGD([{"params": [np.zeros(1) for _ in range(n)]} for n in (6, 3)])
    more = "['0', '1', '2', '3', '4', ... and 1 more] and ['6', '7', '8']"
    with Unchanged(one, ValueError, f"other parameters: {more}; wanted ['0', '1'"):
        one.load_state_dict(two.state_dict())


# ---- Which rule


def test_no_rule_takes_another_ones_state() -> None:
    """Even where the arrays have the same names: AdamW's decay is not Adam's."""
    saved = {rule: rule({"w": np.ones((2, 2))}).state_dict() for rule in ALL}
    for rule in ALL:
        opt = rule({"w": np.ones((2, 2))})
        for other, state in saved.items():
            if other is rule:
                opt.load_state_dict(state)
                continue
            says = f"rule: {other.__name__!r} was saved, but this is {rule.__name__}"
            with pytest.raises(ValueError, match=says):
                opt.load_state_dict(state)


class Begun(schuss.AdamW):
    """The same rule with another beginning."""

    def epoch(self) -> int:
        return self.iterations // 10


class Doubled(schuss.AdamW):
    """Another rule."""

    @staticmethod
    def scalars(h: Any, t: int, memory: Any) -> dict[str, float]:
        return schuss.AdamW.scalars({**h, "lr": 2 * h["lr"]}, t, memory)


def test_a_class_of_the_users_is_its_base_or_a_rule_of_its_own() -> None:
    plain, begun, doubled = (rule({"w": np.ones(3)}) for rule in (schuss.AdamW, Begun, Doubled))
    begun.load_state_dict(plain.state_dict())
    plain.load_state_dict(begun.state_dict())
    with pytest.raises(ValueError, match="rule: 'AdamW' was saved, but this is Doubled"):
        doubled.load_state_dict(plain.state_dict())


# ---- In which order and form


def test_the_same_names_in_another_order() -> None:
    rng = np.random.default_rng(0)
    shapes = {"a": 3, "b": 4, "c": 5}
    start = {name: rng.standard_normal(n) for name, n in shapes.items()}
    grads = [{name: rng.standard_normal(n) for name, n in shapes.items()} for _ in range(4)]

    def made(*groups: str) -> tuple[Optimizer, dict[str, np.ndarray]]:
        x = {name: a.copy() for name, a in start.items()}
        plateau = schuss.schedules.ReduceOnPlateau(0.1, patience=0)
        rates = {"ab": plateau, "ba": plateau, "c": 0.5}
        opt = schuss.AdamW([{"params": {n: x[n] for n in g}, "lr": rates[g]} for g in groups])
        return opt, x

    def step(opt: Optimizer, t: int) -> None:
        members = [group["param_names"] for group in opt.param_groups]
        opt.step([{n: grads[t][n] for n in names} for names in members])

    one, x = made("ab", "c")
    two, y = made("c", "ba")
    for t in range(2):
        step(one, t)
        one.observe(1.0)
    for name in y:
        y[name][...] = x[name]
    two.load_state_dict(one.state_dict())
    for t in (2, 3):
        step(one, t)
        step(two, t)
    assert [g["lr"] if g["lr"] == 0.5 else g["lr"](0) for g in two.param_groups] == [0.5, 0.1 * 0.1]
    assert all((x[name] == y[name]).all() for name in x)


def through_a_file(state: dict[str, Any], path: Any) -> dict[str, Any]:
    """A state dictionary whose leaves have been in a file of NumPy's, all of them as arrays."""
    flat: dict[str, Any] = {}

    def stored(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {key: stored(inner, f"{name}/{key}") for key, inner in value.items()}
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return [stored(inner, f"{name}/{i}") for i, inner in enumerate(value)]
        if value is None or isinstance(value, tuple):
            return value
        flat[name] = np.asarray(value)
        return name

    def found(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: found(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [found(inner) for inner in value]
        return loaded[value] if isinstance(value, str) else value

    shape = stored(state, "")
    np.savez(path, **flat)
    with np.load(path) as loaded:
        return dict(found(shape))


@pytest.mark.parametrize("rule", ALL)
def test_numbers_that_are_arrays_of_no_dimension(rule: type[Optimizer], tmp_path: Any) -> None:
    options: dict[str, Any] = {"ema": 0.5, "nonfinite": "skip", "seed": 3}
    opt, x = trained(rule, 3, **options)
    other, y = trained(rule, 0, **options)
    saved = opt.state_dict()
    other.load_state_dict(through_a_file(saved, tmp_path / "state.npz"))
    assert repr(other.state_dict()) == repr(saved)
    for name in y:
        y[name][...] = x[name]
    for o, p in ((opt, x), (other, y)):
        train(o, p, 2)
    assert all((x[name] == y[name]).all() for name in x)


# ---- With other state than was saved


SWITCHED: dict[str, tuple[Any, ...]] = {
    "a mean on": ({}, {"ema": 0.5}, ["'w' ema", "'b' ema"], [], []),
    "a mean off": ({"ema": 0.5}, {}, [], ["'w' ema", "'b' ema"], []),
    "another mean": ({"ema": 0.5}, {"ema": 0.9}, [], [], []),
    "amsgrad on": ({}, {"amsgrad": True}, ["'w' max_exp_avg_sq", "'b' max_exp_avg_sq"], [], []),
    "amsgrad off": ({"amsgrad": True}, {}, [], ["'w' max_exp_avg_sq", "'b' max_exp_avg_sq"], []),
    "wider state": (
        {"state_dtype": {"exp_avg": "float16"}}, {}, [], [], ["'w' exp_avg", "'b' exp_avg"]
    ),
    "narrower state": (
        {}, {"state_dtype": {"exp_avg": "float16"}}, [], [], ["'w' exp_avg", "'b' exp_avg"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SWITCHED)
def test_state_switched_on_or_off(case: str) -> None:
    before, after, *differences = SWITCHED[case]  # missing, unexpected, converted
    opt, x = trained(schuss.Adam, 3, **{"lr": 0.5, **before})
    other, y = trained(schuss.Adam, 2, **after)
    for name in y:
        y[name][...] = x[name]
    with Unchanged(other, ValueError, "state_dict: "):
        other.load_state_dict(opt.state_dict())
    assert [*other.load_state_dict(opt.state_dict(), strict=False)] == differences
    assert (other.lr, other.iterations) == (0.5, 3)
    amsgrad = other.param_groups[0]["amsgrad"]
    assert amsgrad is after.get("amsgrad", False)
    assert other.ema_decay == after.get("ema")
    for name, state in ((name, other.state[name]) for name in y):
        saved = opt.state[name]
        assert (state["exp_avg"] == saved["exp_avg"].astype(state["exp_avg"].dtype)).all()
        if "ema" in state:
            assert (state["ema"] == saved.get("ema", y[name])).all()
        if "max_exp_avg_sq" in state:
            assert (state["max_exp_avg_sq"] == 0).all()
    train(other, y, 1)


def test_what_is_refused_even_so() -> None:
    opt, _ = trained(schuss.Adam, 2)
    spoils: list[tuple[Callable[[Any], Any], str]] = [
        (lambda s: s["state"].pop("b"), "missing 'b'"),
        (lambda s: s["state"]["b"].update(exp_avg=np.zeros(3, F4)), "'b' exp_avg: float32"),
        (lambda s: s["state"]["b"].update(exp_avg=np.zeros(7, int)), "'b' exp_avg: int64"),
        (lambda s: s["param_groups"][0].update(lr=-1.0), "lr: -1.0"),
    ]
    for spoil, says in spoils:
        saved = opt.state_dict()
        spoil(saved)
        with Unchanged(opt, ValueError, says):
            opt.load_state_dict(saved, strict=False)


def test_a_scale_without_a_place_is_named() -> None:
    x = {"w": np.ones(3, F4)}
    one = schuss.SGD(x, grad_scale=schuss.LossScale(), nonfinite="skip")
    two = schuss.SGD({"w": np.ones(3, F4)})
    with Unchanged(two, ValueError, "unknown loss_scale, for grad_scale is 1.0 here"):
        two.load_state_dict(one.state_dict())
    assert two.load_state_dict(one.state_dict(), strict=False).unexpected_keys == ["loss_scale"]


def test_arrays_of_the_optimizer_itself_in_other_places() -> None:
    opt, _ = trained(schuss.Adam, 3)
    m, v = (opt.state["w"][key].copy() for key in ("exp_avg", "exp_avg_sq"))
    saved = opt.state_dict()
    saved["state"]["w"] |= {
        "exp_avg": opt.state["w"]["exp_avg_sq"],
        "exp_avg_sq": opt.state["w"]["exp_avg"],
    }
    opt.load_state_dict(saved)
    assert (opt.state["w"]["exp_avg"] == v).all()
    assert (opt.state["w"]["exp_avg_sq"] == m).all()


# ---- While something else stands in the place of the parameters


def averaging(rule: type[Optimizer] = schuss.Adam, **options: Any) -> Any:
    opt, x = trained(rule, 3, ema=0.5, **options)
    return opt, x


@pytest.mark.parametrize("way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_within_averaged_has_the_weights(way: Any) -> None:
    opt, x = averaging()
    weights = copy.deepcopy(x)
    with opt.averaged():
        means = copy.deepcopy(x)
        other, y = way((opt, x))
        assert all((x[n] == means[n]).all() and (means[n] != weights[n]).any() for n in x)
    assert all((y[n] == weights[n]).all() and (x[n] == weights[n]).all() for n in x)
    for o, p in ((opt, x), (other, y)):
        train(o, p, 2)
        with o.averaged():
            pass
    assert all((x[n] == y[n]).all() for n in x)


@pytest.mark.parametrize("within", ["averaged", "eval"])
def test_state_saved_while_something_else_stood_there_has_the_weights(within: str) -> None:
    rule = schuss.ScheduleFreeAdamW if within == "eval" else schuss.Adam
    opt: Any
    fresh: Any
    options: dict[str, Any] = {"ema": 0.5} if within == "averaged" else {}
    opt, x = trained(rule, 3, **options)
    fresh, y = trained(rule, 0, **options)
    if within == "eval":
        opt.eval()
        saved, stood = opt.state_dict(), copy.deepcopy(x)
        opt.train()
    else:
        with opt.averaged():
            saved, stood = opt.state_dict(), copy.deepcopy(x)
    assert saved["form"] == {"averaged": "averaged", "eval": "evaluated"}[within]
    for name in y:
        y[name][...] = stood[name]
    fresh.load_state_dict(saved)
    if within == "eval":
        assert all((y[n] == stood[n]).all() for n in y)  # evaluated, as it was
        with pytest.raises(RuntimeError, match=r"opt\.train\(\)"):
            train(fresh, y, 1)
        fresh.train()
    for o, p in ((opt, x), (fresh, y)):
        train(o, p, 2)
    assert all((x[n] == y[n]).all() for n in x)
    del saved["weights"]["b"]
    with Unchanged(fresh, ValueError, "missing weights of 'b'"):
        fresh.load_state_dict(saved)
    plain, _ = trained(schuss.Adam, 0)
    with Unchanged(plain, ValueError, "form: 'evaluated' is unknown"):
        plain.load_state_dict({**plain.state_dict(), "form": "evaluated"})


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_way_back_that_is_barred_in_the_middle(evaluated: bool) -> None:
    """Nothing comes back, the optimizer says so, and goes on once it can."""
    opt: Any
    opt, x = trained(schuss.ScheduleFreeSGD, 3, ema=0.5)
    weights = copy.deepcopy(x)
    means = opt.averaged()
    there = opt.eval if evaluated else means.__enter__
    back = opt.train if evaluated else lambda: means.__exit__(None, None, None)
    there()
    stood = copy.deepcopy(x)
    x["b"].flags.writeable = False
    with Unchanged(opt, ValueError, 'params["b"]: read-only'):
        back()
    assert all((x[n] == stood[n]).all() for n in x)
    with Unchanged(opt, RuntimeError, "the parameters hold their"):
        train(opt, x, 1)
    x["b"].flags.writeable = True
    if evaluated:
        opt.train()
    else:
        with opt.averaged():
            pass
    assert all((x[n] == weights[n]).all() for n in x)
    train(opt, x, 1)


def test_means_within_means() -> None:
    opt, x = averaging()
    weights = copy.deepcopy(x)
    with opt.averaged():
        means = copy.deepcopy(x)
        with opt.averaged():
            assert all((x[n] == means[n]).all() for n in x)
        assert all((x[n] == means[n]).all() for n in x)
    assert all((x[n] == weights[n]).all() for n in x)


def test_means_that_overflow_the_type_of_the_parameters() -> None:
    """NumPy's warning, which is an error here, comes in between no two arrays."""
    x = {"a": np.ones(3, np.float16), "b": np.ones(3, np.float16)}
    opt = schuss.SGD(x, ema=0.5)
    opt.ema["a"][:] = 1e6
    with np.errstate(all="raise"), opt.averaged():
        assert np.isinf(x["a"]).all()
    assert all((a == 1).all() for a in x.values())


def test_a_pickle_of_another_version() -> None:
    opt, _ = trained(schuss.Adam, 1)
    own = opt.__getstate__()
    for form in (None, 99):
        with pytest.raises(ValueError, match=f"pickle: in form {form} of another version"):
            object.__new__(schuss.Adam).__setstate__({**own, "pickled": form})


@pytest.mark.parametrize("within", ["averaged", "eval"])
def test_a_group_added_meanwhile_is_saved_with_the_weights(within: str) -> None:
    def made() -> Any:
        return trained(schuss.ScheduleFreeSGD, 2, ema=0.5)

    opt, x = made()
    fresh, y = made()
    added = {"n": np.ones(2, F4)}
    means = opt.averaged()
    means.__enter__() if within == "averaged" else opt.eval()
    opt.add_param_group({"params": added})
    fresh.add_param_group({"params": {"n": np.zeros(2, F4)}})
    fresh.load_state_dict(opt.state_dict())
    means.__exit__(None, None, None) if within == "averaged" else opt.train()
    if within == "eval":
        fresh.train()
    for one, two in zip(opt._parameters, fresh._parameters, strict=True):
        assert (one.x == two.x).all()
    assert x.keys() == y.keys()


class Interrupting:
    """Interrupts at the k-th line that is run in this package."""

    def __init__(self, k: int) -> None:
        self.left = k

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        ours = frame.f_globals.get("__name__", "").startswith("schuss.")
        if event == "line" and ours:
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


def test_means_come_and_go_whole_whatever_interrupts() -> None:
    """After an interrupt anywhere, another `with` brings the weights back, and steps go on."""
    opt, x = averaging()
    weights = copy.deepcopy(x)
    interrupted, k = True, 0
    while interrupted:
        k += 1
        interrupted = False
        before = sys.gettrace()
        try:
            sys.settrace(Interrupting(k))
            with opt.averaged():
                pass
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(before)
        with opt.averaged():
            assert all((x[n] == opt.ema[n]).all() for n in x)
        assert all((x[n] == weights[n]).all() for n in x)
    assert k > 20
    train(opt, x, 1)


# ---- What can't be in a state, and counts


def test_what_decays_and_bounds_that_are_arrays_are_compared() -> None:
    def made(**options: Any) -> Optimizer:
        return schuss.AdamW({"w": np.ones(3), "b": np.ones((2, 2))}, **options)

    def flat(name: str, a: np.ndarray) -> bool:
        return a.ndim < 2

    with pytest.raises(ValueError, match=r"no_decay: \['w'\] were saved, but \[\] here"):
        made().load_state_dict(made(no_decay=flat).state_dict())
    made(no_decay=flat).load_state_dict(made(no_decay=flat).state_dict())
    bounds = np.zeros(()), np.array(2.0)
    one = schuss.SGD([np.ones(1)])
    two = schuss.SGD([np.ones(1)], bounds=(np.zeros(1), np.ones(1)))
    with pytest.raises(ValueError, match="bounds: arrays were saved"):
        one.load_state_dict(two.state_dict())
    with pytest.raises(ValueError, match="bounds: None comes too late"):
        two.load_state_dict(one.state_dict())
    assert two.load_state_dict(one.state_dict(), strict=False).unexpected_keys == [
        "param_groups 'bounds'"
    ]
    bounded = made(bounds=bounds)
    bounded.load_state_dict(made().state_dict())
    assert bounded.param_groups[0]["bounds"] is None
    scaled = made()
    scaled.load_state_dict(made(grad_scale=4.0).state_dict())
    assert scaled.grad_scale == 4.0


def test_a_copy_takes_added_groups_out_of_the_decay_as_well() -> None:
    opt = schuss.AdamW({"w": np.ones((3, 3))}, no_decay=lambda name, a: a.ndim < 2)
    other = copy.deepcopy(opt)
    for one in (opt, other):
        one.add_param_group({"params": {"b": np.ones(3)}})
        assert one.param_groups[1]["no_decay"] == ["b"]


def test_each_wrong_number_of_each_group_is_listed() -> None:
    opt = schuss.Adam([{"params": np.ones(1)}, {"params": np.ones(2)}])
    saved = opt.state_dict()
    saved["param_groups"][1] |= {"lr": -1.0, "eps": -2.0, "betas": (2.0, 3.0)}
    with Unchanged(
        opt,
        ValueError,
        "param_groups[1]: lr: -1.0 is out of range",
        "param_groups[1]: eps: -2.0",
        "param_groups[1]: betas[0]: 2.0",
    ):
        opt.load_state_dict(saved)


# ---- Whatever comes from outside


HOSTILE: list[Any] = [
    *(None, True, -1, 0, 0.5, -0.5, 2**53 + 1, 2**62, 2**70, math.nan, math.inf, -math.inf),
    *("", "x", b"x", [], [1.0], (), (0.5,), (0.5, 0.9), {}, {"x": 1}, object(), len, 1j),
    *(np.array(3), np.array(-1.0), np.array("x"), np.zeros(0), np.zeros(3), np.zeros((5, 7), F4)),
    *(np.zeros((5, 7), int), np.array([None]), np.ma.zeros((5, 7), F4), np.zeros(7, "V2")),
]


def spoilt(value: Any, rng: np.random.Generator) -> Any:
    """A copy of a state dictionary with one part replaced, left out, or a new one."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        copied = dict(value)
        key = list(copied)[rng.integers(len(copied))]
        what = rng.random()
        if what < 0.08:
            del copied[key]
        elif what < 0.12:
            copied[HOSTILE[rng.integers(12)]] = copied[key]
        else:
            copied[key] = spoilt(copied[key], rng)
        return copied
    if isinstance(value, list | tuple) and value and rng.random() < 0.85:
        items = list(value)
        i = int(rng.integers(len(items)))
        items[i] = spoilt(items[i], rng)
        return type(value)(items)
    return HOSTILE[rng.integers(len(HOSTILE))]


def as_pytorchs(saved: dict[str, Any]) -> dict[str, Any]:
    """The same state in PyTorch's form."""
    names = [name for group in saved["param_groups"] for name in group["params"]]
    words = {"params", *(k for g in saved["param_groups"] for k, v in g.items() if type(v) is str)}
    groups = [
        {
            **{k: v for k, v in group.items() if k not in words},
            "params": [names.index(name) for name in group["params"]],
        }
        for group in saved["param_groups"]
    ]
    state = {names.index(n): dict(own) for n, own in saved["state"].items()}
    return {"state": state, "param_groups": groups}


def begun(rule: type[Optimizer]) -> Optimizer:
    return trained(rule, 2)[0]


FUZZED: dict[str, Callable[[], Optimizer]] = {
    **{rule.__name__: functools.partial(begun, rule) for rule in ALL},
    "options": lambda: trained(
        schuss.Adam,
        2,
        ema=0.5,
        lr=schuss.schedules.ReduceOnPlateau(0.1),
        grad_scale=schuss.LossScale(),
        nonfinite="skip",
    )[0],
    "evaluated": evaluated,
}


@pytest.mark.parametrize("torch", [False, True], ids=["ours", "PyTorch's"])
@pytest.mark.parametrize("name", FUZZED)
def test_a_state_from_outside_is_refused_or_steps(name: str, torch: bool) -> None:
    opt = FUZZED[name]()
    good = opt.state_dict()
    rng = np.random.default_rng([len(name), torch, *name.encode()])
    tried = 0
    for _ in range(40):
        state = spoilt(as_pytorchs(good) if torch else good, rng)
        other: Any = copy.deepcopy(opt)
        if hasattr(other, "train"):
            other.train()
        before = snapshot(other)
        refused = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                other.load_state_dict(state, strict=bool(rng.random() < 0.5))
        except (TypeError, ValueError) as error:
            refused = str(error)
        if refused is not None:
            assert refused.startswith("state_dict: ")
            assert snapshot(other) == before
            tried += 1
            continue
        if hasattr(other, "train"):
            other.train()
        grads = {p.name: np.ones_like(p.x) for p in other._parameters}
        other.step(grads, loss=2.0)
        other.state_dict()
    assert tried


@pytest.mark.parametrize("rule", ALL)
def test_what_gradients_that_are_not_finite_leave_is_loaded(rule: type[Optimizer]) -> None:
    opt, x = trained(rule, 2)
    for bad in (math.inf, math.nan):
        opt.step({name: np.full_like(a, bad) for name, a in x.items()}, loss=1.0)
    other, _ = trained(rule, 0)
    other.load_state_dict(opt.state_dict())
    assert repr(other.state_dict()) == repr(opt.state_dict())
