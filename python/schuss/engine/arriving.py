"""A step of each parameter as soon as its gradient is there."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Any

from schuss.engine.guard import shorten
from schuss.engine.structure import listing


class Arrival:
    """What `with opt.arriving()` gives: it steps a parameter, whose gradient is there."""

    def __init__(self, opt: Any) -> None:
        self.opt = opt

    def __call__(self, name: str | int, grad: Any) -> None:
        """Steps a parameter, by its name, or its position where none is named so."""
        try:
            self.opt._plan.arrive(self.number(name), grad)
        except (TypeError, ValueError) as error:
            shorten(error)
            raise

    def number(self, name: Any) -> int:
        names: dict[str, int] = self.opt._names
        found = names.get(name if isinstance(name, str) else str(name))
        if found is None and isinstance(name, int) and 0 <= name < len(names):
            return name
        if found is None:
            raise ValueError(f"{name!r}: no parameter; wanted {listing(names)}")
        return found


class Arriving:
    """One `with opt.arriving()`, which nothing outlives.

    The plan closes the step, too, where this is there no more: an interrupt may fall where the
    block begins or ends.
    """

    def __init__(self, opt: Any, *asked: Any) -> None:
        self.opt, self.asked = opt, asked
        self.changing = opt._changing()

    def __enter__(self) -> Arrival:
        try:
            with self.opt._lock:
                self.changing.__enter__()
            self.opt._plan.open(*self.asked, self)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            if isinstance(error, TypeError | ValueError):
                shorten(error)
            raise
        return Arrival(self.opt)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.opt._plan.close(self, kind is not None)
        finally:
            changing, self.changing = self.changing, None
            if changing is not None:
                with self.opt._lock:
                    changing.__exit__(None, None, None)


def require_no_other_gradients(opt: Any, clip_norm: str | None) -> None:
    """Raises where a parameter can't step before all gradients are there."""
    if clip_norm not in (None, "previous"):
        raise ValueError(f'clip_norm: {clip_norm!r}, wanted "previous" or None')
    limits = opt.clip_norm < math.inf and opt.clip_norm_per == "all"
    if limits and not clip_norm:
        raise ValueError(
            "clip_norm: the norm of all gradients is known when all are there; pass "
            'arriving(clip_norm="previous") to go by that of the step before'
        )
    if clip_norm and not limits:
        raise ValueError('clip_norm: "previous" wants opt.clip_norm, and clip_norm_per="all"')
    if opt.nonfinite != "propagate":
        raise ValueError(f"nonfinite: {opt.nonfinite!r} looks at all gradients first")
    for s in opt._settings():
        if s.form.sums and s.rule.shared:
            raise ValueError(f"arriving: {s.rule.__name__} has numbers of all gradients")
