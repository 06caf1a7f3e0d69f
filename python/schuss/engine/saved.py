"""State as the user sees it, how a saved one differs from it, and what a saved one says."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from schuss import _core
from schuss.checks import Interval, check_int
from schuss.engine.groups import Settings
from schuss.engine.observers import load, saved
from schuss.engine.structure import described, listing

# Formats of other libraries: what recognizes a state dictionary, and what makes ours of it for an
# optimizer. Whoever knows one adds it here.
FORMATS: list[tuple[Callable[[Any], bool], Callable[[Any, Any], dict[str, Any]]]] = []

MOST = 2**62  # steps that a saved counter may say: it has room for as many again


class States(Mapping[str | int, Mapping[str, Any]]):
    """State by parameter name; in a flat sequence the number itself works too."""

    def __init__(self, numbers: Mapping[str, int], state: Callable[[int], dict[str, Any]]) -> None:
        self.numbers = numbers
        self.state = state

    def __getitem__(self, key: str | int) -> Mapping[str, Any]:
        return MappingProxyType(self.state(self.numbers[key if isinstance(key, str) else str(key)]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __repr__(self) -> str:
        return repr({name: dict(self[name]) for name in self})


def differences(expected: Mapping[Any, Any], loaded: Mapping[str, Any]) -> list[str]:
    """How a loaded state differs from the expected one in names, shapes and types."""
    lines = [f"missing {name!r}" for name in expected if name not in loaded]
    lines += [f"unknown {name!r}" for name in loaded if name not in expected]
    for name in [name for name in expected if name in loaded]:
        if not isinstance(loaded[name], Mapping):
            lines.append(f"{name!r}: {type(loaded[name]).__name__}, wanted a mapping")
            continue
        mine, theirs = expected[name], loaded[name]
        lines += [f"missing {name!r} {key}" for key in mine if key not in theirs]
        lines += [f"unknown {name!r} {key}" for key in theirs if key not in mine]
        for key in [key for key in mine if key in theirs]:
            a, b = mine[key], theirs[key]
            if not isinstance(a, np.ndarray):  # a number, which is checked when it is read
                continue
            if not isinstance(b, np.ndarray) or (a.shape, a.dtype) != (b.shape, b.dtype):
                lines.append(f"{name!r} {key}: {described(b)}, wanted {described(a)}")
    return lines


def in_groups(names: Sequence[Sequence[object]]) -> str:
    """The parameters of each group, as messages show them."""
    return listing((f"[{listing(map(repr, group))}]" for group in names), " and ") or "none"


def written(opt: Any) -> dict[str, Any]:
    """What a resumed run needs, by name: numbers, and the live arrays."""
    scale = opt.grad_scale
    return {
        "state": {name: dict(own) for name, own in opt.state.items()},
        "param_groups": [
            {
                "params": g["param_names"],
                **{k: h.saved(g[k]) for k, h in g.settings.rule.hyperparameters.items()},
            }
            for g in opt.param_groups
        ],
        "options": {name: o.saved(vars(opt)[o.key]) for name, o in opt.options.items()},
        "iterations": opt.iterations,
        "shared": dict(zip(opt.shared, opt._plan.shared, strict=True)),
        "skipped_steps": opt.skipped_steps,
        "schedules": saved(opt._observers()),
        "loss_scale": scale.state_dict() if hasattr(scale, "state_dict") else None,
    }


def copied(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dictionary with arrays of its own."""
    state = {
        name: {key: copy.copy(value) for key, value in own.items()}
        for name, own in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


class Saved(NamedTuple):
    """What a state dictionary says, checked, for one optimizer."""

    settings: list[Settings]  # of each group
    options: dict[str, Any]
    arrays: list[tuple[np.ndarray, np.ndarray]]  # the optimizer's own, and what comes into it
    counts: list[int]
    memories: list[list[float]]
    shared: dict[str, float]
    iterations: int
    skipped_steps: int
    schedules: Mapping[str, Any]
    loss_scale: Mapping[str, Any] | None


def read(opt: Any, state_dict: Mapping[str, Any]) -> Saved:
    """What a state dictionary, ours or PyTorch's, says; changes nothing, raises what is wrong."""
    entries = state_dict if isinstance(state_dict, Mapping) else {}
    state, groups = entries.get("state"), entries.get("param_groups")
    if not isinstance(state, Mapping) or not isinstance(groups, list | tuple):
        raise TypeError('state_dict: wanted a mapping with "state", "param_groups", "iterations"')
    for recognized, translated in FORMATS:
        if recognized(state_dict):
            state_dict = translated(opt, state_dict)
            state, groups = state_dict["state"], state_dict["param_groups"]
    wrong = differences(opt.state, state)
    theirs = [list(g["params"]) for g in groups]
    ours = [g["param_names"] for g in opt.param_groups]
    if theirs != ours:
        found, wanted = in_groups(theirs), in_groups(ours)
        wrong.append(f"param_groups: other parameters: {found}; wanted {wanted}")
    if wrong:
        raise ValueError(f"state_dict: {listing(wrong, '; ')}")
    settings = []
    for own, group in zip(opt.param_groups, groups, strict=True):
        given = {name: value for name, value in group.items() if name != "params"}
        declared = own.settings.rule.hyperparameters
        known = given.keys() & declared.keys()
        given |= {k: declared[k].loaded(given[k], own[k]) for k in known}
        settings.append(own.with_values(given))
    options = read_options(opt, state_dict.get("options", {}))
    scale = state_dict.get("loss_scale") if hasattr(opt.grad_scale, "load_state_dict") else None
    if scale is not None:
        copy.deepcopy(opt.grad_scale).load_state_dict(scale)
    finite = Interval("[-inf, inf]")
    given_shared = {**opt.shared, **state_dict.get("shared", {})}
    return Saved(
        settings,
        options,
        [
            (a, state[name][key].copy())
            for name, own in opt.state.items()
            for key, a in own.items()
            if isinstance(a, np.ndarray)
        ],
        [check_int(f"{name!r} step", state[name]["step"], 0, MOST) for name in opt.state],
        [[finite.check(f"{n!r} {k}", state[n][k]) for k in opt.memory] for n in opt.state],
        {key: finite.check(key, given_shared[key]) for key in opt.shared},
        check_int("iterations", state_dict.get("iterations"), 0, MOST),
        check_int("skipped_steps", state_dict.get("skipped_steps", 0), 0, MOST),
        state_dict.get("schedules", {}),
        scale,
    )


# Options that a saved state brings along; the others are those of the place where it is loaded.
CARRIED = ("clip_norm", "nonfinite", "zero_grad", "stochastic_rounding", "seed", "subnormals")


def read_options(opt: Any, saved: Any) -> dict[str, Any]:
    """The options that a state dictionary brings; raises where one is fixed here and another."""
    if not isinstance(saved, Mapping):
        raise TypeError(f"options: {saved!r} is not a mapping")
    if (own := opt.ema_decay) != (its := saved.get("ema", own)):
        raise ValueError(f"state_dict: ema: {its!r} was saved, but {own!r} is fixed here")
    return {name: opt.options[name].check(saved[name]) for name in CARRIED if name in saved}


def require_writeable(opt: Any, found: Saved) -> None:
    """Raises where an array of the optimizer can't take what was found."""
    for p in opt._parameters:
        of_x, _, *of_state = p.labels()
        for name, a in zip((of_x, *of_state), (p.x, *p.state.values()), strict=False):
            _core.require_parameter(a, name)
    for array, _ in found.arrays:
        if not array.flags.writeable:
            raise ValueError("state_dict: an array of the state here is read-only")


def assign(opt: Any, found: Saved) -> None:
    """Puts what was read and found good into the optimizer."""
    load(opt._observers(), found.schedules)
    for own, settings in zip(opt.param_groups, found.settings, strict=True):
        own.settings = settings
    for name, value in found.options.items():
        opt.options[name].__set__(opt, value)
    for array, value in found.arrays:
        array[...] = value
    opt._restore(found.iterations, found.counts, found.memories, found.shared)
    opt._skipped_steps = found.skipped_steps
    if found.loss_scale is not None:
        opt.grad_scale.load_state_dict(found.loss_scale)
