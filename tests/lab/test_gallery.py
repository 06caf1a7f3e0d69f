"""The gallery shows what its commands print and draw, and what is drawn can be read."""

from __future__ import annotations

import re
import runpy
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doors.pages import ROOT, prose
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox, BboxBase

from schuss.lab import pictures
from schuss.lab.trace import command

FOLDER = ROOT / "docs" / "gallery"
draw: dict[str, Any] = runpy.run_path(str(FOLDER / "draw.py"))
PAGE = draw["PAGE"].read_text()
BLOCKS = {block[2]: block for block in draw["BLOCK"].finditer(PAGE)}
BYTES = 150_000  # of a picture


def words(svg: Path) -> list[str]:
    """What a picture says."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text())


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[Text, Bbox]:
    """Where level and upright texts stand, of those that are drawn from now on."""
    boxes: dict[Text, Bbox] = {}
    write = Text.draw

    def noticed(text: Text, renderer: Any) -> None:
        write(text, renderer)
        if text.get_visible() and text.get_text().strip() and text.get_rotation() % 90 == 0:
            boxes[text] = text.get_window_extent(renderer)

    monkeypatch.setattr(Text, "draw", noticed)
    return boxes


def unreadable(boxes: dict[Text, Bbox], whole: BboxBase) -> list[str]:
    """The texts of which one lies over another, or that stand out of the picture."""
    inner = {text: box.padded(-1) for text, box in boxes.items()}
    pairs = combinations(inner.items(), 2)
    over = [{one, other} for (one, a), (other, b) in pairs if a.overlaps(b)]
    out = [text for text, box in inner.items() if not whole.contains(*box.min)]
    out += [text for text, box in inner.items() if not whole.contains(*box.max)]
    return sorted(text.get_text() for text in set().union(*over, out))


def title(axes: Axes) -> str:
    return axes.get_title("left")


def shown(axes: Axes) -> bytes:
    """All that the lines of a panel go through, and its bars."""
    lines = [np.asarray(line.get_xydata(), float).tobytes() for line in axes.lines]
    return b"".join([*lines, *(repr(patch.get_path()).encode() for patch in axes.patches)])


def test_every_experiment_has_its_place() -> None:
    """In the order of the list, each with one picture and words in its place."""
    assert list(BLOCKS) == list(command.EXPERIMENTS)
    shown = re.findall(r"^!\[(.{40,})\]\(gallery/(\w+)\.svg\)$", PAGE, re.MULTILINE)
    assert [name for _, name in shown] == list(BLOCKS)
    assert {svg.stem for svg in FOLDER.glob("*.svg")} == BLOCKS.keys()
    assert prose(PAGE).count("**To learn from it:**") == len(BLOCKS)
    for name in BLOCKS:
        assert (FOLDER / f"{name}.svg").stat().st_size < BYTES


@pytest.mark.parametrize("name", BLOCKS)
def test_gallery(
    name: str, written: dict[Text, Bbox], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page has the numbers that the command prints, and a picture with the same words.

    In the picture no panel is another's copy, all have names, and no text covers another.
    """
    drawn: list[Figure] = []
    save = pictures.save

    def kept(picture: Figure, path: Path) -> None:
        drawn.append(picture)
        save(picture, path)

    monkeypatch.setattr(pictures, "save", kept)
    monkeypatch.chdir(tmp_path)
    text = draw["printed"](BLOCKS[name][1])
    assert text == BLOCKS[name][3]
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80
    assert words(tmp_path / f"{name}.svg") == words(FOLDER / f"{name}.svg")

    (picture,) = drawn
    panels = picture.axes
    assert len({shown(axes) for axes in panels}) == len(panels)
    assert picture.get_suptitle()
    for axes in panels:
        below, beside = axes.get_shared_x_axes(), axes.get_shared_y_axes()
        assert any(one.get_xlabel() for one in [axes, *below.get_siblings(axes)])
        assert any(one.get_ylabel() or title(one) for one in [axes, *beside.get_siblings(axes)])
    width, height = 72 * picture.get_size_inches()  # in points, as an SVG has them
    assert unreadable(written, Bbox.from_extents(0, 0, width, height)) == []


def test_what_cannot_be_read_is_noticed(written: dict[Text, Bbox]) -> None:
    """A text over another, and one at the edge."""
    picture = Figure()
    for at in ((0.5, 0.5, "a"), (0.5, 0.5, "b"), (0.99, 0.2, "long"), (0.2, 0.2, "alone")):
        picture.text(*at)
    picture.draw_without_rendering()
    assert unreadable(written, picture.bbox) == ["a", "b", "long"]


def test_names_stand_beside_the_ends_of_their_lines() -> None:
    """On a logarithmic axis that follows the lines, apart where these end together."""
    picture = Figure()
    axes = picture.subplots()
    axes.set_yscale("log")
    for end in (1, 1.01, 0.99, 1e-6):
        axes.plot([0, 1], [10, end])
    pictures.name_lines(axes, ["one", "above", "below", "deep"], gap=0.1)
    places = [text.xy for text in axes.texts if isinstance(text, Annotation)]
    assert [x for x, _ in places] == [1] * 4
    one, above, below, deep = (y for _, y in places)
    picture.draw_without_rendering()
    (_, end), (_, bottom) = axes.transAxes.inverted().transform(
        axes.transData.transform([(1, 1), (1, 1e-6)])
    )
    np.testing.assert_allclose([above, one, below], [end + 0.1, end, end - 0.1], atol=0.001)
    np.testing.assert_allclose(deep, max(bottom, 0.05))  # not below the axes
    names = zip(axes.texts, axes.lines, strict=True)
    assert all(name.get_color() == line.get_color() for name, line in names)
