"""What a step consists of, for the compiled sequence that takes it (cpp/python/plan.hpp).

    begin      settings, schedules, gradients in order; one set of scalars for each group and count
    check      every array, before anything changes
    measure    the norm of the gradients, sums of whole arrays, where a rule or an option asks
    scalars    in double, from the rule's class and the stages
    run        the kernels, or their reference
    count      steps, and what a rule remembers beside the arrays

A Recipe says by name what a step of these settings needs. It is made anew when an option is set, or
a hyperparameter that is no number; numbers are read at each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from schuss.engine.scalars import Options, Part, seed_key
from schuss.reference.sums import Sums

if TYPE_CHECKING:
    from schuss.engine.groups import Settings


@dataclass
class Recipe:
    """What a step needs, as the compiled sequence reads it."""

    groups: Sequence[Any]  # each with its settings
    options: Options
    scale: Any = 1.0  # of the loss: a number, or what float() makes one
    told: Callable[[bool], None] | None = None  # whether a step was done
    limit: float = math.inf  # of the gradients' norm
    per: str = "all"  # of which that is: of all, or of each array or row
    counts_rows: bool = False  # their own steps, not those of the array before their last one
    propagates: bool = True  # a gradient that is not finite
    undone: Callable[..., None] | None = None  # what is left of a step that isn't taken
    backend: Any = None  # None: the kernels
    direct: Callable[..., Any] | None = None  # from gradients to directions
    convert: Callable[..., Any] | None = None  # a gradient of another type or order
    sums: type[Sums] = Sums
    whole: Any = None  # arrays of which those here are shares: see schuss.mpi.whole
    parts: dict[tuple[int, bool, int], Part] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings: list[Settings] = [group.settings for group in self.groups]
        forms = [s.form for s in settings]
        rule = settings[0].rule
        self.follow = rule.follow
        self.remembered = tuple(rule.memory)
        self.shared = tuple(rule.shared)
        self.reads_loss = any(f.reads_loss for f in forms)
        self.wanted = 0
        for f in forms:
            self.wanted |= f.wanted
        self.totals = bool(rule.shared) and any(f.sums for f in forms)
        self.adapts = any(f.adapts for f in forms)
        self.measures_norm = self.limit < math.inf or not self.propagates
        self.zero_grad = self.options.zero_grad
        self.key = seed_key(self.options.seed)

    def part(self, group: int, decays: bool, case: int) -> Part:
        """What computes the scalars of a group's arrays: one for all groups of the same form."""
        settings = self.groups[group].settings
        key = id(settings.form), decays, case
        if key not in self.parts:
            self.parts[key] = Part(settings, decays, self.options, case)
        return self.parts[key]
