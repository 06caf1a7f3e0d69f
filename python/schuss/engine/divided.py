"""An optimizer whose state is divided among processes, as files, hashes and dictionaries see it.

What is saved of it is what a single process would save, with a `Spread` in the place of each array
of the state; what is loaded are whole arrays, of which each process takes its slices. So neither
knows of how many processes the other was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np

from schuss import _core
from schuss.checks import unpacked
from schuss.engine import saved
from schuss.engine.codes import SCALES, blocks_of, numbers_of
from schuss.engine.groups import Parameter
from schuss.engine.guard import held
from schuss.engine.memory import order_of
from schuss.engine.optimizer import Optimizer
from schuss.engine.saved import Saved, are_codes, is_array
from schuss.engine.spread import Spread, Team, along
from schuss.engine.structure import described, listing

Slices = list[tuple[int, int]]  # of each process, of an array along its memory


class Divided:
    """What steps parameters that all processes have, by slices of them whose state is here."""

    own: Any  # the optimizer of the slices
    whole: Optimizer  # of the parameters, without state
    wire: Team
    _lock: Any
    _of_whole: tuple[str, ...]  # the options that `whole` has, and `own` hasn't
    _slices: list[Slices]  # of each parameter; at multiples of 4096 elements

    def _require(self, options: Mapping[str, Any]) -> None:
        """Raises where it can't go on, or not with such options."""
        raise NotImplementedError

    def _share_all(self) -> None:
        """Brings the parameters to all processes, each from where its slices are stepped."""
        raise NotImplementedError

    def _each(self) -> Iterator[tuple[Parameter, Parameter, Slices]]:
        """The parameters, what is here of them, and what the processes have."""
        yield from zip(self.whole._parameters, self.own._parameters, self._slices, strict=True)

    def _params(self) -> dict[str, Spread]:
        """The parameters, of which each process writes a part."""
        return {p.name: self._spread(p.x, q.x, slices, p.x) for p, q, slices in self._each()}

    def _written(self) -> dict[str, Any]:
        """What a resumed run needs, as `saved.written` of a single process."""
        self._require({})
        found = saved.written(self.own)
        for p, q, slices in self._each():
            found["state"][p.name] |= {k: self._kept(k, p.x, a, slices) for k, a in q.saved.items()}
            if p.name in found["weights"]:
                part = found["weights"][p.name]
                found["weights"][p.name] = self._spread(p.x, part, slices)
        for name in self._of_whole:
            option = self.whole.options[name]
            found["options"][name] = option.saved(vars(self.whole)[option.key])
        return found

    def _spread(
        self, x: np.ndarray, part: np.ndarray, slices: Slices, whole: np.ndarray | None = None
    ) -> Spread:
        """An array that lies as a parameter does."""
        return Spread(self.wire, part, slices, x.shape, order_of(x), whole)

    def _kept(self, key: str, x: np.ndarray, part: np.ndarray, slices: Slices) -> Spread:
        """An array beside a parameter, in its saved form."""
        if key.endswith(SCALES):
            blocks = [(blocks_of(first), blocks_of(last)) for first, last in slices]
            return Spread(self.wire, part, blocks, (blocks_of(x.size),), "C")
        if part.dtype.itemsize == 1:
            return Spread(self.wire, part, slices, shape_of_codes(x), "C")
        return self._spread(x, part, slices)

    def _read(self, state_dict: Any, strict: bool) -> Saved:
        """What a state dictionary of whole arrays says of the slices; as `saved.read`."""
        found = saved.read(self.own, self._cut(state_dict, strict), strict)
        self._require(found.options)
        return found

    def _assign(self, found: Saved) -> None:
        """Puts it into the optimizer of the slices."""
        ours = {name: found.options[name] for name in self._of_whole if name in found.options}
        for name, value in ours.items():
            self.whole.options[name].__set__(self.whole, value)
        options = {name: value for name, value in found.options.items() if name not in ours}
        saved.assign(self.own, found._replace(options=options))

    def _cut(self, state_dict: Any, strict: bool) -> Any:
        """A state dictionary of whole arrays, with the slices of this process in their places."""
        if not isinstance(state_dict, Mapping):
            return state_dict
        found = {**state_dict}
        for part in ("state", "weights"):
            if isinstance(own := unpacked(found.get(part)), Mapping):
                found[part] = {**own}
        wrong: list[str] = []
        counters = ("step", *self.own.memory)
        for p, q, slices in self._each():
            mine = Slice(p.name, p.x, *slices[self.wire.rank], wrong)
            theirs: Any = found.get("state")
            if isinstance(theirs, dict) and isinstance(own := theirs.get(p.name), Mapping):
                theirs[p.name] = mine.of_state(own, q.saved, counters, strict)
            theirs = found.get("weights")
            if isinstance(theirs, dict) and is_array(own := theirs.get(p.name)):
                theirs[p.name] = mine.of("weights", own)
        if wrong:
            raise ValueError(f"state_dict: {listing(wrong, '; ', most=20)}")
        return found


class Slice(NamedTuple):
    """What a process has of a parameter, and so of all arrays that lie as it does."""

    name: str
    x: np.ndarray
    first: int
    last: int
    wrong: list[str]  # what doesn't lie so

    def of(self, key: str, array: np.ndarray) -> np.ndarray:
        """The slice of an array in the shape of the parameter."""
        if array.shape != self.x.shape:
            self.wrong.append(
                f"{self.name!r} {key}: {described(array)}, wanted shape {self.x.shape}"
            )
        return along(array, order_of(self.x), self.first, self.last)

    def of_state(
        self,
        theirs: Mapping[str, Any],
        ours: Mapping[str, Any],
        counters: Sequence[str],
        strict: bool,
    ) -> dict[str, Any]:
        """The slices of a parameter's saved state; what has no place here stays as it is."""
        found = dict(theirs)
        for key, array in theirs.items():
            beside = f"{key}{SCALES}"
            if not is_array(array) or key in counters or key.endswith(SCALES):
                continue
            if are_codes(array, theirs.get(beside), self.x.shape):
                scales = found.pop(beside)
                if array.shape == shape_of_codes(self.x):
                    found[key] = along(array, "C", self.first, self.last)
                    found[beside] = scales[blocks_of(self.first) : blocks_of(self.last)]
                elif strict:
                    self.of(key, array)
                else:  # whose blocks lie otherwise
                    found[key] = self.of(key, numbers_of(array, scales, self.x.shape))
            elif key in ours or array.shape == self.x.shape:
                found[key] = self.of(key, array)
        return found


def shape_of_codes(x: np.ndarray) -> tuple[int, ...]:
    """That of a parameter's codes in their saved form."""
    return x.shape if order_of(x) == "C" else (x.size,)


# ---- Of one that is divided, or of one that isn't

AnyOptimizer = Optimizer | Divided


def stepping(opt: AnyOptimizer) -> Optimizer:
    """What steps in this process."""
    found: Optimizer = opt.own if isinstance(opt, Divided) else opt
    return found


def written(opt: AnyOptimizer) -> dict[str, Any]:
    """What a resumed run needs, with the parameters."""
    if isinstance(opt, Divided):
        return {"params": opt._params(), **opt._written()}
    return {"params": {p.name: p.x for p in opt._parameters}, **saved.written(opt)}


def params(opt: AnyOptimizer) -> dict[str, np.ndarray]:
    """The parameters, whole."""
    whole = opt.whole if isinstance(opt, Divided) else opt
    return {p.name: p.x for p in whole._parameters}


def read(opt: AnyOptimizer, state_dict: Any, strict: bool = True) -> Saved:
    """What a state dictionary says, checked, so that `assign` can't fail."""
    own = (
        opt._read(state_dict, strict)
        if isinstance(opt, Divided)
        else saved.read(opt, state_dict, strict)
    )
    saved.require_writeable(stepping(opt), own)
    for p in opt.whole._parameters if isinstance(opt, Divided) else ():
        _core.require_parameter(p.x, p.labels()[0])
    return own


def assign(opt: AnyOptimizer, found: Saved) -> None:
    """Puts what was read into an optimizer: all of it, before an interrupt."""
    if isinstance(opt, Divided):
        opt._assign(found)
    else:
        saved.assign(opt, found)


def complete(opt: AnyOptimizer, found: Saved) -> None:
    """Brings weights that were kept, or what stands for them again, to all processes."""
    if isinstance(opt, Divided) and found.form != "training":
        opt._share_all()


@contextmanager
def holding(owners: Iterable[AnyOptimizer]) -> Iterator[None]:
    """Within a `with`, optimizers wait with their calls, as those of `held` do."""
    owners = set(owners)
    with ExitStack() as stack:
        for own in sorted((own for own in owners if isinstance(own, Divided)), key=id):
            stack.enter_context(own._lock)
        stack.enter_context(held(map(stepping, owners)))
        yield


def team_of(owners: Iterable[AnyOptimizer]) -> Team | None:
    """The processes among which optimizers are divided; None where none is."""
    teams = [own.wire for own in owners if isinstance(own, Divided)]
    if any((team.rank, team.size) != (teams[0].rank, teams[0].size) for team in teams):
        raise ValueError("opt: two are divided among other processes; pass them apart")
    return teams[0] if teams else None
