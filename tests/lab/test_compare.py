"""The comparison of rules: the training's numbers are those of table, JSON file and picture."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import schuss
from schuss.lab import compare, tasks, trainer
from schuss.lab.command import main
from schuss.lab.options import COLOURS, NAMED

STEPS = {"digits": 45, "rosenbrock": 60, "regression": 60}


class Compared:
    """Runs the command in a folder of its own, and keeps what it gave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        picture = compare.picture

        def kept(*args: Any) -> Figure:
            self.figure = picture(*args)
            return self.figure

        monkeypatch.setattr(compare, "picture", kept)

    def __call__(self, *options: str) -> dict[str, Any]:
        assert main(["compare", *options, "--json", "numbers.json", "--force"]) == 0
        self.text = self.capsys.readouterr().out
        numbers: dict[str, Any] = json.loads(Path("numbers.json").read_text())
        return numbers

    def row(self, rule: str) -> list[str]:
        """The cells of a rule's row."""
        (line,) = (line for line in self.text.splitlines() if re.match(rf"{rule} .*%", line))
        return re.split(r"  +", line.rstrip())


@pytest.fixture
def compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Compared:
    monkeypatch.chdir(tmp_path)
    return Compared(monkeypatch, capsys)


def untimed(numbers: dict[str, Any]) -> dict[str, Any]:
    """The numbers that are the same in each run."""
    for rule in numbers["rules"]:
        del rule["seconds_per_step"], rule["share_of_time"]
    return numbers


# ---- The tasks


def test_every_rule_has_its_rates() -> None:
    missing = [r.__name__ for r in NAMED.values() if r.__name__ not in tasks.RATES]
    assert not missing, f"tasks.RATES has no learning rates for {', '.join(missing)}"


@pytest.mark.parametrize("task", ["rosenbrock", "regression"])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_and_curvature(task: str, seed: int) -> None:
    problem = tasks.TASKS[task].start(seed, "SGD")
    w, h = problem.params, 1e-4
    _, slope = problem.gradients()
    curvature = problem.hessian()
    for i in range(len(w)):
        around = []
        for at in (w[i, 0] - h, w[i, 0], w[i, 0] + h):
            before, w[i] = w[i, 0], at
            around.append(problem.gradients()[0])
            w[i] = before
        np.testing.assert_allclose(slope[i, 0], (around[2] - around[0]) / (2 * h), rtol=1e-5)
        second = (around[0] - 2 * around[1] + around[2]) / h**2
        np.testing.assert_allclose(curvature[i, 0], second, rtol=1e-3)


def test_regression_counts_from_the_closed_form() -> None:
    problem = tasks.TASKS["regression"].start(0, "SGD")
    least = (1 - 0.5177484222203498) / 2  # scikit-learn's LinearRegression: 1 - R^2 of all data
    assert problem.measure().loss == pytest.approx(problem.gradients()[0] - least, rel=1e-9)


def test_curvature_of_digits_is_that_of_the_loss() -> None:
    """The mean of many draws, for the last layer's biases: the mean of p*(1 - p)."""
    problem = tasks.TASKS["digits"].start(0, "Rprop")
    drawn = np.mean([(problem.gradients(), problem.hessian())[1][-1]["b"] for _ in range(300)], 0)
    (x, _), _ = trainer.digits(0, np.float32)
    _, logits = trainer.forward(problem.params, x)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(drawn, (p * (1 - p)).mean(axis=0), rtol=0.35)


def test_digits_is_the_demo() -> None:
    rng = np.random.default_rng(3)
    data, test = trainer.digits(3, np.float32)
    params = trainer.network((64, 64, 64, 10), rng, np.float32)
    *_, last = trainer.train(
        params,
        data,
        test,
        rule=schuss.Adam,
        lr=5e-3,
        epochs=2,
        batch_size=32,
        gradient_dtype=np.float32,
        rng=rng,
    )
    run = tasks.run_task("digits", schuss.Adam, 5e-3, 3, 90)
    assert (run.loss[-1], run.accuracy[-1]) == (last.loss, last.test_accuracy)


def test_full_batches_and_the_state() -> None:
    run = tasks.run_task("digits", schuss.Rprop, 1e-3, 0, 3)
    (x, y), _ = trainer.digits(0, np.float32)
    params = trainer.network((64, 64, 64, 10), np.random.default_rng(0), np.float32)
    opt = schuss.Rprop(params, lr=1e-3)
    for _ in range(3):
        opt.step(trainer.loss_and_gradients(params, x, y)[1])
    assert run.loss[-1] == pytest.approx(trainer.evaluate(params, (x, y))[0], rel=1e-4)
    assert run.state == 8
    assert run.steps == [0, 1, 2, 3]


def test_weight_decay_moves_no_known_minimum() -> None:
    run = tasks.run_task("regression", schuss.AdamW, 1.0, 0, 1000)
    decayed = tasks.run_task("regression", schuss.AdamW, 1.0, 0, 1000, weight_decay=0.5)
    assert run.loss[-1] < 1e-20
    assert decayed.loss[-1] > 1e-3


class Curved(schuss.SGD):
    """A rule that reads the curvature, and whose result is its start."""

    looks: tuple[Any, ...] = ()

    def __init__(self, params: Any, *, bs: float, **options: Any) -> None:
        super().__init__(params, **options)
        self.bs, self.held = bs, params.copy()

    def update_hessian(self, hhat: Any) -> None:
        self.looks += ((self.iterations, hhat.copy()),)

    def eval(self) -> None:
        (x,) = self.param_groups[0]["params"]
        self.kept = x.copy()
        x[...] = self.held

    def train(self) -> None:
        (x,) = self.param_groups[0]["params"]
        x[...] = self.kept
        Curved.seen = self.looks, self.bs

    seen: tuple[tuple[Any, ...], float]


def test_curvature_is_told_and_the_result_measured() -> None:
    run = tasks.run_task("regression", Curved, 0.1, 0, 25)
    looks, bs = Curved.seen
    assert [n for n, _ in looks] == [0, 10, 20]
    assert bs == 1
    assert set(run.loss) == {run.loss[0]}


# ---- The command


@pytest.mark.parametrize("task", tasks.TASKS)
def test_numbers(compared: Compared, task: str) -> None:
    options = ["--task", task, "--seeds", "2", "--rules", "sgd,AdamW", "--steps", str(STEPS[task])]
    numbers = compared(*options)
    text = compared.text
    assert f"{task}, {STEPS[task]} steps, 2 seeds; loss: {tasks.TASKS[task].loss}" in text
    losses = []
    for rule in numbers["rules"]:
        cls = getattr(schuss, rule["rule"])
        lr = getattr(tasks.RATES[rule["rule"]], task)
        runs = [tasks.run_task(task, cls, lr, seed, STEPS[task]) for seed in range(2)]
        for shown, own in zip(rule["runs"], runs, strict=True):
            assert shown["loss"] == own.loss
            assert shown.get("accuracy", []) == own.accuracy
            assert shown["steps"] == own.steps
        ends = [run.loss[-1] for run in runs]
        assert rule["loss"] == {"mean": fmean(ends), "std": stdev(ends)}
        assert rule["lr"] == lr
        assert rule["state_bytes_per_parameter"] == runs[0].state
        assert 0 < rule["share_of_time"] < 1
        losses.append(fmean(ends))
        cells = compared.row(rule["rule"])
        assert cells[1:3] == [f"{lr:g}", f"{fmean(ends):.2e} ± {stdev(ends):.0e}"]
        if task == "digits":
            percent = [100 * run.accuracy[-1] for run in runs]
            assert cells[3] == f"{fmean(percent):.1f} ± {stdev(percent):.1f} %"
    assert losses == sorted(losses)
    assert untimed(compared(*options)) == untimed(numbers)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_picture(compared: Compared, task: str) -> None:
    numbers = compared(
        *["--task", task, "--seeds", "2", "--rules", "sgd,momentum", "--steps", str(STEPS[task])],
        *["--plot", "compare.png"],
    )
    assert Path("compare.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert "curves: compare.png" in compared.text
    panels = compared.figure.axes
    assert len(panels) == 1 + (task == "digits")
    (legend,) = compared.figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    for i, rule in enumerate(numbers["rules"]):
        assert names[i] == f"{rule['rule']}, {rule['lr']:g}: {rule['loss']['mean']:.2e}"
        for axes, key, factor in zip(panels, ("loss", "accuracy"), (1, 100), strict=False):
            line, band = axes.lines[i], axes.collections[i]
            values = factor * np.array([run[key] for run in rule["runs"]])
            np.testing.assert_array_equal(line.get_xdata(), rule["runs"][0]["steps"])
            np.testing.assert_allclose(np.asarray(line.get_ydata(), float), values.mean(axis=0))
            extent = band.get_paths()[0].get_extents()
            np.testing.assert_allclose(extent.y0, values.min())
            np.testing.assert_allclose(extent.y1, values.max())
    assert panels[0].get_yscale() == "log"
    assert names[-1] == f"target {numbers['target']:g}"


def test_all_curves_differ() -> None:
    styles = {
        (COLOURS[i % len(COLOURS)], compare.STROKES[i // len(COLOURS)]) for i in range(len(NAMED))
    }
    assert len(styles) == len(NAMED)


def test_target(compared: Compared) -> None:
    (rule,) = compared(
        *["--task", "regression", "--rules", "sgd", "--steps", "50", "--target", "0.05"]
    )["rules"]
    for n, run in zip(rule["steps_to_target"], rule["runs"], strict=True):
        below = [step for step, loss in zip(run["steps"], run["loss"], strict=True) if loss <= 0.05]
        assert n == (below[0] if below else None)
    assert any(rule["steps_to_target"])
    assert compare.steps_to([10, 30]) == "20"
    assert compare.steps_to([10, None, 30]) == "20 (2 of 3)"
    assert compare.steps_to([None]) == "-"


def test_sweep(compared: Compared) -> None:
    options = ["--task", "regression", "--seeds", "2", "--steps", "40", "--rules", "sgd"]
    (rule,) = compared(*options, "--sweep")["rules"]
    assert not Path("compare.png").exists()
    centre = tasks.RATES["SGD"].regression
    lrs = [one["lr"] for one in rule["sweep"]]
    np.testing.assert_allclose(np.divide(lrs, centre), 10 ** np.linspace(-1, 1, 5), rtol=0.05)
    for one in rule["sweep"]:
        runs = [tasks.run_task("regression", schuss.SGD, one["lr"], seed, 40) for seed in range(2)]
        mean = fmean(run.loss[-1] for run in runs)
        assert one["loss"] == (mean if math.isfinite(mean) else None)
    best = min(rule["sweep"], key=lambda one: math.inf if one["loss"] is None else one["loss"])
    assert (rule["lr"], rule["loss"]["mean"]) == (best["lr"], best["loss"])
    assert f"*{best['lr']:g}: {best['loss']:.2e}" in compared.text


def test_a_rule_without_a_rate_is_swept(
    compared: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(tasks.RATES, "SGD")
    (rule,) = compared("--task", "regression", "--rules", "sgd", "--seeds", "1", "--steps", "20")[
        "rules"
    ]
    assert len(rule["sweep"]) == 12
    assert rule["loss"]["mean"] == min(one["loss"] or math.inf for one in rule["sweep"])


def test_rates_and_options_arrive(compared: Compared) -> None:
    numbers = compared(
        *["--task", "rosenbrock", "--rules", "adam,sgd", "--seeds", "1", "--steps", "30"],
        *["--lr", "adam=0.02", "--options", "adam:eps=1e-7,preset=keras,betas=(0.8,0.9)"],
        *["sgd:momentum=0.5"],
    )
    rules = {rule["rule"]: rule for rule in numbers["rules"]}
    given = {"eps": 1e-7, "preset": "keras", "betas": (0.8, 0.9)}
    own = tasks.run_task("rosenbrock", schuss.Adam, 0.02, 0, 30, **given)
    assert rules["Adam"]["runs"][0]["loss"] == own.loss
    assert rules["Adam"]["lr"] == 0.02
    lr = tasks.RATES["SGD"].rosenbrock
    momentum = tasks.run_task("rosenbrock", schuss.SGD, lr, 0, 30, momentum=0.5)
    assert rules["SGD"]["runs"][0]["loss"] == momentum.loss
    assert "momentum=0.5" in compared.row("SGD")[-1]


def test_rules_for_matrices_leave_biases_to_adamw() -> None:
    params = tasks.TASKS["digits"].start(0, "Muon").params
    opt = tasks.optimizer("digits", schuss.Muon, 0.02, params, 100)
    lr = trainer.rate(schuss.AdamW, tasks.RATES["AdamW"].digits, 100)
    assert [group["lr"] for group in opt.param_groups][1] == lr


def test_divergence_is_said(compared: Compared) -> None:
    numbers = compared(
        *["--task", "rosenbrock", "--rules", "sgd,adam", "--seeds", "2", "--steps", "100"],
        *["--lr", "sgd=10"],
    )
    last = numbers["rules"][-1]
    assert last["rule"] == "SGD"
    assert last["loss"] == {"mean": None, "std": None}
    assert all(run["loss"][-1] is None for run in last["runs"])
    assert compared.row("SGD")[2] == "diverged"


def test_a_loss_that_a_rule_refuses_is_one_line(
    compared: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tasks.regression

    def below(seed: int, rule: str) -> tasks.Problem:
        problem = start(seed, rule)
        gradients = problem.gradients
        problem.gradients = lambda: (-1.0, gradients()[1])
        return problem

    task = tasks.TASKS["regression"]
    monkeypatch.setitem(tasks.TASKS, "regression", dataclasses.replace(task, start=below))
    argv = ["--task", "regression", "--rules", "eve", "--options", "eve:variant=v1"]
    assert main(["compare", *argv]) == 2
    error = compared.capsys.readouterr().err
    assert re.fullmatch(r'schuss: Eve: loss: variant "v1" compares losses above 0.*\n', error)


def test_all_is_all() -> None:
    assert compare.several("all") == list(NAMED.values())
    assert compare.several("adam,SGD,adam") == [schuss.Adam, schuss.SGD]


def test_epochs(compared: Compared) -> None:
    assert compared("--rules", "sgd", "--epochs", "1", "--seeds", "1")["steps"] == 45


def test_an_interrupt_shows_what_is_there(
    compared: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(task: str, rule: type[schuss.Optimizer], *args: Any, **options: Any) -> Any:
        if rule is schuss.Adam:
            raise KeyboardInterrupt
        return tasks.run_task(task, rule, *args, **options)

    monkeypatch.setattr(compare, "run_task", interrupted)
    argv = ["--task", "rosenbrock", "--rules", "sgd,adam", "--seeds", "1", "--steps", "9"]
    assert main(["compare", *argv]) == 130
    output = compared.capsys.readouterr()
    assert re.search(r"^SGD .*%", output.out, re.MULTILINE)
    assert not re.search(r"^Adam ", output.out, re.MULTILINE)
    assert output.err == ""


def test_a_file_takes_no_more_than_lines(compared: Compared) -> None:
    compared("--task", "regression", "--seeds", "2", "--steps", "5")
    assert "\x1b" not in compared.text
    assert max(map(len, compared.text.splitlines())) <= 100
    heads = "rule lr final loss steps to 0.001 ms/step share state"
    assert heads in re.sub(" +", " ", compared.text)
