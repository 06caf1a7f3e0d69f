"""A federated server's round: `python bench/federated.py [--elements N] [--clients K] [--quick]`.

Flower's FedAdam and FedYogi, and ours of the same names, take the replies of ten clients to a model
of 20 arrays in float32: from the record of the model to the next one. First both have the same
numbers to rounding. Then the rounds take turns, on one thread. Last, tracemalloc watches two rounds
of each: the most that a server holds in the second one, beside the replies. README.md explains the
table.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tracemalloc
from collections.abc import Callable, Iterable
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity

import schuss
from schuss import federated
from schuss.lab.bench.report import processor

ARRAYS = 20
STRATEGIES = {
    "FedAdam": (flower.FedAdam, federated.FedAdam),
    "FedYogi": (flower.FedYogi, federated.FedYogi),
}


class Grid:
    """What a strategy asks before it sends: which nodes there are."""

    def get_node_ids(self) -> Iterable[int]:
        return range(1, 3)


def replies(elements: int, clients: int) -> list[Message]:
    """One message of each client."""
    found = []
    for client in range(clients):
        rng = np.random.default_rng(client)
        model = {
            str(i): Array(rng.standard_normal(elements // ARRAYS, np.float32))
            for i in range(ARRAYS)
        }
        metrics = MetricRecord({"num-examples": 10 + client})
        content = RecordDict({"arrays": ArrayRecord(model), "metrics": metrics})
        found.append(Message(content, dst_node_id=client, message_type="train"))
    return found


class Server:
    """A strategy, and the record that its last round gave."""

    def __init__(self, strategy: Any, elements: int) -> None:
        self.strategy = strategy
        zeros = np.zeros(elements // ARRAYS, np.float32)
        self.sent = ArrayRecord({str(i): Array(zeros) for i in range(ARRAYS)})
        self.rounds = 0
        self.seconds: list[float] = []

    def round(self, given: list[Message]) -> None:
        self.rounds += 1
        start = perf_counter()
        self.strategy.configure_train(self.rounds, self.sent, ConfigRecord(), Grid())
        self.sent, _ = self.strategy.aggregate_train(self.rounds, given)
        self.seconds.append(perf_counter() - start)


def peak(make: Callable[[], Any], elements: int, given: list[Message]) -> int:
    """The most that a server holds in its second round, in bytes; the replies are not among it."""
    tracemalloc.start()
    server = Server(make(), elements)
    server.round(given)
    tracemalloc.reset_peak()
    server.round(given)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def compare(elements: int, clients: int, rounds: int) -> None:
    given = replies(elements, clients)
    print(f"{processor()}, one thread: {elements:,} parameters, {clients} clients")
    print(f"{'':18}{'seconds':>9}{'ns/elem':>9}{'ratio':>7}{'peak, GB':>10}{'bytes/elem':>12}")
    for name, pair in STRATEGIES.items():
        servers = [Server(make(), elements) for make in pair]
        for _ in range(2):
            for server in servers:
                server.round(given)
        theirs, ours = ({k: a.numpy() for k, a in s.sent.items()} for s in servers)
        if not all(np.allclose(ours[k], a, rtol=1e-4, atol=1e-6) for k, a in theirs.items()):
            sys.exit(f"{name}: the models differ")
        del theirs, ours
        for server in servers:
            server.seconds.clear()
        for _ in range(rounds):
            for server in servers:
                server.round(given)
        times = [median(server.seconds) for server in servers]
        servers.clear()  # whose models are not to be in the way of the next ones'
        for whose, make, seconds in zip(("Flower", "Schuss"), pair, times, strict=True):
            row = f"{name + ', ' + whose:18}{seconds:9.3f}{1e9 * seconds / elements:9.2f}"
            most = peak(make, elements, given)
            row += f"{seconds / times[1]:7.1f}{most / 1e9:10.2f}{most / elements:12.1f}"
            print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--elements", type=int, default=20_000_000)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a million parameters")
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    for name in ("run_id", "task_id", "node_id"):  # messages are made within a run
        setattr(TaskIdentity, name, 1)
    with schuss.threads(1):
        compare(1_000_000 if options.quick else options.elements, options.clients, options.rounds)


if __name__ == "__main__":
    main()
