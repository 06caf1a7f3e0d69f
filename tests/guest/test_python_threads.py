"""Python threads: a step leaves the interpreter to the others, and steps of one optimizer wait."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytestmark = pytest.mark.quick

CASES = {
    "the interpreter is free during a step": """
        trial = Trial(sizes=[1 << 23])
        sys.setswitchinterval(3600)  # a thread runs only when another one lets it
        count, stop = 0, threading.Event()

        def count_on():
            global count
            while not stop.is_set():
                count += 1
                time.sleep(0)

        with together(count_on):
            before = count
            trial.step()
            after = count
            stop.set()
        assert after > before
        """,
    "an optimizer each": """
        trials = [Trial(seed=seed) for seed in range(4)]
        with together(*(functools.partial(trial.step, 50) for trial in trials)):
            pass
        for seed, trial in enumerate(trials):
            assert trial.bits == Trial(seed=seed, backend="numpy").step(50).bits
        """,
    "one optimizer": """
        trial = Trial()
        with together(*[functools.partial(trial.step, 25)] * 4):
            pass
        assert trial.bits == Trial(backend="numpy").step(100).bits
        """,
    "copies of the state in between": """
        trial, seen, stop = Trial(), {}, threading.Event()

        def step_on():
            while not stop.is_set():
                trial.step()
                time.sleep(0)

        with together(step_on):
            while len(seen) < 10:
                state_dict = trial.optimizer.state_dict()
                seen[state_dict["iterations"]] = bits(state_dict)
            stop.set()
        calm = Trial()
        for n in range(max(seen) + 1):
            if n in seen:
                assert seen[n] == bits(calm.optimizer.state_dict())
            calm.step()
        """,
    "counts and zeroed gradients in between": """
        def step_on():
            while optimizer.iterations < 3 or grads[0][0] != 0:
                optimizer.step()

        for _ in range(5):
            params, grads = ([np.full(1 << 17, x, np.float32) for _ in range(8)] for x in (0, 1))
            optimizer = schuss.SGD(params, grads=grads, lr=1.0)
            with together(step_on):
                while optimizer.iterations < 3:
                    counts = [optimizer.state[i]["step"] for i in range(8)]
                    assert counts == sorted(counts)
                time.sleep(0.001)  # and so within a step
                optimizer.zero_grad()
            assert len({float(x) for array in params for x in (array.min(), array.max())}) == 1
        """,
    "the learning rate of all groups set in between": """
        arrays, stop = [np.zeros(9, np.float32) for _ in range(2)], threading.Event()
        optimizer = schuss.SGD([{"params": [x]} for x in arrays], lr=1.0)
        sys.setswitchinterval(1e-5)

        def set_on():
            while not stop.is_set():
                optimizer.lr = 1024.0
                optimizer.lr = 1.0

        with together(set_on):
            for _ in range(5000):
                optimizer.step([[np.ones_like(x)] for x in arrays])
                if (arrays[0] != arrays[1]).any():
                    break
            stop.set()
        assert (arrays[0] == arrays[1]).all()
        assert 5000 < -arrays[0][0] < 5000 * 1024
        """,
    "a callable that steps its own optimizer": """
        def step_again(_):
            trial.step()

        trial = Trial()
        trial.optimizer.lr = step_again
        for _ in range(2):
            try:
                trial.step()
            except RuntimeError:
                continue
            raise AssertionError
        trial.optimizer.lr = 1e-3
        assert trial.bits == Trial().bits
        """,
}


@pytest.mark.parametrize("code", CASES.values(), ids=CASES)
def test_python_threads(run: Callable[..., None], code: str) -> None:
    imports = """
        import functools, sys, threading, time
        import numpy as np
        import schuss
        from trial import Trial, bits, together
        """
    run(imports, code, SCHUSS_NUM_THREADS="3")
