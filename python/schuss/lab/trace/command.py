"""`schuss trace`: runs an experiment, prints its numbers, and draws them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from schuss.lab import options
from schuss.lab.catalogue import table
from schuss.lab.options import COLOURS, Rule
from schuss.lab.trace.adaptive import adaptive
from schuss.lab.trace.constrained import constrained
from schuss.lab.trace.curves import curves
from schuss.lab.trace.eve import eve
from schuss.lab.trace.minima import minima
from schuss.lab.trace.objectives import OBJECTIVES
from schuss.lab.trace.own import own
from schuss.lab.trace.race import race
from schuss.lab.trace.regression import regression
from schuss.lab.trace.result import Result
from schuss.lab.trace.schedules import schedules
from schuss.lab.trace.shrinkage import shrinkage
from schuss.lab.trace.surfaces import surfaces
from schuss.lab.trace.zigzag import zigzag


class Experiment(NamedTuple):
    """How an experiment is called, and what it returns."""

    run: Callable[..., Result]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    arguments: Callable[[argparse.Namespace], Sequence[object]]  # of run, from the options
    picture: Callable[[str], Path] = options.picture  # reads the name of its file
    suffix: str = ".png"


# ---- Options

finite = options.number("(-inf, inf)")


def animation(text: str) -> Path:
    """Reads the name of a GIF, or of a picture of the end."""
    return options.writable(text) if text.lower().endswith(".gif") else options.picture(text)


def pair(text: str) -> tuple[float, float]:
    """Reads two numbers."""
    values = [finite(part) for part in text.split(",")]
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
    return [options.number("[0, inf)")(part) for part in text.split(",")]


def rules(text: str) -> list[Rule]:
    """Reads names of rules, as many as there are colours to tell them apart."""
    names = text.split(",")
    if len(names) > len(COLOURS):
        raise argparse.ArgumentTypeError(f"{len(names)} rules; at most {len(COLOURS)}")
    return [options.elementwise(name) for name in names]


def nothing(parser: argparse.ArgumentParser) -> None:
    """It has no numbers to choose."""


def seeded(parser: argparse.ArgumentParser) -> None:
    seed = options.whole("[0, 4294967295]")
    parser.add_argument("--seed", type=seed, default=0, help="default: %(default)s")


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
    add("--steps", type=options.whole("[1, 100000]"), default=500, help="default: %(default)s")


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


def fixed(run: Callable[[], Result]) -> Experiment:
    """One without numbers to choose."""
    return Experiment(run, nothing, lambda args: ())


EXPERIMENTS = {  # from simple to hard
    "minima": fixed(minima),
    "curves": fixed(curves),
    "surfaces": fixed(surfaces),
    "zigzag": fixed(zigzag),
    "adaptive": fixed(adaptive),
    "race": fixed(race)._replace(picture=animation, suffix=".gif"),
    "regression": Experiment(regression, seeded, lambda args: (args.seed,)),
    "shrinkage": Experiment(shrinkage, seeded, lambda args: (args.seed,)),
    "schedules": fixed(schedules),
    "constrained": fixed(constrained),
    "eve": Experiment(eve, bounded, lambda args: args.thresholds),
    "own": Experiment(own, chosen, choice),
}
# What each shows, in one line.
TEXTS = {name: (e.run.__doc__ or "").partition("\n")[0] for name, e in EXPERIMENTS.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_names(parser, "experiment", TEXTS)


def run(args: argparse.Namespace) -> None:
    """Lists the experiments, or runs one, prints its numbers and draws them."""
    if args.name is None:
        print(*table(list(TEXTS.items())), sep="\n")
        return
    experiment = EXPERIMENTS[args.name]
    parser = options.Parser(prog=f"schuss trace {args.name}", description=TEXTS[args.name])
    experiment.add_arguments(parser)
    parser.add_argument(
        "--out", type=experiment.picture, default=args.name + experiment.suffix, metavar="FILE",
        help="default: %(default)s",
    )  # fmt: skip
    options.add_force(parser)
    own_args = options.parsed(parser, args.rest)
    result = experiment.run(*experiment.arguments(own_args))
    print(*table(list(result.rows())), sep="\n")
    result.save(own_args.out)
    print(f"\ndrawn into {own_args.out}")
