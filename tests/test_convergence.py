"""Every rule finds its way down, and none of them does with the sign of its step turned round.

Three landscapes: an elongated parabola, Rosenbrock's curved valley, and a classifier of handwritten
digits. Each rule has a learning rate for each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from schuss import rules
from schuss.optimizer import Optimizer
from schuss.trainer import digits, evaluate, loss_and_gradients, network

RATES = {  # on the parabola, in the valley, of the classifier
    "SGD": (0.1, 0.001, 0.5),
    "Momentum": (0.03, 0.001, 0.1),
    "NAG": (0.03, 0.001, 0.1),
    "Adagrad": (1.0, 0.3, 0.1),
    "RMSprop": (0.03, 0.01, 0.01),
    "Adadelta": (0.7, 0.3, 10.0),
    "Adam": (0.1, 0.1, 0.03),
    "AdamW": (0.1, 0.1, 0.03),
    "Adamax": (0.1, 0.3, 0.03),
    "NAdam": (0.1, 0.03, 0.03),
    "NAdamW": (0.1, 0.03, 0.03),
    "RAdam": (0.3, 0.003, 0.1),
    "Rprop": (0.1, 0.1, 0.01),
    "Ftrl": (1.0, 0.3, 0.3),
    "Eve": (0.1, 0.1, 0.03),
    "AdaBelief": (0.1, 0.1, 0.03),
    "Yogi": (0.1, 0.1, 0.03),
    "LaProp": (0.1, 0.1, 0.03),
    "ADOPT": (0.1, 0.3, 0.03),
    "Grams": (0.1, 0.03, 0.03),
    "AdEMAMix": (1.0, 0.1, 0.03),
    "Adan": (0.1, 0.1, 0.03),
    "Sophia": (0.003, 0.01, 0.03),
    "SignSGD": (0.01, 0.001, 0.03),
    "Signum": (0.01, 0.01, 0.03),
    "Lion": (0.01, 0.01, 0.03),
    "DeltaBarDelta": (0.1, 0.001, 0.3),
    "ASGD": (0.1, 0.001, 1.0),
    "ScheduleFreeSGD": (0.3, 0.003, 1.0),
    "ScheduleFreeAdamW": (0.3, 0.1, 0.03),
}


def parabola(rule: type[Optimizer], lr: float, **options: Any) -> bool:
    """Whether w comes from (-5, -2) to within 0.02 of the minimum of 0.1*w1^2 + 2*w2^2."""
    w = np.array([-5.0, -2.0])
    opt = rule(w, lr=lr, weight_decay=0.0, **options)
    for _ in range(2000):
        opt.step(np.array([0.2, 4.0]) * w, loss=float(0.1 * w[0] ** 2 + 2 * w[1] ** 2))
    return bool(np.abs(w).max() < 0.02)


def valley(rule: type[Optimizer], lr: float, **options: Any) -> bool:
    """Whether (1 - x)^2 + 100*(y - x^2)^2 falls from 29, at (-1, 1.5), to a hundredth of that.

    The floor of the valley, which is soon found, is at 4 there.
    """
    w = np.array([-1.0, 1.5])
    opt = rule(w, lr=lr, weight_decay=0.0, **options)
    for _ in range(3000):
        x, y = w
        loss = (1 - x) ** 2 + 100 * (y - x * x) ** 2
        opt.step(np.array([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)]), loss=loss)
    x, y = w
    return bool((1 - x) ** 2 + 100 * (y - x * x) ** 2 < 0.29)


def classifier(rule: type[Optimizer], lr: float, **options: Any) -> bool:
    """Whether 60 steps of softmax regression know 9 of 10 digits that were held out."""
    train, held_out = digits(0, np.float32)
    params = network([64, 10], np.random.default_rng(0), np.float32)
    opt = rule(params, lr=lr, **options)
    for _ in range(60):
        loss, grads = loss_and_gradients(params, *train)
        opt.step(grads, loss=loss)
    _, accuracy = evaluate(params, held_out)
    return accuracy > 0.9


@pytest.mark.parametrize("rule", rules.RULES)
@pytest.mark.parametrize("landscape", [parabola, valley, classifier])
def test_downhill(landscape: Callable[..., bool], rule: type[Optimizer]) -> None:
    lr = RATES[rule.__name__][[parabola, valley, classifier].index(landscape)]
    assert landscape(rule, lr)
    with np.errstate(all="ignore"):
        assert not landscape(rule, lr, maximize=True), "uphill, it arrives as well"
