"""What `import schuss` adds to `import numpy`: `python bench/imports.py [--rounds N]`.

New interpreters take turns, and the ratio is the median over the rounds, after one that leaves the
bytecode behind, as an installation does. It exits with an error above the promised 1.5.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from statistics import median

PROMISED = 1.5
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def seconds(module: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, env=ENVIRONMENT)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="The time of import schuss over import numpy.")
    parser.add_argument("--rounds", type=int, default=30, help="default: %(default)s")
    rounds = parser.parse_args().rounds
    seconds("schuss")
    pairs = [(seconds("numpy"), seconds("schuss")) for _ in range(rounds)]
    numpy, schuss = (median(column) for column in zip(*pairs, strict=True))
    ratio = median(ours / alone for alone, ours in pairs)
    print(f"import numpy {numpy * 1e3:.0f} ms, import schuss {schuss * 1e3:.0f} ms: {ratio:.2f}")
    if ratio > PROMISED:
        sys.exit(f"above the promised {PROMISED}")


if __name__ == "__main__":
    main()
