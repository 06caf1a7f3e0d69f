"""Steps by the rows of a table: `python bench/rows.py [RULE ...] [--rows N] [--width N ...]`.

Each step has gradients for 1 % of the rows of a float32 table, other rows every time, in random
order, none twice. All contestants step in the same memory and take turns, and those that step the
same have to give the same answer first. README.md explains the table. Whole iterations follow: an
EmbeddingBag, and the factors of a matrix.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

import schuss
from schuss.engine.memory import FREE, room
from schuss.lab.bench.clock import Timed, take_turns
from schuss.lab.bench.report import processor

POOL = 16  # sets of rows, so that no step finds its own in a cache
SMALL = 2000  # rows of the table on which answers are checked
STEPS = 3  # before answers are compared
BAG = 10  # rows of a bag

Answer = list[np.ndarray]
Pair = tuple[np.ndarray, np.ndarray]

# Moves the rows that steps move, of as many arrays, with as little arithmetic as leaves second
# moments positive. `ahead` rows are fetched early; all sets in one call, for a thread takes as long
# to start as some rows to move.
MOVE = r"""
#include <barrier>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

namespace {
void some(float** arrays, int count, const int64_t* index, const float* values, int64_t first,
          int64_t last, int64_t width, int64_t ahead) {
  for (int64_t k = first; k < last; ++k) {
    if (k + ahead < last)
      for (int a = 0; a < count; ++a)
        for (int64_t c = 0; c < width; c += 16)
          __builtin_prefetch(arrays[a] + index[k + ahead] * width + c, 1);
    for (int a = 0; a < count; ++a) {
      float* __restrict row = arrays[a] + index[k] * width;
      const float* value = values + k * width;
      for (int64_t c = 0; c < width; ++c) row[c] += std::fabs(value[c]);
    }
  }
}
}  // namespace

extern "C" void move_rows(float** arrays, int count, int sets, const int64_t** index,
                          const float** values, int64_t rows, int64_t width, int64_t ahead,
                          int threads) {
  std::barrier meet(threads);
  auto part = [&](int t) {
    for (int s = 0; s < sets; ++s) {
      some(arrays, count, index[s], values[s], rows * t / threads, rows * (t + 1) / threads, width,
           ahead);
      meet.arrive_and_wait();
    }
  };
  std::vector<std::thread> team;
  for (int t = 1; t < threads; ++t) team.emplace_back(part, t);
  part(0);
  for (std::thread& one : team) one.join();
}
"""
AHEAD = 8

MOVED, DENSE = "rows moved", "dense, zeros elsewhere"


def compiled() -> Any:
    """The function `move_rows`."""
    with TemporaryDirectory() as folder:
        source, library = Path(folder) / "rows.cpp", Path(folder) / "rows.so"
        source.write_text(MOVE)
        flags = ("-std=c++20", "-O3", "-march=native", "-shared", "-fPIC", "-pthread")
        subprocess.run(["c++", *flags, source, "-o", library], check=True)
        return ctypes.CDLL(str(library)).move_rows


class Rule(NamedTuple):
    """A rule here, and the class in PyTorch that takes sparse gradients to the same numbers."""

    make: type[schuss.Optimizer]
    options: dict[str, Any]
    theirs: str

    @property
    def name(self) -> str:
        return self.make.__name__

    def torch(self, tensors: list[Any]) -> Any:
        optim: Any = importlib.import_module("torch").optim
        return getattr(optim, self.theirs)(tensors, lr=self.options["lr"])


RULES = {
    rule.name: rule
    for rule in (
        Rule(schuss.AdamW, {"lr": 1e-3, "weight_decay": 0.0}, "SparseAdam"),
        Rule(schuss.SGD, {"lr": 1e-3}, "SGD"),
        Rule(schuss.Adagrad, {"lr": 1e-2}, "Adagrad"),
    )
}


# ---- The table


def away_from_zero(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Gradients at which it doesn't count where a rule has its eps, nor that numbers get small."""
    g: np.ndarray = rng.uniform(0.5, 1.5, shape) * rng.choice((-1, 1), shape)
    return g.astype(np.float32)


class Table:
    """Parameters and state in one memory, for whoever steps, and the work of the coming steps."""

    def __init__(self, rule: Rule, rows: int, width: int, share: float) -> None:
        rng = np.random.default_rng(0)
        self.rule, self.touched = rule, max(1, int(rows * share))
        self.x = rng.standard_normal((rows, width), np.float32)
        states = rule.make([np.zeros(1, np.float32)], **rule.options)._parameters[0].state
        self.state = {
            name: room(self.x, np.float32, place) for place, name in enumerate(states, start=FREE)
        }
        for a in self.state.values():
            a.fill(0)  # or a step would find pages that were never touched
        self.work: list[Pair] = [
            (
                rng.permutation(rows)[: self.touched],
                away_from_zero(rng, (self.touched, width)),
            )
            for _ in range(POOL)
        ]

    @property
    def arrays(self) -> Answer:
        return [self.x, *self.state.values()]

    @property
    def moved(self) -> int:
        """Bytes of a step: gradients read, parameters and state read and written."""
        return self.work[0][1].nbytes * (1 + 2 * len(self.arrays))

    def in_turn(self) -> Callable[[], Pair]:
        return partial(next, cycle(self.work))

    def optimizer(self, rows: slice = slice(None), **options: Any) -> schuss.Optimizer:
        """One whose state is that of these rows."""
        opt = self.rule.make([self.x[rows]], **self.rule.options, **options)
        (p,) = opt._parameters
        p.state = {name: a[rows] for name, a in self.state.items()}
        opt._register_anew()
        return opt


Step = Callable[[], object]


def by_rows(table: Table, **options: Any) -> Step:
    opt, work = table.optimizer(**options), table.in_turn()
    return lambda: opt.step([schuss.Rows(*work())])


def warm(table: Table) -> Step:
    """As many elements side by side, the same in each step."""
    return table.optimizer(slice(table.touched), grads=[table.work[0][1]]).step


def cold(table: Table) -> Step:
    """As many elements side by side, others in each step, until the whole table is through."""
    n = table.touched
    grads = cycle([values for _, values in table.work])
    parts = [slice(first, first + n) for first in range(0, len(table.x) - n + 1, n)]
    steps = cycle([table.optimizer(part, grads=[next(grads)]).step for part in parts])

    def step() -> None:
        next(steps)()

    return step


def pointers(arrays: Answer) -> Any:
    return (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))


def moving(table: Table, move: Any, threads: int, *, ascending: bool) -> Step:
    """The rows of all steps, with next to no arithmetic: what the memory gives."""
    index = [np.sort(index) if ascending else index for index, _ in table.work]
    values = [values for _, values in table.work]
    sets = len(table.work), pointers(index), pointers(values)
    shape = map(ctypes.c_int64, (*values[0].shape, AHEAD))
    call = partial(move, pointers(table.arrays), len(table.arrays), *sets, *shape, threads)

    def step(_: list[np.ndarray] = index) -> None:  # which keeps them alive
        call()

    return step


def by_hand(table: Table) -> Step:
    """Rows gathered, stepped by a stateless call, and scattered."""
    call, work = getattr(schuss.functional, table.rule.name.lower()), table.in_turn()
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        index, values = work()
        x, *state = parts = [a[index] for a in table.arrays]
        call(x, values, *state, step=count, **table.rule.options)
        for a, part in zip(table.arrays, parts, strict=True):
            a[index] = part

    return step


def dense(table: Table) -> Step:
    """A gradient of the whole table, zero where there is none."""
    g = np.zeros_like(table.x)
    opt, work = table.optimizer(grads=[g]), table.in_turn()

    def step() -> None:
        index, values = work()
        g[index] = values
        opt.step()
        g[index] = 0

    return step


def with_torch(table: Table) -> Step:
    torch: Any = importlib.import_module("torch")
    x = torch.nn.Parameter(torch.from_numpy(table.x))
    opt = table.rule.torch([x])
    if table.state:
        step_at = opt.state[x].get("step", 0)
        opt.state[x] = {name: torch.from_numpy(a) for name, a in table.state.items()}
        opt.state[x]["step"] = step_at
    torch.sparse.check_sparse_tensor_invariants.disable()  # explicitly, or it warns
    sparse = partial(torch.sparse_coo_tensor, size=x.shape)
    work = cycle([tuple(map(torch.from_numpy, pair)) for pair in table.work])

    def step() -> None:
        index, values = next(work)
        x.grad = sparse(index[None], values)
        opt.step()

    return step


# ---- Answers


def after(make: Callable[[Table], Step], rule: Rule, width: int) -> Answer:
    """What a contestant makes of a small table."""
    table = Table(rule, SMALL, width, 0.05)
    step = make(table)
    for _ in range(STEPS):
        step()
    return table.arrays


def check(rule: Rule, width: int, others: dict[str, Callable[[Table], Step]]) -> None:
    """Stops where the bits differ, or the numbers of others; leaves no other that is absent."""
    wanted = after(by_rows, rule, width)
    same: dict[str, Callable[[Table], Step]] = {
        "reference": partial(by_rows, backend="numpy"),
        "gathered by hand": by_hand,
    }
    for name, make in same.items():
        got = after(make, rule, width)
        if any(a.tobytes() != b.tobytes() for a, b in zip(wanted, got, strict=True)):
            sys.exit(f"{rule.name}: rows and {name} differ")
    for name, make in list(others.items()):
        try:
            got = after(make, rule, width)
        except ImportError as error:
            print(f"absent: {name}: {error}")
            del others[name]
            continue
        if not all(np.allclose(a, b, 1e-5, 1e-6) for a, b in zip(wanted, got, strict=True)):
            sys.exit(f"{rule.name}: rows and {name} differ")


def check_moving(move: Any, rule: Rule, width: int) -> None:
    """What is read of each gradient is added once to its row of each array."""
    table = Table(rule, SMALL, width, 0.05)
    for ascending, threads in ((False, 1), (True, 2)):
        wanted = [a.copy() for a in table.arrays]
        moving(table, move, threads, ascending=ascending)()
        for a, was in zip(table.arrays, wanted, strict=True):
            for index, values in table.work:
                was[np.sort(index) if ascending else index] += np.abs(values)
            if a.tobytes() != was.tobytes():
                sys.exit("the kernel that moves rows does something else")


# ---- The tables


def threads_of_all(number: int) -> None:
    schuss.set_num_threads(number)
    with suppress(ImportError):
        importlib.import_module("torch").set_num_threads(number)


def steps(
    rule: Rule, rows: int, width: int, share: float, threads: int, budget: float, move: Any
) -> None:
    others: dict[str, Callable[[Table], Step]] = {f"torch, {rule.theirs}": with_torch}
    check(rule, width, others)
    check_moving(move, rule, width)
    table = Table(rule, rows, width, share)
    contestants = {
        "rows": Timed(by_rows(table)),
        "contiguous, in cache": Timed(warm(table)),
        "contiguous, in memory": Timed(cold(table)),
        MOVED: Timed(moving(table, move, threads, ascending=False)),
        f"{MOVED}, ascending": Timed(moving(table, move, threads, ascending=True)),
        "gathered by hand": Timed(by_hand(table)),
        **{name: Timed(make(table)) for name, make in others.items()},
    }
    take_turns(list(contestants.values()), budget)
    contestants[DENSE] = Timed(dense(table))
    contestants[DENSE].turn()

    elements = table.touched * width
    print(f"\n{rule.name}, {table.touched} rows of {rows} x {width}, threads: {threads}")
    print(f"{'':28}{'us':>10}{'ns/elem':>9}{'GB/s':>7}{'over rows':>11}")
    ours = contestants["rows"].seconds
    for name, one in contestants.items():
        t = one.seconds / (len(table.work) if name.startswith(MOVED) else 1)
        moved = table.moved * (rows / table.touched if name == DENSE else 1)
        cells = f"{1e9 * t / elements:>9.3f}{moved / t / 1e9:>7.1f}{t / ours:>11.2f}"
        print(f"{name:28}{1e6 * t:>10.1f}{cells}", flush=True)


# ---- Whole iterations


class Loop(NamedTuple):
    """An iteration, and the arrays that it trains."""

    step: Step
    answer: Answer


Loops = Iterator[tuple[str, Loop]]


def bags(rule: Rule, rows: int, width: int, touched: int) -> Loops:
    """Sums of rows, a gradient of each sum, and the step: here, and by nn.EmbeddingBag."""
    rng = np.random.default_rng(1)
    table = rng.standard_normal((rows, width), np.float32)
    work = [rng.integers(rows, size=(touched // BAG, BAG)) for _ in range(POOL)]

    x, own = table.copy(), cycle(work)
    opt = rule.make([x], **rule.options)

    def step() -> None:
        index = next(own)
        out = x[index].sum(axis=1)
        opt.step([schuss.Rows(index.ravel(), np.repeat(out, BAG, axis=0))])

    yield "rows", Loop(step, [x])

    torch: Any = importlib.import_module("torch")
    bag = torch.nn.EmbeddingBag.from_pretrained(
        torch.from_numpy(table.copy()), freeze=False, mode="sum", sparse=True
    )
    theirs, indices = rule.torch([bag.weight]), cycle([*map(torch.from_numpy, work)])

    def torch_step() -> None:
        out = bag(next(indices))
        bag.weight.grad = None
        out.backward(out.detach())
        theirs.step()

    yield f"EmbeddingBag, {rule.theirs}", Loop(torch_step, [bag.weight.detach().numpy()])


def factors(rule: Rule, rows: int, width: int, touched: int) -> Loops:
    """Factors of a matrix from some of its elements, whose rows and columns occur twice, too."""
    rng = np.random.default_rng(2)
    shapes = {"users": (rows, width), "items": (rows // 4, width)}
    scale = np.float32(width**-0.5)
    begin = {k: scale * rng.standard_normal(s, np.float32) for k, s in shapes.items()}
    work = [
        (
            rng.integers(rows, size=touched),
            rng.integers(rows // 4, size=touched),
            rng.standard_normal(touched, np.float32),
        )
        for _ in range(POOL)
    ]

    def gradients(params: dict[str, np.ndarray], pool: Iterator[Any]) -> dict[str, Pair]:
        user, item, rating = next(pool)
        p, q = params["users"][user], params["items"][item]
        off = (np.einsum("ij,ij->i", p, q) - rating)[:, None]
        return {"users": (user, off * q), "items": (item, off * p)}

    def ours() -> Loop:
        params, pool = {k: a.copy() for k, a in begin.items()}, cycle(work)
        opt = rule.make(params, **rule.options)

        def step() -> None:
            found = gradients(params, pool)
            opt.step({name: schuss.Rows(*pair) for name, pair in found.items()})

        return Loop(step, [*params.values()])

    def hand() -> Loop:
        params, pool = {k: a.copy() for k, a in begin.items()}, cycle(work)
        call = getattr(schuss.functional, rule.name.lower())
        kept = rule.make(params, **rule.options)
        state = {k: [*p.state.values()] for k, p in zip(params, kept._parameters, strict=True)}
        count = 0

        def step() -> None:
            nonlocal count
            count += 1
            for name, (index, values) in gradients(params, pool).items():
                unique, place = np.unique(index, return_inverse=True)
                g = np.zeros((len(unique), width), np.float32)
                np.add.at(g, place, values)
                arrays = [params[name], *state[name]]
                x, *own = parts = [a[unique] for a in arrays]
                call(x, g, *own, step=count, **rule.options)
                for a, part in zip(arrays, parts, strict=True):
                    a[unique] = part

        return Loop(step, [*params.values()])

    def torch_loop() -> Loop:
        torch: Any = importlib.import_module("torch")
        embedding = partial(torch.nn.Embedding.from_pretrained, freeze=False, sparse=True)
        tables = [embedding(torch.from_numpy(a.copy())) for a in begin.values()]
        opt = rule.torch([t.weight for t in tables])
        pool = cycle([tuple(map(torch.from_numpy, one)) for one in work])

        def step() -> None:
            user, item, rating = next(pool)
            for t in tables:
                t.weight.grad = None
            off = (tables[0](user) * tables[1](item)).sum(1) - rating
            (0.5 * off * off).sum().backward()
            opt.step()

        return Loop(step, [t.weight.detach().numpy() for t in tables])

    yield "rows", ours()
    yield "gathered by hand", hand()
    yield f"torch, {rule.theirs}", torch_loop()


def iterations(title: str, made: Loops, budget: float) -> None:
    """Checks the answers of all that can take part, and prints their times."""
    teams: dict[str, Timed] = {}
    wanted: Answer = []
    with suppress(ImportError):  # steps have said what is absent
        for name, loop in made:
            start = [a.copy() for a in loop.answer]
            for _ in range(STEPS):
                loop.step()
            wanted = wanted or [a.copy() for a in loop.answer]
            for was, want, got in zip(start, wanted, loop.answer, strict=True):
                if not np.abs(got - want).mean() <= np.abs(want - was).mean() / 1000:
                    sys.exit(f"{title}: rows and {name} differ")
            teams[name] = Timed(loop.step)
    take_turns(list(teams.values()), budget)
    print(f"\n{title}\n{'':28}{'us':>10}{'over rows':>11}")
    for name, team in teams.items():
        ratio = team.seconds / teams["rows"].seconds
        print(f"{name:28}{1e6 * team.seconds:>10.1f}{ratio:>11.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rule", nargs="*", choices=[*RULES, []], help=", ".join(RULES))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, nargs="+", default=[64])
    parser.add_argument("--share", type=float, default=0.01, help="of the rows, in a step")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=3.0, help="of a table")
    asked = parser.parse_args()

    print(f"{processor()}, {schuss.show_config()['isa']['chosen']}, numpy {np.__version__}")
    move = compiled()
    for name in asked.rule or RULES:
        rule = RULES[name]
        for width in asked.width:
            for threads in asked.threads:
                threads_of_all(threads)
                steps(rule, asked.rows, width, asked.share, threads, asked.seconds, move)
                size, touched = f"{asked.rows} x {width}", int(asked.rows * asked.share)
                for what, make in (("sums of rows", bags), ("factors of a matrix", factors)):
                    loops = make(rule, asked.rows, width, touched)
                    iterations(f"{name}, {what}, {size}, threads: {threads}", loops, asked.seconds)


if __name__ == "__main__":
    main()
