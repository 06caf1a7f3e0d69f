"""Steps on many processes: `mpiexec -n P python bench/sharded.py [--elements N ...]`.

AdamW on matrices of 500 x 500, in float32, and in bfloat16 with float32 masters: `Sharded` and its
parts beside a full step in every process behind MPI's Allreduce, and beside process 0 alone, as the
others sleep. All end on the same answer first; then they take turns. A step begins at a barrier and
ends in the slowest process; the fastest of all steps counts, since a process that loses its
processor to another program keeps all of them waiting. README.md explains the table.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter, sleep
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import schuss
from schuss.lab import plan
from schuss.lab.bench.report import processor
from schuss.mpi import Sharded
from schuss.mpi.wire import load

MPI = load()
COMM = MPI.COMM_WORLD
RANK, SIZE = COMM.rank, COMM.size
WEIGHTS = [1 / SIZE] * SIZE

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)
KINDS: dict[str, tuple[np.dtype[Any], dict[str, Any]]] = {
    "float32": (FLOAT32, {}),
    "bfloat16, master": (BFLOAT16, {"master": True}),
}
SIDE = 500  # rows and columns of a matrix
STEPS = 3  # before answers are compared
MANY = 60_000_000  # elements that a turn steps, in three steps at least, behind a first one
SMALL = 2 * SIDE**2  # elements to check answers on

Arrays = list[np.ndarray]


def matrices(elements: int, dtype: np.dtype[Any], seed: int) -> Arrays:
    """Touched, and away from zero, where steps of subnormal numbers would be another benchmark."""
    rng = np.random.default_rng(seed)
    shape = max(1, elements // SIDE**2), SIDE, SIDE
    return [a.astype(dtype) for a in rng.uniform(0.5, 1.5, shape).astype(np.float32)]


def nbytes(arrays: Arrays) -> int:
    return sum(a.nbytes for a in arrays)


# ---- Ways to step


class Way(NamedTuple):
    """What takes turns, and the bytes that a process keeps beside parameters and gradients."""

    step: Callable[[], object]
    kept: int
    alone: bool = False  # in process 0, while the others sleep


class Naive:
    """What needs no library: MPI adds whole gradients up, and every process steps all of them.

    MPI has no bfloat16, so that such gradients travel in float32.
    """

    def __init__(self, params: Arrays, grads: Arrays, **options: Any) -> None:
        self.grads = grads
        self.sums = [np.zeros(g.shape, np.float32) for g in grads]
        self.opt = schuss.AdamW(params, grads=self.sums, **options)

    def step(self) -> None:
        for g, total in zip(self.grads, self.sums, strict=True):
            if g.dtype == FLOAT32:
                COMM.Allreduce(g, total)
            else:
                total[...] = g
                COMM.Allreduce(MPI.IN_PLACE, total)
        self.opt.step(grad_scale=SIZE)

    @property
    def kept(self) -> int:
        return self.opt.nbytes + nbytes(self.sums)


class Parts:
    """What a sharded step consists of, each by itself."""

    def __init__(self, opt: Sharded, grads: Arrays) -> None:
        self.opt, self.traffic = opt, opt._traffic
        self.given = {i: g.ravel() for i, g in enumerate(grads)}
        self.types = [{i: g.dtype for i, g in self.given.items()}] * SIZE
        self.arrived = list(self.traffic.landings(self.given, self.types))

    def exchange(self) -> None:
        for _ in self.traffic.landings(self.given, self.types):
            pass

    def step(self) -> None:
        with self.opt.own.arriving():
            for landing in self.arrived:
                for number, each in landing.pieces.items():
                    self.opt.own._plan.arrive(number, each, WEIGHTS)

    def share(self) -> None:
        for bucket, numbers in enumerate(self.opt.shares.buckets):
            self.traffic.share(bucket, numbers)
        self.traffic.settle()


ALL, EXCHANGE, STEP, SHARE = "sharded", "  gradients alone", "  step alone", "  parameters alone"
NAIVE, PIECES, ONE = "Allreduce, full step", "one process, pieces", "one process, one gradient"


def ways(
    elements: int, kind: str, threads: int
) -> tuple[dict[str, Way], Sharded, dict[str, Arrays]]:
    """All of them, and what they step; who is alone has the threads of all."""
    dtype, options = KINDS[kind]
    grads = matrices(elements, dtype, 1 + RANK)
    params = {name: matrices(elements, dtype, 0) for name in (ALL, NAIVE, PIECES)}
    opt = Sharded(schuss.AdamW, params[ALL], **options)
    parts, naive = Parts(opt, grads), Naive(params[NAIVE], grads, **options)
    found = {
        ALL: Way(lambda: opt.step(grads), opt.nbytes + received(opt)),
        EXCHANGE: Way(parts.exchange, 0),
        STEP: Way(parts.step, 0),
        SHARE: Way(parts.share, 0),
        NAIVE: Way(naive.step, naive.kept),
    }
    if RANK > 0:
        found |= {name: Way(lambda: None, 0, alone=True) for name in (PIECES, ONE)}
    else:
        all_grads = [matrices(elements, dtype, 1 + r) for r in range(SIZE)]
        single = schuss.AdamW(params[PIECES], **options)

        def by_pieces() -> None:
            with schuss.threads(SIZE * threads):
                single.step(pieces=all_grads, weights=WEIGHTS)

        def by_one() -> None:
            with schuss.threads(SIZE * threads):
                single.step(grads)

        found[PIECES] = Way(by_pieces, single.nbytes, alone=True)
        found[ONE] = Way(by_one, single.nbytes, alone=True)
    return found, opt, params


def received(opt: Sharded) -> int:
    """The room for gradients of the others."""
    return sum(room.nbytes for room in opt._traffic.rooms)


def check(kind: str) -> None:
    """Sharded and pieces have the same bits; MPI's sum has its own order from three on."""
    found, _, params = ways(SMALL, kind, 1)
    for name in params:
        for _ in range(STEPS):
            found[name].step()
    answers = {name: np.concatenate([x.ravel() for x in params[name]]) for name in params}
    if RANK == 0 and answers[ALL].tobytes() != answers[PIECES].tobytes():
        sys.exit(f"{kind}: sharded, and in one process: other bits")
    ours, theirs = (answers[name].astype(float) for name in (ALL, NAIVE))
    if not np.allclose(ours, theirs, 1e-2, 1e-5):
        sys.exit(f"{kind}: sharded, and by Allreduce: another answer")


# ---- Turns


def gathered() -> None:
    """Comes to all the others, asleep: a barrier of MPI's takes a processor as it waits."""
    here = COMM.Ibarrier()
    while not here.Test():
        sleep(1e-4)


class Taken(NamedTuple):
    """Seconds of a step in the slowest process, and how often any lost its processor in it."""

    seconds: float
    lost: int


def lost() -> int:
    """How often this process had to leave its processor to another one."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def timed(way: Way, times: int) -> list[Taken]:
    """Steps, behind a first one."""
    taken = []
    for _ in range(times + 1):
        COMM.Barrier()
        before, start = lost(), perf_counter()
        way.step()
        taken.append(Taken(perf_counter() - start, lost() - before))
        if way.alone:
            gathered()
    of_all: list[list[Taken]] = COMM.allgather(taken[1:])
    return [
        Taken(max(t.seconds for t in each), sum(t.lost for t in each))
        for each in zip(*of_all, strict=True)
    ]


def take_turns(contestants: dict[str, Way], rounds: int, times: int) -> dict[str, list[Taken]]:
    """Rounds, each begun by another one."""
    order = list(contestants)
    found: dict[str, list[Taken]] = {name: [] for name in order}
    for _ in range(rounds):
        for name in order:
            found[name] += timed(contestants[name], times)
        order = [*order[1:], order[0]]
    return found


def counted(opt: Sharded, step: Callable[[], object]) -> tuple[int, int]:
    """The bytes that all processes send, and those of the one that sends most."""
    before = opt.wire.sent_bytes
    step()
    sent = opt.wire.sent_bytes - before
    return COMM.allreduce(sent), COMM.allreduce(sent, op=MPI.MAX)


# ---- The table


class Rates(NamedTuple):
    """Bytes/s of a process, as the model wants them."""

    memory: float  # read and written, in a step alone
    wire: float  # sent, in an exchange of gradients alone


def predicted(kind: str, elements: int, rates: Rates) -> float:
    """The seconds of a sharded step by the model, for which processes are nodes."""
    dtype, options = KINDS[kind]
    job = plan.job(schuss.AdamW, elements, dtype, **options)
    cluster = plan.Cluster(SIZE, 1, rates.wire, latency=0, memory_bandwidth=rates.memory)
    return plan.took(job, cluster).apart


def moved(opt: Sharded, grads: int) -> int:
    """Bytes that a process reads and writes in its step: all gradients of its share are there."""
    own: int = sum(x.nbytes for group in opt.param_groups for x in group["params"])
    return grads + 2 * (own + int(opt.nbytes))


def table(kind: str, elements: int, threads: int, rounds: int, rates: Rates | None) -> Rates:
    """Prints it, and returns what was measured for the model, which takes that of the first."""
    contestants, opt, params = ways(elements, kind, threads)
    arrays = params[ALL]
    size = sum(x.size for x in arrays)
    taken = take_turns(contestants, rounds, max(3, MANY // size))
    fastest = {name: min(steps) for name, steps in taken.items()}
    best = {name: step.seconds for name, step in fastest.items()}
    sent, most = counted(opt, contestants[ALL].step)
    bound = 2 * (SIZE - 1) * nbytes(arrays)  # of all: gradients have the type of parameters
    kept = {name: COMM.allreduce(way.kept, op=MPI.MAX) for name, way in contestants.items()}
    memory: float = COMM.allreduce(moved(opt, nbytes(arrays))) / best[STEP]
    own = Rates(memory / SIZE, max(1.0, most / 2) / best[EXCHANGE])
    model = predicted(kind, size, rates or own)
    if RANK > 0:
        return own
    print(f"\n{kind}: {size} elements, processes: {SIZE}, threads of each: {threads}")
    print(
        f"{'':28}{'best ms':>9}{'lost':>6}{'median':>9}{'ns/elem':>9}{'GB/s':>7}{'ratio':>7}"
        f"{'kept MB':>9}"
    )
    sends = {EXCHANGE: most / 2, SHARE: most / 2, ALL: most}
    for name, seconds in best.items():
        speed = f"{sends[name] / seconds / 1e9:7.1f}" if name in sends else f"{'':7}"
        held = f"{kept[name] / 1e6:9.1f}" if kept[name] else ""
        middle = median(t.seconds for t in taken[name])
        print(
            f"{name:28}{1e3 * seconds:>9.2f}{fastest[name].lost:>6}{1e3 * middle:>9.2f}"
            f"{1e9 * seconds / size:>9.3f}{speed}{seconds / best[ALL]:>7.2f}{held}"
        )
    parts = sum(best[name] for name in (EXCHANGE, STEP, SHARE))
    print(f"all over the sum of its parts: {best[ALL] / parts:.2f}")
    if bound:
        print(f"sent: {sent} bytes by all, {sent / bound:.5f} of 2(p-1)/p of the arrays by each")
    print(f"the step alone moves {memory / 1e9:.1f} GB/s of memory, in all processes together")
    by = "of itself" if rates is None else "of the first"
    print(f"measured over the model, with the speeds {by}: {best[ALL] / model:.2f}")
    sys.stdout.flush()
    return own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, nargs="+", default=[20_000_000, 1_000_000])
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()

    schuss.set_num_threads(asked.threads)
    if RANK == 0:
        isa = schuss.show_config()["isa"]["chosen"]
        print(f"{processor()}, {isa}, numpy {np.__version__}, {MPI.Get_library_version()[:24]}")
    rates = None
    for kind in asked.kind:
        check(kind)
        for elements in asked.elements:
            for total in dict.fromkeys((elements, SIZE * elements)):  # strong scaling, and weak
                own = table(kind, total, asked.threads, asked.rounds, rates)
                rates = rates or own


if __name__ == "__main__":
    main()
