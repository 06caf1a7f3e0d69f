"""What a step costs that is not the plainest one, in bound AdamW steps of the same arrays.

    python bench/cliffs.py [--seconds 0.2] [--json FILE]

One thread; the six arrays of the digits network, 8970 elements, and 200 arrays of 100. All cases
take turns; the median of a turn counts, and the ratio is to that of t, a bound AdamW step where
nothing changes. Fails where one is above its limit by more than a tenth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import schuss

DIGITS = ((64, 96), (96,), (96, 26), (26,), (26, 10), (10,))
MANY = ((100,),) * 200
Step = Callable[[], Any]


class Case:
    """A step that is repeated, and what it may cost of which other one."""

    def __init__(self, name: str, step: Step, of: str, limit: float, per: int = 1) -> None:
        self.name, self.step, self.of, self.limit, self.per = name, step, of, limit, per
        self.times: list[float] = []


def arrays(shapes: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    made = [rng.standard_normal((2, *s)).astype(np.float32) + 3 for s in shapes]
    return [a[0].copy() for a in made], [a[1].copy() for a in made]


def fresh(shapes: Any, rule: Any = schuss.AdamW, **options: Any) -> Any:
    x, g = arrays(shapes)
    return rule(x, **options), g


def bound(shapes: Any, rule: Any = schuss.AdamW, **options: Any) -> Any:
    x, g = arrays(shapes)
    return rule(x, grads=g, **options)


def setting(opt: Any) -> Step:
    rates = [1e-3, 2e-3]

    def step() -> None:
        rates.reverse()
        opt.lr = rates[0]
        opt.step()

    return step


def group_setting(opt: Any) -> Step:
    rates, group = [1e-3, 2e-3], opt.param_groups[0]

    def step() -> None:
        rates.reverse()
        group["lr"] = rates[0]
        opt.step()

    return step


def nested(count: int) -> tuple[Any, Any]:
    x, g = arrays([(10, 10), (10,)] * count)
    pairs = [[{"w": a[2 * i], "b": a[2 * i + 1]} for i in range(count)] for a in (x, g)]
    opt = schuss.AdamW(pairs[0])
    return opt, pairs[1]


def flat(count: int) -> tuple[Any, Any]:
    x, g = arrays([(10, 10), (10,)] * count)
    opt = schuss.AdamW({str(i): a for i, a in enumerate(x)})
    return opt, {str(i): a for i, a in enumerate(g)}


def turning(pool: list[Any], call: Callable[[Any], Any]) -> Step:
    """Calls with one and the other in turn."""

    def step() -> None:
        pool.reverse()
        call(pool[0])

    return step


def rebound(opt: Any) -> Step:
    own = opt.param_groups[0]["params"]
    return turning([own, [a.copy() for a in own]], opt.rebind)


def given(opt: Any, g: Any, **more: Any) -> Step:
    return lambda: opt.step(g, **more)


def by_key(arrays: tuple[list[np.ndarray], list[np.ndarray]], call: Callable[..., Any]) -> Step:
    """A call for each array with its gradient, under a key of its own."""
    all_of_them = [((i, "W"), x, g) for i, (x, g) in enumerate(zip(*arrays, strict=True))]

    def step() -> None:
        for key, x, g in all_of_them:
            call(key, x, g)

    return step


def cases() -> list[Case]:  # noqa: PLR0915  a list of them
    found: list[Case] = []

    def add(name: str, step: Step, limit: float, of: str = "t", per: int = 1) -> None:
        found.append(Case(name, step, of, limit, per))

    def small(name: str, limit: float, rule: Any = schuss.AdamW, **options: Any) -> None:
        add(name, bound(DIGITS, rule, **options).step, limit)

    x = np.ones(1, np.float32)
    g = np.ones(1, np.float32)
    add("np.add of one element", lambda: np.add(x, g, out=x), 9, "np.add of one element")
    add("SGD of one element", bound([(1,)], schuss.SGD).step, 1.5, "np.add of one element")
    add("AdamW of one element", bound([(1,)]).step, 2.5, "np.add of one element")
    add("t", bound(DIGITS).step, 1)
    add("lr set", setting(bound(DIGITS)), 1.5)
    add("lr set in a group", group_setting(bound(DIGITS)), 1.5)
    opt, grads = fresh(DIGITS)
    add("lr of the step", given(opt, grads, lr=np.float64(1e-3)), 1.5)
    small("schedule", 1.5, lr=lambda n: 1e-3 / (1 + n))
    add("loss=", given(bound(DIGITS), None, loss=1.0), 1.5)
    add("grad_scale=", given(bound(DIGITS), None, grad_scale=8.0), 1.5)
    x6, g6 = arrays(DIGITS)
    two = schuss.AdamW([{"params": x6[:3]}, {"params": x6[3:], "lr": 1e-4}], grads=[g6[:3], g6[3:]])
    add("two groups", two.step, 1.5)
    one, lone = arrays([(8970,)])
    add("lone array", given(schuss.AdamW(one[0]), lone[0]), 1.5)
    opt, grads = fresh(DIGITS)
    add("a None gradient", given(opt, [*grads[:5], None]), 1.5)
    add("nested gradients", given(*nested(3)), 1.5)
    small("NAdam", 1.5, schuss.NAdam)
    small("ScheduleFreeAdamW", 1.5, schuss.ScheduleFreeAdamW)
    small("clip_norm", 1.5, clip_norm=1.0)
    small("ema", 1.5, ema=0.99)
    small("cautious", 3, cautious="mean")
    small("LAMB", 3, schuss.LAMB)
    small("Prodigy", 4, schuss.Prodigy)
    small("Muon", 12, schuss.Muon)
    opt, grads = fresh(DIGITS)
    add("rebind", rebound(opt), 3)
    m, v = np.zeros(4096, np.float32), np.zeros(4096, np.float32)
    xf, gf = np.ones(4096, np.float32), np.full(4096, 0.5, np.float32)
    add("kernel of 4096", bound([(4096,)], weight_decay=0.01).step, 9, "kernel of 4096")
    call = schuss.functional.adamw
    add("functional of 4096", lambda: call(xf, gf, m, v, step=7, lr=1e-3), 9, "kernel of 4096")

    keyed = schuss.Keyed(schuss.AdamW, lr=1e-3)
    add("keyed of one element", lambda: keyed("x", x, g, 1e-3), 3, "np.add of one element")
    of = "20 np.add of 64"
    add(of, by_key(arrays([(64,)] * 20), lambda key, x, g: np.add(x, g, out=x)), 9, of)
    keyed20 = schuss.Keyed(schuss.AdamW)
    step20 = by_key(arrays([(64,)] * 20), lambda key, x, g: keyed20(key, x, g, 1e-3))
    add("20 keys of 64 in turn", step20, 3.5, of)

    opt, grads = fresh(MANY)
    add("200 arrays: the same gradients", given(opt, grads), 1, "200 arrays: the same gradients")
    of = "200 arrays: the same gradients"
    opt, grads = fresh(MANY)
    pool = [grads, [a.copy() for a in grads]]
    add("200 arrays: fresh gradients", turning(pool, opt.step), 2, of)
    add("200 arrays: lr set", setting(bound(MANY)), 1.3, of)
    x2, g2 = arrays(MANY)
    each = schuss.AdamW([{"params": [a]} for a in x2], grads=[[a] for a in g2])
    add("200 arrays: a group for each", each.step, 4, of)
    opt200, _ = fresh(MANY)
    add("200 arrays: rebind", rebound(opt200), 4, of)
    add("200 arrays: opt.state[7]", lambda: opt200.state[7], 1, of)
    add("100 layers of two, flat", given(*flat(100)), 1, "100 layers of two, flat")
    add("100 layers of two, nested", given(*nested(100)), 1.5, "100 layers of two, flat")
    return found


def measure(found: list[Case], seconds: float) -> None:
    for case in found:
        for _ in range(120):
            case.step()
    rounds = 15
    for r in range(rounds):
        for case in found[r % len(found) :] + found[: r % len(found)]:
            for _ in range(3):
                case.step()
            end, turn = time.perf_counter() + seconds / rounds, []
            while (now := time.perf_counter()) < end:
                for _ in range(5):
                    case.step()
                turn.append((time.perf_counter() - now) / 5)
            case.times.append(statistics.median(turn))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.2, help="of each case")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with schuss.threads(1):
        found = cases()
        measure(found, args.seconds)
    times = {case.name: 1e6 * statistics.median(case.times) for case in found}
    failed = False
    print(f"{'':<34}{'us':>9}{'ratio':>8}{'limit':>7}  of")
    for case in found:
        ratio = times[case.name] / times[case.of]
        over = case.limit > 1 and ratio > 1.1 * case.limit
        failed |= over
        row = f"{case.name:<34}{times[case.name]:>9.2f}{ratio:>8.2f}{case.limit:>7.1f}  {case.of}"
        print(row + ("   ABOVE" if over else ""))
    extra = (times["functional of 4096"] - times["kernel of 4096"]) / times["np.add of one element"]
    print(f"functional: {extra:.1f} np.add above a bound step of the same array (limit 5)")
    if args.json:
        args.json.write_text(json.dumps(times, indent=1))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
