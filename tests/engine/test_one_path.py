"""Each step ends on the same bits, whether it may be short or not, in both backends.

Where nothing was set since the step before, only the rule's scalars are computed anew. Every
feature is driven through that shorter way and through the full one, which is forced: all bits of
parameters, state and counters are compared after each step.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import schuss
from schuss import rules
from schuss.engine import step
from schuss.engine.declare import Choice, Scheduled, Several
from schuss.engine.optimizer import Optimizer
from schuss.engine.scalars import DECAY_MODES, Part
from schuss.rules import matrix

F2, F4, F8, BF = np.float16, np.float32, np.float64, ml_dtypes.bfloat16
STEPS = 10


# ---- The two ways


class Full(Part):
    """Scalars of which nothing may stay as it is."""

    def __call__(self, *given: Any) -> Any:
        own, stages, _, h = super().__call__(*given)
        return own, stages, False, h


@contextmanager
def full_way() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "Part", Full)
        yield


def test_the_ways_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the comparison would be of nothing."""
    made: list[int] = []
    original = Part.__call__

    def counted(self: Part, *given: Any) -> Any:
        made.append(given[1])
        return original(self, *given)

    monkeypatch.setattr(Part, "__call__", counted)
    opt = schuss.AdamW([np.ones(3)])
    for _ in range(5):
        opt.step([np.ones(3)])
    assert made == [1]
    opt.lr = 0.5
    for _ in range(3):
        opt.step([np.ones(3)])
    assert made == [1, 6]
    with full_way():
        for _ in range(2):
            opt._plan.change()
            opt.step([np.ones(3)])
    assert made == [1, 6, 9, 10]


# ---- What is driven


Told = dict[str, Any]


class Case(NamedTuple):
    """A feature: how the optimizer is made, and what happens at step t, 0 first."""

    options: Callable[[], dict[str, Any]] = dict
    make: Callable[[Any, Any], Any] = lambda shape, dtype: {
        "body": [{"w": make_array(shape, dtype, 1)}, {"w": make_array(7, dtype, 2)}],
        "head": {"w": make_array((2, 3), dtype, 3), "b": make_array((), dtype, 4)},
    }
    dtype: Any = F4
    before: Callable[[Optimizer, Any, int], object] = lambda opt, params, t: None
    gradients: Callable[[Any, int], Any] = lambda grads, t: grads
    told: Callable[[Any, int], Told] = lambda params, t: {}


def make_array(shape: Any, dtype: Any, seed: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def like(params: Any, t: int, places: Iterator[int]) -> Any:
    """Gradients of step t in the structure of params: where params are groups, of their params."""
    if isinstance(params, dict):
        if "params" in params:
            return like(params["params"], t, places)
        return {key: like(p, t, places) for key, p in params.items()}
    if isinstance(params, list | tuple):
        return type(params)(like(p, t, places) for p in params)
    return drawn(t, next(places), params.shape).astype(F8 if params.dtype == F8 else F4)


@functools.cache
def drawn(t: int, place: int, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that each drive has again."""
    return np.asarray(np.random.default_rng((t, place)).standard_normal(shape))


def bits(opt: Optimizer) -> Any:
    """All that a step moves."""
    arrays = [a.tobytes() for p in opt._parameters for a in (p.x, *p.saved.values())]
    return arrays, repr((opt._moved(), opt.skipped_steps, opt.grad_norm))  # a NaN is itself


def flattened(grads: Any) -> Any:
    """The bytes of gradients, which may be zeroed."""
    if isinstance(grads, np.ndarray | None):
        return grads if grads is None else grads.tobytes()
    return [flattened(g) for g in (grads.values() if isinstance(grads, dict) else grads)]


def drive(rule: type[Optimizer], case: Case, backend: str, full: bool) -> list[Any]:
    """What each step returns and where it ends."""
    params = case.make((3, 7), case.dtype)
    opt = rule(params, backend=backend, **case.options())
    loss: Told = {"loss": 1.5} if opt.reads_loss(opt.param_groups[0]) else {}
    found = []
    with full_way() if full else nullcontext():
        for t in range(STEPS):
            case.before(opt, params, t)
            grads = case.gradients(like(params, t, itertools.count()), t)
            if full:
                opt._plan.change()
            with np.errstate(all="ignore"):
                done = opt.step(grads, **loss, **case.told(params, t))
            found.append((done, flattened(grads), bits(opt)))
    return found


def require_same(rule: type[Optimizer], case: Case, backends: Any = ("compiled", "numpy")) -> None:
    want = drive(rule, case, backends[0], full=True)
    assert any(found != want[0][2] for *_, found in want)
    for backend, full in [(backends[0], False), *((b, f) for b in backends[1:] for f in (0, 1))]:
        found = drive(rule, case, backend, full=bool(full))
        for t in range(STEPS):
            assert found[t] == want[t], f"step {t}, {backend}, {'full' if full else 'short'}"


# Rules of each way to have scalars: alone, with schedules that count, with numbers beside the
# arrays, with such beside all, with the loss, with sums of each array, with a point of their own.
KINDS = (
    schuss.SGD,
    schuss.AdamW,
    schuss.NAdam,
    schuss.Prodigy,
    schuss.Eve,
    schuss.LAMB,
    schuss.ScheduleFreeAdamW,
    schuss.ASGD,
)


def each(cases: Mapping[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases.values(), ids=cases.keys())


# ---- Rules, decays, schedules


@pytest.mark.parametrize("rule", rules.RULES)
def test_rules(rule: type[Optimizer]) -> None:
    require_same(rule, Case())


VARIANTS: list[tuple[type[Optimizer], dict[str, Any]]] = [
    (schuss.SGD, {"momentum": 0.9}),
    (schuss.SGD, {"momentum": 0.9, "nesterov": True}),
    (schuss.NAG, {"nesterov": "lookahead"}),
    (schuss.RMSprop, {"centered": True, "momentum": 0.5}),
    (schuss.Adam, {"amsgrad": True}),
    (schuss.Adam, {"eps_mode": "inside"}),
    (schuss.Adam, {"decay_mode": "course", "weight_decay": 0.1}),
    (schuss.AdamW, {"preset": "keras"}),
    (schuss.Rprop, {"variant": "irprop+"}),
    (schuss.DeltaBarDelta, {"momentum": 0.5, "agreement": "velocity"}),
]


@pytest.mark.parametrize(("rule", "options"), VARIANTS)
def test_variants(rule: type[Optimizer], options: dict[str, Any]) -> None:
    require_same(rule, Case(lambda: options))


@pytest.mark.parametrize("rule", rules.RULES)
@pytest.mark.parametrize("mode", DECAY_MODES)
def test_weight_decay(rule: type[Optimizer], mode: str) -> None:
    declared = rule.hyperparameters.get("decay_mode")
    if not (isinstance(declared, Choice) and mode in declared.choices):
        pytest.skip("the rule has no such mode")
    options = {"weight_decay": 0.1, "decay_mode": mode, "no_decay": lambda name, a: a.ndim < 2}
    require_same(rule, Case(lambda: options))


def scheduled(h: Any) -> Any:
    """A schedule around a hyperparameter's default; the default where it has none."""
    if isinstance(h, Several):
        return tuple(scheduled(part) for part in h.parts)
    if not isinstance(h, Scheduled) or h.default is None:
        return h.default
    # Where a default lies at the end of the interval, the others stay within.
    others = [v for v in (h.default * 0.75, h.default * 1.25, 0.25) if v in h.interval]
    values = [h.default, *others]
    return lambda n: values[n % len(values)]


@pytest.mark.parametrize("rule", rules.RULES)
def test_schedules_of_every_hyperparameter(rule: type[Optimizer]) -> None:
    numbers = {n: h for n, h in rule.hyperparameters.items() if h.is_number}
    if issubclass(rule, schuss.NAG):
        del numbers["dampening"]  # which Nesterov's is not for, and a schedule might have some
    every = {n: scheduled(h) for n, h in numbers.items() if h.default is not None}
    require_same(rule, Case(lambda: every))


# ---- Options


def flat(shape: Any, dtype: Any) -> Any:
    return {"a": make_array(shape, dtype, 1), "b": make_array(shape, dtype, 2)}


def listed(shape: Any, dtype: Any) -> Any:
    return list(flat(shape, dtype).values())


def grouped(shape: Any, dtype: Any) -> Any:
    a, b, c = (make_array(shape, dtype, seed) for seed in (1, 2, 3))
    return [{"params": {"a": a}}, {"params": {"b": b}, "lr": 0.5}, {"params": {"c": c}}]


def with_infinity(grads: Any, t: int) -> Any:
    if t in (3, 4, 7):
        grads["head"]["w"][0, 0] = np.inf
    return grads


def options(**given: Any) -> Case:
    return Case(lambda: given)


OPTIONS: dict[str, Case] = {
    "maximize": options(maximize=True),
    "cautious": options(cautious="mean"),
    "cautious, plus1": options(cautious="plus1"),
    "clip_value": options(clip_value=0.25),
    "l2, l1": options(l2=0.1, l1=0.01),
    "proximal": options(l1=0.1, l1_mode="prox"),
    "bounds": options(bounds=(-0.5, 0.5)),
    "bounds that are arrays": Case(lambda: {"bounds": (np.full((3, 7), -0.5), 0.5)}, flat),
    "grad_scale": options(grad_scale=8.0),
    "clip_norm": options(clip_norm=0.5),
    "clip_norm, now and then": options(clip_norm=17.5),
    "clip_norm, uphill and scaled": options(clip_norm=0.5, maximize=True, grad_scale=4.0),
    "skipped": Case(lambda: {"nonfinite": "skip"}, gradients=with_infinity),
    "skipped and clipped": Case(
        lambda: {"nonfinite": "skip", "clip_norm": 3.0, "zero_grad": True}, gradients=with_infinity
    ),
    "loss scale": Case(
        lambda: {"nonfinite": "skip", "grad_scale": schuss.LossScale(64.0, interval=2)},
        gradients=with_infinity,
    ),
    "propagated": Case(lambda: {"clip_norm": 3.0}, gradients=with_infinity),
    "zero_grad": options(zero_grad=True),
    "ema": options(ema=0.75),
    "ema with a warm-up": options(ema=schuss.schedules.ema_warmup(0.75)),
    "subnormals": options(subnormals="keep"),
    "float64": Case(dtype=F8),
    "float16": Case(dtype=F2),
    "bfloat16": Case(dtype=BF),
    "master": Case(lambda: {"master": True}, dtype=F2),
    "master and mean": Case(lambda: {"master": True, "ema": 0.5}, dtype=BF),
    "stochastic rounding": Case(lambda: {"stochastic_rounding": True, "seed": 3}, dtype=BF),
    "16-bit state": options(state_dtype="bfloat16"),
    "no_decay": options(weight_decay=0.1, no_decay=lambda name, a: a.ndim < 2),
    "flat": Case(make=flat),
    "list": Case(make=listed),
    "tuple": Case(make=lambda shape, dtype: tuple(listed(shape, dtype))),
    "one array": Case(make=lambda shape, dtype: make_array(shape, dtype, 1)),
    "groups": Case(make=grouped),
    "scheduled": Case(lambda: {"lr": schuss.schedules.cosine(0.1, steps=9, warmup=3)}),
}


@pytest.mark.parametrize("rule", KINDS)
@each(OPTIONS)
def test_options(case: Case, rule: type[Optimizer]) -> None:
    if not rule.states or (case.options().get("state_dtype") and rule is schuss.SGD):
        pytest.skip("has no state")
    require_same(rule, case)


# ---- What a step is given and told


def none_in_turn(grads: Any, t: int) -> Any:
    """Another part has no gradient in each step; in one, none has."""
    parts: list[Callable[[], Any]] = [
        lambda: None,
        lambda: grads.update(body=None),
        lambda: grads["head"].update(b=None),
        lambda: grads.update(head=None),
        lambda: grads.update(body=None, head=None),
    ]
    parts[t // 2 % 5]()
    return grads


def by_name(grads: Any, t: int) -> Any:
    """Each step in another structure."""
    head = {f"head.{key}": g for key, g in grads["head"].items()}
    named = {"body.0.w": grads["body"][0]["w"], "body.1": grads["body"][1], **head}
    return (grads, {**grads, "body": tuple(grads["body"])}, named)[t % 3]


def other_arrays(params: Any, t: int) -> Told:
    return {"params": copy.deepcopy(params)} if t % 4 == 3 else {}


GIVEN: dict[str, Case] = {
    "None in turn": Case(gradients=none_in_turn),
    "None in turn, with what is measured": Case(
        lambda: {"clip_norm": 1.0, "cautious": "mean", "ema": 0.5}, gradients=none_in_turn
    ),
    "missing in turn": Case(
        lambda: {"missing": "skip"},
        gradients=lambda g, t: {k: v for k, v in g.items() if t % 3 or k == "body"},
    ),
    "every structure": Case(gradients=by_name),
    "a loss": Case(told=lambda params, t: {} if t % 2 else {"grad_scale": 2.0}),
    "a rate": Case(told=lambda params, t: {"lr": 0.5 / (t + 1)} if t % 3 else {}),
    "a rate beside a schedule": Case(
        lambda: {"lr": lambda n: 0.1 / (n + 1)}, told=lambda p, t: {"lr": 0.3} if t % 3 else {}
    ),
    "arrays": Case(told=other_arrays),
    "arrays, with copies of them": Case(
        lambda: {"master": True, "ema": 0.5}, dtype=F2, told=other_arrays
    ),
    "all": Case(
        lambda: {"clip_norm": 2.0, "ema": 0.5},
        gradients=none_in_turn,
        told=lambda p, t: {"lr": 0.1 * (t % 2), "grad_scale": 1.0 + t, **other_arrays(p, t)},
    ),
}


@pytest.mark.parametrize("rule", KINDS)
@each(GIVEN)
def test_what_a_step_is_given(case: Case, rule: type[Optimizer]) -> None:
    require_same(rule, case)


# ---- What is set or done between steps


def rebound(opt: Optimizer, params: Any, t: int) -> None:
    for part in params["body"]:
        part["w"] = part["w"] + part["w"].dtype.type(1)
    opt.rebind(params)


def joined(opt: Optimizer, params: Any, t: int) -> None:
    params["tail"] = {"w": make_array(5, F4, t)}
    opt.add_param_group({"params": {"tail": {"w": params["tail"]["w"]}}, "lr": 0.25})


def evaluated(opt: Optimizer, params: Any, t: int) -> None:
    if isinstance(opt, rules.averages.ScheduleFree):
        opt.eval()
        opt.train()
    with opt.averaged():
        pass


def group_set(name: str, value: Any) -> Callable[[Optimizer, Any, int], None]:
    return lambda opt, params, t: opt.param_groups[-1].update({name: value})


def sets(name: str, value: Any) -> Callable[[Optimizer, Any, int], None]:
    return lambda opt, params, t: setattr(opt, name, value)


CHANGES: dict[str, Callable[[Optimizer, Any, int], object]] = {
    "lr": sets("lr", 0.25),
    "lr, as it was": lambda opt, params, t: setattr(opt, "lr", opt.lr),
    "lr of a group": group_set("lr", 0.25),
    "a schedule": sets("lr", lambda n: 0.5 / (n + 1)),
    "maximize": sets("maximize", True),
    "cautious": sets("cautious", "mean"),
    "l1": sets("l1", 0.1),
    "clip_value": sets("clip_value", 0.25),
    "bounds": sets("bounds", (-0.5, 0.5)),
    "weight_decay": sets("weight_decay", 0.1),
    "grad_scale": sets("grad_scale", 4.0),
    "clip_norm": sets("clip_norm", 0.1),
    "nonfinite": sets("nonfinite", "skip"),
    "zero_grad": sets("zero_grad", True),
    "subnormals": sets("subnormals", "keep"),
    "a step of its own": lambda opt, params, t: opt.step(
        like(params, 50, itertools.count()), loss=1.0, grad_scale=8.0
    ),
    "its own state": lambda opt, params, t: opt.load_state_dict(opt.state_dict()),
    "other arrays": rebound,
    "written into": lambda opt, params, t: params["body"][0]["w"].fill(0.5),
    "refreshed": lambda opt, params, t: opt.refresh(),
    "more arrays": joined,
    "evaluated": evaluated,
}


@pytest.mark.parametrize("rule", KINDS)
@each(CHANGES)
def test_what_is_set_counts_from_the_next_step_on(case: Any, rule: type[Optimizer]) -> None:
    before = lambda opt, params, t: case(opt, params, t) if t in (3, 6) else None  # noqa: E731
    if case is joined:
        before = lambda opt, params, t: joined(opt, params, t) if t == 3 else None  # noqa: E731
    require_same(rule, Case(lambda: {"ema": 0.5}, before=before))


@pytest.mark.parametrize("rule", KINDS)
def test_a_rate_that_is_set_before_each_step(rule: type[Optimizer]) -> None:
    rate = lambda opt, params, t: setattr(opt, "lr", 0.5 / (t + 1))  # noqa: E731
    require_same(rule, Case(before=rate))
    require_same(rule, Case(make=grouped, before=rate))


def plateau(opt: Optimizer, params: Any, t: int) -> None:
    opt.observe(1.0)


def test_a_schedule_that_follows_a_metric() -> None:
    course = functools.partial(schuss.schedules.ReduceOnPlateau, 0.5, patience=1)
    require_same(schuss.AdamW, Case(lambda: {"lr": course()}, before=plateau))


def estimated(opt: Optimizer, params: Any, t: int) -> None:
    assert isinstance(opt, schuss.Sophia)
    if t % 3 == 0:
        opt.update_hessian(like(params, 100 + t, itertools.count()))


def test_an_estimate_between_steps() -> None:
    require_same(schuss.Sophia, Case(before=estimated))


def looked_ahead(opt: Optimizer, params: Any, t: int) -> None:
    assert isinstance(opt, schuss.NAG)
    opt.lookahead()


def test_looking_ahead_between_steps() -> None:
    require_same(schuss.NAG, Case(lambda: {"nesterov": "lookahead"}, before=looked_ahead))


@pytest.mark.parametrize("rule", matrix.RULES)
@pytest.mark.parametrize("backend", ["compiled", "numpy"])
def test_rules_for_matrices(rule: type[Optimizer], backend: str) -> None:
    """Outside the promise of bits across backends, but not across the two ways."""
    for case in (Case(), GIVEN["None in turn"], Case(before=GIVEN["a rate"].before)):
        require_same(rule, case, (backend,))


@pytest.mark.filterwarnings("ignore:grads")
@pytest.mark.parametrize("rule", KINDS)
def test_converted_gradients(rule: type[Optimizer]) -> None:
    def gradients(grads: Any, t: int) -> Any:
        grads["body"][0]["w"] = np.asfortranarray(grads["body"][0]["w"].astype(F8))
        return grads

    require_same(rule, Case(lambda: {"convert": True, "zero_grad": True}, gradients=gradients))


@pytest.mark.parametrize("rule", KINDS)
def test_bound_gradients(rule: type[Optimizer]) -> None:
    found = []
    for backend, full in itertools.product(("compiled", "numpy"), (False, True)):
        params = flat((3, 7), F4)
        grads = like(params, 0, itertools.count())
        options: dict[str, Any] = {"backend": backend}
        opt = rule(params, grads=grads, **options)
        with full_way() if full else nullcontext():
            for t in range(STEPS):
                for own, g in zip(
                    grads.values(), like(params, t, itertools.count()).values(), strict=True
                ):
                    own[...] = g
                if full:
                    opt._plan.change()
                opt.step(loss=1.0)
        found.append(bits(opt))
    assert all(one == found[0] for one in found)


# ---- What comes in between within a step


class Interrupted(schuss.AdamW):
    """Something comes in between, as a signal's handler does."""

    between: ClassVar[Callable[[], Any] | None] = None

    @staticmethod
    def scalars(h: Mapping[str, Any], t: int, memory: Mapping[str, float]) -> dict[str, float]:
        between, Interrupted.between = Interrupted.between, None
        if between is not None:
            between()
        return schuss.AdamW.scalars(h, t, memory)


def pair() -> tuple[Any, Any]:
    return Interrupted(flat((3, 7), F4)), schuss.AdamW(flat((3, 7), F4), backend="numpy")


def gradients(t: int) -> Any:
    return like(flat((3, 7), F4), t, itertools.count())


@pytest.mark.parametrize(
    "between",
    [sets("lr", 0.5), sets("clip_norm", 0.1), group_set("lr", 0.5), sets("cautious", "mean")],
)
def test_what_is_set_in_between_counts(between: Any) -> None:
    ours, theirs = pair()
    for t in range(6):
        if t == 3:
            Interrupted.between = functools.partial(between, ours, None, t)
            between(theirs, None, t)
        for opt in (ours, theirs):
            opt.step(gradients(t))
        assert Interrupted.between is None
    assert bits(ours)[:3] == bits(theirs)[:3]


@pytest.mark.parametrize(
    "between",
    [
        lambda opt: opt.step(gradients(50)),
        lambda opt: opt.load_state_dict(opt.state_dict()),
        lambda opt: opt.rebind(flat((3, 7), F4)),
        lambda opt: opt.refresh(),
        lambda opt: opt.add_param_group({"params": {"more": np.ones(5)}}),
    ],
)
@pytest.mark.parametrize("where", ["scalars", "schedule"])
def test_no_call_in_the_middle_of_a_step(between: Any, where: str) -> None:
    ours, theirs = pair()
    running = False

    def lr(n: int) -> float:
        if running:
            between(ours)
        return 0.1

    if where == "schedule":
        ours.lr, theirs.lr = lr, 0.1
    for t in range(6):
        if t == 3:
            running = where == "schedule"
            Interrupted.between = None if running else functools.partial(between, ours)
            with pytest.raises(RuntimeError, match="re-entered"):
                ours.step(gradients(t))
            running = False
        for opt in (ours, theirs):
            opt.step(gradients(t))
    assert bits(ours)[:3] == bits(theirs)[:3]


def test_a_wrong_gradient_changes_nothing_and_the_next_step_is_right() -> None:
    ours, theirs = pair()
    for t in range(6):
        if t == 3:
            for wrong in (
                {**gradients(t), "a": np.ones(8, F4)},
                {**gradients(t), "a": np.ones((3, 7))},
                {**gradients(t), "a": [1.0] * 7},
                {**gradients(t), "a": ours.param_groups[0]["params"][0]},
                {"a": np.ones((3, 7), F4)},
                {**gradients(t), "c": np.ones(3, F4)},
                list(gradients(t).values()),
            ):
                with pytest.raises((ValueError, TypeError), match="grads"):
                    ours.step(wrong)
        for opt in (ours, theirs):
            opt.step(gradients(t))
    assert bits(ours)[:3] == bits(theirs)[:3]


def test_finite_gradients_whose_squares_overflow_are_an_ordinary_step() -> None:
    for backend in ("compiled", "numpy"):
        x = np.ones(3)
        opt = schuss.SGD([x], lr=1e-200, nonfinite="skip", backend=backend)
        for _ in range(3):
            assert opt.step([np.full(3, 1e200)])
        assert (x == 1.0 - 3.0).all()
        assert opt.grad_norm == pytest.approx(math.sqrt(3) * 1e200, rel=1e-14)


def test_gradients_are_let_go() -> None:
    opt = schuss.AdamW(flat((3, 7), F4))
    for t in range(3):
        g = gradients(t)
        before = {k: sys.getrefcount(a) for k, a in g.items()}
        opt.step(g)
        assert {k: sys.getrefcount(a) for k, a in g.items()} == before
