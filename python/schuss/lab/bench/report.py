"""Results as tables, as JSON and as a picture."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from schuss.lab.bench.contestants import NAMES, Schuss
from schuss.lab.bench.measure import Result
from schuss.lab.bench.workloads import CURVES, PLAIN
from schuss.lab.options import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, YELLOW

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEAD = (
    f"{'us':>10}{'spread':>8}{'cold us':>10}{'ns/elem':>10}{'GB/s':>7}{'roofline':>10}"
)  # fmt: skip


def case(result: Result) -> str:
    variant = f" {result.variant}" if result.variant else ""
    return f"{result.rule}{variant}, {result.workload}"


def row(result: Result) -> str:
    """Our own times."""
    ours = result.ours
    share = "-" if ours.of_roofline is None else f"{ours.of_roofline:.0%}"
    return (
        f"{case(result):<40}{ours.seconds * 1e6:>10.1f}{ours.spread:>8.0%}{ours.cold * 1e6:>10.1f}"
        f"{ours.ns_per_element:>10.3f}{ours.bytes_per_second / 1e9:>7.1f}{share:>10}"
    )


def ratios(results: Sequence[Result]) -> Iterator[str]:
    """The others' times over ours."""
    yield f"{'time over ours':<40}" + "".join(f"{name:>{width(name)}}" for name in NAMES)
    for result in results:
        cells = (
            f"{result.contestants[name].ratio:>{width(name)}.1f}"
            if name in result.contestants
            else f"{'-':>{width(name)}}"
            for name in NAMES
        )
        yield f"{case(result):<40}" + "".join(cells)


def width(name: str) -> int:
    return max(7, len(name) + 1)


def absent(results: Sequence[Result]) -> Iterator[str]:
    """Who is missing, why, and in how many cases."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for name, why in result.left_out.items():
            reasons.setdefault((name, why), []).append(case(result))
    for (name, why), cases in reasons.items():
        where = "" if len(cases) == len(results) else f" ({cases[0]}{more(len(cases) - 1)})"
        yield f"{name} left out: {why}{where}"
    if any(why.endswith("is not installed") for _, why in reasons):
        yield "pip install 'schuss[bench]' has those that are not installed"


def more(number: int) -> str:
    return f" and {number} more" if number else ""


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [s for s in info.read_text().splitlines() if "model name" in s] if info.exists() else []
    return names[0].split(": ")[1] if names else platform.processor()


# ---- The picture

# Ours, and the others in their order.
TEAMS = (BLUE, BLACK, YELLOW, GREY, ORANGE, PURPLE, VERMILION, GREEN, SKY)


def curves(axes: Axes, results: Sequence[Result], by: str) -> None:
    """A line for each contestant: ns per element against the cases' elements or arrays."""
    for name, colour in zip((Schuss.name, *NAMES), TEAMS, strict=True):
        points = sorted(
            (getattr(r, by), r.contestants[name].ns_per_element)
            for r in results
            if name in r.contestants
        )
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, "o-", color=colour, markersize=3, label=name)
    axes.set(xscale="log", yscale="log", xlabel=f"number of {by}", ylabel="ns per element")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def picture(results: Sequence[Result], title: str) -> Figure:
    """The cost of a plain step against its size, and against the number of arrays."""
    from matplotlib.figure import Figure  # noqa: PLC0415  an optional package

    first = results[0]
    shown = [
        r for r in results
        if (r.rule, r.variant, r.threads) == (first.rule, PLAIN, first.threads)
    ]  # fmt: skip
    one = [r for r in shown if r.arrays == 1]
    same = [r for r in shown if r.workload in CURVES and r.elements == 64 * r.arrays]
    figure = Figure(figsize=(11, 4.2), dpi=150)
    figure.set_layout_engine("constrained")
    threads = f"{first.threads} thread{'s' * (first.threads > 1)}"
    figure.suptitle(f"{first.rule}, {threads}, {title}", fontsize=9)
    left, right = figure.subplots(1, 2)
    left.set_title("one array", fontsize=9)
    right.set_title("arrays of 64 elements", fontsize=9)
    curves(left, one, "elements")
    curves(right, same, "arrays")
    figure.legend(handles=[*left.lines], loc="outside right upper", frameon=False)
    return figure
