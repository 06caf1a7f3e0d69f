"""From how many bytes on two threads beat one: `python bench/threshold.py`.

The numbers belong into `grain` and `sleepy` of cpp/core/threads.cpp, in their currency: the bytes
of the arrays of a step, each counted once. README.md explains the columns.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import numpy as np

import schuss
from schuss import _core
from schuss.rules import AdamW

PAUSE = 0.02  # seconds of other work between steps, in which the crew falls asleep
X, W = (np.full(shape, 0.5, np.float32) for shape in ((32, 512), (512, 512)))
OUT = np.empty_like(X)


def nothing() -> None:
    pass


def pause() -> None:
    end = perf_counter() + PAUSE
    while perf_counter() < end:
        pass


def products() -> None:
    for _ in range(3):
        np.matmul(X, W, out=OUT)


def seconds(opt: schuss.Optimizer, threads: int, before: Callable[[], None]) -> float:
    with schuss.threads(threads):
        before()
        start = perf_counter()
        opt.step()
        return perf_counter() - start


def gain(opt: schuss.Optimizer, before: Callable[[], None], steps: int) -> float:
    """How many times as fast two threads are, taking turns of so many steps with one."""
    turns = [
        [median(seconds(opt, threads, before) for _ in range(steps)) for threads in (1, 2)]
        for _ in range(5)
    ]
    return median(one / two for one, two in turns)


def main() -> None:
    _core.set_grain(1)  # lets two threads take any step
    columns = f"{'back to back':>14}{'after a pause':>15}{'after products':>16}"
    print(f"{'elements':>9}{'bytes':>12}{columns}")
    for elements in (2**n for n in range(12, 23)):
        places = np.full(2 * elements + 4096, 0.5, np.float32)
        opt = AdamW([places[:elements]], grads=[places[-elements:]])
        soon, later, amid = gain(opt, nothing, 80), gain(opt, pause, 8), gain(opt, products, 20)
        print(
            f"{elements:>9}{16 * elements:>12}{soon:>14.2f}{later:>15.2f}{amid:>16.2f}", flush=True
        )


if __name__ == "__main__":
    main()
