"""Every page of docs/examples: its program does what the page says, and its picture is of that."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from doors.pages import EXAMPLES, blocks, prose, run

PAGES = [page for page in EXAMPLES if page.name != "index.md"]
NUMBER = re.compile(r"\d+\.\d+%?")
LINES = 90  # of a program, at most
BYTES = 60_000  # of a picture

draw: dict[str, Any] = runpy.run_path(str(EXAMPLES[0].parent / "pictures.py"))


def words(svg: Path) -> list[str]:
    """What a picture says."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_example(page: Path, tmp_path: Path) -> None:
    """Prints are as their comments say, and the picture would be drawn with the same words."""
    left: dict[str, Any] = {"__name__": page.stem}
    wrong = []
    with threadpool_limits(1):  # beside other tests, BLAS on several threads waits for each of them
        for block in blocks(page.read_text()):
            if needs := block.missing:
                pytest.skip(f"{page.name} did not run: it needs {', '.join(needs)}")
            wrong += run(block, page.name, left)
    assert not wrong, "\n".join(wrong)
    draw["draw"](page.stem, left, again := tmp_path / "again.svg")
    assert words(again) == words(page.with_suffix(".svg"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page: Path) -> None:
    """One program, not too long, one picture, not too large, and no number from elsewhere."""
    text = page.read_text()
    assert {block.language for block in blocks(text)} == {"python"}
    code = "".join(block.code for block in blocks(text))
    assert len([line for line in code.splitlines() if line.strip()]) < LINES
    assert re.findall(r"!\[.{40,}\]\((.*)\)", text) == [f"{page.stem}.svg"]
    assert page.with_suffix(".svg").stat().st_size < BYTES
    papers = re.sub(r"arXiv [\d.]+", "", prose(text))
    assert {*NUMBER.findall(papers)} - {*NUMBER.findall(code)} == set()


def test_every_example_is_shown() -> None:
    """The index links each page, with its picture; pictures.py draws no other."""
    index = (EXAMPLES[0].parent / "index.md").read_text()
    for page in PAGES:
        assert index.count(f"]({page.name})") == 2
        assert f"]({page.stem}.svg)]({page.name})" in index
    assert {page.stem for page in PAGES} == draw["PICTURES"].keys()
    assert {svg.stem for svg in EXAMPLES[0].parent.glob("*.svg")} == draw["PICTURES"].keys()
