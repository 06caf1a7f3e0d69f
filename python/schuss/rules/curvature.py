"""Steps divided by an estimate of the curvature, which the caller brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from schuss import _core
from schuss.engine.backend import Numpy
from schuss.engine.declare import REQUIRED, DecayMode, Number, choice, flag, number, numbers
from schuss.engine.groups import Parameter
from schuss.engine.guard import one_at_a_time
from schuss.engine.optimizer import Optimizer
from schuss.engine.rule import Numbers, Values
from schuss.engine.scalars import Fixed, Options
from schuss.engine.step import Recipe
from schuss.engine.structure import label
from schuss.rules.adam import corrections


class Sophia(Optimizer):
    """A running mean of the gradients over one of the Hessian's diagonal, bounded by 1.

        m = m + (1 - beta1)*(g - m)
        x = x - lr*clamp(m/(max(rho*bs*h, 0) + eps), -1, 1)
        h = beta2*h + (1 - beta2)*hhat      by `update_hessian(hhat)`, every 10 steps or so

    lr                learning rate, in [0, inf), default 1e-4
    betas             (beta1, beta2), each in [0, 1), default (0.965, 0.99)
    rho               in [0, inf), default 0.04
    bs                in [0, inf), default 5120: the tokens of a batch, where hhat is the square of
                      a gradient of labels that the model itself has drawn (Sophia-G); 1, where
                      hhat is Hutchinson's estimate (Sophia-H)
    eps               in [0, inf), default 1e-15
    weight_decay      in [0, inf), default 0.1
    eps_mode          "outside" (default): as above; "clamp": max(rho*bs*h, eps)
    bias_correction   m/(1 - beta1^t) in place of m, default False
    decay_mode        "decoupled" (default), or another: see Optimizer

    State: exp_avg (m), hessian (h). Options of every rule: see Optimizer.
    Traps: until the first `update_hessian`, and wherever h is not above 0, the step is lr*sign(m).
    A zero gradient still moves x. With eps = 0 an element whose gradients have all been 0 becomes
    NaN.
    Source: Liu et al. 2023, arXiv 2305.14342, algorithm 3; rho, bs and eps as in the authors' code.
    """

    states: ClassVar = {"sophia": ("exp_avg", "hessian")}
    presets: ClassVar = {
        "optax": {
            "lr": REQUIRED,
            "rho": 0.01,
            "bs": 1.0,
            "eps": 1e-8,
            "weight_decay": 1e-4,
            "eps_mode": "clamp",
            "bias_correction": True,
        },
        "paper": {
            "betas": (0.96, 0.99),
            "rho": 0.01,
            "bs": 1.0,
            "eps": 1e-12,
            "weight_decay": 0.2,
            "eps_mode": "clamp",
        },
    }
    lr: Number = number("[0, inf)", default=1e-4)
    betas: tuple[Number, Number] = numbers("[0, 1)", default=(0.965, 0.99))
    rho: Number = number("[0, inf)", default=0.04)
    bs: Number = number("[0, inf)", default=5120.0)
    eps: Number = number("[0, inf)", default=1e-15)
    weight_decay: Number = number("[0, inf)", default=0.1)
    eps_mode: Literal["outside", "clamp"] = choice(default="outside")
    bias_correction: bool = flag(default=False)
    decay_mode: DecayMode = choice(default="decoupled")

    @staticmethod
    def kernel(h: Values) -> str:
        return "sophia"

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        outside = h["eps_mode"] == "outside"
        return {
            "w1": 1.0 - h["betas"][0],
            "cm": 1.0 / corrections(h, t)[0] if h["bias_correction"] else 1.0,
            "rho": h["rho"] * h["bs"],
            "least": 0.0 if outside else h["eps"],
            "eps": h["eps"] if outside else 0.0,
            "lr": h["lr"],
        }

    @one_at_a_time
    def update_hessian(self, hhat: Any) -> None:
        """Takes an estimate of the Hessian's diagonal into its running mean.

        hhat   in the structure of params, None where there is none: that mean stays

        Everything is validated before anything changes. Raises TypeError or ValueError that name
        the array.
        """
        means = [
            Parameter(p.name, p.state["hessian"], None, {}, {}, p.group, True, p.position)
            for p in self._parameters
        ]
        betas = [group.settings.at(self.iterations)["betas"][1] for group in self._groups]
        backend = None if self.backend == "compiled" else Numpy(means)
        plan = _core.Plan()
        for p in means:
            labels = [f'{label("state", p.name)}["hessian"]', label("hhat", p.name)]
            plan.add(labels, p.x, [], None, p.group, p.decays, [], 0, p.position)
        plan.require_disjoint()
        plan.serve(
            None, lambda: Mean(self._groups, Options(), backend=backend, betas=betas), in_order
        )
        plan.expect([list(range(len(means)))])
        plan.step(self._gather(hhat, "hhat"), None, None, None)


def in_order(values: Any, role: str) -> tuple[Any, None]:
    """Estimates as they are, which the step then finds fault with."""
    return values, None


@dataclass
class Mean(Recipe):
    """A step in which h takes x's place in gradient descent: h = beta*h - (beta - 1)*hhat."""

    betas: Sequence[float] = ()

    def part(self, group: int, decays: bool, case: int) -> Any:
        beta = self.betas[group]
        return Fixed("sgd", {"lr": beta - 1.0}, {"keep": beta})
