"""State in files that are mapped into memory, where it is larger than that.

    0.npy, 1.npy ...               the arrays, each in NumPy's own format
    numbers-0.json, -1.json        by turns: which array is which, and all that is no array
    0-0.npy, 0-1.npy ...           with them, arrays that are not mapped, such as weights for which
                                   means stand in the parameters
    changes                        how many changes were begun, and how many are whole
    lock                           held as long as the optimizer's process lives

A process that is killed leaves everything that it has written: the system holds it. So what is
there is torn only where it was killed within a change, and then the two counts differ. When the
machine itself goes down, only what was flushed is sure to be there.

No file takes another's place here: file systems bring a file to the disk then, which takes longer
than the step of a million elements.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import struct
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from schuss.engine.memory import LINE, PAGE, STAGGER, address, order_of
from schuss.engine.replacing import locked
from schuss.engine.safetensors import strict_json
from schuss.engine.saved import written
from schuss.engine.values import Encoder, decoded

FORMAT = 1
CHANGES, LOCK = "changes", "lock"
COUNTS = struct.Struct("<qq")  # of changes: begun, whole


class Files:
    """The files of one optimizer's state."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder).absolute()
        self.made = not self.folder.exists()
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
        self.counts = mapped(self.folder / CHANGES, COUNTS.pack(1, 0), COUNTS.size)
        self.others: list[set[str]] = [set(), set()]  # files of arrays that are not mapped
        self.change = 1  # the one at hand, or the last one
        self.depth = 1  # the first change is to make all of it

    def zeros(self, x: np.ndarray, dtype: Any, shape: Any, place: int) -> np.ndarray:
        """Zeros in a file of their own and in the memory order of x, begun as memory.room does."""
        dtype = np.dtype(dtype)
        order = order_of(x)
        start = (address(x) + place * STAGGER) // LINE * LINE % PAGE + PAGE
        like = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": order == "F",
            "shape": shape,
        }
        text = repr(like).ljust(start - 11).encode("latin1") + b"\n"
        path = self.folder / f"{len(self.maps)}.npy"
        size = start + dtype.itemsize * int(np.prod(shape, dtype=object))
        head = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
        self.maps.append(mapped(path, head, size))
        array: np.ndarray = np.ndarray(shape, dtype, self.maps[-1], start, order=order)
        self.names[address(array)] = path.name
        return array

    def keep_first(self, size: int) -> None:
        """Removes the files of later arrays."""
        gone = {f"{number}.npy" for number in range(size, len(self.maps))}
        for name in gone:
            (self.folder / name).unlink(missing_ok=True)
        # Another array may come to lie where one of these did.
        self.names = {place: name for place, name in self.names.items() if name not in gone}
        del self.maps[size:]

    def remove(self) -> None:
        """Leaves the folder as it was found."""
        self.keep_first(0)
        for name in (numbers(0), numbers(1), CHANGES, LOCK, *self.others[0], *self.others[1]):
            (self.folder / name).unlink(missing_ok=True)
        if self.made:
            self.folder.rmdir()

    @contextmanager
    def changing(self, opt: Any) -> Iterator[None]:
        """Within it, what is in the files is torn."""
        if self.process != os.getpid():
            raise RuntimeError(
                f"state_dir: its files are of process {self.process}, from which this was forked"
            )
        if self.depth == 0:
            self.change += 1
            COUNTS.pack_into(self.counts, 0, self.change, self.change - 1)
        self.depth += 1
        try:
            yield
        finally:
            self.end(opt)

    def end(self, opt: Any) -> None:
        """What is in the files is whole, if this was the outermost change."""
        self.depth -= 1
        if self.depth == 0:
            self.write_numbers(opt)
            COUNTS.pack_into(self.counts, 0, self.change, self.change)

    def write_numbers(self, opt: Any, flushed: bool = False) -> None:
        """Writes all that is no array over what it was two changes ago."""
        encode = Encoder(lambda value: None)
        values = encode(written(opt), "opt")
        files, before = {}, self.others[self.change % 2]
        self.others[self.change % 2] = set()
        for i, (name, a) in enumerate(encode.arrays.items()):
            files[name] = self.names.get(address(a), f"{i}-{self.change % 2}.npy")
            if address(a) not in self.names:
                self.others[self.change % 2].add(files[name])
                np.save(self.folder / files[name], a)
        for name in before - self.others[self.change % 2]:
            (self.folder / name).unlink()
        entries = {
            "format": FORMAT,
            "change": self.change,
            "flushed": flushed,
            "boot": boot(),
            "files": files,
            "values": values,
        }
        text = json.dumps(entries, separators=(",", ":"), allow_nan=False).encode()
        file = os.open(self.folder / numbers(self.change), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Room for longer ones, which a full disk could deny behind a step; and what was longer
            # is overwritten, not cut.
            if (room := os.fstat(file).st_size) < len(text):
                room = 2 * len(text)
            text = text.ljust(room)
            while text:
                text = text[os.write(file, text) :]
            if flushed:
                os.fsync(file)
        finally:
            os.close(file)

    def flush(self, opt: Any) -> None:
        """Brings everything to the disk."""
        with self.changing(opt):
            pass  # so that the other one of the two stays whole meanwhile
        for memory in (*self.maps, self.counts):
            memory.flush()
        self.write_numbers(opt, flushed=True)


class Alone:
    """Nobody else is in a call, and what is in the files changes: may be entered many times.

    Groups have it, which the optimizer has: in a circle state would wait for the garbage collector.
    """

    def __init__(self, opt: Any) -> None:
        self.opt = weakref.ref(opt)
        self.entered: list[ExitStack] = []

    def __enter__(self) -> None:
        with ExitStack() as stack:
            if (opt := self.opt()) is not None:  # which a group may have outlived
                stack.enter_context(opt._lock)
                stack.enter_context(opt._changing())
            self.entered.append(stack.pop_all())

    def __exit__(self, *error: Any) -> None:
        self.entered.pop().__exit__(*error)


def numbers(change: int) -> str:
    """The file that has the numbers of a change."""
    return f"numbers-{change % 2}.json"


def mapped(path: Path, head: bytes, size: int) -> mmap.mmap:
    """A new file in memory, with all its bytes on the disk.

    One with holes would end the process in a later step where the disk is full then.
    """
    try:
        with path.open("x+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
            file.write(head)
            file.flush()
            return mmap.mmap(file.fileno(), size)  # which keeps a file descriptor of its own
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(error.errno, f"state_dir: {error.strerror}", str(path)) from None


@functools.cache
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
        begun, whole = COUNTS.unpack((folder / CHANGES).read_bytes())
        with (folder / LOCK).open("rb") as lock:
            if locked(lock) is False:
                raise ValueError("its optimizer is still there; schuss.save stores what that has")
        if begun != whole:
            raise ValueError(
                f"torn: the process ended within change {begun}, a step or another, and some of "
                "what is here is from before, and some from after"
            )
        entries = strict_json((folder / numbers(whole)).read_bytes())
    except (FileNotFoundError, struct.error) as error:
        raise ValueError(f"no state of an optimizer is in this folder: {error}") from None
    try:
        if entries["format"] != FORMAT:
            raise ValueError(f"of format {entries['format']!r}; this one reads {FORMAT}")
        if entries["change"] != whole:
            raise ValueError(f"torn: the numbers of change {whole} are missing")
        if not entries["flushed"] and entries["boot"] != boot():
            raise ValueError(
                "perhaps torn: the machine went down after the last opt.flush(), and nobody knows "
                "what had reached the disk"
            )
        files, values = entries["files"], entries["values"]
        found = decoded(values, lambda name: looking_into(folder / Path(files[name]).name))
    except (KeyError, TypeError) as error:
        raise ValueError(f"damaged: {numbers(whole)} has no {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"damaged: {numbers(whole)} has no state dictionary")
    return found


def looking_into(path: Path) -> np.ndarray:
    """The array in a file, read-only."""
    try:
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name}: {error}") from None
    return found
