"""The long runs of the fuzzers; the suite has a small sample of each. Stops at the first fault.

    python tests/fuzz.py --hostile 300       scenes of Python that does its worst within a step

They print their seed, which `--seed` repeats, and what they counted. `.ci/sanitize` in front of the
command runs it with AddressSanitizer.
"""

from __future__ import annotations

import argparse
import time

from fuzzing import hostile


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--hostile", type=int, default=0, metavar="N")
    given = parser.parse_args()
    print(f"--seed {given.seed}", flush=True)
    if given.hostile:
        count = hostile.fuzz(given.hostile, given.seed)
        actions = sum(n for name, n in count.items() if name.startswith("do "))
        places = sum(name.startswith("at ") for name in count)
        print(f"hostile: {given.hostile} scenes, {actions} actions at {places} places: no fault")


if __name__ == "__main__":
    main()
