"""What the documentation says: its code runs, its commands parse, its links and names exist.

Every ```python block of a page runs, in order and in one namespace. What a comment behind a `print`
says is what it has to print, with "..." for anything. A block under `<!-- later -->` waits for what
isn't there yet, as does a link before it. One that needs a package that is missing, or a name of a
block that does, is left out, and the test says so. test_examples runs the examples.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import reduce
from importlib.util import find_spec
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pytest

import schuss
from doors.pages import DOCS, EXAMPLES, LATER, ROOT, blocks, prose, run
from schuss.lab import command


@pytest.fixture(params=DOCS + EXAMPLES, ids=lambda page: page.stem)
def page(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_code(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": page.stem}
    wrong, left_out = [], []
    lost: set[str] = set()
    with schuss.threads(schuss.get_num_threads()):
        for block in blocks(page.read_text()):
            if block.language != "python" or block.later:
                continue
            if needs := block.missing or sorted(block.names(ast.Load) & lost):
                left_out.append(f"line {block.line} needs {', '.join(needs)}")
                lost |= block.names(ast.Store)
            else:
                wrong += run(block, page.name, namespace)
                lost -= block.names(ast.Store)
    assert not wrong, "\n".join(wrong)
    if left_out:
        pytest.skip(f"{page.name}: {'; '.join(left_out)}")


def test_later(page: Path) -> None:
    """What waits has the syntax of its language, and is counted."""
    text = page.read_text()
    waiting = [block for block in blocks(text) if block.later]
    assert len(re.findall(rf"^{LATER}$", text, re.MULTILINE)) == len(waiting)
    for block in waiting:
        ast.parse(block.code)
    if waiting:
        pytest.skip(f"{page.name}: {len(waiting)} blocks wait for what they show")


def test_a_wrong_comment_is_noticed() -> None:
    code = "print(1)  # 1\nprint(2)  # 3\nprint(4, 5)  # 4 ...\nif 0:\n    print(6)  # 6\n"
    (block,) = blocks(f"\n```python\n{code}```\n")
    assert run(block, "page", {}) == ["page:4: says '3', prints '2\\n'", "page:7: prints nothing"]
    (block,) = blocks("```python\nimport no_such_package, numpy\n```\n")
    assert block.missing == ["no_such_package"]
    (block,) = blocks("```python\nimport a.b as c, d.e\nf = c.g(h)\n```\n")
    assert block.names(ast.Store) == {"c", "d", "f"}
    assert block.names(ast.Load) == {"c", "h"}


# ---- The shell


def commands(text: str) -> Iterator[list[str]]:
    """The commands in blocks of shell: one a line, or with && between them."""
    for block in blocks(text):
        if block.language == "sh" and not block.later:
            for line in block.code.replace("\\\n", "").splitlines():
                for part in line.split("&&"):
                    words = shlex.split(part, comments=True)
                    yield [*dropwhile(lambda word: re.match(r"\w+=", word), words)]


def exit_status(argv: list[str]) -> object:
    try:
        return command.main(argv)
    except SystemExit as stop:
        return stop.code


def test_commands(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of ours, the parser takes every argument: `--help` behind them is the last that it reads."""
    monkeypatch.chdir(tmp_path)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for words in commands(page.read_text()):
        shown = shlex.join(words)
        program, *arguments = words
        assert program in {"schuss", "python", "pip", "pytest"}, shown
        if program == "schuss":
            assert exit_status([*arguments, "--help"]) == 0, shown
            texts = capsys.readouterr().out
            assert all(word in texts for word in arguments if word.startswith("--")), shown
        for word in arguments:
            if program in {"python", "pytest"} and word.endswith(".py"):
                assert (ROOT / word).exists(), shown
            if program == "pip" and (extra := re.search(r"\[(.*)\]", word)):
                assert {*extra[1].split(",")} <= extras.keys(), shown


# ---- Links and names


def anchors(path: Path) -> set[str]:
    """What the headings of a page are called in links to them."""
    headings = re.findall(r"^#+ (.*)$", prose(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_links(page: Path) -> None:
    for target, rest in re.findall(r"\]\(([^)\s]+)\)(.*)$", prose(page.read_text()), re.MULTILINE):
        if re.match(r"https?://", target) or rest.endswith(LATER):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT), target
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_listed(page: Path) -> None:
    index = page.parent / "index.md"
    assert page.parent == ROOT or page == index or f"]({page.name})" in index.read_text()


def meant(found: Any, part: str) -> Any:
    """What a name has behind a dot; a module that nobody has imported yet is one, too."""
    try:
        return getattr(found, part)
    except AttributeError:
        if not (inspect.ismodule(found) and find_spec(f"{found.__name__}.{part}")):
            raise
        return importlib.import_module(f"{found.__name__}.{part}")


def test_names(page: Path) -> None:
    """Every `schuss.name` between backticks that is no string, but behind missing doors."""
    left_out = set()
    for code in re.findall(r"`([^`]+)`", prose(page.read_text())):
        for name in re.findall(r'(?<![\w/."])schuss(?:\.[A-Za-z_]\w*)+', code):
            try:
                reduce(meant, name.split(".")[1:], schuss)
            except ModuleNotFoundError as error:
                if not error.name or error.name.startswith("schuss"):
                    raise
                left_out.add(f"{name} needs {error.name}")
    if left_out:
        pytest.skip(f"{page.name}: {'; '.join(sorted(left_out))}")


def test_readme_is_a_front_door() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    first_screen = "".join(text.splitlines()[:40])
    assert all(way in first_screen for way in ("W[...] =", "W = W", "rebind"))
    assert all(fact in text for fact in ("CPython 3.11", "NumPy 2.0", "Linux", "PyPI", "docs/cost"))


def test_the_house_is_described() -> None:
    """Every room has a line in the plan of the architecture."""
    (plan,) = [
        b.code
        for b in blocks((ROOT / "docs" / "architecture.md").read_text())
        if "cpp/core/" in b.code
    ]
    rooms = [f.stem for f in (ROOT / "cpp").glob("*/*")]
    own = ROOT / "python" / "schuss"
    rooms += [f.stem for f in own.iterdir() if f.is_dir() or f.suffix == ".py"]
    missing = {room for room in rooms if not re.search(rf"\b{re.escape(room)}\b", plan)}
    assert {room for room in missing if not room.startswith("_")} == set()
