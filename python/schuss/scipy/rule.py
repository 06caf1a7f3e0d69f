"""Every update rule as a minimiser."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from inspect import getdoc
from textwrap import indent
from typing import Any, ClassVar

import numpy as np
import scipy.optimize  # type: ignore[import-untyped]

from schuss.engine.optimizer import Optimizer, signature
from schuss.engine.points import asked, reached
from schuss.scipy.augmented import AugmentedLagrangian
from schuss.scipy.method import Method, listed
from schuss.scipy.problem import Point, Problem
from schuss.scipy.values import Array, same

# Options of every optimizer that mean nothing here, or would change what the result is said to be.
NOT_HERE = {
    "params": "the parameters are x0",
    "grads": "the gradients come from jac",
    "zero_grad": "the gradients are part of the result",
    "ema": "the result is x",
}


class RuleMethod(Method):
    """A rule whose steps start at x0, in float64, until the gradient is small.

    projection   a function that moves the array it is given to the nearest point that is allowed,
                 in place, such as schuss.projections.simplex; it runs after each step. Default None
    options      of the rule and of every optimizer, but not params, grads, zero_grad or ema.
                 bounds may be passed here or to minimize

    Of a rule that averages its points, as ASGD and the Schedule-Free ones do, x is the average, and
    gradients are taken where the rule wants them. With bounds or a projection, which the average
    need not obey, x is where the steps themselves have come to.

    A rule that reads the loss gets fun; a schedule that follows a metric gets fun less its value at
    the start, so that a constant changes nothing: a relative threshold is a share of what has been
    gained. ftol, xtol and gtol look at fun alone, without what l1, l2 or weight_decay add to it.
    With constraints, and where maximize isn't set, AugmentedLagrangian() runs over it, whose rounds
    restart the rule.
    """

    rule: ClassVar[type[Optimizer]]
    maxiter = 10_000
    takes_bounds = True

    def __init__(self, *, projection: Callable[[Array], Any] | None = None, **options: Any) -> None:
        for name in NOT_HERE.keys() & options.keys():
            raise TypeError(f"{name}: unknown; {NOT_HERE[name]}")
        self.projection = projection
        self.bounds = options.pop("bounds", None)
        self.options = options
        self.rule(np.zeros(1), **options)  # now is the time to say that an option is wrong
        if not (projection is None or callable(projection)):
            raise TypeError(f"projection: {projection!r} is no function of an array")

    def __call__(self, fun: Callable[..., Any], x0: Any, args: Any = (), **more: Any) -> Any:
        """Minimises; the arguments as SciPy passes them, its options by keyword."""
        constraints = listed(more.pop("constraints", ()))
        if self.bounds is not None:
            if more.get("bounds") is not None:
                raise ValueError("bounds: given to the rule and to minimize; choose one of the two")
            more["bounds"] = scipy.optimize.Bounds(*self.bounds)
        if constraints:
            own = ("maxiter", "ftol", "xtol")
            options = {key: more.pop(key) for key in own if key in more}
            bare = type(self)(projection=self.projection, **self.options)
            return AugmentedLagrangian(bare, options=options)(
                fun, x0, args, constraints=constraints, **more
            )
        return super().__call__(fun, x0, args, **more)

    def __repr__(self) -> str:
        given = {"projection": self.projection, "bounds": self.bounds}
        own = {k: v for k, v in given.items() if v is not None} | self.options
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in own.items())})"

    def iterates(self, p: Problem, gtol: float) -> Iterator[Point]:
        x = self.project(p, p.x0.copy())
        options = copy.deepcopy(self.options)  # a schedule that follows fun is this run's own
        opt = self.rule(x, bounds=(p.low, p.high) if p.bounded else None, **options)
        observes, start = bool(opt._observers()), None
        free = not p.bounded and self.projection is None
        while True:
            to = reached(opt, x) if free else x.copy()
            at = self.project(p, asked(opt, x))  # a point ahead may lie beyond
            value, gradient = p.finite_value(to), p.finite_gradient(at)
            point = Point(to, value, None, self.sign * gradient)
            if same(to, at):
                self.complete(p, point)
            yield point
            opt.step(gradient, loss=point.fun)
            start = point.fun if start is None else start
            if observes:
                opt.observe(point.fun - start)
            if self.projection is not None:
                self.projection(x)

    def complete(self, p: Problem, point: Point) -> None:
        super().complete(p, point)
        point.slope = self.sign * point.slope

    @property
    def sign(self) -> float:
        """Of the way down the function."""
        return -1.0 if self.options.get("maximize") else 1.0

    def project(self, p: Problem, x: Array) -> Array:
        inside = super().project(p, x)
        if self.projection is not None:
            inside = inside.copy()
            self.projection(inside)
        return inside


def as_method(rule: type[Optimizer], module: str) -> type[RuleMethod]:
    """The method of a rule, with what `help` shows."""
    more = {name: d for name, d in rule.defaults().items() if name not in NOT_HERE}
    text = (
        f"The rule schuss.{rule.__name__} as a minimiser: see there for its options.\n"
        f"\n{indent(getdoc(RuleMethod) or '', '    ')}\n"
    )
    return type(
        rule.__name__,
        (RuleMethod,),
        {
            "rule": rule,
            "__doc__": text,
            "__module__": module,
            "__signature__": signature(
                {}, {"projection": None, "preset": None, "no_decay": None, **more}
            ),
        },
    )
