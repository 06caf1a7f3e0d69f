"""Weights that live elsewhere: tensors on the CPU in both roles, or those of a device."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from functools import partial
from typing import Any

import pytest

import schuss

torch = pytest.importorskip("torch", reason="PyTorch is not installed: its tests did not run")

import schuss.torch  # noqa: E402
from clients import tensors as t  # noqa: E402
from schuss.torch.tensors import tensor_of  # noqa: E402

HALF = torch.bfloat16
OPTIONS: list[dict[str, Any]] = [
    {},
    {"master": "remainder"},
    {"master": "remainder", "state_dtype": "blockfloat8"},
    {"master": False, "stochastic_rounding": True},
    {"ema": 0.9},
]
options = pytest.mark.parametrize("options", OPTIONS, ids=str)
arriving = pytest.mark.parametrize("arriving", [False, True], ids=["at the end", "arriving"])


class Away(schuss.torch.Offload):
    """Weights on the CPU as if they were on another device."""

    def _is_elsewhere(self, x: Any) -> bool:
        return True


class Half(schuss.torch.Offload):
    """Some here, some there."""

    def _is_elsewhere(self, x: Any) -> bool:
        return x.ndim == 2


roles = pytest.mark.parametrize("role", [schuss.torch.Offload, Away, Half])


def small(dtype: Any = HALF, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    layers = torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    return torch.nn.Sequential(*layers).to(dtype)


def backward(model: Any, seed: int) -> Any:
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 6, generator=source).to(next(model.parameters()).dtype)
    loss = model(x).float().square().mean()
    loss.backward()
    return loss


def train(model: Any, opt: Any, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        opt.zero_grad()
        backward(model, step)
        opt.step()


def weights(model: Any) -> list[bytes]:
    return [t.bits(x) for x in model.parameters()]


# ---- The same bits in each role


@roles
@arriving
@options
@pytest.mark.parametrize("dtype", [HALF, torch.float16, torch.float32], ids=str)
def test_bits_are_those_of_arrays(role: Any, arriving: bool, options: Any, dtype: Any) -> None:
    if dtype is torch.float16 and options.get("master") == "remainder":
        pytest.skip("no remainder makes a float32 of float16")
    model, twin = small(dtype), small(dtype)
    opt = role(model, schuss.AdamW, lr=0.01, arriving=arriving, **options)
    a = t.copies(list(twin.parameters()))
    own = schuss.AdamW(a, lr=0.01, **{"master": True, **options})
    for step in range(5):
        twin.zero_grad()
        backward(twin, step)
        own.step(t.gradients(list(twin.parameters())))
        for x, array in zip(twin.parameters(), a, strict=True):
            x.data.copy_(tensor_of(array))
    train(model, opt, 5)
    assert weights(model) == weights(twin)
    if arriving:
        assert all(x.grad is None for x in model.parameters())


@pytest.mark.parametrize("name", list(t.CLASSES))
def test_every_rule_offloads(name: str) -> None:
    found = []
    for role in (schuss.torch.Offload, Away):
        model = small()
        opt = role(model, t.CLASSES[name], lr=0.01)
        assert opt.rule is t.CLASSES[name].rule
        for step in range(3):
            opt.zero_grad()
            loss = backward(model, step)
            opt.step(partial(float, loss.detach()))
        found.append(weights(model))
    assert found[0] == found[1]


def test_what_is_no_rule_is_refused() -> None:
    for rule in (torch.optim.AdamW, 3, schuss.AdamW([torch.ones(3).numpy()])):
        with pytest.raises(TypeError, match="rule: "):
            schuss.torch.Offload(small(), rule)  # type: ignore[arg-type]


def test_weights_of_any_order_go_and_come() -> None:
    found = []
    for role in (schuss.torch.Offload, Away):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
        opt = role(model, lr=0.1)
        for _ in range(3):
            opt.zero_grad()
            model(torch.ones(2, 3, 5, 5)).square().sum().backward()
            opt.step()
        found.append(weights(model))
    assert found[0] == found[1]


def test_sparse_gradients_are_fetched_as_rows() -> None:
    found = []
    for role in (schuss.torch.Offload, Away):
        for early in (False, True):
            torch.manual_seed(0)
            table = torch.nn.Embedding(10, 4, sparse=True)
            opt = role(table, schuss.Adam, lr=0.1, arriving=early)
            for step in range(4):
                opt.zero_grad()
                table(torch.tensor([step, 3, 3])).square().sum().backward()
                opt.step()
            found.append(weights(table))
    assert all(other == found[0] for other in found)


@roles
def test_some_have_no_gradient(role: Any) -> None:
    found = []
    for early in (False, True):
        model = small()
        opt = role(model, lr=0.01, arriving=early)
        for step in range(4):
            model[0].weight.requires_grad_(step % 2 == 0)
            opt.zero_grad()
            backward(model, step)
            opt.step()
        found.append(weights(model))
        assert opt.state[model[0].weight]["step"] == 2
        assert opt.state[model[2].weight]["step"] == 4
    assert found[0] == found[1]


@arriving
def test_what_is_thawed_or_added_later_steps(arriving: bool) -> None:
    model = small()
    model[0].requires_grad_(False)
    opt = Away(model[0], lr=0.01, arriving=arriving)
    opt.add_param_group({"params": list(model[2].parameters())})
    train(model, opt, 1)
    model[0].requires_grad_(True)
    train(model, opt, 2, first=1)
    assert [opt.state[x]["step"] for x in model.parameters()] == [2, 2, 3, 3]


# ---- Arriving


def test_gradients_of_several_passes_add_up_at_the_end_only() -> None:
    model, twin = small(torch.float32), small(torch.float32)
    opt, other = Away(model, lr=0.01), torch.optim.AdamW(twin.parameters(), lr=0.01)
    for step in range(3):
        for own, its in ((opt, model), (other, twin)):
            own.zero_grad()
            for part in range(3):
                backward(its, 10 * step + part)
            own.step()
    start = list(small(torch.float32).parameters())
    t.assert_near(list(model.parameters()), list(twin.parameters()), start)

    opt = Away(model, lr=0.01, arriving=True)
    backward(model, 0)
    with pytest.raises(ValueError, match=r"grads\[3\]: came already"):
        backward(model, 1)
    for x in model.parameters():
        x.grad = None
    backward(model, 2)
    opt.step()
    train(model, opt, 2)


@roles
def test_a_backward_pass_that_fails_leaves_a_usable_optimizer(role: Any) -> None:
    for clear in (True, False):
        model = small()
        opt = role(model, lr=0.01, arriving=True)
        train(model, opt, 2)

        def fail(_: Any) -> None:
            raise RuntimeError("no more")

        handle = model[0].bias.register_hook(fail)
        with pytest.raises(RuntimeError, match="no more"):
            backward(model, 2)
        handle.remove()
        if clear:
            opt.zero_grad()
        else:
            opt.step()
        stepped = [opt.state[x]["step"].item() for x in model.parameters()]
        assert stepped in ([2, 2, 3, 3], [3, 2, 3, 3])
        train(model, opt, 1, first=3)
        assert opt.state[model[2].weight]["step"] == 4


def test_a_gradient_that_is_refused_ends_the_step() -> None:
    model = small()
    opt = Away(model, lr=0.01, arriving=True)
    train(model, opt, 1)
    opt.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr: "):
        backward(model, 1)
    opt.param_groups[0]["lr"] = 0.01
    for x in model.parameters():
        x.grad = None
    backward(model, 1)
    opt.step()
    assert opt.state[model[0].weight]["step"] == 2


def test_options_that_want_all_gradients_first_are_refused_at_once() -> None:
    model = small()
    for rule, given, says in (
        (schuss.AdamW, {"clip_norm": 1.0}, 'clip_norm: .*clip_norm_per="array"'),
        (schuss.AdamW, {"nonfinite": "skip"}, "nonfinite: "),
        (schuss.Prodigy, {}, "Prodigy"),
        (schuss.Eve, {}, "loss"),
    ):
        with pytest.raises(ValueError, match=says):
            schuss.torch.Offload(model, rule, arriving=True, **given)
        Away(model, rule, **given)
    opt = Away(model, lr=0.01, clip_norm=1.0, clip_norm_per="array", arriving=True)
    train(model, opt, 2)


def test_a_pass_on_another_thread_steps_as_well() -> None:
    """As autograd does for each device."""
    found = []
    for apart in (False, True):
        model = small()
        opt = Away(model, lr=0.01, arriving=True)
        for step in range(3):
            opt.zero_grad()
            if apart:
                thread = threading.Thread(target=backward, args=(model, step))
                thread.start()
                thread.join()
            else:
                backward(model, step)
            opt.step()
        found.append(weights(model))
    assert found[0] == found[1]


def test_closures_may_have_the_backward_pass() -> None:
    found = []
    for early in (False, True):
        model = small()
        opt = Away(model, lr=0.01, arriving=early)
        for step in range(3):

            def closure(opt: Any = opt, model: Any = model, step: int = step) -> Any:
                opt.zero_grad()
                return backward(model, step)

            assert opt.step(closure).item() > 0
        found.append(weights(model))
    assert found[0] == found[1]


def test_autograd_hears_of_weights_that_stepped() -> None:
    for early in (False, True):
        for role in (schuss.torch.Offload, Away):
            model = small(torch.float32)
            opt = role(model, lr=0.01, arriving=early)
            before = [x._version for x in model.parameters()]
            train(model, opt, 1)
            assert all(x._version > v for x, v in zip(model.parameters(), before, strict=True))


# ---- State


@options
def test_states_go_from_role_to_role(options: Any) -> None:
    kinds = [(schuss.torch.Offload, False), (Away, True), (Half, False), (Away, False)]
    found = []
    for kind, early in kinds:
        for other, its in kinds:
            model = small()
            opt = kind(model, lr=0.01, arriving=early, **options)
            train(model, opt, 3)
            saved, twin = copy.deepcopy(opt.state_dict()), copy.deepcopy(model)
            del opt
            opt = other(twin, lr=0.5, arriving=its, **options)
            opt.load_state_dict(saved)
            train(twin, opt, 3, first=3)
            found.append(weights(twin))
    assert all(one == found[0] for one in found)


@roles
@arriving
def test_copies_and_pickles_go_on_by_themselves(role: Any, arriving: bool) -> None:
    model = small()
    opt = role(model, schuss.Lion, lr=0.01, arriving=arriving, master="remainder")
    train(model, opt, 2)
    found = [(model, opt), copy.deepcopy((model, opt)), pickle.loads(pickle.dumps((model, opt)))]
    for its, own in found:
        own.zero_grad()
        backward(its, 2)
        assert all((x.grad is None) == arriving for x in its.parameters())
        own.step()
        train(its, own, 2, first=3)
        assert own.state[its[0].weight]["step"] == 5
    assert weights(found[1][0]) == weights(model) == weights(found[2][0])


@roles
def test_written_weights_are_read_by_refresh(role: Any) -> None:
    model, other = small(), small(seed=1)
    opt = role(model, lr=0.01)
    train(model, opt, 2)
    model.load_state_dict(other.state_dict())
    opt.refresh()
    before = weights(model)
    opt.param_groups[0]["lr"] = 0.0
    train(model, opt, 1, first=2)
    assert weights(model) == before == weights(other)


@roles
def test_schedulers_and_scalers_serve(role: Any) -> None:
    found = []
    for own in (role, None):
        model = small(torch.float32)
        opt = own(model, lr=0.01) if own else torch.optim.AdamW(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 0.05, 10)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for step in range(8):
            opt.zero_grad()
            x = torch.ones(2, 6) * step
            scaler.scale(model(x).square().mean()).backward()
            scaler.step(opt)
            scaler.update()
            schedule.step()
        found.append(list(model.parameters()))
    t.assert_near(found[0], found[1], list(small(torch.float32).parameters()))


def test_weights_may_be_replaced() -> None:
    x = torch.nn.Parameter(torch.ones(4, 3))
    opt = Away([x], lr=0.1)
    x.grad = torch.ones(4, 3)
    opt.step()
    new = torch.nn.Parameter(torch.ones(6, 3))
    del opt.state[x]
    opt.param_groups[0]["params"][0] = new
    new.grad = torch.ones(6, 3)
    seen = weakref.ref(x)
    del x
    opt.step()
    gc.collect()
    assert seen() is None
    assert opt.state[new]["step"] == 1
    assert (new < 1).all()


def test_nothing_outlives_an_offload() -> None:
    for early in (False, True):
        model = small()
        opt = Away(model, lr=0.01, arriving=early)
        train(model, opt, 2)
        seen = weakref.ref(opt), weakref.ref(model[0].weight), weakref.ref(opt.arrays)
        del model, opt
        gc.collect()
        assert [ref() for ref in seen] == [None] * 3


def test_weights_without_memory_are_refused() -> None:
    with pytest.raises(ValueError, match=r"params\[0\]: on meta"):
        schuss.torch.Offload(small().to("meta"))


# ---- In the place of others' optimizers


def test_a_class_serves_where_one_of_pytorchs_is_asked_for() -> None:
    """Megatron's cpu_optimizer_cls(groups, **options), and torchao's optimizer_class([group])."""
    x = t.parameters(torch.float32)
    groups = [
        {"params": x[:2], "lr": 0.1, "wd_mult": 1.0, "is_expert_parallel": False},
        {"params": x[2:], "lr": 0.2, "wd_mult": 0.0, "is_expert_parallel": False},
    ]
    opt: Any = t.CLASSES["AdamW"](groups, lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    t.train(opt, x, 2)
    assert opt.param_groups[1]["wd_mult"] == 0.0
    assert opt.state[x[0]]["exp_avg"].shape == x[0].shape
    assert {"exp_avg", "exp_avg_sq", "step"} <= opt.state[x[3]].keys()
    opt.param_groups[0]["lr"] = 0.05
    t.train(opt, x, 1, first=2)

    several = []
    for p in x:  # one optimizer for each, on the CPU
        host = torch.empty_like(p, requires_grad=True)
        host.detach().copy_(p.detach())
        host.grad = torch.ones_like(host)
        one: Any = t.CLASSES["AdamW"]([{"params": host, "lr": 0.1}], lr=0.1, fused=True)
        one.step()
        several.append(one.state_dict())
    assert all(saved["state"][0]["step"] == 1 for saved in several)


def on_a_device() -> Any:
    if not torch.cuda.is_available():
        pytest.skip("no accelerator: weights of a device were not offloaded")
    return torch.device("cuda")


@arriving
@options
def test_weights_of_a_device(arriving: bool, options: Any) -> None:
    device = on_a_device()
    found = []
    for home in ("cpu", device):
        model = small().to(home)
        opt = schuss.torch.Offload(model, lr=0.01, arriving=arriving, **options)
        for step in range(5):
            opt.zero_grad()
            source = torch.Generator().manual_seed(step)
            for x in model.parameters():
                g = torch.randn(x.shape, generator=source).to(HALF).to(home)
                (x * g).float().sum().backward()
            opt.step()
        found.append(weights(model.cpu()))
    assert found[0] == found[1]


def test_torchaos_offload_takes_a_class_of_ours() -> None:
    torchao = pytest.importorskip("torchao.optim", reason="torchao is not installed: not tried")
    device = on_a_device()
    model, twin = small(torch.float32).to(device), small(torch.float32).to(device)
    opt = torchao.CPUOffloadOptimizer(model.parameters(), t.CLASSES["AdamW"], lr=0.01)
    other = torch.optim.AdamW(twin.parameters(), lr=0.01)
    for own, its in ((opt, model), (other, twin)):
        for _ in range(4):
            own.zero_grad()
            its(torch.ones(4, 6, device=device)).square().mean().backward()
            own.step()
    torch.cuda.synchronize()
    start = list(small(torch.float32).parameters())
    t.assert_near(
        [x.cpu() for x in model.parameters()], [x.cpu() for x in twin.parameters()], start
    )
