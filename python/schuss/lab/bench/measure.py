"""A case: everyone set up, answers compared, turns taken."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import schuss
from schuss.lab.bench import roofline
from schuss.lab.bench.clock import ROUNDS, Timed, processors, take_turns
from schuss.lab.bench.contestants import (
    PEERS,
    Absent,
    Contestant,
    InPlace,
    Schuss,
    Torch,
    torch_threads,
)
from schuss.lab.bench.workloads import HALVES, Case, Memory

STEPS = 3  # before the clock starts: they touch the memory, compile, and give the answer


@dataclass
class Entry:
    """A contestant's times, and what follows from them."""

    seconds: float
    spread: float
    cold: float
    ratio: float  # to the seconds of schuss
    ns_per_element: float
    bytes_per_second: float  # of the bytes that schuss's step moves
    of_roofline: float | None


@dataclass
class Result:
    """What a case gave."""

    rule: str
    variant: str
    workload: str
    threads: int
    arrays: int
    elements: int
    bytes: int
    roofline: dict[str, float] = field(default_factory=dict)  # bytes/s of each kernel
    contestants: dict[str, Entry] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> Entry:
        return self.contestants[Schuss.name]


def first_steps(team: Contestant, memory: Memory) -> list[np.ndarray]:
    """The answer after a few steps."""
    for done in range(STEPS):
        memory.refill()
        team.step()
        if done == 0 and isinstance(team, InPlace | Torch):
            team.place()
    return team.answer()


def compared(team: Contestant, ours: Schuss, answer: list[np.ndarray], case: Case) -> str | None:
    """What is wrong with a contestant's answer: the reference's bits, others' rounding."""
    theirs = team.answer()
    if isinstance(team, Schuss):
        pairs = zip([*answer, *ours.state], [*theirs, *team.state], strict=True)
        if not all(a.tobytes() == b.tobytes() for a, b in pairs):
            raise ArithmeticError(f"{case}: schuss and its reference end on other bits")
        return None
    near = 1e-4 if case.variant == HALVES else 1e-5
    if all(np.allclose(a, b, rtol=near, atol=0) for a, b in zip(answer, theirs, strict=True)):
        return None
    return "its answer differs"


def set_up(case: Case, memory: Memory) -> tuple[Schuss, dict[str, Contestant], dict[str, str]]:
    """All that take part, past their first steps; and why the others don't."""
    ours = Schuss(case, memory)
    memory.restore()
    answer = [a.copy() for a in first_steps(ours, memory)]
    teams: dict[str, Contestant] = {ours.name: ours}
    left_out = {}
    for peer in PEERS:
        memory.restore()
        try:
            team = peer(case, memory)
            memory.restore()
            first_steps(team, memory)
        except Absent as why:
            left_out[peer.name] = str(why)
            continue
        if wrong := compared(team, ours, answer, case):
            left_out[peer.name] = wrong
        else:
            teams[peer.name] = team
    memory.restore()
    return ours, teams, left_out


def measure(case: Case, threads: int, budget: float, rounds: int = ROUNDS) -> Result:
    """Times a case, and the roofline in the same rounds."""
    gc.collect()  # optimizers refer to themselves, and hold the case before in memory
    with (
        np.errstate(all="ignore"),  # some rules run away where the gradient never changes
        processors(threads),
        schuss.threads(threads),
        torch_threads(threads),
    ):
        memory = Memory(case)
        ours, teams, left_out = set_up(case, memory)
        refill = memory.refill if memory.gradient else None
        timed = {name: Timed(team.step, refill) for name, team in teams.items()}
        traffic = roofline.kernels(ours.held) if ours.held >= roofline.LEAST else []
        take_turns([*timed.values(), *(t.timed for t in traffic)], budget, rounds)
    result = Result(
        case.rule.__name__, case.variant, case.workload, threads,
        len(case.shapes), case.elements, ours.bytes,
        roofline={t.name: t.bytes / t.timed.seconds for t in traffic},
        left_out=left_out,
    )  # fmt: skip
    result.contestants = entries(result, timed)
    return result


def entries(result: Result, timed: Mapping[str, Timed]) -> dict[str, Entry]:
    ours, top = timed[Schuss.name].seconds, max(result.roofline.values(), default=None)
    found = {}
    for name, times in timed.items():
        rate = result.bytes / times.seconds
        found[name] = Entry(
            seconds=times.seconds,
            spread=times.spread,
            cold=sorted(times.cold)[len(times.cold) // 2],
            ratio=times.seconds / ours,
            ns_per_element=times.seconds / result.elements * 1e9,
            bytes_per_second=rate,
            of_roofline=top and rate / top,
        )
    return found


def hindrance(case: Case) -> str:
    """Why a case can't be measured here, if so: everyone has arrays, and NumPy temporaries."""
    if case.variant == HALVES and not find_spec("ml_dtypes"):
        return "ml_dtypes is not installed"
    info = Path("/proc/meminfo")
    if info.exists():
        facts = dict(line.split(":") for line in info.read_text().splitlines())
        if 112 * case.elements >= 1024 * int(facts["MemAvailable"].split()[0]):
            return "not enough memory"
    return ""
