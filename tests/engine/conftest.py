"""What the tests of the engine share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.unchanged import stepped
from schuss.engine.optimizer import Optimizer

F4 = np.float32


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of the engine are quick ones."""
    here = Path(__file__).parent
    for item in items:
        if item.path.parent == here:
            item.add_marker(pytest.mark.quick)


@pytest.fixture(params=["compiled", "numpy"])
def opt(request: pytest.FixtureRequest) -> Optimizer:
    return stepped(
        {"a": np.ones(10, F4), "w1": np.ones(10, F4), "z": np.ones(10, F4)}, backend=request.param
    )
