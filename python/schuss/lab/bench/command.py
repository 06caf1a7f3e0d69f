"""`schuss bench`: which cases, and what becomes of the results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

import schuss
from schuss.lab import options
from schuss.lab.bench.contestants import versions
from schuss.lab.bench.measure import Result, hindrance, measure
from schuss.lab.bench.report import HEAD, absent, picture, processor, ratios, row
from schuss.lab.bench.workloads import (
    CURVES,
    HALVES,
    MILLION,
    QUICK,
    SHAPES,
    STAGES,
    TEN_MILLION,
    WORKLOADS,
    Case,
)
from schuss.rules import RULES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--full", action="store_true", help="all workloads and rules, 1 and 2 threads, for an hour")
    names = ", ".join(repr(name) for name in SHAPES)
    shape = options.one_of(SHAPES, "--help lists them")
    add("--rule", type=options.elementwise, metavar="RULE", help="this one alone; default: AdamW")
    add("--workload", nargs="+", type=shape, metavar="NAME", help=f"of {names}")
    add("--threads", type=options.whole("[1, 4096]"), help="of everyone; default: 1")
    add("--seconds", type=options.number("[0, inf)"), help="a case; default: 0.5, 3 with --full")
    add("--json", type=options.writable, metavar="FILE", help="writes all numbers")
    add("--plot", type=options.picture, metavar="FILE", help="draws cost against size and arrays")
    options.add_force(parser)


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """The rule on the workloads, AdamW's variants, and every other rule on a million elements."""
    rule = args.rule or schuss.AdamW
    names = args.workload or [*WORKLOADS, *(CURVES if args.plot else ())]
    for name in dict.fromkeys(names):
        case = Case(rule, name)
        if args.workload or args.full or case.elements <= QUICK:
            yield case
    if args.workload or rule is not schuss.AdamW:
        return
    for variant in (STAGES, HALVES):
        for name in ("1000 arrays of 1000", MILLION, TEN_MILLION):
            case = Case(rule, name, variant)
            if args.full or case.elements <= QUICK:
                yield case
    if args.full and not args.rule:
        yield from (Case(other, MILLION) for other in RULES if other is not rule)


def results(args: argparse.Namespace, threads: int) -> Iterator[Result]:
    """Prints the table while it grows."""
    budget = args.seconds if args.seconds is not None else 3.0 if args.full else 0.5
    print(f"\n{f'schuss, {threads} thread' + 's' * (threads > 1):<40}{HEAD}")
    for case in cases(args):
        if why := hindrance(case):
            print(f"{case!s:<40}left out: {why}")
            continue
        result = measure(case, threads, budget)
        print(row(result), flush=True)
        yield result


def run(args: argparse.Namespace) -> None:
    """Measures, prints, writes and draws as the options say."""
    where = f"{processor()}, {schuss.show_config()['isa']['chosen']}"
    print(f"{where}\nschuss {schuss.__version__}, {versions()}")
    done: list[Result] = []
    for threads in (args.threads,) if args.threads else (1, 2) if args.full else (1,):
        new = list(results(args, threads))
        print("", *ratios(new), "", *absent(new), sep="\n")
        done += new
    if args.json:
        facts = {"processor": where, "schuss": schuss.__version__, "numpy": np.__version__}
        text = json.dumps({**facts, "results": [asdict(r) for r in done]}, indent=1)
        args.json.write_text(text + "\n")
    if args.plot and done:
        picture(done, where).savefig(args.plot)
