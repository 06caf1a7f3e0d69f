"""State in files: the bits, what a killed process leaves, and more of it than memory."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import engine.trained
import ml_dtypes
import numpy as np
import pytest
from engine.trained import Params, train

import schuss
from schuss import rules
from schuss.engine.optimizer import Optimizer
from schuss.rules import matrix

F4 = np.float32
ALL: tuple[type[Optimizer], ...] = (*rules.RULES, *matrix.RULES)


def trained(
    rule: type[Optimizer], steps: int, dtype: Any = F4, **options: Any
) -> tuple[Optimizer, Params]:
    w = np.asfortranarray(np.linspace(-1, 1, 35).reshape(5, 7).astype(dtype))
    params = {"w": w, "b": np.ones(7, dtype), "none": np.ones((0, 3), dtype)}
    return engine.trained.trained(rule, steps, params, **options)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return all(a[name].tobytes() == b[name].tobytes() for name in a)


def closed(opt: Optimizer) -> None:
    """As if its process had ended."""
    files: Any = opt._files
    files.close()


@pytest.mark.parametrize("rule", ALL)
def test_the_same_bits_and_what_is_left_is_loaded(rule: type[Optimizer], tmp_path: Path) -> None:
    plain, x = trained(rule, 3, ema=0.5)
    mapped, y = trained(rule, 3, ema=0.5, state_dir=tmp_path / "one")
    assert same(x, y)
    assert repr({**plain.state_dict(), "options": 0}) == repr({**mapped.state_dict(), "options": 0})
    closed(mapped)
    other, z = trained(rule, 1, ema=0.5, state_dir=tmp_path / "two")
    for name in z:
        z[name][...] = y[name]
    assert schuss.load(tmp_path / "one", other) == {}
    train(plain, x, 2)
    train(other, z, 2)
    assert same(x, z)


def test_masters_sixteen_bits_and_added_groups(tmp_path: Path) -> None:
    options: dict[str, Any] = {"state_dtype": "bfloat16", "master": True}
    bf16 = ml_dtypes.bfloat16
    plain, x = trained(schuss.Adam, 2, bf16, **options)
    mapped, y = trained(schuss.Adam, 2, bf16, state_dir=tmp_path / "one", **options)
    for opt, params in ((plain, x), (mapped, y)):
        more = {"c": np.ones(4, bf16)}
        opt.add_param_group({"params": more})
        grads = {n: np.ones_like(a) for n, a in {**params, **more}.items()}
        opt.step(grads)
    closed(mapped)
    other, _ = trained(schuss.Adam, 0, bf16, **options)
    other.add_param_group({"params": {"c": np.ones(4, bf16)}})
    schuss.load(tmp_path / "one", other)
    assert repr(other.state_dict()) == repr(plain.state_dict())


def test_large_state_keeps_out_of_the_way(tmp_path: Path) -> None:
    x = np.zeros((256, 1024), F4)
    opt = schuss.Adam([x], amsgrad=True, ema=0.9, state_dir=tmp_path)
    arrays = [a for a in opt.state[0].values() if isinstance(a, np.ndarray)]
    assert len({a.ctypes.data % 4096 // 64 for a in (x, *arrays)}) == 5
    assert all(a.ctypes.data % 64 == 0 for a in arrays)
    opt.step([np.ones_like(x)])
    opt.flush()
    for i, a in enumerate(arrays):
        assert (np.load(tmp_path / f"{i}.npy") == a).all()


def test_copies_have_their_state_in_memory(tmp_path: Path) -> None:
    opt, x = trained(schuss.Adam, 2, state_dir=tmp_path)
    for other, y in (copy.deepcopy((opt, x)), pickle.loads(pickle.dumps((opt, x)))):
        assert other.state_dir is None
        before = opt.state["w"]["exp_avg"].copy()
        train(other, y, 1)
        assert (opt.state["w"]["exp_avg"] == before).all()


@pytest.mark.parametrize("form", ["averaged", "evaluated"])
def test_what_ends_while_something_else_stands_there_has_the_weights(
    form: str, tmp_path: Path
) -> None:
    rule: Any = schuss.Adam if form == "averaged" else schuss.ScheduleFreeSGD
    options: dict[str, Any] = {"ema": 0.5} if form == "averaged" else {}
    opt: Any
    opt, x = trained(rule, 3, state_dir=tmp_path, **options)
    weights = copy.deepcopy(x)
    if form == "averaged":
        means = opt.averaged()
        means.__enter__()
    else:
        opt.eval()
    opt.flush()
    closed(opt)
    other: Any
    other, y = trained(rule, 0, **options)
    schuss.load(tmp_path, other)
    if form == "evaluated":
        assert same(x, y)
        other.train()
    assert same(y, weights)
    if form == "averaged":
        means.__exit__(None, None, None)
        assert same(x, weights)
    else:
        opt.train()
    opt.lr = 0.5
    opt.lr = 0.25  # both of the two files have no weights any more
    assert not list(tmp_path.glob("*-*.npy"))


def test_what_is_set_or_observed_between_two_steps(tmp_path: Path) -> None:
    plateau = schuss.schedules.ReduceOnPlateau(0.1, patience=0)
    opt, _ = trained(schuss.SGD, 1, lr=plateau, momentum=0.9, state_dir=tmp_path)
    opt.observe(1.0)
    opt.observe(2.0)
    opt.param_groups[0]["momentum"] = 0.8
    opt.weight_decay = 0.25
    opt.clip_norm = 2.0
    closed(opt)
    fresh = schuss.schedules.ReduceOnPlateau(0.1, patience=0)
    other, _ = trained(schuss.SGD, 0, lr=fresh, momentum=0.9)
    schuss.load(tmp_path, other)
    assert (fresh.value, other.momentum, other.weight_decay) == (plateau.value, 0.8, 0.25)  # type: ignore[attr-defined]
    assert other.clip_norm == 2.0


def test_a_schedule_whose_state_has_an_array(tmp_path: Path) -> None:
    class Last:
        def __init__(self) -> None:
            self.metrics = np.zeros(3)

        def __call__(self, n: int) -> float:
            return 0.1

        def observe(self, metric: float) -> None:
            self.metrics = np.array([*self.metrics[1:], metric])

        def state_dict(self) -> dict[str, Any]:
            return {"metrics": self.metrics}

        def load_state_dict(self, state: Any) -> None:
            self.metrics = state["metrics"].copy()

    opt, _ = trained(schuss.SGD, 2, lr=Last(), state_dir=tmp_path)
    opt.observe(4.0)
    closed(opt)
    last = Last()
    schuss.load(tmp_path, trained(schuss.SGD, 0, lr=last)[0])
    assert (last.metrics == [0, 0, 4]).all()


def test_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    opt, x = trained(schuss.Adam, 1, state_dir="state")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train(opt, x, 1)
    assert not list((tmp_path / "elsewhere").iterdir())


# ---- What is refused


def test_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(ValueError, match=r"state_dir: .* is not empty"):
        trained(schuss.Adam, 0, state_dir=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(TypeError, match="state_dir: 3 is no path"):
        trained(schuss.Adam, 0, state_dir=3)
    with pytest.raises(ValueError, match="state_dir: none"):
        trained(schuss.Adam, 0)[0].flush()


def test_what_failed_leaves_no_arrays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two groups have this name"):
        schuss.Adam([{"params": {"w": np.ones(3)}}] * 2, state_dir=tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="lr: -1"):
        schuss.Adam({"w": np.ones(3)}, lr=-1.0, state_dir=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    opt = schuss.Adam({"w": np.ones(3)}, state_dir=tmp_path)
    with pytest.raises(ValueError, match="two groups have this name"):
        opt.add_param_group({"params": {"v": np.ones(3), "w": np.ones(3)}})
    assert len(list(tmp_path.glob("*.npy"))) == 2
    opt.add_param_group({"params": {"v": np.ones(3)}})
    opt.step({"w": np.ones(3), "v": np.ones(3)})


def test_an_optimizer_that_is_still_there(tmp_path: Path) -> None:
    opt, _ = trained(schuss.Adam, 1, state_dir=tmp_path)
    other, _ = trained(schuss.Adam, 0)
    with pytest.raises(ValueError, match="its optimizer is still there"):
        schuss.load(tmp_path, other)
    assert opt.iterations == 1


@pytest.mark.parametrize("spoilt", ["changes", "numbers-0.json", "0.npy", "boot", "changed"])
def test_what_cannot_be_whole(spoilt: str, tmp_path: Path) -> None:
    opt, x = trained(schuss.Adam, 2, ema=0.5, state_dir=tmp_path)
    numbers = tmp_path / "numbers-1.json"  # of the third change: made, and two steps
    says = {
        "changes": "no state of an optimizer is in this folder",
        "numbers-0.json": "torn: the numbers of change 3 are missing",
        "0.npy": "0.npy: ",
        "boot": r"perhaps torn: the machine went down after the last opt\.flush",
        "changed": "torn: the process ended within change 4",
    }[spoilt]
    if spoilt == "changed":
        change = opt._changing()
        change.__enter__()
    closed(opt)
    if spoilt == "changes":
        (tmp_path / spoilt).unlink()
    if spoilt == "numbers-0.json":
        numbers.write_text((tmp_path / spoilt).read_text())
    if spoilt == "0.npy":
        with (tmp_path / "0.npy").open("r+b") as file:
            file.truncate(4200)
    if spoilt == "boot":
        from schuss.engine import mapped  # noqa: PLC0415

        text = numbers.read_text()
        numbers.write_text(text.replace(mapped.boot(), "another"))
    other, y = trained(schuss.Adam, 0, ema=0.5)
    before = repr(other.state_dict())
    with pytest.raises(ValueError, match=says):
        schuss.load(tmp_path, other)
    assert repr(other.state_dict()) == before
    if spoilt == "boot":
        opt.flush()
        numbers = tmp_path / "numbers-0.json"
        text = numbers.read_text()
        numbers.write_text(text.replace(mapped.boot(), "another"))
        schuss.load(tmp_path, other)
        assert other.iterations == 2
    assert x.keys() == y.keys()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_leaves_the_files_alone(tmp_path: Path) -> None:
    code = f"""
import os, sys, warnings
import numpy as np, schuss
warnings.simplefilter("ignore")
opt = schuss.Adam([np.ones(3)], state_dir={str(tmp_path)!r})
opt.step([np.ones(3)])
pid = os.fork()
if pid == 0:
    try:
        opt.step([np.ones(3)])
    except RuntimeError as error:
        os._exit(7 if "state_dir: its files are of process" in str(error) else 1)
    os._exit(2)
_, status = os.waitpid(pid, 0)
opt.step([np.ones(3)])
sys.exit(os.waitstatus_to_exitcode(status))
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 7


STEPPING = """
import sys, time, numpy as np, schuss
folder, n = sys.argv[1:]
rng = np.random.default_rng(0)
x = np.memmap(folder + "/x", np.float32, "r+", shape=int(n))
g = np.ones(int(n), np.float32)
opt = schuss.Adam([x], lr=1.0, state_dir=folder + "/state")
print("begun", flush=True)
while True:
    opt.step([g])
    time.sleep(0.0003)
"""


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Torn or whole: what loads is whole, and so are the parameters in a file of their own."""
    n, rng = 1 << 16, np.random.default_rng(0)
    wholes = 0
    for trial in range(12):
        folder = tmp_path / str(trial)
        folder.mkdir()
        np.zeros(n, F4).tofile(folder / "x")
        child = subprocess.Popen(
            [sys.executable, "-c", STEPPING, str(folder), str(n)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
        time.sleep(rng.uniform(0.0, 0.02))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        opt = schuss.Adam([np.fromfile(folder / "x", F4)], lr=1.0)
        try:
            schuss.load(folder / "state", opt)
        except ValueError as error:
            torn = str(error)
            assert "torn: the process ended" in torn
            continue
        wholes += 1
        want = schuss.Adam([np.zeros(n, F4)], lr=1.0)
        for _ in range(opt.iterations):
            want.step([np.ones(n, F4)])
        assert repr(opt.state_dict()["iterations"]) == repr(want.state_dict()["iterations"])
        for name, state in want.state[0].items():
            assert np.array_equal(opt.state[0][name], state)
        assert np.array_equal(opt.param_groups[0]["params"][0], want.param_groups[0]["params"][0])
    assert wholes


BEYOND = """
import resource, sys, numpy as np, schuss
folder, n = sys.argv[1], 4 << 20
x, g = (np.memmap(f"{folder}/{name}", np.float32, "w+", shape=n) for name in "xg")
g[:] = 1
limit = 24 << 20  # bytes beside what the interpreter has by now; the state takes 32 MiB
now = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (now + limit, now + limit))
try:
    schuss.Adam([x])
    sys.exit("the limit holds nothing")
except MemoryError:
    pass
opt = schuss.Adam([x], lr=1.0, state_dir=folder + "/state")
for _ in range(3):
    opt.step([g])
print(float(x[0]), float(x[-1]), opt.state[0]["exp_avg"].nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux'")
def test_more_state_than_memory(tmp_path: Path) -> None:
    """The limit counts what is written and is in no file, as the system's memory does."""
    done = subprocess.run(
        [sys.executable, "-c", BEYOND, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SCHUSS_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    want = schuss.Adam([np.zeros(1, F4)], lr=1.0)
    for _ in range(3):
        want.step([np.ones(1, F4)])
    value = float(want.param_groups[0]["params"][0][0])
    assert done.stdout.split() == [str(value), str(value), str(16 << 20)]
