"""`schuss trace`: runs an experiment, prints its numbers, and draws them."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import schuss
from schuss.lab.catalogue import table
from schuss.lab.files import writable
from schuss.lab.trace.constrained import constrained
from schuss.lab.trace.courses import courses
from schuss.lab.trace.descent import adaptive, curves, minima, surfaces, zigzag
from schuss.lab.trace.intervals import intervals
from schuss.lab.trace.objectives import OBJECTIVES
from schuss.lab.trace.own import own
from schuss.lab.trace.race import race
from schuss.lab.trace.regression import regression
from schuss.lab.trace.result import COLOURS, Result
from schuss.lab.trace.shrinkage import shrinkage
from schuss.rules import RULES

NAMED = {rule.__name__.lower(): rule for rule in RULES}


class Experiment(NamedTuple):
    """How an experiment is called, and what it returns."""

    run: Callable[..., Result]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    arguments: Callable[[argparse.Namespace], Sequence[object]]  # of run, from the options
    suffixes: tuple[str, ...] = (".png",)


# ---- Options


def number(text: str) -> float:
    """Reads a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return value


def pair(text: str) -> tuple[float, float]:
    """Reads two numbers."""
    values = [number(part) for part in text.split(",")]
    if len(values) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers, such as -1,2")
    return values[0], values[1]


def thresholds(text: str) -> tuple[float, float]:
    """Reads Eve's k and K."""
    k, most = pair(text)
    if not 0 < k < most:
        raise argparse.ArgumentTypeError(f"{text!r} is not 0 < k < K, such as 0.5,3")
    return k, most


def rates(text: str) -> list[float]:
    """Reads learning rates."""
    values = [number(part) for part in text.split(",")]
    if min(values) < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: a learning rate is 0 or more")
    return values


def rules(text: str) -> list[type[schuss.Optimizer]]:
    """Reads names of rules, as many as there are colours to tell them apart."""
    names = text.lower().split(",")
    if unknown := [name for name in names if name not in NAMED]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown; schuss rules lists them")
    if len(names) > len(COLOURS):
        raise argparse.ArgumentTypeError(f"{len(names)} rules; at most {len(COLOURS)}")
    return [NAMED[name] for name in names]


def whole(least: int, most: int) -> Callable[[str], int]:
    """Reads a whole number between two."""

    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number in [{least}, {most}]")
        return int(text)

    return read


def picture(suffixes: tuple[str, ...]) -> Callable[[str], Path]:
    """Reads the name of a picture, and finds out before the work whether it can be written."""

    def read(text: str) -> Path:
        if Path(text).suffix.lower() not in suffixes:
            raise argparse.ArgumentTypeError(f"{text!r} does not end in {' or '.join(suffixes)}")
        return writable(text)

    return read


def nothing(parser: argparse.ArgumentParser) -> None:
    """It has no numbers to choose."""


def seeded(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help="default: %(default)s")


def bounded(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--thresholds", type=thresholds, metavar="k,K", default=(0.5, 3.0),
        help="default: 0.5,3; the rule's own are 0.1,10",
    )  # fmt: skip


def chosen(parser: argparse.ArgumentParser) -> None:
    # -1,2 is a value, not an option.
    parser._negative_number_matcher = re.compile(r"-[\d.]")
    add = parser.add_argument
    add("--objective", choices=OBJECTIVES, default="himmelblau", help="default: %(default)s")
    add("--rules", type=rules, default="adam,lion", metavar="RULE,...", help="default: %(default)s")
    add("--lr", type=rates, metavar="LR,...", help="one for all, or one for each rule; default: "
        "0.01, or the rule's own where that is larger")  # fmt: skip
    add("--start", type=pair, metavar="X,Y", help="default: one that suits the objective")
    add("--steps", type=whole(1, 100_000), default=500, help="default: %(default)s")


def choice(args: argparse.Namespace) -> Sequence[object]:
    """The arguments of own."""
    lr = args.lr or [max(0.01, rule.defaults()["lr"]) for rule in args.rules]
    if len(lr) == 1:
        lr *= len(args.rules)
    if len(lr) != len(args.rules):
        message = f"--lr: {len(lr)} learning rates for {len(args.rules)} rules"
        raise argparse.ArgumentError(None, message)
    for rule, rate in zip(args.rules, lr, strict=True):
        try:
            rule(np.zeros(2), lr=rate)
        except ValueError as error:  # some need more than 0
            raise argparse.ArgumentError(None, f"{rule.__name__}: {error}") from None
    return OBJECTIVES[args.objective], args.rules, lr, args.start, args.steps


# ---- The experiments, and the command


def fixed(run: Callable[[], Result], *suffixes: str) -> Experiment:
    """One without numbers to choose."""
    return Experiment(run, nothing, lambda args: (), suffixes or (".png",))


EXPERIMENTS = {
    "curves": fixed(curves),
    "minima": fixed(minima),
    "surfaces": fixed(surfaces),
    "zigzag": fixed(zigzag),
    "adaptive": fixed(adaptive),
    "race": fixed(race, ".gif", ".png"),
    "regression": Experiment(regression, seeded, lambda args: (args.seed,)),
    "eve": Experiment(intervals, bounded, lambda args: args.thresholds),
    "shrinkage": Experiment(shrinkage, seeded, lambda args: (args.seed,)),
    "constrained": fixed(constrained),
    "schedules": fixed(courses),
    "own": Experiment(own, chosen, choice),
}


def about(experiment: Experiment) -> str:
    """What an experiment shows, in one line."""
    return (experiment.run.__doc__ or "").partition("\n")[0]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = parser.add_subparsers(dest="name", metavar="name")
    for name, experiment in EXPERIMENTS.items():
        text = about(experiment)
        own = names.add_parser(name, help=text, description=text)
        experiment.add_arguments(own)
        own.add_argument(
            "--out", type=picture(experiment.suffixes), default=name + experiment.suffixes[0],
            metavar="FILE", help=f"in {' or '.join(experiment.suffixes)}; default: %(default)s",
        )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Lists the experiments, or runs one, prints its numbers and draws them."""
    if args.name is None:
        print(*table([(name, about(e)) for name, e in EXPERIMENTS.items()]), sep="\n")
        return
    experiment = EXPERIMENTS[args.name]
    result = experiment.run(*experiment.arguments(args))
    print(*table(list(result.rows())), sep="\n")
    result.save(args.out)
    print(f"\ndrawn into {args.out}")
