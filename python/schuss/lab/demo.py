"""`schuss demo`: trains the classifier of trainer.py, and times one step of its optimizer.

Four ways: by the compiled kernel, by its NumPy reference, and AdamW as people write it in NumPy and
in pure Python; beside the gradients, which take the rest of a training's time.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

import schuss
from schuss import checkpoint
from schuss.lab import options, pictures
from schuss.lab.bench import adamw
from schuss.lab.bench.clock import Timed, take_turns
from schuss.lab.options import BLUE, GREEN, VERMILION, Rule
from schuss.lab.tasks import for_the_rest, hidden_layers, usual_rate
from schuss.lab.trainer import Epoch, Params, cast, digits, loss_and_gradients, network, train
from schuss.rules.matrix import MatrixRule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# ---- The comparison


def arrays(params: Params) -> list[np.ndarray]:
    """All arrays, in the order of the layers."""
    return [array for layer in params for array in layer.values()]


def joined(params: Params) -> np.ndarray:
    """The elements of all arrays, one after the other."""
    return np.concatenate([array.ravel() for array in arrays(params)])


def bits(opt: schuss.Optimizer) -> list[bytes]:
    """Every parameter, every state array and every step count."""
    held = [np.asarray(value) for state in opt.state.values() for value in state.values()]
    return [array.tobytes() for array in (*opt.param_groups[0]["params"], *held)]


class Times(NamedTuple):
    """The times of a training step's two parts, in ns per parameter."""

    gradients: float
    steps: dict[str, float]  # compiled first, then as it is written otherwise

    def shares(self) -> list[float]:
        """The part of each kind of step in a training step."""
        return [step / (self.gradients + step) for step in self.steps.values()]


def compare(
    rule: Rule,
    params: Params,
    gradients: Callable[[], Params],
    seconds: float = 2.0,
    **chosen: Any,
) -> Times:
    """The time of one step, compiled and as it is written otherwise, and that of the gradients.

    All have the same gradient, and their default options but for the rule's `chosen`. Ten steps
    touch the memory and check the answers: the compiled kernel and the NumPy reference have to end
    on the same bits, but for a rule for matrices, which has no reference; AdamW in NumPy and in
    pure Python within the rounding of the type that is computed in. Then all take turns as in
    `schuss bench`, and the median counts.
    """
    grads = gradients()

    def optimizer(backend: str) -> schuss.Optimizer:
        return rule(copy.deepcopy(params), grads=grads, backend=backend, **chosen)

    compiled, reference = optimizer("compiled"), optimizer("numpy")
    # Rounding to 16 bits would hide more than these steps change.
    dtype = np.result_type(joined(params), np.float32)
    wide, others = (cast(copy.deepcopy(params), dtype) for _ in range(2))
    opt = schuss.AdamW(wide, grads=grads)
    in_place = adamw.InPlace(arrays(others), arrays(cast(grads, dtype)))
    python = adamw.Python(joined(cast(params, float)).tolist(), joined(cast(grads, float)).tolist())

    told: dict[str, Any] = {"loss": 1.0} if rule.reads_loss(compiled.param_groups[0]) else {}
    steps: dict[str, Callable[[], object]] = {
        f"{rule.__name__}, compiled": partial(compiled.step, **told),
        f"{rule.__name__}, reference": partial(reference.step, **told),
        "AdamW, NumPy in place": in_place.step,
        "AdamW, pure Python": python.step,
    }
    for _ in range(10):
        opt.step()
        for step in steps.values():
            step()
    if issubclass(rule, MatrixRule):
        del steps[f"{rule.__name__}, reference"]
    elif bits(compiled) != bits(reference):
        raise AssertionError(f"{rule.__name__}: the kernel ends on other bits than the reference")
    x = joined(wide)
    for name, answer in (("NumPy in place", joined(others)), ("pure Python", python.x)):
        if not np.allclose(x, answer, rtol=0, atol=100 * np.finfo(x.dtype).eps):
            raise AssertionError(f"AdamW: the kernel ends elsewhere than {name}")
    computed, timed = Timed(gradients), {name: Timed(step) for name, step in steps.items()}
    take_turns([computed, *timed.values()], seconds)
    each = 1e9 / x.size
    return Times(
        each * computed.seconds, {name: each * turns.seconds for name, turns in timed.items()}
    )


# ---- The picture


def picture(size: str, epochs: Sequence[Epoch], times: Times) -> Figure:
    """Loss and accuracy over the epochs, and what part of a training the steps take."""
    shares = 100 * np.array(times.shares())
    figure = pictures.figure(
        6.4,
        f"{epochs[-1].test_accuracy:.1%} of the digits held out are recognised; the compiled "
        f"step takes {shares[0]:.0f}% of the time",
    )
    loss, accuracy, parts = figure.subplot_mosaic("la;pp", height_ratios=(3, 2)).values()

    number = range(1, len(epochs) + 1)
    loss.plot(number, [e.loss for e in epochs], "o-", color=BLUE)
    loss.plot(number, [e.test_loss for e in epochs], "o-", color=VERMILION)
    loss.set(ylabel="mean cross-entropy", yscale="log", title="loss")
    accuracy.plot(number, [100 * e.accuracy for e in epochs], "o-", color=BLUE)
    accuracy.plot(number, [100 * e.test_accuracy for e in epochs], "o-", color=VERMILION)
    accuracy.set(ylabel="% of the images", title="accuracy")
    for axes in (loss, accuracy):
        axes.set_xlabel("epoch")
        locator: Any = axes.xaxis.get_major_locator()
        locator.set_params(integer=True)
        pictures.name_lines(axes, ["trained on", "held out"])

    rows = range(len(shares))
    parts.barh(rows, shares, 0.4, color=GREEN)
    parts.barh(rows, 100 - shares, 0.4, shares, color="#dddddd")
    for row, (name, step), share in zip(rows, times.steps.items(), shares, strict=True):
        parts.text(0, row - 0.25, f"{name}, {step:.3g} ns per parameter", va="bottom")
        parts.text(101, row, f"{share:.0f}%", va="center", color=GREEN)
    parts.set(xlim=(0, 100), ylim=(rows[-1] + 0.3, -0.8), yticks=[])
    parts.set_xlabel("% of the time of a training step: optimizer (green), gradients (grey)")
    parts.set_title(size)
    return figure


# ---- The command

DTYPES = ("float32", "float64", "float16", "bfloat16")
BATCH_SIZES = {"Rprop": 360}  # it goes by the sign, which a small batch has too often wrong


def dtype_of(name: str) -> np.dtype[Any]:
    """The type of a name; bfloat16 is ml_dtypes'."""
    if name == "bfloat16":
        from ml_dtypes import bfloat16  # noqa: PLC0415  an optional package

        name = bfloat16
    return np.dtype(name)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    count, width = options.whole("[1, inf)"), options.whole("[1, 65536]")
    seed, rate = options.whole("[0, 4294967295]"), options.number("[0, inf)")
    add = parser.add_argument
    add("--rule", type=options.rule, metavar="RULE", default="adamw", help="default: %(default)s")
    add("--lr", type=rate, help="learning rate, at its peak; default: one that suits the rule")
    add("--epochs", type=count, default=30, help="default: %(default)s")
    add("--batch-size", type=count, help="default: 32, or what the rule needs")
    add("--hidden", type=width, nargs="+", help="widths; default: 64 64, or what suits the rule")
    add("--seed", type=seed, default=0, help="default: %(default)s")
    add("--threads", type=count, help="at most; default: as in schuss info")
    add("--dtype", choices=DTYPES, default="float32", help="of parameters; default: %(default)s")
    add("--gradient-dtype", choices=DTYPES, help="default: as --dtype")
    add("--master", action="store_true", help="keeps float32 copies of 16-bit parameters")
    add("--stochastic-rounding", action="store_true", help="of 16-bit parameters without a master")
    add("--backend", choices=("compiled", "numpy"), default="compiled", help="for the training")
    add("--save", type=options.writable, metavar="FILE", help="saves all after each epoch")
    add("--resume", metavar="FILE", help="goes on from what --save has left there")
    add("--plot", type=options.picture, metavar="FILE", help="draws loss, accuracy and comparison")
    options.add_force(parser)


def epochs_in(path: str) -> int:
    """How many epochs a file has behind it."""
    try:
        done = checkpoint.contents(path).values.get("epoch")
    except ValueError as error:
        raise argparse.ArgumentError(None, str(error)) from None
    if not isinstance(done, int):
        raise argparse.ArgumentError(None, f"--resume: {path!r} is of no demo")
    return done


def shown(training: Iterable[Epoch], total: int, console: Console, done: int = 0) -> list[Epoch]:
    """Runs the training behind a progress bar, with one line an epoch."""
    epochs = []
    quiet, left = not console.is_interactive, total - done
    for epoch in track(training, "Training", left, console=console, transient=True, disable=quiet):
        epochs.append(epoch)
        console.print(
            f"epoch {done + len(epochs):{len(str(total))}}"
            f"   loss {epoch.loss:.4f}   accuracy {epoch.accuracy:7.2%}"
            f"   held out: {epoch.test_loss:.4f} {epoch.test_accuracy:7.2%}"
        )
    return epochs


def run(args: argparse.Namespace) -> None:
    """Trains, compares and draws as the options say."""
    rule = args.rule
    lr = usual_rate(rule, "digits") if args.lr is None else args.lr
    hidden = hidden_layers(rule.__name__) if args.hidden is None else args.hidden
    batch_size = args.batch_size or BATCH_SIZES.get(rule.__name__, 32)
    threads = args.threads or schuss.get_num_threads()
    dtype, gradient_dtype = dtype_of(args.dtype), dtype_of(args.gradient_dtype or args.dtype)
    chosen = {
        "master": args.master,
        "stochastic_rounding": args.stochastic_rounding,
        "seed": args.seed,
    }
    done = epochs_in(args.resume) if args.resume else 0
    if done >= args.epochs:
        raise argparse.ArgumentError(None, f"--resume: has {done} epochs; --epochs wants more")
    rng = np.random.default_rng(args.seed)
    data, test = digits(args.seed, np.result_type(dtype, np.float32))
    params = network((data[0].shape[1], *hidden, 10), rng, dtype)
    fresh = copy.deepcopy(params)
    batch = data[0][:batch_size], data[1][:batch_size]

    def gradients() -> Params:
        return cast(loss_and_gradients(cast(fresh, data[0].dtype), *batch)[1], gradient_dtype)

    try:
        rule(fresh, grads=gradients(), **chosen)
    except (TypeError, ValueError) as error:  # options that don't go together
        raise argparse.ArgumentError(None, str(error)) from None

    size = f"{joined(params).size} {args.dtype} parameters in {2 * len(params)} arrays"
    if args.gradient_dtype:
        size += f", {args.gradient_dtype} gradients"
    size += ", master" * args.master + ", stochastic rounding" * args.stochastic_rounding
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{rule.__name__}, lr {lr:g}, {args.backend}, threads: {threads}\n{size}\n")
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
            save=args.save,
            resume=args.resume,
            **for_the_rest(rule, "digits", args.epochs * math.ceil(len(data[0]) / batch_size)),
            **chosen,
        )
        try:
            epochs = shown(training, args.epochs, console, done)
        except ValueError as error:  # of another training
            if not args.resume:
                raise
            raise argparse.ArgumentError(None, f"--resume: {error}") from None
        times = compare(rule, fresh, gradients, **chosen)

    console.print()
    if not issubclass(rule, MatrixRule):
        console.print("After ten steps, compiled and reference: the same bits everywhere.")
    console.print(f"A training step, median; its gradients are those of {len(batch[0])} images.\n")
    console.print(f"{'':<28}{'ns per parameter':>18}{'ratio':>9}{'of the training step':>23}")
    console.print(f"{'gradients':<28}{times.gradients:18.2f}")
    fastest = min(times.steps.values())
    for (name, step), share in zip(times.steps.items(), times.shares(), strict=True):
        console.print(f"{name:<28}{step:18.2f}{step / fastest:8.1f}x{share:23.0%}")
    if args.plot:
        with pictures.styled():
            pictures.save(picture(size, epochs, times), args.plot)
