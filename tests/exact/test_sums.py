"""Rules that measure whole arrays first, by their papers' formulas, written for arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import rules
from schuss.engine.optimizer import Optimizer

Arrays = list[np.ndarray]
Update = Callable[[Arrays, Arrays, int], Arrays]
norm = np.linalg.norm


def lars(lr: float, trust: float, mu: float, wd: float, paper: bool, nesterov: bool = False) -> Any:
    buffers: dict[int, Any] = {}

    def update(xs: Arrays, gs: Arrays, t: int) -> Arrays:
        out = []
        for i, (x, g) in enumerate(zip(xs, gs, strict=True)):
            d = g + wd * x
            below = norm(g) + wd * norm(x) if paper else norm(d)
            r = trust * norm(x) / below if norm(x) > 0 and norm(g) > 0 else 1.0
            step = lr * r * d
            buffers[i] = mu * buffers.get(i, 0.0) + step
            out.append(x - (step + mu * buffers[i] if nesterov else buffers[i]))
        return out

    return update


def adam_update(s: dict[Any, Any], i: int, g: Any, b1: float, b2: float, eps: float, t: int) -> Any:
    s[i, "m"] = b1 * s.get((i, "m"), 0.0) + (1 - b1) * g
    s[i, "v"] = b2 * s.get((i, "v"), 0.0) + (1 - b2) * g * g
    return s[i, "m"] / (1 - b1**t) / (np.sqrt(s[i, "v"] / (1 - b2**t)) + eps)


def lamb(lr: float, b1: float, b2: float, eps: float, wd: float) -> Any:
    s: dict[Any, Any] = {}

    def update(xs: Arrays, gs: Arrays, t: int) -> Arrays:
        out = []
        for i, (x, g) in enumerate(zip(xs, gs, strict=True)):
            u = adam_update(s, i, g, b1, b2, eps, t) + wd * x
            ratio = norm(x) / norm(u) if norm(x) > 0 and norm(u) > 0 else 1.0
            out.append(x - lr * ratio * u)
        return out

    return update


def stable(lr: float, b1: float, b2: float, eps: float, wd: float) -> Any:
    s: dict[Any, Any] = {}

    def update(xs: Arrays, gs: Arrays, t: int) -> Arrays:
        out = []
        for i, (x, g) in enumerate(zip(xs, gs, strict=True)):
            h1, h2 = ((b**t - b) / (b**t - 1) for b in (b1, b2))
            s[i, "m"] = h1 * s.get((i, "m"), 0.0) + (1 - h1) * g
            s[i, "v"] = h2 * s.get((i, "v"), 0.0) + (1 - h2) * g * g
            rms = math.sqrt(np.mean(g * g / np.maximum(s[i, "v"], eps**2)))
            rate = lr / max(1.0, rms)
            out.append(x * (1 - rate * wd) - rate * s[i, "m"] / (np.sqrt(s[i, "v"]) + eps))
        return out

    return update


def mars(lr: float, b1: float, b2: float, eps: float, gamma: float, copy: bool) -> Any:
    s: dict[Any, Any] = {}

    def update(xs: Arrays, gs: Arrays, t: int) -> Arrays:
        out = []
        for i, (x, g) in enumerate(zip(xs, gs, strict=True)):
            before = s.get((i, "g"), g if copy else 0.0)
            c = g + gamma * b1 / (1 - b1) * (g - before)
            c = c / max(1.0, norm(c))
            s[i, "g"] = g
            out.append(x - lr * adam_update(s, i, c, b1, b2, eps, t))
        return out

    return update


def prodigy(lr: float, b1: float, b2: float, eps: float, wd: float, corrected: bool) -> Any:
    s: dict[Any, Any] = {"d": 1e-6, "num": 0.0, "max": 1e-6}
    d0 = 1e-6

    def update(xs: Arrays, gs: Arrays, t: int) -> Arrays:
        b3 = math.sqrt(b2)
        d = s["d"]
        rate = d * lr * (math.sqrt(1 - b2**t) / (1 - b1**t) if corrected else 1.0)
        s["num"] *= b3
        size = 0.0
        for i, (x, g) in enumerate(zip(xs, gs, strict=True)):
            start = s.setdefault((i, "x0"), x.copy())
            s["num"] += d / d0 * rate * float(g @ (start - x))
            s[i, "m"] = b1 * s.get((i, "m"), 0.0) + (1 - b1) * d * g
            s[i, "v"] = b2 * s.get((i, "v"), 0.0) + (1 - b2) * (d * g) ** 2
            s[i, "s"] = b3 * s.get((i, "s"), 0.0) + d / d0 * rate * g
            size += np.abs(s[i, "s"]).sum()
        found = s["num"] / size
        if d == d0:
            s["d"] = max(d, found)
        s["max"] = max(s["max"], found)
        s["d"] = min(s["max"], s["d"] * math.inf)
        return [
            x - wd * rate * x - rate * s[i, "m"] / (np.sqrt(s[i, "v"]) + s["d"] * eps)
            for i, x in enumerate(xs)
        ]

    return update


def dadapt(lr: float, b1: float, b2: float, eps: float, wd: float) -> Any:
    s: dict[Any, Any] = {"d": 1e-6, "r": 0.0}

    def update(xs: Arrays, gs: Arrays, t: int) -> Arrays:
        w, rate, num, size, out = math.sqrt(b2), s["d"] * lr, 0.0, 0.0, []
        for i, (x, g) in enumerate(zip(xs, gs, strict=True)):
            v, old = s.get((i, "v"), np.zeros_like(g)), s.get((i, "s"), np.zeros_like(g))
            num += rate * float(g @ (old / (np.sqrt(v) + eps)))
            s[i, "m"] = b1 * s.get((i, "m"), 0.0) + (1 - b1) * rate * g
            s[i, "v"] = b2 * v + (1 - b2) * g * g
            s[i, "s"] = w * old + (1 - w) * rate * g
            size += np.abs(s[i, "s"]).sum()
            out.append(x * (1 - wd * rate) - s[i, "m"] / (np.sqrt(s[i, "v"]) + eps))
        s["r"] = w * s["r"] + (1 - w) * num
        s["d"] = max(s["d"], s["r"] / ((1 - w) * size))
        return out

    return update


def cautious(lr: float, plus1: bool) -> Any:
    s: dict[Any, Any] = {}

    def update(xs: Arrays, gs: Arrays, t: int) -> Arrays:
        out = []
        for i, (x, g) in enumerate(zip(xs, gs, strict=True)):
            u = adam_update(s, i, g, 0.9, 0.999, 1e-8, t)
            mask = (u * g > 0).astype(float)
            scale = mask.size / (mask.sum() + 1) if plus1 else 1 / max(mask.mean(), 1e-3)
            out.append(x * (1 - lr * 0.1) - lr * mask * scale * u)
        return out

    return update


def adafactor(lr: float, decay: float, eps1: float, eps2: float, d: float, wd: float) -> Any:
    s: dict[Any, Any] = {}

    def update(xs: Arrays, gs: Arrays, t: int) -> Arrays:
        out = []
        for i, (x, g) in enumerate(zip(xs, gs, strict=True)):
            w = float(t) ** decay
            s[i] = (1 - w) * s.get(i, 0.0) + w * g * g
            u = g / np.sqrt(np.maximum(s[i], eps1**2))
            rate = max(eps2, float(norm(x)) / math.sqrt(x.size)) * min(lr, 1 / math.sqrt(t))
            u = u / max(1.0, norm(u) / math.sqrt(u.size) / d)
            out.append(x * (1 - lr * wd) - rate * u)
        return out

    return update


LAMB = (0.1, 0.9, 0.999, 1e-6, 0.01)
CASES: list[tuple[type[Optimizer], dict[str, Any], Callable[[], Update]]] = [
    (schuss.LARS, {"lr": 0.5}, lambda: lars(0.5, 1e-3, 0.9, 0.0, True)),
    (schuss.LARS, {"lr": 9.0, "weight_decay": 0.1}, lambda: lars(9.0, 1e-3, 0.9, 0.1, True)),
    (
        schuss.LARS,
        {"lr": 9.0, "weight_decay": 0.1, "preset": "optax", "nesterov": True},
        lambda: lars(9.0, 1e-3, 0.9, 0.1, False, nesterov=True),
    ),
    (schuss.LAMB, {"lr": 0.1}, lambda: lamb(*LAMB)),
    (schuss.StableAdamW, {"lr": 0.1}, lambda: stable(0.1, 0.9, 0.99, 1e-6, 0.01)),
    # Matrices are in tests/rules/test_factored.py.
    (
        schuss.Adafactor,
        {"lr": 0.3, "weight_decay": 0.1, "d": 1.5},
        lambda: adafactor(0.3, -0.8, 2.0**-52, 1e-3, 1.5, 0.1),
    ),
    (schuss.MARS, {}, lambda: mars(3e-3, 0.95, 0.99, 1e-8, 0.025, copy=False)),
    (schuss.MARS, {"preset": "timm"}, lambda: mars(3e-3, 0.9, 0.99, 1e-8, 0.025, copy=True)),
    (
        schuss.Prodigy,
        {"weight_decay": 0.1},
        lambda: prodigy(1.0, 0.9, 0.999, 1e-8, 0.1, corrected=False),
    ),
    (
        schuss.Prodigy,
        {"preset": "optax"},
        lambda: prodigy(1.0, 0.9, 0.999, 1e-8, 0.0, corrected=True),
    ),
    (schuss.DAdaptAdam, {"weight_decay": 0.1}, lambda: dadapt(1.0, 0.9, 0.999, 1e-8, 0.1)),
    (
        schuss.AdamW,
        {"lr": 0.1, "weight_decay": 0.1, "cautious": "mean"},
        lambda: cautious(0.1, plus1=False),
    ),
    (
        schuss.AdamW,
        {"lr": 0.1, "weight_decay": 0.1, "cautious": "plus1"},
        lambda: cautious(0.1, plus1=True),
    ),
]


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
@pytest.mark.parametrize(("rule", "options", "textbook"), CASES)
def test_textbook(rule: type[Optimizer], options: Any, textbook: Any, backend: str) -> None:
    """Steps down a bowl with noise, so that d grows and norms change, in three arrays."""
    rng = np.random.default_rng(5)
    xs = [rng.standard_normal(n) for n in (7, 1, 5000)]
    want = [x.copy() for x in xs]
    opt, update = rule(xs, backend=backend, **options), textbook()
    start = [x.copy() for x in xs]
    for t in range(1, 41):
        gs = [2.0 * w + 0.3 * rng.standard_normal(w.size) for w in want]
        opt.step(gs)
        want = update(want, gs, t)
        for x, w, s in zip(xs, want, start, strict=True):
            # x rounds, too, and Prodigy's d hangs on differences of x.
            assert np.abs(x - w).max() <= 1e-10 * np.abs(w - s).max() + 2e-14, t


def test_every_rule_that_measures_has_a_textbook() -> None:
    measuring = {rule for rule in rules.RULES if rule.sums(rule.defaults())}
    assert measuring == {rule for rule, *_ in CASES} - {schuss.AdamW}


def test_d_grows_to_the_size_of_the_way() -> None:
    """Both estimates start at 1e-6 and end within the order of the distance from the solution."""
    for rule in (schuss.Prodigy, schuss.DAdaptAdam):
        x = np.full(50, 3.0)
        opt = rule([x])
        for _ in range(300):
            opt.step([np.sign(x) + x])
        assert 1e-2 < opt.state_dict()["shared"]["d"] < 100
        assert np.abs(x).max() < 1.5


def test_an_overflowing_sum_changes_nothing_that_a_step_would_not() -> None:
    """Sums that are infinite or NaN: both backends agree, and nothing raises."""
    for rule in (rule for rule in rules.RULES if rule.sums(rule.defaults())):
        ends = []
        for backend in ("compiled", "numpy"):
            xs = [np.array([1.0, np.inf, 3.0]), np.array([1e200, -1e200])]
            opt = rule(xs, backend=backend)
            for g in (1e200, np.nan):
                opt.step([np.full(3, g), np.full(2, g)])
            ends.append([x.copy() for x in xs])
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*ends, strict=True)), rule
