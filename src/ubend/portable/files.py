"""Atomic file writes (temporary file, sync, rename) and checks before writing: disk space, existing files, inputs."""

import contextlib
import csv
import errno
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DataError, OutputError, reason
from .i18n import _

EXPORTED_SUFFIX = ".onnx"  # of exported models
MODEL_FILE = "model.safetensors"  # of a run folder
_TEMPORARY = re.compile(r"\.(.+)-\w{8}(|\.[^.]*)", re.DOTALL)  # names of `write_file`'s temporary files: stem, suffix
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # text that spreadsheets would execute as a formula, or already quoted
_LONGEST_NAME = 255  # bytes of a file name, the limit of common file systems
_OF_THE_DISK = {
    getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "ENODEV")
}


@dataclass(frozen=True)
class DiskRequirement:
    """Disk space that will be needed.

    Attributes:
        folder: the target folder; it need not exist yet.
        size: bytes.
        suggestion: how the user can reduce it; the end of a sentence.
    """

    folder: Path
    size: int
    suggestion: str


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
                "or {suggestion}"
            )
            folders = ", ".join(str(requirement.folder) for requirement in group)
            suggestion = ", ".join(dict.fromkeys(requirement.suggestion for requirement in group))
            lines.append(message.format(folders=folders, size=size / 2**20, free=free / 2**20, suggestion=suggestion))
    if lines:
        raise OutputError("; ".join(lines), path=requirements[0].folder)


def refuse_existing(
    paths: Iterable[Path],
    exists: Callable[[Path], bool] = os.path.exists,
    *,
    resumable: bool = False,
    option: str = "--out",
) -> None:
    """Fail if a file to be written exists already.

    Args:
        exists: whether a file exists.
        resumable: whether the command has `--resume`.
        option: that names the files.
    Raises:
        OutputError: one exists.
    """
    there = [path for path in paths if exists(path)]
    if there:
        message = _("{path} exists already; choose another {option}")
        if resumable:
            message = _("{path} exists already; choose another --out, or continue with --resume")
        if resumable and len(there) > 1:
            message = _("{path} exists already, and {count} more; choose another --out, or continue with --resume")
        line = message.format(path=there[0], count=len(there) - 1, option=option)
        raise OutputError(line, path=there[0], key=option)


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


def refuse_inputs(inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Fail if a file to be written is one of the inputs.

    Raises:
        OutputError: it is.
    """
    resolve = resolve_many()
    given = set(map(resolve, inputs))
    if path := next((path for path in outputs if resolve(path) in given), None):
        message = _("{path} is an input and would be overwritten; choose another --out")
        raise OutputError(message.format(path=path), path=path, key="--out")


def refuse_shared(files: Iterable[tuple[Path, Sequence[Path]]], what: str) -> None:
    """Fail if two inputs would be written to the same file.

    Args:
        files: each input, and the files to be written for it.
        what: what they would overwrite, for the message.
    Raises:
        DataError: two inputs share an output.
    """
    owners: dict[Path, list[Path]] = {}
    for owner, owned in files:
        for file in owned:
            owners.setdefault(file, []).append(owner)
    twice = sorted({str(path) for paths in owners.values() if len(paths) > 1 for path in paths})
    if twice:
        message = _("{names} would overwrite each other's {what}; run them separately, each with its own --out")
        raise DataError(message.format(names=", ".join(twice[:6]), what=what), path=Path(twice[0]), key="--out")


def regular_file(path: Path) -> Path:
    """Check that a path can be opened as a regular file; pipes and devices could block or never end.

    Raises:
        OSError: neither a file nor a folder, or missing.
    """
    if not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, _("a pipe or a device, not a file"), str(path))
    return path


def is_of_the_disk(error: BaseException) -> bool:
    """Whether an error, or its cause, is one of the disk or folder, so that all further writes would fail too."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in _OF_THE_DISK


def is_too_long(path: Path) -> bool:
    """Whether the file name is too long for common file systems."""
    return len(os.fsencode(path.name)) > _LONGEST_NAME


def resolve_many() -> Callable[[Path], str]:
    """`str(path.resolve())` for thousands of files: resolves each folder once, and files only if they are links."""
    folders: dict[str, str] = {}

    def resolve(path: Path) -> str:
        folder, name = os.path.split(path)
        # On Windows, `resolve` also corrects the case of the name.
        if name in ("", ".", "..") or os.name == "nt" or os.path.islink(path):
            return str(path.resolve())
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        return os.path.join(folders[folder], name)

    return resolve


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """A context that turns an OSError into an error that names the file and the reason.

    Raises:
        OutputError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            _("cannot write {path}: {reason}; free some space, or choose another location").format(
                path=path, reason=reason(error)
            ),
            path=path,
        ) from error


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: `write(temporary)` writes it next to `path`, then it is synced and renamed.

    Readers see the old file or the new one, never a partial one; on failure the old one is kept.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    temporary: Path | None = None
    try:
        with explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{short_stem(path)}-{secrets.token_hex(4)}{path.suffix}")
            temporary.touch(exist_ok=False)  # permissions by the user's umask
            mode = temporary.stat().st_mode
            write(temporary)
            temporary.chmod(mode)  # safetensors replaces the file by one that only the owner can read
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def short_stem(path: Path) -> str:
    """The stem of a file, shortened so that its temporary file's name is not too long."""
    room = _LONGEST_NAME - len(os.fsencode(f".-12345678{path.suffix}"))
    return os.fsdecode(os.fsencode(path.stem)[:room])


def model_path(path: Path) -> Path:
    """The model file of a run folder, or the path itself."""
    return path / MODEL_FILE if os.path.isdir(path) else path  # if it cannot be examined, opening it gives the reason


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
            if is_leftover(name, names):
                (folder / name).unlink(missing_ok=True)


def is_leftover(name: str, written: Container[tuple[str, ...]]) -> bool:
    """Whether a file name is that of a temporary file of `write_file`.

    Args:
        written: `short_stem` and suffix of the files that were to be written.
    """
    left = _TEMPORARY.fullmatch(name)
    return left is not None and left.groups() in written


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; file names that are not UTF-8 keep their bytes."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="surrogateescape"))


def read_text(path: Path) -> str:
    """Read a text file written by `write_text`, without a byte order mark.

    Raises:
        OSError: the file cannot be read.
    """
    return regular_file(path).read_text(encoding="utf-8-sig", errors="surrogateescape")


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
    """Write `value` as indented JSON, atomically; for numbers that are not finite see `json_text`."""
    write_text(path, json_text(value, indent=1) + "\n")


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON as UTF-8; numbers that are not finite, which JSON does not have, are null.

    Bytes of file names that are not UTF-8 are escaped (`\\udcXX`), as Python reads them back.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_null_for_nan(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _null_for_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _null_for_nan(inner) for key, inner in value.items()}
    return [*map(_null_for_nan, value)] if isinstance(value, list | tuple) else value
