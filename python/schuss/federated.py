"""Servers of Flower (flwr): the clients' weighted mean and the server's step, in one pass.

    from schuss.federated import FedAdam          # in place of flwr.serverapp.strategy's

    strategy = FedAdam(eta=0.1)
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(weights), num_rounds=10)

The replies' arrays are read where they lie in the messages, and the mean, the way to it and the
step are taken block by block: no client's model is copied, and no array is made for the mean or the
difference.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from schuss.engine.memory import order_of
from schuss.engine.optimizer import Optimizer
from schuss.engine.structure import Arrays, is_floating, listing
from schuss.rules import SGD, Adagrad, Adam, Yogi

try:
    from flwr.app import Array, ArrayRecord
    from flwr.common.constant import SType
    from flwr.serverapp import strategy as flower
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "schuss.federated: needs flwr 1.42 or newer: pip install 'schuss[flower]'",
        name=missing.name,
    ) from missing

if TYPE_CHECKING:
    from flwr.app import ConfigRecord, Message, MetricRecord
    from flwr.serverapp import Grid

__all__ = ["FedAdagrad", "FedAdam", "FedAvgM", "FedYogi", "OnePass"]


class OnePass(flower.FedAvg):
    """Federated averaging whose server steps by a rule: FedAvg, and a method that names the rule.

        g = x - sum_k n_k/n * a_k       n_k of n examples have brought client k from x to a_k
        x is stepped by g, as the rule says

        class Server(OnePass):
            def optimizer(self, params):
                return schuss.Lion(params, lr=1e-3)

    The constructor's arguments are FedAvg's. From the first round on there are

    params   the model by name: the arrays that are stepped
    opt      the optimizer, as in schuss.save(path, params=server.params, opt=server.opt)

    What the optimizer does not step, such as arrays of whole numbers, becomes the clients' weighted
    mean, rounded to its type; a step that `nonfinite="skip"` leaves undone leaves all of the model.
    Replies of another type or memory order than the model's are copied into one that fits. A
    round's arrays that are not what the round before returned, since noise was added to them for
    example, are taken over first.

    Raises ValueError for an optimizer that clips or scales, which would do so to the mean and not
    to the way to it, or that has other arrays than `params`; for messages whose arrays are no
    numbers, or have other names or shapes than the model's; for a mean that the type of a whole
    number can't hold; and as Optimizer.step. RuntimeError where replies come before a model. The
    model is then as it was.
    """

    params: dict[str, np.ndarray]
    opt: Optimizer

    def optimizer(self, params: dict[str, np.ndarray]) -> Optimizer:
        """An optimizer of some of these arrays or all; its `l2` and `maximize` are set afterwards.

        params   the arrays of floating-point numbers, by name
        """
        raise NotImplementedError("optimizer: a method that returns one is wanted")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Takes over the round's arrays, and has FedAvg ask the clients."""
        self._take(arrays)
        messages: Iterable[Message] = super().configure_train(server_round, arrays, config, grid)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Steps by what clients reply; returns the model and their metrics, None without any."""
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        if not valid:
            return None, None
        if not hasattr(self, "opt"):
            raise RuntimeError("aggregate_train: there is no model yet; call configure_train first")
        contents = [message.content for message in valid]
        key = self.weighted_by_key
        sizes: list[Any] = [next(iter(c.metric_records.values()))[key] for c in contents]
        records = [next(iter(c.array_records.values())) for c in contents]
        self._step(records, [size / sum(sizes) for size in sizes])
        return self._record(), self.train_metrics_aggr_fn(contents, key)

    def _take(self, arrays: ArrayRecord) -> None:
        """Makes the optimizer at first; later takes over what isn't what was returned."""
        if not hasattr(self, "opt"):
            params = {name: np.array(a) for name, a in views("arrays", arrays).items()}
            floating = {name: x for name, x in params.items() if is_floating(x.dtype)}
            self.opt = drawn(self.optimizer(dict(floating)), floating)
            self.params = params
            self._sent = {name: a.data for name, a in arrays.items()}
            return
        sent = self._sent
        same = arrays.keys() == sent.keys() and all(a.data is sent[k] for k, a in arrays.items())
        if not same:
            for name, a in fitting("arrays", arrays, self.params).items():
                self.params[name][...] = a
            self.opt.refresh()

    def _step(self, replies: list[ArrayRecord], weights: list[float]) -> None:
        """Steps what the optimizer has, and averages the rest."""
        clients = [fitting(f"replies[{i}]", r, self.params) for i, r in enumerate(replies)]
        means = {
            name: mean(name, [c.pop(name) for c in clients], weights, self.params[name].dtype)
            for name in self.params.keys() - self.opt.state.keys()
        }
        pieces = [{k: like(a, self.params[k]) for k, a in c.items()} for c in clients]
        if self.opt.step(pieces=pieces, weights=weights):
            for name, a in means.items():
                self.params[name][...] = a

    def _record(self) -> ArrayRecord:
        """The model for the clients; the bytes of an array begin as those that it came in."""
        record = ArrayRecord()
        for name, x in self.params.items():
            data = b"".join((head(self._sent[name]), x.ravel(order="K").view(np.uint8).data))
            record[name] = Array(str(x.dtype), x.shape, SType.NUMPY, data)
            self._sent[name] = data
        return record


class Known(OnePass):
    """Flower's own servers, but for the copy of the model that they make for a step of theirs."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As OnePass."""
        self._take(arrays)
        messages: Iterable[Message] = flower.FedAvg.configure_train(
            self, server_round, arrays, config, grid
        )
        return messages


class FedAdam(Known, flower.FedAdam):
    """Flower's FedAdam in one pass: its arguments, and its numbers to rounding.

        m = beta_1*m + (1 - beta_1)*d       d = sum_k n_k/n * a_k - x
        v = beta_2*v + (1 - beta_2)*d*d
        x = x + eta*sqrt(1 - beta_2^(t+1))/(1 - beta_1^(t+1)) * m/(sqrt(v) + tau)

    t counts the rounds in which clients replied, from 1, where Flower counts all. x keeps its type,
    where Flower's becomes float64.
    Source: Reddi et al. 2021, arXiv 2003.00295, algorithm 2, with Flower's bias correction.
    """

    def optimizer(self, params: Arrays) -> Optimizer:
        """Adam by the preset "flower"."""
        betas = self.beta_1, self.beta_2
        return Adam(params, preset="flower", lr=self.eta, betas=betas, eps=self.tau)


class FedYogi(Known, flower.FedYogi):
    """Flower's FedYogi in one pass: its arguments, and its numbers to rounding.

        m = beta_1*m + (1 - beta_1)*d       d = sum_k n_k/n * a_k - x
        v = v - (1 - beta_2)*sign(v - d*d)*d*d
        x = x + eta * m/(sqrt(v) + tau)

    Source: Reddi et al. 2021, arXiv 2003.00295, algorithm 2.
    """

    def optimizer(self, params: Arrays) -> Optimizer:
        """Yogi by the preset "flower"."""
        betas = self.beta_1, self.beta_2
        return Yogi(params, preset="flower", lr=self.eta, betas=betas, eps=self.tau)


class FedAdagrad(Known, flower.FedAdagrad):
    """Flower's FedAdagrad in one pass: its arguments, and its numbers to rounding.

        s = s + d*d                         d = sum_k n_k/n * a_k - x
        x = x + eta * d/(sqrt(s) + tau)

    Source: Reddi et al. 2021, arXiv 2003.00295, algorithm 2, without momentum.
    """

    def optimizer(self, params: Arrays) -> Optimizer:
        """Adagrad by the preset "flower"."""
        return Adagrad(params, preset="flower", lr=self.eta, eps=self.tau)


class FedAvgM(Known, flower.FedAvgM):
    """Flower's FedAvgM in one pass: its arguments, and its numbers to the bit.

        b = server_momentum*b - d           d = sum_k n_k/n * a_k - x; b = -d at first
        x = x - server_learning_rate*b

    With both at their defaults, 0 and 1, x becomes the mean to rounding.
    Source: Hsu et al. 2019, arXiv 1909.06335.
    """

    def optimizer(self, params: Arrays) -> Optimizer:
        """SGD by the preset "flower"."""
        lr, mu = self.server_learning_rate, self.server_momentum
        return SGD(params, preset="flower", lr=lr, momentum=mu)


def drawn(opt: Optimizer, params: dict[str, np.ndarray]) -> Optimizer:
    """Has an optimizer of some of these take what draws x for a gradient: x - mean of a mean."""
    if not isinstance(opt, Optimizer):
        raise TypeError(f"optimizer: returned {type(opt).__name__}, wanted an optimizer of schuss")
    names = set(map(str, opt.state))
    if not (names <= params.keys() and opt.holds({name: params[name] for name in names})):
        raise ValueError("optimizer: has other arrays or names; pass it those of `params`")
    if opt.clip_norm < math.inf or any(h["clip_value"] < math.inf for h in opt.param_groups):
        raise ValueError("optimizer: clips the mean itself, and not the way to it; leave that out")
    if opt.grad_scale != 1:
        raise ValueError("optimizer: grad_scale: scales the mean itself, and not the way to it")
    opt.maximize, opt.l2 = True, 1.0  # of -mean + 1*x
    return opt


def head(data: bytes) -> bytes:
    """The first bytes of a file of NumPy's, as `np.save` writes it: up to the elements."""
    return data[: 10 + int.from_bytes(data[8:10], "little")]


@functools.lru_cache(1024)  # NumPy has Python's parser read it, which takes longer than many a step
def layout(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type, as the head of a file of NumPy's has them."""
    stream = BytesIO(head)
    if (version := np.lib.format.read_magic(stream)) != (1, 0):
        raise ValueError(f"a file of NumPy's in version {version}, wanted (1, 0)")
    return np.lib.format.read_array_header_1_0(stream)


def view(array: Array) -> np.ndarray:
    """The array in the bytes of a message: read-only, and not copied."""
    if array.stype != SType.NUMPY:
        raise ValueError(f"serialized as {array.stype!r}, wanted {SType.NUMPY!r}")
    start = head(array.data)
    shape, is_fortran, dtype = layout(start)
    if dtype.kind not in "biuf":  # above all no objects: the bytes would be taken for pointers
        raise ValueError(f"dtype {dtype} is not supported; wanted real numbers")
    order: Literal["F", "C"] = "F" if is_fortran else "C"
    return np.ndarray(shape, dtype, array.data, len(start), order=order)


def views(role: str, record: ArrayRecord) -> dict[str, np.ndarray]:
    """The arrays of a record; errors name them."""
    found = {}
    for name, array in record.items():
        try:
            found[name] = view(array)
        except Exception as error:  # a head that is none is whatever Python's parser says of it
            raise ValueError(f"{role}[{name!r}]: {error}") from error
    return found


def fitting(role: str, record: ArrayRecord, params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a record, which has the model's names and shapes, or it is a ValueError."""
    if record.keys() != params.keys():
        wanted = listing(map(repr, params))
        raise ValueError(f"{role}: {listing(map(repr, record))}, but the model has {wanted}")
    found = views(role, record)
    for name, x in params.items():
        if found[name].shape != x.shape:
            shape = found[name].shape
            raise ValueError(f"{role}[{name!r}]: shape {shape}, but the model has {x.shape}")
    return found


def like(a: np.ndarray, x: np.ndarray) -> np.ndarray:
    """An array in the type and the memory order of x: itself, where it has them."""
    return np.asarray(a, x.dtype, order=order_of(x))


def mean(
    name: str, arrays: list[np.ndarray], weights: list[float], dtype: np.dtype[Any]
) -> np.ndarray:
    """The weighted mean in float64, rounded where the type is one of whole numbers."""
    total = np.zeros(arrays[0].shape)
    for a, w in zip(arrays, weights, strict=True):
        total += w * a
    if is_floating(dtype):
        return total
    whole = np.rint(total)
    with np.errstate(invalid="ignore"):
        found = whole.astype(dtype)
    if (found != whole).any():
        raise ValueError(f"replies: the mean of {name!r} is not in the range of {dtype}")
    return found
