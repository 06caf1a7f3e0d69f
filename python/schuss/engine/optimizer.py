"""The base of all rules: arrays, groups, options, step and state."""

from __future__ import annotations

import copy
import inspect
import math
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import InitVar, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, dataclass_transform
from weakref import WeakSet

import numpy as np

from schuss import _core
from schuss.engine.arriving import Arriving, require_no_other_gradients
from schuss.engine.backend import Given, Numpy
from schuss.engine.codes import BlockFloat8, blocks_of
from schuss.engine.declare import (
    REQUIRED,
    Backend,
    Bounded,
    Choice,
    Flag,
    Folder,
    Hyperparameter,
    Number,
    Option,
    Pair,
    Preset,
    Scale,
    ScaleOrNumber,
    Scheduled,
    SharedScale,
    Storage,
    Whole,
    check_state_dtype,
    choice,
    constant,
    entries,
    flag,
    number,
    numbers,
    option,
    pair,
    user_level,
    whole,
)
from schuss.engine.groups import (
    FACTORS,
    ROW_COUNTS,
    Averaging,
    Group,
    Parameter,
    Settings,
    Swapped,
    meant,
    nearest,
    require_room,
)
from schuss.engine.guard import IN_A_CALL, alive, one_at_a_time, shorten, weakly
from schuss.engine.mapped import Alone, Files
from schuss.engine.memory import FREE, Flat, order_of, room, side_by_side, write
from schuss.engine.observers import check_metric, observers
from schuss.engine.pieces import arrays_of_gradient, check_flag, check_pieces, zero
from schuss.engine.report import Report
from schuss.engine.rule import Rule, is_ours
from schuss.engine.saved import (
    Differences,
    States,
    assign,
    copied,
    read,
    require_writeable,
    written,
)
from schuss.engine.scalars import TRAITS, Options, require_rows
from schuss.engine.step import Recipe
from schuss.engine.structure import (
    Arrays,
    Gradients,
    Tree,
    by_name,
    described,
    filled,
    flatten,
    gather,
    is_floating,
    is_sequence,
    label,
    listed,
    listing,
)
from schuss.reference.storage import CODED, computing, is_narrow, within

NoDecay = Callable[[str, np.ndarray], bool]

AVERAGED = "the parameters hold their means; leave opt.averaged() first"

LATE: dict[str, Any] = {}  # params of an optimizer whose parameters come one by one: see _admit

PICKLED = 3  # the form of a pickle: another one where what an optimizer consists of changes


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


class Optimizer(Rule, Declared):
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
    bounds       (low, high), numbers or arrays, which are copied: x is kept within, at the nearest
                 numbers of its own type inside; default None

    How the rule's weight_decay, wd, works on x, by its decay_mode; lr is the step's, peak the
    largest of its schedule:

        l2                   g + wd*x takes the place of g, before the rule
        decoupled            x = (1 - lr*wd)*x
        decoupled_unscaled   x = (1 - lr/peak*wd)*x         as in Loshchilov and Hutter 2019
        corrected            x = (1 - lr*lr/peak*wd)*x      fades with the square of lr
        proximal             x = x/(1 + lr*wd)              after the update
        masked               as decoupled, where the update and x have the same sign

    Options of the optimizer:

    grad_scale   the loss scale, in [1.17549e-38, 1.70142e38], default 1: gradients are multiplied
                 by 1/grad_scale, which float32 has, too; or a LossScale
    clip_norm    gradients are scaled down together to this norm, in (0, inf], default inf; needs
                 one read of them more
    clip_norm_per    "all" (default); "array" or "row": each array's norm is limited by itself, or
                 that of each row of the first axis, in place of the norm of all
    nonfinite    what becomes of a step with a gradient that is not finite, as it is given or as the
                 rule would see it, behind grad_scale, clip_norm and clip_value: "propagate"
                 (default), "skip", or "raise"; the last two need one read of the gradients more
    zero_grad    fills the gradients with zeros in the same pass, default False
    ema          opt.ema[name] is the running mean of each parameter, with this decay, in [0, 1), or
                 a callable of the array's number of finished steps that returns it, such as
                 schedules.ema_warmup; default None: no mean
    state_dtype  "float32" (default), "bfloat16", "float16" or "blockfloat8" (8 bits and a scale for
                 each 64 elements) for the state of parameters that are not float64, or a mapping
                 from the state's name to one of them. What changes by less than its spacing is
                 rounded by chance, as its trait says (reference.rules); what is no mean or sum of
                 gradients stays float32 where 8 bits are asked of all
    state_dir    a folder, new or empty: the state lies in files there that are mapped into memory,
                 for what is larger than that; the bits are the same. A process that is killed
                 leaves what schuss.load(state_dir, opt) takes, or says to be torn. Default None
    master       True: a float32 copy of each 16-bit parameter is what steps, and the parameter is
                 rounded from it: what is written to the parameter otherwise is lost. "remainder":
                 the same in 2 bytes in place of 4, for bfloat16: the parameter and 16 bits more are
                 the float32 weight, bit for bit. Default False
    stochastic_rounding    rounds 16-bit parameters without a master up or down by chance, so that
                 small steps are not lost; default False
    seed         of what is rounded by chance, default 0
    subnormals   "zero" (default) stores a state element below the smallest normal number as zero;
                 "keep" keeps it, and each step of such an element then costs 2 to 50 times as much,
                 by processor
    rows         how steps are counted of arrays whose gradients are Rows: "lazy" (default), all
                 rows by their array; "counted", each row by itself, for corrections of a start at
                 0; "decayed", as "lazy", and what steps without a gradient would have done to a
                 row's moments, and to x by weight decay and SGD's momentum, is made up for before
                 its next step, at the coming rate: SGD, Momentum, NAG, Adam and AdamW, with no
                 weight decay but the decoupled
    missing      "raise" (default): a key of params that gradients lack is an error; "skip": there
                 is no gradient then, as with None
    convert      gradients of another type or memory order are copied into one that fits, which
                 costs a pass over them and their memory; default False: an error. Not of Rows and
                 pieces
    backend      "compiled" (default), or "numpy": the same bits, in readable Python

    A hyperparameter that is a number may be a callable: it is called with the number of finished
    steps (0 first) and returns the value of the coming one. TypeError and ValueError name the
    argument or the array; nothing has changed then.
    """

    apart: ClassVar[tuple[str, ...]] = ("grads", "no_decay")  # of a group, and no hyperparameter
    _whole: Any = None  # where the arrays are shares of larger ones: see schuss.mpi.whole
    __signature__ = ConstructorSignature()

    if TYPE_CHECKING:  # arguments of every constructor
        params: InitVar[Arrays] = argument(kw_only=False)
        grads: InitVar[Gradients | None] = argument(default=None)
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
    grad_scale: float | Scale = option(ScaleOrNumber, "[1.17549e-38, 1.70142e38]", default=1.0)
    clip_norm: float = option(Bounded, "(0, inf]", default=math.inf)
    clip_norm_per: Literal["all", "array", "row"] = option(Choice, default="all")
    nonfinite: Literal["propagate", "skip", "raise"] = option(Choice, default="propagate")
    ema_decay = option(Scheduled, "[0, 1)", default=None, fixed=True, argument="ema")
    zeroes_grad = option(Flag, default=False, argument="zero_grad")
    state_dtype: Any = option(Storage, default=None, fixed=True)
    state_dir: str | os.PathLike[str] | None = option(Folder, default=None, fixed=True)
    master: Literal[False, True, "remainder"] = option(Choice, default=False, fixed=True)
    stochastic_rounding: bool = option(Flag, default=False)
    seed: int = option(Whole, default=0)
    subnormals: Literal["zero", "keep"] = option(Choice, default="zero")
    rows: Literal["lazy", "counted", "decayed"] = option(Choice, default="lazy", fixed=True)
    missing: Literal["raise", "skip"] = option(Choice, default="raise")
    convert: bool = option(Flag, default=False)
    backend: Backend = option(Choice, default="compiled")

    def __init_subclass__(cls) -> None:
        order = [*reversed(cls.__mro__[: cls.__mro__.index(Optimizer)]), Optimizer]
        declared = {name: d for c in order for name, d in vars(c).items()}
        cls.hyperparameters = {k: d for k, d in declared.items() if isinstance(d, Hyperparameter)}
        cls.options = {d.argument: d for d in declared.values() if isinstance(d, Option)}
        texts = entries(cls.__doc__ or "")
        for name, h in cls.hyperparameters.items():  # of a base, too, which leaves it to its rules
            h.__doc__ = h.__doc__ or texts.get(name)

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
        self._files: Files | None = None
        try:
            self._begin(params, grads, no_decay, hyperparameters)
        except BaseException as error:
            if self._files is not None:
                self._files.remove()
            if isinstance(error, TypeError | ValueError):
                shorten(error)
            raise

    def _begin(
        self, params: Any, grads: Any, no_decay: NoDecay | None, hyperparameters: dict[str, Any]
    ) -> None:
        self._plan = _core.Plan()
        self._lock = threading.RLock()
        for name, declared in self.options.items():
            declared.__set__(self, hyperparameters.pop(name, declared.default))
        self._skipped_steps = 0
        self._reports_as = object()  # a loss scale's key of this optimizer, which is copied with it
        self._groups: tuple[Group, ...] = ()
        self._trees: list[Tree] = []
        self._watched: list[tuple[Any, Tree]] = []  # the user's containers, and what lies where
        self._parameters: list[Parameter] = []
        self._names: dict[str, int] = {}  # the number of each parameter
        self._start = {"no_decay": no_decay, **hyperparameters}  # what added groups begin with
        self._has_converted = False
        self._flat = Flat()
        self._flat_grads: np.ndarray | None = None
        self._swapped: list[Swapped] = []  # means may stand for averages that stand for weights
        self._averaging: WeakSet[Averaging] = WeakSet()  # those that are open
        if (folder := vars(self).get("_state_dir")) is not None:  # the base has no options
            self._files = Files(folder)
        late = params is LATE
        params = listed(params)
        self._grouped = is_groups(params)
        for group in params if self._grouped else [{"params": params}]:
            self._add(group)
        if not (self._parameters or late):
            raise ValueError("params: no array in it; pass at least one")
        if grads is not None:
            for p, g in zip(self._parameters, self._gather(grads, "grads"), strict=True):
                p.g = g
        self._bound = any(p.g is not None for p in self._parameters)
        self._require_options_that_go_together(self._settings())
        self._register(self._parameters)
        self._expect()
        self._restore(0, [0] * len(self._parameters), self._memories(), self.shared, None)
        self._free()
        if self._files is not None:
            self._files.end(self)

    def _register(self, parameters: list[Parameter], plan: _core.Plan | None = None) -> None:
        """Hands parameters to the plan: all of them, or none. Raises where an array can't be."""
        plan = self._plan if plan is None else plan
        before = len(self._parameters) - len(parameters)
        try:
            for p in parameters:
                hand_over(plan, p)
            plan.require_disjoint()
        except BaseException:
            plan.keep_first(before)
            raise
        plan.change()

    def _moved(self) -> tuple[Any, ...]:
        """All that a step moves beside the arrays, as `_plan.restore` takes it."""
        plan, numbers = self._plan, range(len(self._parameters))
        counts = [plan.count(i) for i in numbers]
        return plan.iterations, counts, self._memories(), plan.shared, plan.last_norm

    def _register_anew(self) -> None:
        """Where arrays beside the parameters are others now: the counters stay."""
        self._plan = self._plan_of(self._parameters)

    def _plan_of(self, parameters: list[Parameter]) -> _core.Plan:
        """Another plan, of all parameters, that goes on where the present one is."""
        plan = _core.Plan()
        self._register(parameters, plan)
        plan.expect([self._structure()])
        plan.watch(self._watched)
        plan.restore(*self._moved())
        plan.barred = self._plan.barred
        plan.serve(self._lock, weakly(self._recipe), weakly(self._match))
        return plan

    def _expect(self) -> None:
        """Tells the plan in which structure gradients come, and where the user keeps arrays."""
        self._plan.expect([self._structure()])
        self._watch(self._watched)

    def _structure(self) -> Any:
        """That of params, or of the groups."""
        return self._trees if self._grouped else self._trees[0]

    def _watch(self, watched: list[tuple[Any, Tree]]) -> None:
        """Only what stays is watched, and what the plan can look into."""
        self._watched = [(own, t) for own, t in watched if isinstance(own, dict | list | tuple)]
        self._plan.watch(self._watched)

    def _restore(
        self,
        iterations: int,
        counts: list[int],
        memories: list[list[float]],
        shared: Mapping[str, float],
        norm: float | None,
    ) -> None:
        """Sets all that a step moves beside the arrays."""
        numbers = [shared[name] for name in self.shared]
        self._plan.restore(iterations, counts, memories, numbers, norm)

    def _memories(self) -> list[list[float]]:
        return [self._plan.memory(i) for i in range(len(self._parameters))]

    def _free(self) -> None:
        """Nobody is in a call: at the start, and in a forked child, which has no other thread."""
        self._lock = threading.RLock()
        self._plan.serve(self._lock, weakly(self._recipe), weakly(self._match))
        for group in self._groups:
            group.lock = self._group_lock()
        alive.add(self)

    def _set_hyperparameter(self, declared: Hyperparameter, value: Any) -> None:
        """Sets it in all groups whose rule has it: a step of another thread sees all or none."""
        name = declared.name
        with self._lock if self._files is None else Alone(self):
            if len(self._groups) == 1:  # before each step, where a trainer has schedules of its own
                self._groups[0].settings = self._groups[0].changed(name, value)
                return
            changed: dict[int, Settings] = {}  # groups with the same settings keep the same
            pairs: list[tuple[Group, Settings]] = []
            for group in self._groups:
                old = group.settings
                if old.rule.hyperparameters.get(name) is declared:
                    new = changed.get(id(old))
                    if new is None:
                        new = changed[id(old)] = group.changed(name, value)
                    elif name == "bounds":
                        group.require_room(new.values[name])
                    pairs.append((group, new))
            for group, new in pairs:
                group.settings = new

    def _set_option(self, key: str, value: Any) -> None:
        with self._lock if self._files is None else Alone(self):
            vars(self)[key] = value
            self._plan.change()

    if not TYPE_CHECKING:  # which know the declared ones by themselves

        def __setattr__(self, name: str, value: Any) -> None:
            """Sets a hyperparameter of all groups, or an option; else it is an error."""
            try:
                if name in self.hyperparameters:
                    self._set_hyperparameter(self.hyperparameters[name], value)
                elif name in self.options:  # which a method may be named after
                    self.options[name].__set__(self, value)
                elif name.startswith("_") or is_settable(type(self), name):
                    object.__setattr__(self, name, value)
                elif hasattr(type(self), name):
                    raise AttributeError(f"{name}: can't be set")
                elif is_ours(type(self)) or meant(type(self), name):
                    raise AttributeError(f"{name}: {nearest(type(self), name)}")
                else:  # a subclass of the user's may keep what it likes
                    object.__setattr__(self, name, value)
            except (TypeError, ValueError) as error:
                shorten(error)
                raise

    # ---- Parameters

    @property
    def param_groups(self) -> tuple[Group, ...]:
        """The groups, live: `opt.param_groups[1]["lr"] = 0` counts from the next step on."""
        return self._groups

    @one_at_a_time
    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Takes in more parameters, with new state.

        group   a mapping with "params" and what differs from what the constructor was given, as in
                PyTorch; where gradients are bound, "grads", too

        Gradients may then come as a sequence with the structure of each group, or in any structure
        in which the arrays lie at the places that they are named by.
        """
        with self._changing():
            self._add_whole(group)

    def _add_whole(self, group: Mapping[str, Any]) -> None:
        """Takes a group in, or raises and leaves everything as it was."""
        before = self._groups, self._trees, self._watched, self._parameters, self._grouped
        size, files = len(self._parameters), len(self._files.maps) if self._files else 0
        self._grouped = True
        try:
            self._add(group)
            self._require_options_that_go_together(self._settings())
            added = self._parameters[size:]
            if self._bound and all(p.g is None for p in added):
                raise ValueError('group: gradients are bound; pass its "grads"')
            self._register(added)
            for own in self._groups[len(before[0]) :]:
                own.lock = self._group_lock()
            if before[-1]:  # one more group costs what it has, however many there are
                self._plan.expect_more(self._trees[-1])
                if len(self._watched) > len(before[2]):
                    self._plan.watch_more(*self._watched[-1])
            else:
                self._expect()
        except BaseException:
            for p in self._parameters[size:]:
                self._names.pop(p.name, None)
            self._groups, self._trees, self._watched, self._parameters, self._grouped = before
            self._plan.keep_first(size)
            self._expect()
            if self._files is not None:
                self._files.keep_first(files)
            raise

    def _admit(self, name: str, x: np.ndarray) -> int:
        """Takes a parameter into the groups that there are, with their settings: its number."""
        before = self._groups, self._trees, self._watched, self._parameters
        number, groups = len(self._parameters), len(self._groups)
        try:
            (p,) = self._add({"params": {name: x}})
            p.group -= groups
            hand_over(self._plan, p)
        except BaseException:
            self._plan.keep_first(number)
            self._names.pop(name, None)
            self._groups, self._trees, self._watched, self._parameters = before
            raise
        self._groups, self._trees, self._watched, _ = before
        self._groups[p.group].members.append(p)
        self._plan.change()
        return number

    def _dismiss(self) -> None:
        """Lets go of the parameter that was taken in last, also if an interrupt left it half in."""
        *rest, p = self._parameters
        self._plan.keep_first(len(rest))
        members = self._groups[p.group].members
        members[:] = [q for q in members if q.name != p.name]
        self._names.pop(p.name, None)
        self._parameters = rest

    def _replace(self, number: int, p: Parameter) -> None:
        """Takes a parameter with other arrays beside it in the place of the one that there is."""
        hand_over(self._plan, p)
        self._plan.replace_by_last(number)
        members = self._groups[p.group].members
        members[next(i for i, q in enumerate(members) if q.name == p.name)] = p
        self._parameters = [p if i == number else q for i, q in enumerate(self._parameters)]
        self._plan.change()

    def _group_lock(self) -> AbstractContextManager[Any]:
        """What is held while a group's settings change."""
        return self._lock if self._files is None else Alone(self)

    def _changing(self) -> AbstractContextManager[None]:
        """What files say while state changes that lies in them."""
        return nullcontext() if self._files is None else self._files.changing(self)

    @one_at_a_time
    def flush(self) -> None:
        """Brings state that lies in files to the disk, for the case that the machine goes down.

        Raises ValueError without a state_dir.
        """
        if self._files is None:
            raise ValueError("state_dir: none, so there are no files; see schuss.save")
        self._files.flush(self)

    @one_at_a_time
    def rebind(self, params: Arrays) -> None:
        """Takes arrays of the same structure, shapes and types in place of the old ones.

        The state stays, and goes on with the new arrays. What was taken from the parameters at the
        start, such as masters and averages, is taken anew where an array has other values.
        """
        self._require_parameters("rebind")
        arrays, tree = self._matched(params, "params")
        self._rebind(arrays)
        self._watch([(params, tree)])

    def _rebind(self, arrays: list[Any]) -> None:
        fresh: list[tuple[np.ndarray, Any]] = []
        for p, x in zip(self._parameters, arrays, strict=True):
            if p.copies:
                p.require_writeable_copies()
                if x is not p.x and not same_bits(x, p.x):
                    fresh += p.anew(x)
        with self._changing() if fresh else self._lock:
            self._plan.rebind(arrays)
            for p, x in zip(self._parameters, arrays, strict=True):
                p.x = x
            if fresh:
                write(fresh)

    @one_at_a_time
    def refresh(self) -> None:
        """Takes masters, averages and starting points anew from the parameters; counters stay.

        For parameters that were filled from outside, with loaded weights for example.
        """
        self._require_parameters("refresh")
        for p in self._parameters:
            p.require_writeable_copies()
        with self._changing():
            write(pair for p in self._parameters for pair in p.anew(p.x))

    def holds(self, params: Any) -> bool:
        """Whether these are the very arrays that are stepped, in the structure of params."""
        with self._lock:
            try:
                arrays = self._gather(params, "params")
            except (TypeError, ValueError):
                return False
        return all(a is p.x for a, p in zip(arrays, self._parameters, strict=True))

    @one_at_a_time  # type: ignore[no-redef]
    def zero_grad(self) -> None:
        """Fills the bound gradients with zeros."""
        bound = [p for p in self._parameters if p.g is not None]
        if not bound:
            raise ValueError("grads: none bound; bind them at construction with grads=")
        arrays = [(p, a) for p in bound for a in arrays_of_gradient(p.g)]
        for p, a in arrays:
            if not a.flags.writeable:
                raise ValueError(f"{p.labels()[1]}: read-only, but zero_grad writes to it")
        zero(p.g for p in bound)

    @property
    def flat_grads(self) -> np.ndarray:
        """One array of the gradients of parameters that lie side by side: see schuss.flatten.

        At first zeros. `step()` reads them from then on: they are bound. Raises ValueError where
        the parameters don't lie side by side in their order, or other gradients are bound. A copy
        of the optimizer, whose parameters lie apart, has none bound.
        """
        if self._flat_grads is None:
            return self._bind_flat()
        return self._flat_grads

    @one_at_a_time
    def _bind_flat(self) -> np.ndarray:
        if self._bound:
            raise ValueError("flat_grads: other gradients are bound")
        own = side_by_side([p.x for p in self._parameters])
        if own is None:
            raise ValueError(
                "flat_grads: the parameters don't lie side by side; see schuss.flatten, and pass "
                "its arrays in their order"
            )
        grads = room(own, own.dtype, 1)
        views = [
            grads[p.position : p.position + p.x.size].reshape(p.x.shape, order=order_of(p.x))
            for p in self._parameters
        ]
        plan = self._plan_of(
            [replace(p, g=g) for p, g in zip(self._parameters, views, strict=True)]
        )
        now = [
            *((p, "g", g) for p, g in zip(self._parameters, views, strict=True)),
            *((self, k, v) for k, v in (("_plan", plan), ("_bound", True), ("_flat_grads", grads))),
        ]
        # All of them, or an interrupt comes before the first: as in memory.write.
        deque(map(object.__setattr__, *zip(*now, strict=True)), maxlen=0)
        return grads

    def _add(self, group: Mapping[str, Any]) -> list[Parameter]:
        """Takes a group in: its hyperparameters, its parameters and their state."""
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError('group: pass a mapping with "params" and what differs')
        group = {**self._start, **group}
        made, part = self._divided(
            group, {k: v for k, v in group.items() if k not in ("params", *self.apart)}
        )
        no_decay = group.get("no_decay")
        if not (no_decay is None or callable(no_decay)):
            raise TypeError(f"no_decay: {no_decay!r} is no function of a name and an array")
        tree, arrays = flatten(listed(group["params"]), len(self._parameters))
        added: list[Parameter] = []
        with self._flat.among(arrays.values()):
            for name, x in arrays.items():
                if name in self._names:
                    raise ValueError(
                        f"{label('params', name)}: two groups have this name; rename one"
                    )
                _core.require_parameter(x, label("params", name))
                number = part(name, x)
                before = [*self._parameters[-1:], *added[-1:]]
                added.append(
                    Parameter(
                        name,
                        x,
                        None,
                        self._state(x, made[number], name),
                        self._beside(x, made[number], name),
                        len(self._groups) + number,
                        no_decay is None or not no_decay(name, x),
                        before[-1].position + before[-1].x.size if before else 0,
                        list(self.memory.values()),
                        self.starting,
                        made[number].rule.case(x),
                    )
                )
                made[number].members.append(added[-1])
        if group.get("grads") is not None:
            own = gather(tree, group["grads"], "grads") if added else []
            for p, g in zip(added, own, strict=True):
                p.g = g
        if self._groups and self._groups[-1].settings.is_like(made[0].settings):
            made[0].settings = self._groups[-1].settings  # groups with the same share scalars
        self._groups = (*self._groups, *made)
        self._trees = [*self._trees, tree]
        if isinstance(group["params"], dict | list | tuple):  # others can't be looked into
            self._watched = [*self._watched, (group["params"], tree)]
        self._parameters = [*self._parameters, *added]
        self._names |= {name: len(self._names) + i for i, name in enumerate(arrays)}
        return added

    def _divided(
        self, group: Mapping[str, Any], values: dict[str, Any]
    ) -> tuple[tuple[Group, ...], Callable[[str, np.ndarray], int]]:
        """What a group becomes, of which `values` are hyperparameters: as a rule, one group.

        A rule that leaves some parameters to another rule makes two of it. Also returned is what
        says for a parameter, by name and array, in which of them it is.
        """
        return (Group(type(self), values),), lambda name, x: 0

    def _state(self, x: np.ndarray, group: Group, name: str) -> dict[str, Any]:
        """The state arrays of a parameter, as they are at the start."""
        computing = computing_type(x)
        traits = dict(zip(group.settings.states, TRAITS[group.settings.kernel], strict=True))
        chosen = self.state_dtype
        check_state_dtype(chosen, traits, label("params", name), x.dtype)
        if group.rule.factors(x):
            return self._factors(x, name)
        start = group.settings.rule.initial(group)
        state: dict[str, Any] = {}
        for place, (key, trait) in enumerate(traits.items(), start=FREE):
            dtype = chosen.get(key, chosen.get("", computing))
            coded = isinstance(dtype, str)
            if coded and not trait.alone:
                codes = self._zeros(x, np.uint8 if trait.positive else np.int8, place)
                scales = self._zeros(x, np.uint8, place, shape=(blocks_of(x.size),))
                state[key] = BlockFloat8.of(codes, scales)
            else:
                state[key] = self._zeros(x, computing if coded else dtype, place)
            if start.get(key):
                state[key][...] = start[key]
        return state

    def _factors(self, x: np.ndarray, name: str) -> dict[str, np.ndarray]:
        """The two factors of a state array: one element for each row, and for each column."""
        if x.ndim > 2 and not x.flags.c_contiguous:
            of = label("params", name)
            raise ValueError(f"{of}: {x.ndim} axes in Fortran order; pass it in C order")
        shapes = (*x.shape[:-1], 1), (*x.shape[:-2], 1, x.shape[-1])
        return {
            key: self._zeros(x, computing_type(x), place, shape)
            for place, (key, shape) in enumerate(zip(FACTORS, shapes, strict=True), start=FREE)
        }

    def _zeros(
        self, x: np.ndarray, dtype: Any, place: int, shape: tuple[int, ...] | None = None
    ) -> np.ndarray:
        """Zeros beside a parameter, in memory or in a file: see memory.room."""
        if self._files is not None:
            return self._files.zeros(x, dtype, x.shape if shape is None else shape, place)
        if shape is not None:
            return np.zeros_like(x, dtype, shape=shape, subok=False)
        return self._flat.zeros(x, dtype, place)

    def _beside(self, x: np.ndarray, group: Group, name: str) -> dict[str, np.ndarray]:
        """The arrays that the stages want beside a parameter, in the type that it computes in."""
        computing = computing_type(x)
        beside: dict[str, np.ndarray] = {}
        taken = FREE + len(group.settings.states)

        def keep(role: str, values: Any, dtype: Any = computing) -> None:
            beside[role] = self._zeros(x, dtype, taken + len(beside))
            beside[role][...] = values

        if self.master == "remainder" and x.dtype == np.float16:
            raise ValueError(
                f'master: "remainder" is not for {label("params", name)}, float16: 16 bits more '
                "don't make a float32 of it, which has numbers beyond its range; pass True, or "
                "make it bfloat16"
            )
        if self.master == "remainder" and is_narrow(x.dtype):
            keep("master", 0, np.int16)
        elif self.master and is_narrow(x.dtype):
            keep("master", x)
        if self.ema_decay is not None:
            keep("average", x)
        bounds = group["bounds"]
        if Pair.has_arrays(bounds):
            for bound in bounds:
                if np.shape(bound) not in ((), x.shape):
                    of = label("params", name)
                    raise ValueError(f"bounds: shape {np.shape(bound)}, but {of} has {x.shape}")
            for role, bound in zip(("low", "high"), within(bounds, x.dtype), strict=True):
                keep(role, bound)
        require_room(bounds, x.dtype, label("params", name))
        if self.rows != "lazy" and x.ndim > 0:  # last, by which messages name it
            of, size = label("params", name), math.prod(x.shape[1:])
            if not x.flags.c_contiguous:
                raise ValueError(f"rows: {self.rows!r} counts rows, but {of} is in Fortran order")
            if "blockfloat8" in (self.state_dtype or {}).values() and size % CODED:
                raise ValueError(
                    f"rows: {self.rows!r} steps rows of {of} by themselves, which have {size} "
                    f"elements, but state in blockfloat8 has a scale for each {CODED}"
                )
            role = ROW_COUNTS[self.rows]
            beside[role] = self._zeros(x, np.int64, taken + len(beside), x.shape[:1])
        return beside

    def _gather(self, values: Any, role: str) -> list[Any]:
        """Gradients, or other arrays in the structure of params, in the parameters' order."""
        return self._matched(values, role)[0]

    def _matched(self, values: Any, role: str) -> tuple[list[Any], Any]:
        """The arrays in the parameters' order, and the structure that they came in.

        That of params, or of the groups, or any other whose arrays lie at the places by which the
        parameters are named.
        """
        if self._grouped and is_groups(values):
            values = [group["params"] for group in values]
        tree: Any = self._trees if self._grouped else self._trees[0]  # a call less
        try:
            found = self._plan.gather(values)
            return (gather(tree, values, role) if found is None else found), tree
        except ValueError as other:
            if isinstance(tree, int):  # whose name, a number, is no place in a list
                raise
            skip = role not in ("params", "out") and self.missing == "skip"
            try:
                return by_name(self._names, values, role, skip)
            except ValueError:
                if isinstance(values, Mapping) and (self._grouped or skip):
                    raise
                raise other from None

    # ---- The step

    def step(
        self,
        grads: Gradients | None = None,
        *,
        lr: float | None = None,
        params: Arrays | None = None,
        loss: float | None = None,
        grad_scale: float | None = None,
        pieces: Sequence[Gradients | None] | None = None,
        weights: Sequence[float] | np.ndarray | None = None,
        report: bool = False,
    ) -> bool:
        """Updates every parameter that has a gradient, in place; True when it did.

        False where nonfinite="skip" has left it undone.

        grads        in the structure of params, None where there is no gradient, of an array or of
                     a whole part: those parameters, their state and their step count stay. Rows in
                     place of an array: no other rows of it step. Not given: the bound ones
        lr           the learning rate of this step, of all groups. Not given: the groups'
        params       the arrays of this step, for clients that bring their own; where they are
                     others than those before, they are bound anew (rebind). Not given: the
                     registered ones
        loss         the loss at the point where the gradients were taken, for rules that read it
        grad_scale   the loss scale of this step, a number, of which the optimizer's LossScale hears
                     nothing. Not given: the optimizer's

        pieces       several such structures in place of grads: the gradient is their weighted sum,
                     one by one in their order, which is written nowhere. None in one of them adds
                     nothing
        weights      what each of the pieces is multiplied by, as it is. Not given: 1/len(pieces)
        report       True: `opt.report` has the norms of this step, taken on the way

        Everything is validated before anything changes. Raises TypeError or ValueError that name
        the array, FloatingPointError where nonfinite="raise" finds cause, and RuntimeError when a
        callable calls it from within a step.

        Also raises where the containers that were passed as params hold other arrays by now: all
        of them are looked up in the first hundred steps, then eight at each step, in turn.
        """
        try:
            if lr is not None or grad_scale is not None:
                lr, grad_scale = self._checked_for_step(lr, grad_scale)
            asked: tuple[Any, ...] = grads, lr, loss, grad_scale
            if pieces is not None or weights is not None or report:
                parts = check_pieces(grads, pieces, weights)
                asked = (*asked, *parts, check_flag("report", report))
            if params is not None:
                return self._step_of(params, asked)
            if self._files is not None:
                with self._lock, self._changing():
                    return self._plan.step(*asked)
            return self._plan.step(*asked)
        except (TypeError, ValueError) as error:
            shorten(error)
            raise

    def _checked_for_step(self, lr: Any, grad_scale: Any) -> tuple[Any, Any]:
        """The learning rate and the loss scale of one step, if they are given."""
        if lr is not None:
            declared = self.hyperparameters["lr"]
            if declared.fixed or callable(lr):
                what = "fixed at construction" if declared.fixed else "no number"
                raise TypeError(f"lr: {lr!r} is for one step, but {what}")
            lr = declared.check(lr)
        if grad_scale is not None:
            grad_scale = self.options["grad_scale"].check(grad_scale)
            if type(grad_scale) is not float:
                what = "follows all steps; pass it at construction"
                raise TypeError(f"grad_scale: a {type(grad_scale).__name__} {what}")
        return lr, grad_scale

    def _step_of(self, params: Any, asked: tuple[Any, ...]) -> bool:
        """A step of arrays that the client brings: one that fails leaves the old ones bound."""
        with self._lock:
            if self._plan.busy:
                raise RuntimeError(IN_A_CALL)
            before, watched, done = [p.x for p in self._parameters], self._watched, self.iterations
            arrays = self._gather(params, "params")
            others = any(a is not b for a, b in zip(arrays, before, strict=True))
            kept = [(a, a.copy(order="K")) for p in self._parameters for a in p.copies if others]
            try:
                if others:
                    self._require_parameters("step")
                    self._rebind(arrays)
                    self._watch([])
                with self._changing():
                    return self._plan.step(*asked)
            except BaseException:
                if others and self.iterations == done:  # an interrupt may come behind the step
                    self._rebind(before)
                    self._watch(watched)
                    write(kept)
                raise

    def arriving(
        self,
        *,
        lr: float | None = None,
        loss: float | None = None,
        grad_scale: float | None = None,
        clip_norm: Literal["previous"] | None = None,
        report: bool = False,
    ) -> Arriving:
        """A step of each parameter as soon as its gradient is there, while it is in the caches.

            with opt.arriving() as step:
                step("w2", grad_w2)         # steps at once
                step("w1", grad_w1)

        Its settings are those at the opening, its bits those of one `step`. At the end of the block
        the counters move; a parameter that didn't come had no gradient.

        lr, loss, grad_scale, report    as in `step`
        clip_norm    "previous": gradients are scaled by what would have brought the last step's
                     norm to opt.clip_norm, since the norm of this one is known at its end only. The
                     first step, before which none was measured, isn't clipped

        What has stepped stays so if the block is left by an error, and counts; `opt.arrived` has
        the names. Raises ValueError where an option wants all gradients first: clip_norm of all
        without "previous", nonfinite other than "propagate", rules with numbers of all arrays.
        Until the end other calls raise RuntimeError.
        """
        try:
            lr, grad_scale = self._checked_for_step(lr, grad_scale)
            require_no_other_gradients(self, clip_norm)
            self._require_parameters("arriving")
            before = self._plan.last_norm if clip_norm else None
            return Arriving(self, lr, loss, grad_scale, check_flag("report", report), before)
        except (TypeError, ValueError) as error:
            shorten(error)
            raise

    @property
    def arrived(self) -> tuple[str, ...]:
        """The parameters that have stepped in the last `arriving`, in their order."""
        return tuple(self._parameters[i].name for i in self._plan.arrived)

    @property
    def report(self) -> Report | None:
        """How far the last step with report=True that was done went; None where there was none."""
        found = self._plan.report
        if found is None:
            return None
        return Report({self._parameters[i].name: own for i, own in sorted(found)})

    def _recipe(self) -> Recipe:
        """What a step needs, by the present options and settings."""
        self._require_options_that_go_together(self._settings())
        scale: Any = self.grad_scale
        if follows := isinstance(scale, Scale):
            scale = self._read_by_this(scale)
        return Recipe(
            self._groups,
            Options(
                self.ema_decay,
                self.stochastic_rounding,
                self.seed,
                self.subnormals,
                self.zeroes_grad,
            ),
            scale=scale,
            told=scale.update if follows else None,
            limit=self.clip_norm,
            per=self.clip_norm_per,
            counts_rows=self.rows == "counted",
            propagates=self.nonfinite == "propagate",
            undone=weakly(self._leave_undone),
            backend=None if self.backend == "compiled" else Numpy(self._parameters),
            convert=weakly(self._converted) if self.convert else None,
            whole=self._whole,
        )

    def _read_by_this(self, scale: Any) -> Any:
        """A loss scale, of which a shared one keeps the optimizers apart."""
        return scale.reader(self._reports_as) if isinstance(scale, SharedScale) else scale

    def _settings(self) -> list[Settings]:
        """Of each group."""
        return [group.settings for group in self._groups]

    def _require_options_that_go_together(
        self, settings: list[Settings], changed: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """Raises where they don't, with some that are about to change."""
        given = {name: vars(self)[o.key] for name, o in self.options.items()} | {**changed}
        if given["clip_norm"] < math.inf and any(s.form.clips for s in settings):
            raise ValueError("clip_value: not with clip_norm; choose one of the two")
        if given["master"] and given["stochastic_rounding"]:
            raise ValueError("stochastic_rounding: not with master, which needs no chance")
        for s in settings if given["rows"] != "lazy" else ():
            require_rows(s, given["rows"], given["ema"] is not None)
        if isinstance(given["grad_scale"], Scale) and given["nonfinite"] != "skip":
            raise ValueError('grad_scale: a LossScale needs nonfinite="skip"')

    def _match(self, grads: Any, role: str) -> tuple[list[Any], Any]:
        """Gradients in a structure that the plan does not know."""
        found, tree = self._matched(grads, role)
        return found, tree if isinstance(grads, dict | list | tuple) else None

    def _converted(self, number: int, g: Any) -> np.ndarray:
        """A gradient of another type or order, in an array of ours that fits: kept for the next."""
        p = self._parameters[number]
        if p.converted is None:
            p.converted = np.empty_like(p.x, dtype=computing_type(p.x), subok=False)
            if not self._has_converted:
                self._has_converted = True
                warnings.warn(
                    f"{p.labels()[1]}: {described(g)} is converted at each step: one more pass "
                    f"over it, and {p.converted.nbytes} bytes that are kept; {p.kind} needs none",
                    stacklevel=user_level(),
                )
        if isinstance(g, np.ma.MaskedArray):
            raise TypeError(f"{p.labels()[1]}: a masked array, whose mask would be ignored")
        if self.zeroes_grad and any(np.may_share_memory(g, q.x) for q in self._parameters):
            raise ValueError(f"{p.labels()[1]}: overlaps a parameter, and zero_grad writes to it")
        source = np.asarray(g)
        if source.shape != p.x.shape or not (
            source.dtype.kind in "iu" or is_floating(source.dtype)
        ):
            raise ValueError(f"{p.labels()[1]}: {described(g)} can't be converted to {p.kind}")
        if self.zeroes_grad and not (isinstance(g, np.ndarray) and g.flags.writeable):
            raise ValueError(f"{p.labels()[1]}: {described(g)} can't be zeroed; see zero_grad")
        p.converted[...] = source
        return p.converted

    def _require_parameters(self, what: str) -> None:
        """Raises while something else stands where the parameters were."""
        if self._plan.barred:
            raise RuntimeError(f"{what}: {self._plan.barred}")
        if self._plan.arriving:
            raise RuntimeError(f"{what}: gradients are arriving; leave opt.arriving() first")

    def _leave_undone(
        self,
        gradients: list[Any],
        active: list[int],
        overflowing: int | None,
        weights: list[float],
    ) -> None:
        """What is left of a step whose gradients are not finite, or overflow when scaled: which."""
        scale = self.grad_scale
        why = scale.given_up if isinstance(scale, SharedScale) else ""
        if self.nonfinite == "raise" or why:
            if overflowing is None:
                own = [self._parameters[i] for i in active]
                sums = [Given.of(g, weights, p) for g, p in zip(gradients, own, strict=True)]
                bad = [k for k, given in enumerate(sums) if not np.isfinite(given.values).all()]
                if self._whole is not None:
                    bad = [self._whole.first(min(bad, default=len(active)))]
                what = "has elements that are not finite"
            else:
                bad, what = [overflowing], "has elements that overflow when grad_scale divides them"
            names = [self._parameters[active[k]].labels()[1] for k in bad]
            if why:
                raise FloatingPointError(f"{listing(names)}: {what}; {why}")
            raise FloatingPointError(f"{names[0]}: {what}")
        if self.zeroes_grad:  # or a buffer that accumulates would stay infinite
            zero(gradients)
        vars(self)["_skipped_steps"] += 1  # last: an interrupt before it leaves no step to count

    @property
    def skipped_steps(self) -> int:
        """The number of steps that nonfinite="skip" has left undone."""
        return self._skipped_steps

    @property
    def grad_norm(self) -> float | None:
        """The global norm of the last gradients that were measured: see clip_norm, nonfinite."""
        return self._plan.grad_norm

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
        with self._changing():
            for schedule in following.values():
                schedule.observe(metric)

    def _observers(self) -> dict[str, Any]:
        """The schedules that follow a metric, by their place."""
        return observers(group.settings.values for group in self._groups)

    # ---- State

    @property
    def state(self) -> States:
        """Each parameter's finished steps and its live state: `opt.state["w1"]["exp_avg"]`."""
        return States(self._names, self._state_of)

    def _state_of(self, number: int) -> dict[str, Any]:
        """The state of one parameter."""
        p = self._parameters[number]
        kept = (x for first in self._swapped[:1] for q, x in first.weights if q is p)
        return self._counters_of(number) | p.shown(next(kept, p.x))

    def _counters_of(self, number: int) -> dict[str, Any]:
        """What belongs to a parameter beside arrays."""
        with self._lock:
            memory = zip(self.memory, self._plan.memory(number), strict=True)
            return {"step": self._plan.count(number), **dict(memory)}

    @property  # type: ignore[no-redef]
    def ema(self) -> dict[str, np.ndarray]:
        """The running mean of each parameter, live."""
        return {p.name: p.beside["average"] for p in self._parameters if "average" in p.beside}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within a `with`, the parameters hold their means; afterwards the same bits as before.

        Raises ValueError where there are no means, or where a parameter is read-only: before the
        first is written. If one has become read-only within, none comes back; once that is mended,
        another `with opt.averaged()` brings them all back.
        """
        if self.ema_decay is None:
            raise ValueError("ema: no running means; ask for them at construction with ema=")
        own = Averaging()  # which dies with this call, wherever that is interrupted
        try:
            with self._lock:
                if not self._averaging and self._standing() == "averaged":
                    self._swap_back()  # what an interrupt or a read-only array has left undone
                self._averaging.add(own)
                if self._standing() != "averaged":
                    means = [(p, p.beside["average"]) for p in self._parameters]
                    self._swap("averaged", AVERAGED, means)
            yield
        finally:
            self._averaging.discard(own)  # before an interrupt ends the waiting for the lock
            with self._lock:
                if not self._averaging and self._standing() == "averaged":
                    self._swap_back()

    def _standing(self) -> str:
        """What stands where the parameters do."""
        return self._swapped[-1].form if self._swapped else "training"

    def _swap(self, form: str, says: str, values: list[tuple[Parameter, np.ndarray]]) -> None:
        """Puts values in the place of parameters, until `_swap_back`: all of them, or none."""
        if self._plan.arriving:
            self._require_parameters(form)
        for p, _ in values:
            _core.require_parameter(p.x, p.labels()[0])
        swapped = Swapped(form, says, [(p, p.x.copy(order="K")) for p, _ in values])
        barred = self._plan.barred
        with self._changing():
            try:
                self._swapped.append(swapped)
                self._plan.barred = says
                write((p.x, a) for p, a in values)
            except BaseException:  # an interrupt, or no memory
                write((p.x, a) for p, a in swapped.weights)
                self._swapped = [other for other in self._swapped if other is not swapped]
                self._plan.barred = barred
                raise

    def _swap_back(self) -> None:
        """Brings the weights back, with the bits that they had: all of them, or none."""
        for p, _ in self._swapped[-1].weights:
            _core.require_parameter(p.x, p.labels()[0])
        with self._changing():
            write((p.x, a) for p, a in self._swapped[-1].weights)
            self._swapped.pop()
            self._plan.barred = self._swapped[-1].says if self._swapped else ""

    def _resume(self, form: str) -> None:
        """Goes on in the form in which the parameters were when their state was saved."""

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
        return copied(written(self))

    @one_at_a_time
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Differences:
        """Goes on where `state_dict` was taken; callables that are set here stay.

        state_dict   what `state_dict` gave; or what that of the same rule in PyTorch gave: tensors
                     or arrays by the parameters' positions, or by their names where those are
                     PyTorch's param_names. What PyTorch doesn't know is then as it is here
        strict       False: state that is missing starts anew, what has no place here is left out,
                     another floating-point type is cast. So a run goes on with a mean, `amsgrad` or
                     another `state_dtype` switched on or off. Default True: an error

        Returns what started anew, was left out, or was cast. The arrays are copied into this
        optimizer's. Where the parameters held their means, the weights that were kept come back
        into the parameters. Raises TypeError or ValueError that lists what is wrong; nothing has
        changed then.
        """
        self._require_parameters("load_state_dict")
        found = read(self, state_dict, strict)
        require_writeable(self, found)
        assign(self, found)
        return found.differences

    def __getstate__(self) -> dict[str, Any]:
        if self._plan.arriving:
            self._require_parameters("copy")
        own = {k: v for k, v in vars(self).items() if k not in ("_plan", "_lock")}
        own |= {"_files": None, "_state_dir": None}  # a copy has its state in memory
        own["_averaging"] = None
        if self._flat_grads is not None:  # a copy's arrays lie apart
            own |= {"_bound": False, "_flat_grads": None}
        own["_start"] = {k: v for k, v in self._start.items() if k not in self.apart}
        return own | {"moved": self._moved(), "pickled": PICKLED}

    def __setstate__(self, own: dict[str, Any]) -> None:
        if (pickled := own.get("pickled")) != PICKLED:
            raise ValueError(
                f"pickle: in form {pickled!r} of another version of schuss, wanted {PICKLED}; what "
                "lasts longer is schuss.save"
            )
        vars(self).update({k: v for k, v in own.items() if k not in ("moved", "pickled")})
        if not self._bound:
            for p in self._parameters:
                p.g = None
        moved = own["moved"]
        self._plan = _core.Plan()
        self._register(self._parameters)
        self._expect()
        self._plan.restore(*moved)
        self._free()
        self._averaging = WeakSet()
        if self._swapped:
            self._plan.barred = self._swapped[-1].says
        if self._standing() == "averaged":  # there is no `with` that this one could leave
            self._swap_back()

    def __deepcopy__(self, memo: dict[int, Any]) -> Optimizer:
        with self._lock:  # between two steps of another thread
            fresh = object.__new__(type(self))
            memo[id(self)] = fresh
            fresh.__setstate__(copy.deepcopy(self.__getstate__(), memo))
            functions = {k: v for k, v in self._start.items() if k in self.apart and k != "grads"}
            fresh._start |= functions  # which added groups go by
        return fresh

    def __copy__(self) -> Optimizer:
        raise TypeError("copy.copy would share the arrays but not the counters; use copy.deepcopy")

    def __repr__(self) -> str:
        """What differs from the defaults, of the optimizer and of each group."""
        values = {name: vars(self)[o.key] for name, o in self.options.items()}
        own = [f"{k}={v!r}" for k, v in values.items() if self.options[k].differs(v)]
        groups = "".join(
            f"\n  {group!r},"
            if group.rule is type(self)
            else f"\n  {group.rule.__name__}: {group!r},"
            for group in self._groups
        )
        return f"{type(self).__name__}({', '.join(own)}{groups}\n)"


def hand_over(plan: _core.Plan, p: Parameter) -> None:
    """Adds a parameter to a plan; raises where an array of it can't be."""
    plan.add(p.labels(), p.x, p.keeps(), p.g, p.group, p.decays, p.memory, p.case, p.position)


def is_groups(params: Any) -> bool:
    """Whether params is a list of groups, and not a nested structure."""
    return (
        is_sequence(params)
        and len(params) > 0
        and all(isinstance(p, Mapping) and "params" in p for p in params)
    )


def same_bits(x: Any, y: np.ndarray) -> bool:
    """Whether an array is like another one, of the same memory order, to the last bit."""
    if not isinstance(x, np.ndarray) or described(x) != described(y):
        return False
    a, b = (np.asarray(z).ravel(order="K").view(np.uint8) for z in (x, y))
    return np.array_equal(a, b)


def computing_type(x: np.ndarray) -> np.dtype[Any]:
    """What a parameter's step is computed in, and its state stored in unless told otherwise."""
    found: np.dtype[Any] = np.dtype(computing(x.dtype))
    return found


def is_settable(cls: type, name: str) -> bool:
    """Whether instances have an attribute of this name that is set by assignment."""
    found = inspect.getattr_static(cls, name, None)
    if isinstance(found, Hyperparameter | Option):
        return True
    if isinstance(found, property):
        return found.fset is not None
    declared = any(name in vars(c).get("__annotations__", ()) for c in cls.__mro__)
    return (
        declared if found is None else not callable(found) and not isinstance(found, staticmethod)
    )
