"""Atomic file writes (temporary file, sync, rename) and checks before writing: disk space, existing files, inputs."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ubend.core.errors import OutputError
from ubend.core.i18n import _
from ubend.portable.files import (
    EXPORTED_SUFFIX,
    explain_write_errors,
    is_of_the_disk,
    is_too_long,
    refuse_existing,
    refuse_inputs,
    refuse_shared,
    regular_file,
    resolve_many,
    short_stem,
    write_file,
)

__all__ = [
    "EXPORTED_SUFFIX",
    "MODEL_FILE",
    "DiskRequirement",
    "check_disk_space",
    "clear_leftovers",
    "csv_cell",
    "csv_text",
    "default_cache",
    "explain_write_errors",
    "is_of_the_disk",
    "is_too_long",
    "json_text",
    "model_path",
    "named_in_utf8",
    "read_text",
    "refuse_existing",
    "refuse_existing_results",
    "refuse_foreign",
    "refuse_inputs",
    "refuse_shared",
    "regular_file",
    "resolve_many",
    "write_csv",
    "write_file",
    "write_json",
    "write_text",
]


@dataclass(frozen=True)
class DiskRequirement:
    """Disk space that will be needed.

    Attributes:
        folder: the target folder; it need not exist yet.
        size: bytes.
        cure: how the user can reduce it; the end of a sentence.
    """

    folder: Path
    size: int
    cure: str


def check_disk_space(requirements: Sequence[DiskRequirement]) -> None:
    """Fail if a disk has less free space than all requirements need together. Nothing is written.

    Raises:
        OutputError: one line for each disk that is too full.
    """
    together: dict[int, list[DiskRequirement]] = {}
    for requirement in requirements:
        together.setdefault(_standing(requirement.folder).stat().st_dev, []).append(requirement)
    lines = []
    for group in together.values():
        free, size = shutil.disk_usage(_standing(group[0].folder)).free, sum(requirement.size for requirement in group)
        if size > free:
            message = _(
                "{folders}: about {size:.1f} MiB will be written, but only {free:.1f} MiB are free; free some space, "
                "or {cure}"
            )
            folders = ", ".join(str(requirement.folder) for requirement in group)
            cure = ", ".join(dict.fromkeys(requirement.cure for requirement in group))
            lines.append(message.format(folders=folders, size=size / 2**20, free=free / 2**20, cure=cure))
    if lines:
        raise OutputError("; ".join(lines), path=requirements[0].folder)


def refuse_existing_results(folder: Path | str) -> Path:
    """The folder for results, which must not exist or must be empty.

    Raises:
        OutputError: it is not empty, or cannot be listed.
    """
    folder = Path(folder)
    with explain_write_errors(folder):
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken:
        raise OutputError(_("{path} exists already; choose another folder").format(path=folder), path=folder)
    return folder


def refuse_foreign(paths: Sequence[Path], record: Path) -> None:
    """Fail if a resumed command would overwrite these files, which it did not write.

    Args:
        record: the file that lists what the command wrote.
    Raises:
        OutputError: such files exist.
    """
    if paths:
        message = _(
            "{path} exists already, and {record} does not list it as written by this command, or it was changed; move "
            "it away, or choose another --out"
        )
        raise OutputError(message.format(path=paths[0], record=record.name), path=paths[0], key="--out")


_TEMPORARY = re.compile(r"\.(.+)-\w{8}(|\.[^.]*)", re.DOTALL)  # names of `write_file`'s temporary files: stem, suffix


MODEL_FILE = "model.safetensors"  # of a run folder


def model_path(path: Path) -> Path:
    """The model file of a run folder, or the path itself."""
    return path / MODEL_FILE if os.path.isdir(path) else path  # if it cannot be examined, opening it gives the reason


def default_cache() -> Path:
    """The cache folder: `UBEND_CACHE`, or the system's cache location."""
    import platformdirs

    chosen = os.environ.get("UBEND_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("ubend", appauthor=False))


def _standing(folder: Path) -> Path:
    """The folder, or its nearest existing parent."""
    folder = folder.absolute()
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def clear_leftovers(paths: Iterable[Path]) -> None:
    """Delete temporary files that killed writers of `paths` left; each folder is listed once."""
    written = dict[Path, set[tuple[str, ...]]]()
    for path in paths:
        written.setdefault(path.parent, set()).add((short_stem(path), path.suffix))
    for folder, names in written.items():
        for name in os.listdir(folder) if folder.is_dir() else ():
            left = _TEMPORARY.fullmatch(name)
            if left and left.groups() in names:
                (folder / name).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; file names that are not UTF-8 keep their bytes."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="surrogateescape"))


def read_text(path: Path) -> str:
    """Read a text file written by `write_text`, without a byte order mark.

    Raises:
        OSError: the file cannot be read.
    """
    return regular_file(path).read_text(encoding="utf-8-sig", errors="surrogateescape")


_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # text that spreadsheets would execute as a formula, or already quoted


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV. Text that spreadsheets would execute as a formula gets an apostrophe in front, see `csv_cell`."""
    text = io.StringIO()
    for row in rows:
        cells = [_quote_cell(cell) for cell in row]
        if any("\r" in str(cell) for cell in cells):  # not quoted by csv otherwise
            csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow(cells)
        else:
            csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _quote_cell(cell: Any) -> Any:
    if isinstance(cell, int | float) or not _FORMULA.match(text := str(cell)):
        return cell
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return cell


def csv_cell(text: str) -> str:
    """Undo the quoting of a cell of `csv_text`."""
    return text[1:] if text[:1] == "'" and _FORMULA.match(text) else text


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write rows as CSV, atomically."""
    write_text(path, csv_text(rows))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json_text(value, indent=1) + "\n")


@contextlib.contextmanager
def named_in_utf8(path: Path) -> Iterator[Path]:
    """A context with a UTF-8 path of a file, for libraries that need one: the path of an open descriptor if needed."""
    try:
        os.fsdecode(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield Path(f"/dev/fd/{file.fileno()}")
    else:
        yield path


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON as UTF-8; bytes of file names that are not UTF-8 are escaped (`\\udcXX`), as Python reads them back."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)
