"""Steps for trainers that go array by array, each under a key of its own.

step = schuss.Keyed(schuss.Adam, lr=1e-3)
step("w1", w1, grad_w1)         # steps at once; what Adam remembers of w1 is made here
step("b1", b1, grad_b1)
step.tick()                     # a batch is over, for schedules
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from schuss import _core
from schuss.checks import check_int, check_remembered
from schuss.engine.declare import Scale
from schuss.engine.groups import Parameter
from schuss.engine.guard import IN_A_CALL, shorten
from schuss.engine.optimizer import LATE, Optimizer
from schuss.engine.saved import MOST, Differences, is_array
from schuss.engine.structure import described, label, listing

# What of the optimizer behind it is a Keyed's, too, beside its options.
SHOWN = ("current_learning_rate", "grad_norm", "nbytes", "observe", "param_groups", "skipped_steps")

BESIDE = {"master": "master", "ema": "average"}  # what is no state of the rule, and its role

Members = dict[Hashable, tuple[Parameter, int]]


class Waiting(NamedTuple):
    """State of a key that hasn't come yet."""

    values: Mapping[str, Any]
    adopted: bool  # whether its arrays are to be used themselves


class Own:
    """What a Keyed consists of.

    It has this apart, since a class that looks up options as attributes finds all others more
    slowly, too, and a call for a small array is as long as thirty of these.
    """

    __slots__ = ("alone", "members", "opt", "rate", "waiting")

    def __init__(self, opt: Optimizer, members: Members, waiting: dict[str, Waiting]) -> None:
        self.opt, self.members, self.waiting = opt, members, waiting
        self.alone = opt._plan.alone
        self.rate: float | None = None  # the last one that was found good


class ByKey(Mapping[Any, Any]):
    """Something of each key, in the order in which they came."""

    def __init__(self, members: Members, of: Callable[[Parameter, int], Any]) -> None:
        self.members, self.of = members, of

    def __getitem__(self, key: Any) -> Any:
        return self.of(*self.members[key])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        return repr(dict(self))


class Keyed:
    """Steps one array at a time, each under a key; a key may come at any time.

        keyed(key, x, g)        x and the state of key become what a step of the rule makes of them

    rule       a class of a rule, such as schuss.Adam
    options    as the class takes them, but for `grads` and `state_dir`; clip_norm limits each array
               by itself, no_decay is asked by the key's name

    Each key has a count of its own, by which a rule corrects its start. Schedules go by a clock
    that the caller moves, at first 0: `keyed.tick()`, or `keyed.iterations = n`. Options are live:
    `keyed.lr = 0.1`. Raises TypeError or ValueError where the options can't be, or the rule has
    numbers of all arrays (Prodigy ...) or reads the loss.
    """

    _own: Own

    def __init__(self, rule: type[Optimizer], **options: Any) -> None:
        if not (isinstance(rule, type) and issubclass(rule, Optimizer)):
            raise TypeError(f"rule: {rule!r}, wanted a class of a rule, such as schuss.Adam")
        for name in ("params", "grads", "state_dir"):
            if options.get(name) is not None:
                raise TypeError(f"{name}: not with keys, whose arrays come one by one")
        require_number("grad_scale", options.get("grad_scale"))
        try:
            opt = rule(LATE, **options)
            require_no_totals(opt)
        except (TypeError, ValueError) as error:
            shorten(error)
            raise
        vars(self)["_own"] = Own(opt, {}, {})

    def __call__(
        self,
        key: Hashable,
        x: np.ndarray,
        g: Any,
        lr: float | None = None,
        *,
        step: int | None = None,
        grad_scale: float | None = None,
    ) -> bool:
        """Steps one array, in place; True when it did, False where nonfinite="skip" left it undone.

        key          what can be a key of a dict
        x            the array (written): another one than before may come in its place, of the same
                     shape, type and memory order
        g            its gradient, or schuss.Rows of it
        lr           the learning rate of this step. Not given: the option's
        step         which step of the key this is, 1 first. Not given: one more than its last
        grad_scale   the loss scale of this step. Not given: the option's

        Raises TypeError or ValueError that name the key or the argument; nothing has changed then,
        and a key that came for the first time is unknown again. Whether arrays of different keys
        share memory is not looked at.
        """
        try:
            own = self._own
            if lr is not own.rate or grad_scale is not None:
                rate, grad_scale = own.opt._checked_for_step(lr, grad_scale)
                own.rate = lr if type(lr) is float else None
                lr = rate
            if step is not None:
                step = check_int("step", step, 1, MOST) - 1
            member = own.members.get(key)
            if member is None:
                return self._first(key, x, g, lr, grad_scale, step)
            p, number = member
            return own.alone(p, number, x, g, lr, grad_scale, step)
        except (TypeError, ValueError) as error:
            shorten(error)
            raise

    def _first(self, key: Hashable, x: Any, g: Any, lr: Any, grad_scale: Any, step: Any) -> bool:
        """The first step of a key."""
        own, name = self._own, name_of(key)
        opt, plan = own.opt, own.opt._plan
        with opt._lock:
            if plan.busy:
                raise RuntimeError(IN_A_CALL)
            while len(opt._parameters) > len(own.members):  # interrupted as it was taken in
                opt._dismiss()
            if name in opt._names:
                raise ValueError(f"key: {key!r} is named {name}, as another key is")
            _core.require_parameter(x, label("params", name))
            number, waiting, done = opt._admit(name, x), own.waiting.get(name), False
            try:
                if waiting:
                    self._take(number, waiting)
                if step is not None:
                    plan.set_count(number, step, plan.memory(number))
                p, before = opt._parameters[number], plan.count(number)
                own.members[key] = p, number  # now: behind the step an interrupt may fall
                own.waiting.pop(name, None)
                done = own.alone(p, number, x, g, lr, grad_scale, None)
            finally:
                if not done and not (key in own.members and plan.count(number) > before):
                    own.members.pop(key, None)
                    opt._dismiss()
                    if waiting:
                        own.waiting[name] = waiting
        return done

    def __contains__(self, key: object) -> bool:
        """Whether a key has come."""
        return key in self._own.members

    # ---- The clock

    @property
    def iterations(self) -> int:
        """What schedules go by: the batches that are over, as the caller says."""
        return self._own.opt.iterations

    @iterations.setter
    def iterations(self, n: int) -> None:
        with self._own.opt._lock:
            self._own.opt._plan.iterations = check_int("iterations", n, 0, MOST)

    def tick(self) -> None:
        """Moves the clock on by one: a batch is over."""
        with self._own.opt._lock:
            self._own.opt._plan.iterations += 1

    # ---- State

    @property
    def state(self) -> Mapping[Any, dict[str, Any]]:
        """Each key's finished steps and its live state: `keyed.state["w1"]["exp_avg"]`."""
        own = self._own
        return ByKey(own.members, lambda _, number: own.opt._state_of(number))

    @property
    def ema(self) -> Mapping[Any, np.ndarray]:
        """The running mean of each key's array, live."""
        own = self._own
        has: Members = {} if own.opt.ema_decay is None else own.members
        return ByKey(has, lambda p, _: p.beside["average"])

    def adopt(self, key: Hashable, **state: Any) -> None:
        """Takes state of the caller's: the arrays themselves are stepped, in place, from now on.

        state    by the names in `keyed.state`: arrays of the shape and memory order of the key's;
                 step, its finished steps; numbers that the rule remembers. What is not given stays,
                 or begins as it always does

        For a key that hasn't come it waits, and is looked at when the key comes. Otherwise raises
        TypeError or ValueError that name what is wrong; nothing has changed then.
        """
        own = self._own
        try:
            states = {name for s in own.opt._settings() for name in s.states}
            known = ["step", *own.opt.memory, *sorted(states), *BESIDE]
            if unknown := [name for name in state if name not in known]:
                raise TypeError(f"{listing(unknown)}: unknown; wanted some of {listing(known)}")
            with own.opt._lock:
                if key in own.members:
                    number = own.members[key][1]
                    self._take(number, Waiting(state, adopted=True))
                    own.members[key] = own.opt._parameters[number], number
                else:
                    own.waiting[name_of(key)] = Waiting(state, adopted=True)
        except (TypeError, ValueError) as error:
            shorten(error)
            raise

    def _take(self, number: int, found: Waiting) -> None:
        """Gives a parameter state that there is already."""
        opt, given = self._own.opt, found.values
        p, plan = opt._parameters[number], opt._plan
        count = check_int("step", given.get("step", plan.count(number)), 0, MOST)
        memory = [
            check_remembered(name, given.get(name, now), opt.ranges.get(name, "[-inf, inf]"))
            for name, now in zip(opt.memory, plan.memory(number), strict=True)
        ]
        arrays = {k: a for k, a in given.items() if k != "step" and k not in opt.memory}
        if found.adopted:
            beside = {BESIDE[name]: a for name, a in arrays.items() if name in BESIDE}
            state = {name: a for name, a in arrays.items() if name not in BESIDE}
            if lost := [*(state.keys() - p.state.keys()), *(beside.keys() - p.beside.keys())]:
                raise ValueError(f"{label('state', p.name)}: {listing(lost)} is not kept here")
            opt._replace(
                number, replace(p, state={**p.state, **state}, beside={**p.beside, **beside})
            )
        else:
            fill(p, arrays)
        plan.set_count(number, count, memory)

    def state_dict(self) -> dict[str, Any]:
        """A copy of what a resumed run needs, by name: numbers and arrays.

        A key that is a string is its own name, another one is named by its repr.
        """
        own = self._own
        with own.opt._lock:
            found = own.opt.state_dict()
            waiting = {k: dict(w.values) for k, w in own.waiting.items() if not w.adopted}
        return {**found, "state": {**found["state"], **waiting}}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Differences:
        """Goes on where `state_dict` was taken; state of keys that are to come waits for them.

        state_dict   what `state_dict` gave
        strict       as in Optimizer.load_state_dict, for keys that have come

        Raises TypeError or ValueError that lists what is wrong; nothing has changed then.
        """
        own = self._own
        try:
            with own.opt._lock:
                here, waiting = divided(state_dict, own.opt._names)
                differences = own.opt.load_state_dict(here, strict)
                own.waiting = waiting
        except (TypeError, ValueError) as error:
            shorten(error)
            raise
        return differences

    def __getstate__(self) -> dict[str, Any]:
        opt = self._own.opt
        functions = {name: opt._start[name] for name in opt.apart if name in opt._start}
        members, waiting = self._own.members, self._own.waiting
        return {"opt": opt, "members": members, "waiting": waiting, "functions": functions}

    def __setstate__(self, own: dict[str, Any]) -> None:
        own["opt"]._start |= own["functions"]  # by which keys to come are taken in
        vars(self)["_own"] = Own(own["opt"], own["members"], own["waiting"])

    # ---- Options, live

    def __getattr__(self, name: str) -> Any:
        opt = vars(self)["_own"].opt if "_own" in vars(self) else None  # while it is unpickled
        if opt is not None and name in opt.options:
            return vars(opt)[opt.options[name].key]
        if opt is not None and (name in opt.hyperparameters or name in SHOWN):
            return getattr(opt, name)
        raise AttributeError(f"{name}: no attribute of Keyed, and no option of its rule")

    def __setattr__(self, name: str, value: Any) -> None:
        opt = self._own.opt
        if name == "iterations":
            object.__setattr__(self, name, value)
        elif name in opt.hyperparameters or name in opt.options:
            if name == "grad_scale":
                require_number(name, value)
            setattr(opt, name, value)
        else:
            raise AttributeError(f"{name}: no option of {type(opt).__name__}")

    def __repr__(self) -> str:
        own = self._own
        return f"Keyed({type(own.opt).__name__}, keys: {listing(map(repr, own.members)) or 'none'})"


def name_of(key: Hashable) -> str:
    """How messages and saved state name a key."""
    return key if isinstance(key, str) else repr(key)


def require_number(name: str, scale: Any) -> None:
    """Raises where a loss scale would follow steps of single arrays."""
    if isinstance(scale, Scale) and not isinstance(scale, int | float):
        raise TypeError(f"{name}: {type(scale).__name__} follows whole steps; pass a number")


def require_no_totals(opt: Optimizer) -> None:
    """Raises where an array can't step without the others."""
    for s in opt._settings():
        if s.form.reads_loss or (s.form.sums and s.rule.shared):
            what = "reads the loss" if s.form.reads_loss else "has numbers of all arrays"
            raise ValueError(f"rule: {s.rule.__name__} {what}; step all arrays in one call")


def divided(state_dict: Any, names: Mapping[str, int]) -> tuple[Any, dict[str, Waiting]]:
    """What a state dictionary says of keys that are here, and copies of what it says of others."""
    try:
        state, groups = state_dict["state"], state_dict["param_groups"]
        here = {name: own for name, own in state.items() if name in names}
        groups = [
            {
                k: [n for n in v if n in names] if k in ("params", "no_decay") else v
                for k, v in group.items()
            }
            for group in groups
        ]
        waiting = {
            name: Waiting({k: v.copy() if is_array(v) else v for k, v in own.items()}, False)
            for name, own in state.items()
            if name not in names
        }
    except (TypeError, KeyError, AttributeError):
        raise TypeError("state_dict: wanted what Keyed.state_dict gave") from None
    return {**state_dict, "state": here, "param_groups": groups}, waiting


def fill(p: Parameter, values: Mapping[str, Any]) -> None:
    """Writes what was saved into a parameter's own state: all of it, or none."""
    wrong = [f"missing {key}" for key in p.saved if key not in values]
    wrong += [f"unknown {key}" for key in values if key not in p.saved]
    wrong += [
        f"{key}: {described(values[key])}, wanted {described(own)}"
        for key, own in p.saved.items()
        if key in values and described(values[key]) != described(own)
    ]
    if wrong:
        raise ValueError(f"state_dict: {p.name!r}: {listing(wrong, '; ')}")
    for key, own in p.saved.items():
        own[...] = values[key]
