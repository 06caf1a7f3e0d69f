"""Right, by what is not ours: textbook formulas, golden values, and PyTorch where it is installed.

The exact tests hold kernel and reference together; these hold both to the literature.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import rules
from schuss.optimizer import Optimizer

# ---- Textbooks: one number at a time, in the shape in which the papers write it.


def sgd(lr: float, mu: float = 0.0, damp: float = 0.0, nesterov: bool = False) -> Any:
    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        s["b"] = g if t == 1 else mu * s["b"] + (1 - damp) * g
        return x - lr * (g + mu * s["b"] if nesterov else s["b"])

    return update


def momentum_inside(lr: Callable[[int], float], mu: float) -> Any:
    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        s["b"] = mu * s.get("b", 0.0) + lr(t - 1) * g
        return x - s["b"]

    return update


def adagrad(lr: float, decay: float = 0.0, start: float = 0.0) -> Any:
    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        s["s"] = s.get("s", start) + g**2
        return x - lr / (1 + (t - 1) * decay) * g / (math.sqrt(s["s"]) + 1e-10)

    return update


def rmsprop(lr: float, rho: float, mu: float = 0.0, centered: bool = False) -> Any:
    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        s["v"] = rho * s.get("v", 0.0) + (1 - rho) * g**2
        s["a"] = rho * s.get("a", 0.0) + (1 - rho) * g
        q = s["v"] - s["a"] ** 2 if centered else s["v"]
        s["b"] = mu * s.get("b", 0.0) + g / (math.sqrt(q) + 1e-8)
        return x - lr * s["b"]

    return update


def adam(lr: float, beta1: float, beta2: float, wd: float = 0.0, amsgrad: bool = False) -> Any:
    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
        s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g * g
        s["q"] = max(s.get("q", 0.0), s["v"]) if amsgrad else s["v"]
        m_hat: float = s["m"] / (1 - beta1**t)
        v_hat: float = s["q"] / (1 - beta2**t)
        return x * (1 - lr * wd) - lr * m_hat / (math.sqrt(v_hat) + 1e-8)

    return update


def halving(n: int) -> float:
    return math.ldexp(0.1, -n)


TEXTBOOK: list[tuple[type[Optimizer], dict[str, Any], Any]] = [
    (schuss.SGD, {"lr": 0.1}, sgd(0.1)),
    (schuss.SGD, {"lr": 0.1, "momentum": 0.9}, sgd(0.1, 0.9)),
    (schuss.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}, sgd(0.1, 0.9, 0.3)),
    (schuss.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, sgd(0.1, 0.9, nesterov=True)),
    (
        schuss.SGD,
        {"lr": halving, "momentum": 0.9, "lr_in_buffer": True},
        momentum_inside(halving, 0.9),
    ),
    (schuss.Adagrad, {"lr": 0.1}, adagrad(0.1)),
    (
        schuss.Adagrad,
        {"lr": 0.1, "lr_decay": 0.2, "initial_accumulator_value": 0.1},
        adagrad(0.1, 0.2, 0.1),
    ),
    (schuss.RMSprop, {"lr": 0.1}, rmsprop(0.1, 0.99)),
    (schuss.RMSprop, {"lr": 0.1, "momentum": 0.8, "alpha": 0.9}, rmsprop(0.1, 0.9, 0.8)),
    (schuss.RMSprop, {"lr": 0.1, "centered": True}, rmsprop(0.1, 0.99, centered=True)),
    (
        schuss.RMSprop,
        {"lr": 0.1, "centered": True, "momentum": 0.8},
        rmsprop(0.1, 0.99, 0.8, centered=True),
    ),
    (schuss.Adam, {"lr": 0.1}, adam(0.1, 0.9, 0.999)),
    (schuss.Adam, {"lr": 0.1, "betas": (0.5, 0.8)}, adam(0.1, 0.5, 0.8)),
    (
        schuss.Adam,
        {"lr": 0.1, "amsgrad": True, "betas": (0.9, 0.5)},
        adam(0.1, 0.9, 0.5, amsgrad=True),
    ),
    (schuss.AdamW, {"lr": 0.1, "weight_decay": 0.3}, adam(0.1, 0.9, 0.999, wd=0.3)),
]


def test_every_kernel_has_a_textbook() -> None:
    defaults = {
        rule: {n: h.default for n, h in rule.hyperparameters.items()} for rule in rules.RULES
    }
    covered = {rule.kernel(defaults[rule] | options) for rule, options, _ in TEXTBOOK}
    assert covered == {kernel for rule in rules.RULES for kernel in rule.states}


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
@pytest.mark.parametrize(("rule", "options", "update"), TEXTBOOK)
def test_textbook(
    rule: type[Optimizer], options: dict[str, Any], update: Any, backend: str
) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(20)
    want = [float(v) for v in x]
    memories: list[dict[str, float]] = [{} for _ in want]
    opt = rule(x, backend=backend, **options)
    start = x.copy()
    for t in range(1, 31):
        g = rng.standard_normal(20)
        opt.step(g)
        want = [update(v, float(gi), t, s) for v, gi, s in zip(want, g, memories, strict=True)]
        moved, wanted = x - start, np.array(want) - start
        assert np.abs(moved - wanted).max() <= 1e-13 * np.abs(wanted).max()


# ---- Golden values on l = 0.1*w1^2 + 2*w2^2 from (-5, -2), printed by others to so many digits.

BOWL = np.array([0.2, 4.0])
GOLDEN: list[tuple[Any, dict[str, Any], int, tuple[float, float], float]] = [
    (schuss.SGD, {"lr": 0.4}, 20, (-0.943467, -0.000073), 5e-7),
    (schuss.SGD, {"lr": 0.6}, 20, (-0.387814, -1673.365109), 5e-7),
    (schuss.SGD, {"lr": 0.6, "momentum": 0.5}, 20, (0.007188, 0.002553), 5e-7),
    (schuss.SGD, {"lr": 0.6, "momentum": 0.25}, 20, (-0.126340, -0.186632), 5e-7),
    (schuss.AdamW, {"lr": 0.1, "weight_decay": 0.01}, 20, (-2.98321594, -0.20602206), 5e-9),
    (schuss.Adam, {"lr": 0.1, "weight_decay": 0.01}, 20, (-3.06033890, -0.22245243), 5e-9),
]


@pytest.mark.parametrize(("rule", "options", "steps", "want", "tolerance"), GOLDEN)
def test_golden(
    rule: type[Optimizer], options: dict[str, Any], steps: int, want: Any, tolerance: float
) -> None:
    w = np.array([-5.0, -2.0])
    opt = rule(w, **options)
    for _ in range(steps):
        opt.step(BOWL * w)
    assert np.abs(w - want).max() <= tolerance


# ---- Convergence: a wrong sign does not pass.

RATES = {"SGD": 0.05, "Adagrad": 1.0, "RMSprop": 0.01, "Adam": 0.1, "AdamW": 0.1}


@pytest.mark.parametrize("rule", rules.RULES)
def test_converges(rule: type[Optimizer]) -> None:
    w = np.array([-5.0, -2.0])
    opt = rule(w, lr=RATES[rule.__name__], weight_decay=0.0)
    for _ in range(2000):
        opt.step(BOWL * w)
    assert np.abs(w).max() < 0.02


# ---- PyTorch


def grid(**choices: list[Any]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


DECAY: dict[str, list[Any]] = {"weight_decay": [0.0, 0.1], "maximize": [False, True]}
WITH_TORCH: dict[str, list[dict[str, Any]]] = {
    "SGD": [
        *grid(momentum=[0.0, 0.9], dampening=[0.0, 0.4], **DECAY),
        *grid(momentum=[0.9], nesterov=[True], **DECAY),
    ],
    "Adagrad": list(grid(lr_decay=[0.0, 0.1], initial_accumulator_value=[0.0, 0.2], **DECAY)),
    "RMSprop": list(grid(alpha=[0.99, 0.8], momentum=[0.0, 0.9], centered=[False, True], **DECAY)),
    "Adam": list(grid(betas=[(0.9, 0.999), (0.5, 0.7)], amsgrad=[False, True], **DECAY)),
    "AdamW": list(grid(betas=[(0.9, 0.999), (0.5, 0.7)], amsgrad=[False, True], **DECAY)),
}


@pytest.mark.parametrize("name", WITH_TORCH)
def test_torch(name: str) -> None:
    """60 steps in float64, zeros and outliers among the gradients: parameters and state."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: its oracle did not run")
    for options in WITH_TORCH[name]:
        rng = np.random.default_rng(17)
        start = rng.standard_normal(50)
        x, p = start.copy(), torch.tensor(start.copy(), requires_grad=True)
        ours = getattr(schuss, name)(x, lr=0.01, **options)
        theirs = getattr(torch.optim, name)([p], lr=0.01, foreach=False, **options)
        for t in range(60):
            g = rng.standard_normal(50) * (0.0 if t == 20 else 1e4 if t == 40 else 1.0)
            g[::7] = 0.0
            ours.step(g)
            p.grad = torch.tensor(g)
            theirs.step()
        largest = np.abs(x - start).max()
        assert np.abs(x - p.detach().numpy()).max() <= 1e-12 * largest, options
        for key, array in ours.state[0].items():
            want = np.asarray(theirs.state[p][key]) if key in theirs.state[p] else None
            if want is not None:
                assert np.abs(array - want).max() <= 1e-12 * np.abs(want).max(), (key, options)
