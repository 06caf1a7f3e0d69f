"""The bits of tests/core/golden.txt, by every compiler and processor at hand.

    python .ci/golden.py [BUILD ...]             compares
    python .ci/golden.py --record [BUILD ...]    writes the hashes by the first build, and compares

A BUILD is a folder in which CMakeLists.txt's target core_tests was built; without one it is built
here. Each runs with all sets of instructions that the processor has; the first one also on qemu's
Nehalem, which has SSE2 alone of ours, and Haswell, which has AVX2, too; and the core is built for
aarch64 and runs there. What a tool is missing for is NOT RUN, which is no error.

Where the hash of a case has changed since the last commit, or in any commit that git knows, the
first entry of that commit's CHANGELOG.md has to name the section that it is in:

    - Bits: adam, amsgrad
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
GOLDEN = "tests/core/golden.txt"
CHANGELOG = "CHANGELOG.md"

# Processors and the sets that they have; without what qemu lacks, and says so for each thread.
PROCESSORS = {
    "Nehalem": ["sse2"],
    "Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-invpcid,-rtm": ["avx2", "sse2"],
}
AARCH64 = [
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
]

# ---- Runs


def build(folder: Path, *options: str) -> Path:
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-Dpython=OFF", *options]
    make = ["cmake", "--build", str(folder), "--target", "core_tests", "--parallel", "2"]
    for command in (configure, make):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def run(folder: Path, *arguments: str, under: tuple[str, ...] = ()) -> str:
    command = [*under, str(folder / "core_tests"), str(ROOT / GOLDEN), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        print(done.stdout)
        sys.exit(f"FAILED: {' '.join(command)}")
    return done.stdout


def emulate(folder: Path) -> None:
    """The x86-64 build on older processors, which dispatch has to recognise."""
    for processor, sets in PROCESSORS.items():
        name = processor.partition(",")[0]
        under = ("qemu-x86_64-static", "-cpu", processor)
        if not shutil.which(under[0]):
            print(f"NOT RUN: {name} ({under[0]} is missing)")
            continue
        found = run(folder, "--found", under=under).split()
        if found != sets:
            sys.exit(f"FAILED: on {name} {found} were found, and {sets} are there")
        print(f"{name}: {run(folder, sets[0], under=under)}", end="", flush=True)


def cross(folder: Path) -> None:
    """aarch64, by a compiler for it."""
    under = ("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu")
    for tool in (under[0], "aarch64-linux-gnu-g++"):
        if not shutil.which(tool):
            print(f"NOT RUN: aarch64 ({tool} is missing)")
            return
    print(f"aarch64: {run(build(folder, *AARCH64), under=under)}", end="", flush=True)


# ---- What has moved


def sections(text: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Of each section of golden.txt its first line, and the hash of each case."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    hashes: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("  "):
            case, hashed = line.rsplit(maxsplit=1)
            hashes[case.strip()] = hashed
        elif line and not line.startswith("#"):
            hashes = {}
            found[line.split()[0]] = line, hashes
    return found


def moved(old: str, new: str) -> set[str]:
    """Sections of which a case has another hash. Where it has other numbers it is another case."""
    before, after = sections(old), sections(new)
    stages = "stages"  # of each rule: all of those in the section of this name
    same = before.keys() & after.keys()
    alike = stages in same and before[stages][1].keys() == after[stages][1].keys()
    return {
        name
        for name in same
        if before[name][0] == after[name][0]
        for case, hashed in after[name][1].items()
        if before[name][1].get(case, hashed) != hashed and (alike or case != stages)
    }


def named(changelog: str) -> set[str]:
    """The sections that the first entry of a changelog names."""
    first = re.split(r"^## ", changelog, flags=re.MULTILINE)[1]
    return set(re.findall(r"\w+", " ".join(re.findall(r"^- Bits: (.*)$", first, re.MULTILINE))))


def git(*arguments: str) -> str:
    """What git says; nothing where it fails, as where a file wasn't there yet."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    return done.stdout if done.returncode == 0 else ""


def moved_in_silence() -> dict[str, set[str]]:
    """Of each commit, and of what isn't committed, the sections that nobody named."""
    silent = {
        commit: moved(git("show", f"{commit}^:{GOLDEN}"), git("show", f"{commit}:{GOLDEN}"))
        - named(git("show", f"{commit}:{CHANGELOG}"))
        for commit in git("log", "--format=%h", "--", GOLDEN).split()
    }
    silent["not committed"] = moved(git("show", f"HEAD:{GOLDEN}"), (ROOT / GOLDEN).read_text())
    silent["not committed"] -= named((ROOT / CHANGELOG).read_text())
    return {commit: names for commit, names in silent.items() if names}


def main() -> None:
    record = "--record" in sys.argv
    builds = [Path(name).resolve() for name in sys.argv[1:] if name != "--record"]
    with tempfile.TemporaryDirectory() as work:
        builds = builds or [build(Path(work, "native"))]
        if record:
            (ROOT / GOLDEN).write_text(run(builds[0], "--text"))
        for folder in builds:
            print(f"{folder}:\n{run(folder)}", end="", flush=True)
        emulate(builds[0])
        cross(Path(work, "aarch64"))
    silent = moved_in_silence()
    for commit, names in silent.items():
        listed = ", ".join(sorted(names))
        print(f"{commit}: bits moved, and {CHANGELOG} has no '- Bits: {listed}' in its first entry")
    sys.exit(bool(silent))


if __name__ == "__main__":
    main()
