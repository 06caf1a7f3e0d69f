"""From how many bytes on two threads beat one: `python bench/threshold.py`.

The number belongs into `grain` of cpp/core/threads.cpp, in its currency: the bytes of the arrays
of a step, each counted once. README.md explains the columns.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter

import numpy as np

import schuss
from schuss import _core
from schuss.rules import AdamW

PAUSE = 0.02  # seconds of other work between steps, in which OpenMP's idle threads fall asleep


def seconds(opt: schuss.Optimizer, threads: int, pause: float) -> float:
    with schuss.threads(threads):
        start = perf_counter() + pause
        while perf_counter() < start:
            pass
        start = perf_counter()
        opt.step()
        return perf_counter() - start


def gain(opt: schuss.Optimizer, pause: float, rounds: int) -> float:
    """How many times as fast two threads are, taking turns with one."""
    return median(seconds(opt, 1, pause) / seconds(opt, 2, pause) for _ in range(rounds))


def main() -> None:
    _core.set_grain(1)  # lets two threads take any step
    print(f"{'elements':>9}{'bytes':>12}{'back to back':>14}{'after a pause':>15}")
    for elements in (2**n for n in range(12, 23)):
        x = np.full(elements, 0.5, np.float32)
        opt = AdamW([x], grads=[x.copy()])
        soon, later = gain(opt, 0, rounds=400), gain(opt, PAUSE, rounds=50)
        print(f"{elements:>9}{4 * x.nbytes:>12}{soon:>14.2f}{later:>15.2f}", flush=True)


if __name__ == "__main__":
    main()
