"""What all tests share: the seed of the random ones, printed so that a failure can be repeated."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator

# Before NumPy is imported: a worker has a processor for itself, where threads of OpenBLAS wait in
# loops for their turn. The 64 columns of the digits took 8 times as long with two of them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest

from schuss import _core

SEED = int(os.environ.get("SCHUSS_TEST_SEED", time.time_ns() % 2**32))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The quick part of the tests: those of bits and of the engine, but for the thorough ones."""
    for item in items:
        if item.path.parent.name in ("exact", "engine") and "thorough" not in item.keywords:
            item.add_marker(pytest.mark.quick)


def pytest_sessionstart() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    """Ten thousand tests stay for good, and so the collector passes over them.

    Among them it took a quarter of the time to find them all, and 0.2 s at each call of a test.
    """
    gc.freeze()
    gc.enable()


def pytest_report_header() -> str:
    return f"SCHUSS_TEST_SEED={SEED} (set it to repeat the random combinations), isa {_core.isa()}"


@pytest.fixture(scope="session")
def seed() -> int:
    return SEED


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def many_threads() -> Iterator[None]:
    """Lets threads run from the first chunk on."""
    before = _core.set_grain(1)
    yield
    _core.set_grain(before)


@pytest.fixture
def any_isa() -> Iterator[None]:
    """Leaves the instruction set as it found it."""
    before = _core.isa()
    yield
    _core.use_isa(before)
