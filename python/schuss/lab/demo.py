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
from schuss.lab.trainer import (
    Alone,
    Epoch,
    Params,
    cast,
    digits,
    loss_and_gradients,
    network,
    train,
)
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

BATCH_SIZES = {"Rprop": 360}  # it goes by the sign, which a small batch has too often wrong


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
    add(
        "--dtype",
        choices=options.DTYPES,
        default="float32",
        help="of parameters; default: %(default)s",
    )
    add("--gradient-dtype", choices=options.DTYPES, help="default: as --dtype")
    add("--master", action="store_true", help="keeps float32 copies of 16-bit parameters")
    add("--stochastic-rounding", action="store_true", help="of 16-bit parameters without a master")
    add("--backend", choices=("compiled", "numpy"), default="compiled", help="for the training")
    add("--save", type=options.writable, metavar="FILE", help="saves all after each epoch")
    add("--resume", metavar="FILE", help="goes on from what --save has left there")
    add("--mpi", action="store_true", help="in all processes of mpiexec, each a part of a batch")
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


class Setting:
    """What the options ask for: the data, the network, and how it is trained."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.rule = args, args.rule
        self.lr = usual_rate(self.rule, "digits") if args.lr is None else args.lr
        self.batch_size = args.batch_size or BATCH_SIZES.get(self.rule.__name__, 32)
        self.dtype = options.dtype_of(args.dtype)
        self.gradient_dtype = options.dtype_of(args.gradient_dtype or args.dtype)
        self.chosen = {
            "master": args.master,
            "stochastic_rounding": args.stochastic_rounding,
            "seed": args.seed,
        }
        self.done = epochs_in(args.resume) if args.resume else 0
        if self.done >= args.epochs:
            has = f"--resume: has {self.done} epochs; --epochs wants more"
            raise argparse.ArgumentError(None, has)
        self.data, self.test = digits(args.seed, np.result_type(self.dtype, np.float32))
        self.fresh, _ = self.start()

    def start(self) -> tuple[Params, np.random.Generator]:
        """The network before the training, and what draws its batches."""
        name, args = self.rule.__name__, self.args
        hidden = hidden_layers(name) if args.hidden is None else args.hidden
        rng = np.random.default_rng(args.seed)
        return network((self.data[0].shape[1], *hidden, 10), rng, self.dtype), rng

    def gradients(self) -> Params:
        """Those of the first images, at the start."""
        (x, y), own = self.data, cast(self.fresh, self.data[0].dtype)
        _, grads = loss_and_gradients(own, x[: self.batch_size], y[: self.batch_size])
        return cast(grads, self.gradient_dtype)

    def training(self, way: Alone, **files: Any) -> tuple[Params, Iterable[Epoch]]:
        """The network, and its epochs, which train it; one line where options don't go together."""
        backend, steps = self.args.backend, math.ceil(len(self.data[0]) / self.batch_size)
        params, rng = self.start()
        try:
            way.optimizer(
                self.rule, self.fresh, grads=self.gradients(), backend=backend, **self.chosen
            )
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentError(None, str(error)) from None
        try:
            epochs = train(
                params,
                self.data,
                self.test,
                rule=self.rule,
                lr=self.lr,
                epochs=self.args.epochs,
                batch_size=self.batch_size,
                gradient_dtype=self.gradient_dtype,
                rng=rng,
                way=way,
                backend=backend,
                resume=self.args.resume,
                **files,
                **for_the_rest(self.rule, "digits", self.args.epochs * steps),
                **self.chosen,
            )
        except ValueError as error:  # of another training
            if not self.args.resume:
                raise
            raise argparse.ArgumentError(None, f"--resume: {error}") from None
        return params, epochs

    def described(self) -> str:
        """Size and storage, in a line."""
        args, layers = self.args, 2 * len(self.fresh)
        size: str = f"{joined(self.fresh).size} {args.dtype} parameters in {layers} arrays"
        if args.gradient_dtype:
            size += f", {args.gradient_dtype} gradients"
        size += ", master" * args.master + ", stochastic rounding" * args.stochastic_rounding
        return size


def run(args: argparse.Namespace) -> None:
    """Trains, and tells what the options ask for."""
    with schuss.threads(args.threads or schuss.get_num_threads()):
        if not args.mpi:
            run_alone(args)
            return
        from schuss.lab import together  # noqa: PLC0415  it needs an extra

        with together.all_processes() as comm:
            run_together(args, comm, together.Together(comm), together.Parts(comm.size))


def reached(
    setting: Setting, training: Iterable[Epoch], console: Console, more: str = ""
) -> list[Epoch]:
    """The epochs of a training, with a header, each told as it is there."""
    args, threads = setting.args, schuss.get_num_threads()
    console.print(
        f"{setting.rule.__name__}, lr {setting.lr:g}, {args.backend}, threads: {threads}{more}\n"
        f"{setting.described()}\n"
    )
    return shown(training, args.epochs, console, setting.done)


def run_alone(args: argparse.Namespace) -> None:
    """Trains, compares and draws as the options say."""
    setting, console = Setting(args), Console(highlight=False, soft_wrap=True)
    _, training = setting.training(Alone(), save=args.save)
    epochs = reached(setting, training, console)
    times = compare(setting.rule, setting.fresh, setting.gradients, **setting.chosen)

    console.print()
    if not issubclass(setting.rule, MatrixRule):
        console.print("After ten steps, compiled and reference: the same bits everywhere.")
    images = min(setting.batch_size, len(setting.data[0]))
    console.print(f"A training step, median; its gradients are those of {images} images.\n")
    console.print(f"{'':<28}{'ns per parameter':>18}{'ratio':>9}{'of the training step':>23}")
    console.print(f"{'gradients':<28}{times.gradients:18.2f}")
    fastest = min(times.steps.values())
    for (name, step), share in zip(times.steps.items(), times.shares(), strict=True):
        console.print(f"{name:<28}{step:18.2f}{step / fastest:8.1f}x{share:23.0%}")
    if args.plot:
        with pictures.styled():
            pictures.save(picture(setting.described(), epochs, times), args.plot)


def run_together(args: argparse.Namespace, comm: Any, way: Any, alone: Any) -> None:
    """Trains in many processes, and in process 0 once more, alone, by the same gradients.

    Raises ArithmeticError where that doesn't end on the same bits.
    """
    if args.plot:
        raise argparse.ArgumentError(None, "--plot: draws the times of one process; not with --mpi")
    setting = Setting(args)
    params, training = setting.training(way, save=args.save)
    if comm.rank == 0:
        own, again = setting.training(alone)  # before a file that is resumed is replaced
    console = Console(highlight=False, soft_wrap=True, quiet=comm.rank > 0)
    before = way.opt.wire.sent_bytes
    epochs = reached(setting, training, console, f", processes: {comm.size}")
    steps = len(epochs) * math.ceil(len(setting.data[0]) / setting.batch_size)
    told = comm.gather((way.opt.nbytes, (way.opt.wire.sent_bytes - before) / steps))
    if comm.rank > 0:
        return
    list(again)
    if joined(params).tobytes() != joined(own).tobytes():
        raise ArithmeticError("the bits of one process: no; do all compute the same gradients?")
    held, sent = zip(*told, strict=True)
    whole = joined(params).nbytes + joined(setting.gradients()).nbytes
    rows = {
        "held out": f"{epochs[-1].test_accuracy:.2%}",
        "the bits of one process": "yes",
        "schuss.hash(params)": schuss.hash(params),
        "bytes of state": f"{', '.join(map(str, held))}; of one process {alone.opt.nbytes}",
        "bytes sent in a step": f"{sum(sent) / comm.size:.0f} by each, on average; "
        f"2(p-1)/p of the arrays are {whole * (comm.size - 1) / comm.size:.0f}",
    }
    console.print()
    for name, value in rows.items():
        console.print(f"{name:<25}{value}")
