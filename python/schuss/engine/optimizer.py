"""The base of all rules: arrays, groups, options, step and state."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import operator
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import InitVar
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Literal,
    ParamSpec,
    TypeVar,
    dataclass_transform,
)
from weakref import WeakSet

import numpy as np

from schuss import _core, reference
from schuss.checks import Interval
from schuss.engine.declare import (
    REQUIRED,
    Backend,
    Bounded,
    Choice,
    Flag,
    Hyperparameter,
    LossScaleOrNumber,
    Number,
    Option,
    Pair,
    Preset,
    Storage,
    Whole,
    choice,
    constant,
    flag,
    number,
    numbers,
    option,
    pair,
    whole,
)
from schuss.engine.groups import Group, Parameter, Settings
from schuss.engine.memory import FREE, room
from schuss.engine.observers import check_metric, load, observers, saved
from schuss.engine.saved import States, read
from schuss.engine.scalars import (
    AROUND,
    NAMES,
    STAGES,
    Clip,
    ScalarSet,
    Sums,
    packed_set,
    scalar_set,
    wanted,
)
from schuss.engine.structure import (
    Arrays,
    Tree,
    described,
    filled,
    flatten,
    gather,
    is_sequence,
    keys_of,
    label,
    listed,
)
from schuss.loss_scale import LossScale

NoDecay = Callable[[str, np.ndarray], bool]
P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="Optimizer")


def one_at_a_time(
    method: Callable[Concatenate[S, P], R],
) -> Callable[Concatenate[S, P], R]:
    """A method that other threads wait for, and that its own thread can't enter a second time."""

    @functools.wraps(method)
    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock:
            if self._busy or self._plan.busy:
                raise RuntimeError(
                    "re-entered: the optimizer is in the middle of a call of this thread"
                )
            self._busy = True
            try:
                return method(self, *args, **kwargs)
            finally:
                self._busy = False

    return guarded


def signature(arguments: dict[str, Any], keywords: dict[str, Any]) -> inspect.Signature:
    """What `help` shows: arguments that may come by position, and keywords, with their defaults."""
    by_position = inspect.Parameter.POSITIONAL_OR_KEYWORD, arguments
    by_keyword = inspect.Parameter.KEYWORD_ONLY, keywords
    return inspect.Signature(
        [
            inspect.Parameter(name, kind, default=default)
            for kind, defaults in (by_position, by_keyword)
            for name, default in defaults.items()
        ]
    )


def argument(*, default: Any = None, kw_only: bool = True) -> Any:
    """An argument of the constructor that is no attribute: only type checkers see it."""


class ConstructorSignature:
    """The signature of a rule's constructor, made when it is asked for: most programs never do."""

    def __get__(self, _: object, rule: type[Optimizer]) -> inspect.Signature:
        keywords = {**dict.fromkeys((*rule.apart, "preset")), **rule.defaults()}
        return signature({"params": REQUIRED}, keywords)


@dataclass_transform(
    kw_only_default=True,
    field_specifiers=(number, numbers, constant, flag, choice, pair, whole, option, argument),
)
class Declared:
    """Tells type checkers that what a class declares are its constructor's arguments."""


class Optimizer(Declared):
    """Steps arrays in place, one compiled call for all of them; the base of every rule.

    params       an array, a sequence or mapping of arrays, nested as you like, or a list of groups:
                 mappings with "params" and what differs from the other groups
    grads        gradient arrays that stay, in the structure of params; then `step()` needs none
    no_decay     a function of a parameter's name and array: True takes it out of the weight decay
    preset       the defaults and switches of another library's or paper's convention of the rule,
                 such as "keras": see the rule; what is passed beside it wins. Default None

    Options of a group, live, in the order of a step (reference.step):

    maximize     ascends, default False
    cautious     False (default); "mean": only those elements of an update count whose sign is the
                 gradient's, divided by their share of the array; "plus1": multiplied by
                 size/(number + 1). Needs one read of all arrays more. Liang et al. 2024, arXiv
                 2411.16085
    clip_value   each gradient element is brought into [-clip_value, clip_value], in (0, inf],
                 default inf
    l2, l1       g + l2*x + l1*sign(x) takes the place of g, in [0, inf), default 0
    l1_mode      "coupled" (default), or "prox": x is brought closer to 0 by lr*l1 after the step,
                 and is exactly 0 where it was closer
    bounds       (low, high), numbers or arrays, which are copied: x is kept within; default None

    How the rule's weight_decay, wd, works on x, by its decay_mode; lr is the step's, peak the
    largest of its schedule:

        l2                   g + wd*x takes the place of g, before the rule
        decoupled            x = (1 - lr*wd)*x
        decoupled_unscaled   x = (1 - lr/peak*wd)*x         as in Loshchilov and Hutter 2019
        corrected            x = (1 - lr*lr/peak*wd)*x      fades with the square of lr
        proximal             x = x/(1 + lr*wd)              after the update
        masked               as decoupled, where the update and x have the same sign

    Options of the optimizer:

    grad_scale   the loss scale, in (0, inf), default 1: gradients are multiplied by 1/grad_scale;
                 or a LossScale
    clip_norm    gradients are scaled down together to this norm, in (0, inf], default inf; needs
                 one read of them more
    nonfinite    what becomes of a step with a gradient that is not finite: "propagate" (default),
                 "skip", or "raise"; the last two need one read of the gradients more
    zero_grad    fills the gradients with zeros in the same pass, default False
    ema          opt.ema[name] is the running mean of each parameter, with this decay, in [0, 1);
                 default None: no mean
    state_dtype  "float32" (default), "float16" or "bfloat16" for the state of parameters that are
                 not float64, or a mapping from the state's name to one of them. A second moment in
                 bfloat16 never decays: 0.999*v rounds back to v
    master       a float32 copy of each 16-bit parameter is what steps, and the parameter is rounded
                 from it: what is written to the parameter otherwise is lost. Default False
    stochastic_rounding    rounds 16-bit parameters without a master up or down by chance, so that
                 small steps are not lost; default False
    seed         of the stochastic rounding, default 0
    subnormals   "zero" (default) stores a state element below the smallest normal number as zero;
                 "keep" keeps it, and each step of such an element then costs 2 to 50 times as much,
                 by processor
    backend      "compiled" (default), or "numpy": the same bits, in readable Python

    A hyperparameter that is a number may be a callable: it is called with the number of finished
    steps (0 first) and returns the value of the coming one. TypeError and ValueError name the
    argument or the array; nothing has changed then.
    """

    states: ClassVar[dict[str, tuple[str, ...]]]  # the state arrays of each kernel
    memory: ClassVar[dict[str, float]] = {}  # numbers beside each array's state, at the start
    shared: ClassVar[dict[str, float]] = {}  # numbers beside the state of all, at the start
    apart: ClassVar[tuple[str, ...]] = ("grads", "no_decay")  # of a group, and no hyperparameter
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # what differs from PyTorch's convention
    __signature__ = ConstructorSignature()
    hyperparameters: ClassVar[dict[str, Hyperparameter]] = {}
    options: ClassVar[dict[str, Option]] = {}

    if TYPE_CHECKING:  # arguments of every constructor
        params: InitVar[Arrays] = argument(kw_only=False)
        grads: InitVar[Arrays | None] = argument(default=None)
        no_decay: InitVar[NoDecay | None] = argument(default=None)
        preset: InitVar[Preset | None] = argument(default=None)
        lr: Number = argument(default=None)
        weight_decay: Number = argument(default=None)
        decay_mode: str = argument(default=None)
        ema: Any = argument(default=None)
        zero_grad: Any = argument(default=False)
    maximize: bool = flag(default=False)
    cautious: Literal[False, "mean", "plus1"] = choice(default=False)
    clip_value: Number = number("(0, inf]", default=math.inf)
    l2: Number = number("[0, inf)", default=0.0)
    l1: Number = number("[0, inf)", default=0.0)
    l1_mode: Literal["coupled", "prox"] = choice(default="coupled")
    bounds: tuple[Any, Any] | None = pair(default=None)
    grad_scale: float | LossScale = option(LossScaleOrNumber, "(0, inf)", default=1.0)
    clip_norm: float = option(Bounded, "(0, inf]", default=math.inf)
    nonfinite: Literal["propagate", "skip", "raise"] = option(Choice, default="propagate")
    ema_decay = option(Bounded, "[0, 1)", default=None, fixed=True, argument="ema")
    zeroes_grad = option(Flag, default=False, argument="zero_grad")
    state_dtype: Any = option(Storage, default=None, fixed=True)
    master: bool = option(Flag, default=False, fixed=True)
    stochastic_rounding: bool = option(Flag, default=False)
    seed: int = option(Whole, default=0)
    subnormals: Literal["zero", "keep"] = option(Choice, default="zero")
    backend: Backend = option(Choice, default="compiled")

    def __init_subclass__(cls) -> None:
        order = [*reversed(cls.__mro__[: cls.__mro__.index(Optimizer)]), Optimizer]
        declared = {name: d for c in order for name, d in vars(c).items()}
        cls.hyperparameters = {k: d for k, d in declared.items() if isinstance(d, Hyperparameter)}
        cls.options = {d.argument: d for d in declared.values() if isinstance(d, Option)}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The default of every hyperparameter and option."""
        return {name: d.default for name, d in (cls.hyperparameters | cls.options).items()}

    def __init__(
        self,
        params: Any,
        *,
        grads: Any = None,
        no_decay: NoDecay | None = None,
        **hyperparameters: Any,
    ) -> None:
        for name, declared in self.options.items():
            declared.__set__(self, hyperparameters.pop(name, declared.default))
        self.grad_norm: float | None = None  # the last one, where one was asked for
        self.skipped_steps = 0
        self._groups: tuple[Group, ...] = ()
        self._trees: list[Tree] = []
        self._parameters: list[Parameter] = []
        params = listed(params)
        self._grouped = is_groups(params)
        for group in params if self._grouped else [{"params": params}]:
            self._add({"no_decay": no_decay, **hyperparameters, **group})
        if not self._parameters:
            raise ValueError("params: no array in it; pass at least one")
        if grads is not None:
            for p, g in zip(self._parameters, self._gather(grads, "grads"), strict=True):
                p.g = g
        self._bound = any(p.g is not None for p in self._parameters)
        if self.master and self.stochastic_rounding:
            raise ValueError("stochastic_rounding: not with master, which needs no chance")
        if isinstance(self.grad_scale, LossScale) and self.nonfinite != "skip":
            raise ValueError('grad_scale: a LossScale needs nonfinite="skip"')
        self._plan = planned(self._parameters)
        self._restore(0, [0] * len(self._parameters), self._plan.memories(), self.shared)
        self._free()

    def _restore(
        self,
        iterations: int,
        counts: list[int],
        memories: list[list[float]],
        shared: Mapping[str, float],
    ) -> None:
        """Sets all that a step moves beside the arrays."""
        self._plan.restore(iterations, counts, memories, [shared[name] for name in self.shared])

    def _free(self) -> None:
        """Nobody is in a call: at the start, and in a forked child, which has no other thread."""
        self._lock = threading.RLock()
        self._busy = False
        self._clip: Clip | None = None  # of the last step
        self._swapped = ""  # what stands where the parameters were, and how they come back
        self._plan.free()
        for group in self._groups:
            group.lock = self._lock
        alive.add(self)

    # ---- What a rule says of itself

    @staticmethod
    def kernel(h: Mapping[str, Any]) -> str:
        """The kernel for these hyperparameters, of which a callable is true.

        Raises ValueError where they don't go together.
        """
        raise NotImplementedError("Optimizer is the base of the rules; use SGD, Adam, ...")

    @staticmethod
    def scalars(h: Mapping[str, Any], t: int) -> dict[str, float]:
        """The scalars of the rule's kernels at an array's step t, counted from 1, in double.

        h has the hyperparameters' values at this step, and what the rule keeps in `memory` and
        `shared`; what is returned has the new memory, too.
        """
        raise NotImplementedError

    @staticmethod
    def reads_loss(h: Mapping[str, Any]) -> bool:
        """Whether a step needs the loss."""
        return False

    @staticmethod
    def sums(h: Mapping[str, Any]) -> tuple[str, ...]:
        """What a step has to know of an array as a whole: "x", "g", "u", "agree", "look".

        Then `scalars` finds h["sums"]: None in a look at the arrays, and in the step what it found.
        """
        return ()

    @staticmethod
    def follow(h: Mapping[str, Any]) -> dict[str, float]:
        """What `shared` becomes by a step, and what else `scalars` wants to know.

        h has the first group's values, `shared`, and where they are asked for "loss" and "totals",
        the sums over all arrays.
        """
        raise NotImplementedError

    @staticmethod
    def initial(h: Mapping[str, Any]) -> dict[str, float]:
        """What state arrays start with where it isn't 0."""
        return {}

    # ---- Parameters

    @property
    def param_groups(self) -> tuple[Group, ...]:
        """The groups, live: `opt.param_groups[1]["lr"] = 0` counts from the next step on."""
        return self._groups

    @one_at_a_time
    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Takes in more parameters, with new state.

        group   a mapping with "params" and what differs from the class's defaults; "no_decay" and,
                where gradients are bound, "grads"

        Gradients are then a sequence with the structure of each group, or one mapping by name.
        """
        before = self._groups, self._trees, self._parameters
        try:
            added = self._add(group)
            if self._bound and all(p.g is None for p in added):
                raise ValueError('group: gradients are bound; pass its "grads"')
            plan = planned(self._parameters, self._plan)
        except BaseException:
            self._groups, self._trees, self._parameters = before
            raise
        self._grouped, self._plan = True, plan

    @one_at_a_time
    def rebind(self, params: Arrays) -> None:
        """Takes arrays of the same structure, shapes and types in place of the old ones.

        The state stays, and goes on with the new arrays.
        """
        fresh = [copy.copy(p) for p in self._parameters]
        for p, x in zip(fresh, self._gather(params, "params"), strict=True):
            if described(x) != p.kind:
                raise ValueError(f"{p.labels()[0]}: {described(x)} where {p.kind} is registered")
            p.x = x
        self._plan = planned(fresh, self._plan)
        for old, new in zip(self._parameters, fresh, strict=True):
            old.x = new.x

    @one_at_a_time  # type: ignore[no-redef]
    def zero_grad(self) -> None:
        """Fills the bound gradients with zeros."""
        bound = [p for p in self._parameters if p.g is not None]
        if not bound:
            raise ValueError("grads: none bound; bind them at construction with grads=")
        for p in bound:
            if p.g is not None and not p.g.flags.writeable:
                raise ValueError(f"{p.labels()[1]}: read-only, but zero_grad writes to it")
        for p in bound:
            if p.g is not None:
                p.g.fill(0)

    def _add(self, group: Mapping[str, Any]) -> list[Parameter]:
        """Takes a group in: its hyperparameters, its parameters and their state."""
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError('group: pass a mapping with "params" and what differs')
        made, part = self._divided(
            group, {k: v for k, v in group.items() if k not in ("params", *self.apart)}
        )
        no_decay = group.get("no_decay")
        if not (no_decay is None or callable(no_decay)):
            raise TypeError(f"no_decay: {no_decay!r} is no function of a name and an array")
        tree, arrays = flatten(listed(group["params"]), len(self._parameters))
        taken = {p.name for p in self._parameters}
        added: list[Parameter] = []
        for name, x in arrays.items():
            if name in taken:
                raise ValueError(f"{label('params', name)}: two groups have this name; rename one")
            _core.require_parameter(x, label("params", name))
            number = part(name, x)
            before = [*self._parameters[-1:], *added[-1:]]
            added.append(
                Parameter(
                    name,
                    x,
                    None,
                    self._state(x, made[number]),
                    self._beside(x, made[number], name),
                    len(self._groups) + number,
                    no_decay is None or not no_decay(name, x),
                    before[-1].position + before[-1].x.size if before else 0,
                    list(self.memory.values()),
                )
            )
            made[number].members.append(added[-1])
        if group.get("grads") is not None:
            own = gather(tree, group["grads"], "grads") if added else []
            for p, g in zip(added, own, strict=True):
                p.g = g
        self._groups = (*self._groups, *made)
        self._trees = [*self._trees, tree]
        self._parameters = [*self._parameters, *added]
        return added

    def _divided(
        self, group: Mapping[str, Any], values: dict[str, Any]
    ) -> tuple[tuple[Group, ...], Callable[[str, np.ndarray], int]]:
        """What a group becomes, of which `values` are hyperparameters: as a rule, one group.

        A rule that leaves some parameters to another rule makes two of it. Also returned is what
        says for a parameter, by name and array, in which of them it is.
        """
        return (Group(type(self), values),), lambda name, x: 0

    def _state(self, x: np.ndarray, group: Group) -> dict[str, np.ndarray]:
        """The state arrays of a parameter, as they are at the start."""
        computing = computing_type(x)
        chosen = self.state_dtype
        unknown = chosen.keys() - {"", *group.settings.states}
        if unknown or (chosen and computing == np.float64):
            what = f"no state {', '.join(sorted(unknown))}" if unknown else "float64 for a float64"
            raise ValueError(f"state_dtype: {what} parameter has {group.settings.states}")
        start = group.settings.rule.initial(group)
        state = {}
        for place, key in enumerate(group.settings.states, start=FREE):
            dtype = chosen.get(key, chosen.get("", computing))
            state[key] = room(x, dtype, place)
            if start.get(key):
                state[key].fill(start[key])
        return state

    def _beside(self, x: np.ndarray, group: Group, name: str) -> dict[str, np.ndarray]:
        """The arrays that the stages want beside a parameter, in the type that it computes in."""
        computing = computing_type(x)
        beside: dict[str, np.ndarray] = {}
        taken = FREE + len(group.settings.states)

        def keep(role: str, values: Any) -> None:
            beside[role] = room(x, computing, taken + len(beside))
            beside[role][...] = values

        if self.master and x.dtype.itemsize == 2:
            keep("master", x)
        if self.ema_decay is not None:
            keep("average", x)
        if Pair.has_arrays(group["bounds"]):
            for role, bound in zip(("low", "high"), group["bounds"], strict=True):
                if np.shape(bound) not in ((), x.shape):
                    of = label("params", name)
                    raise ValueError(f"bounds: shape {np.shape(bound)}, but {of} has {x.shape}")
                keep(role, bound)
        return beside

    def _gather(self, values: Any, role: str) -> list[Any]:
        """Gradients, or other arrays in the structure of params, in the parameters' order."""
        if not self._grouped:
            return gather(self._trees[0], values, role)
        if isinstance(values, Mapping):
            return gather({p.name: i for i, p in enumerate(self._parameters)}, values, role)
        if is_groups(values):
            values = [group["params"] for group in values]
        return gather(self._trees, values, role)

    # ---- The step

    def step(
        self,
        grads: Arrays | None = None,
        *,
        loss: float | None = None,
        grad_scale: float | None = None,
    ) -> bool:
        """Updates every parameter that has a gradient, in place; True when it did.

        False where nonfinite="skip" has left it undone.

        grads        in the structure of params, None where there is no gradient: that parameter,
                     its state and its step count stay. Not given: the bound ones
        loss         the loss at the point where the gradients were taken, for rules that read it
        grad_scale   the loss scale of this step. Not given: the optimizer's

        Everything is validated before anything changes. Raises TypeError or ValueError that name
        the array, FloatingPointError where nonfinite="raise" finds cause, and RuntimeError when a
        callable calls it from within a step.
        """
        if loss is None and grad_scale is None and not self._busy and self._plan.again(grads):
            if (clip := self._clip) is not None:  # which another thread may take away
                self.grad_norm = clip.norm
            return True
        return self._step(grads, loss, grad_scale)

    @one_at_a_time
    def _step(self, grads: Any, loss: float | None, grad_scale: float | None) -> bool:
        """The step, from nothing but the present settings."""
        self._plan.end()
        self._require_parameters("step")
        if grads is None and not self._bound:
            raise ValueError("grads: none given and none bound; pass them, or bind them")
        scale = self.grad_scale
        if grad_scale is not None:
            scale = self.options["grad_scale"].check(grad_scale)
        if self.clip_norm < math.inf and any(g["clip_value"] != math.inf for g in self._groups):
            raise ValueError("clip_value: not with clip_norm; choose one of the two")
        plan = self._plan
        settings = [group.settings for group in self._groups]
        values = [s.at(plan.iterations) for s in settings]  # the user's callables run here
        shared: dict[str, Any] = dict(zip(self.shared, plan.shared, strict=True))
        if any(map(self.reads_loss, values)):
            shared |= self.follow(values[0] | shared | {"loss": check_loss(loss)})
        flat = None if grads is None else self._gather(grads, "grads")
        keys = plan.begin(flat, self.zeroes_grad)
        factor = 1.0 / float(scale)
        self._clip = None
        if self.clip_norm < math.inf or self.nonfinite != "propagate":
            self._clip = Clip(self.clip_norm, factor, self.nonfinite == "propagate")
            measured = self._clip.factor(*self._measured(flat))
            self.grad_norm = self._clip.norm
            if measured is None:
                self._leave_undone(flat)
                if isinstance(scale, LossScale):
                    scale.update(False)
                return False
            factor = measured
        sets = self._sets(settings, values, keys, shared, factor, flat)
        now = plan.iterations
        self._run(flat, sets, [shared[name] for name in self.shared])
        if grad_scale is None and len(plan.active()) == len(self._parameters):
            self._settle(settings, values, keys, sets, factor, now)
        if isinstance(scale, LossScale):
            scale.update(True)
        return True

    def _settle(
        self,
        settings: list[Settings],
        values: list[dict[str, Any]],
        keys: list[tuple[int, bool, int, list[float]]],
        sets: list[ScalarSet],
        factor: float,
        before: int,
    ) -> None:
        """Lets the plan take the coming steps where they differ in nothing but these scalars.

        Until something is set: that makes the settings others, or ends it.
        """
        if (
            self.backend != "compiled"
            or self.memory
            or self.shared
            or isinstance(self.grad_scale, LossScale)
            or type(self)._run is not Optimizer._run
            or any(wanted(s, s.values) for s in settings)
        ):
            return
        options = {key: value for key, value in vars(self).items() if key in AROUND}
        parts: list[tuple[Any, Any, int, int, Sequence[str] | None]] = []
        for (g, decays, t, _), s in zip(keys, sets, strict=True):
            ahead = t + 1 - before
            if settings[g].scheduled or self.stochastic_rounding or STAGES & s.rule.keys():
                remade = functools.partial(packed_set, settings[g], decays, factor, options)
                parts.append((remade, None if settings[g].scheduled else values[g], g, ahead, None))
            else:
                h = values[g] if decays else {**values[g], "weight_decay": 0.0}
                parts.append((settings[g].rule.scalars, h, g, ahead, NAMES[settings[g].kernel]))
        at = [s.at if s.scheduled else None for s in settings]
        clip = None if self._clip is None else self._clip.factor
        self._plan.settle(self._lock, self._groups, at, parts, keys_of(self._trees), clip)

    def _sets(
        self,
        settings: list[Settings],
        values: list[dict[str, Any]],
        keys: list[tuple[int, bool, int, list[float]]],
        shared: dict[str, Any],
        factor: float,
        flat: list[Any] | None,
    ) -> list[ScalarSet]:
        """The scalars of each key, or where a look is asked for of each array; `shared` follows."""

        def made(key: tuple[int, bool, int, list[float]], **seen: Any) -> ScalarSet:
            group, decays, t, memory = key
            known = {**dict(zip(self.memory, memory, strict=True)), **shared, **seen}
            return scalar_set(
                settings[group], values[group], t + 1, decays, known, factor, vars(self)
            )

        bits = functools.reduce(operator.or_, map(wanted, settings, values))
        if not (bits and keys):
            return [made(key) for key in keys]
        sums = self._looked([made(key, sums=None) for key in keys], bits, flat)
        if self.sums(values[0]) and self.shared:
            known = {"totals": Sums.total(sums), "t": self.iterations + 1}
            shared |= self.follow(values[0] | shared | known)
        own = [keys[number_of_set] for _, number_of_set in self._plan.active()]
        self._plan.spread()
        return [made(key, sums=s) for key, s in zip(own, sums, strict=True)]

    def _looked(self, sets: list[ScalarSet], bits: int, flat: list[Any] | None) -> list[Sums]:
        """What a step with these sets would do to each array."""
        active = self._plan.active()
        sizes = [self._parameters[i].x.size for i, _ in active]
        if self.backend == "compiled":
            found: Sequence[tuple[float, ...]] = self._plan.look([s.packed() for s in sets], bits)
        else:
            self._plan.check()
            gradients = self._in_order(flat)
            found = [sets[n].look(self._parameters[i], gradients[i], bits) for i, n in active]
        return [Sums._make((*sums, size)) for sums, size in zip(found, sizes, strict=True)]

    def _run(self, flat: list[Any] | None, sets: list[ScalarSet], shared: list[float]) -> None:
        """Updates all arrays of the step that has begun, once they have been looked over."""
        plan, memories = self._plan, [s.memory for s in sets]
        if self.backend == "compiled":
            plan.run([s.packed() for s in sets], memories, shared)
            return
        plan.check()
        gradients = self._in_order(flat)
        for i, number_of_set in plan.active():
            sets[number_of_set].step(self._parameters[i], gradients[i])
        plan.advance(memories, shared)

    def _require_parameters(self, what: str) -> None:
        """Raises while something else stands where the parameters were."""
        if self._swapped:
            raise RuntimeError(f"{what}: {self._swapped}")

    def _in_order(self, flat: list[Any] | None) -> list[Any]:
        """The gradients of a step: those that were given, or the bound ones."""
        return [p.g for p in self._parameters] if flat is None else flat

    def _measured(self, flat: list[Any] | None) -> tuple[float, bool]:
        """The sum of the squares of the gradients, and whether all of them are finite."""
        if self.backend == "compiled":
            return self._plan.norm()
        self._plan.check()
        return reference.norm_squared([g for g in self._in_order(flat) if g is not None])

    def _leave_undone(self, flat: list[Any] | None) -> None:
        """What is left of a step whose gradients are not finite."""
        self._plan.end()
        pairs = list(zip(self._parameters, self._in_order(flat), strict=True))
        if self.nonfinite == "raise":
            bad = [p for p, g in pairs if g is not None and not np.isfinite(g).all()]
            raise FloatingPointError(f"{bad[0].labels()[1]}: has elements that are not finite")
        self.skipped_steps += 1
        if self.zeroes_grad:  # or a buffer that accumulates would stay infinite
            for _, g in pairs:
                if g is not None:
                    g.fill(0)

    @property
    def iterations(self) -> int:
        """The number of finished steps."""
        return self._plan.iterations

    @property
    def current_learning_rate(self) -> float:
        """The learning rate of the coming step, of the first group."""
        rate: float = self.hyperparameters["lr"].at(self._groups[0]["lr"], self.iterations)
        return rate

    @one_at_a_time
    def observe(self, metric: float) -> None:
        """Hands a metric, such as a validation loss, to each schedule that follows one.

        metric   a number, which may be NaN

        A schedule that serves several groups or hyperparameters hears of it once. Raises ValueError
        where no schedule follows a metric: see schedules.ReduceOnPlateau.
        """
        metric = check_metric(metric)
        following = {id(s): s for s in self._observers().values()}
        if not following:
            raise ValueError("metric: no schedule here follows one, as ReduceOnPlateau does")
        for schedule in following.values():
            schedule.observe(metric)

    def _observers(self) -> dict[str, Any]:
        """The schedules that follow a metric, by their place."""
        return observers(group.settings.values for group in self._groups)

    # ---- State

    @property
    def state(self) -> States:
        """Each parameter's finished steps and its live state: `opt.state["w1"]["exp_avg"]`."""
        with self._lock:
            numbers = zip(self._plan.counts(), self._plan.memories(), strict=True)
            return States(
                {
                    p.name: {
                        "step": count,
                        **dict(zip(self.memory, memory, strict=True)),
                        **p.saved,
                    }
                    for p, (count, memory) in zip(self._parameters, numbers, strict=True)
                }
            )

    @property  # type: ignore[no-redef]
    def ema(self) -> dict[str, np.ndarray]:
        """The running mean of each parameter, live."""
        return {p.name: p.beside["average"] for p in self._parameters if "average" in p.beside}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within a `with`, the parameters hold their means; afterwards the same bits as before."""
        if self.ema_decay is None:
            raise ValueError("ema: no running means; ask for them at construction with ema=")
        with self._lock:
            kept, before = [p.x.copy(order="K") for p in self._parameters], self._swapped
            self._swapped = "the parameters hold their means; leave opt.averaged() first"
            self._plan.end()
            for p in self._parameters:
                p.x[...] = p.beside["average"]
        try:
            yield
        finally:
            with self._lock:
                for p, x in zip(self._parameters, kept, strict=True):
                    p.x[...] = x
                self._swapped = before

    def empty_like_params(self) -> Any:
        """New arrays in the structure of params, with no content."""
        fresh = [np.empty_like(p.x, subok=False) for p in self._parameters]
        trees = [filled(tree, fresh) for tree in self._trees]
        return trees if self._grouped else trees[0]

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays that the optimizer has allocated."""
        return sum(
            a.nbytes
            for p in self._parameters
            for a in (*p.matrices.values(), *(kept for _, kept in p.keeps()))
        )

    @one_at_a_time
    def state_dict(self) -> dict[str, Any]:
        """A copy of what a resumed run needs, by name: numbers and arrays.

        A callable isn't in it: None stands in its place. What it remembers of metrics is.
        """
        scale = self.grad_scale
        return {
            "state": {
                name: {key: copy.copy(value) for key, value in own.items()}
                for name, own in self.state.items()
            },
            "param_groups": [
                {
                    "params": g["param_names"],
                    **{k: h.saved(g[k]) for k, h in g.settings.rule.hyperparameters.items()},
                }
                for g in self._groups
            ],
            "iterations": self.iterations,
            "shared": dict(zip(self.shared, self._plan.shared, strict=True)),
            "skipped_steps": self.skipped_steps,
            "schedules": saved(self._observers()),
            "loss_scale": dict(vars(scale)) if isinstance(scale, LossScale) else None,
        }

    @one_at_a_time
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken; callables that are set here stay.

        state_dict   what `state_dict` gave; or what that of the same rule in PyTorch gave: tensors
                     or arrays by the parameters' positions, or by their names where those are
                     PyTorch's param_names. What PyTorch doesn't know is then as it is here

        The arrays are copied into this optimizer's. Raises TypeError or ValueError that lists the
        differences in names, shapes and types; nothing has changed then.
        """
        self._require_parameters("load_state_dict")
        found = read(self, state_dict)
        planned(self._parameters)  # notices an array that can't be written any more
        load(self._observers(), found.schedules)

        for own, settings in zip(self._groups, found.settings, strict=True):
            own.settings = settings
        for array, value in found.arrays:
            array[...] = value
        self._restore(found.iterations, found.counts, found.memories, found.shared)
        self.skipped_steps = found.skipped_steps
        if isinstance(self.grad_scale, LossScale) and found.loss_scale:
            vars(self.grad_scale).update(found.loss_scale)

    def __getstate__(self) -> dict[str, Any]:
        fresh = ("_plan", "_lock", "_busy", "_clip")
        own = {k: v for k, v in vars(self).items() if k not in fresh}
        plan = self._plan
        return own | {"moved": (plan.iterations, plan.counts(), plan.memories(), plan.shared)}

    def __setstate__(self, own: dict[str, Any]) -> None:
        vars(self).update(own)
        moved = vars(self).pop("moved")
        self._plan = planned(self._parameters)
        self._plan.restore(*moved)
        self._free()

    def __copy__(self) -> Optimizer:
        raise TypeError("copy.copy would share the arrays but not the counters; use copy.deepcopy")

    def __repr__(self) -> str:
        groups = "".join(f"\n  {group!r}," for group in self._groups)
        return f"{type(self).__name__}({groups}\n)"


def check_loss(loss: Any) -> float:
    """The loss as a float, for a rule that reads it."""
    if loss is None:
        raise ValueError("loss: this rule reads it; pass it with the gradients: loss=f")
    return Interval("(-inf, inf)").check("loss", loss)


def is_groups(params: Any) -> bool:
    """Whether params is a list of groups, and not a nested structure."""
    return (
        is_sequence(params)
        and len(params) > 0
        and all(isinstance(p, Mapping) and "params" in p for p in params)
    )


def computing_type(x: np.ndarray) -> np.dtype[Any]:
    """What a parameter's step is computed in, and its state stored in unless told otherwise."""
    return np.dtype(np.float64 if x.dtype == np.float64 else np.float32)


def planned(parameters: list[Parameter], before: _core.Plan | None = None) -> _core.Plan:
    """A plan of these parameters; the first ones keep the counters of the plan before, which ends.

    Raises where an array breaks the contract.
    """
    plan = _core.Plan()
    for p in parameters:
        plan.add(p.labels(), p.x, p.keeps(), p.g, p.group, p.decays, p.memory)
    plan.require_disjoint()
    if before is not None:
        counts, memories, fresh = before.counts(), before.memories(), plan.memories()
        counts += [0] * (len(parameters) - len(counts))
        memories += fresh[len(memories) :]
        plan.restore(before.iterations, counts, memories, before.shared)
        before.end()  # a thread that waits for it is to find the new one
    return plan


alive: WeakSet[Optimizer] = WeakSet()


def free_all() -> None:
    """A lock that another thread held when the process was forked would never be released."""
    for optimizer in list(alive):
        optimizer._free()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=free_all)
