"""Weights that live elsewhere, whose master copy and state are stepped on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any
from weakref import WeakMethod

import torch
from torch.autograd.graph import increment_version

from schuss.engine.optimizer import Optimizer as OfArrays
from schuss.rules import AdamW
from schuss.torch.optimizers import Optimizer


class Offload(Optimizer):
    """Steps weights of another device on the CPU, where their masters and their state are.

        opt = schuss.torch.Offload(model, schuss.AdamW, lr=3e-4, state_dtype="blockfloat8")
        loss.backward()
        opt.step()

    params     a model, or tensors or groups as for PyTorch's optimizers
    rule       the class of a rule, of schuss or of schuss.torch. Default AdamW
    lr         learning rate of the groups that have none of their own
    arriving   True: each tensor steps within the backward pass, when its gradient is there, and
               lets go of the gradient; `step` then steps what has one still, and ends the step. Not
               where gradients of several backward passes are added up, nor with a GradScaler.
               Options that look at all gradients first are refused, such as clip_norm, but not
               clip_norm_per="array". Default False: all step in `step`

    Hyperparameters and options as in the rule's class, and master=True by default: the masters of
    16-bit weights are in float32; "remainder" takes half of that beside weights of bfloat16.
    Gradients come as they are, in 16 bits, and so do weights go back, through memory that is pinned
    where the device can read it. Tensors that are on the CPU are stepped where they lie.

    Whoever writes to the weights, by load_state_dict for example, calls `refresh` afterwards. A
    backward pass that fails leaves stepped what has arrived; `zero_grad` or `step` ends that step.
    Raises as schuss.torch.Optimizer does.
    """

    _open: Any = None  # the step whose gradients arrive

    def __init__(
        self,
        params: Any,
        rule: type[Any] = AdamW,
        lr: Any = None,
        *,
        arriving: bool = False,
        **options: Any,
    ) -> None:
        self.rule = getattr(rule, "rule", rule)  # type: ignore[misc]
        if not (isinstance(self.rule, type) and issubclass(self.rule, OfArrays)):
            raise TypeError(f"rule: {rule!r}, wanted the class of a rule, such as schuss.AdamW")
        if isinstance(params, torch.nn.Module):
            params = params.parameters()
        self._arriving = arriving
        self._here: dict[torch.Tensor, torch.Tensor] = {}  # what is stepped for each
        super().__init__(params, lr, **{"master": True, **options})

    def _try(self, values: dict[str, Any]) -> OfArrays:
        trial = super()._try(values)
        if self._arriving:
            if trial.clip_norm < math.inf and trial.clip_norm_per == "all":
                raise ValueError(
                    "clip_norm: the norm of all gradients is known when all are there, so not with "
                    'arriving=True; clip_norm_per="array" limits each'
                )
            with trial.arriving():
                pass
        return trial

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Takes in more tensors: {"params": tensors, **what differs from the constructor's}."""
        super().add_param_group(param_group)
        self._listen(self.param_groups[-1]["params"])

    def _listen(self, tensors: Iterable[torch.Tensor]) -> None:
        """Lets tensors step when their gradients are there, where that is asked for."""
        own = WeakMethod(self._arrive)  # or tensors would keep it alive, and be stepped for ever

        def arrive(x: torch.Tensor) -> None:
            if (found := own()) is not None:
                found(x)

        for x in tensors:
            if self._arriving and x.requires_grad:
                x.register_post_accumulate_grad_hook(arrive)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"rule": self.rule, "_arriving": self._arriving}

    def __setstate__(self, given: dict[str, Any]) -> None:
        self._here = {}
        super().__setstate__(given)
        self._listen(self._tensors_of_groups())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients; a step that a failed backward pass has left open is over."""
        self._end(None)
        super().zero_grad(set_to_none)

    # ---- What is stepped

    def _is_elsewhere(self, x: torch.Tensor) -> bool:
        return x.device.type != "cpu"

    def _stepped(self, x: torch.Tensor) -> torch.Tensor:
        if not self._is_elsewhere(x):
            return x
        if x not in self._here:
            mine = torch.empty_like(x, device="cpu", requires_grad=False, pin_memory=is_pinned(x))
            self._here[x] = mine.copy_(x.detach())
        return self._here[x]

    def _make(self) -> OfArrays:
        own = set(self._tensors_of_groups())
        self._here = {x: mine for x, mine in self._here.items() if x in own}
        return super()._make()

    def refresh(self) -> None:
        for x, mine in self._here.items():
            mine.copy_(x.detach())
        super().refresh()

    def _fetch(self, x: torch.Tensor) -> None:
        """Brings a gradient here; `wait` says when it is."""
        mine, gradient = self._here[x], x.grad
        if gradient is None or gradient.layout is not torch.strided:
            mine.grad = None if gradient is None else gradient.cpu()
            return
        if mine.grad is None or mine.grad.layout is not torch.strided:
            mine.grad = torch.empty_like(mine, pin_memory=is_pinned(x))
        mine.grad.copy_(gradient, non_blocking=is_pinned(x))

    def _give_back(self, x: torch.Tensor) -> None:
        """Brings a weight to where it lives."""
        x.detach().copy_(self._here[x], non_blocking=is_pinned(x))

    # ---- The step

    def _carry_out(self, loss: Any) -> None:
        if self._arriving:
            for x in self._tensors_of_groups():
                if x.grad is not None:  # that didn't come by a backward pass, or require one
                    self._arrive(x)
            self._end(None)
            return
        _ = self.arrays  # what is stepped is there
        for x in self._here:
            self._fetch(x)
        wait(self._here)
        super()._carry_out(loss)
        for x, mine in self._here.items():
            if mine.grad is not None:
                self._give_back(x)

    def _arrive(self, x: torch.Tensor) -> None:
        """Steps a tensor whose gradient is there, in the backward pass."""
        try:
            if self._open is None:
                arrays = self.arrays
                self._follow_memory()
                self._numbers = {m.tensor: i for i, m in enumerate(self._members)}
                self._open = arrays.arriving()
                self._arrival = self._open.__enter__()
            if x in self._here:
                self._fetch(x)
                wait([x])
            number, gradient = self._numbers[x], self._stepped(x).grad
            if gradient is not None:
                self._arrival(number, self._as_array(number, gradient))
                if x in self._here:
                    self._give_back(x)
                else:
                    increment_version(x)
            x.grad = None
        except BaseException as error:
            self._end(error)
            raise

    def _end(self, error: BaseException | None) -> None:
        """The end of a step whose gradients arrived; of none, where none did."""
        opened, self._open = self._open, None
        if opened is not None:
            opened.__exit__(None if error is None else type(error), error, None)


def is_pinned(x: torch.Tensor) -> bool:
    """Whether copies to and from the tensor's device go through pinned memory, and need no wait."""
    return x.device.type == "cuda"


def wait(tensors: Iterable[torch.Tensor]) -> None:
    """Until what was asked of the tensors' devices is done."""
    for device in {x.device for x in tensors if is_pinned(x)}:
        torch.cuda.current_stream(device).synchronize()
