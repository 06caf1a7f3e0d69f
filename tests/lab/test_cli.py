"""The command line: what it prints, and how it says that something is wrong."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import requires
from pathlib import Path

import numpy as np
import pytest

import schuss
from schuss.engine.declare import REQUIRED
from schuss.lab import catalogue, demo
from schuss.lab import command as cli
from schuss.rules import RULES, matrix


def status(argv: Sequence[str]) -> object:
    """The exit status that a shell would see."""
    try:
        return cli.main(argv)
    except SystemExit as stop:
        return stop.code


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == list(cli.facts(schuss.show_config()))
    assert lines[0].split() == ["version", schuss.__version__]


def test_facts_are_lines() -> None:
    config = {"version": "1", "isa": {"found": ["b", "a"]}, "threads": {"number": 2}}
    lines = [line.split() for line in cli.facts(config)]
    assert lines == [["version", "1"], ["isa", "found", "b,", "a"], ["threads", "number", "2"]]


def output(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command prints: nothing that a terminal of 100 columns would break."""
    assert cli.main(argv) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    return text


def test_rules(capsys: pytest.CaptureFixture[str]) -> None:
    head, *lines = output(capsys, "rules").splitlines()
    assert head.split() == ["rule", "state", "[with", "options]", "bytes", "source"]
    assert [line.split()[0] for line in lines[: len(RULES)]] == [r.__name__ for r in RULES]
    assert lines[2].split() == ["NAG", "momentum_buffer", "20", "Nesterov", "1983"]
    assert lines[4].split()[1:4] == ["square_avg", "[momentum_buffer]", "[grad_avg]"]
    assert lines[4].split()[4:7] == ["20", "to", "36"]
    _, costs = "\n".join(lines).split("\nbytes of state ")
    forms, *lines = costs.splitlines()
    assert forms.split() == [*catalogue.FORMS]
    assert [line.split()[0] for line in lines[: len(RULES)]] == [r.__name__ for r in RULES]
    assert lines[4].split()[1:] == ["4", "to", "12", "2", "to", "6", "1.02", "to", "3.05"]


@pytest.mark.parametrize("form", catalogue.FORMS)
@pytest.mark.parametrize("rule", RULES)
def test_bytes_of_state(rule: type[schuss.Optimizer], form: str) -> None:
    """What the list says is what an optimizer has."""
    x = np.zeros(640, np.float32)
    opt = rule(x, state_dtype=form)
    assert opt.nbytes == x.size * catalogue.kept(rule.kernel(rule.defaults()), form)


def test_how_state_is_stored() -> None:
    every = [a for rule in RULES for k in rule.states for a in catalogue.stored(rule, k)]
    assert {a.name: a.words for a in every} == {
        "Mean": "to nearest, in 8 bits by dither",
        "Slow": "by dither",
        "Second": "by dither, never negative",
        "Peak": "to nearest, never negative",
        "Exact": "to nearest, not in 8 bits",
        "Point": "by dither, not in 8 bits",
    }


@pytest.mark.parametrize("rule", RULES)
def test_one_rule(capsys: pytest.CaptureFixture[str], rule: type[schuss.Optimizer]) -> None:
    """Its docstring, what each preset changes, and the state of each kernel."""
    text = output(capsys, "rules", rule.__name__.upper())
    assert text.startswith(f"schuss.{rule.__name__}\n\n{inspect.getdoc(rule)}")
    assert "Options of every rule: see Optimizer." in " ".join(text.split())  # everything else, too
    assert all(f"\n{kernel} " in text for kernel in rule.states)
    for kernel in rule.states:
        sizes = r"\s+".join(f"{catalogue.kept(kernel, form):.3g}" for form in catalogue.FORMS)
        found = re.search(rf"^{kernel}\s+{sizes}$", text, re.MULTILINE)
        assert (found is not None) == any(rule.states.values())
        for a in catalogue.stored(rule, kernel):
            assert re.search(rf"^{a.state}\s+{a.name}\s+{a.words}$", text, re.MULTILINE)
    assert all(re.search(rf"\bnumber {name}\b", text) for name in (*rule.memory, *rule.shared))
    table = text.split("\npreset ")[1].split("\nAs the default: ")[0]
    head, *rows = (line.split() for line in table.splitlines())
    default, *changed = head
    same = text.split("\nAs the default: ")[1].split("\n")[0].split(", ")
    assert default == "default"
    assert {*changed, *same} - {"none"} == rule.presets.keys()
    cells = {row[0]: dict(zip(head, row[1:], strict=True)) for row in rows}
    for preset, own in rule.presets.items():
        for name, value in own.items():
            declared = rule.hyperparameters[name].default
            if value != declared:
                wanted = "required" if value is REQUIRED else str(value)
                assert cells[name][preset] == wanted.replace(", ", ",")
                assert cells[name]["default"] == str(declared).replace(", ", ",")


@pytest.mark.parametrize("rule", [*matrix.RULES, matrix.MatrixRule])
def test_rules_for_matrices(
    capsys: pytest.CaptureFixture[str], rule: type[matrix.MatrixRule]
) -> None:
    """In a list of their own; each with what they have in common, and the shapes of its state."""
    text = output(capsys, "rules", rule.__name__.lower())
    assert text.startswith(f"schuss.{rule.__name__}\n\n{inspect.getdoc(rule)}")
    assert text.count("\nschuss.MatrixRule\n") == (rule is not matrix.MatrixRule)
    assert text.count("\npreset ") == (rule is schuss.Muon)
    if rule in matrix.RULES:
        assert f"\n{rule.__name__} " in output(capsys, "rules").split("\nfor matrices ")[1]
        assert all(re.search(rf"^{name} +[mn] x [mn]$", text, re.MULTILINE) for name in rule.kept)


def test_what_all_rules_have_in_common(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "rules", "optimizer")
    assert text == f"schuss.Optimizer\n\n{inspect.getdoc(schuss.Optimizer)}\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert status(["--version"]) == 0
    assert capsys.readouterr().out == f"schuss {schuss.__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [["--help"], *([command, "--help"] for command in ("info", "rules", "demo", "compare"))],
    ids=" ".join,
)
def test_help(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert status(argv) == 0
    assert capsys.readouterr().out.startswith("usage: schuss")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    status(["--help"])
    output = capsys.readouterr().out
    assert all(f"  {name} " in output for name in cli.COMMANDS)


@pytest.mark.parametrize("argv", [[], ["help"]], ids=" ".join)
def test_help_without_asking(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    status(["--help"])
    wanted = capsys.readouterr().out
    assert status(argv) == 0
    assert capsys.readouterr().out == wanted


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    status(["trace", "own", "--help"])
    wanted = capsys.readouterr().out
    assert status(["help", "trace", "own"]) == 0
    assert capsys.readouterr().out == wanted
    assert wanted.startswith("usage: schuss trace own ")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--seed 1", "'1' is unknown"),
        ("dem", "command: 'dem' is unknown; did you mean 'demo'?"),
        ("train", "command: 'train' is unknown; "),
        ("info --seed 1", "unrecognized arguments: --seed 1"),
        ("rules newton", "rule: 'newton' is unknown; `schuss rules` lists them"),
        ("rules demo", "rule: 'demo' is unknown; `schuss rules` lists them"),
        ("rules adamv", "rule: 'adamv' is unknown; did you mean 'adam'?"),
        ("rules adam sgd", "unrecognized arguments: sgd"),
        ("demo extra", "unrecognized arguments: extra"),
        ("demo --rule newton", "--rule: 'newton' is unknown; `schuss rules` lists them"),
        ("demo --rule adm", "--rule: 'adm' is unknown; did you mean 'adam'?"),
        ("demo --lr -1", "--lr: '-1' is no number in [0, inf)"),
        ("demo --lr nan", "--lr: 'nan'"),
        ("demo --lr inf", "--lr: 'inf'"),
        ("demo --lr fast", "--lr: 'fast'"),
        ("demo --lr", "--lr: expected one argument"),
        ("demo --epochs 0", "--epochs: '0' is no whole number in [1, inf)"),
        ("demo --epochs 1.5", "--epochs: '1.5'"),
        ("demo --batch-size 0", "--batch-size: '0'"),
        ("demo --batch-size -8", "--batch-size: '-8'"),
        ("demo --hidden 0", "--hidden: '0'"),
        ("demo --hidden 64,64", "--hidden: '64,64'"),
        ("demo --hidden", "--hidden: expected at least one argument"),
        ("demo --hidden 65537", "--hidden: '65537'"),
        ("demo --seed -1", "--seed: '-1'"),
        ("demo --seed 4294967296", "--seed: '4294967296'"),
        ("demo --threads 0", "--threads: '0'"),
        ("demo --dtype float8", "--dtype: invalid choice: 'float8'"),
        ("demo --gradient-dtype int8", "--gradient-dtype: invalid choice: 'int8'"),
        ("demo --gradient-dtype float64", 'grads["0.w"]: float64, but params["0.w"] is float32'),
        ("demo --dtype bfloat16 --gradient-dtype float64", 'params["0.w"] is bfloat16'),
        ("demo --dtype float64 --gradient-dtype float32", 'params["0.w"] is float64'),
        ("demo --dtype float64 --gradient-dtype bfloat16", 'params["0.w"] is float64'),
        ("demo --dtype float16 --master --stochastic-rounding", "not with master"),
        ("demo --backend cuda", "--backend: invalid choice: 'cuda'"),
        (
            "demo --plot picture.txt",
            "--plot: 'picture.txt' is no picture; its name ends in one of",
        ),
        ("demo --plot picture", "--plot: 'picture' is no picture"),
        ("demo --plot missing/picture.png", "--plot: 'missing/picture.png': No such file"),
        ("demo --plot old.png", "'old.png' exists; --force overwrites it"),
        ("demo --plot folder.png", "--plot: 'folder.png': Is a directory"),
        ("demo --rule sgd --lr 1e9 --plot picture.png", "a smaller learning rate"),
        ("demo --rule sgd --lr 1e9 --dtype float16", "a smaller learning rate"),
        ("demo --rule sgd --lr 1e9 --dtype bfloat16 --backend numpy", "a smaller learning rate"),
        ("compare extra", "unrecognized arguments: extra"),
        ("compare --rules newton", "--rules: 'newton' is unknown; `schuss rules` lists"),
        ("compare --rules sgd,,adam", "--rules: '' is unknown"),
        ("compare --task mnist", "--task: invalid choice: 'mnist'"),
        ("compare --seeds 0", "--seeds: '0' is no whole number in [1, inf)"),
        ("compare --steps 0", "--steps: '0'"),
        ("compare --steps 9 --epochs 1", "--epochs: not allowed with argument --steps"),
        ("compare --task rosenbrock --epochs 1", "--epochs: rosenbrock has none; use --steps"),
        ("compare --lr sgd", "--lr: 'sgd': wanted RULE=LR, such as adamw=0.001"),
        ("compare --lr sgd=", "--lr: '' is no number in [0, inf)"),
        ("compare --lr sgd=fast", "--lr: 'fast' is no number in [0, inf)"),
        ("compare --lr newton=1", "--lr: 'newton' is unknown"),
        ("compare --rules sgd --lr adam=1", "Adam: not one of --rules"),
        ("compare --rules sgd --options adam:eps=1", "Adam: not one of --rules"),
        ("compare --rules sgd --options sgd", "'sgd' is not of the form rule:option=value,..."),
        ("compare --rules sgd --options sgd:lr=1", "learning rates are given by --lr"),
        ("compare --rules sgd --options sgd:eps=1", "SGD: "),
        ("compare --rules sgd --options sgd:momentum=2,nesterov=yes", "SGD: nesterov: 'yes'"),
        ("compare --rules sgd --options sgd:momentum=-1", "SGD: momentum: -1.0 is out of range"),
        ("compare --rules rprop --lr rprop=0", "Rprop: lr: 0.0 is out of range"),
        ("compare --target -1", "--target: '-1' is no number in [0, inf)"),
        (
            "compare --plot picture.txt",
            "--plot: 'picture.txt' is no picture; its name ends in one of",
        ),
        ("compare --plot folder.png", "--plot: 'folder.png': Is a directory"),
        ("compare --json missing/numbers.json", "--json: 'missing/numbers.json': No such file"),
        ("compare --json old.png", "'old.png' exists; --force overwrites it"),
        ("bench --plot old.png", "'old.png' exists; --force overwrites it"),
        ("trace minima --out old.png", "'old.png' exists; --force overwrites it"),
    ],
)
def test_bad_value_is_one_line_and_status_2(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    argv: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    Path("old.png").write_bytes(b"precious")
    assert status(argv.split()) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("schuss")
    assert said in error
    assert {path.name for path in tmp_path.iterdir()} == {"folder.png", "old.png"}
    assert Path("old.png").read_bytes() == b"precious"


def test_picture_is_refused_before_the_training(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(demo, "train")
    assert status(["demo", "--plot", "missing/picture.png"]) == 2
    assert capsys.readouterr().out == ""


def test_combination_is_refused_before_the_training(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(demo, "train")
    assert status(["demo", "--master", "--stochastic-rounding"]) == 2
    assert capsys.readouterr().out == ""


def test_interrupt_is_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "loss_and_gradients", interrupted)
    assert status(["demo"]) == 130
    assert capsys.readouterr().err == ""


def test_lack_of_memory_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise MemoryError("Unable to allocate 466. TiB")

    monkeypatch.setattr(demo, "network", full)
    assert status(["demo"]) == 2
    assert capsys.readouterr().err == "schuss: Unable to allocate 466. TiB\n"


@pytest.mark.parametrize("command", ["info", "rules", "demo"])
def test_closed_pipe_is_quiet(command: str) -> None:
    argv = [sys.executable, "-m", "schuss", command]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.parametrize(
    ("package", "extra", "argv"),
    [
        ("sklearn", "demo", "demo"),
        ("rich", "cli", "demo"),
        ("rich", "cli", "compare"),
        ("sklearn", "demo", "compare"),
        ("sklearn", "demo", "trace regression --out {}.png"),
        ("matplotlib", "cli", "demo --plot {}.png"),
        ("matplotlib", "cli", "compare --plot {}.png"),
        ("matplotlib", "cli", "bench --plot {}.png"),
        ("matplotlib", "cli", "trace minima --out {}.png"),
        ("ml_dtypes", "demo", "demo --dtype bfloat16"),
        ("scipy", "scipy", "trace constrained --out {}.png"),
    ],
)
def test_missing_package_names_its_extra(
    tmp_path: Path, package: str, extra: str, argv: str
) -> None:
    own = argv.format(tmp_path / "picture").split()
    run = python(
        f"import sys; sys.modules[{package!r}] = None\n"
        f"from schuss.lab.command import main; main(['info']); sys.exit(main({own}))"
    )
    assert run.returncode == 2
    assert run.stderr == f"schuss: No module named '{package}'; pip install 'schuss[{extra}]'\n"
    assert run.stdout.startswith("version")


def test_extras_have_what_they_are_named_for() -> None:
    """The smallest one that has the package, by the installed package's own word."""
    names = {"sklearn": "scikit-learn"}
    needs = requires("schuss") or []
    for package, extra in cli.EXTRAS.items():
        own = [n for n in needs if re.match(rf"{names.get(package, package)}\b", n)]
        assert any(f'extra == "{extra}"' in n.replace("'", '"') for n in own), package


OPTIONAL = ("sklearn", "rich", "matplotlib", "ml_dtypes", "scipy")


@pytest.mark.parametrize(
    "own",
    [["rules", "adam"], ["trace"], ["bench", "--seconds", "0", "--workload", "1 array of 1000"]],
    ids=" ".join,
)
def test_commands_that_need_numpy_alone(own: list[str]) -> None:
    run = python(
        f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}))\n"
        f"from schuss.lab.command import main; sys.exit(main({own}))"
    )
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_pictures_in_the_formats_of_matplotlib(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"picture.{suffix.upper()}"
    argv = ["trace", "minima", "--out", str(path)]
    assert status(argv) == 0
    first = path.read_bytes()
    assert first.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    path.write_bytes(b"old")
    assert status(argv) == 2
    assert path.read_bytes() == b"old"
    assert status([*argv, "--force"]) == 0
    assert path.read_bytes()[:4] == first[:4]


def test_import_is_light() -> None:
    run = python("import sys, schuss.lab.command; print(*sys.modules, sep='\\n')")
    assert not {"sklearn", "rich", "matplotlib", "ml_dtypes", "schuss.lab.demo"} & set(
        run.stdout.split()
    )


@pytest.mark.parametrize("command", [[sys.executable, "-m", "schuss"], ["schuss"]], ids=" ".join)
@pytest.mark.parametrize("name", ["SCHUSS_NUM_THREADS", "SCHUSS_ISA"])
def test_a_wrong_environment_is_one_line(command: list[str], name: str) -> None:
    first = shutil.which(command[0], path=str(Path(sys.executable).parent))
    if first is None:
        pytest.skip("the command is not installed beside the interpreter")
    run = subprocess.run(
        [first, *command[1:], "info"],
        env={**os.environ, name: "abc"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.startswith(f"schuss: {name}: ")
    assert run.stderr.count("\n") == 1
    own = python(f"import os; os.environ[{name!r}] = 'abc'; import schuss")
    assert own.stderr.splitlines()[-1].startswith(f"ValueError: {name}: ")


def test_module_runs() -> None:
    command = [sys.executable, "-m", "schuss", "--version"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout == f"schuss {schuss.__version__}\n"
