"""Does the quick part of the suite see a step that computes or checks something else?

    python .ci/mutate.py [--list] [--only FILE] [NUMBER ...]

By hand, an hour or more. Each operator in a rule of cpp/core/rules.hpp is exchanged, and what
.ci/mutants.txt says of the other files, one mutation at a time; one that no test of
`pytest -m quick` notices has survived, and the command fails. A failure, a crash and running
without end all count as noticed.

All mutations are in one build: a copy of the sources in which `old` is written as
`(mutant(17) ? (new) : (old))`, in build/mutants, for SSE2 alone. The tests are collected once, and
each mutation has a fork of that process, which begins with the tests that noticed others, of the
same file first, and then takes the shortest ones. `--list` shows all mutations with their numbers
and builds nothing. Wants what the tests want, cmake, ninja and pybind11.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
TABLE = ROOT / ".ci" / "mutants.txt"
BUILD = ROOT / "build" / "mutants"
TESTS = ["-m", "quick"]
LIMIT = 60  # seconds that a test may take beyond ten times as long as without a mutation

# What every source includes first. A constant expression is never mutated. Operators of a rule are
# parted, `a + either<17>() + b`, which leaves their precedence as it was.
HEADER = """
#pragma once
namespace schuss {
extern int chosen_mutant;
[[gnu::always_inline]] constexpr bool mutant(int n) {
  return !__builtin_is_constant_evaluated() && n == chosen_mutant;
}
template <int> struct either {};
template <int, class T> struct left { T value; };
"""
OPERATORS = {"+": "-", "-": "+", "*": "/", "/": "*"}
for old, new in OPERATORS.items():
    HEADER += f"""
template <class T, int n> [[gnu::always_inline]] inline left<n, T> operator{old}(T a, either<n>) {{
  return {{a}};
}}
template <class T, int n> [[gnu::always_inline]] inline T operator{old}(left<n, T> a, T b) {{
  return mutant(n) ? a.value {new} b : a.value {old} b;
}}
"""
HEADER += "}\n"

# What is added to the source of the threads: a fork is to have a crew, as a process of its own.
CHOICE = """
namespace schuss { int chosen_mutant = 0; }
extern "C" [[gnu::visibility("default"), gnu::constructor(101)]] void schuss_choose_mutant() {
  const char* const number = std::getenv("SCHUSS_MUTANT");
  schuss::chosen_mutant = number == nullptr ? 0 : std::atoi(number);
}
extern "C" [[gnu::visibility("default")]] void schuss_begin_anew() { schuss::forked() = false; }
"""


class Mutant(NamedTuple):
    """One mutation: the text from `start` to `end` of a file becomes `new`."""

    number: int
    file: str
    line: int
    start: int
    end: int
    old: str
    new: str
    rule: str = ""  # within which it is, if any
    reason: str = ""  # why no test can notice it

    def written(self, old: str) -> str:
        """What stands in the copy, where `old` has the mutations within it."""
        n = f"::schuss::mutant({self.number})"
        if self.old in OPERATORS:
            return f"{old} ::schuss::either<{self.number}>() {old}"
        if self.old.endswith(";"):
            return f"{{ if ({n}) {{ {self.new} }} else {{ {old} }} }}"
        return f"({n} ? ({self.new}) : ({old}))"

    def __str__(self) -> str:
        change = f"{' '.join(self.old.split())} => {self.new or '(nothing)'}"
        return f"{self.number} {self.file}:{self.line} {self.rule}  {change}"


# ---- The list


def rules(source: str) -> list[re.Match[str]]:
    """The structs that are rules."""
    return [*re.finditer(r"template <class T> struct (\w+) \{\n  T .*?\n\};", source, re.DOTALL)]


def pattern(text: str) -> str:
    """That text, with its lines broken anywhere."""
    return r"\s+".join(map(re.escape, re.split(r"\s+", text)))


def mutants() -> list[Mutant]:
    """All of them; one whose place isn't found exactly once is an error."""
    found: list[Mutant] = []
    file, number, source = "", 0, ""

    def add(start: int, end: int, new: str) -> None:
        nonlocal number
        number += 1
        line = source.count("\n", 0, start) + 1
        rule = next((r[1] for r in rules(source) if r.start() < start < r.end()), "")
        found.append(Mutant(number, file, line, start, end, source[start:end], new, rule))

    files = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "cpp").glob("*/*pp"))
    for n, text in enumerate(TABLE.read_text().splitlines(), 1):
        if not text or text.startswith("#"):
            continue
        if text.startswith("  = "):
            found[-1] = found[-1]._replace(reason=text[4:])
        elif text.startswith("  "):
            before, change, after = re.split("[«»]", text[2:])
            old, _, new = map(str.strip, change.partition("=>"))
            wanted = f"{pattern(before)}({pattern(old)}){pattern(after)}"
            places = list(re.finditer(wanted, source))
            if len(places) != 1:
                sys.exit(f"{TABLE.name}:{n}: found {len(places)} times in {file}:{text}")
            add(*places[0].span(1), new)
        else:
            file = text
            number, source = 1000 * files.index(file), (ROOT / file).read_text()
            for rule in rules(source):
                for one in re.finditer(r"(?<= )[-+*/](?= )", rule[0]):
                    add(*(rule.start() + at for at in one.span()), OPERATORS[one[0]])
    return found


def rewritten(source: str, start: int, end: int, within: Sequence[Mutant]) -> str:
    """A part of a source with all mutations in it, which are sorted, the widest first."""
    parts = []
    while within:
        first, *others = within
        nested = [one for one in others if one.start < first.end]
        assert all(one.end <= first.end for one in nested), f"{nested} goes beyond {first}"
        parts += [source[start : first.start]]
        parts += [first.written(rewritten(source, first.start, first.end, nested))]
        start, within = first.end, others[len(nested) :]
    return "".join([*parts, source[start:end]])


# ---- The build


def write(path: Path, text: str) -> None:
    """Leaves a file alone that has this text, so that nothing is built anew."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def build(all_mutants: Sequence[Mutant]) -> None:
    """Makes the copy of what the tests want, with all mutations in its module."""
    for name in ("python", "tests", "docs", "bench"):
        shutil.rmtree(BUILD / name, ignore_errors=True)
        shutil.copytree(ROOT / name, BUILD / name, ignore=shutil.ignore_patterns("*.so"))
    for name in ("CMakeLists.txt", "pyproject.toml", "README.md", "CHANGELOG.md"):
        shutil.copy2(ROOT / name, BUILD / name)
    ordered = sorted(all_mutants, key=lambda m: (m.file, m.start, -m.end))
    changed = {file: list(of) for file, of in groupby(ordered, lambda m: m.file)}
    for path in (ROOT / "cpp").glob("*/*pp"):
        file = path.relative_to(ROOT).as_posix()
        source = path.read_text()
        (BUILD / file).parent.mkdir(parents=True, exist_ok=True)
        text = rewritten(source, 0, len(source), changed.get(file, []))
        write(BUILD / file, text + CHOICE if path.name == "threads.cpp" else text)
    write(BUILD / "mutant.hpp", HEADER)
    cmake_dir = subprocess.check_output(["pybind11-config", "--cmakedir"], text=True).strip()
    options = [f"-Dpybind11_DIR={cmake_dir}", "-Disas=sse2"]
    options += [f"-DCMAKE_CXX_FLAGS=-w -include {BUILD / 'mutant.hpp'}"]
    subprocess.run(
        ["cmake", "-S", BUILD, "-B", BUILD / "build", "-G", "Ninja", *options],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    subprocess.run(["cmake", "--build", BUILD / "build", "--target", "_core"], check=True)
    (module,) = (BUILD / "build").glob("_core*.so")
    shutil.copy(module, BUILD / "python" / "schuss")


# ---- The trials


class Trials:
    """A plugin of pytest that tries each mutant on the collected tests, in a fork."""

    def __init__(self, wanted: Sequence[Mutant]) -> None:
        self.wanted = wanted
        self.survivors: list[Mutant] = []
        self.seconds: dict[str, float] = {}  # of each test, without a mutation

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Tries all, in place of running the tests."""
        import schuss  # noqa: PLC0415  once pytest knows where

        assert BUILD in Path(schuss.__file__).parents, f"{schuss.__file__} would be tested"
        print(f"{len(session.items)} tests, without a mutation first", flush=True)
        failed = self.tried(session, session.items, 0)
        print(f"{len(failed)} of them fail, and aren't asked:", *failed, sep="\n  ", flush=True)
        assert self.seconds.keys() >= {item.nodeid for item in session.items}, "one ends them all"
        items = [item for item in session.items if item.nodeid not in failed]
        items.sort(key=lambda item: self.seconds[item.nodeid])
        noticed: list[tuple[str, str]] = []  # files, and tests that noticed one of theirs
        for mutant in self.wanted:
            # The last one first, of the same file before others.
            known = sorted(noticed, key=lambda one, own=mutant.file: one[0] != own)
            first = list(dict.fromkeys(test for _, test in known))
            ordered = sorted(items, key=order(mutant, first, items))
            start = time.monotonic()
            found = self.tried(session, ordered, mutant.number)
            result = "killed  " if found else "SURVIVED"
            print(f"{result} {mutant}  {time.monotonic() - start:.1f} s", *found, flush=True)
            noticed = list(dict.fromkeys([*((mutant.file, test) for test in found), *noticed]))
            self.survivors += [] if found else [mutant]
        return True

    def tried(self, session: pytest.Session, items: list[pytest.Item], number: int) -> list[str]:
        """The first test that notices a mutation, if any; without one all that fail."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                run(session, items, number, writer)
            finally:
                os._exit(0)
        os.close(writer)
        failed: list[str] = []
        under_way, since = "before the first test", time.monotonic()
        with os.fdopen(reader, "rb", buffering=0) as lines:  # or select doesn't see what is read
            while True:
                limit = LIMIT + 10 * self.seconds.get(under_way, LIMIT)
                if not select.select([lines], [], [], limit)[0]:
                    failed.append(under_way)
                    break
                line = lines.readline().decode()
                if not line:  # it failed, or crashed
                    failed += [under_way] if under_way else []
                    break
                if number == 0:
                    self.seconds[under_way] = time.monotonic() - since
                if line.startswith("failed "):
                    failed.append(under_way)
                    continue
                under_way, since = line.rstrip("\n"), time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return failed


def order(mutant: Mutant, first: list[str], items: list[pytest.Item]) -> Callable[..., int]:
    """A key by which tests of a mutant's rule come first, then of its class, then those given."""
    found = [re.search(rf"\[(\w+)-{mutant.rule}-", item.name) for item in items if mutant.rule]
    classes = tuple({f"[{match[1]}{end}" for match in found if match for end in "-]"})

    def rank(item: pytest.Item) -> int:
        if mutant.rule and f"-{mutant.rule}-" in item.name:
            return -2
        if classes and any(one in item.name for one in classes):
            return -1
        return first.index(item.nodeid) if item.nodeid in first else len(first)

    return rank


def run(session: pytest.Session, items: list[pytest.Item], number: int, writer: int) -> None:
    """What a fork does: names each test before it runs it, and nothing once all have passed."""
    os.setpgid(0, 0)
    session.config.pluginmanager.unregister(name="terminalreporter")
    os.environ["SCHUSS_MUTANT"] = str(number)  # for the processes that tests start
    (module,) = (BUILD / "python" / "schuss").glob("_core*.so")
    library = ctypes.CDLL(str(module))
    library.schuss_choose_mutant()
    library.schuss_begin_anew()
    for item, following in zip(items, [*items[1:], None], strict=True):
        os.write(writer, f"{item.nodeid}\n".encode())
        before = session.testsfailed
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed > before:
            if number:
                return
            os.write(writer, b"failed \n")
    os.write(writer, b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("numbers", nargs="*", type=int, metavar="NUMBER")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--only", metavar="FILE", default="")
    asked = parser.parse_args()
    all_mutants = mutants()
    wanted = [m for m in all_mutants if m.file.endswith(asked.only) and not m.reason]
    if asked.numbers:
        by_number = {m.number: m for m in all_mutants}
        if unknown := set(asked.numbers) - by_number.keys():
            parser.error(f"NUMBER: none is {min(unknown)}; see --list")
        wanted = [by_number[number] for number in asked.numbers]
    if asked.list:
        print(*all_mutants, sep="\n")
        return
    build(all_mutants)
    os.chdir(BUILD)
    os.environ["PYTHONPATH"] = sys.path[0] = str(BUILD / "python")
    trials = Trials(wanted)
    failed = pytest.main(["-q", "-n0", "-p", "no:cacheprovider", *TESTS], plugins=[trials])
    print(f"{len(wanted)} mutations, {len(trials.survivors)} survived:")
    print(*trials.survivors, sep="\n")
    sys.exit(bool(failed or trials.survivors))


if __name__ == "__main__":
    main()
