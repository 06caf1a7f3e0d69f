"""What the commands' pictures have in common: one look, names beside lines, and how they are saved.

matplotlib is imported where something is drawn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray

WIDTH = 9.0  # inches: as wide as a page shows it, so that words keep their size
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "figure.titlesize": "large",
    "legend.fontsize": "medium",
    "legend.frameon": False,
    "lines.markersize": 4,
    "savefig.dpi": 150,
    "svg.fonttype": "none",  # text as text
    "svg.hashsalt": "schuss",  # the same each time
}


def styled() -> AbstractContextManager[None]:
    """In which all that is drawn has the look of all pictures."""
    import matplotlib as mpl  # noqa: PLC0415  an optional package

    return mpl.rc_context(STYLE)


def figure(height: float, finding: str) -> Figure:
    """A picture without panels that no window knows of; what it shows stands above."""
    from matplotlib.figure import Figure  # noqa: PLC0415  an optional package

    picture = Figure(figsize=(WIDTH, height), layout="constrained")
    picture.suptitle(finding, x=0.01, horizontalalignment="left")
    return picture


def save(picture: Figure, path: Path) -> None:
    """Writes a picture; an SVG in hundredths of a point, and the same each time."""
    svg = path.suffix.lower() == ".svg"
    with styled():
        picture.savefig(path, metadata={"Date": None} if svg else None)
    if svg:
        tidy(path)


def tidy(svg: Path) -> None:
    """Brings an SVG to hundredths of a point."""
    text = svg.read_text(encoding="utf-8")
    text = re.sub(r"<[^>]*>", rounded, text)  # in tags: words keep their digits
    svg.write_text(re.sub(" +\n", "\n", text), encoding="utf-8")


def rounded(text: re.Match[str]) -> str:
    """A text whose numbers have two decimals."""
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", text[0])


def name_lines(axes: Axes, names: Sequence[str], gap: float = 0.075, at: int = -1) -> None:
    """Writes names beside the ends of the axes' first lines, in their colours, when all is drawn.

    gap   between two names, in heights of the axes
    at    which end: -1, the last point, or 0, the first
    """
    axes.get_ylim()  # which finds them, where they follow the lines
    lines = axes.lines[: len(names)]
    ends = np.array([np.asarray(line.get_xydata(), float)[at] for line in lines])
    heights = (axes.transScale + axes.transLimits).transform(ends)[:, 1]
    beside: Any = {"xytext": (6, 0), "ha": "left"} if at else {"xytext": (-6, 0), "ha": "right"}
    for line, name, (x, _), y in zip(lines, names, ends, apart(heights, gap), strict=True):
        axes.annotate(
            name, (x, y), xycoords=("data", "axes fraction"), textcoords="offset points",
            va="center", color=line.get_color(), **beside,
        )  # fmt: skip


def signed(text: str) -> str:
    """A number as in print."""
    return text.replace("-", "\N{MINUS SIGN}")


def apart(places: Array, gap: float) -> Array:
    """Places between 0 and 1, moved until none is nearer to another than the gap."""
    order = np.argsort(places)
    gaps = gap * np.arange(len(places))
    near = np.clip(places[order], gap / 2, 1 - gap / 2) - gaps
    up, down = np.maximum.accumulate(near), np.minimum.accumulate(near[::-1])[::-1]
    moved = np.empty_like(places)
    moved[order] = (up + down) / 2 + gaps
    return moved
