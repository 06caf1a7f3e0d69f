"""`schuss rules`: what there is, and what each rule does, from the classes and their docstrings."""

from __future__ import annotations

import argparse
import ast
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from schuss import Optimizer, reference
from schuss.engine.declare import BLOCKFLOAT8, REQUIRED
from schuss.lab import options
from schuss.reference.storage import CODED, Trait, trait_names, traits
from schuss.rules import RULES, matrix

# The only text on rules that stands in no class.
PRESETS = """\
A preset gives what PyTorch (torch), Keras 3, optax, timm, the paper or an author's code take, or
one of the texts that this project began with: an article that leads from linear regression to Adam
and Eve (article), a tutorial with numbers (tutorial), the notes of a course (course)."""


# Bytes of an element of state, by state_dtype; float16 is as bfloat16.
FORMS = {"float32": 4.0, "bfloat16": 2.0, BLOCKFLOAT8: 1 + 1 / CODED}

# What rules have in common.
BASES: tuple[type[Optimizer], ...] = (Optimizer, matrix.MatrixRule)


class Stored(NamedTuple):
    """A state array, and how it is stored in less than float32."""

    state: str
    name: str  # of the trait
    trait: Trait

    @property
    def words(self) -> str:
        """What the trait says."""
        dithered, positive, alone = self.trait
        words = ["by dither" if dithered else "to nearest"]
        words += ["in 8 bits by dither"] * (not (dithered or positive or alone))
        words += ["never negative"] * positive + ["not in 8 bits"] * alone
        return ", ".join(words)


class Row(NamedTuple):
    """A rule in the list."""

    rule: str
    state: str  # in brackets what options add
    moved: str  # bytes of a float32 element and a step
    source: str


def usual(rule: type[Optimizer]) -> tuple[str, ...]:
    """The state arrays of the rule with its defaults."""
    return rule.states[rule.kernel(rule.defaults())]


def measured(rule: type[Optimizer], kernel: str) -> set[str]:
    """The arrays that the first sweep reads, by the reference's letters."""
    code = getattr(reference, kernel).__code__
    arrays, sums = set(code.co_varnames[: code.co_argcount]), set(rule.sums(rule.defaults()))
    if "u" in sums:
        return arrays
    own = inspect.getsource(getattr(reference, f"{kernel}_measures")) if "own" in sums else ""
    names = {node.id for node in ast.walk(ast.parse(own)) if isinstance(node, ast.Name)}
    return arrays & (sums | names)


def moved(rule: type[Optimizer], kernel: str) -> int:
    """The bytes of a step for a float32 element: g is read, x and each state array written, too.

    A rule that measures whole arrays first reads some of them once more.
    """
    return 4 * (1 + 2 * (1 + len(rule.states[kernel])) + len(measured(rule, kernel)))


def kept(kernel: str, form: str) -> float:
    """The bytes of state of an element, where `state_dtype` is one form for all of it."""
    wide = FORMS["float32"] if form == BLOCKFLOAT8 else FORMS[form]
    return sum(wide if trait.alone else FORMS[form] for trait in traits(getattr(reference, kernel)))


def ranging(rule: type[Optimizer], number: Callable[[str], float]) -> str:
    """A number of the rule's usual kernel, and the largest that options make of it."""
    least = f"{number(rule.kernel(rule.defaults())):.3g}"
    most = f"{max(map(number, rule.states)):.3g}"
    return least if least == most else f"{least} to {most}"


def with_options(own: Iterable[str], every: Iterable[str]) -> str:
    """Some texts, and in brackets those of all that aren't among them."""
    names = dict.fromkeys(own)
    return " ".join([", ".join(names) or "none", *(f"[{n}]" for n in every if n not in names)])


def row(rule: type[Optimizer]) -> Row:
    """A rule's row in the list."""
    every = dict.fromkeys(state for states in rule.states.values() for state in states)
    names = with_options(usual(rule), every)
    return Row(rule.__name__, names, ranging(rule, lambda k: moved(rule, k)), source(rule))


def stored(rule: type[Optimizer], kernel: str) -> list[Stored]:
    """How the state arrays of a kernel are stored in less than float32."""
    own = getattr(reference, kernel)
    return list(map(Stored, rule.states[kernel], trait_names(own), traits(own)))


class StateRow(NamedTuple):
    """What a rule's state takes."""

    rule: str
    state: str  # each array with its trait
    float32: str  # bytes an element, by state_dtype
    bfloat16: str
    blockfloat8: str


def state_row(rule: type[Optimizer]) -> StateRow:
    """A rule's row in the list of what state takes."""
    texts = {k: [f"{a.state} {a.name}" for a in stored(rule, k)] for k in rule.states}
    every = dict.fromkeys(text for own in texts.values() for text in own)
    names = with_options(texts[rule.kernel(rule.defaults())], every)
    bytes_kept = (ranging(rule, functools.partial(kept, form=form)) for form in FORMS)
    return StateRow(rule.__name__, names, *bytes_kept)


def source(rule: type[Optimizer]) -> str:
    """The first source that the rule's docstring names: authors and year."""
    _, _, text = (rule.__doc__ or "").partition("Source: ")
    first = " ".join(text.split()).partition(";")[0]
    shortest = re.match(r".*?\b[12]\d{3}\b", first)
    return shortest[0] if shortest else first


class MatrixRow(NamedTuple):
    """A rule for matrices in its list."""

    rule: str
    state: str  # of an m x n matrix
    source: str


def matrix_row(rule: type[matrix.MatrixRule]) -> MatrixRow:
    """The row of a rule for matrices."""
    return MatrixRow(rule.__name__, ", ".join(rule.kept), source(rule))


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as lines of even columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        yield "  ".join(padded).rstrip()


def listed() -> Iterator[str]:
    """The list of the rules."""
    yield from table([Row("rule", "state [with options]", "bytes", "source"), *map(row, RULES)])
    yield ""
    yield "bytes: read and written for a float32 element and step. `schuss rules adam` tells the"
    yield "rest of a rule, `schuss rules optimizer` what all have in common."
    yield ""
    costs = [(r.rule, r.float32, r.bfloat16, r.blockfloat8) for r in map(state_row, RULES)]
    yield from table([("bytes of state", *FORMS), *costs])
    yield ""
    yield "For each element, by state_dtype; float16 is as bfloat16, and a float64 element has the"
    yield "double of float32's. blockfloat8 leaves in float32 what is no mean or sum of gradients."
    yield ""
    yield from table([MatrixRow("for matrices", "state", "source"), *map(matrix_row, matrix.RULES)])
    yield ""
    yield "These multiply matrices by BLAS, outside the promise of equal bits, and leave to AdamW"
    yield "what is no matrix. `schuss rules matrixrule` tells what they have in common."


def docstrings(rule: type[Optimizer]) -> Iterator[str]:
    """The rule's docstring, and that of the rule with everything else."""
    text = inspect.getdoc(rule) or ""
    yield f"schuss.{rule.__name__}\n\n{text}"
    more = re.search(r"Everything else as (\w+)\.", text)
    if more:
        yield from docstrings(next(base for base in rule.__mro__ if base.__name__ == more[1]))


def preset_rows(rule: type[Optimizer]) -> tuple[list[list[str]], list[str]]:
    """The hyperparameters that some preset changes, with a head; the presets that change none."""
    defaults = {name: h.default for name, h in rule.hyperparameters.items()}
    changed = {
        preset: {name: value for name, value in own.items() if value != defaults[name]}
        for preset, own in rule.presets.items()
    }
    several = {preset: own for preset, own in changed.items() if own}
    rows = [["preset", "default", *several]]
    for name, default in defaults.items():
        cells = [shown(own[name]) if name in own else "." for own in several.values()]
        if set(cells) - {"."}:
            rows.append([name, shown(default), *cells])
    return rows, [preset for preset, own in changed.items() if not own]


def presets(rule: type[Optimizer]) -> Iterator[str]:
    """What presets change."""
    rows, same = preset_rows(rule)
    yield from table(rows)
    yield f"As the default: {', '.join(same) or 'none'}"


def shown(value: Any) -> str:
    """A value in a cell."""
    return "required" if value is REQUIRED else str(value).replace(", ", ",")


def kernels(rule: type[Optimizer]) -> Iterator[str]:
    """The state arrays of each kernel or matrix, and the numbers remembered beside them."""
    if issubclass(rule, matrix.MatrixRule):
        rows = [["state of an m x n matrix", "shape"]]
        yield from table(rows + [[name, " x ".join(shape)] for name, shape in rule.kept.items()])
        return
    rows = [["kernel", "bytes", "state"]]
    rows += [[k, str(moved(rule, k)), ", ".join(s) or "none"] for k, s in rule.states.items()]
    yield from table(rows)
    if sums := rule.sums(rule.defaults()):
        read = ", ".join(sorted(measured(rule, rule.kernel(rule.defaults()))))
        yield f"Sums of {', '.join(sums)}, measured before the step, read {read} once more."
    for numbers, of in ((rule.memory, "each array"), (rule.shared, "all arrays")):
        for name, start in numbers.items():
            yield f"and the number {name} of {of}, {start:g} at the start"
    if any(rule.states.values()):
        yield from ("", *states(rule))


def states(rule: type[Optimizer]) -> Iterator[str]:
    """How each state array is stored in less than float32, and what those of a kernel take."""
    every = dict.fromkeys(a for kernel in rule.states for a in stored(rule, kernel))
    head = ("state", "trait", "stored in less than float32")
    yield from table([head, *((a.state, a.name, a.words) for a in every)])
    yield ""
    rows = [[k, *(f"{kept(k, form):.3g}" for form in FORMS)] for k in rule.states]
    yield from table([["bytes of state", *FORMS], *rows])


def described(rule: type[Optimizer]) -> Iterator[str]:
    """All there is to say of a rule, or of their base."""
    yield "\n\n".join(docstrings(rule))
    if rule not in BASES:
        if rule.presets:
            yield from ("", *presets(rule), "", PRESETS)
        yield from ("", *kernels(rule))


def named(text: str) -> type[Optimizer]:
    """Reads the name of a rule, or of what rules have in common."""
    bases = {base.__name__.lower(): base for base in BASES}
    return bases.get(text.lower()) or options.rule(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rule", nargs="?", type=named, help="its name, such as adam; or optimizer")


def run(args: argparse.Namespace) -> None:
    """Prints the list, or all there is to say of a rule."""
    print(*(described(args.rule) if args.rule else listed()), sep="\n")
