"""`schuss plan`: its arithmetic against bytes counted otherwise, and what it prints."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from mpi.communicators import together

import schuss
from schuss.lab import plan
from schuss.lab.command import main
from schuss.lab.plan import Cluster, Job, Memory, Sent, Time
from schuss.mpi import Sharded
from schuss.mpi.traffic import AHEAD
from schuss.rules import RULES

FLOAT32, BFLOAT16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
MEGA = 2**20
ADAMW = Job(MEGA, parameter=2, gradient=4, state=12)
QUIET = Cluster(latency=0)


# ---- Memory


@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (FLOAT32, {}),
        (FLOAT32, {"state_dtype": "bfloat16"}),
        (FLOAT32, {"state_dtype": "blockfloat8"}),
        (BFLOAT16, {}),
        (BFLOAT16, {"master": True}),
        (BFLOAT16, {"master": "remainder", "state_dtype": "blockfloat8"}),
        (np.dtype(np.float64), {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule is not schuss.Adafactor])
def test_state_is_what_an_optimizer_allocates(
    rule: type[schuss.Optimizer], dtype: np.dtype[Any], kept: dict[str, Any], nodes: int
) -> None:
    """That of the rule over a process' share, and the arrays that all processes have."""
    x = np.zeros(3 * 64 * nodes, dtype)
    opt = rule(x[: 3 * 64], **kept)
    job = plan.job(rule, x.size, dtype, **kept)
    assert plan.needed(job._replace(sums=0), Cluster(nodes, bucket=MEGA)) == Memory(
        parameters=x.nbytes,
        gradients=x.nbytes,
        state=opt.nbytes,
        received=x.nbytes * (nodes - 1) / nodes,
        sums=0,
    )


@pytest.mark.parametrize(
    ("bucket", "received"),
    [
        (1000, 2 * 7 * 2000),  # two buckets, of each of the seven others
        (MEGA // 8, MEGA * 4 * 7 / 8),  # of two buckets of all parameters
        (MEGA, MEGA * 4 * 7 / 8),  # the only one
    ],
)
def test_room_for_what_others_send(bucket: int, received: float) -> None:
    assert plan.needed(ADAMW, Cluster(4, 2, bucket=bucket)).received == received


class Recorder:
    """A communicator that counts the bytes of what goes through."""

    def __init__(self, comm: Any) -> None:
        self.rank, self.size, self._comm = comm.rank, comm.size, comm
        self.exchanged = 0
        self.shared: list[int] = []  # of each time

    def alltoall(self, sent: Any, received: Any) -> Any:
        self.exchanged += sum(b.nbytes for buffers in sent for b in buffers)
        return self._comm.alltoall(sent, received)

    def allgather(self, sent: Any, received: Any) -> Any:
        self.shared.append(sum(b.nbytes for b in sent))
        return self._comm.allgather(sent, received)


@pytest.mark.parametrize(
    ("rule", "dtype", "given", "sums"),
    [
        (schuss.AdamW, FLOAT32, {}, 0),
        (schuss.AdamW, FLOAT32, {"clip_norm": 1.0}, 4),
        (schuss.AdamW, BFLOAT16, {"nonfinite": "skip"}, 4),
        (schuss.LAMB, FLOAT32, {}, 4),
        (schuss.SGD, np.dtype(np.float64), {"clip_norm": 1.0}, 8),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 3])
def test_what_sharded_steps_do(
    rule: type[schuss.Optimizer], dtype: np.dtype[Any], given: dict[str, Any], sums: int, size: int
) -> None:
    """Memory and messages, as the processes have them: shares are cut at 4096 elements."""
    sizes = 12 * 4096, 24 * 4096
    job = plan.job(rule, sum(sizes), dtype, **given)
    assert job.sums == sums

    def work(comm: Any) -> tuple[Memory, Sent, int]:
        params, grads = ([np.ones(n, dtype) for n in sizes] for _ in range(2))
        recorder = Recorder(comm)
        opt = Sharded(rule, params, comm=recorder, lr=0.1, **given)
        recorder.shared.clear()
        opt.step(grads)
        memory = Memory(
            parameters=sum(x.nbytes for x in params),
            gradients=sum(g.nbytes for g in grads),
            state=opt.nbytes,
            received=sum(room.size // 4096 * 4096 for room in opt._traffic.rooms),  # but for gaps
            sums=sum(a.nbytes for a in opt._sums),
        )
        large = [n for n in recorder.shared if n >= 4096]
        sent = Sent(recorder.exchanged, (size - 1) * sum(large))
        return memory, sent, len(recorder.shared) - len(large)

    for memory, sent, rounds in together(size, work):
        assert memory == plan.needed(job, Cluster(size))
        assert sent == plan.sent(job, size)
        time = plan.took(job, Cluster(size, latency=1))
        assert time.agreement == rounds * (size - 1)


def test_rules_that_cannot_be_sharded() -> None:
    for rule in (schuss.Adafactor, schuss.Muon):
        with pytest.raises(ValueError, match="matrices"):
            plan.job(rule, 10, FLOAT32)


def test_gradients_of_a_type_of_their_own() -> None:
    job = plan.job(schuss.AdamW, 10, FLOAT32, BFLOAT16)
    assert job == Job(10, parameter=4, gradient=2, state=8)
    with pytest.raises(TypeError, match="float64"):
        plan.job(schuss.AdamW, 10, FLOAT32, np.dtype(np.float64))


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("bucket", [100, 10**4, 10**7])
@pytest.mark.parametrize("memory", [1e6, 6.4e6, 7e6, 1e7, 2.3e7, 1e8])
def test_the_least_number_of_nodes(processes: int, bucket: int, memory: float) -> None:
    """None below it will do; where there is none, neither do any of the first ten thousand."""
    found = plan.least(ADAMW, Cluster(7, processes, bucket=bucket), memory)

    def fits(nodes: int) -> bool:
        cluster = Cluster(nodes, processes, bucket=bucket)
        return processes * plan.needed(ADAMW, cluster).total <= memory

    assert found is None or fits(found)
    assert not any(map(fits, range(1, found or 10**4)))


# ---- Time


def test_bytes_sent_by_hand() -> None:
    """Three quarters of the gradients' bytes go out, and a quarter of the parameters', to three."""
    assert plan.sent(ADAMW, 4) == Sent(3 * MEGA, 3 * (2 * MEGA / 4))


def test_bytes_moved_by_hand() -> None:
    """Of 100 elements in four shares of 25: four gradients, x and 12 bytes of state both ways."""
    job = Job(100, parameter=2, gradient=2, state=12)
    assert plan.moved(job, 4) == 25 * (4 * 2 + 2 * 2 + 2 * 12)
    summed = job._replace(sums=4)  # which are written, and so read before, then read twice
    assert plan.moved(summed, 1) == 100 * (2 * 2 + 2 * 2 + 2 * 12)
    assert plan.moved(summed, 4) == 25 * (4 * 2 + 2 * 2 + 2 * 12 + 4 * 4)


def test_one_process_sends_nothing() -> None:
    for job in (ADAMW, ADAMW._replace(sums=4)):
        time = plan.took(job, Cluster(memory_bandwidth=1e9))
        assert plan.sent(job, 1) == Sent(0, 0)
        assert time.agreement == time.gradients == time.parameters == time.network == 0
        assert time.apart == time.step == time.memory == pytest.approx(plan.moved(job, 1) / 1e9)
        assert time.overlapped == pytest.approx(time.apart)
        assert time.bound == "memory"


@pytest.mark.parametrize("sums", [0, 4])
def test_half_of_the_elements_are_half_of_all(sums: float) -> None:
    cluster = QUIET._replace(nodes=4, processes=2, bucket=1000)
    whole = ADAMW._replace(sums=sums)
    half = whole._replace(elements=MEGA // 2)
    assert plan.took(half, cluster).apart == pytest.approx(plan.took(whole, cluster).apart / 2)
    assert plan.sent(half, 8) == Sent(*(n / 2 for n in plan.sent(whole, 8)))
    a, b = plan.needed(half, cluster), plan.needed(whole, cluster)
    assert a._replace(received=0) == Memory(*(n / 2 for n in b))._replace(received=0)


def test_what_a_network_carries() -> None:
    """Only what leaves the node: of two with two processes each, two thirds of what is sent."""
    cluster = QUIET._replace(nodes=2, processes=2, bandwidth=1e6, memory_bandwidth=1e18)
    time = plan.took(ADAMW, cluster)
    of_each = [[n / 3 * 2 for n in plan.sent(ADAMW, 4)] for _ in range(2)]
    assert time.gradients == pytest.approx(sum(g for g, _ in of_each) / 1e6)
    assert time.parameters == pytest.approx(sum(x for _, x in of_each) / 1e6)
    assert time.bound == "network"
    twice = plan.took(ADAMW, cluster._replace(bandwidth=2e6))
    assert twice.network == pytest.approx(time.network / 2)


def test_within_a_node_memory_is_all_there_is() -> None:
    """A byte that is sent is read, and written where another was: three for each of the four."""
    time = plan.took(ADAMW, QUIET._replace(processes=4, bandwidth=1, memory_bandwidth=1e9))
    gradients, parameters = plan.sent(ADAMW, 4)
    assert time.network == 0
    assert time.gradients == pytest.approx(4 * 3 * gradients / 1e9)
    assert time.parameters == pytest.approx(4 * 3 * parameters / 1e9)
    assert time.overlapped == pytest.approx(time.apart)


def test_messages_have_a_latency() -> None:
    """Each bucket of 1.5 MiB has three to others, twice, and each agreement has as many."""
    cluster = Cluster(4, latency=1, bandwidth=1e18, memory_bandwidth=1e18, bucket=3 * MEGA // 8)
    time = plan.took(ADAMW, cluster)
    assert time.buckets == 2
    assert (time.agreement, time.gradients, time.parameters) == pytest.approx((6, 6, 6))


def test_a_norm_waits_for_all_gradients() -> None:
    time = plan.took(ADAMW._replace(sums=4), Cluster(4, bucket=1000))
    assert time.overlapped == pytest.approx(time.apart)


def simulated(receive: float, step: float, send: float, buckets: int) -> float:
    """When a network and a processor are done, which do first what can be done first."""
    never = float("inf")
    network, sent = 0.0, 0
    stepped: list[float] = []  # when each bucket was
    while sent < buckets:
        n = len(stepped)
        room = never if n == buckets else stepped[n - AHEAD] if n >= AHEAD else 0.0
        ready = stepped[sent] if sent < n else never
        if max(network, room) <= max(network, ready):
            network = max(network, room) + receive
            stepped.append(max(network, stepped[-1] if stepped else 0.0) + step)
        else:
            network = max(network, ready) + send
            sent += 1
    return network


@pytest.mark.parametrize("buckets", [1, 2, 3, 50])
@pytest.mark.parametrize("parts", [*itertools.product((1, 2, 7), repeat=3)], ids=str)
def test_what_overlaps(parts: tuple[float, float, float], buckets: int) -> None:
    """Never less than buckets take one by one through a network and a processor, nor much more."""
    receive, step, send = parts
    wire, memory = buckets * (receive + send), buckets * step
    time = Time(0, buckets * receive, memory, buckets * send, wire, memory, buckets)
    taken = simulated(*parts, buckets)
    assert max(wire, memory) <= taken <= time.overlapped + 1e-9
    assert time.overlapped <= min(time.apart, taken + sum(parts)) + 1e-9


# ---- The command


def planned(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["plan", *argv]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    return text


BIG = (
    "--parameters",
    "7e9",
    "--nodes",
    "16",
    "--memory",
    "40e9",
    "--dtype",
    "bfloat16",
    "--master",
)


def test_one_case(capsys: pytest.CaptureFixture[str]) -> None:
    lines = planned(capsys, *BIG).splitlines()
    assert lines[0] == "AdamW: bytes of an element 2, its gradient 2, its state 12"
    cells = [" ".join(line.split()) for line in lines]
    assert "parameters 14 GB 14 GB" in cells
    assert "state 5.25 GB 84 GB" in cells  # 7e9*12/16
    assert "gradients received 126 MB 0 B" in cells  # 2*15*4 MiB
    assert "together 33.4 GB 112 GB" in cells
    assert "A node needs 33.4 GB of its 40 GB: fits." in cells
    assert "The least that does: 8 nodes." in cells
    assert any(line.startswith("parameters to all 13.1 GB ") for line in cells)


def test_nodes_that_do_not_suffice(capsys: pytest.CaptureFixture[str]) -> None:
    text = planned(capsys, *BIG, "--memory", "28e9", "--processes", "2")
    assert "of its 28 GB: does not fit.\n" in text
    assert "No number of nodes does: 56 GB are parameters and gradients.\n\n" in text
    text = planned(capsys, *BIG, "--memory", "28.2e9")
    assert "28 GB are parameters and gradients.\nWhat is left is too little for state " in text
    smaller = planned(capsys, *BIG, "--memory", "28.2e9", "--bucket", "1e4")
    assert "of its 28.2 GB: does not fit.\nThe least that does: " in smaller
    assert "A node needs" not in planned(capsys, "--parameters", "7e9")


def test_a_table_of_several(capsys: pytest.CaptureFixture[str]) -> None:
    text = planned(capsys, *BIG, "--parameters", "1e9", "1e12", "--nodes", "1", "64")
    rows = [line.split() for line in text.split("\n\n")[1].splitlines()]
    assert [row[:2] for row in rows[1:]] == [
        ["1e+09", "1"],
        ["1e+09", "64"],
        ["1e+12", "1"],
        ["1e+12", "64"],
    ]
    assert [("too" in row) for row in rows[1:]] == [False, False, True, True]
    assert [row[-1] for row in rows[1:]] == ["memory", "network", "memory", "network"]


def test_numbers_in_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    options = ("--rule", "lion", "--state-dtype", "blockfloat8", "--clip-norm")
    planned(capsys, "--parameters", "1e6", "--nodes", "2", "3", *options, "--json", str(path))
    job = plan.job(schuss.Lion, 10**6, FLOAT32, clip_norm=1.0, state_dtype="blockfloat8")
    for nodes, found in zip((2, 3), json.loads(path.read_text())["cases"], strict=True):
        cluster = Cluster(nodes)
        assert Job(**found["job"]) == job
        assert Cluster(**found["cluster"]) == cluster
        assert Memory(**found["memory"]) == plan.needed(job, cluster)
        assert Sent(**found["sent"]) == plan.sent(job, nodes)
        assert Time(**found["time"]) == plan.took(job, cluster)
        assert found["total"] == plan.needed(job, cluster).total


def test_help_says_where_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for word in ("all parameters and gradients", "congestion", "NUMA", "backward pass"):
        assert word in text


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("", "the following arguments are required: --parameters"),
        ("--parameters 0", "--parameters: '0' is no number in [1, 1e18]"),
        ("--parameters 1e400", "--parameters: '1e400'"),
        ("--parameters 7e9 --nodes 0", "--nodes: '0' is no whole number in [1, 1e6]"),
        ("--parameters 7e9 --nodes 1.5", "--nodes: '1.5'"),
        ("--parameters 7e9 --bandwidth 25GB", "--bandwidth: '25GB' is no number"),
        ("--parameters 7e9 --latency -1", "--latency: '-1'"),
        ("--parameters 7e9 --rule adm", "--rule: 'adm' is unknown; did you mean 'adam'?"),
        ("--parameters 7e9 --rule muon", "Muon looks at matrices as a whole"),
        ("--parameters 7e9 --gradient-dtype float64", "float64"),
        ("--parameters 7e9 --master twice", "--master: 'twice' is unknown"),
        ("--parameters 7e9 --dtype float16 --master remainder", '"remainder" is not for'),
    ],
)
def test_what_is_wrong_is_one_line(
    capsys: pytest.CaptureFixture[str], argv: str, said: str
) -> None:
    try:
        status: object = main(["plan", *argv.split()])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize(("dtype", "status"), [("float32", 0), ("bfloat16", 2)])
def test_it_needs_numpy_alone(dtype: str, status: int) -> None:
    """But for bfloat16, whose package it names; and nothing of MPI."""
    argv = ["plan", "--parameters", "7e9", "--nodes", "2", "--dtype", dtype]
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('rich', 'ml_dtypes', 'mpi4py')))\n"
        f"from schuss.lab.command import main; sys.exit(main({argv}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == status
    wanted = "schuss: No module named 'ml_dtypes'; pip install 'schuss[demo]'\n"
    assert run.stderr == wanted * bool(status)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 B"), (1, "1 B"), (999.6, "1 kB"), (12345, "12.3 kB"), (2e-6, "2 uB"), (4e12, "4 TB")],
)
def test_amounts(value: float, shown: str) -> None:
    assert plan.amount(value, "B") == shown
