"""The rules, simplest first: the class of each, in the order of cpp/rules.hpp and reference.py.

A class declares its hyperparameters with default and range, names its kernel and the kernel's state
arrays, and computes the kernel's scalars, in double. It serves both backends.
"""

from __future__ import annotations

from schuss import _core, reference
from schuss.optimizer import Optimizer
from schuss.rules.accumulation import Adadelta, Adagrad, Ftrl, RMSprop
from schuss.rules.adam import Adam, Adamax, AdamW, NAdam, NAdamW, RAdam
from schuss.rules.averages import ASGD, ScheduleFreeAdamW, ScheduleFreeSGD
from schuss.rules.curvature import Sophia
from schuss.rules.descent import NAG, SGD, Momentum
from schuss.rules.eve import Eve
from schuss.rules.moments import ADOPT, AdaBelief, Adan, AdEMAMix, Grams, LaProp, Yogi
from schuss.rules.sign import DeltaBarDelta, Lion, Rprop, SignSGD, Signum
from schuss.scalars import NAMES

__all__ = [
    "ADOPT",
    "ASGD",
    "NAG",
    "RULES",
    "SGD",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "DeltaBarDelta",
    "Eve",
    "Ftrl",
    "Grams",
    "LaProp",
    "Lion",
    "Momentum",
    "NAdam",
    "NAdamW",
    "RAdam",
    "RMSprop",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "SignSGD",
    "Signum",
    "Sophia",
    "Yogi",
]

# The list that drives tests, benchmarks, stateless calls and the command line.
RULES: tuple[type[Optimizer], ...] = (
    SGD,
    Momentum,
    NAG,
    Adagrad,
    RMSprop,
    Adadelta,
    Ftrl,
    Adam,
    AdamW,
    Adamax,
    NAdam,
    NAdamW,
    RAdam,
    Eve,
    AdaBelief,
    Yogi,
    LaProp,
    ADOPT,
    Grams,
    AdEMAMix,
    Adan,
    Sophia,
    SignSGD,
    Signum,
    Lion,
    Rprop,
    DeltaBarDelta,
    ASGD,
    ScheduleFreeSGD,
    ScheduleFreeAdamW,
)


def _verify() -> None:
    """Kernel, reference and class of each rule agree on what they take, or nothing is trusted."""
    table = {name: (states, scalars) for name, states, scalars in _core.rules()}
    claims = [claim for rule in RULES for claim in rule.states.items()]
    if differ := table.keys() ^ {kernel for kernel, _ in claims}:
        raise ImportError(f"kernels and classes differ: {sorted(differ)}")
    for kernel, claimed in claims:
        states, scalars = table[kernel]
        code = getattr(reference, kernel).__code__
        if (code.co_argcount - 2, len(NAMES[kernel]), len(claimed)) != (
            states,
            scalars,
            states,
        ):
            raise ImportError(
                f"{kernel}: kernel, reference and class take different state or scalars"
            )


_verify()
