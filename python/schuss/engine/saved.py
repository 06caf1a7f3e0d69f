"""State as the user sees it, how a saved one differs from it, and what a saved one says."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from schuss import _core
from schuss.checks import Interval, check_int, check_remembered, shown, unpacked
from schuss.engine.codes import SCALES, BlockFloat8, blocks_of, numbers_of, saved_form
from schuss.engine.declare import Scale
from schuss.engine.groups import ROW_COUNTS, Group, Parameter, Settings, Swapped, is_same
from schuss.engine.memory import address, write
from schuss.engine.observers import load, saved
from schuss.engine.rule import HOOKS, is_ours
from schuss.engine.structure import described, is_floating, label, listing

# Formats of other libraries: what recognizes a state dictionary, and what makes ours of it for an
# optimizer. Whoever knows one adds it here.
FORMATS: list[tuple[Callable[[Any], bool], Callable[[Any, Any], dict[str, Any]]]] = []

NORM = Interval("[0, inf]")
MOST = 2**53 - 1  # steps that a saved counter may say: every whole number up to here is a float's


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


# ---- What is saved


def rule_name(rule: type) -> str:
    """What a state dictionary calls a rule: a subclass that only says what it begins with is one
    with its base.
    """
    hooks = HOOKS - {"hyperparameters", "options", "presets", "apart"}
    return next(c for c in rule.__mro__ if is_ours(c) or hooks & vars(c).keys()).__name__


def written(opt: Any) -> dict[str, Any]:
    """What a resumed run needs, by name: numbers, and the live arrays."""
    scale = opt._read_by_this(opt.grad_scale)
    first = opt._swapped[0] if opt._swapped else None  # which has the weights
    return {
        "rule": rule_name(type(opt)),
        "state": {p.name: opt._counters_of(i) | p.saved for i, p in enumerate(opt._parameters)},
        "param_groups": [
            {
                "params": g["param_names"],
                "no_decay": g["no_decay"],
                **{k: h.saved(g[k]) for k, h in g.settings.rule.hyperparameters.items()},
            }
            for g in opt.param_groups
        ],
        "options": {name: o.saved(vars(opt)[o.key]) for name, o in opt.options.items()},
        "iterations": opt.iterations,
        "shared": dict(zip(opt.shared, opt._plan.shared, strict=True)),
        "skipped_steps": opt.skipped_steps,
        "last_norm": opt._plan.last_norm,
        "schedules": saved(opt._observers()),
        "loss_scale": scale.state_dict() if hasattr(scale, "state_dict") else None,
        # In which form the parameters were, and where not in training, their weights there.
        "form": first.form if first else "training",
        "weights": weights(opt, first) if first else {},
    }


def weights(opt: Any, swapped: Swapped) -> dict[str, np.ndarray]:
    """The weights of all parameters while something else stands in the place of most."""
    return {p.name: p.x for p in opt._parameters} | {p.name: x for p, x in swapped.weights}


def copied(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dictionary with arrays of its own."""
    state = {
        name: {key: copy.copy(value) for key, value in own.items()}
        for name, own in state_dict["state"].items()
    }
    weights = {name: x.copy(order="K") for name, x in state_dict["weights"].items()}
    return {**state_dict, "state": state, "weights": weights}


# ---- What is loaded


class Differences(NamedTuple):
    """Between what was saved and what is here, by the names of parameter and state."""

    missing_keys: list[str]  # what starts anew
    unexpected_keys: list[str]  # what has no place here
    converted_keys: list[str]  # what has another type here


class Saved(NamedTuple):
    """What a state dictionary says, checked, for one optimizer."""

    settings: list[Settings]  # of each group
    options: dict[str, Any]
    arrays: list[tuple[np.ndarray, Any]]  # the optimizer's own, and what comes into it
    counts: list[int]
    memories: list[list[float]]
    shared: dict[str, float]
    iterations: int
    skipped_steps: int
    last_norm: float | None
    schedules: dict[str, Any]
    loss_scale: Any
    form: str
    differences: Differences


def owner(a: Any) -> int:
    """Whose memory an array has."""
    while getattr(a, "base", None) is not None:
        a = a.base
    return id(a)


def is_array(value: Any) -> bool:
    """Whether this is an array, and has no mask, which would be ignored."""
    return isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray)


def has_numbers(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether this is an array of floating-point numbers of a shape."""
    return is_array(value) and is_floating(value.dtype) and bool(value.shape == shape)


def are_codes(codes: Any, scales: Any, shape: tuple[int, ...]) -> bool:
    """Whether these are the arrays of a BlockFloat8 of a shape, in their saved form."""
    return (
        is_array(codes)
        and is_array(scales)
        and codes.dtype in (np.int8, np.uint8)
        and codes.shape in (shape, (math.prod(shape),))
        and (scales.dtype, scales.shape) == (np.uint8, (blocks_of(codes.size),))
    )


def plain(value: Any) -> Any:
    """Python's own number or word where the value is NumPy's, alone in an array or not."""
    value = unpacked(value)
    return value.item() if isinstance(value, np.generic) else value


class Reader:
    """Reads a state dictionary for an optimizer, and collects all that is wrong with it."""

    def __init__(self, opt: Any, state_dict: Mapping[str, Any], strict: bool) -> None:
        self.opt, self.strict = opt, strict
        self.given = state_dict
        self.wrong: list[str] = []
        self.differences = Differences([], [], [])

    def checked(self, check: Callable[..., Any], *arguments: Any) -> Any:
        """What a check returns; where it raises, what it says is kept."""
        try:
            return check(*arguments)
        except (TypeError, ValueError) as error:
            self.wrong.append(str(error))
            return None

    def missing(self, name: str) -> None:
        self.differences.missing_keys.append(name)
        if self.strict:
            self.wrong.append(f"missing {name}")

    def unexpected(self, name: str, why: str = "") -> None:
        self.differences.unexpected_keys.append(name)
        if self.strict:
            self.wrong.append(f"unknown {name}{why}")

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A part of the state dictionary that is a mapping; empty where it isn't there."""
        value = unpacked(self.given.get(name, {}))
        if isinstance(value, Mapping):
            return value
        self.wrong.append(f"{name}: {shown(value)} is not a mapping")
        return {}

    def read(self) -> Saved:
        opt = self.opt
        for key in self.given:
            if key not in KEYS:
                self.unexpected(repr(key))
        rule = plain(self.given.get("rule", rule_name(type(opt))))
        if not is_same(rule, rule_name(type(opt))):
            raise ValueError(
                f"state_dict: rule: {shown(rule)} was saved, but this is {rule_name(type(opt))}"
            )
        settings, places = self.groups()
        form, weights = self.weights()
        options = self.options()
        if not self.wrong:
            self.checked(opt._require_options_that_go_together, settings, options)
        found = Saved(
            settings,
            options,
            [*weights, *self.arrays()],
            self.counts(),
            self.memories(),
            self.shared(),
            self.checked(check_int, "iterations", self.given.get("iterations"), 0, MOST),
            self.checked(check_int, "skipped_steps", self.given.get("skipped_steps", 0), 0, MOST),
            self.last_norm(),
            self.schedules(places),
            self.loss_scale(),
            form,
            self.differences,
        )
        if self.wrong:
            raise ValueError(f"state_dict: {listing(self.wrong, '; ', most=20)}")
        return found

    def last_norm(self) -> float | None:
        """The norm of the last step, by which the next one may clip."""
        value = plain(self.given.get("last_norm"))
        if value is None:
            return None
        found: float | None = self.checked(NORM.check, "last_norm", value)
        return found

    # ---- The parameters' state

    def arrays(self) -> list[tuple[np.ndarray, Any]]:
        """The optimizer's own arrays, each with what comes into it."""
        state = self.mapping("state")
        self.wrong += [f"missing {name!r}" for name in self.opt.state if name not in state]
        self.wrong += [f"unknown {name!r}" for name in state if name not in self.opt.state]
        pairs: list[tuple[np.ndarray, Any]] = []
        for p in self.opt._parameters:
            if p.name not in state:
                continue
            theirs = state[p.name]
            if not isinstance(theirs, Mapping):
                self.wrong.append(f"{p.name!r}: {type(theirs).__name__}, wanted a mapping")
                continue
            theirs = {
                key: saved_form(v) if getattr(v, "shape", None) == p.x.shape else v
                for key, v in theirs.items()
            }
            if not self.strict:
                self.bring_to_our_form(p, theirs)
            for key in theirs:
                if key not in ("step", *self.opt.memory, *p.saved):
                    self.unexpected(f"{p.name!r} {key}")
            for key, own in p.saved.items():
                if key in theirs:
                    pairs += self.array(f"{p.name!r} {key}", own, theirs[key])
                elif key in p.matrices:  # which belong together
                    self.wrong.append(f"missing {p.name!r} {key}")
                else:
                    self.missing(f"{p.name!r} {key}")
                    pairs += self.beginning(p, key, own, theirs.get("step", 0))
        return pairs

    def beginning(
        self, p: Parameter, key: str, own: np.ndarray, step: Any
    ) -> list[tuple[np.ndarray, Any]]:
        """An array of the optimizer's with what it begins with, after so many steps."""
        if key in ROW_COUNTS.values():  # as if all had been in each
            return [(own, step)]
        start = self.opt.initial(self.opt.param_groups[p.group])
        for name, a in p.state.items():
            if isinstance(a, BlockFloat8) and key in (name, f"{name}{SCALES}"):
                (_, codes), (_, scales) = a.with_values(start.get(name, 0.0))
                return [(own, saved_form(codes) if key == name else scales)]
        anew = (value for a, value in p.anew(p.x) if a is own)
        return [(own, next(anew, start.get(key, 0.0)))]

    def bring_to_our_form(self, p: Parameter, theirs: dict[str, Any]) -> None:
        """Makes codes of a parameter's saved state where there are codes here, else numbers."""
        for key, own in p.state.items():
            name, beside = f"{p.name!r} {key}", f"{key}{SCALES}"
            value: Any = theirs.get(key)
            scales: Any = theirs.get(beside)
            coded = isinstance(own, BlockFloat8)
            if are_codes(value, scales, own.shape):
                if coded and described(value) == described(saved_form(own.codes)):
                    continue
                value = numbers_of(value, scales, own.shape)
            elif not coded:
                continue
            elif scales is not None or not has_numbers(value, own.shape):
                if (value is None) != (scales is None):  # which belong together
                    self.wrong.append(f"missing {name if value is None else name + SCALES}")
                continue
            theirs.pop(beside, None)
            self.differences.converted_keys.append(name)
            if not coded:
                theirs[key] = value.astype(own.dtype)
                continue
            try:
                (_, codes), (_, scales) = own.with_values(value)
            except ValueError as error:
                self.wrong.append(f"{name}: {error}")
            else:
                theirs |= {key: saved_form(codes), beside: scales}

    def array(self, name: str, own: np.ndarray, value: Any) -> list[tuple[np.ndarray, Any]]:
        """An array of the optimizer's with the saved one, where that fits."""
        good = is_array(value)
        if good and own.dtype == np.int64 and value.dtype == np.int64 and (value < 0).any():
            self.wrong.append(f"{name}: {value.min()}, no number of steps")
            return []
        if good and (value.dtype.str, own.dtype.name) == ("|V2", "bfloat16"):
            value = value.view(own.dtype)  # NumPy's files don't know its name
        same = good and value.dtype == own.dtype
        if not (good and value.shape == own.shape and (same or self.casts(value, own))):
            self.wrong.append(f"{name}: {described(value)}, wanted {described(own)}")
            return []
        if not same:
            self.differences.converted_keys.append(name)
        # What was saved may be arrays of this very optimizer, in other places.
        return [(own, value.copy() if owner(value) in self.owners else value)]

    def casts(self, value: np.ndarray, own: np.ndarray) -> bool:
        """Whether an array may come in another type."""
        return not self.strict and is_floating(value.dtype) and is_floating(own.dtype)

    @functools.cached_property
    def owners(self) -> set[int]:
        """Whose memory is written to."""
        return {owner(a) for p in self.opt._parameters for a in (p.x, *p.saved.values())}

    def each(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The saved state of each parameter that has one."""
        state = self.mapping("state")
        for name in self.opt.state:
            if isinstance(found := state.get(name), Mapping):
                yield name, found

    def counts(self) -> list[int]:
        self.wrong += [f"missing {name!r} step" for name, own in self.each() if "step" not in own]
        check = self.checked
        return [
            check(check_int, f"{name!r} step", own["step"], 0, MOST)
            for name, own in self.each()
            if "step" in own
        ]

    def memories(self) -> list[list[float]]:
        names = self.opt.memory
        return [[self.number(own, k, f"{n!r} {k}") for k in names] for n, own in self.each()]

    def shared(self) -> dict[str, float]:
        given = self.mapping("shared")
        for key in given:
            if key not in self.opt.shared:
                self.unexpected(f"shared {key!r}")
        return {key: self.number(given, key, f"shared {key!r}") for key in self.opt.shared}

    def number(self, given: Mapping[str, Any], key: str, name: str) -> float:
        """A number that the rule remembers; the one that it starts with where it is missing."""
        if key not in given:
            self.missing(name)
            start: float = {**self.opt.memory, **self.opt.shared}[key]
            return start
        range_ = self.opt.ranges.get(key, "[-inf, inf]")
        found: float = self.checked(check_remembered, name, given[key], range_)
        return found

    def weights(self) -> tuple[str, list[tuple[np.ndarray, Any]]]:
        """In which form the parameters were, and their weights where that wasn't training."""
        form, weights = plain(self.given.get("form", "training")), self.mapping("weights")
        known = ("training", "averaged", *(("evaluated",) if hasattr(self.opt, "eval") else ()))
        if not (isinstance(form, str) and form in known):
            self.wrong.append(
                f"form: {shown(form)} is unknown; wanted {' or '.join(map(repr, known))}"
            )
        names = [] if is_same(form, "training") else list(self.opt.state)
        self.wrong += [f"missing weights of {name!r}" for name in names if name not in weights]
        self.wrong += [f"unknown weights of {name!r}" for name in weights if name not in names]
        pairs: list[tuple[np.ndarray, Any]] = []
        for p in self.opt._parameters:
            if p.name in weights and p.name in names:
                pairs += self.array(f"weights of {p.name!r}", p.x, weights[p.name])
        return str(form), pairs

    # ---- Settings

    def groups(self) -> tuple[list[Settings], dict[str, str]]:
        """The settings of each group here, and the number here of each group there.

        By the parameters' names, in whatever order they come.
        """
        groups, own = self.given["param_groups"], self.opt.param_groups
        theirs = [self.names(group) for group in groups]
        if None in theirs:
            return [], {}
        ours = [group["param_names"] for group in own]
        left: dict[frozenset[str], list[int]] = {}
        for i, names in reversed(list(enumerate(theirs))):
            left.setdefault(frozenset(names), []).append(i)
        order = [(left.get(frozenset(names)) or [-1]).pop() for names in ours]
        sizes = sorted(map(len, theirs)), sorted(map(len, ours))
        if -1 in order or len(theirs) != len(ours) or sizes[0] != sizes[1]:
            found, wanted = in_groups(theirs), in_groups(ours)
            self.wrong.append(f"param_groups: other parameters: {found}; wanted {wanted}")
            return [], {}
        settings: list[Settings] = []
        for n, (group, i) in enumerate(zip(own, order, strict=True)):
            read = self.settings(group, groups[i], f"param_groups[{n}]: " if len(own) > 1 else "")
            if read is not None:  # groups with the same share scalars
                same = bool(settings) and read.is_like(settings[-1])
                settings.append(settings[-1] if same else read)
        return settings, {str(i): str(n) for n, i in enumerate(order)}

    def names(self, group: Any) -> Any:
        """The parameters of a group that was saved; None where it doesn't say."""
        members = group.get("params") if isinstance(group, Mapping) else None
        if isinstance(members, np.ndarray) and members.ndim == 1:
            members = list(members)
        if isinstance(members, list | tuple):
            return [str(name) for name in members]
        self.wrong.append(f'param_groups: {shown(group)} has no list of names as its "params"')
        return None

    def settings(self, group: Group, saved: Mapping[str, Any], place: str) -> Settings | None:
        """The settings of a group here with the values of a saved one; None where they are wrong.

        place   how messages name the group
        """
        declared, fixed = group.rule.hyperparameters, group.settings.form.decisive
        values = {name: value for name, value in saved.items() if name not in Group.FIXED}
        if not self.strict:  # what decides which state there is stays as it is here
            for name in values.keys() - declared.keys():
                self.unexpected(f"param_groups {name!r}")
            values = {k: v for k, v in values.items() if k in declared and k not in fixed}
        wrong = len(self.wrong)
        for name, value in values.items():
            values[name] = self.checked(self.value, group, name, value)
        given = saved.get("no_decay", group["no_decay"])
        several = isinstance(given, list | tuple) or (is_array(given) and given.ndim == 1)
        decays = [str(name) for name in given] if several else shown(given)
        if not several or {*decays} != {*group["no_decay"]}:
            self.wrong.append(f"no_decay: {decays} were saved, but {group['no_decay']} here")
        if len(self.wrong) == wrong:
            values = {name: value for name, value in values.items() if value is not group[name]}
            return self.checked(group.with_values, values)  # type: ignore[no-any-return]
        self.wrong[wrong:] = [place + text for text in self.wrong[wrong:]]
        return None

    def value(self, group: Group, name: str, saved: Any) -> Any:
        """A hyperparameter's value as it is to be set."""
        if any(map(callable, saved if isinstance(saved, tuple | list) else [saved])):
            raise TypeError(f"{name}: {shown(saved)} is a callable, which no state has")
        if name in group.rule.hyperparameters:
            saved = group.rule.hyperparameters[name].loaded(saved, group[name])
        value = Group.read(group.rule, {name: saved})[name]
        if not self.strict and group.rule.hyperparameters[name].fixes(group[name], value):
            self.unexpected(f"param_groups {name!r}")
            return group[name]
        return value

    def options(self) -> dict[str, Any]:
        """The options that are brought along."""
        given, opt = self.mapping("options"), self.opt
        for name in given:
            if name not in opt.options:
                self.unexpected(f"options {name!r}")
        own, its = opt.ema_decay, plain(given.get("ema"))
        same = is_same(its, own) or (isinstance(its, int) and its == own)
        # A schedule isn't stored: where one is or was, it is enough that the means are there.
        if self.strict and not (same or its is None or callable(own)):
            self.wrong.append(f"ema: {shown(its)} was saved, but {own!r} is fixed here")
        carried = [name for name in CARRIED if name in given]
        if given.get("grad_scale") is not None and not isinstance(opt.grad_scale, Scale):
            carried.append("grad_scale")
        return {name: self.checked(opt.options[name].check, given[name]) for name in carried}

    # ---- What follows the steps

    def schedules(self, places: dict[str, str]) -> dict[str, Any]:
        """The states of the schedules here, by place."""
        here, found = self.opt._observers(), {}
        for place, state in self.mapping("schedules").items():
            group, _, rest = str(place).partition(".")
            own = f"{places.get(group, group)}.{rest}"
            if not hasattr(here.get(own), "load_state_dict"):
                self.unexpected(f"schedules {place!r}", ", where nothing follows a metric here")
                continue
            found[own] = state
            self.tried(f"schedules {place!r}", here[own], state)
        return found

    def loss_scale(self) -> Any:
        """The state of the loss scale here."""
        scale = self.opt._read_by_this(self.opt.grad_scale)
        state = unpacked(self.given.get("loss_scale"))
        if state is None:
            return None
        if not hasattr(scale, "load_state_dict"):
            self.unexpected("loss_scale", f", for grad_scale is {self.opt.grad_scale!r} here")
            return None
        self.tried("loss_scale", scale, state)
        return state

    def tried(self, name: str, follows: Any, state: Any) -> None:
        """Loads a state into a copy of what it is for, where that can be copied."""
        try:
            other = copy.deepcopy(follows)
        except Exception:  # of the user's own, with a lock for example: it will say so itself
            return
        try:
            other.load_state_dict(state)
        except Exception as error:
            self.wrong.append(f"{name}: {error}")


# What a state dictionary has.
KEYS = (
    *("rule", "state", "param_groups", "options", "iterations", "shared", "skipped_steps"),
    *("schedules", "loss_scale", "form", "weights", "last_norm"),
)

# Options that a saved state brings along; the others are those of the place where it is loaded.
CARRIED = (
    "clip_norm",
    "clip_norm_per",
    "nonfinite",
    "zero_grad",
    "stochastic_rounding",
    "seed",
    "subnormals",
)


def in_groups(names: Sequence[Sequence[object]]) -> str:
    """The parameters of each group, as messages show them."""
    return listing((f"[{listing(map(repr, group))}]" for group in names), " and ") or "none"


def read(opt: Any, state_dict: Mapping[str, Any], strict: bool = True) -> Saved:
    """What a state dictionary, ours or PyTorch's, says; changes nothing, raises all that is wrong.

    strict   False: differences that leave what is here usable are noted, and no errors
    """
    entries = state_dict if isinstance(state_dict, Mapping) else {}
    state, groups = entries.get("state"), entries.get("param_groups")
    if not isinstance(state, Mapping) or not isinstance(groups, list | tuple):
        raise TypeError('state_dict: wanted a mapping with "state", "param_groups", "iterations"')
    for recognized, translated in FORMATS:
        if recognized(state_dict):
            try:
                state_dict = translated(opt, state_dict)
            except (TypeError, ValueError) as error:
                raise type(error)(f"state_dict: {error}") from error
    return Reader(opt, state_dict, strict).read()


def require_writeable(opt: Any, found: Saved) -> None:
    """Raises where an array of the optimizer can't take what was found."""
    names = {address(p.x): p.labels()[0] for p in opt._parameters}
    for p in opt._parameters:
        state = label("state", p.name)
        names |= {address(a): f'{state}["{key}"]' for key, a in p.saved.items()}
    for array, _ in found.arrays:
        name = names[address(array)]
        if is_floating(array.dtype):
            _core.require_parameter(array, name)
        elif not array.flags.writeable:
            raise ValueError(f"{name}: read-only, but the step writes to it")


def assign(opt: Any, found: Saved) -> None:
    """Puts what was read and found good into the optimizer: all of it, before an interrupt."""
    try:
        assign_once(opt, found)
    except BaseException:  # an interrupt, for all is checked
        assign_once(opt, found)
        raise


def assign_once(opt: Any, found: Saved) -> None:
    """A second time is as once."""
    with opt._changing():
        load(opt._observers(), found.schedules)
        if found.loss_scale is not None:
            opt._read_by_this(opt.grad_scale).load_state_dict(found.loss_scale)
        for own, settings in zip(opt.param_groups, found.settings, strict=True):
            own.settings = settings
        for name, value in found.options.items():
            opt.options[name].__set__(opt, value)
        opt._swapped, opt._plan.barred = [], ""
        write(found.arrays)
        opt._restore(found.iterations, found.counts, found.memories, found.shared, found.last_norm)
        opt._skipped_steps = found.skipped_steps
        opt._resume(found.form)
