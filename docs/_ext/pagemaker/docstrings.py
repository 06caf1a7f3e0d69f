"""Our docstrings, laid out for the terminal, as Markdown: the same words, none of its own.

They consist of paragraphs, of indented blocks (an update in symbols, or code), and of arguments,
one a line, each with two spaces or more before what is said of it. See help(schuss.Adam).
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from typing import NamedTuple

from pagemaker.formulas import escaped, translated

# "lr   learning rate", and what goes on below it.
ENTRY = re.compile(r"^(?P<names>\*{0,2}\w[\w.]*(?:, \w+)*)(?: {2,}(?P<text>\S.*)|$)")
LABEL = re.compile(r"^(State|Traps|Source): ", re.MULTILINE)
GAP = re.compile(r"(?<![;,]) {2,}")  # between the columns of a block
ARXIV = re.compile(r"\barXiv\s+(\d{4}\.\d{4,5})\b")
SITE = re.compile(r"\b(kellerjordan\.github\.io/\S+?)(?=[;,]|\.?$)", re.MULTILINE)
NAME = re.compile(
    r"(?<![\w`.])(\w*[a-z0-9]_\w+(?:=[\w.\"]*[\w\"])?|[a-z_]+=[\w.\"-]*[\w\"])(?![\w`])"
)


class Block(NamedTuple):
    """A part of a docstring: of the kind text, symbols or arguments."""

    kind: str
    text: str
    label: str = ""  # State, Traps or Source, of a text


def blocks(docstring: str) -> Iterator[Block]:
    """The parts of a docstring, in order."""
    for part in re.split(r"\n{2,}", inspect.cleandoc(docstring)):
        lines = part.split("\n")
        if all(line.startswith("    ") for line in lines):
            yield Block("symbols", inspect.cleandoc(part))
        elif is_arguments(lines):
            yield Block("arguments", part)
        else:
            first, *labelled = LABEL.split(part)
            if first:
                yield Block("text", first.strip())
            for label, text in zip(labelled[::2], labelled[1::2], strict=True):
                yield Block("text", text.strip(), label)


def is_arguments(lines: list[str]) -> bool:
    """Whether it is a list of arguments: each line begins one, or goes on with it far inside."""
    entries = [line for line in lines if not line.startswith("   ")]
    return all(ENTRY.match(line) for line in entries) and bool(entries) and "  " in "".join(lines)


def arguments(text: str) -> dict[str, str]:
    """What a list of arguments says of each."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        match = None if line.startswith(" ") else ENTRY.match(line)
        if match:
            names = match["names"]
            found[names] = match["text"] or ""
        else:
            found[names] += " " + line.strip()
    return {name: text.strip() for name, text in found.items()}


def prose(text: str) -> str:
    """A paragraph in Markdown: names that are no English in code, papers as links."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else plain(part) for part in parts)


def plain(text: str) -> str:
    """A piece of a paragraph without code."""
    pieces, end = [], 0
    marks = [(m, f"`{m[1]}`") for m in NAME.finditer(text)]
    marks += [(m, f"[arXiv {m[1]}](https://arxiv.org/abs/{m[1]})") for m in ARXIV.finditer(text)]
    marks += [(m, f"[{m[1]}](https://{m[1]})") for m in SITE.finditer(text)]
    for match, markdown in sorted(marks, key=lambda mark: mark[0].start()):
        if match.start() >= end:
            pieces += [escaped(text[end : match.start()]), markdown]
            end = match.end()
    return "".join([*pieces, escaped(text[end:])])


def cell(text: str) -> str:
    """A cell of a table, in which | would end it, in code as well."""
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def table(head: list[str], rows: list[list[str]], kind: str = "") -> Iterator[str]:
    """A table, whose class says how it is drawn."""
    if kind:
        yield f"{{.{kind}}}"
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(map(cell, row)) + " |"
    yield ""


def arguments_table(told: dict[str, str]) -> Iterator[str]:
    """What is said of arguments, as a table."""
    rows = [
        [", ".join(f"`{n}`" for n in names.split(", ")), prose(said)]
        for names, said in told.items()
    ]
    yield from table(["argument", "what it is"], rows, "arguments")


def symbols(text: str, words: frozenset[str] = frozenset()) -> Iterator[str]:
    """An update in symbols as formulas, what is said of a line beside it."""
    rows = [GAP.split(line.strip()) for line in text.split("\n")]
    if all(len(row) > 1 and re.fullmatch(r"\w+", row[0]) for row in rows):  # cases, under a head
        head, *cases = rows
        width = max(map(len, rows))
        shown = [
            [f"`{name}`", *(translated(text, words) for text in told)] for name, *told in cases
        ]
        yield from table(
            [f"`{head[0]}`", *(translated(text, words) for text in head[1:])]
            + [""] * (width - len(head)),
            [row + [""] * (width - len(row)) for row in shown],
            "cases",
        )
        return
    lines, named = [], []
    for first, *rest in rows:
        said = "; ".join(translated(text, words) for text in rest)
        if re.fullmatch(r"[\w+-]+:", first):  # a case of its own
            named.append(f"- **{first}** {said}")
        else:
            lines.append([translated(first, words), said])
    yield from table(["", ""], lines, "update")
    yield from (*named, "")


def code(text: str) -> Iterator[str]:
    """An indented block of any other docstring, as it is."""
    try:
        ast.parse(text)
        language = "py"
    except SyntaxError:
        language = "text"
    yield from (f"```{language}", text, "```", "")


def page(docstring: str) -> Iterator[str]:
    """All of a docstring that is no rule's."""
    for block in blocks(docstring):
        if block.kind == "arguments":
            yield from arguments_table(arguments(block.text))
        elif block.kind == "symbols":
            yield from code(block.text)
        else:
            label = f"**{block.label}.** " if block.label else ""
            yield from (label + prose(block.text), "")
