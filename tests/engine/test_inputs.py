"""Inputs of all kinds, a small sample of each: `python tests/fuzz.py` has the long runs."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
from fuzzing import inputs, loader, machine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import schuss

quick = settings(
    deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@settings(quick, max_examples=150)
@given(random=st.randoms(use_true_random=False))
def test_numbers_are_taken_or_named(random: Random) -> None:
    inputs.try_number(random)


@settings(quick, max_examples=150)
@given(random=st.randoms(use_true_random=False))
def test_arrays_are_taken_or_named(random: Random, tmp_path: Path) -> None:
    inputs.try_array(random, tmp_path)


@settings(quick, max_examples=50)
@given(random=st.randoms(use_true_random=False))
def test_arrays_that_change_between_steps_are_followed_or_named(
    random: Random, tmp_path: Path
) -> None:
    inputs.try_changed(random, tmp_path)


def test_shared_memory() -> None:
    inputs.try_shared_memory()


@pytest.mark.parametrize("value", [[], [1.0], ["float32"]])
def test_an_array_is_no_storage(value: list[object]) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^state_dtype: "):
        schuss.Adam([np.zeros(3, np.float32)], state_dtype=np.array(value))


def test_checkpoints_with_something_else_in_them(seed: int) -> None:
    count = loader.fuzz(0, seed, at_least=40)
    assert sum(count.values()) == 40


Machine = machine.Training.TestCase
Machine.settings = settings(quick, max_examples=15, stateful_step_count=15)
