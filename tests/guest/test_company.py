"""Our threads beside others in the process: NumPy's and PyTorch's own, busy or idle."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from itertools import permutations

import pytest

Run = Callable[..., None]

# The crew's threads by what the system knows of them; of a thread that works or spins it knows how
# long, to the nanosecond.
IMPORTS = """
    import ctypes, os, signal, sys, time
    import numpy as np
    import schuss
    from pathlib import Path
    from trial import Trial, check, forked, together

    def crew():
        tasks = Path("/proc/self/task").iterdir()
        return [task for task in tasks if (task / "comm").read_text() == "schuss\\n"]

    def status(task, field):
        lines = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        return lines[field].strip()

    def seconds():
        return sum(int((task / "schedstat").read_text().split()[0]) for task in crew()) / 1e9

    x = np.ones((200, 512), np.float32)
    w = np.full((512, 512), 1 / 512, np.float32)
    """

IDLE = """
    def idle_after(products, step):
        for _ in range(30):
            products()
            step()
        busy, start = seconds(), time.monotonic()
        while time.monotonic() < start + 1:
            time.sleep(0.05)
        assert 0 < busy
        assert seconds() - busy < 0.01, seconds() - busy
        time.sleep(0.5)
        start = time.process_time()
        time.sleep(1)
        assert time.process_time() - start < 0.01

    trial = Trial(sizes=[1 << 21])
    """

CASES = {
    "idle beside NumPy's": IDLE
    + """
    idle_after(lambda: x @ w, trial.step)
    """,
    "idle with nobody beside": IDLE
    + """
    idle_after(lambda: None, trial.step)
    """,
    "the bits beside NumPy's": """
    trial = Trial(sizes=[1 << 18])
    for _ in range(20):
        x @ w
        trial.step()
    assert trial.bits == Trial(sizes=[1 << 18], backend="numpy").step(20).bits
    """,
    "signals are for other threads": """
    check(3)
    time.sleep(0.1)  # a thread has all signals blocked until it runs
    assert len(crew()) == 2
    for task in crew():
        blocked = int(status(task, "SigBlk"), 16)
        assert blocked >> (signal.SIGINT - 1) & 1
        assert blocked >> (signal.SIGTERM - 1) & 1
        assert not blocked >> (signal.SIGSEGV - 1) & 1
    """,
    "the environment stays": """
    before = dict(os.environ)
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    check(3)
    assert dict(os.environ) == before
    for name in (b"OMP_WAIT_POLICY", b"GOMP_SPINCOUNT", b"OMP_NUM_THREADS"):
        assert getenv(name) is None
    """,
    "threads follow the caller": """
    everywhere = os.sched_getaffinity(0)
    check(3)
    for allowed in ({min(everywhere)}, {max(everywhere)}, everywhere):
        os.sched_setaffinity(0, allowed)
        check(3)
        for task in crew():
            assert os.sched_getaffinity(int(task.name)) <= allowed
    """,
    "short regions of many callers": """
    def step_on(seed):
        with schuss.threads(2 + seed % 3):
            trials[seed].step(200)

    trials = [Trial(seed=seed, sizes=[3 * 4096]) for seed in range(5)]
    with together(*(lambda seed=seed: step_on(seed) for seed in range(5))):
        pass
    for seed, trial in enumerate(trials):
        assert trial.bits == Trial(seed=seed, sizes=[3 * 4096], backend="numpy").step(200).bits
    """,
}


@pytest.mark.parametrize("code", CASES.values(), ids=CASES)
def test_company(run: Run, code: str) -> None:
    run(IMPORTS, code, SCHUSS_NUM_THREADS="3", OPENBLAS_NUM_THREADS="2")


@pytest.mark.parametrize("imported", ["before", "after"])
def test_idle_beside_torch(run: Run, imported: str) -> None:
    pytest.importorskip("torch")
    code = """
        if sys.argv[1] == "after":
            check(3)
        import torch
        torch.set_num_threads(2)
        a, b = torch.ones(200, 512), torch.ones(512, 512)
        idle_after(lambda: a @ b, trial.step)
        """
    run(IMPORTS, IDLE, code, arguments=[imported], timeout=90, SCHUSS_NUM_THREADS="3")


# ---- Several runtimes of OpenMP in one process

WORK = {
    "schuss": "check(3)",
    "torch": "torch.set_num_threads(2), torch.ones(200, 512) @ torch.ones(512, 512)",
    "sklearn.cluster": "sklearn.cluster.KMeans(2, n_init=1).fit(points)",
    "lightgbm": "lightgbm.train(options, lightgbm.Dataset(points, points[:, 0]), 1)",
}


@pytest.mark.parametrize("order", [*permutations(WORK)], ids=" ".join)
def test_imports_in_every_order(run: Run, order: tuple[str, ...]) -> None:
    """Each works as it comes and once more with all; we bring the system's libgomp, if any."""
    missing = [name for name in sorted(WORK) if find_spec(name.partition(".")[0]) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}")
    code = """
        import importlib, sys
        import numpy as np
        from threadpoolctl import threadpool_info

        def runtimes():
            return {it["filepath"] for it in threadpool_info() if it["user_api"] == "openmp"}

        points = np.random.default_rng(0).random((1000, 2))
        options = {"num_threads": 2, "verbose": -1}
        work = dict(zip(sys.argv[1::2], sys.argv[2::2]))
        for name, does in work.items():
            before = runtimes()
            globals()[name.partition(".")[0]] = importlib.import_module(name.partition(".")[0])
            importlib.import_module(name)
            if name == "schuss":
                from trial import check
                assert len(runtimes() - before) <= 1
                assert all("/libgomp.so" in path for path in runtimes() - before)
            exec(does)
        for does in work.values():
            exec(does)
        """
    arguments = [text for name in order for text in (name, WORK[name])]
    run(code, arguments=arguments, timeout=120, SCHUSS_NUM_THREADS="3")
