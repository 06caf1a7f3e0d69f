"""What OpenMP limits, limits us, and a machine without it is one like any other."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., None]
Compile = Callable[..., Path]

IMPORTS = """
    import ctypes, sys
    from threadpoolctl import threadpool_info, threadpool_limits
    from trial import Trial, check, forked
    import schuss

    def openmp():
        return [library["filepath"] for library in threadpool_info()
                if library["user_api"] == "openmp"]

    def said(reason):
        assert schuss.show_config()["threads"]["reason"] == reason
    """


@pytest.fixture(scope="module")
def without_libgomp(compiled: Compile) -> dict[str, str]:
    """The environment of a process that finds no libgomp.so.1."""
    return {"LD_AUDIT": str(compiled("absent.cpp")), "SCHUSS_NUM_THREADS": "3"}


LIMITS = {
    "none": ({}, "check(3); forked(check, 1); said('SCHUSS_NUM_THREADS')"),
    "OMP_NUM_THREADS": (
        {"OMP_NUM_THREADS": "2", "SCHUSS_NUM_THREADS": ""},
        "check(2); said('OMP_NUM_THREADS')",
    ),
    "OMP_THREAD_LIMIT": ({"OMP_THREAD_LIMIT": "2"}, "check(2); said('OMP_THREAD_LIMIT')"),
    "OMP_THREAD_LIMIT, no number": ({"OMP_THREAD_LIMIT": "abc"}, "check(3)"),
    "schuss.threads": ({}, "with schuss.threads(2): check(2)"),
}


@pytest.mark.parametrize(("environment", "code"), LIMITS.values(), ids=LIMITS)
def test_without_libgomp(
    run: Run, without_libgomp: dict[str, str], environment: dict[str, str], code: str
) -> None:
    run(IMPORTS, "assert not openmp()", code, **{**without_libgomp, **environment})


def test_another_librarys_own_copy(
    run: Run, without_libgomp: dict[str, str], tmp_path: Path
) -> None:
    """Wheels bring theirs along under names of their own, and may be imported after us."""
    try:
        system = ctypes.CDLL("libgomp.so.1")
    except OSError:
        pytest.skip("no libgomp.so.1 to be copied")
    copy = shutil.copy(path_of(system), tmp_path / "libgomp-0123abcd.so.1.0.0")
    code = """
        assert not openmp()
        check(3)
        copy = ctypes.CDLL(sys.argv[1])
        assert openmp() == sys.argv[1:]
        check(3)
        with threadpool_limits(1):
            check(1)
            said("omp_set_num_threads")
        check(3)
        """
    run(IMPORTS, code, arguments=[copy], **without_libgomp, OMP_NUM_THREADS="2")


def path_of(library: ctypes.CDLL) -> str:
    """Where it was found: the first line of the process's map in which its function lies."""
    address = ctypes.cast(library.omp_get_max_threads, ctypes.c_void_p).value
    assert address is not None
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(edge, 16) for edge in line.split()[0].split("-"))
        if first <= address < last:
            return line.split()[-1]
    raise AssertionError


def test_a_step_in_a_region_of_openmp_is_the_callers_alone(run: Run, compiled: Compile) -> None:
    """Each thread of a team calls Python, one after the other."""
    code = """
        call = ctypes.CFUNCTYPE(None)
        seen = []

        @call
        def step():
            check(1)
            seen.append(1)

        check(3)
        ctypes.CDLL(sys.argv[1]).in_region(2, step)
        assert len(seen) == 2
        check(3)
        """
    run(IMPORTS, code, arguments=[compiled("openmp.cpp", "-fopenmp")], SCHUSS_NUM_THREADS="3")
