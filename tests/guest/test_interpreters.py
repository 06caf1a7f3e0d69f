"""The module is for the main interpreter of a process, and for one with its lock."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., None]


# What is said to an interpreter with a lock of its own, and to one that shares the
# main one's, where it is NumPy that refuses.
SAID = {
    "isolated": "module schuss._core does not support loading in subinterpreters",
    "legacy": "cannot load module more than once per process",
}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="needs CPython 3.12 or newer")
@pytest.mark.parametrize("kind", SAID)
def test_another_interpreter_gets_an_error(run: Run, tmp_path: Path, kind: str) -> None:
    code = """
        import sys
        from trial import check

        if sys.version_info < (3, 13):
            import _xxsubinterpreters as interpreters
            other = interpreters.create(isolated=sys.argv[1] == "isolated")
            execute = interpreters.run_string
        else:
            import _interpreters as interpreters
            other, execute = interpreters.create(sys.argv[1]), interpreters.exec

        execute(other, f'''if True:
            import pathlib, sys
            sys.path[:] = {sys.path!r}
            try:
                import schuss
                said = "imported"
            except ImportError as error:
                said = str(error)
            pathlib.Path({sys.argv[2]!r}).write_text(said)
            ''')
        interpreters.destroy(other)
        check(3)
        """
    file = tmp_path / "said"
    run(code, arguments=[kind, file], SCHUSS_NUM_THREADS="3")
    assert file.read_text() == SAID[kind]


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="needs a free-threaded CPython"
)
def test_a_free_threaded_interpreter_takes_its_lock_back(run: Run) -> None:
    """CPython switches the lock on as it imports a module that needs it, and warns of that."""
    code = """
        import sys, warnings
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            import schuss
        assert sys._is_gil_enabled()
        assert any("schuss._core" in str(w.message) for w in warned), warned
        from trial import check
        check(3)
        """
    run(code, SCHUSS_NUM_THREADS="3")
