"""Steps by the sign of the gradient, or by sizes that its changes of sign move."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from schuss.checks import check_loss
from schuss.engine.declare import REQUIRED, DecayMode, Number, choice, constant, number, numbers
from schuss.engine.optimizer import Optimizer
from schuss.engine.rule import Groups, Numbers, Values


class SignSGD(Optimizer):
    """Gradient descent by the sign of each element alone.

        x = x - lr*sign(g)

    lr             learning rate, in [0, inf), default 1e-4
    weight_decay   in [0, inf), default 0
    decay_mode     "decoupled" (default), or another: see Optimizer

    State: none. Options of every rule: see Optimizer.
    Traps: it comes no nearer than lr to its goal: let lr fall. A zero gradient does not move x.
    Source: Bernstein et al. 2018, arXiv 1802.04434, algorithm 1.
    """

    states: ClassVar = {"signsgd": ()}
    presets: ClassVar = {"optax": {"lr": REQUIRED}, "paper": {}}
    lr: Number = number("[0, inf)", default=1e-4)
    weight_decay: Number = number("[0, inf)", default=0.0)
    decay_mode: DecayMode = choice(default="decoupled")

    @staticmethod
    def kernel(h: Values) -> str:
        return "signsgd"

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        return {"lr": h["lr"]}


class Signum(Optimizer):
    """Descent by the sign of a running mean of the gradients.

        m = m + (1 - momentum)*(g - m)
        x = x - lr*sign(m)

    lr             learning rate, in [0, inf), default 1e-4
    momentum       in [0, 1), default 0.9
    weight_decay   in [0, inf), default 0
    decay_mode     "decoupled" (default), or another: see Optimizer

    State: exp_avg (m). Options of every rule: see Optimizer.
    Traps: as SignSGD. A zero gradient still moves x, by lr, until m has become 0.
    Source: Bernstein et al. 2018, arXiv 1802.04434, algorithm 2.
    """

    states: ClassVar = {"lion": ("exp_avg",)}
    presets: ClassVar = {"optax": {"lr": REQUIRED}, "paper": {}}
    lr: Number = number("[0, inf)", default=1e-4)
    momentum: Number = number("[0, 1)", default=0.9)
    weight_decay: Number = number("[0, inf)", default=0.0)
    decay_mode: DecayMode = choice(default="decoupled")

    @staticmethod
    def kernel(h: Values) -> str:
        return "lion"

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        return {"w1": 1.0 - h["momentum"], "w2": 1.0 - h["momentum"], "lr": h["lr"]}


class Lion(Optimizer):
    """Signum that looks at the gradient more closely than it remembers it.

        x = (1 - lr*weight_decay)*x - lr*sign(m + (1 - beta1)*(g - m))
        m = m + (1 - beta2)*(g - m)

    lr             learning rate, in [0, inf), default 1e-4
    betas          (beta1, beta2), each in [0, 1), default (0.9, 0.99)
    weight_decay   in [0, inf), default 0
    decay_mode     "decoupled" (default), or another: see Optimizer

    State: exp_avg (m). Options of every rule: see Optimizer.
    Traps: every element moves by lr in every step: take 3 to 10 times less than for AdamW, and as
    many times more weight_decay. A zero gradient still moves x, by the sign of m.
    Source: Chen et al. 2023, arXiv 2302.06675, algorithm 2.
    """

    states: ClassVar = {"lion": ("exp_avg",)}
    presets: ClassVar = {
        "keras": {"lr": 1e-3},
        "optax": {"lr": REQUIRED, "weight_decay": 1e-3},
        "paper": {},
        "timm": {},
    }
    lr: Number = number("[0, inf)", default=1e-4)
    betas: tuple[Number, Number] = numbers("[0, 1)", default=(0.9, 0.99))
    weight_decay: Number = number("[0, inf)", default=0.0)
    decay_mode: DecayMode = choice(default="decoupled")

    @staticmethod
    def kernel(h: Values) -> str:
        return "lion"

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        beta1, beta2 = h["betas"]
        return {"w1": 1.0 - beta1, "w2": 1.0 - beta2, "lr": h["lr"]}


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
        "course": {"variant": "rprop-"},
    }
    lr: float = constant("(0, inf)", default=1e-2)
    etas: tuple[Number, Number] = numbers("(0, 1)", "(1, inf)", default=(0.5, 1.2))
    step_sizes: tuple[Number, Number] = numbers("[0, inf)", default=(1e-6, 50.0))
    variant: Literal["irprop-", "rprop-", "rprop+", "irprop+"] = choice(default="irprop-")
    sign_product: Literal["sign", "multiply"] = choice(default="sign")
    weight_decay: Number = number("[0, inf)", default=0.0)
    decay_mode: DecayMode = choice(default="l2")

    @staticmethod
    def kernel(h: Values) -> str:
        low, high = h["step_sizes"]
        if not (callable(low) or callable(high) or low <= high):
            raise ValueError(f"step_sizes: {h['step_sizes']!r} has a lower bound above the upper")
        return "rprop_backtracking" if h["variant"].endswith("+") else "rprop"

    @staticmethod
    def initial(h: Values) -> dict[str, float]:
        return {"step_size": h["lr"]}

    @staticmethod
    def reads_loss(h: Values) -> bool:
        return bool(h["variant"] == "irprop+")

    @staticmethod
    def follow(groups: Groups, shared: Numbers, t: int, loss: Any) -> dict[str, float]:
        loss = check_loss(loss)
        return {"previous_loss": loss, "worse": float(loss > shared["previous_loss"])}

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        (minus, plus), (low, high) = h["etas"], h["step_sizes"]
        return {
            "product": float(h["sign_product"] == "multiply"),
            "minus": minus,
            "plus": plus,
            "low": low,
            "high": high,
            "least": -math.inf if h["variant"] == "rprop-" else 0.0,
            "back": memory["worse"] if h["variant"] == "irprop+" else 1.0,
        }


class DeltaBarDelta(Optimizer):
    """Gradient descent with a gain for each element, which the agreement of gradients moves.

        q = sign(g)*sign(p);  p = g
        k = clamp(k + gain_add where q > 0, k*gain_mul where q < 0, gain_min, gain_max)
        x = x - lr*k*g
        b = mu*b + k*g;  x = x - lr*b           with momentum

    lr             learning rate, in [0, inf), default 1e-2
    momentum       mu, in [0, inf), default 0: no buffer
    agreement      "gradient" (default), of g with the gradient before; "velocity": of g with b
    gain_add       in [0, inf), default 0.05
    gain_mul       in [0, 1], default 0.95
    gain_min       in [0, inf), default 0.1
    gain_max       in (0, inf], default 10
    initial_gain   k at the start, in [0, inf), default 1; fixed at construction
    weight_decay   in [0, inf), default 0
    decay_mode     "l2" (default), or another: see Optimizer

    State: gain (k); prev (p), not where the velocity is asked; momentum_buffer (b). Options of
    every rule: see Optimizer.
    Traps: for full or large batches, whose signs tell something. A zero gradient leaves the gain,
    and without momentum x, too. t-SNE's gains start at 1, but its first step, before which there is
    no velocity, moves them: to 0.8 in scikit-learn (and in the preset "tsne"), to 1.2 in van der
    Maaten's C++.
    Source: Jacobs 1988, "Increased rates of convergence through learning rate adaptation"; in this
    form Hinton 2012, lecture 6c.
    """

    states: ClassVar = {
        "delta_bar_delta": ("gain", "prev"),
        "delta_bar_delta_velocity": ("gain", "momentum_buffer"),
        "delta_bar_delta_momentum": ("gain", "prev", "momentum_buffer"),
    }
    presets: ClassVar = {
        "course": {},
        "tsne": {
            "lr": 200.0,
            "momentum": 0.8,
            "agreement": "velocity",
            "gain_add": 0.2,
            "gain_mul": 0.8,
            "gain_min": 0.01,
            "gain_max": math.inf,
            "initial_gain": 0.8,
        },
    }
    lr: Number = number("[0, inf)", default=1e-2)
    momentum: Number = number("[0, inf)", default=0.0)
    agreement: Literal["gradient", "velocity"] = choice(default="gradient")
    gain_add: Number = number("[0, inf)", default=0.05)
    gain_mul: Number = number("[0, 1]", default=0.95)
    gain_min: Number = number("[0, inf)", default=0.1)
    gain_max: Number = number("(0, inf]", default=10.0)
    initial_gain: float = constant("[0, inf)", default=1.0)
    weight_decay: Number = number("[0, inf)", default=0.0)
    decay_mode: DecayMode = choice(default="l2")

    @staticmethod
    def kernel(h: Values) -> str:
        low, high = h["gain_min"], h["gain_max"]
        if not (callable(low) or callable(high) or low <= high):
            raise ValueError(f"gain_min: {low!r} is above gain_max={high!r}")
        if not h["momentum"]:  # the velocity is the gradient, but for its size
            return "delta_bar_delta"
        velocity = h["agreement"] == "velocity"
        return "delta_bar_delta_velocity" if velocity else "delta_bar_delta_momentum"

    @staticmethod
    def initial(h: Values) -> dict[str, float]:
        return {"gain": h["initial_gain"]}

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        return {
            "add": h["gain_add"],
            "mul": h["gain_mul"],
            "low": h["gain_min"],
            "high": h["gain_max"],
            "mu": h["momentum"],
            "lr": h["lr"],
        }
