"""The interpreter ends while daemon threads step: the process ends as if they weren't there.

Before 3.14 CPython unwinds the stack of a daemon thread that asks for its lock then, and a frame of
ours that is left so ends the process by an abort: `cpp/python/exit.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

Run = Callable[..., None]

WORK = {
    "large steps": "Trial(sizes=[1 << 18])",
    "schedules": "Trial(sizes=[1 << 16], lr=lambda n: 0.01)",
    "small steps": "Trial(sizes=[100])",
}

STEPS = """
    import threading, time
    from trial import Trial, forked

    def step_on():
        trial = new()
        while True:
            trial.step()

    def end(seconds):  # not NumPy's products: those alone let an interpreter hang at its end
        for _ in range(3):
            threading.Thread(target=step_on, daemon=True).start()
        time.sleep(seconds)
    """


@pytest.mark.parametrize("work", WORK)
def test_many_ends(run: Run, work: str) -> None:
    """Forks are many ends for one import."""
    code = f"""
        def new():
            return {WORK[work]}

        for n in range(15):
            forked(end, 0.01 + 0.001 * n)
        """
    run(STEPS, code)


def test_end_with_a_crew(run: Run) -> None:
    code = f"""
        def new():
            return {WORK["large steps"]}

        end(0.3)
        """
    run(STEPS, code, SCHUSS_NUM_THREADS="3")
