"""Adam with feedback of the loss."""

from __future__ import annotations

import math
import sys
from operator import itemgetter
from typing import Any, ClassVar, Literal

from schuss.checks import check_loss
from schuss.engine.declare import DecayMode, Number, choice, number, numbers
from schuss.engine.optimizer import Optimizer
from schuss.engine.rule import Groups, Numbers, Values, agreed, moving
from schuss.rules.adam import corrections, moments


class Eve(Optimizer):
    """Adam whose rate the changes of the loss divide: one number d for all arrays.

        variant "v3"; f is the loss of this step, fhat that of the step before
        r = (|f - fhat| + tiny)/(|min(f, fhat) - fstar| + tiny);  fhat = f
        d = beta3*d + (1 - beta3)*clamp(r, 1/c, c)      d = 1 at the first step
        x = x - lr/d * (m/(1 - beta1^t)) / (sqrt(v/(1 - beta2^t)) + eps)

        variant "code": as v3, but eps is added to sqrt(v), before its correction

        variant "v1"; fhat follows f, by a factor from 1 + k to 1 + K or from 1/(1 + K) to 1/(1 + k)
        h = fhat*clamp(f/fhat, low, high)
        r = |h - fhat|/min(h, fhat);  fhat = h
        d = beta3*d + (1 - beta3)*r
        x = x - lr * (m/(1 - beta1^t)) / (d*sqrt(v/(1 - beta2^t)) + eps)

    lr             learning rate, in [0, inf), default 1e-3
    betas          (beta1, beta2, beta3), each in [0, 1), default (0.9, 0.999, 0.999)
    eps            in [0, inf), default 1e-8
    weight_decay   in [0, inf), default 0
    variant        "v3" (default), "v1", "code"
    c              bounds r and 1/r, of "v3" and "code", in [1, inf), default 10
    fstar          what the loss can't fall below, in (-inf, inf), default 0
    thresholds     (k, K) of "v1", each in (0, inf), default (0.1, 10)
    lr_decay       lr/(1 + (t - 1)*lr_decay) takes lr's place, in [0, inf), default 0
    decay_mode     "l2" (default), or another: see Optimizer

    State: exp_avg (m), exp_avg_sq (v), and for all arrays the numbers d and fhat. Each step reads
    the loss at the point of its gradients, `step(grads, loss=f)`; one that is missing or not finite
    is an error. Options of every rule: see Optimizer.
    Traps: "v1" needs losses above 0. With fstar = 0 a loss with a penalty in it never comes near
    fstar, and d loses its meaning. The noise of small batches makes d what it is: |f - fhat|/f on
    average. beta3, variant, c, fstar and thresholds have to be the same in all groups that have
    gradients and an lr above 0, or the step is a ValueError; where none has, d and fhat stay. A
    zero gradient still moves x. With eps = 0 an element whose gradients have all been 0 becomes
    NaN.
    Source: Koushik et al. 2016, arXiv 1611.01505, algorithm 1 of versions 1 and 3;
    "code": the authors' final implementation.
    """

    states: ClassVar = {"adam": ("exp_avg", "exp_avg_sq")}
    shared: ClassVar = {"d": 1.0, "fhat": math.inf}
    common: ClassVar = {  # what makes d
        "betas[2]": lambda h: h["betas"][2],
        "variant": itemgetter("variant"),
        "c": itemgetter("c"),
        "fstar": itemgetter("fstar"),
        "thresholds": itemgetter("thresholds"),
    }
    ranges: ClassVar = {"d": "(0, inf]"}
    presets: ClassVar = {"paper": {}, "code": {"variant": "code"}, "article": {"variant": "v1"}}
    lr: Number = number("[0, inf)", default=1e-3)
    betas: tuple[Number, Number, Number] = numbers("[0, 1)", default=(0.9, 0.999, 0.999))
    eps: Number = number("[0, inf)", default=1e-8)
    weight_decay: Number = number("[0, inf)", default=0.0)
    variant: Literal["v3", "v1", "code"] = choice(default="v3")
    c: Number = number("[1, inf)", default=10.0)
    fstar: Number = number("(-inf, inf)", default=0.0)
    thresholds: tuple[Number, Number] = numbers("(0, inf)", default=(0.1, 10.0))
    lr_decay: Number = number("[0, inf)", default=0.0)
    decay_mode: DecayMode = choice(default="l2")

    @staticmethod
    def kernel(h: Values) -> str:
        k, most = h["thresholds"]
        if not (callable(k) or callable(most) or k <= most):
            raise ValueError(f"thresholds: {h['thresholds']!r} has a k above K")
        return "adam"

    @staticmethod
    def reads_loss(h: Values) -> bool:
        return True

    @staticmethod
    def follow(groups: Groups, shared: Numbers, t: int, loss: Any) -> dict[str, float]:
        loss, fhat, tiny = check_loss(loss), shared["fhat"], sys.float_info.min
        own = moving(groups)
        if not own:
            return {}
        h = agreed(own, Eve.common)
        beta3 = h["betas"][2]
        if h["variant"] == "v1" and min(loss, fhat) <= 0:
            raise ValueError(f'loss: variant "v1" compares losses above 0, got {loss} after {fhat}')
        if math.isinf(fhat):  # the first one
            return {"d": 1.0, "fhat": loss}
        if h["variant"] == "v1":
            small, large = (1.0 + k for k in h["thresholds"])
            low, high = (small, large) if loss > fhat else (1.0 / large, 1.0 / small)
            tracked = fhat * min(max(loss / fhat, low), high)
            r = abs(tracked - fhat) / min(tracked, fhat)
        else:
            tracked = loss
            r = (abs(loss - fhat) + tiny) / (abs(min(loss, fhat) - h["fstar"]) + tiny)
            r = min(max(r, 1.0 / h["c"]), h["c"])
        return {"d": beta3 * shared["d"] + (1.0 - beta3) * r, "fhat": tracked}

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        c1, c2 = corrections(h, t)
        v1, hat = h["variant"] == "v1", h["variant"] == "code"
        step = h["lr"] / (1.0 + (t - 1) * h["lr_decay"]) / c1
        return {
            **moments(h),
            "step": (step if v1 else step / memory["d"]) * (math.sqrt(c2) if hat else 1.0),
            "denom": 1.0 if hat else (memory["d"] if v1 else 1.0) / math.sqrt(c2),
            "eps": h["eps"],
        }
