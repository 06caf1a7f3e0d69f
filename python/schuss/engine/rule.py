"""What the author of a rule writes: which kernel, with which scalars, from which numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from schuss.engine.declare import Hyperparameter, Option
from schuss.reference.sums import Sums

Values = Mapping[str, Any]  # of hyperparameters, by name
Numbers = Mapping[str, float]  # that a rule remembers, by name


Groups = Sequence[tuple[Values, Any]]


def moving(groups: Groups) -> Groups:
    """The groups whose lr isn't 0: frozen ones have no say in what is of all."""
    return [group for group in groups if group[0]["lr"]]


def agreed(groups: Groups, read: Mapping[str, Callable[[Values], Any]]) -> Values:
    """One group's values, which stand for all; ValueError where what is read of them differs."""
    (first, _), *others = groups
    for other, _ in others:
        for name, of in read.items():
            if of(first) != of(other):
                raise ValueError(
                    f"{name}: {of(first)!r} in one group and {of(other)!r} in another, but it "
                    "makes numbers that all arrays share; set it to the same in all groups that "
                    "move"
                )
    return first


class RuleType(type):
    """Shows users of a rule what is for them: what its author writes is shown by Rule alone."""

    def __dir__(cls) -> list[str]:
        return sorted({*super().__dir__()} - (set() if cls.__name__ == "Rule" else HOOKS))


class Rule(metaclass=RuleType):
    """A rule's own part of an optimizer; h has the hyperparameters' values at the step at hand."""

    states: ClassVar[dict[str, tuple[str, ...]]]  # the state arrays of each kernel
    memory: ClassVar[dict[str, float]] = {}  # numbers beside each array's state, at the start
    shared: ClassVar[dict[str, float]] = {}  # numbers beside the state of all, at the start
    ranges: ClassVar[dict[str, str]] = {}  # of these numbers, where not "[-inf, inf]"
    common: ClassVar[dict[str, Callable[[Values], Any]]] = {}  # what of a group makes these
    starting: ClassVar[tuple[str, ...]] = ()  # state arrays that start at the parameter
    apart: ClassVar[tuple[str, ...]] = ()  # arguments of a group that are no hyperparameters
    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # what differs from PyTorch's convention
    hyperparameters: ClassVar[dict[str, Hyperparameter]] = {}
    options: ClassVar[dict[str, Option]] = {}

    @staticmethod
    def kernel(h: Values) -> str:
        """The kernel for these hyperparameters, of which a callable is true.

        Raises ValueError where they don't go together.
        """
        raise NotImplementedError("Optimizer is the base of the rules; use SGD, Adam, ...")

    @staticmethod
    def scalars(h: Values, t: int, memory: Numbers) -> dict[str, float]:
        """The scalars of the rule's kernels at an array's step t, counted from 1, in double.

        memory has what the rule keeps in `memory` and `shared`; what is returned has the new
        memory, too.
        """
        raise NotImplementedError

    @staticmethod
    def factors(x: np.ndarray) -> bool:
        """Whether the rule's only state array is the product of two small ones for this array.

        They are `row_var` and `col_var`, the means of the squared gradient over the rows and the
        columns of the last two axes. A step brings them forward first, by two more scalars: the
        `share` of the new squares, and the `floor` of the mean of `row_var`, which divides it.
        """
        return False

    @staticmethod
    def case(x: np.ndarray) -> int:
        """Which of the rule's cases this array is, where arrays of a group need other scalars."""
        return 0

    @staticmethod
    def in_case(h: Values, case: int) -> Values:
        """The hyperparameters, as `scalars` and `adapt` see them for arrays of a case."""
        return h

    @staticmethod
    def reads_loss(h: Values) -> bool:
        """Whether a step needs the loss."""
        return False

    @staticmethod
    def sums(h: Values) -> tuple[str, ...]:
        """What a step has to know of an array as a whole: "x", "g", "u", "agree", "own".

        They are measured with `scalars` as they are, in a sweep that writes nothing.
        """
        return ()

    @staticmethod
    def adapt(h: Values, t: int, sums: Sums) -> dict[str, float]:
        """The scalars that the sums of an array change."""
        return {}

    @staticmethod
    def follow(groups: Groups, shared: Numbers, t: int, loss: Any) -> dict[str, float]:
        """What `shared` becomes by the optimizer's step t, and what else `scalars` wants to know.

        groups   of each group that has gradients its values, and the sums over all of its arrays,
                 or None where none were measured. What becomes of them may not depend on their
                 order: see `moving` and `agreed`
        """
        raise NotImplementedError

    @classmethod
    def refuses_rows(cls, h: Values) -> str:
        """Why some rows of an array can't step alone; empty where they can."""
        return f"{cls.__name__} looks at whole arrays" if cls.sums(h) else ""

    @staticmethod
    def faded(h: Values, missed: int, keep: float) -> dict[str, float]:
        """What so many steps with a gradient of 0 would have done: numbers of the stages.

        They are `fade_x` and `drift`, and `fade_0` and `fade_1` of the first two state arrays: see
        reference.step. `keep` is what the weight decay leaves of x in each.
        """
        raise NotImplementedError

    @staticmethod
    def initial(h: Values) -> dict[str, float]:
        """What state arrays start with where it isn't 0."""
        return {}

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__()} - HOOKS)


# What an author of a rule writes, and users needn't see.
HOOKS = {n for n in (*vars(Rule), *Rule.__annotations__) if not n.startswith("_")}


def is_ours(cls: type) -> bool:
    """Whether a class is one of this package."""
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]
