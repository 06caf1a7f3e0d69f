"""The steps after an ordinary one, while nothing but the step count changes.

A training loop sets nothing between most of its steps. Then the scalars of the stages stay, those
of the rule follow from the count, and a step of a small array costs about three of its additions.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from schuss import _core
from schuss.groups import Group, Settings
from schuss.scalars import NAMES
from schuss.structure import Tree


class Part:
    """The arrays that share a set of scalars: their hyperparameters, and how their count lags."""

    __slots__ = ("h", "offset", "read", "scalars")

    def __init__(self, settings: Settings, h: Mapping[str, Any], decays: bool, offset: int) -> None:
        self.h = h if decays else {**h, "weight_decay": 0.0}
        self.offset = offset  # of the coming step's t, from the number of finished steps
        self.scalars = settings.rule.scalars
        self.read = reader(NAMES[settings.kernel])


class Clip(NamedTuple):
    """What becomes of gradients by their norm."""

    limit: float
    scale: float  # without clipping: 1/grad_scale
    propagates: bool  # whether a step with a gradient that is not finite is an ordinary one

    def factor(self, squares: float) -> tuple[float, float]:
        """The norm of the scaled gradients, and what the raw ones are multiplied by."""
        norm = math.sqrt(squares) * self.scale
        if self.limit == math.inf:  # the norm may be infinite, too, of finite gradients
            return norm, self.scale
        share = self.limit / (norm + 1e-6)
        return norm, self.scale if share > 1.0 else self.scale * share


class Steady:
    """A step like the last one, as long as groups have the settings that it had."""

    __slots__ = ("again", "clip", "flat", "groups", "norm", "norm_again", "now", "parts")

    def __init__(
        self,
        plan: _core.Plan,
        groups: tuple[Group, ...],
        settings: list[Settings],
        parts: list[Part],
        trees: list[Tree],
        clip: Clip | None,
        now: int,
    ) -> None:
        self.again, self.norm_again = plan.again, plan.norm_again
        self.clip = clip
        self.norm: float | None = None  # of the last step's gradients
        self.groups = tuple(zip(groups, settings, strict=True))
        self.parts = parts
        self.flat = flattener(trees)
        self.now = now

    def step(self, grads: Any) -> bool:
        """Steps, or returns False and has done nothing: then the optimizer starts anew."""
        for group, settings in self.groups:
            if group.settings is not settings:
                return False
        flat = None
        if grads is not None:
            flat = self.flat(grads)
            if flat is None:
                return False
        now, scale = self.now, None
        if self.clip is not None:
            measured = self.norm_again(now, flat)
            if measured is None or not (measured[1] or self.clip.propagates):
                return False
            self.norm, scale = self.clip.factor(measured[0])
        rules = [part.read(part.scalars(part.h, now + part.offset)) for part in self.parts]
        # The plan, which counts with the data, is asked whether `now` is right: an interrupt may
        # have come between its step and this line's end.
        now = self.again(now, rules, flat, scale)
        if now < 0:
            return False
        self.now = now
        return True


def reader(names: tuple[str, ...]) -> Callable[[Mapping[str, float]], tuple[float, ...]]:
    """A function that takes these values of a mapping, as a tuple."""
    if len(names) == 1:
        (name,) = names
        return lambda values: (values[name],)
    return operator.itemgetter(*names)


def flattener(trees: list[Tree]) -> Callable[[Any], Any]:
    """A function that brings gradients of params' structure into order, or None where it can't."""
    (tree, *more) = trees
    if not more and isinstance(tree, list) and all(isinstance(inner, int) for inner in tree):
        return lambda grads: grads  # whose length the plan looks at
    if not more and isinstance(tree, dict) and all(isinstance(v, int) for v in tree.values()):
        read, size = reader(tuple(tree)), len(tree)

        def values(grads: Any) -> Any:
            if type(grads) is not dict or len(grads) != size:
                return None
            try:
                return read(grads)
            except KeyError:
                return None

        return values
    return lambda grads: None
