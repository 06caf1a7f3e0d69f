"""A forked child steps, on one thread, with the bits of its parent.

libgomp hangs in a child whose parent has used it, through us or through any other library.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., None]

FORKS = {
    "before use": """
        forked(check, 1)
        check(3)
        """,
    "after use": """
        check(3)
        forked(check, 1)
        check(3)
        """,
    "of a fork": """
        check(3)
        forked(forked, check, 1)
        """,
    "with a limit of its own": """
        with schuss.threads(2):
            check(2)
            forked(check, 1)
        """,
    "that says so": """
        def says_so():
            assert schuss.show_config()["threads"] == {"number": 1, "reason": "forked child"}

        forked(says_so)
        assert schuss.get_num_threads() == 3
        """,
    "while another thread is inside a step": """
        stepping, stop = Trial(sizes=[1 << 20]), threading.Event()

        def step_on():
            while not stop.is_set():
                stepping.step()

        def step_there_and_here():
            stepping.step()
            check(1)

        thread = threading.Thread(target=step_on)
        thread.start()
        for _ in range(10):
            forked(step_there_and_here)
        stop.set()
        thread.join()
        check(3)
        """,
    "before another program": """
        check(3)
        subprocess.run([sys.executable, "-c", ""], check=True, preexec_fn=lambda: check(1))
        """,
    "that starts another program": """
        program = [sys.executable, "-c", "from trial import check; check(3)"]
        check(3)
        forked(subprocess.check_call, program)
        forked(os.execv, program[0], program)
        """,
}


@pytest.mark.parametrize("code", FORKS.values(), ids=FORKS)
def test_fork(run: Run, code: str) -> None:
    imports = """
        import os, subprocess, sys, threading
        import schuss
        from trial import Trial, check, forked
        """
    run(imports, code, SCHUSS_NUM_THREADS="3")


@pytest.mark.parametrize("imported", ["before", "after"])
def test_fork_after_another_library_used_openmp(
    run: Run, compiled: Callable[..., Path], imported: str
) -> None:
    code = """
        import ctypes, os, sys
        if sys.argv[2] == "before":
            import trial
        assert ctypes.CDLL(sys.argv[1]).team(3) == 3
        child = os.fork()
        import trial
        trial.check(1 if child == 0 else 3)
        if child == 0:
            sys.exit()
        assert os.waitpid(child, 0)[1] == 0
        """
    library = compiled("openmp.cpp", "-fopenmp")
    run(code, arguments=[library, imported], SCHUSS_NUM_THREADS="3")


@pytest.mark.parametrize(("method", "threads"), [("fork", 1), ("forkserver", 1), ("spawn", 3)])
def test_multiprocessing(run: Run, method: str, threads: int) -> None:
    code = """
        import multiprocessing, sys
        from concurrent.futures import ProcessPoolExecutor
        from trial import check

        context, threads = multiprocessing.get_context(sys.argv[1]), int(sys.argv[2])
        check(3)
        process = context.Process(target=check, args=[threads])
        process.start()
        process.join()
        assert process.exitcode == 0
        with ProcessPoolExecutor(2, context) as pool:
            assert list(pool.map(check, [threads] * 4)) == [None] * 4
        """
    run(code, arguments=[method, threads], SCHUSS_NUM_THREADS="3")


def test_workers_of_joblib(run: Run) -> None:
    """They are processes like any other, which joblib tells by OMP_NUM_THREADS."""
    pytest.importorskip("joblib")
    code = """
        from joblib import Parallel, delayed, parallel_config
        from trial import check

        with schuss.threads(3):
            check(3)
        with parallel_config("loky", n_jobs=2, inner_max_num_threads=2):
            Parallel()(delayed(check)(2) for _ in range(4))
        """
    run("import schuss", code)
