"""How many threads a step may use.

The strongest first: `with schuss.threads(n)`, for the calling thread; `schuss.set_num_threads(n)`;
threadpoolctl or anything else that calls omp_set_num_threads, for the thread that called it and
where that changes OpenMP's own number; SCHUSS_NUM_THREADS; OMP_NUM_THREADS; the processors that the
calling thread may run on, or its control group's quota where that is less. OMP_THREAD_LIMIT caps
all of them. A small step runs on the calling thread alone, and a forked child always does; the rest
is in docs/threads.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from schuss import _core
from schuss.checks import check_int

__all__ = ["get_num_threads", "set_num_threads", "threads"]

MOST = 2**31 - 1  # of a C int; no step has work for as many


def set_num_threads(n: int) -> None:
    """Sets the number of threads that a step may use, for the whole process.

    n   at least 1; TypeError or ValueError otherwise
    """
    _core.set_threads_everywhere(min(check_int("n", n, 1), MOST))


def get_num_threads() -> int:
    """The number of threads that a large step of the calling thread would use now."""
    return _core.threads()[0]


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Sets the number of threads that steps of the calling thread may use, within a `with`.

    n   at least 1; TypeError or ValueError otherwise
    """
    before = _core.set_threads_here(min(check_int("n", n, 1), MOST))
    try:
        yield
    finally:
        _core.set_threads_here(before)


def from_environment(environment: Mapping[str, str]) -> int:
    """What SCHUSS_NUM_THREADS says, 0 where it isn't set; ValueError where it is no number."""
    text = environment.get("SCHUSS_NUM_THREADS", "")
    if not text:
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(
            f"SCHUSS_NUM_THREADS: {text!r} is no number of threads; "
            "wanted a whole number in [1, inf)"
        )
    return min(int(text), MOST)


def cgroup_quota(root: Path = Path("/")) -> int:
    """The processors that the control group grants, rounded up; 0 where there is no limit.

    Reads versions 1 and 2. In a container the group's own folder may not be there.
    """
    quotas = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):  # every ancestor's limit holds
            if folder.is_relative_to(top):
                quotas += _quota(folder)
    return min(quotas, default=0)


def _quota(folder: Path) -> list[int]:
    """The limit that one group sets, if any."""
    version_1 = [*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")]
    numbers = " ".join(_lines(folder / "cpu.max") or version_1).split()
    if len(numbers) != 2 or not all(n.isdecimal() and int(n) for n in numbers):
        return []  # no limit is "max", or -1
    return [math.ceil(int(numbers[0]) / int(numbers[1]))]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
