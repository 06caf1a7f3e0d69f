"""The container: what is written any reader reads, and nothing in a header is believed."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from schuss.engine import safetensors as ours

RNG = np.random.default_rng(3)
WIDE = RNG.standard_normal((600, 3, 500))
ARRAYS: dict[str, np.ndarray] = {
    "C order": WIDE,
    "Fortran order": np.asfortranarray(RNG.standard_normal((300, 700), np.float32)),
    "long rows": np.asfortranarray(RNG.standard_normal((2, ours.PIECE // 4 + 3), np.float32)),
    "strided": WIDE[:, ::-1, ::2],
    "reversed": WIDE[::-1].T,
    "repeated": np.broadcast_to(np.float32(2), (3, 5)),
    "big-endian": RNG.standard_normal(9).astype(">f4"),
    "bfloat16": RNG.standard_normal((3, 4)).astype(ml_dtypes.bfloat16)[::-1, ::-2],
    "float16": RNG.standard_normal((4, 4)).astype(np.float16).T,
    "int8": np.arange(7, dtype=np.int8),
    "bool": np.array([True, False]),
    "no dimension": np.array(3, np.int64),
    "empty": np.zeros((0, 5)),
    "empty bool": np.zeros(0, bool),
    "a.ü\n\"'": np.zeros(1, np.uint16),
}


def whole(arrays: dict[str, np.ndarray], **metadata: str) -> bytes:
    entries = ours.layout({k: (a.dtype.name, a.shape) for k, a in arrays.items()})
    data = b"".join(bytes(p) for name in entries for p in ours.pieces(arrays[name]))
    return ours.packed(entries, metadata) + data


def headed(text: str | bytes, data: int = 0, length: int | None = None) -> bytes:
    text = text.encode() if isinstance(text, str) else text
    length = len(text) if length is None else length
    return length.to_bytes(8, "little") + text + bytes(data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


def read(path: Path, content: bytes) -> ours.Header:
    path.write_bytes(content)
    with path.open("rb") as file:
        return ours.read_header(file)


def test_any_array_comes_back_here_and_elsewhere(path: Path) -> None:
    header = read(path, whole(ARRAYS, kind="test"))
    assert header.metadata.keys() == {ours.SEAL, "kind"}
    assert header.data % ours.ALIGN == 0
    elsewhere = safetensors.numpy.load_file(path)
    with path.open("rb") as file:
        memory = ours.mapped(file)
        assert len(list(ours.checksums(file, header, lambda n: None))) == len(ARRAYS)
    for name, array in ARRAYS.items():
        for found in (ours.view(memory, header, name), elsewhere[name]):
            assert found.shape == array.shape
            assert found.dtype == array.dtype.newbyteorder("=")
            assert found.tobytes() == array.astype(found.dtype).tobytes()
        assert ours.view(memory, header, name).flags.aligned


def test_pieces_are_bounded() -> None:
    for array in ARRAYS.values():
        assert all(0 < len(piece) <= ours.PIECE for piece in ours.pieces(array))
    big = np.zeros((2000, 2000), order="F")
    tracemalloc.start()
    for _ in ours.pieces(big):
        pass
    assert tracemalloc.get_traced_memory()[1] < 3 * ours.PIECE
    tracemalloc.stop()


def test_what_another_library_wrote(path: Path) -> None:
    arrays = {
        k: np.ascontiguousarray(a.astype(a.dtype.newbyteorder("="))) for k, a in ARRAYS.items()
    }
    safetensors.numpy.save_file(arrays, path, {"format": "np"})
    header = read(path, path.read_bytes())
    assert header.metadata == {"format": "np"}
    with path.open("rb") as file:
        memory = ours.mapped(file)
    for name, array in arrays.items():
        assert ours.view(memory, header, name).tobytes() == array.tobytes()


def test_no_type_of_the_format() -> None:
    with pytest.raises(TypeError, match="z: complex128 can't be stored"):
        ours.layout({"z": ("complex128", ())})


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def changed(**fields: Any) -> str:
    return json.dumps({"w": {**ONE, **fields}})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 bytes"),
        (b"\x08\x00", "2 bytes"),
        (headed("{}", length=2**63), "truncated"),
        (headed("{}", length=2**64 - 1), "truncated"),
        (headed("{}", length=0), "truncated"),
        (headed("{}", length=3), "truncated"),
        (headed("{}", data=4), "4 bytes of data, but arrays of 0"),
        (headed("[]"), "no JSON"),
        (headed(" {}"), "no JSON"),
        (headed("{{"), "no JSON"),
        (headed("{} {}"), "no JSON"),
        (headed(b'{"\xff": 1}'), "no JSON: 'utf-8'"),
        (headed('{"a":' * 100_000), "nested too deep"),
        (headed('{"a":' + "[" * 100_000), "nested too deep"),
        (headed(f'{{"w": {json.dumps(ONE)}, "w": {json.dumps(ONE)}}}', 4), "a key is there twice"),
        (headed(changed(shape=[1, float("nan")]), 4), "NaN is no number"),
        (headed(changed(shape=[1.0]), 4), "no whole numbers"),
        (headed(changed(shape=[True]), 4), "no whole numbers"),
        (headed(changed(shape=[-1]), 4), "no whole numbers"),
        (headed(changed(shape="1"), 4), "no whole numbers"),
        (headed(changed(shape=[2**64]), 4), "no whole numbers"),
        (headed(changed(shape=[2**62, 2**62, 0]), 4), "4 bytes, where its shape takes 0"),
        (headed(changed(shape=[2**32, 2**32]), 4), f"its shape takes {2**66}"),
        (headed(changed(shape=[1] * 33), 4), "32 axes"),
        (headed(changed(shape=[0] * 200), 4), "32 axes"),
        (headed(changed(data_offsets=[0, 4.0]), 4), "no whole numbers"),
        (headed(changed(data_offsets=[0]), 4), "two offsets"),
        (headed(changed(data_offsets=[4, 0]), 4), "-4 bytes"),
        (headed(changed(data_offsets=[4, 8]), 8), "w: starts at 4, where 0"),
        (headed(changed(data_offsets=[0, 2**62]), 4), "its shape takes 4"),
        (headed(changed(dtype="F33"), 4), "'F33' is unknown"),
        (headed(changed(dtype=["F32"]), 4), "is unknown"),
        (headed(changed(more=1), 4), "wanted dtype, shape"),
        (headed('{"w": 1}', 4), "wanted dtype, shape"),
        (headed(json.dumps({"v": ONE, "w": ONE}), 8), "w: starts at 0, where 4"),
        (headed(changed(), 5), "5 bytes of data, but arrays of 4"),
        (headed('{"__metadata__": {"a": 1}}'), "__metadata__"),
        (headed('{"__metadata__": []}'), "__metadata__"),
        (headed('{"__metadata__": {"schuss.header": "00000000"}}'), "checksum"),
        (headed(r'{"\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'), "no text"),
        (b"\x80\x04\x95" + bytes(50), "truncated"),
    ],
    ids=range(41),
)
def test_hostile_headers(content: bytes, says: str, path: Path) -> None:
    tracemalloc.start()
    with pytest.raises(ValueError, match=says):
        read(path, content)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_a_long_header_is_not_read(path: Path) -> None:
    with path.open("wb") as file:
        file.write((ours.MOST + 1).to_bytes(8, "little"))
        file.truncate(2 * ours.MOST)  # a hole
    with path.open("rb") as file, pytest.raises(ValueError, match="at most 100000000"):
        ours.read_header(file)


def test_a_sealed_header_is_right_or_an_error(path: Path) -> None:
    """Each bit, each length; but a bit in the seal's own name makes it one without a seal."""
    right = whole({"w": np.ones(2)}, version="1")
    end = read(path, right).data
    for i in range(8 * end):
        wrong = bytearray(right)
        wrong[i // 8] ^= 1 << i % 8
        try:
            unsealed = read(path, bytes(wrong))
        except ValueError:
            continue
        assert ours.SEAL not in unsealed.metadata
        assert 0 <= i // 8 - 8 - len(f'{{"{ours.METADATA}":{{"') < len(ours.SEAL)
    for length in range(len(right)):
        with pytest.raises(ValueError, match=r"\w"):
            read(path, right[:length])


def test_bools_are_0_or_1(path: Path) -> None:
    header = read(path, headed(changed(dtype="BOOL", shape=[4]))[:-1] + b"}" + b"\x00\x01\x02\x00")
    with path.open("rb") as file, pytest.raises(ValueError, match="w: has a bool"):
        ours.view(ours.mapped(file), header, "w")
