"""A step of the sum of several gradients: `python bench/pieces.py [--elements N ...]`.

AdamW in float32 takes its gradient in 2, 4 or 8 pieces, beside sums in NumPy before a bound step,
as they are written with `out=`. Then the sum alone: `schuss.average` beside what NumPy has. All
give the same bits first, or the same numbers where NumPy sums in another order or type. README.md
explains the tables.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

import schuss
from schuss.engine.memory import room
from schuss.lab.bench.clock import Timed, take_turns
from schuss.lab.bench.report import processor

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)
KINDS = {"float32": FLOAT32, "bfloat16": BFLOAT16}
STEPS = 3  # before answers are compared

Step = Callable[[], object]


def zeros(elements: int, *dtypes: np.dtype[Any]) -> list[np.ndarray]:
    """Arrays that begin at places of their own in their pages: see memory.room."""
    first = np.zeros(elements, FLOAT32)
    found = [room(first, dtype, place) for place, dtype in enumerate(dtypes)]
    for a in found:
        a.fill(0)  # touched before anything is timed
    return found


def pieces(elements: int, number: int, dtype: np.dtype[Any]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    parts = zeros(elements, *[dtype] * number)
    for g in parts:
        g[...] = rng.standard_normal(elements, np.float32)
    return parts


def row(name: str, seconds: float, elements: int, moved: int, first: float) -> None:
    ns = 1e9 * seconds / elements
    cells = f"{1e6 * seconds:>10.1f}{ns:>9.3f}{moved:>7}{moved / ns:>7.1f}{seconds / first:>7.2f}"
    print(f"{name:28}{cells}", flush=True)


def table(title: str, contestants: dict[str, tuple[Step, int]], elements: int, s: float) -> None:
    """Times of all, in turn: each a step, and the bytes that it moves for an element."""
    teams = {name: Timed(step) for name, (step, _) in contestants.items()}
    take_turns(list(teams.values()), s)
    print(f"\n{title}\n{'':28}{'us':>10}{'ns/elem':>9}{'bytes':>7}{'GB/s':>7}{'ratio':>7}")
    first = next(iter(teams.values())).seconds
    for name, (_, moved) in contestants.items():
        row(name, teams[name].seconds, elements, moved, first)


# ---- Steps


def of_pieces(x: np.ndarray, parts: list[np.ndarray]) -> Step:
    opt, given = schuss.AdamW([x]), [[g] for g in parts]
    return lambda: opt.step(pieces=given)


def summed(x: np.ndarray, parts: list[np.ndarray]) -> Step:
    """A sum in place, which the step itself divides."""
    total = np.zeros_like(x)
    opt = schuss.AdamW([x], grads=[total])

    def step() -> None:
        np.add(parts[0], parts[1], out=total, dtype=np.float32)
        for g in parts[2:]:
            np.add(total, g, out=total, dtype=np.float32)
        opt.step(grad_scale=len(parts))

    return step


def meant(x: np.ndarray, parts: list[np.ndarray]) -> Step:
    """As it is written first: a new array, of all pieces at once."""
    opt = schuss.AdamW([x])
    return lambda: opt.step([np.mean(parts, axis=0, dtype=np.float32)])


def steps(elements: int, number: int, dtype: np.dtype[Any], title: str, seconds: float) -> None:
    parts, read = pieces(elements, number, dtype), number * dtype.itemsize
    start = np.linspace(-1, 1, elements, dtype=np.float32)
    # x, m and v take 24 bytes. np.mean copies its pieces first, which is twice their bytes more.
    ways: dict[str, tuple[Callable[[np.ndarray, list[np.ndarray]], Step], int]] = {
        "pieces": (of_pieces, 24 + read),
        "sum in place, step": (summed, 24 + read + 4 + 8 * (number - 2) + 4),
        "np.mean, step": (meant, 24 + 3 * read + 4 + 4),
    }
    contestants: dict[str, tuple[Step, int]] = {}
    answers: list[np.ndarray] = []
    for name, (make, moved) in ways.items():
        x = start.copy()
        step = make(x, parts)
        for _ in range(STEPS):
            step()
        answers.append(x.copy())
        contestants[name] = step, moved
    # Division by a power of two doesn't round, so that the bits are those of any order of it.
    if any(a.tobytes() != answers[0].tobytes() for a in answers[1:]):
        sys.exit(f"{title}: the weights differ")
    alone = schuss.AdamW([start], grads=[parts[0]])
    contestants["one gradient"] = alone.step, 24 + dtype.itemsize
    table(title, contestants, elements, seconds)


# ---- The sum alone


def averages(elements: int, number: int, dtype: np.dtype[Any], title: str, seconds: float) -> None:
    """Weighted, into an array that is there."""
    parts, read = pieces(elements, number, dtype), number * dtype.itemsize
    weights = (np.linspace(0.5, 1.5, number) / number).tolist()
    ours, result, total, product = zeros(elements, dtype, dtype, FLOAT32, FLOAT32)

    def in_place() -> None:
        np.multiply(parts[0], np.float32(weights[0]), out=total, dtype=np.float32)
        for w, g in zip(weights[1:], parts[1:], strict=True):
            np.multiply(g, np.float32(w), out=product, dtype=np.float32)
            np.add(total, product, out=total)
        result[...] = total

    def by_numpy() -> np.ndarray:
        found: np.ndarray = np.average(parts, axis=0, weights=weights)
        return found

    def by_us() -> object:
        return schuss.average(parts, weights, out=ours)

    by_us()
    in_place()
    if ours.tobytes() != result.tobytes():
        sys.exit(f"{title}: schuss.average and NumPy differ")
    if not np.allclose(ours.astype(float), sum(weights) * by_numpy(), 1e-2, 1e-2):
        sys.exit(f"{title}: schuss.average and np.average differ")  # which divides by their sum
    contestants: dict[str, tuple[Step, int]] = {
        "schuss.average": (by_us, read + dtype.itemsize),
        "in place": (in_place, read + 4 + 16 * (number - 1) + 4 + dtype.itemsize),
        "np.average": (by_numpy, 3 * read + 2 * 8 * number + 8),
    }
    table(title, contestants, elements, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, nargs="+", default=[4096, 65536, 1 << 20, 1 << 24])
    parser.add_argument("--pieces", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=0.5, help="of a table")
    asked = parser.parse_args()

    print(f"{processor()}, {schuss.show_config()['isa']['chosen']}, numpy {np.__version__}")
    for run in (steps, averages):
        for threads in asked.threads:
            schuss.set_num_threads(threads)
            for kind in asked.kind:
                for elements in asked.elements:
                    for number in asked.pieces:
                        title = (
                            f"{run.__name__}, {number} of {elements} in {kind}, threads: {threads}"
                        )
                        run(elements, number, KINDS[kind], title, asked.seconds)


if __name__ == "__main__":
    main()
