"""Adam and its family: a running mean of the gradients over the root of one of their squares."""

from __future__ import annotations

import math
import warnings
from typing import ClassVar, Literal

from schuss.engine.declare import REQUIRED, DecayMode, Number, choice, flag, number, numbers, whole
from schuss.engine.optimizer import Optimizer
from schuss.engine.rule import Numbers, Values

# Where eps stands: see Adam.
PLAIN = ("outside", "hat")
EpsMode = Literal["outside", "hat", "inside", "root_and_outside", "clamp", "guard"]

# What no correction, no guard and no eps are to general_adam and amsgrad.
NEUTRAL = {"kv": 1.0, "inside": 0.0, "kd": 1.0, "least": 0.0, "guard": -1.0, "under": 0.0}


def corrections(h: Values, t: int) -> tuple[float, float]:
    """1 - beta^t of both means: what they lack because they start at 0."""
    beta1, beta2, *_ = h["betas"]
    return 1.0 - beta1**t, 1.0 - beta2**t


def moments(h: Values) -> dict[str, float]:
    """The scalars of both means."""
    beta1, beta2, *_ = h["betas"]
    return {"w1": 1.0 - beta1, "beta2": beta2, "w2": 1.0 - beta2}


def denominator(h: Values, c: float) -> dict[str, float]:
    """The scalars of general_adam's denominator for an eps_mode; v lacks the factor 1/c."""
    mode, eps = h["eps_mode"], h["eps"]
    if mode == "clamp":
        return NEUTRAL | {"kd": 1.0 / math.sqrt(c), "least": eps, "eps": 0.0}
    if mode == "root_and_outside":
        return NEUTRAL | {"kv": 1.0 / c, "inside": h["eps_root"], "eps": eps}
    if mode in ("inside", "guard"):
        guard = 0.0 if mode == "guard" else -1.0
        return NEUTRAL | {"kv": 1.0 / c, "inside": eps, "guard": guard, "eps": 0.0}
    return NEUTRAL | {"kd": 1.0 if mode == "hat" else 1.0 / math.sqrt(c), "eps": eps}


class Adam(Optimizer):
    """Adam: a running mean of the gradients over the root of one of their squares.

    Both means are corrected for their start at 0.

        m = m + (1 - beta1)*(g - m)
        v = beta2*v + (1 - beta2)*g*g       amsgrad: below, the largest v so far takes its place
        x = x - lr * (m/(1 - beta1^t)) / (sqrt(v/(1 - beta2^t)) + eps)

        eps_mode           denominator, with c = 1 - beta2^t
        outside            sqrt(v/c) + eps
        hat                sqrt(v/c) + eps/sqrt(c)      eps joins sqrt(v) before the correction
        inside             sqrt(v/c + eps)
        root_and_outside   sqrt(v/c + eps_root) + eps
        clamp              max(sqrt(v/c), eps)
        guard              sqrt(v/c + eps), and no step where v is 0

    lr                 learning rate, in [0, inf), default 1e-3
    betas              (beta1, beta2), each in [0, 1), default (0.9, 0.999)
    eps                in [0, inf), default 1e-8
    weight_decay       in [0, inf), default 0
    amsgrad            False (default); True: the largest v so far, corrected like v; "corrected":
                       the largest corrected v; "paper": as True, and no correction at all
    eps_mode           "outside" (default), or another of those above
    eps_root           the eps inside the root of "root_and_outside", in [0, inf), default 0
    bias_correction1   divides m by 1 - beta1^t, default True
    bias_correction2   divides v by 1 - beta2^t, default True
    steps_ahead        what t is larger by than an array's own count of steps, 0 or more, default 0
    decay_mode         "l2" (default), another: see Optimizer, or "course": weight_decay*x joins
                       the corrected mean, and is divided with it; ValueError with amsgrad, or with
                       an eps_mode that is neither "outside" nor "hat"

    State: exp_avg (m), exp_avg_sq (v), max_exp_avg_sq (amsgrad). Options of every rule: see
    Optimizer.
    Traps: where eps stands and how large it is differs: Keras' 1e-7 in "hat" acts like 31 times as
    much in the first step. A zero gradient still moves x. With eps = 0 an element whose gradients
    have all been 0 becomes NaN, unless guarded. weight_decay is L2 here; its decoupled form is
    AdamW.
    Source: Kingma and Ba 2015, arXiv 1412.6980, algorithm 1; amsgrad: Reddi et al. 2018, algorithm
    2, with the bias corrections.
    """

    states: ClassVar = {
        "adam": ("exp_avg", "exp_avg_sq"),
        "general_adam": ("exp_avg", "exp_avg_sq"),
        "decayed_adam": ("exp_avg", "exp_avg_sq"),
        "amsgrad": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    }
    presets: ClassVar = {
        "torch": {},
        "keras": {"eps": 1e-7, "eps_mode": "hat", "decay_mode": "decoupled"},
        "optax": {"lr": REQUIRED, "eps_mode": "root_and_outside"},
        "flower": {
            "lr": 0.1,
            "betas": (0.9, 0.99),
            "eps": 1e-3,
            "eps_mode": "hat",
            "steps_ahead": 1,
            "maximize": True,
        },
        "openfl": {"lr": 0.01},
        "paper": {},
        "article": {},
        "tutorial": {"lr": 0.01, "eps": 1e-6, "eps_mode": "inside"},
        "course": {"decay_mode": "course"},
    }
    lr: Number = number("[0, inf)", default=1e-3)
    betas: tuple[Number, Number] = numbers("[0, 1)", default=(0.9, 0.999))
    eps: Number = number("[0, inf)", default=1e-8)
    weight_decay: Number = number("[0, inf)", default=0.0)
    amsgrad: bool | Literal["corrected", "paper"] = choice(default=False)
    eps_mode: EpsMode = choice(default="outside")
    eps_root: Number = number("[0, inf)", default=0.0)
    bias_correction1: bool = flag(default=True)
    bias_correction2: bool = flag(default=True)
    steps_ahead: int = whole(default=0)
    decay_mode: Literal[DecayMode, "course"] = choice(default="l2")

    @staticmethod
    def kernel(h: Values) -> str:
        plain = h["eps_mode"] in PLAIN
        if h["decay_mode"] == "course":
            if h["amsgrad"] or not plain:
                wanted = "'course' goes with eps_mode 'outside' or 'hat', and without amsgrad"
                given = f"eps_mode={h['eps_mode']!r}, amsgrad={h['amsgrad']!r}"
                raise ValueError(f"decay_mode: {wanted}; got {given}")
            return "decayed_adam"
        return "amsgrad" if h["amsgrad"] else "adam" if plain else "general_adam"

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        (beta1, beta2), mode, amsgrad = h["betas"], h["eps_mode"], h["amsgrad"]
        t += h["steps_ahead"]
        c1 = 1.0 - beta1**t if h["bias_correction1"] and amsgrad != "paper" else 1.0
        c2 = 1.0 - beta2**t if h["bias_correction2"] and amsgrad != "paper" else 1.0
        root = math.sqrt(c2)
        step, denom = (h["lr"] * root / c1, 1.0) if mode == "hat" else (h["lr"] / c1, 1.0 / root)
        plain = {
            "w1": 1.0 - beta1,
            "beta2": beta2,
            "w2": 1.0 - beta2,
            "step": step,
            "denom": denom,
            "eps": h["eps"],
        }
        if mode in PLAIN and not amsgrad and h["decay_mode"] != "course":
            return plain  # a step of a small array spends its time here
        early = amsgrad == "corrected"
        return {
            **plain,
            "cm": step,
            "cg": 0.0,
            "cx": h["lr"] * h["weight_decay"],
            "ka": 1.0 / c2 if early else 1.0,
            **denominator(h, 1.0 if early else c2),
        }

    @staticmethod
    def faded(h: Values, missed: int, keep: float) -> dict[str, float]:
        beta1, beta2 = h["betas"]
        return {"fade_x": keep**missed, "fade_0": beta1**missed, "fade_1": beta2**missed}


class AdamW(Adam):
    """Adam with decoupled weight decay.

        x = (1 - lr*weight_decay)*x, then Adam with the gradient as it is

    weight_decay   in [0, inf), default 1e-2
    decay_mode     "decoupled" (default), another: see Optimizer, or "course": as in Adam

    Everything else as Adam.
    Traps: PyTorch's weight_decay is 1e-2, Keras' 4e-3, optax' 1e-4. The paper scales the decay by
    the schedule alone ("decoupled_unscaled"): divide its weight_decay by lr for the default mode. A
    zero gradient still moves x, and the decay goes on. With eps = 0 an element whose gradients have
    all been 0 becomes NaN.
    Source: Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2, the decay scaled by lr as in
    PyTorch.
    """

    presets: ClassVar = {
        "torch": {},
        "keras": {"weight_decay": 4e-3, "eps": 1e-7, "eps_mode": "hat"},
        "optax": {"lr": REQUIRED, "weight_decay": 1e-4, "eps_mode": "root_and_outside"},
        "paper": {"decay_mode": "decoupled_unscaled"},
        "course": {"decay_mode": "decoupled_unscaled"},
    }
    weight_decay: Number = number("[0, inf)", default=1e-2)
    decay_mode: Literal[DecayMode, "course"] = choice(default="decoupled")


class Adamax(Optimizer):
    """Adam with the largest recent gradient in place of the root of their mean square.

        m = m + (1 - beta1)*(g - m)
        q = max(beta2*q, |g| + eps)
        x = x - lr/(1 - beta1^t) * m/q

    lr             learning rate, in [0, inf), default 2e-3
    betas          (beta1, beta2), each in [0, 1), default (0.9, 0.999)
    eps            in [0, inf), default 1e-8
    weight_decay   in [0, inf), default 0
    eps_mode       "inside" (default): as above; "outside": q = max(beta2*q, |g|), and m/(q + eps)
    decay_mode     "l2" (default), or another: see Optimizer

    State: exp_avg (m), exp_inf (q). Options of every rule: see Optimizer.
    Traps: with eps = 0, as in the paper, an element whose gradients have all been 0 becomes NaN. A
    zero gradient still moves x.
    Source: Kingma and Ba 2015, arXiv 1412.6980, section 7.1, algorithm 2.
    """

    states: ClassVar = {"adamax": ("exp_avg", "exp_inf")}
    presets: ClassVar = {
        "torch": {},
        "keras": {"lr": 1e-3, "eps": 1e-7, "eps_mode": "outside", "decay_mode": "decoupled"},
        "optax": {"lr": REQUIRED},
        "paper": {"eps": 0.0},
    }
    lr: Number = number("[0, inf)", default=2e-3)
    betas: tuple[Number, Number] = numbers("[0, 1)", default=(0.9, 0.999))
    eps: Number = number("[0, inf)", default=1e-8)
    weight_decay: Number = number("[0, inf)", default=0.0)
    eps_mode: Literal["inside", "outside"] = choice(default="inside")
    decay_mode: DecayMode = choice(default="l2")

    @staticmethod
    def kernel(h: Values) -> str:
        return "adamax"

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        inside = h["eps_mode"] == "inside"
        return {
            **moments(h),
            "inside": h["eps"] if inside else 0.0,
            "eps": 0.0 if inside else h["eps"],
            "step": h["lr"] / corrections(h, t)[0],
        }


class NAdam(Optimizer):
    """Adam with Nesterov's momentum: the mean as it will be after the coming step.

        m = m + (1 - beta1)*(g - m)
        v = beta2*v + (1 - beta2)*g*g
        x = x - lr * (cm*m + cg*g) / (sqrt(v/(1 - beta2^t)) + eps)

        variant   cm                            cg
        dozat     mu(t+1)/(1 - P(t)*mu(t+1))    (1 - mu(t))/(1 - P(t))
        optax     beta1/(1 - beta1^(t+1))       (1 - beta1)/(1 - beta1^t)
        timm      beta1/(1 - beta1^t)           (1 - beta1)/(1 - beta1^t)

        mu(t) = beta1*(1 - 0.96^(t*momentum_decay)/2), P(t) the product of mu(1) to mu(t)

    lr               learning rate, in [0, inf), default 2e-3
    betas            (beta1, beta2), each in [0, 1), default (0.9, 0.999)
    eps              in [0, inf), default 1e-8
    weight_decay     in [0, inf), default 0
    momentum_decay   of "dozat", in [0, inf), default 4e-3
    variant          "dozat" (default), "optax", "timm": see above
    decay_mode       "l2" (default), or another: see Optimizer

    State: exp_avg (m), exp_avg_sq (v), and the number mu_product (P) of each array. Options of
    every rule: see Optimizer.
    Traps: four rules go by this name: the three above, and Keras', which is "dozat" with
    momentum_decay=1. A zero gradient still moves x. With eps = 0 an element whose gradients have
    all been 0 becomes NaN.
    Source: Dozat 2016, "Incorporating Nesterov momentum into Adam", algorithm 2.
    """

    states: ClassVar = {"general_adam": ("exp_avg", "exp_avg_sq")}
    memory: ClassVar = {"mu_product": 1.0}
    ranges: ClassVar = {"mu_product": "[0, 1]"}
    presets: ClassVar = {
        "torch": {},
        "keras": {"lr": 1e-3, "eps": 1e-7, "momentum_decay": 1.0, "decay_mode": "decoupled"},
        "optax": {"lr": REQUIRED, "variant": "optax"},
        "timm": {"lr": 1e-3, "variant": "timm"},
        "paper": {},
    }
    lr: Number = number("[0, inf)", default=2e-3)
    betas: tuple[Number, Number] = numbers("[0, 1)", default=(0.9, 0.999))
    eps: Number = number("[0, inf)", default=1e-8)
    weight_decay: Number = number("[0, inf)", default=0.0)
    momentum_decay: Number = number("[0, inf)", default=4e-3)
    variant: Literal["dozat", "optax", "timm"] = choice(default="dozat")
    decay_mode: DecayMode = choice(default="l2")

    @staticmethod
    def kernel(h: Values) -> str:
        return "general_adam"

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        beta1, psi = h["betas"][0], h["momentum_decay"]
        mu, following = (beta1 * (1.0 - 0.5 * 0.96 ** (n * psi)) for n in (t, t + 1))
        product = memory["mu_product"] * mu
        c1, c2 = corrections(h, t)
        if h["variant"] == "dozat":
            cm, cg = following / (1.0 - product * following), (1.0 - mu) / (1.0 - product)
        else:
            ahead = 1.0 - beta1 ** (t + 1) if h["variant"] == "optax" else c1
            cm, cg = beta1 / ahead, (1.0 - beta1) / c1
        return {
            **moments(h),
            **NEUTRAL,
            "cm": h["lr"] * cm,
            "cg": h["lr"] * cg,
            "kd": 1.0 / math.sqrt(c2),
            "eps": h["eps"],
            "mu_product": product,
        }


class NAdamW(NAdam):
    """NAdam with decoupled weight decay.

        x = (1 - lr*weight_decay)*x, then NAdam with the gradient as it is

    weight_decay   in [0, inf), default 1e-2
    decay_mode     "decoupled" (default), or another: see Optimizer

    Everything else as NAdam.
    Traps: PyTorch's weight_decay is 1e-2, optax' 1e-4. A zero gradient still moves x, and the decay
    goes on. With eps = 0 an element whose gradients have all been 0 becomes NaN.
    Source: Dozat 2016, the decay as of Loshchilov and Hutter 2019 (PyTorch's NAdam with
    decoupled_weight_decay); "timm": arXiv 1910.05446, appendix.
    """

    presets: ClassVar = {
        "torch": {},
        "optax": {"lr": REQUIRED, "weight_decay": 1e-4, "variant": "optax"},
        "timm": {"lr": 1e-3, "variant": "timm"},
    }
    weight_decay: Number = number("[0, inf)", default=1e-2)
    decay_mode: DecayMode = choice(default="decoupled")


class RAdam(Optimizer):
    """Adam that begins without its denominator, until the variance of that is tractable.

        m = m + (1 - beta1)*(g - m)
        v = beta2*v + (1 - beta2)*g*g
        rho(t) = rho - 2*t*beta2^t/(1 - beta2^t),  rho = 2/(1 - beta2) - 1
        r = sqrt((rho(t) - 4)*(rho(t) - 2)*rho / ((rho - 4)*(rho - 2)*rho(t)))
        x = x - lr * m/(1 - beta1^t)                                    while rho(t) <= threshold
        x = x - lr*r * m/(1 - beta1^t) * sqrt(1 - beta2^t)/(sqrt(v) + eps)             afterwards

    lr             learning rate, in [0, inf), default 1e-3
    betas          (beta1, beta2), each in [0, 1), default (0.9, 0.999)
    eps            in [0, inf), default 1e-8
    weight_decay   in [0, inf), default 0
    threshold      of rho(t), in [4, inf), default 5
    eps_mode       "hat" (default): as above; "outside": 1/(sqrt(v/(1 - beta2^t)) + eps)
    decay_mode     "l2" (default), or another: see Optimizer

    State: exp_avg (m), exp_avg_sq (v). Options of every rule: see Optimizer.
    Traps: with beta2 = 0.999 the denominator joins at step 6. With beta2 <= 2/3 (0.6 with threshold
    4) it never does, and a warning says so. The paper's threshold is 4; the authors' code and optax
    divide where rho(t) is 5 itself, too. A zero gradient still moves x. With eps = 0 an element
    whose gradients have all been 0 becomes NaN once the denominator joins.
    Source: Liu et al. 2020, arXiv 1908.03265, algorithm 2.
    """

    states: ClassVar = {"general_adam": ("exp_avg", "exp_avg_sq")}
    presets: ClassVar = {
        "torch": {},
        "optax": {"lr": REQUIRED, "eps_mode": "outside", "threshold": math.nextafter(5.0, 0.0)},
        "paper": {"threshold": 4.0},
    }
    lr: Number = number("[0, inf)", default=1e-3)
    betas: tuple[Number, Number] = numbers("[0, 1)", default=(0.9, 0.999))
    eps: Number = number("[0, inf)", default=1e-8)
    weight_decay: Number = number("[0, inf)", default=0.0)
    threshold: Number = number("[4, inf)", default=5.0)
    eps_mode: Literal["hat", "outside"] = choice(default="hat")
    decay_mode: DecayMode = choice(default="l2")

    @staticmethod
    def kernel(h: Values) -> str:
        beta2, threshold = h["betas"][1], h["threshold"]
        constant = not (callable(beta2) or callable(threshold))
        if constant and 2.0 / (1.0 - beta2) - 1.0 <= threshold:
            text = f"betas: with beta2 = {beta2}, rho(t) stays below threshold = {threshold}"
            warnings.warn(f"{text}: RAdam never divides, momentum for ever", stacklevel=2)
        return "general_adam"

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        beta2 = h["betas"][1]
        c1, c2 = corrections(h, t)
        limit = 2.0 / (1.0 - beta2) - 1.0
        rho = limit - 2.0 * t * beta2**t / c2
        common = {**moments(h), "cg": 0.0}
        if rho <= h["threshold"]:  # v is never above an infinite guard
            guard = {"guard": math.inf, "under": 1.0, "eps": 0.0}
            return {**common, **NEUTRAL, **guard, "cm": h["lr"] / c1}
        r = math.sqrt((rho - 4.0) * (rho - 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * rho))
        step = h["lr"] * r / c1
        if h["eps_mode"] == "hat":
            step *= math.sqrt(c2)
        return {**common, **denominator(h, c2), "cm": step}
