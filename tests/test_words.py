"""The field's words: what identifiers, messages, help and user pages do not say; the glossary is in CONTRIBUTING.md."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import ROOT
from support.sentences import LOOKUPS

# Words of identifiers, and whole identifiers.
WORDS = {"picture", "pictures", "teller", "told", "asked", "crumb", "crumbs", "stranger", "strangers", "grown"}
WORDS |= {"unseen", "begun", "anew", "cure", "cures"}
NAMES = {"drawn_weights", "average_decay", "epoch_windows", "Held", "Need", "Kept", "Counted", "Gathered", "Found"}
NAMES |= {"take_step", "fetch_weights", "choose_format", "ImageFormat", "join_group", "join_process_group"}
# Parts of sentences. Words that are common, and right elsewhere, are not among them.
PHRASES = re.compile(
    r"\b(as of|pass(ed|es)? over|goes on|go on|begun with|drawn weights|laid over|lies? over|made anew|anew|told|"
    r"pictures?|crumbs?|strangers?|ways to grow|whichever|whoever|as it stands|of which it is|learnt by heart|"
    r"particular before the general|save for|but for|thereof|whereby)\b",
    re.I,
)
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PAGES = [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def identifiers(text: str) -> Iterator[tuple[int, str]]:
    """(line, identifier) of those in Python code that hold a forbidden word."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        words = {word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", token.string)}
        if token.type == tokenize.NAME and (words & WORDS or token.string.strip("_") in NAMES):
            yield token.start[0], token.string


def messages(text: str) -> Iterator[tuple[int, str]]:
    """(line, sentence) of the messages and the help in Python code."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[ast.Constant(value=str(sentence)), *_]) if name in LOOKUPS:
                yield node.lineno, sentence


def lines(text: str) -> Iterator[tuple[int, str]]:
    """(line, prose) of a page: without code, file names and addresses."""
    is_code = False
    for number, line in enumerate(text.splitlines(), 1):
        is_code ^= line.startswith("```")
        if not is_code and not line.startswith("    "):
            yield number, re.sub(r"`[^`]*`|\]\([^)]*\)|https?://\S+", " ", line)


def phrases(sentences: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    for line, sentence in sentences:
        for match in PHRASES.finditer(re.sub(r"\{[^}]*\}", "", sentence)):
            yield line, match[0]


def show(path: Path, found: Iterator[tuple[int, str]]) -> list[str]:
    return [f"{path.relative_to(ROOT)}:{line}: {word}" for line, word in found]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_code_and_messages(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = show(path, identifiers(text)) + show(path, phrases(messages(text)))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages(path: Path) -> None:
    found = show(path, phrases(lines(path.read_text(encoding="utf-8"))))
    assert not found, "\n".join(found)


def test_what_is_found() -> None:
    code = 'class Told:\n    drawn_weights = _("{told} goes on\\n as of now")\n\nPICTURE_PX = "picture"  # told\n'
    assert list(identifiers(code)) == [(1, "Told"), (2, "drawn_weights"), (4, "PICTURE_PX")]
    assert list(phrases(messages(code))) == [(2, "goes on"), (2, "as of")]
    page = "A picture.\n```\npicture\n```\n`picture` [told](told.md)\n\n    told\nImages are passed over.\n"
    assert list(phrases(lines(page))) == [(1, "picture"), (5, "told"), (8, "passed over")]
