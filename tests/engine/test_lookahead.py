"""The point that is looked ahead to."""

from __future__ import annotations

from typing import Any

import numpy as np

import schuss
from engine.unchanged import Unchanged

F4 = np.float32


def looking_ahead(**options: Any) -> schuss.NAG:
    opt = schuss.NAG({"a": np.ones(3), "b": np.ones((2, 3))}, nesterov="lookahead", **options)
    opt.step({"a": np.ones(3), "b": np.ones((2, 3))})
    return opt


def test_lookahead_is_for_the_nesterov_of_its_name() -> None:
    for opt in (schuss.SGD(np.zeros(1)), schuss.Momentum(np.zeros(1)), schuss.NAG(np.zeros(1))):
        with Unchanged(opt, ValueError, 'nesterov: lookahead is for nesterov="lookahead"'):
            opt.lookahead()
    groups = [{"params": np.zeros(1)}, {"params": np.zeros(1), "nesterov": "lookahead"}]
    opt = schuss.NAG(groups)
    with Unchanged(opt, ValueError, "nesterov: "):
        opt.lookahead()


def test_out_of_lookahead() -> None:
    opt = looking_ahead()
    a, b = np.zeros(3), np.zeros((2, 3))
    frozen_b = np.zeros((2, 3))
    frozen_b.flags.writeable = False
    both = np.zeros(8)
    params = dict(zip("ab", opt.param_groups[0]["params"], strict=True))
    buffer = opt.state["b"]["momentum_buffer"]
    wrong: list[tuple[Any, str]] = [
        (a, "out: ndarray where params has a mapping"),
        ({"a": a}, "out: missing 'b'"),
        ({"a": a, "b": b, "c": a}, "out: unknown 'c'"),
        ({"a": a, "b": None}, 'out["b"]: NoneType, wanted float64 of shape (2, 3)'),
        ({"a": a, "b": [[0.0] * 3] * 2}, 'out["b"]: list, wanted'),
        ({"a": a, "b": np.zeros(6)}, 'out["b"]: float64 of shape (6,)'),
        ({"a": a, "b": np.zeros((4, 2, 3))}, 'out["b"]: float64 of shape (4, 2, 3)'),
        ({"a": a, "b": b.astype(F4)}, 'out["b"]: float32 of shape (2, 3)'),
        ({"a": a, "b": np.zeros((4, 3))[::2]}, 'out["b"]: float64 of shape (2, 3) in no'),
        ({"a": a, "b": frozen_b}, 'out["b"]: read-only'),
        (params, '"]: overlaps params["'),
        ({"a": a, "b": params["b"]}, 'out["b"]: overlaps params["b"]'),
        ({"a": a, "b": buffer}, 'out["b"]: overlaps state["b"]["momentum_buffer"]'),
        ({"a": both[:3], "b": both[2:].reshape(2, 3)}, 'out["b"]: overlaps out["a"]'),
    ]
    for out, says in wrong:
        with Unchanged(opt, ValueError, says):
            opt.lookahead(out)
        assert not a.any()
        assert not both.any()
    right = {"a": a, "b": b}
    assert opt.lookahead(right) is right
    assert a.all()


def test_schedule_of_lookahead_that_returns_nonsense() -> None:
    opt = looking_ahead()
    opt.lr = lambda n: -1.0
    out = opt.empty_like_params()
    out["a"].fill(7.0)
    with Unchanged(opt, ValueError, "lr after 1 steps: -1.0"):
        opt.lookahead(out)
    assert (out["a"] == 7).all()
