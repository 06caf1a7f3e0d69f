"""What a step hands to a kernel: computed once, in double, for both backends."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from schuss import _core, reference
from schuss.engine.declare import DecayMode, Pair

if TYPE_CHECKING:
    from schuss.engine.groups import Parameter, Settings

DECAY_MODES: tuple[str, ...] = get_args(DecayMode)

NUMBERS = {name: number for number, (name, *_) in enumerate(_core.rules())}


def scalar_names(kernel: str) -> tuple[str, ...]:
    """The members of a kernel's struct, in order: the keyword arguments of its reference."""
    code = getattr(reference, kernel).__code__
    return tuple(code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount])


NAMES = {kernel: scalar_names(kernel) for kernel in NUMBERS}


class Sums(NamedTuple):
    """What a look at an array, or at all of them, has found before the step: reference.look."""

    x: float
    g: float
    u: float
    agree: float
    p: float
    q: float
    size: int

    @classmethod
    def total(cls, parts: Sequence[Sums]) -> Sums:
        """The sums over all arrays, added in their order."""
        return cls(*(functools.reduce(operator.add, column) for column in zip(*parts, strict=True)))


# The optimizer's options that its sets of scalars depend on.
AROUND = frozenset({"_ema", "_stochastic_rounding", "_seed", "_subnormals", "_zero_grad"})

# What a rule's scalars may say of the stages.
STAGES = frozenset({"decay_rate", "keep", "after"})

# The bit of each of the sums, as the kernels count; p and q come together.
WANTED = {"x": 1, "g": 2, "u": 4, "agree": 8, "look": 16}


class Clip:
    """What becomes of gradients by their norm."""

    def __init__(self, limit: float, scale: float, propagates: bool) -> None:
        self.limit = limit
        self.scale = scale  # without clipping: 1/grad_scale
        self.propagates = propagates  # where one is not finite
        self.norm = math.nan  # of the scaled gradients that were last seen

    def factor(self, squares: float, finite: bool) -> float | None:
        """What the raw gradients are multiplied by; None where the step is not to be taken."""
        self.norm = math.sqrt(squares) * self.scale
        if not (finite or self.propagates):
            return None
        if self.limit == math.inf:  # the norm may be infinite, too, of finite gradients
            return self.scale
        share = self.limit / (self.norm + 1e-6)
        return self.scale if share > 1.0 else self.scale * share


class ScalarSet(NamedTuple):
    """The scalars of one step of all arrays that share a group and a step count."""

    kernel: str
    rule: Mapping[str, float]  # what the kernel takes, and perhaps more
    around: reference.Stages
    memory: list[float]  # of the arrays, as it is after the step

    def packed(self) -> tuple[float, ...]:
        """What the compiled driver reads."""
        rule = self.rule
        return (NUMBERS[self.kernel], *self.around, *[rule[name] for name in NAMES[self.kernel]])

    def step(self, p: Parameter, g: np.ndarray) -> None:
        """One array's step, in NumPy: on the plain array behind a subclass."""
        beside: dict[str, Any] = p.beside
        reference.step(*self.arguments(p, g), position=p.position, **beside)

    def look(self, p: Parameter, g: np.ndarray, wanted: int) -> tuple[float, ...]:
        """What the step would do, in NumPy: all sums, of which only the wanted ones count."""
        own = getattr(reference, f"{self.kernel}_look", None)
        found = reference.look(*self.arguments(p, g), own=own, master=p.beside.get("master"))
        bits = (1, 2, 4, 8, 16, 16)
        return tuple(s if wanted & bit else 0.0 for s, bit in zip(found, bits, strict=True))

    def arguments(self, p: Parameter, g: np.ndarray) -> Any:
        """What the reference takes of an array: rule, arrays, scalars, stages."""
        return (
            getattr(reference, self.kernel),
            np.asarray(p.x),
            np.asarray(g),
            list(p.state.values()),
            {name: self.rule[name] for name in NAMES[self.kernel]},
            self.around,
        )


def scalar_set(
    settings: Settings,
    h: Mapping[str, Any],
    t: int,
    decays: bool,
    memory: Mapping[str, float],
    scale: float,
    options: Mapping[str, Any],
) -> ScalarSet:
    """The scalars of an array's step t, counted from 1: the rule's and those of the stages.

    A rule whose rate is not the group's lr says so as its `decay_rate`; and it may have a `keep`
    among its scalars, and an `after`, in place of those of the weight decay.

    h is the group's, `memory` what the rule knows besides: numbers of the steps before, the loss,
    the sums of a look; `options` the optimizer's, with an underscore before their names.
    """
    if not decays:
        h = {**h, "weight_decay": 0.0}
    if memory:
        h = {**h, **memory}
    rule = settings.rule.scalars(h, t)
    lr, l1, bounds = rule.get("decay_rate", h["lr"]), h["l1"], h["bounds"]
    prox = h["l1_mode"] == "prox"
    l2, keep, masked, after = decayed(settings, h, lr, h["weight_decay"])
    low, high = -math.inf, math.inf
    if not (bounds is None or Pair.has_arrays(bounds)):  # arrays lie beside the parameters
        low, high = bounds
    mean, chance = options["_ema"], options["_stochastic_rounding"]
    around = reference.Stages(
        -scale if h["maximize"] else scale,
        h["clip_value"],
        h["l2"] + l2,
        0.0 if prox else l1,
        *judged(h),
        keep,
        masked,
        after,
        lr * l1 if prox else 0.0,
        low,
        high,
        0.0 if mean is None else 1.0 - mean,
        options["_subnormals"] == "zero",
        options["_zero_grad"],
        chance,
        step_key(options["_seed"], t) if chance else 0,
    )
    if "keep" in rule:
        around = around._replace(keep=rule["keep"], after=rule.get("after", after))
    return ScalarSet(settings.kernel, rule, around, [rule[name] for name in settings.rule.memory])


def packed_set(
    settings: Settings,
    decays: bool,
    scale: float,
    options: Mapping[str, Any],
    h: Mapping[str, Any],
    t: int,
) -> tuple[float, ...]:
    """The scalars of a rule that knows nothing besides, as the compiled driver reads them."""
    return scalar_set(settings, h, t, decays, {}, scale, options).packed()


def judged(h: Mapping[str, Any]) -> tuple[float, float]:
    """The factors of an update by its sign: where it agrees with the gradient's, and elsewhere."""
    if not h["cautious"] or h["sums"] is None:
        return 1.0, 1.0
    agreeing, size = h["sums"].agree, h["sums"].size
    if h["cautious"] == "plus1":
        return size / (agreeing + 1.0), 0.0
    return 1.0 / max(agreeing / size, 1e-3) if size else 1.0, 0.0


def wanted(settings: Settings, h: Mapping[str, Any]) -> int:
    """Which sums a step has to know first, as bits; 0: none, and no look is taken."""
    names = (*settings.rule.sums(h), *(("agree",) if h["cautious"] else ()))
    return functools.reduce(operator.or_, (WANTED[name] for name in names), 0)


def decayed(
    settings: Settings, h: Mapping[str, Any], lr: float, decay: float
) -> tuple[float, float, bool, float]:
    """What the weight decay's mode makes of it: l2, keep, masked, after."""
    mode = h["decay_mode"]
    if mode == "after":  # SOAP's
        return 0.0, 1.0, False, 1.0 - lr * decay
    if mode not in DECAY_MODES:
        return 0.0, 1.0, False, 1.0
    if mode == "l2" or decay == 0:
        return decay, 1.0, False, 1.0
    if mode in ("decoupled", "masked"):
        return 0.0, 1.0 - lr * decay, mode == "masked", 1.0
    if mode == "proximal":
        return 0.0, 1.0, False, 1.0 / (1.0 + lr * decay)
    share = h["lr"] / peak(settings.values["lr"]) if h["lr"] else 0.0
    return 0.0, 1.0 - (share if mode == "decoupled_unscaled" else lr * share) * decay, False, 1.0


def peak(lr: Any) -> float:
    """The largest learning rate of a schedule; a number is its own."""
    if not callable(lr):
        return float(lr)
    found = getattr(lr, "peak", None)
    if found is None:
        raise ValueError("lr: this decay_mode needs the schedule's largest value as its `peak`")
    return float(found)


def step_key(seed: int, t: int) -> int:
    """32 bits of a seed and a step, for the step's random numbers (splitmix64, Steele 2014)."""
    z, m = seed + t * 0x9E3779B97F4A7C15, 0xFFFFFFFFFFFFFFFF
    z = ((z & m) ^ (z & m) >> 30) * 0xBF58476D1CE4E5B9 & m
    z = (z ^ z >> 27) * 0x94D049BB133111EB & m
    return (z ^ z >> 31) >> 32
