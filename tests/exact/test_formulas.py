"""Right, by what is not ours: textbook formulas and golden values.

The exact tests hold kernel and reference together; these hold both to the literature;
test_oracles.py holds both to other libraries.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss
from schuss import rules
from schuss.engine.optimizer import Optimizer

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


def adagrad(lr: float, decay: float = 0.0, start: float = 0.0, eps: str = "outside") -> Any:
    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        s["s"] = s.get("s", start) + g**2
        root = math.sqrt(s["s"]) + 1e-10 if eps == "outside" else math.sqrt(s["s"] + 1e-10)
        return x - lr / (1 + (t - 1) * decay) * g / root

    return update


def rmsprop(
    lr: float,
    rho: float,
    mu: float = 0.0,
    centered: bool = False,
    eps: str = "outside",
    corrected: bool = False,
    inside: bool = False,
    nesterov: bool = False,
    start: float = 0.0,
) -> Any:
    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        s["v"] = rho * s.get("v", start) + (1 - rho) * g**2
        s["a"] = rho * s.get("a", 0.0) + (1 - rho) * g
        c = 1 - rho**t if corrected else 1.0
        q = s["v"] / c - (s["a"] / c) ** 2 if centered else s["v"] / c
        n = g / (math.sqrt(q) + 1e-8 if eps == "outside" else math.sqrt(q + 1e-8))
        if inside:
            s["b"] = mu * s.get("b", 0.0) + lr * n
            return x - (lr * n + mu * s["b"] if nesterov else s["b"])
        s["b"] = mu * s.get("b", 0.0) + n
        return x - lr * (n + mu * s["b"] if nesterov else s["b"])

    return update


def adadelta(lr: float, rho: float) -> Any:
    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        s["v"] = rho * s.get("v", 0.0) + (1 - rho) * g**2
        dx = math.sqrt(s.get("d", 0.0) + 1e-6) / math.sqrt(s["v"] + 1e-6) * g
        s["d"] = rho * s.get("d", 0.0) + (1 - rho) * dx**2
        return x - lr * dx

    return update


def adam(
    lr: float,
    beta1: float,
    beta2: float,
    wd: float = 0.0,
    amsgrad: bool | str = False,
    eps: str = "outside",
    root: float = 0.0,
    correct: tuple[bool, bool] = (True, True),
    join: float = 0.0,
    ahead: int = 0,
) -> Any:
    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        t += ahead
        s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
        s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g * g
        c1 = 1 - beta1**t if correct[0] else 1.0
        c2 = 1 - beta2**t if correct[1] else 1.0
        if amsgrad == "corrected":
            s["q"] = v_hat = max(s.get("q", 0.0), s["v"] / c2)
        else:
            s["q"] = max(s.get("q", 0.0), s["v"]) if amsgrad else s["v"]
            v_hat = s["q"] / c2
        denominator = {
            "outside": math.sqrt(v_hat) + 1e-8,
            "hat": math.sqrt(v_hat) + 1e-8 / math.sqrt(c2),
            "inside": math.sqrt(v_hat + 1e-8),
            "guard": math.sqrt(v_hat + 1e-8),
            "root_and_outside": math.sqrt(v_hat + root) + 1e-8,
            "clamp": max(math.sqrt(v_hat), 1e-8),
        }[eps]
        return x * (1 - lr * wd) - lr * (s["m"] / c1 + join * x) / denominator

    return update


def adamax(lr: float, beta1: float, beta2: float, eps: str = "inside") -> Any:
    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
        inside, outside = (1e-8, 0.0) if eps == "inside" else (0.0, 1e-8)
        s["u"] = max(beta2 * s.get("u", 0.0), abs(g) + inside)
        return x - lr / (1 - beta1**t) * s["m"] / (s["u"] + outside)

    return update


def nadam(lr: float, b1: float, b2: float, psi: float, variant: str) -> Any:
    def mu(t: int) -> float:
        return b1 * (1 - 0.5 * math.pow(0.96, t * psi))

    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
        s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g * g
        if variant == "dozat":
            before = math.prod(mu(i) for i in range(1, t + 1))
            mean = mu(t + 1) / (1 - before * mu(t + 1)) * s["m"] + (1 - mu(t)) / (1 - before) * g
        elif variant == "optax":
            mean = b1 * s["m"] / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        else:
            mean = (b1 * s["m"] + (1 - b1) * g) / (1 - b1**t)
        return x - lr * mean / (math.sqrt(s["v"] / (1 - b2**t)) + 1e-8)

    return update


def radam(lr: float, b1: float, b2: float, eps: str = "hat", threshold: float = 5.0) -> Any:
    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
        s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g * g
        c2, largest = 1 - b2**t, 2 / (1 - b2) - 1
        rho = largest - 2 * t * b2**t / c2
        m_hat = s["m"] / (1 - b1**t)
        if rho <= threshold:
            return x - lr * m_hat
        r = (rho - 4) * (rho - 2) * largest / ((largest - 4) * (largest - 2) * rho)
        added = 1e-8 / math.sqrt(c2) if eps == "hat" else 1e-8
        return x - lr * math.sqrt(r) * m_hat / (math.sqrt(s["v"] / c2) + added)

    return update


def rprop(lr: float, variant: str) -> Any:
    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        q = g * s.get("p", 0.0)
        factor = 1.2 if q > 0 else 0.5 if q < 0 else 1.0
        s["s"] = min(max(s.get("s", lr) * factor, 1e-6), 50.0)
        dw = -s["s"] * math.copysign(1.0, g)
        if q < 0 and variant != "rprop-":
            back = variant == "rprop+" or (variant == "irprop+" and LOSSES[t] > LOSSES[t - 1])
            dw = -s["dw"] if back else 0.0
            g = 0.0
        s["p"], s["dw"] = g, dw
        return x + dw

    return update


def ftrl(lr: float, l1: float, l2: float, shrink: float, start: float, beta: float = 0.0) -> Any:
    """McMahan et al. 2013: w = argmin(sum of g)*w + sum of sigma*|w - ws|^2/2 + penalties."""

    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        before = s.get("n", start)
        s["n"] = before + g**2
        sigma = (math.sqrt(s["n"]) - math.sqrt(before)) / lr
        s["z"] = s.get("z", 0.0) + g + 2 * shrink * x - sigma * x
        if abs(s["z"]) <= l1:
            return 0.0
        rate = (beta + math.sqrt(s["n"])) / lr + 2 * l2
        return -(s["z"] - math.copysign(l1, s["z"])) / rate

    return update


def eve(lr: float, b1: float, b2: float, b3: float, variant: str, decay: float = 0.0) -> Any:
    """Its d is worked out anew for each element, from all losses so far."""

    def feedback(t: int) -> float:
        d, tracked = 1.0, POSITIVE[1]
        for f_before, f in itertools.pairwise(POSITIVE[1 : t + 1]):
            if variant == "v1":
                up = f > tracked
                low, high = (1.1, 11.0) if up else (1 / 11, 1 / 1.1)
                new = tracked * min(max(f / tracked, low), high)
                change = max(new, tracked) / min(new, tracked) - 1
                tracked = new
            else:
                change = abs(f - f_before) / (min(f, f_before) + 0.2)
                change = min(max(change, 0.1), 10.0)
            d = b3 * d + (1 - b3) * change
        return d

    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
        s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g * g
        d, root = feedback(t), math.sqrt(s["v"] / (1 - b2**t))
        m_hat, rate = s["m"] / (1 - b1**t), lr / (1 + decay * (t - 1))
        if variant == "v1":
            return x - rate * m_hat / (d * root + 1e-8)
        added = 1e-8 / math.sqrt(1 - b2**t) if variant == "code" else 1e-8
        return x - rate / d * m_hat / (root + added)

    return update


def adabelief(lr: float, b1: float, b2: float) -> Any:
    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
        s["s"] = b2 * s.get("s", 0.0) + (1 - b2) * (g - s["m"]) ** 2 + 1e-16
        return x - lr * s["m"] / (1 - b1**t) / (math.sqrt(s["s"] / (1 - b2**t)) + 1e-16)

    return update


def yogi(
    lr: float,
    b1: float,
    b2: float,
    corrected: bool = True,
    mean: float = 0.0,
    decayed: bool = False,
) -> Any:
    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        s["m"] = b1 * s.get("m", mean) + (1 - b1) * g
        v = s.get("v", 1e-6)
        s["v"] = (b2 if decayed else 1) * v - (1 - b2) * math.copysign(g**2, v - g**2)
        c1, c2 = (1 - b1**t, 1 - b2**t) if corrected else (1.0, 1.0)
        return x - lr * s["m"] / c1 / (math.sqrt(s["v"] / c2) + 1e-3)

    return update


def laprop(lr: Callable[[int], float], b1: float, b2: float, inside: bool = True) -> Any:
    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g * g
        n = g / (math.sqrt(s["v"] / (1 - b2**t)) + 1e-15)
        rate = lr(t - 1)
        s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * (rate if inside else 1.0) * n
        if not inside:
            return x - rate * s["m"] / (1 - b1**t)
        mean = sum((1 - b1) * b1 ** (t - i) * lr(i - 1) for i in range(1, t + 1))
        return x - s["m"] / (mean / rate)

    return update


def adopt(lr: float, b1: float, b2: float, clips: bool = True) -> Any:
    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        if t == 1:
            s["v"] = g * g
            return x
        n = g / max(math.sqrt(s["v"]), 1e-6)
        if clips:
            n = min(max(n, -((t - 1) ** 0.25)), (t - 1) ** 0.25)
        s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * n
        s["v"] = b2 * s["v"] + (1 - b2) * g * g
        return x - lr * s["m"]

    return update


def grams(lr: float, b1: float, b2: float, eps: str = "hat") -> Any:
    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
        s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g * g
        c2 = 1 - b2**t
        added = 1e-6 / math.sqrt(c2) if eps == "hat" else 1e-6
        step = s["m"] / (1 - b1**t) / (math.sqrt(s["v"] / c2) + added)
        return x - lr * math.copysign(step, g)

    return update


def ademamix(
    lr: float, b1: float, b2: float, b3: float, alpha: float, rise: int = 0, slow: int = 0
) -> Any:
    def half_life(beta: float) -> float:
        return math.log(0.5) / math.log(beta) - 1

    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        a, beta = alpha, b3
        if t < rise:
            a = t / rise * alpha
        if t < slow:
            steps = (1 - t / slow) * half_life(b1) + t / slow * half_life(b3)
            beta = math.pow(0.5, 1 / (steps + 1))
        s["m1"] = b1 * s.get("m1", 0.0) + (1 - b1) * g
        s["m2"] = beta * s.get("m2", 0.0) + (1 - beta) * g
        s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g * g
        top = s["m1"] / (1 - b1**t) + a * s["m2"]
        return x - lr * top / (math.sqrt(s["v"] / (1 - b2**t)) + 1e-8)

    return update


def adan(lr: float, b: tuple[float, float, float], wd: float, optax: bool = False) -> Any:
    """Algorithm 1 with the paper's betas, which are 1 minus ours, and the bias corrected."""
    p1, p2, p3 = (1 - beta for beta in b)
    k, root = (p2, 1e-8) if optax else (1 - p2, 0.0)

    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        change = g - s.get("g", g)
        s["g"] = g
        s["m"] = (1 - p1) * s.get("m", 0.0) + p1 * g
        s["v"] = (1 - p2) * s.get("v", 0.0) + p2 * change
        s["n"] = (1 - p3) * s.get("n", 0.0) + p3 * (g + k * change) ** 2
        eta = lr / (math.sqrt(s["n"] / (1 - (1 - p3) ** t) + root) + 1e-8)
        step = eta * (s["m"] / (1 - (1 - p1) ** t) + k * s["v"] / (1 - (1 - p2) ** t))
        return (1 - lr * wd) * x - step if optax else (x - step) / (1 + wd * lr)

    return update


def sophia(lr: float, b1: float, wd: float, bound: float, corrected: bool = False) -> Any:
    """Before any estimate of the curvature, so that all but tiny means are clipped."""

    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
        ratio = s["m"] / (1 - b1**t if corrected else 1.0) / bound
        return (1 - lr * wd) * x - lr * min(max(ratio, -1.0), 1.0)

    return update


def signed(lr: float, b1: float = 0.0, b2: float = 0.0, wd: float = 0.0) -> Any:
    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        c = b1 * s.get("m", 0.0) + (1 - b1) * g
        s["m"] = b2 * s.get("m", 0.0) + (1 - b2) * g
        return x - lr * (math.copysign(1.0, c) + wd * x)

    return update


def gains(lr: float, mu: float = 0.0, velocity: bool = False, low: float = 0.1) -> Any:
    """As Hinton's slides have it: weights move by a velocity, with the opposite sign."""

    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        v, gain = s.get("v", 0.0), s.get("gain", 1.0)
        q = -g * v if velocity else g * s.get("g", 0.0)
        gain = gain + 0.05 if q > 0 else gain * 0.95 if q < 0 else gain
        s["gain"] = min(max(gain, low), 1.5)
        s["v"], s["g"] = mu * v - lr * s["gain"] * g, g
        return x + s["v"]

    return update


def tsne(lr: float, mu: float) -> Any:
    """As scikit-learn moves an embedding: gains start at 1, and whatever isn't progress shrinks
    them, the first step, too.
    """

    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        v, gain = s.get("v", 0.0), s.get("gain", 1.0)
        s["gain"] = max(gain + 0.2 if v * g < 0 else gain * 0.8, 0.01)
        s["v"] = mu * v - lr * s["gain"] * g
        return x + s["v"]

    return update


def asgd(lr: float, lambd: float, alpha: float) -> Any:
    """Bottou's SGD: the gradient of the loss and of lambd/2*x^2, at a falling rate."""

    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
        eta = lr / math.pow(1 + lambd * lr * (t - 1), alpha)
        return x - eta * (g + lambd * x)

    return update


def schedule_free(
    lr: float, beta: float, warmup: int = 0, r: float = 0.0, p: float = 2.0, wd: float = 0.0
) -> Any:
    """Three sequences, as in the paper: gradients are taken at y, z descends, x is the average."""

    def update(y: float, g: float, t: int, s: dict[str, float], n: float | None = None) -> float:
        x, z = s.get("x", y), s.get("z", y)
        rate = lr * min(1.0, t / warmup) if warmup else lr
        weight = t**r * rate**p
        s["sum"] = s.get("sum", 0.0) + weight
        c = weight / s["sum"]
        s["z"] = z - rate * (g + wd * y if n is None else n)
        s["x"] = (1 - c) * x + c * s["z"]
        return (1 - beta) * s["z"] + beta * s["x"]

    return update


def schedule_free_adamw(lr: float, b1: float, b2: float, wd: float, warmup: int = 0) -> Any:
    descend = schedule_free(lr, b1, warmup)

    def update(y: float, g: float, t: int, s: dict[str, float]) -> float:
        s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g * g
        n = g / (math.sqrt(s["v"] / (1 - b2**t)) + 1e-8) + wd * y
        moved: float = descend(y, g, t, s, n)
        return moved

    return update


LOSSES = np.random.default_rng(8).standard_normal(31).tolist()
POSITIVE = [math.exp(f) for f in LOSSES]


def falling(n: int) -> float:
    return 0.1 / (1 + n)


def halving(n: int) -> float:
    return math.ldexp(0.1, -n)


AMSGRAD: tuple[bool | str, ...] = (True, "corrected", "paper")
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
    (schuss.Adagrad, {"lr": 0.1, "eps_mode": "inside"}, adagrad(0.1, eps="inside")),
    (schuss.Adagrad, {"lr": 0.1, "eps_mode": "guard"}, adagrad(0.1, eps="inside")),
    (schuss.RMSprop, {"lr": 0.1}, rmsprop(0.1, 0.99)),
    (schuss.RMSprop, {"lr": 0.1, "eps_mode": "inside"}, rmsprop(0.1, 0.99, eps="inside")),
    (
        schuss.RMSprop,
        {"lr": 0.1, "initial_accumulator_value": 0.5, "bias_correction": True},
        rmsprop(0.1, 0.99, start=0.5, corrected=True),
    ),
    (schuss.RMSprop, {"lr": 0.1, "momentum": 0.8, "alpha": 0.9}, rmsprop(0.1, 0.9, 0.8)),
    (
        schuss.RMSprop,
        {"lr": 0.1, "momentum": 0.8, "nesterov": True},
        rmsprop(0.1, 0.99, 0.8, nesterov=True),
    ),
    (
        schuss.RMSprop,
        {"lr": 0.1, "momentum": 0.8, "lr_in_buffer": True},
        rmsprop(0.1, 0.99, 0.8, inside=True),
    ),
    (
        schuss.RMSprop,
        {"lr": 0.1, "momentum": 0.8, "lr_in_buffer": True, "nesterov": True},
        rmsprop(0.1, 0.99, 0.8, inside=True, nesterov=True),
    ),
    (
        schuss.RMSprop,
        {  # without v at the start the variance of the first step would be rounding noise
            "lr": 0.1,
            "centered": True,
            "eps_mode": "inside",
            "bias_correction": True,
            "initial_accumulator_value": 0.5,
        },
        rmsprop(0.1, 0.99, centered=True, eps="inside", corrected=True, start=0.5),
    ),
    (schuss.RMSprop, {"lr": 0.1, "centered": True}, rmsprop(0.1, 0.99, centered=True)),
    (
        schuss.RMSprop,
        {"lr": 0.1, "centered": True, "momentum": 0.8},
        rmsprop(0.1, 0.99, 0.8, centered=True),
    ),
    (
        schuss.RMSprop,
        {"lr": 0.1, "centered": True, "momentum": 0.8, "nesterov": True, "lr_in_buffer": True},
        rmsprop(0.1, 0.99, 0.8, centered=True, nesterov=True, inside=True),
    ),
    (schuss.Adadelta, {"lr": 0.5}, adadelta(0.5, 0.9)),
    (schuss.Adam, {"lr": 0.1}, adam(0.1, 0.9, 0.999)),
    (schuss.Adam, {"lr": 0.1, "betas": (0.5, 0.8)}, adam(0.1, 0.5, 0.8)),
    (schuss.Adam, {"lr": 0.1, "steps_ahead": 3}, adam(0.1, 0.9, 0.999, ahead=3)),
    *(
        (
            schuss.Adam,
            {"lr": 0.1, "eps_mode": mode, "eps_root": 1e-3},
            adam(0.1, 0.9, 0.999, eps=mode, root=1e-3),
        )
        for mode in ("hat", "inside", "guard", "root_and_outside", "clamp")
    ),
    *(
        (
            schuss.Adam,
            {"lr": 0.1, "bias_correction1": one, "bias_correction2": two},
            adam(0.1, 0.9, 0.999, correct=(one, two)),
        )
        for one, two in ((True, False), (False, True), (False, False))
    ),
    (
        schuss.Adam,
        {"lr": 0.1, "weight_decay": 0.3, "decay_mode": "course"},
        adam(0.1, 0.9, 0.999, join=0.3),
    ),
    *(
        (
            schuss.Adam,
            {"lr": 0.1, "amsgrad": convention, "betas": (0.9, 0.5), "eps_mode": mode},
            adam(
                0.1,
                0.9,
                0.5,
                amsgrad=convention,
                eps=mode,
                correct=(convention != "paper", convention != "paper"),
            ),
        )
        for convention, mode in itertools.product(AMSGRAD, ("outside", "inside"))
    ),
    (schuss.AdamW, {"lr": 0.1, "weight_decay": 0.3}, adam(0.1, 0.9, 0.999, wd=0.3)),
    (schuss.Adamax, {"lr": 0.1}, adamax(0.1, 0.9, 0.999)),
    (schuss.Adamax, {"lr": 0.1, "eps_mode": "outside"}, adamax(0.1, 0.9, 0.999, "outside")),
    *(
        (
            schuss.NAdam,
            {"lr": 0.1, "variant": variant, "momentum_decay": psi},
            nadam(0.1, 0.9, 0.999, psi, variant),
        )
        for variant, psi in (("dozat", 4e-3), ("dozat", 1.0), ("optax", 4e-3), ("timm", 4e-3))
    ),
    (schuss.RAdam, {"lr": 0.1}, radam(0.1, 0.9, 0.999)),
    (
        schuss.RAdam,
        {"lr": 0.1, "eps_mode": "outside", "threshold": 4.0, "betas": (0.9, 0.99)},
        radam(0.1, 0.9, 0.99, "outside", 4.0),
    ),
    (schuss.Ftrl, {"lr": 0.1}, ftrl(0.1, 0.0, 0.0, 0.0, 0.1)),
    (
        schuss.Ftrl,
        {
            "lr": 0.1,
            "l1_regularization_strength": 0.7,
            "l2_regularization_strength": 0.3,
            "l2_shrinkage_regularization_strength": 0.2,
            "initial_accumulator_value": 0.0,
            "beta": 1.0,
        },
        ftrl(0.1, 0.7, 0.3, 0.2, 0.0, 1.0),
    ),
    *(
        (
            schuss.Eve,
            {"lr": 0.1, "betas": (0.9, 0.999, 0.7), "variant": variant, "fstar": -0.2, **decay},
            eve(0.1, 0.9, 0.999, 0.7, variant, *decay.values()),
        )
        for variant, decay in (("v3", {}), ("v1", {}), ("code", {}), ("code", {"lr_decay": 0.2}))
    ),
    (schuss.AdaBelief, {"lr": 0.1}, adabelief(0.1, 0.9, 0.999)),
    (schuss.Yogi, {"lr": 0.1}, yogi(0.1, 0.9, 0.999)),
    (schuss.Yogi, {"lr": 0.1, "decayed": True}, yogi(0.1, 0.9, 0.999, decayed=True)),
    (
        schuss.Yogi,
        {"lr": 0.1, "bias_correction": False, "initial_mean": 0.3},
        yogi(0.1, 0.9, 0.999, False, 0.3),
    ),
    (schuss.LaProp, {"lr": 0.1}, laprop(lambda n: 0.1, 0.9, 0.999)),
    (schuss.LaProp, {"lr": falling}, laprop(falling, 0.9, 0.999)),
    (schuss.LaProp, {"lr": falling, "lr_in_buffer": False}, laprop(falling, 0.9, 0.999, False)),
    (schuss.ADOPT, {"lr": 0.1, "betas": (0.9, 0.99)}, adopt(0.1, 0.9, 0.99)),
    (schuss.ADOPT, {"lr": 0.1, "use_clipping": False}, adopt(0.1, 0.9, 0.9999, clips=False)),
    (schuss.Grams, {"lr": 0.1}, grams(0.1, 0.9, 0.999)),
    (schuss.Grams, {"lr": 0.1, "eps_mode": "outside"}, grams(0.1, 0.9, 0.999, "outside")),
    (schuss.AdEMAMix, {"lr": 0.1}, ademamix(0.1, 0.9, 0.999, 0.9999, 5.0)),
    (
        schuss.AdEMAMix,
        {"lr": 0.1, "alpha": 2.0, "alpha_warmup": 12, "beta3_warmup": 20},
        ademamix(0.1, 0.9, 0.999, 0.9999, 2.0, 12, 20),
    ),
    (
        schuss.Adan,
        {"lr": 0.1, "weight_decay": 0.3},
        adan(0.1, (0.98, 0.92, 0.99), 0.3),
    ),
    (
        schuss.Adan,
        {"preset": "optax", "lr": 0.1, "weight_decay": 0.3},
        adan(0.1, (0.98, 0.92, 0.99), 0.3, optax=True),
    ),
    (schuss.Sophia, {"lr": 0.1}, sophia(0.1, 0.965, 0.1, 1e-15)),
    (
        schuss.Sophia,
        {"preset": "optax", "lr": 0.1, "eps": 0.2},
        sophia(0.1, 0.965, 1e-4, 0.2, corrected=True),
    ),
    (schuss.SignSGD, {"lr": 0.1, "weight_decay": 0.2}, signed(0.1, wd=0.2)),
    (schuss.Signum, {"lr": 0.1, "momentum": 0.7}, signed(0.1, 0.7, 0.7)),
    (schuss.Lion, {"lr": 0.1, "weight_decay": 0.2}, signed(0.1, 0.9, 0.99, 0.2)),
    *(
        (schuss.Rprop, {"lr": 0.1, "variant": variant}, rprop(0.1, variant))
        for variant in ("irprop-", "rprop-", "rprop+", "irprop+")
    ),
    *(
        (
            schuss.DeltaBarDelta,
            {"lr": 0.1, "gain_min": 0.8, "gain_max": 1.5, "momentum": mu, "agreement": agreement},
            gains(0.1, mu, agreement == "velocity", 0.8),
        )
        for mu, agreement in itertools.product((0.0, 0.6), ("gradient", "velocity"))
    ),
    (schuss.DeltaBarDelta, {"preset": "tsne", "lr": 0.1}, tsne(0.1, 0.8)),
    (
        schuss.ASGD,
        {"lr": 0.1, "lambd": 0.3, "alpha": 0.6, "t0": 5.0},
        asgd(0.1, 0.3, 0.6),
    ),
    (schuss.ScheduleFreeSGD, {}, schedule_free(1.0, 0.9)),
    (
        schuss.ScheduleFreeSGD,
        {
            "lr": 0.1,
            "momentum": 0.8,
            "weight_decay": 0.2,
            "warmup_steps": 9,
            "r": 1.5,
            "weight_lr_power": 1.0,
        },
        schedule_free(0.1, 0.8, 9, 1.5, 1.0, 0.2),
    ),
    (
        schuss.ScheduleFreeAdamW,
        {"lr": 0.1, "weight_decay": 0.2, "warmup_steps": 4},
        schedule_free_adamw(0.1, 0.9, 0.999, 0.2, 4),
    ),
]


def test_every_kernel_has_a_textbook() -> None:
    defaults = {
        rule: {n: h.default for n, h in rule.hyperparameters.items()} for rule in rules.RULES
    }
    covered = {rule.kernel(defaults[rule] | options) for rule, options, _ in TEXTBOOK}
    apart = {rule for rule in rules.RULES if rule.sums(defaults[rule])}  # test_sums.py has theirs
    assert covered == {kernel for rule in set(rules.RULES) - apart for kernel in rule.states}


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
        opt.step(g, loss=POSITIVE[t])
        want = [update(v, float(gi), t, s) for v, gi, s in zip(want, g, memories, strict=True)]
        moved, wanted = x - start, np.array(want) - start
        assert np.abs(moved - wanted).max() <= 1e-13 * np.abs(wanted).max()


BOWL = np.array([0.2, 4.0])
