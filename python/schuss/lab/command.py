"""The command line: `schuss`, or `python -m schuss`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import schuss
from schuss.lab.options import Parser, add_names, parsed

Command = Callable[[argparse.Namespace], None]
# Of the extras the smallest that has the package.
EXTRAS = {
    "matplotlib": "cli",
    "rich": "cli",
    "scipy": "scipy",
    "sklearn": "demo",
    "ml_dtypes": "demo",
    "mpi4py": "mpi",
}


def facts(config: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """A nested mapping as lines, one fact each."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from facts(value, f"{path}{key} ")
        else:
            shown = ", ".join(value) if isinstance(value, list) else value
            yield f"{path + key:<20}{shown}"


def info(parser: argparse.ArgumentParser) -> Command:
    """What runs here: version, instruction sets, threads."""
    return lambda args: print(*facts(schuss.show_config()), sep="\n")


def rules(parser: argparse.ArgumentParser) -> Command:
    """List the update rules, or show one: its formulas, arguments, presets and source."""
    from schuss.lab import catalogue  # noqa: PLC0415  as the others, once it is asked for

    catalogue.add_arguments(parser)
    return catalogue.run


def checkpoint(parser: argparse.ArgumentParser) -> Command:
    """List what is in a file of schuss.save, or another of safetensors; verify it."""
    from schuss.lab import checkpoint as own  # noqa: PLC0415  as the others

    own.add_arguments(parser)
    return own.run


def demo(parser: argparse.ArgumentParser) -> Command:
    """Train a classifier of handwritten digits, and time a step of its optimizer four ways."""
    from schuss.lab import demo as own  # noqa: PLC0415  it needs an extra

    own.add_arguments(parser)
    return own.run


def compare(parser: argparse.ArgumentParser) -> Command:
    """Train with several rules on one task, to choose one: loss, time, state and curves."""
    from schuss.lab import compare as own  # noqa: PLC0415  it needs an extra

    own.add_arguments(parser)
    return own.run


def trace(parser: argparse.ArgumentParser) -> Command:
    """Draw an experiment, such as five rules in a race, and print its numbers."""
    from schuss.lab.trace import command as own  # noqa: PLC0415  it takes a while

    own.add_arguments(parser)
    return own.run


def bench(parser: argparse.ArgumentParser) -> Command:
    """Time steps side by side with NumPy, Python, torch, DeepSpeed and optax, where installed."""
    from schuss.lab.bench import command as own  # noqa: PLC0415  it takes a while

    own.add_arguments(parser)
    return own.run


def plan(parser: argparse.ArgumentParser) -> Command:
    """Predict memory and time of steps that are sharded over many machines, from bytes."""
    from schuss.lab import plan as own  # noqa: PLC0415  as the others

    own.add_arguments(parser)
    return own.run


# Each adds its arguments to a parser, and returns what runs.
COMMANDS = {
    command.__name__: command
    for command in (info, rules, checkpoint, demo, compare, trace, bench, plan)
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command, and returns its exit status: 2 with one line on stderr where it can't."""
    argv = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if argv[0] == "help":
        argv = [*argv[1:], "--help"]
    try:
        run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `schuss info | head -1`: nobody reads on, nor what is left at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        message = f"No module named {package!r}"
        if package in EXTRAS:
            message += f"; pip install 'schuss[{EXTRAS[package]}]'"
    except (argparse.ArgumentError, ArithmeticError, MemoryError, OSError) as error:
        message = str(error)
    else:
        return 0
    print(f"schuss: {message}", file=sys.stderr)
    return 2


def run(argv: Sequence[str]) -> None:
    """Reads the command's name first, for the packages of the others may be missing."""
    parser = Parser(prog="schuss", description=(schuss.__doc__ or "").partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"schuss {schuss.__version__}")
    add_names(parser, "command", {name: c.__doc__ or "" for name, c in COMMANDS.items()})
    args = parser.parse_args(argv)
    if args.name is None:
        parser.error("wanted a command; schuss --help lists them")
    command = COMMANDS[args.name]
    own = Parser(prog=f"schuss {args.name}", description=command.__doc__)
    runs = command(own)
    runs(parsed(own, args.rest))


if __name__ == "__main__":
    sys.exit(main())
