"""The long runs of the fuzzers; the suite has a small sample of each. Stops at the first fault.

    python tests/fuzz.py --hostile 300       scenes of Python that does its worst within a step
    python tests/fuzz.py --inputs 10000      arrays and numbers, until so many were refused
    python tests/fuzz.py --machine 1000      trainings to which anything happens
    python tests/fuzz.py --loader 60         seconds of checkpoints with something else in them

They print their seed, which `--seed` repeats, and what they counted. `.ci/sanitize` in place of
`python` runs them with AddressSanitizer.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

from fuzzing import hostile, inputs, loader, machine
from hypothesis import HealthCheck, settings
from hypothesis import seed as seeded
from hypothesis.stateful import run_state_machine_as_test


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--hostile", type=int, default=0, metavar="N")
    parser.add_argument("--inputs", type=int, default=0, metavar="N")
    parser.add_argument("--machine", type=int, default=0, metavar="N")
    parser.add_argument("--loader", type=float, default=0, metavar="SECONDS")
    given = parser.parse_args()
    print(f"--seed {given.seed}", flush=True)
    if given.inputs:
        show("inputs", inputs.fuzz(given.inputs, given.seed))
    if given.machine:
        run_state_machine_as_test(
            seeded(given.seed)(machine.Training),
            settings=settings(
                max_examples=given.machine,
                stateful_step_count=30,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        print(f"machine: {given.machine} trainings: no fault")
    if given.loader:
        show("loader", loader.fuzz(given.loader, given.seed))
    if given.hostile:
        count = hostile.fuzz(given.hostile, given.seed)
        actions = sum(n for name, n in count.items() if name.startswith("do "))
        places = sum(name.startswith("at ") for name in count)
        print(f"hostile: {given.hostile} scenes, {actions} actions at {places} places: no fault")


def show(what: str, count: Counter[str]) -> None:
    counted = ", ".join(f"{n} {name}" for name, n in sorted(count.items()))
    print(f"{what}: {counted}: no fault")


if __name__ == "__main__":
    main()
