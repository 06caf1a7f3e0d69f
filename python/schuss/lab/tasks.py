"""What rules are compared and tested on: three tasks, and a learning rate of each rule for each.

digits       the demo's network, in batches of 32; or in full ones for rules that go by signs
rosenbrock   (1 - x)^2 + 100*(y - x^2)^2, from a place that the seed chooses
regression   least squares over scikit-learn's diabetes data, from weights that the seed chooses

The last two have their parameters in one column, which is a matrix to the rules for matrices.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

import numpy as np

import schuss
from schuss.data import Batches
from schuss.lab import trainer
from schuss.rules import matrix


class Rates(NamedTuple):
    """The learning rate, at its peak, for each task; see trainer.rate for its course.

    The best of 1 and 3 times powers of ten by the mean loss of some seeds, of losses below 1e-12
    the smallest rate; of digits among those whose accuracy is within half a point of the best. One
    rate lower where other seeds, or a tenth of the steps, diverged.
    """

    digits: float
    rosenbrock: float
    regression: float


RATES = {
    "SGD": Rates(0.3, 1e-3, 0.3),
    "Momentum": Rates(0.1, 1e-3, 0.3),
    "NAG": Rates(0.1, 1e-3, 0.3),
    "Adagrad": Rates(0.3, 10, 10),
    "RMSprop": Rates(0.01, 0.1, 1),
    "Adadelta": Rates(3, 10, 30),
    "Ftrl": Rates(1, 1, 1),
    "Adam": Rates(0.01, 1, 1),
    "AdamW": Rates(0.01, 1, 1),
    "Adamax": Rates(0.03, 10, 3),
    "NAdam": Rates(0.01, 0.3, 10),
    "NAdamW": Rates(0.01, 0.3, 10),
    "RAdam": Rates(0.03, 0.1, 3),
    "Eve": Rates(0.01, 3, 1),
    "AdaBelief": Rates(0.01, 1, 1),
    "Yogi": Rates(0.03, 1, 1),
    "LaProp": Rates(0.01, 3, 1),
    "ADOPT": Rates(0.01, 3, 10),
    "Grams": Rates(0.03, 1, 3),
    "AdEMAMix": Rates(0.01, 10, 30),
    "Adan": Rates(0.03, 0.3, 1),
    "Sophia": Rates(1e-3, 0.1, 0.1),
    "SignSGD": Rates(3e-3, 3e-3, 0.01),
    "Signum": Rates(3e-3, 0.01, 0.01),
    "Lion": Rates(1e-3, 0.01, 0.01),
    "Rprop": Rates(3e-3, 0.1, 10),
    "DeltaBarDelta": Rates(0.3, 3e-4, 3),
    "ASGD": Rates(0.3, 1e-3, 0.3),
    "ScheduleFreeSGD": Rates(0.3, 1e-3, 3),
    "ScheduleFreeAdamW": Rates(0.01, 0.3, 30),
    "LARS": Rates(3, 3, 1),
    "LAMB": Rates(0.01, 0.03, 0.01),
    "StableAdamW": Rates(0.01, 0.1, 0.3),
    "Adafactor": Rates(0.1, 1, 10),
    "MARS": Rates(0.03, 0.01, 0.1),
    "Prodigy": Rates(0.3, 3, 1),
    "DAdaptAdam": Rates(0.3, 1, 1),
    "Muon": Rates(0.03, 0.01, 0.01),
    "Shampoo": Rates(1, 3, 10),
    "SOAP": Rates(0.01, 0.01, 0.01),
}


def usual_rate(rule: type[schuss.Optimizer], task: str) -> float:
    """The table's learning rate, or the rule's own default where it stands in none."""
    own = RATES.get(rule.__name__)
    return float(getattr(own, task) if own else rule.hyperparameters["lr"].default)


FULL_BATCHES = ("Rprop", "DeltaBarDelta")  # their signs are too often wrong in a small batch
LINEAR = ("Ftrl",)  # its first step begins at 0, where hidden layers have no gradients


# ---- The tasks


class Measure(NamedTuple):
    """What a task is judged by."""

    loss: float
    accuracy: float | None = None


@dataclass
class Problem:
    """What a seed makes of a task: the parameters, and what there is to know where they stand."""

    params: Any
    gradients: Callable[[], tuple[float, Any]]  # of the next batch, behind its loss
    hessian: Callable[[], Any]  # an estimate of its diagonal
    measure: Callable[[], Measure]


@dataclass(frozen=True)
class Task:
    """Something to minimize."""

    start: Callable[[int, str], Problem]  # from a seed, for the rule of this name
    loss: str  # what it is
    steps: int  # if nothing else is said
    measures: int  # at most, and one before the first step
    target: float  # of the loss
    epoch: int | None = None  # its steps
    options: Mapping[str, Any] = field(default_factory=dict)  # for rules that have them


def endless(batches: Batches) -> Iterator[tuple[np.ndarray, ...]]:
    """One epoch after another."""
    while True:
        yield from batches


def hidden_layers(rule: str) -> tuple[int, ...]:
    """Their widths in the network for the digits."""
    return () if rule in LINEAR else (64, 64)


def digits(seed: int, rule: str) -> Problem:
    """The demo, with its defaults: the same bits for the same seed, unless batches are full."""
    rng = np.random.default_rng(seed)
    data, test = trainer.digits(seed, np.float32)
    params = trainer.network((64, *hidden_layers(rule), 10), rng, np.float32)
    batches = endless(Batches(*data, size=None if rule in FULL_BATCHES else 32, rng=rng))
    drawing = np.random.default_rng([seed, 1])
    x = data[0]

    def gradients() -> tuple[float, trainer.Params]:
        nonlocal x
        x, y = next(batches)
        return trainer.loss_and_gradients(params, x, y)

    def hessian() -> trainer.Params:
        """Squared gradients of digits that the network draws: arXiv 2305.14342, algorithm 2."""
        _, logits = trainer.forward(params, x)
        y = (logits + drawing.gumbel(size=logits.shape)).argmax(axis=1)  # a draw from the softmax
        _, grads = trainer.loss_and_gradients(params, x, y)
        return [{name: len(x) * g * g for name, g in layer.items()} for layer in grads]

    def measure() -> Measure:
        loss, _ = trainer.evaluate(params, data)
        return Measure(loss, trainer.evaluate(params, test)[1])

    return Problem(params, gradients, hessian, measure)


def rosenbrock(seed: int, rule: str) -> Problem:
    """A curved valley, whose floor falls slowly to (1, 1)."""
    w = np.random.default_rng(seed).uniform((-2, -1), (2, 3))[:, np.newaxis]

    def loss() -> float:
        x, y = w[:, 0]
        return float((1 - x) ** 2 + 100 * (y - x * x) ** 2)

    def gradients() -> tuple[float, np.ndarray]:
        x, y = w[:, 0]
        slope = [-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)]
        return loss(), np.array(slope)[:, np.newaxis]

    def hessian() -> np.ndarray:
        x, y = w[:, 0]
        return np.array([[2 - 400 * (y - 3 * x * x)], [200.0]])

    return Problem(w, gradients, hessian, lambda: Measure(loss()))


def regression(seed: int, rule: str) -> Problem:
    """A long parabola: its Hessian's condition number is 470, the minimum is known."""
    from sklearn.datasets import (  # type: ignore[import-untyped]  # noqa: PLC0415  optional
        load_diabetes,
    )

    x, y = load_diabetes(return_X_y=True)
    x, y = ((a - a.mean(axis=0)) / a.std(axis=0) for a in (x, y[:, np.newaxis]))
    solution = np.linalg.lstsq(x, y, rcond=None)[0]
    w = np.random.default_rng(seed).normal(size=solution.shape)

    def gradients() -> tuple[float, np.ndarray]:
        residual = x @ w - y
        return float(np.mean(residual**2) / 2), x.T @ residual / len(x)

    def measure() -> Measure:
        """The loss above the minimum, by Pythagoras."""
        return Measure(float(np.mean((x @ (w - solution)) ** 2) / 2))

    return Problem(w, gradients, lambda: np.ones_like(w), measure)


TASKS = {
    "digits": Task(
        digits,
        "mean cross-entropy of the images trained on",
        steps=900,
        measures=60,
        target=0.1,
        epoch=45,
    ),
    "rosenbrock": Task(
        rosenbrock,
        "the function's value",
        steps=2000,
        measures=200,
        target=1e-2,
        options={"weight_decay": 0.0},  # it would move the minimum
    ),
    "regression": Task(
        regression,
        "half the mean squared error, above that of the closed form",
        steps=1000,
        measures=200,
        target=1e-3,
        options={"weight_decay": 0.0},
    ),
}


# ---- A run


class Run(NamedTuple):
    """How it went."""

    steps: list[int]  # after which it was measured, 0 first
    loss: list[float]  # infinite at the end, where it has diverged
    accuracy: list[float]  # empty where there is none
    seconds: float  # of a step of the optimizer, the median
    share: float  # of the optimizer in the time of gradients and steps
    state: float  # bytes a parameter


def optimizer(
    name: str, rule: type[schuss.Optimizer], lr: float, params: Any, steps: int, **options: Any
) -> schuss.Optimizer:
    """The rule as it runs on a task: its rate's course, the task's options, and its own."""
    common = TASKS[name].options
    own = {key: value for key, value in common.items() if key in rule.hyperparameters}
    own |= for_the_rest(rule, name, steps)
    if hasattr(rule, "update_hessian"):
        own["bs"] = 1.0  # Problem.hessian is an estimate of the mean loss's, whatever the batch
    return rule(params, **{"lr": trainer.rate(rule, lr, steps), **own, **options})


def for_the_rest(rule: type[schuss.Optimizer], name: str, steps: int) -> dict[str, Any]:
    """What a rule for matrices is told of AdamW, which has what is no matrix."""
    if not issubclass(rule, matrix.MatrixRule):
        return {}
    lr = trainer.rate(schuss.AdamW, usual_rate(schuss.AdamW, name), steps)
    return {"other": {"lr": lr, **TASKS[name].options}}


def run_task(
    name: str, rule: type[schuss.Optimizer], lr: float, seed: int, steps: int, **options: Any
) -> Run:
    """Runs a rule on a task; but for the time, the same numbers for the same seed."""
    problem = TASKS[name].start(seed, rule.__name__)
    opt = optimizer(name, rule, lr, problem.params, steps, **options)
    size = sum(x.size for group in opt.param_groups for x in group["params"])
    every = math.ceil(steps / TASKS[name].measures)
    points = {0: problem.measure()}
    stepping: list[int] = []
    other = 0
    with np.errstate(all="ignore"):  # what diverges says so in its loss
        for n in range(1, steps + 1):
            start = time.perf_counter_ns()
            loss, grads = problem.gradients()
            if hasattr(opt, "update_hessian") and n % 10 == 1:
                opt.update_hessian(problem.hessian())
            if not (math.isfinite(loss) and stepped(opt, grads, loss, stepping)):
                points[n] = Measure(math.inf, problem.measure().accuracy)
                break
            other += time.perf_counter_ns() - start - stepping[-1]
            if n % every == 0 or n == steps:
                with trainer.result(rule, opt):
                    points[n] = problem.measure()
    return Run(
        list(points),
        [m.loss if math.isfinite(m.loss) else math.inf for m in points.values()],
        [m.accuracy for m in points.values() if m.accuracy is not None],
        median(stepping or [0]) / 1e9,
        sum(stepping) / max(1, sum(stepping) + other),
        opt.nbytes / size,
    )


def stepped(opt: schuss.Optimizer, grads: Any, loss: float, times: list[int]) -> bool:
    """Whether a step could be made; adds its nanoseconds to the times."""
    start = time.perf_counter_ns()
    try:
        opt.step(grads, loss=loss)
    except np.linalg.LinAlgError:  # a rule for matrices, at the end of its numbers
        return False
    times.append(time.perf_counter_ns() - start)
    return True
