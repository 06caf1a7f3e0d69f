"""The picture of README.md, of what `schuss bench` has measured: `cost.py FILE.json PICTURE`.

How long a step takes: against the elements of one array, and against the number of arrays of 64
elements. bench/README.md has both commands.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, and a grey: for all eyes, on white paper and on black.
DRAWN = {
    "numpy": ("NumPy, the specification", "#cc79a7", "s"),
    "in place": ("NumPy, in place by hand", "#009e73", "^"),
    "fused": ("PyTorch, fused", "#d55e00", "D"),
    "schuss": ("Schuss", "#2a8fd0", "o"),
}
GREY = "#7f7f7f"


def curves(axes: Axes, results: Sequence[Mapping[str, Any]], by: str) -> None:
    """A line for each contestant: microseconds of a step."""
    for name, (label, colour, marker) in DRAWN.items():
        points = sorted(
            (r[by], 1e6 * r["contestants"][name]["seconds"])
            for r in results
            if name in r["contestants"]
        )
        width = 2.5 if name == "schuss" else 1.5
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker=marker, markersize=4, color=colour, linewidth=width, label=label)
    axes.set(xscale="log", yscale="log")
    axes.set_yticks(
        [10**k for k in range(6)], [f"{n} {u}" for u in ("µs", "ms") for n in (1, 10, 100)]
    )
    axes.minorticks_off()
    axes.grid(alpha=0.25, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)


def picture(results: Sequence[Mapping[str, Any]]) -> Figure:
    plain = [r for r in results if (r["rule"], r["variant"], r["threads"]) == ("AdamW", "", 1)]
    one = [r for r in plain if r["arrays"] == 1 and r["elements"] in {10**k for k in range(8)}]
    many = [r for r in plain if r["workload"].endswith(" of 64")]
    figure = Figure(figsize=(9, 3.4))
    figure.set_layout_engine("constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    curves(left, one, "elements")
    left.set_ylabel("a step of AdamW")
    left.set_xlabel("one array, by its elements")
    left.set_xticks([1, 1e3, 1e6], ["1", "thousand", "million"])
    curves(right, many, "arrays")
    right.set_xlabel("arrays of 64 elements, by their number")
    right.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
    left.legend(frameon=False, labelcolor=GREY, loc="upper left")
    return figure


def main(source: str, target: str) -> None:
    results = json.loads(Path(source).read_text())["results"]
    style: Any = dict.fromkeys(
        ("text.color", "xtick.color", "ytick.color", "axes.labelcolor", "axes.edgecolor"), GREY
    )
    style |= {"svg.fonttype": "none", "svg.hashsalt": "schuss"}  # text as text; the same each time
    with mpl.rc_context(style):
        metadata = {"Date": None} if target.endswith(".svg") else {}
        picture(results).savefig(target, transparent=True, metadata=metadata)


if __name__ == "__main__":
    main(*sys.argv[1:])
