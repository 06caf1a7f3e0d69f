"""The recipes of the documentation, run as they stand there."""

from __future__ import annotations

import re
from typing import Any

from doors.pages import ROOT, blocks


def code(heading: str, page: str = "recipes.md") -> list[str]:
    """The blocks of Python of a section, behind the imports that all begin with."""
    begin, *sections = re.split(r"^## ", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)
    (section,) = [s for s in sections if s.startswith(f"{heading}\n")]
    found = [block.code for block in blocks(begin + section) if block.language == "python"]
    assert len(found) > 1
    return found


def run(heading: str, page: str = "recipes.md", **instead: Any) -> dict[str, Any]:
    """Runs a section's code, and returns its names; `instead` of built-in ones, some of its own."""
    namespace = instead
    for block in code(heading, page):
        exec(compile(block, f"{page}: {heading}", "exec"), namespace)
    return namespace
