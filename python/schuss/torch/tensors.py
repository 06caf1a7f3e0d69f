"""Tensors as the arrays of their memory, and arrays as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from schuss._core import Rows

# The types that a step takes; NumPy has the last one from ml_dtypes.
TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def bfloat16() -> np.dtype[Any]:
    """NumPy's, by the package that has it."""
    try:
        from ml_dtypes import bfloat16 as found  # noqa: PLC0415  needed for these tensors alone
    except ModuleNotFoundError as error:
        says = "bfloat16: needs ml_dtypes: pip install 'schuss[torch]'"
        raise ModuleNotFoundError(says, name="ml_dtypes") from error
    return np.dtype(found)


def require_steppable(x: torch.Tensor, label: str, elsewhere: bool = False) -> None:
    """Raises where a step can't use a tensor in place, and says what can be done.

    elsewhere   it may be on another device, since a copy is stepped
    """
    if x.is_meta:
        raise ValueError(
            f"{label}: on meta, without memory; call model.to_empty(device=...) before"
        )
    if x.device.type != "cpu" and not elsewhere:
        raise ValueError(
            f"{label}: on {x.device}; steps are on the CPU: schuss.torch.Offload has the weights "
            "of another device there"
        )
    if x.layout is not torch.strided:
        raise ValueError(f"{label}: {x.layout}, wanted a dense tensor")
    if x.dtype not in TYPES:
        how = "; keep torch.view_as_real(x) as the parameter" if x.is_complex() else ""
        raise TypeError(f"{label}: {x.dtype}, wanted float32, float64, float16 or bfloat16{how}")
    if not x.permute(axes_in_memory(x)).is_contiguous():
        raise ValueError(
            f"{label}: not contiguous (strides {x.stride()}, shape {tuple(x.shape)}); create it as "
            "x.contiguous()"
        )


def axes_in_memory(x: torch.Tensor) -> list[int]:
    """The order of the axes in which a tensor without gaps is contiguous, as in channels_last."""
    if x.is_contiguous():
        return list(range(x.ndim))
    return sorted(range(x.ndim), key=lambda axis: (-x.stride(axis), axis))


def array_of(x: torch.Tensor) -> np.ndarray:
    """The memory of a tensor, as an array of its shape and strides."""
    x = x.detach()
    if x.dtype is not torch.bfloat16:
        return x.numpy()
    found: np.ndarray = x.view(torch.int16).numpy().view(bfloat16())
    return found


def tensor_of(a: np.ndarray) -> torch.Tensor:
    """The memory of an array, as a tensor of its shape and strides."""
    if a.dtype.name != "bfloat16":
        return torch.from_numpy(a)
    return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)


def rows_of(gradient: torch.Tensor, label: str) -> Rows:
    """A sparse gradient, as that of an embedding, as rows: not coalesced, the step does that."""
    if gradient.layout is not torch.sparse_coo or gradient.sparse_dim() != 1:
        raise ValueError(
            f"{label}: {gradient.layout} with {gradient.sparse_dim()} sparse axes; wanted a dense "
            "gradient, or rows of the first axis"
        )
    return Rows(gradient._indices()[0].numpy(), array_of(gradient._values()))


def require_like(gradient: torch.Tensor, x: torch.Tensor, label: str) -> None:
    """Raises where a dense gradient doesn't lie in memory as its parameter does."""
    if gradient.device != x.device:
        raise ValueError(f"{label}.grad: on {gradient.device}, but {label} on {x.device}")
    if gradient.shape != x.shape or not gradient.permute(axes_in_memory(x)).is_contiguous():
        raise ValueError(
            f"{label}.grad: shape {tuple(gradient.shape)} and strides {gradient.stride()}, but "
            f"{label} has {tuple(x.shape)} and {x.stride()}: not contiguous in the same order; "
            "assign a copy that is, as torch.empty_like(x).copy_(x.grad)"
        )
