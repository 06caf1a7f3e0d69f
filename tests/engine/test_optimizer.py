"""What the user writes: parameters of any structure, groups, gradients, live options, state."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schuss
from engine.trained import train, trained
from schuss import rules
from schuss.engine.declare import Backend
from schuss.engine.optimizer import Optimizer

F4 = np.float32


def zeros(*shapes: Any) -> list[np.ndarray]:
    return [np.zeros(shape, F4) for shape in shapes]


# ---- Structures


def structures() -> dict[str, tuple[Any, list[str]]]:
    a, b, c = zeros(3, (2, 2), ())
    return {
        "array": (a, ["0"]),
        "list": ([a, b, c], ["0", "1", "2"]),
        "tuple": ((a, b), ["0", "1"]),
        "mapping": ({"w": a, "b": b}, ["w", "b"]),
        "number keys": ({0: a, 1: b}, ["0", "1"]),
        "nested": (
            {"layers": [{"w": a}, {"w": b}], "out": (c,)},
            ["layers.0.w", "layers.1.w", "out.0"],
        ),
        "groups": ([{"params": [a, b]}, {"params": {"c": c}}], ["0", "1", "c"]),
        "groups of arrays": ([{"params": a}, {"params": b}], ["0", "1"]),
        "groups of lists": ([{"params": [a]}, {"params": [b, c]}], ["0", "1", "2"]),
        "nested groups": ([{"params": a}, {"params": [{"w": b}]}], ["0", "1.w"]),
    }


def like(params: Any, value: float) -> Any:
    """Gradients in the structure of params."""
    if isinstance(params, np.ndarray):
        return np.full_like(params, value)
    if isinstance(params, dict):
        return (
            like(params["params"], value)
            if "params" in params
            else {k: like(v, value) for k, v in params.items()}
        )
    return type(params)(like(v, value) for v in params)


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("case", structures())
def test_structure(case: str, bound: bool) -> None:
    params, names = structures()[case]
    grads = like(params, 1.0)
    opt = schuss.SGD(params, lr=1.0, grads=grads if bound else None)
    assert list(opt.state) == names
    assert [name for g in opt.param_groups for name in g["param_names"]] == names
    assert opt.step(None if bound else grads)
    assert all((x == -1).all() for g in opt.param_groups for x in g["params"])


def test_groups_take_one_mapping_by_name() -> None:
    w, b = zeros(3, 4)
    opt = schuss.SGD([{"params": {"w": w}}, {"params": {"b": b}, "lr": 2.0}], lr=1.0)
    opt.step({"b": np.ones(4, F4), "w": np.ones(3, F4)})
    assert (w == -1).all()
    assert (b == -2).all()


def test_iterators_and_views() -> None:
    arrays = {"a": zeros(3)[0], "b": zeros(4)[0]}
    for params in (arrays.values(), iter(arrays.values()), (x for x in arrays.values())):
        opt = schuss.SGD(params, lr=1.0)
        assert list(opt.state) == ["0", "1"]
        assert opt.step(g for g in (np.ones(3, F4), np.ones(4, F4)))
    assert all((x == -3).all() for x in arrays.values())


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (7,), (5, 3), (2, 3, 4), (1, 9)])
def test_shapes_and_orders(shape: tuple[int, ...], order: Any) -> None:
    x = np.zeros(shape, F4, order=order)
    g = np.arange(x.size, dtype=F4).reshape(shape, order=order)
    assert schuss.SGD(x, lr=1.0).step(g)
    assert (x == -g).all()


def test_subclasses_and_memory_of_others(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "w", F4, "w+", shape=(300,))
    given = np.frombuffer(bytearray(1200), F4)
    mine: Any = np.zeros((10, 30), F4).view(type("Mine", (np.ndarray,), {}))
    for x in (mapped, given, mine):
        opt = schuss.Adam(x, lr=1.0)
        assert opt.step(np.ones(x.shape, F4))
        assert np.allclose(x, -1)
        assert type(opt.state[0]["exp_avg"]) is np.ndarray
    mapped.flush()
    assert np.allclose(np.fromfile(tmp_path / "w", F4), -1)


def test_mixed_types_in_one_step() -> None:
    x, y = np.zeros(300, F4), np.zeros(300)
    opt = schuss.Adam([x, y], lr=0.1)
    for _ in range(3):
        opt.step([np.ones(300, F4), np.ones(300)])
    alone = np.zeros(300)
    opt = schuss.Adam(alone, lr=0.1)
    for _ in range(3):
        opt.step(np.ones(300))
    assert (y == alone).all()
    assert np.allclose(x, alone)


def test_the_callers_arrays_are_kept_alive_and_let_go() -> None:
    class Owner(np.ndarray):
        pass

    x = np.zeros(1000, F4).view(Owner)
    gone = weakref.ref(x)
    opt = schuss.SGD(x, lr=1.0)
    del x
    gc.collect()
    assert gone() is not None
    assert opt.step(np.ones(1000, F4))
    del opt
    gc.collect()
    assert gone() is None


def test_what_leads_back_to_the_optimizer_is_let_go_with_it() -> None:
    class Array(np.ndarray):
        owner: Any = None

    def stepped() -> weakref.ref[schuss.Optimizer]:
        x, g = (np.zeros(3, F4).view(Array) for _ in range(2))
        opt = schuss.AdamW(x, grads=g, clip_norm=1.0, lr=lambda n: 0.1 if x.owner is opt else 0.0)
        x.owner = g.owner = opt
        for _ in range(3):
            opt.step()
        return weakref.ref(opt)

    gone = stepped()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("in_files", [False, True])
def test_state_goes_with_its_optimizer(in_files: bool, tmp_path: Path) -> None:
    """At once, without the garbage collector, which doesn't count the bytes of arrays."""
    gc.disable()
    try:
        folder = {"state_dir": str(tmp_path)} if in_files else {}
        x = np.zeros(3, F4)
        opt = schuss.AdamW(x, **folder)  # type: ignore[arg-type]
        opt.step(np.ones(3, F4))
        opt.lr = 0.1
        gone, group = weakref.ref(opt), opt.param_groups[0]
        del opt
        assert gone() is None
        group["lr"] = 0.2  # of a group that somebody has kept
    finally:
        gc.enable()


# ---- Gradients


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
def test_none_leaves_array_state_and_count(backend: Backend) -> None:
    w, b = zeros(3, 3)
    opt = schuss.Adam({"w": w, "b": b}, lr=0.1, backend=backend)
    one = np.ones(3, F4)
    for t in range(6):
        opt.step({"w": one, "b": one if t % 2 else None})
    assert (opt.state["w"]["step"], opt.state["b"]["step"], opt.iterations) == (6, 3, 6)
    alone = np.zeros(3, F4)
    three = schuss.Adam(alone, lr=0.1)
    for _ in range(3):
        three.step(one)
    assert (b == alone).all()
    assert (opt.state["b"]["exp_avg_sq"] == three.state[0]["exp_avg_sq"]).all()
    before = w.copy()
    assert opt.step({"w": None, "b": None})
    assert (w == before).all()
    assert opt.iterations == 7


def test_bound_gradients() -> None:
    x, g = zeros(3, 3)
    opt = schuss.SGD([x], grads=[g], lr=1.0)
    for t in range(3):
        g[:] = t
        opt.step()
    assert (x == -3).all()
    opt.step([np.full(3, 10, F4)])
    assert (x == -13).all()
    opt.zero_grad()
    assert not g.any()
    partly = schuss.SGD([x, zeros(3)[0]], grads=[g, None], lr=1.0)
    assert partly.step()
    assert partly.state[1]["step"] == 0


def test_gradient_is_never_written() -> None:
    for rule in rules.RULES:
        g = np.linspace(-1, 1, 777, dtype=F4)
        kept = g.copy()
        rule(np.ones(777, F4), weight_decay=0.1, maximize=True, grad_scale=8.0).step(g, loss=1.0)
        assert g.tobytes() == kept.tobytes()


def test_grad_scale() -> None:
    for rule in rules.RULES:
        x, y, z = (np.linspace(0, 1, 50) for _ in range(3))
        plain, scaled, given = rule(x), rule(y, grad_scale=8.0), rule(z)
        for t in range(5):
            g = np.cos(np.arange(50.0) + t)
            plain.step(g, loss=1.0)
            scaled.step(8 * g, loss=1.0)
            given.step(4 * g, loss=1.0, grad_scale=4.0)
        assert (x == y).all()
        assert (x == z).all()


def test_maximize_ascends() -> None:
    for rule in rules.RULES:
        x, y = np.zeros(5), np.zeros(5)
        down, up = rule(x), rule(y, maximize=True)
        for _ in range(3):
            down.step(np.ones(5), loss=1.0)
            up.step(-np.ones(5), loss=1.0)
        assert (x == y).all()
        assert (x < 0).all()


# ---- Groups and live options


def test_groups_equal_several_optimizers() -> None:
    for rule in rules.RULES:
        if "d" in rule.shared and rule is not schuss.Eve:  # whose d is of no array
            continue
        together, apart = zeros(40, 50), zeros(40, 50)
        opt = rule([{"params": [together[0]], "lr": 0.5}, {"params": [together[1]], "lr": 0.01}])
        others = [rule(apart[0], lr=0.5), rule(apart[1], lr=0.01)]
        for t in range(5):
            g = [np.full(40, t - 1.5, F4), np.full(50, t + 0.5, F4)]
            opt.step([[g[0]], [g[1]]], loss=1.0)
            for other, gradient in zip(others, g, strict=True):
                other.step(gradient, loss=1.0)
        assert all((a == b).all() for a, b in zip(together, apart, strict=True))


def test_live_options() -> None:
    w, b = zeros(2, 2)
    opt = schuss.SGD([{"params": [w]}, {"params": [b]}], lr=1.0)
    one = np.ones(2, F4)
    opt.param_groups[1]["lr"] = 0
    opt.step([[one], [one]])
    assert (w[0], b[0]) == (-1, 0)
    opt.lr = 0.5
    assert [g["lr"] for g in opt.param_groups] == [0.5, 0.5]
    opt.step([[one], [one]])
    assert (w[0], b[0]) == (-1.5, -0.5)
    opt.param_groups[0].update(lr=2.0, maximize=True)
    opt.step([[one], [one]])
    assert (w[0], b[0]) == (0.5, -1)
    assert opt.lr == 2.0


def test_momentum_may_become_nesterov() -> None:
    opt = schuss.SGD(np.zeros(3), momentum=0.9)
    opt.nesterov = True
    assert opt.param_groups[0].settings.kernel == "nesterov"
    opt.momentum = lambda n: 0.5
    assert opt.step(np.ones(3))


def test_add_param_group() -> None:
    w, b, c = zeros(2, 2, 2)
    one = np.ones(2, F4)
    opt = schuss.Adam([w, b], lr=1.0)
    opt.step([one, one])
    opt.add_param_group({"params": [c], "lr": 0.5})
    assert list(opt.state) == ["0", "1", "2"]
    opt.step([[one, one], [one]])
    assert [s["step"] for s in opt.state.values()] == [2, 2, 1]
    assert np.allclose(c, -0.5)
    opt.step({"0": one, "1": None, "2": one})
    assert [s["step"] for s in opt.state.values()] == [3, 2, 2]
    assert opt.iterations == 3


def test_no_decay() -> None:
    w, b = np.ones((2, 2), F4), np.ones(2, F4)
    opt = schuss.AdamW(
        {"w": w, "b": b}, lr=0.1, weight_decay=0.5, no_decay=lambda name, a: a.ndim < 2
    )
    opt.step({"w": np.zeros((2, 2), F4), "b": np.zeros(2, F4)})
    assert np.allclose(w, 0.95)
    assert (b == 1).all()
    assert opt.param_groups[0]["no_decay"] == ["b"]
    opt.add_param_group({"params": {"c": np.ones(2, F4)}, "no_decay": lambda name, a: name == "c"})
    assert opt.param_groups[1]["no_decay"] == ["c"]


# The modes of weight decay that each rule has: all of them, but where x is computed anew.
DECAYS = {rule: vars(rule.hyperparameters["decay_mode"])["choices"] for rule in rules.RULES}


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
@pytest.mark.parametrize("mode", ["l2", "decoupled"])
def test_no_decay_in_every_mode(mode: str, backend: Backend) -> None:
    for rule in [rule for rule in rules.RULES if mode in DECAYS[rule]]:
        x, y, z = (np.full(3, 2.0) for _ in range(3))
        options: dict[str, Any] = {"lr": 0.1, "decay_mode": mode, "backend": backend}
        two = rule([x, y], weight_decay=0.5, no_decay=lambda name, a: name == "1", **options)
        one = rule(z, weight_decay=0.0, **options)
        for _ in range(2):  # the first step of ADOPT does nothing to x
            two.step([np.ones(3), np.ones(3)], loss=1.0)
            one.step(np.ones(3), loss=1.0)
        assert (y == z).all()
        assert mode == "l2" or (x != z).all()


@pytest.mark.parametrize("rule", rules.RULES)
def test_decay_modes(rule: type[Optimizer]) -> None:
    """Decoupled: x shrinks by 1 - lr*wd whatever the gradient. Coupled: wd*x joins the gradient."""
    own: dict[str, Any] = {"lambd": 0.0} if rule is schuss.ASGD else {}
    own |= {"d0": 1.0} if "d0" in rule.hyperparameters else {}
    if "decoupled" in DECAYS[rule]:
        x = np.full(4, 2.0)
        opt = rule(x, lr=0.1, weight_decay=0.5, decay_mode="decoupled", **own)
        opt.step(np.zeros(4), loss=1.0)
        if rule is schuss.ADOPT:  # whose first step does nothing to x
            assert (x == 2.0).all()
            opt.step(np.zeros(4))
        assert np.allclose(x, 2.0 * (1 - 0.05))
    x, y = np.full(4, 2.0), np.full(4, 2.0)
    rule(x, lr=0.1, weight_decay=0.5, decay_mode="l2").step(np.full(4, 0.25), loss=1.0)
    rule(y, lr=0.1, weight_decay=0.0).step(np.full(4, 1.25), loss=1.0)
    assert (x == y).all()


# ---- Schedules


def test_schedules_see_finished_steps() -> None:
    seen = []

    def lr(n: int) -> float:
        seen.append(n)
        return 1.0 / (n + 1)

    x, y = zeros(1, 1)
    opt = schuss.SGD([x, y], lr=lr)
    assert opt.current_learning_rate == 1.0
    for t in range(3):
        opt.step([np.ones(1, F4), None if t else np.ones(1, F4)])
    assert seen == [0, 0, 1, 2]
    assert opt.iterations == 3
    assert np.allclose(x, -(1 + 1 / 2 + 1 / 3))


def test_any_number_may_be_scheduled() -> None:
    opt = schuss.Adam(np.zeros(1), betas=(lambda n: 0.5, 0.9), eps=lambda n: 1e-3)
    assert opt.step(np.ones(1))
    assert opt.param_groups[0].settings.at(0)["betas"] == (0.5, 0.9)


def test_cosine() -> None:
    s = schuss.schedules.cosine(2.0, steps=10, warmup=4, final=1.0)
    assert [s(n) for n in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert s(4) == 2.0
    assert s(7) == pytest.approx(1.5)
    assert s(10) == s(1000) == 1.0
    assert pickle.loads(pickle.dumps(s)) == s
    assert repr(s) == "cosine(value=2.0, steps=10, warmup=4, final=1.0)"
    with pytest.raises(ValueError, match="warmup"):
        schuss.schedules.cosine(1.0, steps=3, warmup=3)


# ---- State


VELOCITY = {"momentum": 0.5, "agreement": "velocity"}


def variants() -> list[Any]:
    """Every rule with every set of state arrays that it can have."""
    options: dict[str, list[dict[str, Any]]] = {
        "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}],
        "RMSprop": [{}, {"momentum": 0.5}, {"centered": True}, {"centered": True, "momentum": 0.5}],
        "Adam": [{}, {"amsgrad": True}, {"eps_mode": "inside"}, {"decay_mode": "course"}],
        "Rprop": [{}, {"variant": "irprop+"}],
        "DeltaBarDelta": [{}, {"momentum": 0.5}, VELOCITY],
    }
    cases = [(rule, o) for rule in rules.RULES for o in options.get(rule.__name__, [{}])]
    kernels = {
        rule.kernel({n: h.default for n, h in rule.hyperparameters.items()} | o)
        for rule, o in cases
    }
    assert kernels == {kernel for rule in rules.RULES for kernel in rule.states}
    return cases


@pytest.mark.parametrize(("rule", "options"), variants())
def test_resume(rule: type[Optimizer], options: dict[str, Any]) -> None:
    """Three steps, saved and loaded into a fresh optimizer, then three more: the bits of six."""
    six, want = trained(rule, 6, **options)
    opt, params = trained(rule, 3, **options)
    saved = opt.state_dict()
    kept = copy.deepcopy(saved)
    train(opt, params, 1)  # neither the optimizer nor the copy knows of the other
    assert repr(saved) == repr(kept)
    fresh_params = trained(rule, 3, **options)[1]
    fresh = rule(fresh_params, **options)
    fresh.load_state_dict(saved)
    assert repr(saved) == repr(kept)
    train(fresh, fresh_params, 3)
    assert fresh.iterations == 6
    for name in want:
        assert (fresh_params[name] == want[name]).all()
        for key, value in six.state[name].items():
            assert np.array_equal(fresh.state[name][key], value)


def pickled(pair: Any) -> Any:
    return pickle.loads(pickle.dumps(pair))


@pytest.mark.parametrize("way", [copy.deepcopy, pickled])
@pytest.mark.parametrize(("rule", "options"), variants())
def test_copies(rule: type[Optimizer], options: dict[str, Any], way: Any) -> None:
    schedule = schuss.schedules.cosine(0.1, steps=9)
    opt, params = trained(rule, 3, weight_decay=schedule, **options)
    other, theirs = way((opt, params))  # together, so that they still share their arrays
    assert other.param_groups[0]["params"][0] is theirs["w"]
    train(opt, params, 3)
    assert other.iterations == 3
    train(other, theirs, 3)
    assert all((params[name] == theirs[name]).all() for name in params)
    assert repr(other) == repr(opt)


def test_state_dict_holds_numbers_and_the_loaders_callables_stay() -> None:
    seen = []

    def lr(n: int) -> float:
        seen.append(n)
        return 0.1

    opt, _ = trained(schuss.AdamW, 3, lr=lr, betas=(lambda n: 0.5, 0.9), weight_decay=0.5)
    calls = len(seen)
    saved = opt.state_dict()
    assert len(seen) == calls  # a schedule may have no value for a step that never comes
    group = saved["param_groups"][0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (None, (None, 0.9), 0.5)
    assert group["params"] == ["w", "b"]
    assert saved["state"]["w"]["step"] == saved["iterations"] == 3
    plain, _ = trained(schuss.AdamW, 0, lr=7.0, betas=(0.7, 0.8))
    plain.load_state_dict(saved)
    loaded = plain.param_groups[0]
    assert (loaded["lr"], loaded["betas"], loaded["weight_decay"]) == (7.0, (0.7, 0.9), 0.5)
    schedule = schuss.schedules.cosine(3.0, steps=6)
    scheduled, _ = trained(schuss.AdamW, 0, lr=schedule)
    scheduled.load_state_dict(plain.state_dict())
    assert scheduled.lr is schedule
    assert scheduled.current_learning_rate == pytest.approx(1.5)


def test_state_is_live() -> None:
    opt, _ = trained(schuss.Adam)
    opt.state["w"]["exp_avg"][:] = 0
    assert not opt.state["w"]["exp_avg"].any()
    opt.step({"w": np.zeros((5, 7), F4), "b": np.zeros(7, F4)})
    assert not opt.state["w"]["exp_avg"].any()
    with pytest.raises(TypeError):
        opt.state["w"]["exp_avg"] = np.zeros((5, 7), F4)  # type: ignore[index]
    with pytest.raises(KeyError):
        opt.state["nothing"]
    with pytest.raises(KeyError):
        opt.state[0]


def test_initial_accumulator() -> None:
    opt = schuss.Adagrad(np.zeros(3), initial_accumulator_value=0.25)
    assert (opt.state[0]["sum"] == 0.25).all()


def test_rebind() -> None:
    want = trained(schuss.Adam, 6)[1]
    opt, params = trained(schuss.Adam, 3)
    params = {name: x.copy() for name, x in params.items()}
    opt.rebind(params)
    train(opt, params, 3)
    assert all((params[name] == want[name]).all() for name in want)
    assert opt.param_groups[0]["params"][0] is params["w"]
    params["w"].resize(7, 5)
    opt.rebind(want)  # what was registered counts, not what has become of it


def test_repr() -> None:
    text = repr(schuss.SGD([np.zeros(3), np.zeros((2, 2))], lr=0.1, momentum=0.9))
    assert text.startswith("SGD(\n  Group(2 arrays, 7 parameters, lr=0.1, momentum=0.9")


def test_copies_keep_the_count_of_each_array() -> None:
    one = np.ones(3)
    opt = schuss.Adam([np.zeros(3), np.zeros(3)])
    for t in range(4):
        opt.step([one, one if t % 2 else None])
    for other in (copy.deepcopy(opt), pickled(opt)):
        assert ([s["step"] for s in other.state.values()], other.iterations) == ([4, 2], 4)


def test_subclasses_step_as_their_plain_arrays() -> None:
    """On both backends: a matrix would multiply as a matrix, and a class of one's own may raise."""
    for gradient in (np.ones((3, 3)).view(np.matrix), np.ones((3, 3)).view(Refusing)):
        compiled, reference = np.zeros((3, 3)), np.zeros((3, 3))
        schuss.Adam(compiled).step(gradient)
        schuss.Adam(reference, backend="numpy").step(gradient)
        assert (compiled == reference).all()
        assert compiled.any()


class Refusing(np.ndarray):
    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("no")


def test_many_counts_cost_no_more_than_many_arrays() -> None:
    """The sets of scalars are found without comparing each with each."""
    n = 3000
    opt = schuss.SGD([np.zeros(1) for _ in range(n)])
    counts = list(range(n))
    opt._plan.restore(n, counts, [[]] * n, [], None)
    opt.step([np.ones(1)] * n)
    assert [opt.state[i]["step"] for i in range(n)] == [t + 1 for t in counts]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_state_keeps_out_of_the_way(order: Any, dtype: str) -> None:
    """Each array begins at another place in its page than the parameter and the others."""
    x = np.zeros((256, 1024), dtype, order=order)
    opt = schuss.Adam([x], amsgrad=True, ema=0.9)
    arrays = [a for a in opt.state[0].values() if isinstance(a, np.ndarray)]
    assert len(arrays) == 4
    assert all(a.shape == x.shape and a.strides == x.strides for a in arrays)
    lines = {a.ctypes.data % 4096 // 64 for a in (x, *arrays)}
    assert len(lines) == 5
    assert all(a.ctypes.data % 64 == 0 for a in arrays)
    opt.step([np.ones_like(x)])
    assert (arrays[0] == arrays[0].flat[0]).all()
