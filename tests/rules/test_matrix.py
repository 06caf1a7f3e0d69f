"""Rules that multiply matrices: their formulas from scratch, PyTorch's Muon, and the interface.

Their bits are BLAS's. What is asked for here is 1e-10 in float64 of what stands in the docstrings,
and equal bits of all that is no product of matrices.
"""

from __future__ import annotations

import copy
import math
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schuss
from schuss.engine.declare import Preset
from schuss.lab import catalogue
from schuss.lab.trainer import digits, evaluate, network, train
from schuss.rules import matrix
from schuss.rules.matrix import MatrixRule

F4 = np.float32
LIST = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
SHAPES = [(4, 7), (7, 4), (5, 5), (1, 6), (6, 1)]


@pytest.fixture(params=matrix.RULES, ids=lambda rule: rule.__name__)
def rule(request: pytest.FixtureRequest) -> type[MatrixRule]:
    found: type[MatrixRule] = request.param
    return found


def params_of(rng: np.random.Generator, dtype: Any = F4, order: Any = "C") -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {"w": (5, 8), "b": (8,), "head": (9, 3), "s": ()}
    shapes["conv"] = (2, 3, 4)
    return {k: np.asarray(rng.standard_normal(s), dtype, order=order) for k, s in shapes.items()}


def gradients(params: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    order: Any = "C" if params["w"].flags.c_contiguous else "F"
    return {
        k: np.asarray(rng.standard_normal(x.shape), x.dtype, order=order) for k, x in params.items()
    }


def steps(
    rule: type[MatrixRule], n: int = 12, seed: int = 5, dtype: Any = F4, **options: Any
) -> tuple[dict[str, np.ndarray], Any]:
    """Parameters after some steps along random gradients, and their optimizer."""
    rng = np.random.default_rng(seed)
    params = params_of(rng, dtype)
    opt = rule(params, **options)
    for _ in range(n):
        opt.step(gradients(params, rng))
    return params, opt


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


# ---- Muon


def orthogonal(u: np.ndarray) -> np.ndarray:
    """Five steps of the iteration, of the wide matrix."""
    x = u if u.shape[0] <= u.shape[1] else u.T
    x = x / max(math.sqrt((x * x).sum()), 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x if u.shape[0] <= u.shape[1] else x.T


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", SHAPES)
def test_muon(shape: tuple[int, int], scale: Any, nesterov: bool, order: Any) -> None:
    rng = np.random.default_rng(3)
    w = np.asarray(rng.standard_normal(shape), order=order)
    x, b = w.copy(), np.zeros(shape)
    opt = schuss.Muon(w, lr=0.02, nesterov=nesterov, adjust_lr_fn=scale, weight_decay=0.5)
    rows, columns = shape
    k = math.sqrt(max(1, rows / columns))
    if scale == "match_rms_adamw":
        k = 0.2 * math.sqrt(max(rows, columns))
    for _ in range(8):
        g = np.asarray(rng.standard_normal(shape), order=order)
        opt.step(g)
        b = 0.95 * b + 0.05 * g
        u = 0.05 * g + 0.95 * b if nesterov else b
        x = (1 - 0.02 * 0.5) * x - 0.02 * k * orthogonal(u)
        assert np.abs(w - x).max() < 1e-10
        assert np.abs(opt.state[0]["momentum_buffer"] - b).max() < 1e-12


@pytest.mark.parametrize("widened", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", SHAPES)
def test_muon_is_pytorchs(
    shape: tuple[int, int],
    scale: Any,
    dtype: Any,
    widened: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To rounding where PyTorch is kept from narrowing to bfloat16, else to what that leaves."""
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("an older PyTorch")
    if widened:
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    rng = np.random.default_rng(4)
    w = (3 * np.eye(*shape) + rng.standard_normal(shape)).astype(dtype)
    start, theirs = w.copy(), torch.tensor(w.copy())
    ours = schuss.Muon(w, lr=0.02, adjust_lr_fn=scale)
    other = torch.optim.Muon([theirs], lr=0.02, adjust_lr_fn=scale)
    bound = 5e-2 if not widened else 1e-4 if dtype == F4 else 1e-12
    for _ in range(10):
        g = (3 * np.eye(*shape) + rng.standard_normal(shape)).astype(dtype)
        ours.step(g)
        theirs.grad = torch.tensor(g)
        other.step()
        buffer = other.state[theirs]["momentum_buffer"].numpy()
        assert np.allclose(ours.state[0]["momentum_buffer"], buffer, rtol=1e-5, atol=1e-6)
        off, way = np.linalg.norm(w - theirs.numpy()), np.linalg.norm(w - start)
        assert off < bound * way


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (64, 64)])
def test_muons_singular_values_come_close_to_1(shape: tuple[int, int], dtype: Any) -> None:
    rng = np.random.default_rng(6)
    w = np.zeros(shape, dtype)
    schuss.Muon(w, lr=1.0, weight_decay=0.0).step(rng.standard_normal(shape).astype(dtype))
    values = np.linalg.svd(w, compute_uv=False) / math.sqrt(max(1, shape[0] / shape[1]))
    assert (values > 0.6 if shape[0] != shape[1] else values[:-8] > 0.6).all()
    assert (values < 1.25).all()
    again = np.zeros(shape, dtype)
    more = schuss.Muon(again, lr=1.0, weight_decay=0.0, ns_steps=12, ns_coefficients=(1.5, -0.5, 0))
    more.step(-np.eye(*shape, dtype=dtype))  # the iteration that converges
    assert np.allclose(again, math.sqrt(max(1, shape[0] / shape[1])) * np.eye(*shape), atol=1e-5)


def test_muon_of_zeros_stays() -> None:
    w = np.ones((3, 4), F4)
    schuss.Muon(w, lr=1.0, weight_decay=0.0).step(np.zeros((3, 4), F4))
    assert (w == 1).all()


# ---- Shampoo


@pytest.mark.parametrize("frequency", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_shampoo(shape: tuple[int, int], frequency: int) -> None:
    power = pytest.importorskip("scipy.linalg").fractional_matrix_power
    rng = np.random.default_rng(8)
    w = rng.standard_normal(shape)
    x, left, right = w.copy(), 1e-4 * np.eye(shape[0]), 1e-4 * np.eye(shape[1])
    opt = schuss.Shampoo(w, lr=0.1, precondition_frequency=frequency)
    for t in range(8):
        g = rng.standard_normal(shape)
        opt.step(g)
        left, right = left + g @ g.T, right + g.T @ g
        if t % frequency == 0:
            roots = power(left, -0.25), power(right, -0.25)
        x = x - 0.1 * roots[0] @ g @ roots[1]
        assert np.abs(w - x).max() < 1e-10


def test_shampoo_of_one_side_is_adagrad_of_it() -> None:
    """Of a 1 x 1 matrix, both roots together are the inverse root of the sum of squares."""
    w, a = np.ones((1, 1)), np.ones(1)
    ours = schuss.Shampoo(w, lr=0.1, eps=1e-12)
    adagrad = schuss.Adagrad(a, lr=0.1, eps=0.0)
    for g in (1.0, -0.3, 2.0):
        ours.step(np.array([[g]]))
        adagrad.step(np.array([g]))
    assert math.isclose(w[0, 0], a[0], rel_tol=1e-9)


# ---- SOAP


def soap(w: np.ndarray, gs: list[np.ndarray], lr: float, decay: float, every: int) -> np.ndarray:
    """The paper's algorithm 3 as its authors run it, as plainly as possible; m is unrotated."""
    beta, x, m, v = 0.95, w.copy(), np.zeros(w.shape), np.zeros(w.shape)
    left, right = 0.05 * gs[0] @ gs[0].T, 0.05 * gs[0].T @ gs[0]
    p, q = (np.linalg.eigh(a)[1][:, ::-1] for a in (left, right))
    for t, g in enumerate(gs[1:], start=1):
        rotated = p.T @ g @ q
        m = beta * m + (1 - beta) * g
        v = beta * v + (1 - beta) * rotated**2
        n = (p.T @ m @ q) / (np.sqrt(v) + 1e-8) * math.sqrt(1 - beta**t) / (1 - beta**t)
        x = x - lr * (p @ n @ q.T)
        x = x - lr * decay * x
        left = beta * left + (1 - beta) * g @ g.T
        right = beta * right + (1 - beta) * g.T @ g
        if t % every == 0:
            i = np.argsort(-np.diag(p.T @ left @ p), kind="stable")
            j = np.argsort(-np.diag(q.T @ right @ q), kind="stable")
            v = v[i][:, j]
            p, _ = np.linalg.qr(left @ p[:, i])
            q, _ = np.linalg.qr(right @ q[:, j])
    return x


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("every", [1, 3, 100])
@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5)])
def test_soap(shape: tuple[int, int], every: int, order: Any) -> None:
    rng = np.random.default_rng(9)
    w = np.asarray(rng.standard_normal(shape), order=order)
    start, gs = w.copy(), []
    opt = schuss.SOAP(w, lr=0.05, weight_decay=0.1, precondition_frequency=every)
    full = rng.standard_normal(shape)
    gs = [full + 0.5 * rng.standard_normal(shape) for _ in range(14)]
    for n, g in enumerate(gs, start=1):
        opt.step(np.asarray(g, order=order))
        if n == 1:
            assert np.array_equal(w, start)
        # a null space's basis is any: what falls into it is rounding, which Adam would enlarge
        if shape[0] == shape[1]:
            assert np.abs(w - soap(start, gs[:n], 0.05, 0.1, every)).max() < 1e-7


def test_soap_in_plain_bases_is_adam() -> None:
    rng = np.random.default_rng(10)
    w = rng.standard_normal((4, 6))
    opt = schuss.SOAP(w, lr=0.01, precondition_frequency=1000, weight_decay=0.0)
    opt.step(rng.standard_normal(w.shape))
    for name, side in (("left_basis", 4), ("right_basis", 6)):
        opt.state[0][name][...] = np.eye(side)
    x = w.copy()
    adam = schuss.Adam(x, lr=0.01, betas=(0.95, 0.95), eps_mode="hat")
    for _ in range(20):
        g = rng.standard_normal(w.shape)
        opt.step(g)
        adam.step(g)
        assert np.abs(w - x).max() < 1e-12


@pytest.mark.parametrize("rotates", [schuss.SOAP, schuss.Shampoo, schuss.Muon])
def test_rotated_problem_is_solved_alike(rotates: type[MatrixRule]) -> None:
    """Down (w - a)^T c (w - a), and down the same with all axes turned: the same way, turned."""
    rng = np.random.default_rng(11)
    p, q = (np.linalg.qr(rng.standard_normal((5, 5)))[0] for _ in range(2))
    a, c = rng.standard_normal((5, 5)), np.diag([1.0, 2.0, 5.0, 10.0, 30.0])
    w = np.zeros((5, 5))
    x = p @ w @ q.T
    straight, turned = rotates(w, lr=0.03), rotates(x, lr=0.03)
    for _ in range(25):
        straight.step(c @ (w - a))
        turned.step(p @ (c @ (p.T @ x @ q - a)) @ q.T)
    assert np.abs(w).max() > 0.1
    assert np.abs(p.T @ x @ q - w).max() < 1e-6


# ---- What is no matrix


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
def test_the_rest_is_adamws_bit_for_bit(rule: type[MatrixRule], backend: str) -> None:
    rng = np.random.default_rng(12)
    params = params_of(rng)
    options: dict[str, Any] = {"lr": 0.02, "betas": (0.8, 0.9), "weight_decay": 0.3}
    rest = {k: x.copy() for k, x in params.items() if k not in ("w", "head")}
    opt, adamw = rule(params, other=options, backend=backend), schuss.AdamW(rest, **options)
    for _ in range(5):
        g = gradients(params, rng)
        opt.step(g)
        adamw.step({k: g[k] for k in rest})
    assert same(rest, {k: params[k] for k in rest})
    assert set(opt.state["b"]) == {"step", "exp_avg", "exp_avg_sq"}
    assert set(opt.state["w"]) == {"step", *rule.kept}
    assert opt.param_groups[0]["param_names"] == ["w", "head"]
    assert opt.param_groups[1]["param_names"] == ["b", "s", "conv"]


def test_the_head_may_be_adamws(rule: type[MatrixRule]) -> None:
    opt = rule(
        params_of(np.random.default_rng(0)), matrix=lambda name, a: a.ndim == 2 and name != "head"
    )
    assert opt.param_groups[0]["param_names"] == ["w"]
    assert opt.param_groups[1]["param_names"] == ["b", "head", "s", "conv"]


def test_a_convolution_as_a_view(rule: type[MatrixRule]) -> None:
    rng = np.random.default_rng(13)
    kernel = rng.standard_normal((4, 3, 2, 2)).astype(F4)
    flat = kernel.reshape(4, -1).copy()
    of_view, of_copy = rule(kernel.reshape(4, -1)), rule(flat)
    for _ in range(3):
        g = rng.standard_normal((4, 12)).astype(F4)
        of_view.step(g)
        of_copy.step(g)
    assert np.array_equal(kernel.reshape(4, -1), flat)


@pytest.mark.parametrize(
    ("preset", "own", "other"),
    [
        (None, {"lr": 1e-3, "weight_decay": 0.1}, {"lr": 1e-3, "weight_decay": 0.01}),
        ("torch", {"lr": 1e-3, "weight_decay": 0.1}, {"lr": 1e-3, "eps": 1e-8}),
        ("jordan", {"lr": 0.02, "weight_decay": 0}, {"lr": 3e-4, "betas": (0.9, 0.95)}),
        ("keras", {"adjust_lr_fn": "match_rms_adamw"}, {"eps": 1e-7, "eps_mode": "hat"}),
        ("moonlight", {"adjust_lr_fn": "match_rms_adamw"}, {"weight_decay": 0.1}),
    ],
)
def test_presets(preset: Preset | None, own: dict[str, Any], other: dict[str, Any]) -> None:
    opt = schuss.Muon(np.zeros((2, 2)), preset=preset)
    assert {k: opt.param_groups[0][k] for k in own} == own
    assert {k: opt.param_groups[1][k] for k in other} == other
    opt = schuss.Muon(np.zeros((2, 2)), preset=preset, other={"lr": 7.0})
    assert opt.param_groups[1]["lr"] == 7.0


def test_what_all_rules_have_goes_to_both(rule: type[MatrixRule]) -> None:
    opt = rule(np.zeros((2, 2)), lr=0.5, clip_value=3.0, other={"l2": 0.5}, l2=0.1)
    first, second = opt.param_groups
    assert (first["clip_value"], second["clip_value"]) == (3.0, 3.0)
    assert (first["l2"], second["l2"]) == (0.1, 0.5)
    opt.maximize = True
    opt.lr = 0.25
    second["lr"] = 0.125
    assert (first["maximize"], second["maximize"]) == (True, True)
    assert (first["lr"], second["lr"], opt.current_learning_rate) == (0.25, 0.125, 0.25)


def test_groups(rule: type[MatrixRule]) -> None:
    a, b, c = np.zeros((2, 2)), np.zeros(2), np.zeros((2, 2))
    opt = rule([{"params": [a, b]}, {"params": [c], "lr": 0.0, "other": {"lr": 4.0}}])
    assert [g["param_names"] for g in opt.param_groups] == [["0", "1"][:1], ["1"], ["2"], []]
    assert [g["lr"] for g in opt.param_groups[2:]] == [0.0, 4.0]
    opt.add_param_group({"params": {"late": np.zeros((2, 3))}})
    assert len(opt.param_groups) == 6
    for _ in range(2):
        opt.step({"0": np.eye(2), "1": np.ones(2), "2": np.eye(2), "late": np.ones((2, 3))})
    assert (c == 0).all()
    assert a.any()
    assert b.any()


# ---- Around the rule: as if it had been done to the gradients, or the parameters


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"maximize": True}, lambda g, x: -g),
        ({"clip_value": 0.5}, lambda g, x: np.clip(g, -0.5, 0.5)),
        ({"grad_scale": 4.0}, lambda g, x: g * F4(0.25)),
        ({"l2": 0.5}, lambda g, x: g + F4(0.5) * x),
        ({"l1": 0.5}, lambda g, x: g + F4(0.5) * np.sign(x)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_gradient_stages(
    rule: type[MatrixRule], backend: str, options: Any, change: Callable[..., Any]
) -> None:
    rng = np.random.default_rng(14)
    w = rng.standard_normal((5, 8)).astype(F4)
    x = w.copy()
    opt, plain = rule(w, backend=backend, **options), rule(x)
    for _ in range(4):
        g = rng.standard_normal(w.shape).astype(F4)
        opt.step(g)
        plain.step(change(g, x))
    assert np.array_equal(w, x)


def test_parameter_stages(rule: type[MatrixRule]) -> None:
    w = np.zeros((5, 8), F4)
    opt = rule(w, lr=0.5, bounds=(-0.125, 0.25), ema=0.9)
    for _ in range(3):
        opt.step(np.random.default_rng(1).standard_normal((5, 8)).astype(F4))
    assert (w.min(), w.max()) == (-0.125, 0.25)
    assert np.abs(opt.ema["0"]).max() < 0.2
    assert opt.ema["0"].any()


def test_zero_grad_and_bound_gradients(rule: type[MatrixRule]) -> None:
    w, b = np.zeros((3, 4), F4), np.zeros(4, F4)
    grads = np.ones((3, 4), F4), np.ones(4, F4)
    opt = rule([w, b], grads=grads, zero_grad=True)
    for _ in range(2):
        for g in grads:
            g.fill(1)
        opt.step()
        assert not any(g.any() for g in grads)
    assert w.any()
    assert b.any()


def test_norm_and_nonfinite(rule: type[MatrixRule]) -> None:
    params, opt = steps(rule, nonfinite="skip", clip_norm=1.0)
    before = {k: x.copy() for k, x in params.items()}
    g = gradients(params, np.random.default_rng(1))
    g["w"][0, 0] = np.nan
    assert not opt.step(g)
    assert same(before, params)
    assert opt.skipped_steps == 1
    g["w"][0, 0] = 0
    assert opt.step(g)
    assert opt.grad_norm == pytest.approx(math.sqrt(sum(float((a**2).sum()) for a in g.values())))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_comes_through(rule: type[MatrixRule], bad: float) -> None:
    w, g = np.ones((3, 4), F4), np.ones((3, 4), F4)
    g[1, 1] = bad
    opt = rule(w)
    for _ in range(11):
        opt.step(g)
    assert np.isnan(w).any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits(rule: type[MatrixRule], dtype: str) -> None:
    """A master makes the steps that float32 makes."""
    narrow = np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype)
    rng = np.random.default_rng(15)
    w = rng.standard_normal((5, 8)).astype(narrow)
    x, alone = w.astype(F4), w.copy()
    opt, wide, bare = rule(w, master=True), rule(x), rule(alone)
    for _ in range(5):
        g = rng.standard_normal(w.shape).astype(narrow)
        opt.step(g)
        bare.step(g)
        wide.step(g.astype(F4))
    assert np.array_equal(opt.state[0]["master"], x)
    assert np.array_equal(w, x.astype(narrow))
    assert all(opt.state[0][name].dtype == F4 for name in rule.kept)
    assert np.abs(alone.astype(F4) - x).max() < 0.05


def test_orders_and_types_agree(rule: type[MatrixRule]) -> None:
    ends = []
    kinds: list[tuple[Any, Any]] = [("f8", "C"), ("f8", "F"), ("f4", "C"), ("f4", "F")]
    for dtype, order in kinds:
        rng = np.random.default_rng(16)
        w = np.asarray(rng.standard_normal((6, 6)), dtype, order=order)
        opt = rule(w)
        for _ in range(6):
            opt.step(np.asarray(rng.standard_normal((6, 6)), dtype, order=order))
        assert opt.state[0]["step"] == 6
        ends.append(w)
    assert np.allclose(ends[0], ends[1], rtol=0, atol=1e-10)
    assert np.allclose(ends[0], ends[2], rtol=0, atol=1e-3)
    assert np.allclose(ends[0], ends[3], rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (1, 1)])
def test_small_and_empty_matrices(rule: type[MatrixRule], shape: tuple[int, int]) -> None:
    w = np.ones(shape, F4)
    opt = rule(w)
    for _ in range(12):
        assert opt.step(np.ones(shape, F4))
    assert np.isfinite(w).all()


# ---- State


def test_resumes(rule: type[MatrixRule]) -> None:
    params, opt = steps(rule)
    copies = {k: x.copy() for k, x in params.items()}
    resumed = rule(copies)
    resumed.load_state_dict(opt.state_dict())
    twin = pickle.loads(pickle.dumps(opt))
    clone = copy.deepcopy(opt)
    rng = np.random.default_rng(1)
    for _ in range(11):
        g = gradients(params, rng)
        for each in (opt, resumed, twin, clone):
            each.step(g)
    assert same(copies, params)
    for other in (twin, clone):
        assert all(np.array_equal(x, params[name]) for name, x in arrays(other).items())
    assert opt.iterations == resumed.iterations == 23


def arrays(opt: schuss.Optimizer) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for group in opt.param_groups:
        found.update(zip(group["param_names"], group["params"], strict=True))
    return found


def test_a_callable_stays_where_state_is_loaded(rule: type[MatrixRule]) -> None:
    def lr(n: int) -> float:
        return 0.1 / (n + 1)

    _, opt = steps(rule, other={"lr": 0.5})
    saved = opt.state_dict()
    fresh = rule(params_of(np.random.default_rng(0)), lr=lr)
    fresh.load_state_dict(saved)
    assert fresh.param_groups[0]["lr"] is lr
    assert fresh.param_groups[1]["lr"] == 0.5
    assert fresh.current_learning_rate == 0.1 / 13


def test_none_is_no_gradient(rule: type[MatrixRule]) -> None:
    params, opt = steps(rule)
    before = {k: x.copy() for k, x in params.items()}
    state = copy.deepcopy(dict(opt.state["w"]))
    opt.step({**gradients(params, np.random.default_rng(1)), "w": None, "b": None})
    assert [k for k in params if np.array_equal(before[k], params[k])] == ["w", "b"]
    assert all(np.array_equal(state[k], v) for k, v in opt.state["w"].items())
    assert (opt.state["w"]["step"], opt.state["head"]["step"]) == (12, 13)


def test_a_step_allocates_once(rule: type[MatrixRule]) -> None:
    params, opt = steps(rule, n=0)
    sizes, rng = [], np.random.default_rng(0)
    for _ in range(25):  # SOAP's second bases are those of step 21
        opt.step(gradients(params, rng))
        sizes.append(opt.nbytes)
    assert sizes[11] == sizes[-1]
    assert repr(opt).startswith(f"{rule.__name__}(\n  Group(2 arrays, 67 param")
    assert "\n  AdamW: Group(3 arrays, 33 parameters, " in repr(opt)


# ---- Errors


def everything(opt: schuss.Optimizer) -> Any:
    state = {
        name: {k: v.tobytes() if isinstance(v, np.ndarray) else v for k, v in own.items()}
        for name, own in opt.state.items()
    }
    return [x.tobytes() for x in arrays(opt).values()], state, repr(opt), opt.iterations


class InterruptAt:
    """Raises in the thread's Python code at event k, counted over lines, or over bytecodes."""

    def __init__(self, k: int, error: type[BaseException], opcodes: bool) -> None:
        self.left, self.error, self.opcodes = k, error, opcodes

    def __call__(self, frame: Any, event: str, _: Any) -> Any:
        if not frame.f_globals["__name__"].startswith(("schuss", "numpy")):
            return None  # such as what the collector calls
        frame.f_trace_opcodes = self.opcodes
        if event == ("opcode" if self.opcodes else "line"):
            self.left -= 1
            if self.left < 0:
                raise self.error
        return self

    def step(self, opt: Any, g: Any) -> bool:
        """Whether the step came to its end."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            opt.step(g)
        except self.error:
            return False
        finally:
            sys.settrace(before)
        return True


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
@pytest.mark.parametrize("opcodes", [False, True], ids=["lines", "bytecodes"])
@pytest.mark.parametrize("done", [0, 10], ids=["first", "later"])  # SOAP's bases turn in step 11
def test_an_interrupt_leaves_a_whole_step_or_none(
    rule: type[MatrixRule], done: int, opcodes: bool, backend: str
) -> None:
    """Before each line in turn, and in NumPy's backend before each third; before some bytecodes."""
    params, opt = steps(rule, done, backend=backend, ema=0.9, zero_grad=True)
    twin = copy.deepcopy(opt)
    live = {name: dict(own) for name, own in opt.state.items()}
    g = gradients(params, np.random.default_rng(1))
    kept, before = {name: a.copy() for name, a in g.items()}, everything(opt)
    k, stride, whole = 0, 89 if opcodes else 3 if backend == "numpy" else 1, False
    while not whole and everything(opt) == before:
        error = KeyboardInterrupt if k % 2 else MemoryError
        whole = InterruptAt(k, error, opcodes).step(opt, g)
        assert same(kept, g) or opt.iterations == done + 1
        k += stride
    assert k > 50
    assert twin.step(kept)
    assert everything(opt) == everything(twin)
    for name, own in opt.state.items():
        assert all(a is live[name][key] for key, a in own.items() if isinstance(a, np.ndarray))
    g = gradients(params, np.random.default_rng(2))
    assert opt.step({name: a.copy() for name, a in g.items()})
    assert twin.step(g)
    assert everything(opt) == everything(twin)


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
@pytest.mark.parametrize("done", [0, 10])
def test_a_failing_product_leaves_no_step(
    rule: type[MatrixRule], done: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPy's and LAPACK's functions fail in turn, each after it has written where it writes."""
    params, opt = steps(rule, done, backend=backend)
    twin, before = copy.deepcopy(opt), everything(opt)
    g = gradients(params, np.random.default_rng(1))
    left = 0

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal left
            found = function(*arguments, **keywords)
            left -= 1
            if left < 0:
                raise np.linalg.LinAlgError("no convergence")
            return found

        return call

    for module, names in (
        (np, ("add", "subtract", "multiply", "divide", "matmul", "sqrt", "maximum", "einsum")),
        (np.linalg, ("norm", "eigh", "qr")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, failing(getattr(module, name)))
    k, whole = 0, False
    while not whole:
        left = k
        try:
            whole = opt.step(g)
        except np.linalg.LinAlgError:
            assert everything(opt) == before
            k += 1
    monkeypatch.undo()
    assert k > 5
    assert twin.step(g)
    assert everything(opt) == everything(twin)


@pytest.mark.parametrize(("dtype", "size"), [(F4, 1e30), (np.float64, 1e200)])
@pytest.mark.parametrize("at", [0, 1, 10])
def test_large_gradients(rule: type[MatrixRule], at: int, dtype: Any, size: float) -> None:
    """Of which the squares are infinite: Muon steps as ever, the others as if they were zero."""
    rng = np.random.default_rng(17)
    w = rng.standard_normal((4, 6)).astype(dtype)
    x = w.copy()
    large, other = rule(w), rule(x)
    for k in range(25):
        g = rng.standard_normal((4, 6)).astype(dtype)
        before = w.copy()
        large.step(g * dtype(size) if k == at else g)
        other.step(g * dtype(0.0) if k == at else g)
        assert all(np.isfinite(a).all() for a in large.state[0].values())
        if rule is schuss.Muon or k > max(at, 1):
            assert 1e-4 < np.abs(w - before).max() < 1
    assert np.array_equal(w, x) == (rule is not schuss.Muon)


@pytest.mark.parametrize(("dtype", "size"), [(F4, 1e-30), (np.float64, 1e-200), (F4, 0.0)])
def test_tiny_gradients(rule: type[MatrixRule], dtype: Any, size: float) -> None:
    """Of which the squares are 0: eps is what counts, and later gradients aren't held up."""
    rng = np.random.default_rng(18)
    w, g = np.zeros((4, 6), dtype), rng.standard_normal((4, 6)).astype(dtype)
    opt = rule(w, weight_decay=0.0)
    for _ in range(12):
        opt.step(g * dtype(size))
    assert np.abs(w).max() < 1e-15
    for _ in range(2):
        opt.step(g)
    assert 1e-5 < np.abs(w).max() < 1
    assert all(np.isfinite(a).all() for a in opt.state[0].values())


@pytest.mark.parametrize(("dtype", "size"), [(F4, 1e30), (F4, 1e-30), (np.float64, 1e-200)])
def test_muons_norm(dtype: Any, size: float) -> None:
    """Neither overflows nor underflows: with a small eps only the direction counts."""
    g = np.random.default_rng(19).standard_normal((4, 6)).astype(dtype)
    ends = []
    for scale in (1.0, size):
        w = np.zeros((4, 6), dtype)
        opt = schuss.Muon(w, eps=1e-250)
        opt.step(g * dtype(scale))
        ends.append(w)
    assert np.allclose(ends[0], ends[1], rtol=1e-4)


@pytest.mark.parametrize("backend", ["compiled", "numpy"])
@pytest.mark.parametrize("name", ["w", "b", "head"])
@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda g: g[:-1], ValueError, "shape"),
        (lambda g: g.astype(np.float64), TypeError, "float64, but"),
        (lambda g: g.astype(int), TypeError, "not supported"),
        (lambda g: g.tolist(), TypeError, "not a numpy.ndarray"),
        (lambda g: np.repeat(g, 2, axis=-1)[..., ::2], ValueError, "not contiguous"),
    ],
)
def test_a_wrong_gradient_changes_nothing(
    rule: type[MatrixRule], backend: str, name: str, change: Any, error: Any, says: str
) -> None:
    params, opt = steps(rule, backend=backend)
    g = gradients(params, np.random.default_rng(1))
    before = everything(opt)
    with pytest.raises(error, match=says) as info:
        opt.step({**g, name: change(g[name])})
    assert f'grads["{name}"]' in str(info.value)
    assert everything(opt) == before
    with pytest.raises(ValueError, match="missing"):
        opt.step({k: a for k, a in g.items() if k != name})
    assert everything(opt) == before
    assert opt.step(g)


def test_order_overlap_and_frozen_arrays(rule: type[MatrixRule]) -> None:
    params, opt = steps(rule)
    g, before = gradients(params, np.random.default_rng(1)), everything(opt)
    with pytest.raises(ValueError, match=r'grads\["w"\]: in Fortran order'):
        opt.step({**g, "w": np.asfortranarray(g["w"])})
    with pytest.raises(ValueError, match=r'grads\["w"\]: overlaps params\["w"\]'):
        opt.step({**g, "w": params["w"]})
    kept = opt.state["head"][next(iter(rule.kept))]
    for array in (params["head"], kept):
        array.flags.writeable = False
        with pytest.raises(ValueError, match=r'\["head"\].*: read-only'):
            opt.step(g)
        array.flags.writeable = True
    assert everything(opt) == before
    saved = opt.state_dict()
    del saved["state"]["w"][next(iter(rule.kept))]
    with pytest.raises(ValueError, match=f"missing 'w' {next(iter(rule.kept))}"):
        opt.load_state_dict(saved)
    assert everything(opt) == before


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"matrix": 3}, TypeError, "matrix: 3 is no function"),
        ({"matrix": lambda name, a: True}, ValueError, r'matrix: params\["b"\] has shape \(8,\)'),
        ({"other": 3}, TypeError, "other: 3 is no mapping"),
        ({"other": {"lr": -1}}, ValueError, "other: lr: -1.0 is out of range"),
        ({"other": {"rho": 1}}, TypeError, "other: rho: unknown; AdamW has"),
        ({"lr": -1}, ValueError, "^lr: -1.0 is out of range"),
        ({"rho": 1}, TypeError, "^rho: unknown"),
        ({"preset": "other"}, ValueError, "preset: 'other' is unknown"),
        ({"state_dtype": "float16"}, ValueError, "state_dtype: not with matrices"),
    ],
)
def test_wrong_options(rule: type[MatrixRule], options: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        rule(params_of(np.random.default_rng(0)), **options)


@pytest.mark.parametrize("value", [-1, 1.5, True, "5"])
def test_wrong_whole_numbers(value: Any) -> None:
    for make in (
        lambda: schuss.Muon(np.zeros((2, 2)), ns_steps=value),
        lambda: schuss.SOAP(np.zeros((2, 2)), precondition_frequency=value),
    ):
        with pytest.raises((TypeError, ValueError), match="whole number"):
            make()
    with pytest.raises(ValueError, match="precondition_frequency: 0 is out of range"):
        schuss.Shampoo(np.zeros((2, 2)), precondition_frequency=0)


def test_pytorchs_state_is_refused(rule: type[MatrixRule]) -> None:
    _, opt = steps(rule)
    theirs = {"state": {}, "param_groups": [{"params": [0, 1]}]}
    for translate in (lambda: opt.load_state_dict(theirs), lambda: schuss.torch_state_dict(opt)):
        with pytest.raises(ValueError, match="are one optimizer here, not in PyTorch"):
            translate()


def test_the_base_is_no_rule() -> None:
    with pytest.raises((NotImplementedError, AttributeError, TypeError)):
        MatrixRule(np.zeros((2, 2)))


# ---- On the way down

RATES = {"Muon": 0.02, "Shampoo": 0.5, "SOAP": 0.01}


def test_digits(rule: type[MatrixRule]) -> None:
    """A network of three layers knows 19 of 20 digits that were held out, after six epochs."""
    data, held_out = digits(0, F4)
    rng = np.random.default_rng(0)
    params = network([64, 32, 32, 10], rng, F4)
    *_, last = train(
        params,
        data,
        held_out,
        rule=rule,
        lr=RATES[rule.__name__],
        epochs=6,
        batch_size=32,
        gradient_dtype=F4,
        rng=rng,
        other={"lr": 0.01},
    )
    assert last.test_accuracy > 0.95
    assert evaluate(params, held_out)[1] == last.test_accuracy


def test_documented(rule: type[MatrixRule]) -> None:
    text = rule.__doc__ or ""
    assert all(name in text for name in (*rule.kept, *rule.presets.keys() - {"torch"}))
    assert "zero gradient" in " ".join(text.lower().split())
    assert "Outside the bit promise" in (MatrixRule.__doc__ or "")
    assert f"| {' | '.join(catalogue.matrix_row(rule))} |" in LIST.replace("`", "")
    assert "\n".join(catalogue.described(rule)).count("schuss.MatrixRule") == 1
