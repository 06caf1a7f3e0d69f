"""Checkpoints, state and hashes of a Sharded: those of one process, for any number of them."""

from __future__ import annotations

import errno
import math
import os
import threading
import zlib
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import schuss
from mpi.communicators import run_mpi, together
from schuss.engine import together as files
from schuss.engine.optimizer import Optimizer
from schuss.engine.spread import joined
from schuss.mpi import Sharded, shares

F4, F2, BF16 = np.float32, np.float16, ml_dtypes.bfloat16


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that there are several."""
    monkeypatch.setattr(shares, "BUCKET", 1 << 15)


class Run:
    """A training that takes the same steps in any number of processes."""

    def __init__(self, comm: Any, rule: type[Optimizer], dtype: Any = F4, **options: Any) -> None:
        draw = np.random.default_rng(1).standard_normal
        self.rank: int = comm.rank if comm else 0
        self.size: int = comm.size if comm else 1
        self.rng = np.random.default_rng(2)
        self.params: dict[str, Any] = {
            "w": np.asarray(draw((100, 200)), dtype),
            "f": np.asarray(draw((96, 130)), dtype, order="F"),
            "of": [np.asarray(draw((3, 4, 700)), dtype, order="F"), np.asarray(draw(57), dtype)],
            "empty": np.zeros(0, dtype),
            "s": np.asarray(0.5, dtype),
            "one": np.ones((1, 1), dtype),
            "long": np.asarray(draw(4096 * 3 + 5), dtype),
        }
        groups = [
            {"params": {k: self.params[k] for k in ("w", "f", "of")}},
            {"params": {k: self.params[k] for k in ("empty", "s", "one", "long")}, "l2": 0.01},
        ]
        options = {k: v() if callable(v) else v for k, v in options.items()}
        if comm is None:
            self.opt: Any = rule(groups, **options)
        else:
            self.opt = Sharded(rule, groups, comm=comm, **options)

    def train(self, steps: int) -> Run:
        """Process 0 has the gradients, the others none."""
        for _ in range(steps):
            t = self.opt.iterations
            grads: list[dict[str, Any]] = [
                {
                    "w": self.like("w"),
                    "f": self.like("f"),
                    "of": [*map(self.of, self.params["of"])],
                },
                {k: self.like(k) for k in ("empty", "s", "one", "long")},
            ]
            grads[1]["s"] = None if t % 3 == 1 else grads[1]["s"]  # its count stays behind
            if self.rank:
                grads = [dict.fromkeys(group) for group in grads]
            more = {"weights": [1.0] * self.size} if isinstance(self.opt, Sharded) else {}
            self.opt.step(grads, loss=2 + math.cos(t), **more)
            if isinstance(self.opt.param_groups[0]["lr"], schuss.schedules.ReduceOnPlateau):
                self.opt.observe(1.0)
        return self

    def like(self, name: str) -> np.ndarray:
        return self.of(self.params[name])

    def of(self, x: np.ndarray) -> np.ndarray:
        values = self.rng.standard_normal(x.shape)
        return np.asarray(values, x.dtype, order="C" if x.flags.c_contiguous else "F")

    def save(self, path: Path) -> Run:
        schuss.save(path, params=self.params, opt=self.opt, rng=self.rng, n=self.opt.iterations)
        return self

    def load(self, path: Path) -> Run:
        found = schuss.load(path, params=self.params, opt=self.opt, rng=self.rng)
        assert found == {"n": self.opt.iterations}
        return self


KINDS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "float32": (schuss.AdamW, {}),
    "float64 of Lion": (schuss.Lion, {"dtype": np.float64}),
    "clipped, with means": (schuss.AdamW, {"ema": 0.9, "clip_norm": 1.0, "zero_grad": True}),
    "float16": (schuss.Adam, {"dtype": F2}),
    "masters": (schuss.AdamW, {"dtype": BF16, "master": True}),
    "remainders": (schuss.AdamW, {"dtype": BF16, "master": "remainder"}),
    "state in bfloat16, dithered": (
        schuss.AdamW,
        {"state_dtype": "bfloat16", "stochastic_rounding": True, "seed": 3},
    ),
    "codes": (schuss.AdamW, {"state_dtype": "blockfloat8", "ema": 0.9}),
    "shared numbers": (schuss.Prodigy, {"lr": 1.0}),
    "a plateau": (
        schuss.SGD,
        {"momentum": 0.9, "lr": lambda: schuss.schedules.ReduceOnPlateau(0.1, patience=2)},
    ),
    "a loss scale": (
        schuss.AdamW,
        {"dtype": F2, "master": True, "grad_scale": schuss.LossScale, "nonfinite": "skip"},
    ),
    "averages": (schuss.ScheduleFreeAdamW, {"lr": 0.01}),
}


def run(comm: Any, kind: str) -> Run:
    rule, options = KINDS[kind]
    return Run(comm, rule, **options)


def flat(value: Any, at: str = "") -> dict[str, Any]:
    """What is in nested values, by place: arrays as type, shape and bits."""
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in pairs for k, v in flat(part, f"{at}.{key}").items()}
    if isinstance(value, np.ndarray):
        return {at: (value.dtype, value.shape, value.flags.c_contiguous, value.tobytes())}
    return {at: repr(value)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 3])
def test_the_file_is_that_of_one_process(size: int, kind: str, tmp_path: Path) -> None:
    one = run(None, kind).train(4).save(tmp_path / "one")
    number, state = schuss.hash(one.opt), flat(one.opt.state_dict())

    def work(comm: Any) -> None:
        own = run(comm, kind).train(4).save(tmp_path / "all")
        assert schuss.hash(own.opt) == number
        assert flat(own.opt.state_dict()) == state

    together(size, work)
    assert (tmp_path / "all").read_bytes() == (tmp_path / "one").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"one", "all"}


@pytest.mark.parametrize("kind", KINDS)
def test_other_numbers_of_processes_go_on(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "run"

    def work(comm: Any) -> None:
        own = run(comm, kind)
        own = own.load(path) if path.exists() else own
        n = own.opt.iterations
        own.train({0: 3, 3: 2, 5: 2}[n]).save(path)

    together(4, work, later=True)
    run(None, kind).load(path).train(2).save(path)
    together(3, work)
    run(None, kind).train(7).save(tmp_path / "never interrupted")
    assert path.read_bytes() == (tmp_path / "never interrupted").read_bytes()


def test_each_process_writes_and_reads_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parameters, too; nobody has more of the state than its own."""
    put, summed, lock = files.put, files.summed, threading.Lock()
    written, read = Counter[int](), Counter[str]()

    def counted(file: Any, part: Any, array: Any, done: Any) -> int:
        with lock:
            written[part.rank] += array.nbytes
        assert array.nbytes == part.stop - part.start
        return put(file, part, array, done)

    def counted_too(file: Any, parts: Any, done: Any) -> dict[Any, int]:
        with lock:
            read[threading.current_thread().name] += sum(p.stop - p.start for p in parts)
        return summed(file, parts, done)

    monkeypatch.setattr(files, "put", counted)
    monkeypatch.setattr(files, "summed", counted_too)

    def work(comm: Any) -> None:
        params = {"a": np.ones((300, 400), F4), "b": np.ones((500, 200), F4)}
        opt = Sharded(schuss.AdamW, params, comm=comm)
        schuss.save(tmp_path / "run", params=params, opt=opt)
        schuss.load(tmp_path / "run", params=params, opt=opt)

    together(4, work)
    assert sum(written.values()) == 3 * 4 * 220_000
    assert max(written.values()) < 1.2 * min(written.values())
    assert sum(read.values()) == 2 * 3 * 4 * 220_000
    assert max(read.values()) < 1.2 * min(read.values())


def test_state_in_files_loads(tmp_path: Path) -> None:
    """The state alone, for its parameters are nowhere."""
    one = Run(None, schuss.AdamW, state_dir=str(tmp_path)).train(3)
    state = flat(one.opt.state_dict()["state"])
    del one

    def work(comm: Any) -> None:
        own = run(comm, "float32")
        schuss.load(tmp_path, own.opt)
        assert flat(own.opt.state_dict()["state"]) == state

    together(3, work)


def test_several_in_a_file(tmp_path: Path) -> None:
    def training(comm: Any) -> tuple[Run, Run]:
        return run(comm, "codes"), run(comm, "float16")

    def work(comm: Any) -> None:
        pair = [own.train(2) for own in training(comm)]
        path = tmp_path / ("all" if comm else "one")
        schuss.save(path, opts=[own.opt for own in pair], again=pair[0].opt)
        other = training(comm)
        schuss.load(path, opts=[own.opt for own in other], again=other[0].opt)
        for own, its in zip(pair, other, strict=True):
            assert flat(own.opt.state_dict()) == flat(its.opt.state_dict())
            assert flat(own.params) == flat(its.params)

    work(None)
    together(3, work)
    assert (tmp_path / "all").read_bytes() == (tmp_path / "one").read_bytes()


# ---- Errors


def bits(own: Run) -> dict[str, Any]:
    """All that an error must leave as it was."""
    return flat([own.params, own.opt.state_dict(), repr(own.rng.bit_generator.state)])


def errors(size: int, work: Callable[[Any], object], kind: type[BaseException]) -> list[str]:
    """What each process says that raises; none may do without."""

    def raises(comm: Any) -> str:
        with pytest.raises(kind) as info:
            work(comm)
        return str(info.value)

    return together(size, raises)


def of_process(rank: int, text: str) -> str:
    """What an OSError of another process says."""
    return text.replace("] ", f"] process {rank}: ", 1)


def spoil(monkeypatch: pytest.MonkeyPatch, rank: int, put: Callable[..., int]) -> None:
    """Lets one process write in another way."""
    before = files.put

    def spoilt(file: Any, part: Any, array: Any, done: Any) -> int:
        return (put if part.rank == rank else before)(file, part, array, done)

    monkeypatch.setattr(files, "put", spoilt)


def full(file: Any, part: Any, array: Any, done: Any) -> int:
    file.write(b"some")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_full_disk_of_one_process(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    old = run(None, "codes").train(1).save(path)
    before = path.read_bytes()
    with monkeypatch.context() as here:
        spoil(here, rank, full)
        said = errors(3, lambda comm: run(comm, "codes").save(path), OSError)
    here_says = f"[Errno 28] No space left on device: '{path}'"
    assert said == [here_says if r == rank else of_process(rank, here_says) for r in range(3)]
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run"]
    old.load(path)
    together(3, lambda comm: run(comm, "codes").save(path))
    assert path.read_bytes() != before


@pytest.mark.parametrize("place", ["nowhere/run", "folder"])
def test_no_place_for_a_file(place: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    said = errors(2, lambda comm: run(comm, "float32").save(tmp_path / place), OSError)
    assert str(tmp_path / place) in said[0]
    assert said[1] == of_process(0, said[0])


def test_a_disk_that_writes_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, put = tmp_path / "run", files.put

    def other(file: Any, part: Any, array: Any, done: Any) -> int:
        checksum = put(file, part, array, done)
        if part.name == "opt.state.w.exp_avg":
            file.seek(part.start + 7)
            file.write(b"x")
        return checksum

    spoil(monkeypatch, 1, other)
    said = errors(3, lambda comm: run(comm, "float32").train(1).save(path), OSError)
    assert len({*said}) == 1
    assert "other bytes in opt.state.w.exp_avg: changed meanwhile" in said[0]
    assert os.listdir(tmp_path) == []


def test_a_name_that_cannot_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails last of all, in process 0 alone."""

    def fails(own: Path, to: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "replace", fails)
    first, *others = errors(3, lambda comm: run(comm, "float32").save(tmp_path / "run"), OSError)
    assert "not permitted" in first
    assert others == [of_process(0, first)] * 2
    assert os.listdir(tmp_path) == []


def test_what_one_process_cannot_store(tmp_path: Path) -> None:
    def work(comm: Any) -> None:
        own = run(comm, "float32")
        schuss.save(tmp_path / "run", opt=own.opt, what=object() if comm.rank == 1 else 0)

    first, second, third = errors(3, work, TypeError)
    assert second.startswith("what: object can't be stored")
    assert first == third == f"process 1: {second}"
    assert os.listdir(tmp_path) == []


def test_entries_that_are_not_spread_are_those_of_process_0(tmp_path: Path) -> None:
    def work(comm: Any) -> Any:
        own, path = run(comm, "float32"), tmp_path / "run"
        more = {"of 1": np.zeros(9)} if comm.rank == 1 else {"rank": comm.rank, "a": np.ones(5)}
        schuss.save(path, opt=own.opt, **more)
        return schuss.load(path, opt=own.opt)

    for found in together(3, work):
        assert found.keys() == {"rank", "a"}
        assert found["rank"] == 0
        assert (found["a"] == 1).all()


def test_optimizers_under_other_names(tmp_path: Path) -> None:
    def work(comm: Any) -> None:
        schuss.save(tmp_path / "run", **{f"opt{comm.rank}": run(comm, "float32").opt})

    assert {*errors(2, work, ValueError)} == {"opt: not the same in process 1 as in process 0"}


def changed(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("at", [0.2, 0.5, 0.99])
def test_a_damaged_file(at: float, tmp_path: Path) -> None:
    path = tmp_path / "run"
    run(None, "float32").train(2).save(path)
    changed(path, int(path.stat().st_size * at))

    def work(comm: Any) -> None:
        own = run(comm, "float32").train(1)
        before = bits(own)
        try:
            own.load(path)
        finally:
            assert bits(own) == before

    said = errors(3, work, ValueError)
    assert len({*said}) == 1
    assert "damaged: wrong checksum of " in said[0]


def test_another_file_in_another_process(tmp_path: Path) -> None:
    for rank in range(2):
        run(None, "float32").train(rank + 1).save(tmp_path / f"{rank}")

    def work(comm: Any) -> None:
        run(comm, "float32").load(tmp_path / f"{comm.rank}")

    said = errors(2, work, ValueError)
    assert all("header: not the same in process 1 as in process 0" in s for s in said)


def test_what_does_not_fit_in_one_process(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run(None, "float32").train(2).save(path)

    def work(comm: Any) -> None:
        own = run(comm, "float32").train(1)
        before, params = bits(own), {**own.params}
        if comm.rank == 2:
            params["s"] = np.zeros(2, F4)
        try:
            schuss.load(path, params=params, opt=own.opt, rng=own.rng)
        finally:
            assert bits(own) == before

    first, second, third = errors(3, work, ValueError)
    assert "params.s: float32 of shape (), wanted float32 of shape (2,)" in third
    assert first == second
    assert "process 2: params.s: float32" in first


class Refuses:
    """An object that takes no state where it was told so."""

    def __init__(self, refuses: bool) -> None:
        self.refuses, self.state = refuses, 0

    def state_dict(self) -> dict[str, int]:
        return {"state": self.state}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if self.refuses and state["state"]:
            raise ValueError("refused")
        self.state = state["state"]


def test_an_object_that_refuses_in_one_process(tmp_path: Path) -> None:
    path, it = tmp_path / "run", Refuses(False)
    it.state = 5
    schuss.save(path, opt=run(None, "float32").train(2).opt, a=it, b=it)

    def work(comm: Any) -> None:
        own = run(comm, "float32").train(1)
        before, a, b = bits(own), Refuses(False), Refuses(comm.rank == 1)
        try:
            schuss.load(path, opt=own.opt, a=a, b=b)
        finally:
            assert (a.state, b.state) == (0, 0)
            assert bits(own) == before

    first, second = errors(2, work, ValueError)
    assert second.endswith("b: refused")
    assert first.endswith("process 1: b: refused")


def test_options_that_want_whole_arrays_are_not_loaded(tmp_path: Path) -> None:
    one = (
        Run(None, schuss.AdamW, clip_norm=1.0, clip_norm_per="array")
        .train(1)
        .save(tmp_path / "run")
    )

    def work(comm: Any) -> None:
        own = run(comm, "float32").train(1)
        before = bits(own)
        try:
            own.load(tmp_path / "run")
        finally:
            assert bits(own) == before

    assert all(
        "clip_norm_per: 'array' wants whole arrays" in s for s in errors(2, work, ValueError)
    )
    with pytest.raises(ValueError, match="clip_norm_per: 'array' wants whole"):
        together(2, lambda comm: run(comm, "float32").opt.load_state_dict(one.opt.state_dict()))


def test_half_a_step_is_not_saved(tmp_path: Path) -> None:
    def work(comm: Any) -> None:
        own = run(comm, "float32")
        vars(own.opt)["_torn"] = "the network"
        own.save(tmp_path / "run")

    assert all("half of one was done" in s for s in errors(2, work, RuntimeError))


# ---- State dictionaries


def other_state(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of what is saved, and of where it is loaded."""
    coded, more = {"state_dtype": "blockfloat8"}, {"ema": 0.9, "amsgrad": True}
    kinds: dict[str, Any] = {
        "codes to numbers": (coded, {}),
        "numbers to codes": ({}, coded),
        "means anew": ({}, more),
        "means left out": (more, {}),
        "other types": ({"state_dtype": "bfloat16"}, {"zero_grad": True}),
    }
    theirs, ours = kinds[name]
    return theirs, ours


@pytest.mark.parametrize(
    "name", ["codes to numbers", "numbers to codes", "means anew", "means left out", "other types"]
)
def test_state_of_another_kind(name: str) -> None:
    theirs, ours = other_state(name)
    one = Run(None, schuss.AdamW, **theirs).train(2)
    alone = Run(None, schuss.AdamW, **ours)
    found = alone.opt.load_state_dict(one.opt.state_dict(), strict=False)
    state = flat(alone.opt.state_dict())

    def work(comm: Any) -> None:
        own = Run(comm, schuss.AdamW, **ours)
        assert own.opt.load_state_dict(one.opt.state_dict(), strict=False) == found
        assert flat(own.opt.state_dict()) == state

    together(3, work)


@pytest.mark.parametrize("strict", [True, False])
def test_codes_of_another_order(strict: bool) -> None:
    coded: dict[str, Any] = {"state_dtype": "blockfloat8"}
    x = np.random.default_rng(0).standard_normal((96, 130)).astype(F4)
    one = schuss.AdamW({"w": x.copy()}, **coded)
    one.step({"w": x})
    alone = schuss.AdamW({"w": np.asfortranarray(x)}, **coded)
    if strict:
        with pytest.raises(ValueError, match="'w' exp_avg: int8 of shape"):
            alone.load_state_dict(one.state_dict())
    else:
        alone.load_state_dict(one.state_dict(), strict=False)

    def work(comm: Any) -> None:
        own = Sharded(schuss.AdamW, {"w": np.asfortranarray(x)}, comm=comm, **coded)
        if strict:
            with pytest.raises(ValueError, match="'w' exp_avg: int8 of shape"):
                own.load_state_dict(one.state_dict())
        else:
            own.load_state_dict(one.state_dict(), strict=False)
            assert flat(own.state_dict()) == flat(alone.state_dict())

    together(2, work)


def test_state_of_a_share_is_no_state() -> None:
    def work(comm: Any) -> None:
        own = run(comm, "float32").train(1)
        before = bits(own)
        with pytest.raises(ValueError, match=r"'w' exp_avg: float32 of shape .*wanted shape"):
            own.opt.load_state_dict(own.opt.own.state_dict())
        assert bits(own) == before

    together(2, work)


def test_a_dictionary_is_a_copy() -> None:
    def work(comm: Any) -> None:
        own = run(comm, "float32").train(1)
        state = own.opt.state_dict()
        before = flat(state)
        own.train(1)
        assert flat(state) == before
        own.opt.load_state_dict(state)
        assert flat(own.opt.state_dict()) == before

    together(3, work)


# ---- Means in the parameters' place


def test_saved_within_averaged(tmp_path: Path) -> None:
    kind = "clipped, with means"
    one = run(None, kind).train(3)
    weights = flat(one.params)
    with one.opt.averaged():
        one.save(tmp_path / "one")

    def work(comm: Any) -> None:
        own = run(comm, kind).train(3)
        with own.opt.averaged():
            own.save(tmp_path / "all")
        again = run(comm, kind).load(tmp_path / "all")
        assert flat(again.params) == weights
        assert flat(again.train(2).opt.state_dict()) == flat(own.train(2).opt.state_dict())

    together(3, work)
    assert (tmp_path / "all").read_bytes() == (tmp_path / "one").read_bytes()


def test_saved_while_evaluated(tmp_path: Path) -> None:
    one = run(None, "averages").train(3)
    one.opt.eval()
    one.save(tmp_path / "one")

    def work(comm: Any) -> None:
        own = run(comm, "averages").train(3)
        own.opt.eval()
        own.save(tmp_path / "all")
        again = run(comm, "averages").train(1).load(tmp_path / "all")
        assert flat(again.params) == flat(one.params)
        again.opt.train()
        own.opt.train()
        assert flat(again.params) == flat(own.params)

    together(3, work)
    assert (tmp_path / "all").read_bytes() == (tmp_path / "one").read_bytes()


# ---- Small things


def test_checksums_of_parts() -> None:
    data = np.random.default_rng(0).bytes(100_000)
    for ends in ([0], [100_000], [1, 2, 2, 77_777], [64, 99_999]):
        edges = [0, *ends, len(data)]
        parts = [data[a:b] for a, b in pairwise(edges)]
        assert joined((zlib.crc32(p), len(p)) for p in parts) == zlib.crc32(data)


def test_hashes_of_processes_that_differ() -> None:
    """Parameters count as they are here."""

    def work(comm: Any) -> int:
        own = run(comm, "float32").train(1)
        if comm.rank == 1:
            own.params["s"] += 1
        return schuss.hash(own.opt)

    first, second, third = together(3, work)
    assert first == third != second


# ---- MPI

HEAD = """
    import os, resource, signal, sys, threading, time
    from pathlib import Path
    import numpy as np
    import schuss
    import schuss.mpi
    from mpi4py import MPI
    from mpi.test_saving import Run, bits, run
    from schuss.mpi import shares
    shares.BUCKET = 1 << 15
    comm, path = MPI.COMM_WORLD, Path(sys.argv[1])
    """

SAVES = """
    for kind in ("codes", "remainders", "shared numbers"):
        own = run(comm, kind).train(3).save(path)
        number = schuss.hash(own.opt)
        again = run(comm, kind).load(path)
        assert schuss.hash(again.opt) == number and bits(again) == bits(own)
        if comm.rank == 0:
            alone = run(None, kind).load(path)
            assert schuss.hash(alone.opt) == number
            whole = path.read_bytes()
            alone.save(path)
            assert path.read_bytes() == whole
        comm.Barrier()
    """

FULL = """
    def work():
        own = run(comm, "float32").train(1).save(path)
        before = path.read_bytes()
        if comm.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        try:
            own.train(1).save(path)
        except OSError as error:
            assert "File too large" in str(error), error
        else:
            raise AssertionError
        comm.Barrier()  # process 0 has removed its file
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]
    work()
    """

KILLED = """
    own = run(comm, "float32").train(1).save(path)
    from schuss.engine import together
    put = together.put
    def dies(file, part, array, done):
        if part.name == "opt.state.w.exp_avg_sq":
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return put(file, part, array, done)
    if comm.rank == 1:
        together.put = dies
    own.train(1).save(path)
    """


@pytest.mark.parametrize("size", [2, 3])
def test_mpi(size: int, tmp_path: Path) -> None:
    run_mpi(size, HEAD, SAVES, arguments=[tmp_path / "run"])


def test_limit_of_a_file_in_one_process(tmp_path: Path) -> None:
    run_mpi(2, HEAD, FULL, arguments=[tmp_path / "run"])


def test_killed_within_a_save(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run_mpi(2, HEAD, KILLED, arguments=[path], fails=True)
    assert len(os.listdir(tmp_path)) == 2  # what the killed ones have left behind
    own = run(None, "float32").load(path)
    assert own.opt.iterations == 1
    own.save(path)
    assert os.listdir(tmp_path) == ["run"]
