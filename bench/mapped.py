"""Steps of state in files against steps of state in memory: `python bench/mapped.py [FOLDER]`.

Adam in float32, its parameters and gradients in mapped files of their own, in a control group whose
memory is limited (version 1 or 2; wants the right to make one). State in memory is the contestant
where it fits; beyond, the kernel ends its process, and the files go on at the disk's rate. The
answer is compared before anything is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np

import schuss

LIMIT = 256 << 20
STEPS = 25  # of 1 GiB and more of memory, a fifth


@contextlib.contextmanager
def limited(limit: int) -> Iterator[Path | None]:
    """A control group with so much memory; None where none can be made."""
    for root, name in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = root / f"schuss-{os.getpid()}"
        try:
            group.mkdir()
            (group / name).write_text(str(limit))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        try:
            yield group
        finally:
            group.rmdir()
        return
    yield None


def child(folder: Path, n: int, mapped: bool, group: str) -> None:
    """Steps, and prints the seconds of the median one."""
    if group:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    x, g = (np.memmap(folder / name, np.float32, "w+", shape=n) for name in "xg")
    g[:] = 1
    opt = schuss.Adam([x], lr=1.0, state_dir=folder / "state" if mapped else None)
    want = schuss.Adam([np.zeros(1, np.float32)], lr=1.0)
    times = []
    for _ in range(STEPS if n < 16 << 20 else STEPS // 5):
        start = time.perf_counter()
        opt.step([g])
        times.append(time.perf_counter() - start)
        want.step([np.ones(1, np.float32)])
    if not (x[[0, -1]] == want.param_groups[0]["params"][0][0]).all():
        sys.exit("the steps are wrong")
    print(median(times[len(times) // 5 :]))


def seconds(folder: Path, n: int, mapped: bool, group: Path | None) -> float | None:
    """Of the median step in a process of its own; None where that was ended."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        command = [sys.executable, __file__, own, "--child", str(n), str(int(mapped))]
        done = subprocess.run(
            [*command, str(group or "")], capture_output=True, text=True, check=False
        )
    return float(done.stdout) if done.returncode == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default=".")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = Path(args.folder)
    if args.child:
        child(folder, int(args.child[0]), args.child[1] == "1", args.child[2])
        return
    with limited(LIMIT) as group:
        print(f"limit: {f'{LIMIT >> 20} MiB' if group else 'none could be set'}")
        print(f"{'state':>10} {'memory':>12} {'files':>12} {'files/memory':>13} {'files':>10}")
        for n in (1 << 20, 4 << 20, 8 << 20, 24 << 20, 64 << 20):
            plain, mapped = (seconds(folder, n, way, group) for way in (False, True))
            if mapped is None:
                sys.exit(f"{n} elements: state in files failed")
            row = [
                f"{8 * n >> 20:>6} MiB",
                "ended" if plain is None else f"{1e9 * plain / n:.2f} ns",
            ]
            row += [f"{1e9 * mapped / n:.2f} ns", "-" if plain is None else f"{mapped / plain:.2f}"]
            row += [f"{28 * n / mapped / 1e9:.2f} GB/s"]
            print(f"{row[0]:>10} {row[1]:>12} {row[2]:>12} {row[3]:>13} {row[4]:>10}", flush=True)


if __name__ == "__main__":
    main()
