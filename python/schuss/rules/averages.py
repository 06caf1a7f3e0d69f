"""Descent whose result is an average of where it has been."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

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
        return {
            "decay": lambd * rate,
            "rate": rate,
            "share": memory["mu"],
            "eta": lr / (1.0 + lambd * lr * t) ** h["alpha"],
            "mu": 1.0 / max(1.0, t - h["t0"]),
        }


AVERAGES = "the parameters hold their averages; call opt.train() first"


class ScheduleFree(Optimizer):
    """What the two rules without a schedule share: the weights of the average, `eval`, `train`."""

    memory: ClassVar = {"weight_sum": 0.0, "lr_max": 0.0}
    warmup_steps: Number = number("[0, inf)", default=0.0)
    r: Number = number("[0, inf)", default=0.0)
    weight_lr_power: Number = number("[0, inf)", default=2.0)
    # The parameters, while their averages are evaluated: None where only these were saved.
    _trained: list[np.ndarray | None] | None = None

    @staticmethod
    def averaging(h: Values, t: int, memory: Numbers, beta: float) -> dict[str, float]:
        """The scalars of both kernels, and the new memory."""
        lr = h["lr"] * (t / h["warmup_steps"] if t < h["warmup_steps"] else 1.0)
        lr_max = max(memory["lr_max"], lr)
        weight = float(t) ** h["r"] * lr_max ** h["weight_lr_power"]
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
        """
        if self._trained is not None:
            return
        self._require_parameters("eval")
        values = [group.settings.at(self.iterations) for group in self._groups]
        kept = [p.x.copy(order="K") for p in self._parameters]
        self._mark([*kept])
        for i, p in enumerate(self._parameters):
            if self._plan.count(i):
                computing = computing_type(p.x)
                y = p.beside.get("master", np.asarray(p.x)).astype(computing, copy=False)
                z = p.state["z"].astype(computing, copy=False)
                beyond = computing.type(1.0 - 1.0 / self.interpolation(values[p.group]))
                with np.errstate(all="ignore"):
                    p.x[...] = y + beyond * (z - y)

    def _point(self, number: int) -> np.ndarray:
        """What a parameter was before its average took its place, to rounding."""
        p = self._parameters[number]
        if "master" in p.beside or not self._plan.count(number):
            return p.beside.get("master", p.x)
        computing = computing_type(p.x)
        beta = self.interpolation(self._groups[p.group].settings.at(self.iterations))
        x, z = (np.asarray(a).astype(computing, copy=False) for a in (p.x, p.state["z"]))
        with np.errstate(all="ignore"):
            y: np.ndarray = z + computing.type(beta) * (x - z)
        return y

    @one_at_a_time
    def train(self) -> None:
        """Brings the parameters back, with the bits that they had before `eval`."""
        if self._trained is None:
            return
        if self._plan.barred != AVERAGES:
            self._require_parameters("train")
        for i, x in enumerate(self._trained):  # later ones are new
            self._parameters[i].x[...] = self._point(i) if x is None else x
        self._mark(None)

    def state_dict(self) -> dict[str, Any]:
        """As that of every rule; and whether the parameters held their averages."""
        with self._lock:
            return super().state_dict() | {"evaluated": self._trained is not None}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As that of every rule; where the saved parameters were averages, `train` is to follow."""
        with self._lock:
            super().load_state_dict(state_dict)
            if state_dict.get("evaluated"):
                self._mark([None] * len(self._parameters))

    def _mark(self, trained: list[np.ndarray | None] | None) -> None:
        """Keeps the parameters, and refuses steps; or no more."""
        self._trained, self._plan.barred = trained, "" if trained is None else AVERAGES

    def _free(self) -> None:
        super()._free()
        self._mark(self._trained)


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
