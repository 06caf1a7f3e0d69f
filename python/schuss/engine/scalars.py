"""What a step hands to a kernel: computed once, in double, for both backends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

from schuss import _core, reference
from schuss.checks import Interval
from schuss.engine.declare import DecayMode, Number, Pair
from schuss.engine.groups import Settings
from schuss.engine.rule import Rule
from schuss.reference.storage import traits
from schuss.reference.sums import WANTED, Sums

DECAY_MODES: tuple[str, ...] = get_args(DecayMode)

KERNELS = tuple(name for name, *_ in _core.rules())
NUMBERS = {name: number for number, name in enumerate(KERNELS)}


def scalar_names(kernel: str) -> tuple[str, ...]:
    """The members of a kernel's struct, in order: the keyword arguments of its reference."""
    code = getattr(reference, kernel).__code__
    return tuple(code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount])


NAMES = {kernel: scalar_names(kernel) for kernel in KERNELS}
TRAITS = {kernel: traits(getattr(reference, kernel)) for kernel in KERNELS}

if _core.stages() != [(k, float(v)) for k, v in reference.Stages._field_defaults.items()]:
    raise ImportError("the stages of kernels and reference differ in names, order or idle values")
if _core.measured() != WANTED:
    raise ImportError("the sums that kernels and reference measure differ in names or bits")


DECAY = Interval("[0, 1]")  # what a schedule may say of a running mean


class Options(NamedTuple):
    """The optimizer's options that its scalars depend on."""

    ema: Number | None = None
    stochastic_rounding: bool = False
    seed: int = 0
    subnormals: str = "zero"
    zero_grad: bool = False


# What they make of weight_decay, among the stages, from h, the rate that it goes by, and itself.
# "after" is SOAP's.
DECAYS: dict[str, Callable[[Mapping[str, Any], float, float], dict[str, float]]] = {
    "l2": lambda h, rate, decay: {"l2": h["l2"] + decay},
    "decoupled": lambda h, rate, decay: {"keep": 1.0 - rate * decay},
    "decoupled_unscaled": lambda h, rate, decay: {"keep": 1.0 - rate * decay},
    "corrected": lambda h, rate, decay: {"keep": 1.0 - rate * decay},
    "proximal": lambda h, rate, decay: {"after": 1.0 / (1.0 + rate * decay)},
    "masked": lambda h, rate, decay: {"keep": 1.0 - rate * decay, "masked": 1.0},
    "after": lambda h, rate, decay: {"after": 1.0 - rate * decay},
}


class Part:
    """From the hyperparameters of a group to the scalars of its arrays, step by step."""

    def __init__(self, settings: Settings, decays: bool, options: Options, case: int) -> None:
        rule = settings.rule
        self.rule = rule
        self.f: Callable[..., dict[str, float]] = rule.scalars
        self.adapt = rule.adapt if settings.form.sums else None
        self.is_cautious = bool(settings.values["cautious"])
        self.refuses_rows = rule.refuses_rows(settings.values)
        self.kernel = NUMBERS[settings.kernel]
        self.names = NAMES[settings.kernel]
        self.lr = settings.values["lr"]
        self.decays = decays
        self.in_case = None if rule.in_case is Rule.in_case else rule.in_case
        self.case = case
        mode = settings.values["decay_mode"]
        self.decayed = DECAYS.get(mode)
        self.follows_peak = mode in ("decoupled_unscaled", "corrected")
        self.options = options
        self.ema = options.ema if callable(options.ema) else None
        self.steady = not self.ema
        self.constant: dict[str, float] = {}
        if not (options.ema is None or callable(options.ema)):
            self.constant["average"] = 1.0 - options.ema
        if options.subnormals == "keep":
            self.constant["flush"] = 0.0
        if options.zero_grad:
            self.constant["zero_grad"] = 1.0
        if options.stochastic_rounding:
            self.constant["stochastic"] = 1.0
        bounds = settings.values["bounds"]
        if not (bounds is None or Pair.has_arrays(bounds)):  # arrays lie beside the parameters
            self.constant["low"], self.constant["high"] = bounds
        self.maximizes = settings.values["maximize"]

    def __call__(
        self, h: Mapping[str, Any], t: int, scale: float, memory: Mapping[str, float]
    ) -> tuple[dict[str, float], dict[str, float], bool, Mapping[str, Any]]:
        """The scalars of an array's step t, counted from 1: the rule's, and the stages' not idle.

        A rule whose rate is not the group's lr says so as its `decay_rate`; and it may have a
        `keep` among its scalars, and an `after`, in place of those of the weight decay. Last come
        whether the rule's scalars are all that depends on t, and the h that they were taken from.
        """
        if not self.decays:
            h = {**h, "weight_decay": 0.0}
        if self.in_case:
            h = self.in_case(h, self.case)
        own = self.f(h, t, memory)
        lr = own.get("decay_rate", h["lr"])
        stages = {**self.constant, "scale": -scale if self.maximizes else scale}
        if h["clip_value"] != math.inf:
            stages["clip"] = h["clip_value"]
        if l2 := h["l2"]:
            stages["l2"] = l2
        if l1 := h["l1"]:
            prox = h["l1_mode"] == "prox"
            stages["threshold" if prox else "l1"] = lr * l1 if prox else l1
        stages |= self.decay(h, lr)
        steady = self.steady
        if "keep" in own:
            stages["keep"], stages["after"] = own["keep"], own.get("after", 1.0)
            steady = False
        if self.ema:
            decay = DECAY.check(f"ema after {t - 1} steps", self.ema(t - 1))
            stages["average"] = 1.0 - decay
        return own, stages, steady and lr is h["lr"], h

    def decay(self, h: Mapping[str, Any], lr: float) -> dict[str, float]:
        """What the weight decay's mode makes of it, among the stages."""
        decay = h["weight_decay"]
        if decay == 0 or self.decayed is None:
            return {}
        if self.follows_peak:
            largest = peak(self.lr) if callable(self.lr) else h["lr"]
            share = h["lr"] / largest if h["lr"] else 0.0
            lr = share if h["decay_mode"] == "decoupled_unscaled" else lr * share
        return self.decayed(h, lr, decay)

    def fade(self, h: Mapping[str, Any], missed: int) -> dict[str, float]:
        """What so many steps without a gradient would have done to a row, among the stages."""
        require_closed_form(self.rule, h)
        keep = self.decay(h, h["lr"]).get("keep", 1.0)
        return self.rule.faded(h, missed, keep)

    def caution(self, h: dict[str, Any], sums: Sums) -> float:
        """The factor of an update's elements whose sign is the gradient's; the others become 0."""
        if h["cautious"] == "plus1":
            return sums.size / (sums.agree + 1.0)
        return 1.0 / max(sums.agree / sums.size, 1e-3) if sums.size else 1.0


def require_rows(settings: Settings, mode: str, has_ema: bool) -> None:
    """Raises where rows of these settings can't be counted."""
    rule = settings.rule
    why = rule.refuses_rows(settings.values)
    if settings.values["cautious"]:
        why = "cautious looks at whole arrays"
    if rule.memory or rule.shared:
        why = f"{rule.__name__} remembers numbers beside whole arrays"
    if mode == "decayed" and has_ema:
        why = "ema has no closed form for them"
    if why:
        raise ValueError(f"rows: {mode!r} is for rows by themselves, but {why}")
    if mode == "decayed":
        require_closed_form(rule, settings.values)


def require_closed_form(rule: type[Rule], h: Mapping[str, Any]) -> None:
    """Raises where steps without a gradient can't be made up for at once."""
    why = ""
    if rule.faded is Rule.faded:
        why = f"{rule.__name__} has no closed form for them"
    elif h["l2"] or h["l1"]:
        why = "l2 and l1 pull at x in each of them"
    elif h["weight_decay"] and h["decay_mode"] != "decoupled":
        why = f'of the weight decays it has the "decoupled" alone, not {h["decay_mode"]!r}'
    elif h["bounds"] is not None:
        why = "bounds hold x in each of them"
    if why:
        raise ValueError(f'rows: "decayed" makes up for steps without a gradient, but {why}')


class Fixed:
    """Scalars that are what they are: a Part for steps that belong to no rule."""

    def __init__(self, kernel: str, own: dict[str, float], stages: dict[str, float]) -> None:
        self.kernel, self.names = NUMBERS[kernel], NAMES[kernel]
        self.own, self.stages = own, stages
        self.f = self.adapt = None
        self.is_cautious = False
        self.refuses_rows = ""

    def __call__(self, h: Any, t: int, scale: float, memory: Any) -> tuple[Any, ...]:
        return self.own, self.stages, False, h


def peak(lr: Any) -> float:
    """The largest learning rate of a schedule."""
    found = getattr(lr, "peak", None)
    if found is None:
        raise ValueError("lr: this decay_mode needs the schedule's largest value as its `peak`")
    return float(found)


def seed_key(seed: int) -> int:
    """32 bits of a seed, for the dither (splitmix64, Steele 2014)."""
    m = 0xFFFFFFFFFFFFFFFF
    z = ((seed & m) ^ (seed & m) >> 30) * 0xBF58476D1CE4E5B9 & m
    z = (z ^ z >> 27) * 0x94D049BB133111EB & m
    return (z ^ z >> 31) >> 32
