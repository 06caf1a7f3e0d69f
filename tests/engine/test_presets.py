"""The conventions of other libraries and papers, by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import schuss
from engine.unchanged import Unchanged
from schuss import rules
from schuss.engine.declare import RENAMED, REQUIRED
from schuss.engine.optimizer import Optimizer


@pytest.mark.parametrize("rule", rules.RULES)
def test_unknown_preset(rule: type[Optimizer]) -> None:
    opt = rule({"a": np.zeros(3)})
    names = ", ".join(rule.presets)
    wrong: list[Any] = ["tensorflow", "Keras", "", 3, True, ["torch"], {}]
    for value in wrong:
        says = f"preset: {value!r} is unknown; {rule.__name__} has {names}"
        with pytest.raises(ValueError, match=re.escape(says)):
            rule(np.zeros(3), preset=value)
        with pytest.raises(ValueError, match=re.escape(says)):
            rule([{"params": np.zeros(3), "preset": value}])
        with Unchanged(opt, ValueError, says):
            opt.add_param_group({"params": {"b": np.zeros(3)}, "preset": value})


@pytest.mark.parametrize("rule", rules.RULES)
def test_preset(rule: type[Optimizer]) -> None:
    """Each gives what it says, wants what it lacks, and yields to what is passed beside it."""
    defaults = {name: h.default for name, h in rule.hyperparameters.items()}
    for preset, own in rule.presets.items():
        lacks = {name for name, value in own.items() if value is REQUIRED}
        for name in lacks:
            says = f"{name}: preset {preset!r} has no default; pass one"
            with pytest.raises(TypeError, match=re.escape(says)):
                rule(np.zeros(3), preset=preset)
            with pytest.raises(TypeError, match=re.escape(says)):
                rule([{"params": np.zeros(3), "preset": preset}])
        given: dict[str, Any] = dict.fromkeys(lacks, 0.25)
        for opt in (
            rule(np.zeros(3), preset=preset, **given),
            rule([{"params": np.zeros(3), "preset": preset, **given}]),
        ):
            group = {name: opt.param_groups[0][name] for name in rule.hyperparameters}
            assert group == defaults | own | given
        beside: dict[str, Any] = {"lr": 0.125, "weight_decay": 0.375, "decay_mode": "proximal"}
        opt = rule(np.zeros(3), preset=preset, **beside)
        group = {name: opt.param_groups[0][name] for name in rule.hyperparameters}
        assert group == defaults | own | beside


def test_preset_of_a_group() -> None:
    """It is that group's alone, and goes into its options: there is nothing to set later."""
    groups = [{"params": np.zeros(1)}, {"params": np.zeros(1), "preset": "keras"}]
    opt = schuss.Adam(groups, eps=1e-3)
    assert [g["eps_mode"] for g in opt.param_groups] == ["outside", "hat"]
    assert [g["eps"] for g in opt.param_groups] == [1e-3, 1e-3]
    assert all("preset" not in g for g in opt.param_groups)
    assert "preset" not in opt.state_dict()["param_groups"][1]
    with Unchanged(opt, TypeError, "preset: unknown; Adam has lr, betas"):
        opt.param_groups[0]["preset"] = "keras"
    of_all = schuss.Adam([*groups, {"params": np.zeros(1), "preset": None}], preset="tutorial")
    assert [g["eps_mode"] for g in of_all.param_groups] == ["inside", "hat", "outside"]


# ---- Words of version 0.1


def old_words(x: np.ndarray) -> dict[str, Callable[[], Optimizer]]:
    """Ways to come to say one."""
    old: dict[str, Any] = {"preset": "seed001"}
    mode: dict[str, Any] = {"decay_mode": "seed002"}

    def set_later() -> Optimizer:
        opt = schuss.Adam(x)
        opt.decay_mode = mode["decay_mode"]
        return opt

    def loaded() -> Optimizer:
        opt = schuss.Adam(x)
        saved = opt.state_dict()
        saved["param_groups"][0] |= mode
        opt.load_state_dict(saved)
        return opt

    return {
        "preset": lambda: schuss.Adam(x, **old),
        "preset of a group": lambda: schuss.Adam([{"params": x, **old}]),
        "decay_mode": lambda: schuss.Adam(x, **mode),
        "decay_mode, set": set_later,
        "decay_mode, loaded": loaded,
    }


@pytest.mark.parametrize("way", old_words(np.zeros(1)))
def test_old_words_work_and_warn_at_the_user_s_line(way: str) -> None:
    name, *_ = re.split("[ ,]", way)
    with pytest.warns(DeprecationWarning, match=f"{name}: 'seed00[12]' is now") as caught:
        opt = old_words(np.zeros(1))[way]()
    assert [w.filename for w in caught] == [__file__]
    new: dict[str, Any] = {"preset": "tutorial"} if name == "preset" else {"decay_mode": "course"}
    want = schuss.Adam(np.zeros(1), **new)
    assert repr(opt) == repr(want)


def test_every_old_word_is_one_of_a_rule() -> None:
    now = {name for rule in rules.RULES for name in rule.presets}
    assert now >= set(RENAMED.values())
    assert now.isdisjoint(RENAMED)


def test_an_old_word_that_a_rule_never_had() -> None:
    unknown: Any = "seed001"
    with (
        pytest.warns(DeprecationWarning, match="now called"),
        pytest.raises(ValueError, match="'tutorial' is unknown"),
    ):
        schuss.RAdam(np.zeros(1), preset=unknown)
