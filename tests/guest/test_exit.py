"""The interpreter ends while daemon threads step: the process ends as if they weren't there.

Before 3.14 CPython unwinds the stack of a daemon thread that asks for its lock then, and a frame of
ours that is left so ends the process by an abort: `cpp/python/exit.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable

Run = Callable[..., None]

STEPS = """
    import threading, time
    from trial import Trial, forked

    NEW = [
        lambda: Trial(sizes=[1 << 18]),
        lambda: Trial(sizes=[1 << 16], lr=lambda n: 0.01),
        lambda: Trial(sizes=[100]),
    ]

    def end(new, seconds):  # not NumPy's products: those alone let an interpreter hang at its end
        def step_on():
            trial = new()
            while True:
                trial.step()

        for _ in range(3):
            threading.Thread(target=step_on, daemon=True).start()
        time.sleep(seconds)
    """


def test_many_ends(run: Run) -> None:
    """Forks are many ends for one import."""
    code = """
        for n in range(30):
            forked(end, NEW[n % 3], 0.01 + 0.0005 * n)
        """
    run(STEPS, code, timeout=90)


def test_end_with_a_crew(run: Run) -> None:
    run(STEPS, "end(NEW[0], 0.3)", SCHUSS_NUM_THREADS="3")
