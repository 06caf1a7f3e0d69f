"""A file that is replaced as a whole and for good, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no such locks: what a killed writer leaves stays there
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Within a `with`, a new file; behind it, the new one has taken the place of the old one.

    It is beside the old one under a name of its own, and is on the disk before it takes its name;
    after any error the old one is as it was. A link is followed: what it points to is replaced. Its
    mode is that of any new file. What killed writers have left behind is removed.
    """
    whole = Path(os.path.realpath(path))
    with naming(path):
        require_replaceable(whole)
        remove_leftovers(whole)
        temporary, file = opened_beside(whole)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(whole)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(whole.parent)


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """An OSError, which names a temporary file or none, names this one."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None


def syncing(file: BinaryIO) -> Callable[[], None]:
    """Begins to bring a file to the disk; what is returned waits until it is there."""
    file.flush()
    thread = ThreadPoolExecutor(1)
    try:
        return thread.submit(os.fsync, file.fileno()).result
    except RuntimeError:  # no thread can be started
        return partial(os.fsync, file.fileno())
    finally:
        thread.shutdown(wait=False)


def require_replaceable(path: Path) -> None:
    """Raises where something other than a file is there, such as a device."""
    if path.exists() and not path.is_file():
        code = errno.EISDIR if path.is_dir() else errno.EINVAL
        raise OSError(code, "not a file that can be replaced")


def beginning(path: Path) -> str:
    """How the names of temporary files begin that are to replace this one."""
    return f".schuss-{zlib.crc32(os.fsencode(path.name)):08x}-"


def opened_beside(path: Path) -> tuple[Path, BinaryIO]:
    """A new file in the same folder, locked for as long as its writer lives."""
    while True:
        temporary = path.with_name(f"{beginning(path)}{secrets.token_hex(8)}.tmp")
        file = temporary.open("x+b")
        if locked(file) is not False and temporary.exists():
            return temporary, file
        file.close()  # it was taken for a leftover before it had its lock


def remove_leftovers(path: Path) -> None:
    """Removes what writers have left behind that were killed: nobody holds its lock."""
    for leftover in path.parent.glob(f"{beginning(path)}*.tmp"):
        with contextlib.suppress(OSError), leftover.open("rb") as file:
            if locked(file):
                leftover.unlink()


def locked(file: BinaryIO | int) -> bool | None:
    """Takes the file's lock: False where another has it, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without
        return None
    return True


def sync_folder(path: Path) -> None:
    """Brings the names in a folder to the disk."""
    if os.name == "nt":  # where a folder can't be opened
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
