"""The documentation's pages: where they are, and the code in them, as it runs."""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.md"))
LATER = "<!-- later -->"
BLOCK = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"^ *print\(.*\)  # (.*)$")


class Block(NamedTuple):
    """Code between fences, and the number of its first line."""

    language: str
    code: str
    line: int
    later: bool

    @property
    def missing(self) -> list[str]:
        """The packages that it imports and that are not installed."""
        nodes = list(ast.walk(ast.parse(self.code)))
        names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
        names += [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)]
        packages = dict.fromkeys(name.split(".")[0] for name in names)
        return [name for name in packages if find_spec(name) is None]

    def names(self, context: type[ast.expr_context]) -> set[str]:
        """The names that it reads (ast.Load) or binds (ast.Store)."""
        nodes = list(ast.walk(ast.parse(self.code)))
        found = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, context)}
        if context is ast.Store:
            for n in nodes:
                if isinstance(n, ast.Import | ast.ImportFrom):
                    found |= {(a.asname or a.name).split(".")[0] for a in n.names}
        return found


def blocks(text: str) -> Iterator[Block]:
    for match in BLOCK.finditer(text):
        before = text[: match.start()]
        later = before.rstrip().endswith(LATER)
        yield Block(match[2], match[3], before.count("\n") + 2, later)


def prose(text: str) -> str:
    return BLOCK.sub("", text)


def run(block: Block, name: str, namespace: dict[str, Any]) -> list[str]:
    """Executes a block; returns where a print said something else than its comment, or nothing."""
    wanted = {
        block.line + i: found[1]
        for i, line in enumerate(block.code.splitlines())
        if (found := COMMENT.match(line))
    }
    wrong = []

    def checked_print(*values: object, **options: Any) -> None:
        at = sys._getframe(1).f_lineno
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            print(*values, **options)
        want = wanted.get(at)
        seen.add(at)
        got = printed.getvalue()
        if want is not None and not same(want + "\n", got):
            wrong.append(f"{name}:{at}: says {want!r}, prints {got!r}")

    seen: set[int] = set()
    namespace["print"] = checked_print
    # Empty lines in front: a traceback names the line of the page.
    exec(compile("\n" * (block.line - 1) + block.code, name, "exec"), namespace)
    return wrong + [f"{name}:{at}: prints nothing" for at in wanted.keys() - seen]


def same(want: str, got: str) -> bool:
    return doctest.OutputChecker().check_output(want, got, doctest.ELLIPSIS)
