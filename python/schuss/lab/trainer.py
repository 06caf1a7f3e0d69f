"""A trainer of one's own: a classifier of handwritten digits in plain NumPy, stepped by Schuss.

`schuss demo` runs it on scikit-learn's bundled digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

import schuss

Params = list[dict[str, np.ndarray]]  # "w" and "b" of every layer
Data = tuple[np.ndarray, np.ndarray]  # images, one a row, and their digits
Gradients = Callable[[np.ndarray, np.ndarray], tuple[float, Params]]  # of such, behind their loss


class Epoch(NamedTuple):
    """Mean loss and accuracy after an epoch: of the images trained on, and of those held out."""

    loss: float
    accuracy: float
    test_loss: float
    test_accuracy: float


# ---- The data


def digits(seed: int, dtype: DTypeLike) -> tuple[Data, Data]:
    """The images to train on, and a held-out fifth with every digit in proportion."""
    from sklearn.datasets import (  # type: ignore[import-untyped]  # noqa: PLC0415  optional
        load_digits,
    )
    from sklearn.model_selection import (  # type: ignore[import-untyped]  # noqa: PLC0415
        train_test_split,
    )

    images, labels = load_digits(return_X_y=True)
    images = (images / 8 - 1).astype(dtype)  # grey levels 0 ... 16
    x, x_test, y, y_test = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=seed
    )
    return (x, y), (x_test, y_test)


# ---- The network


def network(widths: Sequence[int], rng: np.random.Generator, dtype: DTypeLike) -> Params:
    """A multilayer perceptron: weights as in He et al. 2015, biases zero."""
    return [
        {
            "w": schuss.init.he_normal((before, after), rng, fans="keras", dtype=dtype),
            "b": np.zeros(after, dtype),
        }
        for before, after in pairwise(widths)
    ]


def cast(params: Params, dtype: DTypeLike) -> Params:
    """Parameters, or their gradients, in this type; arrays that have it already are not copied."""
    return [
        {name: array.astype(dtype, copy=False) for name, array in layer.items()} for layer in params
    ]


def forward(params: Params, x: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """What goes into each layer, and the logits that come out of the last one."""
    *hidden, last = params
    inputs = [x]
    for layer in hidden:
        inputs.append(np.maximum(inputs[-1] @ layer["w"] + layer["b"], 0))
    return inputs, inputs[-1] @ last["w"] + last["b"]


def cross_entropy(logits: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean loss of a batch, and its gradient with respect to the logits."""
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    right = np.arange(len(y)), y
    delta = np.exp(log_p)
    delta[right] -= 1
    return -float(log_p[right].mean()), delta / len(y)


def loss_and_gradients(params: Params, x: np.ndarray, y: np.ndarray) -> tuple[float, Params]:
    """The mean loss of a batch, and its gradients in the structure of the parameters."""
    inputs, logits = forward(params, x)
    loss, delta = cross_entropy(logits, y)
    return loss, backward(params, inputs, delta)[0]


def backward(
    params: Params, inputs: Sequence[np.ndarray], delta: np.ndarray
) -> tuple[Params, np.ndarray]:
    """From the logits' gradient that of the parameters, and that of the first layer's sums."""
    grads: Params = []
    for i in reversed(range(len(params))):
        grads.insert(0, {"w": inputs[i].T @ delta, "b": delta.sum(axis=0)})
        if i > 0:
            delta = (delta @ params[i]["w"].T) * (inputs[i] > 0)
    return grads, delta


def evaluate(params: Params, data: Data) -> tuple[float, float]:
    """Mean loss and accuracy."""
    x, y = data
    _, logits = forward(params, x)
    loss, _ = cross_entropy(logits, y)
    return loss, float(np.mean(logits.argmax(axis=1) == y))


# ---- The training


def rate(rule: type[schuss.Optimizer], lr: float, steps: int) -> float | schuss.schedules.Schedule:
    """Climbs to `lr` in a tenth of the steps and falls to 0, unless the rule wants a constant.

    That is one whose rate can't be 0, and one that averages its points instead.
    """
    if hasattr(rule, "eval"):
        return lr
    try:
        rule.hyperparameters["lr"].check(0.0)
    except ValueError:
        return lr
    return schuss.schedules.cosine(lr, steps=steps, warmup=steps // 10)


@contextmanager
def result(rule: type[schuss.Optimizer], opt: Any) -> Iterator[None]:
    """Puts in place of the parameters what a rule that averages them has come to."""
    if not hasattr(rule, "eval"):
        yield
        return
    opt.eval()
    try:
        yield
    finally:
        opt.train()


class Alone:
    """One process, which steps by each batch as a whole; together.py has others."""

    def optimizer(self, rule: type[schuss.Optimizer], params: Params, **options: Any) -> Any:
        return rule(params, **options)

    def asked(self, gradients: Gradients, x: np.ndarray, y: np.ndarray) -> tuple[float, Any]:
        """The loss of a batch, and what a step takes."""
        loss, grads = gradients(x, y)
        return loss, {"grads": grads}


def train(
    params: Params,
    data: Data,
    test: Data,
    *,
    rule: type[schuss.Optimizer],
    lr: float,
    epochs: int,
    batch_size: int,
    gradient_dtype: DTypeLike,
    rng: np.random.Generator,
    way: Alone | None = None,
    save: str | Path | None = None,
    resume: str | Path | None = None,
    **options: Any,
) -> Iterator[Epoch]:
    """Trains the parameters in place, and yields after every epoch.

    The images' type is what everything is computed in, whatever the parameters and gradients are
    stored in. The learning rate is that of `rate`; the rule has the other options as well; `way`
    says who steps by what. After each epoch all that the next one needs is in the file `save`; from
    the file `resume`, which the call reads, a training goes on, to the same bits. Raises
    FloatingPointError where the loss is no longer finite.
    """
    way = way or Alone()
    batches = schuss.data.Batches(*data, size=batch_size, rng=rng)
    steps = epochs * len(batches)
    dtype = data[0].dtype
    opt = way.optimizer(rule, params, lr=rate(rule, lr, steps), **options)
    done = schuss.load(resume, params=params, opt=opt, rng=rng)["epoch"] if resume else 0

    def gradients(x: np.ndarray, y: np.ndarray) -> tuple[float, Params]:
        loss, grads = loss_and_gradients(cast(params, dtype), x, y)
        return loss, cast(grads, gradient_dtype)

    def trained(epoch: int) -> Epoch:
        with np.errstate(over="ignore", invalid="ignore"):  # the check below says it in words
            for x, y in batches:
                loss, asked = way.asked(gradients, x, y)
                require_finite(loss, epoch)
                opt.step(**asked, loss=loss)
            with result(rule, opt):
                wide = cast(params, dtype)
                reached = Epoch(*evaluate(wide, data), *evaluate(wide, test))
        require_finite(reached.loss, epoch)
        if save:
            schuss.save(save, params=params, opt=opt, rng=rng, epoch=epoch)
        return reached

    return map(trained, range(done + 1, epochs + 1))


def require_finite(loss: float, epoch: int) -> None:
    """Raises FloatingPointError once there is nothing left to learn from."""
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} in epoch {epoch}; a smaller learning rate may help"
        )
