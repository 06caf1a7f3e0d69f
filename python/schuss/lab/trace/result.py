"""What every experiment returns, and what their pictures have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray

# One descent, the function that it descends on, level lines behind several, and a minimum.
TRACE, FUNCTION, LEVELS, STAR = "#ff7f0e", "#1f77b4", "#a0a0a0", "#ffd700"


class Result:
    """The numbers of an experiment, how they are printed, and how they are drawn."""

    def rows(self) -> Iterator[Sequence[str]]:
        """The numbers as a table, its head first."""
        raise NotImplementedError

    def draw(self) -> Figure:
        """The picture; wants matplotlib."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Writes the picture."""
        self.draw().savefig(path)


def figure(width: float, height: float) -> Figure:
    """An empty picture, of inches, that no window knows of."""
    from matplotlib.figure import Figure  # noqa: PLC0415  an optional package

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


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
    return f"{value:.6f}" if abs(value) < 1e6 else f"{value:.6e}"


def numbers(*values: Any) -> list[str]:
    """Numbers in a row of a table."""
    return [shown(float(value)) for value in values]


def plain(axes: Axes) -> None:
    """A frame on two sides only."""
    axes.spines[["top", "right"]].set_visible(False)
