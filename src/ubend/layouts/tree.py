"""Lists the files below a folder, without those left by operating systems, network storage and notebooks."""

import contextlib
import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ubend.core.errors import DataError, reason
from ubend.core.i18n import _
from ubend.layouts.naming import FOREIGN_SUFFIXES, MASK_SUFFIXES, folder_meaning
from ubend.portable.image_paths import is_system
from ubend.portable.printable import enumerate_names

# Folders and files left by operating systems, network storage and notebooks: thumbnails, deleted files and copies,
# which look like data. Names that begin with a dot are skipped as well.

_DATA_FILES = {"data.toml", "split.csv", "samples.png", "skipped.csv"}  # all that `ubend data` writes


@dataclass(frozen=True)
class FoundFile:
    """A file that may be an image or a mask.

    Attributes:
        path: the file.
        folders: the names of the folders between the root and the file.
        stem: its name without suffix. Both are in Unicode's composed form (macOS decomposes accents).
        suffix: in lower case.
    """

    path: Path
    folders: tuple[str, ...]
    stem: str
    suffix: str


def list_entries(folder: Path, wanted: Callable[[os.DirEntry[str]], bool] | None = None) -> list[os.DirEntry[str]]:
    """The content of a folder, sorted, without hidden files (`.DS_Store`, `._x`), system files and results of ubend.

    Args:
        wanted: which entries are wanted, asked before anything else; None: all.
    Raises:
        DataError: it cannot be read.
    """
    try:
        with os.scandir(folder) as listing:
            visible = (e for e in filter(wanted, listing) if e.name[0] != ".")
            kept = (e for e in visible if not is_system(e.name) and not (e.is_dir() and is_result(e)))
            return sorted(kept, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            _("cannot read the folder {folder}: {reason}; check the name and its permissions").format(
                folder=folder, reason=reason(error)
            ),
            path=folder,
        ) from error


def is_result(folder: os.DirEntry[str]) -> bool:
    """Whether this folder was written by `fit`, `predict` or `data`.

    Not if predictions are in a folder named like one of masks, or containing such folders: the user may want to
    train on them.
    """
    with contextlib.suppress(OSError):
        files = {name: os.path.join(folder.path, name) for name in ("run.json", "predict.json", "data.toml")}
        if os.path.isfile(files["run.json"]):
            return os.path.isfile(os.path.join(folder.path, "settings.toml"))
        if os.path.isfile(files["predict.json"]):
            with os.scandir(folder.path) as inside:
                names = [folder.name, *(entry.name for entry in inside if entry.is_dir())]
            return not any(map(folder_meaning, names))
        return holds_description(folder.path)
    return False


def holds_description(folder: str | Path) -> bool:
    """Whether a folder holds only what `ubend data` writes, which describes images and masks elsewhere."""
    return os.path.isfile(os.path.join(folder, "data.toml")) and set(os.listdir(folder)) <= _DATA_FILES


def skipped_folders(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> tuple[list[Path], list[Path]]:
    """(system folders, result folders) at any depth, which `list_entries` skips; for the arguments see `walk`."""
    system, results, inside = list[Path](), list[Path](), list[Path]()
    with contextlib.suppress(OSError), os.scandir(folder) as listing:
        for entry in listing:
            if entry.is_dir():
                if is_system(entry.name):
                    system.append(Path(entry.path))
                elif entry.name[0] != ".":
                    (results if is_result(entry) else inside).append(Path(entry.path))
        identity = folder.stat()
        here = (identity.st_dev, identity.st_ino)
        for path in inside if here not in above else ():
            more = skipped_folders(path, above | {here})
            system, results = system + more[0], results + more[1]
    return system, results


def subfolders(folder: Path) -> dict[str, Path]:
    """Name in lower case -> subfolder."""
    return {entry.name.casefold(): Path(entry.path) for entry in list_entries(folder, os.DirEntry.is_dir)}


def describe_content(folder: Path) -> str:
    """The content of a folder in words: `images/, notes.txt`; folders and files other than images first."""
    listed = sorted(
        list_entries(folder), key=lambda entry: (as_found_file(Path(entry.path), ()) is not None, entry.name)
    )
    return enumerate_names([entry.name + "/" * entry.is_dir() for entry in listed]) or _("nothing")


def walk(folder: Path, names: tuple[str, ...] = (), above: frozenset[tuple[int, int]] = frozenset()) -> list[FoundFile]:
    """All files below a folder with the suffix of an image or a mask, supported or not, sorted.

    Args:
        names: names of the folders between the root and this one.
        above: (device, inode) of each folder above; links to one of them are not followed.
    """
    identity, files = folder.stat(), list[FoundFile]()
    here = (identity.st_dev, identity.st_ino)
    for entry in list_entries(folder) if here not in above else ():
        if entry.is_dir():
            files += walk(Path(entry.path), (*names, _composed(entry.name)), above | {here})
        elif file := as_found_file(Path(entry.path), names):
            files.append(file)
    return files


def as_found_file(path: Path, folders: tuple[str, ...]) -> FoundFile | None:
    """The file, if it has the suffix of an image or a mask; otherwise None."""
    stem, suffix = os.path.splitext(path.name)
    suffix = ".nii.gz" if path.name.lower().endswith(".nii.gz") else suffix.lower()
    if suffix not in MASK_SUFFIXES and suffix not in FOREIGN_SUFFIXES:
        return None
    return FoundFile(path, folders, _composed(stem), suffix)


def is_empty(path: Path) -> bool:
    """Whether this is a file of 0 bytes or a broken link."""
    try:
        return not os.stat(path).st_size
    except OSError:
        return True


def _composed(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)
