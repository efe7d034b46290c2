"""Rename identifiers and modules of the whole tree by a table: python tools/rename_words.py tools/words.toml [--check]

The table is TOML:

    [names]                            # identifiers, everywhere
    Teller = "Reporter"
    ".place" = "transform"             # ... as attribute or field alone
    "place=" = "position"              # ... as keyword argument or field of a message alone
    [words]                            # words of identifiers that are defined in the tree, where [names] has no rule
    picture = "image"
    [files."src/ubend/io/*.py"]        # other or further ones in the files that match; old = old: stays there
    window = "rows"
    [files."src/ubend/io/tiff.py:make_plan"]   # ... in these functions or classes of the files
    plan = "read_plan"
    [strings."src/ubend/layouts/*.py"]  # whole strings that are names, in the files that match
    picture = "image"
    [modules]                          # files; those outside src begin with their folder
    "ubend.tasks.gather" = "ubend.tasks.resolve"
    "tests.test_teller" = "tests.test_progress"

What is renamed: names, attributes and keyword arguments in Python files, also in the expressions of f-strings, in
quoted annotations and in single words between backticks of docstrings and comments; names in strings where a call takes
the name of a thing (`getattr`, `monkeypatch.setattr`, `parametrize`, `getfixturevalue`, ...); programs in strings that
import a package of ours; dotted names that begin
with a package of ours; the fields of messages, `{picture}`, with their keyword and in the catalogues. Everything else
in a string is data and stays, and so do attributes and keywords of what is imported from other packages.

Refused, with one line for each: a new name that its function, class or module has already.
"""

import ast
import fnmatch
import io
import json
import keyword
import re
import subprocess
import sys
import tokenize
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("src", "tests", "benchmarks", "tools")
OURS = ("ubend", "ubend_lessons", "support")
# Their arguments that are plain strings are names of things.
TAKE_NAMES = {
    "getattr", "setattr", "hasattr", "delattr", "__setattr__", "__getattribute__", "attrgetter", "delitem", "object",
    "getfixturevalue", "usefixtures", "parametrize", "cast", "TypeVar", "ParamSpec", "NewType", "fixture", "setitem",
    "patch",
}  # fmt: skip
# Functions of other packages that pass keywords on to ours.
PASS_ON = {"replace", "partial", "SimpleNamespace", "parametrize", "given"}
TEXT = (".md", ".toml", ".yml", ".yaml", ".sh", ".txt", ".cfg")


@dataclass
class Table:
    """What is renamed to what, where."""

    names: dict[str, str]
    files: dict[str, dict[str, str]]
    modules: dict[str, str]
    words: dict[str, str]
    strings: dict[str, dict[str, str]]
    used: set[tuple[str, str]] = field(default_factory=set)
    by_word: set[str] = field(default_factory=set)


def read_table(path: Path) -> Table:
    entries = tomllib.loads(path.read_text(encoding="utf-8"))
    table = Table(*(entries.get(key, {}) for key in ("names", "files", "modules", "words", "strings")))
    for section, names in [("names", table.names), *table.files.items()]:
        for old, new in names.items():
            if not (new.isidentifier() and old.strip(".=").isidentifier()) or keyword.iskeyword(new):
                raise SystemExit(f"{path}: [{section}] {old} = {new}: not identifiers")
    return table


def apply_words(table: Table, defined: set[str]) -> None:
    """Add to the names of the table those that hold one of its words."""
    for name in sorted(defined - table.names.keys()):
        parts = re.findall(r"_+|[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])|.", name)
        new = "".join(table.words.get(part, part) for part in parts)
        if new != name:
            table.names[name] = new
            table.by_word.add(name)
            table.used.add(("names", name))


class Source:
    """One Python file, and the edits to it."""

    def __init__(self, path: Path, table: Table) -> None:
        self.path = path
        self.name = path.relative_to(ROOT).as_posix()
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self.table = table
        lines = self.text.splitlines(keepends=True)
        self.starts = [0]
        for line in lines:
            self.starts.append(self.starts[-1] + len(line))
        self.lines = lines
        self.edits: dict[tuple[int, int], str] = {}
        self.left: list[str] = []
        self.messages: dict[str, str] = {}
        self._scoped: list[tuple[int, int, str, dict[str, str]]] = []
        self._plain: list[tuple[str, dict[str, str]]] = []
        for pattern, names in table.files.items():
            file, _colon, scope = pattern.partition(":")
            if not any(fnmatch.fnmatch(self.name, one) for one in file.split()):
                continue
            if not scope:
                self._plain.insert(0 if self.name in file.split() else len(self._plain), (pattern, names))
                continue
            for node in ast.walk(self.tree):
                if (
                    isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                    and node.name in scope.split()
                ):
                    first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
                    self._scoped.append((first, node.end_lineno or first, pattern, names))
        self._foreign_names: set[str] = set()
        self._foreign: set[tuple[int, int]] = set()
        self._own = set() if self.name.startswith("src/") else self.bound()  # the names of tests are their own
        self._members: set[int] = set()  # where attributes and fields begin
        self._keywords: set[int] = set()
        self._literals: list[tuple[int, str]] = []
        self._find_foreign()

    def offset(self, line: int, column_bytes: int) -> int:
        """Of a position as `ast` counts: lines from 1, columns in UTF-8 bytes."""
        text = self.lines[line - 1]
        if not text.isascii():
            return self.starts[line - 1] + len(text.encode()[:column_bytes].decode())
        return self.starts[line - 1] + column_bytes

    def new(self, old: str, line: int, member: bool = False, keyword: bool = False) -> str:
        """The new name of an identifier on a line, or the old one; `member`: of an attribute or field."""
        keys = [f".{old}", old] if member else [f"{old}=", old] if keyword else [old]
        for first, last, pattern, names in sorted(self._scoped, key=lambda one: one[1] - one[0]):
            if first <= line <= last:  # what a function calls its own is no attribute of another
                for key in keys[:1] if member else keys:
                    if key in names:
                        self.table.used.add((pattern, key))
                        return names[key]
        for pattern, names in self._plain:
            for key in keys:
                if key in names:
                    self.table.used.add((pattern, key))
                    return names[key]
        if not member and not keyword and old in self._own and old not in self.table.by_word:
            return old
        for key in keys:
            if key in self.table.names:
                self.table.used.add(("names", key))
                return self.table.names[key]
        return old

    def defined(self) -> set[str]:
        """The identifiers that the file defines, its attributes among them."""
        attributes = {node.attr for node in ast.walk(self.tree)
                      if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load)}  # fmt: skip
        return (self.bound() | attributes) - self._foreign_names

    def bound(self) -> set[str]:
        """The functions, classes, parameters and variables of the file, and what it imports but from the packages."""
        found = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.arg):
                found.add(node.arg)
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(OURS[0]):
                found |= {one.asname or one.name for one in node.names}
            elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                found.add(node.id)
        return found

    def _find_foreign(self) -> None:
        """Names that other packages' imports bind, and the positions of attributes and keywords of theirs."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and not (node.module or "").split(".")[0].startswith(OURS):
                if not self._is_own_module(node.module or ""):
                    self._foreign_names |= {one.asname or one.name for one in node.names}
            elif isinstance(node, ast.Import):
                for one in node.names:
                    if not one.name.split(".")[0].startswith(OURS) and not self._is_own_module(one.name):
                        self._foreign_names.add(one.asname or one.name.split(".")[0])
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._keep_modules(node)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute):
                self._members.add(self.offset(node.end_lineno or 0, node.end_col_offset or 0) - len(node.attr))
            elif isinstance(node, ast.ClassDef):
                for statement in node.body:
                    if isinstance(statement, ast.AnnAssign):
                        self._members.add(self.offset(statement.lineno, statement.col_offset))
                    elif isinstance(statement, ast.Assign):
                        self._members |= {self.offset(one.lineno, one.col_offset) for one in statement.targets}
                    elif isinstance(statement, ast.FunctionDef):
                        row = statement.lineno - 1
                        self._members.add(self.starts[row] + self.lines[row].index("def ") + 4)
            elif isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                starts = {
                    self.offset(argument.lineno, argument.col_offset) for argument in node.keywords if argument.arg
                }
                self._keywords |= starts
                if called.lstrip("_")[:1].isupper() or called in ("replace", "cls"):
                    self._members |= starts
            if isinstance(node, ast.Attribute) and self._is_foreign(node):
                end = self.offset(node.end_lineno or 0, node.end_col_offset or 0)
                self._foreign.add((end - len(node.attr), end))
            elif isinstance(node, ast.Call) and self._is_foreign(node.func):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in PASS_ON:
                    continue
                for argument in node.keywords:
                    if argument.arg:
                        start = self.offset(argument.lineno, argument.col_offset)
                        self._foreign.add((start, start + len(argument.arg)))
            elif isinstance(node, ast.Import | ast.ImportFrom):
                module = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
                if not module.split(".")[0].startswith(OURS) and not self._is_own_module(module):
                    start = self.offset(node.lineno, node.col_offset)
                    end = self.offset(node.end_lineno or 0, node.end_col_offset or 0)
                    found = re.finditer(r"\w+", self.text[start:end])
                    self._foreign |= {(start + match.start(), start + match.end()) for match in found}

    def _keep_modules(self, node: ast.Import | ast.ImportFrom) -> None:
        """Modules are renamed apart: their parts in an import statement, and the names that it binds to modules."""
        start = self.offset(node.lineno, node.col_offset)
        text = self.text[start : self.offset(node.end_lineno or 0, node.end_col_offset or 0)]
        end = text.index(" import ") if isinstance(node, ast.ImportFrom) else len(text)
        for match in re.finditer(r"\w+", text[:end]):
            self._foreign.add((start + match.start(), start + match.end()))
        for one in node.names if isinstance(node, ast.Import) else ():
            if is_module(one.name):
                for match in re.finditer(rf"(?<![\w.]){one.asname or one.name}\b(?=\.\w|, ?[\"'])", self.text):
                    self._foreign.add((match.start(), match.end()))
        module = node.module if isinstance(node, ast.ImportFrom) else None
        for one in node.names if module else ():
            if not is_module(f"{module}.{one.name}"):
                continue
            for match in re.finditer(rf"\b{one.name}\b", text[end:]):
                self._foreign.add((start + end + match.start(), start + end + match.end()))
            for match in re.finditer(rf"(?<![\w.]){one.asname or one.name}\b(?=\.\w|, ?[\"'])", self.text):
                self._foreign.add((match.start(), match.end()))

    def _is_own_module(self, module: str) -> bool:
        """Whether a module lies beside the tests or benchmarks (`import timing`)."""
        return any((ROOT / folder / f"{module.split('.')[0]}.py").exists() for folder in FOLDERS)

    def _is_foreign(self, node: ast.expr) -> bool:
        while isinstance(node, ast.Attribute):
            node = node.value
        return isinstance(node, ast.Name) and node.id in self._foreign_names

    def edit(self, start: int, end: int, new: str) -> None:
        if self.text[start:end] != new:
            self.edits[start, end] = new

    def rename(self) -> None:
        """Collect the edits of names."""
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            line, column = token.start
            start = self.starts[line - 1] + column
            end = self.starts[token.end[0] - 1] + token.end[1]
            if token.type == tokenize.NAME and (start, end) not in self._foreign:
                self.edit(start, end, self.new(token.string, line, start in self._members, start in self._keywords))
            elif token.type == tokenize.COMMENT:
                self._rename_quoted(token.string, start, line)
            elif token.type == tokenize.STRING:
                self._literals.append((start, token.string))
                prefix = token.string[: re.search("['\"]", token.string).start()].lower()  # type: ignore[union-attr]
                if "f" in prefix:
                    self._rename_fields(token.string, start, line)
        self._rename_strings()

    def _rename_quoted(self, text: str, start: int, line: int) -> None:
        """Names between backticks, in text that begins at `start`."""
        for match in re.finditer(r"`([A-Za-z_][\w.]*)(?=[`(])", text):
            if match[1].endswith((".py", ".toml", ".md")):
                continue
            at = line + text.count("\n", 0, match.start())
            for part in re.finditer(r"\w+", match[1]):
                first = start + match.start(1) + part.start()
                self.edit(first, first + len(part[0]), self.new(part[0], at))

    def _rename_code(self, code: str, start: int, line: int) -> None:
        """Names of an expression that stands in a string."""
        try:
            tokens = list(tokenize.generate_tokens(io.StringIO(f"({code}\n)").readline))
        except (tokenize.TokenError, SyntaxError):
            self.left.append(f"{self.name}:{line}: cannot read {code!r}")
            return
        starts = [0]
        for one in f"({code}\n)".splitlines(keepends=True):
            starts.append(starts[-1] + len(one))
        before = ""
        for token in tokens:
            first = start + starts[token.start[0] - 1] + token.start[1] - 1
            if token.type == tokenize.NAME:
                if not (before == "." and self._root_is_foreign(code, first - start)):
                    self.edit(first, first + len(token.string), self.new(token.string, line, before == "."))
            elif token.type == tokenize.STRING and token.string[0].lower() == "f":
                self._rename_fields(token.string, first, line)
            before = token.string

    def _root_is_foreign(self, code: str, at: int) -> bool:
        match = re.search(r"([A-Za-z_]\w*)(?:\.\w+)*\.$", code[:at])
        return match is not None and match[1] in self._foreign_names

    def _rename_fields(self, text: str, start: int, line: int) -> None:
        """The expressions of an f-string."""
        at, depth = 0, 0
        while at < len(text):
            if text[at : at + 2] in ("{{", "}}") and depth == 0:
                at += 2
            elif text[at] == "{":
                end = _end_of_expression(text, at + 1)
                expression = text[at + 1 : end].rstrip("=")
                self._rename_code(expression, start + at + 1, line + text.count("\n", 0, at))
                depth += 1
                at = end
                if text[at] == "!":
                    at += 2
                if text[at] == "}":
                    depth -= 1
                at += 1  # past the } or the : before a format
            else:
                depth -= text[at] == "}" and depth > 0
                at += 1

    def _rename_strings(self) -> None:
        """Names in strings: dotted ones of ours, where calls take names, quoted annotations, fields of messages."""
        docs: set[ast.AST] = set()
        named: set[ast.AST] = set()
        annotations: set[ast.AST] = set()
        messages: set[ast.AST] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docs |= {one.value for one in node.body[:1] if isinstance(one, ast.Expr)}
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
                annotations |= set(ast.walk(node.returns))
            if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
                annotations |= set(ast.walk(node.annotation))
            if isinstance(node, ast.ClassDef):
                annotations |= {part for base in node.bases for part in ast.walk(base)}
            if isinstance(node, ast.Assign) and any(getattr(one, "id", "") == "__all__" for one in node.targets):
                named |= set(ast.walk(node.value))
            if isinstance(node, ast.Call):
                function = node.func
                called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
                if called in TAKE_NAMES:
                    named |= set(node.args) | {
                        one.value for one in node.keywords if one.arg in ("name", "bound", "target")
                    }
                if called == "parametrize" and node.args:
                    named |= set(ast.walk(node.args[0]))
                if called in ("cast", "NewType"):
                    annotations |= set(node.args)
                if called in ("_", "later", "ngettext"):
                    messages |= set(node.args)
                if called == "format" and isinstance(function, ast.Attribute):
                    messages.add(function.value)
        annotations -= {part for one in list(annotations) if isinstance(one, ast.Subscript)
                        and getattr(one.value, "id", "") == "Literal" for part in ast.walk(one)}  # fmt: skip
        for node in ast.walk(self.tree):
            if isinstance(node, ast.JoinedStr):
                start = self.offset(node.lineno, node.col_offset)
                end = self.offset(node.end_lineno or 0, node.end_col_offset or 0)
                if re.search(rf"\b(from|import) ({'|'.join(OURS)})\b", self.text[start:end]):
                    self._rename_program(start, end, node.lineno)
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            start = self.offset(node.lineno, node.col_offset)
            end = self.offset(node.end_lineno or 0, node.end_col_offset or 0)
            raw = self.text[start:end]
            if not re.match("[rbuRBU]*['\"]", raw):
                continue  # within an f-string
            if node in docs:
                self._rename_quoted(raw, start, node.lineno)
            elif (new := self._string(node.value)) is not None:
                self.edit(start, end, json.dumps(new, ensure_ascii=False))
            elif re.search(rf"\b(from|import) ({'|'.join(OURS)})\b", node.value):
                self._rename_program(start, end, node.lineno)
            elif node in messages:
                self._rename_message(node, raw, start)
            elif all(is_dotted(word) for word in node.value.split(" ")):
                known = ""
                for match in re.finditer(r"\w+| ", raw):
                    known = "" if match[0] == " " else f"{known}.{match[0]}".strip(".")
                    if known and not is_module(known):
                        self.edit(start + match.start(), start + match.end(), self.new(match[0], node.lineno, True))
            elif node in annotations or (node in named and re.fullmatch(r"[\w, .\[\]|]+", node.value)):
                for match in re.finditer(r"[A-Za-z_]\w*", raw):
                    self.edit(start + match.start(), start + match.end(), self.new(match[0], node.lineno))
            elif self.new(node.value, node.lineno) != node.value:
                self.left.append(f"{self.name}:{node.lineno}: the string {raw} stays")

    def _string(self, value: str) -> str | None:
        for pattern, strings in self.table.strings.items():
            if value in strings and any(fnmatch.fnmatch(self.name, one) for one in pattern.split()):
                self.table.used.add((pattern, value))
                return strings[value]
        return None

    def _rename_program(self, start: int, end: int, line: int) -> None:
        """Names of a program that stands in one string or several."""
        for first, text in self._literals:
            if not start <= first < end:
                continue
            quote = re.match(r"([a-zA-Z]*)(\"\"\"|'''|\"|')", text)
            assert quote is not None
            code = re.sub(r"\\.", "  ", text[quote.end() : len(text) - len(quote[2])])
            first += quote.end()
            starts = [0]
            for one in code.splitlines(keepends=True):
                starts.append(starts[-1] + len(one))
            names: list[tuple[int, str, str]] = []
            before = ""
            try:
                for token in tokenize.generate_tokens(io.StringIO(code).readline):
                    at = starts[token.start[0] - 1] + token.start[1]
                    if token.type == tokenize.NAME:
                        names.append((at, token.string, before))
                    elif token.type == tokenize.STRING and token.string[0].lower() == "f":
                        self._rename_fields(token.string, first + at, line)
                    before = token.string
            except (tokenize.TokenError, SyntaxError):  # a piece of a line
                found = re.finditer(r"(\.?)\b([A-Za-z_]\w*)", code)
                names = [(match.start(2), match[2], match[1]) for match in found]
            for at, name, dot in names:
                self.edit(first + at, first + at + len(name), self.new(name, line, dot == "."))

    def _rename_message(self, node: ast.Constant, raw: str, start: int) -> None:
        def change(text: str, at: int | None) -> str:
            def one(match: re.Match[str]) -> str:
                new = self.new(match[1], node.lineno, keyword=True)
                if at is not None:
                    self.edit(at + match.start(1), at + match.end(1), new)
                return "{" + new

            return re.sub(r"(?<!\{)\{([A-Za-z_]\w*)(?=[}!:.\[])", one, text)

        change(raw, start)
        old = str(node.value)
        if change(old, None) != old:
            self.messages[old] = change(old, None)

    def result(self) -> str:
        text, parts, at = self.text, [], 0
        for (start, end), new in sorted(self.edits.items()):
            parts += [text[at:start], new]
            at = end
        return "".join([*parts, text[at:]])

    def collisions(self) -> Iterator[str]:
        """A line for each new name that its scope has already, or that would hide another one."""
        for scope in find_scopes(self.tree):
            if isinstance(scope.node, ast.Module) and not scope.bound:
                continue
            bound: dict[str, dict[str, int]] = defaultdict(dict)
            for old, line in scope.bound.items():
                bound[self.new(old, line)].setdefault(old, line)
            for old, line in scope.seen():
                new = self.new(old, line)
                if new in bound:
                    bound[new].setdefault(old, line)
            for new, olds in bound.items():
                if len(olds) > 1:
                    sites = ", ".join(f"{old} (line {line})" for old, line in olds.items())
                    yield f"{self.name}: {scope.name}: {new} <- {sites}"
        for node in ast.walk(self.tree):
            names: list[tuple[str, int]] = []
            member = is_call = False
            if isinstance(node, ast.ClassDef):
                member = True
                names = [(one.attr, one.lineno) for one in ast.walk(node)
                         if isinstance(one, ast.Attribute) and getattr(one.value, "id", "") == "self"]  # fmt: skip
                names += [(one.name, one.lineno) for one in node.body if isinstance(one, ast.FunctionDef)]
                names += [(one.target.id, one.lineno) for one in node.body
                          if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]  # fmt: skip
            elif isinstance(node, ast.Call) and not self._is_foreign(node.func):
                is_call = True
                names = [(one.arg, one.lineno) for one in node.keywords if one.arg]
            merged: dict[str, dict[str, int]] = defaultdict(dict)
            for old, line in names:
                merged[self.new(old, line, member, is_call)].setdefault(old, line)
            for new, olds in merged.items():
                if len(olds) > 1:
                    sites = ", ".join(f"{old} (line {line})" for old, line in olds.items())
                    yield f"{self.name}: {getattr(node, 'name', 'call')}: {new} <- {sites}"


def is_dotted(text: str) -> bool:
    """Whether a text is the name of a thing of ours, `ubend.x.y` or `ubend.x:y`."""
    return re.fullmatch(rf"({'|'.join(OURS)})(\.\w+)+(:[\w.]+)?", text) is not None


def is_module(name: str) -> bool:
    """Whether a dotted name is a module or a package of the tree."""
    path = name.replace(".", "/")
    bases = [ROOT / "src", *(ROOT / folder for folder in FOLDERS)]
    return any((base / f"{path}.py").exists() or (base / path).is_dir() for base in bases)


@dataclass
class Scope:
    """What a module, function, lambda, comprehension or class binds, and the names used in it."""

    node: ast.AST
    name: str
    above: "Scope | None"
    bound: dict[str, int] = field(default_factory=dict)
    used: list[tuple[str, int]] = field(default_factory=list)
    within: "list[Scope]" = field(default_factory=list)

    def seen(self) -> Iterator[tuple[str, int]]:
        """The names used in it and below that no scope below binds."""
        yield from self.used
        for scope in self.within:
            bound = {} if isinstance(scope.node, ast.ClassDef) else scope.bound
            yield from (one for one in scope.seen() if one[0] not in bound)


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def find_scopes(tree: ast.Module) -> list[Scope]:
    """All scopes of a module."""
    scopes = [Scope(tree, "module", None)]

    def visit(node: ast.AST, scope: Scope) -> None:
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            scope.bound.setdefault(node.name, line)
            scope.used.append((node.name, line))
            visit_all(node.decorator_list, scope)
        elif isinstance(node, ast.Name):
            scope.used.append((node.id, line))
            if not isinstance(node.ctx, ast.Load):
                scope.bound.setdefault(node.id, line)
            return
        elif isinstance(node, ast.NamedExpr):
            owner = scope
            while isinstance(owner.node, COMPREHENSIONS) and owner.above:
                owner = owner.above
            owner.bound.setdefault(node.target.id, line)
            owner.used.append((node.target.id, line))
            visit(node.value, scope)
            return
        elif isinstance(node, ast.ExceptHandler) and node.name:
            scope.bound.setdefault(node.name, line)
            scope.used.append((node.name, line))
        elif isinstance(node, ast.alias):
            name = node.asname or node.name.split(".")[0]
            scope.bound.setdefault(name, line)
            scope.used.append((name, line))
            return
        if isinstance(node, (*FUNCTIONS, *COMPREHENSIONS, ast.ClassDef)):
            if isinstance(node, FUNCTIONS):
                visit_all([*node.args.defaults, *filter(None, node.args.kw_defaults)], scope)
            inner = Scope(node, f"{getattr(node, 'name', type(node).__name__)}, line {line}", scope)
            scope.within.append(inner)
            scopes.append(inner)
            if isinstance(node, FUNCTIONS):
                arguments = node.args
                for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg,
                                 arguments.kwarg):  # fmt: skip
                    if argument is not None:
                        inner.bound.setdefault(argument.arg, argument.lineno)
                        inner.used.append((argument.arg, argument.lineno))
                        if argument.annotation:
                            visit(argument.annotation, scope)
                if not isinstance(node, ast.Lambda) and node.returns:
                    visit(node.returns, scope)
                visit_all(node.body if isinstance(node.body, list) else [node.body], inner)
                return
            if isinstance(node, ast.ClassDef):
                visit_all([*node.bases, *node.keywords], scope)
                visit_all(node.body, inner)
                return
            scope = inner
        visit_all(ast.iter_child_nodes(node), scope)

    def visit_all(nodes: Iterable[ast.AST], scope: Scope) -> None:
        for node in nodes:
            visit(node, scope)

    visit(tree, scopes[0])
    return scopes


def _end_of_expression(text: str, at: int) -> int:
    """Where the expression of an f-string that begins at `at` ends: at its `!r`, `:` or `}`."""
    depth, quote = 0, ""
    while at < len(text):
        letter = text[at]
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif depth == 0 and (letter in "}:" or (letter == "!" and text[at + 1] != "=")):
            return at
        elif letter in ")]}":
            depth -= 1
        at += 1
    return at


def move_modules(modules: dict[str, str]) -> dict[Path, Path]:
    """The files that move."""
    moves = {}
    for old, new in modules.items():
        first = old.split(".")[0]
        base = ROOT / "src" if first in ("ubend", "ubend_lessons") else ROOT
        moves[base / f"{old.replace('.', '/')}.py"] = base / f"{new.replace('.', '/')}.py"
    return moves


def rename_modules(text: str, modules: dict[str, str], python: bool) -> str:
    """Dotted names, imports and paths of moved modules in a text."""
    for old, new in modules.items():
        old, new = (one.removeprefix("tests.") if "tests.support." in one else one for one in (old, new))
        (parent, stem), (new_parent, new_stem) = old.rsplit(".", 1), new.rsplit(".", 1)
        if parent in ("tests", "benchmarks", "tools"):
            text = re.sub(rf"(?<![\w.]){stem}(?=\.py\b)", new_stem, text)
            if python or parent == "tests":
                text = re.sub(rf"\b(import|from) {stem}\b", rf"\1 {new_stem}", text)
                text = re.sub(rf"(?<![\w/]){stem}(?=\.\w)", new_stem, text)
            continue
        text = re.sub(rf"(?<![\w.]){re.escape(old)}(?!\w)", new, text)
        if parent == "support":
            text = re.sub(rf"(?<![\w.]){stem}(?=\.py\b)", new_stem, text)
        folder, new_folder = (
            one.split(".", one.startswith(OURS[0]))[-1].replace(".", "/") for one in (parent, new_parent)
        )
        text = re.sub(rf"(?<!\w){folder}/{stem}(?=\.py\b)", f"{new_folder}/{new_stem}", text)
        if parent == new_parent:
            text = re.sub(rf"(?<=`){stem}(?=\.py`)", new_stem, text)
        if python:
            text = _rename_import_from(text, parent, stem, new_parent, new_stem)
    return text


def rename_quoted(text: str, table: Table) -> str:
    """Names of things in a document: `NAME` with a capital or an underscore, and tests, `file.py::name`."""

    def one(match: re.Match[str]) -> str:
        return table.names.get(match[0], match[0])

    text = re.sub(r"(?<=::)\w+", one, text)
    return re.sub(r"(?<=`)(?=\w*[A-Z_])[A-Za-z_]\w*(?=[`(])", one, text)


def _rename_import_from(text: str, parent: str, stem: str, new_parent: str, new_stem: str) -> str:
    """`from parent import stem`, and the name that it binds."""
    pattern = rf"from {re.escape(parent)} import (\([^)]*\)|[^\n]*)"
    bound = any(re.search(rf"\b{stem}\b(?! as)", match[1]) for match in re.finditer(pattern, text))
    if not re.search(rf"from {re.escape(parent)} import [^\n]*\b{stem}\b", text) and not bound:
        return text
    if parent != new_parent:
        raise SystemExit(f"from {parent} import {stem}: import it from its module first")
    text = re.sub(pattern, lambda match: re.sub(rf"\b{stem}\b", new_stem, match[0]), text)
    if bound and stem != new_stem:
        text = re.sub(rf"(?<![\w.\"'/`]){stem}(?=\.[A-Za-z_])", new_stem, text)
        text = re.sub(rf"(?<=[(, ]){stem}(?=, [\"'])", new_stem, text)  # monkeypatch.setattr(stem, "name", ...)
    return text


def rename_catalogue(path: Path, messages: dict[str, str], fields: dict[str, dict[str, str]]) -> str:
    """A catalogue with the new sentences, and their new fields in the translations."""
    from babel.messages.pofile import read_po, write_po

    with path.open("rb") as file:
        catalog = read_po(file, locale=path.parts[-3])
    for message in list(catalog):
        old = message.id if isinstance(message.id, str) else message.id[0]
        if old not in messages:
            continue
        changed = fields[old]

        def change(text: str, changed: dict[str, str] = changed) -> str:
            return re.sub(r"(?<!\{)\{(\w+)", lambda match: "{" + changed.get(match[1], match[1]), text)

        message.id = change(message.id) if isinstance(message.id, str) else tuple(change(one) for one in message.id)
        texts = message.string
        message.string = change(texts) if isinstance(texts, str) else tuple(change(one) for one in texts or ())
    text = io.BytesIO()
    write_po(text, catalog, width=0, sort_by_file=True, include_lineno=False, ignore_obsolete=True)
    return text.getvalue().decode()


def is_text(path: Path) -> bool:
    """Whether the paths of modules in a file follow when modules move; the golden files are made by their tests."""
    return (path.suffix in TEXT or path.name == "Makefile") and path.parent.name != "golden"


def main() -> None:
    """Check the table, and apply it unless --check is given."""
    arguments = [one for one in sys.argv[1:] if not one.startswith("--")]
    table = read_table(Path(arguments[0]))
    check, show_strings = "--check" in sys.argv, "--strings" in sys.argv
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True,
                             check=True).stdout.splitlines()  # fmt: skip
    itself = Path(__file__).resolve()
    paths = [ROOT / name for name in tracked if name.endswith(".py") and name.startswith(FOLDERS)]
    sources = [Source(path, table) for path in sorted(paths) if path.resolve() != itself and path.exists()]
    problems: list[str] = []
    left: list[str] = []
    messages: dict[str, str] = {}
    apply_words(table, set().union(*(source.defined() for source in sources)))
    for source in sources:
        source.rename()
        messages |= source.messages
        problems += source.collisions()
        left += source.left
    moves = move_modules(table.modules)
    problems += [f"no such file: {old.relative_to(ROOT)}" for old in moves if not old.exists()]
    problems += [f"there is already: {new.relative_to(ROOT)}" for new in moves.values() if new.exists()]
    unused = [
        f"[{place}] {old}: nowhere"
        for place, names in [("names", table.names), *table.files.items(), *table.strings.items()]
        for old in names
        if (place, old) not in table.used
    ]
    for line in left if show_strings else ():
        print(line)
    for line in unused:
        print(f"unused: {line}")
    for line in problems:
        print(f"refused: {line}")
    edits = sum(len(source.edits) for source in sources)
    changed = sum(bool(one.edits) for one in sources)
    print(f"{edits} edits in {changed} files, {len(moves)} files moved, {len(left)} strings stay")
    if problems:
        raise SystemExit(f"{len(problems)} collisions: nothing was changed")
    if check:
        return
    for source in sources:
        source.path.write_text(rename_modules(source.result(), table.modules, True), encoding="utf-8")
    fields = {
        old: dict(zip(re.findall(r"(?<!\{)\{(\w+)", old), re.findall(r"(?<!\{)\{(\w+)", new), strict=True))
        for old, new in messages.items()
    }
    for name in tracked:
        path = ROOT / name
        if path.name.endswith(".po"):
            path.write_text(rename_catalogue(path, messages, fields), encoding="utf-8")
        elif path.exists() and is_text(path) and not path.samefile(arguments[0]):
            text = path.read_text(encoding="utf-8")
            text = rename_modules(text, table.modules, False)
            path.write_text(rename_quoted(text, table) if path.suffix == ".md" else text, encoding="utf-8")
    for old, new in moves.items():
        new.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "mv", old, new], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
