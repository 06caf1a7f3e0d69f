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
    "subnormals are zero": 0x9FC0,
}


Run = Callable[..., None]

ON_X86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="reads MXCSR of x86"
)

# The scalars of these steps are powers of two: Python's arithmetic depends on the rounding, too.
STEPS = """
    import ctypes, sys
    from trial import Trial, check
    import schuss
    from schuss import _core

    def trial(backend):
        options = {"lr": 0.5, "momentum": 0.5, "subnormals": "keep"}
        made = Trial(schuss.SGD, backend=backend, **options)
        for a in (*made.params, *made.grads):
            a[::3] *= 1e-30
            a[::3] *= 1e-10
            a[1::3] *= 3e38
        return made

    def step_in(change, restore):  # in an environment of the caller's
        stepped = trial("compiled")
        change()
        stepped.step(2)
        restore()
        return stepped.bits
    """


STARTS = {f"threads start, {name}": [csr] for name, csr in MXCSR.items()}


@ON_X86
@pytest.mark.parametrize("csrs", [*STARTS.values(), [*MXCSR.values()]], ids=[*STARTS, "they run"])
def test_environment(run: Run, compiled: Callable[..., Path], csrs: list[int]) -> None:
    code = """
        library = ctypes.CDLL(sys.argv[1])
        default, inexact = library.get(), 0x20  # which Python's own arithmetic raises
        expected, after = trial("numpy").step(2).bits, []

        def restore():
            after.append(library.get())
            library.set(default)

        csrs = [int(csr) for csr in sys.argv[2:]]
        if len(csrs) > 1:
            check(3)
        for csr in csrs:
            _core.widest_region()
            assert step_in(lambda: library.set(csr), restore) == expected
            assert _core.widest_region() == 3
            assert after.pop() | inexact == csr | inexact
        """
    library = compiled("environment.cpp")
    run(STEPS, code, arguments=[library, *csrs], SCHUSS_NUM_THREADS="3")


@ON_X86
@pytest.mark.parametrize("loaded", ["before the import", "after the import", "when threads run"])
def test_a_library_built_with_fast_math(
    run: Run, compiled: Callable[..., Path], loaded: str
) -> None:
    library = compiled("environment.cpp", "-ffast-math")
    if b"set_fast_math" not in library.read_bytes():
        pytest.skip("this compiler changes no environment with -ffast-math")
    load = """
        import ctypes, sys
        library = ctypes.CDLL(sys.argv[1])
        fast = library.get()
        """
    code = """
        zeroing, after = 0x8040, []
        assert fast & zeroing == zeroing

        def restore():
            after.append(library.get())
            library.set(fast & ~zeroing)

        restore()
        expected = trial("numpy").step(2).bits
        for _ in range(2):
            _core.widest_region()
            assert step_in(lambda: library.set(fast), restore) == expected
            assert _core.widest_region() == 3
        assert all(csr & zeroing == zeroing for csr in after)
        """
    parts = {
        "before the import": [load, STEPS],
        "after the import": [STEPS, load],
        "when threads run": [STEPS, "check(3)", load],
    }
    run(*parts[loaded], code, arguments=[library], SCHUSS_NUM_THREADS="3")


UPWARD = {"x86_64": 0x800, "aarch64": 0x400000}


@pytest.mark.skipif(platform.machine() not in UPWARD, reason="knows no FE_UPWARD of this machine")
def test_rounding_upward(run: Run) -> None:
    code = """
        libc, nearest, upward = ctypes.CDLL(None), 0, int(sys.argv[1])
        expected, after = trial("numpy").step(2).bits, []

        def restore():
            after.append(libc.fegetround())
            libc.fesetround(nearest)

        assert step_in(lambda: libc.fesetround(upward), restore) == expected
        assert after == [upward]
        """
    run(STEPS, code, arguments=[UPWARD[platform.machine()]], SCHUSS_NUM_THREADS="3")
