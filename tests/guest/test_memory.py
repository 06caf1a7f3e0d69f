"""A step stays inside its arrays, keeps them alive, and holds on to nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from schuss import _core

Run = Callable[..., None]


@pytest.mark.parametrize("isa", _core.found_isas())
def test_kernels_stay_inside_their_arrays(run: Run, isa: str) -> None:
    code = """
        from itertools import combinations, product
        import os
        import ml_dtypes
        import numpy as np
        import trial
        from fence import fenced
        from schuss import _core, functional
        from schuss.engine.declare import Choice, Flag
        from schuss.rules import RULES

        def kernels():
            # Each with a rule, and with options of it that lead there.
            for rule in RULES:
                default, own = {}, []
                for name, h in rule.hyperparameters.items():
                    default[name] = h.default
                    own += [(name, True)] if isinstance(h, Flag) else []
                    own += [(name, c) for c in h.choices] if isinstance(h, Choice) else []
                    own += [(name, 0.9)] if name == "momentum" else []
                for options in (dict(c) for n in range(4) for c in combinations(own, n)):
                    try:
                        yield rule.kernel(default | options), (rule, options)
                    except ValueError:
                        pass

        random, found = np.random.default_rng(0), {}
        for kernel, how in kernels():
            found.setdefault(kernel, how)
        assert found.keys() == {name for name, *_ in _core.rules()}
        sizes = (1, 3, 15, 16, 17, 31, 255, 257, 1000, 12289)
        F4, F8, F2, BF = "float32", "float64", "float16", ml_dtypes.bfloat16
        kinds = [  # of the parameter, the gradient, the state in turn, and the master
            *product(sizes, [(F4, F4, [F4], None), (F8, F8, [F8], None)], (0.0, 0.5)),
            *product(
                (1, 17, 31, 257, 12289),
                [(F2, F4, [F4], F4), (BF, BF, [BF, F4], None), (F4, F2, [BF, F2], None)],
                (0.5,),
            ),
        ]
        for (kernel, (rule, options)), (size, kind, weight_decay) in product(found.items(), kinds):
            names = ("param", "grad", *rule.states[kernel])
            of_param, of_grad, of_state, of_master = kind
            dtypes = [of_param, of_grad, *(of_state * len(names))]
            drawn = {n: random.random(size).astype(d) for n, d in zip(names, dtypes)}
            if of_master:
                names = *names, "master"
                drawn["master"] = drawn["param"].astype(of_master)
            ends, starts = (
                {name: fenced(values, at_end=at_end) for name, values in drawn.items()}
                for at_end in (True, False)
            )
            for arrays, backend in (ends, "compiled"), (starts, "compiled"), (drawn, "numpy"):
                state = arrays.copy()
                step = getattr(functional, rule.__name__.lower())
                more = {"step": 2, "weight_decay": weight_decay, "backend": backend, "loss": 1.0}
                more |= {n: np.array(v) for n, v in {**rule.memory, **rule.shared}.items()}
                step(state.pop("param"), state.pop("grad"), **state, **options, **more)
            for name in names:
                np.testing.assert_array_equal(ends[name], drawn[name])
                np.testing.assert_array_equal(starts[name], drawn[name])
        assert _core.isa() == os.environ["SCHUSS_ISA"]
        assert _core.widest_region() == 3
        """
    run(code, SCHUSS_ISA=isa, SCHUSS_NUM_THREADS="3")


CASES = {
    "arrays that nobody else keeps": """
        trial = Trial()
        trial.optimizer = schuss.AdamW(trial.params, grads=trial.grads)
        trial.params = trial.grads = None
        gc.collect()
        trial.step(2)
        trial.params = trial.optimizer.param_groups[0]["params"]
        assert trial.bits == Trial(backend="numpy").step(2).bits
        """,
    "a copy whose original is gone": """
        trial = Trial().step()
        trial.optimizer = copy.deepcopy(trial.optimizer)
        trial.params = trial.optimizer.param_groups[0]["params"]
        gc.collect()
        assert trial.step().bits == Trial(backend="numpy").step(2).bits
        """,
    "references": """
        def references():
            gc.collect()
            return [sys.getrefcount(a) for a in arrays]

        trial = Trial()
        arrays = [*trial.params, *trial.grads]
        before = references()
        trial.step(100)
        with_wrong_gradients(trial)
        assert references() == before
        trial.optimizer = None
        assert references() == [before[-1]] * len(arrays)  # a gradient that is not bound
        """,
    "a plateau of 100000 steps": """
        def work(steps):
            for _ in range(steps):
                step(grads)
            gc.collect()
            with open("/proc/self/statm") as file:
                pages = int(file.read().split()[1])
            held = [sys.getrefcount(a) for a in (*trial.params, *grads, grads)]
            return pages * resource.getpagesize(), len(gc.get_objects()), held

        trial = Trial(sizes=[3, 40], clip_norm=1.0, ema=0.9)
        grads, step = trial.grads, trial.optimizer.step
        bytes_, objects, held = work(2000)
        more_bytes, more_objects, more_held = work(100_000)
        assert more_bytes - bytes_ < 1 << 19
        assert more_objects - objects < 20
        assert more_held == held
        """,
    "a plateau": """
        def work():
            for seed in range(500):
                trial = Trial(sizes=[9, 5000], seed=seed)
                trial.step(5)
                with_wrong_gradients(trial)
                trial.optimizer.state_dict()
            gc.collect()
            with open("/proc/self/statm") as file:
                pages = int(file.read().split()[1])
            return pages * resource.getpagesize(), sys.getallocatedblocks()

        rounds = [work() for _ in range(8)]
        early, late = rounds[1:4], rounds[5:]  # malloc's arenas grow and shrink by a megabyte
        bytes_, blocks = (max(column) for column in zip(*early))
        more_bytes, more_blocks = (min(column) for column in zip(*late))
        assert more_bytes - bytes_ < 1 << 20
        assert more_blocks - blocks < 500  # one that an optimizer leaves would be 1000
        """,
}


@pytest.mark.parametrize("code", CASES.values(), ids=CASES)
def test_memory(run: Run, code: str) -> None:
    imports = """
        import copy, gc, resource, sys
        import schuss
        from trial import Trial

        def with_wrong_gradients(trial):
            try:
                trial.optimizer.step([*trial.grads[:-1], trial.grads[-1][1:]])
            except ValueError:
                return
            raise AssertionError
        """
    run(imports, code, SCHUSS_NUM_THREADS="3")
