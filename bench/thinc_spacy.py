"""Trainings of spaCy with thinc's optimizer and with ours: `python bench/thinc_spacy.py [--quick]`.

A blank pipeline learns the tags of words and the language of sentences, from those that come with
spaCy in 68 languages: once with `Adam.v1`, once with `schuss.Adam.v1`, in turns, and with averages
and without. First a few updates of both have to end on the same weights, to rounding. Steps have
one thread; so have products, with OMP_NUM_THREADS=1 and BLIS_NUM_THREADS=1 around it. README.md
explains the table.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import spacy
import spacy.lang
import thinc
from spacy.training import Example
from spacy.util import fix_random_seed, minibatch

import schuss
import schuss.thinc
from schuss.lab.bench.report import processor

OPTIMIZER = {"learn_rate": 0.001, "L2": 0.01, "grad_clip": 1.0}
NAMES = {"thinc": "Adam.v1", "schuss": "schuss.Adam.v1"}
Sentences = list[tuple[str, str]]


class Training(NamedTuple):
    """How long it took, how much of that in the optimizer, and where it ended."""

    whole: float
    steps: float
    params: dict[Any, np.ndarray]
    losses: dict[str, float]


def sentences() -> Sentences:
    """Sentences that come with spaCy, each with its language."""
    found: Sentences = []
    for module in pkgutil.iter_modules(spacy.lang.__path__):
        try:
            examples = importlib.import_module(f"spacy.lang.{module.name}.examples")
        except ImportError:  # no sentences, or a language that needs a package more
            continue
        found += [(module.name, text) for text in examples.sentences]
    return found


def kind(token: Any) -> str:
    """A tag that can be seen from a word."""
    return "number" if token.like_num else "point" if token.is_punct else token.shape_[:2]


def pipeline(optimizer: str, averages: bool, data: Sentences) -> tuple[Any, list[Any], Any]:
    """A blank pipeline, what it learns from, and its optimizer."""
    fix_random_seed(0)
    own = {"@optimizers": optimizer, "use_averages": averages, **OPTIMIZER}
    nlp = spacy.blank("xx", config={"training": {"optimizer": own}})
    nlp.add_pipe("tagger")
    nlp.add_pipe("textcat")
    languages = sorted({language for language, _ in data})
    examples = []
    for language, text in data:
        doc = nlp.make_doc(text)
        cats = {name: float(name == language) for name in languages}
        examples.append(Example.from_dict(doc, {"tags": [*map(kind, doc)], "cats": cats}))
    return nlp, examples, nlp.initialize(lambda: examples)


def train(optimizer: str, averages: bool, data: Sentences, batch: int, updates: int) -> Training:
    nlp, examples, made = pipeline(optimizer, averages, data)
    spent = 0.0

    class Watched:
        """The optimizer, with a clock."""

        def __call__(self, *args: Any, **options: Any) -> Any:
            nonlocal spent
            start = perf_counter()
            found = made(*args, **options)
            spent += perf_counter() - start
            return found

    watched = Watched()
    losses: dict[str, float] = {}
    rng = np.random.default_rng(0)
    start, done = perf_counter(), 0
    while done < updates:
        order = rng.permutation(len(examples))
        for some in minibatch([examples[i] for i in order], batch):
            nlp.update(some, sgd=watched, losses=losses)
            made.step_schedules()
            done += 1
            if done == updates:
                break
    whole = perf_counter() - start
    params = {
        (name, i, p): node.get_param(p)
        for name, pipe in nlp.pipeline
        for i, node in enumerate(pipe.model.walk())
        for p in node.param_names
        if node.has_param(p)
    }
    return Training(whole, spent, params, losses)


def check(data: Sentences) -> None:
    """Nearly all weights are near after a few updates: where a gradient is rounding alone, Adam
    goes ways of its own.
    """
    ours, theirs = (train(name, True, data, 128, 4) for name in reversed(NAMES.values()))
    near = [np.abs(a - theirs.params[k]).ravel() < 1e-6 for k, a in ours.params.items()]
    share = np.concatenate(near).mean()
    size = sum(a.size for a in ours.params.values())
    print(
        f"{len(ours.params)} arrays of {size} elements, {len(data)} sentences; after four updates"
    )
    print(f"{share:.5%} of the weights are within 1e-6 of thinc's")
    if share < 0.999:
        sys.exit("schuss: its weights are others")


def table(averages: bool, data: Sentences, batch: int, updates: int, rounds: int) -> None:
    found: dict[str, list[Training]] = {name: [] for name in NAMES}
    for _ in range(rounds):
        for name, optimizer in NAMES.items():
            found[name].append(train(optimizer, averages, data, batch, updates))
    print(f"\n{'with' if averages else 'without'} averages, {updates} updates of {batch} sentences")
    print(f"{'':10}{'whole s':>9}{'steps s':>9}{'share':>8}{'whole':>8}{'steps':>8}   losses")
    for name, all_of_it in found.items():
        whole, steps = (median(getattr(t, part) for t in all_of_it) for part in ("whole", "steps"))
        pairs = zip(found["thinc"], all_of_it, strict=True)
        ratios = [(a.whole / b.whole, a.steps / b.steps) for a, b in pairs]
        times, of_steps = (median(r[i] for r in ratios) for i in (0, 1))
        losses = ", ".join(f"{k} {v:.5g}" for k, v in all_of_it[0].losses.items())
        row = f"{name:10}{whole:>9.2f}{steps:>9.3f}{steps / whole:>8.0%}"
        print(f"{row}{times:>8.2f}{of_steps:>8.2f}   {losses}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one short table")
    asked = parser.parse_args()
    if asked.quick:
        asked.batch, asked.updates, asked.rounds = [64], 3, 1

    versions = f"spacy {spacy.__version__}, thinc {thinc.__version__}, numpy {np.__version__}"
    print(f"{processor()}, {schuss.show_config()['isa']['chosen']}, {versions}")
    data = sentences()
    with schuss.threads(1):
        check(data)
        for batch in asked.batch:
            for averages in (False, True):
                table(averages, data, batch, asked.updates, asked.rounds)


if __name__ == "__main__":
    main()
