"""What a step under a key costs: `python bench/keyed.py [--elements N ...] [--keys N ...]`.

Adam in float32, array by array, a rate with each call, one thread: `schuss.Keyed`, stateless calls
with the same state, Adam in NumPy as trainers write it, `np.add` of the same arrays, and one step
of all of them by an optimizer. All but the addition have to move the arrays alike first. README.md
explains the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import schuss
from schuss.lab.bench.clock import Timed, take_turns
from schuss.lab.bench.report import processor

LR, BETAS, EPS = 1e-3, (0.9, 0.999), 1e-8
STEPS = 3  # before answers are compared
KEYED, ADD, BOUND = "Keyed", "np.add", "a whole step"


class Arrays:
    """Arrays and their gradients, under keys as a trainer has them."""

    def __init__(self, keys: int, elements: int) -> None:
        rng = np.random.default_rng(0)
        x, g = rng.standard_normal((2, keys, elements), np.float32)
        self.all = [
            ((i, "W"), a.copy(), b.copy()) for i, (a, b) in enumerate(zip(x, g, strict=True))
        ]

    @property
    def answer(self) -> list[np.ndarray]:
        return [x for _, x, _ in self.all]


def keyed(arrays: Arrays) -> Callable[[], Any]:
    step = schuss.Keyed(schuss.Adam, betas=BETAS, eps=EPS)

    def batch() -> None:
        for key, x, g in arrays.all:
            step(key, x, g, LR)

    return batch


def functional(arrays: Arrays) -> Callable[[], Any]:
    state = {key: [np.zeros_like(x), np.zeros_like(x), 0] for key, x, _ in arrays.all}
    adam: Any = schuss.functional.adam

    def batch() -> None:
        for key, x, g in arrays.all:
            own = state[key]
            own[2] += 1
            adam(x, g, own[0], own[1], step=own[2], lr=LR)

    return batch


def numpy(arrays: Arrays) -> Callable[[], Any]:
    state: dict[Any, list[Any]] = {}

    def batch() -> None:
        for key, x, g in arrays.all:
            own = state.setdefault(key, [np.zeros_like(x), np.zeros_like(x), 0])
            own[2] += 1
            t = own[2]
            own[0] = BETAS[0] * own[0] + (1 - BETAS[0]) * g
            own[1] = BETAS[1] * own[1] + (1 - BETAS[1]) * g**2
            mean, square = own[0] / (1 - BETAS[0] ** t), own[1] / (1 - BETAS[1] ** t)
            np.subtract(x, LR * mean / (np.sqrt(square) + EPS), out=x)

    return batch


def add(arrays: Arrays) -> Callable[[], Any]:
    def batch() -> None:
        for _, x, g in arrays.all:
            np.add(x, g, out=x)

    return batch


def whole(arrays: Arrays) -> Callable[[], Any]:
    opt = schuss.Adam(arrays.answer, lr=LR, betas=BETAS, eps=EPS)
    grads = [g for _, _, g in arrays.all]
    return lambda: opt.step(grads, lr=LR)


WAYS: dict[str, Callable[[Arrays], Callable[[], Any]]] = {
    KEYED: keyed,
    "functional": functional,
    "NumPy": numpy,
    BOUND: whole,
    ADD: add,
}


def check(keys: int, elements: int) -> None:
    """Ours end on the same bits, and NumPy beside them."""
    answers = {}
    for name in WAYS.keys() - {ADD}:
        arrays = Arrays(keys, elements)
        batch = WAYS[name](arrays)
        for _ in range(STEPS):
            batch()
        answers[name] = np.concatenate(arrays.answer)
    for name, answer in answers.items():
        same = np.array_equal(answer, answers[KEYED])
        if not (same or (name == "NumPy" and np.allclose(answer, answers[KEYED], 0, 1e-6))):
            sys.exit(f"{name}: its answer is another one")


def table(keys: int, elements: int, seconds: float) -> None:
    teams = {name: Timed(make(Arrays(keys, elements))) for name, make in WAYS.items()}
    take_turns([*teams.values()], seconds)
    print(f"\n{keys} keys, of {elements} elements each")
    print(f"{'':14}{'us a key':>10}{'ns/elem':>10}{'GB/s':>8}{'of np.add':>11}{'of Keyed':>10}")
    for name, team in teams.items():
        each = team.seconds / keys
        ratios = [np.median(np.divide(team.warm, teams[of].warm)) for of in (ADD, KEYED)]
        moved = (12 if name == ADD else 28) * elements / each / 1e9
        row = f"{name:14}{1e6 * each:>10.2f}{1e9 * each / elements:>10.2f}{moved:>8.2f}"
        print(f"{row}{ratios[0]:>11.2f}{ratios[1]:>10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, nargs="+", default=[1, 64, 4096, 1 << 18])
    parser.add_argument("--keys", type=int, nargs="+", default=[1, 20])
    parser.add_argument("--seconds", type=float, default=2.0, help="of a table")
    parser.add_argument("--quick", action="store_true", help="one short table")
    asked = parser.parse_args()
    if asked.quick:
        asked.elements, asked.keys, asked.seconds = [64], [20], 0.1

    print(f"{processor()}, {schuss.show_config()['isa']['chosen']}, numpy {np.__version__}")
    with schuss.threads(1):
        for keys in asked.keys:
            for elements in asked.elements:
                check(keys, elements)
                table(keys, elements, asked.seconds)


if __name__ == "__main__":
    main()
