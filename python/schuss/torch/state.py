"""State dictionaries in PyTorch's format, in both directions.

    {"state": {0: {"step": tensor(7.), "exp_avg": tensor(...), ...}, ...},
     "param_groups": [{"lr": 1e-3, ..., "params": [0, 1]}, ...]}

Parameters are numbers, counted over all groups. Where both have a rule, its hyperparameters and its
state have the same names here and there: what is left is how numbers and arrays are kept.
"""

from __future__ import annotations

import importlib
import inspect
import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from schuss.checks import shown
from schuss.engine.codes import SCALES, BlockFloat8, arrays_of, numbers_of, saved_form
from schuss.engine.declare import user_level
from schuss.engine.groups import FACTORS, ROW_COUNTS, Group, Parameter
from schuss.engine.saved import FORMATS, KEYS
from schuss.engine.structure import listing
from schuss.reference.storage import is_narrow
from schuss.rules import RULES

if TYPE_CHECKING:
    from schuss.engine.optimizer import Optimizer

__all__ = ["torch_state_dict"]

# Where the optimizers of PyTorch's tensors keep what belongs to no tensor, in "state".
BESIDE = "schuss"

# What ours has beside "state" and "param_groups", and PyTorch's has not.
OURS = {*KEYS} - {"state", "param_groups"}

# What only PyTorch's groups have: members, ways to carry a step out, and notes of its schedulers.
THEIRS = (
    *("params", "param_names", "foreach", "fused", "capturable", "differentiable"),
    *("initial_lr", "min_lr", "max_lr", "swa_lr", "base_momentum", "max_momentum"),
)

# The hyperparameters by which a group shows that it is another rule's; what no rule knows is a note
# of the user's own, such as "name".
KNOWN = {name for rule in RULES for name in rule.hyperparameters}

# The same of a tensor's state: of rules, and of what stands around them.
STATE = {
    *("step", "ema", "master", "remainder", *FACTORS, *ROW_COUNTS.values()),
    *(name for rule in RULES for name in chain(rule.memory, *rule.states.values())),
}


# ---- From PyTorch


def is_torch(state_dict: Mapping[str, Any]) -> bool:
    """Whether a mapping with "state" and "param_groups" is in PyTorch's format."""
    return not any(key in state_dict for key in OURS)


def from_torch(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The state dictionary of ours that goes on where PyTorch's was taken.

    What PyTorch's doesn't have is at its start, a hyperparameter as it is here. Names, shapes and
    types that differ are left as they are: whoever loads it lists them.
    """
    require_one_rule(optimizer)
    require_groups(state_dict["param_groups"])
    state: dict[str, Any] = {}
    groups: list[dict[str, Any]] = []
    left = {key: own for key, own in state_dict["state"].items() if key != BESIDE}
    matches = match_groups(optimizer.param_groups, state_dict["param_groups"])
    for own, (group, keys) in zip(optimizer.param_groups, matches, strict=True):
        values = hyperparameters(type(optimizer), group)
        h = {**own.settings.values, **Group.read(type(optimizer), values)}
        start = {**optimizer.memory, **optimizer.initial(h)}
        for p in own.members:
            found = [key for key in keys[p.name] if key in left]
            given = left.pop(found[0]) if found else {}
            state[p.name] = read(p, given, start) if isinstance(given, Mapping) else given
        groups.append({"params": own["param_names"], **values})
    if left:
        raise ValueError(f"{listing(f'unknown {key!r}' for key in left)}")
    steps = [own.get("step") for own in state.values() if isinstance(own, dict)]
    return {
        "state": state,
        "param_groups": groups,
        "iterations": max((n for n in steps if isinstance(n, int)), default=0),
        "shared": dict(optimizer.shared),
    }


def require_groups(groups: Sequence[Any]) -> None:
    """Raises where these aren't groups of parameters as PyTorch writes them."""
    for group in groups:
        members = group.get("params") if isinstance(group, Mapping) else None
        names = group.get("param_names", members) if isinstance(group, Mapping) else None
        for of_each in (members, names):
            if not isinstance(of_each, list | tuple) or not all(
                isinstance(one, Hashable) for one in of_each
            ):
                raise TypeError(
                    f'param_groups: {shown(group)} has no list of numbers as its "params"'
                )


def match_groups(
    own: Sequence[Group], groups: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], dict[str, set[Any]]]]:
    """For each group of ours PyTorch's, and the keys that each parameter's state may have.

    By name where PyTorch's parameters have names of ours, else by position.
    """
    ours: list[list[str]] = [group["param_names"] for group in own]
    ids = [list(group["params"]) for group in groups]
    names = [list(group.get("param_names", group["params"])) for group in groups]
    if set(chain(*ours)).isdisjoint(chain(*names)):
        called, order = ours, list(range(len(ours)))
    else:
        place = {frozenset(members): i for i, members in enumerate(names)}
        called, order = names, [place.get(frozenset(members), -1) for members in ours]
    sizes, wanted = [len(i) for i in ids], [len(c) for c in called]
    if sizes != wanted or len(groups) != len(own) or -1 in order:
        found = f"{names} of {sizes} parameters"
        raise ValueError(f"param_groups: {found}; wanted {ours}")
    keys = [
        {name: {name, key, theirs} for name, key, theirs in zip(*columns, strict=True)}
        for columns in zip(called, ids, names, strict=True)
    ]
    return [(groups[i], keys[i]) for i in order]


def hyperparameters(rule: type[Optimizer], group: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a group of PyTorch's, by our names; raises for another rule's."""
    values = {key: plain(value) for key, value in group.items() if key not in THEIRS}
    decoupled = values.pop("decoupled_weight_decay", None)
    others = [key for key in values if key in KNOWN and key not in rule.hyperparameters]
    if others:
        raise ValueError(f"param_groups: {listing(others)}: not of {rule.__name__}")
    values = {key: value for key, value in values.items() if key in KNOWN}
    default = rule.hyperparameters["decay_mode"].default
    if decoupled is not None and default != "decoupled":  # AdamW stays AdamW, as in PyTorch
        values["decay_mode"] = "decoupled" if decoupled else "l2"
    return values


def is_state(key: Any) -> bool:
    """Whether an entry of a tensor's state is a rule's or an option's, of whichever."""
    return isinstance(key, str) and key.removesuffix(SCALES) in STATE


def read(p: Parameter, given: Mapping[str, Any], start: Mapping[str, float]) -> dict[str, Any]:
    """A parameter's state, from what PyTorch keeps of it: nothing where it had no step."""
    given = {key: value for key, value in given.items() if value is not None}
    x = np.asarray(p.x)  # which a master is a copy of, and where a running mean starts
    rule = arrays_of(p.state)
    state: dict[str, Any] = {
        k: np.zeros_like(a) if k == "remainder" else x.astype(a.dtype)
        for k, a in p.saved.items()
        if k not in rule
    }
    if not given:
        full = {key: np.full_like(x, start.get(key, 0.0), np.float64) for key in p.state}
        return {"step": 0, **start, **arrays(p, full, cast=True), **state}
    others = {  # codes come with their scales
        key: value
        for key, value in given.items()
        if key not in p.state or f"{key}{SCALES}" in given
    }
    state |= {k: array(v, p.saved[k]) if k in p.saved else plain(v) for k, v in others.items()}
    state |= arrays(p, {key: value for key, value in given.items() if key not in others})
    if given.keys() == {"momentum_buffer"}:
        state["step"] = 1  # PyTorch's SGD doesn't count its steps, but the first one is over
    step = state.get("step")
    if isinstance(step, float | np.floating) and step.is_integer():
        state["step"] = int(step)
    return state


def arrays(p: Parameter, values: Mapping[str, Any], cast: bool = False) -> dict[str, Any]:
    """Tensors or arrays as the state of a parameter is stored: in codes where that has them."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        own = p.state[key]
        if isinstance(own, BlockFloat8):
            (_, codes), (_, scales) = own.with_values(array(value, np.empty(0, np.float32)))
            found |= {key: saved_form(codes), f"{key}{SCALES}": scales}
        else:
            found[key] = value.astype(own.dtype) if cast else array(value, own)
    return found


def array(value: Any, own: np.ndarray) -> Any:
    """A tensor or array, as an array of the type of ours where that holds it exactly."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        sixteen = str(value.dtype) == "torch.bfloat16"  # a type that NumPy hasn't
        value = value.float().numpy() if sixteen else value.numpy()
        if sixteen and own.dtype.name == "bfloat16":
            return value.astype(own.dtype)
    if isinstance(value, np.ndarray) and value.dtype.kind in "fV":  # V: bfloat16
        return value.astype(own.dtype) if np.can_cast(value.dtype, own.dtype) else value
    return value


def plain(value: Any) -> Any:
    """A number out of a tensor or array of no dimension; other values as they are."""
    if isinstance(value, tuple | list):
        return tuple(map(plain, value))
    return value.item() if getattr(value, "ndim", None) == 0 else value


def require_one_rule(optimizer: Optimizer) -> None:
    """Raises where some parameters have another rule than the optimizer's, as beside matrices."""
    names = dict.fromkeys(group.settings.rule.__name__ for group in optimizer.param_groups)
    if len(names) > 1:
        raise ValueError(f"{' and '.join(names)} are one optimizer here, not in PyTorch")


# ---- To PyTorch


def torch_state_dict(optimizer: Optimizer) -> dict[str, Any]:
    """A copy of the state in PyTorch's format, for `load_state_dict` of the same rule there.

    Tensors by position, counted over all groups; of a callable the coming step's value. Whatever
    would make PyTorch's next step another one is a ValueError that names it. What stands around the
    rule is for the loop there, and a UserWarning names what there is of it: clip_norm, grad_scale,
    nonfinite, the running means, what a plateau remembers; also state of 16-bit parameters, which
    PyTorch casts to their type as it loads it: a second moment in float16 soon is 0, and the next
    step infinite. PyTorch's SGD doesn't count its steps: their number is lost. Needs PyTorch.
    """
    require_one_rule(optimizer)
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("torch_state_dict: needs PyTorch: pip install torch") from error
    with optimizer._lock:
        saved = optimizer.state_dict()
        settings = [group.settings for group in optimizer.param_groups]
        spared = [group["no_decay"] for group in optimizer.param_groups]
    for option in ("stochastic_rounding", "master"):
        value = getattr(optimizer, option)
        if value and any(is_narrow(p.x.dtype) for p in optimizer._parameters):
            raise ValueError(f"{option}: {value!r} is not in PyTorch's {type(optimizer).__name__}")
    rule, theirs = counterpart(torch, type(optimizer))
    shapes = {p.name: p.x.shape for p in optimizer._parameters}
    state: dict[int, dict[str, Any]] = {}
    groups = []
    first = 0
    for own, s, without in zip(saved["param_groups"], settings, spared, strict=True):
        h = s.at(saved["iterations"])
        if h["weight_decay"] and without:
            if without != own["params"]:
                raise ValueError(f"no_decay: {without}; PyTorch needs them in a group of their own")
            h = {**h, "weight_decay": 0.0}
        given = arguments(rule, theirs, h)
        axes = [np.ndim(optimizer._parameters[optimizer._names[name]].x) for name in own["params"]]
        examples = {n: example(torch, theirs, given, n) for n in {1, *axes}}
        group = examples[1][0]
        ids = list(range(first, first + len(own["params"])))
        groups.append({**group, "params": ids})
        for i, name, n in zip(ids, own["params"], axes, strict=True):
            _, kept, early = examples[n]
            mine = decoded(saved["state"][name], shapes[name])
            if mine.keys() - {"step"} != kept.keys() - {"step"}:
                found = f"{name!r} has {sorted(mine)}"
                raise ValueError(f"state: {found}; PyTorch's {theirs.__name__} {sorted(kept)}")
            if not (mine["step"] or early):  # PyTorch's makes its state in the first step
                continue
            if "step" in kept:
                arrays = {key: tensor(torch, mine[key]) for key in kept}
                state[i] = {**arrays, "step": kept["step"].new_tensor(mine["step"])}
            elif kept:  # a buffer that is there says that the first step is over
                state[i] = {key: tensor(torch, mine[key]) for key in kept}
        first += len(ids)
    if lost := left_out(optimizer, saved):
        text = f"torch_state_dict: not in PyTorch's format: {listing(lost, '; ')}"
        warnings.warn(text, stacklevel=user_level())
    return {"state": state, "param_groups": groups}


def decoded(state: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """A parameter's saved state as PyTorch's has it: numbers in place of codes, and no mean."""
    return {
        key: numbers_of(v, state[beside], shape) if (beside := f"{key}{SCALES}") in state else v
        for key, v in state.items()
        if key != "ema" and not key.endswith(SCALES)
    }


def left_out(optimizer: Optimizer, saved: Mapping[str, Any]) -> list[str]:
    """What PyTorch's format has no place for, and isn't at rest."""
    given = saved["options"] | {"ema": optimizer.ema_decay}  # which may be a schedule
    lost = [
        f"{name}={given[name]!r}"
        for name in ("ema", "clip_norm", "nonfinite")
        if given[name] not in (None, math.inf, "propagate")
    ]
    if saved["loss_scale"] or given["grad_scale"] != 1:
        lost.append(f"grad_scale={float(optimizer.grad_scale)!r}")
    lost += [f"the schedule at {place}" for place in saved["schedules"]]
    narrow = [
        repr(p.name)
        for p in optimizer._parameters
        if is_narrow(p.x.dtype) and any(a.dtype != p.x.dtype for a in arrays_of(p.state).values())
    ]
    coded = [
        repr(p.name)
        for p in optimizer._parameters
        if any(isinstance(a, BlockFloat8) for a in p.state.values())
    ]
    if coded:
        lost.append(f"state in 8 bits, which is decoded to float32: {listing(coded)}")
    if narrow:
        lost.append(
            f"state wider than its 16-bit parameter, which PyTorch casts: {listing(narrow)}"
        )
    return lost


def counterpart(torch: Any, rule: type[Optimizer]) -> tuple[type[Optimizer], type[Any]]:
    """The class of ours that PyTorch has, too, and that this rule only gives other defaults."""
    for ours in rule.__mro__:
        same = getattr(ours, "scalars", None) is rule.scalars and hasattr(ours, "states")
        if same and hasattr(torch.optim, ours.__name__):
            return ours, getattr(torch.optim, ours.__name__)
    raise ValueError(f"{rule.__name__}: PyTorch has no such rule")


def arguments(rule: type[Optimizer], theirs: type[Any], h: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of PyTorch's class; raises where these hyperparameters mean another rule."""
    takes = inspect.signature(theirs).parameters
    torch = {k: d.default for k, d in rule.hyperparameters.items()} | rule.presets.get("torch", {})
    given = {}
    for name, declared in rule.hyperparameters.items():
        value = h[name]
        if name in takes and not isinstance(value, str):  # a word is a variant of ours
            given[name] = value
        elif name != "decay_mode" and not declared.fixed:  # what is fixed has done its part
            # A default of ours that isn't PyTorch's convention differs in rounding errors only.
            refuse(theirs, name, value, {torch[name], declared.default})
    modes = {torch["decay_mode"]}
    if "decoupled_weight_decay" in takes:
        modes = {"l2", "decoupled"}
        given["decoupled_weight_decay"] = h["decay_mode"] == "decoupled"
    if h["weight_decay"]:
        refuse(theirs, "decay_mode", h["decay_mode"], modes)
    return given


def refuse(theirs: type[Any], name: str, value: Any, known: set[Any]) -> None:
    """Raises where a hyperparameter has a value that PyTorch's class can't be given."""
    if not any(value is k or value == k for k in known):
        wanted = " or ".join(map(repr, sorted(known, key=repr)))
        raise ValueError(f"{name}: {value!r} is not in PyTorch's {theirs.__name__}; only {wanted}")


def example(
    torch: Any, theirs: type[Any], given: Mapping[str, Any], axes: int
) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """A group as PyTorch's class writes it down, the state that it keeps after a step of an array
    of so many axes, and whether it keeps it before, too.
    """
    x = torch.zeros((1,) * axes, dtype=torch.float32, device="cpu")
    x.grad = torch.zeros_like(x)
    optimizer = theirs([x], **given)
    early = bool(optimizer.state)
    optimizer.step()
    written = optimizer.state_dict()
    return written["param_groups"][0], written["state"].get(0, {}), early


def tensor(torch: Any, value: Any) -> Any:
    """A number or an array as a tensor that owns its memory."""
    own = np.array(value, order="C")
    if own.dtype.name == "bfloat16":  # NumPy has no such type
        return torch.from_numpy(own.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(own)


FORMATS.append((is_torch, from_torch))
