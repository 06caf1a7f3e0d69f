"""How fast a step is, beside its NumPy reference and torch.optim: `python bench/steps.py --help`.

All contestants of a case live in one process, give the same answer first, and take turns, so that
whatever else the machine does hits them alike. README.md explains the columns.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import inspect
import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import numpy as np

import schuss
from schuss.rules import RULES

torch: Any = importlib.import_module("torch") if find_spec("torch") else None

MILLION = "1 array of 1000000"
WORKLOADS: dict[str, list[tuple[int, ...]]] = {
    "1 array of 1": [(1,)],
    "1 array of 1000": [(1000,)],
    "1 array of 65000": [(65_000,)],
    MILLION: [(1_000_000,)],
    "1 array of 10000000": [(10_000_000,)],
    "200 arrays of 64": [(64,)] * 200,
    "1000 arrays of 1000": [(1000,)] * 1000,
    "MLP on digits": [(64, 64), (64,), (64, 64), (64,), (64, 10), (10,)],
}
PEERS = ("numpy", "torch", "torch fused")

# How many times as fast as its reference AdamW has to be, on one thread.
FLOOR = {"200 arrays of 64": 100, "1000 arrays of 1000": 20, MILLION: 8}

TURN = 0.002  # seconds that a contestant has to itself


@dataclass
class Contestant:
    """One implementation, with arrays of its own, and the time of a step in each of its turns."""

    step: Callable[[], object]
    params: list[np.ndarray]
    state: list[np.ndarray] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)

    def turn(self) -> None:
        """The first step finds the caches as the others left them, the next ones as it did."""
        calls = 0
        start = now = perf_counter()
        while calls < 2 or now < start + TURN:
            self.step()
            now = perf_counter()
            if calls == 0:
                self.cold.append(now - start)
                start = now
            calls += 1
        self.warm.append((now - start) / (calls - 1))


@dataclass
class Result:
    """What a case gave: seconds and bytes of a step, and the time of others relative to it."""

    rule: str
    workload: str
    elements: int
    bytes: int
    seconds: float
    spread: float
    cold: float
    ratios: dict[str, float]

    header = (
        f"{'rule':<9}{'workload':<20}{'us':>9}{'spread':>8}{'cold us':>9}{'ns/elem':>9}{'GB/s':>7}"
    )

    def __str__(self) -> str:
        return (
            f"{self.rule:<9}{self.workload:<20}{self.seconds * 1e6:>9.1f}{self.spread:>8.0%}"
            f"{self.cold * 1e6:>9.1f}{self.seconds / self.elements * 1e9:>9.3f}"
            f"{self.bytes / self.seconds / 1e9:>7.1f}"
        ) + "".join(f"{self.ratios[p]:>19.1f}" if p in self.ratios else f"{'-':>19}" for p in PEERS)


def arrays(shapes: list[tuple[int, ...]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Parameters and gradients, away from zero: subnormal numbers are another benchmark."""
    rng = np.random.default_rng(0)
    params = [rng.uniform(0.5, 1.5, shape).astype(np.float32) for shape in shapes]
    return params, [p * rng.choice((-1, 1), p.shape).astype(np.float32) for p in params]


def with_schuss(rule: type[schuss.Optimizer], workload: str, backend: str) -> Contestant:
    params, grads = arrays(WORKLOADS[workload])
    opt = rule(params, grads=grads, backend=backend)
    state = [a for s in opt.state.values() for a in s.values() if isinstance(a, np.ndarray)]
    return Contestant(opt.step, params, state)


def with_torch(rule: type[schuss.Optimizer], workload: str, **how: bool) -> Contestant:
    params, grads = arrays(WORKLOADS[workload])
    tensors = [torch.from_numpy(p) for p in params]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad)
    return Contestant(getattr(torch.optim, rule.__name__)(tensors, **how).step, params)


def contestants(rule: type[schuss.Optimizer], workload: str) -> dict[str, Contestant]:
    """All that know the rule, with its defaults, which are torch's."""
    found = {
        "schuss": with_schuss(rule, workload, "compiled"),
        "numpy": with_schuss(rule, workload, "numpy"),
    }
    if peer := getattr(torch and torch.optim, rule.__name__, None):
        found["torch"] = with_torch(rule, workload, foreach=False)
        if "fused" in inspect.signature(peer).parameters:
            found["torch fused"] = with_torch(rule, workload, fused=True)
    return found


def check_answers(teams: dict[str, Contestant], case: str) -> None:
    """After three steps: schuss and its reference to the bit, torch to its own rounding."""
    for team in teams.values():
        for _ in range(3):
            team.step()
    ours = teams["schuss"]
    for name, team in teams.items():
        theirs = zip(ours.params + ours.state, team.params + team.state, strict=name == "numpy")
        for a, b in theirs:
            close = np.allclose(a, b, rtol=1e-5, atol=0)
            if not (close if name.startswith("torch") else a.tobytes() == b.tobytes()):
                sys.exit(f"{case}: schuss and {name} differ")


def take_turns(order: list[Contestant], budget: float) -> None:
    """Rounds of turns for `budget` seconds, five at least, each begun by another contestant."""
    gc.disable()
    end = perf_counter() + budget
    while perf_counter() < end or len(order[0].warm) < 5:
        for team in order:
            team.turn()
        order = [*order[1:], order[0]]
    gc.enable()


def measure(rule: type[schuss.Optimizer], workload: str, budget: float) -> Result:
    teams = contestants(rule, workload)
    check_answers(teams, f"{rule.__name__}, {workload}")
    ours = teams["schuss"]
    take_turns(list(teams.values()), budget)
    low, middle, high = quantiles(ours.warm, n=4)
    read = sum(p.nbytes for p in ours.params)  # the gradients
    return Result(
        rule.__name__,
        workload,
        elements=sum(p.size for p in ours.params),
        bytes=read + 2 * sum(a.nbytes for a in ours.params + ours.state),
        seconds=middle,
        spread=(high - low) / middle,
        cold=median(ours.cold),
        ratios={
            name: median(b / a for a, b in zip(ours.warm, team.warm, strict=True))
            for name, team in teams.items()
            if team is not ours
        },
    )


def results(budget: float) -> Iterator[Result]:
    """AdamW on every workload, every other rule on one."""
    for workload in WORKLOADS:
        yield measure(schuss.AdamW, workload, budget)
    for rule in RULES:
        if rule is not schuss.AdamW:
            yield measure(rule, MILLION, budget)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [s for s in info.read_text().splitlines() if "model name" in s] if info.exists() else []
    return names[0].split(": ")[1] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description="Times steps in float32 beside their peers.")
    parser.add_argument("--threads", type=int, default=1, help="of schuss and torch; default: 1")
    parser.add_argument("--quick", action="store_true", help="0.3 seconds a case in place of 3")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the results there, too")
    options = parser.parse_args()

    print(f"{processor()}, {options.threads} thread(s), {schuss.show_config()['isa']['chosen']}")
    print(f"schuss {schuss.__version__}, numpy {np.__version__}", end=", ")
    print(f"torch {torch.__version__}" if torch else "torch left out: not installed")
    print(Result.header + "".join(f"{f'{p} /ours':>19}" for p in PEERS))
    if torch:
        torch.set_num_threads(options.threads)
    done = []
    with schuss.threads(options.threads):
        for result in results(0.3 if options.quick else 3.0):
            print(result, flush=True)
            done.append(result)
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in done], indent=1))
    sys.exit(
        "\n".join(
            f"{r.workload}: {r.ratios['numpy']:.1f} times as fast as the reference, wanted {floor}"
            for r in done
            if r.rule == "AdamW" and r.ratios["numpy"] < (floor := FLOOR.get(r.workload, 0))
        )
        or None
    )


if __name__ == "__main__":
    main()
