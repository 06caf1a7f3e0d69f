"""scikit-learn's networks with our steps, beside themselves: curves, copies, workers, its tests."""

from __future__ import annotations

import copy
import inspect
import io
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schuss

pytest.importorskip("sklearn", reason="scikit-learn is not installed: its tests did not run")

import joblib  # type: ignore[import-untyped]
import sklearn.neural_network as theirs  # type: ignore[import-untyped]
from scipy import sparse  # type: ignore[import-untyped]
from sklearn.base import clone  # type: ignore[import-untyped]
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.ensemble import BaggingClassifier  # type: ignore[import-untyped]
from sklearn.model_selection import GridSearchCV  # type: ignore[import-untyped]
from sklearn.neural_network import _multilayer_perceptron as perceptron
from sklearn.utils.estimator_checks import check_estimator  # type: ignore[import-untyped]

from schuss import sklearn as ours

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X64, Y = (a[:300] for a in load_digits(return_X_y=True))
X64 = X64 / 16
X = X64.astype(np.float32)

# Adam's curve was within 2e-7 of scikit-learn's, relative, and within 5e-16: theirs computes a
# float32 step in float64, and rounds the means in another order. SGD has the same bits.
NEAR = {np.float32: 2e-6, np.float64: 1e-13}

CASES: dict[str, dict[str, Any]] = {
    "adam": {},
    "adam, other numbers": {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3, "alpha": 0.1},
    "adam, early stopping": {"early_stopping": True, "n_iter_no_change": 2, "max_iter": 60},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.1},
    "sgd, classical": {"solver": "sgd", "nesterovs_momentum": False, "learning_rate_init": 0.1},
    "sgd, no momentum": {"solver": "sgd", "momentum": 0, "learning_rate_init": 0.3},
    "sgd, invscaling": {
        "solver": "sgd",
        "learning_rate": "invscaling",
        "learning_rate_init": 0.5,
        "power_t": 0.2,
    },
    "sgd, adaptive": {
        "solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.5, "tol": 0.02,
        "n_iter_no_change": 1, "max_iter": 60,
    },
}  # fmt: skip


def accelerated(kind: str, **parameters: Any) -> Any:
    """Fitted in the context."""
    network = getattr(theirs, kind)(**parameters)
    with ours.accelerate():
        return network.fit(*DATA[kind])


def subclass(kind: str, **parameters: Any) -> Any:
    return getattr(ours, kind)(**parameters).fit(*DATA[kind])


DATA: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "MLPClassifier": (X, Y),
    "MLPRegressor": (X, Y.astype(np.float32)),
}
WAYS = [accelerated, subclass]


def network(**parameters: Any) -> dict[str, Any]:
    return {"hidden_layer_sizes": (20,), "batch_size": 32, "max_iter": 15, "random_state": 0} | (
        parameters
    )


def weights(fitted: Any) -> list[np.ndarray]:
    found: list[np.ndarray] = fitted.coefs_ + fitted.intercepts_
    return found


def require_same(a: Any, b: Any) -> None:
    """The same weights and losses, to the last bit."""
    assert a.loss_curve_ == b.loss_curve_
    assert [w.tobytes() for w in weights(a)] == [w.tobytes() for w in weights(b)]


def require_near(mine: Any, own: Any, near: float) -> None:
    assert mine.n_iter_ == own.n_iter_
    np.testing.assert_allclose(mine.loss_curve_, own.loss_curve_, rtol=near)
    for a, b in zip(weights(mine), weights(own), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=near, atol=10 * near * np.abs(b).max())


# ---- The same fit


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", NEAR)
def test_curve(dtype: Any, case: str, way: Callable[..., Any]) -> None:
    parameters = network(**CASES[case])
    own = theirs.MLPClassifier(**parameters).fit(X64.astype(dtype), Y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATA, "MLPClassifier", (X64.astype(dtype), Y))
        mine = way("MLPClassifier", **parameters)
    assert type(mine._optimizer) is ours.Stepper
    assert type(own._optimizer) is not ours.Stepper
    assert own.n_iter_ > 2
    require_near(mine, own, NEAR[dtype])
    assert mine.validation_scores_ == own.validation_scores_
    if "solver" in parameters:
        require_same(mine, own)
        assert mine._optimizer.learning_rate == own._optimizer.learning_rate
    moves = parameters.get("learning_rate", "constant") != "constant"
    assert moves == (mine._optimizer.learning_rate != mine.learning_rate_init)


@pytest.mark.parametrize("way", WAYS)
def test_regressor(way: Callable[..., Any]) -> None:
    own = theirs.MLPRegressor(**network()).fit(*DATA["MLPRegressor"])
    require_near(way("MLPRegressor", **network()), own, NEAR[np.float32])


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_float64_gradients_of_float32_weights(solver: str) -> None:
    """Where y is float64 and X isn't: no warning, and the weights keep their type."""
    parameters = network(solver=solver, learning_rate_init=0.001)
    own = theirs.MLPRegressor(**parameters).fit(X, Y.astype(float))
    mine = ours.MLPRegressor(**parameters).fit(X, Y.astype(float))
    assert {w.dtype for w in weights(mine)} == {np.dtype(np.float32)}
    require_near(mine, own, 1e-5)


def test_sparse_and_weighted() -> None:
    own, mine = theirs.MLPClassifier(**network()), ours.MLPClassifier(**network())
    x = sparse.csr_matrix(X)
    require_near(mine.fit(x, Y), own.fit(x, Y), NEAR[np.float32])
    if "sample_weight" in inspect.signature(own.fit).parameters:  # from 1.7 on
        w = np.linspace(0.5, 2, len(Y))
        require_near(mine.fit(X, Y, w), own.fit(X, Y, w), 1e-5)


def test_warm_start() -> None:
    own = theirs.MLPClassifier(**network(warm_start=True, max_iter=3))
    mine = ours.MLPClassifier(**network(warm_start=True, max_iter=3))
    for _ in range(3):
        require_near(mine.fit(X, Y), own.fit(X, Y), NEAR[np.float32])


def test_lbfgs_is_theirs() -> None:
    parameters = network(solver="lbfgs")
    own = theirs.MLPClassifier(**parameters).fit(X, Y)
    mine = ours.MLPClassifier(**parameters).fit(X, Y)
    assert [w.tobytes() for w in weights(own)] == [w.tobytes() for w in weights(mine)]
    assert not hasattr(mine, "partial_fit")
    mine.set_params(solver="lion", max_iter=2).fit(X, Y)
    assert len(mine.loss_curve_) == 2


# ---- partial_fit, and copies in the middle


def partially(fitted: Any, times: int) -> Any:
    for _ in range(times):
        fitted.partial_fit(X, Y, classes=np.arange(10))
    return fitted


def dumped(fitted: Any, path: Path, mode: str | None = None) -> Any:
    joblib.dump(fitted, path / "network")
    return joblib.load(path / "network", mmap_mode=mode)


@pytest.mark.parametrize(
    "parameters",
    [
        {"solver": "adam"},
        {"solver": "sgd", "learning_rate": "invscaling"},
        {"solver": schuss.Lion, "learning_rate": "adaptive", "n_iter_no_change": 1, "tol": 1.0},
        {"solver": "prodigy", "learning_rate_init": 1.0},
        {"solver": "muon"},
        {"solver_options": {"state_dtype": "blockfloat8", "clip_norm": 1.0}},
    ],
    ids=lambda p: str(p.get("solver", "8 bits")),
)
def test_partial_fit_goes_on_to_the_same_bits(parameters: dict[str, Any], tmp_path: Path) -> None:
    begun = partially(ours.MLPClassifier(**network(**parameters)), 3)
    others = [
        pickle.loads(pickle.dumps(begun)),
        copy.deepcopy(begun),
        dumped(begun, tmp_path),
        pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(begun)))),  # without a step between
        clone(begun),
    ]
    partially(begun, 3)
    for other in others[:-1]:
        require_same(partially(other, 3), begun)
    require_same(partially(others[-1], 6), begun)


def test_partial_fit_beside_theirs() -> None:
    own, mine = theirs.MLPClassifier(**network()), ours.MLPClassifier(**network())
    require_near(partially(mine, 5), partially(own, 5), NEAR[np.float32])
    with ours.accelerate():
        begun = partially(theirs.MLPClassifier(**network()), 3)
    require_same(partially(begun, 2), mine)  # outside


@pytest.mark.parametrize(
    "other", [np.copy, np.asfortranarray, np.float64], ids=["copies", "order", "type"]
)
def test_weights_that_are_replaced(other: Callable[[np.ndarray], np.ndarray]) -> None:
    """Between two calls of partial_fit, as people load weights: the state goes on with them."""
    own, mine = theirs.MLPClassifier(**network()), ours.MLPClassifier(**network())
    for estimator in (own, mine):
        partially(estimator, 2)
        estimator.coefs_ = [other(0.5 * w) for w in estimator.coefs_]
        partially(estimator, 2)
    require_near(mine, own, NEAR[np.float32])


@pytest.mark.parametrize("begun", [theirs.MLPClassifier, ours.MLPClassifier])
def test_parameters_that_are_set_count_from_the_next_fit_on(begun: Any) -> None:
    """partial_fit goes on with the optimizer that there is, as in scikit-learn."""
    plain, told = (partially(begun(**network()), 1) for _ in range(2))
    with ours.accelerate():
        told.set_params(solver="sgd", learning_rate_init=0.5)
        require_same(partially(told, 1), partially(plain, 1))
        assert type(told._optimizer) is type(plain._optimizer)
        told.fit(X, Y)
    assert told._optimizer.rule is schuss.SGD


def test_a_pickle_has_the_state_once() -> None:
    own = theirs.MLPClassifier(**network()).fit(X, Y)
    mine = ours.MLPClassifier(**network()).fit(X, Y)
    assert len(pickle.dumps(mine)) < len(pickle.dumps(own)) + 3000


def test_mapped_from_a_file(tmp_path: Path) -> None:
    """Weights that can't be written predict, and say so where they would have to step."""
    fitted = ours.MLPClassifier(**network()).fit(X, Y)
    mapped = dumped(fitted, tmp_path, "r")
    assert (mapped.predict(X) == fitted.predict(X)).all()
    with pytest.raises(ValueError, match=r"params\[0\]: read-only"):
        mapped.partial_fit(X, Y)


# ---- Any rule


@pytest.mark.parametrize("solver", ours.NAMES)
def test_steps_are_the_rules(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of a fit, handed to the rule by itself, come to the same bits."""
    seen: list[list[np.ndarray]] = []
    start: list[np.ndarray] = []
    update = ours.Stepper.update_params

    def watched(self: Any, params: Any, grads: Any) -> None:
        start.extend([] if seen else [w.copy() for w in params])
        seen.append([g.copy() for g in grads])
        update(self, params, grads)

    monkeypatch.setattr(ours.Stepper, "update_params", watched)
    options = {"weight_decay": 0.01}
    mine = ours.MLPClassifier(
        **network(solver=solver, solver_options=options, max_iter=2, learning_rate_init=0.02)
    ).fit(X, Y)
    own: dict[str, Any] = {"lr": 0.02, **options}
    if solver == "adam":
        own |= {"eps_mode": "hat"}
    if solver == "sgd":
        own |= {"momentum": 0.9, "nesterov": True, "lr_in_buffer": True}
    opt = ours.NAMES[solver](start, **own)
    for grads in seen:
        opt.step(grads)
    assert [w.tobytes() for w in start] == [w.tobytes() for w in weights(mine)]


def test_every_rule_is_here_or_refused() -> None:
    rules = {*schuss.rules.RULES, *schuss.rules.matrix.RULES}
    assert {*ours.NAMES.values(), *ours.NOT_HERE} == rules


@pytest.mark.parametrize("schedule", ["invscaling", "adaptive"])
def test_learning_rates_of_any_rule(schedule: str) -> None:
    """As those of scikit-learn's "sgd"."""
    parameters = network(
        learning_rate=schedule, tol=1.0, n_iter_no_change=1, max_iter=8, power_t=0.3
    )
    own = theirs.MLPClassifier(solver="sgd", **parameters).fit(X, Y)
    mine = ours.MLPClassifier(solver="lion", **parameters).fit(X, Y)
    assert mine._optimizer.learning_rate == own._optimizer.learning_rate < 0.001
    mine = partially(mine.set_params(learning_rate_init=5.0), 1)  # no new optimizer, no new rate
    assert mine._optimizer.optimizer.lr <= own._optimizer.learning_rate


class Halved(schuss.Lion):
    """A rule of a user's own."""

    @staticmethod
    def scalars(h: Any, t: int, memory: Any) -> dict[str, float]:
        return schuss.Lion.scalars({**h, "lr": h["lr"] / 2}, t, memory)


def test_a_rule_of_ones_own() -> None:
    halved = ours.MLPClassifier(**network(solver=Halved)).fit(X, Y)
    require_same(halved, ours.MLPClassifier(**network(solver=Halved)).fit(X, Y))
    half = ours.MLPClassifier(**network(solver="lion", learning_rate_init=0.0005)).fit(X, Y)
    require_same(halved, half)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"solver": "lions"}, "The 'solver' parameter of MLPClassifier must be"),
        ({"solver": "eve"}, "The 'solver' parameter of MLPClassifier must be"),
        ({"solver": 3}, "The 'solver' parameter of MLPClassifier must be"),
        ({"solver": dict}, "The 'solver' parameter of MLPClassifier must be"),
        ({"solver_options": 3}, "The 'solver_options' parameter of MLPClassifier must be"),
        ({"solver": schuss.Eve}, "solver: Eve is not for these networks: it reads the loss"),
        ({"solver": schuss.ASGD}, "solver: ASGD is not for these networks: its result"),
        ({"solver_options": {"lr": 1}}, "solver_options: 'lr': it is learning_rate_init here"),
        ({"solver_options": {"ema": 0.9}}, "solver_options: 'ema': the result is"),
        ({"solver_options": {"state_dir": "d"}}, "solver_options: 'state_dir': the state is"),
        ({"solver_options": {"weight_deca": 1}}, "weight_deca: unknown; did you mean weight_decay"),
        ({"solver": "lbfgs", "solver_options": {"l1": 1}}, "solver_options: not with 'lbfgs'"),
        ({"solver": "lion", "solver_options": {"betas": 3}}, "betas: 3 is not 2 numbers"),
    ],
)
def test_errors_come_before_anything_changes(parameters: dict[str, Any], message: str) -> None:
    estimator = ours.MLPClassifier(**parameters)
    with pytest.raises((TypeError, ValueError), match=message):
        estimator.fit(X, Y)
    assert not hasattr(estimator, "coefs_")
    assert estimator.get_params() == ours.MLPClassifier(**parameters).get_params()
    require_same(
        estimator.set_params(solver="adam", solver_options=None, **network()).fit(X, Y),
        ours.MLPClassifier(**network()).fit(X, Y),
    )


def test_an_error_within_a_fit_leaves_the_solver() -> None:
    estimator = ours.MLPClassifier(**network(solver="lion"))
    with pytest.raises(ValueError, match="NaN"):
        estimator.fit(np.full_like(X, np.nan), Y)
    assert estimator.solver == "lion"


# ---- Workers


def bagged(estimator: Any) -> Any:
    return BaggingClassifier(estimator, n_estimators=2, n_jobs=2, random_state=0).fit(X, Y)


def test_workers() -> None:
    """Estimators step by our rules in other processes, and within the context theirs do."""
    parameters = network(max_iter=3)
    mine = bagged(ours.MLPClassifier(**parameters))
    with ours.accelerate():
        sent = bagged(theirs.MLPClassifier(**parameters))
        grid = GridSearchCV(theirs.MLPClassifier(**parameters), {"alpha": [0, 0.1]}, n_jobs=2, cv=2)
        grid.fit(X, Y)
    after = bagged(theirs.MLPClassifier(**parameters))
    for a, b, c in zip(mine.estimators_, sent.estimators_, after.estimators_, strict=True):
        assert type(a._optimizer) is type(b._optimizer) is ours.Stepper
        assert type(c) is theirs.MLPClassifier
        assert type(c._optimizer) is perceptron.AdamOptimizer
        require_same(a, b)
        require_near(a, c, NEAR[np.float32])
    assert type(grid.best_estimator_._optimizer) is ours.Stepper
    choices = {"solver": ["adam", "lion", schuss.Lion], "solver_options": [{"weight_decay": 0.1}]}
    grid = GridSearchCV(ours.MLPClassifier(**parameters), choices, n_jobs=2, cv=2).fit(X, Y)
    scores = grid.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all()
    assert scores[1] == scores[2]


# ---- The context


@pytest.fixture
def made() -> Iterator[Callable[[], type]]:
    """Of which class an optimizer is that scikit-learn makes now."""

    def find() -> type:
        fitted = theirs.MLPClassifier(**network(max_iter=1)).fit(X, Y)
        found: type = type(fitted._optimizer)
        return found

    assert find() is perceptron.AdamOptimizer
    yield find
    assert find() is perceptron.AdamOptimizer
    assert type(copy.deepcopy(theirs.MLPClassifier())) is theirs.MLPClassifier


def test_context(made: Callable[[], type]) -> None:
    with ours.accelerate():
        with pytest.raises(KeyError), ours.accelerate():
            raise KeyError
        assert made() is ours.Stepper
        buffer = io.BytesIO()
        joblib.dump(theirs.MLPRegressor(alpha=3), buffer)
    buffer.seek(0)
    sent = joblib.load(buffer)
    assert type(sent) is ours.MLPRegressor
    assert sent.get_params() == ours.MLPRegressor(alpha=3).get_params()


def test_contexts_of_threads_that_overlap(made: Callable[[], type]) -> None:
    opened, close = threading.Event(), threading.Event()

    def other() -> None:
        with ours.accelerate():
            opened.set()
            close.wait(60)

    thread = threading.Thread(target=other)
    with ours.accelerate():
        thread.start()
        assert opened.wait(60)
    assert made() is ours.Stepper
    close.set()
    thread.join()


def test_arguments_are_those_that_scikit_learn_passes() -> None:
    for mine, own in (
        (ours.adam, perceptron.AdamOptimizer),
        (ours.sgd, perceptron.SGDOptimizer),
    ):
        known = inspect.signature(own).parameters
        taken = [*inspect.signature(mine).parameters.values()][:-1]  # the last are options
        assert [(p.name, p.default) for p in taken] == [(p.name, p.default) for p in known.values()]


# ---- What scikit-learn asks of an estimator


@pytest.mark.filterwarnings("ignore")  # of what it checks
@pytest.mark.parametrize("estimator", [ours.MLPClassifier, ours.MLPRegressor])
def test_check_estimator(estimator: Any) -> None:
    results = check_estimator(estimator(), on_skip=None)
    assert sum(r["status"] == "passed" for r in results) > 50


PLUGIN = """
import schuss.sklearn

context = schuss.sklearn.accelerate()
context.__enter__()
made = []
begin = schuss.sklearn.Stepper.__init__

def counted(*args, **options):
    made.append(1)
    begin(*args, **options)

schuss.sklearn.Stepper.__init__ = counted

def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"{len(made)} optimizers of ours")
"""


def python(*arguments: str, path: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    kept = os.environ.get("PYTHONPATH", "")
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{kept}", "PYTEST_ADDOPTS": ""}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=path, env=environment, capture_output=True, text=True, timeout=280, check=False,
        **options,
    )  # fmt: skip


def test_its_own_tests(tmp_path: Path) -> None:
    """scikit-learn's test_mlp.py, with the context around it."""
    (tmp_path / "accelerating.py").write_text(PLUGIN)
    run = python(
        *("-m", "pytest", "-q", "-p", "accelerating", "-p", "no:cacheprovider", "-p", "no:xdist"),
        *("--pyargs", "sklearn.neural_network.tests.test_mlp"),
        path=tmp_path,
    )
    *_, counted, last = [line for line in run.stdout.splitlines() if line.strip()]
    assert run.returncode == 0, run.stdout
    assert "passed" in last
    assert int(counted.split()[0]) > 50, run.stdout


# ---- What is missing


def test_without_scikit_learn(tmp_path: Path) -> None:
    code = "import sys; sys.modules['sklearn'] = None; import schuss.sklearn"
    run = python("-c", code, path=tmp_path)
    assert "ModuleNotFoundError: schuss.sklearn: needs scikit-learn: pip install" in run.stderr


def test_a_scikit_learn_that_is_built_otherwise(tmp_path: Path) -> None:
    code = """
from sklearn.neural_network import _multilayer_perceptron as perceptron
perceptron.BaseMultilayerPerceptron._fit_stochastic = lambda self: self._optimizer
import schuss.sklearn
"""
    run = python("-c", code, path=tmp_path)
    assert "is built otherwise than 1.4 to 1.9, which are known here: its _fit" in run.stderr
