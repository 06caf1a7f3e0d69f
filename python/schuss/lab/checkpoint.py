"""`schuss checkpoint`: what is in a file, and whether it is whole."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Collection, Iterator
from typing import Any

from schuss.checkpoint import Contents, Entry, Stored, contents
from schuss.lab.catalogue import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="of schuss.save, or another of safetensors")
    parser.add_argument("--verify", action="store_true", help="reads all and compares checksums")


def arrays(value: Any) -> Iterator[Entry]:
    """All arrays in a value."""
    if isinstance(value, Entry):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from arrays(part)


def amount(found: Collection[Entry]) -> str:
    """How many arrays, and their bytes."""
    size = sum(entry.stop - entry.start for entry in found)
    return f"{len(found)} array{'s' * (len(found) != 1)}, {size} bytes"


def described(value: Any) -> Iterator[str]:
    """What an entry is: its head, and what more is worth a line."""
    kind, own = value if isinstance(value, Stored) else ("", value)
    held = list(arrays(own))
    if not kind:
        yield amount(held) if held else repr(value)
    elif not isinstance(own, dict):
        yield kind
    elif kind == "optimizer":
        yield f"{own.get('rule')}, {own.get('iterations')} steps, {amount(held)}"
        groups = own.get("param_groups")
        for group in groups if isinstance(groups, list) else ():
            if isinstance(group, dict):
                told = {
                    k: v for k, v in group.items() if k != "params" and (k, v) != ("no_decay", [])
                }
                yield ", ".join(f"{k}={v!r}" for k, v in told.items())
    else:
        yield f"{kind}: {own.get('bit_generator') or ', '.join(map(str, own))}"


def printable(text: object) -> str:
    """A name in a file may be anything, and a terminal obeys what isn't to be seen."""
    return text if isinstance(text, str) and text.isprintable() else ascii(text)


def lines(found: Contents) -> Iterator[str]:
    """What is in a file: how it was written, a line or more for each entry, one for each array."""
    by = "of another library" if found.format is None else f"format {found.format}"
    yield f"{by}{f', schuss {found.version}' * (found.version is not None)}"
    yield ""
    width = max(map(len, map(printable, found.values)), default=0) + 2
    for name, value in found.values.items():
        label = printable(name)
        for text in map(printable, described(value)):
            yield textwrap.fill(
                text, 100, initial_indent=f"{label:<{width}}", subsequent_indent=" " * width
            )
            label = ""
    yield ""
    yield from table(
        [
            ("array", "type", "shape", "bytes", "crc32"),
            *(
                (
                    printable(name),
                    entry.dtype,
                    " x ".join(map(str, entry.shape)) or "()",
                    str(entry.stop - entry.start),
                    found.checksums.get(name, "none"),
                )
                for name, entry in found.arrays.items()
            ),
        ]
    )


def run(args: argparse.Namespace) -> None:
    """Prints what is in the file; an error says what is wrong with it."""
    try:
        found = contents(args.file, verified=args.verify, progress=True)
    except ValueError as error:
        raise argparse.ArgumentError(None, printable(str(error))) from None
    print(*lines(found), sep="\n")
    if args.verify:
        right = "checksums are right" if found.checksums else "read, without checksums"
        print(f"\n{amount(found.arrays.values())}: {right}")
