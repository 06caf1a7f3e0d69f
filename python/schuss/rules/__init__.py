"""The rules, simplest first: the class of each, in the order of cpp/core/rules.hpp.

A class declares its hyperparameters with default and range, names its kernel and the kernel's state
arrays, and computes the kernel's scalars, in double. It serves both backends.
"""

from __future__ import annotations

from schuss import _core, reference
from schuss.engine.optimizer import Optimizer
from schuss.engine.scalars import NAMES, TRAITS
from schuss.rules.accumulation import Adadelta, Adagrad, Ftrl, RMSprop
from schuss.rules.adam import Adam, Adamax, AdamW, NAdam, NAdamW, RAdam
from schuss.rules.averages import ASGD, ScheduleFreeAdamW, ScheduleFreeSGD
from schuss.rules.curvature import Sophia
from schuss.rules.descent import NAG, SGD, Momentum
from schuss.rules.eve import Eve
from schuss.rules.factored import Adafactor
from schuss.rules.moments import ADOPT, AdaBelief, Adan, AdEMAMix, Grams, LaProp, Yogi
from schuss.rules.norms import LAMB, LARS, MARS, DAdaptAdam, Prodigy, StableAdamW
from schuss.rules.sign import DeltaBarDelta, Lion, Rprop, SignSGD, Signum

__all__ = [
    "ADOPT",
    "ASGD",
    "LAMB",
    "LARS",
    "MARS",
    "NAG",
    "SGD",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "DAdaptAdam",
    "DeltaBarDelta",
    "Eve",
    "Ftrl",
    "Grams",
    "LaProp",
    "Lion",
    "Momentum",
    "NAdam",
    "NAdamW",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "SignSGD",
    "Signum",
    "Sophia",
    "StableAdamW",
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
    LARS,
    LAMB,
    StableAdamW,
    Adafactor,
    MARS,
    Prodigy,
    DAdaptAdam,
)


def _verify() -> None:
    """Kernel, reference and class of each rule agree on what they take, or nothing is trusted."""
    table = {name: taken for name, *taken in _core.rules()}
    claimed = {kernel for rule in RULES for kernel in rule.states}
    if table.keys() != claimed:
        raise ImportError(f"kernels and classes differ: {sorted(table.keys() ^ claimed)}")
    for rule in RULES:
        for kernel, arrays in rule.states.items():
            stored = [t.dithered + 2 * t.positive + 4 * t.alone for t in TRAITS[kernel]]
            measures = hasattr(reference, f"{kernel}_measures")
            taken = [stored, len(NAMES[kernel]), measures]
            if table[kernel] != taken or len(arrays) != len(stored):
                raise ImportError(
                    f"{kernel}: kernel, reference and class take different state or scalars"
                )


_verify()
