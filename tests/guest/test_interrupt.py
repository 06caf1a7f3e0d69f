"""Interrupts, exceptions, the end of the interpreter and new imports leave whole steps behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest

CASES = {
    "a storm of interrupts": """
        def interrupt(number, frame):
            global interrupts
            if frame.f_globals["__name__"].startswith("schuss"):
                interrupts += 1
                raise KeyboardInterrupt

        trial, interrupts, end = Trial(), 0, time.monotonic() + 2
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
        while time.monotonic() < end:
            try:
                trial.step()
            except KeyboardInterrupt:
                pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        trial.step()
        assert interrupts > 100
        calm = Trial().step(trial.optimizer.iterations)
        assert trial.bits == calm.bits
        """,
    "an exception in a callable": """
        def rate(steps):
            if failing and steps == 1:
                raise ZeroDivisionError
            return 0.01

        trial, failing = Trial(lr=rate), True
        trial.step()
        for _ in range(3):
            try:
                trial.step()
            except ZeroDivisionError:
                continue
            raise AssertionError
        failing = False
        assert trial.bits == Trial(lr=0.01).step().bits
        assert trial.step().bits == Trial(lr=0.01).step(2).bits
        """,
    "the end of the interpreter": """
        def step_on():
            while True:
                trial.step()

        trial = Trial(sizes=[1 << 20])
        threading.Thread(target=step_on, daemon=True).start()
        while trial.optimizer.iterations < 3:
            time.sleep(0.01)
        """,
    "a reload": """
        importlib.reload(schuss)
        check(3)
        """,
    "a second import": """
        kept = Trial()
        for name in [name for name in sys.modules if name.split(".")[0] in ("schuss", "trial")]:
            del sys.modules[name]
        import trial
        trial.check(3)
        assert kept.step(2).bits == trial.Trial(backend="numpy").step(2).bits
        """,
}


@pytest.mark.parametrize("code", CASES.values(), ids=CASES)
def test_whole_steps(run: Callable[..., None], code: str) -> None:
    imports = """
        import importlib, signal, sys, threading, time
        import schuss
        from trial import Trial, check
        """
    run(imports, code, SCHUSS_NUM_THREADS="3")
