"""What a step reads it holds for the step alone, and what fails leaves nothing behind."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss
from engine.unchanged import Unchanged, snapshot
from schuss import functional
from schuss.engine.optimizer import Optimizer
from schuss.rules import RULES, matrix

F4, F2 = np.float32, np.float16
ONE = np.ones(4, F4)


def zeros(dtype: Any = F4) -> np.ndarray:
    return np.zeros(4, dtype)


def frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


class Scale:
    """A loss scale of the user's."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return self.value

    def update(self, finite: bool) -> None:
        pass


# ---- Overlaps, each time that they are there


def overlapping_gradient() -> tuple[Optimizer, list[np.ndarray]]:
    x = zeros()
    return schuss.SGD([x]), [x[:]]


def overlapping_gradients() -> tuple[Optimizer, list[np.ndarray]]:
    both = np.ones(6, F4)
    return schuss.SGD([zeros(), zeros()], zero_grad=True), [both[:4], both[2:]]


OVERLAPS: dict[str, tuple[Callable[[], tuple[Optimizer, list[np.ndarray]]], str]] = {
    "a parameter": (overlapping_gradient, "grads[0]: overlaps params[0]"),
    "another gradient": (overlapping_gradients, "grads[1]: overlaps grads[0]"),
}


@pytest.mark.parametrize("case", OVERLAPS)
def test_an_overlap_is_refused_each_time(case: str) -> None:
    make, says = OVERLAPS[case]
    opt, overlapping = make()
    good = [ONE.copy() for _ in overlapping]
    assert opt.step(good)
    for _ in range(2):
        before = [g.copy() for g in overlapping]
        with Unchanged(opt, ValueError, says):
            opt.step(overlapping)
        assert all(map(np.array_equal, overlapping, before))
    assert opt.step(good)


def test_a_step_after_a_rebind_that_failed_looks_for_overlaps() -> None:
    x, y, twice = zeros(), zeros(), zeros()
    opt = schuss.SGD([x, y])
    assert opt.step([ONE, ONE])
    with Unchanged(opt, ValueError, "params[1]: overlaps params[0]"):
        opt.rebind([twice, twice])
    assert opt.holds([x, y])
    with Unchanged(opt, ValueError, "grads[0]: overlaps params[0]"):
        opt.step([x[:], ONE])


@pytest.mark.filterwarnings("ignore:grads")
def test_zero_grad_spares_a_parameter_whose_view_is_converted() -> None:
    x = np.arange(4, dtype=F4).reshape(2, 2)
    opt = schuss.SGD([x], convert=True, zero_grad=True)
    with Unchanged(opt, ValueError, "grads[0]: overlaps a parameter", "zero_grad"):
        opt.step([x.T])


@pytest.mark.filterwarnings("ignore:grads")
def test_a_mask_is_not_converted_away() -> None:
    opt = schuss.SGD([zeros()], convert=True)
    with Unchanged(opt, TypeError, "grads[0]: a masked array"):
        opt.step([np.ma.MaskedArray(ONE, mask=[True, False, False, False])])


# ---- Structures


def test_a_sequence_where_none_stood_for_a_mapping() -> None:
    w, v = zeros(), zeros()
    opt = schuss.SGD([{"params": {"a": zeros()}}, {"params": {"b": {"w": w, "v": v}}}], lr=1.0)
    assert opt.step({"a": ONE, "b": None})  # says nothing of what lies in b, and how
    with Unchanged(opt, ValueError, "missing 'b.w', missing 'b.v', unknown 'b.0', unknown 'b.1'"):
        opt.step({"a": ONE, "b": [ONE, 2 * ONE]})
    assert opt.step({"a": ONE, "b": {"v": 2 * ONE, "w": ONE}})
    assert (w == -1).all()
    assert (v == -2).all()


def test_the_first_step_asks_for_what_was_added() -> None:
    opt = schuss.SGD([zeros()])
    opt.add_param_group({"params": [zeros()]})
    with Unchanged(opt, ValueError, "1 where params has 2"):
        opt.step([ONE])


def test_every_step_asks_for_all_that_was_added() -> None:
    opt = schuss.SGD([zeros()])
    for _ in range(2):
        opt.add_param_group({"params": [zeros()]})
    assert opt.step([[ONE]] * 3)
    with Unchanged(opt, ValueError, "2 where params has 3"):
        opt.step([[ONE]] * 2)


class Key:
    """A key of the user's, which may lead anywhere."""

    opt: Optimizer

    def __str__(self) -> str:
        return "w"


def test_a_key_that_leads_back_to_the_optimizer_is_collected() -> None:
    key = Key()
    key.opt = schuss.SGD({key: zeros()})
    assert key.opt.step({key: ONE})
    gone = weakref.ref(key.opt)
    del key
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"backend": "numpy", "ema": 0.9},
        {"convert": True},
        {"nonfinite": "skip", "grad_scale": schuss.LossScale()},
    ],
    ids=str,
)
@pytest.mark.parametrize("rule", [*RULES, *matrix.RULES], ids=lambda rule: rule.__name__)
def test_state_goes_with_the_optimizer(rule: type[Optimizer], options: dict[str, Any]) -> None:
    opt = rule([np.ones((4, 4), F4)], **options)
    gc.disable()  # which doesn't know how many bytes wait for it
    try:
        opt.step([np.ones((4, 4), F4)], loss=1.0)
        gone = weakref.ref(opt)
        del opt
        assert gone() is None
    finally:
        gc.enable()


# ---- Loss scales


def test_a_loss_scale_of_0() -> None:
    opt = schuss.SGD([zeros()], grad_scale=Scale(0.0), nonfinite="skip")
    with Unchanged(opt, ValueError, "grad_scale: 0.0"):
        opt.step([ONE])


def test_a_stateless_call_reads_its_loss_scale_each_time() -> None:
    x, scale = zeros(), Scale(2.0)
    for value, wanted in ((2.0, -0.5), (4.0, -0.75), (0.5, -2.75)):
        scale.value = value
        functional.sgd(x, ONE, step=1, lr=1.0, grad_scale=scale)
        assert (x == wanted).all()


class Raising(Scale):
    def update(self, finite: bool) -> None:
        raise ValueError("mine")


def test_what_is_raised_behind_a_step_of_other_arrays_leaves_a_whole_step() -> None:
    def stepping(scale: Scale) -> tuple[Optimizer, np.ndarray]:
        opt = schuss.Adam([zeros(F2)], master=True, nonfinite="skip", grad_scale=scale)
        return opt, np.ones(4, F2)

    (opt, x), (plain, y) = stepping(Raising(1.0)), stepping(Scale(1.0))
    with pytest.raises(ValueError, match="mine"):
        opt.step([ONE], params=[x])
    assert plain.step([ONE], params=[y])
    assert snapshot(opt)[:3] == snapshot(plain)[:3]
    assert opt.iterations == plain.iterations == 1
    assert opt.holds([x])
    opt.grad_scale = 1.0
    assert opt.step([ONE])
    assert plain.step([ONE])
    assert (x == y).all()


# ---- What fails halfway


def test_means_are_not_put_into_parameters_of_which_one_is_read_only() -> None:
    x, y = zeros(), zeros()
    opt = schuss.SGD([x, y], lr=1.0, ema=0.5)
    for _ in range(2):
        assert opt.step([ONE, ONE])
    frozen(y)
    with Unchanged(opt, ValueError, "params[1]: read-only"), opt.averaged():
        pass
    y.flags.writeable = True
    assert opt.step([ONE, ONE])


def test_a_rebind_with_a_master_that_is_read_only() -> None:
    x, other = zeros(F2), np.ones(4, F2)
    opt = schuss.SGD([x], master=True)
    assert opt.step([ONE])
    master = frozen(opt.state["0"]["master"])
    with Unchanged(opt, ValueError, "state[0]: read-only"):
        opt.rebind([other])
    master.flags.writeable = True
    assert opt.holds([x])
    assert not opt.holds([other])
    assert opt.step([ONE])


def test_a_group_whose_registration_fails_late(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(opt: Optimizer) -> None:
        raise ValueError("late")

    opt, group = schuss.Adam([zeros()]), {"params": [zeros()]}
    assert opt.step([ONE])
    with monkeypatch.context() as patched, Unchanged(opt, ValueError, "late"):
        patched.setattr(Optimizer, "_expect", late)
        opt.add_param_group(group)
    assert opt.step([ONE])
    opt.load_state_dict(opt.state_dict())
    opt.add_param_group(group)
    assert opt.step([[ONE], [ONE]])


@pytest.mark.parametrize("key", ["exp_avg", "average"])
def test_loading_into_an_array_that_is_read_only(key: str) -> None:
    opt = schuss.Adam([zeros(), zeros()], ema=0.5)
    assert opt.step([ONE, ONE])
    saved = opt.state_dict()
    assert opt.step([ONE, ONE])
    opt.lr = 0.5
    last = opt._parameters[-1]
    frozen(last.beside["average"] if key == "average" else opt.state["1"][key])
    with Unchanged(opt, ValueError, "read-only"):
        opt.load_state_dict(saved)


# ---- A call within another


def test_a_step_of_other_arrays_within_a_step() -> None:
    x, other = zeros(), zeros()
    inner: list[str] = []

    def lr(iterations: int) -> float:
        with pytest.raises(RuntimeError, match="re-entered") as info:
            opt.step([ONE], params=[other])
        inner.append(str(info.value))
        return 1.0

    opt = schuss.SGD([x], lr=lr)
    assert opt.step([ONE])
    assert inner
    assert opt.holds([x])
    assert opt.iterations == 1
    assert (x == -1).all()
    assert not other.any()


def test_a_stateless_call_within_one_like_it() -> None:
    x, other = zeros(), zeros()
    within: list[int] = []

    def lr(step: int) -> float:
        if not within:
            within.append(step)
            functional.sgd(other, 2 * ONE, step=1, lr=lr)
        return 1.0

    functional.sgd(x, ONE, step=1, lr=lr)
    assert within
    assert (x == -1).all()
    assert (other == -2).all()


def test_a_copy_beside_a_thread_that_steps_is_whole() -> None:
    opt = schuss.SGD([np.zeros(1 << 20, F4)], lr=1.0)
    g, stop = np.ones(1 << 20, F4), threading.Event()

    def step_on() -> None:
        while not stop.is_set():
            opt.step([g])

    thread = threading.Thread(target=step_on)
    thread.start()
    try:
        for _ in range(10):
            one = copy.deepcopy(opt)
            (x,) = one.param_groups[0]["params"]
            assert (x == -one.iterations).all()
    finally:
        stop.set()
        thread.join()


# ---- Stateless calls


def test_the_right_master() -> None:
    arrays = zeros(F2), ONE, zeros(), zeros()
    functional.adam(*arrays, step=2, master=zeros())
    assert arrays[0].any()


STATELESS: dict[str, Callable[[list[np.ndarray]], None]] = {
    "compiled": lambda a: functional.adam(*a, step=1),
    "numpy": lambda a: functional.adam(*a, step=1, backend="numpy"),
}


@pytest.mark.parametrize("call", STATELESS.values(), ids=STATELESS)
@pytest.mark.parametrize("wrong", [None, 1, 2, 3], ids=["right", "grad", "exp_avg", "exp_avg_sq"])
def test_a_stateless_call_keeps_no_array(
    call: Callable[[list[np.ndarray]], None], wrong: int | None
) -> None:
    call([zeros() for _ in range(4)])  # what such calls share is there
    arrays = [zeros() for _ in range(4)]
    if wrong is None:
        call(arrays)
    else:
        arrays[wrong] = np.zeros(3, F4)
        with pytest.raises(ValueError, match=r"shape \(3,\), but param has shape \(4,\)"):
            call(arrays)
    gone = list(map(weakref.ref, arrays))
    arrays.clear()
    assert [ref() for ref in gone] == [None] * 4


@pytest.mark.parametrize("step", [2**63, 2**64, 2**62 + 1])
def test_a_step_beyond_the_counter(step: int) -> None:
    arrays = zeros(), ONE, zeros(), zeros()
    with pytest.raises(ValueError, match=f"^step: {step} is out of range"):
        functional.adam(*arrays, step=step)
    assert not any(a.any() for a in (arrays[0], *arrays[2:]))
