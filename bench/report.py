"""What norms add to a step: `python bench/report.py [--elements N ...] [--threads N ...]`.

AdamW in float32 with bound gradients, of one matrix with rows of 64: `report=True`, and gradients
that are clipped all together, by array, or by row. Each takes turns with the plain step, in the
same memory, and first gives the bits of its reference, and the norms that NumPy finds. README.md
explains the table.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import schuss
from schuss.engine.memory import FREE, room
from schuss.lab.bench.clock import Timed, take_turns
from schuss.lab.bench.report import processor

LR, DECAY = 1e-3, 1e-2
WIDTH = 64
SMALL = 67  # rows to check answers on
STEPS = 3  # before answers are compared


class Case(NamedTuple):
    """What is asked of an optimizer and its steps, and how often more the gradient is read."""

    options: dict[str, Any]
    report: bool = False
    again: int = 0


CASES = {
    "plain": Case({}),
    "report": Case({}, report=True),
    "clip_norm": Case({"clip_norm": 1.0}, again=1),
    "clip_norm, report": Case({"clip_norm": 1.0}, report=True, again=1),
    "clip_norm by array": Case({"clip_norm": 1.0, "clip_norm_per": "array"}, again=1),
    "clip_norm by row": Case({"clip_norm": 1.0, "clip_norm_per": "row"}, again=1),
}


class Memory:
    """A matrix, its gradient and its state, for whoever steps."""

    def __init__(self, rows: int) -> None:
        rng = np.random.default_rng(0)
        self.x, self.g = rng.standard_normal((2, rows, WIDTH), np.float32)
        self.state = [room(self.x, np.float32, place) for place in (FREE, FREE + 1)]
        for a in self.state:
            a.fill(0)

    def optimizer(self, case: Case, **options: Any) -> schuss.AdamW:
        chosen = {"lr": LR, "weight_decay": DECAY} | case.options | options
        opt = schuss.AdamW([self.x], grads=[self.g], **chosen)
        (p,) = opt._parameters
        p.state = dict(zip(p.state, self.state, strict=True))
        opt._register_anew()
        return opt


def clipped(g: np.ndarray, case: Case) -> np.ndarray:
    """The gradient that a rule sees, in double."""
    wide = g.astype(np.float64)
    if not case.options:
        return wide
    axes = 1 if case.options.get("clip_norm_per") == "row" else None
    norm = np.linalg.norm(wide, axis=axes, keepdims=True)
    seen: np.ndarray = wide * np.minimum(1, case.options["clip_norm"] / (norm + 1e-6))
    return seen


def check(name: str) -> None:
    """The bits of the reference, and the norms that NumPy finds."""
    case, answers = CASES[name], []
    for backend in ("compiled", "numpy"):
        memory = Memory(SMALL)
        opt = memory.optimizer(case, backend=backend)
        for _ in range(STEPS):
            before = memory.x.copy()
            opt.step(report=case.report)
        answers.append([a.tobytes() for a in (memory.x, *memory.state)])
        if case.report:
            assert opt.report is not None
            (norms,) = opt.report.values()
            answers[-1] += [norms.grad, norms.update, norms.param]
            u = (1 - LR * DECAY) * before - memory.x  # which float32 has rounded
            wanted = [np.linalg.norm(a) for a in (clipped(memory.g, case), u, before)]
            if not np.allclose([norms.grad, norms.update, norms.param], wanted, 1e-3):
                sys.exit(f"{name}: the norms differ from NumPy's")
    if answers[0] != answers[1]:
        sys.exit(f"{name}: schuss and its reference differ")


def table(elements: int, threads: int, seconds: float) -> None:
    memory = Memory(max(1, elements // WIDTH))
    teams: dict[str, Timed] = {}
    for name, case in CASES.items():
        step = memory.optimizer(case).step
        teams[name] = Timed(partial(step, report=True) if case.report else step)
    take_turns(list(teams.values()), seconds)
    size = memory.x.size
    print(f"\n{len(memory.x)} rows of {WIDTH}, {size} elements, threads: {threads}")
    print(f"{'':22}{'us':>10}{'ns/elem':>9}{'GB/s':>7}{'of plain':>10}")
    for name, team in teams.items():
        ratio = np.median(np.divide(team.warm, teams["plain"].warm))
        ns = 1e9 * team.seconds / size
        moved = 28 + 4 * CASES[name].again
        print(f"{name:22}{1e6 * team.seconds:>10.1f}{ns:>9.3f}{moved / ns:>7.1f}{ratio:>10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, nargs="+", default=[4096, 65536, 1 << 25])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=2.0, help="of a table")
    asked = parser.parse_args()

    print(f"{processor()}, {schuss.show_config()['isa']['chosen']}, numpy {np.__version__}")
    for name in CASES:
        check(name)
    for threads in asked.threads:
        schuss.set_num_threads(threads)
        for elements in asked.elements:
            table(elements, threads, asked.seconds)


if __name__ == "__main__":
    main()
