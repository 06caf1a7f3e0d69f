"""A loss scale that follows the gradients."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["LossScale"]


@dataclass
class LossScale:
    """The factor of a loss whose 16-bit gradients shall neither vanish nor overflow.

        opt = schuss.SGD(params, grad_scale=scale, nonfinite="skip")
        loss = model(...) * float(scale);  opt.step(grads)

    A step whose gradients are not finite is skipped, and the scale multiplied by `backoff`; after
    `interval` good steps in a row it is multiplied by `growth`.

    init       in (0, inf), default 65536
    growth     above 1, default 2
    backoff    in (0, 1), default 0.5
    interval   good steps, at least 1, default 2000

    Needs `nonfinite="skip"`. Source: Micikevicius et al. 2018, arXiv 1710.03740, section 3.2.
    """

    init: float = 65536.0
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000
    value: float = field(init=False)
    good_steps: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        for name, fits in {
            "init": 0 < self.init < float("inf"),
            "growth": 1 < self.growth < float("inf"),
            "backoff": 0 < self.backoff < 1,
            "interval": isinstance(self.interval, int) and self.interval >= 1,
        }.items():
            if not fits:
                raise ValueError(f"{name}: {getattr(self, name)!r} is out of range")
        self.value = float(self.init)

    def __float__(self) -> float:
        return self.value

    def update(self, stepped: bool) -> None:
        """Follows a step that was done, or skipped."""
        if not stepped:
            self.value *= self.backoff
            self.good_steps = 0
            return
        self.good_steps += 1
        if self.good_steps == self.interval:
            self.value = min(self.value * self.growth, 2.0**127)
            self.good_steps = 0
