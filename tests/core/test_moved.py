"""Whether bits have moved is seen, and only where the changelog doesn't say so."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = (Path(__file__).parent / "golden.txt").read_text()


@pytest.fixture(scope="module")
def golden() -> Any:
    path = ROOT / ".ci" / "golden.py"
    if not path.exists():
        pytest.skip("an sdist has no .ci")
    spec = importlib.util.spec_from_file_location("golden", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def changed(text: str, section: str, case: str) -> str:
    """The text with another hash for a case of a section."""
    head, tail = text.split(f"\n{section} ")
    before, _, after = tail.partition(f"\n  {case} ")
    hashed = after.lstrip()[:16]
    return f"{head}\n{section} {before}\n  {case} {after.replace(hashed, '0' * 16, 1)}"


def test_what_has_moved(golden: Any) -> None:
    assert golden.moved(GOLDEN, GOLDEN) == set()
    text = changed(changed(GOLDEN, "lion", "float16"), "shared", "norm float64")
    assert golden.moved(GOLDEN, text) == {"lion", "shared"}
    assert golden.moved(GOLDEN, changed(GOLDEN, "adam", "stages")) == {"adam"}


def test_another_case_has_not_moved(golden: Any) -> None:
    text = changed(GOLDEN, "sgd", "float32")
    assert golden.moved(GOLDEN, text.replace("sgd lr=0.001", "sgd lr=0.002")) == set()
    more = changed(GOLDEN, "lion", "stages").replace("\n  l2=0.01 ", "\n  l2=0.02 ")
    assert golden.moved(GOLDEN, more) == set()
    assert golden.moved("", GOLDEN) == set()


def test_names_in_the_first_entry(golden: Any) -> None:
    text = "# Changelog\n\n## 0.4.0\n\n- Faster.\n- Bits: lion, adan\n- Bits: shared\n"
    assert golden.named(text + "\n## 0.3.0\n\n- Bits: sgd\n") == {"lion", "adan", "shared"}
    assert golden.named("# Changelog\n\n## 0.4.0\n\n## 0.3.0\n\n- Bits: sgd\n") == set()
