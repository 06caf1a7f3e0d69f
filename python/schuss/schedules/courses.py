"""The courses that a schedule may take: constant pieces, slopes, waves, and their compounds."""
# ruff: noqa: N801  a schedule reads as a function

from __future__ import annotations

import math
import textwrap
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from schuss.checks import Interval, check_fields, check_int
from schuss.engine.declare import Number

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

FINITE = "(-inf, inf)"


class Schedule:
    """What all have in common."""

    def __call__(self, n: int) -> float:
        """The value of the step after n finished ones."""
        raise NotImplementedError

    @property
    def ends(self) -> tuple[float, ...]:
        """The values between which it runs up or down, without another turn."""
        raise NotImplementedError

    @property
    def peak(self) -> float:
        """The largest value."""
        return max(self.ends)

    @property
    def parts(self) -> tuple[Number, ...]:
        """The schedules that it is made of."""
        return ()


def ends(part: Number) -> tuple[float, ...]:
    """Those of a schedule, or a number; AttributeError for a callable that doesn't know them."""
    found: tuple[float, ...] = part.ends if callable(part) else (part,)  # type: ignore[attr-defined]
    return found


def at(part: Number, n: int) -> float:
    return part(n) if callable(part) else part


def sequence(name: str, values: Any, of: str) -> Sequence[Any]:
    """A sequence, or an array as one."""
    found = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise TypeError(f"{name}: {values!r} is not a sequence of {of}")
    return found


def numbers(name: str, values: Any) -> tuple[float, ...]:
    """Finite numbers, at least one."""
    values = sequence(name, values, "numbers")
    if not values:
        raise ValueError(f"{name}: none; wanted one more than boundaries")
    return tuple(Interval(FINITE).check(f"{name}[{i}]", v) for i, v in enumerate(values))


def number_or_callable(name: str, value: Any) -> Number:
    return value if callable(value) else Interval(FINITE).check(name, value)


def between(before: float, after: float, progress: float) -> float:
    """On half a cosine from one value to another."""
    return after + (before - after) * (1.0 + math.cos(math.pi * progress)) / 2.0


def climbed(value: float, n: int, steps: int) -> float:
    """On a linear warm-up to a value, which does not start at 0."""
    return value * (n + 1) / steps


# ---- Decays without an end


@dataclass(frozen=True)
class inverse_time(Schedule):
    """Falls with the inverse of the time: value/(1 + decay*n).

    value        the first one
    decay        in [0, inf)
    every        with staircase, how many steps long a stair is; without, in how many steps
                 1 + decay is reached: value/(1 + decay*n/every). Default 1
    staircase    n/every is rounded down, default False

    Source: Robbins and Monro 1951; PyTorch's Adagrad has it as lr_decay.
    """

    value: float
    decay: float
    every: int = 1
    staircase: bool = False

    def __post_init__(self) -> None:
        check_fields(self, value=FINITE, decay="[0, inf)", every=1, staircase=(False, True))

    @property
    def ends(self) -> tuple[float, ...]:
        return self.value, 0.0

    def __call__(self, n: int) -> float:
        time = n // self.every if self.staircase else n / self.every
        return self.value / (1.0 + self.decay * time)


@dataclass(frozen=True)
class inverse_sqrt(Schedule):
    """Falls with the inverse of the root of the time: value/sqrt(1 + decay*n).

    value    the first one
    decay    in [0, inf)

    `warmup(inverse_sqrt(value, 1/w), w)` is value*sqrt(w/n) from n = w on, as for transformers.

    Source: Koushik and Hayashi 2016, arXiv 1611.01505; Vaswani et al. 2017, arXiv 1706.03762,
    eq. 3.
    """

    value: float
    decay: float

    def __post_init__(self) -> None:
        check_fields(self, value=FINITE, decay="[0, inf)")

    @property
    def ends(self) -> tuple[float, ...]:
        return self.value, 0.0

    def __call__(self, n: int) -> float:
        return self.value / math.sqrt(1.0 + self.decay * n)


@dataclass(frozen=True)
class exponential(Schedule):
    """Falls by the same factor in each step: value*exp(-decay*n).

    value    the first one
    decay    in [0, inf); for PyTorch's gamma, -log(gamma)

    Source: Koushik and Hayashi 2016, arXiv 1611.01505.
    """

    value: float
    decay: float

    def __post_init__(self) -> None:
        check_fields(self, value=FINITE, decay="[0, inf)")

    @property
    def ends(self) -> tuple[float, ...]:
        return self.value, 0.0

    def __call__(self, n: int) -> float:
        return self.value * math.exp(-self.decay * n)


# ---- Stairs


@dataclass(frozen=True)
class step(Schedule):
    """Is multiplied by `factor` at every `every` steps: value*factor**floor(n/every).

    value     the first one
    every     steps, at least 1
    factor    in [0, 1], default 0.1

    Source: PyTorch's StepLR.
    """

    value: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, value=FINITE, every=1, factor="[0, 1]")

    @property
    def ends(self) -> tuple[float, ...]:
        return self.value, 0.0

    def __call__(self, n: int) -> float:
        return self.value * self.factor ** (n // self.every)


@dataclass(frozen=True)
class piecewise(Schedule):
    """One value after the other: values[0] before boundaries[0], values[i] from boundaries[i-1] on.

    values        one more than boundaries
    boundaries    numbers of finished steps, growing

    Keras' PiecewiseConstantDecay changes one step later: boundaries [3] here are its [2].

    Source: PyTorch's MultiStepLR, optax' piecewise_constant_schedule.
    """

    values: Sequence[float]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        values = numbers("values", self.values)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "boundaries", growing(self.boundaries, len(values) - 1, "values"))

    @property
    def ends(self) -> tuple[float, ...]:
        return tuple(self.values)

    def __call__(self, n: int) -> float:
        return self.values[bisect_right(self.boundaries, n)]


def growing(boundaries: Any, wanted: int, parts: str) -> tuple[int, ...]:
    """Boundaries, checked."""
    boundaries = sequence("boundaries", boundaries, "whole numbers")
    steps = tuple(check_int(f"boundaries[{i}]", b, 1) for i, b in enumerate(boundaries))
    if len(steps) != wanted:
        raise ValueError(
            f"boundaries: {len(steps)} of them; wanted {wanted}, one less than {parts}"
        )
    if any(a >= b for a, b in pairwise(steps)):
        raise ValueError(f"boundaries: {steps} don't grow")
    return steps


# ---- From one value to another


@dataclass(frozen=True)
class polynomial(Schedule):
    """Runs from `value` to `final` over `steps` steps, as a power of what is left of them.

        n < steps:   final + (value - final)*(1 - n/steps)**power
        after:       final

    value    the first one
    steps    at least 1
    power    in (0, inf), default 1
    final    default 0

    Source: PyTorch's PolynomialLR, Keras' PolynomialDecay.
    """

    value: float
    steps: int
    power: float = 1.0
    final: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, value=FINITE, steps=1, power="(0, inf)", final=FINITE)

    @property
    def ends(self) -> tuple[float, ...]:
        return self.value, self.final

    def __call__(self, n: int) -> float:
        left = 1.0 - min(1.0, n / self.steps)
        return self.final + (self.value - self.final) * math.pow(left, self.power)


@dataclass(frozen=True)
class linear(Schedule):
    """A straight line from `value` to `final` over `steps` steps, and `final` after them.

    value    the first one
    steps    at least 1
    final    default 0; it may be above value, as in a ramp

    Source: PyTorch's LinearLR, where value and final are factors of lr.
    """

    value: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, value=FINITE, steps=1, final=FINITE)

    @property
    def ends(self) -> tuple[float, ...]:
        return self.value, self.final

    def __call__(self, n: int) -> float:
        if n >= self.steps:
            return self.final
        return self.value + (self.final - self.value) * (n / self.steps)


@dataclass(frozen=True)
class cosine(Schedule):
    """Half a cosine from `value` down to `final` over `steps` steps, behind a linear warm-up.

        n < warmup:  value*(n + 1)/warmup
        n < steps:   final + (value - final)*(1 + cos(pi*(n - warmup)/(steps - warmup)))/2
        after:       final

    value    the peak
    steps    of the whole schedule, warm-up included
    warmup   steps of the warm-up, default 0; the first value is value/warmup, not 0
    final    default 0

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5.
    """

    value: float
    steps: int
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, value=FINITE, steps=1, warmup=0, final=FINITE)
        if self.warmup >= self.steps:
            raise ValueError(
                f"warmup: {self.warmup} is out of range; wanted 0 <= warmup < steps ({self.steps})"
            )

    @property
    def ends(self) -> tuple[float, ...]:
        return self(0), self.value, self.final

    def __call__(self, n: int) -> float:
        if n < self.warmup:
            return climbed(self.value, n, self.warmup)
        progress = min(1.0, (n - self.warmup) / (self.steps - self.warmup))
        return between(self.value, self.final, progress)


@dataclass(frozen=True)
class cosine_restarts(Schedule):
    """Half a cosine after the other, each from the top: warm restarts.

        final + (value - final)*shrink**i*(1 + cos(pi*m/length))/2

    at step m of cycle i, which has length = steps*growth**i steps.

    value     the peak of the first cycle
    steps     of the first cycle, at least 1
    growth    a whole number, at least 1: how many times longer the next cycle is, default 1
    shrink    in [0, 1]: how many times as high the next cycle is, default 1
    final     where each cycle ends, which it never reaches, default 0

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983.
    """

    value: float
    steps: int
    growth: int = 1
    shrink: float = 1.0
    final: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, value=FINITE, steps=1, growth=1, shrink="[0, 1]", final=FINITE)

    @property
    def ends(self) -> tuple[float, ...]:
        return self.value, self.final

    def __call__(self, n: int) -> float:
        cycle, m, length = 0, n, self.steps
        if self.growth == 1:
            cycle, m = divmod(n, length)
        while m >= length:
            cycle, m, length = cycle + 1, m - length, length * self.growth
        top = self.final + (self.value - self.final) * self.shrink**cycle
        return between(top, self.final, m / length)


@dataclass(frozen=True)
class one_cycle(Schedule):
    """Up to `value` and far down again over `steps` steps, each on half a cosine or a line.

        from value/div_factor at n = 0 to value at n = floor(rise*steps)
        to value/div_factor/final_div_factor at n = steps, and no further

    value               the peak
    steps               at least 2
    rise                share of the steps that go up, in (0, 1), default 0.3
    div_factor          in [1, inf), default 25
    final_div_factor    in [1, inf), default 1e4
    shape               "cosine" (default) or "linear"

    PyTorch's OneCycleLR counts both ends among its steps: its total_steps are steps + 1. The
    momentum that it moves the other way is, with up = floor(rise*steps),
    `chain([cosine(0.95, up, final=0.85), cosine(0.85, steps - up, final=0.95)], [up])`.

    Source: Smith and Topin 2017, arXiv 1708.07120; optax' cosine_onecycle_schedule.
    """

    value: float
    steps: int
    rise: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    shape: str = "cosine"

    def __post_init__(self) -> None:
        check_fields(self, value=FINITE, steps=2, rise="(0, 1)")
        check_fields(self, div_factor="[1, inf)", final_div_factor="[1, inf)")
        check_fields(self, shape=("cosine", "linear"))
        if self.up < 1:
            raise ValueError(f"rise: {self.rise} of {self.steps} steps is less than one step")

    @property
    def up(self) -> int:
        """The number of steps that go up."""
        return int(self.rise * self.steps)

    @property
    def ends(self) -> tuple[float, ...]:
        first = self.value / self.div_factor
        return first, self.value, first / self.final_div_factor

    def __call__(self, n: int) -> float:
        first, top, last = self.ends
        if n < self.up:
            before, after, progress = first, top, n / self.up
        else:
            before, after = top, last
            progress = min(1.0, (n - self.up) / (self.steps - self.up))
        if self.shape == "cosine":
            return between(before, after, progress)
        return before + (after - before) * progress


# ---- Put together


@dataclass(frozen=True)
class warmup(Schedule):
    """A linear climb in front of a schedule.

        n < steps:  schedule(0)*(n + 1)/steps
        after:      schedule(n - steps)

    schedule    a callable, or a number, which it then stays at
    steps       of the climb, at least 1; the first value is schedule(0)/steps, not 0

    Source: Goyal et al. 2017, arXiv 1706.02677, section 2.2.
    """

    schedule: Number
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", number_or_callable("schedule", self.schedule))
        check_fields(self, steps=1)

    @property
    def ends(self) -> tuple[float, ...]:
        return self(0), *ends(self.schedule)

    @property
    def parts(self) -> tuple[Number, ...]:
        return (self.schedule,)

    def __call__(self, n: int) -> float:
        if n < self.steps:
            return climbed(at(self.schedule, 0), n, self.steps)
        return at(self.schedule, n - self.steps)


@dataclass(frozen=True)
class chain(Schedule):
    """One schedule after the other, each from its own beginning.

        n < boundaries[0]:   schedules[0](n)
        n < boundaries[1]:   schedules[1](n - boundaries[0]), and so on

    schedules     callables, or numbers; one more than boundaries
    boundaries    numbers of finished steps, growing

    Its `peak` is the largest one of its schedules, whether the boundary lets that get there or not.

    Source: PyTorch's SequentialLR, optax' join_schedules.
    """

    schedules: Sequence[Number]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        given = sequence("schedules", self.schedules, "schedules")
        if not given:
            raise ValueError("schedules: none; wanted one more than boundaries")
        made = tuple(number_or_callable(f"schedules[{i}]", part) for i, part in enumerate(given))
        object.__setattr__(self, "schedules", made)
        object.__setattr__(self, "boundaries", growing(self.boundaries, len(made) - 1, "schedules"))

    @property
    def ends(self) -> tuple[float, ...]:
        return tuple(end for part in self.schedules for end in ends(part))

    @property
    def parts(self) -> tuple[Number, ...]:
        return tuple(self.schedules)

    def __call__(self, n: int) -> float:
        i = bisect_right(self.boundaries, n)
        return at(self.schedules[i], n - self.boundaries[i - 1] if i else n)


# ---- Momentum


@dataclass(frozen=True)
class momentum_ramp(Schedule):
    """A momentum that rises as long as gradients are large: min(value, 1 - (1 - start)/(k + 1)).

    k = floor(n/every). With the defaults, 0.5, 0.75, 0.833 ... every 250 steps.

    value    where it ends, in [0, 1), default 0.99
    every    steps, at least 1, default 250
    start    in [0, 1), default 0.5

    A linear one is `linear(0.5, steps, final=0.9)`. The learning rate goes with it: see `steady`.

    Source: Sutskever et al. 2013, ICML, eq. 5.
    """

    value: float = 0.99
    every: int = 250
    start: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self, value="[0, 1)", every=1, start="[0, 1)")
        if self.start > self.value:
            raise ValueError(f"start: {self.start} is above value ({self.value})")

    @property
    def ends(self) -> tuple[float, ...]:
        return self.start, self.value

    def __call__(self, n: int) -> float:
        return min(self.value, 1.0 - (1.0 - self.start) / (n // self.every + 1))


@dataclass(frozen=True)
class ema_warmup(Schedule):
    """The decay of a running mean that forgets its start: min(decay, 1 - (1 + n/gamma)^(-power)).

        opt = schuss.AdamW(params, ema=ema_warmup(0.9999))

    With a decay of 0.9999 from the first step on, the mean after 1000 steps is nine tenths of what
    the parameters were at the start. Here it is the parameter after the first step, and reaches
    back over some n/power steps, until `decay` is what limits it.

    decay    where it ends, in [0, 1], default 0.9999
    gamma    steps until the climb begins, above 0, default 1
    power    in (0, inf), default 2/3; 1 for short runs

    power=1 and decay=1 is the plain mean of all steps, as PyTorch's SWA takes it. gamma=9 and
    power=1 is n/(9 + n), TensorFlow's (1 + n)/(10 + n) one step later.

    Source: timm's ModelEmaV3 (use_warmup), and Karras et al. 2024, arXiv 2312.02696, on why the
    mean should reach back over a share of the run.
    """

    decay: float = 0.9999
    gamma: float = 1.0
    power: float = 2 / 3

    def __post_init__(self) -> None:
        check_fields(self, decay="[0, 1]", gamma="(0, inf)", power="(0, inf)")

    @property
    def ends(self) -> tuple[float, ...]:
        return 0.0, self.decay

    def __call__(self, n: int) -> float:
        return min(self.decay, 1.0 - math.pow(1.0 + n / self.gamma, -self.power))


@dataclass(frozen=True)
class steady(Schedule):
    """The learning rate with which a changing momentum changes no step: value*(1 - momentum(n)).

    A constant gradient builds the buffer up to 1/(1 - momentum) of itself. lr/(1 - momentum), the
    step that comes of it, is `value` all the time: from 0.9 to 0.99, lr falls to a tenth.

        ramp = momentum_ramp()
        opt = schuss.SGD(params, lr=steady(0.1, ramp), momentum=ramp)

    value       lr/(1 - momentum)
    momentum    the optimizer's: a callable, or a number

    Not for a momentum that is a mean (dampening, Adam), whose steps don't grow with it.

    Source: Goh 2017, distill.pub/2017/momentum; Polyak 1964.
    """

    value: float
    momentum: Number

    def __post_init__(self) -> None:
        check_fields(self, value=FINITE)
        object.__setattr__(self, "momentum", number_or_callable("momentum", self.momentum))

    @property
    def ends(self) -> tuple[float, ...]:
        return tuple(self.value * (1.0 - end) for end in ends(self.momentum))

    @property
    def parts(self) -> tuple[Number, ...]:
        return (self.momentum,)

    def __call__(self, n: int) -> float:
        return self.value * (1.0 - at(self.momentum, n))


# ---- Pictures


def draw(
    schedule: Callable[[int], float],
    steps: int,
    path: str | Path | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws the values of the first `steps` steps; returns matplotlib's axes.

    schedule    any callable of the number of finished steps
    steps       at least 1
    path        where the picture is saved; default None: nowhere
    ax          axes to draw into, of a picture with others; default None: new ones

    Wants matplotlib.
    """
    steps = check_int("steps", steps, 1)
    if ax is None:
        from matplotlib.figure import Figure  # noqa: PLC0415  an optional package

        ax = Figure(layout="constrained").subplots()
        ax.set(xlabel="finished steps", ylabel="value")
    name = textwrap.fill(repr(schedule), 80)
    ax.plot([schedule(n) for n in range(steps)], label=name, drawstyle="steps-post")
    ax.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0))  # beside no curve
    if path is not None:
        figure: Any = ax.figure
        figure.savefig(path)
    return ax
