"""The demo in many processes ends on the bits of one; the programs of docs/machines.md run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from doors.pages import ROOT, blocks

from mpi.communicators import run_mpi

CODE = """
    import sys
    from schuss.lab.command import main
    assert main(["demo", "--mpi", *sys.argv[1:]]) == 0
"""
ELEMENTS = 8970


def demo(size: int, *options: str, code: str = "", fails: bool = False) -> str:
    return run_mpi(size, code, CODE, arguments=options, fails=fails)


def row(said: str, name: str) -> str:
    (found,) = re.findall(rf"^{re.escape(name)}  +(.*)$", said, re.MULTILINE)
    return str(found)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_demo(size: int) -> None:
    """What it prints, once; state that adds up to that of one process; bytes near the bound."""
    said = demo(size, "--epochs", "2")
    assert f"processes: {size}\n{ELEMENTS} float32 parameters in 6 arrays" in said
    assert len(re.findall(r"^epoch ", said, re.MULTILINE)) == 2
    assert float(row(said, "held out").rstrip("%")) > 90
    assert row(said, "the bits of one process") == "yes"
    assert 0 < int(row(said, "schuss.hash(params)")) < 2**64
    shares, whole = row(said, "bytes of state").split("; of one process ")
    held = [int(share) for share in shares.split(", ")]
    assert len(held) == size
    assert sum(held) == int(whole) == 8 * ELEMENTS
    sent, bound = (int(row(said, "bytes sent in a step").split()[i]) for i in (0, -1))
    assert bound == 8 * ELEMENTS * (size - 1) // size
    assert bound <= sent <= bound + 500 * (size - 1)


@pytest.mark.parametrize(
    "options",
    [
        "--rule lion --batch-size 100",
        "--rule prodigy --dtype float64",
        "--rule rprop",
        "--dtype bfloat16 --gradient-dtype float16 --master",
        "--dtype bfloat16 --stochastic-rounding",
        "--batch-size 4 --hidden 4",  # the last has one image, and a process none
        "--threads 2 --seed 7 --hidden 200 200",
    ],
)
def test_options(options: str) -> None:
    said = demo(2, "--epochs", "1", *options.split())
    assert row(said, "the bits of one process") == "yes"


def test_resumed_by_another_number(tmp_path: Path) -> None:
    """The file that one number of processes has left, and that it replaces."""
    path = str(tmp_path / "demo.safetensors")
    demo(2, "--epochs", "1", "--save", path)
    said = demo(3, "--epochs", "2", "--save", path, "--resume", path)
    assert re.findall(r"^epoch (\d)", said, re.MULTILINE) == ["2"]
    assert row(said, "the bits of one process") == "yes"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--rule muon", "Muon looks at matrices"),
        ("--backend numpy", "backend: 'numpy'"),
        ("--plot picture.png --force", "--plot: "),
        ("--rule sgd --lr 1e30", "the loss is nan"),
        ("--resume none", "No such file"),
    ],
)
def test_errors_of_all_are_told_once(options: str, reason: str, tmp_path: Path) -> None:
    code = f"import os; os.chdir({str(tmp_path)!r})"
    said = demo(2, *options.split(), code=code, fails=True)
    (line,) = re.findall(r"^schuss: (.*)", said, re.MULTILINE)
    assert reason in line


BROKEN = """
    from schuss.lab import trainer
    from schuss.mpi.wire import load
    if load().COMM_WORLD.rank == 1:
        def fails(*_): raise ZeroDivisionError("of one")
        trainer.loss_and_gradients = fails
"""


def test_an_error_of_one_ends_all() -> None:
    """Within its gradients, while the other waits for them."""
    said = demo(2, code=BROKEN, fails=True)
    assert "process 1, which ends all" in said
    assert "ZeroDivisionError: of one" in said


OTHERS = """
    from schuss.lab import together
    of_part = together.Parts.of_part
    def other(self, *args):
        loss, grads = of_part(self, *args)
        if isinstance(self, together.Together):
            grads[0]["b"][0] += 1
        return loss, grads
    together.Parts.of_part = other
"""


def test_other_bits_are_noticed() -> None:
    said = demo(2, "--epochs", "1", code=OTHERS, fails=True)
    assert "the bits of one process: no" in said


def test_without_mpi4py() -> None:
    """One line says what to install."""
    code = 'import sys; sys.modules["mpi4py"] = None; from schuss.lab.command import main; main()'
    run = [sys.executable, "-c", code, "demo", "--mpi"]
    found = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    assert found.stdout == ""
    assert found.stderr == "schuss: No module named 'mpi4py'; pip install 'schuss[mpi]'\n"


# ---- The page


TEXT = (ROOT / "docs" / "machines.md").read_text()
BEFORE, *_ = (block.code for block in blocks(TEXT) if block.language == "python")
AFTER, ARRIVING, LOADING = (block.code for block in blocks(TEXT) if block.language == "py")
ALL_THE_SAME = "\nassert len({*comm.allgather(schuss.hash(params))}) == 1\n"


def hashes(said: str) -> list[str]:
    return re.findall(r"^epoch \d (\d+)$", said, re.MULTILINE)


def test_the_lines_that_change() -> None:
    """Those with a number, which count; the others are as before."""
    lines = [re.sub(r" +# \d$", "", line) for line in AFTER.splitlines()]
    new = [line for line, own in zip(lines, AFTER.splitlines(), strict=True) if line != own]
    assert len(new) == int(AFTER.rpartition("# ")[2].split()[0])
    kept = [line.strip() for line in lines if line.strip() and line not in new]
    before = [line.strip() for line in BEFORE.splitlines() if line.strip()]
    assert {*before} - {*kept} == {"opt = schuss.AdamW(params, lr=0.01)"}
    assert {*kept} <= {*before}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_program_of_the_page(size: int, tmp_path: Path) -> None:
    """It runs in any number of processes; in one it has the bits of the program before."""
    found = run_mpi(size, f"import os; os.chdir({str(tmp_path)!r})", AFTER, ALL_THE_SAME)
    assert len(hashes(found)) == 5
    if size == 1:
        assert hashes(found) == hashes(run_mpi(1, BEFORE.replace("    schuss.save", "    # ")))


def test_the_page_goes_on_in_other_numbers(tmp_path: Path) -> None:
    """Loaded by two what three have saved, and stepped as its gradients come."""
    there = f"import os; os.chdir({str(tmp_path)!r})"
    run_mpi(3, there, AFTER)
    fresh = AFTER.replace("range(5)", "range(0)")
    backward = "backward = lambda: [('b', np.ones(1)), ('w', np.ones(20))]"
    check = "assert done == 4 and opt.iterations == 51, (done, opt.iterations)"
    run_mpi(2, there, fresh, LOADING, backward, ARRIVING, check, ALL_THE_SAME)
