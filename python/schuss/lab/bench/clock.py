"""Turns, and what is taken from their times."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

TURN = 0.002  # seconds that a contestant has to itself
ROUNDS = 5  # at least


class Timed:
    """A step, what has to be done before it, and the times of its turns."""

    def __init__(
        self, step: Callable[[], object], before: Callable[[], object] | None = None
    ) -> None:
        self.step, self.before = step, before
        self.cold: list[float] = []
        self.warm: list[float] = []

    def turn(self) -> None:
        """The first step finds the caches as the others left them, the next ones as it did."""
        taken: list[float] = []
        while len(taken) < 2 or sum(taken) < TURN:
            if self.before:
                self.before()
            start = perf_counter()
            self.step()
            taken.append(perf_counter() - start)
        self.cold.append(taken[0])
        self.warm.append(median(taken[1:]))

    @property
    def seconds(self) -> float:
        return median(self.warm)

    @property
    def spread(self) -> float:
        """The middle half of the turns, relative to the median."""
        low, middle, high = quantiles(self.warm, n=4)
        return (high - low) / middle


def take_turns(order: Sequence[Timed], budget: float, rounds: int = ROUNDS) -> None:
    """Rounds of turns for `budget` seconds, each begun by another contestant."""
    order = list(order)
    collects = gc.isenabled()
    gc.disable()
    try:
        end = perf_counter() + budget
        while perf_counter() < end or len(order[0].warm) < rounds:
            for team in order:
                team.turn()
            order = [*order[1:], order[0]]
    finally:
        if collects:
            gc.enable()


@contextmanager
def processors(number: int) -> Iterator[None]:
    """Gives all threads of the process as many processors, where the system can.

    It's the only limit that XLA's pool of threads knows.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)

    def pin(to: set[int]) -> None:
        for task in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(task.name), to)

    pin(set(sorted(allowed)[-number:]))
    try:
        yield
    finally:
        pin(allowed)
