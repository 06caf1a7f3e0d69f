"""Right, by what is not ours: PyTorch, optax and Keras, each where it is installed.

An optimizer of ours and one of theirs take 60 steps in float64, from the same start, with the same
gradients, and with a learning rate that is another one at each step. After each step the parameters
differ by at most 1e-12 of the largest update so far, beside what each step rounds off x on either
side, and each state array by at most 1e-12 of its largest element. Each row of the tables is run
with the defaults of both sides, which proves the preset, and with random hyperparameters for each
combination of its switches.

What these libraries can't be asked, or only so:

- optax.rprop gives out an update one step late, and not at all where the sign then changes. Its
  state has the update that belongs to the step: that is what is applied here. It has no `prev`.
- optax.adadelta without a learning rate goes uphill: it is told 1.
- optax' RAdam takes beta2^t from another power function. rho(t) is a small difference of numbers
  near 2/(1 - beta2), to which the last bit of that power is worth 1e-11: this is its bound.
- optax' NAdam and RAdam take an eps inside the root, and RAdam a form of Nesterov's. Ours don't.
- A centered RMSprop with bias correction has a first variance that is nothing but rounding, and the
  root of which is NaN in optax half of the time. It is asked with an accumulator that starts above
  0.
- PyTorch has NAdam's product of momenta in its default type, which is float64 here. In float32,
  which it is otherwise, each update would be off by some 1e-7 of itself.
- optax' AdaBelief and ADOPT take a form of Nesterov's, its Lion two smooth ones of the sign, and
  Keras' Ftrl other powers than the root. Ours don't. Keras' Ftrl decays x before its step.
- Keras computes in float32 on its numpy backend, whatever the type: here it runs on JAX.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import pytest

import schuss
from schuss import rules
from schuss.engine.declare import REQUIRED
from schuss.engine.groups import preset as defaults

STEPS, SIZE = 60, 40

Arrays = dict[str, np.ndarray]
Trajectory = Iterator[tuple[np.ndarray, Arrays]]  # the parameters and the state after each step

# Random hyperparameters: even in the logarithm, between these ends.
RANGES: dict[str, Any] = {
    "lr": (1e-3, 0.3),
    "lr_decay": (1e-3, 0.5),
    "momentum": (0.5, 0.95),
    "dampening": (0.05, 0.9),
    "weight_decay": (1e-3, 0.5),
    "alpha": (0.9, 0.999),
    "rho": (0.8, 0.99),
    "betas": ((0.5, 0.95), (0.8, 0.999)),
    "momentum_decay": (1e-3, 1.0),
    "threshold": (4.0, 6.0),
    "eps": (1e-10, 1e-3),
    "eps_root": (1e-10, 1e-3),
    "initial_accumulator_value": (1e-2, 1.0),
    "etas": ((0.3, 0.8), (1.05, 1.5)),
    "step_sizes": ((1e-6, 1e-4), (0.5, 50.0)),
    "lambd": (1e-3, 0.5),
    "t0": (1.0, 40.0),
    "AdEMAMix.alpha": (0.5, 10.0),
    "AdEMAMix.betas": ((0.5, 0.95), (0.8, 0.999), (0.99, 0.9999)),
    "Adan.betas": ((0.9, 0.99), (0.8, 0.95), (0.9, 0.999)),
    "trust_coefficient": (1e-3, 1.0),
    "beta3": (0.9, 0.999),
    "d0": (1e-6, 1e-2),
    "d_coef": (0.5, 2.0),
    "beta2_decay": (-0.9, -0.5),
    "Adafactor.eps": ((1e-10, 1e-3), (1e-4, 1e-1)),
    "d": (1.0, 3.0),
    "l1_regularization_strength": (1e-2, 0.5),
    "l2_regularization_strength": (1e-2, 0.5),
    "l2_shrinkage_regularization_strength": (1e-3, 0.1),
    "beta": (1e-2, 1.0),
}
OFF_ON = (False, True)


class Row(NamedTuple):
    """A rule of ours, and what a library has of it."""

    rule: str
    theirs: str
    numbers: str  # random hyperparameters, under our names; one with "?" is in half of the runs
    states: dict[str, str] | None  # where theirs has our state, or ""; None: under the same names
    ours_too: dict[str, Any]  # what ours has to be told, beside the preset
    theirs_too: dict[str, Any]  # what theirs has to be told to be this rule
    bound: float
    shape: tuple[int, ...]
    switches: dict[str, tuple[Any, ...]]

    @property
    def hyperparameters(self) -> list[str]:
        return [*self.numbers.replace("?", "").split(), *self.switches]

    def combinations(self, seed: int) -> Iterator[dict[str, Any]]:
        """Options of ours: none, and then all that the row allows."""
        yield {}
        rng = np.random.default_rng(seed)
        given = [OFF_ON if name.endswith("?") else (True,) for name in self.numbers.split()]
        for takes in itertools.product(*given):
            names = list(itertools.compress(self.numbers.replace("?", "").split(), takes))
            for values in itertools.product(*self.switches.values()):
                own = {name: f"{self.rule}.{name}" for name in names}
                ranges = {name: RANGES.get(own[name]) or RANGES[name] for name in names}
                numbers = {name: random_number(rng, ranges[name]) for name in names}
                yield numbers | dict(zip(self.switches, values, strict=True))


def row(
    rule: str,
    theirs: str,
    numbers: str,
    states: dict[str, str] | None = None,
    *,
    ours_too: dict[str, Any] | None = None,
    theirs_too: dict[str, Any] | None = None,
    bound: float = 1e-12,
    shape: tuple[int, ...] = (SIZE,),
    **switches: tuple[Any, ...],
) -> Row:
    told = ours_too or {}, theirs_too or {}
    return Row(rule, theirs, numbers, states, *told, bound, shape, switches)


def random_number(rng: np.random.Generator, ends: Any) -> Any:
    """A number in its range, or several."""
    drawn = np.exp(rng.uniform(*np.sort(np.log(np.abs(ends)).T, axis=0)))
    return np.copysign(drawn, np.asarray(ends)[..., 0]).tolist()


class Library(NamedTuple):
    """What is to be known of a library."""

    name: str
    home: str  # the module of its rules
    presets: tuple[str | None, ...]  # ours that are its convention
    words: dict[str, str]  # its names of our hyperparameters, where they are others
    without: str  # what it has and ours hasn't, and what leaves the numbers as they are
    steps: Callable[..., Trajectory]
    rows: tuple[Row, ...]

    def told(self, theirs: str, options: dict[str, Any]) -> dict[str, Any]:
        """Our options in its words."""
        said: dict[str, Any] = {}
        for name, value in options.items():
            words = self.words.get(f"{theirs}.{name}", self.words.get(name, name)).split()
            one = YES[value] if isinstance(value, str) else value
            said |= zip(words, value if len(words) > 1 else [one], strict=True)
        return said


# ---- Sixty steps


def gradients(rng: np.random.Generator) -> np.ndarray:
    """Random ones: some elements always zero, some now and then, one step all; two outliers."""
    g = rng.standard_normal((STEPS, SIZE))
    g[rng.random(g.shape) < 0.1] = 0.0
    g[:, ::7] = 0.0
    g[20] = 0.0
    g[40, 3] = 1e4
    g[50, 5] = -1e4
    return g


def beginning(rng: np.random.Generator, update: np.ndarray) -> np.ndarray:
    """Parameters 60 to 100 times as large as the first update.

    Much larger ones would be rounded by more than the rules may differ. Smaller ones may come to 0,
    where L2 alone makes the gradient, and a division by its size then knows no small difference.
    """
    x: np.ndarray = rng.uniform(60, 100, SIZE) * np.abs(update).max()
    x[rng.random(SIZE) < 0.5] *= -1.0
    return x


def our_steps(rule: Any, told: dict[str, Any], lr: Any, x: np.ndarray, g: np.ndarray) -> Trajectory:
    if lr is not None:
        told = told | {"lr": lr if isinstance(lr, float) else lr.__getitem__}
    optimizer = rule(x, **told)
    for gradient in g:
        optimizer.step(gradient)
        yield x, {key: np.asarray(value) for key, value in optimizer.state[0].items()}


def torch_steps(
    rule: Any, told: dict[str, Any], lr: Any, x: np.ndarray, g: np.ndarray
) -> Trajectory:
    torch = import_module("torch")
    parameter = torch.tensor(x, requires_grad=True)
    if isinstance(lr, float):
        told = told | {"lr": lr}
    optimizer = rule([parameter], foreach=False, **told)
    for t, gradient in enumerate(g):
        if isinstance(lr, np.ndarray):
            optimizer.param_groups[0]["lr"] = float(lr[t])
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        state = {"step": t + 1.0} | optimizer.state[parameter]  # SGD doesn't count
        yield parameter.detach().numpy(), {key: np.asarray(value) for key, value in state.items()}


def optax_steps(
    rule: Any, told: dict[str, Any], lr: Any, x: np.ndarray, g: np.ndarray
) -> Trajectory:
    if lr is not None:
        told = told | {"learning_rate": lr if isinstance(lr, float) else lr.__getitem__}
    optimizer = rule(**told)
    state = optimizer.init(x)
    for gradient in g:
        update, state = optimizer.update(gradient, state, x)
        found = dict(fields(state))
        x = x + np.asarray(-found["prev_updates"] if "prev_updates" in found else update)
        yield x, found


def fields(state: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays in tuples within tuples, by name."""
    for name, value in zip(getattr(state, "_fields", state), state, strict=True):
        if isinstance(value, tuple):
            yield from fields(value)
        else:
            yield name, np.asarray(value)


def keras_steps(
    rule: Any, told: dict[str, Any], lr: Any, x: np.ndarray, g: np.ndarray
) -> Trajectory:
    keras = import_module("keras")
    variable = keras.Variable(x)
    optimizer = rule(**told)
    optimizer.build([variable])
    kept = {name: v[0] if isinstance(v, list) and v else v for name, v in vars(optimizer).items()}
    for t, gradient in enumerate(g):
        if lr is not None:
            optimizer.learning_rate = float(lr[t])
        optimizer.apply([keras.ops.convert_to_tensor(gradient)])
        found = {name: np.asarray(v) for name, v in kept.items() if isinstance(v, keras.Variable)}
        yield np.asarray(variable), found


def compare(ours: Trajectory, theirs: Trajectory, start: np.ndarray, row: Row) -> None:
    """Parameters and state after each step; a name with "-" has the other sign."""
    largest, before = 0.0, start
    for t, ((x, state), (want, found)) in enumerate(zip(ours, theirs, strict=True), 1):
        largest, before = max(largest, np.abs(want - before).max()), want.copy()
        off = np.abs(x - want).max()
        rounding = t * np.spacing(np.abs(x).max())  # half a spacing a step, of ours and of theirs
        most = row.bound * largest + rounding
        assert off <= most, f"step {t}: off by {off / largest} of the largest update"
        names = dict(zip(found, found, strict=True)) if row.states is None else row.states
        assert state.keys() <= names.keys() | {"step"}, f"{state.keys()} and {found.keys()}"
        assert row.states is not None or found.keys() == state.keys()
        for key, array in state.items():
            name = names.get(key)
            if name:
                wanted = -found[name[1:]] if name.startswith("-") else found[name]
                off, most = np.abs(array - wanted).max(), np.abs(wanted).max()
                assert off <= 1e-12 * most, f"step {t}: {key} is off by {off / most} of its largest"


# ---- The tables

YES = {"l2": False, "decoupled": True, "outside": False, "inside": True}

DECAY_MODES = ("l2", "decoupled")
TORCH = Library(
    "torch",
    "torch.optim",
    (None, "torch"),
    {"decay_mode": "decoupled_weight_decay"},
    "params foreach fused capturable differentiable",
    torch_steps,
    (
        row("SGD", "SGD", "lr momentum? dampening? weight_decay?", maximize=OFF_ON),
        row("SGD", "SGD", "lr momentum weight_decay?", nesterov=(True,), maximize=OFF_ON),
        row(
            "Momentum", "SGD", "lr momentum? dampening? weight_decay?", theirs_too={"momentum": 0.9}
        ),
        row(
            "NAG",
            "SGD",
            "lr momentum? weight_decay?",
            theirs_too={"momentum": 0.9, "nesterov": True},
        ),
        row(
            "Adagrad",
            "Adagrad",
            "lr lr_decay? weight_decay? initial_accumulator_value? eps?",
            maximize=OFF_ON,
        ),
        row(
            "RMSprop",
            "RMSprop",
            "lr alpha momentum? weight_decay? eps?",
            centered=OFF_ON,
            maximize=OFF_ON,
        ),
        row("Adadelta", "Adadelta", "lr rho weight_decay? eps?", maximize=OFF_ON),
        row(
            "Adam",
            "Adam",
            "lr betas weight_decay? eps?",
            amsgrad=OFF_ON,
            maximize=OFF_ON,
            decay_mode=DECAY_MODES,
        ),
        row("AdamW", "AdamW", "lr betas weight_decay? eps?", amsgrad=OFF_ON, maximize=OFF_ON),
        row("Adamax", "Adamax", "lr betas weight_decay? eps?", maximize=OFF_ON),
        row(
            "NAdam",
            "NAdam",
            "lr betas momentum_decay? weight_decay? eps?",
            maximize=OFF_ON,
            decay_mode=DECAY_MODES,
        ),
        row(
            "NAdamW",
            "NAdam",
            "lr betas momentum_decay? weight_decay? eps?",
            theirs_too={"weight_decay": 1e-2, "decoupled_weight_decay": True},
        ),
        row(
            "RAdam", "RAdam", "lr betas weight_decay? eps?", maximize=OFF_ON, decay_mode=DECAY_MODES
        ),
        row("Rprop", "Rprop", "lr etas? step_sizes?", maximize=OFF_ON),
        row("ASGD", "ASGD", "lr lambd? alpha t0? weight_decay?", maximize=OFF_ON),
        *(
            row(
                "Adafactor",
                "Adafactor",
                "lr beta2_decay? eps? d? weight_decay?",
                shape=shape,
                maximize=OFF_ON,
            )
            for shape in ((SIZE,), (8, 5), (2, 5, 4))
        ),
    ),
)

TRACE = {"momentum_buffer": "trace"}
MOMENTS = {"exp_avg": "mu", "exp_avg_sq": "nu"}
PRODUCT = MOMENTS | {"mu_product": ""}
LARGEST = MOMENTS | {"max_exp_avg_sq": "nu_max"}
BELIEF = {"exp_avg": "mu", "exp_avg_var": "nu"}
DIFFERENCES = {"exp_avg": "m", "exp_avg_diff": "v", "exp_avg_sq": "n", "prev": "g"}
OPTAX = Library(
    "optax",
    "optax",
    ("optax",),
    {
        "lr": "learning_rate",
        "alpha": "decay",
        "betas": "b1 b2",
        "etas": "eta_minus eta_plus",
        "step_sizes": "min_step_size max_step_size",
        "rmsprop.initial_accumulator_value": "initial_scale",
        "signum.momentum": "beta",
        "adan.betas": "b1 b2 b3",
        "contrib.ademamix.betas": "b1 b2 b3",
        "contrib.ademamix.alpha": "alpha",
        "contrib.prodigy.betas": "betas",
        "d0": "estim_lr0",
        "d_coef": "estim_lr_coef",
        "eps_mode": "eps_in_sqrt",
        "bias_correction1": "bias_correction_mu",
        "bias_correction2": "bias_correction_nu",
    },
    "accumulator_dtype mu_dtype mask weight_decay_mask nadam.eps_root nadamw.eps_root "
    "radam.eps_root radam.nesterov nadam.nesterov nadamw.nesterov adabelief.nesterov lion.mode "
    "lion.smooth_beta lamb.eps_root trust_ratio_mask contrib.adopt.nesterov "
    "contrib.adopt.clip_value_fn",
    optax_steps,
    (
        row("SGD", "sgd", "lr", {}),
        row("SGD", "sgd", "lr momentum", TRACE, nesterov=OFF_ON),
        row("Momentum", "sgd", "lr momentum?", TRACE, theirs_too={"momentum": 0.9}),
        row("NAG", "sgd", "lr momentum?", TRACE, theirs_too={"momentum": 0.9, "nesterov": True}),
        row(
            "Adagrad",
            "adagrad",
            "lr initial_accumulator_value? eps?",
            {"sum": "sum_of_squares"},
        ),
        row(
            "RMSprop",
            "rmsprop",
            "lr alpha initial_accumulator_value eps?",
            {"square_avg": "nu", "grad_avg": "mu"},
            centered=OFF_ON,
            bias_correction=OFF_ON,
            eps_mode=("outside", "inside"),
        ),
        row(
            "RMSprop",
            "rmsprop",
            "lr alpha momentum initial_accumulator_value eps?",
            {"square_avg": "nu", "grad_avg": "mu", "momentum_buffer": "-trace"},
            centered=OFF_ON,
            bias_correction=OFF_ON,
            eps_mode=("outside", "inside"),
            nesterov=OFF_ON,
        ),
        row(
            "RMSprop",
            "rmsprop",
            "lr alpha momentum? eps?",
            {"square_avg": "nu", "grad_avg": "mu", "momentum_buffer": "-trace"},
            centered=OFF_ON,
        ),
        row(
            "Adadelta",
            "adadelta",
            "lr rho weight_decay? eps?",
            {"square_avg": "e_g", "acc_delta": "e_x"},
        ),
        row("Adam", "adam", "lr betas eps? eps_root?", MOMENTS),
        row("AdamW", "adamw", "lr betas weight_decay? eps? eps_root?", MOMENTS),
        row(
            "Adam",
            "amsgrad",
            "lr betas eps? eps_root?",
            LARGEST,
            ours_too={"amsgrad": "corrected"},
            bias_correction1=OFF_ON,
            bias_correction2=OFF_ON,
        ),
        row(
            "Adam",
            "amsgrad",
            "lr betas eps? eps_root?",
            LARGEST,
            ours_too={"amsgrad": "paper"},
            theirs_too={"bias_correction_mu": False, "bias_correction_nu": False},
        ),
        row("Adamax", "adamax", "lr betas eps?", {"exp_avg": "mu", "exp_inf": "nu"}),
        row(
            "Adamax",
            "adamaxw",
            "lr betas weight_decay? eps?",
            {"exp_avg": "mu", "exp_inf": "nu"},
            ours_too={"decay_mode": "decoupled", "weight_decay": 1e-4},
        ),
        row("NAdam", "nadam", "lr betas eps?", PRODUCT),
        row("NAdam", "adam", "lr betas eps?", PRODUCT, theirs_too={"nesterov": True}),
        row("NAdamW", "nadamw", "lr betas weight_decay? eps?", PRODUCT),
        row(
            "NAdamW",
            "adamw",
            "lr betas weight_decay? eps?",
            PRODUCT,
            theirs_too={"nesterov": True},
        ),
        row("RAdam", "radam", "lr betas threshold? eps?", MOMENTS, bound=1e-11),
        row("AdaBelief", "adabelief", "lr betas eps? eps_root?", BELIEF),
        row("Yogi", "yogi", "lr betas eps?", MOMENTS),
        row("ADOPT", "contrib.adopt", "lr betas eps?", MOMENTS, use_clipping=OFF_ON),
        row(
            "AdEMAMix",
            "contrib.ademamix",
            "lr betas alpha? weight_decay? eps? eps_root?",
            {"exp_avg": "m1", "exp_avg_slow": "m2", "exp_avg_sq": "nu"},
        ),
        row("Adan", "adan", "lr betas weight_decay? eps? eps_root?", DIFFERENCES),
        row("SignSGD", "sign_sgd", "lr", {}),
        row("Signum", "signum", "lr momentum?", {"exp_avg": "ema"}),
        row("Lion", "lion", "lr betas weight_decay?", {"exp_avg": "mu"}),
        row("Rprop", "rprop", "lr etas? step_sizes?", {"prev": "", "step_size": "step_sizes"}),
        row(
            "LARS",
            "lars",
            "lr momentum? weight_decay? trust_coefficient? eps?",
            {"momentum_buffer": "-trace"},
            nesterov=OFF_ON,
        ),
        row("LAMB", "lamb", "lr betas weight_decay? eps?", MOMENTS),
        row(
            "Prodigy",
            "contrib.prodigy",
            "lr? betas beta3? weight_decay? eps? d0? d_coef?",
            {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "s": "grad_sum", "p0": "params0"},
            safeguard_warmup=OFF_ON,
        ),
    ),
)

VELOCITY = {"momentum_buffer": "-momentums"}
AVERAGES = {"exp_avg": "_momentums", "exp_avg_sq": "_velocities"}
HATS = AVERAGES | {"max_exp_avg_sq": "_velocity_hats"}
KERAS = Library(
    "keras",
    "keras.optimizers",
    ("keras",),
    {"lr": "learning_rate", "alpha": "rho", "betas": "beta_1 beta_2", "eps": "epsilon"},
    "clipnorm clipvalue global_clipnorm use_ema ema_momentum ema_overwrite_frequency "
    "loss_scale_factor gradient_accumulation_steps name kwargs Ftrl.learning_rate_power "
    "Ftrl.weight_decay",
    keras_steps,
    (
        row("SGD", "SGD", "lr weight_decay?", {}),
        row("SGD", "SGD", "lr momentum weight_decay?", VELOCITY, nesterov=OFF_ON),
        row(
            "Momentum", "SGD", "lr momentum? weight_decay?", VELOCITY, theirs_too={"momentum": 0.9}
        ),
        row(
            "NAG",
            "SGD",
            "lr momentum? weight_decay?",
            VELOCITY,
            theirs_too={"momentum": 0.9, "nesterov": True},
        ),
        row(
            "Adagrad",
            "Adagrad",
            "lr initial_accumulator_value? weight_decay? eps?",
            {"sum": "_accumulators"},
        ),
        row(
            "RMSprop",
            "RMSprop",
            "lr alpha momentum? weight_decay? eps?",
            {
                "square_avg": "_velocities",
                "grad_avg": "_average_gradients",
                "momentum_buffer": "_momentums",
            },
            centered=OFF_ON,
        ),
        row(
            "Adadelta",
            "Adadelta",
            "lr rho weight_decay? eps?",
            {"square_avg": "_accumulated_grads", "acc_delta": "_accumulated_delta_vars"},
        ),
        row("Adam", "Adam", "lr betas weight_decay? eps?", HATS, amsgrad=OFF_ON),
        row("AdamW", "AdamW", "lr betas weight_decay? eps?", HATS, amsgrad=OFF_ON),
        row("Adamax", "Adamax", "lr betas weight_decay? eps?", {"exp_avg": "_m", "exp_inf": "_u"}),
        row("LAMB", "Lamb", "lr betas weight_decay? eps?", AVERAGES),
        row(
            "NAdam",
            "Nadam",
            "lr betas weight_decay? eps?",
            AVERAGES | {"mu_product": "_u_product"},
        ),
        row("Lion", "Lion", "lr betas weight_decay?", {"exp_avg": "_momentums"}),
        row(
            "Ftrl",
            "Ftrl",
            "lr initial_accumulator_value? l1_regularization_strength? l2_regularization_strength? "
            "l2_shrinkage_regularization_strength? beta?",
            {"accumulator": "_accumulators", "linear": "_linears"},
        ),
    ),
)
LIBRARIES = (TORCH, OPTAX, KERAS)


# ---- The tests


@contextmanager
def torch_float64() -> Iterator[None]:
    torch = import_module("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@contextmanager
def jax_float64() -> Iterator[None]:
    config = import_module("jax").config
    before = config.jax_enable_x64
    config.update("jax_enable_x64", True)
    yield
    config.update("jax_enable_x64", before)


@contextmanager
def keras_float64() -> Iterator[None]:
    config = import_module("keras").config
    before = config.floatx()
    assert config.backend() == "jax"
    config.set_floatx("float64")
    with jax_float64():
        yield
    config.set_floatx(before)


FLOAT64 = {"torch": torch_float64, "optax": jax_float64, "keras": keras_float64}


@pytest.fixture
def home(library: Library, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of a library's rules; all that it makes is float64."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    reason = f"{library.name} is not installed: its oracles did not run"
    module = pytest.importorskip(library.home, reason=reason)
    with FLOAT64[library.name]():
        yield module


def parameters(theirs: Any) -> dict[str, Any]:
    """The arguments of an optimizer of theirs, with their defaults."""
    return {name: p.default for name, p in inspect.signature(theirs).parameters.items()}


EVERY_LIBRARY = [pytest.param(library, id=library.name) for library in LIBRARIES]
EVERY_ROW = {
    f"{library.name}-{row.rule}-{row.theirs}-{number}": (library, row)
    for library in LIBRARIES
    for number, row in enumerate(library.rows)
}


def each(rows: dict[str, tuple[Library, Row]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("library", "row"), rows.values(), ids=rows.keys())


@each(EVERY_ROW)
def test_sixty_steps(library: Library, row: Row, home: Any, seed: int) -> None:
    ours, theirs = getattr(schuss, row.rule), attrgetter(row.theirs)(home)
    for preset, options in itertools.product(library.presets, row.combinations(seed)):
        rng = np.random.default_rng(seed)
        rest = {name: value for name, value in options.items() if name != "lr"}
        lr: Any = options.get("lr") or undeclared_rate(theirs)
        if "lr" in options and not ours.hyperparameters["lr"].fixed:
            lr = lr * rng.uniform(0.5, 1.0, STEPS)
        told = {"preset": preset} | row.ours_too | rest
        g = gradients(rng).reshape(STEPS, *row.shape)
        first, _ = next(our_steps(ours, told, lr, np.zeros(row.shape), g))
        start = beginning(rng, first).reshape(row.shape)
        try:
            compare(
                our_steps(ours, told, lr, start.copy(), g),
                library.steps(
                    theirs,
                    row.theirs_too | library.told(row.theirs, rest),
                    lr,
                    start.copy(),
                    g,
                ),
                start,
                row,
            )
        except AssertionError as error:
            error.add_note(f"preset {preset!r}, {options}, SCHUSS_TEST_SEED={seed}")
            raise


def undeclared_rate(theirs: Any) -> float | None:
    """A learning rate where theirs has none: None stands for 1 in optax, but goes uphill."""
    rate = parameters(theirs).get("learning_rate", 0.0)
    return 0.05 if rate is REQUIRED else 1.0 if rate is None else None


@each({name: (a, b) for name, (a, b) in EVERY_ROW.items() if not (b.ours_too or b.theirs_too)})
def test_defaults(library: Library, row: Row, home: Any) -> None:
    """Every hyperparameter that both have has their default under their preset."""
    has = parameters(attrgetter(row.theirs)(home))
    left_out = {"learning_rate": 1.0}  # what None is; it is 0 for the others
    for preset in library.presets:
        ours = defaults(getattr(schuss, row.rule), preset)
        shared = {name: ours[name] for name in row.hyperparameters}
        for word, value in library.told(row.theirs, shared).items():
            want = left_out.get(word, 0.0) if has[word] is None else has[word]
            if value is None or isinstance(value, tuple):
                assert has[word] == value, (preset, word)
            elif want is REQUIRED:
                assert value is REQUIRED, (preset, word)
            else:
                np.testing.assert_allclose(value, want, rtol=1e-15, err_msg=f"{preset}: {word}")


@pytest.mark.parametrize("library", EVERY_LIBRARY)
def test_every_argument_of_theirs_is_compared(library: Library, home: Any) -> None:
    for theirs in {row.theirs for row in library.rows}:
        compared = set(library.without.split())
        for row in library.rows:
            if row.theirs == theirs:
                ours = defaults(getattr(schuss, row.rule), None)
                names = library.told(theirs, {name: ours[name] for name in row.hyperparameters})
                compared |= names.keys() | row.theirs_too.keys()
        has = parameters(attrgetter(theirs)(home)).keys()
        assert not {name for name in has - compared if f"{theirs}.{name}" not in compared}, theirs


@pytest.mark.parametrize("library", EVERY_LIBRARY)
def test_every_preset_is_compared(library: Library) -> None:
    claimed = {rule.__name__ for rule in rules.RULES if library.name in rule.presets}
    compared = {row.rule for row in library.rows}
    assert claimed == compared | ({"Sophia"} if library is OPTAX else set())  # test_oracles_beyond


@pytest.mark.parametrize("library", [pytest.param(TORCH, id="torch")])
def test_product_of_gradients_that_underflows(library: Library, home: Any) -> None:
    """PyTorch's Rprop takes tiny gradients as if their signs didn't agree: its preset does, too."""
    start, g = np.zeros(1), np.full((3, 1), 1e-200)
    *_, (want, _) = library.steps(home.Rprop, {}, None, start.copy(), g)
    for preset, same in (("torch", True), (None, False)):
        *_, (x, _) = our_steps(schuss.Rprop, {"preset": preset}, None, start.copy(), g)
        assert (x == want).all() == same
