"""How near each rule is to what binds it: `python bench/rules.py [--isa ISA]`.

In the caches that is the processor's division and root, far beyond them the memory. README.md
explains the columns.
"""

from __future__ import annotations

import argparse
import subprocess
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np

from schuss import _core, reference, threads
from schuss.engine.optimizer import Optimizer
from schuss.engine.scalars import scalar_names
from schuss.lab.bench import roofline
from schuss.lab.bench.clock import Timed, take_turns
from schuss.lab.bench.contestants import Schuss
from schuss.lab.bench.workloads import Case, Memory, label
from schuss.rules import RULES

AVX512 = ["-mavx512f", "-mprefer-vector-width=512"]
FLAGS = {
    "avx512zen": AVX512,
    "avx512bf16": AVX512,
    "avx512": AVX512,
    "avx2": ["-mavx2"],
    "sse2": [],
    "neon": [],
    "baseline": [],
}
CACHED, CALL, FAR = label(1, 10_000), label(1, 1), label(1, 10_000_000)


class Counted(np.ndarray[Any, np.dtype[Any]]):
    """An array that counts what is done with it."""

    done: ClassVar[Counter[str]] = Counter()

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: Any, *inputs: Any, out: Any = None, **more: Any
    ) -> Any:
        self.done[ufunc.__name__] += 1
        plain = [np.asarray(a) if isinstance(a, Counted) else a for a in inputs]
        return np.asarray(getattr(ufunc, method)(*plain, **more)).view(Counted)


def operations(kernel: str, states: int) -> tuple[int, int]:
    """Divisions and roots of one element, as the reference takes them."""
    Counted.done.clear()
    arrays = [np.ones(1).view(Counted) for _ in range(2 + states)]
    getattr(reference, kernel)(*arrays, **dict.fromkeys(scalar_names(kernel), 0.5))
    return Counted.done["divide"], Counted.done["sqrt"]


def primitives(isa: str) -> tuple[float, float]:
    """Nanoseconds of a division and of a root in the vectors of an instruction set."""
    source = Path(__file__).with_name("throughput.cpp")
    with TemporaryDirectory() as folder:
        built = Path(folder) / "throughput"
        compiled = ["c++", "-O3", "-fno-math-errno", *FLAGS[isa], str(source), "-o", str(built)]
        subprocess.run(compiled, check=True)
        printed = subprocess.run(built, check=True, stdout=subprocess.PIPE, text=True).stdout
    divide, root = map(float, printed.split())
    return divide, root


def stepped(rule: type[Optimizer], workload: str) -> tuple[Schuss, Timed]:
    case = Case(rule, workload)
    ours = Schuss(case, Memory(case))
    ours.step()
    return ours, Timed(ours.step)


def line(rule: type[Optimizer], divide: float, root: float) -> str:
    """A rule in the cache, without the call, and in memory, beside what binds it."""
    (_, call), (_, near), (ours, far) = (stepped(rule, w) for w in (CALL, CACHED, FAR))
    take_turns([call, near], 0.3)
    traffic = roofline.kernels(ours.held)
    take_turns([far, *(t.timed for t in traffic)], 1.0)
    kernel = rule.kernel(rule.defaults() | Case(rule, FAR).options)
    divisions, roots = operations(kernel, len(rule.states[kernel]))
    bound = divisions * divide + roots * root
    cached = 1e9 * (near.seconds - call.seconds) / 1e4
    top = max(t.bytes / t.timed.seconds for t in traffic)
    of_bound, of_roofline = bound / cached, ours.bytes / far.seconds / top
    return (
        f"{rule.__name__:20}{divisions:>4}{roots:>6}{bound:>9.3f}{cached:>9.3f}{of_bound:>7.0%}"
        f"{ours.bytes / 1e7:>8.0f}{1e2 * far.seconds:>9.3f}{of_roofline:>10.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", default=_core.isa(), choices=_core.found_isas())
    _core.use_isa(parser.parse_args().isa)
    with threads(1), np.errstate(all="ignore"):
        divide, root = primitives(_core.isa())
        print(f"{_core.isa()}: {divide:.3f} ns a division, {root:.3f} ns a root")
        print(f"{'':20} div  root    bound   cached  share   bytes   memory  roofline")
        for rule in RULES:
            print(line(rule, divide, root), flush=True)


if __name__ == "__main__":
    main()
