"""The harness of the good-guest tests: what may hang or crash runs in an interpreter of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import dedent

import pytest

HERE = Path(__file__).parent

# Where the schuss under test is found, too. OpenBLAS would start its threads at NumPy's import, and
# some tests count those of the process.
PATHS = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("OMP_") and name != "SCHUSS_NUM_THREADS"
} | {"PYTHONPATH": os.pathsep.join(PATHS), "OPENBLAS_NUM_THREADS": "1"}

Compile = Callable[..., Path]


def run_code(
    *code: str, arguments: Sequence[object] = (), timeout: float = 30, **environment: str
) -> None:
    """Runs code that finds trial.py, with sys.argv[1:] and additions to the environment.

    Fails, with all that the process has to say, unless it reaches the end of the code, prints
    nothing and exits with 0 in time.
    """
    text = "\n".join([*map(dedent, code), "print('end')"])
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", text, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | environment,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)  # faulthandler tells where, of forked children too
        out, err = process.communicate()
    if (process.returncode, out) != (0, "end\n"):
        said = f"exit code {process.returncode}\n--- stdout\n{out}\n--- stderr\n{err}"
        pytest.fail(said, pytrace=False)


@pytest.fixture(scope="session")
def run() -> Callable[..., None]:
    if sys.platform != "linux":
        pytest.skip("needs Linux")
    return run_code


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles a file of this folder to a shared library, for ctypes."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")

    def build(source: str, *flags: str) -> Path:
        library = tmp_path_factory.mktemp("library") / "library.so"
        command = [compiler, "-shared", "-fPIC", *flags, "-o", str(library), str(HERE / source)]
        subprocess.run(command, check=True)
        return library

    return build
