"""How many threads a step uses, and who may say so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schuss import _core
from schuss.threads import cgroup_quota, from_environment

pytestmark = pytest.mark.quick

Run = Callable[..., None]

IMPORTS = """
    import os, resource, threading
    affinity = os.sched_getaffinity(0)
    import schuss
    from schuss import _core
    from threadpoolctl import threadpool_info, threadpool_limits
    from trial import Trial, check, together

    def said(reason):
        assert schuss.show_config()["threads"]["reason"] == reason
    """

# ---- Who says it, the weakest first

LIMITS = {
    "OMP_NUM_THREADS": ({"OMP_NUM_THREADS": "3"}, "check(3); said('OMP_NUM_THREADS')"),
    "OMP_NUM_THREADS, one": ({"OMP_NUM_THREADS": "1"}, "check(1); said('OMP_NUM_THREADS')"),
    "OMP_NUM_THREADS, many": ({"OMP_NUM_THREADS": "1000"}, "check(1000)"),
    "OMP_NUM_THREADS by level": ({"OMP_NUM_THREADS": " 4,2"}, "check(4)"),
    "OMP_NUM_THREADS, no number": (
        {"OMP_NUM_THREADS": "abc"},
        "assert schuss.show_config()['threads']['reason'] in ('processors', 'cgroup quota')",
    ),
    "OMP_THREAD_LIMIT": ({"OMP_THREAD_LIMIT": "2", "SCHUSS_NUM_THREADS": "4"}, "check(2)"),
    "SCHUSS_NUM_THREADS": (
        {"OMP_NUM_THREADS": "2", "SCHUSS_NUM_THREADS": "3"},
        "check(3); said('SCHUSS_NUM_THREADS')",
    ),
    "threadpoolctl": (
        {"OMP_NUM_THREADS": "2", "SCHUSS_NUM_THREADS": "3"},
        """
        with threadpool_limits(1):
            check(1)
            said("omp_set_num_threads")
        check(3)
        """,
    ),
    "threadpoolctl, in its own thread": (
        {"SCHUSS_NUM_THREADS": "3"},
        """
        def limited():
            with threadpool_limits(1):
                check(1)
                inside.wait()  # with the other one's step
                inside.wait()

        inside = threading.Barrier(2)
        with together(limited):
            inside.wait()
            check(3)
            inside.wait()
        """,
    ),
    "set_num_threads": (
        {"SCHUSS_NUM_THREADS": "2"},
        """
        schuss.set_num_threads(3)
        with threadpool_limits(1):
            check(3)
            said("schuss.set_num_threads")
        assert schuss.get_num_threads() == 3
        """,
    ),
    "schuss.threads": (
        {"SCHUSS_NUM_THREADS": "2"},
        """
        schuss.set_num_threads(3)
        with schuss.threads(4):
            check(4)
            said("schuss.threads")
            with schuss.threads(1):
                check(1)
            check(4)
        check(3)
        """,
    ),
    "schuss.threads, until an exception": (
        {"SCHUSS_NUM_THREADS": "2"},
        """
        try:
            with schuss.threads(3):
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            check(2)
        """,
    ),
    "schuss.threads, in its own thread": (
        {"SCHUSS_NUM_THREADS": "2"},
        """
        seen = []
        with schuss.threads(3):
            thread = threading.Thread(target=lambda: seen.append(schuss.get_num_threads()))
            thread.start()
            thread.join()
        assert seen == [2]
        """,
    ),
    "more than can be counted": (
        {"SCHUSS_NUM_THREADS": "9" * 20},
        """
        most = schuss.get_num_threads()
        schuss.set_num_threads(10**20)
        with schuss.threads(10**20):
            assert schuss.get_num_threads() == most == 2**31 - 1
        """,
    ),
    "a small step": (
        {"SCHUSS_NUM_THREADS": "3"},
        """
        _core.set_grain(1 << 20)
        check(1)
        """,
    ),
}


@pytest.mark.parametrize(("environment", "code"), LIMITS.values(), ids=LIMITS)
def test_limit(run: Run, environment: dict[str, str], code: str) -> None:
    run(IMPORTS, code, **environment)


def test_limit_of_threadpoolctl_that_is_older_than_the_import(run: Run) -> None:
    code = """
        import ctypes
        from threadpoolctl import threadpool_limits
        ctypes.CDLL("libgomp.so.1")
        with threadpool_limits(1):
            from trial import check
            check(1)
        check(3)
        """
    run(code, OMP_NUM_THREADS="2", SCHUSS_NUM_THREADS="3")


@pytest.mark.parametrize("text", ["abc", "0", "-1", "1.5", "4,2"])
def test_schuss_num_threads_that_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match=f"SCHUSS_NUM_THREADS: '{text}' is no number"):
        from_environment({"SCHUSS_NUM_THREADS": text})


def test_schuss_num_threads_is_checked_at_import(run: Run) -> None:
    code = """
        try:
            import schuss
        except ValueError as error:
            assert str(error).startswith("SCHUSS_NUM_THREADS: 'abc'")
        else:
            raise AssertionError
        """
    run(code, SCHUSS_NUM_THREADS="abc")


# ---- Other libraries that use OpenMP


def test_schuss_loads_libgomp_alone(run: Run) -> None:
    code = """
        check(3)
        loaded = [library for library in threadpool_info() if library["user_api"] == "openmp"]
        assert [library["prefix"] for library in loaded] == ["libgomp"]
        """
    run(IMPORTS, code, SCHUSS_NUM_THREADS="3")


@pytest.mark.parametrize("imported", ["before", "after"])
def test_scikit_learn(run: Run, imported: str) -> None:
    pytest.importorskip("sklearn")
    code = """
        import sys
        if sys.argv[1] == "after":
            from trial import check
            check(3)
        from sklearn.cluster import KMeans
        fit = KMeans(2, n_init=1).fit
        points = [[float(i), float(i % 7)] for i in range(1000)]
        fit(points)
        from trial import check, forked
        for _ in range(2):
            check(3)
            fit(points)
        forked(check, 1)
        """
    run(code, arguments=[imported], SCHUSS_NUM_THREADS="3")


# ---- What the system allows

SYSTEM = {
    "one processor": """
        os.sched_setaffinity(0, [min(affinity)])
        check(1)
        assert len(os.listdir("/proc/self/task")) == 1
        """,
    "the affinity stays": """
        with schuss.threads(3):
            check(3)
        assert os.sched_getaffinity(0) == affinity
        """,
    "eight threads with eight optimizers": """
        def step_on():
            trials = [Trial() for _ in range(8)]
            for _ in range(5):
                for trial in trials:
                    trial.step()
                tasks.append(len(os.listdir("/proc/self/task")))
            for trial in trials:
                assert trial.bits == expected

        tasks, expected = [], Trial(backend="numpy").step(5).bits
        with schuss.threads(3):
            check(3)  # the caller, and a crew of two
        schuss.set_num_threads(3)
        with together(*[step_on] * 8):
            pass
        assert max(tasks) <= 1 + 8 + 2, max(tasks)
        """,
    "no memory for a thread": """
        trial, expected = Trial(), Trial(backend="numpy").step().bits
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, [used + (4 << 20)] * 2)
        with schuss.threads(4):
            trial.step()
        assert _core.widest_region() == 0
        assert trial.bits == expected
        """,
    "no more threads": """
        forbid_threads()
        with schuss.threads(4):
            check(1)
        """,
    "no more threads than a small team's": """
        with schuss.threads(2):
            check(2)
        forbid_threads()
        with schuss.threads(4):
            check(2)
        """,
    "no more threads, after those were started": """
        with schuss.threads(4):
            check(4)
        with schuss.threads(2):
            check(2)
        forbid_threads()
        with schuss.threads(4):
            check(4)
        """,
}


@pytest.mark.parametrize("code", SYSTEM.values(), ids=SYSTEM)
def test_system(run: Run, code: str) -> None:
    forbid_threads = """
        def forbid_threads():
            if os.getuid() == 0:
                os.setuid(65534)  # root has no such limit
            resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        """
    run(IMPORTS, forbid_threads, code)


def test_one_processor_before_the_import(run: Run) -> None:
    code = """
        import os, sys
        code = "import os; from trial import check; check(1); "
        code += "assert len(os.listdir('/proc/self/task')) == 1; print('end', flush=True)"
        processor = str(min(os.sched_getaffinity(0)))
        os.execvp("taskset", ["taskset", "-c", processor, sys.executable, "-c", code])
        """
    if shutil.which("taskset") is None:
        pytest.skip("no taskset")
    run(code)


MOUNT = "sys/fs/cgroup"

QUOTAS = {
    "no control groups": (0, {}),
    "no limit file": (0, {"proc/self/cgroup": "0::/a\n"}),
    "version 2": (2, {"proc/self/cgroup": "0::/a\n", f"{MOUNT}/a/cpu.max": "200000 100000\n"}),
    "version 2, rounded up": (
        2,
        {"proc/self/cgroup": "0::/a\n", f"{MOUNT}/a/cpu.max": "150000 100000\n"},
    ),
    "version 2, no limit": (
        0,
        {"proc/self/cgroup": "0::/a\n", f"{MOUNT}/a/cpu.max": "max 100000\n"},
    ),
    "version 2, no sense": (0, {"proc/self/cgroup": "0::/a\n", f"{MOUNT}/a/cpu.max": "many\n"}),
    "version 2, the least of the ancestors": (
        3,
        {
            "proc/self/cgroup": "0::/a/b/c\n",
            f"{MOUNT}/a/b/c/cpu.max": "max 100000\n",
            f"{MOUNT}/a/b/cpu.max": "500000 100000\n",
            f"{MOUNT}/a/cpu.max": "300000 100000\n",
            f"{MOUNT}/cpu.max": "400000 100000\n",
            "sys/fs/cpu.max": "100000 100000\n",
        },
    ),
    "version 2, in a container": (
        1,
        {"proc/self/cgroup": "0::/not/here\n", f"{MOUNT}/cpu.max": "50000 100000\n"},
    ),
    "version 1": (
        2,
        {
            "proc/self/cgroup": "4:memory:/m\n3:cpu,cpuacct:/a\n0::/\n",
            f"{MOUNT}/cpu,cpuacct/a/cpu.cfs_quota_us": "150000\n",
            f"{MOUNT}/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
            f"{MOUNT}/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            f"{MOUNT}/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    ),
    "version 1, no period": (
        0,
        {"proc/self/cgroup": "1:cpu:/\n", f"{MOUNT}/cpu/cpu.cfs_quota_us": "150000\n"},
    ),
    "version 1, another controller's": (
        0,
        {
            "proc/self/cgroup": "1:cpuset:/\n",
            f"{MOUNT}/cpuset/cpu.cfs_quota_us": "100000\n",
            f"{MOUNT}/cpuset/cpu.cfs_period_us": "100000\n",
        },
    ),
}


@pytest.mark.parametrize(("quota", "files"), QUOTAS.values(), ids=QUOTAS)
def test_cgroup_quota(tmp_path: Path, quota: int, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cgroup_quota(tmp_path) == quota


# ---- The pieces that threads take

CHUNK = 4096


@given(
    arrays=st.lists(st.tuples(st.integers(0, 2**54), st.integers(8, 48)), min_size=1, max_size=5),
    pieces=st.integers(1, 300),
)
def test_pieces_follow_one_another_and_are_of_one_size(
    arrays: list[tuple[int, int]], pieces: int
) -> None:
    total = sum(size * width for size, width in arrays)
    before, done = 0, [0] * (pieces + 1)  # the bytes of all pieces before
    for size, width in arrays:
        parts = [_core.share(size, width, before, total, piece, pieces) for piece in range(pieces)]
        edges = [0, *(last for _, last in parts)]
        assert parts == list(pairwise(edges))
        assert edges == sorted(edges)
        assert edges[-1] == size
        assert all(edge % CHUNK == 0 or edge == size for edge in edges)
        before += size * width
        done = [bytes_ + edge * width for bytes_, edge in zip(done, edges, strict=True)]
    widest = max(width for _, width in arrays)
    for piece, bytes_ in enumerate(done):
        assert 0 <= total * piece // pieces - bytes_ < CHUNK * widest
