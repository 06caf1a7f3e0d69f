"""Evolution strategies: the recipe, and OpenAI's optimizers as they are copied everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import schuss
from clients.recipes import run

F4 = np.float32


class Theirs:
    """What es_distributed does with a flat vector: new arrays, |step|/|theta| returned."""

    def __init__(self, theta: np.ndarray, stepsize: float) -> None:
        self.theta, self.stepsize, self.t = theta.copy(), F4(stepsize), 0
        self.m, self.v = np.zeros_like(theta), np.zeros_like(theta)

    def update(self, g: np.ndarray) -> float:
        self.t += 1
        step = self.step(g)
        ratio = np.linalg.norm(step) / np.linalg.norm(self.theta)
        self.theta = self.theta + step
        return float(ratio)

    def step(self, g: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class TheirAdam(Theirs):
    def step(self, g: np.ndarray) -> np.ndarray:
        a = self.stepsize * F4(np.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t))
        self.m = F4(0.9) * self.m + F4(0.1) * g
        self.v = F4(0.999) * self.v + F4(1 - 0.999) * (g * g)
        moved: np.ndarray = -a * self.m / (np.sqrt(self.v) + F4(1e-8))
        return moved


class TheirSGD(Theirs):
    def step(self, g: np.ndarray) -> np.ndarray:
        self.v = F4(0.9) * self.v + F4(0.1) * g
        return -self.stepsize * self.v


@pytest.mark.parametrize("steps", [20, 200])
def test_recipe(steps: int) -> None:
    """The same draws, a sum by np.dot, and their Adam; on the way, and at its end."""
    names = run("Evolution strategies", range=lambda n: range(min(n, steps)))
    rng = np.random.default_rng(0)
    table = rng.standard_normal(20_000, F4)
    adam = TheirAdam(np.r_[np.full(12, 0.1, F4), np.zeros(3, F4)], 0.05)
    for _ in range(steps):
        starts = rng.integers(table.size - 15, size=20)
        noise = np.stack([table[i : i + 15] for i in starts])
        theta, worth = adam.theta, names["worth"]
        returns = [[worth(theta + 0.1 * e), worth(theta - 0.1 * e)] for e in noise]
        ranks = np.argsort(np.argsort(np.ravel(returns))).reshape(20, 2) / 39 - 0.5
        g = np.dot((ranks[:, 0] - ranks[:, 1]).astype(F4), noise) / F4(40)
        ratio = adam.update(-g + F4(0.005) * theta)
    np.testing.assert_allclose(names["flat"], adam.theta, atol=1e-5)
    assert names["ratio"] == pytest.approx(ratio, rel=1e-3)
    assert names["policy"]["w"].base is not None


@pytest.mark.parametrize(
    ("theirs", "rule", "options"),
    [
        (TheirAdam, schuss.Adam, {"eps_mode": "hat"}),
        (
            TheirSGD,
            schuss.SGD,
            {"momentum": 0.9, "dampening": 0.9, "first_step": "accumulate"},
        ),
    ],
)
def test_step(theirs: Any, rule: Any, options: dict[str, Any]) -> None:
    """A rate of its own in each step, and the ratio that is logged."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(1000, F4)
    want = theirs(x, 0.0)
    opt = rule(x, maximize=True, l2=0.01, **options)
    for t in range(60):
        g, want.stepsize = rng.standard_normal(1000, F4), F4(0.1 / (1 + t))
        opt.step(g, lr=0.1 / (1 + t), report=True)
        ratio = want.update(-g + F4(0.01) * want.theta)
        assert opt.report.update / opt.report.param == pytest.approx(ratio, rel=1e-5)
        np.testing.assert_allclose(x, want.theta, atol=2e-5)
