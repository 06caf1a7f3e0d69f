"""Groups: what is set, added or bound anew is taken as a whole or not at all."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import schuss
from engine.unchanged import Unchanged
from schuss.engine.optimizer import Optimizer
from schuss.rules import RULES

F4 = np.float32


def read_only() -> np.ndarray:
    a = np.zeros(10, F4)
    a.flags.writeable = False
    return a


def test_all_groups_or_none() -> None:
    groups = [{"params": [np.zeros(1)]}, {"params": [np.zeros(1)], "momentum": 0.9}]
    opt = schuss.SGD(groups)
    with Unchanged(opt, ValueError, "nesterov"):
        opt.nesterov = True


def test_update_of_a_group_is_all_or_none() -> None:
    opt = schuss.SGD(np.zeros(3), momentum=0.9, dampening=0.5)
    with Unchanged(opt, ValueError, "weight_decay"):
        opt.param_groups[0].update(lr=7.0, weight_decay=-1.0)
    opt.param_groups[0].update(nesterov=True, dampening=0.0)
    assert opt.nesterov


def test_group_keeps_its_options() -> None:
    opt = schuss.SGD(np.zeros(3))
    with Unchanged(opt, TypeError, "lr"):
        del opt.param_groups[0]["lr"]
    with Unchanged(opt, ValueError, "params: fixed"):
        opt.param_groups[0]["params"] = []
    with Unchanged(opt, TypeError, "lrr: unknown"):
        opt.param_groups[0]["lrr"] = 1.0


@pytest.mark.parametrize(
    ("group", "error", "says"),
    [
        ({"lr": 0.1}, TypeError, "group: pass a mapping"),
        ([np.zeros(3, F4)], TypeError, "group: pass a mapping"),
        ({"params": {"w1": np.zeros(3, F4)}}, ValueError, 'params["w1"]: two groups'),
        ({"params": {"n": np.zeros(3, int)}}, TypeError, 'params["n"]: dtype int64'),
        ({"params": {"n": np.zeros(3, F4)}, "lr": -1.0}, ValueError, "lr: -1.0"),
        ({"params": {"n": np.zeros(3, F4)}, "foo": 1.0}, TypeError, "foo: unknown"),
    ],
)
def test_add_param_group(group: Any, error: type[Exception], says: str, opt: Optimizer) -> None:
    with Unchanged(opt, error, says):
        opt.add_param_group(group)
    good = np.ones(10, F4)
    assert opt.step({"a": good, "w1": good, "z": good})


def test_add_param_group_that_overlaps(opt: Optimizer) -> None:
    with Unchanged(opt, ValueError, 'params["new"]: overlaps params["a"]'):
        opt.add_param_group({"params": {"new": opt.param_groups[0]["params"][0]}})


def test_bound_gradients_of_a_new_group() -> None:
    opt = schuss.SGD([np.zeros(3)], grads=[np.ones(3)], lr=1.0)
    with Unchanged(opt, ValueError, 'pass its "grads"'):
        opt.add_param_group({"params": [np.zeros(3)]})
    opt.add_param_group({"params": [np.zeros(3)], "grads": [np.ones(3)], "lr": 2.0})
    opt.step()
    assert [x[0] for g in opt.param_groups for x in g["params"]] == [-1, -2]


@pytest.mark.parametrize(
    ("w1", "says"),
    [
        (np.zeros(11, F4), "float32 of shape (11,) in C order where float32 of shape (10,)"),
        (np.zeros(10), "float64 of shape (10,)"),
        (np.zeros(20, F4)[::2], "in no contiguous order"),
        (1.0, "float where float32"),
        (read_only(), "read-only"),
    ],
)
def test_rebind(w1: Any, says: str, opt: Optimizer) -> None:
    with Unchanged(opt, ValueError, 'params["w1"]: ', says):
        opt.rebind({"a": np.zeros(10, F4), "w1": w1, "z": np.zeros(10, F4)})
    with Unchanged(opt, ValueError, "params: missing 'z'"):
        opt.rebind({"a": np.zeros(10, F4), "w1": np.zeros(10, F4)})


def test_groups_share_numbers_but_neither_arrays_nor_schedules() -> None:
    """Equal groups share their settings; what goes ways of its own stays each one's."""
    low, high = np.zeros(2), np.ones(2)
    x, y = np.full(2, 0.5), np.full(2, 0.5)
    opt = schuss.SGD(
        [{"params": [x], "bounds": (low, high)}, {"params": [y], "bounds": (0.0, 0.75)}], lr=1.0
    )
    opt.step([[np.full(2, -9.0)], [np.full(2, -9.0)]])
    assert (x == 1.0).all()
    assert (y == 0.75).all()
    rates = [schuss.schedules.ReduceOnPlateau(0.1) for _ in range(2)]
    opt = schuss.SGD([{"params": [a], "lr": r} for a, r in zip((x, y), rates, strict=True)])
    assert [g["lr"] for g in opt.param_groups] == rates
    assert opt.param_groups[1]["lr"] is rates[1]


# ---- What all groups share doesn't depend on their order


def differing(rule: type[Optimizer]) -> dict[str, Any]:
    """Other values of what makes numbers that all arrays share."""
    others: dict[str, Any] = {
        "betas": 0.5,
        "d0": 1e-3,
        "d_coef": 3.0,
        "growth_rate": 1.5,
        "c": 2.0,
        "fstar": -9.0,
    }
    defaults = rule.defaults()
    values = {k: v for k, v in others.items() if k in defaults and rule.shared}
    if "betas" in values:
        values["betas"] = (0.5,) * len(defaults["betas"])
    return values


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("frozen", ["lr = 0", "no gradient"])
def test_groups_in_any_order(rule: type[Optimizer], frozen: str) -> None:
    """The same bits; or but for rounding, where sums over all groups are added in their order.

    A frozen group may have other values even of what the others have to agree upon.
    """
    rng = np.random.default_rng(20)
    start = {name: rng.standard_normal(n) for name, n in (("a", 5), ("b", 7), ("still", 3))}
    gradients = [{n: rng.standard_normal(x.shape) for n, x in start.items()} for _ in range(6)]
    rated = not rule.hyperparameters["lr"].fixed
    groups: dict[str, dict[str, Any]] = {"a": {}, "b": {"lr": 0.5} if rated else {}}
    groups["still"] = differing(rule)
    by_rate = frozen == "lr = 0" and rated and rule is not schuss.Ftrl  # whose lr is above 0
    if by_rate:
        groups["still"]["lr"] = 0.0
    ends = []
    for order in itertools.permutations(groups):
        params = {name: x.copy() for name, x in start.items()}
        opt = rule([{"params": {name: params[name]}, **groups[name]} for name in order])
        for t, g in enumerate(gradients):
            own = [{n: g[n] if by_rate or n != "still" else None} for n in order]
            opt.step(own, loss=3.0 / (t + 1))
        assert np.array_equal(params["still"], start["still"])
        ends.append((params, opt.state_dict()["shared"]))
    first, shared = ends[0]
    assert not np.array_equal(first["a"], start["a"])
    for params, numbers in ends[1:]:
        for name, x in params.items():
            assert np.allclose(x, first[name], rtol=1e-12, atol=0)
            assert np.array_equal(x, first[name]) or rule.shared
        assert numbers == pytest.approx(shared, rel=1e-12)


@pytest.mark.parametrize(
    ("rule", "name", "values"),
    [
        (schuss.Prodigy, "d0", (1e-6, 1e-5)),
        (schuss.Prodigy, "beta3", (None, 0.5)),
        (schuss.Prodigy, "d_coef", (1.0, 2.0)),
        (schuss.Prodigy, "growth_rate", (1.5, 2.0)),
        (schuss.DAdaptAdam, "d0", (1e-6, 1e-5)),
        (schuss.DAdaptAdam, "betas", ((0.9, 0.999), (0.9, 0.99))),
        (schuss.DAdaptAdam, "growth_rate", (1.5, 2.0)),
        (schuss.Eve, "c", (10.0, 2.0)),
        (schuss.Eve, "fstar", (0.0, -1.0)),
        (schuss.Eve, "variant", ("v3", "code")),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_groups_that_share_numbers_agree(
    rule: type[Optimizer], name: str, values: tuple[Any, Any], order: int
) -> None:
    groups = [{"params": [np.zeros(2)], name: value} for value in values[::order]]
    opt = rule(groups)
    with Unchanged(opt, ValueError, f"{name}", "the same in all groups that move"):
        opt.step([[np.ones(2)], [np.ones(2)]], loss=1.0)
    opt.param_groups[0]["lr"] = 0.0
    assert opt.step([[np.ones(2)], [np.ones(2)]], loss=1.0)


@pytest.mark.parametrize("rule", [schuss.Prodigy, schuss.DAdaptAdam])
def test_freezing_by_rate_is_freezing_by_gradient(rule: type[Optimizer]) -> None:
    """A group that has moved before makes d neither way."""
    found = []
    for by_rate in (True, False):
        a, b = np.ones(4), 100 * np.ones(4)
        opt = rule([{"params": [a]}, {"params": [b]}])
        for t in range(30):
            frozen = t >= 10
            if frozen and by_rate:
                opt.param_groups[1]["lr"] = 0.0
            g = None if frozen and not by_rate else np.full(4, 100.0)
            opt.step([[a.copy()], [g]])
        found.append((opt.state_dict()["shared"], a.tobytes(), opt.state[1]["s"].tobytes()))
    assert found[0] == found[1]
    if rule is schuss.Prodigy:
        assert found[0][0]["d"] == pytest.approx(0.3355928186368051, rel=1e-12)


@pytest.mark.parametrize("rule", [r for r in RULES if r.common])
def test_a_warm_up_from_a_rate_of_0_beside_a_frozen_group(rule: type[Optimizer]) -> None:
    """Where no group moves none has to agree, and what all share stays as it was."""
    x, y = np.ones(2), np.ones(2)
    moving = {"params": [x], "lr": lambda n: 0.1 * n}
    opt = rule([moving, {"params": [y], "lr": 0.0, **differing(rule)}])
    for n in range(3):
        before = opt.state_dict()["shared"]
        opt.step([[np.ones(2)], [np.ones(2)]], loss=1.0 / (n + 1))
        assert (opt.state_dict()["shared"] == before) == (n == 0)
    assert (y == 1).all()
    assert (x != 1).all()


def test_prodigys_groups_add_by_their_rates() -> None:
    """Two groups of other rates: the sums of the algorithm, each with its own dl."""
    rng = np.random.default_rng(21)
    x, y = rng.standard_normal(4), rng.standard_normal(3)
    starts = x.copy(), y.copy()
    opt = schuss.Prodigy([{"params": [x]}, {"params": [y], "lr": 0.25}], d0=0.1)
    d, numerator, s = 0.1, 0.0, [np.zeros(4), np.zeros(3)]
    beta3 = 0.999**0.5
    for _ in range(5):
        g = [rng.standard_normal(4), rng.standard_normal(3)]
        numerator *= beta3
        for i, (w, start, lr) in enumerate(zip((x, y), starts, (1.0, 0.25), strict=True)):
            numerator += d / 0.1 * d * lr * (g[i] @ (start - w))
            s[i] = beta3 * s[i] + d / 0.1 * d * lr * g[i]
        found = numerator / sum(np.abs(a).sum() for a in s)
        opt.step([[g[0]], [g[1]]])
        d = max(d, found)
        assert opt.state_dict()["shared"]["d_numerator"] == pytest.approx(numerator, rel=1e-12)
        assert opt.state_dict()["shared"]["d"] == pytest.approx(d, rel=1e-12)
