"""What the commands share: how arguments are read, the rules by name, and colours for all eyes."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NoReturn

import numpy as np

import schuss
from schuss.checks import Interval, unknown
from schuss.rules import RULES, matrix

Rule = type[schuss.Optimizer]
NAMED: Mapping[str, Rule] = {rule.__name__.lower(): rule for rule in (*RULES, *matrix.RULES)}

# Okabe and Ito's colours, which all eyes tell apart; a line has a marker of its own beside.
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
ORANGE, SKY, BLACK = "#e69f00", "#56b4e9", "#000000"
YELLOW, GREY = "#f0e442", "#999999"  # the palest of them, and what stands back
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


# ---- Parsers


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def add_names(parser: argparse.ArgumentParser, what: str, texts: Mapping[str, str]) -> None:
    """The first argument is a name, None without one; `rest` follows, for the name's own parser.

    texts   what each name is, for `--help`
    """
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    width = max(map(len, texts))
    listed = (f"  {name:<{width}}  {text}\n" for name, text in texts.items())
    parser.epilog = f"{what}s:\n{''.join(listed)}"
    parser.add_argument(
        "name", nargs="?", type=one_of(texts), metavar=what, help="one of those below"
    )
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="its own arguments")


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; a file that exists, and isn't read, is overwritten with --force alone."""
    args = parser.parse_args(argv)
    given = list(vars(args).values())
    for path in given:
        if isinstance(path, Path) and path.is_file() and str(path) not in given and not args.force:
            parser.error(f"{str(path)!r} exists; --force overwrites it")
    return args


def add_force(parser: argparse.ArgumentParser) -> None:
    """For commands that write files."""
    parser.add_argument("--force", action="store_true", help="overwrites files that exist")


# ---- Readers

DTYPES = ("float32", "float64", "float16", "bfloat16")


def dtype_of(name: str) -> np.dtype[Any]:
    """The type of a name; bfloat16 is ml_dtypes'."""
    if name == "bfloat16":
        from ml_dtypes import bfloat16  # noqa: PLC0415  an optional package

        name = bfloat16
    return np.dtype(name)


def one_of(names: Iterable[str], where: str = "") -> Callable[[str], str]:
    """Reads one of some names; where it is none, the error has the nearest."""

    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(unknown(text, names, where))
        return text

    return read


def rule(text: str) -> Rule:
    """Reads a rule's name, in any case, as adamw, or schedule-free-sgd."""
    name = text.lower().replace("-", "").replace("_", "")
    if name not in NAMED:
        raise argparse.ArgumentTypeError(unknown(text, NAMED, "`schuss rules` lists them"))
    return NAMED[name]


def elementwise(text: str) -> Rule:
    """Reads the name of a rule that steps element by element, and so is none for matrices."""
    found = rule(text)
    if issubclass(found, matrix.MatrixRule):
        raise argparse.ArgumentTypeError(f"{text!r} is for matrices, and there are none")
    return found


def number(interval: str) -> Callable[[str], float]:
    """Reads a number, which has to lie in the interval."""
    return _number(float, "number", interval)


def whole(interval: str) -> Callable[[str], float]:
    """Reads a whole number, which has to lie in the interval."""
    return _number(int, "whole number", interval)


def _number(kind: Callable[[str], float], what: str, interval: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if value not in Interval(interval):
            raise argparse.ArgumentTypeError(f"{text!r} is no {what} in {interval}")
        return value

    return read


def writable(text: str) -> Path:
    """Reads the name of a file, and finds out before the work whether it can be written."""
    path = Path(text)
    try:  # permissions alone don't tell
        if path.exists():
            path.open("ab").close()
        else:  # a file of this name, for a moment, would be one that exists to other processes
            TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error.strerror}") from None
    return path


def picture(text: str) -> Path:
    """Reads the name of a picture, in any format that matplotlib writes."""
    from matplotlib.backend_bases import FigureCanvasBase  # noqa: PLC0415  an optional package

    formats = FigureCanvasBase.get_supported_filetypes()
    if Path(text).suffix[1:].lower() not in formats:
        known = ", ".join(sorted(formats))
        raise argparse.ArgumentTypeError(f"{text!r} is no picture; its name ends in one of {known}")
    return writable(text)
