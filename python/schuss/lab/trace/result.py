"""What every experiment returns, and what their pictures have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from schuss.lab import pictures
from schuss.lab.options import GREY, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray

# One descent, the function that it descends on, level lines behind several, and a minimum.
TRACE, FUNCTION, LEVELS, STAR = VERMILION, GREY, "#b0b0b0", "#ffd700"


class Result:
    """The numbers of an experiment, how they are printed, and how they are drawn."""

    def rows(self) -> Iterator[Sequence[str]]:
        """The numbers as a table, its head first."""
        raise NotImplementedError

    def painted(self) -> Figure:
        """The picture, in whatever style is set."""
        raise NotImplementedError

    def draw(self) -> Figure:
        """The picture; wants matplotlib."""
        with pictures.styled():
            return self.painted()

    def save(self, path: Path) -> None:
        """Writes the picture."""
        pictures.save(self.draw(), path)


def star(axes: Axes, *points: tuple[float, float]) -> None:
    """Marks minima."""
    axes.plot(*np.transpose(points), "*", color=STAR, markeredgecolor="black", markersize=13,
              linestyle="none", zorder=3)  # fmt: skip


def drawn(formula: str) -> str:
    """A formula as in print; tables have it in ASCII, for any terminal."""
    signs = {
        "^2": "\N{SUPERSCRIPT TWO}",
        "^3": "\N{SUPERSCRIPT THREE}",
        "^4": "\N{SUPERSCRIPT FOUR}",
    }
    signs |= {" - ": " \N{MINUS SIGN} ", "pi ": "\N{GREEK SMALL LETTER PI}"}
    signs |= {"alpha": "\N{GREEK SMALL LETTER ALPHA}"}
    for sign, printed in signs.items():
        formula = formula.replace(sign, printed)
    return formula


def shown(value: float) -> str:
    """A number in a table."""
    text = f"{value:.6f}" if abs(value) < 1e6 else f"{value:.6e}"
    return text if float(text) else text.lstrip("-")


def numbers(*values: Any) -> list[str]:
    """Numbers in a row of a table."""
    return [shown(float(value)) for value in values]
