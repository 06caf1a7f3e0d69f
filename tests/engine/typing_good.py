"""What a type checker has nothing to say about. It is read, and run."""

from collections import OrderedDict
from typing import TypedDict

import numpy as np

import schuss


class Layer(TypedDict):
    """Parameters or gradients of a layer."""

    w: np.ndarray
    b: np.ndarray


def array() -> np.ndarray:
    return np.zeros(3, np.float32)


def layer() -> Layer:
    return {"w": array(), "b": array()}


# Structures of parameters and gradients.
schuss.SGD(array()).step(array())
schuss.SGD([array(), array()]).step([array(), None])
schuss.SGD((array(), array())).step((array(), array()))
schuss.SGD({"w": array()}).step({"w": array()})
schuss.SGD({0: array()}).step({0: None})
schuss.SGD({"body": [layer(), layer()], "head": {"w": array()}})
schuss.SGD(layer()).step(layer())
schuss.SGD(OrderedDict(w=array())).step(OrderedDict(w=array()))
schuss.SGD({"w": array()}.values()).step(iter([array()]))
groups = [{"params": {"w": array()}}, {"params": [array()], "lr": 0.5}]
schuss.SGD(groups)
schuss.SGD([{"params": {"w": array()}}, {"params": [array()], "lr": 0.5, "preset": "keras"}])

# Options, live.
opt = schuss.AdamW({"w": array()}, preset="keras", amsgrad="corrected", betas=(0.8, lambda n: 0.9))
opt.lr = schuss.schedules.cosine(0.1, steps=10)
opt.lr = 1
opt.eps_mode = "clamp"
opt.decay_mode = "decoupled_unscaled"
opt.nonfinite = "skip"
opt.cautious = False
opt.bounds = (-1.0, 1.0)
opt.param_groups[0]["lr"] = 0.1
opt.add_param_group({"params": {"b": array()}, "lr": 0.5})
took_place: bool = opt.step({"w": array(), "b": None}, loss=np.float64(1.0))
norm: float | None = opt.grad_norm
schuss.LARS(array(), decay_mode="inside")
schuss.Muon({"w": np.zeros((2, 2))}, preset="jordan", other={"lr": 1e-3})
rules: list[type[schuss.Optimizer]] = [schuss.Adam, schuss.SGD]

# Stateless calls.
state = array(), array()
schuss.functional.adam(array(), array(), *state, step=1, eps_mode="hat", preset="torch", lr=0.1)
schuss.functional.nadam(array(), array(), *state, step=1, mu_product=np.ones(()))
