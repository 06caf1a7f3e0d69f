"""Optimizers of PyTorch's tensors on the CPU: every rule, as a torch.optim.Optimizer.

    opt = schuss.torch.AdamW(model.parameters(), lr=3e-4)
    loss.backward()
    opt.step()

`Offload` has weights that live elsewhere; `torch_state_dict` makes PyTorch's state of an optimizer
of arrays. PyTorch is imported when one of them is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from schuss.rules import RULES
from schuss.torch.state import torch_state_dict as torch_state_dict

if TYPE_CHECKING:
    from schuss.torch.offload import Offload as Offload
    from schuss.torch.optimizers import Optimizer as Optimizer

__all__ = ["Offload", "Optimizer", "torch_state_dict"]

NAMES = (*(rule.__name__ for rule in RULES), "Muon", "SOAP", "Shampoo")  # the rules' classes


def __getattr__(name: str) -> Any:
    if name != "Offload" and name not in ("Optimizer", *NAMES):
        raise AttributeError(f"module 'schuss.torch' has no attribute {name!r}")
    try:
        module = import_module(f"schuss.torch.{'offload' if name == 'Offload' else 'optimizers'}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        says = f"schuss.torch.{name}: needs PyTorch: pip install 'schuss[torch]'"
        raise ModuleNotFoundError(says, name="torch") from error
    return getattr(module, name)


def __dir__() -> list[str]:
    own = (name for name in globals() if name.startswith("__"))
    return sorted({*__all__, *NAMES, *own})
