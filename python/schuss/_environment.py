"""What the environment says of instruction sets and threads, read as the package is imported."""

from __future__ import annotations

import os
import sys

from schuss import _core
from schuss.threads import cgroup_quota, from_environment


def read() -> None:
    """Raises ValueError with the variable's name where one is wrong."""
    if isa := os.environ.get("SCHUSS_ISA"):
        try:
            _core.use_isa(isa)
        except ValueError as error:
            raise ValueError(f"SCHUSS_ISA: {error}") from None
    _core.set_threads_from_environment(from_environment(os.environ))
    _core.set_quota(cgroup_quota())


def is_command() -> bool:
    """Whether it is `schuss`, or `python -m schuss`, that imports the package."""
    started = getattr(sys, "argv", [""])[0]  # "-m" until the module is found
    module = started == "-m" and "schuss" in sys.orig_argv
    return module or os.path.basename(started) in {"schuss", "schuss.exe"}


try:
    read()
except ValueError as error:
    if not is_command():
        raise
    # Any code of the command line that could catch it comes later.
    print(f"schuss: {error}", file=sys.stderr)
    sys.exit(2)
