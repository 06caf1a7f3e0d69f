"""What an error must leave as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import schuss
from schuss.engine.optimizer import Optimizer


def snapshot(opt: Optimizer) -> Any:
    """Everything that an error must leave as it was."""
    arrays = [(x.tobytes(), x.shape, x.dtype) for g in opt.param_groups for x in g["params"]]
    saved = opt.state_dict()
    state = {
        name: {key: v.tobytes() if isinstance(v, np.ndarray) else v for key, v in s.items()}
        for name, s in saved["state"].items()
    }
    groups = [(repr(g), g["param_names"]) for g in opt.param_groups]
    bound = [p.g.tobytes() for p in opt._parameters if p.g is not None]
    options = {name: getattr(opt, name) for name in opt.options}
    counters = opt.iterations, opt.skipped_steps, opt.grad_norm, saved["shared"]
    return arrays, bound, state, groups, counters, options


class Unchanged:
    """Raises an error of this type that names the array and says this; then nothing has changed."""

    def __init__(self, opt: Optimizer, error: type[Exception], *says: str) -> None:
        self.opt, self.before, self.says = opt, snapshot(opt), says
        self.raises = pytest.raises(error)

    def __enter__(self) -> None:
        self.info = self.raises.__enter__()

    def __exit__(self, *exception: Any) -> bool:
        swallowed = self.raises.__exit__(*exception)
        for part in self.says:
            assert part in str(self.info.value)
        assert snapshot(self.opt) == self.before
        return bool(swallowed)


def stepped(params: Any, **options: Any) -> Optimizer:
    """An optimizer with two steps behind it, so that there is something to lose."""
    opt = schuss.AdamW(params, **options)
    for _ in range(2):
        opt.step({name: np.ones_like(x) for name, x in params.items()})
    return opt
