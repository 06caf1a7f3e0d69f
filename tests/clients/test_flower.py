"""Servers of Flower: its own numbers, in one pass over the bytes of the messages."""

from __future__ import annotations

import importlib
import io
import random
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

import schuss
from schuss.engine.optimizer import Optimizer

pytest.importorskip("flwr", reason="flwr is not installed: its tests did not run")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity

from clients import recipes
from schuss import federated

PAGE = recipes.run("Flower", "federated.md", np=np, schuss=schuss)  # its servers
Model = dict[str, np.ndarray]
NODES = [11, 12, 13]
ARGUMENTS: dict[str, dict[str, Any]] = {
    "FedAdam": {"eta": 0.05, "beta_1": 0.8, "beta_2": 0.95, "tau": 1e-2},
    "FedYogi": {"eta": 0.05, "beta_1": 0.8, "beta_2": 0.95, "tau": 1e-2},
    "FedAdagrad": {"eta": 0.05, "tau": 1e-2},
    "FedAvgM": {"server_learning_rate": 0.5, "server_momentum": 0.7},
}


@pytest.fixture(autouse=True)
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are made within a run, and nodes are drawn."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    random.seed(0)


class Grid:
    """What a strategy asks of Flower's grid; each client's model is the round's, changed."""

    def __init__(self, change: Callable[[Any, Model], Model]) -> None:
        self.change = change
        self.sent = 0

    def get_node_ids(self) -> Iterable[int]:
        return NODES

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        self.sent += 1
        return [self.answer(message) for message in messages]

    def answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        examples = 10 * node
        content = RecordDict({"metrics": MetricRecord({"num-examples": examples, "loss": 2.0})})
        if "arrays" in message.content and message.metadata.message_type == "train":
            arrays: Any = message.content["arrays"]
            model = {k: a.numpy() for k, a in arrays.items()}
            content["arrays"] = record(self.change(np.random.default_rng([self.sent, node]), model))
        return reply(message, content)


def reply(message: Message, content: RecordDict | Error) -> Message:
    message.metadata.__dict__["_message_id"] = "1"  # as sending does
    return Message(content, reply_to=message)


def record(model: Model) -> ArrayRecord:
    return ArrayRecord({k: Array(np.asarray(a)) for k, a in model.items()})


def arrays(dtype: Any = np.float64) -> Model:
    rng = np.random.default_rng(1)
    shapes: dict[str, tuple[int, ...]] = {"conv.weight": (7, 3, 5), "scale": (), "none": (0, 3)}
    found = {k: np.asarray(rng.standard_normal(s), dtype) for k, s in shapes.items()}
    return found | {"turned": np.asfortranarray(rng.standard_normal((5, 6)), dtype)}


def trained(rng: Any, model: Model) -> Model:
    return {k: np.add(a, rng.normal(0, 0.1, a.shape).astype(a.dtype)) for k, a in model.items()}


def run(
    strategy: Any, model: Model, change: Callable[[Any, Model], Model] = trained, rounds: int = 4
) -> Model:
    """What a model has become."""
    random.seed(0)
    result = strategy.start(Grid(change), record(model), rounds, evaluate_config=ConfigRecord())
    return {k: a.numpy() for k, a in result.arrays.items()}


def one_round(strategy: Any, number: int, given: ArrayRecord, grid: Grid) -> Any:
    """What a strategy returns of a round."""
    random.seed(number)
    messages = strategy.configure_train(number, given, ConfigRecord(), grid)
    return strategy.aggregate_train(number, grid.send_and_receive(messages))


# ---- Numbers


@pytest.mark.parametrize("name", ARGUMENTS)
def test_flower_s_own_numbers(name: str) -> None:
    """In float64 all four to 1e-13 of the largest, and FedAvgM to the bit."""
    for given in (ARGUMENTS[name], {}):
        want = run(getattr(flower, name)(**given), arrays())
        got = run(getattr(federated, name)(**given), arrays())
        for k, a in want.items():
            assert got[k].dtype == a.dtype
            np.testing.assert_allclose(got[k], a, rtol=1e-13, atol=1e-13, err_msg=k)
        if name == "FedAvgM" and given:
            assert all(got[k].tobytes() == a.tobytes() for k, a in want.items())
    assert set(got) == set(want) == set(arrays())


@pytest.mark.parametrize("name", ARGUMENTS)
def test_float32_stays(name: str) -> None:
    """Where Flower's FedAdam goes on in float64, since its rate is a NumPy scalar."""
    want = run(getattr(flower, name)(**ARGUMENTS[name]), arrays(np.float32))
    got = run(getattr(federated, name)(**ARGUMENTS[name]), arrays(np.float32))
    for k, a in want.items():
        assert got[k].dtype == np.float32
        np.testing.assert_allclose(got[k], a, rtol=1e-5, atol=1e-6, err_msg=k)
        if name == "FedAvgM":
            assert got[k].tobytes() == a.tobytes()


RULES: dict[str, type[Optimizer]] = {
    "FedAdam": schuss.Adam,
    "FedYogi": schuss.Yogi,
    "FedAdagrad": schuss.Adagrad,
    "FedAvgM": schuss.Momentum,
}


@pytest.mark.parametrize("name", RULES)
def test_preset_is_ascent_on_the_difference(name: str) -> None:
    """The defaults are Flower's, too, but for the momentum that FedAvgM is without."""
    given = {"server_momentum": 0.9} if name == "FedAvgM" else {}
    theirs: Any = getattr(flower, name)(**given)
    start = {"w": np.linspace(-1.0, 1.0, 50)}
    x, y = {"w": start["w"].copy()}, {"w": start["w"].copy()}
    opt = RULES[name](x, preset="flower")
    drawn = RULES[name](y, preset="flower", l2=1.0)
    grid, sent = Grid(lambda rng, model: {"w": rng.standard_normal(50)}), record(start)
    shares = np.array(NODES) / sum(NODES)
    for number in range(1, 6):
        sent, _ = one_round(theirs, number, sent, grid)
        clients = [{"w": np.random.default_rng([grid.sent, n]).standard_normal(50)} for n in NODES]
        mean = schuss.average([c["w"] for c in clients], shares)
        opt.step({"w": mean - x["w"]})
        drawn.step(pieces=clients, weights=shares)
        assert x["w"].tobytes() == y["w"].tobytes()
        np.testing.assert_allclose(x["w"], sent["w"].numpy(), rtol=1e-12, atol=1e-13)


# ---- What else a model has


def with_counters() -> Model:
    return {"w": np.ones(4), "count": np.array(7), "seen": np.array([True, False, True])}


def counted(rng: Any, model: Model) -> Model:
    return {
        "w": model["w"] + 1,
        "count": model["count"] + rng.integers(1, 9),
        "seen": model["seen"] ^ (rng.random(3) < 0.2),
    }


def test_whole_numbers_are_averaged_and_stay_whole() -> None:
    theirs = run(flower.FedAvg(), with_counters(), counted, rounds=1)
    ours = run(federated.FedAdam(), with_counters(), counted, rounds=1)
    assert theirs["count"].dtype == np.float64
    assert ours["count"].dtype == np.int64
    assert ours["count"] == np.rint(theirs["count"])
    assert ours["seen"].dtype == bool
    assert ours["seen"].tolist() == np.rint(theirs["seen"]).astype(bool).tolist()


def normalised() -> Model:
    return {"weight": np.ones(5), "bn.running_var": np.full(5, 0.05)}


def shrunk(rng: Any, model: Model) -> Model:
    return {k: 0.8 * a for k, a in model.items()}


def test_variances_stay_positive() -> None:
    """Adam's steps are as long as eta, however short the way is: past 0, where nothing holds."""
    for server in (flower.FedAdam(), federated.FedAdam()):
        found = run(server, normalised(), shrunk)
        assert (found["bn.running_var"] < 0).all()
    servers = PAGE["Bounded"], PAGE["Averaged"]
    bounded, averaged = (run(server(), normalised(), shrunk) for server in servers)
    assert (bounded["bn.running_var"] == 1e-5).all()
    np.testing.assert_allclose(averaged["bn.running_var"], 0.05 * 0.8**4)
    for other in (bounded, averaged):
        assert other["weight"].tobytes() == found["weight"].tobytes()


def test_replies_of_another_type_or_order() -> None:
    def change(rng: Any, model: Model) -> Model:
        return {k: np.array(a, np.float64, order="C") for k, a in model.items()}

    def plain(rng: Any, model: Model) -> Model:
        return model

    want = run(federated.FedAdam(), arrays(np.float32), plain)
    got = run(federated.FedAdam(), arrays(np.float32), change)
    assert all(got[k].tobytes() == a.tobytes() for k, a in want.items())


# ---- A server of one's own


class Lions(federated.OnePass):
    def optimizer(self, params: Any) -> Optimizer:
        return schuss.Lion(params, lr=0.01)


class Proximal(Lions, flower.FedProx):
    """Which tells its clients of its mu."""


def test_a_rule_of_one_s_own() -> None:
    random.seed(0)
    x = {"w": np.ones(3)}
    server = Proximal(proximal_mu=0.5)
    config = ConfigRecord()
    grid = Grid(lambda rng, model: {"w": model["w"] + [1.0, -1.0, 2.0]})
    replies = grid.send_and_receive(server.configure_train(1, record(x), config, grid))
    after, metrics = server.aggregate_train(1, replies)
    assert config["proximal-mu"] == 0.5
    assert after is not None
    np.testing.assert_allclose(after["w"].numpy(), [1.01, 0.99, 1.01])
    assert metrics == {"loss": pytest.approx(2.0)}
    assert server.opt.iterations == 1
    assert server.params["w"].tobytes() == after["w"].numpy().tobytes()


def test_a_round_that_nobody_answers_leaves_the_model() -> None:
    server, grid = federated.FedAdam(), Grid(trained)
    messages = [*server.configure_train(1, record(arrays()), ConfigRecord(), grid)]
    before = {k: x.copy() for k, x in server.params.items()}
    failed = [reply(message, Error(code=1, reason="down")) for message in messages]
    assert server.aggregate_train(1, failed) == (None, None)
    assert server.aggregate_train(1, []) == (None, None)
    assert all(x.tobytes() == before[k].tobytes() for k, x in server.params.items())
    after, _ = server.aggregate_train(1, [*failed, *grid.send_and_receive(messages[:1])])
    assert after is not None
    assert server.opt.iterations == 1


def test_arrays_that_another_changed_are_taken_over() -> None:
    """As by noise for privacy, between the rounds."""
    grids = Grid(trained), Grid(trained)
    ours: Any = federated.FedAdam(**ARGUMENTS["FedAdam"])
    theirs: Any = flower.FedAdam(**ARGUMENTS["FedAdam"])
    found, want = record(arrays()), record(arrays())
    for number in range(1, 5):
        found, _ = one_round(ours, number, found, grids[0])
        want, _ = one_round(theirs, number, want, grids[1])
        for k, a in want.items():
            np.testing.assert_allclose(found[k].numpy(), a.numpy(), rtol=1e-12, atol=1e-13)
        noise = np.random.default_rng(number).normal(0, 0.1, (5, 6))
        for each in found, want:
            each["turned"] = Array(np.asfortranarray(each["turned"].numpy() + noise))


def test_a_strategy_of_the_older_kind() -> None:
    """The page's recipe: FedAdam's numbers from the arrays of Flower's own Parameters."""
    older: Any = importlib.import_module("flwr.server.strategy")
    common: Any = importlib.import_module("flwr.common")
    rng = np.random.default_rng(0)
    start = common.ndarrays_to_parameters([np.ones(4), np.zeros((2, 3))])
    theirs = older.FedAdam(initial_parameters=start, tau=1e-3)
    ours = PAGE["Stepped"](start, min_fit_clients=2)
    assert ours.aggregate_fit(0, [], []) == (None, {})
    for number in range(1, 5):
        replies = []
        for examples in 10, 30:
            model = [x + rng.normal(0, 0.1, x.shape) for x in ours.params]
            sent = common.ndarrays_to_parameters(model)
            replies.append((None, common.FitRes(None, sent, examples, {})))
        want, got = (
            common.parameters_to_ndarrays(server.aggregate_fit(number, replies, [])[0])
            for server in (theirs, ours)
        )
        for x, a in zip(got, want, strict=True):
            np.testing.assert_allclose(x, a, rtol=1e-13, atol=1e-13)


# ---- Errors


class Clipping(federated.OnePass):
    limits: dict[str, Any]

    def optimizer(self, params: Any) -> Optimizer:
        return schuss.SGD(params, lr=1.0, **self.limits)


class Forgetful(federated.OnePass):
    def optimizer(self, params: Any) -> Optimizer:
        return None  # type: ignore[return-value]


class Elsewhere(federated.OnePass):
    name = "scale"

    def optimizer(self, params: Any) -> Optimizer:
        return schuss.SGD({self.name: params["scale"].copy()}, lr=1.0)


def test_optimizers_that_do_not_serve() -> None:
    config, grid = ConfigRecord(), Grid(trained)
    elsewhere = Elsewhere()
    for elsewhere.name in ("scale", "turned", "no such name"):
        with pytest.raises(ValueError, match="optimizer: has other arrays or names"):
            elsewhere.configure_train(1, record(arrays()), config, grid)
    clipping = Clipping()
    for limits in ({"clip_norm": 1.0}, {"clip_value": 1.0}):
        clipping.limits = limits
        with pytest.raises(ValueError, match="optimizer: clips the mean itself"):
            clipping.configure_train(1, record(arrays()), config, grid)
    clipping.limits = {"grad_scale": 2.0}
    with pytest.raises(ValueError, match="optimizer: grad_scale: scales the mean itself"):
        clipping.configure_train(1, record(arrays()), config, grid)
    with pytest.raises(TypeError, match="optimizer: returned NoneType"):
        Forgetful().configure_train(1, record(arrays()), config, grid)
    with pytest.raises(NotImplementedError, match="optimizer: "):
        federated.OnePass().configure_train(1, record(arrays()), config, grid)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"w": np.ones(3)}, "replies[0]: 'w', but the model has 'w', 'b'"),
        ({"w": np.ones(4), "b": np.ones(2)}, "replies[0]['w']: shape (4,), but the model has (3,)"),
    ],
)
def test_replies_that_are_no_models(wrong: Model, says: str) -> None:
    server = federated.FedAdam()
    grid = Grid(lambda rng, model: wrong)
    given = record({"w": np.ones(3), "b": np.ones(2)})
    with pytest.raises(ValueError, match=re.escape(says)):
        one_round(server, 1, given, grid)
    assert (server.params["w"] == 1).all()
    assert server.opt.iterations == 0
    with pytest.raises(ValueError, match=re.escape(says.replace("replies[0]", "arrays"))):
        server.configure_train(2, record(wrong), ConfigRecord(), grid)


def serialized(array: np.ndarray, version: tuple[int, int] = (1, 0), stype: str = "") -> Array:
    """What a client may send that is no array of numbers."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version)
    kind = stype or "numpy.ndarray"
    return Array(str(array.dtype), array.shape, kind, stream.getvalue())


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (serialized(np.array([1, None, "a"], object)), "['w']: dtype object is not supported"),
        (serialized(np.ones(3, complex)), "['w']: dtype complex128 is not supported"),
        (serialized(np.array(["1", "2", "3"])), "['w']: dtype <U1 is not supported"),
        (serialized(np.ones(3, "V2")), "['w']: dtype |V2 is not supported"),
        (serialized(np.ones(3), (2, 0)), "['w']: a file of NumPy's in version (2, 0), wanted"),
        (serialized(np.ones(3), stype="mine"), "['w']: serialized as 'mine', wanted"),
        (Array("float64", (3,), "numpy.ndarray", b""), "['w']: EOF"),
        (
            Array(
                "float64", (3,), "numpy.ndarray", serialized(np.ones(3)).data.replace(b"}", b"(")
            ),
            "['w']:",
        ),
        (Array("float64", (3,), "numpy.ndarray", serialized(np.ones(3)).data[:-1]), "too small"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bytes_that_are_no_numbers(sent: Array, says: str) -> None:
    """Objects above all, whose bytes would be taken for addresses."""
    server = federated.FedAdam()
    grid = Grid(trained)
    messages = [*server.configure_train(1, record({"w": np.ones(3)}), ConfigRecord(), grid)]
    replies = grid.send_and_receive(messages)
    replies[1].content["arrays"] = ArrayRecord({"w": sent})
    with pytest.raises(ValueError, match=r"replies\[1\]" + f".*{re.escape(says)}"):
        server.aggregate_train(1, replies)
    assert (server.params["w"] == 1).all()
    assert server.opt.iterations == 0
    with pytest.raises(ValueError, match="arrays.*" + re.escape(says)):
        federated.FedAdam().configure_train(1, ArrayRecord({"w": sent}), ConfigRecord(), grid)


@pytest.mark.parametrize("mean", [np.nan, np.inf, 300.0, -1.0])
def test_a_mean_that_is_no_whole_number_leaves_the_model(mean: float) -> None:
    server = federated.FedAdam()
    grid = Grid(lambda rng, model: {"w": model["w"] + 1, "count": np.array(mean)})
    given = record({"w": np.ones(3), "count": np.array(7, np.uint8)})
    with pytest.raises(ValueError, match="the mean of 'count' is not in the range of uint8"):
        one_round(server, 1, given, grid)
    assert (server.params["w"] == 1).all()
    assert server.params["count"] == 7
    assert server.opt.iterations == 0


class Skipping(federated.OnePass):
    def optimizer(self, params: Any) -> Optimizer:
        return schuss.SGD({"w": params["w"]}, lr=1.0, nonfinite="skip")


def test_a_step_that_is_skipped_leaves_the_rest() -> None:
    server = Skipping()
    grid = Grid(lambda rng, model: {k: a + np.nan for k, a in model.items()})
    given = record({"w": np.ones(3), "running": np.ones(3)})
    after, _ = one_round(server, 1, given, grid)
    assert server.opt.skipped_steps == 1
    assert all((after[k].numpy() == 1).all() for k in given)


def test_replies_before_a_model() -> None:
    server, grid = federated.FedAdam(), Grid(trained)
    messages = [*federated.FedAdam().configure_train(1, record(arrays()), ConfigRecord(), grid)]
    with pytest.raises(RuntimeError, match="aggregate_train: there is no model yet"):
        server.aggregate_train(1, grid.send_and_receive(messages))


def test_a_missing_flwr_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['flwr'] = None\n"
        "import schuss\n"
        "try:\n    import schuss.federated\n"
        "except ModuleNotFoundError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "needs flwr 1.42 or newer: pip install 'schuss[flower]'" in done.stdout
    code = "import sys, schuss; assert 'flwr' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- Memory


def peak(strategy: Any, size: int) -> float:
    """The most that a second round holds beside what there was before it, in models."""
    grid = Grid(lambda rng, model: {"w": model["w"] + np.float32(0.1)})
    sent, _ = one_round(strategy, 1, record({"w": np.zeros(size, np.float32)}), grid)
    messages = [*strategy.configure_train(2, sent, ConfigRecord(), grid)]
    replies = grid.send_and_receive(messages)
    tracemalloc.start()
    strategy.configure_train(2, sent, ConfigRecord(), grid)
    strategy.aggregate_train(2, replies)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / (4 * size)


def test_a_round_makes_one_model_for_the_clients_and_no_other() -> None:
    size = 1_000_000
    assert peak(federated.FedAdam(), size) < 1.1
    assert peak(flower.FedAdam(), size) > 5
