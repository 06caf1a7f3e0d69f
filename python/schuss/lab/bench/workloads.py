"""What is stepped: the shapes, the rule with its settings, and the memory of both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np

import schuss

Shapes = list[tuple[int, ...]]


def mlp(*widths: int) -> Shapes:
    pairs = pairwise(widths)
    return [shape for before, after in pairs for shape in ((before, after), (after,))]


def resnet50() -> Shapes:
    """He et al. 2015: convolutions, each with a batch norm, and a linear layer."""

    def convolution(outputs: int, inputs: int, size: int) -> Shapes:
        return [(outputs, inputs, size, size), (outputs,), (outputs,)]

    shapes, inputs = convolution(64, 3, 7), 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += convolution(width, inputs, 1) + convolution(width, width, 3)
            shapes += convolution(4 * width, width, 1)
            if block == 0:
                shapes += convolution(4 * width, inputs, 1)
            inputs = 4 * width
    return [*shapes, (1000, inputs), (1000,)]


def gpt2(width: int) -> Shapes:
    """Radford et al. 2019: two embeddings, twelve layers, a last norm."""
    norm: Shapes = [(width,), (width,)]
    attention = mlp(width, 3 * width) + mlp(width, width)
    layer = norm + attention + norm + mlp(width, 4 * width, width)
    return [(50257, width), (1024, width), *12 * layer, *norm]


def equal(number: int, size: int) -> Shapes:
    return [(size,)] * number


def label(number: int, size: int) -> str:
    return f"{number} array{'s' * (number > 1)} of {size}"


SIZES = (1, 1000, 10_000, 65_000, 1_000_000, 10_000_000, 2**26)
WORKLOADS: Mapping[str, Shapes] = MappingProxyType(
    {label(1, size): equal(1, size) for size in SIZES}
    | {label(200, 64): equal(200, 64), label(1000, 1000): equal(1000, 1000)}
    | {
        "MLP on digits": mlp(64, 64, 64, 10),
        "MLP 784-512-256-10": mlp(784, 512, 256, 10),
        "ResNet-50": resnet50(),
        "GPT-2, width 256": gpt2(256),
        "GPT-2 small": gpt2(768),
    }
)
# What the curves of the picture have beside those.
CURVES: Mapping[str, Shapes] = MappingProxyType(
    {label(1, 10**k): equal(1, 10**k) for k in range(9)}
    | {label(number, 64): equal(number, 64) for number in (1, 10, 100, 1000)}
)
SHAPES: Mapping[str, Shapes] = MappingProxyType({**CURVES, **WORKLOADS})

MILLION, TEN_MILLION = label(1, 1_000_000), label(1, 10_000_000)
QUICK = 1_100_000  # elements: more take longer than a quick look

PLAIN, STAGES, HALVES = "", "with stages", "16 bits"


@dataclass(frozen=True)
class Case:
    """A rule on a workload: plain, with stages of the step, or with storage in 16 bits."""

    rule: type[schuss.Optimizer]
    workload: str
    variant: str = PLAIN

    def __str__(self) -> str:
        variant = f" {self.variant}" if self.variant else ""
        return f"{self.rule.__name__}{variant}, {self.workload}"

    @property
    def shapes(self) -> Shapes:
        return SHAPES[self.workload]

    @property
    def elements(self) -> int:
        return sum(map(math.prod, self.shapes))

    @property
    def gradient_dtype(self) -> Any:
        if self.variant != HALVES:
            return np.float32
        from ml_dtypes import bfloat16  # noqa: PLC0415  an optional package

        return bfloat16

    @property
    def options(self) -> dict[str, Any]:
        """The settings of torch, where the rule has them: the peer with the most contestants."""
        own: dict[str, Any] = {"preset": "torch"} if "torch" in self.rule.presets else {}
        if self.variant == STAGES:
            own |= {"clip_norm": 1.0, "grad_scale": 1024.0, "zero_grad": True, "ema": 0.999}
        elif self.variant == HALVES:
            own |= {"state_dtype": "bfloat16"}
        return own


def staggered(shapes: Sequence[tuple[int, ...]], dtype: Any, place: int) -> list[np.ndarray]:
    """Zeros in one piece of memory, each array at the beginning of a cache line.

    Pieces for another place begin elsewhere in their page: equal places a power of two apart
    deceive the cache's way predictor on AMD's processors, and any step takes 4 times as long.
    """
    size = np.dtype(dtype).itemsize
    lengths = [-(-math.prod(shape) * size // 64) * 64 for shape in shapes]
    piece = np.zeros(sum(lengths) + 4096 + 576 * place, np.uint8)
    piece.fill(0)  # touches the pages
    start = -piece.ctypes.data % 4096 + 576 * place
    arrays = []
    for shape, length in zip(shapes, lengths, strict=True):
        held = piece[start : start + math.prod(shape) * size]
        arrays.append(held.view(dtype).reshape(shape))
        start += length
    return arrays


class Memory:
    """Parameters and gradients, which all contestants of a case share.

    Both stay away from zero: steps of subnormal numbers would be another benchmark.
    """

    def __init__(self, case: Case) -> None:
        rng = np.random.default_rng(0)
        self.params = staggered(case.shapes, np.float32, 0)
        self.grads = staggered(case.shapes, case.gradient_dtype, 1)
        self.start = staggered(case.shapes, np.float32, 0)
        for start, grad in zip(self.start, self.grads, strict=True):
            rng.random(out=start, dtype=np.float32)
            np.add(start, 0.5, out=start)
            grad[...] = start
            np.negative(grad, out=grad, where=rng.random(grad.shape, np.float32) < 0.5)
        self.restore()
        self.gradient = [g.copy() for g in self.grads] if case.variant == STAGES else []

    def restore(self) -> None:
        for param, start in zip(self.params, self.start, strict=True):
            param[...] = start

    def refill(self) -> None:
        """Gradients as at the start, where a step leaves others behind."""
        for grad, start in zip(self.grads, self.gradient, strict=bool(self.gradient)):
            grad[...] = start
