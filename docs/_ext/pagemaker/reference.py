"""The reference of all else that users import: signatures and docstrings, read from the source.

Nothing is imported, so that the doors to other software have their pages without that software.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pagemaker import docstrings
from pagemaker.formulas import escaped
from schuss import functional, rules

PACKAGE = Path(__file__).parents[3] / "python" / "schuss"
Definition = ast.ClassDef | ast.FunctionDef


class Part(NamedTuple):
    """A page: names of the public module that stand in files of the package."""

    title: str
    files: tuple[str, ...]
    module: str = "schuss"
    names: tuple[str, ...] = ()  # all public ones, where none is given


PARTS = {
    "optimizer": Part("Optimizer", ("engine/optimizer.py",), names=("Optimizer",)),
    "matrixrule": Part("MatrixRule", ("rules/matrix.py",), names=("MatrixRule",)),
    "rows": Part("Rows and codes", ("_core.pyi", "engine/codes.py"), names=("Rows", "BlockFloat8")),
    "keyed": Part("Keyed", ("keyed.py",), names=("Keyed",)),
    "loss_scale": Part("LossScale", ("loss_scale.py",)),
    "checkpoint": Part(
        "Saving and loading", ("checkpoint.py", "hashes.py", "torch/state.py"),
        names=("save", "load", "hash", "torch_state_dict"),
    ),
    "gradients": Part("Gradients", ("gradients.py",)),
    "flat": Part("Flat arrays", ("flat.py",)),
    "threads": Part("Threads and configuration", ("threads.py", "__init__.py"), names=(
        "threads", "get_num_threads", "set_num_threads", "show_config",
    )),
    "schedules": Part(
        "schuss.schedules", ("schedules/courses.py", "schedules/plateau.py"), "schuss.schedules"
    ),
    "init": Part("schuss.init", ("init.py",), "schuss.init"),
    "data": Part("schuss.data", ("data.py",), "schuss.data"),
    "projections": Part("schuss.projections", ("projections.py",), "schuss.projections"),
    "scipy": Part("schuss.scipy", ("scipy/__init__.py",), "schuss.scipy", ("minimize",)),
    "torch": Part("schuss.torch", ("torch/optimizers.py", "torch/offload.py", "torch/state.py"),
                  "schuss.torch", ("Optimizer", "Offload", "torch_state_dict")),
    "sklearn": Part("schuss.sklearn", ("sklearn.py",), "schuss.sklearn"),
    "federated": Part("schuss.federated", ("federated.py",), "schuss.federated"),
    "mpi": Part("schuss.mpi", ("mpi/sharded.py", "mpi/wire.py"), "schuss.mpi", (
        "Sharded", "Communicator",
    )),
    "thinc": Part("schuss.thinc", ("thinc.py",), "schuss.thinc", (
        "Optimizer", "Adam", "RAdam", "SGD",
    )),
    "autograd": Part("schuss.autograd", ("autograd.py",), "schuss.autograd"),
}  # fmt: skip


def public(tree: ast.Module) -> tuple[str, ...]:
    """What a module's __all__ names."""
    (names,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return tuple(ast.literal_eval(names))


def has(node: Definition, decorator: str) -> bool:
    """Whether a class or function is decorated so."""
    return any(decorator in ast.unparse(d) for d in node.decorator_list)


def signature(node: Definition, optimizer: str) -> str:
    """What is passed, with the types as they are written, and which Optimizer is meant."""
    if isinstance(node, ast.FunctionDef):
        args = ast.unparse(node.args)
        for first in ("self, ", "cls, ", "self", "cls"):
            args = args.removeprefix(first)
        back = (
            f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
        )
        said = f"({args.removeprefix('/, ')}){back}"
        return re.sub(r"(?<!\.)\bOptimizer\b", optimizer, said)
    starts = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    if starts:
        return signature(starts[0], optimizer)
    fields = [
        n for n in node.body if isinstance(n, ast.AnnAssign) and "init=False" not in ast.unparse(n)
    ]
    return f"({', '.join(map(ast.unparse, fields))})" if has(node, "dataclass") else ""


def described(node: Definition, owner: str, optimizer: str) -> Iterator[str]:
    """A class with its methods, or a function."""
    colons = ":" * (5 if isinstance(node, ast.ClassDef) else 4)
    kind = "class" if isinstance(node, ast.ClassDef) else "function"
    yield from (f"{colons}{{py:{kind}}} {owner}.{node.name}{signature(node, optimizer)}", "")
    yield from docstrings.page(ast.get_docstring(node) or "")
    for inner in node.body if isinstance(node, ast.ClassDef) else ():
        if not isinstance(inner, ast.FunctionDef) or has(inner, ".setter"):
            continue
        text = ast.get_docstring(inner)
        shown = inner.name == "__call__" or not inner.name.startswith("_")
        if text and shown and not has(inner, "overload"):
            member = "property" if has(inner, "property") else "method"
            written = "" if member == "property" else signature(inner, optimizer)
            yield from (f"::::{{py:{member}}} {inner.name}{written}", "")
            yield from docstrings.page(text)
            yield from ("::::", "")
    yield from (colons, "")


def page(part: Part) -> Iterator[str]:
    """A page: what its first file says of itself, where it is a module, and all its names."""
    trees = [ast.parse((PACKAGE / name).read_text()) for name in part.files]
    yield from (f"# {escaped(part.title)}", "")
    home = trees[0]
    if part.module != "schuss":
        path = PACKAGE / part.module.partition(".")[2]
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        home = ast.parse(file.read_text())
        yield from docstrings.page(ast.get_docstring(home) or "")
    found = {n.name: n for tree in trees for n in tree.body if isinstance(n, Definition)}
    optimizer = f"{part.module if 'Optimizer' in found else 'schuss'}.Optimizer"
    for name in part.names or public(home):
        yield from described(found[name], part.module, optimizer)


def stateless() -> Iterator[str]:
    """The calls of schuss.functional, which are made of the rules' classes."""
    yield from ("# schuss.functional", "")
    yield from docstrings.page(functional.__doc__ or "")
    for rule in rules.RULES:
        name = rule.__name__.lower()
        call = getattr(functional, name)
        arrays = [p for p in inspect.signature(call).parameters.values() if p.kind < p.KEYWORD_ONLY]
        given = ", ".join(p.name if p.default is p.empty else f"{p.name}=None" for p in arrays)
        yield from (f"```{{py:function}} schuss.functional.{name}({given}, *, step, **options)", "")
        yield from (
            f"One step of one array. Options: [{rule.__name__}](../rules/{name}.md).",
            "```",
        )
        yield ""


def pages() -> dict[str, str]:
    """The text of each page, by its path in docs/."""
    found = {f"api/{name}.md": "\n".join(page(part)) for name, part in PARTS.items()}
    found["api/functional.md"] = "\n".join(stateless())
    entries = [(PARTS[name].title, name) for name in PARTS]
    entries.insert(list(PARTS).index("schedules"), ("schuss.functional", "functional"))
    lines = ["# API reference", ""]
    lines += ["[Each rule](../rules.md) has a page of its own. All else that is public:", ""]
    lines += [f"- [{escaped(title)}]({name}.md)" for title, name in entries]
    return found | {"api/index.md": "\n".join([*lines, ""])}
