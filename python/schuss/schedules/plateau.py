"""A schedule that follows a metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from schuss.checks import Interval, check_fields, check_int
from schuss.engine.observers import check_metric

COUNTS = 2**53


@dataclass
class ReduceOnPlateau:
    """Is multiplied by `factor` when a metric has not become better for a while.

        opt = schuss.SGD(params, lr=schuss.schedules.ReduceOnPlateau(0.1, patience=5))
        for epoch in range(100):
            ...                                     # steps
            opt.observe(validation_loss)

    A metric is better where it is beyond the best one so far by the threshold; else it is a bad
    one, and so is NaN, which is never the best. After `patience` bad ones in a row the value falls.

    lr                the first value, in [0, inf)
    factor            in (0, 1), default 0.1
    patience          at least 0, default 10: see patience_mode
    threshold         in [0, inf), default 1e-4
    threshold_mode    "rel" (default): below best - threshold*|best|; "abs": below best - threshold
    cooldown          metrics after a fall that aren't counted, at least 0, default 0
    min_lr            no fall goes below it, in [0, lr], default 0
    eps               a fall by no more than this is left out, in [0, inf), default 1e-8, as in
                      PyTorch: for small values, 0. Keras and optax have none
    mode              "min" (default), or "max" for a metric that shall grow
    patience_mode     "torch" (default): the value falls at bad metric patience + 1
                      "keras": at bad metric `patience` (0 counts as 1), and the last metric of a
                      cooldown counts again
                      "optax": at bad metric `patience`, which is at least 1

    It has state: the same object in several groups falls in all of them, an optimizer's `observe`
    tells it once, and `state_dict` saves it.

    For metrics above 0 all numbers are PyTorch's. Below 0 its "rel", best*(1 - threshold), lies on
    the other side of best, so that metrics that become worse are better ones, and none is bad.
    Keras' threshold, min_delta, is absolute.

    Source: PyTorch's ReduceLROnPlateau, Keras', optax.contrib.reduce_on_plateau.
    """

    lr: float
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: str = "rel"
    cooldown: int = 0
    min_lr: float = 0.0
    eps: float = 1e-8
    mode: str = "min"
    patience_mode: str = "torch"
    value: float = field(init=False)  # the present one
    best: float = field(init=False)
    bad: int = field(init=False, default=0)  # metrics in a row
    cooling: int = field(init=False, default=0)  # metrics left of the cooldown

    def __post_init__(self) -> None:
        check_fields(
            self,
            lr="[0, inf)",
            factor="(0, 1)",
            threshold_mode=("rel", "abs"),
            threshold="[0, inf)",
            cooldown=0,
            min_lr="[0, inf)",
            eps="[0, inf)",
            mode=("min", "max"),
            patience_mode=("torch", "keras", "optax"),
            patience=1 if self.patience_mode == "optax" else 0,
        )
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr: {self.min_lr} is above lr ({self.lr})")
        self.value = self.lr
        self.best = math.inf if self.mode == "min" else -math.inf

    @property
    def ends(self) -> tuple[float, ...]:
        """The values between which it falls."""
        return self.lr, self.min_lr

    @property
    def peak(self) -> float:
        """The largest value: the first one."""
        return self.lr

    def __call__(self, n: int) -> float:
        return self.value

    def observe(self, metric: float) -> None:
        """Takes in a metric; the next step has the value that comes of it."""
        metric = check_metric(metric)
        better = self.better(metric)
        if better:
            self.best = metric
        self.bad = 0 if better else self.bad + 1
        if self.cooling > 0:
            self.cooling -= 1
            if self.cooling > 0 or self.patience_mode != "keras":
                self.bad = 0
            elif not better:
                self.bad = 1
        if self.bad > 0 and self.bad >= self.patience + (self.patience_mode == "torch"):
            lower = max(self.value * self.factor, self.min_lr)
            self.value = lower if self.value - lower > self.eps else self.value
            self.bad, self.cooling = 0, self.cooldown

    def better(self, metric: float) -> bool:
        """Whether a metric is beyond the best one by the threshold."""
        sign = 1.0 if self.mode == "min" else -1.0
        if math.isinf(self.best):  # at the start; infinity less a part of it would be NaN
            return sign * metric < sign * self.best
        if self.threshold_mode == "rel":
            share = math.copysign(self.threshold, self.best)
            return sign * metric < sign * (self.best * (1.0 - sign * share))
        return sign * metric < sign * (self.best - sign * self.threshold)

    def state_dict(self) -> dict[str, float]:
        """What moves; the arguments aren't in it."""
        return {name: getattr(self, name) for name in ("value", "best", "bad", "cooling")}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken; raises and changes nothing where it can't."""
        if not isinstance(state_dict, Mapping) or state_dict.keys() != self.state_dict().keys():
            raise ValueError(f"state_dict: {state_dict!r} is not that of a ReduceOnPlateau")
        value = Interval(f"[{self.min_lr}, {self.lr}]").check("value", state_dict["value"])
        best = Interval("[-inf, inf]").check("best", state_dict["best"])
        bad = check_int("bad", state_dict["bad"], 0, COUNTS)  # patience may be another than before
        cooling = check_int("cooling", state_dict["cooling"], 0, self.cooldown)
        self.value, self.best, self.bad, self.cooling = value, best, bad, cooling
