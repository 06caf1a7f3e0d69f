"""Who takes part: a class each, whose constructor says why where it can't."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, ClassVar, Protocol

import numpy as np

from schuss.lab.bench import adamw
from schuss.lab.bench.roofline import place_state
from schuss.lab.bench.workloads import HALVES, PLAIN, STAGES, Case, Memory, staggered
from schuss.lab.catalogue import measured


class Absent(Exception):  # noqa: N818  it's no error
    """Why a contestant takes no part."""


class Contestant(Protocol):
    """One implementation, set up on the arrays of a case."""

    name: ClassVar[str]

    def __init__(self, case: Case, memory: Memory) -> None: ...

    def step(self) -> object: ...

    def answer(self) -> list[np.ndarray]: ...


@contextmanager
def quiet() -> Iterator[None]:
    """Lets nobody print, compilers and their children neither."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, before in enumerate(saved, 1):
            os.dup2(before, descriptor)
            os.close(before)
        os.close(nowhere)


def imported(name: str) -> Any:
    """A package, or Absent where it isn't there or fails."""
    package = name.partition(".")[0]
    try:
        there = sys.modules.get(package) or find_spec(package)
    except ValueError:
        there = None
    if not there:
        raise Absent(f"{package} is not installed")
    try:
        with quiet():
            return importlib.import_module(name)
    except Exception as error:
        raise Absent(f"{name}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0][:100]


def versions() -> str:
    """The packages that are compared, as far as they are there."""
    names = ("numpy", "torch", "deepspeed", "optax", "jax")
    return ", ".join(f"{n} {version(n)}" if find_spec(n) else f"no {n}" for n in names)


class Schuss:
    """A step of the compiled kernel with bound gradients."""

    name: ClassVar[str] = "schuss"
    backend = "compiled"

    def __init__(self, case: Case, memory: Memory) -> None:
        make: Any = case.rule
        opt = make(memory.params, grads=memory.grads, backend=self.backend, **case.options)
        self.state = place_state(opt)
        self.params = memory.params
        self.step: Callable[[], object] = opt.step
        if case.rule.reads_loss(opt.param_groups[0]):
            self.step = partial(opt.step, loss=1.0)
        read = sum(a.nbytes for a in (*memory.params, *self.state))
        gradients = sum(g.nbytes for g in memory.grads)
        passes = 1 + (2 if case.variant == STAGES else 0)  # the norm's, and the zeros
        first = measured(case.rule, case.rule.kernel(case.rule.defaults() | case.options))
        self.held = read + gradients
        self.bytes = 2 * read + passes * gradients + 4 * case.elements * len(first)

    def answer(self) -> list[np.ndarray]:
        return self.params


class NumPy(Schuss):
    """The same class on its NumPy reference, which is written to be read."""

    name: ClassVar[str] = "numpy"
    backend = "numpy"


class InPlace:
    """AdamW in place in NumPy, as people write it."""

    name: ClassVar[str] = "in place"

    def __init__(self, case: Case, memory: Memory) -> None:
        require_plain_adamw(case)
        self.params = memory.params
        self.opt = adamw.InPlace(memory.params, memory.grads)
        self.step = self.opt.step

    def place(self) -> None:
        """Lays the state out as schuss's, and the room for temporary arrays beside it."""
        shapes = [x.shape for x in self.params]
        for place, name in enumerate(("m", "v", "room"), 2):
            new = staggered(shapes, np.float32, place)
            for before, after in zip(getattr(self.opt, name), new, strict=True):
                after[...] = before
            setattr(self.opt, name, new)

    def answer(self) -> list[np.ndarray]:
        return self.params


class Python:
    """AdamW over lists of floats, without NumPy."""

    name: ClassVar[str] = "python"
    most = 70_000  # elements

    def __init__(self, case: Case, memory: Memory) -> None:
        require_plain_adamw(case)
        if case.elements > self.most:
            raise Absent(f"too slow for more than {self.most} elements")
        flat = [np.concatenate([a.ravel() for a in s]) for s in (memory.params, memory.grads)]
        self.opt = adamw.Python(flat[0].tolist(), flat[1].tolist())
        self.step = self.opt.step
        self.shapes = case.shapes

    def answer(self) -> list[np.ndarray]:
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1]
        pieces = np.split(np.array(self.opt.x), ends)
        return [piece.reshape(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]


def require_plain_adamw(case: Case) -> None:
    if case.rule.__name__ != "AdamW" or case.variant != PLAIN:
        raise Absent("has a plain AdamW only")


class Torch:
    """torch.optim's loop over parameters: the rule of the same name, and separate calls for stages.

    Its state of float32 parameters is float32 always; gradients in 16 bits are widened by a call.
    """

    name: ClassVar[str] = "loop"
    how: ClassVar[dict[str, bool]] = {"foreach": False}

    def __init__(self, case: Case, memory: Memory) -> None:
        self.torch = imported("torch")
        self.params = memory.params
        self.tensors = [self.torch.from_numpy(p) for p in memory.params]
        self.wide: list[np.ndarray] = []
        if case.variant == HALVES:
            self.wide = staggered(case.shapes, np.float32, 6)
            self.halves = [
                self.torch.from_numpy(g.view(np.int16)).view(self.torch.bfloat16)
                for g in memory.grads
            ]
        for tensor, grad in zip(self.tensors, self.wide or memory.grads, strict=True):
            tensor.grad = self.torch.from_numpy(grad)
        self.grads = [t.grad for t in self.tensors]
        self.opt = self.optimizer(case)
        if case.variant == STAGES:
            means = staggered(case.shapes, np.float32, 4)
            for mean, param in zip(means, memory.params, strict=True):
                mean[...] = param
            self.means = [self.torch.from_numpy(mean) for mean in means]
        plain = {PLAIN: self.opt.step, STAGES: self.with_stages, HALVES: self.from_halves}
        self.step: Callable[[], object] = plain[case.variant]

    def optimizer(self, case: Case) -> Any:
        rule = getattr(self.torch.optim, case.rule.__name__, None)
        if rule is None or not self.how.keys() <= inspect.signature(rule).parameters.keys():
            raise Absent("has no such rule")
        return rule(self.tensors, **self.how)

    def with_stages(self) -> None:
        self.torch._foreach_mul_(self.grads, 1 / 1024)
        self.torch.nn.utils.clip_grad_norm_(self.tensors, 1.0)
        self.opt.step()
        self.torch._foreach_lerp_(self.means, self.tensors, 1 - 0.999)
        self.torch._foreach_zero_(self.grads)

    def from_halves(self) -> None:
        self.torch._foreach_copy_(self.grads, self.halves)
        self.opt.step()

    def place(self) -> None:
        """Lays the state out as schuss's, once the first step has made it."""
        states = [self.opt.state[t] for t in self.tensors]
        shape = [t.shape for t in self.tensors]
        for place, name in enumerate(list(states[0]), 2):
            old = [state[name] for state in states]
            if [getattr(a, "shape", None) for a in old] != shape or old[0].ndim == 0:
                continue  # a step count
            new = staggered([tuple(s) for s in shape], np.float32, place)
            for state, before, array in zip(states, old, new, strict=True):
                after = self.torch.from_numpy(array)
                state[name] = after.copy_(before)

    def answer(self) -> list[np.ndarray]:
        return self.params


class Foreach(Torch):
    """torch.optim's operations on lists of tensors."""

    name: ClassVar[str] = "foreach"
    how: ClassVar[dict[str, bool]] = {"foreach": True}


class Fused(Torch):
    """torch.optim's compiled step."""

    name: ClassVar[str] = "fused"
    how: ClassVar[dict[str, bool]] = {"fused": True}


class DeepSpeed(Torch):
    """DeepSpeed's compiled steps for the processor; the first use compiles them, for minutes."""

    name: ClassVar[str] = "deepspeed"
    classes: ClassVar[dict[str, tuple[str, str, dict[str, Any]]]] = {
        "Adam": ("adam", "DeepSpeedCPUAdam", {"adamw_mode": False}),
        "AdamW": ("adam", "DeepSpeedCPUAdam", {"adamw_mode": True, "weight_decay": 0.01}),
        "Adagrad": ("adagrad", "DeepSpeedCPUAdagrad", {}),
        "Lion": ("lion", "DeepSpeedCPULion", {}),
    }

    def optimizer(self, case: Case) -> Any:
        if case.rule.__name__ not in self.classes:
            raise Absent("has no such rule")
        module, name, options = self.classes[case.rule.__name__]
        settings = case.rule.defaults()
        own = {k: settings[k] for k in ("lr", "betas", "eps") if k in settings}
        rule = getattr(imported(f"deepspeed.ops.{module}"), name)
        # ninja may lie beside the interpreter, in a virtual environment that isn't activated.
        path = os.environ["PATH"]
        os.environ["PATH"] = f"{os.path.dirname(sys.executable)}{os.pathsep}{path}"
        try:
            with quiet():
                return rule(self.tensors, **own, **options)
        except Exception as error:
            raise Absent(f"does not compile or start: {first_line(error)}") from error
        finally:
            os.environ["PATH"] = path


class Optax:
    """optax under jax.jit, with parameters and state donated, so that they are updated in place.

    JAX owns its arrays: these alone are copies, and lie where it puts them.
    """

    name: ClassVar[str] = "optax"

    def __init__(self, case: Case, memory: Memory) -> None:
        if case.variant != PLAIN:
            raise Absent("only plain steps are compared")
        optax, jax = imported("optax"), imported("jax")
        h = case.rule.defaults()
        known: dict[str, Callable[[], Any]] = {
            "SGD": lambda: optax.sgd(h["lr"]),
            "RMSprop": lambda: optax.rmsprop(h["lr"], h["alpha"], h["eps"], eps_in_sqrt=False),
            "Adam": lambda: optax.adam(h["lr"], *h["betas"], h["eps"]),
            "AdamW": lambda: optax.adamw(
                h["lr"], *h["betas"], h["eps"], weight_decay=h["weight_decay"]
            ),
            "Adamax": lambda: optax.adamax(h["lr"], *h["betas"], h["eps"]),
            "AdaBelief": lambda: optax.adabelief(h["lr"], *h["betas"], h["eps"]),
            "Lion": lambda: optax.lion(h["lr"], *h["betas"], weight_decay=h["weight_decay"]),
            "SignSGD": lambda: optax.sign_sgd(h["lr"]),
        }
        if case.rule.__name__ not in known:
            raise Absent("is compared with the usual rules only")
        rule = known[case.rule.__name__]()

        def step(params: Any, state: Any, grads: Any) -> Any:
            updates, state = rule.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        cpu = jax.devices("cpu")[0]
        with jax.default_device(cpu):
            self.params = [jax.numpy.array(p, copy=True) for p in memory.params]
            self.grads = [jax.numpy.array(g, copy=True) for g in memory.grads]
            self.state = rule.init(self.params)
        self.compiled = jax.jit(step, donate_argnums=(0, 1))
        self.wait = jax.block_until_ready

    def step(self) -> None:
        self.params, self.state = self.wait(self.compiled(self.params, self.state, self.grads))

    def answer(self) -> list[np.ndarray]:
        return [np.asarray(p) for p in self.params]


PEERS: tuple[type[Contestant], ...] = (
    NumPy,
    InPlace,
    Python,
    Torch,
    Foreach,
    Fused,
    DeepSpeed,
    Optax,
)
NAMES = tuple(peer.name for peer in PEERS)


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """The number of threads of torch; DeepSpeed follows it."""
    try:
        torch = imported("torch")
    except Absent:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
