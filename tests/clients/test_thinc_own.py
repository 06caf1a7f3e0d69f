"""thinc's own tests of its optimizers, with ours in the place of them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

theirs: Any = pytest.importorskip(
    "thinc.optimizers", reason="thinc is not installed: its tests did not run"
)
api: Any = pytest.importorskip("thinc.api")

import schuss.thinc as ours  # noqa: E402  which needs it

OWN = Path(theirs.__file__).parent / "tests" / "test_optimizers.py"
if not OWN.exists():
    pytest.skip("thinc is installed without its tests", allow_module_level=True)


def loaded() -> Any:
    """Its module of tests, whose Optimizer is ours."""
    spec = spec_from_file_location("thinc_test_optimizers", OWN)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as swapped:
        swapped.setattr(api, "Optimizer", ours.Optimizer)
        spec.loader.exec_module(module)
    return module


own = loaded()
globals().update({k: v for k, v in vars(own).items() if k.startswith(("test_", "schedule_"))})


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """What a config calls by the names of thinc's is ours, meanwhile."""
    register = api.registry.optimizers.register
    for name in ("Adam", "RAdam", "SGD"):
        register(f"{name}.v1", func=getattr(ours, name))
    yield
    for name in ("Adam", "RAdam", "SGD"):
        register(f"{name}.v1", func=getattr(theirs, name))


def test_it_is_ours_that_is_tested() -> None:
    assert own.Optimizer is ours.Optimizer
    config = {"@optimizers": "RAdam.v1", "learn_rate": 0.1}
    assert type(api.registry.resolve({"config": config})["config"]) is ours.Optimizer
    assert sum(name.startswith("test_optimizer") for name in vars(own)) >= 5
