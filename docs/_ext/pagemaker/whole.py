"""The site as a whole: what is written in docs/, what is generated, and files from elsewhere.

The front page and the parts come from README.md and docs/index.md, which read as they are on a
code host. Links between files become links between pages; what is no page, as a source file, gets
one as soon as somebody links to it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pagemaker import reference, rules

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
# Pages that lie elsewhere, and what they are called here.
ELSEWHERE = {
    "CHANGELOG.md": "about/changelog.md",
    "CONTRIBUTING.md": "about/contributing.md",
    "bench/README.md": "about/benchmarks.md",
}
GENERATED = ("about", "api", "rules", "source")  # folders in docs/, which git ignores
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2`*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)(\[(?:docs/)?[\w/.-]+\.md)?(\]\()([^)\s#]*)(#[^)\s]*)?(\))")
ITEM = re.compile(r"^- \[([^]]+)\]\(([^)]+)\)(?:: (.*(?:\n  .*)*))?$", re.MULTILINE)
LANGUAGES = {
    ".py": "python",
    ".hpp": "cpp",
    ".cpp": "cpp",
    "CMakeLists.txt": "cmake",
    ".toml": "toml",
}


class Section(NamedTuple):
    """A section of docs/index.md: a part of the site."""

    title: str
    page: str  # whose part it is
    text: str  # what stands before the list
    items: list[tuple[str, str, str]]  # title, page, what it is


def prose(text: str, change: Callable[[str], str]) -> str:
    """A text, of which all but the code between fences has been changed."""
    done, end = [], 0
    for fence in FENCE.finditer(text):
        done += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*done, change(text[end:])])


def headed(text: str) -> dict[str, str]:
    """The sections of a page by their headings; what is before the first is under ""."""
    found, heading = {"": ""}, ""
    for piece in re.split(r"(^## [^\n]*$|^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL):
        if piece.startswith("## "):
            heading = piece[3:]
            found[heading] = ""
        else:
            found[heading] += piece
    return found


# ---- The parts, from docs/index.md


def sections() -> list[Section]:
    """What docs/index.md lists, and what it can't, since it is generated."""
    found = []
    for heading, text in headed((DOCS / "index.md").read_text()).items():
        if not heading:
            continue
        link = re.fullmatch(r"\[(.*)\]\((.*)\)", heading)
        title = link[1] if link else heading
        page = link[2] if link else f"about/{title.lower().replace(' ', '-')}.md"
        items = [(t, p, " ".join(said.split())) for t, p, said in ITEM.findall(text)]
        if title == "Reference":
            said = "every class and function, with signatures, from the docstrings"
            items.insert(0, ("API reference", "api/index.md", said))
        found.append(Section(title, page, text.partition("\n- [")[0].strip(), items))
    return found


def toctree(pages: list[str]) -> str:
    """Pages that belong to this one."""
    lines = ["", "```{toctree}", ":hidden:", *(f"/{page}" for page in pages), "```", ""]
    return "\n".join(lines)


def cards(entries: list[tuple[str, str, str]], columns: str) -> Iterator[str]:
    """Pages as cards: title, page, what it is."""
    yield from (f"::::{{grid}} {columns}", ":gutter: 3", "")
    for title, page, said in entries:
        yield from (f":::{{grid-item-card}} {title}", f":link: /{page.removesuffix('.md')}")
        yield from (":link-type: doc", "", flat(said), ":::", "")
    yield from ("::::", "")


def flat(text: str) -> str:
    """A text whose links are words: a card is one link as a whole."""
    text = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", text)
    return text[:1].upper() + text[1:] if text.partition(" ")[0].isalpha() else text


def part(section: Section) -> str:
    """The page of a part that has none of its own."""
    lines = [f"# {section.title}", "", section.text, ""]
    lines += cards([(t, placed(p), said) for t, p, said in section.items], "1 1 2 2")
    return "\n".join(lines) + toctree([placed(page) for _, page, _ in section.items])


def placed(page: str) -> str:
    """A page's path in docs/, from one in docs/ that may lead out of it."""
    return on_site((DOCS / page).resolve()) or page


# ---- The front page and the first steps, from README.md


def front() -> str:
    """The front page: README's beginning, its command to install, and the parts."""
    readme = headed((ROOT / "README.md").read_text())
    head, code, rest = re.split(
        r"^(```python\n.*?^```)$", readme[""], maxsplit=1, flags=re.MULTILINE | re.DOTALL
    )
    name, said = head.strip().split("\n", 1)
    install = re.search(r"^```sh\n.*?^```$", readme["Install"], re.MULTILINE | re.DOTALL)
    assert install, "README.md shows no command under Install"
    quote, picture, *table, bullets = (
        block for block in re.split(r"\n\n(?! )", rest.strip()) if block
    )
    lines = ["---", "html_theme.sidebar_secondary.remove: true", "---", "", name, ""]
    lines += ["::::{grid} 1 1 2 2", ":gutter: 4", ":class-container: front", ""]
    lines += [":::{grid-item}", ":columns: 12 12 12 4", "", said.strip(), "", install[0], ""]
    lines += ["```{button-ref} /about/get-started", ":color: primary", "Get started", "```"]
    lines += ["```{button-ref} /rules", ":color: primary", ":outline:", "The rules", "```", ":::"]
    lines += [":::{grid-item}", ":columns: 12 12 12 8", "", code, ":::", "::::", ""]
    lines += [picture, "", *(line for block in table for line in (block, ""))]
    lines += ["::::{grid} 1 1 2 3", ":gutter: 3", ":class-container: points", ""]
    for point in re.split(r"^- ", bullets, flags=re.MULTILINE)[1:]:
        lines += [":::{grid-item-card}", " ".join(point.split()), ":::", ""]
    lines += ["::::", "", quote, "", "## Where to go on", ""]
    parts = [(s.title, placed(s.page), s.text) for s in sections()]
    lines += cards([("Get started", "about/get-started.md", START), *parts], "1 2 2 3")
    pages = ["about/get-started.md", *(page for _, page, _ in parts)]
    return "\n".join(lines) + toctree(pages)


START = "Installing it, and which call is the one for your trainer."


def start() -> str:
    """README's first steps: all its sections up to those that are the site's own."""
    readme = headed((ROOT / "README.md").read_text())
    kept = [h for h in readme if h and h not in ("Documentation", "How it is built")]
    return "\n".join(["# Get started", "", *(f"## {h}\n{readme[h]}" for h in kept)])


# ---- Links


def on_site(file: Path) -> str:
    """The page that a file of the repository is, by its path in docs/; "" where it is none."""
    name = file.relative_to(ROOT).as_posix()
    if name == "README.md":
        return "index.md"
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    return name.removeprefix("docs/") if file.is_relative_to(DOCS) else ""


def relinked(text: str, home: Path, page: str, sources: set[Path]) -> str:
    """The text of a file of a folder, as a page of the site: its links lead to pages."""

    def link(match: re.Match[str]) -> str:
        path, before, target, anchor, after = match.groups(default="")
        if not target or re.match(r"\w+:|/", target):
            return match[0]
        file = (home / target).resolve()
        if not (file.is_relative_to(ROOT) and file.exists()):  # Sphinx warns
            return match[0]
        to = on_site(file)
        if to == "index.md" and anchor and file.name == "README.md":
            to = "about/get-started.md"
        if not to:
            sources.add(file)
            to = source_page(file)
        if path and file.suffix == ".md":  # a page's name says more than its path
            path = "[" + title(file)
        return path + before + os.path.relpath(to, Path(page).parent) + anchor + after

    return prose(text, lambda part: LINK.sub(link, part))


def title(file: Path) -> str:
    """A page's heading."""
    found = re.search(r"^# (.*)$", file.read_text(), re.MULTILINE)
    assert found, file
    return found[1]


def source_page(file: Path) -> str:
    """The page of a source file or a folder."""
    return f"source/{file.relative_to(ROOT).as_posix()}.md"


def source(file: Path) -> str:
    """A source file with its lines numbered; of a folder, a list."""
    name = file.relative_to(ROOT).as_posix()
    lines = ["---", "orphan: true", "---", "", f"# {name}", ""]
    if file.is_dir():
        lines += [f"- [{f.name}]({file.name}/{f.name}.md)" for f in files_in(file)]
    else:
        language = LANGUAGES.get(file.suffix) or LANGUAGES.get(file.name, "text")
        lines += [
            f"````{{literalinclude}} /../{name}",
            f":language: {language}",
            ":linenos:",
            "````",
        ]
    return "\n".join([*lines, ""])


def files_in(folder: Path) -> list[Path]:
    """The source files that lie in a folder."""
    return sorted(f for f in folder.iterdir() if f.suffix in LANGUAGES)


# ---- All of it


def written() -> dict[str, str]:
    """The pages in docs/ as they are there, by path."""
    files = [*DOCS.glob("*.md"), *DOCS.glob("examples/*.md"), *DOCS.glob("gallery/*.md")]
    return {file.relative_to(DOCS).as_posix(): file.read_text() for file in sorted(files)}


def generated() -> dict[str, str]:
    """The pages that are in no file, by path; links as if they lay there."""
    found = {s.page: part(s) for s in sections() if s.page.startswith("about/")}
    return found | {"about/get-started.md": start()} | rules.pages() | reference.pages()


def pages() -> dict[str, str]:
    """Every page of the site, by its path in docs/."""
    sources: set[Path] = set()
    own = written() | {"index.md": front()}
    for section in sections():
        if section.page in own and section.page != "index.md":
            own[section.page] += toctree([placed(page) for _, page, _ in section.items])
    own["rules.md"] += toctree([f"rules/{rules.stem(rule)}.md" for rule in rules.EVERY])
    listed = re.findall(r"^## \[.*\]\((\w+\.md)\)$", own["examples/index.md"], re.MULTILINE)
    own["examples/index.md"] += toctree([f"examples/{page}" for page in listed])
    made = generated()
    listed = [page for _, page, _ in ITEM.findall(made["api/index.md"]) if page[0] != "."]
    made["api/index.md"] += toctree([f"api/{page}" for page in listed])
    done = {}
    for page, text in (own | made).items():
        at_root = page in ("index.md", "about/get-started.md")
        home = ROOT if at_root else DOCS if page.startswith("about/") else (DOCS / page).parent
        done[page] = relinked(text, home, page, sources)
    for name, page in ELSEWHERE.items():
        if (file := ROOT / name).exists():
            done[page] = relinked(file.read_text(), file.parent, page, sources)
    sources |= {file for folder in sources if folder.is_dir() for file in files_in(folder)}
    return done | {source_page(file): source(file) for file in sorted(sources)}
