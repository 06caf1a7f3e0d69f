"""Descent along the gradient, or along a sum of the gradients so far."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from schuss import _core
from schuss.engine.declare import REQUIRED, DecayMode, Number, choice, number
from schuss.engine.optimizer import Optimizer
from schuss.engine.rule import Numbers, Values
from schuss.engine.structure import described, label
from schuss.reference.storage import computing, widened


def sum_of_powers(mu: float, keep: float, n: int) -> float:
    """The sum of mu^i*keep^(n - i) for i from 1 to n."""
    if mu == keep:
        return n * mu**n
    return mu * (keep**n - mu**n) / (keep - mu)


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and Nesterov's step.

        x = x - lr*g                        without momentum, else
        b = mu*b + (1 - dampening)*g        b = g in the first step of an array
        x = x - lr*b                        nesterov: x = x - lr*(g + mu*b)

    lr              learning rate, in [0, inf), default 1e-3
    momentum        mu, in [0, inf), default 0: no buffer
    dampening       in (-inf, inf), default 0
    nesterov        False (default); True: the step above, of the gradient at x, which then stands
                    for the point looked ahead to; "lookahead": the step without nesterov, but of
                    the gradient at the point that `lookahead` gives. ValueError without momentum,
                    or with dampening
    lr_in_buffer    False (default): lr stands as above; True: b = mu*b + lr*(1 - dampening)*g,
                    x = x - b, nesterov: x = x - (lr*g + mu*b); "both": in both places, so that the
                    step has lr^2
    first_step      "copy" (default): b = g in the first step; "accumulate": damped, as later
    lookahead_coef  what `lookahead` takes in place of mu, in [0, inf), default None: mu
    weight_decay    in [0, inf), default 0
    decay_mode      "l2" (default), or another: see Optimizer

    State: momentum_buffer (b), with momentum. Options of every rule: see Optimizer.
    Traps: lr in the buffer or outside is the same while lr is constant, and only then. A steady
    gradient moves x by lr*g/(1 - mu): from momentum 0.9 to 0.99 wants a tenth of lr. With
    nesterov=True, x is what `lookahead` gives with "lookahead", and not the x of that. A zero
    gradient moves x with momentum only.
    Source: Robbins and Monro 1951; Polyak 1964; Nesterov 1983, as reformulated by Sutskever et al.
    2013, section 2, and Bengio et al. 2012, arXiv 1212.0901.
    """

    states: ClassVar = {
        "sgd": (),
        "momentum": ("momentum_buffer",),
        "nesterov": ("momentum_buffer",),
    }
    presets: ClassVar = {
        "torch": {},
        "keras": {"lr": 0.01, "lr_in_buffer": True, "decay_mode": "decoupled"},
        "optax": {"lr": REQUIRED},
        "flower": {"lr": 1.0, "maximize": True},
        "article": {"lr": 0.01, "lr_in_buffer": True},
        "tutorial": {"lr": 0.1},
        "course": {"lr_in_buffer": "both"},
    }
    lr: Number = number("[0, inf)", default=1e-3)
    momentum: Number = number("[0, inf)", default=0.0)
    dampening: Number = number("(-inf, inf)", default=0.0)
    nesterov: bool | Literal["lookahead"] = choice(default=False)
    lr_in_buffer: bool | Literal["both"] = choice(default=False)
    first_step: Literal["copy", "accumulate"] = choice(default="copy")
    lookahead_coef: Number | None = number("[0, inf)", default=None)
    weight_decay: Number = number("[0, inf)", default=0.0)
    decay_mode: DecayMode = choice(default="l2")

    @staticmethod
    def kernel(h: Values) -> str:
        if h["nesterov"] and (not h["momentum"] or h["dampening"]):
            given = f"momentum={h['momentum']!r}, dampening={h['dampening']!r}"
            raise ValueError(f"nesterov: needs momentum > 0 and dampening = 0, got {given}")
        if h["nesterov"] is True:
            return "nesterov"
        return "momentum" if h["momentum"] else "sgd"

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        lr, inside = h["lr"], h["lr_in_buffer"]
        a, s = lr if inside else 1.0, 1.0 if inside is True else lr
        undamped = t == 1 and h["first_step"] == "copy"
        w = a if undamped else a * (1.0 - h["dampening"])
        return {"lr": s * a, "mu": h["momentum"], "w": w, "a": a, "s": s}

    @staticmethod
    def faded(h: Values, missed: int, keep: float) -> dict[str, float]:
        mu, fade = h["momentum"], keep**missed
        if not mu:
            return {"fade_x": fade}
        # x = keep*x - s*mu^i*b in the i-th of them, of which the sum is a geometric one.
        moved = sum_of_powers(mu, keep, missed) * (1.0 if h["lr_in_buffer"] is True else h["lr"])
        if h["nesterov"] is True:
            moved *= mu
        return {"fade_x": fade, "drift": moved, "fade_0": mu**missed}

    def lookahead(self, out: Any = None) -> Any:
        """Writes the point at which to take the gradient of the coming step.

            out = x - k*b       k = mu, times lr where lr stands outside the buffer

        out   arrays like params, in the same structure; not given: new ones

        Returns `out`; the parameters stay as they are. Raises ValueError where nesterov is not
        "lookahead", and where an array of `out` is not like its parameter, is read-only or overlaps
        an array of the optimizer; nothing has changed then.
        """
        if any(group["nesterov"] != "lookahead" for group in self.param_groups):
            raise ValueError('nesterov: lookahead is for nesterov="lookahead"')
        out = self.empty_like_params() if out is None else out
        with self._lock:
            self._write_lookahead(self._gather(out, "out"))
        return out

    def _write_lookahead(self, targets: list[Any]) -> None:
        """Writes the point looked ahead to, once all targets have been checked."""
        h = [group.settings.at(self.iterations) for group in self.param_groups]
        plan = _core.Plan()  # all of them together, since none may overlap another
        for p, target in zip(self._parameters, targets, strict=True):
            name = label("out", p.name)
            if described(target) != p.kind:
                raise ValueError(f"{name}: {described(target)}, wanted {p.kind}")
            plan.add(p.labels(), p.x, p.keeps(), None, p.group, p.decays, [], 0, p.position)
            plan.add([name, ""], target, [], None, p.group, p.decays, [], 0, p.position)
        plan.require_disjoint()
        for p, target in zip(self._parameters, targets, strict=True):
            own, (b,) = h[p.group], p.state.values()
            k = own["momentum"] if own["lookahead_coef"] is None else own["lookahead_coef"]
            if own["lr_in_buffer"] is not True:
                k *= own["lr"]
            number = computing(p.x.dtype)
            target[...] = p.weight - number(k) * widened(b, number)


class Momentum(SGD):
    """Gradient descent with momentum: SGD, whose default for momentum is 0.9.

    momentum   mu, in [0, inf), default 0.9

    Everything else as SGD. A zero gradient still moves x.
    Source: Polyak 1964.
    """

    presets: ClassVar = {
        **SGD.presets,
        "article": {"lr_in_buffer": True},
        "tutorial": {"lr": 0.8, "momentum": 0.5},
    }
    momentum: Number = number("[0, inf)", default=0.9)


class NAG(Momentum):
    """Nesterov's accelerated gradient: SGD, whose defaults are momentum=0.9 and nesterov=True.

    nesterov   True (default); "lookahead": the gradient is taken at the point of `lookahead`; or
               False, which leaves momentum

    Everything else as SGD. A zero gradient still moves x.
    Source: Nesterov 1983; Sutskever et al. 2013, section 2.
    """

    # The article looks ahead by the whole buffer; the course's look-ahead wants the rate inside it.
    presets: ClassVar = {
        "torch": {},
        "keras": SGD.presets["keras"],
        "optax": SGD.presets["optax"],
        "paper": {"nesterov": "lookahead", "lr_in_buffer": True},
        "article": {"nesterov": "lookahead", "lr_in_buffer": True, "lookahead_coef": 1.0},
        "course": {"nesterov": "lookahead", "lr_in_buffer": True},
    }
    nesterov: bool | Literal["lookahead"] = choice(default=True)
