"""PyTorch: optimizers of its tensors, beside its own and beside ours of arrays."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import pickle
import resource
import threading
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest

import schuss

torch = pytest.importorskip("torch", reason="PyTorch is not installed: its tests did not run")

import schuss.torch  # noqa: E402
from clients import tensors as t  # noqa: E402
from schuss.torch import optimizers  # noqa: E402
from schuss.torch.state import BESIDE  # noqa: E402
from schuss.torch.tensors import tensor_of  # noqa: E402

schedulers: Any = torch.optim.lr_scheduler

classes = pytest.mark.parametrize("name", list(t.CLASSES))
types = pytest.mark.parametrize("dtype", t.TYPES, ids=lambda d: str(d).removeprefix("torch."))

# What PyTorch's rules are tried with, and ours, under the same names. Two groups differ in lr.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
    "Adagrad": [{}, {"lr_decay": 0.1, "initial_accumulator_value": 0.2}],
    "RMSprop": [{}, {"momentum": 0.9, "centered": True}],
    "Adadelta": [{"lr": 50.0}],
    "Adam": [{}, {"amsgrad": True, "weight_decay": 0.1}],
    "AdamW": [{}, {"amsgrad": True, "maximize": True}],
    "Adamax": [{}],
    "NAdam": [{}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "RAdam": [{"lr": 0.2}],
    "Rprop": [{}],
    "ASGD": [{"lambd": 0.1, "alpha": 0.5, "t0": 2.0}],
    # Its eps of None is that of the parameter's type, ours of the type that is computed in.
    "Adafactor": [{"lr": 0.2, "eps": (1e-3, 0.1)}],
}
variants = pytest.mark.parametrize(
    ("name", "options"), [(name, o) for name, several in VARIANTS.items() for o in several]
)


@pytest.fixture
def double(dtype: Any) -> Iterator[None]:
    """PyTorch keeps the numbers beside its tensors in its default type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if dtype is torch.float64 else torch.float32)
    yield
    torch.set_default_dtype(before)


def ours(name: str, tensors: Any, **options: Any) -> Any:
    own = {"lr": 0.02, **options}
    decoupled = own.pop("decoupled_weight_decay", None)
    if decoupled:
        own["decay_mode"] = "decoupled"
    return t.CLASSES[name](tensors, **own)


def theirs(name: str, tensors: Any, **options: Any) -> Any:
    return getattr(torch.optim, name)(tensors, **{"lr": 0.02, **options})


def pair(
    name: str, dtype: Any = torch.float32, **options: Any
) -> tuple[t.Tensors, Any, t.Tensors, Any]:
    """The same tensors with an optimizer of ours and with PyTorch's."""
    a, b = t.parameters(dtype), t.parameters(dtype)
    half = options.get("lr", 0.02) / 2
    return (
        a,
        ours(name, t.halves(a, lr=half), **options),
        b,
        theirs(name, t.halves(b, lr=half), **options),
    )


def stepped(name: str = "AdamW", steps: int = 2, **options: Any) -> tuple[t.Tensors, Any]:
    x = t.parameters()
    opt = ours(name, t.halves(x), **options)
    t.train(opt, x, steps)
    return x, opt


# ---- The bits of arrays


@classes
@types
@pytest.mark.parametrize("exchange", [True, False], ids=["DLPack", "arrays"])
def test_a_step_has_the_bits_of_the_optimizer_of_arrays(
    name: str, dtype: Any, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:  # as before PyTorch 2.10
        monkeypatch.setattr(optimizers, "EXCHANGE", None)
    x = t.parameters(dtype)
    rule = t.CLASSES[name].rule
    a = t.copies(x)
    half = {"lr": 0.01, "l2": 0.1}
    preset = "torch" if "torch" in rule.presets else None
    own = rule([{"params": a[:2]}, {"params": a[2:], **half}], lr=0.02, preset=preset)
    opt = ours(name, t.halves(x, **half))
    for step in range(4):
        t.give_gradients(x, step)
        if step == 2:
            x[1].grad = None
        loss = 2.0 + np.cos(step)
        own.step(t.gradients(x), loss=loss)
        opt.step(lambda loss=loss: loss)
        assert [t.bits(p) for p in x] == [q.tobytes() for q in a]
    for p, kept in zip(x, own.state.values(), strict=True):
        for key, value in kept.items():
            assert np.array_equal(opt.state[p][key].double(), np.asarray(value).astype(float)), key


OPTIONS: list[dict[str, Any]] = [
    {"clip_norm": 0.5},
    {"clip_norm": 0.5, "clip_norm_per": "array"},
    {"ema": 0.9},
    {"master": True},
    {"state_dtype": "bfloat16"},
    {"state_dtype": "blockfloat8", "master": True},
    {"stochastic_rounding": True, "seed": 3},
    {"nonfinite": "skip"},
    {"bounds": (-0.5, 0.5)},
    {"zero_grad": True},
    {"backend": "numpy"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_options_have_the_bits_of_arrays(options: dict[str, Any], dtype: Any) -> None:
    x = t.parameters(dtype)
    a = t.copies(x)
    own = schuss.AdamW(a, lr=0.02, **options)
    opt = ours("AdamW", x, **options)
    for step in range(4):
        t.give_gradients(x, step)
        own.step(t.gradients(x))
        opt.step()
        assert [t.bits(p) for p in x] == [q.tobytes() for q in a]
        if "zero_grad" in options:
            assert not any(p.grad.any() for p in x)


def test_remainders_of_bfloat16_make_float32() -> None:
    x, y = t.parameters(torch.bfloat16), t.parameters(torch.bfloat16)
    for tensors, master in ((x, "remainder"), (y, True)):
        t.train(ours("AdamW", tensors, master=master), tensors, 5)
    assert [t.bits(p) for p in x] == [t.bits(q) for q in y]


def test_gradients_are_read_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each of them takes as long as a thousand elements."""
    seen: list[int] = []
    look = optimizers.Optimizer._look

    def noticed(own: Any, number: int, gradient: Any) -> Any:
        seen.append(number)
        return look(own, number, gradient)

    monkeypatch.setattr(optimizers.Optimizer, "_look", noticed)
    for dtype in t.TYPES:
        x = t.parameters(dtype)
        t.train(ours("AdamW", x), x, 3)
    assert optimizers.EXCHANGE is None or not seen


# ---- PyTorch's own rules


@variants
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.usefixtures("double")
def test_the_way_is_that_of_pytorchs_rule(name: str, dtype: Any, options: dict[str, Any]) -> None:
    x, opt, y, other = pair(name, dtype, **options)
    start = copy.deepcopy(y)
    t.train(opt, x, 20)
    t.train(other, y, 20)
    t.assert_near(x, y, start)


@variants
def test_states_go_on_here_and_there(name: str, options: dict[str, Any]) -> None:
    x, opt, y, other = pair(name, **options)
    t.train(opt, x, 7)
    t.train(other, y, 7)
    start = copy.deepcopy(y)
    mine, their = copy.deepcopy(opt.state_dict()), copy.deepcopy(other.state_dict())
    x2, opt2, y2, other2 = pair(name, **options)
    for into, of in ((x2, y), (y2, x)):
        for p, q in zip(into, of, strict=True):
            p.data.copy_(q.data)
    opt2.load_state_dict(their)
    other2.load_state_dict(mine)
    for tensors, optimizer in ((x, opt), (x2, opt2), (y, other), (y2, other2)):
        t.train(optimizer, tensors, 10, first=7)
    for tensors in (x, x2, y2):
        t.assert_near(tensors, y, start, near=1e-4)


def test_states_of_pytorchs_sixteen_bits_are_taken() -> None:
    x, y = t.parameters(torch.bfloat16), t.parameters(torch.bfloat16)
    other = theirs("AdamW", y)
    t.train(other, y, 3)
    opt = ours("AdamW", x)
    opt.load_state_dict(copy.deepcopy(other.state_dict()))
    for p, q in zip(x, y, strict=True):
        assert opt.state[p]["exp_avg"].dtype is torch.float32
        assert torch.equal(opt.state[p]["exp_avg"], other.state[q]["exp_avg"].float())
        assert opt.state[p]["step"] == 3


# ---- Schedules


def chained(opt: Any) -> Any:
    several = [schedulers.ConstantLR(opt, 0.3, 5), schedulers.ExponentialLR(opt, 0.9)]
    return schedulers.ChainedScheduler(several, optimizer=opt)


def sequential(opt: Any) -> Any:
    several = [schedulers.LinearLR(opt, 0.1, total_iters=5), schedulers.ExponentialLR(opt, 0.8)]
    return schedulers.SequentialLR(opt, several, milestones=[5])


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda opt: schedulers.LambdaLR(opt, lambda epoch: 1 / (1 + epoch)),
    "MultiplicativeLR": lambda opt: schedulers.MultiplicativeLR(opt, lambda epoch: 0.9),
    "StepLR": lambda opt: schedulers.StepLR(opt, 3, 0.5),
    "MultiStepLR": lambda opt: schedulers.MultiStepLR(opt, [4, 9], 0.3),
    "ConstantLR": lambda opt: schedulers.ConstantLR(opt, 0.2, 6),
    "LinearLR": lambda opt: schedulers.LinearLR(opt, 0.1, total_iters=8),
    "ExponentialLR": lambda opt: schedulers.ExponentialLR(opt, 0.9),
    "SequentialLR": sequential,
    "CosineAnnealingLR": lambda opt: schedulers.CosineAnnealingLR(opt, 10),
    "ChainedScheduler": chained,
    "ReduceLROnPlateau": lambda opt: schedulers.ReduceLROnPlateau(opt, patience=1),
    "CyclicLR": lambda opt: schedulers.CyclicLR(opt, 1e-3, 0.1, 3, cycle_momentum=False),
    "CyclicLR, momentum": lambda opt: schedulers.CyclicLR(opt, 1e-3, 0.1, 3),
    "CosineAnnealingWarmRestarts": lambda opt: schedulers.CosineAnnealingWarmRestarts(opt, 6),
    "OneCycleLR": lambda opt: schedulers.OneCycleLR(opt, 0.1, 25),
    "PolynomialLR": lambda opt: schedulers.PolynomialLR(opt, 15, power=2.0),
    "SWALR": lambda opt: torch.optim.swa_utils.SWALR(opt, 0.05, anneal_epochs=4),
}


def test_all_schedulers_are_tried() -> None:
    names = {name.split(",")[0] for name in SCHEDULERS}
    assert {*schedulers.__all__} - {"LRScheduler"} <= names


@pytest.mark.parametrize("which", SCHEDULERS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"momentum": 0.8}),
        ("AdamW", {}),
        ("AdamW", {"lr": torch.tensor(0.02)}),
        ("Rprop", {}),
    ],
    ids=["SGD", "AdamW", "AdamW with a tensor", "Rprop"],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_schedulers_lead_the_same_way(
    which: str, name: str, options: dict[str, Any], groups: int
) -> None:
    if name == "Rprop" and ("CycleLR" in which or which == "CyclicLR, momentum"):
        pytest.skip("it has neither momentum nor betas")
    found = []
    for make in (ours, theirs):
        x = t.parameters()
        split = [{"params": x}] if groups == 1 else t.halves(x, weight_decay=0.2)
        if name == "Rprop":
            split = [{"params": x}]
        opt = make(name, split, **copy.deepcopy(options))
        scheduler = SCHEDULERS[which](opt)
        metric = (1.0,) if which == "ReduceLROnPlateau" else ()
        for step in range(20):
            t.train(opt, x, 1, first=step)
            scheduler.step(*metric)
        found.append((x, [float(group["lr"]) for group in opt.param_groups]))
    (a, rates), (b, others) = found
    assert rates == pytest.approx(others)
    t.assert_near(a, b, t.parameters())


def test_a_rate_may_be_set_by_hand_in_any_form() -> None:
    rates: list[Any] = [0.1, 0.05, np.float64(0.02), 0, torch.tensor(0.3), np.float32(0.1), 1, 0.1]
    found = []
    for make in (ours, theirs):
        for groups in (1, 2):
            x = t.parameters()
            opt = make("AdamW", [{"params": x}] if groups == 1 else t.halves(x))
            for step, rate in enumerate(rates):
                for group in opt.param_groups:
                    group["lr"] = rate
                t.train(opt, x, 1, first=step)
            found.append(x)
    t.assert_near(found[0], found[2], t.parameters())
    for x in found[1:2]:
        assert [t.bits(p) for p in x] == [t.bits(q) for q in found[0]]


@classes
@pytest.mark.parametrize("groups", [1, 2])
def test_a_rate_that_is_set_is_its_groups_however_it_comes_to_the_step(
    name: str, groups: int
) -> None:
    """Looked at in between, groups are read one by one, where a step is told a number else."""
    found = []
    for looks in (True, False):
        x = t.parameters()
        opt = ours(name, [{"params": x}] if groups == 1 else t.halves(x))
        for step, rate in enumerate([0.02, 0.01, 0.0 if name != "Ftrl" else 0.04, 0.3, 0.02, 0.02]):
            for number, group in enumerate(opt.param_groups):
                group["lr"] = rate * (1 + number)
            t.train(opt, x, 1, first=step)
            if looks:
                _ = opt.state
        found.append([t.bits(p) for p in x])
    assert found[0] == found[1]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("name", "rate"), [("Ftrl", 0.0), ("AdamW", -1.0), ("AdamW", float("nan")), ("SGD", "0.1")]
)
def test_a_rate_that_the_rule_cannot_take_is_refused(name: str, rate: Any, groups: int) -> None:
    x = t.parameters()
    opt = ours(name, [{"params": x}] if groups == 1 else t.halves(x))
    t.train(opt, x, 3)
    for looks in (False, True):
        for group in opt.param_groups:
            group["lr"] = rate
        before = [t.bits(p) for p in x]
        if looks:
            _ = opt.state
        t.give_gradients(x, 1)
        with pytest.raises((TypeError, ValueError), match=r"^lr: "):
            opt.step()
        assert [t.bits(p) for p in x] == before
        for group in opt.param_groups:
            group["lr"] = 0.01
        t.train(opt, x, 2, first=4)
    assert opt.state[x[0]]["step"] == 7


def test_averaged_models_average_our_steps() -> None:
    found = []
    for make in (ours, theirs):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        mean = torch.optim.swa_utils.AveragedModel(model)
        opt = make("SGD", model.parameters())
        for step in range(5):
            t.train(opt, list(model.parameters()), 1, first=step)
            mean.update_parameters(model)
        found.append(list(mean.module.parameters()))
    torch.manual_seed(0)
    t.assert_near(found[0], found[1], list(torch.nn.Linear(3, 2).parameters()))


def test_any_hyperparameter_may_be_set_at_any_time() -> None:
    found = []
    for make in (ours, theirs):
        x = t.parameters()
        opt = make("AdamW", t.halves(x))
        t.train(opt, x, 2)
        opt.param_groups[0]["betas"] = (0.5, 0.9)
        opt.param_groups[1]["weight_decay"] = 0.3
        t.train(opt, x, 3, first=2)
        opt.param_groups[0]["betas"] = [0.8, 0.9]
        t.train(opt, x, 2, first=5)
        found.append(x)
    t.assert_near(found[0], found[1], t.parameters())


def test_schedules_of_ours_are_rates_too() -> None:
    x = t.parameters()
    a = t.copies(x)
    rate = schuss.schedules.cosine(0.1, steps=5)
    own, opt = schuss.AdamW(a, lr=rate), ours("AdamW", x, lr=rate)
    for step in range(6):
        t.give_gradients(x, step)
        own.step(t.gradients(x))
        opt.step()
    assert [t.bits(p) for p in x] == [q.tobytes() for q in a]


# ---- Closures and hooks


def test_closures_are_called_with_gradients_on_and_return_what_they_like() -> None:
    for value in (torch.tensor(3.0), (1, 2), None, {"loss": 1}, torch.ones(3)):
        _, opt = stepped()
        asked: list[bool] = []

        def closure(value: Any = value, asked: list[bool] = asked) -> Any:
            asked.append(torch.is_grad_enabled())
            return value

        with torch.no_grad():
            assert opt.step(closure) is value
        assert asked == [True]


@pytest.mark.parametrize(("name", "options"), [("Eve", {}), ("Rprop", {"variant": "irprop+"})])
def test_rules_that_read_the_loss_hear_it_of_the_closure(name: str, options: Any) -> None:
    rule = t.CLASSES[name].rule
    x = t.parameters()
    a = t.copies(x)
    opt, own = ours(name, x, **options), rule(a, lr=0.02, **options)
    for _ in range(5):

        def closure() -> Any:
            opt.zero_grad()
            loss = sum((p.float() ** 2).sum() for p in x) + 1
            loss.backward()
            return loss

        loss = opt.step(closure)
        own.step(t.gradients(x), loss=loss.item())
    assert [t.bits(p) for p in x] == [q.tobytes() for q in a]
    t.give_gradients(x, 0)
    with t.Unchanged(opt, x, "loss"):
        opt.step()


def test_a_closure_that_fails_leaves_all_as_it_was() -> None:
    x, opt = stepped()

    def closure() -> float:
        raise RuntimeError("no batch")

    with t.Unchanged(opt, x, "no batch"):
        opt.step(closure)
    t.train(opt, x, 1)


def test_hooks_are_called_and_may_replace_arguments() -> None:
    logs: list[list[Any]] = []
    for make in (ours, theirs):
        x = t.parameters()
        opt = make("AdamW", x)
        log: list[Any] = []
        several = [
            opt.register_step_pre_hook(lambda o, a, k, log=log: log.append(("pre", len(a), [*k]))),
            opt.register_step_post_hook(
                lambda o, a, k, log=log: log.append(("post", len(a), [*k]))
            ),
        ]
        t.give_gradients(x, 0)
        opt.step()
        opt.step(lambda: 1.0)
        several.append(
            opt.register_step_pre_hook(lambda o, a, k: (a[:1], {"closure": lambda: 5.0}))
        )
        log.append(opt.step())
        for handle in several:
            handle.remove()
        opt.step()
        logs.append(log)
    assert logs[0] == logs[1]


def test_hooks_of_all_optimizers_are_called() -> None:
    of_all = import_module("torch.optim.optimizer")
    _, opt = stepped()
    log: list[str] = []
    handles = [
        of_all.register_optimizer_step_pre_hook(lambda o, a, k: log.append("pre")),
        of_all.register_optimizer_step_post_hook(lambda o, a, k: log.append("post")),
    ]
    try:
        opt.step()
    finally:
        for handle in handles:
            handle.remove()
    opt.step()
    assert log == ["pre", "post"]


def test_a_hook_that_fails_leaves_all_as_it_was() -> None:
    x, opt = stepped()

    def hook(*_: Any) -> None:
        raise RuntimeError("no hook")

    handle = opt.register_step_pre_hook(hook)
    with t.Unchanged(opt, x, "no hook"):
        opt.step()
    handle.remove()
    opt.step()
    assert opt.state[x[0]]["step"] == 3


def test_hooks_of_state_dictionaries() -> None:
    logs = []
    for make in (ours, theirs):
        x = t.parameters()
        opt = make("AdamW", x)
        t.train(opt, x, 2)
        log: list[Any] = []
        opt.register_state_dict_pre_hook(lambda o, log=log: log.append("before"))
        opt.register_state_dict_post_hook(lambda o, s: {**s, "more": 1})
        saved = opt.state_dict()
        log.append(saved["more"])
        opt.register_load_state_dict_pre_hook(
            lambda o, s: {**s, "param_groups": [{**g, "lr": 0.5} for g in s["param_groups"]]}
        )
        opt.register_load_state_dict_post_hook(lambda o, log=log: log.append("behind"))
        opt.load_state_dict(saved)
        log.append(opt.param_groups[0]["lr"])
        logs.append(log)
    assert logs[0] == logs[1] == ["before", 1, "behind", 0.5]


def test_profilers_see_the_step() -> None:
    _, opt = stepped()
    with torch.autograd.profiler.profile() as profile:
        opt.step()
    assert any(e.key == "Optimizer.step#AdamW.step" for e in profile.key_averages())


@pytest.mark.filterwarnings("ignore::UserWarning")  # that the compiler lets a step alone
def test_a_compiled_training_steps() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    opt = ours("AdamW", model.parameters())

    @torch.compile(backend="eager")  # type: ignore[untyped-decorator]
    def training(x: Any) -> None:
        model(x).sum().backward()
        opt.step()
        opt.zero_grad()

    for _ in range(3):
        training(torch.ones(4, 3))
    assert opt.state[model.weight]["step"] == 3


# ---- Mixed precision


def test_a_scaler_leaves_out_steps_that_overflow() -> None:
    found = []
    for make in (ours, theirs):
        x = t.parameters()
        opt = make("AdamW", x)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
        for step in range(8):
            opt.zero_grad()
            loss = sum((p * (step + 1)).sin().sum() for p in x)
            scaler.scale(loss).backward()
            if step == 4:
                x[1].grad[2] = float("inf")
            scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(x, 1.0)
            scaler.step(opt)
            scaler.update()
        found.append((x, scaler.get_scale(), opt.state[x[0]]["step"].item()))
    assert found[0][1:] == found[1][1:]
    assert found[0][2] == 7
    t.assert_near(found[0][0], found[1][0], t.parameters())


def test_autograd_hears_that_a_step_has_written() -> None:
    """Else a backward pass through weights that were stepped gives another gradient, silently."""
    for make in (ours, theirs):
        w = torch.nn.Parameter(torch.ones(3))
        idle = torch.nn.Parameter(torch.ones(3))
        opt = make("SGD", [w, idle])
        loss = (w * w).sum() + (idle * idle).sum()
        w.grad = torch.ones(3)
        versions = w._version, idle._version
        opt.step()
        assert w._version > versions[0]
        assert idle._version == versions[1]
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


# ---- State


def test_states_survive_files_that_hold_weights_only() -> None:
    for options in (
        {},
        {"clip_norm": 1.0, "ema": 0.9, "master": True},
        {"state_dtype": "blockfloat8"},
    ):
        x = t.parameters(torch.bfloat16)
        opt = ours("AdamW", x, **options)
        t.train(opt, x, 3)
        file = io.BytesIO()
        torch.save({"opt": opt.state_dict(), "x": x}, file)
        t.train(opt, x, 3, first=3)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        y = loaded["x"]
        other = ours("AdamW", y, **options)
        other.load_state_dict(loaded["opt"])
        t.train(other, y, 3, first=3)
        assert [t.bits(p) for p in x] == [t.bits(q) for q in y]


@classes
def test_a_copy_and_a_pickle_go_on_by_themselves(name: str) -> None:
    x, opt = stepped(name)
    state = {} if BESIDE not in opt.state else {BESIDE}
    found = [(x, opt)]
    found.append(copy.deepcopy((x, opt)))
    found.append(pickle.loads(pickle.dumps((x, opt))))
    for y, other in found:
        t.train(other, y, 3, first=2)
        assert {*other.state} == {*y, *state}
    first, *rest = [[t.bits(p) for p in y] for y, _ in found]
    assert all(other == first for other in rest)


def test_groups_may_come_later() -> None:
    for before in (0, 2):
        found = []
        for make in (ours, theirs):
            x = t.parameters()
            opt = make("AdamW", x[:2])
            t.train(opt, x[:2], before)
            opt.add_param_group({"params": x[2:], "lr": 0.1})
            t.train(opt, x, 3, first=2)
            found.append(x)
            assert opt.state[x[0]]["step"] == before + 3
            assert opt.state[x[3]]["step"] == 3
        t.assert_near(found[0], found[1], t.parameters())


def test_groups_that_do_not_fit_are_not_taken_in() -> None:
    x, opt = stepped()
    more = torch.nn.Parameter(torch.ones(3))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"params": [more], "lr": -1.0}, "lr: "),
        ({"params": [more], "lr": torch.tensor([0.1, 0.2])}, "lr: "),
        ({"params": [more], "betas": 3}, "betas: "),
        ({"params": [torch.ones(3, dtype=torch.int32)]}, "params[4]: "),
        ({"params": [x[0]]}, "more than one parameter group"),
    ]
    for group, says in wrong:
        with t.Unchanged(opt, x, says):
            opt.add_param_group(group)
        t.train(opt, x, 1)


def test_empty_groups_wait() -> None:
    x = t.parameters()
    opt = ours("AdamW", [{"params": x}, {"params": []}])
    t.train(opt, x, 2)
    assert opt.state[x[0]]["step"] == 2


@pytest.mark.parametrize("none", [True, False])
def test_gradients_are_cleared_in_both_ways(none: bool) -> None:
    x, opt = stepped()
    opt.zero_grad(set_to_none=none)
    assert all((p.grad is None) if none else not p.grad.any() for p in x)
    before = [t.bits(p) for p in x]
    opt.step()
    assert ([t.bits(p) for p in x] == before) == none


def test_gradients_may_be_missing_at_first_and_later() -> None:
    found = []
    for make in (ours, theirs):
        x = t.parameters()
        frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        opt = make("AdamW", [*x, frozen])
        opt.step()
        for step, there in enumerate([[0], [0, 1], [2, 3], [0, 1, 2, 3], [1]]):
            for p in x:
                p.grad = None
            t.give_gradients([x[i] for i in there], step)
            opt.step()
        found.append(([*x], [int(opt.state[p]["step"]) for p in x]))
        assert torch.equal(frozen, torch.ones(3))
        assert frozen not in opt.state
    assert found[0][1] == found[1][1] == [3, 3, 2, 2]
    t.assert_near(found[0][0], found[1][0], t.parameters())


def cloud(make: Any) -> tuple[Any, Any, list[float]]:
    """Points that are cloned, pruned and reset, as those of 3-D Gaussian splatting are."""
    source = torch.Generator().manual_seed(0)
    xyz, opacity = (
        torch.nn.Parameter(torch.randn(n, k, generator=source)) for n, k in ((6, 3), (6, 1))
    )
    groups = [{"params": [xyz], "name": "xyz"}, {"params": [opacity], "name": "opacity", "lr": 0.1}]
    opt = make("Adam", groups)

    def replaced(change: Callable[[Any], Any], state: Callable[[Any], Any]) -> None:
        for group in opt.param_groups:
            old = group["params"][0]
            stored = opt.state.get(old, None)
            new = torch.nn.Parameter(change(old.detach()))
            if stored is not None:
                stored["exp_avg"] = state(stored["exp_avg"])
                stored["exp_avg_sq"] = state(stored["exp_avg_sq"])
                del opt.state[old]
                group["params"][0] = new
                opt.state[new] = stored
            else:
                group["params"][0] = new

    def step(seed: int) -> None:
        t.give_gradients([group["params"][0] for group in opt.param_groups], seed)
        opt.step()

    replaced(lambda x: torch.cat([x, x[:1]]), lambda s: torch.cat([s, torch.zeros_like(s[:1])]))
    for seed in range(3):
        step(seed)
    replaced(lambda x: torch.cat([x, x[:2]]), lambda s: torch.cat([s, torch.zeros_like(s[:2])]))
    step(3)
    replaced(lambda x: x[2:], lambda s: s[2:].clone())
    step(4)
    last = opt.param_groups[1]["params"][0]
    stored = opt.state[last]  # reset of one, while the group of another changes
    stored["exp_avg"] = torch.zeros_like(stored["exp_avg"])
    old = opt.param_groups[0]["params"][0]
    opt.param_groups[0]["params"][0] = torch.nn.Parameter(old.detach().clone())
    del opt.state[old]
    for seed in range(5, 8):
        step(seed)
    tensors = [group["params"][0] for group in opt.param_groups]
    return tensors, opt, [float(opt.state[x]["step"]) for x in tensors]


def test_tensors_and_their_state_may_be_replaced() -> None:
    (x, opt, steps), (y, _, others) = cloud(ours), cloud(theirs)
    assert steps == others == [3, 8]
    assert {*opt.state} == {*x}
    t.assert_near(x, y, [torch.zeros_like(p) for p in y])


def test_state_may_be_set_anew() -> None:
    for reset in (
        lambda opt, x: opt.state.clear(),
        lambda opt, x: setattr(opt, "state", defaultdict(dict)),
        lambda opt, x: opt.state.pop(x[1]),
        lambda opt, x: opt.state[x[0]]["step"].fill_(7.0),
        lambda opt, x: opt.state[x[0]]["exp_avg"].zero_(),
        lambda opt, x: opt.state[x[0]].update(exp_avg=torch.ones(5, 7)),
    ):
        found = []
        for make in (ours, theirs):
            x = t.parameters()
            opt = make("AdamW", x)
            t.train(opt, x, 4)
            reset(opt, x)
            t.train(opt, x, 3, first=4)
            found.append(x)
        t.assert_near(found[0], found[1], t.parameters())


def test_state_has_room_for_the_users_own() -> None:
    x, opt = stepped()
    opt.state[x[0]]["slow"] = slow = torch.ones(5, 7)
    opt.state["count"] = 3
    t.train(opt, x, 2, first=2)
    assert opt.state[x[0]]["slow"] is slow
    assert opt.state[x[0]]["step"] == 4
    other = ours("AdamW", t.halves(t.parameters()))
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    own = other.param_groups[0]["params"][0]
    assert torch.equal(other.state[own]["slow"], slow)
    assert other.state["count"] == 3


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    x, opt = stepped()
    good = copy.deepcopy(opt.state_dict())
    sgd = theirs("SGD", t.halves(t.parameters()), momentum=0.9).state_dict()
    wrong: list[tuple[Callable[[Any], object], str]] = [
        (lambda s: s["state"][1].update(exp_avg=torch.zeros(3)), "exp_avg"),
        (lambda s: s["state"][1].pop("exp_avg"), "exp_avg"),
        (lambda s: s["state"][1].update(max_exp_avg_sq=torch.zeros(7)), "max_exp_avg_sq"),
        (lambda s: s["state"][1].update(step=2.5), "step"),
        (lambda s: s["param_groups"].pop(), "param_groups"),
        (lambda s: s["param_groups"][0]["params"].pop(), "param_groups"),
        (lambda s: s["param_groups"][0].update(lr=-1.0), "lr"),
        (lambda s: s.update(sgd), "momentum"),
    ]
    for change, says in wrong:
        given = copy.deepcopy(good)
        change(given)
        with t.Unchanged(opt, x, says):
            opt.load_state_dict(given)
        t.train(opt, x, 1)


def test_a_default_device_has_no_state() -> None:
    x = t.parameters()
    opt = ours("AdamW", x)
    with torch.device("meta"):
        t_grad = [torch.ones(p.shape, device="cpu") for p in x]
        for p, g in zip(x, t_grad, strict=True):
            p.grad = g
        opt.step()
        assert opt.state[x[0]]["step"].device.type == "cpu"
    opt.step()
    assert opt.state[x[0]]["step"] == 2


# ---- Memory


def test_a_tensors_memory_may_be_another() -> None:
    found = []
    for make in (ours, theirs):
        x = t.parameters()
        opt = make("AdamW", x)
        t.train(opt, x, 2)
        x[0].data = x[0].data.clone()
        x[2].data = torch.ones(3, 4)
        t.train(opt, x, 2, first=2)
        x[1].share_memory_()
        t.train(opt, x, 2, first=4)
        found.append(x)
    t.assert_near(found[0], found[1], t.parameters())


def test_loaded_weights_are_gone_on_from() -> None:
    for options in ({}, {"master": True, "ema": 0.9}):
        model = torch.nn.Linear(3, 2).bfloat16()
        x = list(model.parameters())
        opt = ours("AdamW", x, **options)
        t.train(opt, x, 2)
        other = torch.nn.Linear(3, 2).bfloat16()
        model.load_state_dict(other.state_dict())
        if options:
            t.give_gradients(x, 0)
            with t.Unchanged(opt, x, "params[0]", "refresh"):
                opt.step()
            opt.refresh()
        t.train(opt, x, 1)
        assert (x[0] - other.weight).abs().max() < 0.1


def test_refresh_reads_the_memory_that_tensors_have_now() -> None:
    x = t.parameters()
    opt = ours("AdamW", x, ema=0.9)
    t.train(opt, x, 2)
    x[0].data = torch.zeros(5, 7)
    opt.refresh()
    assert not opt.state[x[0]]["ema"].any()


def test_a_model_that_has_become_another_type_is_refused() -> None:
    model = torch.nn.Linear(3, 2)
    x = list(model.parameters())
    opt = ours("AdamW", x)
    t.train(opt, x, 2)
    model.half()
    with t.Unchanged(opt, x, "params[0]", "float16", "float32"):
        opt.step()
    model.float()
    opt.step()
    assert opt.state[x[0]]["step"] == 3


SHAPED: dict[str, Callable[[], Any]] = {
    "channels_last": lambda: torch.randn(4, 3, 2, 5).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(5, 7).t(),
    "permuted": lambda: torch.randn(2, 3, 4).permute(2, 0, 1),
    "one by one": lambda: torch.randn(6, 5, 1, 1).to(memory_format=torch.channels_last),
    "empty": lambda: torch.ones(0, 3),
    "one": lambda: torch.tensor(2.0),
    "a view": lambda: torch.randn(20)[3:9],
}


@pytest.mark.parametrize("which", SHAPED)
def test_dense_tensors_of_any_order_are_stepped_where_they_lie(which: str) -> None:
    torch.manual_seed(0)
    start = SHAPED[which]()
    found = []
    for make in (ours, theirs):
        w = torch.nn.Parameter(start.detach().clone(memory_format=torch.preserve_format))
        other = torch.nn.Parameter(torch.ones(3))
        opt = make("AdamW", [w, other])
        place, strides = w.data_ptr(), w.stride()
        for step in range(4):
            opt.zero_grad()
            ((w * (step + 1.0)).sin().sum() + other.sum()).backward()
            opt.step()
            if step == 1:  # its state has its axes, here and there
                opt.load_state_dict(copy.deepcopy(opt.state_dict()))
            assert opt.state[w]["exp_avg"].shape == w.shape
        assert (w.data_ptr(), w.stride()) == (place, strides)
        found.append([w, other, opt.state[w]["exp_avg"]])
    t.assert_near(found[0], found[1], [start, torch.ones(3), torch.zeros_like(start)])


def test_rules_that_look_at_axes_refuse_turned_ones() -> None:
    turned = torch.nn.Parameter(torch.randn(5, 7).t())
    turned.grad = torch.ones_like(turned)
    square = torch.nn.Parameter(torch.randn(4, 4).t())
    square.grad = torch.ones_like(square)
    ends = np.zeros((4, 4)), np.ones((4, 4))
    for opt, x in (
        (ours("Adafactor", [turned]), turned),
        (ours("Muon", [turned]), turned),
        (ours("SGD", [turned], clip_norm=1.0, clip_norm_per="row"), turned),
        (ours("SGD", [square], bounds=ends), square),
    ):
        before = t.bits(x)
        with pytest.raises(ValueError, match=r"params\[0\].*x\.contiguous\(\)"):
            opt.step()
        assert t.bits(x) == before
    square.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 4), (4, 4), check_invariants=True)
    opt = ours("SGD", [square])
    with t.Unchanged(opt, [square], "params[0].grad", "contiguous"):
        opt.step()


def test_tensors_that_cannot_be_stepped_are_refused_by_name() -> None:
    fine = torch.nn.Parameter(torch.ones(3))

    def quantized() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)

    wrong: list[tuple[Any, str]] = [
        (torch.nn.Parameter(torch.ones(4, 6)[:, ::2]), "not contiguous"),
        (torch.ones(1).expand(3), "not contiguous"),
        (torch.ones(3, device="meta"), "meta"),
        (torch.ones(3, dtype=torch.complex64), "view_as_real"),
        (torch.ones(3, dtype=torch.int64), "int64"),
        (torch.ones(3, dtype=torch.bool), "bool"),
        (torch.ones(3).to_sparse(), "sparse"),
        (quantized(), "qint8"),
    ]
    for x, says in wrong:
        with pytest.raises((TypeError, ValueError), match=r"params\[1\]") as info:
            ours("SGD", [fine, x])
        assert says in str(info.value)


def test_gradients_that_lie_otherwise_are_refused_by_name() -> None:
    x = t.parameters()
    opt = ours("SGD", x)
    t.train(opt, x, 1)
    wrong: list[Any] = [
        torch.ones(1).expand(5, 7),
        torch.ones(7, 5).t(),
        torch.ones(5, 14)[:, ::2],
    ]
    for g in wrong:
        t.give_gradients(x, 0)
        x[0].grad = g
        with t.Unchanged(opt, x, "params[0].grad", "torch.empty_like(x).copy_(x.grad)"):
            opt.step()
        x[0].grad = torch.empty_like(x[0]).copy_(x[0].grad)
        opt.step()
    x[1].grad = x[1].data
    with t.Unchanged(opt, x, "grads[1]", "memory of its own"):
        opt.step()


@pytest.mark.skipif(
    not hasattr(torch.Tensor, "grad_dtype"), reason="this PyTorch has no grad_dtype"
)
def test_gradients_may_be_wider_or_narrower() -> None:
    for own, other in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        p = torch.nn.Parameter(torch.zeros(3, dtype=own))
        p.grad_dtype = other
        p.grad = torch.ones(3, dtype=other)
        ours("SGD", [p], lr=1.0).step()
        assert torch.equal(p, torch.full((3,), -1.0, dtype=own))


def test_gradients_that_are_read_with_the_other_sign() -> None:
    """As autograd gives them of an imaginary part of one element."""
    found = []
    for make in (ours, theirs):
        p = torch.nn.Parameter(torch.ones(1))
        opt = make("SGD", [p], lr=0.5)
        for _ in range(2):
            opt.zero_grad()
            z = torch.complex(torch.zeros(1), p)
            (z.conj() * torch.complex(torch.ones(1), torch.ones(1))).imag.sum().backward()
            opt.step()
        found.append([p])
    assert found[0][0].item() == found[1][0].item() != 1


def test_subclasses_of_tensors_are_stepped() -> None:
    class Named(torch.nn.Parameter):  # type: ignore[name-defined]
        pass

    class Marked(torch.Tensor):  # type: ignore[name-defined]
        pass

    for p in (Named(torch.zeros(3)), torch.zeros(3).as_subclass(Marked).requires_grad_()):
        opt = ours("SGD", [p], lr=1.0)
        for _ in range(2):
            p.grad = torch.ones(3).as_subclass(Marked)
            opt.step()
        assert torch.equal(p.detach().as_subclass(torch.Tensor), torch.full((3,), -2.0))


def test_tied_tensors_step_once() -> None:
    a, b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    b.weight = a.weight
    model = torch.nn.Sequential(a, b)
    opt = ours("SGD", model.parameters(), lr=1.0)
    before = a.weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    opt.step()
    assert torch.equal(a.weight, before - a.weight.grad)
    twice = torch.nn.Parameter(before.clone())
    twice.data = a.weight.data  # the same memory, by another name
    twice.grad = a.weight.grad
    with pytest.raises(ValueError, match=r"params\[1\]: overlaps params\[0\]"):
        ours("SGD", [a.weight, twice]).step()


def test_two_optimizers_may_step_the_same_tensors() -> None:
    found = []
    for make in (ours, theirs):
        x = t.parameters()
        several = make("SGD", x, momentum=0.9), make("AdamW", x)
        for step in range(6):
            t.train(several[step % 2], x, 1, first=step)
        found.append(x)
    t.assert_near(found[0], found[1], t.parameters())


def test_one_gradient_may_serve_several_tensors() -> None:
    x = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    x[0].grad = x[1].grad = torch.ones(3)
    ours("SGD", x, lr=1.0).step()
    assert all(torch.equal(p, torch.zeros(3)) for p in x)


# ---- Sparse gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("coalesced", [True, False])
def test_sparse_gradients_are_rows(dtype: Any, coalesced: bool) -> None:
    tables = []
    for kind in ("ours", "arrays", "theirs"):
        torch.manual_seed(0)
        table = torch.nn.Embedding(10, 4, sparse=True).to(dtype)
        w, a = table.weight, t.copies([table.weight])
        preset = schuss.Adam(a, lr=0.1)
        opt = ours("Adam", [w], lr=0.1) if kind == "ours" else torch.optim.SparseAdam([w], lr=0.1)
        for step in range(5):
            opt.zero_grad()
            looked = table(torch.tensor([[1, 3, 1], [step, 9, step]]))
            (looked.float() ** 2).sum().backward()
            assert w.grad.is_sparse
            if coalesced:
                w.grad = w.grad.coalesce()
            if kind == "arrays":
                g = w.grad
                rows = schuss.Rows(g._indices()[0].numpy(), t.copies([g._values()])[0])
                preset.step([rows])
                w.data.copy_(tensor_of(a[0]))
            else:
                opt.step()
        tables.append(w.detach())
    assert torch.equal(tables[0], tables[1])
    if dtype is torch.float32:
        torch.manual_seed(0)
        t.assert_near([tables[0]], [tables[2]], [torch.nn.Embedding(10, 4).weight])


def test_sparse_gradients_of_plain_descent_are_dense_ones() -> None:
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        table = torch.nn.Embedding(10, 4, sparse=sparse)
        head = torch.nn.Linear(4, 2)
        opt = ours("SGD", [*table.parameters(), *head.parameters()], lr=0.1)
        for _ in range(3):
            opt.zero_grad()
            head(table(torch.tensor([1, 3, 1, 7]))).square().sum().backward()
            opt.step()
        found.append([table.weight, head.weight])
    t.assert_near(found[0], found[1], [torch.zeros(10, 4), torch.zeros(2, 4)])


def test_gradients_with_more_sparse_axes_are_refused() -> None:
    x = [torch.nn.Parameter(torch.ones(3, 4))]
    opt = ours("SGD", x)
    x[0].grad = torch.ones(3, 4).to_sparse()
    with t.Unchanged(opt, x, "params[0].grad", "2 sparse axes"):
        opt.step()
    x[0].grad = torch.ones(3, 4)
    opt.step()


def test_counted_rows_with_codes() -> None:
    table = torch.nn.Embedding(10, 64, sparse=True)
    opt = ours("Adam", table.parameters(), rows="counted", state_dtype="blockfloat8")
    table(torch.tensor([1, 1, 3])).sum().backward()
    opt.step()
    assert opt.state[table.weight]["row_step"].tolist() == [0, 1, 0, 1, *[0] * 6]


# ---- Threads and garbage


def test_threads_that_step_the_same_tensors_lose_no_step() -> None:
    x = [torch.nn.Parameter(torch.zeros(1000)) for _ in range(20)]
    for p in x:
        p.grad = torch.ones(1000)
    opt = ours("SGD", x, lr=1.0)

    def work() -> None:
        for _ in range(50):
            opt.step()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(p, torch.full((1000,), -200.0)) for p in x)
    assert opt.state[x[0]]["step"] == 200


def test_threads_step_tensors_of_their_own() -> None:
    found: dict[int, list[bytes]] = {}

    def work(number: int) -> None:
        x = t.parameters()
        t.train(ours("AdamW", x), x, 30)
        found[number] = [t.bits(p) for p in x]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[i] == found[0] for i in range(4))


def test_nothing_outlives_an_optimizer() -> None:
    x, opt = stepped()
    handle = opt.register_step_post_hook(lambda *_: None)
    opt.step()
    seen = [weakref.ref(one) for one in (opt, opt.arrays, x[0], opt.state[x[0]]["exp_avg"])]
    del x, opt, handle
    assert seen[0]() is None  # at once
    gc.collect()
    assert [ref() for ref in seen] == [None] * 4


def test_memory_stays_where_it_is() -> None:
    x = [torch.nn.Parameter(torch.ones(2000)) for _ in range(10)]
    opt = ours("AdamW", x)
    kept = torch.ones(2000)
    sizes = []
    for _ in range(3):
        for step in range(2000):
            for p in x:
                p.grad = kept.clone()
            opt.step()
            if step % 500 == 0:
                _ = opt.state[x[0]]["step"]
        gc.collect()
        sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert sizes[2] - sizes[0] < 4000  # KiB; one gradient a step would be 80 MB


# ---- What is taken, and what is refused


def test_what_pytorch_chooses_an_implementation_by() -> None:
    x = t.parameters()
    for name in ("foreach", "fused"):
        opt = ours("AdamW", x, **{name: True})
        t.train(opt, x, 1)
        assert name not in opt.param_groups[0]
    for name in ("capturable", "differentiable"):
        ours("AdamW", x, **{name: False})
        with pytest.raises(ValueError, match=f"^{name}: "):
            ours("AdamW", x, **{name: True})


def test_errors_name_what_is_wrong() -> None:
    x = t.parameters()
    for options, says in (
        ({"lr": -1.0}, "lr: "),
        ({"betas": (1.0, 0.9)}, "betas"),
        ({"beta": 0.9}, "beta"),
        ({"clip_norm": -1.0}, "clip_norm: "),
        ({"no_decay": 3}, "no_decay: "),
        ({"state_dtype": "float8"}, "float8"),
        ({"lr": torch.tensor([0.1, 0.2])}, "lr: "),
    ):
        with pytest.raises((TypeError, ValueError), match=says):
            t.CLASSES["AdamW"](x, **options)
    with pytest.raises(AttributeError, match=r"module 'schuss.torch' has no attribute 'AdamWW'"):
        _ = schuss.torch.AdamWW
    with pytest.raises(NotImplementedError, match="base of the rules"):
        schuss.torch.Optimizer(x)


def test_all_rules_have_a_class() -> None:
    assert {*schuss.torch.NAMES} == {*t.CLASSES}
    for name in schuss.torch.NAMES:
        cls = getattr(schuss.torch, name)
        assert name in dir(schuss.torch)
        assert issubclass(cls, torch.optim.Optimizer)
        assert cls.rule is getattr(schuss, name)
        assert "lr" in inspect.signature(cls).parameters
        assert pickle.loads(pickle.dumps(cls)) is cls


def test_options_that_ask_by_name_hear_the_models_names() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    asked: dict[str, Any] = {}

    def spared(name: str, x: np.ndarray) -> bool:
        asked[name] = x.shape
        return x.ndim < 2

    opt = ours("AdamW", model.named_parameters(), no_decay=spared, weight_decay=0.5, lr=1.0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    weight, bias = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    opt.step()
    assert asked == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert torch.equal(model[0].weight, weight * 0.5)
    assert torch.equal(model[0].bias, bias)


def test_a_state_in_files_is_of_the_same_tensors_for_good(tmp_path: Any) -> None:
    x, y = t.parameters(), t.parameters()
    opt, other = ours("AdamW", x, state_dir=tmp_path / "state"), ours("AdamW", y)
    for tensors, own in ((x, opt), (y, other)):
        t.train(own, tensors, 3)
    z, copied = copy.deepcopy((x, opt))  # whose state is in memory
    with t.Unchanged(opt, x, "state_dir: "):
        opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    for tensors, own in ((x, opt), (y, other), (z, copied)):
        t.train(own, tensors, 2, first=3)
    assert [t.bits(p) for p in x] == [t.bits(q) for q in y] == [t.bits(r) for r in z]


def test_rules_of_a_users_own() -> None:
    class Mine(schuss.Lion):
        pass

    class OfTensors(schuss.torch.Optimizer):
        rule = Mine

    x, y = t.parameters(), t.parameters()
    t.train(OfTensors(x, lr=0.01), x, 3)
    t.train(ours("Lion", y, lr=0.01), y, 3)
    assert [t.bits(p) for p in x] == [t.bits(q) for q in y]


# ---- PyTorch's own cases


def cases() -> Any:
    reason = "PyTorch's cases need expecttest: they did not run"
    return pytest.importorskip(
        "torch.testing._internal.common_optimizers", reason=reason, exc_type=ImportError
    )


def information() -> list[str]:
    return ["Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "AdamW", "ASGD", "Muon", "NAdam",
            "RAdam", "RMSprop", "Rprop", "SGD"]  # fmt: skip


def of(name: str) -> Any:
    return next(i for i in cases().optim_db if i.optim_cls.__name__ == name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_cases_are_of_all_of_its_rules() -> None:
    known = {i.optim_cls.__name__ for i in cases().optim_db}
    assert known - {*information()} == {"LBFGS", "SparseAdam"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", information())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.usefixtures("double")
def test_its_cases_go_the_same_way(name: str, dtype: Any, subtests: Any) -> None:
    for case in of(name).optim_inputs_func(device="cpu", dtype=dtype):
        with subtests.test(case.desc):
            if {"capturable", "differentiable"} & case.kwargs.keys():
                pytest.skip("is refused")
            shapes = [(5, 7), (3, 4)] if name == "Muon" else t.SHAPES
            x, y, start = (t.parameters(dtype, shapes=shapes) for _ in range(3))
            kwargs = copy.deepcopy(case.kwargs)
            other = getattr(torch.optim, name)(y, **copy.deepcopy(kwargs))
            if kwargs.pop("decoupled_weight_decay", False):
                kwargs["decay_mode"] = "decoupled"
            opt = t.CLASSES[name](x, **kwargs)
            t.train(opt, x, 10)
            t.train(other, y, 10)
            t.assert_near(x, y, start, near=0.05 if name == "Muon" else None)


# What is no error here: PyTorch's fused and foreach steps want numbers where ours take tensors, and
# beside matrices Muon has AdamW.
NO_ERROR = (
    "only support 2D",
    "both floats or both Tensors",
    "not supported for capturable=False",
    "as Tensor doesn't",
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", information())
def test_its_errors_are_errors(name: str, subtests: Any) -> None:
    kind = cases().OptimizerErrorEnum.CONSTRUCTION_ERROR
    for case in of(name).optim_error_inputs_func("cpu", torch.float32):
        given = case.optimizer_error_input
        with subtests.test(given.desc):
            if any(text in f"{given.desc} {case.error_regex}" for text in NO_ERROR):
                pytest.skip("is none here")
            params = given.params
            if params is None:
                params = [torch.nn.Parameter(torch.randn(2, 3))]
            error = case.error_type
            if "complex" in given.desc:
                error = TypeError  # at construction, with what to do
            elif error is UserWarning:
                with pytest.warns(UserWarning, match=case.error_regex):
                    t.CLASSES[name](params, **given.kwargs)
                continue
            else:
                assert case.error_on == kind
            with pytest.raises(error):
                t.CLASSES[name](params, **given.kwargs)
