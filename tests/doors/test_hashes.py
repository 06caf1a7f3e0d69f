"""One number from all bits: the same for the same bits, another one for any other bit."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from engine.trained import train

import schuss
from schuss.hashes import BLOCK
from schuss.rules import RULES

RNG = np.random.default_rng(3)
WIDE = RNG.standard_normal((700, 1301))  # some pieces, and none of whole blocks
PARAMS: dict[str, Any] = {
    "w": WIDE.astype(np.float32),
    "b": np.zeros(3),
    "n": 4,
    "rate": 0.5,
    "name": None,
}


def test_by_hand() -> None:
    a = np.arange(BLOCK + 1, dtype="<f4")
    blocks = [sha256(a[:BLOCK].tobytes()).digest(), sha256(a[BLOCK:].tobytes()).digest()]
    whole = sha256(f"float32 ({BLOCK + 1},)".encode() + b"".join(blocks)).hexdigest()
    text = f'{{"$":"array","value":"{whole}"}}'
    assert schuss.hash(a) == int.from_bytes(sha256(text.encode()).digest()[:8], "little")


@pytest.mark.parametrize(
    "same",
    [
        np.asfortranarray(WIDE),
        np.repeat(WIDE, 2, axis=0)[::2],
        WIDE[::-1, ::-1].copy()[::-1, ::-1],
        WIDE.astype(">f8"),
        np.concatenate([WIDE[:1], WIDE])[1:],
    ],
    ids=["columns", "every second row", "backwards", "the other byte order", "a part"],
)
def test_where_and_how_an_array_lies_does_not_count(same: np.ndarray) -> None:
    assert schuss.hash(same) == schuss.hash(WIDE)
    assert schuss.hash([same, same]) == schuss.hash([WIDE, WIDE.copy()])


def test_every_bit_counts() -> None:
    a = RNG.standard_normal(BLOCK + 3).astype(np.float32)
    numbers = {schuss.hash(a)}
    for i in (0, 1, BLOCK - 1, BLOCK, BLOCK + 2):
        for bit in (0, 22, 31):
            other = a.copy()
            other.view(np.uint32)[i] ^= np.uint32(1 << bit)
            numbers.add(schuss.hash(other))
    assert len(numbers) == 16


def test_all_else_counts() -> None:
    others = [
        PARAMS,
        PARAMS | {"w": WIDE},
        PARAMS | {"w": PARAMS["w"].reshape(-1)},
        PARAMS | {"b": -np.zeros(3)},
        PARAMS | {"b": np.zeros(0)},
        PARAMS | {"n": 5},
        PARAMS | {"rate": 0.5000000000000001},
        PARAMS | {"name": "None"},
        dict(reversed(PARAMS.items())),
        [*PARAMS.values()],
    ]
    assert len(set(map(schuss.hash, others))) == len(others)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_equal_runs_have_equal_numbers(rule: Any) -> None:
    numbers = []
    for backend, threads in ("compiled", 1), ("compiled", 2), ("numpy", 1):
        params = {"w": np.linspace(-1, 1, 5000, dtype=np.float32), "b": np.ones(3, np.float32)}
        opt = rule(params, backend=backend)
        with schuss.threads(threads):
            train(opt, params, 2)
        numbers.append((schuss.hash(params), schuss.hash(opt)))
    assert len(set(numbers)) == 1
    before = schuss.hash(opt)
    opt.load_state_dict(opt.state_dict())
    assert schuss.hash(opt) == before
    opt.weight_decay = 0.125
    assert schuss.hash(opt) != before


def test_what_can_not_be_stored() -> None:
    with pytest.raises(TypeError, match=r"value\.1: set can't be stored"):
        schuss.hash([1, {2}])
    within: list[Any] = []
    within.append(within)
    with pytest.raises(ValueError, match="contains itself"):
        schuss.hash(within)
