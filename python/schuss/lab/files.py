"""Files that a command is told to write."""

from __future__ import annotations

import argparse
from pathlib import Path


def writable(text: str) -> Path:
    """Reads the name of a file, and finds out before the work whether it can be written."""
    path = Path(text)
    existed = path.exists()
    try:
        path.open("ab").close()  # permissions alone don't tell
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error.strerror}") from None
    if not existed:
        path.unlink()
    return path
