"""What goes between processes: lists of buffers, to each its own or to all the same.

A communicator is an mpi4py one, or any object with the few members of `Communicator`. All processes
make the same calls in the same order. What they must not disagree on they agree on first:
`Wire.agree` raises one process's error in all of them.

An interrupt never leaves memory behind that is written later: an exchange on MPI begins in one call
and is waited for in one, both in C, where Python raises nothing, and one that an error has dropped
in between is waited for before its arrays can go.
"""

from __future__ import annotations

import builtins
import functools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, Protocol

import numpy as np

from schuss.checks import check_int

Buffers = Sequence[np.ndarray]  # 1-D, contiguous, uint8

MEMBERS = ("rank", "size", "alltoall", "allgather")
WANTED = f"an mpi4py communicator, or an object with {', '.join(MEMBERS[:-1])} and {MEMBERS[-1]}"

# MPICH 5 copies a contiguous message once, straight from the other process, and one of many places
# twice, through shared memory: from here on, 0.2 to 0.6 of the time, as a message of its own.
# Below, what a message costs in itself counts more.
ALONE = 32 << 10
LARGEST = 1 << 30  # bytes of a message: an int counts them before MPI 4
TAG = 0

RECORD = 64  # bytes of what processes tell each other at a point: whether one failed, and where


class Pending(Protocol):
    """An exchange that has begun."""

    def wait(self) -> object:
        """Returns when all has been sent and received, and at once where it has been before.

        An error out of it means that nothing will be written any more.
        """


class Communicator(Protocol):
    """What connects the processes, where it isn't mpi4py.

    Both calls fill `received` in place. They return None when that is done, or something to wait
    for when it has only begun; until then nobody touches the arrays. Exchanges begin in the same
    order everywhere, and several may be under way. Lists match in order, with equal sizes on both
    sides, and may be empty; those from a process to itself are.

    One that also has `abort(reason)` can end all processes, with a line of text.
    """

    @property
    def rank(self) -> int:
        """Which of the processes this is, from 0 on."""

    @property
    def size(self) -> int:
        """The number of processes."""

    def alltoall(self, sent: Sequence[Buffers], received: Sequence[Buffers]) -> Pending | None:
        """Sends sent[r] to each process r, and fills received[r] with what r sends to this one."""

    def allgather(self, sent: Buffers, received: Sequence[Buffers]) -> Pending | None:
        """Sends the same to all others, and fills received[r] with what process r sends."""


class Done:
    """An exchange that is over."""

    def wait(self) -> None:
        pass


class Wire:
    """What a process does with the others; alone, it does nothing.

    rank         which of the processes this is, from 0 on
    size         the number of processes
    sent_bytes   bytes of buffers that went to others so far
    """

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.rank = comm.rank
        self.size = comm.size
        self.sent_bytes = 0

    def exchange(self, sent: Sequence[Buffers], received: Sequence[Buffers]) -> Pending:
        """Begins to send sent[r] to each process r, and to fill received[r] with what r sends."""
        if self.size == 1:
            return Done()
        self.sent_bytes += sum(b.nbytes for buffers in sent for b in buffers)
        return self._comm.alltoall(sent, received) or Done()

    def share(self, sent: Buffers, received: Sequence[Buffers]) -> Pending:
        """Begins to send the same to all others, and to fill received[r] with what r sends."""
        if self.size == 1:
            return Done()
        self.sent_bytes += (self.size - 1) * sum(b.nbytes for b in sent)
        return self._comm.allgather(sent, received) or Done()

    def gather(self, data: bytes, *, fixed: bool = False) -> list[bytes]:
        """What every process has to say, in their order.

        fixed   whether all say something of the same length, which takes one round in place of
                two; default False
        """
        if fixed:
            return [row.tobytes() for row in self._rows(data, len(data))]
        lengths = self._rows(len(data).to_bytes(8, "little"), 8).view("<u8").ravel()
        rows = [np.empty(length, np.uint8) for length in lengths]
        rows[self.rank] = np.frombuffer(data, np.uint8)
        self._fill(rows)
        return [row.tobytes() for row in rows]

    def agree(self, at: str, error: BaseException | None = None) -> None:
        """Returns where all processes are at the same point and none has failed, or else nowhere.

        at      where this process is, the same text for all: 63 bytes of it count
        error   what went wrong here

        Every process raises the error of the lowest one that failed: that one its own, others one
        of the same built-in kind that names the process. RuntimeError
        where they are at different points. What one process interrupts here or behind, others
        don't know of: a point that counts the steps shows it at the next.
        """
        point = at.encode()[: RECORD - 1]
        rows = self._rows(bytes([error is not None]) + point, RECORD)
        if error is None and (rows == rows[self.rank]).all():
            return
        points = [row[1:].tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]
        if len(set(points)) > 1:
            raise RuntimeError(f"processes are at different points: {by_point(points)}") from error
        first = int(rows[:, 0].argmax())
        told = self.gather(tell(error) if error is not None and self.rank == first else b"")[first]
        if error is not None and self.rank == first:
            raise error
        raise heard(told, first) from error

    def abort(self, error: BaseException) -> NoReturn:
        """Ends all processes, with a line that says why: what is half done can't be mended.

        Raises RuntimeError where the communicator has no `abort`.
        """
        kind = type(error).__name__
        reason = f"process {self.rank}: half done, and so nothing can go on: {kind}: {error}"
        end = getattr(self._comm, "abort", None)
        if end is not None:
            end(reason)
        raise RuntimeError(reason) from error

    def _rows(self, own: bytes, length: int) -> np.ndarray:
        """What each process has to say in so many bytes, a row each; zeros follow."""
        rows = np.zeros((self.size, length), np.uint8)
        rows[self.rank, : len(own)] = np.frombuffer(own, np.uint8)
        self._fill(rows)
        return rows

    def _fill(self, rows: Sequence[np.ndarray] | np.ndarray) -> None:
        """Sends the own row to all, and fills those of the others."""
        others = [[row] if r != self.rank else [] for r, row in enumerate(rows)]
        self.share([rows[self.rank]], others).wait()


def by_point(points: Sequence[str]) -> str:
    """Which processes are where."""
    ranks: dict[str, list[str]] = {}
    for rank, point in enumerate(points):
        ranks.setdefault(point, []).append(str(rank))
    return "; ".join(
        f"{', '.join(found[:8])}{' ...' if len(found) > 8 else ''} at {point!r}"
        for point, found in ranks.items()
    )


def tell(error: BaseException) -> bytes:
    """An error as bytes: the built-in kind that it is of, its text, and an OSError's file."""
    kind = next(c.__name__ for c in type(error).__mro__ if getattr(builtins, c.__name__, None) is c)
    own = type(error).__name__
    says = str(error) if own == kind and str(error) else f"{own}: {error}" if str(error) else own
    told: dict[str, Any] = {"kind": kind, "says": says}
    if isinstance(error, OSError) and error.errno is not None:
        told |= {"kind": "OSError", "says": error.strerror, "errno": error.errno}
        told["file"] = os.fsdecode(error.filename) if error.filename else None
    return json.dumps(told).encode()


def heard(told: bytes, rank: int) -> BaseException:
    """The error that another process told of."""
    found = json.loads(told)
    says = f"process {rank}: {found['says']}"
    if "errno" in found:
        return OSError(found["errno"], says, found["file"])
    try:
        error: BaseException = getattr(builtins, found["kind"])(says)
    except TypeError:  # of a kind that wants more than a text
        return RuntimeError(says)
    return error if isinstance(error, Exception | KeyboardInterrupt) else RuntimeError(says)


# ---- MPI


class Begun:
    """Persistent requests of MPI's, which one call starts and one waits for."""

    def __init__(self, mpi: Any, arrays: object) -> None:
        self._mpi = mpi
        self._arrays = arrays  # MPI knows their addresses alone
        self.requests: list[Any] = []
        self.types: list[Any] = []

    def wait(self) -> None:
        statuses: list[Any] = []
        try:
            self._mpi.Request.Waitall(self.requests, statuses)  # at once, where none is started
        except self._mpi.Exception as error:
            known = (self._mpi.SUCCESS, self._mpi.ERR_PENDING)
            codes = [status.error for status in statuses if status.error not in known]
            raise self._mpi.Exception(codes[0]) if codes else error from None
        for used in (self.requests, self.types):
            while used:
                used.pop().Free()

    __del__ = wait


class Messages:
    """A communicator of mpi4py's: one message for all small buffers, and one for each other.

    Nothing is copied on the way. Each begins with its neighbour, or all would with the same one.
    """

    def __init__(self, comm: Any, mpi: Any) -> None:
        self._mpi = mpi
        self._comm = duplicate(comm)
        self.rank: int = comm.rank
        self.size: int = comm.size

    def alltoall(self, sent: Sequence[Buffers], received: Sequence[Buffers]) -> Begun:
        begun = Begun(self._mpi, (sent, received))
        for way, lists, call in (
            (-1, received, self._comm.Recv_init),
            (1, sent, self._comm.Send_init),
        ):
            for distance in range(1, self.size):
                other = (self.rank + way * distance) % self.size
                for message in messages(lists[other]):
                    begun.requests.append(call(self._places(message, begun), other, TAG))
        self._mpi.Prequest.Startall(begun.requests)
        return begun

    def allgather(self, sent: Buffers, received: Sequence[Buffers]) -> Begun:
        return self.alltoall([sent] * self.size, received)

    def abort(self, reason: str) -> None:
        print(f"schuss.mpi: {reason}", file=sys.stderr, flush=True)
        self._comm.Abort(1)

    def _places(self, message: Buffers, begun: Begun) -> Any:
        """The buffers of a message as MPI takes them."""
        if len(message) == 1:
            return message[0], self._mpi.BYTE
        places = [self._mpi.Get_address(b) for b in message]
        joined = self._mpi.BYTE.Create_hindexed([b.nbytes for b in message], places).Commit()
        begun.types.append(joined)
        return self._mpi.BOTTOM, 1, joined


def messages(buffers: Buffers) -> Iterator[Buffers]:
    """What goes together, the same on both sides: the small buffers, then each other in parts."""
    small = [b for b in buffers if 0 < b.nbytes < ALONE]
    if small:
        yield small
    for b in buffers:
        if b.nbytes >= ALONE:
            yield from ([b[i : i + LARGEST]] for i in range(0, b.nbytes, LARGEST))


def duplicate(comm: Any) -> Any:
    """The duplicate of a communicator on which our messages never meet the user's.

    The first call makes it, on all processes; it goes when the user frees theirs. Its errors are
    exceptions, as mpi4py has it for all that it makes.
    """
    key = key_of_duplicates()
    found = comm.Get_attr(key)
    if found is None:
        found = comm.Dup()
        comm.Set_attr(key, found)
    return found


@functools.cache
def key_of_duplicates() -> int:
    """The key under which a communicator of the user's has ours."""
    key: int = load().Comm.Create_keyval(delete_fn=lambda comm, key, found: found.Free())
    return key


def load() -> Any:
    """mpi4py's MPI, which starts MPI where nobody has."""
    try:
        from mpi4py import MPI  # noqa: PLC0415 -- imported when it is asked for
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            "schuss.mpi: needs mpi4py: pip install 'schuss[mpi]'", name=missing.name
        ) from missing
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            "schuss.mpi: mpi4py finds no MPI library: pip install 'schuss[mpi]' brings one; a "
            "cluster's own has to be on the path of libraries, or named by MPI4PY_LIBMPI"
        ) from error
    return MPI


def wire(comm: Any | None) -> Wire:
    """What a process does with the others of a communicator.

    comm   of mpi4py, or a `Communicator`; None: MPI's COMM_WORLD

    All processes call it: the first call for a communicator of mpi4py's duplicates it. Raises
    TypeError for what is no communicator, and ValueError for one between two groups.
    """
    mpi: Any = load() if comm is None else sys.modules.get("mpi4py.MPI")
    if comm is None:
        comm = mpi.COMM_WORLD
    if mpi is not None and isinstance(comm, mpi.Comm):
        if comm.Is_inter():
            raise ValueError("comm: one among all processes is wanted, not between two groups")
        return Wire(Messages(comm, mpi))
    for member in MEMBERS:
        if not hasattr(comm, member):
            kind = type(comm).__name__
            raise TypeError(f"comm: {WANTED} is wanted; {kind} has no {member!r}")
    rank, size = (check_int(f"comm.{name}", getattr(comm, name), 0) for name in MEMBERS[:2])
    if rank >= size:
        raise ValueError(f"comm: rank {rank} of size {size}; ranks count from 0")
    return Wire(comm)
