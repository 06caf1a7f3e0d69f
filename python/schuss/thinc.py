"""A drop-in for thinc's optimizer, and so for spaCy's: its state, its schedules, our steps.

    optimizer = schuss.thinc.Adam(0.001, L2=0.01)

    [training.optimizer]
    @optimizers = "schuss.Adam.v1"

In the second form in the config of a spaCy pipeline; there are schuss.RAdam.v1 and schuss.SGD.v1,
too, with the arguments of thinc's own. Needs thinc.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import numpy as np

try:
    import thinc.optimizers as theirs
    from thinc.config import registry
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "schuss.thinc: needs thinc: pip install 'schuss[thinc]'", name=error.name
    ) from error

from schuss import rules
from schuss.keyed import Keyed

FLOAT32 = np.dtype(np.float32)

HAS_SCHEDULES = hasattr(theirs.Optimizer, "last_score")  # since thinc 9; before, numbers

# What an Optimizer has beside thinc's attributes: what is set, and what follows of it.
OWN = ("_asked", "_by_rule", "_moments", "_rate", "_step_of")

MOMENTS = {"exp_avg": "mom1", "exp_avg_sq": "mom2"}  # ours, and where thinc has them


def decay(t: int) -> float:
    """Of the running mean, which starts at 0, at an array's update t, counted from 1."""
    return min((1.0 + t) / (10.0 + t), 0.9999)


def stepped(a: Any) -> bool:
    """Whether this is an array that our kernels take as thinc has it."""
    return type(a) is np.ndarray and a.dtype == FLOAT32 and a.flags.c_contiguous


def made(name: str, averages: bool) -> Keyed:
    """What steps by a rule as thinc does; its `ema` is asked after one update less than RAdam's."""
    options: dict[str, Any] = {"decay_mode": "proximal", "zero_grad": True}
    if averages:
        options["ema"] = decay if name == "radam" else lambda n: decay(n + 1)
    if name == "radam":
        return Keyed(rules.RAdam, threshold=math.nextafter(5.0, 0.0), **options)
    if name == "adam":
        return Keyed(rules.Adam, eps_mode="hat", **options)
    return Keyed(rules.SGD, **options)


class Optimizer(theirs.Optimizer):
    """thinc.optimizers.Optimizer, with our steps: Adam, RAdam, or plain descent.

        g = g + L2*x                                where L2 is no weight decay
        g = g * min(1, grad_clip/|g|)               of each array
        x = x - lr_scale*learn_rate * u             u is the rule's; RAdam has no lr_scale
        x = x - lr_scale*learn_rate * L2 * x        where it is one
        a = a + (1 - d)*(x - a)                     the averages, d = min((1 + t)/(10 + t), 0.9999)

    Arguments, attributes, schedules and what is pickled are thinc's. `mom1`, `mom2` and `averages`
    have the very arrays that are stepped, `nr_update` the counts; what is there when a key first
    comes is gone on with. What isn't for our kernels, such as an array on a GPU, steps as in thinc.

    Source: Kingma and Ba 2015, arXiv 1412.6980, with eps beside the uncorrected root; Liu et al.
    2020, arXiv 1908.03265, with a t that is one ahead.
    """

    __slots__ = OWN

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._forget()

    def _forget(self) -> None:
        self._by_rule: dict[tuple[str, bool], Keyed] = {}
        self._moments: dict[str, str] = {}
        self._asked: tuple[Any, ...] = ()
        self._step_of: Keyed | None = None
        self._rate = 0.0

    def __call__(
        self, key: Hashable, weights: Any, gradient: Any, *, lr_scale: float = 1.0
    ) -> tuple[Any, Any]:
        """Steps the weights in place and zeroes the gradient; returns both.

        key        (number of the model, name of the parameter)
        weights    the array (written)
        gradient   its gradient (written)
        lr_scale   multiplies the learning rate, default 1
        """
        modes = self.L2_is_weight_decay, self.use_radam, self.averages is not None
        asked = (*self._now(key), lr_scale, *modes)
        if asked != self._asked:
            self._follow(*asked)
            self._asked = asked
        step = self._step_of
        if step is None or not (stepped(weights) and stepped(gradient) and len(gradient)):
            found: tuple[Any, Any] = super().__call__(key, weights, gradient, lr_scale=lr_scale)
            return found
        _, _, _, _, l2, clip, *_ = asked
        if l2 and not self.L2_is_weight_decay:
            gradient += l2 * weights
        scale = None
        if clip:
            flat = gradient.reshape(-1)
            norm = math.sqrt(flat.dot(flat))
            if norm >= clip:
                scale = min(norm / clip, 1.7e38)
        t = self.nr_update.get(key, 0) + 1
        first = key not in step
        if first:
            self._begin(step, key, weights)
        own = gradient if gradient.shape == weights.shape else gradient.reshape(weights.shape)
        step(key, weights, own, self._rate, step=t + self.use_radam, grad_scale=scale)
        if first:
            self._show(step, key)
        self.nr_update[key] = t
        return weights, gradient

    def _now(self, key: Hashable) -> tuple[Any, ...]:
        """The numbers of a step."""
        now = self.learn_rate, self.b1, self.b2, self.eps, self.L2, self.grad_clip
        if not HAS_SCHEDULES:
            return now
        return tuple(f(self.step, key=key, last_score=self.last_score) for f in now)

    def _follow(
        self,
        learn_rate: float,
        b1: float,
        b2: float,
        eps: float,
        l2: float,
        clip: float,
        lr_scale: float,
        decays: bool,
        radam: bool,
        averages: bool,
    ) -> None:
        """Finds the rule for these numbers, and sets its options; none where thinc has to step."""
        adam = b1 > 0.0 and b2 > 0.0
        lost = lr_scale * learn_rate * l2 if decays else 0.0
        self._rate = float(learn_rate if radam else lr_scale * learn_rate)
        self._step_of = None
        if lost >= 1.0 or (b2 > 0.0 and not (adam or radam)):
            return
        # x/(1 + rate*weight_decay) is what is left, x*(1 - lost).
        options: dict[str, Any] = {
            "weight_decay": lost / (1.0 - lost) / self._rate if lost else 0.0
        }
        self._moments = MOMENTS if adam or radam else {}
        if self._moments:
            options |= {"betas": (b1, b2), "eps": eps}
        chosen = "radam" if radam else "adam" if adam else "sgd", averages
        if chosen not in self._by_rule:
            self._by_rule[chosen] = made(*chosen)
        step = self._by_rule[chosen]
        for option, value in options.items():
            if getattr(step, option) != value:
                setattr(step, option, value)
        self._step_of = step

    def _begin(self, step: Keyed, key: Hashable, weights: np.ndarray) -> None:
        """Hands over what there is of a key's state; its mean starts at 0, not at the weights."""
        state = {
            name: getattr(self, held)[key].reshape(weights.shape)
            for name, held in self._moments.items()
            if key in getattr(self, held)
        }
        if self.averages is not None:
            mean = self.averages.get(key)
            state["ema"] = np.zeros_like(weights) if mean is None else mean
        step.adopt(key, **state)

    def _show(self, step: Keyed, key: Hashable) -> None:
        """Puts the arrays of a key's state where thinc has them."""
        state = step.state[key]
        for name, held in self._moments.items():
            getattr(self, held)[key] = state[name].reshape(-1)
        if self.averages is not None:
            self.averages[key] = state["ema"]

    def __getstate__(self) -> Any:
        """Thinc's state alone, which is gone on with."""
        own, slots = super().__getstate__()
        return own, {name: value for name, value in slots.items() if name not in OWN}

    def __setstate__(self, state: Any) -> None:
        for name, value in state[1].items():
            setattr(self, name, value)
        self._forget()


def Adam(learn_rate: Any = 0.001, **options: Any) -> Optimizer:  # noqa: N802  as thinc has it
    """An Optimizer of Adam, with the arguments of thinc.optimizers.Adam."""
    return Optimizer(learn_rate, **options)


def RAdam(learn_rate: Any = 0.001, **options: Any) -> Optimizer:  # noqa: N802
    """An Optimizer of RAdam, with the arguments of thinc.optimizers.RAdam."""
    return Optimizer(learn_rate, use_radam=True, **options)


def SGD(learn_rate: Any, **options: Any) -> Optimizer:  # noqa: N802
    """An Optimizer of plain descent, with the arguments of thinc.optimizers.SGD."""
    return Optimizer(learn_rate, beta1=0.0, beta2=0.0, **options)


for ours, like in ((Adam, theirs.Adam), (RAdam, theirs.RAdam), (SGD, theirs.SGD)):
    vars(ours)["__wrapped__"] = like  # whose arguments a config is checked by
    registry.optimizers.register(f"schuss.{ours.__name__}.v1", func=ours)
