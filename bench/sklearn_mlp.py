"""scikit-learn's networks with their own steps and with ours: `python bench/sklearn_mlp.py`.

Fits of MLPClassifier on the digits, the same data, order and start for both, which take turns. Both
have to come to the same loss curve first. README.md explains the table.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from contextlib import nullcontext
from importlib import import_module
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np

import schuss
from schuss import sklearn as door
from schuss.lab.bench.report import processor

NETWORKS = {"512-256": (512, 256), "10 layers of 20": (20,) * 10}
SOLVERS = {"adam": 7, "sgd": 5}  # arrays that a step reads or writes
NEAR = {np.float32: 1e-5, np.float64: 1e-12}  # of the loss curves, relative
BATCH = 32


class Fit(NamedTuple):
    """The processor's seconds of a fit, the seconds of its median step, and that one's share."""

    whole: float
    step: float
    share: float


class Clock:
    """A class of optimizers with a clock around its steps."""

    def __init__(self, optimizer: Any) -> None:
        self.times: list[float] = []
        update = optimizer.update_params

        def timed(*arguments: Any) -> None:
            start = perf_counter()
            update(*arguments)
            self.times.append(perf_counter() - start)

        optimizer.update_params = timed


class Contestant:
    """scikit-learn's MLPClassifier, in the context or not."""

    def __init__(self, clock: Clock, context: Any) -> None:
        self.clock, self.context = clock, context

    def fit(self, x: np.ndarray, y: np.ndarray, **parameters: Any) -> tuple[Fit, Any]:
        network = import_module("sklearn.neural_network").MLPClassifier(**parameters)
        self.clock.times.clear()
        with self.context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it has not converged
            start = process_time()  # which doesn't count what else the machine does
            network.fit(x, y)
            whole = process_time() - start
        step = median(self.clock.times)
        return Fit(whole, step, step * len(self.clock.times) / whole), network


def row(title: str, teams: list[Contestant], rounds: int, data: Any, parameters: Any) -> None:
    """Compares the answers, takes turns, prints the line."""
    (_, theirs), (_, ours) = (team.fit(*data, **parameters) for team in teams)
    near = NEAR[data[0].dtype.type]
    if not np.allclose(theirs.loss_curve_, ours.loss_curve_, rtol=near, atol=0):
        sys.exit(f"{title}: the loss curves differ")
    found: list[list[Fit]] = [[], []]
    for turn in range(rounds):
        for i in (0, 1) if turn % 2 else (1, 0):
            found[i].append(teams[i].fit(*data, **parameters)[0])
    own, mine = map(min, found)  # the fastest fit of each
    elements = sum(a.size for a in ours.coefs_ + ours.intercepts_)
    moved = SOLVERS[parameters["solver"]] * elements * data[0].itemsize
    print(
        f"{title:33}{1e6 * own.step:9.1f}{1e6 * mine.step:8.1f}{own.step / mine.step:6.1f}"
        f"{1e9 * mine.step / elements:8.3f}{moved / mine.step / 1e9:7.1f}"
        f"{100 * own.share:8.0f}{100 * mine.share:6.0f}"
        f"{1e3 * own.whole:9.1f}{1e3 * mine.whole:8.1f}{own.whole / mine.whole:6.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=3, help="of a fit")
    parser.add_argument("--quick", action="store_true", help="3 rounds of one epoch")
    asked = parser.parse_args()
    rounds, epochs = (3, 1) if asked.quick else (asked.rounds, asked.epochs)

    sklearn = import_module("sklearn")
    x, y = import_module("sklearn.datasets").load_digits(return_X_y=True)
    ours = Contestant(Clock(door.Stepper), door.accelerate)
    own = import_module("sklearn.neural_network._multilayer_perceptron")
    clocks = {"adam": Clock(own.AdamOptimizer), "sgd": Clock(own.SGDOptimizer)}
    print(f"{processor()}, {schuss.show_config()['isa']['chosen']}, numpy {np.__version__}", end="")
    print(f", scikit-learn {sklearn.__version__}, one thread")
    print(f"{'':33}{'us a step':>17}{'':6}{'ours, of it':>15}{'% of the fit':>14}{'ms a fit':>17}")
    print(f"{'':33}{'theirs':>9}{'ours':>8}{'':6}{'ns/elem':>8}{'GB/s':>7}", end="")
    print(f"{'theirs':>8}{'ours':>6}{'theirs':>9}{'ours':>8}")
    with import_module("threadpoolctl").threadpool_limits(1), schuss.threads(1):
        for name, layers in NETWORKS.items():
            for solver in SOLVERS:
                for dtype in NEAR:
                    parameters = {
                        "hidden_layer_sizes": layers, "solver": solver, "batch_size": BATCH,
                        "max_iter": epochs, "random_state": 1,
                    }  # fmt: skip
                    teams = [Contestant(clocks[solver], nullcontext), ours]
                    data = (x / 16).astype(dtype), y
                    title = f"{name}, {solver}, {np.dtype(dtype)}"
                    row(title, teams, rounds, data, parameters)


if __name__ == "__main__":
    main()
