"""Minimisers for `scipy.optimize.minimize`: every rule, and methods that are no rules.

    scipy.optimize.minimize(fun, x0, jac=grad, method=schuss.scipy.Adam(lr=0.1))

Each is a class that takes its own options; those of `minimize` are in SciPy's style. Needs SciPy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import scipy.optimize  # type: ignore[import-untyped]
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "minimize: needs SciPy: pip install 'schuss[scipy]'", name=error.name
    ) from error

from schuss import rules
from schuss.checks import unknown
from schuss.engine.optimizer import Optimizer
from schuss.scipy.adagrad import FullAdagrad
from schuss.scipy.augmented import AugmentedLagrangian
from schuss.scipy.conjugate import ConjugateGradient
from schuss.scipy.kkt import KKT
from schuss.scipy.method import Method, listed
from schuss.scipy.newton import Newton
from schuss.scipy.rule import RuleMethod, as_method


def minimize(
    fun: Callable[..., Any],
    x0: Any,
    args: Any = (),
    method: Any = None,
    jac: Any = None,
    hess: Any = None,
    hessp: Any = None,
    bounds: Any = None,
    constraints: Any = (),
    tol: float | None = None,
    callback: Callable[..., Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """`scipy.optimize.minimize`, which knows our methods by name, too.

    method   a method of schuss.scipy, such as Adam(lr=0.1); the name of one, such as "adam" or
             "kkt", or the class, for its defaults; or what SciPy takes, which is passed on to it.
             Default None: with constraints "kkt", where all are equalities and there are no bounds,
             or "augmentedlagrangian"; with a Hessian and no bounds Newton, saddle-free and with
             backtracking; else what SciPy chooses

    All else as in SciPy; schuss.scipy.Method tells the options and the result, in which are
    `multipliers` where there are constraints. Raises TypeError where an option is unknown.
    """
    chosen = chosen_method(method, hess, hessp, bounds, constraints)
    if not isinstance(chosen, Method):
        try:
            return scipy.optimize.minimize(
                fun, x0, args, chosen, jac, hess, hessp, bounds, constraints, tol, callback, options
            )
        except ValueError as error:
            if not str(error).startswith("Unknown solver"):
                raise
            where = "schuss.scipy and scipy.optimize.minimize tell which there are"
            raise ValueError(f"method: {unknown(method, METHODS, where)}") from None
    return chosen(
        fun,
        x0,
        args,
        jac=jac,
        hess=hess,
        hessp=hessp,
        bounds=bounds,
        constraints=constraints,
        tol=tol,
        callback=callback,
        **(options or {}),
    )


def chosen_method(method: Any, hess: Any, hessp: Any, bounds: Any, constraints: Any) -> Any:
    """The method that is meant, or what SciPy is to make of it."""
    rule = method if isinstance(method, type) else type(method)
    if issubclass(rule, Optimizer):
        name = rule.__name__
        raise TypeError(f"method: schuss.{name} steps arrays; wanted schuss.scipy.{name}(lr=...)")
    if method is None and listed(constraints):
        alone = bounds is None and all(map(is_equality, listed(constraints)))
        method = KKT if alone else AugmentedLagrangian
    elif method is None and bounds is None and (hess is not None or hessp is not None):
        method = Newton(saddle_free=True, backtracking=True)
    if isinstance(method, str):
        method = METHODS.get(method.lower().replace("-", ""), method)
    return method() if isinstance(method, type) and issubclass(method, Method) else method


def is_equality(constraint: Any) -> bool:
    """Whether a constraint leaves no interval."""
    if isinstance(constraint, dict):
        return str(constraint.get("type")).lower() == "eq"
    return bool(np.all(np.equal(getattr(constraint, "lb", 0), getattr(constraint, "ub", 1))))


if not TYPE_CHECKING:  # to a type checker it would make every name one of ours

    def __getattr__(name: str) -> type[RuleMethod]:
        """Only reached for what is no method."""
        raise AttributeError(f"schuss.scipy has no {name!r}; it has {', '.join(__all__)}")


# The methods of the rules, for type checkers.
SGD: type[RuleMethod]
Momentum: type[RuleMethod]
NAG: type[RuleMethod]
Adagrad: type[RuleMethod]
RMSprop: type[RuleMethod]
Adadelta: type[RuleMethod]
Ftrl: type[RuleMethod]
Adam: type[RuleMethod]
AdamW: type[RuleMethod]
Adamax: type[RuleMethod]
NAdam: type[RuleMethod]
NAdamW: type[RuleMethod]
RAdam: type[RuleMethod]
Eve: type[RuleMethod]
AdaBelief: type[RuleMethod]
Yogi: type[RuleMethod]
LaProp: type[RuleMethod]
ADOPT: type[RuleMethod]
Grams: type[RuleMethod]
AdEMAMix: type[RuleMethod]
Adan: type[RuleMethod]
Sophia: type[RuleMethod]
SignSGD: type[RuleMethod]
Signum: type[RuleMethod]
Lion: type[RuleMethod]
Rprop: type[RuleMethod]
DeltaBarDelta: type[RuleMethod]
ASGD: type[RuleMethod]
ScheduleFreeSGD: type[RuleMethod]
ScheduleFreeAdamW: type[RuleMethod]
LARS: type[RuleMethod]
LAMB: type[RuleMethod]
StableAdamW: type[RuleMethod]
Adafactor: type[RuleMethod]
MARS: type[RuleMethod]
Prodigy: type[RuleMethod]
DAdaptAdam: type[RuleMethod]

RULES = {rule.__name__: as_method(rule, __name__) for rule in rules.RULES}
globals().update(RULES)
__all__ = [
    "KKT",
    "AugmentedLagrangian",
    "ConjugateGradient",
    "FullAdagrad",
    "Method",
    "Newton",
    "RuleMethod",
    "minimize",
]
OTHERS = (Newton, ConjugateGradient, FullAdagrad, KKT, AugmentedLagrangian)
METHODS = {m.__name__.lower(): m for m in (*RULES.values(), *OTHERS)}
__all__ += list(RULES)
