"""An optimizer whose state lies in shares on many processes."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, NoReturn

import numpy as np

from schuss import _core
from schuss.checks import check_int
from schuss.engine.declare import Pair
from schuss.engine.divided import Divided, assign, read
from schuss.engine.guard import shorten, uninterrupted
from schuss.engine.memory import order_of
from schuss.engine.optimizer import Optimizer, computing_type, is_groups
from schuss.engine.pieces import check_weights, zero
from schuss.engine.saved import Differences
from schuss.engine.spread import Spread, everywhere, flat, require_same
from schuss.engine.structure import label, listed, listing
from schuss.hashes import digest
from schuss.mpi.arrivals import Arrivals
from schuss.mpi.shares import Shares
from schuss.mpi.traffic import Given, Landing, Pieces, Traffic, Types, decoded, encoded
from schuss.mpi.whole import STEP, Whole
from schuss.mpi.wire import Communicator, Wire, wire
from schuss.rules.descent import SGD
from schuss.rules.matrix import MatrixRule

OF_WHOLE = ("missing", "convert", "zero_grad")  # options that gradients are looked over by
# What of the optimizer of the shares is everyone's.
SHOWN = (
    "arrived",
    "current_learning_rate",
    "ema_decay",
    "grad_norm",
    "iterations",
    "nbytes",
    "observe",
    "param_groups",
    "refresh",
    "report",
    "skipped_steps",
)
SWAPPING = ("eval", "train")  # of rules that have averages


class Sharded(Divided):
    """Steps parameters that all processes have, each of them a share, whose state it alone has.

        opt = schuss.mpi.Sharded(schuss.AdamW, params, lr=3e-4)     # in every process
        opt.step(grads)                                             # each with its own gradients

    rule          a class of a rule, such as schuss.AdamW
    params        as the class takes them, with the same bits in all processes
    comm          a communicator of mpi4py, or a schuss.mpi.Communicator; default MPI.COMM_WORLD
    check_every   after so many steps, each time, the bits of the parameters are compared in all
                  processes as the next step begins; default 0: never
    options       as the class takes them, but for state_dir, rows, backend, and clip_norm_per

    The bits are those of one process that steps by the same gradients as pieces, in the order of
    the processes: `opt.step(pieces=[g0, g1, ...])`. Options are live, as opt.lr = 0.1 in all
    processes alike; rules that have `eval` and `train` have them here, too. All calls are made by
    all processes in the same order, but for reading attributes, of which opt.param_groups has the
    arrays of the own share. Raises TypeError or ValueError where the options can't be, or the rule
    looks at matrices, as Muon, Shampoo, SOAP and Adafactor do.
    """

    wire: Wire
    own: Optimizer  # of the shares of this process
    whole: Optimizer  # of all arrays, which looks gradients over and has no state
    shares: Shares
    _all: Whole
    _traffic: Traffic
    _sums: list[np.ndarray]  # of gradients, where a step looks at all of them
    _lock: threading.RLock
    _torn: str  # why nothing can go on

    def __init__(
        self,
        rule: type[Optimizer],
        params: Any,
        *,
        comm: Communicator | Any | None = None,
        check_every: int = 0,
        grads: Any = None,
        **options: Any,
    ) -> None:
        own = vars(self)
        own["wire"] = wire(comm)
        own["_lock"] = threading.RLock()
        own["_torn"] = ""
        own["check_every"] = check_every
        with everywhere(self.wire, "construction"):
            check_int("check_every", check_every, 0)
            require_rule(rule)
            require_divisible(options)
            whole = {name: options.pop(name) for name in OF_WHOLE if name in options}
            params = listed(params)
            own["whole"] = SGD(without_options(params), lr=0.0, grads=grads, **whole)
            bounds = bounds_of(params, options)
            self._divide(rule, params, options)
        self._compare(bounds)
        self.check()

    def _divide(self, rule: type[Optimizer], params: Any, options: dict[str, Any]) -> None:
        """Cuts the arrays into shares, and makes an optimizer of those of this process."""
        own, parameters, rank = vars(self), self.whole._parameters, self.wire.rank
        arrays = {p.name: p.x for p in parameters}
        shares = Shares(
            [x.size for x in arrays.values()],
            [x.itemsize for x in arrays.values()],
            self.wire.size,
        )
        slices = dict(zip(arrays, (slice(*mine[rank]) for mine in shares.slices), strict=True))
        names = [[p.name for p in group.members] for group in self.whole.param_groups]
        if (no_decay := options.get("no_decay")) is not None:
            options = {**options, "no_decay": by_whole(no_decay, arrays)}
        if is_groups(params):
            groups = [
                group_of_shares(group, members, arrays, slices)
                for group, members in zip(params, names, strict=True)
            ]
            own["own"] = rule(groups, **options)
        else:
            own["own"] = rule(**group_of_shares(options, names[0], arrays, slices))
        own["shares"], own["_slices"] = shares, shares.slices
        for p, q, mine in zip(self.own._parameters, parameters, shares.slices, strict=True):
            p.position = q.position + mine[rank][0]
            p.case = self.own.param_groups[p.group].rule.case(q.x)
        self.own._register_anew()
        self.own._whole = own["_all"] = Whole(shares, self.wire)
        own["_traffic"] = Traffic(shares, self.wire, [flat(x) for x in arrays.values()])
        own["_sums"] = []

    # ---- What all processes agree on

    def _compare(self, bounds: list[str]) -> None:
        """Raises where processes were given other things, as bounds of each element."""
        scale: Any = self.own.grad_scale
        for name, value in {
            "rule": type(self.own).__name__,
            "params": [(p.name, p.kind) for p in self.whole._parameters],
            "no_decay": [p.name for p in self.own._parameters if not p.decays],
            "options": self._options(),
            "param_groups": self._values(),
            "bounds": bounds,
            "grad_scale": scale.state_dict() if hasattr(scale, "state_dict") else None,
            "check_every": self.check_every,
        }.items():
            require_same(self.wire, name, value)

    def check(self) -> None:
        """Raises RuntimeError where the bits of parameters are not the same in all processes."""
        with everywhere(self.wire, "check"):
            digests = b"".join(digest(p.x) for p in self.whole._parameters)
        found = self.wire.gather(digests, fixed=True)
        for rank, others in enumerate(found):
            if wrong := [
                label("params", p.name)
                for i, p in enumerate(self.whole._parameters)
                if others[32 * i : 32 * (i + 1)] != found[0][32 * i : 32 * (i + 1)]
            ]:
                raise RuntimeError(
                    f"{listing(wrong)}: other bits in process {rank} than in process 0; all begin "
                    "with the same, and nobody writes to them but the steps"
                )

    def _require_whole(self) -> None:
        if self._torn:
            raise RuntimeError(f"step: half of one was done when it failed: {self._torn}")

    @contextmanager
    def _tearing(self) -> Iterator[None]:
        """What fails within leaves a part done: the job can't go on."""
        try:
            yield
        except GeneratorExit:  # of one that nobody goes on with
            raise
        except BaseException as error:
            self._tear(error)

    def _tear(self, error: BaseException) -> NoReturn:
        vars(self)["_torn"] = f"{type(error).__name__}: {error}"
        self.wire.abort(error)

    # ---- The step

    def step(
        self,
        grads: Any = None,
        *,
        lr: float | None = None,
        loss: float | None = None,
        grad_scale: float | None = None,
        weights: Sequence[float] | None = None,
        report: bool = False,
    ) -> bool:
        """Updates every parameter that has a gradient in some process; True when it did.

        grads     this process's, in the structure of params, None where there is no gradient. Not
                  given: the bound ones
        weights   what the gradients of each process are multiplied by, as it is, before they are
                  added in the order of the processes. Not given: 1/size, which makes the mean
        loss      at the point where the gradients were taken, of all processes together: for rules
                  that read it, the same number in all of them

        lr, grad_scale, report    as in Optimizer.step, the same in all processes

        What one process raises all of them raise, and nothing has changed anywhere then. What fails
        when the step is under way, as the network may, ends the job. False where
        nonfinite="skip" has left it undone.
        """
        grads = listed(grads)
        try:
            with self._lock, ExitStack() as stack:
                self._check_in_turn()
                with everywhere(self.wire, "gradients"):
                    self._require_whole()
                    self.own._require_parameters("step")
                    self._all.numbers = b""
                    factors = check_weights("processes", self.wire.size, weights)
                    found = self.whole._plan.examined(grads)
                    given = {
                        i: self._flat_gradient(i, g) for i, g in enumerate(found) if g is not None
                    }
                    by_bucket = not needs_all(self.own)
                    asked: dict[str, Any] = {
                        "lr": lr,
                        "loss": loss,
                        "grad_scale": grad_scale,
                        "report": report,
                    }
                    if by_bucket:
                        stack.enter_context(self.own.arriving(**asked))
                    else:
                        self._make_room(factors)
                    said = self._said(asked, factors)
                types = self._announce(given, said)
                with uninterrupted():
                    if by_bucket:
                        self._by_bucket(given, types, factors)
                        done = True
                    else:
                        done = self._at_once(given, types, factors, asked)
                    stack.close()  # which counts it
                if self.whole.zeroes_grad:
                    given_here = [p.g for p in self.whole._parameters]
                    zero(given_here if grads is None else self.whole._gather(grads, "grads"))
        except (TypeError, ValueError) as error:
            shorten(error)
            raise
        return done

    def _flat_gradient(self, number: int, g: Any) -> np.ndarray:
        """A gradient as one axis; raises where it is no array."""
        if isinstance(g, np.ndarray):
            return flat(g)
        name = self.whole._parameters[number].labels()[1]
        raise TypeError(f"{name}: {type(g).__name__}; shares are of whole arrays")

    def _said(self, asked: Mapping[str, Any], weights: list[float]) -> dict[str, Any]:
        """What has to be the same in all processes for a step."""
        found = {name: as_number(value) for name, value in asked.items()}
        if not any(s.form.reads_loss for s in self.own._settings()):
            found["loss"] = None
        return {
            **found,
            "weights": weights,
            "iterations": self.own.iterations,
            "check_every": self.check_every,
            "an option": self._options(),
            "a hyperparameter": self._values(),
            "what schedules and scales make of it": self._all.numbers,
        }

    def _announce(self, given: Given, said: Mapping[str, Any]) -> list[Types]:
        """The types of all processes' gradients; raises where they'd step by other numbers."""
        key = zlib.crc32(repr(said).encode())
        numbers = range(len(self.shares.sizes))
        found = self.wire.gather(key.to_bytes(4, "little") + encoded(given, numbers), fixed=True)
        if any(data[:4] != found[0][:4] for data in found):
            for name, value in said.items():
                require_same(self.wire, f"step: {name}", value)
        return [decoded(data[4:], numbers) for data in found]

    def _options(self) -> dict[str, Any]:
        """The options that are numbers or words, or mappings of some."""
        return plain({name: vars(self.own)[o.key] for name, o in self.own.options.items()})

    def _values(self) -> list[dict[str, Any]]:
        """The hyperparameters of each group that are numbers or words."""
        return [plain(group.settings.values) for group in self.own.param_groups]

    def _make_room(self, weights: list[float]) -> None:
        """Room for the sums of gradients, where a step looks at all of them."""
        if weights != [1.0] and not self._sums:
            own = self.own._parameters
            vars(self)["_sums"] = [np.empty(p.x.shape, computing_type(p.x)) for p in own]

    def _by_bucket(self, given: Given, types: list[Types], weights: list[float]) -> None:
        """While a bucket steps the next one's gradients come, and the one before goes to all."""
        with self._tearing():
            for landing in self._traffic.landings(given, types):
                self._land(landing, weights)
            self._traffic.settle()

    def _land(self, landing: Landing, weights: list[float]) -> None:
        """Steps a bucket, by the pieces of its gradients."""
        for number, each in landing.pieces.items():
            self.own._plan.arrive(number, each, weights)
        self._traffic.share(landing.bucket, landing.pieces)

    def _at_once(
        self, given: Given, types: list[Types], weights: list[float], asked: Mapping[str, Any]
    ) -> bool:
        """Where all gradients are looked at first: they are added up as they come."""
        sums: dict[int, np.ndarray] = {}
        with self._tearing():
            for landing in self._traffic.landings(given, types):
                for number, each in landing.pieces.items():
                    sums[number] = self._added_up(number, each, weights)
        names = [p.name for p in self.own._parameters]
        try:
            done: bool = self.own.step({name: sums.get(i) for i, name in enumerate(names)}, **asked)
            if done:
                for bucket in range(len(self.shares.buckets)):
                    self._traffic.share(bucket, sums)
                self._traffic.settle()
        except BaseException as error:
            if self._all.committed:
                self._tear(error)
            if error is not self._all.raised:
                self._all.agree(STEP, error)
            raise
        finally:
            self._all.committed, self._all.raised = False, None
        return done

    def _added_up(self, number: int, pieces: Pieces, weights: list[float]) -> np.ndarray:
        """The sum of a gradient's pieces, in an array that is kept for the next step."""
        if weights == [1.0] and pieces[0] is not None:  # of one process, which has it already
            return pieces[0]
        there = [(g, w) for g, w in zip(pieces, weights, strict=True) if g is not None]
        _core.average([g for g, _ in there], [w for _, w in there], self._sums[number])
        return self._sums[number]

    def _check_in_turn(self) -> None:
        """Compares the parameters as a step begins, before which somebody may have written to some.

        Behind a step all have what each has stepped, whatever was there before.
        """
        done = self.own.iterations
        if done and self.check_every and done % self.check_every == 0:
            self.check()

    def arriving(
        self,
        *,
        lr: float | None = None,
        loss: float | None = None,
        grad_scale: float | None = None,
        clip_norm: Literal["previous"] | None = None,
        weights: Sequence[float] | None = None,
        report: bool = False,
    ) -> Arrivals:
        """A step whose gradients go to the others as soon as they are there.

            with opt.arriving() as step:
                step("w2", grad_w2)         # stays until the end, as it is
                step("w1", grad_w1)

        A bucket of parameters goes when all of its gradients are there, the last bucket first;
        while the next gradients are computed it comes, steps, and its parameters go to all. So
        nobody reads a parameter whose gradient has come before the end. All else is as in
        Optimizer.arriving and in `step`; what one process raises ends the block in all of them.
        """
        asked = {"lr": lr, "loss": loss, "grad_scale": grad_scale, "clip_norm": clip_norm}
        return Arrivals(self, weights, {**asked, "report": report})

    # ---- Averages in the parameters' place

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within a `with`, the parameters hold their means: see Optimizer.averaged."""
        error = None
        with ExitStack() as stack:
            with everywhere(self.wire, "averaged"):
                self._require_writeable()
                stack.enter_context(self.own.averaged())
            self._share_all()
            try:
                yield
            except BaseException as found:
                error = found
        self._share_all()
        self._all.agree("averaged", error)

    def _require_writeable(self) -> None:
        """Raises where a parameter can't take what others have stepped."""
        for p in self.whole._parameters:
            _core.require_parameter(p.x, p.labels()[0])

    def _swap(self, name: str) -> None:
        """What `eval` and `train` of a rule do, in all processes."""
        with self._lock:
            with everywhere(self.wire, name):
                self._require_writeable()
                getattr(self.own, name)()
            self._share_all()

    def _share_all(self) -> None:
        """Brings the shares of all parameters to all processes."""
        with uninterrupted(), self._tearing():
            for bucket, numbers in enumerate(self.shares.buckets):
                self._traffic.share(bucket, numbers)
            self._traffic.settle()

    def zero_grad(self) -> None:
        """Fills the bound gradients with zeros."""
        self.whole.zero_grad()

    # ---- Options, live

    def __dir__(self) -> list[str]:
        own = (name for name in super().__dir__() if name not in ("own", "shares", "whole", "wire"))
        swapping = (name for name in SWAPPING if hasattr(self.own, name))
        return sorted({*own, *SHOWN, *swapping, *self.own.hyperparameters, *self.own.options})

    def __getattr__(self, name: str) -> Any:
        opt = vars(self).get("own")
        if opt is not None and name in OF_WHOLE:
            return vars(self.whole)[self.whole.options[name].key]
        if opt is not None and name in opt.options and name != "ema":  # which is its decay
            return vars(opt)[opt.options[name].key]
        if opt is not None and (name in opt.hyperparameters or name in SHOWN):
            return getattr(opt, name)
        if opt is not None and name in SWAPPING and hasattr(opt, name):
            return partial(self._swap, name)
        raise AttributeError(f"{name}: no attribute of Sharded, and no option of its rule")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "check_every":
            vars(self)[name] = check_int(name, value, 0)
        elif name in OF_WHOLE:
            setattr(self.whole, name, value)
        elif name in self.own.hyperparameters or name in self.own.options:
            require_divisible({name: value})
            setattr(self.own, name, value)
        else:
            raise AttributeError(f"{name}: no option of {type(self.own).__name__}")

    # ---- State

    def state_dict(self) -> dict[str, Any]:
        """A copy of what a resumed run needs, by name, the same in all processes: whole arrays.

        It is that of a single process's optimizer, and takes the memory of the whole state in each
        process; schuss.save doesn't.
        """
        with self._lock:
            with everywhere(self.wire, "state_dict"):
                found = self._written()
                kept = [*found["state"].values(), found["weights"]]
                spread = [
                    (own, key, a, a.room())
                    for own in kept
                    for key, a in own.items()
                    if isinstance(a, Spread)
                ]
            for own, key, a, room in spread:
                own[key] = a.put(room)
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Differences:
        """Goes on where `state_dict` was taken, here or in a single process's optimizer.

        state_dict   whole arrays, of which each process takes its share; the same in all processes,
                     and ours, not PyTorch's
        strict       as in Optimizer.load_state_dict

        Returns what started anew, was left out, or was cast. Raises in all processes what one of
        them finds wrong; nothing has changed anywhere then.
        """
        with self._lock:
            with everywhere(self.wire, "load_state_dict"):
                self.own._require_parameters("load_state_dict")
                found = read(self, state_dict, strict)
            assign(self, found)
            if found.form != "training":
                self._share_all()
        return found.differences

    # ---- As files see it

    _of_whole = OF_WHOLE

    def _require(self, options: Mapping[str, Any]) -> None:
        self._require_whole()
        if self.own._plan.arriving:
            self.own._require_parameters("state")
        require_divisible(options)

    def __reduce__(self) -> Any:
        raise TypeError(
            "Sharded: no copies, which would talk to the other processes; see schuss.save"
        )

    def __repr__(self) -> str:
        return f"Sharded(process {self.wire.rank} of {self.wire.size}, {self.own!r})"


def require_rule(rule: Any) -> None:
    """Raises where it is no rule, or one that looks at matrices."""
    if not (isinstance(rule, type) and issubclass(rule, Optimizer)):
        raise TypeError(f"rule: {rule!r}, wanted a class of a rule, such as schuss.AdamW")
    if issubclass(rule, MatrixRule) or rule.factors is not Optimizer.factors:
        raise ValueError(f"rule: {rule.__name__} looks at matrices as a whole, and shares are none")


def require_divisible(options: Mapping[str, Any]) -> None:
    """Raises where one of them wants whole arrays, or what lies in one place."""
    for name, wanted, why in (
        ("clip_norm_per", "all", "wants whole arrays; shares have the norm of all"),
        ("rows", "lazy", "counts rows, which shares cut"),
        ("backend", "compiled", "is for whole arrays"),
        ("state_dir", None, "is a folder of one process"),
    ):
        if (value := options.get(name, wanted)) != wanted:
            raise ValueError(f"{name}: {value!r} {why}")


def needs_all(opt: Optimizer) -> bool:
    """Whether a step looks at all gradients before it writes anything."""
    limits = opt.clip_norm < np.inf or opt.nonfinite != "propagate"
    return limits or any(s.form.wanted for s in opt._settings())


def as_number(value: Any) -> Any:
    """A number of any kind as Python's; what is none stays."""
    return value if value is None or isinstance(value, bool | str) else float(value)


def is_plain(value: Any) -> bool:
    """Whether it is a number or a word, or consists of some: what else there is has no text."""
    if isinstance(value, tuple | dict):
        return all(map(is_plain, value.values() if isinstance(value, dict) else value))
    return isinstance(value, bool | int | float | str | None)


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """What of some values is plain."""
    return {k: v for k, v in values.items() if is_plain(v)}


def without_options(params: Any) -> Any:
    """The groups with nothing but their arrays, and the gradients that are bound."""
    if not is_groups(params):
        return params
    kept = ("params", "grads")
    return [{name: group[name] for name in kept if name in group} for group in params]


def bounds_of(params: Any, options: Mapping[str, Any]) -> list[str]:
    """The digests of all bounds that are arrays."""
    given = [group.get("bounds") for group in params] if is_groups(params) else []
    pairs = [pair for pair in (*given, options.get("bounds")) if Pair.has_arrays(pair)]
    return [digest(np.asarray(bound)).hex() for pair in pairs for bound in pair]


def by_whole(
    no_decay: Callable[[str, np.ndarray], bool], arrays: Mapping[str, np.ndarray]
) -> Callable[[str, np.ndarray], bool]:
    """A function of names and arrays that is asked of whole ones."""
    return lambda name, _: no_decay(name, arrays[name])


def group_of_shares(
    group: Mapping[str, Any],
    names: Sequence[str],
    arrays: Mapping[str, np.ndarray],
    slices: Mapping[str, slice],
) -> dict[str, Any]:
    """A group of the shares of its arrays."""
    own = {k: v for k, v in group.items() if k != "grads"}
    found = {**own, "params": {name: flat(arrays[name])[slices[name]] for name in names}}
    bounds: Any = group.get("bounds")
    if Pair.has_arrays(bounds):
        if len(names) > 1:
            raise ValueError("bounds: arrays, for a group of several; pass each in its own group")
        x = arrays[names[0]]
        found["bounds"] = tuple(
            np.ravel(bound, order=order_of(x))[slices[names[0]]]
            if np.shape(bound) == x.shape
            else bound
            for bound in bounds
        )
    if callable(group.get("no_decay")):
        found["no_decay"] = by_whole(group["no_decay"], arrays)
    return found
