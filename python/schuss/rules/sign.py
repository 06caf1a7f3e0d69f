"""Steps by the sign of the gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from schuss.hyperparameters import REQUIRED, Number, choice, constant, number, numbers
from schuss.optimizer import Optimizer
from schuss.scalars import DECAY_MODES


class Rprop(Optimizer):
    """Resilient backpropagation: a step size for each element, which the gradient's sign moves.

        q = sign(g)*sign(p)                     agreement with the gradient before
        s = clamp(s*(eta_plus where q > 0, eta_minus where q < 0), low, high)
        irprop-:  g = 0 where q < 0             p = g;  x = x - s*sign(g)
        rprop-:                                 p = g;  x = x - s*sign(g)
        rprop+:   where q < 0 the step before is taken back and p = 0; else as rprop-
        irprop+:  as rprop+, but taken back only where the loss has become larger

    lr             s at the start, in (0, inf), default 1e-2; fixed at construction
    etas           (eta_minus, eta_plus), in (0, 1) and (1, inf), default (0.5, 1.2)
    step_sizes     (low, high), each in [0, inf), default (1e-6, 50); ValueError if low > high
    variant        "irprop-" (default), "rprop-", "rprop+", "irprop+": see above; the last reads
                   `step(grads, loss=f)`, which is a ValueError without loss
    sign_product   "sign" (default), or "multiply": q = g*p, which is 0 where it underflows
    weight_decay   in [0, inf), default 0
    decay_mode     "l2" (default), or another: see Optimizer

    State: prev (p), step_size (s), prev_step (the step before, of the variants with +), and of
    "irprop+" the number previous_loss of all arrays. Options of every rule: see Optimizer.
    Traps: for full batches only. lr counts at construction alone: a schedule is refused, and would
    do nothing. From the first step on s is clamped, so that lr = 100 moves by 50. A zero gradient
    does not move x, and s stays then and in the step after it. PyTorch names the paper of 1993, but
    is "irprop-", and multiplies the gradients: the product of two of 1e-25 is 0 in float32, and s
    stays. optax' own rule makes each step one step late; its preset does not.
    Source: Riedmiller and Braun 1993 (rprop+); Igel and Huesken 2003, section 2 (all four).
    """

    states: ClassVar = {
        "rprop": ("prev", "step_size"),
        "rprop_backtracking": ("prev", "step_size", "prev_step"),
    }
    shared: ClassVar = {"previous_loss": math.inf}
    presets: ClassVar = {
        "torch": {"sign_product": "multiply"},
        "optax": {"lr": REQUIRED},
        "paper": {"lr": 0.1, "variant": "rprop+"},
        "seed002": {"variant": "rprop-"},
    }
    lr: float = constant("(0, inf)", default=1e-2)
    etas: tuple[Number, Number] = numbers("(0, 1)", "(1, inf)", default=(0.5, 1.2))
    step_sizes: tuple[Number, Number] = numbers("[0, inf)", default=(1e-6, 50.0))
    variant: str = choice("irprop-", "rprop-", "rprop+", "irprop+", default="irprop-")
    sign_product: str = choice("sign", "multiply", default="sign")
    weight_decay: Number = number("[0, inf)", default=0.0)
    decay_mode: str = choice(*DECAY_MODES, default="l2")

    @staticmethod
    def kernel(h: Mapping[str, Any]) -> str:
        low, high = h["step_sizes"]
        if not (callable(low) or callable(high) or low <= high):
            raise ValueError(f"step_sizes: {h['step_sizes']!r} has a lower bound above the upper")
        return "rprop_backtracking" if h["variant"].endswith("+") else "rprop"

    @staticmethod
    def initial(h: Mapping[str, Any]) -> dict[str, Any]:
        return {"step_size": h["lr"]}

    @staticmethod
    def reads_loss(h: Mapping[str, Any]) -> bool:
        return bool(h["variant"] == "irprop+")

    @staticmethod
    def follow(h: Mapping[str, Any]) -> dict[str, float]:
        return {"previous_loss": h["loss"], "worse": float(h["loss"] > h["previous_loss"])}

    @staticmethod
    def scalars(h: Mapping[str, Any], t: int) -> dict[str, float]:
        (minus, plus), (low, high) = h["etas"], h["step_sizes"]
        return {
            "product": float(h["sign_product"] == "multiply"),
            "minus": minus,
            "plus": plus,
            "low": low,
            "high": high,
            "least": -math.inf if h["variant"] == "rprop-" else 0.0,
            "back": h["worse"] if h["variant"] == "irprop+" else 1.0,
        }
