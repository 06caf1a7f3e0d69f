"""The rules, simplest first: the class of each, in the order of cpp/rules.hpp and reference.py.

A class declares its hyperparameters with default and range, names its kernel and the kernel's state
arrays, and computes the kernel's scalars, in double. It serves both backends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from schuss import _core, reference
from schuss.hyperparameters import Number, choice, constant, flag, number, numbers
from schuss.optimizer import Optimizer
from schuss.scalars import NAMES

# How weight_decay, wd below, works on x; lr is the step's, peak the schedule's largest:
#   l2                    g = g + wd*x, before everything
#   decoupled             x = (1 - lr*wd)*x
#   decoupled_unscaled    x = (1 - lr/peak*wd)*x        Loshchilov and Hutter 2019, algorithm 2
#   corrected             x = (1 - lr*lr/peak*wd)*x     the decay fades with the square of lr
#   proximal              x = x/(1 + lr*wd), after the update
#   masked                x = (1 - lr*wd)*x where update and x have the same sign
DECAY_MODES = ("l2", "decoupled", "decoupled_unscaled", "corrected", "proximal", "masked")


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and Nesterov's step.

        b = mu*b + (1 - dampening)*g        the first step of an array takes g undamped
        x = x - lr*b                        nesterov: x = x - lr*(g + mu*b)

    lr              learning rate, in [0, inf), default 1e-3
    momentum        mu, in [0, inf), default 0: no buffer
    dampening       in (-inf, inf), default 0
    nesterov        needs a momentum and no dampening, default False
    lr_in_buffer    default False; True: b = mu*b + lr*(1 - dampening)*g; x = x - b, which is equal
                    while lr is constant
    weight_decay    in [0, inf), default 0
    decay_mode      "l2" (default), or another of DECAY_MODES

    State: momentum_buffer (b). Options of every rule: see Optimizer.
    Source: Polyak 1964; Nesterov 1983 in the form of Sutskever et al. 2013, section 2.
    """

    states: ClassVar = {
        "sgd": (),
        "momentum": ("momentum_buffer",),
        "nesterov": ("momentum_buffer",),
    }
    lr: Number = number("[0, inf)", default=1e-3)
    momentum: Number = number("[0, inf)", default=0.0)
    dampening: Number = number("(-inf, inf)", default=0.0)
    nesterov: bool = flag(default=False)
    lr_in_buffer: bool = flag(default=False)
    weight_decay: Number = number("[0, inf)", default=0.0)
    decay_mode: str = choice(*DECAY_MODES, default="l2")

    @staticmethod
    def kernel(h: Mapping[str, Any]) -> str:
        if h["nesterov"] and (not h["momentum"] or h["dampening"]):
            given = f"momentum={h['momentum']!r}, dampening={h['dampening']!r}"
            raise ValueError(f"nesterov: needs momentum > 0 and dampening = 0, got {given}")
        return "nesterov" if h["nesterov"] else "momentum" if h["momentum"] else "sgd"

    @staticmethod
    def scalars(h: Mapping[str, Any], t: int) -> dict[str, float]:
        a, s = (h["lr"], 1.0) if h["lr_in_buffer"] else (1.0, h["lr"])
        w = a if t == 1 else a * (1.0 - h["dampening"])
        return {"lr": h["lr"], "mu": h["momentum"], "w": w, "a": a, "s": s}


class Adagrad(Optimizer):
    """Adagrad: steps shrink with the sum of all squared gradients.

        s = s + g*g
        x = x - lr/(1 + (t - 1)*lr_decay) * g/(sqrt(s) + eps)

    lr                          learning rate, in [0, inf), default 1e-2
    lr_decay                    in [0, inf), default 0
    weight_decay                in [0, inf), default 0
    initial_accumulator_value   s at the start, in [0, inf), default 0
    eps                         in [0, inf), default 1e-10
    decay_mode                  "l2" (default), or another of DECAY_MODES

    State: sum (s). Options of every rule: see Optimizer.
    Source: Duchi, Hazan, Singer 2011, JMLR 12, section 1.1 (the diagonal form).
    """

    states: ClassVar = {"adagrad": ("sum",)}
    lr: Number = number("[0, inf)", default=1e-2)
    lr_decay: Number = number("[0, inf)", default=0.0)
    weight_decay: Number = number("[0, inf)", default=0.0)
    initial_accumulator_value: float = constant("[0, inf)", default=0.0)
    eps: Number = number("[0, inf)", default=1e-10)
    decay_mode: str = choice(*DECAY_MODES, default="l2")

    @staticmethod
    def kernel(h: Mapping[str, Any]) -> str:
        return "adagrad"

    @staticmethod
    def initial(h: Mapping[str, Any]) -> dict[str, float]:
        return {"sum": h["initial_accumulator_value"]}

    @staticmethod
    def scalars(h: Mapping[str, Any], t: int) -> dict[str, float]:
        return {"lr": h["lr"] / (1.0 + (t - 1) * h["lr_decay"]), "eps": h["eps"]}


class RMSprop(Optimizer):
    """RMSprop: steps divided by the root of a running mean of squared gradients.

        v = alpha*v + (1 - alpha)*g*g
        a = a + (1 - alpha)*(g - a)     centered: below, v - a*a, at least 0, takes the place of v
        x = x - lr * g/(sqrt(v) + eps)
        b = mu*b + g/(sqrt(v) + eps);  x = x - lr*b     with momentum

    lr             learning rate, in [0, inf), default 1e-2
    alpha          smoothing constant, in [0, 1], default 0.99
    eps            in [0, inf), default 1e-8
    weight_decay   in [0, inf), default 0
    momentum       mu, in [0, inf), default 0: no buffer
    centered       divides by an estimate of the standard deviation, default False
    decay_mode     "l2" (default), or another of DECAY_MODES

    State: square_avg (v), grad_avg (a), momentum_buffer (b). Options of every rule: see Optimizer.
    Source: Tieleman and Hinton 2012, lecture 6e; centered: Graves 2013, arXiv 1308.0850, eq. 38-41.
    """

    states: ClassVar = {
        "rmsprop": ("square_avg",),
        "rmsprop_momentum": ("square_avg", "momentum_buffer"),
        "rmsprop_centered": ("square_avg", "grad_avg"),
        "rmsprop_centered_momentum": ("square_avg", "grad_avg", "momentum_buffer"),
    }
    lr: Number = number("[0, inf)", default=1e-2)
    alpha: Number = number("[0, 1]", default=0.99)
    eps: Number = number("[0, inf)", default=1e-8)
    weight_decay: Number = number("[0, inf)", default=0.0)
    momentum: Number = number("[0, inf)", default=0.0)
    centered: bool = flag(default=False)
    decay_mode: str = choice(*DECAY_MODES, default="l2")

    @staticmethod
    def kernel(h: Mapping[str, Any]) -> str:
        centered = "_centered" if h["centered"] else ""
        momentum = "_momentum" if h["momentum"] else ""
        return f"rmsprop{centered}{momentum}"

    @staticmethod
    def scalars(h: Mapping[str, Any], t: int) -> dict[str, float]:
        return {
            "alpha": h["alpha"],
            "w": 1.0 - h["alpha"],
            "lr": h["lr"],
            "eps": h["eps"],
            "mu": h["momentum"],
        }


class Adam(Optimizer):
    """Adam: a running mean of the gradients over the root of one of their squares.

    Both means are corrected for their start at 0.

        m = m + (1 - beta1)*(g - m)
        v = beta2*v + (1 - beta2)*g*g       amsgrad: below, the largest v so far takes its place
        x = x - lr * (m/(1 - beta1^t)) / (sqrt(v/(1 - beta2^t)) + eps)

    lr             learning rate, in [0, inf), default 1e-3
    betas          (beta1, beta2), each in [0, 1), default (0.9, 0.999)
    eps            in [0, inf), default 1e-8
    weight_decay   in [0, inf), default 0
    amsgrad        default False
    decay_mode     "l2" (default), or another of DECAY_MODES

    State: exp_avg (m), exp_avg_sq (v), max_exp_avg_sq. Options of every rule: see Optimizer.
    Source: Kingma and Ba 2015, arXiv 1412.6980, algorithm 1; amsgrad: Reddi et al. 2018, algorithm
    2, with the bias corrections.
    """

    states: ClassVar = {
        "adam": ("exp_avg", "exp_avg_sq"),
        "amsgrad": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    }
    lr: Number = number("[0, inf)", default=1e-3)
    betas: tuple[Number, Number] = numbers("[0, 1)", default=(0.9, 0.999))
    eps: Number = number("[0, inf)", default=1e-8)
    weight_decay: Number = number("[0, inf)", default=0.0)
    amsgrad: bool = flag(default=False)
    decay_mode: str = choice(*DECAY_MODES, default="l2")

    @staticmethod
    def kernel(h: Mapping[str, Any]) -> str:
        return "amsgrad" if h["amsgrad"] else "adam"

    @staticmethod
    def scalars(h: Mapping[str, Any], t: int) -> dict[str, float]:
        beta1, beta2 = h["betas"]
        step, denom = h["lr"] / (1.0 - beta1**t), 1.0 / math.sqrt(1.0 - beta2**t)
        return {
            "w1": 1.0 - beta1,
            "beta2": beta2,
            "w2": 1.0 - beta2,
            "step": step,
            "denom": denom,
            "eps": h["eps"],
        }


class AdamW(Adam):
    """Adam with decoupled weight decay.

        x = (1 - lr*weight_decay)*x, then Adam with the gradient as it is

    weight_decay   in [0, inf), default 1e-2
    decay_mode     "decoupled" (default), or another of DECAY_MODES

    Everything else as Adam.
    Source: Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2, the decay scaled by lr as in
    PyTorch.
    """

    weight_decay: Number = number("[0, inf)", default=1e-2)
    decay_mode: str = choice(*DECAY_MODES, default="decoupled")


# The list that drives tests, benchmarks, stateless calls and the command line.
RULES: tuple[type[Optimizer], ...] = (SGD, Adagrad, RMSprop, Adam, AdamW)


def _verify() -> None:
    """Kernel, reference and class of each rule agree on what they take, or nothing is trusted."""
    table = {name: (states, scalars) for name, states, scalars in _core.rules()}
    claimed = {kernel: states for rule in RULES for kernel, states in rule.states.items()}
    if table.keys() != claimed.keys():
        raise ImportError(f"kernels and classes differ: {sorted(table.keys() ^ claimed.keys())}")
    for kernel, (states, scalars) in table.items():
        code = getattr(reference, kernel).__code__
        if (code.co_argcount - 2, len(NAMES[kernel]), len(claimed[kernel])) != (
            states,
            scalars,
            states,
        ):
            raise ImportError(
                f"{kernel}: kernel, reference and class take different state or scalars"
            )


_verify()
