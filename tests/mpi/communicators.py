"""What connects processes in tests: threads of this one, or mpiexec's with a time limit."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any, TypeVar

import numpy as np
import pytest

R = TypeVar("R")

TESTS = Path(__file__).parents[1]
LIMIT = 60.0  # seconds, after which what hangs has failed
END = "<end>"  # which mpiexec may cut from its line's end


class Meeting:
    """Where threads put what they send: for each exchange, by its number and the sender's rank."""

    def __init__(self, size: int, limit: float) -> None:
        self.barrier = threading.Barrier(size, timeout=limit)
        self.sent: dict[tuple[int, int], Sequence[Sequence[np.ndarray]]] = {}


class Thread:
    """A communicator between threads, with nothing of MPI.

    With `later` an exchange has only begun when it returns, and all is copied by `wait()`.
    """

    def __init__(self, meeting: Meeting, rank: int, size: int, later: bool) -> None:
        self.rank = rank
        self.size = size
        self._meeting = meeting
        self._later = later
        self._exchanges = 0

    def alltoall(
        self, sent: Sequence[Sequence[np.ndarray]], received: Sequence[Sequence[np.ndarray]]
    ) -> Copies | None:
        number, self._exchanges = self._exchanges, self._exchanges + 1
        self._meeting.sent[number, self.rank] = sent
        copies = Copies(self._meeting, number, self.rank, received)
        if self._later:
            return copies
        copies.wait()
        return None

    def allgather(
        self, sent: Sequence[np.ndarray], received: Sequence[Sequence[np.ndarray]]
    ) -> Copies | None:
        return self.alltoall([[] if r == self.rank else sent for r in range(self.size)], received)


class Copies:
    """What is copied when all have come, once."""

    def __init__(
        self, meeting: Meeting, number: int, rank: int, received: Sequence[Sequence[np.ndarray]]
    ) -> None:
        self._meeting = meeting
        self._number = number
        self._rank = rank
        self._received = received
        self._done = False

    def wait(self) -> None:
        if self._done:
            return
        self._meeting.barrier.wait()
        for r, places in enumerate(self._received):
            found = self._meeting.sent[self._number, r][self._rank]
            assert [b.shape for b in found] == [b.shape for b in places], (r, self._rank)
            assert not (r == self._rank and found)
            for place, buffer in zip(places, found, strict=True):
                assert place.dtype == buffer.dtype == np.uint8
                assert place.ndim == 1
                assert place.flags.c_contiguous
                assert buffer.flags.c_contiguous
                place[...] = buffer
        self._meeting.barrier.wait()
        del self._meeting.sent[self._number, self._rank]
        self._done = True


def together(
    size: int, work: Callable[[Any], R], *, later: bool = False, limit: float = LIMIT
) -> list[R]:
    """What `work(comm)` returns in each of so many threads, in the order of their ranks.

    The first error of one is raised, and ends the waiting of the others; whoever is not there after
    `limit` seconds has failed.
    """
    meeting = Meeting(size, limit)
    results: dict[int, R] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(Thread(meeting, rank, size, later))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(r,), daemon=True) for r in range(size)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + limit + 1  # after the barrier's, which says more
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    if errors:
        raise errors[0]
    if len(results) < size:
        raise TimeoutError(f"{size - len(results)} of {size} threads hang")
    return [results[r] for r in range(size)]


def environment() -> dict[str, str]:
    """In which processes of MPI find what is tested, and run more than there are processors."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    given = {
        "PYTHONPATH": os.pathsep.join(paths),
        "OPENBLAS_NUM_THREADS": "1",
        "SCHUSS_NUM_THREADS": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    own: dict[str, str] = {}
    # A wheel's library lies beside its mpiexec; mpi4py looks for it in this Python's folder only.
    for library in Path(mpiexec() or sys.executable).parents[1].glob("lib/libmpi.so.*"):
        own.setdefault("MPI4PY_LIBMPI", str(library))
    return own | os.environ | given


def mpiexec() -> str | None:
    """The command that starts processes: this Python's, or the first on the path."""
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which("mpiexec", path=here)


@functools.cache
def absent() -> str | None:
    """Why nothing of MPI runs here, where it doesn't."""
    if importlib.util.find_spec("mpi4py") is None:
        return "no mpi4py"
    if mpiexec() is None:
        return "no mpiexec"
    command = [sys.executable, "-c", "from mpi4py import MPI"]
    tried = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False
    )
    return f"mpi4py has no MPI library: {tried.stderr[-200:]}" if tried.returncode else None


def run_mpi(
    size: int,
    *code: str,
    arguments: Sequence[object] = (),
    limit: float = LIMIT,
    fails: bool = False,
    **more: str,
) -> str:
    """Runs code in so many processes of MPI, with sys.argv[1:] and additions to the environment.

    Fails, with all that they have to say, unless each reaches the end of the code in time and exits
    with 0, or else, with `fails`, unless mpiexec says that they failed in time. Returns what they
    print. Skips the test where there is no MPI.
    """
    reason = absent()
    if reason is not None:
        pytest.skip(reason)
    text = "\n".join([*map(dedent, code), f"print({END!r}, flush=True)"])
    process = subprocess.Popen(
        [str(mpiexec()), "-n", str(size), sys.executable, "-X", "faulthandler"]
        + ["-m", "mpi4py", "-c", text]  # where an error of one ends the others
        + [str(a) for a in arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | more,
        start_new_session=True,
    )
    late = False
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(process.pid, signal.SIGTERM)  # mpiexec ends those that it has started
        try:
            out, err = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
    ended = out.count(END) == size and process.returncode == 0
    if late or ended == fails:
        said = f"exit code {process.returncode}, late: {late}\n--- stdout\n{out}\n--- stderr\n{err}"
        pytest.fail(said, pytrace=False)
    return out.replace(END, "") + err
