"""`schuss demo`: trains the classifier of trainer.py, and times one step of its optimizer.

Three ways: by the compiled kernel, by its NumPy reference and in pure Python.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ml_dtypes import bfloat16
from rich.console import Console
from rich.progress import track

import schuss
from schuss.checks import Interval
from schuss.lab.files import writable
from schuss.lab.tasks import hidden_layers, usual_rate
from schuss.lab.trainer import Epoch, Params, cast, digits, loss_and_gradients, network, train
from schuss.rules import RULES

# ---- The comparison


class PythonAdamW:
    """AdamW over lists of Python floats, with the defaults of schuss.AdamW."""

    def __init__(self, x: list[float], g: list[float]) -> None:
        self.x, self.g = x, g
        self.m, self.v = [0.0] * len(x), [0.0] * len(x)
        self.t = 0

    def step(self) -> None:
        self.t += 1
        lr, beta1, beta2, eps, weight_decay = 1e-3, 0.9, 0.999, 1e-8, 1e-2
        w1, w2, keep = 1 - beta1, 1 - beta2, 1 - lr * weight_decay
        step, denom = lr / (1 - beta1**self.t), 1 / math.sqrt(1 - beta2**self.t)
        x, m, v = self.x, self.m, self.v
        for i, g in enumerate(self.g):
            m[i] = mean = m[i] + w1 * (g - m[i])
            v[i] = square = beta2 * v[i] + w2 * (g * g)
            x[i] = keep * x[i] - step * (mean / (denom * math.sqrt(square) + eps))


def joined(params: Params) -> np.ndarray:
    """The elements of all arrays, one after the other."""
    return np.concatenate([array.ravel() for layer in params for array in layer.values()])


def bits(opt: schuss.Optimizer) -> list[bytes]:
    """Every parameter, every state array and every step count."""
    held = [np.asarray(value) for state in opt.state.values() for value in state.values()]
    return [array.tobytes() for array in (*opt.param_groups[0]["params"], *held)]


def compare(
    rule: type[schuss.Optimizer],
    params: Params,
    grads: Params,
    seconds: float = 2.0,
    **options: Any,
) -> dict[str, float]:
    """The time of one step in ns per parameter: compiled, in NumPy, and of AdamW in pure Python.

    All have the same gradient, and their default options but for the first two's `options`. Ten
    steps touch the memory and check the answers: the compiled kernel and the NumPy reference have
    to end on the same bits, the floats of pure Python within the rounding of the type that is
    computed in. Then the three take turns, and the median counts.
    """

    def optimizer(backend: str) -> schuss.Optimizer:
        return rule(copy.deepcopy(params), grads=grads, backend=backend, **options)

    compiled, reference = optimizer("compiled"), optimizer("numpy")
    # Rounding to 16 bits would hide more than these steps change.
    wide = cast(copy.deepcopy(params), np.result_type(joined(params), np.float32))
    adamw = schuss.AdamW(wide, grads=grads)
    python = PythonAdamW(joined(cast(params, float)).tolist(), joined(cast(grads, float)).tolist())
    for _ in range(10):
        compiled.step(loss=1.0)
        reference.step(loss=1.0)
        adamw.step()
        python.step()
    if bits(compiled) != bits(reference):
        raise AssertionError(f"{rule.__name__}: the kernel ends on other bits than the reference")
    x = joined(wide)
    if not np.allclose(x, python.x, rtol=0, atol=100 * np.finfo(x.dtype).eps):
        raise AssertionError("AdamW: the kernel ends elsewhere than pure Python")

    steps: dict[str, Callable[[], object]] = {
        f"{rule.__name__}, compiled": partial(compiled.step, loss=1.0),
        f"{rule.__name__}, NumPy": partial(reference.step, loss=1.0),
        "AdamW, pure Python": python.step,
    }
    times: dict[str, list[int]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["AdamW, pure Python"]) < 5:
        for name, step in steps.items():
            step()  # not timed: the others' turns have taken the cache
            start = time.perf_counter_ns()
            step()
            times[name].append(time.perf_counter_ns() - start)
    return {name: median(taken) / x.size for name, taken in times.items()}


# ---- The picture

TRAINED_ON, HELD_OUT, STEP = "#0072b2", "#d55e00", "#009e73"  # Okabe and Ito: for all eyes


def picture(title: str, epochs: Sequence[Epoch], times: dict[str, float]) -> Figure:
    """Loss and accuracy over the epochs, and the comparison."""
    figure = Figure(figsize=(13, 4.2), dpi=150)
    figure.set_layout_engine("constrained", wspace=0.06)
    figure.suptitle(title)
    loss, accuracy, comparison = figure.subplots(1, 3)

    number = range(1, len(epochs) + 1)
    loss.plot(number, [e.loss for e in epochs], "o-", color=TRAINED_ON)
    loss.plot(number, [e.test_loss for e in epochs], "s-", color=HELD_OUT)
    loss.set(xlabel="epoch", ylabel="mean cross-entropy", yscale="log")
    accuracy.plot(number, [100 * e.accuracy for e in epochs], "o-", color=TRAINED_ON)
    accuracy.plot(number, [100 * e.test_accuracy for e in epochs], "s-", color=HELD_OUT)
    accuracy.set(xlabel="epoch", ylabel="accuracy in %")
    for axes in (loss, accuracy):
        for line, name in zip(axes.lines, ("trained on", "held out"), strict=True):
            line.set(markersize=3, label=f"{name}, {line.get_ydata()[-1]:.3g} at the end")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False)

    fastest = min(times.values())
    comparison.plot(list(times.values()), list(times), "o", color=STEP, markersize=9)
    for name, value in times.items():
        text = f"{value:.1f} ns, {value / fastest:.1f}\N{MULTIPLICATION SIGN}"
        comparison.annotate(text, (value, name), (0, 9), textcoords="offset points", ha="center")
    comparison.set(xlabel="one step, ns per parameter", xscale="log", ylim=(2.5, -0.5))
    comparison.margins(x=0.35)

    for axes in (loss, accuracy, comparison):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


# ---- The command

DTYPES = {dtype.__name__: dtype for dtype in (np.float32, np.float64, np.float16, bfloat16)}
NAMED = {rule.__name__.lower(): rule for rule in RULES}
BATCH_SIZES = {"rprop": 360}  # it goes by the sign, which a small batch has too often wrong


def number(kind: Callable[[str], float], interval: str) -> Callable[[str], float]:
    """Reads an option's number, which has to lie in the interval."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if value not in Interval(interval):
            what = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"{text!r} is no {what} in {interval}")
        return value

    return read


def png(text: str) -> Path:
    """Reads the name of a picture."""
    if Path(text).suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png")
    return writable(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    count, width, rate = (
        number(int, "[1, inf)"),
        number(int, "[1, 65536]"),
        number(float, "[0, inf)"),
    )
    add = parser.add_argument
    add("--rule", type=str.lower, choices=NAMED, default="adamw", help="default: %(default)s")
    add("--lr", type=rate, help="learning rate, at its peak; default: one that suits the rule")
    add("--epochs", type=count, default=30, help="default: %(default)s")
    add("--batch-size", type=count, help="default: 32, or what the rule needs")
    add("--hidden", type=width, nargs="+", help="widths; default: 64 64, or what suits the rule")
    add("--seed", type=number(int, "[0, 4294967295]"), default=0, help="default: %(default)s")
    add("--threads", type=count, help="at most; default: as in schuss info")
    add("--dtype", choices=DTYPES, default="float32", help="of parameters; default: %(default)s")
    add("--gradient-dtype", choices=DTYPES, help="default: as --dtype")
    add("--master", action="store_true", help="keeps float32 copies of 16-bit parameters")
    add("--stochastic-rounding", action="store_true", help="of 16-bit parameters without a master")
    add("--backend", choices=("compiled", "numpy"), default="compiled", help="for the training")
    add("--plot", type=png, metavar="FILE.png", help="draws loss, accuracy and the comparison")


def shown(training: Iterable[Epoch], total: int, console: Console) -> list[Epoch]:
    """Runs the training behind a progress bar, with one line an epoch."""
    epochs = []
    quiet = not console.is_interactive
    for epoch in track(training, "Training", total, console=console, transient=True, disable=quiet):
        epochs.append(epoch)
        console.print(
            f"epoch {len(epochs):{len(str(total))}}"
            f"   loss {epoch.loss:.4f}   accuracy {epoch.accuracy:7.2%}"
            f"   held out: {epoch.test_loss:.4f} {epoch.test_accuracy:7.2%}"
        )
    return epochs


def run(args: argparse.Namespace) -> None:
    """Trains, compares and draws as the options say."""
    rule = NAMED[args.rule]
    lr = usual_rate(rule, "digits") if args.lr is None else args.lr
    hidden = hidden_layers(rule.__name__) if args.hidden is None else args.hidden
    batch_size = args.batch_size or BATCH_SIZES.get(args.rule, 32)
    threads = args.threads or schuss.get_num_threads()
    dtype, gradient_dtype = DTYPES[args.dtype], DTYPES[args.gradient_dtype or args.dtype]
    options = {
        "master": args.master,
        "stochastic_rounding": args.stochastic_rounding,
        "seed": args.seed,
    }
    rng = np.random.default_rng(args.seed)
    data, test = digits(args.seed, np.result_type(dtype, np.float32))
    params = network((data[0].shape[1], *hidden, 10), rng, dtype)
    fresh = copy.deepcopy(params)
    grads = cast(loss_and_gradients(cast(params, data[0].dtype), *data)[1], gradient_dtype)
    try:
        rule(fresh, grads=grads, **options)
    except (TypeError, ValueError) as error:  # options that don't go together
        raise argparse.ArgumentError(None, str(error)) from None

    size = f"{joined(params).size} {args.dtype} parameters in {2 * len(params)} arrays"
    if args.gradient_dtype:
        size += f", {args.gradient_dtype} gradients"
    size += ", master" * args.master + ", stochastic rounding" * args.stochastic_rounding
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{rule.__name__}, lr {lr:g}, {args.backend}, threads: {threads}; {size}")
    with schuss.threads(threads):
        training = train(
            params,
            data,
            test,
            rule=rule,
            lr=lr,
            epochs=args.epochs,
            batch_size=batch_size,
            gradient_dtype=gradient_dtype,
            rng=rng,
            backend=args.backend,
            **options,
        )
        epochs = shown(training, args.epochs, console)
        times = compare(rule, fresh, grads, **options)

    console.print(
        "\nAfter ten steps, compiled and in NumPy: the same bits in parameters and state."
    )
    console.print("One step, median:")
    fastest = min(times.values())
    for name, value in times.items():
        console.print(f"{name:<20}{value:8.1f} ns per parameter{value / fastest:8.1f}x")
    if args.plot:
        picture(f"{rule.__name__} on handwritten digits, {size}", epochs, times).savefig(args.plot)
