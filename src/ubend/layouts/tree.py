"""The files below a folder, without what systems and notebooks leave behind."""

import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from ubend.core.errors import DataError, reason
from ubend.core.i18n import _
from ubend.layouts.naming import FOREIGN_SUFFIXES, MASK_SUFFIXES
from ubend.layouts.problems import enumerate_names

_JUNK = frozenset(("__macosx", "__pycache__", "thumbs.db", "desktop.ini", "lost+found"))


@dataclass(frozen=True)
class Found:
    """A file that may be a picture or a mask.

    Attributes:
        path: the file.
        folders: the names of the folders between the root and the file.
        stem: its name without suffix. Both are in Unicode's composed form (macOS takes accents apart).
        suffix: in small letters.
    """

    path: Path
    folders: tuple[str, ...]
    stem: str
    suffix: str


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted, without hidden files (`.DS_Store`, `._x`) and what systems write.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            kept = (entry for entry in found if entry.name[0] != "." and entry.name.casefold() not in _JUNK)
            return sorted(kept, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            _("cannot read the folder {folder}: {reason}; check the name and its permissions").format(
                folder=folder, reason=reason(error)
            ),
            path=folder,
        ) from error


def subfolders(folder: Path) -> dict[str, Path]:
    """Name in small letters -> subfolder."""
    return {entry.name.casefold(): Path(entry.path) for entry in entries(folder) if entry.is_dir()}


def name_held(folder: Path) -> str:
    """What lies in a folder, in words: `images/, notes.txt`; folders and what is no picture first."""
    found = sorted(entries(folder), key=lambda entry: (as_found(Path(entry.path), ()) is not None, entry.name))
    return enumerate_names([entry.name + "/" * entry.is_dir() for entry in found]) or _("nothing")


def walk(folder: Path, names: tuple[str, ...] = (), above: frozenset[tuple[int, int]] = frozenset()) -> list[Found]:
    """All files below a folder that have the suffix of a picture or a mask, read or not, sorted.

    Args:
        names: of the folders between the root and this one.
        above: device and inode of the folders above; a link to one of them is not followed.
    """
    identity, files = folder.stat(), list[Found]()
    here = (identity.st_dev, identity.st_ino)
    for entry in entries(folder) if here not in above else ():
        if entry.is_dir():
            files += walk(Path(entry.path), (*names, _composed(entry.name)), above | {here})
        elif found := as_found(Path(entry.path), names):
            files.append(found)
    return files


def as_found(path: Path, folders: tuple[str, ...]) -> Found | None:
    """The file, when it has the suffix of a picture or a mask."""
    stem, suffix = os.path.splitext(path.name)
    suffix = ".nii.gz" if path.name.lower().endswith(".nii.gz") else suffix.lower()
    if suffix not in MASK_SUFFIXES and suffix not in FOREIGN_SUFFIXES:
        return None
    return Found(path, folders, _composed(stem), suffix)


def is_empty(path: Path) -> bool:
    """A file of 0 bytes, or a link to nothing."""
    try:
        return not os.stat(path).st_size
    except OSError:
        return True


def _composed(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)
