"""Steps of PyTorch's tensors on the CPU: `python bench/pytorch.py [--quick]`.

Each model's gradients are made once, by a backward pass; then PyTorch's AdamW, by a loop over
tensors (`foreach=False`), `foreach` and `fused`, and that of schuss.torch step copies of it in
turn, on one thread. A scheduler sets the learning rate before every step; its own time, the same
for all, is left out. After ten steps all must have the same weights, to rounding.

Offload: weights and gradients in bfloat16, as on another device, and everything else on the CPU.
DeepSpeed's CPU Adam has them widened to float32, steps, and rounds the weights in a pass of its
own, as its ZeRO-Offload does; ours reads and writes the 16 bits in the step.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch

import schuss
import schuss.torch
from schuss.lab.bench.report import processor

LR = 1e-3
STEPS = 10  # before answers are compared
TURNS = 15


# ---- Models


def mlp() -> torch.nn.Module:
    """Six arrays, 8970 elements, as a small network for digits."""
    layers = torch.nn
    return layers.Sequential(
        *(layers.Linear(64, 64), layers.Tanh(), layers.Linear(64, 64), layers.Tanh()),
        layers.Linear(64, 10),
    )


def transformer() -> torch.nn.Module:
    """Six layers, 76 arrays, 1.2 million elements."""
    layer = torch.nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
    body = torch.nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    return torch.nn.Sequential(torch.nn.Linear(64, 128), body, torch.nn.Linear(128, 64, bias=True))


def with_gradients(make: Callable[[], torch.nn.Module], inputs: torch.Tensor) -> torch.nn.Module:
    torch.manual_seed(0)
    model = make()
    model(inputs).square().mean().backward()
    return model


MODELS = {
    "MLP": partial(with_gradients, mlp, torch.ones(8, 64)),
    "transformer": partial(with_gradients, transformer, torch.ones(2, 8, 64)),
}

Make = Callable[[Any], torch.optim.Optimizer]
RIVALS: dict[str, Make] = {
    "schuss": partial(schuss.torch.AdamW, lr=LR),
    "fused": partial(torch.optim.AdamW, lr=LR, fused=True),
    "foreach": partial(torch.optim.AdamW, lr=LR, foreach=True),
    "loop": partial(torch.optim.AdamW, lr=LR, foreach=False),
}


class Contestant(NamedTuple):
    step: Callable[[], object]
    answer: Callable[[], torch.Tensor]  # the weights, one after the other
    before: Callable[[], object] = lambda: None  # each step, and not timed


def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([x.detach().flatten().float() for x in tensors])


def twin(model: torch.nn.Module, make: Make) -> Contestant:
    """A copy of the model, with the same gradients and an optimizer of its own."""
    own = copy.deepcopy(model)
    for x, other in zip(own.parameters(), model.parameters(), strict=True):
        x.grad = None if other.grad is None else other.grad.clone()
    opt = make(list(own.parameters()))
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.999 ** (step % 100))
    return Contestant(opt.step, lambda: flat(list(own.parameters())), schedule.step)


# ---- Offload


class Away(schuss.torch.Offload):
    """Weights on the CPU as if they were on another device."""

    def _is_elsewhere(self, x: torch.Tensor) -> bool:
        return True


def half_model(elements: int) -> list[torch.Tensor]:
    """Matrices of a million elements in bfloat16, with gradients."""
    torch.manual_seed(0)
    rows = [1024] * max(1, elements >> 20)
    found = [torch.nn.Parameter(torch.randn(n, 1024).bfloat16() / 32) for n in rows]
    for x in found:
        x.grad = torch.randn_like(x)
    return found


def ours(kind: type[Any], options: dict[str, Any], elements: int) -> Contestant:
    x = half_model(elements)
    return Contestant(kind(x, schuss.AdamW, lr=LR, **options).step, partial(flat, x))


def deepspeed(elements: int) -> Contestant:
    adam: Any = importlib.import_module("deepspeed.ops.adam").DeepSpeedCPUAdam
    x = half_model(elements)
    masters = [torch.nn.Parameter(a.detach().float()) for a in x]
    for master in masters:
        master.grad = torch.empty_like(master)
    opt = adam(masters, lr=LR, weight_decay=1e-2, adamw_mode=True)

    def step() -> None:
        for a, master in zip(x, masters, strict=True):
            master.grad.copy_(a.grad)
        opt.step()
        for a, master in zip(x, masters, strict=True):
            a.detach().copy_(master.detach())

    return Contestant(step, partial(flat, x))


REMAINDER = {"master": "remainder"}
OFFLOADS: dict[str, Callable[[int], Contestant]] = {
    "DeepSpeed": deepspeed,
    "float32 master and state": partial(ours, Away, {}),
    "remainder, state bfloat16": partial(ours, Away, REMAINDER | {"state_dtype": "bfloat16"}),
    "remainder, state blockfloat8": partial(ours, Away, REMAINDER | {"state_dtype": "blockfloat8"}),
    "weights here: float32 master": partial(ours, schuss.torch.Offload, {}),
    "weights here: remainder, bfloat16": partial(
        ours, schuss.torch.Offload, REMAINDER | {"state_dtype": "bfloat16"}
    ),
}


# ---- In turn


def checked(
    made: Mapping[str, Callable[[], Contestant]], near: float
) -> Iterator[tuple[str, Contestant]]:
    """Those that can take part, after their first steps."""
    wanted: torch.Tensor | None = None
    for name, make in made.items():
        try:
            one = make()
        except ImportError as error:
            print(f"absent: {name}: {error}")
            continue
        start = one.answer().clone()
        for _ in range(STEPS):
            one.step()
            one.before()
        answer = one.answer().clone()
        wanted = answer if wanted is None else wanted
        off = ((answer - wanted).abs().mean() / (wanted - start).abs().mean()).item()
        if not off <= near:
            raise SystemExit(f"{name}: its answer is off by {off:.3f} of the way")
        yield name, one


def timed(one: Contestant, repeats: int) -> float:
    """Seconds of a step, the mean of some."""
    took = 0.0
    for _ in range(repeats):
        one.before()
        begin = perf_counter()
        one.step()
        took += perf_counter() - begin
    return took / repeats


def seconds(teams: dict[str, Contestant], budget: float) -> dict[str, float]:
    """Of the median step of each, in turn."""
    longest = sum(timed(one, 1) for one in teams.values())
    repeats = max(1, math.ceil(budget / TURNS / longest))
    times: dict[str, list[float]] = {name: [] for name in teams}
    for _ in range(TURNS):
        for name, one in teams.items():
            times[name].append(timed(one, repeats))
    return {name: median(t) for name, t in times.items()}


def show(times: dict[str, float], elements: int, base: str) -> None:
    if base not in times:
        base = next(iter(times))
    print(f"{'':34} {'us':>9} {'ns/element':>11} {f'of {base}':>14}")
    for name, took in times.items():
        ns = 1e9 * took / elements
        print(f"{name:34} {1e6 * took:9.1f} {ns:11.3f} {took / times[base]:14.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--elements", type=int, nargs="+", default=[1 << 20, 1 << 25])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    print(f"{processor()}, {schuss.show_config()['isa']['chosen']}, PyTorch {torch.__version__}")
    budget = 0.2 if args.quick else 4.0
    schuss.set_num_threads(1)
    torch.set_num_threads(1)
    for name, make in MODELS.items():
        model = make()
        sizes = [x.numel() for x in model.parameters()]
        rivals = {rival: partial(twin, model, own) for rival, own in RIVALS.items()}
        times = seconds(dict(checked(rivals, 1e-5)), budget)
        print(f"\n{name}: {len(sizes)} tensors, {sum(sizes)} elements, one thread")
        show(times, sum(sizes), "schuss")
    for elements in args.elements[: 1 if args.quick else None]:
        teams = dict(checked({k: partial(make, elements) for k, make in OFFLOADS.items()}, 0.2))
        for threads in args.threads:
            schuss.set_num_threads(threads)
            torch.set_num_threads(threads)
            print(f"\nOffload, {elements} elements in bfloat16, threads: {threads}")
            show(seconds(teams, budget), elements, "DeepSpeed")


if __name__ == "__main__":
    main()
