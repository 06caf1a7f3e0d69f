"""Rules beyond PyTorch's beside other libraries: skipped, and said so, where one is not installed.

Where a library has another convention, a preset or the options of a row are it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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


def ours(rule: Any, options: dict[str, Any]) -> np.ndarray:
    """Where the parameters have been, step by step."""
    x = start()
    opt = rule(x, **options)
    points = []
    for g in gradients():
        opt.step(g)
        points.append(x.copy())
    return np.array(points)


def close(got: np.ndarray, want: np.ndarray, tolerance: float = 1e-12) -> None:
    largest = np.abs(want - start()).max()
    assert np.abs(got - want).max() <= tolerance * largest


# ---- optax


class Row(NamedTuple):
    """A rule, how optax calls it, and the options of both."""

    rule: Any
    made: Callable[[Any], Any]  # from the module
    options: dict[str, Any]


def preset(**options: Any) -> dict[str, Any]:
    return {"preset": "optax", "lr": 0.1, **options}


OPTAX = [
    Row(schuss.SignSGD, lambda o: o.sign_sgd(0.1), preset()),
    Row(schuss.Signum, lambda o: o.signum(0.1, beta=0.8), preset(momentum=0.8)),
    Row(schuss.Lion, lambda o: o.lion(0.1, weight_decay=0.3), preset(weight_decay=0.3)),
    Row(schuss.Lion, lambda o: o.lion(0.1), preset()),
    Row(schuss.AdaBelief, lambda o: o.adabelief(0.1, eps=1e-8), preset(eps=1e-8)),
    Row(schuss.Yogi, lambda o: o.yogi(0.1), preset()),
    Row(schuss.Adan, lambda o: o.adan(0.1), preset()),
    Row(schuss.Adan, lambda o: o.adan(0.1, weight_decay=0.02), preset(weight_decay=0.02)),
    Row(schuss.AdEMAMix, lambda o: o.contrib.ademamix(0.1), preset()),
    Row(
        schuss.AdEMAMix,
        lambda o: o.contrib.ademamix(0.1, alpha=2.0, eps_root=1e-4, weight_decay=0.1),
        preset(alpha=2.0, eps_root=1e-4, weight_decay=0.1),
    ),
    Row(schuss.ADOPT, lambda o: o.contrib.adopt(0.1), preset()),
    Row(schuss.ADOPT, lambda o: o.contrib.adopt(0.1, b2=0.9), preset(betas=(0.9, 0.9))),
    Row(schuss.ScheduleFreeSGD, lambda o: o.contrib.schedule_free_sgd(0.1), preset()),
    Row(
        schuss.ScheduleFreeAdamW,
        lambda o: o.contrib.schedule_free_adamw(0.1, b2=0.99, weight_decay=0.2),
        preset(betas=(0.9, 0.99), weight_decay=0.2),
    ),
]


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


@pytest.mark.parametrize("row", OPTAX, ids=lambda row: row.rule.__name__)
def test_optax(row: Row, optax: Any) -> None:
    solver = row.made(optax)
    x = start()
    state, points = solver.init(x), []
    for g in gradients():
        updates, state = solver.update(g, state, x)
        x = np.asarray(optax.apply_updates(x, updates))
        points.append(x)
    # optax finds the averages anew from y and z in each step: that costs it digits
    tolerance = 1e-11 if row.rule.__name__.startswith("ScheduleFree") else 1e-12
    close(ours(row.rule, row.options), np.array(points), tolerance)


def test_optax_sophia(optax: Any) -> None:
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


# ---- PyTorch


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lambd": 0.3, "alpha": 0.5, "t0": 20.0},
        {"lambd": 0.01, "t0": 0.0, "weight_decay": 0.2, "maximize": True},
    ],
)
def test_torch_asgd(options: dict[str, Any], request: pytest.FixtureRequest) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: its oracle did not run")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of its rate
    request.addfinalizer(lambda: torch.set_default_dtype(before))
    x = start()
    p = torch.tensor(start(), requires_grad=True)
    opt = schuss.ASGD(x, lr=0.01, **options)
    other = torch.optim.ASGD([p], lr=0.01, foreach=False, **options)
    for g in gradients():
        opt.step(g)
        p.grad = torch.tensor(g)
        other.step()
        close(x, p.detach().numpy())
        close(opt.state[0]["ax"], other.state[p]["ax"].numpy())


# ---- Keras

FTRL = {
    "l1_regularization_strength": 0.5,
    "l2_regularization_strength": 0.2,
    "l2_shrinkage_regularization_strength": 0.1,
    "beta": 0.3,
}


@pytest.mark.usefixtures("float64_in_jax")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "options"), [("Ftrl", {}), ("Ftrl", FTRL), ("Lion", {"weight_decay": 0.2})]
)
def test_keras(name: str, options: dict[str, Any]) -> None:
    keras = pytest.importorskip("keras", reason="Keras is not installed: its oracle did not run")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras computes in float32 here and there, but for KERAS_BACKEND=jax")
    x = start()
    variable = keras.Variable(start(), dtype="float64")
    opt = getattr(schuss, name)(x, preset="keras", lr=0.01, **options)
    other = getattr(keras.optimizers, name)(learning_rate=0.01, **options)
    for g in gradients():
        opt.step(g)
        other.apply([keras.ops.convert_to_tensor(g, dtype="float64")], [variable])
    close(x, keras.ops.convert_to_numpy(variable), 1e-6)  # its learning rate is float32
