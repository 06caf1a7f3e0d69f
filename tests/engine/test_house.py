"""The house: every module stands on lower floors, none in a circle, and the core knows no Python.

Imports are read from the source, those for type checkers and those inside functions, too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / "python"

# From below, by the beginning of a module's name; what is named nowhere is a door for users.
FLOORS = (
    ("schuss.checks", "schuss._core", "schuss.reference"),
    ("schuss.engine",),
    ("schuss.rules",),
    (),  # the doors
    ("schuss",),  # the front door alone, which shows them
    ("schuss.lab", "schuss.__main__"),
)
DOORS = 3

# Arrows that run up or close a circle. The list can only become shorter: one that is no longer
# there has to leave it.
KNOWN: set[tuple[str, str]] = set()

# What the lab takes from the engine, since users have no other way to it.
BEHIND_THE_DOORS = {
    ("schuss.lab.catalogue", "schuss.engine.declare"),  # what presets leave to be given
    ("schuss.lab.trace.paths", "schuss.engine.points"),  # where to take a gradient
}


def name_of(path: Path) -> str:
    """The module's name."""
    parts = path.relative_to(PYTHON).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PYTHON.rglob("*.py")} | {"schuss._core": None}


def imports(name: str) -> Iterator[str]:
    """The package's modules that a module imports, anywhere."""
    path = MODULES[name]
    if path is None:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found = inner if inner in MODULES else str(node.module)
                if found in MODULES:
                    yield found


ARROWS = {(name, to) for name in MODULES for to in imports(name) if name != to}


def floor(name: str) -> int:
    """On which floor a module stands."""
    if name == "schuss":
        return FLOORS.index(("schuss",))
    for number, beginnings in enumerate(FLOORS):
        if any(f"{name}.".startswith(f"{b}.") for b in beginnings if b != "schuss"):
            return number
    return DOORS


def test_floors_are_told_apart() -> None:
    """That this test can see: each floor has modules, and arrows lead down from each but the
    lowest.
    """
    assert {floor(name) for name in MODULES} == set(range(len(FLOORS)))
    assert {floor(name) for name, to in ARROWS if floor(to) < floor(name)} == set(
        range(1, len(FLOORS))
    )
    assert floor("schuss.scipy.problem") == floor("schuss.functional") == DOORS
    assert ("schuss.rules.matrix", "schuss.rules") in ARROWS  # from schuss.rules import AdamW
    assert ("schuss.lab.options", "schuss.rules.matrix") in ARROWS  # ... import RULES, matrix


def test_no_arrow_runs_up() -> None:
    up = {(name, to) for name, to in ARROWS if floor(to) > floor(name)}
    assert up <= KNOWN


def test_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for name, to in ARROWS - KNOWN:
        graph.setdefault(name, set()).add(to)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_exceptions_are_still_needed() -> None:
    assert KNOWN <= ARROWS
    assert BEHIND_THE_DOORS <= ARROWS


def test_nobody_imports_the_lab() -> None:
    lab = FLOORS.index(("schuss.lab", "schuss.__main__"))
    users = {name for name, to in ARROWS if floor(to) == lab and floor(name) != lab}
    assert not users


def test_the_lab_uses_what_users_have() -> None:
    engine = FLOORS.index(("schuss.engine",))
    inside = {(n, to) for n, to in ARROWS if n.startswith("schuss.lab.") and floor(to) == engine}
    assert inside == BEHIND_THE_DOORS


@pytest.mark.parametrize("path", sorted((ROOT / "cpp" / "core").iterdir()), ids=lambda p: p.name)
def test_the_core_knows_no_python(path: Path) -> None:
    included = re.findall(r'#\s*include\s*["<](.+?)[">]', path.read_text())
    wrong = [name for name in included if re.search(r"(?i)python|pybind|numpy|\.\.", name)]
    assert not wrong
