"""`schuss plan`: what sharded steps take of memory and time, from bytes alone.

`needed`, `sent` and `took` are the model, for whoever has measured bandwidths, too.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

import schuss
from schuss.lab import options
from schuss.lab.catalogue import table
from schuss.lab.options import Rule
from schuss.mpi.sharded import needs_all, require_rule
from schuss.mpi.shares import each
from schuss.mpi.traffic import AHEAD
from schuss.reference.storage import computing

SAMPLE = 4096  # elements of the optimizer whose bytes are counted: whole blocks in any storage
MOST = 2**16  # nodes that are tried, where one doesn't do
WRITTEN = 2  # bytes that memory moves for one that is written: a processor reads it first
ROUNDS = {False: 2, True: 7}  # small messages of all to all in a step, that looks at all gradients
STATE_DTYPES = ("float32", "bfloat16", "float16", "blockfloat8")

EXPLAINED = """\
Every process holds all parameters and gradients, and its share of the state. A step sends gradients
to the processes that have their share, sums and steps it, and sends parameters to all, bucket by
bucket. A message takes its latency, while no other is sent. Processors read what they write, so
that memory moves three bytes for each that is sent.

What isn't in it: forward and backward pass; the step's arithmetic, which few processors with much
memory wait for; congestion, stragglers, the network's topology and oversubscription; memory that is
nearer to some processors (NUMA) or touched for the first time; what MPI keeps for itself; an array
larger than a bucket, which makes one of its own size; what rules such as LAMB read once more. No
number of nodes helps where parameters and gradients alone are more than a node's memory."""


# ---- The model


class Job(NamedTuple):
    """What is stepped: how many elements, and the bytes of each."""

    elements: int
    parameter: float
    gradient: float
    state: float  # with masters
    sums: float = 0  # of the gradients, where a step looks at all of them first


class Cluster(NamedTuple):
    """What it is stepped on; the processes of a node share its network and its memory."""

    nodes: int = 1
    processes: int = 1  # of a node
    bandwidth: float = 25e9  # bytes/s out of a node, and as many into it
    latency: float = 2e-6  # s of a message
    memory_bandwidth: float = 200e9  # bytes/s of a node, read and written together
    bucket: float | None = None  # bytes of parameters that each process steps of it: Sharded's

    @property
    def size(self) -> int:
        return self.nodes * self.processes

    @property
    def share(self) -> float:
        return each(self.size) if self.bucket is None else self.bucket


class Memory(NamedTuple):
    """Bytes of a process."""

    parameters: float
    gradients: float
    state: float
    received: float  # gradients of the others
    sums: float

    @property
    def total(self) -> float:
        return sum(self)


class Sent(NamedTuple):
    """Bytes that a process sends to the others in a step."""

    gradients: float
    parameters: float


class Time(NamedTuple):
    """Seconds of a step, by its parts and by what they wait for."""

    agreement: float
    gradients: float  # are exchanged
    step: float
    parameters: float  # are exchanged
    network: float  # of all this what the network takes, and what the memory
    memory: float
    buckets: int  # whose parts overlap

    @property
    def apart(self) -> float:
        """One part after the other: a library that sends only while it is called."""
        return self.agreement + self.gradients + self.step + self.parameters

    @property
    def overlapped(self) -> float:
        """The network works beside the processors, but for a bucket that is first or last."""
        alone = (self.apart - self.agreement) / self.buckets
        return self.agreement + alone + (1 - 1 / self.buckets) * max(self.network, self.memory)

    @property
    def bound(self) -> str:
        return "network" if self.network > self.memory else "memory"


def job(
    rule: Rule,
    elements: int,
    dtype: np.dtype[Any],
    gradient_dtype: np.dtype[Any] | None = None,
    **given: Any,
) -> Job:
    """What a rule with these options needs of each element, as an optimizer of a few says.

    Raises ValueError where it can't be sharded.
    """
    require_rule(rule)
    x = np.zeros(SAMPLE, dtype)
    g = np.zeros(SAMPLE, gradient_dtype or dtype)
    opt = rule(x, grads=g, **given)
    sums = np.dtype(computing(x.dtype)).itemsize if needs_all(opt) else 0
    return Job(elements, x.itemsize, g.itemsize, opt.nbytes / SAMPLE, sums)


def sent(job: Job, size: int) -> Sent:
    """What each of so many processes sends: all but its own share, twice."""
    others = (size - 1) / size * job.elements
    return Sent(others * job.gradient, others * job.parameter)


def needed(job: Job, cluster: Cluster) -> Memory:
    """What a process holds."""
    size = cluster.size
    parameters, share = job.elements * job.parameter, job.elements / size
    ahead = min(1, AHEAD * size * cluster.share / parameters)
    return Memory(
        parameters,
        job.elements * job.gradient,
        share * job.state,
        ahead * sent(job, size).gradients,
        share * job.sums * (size > 1),
    )


def moved(job: Job, size: int) -> float:
    """The bytes that a process reads and writes in the step itself: every process' gradients there.

    Where all are looked at first, their sums are written, measured and stepped by; a process by
    itself measures its gradients as they are.
    """
    own = 2 * (job.parameter + job.state)
    if job.sums:
        own += (WRITTEN + 2) * job.sums if size > 1 else job.gradient
    return job.elements * (job.gradient + own / size)


def took(job: Job, cluster: Cluster) -> Time:
    """How long a step takes."""
    size, local = cluster.size, cluster.processes
    buckets = math.ceil(job.elements * job.parameter / (size * cluster.share))
    to_all = (size - 1) * cluster.latency
    away = (size - local) / max(size - 1, 1)  # of what is sent, the part that leaves the node
    # Seconds of a byte that each process of a node moves.
    by_network, by_memory = local / cluster.bandwidth, local / cluster.memory_bandwidth
    amounts = sent(job, size)
    wires = [by_network * away * amount + buckets * to_all for amount in amounts]
    copies = [by_memory * (1 + WRITTEN) * amount for amount in amounts]
    step = by_memory * moved(job, size)
    gradients, parameters = map(max, wires, copies)
    return Time(
        agreement=ROUNDS[job.sums > 0] * to_all,
        gradients=gradients,
        step=step,
        parameters=parameters,
        network=sum(wires),
        memory=sum(copies) + step,
        buckets=1 if job.sums else buckets,
    )


def least(job: Job, cluster: Cluster, memory: float) -> int | None:
    """The smallest number of nodes, each with so many bytes, that will do; None: no number does."""
    if cluster.processes * job.elements * (job.parameter + job.gradient) >= memory:
        return None
    tried = (cluster._replace(nodes=nodes) for nodes in range(1, MOST + 1))
    return next((c.nodes for c in tried if c.processes * needed(job, c).total <= memory), None)


# ---- What is shown


class Case(NamedTuple):
    """A row of the table, or all that is told."""

    job: Job
    cluster: Cluster
    memory: Memory
    sent: Sent
    time: Time


def case(job: Job, cluster: Cluster) -> Case:
    return Case(job, cluster, needed(job, cluster), sent(job, cluster.size), took(job, cluster))


def amount(value: float, unit: str) -> str:
    """Three digits, with a prefix."""
    rounded = f"{value:.2e}"
    thousands = min(max(int(rounded.partition("e")[2]) // 3, -3), 5)
    prefix = ("n", "u", "m", "", "k", "M", "G", "T", "P")[thousands + 3]
    return f"{float(rounded) / 1000.0**thousands:.4g} {prefix}{unit}"


def several(number: int, what: str, more: str = "s") -> str:
    return f"{number} {what}{more * (number != 1)}"


def fits(case: Case, memory: float) -> bool:
    """Whether a node has so many bytes."""
    return case.cluster.processes * case.memory.total <= memory


def room(case: Case, memory: float) -> Iterator[str]:
    """Whether a node's memory will do, and which number of nodes does."""
    own = amount(case.cluster.processes * case.memory.total, "B")
    fitting = "fits" if fits(case, memory) else "does not fit"
    yield f"A node needs {own} of its {amount(memory, 'B')}: {fitting}."
    nodes = least(case.job, case.cluster, memory)
    if nodes is None:
        whole = case.cluster.processes * (case.memory.parameters + case.memory.gradients)
        yield f"No number of nodes does: {amount(whole, 'B')} are parameters and gradients."
        if whole < memory:
            yield "What is left is too little for state and for gradients that are received."
    else:
        yield f"The least that does: {several(nodes, 'node')}."


def told(case: Case, available: float) -> Iterator[str]:
    """A case, beside a process that does all by itself."""
    job, _, memory, sent, time = case
    alone = needed(job, Cluster())
    names = ("parameters", "gradients", "state", "gradients received", "their sums", "together")
    sizes = zip(names, (*memory, memory.total), (*alone, alone.total), strict=True)
    rows = [(name, amount(own, "B"), amount(other, "B")) for name, own, other in sizes]
    yield from table([("memory", "of a process", "of one alone"), *rows])
    if available < math.inf:
        yield ""
        yield from room(case, available)
    yield ""
    parts = (
        ("gradients to their shares", sent.gradients, time.gradients),
        ("sums and step of the share", 0, time.step),
        ("parameters to all", sent.parameters, time.parameters),
        ("together", sum(sent), time.apart),
    )
    rows = [(name, amount(size, "B"), amount(seconds, "s")) for name, size, seconds in parts]
    yield from table([("step", "sent", "time"), *rows])
    yield ""
    yield f"The network takes {amount(time.network, 's')}, the memory {amount(time.memory, 's')}."
    if time.overlapped < time.apart:
        yield (
            f"{amount(time.overlapped, 's')} a step where the network works beside the processors, "
            f"in {several(time.buckets, 'bucket')}."
        )


def compared(cases: Iterable[Case], memory: float) -> Iterator[str]:
    """A row for each case."""
    yield from table(
        [
            ("parameters", "nodes", "of a node", "", "state", "sent", "step", "apart", "bound"),
            *(
                (
                    f"{c.job.elements:.3g}",
                    f"{c.cluster.nodes}",
                    amount(c.cluster.processes * c.memory.total, "B"),
                    "" if fits(c, memory) else "too much",
                    amount(c.memory.state, "B"),
                    amount(sum(c.sent), "B"),
                    amount(c.time.overlapped, "s"),
                    amount(c.time.apart, "s"),
                    c.time.bound,
                )
                for c in cases
            ),
        ]
    )
    yield ""
    yield "of a node: its memory; state, sent: of a process; step: where the network works beside"
    yield "the processors; apart: where it doesn't; bound: what takes longest."


def document(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """All numbers, for the JSON file."""
    return [
        {name: part._asdict() for name, part in c._asdict().items()}
        | {"total": c.memory.total, "overlapped": c.time.overlapped, "apart": c.time.apart}
        for c in cases
    ]


# ---- The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXPLAINED
    usual = Cluster()
    count, size = options.whole("[1, 1e6]"), options.number("[1, 1e18]")
    add = parser.add_argument
    add("--parameters", type=size, nargs="+", required=True, metavar="N",
        help="elements of all parameters; of several there is a table")  # fmt: skip
    add("--nodes", type=count, nargs="+", default=[usual.nodes], metavar="N",
        help="default: 1; of several there is a table")  # fmt: skip
    add("--processes", type=count, default=usual.processes, metavar="N",
        help="of a node; default: %(default)s")  # fmt: skip
    add("--bandwidth", type=size, default=usual.bandwidth, metavar="B/S",
        help="bytes/s into a node, and as many out of it; default: %(default)g")  # fmt: skip
    add("--latency", type=options.number("[0, 1e6]"), default=usual.latency, metavar="S",
        help="seconds of a message; default: %(default)g")  # fmt: skip
    add("--memory", type=size, default=math.inf, metavar="B",
        help="bytes of a node; default: not asked")  # fmt: skip
    add("--memory-bandwidth", type=size, default=usual.memory_bandwidth, metavar="B/S",
        help="bytes/s of a node, read and written together; default: %(default)g")  # fmt: skip
    add("--bucket", type=size, default=usual.bucket, metavar="B",
        help="bytes of a bucket for each process; default: Sharded's")  # fmt: skip
    add("--rule", type=options.rule, default="adamw", metavar="RULE",
        help="default: %(default)s")  # fmt: skip
    add("--dtype", choices=options.DTYPES, default="float32",
        help="of parameters; default: %(default)s")  # fmt: skip
    add("--gradient-dtype", choices=options.DTYPES, help="default: as --dtype")
    add("--state-dtype", choices=STATE_DTYPES, default="float32", help="default: %(default)s")
    add("--master", type=options.one_of(["remainder"]), nargs="?", const=True, default=False,
        metavar="remainder", help="float32 weights beside those of 16 bits")  # fmt: skip
    add("--clip-norm", action="store_true", help="or nonfinite: all gradients are looked at first")
    add("--json", type=options.writable, metavar="FILE", help="writes all numbers")
    options.add_force(parser)


def run(args: argparse.Namespace) -> None:
    """Prints what the one case takes, or a table of several."""
    dtype = options.dtype_of(args.dtype)
    gradient_dtype = options.dtype_of(args.gradient_dtype or args.dtype)
    given: dict[str, Any] = {"state_dtype": args.state_dtype, "master": args.master}
    if args.clip_norm:
        given["clip_norm"] = 1.0
    try:
        one = job(args.rule, 1, dtype, gradient_dtype, **given)
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentError(None, str(error)) from None
    cluster = Cluster(
        processes=args.processes,
        bandwidth=args.bandwidth,
        latency=args.latency,
        memory_bandwidth=args.memory_bandwidth,
        bucket=args.bucket,
    )
    cases = [
        case(one._replace(elements=int(elements)), cluster._replace(nodes=nodes))
        for elements in args.parameters
        for nodes in args.nodes
    ]
    rule, nodes = args.rule.__name__, several(args.processes, "process", "es")
    speeds = amount(args.bandwidth, "B/s"), amount(args.memory_bandwidth, "B/s")
    print(f"{rule}: bytes of an element {one.parameter}, its gradient {one.gradient}, ", end="")
    print(f"its state {one.state:.4g}")
    print(f"nodes of {nodes}: network {speeds[0]}, memory {speeds[1]}")
    print()
    print(*(compared(cases, args.memory) if cases[1:] else told(cases[0], args.memory)), sep="\n")
    if args.json:
        text = json.dumps({"schuss": schuss.__version__, "cases": document(cases)}, indent=1)
        args.json.write_text(text + "\n")
