"""What the compiler made of cpp/core/, read from the objects: `check_objects.py BUILD`.

BUILD holds a build of CMakeLists.txt, by gcc or clang, with or without the module for Python,
configured with -DCMAKE_EXPORT_COMPILE_COMMANDS=ON. For every instruction set:

width          Arithmetic on elements fills the set's registers, and every rule has loops of it in
               each type: what a compiler takes apart gives the same bits, several times slower, so
               that no test would tell. float16 and bfloat16 take the instructions of the set for
               them where there are any.
symbols        An object exports its table and nothing else. A weak copy of a function, which the
               linker picks for all, would be an illegal instruction on an older processor.
instructions   An object stays within its set; it fuses no product with a sum and estimates no
               reciprocal, or the bits would differ from the reference's. Where quotients are by
               products (SCHUSS_DIVIDES_BY_PRODUCTS), each has its estimate and five of them.

The other objects run on any processor, and nothing turns subnormal numbers off at load.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MOST = 30  # that are shown
CORE = Path(__file__).parent.parent / "cpp" / "core"
FULL = {"sse2": "%xmm", "avx2": "%ymm", "avx512": "%zmm", "neon": r"\bv\d+\.(4s|2d)"}

# What a compiler calls without being asked: all in the C library, where no set leaks from us.
HARMLESS = {"_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail", "memcpy", "memset"}

# Operations on floating-point numbers, for x86 with one letter for packed or scalar and one for
# the type; for ARM the registers tell. And what takes a vector apart.
OPERATION = re.compile(
    r"\t(?:v?(?:add|sub|mul|div|sqrt|min|max|cmp\w*|u?comi|fn?m(?:add|sub)\d+|rcp\w*)([ps])[sd]"
    r"|f(?:add|sub|n?mul|div|sqrt|m(?:ax|in)(?:nm)?|ml[as]|n?m(?:add|sub)|abd|cm\w+))\s"
)
APART = re.compile(r"\tv?p(insr|extr)[bwdq]\s")

# A rule's loop over elements, of which every operation fills a register. Elsewhere numbers are
# compared that are of no element, and sums are of single doubles: the last few elements, the lanes.
LOOP = re.compile(r"kernels_of<[^)]*\)::(\w+)>::taken<(\w+)")
COMPARISON = re.compile(r"\t(v?cmp|v?u?comi|fcm)")
SUMS = re.compile(r"::(squares_of|measure|add_lines_of)<|::add_(squares|lines)\(|::lanes::fold\(")
FOLD = re.compile(r"::lanes::fold\(")  # which takes a register apart
SUM = re.compile(rf"{COMPARISON.pattern}|\t(v?(add|sub)[ps]d|fadd|fsub)\s")

INEXACT = re.compile(r"\t(v?(fn?m(add|sub)|r(cp|sqrt)(14|28)?[ps][sd])|fml[as]|fr(ecp|sqrt)[es])")
OF_QUOTIENTS = re.compile(r"\tv(?:(fn?m(?:add|sub)\d+)|rcp14)ps\s.*%zmm")
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


Functions = list[tuple[str, list[str]]]  # by name, each with its instructions


def disassembled(built: Path) -> Functions:
    functions: Functions = []
    for line in lines("objdump", "--disassemble", "--demangle", "--no-show-raw-insn", built):
        if line.endswith(">:"):
            functions.append((line.split(" ", 1)[1][1:-2], []))
        elif "\t" in line:
            functions[-1][1].append(line)
    return functions


def text_of(instruction: str) -> str:
    return " ".join(instruction.split()[1:])


def check_width(functions: Functions, full: str, rules: list[str]) -> Iterator[str]:
    """The first instruction of each function that does not fill a register, and missing loops."""
    looped = set()
    for function, instructions in functions:
        loop = LOOP.search(function)
        spared = SUM if SUMS.search(function) else COMPARISON
        whole, narrow = 0, []
        for line in instructions:
            operation = OPERATION.search(line)
            if operation and operation[1] != "s" and re.search(full, line):
                whole += 1
            elif (APART.search(line) and not FOLD.search(function)) or (
                operation and (loop or not spared.search(line))
            ):
                narrow.append(line)
        if narrow:
            yield f"not in full width: {text_of(narrow[0])} in {function}"
        if loop and whole:
            looped.add((loop[1], loop[2]))
    for rule in rules:
        for number in ("float", "double"):
            if (rule, number) not in looped:
                yield f"{rule} has no loop of {number} in full width"


def check_conversions(functions: Functions, flag: str) -> Iterator[str]:
    """The instructions that convert many elements in memory at once."""
    code = "\n".join(line for _, instructions in functions for line in instructions)
    for wanted in CONVERSIONS[flag]:
        if not re.search(wanted, code):
            yield f"compiled with {flag}, but there is no {wanted!r} in the object"


def check_symbols(built: Path, isa: str) -> Iterator[str]:
    """In nm's letters: U is needed, u, v, w and upper case are seen by the linker."""
    exported = []
    for line in lines("nm", "--demangle", built):
        kind, name = line[17:].split(" ", 1)
        if kind == "U" and name not in HARMLESS:
            yield f"the object needs {name}"
        elif kind in "uvw" or (kind.isupper() and kind != "U"):
            exported.append(name)
    if exported != [f"schuss::schuss_kernels_{isa}"]:
        yield f"the object exports {exported}, wanted its table alone"


def check_instructions(functions: Functions, isa: str, by_products: bool) -> Iterator[str]:
    """The first instruction of each function that should not be there."""
    beyond = BEYOND.get(isa)
    for function, instructions in functions:
        inexact = [line for line in instructions if INEXACT.search(line)]
        if by_products:
            parts = Counter(part[1] for line in inexact if (part := OF_QUOTIENTS.search(line)))
            estimates, fused = parts.pop(None, 0), parts.total()
            if fused != 5 * estimates:
                yield f"{fused} fused products and {estimates} estimates in {function}"
            inexact = [line for line in inexact if not OF_QUOTIENTS.search(line)]
        if inexact:
            yield f"inexact: {text_of(inexact[0])} in {function}"
        for line in instructions:
            if beyond and beyond.search(line):
                yield f"beyond {isa}: {text_of(line)} in {function}"
                break


def check_kernels(built: Path, isa: str, flags: list[str], rules: list[str]) -> Iterator[str]:
    functions = disassembled(built)
    yield from check_symbols(built, isa)
    yield from check_instructions(functions, isa, "-DSCHUSS_DIVIDES_BY_PRODUCTS" in flags)
    if full := FULL.get("avx512" if isa.startswith("avx512") else isa):
        yield from check_width(functions, full, rules)
    for flag in CONVERSIONS.keys() & flags:
        yield from check_conversions(functions, flag)


def check(build: Path) -> Iterator[str]:
    rules = re.findall(r"^  rule\((\w+)\)", (CORE / "rules.hpp").read_text(), re.MULTILINE)
    commands = {
        build / entry["output"]: entry["command"]
        for entry in json.loads((build / "compile_commands.json").read_text())
    }
    dispatch = next(path for path in commands if path.name.startswith("dispatch.cpp"))
    isas = re.findall(r"U schuss::schuss_kernels_(\w+)", "\n".join(lines("nm", "-pC", dispatch)))
    print(f"{len(rules)} rules; {', '.join(isas)}")

    checked = []
    for path, command in commands.items():
        if fast := FAST_MATH.search(command):
            yield f"{path.name}: compiled with {fast[0]}"
        if kernels := re.search(r"/kernels_(\w+)\.dir/", str(path)):
            checked.append(kernels[1])
            found = check_kernels(path, kernels[1], command.split(), rules)
            yield from (f"{kernels[1]}: {what}" for what in found)
        else:  # the last set runs everywhere
            found = check_instructions(disassembled(path), isas[-1], by_products=False)
            yield from (f"{path.name}: {what}" for what in found)
    if sorted(checked) != sorted(isas):
        yield f"kernels were compiled for {checked}, and {isas} are chosen from"

    # What gcc links into a library of -ffast-math: it sets flush-to-zero in whoever loads it.
    for linked in (*build.glob("_core*.so"), *build.glob("kernels")):
        if any(line.endswith(" set_fast_math") for line in lines("nm", linked)):
            yield f"{linked.name} sets flush-to-zero at load"


if __name__ == "__main__":
    wrong = list(check(Path(sys.argv[1]).resolve()))
    print("\n".join(f"WRONG: {w}" for w in wrong[:MOST]) or "as promised")
    if len(wrong) > MOST:
        print(f"WRONG: {len(wrong) - MOST} more")
    sys.exit(bool(wrong))
