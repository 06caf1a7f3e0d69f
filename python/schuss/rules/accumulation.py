"""Steps divided by the root of accumulated squares of the gradient."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from schuss.engine.declare import REQUIRED, DecayMode, Number, choice, constant, flag, number
from schuss.engine.optimizer import Optimizer
from schuss.engine.rule import Numbers, Values


class Adagrad(Optimizer):
    """Adagrad: steps shrink with the sum of all squared gradients.

        s = s + g*g
        x = x - lr/(1 + (t - 1)*lr_decay) * g/(sqrt(s) + eps)

    lr                          learning rate, in [0, inf), default 1e-2
    lr_decay                    in [0, inf), default 0
    weight_decay                in [0, inf), default 0
    initial_accumulator_value   s at the start, in [0, inf), default 0; fixed at construction
    eps                         in [0, inf), default 1e-10
    eps_mode                    "outside" (default): as above; "inside": g/sqrt(s + eps); "guard":
                                as inside, and no step where s is 0
    decay_mode                  "l2" (default), or another: see Optimizer

    State: sum (s). Options of every rule: see Optimizer.
    Traps: s starts at 0 here and in PyTorch, at 0.1 in Keras and optax, which changes the whole
    beginning. A zero gradient does not move x; but with eps = 0 an element whose gradients have all
    been 0 becomes NaN, unless guarded.
    Source: Duchi, Hazan, Singer 2011, JMLR 12, section 1.1 (the diagonal form).
    """

    states: ClassVar = {"adagrad": ("sum",)}
    presets: ClassVar = {
        "torch": {},
        "keras": {
            "lr": 1e-3,
            "initial_accumulator_value": 0.1,
            "eps": 1e-7,
            "eps_mode": "inside",
            "decay_mode": "decoupled",
        },
        "optax": {
            "lr": REQUIRED,
            "initial_accumulator_value": 0.1,
            "eps": 1e-7,
            "eps_mode": "guard",
        },
        "flower": {"lr": 0.1, "eps": 1e-3, "maximize": True},
        "openfl": {"initial_accumulator_value": 0.1},
        "article": {},
        "tutorial": {"lr": 0.4, "eps": 1e-6, "eps_mode": "inside"},
        "course": {"eps": 1e-8, "eps_mode": "inside"},
    }
    lr: Number = number("[0, inf)", default=1e-2)
    lr_decay: Number = number("[0, inf)", default=0.0)
    weight_decay: Number = number("[0, inf)", default=0.0)
    initial_accumulator_value: float = constant("[0, inf)", default=0.0)
    eps: Number = number("[0, inf)", default=1e-10)
    eps_mode: Literal["outside", "inside", "guard"] = choice(default="outside")
    decay_mode: DecayMode = choice(default="l2")

    @staticmethod
    def kernel(h: Values) -> str:
        return "adagrad"

    @staticmethod
    def initial(h: Values) -> dict[str, float]:
        return {"sum": h["initial_accumulator_value"]}

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        outside = h["eps_mode"] == "outside"
        return {
            "lr": h["lr"] / (1.0 + (t - 1) * h["lr_decay"]),
            "inside": 0.0 if outside else h["eps"],
            "eps": h["eps"] if outside else 0.0,
            "guard": 0.0 if h["eps_mode"] == "guard" else -1.0,
        }


class RMSprop(Optimizer):
    """RMSprop: steps divided by the root of a running mean of squared gradients.

        v = alpha*v + (1 - alpha)*g*g
        a = a + (1 - alpha)*(g - a)     centered: below, v - a*a, at least 0, takes the place of v
        n = g/(sqrt(v) + eps)
        x = x - lr*n                    without momentum, else
        b = mu*b + n;  x = x - lr*b

    lr                learning rate, in [0, inf), default 1e-2
    alpha             smoothing constant, in [0, 1], default 0.99
    eps               in [0, inf), default 1e-8
    weight_decay      in [0, inf), default 0
    momentum          mu, in [0, inf), default 0: no buffer
    centered          divides by an estimate of the standard deviation, default False
    eps_mode          "outside" (default): as above; "inside": g/sqrt(v + eps)
    bias_correction   v/(1 - alpha^t) in place of v, and a likewise, default False
    clamp_variance    keeps v - a*a at 0 where rounding makes it negative, default True
    lr_in_buffer      b = mu*b + lr*n;  x = x - b, default False
    nesterov          x = x - lr*(n + mu*b), default False; ValueError without momentum
    initial_accumulator_value   v at the start, in [0, inf), default 0; fixed at construction
    decay_mode        "l2" (default), or another: see Optimizer

    State: square_avg (v), grad_avg (a, centered), momentum_buffer (b, with momentum). Options of
    every rule: see Optimizer.
    Traps: the first step is lr/sqrt(1 - alpha), 10 times lr at the default. centered: of a constant
    gradient the variance cancels to rounding noise, and without the clamp its root may be NaN.
    Keras and optax have eps inside, alpha 0.9, and lr in the buffer. A zero gradient does not move
    x without momentum, and still moves it with. With eps = 0 an element whose gradients have all
    been 0 becomes NaN.
    Source: Tieleman and Hinton 2012, lecture 6e; centered: Graves 2013, arXiv 1308.0850, eq. 38-41.
    """

    states: ClassVar = {
        "rmsprop": ("square_avg",),
        "rmsprop_momentum": ("square_avg", "momentum_buffer"),
        "rmsprop_centered": ("square_avg", "grad_avg"),
        "rmsprop_centered_momentum": ("square_avg", "grad_avg", "momentum_buffer"),
    }
    presets: ClassVar = {
        "torch": {"clamp_variance": False},
        "keras": {
            "lr": 1e-3,
            "alpha": 0.9,
            "eps": 1e-7,
            "eps_mode": "inside",
            "lr_in_buffer": True,
            "decay_mode": "decoupled",
        },
        "optax": {"lr": REQUIRED, "alpha": 0.9, "eps_mode": "inside", "lr_in_buffer": True},
        "timm": {
            "alpha": 0.9,
            "eps": 1e-10,
            "eps_mode": "inside",
            "lr_in_buffer": True,
            "initial_accumulator_value": 1.0,
        },
        "paper": {
            "lr": 1e-4,
            "alpha": 0.95,
            "eps": 1e-4,
            "momentum": 0.9,
            "centered": True,
            "eps_mode": "inside",
            "lr_in_buffer": True,
        },
        "article": {},
        "tutorial": {"lr": 0.4, "alpha": 0.9, "eps": 1e-6, "eps_mode": "inside"},
        "course": {"alpha": 0.9, "eps": 0.0},
    }
    lr: Number = number("[0, inf)", default=1e-2)
    alpha: Number = number("[0, 1]", default=0.99)
    eps: Number = number("[0, inf)", default=1e-8)
    weight_decay: Number = number("[0, inf)", default=0.0)
    momentum: Number = number("[0, inf)", default=0.0)
    centered: bool = flag(default=False)
    eps_mode: Literal["outside", "inside"] = choice(default="outside")
    bias_correction: bool = flag(default=False)
    clamp_variance: bool = flag(default=True)
    lr_in_buffer: bool = flag(default=False)
    nesterov: bool = flag(default=False)
    initial_accumulator_value: float = constant("[0, inf)", default=0.0)
    decay_mode: DecayMode = choice(default="l2")

    @staticmethod
    def kernel(h: Values) -> str:
        if h["nesterov"] and not h["momentum"]:
            raise ValueError(f"nesterov: needs momentum > 0, got momentum={h['momentum']!r}")
        centered = "_centered" if h["centered"] else ""
        momentum = "_momentum" if h["momentum"] else ""
        return f"rmsprop{centered}{momentum}"

    @staticmethod
    def initial(h: Values) -> dict[str, float]:
        return {"square_avg": h["initial_accumulator_value"]}

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        alpha, lr, mu = h["alpha"], h["lr"], h["momentum"]
        corrected = h["bias_correction"] and alpha < 1.0  # with 1 there is no mean to correct
        correction = 1.0 - alpha**t if corrected else 1.0
        outside = h["eps_mode"] == "outside"
        c, s = (lr, 1.0) if h["lr_in_buffer"] else (1.0, lr)
        return {
            "alpha": alpha,
            "w": 1.0 - alpha,
            "kv": 1.0 / correction,
            "ka": 1.0 / correction,
            "least": 0.0 if h["clamp_variance"] else -math.inf,
            "inside": 0.0 if outside else h["eps"],
            "eps": h["eps"] if outside else 0.0,
            "lr": lr,
            "mu": mu,
            "c": c,
            "direct": s if h["nesterov"] else 0.0,
            "s": s * mu if h["nesterov"] else s,
        }


class Adadelta(Optimizer):
    """Adadelta: steps in the unit of x, by the root of a running mean of their own squares.

        v = rho*v + (1 - rho)*g*g
        u = sqrt(d + eps)/sqrt(v + eps) * g
        d = rho*d + (1 - rho)*u*u
        x = x - lr*u

    lr             learning rate, in [0, inf), default 1
    rho            smoothing constant, in [0, 1], default 0.9
    eps            in [0, inf), default 1e-6
    weight_decay   in [0, inf), default 0
    decay_mode     "l2" (default), or another: see Optimizer

    State: square_avg (v), acc_delta (d). Options of every rule: see Optimizer.
    Traps: with eps = 0 it stays where it is for ever, since d starts at 0, or becomes NaN where all
    gradients have been 0; with any eps it starts slowly. Keras has lr 1e-3, which is not the
    paper's rule. A zero gradient does not move x.
    Source: Zeiler 2012, arXiv 1212.5701, algorithm 1.
    """

    states: ClassVar = {"adadelta": ("square_avg", "acc_delta")}
    presets: ClassVar = {
        "torch": {},
        "keras": {"lr": 1e-3, "rho": 0.95, "eps": 1e-7, "decay_mode": "decoupled"},
        "optax": {},
        "paper": {"rho": 0.95},
        "article": {},
        "course": {},
    }
    lr: Number = number("[0, inf)", default=1.0)
    rho: Number = number("[0, 1]", default=0.9)
    eps: Number = number("[0, inf)", default=1e-6)
    weight_decay: Number = number("[0, inf)", default=0.0)
    decay_mode: DecayMode = choice(default="l2")

    @staticmethod
    def kernel(h: Values) -> str:
        return "adadelta"

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        return {"rho": h["rho"], "w": 1.0 - h["rho"], "eps": h["eps"], "lr": h["lr"]}


class Ftrl(Optimizer):
    """Follow the regularised leader: x anew in each step, and exactly 0 where little speaks for it.

        s = sqrt(n);  n = n + g*g
        z = z + g + 2*shrinkage*x - (sqrt(n) - s)/lr*x
        x = 0 where |z| <= l1, else -(z - sign(z)*l1) / ((beta + sqrt(n))/lr + 2*l2)

        l1, l2 and shrinkage are what the arguments below call their strength

    lr                                     learning rate, in (0, inf), default 1e-3
    initial_accumulator_value              n at the start, in [0, inf), default 0.1; fixed at
                                           construction
    l1_regularization_strength             in [0, inf), default 0
    l2_regularization_strength             in [0, inf), default 0
    l2_shrinkage_regularization_strength   in [0, inf), default 0
    beta                                   in [0, inf), default 0
    weight_decay                           in [0, inf), default 0
    decay_mode                             "l2" (default), or "proximal"

    State: accumulator (n), linear (z). Options of every rule: see Optimizer.
    Traps: l1 and l2 of every rule join the gradient, and are not these. x is a function of n and z:
    a zero gradient changes it by the shrinkage only, but in the first step sets it to 0, wherever
    it began; or to NaN, where initial_accumulator_value, beta and l2 are all 0. So a network loses
    the random start that it needs: it is for linear models. x also moves with lr, which can't be 0:
    leave it constant.
    Source: McMahan et al. 2013, "Ad click prediction: a view from the trenches", algorithm 1; the
    shrinkage is Keras'.
    """

    states: ClassVar = {"ftrl": ("accumulator", "linear")}
    presets: ClassVar = {
        "keras": {},
        "paper": {"initial_accumulator_value": 0.0, "beta": 1.0},
    }
    lr: Number = number("(0, inf)", default=1e-3)
    initial_accumulator_value: float = constant("[0, inf)", default=0.1)
    l1_regularization_strength: Number = number("[0, inf)", default=0.0)
    l2_regularization_strength: Number = number("[0, inf)", default=0.0)
    l2_shrinkage_regularization_strength: Number = number("[0, inf)", default=0.0)
    beta: Number = number("[0, inf)", default=0.0)
    weight_decay: Number = number("[0, inf)", default=0.0)
    decay_mode: Literal["l2", "proximal"] = choice(default="l2")

    @staticmethod
    def kernel(h: Values) -> str:
        return "ftrl"

    @staticmethod
    def initial(h: Values) -> dict[str, float]:
        return {"accumulator": h["initial_accumulator_value"]}

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        return {
            "per_lr": 1.0 / h["lr"],
            "shrink": 2.0 * h["l2_shrinkage_regularization_strength"],
            "l1": h["l1_regularization_strength"],
            "l2": 2.0 * h["l2_regularization_strength"] + h["beta"] / h["lr"],
            "keep": 0.0,
        }
