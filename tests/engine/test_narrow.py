"""State in 8 bits and masters as remainders, through everything an optimizer can do."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import schuss
from engine.unchanged import Unchanged
from schuss import functional
from schuss.engine.optimizer import Optimizer

F4 = np.float32
BF16 = np.dtype(ml_dtypes.bfloat16)
Params = dict[str, np.ndarray]

FORMS: dict[str, dict[str, Any]] = {
    "codes": {"state_dtype": "blockfloat8"},
    "remainder": {"master": "remainder"},
    "both": {"state_dtype": "blockfloat8", "master": "remainder"},
}
forms = pytest.mark.parametrize("form", FORMS)
orders = pytest.mark.parametrize("order", ["C", "F"])


def params(order: Any = "C", dtype: Any = F4) -> Params:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"w": (9, 15), "b": (7,), "none": (0, 3), "s": ()}
    return {k: np.array(rng.standard_normal(s), dtype, order=order) for k, s in shapes.items()}


def gradients(own: Params, t: int) -> Params:
    """Of the same types and orders, other ones at each step."""
    found = {}
    for name, x in own.items():
        g = np.empty_like(x)
        g[...] = np.cos(3 * x.astype(float) + t) * np.exp2(np.arange(x.size) % 7).reshape(x.shape)
        found[name] = g
    return found


def train(opt: Optimizer, own: Params, steps: int = 3, **told: Any) -> None:
    for _ in range(steps):
        opt.step(gradients(own, opt.iterations), **told)


def made(
    rule: type[Optimizer] = schuss.AdamW, steps: int = 4, order: Any = "C", **options: Any
) -> tuple[Optimizer, Params]:
    """An optimizer with some steps behind it; in bfloat16 where it has a master."""
    own = params(order, BF16 if options.get("master") else F4)
    opt = rule(own, **options)
    train(opt, own, steps)
    return opt, own


def all_bits(opt: Optimizer) -> Any:
    """All that a step moves."""
    arrays = [[p.x.tobytes(), *(a.tobytes() for _, a in p.keeps())] for p in opt._parameters]
    return arrays, repr(opt._moved())


def params_of(opt: Optimizer) -> Params:
    return {p.name: p.x for p in opt._parameters}


def assert_goes_on(opt: Optimizer, other: Optimizer) -> None:
    """Both are the same, and stay so."""
    assert all_bits(opt) == all_bits(other)
    for own in (opt, other):
        train(own, params_of(own))
    assert all_bits(opt) == all_bits(other)


def assert_close(opt: Optimizer, other: Optimizer, within: float = 0.04) -> None:
    """The same state, but for what a form rounds off: in units of an array's largest number."""
    for p in opt._parameters:
        for name in p.state:
            a, b = (np.asarray(o.state[p.name][name], float) for o in (opt, other))
            assert a.shape == b.shape
            assert np.abs(a - b).max(initial=0) <= within * np.abs(a).max(initial=0)


# ---- Steps


VARIANTS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "AdamW": (schuss.AdamW, {}),
    "LAMB": (schuss.LAMB, {}),
    "Prodigy": (schuss.Prodigy, {}),
    "clip_norm": (schuss.Adam, {"clip_norm": 0.5, "nonfinite": "skip"}),
    "l1, l2, bounds": (schuss.Lion, {"l1": 0.01, "l2": 0.1, "bounds": (-1.0, 0.75)}),
    "prox": (schuss.SGD, {"momentum": 0.9, "l1": 0.01, "l1_mode": "prox", "lr": 0.01}),
    "cautious": (schuss.AdamW, {"cautious": "mean", "maximize": True}),
    "ema": (schuss.RMSprop, {"ema": 0.9, "centered": True, "momentum": 0.5}),
    "schedule-free": (schuss.ScheduleFreeAdamW, {}),
    "amsgrad": (schuss.Adam, {"amsgrad": True}),
    "lookahead": (schuss.SGD, {"momentum": 0.9, "nesterov": True}),
    "Rprop": (schuss.Rprop, {}),
    "ASGD": (schuss.ASGD, {}),
}


@forms
@orders
@pytest.mark.parametrize("variant", VARIANTS)
def test_backends_agree(form: str, order: str, variant: str) -> None:
    rule, options = VARIANTS[variant]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, other = (
            made(rule, 12, order, backend=backend, **options, **FORMS[form])[0]
            for backend in ("compiled", "numpy")
        )
    assert all_bits(one) == all_bits(other)
    if "bounds" in options:
        low, high = options["bounds"]
        assert all((p.x >= low).all() and (p.x <= high).all() for p in one._parameters)


def test_training_is_close_to_that_in_float32() -> None:
    """The step of AdamW goes by a root of what 8 bits hold to 1/16, and each time by chance."""
    (_, wide), (_, coded) = (made(steps=100, state_dtype=d) for d in ("float32", "blockfloat8"))
    for name, x in wide.items():
        moved = np.abs(x - params()[name])
        assert np.abs(x - coded[name]).max(initial=0) <= 0.12 * moved.max(initial=0)


def test_groups_with_other_rules() -> None:
    """Muon steps matrices, and leaves the rest to AdamW; its weights may have remainders."""
    ends = []
    for master in (True, "remainder"):
        own = {"w": np.eye(8).astype(BF16), "b": np.ones(70, BF16)}
        opt = schuss.Muon(own, master=master)
        train(opt, own)
        assert_goes_on(opt, copy.deepcopy(opt))
        ends.append([np.asarray(opt.state[name]["master"]).tobytes() for name in own])
    assert ends[0] == ends[1]
    with pytest.raises(ValueError, match="state_dtype: not with matrices"):
        schuss.Muon(own, state_dtype="blockfloat8")


def test_groups_with_other_options() -> None:
    """Only numbers differ: all groups have the forms of the optimizer."""
    own = params()
    for backend in ("compiled", "numpy"):
        groups: Any = [
            {"params": {"w": own["w"].copy()}, "betas": (0.5, 0.9)},
            {"params": {"b": own["b"].copy()}, "lr": 0.1, "l1": 0.01, "l1_mode": "prox"},
        ]
        opt = schuss.AdamW(groups, state_dtype="blockfloat8", backend=backend)
        train(opt, params_of(opt), 9)
        if backend == "compiled":
            want = all_bits(opt)
    assert all_bits(opt) == want


@forms
def test_none_gradients_leave_all_as_it_is(form: str) -> None:
    opt, own = made(**FORMS[form])
    before = [a.tobytes() for _, a in opt._parameters[0].keeps()]
    x = own["w"].tobytes()
    opt.step(gradients(own, 7) | {"w": None})
    assert own["w"].tobytes() == x
    assert [a.tobytes() for _, a in opt._parameters[0].keeps()] == before
    assert (opt.state["w"]["step"], opt.state["b"]["step"]) == (4, 5)


@forms
def test_skipped_steps_leave_all_as_it_is(form: str) -> None:
    opt, own = made(nonfinite="skip", **FORMS[form])
    before = all_bits(opt)
    g = gradients(own, 3)
    g["w"][2, 2] = np.inf
    assert not opt.step(g)
    assert all_bits(opt) == before


@forms
@orders
def test_averaged(form: str, order: str) -> None:
    opt, own = made(ema=0.9, order=order, **FORMS[form])
    other, _ = made(ema=0.9, order=order, **FORMS[form])
    before = all_bits(opt)
    with opt.averaged():
        for name, x in own.items():
            assert (x == opt.ema[name].astype(x.dtype)).all()
        with pytest.raises(RuntimeError, match="averaged"):
            train(opt, own, 1)
        saved = opt.state_dict()
    assert all_bits(opt) == before
    assert_goes_on(opt, other)
    fresh, _ = made(steps=0, ema=0.9, order=order, **FORMS[form])
    fresh.load_state_dict(saved)
    assert all_bits(fresh) == before


@forms
@orders
@pytest.mark.parametrize("rule", [schuss.ScheduleFreeAdamW, schuss.ScheduleFreeSGD])
def test_schedule_free(form: str, order: str, rule: Any) -> None:
    opt, own = made(rule, order=order, **FORMS[form])
    before = all_bits(opt)
    opt.eval()  # type: ignore[attr-defined]
    assert all_bits(opt) != before
    p = opt._parameters[0]
    y, z, beta = np.asarray(opt._swapped[0].weights[0][1], float), np.asarray(p.state["z"]), 0.9
    assert np.allclose(p.x.astype(float), y + (1 - 1 / beta) * (z - y), rtol=2e-2, atol=2e-2)
    opt.train()  # type: ignore[attr-defined]
    assert all_bits(opt) == before
    train(opt, own)


@pytest.mark.parametrize("form", [*FORMS, "bfloat16"])
@orders
def test_lookahead(form: str, order: str) -> None:
    """The point looked ahead to is that of the numbers that codes and remainders stand for."""
    options = FORMS.get(form, {"state_dtype": form})
    opt, own = made(schuss.NAG, order=order, lr=0.01, nesterov="lookahead", **options)
    before = all_bits(opt)
    ahead = opt.lookahead()  # type: ignore[attr-defined]
    out = {name: np.empty_like(x) for name, x in own.items()}
    assert opt.lookahead(out) is out  # type: ignore[attr-defined]
    for name, x in own.items():
        state = opt.state[name]
        w = np.asarray(state.get("master", x))
        b = np.asarray(state["momentum_buffer"], F4)
        want = (w - F4(0.9 * 0.01) * b).astype(x.dtype)
        assert ahead[name].tobytes() == out[name].tobytes() == want.tobytes()
        assert not (want == x).all() or not x.size
    assert all_bits(opt) == before


# ---- State in dictionaries, files, copies


@forms
@orders
def test_state_dict_and_back(form: str, order: str) -> None:
    opt, own = made(order=order, **FORMS[form])
    other, fresh = made(steps=0, order=order, **FORMS[form])
    for name, x in own.items():
        fresh[name][...] = x
    saved = opt.state_dict()
    train(opt, own, 1)  # the dictionary is a copy
    assert other.load_state_dict(saved) == ([], [], [])
    train(other, fresh, 1)
    assert_goes_on(opt, other)


@forms
@orders
def test_files(form: str, order: str, tmp_path: Path) -> None:
    opt, _ = made(order=order, ema=0.5, **FORMS[form])
    schuss.save(tmp_path / "a.safetensors", opt)
    other, _ = made(steps=1, order=order, ema=0.5, **FORMS[form])
    schuss.load(tmp_path / "a.safetensors", other)
    assert_goes_on(opt, other)


@forms
@orders
def test_state_dir(form: str, order: str, tmp_path: Path) -> None:
    opt, own = made(order=order, **FORMS[form])
    mapped, there = made(order=order, state_dir=tmp_path / "run", **FORMS[form])
    assert all_bits(mapped) == all_bits(opt)
    mapped.add_param_group({"params": {"more": np.ones(130, own["w"].dtype)}})
    opt.add_param_group({"params": {"more": np.ones(130, own["w"].dtype)}})
    for each in (opt, mapped):
        train(each, params_of(each), 1)
    assert all_bits(mapped) == all_bits(opt)
    mapped.flush()
    assert not list((tmp_path / "run").glob("*-*.npy"))  # of arrays that are not mapped
    del mapped, each
    gc.collect()
    other, fresh = made(steps=0, order=order, **FORMS[form])
    other.add_param_group({"params": {"more": np.ones(130, own["w"].dtype)}})
    for p in other._parameters:
        p.x[...] = there[p.name] if p.name in there else params_of(opt)[p.name]
    schuss.load(tmp_path / "run", other)
    assert fresh["w"].tobytes() == there["w"].tobytes()
    assert_goes_on(opt, other)


@forms
@orders
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))], ids=["copy", "pickle"]
)
def test_copies(form: str, order: str, copied: Callable[[Any], Any]) -> None:
    opt, _ = made(order=order, ema=0.5, **FORMS[form])
    other = copied(opt)
    for p, q in zip(opt._parameters, other._parameters, strict=True):
        for (_, a), (_, b) in zip(p.keeps(), q.keeps(), strict=True):
            assert not np.may_share_memory(a, b)
            assert a.flags.f_contiguous == b.flags.f_contiguous
    assert_goes_on(opt, other)


TYPES = ["float32", "bfloat16", "float16", "blockfloat8"]


@pytest.mark.parametrize(("before", "after"), list(itertools.product(TYPES, TYPES)))
@pytest.mark.parametrize(("order", "there"), list(itertools.product("CF", "CF")))
def test_state_goes_on_in_another_form(before: str, after: str, order: str, there: str) -> None:
    opt, _ = made(order=order, state_dtype=before)
    other, fresh = made(steps=0, order=there, state_dtype=after)
    saved = opt.state_dict()
    codes = "blockfloat8" in (before, after)
    if before != after or (codes and order != there):
        says = "w' exp_avg"
        with Unchanged(other, ValueError, says):
            other.load_state_dict(saved)
    differences = other.load_state_dict(saved, strict=False)
    assert differences.missing_keys == differences.unexpected_keys == []
    others = {f"{name!r} {key}" for name in params() for key in ("exp_avg", "exp_avg_sq")}
    turned = {"'w' exp_avg", "'w' exp_avg_sq"}
    if before != after:
        assert set(differences.converted_keys) == others
    else:
        assert set(differences.converted_keys) - turned == set()
        assert bool(differences.converted_keys) == (codes and order != there)
    assert_close(opt, other)
    assert other.iterations == 4
    train(other, fresh)


def test_no_more_than_one_rounding_by_another_form() -> None:
    """What 8 bits hold float32 holds, too: there and back nothing moves."""
    opt, _ = made(state_dtype="blockfloat8")
    wide, _ = made(steps=0)
    back, _ = made(steps=0, state_dtype="blockfloat8")
    wide.load_state_dict(opt.state_dict(), strict=False)
    back.load_state_dict(wide.state_dict(), strict=False)
    for p in opt._parameters:
        for name, own in p.state.items():
            assert (wide.state[p.name][name] == own.decoded()).all()
            codes, others = own.codes.astype(int), back.state[p.name][name].codes.astype(int)
            assert np.abs(codes - others).max(initial=0) <= 1
            assert (codes == others).sum() >= 0.9 * codes.size


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations([True, "remainder"])))
def test_masters_of_another_kind_start_anew(before: Any, after: Any) -> None:
    opt, own = made(master=before)
    other, fresh = made(steps=0, master=after)
    for name, x in own.items():
        fresh[name][...] = x
    with Unchanged(other, ValueError, "missing 'w' " + ("remainder", "master")[after is True]):
        other.load_state_dict(opt.state_dict())
    differences = other.load_state_dict(opt.state_dict(), strict=False)
    assert differences.converted_keys == []
    assert len(differences.missing_keys) == len(differences.unexpected_keys) == len(own)
    assert (np.asarray(other.state["w"]["master"]) == own["w"].astype(F4)).all()
    train(other, fresh)


@orders
def test_a_remainder_goes_to_the_other_order(order: str) -> None:
    opt, own = made(order=order, master="remainder")
    other, fresh = made(steps=0, order="F" if order == "C" else "C", master="remainder")
    other.load_state_dict(opt.state_dict())
    for name, x in own.items():
        fresh[name][...] = x
        master = (np.asarray(o.state[name]["master"]) for o in (opt, other))
        assert len({np.ascontiguousarray(a).tobytes() for a in master}) == 1


SPOILT: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no scales": (lambda s: s.pop("exp_avg.scales"), "missing 'w' exp_avg.scales"),
    "no codes": (lambda s: s.pop("exp_avg_sq"), "missing 'w' exp_avg_sq"),
    "short scales": (
        lambda s: s.update({"exp_avg.scales": s["exp_avg.scales"][:-1]}),
        "'w' exp_avg.scales: uint8 of shape (2,)",
    ),
    "float scales": (
        lambda s: s.update({"exp_avg.scales": s["exp_avg.scales"].astype(F4)}),
        "'w' exp_avg.scales: float32",
    ),
    "other sign": (
        lambda s: s.update(exp_avg_sq=s["exp_avg_sq"].view(np.int8)),
        "'w' exp_avg_sq: int8",
    ),
    "float remainder": (lambda s: s.update(remainder=s["remainder"].astype(F4)), "'w' remainder"),
    "other shape": (lambda s: s.update(exp_avg=s["exp_avg"].T), "'w' exp_avg: int8 of shape (15"),
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("spoilt", SPOILT)
def test_what_cannot_be_loaded(spoilt: str, strict: bool) -> None:
    if spoilt == "other sign" and not strict:
        pytest.skip("these are codes of another kind, which become numbers")
    opt, _ = made(**FORMS["both"])
    saved = opt.state_dict()
    spoil, says = SPOILT[spoilt]
    spoil(saved["state"]["w"])
    with Unchanged(opt, ValueError, says):
        opt.load_state_dict(saved, strict=strict)


def test_negative_numbers_have_no_unsigned_code() -> None:
    opt, _ = made(state_dtype="blockfloat8")
    wide, _ = made()
    saved = wide.state_dict()
    saved["state"]["w"]["exp_avg_sq"][3, 3] = -1
    with Unchanged(opt, ValueError, "'w' exp_avg_sq: ", "negative"):
        opt.load_state_dict(saved, strict=False)


def test_a_mask_is_not_ignored() -> None:
    opt, _ = made(state_dtype="blockfloat8")
    wide, _ = made()
    saved = wide.state_dict()
    saved["state"]["w"]["exp_avg"] = np.ma.array(saved["state"]["w"]["exp_avg"], mask=True)
    with Unchanged(opt, ValueError, "'w' exp_avg: "):
        opt.load_state_dict(saved, strict=False)


@forms
def test_read_only_state_takes_nothing(form: str) -> None:
    opt, _ = made(**FORMS[form])
    saved = opt.state_dict()
    beside = [a for role, a in opt._parameters[0].keeps() if a.dtype.kind in "iu"][-1]
    beside.flags.writeable = False
    with Unchanged(opt, ValueError, 'state["w"]', "read-only"):
        opt.load_state_dict(saved)
    beside.flags.writeable = True
    opt.load_state_dict(saved)


# ---- Parameters that change


@forms
@orders
def test_rebind_and_refresh(form: str, order: str) -> None:
    opt, own = made(order=order, **FORMS[form])
    other, _ = made(order=order, **FORMS[form])
    opt.rebind({name: x.copy(order="K") for name, x in own.items()})
    assert_goes_on(opt, other)  # the same numbers: nothing is taken anew
    for each in (opt, other):
        for p in each._parameters:
            p.x[...] = 0.5
    opt.refresh()
    other.rebind({name: np.copy(x, order="K") for name, x in params_of(other).items()})
    if "master" in FORMS[form]:
        assert (np.asarray(opt.state["w"]["master"]) == 0.5).all()
    else:
        assert_goes_on(opt, other)


def test_filled_from_outside() -> None:
    """A remainder alone is no weight: what the parameter becomes is what counts, to half a step."""
    opt, own = made(master="remainder")
    own["w"][...] = 8.0
    assert (np.abs(np.asarray(opt.state["w"]["master"]) - 8) <= 2.0**-5).all()
    opt.refresh()
    assert (np.asarray(opt.state["w"]["master"]) == 8).all()


@forms
@orders
def test_added_groups(form: str, order: str) -> None:
    opt, own = made(order=order, **FORMS[form])
    more = {"v": np.array(np.ones((70, 3)), own["w"].dtype, order=order)}  # type: ignore[call-overload]
    opt.add_param_group({"params": more, "lr": 0.1, "betas": (0.5, 0.9)})
    assert opt.state["v"].keys() == opt.state["w"].keys()
    train(opt, own | more)
    other = copy.deepcopy(opt)
    assert_goes_on(opt, other)
    if "master" in FORMS[form]:
        with Unchanged(opt, ValueError, "float16"):
            opt.add_param_group({"params": {"h": np.ones(3, np.float16)}})


# ---- What is seen of it


def test_nbytes() -> None:
    n = 1000
    sizes = {}
    for form in (None, "bfloat16", "blockfloat8"):
        sizes[form] = schuss.Adam(np.zeros(n, F4), state_dtype=form).nbytes
    assert sizes == {None: 8 * n, "bfloat16": 4 * n, "blockfloat8": 2 * (n + 16)}
    for master, width in ((True, 4), ("remainder", 2)):
        own: Any = np.zeros(n, BF16)
        assert schuss.SGD(own, master=master).nbytes == width * n  # type: ignore[arg-type]
    opt, _ = made(**FORMS["both"])
    state = opt.state["w"]
    assert state["exp_avg"].nbytes == state["exp_avg"].codes.nbytes + 3


@orders
def test_live_codes(order: str) -> None:
    opt, _ = made(order=order, state_dtype="blockfloat8")
    m = opt.state["w"]["exp_avg"]
    assert isinstance(m, schuss.BlockFloat8)
    assert (m.shape, m.size, len(m), m.signed) == ((9, 15), 135, 9, True)
    assert not opt.state["w"]["exp_avg_sq"].signed
    assert m.codes.dtype == np.int8
    assert m.scales.shape == (3,)
    found = m.decoded()
    assert found.dtype == F4
    assert (np.asarray(m) == found).all()
    assert np.asarray(m, np.float64).dtype == np.float64
    assert np.array(m).tobytes() == np.ascontiguousarray(found).tobytes() or order == "F"
    with pytest.raises(ValueError, match="decoded"):
        np.asarray(m, copy=False)
    assert (m[2:4, 3] == found[2:4, 3]).all()
    assert [row.shape for row in m] == [(15,)] * 9
    assert repr(m).startswith("BlockFloat8(array(")
    assert "BlockFloat8" in repr(opt.state)
    found += 1e9  # a copy
    assert np.abs(np.asarray(m)).max() < 1e9
    m[...] = 0
    assert not m.codes.any()
    m[3, 4] = -2.5
    assert abs(float(m[3, 4]) + 2.5) < 2.5 / 16
    assert np.count_nonzero(np.asarray(m)) == 1
    values = np.random.default_rng(0).standard_normal((9, 15))
    m[...] = values
    assert np.abs(np.asarray(m) - values).max() < np.abs(values).max() / 32
    m[1] = np.nan
    assert np.isnan(np.asarray(m)[1]).all()
    v = opt.state["w"]["exp_avg_sq"]
    with Unchanged(opt, ValueError, "negative"):
        v[0, 0] = -1.0
    with Unchanged(opt, ValueError, "broadcast"):
        v[...] = np.zeros(4)
    assert opt._parameters[0].state["exp_avg"] is m
    with pytest.raises(TypeError, match="unsized"):
        len(opt.state["s"]["exp_avg"])


def test_the_master_while_a_mean_stands_in_the_parameter() -> None:
    """It is that of the weights, which are kept, and so is what is written to it."""
    opt, own = made(master="remainder", ema=0.9)
    want = np.asarray(opt.state["w"]["master"])
    with opt.averaged():
        assert np.asarray(opt.state["w"]["master"]).tobytes() == want.tobytes()
        opt.state["w"]["master"][2, 3] = 1.2345678
    want[2, 3] = 1.2345678
    assert np.asarray(opt.state["w"]["master"]).tobytes() == want.tobytes()
    assert own["w"][2, 3] == BF16.type(1.2345678)


def test_live_remainders() -> None:
    opt, own = made(master="remainder")
    state = opt.state["w"]
    assert "remainder" not in state
    w = state["master"]
    found = np.asarray(w)
    assert found.dtype == F4
    assert found.astype(BF16).tobytes() == own["w"].tobytes()
    assert (w[1:3] == found[1:3]).all()
    assert (w.shape, w.size, len(w)) == ((9, 15), 135, 9)
    assert repr(w).startswith("Remainder(array(")
    w[2, 3] = np.float32(1.2345678)
    assert float(np.asarray(w)[2, 3]) == np.float32(1.2345678)
    assert own["w"][2, 3] == BF16.type(1.2345678)
    w[...] = found
    assert np.asarray(w).tobytes() == found.tobytes()
    train(opt, own)


@pytest.mark.parametrize("name", ["exp_avg", "master"])
def test_what_is_frozen_in_part_is_not_written(name: str) -> None:
    opt, own = made(**FORMS["both"])
    numbers = opt.state["w"][name]
    frozen = numbers.scales if name == "exp_avg" else own["w"]
    for part in (frozen, numbers.codes if name == "exp_avg" else numbers.remainder):
        part.flags.writeable = False
        with Unchanged(opt, ValueError, "values: "):
            numbers[...] = 3.0
        part.flags.writeable = True
    numbers[...] = 3.0


SPOIL: dict[str, Callable[[Any, Any], None]] = {
    "frozen codes": lambda m, own: m.codes.setflags(write=False),
    "resized codes": lambda m, own: m.codes.resize((9, 14), refcheck=False),
    "frozen scales": lambda m, own: m.scales.setflags(write=False),
    "resized scales": lambda m, own: m.scales.resize(2, refcheck=False),
    "frozen remainder": lambda m, own: own.setflags(write=False),
}


@pytest.mark.parametrize("spoil", SPOIL)
@pytest.mark.parametrize("backend", ["compiled", "numpy"])
def test_spoilt_between_two_steps(spoil: str, backend: Any) -> None:
    opt, own = made(backend=backend, **FORMS["both"])
    p = opt._parameters[0]
    SPOIL[spoil](p.state["exp_avg"], p.beside["master"])
    before = own["b"].tobytes(), opt.iterations
    named = 'state["w"]["master"]' if "remainder" in spoil else 'state["w"]["exp_avg'
    with pytest.raises((TypeError, ValueError)) as error:
        train(opt, own, 1)
    assert str(error.value).startswith(named)
    assert (own["b"].tobytes(), opt.iterations) == before


def test_options_that_cannot_be() -> None:
    x, h, d = np.ones(3, F4), np.ones(3, np.float16), np.ones(3)
    for wrong, options, says in [
        (x, {"state_dtype": "blockfloat"}, "state_dtype: "),
        (d, {"state_dtype": "blockfloat8"}, "state_dtype: "),
        (x, {"state_dtype": {"exp": "blockfloat8"}}, "state_dtype: no state 'exp'"),
        (h, {"master": "remainder"}, "master: "),
        (x.astype(BF16), {"master": "rest"}, "master: "),
        (x.astype(BF16), {"master": "remainder", "stochastic_rounding": True}, "stochastic_"),
    ]:
        with pytest.raises((TypeError, ValueError)) as error:
            schuss.Adam(wrong, **options)  # type: ignore[arg-type]
        assert str(error.value).startswith(says)
    with pytest.raises(ValueError, match="state_dtype: 'z'"):
        schuss.ScheduleFreeSGD(x, state_dtype={"z": "blockfloat8"})
    opt = schuss.ScheduleFreeAdamW(x, state_dtype="blockfloat8")
    assert opt.state[0]["z"].dtype == F4  # a point is no mean: it stays
    assert schuss.SGD(x, master="remainder").nbytes == 0  # there is nothing to keep


# ---- Stateless calls


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
def test_functional_codes_and_remainders(backend: Any) -> None:
    own = {"w": np.linspace(-1, 1, 300, dtype=F4).astype(BF16)}
    x = own["w"].copy()
    opt = schuss.AdamW(own, **FORMS["both"])
    m = schuss.BlockFloat8(np.zeros(300))
    v = schuss.BlockFloat8(np.zeros(300), signed=False)
    rest = np.zeros(300, np.int16)
    for step in range(1, 8):
        g = gradients(own, step)
        functional.adamw(x, g["w"], m, v, step=step, master=rest, backend=backend)
        opt.step(g)
    assert x.tobytes() == own["w"].tobytes()
    assert rest.tobytes() == opt._parameters[0].beside["master"].tobytes()
    assert m.codes.tobytes() == opt.state["w"]["exp_avg"].codes.tobytes()
    assert v.scales.tobytes() == opt.state["w"]["exp_avg_sq"].scales.tobytes()


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
def test_functional_mistakes(backend: Any) -> None:
    x, g = np.ones(100, F4), np.ones(100, F4)
    good = [schuss.BlockFloat8(np.zeros(100), signed=signed) for signed in (True, False)]
    of = schuss.BlockFloat8.of
    m, v = good
    frozen = schuss.BlockFloat8(np.zeros(100), signed=False)
    frozen.scales.flags.writeable = False
    for state, says in [
        ((m, of(v.codes, v.scales[:1])), "exp_avg_sq.scales"),
        ((m, of(v.codes, v.scales.astype(np.int8))), "exp_avg_sq.scales"),
        ((m, of(v.codes.astype(F4), v.scales)), "exp_avg_sq"),
        ((m, of(v.codes[:50], v.scales)), "exp_avg_sq"),
        ((of(m.codes, v.scales), v), "exp_avg"),
        ((m, of(m.codes.view(np.uint8), v.scales)), "exp_avg"),
        ((m, frozen), "exp_avg_sq.scales"),
        ((m, schuss.BlockFloat8(np.zeros(101), signed=False)), "exp_avg_sq"),
        ((m.codes, v), "exp_avg: int8"),
        ((np.zeros(100, F4), v.codes), "exp_avg_sq: uint8"),
    ]:
        before = [x.tobytes(), m.codes.tobytes(), m.scales.tobytes(), v.codes.tobytes()]
        with pytest.raises((TypeError, ValueError)) as error:
            functional.adam(x, g, *state, step=1, backend=backend)  # type: ignore[arg-type]
        assert says in str(error.value)
        assert [x.tobytes(), m.codes.tobytes(), m.scales.tobytes(), v.codes.tobytes()] == before
        functional.adam(x, g, m, v, step=1, backend=backend)  # the next call is none the worse
        functional.adam(x, g, np.zeros(100, F4), np.zeros(100, F4), step=1, backend=backend)


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
def test_functional_codes_of_the_other_sign(backend: Any) -> None:
    """A first moment without a sign would only grow, and a second with one has half the octaves."""
    x, g = np.ones(100, F4), np.full(100, -0.5, F4)
    signed, unsigned = (schuss.BlockFloat8(np.zeros(100), signed=s) for s in (True, False))
    for state, says in (((unsigned, unsigned), "exp_avg: "), ((signed, signed), "exp_avg_sq: ")):
        functional.adam(x, g, signed, unsigned, step=1, backend=backend)
        with pytest.raises(TypeError, match=f"^{says}codes of the other sign"):
            functional.adam(x, g, *state, step=1, backend=backend)
    functional.adam(x, g, signed, np.zeros(100, F4), step=1, backend=backend)
    with pytest.raises(TypeError, match="z: no mean or sum that codes hold"):
        functional.schedulefreesgd(
            *(x, g, signed), weight_sum=np.array(0.0), lr_max=np.array(0.0), step=1, backend=backend
        )


# ---- PyTorch


@orders
def test_torch_state_dict_decodes(order: str) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")
    opt, _ = made(order=order, state_dtype="blockfloat8")
    with pytest.warns(UserWarning, match="8 bits"):
        saved = schuss.torch_state_dict(opt)
    for i, p in enumerate(opt._parameters):
        for name in ("exp_avg", "exp_avg_sq"):
            assert (saved["state"][i][name].numpy() == np.asarray(p.state[name])).all()
    for there in ("C", "F"):
        other, _ = made(steps=0, order=there, state_dtype="blockfloat8")
        other.load_state_dict(saved)
        assert_close(opt, other)
    coded, _ = made(master="remainder")
    with pytest.raises(ValueError, match="master: 'remainder' is not in PyTorch's"):
        schuss.torch_state_dict(coded)
    coded.load_state_dict(saved)  # and takes the float32 moments
    assert_close(opt, coded)
