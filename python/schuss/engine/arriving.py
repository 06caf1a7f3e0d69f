"""A step of each parameter as soon as its gradient is there."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol

from schuss.engine.guard import shorten
from schuss.engine.structure import listing


class Arrival(Protocol):
    """Steps a parameter, by its name or its position, with its gradient."""

    def __call__(self, name: str | int, grad: Any, /) -> None: ...


class Arriving:
    """One `with opt.arriving()`; where nobody holds it any more, the plan closes the step, too."""

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
        return self.arrive

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

    def arrive(self, name: str | int, grad: Any) -> None:
        """Steps one parameter, by its name, or its position where none is named so."""
        try:
            self.opt._plan.arrive(self.number(name), grad)
        except (TypeError, ValueError) as error:
            shorten(error)
            raise

    def number(self, name: Any) -> int:
        names: dict[str, int] = self.opt._names
        found = names.get(name) if isinstance(name, str) else names.get(str(name))
        if found is None and isinstance(name, int) and 0 <= name < len(names):
            return name
        if found is None:
            raise ValueError(f"{name!r}: no parameter; wanted {listing(names)}")
        return found
