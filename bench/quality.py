"""What state in fewer bits costs a training: `python bench/quality.py [TASK ...]`.

Three tasks under AdamW, Lion and LAMB, with the same seeds, batches and rates for every form of
state. README.md explains the table.
"""

from __future__ import annotations

import argparse
import copy
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from platform import python_version
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from ml_dtypes import bfloat16
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

import schuss
from schuss.data import Batches
from schuss.lab import tasks, trainer
from schuss.lab.bench.report import processor
from schuss.lab.tasks import Measure, Problem, endless

SEEDS = 5
MEASURED = 50_000  # places in a text
RULES = (schuss.AdamW, schuss.Lion, schuss.LAMB)
UPDATE_ERROR = 0.045  # of AdamW, at most; a rule that goes by signs has others
ACCURACY_LOST = 0.005  # at most, of that with state in float32


# ---- The forms of state

V = "exp_avg_sq"


@dataclass(frozen=True)
class Form:
    """How state is stored."""

    options: Mapping[str, Any] = field(default_factory=dict)
    of_v: bool = False  # it's about second moments; rules without are left out
    to_nearest: bool = False  # v is rounded to bfloat16 after each step

    def step(self, opt: schuss.Optimizer, grads: Any) -> None:
        opt.step(grads)
        if self.to_nearest:
            for state in opt.state.values():
                state[V][...] = state[V].astype(bfloat16)


FORMS = {
    "float32": Form(),
    "bfloat16": Form({"state_dtype": "bfloat16"}),
    "m alone": Form({"state_dtype": {"exp_avg": "bfloat16"}}, of_v=True),
    "v to nearest": Form({"state_dtype": {"exp_avg": "bfloat16"}}, of_v=True, to_nearest=True),
    "blockfloat8": Form({"state_dtype": "blockfloat8"}),
}


def forms_of(rule: type[schuss.Optimizer]) -> dict[str, Form]:
    """Those that the installed schuss has for a rule; says which it refuses."""
    found = {}
    for name, form in FORMS.items():
        if form.of_v and V not in chain(*rule.states.values()):
            continue
        try:
            rule([np.zeros(1, np.float32)], **form.options)
        except (TypeError, ValueError) as error:
            print(f"{rule.__name__} without {name}: {error}")
        else:
            found[name] = form
    return found


# ---- The text


@cache
def source() -> tuple[str, str]:
    """The modules of Python's standard library, and every fifth of them held out."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [path.read_text("utf-8") for path in paths]
    held_out = texts[::5]
    del texts[::5]
    return "\n".join(texts), "\n".join(held_out)


@dataclass(frozen=True)
class Windows:
    """A network that finds one word of a text from those around it.

    The words' vectors, side by side or their mean, go through a hidden layer and a softmax.
    """

    split: Callable[[str], list[str]]
    vocabulary: int
    classes: int  # only the most frequent words are to be found
    offsets: tuple[int, ...]  # of the words around it
    vector: int
    hidden: int
    batch: int
    mean: bool

    @cache  # noqa: B019  a handful of them, as long as the process lasts
    def texts(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """The text to train on and that held out, each with the places of what is to be found."""
        train, test = (self.split(text) for text in source())
        frequent = Counter(train).most_common(self.vocabulary)
        number = {word: i for i, (word, _) in enumerate(frequent)}
        return tuple(self.places(words, number) for words in (train, test))

    def places(self, words: list[str], number: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
        """Words by their frequency, the last number for the rest, and which of them to find."""
        text = np.array([number.get(word, self.vocabulary) for word in words], np.intp)
        margin = max(map(abs, self.offsets))
        inner = np.flatnonzero(text[margin:-margin] < self.classes) + margin
        return text, inner

    def start(self, seed: int, rule: str) -> Problem:
        rng = np.random.default_rng(seed)
        (text, places), held_out = self.texts()
        vectors = rng.normal(size=(self.vocabulary + 1, self.vector)).astype(np.float32)
        width = self.vector if self.mean else self.vector * len(self.offsets)
        layers = trainer.network((width, self.hidden, self.classes), rng, np.float32)
        batches = endless(Batches(places, size=self.batch, rng=rng))
        column = np.arange(self.vector)

        def around(text: np.ndarray, places: np.ndarray) -> np.ndarray:
            found: np.ndarray = text[places[:, np.newaxis] + self.offsets]
            return found

        def looked_up(x: np.ndarray) -> np.ndarray:
            found: np.ndarray = vectors[x]
            return found.mean(axis=1) if self.mean else found.reshape(len(x), width)

        def gradients() -> tuple[float, Any]:
            (middle,) = next(batches)
            x = around(text, middle)
            inputs, logits = trainer.forward(layers, looked_up(x))
            loss, delta = trainer.cross_entropy(logits, text[middle])
            grads, delta = trainer.backward(layers, inputs, delta)
            delta = delta @ layers[0]["w"].T
            if self.mean:
                delta = np.repeat(delta / len(self.offsets), len(self.offsets), axis=0)
            of_vectors = np.zeros_like(vectors)  # where most rows stay
            elements = x.reshape(-1, 1) * self.vector + column
            np.add.at(of_vectors.reshape(-1), elements.reshape(-1), delta.reshape(-1))
            return loss, {"vectors": of_vectors, "layers": grads}

        def evaluated(text: np.ndarray, places: np.ndarray) -> tuple[float, float]:
            drawn = np.random.default_rng(0).choice(places, MEASURED, replace=False)
            return trainer.evaluate(layers, (looked_up(around(text, drawn)), text[drawn]))

        def measure() -> Measure:
            return Measure(evaluated(text, places)[0], evaluated(*held_out)[1])

        params = {"vectors": vectors, "layers": layers}
        return Problem(params, gradients, lambda: None, measure)


CHARACTERS = Windows(list, 96, 96, tuple(range(-8, 0)), vector=16, hidden=128, batch=64, mean=False)
WORDS = Windows(
    lambda text: re.findall(r"\w+|[^\w\s]", text),
    4000,
    256,
    (-4, -3, -2, -1, 1, 2, 3, 4),
    vector=32,
    hidden=64,
    batch=64,
    mean=True,
)


# ---- The runs


@dataclass(frozen=True)
class Task:
    """A training, and the peak of each rule's rate."""

    start: Callable[[int, str], Problem]
    steps: int
    rates: Mapping[str, float]


TASKS = {
    "digits": Task(
        tasks.digits,
        tasks.TASKS["digits"].steps,
        {rule.__name__: tasks.usual_rate(rule, "digits") for rule in RULES},
    ),
    # The best of 1 and 3 times powers of ten by the mean loss in float32.
    "characters": Task(CHARACTERS.start, 3000, {"AdamW": 1e-2, "Lion": 1e-3, "LAMB": 1e-2}),
    "words": Task(WORDS.start, 3000, {"AdamW": 3e-2, "Lion": 3e-3, "LAMB": 1e-2}),
}


def begin(
    task: Task, rule: type[schuss.Optimizer], form: Form, seed: int
) -> tuple[Problem, schuss.Optimizer]:
    problem = task.start(seed, rule.__name__)
    lr = trainer.rate(rule, task.rates[rule.__name__], task.steps)
    return problem, rule(problem.params, lr=lr, **form.options)


class End(NamedTuple):
    """Where a training ends."""

    loss: float
    accuracy: float


def train(task: Task, rule: type[schuss.Optimizer], form: Form, seed: int) -> End:
    problem, opt = begin(task, rule, form, seed)
    for _ in range(task.steps):
        form.step(opt, problem.gradients()[1])
    loss, accuracy = problem.measure()
    assert accuracy is not None
    return End(loss, accuracy)


class Follower:
    """The updates that a form of state makes of another training's gradients."""

    def __init__(self, rule: type[schuss.Optimizer], form: Form, params: Any) -> None:
        self.form = form
        self.opt = rule(copy.deepcopy(params), lr=1.0, weight_decay=0.0, **form.options)
        self.arrays = [x for group in self.opt.param_groups for x in group["params"]]

    def update(self, grads: Any) -> np.ndarray:
        """What a step makes of parameters that are zero."""
        for x in self.arrays:
            x.fill(0)
        self.form.step(self.opt, grads)
        return np.concatenate([x.reshape(-1) for x in self.arrays])


def update_errors(task: Task, rule: type[schuss.Optimizer], forms: Sequence[Form]) -> np.ndarray:
    """Of each form, relative to the first, which trains: means over the second half.

    Of one seed: those of others are within a fifth.
    """
    problem, opt = begin(task, rule, forms[0], seed=0)
    followers = [Follower(rule, form, problem.params) for form in forms]
    errors = []
    for n in range(task.steps):
        _, grads = problem.gradients()
        forms[0].step(opt, grads)
        exact, *others = (follower.update(grads) for follower in followers)
        if n >= task.steps // 2:
            errors.append([np.linalg.norm(u - exact) / np.linalg.norm(exact) for u in others])
    means: np.ndarray = np.mean(errors, axis=0)
    return means


# ---- The table

HEAD = (
    f"{'loss':>9}{'+-':>8}{'accuracy':>11}{'+-':>7}{'to float32':>13}{'+-':>7}{'update error':>15}"
)


def rows(task: Task, rule: type[schuss.Optimizer], forms: Mapping[str, Form]) -> Iterator[str]:
    """A line for each form of state, the first of which the others are compared with."""
    seeds = range(SEEDS)
    first, *others = forms
    plain = [train(task, rule, forms[first], seed) for seed in seeds]
    yield f"{rule.__name__:<8}{first:<14}{reached(plain)}"
    errors = update_errors(task, rule, list(forms.values()))
    for name, error in zip(others, errors, strict=True):
        ends = [train(task, rule, forms[name], seed) for seed in seeds]
        change = fmean(e.accuracy for e in ends) / fmean(e.accuracy for e in plain) - 1
        missed = rule is schuss.AdamW and error > UPDATE_ERROR
        spread = stdev(e.accuracy / p.accuracy for e, p in zip(ends, plain, strict=True))
        yield (
            f"{rule.__name__:<8}{name:<14}{reached(ends)}"
            f"{change:>+12.2%}{'*' if change < -ACCURACY_LOST else ' '}{spread:>7.2%}"
            f"{error:>14.3f}{'*' if missed else ' '}"
        ).rstrip()


def reached(ends: Sequence[End]) -> str:
    """Means and standard deviations."""
    loss, accuracy = zip(*ends, strict=True)
    return f"{fmean(loss):>9.4f}{stdev(loss):>8.4f}{fmean(accuracy):>11.2%}{stdev(accuracy):>7.2%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; all")
    chosen = parser.parse_args().task or list(TASKS)
    if unknown := set(chosen) - set(TASKS):
        parser.error(f"no task {', '.join(unknown)}")

    print(
        f"{processor()}, schuss {schuss.__version__}, numpy {np.__version__}, "
        f"Python {python_version()}"
    )
    forms = {rule: forms_of(rule) for rule in RULES}
    with schuss.threads(1), threadpool_limits(1):
        for name in chosen:
            task = TASKS[name]
            print(f"\n{f'{name}, {task.steps} steps':<22}{HEAD}")
            for rule in RULES:
                for row in rows(task, rule, forms[rule]):
                    print(row, flush=True)


if __name__ == "__main__":
    main()
