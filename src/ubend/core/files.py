"""Files written whole or not at all: beside the target, synced, then renamed over it. Room for them."""

import contextlib
import csv
import glob
import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ubend.core.errors import DataError, OutputError, reason
from ubend.core.i18n import _


@dataclass(frozen=True)
class Need:
    """Room that will be wanted on a disk.

    Attributes:
        folder: where; it need not exist yet.
        size: bytes.
        cure: what a person can do to want less of it there; a part of a sentence.
    """

    folder: Path
    size: int
    cure: str


def refuse_full(needs: Sequence[Need]) -> None:
    """Fail where the disks have less room than all of this wants together; nothing is written.

    Raises:
        OutputError: one line for each disk that is too full.
    """
    together: dict[int, list[Need]] = {}
    for need in needs:
        together.setdefault(_standing(need.folder).stat().st_dev, []).append(need)
    lines = []
    for group in together.values():
        free, size = shutil.disk_usage(_standing(group[0].folder)).free, sum(need.size for need in group)
        if size > free:
            said = _(
                "{folders}: about {size:.1f} MiB will be written, but {free:.1f} MiB are free; free some, or {cure}"
            )
            folders = ", ".join(str(need.folder) for need in group)
            cure = ", ".join(dict.fromkeys(need.cure for need in group))
            lines.append(said.format(folders=folders, size=size / 2**20, free=free / 2**20, cure=cure))
    if lines:
        raise OutputError("\n".join(lines), path=needs[0].folder)


def refuse_taken(folder: Path | str) -> Path:
    """The folder that results will be written to: there is none of that name yet, or an empty one.

    Raises:
        OutputError: something is there already, or it cannot be looked into.
    """
    folder = Path(folder)
    with telling_writes(folder):
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken:
        raise OutputError(_("{path} exists already; choose another folder").format(path=folder), path=folder)
    return folder


def refuse_existing(paths: Iterable[Path], *, resumable: bool = False) -> None:
    """Fail where a file that is to be written is there already.

    Args:
        resumable: whether the command takes `--resume`.
    Raises:
        OutputError: it is.
    """
    there = [path for path in paths if path.exists()]
    if there:
        said = _("{path} exists already; choose another --out")
        if resumable:
            said = _("{path} exists already, and {count} more; choose another --out, or go on with --resume")
        raise OutputError(said.format(path=there[0], count=len(there) - 1), path=there[0], key="--out")


def refuse_shared(files: Iterable[tuple[Path, Sequence[Path]]], what: str) -> None:
    """Fail where two inputs would be written to one file.

    Args:
        files: an input, and the files that are to be written for it.
        what: what they would overwrite, for people.
    Raises:
        DataError: some would.
    """
    owners: dict[Path, list[Path]] = {}
    for owner, own in files:
        for file in own:
            owners.setdefault(file, []).append(owner)
    twice = sorted({str(path) for paths in owners.values() if len(paths) > 1 for path in paths})
    if twice:
        said = _("{names} would overwrite each other's {what}; give each its own --out")
        raise DataError(said.format(names=", ".join(twice[:6]), what=what), path=Path(twice[0]), key="--out")


MODEL_FILE = "model.safetensors"  # of a run folder


def model_path(path: Path) -> Path:
    """The model file of a run folder, or the path itself."""
    return path / MODEL_FILE if path.is_dir() else path


def default_cache() -> Path:
    """The cache folder: `UBEND_CACHE`, or the system's place for caches."""
    import platformdirs

    chosen = os.environ.get("UBEND_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("ubend", appauthor=False))


def _standing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def resolve_many() -> Callable[[Path], str]:
    """`str(path.resolve())` for thousands of files: looks at their folders once, at each file only for a link."""
    folders: dict[str, str] = {}

    def resolve(path: Path) -> str:
        folder, name = os.path.split(path)
        if name in ("", ".", "..") or os.name == "nt" or os.path.islink(path):  # Windows also mends the name's case
            return str(path.resolve())
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        return os.path.join(folders[folder], name)

    return resolve


@contextlib.contextmanager
def telling_writes(path: Path) -> Iterator[None]:
    """Says which file could not be written, and why.

    Raises:
        OutputError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            _("cannot write {path}: {reason}; free some space or choose another place").format(
                path=path, reason=reason(error)
            ),
            path=path,
        ) from error


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(temporary)` fill a file beside `path`, sync it, then rename it to `path`.

    A reader sees the old file or the new one, never a part; on any failure the old one stays.

    Raises:
        OutputError: the disk is full, or the place cannot be written.
    """
    temporary: Path | None = None
    try:
        with telling_writes(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
            temporary.touch(exist_ok=False)  # with the permissions that the user's umask gives
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def clear_leftovers(path: Path) -> None:
    """Delete what writers of `path` left beside it when they were killed."""
    for left in path.parent.glob(f".{glob.escape(path.stem)}-????????{glob.escape(path.suffix)}"):
        left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write rows as CSV, whole or not at all."""
    write_text(path, csv_text(rows))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
