"""Checkpoints with something else in them: loading says what is wrong and changes nothing.

Bytes are changed, and the JSON of the header and of the values in it, with right checksums again,
so that it is what comes behind them that has to see it. What is loaded all the same has to step.
"""

from __future__ import annotations

import json
import math
import resource
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import ml_dtypes
import numpy as np
from engine.unchanged import snapshot

import schuss
from schuss.engine import safetensors as container
from schuss.engine.optimizer import Optimizer

ROOM = 1 << 29  # bytes of address space more than there are at the start

# Values that are somebody's end.
ODD: list[Any] = [
    None, True, False, 0, -0.0, 1, -1, 255, 2**31, 2**53, 2**62, 2**63, -(2**63), 2**64, 10**400,
    0.5, 1e308, 1e-320, "", "a", "0", "\0", "float32", "F64", "\ud800", "a" * 1000, [], [[]], {},
    {"$": "int", "value": "1"}, {"$": "float", "value": "7ff8000000000000"},
    {"$": "array", "value": "params.w"}, {"$": "tuple", "value": []}, {"$": "dict", "value": []},
    {"$": None}, {"$": "optimizer", "value": {}}, [0] * 50, {"a": {"b": {"c": 0}}},
]  # fmt: skip


class Training:
    """What is saved and loaded."""

    def __init__(self, rule: type[Optimizer], **options: Any) -> None:
        rng = np.random.default_rng(1)
        dtype = options.pop("dtype", np.float32)
        self.params = {"w": rng.standard_normal((5, 3)).astype(dtype), "b": np.ones(3, dtype)}
        self.opt = rule(self.params, **options)
        self.rng = np.random.default_rng(2)
        self.entries: dict[str, Any] = {"params": self.params, "opt": self.opt, "rng": self.rng}

    def step(self) -> None:
        draw = self.rng.standard_normal
        kind = np.float64 if self.params["b"].dtype == np.float64 else np.float32
        grads = {k: draw(x.shape).astype(kind) for k, x in self.params.items()}
        with np.errstate(all="ignore"):
            self.opt.step(grads, loss=1.0)

    def look(self) -> Any:
        state = self.opt.state_dict()
        moved = repr([state[key] for key in ("schedules", "loss_scale", "options")])
        return repr(snapshot(self.opt)[:5]), moved, repr(self.rng.bit_generator.state)


def plateau() -> Any:
    return schuss.schedules.ReduceOnPlateau(0.1, patience=1)


TRAININGS: list[Callable[[], Training]] = [
    lambda: Training(schuss.AdamW, ema=0.9, lr=plateau()),
    lambda: Training(schuss.SGD, grad_scale=schuss.LossScale(), nonfinite="skip"),
    lambda: Training(schuss.Prodigy, dtype=float, bounds=(-5.0, 5.0)),
    lambda: Training(schuss.Adam, dtype=ml_dtypes.bfloat16, master=True, amsgrad=True),
    lambda: Training(schuss.ScheduleFreeSGD, clip_norm=1.0),
    lambda: Training(
        schuss.AdamW, dtype=ml_dtypes.bfloat16, master="remainder", state_dtype="blockfloat8"
    ),
]


def split(content: bytes) -> tuple[Any, bytes]:
    """The header's fields, and the arrays."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def joined(fields: Any, data: bytes) -> bytes:
    """A file of these, with a right seal."""
    seal, text = container.SEAL, json.dumps(fields).encode()
    metadata = fields.get(container.METADATA) if isinstance(fields, dict) else None
    if isinstance(metadata, dict) and seal in metadata:
        metadata = {seal: "0" * 8} | {k: v for k, v in metadata.items() if k != seal}
        rest = {k: v for k, v in fields.items() if k != container.METADATA}
        fields = {container.METADATA: metadata, **rest}
        text = json.dumps(fields, separators=(",", ":")).encode()
        if text.startswith(container.BEFORE_SEAL):
            at = len(container.BEFORE_SEAL)
            text = text[:at] + b"%08x" % zlib.crc32(text) + text[at + 8 :]
    return len(text).to_bytes(8, "little") + text + data


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to each value in JSON."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            found += places(inner, (*path, key))
    return found


def change(root: Any, random: Random) -> None:
    """Puts something else at one place of JSON, or takes it away, or copies it elsewhere."""
    found = places(root)
    if not found:
        return
    *path, last = random.choice(found)
    parent = root
    for key in path:
        parent = parent[key]
    kind = random.randrange(6)
    if kind == 0:
        del parent[last]
    elif kind == 1 and isinstance(parent, dict):
        parent[random.choice(["", "a", "$", "step", "lr", last + "x"])] = parent.pop(last)
    elif kind == 2:
        other = root
        for key in random.choice(found):
            other = other[key]
        parent[last] = json.loads(json.dumps(other))
    elif kind == 3 and isinstance(parent[last], int | float):
        parent[last] = random.choice([parent[last] + 1, -parent[last], parent[last] * 2**40])
    elif kind == 4 and isinstance(parent[last], str) and parent[last]:
        text = list(parent[last])
        text[random.randrange(len(text))] = random.choice("0f$ .-x9\0")
        parent[last] = "".join(text)
    else:
        parent[last] = deepcopy(random.choice(ODD))


VALUES, CHECKSUMS = "schuss.values", "schuss.crc32"


def changed_json(content: bytes, random: Random) -> bytes:
    fields, data = split(content)
    metadata = fields[container.METADATA]
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        key = random.choice([VALUES, VALUES, VALUES, CHECKSUMS, ""])
        if key and isinstance(metadata.get(key), str):
            try:
                inner = json.loads(metadata[key])
            except ValueError:  # of an earlier change
                continue
            change(inner, random)
            metadata[key] = json.dumps(inner)
        else:
            change(fields, random)
            metadata = fields.get(container.METADATA)
            if not isinstance(metadata, dict):
                break
    return joined(fields, data)


def changed_numbers(content: bytes, random: Random) -> bytes:
    """Other numbers in the arrays, with right checksums."""
    fields, data = split(content)
    wrong = bytearray(data)
    for _ in range(random.choice([1, 4])):
        at = random.randrange(max(len(wrong) - 8, 1))
        wrong[at : at + 8] = random.choice([b"\xff" * 8, b"\0" * 8, random.randbytes(8)])
    metadata = fields[container.METADATA]
    sums = {}
    for name, entry in fields.items():
        if name != container.METADATA:
            first, last = entry["data_offsets"]
            sums[name] = f"{zlib.crc32(wrong[first:last]):08x}"
    metadata[CHECKSUMS] = json.dumps(sums)
    return joined(fields, bytes(wrong[: len(data)]))


def changed_bytes(content: bytes, random: Random) -> bytes:
    wrong = bytearray(content)
    for _ in range(random.choice([1, 2, 8])):
        at = random.randrange(len(wrong)) if random.random() < 0.5 else random.randrange(200)
        kind = random.randrange(5)
        if kind == 0:
            wrong[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            del wrong[at : at + random.randrange(1, 100)]
        elif kind == 2:
            wrong[at:at] = random.randbytes(random.randrange(1, 20))
        elif kind == 3:
            wrong[:8] = random.choice([2**63, 2**64 - 1, 2**40, 0, 1, 9]).to_bytes(8, "little")
        else:
            wrong[at : at + 30] = wrong[: random.randrange(60)]
        if not wrong:
            break
    return bytes(wrong)


def fuzz(seconds: float, seed: int, at_least: int = 0) -> Counter[str]:
    """Loads for so long, and says what came of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, hard))
    try:
        return fuzz_within(seconds, seed, at_least)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def fuzz_within(seconds: float, seed: int, at_least: int) -> Counter[str]:
    end, count, number = time.monotonic() + seconds, Counter[str](), seed
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.safetensors")
        saved: list[bytes] = []
        for make in TRAININGS:
            training = make()
            for _ in range(3):
                training.step()
            schuss.save(path, note="a", step=3, more=[1.5, (None, True)], **training.entries)
            saved.append(path.read_bytes())
        while time.monotonic() < end or number - seed < at_least:
            random, number = Random(number), number + 1
            which = random.randrange(len(saved))
            how = random.choice([changed_bytes, changed_json, changed_json, changed_numbers])
            path.write_bytes(how(saved[which], random))
            try:
                count[f"{how.__name__}: {loaded(TRAININGS[which](), path)}"] += 1
            except BaseException:
                print(f"--seed {number - 1}: {how.__name__}, training {which}", flush=True)
                raise
    return count


def loaded(training: Training, path: Path) -> str:
    """What came of it, having made sure that it is one of the two."""
    training.step()
    before = training.look()
    try:
        schuss.load(path, **training.entries)
    except (ValueError, TypeError) as error:
        if training.look() != before:
            raise AssertionError(f"changed, and then: {error}") from error
        return "refused"
    training.opt.refresh()  # a master whose parameter has other numbers
    for _ in range(2):
        training.step()
    assert math.isfinite(training.opt.iterations)
    return "loaded"
