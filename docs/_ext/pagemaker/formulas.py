"""The docstrings' formulas, `x = x - lr*m/(sqrt(v) + eps)`, in LaTeX, with the words around them.

A line is read as a whole: numbers, names and operators are mathematics, English words are words,
and within brackets words are part of a formula: `w*(mean of g*g along each row)`. What this grammar
doesn't know raises UnsureError, and stays on the page as it stands in the docstring.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

GREEK = {
    "alpha": r"\alpha", "beta": r"\beta", "gamma": r"\gamma", "eps": r"\varepsilon",
    "eta": r"\eta", "lambd": r"\lambda", "mu": r"\mu", "rho": r"\rho",
}  # fmt: skip
FUNCTIONS = {"clamp", "max", "mean", "min", "sign"}
RELATIONS = {"=": "=", "<": "<", ">": ">", "<=": r"\le", ">=": r"\ge"}
OPERATORS = {*"+-*/^|", *RELATIONS}
# Words also where an operator stands beside them: "where q < 0, else -z".
WORDS = {
    "as", "at", "by", "else", "from", "in", "is", "of", "that", "the", "then", "to", "what",
    "where", "while", "with",
}  # fmt: skip

TOKEN = re.compile(
    r"""(?P<space>\ *)(?:
        (?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)
      | (?P<string>"[^"]*")
      | (?P<word>[A-Za-z]{2,}(?:-[A-Za-z]{2,})+|[A-Za-z]+'s\b|[a-z]{3,}[-+](?=[:,;]|$)|m\ x\ n\b)
      | (?P<name>[A-Za-z_]\w*'?)
      | (?P<operator><=|>=|\.\.\.|[-+*/^()|<>=,;:.])
    )""",
    re.VERBOSE,
)

SIMPLE = re.compile(r"\\?\w+(?:_\{\w+\})?")  # what has a square without brackets


class UnsureError(ValueError):
    """A line that is no formula of this grammar."""


class Token(NamedTuple):
    """A piece of a line."""

    kind: str
    text: str
    spaced: bool  # whether a space is before it


class Factor(NamedTuple):
    """A factor of a product, and what is in it where it is a bracket."""

    latex: str
    inner: str | None = None

    @property
    def bare(self) -> str:
        """It without the brackets, for a fraction's lines."""
        return self.latex if self.inner is None else self.inner


def product(factors: list[Factor]) -> Factor:
    """Factors side by side, words further apart than letters."""
    found = factors[0]
    for before, after in pairwise(factors):
        words = before.latex.endswith("}") and before.latex.startswith(r"\mathrm")
        space = r"\;" if words or after.latex.startswith(r"\mathrm") else r"\,"
        found = Factor(found.latex + space + after.latex)
    return found


def bracketed(inner: str) -> str:
    """In brackets, as high as what is in them."""
    return rf"\left({inner}\right)" if re.search(r"\\frac|\\sqrt", inner) else f"({inner})"


def tokens(line: str) -> list[Token]:
    """The pieces of a line."""
    found, end = [], 0
    while end < len(line.rstrip()):
        match = TOKEN.match(line, end)
        if match is None:
            raise UnsureError(line[end:])
        end = match.end()
        kind = match.lastgroup or ""
        found.append(Token(kind, match[kind], bool(match["space"])))
    return found


def symbol(name: str) -> str:
    """A name as it is written in formulas."""
    if name.endswith("'"):
        return symbol(name[:-1]) + "'"
    if re.fullmatch(r"[a-z]hat", name):
        return rf"\hat{{{name[0]}}}"
    base, index = re.fullmatch(r"(.*?)(\d*|_\w)", name).groups()  # type: ignore[union-attr]
    if index:
        return f"{symbol(base)}_{{{index.lstrip('_')}}}"
    if len(name) == 1:
        return name
    return GREEK.get(name) or r"\mathrm{" + name.replace("_", r"\_") + "}"


class Reader:
    """Reads a line from left to right. `words` are names that stand for themselves here."""

    def __init__(self, line: str, words: frozenset[str] = frozenset()) -> None:
        self.tokens, self.at, self.words = tokens(line), 0, words
        self.slashes = 0  # within how many exponents, where fractions are in one line
        self.bars = 0  # of those that are open, since the last bracket
        self.end = ""  # of the bracket that is open

    def peek(self, ahead: int = 0) -> Token:
        """A token to come."""
        i = self.at + ahead
        return self.tokens[i] if 0 <= i < len(self.tokens) else Token("end", "", False)

    def take(self, *texts: str) -> bool:
        """Whether the next one is an operator of these, which is behind us then."""
        found = self.peek().kind == "operator" and self.peek().text in texts
        self.at += found
        return found

    def need(self, text: str) -> None:
        """Takes an operator that has to be there."""
        if not self.take(text):
            raise UnsureError(f"{self.peek().text!r}, where {text!r} was wanted")

    def is_word(self, ahead: int = 0) -> bool:
        """Whether a token is English: not beside an operator, and nothing that only symbols are."""
        kind, text, _ = self.peek(ahead)
        before, after = self.peek(ahead - 1), self.peek(ahead + 1)
        if kind == "word" or text in WORDS | self.words:
            return True
        if kind != "name" or self.called(ahead) or text in GREEK or re.search(r"[\d_']|hat$", text):
            return False
        if text == "a":  # the article
            return after.kind in ("name", "word") and after.spaced and self.is_word(ahead + 1)
        enclosed = before.text in ("(", ",") and after.text in (",", ")") and self.depth(ahead) > 0
        return not (len(text) == 1 or {before.text, after.text} & OPERATORS or enclosed)

    def depth(self, ahead: int) -> int:
        """In how many brackets a token is."""
        before = [token.text for token in self.tokens[: self.at + ahead]]
        return before.count("(") - before.count(")")

    def called(self, ahead: int = 0) -> bool:
        """Whether a name has a bracket of its own behind it."""
        return self.peek(ahead + 1)[1:] == ("(", False)

    def starts(self) -> bool:
        """Whether a factor begins here."""
        kind, text, _ = self.peek()
        if kind in ("number", "name", "word"):
            return not self.is_word()
        return text in ("(", "...") or (text == "|" and not self.bars)

    def line(self) -> list[tuple[str, str]]:
        """All of it: (kind, text), of the kinds math, text and code."""
        parts: list[tuple[str, str]] = []
        while self.peek().kind != "end":
            kind, text, spaced = self.peek()
            glue = " " if spaced and parts else ""
            if kind == "string" or self.is_word() or text in (",", ";", ":", "."):
                self.at += 1
                parts.append(("code" if kind == "string" else "text", glue + text))
            else:
                if glue:
                    parts.append(("text", glue))
                parts.append(("math", self.relation()))
        return parts

    def phrase(self) -> str:
        """What stands in brackets: formulas with words between them."""
        parts = [""]
        while self.peek().text not in (self.end, ",") and self.peek().kind != "end":
            if self.is_word():
                parts.append(rf"\text{{ {self.peek().text} }}")
                self.at += 1
            else:
                parts.append(self.relation())
        if len(parts) == 1:
            raise UnsureError("nothing in brackets")
        joined = "".join(parts).replace(r" }\text{ ", " ")
        return re.sub(r"^(\\text\{) |(?<=\w) (\})$", r"\1\2", joined)

    def phrases(self, end: str) -> str:
        """Several of them, up to a bracket."""
        around = self.bars, self.end
        self.bars, self.end = 0, end
        found = [self.phrase()]
        while self.take(","):
            found.append(self.phrase())
        self.need(end)
        self.bars, self.end = around
        return ", ".join(found)

    def relation(self) -> str:
        """Sums, and how they compare."""
        found = self.sum()
        while self.peek().text in RELATIONS and self.peek().text != self.end:
            found += f" {RELATIONS[self.peek().text]} "
            self.at += 1
            if self.is_word():  # d = the larger of ...
                return found.rstrip()
            found += self.sum()
        return found

    def sum(self) -> str:
        """Products, added and subtracted."""
        found = "-" if self.take("-") else ""
        found += self.product()
        while self.peek().text in ("+", "-"):
            found += f" {self.peek().text} "
            self.at += 1
            found += self.product()
        return found

    def product(self) -> str:
        """Factors. Of `a*b/c` b alone is above the line, of `a*b / c` both are."""
        factors, wide, tight = [self.power()], 0, 0  # where what is above a line begins
        while True:
            spaced = self.peek().spaced
            if self.take("/"):
                begin = wide if spaced else tight
                above, below = product(factors[begin:]), self.power()
                line = rf"\frac{{{above.bare}}}{{{below.bare}}}"
                divided = Factor(f"{above.latex}/{below.latex}" if self.slashes else line)
                factors[begin:] = [divided]
            elif (times := self.take("*")) or self.starts():
                factors.append(self.power())
                tight = len(factors) - 1 if times else tight
                wide = tight if times and spaced else wide
                if SIMPLE.fullmatch(factors[-1].latex) and factors[-1] == factors[-2]:
                    factors[-2:] = [Factor(f"{factors[-1].latex}^2")]
                    tight, wide = min(tight, len(factors) - 1), min(wide, len(factors) - 1)
            else:
                return product(factors).latex

    def power(self) -> Factor:
        """A factor with its exponent."""
        found = self.factor()
        if not self.take("^"):
            return found
        self.slashes += 1
        minus = "-" if self.take("-") else ""
        exponent = minus + self.factor().bare
        self.slashes -= 1
        exponent = r"\top" if exponent == "T" else exponent
        return Factor(f"{found.latex}^{{{exponent}}}")

    def factor(self) -> Factor:
        """A number, a name, a call, or something in brackets."""
        kind, text, _ = self.peek()
        if self.is_word():
            raise UnsureError(f"{text!r} is a word")
        if kind == "operator":
            return self.bracket()
        called = self.called()
        self.at += 1
        if kind == "number":
            mantissa, _, exponent = text.partition("e")
            return Factor(rf"{mantissa} \cdot 10^{{{exponent}}}" if exponent else text)
        if not called:
            return Factor(symbol(text))
        self.need("(")
        inner = self.phrases(")")
        if text == "sqrt":
            return Factor(rf"\sqrt{{{inner}}}")
        name = rf"\mathrm{{{text}}}" if text in FUNCTIONS else symbol(text)
        return Factor(name + bracketed(inner))

    def bracket(self) -> Factor:
        """What is in brackets, of a product or a norm."""
        if self.take("("):
            inner = self.phrases(")")
            return Factor(bracketed(inner), inner)
        if self.take("<"):
            return Factor(rf"\left\langle {self.phrases('>')}\right\rangle")
        if self.take("..."):
            return Factor(r"\ldots")
        self.need("|")
        self.bars += 1
        inner = self.sum()
        self.need("|")
        self.bars -= 1
        norm = re.fullmatch(r"_(\d)", self.peek().text)
        self.at += norm is not None
        return Factor(rf"\left|{inner}\right|" + (f"_{norm[1]}" if norm else ""))


def escaped(text: str) -> str:
    """Plain text in Markdown."""
    return re.sub(r"([\\*_<>\[\]|`$#])", r"\\\1", text)


def translated(line: str, words: frozenset[str] = frozenset()) -> str:
    """A line in Markdown; as it is, and in code, where it isn't certain what it means."""
    if "`" in line:
        between = re.split(r"(`[^`]*`)", line)
        return "".join(p if p.startswith("`") else spaced(p, words) for p in between)
    try:
        parts = Reader(line, words).line()
    except UnsureError:
        return f"`{line}`"
    return "".join(f"{{math}}`{text}`" if kind == "math" else escaped(text) for kind, text in parts)


def spaced(text: str, words: frozenset[str]) -> str:
    """A part of a line, with the spaces at its ends."""
    inner = text.strip()
    return text.replace(inner, translated(inner, words)) if inner else text
