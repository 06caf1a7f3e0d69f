"""State in files that are mapped into memory, where it is larger than that.

    0.npy, 1.npy ...    the arrays, each in NumPy's own format
    state.json          which array is which, all that is no array, and the number of the change
    changing            while something changes: the number of the last change that is whole
    lock                held as long as the optimizer's process lives

A process that is killed leaves everything that it has written: the system holds it. So what is
there is torn only where it was killed within a change, and then `changing` says so. When the
machine itself goes down, only what was flushed is sure to be there.
"""

from __future__ import annotations

import json
import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from schuss.engine.memory import LINE, PAGE, STAGGER, address
from schuss.engine.replacing import locked
from schuss.engine.safetensors import strict_json
from schuss.engine.saved import written
from schuss.engine.values import Encoder, decoded

FORMAT = 1
NUMBERS, CHANGING, LOCK = "state.json", "changing", "lock"


class Files:
    """The files of one optimizer's state."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if any(self.folder.iterdir()):
            raise ValueError(
                f"state_dir: {folder!r} is not empty; what is there is loaded by schuss.load(...) "
                "into an optimizer with a state_dir of its own"
            )
        lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        locked(lock)
        self.close = weakref.finalize(self, os.close, lock)
        self.process = os.getpid()
        self.maps: list[mmap.mmap] = []
        self.names: dict[int, str] = {}  # of each array's file, by the address of its data
        self.change = 0
        self.depth = 0

    def zeros(self, x: np.ndarray, dtype: Any, shape: Any, place: int) -> np.ndarray:
        """Zeros in a file of their own and in the memory order of x, begun as memory.room does."""
        dtype = np.dtype(dtype)
        order: Any = "C" if x.flags.c_contiguous else "F"
        start = (address(x) + place * STAGGER) // LINE * LINE % PAGE + PAGE
        like = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": order == "F",
            "shape": shape,
        }
        text = repr(like).ljust(start - 11).encode("latin1") + b"\n"
        path = self.folder / f"{len(self.maps)}.npy"
        size = start + dtype.itemsize * int(np.prod(shape, dtype=object))
        with path.open("w+b") as file:
            try:
                # A file with holes would end the process where the disk is full at a later step.
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                path.unlink()
                raise OSError(error.errno, f"state_dir: {error.strerror}", str(path)) from None
            file.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
            file.flush()
            self.maps.append(mmap.mmap(file.fileno(), size))
        array: np.ndarray = np.ndarray(shape, dtype, self.maps[-1], start, order=order)
        self.names[address(array)] = path.name
        return array

    def keep_first(self, size: int) -> None:
        """Removes the files of later arrays."""
        for number in range(size, len(self.maps)):
            (self.folder / f"{number}.npy").unlink(missing_ok=True)
        del self.maps[size:]

    @contextmanager
    def changing(self, opt: Any) -> Iterator[None]:
        """Within it, what is in the files is torn."""
        self.begin()
        try:
            yield
        finally:
            self.end(opt)

    def begin(self) -> None:
        if self.process != os.getpid():
            raise RuntimeError(
                f"state_dir: its files are of process {self.process}, from which this was forked"
            )
        if self.depth == 0:
            (self.folder / CHANGING).write_text(str(self.change))
        self.depth += 1

    def end(self, opt: Any) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.change += 1
            self.write_numbers(opt)
            (self.folder / CHANGING).unlink()

    def write_numbers(self, opt: Any, flushed: bool = False) -> None:
        """Puts state.json in the place of the last one."""
        encode = Encoder(lambda value: None)
        values = encode(written(opt), "opt")
        files = {name: self.names[address(a)] for name, a in encode.arrays.items()}
        entries = {
            "format": FORMAT,
            "change": self.change,
            "flushed": flushed,
            "boot": boot(),
            "files": files,
            "values": values,
        }
        fresh = self.folder / f"{NUMBERS}.new"
        with fresh.open("w") as file:
            json.dump(entries, file, separators=(",", ":"), allow_nan=False)
            if flushed:
                file.flush()
                os.fsync(file.fileno())
        fresh.replace(self.folder / NUMBERS)

    def flush(self, opt: Any) -> None:
        """Brings everything to the disk."""
        for memory in self.maps:
            memory.flush()
        self.write_numbers(opt, flushed=True)


def boot() -> str:
    """Which run of the machine this is."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def read_folder(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state dictionary of a folder, with arrays that look into its files.

    Raises ValueError where it is torn, in use, or no such folder.
    """
    folder = Path(path)
    try:
        entries = strict_json((folder / NUMBERS).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"no state is in this folder: {NUMBERS} is missing") from None
    if entries.get("format") != FORMAT:
        raise ValueError(f"of format {entries.get('format')!r}; this one reads {FORMAT}")
    with (folder / LOCK).open("rb") as lock:
        if locked(lock) is False:
            raise ValueError("its optimizer is still there; schuss.save stores what that has")
    changing = folder / CHANGING
    if changing.exists() and changing.read_text() in ("", str(entries["change"])):
        raise ValueError(
            f"torn: the process ended within change {entries['change'] + 1}, a step or another; "
            "what is here is half of the one and half of the other"
        )
    if not entries["flushed"] and entries["boot"] != boot():
        raise ValueError(
            "perhaps torn: the machine went down after the last opt.flush(), and nobody knows what "
            "had reached the disk"
        )

    def array(name: Any) -> np.ndarray:
        file = entries["files"].get(name)
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{name!r:.60}: no array of the folder")
        try:
            found: np.ndarray = np.load(folder / file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from None
        return found

    values = decoded(entries["values"], array)
    if not isinstance(values, dict):
        raise ValueError(f"{NUMBERS} has no state dictionary")
    return values
