"""Checkpoints of processes that are killed, that write at once, and on disks that are full."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Run = Callable[..., None]

KILLED = """
    path, rng = Path(sys.argv[1]), random.Random(5)

    def save_for_ever():
        for n in itertools.count(found["n"] + 1):
            schuss.save(path, n=n, a=np.full(100_000, n), b=np.full((300, 300), n).T)

    def left():
        return [name for name in os.listdir(path.parent) if name != path.name]

    schuss.save(path, n=0, a=np.zeros(1), b=np.zeros(1))
    halves, found = 0, schuss.load(path)
    start = time.monotonic()
    for _ in range(10):
        schuss.save(path, n=0, a=np.zeros(100_000), b=np.zeros((300, 300)))
    each = (time.monotonic() - start) / 10
    for _ in range(100):
        child = os.fork()
        if not child:
            save_for_ever()
        time.sleep(3 * each * rng.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        halves += len(left())
        found = schuss.load(path)
        assert (found["a"] == found["n"]).all() and (found["b"] == found["n"]).all()
        assert len(left()) <= 1
    assert halves > 20, halves
    assert found["n"] > 10, found["n"]
    schuss.save(path, n=1)
    assert left() == []
    """

AT_ONCE = """
    path, children = Path(sys.argv[1]), []
    for n in range(4):
        children.append(os.fork())
        if not children[-1]:
            for i in range(10):
                schuss.save(path, n=n, a=np.full(100_000, n))
            os._exit(0)
    while children:
        if path.exists():
            found = schuss.load(path)
            assert (found["a"] == found["n"]).all()
        if os.waitpid(children[0], os.WNOHANG)[0]:
            children.pop(0)
    assert os.listdir(path.parent) == [path.name]
    """

FULL = """
    path, code = Path(sys.argv[1]), int(sys.argv[2])
    if len(sys.argv) > 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
    schuss.save(path, a=np.ones(1000))
    try:
        schuss.save(path, a=np.zeros(10_000_000))
    except OSError as error:
        assert (error.errno, error.filename) == (code, str(path)), error
    else:
        raise AssertionError
    assert schuss.load(path)["a"].all()
    assert os.listdir(path.parent) == [path.name]
    """

HEAD = """
    import itertools, os, random, resource, signal, sys, time
    from pathlib import Path
    import numpy as np
    import schuss
    """


def test_killed_at_any_moment(run: Run, tmp_path: Path) -> None:
    run(HEAD, KILLED, arguments=[tmp_path / "run"], timeout=120)


def test_processes_at_once(run: Run, tmp_path: Path) -> None:
    run(HEAD, AT_ONCE, arguments=[tmp_path / "run"])


def test_limit_of_a_file(run: Run, tmp_path: Path) -> None:
    run(HEAD, FULL, arguments=[tmp_path / "run", 27, 1_000_000])  # EFBIG


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(command, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_full_disk(run: Run, small_disk: Path) -> None:
    run(HEAD, FULL, arguments=[small_disk / "run", 28])  # ENOSPC


def test_read_only_folder(small_disk: Path, run: Run) -> None:
    """As root, whom modes don't stop: the file system is."""
    code = """
        path = Path(sys.argv[1])
        try:
            schuss.save(path, a=2)
        except OSError as error:
            assert (error.errno, error.filename) == (30, str(path)), error  # EROFS
        else:
            raise AssertionError
        assert schuss.load(path) == {"a": 1}
        """
    path = small_disk / "run"
    run(HEAD, "schuss.save(sys.argv[1], a=1)", arguments=[path])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    run(HEAD, code, arguments=[path])
