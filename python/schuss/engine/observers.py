"""Schedules that follow a metric, and their state, as an optimizer handles them.

A callable follows a metric where it has a method `observe`. Where it has `state_dict` and
`load_state_dict` as well, its state is saved with the optimizer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from schuss.checks import is_number, unpacked


def check_metric(metric: Any) -> float:
    """A number, which may be NaN."""
    metric = unpacked(metric)
    if not is_number(metric):
        raise TypeError(f"metric: {metric!r} is not a number")
    try:
        return float(metric)
    except OverflowError:
        raise ValueError("metric: out of range, for no float is as large") from None


def observers(values: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What follows a metric among the groups' hyperparameters, by its place, such as "0.lr".

    The same object is at several places where it serves several groups or hyperparameters.
    """
    return {
        place: schedule
        for i, group in enumerate(values)
        for name, value in group.items()
        for place, schedule in parts_that_observe(f"{i}.{name}", value)
    }


def parts_that_observe(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A value, if it follows a metric, and those of its parts that do."""
    if callable(getattr(value, "observe", None)):
        yield place, value
    for i, part in enumerate(value if isinstance(value, tuple) else getattr(value, "parts", ())):
        yield from parts_that_observe(f"{place}.{i}", part)


def saved(by_place: Mapping[str, Any]) -> dict[str, Any]:
    """The states of those that have one."""
    return {place: s.state_dict() for place, s in by_place.items() if hasattr(s, "state_dict")}


def load(by_place: Mapping[str, Any], states: Any) -> None:
    """Loads what was saved at the same places: all of it, or nothing."""
    if not isinstance(states, Mapping):
        raise TypeError(f"schedules: {states!r} is not a mapping of states by place")
    before = saved({place: s for place, s in by_place.items() if place in states})
    try:
        for place in before:
            by_place[place].load_state_dict(states[place])
    except BaseException:
        for place, state in before.items():
            by_place[place].load_state_dict(state)
        raise
