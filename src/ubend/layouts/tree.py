"""The files below a folder, without what systems and notebooks leave behind."""

import contextlib
import glob
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from ubend.core.errors import DataError, reason
from ubend.core.i18n import _
from ubend.layouts.naming import FOREIGN_SUFFIXES, MASK_SUFFIXES, folder_meaning
from ubend.layouts.problems import enumerate_names

# Folders and files that systems, network storage and notebooks leave beside data. They hold thumbnails, deleted files
# and copies, which look like data. Any name that begins with a dot is skipped as well.
_SYSTEM = re.compile(
    r"__macosx|__pycache__|(eh)?thumbs\.db|desktop\.ini|lost\+found|found\.\d{3}|@eadir|@tmp|@synoresource|@recycle"
    r"|@recently-snapshot|#recycle|#snapshot|~snapshot|\$recycle\.bin|recycle[rd]|system volume information"
    r"|network trash folder|temporary items|\.trash.*|\.@__thumb|\.ipynb_checkpoints|\.snapshots?|\.appledouble"
    r"|\.thumbnails",
    re.IGNORECASE,
)

_DATA_FILES = {"data.toml", "split.csv", "samples.png", "skipped.csv"}  # all that `ubend data` writes


@dataclass(frozen=True)
class FoundFile:
    """A file that may be an image or a mask.

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
    """What lies in a folder, sorted, without hidden files (`.DS_Store`, `._x`), what systems write, and results.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            kept = (
                e for e in found if e.name[0] != "." and not is_system(e.name) and not (e.is_dir() and is_result(e))
            )
            return sorted(kept, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            _("cannot read the folder {folder}: {reason}; check the name and its permissions").format(
                folder=folder, reason=reason(error)
            ),
            path=folder,
        ) from error


def is_system(name: str) -> bool:
    """Is a file or folder of this name one that systems, network storage or notebooks leave beside data?"""
    return _SYSTEM.fullmatch(name) is not None


def is_result(folder: os.DirEntry[str]) -> bool:
    """Is this folder a result of `fit`, `predict` or `data`, which somebody wrote beside the data?

    Predictions in a folder that is named as one for masks, or that holds such folders, may be meant as masks.
    """
    with contextlib.suppress(OSError):
        files = {name: os.path.join(folder.path, name) for name in ("run.json", "predict.json", "data.toml")}
        if os.path.isfile(files["run.json"]):
            return os.path.isfile(os.path.join(folder.path, "settings.toml"))
        if os.path.isfile(files["predict.json"]):
            with os.scandir(folder.path) as inside:
                names = [folder.name, *(entry.name for entry in inside if entry.is_dir())]
            return not any(map(folder_meaning, names))
        return os.path.isfile(files["data.toml"]) and set(os.listdir(folder.path)) <= _DATA_FILES
    return False


def skipped_folders(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> tuple[list[Path], list[Path]]:
    """The folders of systems, and those of results, at any depth, which `entries` skips; for arguments see `walk`."""
    system, results, inside = list[Path](), list[Path](), list[Path]()
    with contextlib.suppress(OSError), os.scandir(folder) as some:
        for entry in some:
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


def expand_pattern(pattern: Path) -> list[Path]:
    """What a pattern matches, sorted, without what lies in folders of systems that it does not name itself."""
    found = map(Path, sorted(glob.glob(str(pattern), recursive=True)))
    return [path for path in found if not any(map(is_system, {*path.parts} - {*pattern.parts}))]


def subfolders(folder: Path) -> dict[str, Path]:
    """Name in small letters -> subfolder."""
    return {entry.name.casefold(): Path(entry.path) for entry in entries(folder) if entry.is_dir()}


def describe_content(folder: Path) -> str:
    """What lies in a folder, in words: `images/, notes.txt`; folders and what is no image first."""
    found = sorted(entries(folder), key=lambda entry: (as_found(Path(entry.path), ()) is not None, entry.name))
    return enumerate_names([entry.name + "/" * entry.is_dir() for entry in found]) or _("nothing")


def walk(folder: Path, names: tuple[str, ...] = (), above: frozenset[tuple[int, int]] = frozenset()) -> list[FoundFile]:
    """All files below a folder that have the suffix of an image or a mask, read or not, sorted.

    Args:
        names: of the folders between the root and this one.
        above: device and inode of the folders above; a link to one of them is not followed.
    """
    identity, files = folder.stat(), list[FoundFile]()
    here = (identity.st_dev, identity.st_ino)
    for entry in entries(folder) if here not in above else ():
        if entry.is_dir():
            files += walk(Path(entry.path), (*names, _composed(entry.name)), above | {here})
        elif found := as_found(Path(entry.path), names):
            files.append(found)
    return files


def as_found(path: Path, folders: tuple[str, ...]) -> FoundFile | None:
    """The file, when it has the suffix of an image or a mask."""
    stem, suffix = os.path.splitext(path.name)
    suffix = ".nii.gz" if path.name.lower().endswith(".nii.gz") else suffix.lower()
    if suffix not in MASK_SUFFIXES and suffix not in FOREIGN_SUFFIXES:
        return None
    return FoundFile(path, folders, _composed(stem), suffix)


def is_empty(path: Path) -> bool:
    """A file of 0 bytes, or a link to nothing."""
    try:
        return not os.stat(path).st_size
    except OSError:
        return True


def _composed(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)
