"""Rules that measure whole arrays before they step: their norms, means, or sums over all of them.

That first sweep reads parameter, gradient and state once more and writes nothing; its sums are in
the fixed order of the norm, so that they have the same bits everywhere.
"""

from __future__ import annotations

import math
from operator import itemgetter
from typing import Any, ClassVar, Literal

from schuss.engine.declare import REQUIRED, DecayMode, Number, choice, flag, number, numbers
from schuss.engine.optimizer import Optimizer
from schuss.engine.rule import Groups, Numbers, Values, agreed, moving
from schuss.reference.sums import Sums
from schuss.rules.adam import corrections, moments


def trust(parameter: float, update: float) -> float:
    """How many times longer than its update a parameter is; 1 where either is 0."""
    return parameter / update if parameter > 0 and update > 0 else 1.0


def inside(h: Values) -> float:
    """The weight decay that is a term of the update."""
    decay: float = h["weight_decay"] if h["decay_mode"] == "inside" else 0.0
    return decay


class LARS(Optimizer):
    """Momentum whose rate follows each array's norm in proportion to that of its gradient.

        d = g + weight_decay*x
        r = trust_coefficient*|x|/(|g| + weight_decay*|x| + eps)     "optax": .../(|d| + eps)
        b = momentum*b + lr*r*d
        x = x - b                                   nesterov: x = x - (lr*r*d + momentum*b)

    |x| is the norm of the array; r = 1 where |x| or |g| is 0 ("optax": |x| or |d|).

    lr                  learning rate, in [0, inf), default 1
    momentum            in [0, inf), default 0.9
    nesterov            default False
    weight_decay        in [0, inf), default 0
    trust_coefficient   in [0, inf), default 1e-3
    eps                 in [0, inf), default 0
    trust_clip          r is at most lr, and takes its place (LARC), default False
    always_adapt        False: r = 1 where weight_decay is 0, default True
    variant             "paper" (default), or "optax": the norm of the sum
    lr_in_buffer        default True; False: b = momentum*b + r*d, x = x - lr*b
    decay_mode          "inside" (default): as above; or another, and then d = g: see Optimizer

    State: momentum_buffer (b). Reads all arrays once more. Options of every rule: see Optimizer.
    Traps: the paper adds the norms, optax takes that of the sum. A zero gradient still moves x by
    the momentum; where all of an array's gradients are 0, r is 1.
    Source: You, Gitman, Ginsburg 2017, arXiv 1708.03888, algorithm 1.
    """

    states: ClassVar = {"lars": ("momentum_buffer",)}
    presets: ClassVar = {
        "paper": {},
        "optax": {"lr": REQUIRED, "variant": "optax"},
        "timm": {"momentum": 0.0, "eps": 1e-8, "lr_in_buffer": False, "always_adapt": False},
    }
    lr: Number = number("[0, inf)", default=1.0)
    momentum: Number = number("[0, inf)", default=0.9)
    nesterov: bool = flag(default=False)
    weight_decay: Number = number("[0, inf)", default=0.0)
    trust_coefficient: Number = number("[0, inf)", default=1e-3)
    eps: Number = number("[0, inf)", default=0.0)
    trust_clip: bool = flag(default=False)
    always_adapt: bool = flag(default=True)
    variant: Literal["paper", "optax"] = choice(default="paper")
    lr_in_buffer: bool = flag(default=True)
    decay_mode: Literal["inside", DecayMode] = choice(default="inside")

    @staticmethod
    def kernel(h: Values) -> str:
        return "lars"

    @staticmethod
    def sums(h: Values) -> tuple[str, ...]:
        return ("x", "g", "own")

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        return {"decay": inside(h), "mu": h["momentum"], **LARS.at(h, 1.0)}

    @staticmethod
    def adapt(h: Values, t: int, sums: Sums) -> dict[str, float]:
        r = 1.0
        if h["always_adapt"] or h["weight_decay"] > 0:
            x, g = math.sqrt(sums.x), math.sqrt(sums.g)
            both = g + inside(h) * x
            if h["variant"] == "optax":
                g = both = math.sqrt(sums.p)
            if x > 0 and g > 0:
                r = h["trust_coefficient"] * x / (both + h["eps"])
            if h["trust_clip"]:
                r = min(r / h["lr"], 1.0) if h["lr"] else 1.0
        return LARS.at(h, r)

    @staticmethod
    def at(h: Values, r: float) -> dict[str, float]:
        """The scalars that depend on the ratio r."""
        lr = h["lr"]
        w, s = (lr * r, 1.0) if h["lr_in_buffer"] else (r, lr)
        if h["nesterov"]:
            return {"w": w, "a": s * w, "s": s * h["momentum"]}
        return {"w": w, "a": 0.0, "s": s}


class LAMB(Optimizer):
    """Adam whose rate follows each array's norm in proportion to that of its update.

        m, v as in Adam
        u = (m/(1 - beta1^t)) / (sqrt(v/(1 - beta2^t)) + eps) + weight_decay*x
        x = x - lr * |x|/|u| * u

    |x| is the norm of the array; |x|/|u| is 1 where either is 0.

    lr                learning rate, in [0, inf), default 1e-3
    betas             (beta1, beta2), each in [0, 1), default (0.9, 0.999)
    eps               in [0, inf), default 1e-6
    weight_decay      in [0, inf), default 0.01
    bias_correction   default True
    always_adapt      False: no ratio where weight_decay is 0, default True
    decay_mode        "inside" (default): as above; or another, outside the ratio: see
                      Optimizer; with "decoupled" |x| is that of x as it has decayed

    State: exp_avg (m), exp_avg_sq (v). Reads all arrays once more. Options of every rule: see
    Optimizer.
    Traps: timm also divides all gradients by max(1, their norm): pass clip_norm=1. A zero gradient
    still moves x. With eps = 0 an element whose gradients have all been 0 becomes NaN.
    Source: You et al. 2020, arXiv 1904.00962, algorithm 2.
    """

    states: ClassVar = {"lamb": ("exp_avg", "exp_avg_sq")}
    presets: ClassVar = {
        "paper": {},
        "keras": {"eps": 1e-7, "weight_decay": 0.0, "decay_mode": "decoupled"},
        "optax": {"lr": REQUIRED, "weight_decay": 0.0},
        "timm": {"always_adapt": False},
    }
    lr: Number = number("[0, inf)", default=1e-3)
    betas: tuple[Number, Number] = numbers("[0, 1)", default=(0.9, 0.999))
    eps: Number = number("[0, inf)", default=1e-6)
    weight_decay: Number = number("[0, inf)", default=0.01)
    bias_correction: bool = flag(default=True)
    always_adapt: bool = flag(default=True)
    decay_mode: Literal["inside", DecayMode] = choice(default="inside")

    @staticmethod
    def kernel(h: Values) -> str:
        return "lamb"

    @staticmethod
    def sums(h: Values) -> tuple[str, ...]:
        return ("x", "u")

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        c1, c2 = corrections(h, t) if h["bias_correction"] else (1.0, 1.0)
        return {
            **moments(h),
            "step": 1.0 / c1,
            "denom": 1.0 / math.sqrt(c2),
            "eps": h["eps"],
            "decay": inside(h),
            "rate": 1.0,
        }

    @staticmethod
    def adapt(h: Values, t: int, sums: Sums) -> dict[str, float]:
        rate = h["lr"]
        if h["always_adapt"] or h["weight_decay"] > 0:
            kept = 1.0 - h["lr"] * h["weight_decay"] if h["decay_mode"] == "decoupled" else 1.0
            rate *= trust(kept * math.sqrt(sums.x), math.sqrt(sums.u))
        return {"rate": rate}


class StableAdamW(Optimizer):
    """AdamW that slows down where an array's squared gradients outrun their mean.

        bh1, bh2 = beta*(1 - beta^(t - 1))/(1 - beta^t) of both betas
        m = m + (1 - bh1)*(g - m)
        v = bh2*v + (1 - bh2)*g*g
        lr_s = lr/max(1, sqrt(mean(g*g/max(v, eps*eps))))
        x = (1 - lr_s*weight_decay)*x - lr_s*m/(sqrt(v) + eps)

    lr             learning rate, in [0, inf), default 1e-3
    betas          (beta1, beta2), each in [0, 1), default (0.9, 0.99)
    eps            in [0, inf), default 1e-6
    weight_decay   in [0, inf), default 1e-2
    decay_mode     "decoupled" (default), or another: see Optimizer

    State: exp_avg (m), exp_avg_sq (v). Reads all arrays once more. Options of every rule: see
    Optimizer.
    Traps: the mean is over each array, so that how parameters are split into arrays matters. A zero
    gradient still moves x. With eps = 0 an element whose gradients have all been 0 becomes NaN.
    Source: Wortsman et al. 2023, arXiv 2304.13013, algorithm 2, with optimi's betas.
    """

    states: ClassVar = {"adam": ("exp_avg", "exp_avg_sq")}
    presets: ClassVar = {"optimi": {}, "paper": {"betas": (0.9, 0.99)}}
    lr: Number = number("[0, inf)", default=1e-3)
    betas: tuple[Number, Number] = numbers("[0, 1)", default=(0.9, 0.99))
    eps: Number = number("[0, inf)", default=1e-6)
    weight_decay: Number = number("[0, inf)", default=1e-2)
    decay_mode: DecayMode = choice(default="decoupled")

    @staticmethod
    def kernel(h: Values) -> str:
        return "adam"

    @staticmethod
    def sums(h: Values) -> tuple[str, ...]:
        return ("own",)

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        one, two = (b * (1.0 - b ** (t - 1)) / (1.0 - b**t) for b in h["betas"])
        return {
            "w1": 1.0 - one,
            "beta2": two,
            "w2": 1.0 - two,
            "step": h["lr"],
            "denom": 1.0,
            "eps": h["eps"],
        }

    @staticmethod
    def adapt(h: Values, t: int, sums: Sums) -> dict[str, float]:
        rate = h["lr"]
        if sums.size:
            rate /= max(1.0, math.sqrt(sums.p / sums.size))
        return {"step": rate, "decay_rate": rate}


class MARS(Optimizer):
    """AdamW on gradients that are corrected by how they changed, and clipped to norm 1.

        c = g + gamma*beta1/(1 - beta1)*(g - p)
        c = c/max(1, |c|);  p = g
        x = (1 - lr*weight_decay)*x, then Adam with c in place of g

    lr             learning rate, in [0, inf), default 3e-3
    betas          (beta1, beta2), each in [0, 1), default (0.95, 0.99)
    eps            in [0, inf), default 1e-8
    weight_decay   in [0, inf), default 0
    gamma          in [0, inf), default 0.025
    first_step     "zero" (default): p starts at 0; "copy": the first step has c = g, as timm
    decay_mode     "decoupled" (default), or another: see Optimizer

    State: exp_avg (m), exp_avg_sq (v), last_grad (p). Reads all arrays once more. Options of every
    rule: see Optimizer.
    Traps: the authors step vectors by plain AdamW: give them a group with gamma=0. The norm is that
    of each array. A zero gradient still moves x. With eps = 0 an element whose gradients have all
    been 0 becomes NaN.
    Source: Yuan et al. 2024, arXiv 2411.10438, algorithm 2 (MARS-AdamW, its approximate form).
    """

    states: ClassVar = {"mars": ("exp_avg", "exp_avg_sq", "last_grad")}
    presets: ClassVar = {"paper": {}, "timm": {"betas": (0.9, 0.99), "first_step": "copy"}}
    lr: Number = number("[0, inf)", default=3e-3)
    betas: tuple[Number, Number] = numbers("[0, 1)", default=(0.95, 0.99))
    eps: Number = number("[0, inf)", default=1e-8)
    weight_decay: Number = number("[0, inf)", default=0.0)
    gamma: Number = number("[0, inf)", default=0.025)
    first_step: Literal["zero", "copy"] = choice(default="zero")
    decay_mode: DecayMode = choice(default="decoupled")

    @staticmethod
    def kernel(h: Values) -> str:
        return "mars"

    @staticmethod
    def sums(h: Values) -> tuple[str, ...]:
        return ("own",)

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        beta1 = h["betas"][0]
        c1, c2 = corrections(h, t)
        copies = t == 1 and h["first_step"] == "copy"
        return {
            "ahead": 0.0 if copies else h["gamma"] * beta1 / (1.0 - beta1),
            "shrink": 1.0,
            **moments(h),
            "step": h["lr"] / c1,
            "denom": 1.0 / math.sqrt(c2),
            "eps": h["eps"],
        }

    @staticmethod
    def adapt(h: Values, t: int, sums: Sums) -> dict[str, float]:
        norm = math.sqrt(sums.p)
        return {"shrink": 1.0 / norm if norm > 1.0 else 1.0}


def beta3_of(h: Values) -> float:
    return math.sqrt(h["betas"][1]) if h["beta3"] is None else float(h["beta3"])


def distance(h: Values, shared: Numbers) -> float:
    """The estimate d that a step begins with; 0 stands for d0, which is a hyperparameter."""
    return float(shared.get("d_before") or shared["d"] or h["d0"])


def rate_of(h: Values, shared: Numbers, t: int) -> float:
    """The learning rate dl."""
    c1, c2 = corrections(h, t) if h["bias_correction"] else (1.0, 1.0)
    return distance(h, shared) * float(h["lr"]) * math.sqrt(c2) / c1


class Prodigy(Optimizer):
    """Adam that finds its learning rate: d, an estimate of the distance to the solution.

        dl = d*lr
        m = m + (1 - beta1)*(d*g - m)
        v = beta2*v + (1 - beta2)*(d*g)^2
        s = beta3*s + d/d0*dl*g
        numerator = beta3*numerator + d/d0*dl*<g, x0 - x>
        d' = the larger of d and d_coef*numerator/|s|_1         over all arrays together
        x = (1 - dl*weight_decay)*x - dl*m/(sqrt(v) + d'*eps)

    lr                learning rate, a factor of d, in [0, inf), default 1
    betas             (beta1, beta2), each in [0, 1), default (0.9, 0.999)
    beta3             in [0, 1), default None: the root of beta2
    eps               in [0, inf), default 1e-8
    weight_decay      in [0, inf), default 0
    bias_correction   dl is multiplied by sqrt(1 - beta2^t)/(1 - beta1^t), default False
    d0                d at the start, in (0, inf), default 1e-6
    d_coef            in [0, inf), default 1
    growth_rate       d grows at most by this factor a step after its first change, in [1, inf],
                      default inf
    safeguard_warmup  s = beta3*s + d/d0*d*g, without lr where it isn't 0, default False
    decay_mode        "decoupled" (default), with dl for lr, or another: see Optimizer

    State: exp_avg (m), exp_avg_sq (v), s, p0 (x0); of all arrays d, d_max and d_numerator. Reads
    all arrays once more. Options of every rule: see Optimizer.
    Several groups share d, which doesn't depend on their order but for the rounding of sums: each
    adds to the numerator with its own dl. One with lr = 0 is left out, as one without gradients is
    and as in the authors' code: its s stays and isn't part of |s|_1; if all are, d stays. beta3, or
    beta2 where it makes it, d0, d_coef and growth_rate have to be the same in all that have
    gradients and an lr above 0, or the step is a ValueError.
    Traps: leave lr at 1 and use a schedule of factors. In optax the bias correction is always on. A
    zero gradient still moves x. With eps = 0 an element whose gradients have all been 0 becomes
    NaN, and d stays from then on.
    Source: Mishchenko and Defazio 2023, arXiv 2306.06101, algorithm 4.
    """

    states: ClassVar = {"prodigy": ("exp_avg", "exp_avg_sq", "s", "p0")}
    starting: ClassVar = ("p0",)
    shared: ClassVar = {"d": 0.0, "d_max": 0.0, "d_numerator": 0.0}
    common: ClassVar = {  # what makes d
        "beta3": beta3_of,
        "d0": itemgetter("d0"),
        "d_coef": itemgetter("d_coef"),
        "growth_rate": itemgetter("growth_rate"),
    }
    ranges: ClassVar = {"d": "[0, inf]", "d_max": "[0, inf]"}
    presets: ClassVar = {"paper": {}, "optax": {"bias_correction": True}}
    lr: Number = number("[0, inf)", default=1.0)
    betas: tuple[Number, Number] = numbers("[0, 1)", default=(0.9, 0.999))
    beta3: Number | None = number("[0, 1)", default=None)
    eps: Number = number("[0, inf)", default=1e-8)
    weight_decay: Number = number("[0, inf)", default=0.0)
    bias_correction: bool = flag(default=False)
    d0: Number = number("(0, inf)", default=1e-6)
    d_coef: Number = number("[0, inf)", default=1.0)
    growth_rate: Number = number("[1, inf]", default=math.inf)
    safeguard_warmup: bool = flag(default=False)
    decay_mode: DecayMode = choice(default="decoupled")

    @staticmethod
    def kernel(h: Values) -> str:
        return "prodigy"

    @staticmethod
    def sums(h: Values) -> tuple[str, ...]:
        return ("own",)

    @staticmethod
    def follow(groups: Groups, shared: Numbers, t: int, loss: Any) -> dict[str, float]:
        own = moving(groups)
        if not own:
            return {}
        h = agreed(own, Prodigy.common)
        d0, before = h["d0"], distance(h, shared)
        numerator, size = beta3_of(h) * shared["d_numerator"], 0.0
        for values, sums in own:
            numerator += before / d0 * rate_of(values, shared, t) * sums.p
            size += sums.q
        d, largest = before, max(shared["d_max"], d0)
        if size > 0:
            found = h["d_coef"] * numerator / size
            if before == d0:
                d = max(before, found)
            largest = max(largest, found)
            d = min(largest, d * h["growth_rate"])
        return {"d": d, "d_max": largest, "d_numerator": numerator, "d_before": before}

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        d, rate = distance(h, memory), rate_of(h, memory, t)
        return {
            **moments(h),
            "first": float(t == 1),
            "d": d,
            "beta3": beta3_of(h) if h["lr"] else 1.0,
            "k": d / h["d0"] * (d if h["safeguard_warmup"] and h["lr"] else rate),
            "step": rate,
            "eps": (memory["d"] or h["d0"]) * h["eps"],
            "decay_rate": rate,
        }


class DAdaptAdam(Optimizer):
    """Adam that finds its learning rate by D-Adaptation.

        dl = d*lr
        m = m + (1 - beta1)*(dl*g - m)
        v = beta2*v + (1 - beta2)*g*g
        s = w*s + (1 - w)*dl*g,  w = sqrt(beta2)
        r = w*r + (1 - w)*dl*<g, s/(sqrt(v) + eps)>             of s and v before the step
        x = (1 - dl*weight_decay)*x - m/(sqrt(v) + eps)
        d = the larger of d and r/((1 - w)*|s|_1)               over all arrays together

    lr                learning rate, a factor of d, in [0, inf), default 1
    betas             (beta1, beta2), each in [0, 1), default (0.9, 0.999)
    eps               in [0, inf), default 1e-8
    weight_decay      in [0, inf), default 0
    bias_correction   dl is multiplied by sqrt(1 - beta2^t)/(1 - beta1^t), default False
    d0                d at the start, in (0, inf), default 1e-6
    growth_rate       d grows at most by this factor a step, in [1, inf], default inf
    decay_mode        "decoupled" (default), with dl for lr, or another: see Optimizer

    State: exp_avg (m), exp_avg_sq (v), s; of all arrays d and d_numerator (r). Reads all arrays
    once more. Options of every rule: see Optimizer.
    Several groups share d, which doesn't depend on their order but for the rounding of sums: each
    adds to r with its own dl. One with lr = 0 is left out, as one without gradients is and as in
    the authors' code: its s stays and isn't part of |s|_1; if all are, d stays. beta2, d0 and
    growth_rate have to be the same in all that have gradients and an lr above 0, or the step is a
    ValueError.
    Traps: leave lr at 1 and use a schedule of factors. A zero gradient still moves x. With eps = 0
    an element whose gradients have all been 0 becomes NaN, and d stays from then on.
    Source: Defazio and Mishchenko 2023, arXiv 2301.07733, algorithm 5, as in the authors' code.
    """

    states: ClassVar = {"dadapt_adam": ("exp_avg", "exp_avg_sq", "s")}
    shared: ClassVar = {"d": 0.0, "d_numerator": 0.0}
    common: ClassVar = {  # what makes d
        "betas[1]": lambda h: h["betas"][1],
        "d0": itemgetter("d0"),
        "growth_rate": itemgetter("growth_rate"),
    }
    ranges: ClassVar = {"d": "[0, inf]"}
    presets: ClassVar = {"paper": {}}
    lr: Number = number("[0, inf)", default=1.0)
    betas: tuple[Number, Number] = numbers("[0, 1)", default=(0.9, 0.999))
    eps: Number = number("[0, inf)", default=1e-8)
    weight_decay: Number = number("[0, inf)", default=0.0)
    bias_correction: bool = flag(default=False)
    d0: Number = number("(0, inf)", default=1e-6)
    growth_rate: Number = number("[1, inf]", default=math.inf)
    decay_mode: DecayMode = choice(default="decoupled")

    @staticmethod
    def kernel(h: Values) -> str:
        return "dadapt_adam"

    @staticmethod
    def sums(h: Values) -> tuple[str, ...]:
        return ("own",)

    @staticmethod
    def follow(groups: Groups, shared: Numbers, t: int, loss: Any) -> dict[str, float]:
        own = moving(groups)
        if not own:
            return {}
        h = agreed(own, DAdaptAdam.common)
        before, w = distance(h, shared), math.sqrt(h["betas"][1])
        numerator, size = w * shared["d_numerator"], 0.0
        for values, sums in own:
            numerator += (1.0 - w) * rate_of(values, shared, t) * sums.p
            size += sums.q
        d = before
        if size > 0:
            d = max(d, min(numerator / ((1.0 - w) * size), d * h["growth_rate"]))
        return {"d": d, "d_numerator": numerator, "d_before": before}

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        w = math.sqrt(h["betas"][1])
        rate = rate_of(h, memory, t)
        return {
            **moments(h),
            "beta3": w if h["lr"] else 1.0,
            "k": (1.0 - w) * rate,
            "eps": h["eps"],
            "rate": rate,
            "decay_rate": rate,
        }
