"""Expands the paths given on a command line to image files."""

import glob
import io
import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .errors import DataError
from .files import regular_file
from .i18n import _

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
# Files picked from a folder to predict; each one that cannot be read gets an error line.
KNOWN_IMAGE_SUFFIXES = (*IMAGE_SUFFIXES, ".gif", ".jp2", ".heic")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
_DICOM_MAGIC = b"DICM"  # after a preamble of 128 bytes
_SYSTEM = re.compile(
    r"__macosx|__pycache__|(eh)?thumbs\.db|desktop\.ini|lost\+found|found\.\d{3}|@eadir|@tmp|@synoresource|@recycle"
    r"|@recently-snapshot|#recycle|#snapshot|~snapshot|\$recycle\.bin|recycle[rd]|system volume information"
    r"|network trash folder|temporary items|\.trash.*|\.@__thumb|\.ipynb_checkpoints|\.snapshots?|\.appledouble"
    r"|\.thumbnails",
    re.IGNORECASE,
)


def is_system(name: str) -> bool:
    """Whether this is the name of a file or folder left by a system, network storage or notebook."""
    return _SYSTEM.fullmatch(name) is not None


def expand_pattern(pattern: Path) -> list[Path]:
    """The paths that match a pattern, sorted, without those in system folders that the pattern does not name."""
    paths = map(Path, sorted(glob.glob(str(pattern), recursive=True)))
    return [path for path in paths if not any(map(is_system, {*path.parts} - {*pattern.parts}))]


def _read_lines() -> Iterable[str]:
    """The lines of standard input; none if it is closed.

    Raises:
        DataError: they are not text.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # names that are not UTF-8
    for line in sys.stdin or ():
        if "\0" in line:
            message = _(
                "-: standard input holds the bytes of a file, but - reads a list of paths, one a line; give the path "
                "of the file instead"
            )
            raise DataError(message, key="paths")
        yield line


def images_in(folder: Path) -> list[Path]:
    """The images in a folder, sorted by name.

    Raises:
        OSError: the folder cannot be read.
    """
    return sorted(filter(is_image, folder.iterdir()))


def is_image(path: Path) -> bool:
    """Whether a file is an image, by its suffix, and not hidden."""
    return path.suffix.lower() in KNOWN_IMAGE_SUFFIXES and path.name[0] != "."


def is_scan_file(path: Path) -> bool:
    """Whether this is a NIfTI file, by its suffix, or a DICOM file, by its content."""
    return path.name.lower().endswith(NIFTI_SUFFIXES) or is_dicom(path)


def is_dicom(path: Path) -> bool:
    """Whether this is a DICOM file, by its content; not if it cannot be read."""
    try:
        with regular_file(path).open("rb") as file:
            return file.read(132)[128:] == _DICOM_MAGIC
    except OSError:
        return False


def refuse_folder(path: Path) -> None:
    """Fail if the path is a folder without images.

    Raises:
        DataError: it is.
        OSError: the folder cannot be read.
    """
    if path.is_dir() and not images_in(path):
        line = _("{path}: no images directly in this folder; give the folder of the images, or '{path}/**'")
        raise DataError(line.format(path=path), path=path)


def list_images(paths: Iterable[Path | str]) -> list[Path]:
    """List the image files that paths stand for.

    A folder stands for the images in it and a pattern for the images that match, both sorted by name; `-` for the
    lines of standard input. Files are listed unchanged, also if missing.

    Raises:
        DataError: there are no images, or standard input is not a list of paths.
    """
    images: list[Path] = []
    lines = (_read_lines() if str(path) == "-" else [str(path)] for path in paths)
    for path in (Path(line.rstrip("\r\n")) for lines_of in lines for line in lines_of if line.strip()):
        if os.path.isdir(path):
            inside = list[Path]()
            with suppress(OSError):
                inside = images_in(path)
            images += inside or [path]  # a folder without images is reported later: the other paths may be good
        elif not os.path.lexists(path) and (matched := expand_pattern(path)):
            files = [path_ for path_ in matched if os.path.isfile(path_)]
            images += [
                path_ for path_ in files if is_image(path_)
            ] or files  # as in a folder; all, to say what is wrong
        else:
            images.append(path)  # a missing file is reported when it is read
    if not images:
        raise DataError(_("no images to predict; give files or folders"), key="paths")
    return [*{os.path.abspath(path): path for path in images}.values()]  # a file that is named twice is taken once
