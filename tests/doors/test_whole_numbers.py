"""Every argument that is a whole number takes NumPy's, and arrays of no dimension, as np.savez has.

What is public is searched for them, by annotation and default: a new one is tried by itself, and
fails where this page doesn't know how to call it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import init
from schuss.data import Batches
from schuss.engine.optimizer import Optimizer
from schuss.schedules import chain, draw, linear, piecewise

pytest.importorskip("scipy", reason="SciPy is not installed: no schuss.scipy")
DOORS = ("", ".data", ".init", ".projections", ".schedules", ".scipy")


def declared() -> Iterator[tuple[str, Any, str]]:
    """Public callables, and which of their arguments are whole numbers."""
    for door in DOORS:
        module = importlib.import_module(f"schuss{door}")
        for name in module.__all__:
            called = getattr(module, name)
            for p in inspect.signature(called).parameters.values() if callable(called) else ():
                of_rule = p.annotation is p.empty and type(p.default) is int
                if p.name == "seed" or (of_rule and door == ".scipy"):
                    continue  # of every rule: see below; a method hands its own to the rule
                if of_rule or str(p.annotation) in ("int", "int | None"):
                    yield f"{name}, {p.name}", called, p.name


def by_class(called: type, argument: str) -> Callable[[Any], Any]:
    """What an object makes of the number; what else has to be passed is any number."""
    needed: dict[str, Any] = {
        p.name: {"rule": schuss.SGD, "shape": linear}.get(p.name, 5)
        for p in inspect.signature(called).parameters.values()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    }
    if issubclass(called, Optimizer):
        needed = {"params": np.ones((2, 2))}
    if called is Batches:
        return lambda n: Batches(np.arange(10), size=n).size
    if called is schuss.schedules.momentum_ramp:
        needed["value"] = 0.9

    def stored(n: Any) -> Any:
        made = called(**{**needed, argument: n})
        own = argument in getattr(made, "hyperparameters", ())
        return made.param_groups[0][argument] if own else getattr(made, argument)

    return stored


def threads(n: Any) -> int:
    with schuss.threads(n):
        return schuss.get_num_threads()


def one_step(n: Any) -> list[float]:
    x = np.ones(2)
    schuss.functional.adam(x, np.ones(2), np.ones(2), np.ones(2), step=n)
    return x.tolist()


def drawn(n: Any) -> list[float]:
    x = np.ones(64, np.float16)
    told: dict[str, Any] = {"step": 1, "lr": 1e-4, "stochastic_rounding": True}
    schuss.functional.sgd(x, np.ones(64, np.float16), seed=n, **told)
    return x.tolist()


def saved(n: Any) -> tuple[Any, ...]:
    opt = schuss.Adam([np.ones(2)])
    opt.step([np.ones(2)])
    state = opt.state_dict()
    state["state"]["0"]["step"] = state["iterations"] = state["skipped_steps"] = n
    opt.load_state_dict(state)
    return opt.iterations, opt.state[0]["step"], opt.skipped_steps


def searched(n: Any) -> int:
    found = schuss.minimize(lambda x: x @ x, [1.0], method="sgd", options={"maxiter": n})
    return int(found.nit)


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "threads, n": threads,
    "set_num_threads, n": lambda n: schuss.threads(1).__enter__() or threads(n),
    "draw, steps": lambda n: np.size(draw(linear(1.0, 3), n).lines[0].get_ydata()),
}
MORE: dict[str, Callable[[Any], Any]] = {
    "a step": one_step,
    "a seed": drawn,
    "a state": saved,
    "maxiter": searched,
    "a boundary": lambda n: piecewise([1.0, 0.5], [n]).boundaries,
    "an end of a chain": lambda n: chain([1.0, 0.5], [n]).boundaries,
    "a shape": lambda n: init.xavier_uniform((n, n), rng=np.random.default_rng(0)).shape,
    "a fan": lambda n: init.xavier_uniform((4,), fans=(n, n), rng=np.random.default_rng(0)).sum(),
}
CASES = {
    name: by_class(called, argument) if isinstance(called, type) else FUNCTIONS[name]
    for name, called, argument in declared()
} | MORE


@pytest.mark.parametrize("name", CASES)
def test_whole_numbers_of_numpy(name: str) -> None:
    wanted = CASES[name](4)
    for given in (np.int64(4), np.uint8(4), np.array(4), np.array(4, np.int32)):
        found = CASES[name](given)
        assert found == wanted
        assert type(found) is type(wanted)


@pytest.mark.parametrize("name", [name for name in CASES if name not in FUNCTIONS | MORE])
def test_other_arrays_are_none(name: str) -> None:
    for given in (np.array([3]), np.array(3.0), np.array(True), np.array("3")):
        with pytest.raises(TypeError, match=f"^{name.split(', ')[1]}: .* is not a whole number"):
            CASES[name](given)
