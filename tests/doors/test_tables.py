"""The tables of docs/memory.md, from optimizers and the list of rules.

python tests/doors/test_tables.py

writes them anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import schuss
from schuss.lab import catalogue
from schuss.rules import RULES

PAGE = Path(__file__).parents[2] / "docs" / "memory.md"
MODEL = 7  # parameters of the example, in billions
SIZE = 640  # whole blocks of codes

WEIGHTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "float32": (np.float32, {}),
    "bfloat16, `master=True`": (ml_dtypes.bfloat16, {"master": True}),
    'bfloat16, `master="remainder"`': (ml_dtypes.bfloat16, {"master": "remainder"}),
    "bfloat16, `stochastic_rounding=True`": (ml_dtypes.bfloat16, {"stochastic_rounding": True}),
}
STATES = ("float32", "bfloat16", "float16", "blockfloat8")
EXAMPLES: dict[str, Any] = {
    "`SGD`": schuss.SGD,
    "`Momentum`": schuss.Momentum,
    "`Lion`": schuss.Lion,
    "`AdamW`": schuss.AdamW,
    "`AdamW`, `amsgrad=True`": lambda x, **own: schuss.AdamW(x, amsgrad=True, **own),
}


def each(size: float) -> str:
    """Bytes of an element."""
    return f"{size:.4g}"


def forms() -> Iterator[Sequence[str]]:
    """What AdamW keeps and moves, and what a model needs."""
    yield "weight", "state_dtype", "kept", "moved", f"GB for {MODEL}·10⁹"
    for weight, (dtype, own) in WEIGHTS.items():
        for form in STATES:
            x = np.zeros(SIZE, dtype)
            kept = schuss.AdamW(x, state_dtype=form, **own).nbytes
            # g is read; x and what is kept are read and written, x that has a master written alone.
            moved = 3 * x.nbytes + 2 * kept - x.nbytes * (own.get("master") is True)
            needed = MODEL * (2 * x.nbytes + kept) / SIZE
            yield weight, f"`{form}`", each(kept / SIZE), each(moved / SIZE), f"{needed:.1f}"


def examples() -> Iterator[Sequence[str]]:
    """What rules keep, by the form of their state."""
    yield "rule", *(f"`{form}`" for form in STATES)
    for rule, made in EXAMPLES.items():
        kept = (made(np.zeros(SIZE, np.float32), state_dtype=form).nbytes for form in STATES)
        yield rule, *(each(k / SIZE) for k in kept)


def rules() -> Iterator[Sequence[str]]:
    """Each rule's state with its traits."""
    yield "rule", "state and trait [with options]", *(f"`{form}`" for form in catalogue.FORMS)
    for rule in RULES:
        name, state, *kept = catalogue.state_row(rule)
        yield f"`{name}`", re.sub(r"([a-z]\w*) ([A-Z])", r"`\1` \2", state), *kept


TABLES = {table.__name__: table for table in (forms, examples, rules)}


def written(text: str) -> str:
    """A page with its tables made anew, each behind the comment that names it."""

    def table(match: re.Match[str]) -> str:
        head, *rows = TABLES[match[2]]()
        lines = (f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))
        return match[1] + "".join(lines)

    return re.sub(r"(<!-- table: (\w+) -->\n\n)(?:\|.*\n)*", table, text)


def test_tables() -> None:
    text = PAGE.read_text()
    assert re.findall(r"<!-- table: (\w+) -->", text) == [*TABLES]
    assert written(text) == text, (
        f"write it anew: python {Path(__file__).relative_to(PAGE.parents[1])}"
    )


def test_a_wrong_number_is_noticed() -> None:
    text = "<!-- table: examples -->\n\n| `SGD` | 4 |\n\nbehind\n"
    assert written(text).splitlines()[4:6] == [
        "| `SGD` | 0 | 0 | 0 | 0 |",
        "| `Momentum` | 4 | 2 | 2 | 1.016 |",
    ]
    assert written(text).endswith("\n\nbehind\n")


@pytest.mark.parametrize("rule", RULES)
def test_traits_are_the_kernels(rule: type[schuss.Optimizer]) -> None:
    """A state array has one trait, whichever of the rule's kernels runs."""
    names = {(a.state, a.name) for kernel in rule.states for a in catalogue.stored(rule, kernel)}
    assert len(names) == len({state for state, _ in names})


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
