"""The recipes of docs/recipes.md, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


def code(heading: str) -> list[str]:
    """The blocks of Python of a section, behind the imports that all begin with."""
    begin, *sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    (section,) = [s for s in sections if s.startswith(f"{heading}\n")]
    blocks = re.findall(r"^```python\n(.*?)^```$", begin + section, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 1
    return blocks


def run(heading: str, **instead: Any) -> dict[str, Any]:
    """Runs a section's code, and returns its names; `instead` of built-in ones, some of its own."""
    namespace = instead
    for block in code(heading):
        exec(compile(block, f"{PAGE.name}: {heading}", "exec"), namespace)
    return namespace
