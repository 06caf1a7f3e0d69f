"""Optimizer steps in place, on plain NumPy arrays, at the speed of the memory.

    import schuss

    opt = schuss.AdamW({"w": w, "b": b}, lr=3e-4)
    opt.step({"w": grad_w, "b": grad_b})        # w and b have moved

Every rule's kernel is compiled for several instruction sets and equals its NumPy reference bit for
bit.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import TYPE_CHECKING
from typing import Any as _Any

from schuss import _core, reference, rules
from schuss import _environment as _environment
from schuss._core import Rows
from schuss.engine.codes import BlockFloat8 as BlockFloat8
from schuss.engine.optimizer import Optimizer
from schuss.loss_scale import LossScale
from schuss.rules import *  # noqa: F403
from schuss.threads import get_num_threads, set_num_threads, threads
from schuss.torch import torch_state_dict

__version__ = "0.2.0"

if TYPE_CHECKING:
    from schuss import autograd as autograd
    from schuss import data as data
    from schuss import federated as federated
    from schuss import functional as functional
    from schuss import init as init
    from schuss import mpi as mpi
    from schuss import projections as projections
    from schuss import schedules as schedules
    from schuss import scipy as scipy
    from schuss import sklearn as sklearn
    from schuss import thinc as thinc
    from schuss.checkpoint import load as load
    from schuss.checkpoint import save as save
    from schuss.flat import flatten as flatten
    from schuss.gradients import average as average
    from schuss.gradients import check_grad as check_grad
    from schuss.gradients import numerical_gradient as numerical_gradient
    from schuss.hashes import hash as hash  # noqa: A004
    from schuss.keyed import Keyed as Keyed
    from schuss.rules.matrix import SOAP as SOAP
    from schuss.rules.matrix import MatrixRule as MatrixRule
    from schuss.rules.matrix import Muon as Muon
    from schuss.rules.matrix import Shampoo as Shampoo
    from schuss.scipy import minimize as minimize

__all__ = [
    "SOAP",
    "BlockFloat8",
    "Keyed",
    "LossScale",
    "MatrixRule",
    "Muon",
    "Optimizer",
    "Rows",
    "Shampoo",
    "autograd",
    "average",
    "check_grad",
    "data",
    "flatten",
    "functional",
    "get_num_threads",
    "hash",
    "init",
    "load",
    "numerical_gradient",
    "projections",
    "reference",
    "save",
    "schedules",
    "set_num_threads",
    "show_config",
    "threads",
    "torch_state_dict",
]
__all__ += rules.__all__


# Imported when they are asked for, since they cost time or need SciPy and an optimizer needs none
# of them: modules, and what is in a module.
_LAZY = dict.fromkeys(
    ("autograd", "data", "functional", "init", "projections", "schedules", "scipy")
) | {
    "Keyed": "keyed",
    "MatrixRule": "rules.matrix",
    "Muon": "rules.matrix",
    "SOAP": "rules.matrix",
    "Shampoo": "rules.matrix",
    "average": "gradients",
    "check_grad": "gradients",
    "flatten": "flat",
    "hash": "hashes",
    "load": "checkpoint",
    "minimize": "scipy",
    "numerical_gradient": "gradients",
    "save": "checkpoint",
}


# Doors to other software, which may be missing: found when they are asked for, and else not shown.
_DOORS = dict.fromkeys(("federated", "mpi", "sklearn", "thinc"))

if not TYPE_CHECKING:  # to a type checker it would make every name one of ours

    def __getattr__(name: str) -> _Any:
        known = _LAZY | _DOORS
        if name not in known:
            raise AttributeError(f"module 'schuss' has no attribute {name!r}")
        home = known[name]
        module = _import_module(f"schuss.{home or name}")
        return getattr(module, name) if home else module


def __dir__() -> list[str]:
    own = (name for name in globals() if name.startswith("__"))
    return sorted({*__all__, *_LAZY, *own})


def show_config() -> dict[str, _Any]:
    """What runs: the version, the instruction sets, the number of threads and who says so."""
    number, reason = _core.threads()
    return {
        "version": __version__,
        "isa": {
            "compiled": _core.compiled_isas(),
            "found": _core.found_isas(),
            "chosen": _core.isa(),
        },
        "threads": {"number": number, "reason": reason},
    }
