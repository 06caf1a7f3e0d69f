"""Whether AdamW is as many times as fast as its reference as promised: `python bench/steps.py`.

On one thread, by the measurement of `python -m schuss bench`. README.md has the table.
"""

from __future__ import annotations

import sys

from schuss import AdamW
from schuss.lab.bench.measure import measure
from schuss.lab.bench.workloads import MILLION, Case

FLOOR = {"200 arrays of 64": 100, "1000 arrays of 1000": 20, MILLION: 8}


def main() -> None:
    missed = False
    for workload, floor in FLOOR.items():
        ratio = measure(Case(AdamW, workload), 1, 0.5).contestants["numpy"].ratio
        missed |= ratio < floor
        print(f"{workload:<20}{ratio:>6.1f} times as fast as the reference, wanted {floor}")
    sys.exit(missed)


if __name__ == "__main__":
    main()
