"""Descent whose result is an average of where it has been."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np

from schuss.engine.declare import DecayMode, Number, choice, number, numbers
from schuss.engine.guard import one_at_a_time
from schuss.engine.optimizer import Optimizer, computing_type
from schuss.engine.rule import Numbers, Values


class ASGD(Optimizer):
    """Gradient descent with a falling rate, and the average of its points.

        x = (1 - lambd*eta)*x - eta*g
        a = a + mu*(x - a)
        eta = lr/(1 + lambd*lr*t)^alpha             for the next step; lr in the first
        mu = 1/max(1, t - t0)                       likewise; 1 in the first

    lr             learning rate, in [0, inf), default 1e-2
    lambd          decay of x, in [0, inf), default 1e-4
    alpha          power of the fall, in [0, inf), default 0.75
    t0             the step from which on points are averaged, in [0, inf), default 1e6
    weight_decay   in [0, inf), default 0
    decay_mode     "l2" (default), or another: see Optimizer

    State: ax (a), which is the result; x itself goes on; and the numbers eta and mu of each array.
    Options of every rule: see Optimizer.
    Traps: with the default t0, a is x for a million steps. A new lr counts one step later. a
    follows x as the rule leaves it, before other decays and the bounds. A zero gradient moves x by
    the decay alone.
    Source: Polyak and Juditsky 1992; the rate: Bottou 2012, "Stochastic gradient descent tricks".
    """

    states: ClassVar = {"asgd": ("ax",)}
    starting: ClassVar = ("ax",)
    memory: ClassVar = {"eta": 0.0, "mu": 1.0}
    ranges: ClassVar = {"eta": "[0, inf]", "mu": "[0, 1]"}
    presets: ClassVar = {"torch": {}}
    lr: Number = number("[0, inf)", default=1e-2)
    lambd: Number = number("[0, inf)", default=1e-4)
    alpha: Number = number("[0, inf)", default=0.75)
    t0: Number = number("[0, inf)", default=1e6)
    weight_decay: Number = number("[0, inf)", default=0.0)
    decay_mode: DecayMode = choice(default="l2")

    @staticmethod
    def kernel(h: Values) -> str:
        return "asgd"

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        lr, lambd = h["lr"], h["lambd"]
        rate = lr if t == 1 else memory["eta"]
        try:
            fallen = (1.0 + lambd * lr * t) ** h["alpha"]
        except OverflowError:
            fallen = math.inf
        return {
            "decay": lambd * rate,
            "rate": rate,
            "share": memory["mu"],
            "eta": lr / fallen,
            "mu": 1.0 / max(1.0, t - h["t0"]),
        }


class ScheduleFree(Optimizer):
    """What the two rules without a schedule share: the weights of the average, `eval`, `train`."""

    memory: ClassVar = {"weight_sum": 0.0, "lr_max": 0.0}
    ranges: ClassVar = dict.fromkeys(memory, "[0, inf]")
    warmup_steps: Number = number("[0, inf)", default=0.0)
    r: Number = number("[0, inf)", default=0.0)
    weight_lr_power: Number = number("[0, inf)", default=2.0)

    @staticmethod
    def averaging(h: Values, t: int, memory: Numbers, beta: float) -> dict[str, float]:
        """The scalars of both kernels, and the new memory."""
        lr = h["lr"] * (t / h["warmup_steps"] if t < h["warmup_steps"] else 1.0)
        lr_max = max(memory["lr_max"], lr)
        try:
            weight = float(t) ** h["r"] * lr_max ** h["weight_lr_power"]
        except OverflowError:  # where NumPy's is infinite
            weight = math.inf
        weight_sum = memory["weight_sum"] + weight
        ck = weight / weight_sum if weight_sum else 0.0
        return {
            "first": float(t == 1),
            "ck": ck,
            "step": lr * (1.0 - beta * (1.0 - ck)),
            "lr": lr,
            "weight_sum": weight_sum,
            "lr_max": lr_max,
        }

    @staticmethod
    def interpolation(h: Values) -> float:
        """How far the parameters lie from z towards the average."""
        raise NotImplementedError

    @one_at_a_time
    def eval(self) -> None:
        """Puts the averages, the result of the training, in the place of the parameters.

        Until `train` is called, a step is an error. An array that has not been stepped stays.
        Raises ValueError where a parameter is read-only; nothing has changed then.
        """
        if self._standing() != "evaluated":
            self._require_parameters("eval")
            self._evaluate()

    def _evaluate(self) -> None:
        self._swap(
            "evaluated",
            "the parameters hold their averages; call opt.train() first",
            [(p, self._average(i)) for i, p in enumerate(self._parameters)],
        )

    def _average(self, number: int) -> np.ndarray:
        """The average of a parameter's points, from where it is and where it would be without."""
        p = self._parameters[number]
        if not self._plan.count(number):
            return p.x.copy(order="K")
        computing = computing_type(p.x)
        y = p.weight
        z = p.state["z"].astype(computing, copy=False)
        h = self._groups[p.group].settings.at(self.iterations)
        beyond = computing.type(1.0 - 1.0 / self.interpolation(h))
        with np.errstate(all="ignore"):
            average: np.ndarray = y + beyond * (z - y)
        return average

    @one_at_a_time
    def train(self) -> None:
        """Brings the parameters back, with the bits that they had before `eval`.

        Raises ValueError where a parameter is read-only; nothing has changed then.
        """
        if self._standing() == "evaluated":
            self._swap_back()
        else:
            self._require_parameters("train")

    def _resume(self, form: str) -> None:
        if form == "evaluated":
            self._evaluate()


class ScheduleFreeSGD(ScheduleFree):
    """Gradient descent that averages its points in place of lowering its rate.

        gamma = lr*min(1, t/warmup_steps);  w = t^r * max(gamma so far)^weight_lr_power
        c = w/(sum of all w)
        y = y + c*(z - y) - gamma*(1 - beta*(1 - c))*g
        z = z - gamma*g
        eval:  x = y + (1 - 1/beta)*(z - y)

    lr                learning rate, in [0, inf), default 1
    momentum          beta, in (0, 1), default 0.9
    weight_decay      in [0, inf), default 0
    warmup_steps      in [0, inf), default 0
    r                 power of the step in the weights, in [0, inf), default 0
    weight_lr_power   power of the rate in the weights, in [0, inf), default 2
    decay_mode        "l2" (default), or another: see Optimizer; they decay y, but not z

    State: z, which is y before the first step, and the numbers weight_sum and lr_max of each array.
    Options of every rule: see Optimizer.
    Traps: the parameters are y, where gradients are to be taken. The result is x: call `opt.eval()`
    before evaluating or saving a model, and `opt.train()` before the next step. A schedule for lr
    is not wanted, and changing momentum moves x. A zero gradient still moves y, towards z. Bounds
    hold y; x may lie elsewhere.
    Source: Defazio et al. 2024, arXiv 2405.15682, equations 3 to 5; form: the authors' code.
    """

    states: ClassVar = {"schedule_free": ("z",)}
    starting: ClassVar = ("z",)
    presets: ClassVar = {"paper": {"weight_lr_power": 0.0}}
    lr: Number = number("[0, inf)", default=1.0)
    momentum: Number = number("(0, 1)", default=0.9)
    weight_decay: Number = number("[0, inf)", default=0.0)
    decay_mode: DecayMode = choice(default="l2")

    @staticmethod
    def kernel(h: Values) -> str:
        return "schedule_free"

    @staticmethod
    def interpolation(h: Values) -> float:
        beta: float = h["momentum"]
        return beta

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        return ScheduleFree.averaging(h, t, memory, h["momentum"])


class ScheduleFreeAdamW(ScheduleFree):
    """ScheduleFreeSGD with Adam's denominator.

        v = beta2*v + (1 - beta2)*g*g
        n = g/(sqrt(v/(1 - beta2^t)) + eps) + weight_decay*y
        y = y + c*(z - y) - gamma*(1 - beta1*(1 - c))*n         c, gamma: see ScheduleFreeSGD
        z = z - gamma*n
        eval:  x = y + (1 - 1/beta1)*(z - y)

    lr                learning rate, in [0, inf), default 0.0025
    betas             (beta1, beta2), in (0, 1) and [0, 1), default (0.9, 0.999)
    eps               in [0, inf), default 1e-8
    weight_decay      in [0, inf), default 0
    warmup_steps      in [0, inf), default 0
    r                 power of the step in the weights, in [0, inf), default 0
    weight_lr_power   power of the rate in the weights, in [0, inf), default 2
    decay_mode        "normalized" (default): as above; or another: see Optimizer; but for "l2" they
                      decay y, but not z

    State: z, which is y before the first step, exp_avg_sq (v), and the numbers weight_sum and
    lr_max of each array. Options of every rule: see Optimizer.
    Traps: as ScheduleFreeSGD. Keras has weight_lr_power = 0, and decays as "decoupled" does. With
    eps = 0 an element whose gradients have all been 0 becomes NaN. A zero gradient still moves y.
    Source: Defazio et al. 2024, arXiv 2405.15682, algorithm 1.
    """

    states: ClassVar = {"schedule_free_adam": ("z", "exp_avg_sq")}
    starting: ClassVar = ("z",)
    presets: ClassVar = {"paper": {}}
    lr: Number = number("[0, inf)", default=0.0025)
    betas: tuple[Number, Number] = numbers("(0, 1)", "[0, 1)", default=(0.9, 0.999))
    eps: Number = number("[0, inf)", default=1e-8)
    weight_decay: Number = number("[0, inf)", default=0.0)
    decay_mode: Literal["normalized", DecayMode] = choice(default="normalized")

    @staticmethod
    def kernel(h: Values) -> str:
        return "schedule_free_adam"

    @staticmethod
    def interpolation(h: Values) -> float:
        beta: float = h["betas"][0]
        return beta

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        beta1, beta2 = h["betas"]
        return {
            **ScheduleFree.averaging(h, t, memory, beta1),
            "beta2": beta2,
            "w2": 1.0 - beta2,
            "denom": 1.0 / math.sqrt(1.0 - beta2**t),
            "eps": h["eps"],
            "decay": h["weight_decay"] if h["decay_mode"] == "normalized" else 0.0,
        }
