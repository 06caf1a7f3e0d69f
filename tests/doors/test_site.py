"""The site: pages that are made of docstrings and lists, and, where Sphinx is, all as it is built.

`pip install '.[docs]'` brings Sphinx. What can't be looked at in a browser is skipped, and says so.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import schuss
from doors.pages import ROOT, blocks, run

sys.path.insert(0, str(ROOT / "docs" / "_ext"))

from pagemaker import docstrings, rules, whole
from pagemaker.formulas import translated

PAGES = whole.pages()


# ---- Formulas


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("x - lr*g", r"$x - \mathrm{lr}\;g$"),
        ("v*g*g", r"$v\,g^2$"),
        ("a*b/c", r"$a\,\frac{b}{c}$"),
        ("a*b / c", r"$\frac{a\,b}{c}$"),
        ("a * b*c / (d + e)", r"$a\,\frac{b\,c}{d + e}$"),
        ("a/b/c", r"$\frac{\frac{a}{b}}{c}$"),
        ("(a + b)*(c - d)", "$(a + b)\\,(c - d)$"),
        ("a - (b - c)", "$a - (b - c)$"),
        ("1 - beta1^(t - 1)", r"$1 - \beta_{1}^{t - 1}$"),
        ("L^(-1/4) g R^(-1/4)", r"$L^{-1/4}\,g\,R^{-1/4}$"),
        ("u u^T", r"$u\,u^{\top}$"),
        ("sqrt(v/c) + eps", r"$\sqrt{\frac{v}{c}} + \varepsilon$"),
        ("max(|x|, 1)", r"$\mathrm{max}(\left|x\right|, 1)$"),
        ("|f - fhat|/|f|", r"$\frac{\left|f - \hat{f}\right|}{\left|f\right|}$"),
        ("d*<g, x0 - x>", r"$d\,\left\langle g, x_{0} - x\right\rangle$"),
        ("lr_s*weight_decay", r"$\mathrm{lr}_{s}\;\mathrm{weight\_decay}$"),
        ("d' = d*|s|_1", r"$d' = d\,\left|s\right|_1$"),
        ("x where q > 0, else -x", "$x$ where $q > 0$, else $-x$"),
        ("w*(mean of g*g)", r"$w\,(\text{mean of }g^2)$"),
        ("d = the larger of b and c", "$d =$ the larger of $b$ and $c$"),
        ("eta*lambd*t0", r"$\eta\,\lambda\,t_{0}$"),
        ("by a factor of k", "by a factor of $k$"),
        ("u's size, of an m x n matrix", "u's size, of an m x n matrix"),
        ("by `step(x)`, and x", "by `step(x)`, and $x$"),
        ("x = (1 -", "`x = (1 -`"),
        ("x = f[1]", "`x = f[1]`"),
    ],
)
def test_formulas(line: str, wanted: str) -> None:
    assert translated(line) == re.sub(r"\$([^$]*)\$", r"{math}`\1`", wanted)


def cells(rule: type[schuss.Optimizer]) -> Iterator[str]:
    """The pieces of a rule's update."""
    for block in docstrings.blocks(rule.__doc__ or ""):
        if block.kind == "symbols":
            for line in block.text.split("\n"):
                yield from docstrings.GAP.split(line.strip())


@pytest.mark.parametrize("rule", rules.EVERY, ids=rules.stem)
def test_every_update_is_a_formula(rule: type[schuss.Optimizer]) -> None:
    """No piece stays as it was because the grammar lacks it, and no name or number is lost."""
    for cell in cells(rule):
        markdown = translated(cell, rules.WORDS)
        assert markdown != f"`{cell}`"
        plain = re.sub(r"\\(frac|left|right|mathrm|text|sqrt|hat|math)\b", "", markdown)
        for name in re.findall(r"[A-Za-z]+|\d+", cell.replace("hat", "").replace("sqrt", "")):
            spelt = {"eps": "varepsilon", "lambd": "lambda", "T": "top"}.get(name, name)
            assert spelt in plain or name in plain, (cell, markdown)


# ---- The pages of rules


@pytest.mark.parametrize("rule", rules.EVERY, ids=rules.stem)
def test_a_rule_has_a_page(rule: type[schuss.Optimizer], tmp_path: Path) -> None:
    """With all its arguments, presets and kernels, and code that runs."""
    text = PAGES[f"rules/{rules.stem(rule)}.md"]
    arguments = set(re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE))
    told = {name for names in arguments for name in re.findall(r"`(\w+)`", names)}
    of_all = {name for names in rules.told(schuss.Optimizer) for name in names.split(", ")}
    assert rule.hyperparameters.keys() <= told | of_all
    assert all(f"`{preset}`" in text or f"| {preset} |" in text for preset in rule.presets)
    if rule in schuss.rules.RULES:
        for kernel in rule.states:
            assert f"\ndef {kernel}(" in text
            assert f"\ntemplate <class T> struct {kernel} {{\n" in text
    (example,) = [block for block in blocks(text) if block.language == "python"]
    assert run(example, rule.__name__, {}) == []


def test_every_name_is_in_the_reference() -> None:
    """Of the package, and of its modules that need no other software."""
    found = set(re.findall(r"\{py:\w+\} (schuss[\w.]*)", "\n".join(PAGES.values())))
    modules = [schuss, schuss.data, schuss.functional, schuss.init, schuss.projections]
    modules += [schuss.schedules]
    for module in modules:
        names = [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
        assert {f"{module.__name__}.{name}" for name in names} <= found


def test_code_of_all_pages_is_run_somewhere() -> None:
    """Pages of docs/ are test_docs' and test_examples'; of those that are made, rules have code."""
    for page, text in PAGES.items():
        if any(block.language == "python" for block in blocks(text)):
            own = (ROOT / "docs" / page).parent in (ROOT / "docs", ROOT / "docs" / "examples")
            assert own or page.startswith("rules/") or page == "about/get-started.md", page


# ---- The site as it is built


class Reader(HTMLParser):
    """What a page links to, what it loads, and what its parts are called."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.names |= {own[key] or "" for key in ("id", "name") if key in own}
        if tag == "a" and own.get("href"):
            self.links.append(own["href"] or "")
        if tag in ("link", "script", "img", "iframe") and (own.get("rel") != "canonical"):
            self.loaded += [own[key] or "" for key in ("src", "href") if key in own]


def build(to: Path) -> Path:
    """All of it, without a warning."""
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-n",
        "-q",
        "-j2",
        "-b",
        "html",
    ]
    done = subprocess.run(
        [*command, "-d", to / "doctrees", ROOT / "docs", to / "html"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return to / "html"


def astray(file: Path, pages: dict[Path, Reader]) -> Iterator[str]:
    """Links of a page that lead nowhere, and what it loads from elsewhere."""
    for link in (*pages[file].links, *pages[file].loaded):
        url = urlsplit(link)
        to = (file.parent / unquote(url.path)).resolve() if url.path else file
        if url.scheme or url.netloc:
            if link in pages[file].loaded:
                yield f"{file.name}: loads {link}"
        elif not to.exists():
            yield f"{file.name}: {link} leads nowhere"
        elif url.fragment and to in pages and unquote(url.fragment) not in pages[to].names:
            yield f"{file.name}: {link}: no such part"


def sideways(files: Iterable[Path], browser: Any) -> Iterator[str]:
    """Pages that are wider than a telephone or a screen."""
    page = browser.new_context(java_script_enabled=False).new_page()
    for width in (390, 1400):
        page.set_viewport_size({"width": width, "height": 900})
        for file in (file for file in files if "source" not in file.parts):
            page.goto(file.as_uri())
            if page.evaluate("document.documentElement.scrollWidth") > width:
                yield f"{file.name} in {width}"


@pytest.mark.timeout(900)
def test_the_site(tmp_path: Path) -> None:
    """It is built; each link leads to a page and a part of it that are there; nothing comes from
    elsewhere; what is wide, as tables, code and formulas, scrolls within itself.

    All in one test, since a build writes pages into docs/.
    """
    if missing := [name for name in ("sphinx", "myst_parser", "ziamath") if not find_spec(name)]:
        pytest.skip(f"needs {', '.join(missing)}: pip install '.[docs]'")
    site = build(tmp_path)
    files = [file for file in site.rglob("*.html") if "_static" not in file.parts]
    pages = {file: Reader(file.read_text()) for file in files}
    assert len(pages) > len(rules.EVERY) + 50
    assert sorted(text for file in pages for text in astray(file, pages)) == []
    front = (site / "index.html").read_text()
    assert all(text in front for text in ("<h1>Schuss", "sd-btn", "cost.svg", "<table"))
    assert "<math" in (site / "rules" / "adam.html").read_text()
    assert (site / "_static" / "math.woff").stat().st_size > 10_000

    api = pytest.importorskip("playwright.sync_api", reason="built; a look needs playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("built; a look at it needs Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        wide = [*sideways(files, browser)]
        browser.close()
    assert wide == []
