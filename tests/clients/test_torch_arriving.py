"""Tensors that step in the backward pass: each is looked at once, wherever its memory is now."""

from __future__ import annotations

from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed: its tests did not run")


def deep(layers: int) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(layers)])


@pytest.mark.parametrize("layers", [2, 20])
def test_looks_grow_with_the_number_of_tensors(
    layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from schuss.torch import Offload, optimizers  # noqa: PLC0415  needs torch

    net = deep(layers)
    opt = Offload(net, lr=0.1, arriving=True)
    net(torch.ones(1, 4)).sum().backward()
    opt.step()
    looks = []
    member = optimizers.Member

    def counted(*args: Any) -> Any:
        looks.append(args)
        return member(*args)

    monkeypatch.setattr(optimizers, "Member", counted)
    net(torch.ones(1, 4)).sum().backward()
    opt.step()
    assert len(looks) <= 2 * layers  # a weight and a bias each


def test_memory_that_was_replaced_is_followed() -> None:
    from schuss.torch import Offload  # noqa: PLC0415  needs torch

    nets = deep(2), deep(2)
    opts = [Offload(net, lr=0.1, arriving=True) for net in nets]
    for _ in range(3):
        for p in nets[0].parameters():
            p.data = p.data.clone()
        for net, opt in zip(nets, opts, strict=True):
            net(torch.ones(1, 4)).square().sum().backward()
            opt.step()
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)
