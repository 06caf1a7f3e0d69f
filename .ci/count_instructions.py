"""Are the kernels' instructions as many as recorded? `count_instructions.py BUILD [--record]`.

BUILD holds a build of CMakeLists.txt, with its target `instructions` (bench/instructions.cpp): that
calls every kernel of AVX2, and Valgrind, which has to be installed, counts. A count is divided by
the elements, or by the arrays where it is the driver's. It is wrong where it is more than 5 % above
or below the one in instructions.json, or one of the two is missing. All are recorded anew by

    cmake --build BUILD --target instructions && python .ci/count_instructions.py BUILD --record

Counts are the compiler's: those of another version than recorded are shown, but not judged.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

RECORD = Path(__file__).with_name("instructions.json")
TOLERANCE = 0.05

# One count of many in a file: its name, what to divide by, and all instructions.
COUNT = re.compile(r"Client Request: (.+) / (\d+)\n(?:.*\n)*?summary: (\d+)")


def count(program: Path) -> tuple[str, dict[str, float]]:
    """What the counts depend on, and the counts by name.

    Without the C library's memset: where it takes `rep stos`, each byte would be an instruction.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "counts"
        callgrind = ["valgrind", "--quiet", "--tool=callgrind", "--combine-dumps=yes"]
        options = ["--toggle-collect=*memset*", "--collect-atstart=yes"]
        by = subprocess.run(
            [*callgrind, *options, f"--callgrind-out-file={file}", program],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout.strip()
        counts = COUNT.findall(file.read_text())
    return by, {name: round(int(total) / int(per), 3) for name, per, total in counts}


def changes(recorded: dict[str, float], counted: dict[str, float]) -> int:
    """Prints what is not as recorded, and returns how much of it is wrong."""
    print(f"{'instructions':45}{'recorded':>10}{'counted':>10}{'ratio':>7}")
    wrong = 0
    for name in recorded | counted:
        was, now = recorded.get(name, math.nan), counted.get(name, math.nan)
        if was != now:
            beyond = not abs(now / was - 1) <= TOLERANCE  # also where one of them is missing
            wrong += beyond
            print(f"{name:45}{was:10.3f}{now:10.3f}{now / was:7.2f}{'*' * beyond}")
    print(f"{len(counted)} counts; {wrong} wrong (*): more than {TOLERANCE:.0%} off, or missing")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("build", type=Path)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()

    by, counted = count(asked.build.resolve() / "instructions")
    record = json.loads(RECORD.read_text())
    wrong = changes(record["instructions"], counted)
    if asked.record:
        record = {"by": by, "instructions": counted}
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
        print(f"recorded: {by}")
    elif by != record["by"]:
        print(f"NOT JUDGED: recorded with {record['by']}; counted with {by}")
    elif wrong:
        print(f"WRONG. If it is meant to be so: python {sys.argv[0]} {asked.build} --record")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
