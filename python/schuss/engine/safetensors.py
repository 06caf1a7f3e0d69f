"""Files in the safetensors format: a header that says what lies where, and the arrays' bytes.

    8 bytes   the length of the header, little-endian
    header    JSON: {"__metadata__": {text: text}, name: {"dtype", "shape", "data_offsets"}, ...}
    data      array after array in C order, little-endian, without holes; offsets count from here

Headers that are written here begin with a checksum of themselves, in the metadata under SEAL. Those
of other writers have none. Nothing that a header says is believed before it is checked.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

# What the format calls each type, with NumPy's name and the bytes of an element. Complex numbers
# and those of less than a byte are left out.
DTYPES = {
    "F64": ("float64", 8),
    "I64": ("int64", 8),
    "U64": ("uint64", 8),
    "F32": ("float32", 4),
    "I32": ("int32", 4),
    "U32": ("uint32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I16": ("int16", 2),
    "U16": ("uint16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
NAMES = {numpy: name for name, (numpy, _) in DTYPES.items()}

METADATA = "__metadata__"
SEAL = "schuss.header"
BEFORE_SEAL = f'{{"{METADATA}":{{"{SEAL}":"'.encode()
UNSEALED = b"0" * 8  # stands in the seal's place while the checksum is taken
MOST = 100_000_000  # bytes of a header, as other readers have it
ALIGN = 64  # the data starts at a multiple of it: at a cache line of a mapped file
PIECE = 1 << 20  # bytes that are read or written at once: they stay in the cache meanwhile


class Entry(NamedTuple):
    """One array: its type as the format calls it, its shape, and where its bytes lie."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{DTYPES[self.dtype][0]} of shape {self.shape}"


class Header(NamedTuple):
    """What a file says of itself, checked."""

    entries: dict[str, Entry]  # in the order of the data
    metadata: dict[str, str]
    data: int  # where the data starts in the file


# ---- Writing


def layout(arrays: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Entry]:
    """Where arrays of these types, by NumPy's name, and shapes lie: those of large elements first.

    So each is aligned to its element, without holes. Raises TypeError where the format has no such
    type.
    """
    entries, end = {}, 0
    for name, (dtype, _) in arrays.items():
        if dtype not in NAMES:
            raise TypeError(f"{name}: {dtype} can't be stored")
    for name in sorted(arrays, key=lambda name: -DTYPES[NAMES[arrays[name][0]]][1]):
        dtype, shape = arrays[name]
        stop = end + nbytes(NAMES[dtype], shape)
        entries[name] = Entry(NAMES[dtype], shape, end, stop)
        end = stop
    return entries


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """The bytes of an array, however large the numbers."""
    size = DTYPES[dtype][1]
    for n in shape:
        size *= n
    return size


def packed(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """The file's beginning, up to the data: as long as the metadata's texts make it."""
    fields: dict[str, Any] = {METADATA: {SEAL: UNSEALED.decode(), **metadata}}
    for name, e in entries.items():
        fields[name] = {"dtype": e.dtype, "shape": e.shape, "data_offsets": (e.start, e.stop)}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    if len(text) > MOST:
        raise ValueError(f"{len(text)} bytes of names and numbers; at most {MOST} can be stored")
    rest = text[len(BEFORE_SEAL) + len(UNSEALED) :]
    return len(text).to_bytes(8, "little") + BEFORE_SEAL + b"%08x" % zlib.crc32(text) + rest


def pieces(array: np.ndarray) -> Iterator[memoryview]:
    """The bytes of an array in C order, little-endian, from whatever order and strides it has.

    Where it doesn't lie so already, a piece at a time is copied.
    """
    array = np.asarray(array)
    stored = array.dtype.newbyteorder("<")
    if array.flags.c_contiguous and array.dtype == stored:
        whole = array.reshape(-1).view(np.uint8).data
        yield from (whole[i : i + PIECE] for i in range(0, len(whole), PIECE))
    elif array.nbytes <= PIECE:
        yield from pieces(array.astype(stored, order="C"))
    elif rows := PIECE * len(array) // array.nbytes:
        for i in range(0, len(array), rows):
            yield from pieces(array[i : i + rows])
    else:
        for row in array:
            yield from pieces(row)


def checked(file: BinaryIO, array: np.ndarray, read: Callable[[int], Any]) -> str | None:
    """The checksum of an array in a file, from here on; None where other bytes are there.

    read   is told of so many bytes each time
    """
    checksum, buffer = 0, bytearray(min(PIECE, array.nbytes))
    for piece in pieces(array):
        if len(piece) < len(buffer):
            buffer = bytearray(len(piece))
        if file.readinto(buffer) != len(piece) or buffer != piece:  # type: ignore[attr-defined]
            return None
        checksum = zlib.crc32(buffer, checksum)
        read(len(piece))
    return f"{checksum:08x}"


# ---- Reading


def read_header(file: BinaryIO) -> Header:
    """Reads and checks the beginning of a file; raises ValueError where it can't be right."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= size - 8:
        raise ValueError(f"no safetensors file, or a truncated one: {size} bytes")
    if length > MOST:
        raise ValueError(f"a header of {length} bytes; at most {MOST} are read")
    text = file.read(length)
    if len(text) < length:
        raise ValueError("truncated while it was read")
    entries, metadata = parsed(text)
    end = 0
    for name, entry in entries.items():
        if entry.start != end:
            raise ValueError(f"{name}: starts at {entry.start}, where {end} is wanted")
        end = entry.stop
    if end != size - 8 - length:
        raise ValueError(f"{size - 8 - length} bytes of data, but arrays of {end}")
    if SEAL in metadata and not is_sealed(text):
        raise ValueError("the header's checksum is wrong")
    return Header(entries, metadata, 8 + length)


def parsed(text: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    """What a header says, in the order of the data."""
    fields = strict_json(text)
    metadata = fields.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{METADATA}: wanted texts by name")
    entries = {name: entry(name, value) for name, value in fields.items()}
    return dict(sorted(entries.items(), key=lambda item: item[1][2:])), metadata


def strict_json(text: bytes | str) -> dict[str, Any]:
    """The members of an object of JSON as its standard has it; raises ValueError."""
    try:
        text = text if isinstance(text, str) else text.decode()
        if not text.startswith("{"):
            raise ValueError("it starts with no brace")
        found: dict[str, Any] = json.loads(
            text, object_pairs_hook=without_duplicates, parse_constant=no_constant
        )
    except RecursionError:
        raise ValueError("the header is nested too deep") from None
    except ValueError as error:  # of the JSON, or of UTF-8
        raise ValueError(f"the header is no JSON: {error}") from None
    return found


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def entry(name: str, value: Any) -> Entry:
    """What a header says of one array."""
    if not name.isascii() and name != name.encode(errors="replace").decode():
        raise ValueError(f"{name!r}: no text")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name}: wanted dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name}: dtype {dtype!r:.40} is unknown; known are {', '.join(DTYPES)}")
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(
            type(n) is int and 0 <= n < 2**63 for n in numbers
        ):
            raise ValueError(f"{name}: {what} {numbers!r:.40} are no whole numbers below 2^63")
    if len(offsets) != 2 or len(shape) > 32:
        raise ValueError(f"{name}: wanted two offsets, and at most 32 axes")
    if offsets[1] - offsets[0] != (size := nbytes(dtype, shape)):
        raise ValueError(f"{name}: {offsets[1] - offsets[0]} bytes, where its shape takes {size}")
    return Entry(dtype, tuple(shape), *offsets)


def is_sealed(text: bytes) -> bool:
    """Whether a header's checksum stands where it is written, and is right."""
    start = len(BEFORE_SEAL)
    found, rest = text[start : start + len(UNSEALED)], text[start + len(UNSEALED) :]
    unsealed = BEFORE_SEAL + UNSEALED + rest
    return text.startswith(BEFORE_SEAL) and found == b"%08x" % zlib.crc32(unsealed)


def checksums(file: BinaryIO, header: Header, read: Callable[[int], Any]) -> Iterator[str]:
    """The checksum of each array, in the order of the data, read in pieces.

    read   is told of so many bytes each time
    """
    for name, entry in header.entries.items():
        start, stop = header.data + entry.start, header.data + entry.stop
        yield f"{checksum(file, name, start, stop, read):08x}"


def checksum(file: BinaryIO, name: str, start: int, stop: int, read: Callable[[int], Any]) -> int:
    """The checksum of a part of a file, in which an array lies."""
    found, buffer = 0, memoryview(bytearray(min(PIECE, stop - start)))
    file.seek(start)
    while start < stop:
        n = file.readinto(buffer[: stop - start])  # type: ignore[attr-defined]
        if not n:
            raise ValueError(f"{name}: truncated while it was read")
        found = zlib.crc32(buffer[:n], found)
        start += n
        read(n)
    return found


def mapped(file: BinaryIO) -> mmap.mmap:
    """The file as memory, to look into: it stays as long as an array of `view` does."""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def view(memory: mmap.mmap, header: Header, name: str) -> np.ndarray:
    """One array, read-only, in a file that is mapped."""
    entry = header.entries[name]
    dtype = dtype_of(entry.dtype)
    array: np.ndarray = np.ndarray(entry.shape, dtype, memory, header.data + entry.start)
    if entry.dtype == "BOOL" and array.view(np.uint8).max(initial=0) > 1:
        raise ValueError(f"{name}: has a bool that is neither 0 nor 1")
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def dtype_of(name: str) -> np.dtype[Any]:
    """NumPy's type for one of the format's; raises ValueError where a package is missing."""
    if name != "BF16":
        return np.dtype(DTYPES[name][0]).newbyteorder("<")
    try:
        from ml_dtypes import bfloat16  # noqa: PLC0415  an optional package
    except ImportError:
        raise ValueError("bfloat16 needs the package ml_dtypes") from None
    found: np.dtype[Any] = np.dtype(bfloat16)
    return found
