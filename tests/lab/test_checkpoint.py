"""`schuss checkpoint`: what it lists, what it verifies, and how it says that something is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import schuss
from schuss.lab.command import main


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.safetensors"


def test_lists_and_verifies(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = {"w": np.ones((2, 3), np.float32)}
    opt = schuss.AdamW(params, lr=0.25)
    opt.step({"w": params["w"].copy()})
    rng, plateau = np.random.default_rng(1), schuss.schedules.ReduceOnPlateau(0.1)
    schuss.save(path, params=params, opt=opt, rng=rng, plateau=plateau, step=7, a=np.zeros(()))
    assert main(["checkpoint", str(path)]) == 0
    listed = capsys.readouterr().out
    assert main(["checkpoint", str(path), "--verify"]) == 0
    verified = capsys.readouterr().out
    assert verified == f"{listed}\n4 arrays, 80 bytes: checksums are right\n"
    assert max(map(len, listed.splitlines())) <= 100
    head, entries, arrays = listed.split("\n\n")
    assert head == f"format 1, schuss {schuss.__version__}"
    for line in (
        "params   1 array, 24 bytes",
        "opt      AdamW, 1 steps, 3 arrays, 72 bytes",
        "         lr=0.25, betas=(0.9, 0.999), eps=1e-08,",
        "rng      Generator: PCG64",
        "plateau  object: value, best, bad, cooling",
        "step     7",
    ):
        assert f"\n{line}" in f"\n{entries}"
    rows = [line.split() for line in arrays.splitlines()]
    assert rows[0] == ["array", "type", "shape", "bytes", "crc32"]
    assert [row[0] for row in rows[1:]] == [
        "a",
        "params.w",
        "opt.state.w.exp_avg",
        "opt.state.w.exp_avg_sq",
    ]
    assert rows[2][1:6] == ["F32", "2", "x", "3", "24"]


def test_a_damaged_file(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schuss.save(path, x=np.ones(3), y=1)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\1")
    assert main(["checkpoint", str(path)]) == 0  # the arrays aren't read
    capsys.readouterr()
    assert main(["checkpoint", str(path), "--verify"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"schuss: '{path}': damaged: wrong checksum of x\n")
    path.write_bytes(content[:-1])
    assert main(["checkpoint", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["checkpoint", f"{path}.no"]) == 2
    assert "No such file" in capsys.readouterr().err


def test_files_of_others_and_their_names(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name in a file is no command to the terminal."""
    safetensors.numpy.save_file({"a\x1b[2J": np.ones(3)}, path)
    assert main(["checkpoint", str(path), "--verify"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "a\\x1b[2J" in out
    assert out.startswith("of another library\n")
    assert out.endswith("1 array, 24 bytes: read, without checksums\n")
