"""The pictures of the examples: `python docs/examples/pictures.py [NAME ...]`.

The blocks of a page are its program. It runs, and what it leaves behind is drawn beside the page.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from schuss.lab.pictures import tidy

HERE = Path(__file__).parent
Left = Mapping[str, Any]  # what a program leaves behind, by name

# Okabe and Ito's colours, and a grey: for all eyes, on white paper and on black.
BLUE, RED, GREEN, PINK, ORANGE = "#2a8fd0", "#d55e00", "#009e73", "#cc79a7", "#e69f00"
GREY = "#7f7f7f"
COLOURED = ("text.color", "xtick.color", "ytick.color", "axes.labelcolor", "axes.edgecolor")
STYLE: Any = {
    **dict.fromkeys(COLOURED, GREY),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "svg.fonttype": "none",  # text as text
    "svg.hashsalt": "schuss",  # the same each time
}


def side_by_side(*widths: float, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(9, height), layout="constrained")
    return figure, list(figure.subplots(1, len(widths), width_ratios=widths))


def bare(axes: Axes) -> None:
    """Leaves what is drawn, without axes."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def apart(places: np.ndarray, widths: np.ndarray, height: float) -> np.ndarray:
    """Places of labels, moved up and down until none covers another."""
    places = places.copy()
    near = np.abs(places[:, None, 0] - places[:, 0]) < (widths[:, None] + widths) / 2
    np.fill_diagonal(near, False)
    for _ in range(200):
        dy = places[:, None, 1] - places[:, 1]
        places[:, 1] += 0.2 * (near * np.sign(dy) * np.maximum(height - np.abs(dy), 0)).sum(axis=1)
    return places


# ---- A picture each


def characters(left: Left) -> Figure:
    losses, said = left["losses"], left["said"]
    figure, (course, words) = side_by_side(2, 3)
    course.plot(losses, color=BLUE, linewidth=2)
    course.set(xlabel="steps", yscale="log", ylim=(0.01, 10), title="loss, in bits a letter")
    course.set_yticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
    course.minorticks_off()
    for row, (step, text) in enumerate(said.items()):
        at = min(step, len(losses) - 1)
        course.plot(at, losses[at], "o", color=RED, markersize=6)
        words.text(0, -row, f"after {step} steps" if step else "at first", color=RED)
        line = text[:64].replace("\n", " ")
        words.text(0, -row - 0.4, line, family="monospace", fontsize="small")
    words.set(xlim=(0, 1), ylim=(-len(said) + 0.4, 0.6), title="what it says")
    bare(words)
    return figure


def factorisation(left: Left) -> Figure:
    truth, found, errors = left["truth"], left["found"], left["errors"]
    figure, (films, course) = side_by_side(1, 1.4)
    films.plot(*truth.T, color=GREY, linewidth=1)
    films.plot(*found[::4].T, ".", color=BLUE, markersize=4)
    films.set(aspect="equal", title="films as found, and the truth")
    bare(films)
    course.axhline(left["NOISE"], color=GREY, linewidth=1, linestyle="--")
    course.text(len(errors) - 1, left["NOISE"] - 0.04, "the noise", va="top", ha="right")
    course.plot(errors, "o-", color=BLUE, linewidth=2, markersize=4)
    course.set(xlabel="epochs", ylim=(0, 1.3), title="error of ratings held out")
    course.set_xticks([0, 5, 10, 15])
    return figure


def words(left: Left) -> Figure:
    centred = left["found"] - left["found"].mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(left["groups"], (RED, BLUE, GREEN, PINK, ORANGE), strict=True))
    shown = left["shown"]
    places = apart(u[:, :2] * s[:2], np.array([0.02 * len(word) for word in shown]), 0.06)
    for (x, y), word, group in zip(places, shown, left["group"], strict=True):
        axes.text(x, y, word, color=colours[group], ha="center", va="center")
    axes.set(xlim=(-0.9, 0.9), ylim=(places[:, 1].min() - 0.05, places[:, 1].max() + 0.05))
    bare(axes)
    return figure


def logistic(left: Left) -> Figure:
    penalties, path = left["penalties"], np.array(left["path"])
    at, theirs = penalties[left["compared"]], left["theirs"]
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(penalties, path[:, path.any(axis=0)], color=BLUE, linewidth=1.5)
    kept = theirs.any(axis=0)
    axes.plot(at, theirs[:, kept], "o", color=RED, markersize=5, mfc="none")
    for l1, count in zip(at, np.count_nonzero(theirs, axis=1), strict=True):
        axes.text(l1, 3.2, str(count), ha="center", color=RED)
    axes.text(penalties[-1] * 0.96, 3.2, "of 30 are not zero", color=RED)
    last, names = path[-1] != 0, left["data"].feature_names
    places = np.stack([np.zeros(last.sum()), path[-1][last]], axis=1)
    labels = apart(places, np.ones(len(places)), 0.17)
    for name, (_, y) in zip(names[last], labels, strict=True):
        axes.text(penalties[-1] * 0.96, y, name, va="center", color=BLUE)
    axes.set(xscale="log", xlabel="penalty l1", xlim=(0.32, 0.0045), ylim=(-0.1, 3.4))
    axes.set_xticks([0.3, 0.1, 0.03, 0.01], ["0.3", "0.1", "0.03", "0.01"])
    axes.minorticks_off()
    axes.set_title("weights, by Schuss (lines) and by scikit-learn (rings)")
    axes.spines["bottom"].set_bounds(0.3, 0.01)
    return figure


def convolution(left: Left) -> Figure:
    errors, images = left["errors"], left["images"][left["held_out"]][..., 0]
    labels, said = left["labels"][left["held_out"]], left["said"]
    missed = np.flatnonzero(said != labels)[:4]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    course, *tiles = figure.subplots(1, 1 + len(missed), width_ratios=[3] + [1] * len(missed))
    course.plot(np.arange(1, len(errors) + 1), errors, "o-", color=BLUE, linewidth=2, markersize=4)
    course.set(xlabel="epochs", yscale="log", title=f"mistakes in {len(labels)} digits held out")
    course.set_yticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    course.minorticks_off()
    ink = np.zeros((8, 8, 4))
    ink[..., :3] = mpl.colors.to_rgb(GREY)
    for axes, k in zip(tiles, missed, strict=True):
        ink[..., 3] = (images[k] + 1) / 2
        axes.imshow(ink, interpolation="none")
        axes.set_title(f"a {labels[k]}, said {said[k]}", color=RED, loc="center")
        bare(axes)
    return figure


def evolution(left: Left) -> Figure:
    figure, (plane, course) = side_by_side(1.5, 1)
    for path, colour, width in ((left["first"], GREY, 0.6), (left["last"], BLUE, 1)):
        plane.plot(*path[:, :, 0, ::2].swapaxes(0, 1), color=colour, linewidth=width)
    plane.set_xticks([0, np.pi, 2 * np.pi], ["upright", "hanging", "upright"])
    plane.set_title("speed in radians a second, by angle")
    plane.plot([0, 2 * np.pi], [0, 0], "o", color=RED, markersize=6)
    plane.text(2 * np.pi, -5.5, "at first", ha="right")
    after = f"after {len(left['course'])} generations"
    plane.text(2 * np.pi, -7, after, color=BLUE, ha="right")
    course.plot(left["course"], color=BLUE, linewidth=2)
    course.set(xlabel="generations", ylim=(-1, 1), title="mean height")
    course.set_yticks([-1, 0, 1], ["hanging", "level", "upright"])
    return figure


def federated(left: Left) -> Figure:
    figure, (shards, course) = side_by_side(1, 2)
    held = np.array([np.bincount(left["labels"][own], minlength=10) for own in left["clients"]])
    client, digit = held.nonzero()
    shards.scatter(digit, client + 1, s=held[client, digit], color=BLUE, linewidth=0)
    shards.set(xlabel="digits", title="images of each client", ylim=(0.2, len(held) + 0.8))
    shards.set_xticks(range(10), map(str, range(10)))
    shards.set_yticks([1, len(held)])
    rounds = np.arange(1, len(left["mean"]) + 1)
    for name, label, colour in (("mean", "the mean", GREY), ("adam", "Adam", BLUE)):
        wrong = 100 * (1 - left[name])
        course.plot(rounds, wrong, color=colour, linewidth=2)
        course.text(rounds[-1] + 1, wrong[-1], label, color=colour, va="center")
    course.set(xlabel="rounds", yscale="log", title="% of digits held out that are told wrong")
    course.set_yticks([3, 10, 30, 100], ["3", "10", "30", "100"])
    course.minorticks_off()
    return figure


def offload(left: Left) -> Figure:
    figure, (course, memory) = side_by_side(1.4, 1)
    steps = np.arange(20, len(left["full"]) + 1)
    lines = ("full", GREY, 4), ("half", RED, 1.5), ("offloaded", BLUE, 1.5)
    for name, colour, width in lines:
        mean = np.convolve(left[name], np.ones(20) / 20, "valid")
        course.plot(steps, mean, color=colour, linewidth=width)
    course.set(xlabel="steps", ylim=(1.5, 5), title="bits a letter, mean of 20 steps")
    course.set_xticks(range(0, len(left["full"]) + 1, 50))
    rows = {  # bytes of each part
        "float32: weights, gradients, state": (4, 4, 8),
        "bfloat16: weights, gradients, state": (2, 2, 4),
        "offloaded: weights; on the CPU masters, state": (2, 2, 2),
    }
    for row, (label, parts) in enumerate(rows.items()):
        colour, begin = lines[row][1], 0
        memory.text(0, -row + 0.34, label, color=colour)
        for size in parts:
            here = row < 2 or begin == 0
            fill = mpl.colors.to_rgba(colour, 0.3 if here else 0)
            memory.barh(-row, size - 0.2, 0.5, begin, facecolor=fill, edgecolor=colour)
            middle = begin + size / 2 - 0.1
            memory.text(middle, -row, str(size), color=colour, ha="center", va="center")
            begin += size
    memory.set(title="bytes a weight", xlim=(-0.1, 16), ylim=(-2.5, 0.7))
    bare(memory)
    return figure


def machines(left: Left) -> Figure:
    figure, (state, traffic) = side_by_side(1.4, 1)
    for row, held in enumerate(left["held"].values()):
        kilobytes = np.array(held) / 1e3
        begins = kilobytes.cumsum() - kilobytes
        state.barh(-row, kilobytes, 0.6, begins, color=BLUE, edgecolor="white", linewidth=1.5)
        state.text(begins[-1] + kilobytes[-1] + 8, -row, f"{max(kilobytes):.0f}", va="center")
    sizes = list(left["held"])
    state.set_yticks([-row for row in range(len(sizes))], map(str, sizes))
    state.set(ylabel="processes", xlim=(0, 740))
    state.set_title("kilobytes of state in each process, and the most of one")
    many = np.linspace(1, max(sizes), 50)
    traffic.plot(many, 2 * (many - 1) / many, color=GREY, linewidth=2)
    traffic.plot(sizes, list(left["sent"].values()), "o", color=BLUE, markersize=7)
    traffic.text(3.2, 1.2, "2(p-1)/p", color=GREY)
    traffic.set(xlabel="processes", ylim=(-0.1, 2.1), title="bytes that each sends, of the arrays'")
    traffic.set_xticks(sizes, map(str, sizes))
    traffic.set_yticks([0, 1, 2], ["0", "1", "2"])
    return figure


PICTURES: dict[str, Callable[[Left], Figure]] = {
    draw.__name__: draw
    for draw in (
        characters,
        factorisation,
        words,
        logistic,
        convolution,
        evolution,
        federated,
        offload,
        machines,
    )
}


# ---- From pages to files


def program(page: Path) -> str:
    """The code of its blocks."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S))


def draw(name: str, left: Left, target: Path) -> None:
    """Writes the picture as an SVG, in hundredths of a point."""
    with mpl.rc_context(STYLE):
        PICTURES[name](left).savefig(target, transparent=True, metadata={"Date": None})
    tidy(target)


def main(*names: str) -> None:
    for name in names or PICTURES:
        left: dict[str, Any] = {"__name__": name}
        exec(compile(program(HERE / f"{name}.md"), f"{name}.md", "exec"), left)
        draw(name, left, HERE / f"{name}.svg")


if __name__ == "__main__":
    main(*sys.argv[1:])
