"""Do the exact tests see a kernel that computes something else? `python .ci/mutate.py [ROUND ...]`.

By hand. Exchanges one operator at a time in the formula of each rule of cpp/core/rules.hpp, in a
copy, builds it for SSE2 alone and wants the tests of that rule to fail. Round n exchanges the n-th
operator of all rules at once, as no rule calls another one; without an argument all are taken, an
hour or two. Wants what the tests want, cmake, ninja and pybind11, and no installed schuss.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = "test_sizes_and_offsets"  # one of them for each kernel, which names it
OTHER = {"+": "-", "-": "+", "*": "/", "/": "*"}
RULE = re.compile(r"template <class T> struct (\w+) \{.*?\n\};", re.DOTALL)
OPERATOR = re.compile(r"(?<= )[-+*/](?= )")
ISAS = [  # where this architecture's are listed
    ("CMakeLists.txt", re.compile(r"(?<=set\(isas )\w.* sse2(?=\))"), "sse2"),
    (
        "cpp/core/dispatch.cpp",
        re.compile(r"(?<=SCHUSS_ISAS\(isa\) )isa.* isa\(sse2\)"),
        "isa(sse2)",
    ),
]


def mutated(source: str, n: int) -> tuple[str, dict[str, str]]:
    """The rules with the n-th operator of each exchanged, and the line where that is, by rule."""
    changed = {}

    def mutate(rule: re.Match[str]) -> str:
        operators = list(OPERATOR.finditer(rule[0]))
        if n >= len(operators):
            return rule[0]
        at = operators[n].start()
        text = rule[0][:at] + OTHER[rule[0][at]] + rule[0][at + 1 :]
        changed[rule[1]] = text[text.rindex("\n", 0, at) : text.index("\n", at)].strip()
        return text

    return RULE.sub(mutate, source), changed


def main() -> None:
    if find_spec("schuss"):
        sys.exit("schuss is installed here and would be tested in place of its mutants")
    survivors = []
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        copy, build = Path(folder, "copy"), Path(folder, "build")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build"))
        for path, listed, alone in ISAS:
            file = copy / path
            text, found = listed.subn(alone, file.read_text())
            assert found == 1, path
            file.write_text(text)
        cmake_dir = subprocess.check_output(["pybind11-config", "--cmakedir"], text=True).strip()
        subprocess.run(
            ["cmake", "-S", copy, "-B", build, "-G", "Ninja", f"-Dpybind11_DIR={cmake_dir}"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        rules = copy / "cpp" / "core" / "rules.hpp"
        source = rules.read_text()
        for n in map(int, sys.argv[1:]) if sys.argv[1:] else range(100):
            text, changed = mutated(source, n)
            if not changed:
                break
            rules.write_text(text)
            subprocess.run(["cmake", "--build", build], check=True, stdout=subprocess.DEVNULL)
            (module,) = build.glob("_core*.so")
            shutil.copy(module, copy / "python" / "schuss")
            report = subprocess.run(
                [sys.executable, "-m", "pytest", "tests/exact/test_exact.py", "-k", TESTS],
                cwd=copy,
                env=os.environ | {"PYTHONPATH": str(copy / "python"), "SCHUSS_ISA": "sse2"},
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            ).stdout
            for rule, line in changed.items():
                total += 1
                killed = re.search(rf"^FAILED .*\[\w+-{rule}-", report, re.MULTILINE)
                print(f"{'killed' if killed else 'SURVIVED':<9}{rule}: {line}", flush=True)
                survivors += [] if killed else [rule]
    print(f"{total} mutants, {len(survivors)} survived")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
