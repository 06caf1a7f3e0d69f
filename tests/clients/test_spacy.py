"""spaCy: the training of a pipeline with our optimizer, named in its config, and with its own."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import numpy as np
import pytest

spacy: Any = pytest.importorskip("spacy", reason="spacy is not installed: its tests did not run")
training: Any = pytest.importorskip("spacy.training")

import schuss.thinc  # noqa: E402  which needs thinc

OPTIMIZER = {"learn_rate": 0.001, "L2": 0.01, "grad_clip": 1.0, "use_averages": True}
Params = dict[tuple[str, int, str], np.ndarray]


def sentences(most: int) -> list[str]:
    """Sentences in many languages, which come with spaCy."""
    found: list[str] = []
    for module in pkgutil.iter_modules(spacy.lang.__path__):
        try:
            found += importlib.import_module(f"spacy.lang.{module.name}.examples").sentences
        except ImportError:
            continue
    return found[::5][:most]


def kind(token: Any) -> str:
    """What the tagger learns."""
    return "number" if token.like_num else "point" if token.is_punct else token.shape_[:2]


def trained(optimizer: str, steps: int = 8) -> tuple[Any, Any, dict[str, float]]:
    spacy.util.fix_random_seed(0)
    config = {"training": {"optimizer": {"@optimizers": optimizer, **OPTIMIZER}}}
    nlp = spacy.blank("xx", config=config)
    nlp.add_pipe("tagger")
    docs = [nlp.make_doc(text) for text in sentences(96)]
    data = [training.Example.from_dict(d, {"tags": [kind(t) for t in d]}) for d in docs]
    made = nlp.initialize(lambda: data)
    losses: dict[str, float] = {}
    size = len(data) // steps
    for i in range(steps):
        nlp.update(data[i * size : (i + 1) * size], sgd=made, losses=losses)
        made.step_schedules()
    return nlp, made, losses


def params(nlp: Any) -> Params:
    return {
        (name, i, p): node.get_param(p).copy()
        for name, pipe in nlp.pipeline
        for i, node in enumerate(pipe.model.walk())
        for p in node.param_names
        if node.has_param(p)
    }


def distance(a: Params, b: Params) -> float:
    return float(np.sqrt(sum(np.square(a[k].astype(float) - b[k]).sum() for k in a)))


def test_a_pipeline_is_trained_as_with_its_own() -> None:
    """Weights are as far apart as rounding takes them, against the way that they have gone.

    An element whose gradient is rounding alone is moved by Adam as far as any other one: so it is
    not each element that is near.
    """
    nlp, made, losses = trained("schuss.Adam.v1")
    other, own, expected = trained("Adam.v1")
    assert type(made) is schuss.thinc.Optimizer
    assert type(own) is not type(made)
    assert losses["tagger"] == pytest.approx(expected["tagger"], rel=1e-4)
    ours, theirs = params(nlp), params(other)
    assert ours.keys() == theirs.keys()
    assert sum(a.size for a in ours.values()) > 500_000
    with nlp.use_params(made.averages), other.use_params(own.averages):
        means, expected_means = params(nlp), params(other)
    way = distance(theirs, expected_means)
    assert way > 0.1
    assert distance(ours, theirs) < 1e-3 * way
    assert distance(means, expected_means) < 1e-3 * way
    near = np.concatenate([np.abs(ours[k] - theirs[k]).ravel() for k in ours]) < 1e-6
    assert near.mean() > 0.999
