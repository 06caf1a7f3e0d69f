"""What the compiler made of cpp/, read from its own reports: `check_objects.py BUILD`.

BUILD holds a build of CMakeLists.txt, configured with -DCMAKE_EXPORT_COMPILE_COMMANDS=ON and
-DCMAKE_CXX_FLAGS=-fdump-tree-vect-optimized. For every instruction set:

loops          Each loop over elements is vectorised, in full width, for every rule and type: a
               scalar one gives the same bits, several times slower, so that no test would tell.
symbols        An object exports its table and nothing else. A weak copy of a function, which the
               linker picks for all, would be an illegal instruction on an older processor.
instructions   An object stays within its set; it fuses no product with a sum and estimates no
               reciprocal, or the bits would differ from the reference's.

The other objects run on any processor, and nothing turns subnormal numbers off at load.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

KERNELS = Path(__file__).parent.parent / "cpp" / "kernels.cpp"
LOOPS_OF = ("apply", "blocks")  # the functions of kernels.cpp that make up a rule's kernel
WIDTH = {"sse2": 16, "avx2": 32, "avx512": 64, "neon": 16}  # bytes, unless flags prefer others

# What a compiler calls without being asked: all in the C library, where no set leaks from us.
HARMLESS = {"_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail", "memcpy", "memset"}

INEXACT = re.compile(r"\tv?(fn?m(add|sub)|r(cp|sqrt)(14|28)?[ps][sd])")
BEYOND = {
    "sse2": re.compile(r"\tv\w+|%[yz]mm"),  # VEX encoding: AVX and later
    "avx2": re.compile(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])|%k[0-7]"),  # EVEX encoding: AVX-512
}
FAST_MATH = re.compile(r"-(Ofast|ffast-math|funsafe-math-optimizations|fassociative-math)")


def lines(*command: str | Path) -> list[str]:
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()


def element_loops() -> dict[int, int]:
    """The lines of kernels.cpp with a loop that goes on by one element, and its copies in a kernel.

    All is inlined there, so that a function which is called twice has its loop twice.
    """
    code = re.sub("//.*", "", KERNELS.read_text())
    loops = {}
    function = ""
    for number, line in enumerate(code.splitlines(), 1):
        if head := re.search(r"\bvoid (\w+)\(", line):
            function = head[1]
        if function in LOOPS_OF and re.search(r"\bfor \(.*\+\+\w+\)", line):
            loops[number] = max(1, len(re.findall(rf"\b{function}\(", code)) - 1)
    return loops


def check_loops(report: str, width: int, rules: list[str], loops: dict[int, int]) -> Iterator[str]:
    """A kernel's loops against the report, which counts what is left over in narrower vectors."""
    vectorised: Counter[tuple[str, int, int]] = Counter()
    kernel = ""
    for line in report.splitlines():
        if line.startswith(";; Function"):
            head = re.search(r"(\w+)>::run<(\w+)>", line)
            kernel = f"{head[1]}<{head[2]}>" if head else ""
        if loop := re.search(r"kernels\.cpp:(\d+):.*loop vectorized using (\d+) byte", line):
            vectorised[kernel, int(loop[1]), int(loop[2])] += 1
    for kernel in (f"{rule}<{number}>" for rule in rules for number in ("float", "double")):
        for at, copies in loops.items():
            found = vectorised[kernel, at, width]
            if found < copies:
                yield (
                    f"{kernel}: the loop in kernels.cpp:{at} is vectorised with"
                    f" {width} bytes in {found} of {copies} copies"
                )


def check_symbols(built: Path, isa: str) -> Iterator[str]:
    """In nm's letters: U is needed, u, v, w and upper case are seen by the linker."""
    exported = []
    for line in lines("nm", "--demangle", built):
        kind, name = line[17:].split(" ", 1)
        if kind == "U" and name not in HARMLESS:
            yield f"{isa}: the object needs {name}"
        elif kind in "uvw" or (kind.isupper() and kind != "U"):
            exported.append(name)
    if exported != [f"schuss::schuss_kernels_{isa}"]:
        yield f"{isa}: the object exports {exported}, wanted its table alone"


def check_instructions(built: Path, isa: str) -> Iterator[str]:
    """The first instruction of each object that should not be there."""
    function = ""
    for line in lines("objdump", "--disassemble", "--demangle", "--no-show-raw-insn", built):
        if line.endswith(">:"):
            function = line.split(" ", 1)[1]
        for what, wrong in (("inexact", INEXACT), (f"beyond {isa}", BEYOND.get(isa))):
            if wrong and wrong.search(line):
                yield f"{isa}: {what}: {' '.join(line.split()[1:])} in {built.name}, {function}"
                return


def check(build: Path) -> Iterator[str]:
    sys.path.insert(0, str(build))
    core = importlib.import_module("_core")
    rules, isas = [name for name, *_ in core.rules()], core.compiled_isas()
    loops = element_loops()
    print(f"{len(rules)} rules; {', '.join(isas)}; loops over elements (line: copies): {loops}")
    if not loops:
        yield f"kernels.cpp: no loop over elements in {' or '.join(LOOPS_OF)}"

    checked = []
    for entry in json.loads((build / "compile_commands.json").read_text()):
        built = build / entry["output"]
        if fast := FAST_MATH.search(entry["command"]):
            yield f"{entry['file']}: compiled with {fast[0]}"
        kernels = re.search(r"kernels_(\w+)\.dir", entry["output"])
        isa = kernels[1] if kernels else isas[-1]  # the last one runs everywhere
        yield from check_instructions(built, isa)
        if kernels:
            checked.append(isa)
            report = "".join(dump.read_text() for dump in built.parent.glob("kernels.cpp*.vect"))
            preferred = re.search(r"-mprefer-vector-width=(\d+)", entry["command"])
            width = int(preferred[1]) // 8 if preferred else WIDTH[isa]
            yield from (f"{isa}: {w}" for w in check_loops(report, width, rules, loops))
            yield from check_symbols(built, isa)
    if sorted(checked) != sorted(isas):
        yield f"kernels were compiled for {checked}, the module has {isas}"

    # What gcc links into a library of -ffast-math: it sets flush-to-zero in whoever loads it.
    if any(line.endswith(" set_fast_math") for line in lines("nm", *build.glob("_core*.so"))):
        yield "the module sets flush-to-zero at load"


if __name__ == "__main__":
    wrong = list(check(Path(sys.argv[1]).resolve()))
    print("\n".join(f"WRONG: {w}" for w in wrong) or "as promised")
    sys.exit(bool(wrong))
