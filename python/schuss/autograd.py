"""The optimizers of HIPS autograd (autograd.misc.optimizers), under their names and arguments.

    from autograd import grad
    from schuss.autograd import adam

    params = adam(grad(loss), params, num_iters=1000, step_size=0.01)

    grad       a function of the parameters and the iteration's number, from 0, that returns the
               gradient in their structure
    x0         where to start: an array, a number, or dicts, lists and tuples of them, nested as you
               like. It stays as it is
    callback   called in each iteration before the step, with a copy of the parameters that it may
               keep, the iteration's number, and the gradient as `grad` returned it; default None

The result is a new structure like x0. Autograd's own flatten parameters and gradients anew in each
iteration; these are flattened once, and stepped in place: `grad` sees the live arrays. What is
float32 stays float32, where autograd goes on in float64; integers become float64. A gradient of
another structure or shape raises KeyError or ValueError. Autograd needn't be installed: any
function may give the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from schuss.engine.optimizer import Optimizer
from schuss.flat import flatten
from schuss.rules import SGD, Adam, RMSprop

__all__ = ["adam", "rmsprop", "sgd"]

# In errors, in the place of ours.
THEIR_NAMES = {
    "params": "x0",
    "params[0]": "x0",
    "lr": "step_size",
    "momentum": "mass",
    "alpha": "gamma",
    "betas[0]": "b1",
    "betas[1]": "b2",
}

Gradient = Callable[[Any, int], Any]
Callback = Callable[[Any, int, Any], object]


def sgd(
    grad: Gradient,
    x0: Any,
    callback: Callback | None = None,
    num_iters: int = 200,
    step_size: float = 0.1,
    mass: float = 0.9,
) -> Any:
    """Gradient descent with a running mean of the gradients.

        v = mass*v - (1 - mass)*g
        x = x + step_size*v

    num_iters   default 200
    step_size   in [0, inf), default 0.1
    mass        in [0, inf), default 0.9
    """
    damped = {"momentum": mass, "dampening": mass, "first_step": "accumulate"}
    return descend(SGD, grad, x0, callback, num_iters, lr=step_size, **damped)


def rmsprop(
    grad: Gradient,
    x0: Any,
    callback: Callback | None = None,
    num_iters: int = 100,
    step_size: float = 0.1,
    gamma: float = 0.9,
    eps: float = 1e-8,
) -> Any:
    """Steps divided by the root of a running mean of squared gradients, which is 1 at the start.

        v = gamma*v + (1 - gamma)*g*g
        x = x - step_size*g/(sqrt(v) + eps)

    num_iters   default 100
    step_size   in [0, inf), default 0.1
    gamma       in [0, 1], default 0.9
    eps         in [0, inf), default 1e-8
    """
    numbers = {"alpha": gamma, "eps": eps, "initial_accumulator_value": 1.0}
    return descend(RMSprop, grad, x0, callback, num_iters, lr=step_size, **numbers)


def adam(
    grad: Gradient,
    x0: Any,
    callback: Callback | None = None,
    num_iters: int = 100,
    step_size: float = 0.001,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> Any:
    """Adam, as schuss.Adam has it.

        m = m + (1 - b1)*(g - m)
        v = b2*v + (1 - b2)*g*g
        x = x - step_size * (m/(1 - b1^t)) / (sqrt(v/(1 - b2^t)) + eps)

    num_iters   default 100
    step_size   in [0, inf), default 0.001
    b1, b2      each in [0, 1), default 0.9 and 0.999
    eps         in [0, inf), default 1e-8
    """
    numbers = {"betas": (b1, b2), "eps": eps}
    return descend(Adam, grad, x0, callback, num_iters, lr=step_size, **numbers)


def descend(
    rule: type[Optimizer],
    grad: Gradient,
    x0: Any,
    callback: Callback | None,
    num_iters: int,
    **numbers: Any,
) -> Any:
    """Steps a copy of x0 by a rule, and returns it."""
    start = [np.asarray(leaf) for leaf in leaves(x0, x0)]
    start = [a.astype(float) if a.dtype.kind in "biu" else a for a in start]
    dtype = np.result_type(np.float32, *start)  # one for all, as autograd has it
    start = [a.astype(dtype) for a in start]
    try:
        flat, arrays = flatten(start)
        flat_gradient, gradients = flatten(start)
        opt = rule(flat, grads=flat_gradient, **numbers)
    except (TypeError, ValueError) as error:
        name, colon, what = str(error).partition(":")
        raise type(error)(THEIR_NAMES.get(name, name) + colon + what) from None
    x = filled(x0, iter(arrays))
    for i in range(num_iters):
        g = grad(x, i)
        if callback:
            callback(filled(x0, (a.copy() for a in arrays)), i, g)
        for own, given in zip(gradients, leaves(x0, g), strict=True):
            if np.shape(given) != own.shape:
                raise ValueError(f"grad: returned shape {np.shape(given)}, wanted {own.shape}")
            np.copyto(own, given)
        opt.step()
    return x


def leaves(like: Any, value: Any) -> Iterator[Any]:
    """What value has at the leaves of a structure, in its order."""
    if isinstance(like, dict):
        for key, inner in like.items():
            yield from leaves(inner, value[key])
    elif isinstance(like, list | tuple):
        for inner, part in zip(like, value, strict=True):
            yield from leaves(inner, part)
    else:
        yield value


def filled(like: Any, values: Iterator[Any]) -> Any:
    """A structure with other values at its leaves, in its order."""
    if isinstance(like, dict):
        return {key: filled(inner, values) for key, inner in like.items()}
    if isinstance(like, list | tuple):
        return type(like)(filled(inner, values) for inner in like)
    return next(values)
