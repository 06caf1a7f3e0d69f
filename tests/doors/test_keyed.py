"""Steps under keys: the bits of whole steps, the clock, state that is adopted, loaded, copied."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact.combinations import ONE_BY_ONE, nasty, same_bits

import schuss
from schuss import rules
from schuss.engine.optimizer import Optimizer
from schuss.rules import matrix

pytestmark = pytest.mark.quick

F4 = np.float32
Arrays = dict[Any, np.ndarray]

# A rule with numbers of all arrays, or of the loss, needs all of them at once.
WHOLE = [r for r in rules.RULES if r.shared or r.reads_loss(r.defaults())]
RULES = [r for r in [*rules.RULES, *matrix.RULES] if r not in WHOLE]

SHAPES: dict[Any, tuple[int, ...]] = {
    "w": (12, 64),
    (0, "b"): (65,),
    7: (),
    "none": (0,),
    "long": (3, 1, 1099),
}

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *ONE_BY_ONE,
    ("float16", {"master": True, "nonfinite": "skip", "bounds": (-0.9, 0.9)}),
    ("float32", {"ema": lambda n: 1 - 0.5 / (n + 1), "backend": "numpy"}),
]


def made(dtype: str, seed: int, keys: Any = SHAPES) -> Arrays:
    """New values for each key, few of them at the ends of the type."""
    rng = np.random.default_rng(seed)
    return {k: nasty(rng, math.prod(SHAPES[k]), dtype, 0, False).reshape(SHAPES[k]) for k in keys}


def by_name(arrays: Arrays) -> dict[str, np.ndarray]:
    return {key if isinstance(key, str) else repr(key): a for key, a in arrays.items()}


def values(state: Any) -> Iterator[Any]:
    for key, own in state.items():
        for name, a in own.items():
            yield key, name, np.asarray(a)


def require_same(keyed: schuss.Keyed, x: Arrays, opt: Optimizer, params: Arrays) -> None:
    """The same bits, of the arrays and of all state."""
    assert all(same_bits(a, b) for a, b in zip(x.values(), params.values(), strict=True))
    theirs = dict(opt.state)
    for key, name, a in values(keyed.state):
        other = theirs[key if isinstance(key, str) else repr(key)]
        assert other.keys() == keyed.state[key].keys()
        assert same_bits(a, np.asarray(other[name])), (key, name)


def compared(rule: type[Optimizer], dtype: str, options: dict[str, Any], steps: int = 4) -> None:
    """One call of all arrays against one for each, in any order."""
    x, own = made(dtype, 0), made(dtype, 0)
    keyed = schuss.Keyed(rule, **options)
    opt = rule(by_name(own), **options)
    order = list(x)
    for t in range(steps):
        grads, same = made(dtype, 50 + t), made(dtype, 50 + t)
        for key in order:
            assert keyed(key, x[key], grads[key])
        keyed.tick()
        assert opt.step(by_name(same))
        assert all(same_bits(grads[k], same[k]) for k in order)
        order.reverse()
    require_same(keyed, x, opt, own)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_each_rule_as_in_one_call(rule: type[Optimizer]) -> None:
    compared(rule, "float32", {"lr": schuss.schedules.cosine(0.1, steps=5)})


@pytest.mark.parametrize(("dtype", "options"), OPTIONS)
@pytest.mark.parametrize("rule", [rules.AdamW, rules.NAdam, rules.SGD])
def test_options_as_in_one_call(rule: Any, dtype: str, options: dict[str, Any]) -> None:
    if rule is rules.NAdam:
        options = {k: v for k, v in options.items() if k not in ("decay_mode", "weight_decay")}
    compared(rule, dtype, options)


@pytest.mark.parametrize("rule", WHOLE, ids=lambda rule: rule.__name__)
def test_rules_of_whole_steps_are_refused(rule: type[Optimizer]) -> None:
    options = {"variant": "irprop+"} if rule is rules.Rprop else {}
    with pytest.raises(ValueError, match=f"rule: {rule.__name__} (has numbers|reads the loss)"):
        schuss.Keyed(rule, **options)


# ---- Keys, arrays, the clock


def test_keys_come_late() -> None:
    keyed = schuss.Keyed(schuss.Adam, lr=0.1)
    x, late = np.ones(3, F4), np.ones(2, F4)
    for _ in range(5):
        keyed("x", x, np.ones(3, F4))
    keyed.lr = 0.2
    assert "late" not in keyed
    keyed("late", late, np.ones(2, F4))
    assert np.allclose(late, 0.8)  # a first step is as long as the rate, as it is now
    assert "late" in keyed
    assert [keyed.state[k]["step"] for k in keyed.state] == [5, 1]
    assert repr(keyed) == "Keyed(Adam, keys: 'x', 'late')"


def test_arrays_may_be_others_each_time() -> None:
    """As of a trainer that computes new ones; the memory of old ones is used again."""
    rng = np.random.default_rng(0)
    keyed, opt_x = schuss.Keyed(schuss.Adam, lr=0.1), rng.standard_normal((2, 4, 5)).astype(F4)
    opt = schuss.Adam(list(opt_x), lr=0.1)
    x = opt_x.copy()
    for _ in range(20):
        g = rng.standard_normal((2, 4, 5)).astype(F4)
        x = x * 1  # the arrays of before are free
        for key in (0, 1):
            keyed(key, x[key], g[key])
        opt.step(list(g))
    assert same_bits(x, opt_x)


def test_old_arrays_go() -> None:
    keyed = schuss.Keyed(schuss.SGD, lr=0.1)
    x = np.ones(3)
    gone = weakref.ref(x)
    keyed("x", x, np.ones(3))
    x = np.ones(3)
    keyed("x", x, np.ones(3))
    gc.collect()
    assert gone() is None
    whole = weakref.ref(keyed)
    del keyed
    gc.collect()
    assert whole() is None


def test_the_caller_moves_the_clock() -> None:
    asked: list[int] = []

    def lr(n: int) -> float:
        asked.append(n)
        return 0.1 / (n + 1)

    keyed = schuss.Keyed(schuss.SGD, lr=lr)
    x = [np.zeros(2) for _ in range(20)]
    for batch in range(3):
        assert keyed.iterations == batch
        for i, a in enumerate(x):
            keyed(i, a, np.ones(2))
        keyed.tick()
    assert set(asked) == {0, 1, 2}
    assert np.allclose(x, -0.1 * (1 + 1 / 2 + 1 / 3))
    keyed.iterations = 99
    assert keyed.current_learning_rate == 0.001
    wrongs: list[tuple[Any, type[Exception]]]
    wrongs = [(-1, ValueError), (1.5, TypeError), (True, TypeError)]
    for wrong, error in wrongs:
        with pytest.raises(error, match="iterations: "):
            keyed.iterations = wrong
    assert keyed.iterations == 99


def test_a_plateau_follows() -> None:
    keyed = schuss.Keyed(schuss.SGD, lr=schuss.schedules.ReduceOnPlateau(1.0, patience=0))
    x = np.zeros(1)
    for metric in (1.0, 2.0):
        keyed("x", x, np.ones(1))
        keyed.observe(metric)
        keyed.tick()
    before = x.copy()
    keyed("x", x, np.ones(1))
    assert 0 < before - x < 1


def test_rate_and_number_of_one_step() -> None:
    keyed, x = schuss.Keyed(schuss.Adam, lr=0.1), np.zeros(2)
    keyed("x", x, np.ones(2), 0.5)
    assert np.allclose(x, -0.5)
    keyed("x", x, np.ones(2), 0.5, step=7)
    assert keyed.state["x"]["step"] == 7
    own = {name: a.copy() for name, a in keyed.state["x"].items() if name != "step"}
    y = x.copy()
    keyed("x", x, np.ones(2))
    schuss.functional.adam(y, np.ones(2), **own, step=8, lr=0.1)
    assert same_bits(x, y)
    rate, plain, x = np.array(0.5), schuss.Keyed(schuss.SGD), np.zeros(2)
    for expected in (0.5, 0.25):  # what is no float may change
        rate[...] = expected
        plain("x", x, np.ones(2), rate)  # type: ignore[arg-type]
    assert np.allclose(x, -0.75)


def test_rows_and_copies() -> None:
    keyed, table = schuss.Keyed(schuss.Adam, lr=0.1, rows="counted", convert=True), np.zeros((9, 2))
    keyed("t", table, schuss.Rows(np.array([3, 3]), np.ones((2, 2))))
    keyed("t", table, schuss.Rows(np.array([4]), np.ones((1, 2))))
    assert np.allclose(table[3:5], -0.1)
    assert not table[[0, 8]].any()
    with pytest.warns(UserWarning, match="converted"):
        keyed("c", np.zeros(2), np.ones(2, F4))


def test_options_are_live() -> None:
    keyed, x = schuss.Keyed(schuss.SGD, lr=0.1), np.zeros(2)
    assert (keyed.lr, keyed.clip_norm, keyed.zero_grad) == (0.1, math.inf, False)
    keyed.clip_norm, keyed.lr, keyed.zero_grad = 1.0, 1.0, True
    g = np.array([3.0, 4.0])
    keyed("x", x, g)
    assert np.allclose(x, [-0.6, -0.8])
    assert keyed.grad_norm == 5
    assert not g.any()
    with pytest.raises(AttributeError, match="learning_rate: no option of SGD"):
        keyed.learning_rate = 1
    with pytest.raises(AttributeError, match="betas: no attribute of Keyed"):
        print(keyed.betas)
    with pytest.raises(TypeError, match="grad_scale: LossScale follows whole steps"):
        keyed.grad_scale = schuss.LossScale()
    with pytest.raises(ValueError, match="lr: -1"):
        keyed.lr = -1
    assert (keyed.lr, keyed.grad_scale) == (1, 1)


# ---- State


def test_state_that_is_adopted() -> None:
    """Stepped where it lies, from the step on that it was at."""
    x, m, v = np.ones(3, F4), np.full(3, 0.1, F4), np.full(3, 0.2, F4)
    y, own = x.copy(), (m.copy(), v.copy())
    g = np.linspace(-1, 1, 3, dtype=F4)
    for known in (False, True):
        keyed = schuss.Keyed(schuss.Adam, lr=0.1, ema=0.5)
        if known:
            keyed("x", np.zeros(3, F4), g)
        mean = np.zeros(3, F4)
        keyed.adopt("x", exp_avg=m, exp_avg_sq=v, step=3, ema=mean)
        keyed("x", x, g)
        schuss.functional.adam(y, g, *own, step=4, lr=0.1)
        assert [same_bits(*pair) for pair in zip((x, m, v), (y, *own), strict=True)] == [True] * 3
        assert np.allclose(mean, 0.5 * x)
        assert keyed.state["x"]["exp_avg"] is m
        assert keyed.ema["x"] is mean
        assert keyed.state["x"]["step"] == 4
        keyed.adopt("x", step=10)
        assert keyed.state["x"]["step"] == 10
        assert keyed.state["x"]["exp_avg"] is m


def test_numbers_are_adopted() -> None:
    keyed = schuss.Keyed(schuss.NAdam, lr=0.1)
    keyed.adopt("x", mu_product=0.25, step=2)
    x, y, product = np.ones(2), np.ones(2), np.array(0.25)
    keyed("x", x, np.ones(2))
    schuss.functional.nadam(
        y, np.ones(2), np.zeros(2), np.zeros(2), step=3, mu_product=product, lr=0.1
    )
    assert same_bits(x, y)
    assert keyed.state["x"]["mu_product"] == product


def test_keys_that_differ_in_nothing_but_their_numbers() -> None:
    """What is computed for one key serves the next one only where all that it is of is the same."""
    keyed = schuss.Keyed(schuss.NAdam, lr=0.1)
    products = {"a": np.array(0.25), "b": np.array(0.5), "c": np.array(0.25)}
    x, y = np.ones((3, 2)), np.ones((3, 2))
    for i, (key, product) in enumerate(products.items()):
        keyed.adopt(key, mu_product=float(product), step=2)
        keyed(key, x[i], np.ones(2))
        m, v = np.zeros((2, 2))
        schuss.functional.nadam(y[i], np.ones(2), m, v, step=3, mu_product=product, lr=0.1)
    assert same_bits(x, y)
    assert not np.array_equal(x[0], x[1])


def test_keys_that_decay_and_others() -> None:
    def no_decay(name: str, x: np.ndarray) -> bool:
        return name in ("b", "d")

    keyed = schuss.Keyed(schuss.SGD, lr=0.1, weight_decay=1.0, no_decay=no_decay)
    x = {key: np.ones(2) for key in "abcd"}
    for _ in range(2):
        for key, a in x.items():
            keyed(key, a, np.zeros(2))
    assert [a[0].round(3) for a in x.values()] == [0.81, 1, 0.81, 1]


def trained(**options: Any) -> tuple[schuss.Keyed, Arrays]:
    keyed, x = schuss.Keyed(schuss.NAdam, lr=schuss.schedules.linear(0.1, steps=9), **options), {}
    for key in SHAPES:
        x[key] = made("float32", 0)[key]
    train(keyed, x, 3)
    return keyed, x


def train(keyed: schuss.Keyed, x: Arrays, steps: int) -> None:
    for _ in range(steps):
        for key, g in made("float32", 80 + keyed.iterations).items():
            keyed(key, x[key], g)
        keyed.tick()


def copies(x: Arrays) -> Arrays:
    return {key: a.copy() for key, a in x.items()}


@pytest.mark.parametrize("options", [{}, {"state_dtype": "blockfloat8", "ema": 0.9}])
def test_goes_on_to_the_same_bits(options: dict[str, Any], tmp_path: Path) -> None:
    keyed, x = trained(**options)
    schuss.save(tmp_path / "k", keyed=keyed)
    here = trained(**options)[0]  # where all keys are known
    fresh, loaded, twice = (trained_not(**options) for _ in range(3))
    saved = keyed.state_dict()
    fresh.load_state_dict(saved)
    twice.load_state_dict(fresh.state_dict())  # of keys that haven't come
    train(here, copies(x), 1)
    here.load_state_dict(saved)
    schuss.load(tmp_path / "k", keyed=loaded)
    others = [fresh, twice, here, loaded, copy.deepcopy(keyed)]
    if not options:
        keyed.lr = others[-1].lr = 0.03  # a schedule of ours can be pickled; a function can't
        for other in others:
            other.lr = 0.03
        others.append(pickle.loads(pickle.dumps(keyed)))
    ends = [copies(x) for _ in others]
    train(keyed, x, 2)
    for other, end in zip(others, ends, strict=True):
        assert other.iterations == 3
        train(other, end, 2)
        assert all(same_bits(x[key], end[key]) for key in x)
        pairs = zip(values(keyed.state), values(other.state), strict=True)
        assert all(a[:2] == b[:2] and same_bits(a[2], b[2]) for a, b in pairs)


def trained_not(**options: Any) -> schuss.Keyed:
    return schuss.Keyed(schuss.NAdam, lr=schuss.schedules.linear(0.1, steps=9), **options)


def test_copies_know_how_keys_are_taken_in() -> None:
    def no_decay(name: str, x: np.ndarray) -> bool:
        return name == "b"

    keyed = schuss.Keyed(schuss.AdamW, lr=0.1, weight_decay=1.0, no_decay=no_decay)
    x = np.ones(1)
    copy.deepcopy(keyed)("b", x, np.zeros(1))
    assert x == 1
    keyed("w", x, np.zeros(1))
    assert x < 1


def test_a_copy_is_apart() -> None:
    keyed, x = trained()
    other = copy.deepcopy(keyed)
    before = [a.copy() for _, _, a in values(other.state)]
    train(keyed, x, 1)
    assert all(same_bits(a, b[2]) for a, b in zip(before, values(other.state), strict=True))


# ---- Errors


def wrong_calls() -> list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    x, g = np.ones(3, F4), np.ones(3, F4)
    read_only = x.copy()
    read_only.flags.writeable = False
    return [
        ("shape", ("x", np.ones(4, F4), g), {}, ValueError, 'params["x"]: float32 of shape (4,)'),
        ("type", ("x", np.ones(3), g), {}, ValueError, 'params["x"]: float64 of shape (3,)'),
        ("list", ("x", [1.0], g), {}, ValueError, 'params["x"]: list'),
        ("gradient", ("x", x, np.ones(4, F4)), {}, ValueError, 'grads["x"]: shape (4,)'),
        ("its type", ("x", x, np.ones(3)), {}, TypeError, 'grads["x"]: float64'),
        ("none", ("x", x, None), {}, TypeError, 'grads["x"]: not a numpy.ndarray'),
        ("overlap", ("x", x, x), {}, ValueError, 'grads["x"]: overlaps params["x"]'),
        ("read-only", ("x", read_only, g), {}, ValueError, 'params["x"]: read-only'),
        ("lr", ("x", x, g, -1.0), {}, ValueError, "lr: -1.0"),
        ("lr of", ("x", x, g, "1"), {}, TypeError, "lr: '1'"),
        ("step", ("x", x, g), {"step": 0}, ValueError, "step: 0"),
        ("whole", ("x", x, g), {"step": 1.5}, TypeError, "step: 1.5"),
        ("scale", ("x", x, g), {"grad_scale": 0.0}, ValueError, "grad_scale: 0"),
        ("key", ([], x, g), {}, TypeError, "unhashable"),
        ("new", ("new", [1.0], g), {}, TypeError, 'params["new"]: not a numpy.ndarray'),
        ("new, its gradient", ("new", x, g[:2]), {}, ValueError, 'grads["new"]: shape (2,)'),
        ("new, strided", ("new", np.ones(6)[::2], g), {}, ValueError, 'params["new"]'),
        ("named alike", ("7", x, g), {}, ValueError, "key: '7' is named 7"),
        ("inf", ("x", x, np.full(3, np.inf, F4)), {}, FloatingPointError, 'grads["x"]'),
        ("new, inf", ("new", x, np.full(3, np.inf, F4)), {}, FloatingPointError, 'grads["new"]'),
    ]


def everything(keyed: schuss.Keyed) -> Any:
    state = [(k, n, a.tobytes()) for k, n, a in values(keyed.state)]
    groups = [(repr(g), g["param_names"]) for g in keyed.param_groups]
    return state, groups, keyed.iterations, keyed.nbytes, keyed.state_dict()["state"].keys()


@pytest.mark.parametrize("case", wrong_calls(), ids=lambda case: case[0])
def test_after_an_error_nothing_has_changed(case: Any) -> None:
    _, arguments, keywords, error, says = case
    keyed, x = schuss.Keyed(schuss.Adam, lr=0.1, nonfinite="raise", ema=0.5), np.ones(3, F4)
    for key in ("x", 7):
        keyed(key, x.copy(), np.ones(3, F4))
    before, given = everything(keyed), np.array(arguments[1]).tobytes()
    with pytest.raises(error) as info:
        keyed(*arguments, **keywords)
    assert says in str(info.value)
    assert everything(keyed) == before
    assert np.array(arguments[1]).tobytes() == given
    assert keyed("x", x, np.ones(3, F4))
    assert keyed("new", x, np.ones(3, F4))
    assert [*keyed.state] == ["x", 7, "new"]


def test_a_step_left_undone_leaves_a_key_unknown() -> None:
    keyed, x = schuss.Keyed(schuss.Adam, nonfinite="skip", ema=0.5), np.ones(2)
    assert keyed("x", x, np.array([np.nan, 1])) is False
    assert (keyed.skipped_steps, len(keyed.state)) == (1, 0)
    x[...] = 7
    assert keyed("x", x, np.ones(2))
    assert (keyed.ema["x"] > 6.9).all()  # which begins at the first step that is done
    assert keyed("x", x, np.array([np.nan, 1]), step=9) is False
    assert keyed.state["x"]["step"] == 1


@pytest.mark.parametrize(
    ("rule", "options", "error", "says"),
    [
        ("adam", {}, TypeError, "rule: 'adam', wanted a class"),
        (Optimizer, {}, NotImplementedError, "base of the rules"),
        (schuss.Adam, {"grads": []}, TypeError, "grads: not with keys"),
        (schuss.Adam, {"state_dir": "there"}, TypeError, "state_dir: not with keys"),
        (schuss.Adam, {"grad_scale": schuss.LossScale()}, TypeError, "grad_scale: LossScale"),
        (schuss.Adam, {"momentum": 1}, TypeError, "momentum: unknown"),
        (schuss.Adam, {"lr": -1}, ValueError, "lr: -1"),
    ],
)
def test_what_it_is_not_made_of(rule: Any, options: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        schuss.Keyed(rule, **options)


@pytest.mark.parametrize(
    ("state", "error", "says"),
    [
        ({"exp": np.ones(3)}, TypeError, "exp: unknown; wanted some of step, exp_avg"),
        ({"step": -1}, ValueError, "step: -1"),
        ({"exp_avg": np.ones(2)}, ValueError, 'state["x"]["exp_avg"]: shape (2,)'),
        ({"exp_avg": np.ones(3, F4)}, TypeError, 'state["x"]["exp_avg"]: float32'),
        ({"exp_avg": [0.0] * 3}, TypeError, 'state["x"]["exp_avg"]: not a numpy.ndarray'),
        ({"ema": np.ones(3)}, ValueError, 'state["x"]: average is not kept here'),
    ],
)
def test_what_can_not_be_adopted(state: Any, error: Any, says: str) -> None:
    keyed, x = schuss.Keyed(schuss.Adam, lr=0.1), np.ones(3)
    keyed("x", x, np.ones(3))
    before = everything(keyed)
    with pytest.raises(error) as info:
        keyed.adopt("x", **state)
    assert says in str(info.value)
    assert everything(keyed) == before
    late = schuss.Keyed(schuss.Adam, lr=0.1)

    def adopted() -> None:
        late.adopt("x", **state)
        late("x", x, np.ones(3))

    with pytest.raises(error) as info:
        adopted()
    assert says in str(info.value)
    assert "x" not in late
    keyed("x", x, np.ones(3))


def test_arrays_that_are_adopted_may_not_overlap() -> None:
    keyed, x, m = schuss.Keyed(schuss.Adam, lr=0.1), np.ones(3), np.zeros(3)
    keyed.adopt("x", exp_avg=m, exp_avg_sq=m)
    with pytest.raises(ValueError, match="overlaps"):
        keyed("x", x, np.ones(3))
    assert (x == 1).all()
    keyed.adopt("x", exp_avg=m)
    assert keyed("x", x, np.ones(3))
    with pytest.raises(ValueError, match=r'grads\["x"\]: overlaps state'):
        keyed("x", x, m)


def test_overlaps_are_those_of_the_present_array() -> None:
    keyed, first, second = schuss.Keyed(schuss.Adam, lr=0.1), np.ones(3), np.ones(3)
    assert keyed("x", first, np.ones(3))
    assert keyed("x", second, first)  # where the parameter was
    with pytest.raises(ValueError, match=r'grads\["x"\]: overlaps params'):
        keyed("x", second, second)
    with pytest.raises(ValueError, match=r'grads\["x"\]: overlaps params'):
        keyed("x", first, first)


def test_saved_state_that_fits_nothing() -> None:
    keyed, _ = trained()
    saved = keyed.state_dict()
    for wrong in (None, {}, {"state": 1, "param_groups": []}, {**saved, "iterations": -1}):
        fresh = trained_not()
        with pytest.raises((TypeError, ValueError), match="state_dict"):
            fresh.load_state_dict(wrong)  # type: ignore[arg-type]
        assert fresh.iterations == 0
        assert "w" not in fresh.state_dict()["state"]
    fresh = trained_not()
    fresh.load_state_dict(saved)
    x = np.ones(3, F4)
    with pytest.raises(ValueError, match=r"state_dict: 'w': exp_avg: .* wanted .*\(3,\)"):
        fresh("w", x, np.ones(3, F4))
    assert "w" not in fresh
    assert (x == 1).all()
    with pytest.raises(ValueError, match="Adam"):
        schuss.Keyed(schuss.Adam).load_state_dict(saved)


def test_a_schedule_can_not_step() -> None:
    def lr(n: int) -> float:
        keyed("x", x, np.ones(2))
        return 0.1

    keyed, x = schuss.Keyed(schuss.SGD, lr=lr), np.ones(2)
    with pytest.raises(RuntimeError, match="re-entered"):
        keyed("x", x, np.ones(2))
    assert (x == 1).all()
    keyed.lr = 0.1
    assert keyed("x", x, np.ones(2))


def test_threads_take_turns() -> None:
    keyed = schuss.Keyed(schuss.SGD, lr=1.0)
    x = [np.zeros(1000) for _ in range(4)]

    def work(i: int) -> None:
        for _ in range(200):
            keyed(i, x[i], np.ones(1000))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((a == -200).all() for a in x)
    assert [own["step"] for own in keyed.state.values()] == [200] * 4
