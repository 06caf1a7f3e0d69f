"""The caller's floating-point environment changes no bit of a step, and is there again after it.

A library that gcc 12 linked with -ffast-math makes subnormal numbers zero in the thread that loads
it, and so in threads that this one starts: results would depend on who started when.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import pytest

MXCSR = {
    "default": 0x1F80,
    "exceptions seen": 0x1F9F,
    "overflow and subnormals trap": 0x1A80,
    "rounding upward": 0x5F80,
    "subnormals are zero": 0x9FC0,
}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads MXCSR of x86")
@pytest.mark.parametrize("started", [False, True], ids=["threads start after", "threads run"])
@pytest.mark.parametrize("csr", MXCSR.values(), ids=MXCSR)
def test_environment(
    run: Callable[..., None], compiled: Callable[..., Path], csr: int, started: bool
) -> None:
    code = """
        import ctypes, sys
        import schuss
        from schuss import _core
        from trial import Trial, check

        library, csr = ctypes.CDLL(sys.argv[1]), int(sys.argv[2])
        default, inexact = library.get(), 0x20  # which Python's own arithmetic raises

        def trial(backend):
            # The scalars are powers of two: Python's arithmetic depends on the rounding too.
            options = {"lr": 0.5, "momentum": 0.5, "subnormals": "keep"}
            made = Trial(schuss.SGD, backend=backend, **options)
            for a in (*made.params, *made.grads):
                a[::3] *= 1e-30
                a[::3] *= 1e-10
                a[1::3] *= 3e38
            return made

        if sys.argv[3] == "True":
            check(3)
        expected, stepped = trial("numpy").step(2).bits, trial("compiled")
        _core.widest_region()
        library.set(csr)
        stepped.step(2)
        after = library.get()
        library.set(default)
        assert _core.widest_region() == 3
        assert after | inexact == csr | inexact
        assert stepped.bits == expected
        """
    library = compiled("environment.cpp")
    run(code, arguments=[library, csr, started], SCHUSS_NUM_THREADS="3")
