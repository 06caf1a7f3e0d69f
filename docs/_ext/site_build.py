"""What the site needs of Sphinx: its pages, formulas as MathML, and links behind names in code.

Formulas are MathML, which browsers draw themselves: no script, no connection. The font that they
need for it, STIX Two Math, comes with the package ziamath; the site has the glyphs of our formulas.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from zlib import crc32

import ziamath
from docutils import nodes
from fontTools import subset
from latex2mathml.converter import convert
from pagemaker import whole
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

FONT = Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"
# Latin, Greek, their italics, arrows and operators, brackets.
GLYPHS = (
    "20-7E,D7,210E,391-3F5,2016,2026-2044,2190-21FF,2200-22FF,27E6-27EF,1D434-1D467,1D6E2-1D71B"
)
NAME = re.compile(r"(schuss\.)?([A-Za-z_]\w*(?:\.\w+)*)(?:\(.*\))?")


class Pages:
    """Every page as it is on the site."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def write(self, app: Sphinx) -> None:
        """Writes the pages that nobody writes; what is unchanged isn't built anew."""
        self.texts = whole.pages()
        root = Path(app.srcdir)
        for folder in whole.GENERATED:
            for old in (root / folder).rglob("*.md"):
                if old.relative_to(root).as_posix() not in self.texts:
                    old.unlink()
        for name, text in self.texts.items():
            file = root / name
            if name.partition("/")[0] in whole.GENERATED:
                file.parent.mkdir(parents=True, exist_ok=True)
                if not file.exists() or file.read_text() != text:
                    file.write_text(text)

    def changed(self, app: Sphinx, env: Any, *_: set[str]) -> list[str]:
        """The pages that are other ones than in the last build, though their files may be not."""
        before = getattr(env, "schuss_pages", {})
        now = {name: crc32(text.encode()) for name, text in self.texts.items()}
        env.schuss_pages = now
        return [name.removesuffix(".md") for name in now if now[name] != before.get(name)]

    def read(self, _: Sphinx, docname: str, content: list[str]) -> None:
        """Gives Sphinx a page in place of the file's text."""
        content[0] = self.texts.get(f"{docname}.md", content[0])


def visit_formula(translator: Any, node: nodes.Element) -> None:
    """A formula in a line."""
    translator.body.append(convert(node.astext(), display="inline"))
    raise nodes.SkipNode


def visit_display(translator: Any, node: nodes.Element) -> None:
    """A formula of its own."""
    formula = convert(node.astext(), display="block")
    translator.body.append(f'<div class="formula">{formula}</div>')
    raise nodes.SkipNode


class Names(SphinxPostTransform):
    """Makes links of names in code: `schuss.save`, `schuss.functional.adam(...)`, `AdamW`."""

    default_priority = 400

    def run(self, **_: Any) -> None:
        """Replaces those that the reference has, but for a page's own."""
        objects = self.env.domains.python_domain.objects
        for node in [*self.document.findall(nodes.literal)]:
            match = NAME.fullmatch(node.astext())
            inside = node.parent
            while inside is not None and not isinstance(inside, nodes.reference | nodes.title):
                inside = inside.parent
            if inside is not None or not match or not (match[1] or match[2][0].isupper()):
                continue
            found = objects.get(f"schuss.{match[2]}")
            if found and found.docname != self.env.docname:
                link = make_refnode(
                    self.app.builder,
                    self.env.docname,
                    found.docname,
                    found.node_id,
                    node.deepcopy(),
                )
                node.replace_self(link)


def write_font(app: Sphinx, error: Exception | None) -> None:
    """Puts the font of formulas beside the style sheets."""
    file = Path(app.outdir) / "_static" / "math.woff"
    if error is None and not file.exists():
        options = subset.Options(flavor="woff", layout_features=["*"], with_zopfli=False)
        font = subset.load_font(str(FONT), options)
        subsetter = subset.Subsetter(options)
        subsetter.populate(unicodes=subset.parse_unicodes(GLYPHS))
        subsetter.subset(font)
        subset.save_font(font, str(file), options)


def setup(app: Sphinx) -> dict[str, Any]:
    """Hands all of it to Sphinx."""
    pages = Pages()
    app.connect("builder-inited", pages.write)
    app.connect("env-get-outdated", pages.changed)
    app.connect("source-read", pages.read)
    app.add_html_math_renderer("mathml", (visit_formula, None), (visit_display, None))
    app.add_post_transform(Names)
    app.connect("build-finished", write_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
