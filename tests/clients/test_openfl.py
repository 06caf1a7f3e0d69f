"""OpenFL's three NumPy optimizers, and its adaptive aggregation, which takes ours as they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import schuss
from schuss.engine.optimizer import Optimizer

numpy_rules: Any = pytest.importorskip(
    "openfl.utilities.optimizers.numpy", reason="openfl is not installed: its tests did not run"
)

PAIRS: list[tuple[str, type[Optimizer], dict[str, Any], dict[str, Any]]] = [
    ("NumPyAdam", schuss.Adam, {}, {}),
    (
        "NumPyAdam",
        schuss.Adam,
        {"learning_rate": 0.05, "betas": (0.8, 0.9), "epsilon": 1e-3},
        {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-3},
    ),
    ("NumPyAdagrad", schuss.Adagrad, {}, {}),
    (
        "NumPyAdagrad",
        schuss.Adagrad,
        {"learning_rate": 0.05, "initial_accumulator_value": 0.2, "epsilon": 1e-3},
        {"lr": 0.05, "initial_accumulator_value": 0.2, "eps": 1e-3},
    ),
    ("NumPyYogi", schuss.Yogi, {}, {}),
    (
        "NumPyYogi",
        schuss.Yogi,
        {"learning_rate": 0.05, "betas": (0.8, 0.9), "epsilon": 1e-3},
        {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-3},
    ),
]


def start(dtype: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {k: rng.standard_normal(s).astype(dtype) for k, s in {"w": (4, 30), "b": (30,)}.items()}


@pytest.mark.parametrize(("name", "rule", "theirs", "ours"), PAIRS)
@pytest.mark.parametrize(("dtype", "near"), [(np.float64, 1e-13), (np.float32, 2e-6)])
def test_one_for_one(
    name: str,
    rule: type[Optimizer],
    theirs: dict[str, Any],
    ours: dict[str, Any],
    dtype: Any,
    near: float,
) -> None:
    """Gradients rise and fall, so that second moments do; now and then one has no key."""
    want, got = start(dtype), start(dtype)
    their = getattr(numpy_rules, name)(params=want, **theirs)
    opt = rule(got, preset="openfl", missing="skip", **ours)
    rng = np.random.default_rng(1)
    for step in range(20):
        scale = 10.0 ** rng.integers(-2, 2)
        grads = {k: (scale * rng.standard_normal(x.shape)).astype(dtype) for k, x in want.items()}
        if step % 3 == 1:
            del grads["b"]
        their.step(grads)
        opt.step(grads)
        for k, x in want.items():
            np.testing.assert_allclose(got[k], x, rtol=near, atol=near, err_msg=k)


def test_adaptive_aggregation_takes_ours() -> None:
    """It wants params and step alone, and steps tensor by tensor."""
    functions: Any = pytest.importorskip("openfl.interface.aggregation_functions")
    tensors: Any = pytest.importorskip("openfl.utilities.types")
    want, got = start(np.float32), start(np.float32)
    adaptive, mean = functions.core.AdaptiveAggregation, functions.WeightedAverage()
    theirs = adaptive(numpy_rules.NumPyYogi(params=want), mean)
    opt = schuss.Yogi(got, preset="openfl", missing="skip")
    ours = adaptive(SimpleNamespace(params=got, step=opt.step), mean)
    rng = np.random.default_rng(2)
    for number in range(5):
        base = {k: x.copy() for k, x in want.items()}
        for k, x in base.items():
            local = [
                tensors.LocalTensor(
                    col_name=str(i),
                    tensor=x + rng.normal(0, 0.1, x.shape).astype(np.float32),
                    weight=weight,
                )
                for i, weight in enumerate((0.2, 0.3, 0.5))
            ]
            tags = ("aggregated",) if number else ("model",)
            row = {"round": number, "tensor_name": k, "tags": tags, "nparray": x}
            a, b = (f.call(local, [row], k, number, tags) for f in (theirs, ours))
            np.testing.assert_allclose(b, a, rtol=2e-6, atol=2e-6)
