"""What goes wrong in one process goes wrong in all of them, and has changed nothing anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engine.unchanged import snapshot
from exact.combinations import same_bits
from exact.ends import require_same

import schuss
from mpi.communicators import Thread, run_mpi, together
from schuss import rules, schedules
from schuss.mpi import Sharded, shares

F4 = np.float32
SIZE = 3
LIMIT = 20.0  # seconds: what hangs has failed
SHAPES: dict[str, tuple[int, ...]] = {"a": (2 * shares.CHUNK + 9,), "b": (60, 150), "c": ()}
# Whether a step goes bucket by bucket, or looks at all gradients first.
WAYS: dict[str, dict[str, Any]] = {
    "by bucket": {},
    "clip_norm": {"clip_norm": 0.5},
    "skip": {"nonfinite": "skip"},
}

Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "BUCKET", 1 << 12)


def start() -> Arrays:
    return {name: np.ones(shape, F4) for name, shape in SHAPES.items()}


def grads(rank: int, t: int = 0) -> Arrays:
    rng = np.random.default_rng([rank, t])
    return {k: np.array(rng.standard_normal(shape), F4) for k, shape in SHAPES.items()}


def end(steps: int, **options: Any) -> Arrays:
    """Where so many steps of one process end."""
    x = start()
    opt = rules.AdamW(x, **options)
    for _ in range(steps):
        opt.step(pieces=[grads(rank) for rank in range(SIZE)])
    return x


class Process:
    """One of the processes, with two steps behind it."""

    def __init__(self, comm: Any, **options: Any) -> None:
        self.rank = comm.rank
        self.x = start()
        self.opt = Sharded(rules.AdamW, self.x, comm=comm, **options)
        self.steps(2)

    def steps(self, number: int) -> Arrays:
        for _ in range(number):
            self.opt.step(grads(self.rank))
        return self.x

    def raised(self, act: Callable[[Any], object]) -> str:
        """What `act` raises, as its kind and text; nothing has changed by it."""
        before = {name: x.tobytes() for name, x in self.x.items()}, snapshot(self.opt.own)
        with pytest.raises(BaseException) as info:  # noqa: PT011 -- what it says is compared
            act(self.opt)
        assert ({name: x.tobytes() for name, x in self.x.items()}, snapshot(self.opt.own)) == before
        return f"{type(info.value).__name__}: {info.value}"


def require_error(found: list[str], rank: int, kind: str, says: str) -> None:
    """That this process raised its own error, and all others one that names it."""
    assert found[rank].startswith(f"{kind}: ")
    assert says in found[rank]
    text = found[rank].partition(": ")[2]
    want = [f"{kind}: process {rank}: {text}"] * SIZE
    want[rank] = found[rank]
    assert found == want


# ---- Gradients

WRONG: dict[str, tuple[Callable[[Arrays], Any], str, str]] = {
    "shape": (lambda g: g | {"b": g["b"].T}, "ValueError", 'grads["b"]: shape (150, 60)'),
    "dtype": (lambda g: g | {"a": g["a"].astype(float)}, "TypeError", 'grads["a"]'),
    "missing": (lambda g: {"a": g["a"], "b": g["b"]}, "ValueError", "missing 'c'"),
    "order": (lambda g: g | {"b": np.asfortranarray(g["b"])}, "ValueError", "Fortran"),
    "list": (lambda g: g | {"c": [1.0]}, "TypeError", 'grads["c"]'),
    "structure": (lambda g: [*g.values()], "ValueError", "grads: list"),
    "none": (lambda _: None, "ValueError", "grads"),
    "rows": (
        lambda g: g | {"b": schuss.Rows(np.array([1]), np.ones((1, 150), F4))},
        "TypeError",
        'grads["b"]: Rows',
    ),
}


@pytest.mark.parametrize("rank", range(SIZE))
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_gradient(case: str, way: str, rank: int) -> None:
    found = together(SIZE, lambda comm: wrong_once(comm, case, way, rank), later=True, limit=LIMIT)
    require_error_and_steps(found, case, way, rank)


def wrong_once(comm: Any, case: str, way: str, rank: int) -> tuple[str, Arrays]:
    """What a process raises where the gradient of one is wrong, and where it is a step later."""
    own = Process(comm, **WAYS[way])
    g = grads(comm.rank)
    found = own.raised(lambda opt: opt.step(WRONG[case][0](g) if comm.rank == rank else g))
    return found, own.steps(1)


def require_error_and_steps(
    found: list[tuple[str, Arrays]], case: str, way: str, rank: int
) -> None:
    _, kind, says = WRONG[case]
    require_error([text for text, _ in found], rank, kind, says)
    for _, x in found:
        require_same(end(3, **WAYS[way]), x)


@pytest.mark.parametrize("kind", ["ValueError", "KeyboardInterrupt", "ZeroDivisionError"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rank", range(SIZE))
def test_a_schedule_that_raises(rank: int, way: str, kind: str) -> None:
    errors: Any = {e.__name__: e for e in (ValueError, KeyboardInterrupt, ZeroDivisionError)}

    def process(comm: Any) -> tuple[str, Arrays]:
        raises = False

        def rate(_: int) -> float:
            if raises and comm.rank == rank:
                raise errors[kind]("no rate")
            return 1e-3

        own = Process(comm, lr=rate, **WAYS[way])
        raises = True
        found = own.raised(lambda opt: opt.step(grads(comm.rank)))
        raises = False
        return found, own.steps(1)

    found = together(SIZE, process, limit=LIMIT)
    require_error([text for text, _ in found], rank, kind, "no rate")
    for _, x in found:
        require_same(end(3, **WAYS[way]), x)


@pytest.mark.parametrize("way", WAYS)
def test_a_container_with_another_array(way: str) -> None:
    """`W = W - ...` in one process."""

    def process(comm: Any) -> tuple[str, Arrays]:
        own = Process(comm, **WAYS[way])
        kept = own.x["b"]
        if comm.rank == 1:
            own.x["b"] = kept - 1
        found = own.raised(lambda opt: opt.step(grads(comm.rank)))
        own.x["b"] = kept
        return found, own.steps(1)

    found = together(SIZE, process, limit=LIMIT)
    require_error([text for text, _ in found], 1, "ValueError", 'params["b"]: another array')
    for _, x in found:
        require_same(end(3, **WAYS[way]), x)


@pytest.mark.parametrize("rank", range(SIZE))
def test_what_is_not_finite(rank: int) -> None:
    """Of one process' gradients, in a share of another: skipped or raised everywhere."""

    def process(comm: Any) -> tuple[str, Arrays, list[Any]]:
        own = Process(comm, nonfinite="skip")
        g = grads(comm.rank)
        if comm.rank == rank:
            g["b"][-1, 3] = math.inf  # in the share of the last one
        before = {name: x.copy() for name, x in own.x.items()}
        course: list[Any] = [own.opt.step(g), own.opt.iterations, own.opt.skipped_steps]
        assert all(same_bits(x, before[name]) for name, x in own.x.items())
        own.opt.nonfinite = "raise"
        text = own.raised(lambda opt: opt.step(g))
        return text, own.steps(1), [*course, own.opt.skipped_steps]

    for text, x, course in together(SIZE, process, limit=LIMIT):
        assert course == [False, 2, 1, 1]
        kind, _, says = text.partition(": ")
        assert kind == "FloatingPointError"
        says = says.removeprefix("process 0: ")
        assert says == 'grads["b"]: has elements that are not finite'
        require_same(end(3), x)


# ---- Processes that do other things

OTHER_SETTINGS: dict[str, Callable[[Any], Any]] = {
    "lr": lambda opt: setattr(opt, "lr", 0.5),
    "betas": lambda opt: setattr(opt, "betas", (0.8, 0.9)),
    "of a group": lambda opt: opt.param_groups[0].__setitem__("weight_decay", 0.3),
    "seed": lambda opt: setattr(opt, "seed", 3),
    "nonfinite": lambda opt: setattr(opt, "nonfinite", "raise"),
    "clip_norm": lambda opt: setattr(opt, "clip_norm", 2.0),
    "bounds": lambda opt: setattr(opt, "bounds", (-1.0, 1.0)),
    "grad_scale": lambda opt: setattr(opt, "grad_scale", 2.0),
    "check_every": lambda opt: setattr(opt, "check_every", 3),
}
OTHER_CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "lr": lambda opt, g: opt.step(g, lr=0.5),
    "grad_scale": lambda opt, g: opt.step(g, grad_scale=2.0),
    "report": lambda opt, g: opt.step(g, report=True),
    "weights": lambda opt, g: opt.step(g, weights=[1.0, 1.0, 1.0]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_a_setting_of_one_process(name: str, way: str) -> None:
    def process(comm: Any) -> str:
        own = Process(comm, **WAYS[way])
        if comm.rank == 1:
            OTHER_SETTINGS[name](own.opt)
        return own.raised(lambda opt: opt.step(grads(comm.rank)))

    for text in together(SIZE, process, limit=LIMIT):
        assert text.startswith("ValueError: step: ")
        assert text.endswith(": not the same in process 1 as in process 0")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OTHER_CALLS)
def test_an_argument_of_one_process(name: str, way: str) -> None:
    def process(comm: Any) -> tuple[str, Arrays]:
        own = Process(comm, **WAYS[way])
        call = OTHER_CALLS[name] if comm.rank == 1 else type(own.opt).step
        return own.raised(lambda opt: call(opt, grads(comm.rank))), own.steps(1)

    for text, x in together(SIZE, process, limit=LIMIT):
        assert text == f"ValueError: step: {name}: not the same in process 1 as in process 0"
        require_same(end(3, **WAYS[way]), x)


def other_rate(rank: int) -> dict[str, Any]:
    return {"lr": schedules.cosine(0.1, steps=10 + 5 * (rank == 1))}


def other_scale(rank: int) -> dict[str, Any]:
    scale = schuss.LossScale(1024.0)
    scale.value *= 1 + (rank == 1)  # as one of them hears of other steps
    return {"grad_scale": scale, "nonfinite": "skip"}


def other_decay(rank: int) -> dict[str, Any]:
    return {"weight_decay": lambda t: 0.1 * t * (1 + (rank == 1))}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("other", [other_rate, other_decay, other_scale])
def test_what_is_computed_in_one_process(other: Callable[[int], dict[str, Any]], way: str) -> None:
    """Schedules and scales that say something else: no share steps by its own number."""

    def process(comm: Any) -> str:
        x = start()
        before = start()
        try:
            opt = Sharded(rules.AdamW, x, comm=comm, **{**WAYS[way], **other(comm.rank)})
            for _ in range(3):
                before = {name: a.copy() for name, a in x.items()}
                opt.step(grads(comm.rank))
        except ValueError as error:
            require_same(before, x)
            return str(error)
        return "nothing"

    for text in together(SIZE, process, limit=LIMIT):
        assert text.endswith(": not the same in process 1 as in process 0")


def test_a_metric_that_only_one_process_observes() -> None:
    def process(comm: Any) -> str:
        plateau = schedules.ReduceOnPlateau(0.1, patience=0)
        opt = Sharded(rules.AdamW, start(), comm=comm, lr=plateau)
        opt.step(grads(comm.rank))
        if comm.rank == 1:
            for metric in (1.0, 2.0, 3.0):
                opt.observe(metric)
        with pytest.raises(ValueError, match="not the same in process 1") as info:
            opt.step(grads(comm.rank))
        return str(info.value)

    assert len(set(together(SIZE, process, limit=LIMIT))) == 1


def test_a_loss_that_nobody_reads() -> None:
    def process(comm: Any) -> Arrays:
        own = Process(comm)
        own.opt.step(grads(comm.rank), loss=float(comm.rank), lr=np.float64(1e-3))
        return own.x

    for x in together(SIZE, process, limit=LIMIT):
        require_same(end(3), x)


def test_another_call_in_one_process() -> None:
    def process(comm: Any) -> tuple[str, Arrays]:
        own = Process(comm)

        def act(opt: Any) -> None:
            if comm.rank == 1:
                with opt.averaged():
                    pass
            else:
                opt.step(grads(comm.rank))

        return own.raised(act), own.steps(1)

    for text, x in together(SIZE, process, limit=LIMIT):
        assert text.startswith("RuntimeError: processes are at different points: ")
        require_same(end(3), x)


# ---- Construction

Made = Callable[[Any, Arrays], Any]
OTHERS: dict[str, tuple[Made, str]] = {
    "rule": (lambda comm, x: Sharded(rules.Adam, x, comm=comm), "rule"),
    "option": (lambda comm, x: Sharded(rules.AdamW, x, comm=comm, master=True), "options"),
    "lr": (lambda comm, x: Sharded(rules.AdamW, x, comm=comm, lr=0.5), "param_groups"),
    "names": (lambda comm, x: Sharded(rules.AdamW, [*x.values()], comm=comm), "params"),
    "shape": (
        lambda comm, x: Sharded(rules.AdamW, x | {"b": np.ones((150, 60), F4)}, comm=comm),
        "params",
    ),
    "type": (
        lambda comm, x: Sharded(rules.AdamW, x | {"b": np.ones((60, 150))}, comm=comm),
        "params",
    ),
    "order": (
        lambda comm, x: Sharded(rules.AdamW, x | {"b": np.asfortranarray(x["b"])}, comm=comm),
        "params",
    ),
    "number": (
        lambda comm, x: Sharded(rules.AdamW, {"a": x["a"], "b": x["b"]}, comm=comm),
        "params",
    ),
    "bits": (
        lambda comm, x: Sharded(rules.AdamW, x | {"c": np.array(2.0, F4)}, comm=comm),
        'params["c"]: other bits in process 1 than in process 0',
    ),
    "check_every": (
        lambda comm, x: Sharded(rules.AdamW, x, comm=comm, check_every=3),
        "check_every",
    ),
    "an error": (lambda comm, x: Sharded(rules.AdamW, x, comm=comm, lr=-1), "lr"),
    "no rule": (lambda comm, x: Sharded(3, x, comm=comm), "rule"),  # type: ignore[arg-type]
}


def like_the_others(comm: Any, x: Arrays) -> Any:
    return Sharded(rules.AdamW, x, comm=comm)


@pytest.mark.parametrize("case", OTHERS)
def test_others_at_construction(case: str) -> None:
    make, says = OTHERS[case]

    def process(comm: Any) -> str:
        own = make if comm.rank == 1 else like_the_others
        with pytest.raises((TypeError, ValueError, RuntimeError)) as info:
            own(comm, start())
        return str(info.value)

    for text in together(SIZE, process, limit=LIMIT):
        assert text.removeprefix("process 1: ").startswith(says)


def test_room_that_there_is_none_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is made before anything is sent."""

    def process(comm: Any) -> tuple[str, Arrays]:
        x = start()
        opt = Sharded(rules.AdamW, x, comm=comm, clip_norm=0.5)
        if comm.rank == 1:
            vars(opt)["_make_room"] = no_room
        with pytest.raises(MemoryError) as info:
            opt.step(grads(comm.rank))
        vars(opt).pop("_make_room", None)
        opt.step(grads(comm.rank))
        return str(info.value), x

    def no_room(weights: Any) -> None:
        raise MemoryError("for sums")

    for text, x in together(SIZE, process, limit=LIMIT):
        assert text.endswith("for sums")
        require_same(end(1, clip_norm=0.5), x)


def test_read_only_parameters_that_would_be_averaged() -> None:
    def process(comm: Any) -> str:
        x = start()
        opt = Sharded(rules.AdamW, x, comm=comm, ema=0.9)
        opt.step(grads(comm.rank))
        x["b"].flags.writeable = comm.rank != 1
        with pytest.raises(ValueError, match="read-only") as info, opt.averaged():
            pass
        x["b"].flags.writeable = True
        opt.step(grads(comm.rank))
        return str(info.value)

    found = together(SIZE, process, limit=LIMIT)
    assert ['params["b"]' in text for text in found] == [True] * SIZE


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"rank": 2, "size": 2}, "rank 2 of size 2"),
        ({"rank": lambda: 0, "size": lambda: 1}, "comm.rank"),
        ({"rank": -1, "size": 2}, "comm.rank"),
    ],
)
def test_communicators_that_are_none(members: dict[str, Any], says: str) -> None:
    comm = type("Comm", (), {"alltoall": None, "allgather": None, **members})()
    with pytest.raises((TypeError, ValueError), match=says):
        Sharded(rules.AdamW, start(), comm=comm)


# ---- What ends it


class Broken:
    """A communicator whose exchange fails, in one process, from one on."""

    def __init__(self, comm: Thread, breaks: bool) -> None:
        self.rank, self.size, self.comm, self.breaks = comm.rank, comm.size, comm, breaks
        self.left = -1  # exchanges until it fails
        self.reasons: list[str] = []

    def count(self) -> None:
        self.left -= 1
        if self.breaks and self.left == 0:
            raise OSError("the network is away")

    def alltoall(self, sent: Any, received: Any) -> Any:
        self.count()
        return self.comm.alltoall(sent, received)

    def allgather(self, sent: Any, received: Any) -> Any:
        return self.comm.allgather(sent, received)

    def abort(self, reason: str) -> None:
        self.reasons.append(reason)


@pytest.mark.parametrize("exchange", [1, 2, 3])
def test_a_network_that_fails_within_a_step(exchange: int) -> None:
    """The job is aborted; where that returns, no step is taken any more."""

    def process(comm: Any) -> None:
        broken = Broken(comm, comm.rank == 1)
        opt = Sharded(rules.AdamW, start(), comm=broken)
        opt.step(grads(comm.rank))
        broken.left = exchange
        if comm.rank != 1:
            opt.step(grads(comm.rank))  # hangs, until the other one has gone
            return
        with pytest.raises(RuntimeError, match=r"process 1: half done.*the network is away"):
            opt.step(grads(comm.rank))
        assert ["OSError: the network is away" in reason for reason in broken.reasons] == [True]
        with pytest.raises(RuntimeError, match="half of one was done when it failed: OSError"):
            opt._require_whole()
        raise EOFError("all is checked")

    with pytest.raises(EOFError, match="all is checked"):
        together(SIZE, process, limit=LIMIT)


def test_parameters_that_somebody_writes_to() -> None:
    """Before the next step all processes have the same; behind it they have what was stepped."""

    def process(comm: Any) -> tuple[str, str, Arrays]:
        own = Process(comm, check_every=2)
        if comm.rank == 2:
            own.x["a"][9] += 1
            own.x["c"][()] += 1
        at_once = own.raised(lambda opt: opt.check())
        in_turn = own.raised(lambda opt: opt.step(grads(comm.rank)))
        with pytest.raises(RuntimeError, match="other bits"), own.opt.arriving():
            pass
        own.opt.check_every = 5
        return at_once, in_turn, own.steps(3)

    says = 'RuntimeError: params["a"], params["c"]: other bits in process 2 than in process 0; '
    found = together(SIZE, process, limit=LIMIT)
    for *texts, x in found:
        assert all(text.startswith(says) for text in texts)
        require_same(found[0][2], x)


def test_parameters_that_are_compared_in_turn() -> None:
    def process(comm: Any) -> list[int]:
        compared: list[int] = []
        opt = Sharded(rules.AdamW, start(), comm=comm, check_every=2)
        check = opt.check

        def noted() -> None:
            compared.append(opt.iterations)
            check()

        vars(opt)["check"] = noted
        for _ in range(5):
            opt.step(grads(comm.rank))
        with opt.arriving() as step:
            for name, g in grads(comm.rank).items():
                step(name, g)
        with opt.arriving():
            pass
        return compared

    assert together(SIZE, process, limit=LIMIT) == [[2, 4, 6]] * SIZE


@pytest.mark.parametrize("way", [*WAYS, "arriving"])
def test_parameters_beside_their_masters(way: str) -> None:
    """Who loads weights and forgets opt.refresh() hears it in all processes, before anything."""
    options = {"master": True, **WAYS.get(way, {})}
    written = {"c": 7}  # of which one process has the master

    def fresh() -> Arrays:
        return {name: a.astype(np.float16) for name, a in start().items()}

    def process(comm: Any) -> tuple[str, Arrays]:
        x = fresh()
        opt = Sharded(rules.AdamW, x, comm=comm, **options)

        def step() -> None:
            g = grads(comm.rank)
            if way != "arriving":
                opt.step(g)
                return
            with opt.arriving() as arrive:
                for name in reversed(g):
                    arrive(name, g[name])

        step()
        for name, value in written.items():
            x[name][...] = value
        before = snapshot(opt.own)
        with pytest.raises(ValueError, match="no longer what its master was rounded to") as info:
            step()
        assert all((x[name] == value).all() for name, value in written.items())
        assert snapshot(opt.own) == before
        opt.refresh()
        step()
        return str(info.value), x

    x = fresh()
    one = rules.AdamW(x, **options)
    pieces = [grads(rank) for rank in range(SIZE)]
    one.step(pieces=pieces)
    for name, value in written.items():
        x[name][...] = value
    one.refresh()
    one.step(pieces=pieces)
    for text, other in together(SIZE, process, later=True, limit=LIMIT):
        assert 'params["c"]' in text
        require_same(x, other)


# ---- MPI

PREAMBLE = """
    import os, signal
    from mpi4py import MPI
    from mpi.test_faults import *
    from schuss.mpi.wire import Wire

    comm = MPI.COMM_WORLD
    shares.BUCKET = 1 << 12
"""


def test_errors_on_mpi() -> None:
    """The same in all processes, and the job goes on."""
    code = """
        for case in WRONG:
            for way in WAYS:
                for rank in (0, 2):
                    found = comm.allgather(wrong_once(comm, case, way, rank))
                    require_error_and_steps(found, case, way, rank)
    """
    run_mpi(SIZE, PREAMBLE, code, limit=LIMIT)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("way", WAYS)
def test_an_error_that_nobody_catches(way: str, size: int) -> None:
    """Each process ends with it; mpiexec says that they failed."""
    code = f"""
        own = Process(comm, **WAYS[{way!r}])
        g = grads(comm.rank)
        if comm.rank == 1:
            del g["c"]
        own.opt.step(g)
    """
    said = run_mpi(size, PREAMBLE, code, limit=LIMIT, fails=True)
    assert "missing 'c'" in said


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("way", WAYS)
def test_a_process_that_is_killed(way: str, size: int) -> None:
    """In the middle of a step, while gradients are under way: the job ends."""
    code = f"""
        own = Process(comm, **WAYS[{way!r}])
        begin, exchanges = Wire.exchange, []

        def exchange(*arguments):
            exchanges.append(arguments)
            if comm.rank == 1 and len(exchanges) == 3:
                print("killed", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            return begin(*arguments)

        Wire.exchange = exchange
        own.steps(1)
    """
    assert "killed" in run_mpi(size, PREAMBLE, code, limit=LIMIT, fails=True)


def test_a_step_that_is_torn_ends_the_job() -> None:
    """With a line that says why, where one process fails when others go on."""
    code = """
        own = Process(comm)

        def exchange(*arguments):
            raise OSError("the network is away")

        if comm.rank == 1:
            Wire.exchange = exchange
        own.steps(1)
    """
    said = run_mpi(SIZE, PREAMBLE, code, limit=LIMIT, fails=True)
    assert "process 1: half done, and so nothing can go on: OSError: the network is away" in said
