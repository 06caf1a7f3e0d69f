"""The door to scikit-learn: its multi-layer perceptrons, stepped by our rules.

    from schuss.sklearn import MLPClassifier

    MLPClassifier((512, 256), batch_size=32).fit(x, y)      # scikit-learn's, with another step

    with schuss.sklearn.accelerate():                       # or scikit-learn's own classes
        network.fit(x, y)

The gradients are scikit-learn's. Needs scikit-learn: pip install 'schuss[sklearn]'.
"""

from __future__ import annotations

import copyreg
import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from schuss.engine.optimizer import Optimizer
from schuss.engine.rule import RuleType
from schuss.rules import ASGD, RULES, SGD, Adam, Eve, ScheduleFreeAdamW, ScheduleFreeSGD, matrix

Arrays = list[np.ndarray]

__all__ = ["MLPClassifier", "MLPRegressor", "accelerate"]


# ---- What of scikit-learn is touched

try:
    import sklearn  # type: ignore[import-untyped]
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "schuss.sklearn: needs scikit-learn: pip install 'schuss[sklearn]'", name=missing.name
    ) from missing

try:  # all that is private there is in these lines, and in `Networks`
    from sklearn.neural_network import (  # type: ignore[import-untyped]
        _multilayer_perceptron as perceptron,
    )
    from sklearn.neural_network._multilayer_perceptron import (  # type: ignore[import-untyped]
        AdamOptimizer,
        BaseMultilayerPerceptron,
        SGDOptimizer,
    )
    from sklearn.utils._param_validation import StrOptions  # type: ignore[import-untyped]

    STEPS = {"AdamOptimizer", "SGDOptimizer", "_optimizer", "update_params", "iteration_ends"}
    if lost := STEPS.difference(BaseMultilayerPerceptron._fit_stochastic.__code__.co_names):
        raise ImportError(f"its _fit_stochastic has no {sorted(lost)}")
    if lost := {"_fit", "_check_solver"}.difference(vars(BaseMultilayerPerceptron)):
        raise ImportError(f"its networks have no {sorted(lost)}")
except (ImportError, AttributeError) as other:
    raise ImportError(
        f"schuss.sklearn: scikit-learn {sklearn.__version__} is built otherwise than 1.4 to 1.9, "
        f"which are known here: {other}"
    ) from other


# ---- The step


def like(some: Arrays | None, others: Arrays) -> bool:
    """Whether an optimizer of some arrays can go on with others."""
    return some is not None and all(
        (a.dtype, a.strides) == (b.dtype, b.strides) for a, b in zip(some, others, strict=True)
    )


class Stepper(SGDOptimizer):  # type: ignore[misc]
    """In the place of scikit-learn's optimizers: its learning rates, and a rule of ours.

    params      the network's arrays, in one list as long as it is fitted
    rule        a class of rule, with these options
    rate        the learning rate at the start
    schedule    how it goes on, by `power_t` where that is "invscaling": as in scikit-learn

    A pickle or a copy has the state without the arrays, which are the network's: it takes them up
    at its first step.
    """

    def __init__(
        self,
        params: Arrays,
        rule: type[Optimizer],
        options: dict[str, Any],
        rate: float,
        schedule: str = "constant",
        power_t: float = 0.5,
    ) -> None:
        super().__init__([], rate, schedule, power_t=power_t)  # no array, so no state there
        self.rule, self.options = rule, options
        self.rate = self.learning_rate  # that of the optimizer
        self.params: Arrays | None = None
        self.optimizer: Optimizer | None = None
        self.saved: dict[str, Any] | None = None
        self.take(params)

    def take(self, params: Arrays) -> Optimizer:
        """Goes on with these arrays."""
        if self.optimizer is not None and not like(self.params, params):
            self.saved, self.optimizer = self.optimizer.state_dict(), None
        if self.optimizer is None:
            own = {"convert": True, **self.options}
            optimizer = self.rule(params, lr=self.rate, **own)
            optimizer._has_converted = True  # no warning: where y is wider than X, it is no mistake
            if self.saved is not None:
                optimizer.load_state_dict(self.saved, strict=False)  # cast, where types are others
            self.optimizer, self.saved = optimizer, None
        else:
            self.optimizer.rebind(params)
        self.params = params
        return self.optimizer

    def update_params(self, params: Arrays, grads: Arrays) -> None:
        """One step of these arrays, in place."""
        optimizer = self.optimizer
        if optimizer is None or params is not self.params:
            optimizer = self.take(params)
        if self.learning_rate != self.rate:
            optimizer.lr = self.rate = self.learning_rate
        optimizer.step(grads)

    def __getstate__(self) -> dict[str, Any]:
        saved = self.saved if self.optimizer is None else self.optimizer.state_dict()
        return {**vars(self), "params": None, "optimizer": None, "saved": saved}


def adam(
    params: Arrays,
    learning_rate_init: float = 0.001,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-8,
    **options: Any,
) -> Stepper:
    """scikit-learn's AdamOptimizer: eps joins sqrt(v) before the correction."""
    own = {"betas": (beta_1, beta_2), "eps": epsilon, "eps_mode": "hat", **options}
    return Stepper(params, Adam, own, learning_rate_init)


def sgd(
    params: Arrays,
    learning_rate_init: float = 0.1,
    lr_schedule: str = "constant",
    momentum: float = 0.9,
    nesterov: bool = True,
    power_t: float = 0.5,
    **options: Any,
) -> Stepper:
    """scikit-learn's SGDOptimizer: the learning rate is in the buffer."""
    own = {
        "momentum": momentum,
        "nesterov": bool(nesterov and momentum),
        "lr_in_buffer": True,
        **options,
    }
    return Stepper(params, SGD, own, learning_rate_init, lr_schedule, power_t)


# ---- The estimators

# Rules that want more of a network than gradients.
NOT_HERE: dict[type[Optimizer], str] = {
    ASGD: "its result is an average beside the parameters",
    ScheduleFreeSGD: "its result is an average beside the parameters",
    ScheduleFreeAdamW: "its result is an average beside the parameters",
    Eve: "it reads the loss of each step",
}
NAMES = {rule.__name__.lower(): rule for rule in (*RULES, *matrix.RULES) if rule not in NOT_HERE}
THEIR_SOLVERS = "adam", "sgd", "lbfgs"

# Options of every optimizer that mean nothing here.
NO_OPTIONS = {
    "params": "the parameters are the network's",
    "grads": "the gradients are the network's",
    "zero_grad": "the gradients are new in each step",
    "ema": "the result is the parameters",
    "lr": "it is learning_rate_init here",
    "state_dir": "the state is the estimator's, and pickled with it",
}


class Networks:
    """What both estimators have beside scikit-learn's: the solvers, and their options."""

    solver: Any
    solver_options: dict[str, Any] | None
    coefs_: Arrays
    intercepts_: Arrays

    def _stepper(self, params: Arrays) -> Stepper:
        """The optimizer that the parameters of this network ask for."""
        own: Any = self
        options = self.solver_options or {}
        for name in NO_OPTIONS.keys() & options.keys():
            raise ValueError(f"solver_options: {name!r}: {NO_OPTIONS[name]}")
        rates = own.learning_rate_init, own.learning_rate
        if self._solver == "adam":
            return adam(params, rates[0], own.beta_1, own.beta_2, own.epsilon, **options)
        if self._solver == "sgd":
            momentum = own.momentum, own.nesterovs_momentum
            return sgd(params, *rates, *momentum, own.power_t, **options)
        rule = NAMES.get(self._solver, self._solver)
        for other, why in NOT_HERE.items():
            if issubclass(rule, other):
                raise ValueError(f"solver: {rule.__name__} is not for these networks: {why}")
        return Stepper(params, rule, options, *rates, own.power_t)

    def _fit(self, *args: Any, **options: Any) -> Any:
        """scikit-learn's, to whose code a rule that it doesn't know is its "sgd"."""
        fit = super()._fit  # type: ignore[misc]
        asked = self._solver = self.solver
        if asked == "lbfgs":
            if self.solver_options:
                raise ValueError("solver_options: not with 'lbfgs', which is SciPy's")
            return fit(*args, **options)
        if not (options.get("incremental") and hasattr(self, "_optimizer")):
            self._stepper([np.zeros((1, 1), np.float32)])  # errors come before anything changes
        if asked not in THEIR_SOLVERS:
            self.solver = "sgd"
        try:
            return fit(*args, **options)
        finally:
            self.solver = asked

    @property
    def _optimizer(self) -> Stepper:
        """Where scikit-learn's code keeps its optimizer: ours takes the place of what it makes."""
        try:
            found: Stepper = vars(self)["_optimizer"]
        except KeyError:
            raise AttributeError("_optimizer") from None
        return found

    @_optimizer.setter
    def _optimizer(self, theirs: Any) -> None:
        vars(self)["_optimizer"] = self._stepper(self.coefs_ + self.intercepts_)

    def _check_solver(self) -> Any:
        return self.solver != "lbfgs" or super()._check_solver()  # type: ignore[misc]


def constructor(theirs: Any) -> Any:
    """The constructor of an estimator, with one parameter more than theirs."""

    def construct(
        self: Any, *args: Any, solver_options: dict[str, Any] | None = None, **more: Any
    ) -> None:
        theirs.__init__(self, *args, **more)
        self.solver_options = solver_options

    signature = inspect.signature(theirs.__init__)
    more = inspect.Parameter("solver_options", inspect.Parameter.KEYWORD_ONLY, default=None)
    shown: Any = construct  # where scikit-learn reads what parameters an estimator has
    shown.__signature__ = signature.replace(parameters=[*signature.parameters.values(), more])
    return shown


def constraints(theirs: Any) -> dict[str, Any]:
    """What scikit-learn checks before a fit."""
    solvers = [StrOptions({*NAMES, *THEIR_SOLVERS}), RuleType]
    return {**theirs._parameter_constraints, "solver": solvers, "solver_options": [dict, None]}


class MLPClassifier(Networks, perceptron.MLPClassifier):  # type: ignore[misc]
    """scikit-learn's MLPClassifier, whose steps are ours, in place.

    solver           "adam" (default) and "sgd": as in scikit-learn, whose loss curve they follow to
                     rounding; "lbfgs": SciPy's; the name of any other rule in small letters, such
                     as "lion" or "muon", or a class of rule, such as schuss.Lion
    solver_options   a dict of the rule's other options, such as {"weight_decay": 0.1} or
                     {"clip_norm": 1.0}: see the rule; default None

    All other parameters are scikit-learn's. Of them a rule that isn't scikit-learn's takes
    learning_rate_init for its lr, and learning_rate with power_t as its "sgd" does: "constant",
    "invscaling", "adaptive". alpha is part of the gradient with every rule.

    Traps: learning_rate_init is 0.001 here with every rule, while Lion wants a third to a tenth of
    that and Prodigy 1. Rules whose result is an average of their points, and those that read the
    loss, are refused. The step is float32 where X is, whatever y is.
    Source: scikit-learn's sklearn.neural_network, of which it is a subclass.
    """

    __init__ = constructor(perceptron.MLPClassifier)
    _parameter_constraints = constraints(perceptron.MLPClassifier)


class MLPRegressor(Networks, perceptron.MLPRegressor):  # type: ignore[misc]
    """scikit-learn's MLPRegressor, whose steps are ours, in place.

    solver, solver_options   as of MLPClassifier

    All other parameters are scikit-learn's.

    Traps: those of MLPClassifier. Where X is float32 and y float64, scikit-learn's backward pass is
    in float64: pass y in float32, too.
    Source: scikit-learn's sklearn.neural_network, of which it is a subclass.
    """

    __init__ = constructor(perceptron.MLPRegressor)
    _parameter_constraints = constraints(perceptron.MLPRegressor)


# ---- scikit-learn's own classes

THEIRS = {"AdamOptimizer": AdamOptimizer, "SGDOptimizer": SGDOptimizer}
OURS = {"AdamOptimizer": adam, "SGDOptimizer": sgd}
lock = threading.Lock()
open_contexts = 0


def as_ours(estimator: Any) -> tuple[Any, ...]:
    """How an estimator of scikit-learn's is pickled within `accelerate`."""
    ours = {perceptron.MLPClassifier: MLPClassifier, perceptron.MLPRegressor: MLPRegressor}
    state = {**vars(estimator), "solver_options": None}
    return ours[type(estimator)], (), state


def switch(on: bool) -> None:
    """Has scikit-learn's classes use our steps, here and where they are sent to, or its own."""
    for name, own in (OURS if on else THEIRS).items():
        setattr(perceptron, name, own)
    for estimator in (perceptron.MLPClassifier, perceptron.MLPRegressor):
        if on:
            copyreg.pickle(estimator, as_ours)
        else:
            copyreg.dispatch_table.pop(estimator, None)


@contextmanager
def accelerate() -> Iterator[None]:
    """Within a `with`, all of scikit-learn's own MLPClassifier and MLPRegressor step by our rules.

        with schuss.sklearn.accelerate():
            GridSearchCV(make_pipeline(StandardScaler(), MLPClassifier()), grid).fit(x, y)

    In all threads of this process, and in worker processes: an estimator that is pickled within,
    as joblib does with n_jobs=2, is schuss.sklearn's class of the same name when it arrives, and
    when it comes back. A subclass of theirs is pickled as it is, and steps as in scikit-learn where
    it arrives. What was fitted within goes on by partial_fit behind it, and unpickling it needs
    schuss; what was fitted before goes on as it began, until it is fitted anew.
    """
    global open_contexts  # noqa: PLW0603  the module that is patched is one, too
    with lock:
        open_contexts += 1
        switch(True)
    try:
        yield
    finally:
        with lock:
            open_contexts -= 1
            if not open_contexts:
                switch(False)
