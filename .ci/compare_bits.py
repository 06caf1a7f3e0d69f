"""Do two builds leave the same bits? `compare_bits.py BUILD OTHER`, as by two compilers.

Both hold a build of CMakeLists.txt with its target `kernels` (bench/kernels.cpp), which takes three
steps in each case here with each instruction set that the processor has: every rule with every kind
of storage, and stages around a few of them. All sets of both builds have to leave the same bits;
where they don't, the cases are named.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

# The kinds of parameter, gradient and state.
STORED = [
    *((kind, kind, kind) for kind in ("float32", "float64", "float16", "bfloat16")),
    *(("float32", "float32", half) for half in ("float16", "bfloat16")),
    *(("float32", half, "float32") for half in ("float16", "bfloat16")),
    ("float32", "float32", "blockfloat8"),
    ("remainder", "bfloat16", "blockfloat8"),
    ("remainder", "float32", "bfloat16"),
    ("float16", "bfloat16", "blockfloat8"),
]
STAGES = [
    "clip=1",
    "l2=0.1",
    "l1=1e-4",
    "l1=0.1,l2=0.1,clip=1",
    "agree=2",
    "agree=0.5,oppose=0",
    "masked=1,keep=0.9",
    "after=0.9",
    "threshold=0.01",
    "low=-2,high=2",
    "average=1e-3",
    "average=1",
    "zero_grad=1",
    "stochastic=1,key=7",
    "scale=-0.3,keep=0.99,flush=1",
]
STAGED = ("sgd", "adam", "lion")
ELEMENTS = (3, 97, 1100)  # and a tail of 13: no whole block, and several


def cases() -> Iterator[str]:
    source = (ROOT / "cpp" / "core" / "rules.hpp").read_text()
    rules = re.findall(r"^  rule\((\w+)\)", source, re.MULTILINE)
    for n in ELEMENTS:
        for x, g, state in STORED:
            yield from (f"{rule} - {x} {g} {state} - {n}" for rule in rules)
            yield from (f"{r} - {x} {g} {state} {stage} {n}" for stage in STAGES for r in STAGED)


def isas(build: Path) -> dict[str, list[str]]:
    """The instruction sets that are `compiled`, and those `found` in this processor."""
    listed = subprocess.run(build / "kernels", check=True, stdout=subprocess.PIPE, text=True)
    return {what: names for what, *names in map(str.split, listed.stdout.splitlines())}


def answers(build: Path, isa: str, asked: list[str]) -> list[str]:
    """A hash a case of what it leaves."""
    done = subprocess.run(
        [build / "kernels", isa],
        check=True,
        input="".join(f"case {case}\n" for case in asked),
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout.split()


def main() -> int:
    builds = [Path(build).resolve() for build in sys.argv[1:]]
    first, asked = isas(builds[0]), list(cases())
    for isa in first["compiled"]:
        if isa not in first["found"]:
            print(f"NOT RUN: {isa} (this processor lacks it)")
    wanted = answers(builds[0], first["found"][0], asked)
    wrong = 0
    for isa in first["found"]:
        for build in builds:
            for case, own, other in zip(asked, answers(build, isa, asked), wanted, strict=True):
                if own != other:
                    wrong += 1
                    print(f"WRONG: {isa} in {build}: {case}")
    print(f"{len(asked)} cases, {', '.join(first['found'])}: {wrong} differ")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
