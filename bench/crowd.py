"""Steps of many at once on the same processors: `python bench/crowd.py`. README.md explains it.

Exits with 1 where steps with all threads take longer or cost more than with one each, beyond the
spread.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from statistics import median
from time import perf_counter, process_time

import numpy as np
from company import Ratio

import schuss

CROWDS = {  # processes, and Python threads of each with an optimizer of their own
    "alone": (1, 1),
    "2 processes": (2, 1),
    "4 processes": (4, 1),
    "8 Python threads": (1, 8),
}
SIZES = (200_000, 1_000_000)
ROUNDS = 10

SLOWER, DEARER = 1.05, 1.1  # the targets: all threads over one each, in a step's time and its work

Turn = tuple[float, float]  # of a step in a crowd: its time, and that of the processors, in seconds


def turn(members: int, elements: int, threads: int, seconds: float) -> Turn:
    """Steps of all members of a process, as many as each of them makes in this time."""
    schuss.set_num_threads(threads)
    arrays = [[np.full(elements, 0.5, np.float32) for _ in range(2)] for _ in range(members)]
    optimizers = [schuss.AdamW([x], grads=[g], lr=1e-6) for x, g in arrays]
    for opt in optimizers:
        opt.step()
    end = perf_counter() + seconds

    def step_on(opt: schuss.Optimizer) -> float:
        begin, steps = perf_counter(), 0
        while perf_counter() < end:
            opt.step()
            steps += 1
        return (perf_counter() - begin) / max(steps, 1)

    used = process_time()
    with ThreadPoolExecutor(members) as pool:
        times = list(pool.map(step_on, optimizers))
    steps = sum(opt.iterations - 1 for opt in optimizers)
    return median(times), (process_time() - used) / max(steps, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a turn")
    seconds = parser.parse_args().seconds
    every = schuss.get_num_threads()
    print(f"{every} threads, numpy {np.__version__}")
    print(f"{'us a step':28}{'one':>9}{'all':>9}{'all/one':>19}{'processors all/one':>20}")
    missed = 0
    with get_context("spawn").Pool(max(processes for processes, _ in CROWDS.values())) as pool:
        for crowd, (processes, members) in CROWDS.items():
            for elements in SIZES:
                found: dict[int, list[Turn]] = {1: [], every: []}
                for number in range(ROUNDS):
                    for threads in (1, every) if number % 2 else (every, 1):
                        asked = [(members, elements, threads, seconds)] * processes
                        turns = pool.starmap(turn, asked, chunksize=1)
                        found[threads].append(tuple(map(median, zip(*turns, strict=True))))
                (one, cost_of_one), (all_, cost_of_all) = (
                    [list(column) for column in zip(*found[n], strict=True)] for n in (1, every)
                )
                time, cost = Ratio.of(all_, one), Ratio.of(cost_of_all, cost_of_one)
                misses = crowd != "alone" and (time.low > SLOWER or cost.low > DEARER)
                us = "".join(f"{1e6 * median(t):9.0f}" for t in (one, all_))
                name = f"{crowd}, {elements} elem."
                print(f"{name:28}{us}{time!s:>19}{cost!s:>20}{' *' * misses}", flush=True)
                missed += misses
    print(f"{missed} rows miss a target (*)")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
