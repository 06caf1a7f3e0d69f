"""What stands around a public call.

One at a time: of several threads, of a callable within a step, of a forked child. And an error that
shows the user's line, not ours.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakMethod, WeakSet

IN_A_CALL = "re-entered: the optimizer is in the middle of a call of this thread"

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


def shorten(error: BaseException) -> None:
    """Takes our frames out of the traceback of an error that the user's call is about to raise.

    Where it was raised in a callable of the user's all stay: the line at fault is among them.
    """
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    module = last.tb_frame.f_globals.get("__name__", "") if last else ""
    if module.partition(".")[0] == "schuss":
        error.__traceback__ = None


def one_at_a_time(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """A method that other threads wait for, and that its own thread can't enter a second time."""

    @functools.wraps(method)
    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        own: Any = self
        with own._lock:
            if not own._plan.enter():
                raise RuntimeError(IN_A_CALL)
            try:
                return method(self, *args, **kwargs)
            except (TypeError, ValueError) as error:
                shorten(error)
                raise
            finally:
                own._plan.leave()

    return guarded


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Puts Ctrl-C off to the end of a `with`, which must not be done in a part; not a second one.

    It falls in the main thread alone. A handler that is none of Python's stays as it is.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[Any] = []

    def later(*what: Any) -> None:
        came.append(what)
        if len(came) > 1:  # what is waited for may never come
            before(*what)

    signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[0])


@contextmanager
def held(optimizers: Iterable[Any]) -> Iterator[None]:
    """Within a `with`, optimizers wait with their calls: none of this thread's may be in one."""
    with ExitStack() as stack:
        for own in sorted(set(optimizers), key=id):  # in one order, or two threads could wait
            stack.enter_context(own._lock)
            if not own._plan.enter():
                raise RuntimeError(IN_A_CALL)
            stack.callback(own._plan.leave)
        yield


def weakly(method: Callable[P, R]) -> Callable[P, R]:
    """A method for the optimizer's own plan, which so doesn't keep it alive.

    In a circle state would wait for the garbage collector, which doesn't count the bytes of arrays.
    """
    own = WeakMethod(method)

    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        found = own()
        if found is None:
            raise ReferenceError("the optimizer of this step has gone")
        return found(*args, **kwargs)

    return called


alive: WeakSet[Any] = WeakSet()


def free_all() -> None:
    """A lock that another thread held when the process was forked would never be released."""
    for optimizer in list(alive):
        optimizer._free()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=free_all)
