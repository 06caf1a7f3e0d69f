"""What each stage, and storage in 16 bits, adds to a step: `python bench/stages.py --help`.

Every case takes turns with the plain float32 step of AdamW, and first gives the bits of its NumPy
reference. README.md explains the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

import schuss
from schuss import _core
from schuss.engine.declare import Backend
from schuss.lab.bench.clock import Timed, take_turns
from schuss.lab.bench.report import processor

SMALL = 1003  # elements to check answers on: whole blocks, whole vectors and a rest
SIZES = (4096, 32_768, 2**25)
QUICK = (4096, 32_768, 2**22)
LARGE = 2**20  # elements: from here on it's the memory that is measured

# Contestants share their memory: where arrays lie can change a step's time more than a stage does,
# small ones within their cache lines, large ones in a virtual machine's pages.
POOLS = 8
MOST_ARRAYS = 6


@dataclass(frozen=True)
class Case:
    """A step beside the plain one, and how many times as long it may take."""

    options: dict[str, Any] = field(default_factory=dict)  # a function is called with the parameter
    param: Any = np.float32
    grad: Any = np.float32
    idle: bool = False  # gradients have been zero for long: the state is subnormal
    cached: float = np.inf  # the target in cache, with AVX-512
    memory: float = np.inf  # the target in memory, for each byte that a plain step moves


def stage(**options: Any) -> Case:
    return Case(options, cached=1.2, memory=1.05)


CASES = {
    "grad_scale, maximize, decay": Case(
        {"grad_scale": 1024.0, "maximize": True, "weight_decay": 0.01}, cached=1.03, memory=1.03
    ),
    "clip_value": stage(clip_value=1.0),
    "l2": stage(l2=0.01),
    "l1": stage(l1=0.01),
    "l1, prox": stage(l1=0.01, l1_mode="prox"),
    "decay, proximal": stage(weight_decay=0.01, decay_mode="proximal"),
    "decay, masked": stage(weight_decay=0.01, decay_mode="masked"),
    "bounds, numbers": stage(bounds=(-2.0, 2.0)),
    "bounds, arrays": stage(bounds=lambda x: (np.full_like(x, -2), np.full_like(x, 2))),
    "ema": stage(ema=0.999),
    "zero_grad": stage(zero_grad=True),
    "clip_norm": stage(clip_norm=1.0),
    'nonfinite="skip"': stage(nonfinite="skip"),
    "gradient bfloat16": Case(grad=bfloat16),
    "gradient float16": Case(grad=np.float16),
    "state bfloat16": Case({"state_dtype": "bfloat16"}),
    "state float16": Case({"state_dtype": "float16"}),
    "all bfloat16": Case({"state_dtype": "bfloat16"}, bfloat16, bfloat16),
    "parameter bfloat16, master": Case({"master": True}, bfloat16),
    "parameter bfloat16, by chance": Case({"stochastic_rounding": True}, bfloat16),
    "idle": Case(idle=True),
    "idle, subnormals kept": Case({"subnormals": "keep"}, idle=True),
}


@dataclass
class Result:
    """Times and bytes of a case relative to those of the plain step."""

    isa: str
    case: str
    elements: int
    plain_seconds: float
    time: float
    bytes: float
    missed: bool


@cache
def material(elements: int) -> tuple[np.ndarray, np.ndarray]:
    """A parameter and a gradient, away from zero: subnormal numbers are another benchmark."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0.5, 1.5, elements).astype(np.float32)
    return x, x * rng.choice((-1, 1), elements).astype(np.float32)


def pool(elements: int, gap: int = 0) -> list[np.ndarray]:
    """Memory for all arrays of a step, where malloc puts it behind a gap.

    Each slot begins at another place in its page: equal places in arrays that lie a power of two
    apart deceive the cache's way predictor on AMD's processors: a step takes 4 times as long.
    """
    aside = np.empty(16 * gap, np.uint8)
    slots = [np.zeros(4 * elements + 576 * i, np.uint8)[576 * i :] for i in range(MOST_ARRAYS)]
    del aside
    return slots


@cache
def pools(elements: int) -> list[list[np.ndarray]]:
    """One, or for small arrays as many as even out how they lie within their cache lines."""
    gaps = np.random.default_rng(0).integers(1, 4096, POOLS if elements < LARGE else 1)
    return [pool(elements, gap) for gap in gaps]


class Tenant(Timed):
    """A contestant in a pool that it shares, and finds in every turn as it was in the first."""

    def __init__(self, case: Case, slots: list[np.ndarray], backend: Backend = "compiled") -> None:
        free = iter(slots)

        def moved(a: np.ndarray) -> np.ndarray:
            place = next(free)[: a.nbytes].view(a.dtype)
            place[...] = a
            return place

        x, g = material(slots[0].nbytes // 4)
        x, g = moved(x.astype(case.param)), moved(g.astype(case.grad))
        options = {k: v(x) if callable(v) else v for k, v in case.options.items()}
        opt = schuss.AdamW([x], grads=[g], backend=backend, **{"weight_decay": 0.0} | options)
        (p,) = opt._parameters
        p.state = {name: moved(a) for name, a in p.state.items()}
        p.beside = {name: moved(a) for name, a in p.beside.items()}
        opt._register_anew()
        super().__init__(opt.step)
        self.x, self.state = x, list(p.saved.values())
        if case.idle:
            g.fill(0)
            for a in self.state:
                a.fill(1e-39)

        every = [x, g, *p.state.values(), *p.beside.values()]
        self.start = [(a, a.copy()) for a in every]
        # What is written moves twice; the norm, or the search for what isn't finite, reads g again.
        written = [x, *self.state, *([g] if opt.zeroes_grad else [])]
        again = [g] if options.keys() & {"clip_norm", "nonfinite"} else []
        self.bytes = sum(a.nbytes for a in (*every, *written, *again))

    def turn(self) -> None:
        for a, start in self.start:
            a[...] = start
        super().turn()


def check(name: str) -> None:
    """After three steps schuss and its reference have to agree in every bit."""
    answers = []
    for backend in ("compiled", "numpy"):
        team = Tenant(CASES[name], pool(SMALL), backend)
        for _ in range(3):
            team.step()
        answers.append([a.tobytes() for a in (team.x, *team.state)])
    if answers[0] != answers[1]:
        sys.exit(f"{name}, {_core.isa()}: schuss and its reference differ")


def measure(name: str, elements: int, budget: float) -> Result:
    seconds, ratios = [], []
    for slots in pools(elements):
        plain, ours = Tenant(Case(), slots), Tenant(CASES[name], slots)
        take_turns([plain, ours], budget / len(pools(elements)))
        seconds += plain.warm
        ratios += [b / a for a, b in zip(plain.warm, ours.warm, strict=True)]
    case, isa, time, moved = CASES[name], _core.isa(), median(ratios), ours.bytes / plain.bytes
    if elements < LARGE:
        missed = isa.startswith("avx512") and time > case.cached
    else:
        missed = time > case.memory * moved
    return Result(isa, name, elements, median(seconds), time, moved, missed)


def results(isas: list[str], sizes: tuple[int, ...], budget: float) -> Iterator[Result]:
    """Prints the table of each instruction set while it grows."""
    for isa in isas:
        _core.use_isa(isa)
        print(f"\n{isa:<30}{'bytes':>8}" + "".join(f"{n:>10}" for n in sizes))
        for name in CASES:
            check(name)
            row = [measure(name, elements, budget) for elements in sizes]
            cells = (f"{r.time:>9.2f}{'*' if r.missed else ' '}" for r in row)
            print(f"{name:<30}{row[0].bytes:>8.2f}", *cells, sep="", flush=True)
            yield from row


def main() -> None:
    parser = argparse.ArgumentParser(description="Times of stages relative to a plain AdamW step.")
    parser.add_argument("--isa", choices=_core.found_isas(), help="this one alone; default: all")
    parser.add_argument("--quick", action="store_true", help="0.1 seconds a case in place of 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the results there, too")
    options = parser.parse_args()

    print(f"{processor()}, one thread, schuss {schuss.__version__}, numpy {np.__version__}")
    isas = [options.isa] if options.isa else _core.found_isas()
    sizes, budget = (QUICK, 0.1) if options.quick else (SIZES, 1.0)
    with schuss.threads(1):
        done = list(results(isas, sizes, budget))
    print("\nplain step, us:")
    for isa in isas:
        times = [
            median(r.plain_seconds for r in done if (r.isa, r.elements) == (isa, elements))
            for elements in sizes
        ]
        print(f"{isa:<38}" + "".join(f"{t * 1e6:>9.1f} " for t in times))
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in done], indent=1))


if __name__ == "__main__":
    main()
