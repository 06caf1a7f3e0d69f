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
) -> Any:
    def update(x: float, g: float, t: int, s: dict[str, float]) -> float:
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


LOSSES = np.random.default_rng(8).standard_normal(31).tolist()


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
        {"lr": 0.1, "weight_decay": 0.3, "decay_mode": "seed002"},
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
    *(
        (schuss.Rprop, {"lr": 0.1, "variant": variant}, rprop(0.1, variant))
        for variant in ("irprop-", "rprop-", "rprop+", "irprop+")
    ),
]


def test_every_kernel_has_a_textbook() -> None:
    defaults = {
        rule: {n: h.default for n, h in rule.hyperparameters.items()} for rule in rules.RULES
    }
    covered = {rule.kernel(defaults[rule] | options) for rule, options, _ in TEXTBOOK}
    apart = {rule for rule in rules.RULES if rule.sums(defaults[rule])}  # test_whole.py has theirs
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
        opt.step(g, loss=LOSSES[t])
        want = [update(v, float(gi), t, s) for v, gi, s in zip(want, g, memories, strict=True)]
        moved, wanted = x - start, np.array(want) - start
        assert np.abs(moved - wanted).max() <= 1e-13 * np.abs(wanted).max()


BOWL = np.array([0.2, 4.0])
