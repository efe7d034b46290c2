"""Expand paths of the command line to files, and report skipped folders."""

import csv
import io
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from ubend.core.errors import DataError
from ubend.core.files import csv_cell, read_text
from ubend.core.i18n import _, ngettext
from ubend.io.scans import is_scan
from ubend.io.video import VIDEO_SUFFIXES
from ubend.portable.image_paths import expand_pattern, images_in, is_image
from ubend.portable.reporter import Reporter
from ubend.tasks.url_storage import as_path, is_url


def expand_input(path: Path, reporter: Reporter) -> list[Path]:
    """The inputs that a path stands for.

    Returns:
        Of a pattern, the images, scans and videos that match; of a CSV file, the files that it lists; of a folder
        without images, its scans and videos; else the path itself.
    Raises:
        DataError: a CSV file has no column `file`, or cannot be read.
    """
    if path.suffix.lower() == ".csv" and os.path.isfile(path):
        return read_file_list(path)
    if not os.path.lexists(path):
        found = [inner for inner in expand_pattern(path) if os.path.isfile(inner) or is_scan(inner)]
        known = [inner for inner in found if is_image(inner) or is_scan(inner) or is_video(inner)]
        return known or found or [path]  # as in a folder; all, to say what is wrong
    report_deeper_folders([path], reporter)
    others = list[Path]()
    if os.path.isdir(path) and not is_scan(path):
        with suppress(OSError):  # reported when the folder is read
            inside = sorted(inner for inner in path.iterdir() if inner.name[0] != ".")
            others = [inner for inner in inside if is_scan(inner) or is_video(inner)]
    if others and images_in(path):
        message = ngettext(
            "note: {count} scan or video in {folder} is skipped, because the folder contains images; name it",
            "note: {count} scans and videos in {folder} are skipped, because the folder contains images; name them",
            len(others),
        )
        reporter.report(message.format(count=len(others), folder=path))
        return [path]
    return others or [path]


def read_file_list(path: Path, read: Callable[[Path], str] = read_text) -> list[Path]:
    """The paths in the column `file` of a CSV file; relative ones start from the folder of the CSV file.

    Args:
        read: reads the text of the file.
    Raises:
        DataError: there is no such column, or it is empty, or the file cannot be read.
    """
    try:
        table = csv.DictReader(io.StringIO(read(path)))
        listed = [csv_cell(row["file"]) for row in table if row.get("file")]
    except (OSError, csv.Error) as error:
        raise DataError(_("{path}: {reason}").format(path=path, reason=error), path=path) from error
    if not listed:
        line = _("{path}: no files in the column 'file'; its first line names the columns, one of them file")
        raise DataError(line.format(path=path), path=path, key="file")
    return [as_path(file) if is_url(file) else path.parent / file for file in listed]


def report_deeper_folders(paths: Iterable[Path | str], reporter: Reporter) -> None:
    """Report folders among the paths that contain folders of images, which are not searched."""
    for folder in (Path(path) for path in paths if os.path.isdir(path) and not is_scan(Path(path))):
        deeper = 0
        with suppress(OSError):  # reported when the folder is read
            inside = (inner for inner in folder.iterdir() if inner.is_dir() and inner.name[0] != ".")
            deeper = sum(bool(images_in(inner)) and not is_scan(inner) for inner in inside)
        if deeper:
            message = ngettext(
                "note: {count} folder of images in {folder} is skipped; to include it, name it, or '{folder}/**'",
                "note: {count} folders of images in {folder} are skipped; to include them, name them, or '{folder}/**'",
                deeper,
            )
            reporter.report(message.format(count=deeper, folder=folder))


def is_video(path: Path) -> bool:
    """Whether a file is a video, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES
