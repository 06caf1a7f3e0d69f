"""Exchanges between processes, what they agree on, and what is a communicator."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from guest.conftest import run_code

from mpi.communicators import environment, run_mpi, together
from schuss.mpi import wire as module
from schuss.mpi.wire import Wire, wire

SIZES = [1, 2, 3, 4, 8]
LENGTHS = (0, 1, 7, 64, 4096, (32 << 10) - 1, 32 << 10, 100_000)


def content(seed: int, a: int, b: int, lengths: Sequence[int]) -> list[np.ndarray]:
    """What process a sends to b: buffers with gaps between them."""
    rng = np.random.default_rng((seed, a, b))
    return [rng.integers(0, 256, n + 3, np.uint8)[1 : n + 1] for n in lengths]


def room(found: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Arrays with an edge around, and the buffers in them for what is to come."""
    wholes = [np.full(b.size + 16, 99, np.uint8) for b in found]
    return wholes, [whole[8:-8] for whole in wholes]


def check(places: tuple[list[np.ndarray], list[np.ndarray]], found: Sequence[np.ndarray]) -> None:
    for whole, place, buffer in zip(*places, found, strict=True):
        np.testing.assert_array_equal(place, buffer)
        assert (whole[:8] == 99).all()
        assert (whole[-8:] == 99).all()


def exchanges(w: Wire, seed: int) -> None:
    """Random lists each way, several under way at once, and what was counted."""
    rng = np.random.default_rng(seed)  # the same everywhere
    rank, size = w.rank, w.size
    begun: list[tuple[Any, list[tuple[Any, list[np.ndarray]]]]] = []
    bytes_sent = 0
    for k in range(6):
        lengths = [
            [[int(n) for n in rng.choice(LENGTHS, rng.integers(0, 9))] for _ in range(size)]
            for _ in range(size)
        ]
        seeds = seed + k
        if k % 2:  # the same to all
            sent = content(seeds, rank, rank, lengths[rank][rank])
            expected = [
                content(seeds, r, r, lengths[r][r]) if r != rank else [] for r in range(size)
            ]
            places = [room(found) for found in expected]
            pending = w.share(sent, [views for _, views in places])
            bytes_sent += (size - 1) * sum(lengths[rank][rank])
        else:
            each = [
                content(seeds, rank, r, lengths[rank][r]) if r != rank else [] for r in range(size)
            ]
            expected = [
                content(seeds, r, rank, lengths[r][rank]) if r != rank else [] for r in range(size)
            ]
            places = [room(found) for found in expected]
            pending = w.exchange(each, [views for _, views in places])
            bytes_sent += sum(b.nbytes for buffers in each for b in buffers)
        begun.append((pending, list(zip(places, expected, strict=True))))
        if rng.random() < 0.5:
            begun.pop(0)[0].wait()
    for pending, both in begun:
        pending.wait()
        pending.wait()  # at once
        for found, what in both:
            check(found, what)
    assert w.sent_bytes == bytes_sent


def gathers(w: Wire) -> None:
    for length in (0, 1, 1000, 100_000):
        texts = [bytes([r]) * (length * r) for r in range(w.size)]
        assert w.gather(texts[w.rank]) == texts
        same = [bytes([r]) * length for r in range(w.size)]
        before = w.sent_bytes
        assert w.gather(same[w.rank], fixed=True) == same
        assert w.sent_bytes - before == (w.size - 1) * length


def agreements(w: Wire) -> None:
    """All that can come of an agreement; what fails here must be raised everywhere."""
    rank, last = w.rank, w.size - 1
    for k in range(3):
        w.agree(f"step {k}")

    # One fails, of each kind; one's own is the very object.
    class OwnError(Exception):
        """One that others don't know."""

    known = ValueError, FloatingPointError, MemoryError, KeyError, KeyboardInterrupt
    for kind in (*known, OwnError):
        mine = kind("gradient 'ü\udcff'") if rank == last else None
        with pytest.raises(BaseException, match="gradient") as caught:
            w.agree("step", mine)
        if rank == last:
            assert caught.value is mine
        else:
            assert type(caught.value) is (Exception if kind is OwnError else kind)
            says = caught.value.args[0]
            assert says.startswith(f"process {last}: ")
            assert ("OwnError: " in says) == (kind is OwnError)
    # A file's error is what it was, and one that wants more than a text is another.
    for found, error in (
        (FileNotFoundError, FileNotFoundError(2, "No such file or directory", "run")),
        (PermissionError, PermissionError(13, "Permission denied", b"run")),
        (RuntimeError, UnicodeDecodeError("utf-8", b"x", 0, 1, "wrong")),
    ):
        with pytest.raises(Exception) as caught:  # noqa: PT011 -- its kind is compared
            w.agree("step", error if rank == last else None)
        if rank < last:
            assert type(caught.value) is found
            assert f"process {last}: " in str(caught.value)
            assert getattr(caught.value, "filename", "run") == "run"
    # All fail: the lowest's is raised, and the own one is its cause.
    mine = ValueError(f"mine {rank}")
    with pytest.raises(ValueError, match="mine 0") as caught:
        w.agree("step", mine)
    assert (caught.value is mine) == (rank == 0)
    if rank:
        assert str(caught.value) == "process 0: mine 0"
        assert caught.value.__cause__ is mine
    # Without a text, its name.
    with pytest.raises(MemoryError) as empty:
        w.agree("step", MemoryError() if rank == last else None)
    assert str(empty.value) == ("" if rank == last else f"process {last}: MemoryError")
    # At different points, failed or not.
    if w.size > 1:
        for mine in (None, ValueError("mine")):
            with pytest.raises(RuntimeError, match="different points") as apart:
                w.agree("save" if rank == last else "step 3", mine)
            assert f"{last} at 'save'" in str(apart.value)
            assert "0" in str(apart.value).split(" at 'step 3'")[0]
            assert apart.value.__cause__ is mine
    w.agree("end")  # all is well again


def trial(comm: Any, seed: int) -> None:
    w = wire(comm)
    assert (w.rank, w.size) == (comm.rank, comm.size)
    exchanges(w, seed)
    before = w.sent_bytes
    w.agree("here")
    assert w.sent_bytes - before == (w.size - 1) * module.RECORD  # one small all-gather
    gathers(w)
    agreements(w)


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_threads(size: int, later: bool, seed: int) -> None:
    together(size, lambda comm: trial(comm, seed), later=later)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_mpi(size: int, seed: int) -> None:
    run_mpi(
        size,
        """
        import sys
        from mpi4py import MPI
        from mpi.test_wire import trial

        trial(MPI.COMM_WORLD, int(sys.argv[1]))
        trial(MPI.COMM_WORLD.Split(0, -MPI.COMM_WORLD.rank), int(sys.argv[1]))
        """,
        arguments=[seed],
    )


def test_threads_fail() -> None:
    """The harness itself: an error of one is raised, and ends the others' waiting."""

    def fails(comm: Any) -> None:
        if comm.rank == 1:
            raise ValueError("mine")
        wire(comm).agree("here")

    def leaves(comm: Any) -> None:
        if comm.rank == 1:
            wire(comm).agree("here")

    with pytest.raises(ValueError, match="mine"):
        together(3, fails)
    with pytest.raises(threading.BrokenBarrierError):
        together(2, leaves, limit=0.2)
    with pytest.raises(TimeoutError, match="1 of 2"):
        together(2, lambda comm: time.sleep(3 * comm.rank), limit=0.2)


def test_many_processes_are_named_in_short() -> None:
    found = module.by_point(["step 3"] * 10 + ["save"])
    assert found == "0, 1, 2, 3, 4, 5, 6, 7 ... at 'step 3'; 10 at 'save'"


# ---- What is a communicator


class Alone:
    """The least that is one."""

    rank = 0
    size = 2

    def alltoall(self, sent: object, received: Sequence[list[np.ndarray]]) -> None:
        for buffer in received[1]:
            buffer[...] = 0

    def allgather(self, sent: object, received: Sequence[list[np.ndarray]]) -> None:
        self.alltoall(sent, received)


def test_other_objects() -> None:
    w = wire(Alone())
    x = np.ones(5, np.uint8)
    w.exchange([[], []], [[], [x]]).wait()
    assert not x.any()
    with pytest.raises(RuntimeError, match="different points"):
        w.agree("here")
    with pytest.raises(TypeError, match=r"comm: an mpi4py communicator.*int has no 'rank'"):
        wire(3)
    for member in ("alltoall", "allgather", "size"):
        lacking = type("Mine", (), {k: v for k, v in vars(Alone).items() if k != member})
        with pytest.raises(TypeError, match=f"Mine has no '{member}'"):
            wire(lacking())


def test_abort() -> None:
    reasons: list[str] = []
    error = ValueError("torn")
    reason = "process 0: half done, and so nothing can go on: ValueError: torn"
    with pytest.raises(RuntimeError, match=reason) as caught:
        wire(Alone()).abort(error)
    assert caught.value.__cause__ is error
    mine = type("Mine", (Alone,), {"abort": lambda self, reason: reasons.append(reason)})
    with pytest.raises(RuntimeError, match=reason):
        wire(mine()).abort(error)
    assert reasons == [reason]


def test_nothing_is_imported() -> None:
    run_code(
        """
        import sys
        import schuss
        import schuss.mpi.wire
        from mpi.test_wire import Alone
        schuss.mpi.wire.wire(Alone())
        assert not [name for name in sys.modules if name.startswith("mpi4py")]
        """,
        PYTHONPATH=environment()["PYTHONPATH"],
    )


def test_no_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs mpi4py: pip install 'schuss\[mpi\]'"):
        wire(None)


def test_no_library() -> None:
    pytest.importorskip("mpi4py")
    run_code(
        """
        from schuss.mpi.wire import wire
        try:
            wire(None)
        except ImportError as error:
            assert "mpi4py finds no MPI library: pip install 'schuss[mpi]'" in str(error)
        """,
        MPI4PY_LIBMPI="/nowhere/libmpi.so",
    )


# ---- MPI

MPI_IMPORTS = """
    import sys
    import time
    import numpy as np
    import pytest
    from mpi4py import MPI
    from schuss.mpi import wire as module
    from schuss.mpi.wire import wire

    world = MPI.COMM_WORLD
    w = wire(None)
    rank, other = world.rank, 1 - world.rank

    def to_other(buffers):
        return [buffers if r == other else [] for r in range(2)]
    """


def test_long_buffers_are_cut(seed: int) -> None:
    run_mpi(
        2,
        MPI_IMPORTS,
        """
        from mpi.test_wire import trial

        module.LARGEST = 33_000
        trial(world, int(sys.argv[1]))
        parts = [m[0].size for m in module.messages([np.zeros(100_000, np.uint8)])]
        assert parts == [33_000, 33_000, 33_000, 1000]
        """,
        arguments=[seed],
    )


def test_messages() -> None:
    """Small buffers go together, others alone, and empty ones not at all."""
    sizes = [module.ALONE, 1, 0, module.ALONE - 1, module.ALONE + 1]
    found = [[b.size for b in m] for m in module.messages([np.zeros(n, np.uint8) for n in sizes])]
    assert found == [[1, module.ALONE - 1], [module.ALONE], [module.ALONE + 1]]
    assert not list(module.messages([]))


def test_users_messages_are_theirs() -> None:
    """What the user waits for isn't met by ours, nor by those of a communicator made of theirs."""
    run_mpi(
        2,
        MPI_IMPORTS,
        """
        x = np.zeros(8, np.uint8)
        any_message = world.Irecv((x, MPI.BYTE), MPI.ANY_SOURCE, MPI.ANY_TAG)
        copy = world.Dup()
        wire(copy).agree("here")
        w.agree("here")
        wire(world).agree("here")
        assert not any_message.Test()
        world.Barrier()
        world.Send((np.full(8, 5, np.uint8), MPI.BYTE), other, 3)
        any_message.Wait()
        assert (x == 5).all()
        """,
    )


@pytest.mark.parametrize(("size", "times"), [(1, 5000), (2, 3)])
def test_duplicates_go(size: int, times: int) -> None:
    """With the user's communicator, and not before; MPICH has 2048 of them."""
    run_mpi(
        size,
        MPI_IMPORTS,
        """
        for k in range(int(sys.argv[1])):
            comm = world.Split(0, rank)
            one, same = wire(comm), wire(comm)
            one.agree(str(k))
            same.agree(str(k))
            comm.Free()
        """,
        arguments=[times],
    )


def test_between_groups() -> None:
    run_mpi(
        2,
        MPI_IMPORTS,
        """
        between = MPI.COMM_SELF.Create_intercomm(0, world, other, 1)
        with pytest.raises(ValueError, match="not between two groups"):
            wire(between)
        """,
    )


def test_errors_of_mpi() -> None:
    """As mpi4py's exceptions, whatever the user's communicator does with errors."""
    run_mpi(
        2,
        """
        from mpi4py import MPI
        MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_ARE_FATAL)
        """,
        MPI_IMPORTS,
        """
        sent, room = np.zeros(9 if rank else 0, np.uint8), np.zeros(0 if rank else 5, np.uint8)
        pending = w.exchange(to_other([sent]), to_other([room]))
        if rank == 0:
            with pytest.raises(MPI.Exception, match="(?i)truncated"):
                pending.wait()
        else:
            pending.wait()
        """,
    )


def test_abort_of_mpi() -> None:
    """All are ended, with a line that says why: of others that wait, too."""
    said = run_mpi(
        2,
        MPI_IMPORTS,
        """
        if rank == 1:
            with pytest.raises(RuntimeError):  # had it come back
                w.abort(ValueError("torn"))
        w.agree("here")
        """,
        fails=True,
    )
    line = "schuss.mpi: process 1: half done, and so nothing can go on: ValueError: torn"
    assert said.count(line) == 1


@pytest.mark.parametrize("where", ["before", "begun", "waiting"])
def test_interrupts(where: str) -> None:
    """What has begun is over when the error is; what hasn't can be begun again."""
    run_mpi(
        2,
        MPI_IMPORTS,
        """
        from types import SimpleNamespace

        armed = False

        def interrupting(call, before=False):
            def called(*arguments):
                if armed and before:
                    raise KeyboardInterrupt
                call(*arguments)
                if armed:
                    raise KeyboardInterrupt
            return called

        where = sys.argv[1]
        startall, waitall = MPI.Prequest.Startall, MPI.Request.Waitall
        begins = interrupting(startall, where == "before") if where != "waiting" else startall
        waits = interrupting(waitall) if where == "waiting" else waitall
        fake = SimpleNamespace(
            Prequest=SimpleNamespace(Startall=begins),
            Request=SimpleNamespace(Waitall=waits),
            **{name: getattr(MPI, name) for name in ("BYTE", "BOTTOM", "Get_address", "Exception")},
        )
        w = module.Wire(module.Messages(world, fake))
        sizes = (20_000_000, 5, 6, 100_000)
        for _ in range(5):
            sent = [np.full(n, 1 + rank, np.uint8) for n in sizes]
            room = [np.zeros(n, np.uint8) for n in sizes]
            armed = rank == 0
            if rank:
                time.sleep(0.05)  # or all would have gone by itself
            try:
                pending = w.exchange(to_other(sent), to_other(room))
                pending.wait()
            except KeyboardInterrupt:
                assert rank == 0
            else:
                assert rank == 1
            armed = False
            pending = None
            if where == "before" and rank == 0:
                assert not any(b.any() for b in room)
                w.exchange(to_other(sent), to_other(room)).wait()
            assert all((b == 1 + other).all() for b in room)
        w.agree("end")
        """,
        arguments=[where],
    )
