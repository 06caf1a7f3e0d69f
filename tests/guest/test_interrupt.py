"""Interrupts, exceptions and new imports leave whole steps behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Run = Callable[..., None]

IMPORTS = """
    import importlib, signal, sys
    import numpy as np
    import schuss
    from trial import Trial, check
    """

# ---- A storm of interrupts: each array is as after a whole number of steps, and says of how many.

STORM = """
    def arrays_of(params, states):
        # How often each array was stepped, and a hash of all its bits.
        found = {}
        for name, (x, state) in enumerate(zip(params, states, strict=True)):
            bits = (np.asarray(value).tobytes() for value in (x, *state.values()))
            found[name] = state["step"], hash(tuple(bits))
        return found

    def trial_of(*arguments, **options):
        trial = Trial(*arguments, **options)
        states = trial.optimizer.state
        return trial, lambda: arrays_of(trial.params, [states[i] for i in range(len(trial.params))])

    def interrupt(number, frame):
        global interrupts
        inside = frame.f_globals["__name__"].startswith("schuss")
        if inside and sys.exception() is None:  # what cleans up after one is left alone by others
            interrupts += 1
            raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    """

# What is interrupted makes no more than one step of an array at a time.
STORMS = {
    "steps": """
        def scene():
            trial, arrays = trial_of()
            return trial.step, arrays
        """,
    "steps of pieces": """
        def scene():
            trial, arrays = trial_of(clip_norm=1.0)
            return lambda: trial.optimizer.step(pieces=[trial.grads] * 2), arrays
        """,
    "steps of matrices": """
        def scene():
            trial, arrays = trial_of(schuss.Muon, sizes=[(12, 8), (5, 7)])
            return trial.step, arrays
        """,
    "gradients that arrive": """
        def scene():
            trial, arrays = trial_of()

            def step():
                with trial.optimizer.arriving() as arrived:
                    for name, g in enumerate(trial.grads):
                        arrived(name, g)

            return step, arrays
        """,
    "keys": """
        def scene():
            trial, keyed = Trial(), schuss.Keyed(schuss.AdamW)

            def step():
                for key, (x, g) in enumerate(zip(trial.params, trial.grads)):
                    keyed(key, x, g)
                keyed.tick()

            keys = range(len(trial.params))
            return step, lambda: arrays_of(trial.params, [keyed.state[key] for key in keys])
        """,
    "a minimiser": """
        from scipy.optimize import minimize

        def scene():
            x, done = np.ones(4), {"step": 0}
            method = schuss.scipy.Adam(lr=0.01)

            def step():  # a call never leaves less than its result behind
                x[:] = minimize(np.sum, x, jac=np.cos, method=method, options={"maxiter": 5}).x
                done["step"] += 1

            return step, lambda: arrays_of([x], [done])
        """,
}

ALIKE = """
    step, arrays = scene()
    interrupts = 0
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
    while interrupts < 60:
        try:
            step()
        except KeyboardInterrupt:
            pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    step()
    stormy, met = arrays(), set()
    step, arrays = scene()
    for _ in range(max(count for count, _ in stormy.values())):
        step()
        met.update(arrays().items())
    assert stormy.items() <= met
    """
TOGETHER = "assert len({count for count, _ in stormy.values()}) == 1"


@pytest.mark.parametrize("name", STORMS)
def test_a_storm_of_interrupts(run: Run, name: str) -> None:
    if name == "a minimiser":
        pytest.importorskip("scipy")
    together = TOGETHER if name.startswith("steps") else ""
    run(IMPORTS, STORM, STORMS[name], ALIKE, together, SCHUSS_NUM_THREADS="3")


def test_an_interrupt_at_any_line_of_the_first_step_of_a_key(run: Run) -> None:
    code = """
        def trace(frame, event, argument):
            global left
            if not frame.f_globals["__name__"].startswith("schuss") or sys.exception():
                return None
            left -= event == "line"
            if left == 0:
                raise KeyboardInterrupt
            return trace

        def step():
            keyed("w", x, np.ones(3))
            state = keyed.state["w"]
            return state["step"], x.tobytes(), state["exp_avg"].tobytes()

        x, keyed = np.zeros(3), schuss.Keyed(schuss.Adam)
        met = {step(), step()}
        at, left = 0, 0
        while left <= 0:  # until the step ends before its turn has come
            at += 1
            left, x, keyed = at, np.zeros(3), schuss.Keyed(schuss.Adam)
            sys.settrace(trace)
            try:
                keyed("w", x, np.ones(3))
            except KeyboardInterrupt:
                pass
            sys.settrace(None)
            assert step() in met, at
        assert at > 100
        """
    run(IMPORTS, code)


# ---- What else may come between two steps

CASES = {
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
def test_whole_steps(run: Run, code: str) -> None:
    run(IMPORTS, code, SCHUSS_NUM_THREADS="3")
