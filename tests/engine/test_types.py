"""What type checkers see: planted mistakes are reported, line by line, and nothing else is."""

from __future__ import annotations

import importlib.util
import inspect
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from schuss import functional, rules
from schuss.engine.declare import Preset
from schuss.rules import matrix

HERE = Path(__file__).parent
STUB = HERE.parents[1] / ".ci" / "functional_stub.py"

# How each is called, and how it shows the line of an error; mypy's notes are none.
CHECKERS = {
    "mypy": ([sys.executable, "-m", "mypy", "--strict", "--no-incremental"], r"py:(\d+): error"),
    "pyright": (["pyright", "--pythonpath", sys.executable], r"py:(\d+):\d+ - (?:error|warning)"),
}


def reported(checker: str, name: str, where: Path) -> set[int]:
    """The lines of a file that a type checker reports."""
    command, line = CHECKERS[checker]
    if checker == "pyright" and not shutil.which("pyright"):
        pytest.skip("pyright is not installed")
    if checker == "mypy" and not importlib.util.find_spec("mypy"):
        pytest.skip("mypy is not installed")
    path = shutil.copy(HERE / name, where)  # away from this project's configuration
    done = subprocess.run([*command, path], cwd=where, capture_output=True, text=True, check=False)
    if not re.search(r"no issues|\d+ errors?", done.stdout):
        pytest.skip(f"{checker} does not run here: {done.stdout}{done.stderr}")
    return {int(n) for n in re.findall(line, done.stdout)}


@pytest.mark.parametrize("checker", CHECKERS)
def test_mistakes_are_reported(checker: str, tmp_path: Path) -> None:
    lines = (HERE / "typing_mistakes.py").read_text().splitlines()
    planted = {number for number, line in enumerate(lines, 1) if "# mistake: " in line}
    assert len(planted) == 16
    assert reported(checker, "typing_mistakes.py", tmp_path) == planted


@pytest.mark.parametrize("checker", CHECKERS)
def test_good_code_is_not(checker: str, tmp_path: Path) -> None:
    assert reported(checker, "typing_good.py", tmp_path) == set()


def test_good_code_runs() -> None:
    runpy.run_path(str(HERE / "typing_good.py"))


def test_the_stub_is_up_to_date() -> None:
    """Else: python .ci/functional_stub.py > python/schuss/functional.pyi"""
    if not STUB.exists():
        pytest.skip("the script that writes it is not in a source distribution")
    text = Path(inspect.getfile(functional)).with_suffix(".pyi").read_text()
    assert runpy.run_path(str(STUB))["stub"]() == text


def test_presets_are_known_to_type_checkers() -> None:
    names = {name for rule in (*rules.RULES, *matrix.RULES) for name in rule.presets}
    assert set(get_args(Preset)) == names
