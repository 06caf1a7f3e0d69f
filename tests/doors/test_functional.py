"""Stateless calls: what they refuse, and that nothing has changed then."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import numpy as np
import pytest

import schuss
from schuss.engine.declare import Backend

F4 = np.float32


def test_functional() -> None:
    x, g, m, v = (np.zeros(3, F4) for _ in range(4))
    adam: Any = schuss.functional.adam
    for call, error, says in [
        (lambda: adam(x, g, m, v, step=0), ValueError, "step: 0 is out of range"),
        (lambda: adam(x, g, m, v, step=1.0), TypeError, "step: 1.0 is not a whole number"),
        (lambda: adam(x, g, m, step=1), TypeError, "these options take ('exp_avg', 'exp_avg_sq')"),
        (lambda: adam(x, g, m, v, m.copy(), step=1), TypeError, "adam: state"),
        (lambda: adam(x, g, m, v, step=1, foo=2), TypeError, "foo: unknown"),
        (lambda: adam(x, g, m, v, exp_avg=m, step=1), TypeError, "exp_avg is given twice"),
        (lambda: adam(x, g, m, m, step=1), ValueError, "exp_avg_sq: overlaps exp_avg"),
        (lambda: adam(x, x, m, v, step=1), ValueError, "grad: overlaps param"),
        (lambda: adam(x, g, m, v[:2], step=1), ValueError, "exp_avg_sq: shape (2,)"),
        (lambda: adam(x, g.astype(float), m, v, step=1), TypeError, "grad: float64"),
        (lambda: adam([0.0], g, m, v, step=1), TypeError, "param: not a numpy.ndarray (list)"),
        (lambda: adam(x, g, m, v, step=1, backend="no"), ValueError, "backend: 'no'"),
    ]:
        with pytest.raises(error) as info:
            call()  # type: ignore[no-untyped-call]
        assert says in str(info.value)
        assert not x.any()
        assert not m.any()


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
def test_numbers_of_a_stateless_call(backend: Backend) -> None:
    x, g, m, v = (np.ones(3) for _ in range(4))
    read_only = np.ones(())
    read_only.flags.writeable = False
    wrong: list[tuple[Any, type[Exception], str]] = [
        (None, TypeError, "mu_product is missing; pass a float64 array of no dimension"),
        (1.0, TypeError, "mu_product is 1.0; pass"),
        (np.float64(1.0), TypeError, "mu_product is np.float64(1.0); pass"),
        (np.ones((), F4), TypeError, "mu_product is array(1., dtype=float32); pass"),
        (np.ones(1), TypeError, "mu_product is array([1.]); pass"),
        (read_only, ValueError, "mu_product is read-only"),
        (x[1:2].reshape(()), ValueError, "mu_product overlaps an array that the step writes to"),
        (v[2:].reshape(()), ValueError, "mu_product overlaps"),
    ]
    for number, error, says in wrong:
        given = {} if number is None else {"mu_product": number}
        with pytest.raises(error, match=re.escape(f"nadam: {says}")):
            schuss.functional.nadam(x, g, m, v, step=1, backend=backend, **given)
        assert all((a == 1).all() for a in (x, g, m, v))
    product = np.ones(())
    adam: Any = schuss.functional.adam
    with pytest.raises(TypeError, match="mu_product: unknown; Adam has"):
        adam(x, g, m, v, step=1, mu_product=product)
    with pytest.raises(ValueError, match="shape"):
        schuss.functional.nadam(x, g[:2], m, v, step=1, mu_product=product, backend=backend)
    assert product == 1
    schuss.functional.nadam(x, g, m, v, step=1, mu_product=product, backend=backend)
    assert 0.4 < product < 0.5


def test_loss_of_a_stateless_call() -> None:
    x, g, p, d = (np.ones(3) for _ in range(4))
    s, previous = np.full(3, 0.1), np.array(math.inf)
    rprop: Any = schuss.functional.rprop
    call = functools.partial(rprop, x, g, p, s, d, step=1, variant="irprop+")
    with pytest.raises(TypeError, match="rprop: previous_loss is missing"):
        call(loss=1.0)
    for loss in (None, np.nan, "1"):
        with pytest.raises((TypeError, ValueError), match="loss: "):
            call(loss=loss, previous_loss=previous)
        assert math.isinf(previous)
        assert (x == 1).all()
    call(loss=1.0, previous_loss=previous)
    assert previous == 1


def test_preset_of_a_stateless_call() -> None:
    x, g, p, s = (np.ones(3) for _ in range(4))
    rprop: Any = schuss.functional.rprop
    with pytest.raises(ValueError, match="preset: 'keras' is unknown; Rprop has torch, optax"):
        rprop(x, g, p, s, step=1, preset="keras")
    with pytest.raises(TypeError, match="lr: preset 'optax' has no default; pass one"):
        schuss.functional.sgd(x, g, step=1, preset="optax")
    with pytest.raises(TypeError, match="rprop: lr is for the class"):
        rprop(x, g, p, s, step=1, preset="optax", lr=0.1)
    assert (x == 1).all()
    schuss.functional.rprop(x, g, p, s, step=1, preset="optax")  # the start is in its state
    assert (x != 1).all()
