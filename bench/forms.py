"""AdamW with state and weights in fewer bytes: `python bench/forms.py [--elements N ...]`.

Every form steps one array on the same float32 gradients, or on what bfloat16 makes of them, in
turn with the others, on one thread and on two. The answer comes first: after five steps a form's
float32 weights differ from those of float32 by at most a twentieth of the way that they have come,
beside what their start in 16 bits was rounded off by. DeepSpeed's CPU Adam takes part where it is
installed, in its offload form: float32 gradients, weights and moments, and a copy of the weights in
bfloat16.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from statistics import median
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import schuss
from schuss.lab.bench.report import processor

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)
LR, DECAY = 1e-3, 1e-2
TURNS = 7


class Form(NamedTuple):
    """What an optimizer is made of."""

    x: np.dtype[Any]
    g: np.dtype[Any]
    options: dict[str, Any]
    moved: float  # bytes an element and step

    def __call__(self, start: np.ndarray, g: np.ndarray) -> Contestant:
        x, gradient = start.astype(self.x), g.astype(self.g)
        opt = schuss.AdamW([x], lr=LR, weight_decay=DECAY, grads=[gradient], **self.options)

        def answer() -> np.ndarray:
            return np.asarray(opt.state[0].get("master", x), np.float32)

        return Contestant(opt.step, answer)


class Contestant(NamedTuple):
    step: Callable[[], object]
    answer: Callable[[], np.ndarray]  # the weights in float32


def coded(n: float) -> float:
    """Bytes of so many arrays in 8 bits, read and written, with their scales."""
    return 2 * n * (1 + 1 / 64)


FORMS = {
    "float32": Form(FLOAT32, FLOAT32, {}, 28),
    "moments bfloat16": Form(FLOAT32, FLOAT32, {"state_dtype": "bfloat16"}, 20),
    "moments blockfloat8": Form(FLOAT32, FLOAT32, {"state_dtype": "blockfloat8"}, 12 + coded(2)),
    "weight bfloat16, master": Form(BFLOAT16, BFLOAT16, {"master": True}, 28),
    "weight bfloat16, remainder": Form(BFLOAT16, BFLOAT16, {"master": "remainder"}, 26),
    "the same, moments bfloat16": Form(
        BFLOAT16, BFLOAT16, {"master": "remainder", "state_dtype": "bfloat16"}, 18
    ),
    "the same, moments blockfloat8": Form(
        BFLOAT16, BFLOAT16, {"master": "remainder", "state_dtype": "blockfloat8"}, 10 + coded(2)
    ),
}
DEEPSPEED = "DeepSpeed, offload"


def deepspeed(start: np.ndarray, g: np.ndarray) -> Contestant:
    """DeepSpeed's step of float32, and its copy in 16 bits."""
    torch: Any = importlib.import_module("torch")
    adam: Any = importlib.import_module("deepspeed.ops.adam").DeepSpeedCPUAdam
    x = torch.nn.Parameter(torch.from_numpy(start.copy()))
    x.grad = torch.from_numpy(g)
    half = torch.empty_like(x, dtype=torch.bfloat16)
    opt = adam([x], lr=LR, weight_decay=DECAY, adamw_mode=True)

    def step() -> None:
        opt.step()
        half.copy_(x.detach())

    return Contestant(step, lambda: x.detach().numpy())


def contestants(start: np.ndarray, g: np.ndarray) -> Iterator[tuple[str, float, Contestant]]:
    """Each that can take part, with the bytes that it moves, its answer checked."""
    wanted = None
    made: dict[str, tuple[float, Any]] = {name: (form.moved, form) for name, form in FORMS.items()}
    for name, (moved, make) in (made | {DEEPSPEED: (34.0, deepspeed)}).items():
        try:
            one = make(start, g)
        except ImportError as error:
            print(f"absent: {name}: {error}")
            continue
        for _ in range(5):
            one.step()
        got = one.answer()
        wanted = got.copy() if wanted is None else wanted
        way, off = np.abs(wanted - start).mean(), np.abs(got - wanted).mean()
        rounding = np.abs(start.astype(BFLOAT16).astype(np.float32) - start).mean()
        if not off <= way / 20 + 2 * rounding:
            raise SystemExit(f"{name}: off by {off / way:.3f} of the way")
        yield name, moved, one


def seconds(all_of_them: dict[str, Contestant], elements: int) -> dict[str, float]:
    """Of the median step of each, in turn."""
    repeats = max(1, 2_000_000 // max(elements, 1))
    times: dict[str, list[float]] = {name: [] for name in all_of_them}
    for _ in range(TURNS):
        for name, one in all_of_them.items():
            begin = time.perf_counter()
            for _ in range(repeats):
                one.step()
            times[name].append((time.perf_counter() - begin) / repeats)
    return {name: median(t) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, nargs="+", default=[4096, 65536, 1 << 20, 1 << 26])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    print(f"{processor()}, {schuss.show_config()['isa']['chosen']}")
    for elements in args.elements:
        rng = np.random.default_rng(0)
        start = rng.standard_normal(elements, np.float32)
        g = rng.standard_normal(elements, np.float32)
        found = list(contestants(start, g))
        steps = {name: one for name, _, one in found}
        for threads in args.threads:
            schuss.set_num_threads(threads)
            with suppress(ImportError):
                importlib.import_module("torch").set_num_threads(threads)
            took = seconds(steps, elements)
            print(f"\n{elements} elements, threads: {threads}")
            print(f"{'form':32} {'bytes':>6} {'ns':>7} {'GB/s':>6} {'of float32':>11}")
            for name, moved, _ in found:
                ns = 1e9 * took[name] / elements
                share = took[name] / took["float32"]
                print(f"{name:32} {moved:6.1f} {ns:7.3f} {moved / ns:6.1f} {share:11.2f}")


if __name__ == "__main__":
    main()
