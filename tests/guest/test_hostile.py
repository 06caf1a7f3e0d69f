"""Python that runs within a step meets what the step holds: the step is whole, or it is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Run = Callable[..., None]
TESTS = Path(__file__).parent.parent


def test_hooks_that_do_anything_within_a_step(run: Run) -> None:
    """A sample of `python tests/fuzz.py --hostile`, which has more of it."""
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from fuzzing import hostile

        count = hostile.fuzz(60, seed=1, each=4)  # without other threads, and so the same each time
        assert sum(n for name, n in count.items() if name.startswith("do ")) > 100
        """
    run(code, arguments=[TESTS], PYTHONMALLOC="debug", PYTHONWARNINGS="ignore", timeout=120)


def test_a_structure_that_changes_while_somebody_walks_through_it(run: Run) -> None:
    code = """
        import numpy as np
        import schuss

        class Key:
            change = None

            def __str__(self):
                return "w"

            def __hash__(self):
                if Key.change:
                    change, Key.change = Key.change, None
                    change()
                return 1

            def __eq__(self, other):
                return True

        opt = schuss.SGD({Key(): np.zeros(4)}, lr=1.0)
        more = [{"params": {f"v{i}": np.zeros(4)}} for i in range(3)]
        for group in more:
            Key.change = lambda: opt.add_param_group(group)
            try:
                assert opt.holds({"other": 0}) is False
            except RuntimeError as error:
                assert "re-entered" in str(error)
        Key.change = lambda: setattr(opt, "missing", "skip")
        opt.rebind({Key(): np.zeros(4)})
        assert opt.step({Key(): np.ones(4)})
        """
    run(code, PYTHONMALLOC="malloc", MALLOC_PERTURB_="165")


def test_a_step_that_forks_goes_on_in_both(run: Run) -> None:
    code = """
        import os
        import numpy as np
        import schuss

        def rate(iterations):
            if iterations == 1:
                children.append(os.fork())
            return 1.0

        children = []
        x = np.zeros(4, np.float32)
        opt = schuss.SGD([x], lr=rate)
        for _ in range(3):
            opt.step([np.ones(4, np.float32)])
        assert (x == -3).all()
        assert opt.iterations == 3
        if children[0] == 0:
            os._exit(0)
        _, status = os.waitpid(children[0], 0)
        assert status == 0
        """
    run(code, PYTHONMALLOC="malloc", MALLOC_PERTURB_="165")


def test_means_that_a_callable_leaves_in_the_parameters(run: Run) -> None:
    code = """
        import numpy as np
        import schuss

        def rate(iterations):
            if iterations == 1:
                entered.append(opt.averaged())
                entered[0].__enter__()
            return 1.0

        entered = []
        x = np.zeros(4, np.float32)
        opt = schuss.SGD([x], lr=rate, ema=0.5)
        opt.step([np.ones(4, np.float32)])
        try:
            opt.step([np.ones(4, np.float32)])
        except RuntimeError:
            pass
        else:
            raise AssertionError("stepped the means")
        if entered:
            try:
                entered[0].__exit__(None, None, None)
            except RuntimeError:
                pass
        assert (x == -1).all()
        assert opt.iterations == 1
        """
    run(code)
