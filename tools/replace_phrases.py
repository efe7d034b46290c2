"""Replace phrases in the sentences of the tree by a table: python tools/replace_phrases.py tools/phrases.csv [--check]

The table is CSV: `old`, a regular expression; `new`; `where`, patterns of files, or empty for all. Rows apply in order,
whole words only. Changed are comments, docstrings, messages with their translations' keys (`_`, `later`), sentences in
tests that quote messages, pages, and the lessons' explanations. Left alone are code between backticks, blocks of code,
names of files, flags, keys, docs/experiments.md, docs/decisions.md and the change log.

After it, a line for each place where a phrase is broken over two lines or strings, and is to be changed by hand.
"""

import ast
import csv
import fnmatch
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).parent.parent
NOT_PAGES = ("docs/experiments.md", "docs/decisions.md", "CHANGELOG.md", "README.vi.md")
ITSELF = ("tools/rename_words.py", "tools/replace_phrases.py")


@dataclass(frozen=True)
class Phrase:
    """A row of the table."""

    old: re.Pattern[str]
    new: str
    where: tuple[str, ...]


def read_phrases(path: Path) -> list[Phrase]:
    phrases = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            old = row["old"].removesuffix(r"\b")
            begins, ends = re.match(r"\\b|\w", old), re.search(r"[\w?]$|[^`]\)$", old)
            before = r"(?<![\w./{\\-])" if begins else ""
            after = r"(?![\w=}/]|[.-]\w)" if ends else ""
            phrases.append(
                Phrase(re.compile(before + old.removeprefix(r"\b") + after), row["new"], tuple(row["where"].split()))
            )
    return phrases


def replace(text: str, name: str, phrases: list[Phrase]) -> str:
    """A sentence of a file with the phrases replaced; what stands between backticks stays."""
    for phrase in phrases:
        if phrase.where and not any(fnmatch.fnmatch(name, one) for one in phrase.where):
            continue
        parts, at = [], 0
        for match in phrase.old.finditer(text):
            if not is_code(text, match.start()):
                parts += [text[at : match.start()], match.expand(phrase.new)]
                at = match.end()
        text = "".join([*parts, text[at:]])
    return text


def is_code(text: str, start: int) -> bool:
    """Whether a position is between backticks."""
    return text.count("`", 0, start) % 2 == 1


class Source:
    """A Python file: where its sentences are."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = (ROOT / name).read_text(encoding="utf-8")
        self.lines = self.text.splitlines(keepends=True)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))
        self.tree = ast.parse(self.text)

    def offset(self, line: int, column_bytes: int) -> int:
        return self.starts[line - 1] + len(self.lines[line - 1].encode()[:column_bytes].decode())

    def messages(self) -> list[str]:
        return [str(node.value) for node in self._messages()]

    def _messages(self) -> list[ast.Constant]:
        return [
            one
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("_", "later") and node.args
            for one in node.args[:1]
            if isinstance(one, ast.Constant) and isinstance(one.value, str)
        ]

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Of docstrings, messages and, in tests and benchmarks, other strings of several words."""
        docs = [
            node.body[0].value
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)
        ]  # fmt: skip
        others: list[ast.Constant] = []
        if not self.name.startswith("src/"):
            others = [node for node in ast.walk(self.tree) if isinstance(node, ast.Constant)
                      and isinstance(node.value, str) and re.search(r"\w [a-z]", node.value)
                      and "import " not in node.value]  # fmt: skip
        for node in (*docs, *self._messages(), *others):
            yield (
                self.offset(node.lineno, node.col_offset),
                self.offset(node.end_lineno or 0, node.end_col_offset or 0),
            )

    def replaced(self, phrases: list[Phrase]) -> str:
        ranges = list(self.ranges())
        edits = []
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            start = self.starts[token.start[0] - 1] + token.start[1]
            if token.type == tokenize.COMMENT or (
                token.type == tokenize.STRING and any(first <= start < last for first, last in ranges)
            ):
                new = replace(token.string, self.name, phrases)
                if new != token.string:
                    edits.append((start, start + len(token.string), new))
        parts, at = [], 0
        for first, last, new in edits:
            parts += [self.text[at:first], new]
            at = last
        return "".join([*parts, self.text[at:]])


def replace_page(text: str, name: str, phrases: list[Phrase]) -> str:
    lines, is_block = [], False
    for line in text.split("\n"):
        if line.lstrip().startswith("```"):
            is_block = not is_block
        comment = re.search(r"(?<=  )# .*", line) if is_block else None
        if comment:
            line = line[: comment.start()] + replace(comment[0], name, phrases)
        elif not is_block:
            line = replace(line, name, phrases)
        lines.append(line)
    return "\n".join(lines)


def left_over(text: str, name: str, phrases: list[Phrase]) -> Iterator[str]:
    """Where a phrase is still there when lines and strings are joined."""
    joined = re.sub(r'"\s*\n\s*(?:f|r)?"|\s*\n\s*(?:# )?', "\0", text)
    flat = joined.replace("\0", " ").replace("  ", " ")
    for phrase in phrases:
        if "\\{" in phrase.old.pattern or (
            phrase.where and not any(fnmatch.fnmatch(name, one) for one in phrase.where)
        ):
            continue
        for match in phrase.old.finditer(flat):
            if " " in match[0] and not is_code(flat, match.start()):
                words = match[0].split()[0]
                context = flat[max(0, match.start() - 40) : match.end() + 30]
                yield f"{name}: {words} ...: {context}"


def main() -> None:
    """Apply the table, unless --check is given; --hand: name what is left in the source."""
    phrases = read_phrases(Path(sys.argv[1]))
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    names = [name for name in tracked if (ROOT / name).exists() and name not in (*NOT_PAGES, *ITSELF)]
    changed: dict[str, str] = {}
    messages: dict[str, str] = {}
    for name in names:
        text = (ROOT / name).read_text(encoding="utf-8") if name.endswith((".py", ".md", ".toml", ".sh")) else ""
        if name.endswith(".py"):
            source = Source(name)
            new = source.replaced(phrases)
            if new != text and name.startswith("src/"):
                before = source.messages()
                source.tree = ast.parse(new)
                messages |= dict(zip(before, source.messages(), strict=True))
        elif name.endswith((".md", "explanations.toml")):
            new = replace_page(text, name, phrases)
        else:
            continue
        if new != text:
            changed[name] = new
        if name.startswith("src/") and "--hand" in sys.argv:
            for line in left_over(new, name, phrases):
                print(line)
    for name in names if "--check" not in sys.argv else ():
        if name.endswith(".po"):
            with (ROOT / name).open("rb") as file:
                catalog = read_po(file, locale=Path(name).parts[-3])
            for message in list(catalog):
                if isinstance(message.id, str) and message.id:
                    places = [place for place, _line in message.locations]
                    toml = any(place.endswith(".toml") for place in places)
                    message.id = messages.get(message.id, message.id)
                    if toml:
                        message.id = replace(message.id, places[0], phrases)
            data = io.BytesIO()
            write_po(data, catalog, width=0, sort_by_file=True, include_lineno=False, ignore_obsolete=True)
            (ROOT / name).write_bytes(data.getvalue())
    if "--check" not in sys.argv:
        for name, new in changed.items():
            (ROOT / name).write_text(new, encoding="utf-8")
    print(f"{len(changed)} files, {sum(old != new for old, new in messages.items())} messages")


if __name__ == "__main__":
    main()
