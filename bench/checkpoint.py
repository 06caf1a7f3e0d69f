"""Saving and loading beside `cp` and a checksum: `python bench/checkpoint.py [FOLDER] [options]`.

An Adam's arrays are saved to and loaded from a folder. `cp` copies the same file, `sync` brings the
copy to the disk as a save does, and Python's zlib.crc32 reads a file in pieces. All take turns, and
the ratio is the median over the rounds; it exits with an error below the promised 0.8.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

import schuss

PROMISED = 0.8
PIECE = 1 << 20


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def checksum(path: Path) -> None:
    """What any checksum of a file takes: all of it is read."""
    found, buffer = 0, memoryview(bytearray(PIECE))
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(buffer):
            found = zlib.crc32(buffer[:n], found)


def checksums() -> str:
    """What each of the standard library's takes, in memory: GB a second."""
    data = np.random.default_rng(0).bytes(PIECE)
    ways: dict[str, Callable[[bytes], object]] = {"crc32": zlib.crc32, "adler32": zlib.adler32}
    ways |= {name: partial(hashlib.new, name) for name in ("sha1", "sha256", "blake2b", "md5")}
    best = {name: min(seconds(partial(way, data)) for _ in range(30)) for name, way in ways.items()}
    return ", ".join(f"{name} {PIECE / t / 1e9:.2f}" for name, t in best.items())


def main() -> None:
    parser = argparse.ArgumentParser(description="Saving and loading beside cp and a checksum.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path.cwd())
    parser.add_argument("--megabytes", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    args = parser.parse_args()
    print(f"checksums, GB/s in memory: {checksums()}")
    rng = np.random.default_rng(0)
    params = [rng.random((args.megabytes << 20) // 96, np.float32) for _ in range(8)]
    opt = schuss.Adam(params)
    opt.step([p - 0.5 for p in params])
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        file, copy = Path(folder, "file"), Path(folder, "copy")

        def copied(durable: bool) -> None:
            subprocess.run(["cp", file, copy], check=True)
            if durable:
                subprocess.run(["sync", copy], check=True)

        schuss.save(file, opt)
        size = file.stat().st_size
        calls: dict[str, Callable[[], object]] = {
            "save": partial(schuss.save, file, opt),
            "load": partial(schuss.load, file, opt),
            "cp, sync": partial(copied, durable=True),
            "cp": partial(copied, durable=False),
            "crc32": partial(checksum, file),
        }
        rounds = [{k: seconds(call) for k, call in calls.items()} for _ in range(args.rounds)]
    for name in calls:
        middle = median(times[name] for times in rounds)
        print(f"{name:<10}{1e3 * middle:8.0f} ms {size / middle / 1e9:6.2f} GB/s")
    saving = median((t["cp, sync"] + t["crc32"]) / t["save"] for t in rounds)
    loading = median((t["cp"] + t["crc32"]) / t["load"] for t in rounds)
    print(f"bandwidth over that of cp, sync and a checksum: save {saving:.2f}")
    print(f"bandwidth over that of cp and a checksum: load {loading:.2f}")
    if min(saving, loading) < PROMISED:
        sys.exit(f"below the promised {PROMISED}")


if __name__ == "__main__":
    main()
