"""thinc: our optimizer against its own, from single steps to the training of a model."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import pytest

theirs: Any = pytest.importorskip(
    "thinc.optimizers", reason="thinc is not installed: its tests did not run"
)
api: Any = pytest.importorskip("thinc.api")

import schuss.thinc as ours  # noqa: E402  which needs it

F4 = np.float32
SHAPES: dict[tuple[int, str], tuple[int, ...]] = {
    (0, "W"): (7, 5),
    (0, "b"): (5,),
    (1, "E"): (3, 2, 50),
    (9, "late"): (300,),
}
Arrays = dict[tuple[int, str], np.ndarray]

OPTIONS: list[dict[str, Any]] = [
    {},
    {"L2": 0.1},
    {"L2": 0.1, "L2_is_weight_decay": False},
    {"use_averages": False, "grad_clip": 0.0, "eps": 1e-3},
    {"use_radam": True},
    {"use_radam": True, "L2": 0.1},
    {"beta1": 0.0, "beta2": 0.0, "L2": 0.1},
    {"learn_rate": [0.01, 0.02, 0.001], "beta1": [0.5, 0.9], "grad_clip": [1.0, 0.1, 10.0]},
    {"learn_rate": [0.01, 0.02, 0.001], "L2": 0.1},
]


def weights() -> Arrays:
    rng = np.random.default_rng(0)
    return {key: rng.standard_normal(shape).astype(F4) for key, shape in SHAPES.items()}


def batches(first: int, last: int) -> Iterator[tuple[int, Arrays]]:
    """Gradients, long and short ones; a key comes late, and is away at times."""
    for t in range(first, last):
        rng = np.random.default_rng(100 + t)
        long = 10.0 if t % 3 == 0 else 0.05
        keys = [key for key in SHAPES if key[1] != "late" or (t >= 5 and t % 4)]
        yield t, {key: (long * rng.standard_normal(SHAPES[key])).astype(F4) for key in keys}


def train(optimizer: Any, params: Arrays, first: int, last: int) -> None:
    for t, grads in batches(first, last):
        for key, g in grads.items():
            scale = 0.5 if t % 5 == 4 else 1.0
            params[key], zeroed = optimizer(key, params[key], g, lr_scale=scale)
            assert not zeroed.any()
            assert zeroed.shape == SHAPES[key]
        optimizer.step_schedules()


def state(optimizer: Any) -> dict[str, Arrays]:
    found = {"mom1": dict(optimizer.mom1), "mom2": dict(optimizer.mom2)}
    return found if optimizer.averages is None else found | {"averages": optimizer.averages}


def require_near(optimizer: Any, params: Arrays, other: Any, expected: Arrays) -> None:
    """Numbers to rounding, counts and shapes as they are."""
    assert optimizer.nr_update == other.nr_update
    pairs = [*zip(params.values(), expected.values(), strict=True)]
    for name, arrays in state(optimizer).items():
        there = state(other)[name]
        assert arrays.keys() == there.keys()
        pairs += [(a, there[key]) for key, a in arrays.items()]
    for a, b in pairs:
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_trajectories(options: dict[str, Any]) -> None:
    options = {"learn_rate": 0.01, **options}
    optimizer, other = ours.Optimizer(**options), theirs.Optimizer(**options)
    params, expected = weights(), weights()
    train(optimizer, params, 0, 25)
    train(other, expected, 0, 25)
    require_near(optimizer, params, other, expected)
    moved = [np.abs(a - b).max() for a, b in zip(params.values(), weights().values(), strict=True)]
    assert min(moved) > 0.004  # far more than what it is compared to


@pytest.mark.parametrize("options", OPTIONS[:6], ids=str)
def test_goes_on_from_its_state_and_back(options: dict[str, Any]) -> None:
    """A training that changes hands twice is the same."""
    options = {"learn_rate": 0.01, **options}
    params, expected = weights(), weights()
    other = theirs.Optimizer(**options)
    train(other, expected, 0, 30)
    held = theirs.Optimizer(**options)
    train(held, params, 0, 10)
    for kind, last in ((ours.Optimizer, 20), (theirs.Optimizer, 30)):
        fresh = kind(**options)
        for name in ("mom1", "mom2", "averages", "nr_update"):
            setattr(fresh, name, getattr(held, name))
        train(fresh, params, last - 10, last)
        held = fresh
    require_near(held, params, other, expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on(copied: Any) -> None:
    optimizer, params = ours.Adam(0.01, L2=0.1), weights()
    train(optimizer, params, 0, 10)
    other, same = copied(optimizer), copy.deepcopy(params)
    key = (0, "W")
    assert other.mom1[key] is not optimizer.mom1[key]
    train(optimizer, params, 10, 15)
    before = other.mom1[key].copy()
    assert not np.array_equal(before, optimizer.mom1[key])
    train(other, same, 10, 15)
    assert all(np.array_equal(a, same[k]) for k, a in params.items())
    assert np.array_equal(other.mom1[key], optimizer.mom1[key])
    assert np.array_equal(other.averages[key], optimizer.averages[key])


def test_registered() -> None:
    for name in ("Adam", "RAdam", "SGD"):
        config = {"@optimizers": f"schuss.{name}.v1", "learn_rate": 0.25, "L2": 0.5}
        found = api.registry.resolve({"optimizer": config})["optimizer"]
        like = api.registry.resolve({"o": {**config, "@optimizers": f"{name}.v1"}})["o"]
        assert type(found) is ours.Optimizer
        assert isinstance(found, theirs.Optimizer)
        for attribute in ("use_radam", "L2_is_weight_decay", "averages", "nr_update"):
            assert getattr(found, attribute) == getattr(like, attribute)
        assert found._now((0, "W")) == ours.Optimizer._now(like, (0, "W"))
        wrong = {**config, "no_such_option": 1}
        with pytest.raises(Exception, match="no_such_option"):
            api.registry.resolve({"optimizer": wrong})


def test_a_config_needs_no_import() -> None:
    """What is named in one is found through the entry points of the package."""
    if "schuss.Adam.v1" not in entry_points(group="thinc_optimizers").names:
        pytest.skip("schuss is not installed as a package with entry points for thinc")
    code = (
        "import sys; from thinc.api import registry\n"
        "config = {'@optimizers': 'schuss.Adam.v1', 'learn_rate': 0.1}\n"
        "print(type(registry.resolve({'o': config})['o']).__module__)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=250, check=False
    )
    assert run.stdout.strip() == "schuss.thinc", run.stderr


def test_averages_that_are_asked_for_later() -> None:
    optimizer, other = ours.Adam(0.1, use_averages=False), theirs.Adam(0.1, use_averages=False)
    x, y = np.ones(3, F4), np.ones(3, F4)
    for t in range(3):
        for one, a in ((optimizer, x), (other, y)):
            if t == 1:
                one.averages = {}
            one((0, "W"), a, np.ones(3, F4))
    assert np.allclose(x, y)
    assert np.allclose(optimizer.averages[0, "W"], other.averages[0, "W"])


def test_settings_are_live() -> None:
    optimizer, params, g = ours.SGD(1.0, grad_clip=0.0), np.zeros(2, F4), np.ones(2, F4)
    optimizer((0, "b"), params, g.copy())
    rate = 0.5
    optimizer.learn_rate = (lambda *_, **__: rate) if ours.HAS_SCHEDULES else rate
    optimizer((0, "b"), params, g.copy())
    assert (params == -1.5).all()
    optimizer.b1 = optimizer.b2 = (lambda *_, **__: 0.5) if ours.HAS_SCHEDULES else 0.5
    optimizer((0, "b"), params, g.copy())  # Adam from here on
    assert np.allclose(optimizer.mom1[0, "b"], 0.5)
    with pytest.raises(AttributeError):
        optimizer.learning_rate = 1.0


def test_what_has_another_shape_or_type() -> None:
    optimizer, other = ours.Optimizer(0.1), theirs.Optimizer(0.1)
    x, y = np.ones((2, 3), F4), np.ones((2, 3), F4)
    for one, a in ((optimizer, x), (other, y)):  # thinc looks at sizes alone
        found, g = one((0, "W"), a, np.ones((1, 6), F4))
        assert found.shape == (2, 3)
        assert not g.any()
    assert np.allclose(x, y)
    kept, empty = optimizer((1, "W"), np.zeros((1, 2)), np.zeros(0))
    assert kept.shape == (1, 2)
    assert empty.shape == (0,)
    assert (1, "W") not in optimizer.nr_update
    for one in (optimizer, other):
        with pytest.raises(ValueError, match=r"dtype|Shape|shape"):
            one((2, "W"), np.ones(3, F4), np.ones(4, F4))
    never = ours.Optimizer(0.1, beta1=0.0)
    with pytest.raises(NotImplementedError):
        never((0, "W"), x, np.ones((2, 3), F4))


def test_where_our_kernels_have_no_say() -> None:
    """Steps as in thinc, with the same state: a rate that takes more than all away."""
    optimizer, other = ours.Optimizer(0.5, L2=0.1), theirs.Optimizer(0.5, L2=0.1)
    x, y = np.ones(3, F4), np.ones(3, F4)
    for l2 in (0.1, 3.0, 0.1):
        for one, a in ((optimizer, x), (other, y)):
            one.L2 = (lambda *_, l2=l2, **__: l2) if ours.HAS_SCHEDULES else l2
            one((0, "W"), a, np.full(3, 0.3, F4))
    assert np.allclose(x, y, rtol=1e-5)
    assert np.allclose(optimizer.mom2[0, "W"], other.mom2[0, "W"])
    assert np.allclose(optimizer.averages[0, "W"], other.averages[0, "W"])


def test_gradients_that_overflow() -> None:
    """A norm of inf clips finite gradients to nothing, as there; what is infinite is lost."""
    for element, finite in ((1e30, True), (np.inf, False)):
        optimizer, x = ours.Optimizer(0.1), np.ones(2, F4)
        with np.errstate(all="ignore"):
            optimizer((0, "W"), x, np.array([element, 1.0], F4))
        assert np.isfinite(x).all() == finite


def losses_of(optimizer: Any) -> tuple[list[float], Any]:
    """The training of a model with attention to nothing but its shape: losses, and the model."""
    api.fix_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((128, 6)).astype(F4)
    y = np.eye(3, dtype=F4)[x[:, :3].argmax(axis=1)]
    model = api.chain(api.Maxout(16, nP=2, normalize=True), api.Relu(16), api.Softmax(3))
    model.initialize(x, y)
    found = []
    for _ in range(20):
        for i in range(0, 128, 32):
            guess, backprop = model.begin_update(x[i : i + 32])
            backprop((guess - y[i : i + 32]) / 32)
            model.finish_update(optimizer)
            optimizer.step_schedules()
        found.append(float(((model.predict(x) - y) ** 2).mean()))
    return found, model


def test_a_model_learns_as_with_its_own() -> None:
    optimizer = ours.Adam(0.01, L2=0.01)
    found, model = losses_of(optimizer)
    expected, _ = losses_of(theirs.Adam(0.01, L2=0.01))
    assert expected[-1] < expected[0] / 4
    assert np.allclose(found, expected, rtol=1e-3)
    weights = [a for node in model.walk() for a in map(node.get_param, node.param_names)]
    before = [a.copy() for a in weights]
    with model.use_params(optimizer.averages):
        inside = [a for node in model.walk() for a in map(node.get_param, node.param_names)]
    assert not any(np.array_equal(a, b) for a, b in zip(before, inside, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(before, weights, strict=True))
