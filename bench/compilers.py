"""Kernels by other compilers, or of other commits, beside one another: `python bench/compilers.py
COMPILER ... [--at COMMIT ...]`.

Builds the core with each compiler, of this checkout and of each commit, without Python. All have to
give the same bits before they are timed, in turns. README.md explains the table.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent.parent

# Each build is linked several times, its code shifted by so many bytes: where a loop lies within
# cache lines is the linker's doing, and can change its time by half. So many rounds with each.
SHIFTS, ROUNDS = (16, 32, 48, 64), 12

# The scalars of some rules in the order of cpp/core/rules.hpp, as a step amid a training has them.
# Other rules have 1/2 for each.
SCALARS = {
    "sgd": (1e-3,),
    "momentum": (0.9, 1, 1e-3),
    "adadelta": (0.9, 0.1, 1e-6, 1e-3),
    "adam": (0.1, 0.999, 1e-3, 1e-3, 1, 1e-8),
    "amsgrad": (0.1, 0.999, 1e-3, 1, 1e-3, 1, 0, 1, 0, 1e-8, -1, 0),
    "adopt": (10, 1e-6, 0.1, 0.999, 1e-3, 1e-3),
    "lion": (0.1, 0.01, 1e-3),
    "rprop": (1, 0.5, 1.2, 1e-6, 50, 0),
    "lamb": (0.1, 0.999, 1e-3, 1e-3, 1, 1e-6, 0.01, 1),
    "prodigy": (0, 1e-3, 0.1, 0.999, 1e-3, 0.999, 1e-3, 1e-3, 1e-8),
}
STAGES = {
    "clip": "clip=1",
    "l1": "l1=1e-4",
    "average": "average=1e-3",
    "bounds": "low=-2,high=2",
    "zero_grad": "zero_grad=1",
}


@dataclass(frozen=True)
class Case:
    rule: str
    x: str = "float32"
    g: str = "float32"
    state: str = "float32"
    stage: str = ""

    def __str__(self) -> str:
        kinds = dict.fromkeys((self.x, self.g, self.state))
        if len(kinds) == 1:
            stored = "" if self.x == "float32" else f", all {self.x}"
        else:
            stored = "".join(
                f", {what} {kind}"
                for what, kind in (("x", self.x), ("g", self.g), ("state", self.state))
                if kind != "float32"
            )
        return self.rule + stored + (f", {self.stage}" if self.stage else "")

    def command(self, elements: int) -> str:
        scalars = ",".join(map(str, SCALARS.get(self.rule, "-")))
        stages = STAGES[self.stage] if self.stage else "-"
        return f"case {self.rule} {scalars} {self.x} {self.g} {self.state} {stages} {elements}"


STORED = [
    Case("adam", state="bfloat16"),
    Case("adam", "bfloat16", "bfloat16", "bfloat16"),
    Case("adam", state="float16"),
]


# ---- Builds


@dataclass(frozen=True)
class Build:
    compiler: str
    commit: str  # or "", this checkout
    programs: list[Path]  # one a shift

    def __str__(self) -> str:
        return f"{self.compiler} {self.commit}".strip()


def run(*command: str | Path) -> str:
    done = subprocess.run(command, check=False, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}failed: {' '.join(map(str, command))}")
    return done.stdout.strip()


def sources(commit: str, folder: Path) -> Path:
    """A folder with the sources of a commit."""
    if not commit:
        return HERE
    tree = folder / run("git", "-C", HERE, "rev-parse", "--short", f"{commit}^{{commit}}")
    if not tree.exists():
        tree.mkdir(parents=True)
        run("git", "-C", HERE, "archive", f"--output={tree}.tar", commit)
        run("tar", "-x", "-C", tree, "-f", f"{tree}.tar")
    return tree


def build(compiler: str, commit: str, folder: Path) -> Build:
    """The core as its CMakeLists.txt says, and the contestant of this checkout with it."""
    tree = sources(commit, folder)
    into = folder / f"{Path(compiler).name}-{tree.name if commit else 'here'}"
    print(f"building {into.name}", file=sys.stderr)
    options = [f"-DCMAKE_CXX_COMPILER={compiler}", "-Dpython=OFF"]
    if shutil.which("pybind11-config"):  # for commits without that option
        options.append(f"-Dpybind11_DIR={run('pybind11-config', '--cmakedir')}")
    run("cmake", "-S", tree, "-B", into, "-G", "Ninja", "--no-warn-unused-cli", *options)
    run("cmake", "--build", into, "--target", "core")
    harness, core = into / "contestant.o", into / "libcore.a"
    source = HERE / "bench" / "kernels.cpp"
    run(compiler, "-std=c++17", "-O2", f"-I{tree}/cpp/core", "-c", source, "-o", harness)
    programs = [into / f"contestant{shift}" for shift in SHIFTS]
    for shift, program in zip(SHIFTS, programs, strict=True):
        first = into / "shift.s"
        first.write_text(f".text\n.skip {shift}\n.section .note.GNU-stack\n")
        run(compiler, first, harness, core, "-o", program)
    return Build(compiler, commit, programs)


# ---- Contestants


class Contestant:
    """A process that times kernels when it is asked."""

    def __init__(self, program: Path, isa: str) -> None:
        self.process = subprocess.Popen(
            [program, isa], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, command: str) -> str:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if not answer:
            sys.exit(f"no answer to {command!r}")
        return answer

    def turn(self, seconds: float) -> float:
        return float(self.ask(f"turn {seconds}"))


@contextmanager
def started(programs: list[Path], isa: str) -> Iterator[list[Contestant]]:
    with ExitStack() as stack:
        contestants = [Contestant(program, isa) for program in programs]
        for contestant in contestants:
            stack.enter_context(contestant.process)
        yield contestants


def rounds(contestants: list[Contestant], seconds: float) -> list[list[float]]:
    """Times of all, each round begun by another one."""
    times = [[0.0] * len(contestants) for _ in range(ROUNDS)]
    for begin, own in enumerate(times):
        for turn in range(len(contestants)):
            at = (begin + turn) % len(contestants)
            own[at] = contestants[at].turn(seconds)
    return times


def measure(
    builds: list[Build], isa: str, case: Case, elements: int, seconds: float
) -> tuple[float, list[float]]:
    """Nanoseconds an element of the first build, and the ratios of all to it.

    Medians over the rounds; of these the geometric mean over all shifts.
    """
    firsts, ratios = [], []
    for programs in zip(*(b.programs for b in builds), strict=True):
        with started(list(programs), isa) as contestants:
            answers = [c.ask(case.command(elements)) for c in contestants]
            if len(set(answers)) > 1:
                found = ", ".join(f"{b}: {a}" for b, a in zip(builds, answers, strict=True))
                sys.exit(f"{case}, {isa}: the bits differ ({found})")
            times = rounds(contestants, seconds)
        firsts.append(median(own[0] for own in times))
        ratios.append([median(own[b] / own[0] for own in times) for b in range(len(builds))])
    return geometric_mean(firsts), [geometric_mean(own) for own in zip(*ratios, strict=True)]


# ---- The table


def table(builds: list[Build], isa: str, cases: list[Case], elements: int, seconds: float) -> None:
    """Prints it while it grows."""
    wide = [max(len(str(b)), 8) + 2 for b in builds]
    heading = f"{isa}, {elements} elements"
    columns = "".join(f"{b!s:>{w}}" for b, w in zip(builds[1:], wide[1:], strict=True))
    print(f"\n{heading:30}{str(builds[0]) + ', ns':>{wide[0] + 4}}{columns}")
    rows = []
    for case in cases:
        first, ratios = measure(builds, isa, case, elements, seconds)
        rows.append(ratios)
        cells = "".join(f"{r:>{w}.2f}" for r, w in zip(ratios[1:], wide[1:], strict=True))
        print(f"{case!s:30}{first:>{wide[0] + 4}.3f}{cells}", flush=True)
    means = [geometric_mean(column) for column in zip(*rows, strict=True)]
    cells = "".join(f"{m:>{w}.2f}" for m, w in zip(means[1:], wide[1:], strict=True))
    print(f"{'geometric mean':30}{'':>{wide[0] + 4}}{cells}", flush=True)


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("compiler", nargs="+", help="ratios are to the first one")
    add("--at", nargs="+", default=[], metavar="COMMIT", help="these, too, by each compiler")
    add("--isa", nargs="+", default=["avx2"])
    add("--rule", nargs="+", help="these alone, in float32")
    add("--elements", nargs="+", type=int, default=[4096, 65536])
    add("--seconds", type=float, default=0.002, help="of a turn")
    add("--builds", type=Path, metavar="FOLDER", help="keeps what is built for the next run")
    asked = parser.parse_args()

    rules = [Case(rule) for rule in asked.rule or SCALARS]
    cases = rules if asked.rule else [*rules, *STORED, *(Case("adam", stage=s) for s in STAGES)]
    with TemporaryDirectory() as temporary:
        folder = (asked.builds or Path(temporary)).resolve()
        builds = [build(c, at, folder) for at in ("", *asked.at) for c in asked.compiler]
        print(f"{processor()}, {os.cpu_count()} processors, one thread")
        for isa in asked.isa:
            for elements in asked.elements:
                table(builds, isa, cases, elements, asked.seconds)


if __name__ == "__main__":
    main()
