"""Adam's relatives: other second moments, another order, or more means than one."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from schuss.engine.declare import (
    REQUIRED,
    DecayMode,
    Number,
    choice,
    constant,
    flag,
    number,
    numbers,
)
from schuss.engine.optimizer import Optimizer
from schuss.engine.rule import Numbers, Values
from schuss.rules.adam import corrections, moments


class AdaBelief(Optimizer):
    """Adam whose second moment is that of the gradient's distance from its mean.

        m = m + (1 - beta1)*(g - m)
        v = beta2*v + (1 - beta2)*(g - m)^2 + eps_root
        x = x - lr * (m/(1 - beta1^t)) / (sqrt(v/(1 - beta2^t)) + eps)

    lr             learning rate, in [0, inf), default 1e-3
    betas          (beta1, beta2), each in [0, 1), default (0.9, 0.999)
    eps            in [0, inf), default 1e-16
    eps_root       added to v in each step, in [0, inf), default 1e-16
    weight_decay   in [0, inf), default 0
    decay_mode     "decoupled" (default), or another: see Optimizer

    State: exp_avg (m), exp_avg_var (v). Options of every rule: see Optimizer.
    Traps: gradients that don't change make v fall and the steps grow, and so does Adam's usual eps
    = 1e-8 make them far smaller than the default does. The authors' code can begin as RAdam does,
    and does so by default: not here. A zero gradient still moves x. With eps and eps_root = 0 an
    element whose gradients have all been 0 becomes NaN.
    Source: Zhuang et al. 2020, arXiv 2010.07468, algorithm 2.
    """

    states: ClassVar = {"adabelief": ("exp_avg", "exp_avg_var")}
    presets: ClassVar = {
        "optax": {"lr": REQUIRED},
        "paper": {"eps": 1e-8, "eps_root": 1e-8},
    }
    lr: Number = number("[0, inf)", default=1e-3)
    betas: tuple[Number, Number] = numbers("[0, 1)", default=(0.9, 0.999))
    eps: Number = number("[0, inf)", default=1e-16)
    eps_root: Number = number("[0, inf)", default=1e-16)
    weight_decay: Number = number("[0, inf)", default=0.0)
    decay_mode: DecayMode = choice(default="decoupled")

    @staticmethod
    def kernel(h: Values) -> str:
        return "adabelief"

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        c1, c2 = corrections(h, t)
        return {
            **moments(h),
            "inside": h["eps_root"],
            "step": h["lr"] / c1,
            "denom": 1.0 / math.sqrt(c2),
            "eps": h["eps"],
        }


class Yogi(Optimizer):
    """Adam whose second moment moves by what is added alone, not by its own size.

        m = m + (1 - beta1)*(g - m)
        v = v - (1 - beta2)*sign(v - g*g)*g*g       decayed: beta2*v in place of the first v
        x = x - lr * (m/(1 - beta1^t)) / (sqrt(v/(1 - beta2^t)) + eps)

    lr                          learning rate, in [0, inf), default 1e-2
    betas                       (beta1, beta2), each in [0, 1), default (0.9, 0.999)
    eps                         in [0, inf), default 1e-3
    weight_decay                in [0, inf), default 0
    bias_correction             the divisions by 1 - beta^t, default True
    initial_accumulator_value   v at the start, in [0, inf), default 1e-6; fixed at construction
    initial_mean                m at the start, in (-inf, inf), default 0; fixed at construction
    decayed                     as above: v falls by its own size, too, default False
    decay_mode                  "l2" (default), or another: see Optimizer

    State: exp_avg (m), exp_avg_sq (v). Options of every rule: see Optimizer.
    Traps: an outlier stays in v for long, since v falls by small gradients' squares only. optax
    starts m at 1e-6, too. The paper corrects no bias. OpenFL has decayed, which is not the paper's
    rule. A zero gradient still moves x, and leaves v.
    Source: Zaheer et al. 2018, "Adaptive methods for nonconvex optimization", algorithm 2.
    """

    states: ClassVar = {"yogi": ("exp_avg", "exp_avg_sq")}
    presets: ClassVar = {
        "optax": {"lr": REQUIRED, "initial_mean": 1e-6},
        "flower": {
            "betas": (0.9, 0.99),
            "bias_correction": False,
            "initial_accumulator_value": 0.0,
            "maximize": True,
        },
        "openfl": {"eps": 1e-8, "initial_accumulator_value": 0.0, "decayed": True},
        "paper": {"bias_correction": False},
    }
    lr: Number = number("[0, inf)", default=1e-2)
    betas: tuple[Number, Number] = numbers("[0, 1)", default=(0.9, 0.999))
    eps: Number = number("[0, inf)", default=1e-3)
    weight_decay: Number = number("[0, inf)", default=0.0)
    bias_correction: bool = flag(default=True)
    initial_accumulator_value: float = constant("[0, inf)", default=1e-6)
    initial_mean: float = constant("(-inf, inf)", default=0.0)
    decayed: bool = flag(default=False)
    decay_mode: DecayMode = choice(default="l2")

    @staticmethod
    def kernel(h: Values) -> str:
        return "yogi"

    @staticmethod
    def initial(h: Values) -> dict[str, float]:
        return {"exp_avg": h["initial_mean"], "exp_avg_sq": h["initial_accumulator_value"]}

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        c1, c2 = corrections(h, t) if h["bias_correction"] else (1.0, 1.0)
        _, beta2 = h["betas"]
        return {
            **moments(h),
            "hold": beta2 if h["decayed"] else 1.0,
            "step": h["lr"] / c1,
            "denom": 1.0 / math.sqrt(c2),
            "eps": h["eps"],
        }


class LaProp(Optimizer):
    """Adam in another order: gradients are divided first, and then averaged.

        v = beta2*v + (1 - beta2)*g*g
        n = g/(sqrt(v/(1 - beta2^t)) + eps)
        m = beta1*m + (1 - beta1)*lr*n
        x = x - m/(1 - beta1^t)

    lr             learning rate, in [0, inf), default 4e-4
    betas          (beta1, beta2), each in [0, 1), default (0.9, 0.999)
    eps            in [0, inf), default 1e-15
    weight_decay   in [0, inf), default 0
    lr_in_buffer   as above; False: m is a mean of n, and x = x - lr*m/(1 - beta1^t), default True
    decay_mode     "decoupled" (default), or another: see Optimizer

    State: exp_avg_sq (v), exp_avg (m), and the number exp_avg_lr of each array. Options of every
    rule: see Optimizer.
    Traps: while lr changes, m is corrected not by 1 - beta1^t but by exp_avg_lr/lr, where
    exp_avg_lr is the mean of the rates so far, as the authors do. A zero gradient still moves x.
    With eps = 0, an element whose gradients have all been 0 becomes NaN.
    Source: Ziyin et al. 2020, arXiv 2002.04839, algorithm 1.
    """

    states: ClassVar = {"rmsprop_momentum": ("exp_avg_sq", "exp_avg")}
    memory: ClassVar = {"exp_avg_lr": 0.0}
    ranges: ClassVar = {"exp_avg_lr": "[0, inf]"}
    presets: ClassVar = {"paper": {"lr_in_buffer": False}}
    lr: Number = number("[0, inf)", default=4e-4)
    betas: tuple[Number, Number] = numbers("[0, 1)", default=(0.9, 0.999))
    eps: Number = number("[0, inf)", default=1e-15)
    weight_decay: Number = number("[0, inf)", default=0.0)
    lr_in_buffer: bool = flag(default=True)
    decay_mode: DecayMode = choice(default="decoupled")

    @staticmethod
    def kernel(h: Values) -> str:
        return "rmsprop_momentum"

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        (beta1, beta2), lr = h["betas"], h["lr"]
        c1, c2 = corrections(h, t)
        mean_lr = beta1 * memory["exp_avg_lr"] + (1.0 - beta1) * lr
        inside = h["lr_in_buffer"]
        corrected = mean_lr / lr if inside and lr else c1
        return {
            "alpha": beta2,
            "w": 1.0 - beta2,
            "kv": 1.0 / c2,
            "inside": 0.0,
            "eps": h["eps"],
            "mu": beta1,
            "c": (1.0 - beta1) * (lr if inside else 1.0),
            "direct": 0.0,
            "s": (1.0 if inside else lr) / corrected,
            "exp_avg_lr": mean_lr,
        }


class ADOPT(Optimizer):
    """Adam in another order: gradients are divided by what was known before them.

        n = clamp(g/max(sqrt(v), eps), -(t - 1)^0.25, (t - 1)^0.25)
        m = m + (1 - beta1)*(n - m)
        x = x - lr*m
        v = beta2*v + (1 - beta2)*g*g       the first step only stores v = g*g

    lr              learning rate, in [0, inf), default 1e-3
    betas           (beta1, beta2), each in [0, 1), default (0.9, 0.9999)
    eps             in [0, inf), default 1e-6
    weight_decay    in [0, inf), default 0
    use_clipping    clamps n, default True
    decay_mode      "l2" (default), or another: see Optimizer; the first step only reads "l2"

    State: exp_avg (m), exp_avg_sq (v). Options of every rule: see Optimizer.
    Traps: the first step of an array doesn't move it. An element whose first gradient is 0 divides
    its next one by eps; without the clamp it runs off. A zero gradient still moves x. With eps = 0
    an element whose gradients have all been 0 becomes NaN.
    Source: Taniguchi et al. 2024, arXiv 2411.02853, algorithm 2, the clamp as in the authors' code.
    """

    states: ClassVar = {"adopt": ("exp_avg", "exp_avg_sq")}
    presets: ClassVar = {"optax": {"lr": REQUIRED}, "paper": {"use_clipping": False}}
    lr: Number = number("[0, inf)", default=1e-3)
    betas: tuple[Number, Number] = numbers("[0, 1)", default=(0.9, 0.9999))
    eps: Number = number("[0, inf)", default=1e-6)
    weight_decay: Number = number("[0, inf)", default=0.0)
    use_clipping: bool = flag(default=True)
    decay_mode: DecayMode = choice(default="l2")

    @staticmethod
    def kernel(h: Values) -> str:
        return "adopt"

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        common = {**moments(h), "eps": h["eps"], "lr": h["lr"]}
        if t == 1:
            return common | {"clip": 0.0, "w2": 1.0, "keep": 1.0, "after": 1.0}
        return common | {"clip": (t - 1) ** 0.25 if h["use_clipping"] else math.inf}


class Grams(Optimizer):
    """Adam's size of a step, in the direction of the gradient itself.

        m = m + (1 - beta1)*(g - m)
        v = beta2*v + (1 - beta2)*g*g
        x = x - lr*sqrt(1 - beta2^t)/(1 - beta1^t) * sign(g)*|m|/(sqrt(v) + eps)

    lr             learning rate, in [0, inf), default 1e-3
    betas          (beta1, beta2), each in [0, 1), default (0.9, 0.999)
    eps            in [0, inf), default 1e-6
    weight_decay   in [0, inf), default 0
    eps_mode       "hat" (default): as above; "outside": eps is added to the corrected root
    decay_mode     "decoupled" (default), or another: see Optimizer

    State: exp_avg (m), exp_avg_sq (v). Options of every rule: see Optimizer.
    Traps: a zero gradient does not move x: unlike Adam, it stops where single gradients do. With
    eps = 0 an element whose gradients have all been 0 becomes NaN.
    Source: Cao, Li, Song 2024, arXiv 2412.17107, definition 3.1; eps as in the authors' code.
    """

    states: ClassVar = {"grams": ("exp_avg", "exp_avg_sq")}
    presets: ClassVar = {"paper": {"eps": 1e-8, "eps_mode": "outside"}}
    lr: Number = number("[0, inf)", default=1e-3)
    betas: tuple[Number, Number] = numbers("[0, 1)", default=(0.9, 0.999))
    eps: Number = number("[0, inf)", default=1e-6)
    weight_decay: Number = number("[0, inf)", default=0.0)
    eps_mode: Literal["hat", "outside"] = choice(default="hat")
    decay_mode: DecayMode = choice(default="decoupled")

    @staticmethod
    def kernel(h: Values) -> str:
        return "grams"

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        c1, c2 = corrections(h, t)
        hat = h["eps_mode"] == "hat"
        return {
            **moments(h),
            "step": h["lr"] / c1 * (math.sqrt(c2) if hat else 1.0),
            "denom": 1.0 if hat else 1.0 / math.sqrt(c2),
            "eps": h["eps"],
        }


class AdEMAMix(Optimizer):
    """Adam with a second, far slower mean of the gradients beside the first.

        m = m + (1 - beta1)*(g - m)
        s = s + (1 - beta3)*(g - s)
        v = beta2*v + (1 - beta2)*g*g
        x = x - lr * (m/(1 - beta1^t) + alpha*s) / (sqrt(v/(1 - beta2^t) + eps_root) + eps)

    lr             learning rate, in [0, inf), default 1e-3
    betas          (beta1, beta2, beta3), each in [0, 1), default (0.9, 0.999, 0.9999)
    alpha          in [0, inf), default 5
    eps            in [0, inf), default 1e-8
    eps_root       in [0, inf), default 0
    weight_decay   in [0, inf), default 0
    alpha_warmup   steps in which alpha grows from 0, in proportion, in [0, inf), default 0
    beta3_warmup   steps in which beta3 grows from beta1: its half-life does so in proportion, in
                   [0, inf), default 0
    decay_mode     "decoupled" (default), or another: see Optimizer

    State: exp_avg (m), exp_avg_slow (s), exp_avg_sq (v). Options of every rule: see Optimizer.
    Traps: s is not corrected for its start at 0; without warm-ups of both alpha and beta3, over as
    many steps as the run has, training may diverge early. The authors' code has alpha = 2. s
    remembers some 10000 steps: a zero gradient moves x for that long. With eps and eps_root = 0 an
    element whose gradients have all been 0 becomes NaN.
    Source: Pagliardini et al. 2024, arXiv 2409.03137, algorithm 1.
    """

    states: ClassVar = {"ademamix": ("exp_avg", "exp_avg_slow", "exp_avg_sq")}
    presets: ClassVar = {"optax": {"lr": REQUIRED}, "paper": {"alpha": 8.0}, "code": {"alpha": 2.0}}
    lr: Number = number("[0, inf)", default=1e-3)
    betas: tuple[Number, Number, Number] = numbers("[0, 1)", default=(0.9, 0.999, 0.9999))
    alpha: Number = number("[0, inf)", default=5.0)
    eps: Number = number("[0, inf)", default=1e-8)
    eps_root: Number = number("[0, inf)", default=0.0)
    weight_decay: Number = number("[0, inf)", default=0.0)
    alpha_warmup: Number = number("[0, inf)", default=0.0)
    beta3_warmup: Number = number("[0, inf)", default=0.0)
    decay_mode: DecayMode = choice(default="decoupled")

    @staticmethod
    def kernel(h: Values) -> str:
        return "ademamix"

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        beta1, _, beta3 = h["betas"]
        c1, c2 = corrections(h, t)
        if t < h["beta3_warmup"]:
            share = t / h["beta3_warmup"]
            steps = (1.0 - share) * half_life(beta1) + share * half_life(beta3)
            beta3 = 0.5 ** (1.0 / steps) if steps else 0.0
        alpha = h["alpha"] * (t / h["alpha_warmup"] if t < h["alpha_warmup"] else 1.0)
        return {
            **moments(h),
            "w3": 1.0 - beta3,
            "cm": h["lr"] / c1,
            "cs": h["lr"] * alpha,
            "kv": 1.0 / c2,
            "inside": h["eps_root"],
            "eps": h["eps"],
        }


def half_life(beta: float) -> float:
    """The steps after which a mean has forgotten half of what it was."""
    return math.log(0.5) / math.log(beta) if beta else 0.0


class Adan(Optimizer):
    """Adam with a mean of the gradient's differences: Nesterov's momentum, in three means.

        d = g - p;  p = g                           d = 0 at the first step
        m = m + (1 - beta1)*(g - m)
        e = e + (1 - beta2)*(d - e)
        v = beta3*v + (1 - beta3)*(g + beta2*d)^2
        u = (m/(1 - beta1^t) + beta2*e/(1 - beta2^t)) / (sqrt(v/(1 - beta3^t) + eps_root) + eps)
        x = (x - lr*u)/(1 + lr*weight_decay)

    lr             learning rate, in [0, inf), default 1e-3
    betas          (beta1, beta2, beta3), each in [0, 1), default (0.98, 0.92, 0.99)
    eps            in [0, inf), default 1e-8
    eps_root       in [0, inf), default 0
    weight_decay   in [0, inf), default 0
    variant        "official" (default), or "optax": 1 - beta2 in beta2's place, in v and in u
    decay_mode     "proximal" (default), or another: see Optimizer

    State: exp_avg (m), exp_avg_diff (e), exp_avg_sq (v), prev (p). Options of every rule: see
    Optimizer.
    Traps: the paper's betas are 1 minus these. Its weight_decay is 0.02. optax mixes the two
    conventions, and so is another rule. A zero gradient still moves x. With eps and eps_root = 0 an
    element whose gradients have all been 0 becomes NaN.
    Source: Xie et al. 2022, arXiv 2208.06677, algorithm 1.
    """

    states: ClassVar = {"adan": ("exp_avg", "exp_avg_diff", "exp_avg_sq", "prev")}
    presets: ClassVar = {
        "optax": {
            "lr": REQUIRED,
            "eps_root": 1e-8,
            "variant": "optax",
            "decay_mode": "decoupled",
        },
        "paper": {"weight_decay": 0.02},
    }
    lr: Number = number("[0, inf)", default=1e-3)
    betas: tuple[Number, Number, Number] = numbers("[0, 1)", default=(0.98, 0.92, 0.99))
    eps: Number = number("[0, inf)", default=1e-8)
    eps_root: Number = number("[0, inf)", default=0.0)
    weight_decay: Number = number("[0, inf)", default=0.0)
    variant: Literal["official", "optax"] = choice(default="official")
    decay_mode: DecayMode = choice(default="proximal")

    @staticmethod
    def kernel(h: Values) -> str:
        return "adan"

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        beta1, beta2, beta3 = h["betas"]
        c1, c2, c3 = (1.0 - beta**t for beta in h["betas"])
        mix = beta2 if h["variant"] == "official" else 1.0 - beta2
        return {
            "first": float(t == 1),
            "w1": 1.0 - beta1,
            "w2": 1.0 - beta2,
            "beta3": beta3,
            "w3": 1.0 - beta3,
            "mix": mix,
            "cm": h["lr"] / c1,
            "cd": h["lr"] * mix / c2,
            "kv": 1.0 / c3,
            "inside": h["eps_root"],
            "eps": h["eps"],
        }
