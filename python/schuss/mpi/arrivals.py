"""A step of each bucket as soon as its gradients are there, in all processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np

from schuss.engine.arriving import Arrival
from schuss.engine.guard import shorten, uninterrupted
from schuss.engine.pieces import check_weights, zero
from schuss.engine.spread import everywhere
from schuss.mpi.traffic import AHEAD, Landing, decoded, encoded, landed


class Arrivals:
    """One `with opt.arriving()` of a Sharded: called with a parameter's name and its gradient.

    Buckets go in the reverse of their order, in which gradients come of the last layer first: so
    all processes are at the same one, in whatever order gradients come to each of them.
    """

    def __init__(self, opt: Any, weights: Sequence[float] | None, asked: dict[str, Any]) -> None:
        self.opt, self.weights, self.asked = opt, weights, asked
        self.given: dict[int, np.ndarray] = {}
        self.came: dict[int, Any] = {}  # by number; None where there is none
        self.coming = list(range(len(opt.shares.buckets)))  # of which the last goes next
        self.under_way: deque[Landing] = deque()
        self.is_open = False
        self.failed: BaseException | None = None  # what all processes have raised

    def __enter__(self) -> Arrivals:
        opt = self.opt
        with opt._lock, ExitStack() as stack:
            opt._check_in_turn()
            with everywhere(opt.wire, "arriving"):
                opt._require_whole()
                self.factors = check_weights("processes", opt.wire.size, self.weights)
                stack.enter_context(opt.own.arriving(**self.asked))
                said = opt._said(self.asked, self.factors)
            opt._announce({}, said)
            self.opening = stack.pop_all()
        self.is_open = True
        return self

    def __call__(self, name: str | int, grad: Any) -> None:
        """Takes the gradient of a parameter, by its name or position; it stays until the end."""
        opt = self.opt
        try:
            with opt._lock:
                self.require_open()
                number = Arrival(opt.own).number(name)
                if number in self.came:
                    raise ValueError(f"{name!r}: came already; each parameter steps once")
                if grad is not None:
                    found = opt.whole._plan.examined(grad, number)
                    self.given[number] = opt._flat_gradient(number, found)
                self.came[number] = grad
                while self.coming and self.came.keys() >= {*opt.shares.buckets[self.coming[-1]]}:
                    self.send()
        except (TypeError, ValueError) as error:
            shorten(error)
            raise

    def require_open(self) -> None:
        """Raises outside of the block, and again what all have raised within."""
        if self.failed is not None:
            raise self.failed
        if not self.is_open:
            raise RuntimeError("arriving: the step is closed")

    def point(self) -> str:
        """Where processes agree next."""
        return f"bucket {self.coming[-1]}" if self.coming else "arrived"

    def send(self) -> None:
        """The next bucket's gradients go, and what came of the one before steps."""
        opt, point, bucket = self.opt, self.point(), self.coming.pop()
        numbers = opt.shares.buckets[bucket]
        try:
            opt._all.agree(point)
        except BaseException as error:
            self.failed = error
            raise
        with uninterrupted(), opt._tearing():
            found = opt.wire.gather(encoded(self.given, numbers), fixed=True)
            types = [decoded(data, numbers) for data in found]
            self.under_way.append(opt._traffic.launch(bucket, self.given, types))
            if len(self.under_way) == AHEAD:
                opt._land(landed(self.under_way.popleft()), self.factors)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        opt = self.opt
        self.is_open = False
        with opt._lock:
            try:
                if opt._torn:
                    return
                if error is None and self.failed is not None:  # which somebody has caught within
                    error = self.failed
                    self.drop()
                    raise error
                if error is None:
                    self.finish()
                else:
                    self.give_up(error)
            except BaseException as found:
                error = found
                raise
            finally:
                self.opening.__exit__(None if error is None else type(error), error, None)
                opt._all.raised = None
            if error is None and opt.whole.zeroes_grad:
                zero(self.came.values())

    def finish(self) -> None:
        """What hasn't come has no gradient; all that is under way steps."""
        opt = self.opt
        try:
            while self.coming:
                self.send()
            opt._all.agree(self.point())
        except BaseException:
            self.drop()
            raise
        with uninterrupted(), opt._tearing():
            while self.under_way:
                opt._land(landed(self.under_way.popleft()), self.factors)
            opt._traffic.settle()

    def give_up(self, error: BaseException) -> None:
        """All processes give up at the same bucket; the steps that are done stay."""
        try:
            if error is not self.opt._all.raised:
                self.opt._all.agree(self.point(), error)
        finally:
            self.drop()

    def drop(self) -> None:
        """What is under way comes, and nobody steps by it."""
        if self.opt._torn:
            return
        with uninterrupted(), self.opt._tearing():
            while self.under_way:
                landed(self.under_way.popleft())
            self.opt._traffic.settle()
