"""The recipes of the documentation, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"


def code(heading: str, page: str = "recipes.md") -> list[str]:
    """The blocks of Python of a section, behind the imports that all begin with."""
    begin, *sections = re.split(r"^## ", (DOCS / page).read_text(), flags=re.MULTILINE)
    (section,) = [s for s in sections if s.startswith(f"{heading}\n")]
    blocks = re.findall(r"^```python\n(.*?)^```$", begin + section, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 1
    return blocks


def run(heading: str, page: str = "recipes.md", **instead: Any) -> dict[str, Any]:
    """Runs a section's code, and returns its names; `instead` of built-in ones, some of its own."""
    namespace = instead
    for block in code(heading, page):
        exec(compile(block, f"{page}: {heading}", "exec"), namespace)
    return namespace
