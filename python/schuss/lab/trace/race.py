"""The race of five rules over a saddle and through a valley."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import schuss
from schuss.lab.options import MARKERS
from schuss.lab.pictures import figure, styled
from schuss.lab.trace.objectives import OBJECTIVES
from schuss.lab.trace.paths import walk
from schuss.lab.trace.result import STAR, Array, Result, drawn, numbers, star

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

STEPS, EVERY = 120, 2  # of the animation every second step is a frame
BACKGROUND, LEVELS = "#1a1a1a", "#5c5c5c"


@dataclass(frozen=True)
class Racer:
    """A rule, its colour and its numbers."""

    name: str
    rule: type[schuss.Optimizer]
    colour: str
    options: dict[str, Any]


# In shades that a dark background lets be seen, and that all eyes tell apart.
RACERS = (
    Racer("gradient descent", schuss.SGD, "#00d0ff", {"lr": 0.03}),
    Racer("momentum", schuss.Momentum, "#ff60c8", {"lr": 0.03, "momentum": 0.8}),
    Racer("Adagrad", schuss.Adagrad, "#ffffff", {"lr": 0.5}),
    Racer("RMSprop", schuss.RMSprop, "#00a040", {"lr": 0.05, "alpha": 0.9}),
    Racer("Adam", schuss.Adam, "#6070ff", {"lr": 0.1}),
)
# Where each starts. The saddle's is a thousandth beside the ridge, which leads to the saddle point.
TRACKS = {"saddle": OBJECTIVES["saddle"], "valley": OBJECTIVES["bowl"]}


@dataclass(frozen=True)
class Race(Result):
    """The paths of all on both tracks."""

    paths: dict[str, tuple[Array, ...]]  # by track, in the order of RACERS: (STEPS + 1, 2)

    def values(self, track: str) -> list[Array]:
        """The function along each path."""
        return [TRACKS[track].value(path.T) for path in self.paths[track]]

    def arrival(self, track: str) -> list[int | None]:
        """How many steps each took to be within a tenth of the least value, and remain there."""
        least = TRACKS[track].least
        found: list[int | None] = []
        for values in self.values(track):
            far = np.flatnonzero(values > least + 0.1)
            first = int(far[-1]) + 1 if far.size else 0
            found.append(first if first < len(values) else None)
        return found

    def rows(self) -> Iterator[Sequence[str]]:
        yield "track", "rule", "x", "y", "value", "there after"
        for track, paths in self.paths.items():
            arrivals = self.arrival(track)
            for racer, path, values, n in zip(
                RACERS, paths, self.values(track), arrivals, strict=True
            ):
                there = "never" if n is None else f"{n} steps"
                yield track, racer.name, *numbers(*path[-1], values[-1]), there

    def painted(self) -> Figure:
        return self.animated()[0]

    def animated(self) -> tuple[Figure, list[tuple[Line2D, Line2D, Array]], Text]:
        """The picture after the last step; each path's line, its head and its points; the counter.

        A dot stands where a path was after every tenth step.
        """
        picture = figure(4.9, "Adagrad is the first to the minimum, gradient descent the last")
        picture.set_facecolor(BACKGROUND)
        picture.texts[0].set_color("white")
        counter = picture.text(0.99, 0.98, counted(STEPS), color="white", size="large",
                               ha="right", va="top")  # fmt: skip
        artists = []
        style: Any = {"markeredgecolor": "black", "markersize": 10, "zorder": 4}
        for axes, (name, track) in zip(picture.subplots(1, 2), TRACKS.items(), strict=True):
            axes.set_facecolor(BACKGROUND)
            axes.set(xlim=track.x, ylim=track.y)
            track.contours(axes, LEVELS)
            star(axes, *track.minima)
            for racer, marker, path in zip(RACERS, MARKERS, self.paths[name], strict=False):
                (line,) = axes.plot(*path.T, "-o", color=racer.colour, markersize=3, markevery=10)
                (head,) = axes.plot(
                    *path[-1:].T, marker, color=racer.colour, label=racer.name, **style
                )
                artists.append((line, head, path))
            axes.set_title(f"{name}: {drawn(track.formula)}", color="white")
            axes.set_xlabel("x", color="white")
            axes.set_ylabel("y", color="white")
            axes.tick_params(colors="white")
            axes.spines[:].set_color(LEVELS)
        picture.legend(*picture.axes[0].get_legend_handles_labels(), loc="outside lower center",
                       ncols=5, labelcolor="white")  # fmt: skip
        return picture, artists, counter

    def save(self, path: Path) -> None:
        if path.suffix.lower() != ".gif":
            super().save(path)
            return
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  optional
        from PIL import Image  # noqa: PLC0415  matplotlib needs it

        with styled():
            picture, artists, counter = self.animated()
        picture.set_dpi(90)
        canvas: Any = FigureCanvasAgg(picture)
        moving = [counter, *(artist for line, head, _ in artists for artist in (line, head))]
        for artist in moving:
            artist.set_animated(True)
        canvas.draw()
        empty = canvas.copy_from_bbox(picture.bbox)
        frames = []
        for n in range(0, STEPS + 1, EVERY):
            canvas.restore_region(empty)
            show(artists, counter, n)
            for artist in moving:
                picture.draw_artist(artist)
            frames.append(Image.fromarray(np.array(canvas.buffer_rgba())).convert("RGB"))
        palette = Image.new("P", (1, 1))
        palette.putpalette(shades())
        first, *others = (f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames)
        durations = [100] * len(others) + [2000]  # ms; it rests on the last one
        first.save(path, save_all=True, append_images=others, duration=durations, loop=0)


def shades() -> list[int]:
    """Red, green and blue of every colour in the picture, and of its edges' way to the background.

    A palette that were found from the frames would take paths for their neighbours' colour.
    """
    colours = [racer.colour for racer in RACERS] + [LEVELS, STAR, "#000000"]
    dark, *ends = (np.array(list(bytes.fromhex(c[1:])), float) for c in (BACKGROUND, *colours))
    mixed = [dark + (end - dark) * k / 24 for end in ends for k in range(1, 25)]
    return [int(part) for colour in (dark, *mixed) for part in np.round(colour)]


def counted(n: int) -> str:
    return f"step {n} of {STEPS}"


def show(artists: Sequence[tuple[Line2D, Line2D, Array]], counter: Text, n: int) -> None:
    """Sets all paths, and the counter, to where they are after n steps."""
    counter.set_text(counted(n))
    for line, head, points in artists:
        line.set_data(*points[: n + 1].T)
        head.set_data(*points[: n + 1][-1:].T)


def race() -> Race:
    """Five rules over a saddle and through a valley; animated."""
    return Race(
        {
            name: tuple(
                walk(racer.rule, track.value, track.gradient, track.start, STEPS, **racer.options)
                for racer in RACERS
            )
            for name, track in TRACKS.items()
        }
    )
