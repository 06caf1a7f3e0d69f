"""What tests of PyTorch's tensors share: tensors, their gradients, and the same as arrays."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from schuss.torch import optimizers
from schuss.torch.tensors import array_of

SHAPES = (5, 7), (7,), (3, 4), ()
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

# Of the largest move: rounding errors of 20 steps.
NEAR = {torch.float32: 2e-5, torch.float64: 1e-12}

Tensors = list[torch.nn.Parameter]


def parameters(
    dtype: torch.dtype = torch.float32, seed: int = 0, shapes: Sequence[Sequence[int]] = SHAPES
) -> Tensors:
    source = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=source).to(dtype)) for s in shapes]


def give_gradients(tensors: Sequence[torch.Tensor], seed: int) -> None:
    """Fresh ones, as by a backward pass behind zero_grad."""
    source = torch.Generator().manual_seed(seed)
    for x in tensors:
        x.grad = torch.randn(x.shape, generator=source).to(x.dtype)


def halves(tensors: Sequence[torch.Tensor], **options: Any) -> list[dict[str, Any]]:
    """Two groups, the second with options of its own."""
    return [{"params": list(tensors[:2])}, {"params": list(tensors[2:]), **options}]


def loss_at(t: int) -> float:
    return 2.0 + math.cos(t)


def train(
    opt: torch.optim.Optimizer,
    tensors: Sequence[torch.Tensor],
    steps: int,
    first: int = 0,
) -> None:
    """Steps by gradients that another optimizer gets, too."""
    for t in range(first, first + steps):
        give_gradients(tensors, 100 + t)
        opt.step(partial(loss_at, t))


def bits(x: torch.Tensor) -> bytes:
    return x.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def copies(tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Arrays of the same numbers."""
    return [array_of(x.detach().clone()) for x in tensors]


def gradients(tensors: Sequence[torch.Tensor]) -> list[np.ndarray | None]:
    return [None if x.grad is None else array_of(x.grad.clone()) for x in tensors]


def assert_near(
    ours: Sequence[torch.Tensor],
    theirs: Sequence[torch.Tensor],
    start: Sequence[torch.Tensor],
    *,
    near: float | None = None,
) -> None:
    """Both have gone the same way from the same place."""
    moves = [(b - a).detach().abs().double() for a, b in zip(start, theirs, strict=True)]
    largest = max(m.max().item() for m in moves if m.numel())
    assert largest > 0
    allowed = largest * (NEAR[theirs[0].dtype] if near is None else near)
    for a, b in zip(ours, theirs, strict=True):
        rounding = b.detach().abs().double() * torch.finfo(b.dtype).eps * 20
        assert bool(((a - b).detach().abs().double() <= allowed + rounding).all())


class Unchanged:
    """Raises an error of this type, or any, that says this; then nothing has changed."""

    def __init__(
        self, opt: torch.optim.Optimizer, tensors: Sequence[torch.Tensor], *says: str
    ) -> None:
        self.opt, self.tensors, self.says = opt, tensors, says
        self.before = self.snapshot()

    def snapshot(self) -> Any:
        saved = self.opt.state_dict()
        state = {
            key: {
                k: bits(v) if isinstance(v, torch.Tensor) else copy.deepcopy(v)
                for k, v in own.items()
            }
            for key, own in saved["state"].items()
        }
        return [bits(x) for x in self.tensors], state, repr(saved["param_groups"])

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        assert isinstance(error, TypeError | ValueError | RuntimeError), error
        for text in self.says:
            assert text in str(error), str(error)
        assert self.snapshot() == self.before
        return True


CLASSES = optimizers.CLASSES
