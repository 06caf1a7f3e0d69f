"""Parameters that step as their gradients arrive: `python bench/arriving.py [MODEL ...]`.

Whole training iterations in NumPy: a perceptron on digits, wide enough for 1e7 parameters, and one
of more layers that predicts the next character of a text. Three ways take turns: gradients that are
kept until a step at the end; the same arrays, each stepped when it has come; and one buffer for all
gradients. All have to leave the same bits first. README.md explains the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import cycle, pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import schuss
from schuss.lab.bench.report import processor

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)
BATCHES = 16
STEPS = 3  # before bits are compared

Params = dict[str, np.ndarray]
Place = Callable[[str], np.ndarray]
Batch = tuple[np.ndarray, np.ndarray]


# ---- Models


class Model(NamedTuple):
    """The widths of a perceptron's layers, and what it learns from."""

    what: str
    sizes: list[int]
    batches: list[Batch]


def batches(x: np.ndarray, y: np.ndarray, size: int) -> list[Batch]:
    rng = np.random.default_rng(0)
    picked = (rng.integers(len(x), size=size) for _ in range(BATCHES))
    return [(x[at], y[at]) for at in picked]


def digits(width: int) -> Model:
    x, y = import_module("sklearn.datasets").load_digits(return_X_y=True)
    data = batches((x / 16).astype(np.float32), y, 128)
    return Model("digits", [64, *[width] * 3, 10], data)


def characters(width: int) -> Model:
    """The character behind each 16 of a text that comes with Python."""
    text = Path(argparse.__file__).read_text()
    known = {c: i for i, c in enumerate(sorted(set(text)))}
    code = np.array([known[c] for c in text])
    windows = np.lib.stride_tricks.sliding_window_view(code, 17)
    hot = np.eye(len(known), dtype=np.float32)
    picked = batches(windows[:, :-1], windows[:, -1], 32)
    data = [(hot[x].reshape(len(x), -1), y) for x, y in picked]
    return Model("characters", [16 * len(known), *[width] * 6, len(known)], data)


# No powers of two: arrays that lie such a distance apart deceive the cache of AMD's processors.
MODELS = {"digits": (digits, 2200), "characters": (characters, 1000)}


def parameters(sizes: list[int], dtype: np.dtype[Any]) -> Params:
    rng = np.random.default_rng(0)
    params: Params = {}
    for i, shape in enumerate(pairwise(sizes)):
        w = rng.standard_normal(shape, np.float32) * np.float32((2 / shape[0]) ** 0.5)
        params[f"w{i}"] = w.astype(dtype)
        params[f"b{i}"] = np.zeros(shape[1], dtype)
    return params


class Pass:
    """Forward and backward, in float32 whatever the parameters are stored in."""

    def __init__(self, params: Params) -> None:
        self.params, self.layers = params, len(params) // 2
        self.narrow = params["w0"].dtype != FLOAT32
        self.room, self.result = np.empty((2, max(a.size for a in params.values())), np.float32)

    def wide(self, name: str) -> np.ndarray:
        """A parameter as products take it, until the next one is asked for."""
        a = self.params[name]
        if not self.narrow:
            return a
        found = self.room[: a.size].reshape(a.shape)
        found[...] = a
        return found

    def filled(
        self, name: str, place: Place, fill: Callable[[np.ndarray], object]
    ) -> tuple[str, np.ndarray]:
        """A gradient in its place."""
        g = place(name)
        out = self.result[: g.size].reshape(g.shape) if self.narrow else g
        fill(out)
        if self.narrow:
            g[...] = out
        return name, g

    def gradients(self, batch: Batch, place: Place) -> Iterator[tuple[str, np.ndarray]]:
        """Each where `place` says, when nothing reads its parameter any more."""
        x, y = batch
        inputs = [x]
        for i in range(self.layers):
            h = inputs[-1] @ self.wide(f"w{i}")
            h += self.wide(f"b{i}")
            inputs.append(np.maximum(h, 0, out=h) if i < self.layers - 1 else h)
        d = np.exp(inputs[-1] - inputs[-1].max(axis=1, keepdims=True))
        d /= d.sum(axis=1, keepdims=True)
        d[np.arange(len(y)), y] -= 1
        d /= np.float32(len(y))
        for i in reversed(range(self.layers)):
            before = (d @ self.wide(f"w{i}").T) * (inputs[i] > 0) if i else d
            yield self.filled(f"w{i}", place, partial(np.matmul, inputs[i].T, d))
            yield self.filled(f"b{i}", place, partial(np.add.reduce, d, 0, None))
            d = before


# ---- Ways to step


class Way:
    """A training run, and the times of its iterations."""

    kept = "all"  # gradients

    def __init__(self, model: Model, dtype: np.dtype[Any], **options: Any) -> None:
        self.params = parameters(model.sizes, dtype)
        self.work = Pass(self.params)
        self.batches = cycle(model.batches)
        self.begin(options)
        self.times: list[tuple[float, float]] = []

    def begin(self, options: dict[str, Any]) -> None:
        self.grads = {name: np.zeros_like(a) for name, a in self.params.items()}
        self.place: Place = self.grads.__getitem__
        self.opt = schuss.AdamW(self.params, grads=self.grads, lr=1e-3, **options)

    @property
    def held(self) -> int:
        """Bytes of gradients that are there at once."""
        return sum(g.nbytes for g in self.grads.values())

    def iteration(self) -> float:
        """Returns the seconds of the step alone."""
        for _ in self.work.gradients(next(self.batches), self.place):
            pass
        start = perf_counter()
        self.opt.step()
        return perf_counter() - start

    def turn(self, times: int) -> None:
        """The first iteration finds the caches of another."""
        taken = []
        for _ in range(times):
            start = perf_counter()
            of_step = self.iteration()
            taken.append((of_step, perf_counter() - start))
        self.times.append((median(t for t, _ in taken[1:]), median(t for _, t in taken[1:])))


class Arriving(Way):
    """Each parameter steps when its gradient has come."""

    def iteration(self) -> float:
        start = perf_counter()
        with self.opt.arriving() as step:
            spent = perf_counter() - start
            for name, g in self.work.gradients(next(self.batches), self.place):
                start = perf_counter()
                step(name, g)
                spent += perf_counter() - start
            start = perf_counter()
        return spent + perf_counter() - start


class OneBuffer(Arriving):
    """The same, and the next gradient is written over the last."""

    def begin(self, options: dict[str, Any]) -> None:
        arrays = self.params.values()
        self.buffer = np.zeros(max(a.size for a in arrays), next(iter(arrays)).dtype)
        self.opt = schuss.AdamW(self.params, lr=1e-3, **options)

    def place(self, name: str) -> np.ndarray:
        a = self.params[name]
        return self.buffer[: a.size].reshape(a.shape)

    @property
    def held(self) -> int:
        return self.buffer.nbytes


WAYS = {"at the end": Way, "arriving": Arriving, "arriving, one buffer": OneBuffer}
FORMS: dict[str, tuple[np.dtype[Any], dict[str, Any]]] = {
    "float32": (FLOAT32, {}),
    "bfloat16, remainder": (BFLOAT16, {"master": "remainder"}),
}


def moved(way: Way) -> int:
    """Bytes of a step: weights and state read and written, gradients read."""
    arrays = sum(a.nbytes for a in way.params.values())
    return 2 * (arrays + way.opt.nbytes) + arrays  # a gradient has the type of its parameter


def check(ways: dict[str, Way], title: str) -> None:
    for way in ways.values():
        for _ in range(STEPS):
            way.iteration()
    first, *others = ways.values()
    for other in others:
        pairs = zip(first.params.values(), other.params.values(), strict=True)
        if any(a.tobytes() != b.tobytes() for a, b in pairs):
            sys.exit(f"{title}: the weights differ")


def table(model: Model, form: str, threads: int, rounds: int, times: int) -> None:
    dtype, options = FORMS[form]
    ways = {name: make(model, dtype, **options) for name, make in WAYS.items()}
    size = sum(a.size for a in next(iter(ways.values())).params.values())
    title = f"{model.what}, {form}, {size} parameters, batch {len(model.batches[0][1])}"
    check(ways, title)
    order = list(ways.values())
    for _ in range(rounds):
        for way in order:
            way.turn(times)
        order = [*order[1:], order[0]]

    print(f"\n{title}, threads of a step: {threads}")
    print(
        f"{'':22}{'held MB':>9}{'step ms':>9}{'ns':>7}{'bytes':>7}{'GB/s':>7}{'of end':>8}", end=""
    )
    print(f"{'whole ms':>10}{'of end':>8}")
    for name, way in ways.items():
        step, whole = np.median(way.times, axis=0)
        of_step, of_whole = np.median(np.divide(way.times, ways["at the end"].times), axis=0)
        a = moved(way) / size
        print(
            f"{name:22}{way.held / 1e6:>9.1f}{1e3 * step:>9.2f}{1e9 * step / size:>7.3f}{a:>7.1f}"
            f"{a * size / step / 1e9:>7.1f}{of_step:>8.2f}{1e3 * whole:>10.1f}{of_whole:>8.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="*", choices=[*MODELS, []], help=", ".join(MODELS))
    parser.add_argument("--width", type=int, help="of the hidden layers")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--times", type=int, default=4, help="iterations of a turn")
    asked = parser.parse_args()

    print(f"{processor()}, {schuss.show_config()['isa']['chosen']}, numpy {np.__version__}")
    for name in asked.model or MODELS:
        make, width = MODELS[name]
        if make is digits and not find_spec("sklearn"):
            print(f"absent: {name}: needs scikit-learn")
            continue
        model = make(asked.width or width)
        for form in FORMS:
            for threads in asked.threads:
                schuss.set_num_threads(threads)
                table(model, form, threads, asked.rounds, asked.times)


if __name__ == "__main__":
    main()
