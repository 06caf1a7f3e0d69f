"""Steps between matrix products: `python bench/company.py [CASE ...]`. README.md explains it.

Exits with 1 where a step with all threads makes a training loop slower than one with one thread, or
does not make it as much faster as promised, beyond the spread.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

import schuss

SIZES = (100_000, 170_000, 1_000_000, 10_000_000)
ROWS = (32, 200)
WIDTH, PRODUCTS = 512, 3
ROUNDS = 12

# The targets: an iteration and its products with all threads, of those with one; and how many times
# as fast the largest has to be.
SLOWER, FASTER = 1.05, 1.3

Products = Callable[[], object]
Times = tuple[float, float]  # of the products and of the whole iteration, in seconds


class Ratio(NamedTuple):
    """The ratio of two contestants' times: its median over the rounds, and the middle half."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, numerators: list[float], denominators: list[float]) -> Ratio:
        return cls(*quantiles(np.divide(numerators, denominators).tolist(), n=4))

    def __str__(self) -> str:
        return f"{self.middle:6.2f} ({self.low:.2f}-{self.high:.2f})"


# ---- The company


def numpy_products(rows: int) -> Products:
    x, w = (np.full(shape, 0.5, np.float32) for shape in ((rows, WIDTH), (WIDTH, WIDTH)))
    out = np.empty_like(x)
    return lambda: [np.matmul(x, w, out=out) for _ in range(PRODUCTS)]


def torch_products(rows: int) -> Products:
    torch = import_module("torch")
    x, w = torch.full((rows, WIDTH), 0.5), torch.full((WIDTH, WIDTH), 0.5)
    out = torch.empty_like(x)
    return lambda: [torch.mm(x, w, out=out) for _ in range(PRODUCTS)]


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """Another process that always works."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def one_blas_thread() -> Any:
    return import_module("threadpoolctl").threadpool_limits(1, user_api="blas")


class Company(NamedTuple):
    what: str
    products: Callable[[int], Products]
    around: Callable[[], Any]


COMPANIES = {
    "blas": Company("NumPy's products on all processors", numpy_products, nullcontext),
    "one": Company("NumPy's products on one processor", numpy_products, one_blas_thread),
    "torch": Company("PyTorch's products on all processors", torch_products, nullcontext),
    "busy": Company("NumPy's, another process busy", numpy_products, busy_neighbour),
}


# ---- A loop of products and steps


def optimizer(elements: int) -> schuss.Optimizer:
    """AdamW, its arrays begun at different places of their pages."""
    places = np.full(2 * elements + 4096, 0.5, np.float32)
    return schuss.AdamW([places[:elements]], grads=[places[-elements:]], lr=1e-6)


def iterations(products: Products, step: Callable[[], object], seconds: float) -> Times:
    """The medians of as many iterations as fit, after one that finds the caches of another."""
    times: list[Times] = []
    end = perf_counter() + seconds
    while perf_counter() < end or len(times) < 4:
        start = perf_counter()
        products()
        between = perf_counter()
        step()
        times.append((between - start, perf_counter() - start))
    return median(t for t, _ in times[1:]), median(t for _, t in times[1:])


def loop(products: Products, elements: int, seconds: float) -> dict[str, list[Times]]:
    """A round is a turn of each, and is begun by another contestant every time."""
    opt, threads = optimizer(elements), schuss.get_num_threads()
    contestants: dict[str, Callable[[], object]] = {
        "none": lambda: None,
        "one": opt.step,
        "all": opt.step,
    }
    found: dict[str, list[Times]] = {name: [] for name in contestants}
    for turn in range(ROUNDS):
        names = list(contestants)
        for name in names[turn % 3 :] + names[: turn % 3]:
            with schuss.threads(threads if name == "all" else 1):
                found[name].append(iterations(products, contestants[name], seconds))
    return found


# ---- A fit of scikit-learn's


def fits() -> dict[str, list[Times]]:
    accelerate = import_module("schuss.sklearn").accelerate
    x, y = import_module("sklearn.datasets").load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    threads = schuss.get_num_threads()
    contestants = {"none": (nullcontext, 1), "one": (accelerate, 1), "all": (accelerate, threads)}
    found: dict[str, list[Times]] = {name: [] for name in contestants}
    for _ in range(7):
        for name, (context, n) in contestants.items():
            options = {"batch_size": 32, "max_iter": 3, "random_state": 0}
            network = import_module("sklearn.neural_network").MLPClassifier((512, 256), **options)
            with context(), schuss.threads(n), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it has not converged
                start = perf_counter()
                network.fit(x, y)
                found[name].append((1.0, perf_counter() - start))
    return found


# ---- The table


def row(name: str, found: dict[str, list[Times]], *, largest: bool = False) -> bool:
    """Prints a row; returns whether it misses a target."""
    products = {k: [t for t, _ in times] for k, times in found.items()}
    whole = {k: [t for _, t in times] for k, times in found.items()}
    faster = Ratio.of(whole["one"], whole["all"])
    slower = Ratio.of(whole["all"], whole["one"])
    beside = Ratio.of(products["all"], products["one"])
    missed = slower.low > SLOWER or beside.low > SLOWER or (largest and faster.high < FASTER)
    us = "".join(f"{1e6 * median(whole[k]):10.0f}" for k in found)
    print(f"{name:24}{us}{slower!s:>19}{beside!s:>19}{' *' * missed}", flush=True)
    return missed


def main() -> int:
    cases = [*COMPANIES, "fit"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="*", choices=[*cases, []], help=", ".join(cases))
    parser.add_argument("--seconds", type=float, default=0.04, help="of a turn")
    asked = parser.parse_args()

    model = next(
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    print(f"{model}, {schuss.get_num_threads()} threads, numpy {np.__version__}")
    print(f"{'us an iteration':24}{'no step':>10}{'one':>10}{'all':>10}", end="")
    print(f"{'all/one':>19}{'products all/one':>19}")
    missed = 0
    for case in asked.case or cases:
        if case == "fit":
            missed += row("scikit-learn, a fit", fits()) if find_spec("sklearn") else 0
            continue
        if case == "torch" and not find_spec("torch"):
            continue
        company = COMPANIES[case]
        print(company.what)
        with company.around():
            for rows in ROWS:
                for elements in SIZES:
                    found = loop(company.products(rows), elements, asked.seconds)
                    name = f"  {rows:3} rows, {elements:8} elem."
                    missed += row(name, found, largest=elements == SIZES[-1])
    print(f"{missed} rows miss a target (*)")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
