"""What a step reads stays where it is: Python's own code, forks and wrong types crash nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Run = Callable[..., None]

# What is read after it was freed has other bytes, in Python's objects, too.
PERTURBED = {"PYTHONMALLOC": "malloc", "MALLOC_PERTURB_": "165"}

# ---- A key whose own code runs when it is looked up

KEYS = """
    import gc
    import numpy as np
    import schuss

    class Key:
        left, change = 0, None  # look-ups until this is called

        def __init__(self, name):
            self.name = name

        def __str__(self):
            return self.name

        def __eq__(self, other):
            return self.name == other.name

        def __hash__(self):
            Key.left -= 1
            if Key.left == 0:
                Key.change()
            return hash(self.name)

    KEYS = [Key(name) for name in "abcdef"]

    def full(value):
        return {"part": {key: np.full(4, value, np.float32) for key in KEYS}}

    def fill_freed_memory():
        gc.collect()
        return [(np.full(4, 7.0), dict.fromkeys(range(i))) for i in range(100)]

    def is_refused(call):
        try:
            call()
        except RuntimeError as error:
            return "re-entered" in str(error)
        return False
    """

# A whole step or none, at each look-up of a step, and then the optimizer goes on.
EACH = """
    def looked_up(at):
        params, grads, kept = full(0), full(1), []
        arrays = list(params["part"].values())
        opt = schuss.SGD(params, lr=1.0)
        opt.step(grads)

        def changed():
            change(opt, params, grads)
            kept.append(fill_freed_memory())

        Key.left, Key.change = at, changed
        try:
            done = opt.step(grads)
        except (TypeError, ValueError, RuntimeError):
            done = False
        Key.left = 0
        values = {float(x) for a in arrays for x in a}
        assert values == {-1.0 - done}, values
        assert opt.iterations == 1 + done
        params["part"] = dict(zip(KEYS, arrays))
        assert opt.step(full(1))
        return bool(kept)

    at = 1
    while looked_up(at):
        at += 1
    assert at > len(KEYS)
    """

CHANGES = {
    "gradients go": "grads['part'] = None",
    "gradients are cleared": "grads['part'].clear()",
    "parameters go": "params['part'] = None",
    "parameters are cleared": "params['part'].clear()",
    "a step": "assert is_refused(lambda: opt.step(full(1)))",
    "a step of other arrays": "assert is_refused(lambda: opt.step(full(1), params=full(0)))",
    "a rebind": "assert is_refused(lambda: opt.rebind(full(0)))",
    "an option": "opt.missing = 'skip'",
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_key_that_changes_something_when_it_is_looked_up(run: Run, case: str) -> None:
    run(KEYS, f"def change(opt, params, grads):\n    {CHANGES[case]}", EACH, **PERTURBED)


# ---- Gradients that collect garbage as they go


def test_gradients_that_collect_garbage_as_they_go(run: Run) -> None:
    code = """
        import gc
        from collections.abc import Mapping
        import numpy as np
        import schuss

        class Collecting(np.ndarray):
            number = 0

            def __del__(self):
                Collecting.number += 1
                kept.append([np.full(4, 7.0), bytearray(b"\\xff" * (64 + 16 * (len(kept) % 20)))])
                gc.collect()

        class Fresh(Mapping):
            # Gradients that nobody else holds.
            def __iter__(self):
                return iter(NAMES)

            def __len__(self):
                return len(NAMES)

            def __getitem__(self, name):
                return np.ones(4, np.float32).view(Collecting)

        NAMES, kept = [f"w{i}" for i in range(20)], []
        params = {name: np.zeros(4, np.float32) for name in NAMES}
        opt = schuss.SGD(params, lr=1.0)
        for _ in range(10):
            assert opt.step(Fresh())
        assert Collecting.number >= 10 * len(NAMES)
        assert all((x == -10).all() for x in params.values())
        """
    run(code, **PERTURBED)


# ---- A fork within the step of another thread

FORKS = """
    import threading
    import numpy as np
    import schuss
    from trial import Trial, forked

    def trial(**options):
        return Trial(schuss.Adam, sizes=[4097] * 40, cautious="mean", **options)
    """


def test_a_fork_within_a_cautious_step_of_another_thread(run: Run) -> None:
    code = """
        inside, go = threading.Event(), threading.Event()

        class Waiting(np.ndarray):
            def fill(self, value):  # the last that is done within a step
                if threading.current_thread() is not threading.main_thread():
                    inside.set()
                    go.wait()

        def step_there():
            assert stepping.step().bits == wanted

        wanted = trial(backend="numpy").step(2).bits
        stepping = trial(convert=True, zero_grad=True)
        stepping.grads = [g.astype(float).view(Waiting) for g in stepping.grads]
        thread = threading.Thread(target=stepping.step)
        thread.start()
        inside.wait()
        forked(step_there)
        go.set()
        thread.join()
        step_there()
        """
    run(FORKS, code, SCHUSS_NUM_THREADS="3")


def test_forks_at_any_moment_of_a_thread_with_cautious_steps(run: Run) -> None:
    code = """
        stepping, stop = trial(), threading.Event()

        def step_on():
            while not stop.is_set():
                stepping.step()

        thread = threading.Thread(target=step_on)
        thread.start()
        for _ in range(10):
            forked(stepping.step)
        stop.set()
        thread.join()
        """
    run(FORKS, code, SCHUSS_NUM_THREADS="3")


# ---- A master that is read and written as if it were of another type

MASTERS = {
    "not needed": ("f4", "f4", "for a parameter of 16 bits, but param is float32; leave it out"),
    "narrow for a wide one": ("f4", "f2", "float16, but param computes in float32"),
    "narrow": ("f2", "f2", "float16, but param computes in float32"),
    "too wide": ("f2", "f8", "float64, but param"),
    "float64": ("f4", "f8", "float64, but param is float32"),
    "of float64": ("f8", "f4", "float32, but param is float64"),
}


@pytest.mark.parametrize("case", MASTERS)
def test_a_master_of_another_type_in_a_stateless_call(run: Run, case: str) -> None:
    code = """
        import sys
        import numpy as np
        from schuss.functional import adam

        own, wrong, says = sys.argv[1:]
        state = "f8" if own == "f8" else "f4"
        arrays = [np.zeros(1000, dtype) for dtype in (own, state, state, wrong)]
        param, *moments, master = arrays
        try:
            adam(param, np.ones(1000, state), *moments, step=2, master=master)
        except TypeError as error:
            assert str(error).startswith(f"master: {says}"), error
        else:
            raise AssertionError("taken")
        assert not any(a.any() for a in arrays)
        """
    run(code, arguments=MASTERS[case])
