"""A loss scale that follows the gradients."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from schuss.checks import Interval, check_int, shown, unknown, unpacked

__all__ = ["LossScale"]

SCALES = Interval("[1.17549e-38, 1.70142e38]")  # float32 has them, and 1/scale, to 2^-127
COUNTS = 2**53


def limit(name: str, value: Any) -> int | None:
    """A whole number, or None for none."""
    return None if unpacked(value) is None else check_int(name, value, 1)


ARGUMENTS: dict[str, Callable[[str, Any], Any]] = {
    "init": SCALES.check,
    "growth": Interval("(1, inf)").check,
    "backoff": Interval("(0, 1)").check,
    "interval": partial(check_int, low=1),
    "min_scale": SCALES.check,
    "max_scale": SCALES.check,
    "max_consecutive_skips": limit,
}
MOVING: dict[str, Callable[[str, Any], Any]] = {
    "value": SCALES.check,
    "good_steps": partial(check_int, low=0, high=COUNTS),
    "consecutive_skips": partial(check_int, low=0, high=COUNTS),
}
SINCE_0_2 = {"min_scale", "max_scale", "max_consecutive_skips", "consecutive_skips", "pending"}

Course = tuple[float, int, int]  # the members of MOVING
COURSE, OTHERS = "course", "others"  # keys beside those of optimizers


class LossScale:
    """The factor of a loss whose 16-bit gradients shall neither vanish nor overflow.

        opt = schuss.SGD(params, grad_scale=scale, nonfinite="skip")
        loss = model(...) * float(scale);  opt.step(grads)

    A step whose gradients are not finite is skipped, and the scale multiplied by `backoff`; after
    `interval` good steps in a row it is multiplied by `growth`.

    init       in [min_scale, max_scale], default 65536
    growth     above 1, default 2
    backoff    in (0, 1), default 0.5
    interval   good steps, at least 1, default 2000
    min_scale, max_scale
               no move leads beyond them; defaults 2^-126 and 2^127: within, float32 has both the
               scale and 1/scale
    max_consecutive_skips
               after so many skipped steps in a row, the next one raises FloatingPointError, names
               the gradients that are not finite, and changes nothing; at least 1, or None for no
               limit. Default 1000

    Passed at construction, with `nonfinite="skip"`; a step that is told a number as its grad_scale
    isn't followed. All arguments are attributes that may be set while it runs, and a subclass may
    have others.

    One scale may serve several optimizers. It moves when it is read, as float(scale) or
    scale.value: once for all steps since it was last read, and down if one of them was skipped. So
    read it where a loss is scaled, and not between the steps that belong to this loss, which divide
    by what was read. Where it isn't read, it moves when an optimizer steps for the second time.

    A scale of your own has `__float__` and `update(stepped)`, which is called when the step is
    done: where it raises, or an interrupt falls into it, the parameters have moved all the same.

    Source: Micikevicius et al. 2018, arXiv 1710.03740, section 3.2.
    """

    init: float
    growth: float
    backoff: float
    interval: int
    min_scale: float
    max_scale: float
    max_consecutive_skips: int | None
    # COURSE: what it was when it was last read. Else, by the optimizer's key, whether its step
    # since then was done, or None; OTHERS is for steps of none, and of a state that was loaded. One
    # dict, which stays: a step tells it by one call of C, and a move is one call, too, so that an
    # interrupt finds all of it before or after.
    _moving: dict[Any, Any]

    def __init__(
        self,
        init: float = 65536.0,
        growth: float = 2.0,
        backoff: float = 0.5,
        interval: int = 2000,
        *,
        min_scale: float = 2.0**-126,
        max_scale: float = 2.0**127,
        max_consecutive_skips: int | None = 1000,
    ) -> None:
        given = (init, growth, backoff, interval, min_scale, max_scale, max_consecutive_skips)
        arguments = checked_arguments(dict(zip(ARGUMENTS, given, strict=True)))
        require_init_within(arguments)
        vars(self).update(arguments, _moving={COURSE: (arguments["init"], 0, 0)})

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ARGUMENTS:
            arguments = checked_arguments({**self._arguments(), name: value})
            if name == "init":
                require_init_within(arguments)
            vars(self).update(arguments)
        elif name == "value" or type(self) is not LossScale:  # a subclass has its own
            super().__setattr__(name, value)
        else:
            raise AttributeError(f"LossScale: {unknown(name, [*ARGUMENTS, 'value'])}")

    def __float__(self) -> float:
        return self.value

    @property
    def value(self) -> float:
        """The scale of the next loss; it moves here, for the steps since it was last read."""
        course = self._moved()
        if course is not self._moving[COURSE]:
            self._begin(course)
        return course[0]

    @value.setter
    def value(self, value: float) -> None:
        self._begin((SCALES.check("value", value), *self._moved()[1:]))

    @property
    def good_steps(self) -> int:
        """Good ones in a row, since it last moved."""
        return self._moved()[1]

    @property
    def consecutive_skips(self) -> int:
        """Skipped ones in a row."""
        return self._moved()[2]

    @property
    def given_up(self) -> str:
        """Why no more steps may be skipped, or nothing."""
        value, _, skips = self._moving[COURSE]
        if self.max_consecutive_skips is None or skips < self.max_consecutive_skips:
            return ""
        return f"{skips} steps in a row were skipped before, and the loss scale is {value:.3g}"

    def update(self, stepped: bool) -> None:
        """Follows a step that was done, or skipped, of a trainer that takes its steps itself."""
        float(self)
        self._moving[OTHERS] = bool(stepped)

    def reader(self, key: object) -> Reader:
        """What an optimizer has of it; the key is its own, and copied with it."""
        for other in [k for k, stepped in self._moving.items() if stepped is None]:
            self._moving.pop(other, None)  # of an optimizer that may be no more
        return Reader(self, key)

    def _moved(self) -> Course:
        """What it is once the steps since it was last read count."""
        course: Course = self._moving[COURSE]
        value, good_steps, skips = course
        reports = self._moving.values()
        if False in reports:
            value, good_steps, skips = value * self.backoff, 0, min(skips + 1, COUNTS)
        elif True in reports:
            good_steps, skips = good_steps + 1 if good_steps < COUNTS else COUNTS, 0
            if good_steps >= self.interval:  # above it where the interval has become shorter
                value, good_steps = value * self.growth, 0
        else:
            return course
        if value < self.min_scale:
            value = self.min_scale
        elif value > self.max_scale:
            value = self.max_scale
        return value, good_steps, skips

    def _begin(self, course: Course, loaded: bool | None = None) -> None:
        """Goes on from a course: of the steps since only those of a loaded state count."""
        moved: dict[Any, Any] = dict.fromkeys(self._moving)
        moved[OTHERS], moved[COURSE] = loaded, course
        self._moving.update(moved)

    def _pending(self) -> bool | None:
        """Whether all steps since it was last read were done; None where there was none."""
        reports = self._moving.values()
        return False if False in reports else True if True in reports else None

    def _arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ARGUMENTS}

    def state_dict(self) -> dict[str, float | None]:
        """The arguments, what moves, as it was last read, and whether the steps since were done."""
        course = zip(MOVING, self._moving[COURSE], strict=True)
        return {**self._arguments(), **dict(course), "pending": self._pending()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken, with the same arguments.

        Raises TypeError or ValueError and changes nothing where it can't.
        """
        arguments, course, pending = checked_state(state_dict, self.state_dict())
        vars(self).update(arguments)
        if (course, pending) != (self._moving[COURSE], self._pending()):  # else it is there
            self._begin(course, pending)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_moving": dict(self._moving)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        LossScale.__init__(self)
        if "_moving" in state:
            vars(self).update(state)
        else:  # of version 0.1
            self.load_state_dict(state)

    def __repr__(self) -> str:
        own = ", ".join(f"{name}={value!r}" for name, value in self.state_dict().items())
        return f"LossScale({own})"


class Reader:
    """A loss scale as one optimizer reads it: what the loss was multiplied by.

    update   follows a step of this optimizer that was done, or skipped. No Python runs in it, so
             that no interrupt comes between a step and its report
    """

    def __init__(self, scale: LossScale, key: object) -> None:
        self.scale, self.key, self.moving = scale, key, scale._moving
        self.update: Callable[[bool], None] = partial(operator.setitem, scale._moving, key)

    def __float__(self) -> float:
        if self.moving.get(self.key) is not None:  # a second step: another iteration
            return self.scale.value
        value: float = self.moving[COURSE][0]
        return value

    def __reduce__(self) -> Any:
        return Reader, (self.scale, self.key)

    def state_dict(self) -> dict[str, Any]:
        """The scale's, and whether this optimizer's step since it was last read was done."""
        return {**self.scale.state_dict(), "reported": self.moving.get(self.key)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads the scale's; the other optimizers that have reported stay known."""
        given = state_dict
        if isinstance(given, Mapping):
            given = {name: value for name, value in given.items() if name != "reported"}
        reported = flag("reported", state_dict.get("reported")) if given is not state_dict else None
        self.scale.load_state_dict(given)
        self.moving.update({OTHERS: self.scale._pending(), self.key: reported})


def checked_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a LossScale, each in its range, and they go together."""
    found = {}
    for name, check in ARGUMENTS.items():
        found[name] = check(name, given[name])
    low, high = found["min_scale"], found["max_scale"]
    if low > high:
        raise ValueError(f"min_scale: {low} is above max_scale ({high})")
    return found


def require_init_within(arguments: Mapping[str, Any]) -> None:
    """Raises where the first value is beyond the limits."""
    init, low, high = (arguments[name] for name in ("init", "min_scale", "max_scale"))
    if not low <= init <= high:
        raise ValueError(f"init: {init} is out of range, wanted [{low}, {high}]")


def flag(name: str, value: Any) -> bool | None:
    """Whether a step was done; None where there was none."""
    value = unpacked(value)
    if value is None or isinstance(value, bool | np.bool_):
        return None if value is None else bool(value)
    raise TypeError(f"{name}: {shown(value)} is none of True, False and None")


def checked_state(given: Any, own: Mapping[str, Any]) -> tuple[dict[str, Any], Course, bool | None]:
    """Arguments, course and reports of a saved LossScale; what 0.1 didn't have is the own one's."""
    if not isinstance(given, Mapping):
        raise TypeError(f"state_dict: {type(given).__name__}, wanted a mapping")
    wrong = [f"missing {name!r}" for name in own if name not in given and name not in SINCE_0_2]
    wrong += [f"unknown {name!r}" for name in given if name not in own]
    if wrong:
        raise ValueError(f"state_dict: {', '.join(wrong)}")
    whole = {**own, "consecutive_skips": 0, "pending": None, **given}
    value, good_steps, skips = (check(name, whole[name]) for name, check in MOVING.items())
    return checked_arguments(whole), (value, good_steps, skips), flag("pending", whole["pending"])
