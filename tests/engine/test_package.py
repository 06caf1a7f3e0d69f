"""The package as a whole: three places a rule, one instruction set at work, a light import."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import pydoc
import re
import shutil
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

import schuss
from schuss import _core, functional, reference, rules
from schuss.engine import scalars
from schuss.engine.declare import Bounded, Choice, Several
from schuss.engine.optimizer import Optimizer
from schuss.lab import catalogue
from schuss.rules import matrix

ROOT = Path(__file__).parents[2]
RULES_HPP = (ROOT / "cpp" / "core" / "rules.hpp").read_text()
LIST = (ROOT / "docs" / "rules.md").read_text()


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ---- A rule is written in three places, in the same order, with the same letters.


def test_same_order_everywhere() -> None:
    table = [name for name, *_ in _core.rules()]
    in_reference = [name for name in vars(reference) if name in table]
    in_classes = list(dict.fromkeys(kernel for rule in rules.RULES for kernel in rule.states))
    assert table == in_reference == in_classes
    declared = [c for c in vars(rules).values() if isinstance(c, type) and c is not Optimizer]
    assert set(declared) == set(rules.RULES)


@pytest.mark.parametrize("kernel", scalars.NAMES)
def test_same_letters(kernel: str) -> None:
    """The struct's scalars and state are the reference's keyword and positional arguments, and
    the traits its annotations.
    """
    match = re.search(rf"struct {kernel} {{(.*?)^}};", RULES_HPP, re.DOTALL | re.MULTILINE)
    assert match
    traits = re.search(r"trait states\[\] = {([\w, ]+)};", match[1])
    members = re.search(r"^\s*T ([\w, ]+);", match[1], re.MULTILINE)
    state = re.findall(r"T& (\w+)", match[1])
    arguments = inspect.getfullargspec(getattr(reference, kernel))
    assert members
    assert members[1].split(", ") == arguments.kwonlyargs == list(scalars.NAMES[kernel])
    assert ["x", "g", *state] == arguments.args
    annotated = [arguments.annotations[name].lower() for name in state]
    assert annotated == (traits[1].split(", ") if traits else [])


@pytest.mark.parametrize("rule", rules.RULES)
def test_documented(rule: type[Optimizer]) -> None:
    """Docstring and docs/rules.md know every rule, with its options, its state and its source."""
    text = rule.__doc__ or ""
    assert "Source: " in text
    assert "zero gradient" in " ".join(text.lower().split())
    if rule.__base__ not in rules.RULES:
        assert all(s in text for states in rule.states.values() for s in states)
        assert all(number in text for number in (*rule.memory, *rule.shared))
    else:
        more = re.search(r"Everything else as (\w+)\.", text)
        assert more
        assert more[1] in [base.__name__ for base in rule.__mro__]
    assert f"| {' | '.join(catalogue.row(rule))} |" in LIST.replace("`", "")
    assert getattr(schuss, rule.__name__) is rule, "export it in __init__.py"
    live = {name for name, h in rule.hyperparameters.items() if not h.fixed}
    call = inspect.signature(getattr(functional, rule.__name__.lower()))
    assert call.parameters.keys() >= {"param", "grad", "step", *live, *functional.STATELESS}
    shown = inspect.signature(rule).parameters.keys()
    assert shown >= {"params", "grads", *rule.hyperparameters, *rule.options}
    common = Optimizer.__doc__ or ""
    assert all(re.search(rf"\b{name}\b", common) for name in rule.options)


def spelled(value: object) -> str:
    """How a docstring writes a choice."""
    return f'"{value}"' if isinstance(value, str) else str(value)


@pytest.mark.parametrize("rule", [*rules.RULES, *matrix.RULES])
def test_docstrings_tell_ranges_choices_and_defaults(rule: type[Optimizer]) -> None:
    text, common = (inspect.getdoc(c) or "" for c in (rule, Optimizer))  # 3.13 takes indents away
    for name in [name for name in vars(rule) if name in rule.hyperparameters]:
        h = rule.hyperparameters[name]
        found = re.search(rf"^{name}  *(.*(?:\n .*)*)", text, re.MULTILINE)
        assert found, name
        entry = " ".join(found[1].split())
        if isinstance(h, Choice):
            assert f"{spelled(h.default)} (default)" in entry, name
            table = common if "see Optimizer" in entry else text
            missing = [c for c in h.choices if spelled(c) not in entry]
            assert all(re.search(rf"^ {{4}}{c} ", table, re.MULTILINE) for c in missing), name
        elif isinstance(h, Bounded):
            assert f"in {h.interval.text}" in entry, name
            given = re.search(r"default ([^\s,;:]+)", entry)
            assert given, name
            assert h.default == (None if given[1] == "None" else float(given[1])), name
        elif isinstance(h, Several):
            given = re.search(r"default (\(.*?\))", entry)
            assert given, name
            assert h.default == ast.literal_eval(given[1]), name
            assert all(part.interval.text in entry for part in h.parts), name
        else:
            assert f"default {h.default}" in entry, name
        assert ("fixed at construction" in entry) == h.fixed, name


def test_a_class_that_does_not_match_its_kernel_fails_at_import(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(rules.Adam.states, "adam", ("exp_avg",))
    with pytest.raises(ImportError, match="adam: kernel, reference and class"):
        rules._verify()
    monkeypatch.setitem(rules.Adam.states, "adamant", ("exp_avg",))
    with pytest.raises(ImportError, match="adamant"):
        rules._verify()


# ---- What is shown


@pytest.mark.parametrize("rule", [*rules.RULES, *matrix.RULES])
def test_help_has_a_line_for_each_argument(rule: type[Optimizer]) -> None:
    text = " ".join((rule.__doc__ or "").split())
    for name in [name for name in vars(rule) if name in rule.hyperparameters]:
        entry = inspect.getdoc(rule.hyperparameters[name])
        assert entry, name
        assert f" {name} {entry}" in text, name
    assert all(inspect.getdoc(h) for h in rule.hyperparameters.values())
    assert all(inspect.getdoc(option) for option in rule.options.values())


def test_help() -> None:
    assert inspect.getdoc(schuss.AdamW.lr) == "learning rate, in [0, inf), default 1e-3"
    text = pydoc.plain(pydoc.render_doc(schuss.AdamW))
    for name in ("lr", "betas", "maximize", "clip_value"):
        assert re.search(rf"^ \|  {name}\n \|      \S", text, re.MULTILINE), name
    for name in ("grad_norm", "skipped_steps", "iterations"):
        assert re.search(rf"^ \|  {name}\n \|      The ", text, re.MULTILINE), name


def test_dir_is_what_is_public() -> None:
    public = {name for name in dir(schuss) if not name.startswith("__")}
    assert public == {*schuss.__all__, "minimize", "scipy"}  # these two need SciPy
    assert all(hasattr(schuss, name) for name in public)


DOORS = [
    "data",
    "flat",
    "functional",
    "gradients",
    "init",
    "loss_scale",
    "projections",
    "schedules",
]
DOORS += ["scipy", "threads", "torch"]


@pytest.mark.parametrize("name", DOORS)
def test_doors_say_what_is_theirs(name: str) -> None:
    if name == "torch" and find_spec("torch") is None:
        pytest.skip("torch is not installed: its optimizers were not looked up")
    door = importlib.import_module(f"schuss.{name}")
    assert door.__all__
    assert all(hasattr(door, own) for own in door.__all__)


# ---- Instruction sets

SHOW = "import schuss, json; print(json.dumps(schuss.show_config()))"


@pytest.mark.parametrize("isa", _core.found_isas())
def test_what_was_forced_is_what_runs(isa: str) -> None:
    done = python(SHOW, SCHUSS_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["isa"]["chosen"] == isa


def test_the_best_one_is_the_default() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "SCHUSS_ISA"}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True
    )
    isa = json.loads(done.stdout)["isa"]
    assert isa["chosen"] == isa["found"][0]
    assert set(isa["found"]) <= set(isa["compiled"])
    if sys.platform == "linux" and "avx2" in isa["compiled"]:
        flags = Path("/proc/cpuinfo").read_text()
        assert ("avx2" in isa["found"]) == (" avx2 " in flags)
        assert ("avx512" in isa["found"]) == (" avx512vl " in flags and " avx512dq " in flags)
        assert ("avx512bf16" in isa["found"]) == (" avx512_bf16 " in flags)
        amd = "AuthenticAMD" in flags
        assert ("avx512zen" in isa["found"]) == (amd and "avx512bf16" in isa["found"])


def test_an_unknown_set_is_an_error() -> None:
    done = python(SHOW, SCHUSS_ISA="mmx")
    assert done.returncode != 0
    assert "SCHUSS_ISA: unknown instruction set 'mmx'; this build has" in done.stderr


def test_show_config() -> None:
    config = schuss.show_config()
    assert config["version"] == schuss.__version__
    assert config["isa"]["chosen"] == _core.isa()
    assert config["threads"]["number"] >= 1
    assert config["threads"]["reason"]


# ---- A light import


def test_import_brings_numpy_and_the_standard_library_only() -> None:
    code = (
        "import sys, numpy; before = set(sys.modules); import schuss;"
        "print(*{m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    done = python(code)
    assert set(done.stdout.split()) <= {"schuss", "numpy"}, done.stderr


def test_without_scipy_only_what_needs_it_is_missing() -> None:
    code = (
        "import sys; sys.modules['scipy'] = None; import schuss, numpy as np;"
        "assert schuss.check_grad(np.sum, np.ones(2), np.ones(2)) < 1e-9; {}"
    )
    assert python(code.format("print('here')")).stdout == "here\n"
    for ask in ("schuss.minimize", "schuss.scipy"):
        done = python(code.format(ask))
        assert done.stderr.endswith("minimize: needs SciPy: pip install 'schuss[scipy]'\n")


def test_the_first_bfloat16_may_be_a_gradient() -> None:
    """It is known by its name, and needs no conversion, which would be warned of."""
    code = """
        import warnings
        import ml_dtypes, numpy as np, schuss
        warnings.simplefilter("error")
        opt = schuss.SGD([np.ones(3, np.float32)], convert=True)
        opt.step([np.ones(3, ml_dtypes.bfloat16)])
        """
    done = python(textwrap.dedent(code))
    assert done.returncode == 0, done.stderr


# ---- A build from source says in words what it lacks

LACKING = {
    "no compiler": ([], "no C++ compiler was found", "apt-get install g++"),
    "an old GCC": (["GNU", "9.4.0"], "wants GCC 10, clang 14", "this is GNU 9.4.0"),
    "an old clang": (["Clang", "13.0.1"], "wants GCC 10, clang 14", "this is Clang 13.0.1"),
    "MSVC": (["MSVC", "19.40"], "vector types of GCC and clang", "this is MSVC 19.40"),
}


@pytest.mark.parametrize(("compiler", "first", "last"), LACKING.values(), ids=LACKING)
def test_compiler(tmp_path: Path, compiler: list[str], first: str, last: str) -> None:
    cmake, make = shutil.which("cmake"), shutil.which("make")
    if cmake is None or make is None:
        pytest.skip("no CMake, or no make")
    script = tmp_path / "itself.cmake"  # behind what wraps it, which finds nothing without a PATH
    script.write_text("execute_process(COMMAND ${CMAKE_COMMAND} -E echo ${CMAKE_COMMAND})")
    cmake = subprocess.check_output([cmake, "-P", script], text=True).strip()
    command = [cmake, "-S", str(ROOT), "-B", str(tmp_path / "build"), "-G", "Unix Makefiles"]
    command += [f"-DCMAKE_MAKE_PROGRAM={make}"]
    if compiler:  # CMake is told what it would find out
        kind, version = compiler
        command += [f"-DCMAKE_CXX_COMPILER_{n}=ON" for n in ("FORCED", "ID_RUN")]
        command += [f"-DCMAKE_CXX_COMPILER_ID={kind}", f"-DCMAKE_CXX_COMPILER_VERSION={version}"]
        command += ["-DCMAKE_CXX_COMPILER=/bin/true"]
    done = subprocess.run(
        command, env={"PATH": ""}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert said.count("CMake Error") == 1
    assert first in said
    assert last in said


# ---- One version, wherever it is written


def test_one_version() -> None:
    version = schuss.__version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert newest is not None
    assert cited is not None
    assert version == newest[1] == cited[1].strip("\"'")
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
