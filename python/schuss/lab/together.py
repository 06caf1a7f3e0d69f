"""Many processes train one network, each on its part of every batch: `schuss demo --mpi`."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any

import numpy as np

from schuss.lab.options import Rule
from schuss.lab.trainer import Alone, Gradients, Params
from schuss.mpi import Sharded
from schuss.mpi.wire import load

WAIT = 1.0  # seconds, in which the others come to an error that they have as well


class Parts(Alone):
    """One process with the gradients of so many: pieces, in their order."""

    def __init__(self, size: int) -> None:
        self.size = size

    def optimizer(self, rule: Rule, params: Params, **options: Any) -> Any:
        self.nothing = [dict.fromkeys(layer) for layer in params]
        self.opt = self.made(rule, params, **options)
        return self.opt

    def made(self, rule: Rule, params: Params, **options: Any) -> Any:
        return rule(params, **options)

    def asked(self, gradients: Gradients, x: np.ndarray, y: np.ndarray) -> tuple[float, Any]:
        own = [self.of_part(rank, gradients, x, y) for rank in range(self.size)]
        losses, pieces = zip(*own, strict=True)
        weights = self.weights(y)
        return mean(losses, weights), {"pieces": pieces, "weights": weights}

    def of_part(self, rank: int, gradients: Gradients, x: np.ndarray, y: np.ndarray) -> Any:
        """The mean loss of a process' images, and its gradients; nothing where it has none."""
        x, y = (np.array_split(a, self.size)[rank] for a in (x, y))
        return gradients(x, y) if len(y) else (0.0, self.nothing)

    def weights(self, y: np.ndarray) -> list[float]:
        """By which means over parts add up to that of the batch."""
        return [len(part) / len(y) for part in np.array_split(y, self.size)]


class Together(Parts):
    """One of the processes of a communicator, which step together."""

    def __init__(self, comm: Any) -> None:
        super().__init__(comm.size)
        self.comm = comm

    def made(self, rule: Rule, params: Params, **options: Any) -> Any:
        return Sharded(rule, params, comm=self.comm, **options)

    def asked(self, gradients: Gradients, x: np.ndarray, y: np.ndarray) -> tuple[float, Any]:
        loss, grads = self.of_part(self.comm.rank, gradients, x, y)
        weights = self.weights(y)
        return mean(self.comm.allgather(loss), weights), {"grads": grads, "weights": weights}


def mean(losses: Sequence[float], weights: Sequence[float]) -> float:
    """That of the batch, added up in the order of the processes."""
    return sum(w * loss for w, loss in zip(weights, losses, strict=True))


@contextmanager
def all_processes() -> Iterator[Any]:
    """MPI's communicator of all processes, which end together.

    An error that all have is process 0's to tell; one that a process has alone ends the others.
    """
    try:
        comm = load().COMM_WORLD
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        raise argparse.ArgumentError(None, str(error)) from None
    ends = comm.Dup()
    try:
        yield comm
    except BaseException:
        reached, late = ends.Ibarrier(), monotonic() + WAIT
        while not (all_here := reached.Test()) and monotonic() < late:
            sleep(0.01)
        if not all_here:
            print(f"process {comm.rank}, which ends all:", file=sys.stderr)
            traceback.print_exc()
            sys.stderr.flush()
            ends.Abort(2)
        if comm.rank > 0:
            raise SystemExit(2) from None
        raise
