"""Reads class tables next to the images: names, values and colours of the classes.

Supported are `class_dict.csv` (CamVid: columns name, r, g, b in any order), `labelmap.txt` (CVAT:
`name:r,g,b:parts:actions`), `_classes.csv` (Roboflow: a header, then `value,name`) and lists of names
(`classes.txt`, `_classes.txt`, `class_names.txt`, `label_names.txt`).
"""

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ubend.core.errors import reason
from ubend.core.files import regular_file
from ubend.labels.class_table import NAME_PATTERN
from ubend.layouts.problems import Problems


@dataclass(frozen=True)
class ClassTable:
    """Names of the classes, with their label values or colours if stated.

    Attributes:
        names: of the classes.
        values: the label value of each; None: not stated.
        colors: (red, green, blue) of each, 0..255; None: not stated.
    """

    names: tuple[str, ...]
    values: tuple[int, ...] | None = None
    colors: tuple[tuple[int, int, int], ...] | None = None


def read_class_table(folders: Iterable[Path], problems: Problems) -> ClassTable | None:
    """The first usable class table in these folders; None: there is none. An unusable one is a problem."""
    for folder in dict.fromkeys(folders):
        for name, kind, parse in _KINDS:
            path = folder / name
            if not path.is_file():
                continue
            text = read_names_text(path, problems)
            if text is None:
                continue
            try:
                table = parse(text)
            except (ValueError, csv.Error):
                table = None
            fit = table and table.names and all(re.fullmatch(NAME_PATTERN, name) for name in table.names)
            if table and fit and all(map(_differ, vars(table).values())):
                return table
            problems.add(kind, path)
    return None


def read_names_text(path: Path, problems: Problems) -> str | None:
    """The text of a list or table of names: UTF-8, or UTF-16 with a byte order mark; None, and a problem, otherwise."""
    try:
        content = regular_file(path).read_bytes()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if wide else "utf-8-sig")
    except OSError as error:
        problems.add("annotation file", f"{problems.shorten(path)} ({reason(error)})")
    except UnicodeDecodeError:
        problems.add("encoding", path)
    return None


def _differ(entries: Sequence[object] | None) -> bool:
    return entries is None or len(set(entries)) == len(entries)


def _parse_names(text: str) -> ClassTable:
    """`name` per line in the order of the values, or `value name`, `value,name`, `value: name` in all lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    numbered = [re.fullmatch(r"(\d{1,5})\s*[\s,;:=]\s*(\S.*)", line) for line in lines]
    if lines and all(numbered):
        return ClassTable(tuple(n[2] for n in numbered if n), tuple(int(n[1]) for n in numbered if n))
    return ClassTable(tuple(lines))


def _parse_numbered(text: str) -> ClassTable:
    """A header, then lines `value, name`.

    Raises:
        ValueError: a line has another form.
    """
    rows = [(int(value), name.strip()) for value, name in csv.reader(text.splitlines()[1:])]
    return ClassTable(tuple(name for _value, name in rows), tuple(value for value, _name in rows))


def _parse_labelmap(text: str) -> ClassTable:
    """Lines `name:r,g,b:parts:actions`; `#` begins a comment.

    Raises:
        ValueError: a line has another form.
    """
    lines = (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    rows = [(name.strip(), _color(color.split(","))) for name, color, *_more in (line.split(":") for line in lines)]
    return ClassTable(tuple(name for name, _rgb in rows), None, tuple(color for _name, color in rows))


def _parse_class_dict(text: str) -> ClassTable:
    """CSV with a header that names the columns name, r, g, b.

    Raises:
        ValueError: there is no such header, or a row lacks a cell.
    """
    first = text.partition("\n")[0]
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=";" if ";" in first else ",") if any(row)]
    head = [cell.strip().casefold() for cell in rows[0]] if rows else []
    columns = [
        next((column for column, cell in enumerate(head) if cell in words), -1)
        for words in (("name", "class", "label", "class_name"), ("r", "red"), ("g", "green"), ("b", "blue"))
    ]
    if -1 in columns or any(len(row) <= max(columns) for row in rows):
        raise ValueError("a column is missing")
    names = tuple(row[columns[0]].strip() for row in rows[1:])
    return ClassTable(names, None, tuple(_color([row[column] for column in columns[1:]]) for row in rows[1:]))


def _color(cells: list[str]) -> tuple[int, int, int]:
    r, g, b = (int(cell) for cell in cells)
    if not 0 <= min(r, g, b) <= max(r, g, b) <= 255:
        raise ValueError("not 0..255")
    return r, g, b


_KINDS: tuple[tuple[str, str, Callable[[str], ClassTable]], ...] = (
    ("class_dict.csv", "class table", _parse_class_dict),
    ("labelmap.txt", "class table", _parse_labelmap),
    ("_classes.csv", "classes", _parse_numbered),
    ("classes.txt", "classes", _parse_names),
    ("_classes.txt", "classes", _parse_names),
    ("class_names.txt", "classes", _parse_names),
    ("label_names.txt", "classes", _parse_names),
)
