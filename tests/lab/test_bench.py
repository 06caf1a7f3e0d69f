"""`schuss bench`: its table, its numbers and its picture; never its speed."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import schuss
from schuss.lab import command as cli
from schuss.lab.bench import adamw, command, contestants, measure, roofline
from schuss.lab.bench.workloads import HALVES, PLAIN, SHAPES, STAGES, WORKLOADS, Case, Memory
from schuss.rules import RULES

FOREIGN = ("torch", "deepspeed", "optax", "jax")


@pytest.fixture(autouse=True)
def without_peers(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Peers take seconds to import, or minutes to compile; one test has those that are there."""
    if "peers" not in request.fixturenames:
        for package in FOREIGN:
            monkeypatch.setitem(sys.modules, package, None)


def bench(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli.main(["bench", "--seconds", "0", *argv]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 105
    return text


@pytest.fixture
def numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> dict[str, Any]:
    """What a run on small workloads prints, writes and draws."""
    names = ("1 array of 1", "1 array of 1000", "10 arrays of 64", "1 array of 64", "MLP on digits")
    files = ("--json", f"{tmp_path}/numbers.json", "--plot", f"{tmp_path}/picture.png")
    text = bench(capsys, "--workload", *names, *files)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    found: dict[str, Any] = json.loads((tmp_path / "numbers.json").read_text())
    return found | {"text": text, "names": names}


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(name in text for name in ("--full", "'GPT-2, width 256'", "'1 array of 100000000'"))


def test_quick_and_full_cases() -> None:
    """Quick: AdamW on what is small, and its variants; full: all workloads, and every rule."""

    def cases(*argv: str) -> list[Case]:
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        return list(command.cases(parser.parse_args(argv)))

    quick, full = cases(), cases("--full")
    assert all(case.rule is schuss.AdamW and case.elements <= 1_100_000 for case in quick)
    assert {case.variant for case in quick} == {PLAIN, STAGES, HALVES}
    assert [c.workload for c in full if (c.rule, c.variant) == (schuss.AdamW, PLAIN)] == [
        *WORKLOADS
    ]
    assert {case.rule for case in full} == set(RULES)
    assert {case.rule for case in cases("--rule", "lion")} == {schuss.Lion}
    assert {10**k for k in range(9)} <= {c.elements for c in cases("--full", "--plot", "a.png")}


def test_numbers_agree(numbers: dict[str, Any]) -> None:
    """Ratios are quotients, and bytes those of AdamW's streams: g read, x, m and v both ways."""
    results = numbers["results"]
    assert [r["workload"] for r in results] == list(numbers["names"])
    for r in results:
        assert (r["rule"], r["variant"], r["threads"]) == ("AdamW", PLAIN, 1)
        assert r["arrays"] == len(SHAPES[r["workload"]])
        assert r["bytes"] == 28 * r["elements"]
        assert r["contestants"].keys() == {"schuss", "numpy", "in place", "python"}
        ours = r["contestants"]["schuss"]["seconds"]
        for entry in r["contestants"].values():
            assert 0 < entry["seconds"] < math.inf
            assert entry["ratio"] == entry["seconds"] / ours
            assert entry["bytes_per_second"] == r["bytes"] / entry["seconds"]
            assert entry["ns_per_element"] == entry["seconds"] / r["elements"] * 1e9
            if r["roofline"]:
                share = entry["bytes_per_second"] / max(r["roofline"].values())
                assert entry["of_roofline"] == share
            else:
                assert entry["of_roofline"] is None
    assert [bool(r["roofline"]) for r in results] == [16 * r["elements"] >= 2**16 for r in results]


def test_table(numbers: dict[str, Any]) -> None:
    """A row of our times and a row of ratios for each case; who is missing, and why."""
    lines = numbers["text"].splitlines()
    assert lines[1].startswith(f"schuss {schuss.__version__}, numpy {np.__version__}, no torch")
    for r in numbers["results"]:
        times, others = (line for line in lines if line.startswith(f"AdamW, {r['workload']}  "))
        ours = r["contestants"]["schuss"]
        assert float(times[40:].split()[0]) == pytest.approx(ours["seconds"] * 1e6, abs=0.06)
        cells = dict(zip(contestants.NAMES, others[40:].split(), strict=True))
        for name, cell in cells.items():
            entry = r["contestants"].get(name)
            assert cell == (f"{entry['ratio']:.1f}" if entry else "-")
    for name in ("loop", "foreach", "fused"):
        assert f"{name} left out: torch is not installed" in lines
    assert "optax left out: optax is not installed" in lines


def test_picture_holds_the_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.append(figure))
    names = ("1 array of 1000", "1 array of 64", "10 arrays of 64")
    file = tmp_path / "numbers.json"
    bench(capsys, "--workload", *names, "--json", str(file), "--plot", f"{tmp_path}/picture.png")
    results = json.loads(file.read_text())["results"]
    left, right = drawn[0].axes
    for axes, by, shown in ((left, "elements", (1, 0)), (right, "arrays", (1, 2))):
        lines = {line.get_label(): line for line in axes.lines}
        assert lines.keys() == {"schuss", "numpy", "in place", "python"}
        for name, line in lines.items():
            assert list(line.get_xdata()) == [results[i][by] for i in shown]
            costs = [results[i]["contestants"][name]["ns_per_element"] for i in shown]
            assert list(line.get_ydata()) == costs


@pytest.mark.parametrize("rule", RULES)
def test_every_rule(rule: type[schuss.Optimizer]) -> None:
    """Its reference gives the same bits, with the state where the benchmark lays it."""
    result = measure.measure(Case(rule, "10 arrays of 64"), 1, 0.0, 2)
    assert result.contestants.keys() - {"in place", "python"} == {"schuss", "numpy"}


@pytest.mark.parametrize(("variant", "bytes_each"), [(STAGES, 4 * (8 + 3)), (HALVES, 18)])
def test_variants(variant: str, bytes_each: int) -> None:
    """With stages g is read, read and written, and the mean both ways; or g, m and v are halves."""
    result = measure.measure(Case(schuss.AdamW, "10 arrays of 64", variant), 1, 0.0, 2)
    assert result.contestants.keys() == {"schuss", "numpy"}
    assert result.bytes == bytes_each * 640


def test_in_place_is_adamw() -> None:
    """In float64 within its rounding, whatever the arrays."""
    rng = np.random.default_rng(0)
    start, grads = ([rng.normal(size=shape) for shape in ((3, 4), (5,))] for _ in range(2))
    ours, theirs = ([x.copy() for x in start] for _ in range(2))
    opt, other = schuss.AdamW(ours, grads=grads), adamw.InPlace(theirs, grads)
    for _ in range(20):
        opt.step()
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)


def test_halves_need_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "find_spec", lambda name: None)
    case = Case(schuss.AdamW, "1 array of 1000", HALVES)
    assert measure.hindrance(case) == "ml_dtypes is not installed"
    assert measure.hindrance(Case(schuss.AdamW, "1 array of 1000")) == ""


def test_wrong_answers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the reference as an error, of a peer as a reason to leave it out."""
    case = Case(schuss.AdamW, "1 array of 1000")
    monkeypatch.setattr(contestants.Python, "answer", lambda self: [np.ones(1000)])
    assert measure.measure(case, 1, 0.0, 2).left_out["python"] == "its answer differs"
    monkeypatch.setattr(contestants.NumPy, "answer", lambda self: [np.ones(1000)])
    with pytest.raises(ArithmeticError, match="other bits"):
        measure.measure(case, 1, 0.0, 2)


def test_shapes_are_those_of_the_networks() -> None:
    sizes = {name: Case(schuss.AdamW, name) for name in WORKLOADS}
    assert sizes["MLP on digits"].elements == 8970
    assert (len(sizes["ResNet-50"].shapes), sizes["ResNet-50"].elements) == (161, 25_557_032)
    assert (len(sizes["GPT-2 small"].shapes), sizes["GPT-2 small"].elements) == (148, 124_439_808)


def test_memory_is_staggered() -> None:
    memory = Memory(Case(schuss.AdamW, "1 array of 1000"))
    opt = schuss.AdamW(memory.params, grads=memory.grads)
    every = [*memory.params, *memory.grads, *roofline.place_state(opt)]
    places = [a.ctypes.data % 4096 for a in every]
    assert places == [576 * i for i in range(4)]
    assert all((np.abs(a) >= 0.5).all() for a in (*memory.params, *memory.grads))


def test_threads_are_given_back() -> None:
    before = schuss.get_num_threads()
    measure.measure(Case(schuss.SGD, "1 array of 1"), 2, 0.0, 2)
    assert schuss.get_num_threads() == before


@pytest.mark.parametrize("package", ["deepspeed", "optax"])
def test_peer_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    def broken(name: str) -> None:
        raise RuntimeError(f"{name} is broken\nin many lines")

    monkeypatch.setattr(contestants, "find_spec", lambda name: True)
    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(contestants.Absent, match=rf"{package}: {package} is broken$"):
        contestants.imported(package)


@pytest.fixture
def peers() -> None:
    """Asks for the peers that are installed."""


@pytest.mark.usefixtures("peers")
@pytest.mark.parametrize("variant", [PLAIN, STAGES, HALVES])
def test_torch_gives_the_same_answer(variant: str) -> None:
    pytest.importorskip("torch")
    for kind in (contestants.Torch, contestants.Foreach, contestants.Fused):
        case = Case(schuss.AdamW, "10 arrays of 64", variant)
        memory = Memory(case)
        ours = contestants.Schuss(case, memory)
        answer = [a.copy() for a in measure.first_steps(ours, memory)]
        memory.restore()
        team = kind(case, memory)
        measure.first_steps(team, memory)
        assert measure.compared(team, ours, answer, case) is None


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--rule newton", "--rule: 'newton' is unknown; `schuss rules` lists them"),
        ("--rule muon", "--rule: 'muon' is for matrices, and there are none"),
        ("--workload big", "--workload: 'big' is unknown; --help lists them"),
        ("--workload resnet50", "--workload: 'resnet50' is unknown; did you mean 'ResNet-50'?"),
        ("--threads 0", "--threads: '0' is no whole number"),
        ("--seconds -1", "--seconds: '-1' is no number in [0, inf)"),
        ("--plot picture.txt", "--plot: 'picture.txt' is no picture"),
        ("--json missing/numbers.json", "--json: 'missing/numbers.json': No such file"),
    ],
)
def test_bad_value_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], argv: str, said: str
) -> None:
    try:
        status: object = cli.main(["bench", *argv.split()])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
