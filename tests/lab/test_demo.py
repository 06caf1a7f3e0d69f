"""The demo: the classifier learns, the options do what they say, the picture shows the numbers."""

from __future__ import annotations

import functools
import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from ml_dtypes import bfloat16
from rich.console import Console

import schuss
from schuss.lab import demo, pictures, trainer
from schuss.lab import options as readers
from schuss.lab.bench import adamw
from schuss.lab.command import main


class Runs:
    """Runs the command, and keeps what passed through it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.figures: list[Figure] = []
        self.params: trainer.Params = []
        self.options: dict[str, Any] = {}
        self.threads = 0
        train, picture = trainer.train, demo.picture

        def kept_train(params: trainer.Params, *data: trainer.Data, **options: Any) -> Any:
            self.params, self.options, self.threads = params, options, schuss.get_num_threads()
            return train(params, *data, **options)

        def kept_picture(*args: Any) -> Figure:
            self.figures.append(picture(*args))
            return self.figures[-1]

        monkeypatch.setattr(demo, "train", kept_train)
        monkeypatch.setattr(demo, "picture", kept_picture)
        monkeypatch.setattr(demo, "compare", functools.partial(demo.compare, seconds=0.0))

    def __call__(self, *options: str | Path) -> trainer.Params:
        assert main(["demo", *map(str, options)]) == 0
        return self.params


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


def held_out(output: str) -> list[float]:
    """The accuracies in per cent that were printed for the held-out images, one an epoch."""
    return [float(found) for found in re.findall(r"held out: \S+ +(\S+)%", output)]


def drawn(line: Line2D) -> list[float]:
    """The heights of a line's points."""
    heights: list[float] = np.asarray(line.get_ydata(), float).tolist()
    return heights


def widths(axes: Axes) -> list[float]:
    """The lengths of the bars."""
    return [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]


def small() -> tuple[trainer.Params, trainer.Data]:
    rng = np.random.default_rng(0)
    params = trainer.network((5, 7, 6, 4), rng, "float64")
    return params, (rng.normal(size=(9, 5)), rng.integers(0, 4, 9))


def test_accuracy(run: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    def final(*options: str) -> list[float]:
        accuracies = []
        for seed in range(5):
            run("--seed", str(seed), *options)
            accuracies.append(held_out(capsys.readouterr().out)[-1])
        return accuracies

    float32 = final()
    assert np.mean(float32) >= 97
    assert min(float32) >= 96
    for options in (
        ("--dtype", "bfloat16", "--master"),
        ("--dtype", "bfloat16", "--stochastic-rounding"),
        ("--gradient-dtype", "bfloat16"),
    ):
        assert abs(np.mean(final(*options)) - np.mean(float32)) <= 0.5, options


def test_16_bits_alone_lose_small_steps(run: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    def loss(*options: str) -> float:
        run("--dtype", "bfloat16", *options)
        return float(re.findall(r"loss (\S+)", capsys.readouterr().out)[-1])

    plain = loss()
    assert loss("--master") < plain / 2
    assert loss("--stochastic-rounding") < plain / 2


@pytest.mark.parametrize("rule", readers.NAMED.values(), ids=lambda rule: rule.__name__)
def test_every_rule_learns_with_its_default(
    run: Runs, capsys: pytest.CaptureFixture[str], rule: type[schuss.Optimizer]
) -> None:
    run("--rule", rule.__name__, "--epochs", "10")
    assert run.options["rule"] is rule
    assert held_out(capsys.readouterr().out)[-1] >= 95


def test_gradient() -> None:
    params, data = small()
    _, grads = trainer.loss_and_gradients(params, *data)
    h = 1e-6
    for layer, grad in zip(params, grads, strict=True):
        for name, array in layer.items():
            numeric = np.empty_like(array)
            for i in np.ndindex(array.shape):
                at = array[i]
                array[i] = at + h
                above, _ = trainer.loss_and_gradients(params, *data)
                array[i] = at - h
                below, _ = trainer.loss_and_gradients(params, *data)
                array[i] = at
                numeric[i] = (above - below) / (2 * h)
            np.testing.assert_allclose(grad[name], numeric, rtol=0, atol=1e-8)


def test_evaluate_agrees_with_the_loss_of_training() -> None:
    params, (x, y) = small()
    loss, accuracy = trainer.evaluate(params, (x, y))
    assert loss == trainer.loss_and_gradients(params, x, y)[0]
    _, logits = trainer.forward(params, x)
    assert accuracy == sum(row.argmax() == digit for row, digit in zip(logits, y, strict=True)) / 9


def test_loss_of_extreme_logits_is_finite() -> None:
    loss, delta = trainer.cross_entropy(np.array([[1e4, -1e4]]), np.array([1]))
    assert loss == 2e4
    np.testing.assert_array_equal(delta, [[1, -1]])


def test_held_out_fifth() -> None:
    (x, y), (x_test, y_test) = trainer.digits(0, "float32")
    assert len(x) + len(x_test) == 1797
    assert len(x_test) == 360
    assert x.dtype == x_test.dtype == np.float32
    np.testing.assert_allclose(np.bincount(y_test), np.bincount(y) / 4, atol=1)


def test_default_network(run: Runs) -> None:
    params = run("--epochs", "1")
    assert [layer["w"].shape for layer in params] == [(64, 64), (64, 64), (64, 10)]
    assert demo.joined(params).size == 8970


@pytest.mark.parametrize(
    "options",
    [
        ("--epochs", "2"),
        ("--epochs", "1", "--batch-size", "1000"),  # 437 images are left for the last one
        ("--epochs", "1", "--batch-size", "100000"),
        ("--epochs", "1", "--hidden", "8"),
        ("--epochs", "1", "--dtype", "float64"),
        ("--epochs", "1", "--dtype", "bfloat16", "--gradient-dtype", "float16"),
        ("--epochs", "1", "--dtype", "float16", "--master"),
        ("--epochs", "1", "--dtype", "bfloat16", "--stochastic-rounding"),
        ("--epochs", "1", "--seed", "4294967295"),
        ("--epochs", "1", "--lr", "0.01", "--rule", "SGD"),
        ("--epochs", "1", "--threads", "1"),
        ("--epochs", "1", "--threads", "1000000000000"),
    ],
    ids=" ".join,
)
def test_backends_end_on_the_same_bits(run: Runs, options: tuple[str, ...]) -> None:
    compiled = run(*options)
    numpy = run(*options, "--backend", "numpy")
    assert run.options["backend"] == "numpy"
    assert demo.joined(compiled).tobytes() == demo.joined(numpy).tobytes()


def test_options_arrive(run: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    params = run(
        *[
            "--rule",
            "ADAM",
            "--lr",
            "2e-3",
            "--epochs",
            "3",
            "--batch-size",
            "500",
            "--hidden",
            "5",
            "6",
            "7",
        ]
    )
    assert run.options["rule"] is schuss.Adam
    assert run.options["lr"] == 2e-3
    assert run.options["batch_size"] == 500
    assert [layer["b"].size for layer in params] == [5, 6, 7, 10]
    assert len(held_out(capsys.readouterr().out)) == 3

    params = run("--epochs", "1", "--dtype", "float64")
    assert {array.dtype for layer in params for array in layer.values()} == {np.dtype("float64")}

    before = schuss.get_num_threads()
    run("--epochs", "1", "--threads", "3")
    assert run.threads == 3
    assert schuss.get_num_threads() == before

    seeds = [demo.joined(run("--epochs", "1", "--seed", seed)).tobytes() for seed in "122"]
    assert seeds[0] != seeds[1] == seeds[2]


@pytest.mark.parametrize(
    ("options", "stored", "gradient", "computed"),
    [
        ("", "float32", "float32", "float32"),
        ("--gradient-dtype bfloat16", "float32", "bfloat16", "float32"),
        ("--dtype float64", "float64", "float64", "float64"),
        ("--dtype float16 --master", "float16", "float16", "float32"),
        ("--dtype bfloat16 --stochastic-rounding", "bfloat16", "bfloat16", "float32"),
        ("--dtype bfloat16 --gradient-dtype float16", "bfloat16", "float16", "float32"),
        ("--dtype bfloat16 --gradient-dtype float32 --master", "bfloat16", "float32", "float32"),
    ],
)
def test_storage_options_arrive(
    run: Runs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: str,
    stored: str,
    gradient: str,
    computed: str,
) -> None:
    optimizers: list[schuss.Optimizer] = []
    types: dict[str, set[str]] = {"stored": set(), "gradient": set(), "computed": set()}

    class Watched(schuss.SGD):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            optimizers.append(self)

        def step(self, grads: Any = None, **options: Any) -> bool:
            if grads is not None:
                types["stored"] |= {x.dtype.name for x in self.param_groups[0]["params"]}
                types["gradient"] |= {g.dtype.name for layer in grads for g in layer.values()}
            return super().step(grads, **options)

    def watched(params: trainer.Params, x: np.ndarray) -> Any:
        inputs, logits = forward(params, x)
        arrays = [*inputs, logits, *(array for layer in params for array in layer.values())]
        types["computed"] |= {array.dtype.name for array in arrays}
        return inputs, logits

    forward = trainer.forward
    monkeypatch.setattr(trainer, "forward", watched)
    monkeypatch.setattr(readers, "NAMED", {"sgd": Watched})
    run("--rule", "sgd", "--epochs", "1", "--seed", "3", *options.split())
    assert types == {"stored": {stored}, "gradient": {gradient}, "computed": {computed}}
    assert len(optimizers) == 4  # the first look, the training, the comparison's two
    for opt in optimizers:
        assert opt.master == ("--master" in options)
        assert opt.stochastic_rounding == ("--stochastic-rounding" in options)
        assert opt.seed == 3
        assert ("master" in opt.state["0.w"]) == opt.master
    shown = capsys.readouterr().out.splitlines()[1]
    assert f" {stored} parameters" in shown
    assert ("master" in shown) == ("--master" in options)
    assert ("stochastic rounding" in shown) == ("--stochastic-rounding" in options)
    assert (f"{gradient} gradients" in shown) == ("--gradient-dtype" in options)


def test_no_learning_at_rate_zero(run: Runs) -> None:
    start = trainer.network((64, 64, 64, 10), np.random.default_rng(0), "float32")
    assert demo.joined(run("--lr", "0", "--epochs", "1")).tobytes() == demo.joined(start).tobytes()


def test_comparison(run: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    run("--epochs", "1", "--rule", "sgd", "--hidden", "4")
    rows = table(capsys.readouterr().out)
    others = ["AdamW, NumPy in place", "AdamW, pure Python"]
    assert [name for name, *_ in rows] == ["SGD, compiled", "SGD, reference", *others]
    assert min(ratio for _, _, ratio, _ in rows) == 1
    run("--epochs", "1", "--rule", "muon", "--hidden", "4")
    text = capsys.readouterr().out
    assert "reference" not in text  # there is none
    assert [name for name, *_ in table(text)] == ["Muon, compiled", *others]


def table(output: str) -> list[tuple[str, float, float, float]]:
    """Each way of a step: its name, time, ratio and share in per cent."""
    rows = re.findall(r"^(\w+, .+?)  +([\d.]+) +([\d.]+)x +(\d+)%$", output, re.MULTILINE)
    return [(name, float(ns), float(ratio), float(share)) for name, ns, ratio, share in rows]


def epochs_of(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("epoch")]


@pytest.mark.parametrize("rule", ["adamw", "schedulefreeadamw"])
def test_resumed(
    rule: str,
    run: Runs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A demo that was interrupted goes on to the same bits, from a file that it replaces."""
    chosen = ("--rule", rule, "--epochs", "4", "--hidden", "8")
    whole = run(*chosen)
    wanted = epochs_of(capsys.readouterr().out)
    path, train = tmp_path / "demo.safetensors", trainer.train
    with monkeypatch.context() as interrupted:
        interrupted.setattr(demo, "train", lambda *a, **b: itertools.islice(train(*a, **b), 2))
        run(*chosen, "--save", path)
    assert epochs_of(capsys.readouterr().out) == wanted[:2]
    resumed = run(*chosen, "--resume", path, "--save", path)
    assert epochs_of(capsys.readouterr().out) == wanted[2:]
    assert all(
        np.array_equal(a, b) for a, b in zip(*map(demo.arrays, (whole, resumed)), strict=True)
    )
    assert schuss.load(path)["epoch"] == 4
    for others, says in {
        (): "--resume: has 4 epochs; --epochs wants more",
        ("--epochs", "9", "--rule", "lion"): "rule: ",
        ("--epochs", "9", "--save", tmp_path / "demo.safetensors"): "",
    }.items():
        assert main(["demo", *chosen, "--resume", str(path), *map(str, others)]) == (
            2 if says else 0
        )
        assert says in capsys.readouterr().err
    schuss.save(path, a=1)
    assert main(["demo", "--resume", str(path)]) == 2
    assert "is of no demo" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["demo", "--save", str(path)])
    assert "--force overwrites it" in capsys.readouterr().err


def trained(rule: type[schuss.Optimizer], **options: Any) -> list[trainer.Epoch]:
    rng = np.random.default_rng(0)
    data, test = trainer.digits(0, "float32")
    params = trainer.network((64, 10), rng, "float32")
    own: dict[str, Any] = {
        "lr": 0.01,
        "epochs": 2,
        "batch_size": 360,
        "gradient_dtype": "float32",
        "rng": rng,
    }
    return list(trainer.train(params, data, test, rule=rule, **own, **options))


def test_training_tells_the_loss() -> None:
    assert trained(schuss.Rprop, variant="irprop+") != trained(schuss.Rprop, variant="rprop+")


def test_comparison_tells_the_loss() -> None:
    params, data = small()
    _, grads = trainer.loss_and_gradients(params, *data)
    times = demo.compare(schuss.Rprop, params, lambda: grads, seconds=0, variant="irprop+")
    assert min(times.gradients, *times.steps.values()) > 0


class Far(schuss.SGD):
    """A rule whose result is elsewhere than its steps."""

    def eval(self) -> None:
        self.kept = [x.copy() for x in self.param_groups[0]["params"]]
        for x in self.param_groups[0]["params"]:
            x.fill(0)

    def train(self) -> None:
        for x, kept in zip(self.param_groups[0]["params"], self.kept, strict=True):
            x[...] = kept


def test_training_evaluates_the_result() -> None:
    even = np.log(10)
    for epoch in trained(Far):
        np.testing.assert_allclose([epoch.loss, epoch.test_loss], even, rtol=1e-5)


class Wrong(schuss.SGD):
    """A rule whose reference does something else."""

    def step(self, *args: Any, **options: Any) -> bool:
        if self.backend == "numpy":
            self.param_groups[0]["params"][0][0, 0] += 1
        return super().step(*args, **options)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", bfloat16])
def test_comparison_notices_other_bits(dtype: Any) -> None:
    params, data = small()
    _, grads = trainer.loss_and_gradients(params, *data)
    params, grads = trainer.cast(params, dtype), trainer.cast(grads, dtype)
    with pytest.raises(AssertionError, match=r"Wrong: .* other bits"):
        demo.compare(Wrong, params, lambda: grads, seconds=0)


@pytest.mark.parametrize(
    ("kind", "name"), [(adamw.InPlace, "NumPy in place"), (adamw.Python, "pure Python")]
)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", bfloat16])
def test_comparison_notices_another_answer(
    monkeypatch: pytest.MonkeyPatch, dtype: Any, kind: type, name: str
) -> None:
    params, data = small()
    _, grads = trainer.loss_and_gradients(params, *data)
    params, grads = trainer.cast(params, dtype), trainer.cast(grads, dtype)
    monkeypatch.setattr(kind, "step", lambda self: None)
    with pytest.raises(AssertionError, match=rf"AdamW: .* {name}"):
        demo.compare(schuss.SGD, params, lambda: grads, seconds=0)


@pytest.mark.parametrize("dtype", readers.DTYPES)
def test_picture(run: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path, dtype: str) -> None:
    file = tmp_path / "demo.png"
    run("--epochs", "3", "--plot", file, "--dtype", dtype)
    assert file.read_bytes().startswith(b"\x89PNG\r\n")
    output = capsys.readouterr().out
    (figure,) = run.figures
    loss, accuracy, parts = figure.axes
    assert [len(drawn(line)) for line in (*loss.lines, *accuracy.lines)] == [3] * 4
    np.testing.assert_allclose(drawn(accuracy.lines[1]), held_out(output), atol=0.006)
    rows = table(output)
    (gradients,) = (float(ns) for ns in re.findall(r"^gradients +([\d.]+)$", output, re.MULTILINE))
    assert len(rows) == 4
    shares = widths(parts)[:4]
    np.testing.assert_allclose(shares, [share for *_, share in rows], atol=0.51)
    for (_, ns, _, _), share in zip(rows, shares, strict=True):
        assert ns / (ns + gradients) == pytest.approx(share / 100, rel=0.05)
    assert all(len(line) <= 80 for line in output.splitlines())


def test_picture_draws_what_it_is_given() -> None:
    epochs = [trainer.Epoch(2, 0.25, 3, 0.125), trainer.Epoch(1, 0.75, 2, 0.5)]
    times = demo.Times(10.0, {"a, compiled": 2.5, "b": 10.0, "c": 90.0})
    with pictures.styled():
        figure = demo.picture("three arrays", epochs, times)
    loss, accuracy, parts = figure.axes
    assert [drawn(line) for line in (*loss.lines, *accuracy.lines)] == [
        [2, 1],
        [3, 2],
        [25, 75],
        [12.5, 50],
    ]
    assert [[text.get_text() for text in axes.texts] for axes in (loss, accuracy)] == [
        ["trained on", "held out"]
    ] * 2
    assert [text.get_text() for text in parts.texts] == [
        *("a, compiled, 2.5 ns per parameter", "20%"),
        *("b, 10 ns per parameter", "50%"),
        *("c, 90 ns per parameter", "90%"),
    ]
    assert widths(parts) == [20, 50, 90, 80, 50, 10]  # the steps, and the gradients beside them
    assert parts.get_title("left") == "three arrays"
    finding = "50.0% of the digits held out are recognised; the compiled step takes 20% of the time"
    assert figure.get_suptitle() == finding
    assert all(axes.get_xlabel() for axes in figure.axes)
    assert loss.get_ylabel() == "mean cross-entropy"
    assert accuracy.get_ylabel() == "% of the images"


def test_picture_is_written_over(run: Runs, tmp_path: Path) -> None:
    file = tmp_path / "OLD.PNG"
    file.write_bytes(b"old" * 100_000)
    run("--epochs", "1", "--plot", file, "--force")
    assert file.read_bytes().startswith(b"\x89PNG\r\n")
    assert b"old" * 10 not in file.read_bytes()


def test_pipe_gets_lines_only(run: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    run("--epochs", "4")
    output = capsys.readouterr()
    assert output.err == ""
    assert "\x1b" not in output.out
    assert "\r" not in output.out
    # Header, epochs, comparison, with empty lines between.
    assert len(output.out.splitlines()) == 3 + 4 + 1 + 3 + 1 + 1 + 4


def test_terminal_gets_a_progress_bar() -> None:
    def training() -> Iterator[trainer.Epoch]:
        yield trainer.Epoch(1, 0.5, 2, 0.25)

    file = io.StringIO()
    console = Console(file=file, force_terminal=True, force_interactive=True, highlight=False)
    assert demo.shown(training(), 1, console) == [trainer.Epoch(1, 0.5, 2, 0.25)]
    assert "Training" in file.getvalue()
    assert "epoch 1   loss 1.0000   accuracy  50.00%   held out: 2.0000  25.00%" in file.getvalue()
