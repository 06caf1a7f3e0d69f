"""The command line: `schuss`, or `python -m schuss`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import schuss
from schuss.lab.catalogue import rules

Command = Callable[[argparse.Namespace], None]


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


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


def demo(parser: argparse.ArgumentParser) -> Command:
    """Train a classifier of handwritten digits, and time a step of its optimizer three ways."""
    from schuss.lab.demo import add_arguments, run  # noqa: PLC0415  it needs the extra

    add_arguments(parser)
    return run


def compare(parser: argparse.ArgumentParser) -> Command:
    """Train with several rules on one task, to choose one: loss, time, state and curves."""
    from schuss.lab import compare as own  # noqa: PLC0415  it needs the extra

    own.add_arguments(parser)
    return own.compare


def trace(parser: argparse.ArgumentParser) -> Command:
    """Draw an experiment, such as five rules in a race, and print its numbers."""
    from schuss.lab.trace import command as own  # noqa: PLC0415  it needs the extra

    own.add_arguments(parser)
    return own.run


def bench(parser: argparse.ArgumentParser) -> Command:
    """Time steps side by side with NumPy, Python, torch, DeepSpeed and optax, where installed."""
    from schuss.lab.bench import command  # noqa: PLC0415  it needs the extra

    command.add_arguments(parser)
    return command.run


# A command adds its arguments to its parser, and returns what runs.
COMMANDS = (info, rules, demo, compare, trace, bench)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command, and returns its exit status: 2 with one line on stderr where it can't."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(prog="schuss", description=(schuss.__doc__ or "").partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"schuss {schuss.__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    try:
        for command in COMMANDS:
            text = command.__doc__
            own = commands.add_parser(command.__name__, help=text, description=text)
            if command.__name__ in argv:  # the other commands' dependencies may be missing
                own.set_defaults(run=command(own))
        args = parser.parse_args(argv)
        args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `schuss info | head -1`: nobody reads on, nor what is left at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        message = f"No module named {error.name!r}; pip install 'schuss[demo]'"
    except (argparse.ArgumentError, ArithmeticError, MemoryError, OSError) as error:
        message = str(error)
    else:
        return 0
    print(f"schuss: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
