"""The gallery's numbers and pictures: `python docs/gallery/draw.py`.

Runs each command of the page beside the pictures, and writes what it prints below it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from pathlib import Path

from schuss.lab import command

HERE = Path(__file__).parent
PAGE = HERE.parent / "gallery.md"
BLOCK = re.compile(r"^```console\n\$ schuss (trace (\w+) .*)\n((?s:.*?))^```$", re.MULTILINE)


def printed(arguments: str) -> str:
    """What a command prints; its picture is in the working folder."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        status = command.main([*shlex.split(arguments), "--force"])
    if status:
        raise SystemExit(status)
    return text.getvalue()


def main() -> None:
    os.chdir(HERE)
    page = BLOCK.sub(
        lambda block: f"```console\n$ schuss {block[1]}\n{printed(block[1])}```", PAGE.read_text()
    )
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
