"""Rules of optax that don't fit into the table of test_oracles.py.

Sophia wants an estimate of the curvature from the caller, here as in optax. optax' schedule-free
rules keep the average in place of finding it at the end, and count a schedule from 1, which is why
they are asked for a constant rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import schuss

STEPS, SIZE = 60, 50


def gradients() -> list[np.ndarray]:
    """Zeros and an outlier among them."""
    rng = np.random.default_rng(17)
    steps = [rng.standard_normal(SIZE) * (1e4 if t == 40 else 1.0) for t in range(STEPS)]
    steps[20][:] = 0.0
    for g in steps[1:]:
        g[::7] = 0.0
    return steps


def start() -> np.ndarray:
    return np.random.default_rng(3).standard_normal(SIZE)


def close(got: np.ndarray, want: np.ndarray, tolerance: float = 1e-12) -> None:
    largest = np.abs(want - start()).max()
    assert np.abs(got - want).max() <= tolerance * largest


@pytest.fixture
def float64_in_jax() -> Iterator[None]:
    jax = pytest.importorskip("jax", reason="JAX is not installed: its oracles did not run")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def optax(float64_in_jax: None) -> Any:
    return pytest.importorskip("optax", reason="optax is not installed: its oracle did not run")


@pytest.mark.parametrize(
    ("rule", "name", "theirs", "options"),
    [
        (schuss.ScheduleFreeSGD, "schedule_free_sgd", {"b1": 0.8}, {"momentum": 0.8}),
        (schuss.ScheduleFreeSGD, "schedule_free_sgd", {"weight_decay": 0.2}, {"weight_decay": 0.2}),
        (schuss.ScheduleFreeAdamW, "schedule_free_adamw", {}, {}),
        (
            schuss.ScheduleFreeAdamW,
            "schedule_free_adamw",
            {"b1": 0.8, "b2": 0.99, "weight_decay": 0.2, "weight_lr_power": 1.0},
            {"betas": (0.8, 0.99), "weight_decay": 0.2, "weight_lr_power": 1.0},
        ),
    ],
)
def test_schedule_free(
    rule: Any, name: str, theirs: dict[str, Any], options: dict[str, Any], optax: Any
) -> None:
    """The point of the gradients, the descent and the average; optax finds the last from others."""
    solver = getattr(optax.contrib, name)(0.1, **theirs)
    x, y = start(), start()
    state, opt = solver.init(x), rule(y, lr=0.1, **options)
    for g in gradients():
        updates, state = solver.update(g, state, x)
        x = np.asarray(optax.apply_updates(x, updates))
        opt.step(g)
        close(y, x, 1e-11)
        close(opt.state[0]["z"], np.asarray(state.z))
    opt.eval()
    close(y, np.asarray(optax.contrib.schedule_free_eval_params(state, x)), 1e-11)


def test_sophia(optax: Any) -> None:
    """Both take in the same estimate of the curvature after every tenth step."""
    estimate = np.random.default_rng(8).standard_normal(SIZE) * 30
    source = optax.GradientTransformation(
        lambda params: optax.EmptyState(), lambda updates, state, params=None: (estimate, state)
    )
    solver = optax.contrib.sophia(0.1, weight_decay=0.2, hessian_diagonal_fn=source)
    x, y = start(), start()
    state = solver.init(x)
    opt = schuss.Sophia(y, preset="optax", lr=0.1, weight_decay=0.2)
    for t, g in enumerate(gradients()):
        updates, state = solver.update(g, state, x)
        x = np.asarray(optax.apply_updates(x, updates))
        opt.step(g)
        if t % 10 == 0:
            opt.update_hessian(estimate)
        close(y, x)
