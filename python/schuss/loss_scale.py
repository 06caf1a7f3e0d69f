"""A loss scale that follows the gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from schuss.checks import Interval, check_int, unknown, unpacked

__all__ = ["LossScale"]

SCALES = Interval("[1.17549e-38, 1.70142e38]")  # float32 has them, and 1/scale
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
SINCE_0_2 = {"min_scale", "max_scale", "max_consecutive_skips", "consecutive_skips"}


class Course(NamedTuple):
    """What moves."""

    value: float
    good_steps: int = 0
    consecutive_skips: int = 0


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
               no move leads beyond them; defaults 2^-126 and 2^127, outside of which float32 has no
               1/scale
    max_consecutive_skips
               after so many skipped steps in a row, the next one raises FloatingPointError, names
               the gradients that are not finite, and changes nothing; at least 1, or None for no
               limit. Default 1000

    Needs `nonfinite="skip"`. All arguments are attributes that may be set while it runs.

    One scale may serve several optimizers. It moves when it is read, as float(scale) or
    scale.value: once for all steps since it was last read, and down if one of them was skipped. So
    read it where a loss is scaled, and not between the steps that belong to this loss, which divide
    by what was read. Where it isn't read, it moves when an optimizer steps for the second time.

    Source: Micikevicius et al. 2018, arXiv 1710.03740, section 3.2.
    """

    init: float
    growth: float
    backoff: float
    interval: int
    min_scale: float
    max_scale: float
    max_consecutive_skips: int | None
    _course: Course
    _reports: dict[int, bool]  # of the steps since it was read: by optimizer, whether it was done

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
        if not arguments["min_scale"] <= arguments["init"] <= arguments["max_scale"]:
            ends = f"[{arguments['min_scale']}, {arguments['max_scale']}]"
            raise ValueError(f"init: {arguments['init']} is out of range, wanted {ends}")
        vars(self).update(arguments, _course=Course(arguments["init"]), _reports={})

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ARGUMENTS:
            vars(self).update(checked_arguments({**self._arguments(), name: value}))
        elif name == "value":
            super().__setattr__(name, value)
        else:
            raise AttributeError(f"LossScale: {unknown(name, [*ARGUMENTS, 'value'])}")

    def __float__(self) -> float:
        return self.value

    @property
    def value(self) -> float:
        """The scale of the next loss; it moves here, for the steps since it was last read."""
        if self._reports:
            vars(self).update(_course=self._moved())
            self._reports.clear()
        return self._course.value

    @value.setter
    def value(self, value: float) -> None:
        course = self._moved()._replace(value=SCALES.check("value", value))
        vars(self).update(_course=course, _reports={})

    @property
    def good_steps(self) -> int:
        """Good ones in a row, since it last moved."""
        return self._moved().good_steps

    @property
    def consecutive_skips(self) -> int:
        """Skipped ones in a row."""
        return self._moved().consecutive_skips

    @property
    def given_up(self) -> str:
        """Why no more steps may be skipped, or nothing."""
        value, _, skips = self._course
        if self.max_consecutive_skips is None or skips < self.max_consecutive_skips:
            return ""
        return f"{skips} steps in a row were skipped before, and the loss scale is {value:.3g}"

    def update(self, stepped: bool) -> None:
        """Follows a step that was done, or skipped, of a trainer that takes its steps itself."""
        float(self)
        self._reports[0] = stepped

    def reader(self, optimizer: object) -> Reader:
        """What an optimizer has of it."""
        return Reader(self, id(optimizer))

    def _moved(self) -> Course:
        """What it is once the steps since it was last read count."""
        if not self._reports:
            return self._course
        value, good_steps, skips = self._course
        good_steps, skips = (good_steps + 1, 0) if all(self._reports.values()) else (0, skips + 1)
        if skips:
            value *= self.backoff
        elif good_steps >= self.interval:  # above it where the interval has become shorter
            value, good_steps = value * self.growth, 0
        return Course(min(max(value, self.min_scale), self.max_scale), good_steps, skips)

    def _arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ARGUMENTS}

    def state_dict(self) -> dict[str, float | None]:
        """The arguments, and what moves."""
        return {**self._arguments(), **self._moved()._asdict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken, with the same arguments.

        Raises TypeError or ValueError and changes nothing where it can't.
        """
        arguments, course = checked_state(state_dict, self.state_dict())
        vars(self).update(arguments, _course=course, _reports={})

    def __getstate__(self) -> dict[str, Any]:
        return self.state_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        LossScale.__init__(self)
        self.load_state_dict(state)

    def __repr__(self) -> str:
        own = ", ".join(f"{name}={value!r}" for name, value in self.state_dict().items())
        return f"LossScale({own})"


class Reader:
    """A loss scale as one optimizer reads it: what the loss was multiplied by."""

    def __init__(self, scale: LossScale, key: int) -> None:
        self.scale, self.key = scale, key

    def __float__(self) -> float:
        if self.key in self.scale._reports:  # a second step: another iteration
            return self.scale.value
        return self.scale._course.value

    def update(self, stepped: bool) -> None:
        """Follows a step of this optimizer that was done, or skipped."""
        self.scale._reports[self.key] = stepped


def checked_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a LossScale, each in its range, and they go together."""
    found = {}
    for name, check in ARGUMENTS.items():
        found[name] = check(name, given[name])
    low, high = found["min_scale"], found["max_scale"]
    if low > high:
        raise ValueError(f"min_scale: {low} is above max_scale ({high})")
    return found


def checked_state(given: Any, own: Mapping[str, Any]) -> tuple[dict[str, Any], Course]:
    """Arguments and course of a saved LossScale; what 0.1 didn't have is as in the own one."""
    if not isinstance(given, Mapping):
        raise TypeError(f"state_dict: {type(given).__name__}, wanted a mapping")
    wrong = [f"missing {name!r}" for name in own if name not in given and name not in SINCE_0_2]
    wrong += [f"unknown {name!r}" for name in given if name not in own]
    if wrong:
        raise ValueError(f"state_dict: {', '.join(wrong)}")
    whole = {**own, "consecutive_skips": 0, **given}
    course = Course(**{name: check(name, whole[name]) for name, check in MOVING.items()})
    return checked_arguments(whole), course
