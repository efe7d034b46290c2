"""Reads split files: CSV with the columns `file,split`, `file,group` or `file,split,group`."""

import csv
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ubend.core.errors import reason
from ubend.core.files import csv_cell, read_text
from ubend.core.i18n import _
from ubend.layouts.naming import SPLIT_WORDS
from ubend.layouts.pairs import Pair, SplitName
from ubend.layouts.problems import Problems
from ubend.layouts.tree import subfolders
from ubend.portable.printable import enumerate_names

SPLIT_COLUMNS = ("file", "split", "group")
_LIST_FOLDERS = ("splits", "split", "lists", "list", "imagesets")
_HEADER_CHARACTERS = 1000


def apply_split(pairs: list[Pair], split: Path, problems: Problems) -> list[Pair]:
    """Set splits and groups of the pairs from a split file; a column that it lacks changes nothing."""
    try:
        lines = read_text(split).splitlines()
        semicolons = bool(lines) and ";" in lines[0]  # spreadsheets write these where the comma is the decimal sign
        rows = list(csv.reader(lines, delimiter=";" if semicolons else ","))
    except (OSError, csv.Error) as error:
        problems.add("split file", _("cannot read {file} ({reason})").format(file=split, reason=reason(error)))
        return pairs
    header = [name.strip().lower() for name in rows[0]] if rows else []
    has_split, has_group = (name in header for name in SPLIT_COLUMNS[1:])
    if "file" not in header or not (has_split or has_group):
        lacks = _("{file} has no column {column}").format(file=split, column="split" if "file" in header else "file")
        if "file" not in header and not (has_split or has_group):
            lacks = _("{file} has no columns file and split").format(file=split)
        problems.add("split file", lacks)
        return pairs
    known = _pairs_by_spelling(pairs, problems.root)
    given: dict[int, tuple[SplitName | None, str | None]] = {}
    for cells in filter(any, rows[1:]):
        row = dict(zip(header, (csv_cell(cell.strip()) for cell in cells), strict=False))
        name = unicodedata.normalize("NFC", row.get("file", "")).replace("\\", "/").removeprefix("./")
        word, fitting = row.get("split", ""), known.get(name, set())
        value = (SPLIT_WORDS.get(word.lower()), row.get("group") or None)
        if value[0] is None and has_split:
            problems.add("split word", f"{name}: {word or '-'}")
        if len(fitting) != 1:
            problems.add("split unclear" if fitting else "split unknown", name or "-")
        for index in fitting:
            if given.setdefault(index, value) != value and len(fitting) == 1:
                problems.add("split twice", name)
    for index, pair in enumerate(pairs):
        if index not in given:
            problems.add("split missing", pair.name)
    return [
        replace(p, split=given[i][0] if has_split else p.split, group=given[i][1] if has_group else p.group)
        if i in given
        else p
        for i, p in enumerate(pairs)
    ]


def apply_split_lists(pairs: list[Pair], root: Path) -> tuple[list[Pair], str | None]:
    """Set the splits from lists such as `train.txt` and `test.txt`, a name on each line; (pairs, remark).

    The lists are in `root` or in a folder such as `splits`. They are used if each pair is in exactly one of them.
    """
    if any(pair.split for pair in pairs):
        return pairs, None
    below = subfolders(root)
    folders = [root, *(below[name] for name in _LIST_FOLDERS if name in below)]
    folders += [folder / "Segmentation" for folder in folders[1:] if (folder / "Segmentation").is_dir()]
    for folder in folders:
        named = {path: SPLIT_WORDS.get(path.stem.lower()) for path in sorted(folder.glob("*.txt"))}
        lists = {path: split for path, split in named.items() if split and path.is_file()}
        known = _pairs_by_spelling(pairs, root) if lists else {}
        splits: dict[int, set[SplitName]] = {}
        for path, split in lists.items():
            for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
                if (index := _named_by(line, known)) is not None:
                    splits.setdefault(index, set()).add(split)
        names = enumerate_names([path.relative_to(root).as_posix() for path in lists])
        if len({*lists.values()}) == len(lists) > 1 and len(splits) == len(pairs) == sum(map(len, splits.values())):
            listed = [replace(pair, split=next(iter(splits[index]))) for index, pair in enumerate(pairs)]
            return listed, _("the split is taken from {names}").format(names=names)
        if 2 * len(splits) > len(pairs):
            line = _(
                "{names} are not used, because they do not put each image into one split; to use them, write a CSV "
                "with the columns file,split and give it as --split FILE"
            )
            return pairs, line.format(names=names)
    return pairs, None


def _named_by(line: str, known: Mapping[str, set[int]]) -> int | None:
    """The only pair that a line names, by name or path, perhaps followed by those of the mask; None: not just one."""
    whole = unicodedata.normalize("NFC", line.strip()).replace("\\", "/")
    for cell in (whole, *re.split(r"[,;\t]", whole)[:1], *whole.split()[:1]):
        path = cell.strip().removeprefix("./")
        for spelling in (path, path.rpartition("/")[2]):
            if len(found := known.get(spelling, ())) == 1:
                return next(iter(found))
    return None


def unused_split_files(folder: Path) -> list[str]:
    """Remarks on files directly in `folder` that look like split files; for a folder that is read without one."""
    line = _("{file} is not used; to split the images by it: --split {file}")
    return [
        line.format(file=path)
        for path in sorted(folder.glob("*.csv"))
        if path.is_file() and _looks_like_split_file(path)
    ]


def _looks_like_split_file(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            header = file.readline(_HEADER_CHARACTERS)
    except OSError:
        return False
    columns = {name.strip().strip('"').lower() for name in re.split("[,;]", header)}
    return {"file", "split"} <= columns


def _pairs_by_spelling(pairs: Sequence[Pair], root: Path) -> dict[str, set[int]]:
    """Name that a split file may use -> indices of the pairs it may mean."""
    known: dict[str, set[int]] = {}
    for index, pair in enumerate(pairs):
        for spelling in _spellings(pair, root):
            known.setdefault(spelling, set()).add(index)
    return known


def _spellings(pair: Pair, root: Path) -> set[str]:
    """All names that a split file may use for a pair: `0001`, `0001.jpg`, `images/0001.jpg`, ..."""
    pieces = unicodedata.normalize("NFC", pair.image.relative_to(root).as_posix()).split("/")
    paths = {"/".join(pieces[start:]) for start in range(len(pieces))} | {pair.name + pair.image.suffix}
    return paths | {path.removesuffix(pair.image.suffix) for path in paths}
