"""`schuss compare`: rules on one task, each with its learning rate, to choose one of them."""

from __future__ import annotations

import argparse
import ast
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import schuss
from schuss.lab import options
from schuss.lab.options import COLOURS, Rule
from schuss.lab.tasks import (
    FULL_BATCHES,
    LINEAR,
    RATES,
    TASKS,
    Run,
    optimizer,
    run_task,
    usual_rate,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HANDFUL = "sgd,momentum,adamw,lion,schedulefreeadamw,muon"
EXPLAINED = """\
ms/step: of the optimizer alone, the median, with new gradients each time; share: of the optimizer
in the time of gradients and steps; state: bytes a parameter."""


# ---- The comparison


@dataclass
class Result:
    """What became of a rule."""

    rule: Rule
    lr: float
    options: Mapping[str, Any]
    runs: list[Run]  # one a seed
    grid: dict[float, float] = field(default_factory=dict)  # rate: mean loss; empty without a sweep

    @property
    def losses(self) -> list[float]:
        return [r.loss[-1] for r in self.runs]

    @property
    def accuracies(self) -> list[float]:
        return [r.accuracy[-1] for r in self.runs if r.accuracy]

    def reached(self, target: float) -> list[int | None]:
        """The first measured step of each run whose loss is not above the target."""
        return [
            next((n for n, loss in zip(r.steps, r.loss, strict=True) if loss <= target), None)
            for r in self.runs
        ]


def spread(values: Sequence[float]) -> float:
    """The standard deviation, of one value 0, and NaN where one isn't finite."""
    if not all(map(math.isfinite, values)):
        return math.nan
    return stdev(values) if len(values) > 1 else 0.0


def grid(rule: Rule, task: str) -> list[float]:
    """Rates a half power of ten apart: five around that of the table, or all that may do."""
    if rule.__name__ not in RATES:
        return [float(f"{10 ** (k / 2):.2g}") for k in range(-9, 3)]
    return [float(f"{usual_rate(rule, task) * 10 ** (k / 2):.2g}") for k in range(-2, 3)]


def rates(rule: Rule, task: str, given: Mapping[Rule, float], sweep: bool) -> list[float]:
    """The learning rates to try: one, unless a sweep is asked for, or there is no other way."""
    if rule in given:
        return [given[rule]]
    if sweep or rule.__name__ not in RATES:
        return grid(rule, task)
    return [usual_rate(rule, task)]


def results(
    task: str,
    tried: Mapping[Rule, Sequence[float]],
    seeds: int,
    steps: int,
    options: Mapping[Rule, Mapping[str, Any]],
) -> Iterator[Result | None]:
    """Of each rule the best by its mean loss at the end; None after each single run."""
    for rule, lrs in tried.items():
        own = options.get(rule, {})
        best, means = None, {}
        for lr in lrs:
            runs = []
            for seed in range(seeds):
                try:
                    runs.append(run_task(task, rule, lr, seed, steps, **own))
                except ValueError as error:  # a loss, say, that the rule can't take
                    raise argparse.ArgumentError(None, f"{rule.__name__}: {error}") from None
                yield None
            found = Result(rule, lr, own, runs)
            means[lr] = fmean(found.losses)
            if best is None or means[lr] < means[best.lr]:
                best = found
        if best is not None:
            best.grid = means if len(means) > 1 else {}
            yield best


def in_order(found: Iterable[Result]) -> list[Result]:
    """The smallest mean loss first."""
    return sorted(found, key=lambda r: fmean(r.losses))


# ---- What is shown


def plus_minus(mean: float, deviation: float, seeds: int) -> str:
    """A loss, with its spread where there is one."""
    if not math.isfinite(mean):
        return "diverged"
    return f"{mean:.2e}" + (f" \N{PLUS-MINUS SIGN} {deviation:.0e}" if seeds > 1 else "")


def steps_to(reached: Sequence[int | None]) -> str:
    """The mean of those that came so far, and how many they are if not all are."""
    there = [n for n in reached if n is not None]
    if not there:
        return "-"
    some = f" ({len(there)} of {len(reached)})" if len(there) < len(reached) else ""
    return f"{fmean(there):.0f}{some}"


def remarks(result: Result, task: str) -> str:
    """What else there is to know of a row."""
    said = []
    if task == "digits" and result.rule.__name__ in FULL_BATCHES:
        said.append("full batches")
    if task == "digits" and result.rule.__name__ in LINEAR:
        said.append("no hidden layers")
    diverged = sum(not math.isfinite(loss) for loss in result.losses)
    if 0 < diverged < len(result.runs):
        said.append(f"diverged {diverged} of {len(result.runs)}")
    said += [f"{key}={value}" for key, value in result.options.items()]
    if result.grid and result.lr in (min(result.grid), max(result.grid)):
        said.append("lr at the grid's end")
    return ", ".join(said)


def table(ordered: Sequence[Result], task: str, target: float) -> Table:
    """The results, one rule a row."""
    shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 0, 0, 2))
    shown.add_column("rule", no_wrap=True)
    accurate = any(r.accuracies for r in ordered)
    heads = ["lr", "final loss", "accuracy", f"steps to {target:g}", "ms/step", "share", "state"]
    for head in heads:
        if head != "accuracy" or accurate:
            shown.add_column(head, justify="right", no_wrap=True)
    said = [remarks(r, task) for r in ordered]
    if any(said):
        shown.add_column(no_wrap=True)
    for r, remark in zip(ordered, said, strict=True):
        seeds = len(r.runs)
        cells = [r.rule.__name__, f"{r.lr:g}"]
        cells.append(plus_minus(fmean(r.losses), spread(r.losses), seeds))
        if accurate:
            percent = [100 * a for a in r.accuracies]
            of = f" \N{PLUS-MINUS SIGN} {spread(percent):.1f}" if seeds > 1 else ""
            cells.append(f"{fmean(percent):.1f}{of} %")
        cells.append(steps_to(r.reached(target)))
        cells.append(f"{1e3 * fmean(x.seconds for x in r.runs):.4f}")
        cells.append(f"{fmean(x.share for x in r.runs):.0%}")
        cells.append(f"{r.runs[0].state:.3g}")
        shown.add_row(*cells, *([remark] if any(said) else []))
    return shown


def sweeps(ordered: Iterable[Result]) -> Table:
    """The mean loss at each learning rate that was tried."""
    shown = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for r in ordered:
        if r.grid:
            cells = [
                f"{'*' if lr == r.lr else ''}{lr:g}: {plus_minus(loss, 0, 1)}"
                for lr, loss in r.grid.items()
            ]
            for i in range(0, len(cells), 5):
                shown.add_row("" if i else r.rule.__name__, *cells[i : i + 5])
    return shown


def finite(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def document(ordered: Sequence[Result], task: str, steps: int, target: float) -> dict[str, Any]:
    """All numbers, for the JSON file."""
    return {
        "schuss": schuss.__version__,
        "task": task,
        "loss": TASKS[task].loss,
        "steps": steps,
        "target": target,
        "rules": [
            {
                "rule": r.rule.__name__,
                "lr": r.lr,
                "options": finite(r.options),
                "full_batches": task == "digits" and r.rule.__name__ in FULL_BATCHES,
                "loss": {"mean": finite(fmean(r.losses)), "std": finite(spread(r.losses))},
                "accuracy": (
                    {"mean": fmean(r.accuracies), "std": spread(r.accuracies)}
                    if r.accuracies
                    else None
                ),
                "steps_to_target": r.reached(target),
                "seconds_per_step": fmean(x.seconds for x in r.runs),
                "share_of_time": fmean(x.share for x in r.runs),
                "state_bytes_per_parameter": r.runs[0].state,
                "sweep": [{"lr": lr, "loss": finite(loss)} for lr, loss in r.grid.items()],
                "runs": [
                    {"seed": seed, "steps": x.steps, "loss": finite(x.loss)}
                    | ({"accuracy": x.accuracy} if x.accuracy else {})
                    for seed, x in enumerate(r.runs)
                ],
            }
            for r in ordered
        ],
    }


# ---- The picture

STROKES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (1, 3)), (0, (8, 3, 1, 3, 1, 3)))
LOWEST = 1e-12  # the bottom of the picture, if a loss falls further


def curve(runs: Sequence[Sequence[float]], of: Callable[[Iterable[float]], float]) -> list[float]:
    """A number from each point's values; a run that has diverged is infinite ever after."""
    length = max(map(len, runs))
    padded = [[*values, *[math.inf] * (length - len(values))] for values in runs]
    return [of(point) for point in zip(*padded, strict=True)]


def picture(title: str, ordered: Sequence[Result], task: str, target: float) -> Figure:
    """The mean over the seeds, and between the extremes a band where there is room for bands."""
    from matplotlib.figure import Figure  # noqa: PLC0415  an optional package

    accurate = any(r.accuracies for r in ordered)
    columns = math.ceil(len(ordered) / 24)
    figure = Figure(figsize=(6.2 + 5.2 * accurate + 2.6 * columns, 4.8), dpi=150)
    figure.set_layout_engine("constrained", wspace=0.06)
    figure.suptitle(title)
    panels = figure.subplots(1, 2 if accurate else 1, squeeze=False)[0]
    for i, r in enumerate(ordered):
        longest = max((x.steps for x in r.runs), key=len)
        style = {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": STROKES[i // len(COLOURS) % len(STROKES)],
        }
        shown = [[x.loss for x in r.runs]]
        shown += [[[100 * a for a in x.accuracy] for x in r.runs]] if accurate else []
        for axes, runs in zip(panels, shown, strict=True):
            axes.plot(longest, curve(runs, fmean), label=label(r), linewidth=1.6, **style)
            if len(runs) > 1 and len(ordered) <= len(COLOURS):
                low, high = curve(runs, min), curve(runs, max)
                axes.fill_between(longest, low, high, color=style["color"], alpha=0.15, linewidth=0)
    loss = panels[0]
    loss.set(ylabel=TASKS[task].loss, yscale="log", ylim=limits(ordered))
    loss.axhline(target, color="0.5", linewidth=0.8, zorder=0, label=f"target {target:g}")
    if accurate:
        best = max(max(x.accuracy) for r in ordered for x in r.runs)
        panels[1].set(ylabel="accuracy of the images held out, in %")
        panels[1].set_ylim(max(0.0, 100 * best - 20), 100)
    for axes in panels:
        axes.set(xlabel="step")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = loss.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside right center",
        frameon=False,
        fontsize=9,
        ncols=columns,
        handlelength=3,
        title="rule, learning rate: final loss",
    )
    return figure


def label(r: Result) -> str:
    """A rule in the legend, which is in the order of the results."""
    return f"{r.rule.__name__}, {r.lr:g}: {plus_minus(fmean(r.losses), 0, 1)}"


def limits(ordered: Sequence[Result]) -> tuple[float, float]:
    """From the lowest loss to the highest at the start: one that rises further leaves the frame."""
    starts = [x.loss[0] for r in ordered for x in r.runs]
    lowest = min((loss for r in ordered for x in r.runs for loss in x.loss if loss > 0), default=1)
    return max(lowest, LOWEST) / 2, 2 * max(starts)


# ---- The command


def several(text: str) -> list[Rule]:
    """Reads names with commas between them."""
    names = options.NAMED if text.lower() == "all" else text.split(",")
    return list(dict.fromkeys(map(options.rule, names)))


def lr_of(text: str) -> tuple[Rule, float]:
    """Reads a rule and its learning rate."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r}: wanted RULE=LR, such as adamw=0.001")
    return options.rule(name), options.number("[0, inf)")(value)


def options_of(text: str) -> tuple[Rule, dict[str, Any]]:
    """Reads a rule and its options: Python's numbers, tuples ... or else words."""
    name, _, rest = text.partition(":")
    found = {}
    for item in re.split(r",(?=\w+=)", rest):
        key, equals, value = item.partition("=")
        if not (key and equals):
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form rule:option=value,...")
        if key == "lr":
            raise argparse.ArgumentTypeError(f"{text!r}: learning rates are given by --lr")
        try:
            found[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            found[key] = value
    return options.rule(name), found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    count = options.whole("[1, inf)")
    add = parser.add_argument
    add("--rules", type=several, default=HANDFUL, metavar="RULE,...",
        help="or all; default: %(default)s")  # fmt: skip
    add("--task", choices=TASKS, default="digits", help="default: %(default)s")
    add("--seeds", type=count, default=5, help="runs of each rule; default: %(default)s")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=count, help="default: as many as suit the task")
    length.add_argument("--epochs", type=count, help="the same, in epochs of digits")
    add("--lr", type=lr_of, nargs="+", default=[], metavar="RULE=LR", help="default: from a table")
    add("--sweep", action="store_true", help="tries learning rates around that of the table")
    form = "RULE:OPTION=VALUE,..."
    add("--options", type=options_of, nargs="+", default=[], metavar=form, help="of the rules")
    limit = options.number("[0, inf)")
    add("--target", type=limit, help="a loss; default: one that suits the task")
    add("--plot", type=options.picture, metavar="FILE", help="draws loss and accuracy")
    add("--json", type=options.writable, metavar="FILE", help="writes all numbers")
    options.add_force(parser)


def check(task: str, rule: Rule, lr: float, steps: int, options: Mapping[str, Any]) -> None:
    """Finds out before the training whether rule, rate and options go together."""
    try:
        optimizer(task, rule, lr, TASKS[task].start(0, rule.__name__).params, steps, **options)
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentError(None, f"{rule.__name__}: {error}") from None


def progressed(
    found: Iterable[Result | None], total: int, console: Console
) -> tuple[list[Result], bool]:
    """The results, behind a progress bar; and whether all are there, or an interrupt came."""
    done: list[Result] = []
    hidden = not console.is_interactive
    with Progress(console=console, transient=True, disable=hidden) as progress:
        bar = progress.add_task("Training", total=total)
        try:
            for result in found:
                if result is None:
                    progress.advance(bar)
                else:
                    done.append(result)
        except KeyboardInterrupt:
            return done, False
    return done, True


def wide(console: Console, shown: Table) -> None:
    """Prints a table in its own width: a narrow terminal breaks lines, a file takes all."""
    own, console.width = console.width, 1000
    console.width = console.measure(shown).maximum
    console.print(shown)
    console.width = own


def run(args: argparse.Namespace) -> None:
    """Trains, prints and draws as the options say."""
    task = TASKS[args.task]
    if args.epochs and not task.epoch:
        raise argparse.ArgumentError(None, f"--epochs: {args.task} has none; use --steps")
    steps = args.steps or (args.epochs or 0) * (task.epoch or 0) or task.steps
    target = task.target if args.target is None else args.target
    given, chosen = dict(args.lr), dict(args.options)
    for rule in (*given, *chosen):
        if rule not in args.rules:
            raise argparse.ArgumentError(None, f"{rule.__name__}: not one of --rules")
    tried = {rule: rates(rule, args.task, given, args.sweep) for rule in args.rules}
    for rule, lrs in tried.items():
        check(args.task, rule, lrs[0], steps, chosen.get(rule, {}))

    console = Console(highlight=False, soft_wrap=True)
    seeds = f"{args.seeds} seed{'s' * (args.seeds > 1)}"
    console.print(f"{args.task}, {steps} steps, {seeds}; loss: {task.loss}\n")
    total = args.seeds * sum(map(len, tried.values()))
    training = results(args.task, tried, args.seeds, steps, chosen)
    found, whole = progressed(training, total, console)
    ordered = in_order(found)
    if ordered:
        wide(console, table(ordered, args.task, target))
        console.print(f"\n{EXPLAINED}")
        if any(r.grid for r in ordered):
            console.print("\nmean final loss by learning rate, * the best:")
            wide(console, sweeps(ordered))
        if args.json:
            text = json.dumps(document(ordered, args.task, steps, target), allow_nan=False)
            args.json.write_text(text + "\n")
        if args.plot:
            title = f"{args.task}, mean of {seeds}"
            picture(title, ordered, args.task, target).savefig(args.plot)
            console.print(f"\ncurves: {args.plot}")
    if not whole:
        raise KeyboardInterrupt
