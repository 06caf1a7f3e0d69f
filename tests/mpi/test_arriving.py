"""Gradients of shares one by one, averages in the parameters' place, and Ctrl-C within a step."""

from __future__ import annotations

import os
import random
import signal
import threading
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import pytest

import schuss
from mpi.communicators import together
from schuss import reference
from schuss.engine.guard import uninterrupted
from schuss.mpi import Sharded, shares

SHAPES: dict[str, tuple[int, ...]] = {
    "first": (60, 90),
    "scalar": (),
    "small": (57,),
    "empty": (0,),
    "chunks": (3 * 4096 + 5,),
    "fortran": (90, 70),
}
STEPS = 4

Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "BUCKET", 1 << 12)


def arrays(*seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    made = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    return {
        name: np.array(a, np.float32, order="F" if name == "fortran" else "C")
        for name, a in made.items()
    }


def means(t: int, size: int) -> Arrays:
    """The gradients of a step, of all processes together."""
    all_of_them = [arrays(t, rank) for rank in range(size)]
    return {
        name: np.array(
            reference.average([g[name] for g in all_of_them], [1 / size] * size, np.float32),
            order="F" if name == "fortran" else "C",
        )
        for name in SHAPES
    }


def same(x: Arrays, y: Arrays) -> bool:
    return all(x[name].tobytes() == y[name].tobytes() for name in SHAPES)


CASES: list[tuple[type[schuss.Optimizer], dict[str, Any], dict[str, Any]]] = [
    (schuss.AdamW, {"zero_grad": True}, {}),
    (schuss.AdamW, {"clip_norm": 0.5}, {"clip_norm": "previous"}),
    (schuss.SGD, {"lr": 0.1, "momentum": 0.9}, {"lr": 0.2, "grad_scale": 4.0, "report": True}),
    (schuss.LARS, {"lr": 0.1}, {}),
    (schuss.Lion, {"cautious": "mean"}, {}),
]


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_gradients_that_arrive(case: int, size: int, later: bool) -> None:
    """They come in another order to each process, and what hasn't come has none."""
    rule, options, asked = CASES[case]
    left_out = {1: "small", 2: "chunks"}

    def process(comm: Any) -> tuple[Arrays, Any]:
        x = arrays(7)
        opt = Sharded(rule, x, comm=comm, check_every=2, **options)
        for t in range(STEPS):
            g = arrays(t, comm.rank)
            names = [name for name in SHAPES if name != left_out.get(t)]
            random.Random(10 * t + comm.rank).shuffle(names)
            with opt.arriving(**asked) as step:
                for name in names:
                    step(name, g[name])
            assert options.get("zero_grad", False) != any(g[name].any() for name in names)
            assert opt.own.arrived
        return x, [opt.iterations, opt.grad_norm, repr(opt.report)]

    x = arrays(7)
    opt = rule(x, **options)
    for t in range(STEPS):
        g = means(t, size)
        with opt.arriving(**asked) as step:
            for name in SHAPES:
                if name != left_out.get(t):
                    step(name, g[name])
    wanted = [opt.iterations, opt.grad_norm]
    for other, course in together(size, process, later=later):
        assert same(other, x)
        assert course[:2] == wanted
        assert "nan" not in course[2]


def test_what_one_process_raises_ends_the_block_in_all() -> None:
    def process(comm: Any) -> tuple[str, int, Arrays]:
        x = arrays(7)
        before = arrays(7)
        opt = Sharded(schuss.AdamW, x, comm=comm)
        g = arrays(1, comm.rank)
        found = ""
        try:
            with opt.arriving() as step:
                for name in reversed(SHAPES):
                    step(name, g[name][:2] if name == "first" and comm.rank == 1 else g[name])
        except ValueError as error:
            found = str(error)
        assert set(opt.own.arrived) < set(SHAPES)
        assert all(same_as(x, before, name) for name in SHAPES if name not in opt.own.arrived)
        opt.step(arrays(2, comm.rank))
        return found, opt.iterations, x

    many = together(3, process, later=True)
    texts = [text for text, _, _ in many]
    assert all('grads["first"]: shape' in text for text in texts)
    assert [text.startswith("process 1: ") for text in texts] == [True, False, True]
    assert len({iterations for _, iterations, _ in many}) == 1
    assert all(same(x, many[0][2]) for _, _, x in many)


def same_as(x: Arrays, y: Arrays, name: str) -> bool:
    return x[name].tobytes() == y[name].tobytes()


def test_an_error_of_the_users_within_the_block() -> None:
    """It comes before the first bucket: nothing has changed."""

    def process(comm: Any) -> tuple[str, int, Arrays]:
        x = arrays(7)
        opt = Sharded(schuss.AdamW, x, comm=comm)
        found = ""
        try:
            with opt.arriving() as step:
                for name in SHAPES:
                    step(name, gradient_of(comm.rank, name))
        except FloatingPointError as error:
            found = str(error)
        return found, opt.iterations, x

    def gradient_of(rank: int, name: str) -> np.ndarray:
        if rank == 0:
            raise FloatingPointError("the model is at fault")
        return arrays(1, rank)[name]

    many = together(2, process)
    assert [text for text, _, _ in many] == [
        "the model is at fault",
        "process 0: the model is at fault",
    ]
    assert all(same(x, arrays(7)) and n == 0 for _, n, x in many)


def test_what_arrivals_refuse() -> None:
    def process(comm: Any) -> None:
        x = arrays(7)
        opt = Sharded(schuss.AdamW, x, comm=comm)
        with opt.arriving() as step:
            step("small", arrays(1, comm.rank)["small"])
            with pytest.raises(ValueError, match="came already"):
                step("small", None)
            with pytest.raises(ValueError, match="no parameter"):
                step("another", None)
        opt.clip_norm = 1.0
        with pytest.raises(ValueError, match="previous"), opt.arriving():
            pass
        prodigy = Sharded(schuss.Prodigy, arrays(8), comm=comm)
        with pytest.raises(ValueError, match="numbers of all gradients"), prodigy.arriving():
            pass

    together(2, process)


def test_what_comes_outside_of_the_block() -> None:
    def process(comm: Any) -> None:
        opt = Sharded(schuss.AdamW, arrays(7), comm=comm)
        arrivals = opt.arriving()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="the step is closed"):
                arrivals("small", arrays(1)["small"])
            if opt.iterations == 0:
                with arrivals as step:
                    step("first", arrays(1)["first"])
                    with pytest.raises(RuntimeError, match="gradients are arriving"):
                        opt.state_dict()

    together(2, process)


def test_an_error_that_somebody_has_caught_within() -> None:
    """All are still at the same point."""

    def process(comm: Any) -> int:
        opt = Sharded(schuss.AdamW, arrays(7), comm=comm)
        with pytest.raises(ValueError, match="shape"):
            block(opt, comm.rank)
        opt.step(arrays(2, comm.rank))
        return int(opt.iterations)

    def block(opt: Sharded, rank: int) -> None:
        with opt.arriving() as step:
            for name in reversed(SHAPES):
                g = arrays(1, rank)[name]
                with nullcontext() if rank == 1 else suppress(ValueError):
                    step(name, g[:2] if name == "first" and rank == 1 else g)

    assert len(set(together(2, process))) == 1


# ---- Averages


@pytest.mark.parametrize("size", [1, 2, 3])
def test_means_in_the_place_of_parameters(size: int) -> None:
    x = arrays(7)
    opt = schuss.AdamW(x, ema=0.9)
    for t in range(2):
        opt.step(means(t, size))

    def process(comm: Any) -> None:
        own = arrays(7)
        sharded = Sharded(schuss.AdamW, own, comm=comm, ema=0.9)
        for t in range(2):
            sharded.step(arrays(t, comm.rank))
        with sharded.averaged():
            assert same(own, opt.ema)
            with pytest.raises(RuntimeError, match="hold their means"):
                sharded.step(arrays(2, comm.rank))
        assert same(own, x)
        with pytest.raises(FloatingPointError), sharded.averaged():
            raise FloatingPointError
        assert same(own, x)

    together(size, process)


@pytest.mark.parametrize("size", [1, 3])
def test_averages_of_rules_without_a_schedule(size: int) -> None:
    x = arrays(7)
    opt = schuss.ScheduleFreeAdamW(x)
    for t in range(2):
        opt.step(means(t, size))
    trained = {name: a.copy() for name, a in x.items()}
    opt.eval()

    def process(comm: Any) -> None:
        own = arrays(7)
        sharded = Sharded(schuss.ScheduleFreeAdamW, own, comm=comm)
        for t in range(2):
            sharded.step(arrays(t, comm.rank))
        sharded.eval()
        assert same(own, x)
        sharded.train()
        assert same(own, trained)
        plain = Sharded(schuss.AdamW, arrays(7), comm=comm)
        assert not hasattr(plain, "eval")

    together(size, process)


# ---- Ctrl-C


def test_an_interrupt_waits_for_the_end_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threading.current_thread() is threading.main_thread()
    x, y = arrays(7), arrays(7)
    opt = Sharded(schuss.AdamW, x, comm=Alone())
    land = Sharded._land

    def interrupted(self: Sharded, *arguments: Any) -> None:
        if not self.own.arrived:  # once, in the first bucket
            os.kill(os.getpid(), signal.SIGINT)
        land(self, *arguments)

    monkeypatch.setattr(Sharded, "_land", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opt.step(arrays(1))
    monkeypatch.undo()
    other = schuss.AdamW(y)
    other.step(arrays(1))
    assert opt.iterations == 1
    assert same(x, y)
    opt.step(arrays(2))
    other.step(arrays(2))
    assert same(x, y)


class Alone:
    """A communicator of one process."""

    rank, size = 0, 1

    def alltoall(self, sent: Any, received: Any) -> None: ...
    def allgather(self, sent: Any, received: Any) -> None: ...


def test_a_second_interrupt_comes_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    steps = []

    def interrupted(step: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        steps.append(step)

    with pytest.raises(KeyboardInterrupt), uninterrupted():
        list(map(interrupted, ["one", "two"]))
    assert steps == ["one"]
    assert signal.getsignal(signal.SIGINT) is before
