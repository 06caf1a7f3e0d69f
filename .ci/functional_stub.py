"""Writes python/schuss/functional.pyi: the stateless calls, as type checkers and editors see them.

    python .ci/functional_stub.py > python/schuss/functional.pyi

The calls are made from the list of rules when the module is imported; here each gets the signature
that it has then, with the annotations of the rule's class. tests/engine/test_types.py holds the
stub against this. Wants an installed Schuss.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

from schuss import functional, rules
from schuss.engine.optimizer import Optimizer

HEAD = '''\
"""Made by .ci/functional_stub.py, which says how."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from schuss._core import Rows
from schuss.engine.codes import BlockFloat8
from schuss.engine.declare import Backend, DecayMode, Number, Scale
from schuss.engine.optimizer import Optimizer
from schuss.rules.adam import EpsMode

STATELESS: tuple[str, ...]
CALLS: dict[str, Callable[..., None]]

def stateless(rule: type[Optimizer]) -> Callable[..., None]: ...
'''


def spelled(value: Any) -> str:
    """A default as the formatter writes it; what has no literal is left open."""
    if isinstance(value, str):
        return f'"{value}"'
    return "..." if value in (math.inf, -math.inf) else repr(value)


def annotation(rule: type[Optimizer], name: str, of_state: bool) -> str:
    """What an argument may be: an array, one of the call's own, or what the class declares."""
    own = {
        "step": "int",
        "loss": "float | None",
        "zero_grad": "bool",
        "preset": " | ".join((f"Literal[{', '.join(map(spelled, rule.presets))}]", "None")),
    }
    if name == "grad":
        return "np.ndarray | Rows"
    if of_state and name != "param":
        return "np.ndarray | BlockFloat8"
    if of_state or name == "master" or name in rule.memory or name in rule.shared:
        return "np.ndarray"
    if name in own:
        return own[name] if rule.presets or name != "preset" else "None"
    written: str = next(c.__annotations__[name] for c in rule.__mro__ if name in c.__dict__)
    return written.replace("'", '"')


def argument(rule: type[Optimizer], p: inspect.Parameter) -> str:
    """One line of a signature."""
    kind = annotation(rule, p.name, p.kind is p.POSITIONAL_OR_KEYWORD)
    if p.default is p.empty:
        return f"    {p.name}: {kind},\n"
    if p.default is None and "None" not in kind:
        kind += " | None"
    return f"    {p.name}: {kind} = {spelled(p.default)},\n"


def call(rule: type[Optimizer]) -> str:
    """The signature of a rule's stateless call."""
    name = rule.__name__.lower()
    parameters = inspect.signature(functional.CALLS[name]).parameters.values()
    arrays = [argument(rule, p) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    options = [argument(rule, p) for p in parameters if p.kind is p.KEYWORD_ONLY]
    return f"def {name}(\n{''.join(arrays)}    *,\n{''.join(options)}) -> None: ...\n"


def stub() -> str:
    """The whole file."""
    names = "".join(f'    "{name}",\n' for name in functional.__all__)
    return HEAD + "".join(map(call, rules.RULES)) + f"\n__all__ = [\n{names}]\n"


if __name__ == "__main__":
    print(stub(), end="")
