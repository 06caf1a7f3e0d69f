"""A step with known bits, for the code that the good-guest tests run in processes of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.random import default_rng

import schuss
from schuss import _core

_core.set_grain(1)  # small arrays use threads

SIZES = (3, 5 * 4096 + 7, 4097)


class Trial:
    """An optimizer of random arrays whose gradients stay the same."""

    def __init__(
        self,
        rule: type[schuss.Optimizer] = schuss.AdamW,
        *,
        sizes: Sequence[int] = SIZES,
        seed: int = 0,
        **options: Any,
    ) -> None:
        random = default_rng(seed)
        self.params, self.grads = (
            [random.standard_normal(n, dtype=np.float32) for n in sizes] for _ in range(2)
        )
        self.optimizer = rule(self.params, **options)

    def step(self, times: int = 1) -> Trial:
        for _ in range(times):
            self.optimizer.step(self.grads)
        return self

    @property
    def bits(self) -> bytes:
        """All that steps write."""
        return bits(self.optimizer.state_dict(), self.params)


def bits(state_dict: dict[str, Any], params: Sequence[np.ndarray] = ()) -> bytes:
    states = [value for s in state_dict["state"].values() for value in s.values()]
    return b"".join(np.asarray(a).tobytes() for a in (*params, *states))


def check(threads: int) -> None:
    """Steps have the right bits and are made by so many threads."""
    _core.widest_region()
    assert Trial().step(2).bits == Trial(backend="numpy").step(2).bits
    assert (_core.widest_region() or 1) == threads


@contextmanager
def together(*work: Callable[[], object]) -> Iterator[None]:
    """Does each work in a thread of its own until the end of a `with`, and waits for all."""
    with ThreadPoolExecutor(len(work)) as pool:
        results = [pool.submit(w) for w in work]
        yield
    for result in results:
        result.result()


def forked(work: Callable[..., object], *arguments: object) -> None:
    """Does the work in a forked child, which has to exit as any interpreter does."""
    child = os.fork()
    if child == 0:
        work(*arguments)
        sys.exit()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
