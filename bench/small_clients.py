"""The step of trainers that docs/recipes.md serves: `python bench/small_clients.py [CLIENT ...]`.

Each client's own step and ours take turns on one processor, with gradients that are there, after
both have given the same answer; then whole iterations, where most of the time is elsewhere. The
fastest turn of each counts. A client that isn't installed is named and left out. README.md explains
the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

import schuss
import schuss.autograd
from schuss.lab.bench.clock import Timed, processors, take_turns
from schuss.lab.bench.report import processor

F4 = np.float32
STEPS = 20  # before answers are compared
LOOP = 50  # iterations of a loop that is the client's
SLICES = 40

SMALL, LARGE = (10, 20, 20, 5), (784, 200, 100, 10)  # widths of nets

Step = Callable[[], object]
Arrays = Sequence[Any]


class Case(NamedTuple):
    """Two ways to step, and where the parameters are then; a call may take several steps."""

    what: str
    elements: int
    theirs: Step
    ours: Step
    answers: Callable[[], tuple[Arrays, Arrays]]
    near: float = 1e-5  # the tolerance, of an array's largest element
    steps: int = 1


def layers(sizes: Sequence[int], dtype: type[Any] = F4) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        (
            0.1 * rng.standard_normal((m, n)).astype(dtype),
            0.1 * rng.standard_normal(n).astype(dtype),
        )
        for m, n in pairwise(sizes)
    ]


def leaves(net: Any) -> list[Any]:
    return [a for pair in net for a in pair]


def size_of(net: Any) -> int:
    return sum(a.size for a in leaves(net))


def batch(rows: int, width: int, dtype: type[Any] = F4) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, width)).astype(dtype)


def with_autograd(sizes: Sequence[int]) -> Iterator[Case]:
    """Its Adam, setting up included: by gradients that are there, and of a net on 256 samples."""
    theirs = import_module("autograd.misc.optimizers").adam
    anp, grad = import_module("autograd.numpy"), import_module("autograd").grad
    net, given, data = layers(sizes, float), layers(sizes, float), batch(256, sizes[0], float)
    ends: dict[Any, Any] = {}

    def loss(net: Any, i: int) -> Any:
        x = data
        for w, b in net:
            x = anp.tanh(anp.dot(x, w) + b)
        return anp.mean(x**2)

    def run(adam: Any, gradient: Any) -> Step:
        def loop() -> None:
            ends[adam] = adam(gradient, net, num_iters=LOOP, step_size=1e-3)

        return loop

    def case(what: str, gradient: Any) -> Case:
        ours = schuss.autograd.adam
        return Case(
            what, size_of(net), run(theirs, gradient), run(ours, gradient),
            lambda: (leaves(ends[theirs]), leaves(ends[ours])), 1e-9, LOOP,
        )  # fmt: skip

    yield case("autograd: adam", lambda net, i: given)
    yield case("  iteration, batch of 256", grad(loss))


def with_mygrad(sizes: Sequence[int]) -> Iterator[Case]:
    """MyNN's Adam on tensors that have their gradients, and of a net on 32 samples."""
    mg, adam = import_module("mygrad"), import_module("mynn.optimizers.adam").Adam
    data = batch(32, sizes[0])
    net, own = ([mg.tensor(a) for a in leaves(layers(sizes))] for _ in range(2))

    def backward(net: list[Any]) -> None:
        x = data
        for w, b in zip(net[::2], net[1::2], strict=True):
            x = mg.tanh(mg.matmul(x, w) + b)
        mg.mean(x**2).backward()

    def step() -> None:
        opt.step([p.grad for p in own])

    def their_iteration() -> None:
        backward(net)
        theirs.step()

    def iteration() -> None:
        backward(own)
        step()

    def answers() -> tuple[Arrays, Arrays]:
        return [p.data for p in net], [p.data for p in own]

    theirs = adam(net, learning_rate=1e-3)
    opt = schuss.Adam([p.data for p in own], lr=1e-3)
    backward(net)
    backward(own)
    elements = sum(p.size for p in own)
    yield Case("MyGrad: MyNN's Adam", elements, theirs.step, step, answers)
    yield Case("  iteration, batch of 32", elements, their_iteration, iteration, answers, 1e-3)


def with_jax(sizes: Sequence[int]) -> Iterator[Case]:
    """Adam in a jitted function that is given its arrays; behind the gradient, and within it."""
    jax, jnp = import_module("jax"), import_module("jax.numpy")
    ravel = import_module("jax.flatten_util").ravel_pytree
    data = jnp.array(batch(32, sizes[0]))

    def loss(net: Any) -> Any:
        x = data
        for w, b in net:
            x = jnp.tanh(x @ w + b)
        return (x**2).mean()

    def update(net: Any, m: Any, v: Any, g: Any, t: Any) -> Any:
        m = jax.tree.map(lambda m, g: m + (1 - 0.9) * (g - m), m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + (1 - 0.999) * g * g, v, g)
        step, c = 1e-3 / (1 - 0.9**t), 1 - 0.999**t
        net = jax.tree.map(lambda x, m, v: x - step * m / (jnp.sqrt(v / c) + 1e-8), net, m, v)
        return net, m, v

    def within(net: Any, m: Any, v: Any, t: Any) -> Any:
        return update(net, m, v, jax.grad(loss)(net), t)

    class Theirs:
        def __init__(self, adam: Any, *before: Any) -> None:
            self.adam, self.before, self.t = jax.jit(adam, donate_argnums=(0, 1, 2)), before, 0
            self.net = jax.tree.map(jnp.array, layers(sizes))
            self.m, self.v = (jax.tree.map(jnp.zeros_like, self.net) for _ in range(2))

        def step(self) -> None:
            self.t += 1
            between = [f(self.net) for f in self.before]
            found = self.adam(self.net, self.m, self.v, *between, F4(self.t))
            self.net, self.m, self.v = jax.block_until_ready(found)

    def arrays(net: Any) -> Any:
        return jax.tree.map(np.asarray, net)

    given = jax.tree.map(jnp.array, layers(sizes))
    gradient = jax.jit(jax.grad(loss))
    apart, behind = Theirs(update, lambda net: given), Theirs(update, gradient)
    one, own, mine = Theirs(within), layers(sizes), layers(sizes)
    flat, unravel = ravel(layers(sizes))
    x = np.array(flat)
    of_flat = jax.jit(jax.grad(lambda flat: loss(unravel(flat))))
    opts = [schuss.Adam(params, lr=1e-3) for params in (own, mine, x)]

    def ready(found: Any) -> Any:
        return arrays(jax.block_until_ready(found))

    elements = size_of(own)
    yield Case(
        "JAX: jitted Adam", elements, apart.step, lambda: opts[0].step(arrays(given)),
        lambda: (leaves(arrays(apart.net)), leaves(own)),
    )  # fmt: skip
    yield Case(
        "  behind a jitted gradient", elements, behind.step,
        lambda: opts[1].step(ready(gradient(mine))),
        lambda: (leaves(arrays(behind.net)), leaves(mine)), 1e-3,
    )  # fmt: skip
    yield Case(
        "  in one function; ours: flat", elements, one.step,
        lambda: opts[2].step(ready(of_flat(x))),
        lambda: (leaves(arrays(one.net)), leaves(arrays(unravel(x)))), 1e-3,
    )  # fmt: skip


class FlatAdam:
    """As es_distributed has it: a vector, new arrays in each step, a ratio that is returned."""

    def __init__(self, theta: np.ndarray) -> None:
        self.theta, self.t = theta, 0
        self.m, self.v = np.zeros_like(theta), np.zeros_like(theta)

    def update(self, g: np.ndarray, stepsize: float) -> Any:
        self.t += 1
        a = F4(stepsize * np.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t))
        self.m = F4(0.9) * self.m + F4(0.1) * g
        self.v = F4(0.999) * self.v + F4(0.001) * (g * g)
        step = -a * self.m / (np.sqrt(self.v) + F4(1e-8))
        ratio = np.linalg.norm(step) / np.linalg.norm(self.theta)
        self.theta = self.theta + step
        return ratio


def with_es(size: int) -> Iterator[Case]:
    """A step with a rate of its own and its ratio; then with the sum of slices of a table."""
    rng = np.random.default_rng(0)
    table, weights = rng.standard_normal(size + 1000, F4), rng.standard_normal(SLICES)
    noise = [table[25 * i : 25 * i + size] for i in range(SLICES)]
    g, x = noise[0].copy(), rng.standard_normal(size, F4)
    adam, opt = FlatAdam(x.copy()), schuss.Adam(x, eps_mode="hat")
    narrow = weights.astype(F4)

    def ratio(**gradient: Any) -> Any:
        opt.step(**gradient, lr=1e-3, report=True)
        norms: Any = opt.report
        return norms.update / norms.param

    def answers() -> tuple[Arrays, Arrays]:
        return [adam.theta], [x]

    yield Case("ES: Adam", size, lambda: adam.update(g, 1e-3), lambda: ratio(grads=g), answers)
    yield Case(
        f"  and the sum of {SLICES} slices", size,
        lambda: adam.update(np.dot(narrow, np.stack(noise)), 1e-3),
        lambda: ratio(pieces=noise, weights=weights), answers, 1e-3,
    )  # fmt: skip


def with_tsne(points: int) -> Iterator[Case]:
    """The lines of scikit-learn's descent, of points in the plane."""
    rng = np.random.default_rng(0)
    p, g = rng.standard_normal(2 * points, F4), 1e-3 * rng.standard_normal(2 * points, F4)
    want, gains, update = p.copy(), np.ones_like(p), np.zeros_like(p)
    opt = schuss.DeltaBarDelta(p, preset="tsne")

    def theirs() -> None:
        nonlocal update
        rises = update * g < 0.0
        falls = np.invert(rises)
        gains[rises] += 0.2
        gains[falls] *= 0.8
        np.clip(gains, 0.01, np.inf, out=gains)
        update = 0.8 * update - 200.0 * (g * gains)
        np.add(want, update, out=want)

    yield Case("t-SNE: descent", 2 * points, theirs, lambda: opt.step(g), lambda: ([want], [p]))


CLIENTS: dict[str, tuple[Callable[[Any], Iterator[Case]], tuple[Any, ...]]] = {
    "autograd": (with_autograd, (SMALL, LARGE)),
    "mygrad": (with_mygrad, (SMALL, LARGE)),
    "jax": (with_jax, (SMALL, LARGE)),
    "es": (with_es, (100, 1000, 10_000, 100_000, 1_000_000)),
    "tsne": (with_tsne, (1797, 70_000)),
}


def check(case: Case) -> None:
    """Raises where the two don't arrive at the same place."""
    for _ in range(STEPS):
        case.theirs()
        case.ours()
    for a, b in zip(*case.answers(), strict=True):
        if not np.abs(a - b).max() <= case.near * np.abs(a).max():
            raise ArithmeticError(f"{case.what}: the answers differ")


def report(case: Case, budget: float) -> None:
    theirs, ours = Timed(case.theirs), Timed(case.ours)
    take_turns([theirs, ours], budget)
    before, after = (min(t.warm) / case.steps for t in (theirs, ours))
    print(
        f"{case.what:32}{case.elements:>9}{1e6 * before:>11.1f}{1e6 * after:>11.1f}"
        f"{before / after:>8.2f}{1e9 * after / case.elements:>9.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("client", nargs="*", choices=[*CLIENTS, []], help=", ".join(CLIENTS))
    parser.add_argument("--quick", action="store_true", help="0.1 seconds a case in place of 2")
    options = parser.parse_args()

    print(f"{processor()}, {schuss.show_config()['isa']['chosen']}, numpy {np.__version__}")
    print(f"{'':32}{'elements':>9}{'theirs, us':>11}{'ours, us':>11}{'ratio':>8}{'ours, ns':>9}")
    with processors(1), schuss.threads(1):
        for name in options.client or CLIENTS:
            cases, sizes = CLIENTS[name]
            for size in sizes:
                try:
                    found = list(cases(size))
                except ModuleNotFoundError as error:
                    print(f"absent: {name}: {error.name} is not installed")
                    break
                for case in found:  # before one is timed, which takes as many steps as it can
                    check(case)
                for case in found:
                    report(case, 0.1 if options.quick else 2.0)


if __name__ == "__main__":
    main()
