"""State dictionaries in PyTorch's format: what is loaded, what is given, what is refused."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import schuss
from schuss import rules
from schuss.engine.optimizer import Optimizer

F2, F4, F8 = np.dtype("f2"), np.dtype("f4"), np.dtype("f8")
BF16 = np.dtype(ml_dtypes.bfloat16)
SHAPES: dict[str, tuple[int, ...]] = {"w": (5, 7), "b": (7,), "u": (3, 4), "s": ()}
TOLERANCE = {F4: 1e-5, F8: 1e-12, BF16: 0.25}  # of the largest move; PyTorch has bfloat16 state

# What to try of each rule that PyTorch has.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "SGD": [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.4, "maximize": True},
        {"momentum": 0.9, "nesterov": True},
    ],
    "Momentum": [{}],
    "NAG": [{}],
    "Adagrad": [{}, {"lr_decay": 0.1, "initial_accumulator_value": 0.2}],
    "RMSprop": [{}, {"momentum": 0.9}, {"centered": True}, {"momentum": 0.9, "centered": True}],
    "Adadelta": [{"lr": 50.0}],
    "Adam": [{}, {"amsgrad": True}, {"decay_mode": "decoupled"}],
    "AdamW": [{}, {"amsgrad": True, "maximize": True}],
    "Adamax": [{}],
    "NAdam": [{}, {"momentum_decay": 0.1}],
    "NAdamW": [{}],
    "RAdam": [{"lr": 0.2}, {"lr": 0.2, "decay_mode": "decoupled"}],
    "Rprop": [{}, {"etas": (0.4, 1.3), "step_sizes": (1e-3, 0.1)}],
    "ASGD": [{}, {"lambd": 0.1, "alpha": 0.5, "t0": 2.0}],
    # Its eps of None is that of the parameter's type, ours of the type that is computed in.
    "Adafactor": [{"lr": 0.2, "eps": (1e-3, 0.1)}, {"eps": (1e-3, 0.5), "d": 1.5}],
}
PYTORCHS = {"Momentum": "SGD", "NAG": "SGD", "NAdamW": "NAdam"}
CASES = [(getattr(schuss, name), o) for name, several in VARIANTS.items() for o in several]

cases = pytest.mark.parametrize(("rule", "options"), CASES)
types = pytest.mark.parametrize("dtype", [F4, F8, BF16], ids=str)


def pytorch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed: nothing to compare with")


# ---- The same training here and there


def random(seed: int, dtype: np.dtype[Any], scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: np.asarray(rng.normal(0, scale, s)).astype(dtype) for n, s in SHAPES.items()}


def groups(rule: type[Optimizer], members: Mapping[str, Any], lr: float) -> list[dict[str, Any]]:
    """Two groups with different options."""
    decays = rule is not schuss.Rprop  # PyTorch's has no weight decay
    return [
        {"params": {n: members[n] for n in ("b", "w")}} | ({"weight_decay": 0.1} if decays else {}),
        {"params": {n: members[n] for n in ("u", "s")}, "lr": lr / 2},
    ]


class Ours:
    """An optimizer of ours with its parameters."""

    def __init__(
        self, rule: type[Optimizer], start: Mapping[str, np.ndarray], **options: Any
    ) -> None:
        options = {"lr": 0.02, **options}
        self.x = copy.deepcopy(dict(start))
        self.opt = rule(groups(rule, self.x, options["lr"]), **options)

    def train(self, first: int, steps: int) -> None:
        for t in range(first, first + steps):
            self.opt.step(random(t, self.x["w"].dtype), loss=2.0 + math.cos(t))


class Theirs:
    """The same one of PyTorch's."""

    def __init__(
        self, rule: type[Optimizer], start: Mapping[str, np.ndarray], named: bool, **options: Any
    ) -> None:
        torch = pytorch()
        cls = getattr(torch.optim, PYTORCHS.get(rule.__name__, rule.__name__))
        takes = inspect.signature(cls).parameters
        options = {**rule.defaults(), "lr": 0.02, **options}
        given = {k: v for k, v in options.items() if k in takes and not isinstance(v, str)}
        if options["decay_mode"] == "decoupled" and "decoupled_weight_decay" in takes:
            given["decoupled_weight_decay"] = True
        self.x = {n: tensor(x).requires_grad_() for n, x in start.items()}
        split = groups(rule, self.x, options["lr"])
        for group in split:
            members = list(group["params"].items())
            group["params"] = members[::-1] if named else [p for _, p in members]
        self.opt = cls(split, **given)

    def train(self, first: int, steps: int) -> None:
        for t in range(first, first + steps):
            for n, g in random(t, array(self.x["w"]).dtype).items():
                self.x[n].grad = tensor(g)
            self.opt.step()

    def values(self) -> dict[str, np.ndarray]:
        return {n: array(x) for n, x in self.x.items()}


def tensor(x: np.ndarray) -> Any:
    torch = pytorch()
    if x.dtype == BF16:
        return torch.from_numpy(x.astype(F4)).to(torch.bfloat16)
    return torch.from_numpy(x.copy())


def array(x: Any) -> np.ndarray:
    if str(x.dtype) == "torch.bfloat16":
        return np.asarray(x.detach().float().numpy().astype(BF16))
    return np.array(x.detach().numpy())


@pytest.fixture
def double(dtype: np.dtype[Any]) -> Iterator[None]:
    """PyTorch keeps the numbers beside its arrays in its default type."""
    torch = pytorch()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if dtype == F8 else torch.float32)
    yield
    torch.set_default_dtype(before)


def assert_agree(ours: Ours, theirs: Theirs, before: Mapping[str, np.ndarray]) -> None:
    """Both have gone the same way from the same place."""
    after = theirs.values()
    largest = max(np.abs(x.astype(F8) - before[n].astype(F8)).max() for n, x in after.items())
    assert largest > 0
    for n, x in ours.x.items():
        off = np.abs(x.astype(F8) - after[n].astype(F8)).max()
        assert off <= TOLERANCE[x.dtype] * largest, n


def bits(value: Any) -> Any:
    """What has to be equal for two state dictionaries to be the same."""
    if isinstance(value, Mapping):
        return {key: bits(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [bits(inner) for inner in value]
    if hasattr(value, "detach"):
        return (str(value.dtype), bits(array(value)))
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    return value


def test_every_rule_that_pytorch_has_is_tried() -> None:
    optim = pytorch().optim
    has = [r.__name__ for r in rules.RULES if hasattr(optim, PYTORCHS.get(r.__name__, r.__name__))]
    assert set(has) == set(VARIANTS)


@pytest.mark.usefixtures("double")
@types
@pytest.mark.parametrize("named", [False, True], ids=["positions", "names"])
@cases
def test_from_pytorch(
    rule: type[Optimizer], options: dict[str, Any], named: bool, dtype: np.dtype[Any]
) -> None:
    """7 steps there, then 10 on both sides; hyperparameters here are other ones until then."""
    theirs = Theirs(rule, random(1, dtype, 0.1), named, **options)
    theirs.train(10, 7)
    before = theirs.values()
    ours = Ours(rule, before, **{**options, "lr": 7.0})
    ours.opt.load_state_dict(theirs.opt.state_dict())
    first = 1 if ours.opt.state["w"].keys() > {"step"} else 0  # SGD counts no further
    assert ours.opt.iterations == (first if isinstance(ours.opt, schuss.SGD) else 7)
    assert bits(theirs.values()) == bits(before)
    ours.train(17, 10)
    theirs.train(17, 10)
    assert_agree(ours, theirs, before)


@pytest.mark.filterwarnings("ignore:torch_state_dict. not in PyTorch's format. state wider")
@pytest.mark.usefixtures("double")
@types
@cases
def test_to_pytorch(rule: type[Optimizer], options: dict[str, Any], dtype: np.dtype[Any]) -> None:
    """7 steps here, then 10 on both sides; hyperparameters there are other ones until then."""
    ours = Ours(rule, random(1, dtype, 0.1), **options)
    ours.train(10, 7)
    before = copy.deepcopy(ours.x)
    theirs = Theirs(rule, before, False, **{**options, "lr": 7.0})
    if rule is schuss.Rprop:  # whose lr is in the state
        theirs = Theirs(rule, before, False, **options)
    theirs.opt.load_state_dict(schuss.torch_state_dict(ours.opt))
    ours.train(17, 10)
    theirs.train(17, 10)
    assert_agree(ours, theirs, before)


@pytest.mark.filterwarnings("ignore:torch_state_dict. not in PyTorch's format. state wider")
@pytest.mark.usefixtures("double")
@types
@cases
def test_round_trips(rule: type[Optimizer], options: dict[str, Any], dtype: np.dtype[Any]) -> None:
    """There and back, and back and there: the same bits, but for the steps that SGD doesn't count.

    PyTorch's tensors of 16-bit parameters come back as wide as the state here is.
    """
    ours = Ours(rule, random(1, dtype, 0.1), **options)
    ours.train(10, 7)
    there = schuss.torch_state_dict(ours.opt)
    back = Ours(rule, ours.x, **options)
    back.opt.load_state_dict(there)
    want, found = ours.opt.state_dict(), back.opt.state_dict()
    if issubclass(rule, schuss.SGD):
        for own in (want, found):
            own["iterations"] = 0
            for state in own["state"].values():
                state["step"] = 0
    assert bits(found) == bits(want)
    assert bits(schuss.torch_state_dict(back.opt)) == bits(there)
    theirs = Theirs(rule, ours.x, False, **options)
    theirs.train(10, 7)
    theirs.opt.load_state_dict(theirs.opt.state_dict())  # rounds mu_product to the array's type
    kept = bits(theirs.opt.state_dict())
    back.opt.load_state_dict(theirs.opt.state_dict())
    theirs.opt.load_state_dict(schuss.torch_state_dict(back.opt))
    again = bits(theirs.opt.state_dict())
    for given in (kept, again):  # without state PyTorch may have an empty one, or none
        given["state"] = {i: state for i, state in given["state"].items() if state}
    assert again == kept


def test_what_pytorch_gets_is_a_copy_of_its_own() -> None:
    pytorch()
    ours = Ours(schuss.Adam, random(1, F4))
    ours.train(0, 1)
    before = bits(ours.opt.state_dict())
    given = schuss.torch_state_dict(ours.opt)
    for state in given["state"].values():
        for value in state.values():
            value.fill_(7)
    assert bits(ours.opt.state_dict()) == before


def test_state_in_bfloat16_stays_as_it_is() -> None:
    torch = pytorch()
    params = random(1, BF16)
    opt = schuss.Adam(params, state_dtype="bfloat16")
    opt.step(random(2, BF16))
    given = schuss.torch_state_dict(opt)
    assert given["state"][0]["exp_avg"].dtype == torch.bfloat16
    other = schuss.Adam(params, state_dtype="bfloat16")
    other.load_state_dict(given)
    assert bits(other.state_dict()) == bits(opt.state_dict())


def test_a_rate_in_a_tensor_and_a_schedulers_notes() -> None:
    torch = pytorch()
    p = torch.ones(3, requires_grad=True)
    theirs = torch.optim.AdamW([p], lr=torch.tensor(0.5), fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(theirs, 0.5, total_steps=10)
    p.grad = torch.ones(3)
    theirs.step()
    scheduler.step()
    opt = schuss.AdamW([np.ones(3, F4)])
    opt.load_state_dict(theirs.state_dict())
    assert opt.lr == float(theirs.param_groups[0]["lr"])
    assert opt.param_groups[0]["betas"] == theirs.param_groups[0]["betas"]


def test_a_callable_is_given_as_the_coming_steps_value() -> None:
    pytorch()
    opt = schuss.Adam([np.ones(3)], lr=lambda n: 0.1 * (n + 1), betas=(lambda n: 0.5, 0.9))
    opt.step([np.ones(3)])
    group = schuss.torch_state_dict(opt)["param_groups"][0]
    assert (group["lr"], group["betas"]) == (0.2, (0.5, 0.9))
    assert callable(opt.lr)


def test_a_parameter_without_a_step() -> None:
    """PyTorch's dampening spares the first step: a buffer that it doesn't have is not one of 0."""
    pytorch()
    options = {"momentum": 0.9, "dampening": 0.4}
    ours = Ours(schuss.SGD, random(1, F8), **options)
    ours.opt.step([{n: (g if n == "w" else None) for n, g in part.items()} for part in halves(0)])
    given = schuss.torch_state_dict(ours.opt)
    assert given["state"].keys() == {1}
    theirs = Theirs(schuss.SGD, ours.x, False, **options)
    theirs.opt.load_state_dict(given)
    before = copy.deepcopy(ours.x)
    ours.train(1, 3)
    theirs.train(1, 3)
    assert_agree(ours, theirs, before)


def halves(t: int) -> list[dict[str, np.ndarray]]:
    g = random(t, F8)
    return [{n: g[n] for n in ("b", "w")}, {n: g[n] for n in ("u", "s")}]


@pytest.mark.parametrize(
    ("rule", "options", "says"),
    [
        (schuss.Adam, {"eps_mode": "hat"}, "eps_mode: 'hat' is not in PyTorch's Adam"),
        (schuss.Adam, {"amsgrad": "corrected"}, "amsgrad: 'corrected'"),
        (schuss.Adam, {"bias_correction1": False}, "bias_correction1: False"),
        (schuss.Adam, {"l1": 0.1}, "l1: 0.1"),
        (schuss.Adam, {"l2": 0.1}, "l2: 0.1"),
        (schuss.Adam, {"clip_value": 1.0}, "clip_value: 1.0"),
        (schuss.Adam, {"bounds": (0.0, 1.0)}, "bounds: (0.0, 1.0)"),
        (schuss.Adam, {"bounds": (np.zeros(3, F2), 1.0)}, "bounds: "),
        (schuss.Adam, {"weight_decay": 0.1, "decay_mode": "proximal"}, "decay_mode: 'proximal'"),
        (schuss.AdamW, {"decay_mode": "l2"}, "decay_mode: 'l2' is not in PyTorch's AdamW"),
        (schuss.SGD, {"weight_decay": 0.1, "decay_mode": "decoupled"}, "decay_mode: 'decoupled'"),
        (schuss.SGD, {"momentum": 0.9, "lr_in_buffer": True}, "lr_in_buffer: True"),
        (schuss.SGD, {"momentum": 0.9, "first_step": "accumulate"}, "first_step: 'accumulate'"),
        (schuss.NAG, {"nesterov": "lookahead"}, "nesterov: 'lookahead' is not in PyTorch's SGD"),
        (schuss.NAdam, {"variant": "timm"}, "variant: 'timm'"),
        (schuss.RAdam, {"threshold": 4.0}, "threshold: 4.0"),
        (schuss.Rprop, {"variant": "rprop+"}, "variant: 'rprop+'"),
        (schuss.Rprop, {"weight_decay": 0.1}, "weight_decay: 0.1 is not in PyTorch's Rprop"),
        (schuss.RMSprop, {"momentum": 0.9, "nesterov": True}, "nesterov: True"),
        (schuss.RMSprop, {"bias_correction": True}, "bias_correction: True"),
        (schuss.Adam, {"master": True}, "master: True"),
        (schuss.Adam, {"stochastic_rounding": True}, "stochastic_rounding: True"),
    ],
)
def test_what_pytorch_has_not(rule: type[Optimizer], options: dict[str, Any], says: str) -> None:
    pytorch()
    opt = rule([np.ones(3, F2)], **options)
    with pytest.raises(ValueError) as info:  # noqa: PT011  compared below
        schuss.torch_state_dict(opt)
    assert says in str(info.value)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (schuss.Adam, {"decay_mode": "proximal"}),  # of a decay of 0
        (schuss.RMSprop, {"initial_accumulator_value": 1.0}),  # is in the state
        (schuss.RMSprop, {"preset": "torch"}),
        (schuss.Rprop, {"preset": "torch"}),
        (schuss.Adam, {"state_dtype": "bfloat16"}),
        (schuss.AdamW, {"no_decay": lambda name, a: True}),
    ],
)
def test_what_makes_no_difference_there(rule: type[Optimizer], options: dict[str, Any]) -> None:
    pytorch()
    given = schuss.torch_state_dict(rule([np.ones(3, F4)], **options))
    assert given["param_groups"][0].get("weight_decay", 0) == 0


LEFT_OUT: dict[str, tuple[dict[str, Any], Any]] = {
    "ema=0.9": ({"ema": 0.9}, F4),
    "clip_norm=1.0; nonfinite='raise'": ({"clip_norm": 1.0, "nonfinite": "raise"}, F4),
    "grad_scale=4.0": ({"grad_scale": 4.0}, F4),
    "nonfinite='skip'; grad_scale=8.0": (
        {"grad_scale": schuss.LossScale(8.0), "nonfinite": "skip"},
        F4,
    ),
    "the schedule at 0.lr": ({"lr": schuss.schedules.ReduceOnPlateau(0.1)}, F4),
    "state wider than its 16-bit parameter, which PyTorch casts: '0'": ({}, BF16),
}


@pytest.mark.parametrize("lost", LEFT_OUT)
def test_what_pytorchs_format_cant_hold_is_named(lost: str) -> None:
    pytorch()
    options, dtype = LEFT_OUT[lost]
    with pytest.warns(UserWarning, match="torch_state_dict: not in") as caught:
        schuss.torch_state_dict(schuss.Adam([np.ones(3, dtype)], **options))
    assert [str(w.message) for w in caught] == [
        f"torch_state_dict: not in PyTorch's format: {lost}"
    ]


def test_notes_of_the_users_own_in_a_group(adam: Ours, given: dict[str, Any]) -> None:
    given["param_groups"][0] |= {"name": "head", "lr_scale": 0.5}
    adam.opt.load_state_dict(given)
    assert "name" not in adam.opt.param_groups[0]


@pytest.mark.parametrize("rule", [schuss.Adam, schuss.AdamW])
@pytest.mark.parametrize("decoupled", [False, True])
def test_adamw_stays_decoupled(rule: type[Optimizer], decoupled: bool) -> None:
    """As PyTorch's, into which Adam's state may be loaded; Adam itself goes either way."""
    group = {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": decoupled, "params": [0]}
    opt = rule([np.ones(2)])
    opt.load_state_dict({"state": {}, "param_groups": [group]})
    mode = "decoupled" if decoupled or rule is schuss.AdamW else "l2"
    assert opt.param_groups[0]["decay_mode"] == mode


def test_no_decay_of_a_part_needs_groups() -> None:
    pytorch()
    opt = schuss.AdamW([np.ones(3), np.ones(4)], no_decay=lambda name, a: a.size == 3)
    with pytest.raises(ValueError, match=r"no_decay: \['0'\]; PyTorch needs them in a group"):
        schuss.torch_state_dict(opt)


def test_a_rule_of_ones_own_is_not_pytorchs() -> None:
    pytorch()

    class Double(schuss.SGD):
        @staticmethod
        def scalars(h: Mapping[str, Any], t: int, memory: Mapping[str, float]) -> dict[str, float]:
            return schuss.SGD.scalars({**h, "lr": 2 * h["lr"]}, t, memory)

    with pytest.raises(ValueError, match="Double: PyTorch has no such rule"):
        schuss.torch_state_dict(Double([np.ones(3)]))


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is not None, reason="PyTorch is installed: nothing is missing"
)
def test_without_pytorch() -> None:
    with pytest.raises(ModuleNotFoundError, match="torch_state_dict: needs PyTorch"):
        schuss.torch_state_dict(schuss.Adam([np.ones(3)]))


# ---- Arrays in PyTorch's format: what is loaded needs no PyTorch


def written(opt: Optimizer) -> dict[str, Any]:
    """What PyTorch would have written, with arrays in place of its tensors."""
    saved = opt.state_dict()
    names = [name for group in saved["param_groups"] for name in group["params"]]
    state: dict[int, Any] = {}
    for i, name in enumerate(names):
        own = dict(saved["state"][name])
        own["step"] = np.array(own["step"], F4)
        state[i] = {k: np.asarray(v) for k, v in own.items()}
        if isinstance(opt, schuss.SGD):
            del state[i]["step"]
    more = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}
    split = []
    for group in saved["param_groups"]:
        ids = [names.index(name) for name in group["params"]]
        split.append({"lr": group["lr"], "initial_lr": 9.0, **more, "params": ids})
    return {"state": {i: s for i, s in state.items() if s}, "param_groups": split}


def test_pytorch_begins_where_ours_has_not_begun() -> None:
    """Its ASGD would go nowhere with the rate that ours has before the first step."""
    torch = pytorch()
    x, y = (torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ours = schuss.ASGD([np.ones(3), np.ones(3)], lr=0.5)
    ours.step([np.ones(3), None])
    theirs = torch.optim.ASGD([x, y], lr=0.1)
    theirs.load_state_dict(schuss.torch_state_dict(ours))
    y.grad = torch.ones(3, dtype=torch.float64)
    theirs.step()
    assert np.allclose(array(y), 0.5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [F2, F4, F8, BF16], ids=str)
@pytest.mark.parametrize("rule", [r for r in rules.RULES if not r.reads_loss(r.defaults())])
def test_arrays(rule: type[Optimizer], dtype: np.dtype[Any]) -> None:
    """Three steps, loaded, three more: the bits of six; for every rule, PyTorch's or not.

    But for what all arrays share, which PyTorch's format has no place for.
    """
    six, three = (Ours(rule, random(1, dtype)) for _ in range(2))
    six.train(0, 6)
    three.train(0, 3)
    other = Ours(rule, three.x, lr=5.0)
    given = written(three.opt)
    kept = bits(given)
    other.opt.load_state_dict(given)
    assert bits(given) == kept
    other.train(3, 3)
    assert bits(other.x) == bits(six.x)
    counted = not issubclass(rule, schuss.SGD)
    assert other.opt.iterations == (6 if counted else 4 if given["state"] else 3)


@pytest.fixture
def adam() -> Ours:
    """An optimizer with two steps behind it, so that there is something to lose."""
    ours = Ours(schuss.Adam, random(1, F4))
    ours.train(0, 2)
    return ours


@pytest.fixture
def given() -> dict[str, Any]:
    """What another one has become in three steps."""
    ours = Ours(schuss.Adam, random(2, F4), lr=0.5)
    ours.train(5, 3)
    return written(ours.opt)


@pytest.mark.parametrize("step", [3, 3.0, np.float32(3), np.array(3.0), np.array(3)])
def test_steps_of_any_type(step: Any, adam: Ours, given: dict[str, Any]) -> None:
    given["state"][2]["step"] = step
    adam.opt.load_state_dict(given)
    assert adam.opt.state["u"]["step"] == adam.opt.iterations == 3


def by_param_names(given: dict[str, Any]) -> None:
    """The other order within a group, and of the groups."""
    state, (first, second) = given["state"], given["param_groups"]
    given["state"] = {0: state[3], 1: state[2], 2: state[1], 3: state[0]}
    second |= {"params": [0, 1], "param_names": ["s", "u"]}
    first |= {"params": [2, 3], "param_names": ["w", "b"]}
    given["param_groups"] = [second, first]


def by_foreign_names(given: dict[str, Any]) -> None:
    given["param_groups"][0]["param_names"] = ["layer.bias", "layer.weight"]
    given["param_groups"][1]["param_names"] = ["out.weight", "out.scale"]


def by_foreign_numbers(given: dict[str, Any]) -> None:
    given["state"] = {10 * i: own for i, own in given["state"].items()}
    for group in given["param_groups"]:
        group["params"] = [10 * i for i in group["params"]]


def by_keys(given: dict[str, Any]) -> None:
    given["state"] = dict(zip(["b", "w", "u", "s"], given["state"].values(), strict=True))


def by_names_throughout(given: dict[str, Any]) -> None:
    by_keys(given)
    given["param_groups"][0]["params"] = ["w", "b"]
    given["param_groups"][1]["params"] = ["u", "s"]


@pytest.mark.parametrize(
    "rename",
    [by_param_names, by_foreign_names, by_foreign_numbers, by_keys, by_names_throughout],
)
def test_positions_or_names(
    rename: Callable[[dict[str, Any]], None], adam: Ours, given: dict[str, Any]
) -> None:
    want = copy.deepcopy(adam.opt)
    want.load_state_dict(copy.deepcopy(given))
    rename(given)
    adam.opt.load_state_dict(given)
    assert bits(adam.opt.state_dict()) == bits(want.state_dict())
    assert [group["lr"] for group in adam.opt.param_groups] == [0.5, 0.25]


def test_what_pytorch_does_not_have_is_at_its_start(adam: Ours, given: dict[str, Any]) -> None:
    del given["state"][1], given["param_groups"][0]["lr"]
    given["state"][2] = {}
    adam.opt.load_state_dict(given)
    state = adam.opt.state
    assert [state[n]["step"] for n in ("b", "w", "u", "s")] == [3, 0, 0, 3]
    assert not state["w"]["exp_avg"].any()
    assert state["b"]["exp_avg"].any()
    assert [group["lr"] for group in adam.opt.param_groups] == [0.02, 0.25]
    assert adam.opt.iterations == 3


@pytest.mark.parametrize(
    ("rule", "key", "start"),
    [
        (schuss.Rprop, "step_size", {"lr": 0.3}),
        (schuss.Adagrad, "sum", {"initial_accumulator_value": 0.3}),
    ],
)
def test_the_start_is_what_pytorchs_options_make_of_it(
    rule: type[Optimizer], key: str, start: dict[str, float]
) -> None:
    opt = rule([np.ones(3)])
    opt.step([np.ones(3)])
    opt.load_state_dict({"state": {}, "param_groups": [{**start, "params": [0]}]})
    assert (opt.state[0][key] == 0.3).all()
    assert opt.state[0]["step"] == opt.iterations == 0


def test_a_momentum_buffer_has_had_its_first_step() -> None:
    """SGD counts no steps there; None in place of a buffer, or none at all, is before the first."""
    opt = schuss.SGD([np.zeros(1), np.zeros(1), np.zeros(1)], lr=1.0, momentum=0.5, dampening=0.5)
    buffers = {0: {"momentum_buffer": np.ones(1)}, 1: {"momentum_buffer": None}}
    opt.load_state_dict({"state": buffers, "param_groups": [{"params": [0, 1, 2]}]})
    assert [opt.state[i]["step"] for i in range(3)] == [1, 0, 0]
    opt.step([np.ones(1)] * 3)
    assert [float(opt.state[i]["momentum_buffer"][0]) for i in range(3)] == [1.0, 1.0, 1.0]
    assert opt.state[0]["step"] == 2


def test_state_is_widened_exactly() -> None:
    """Of a 16-bit parameter PyTorch's state has 16 bits; the master is what the parameter is."""
    x = np.array([0.1, -3.0, 7.0]).astype(BF16)
    opt = schuss.Adam([x], master=True, ema=0.9)
    opt.step([np.ones(3, BF16)])
    m = np.array([0.3, 1e-30, -0.0]).astype(BF16)
    state = {"step": 4, "exp_avg": m, "exp_avg_sq": m.astype(F4)}
    x[:] = 5.0
    opt.load_state_dict({"state": {0: state}, "param_groups": [{"params": [0]}]})
    for key in ("exp_avg", "exp_avg_sq"):
        assert bits(opt.state[0][key]) == bits(m.astype(F4))
    assert (opt.state[0]["master"] == 5.0).all()
    assert (opt.ema["0"] == 5.0).all()


def test_the_loaders_callables_and_switches_stay(adam: Ours, given: dict[str, Any]) -> None:
    schedule = schuss.schedules.cosine(3.0, steps=6)
    adam.opt.lr, adam.opt.l2 = schedule, 0.3
    adam.opt.param_groups[1]["eps_mode"] = "hat"
    adam.opt.load_state_dict(given)
    assert adam.opt.lr is schedule
    assert adam.opt.current_learning_rate == pytest.approx(1.5)
    assert adam.opt.l2 == 0.3
    assert adam.opt.param_groups[1]["eps_mode"] == "hat"


@pytest.mark.parametrize(("there", "here"), [(True, "decoupled"), (False, "l2")])
def test_decoupled_weight_decay(there: bool, here: str, adam: Ours, given: dict[str, Any]) -> None:
    for group in given["param_groups"]:
        group["decoupled_weight_decay"] = there
    adam.opt.decay_mode = "masked"
    adam.opt.load_state_dict(given)
    assert adam.opt.decay_mode == here


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda s: s["state"][0].pop("step"), "missing 'b' step"),
        (lambda s: s["state"][0].pop("exp_avg"), "missing 'b' exp_avg"),
        (lambda s: s["state"][0].update(sum=np.zeros(7, F4)), "unknown 'b' sum"),
        (lambda s: s["state"][0].update(exp_avg=np.zeros(8, F4)), "'b' exp_avg: float32 of shape"),
        (lambda s: s["state"][0].update(exp_avg=np.zeros(7)), "'b' exp_avg: float64 of shape"),
        (lambda s: s["state"][0].update(exp_avg=np.zeros(7, "i2")), "'b' exp_avg: int16 of shape"),
        (lambda s: s["state"][0].update(exp_avg=[0.0] * 7), "'b' exp_avg: list"),
        (lambda s: s["state"][0].update(step=1.5), "'b' step: 1.5 is not a whole number"),
        (lambda s: s["state"][0].update(step=-1.0), "'b' step: -1"),
        (lambda s: s["state"].update({0: [1.0]}), "'b': list, wanted a mapping"),
        (lambda s: s["state"].update({7: {}}), "unknown 7"),
        (lambda s: s["param_groups"][0].update(dampening=0.0), "dampening: not of Adam"),
        (lambda s: s["param_groups"][0].update(params=0), 'no list of numbers as its "params"'),
        (lambda s: s["param_groups"][0].update(params=[[], []]), "no list of numbers"),
        (lambda s: s["param_groups"].append(None), "None has no list of numbers"),
        (lambda s: s["param_groups"][1].update(lr=-1.0), "lr: -1.0"),
        (lambda s: s["param_groups"][1].update(amsgrad=True), "would change the state arrays"),
        (lambda s: s["param_groups"][0].update(params=[0]), "parameters; wanted [['b', 'w']"),
        (lambda s: s["param_groups"].pop(), "parameters; wanted [['b', 'w']"),
        (lambda s: s["param_groups"][0].update(param_names=["b", "x"]), "wanted [['b', 'w']"),
        (lambda s: s["param_groups"][0].update(param_names=["b"]), "wanted [['b', 'w']"),
        (lambda s: s["param_groups"].append({"params": []}), "wanted [['b', 'w']"),
    ],
)
def test_errors_change_nothing(
    spoil: Callable[[Any], Any], says: str, adam: Ours, given: dict[str, Any]
) -> None:
    spoil(given)
    before = bits(adam.opt.state_dict()), bits(adam.x)
    with pytest.raises((TypeError, ValueError)) as info:
        adam.opt.load_state_dict(given)
    assert says in str(info.value)
    assert (bits(adam.opt.state_dict()), bits(adam.x)) == before


def test_another_momentum_is_named() -> None:
    opt = schuss.SGD([np.zeros(3)], momentum=0.9)
    group = {"momentum": 0.0, "params": [0]}
    with pytest.raises(ValueError, match=r"momentum: 0\.0.* would change the state arrays"):
        opt.load_state_dict({"state": {}, "param_groups": [group]})
    plain = schuss.SGD([np.zeros(3)])
    buffers = {0: {"momentum_buffer": np.ones(3)}}
    with pytest.raises(ValueError, match="unknown '0' momentum_buffer"):
        plain.load_state_dict({"state": buffers, "param_groups": [{"params": [0]}]})
