"""What the tests of the engine share."""

from __future__ import annotations

import numpy as np
import pytest

from engine.unchanged import stepped
from schuss.engine.optimizer import Optimizer

F4 = np.float32


@pytest.fixture(params=["compiled", "numpy"])
def opt(request: pytest.FixtureRequest) -> Optimizer:
    return stepped(
        {"a": np.ones(10, F4), "w1": np.ones(10, F4), "z": np.ones(10, F4)}, backend=request.param
    )
