"""The mutations of .ci/mutate.py, which takes hours, are still found where its list says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MUTATE = Path(__file__).parents[2] / ".ci" / "mutate.py"


@pytest.mark.skipif(not MUTATE.exists(), reason="the sdist has no .ci")
def test_every_mutation_is_found_once() -> None:
    listed = subprocess.run(
        [sys.executable, MUTATE, "--list"], capture_output=True, text=True, check=False
    )
    assert listed.returncode == 0, listed.stderr
    assert len(listed.stdout.splitlines()) > 500
