"""Counts the Python calls of each step of bench/cliffs.py, which no noise can touch.

    python .ci/count_calls.py [--record]

A call is one of a Python or a C function that the interpreter makes, as sys.setprofile sees them.
Fails where a step makes more than .ci/calls.json says; `--record` writes that file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECORD = Path(__file__).with_name("calls.json")
sys.path.insert(0, str(ROOT / "bench"))

import cliffs  # noqa: E402  it is no package

STEPS = 20  # an average over cases that take turns


def calls(step: Callable[[], Any]) -> float:
    """How many calls a step makes, once it has been taken often."""
    for _ in range(120):
        step()
    count = 0

    def profile(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        for _ in range(STEPS):
            step()
    finally:
        sys.setprofile(None)
    return round((count - 1) / STEPS, 2)  # less the call that ends the counting


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = {case.name: calls(case.step) for case in cliffs.cases()}
    if args.record:
        RECORD.write_text(json.dumps({"python": python, "calls": found}, indent=2) + "\n")
        return 0
    record = json.loads(RECORD.read_text())
    if record["python"] != python:
        print(f"NOT RUN: recorded with Python {record['python']}, and this is {python}")
        return 0
    recorded = record["calls"]
    wrong = [
        f"{name}: {n} calls, {recorded.get(name)} recorded"
        for name, n in found.items()
        if n > recorded.get(name, -1)
    ]
    print(*wrong or [f"{len(found)} steps make no more Python calls than recorded"], sep="\n")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main())
