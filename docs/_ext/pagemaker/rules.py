"""A page for each rule: its docstring, with formulas; its presets, state and bytes from the list of
rules; and the two texts that end on the same bits, the specification and the kernel, side by side.
"""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from pagemaker import docstrings
from pagemaker.docstrings import Block, table
from schuss import Optimizer, reference
from schuss.lab import catalogue
from schuss.rules import RULES, matrix

ROOT = Path(__file__).parents[3]
KERNELS = (ROOT / "cpp" / "core" / "rules.hpp").read_text()
EVERY: tuple[type[Optimizer], ...] = (*RULES, *matrix.RULES)
WORDS = frozenset({"v1", "v3"})  # variants, which look like symbols


def stem(rule: type[Optimizer]) -> str:
    """The name of a rule's page."""
    return rule.__name__.lower()


def base(rule: type[Optimizer]) -> type[Optimizer] | None:
    """The rule that everything else is as, where the docstring says so."""
    named = re.search(r"Everything else as (\w+)\.", rule.__doc__ or "")
    return next(b for b in rule.__mro__ if b.__name__ == named[1]) if named else None


def struct(kernel: str) -> tuple[str, int]:
    """The kernel's own rule, with the comment above it, and its line."""
    pattern = rf"(?:^//[^\n]*\n)*^template <class T> struct {kernel} \{{\n.*?^\}};$"
    found = re.search(pattern, KERNELS, re.MULTILINE | re.DOTALL)
    assert found, kernel
    return found[0], KERNELS[: found.start()].count("\n") + 1


def side_by_side(kernel: str) -> Iterator[str]:
    """A kernel in both languages."""
    in_cpp, _ = struct(kernel)
    yield from ("::::{grid} 1 1 2 2", ":gutter: 2", ":class-container: both", "")
    yield from (":::{grid-item}", "The specification, in NumPy", "")
    yield from ("```py", inspect.getsource(getattr(reference, kernel)).rstrip(), "```", ":::")
    yield from (":::{grid-item}", "The kernel, in C++", "")
    yield from ("```cpp", in_cpp, "```", ":::", "::::", "")


def others(rule: type[Optimizer]) -> dict[str, list[Block]]:
    """The parts of a rule's docstring: by kind, and by label."""
    parts: dict[str, list[Block]] = defaultdict(list)
    for block in docstrings.blocks(rule.__doc__ or ""):
        before = block.kind == "text" and not parts["symbols"] and not parts["arguments"]
        parts[block.label or ("before" if before else block.kind)].append(block)
    return parts


def told(rule: type[Optimizer]) -> dict[str, str]:
    """What a rule's docstring says of each argument."""
    found: dict[str, str] = {}
    for block in others(rule)["arguments"]:
        found |= docstrings.arguments(block.text)
    return found


def update(rule: type[Optimizer]) -> Iterator[str]:
    """What a step does, with the step of the rule that it is as."""
    own, parent = others(rule), base(rule)
    yield from ("## Update", "")
    for block in own["symbols"]:
        yield from docstrings.symbols(block.text, WORDS)
    if parent:
        theirs = others(parent)["symbols"]
        yield from (f"As {linked(parent)}:", "") if theirs else ()
        for block in theirs:
            yield from docstrings.symbols(block.text, WORDS)


def arguments(rule: type[Optimizer]) -> Iterator[str]:
    """The table of arguments, with those of the rule that it is as."""
    own, parent = others(rule), base(rule)
    yield from ("## Arguments", "", *docstrings.arguments_table(told(rule)))
    for block in own["text"]:
        yield from (docstrings.prose(block.text), "")
    if parent:
        rest = {name: said for name, said in told(parent).items() if name not in told(rule)}
        yield from (f"From {linked(parent)}:", "", *docstrings.arguments_table(rest))
    yield from ("`Optimizer` has the options of every rule.", "")


def traps(rule: type[Optimizer]) -> Iterator[str]:
    """What trips people up."""
    for block in others(rule)["Traps"]:
        text = block.text
        if text.split()[0] not in {*rule.hyperparameters, "optax", "s"}:
            text = text[0].upper() + text[1:]
        yield from (":::{admonition} Traps", ":class: warning", docstrings.prose(text), ":::", "")


def linked(rule: type[Optimizer]) -> str:
    """A rule, as a link."""
    where = "" if rule in EVERY else "../api/matrixrule.md"
    return f"[{rule.__name__}]({where or stem(rule) + '.md'})"


def presets(rule: type[Optimizer]) -> Iterator[str]:
    """The hyperparameters that some preset changes, and to what."""
    several, same = catalogue.preset_rows(rule)
    yield from ("## Presets", "")
    if len(several) > 1:
        head, *rows = several
        marked = [["" if value == "." else f"`{value}`" for value in row] for row in rows]
        yield from table(["argument", *head[1:]], marked, "presets")
    yield from (f"As the default: {', '.join(f'`{name}`' for name in same) or 'none'}.", "")
    yield '`preset="name"` takes all of a column; [whose they are](../rules.md#conventions).'
    yield ""


def costs(rule: type[Optimizer]) -> Iterator[str]:
    """State arrays with their traits, and the bytes of each kernel."""
    every = dict.fromkeys(a for kernel in rule.states for a in catalogue.stored(rule, kernel))
    if every:
        rows = [[f"`{a.state}`", f"`{a.name}`", a.words] for a in every]
        yield from table(["state", "trait", "stored in less than float32"], rows)
    rows = [
        [f"`{kernel}`", ", ".join(f"`{s}`" for s in states) or "none"]
        + [f"{catalogue.moved(rule, kernel)}"]
        + [f"{catalogue.kept(kernel, form):.3g}" for form in catalogue.FORMS]
        for kernel, states in rule.states.items()
    ]
    head = ["kernel", "state", "moved", *(f"`{form}`" for form in catalogue.FORMS)]
    yield from table(head, rows, "numbers")
    yield "Bytes an element of float32: read and written in a step, and kept by `state_dtype`. The"
    yield "options decide which kernel runs; [memory](../memory.md) says what traits mean."
    yield ""


def calls(rule: type[Optimizer]) -> Iterator[str]:
    """How it is called, in lines that run."""
    name, loss = rule.__name__, ", loss=1.0" if rule.reads_loss(rule.defaults()) else ""
    of_matrix = issubclass(rule, matrix.MatrixRule)
    shape = "(3, 2)" if of_matrix else "3"
    yield from ("## In use", "", "```python", "import numpy as np", "import schuss", "")
    yield f'params = {{"w": np.ones({shape}, np.float32)}}'
    yield f"opt = schuss.{name}(params)"
    yield f'opt.step({{"w": np.full({shape}, 0.5, np.float32)}}{loss})'
    yield "print(opt.iterations)  # 1"
    yield from ("```", "")
    doors = [f"`schuss.functional.{stem(rule)}`, which keeps nothing"] * (not of_matrix)
    doors += [f"`schuss.torch.{name}` for [PyTorch's tensors](../pytorch.md)"]
    doors += [f"`schuss.scipy.{name}` for [SciPy's `minimize`](../minimize.md)"] * (not of_matrix)
    yield f"Also {'; '.join(doors)}. `schuss rules {stem(rule)}` prints this page in a terminal."
    yield ""


def bodies(rule: type[Optimizer]) -> Iterator[str]:
    """The code of a rule, of one element or of a matrix."""
    if issubclass(rule, matrix.MatrixRule):
        yield from ("## The code", "", "The direction `u`, in NumPy and BLAS:", "")
        source = inspect.getsource(rule.direct)
        yield from ("```py", inspect.cleandoc("\n" + source).rstrip(), "```", "")
        return
    usual, *rest = sorted(rule.states, key=lambda k: k != rule.kernel(rule.defaults()))
    yield from ("## The code", "")
    yield "A step is `x = keep*x - u`, where `u` is what these return, from the element's gradient"
    yield "and state. They end on [the same bits](../exactness.md)."
    yield ""
    yield from side_by_side(usual)
    for kernel in rest:
        yield from (f":::::{{dropdown}} With other options: `{kernel}`", "")
        yield from side_by_side(kernel)
        yield from (":::::", "")
    yield "The numbers they take, in double, from the hyperparameters `h` at step `t`:"
    source = inspect.cleandoc("\n" + inspect.getsource(rule.scalars)).rstrip()
    yield from ("", "```py", source, "```", "")
    yield "Whole files: [rules.py](../../python/schuss/reference/rules.py) and"
    yield "[rules.hpp](../../cpp/core/rules.hpp)."
    yield ""


def page(rule: type[Optimizer]) -> Iterator[str]:
    """The whole page."""
    yield from ("---", "html_theme.sidebar_secondary.remove: true", "---", "")
    yield from (f"# {rule.__name__}", "", f"```{{py:class}} schuss.{rule.__name__}")
    yield from (":no-typesetting:", "```", "")
    own = others(rule)
    for block in own["before"]:
        yield from (docstrings.prose(block.text), "")
    yield from update(rule)
    yield from traps(rule)
    yield from arguments(rule)
    if rule.presets:
        yield from presets(rule)
    yield from ("## State and bytes", "")
    for block in own["State"]:
        yield from (docstrings.prose(block.text).partition(" Options of every rule")[0], "")
    if not issubclass(rule, matrix.MatrixRule):
        yield from costs(rule)
    yield from calls(rule)
    yield from bodies(rule)
    yield from ("## Source", "", *(docstrings.prose(block.text) for block in own["Source"]), "")


def pages() -> dict[str, str]:
    """The text of each page, by its path in docs/."""
    return {f"rules/{stem(rule)}.md": "\n".join(page(rule)) for rule in EVERY}
