"""What the compiler made of cpp/core/, read from its own reports: `check_objects.py BUILD`.

BUILD holds a build of CMakeLists.txt, configured with -DCMAKE_EXPORT_COMPILE_COMMANDS=ON and
-DCMAKE_CXX_FLAGS=-fdump-tree-vect-optimized. For every instruction set:

loops          Each loop over elements is vectorised, in full width, in each of its copies for
               every rule, stage and type: a scalar one gives the same bits, several times slower,
               so that no test would tell. float16 and bfloat16 take the instructions of the set
               for them where there are any.
symbols        An object exports its table and nothing else. A weak copy of a function, which the
               linker picks for all, would be an illegal instruction on an older processor.
instructions   An object stays within its set; it fuses no product with a sum and estimates no
               reciprocal, or the bits would differ from the reference's.

The other objects run on any processor, and nothing turns subnormal numbers off at load.
"""

from __future__ import annotations

import importlib
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CORE = Path(__file__).parent.parent / "cpp" / "core"
SOURCES = [CORE / f"{name}.hpp" for name in ("stages", "sums", "storage")]  # that have loops
WIDTH = {"sse2": 16, "avx2": 32, "avx512": 64, "neon": 16}  # bytes, unless flags prefer others

# What a compiler calls without being asked: all in the C library, where no set leaks from us.
HARMLESS = {"_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail", "memcpy", "memset"}

INEXACT = re.compile(r"\tv?(fn?m(add|sub)|r(cp|sqrt)(14|28)?[ps][sd])")
BEYOND = {
    "sse2": re.compile(r"\tv\w+|%[yz]mm"),  # VEX encoding: AVX and later
    "avx2": re.compile(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])|%k[0-7]"),  # EVEX encoding: AVX-512
    "avx512": re.compile(r"\tv(cvtne2?ps2?bf16|dpbf16)"),  # AVX-512 with BF16
}
CONVERSIONS = {
    "-mf16c": ("vcvtph2ps .*%[yz]mm", "vcvtps2ph .*%[yz]mm"),
    "-mavx512bf16": ("vcvtneps2bf16 .*%zmm",),
}
FAST_MATH = re.compile(r"-(Ofast|ffast-math|funsafe-math-optimizations|fassociative-math)")


def lines(*command: str | Path) -> list[str]:
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()


def demangled(text: str) -> str:
    return subprocess.run(
        "c++filt", check=True, input=text, stdout=subprocess.PIPE, text=True
    ).stdout


class Loop(NamedTuple):
    """A loop over the elements of a block, in a function of cpp/core/."""

    at: str  # file:line
    function: str
    tail: bool  # behind F16C instructions, which leave it fewer elements than a vector has


def functions(path: Path) -> Iterator[tuple[str, int, str]]:
    """The functions of a source, each with its first line's number and its text to the next."""
    code = re.sub("//.*", "", path.read_text())
    heads = list(re.finditer(r"^.*\b(?:void|bool|float|T) (\w+)\((?=.*[,{]$)", code, re.MULTILINE))
    for head, after in itertools.zip_longest(heads, heads[1:]):
        text = code[head.start() : after.start() if after else None]
        yield head[1], code.count("\n", 0, head.start()) + 1, text


def element_loops() -> list[Loop]:
    """All loops over a block's n elements but those of F16C instructions, which are vectors."""
    loops = []
    for path in SOURCES:
        for function, first, text in functions(path):
            in_f16c = behind_f16c = False
            for number, line in enumerate(text.splitlines(), first):
                if "__F16C__" in line:
                    in_f16c = behind_f16c = True
                elif line.startswith("#endif"):
                    in_f16c = False
                elif re.search(r"\bfor \(.*; i (\+ \d+ )?<=? n;", line) and not in_f16c:
                    loops.append(Loop(f"{path.name}:{number}", function, behind_f16c))
    return loops


def homes(rules: dict[str, bool]) -> dict[str, list[tuple[str, str]]]:
    """Where each function with such a loop ends up: compiled function, and who calls it there.

    rules has of each whether it measures something of its own.
    """
    types = ("float", "double")
    sweeps = {r: [f"::{r}>::measure<{t}>(" for t in types] for r in rules}
    own = [home for r, its in rules.items() if its for home in sweeps[r]]
    others = [home for r, its in rules.items() if not its for home in sweeps[r]]
    return {
        "updates": [(home, "measure") for home in (*own, *others)],
        "add_own": [(home, "measure") for home in own],
        "apply": [(f"::{rule}>::run<{t}>(", "blocks") for rule in rules for t in types],
        "each": [(f"::stages<{t}>::{f}(", f) for f in ("prepare", "finish") for t in types],
        "add_lanes": [
            *((home, "measure add_own") for home in own),
            *((home, "measure") for home in others),
            *(
                (f"::squares_of<{t}, {scales}>(", "squares_of")
                for t in types
                for scales in ("false", "true")
            ),
        ],
        **{
            f"{way}_{kind}": [(f"::{way}_{kind}(", "")]
            for way in ("open", "close")
            for kind in ("float16", "bfloat16")
        },
        "dither_block": [(f"::dither_block<{half}>(", "") for half in ("true", "false")],
    }


def check_loops(report: str, width: int, rules: dict[str, bool], f16c: bool) -> Iterator[str]:
    """The loops against the report, which counts what is left over in narrower vectors.

    A function that is called twice is inlined twice, and has its loop twice.
    """
    vectorised: dict[str, Counter[tuple[str, int]]] = {}
    for line in report.splitlines():
        if line.startswith(";; Function"):
            compiled = vectorised.setdefault(line, Counter())
        elif loop := re.search(r"(\w+\.\w+:\d+):.*loop vectorized using (\d+) byte", line):
            compiled[loop[1], int(loop[2])] += 1
    texts = {name: text for path in SOURCES for name, _, text in functions(path)}
    loops = element_loops()
    for function in homes(rules).keys() ^ {loop.function for loop in loops}:
        yield f"{function}: has loops over elements and no known home, or the reverse"
    for loop in loops:
        for home, caller in homes(rules).get(loop.function, []):
            text = "".join(texts[name] for name in caller.split())
            calls = re.findall(rf"\b{loop.function}(?:<\w+>)?\(", text) if caller else [""]
            found = sum(seen[loop.at, width] for name, seen in vectorised.items() if home in name)
            if found != len(calls) and not (f16c and loop.tail):
                yield (
                    f"{home.strip(':(')}: the loop of {loop.function} ({loop.at}) is vectorised"
                    f" with {width} bytes in {found} of {len(calls)} copies"
                )


def check_conversions(built: Path, flag: str) -> Iterator[str]:
    """The instructions that convert many elements in memory at once."""
    code = "\n".join(lines("objdump", "--disassemble", "--no-show-raw-insn", built))
    for wanted in CONVERSIONS[flag]:
        if not re.search(wanted, code):
            yield f"compiled with {flag}, but there is no {wanted!r} in the object"


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
    rules, isas = {name: own for name, _, _, own in core.rules()}, core.compiled_isas()
    loops = ", ".join(f"{loop.function} ({loop.at})" for loop in element_loops())
    print(f"{len(rules)} rules; {', '.join(isas)}; loops over elements: {loops}")

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
            flags = entry["command"].split()
            dumps = built.parent.glob("kernels.cpp*.vect")
            report = demangled("".join(dump.read_text() for dump in dumps))
            preferred = re.search(r"-mprefer-vector-width=(\d+)", entry["command"])
            width = int(preferred[1]) // 8 if preferred else WIDTH[isa]
            yield from (f"{isa}: {w}" for w in check_loops(report, width, rules, "-mf16c" in flags))
            for flag in CONVERSIONS.keys() & flags:
                yield from (f"{isa}: {w}" for w in check_conversions(built, flag))
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
