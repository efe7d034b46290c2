"""Atomic file writes (temporary file, sync, rename) and checks before writing: disk space, existing files, inputs."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ubend.core.errors import OutputError
from ubend.core.i18n import _
from ubend.portable.files import (
    EXPORTED_SUFFIX,
    MODEL_FILE,
    DiskRequirement,
    check_disk_space,
    clear_leftovers,
    csv_cell,
    csv_text,
    explain_write_errors,
    is_of_the_disk,
    is_too_long,
    json_text,
    model_path,
    read_text,
    refuse_existing,
    refuse_foreign,
    refuse_inputs,
    refuse_shared,
    regular_file,
    resolve_many,
    write_csv,
    write_file,
    write_json,
    write_text,
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


def default_cache() -> Path:
    """The cache folder: `UBEND_CACHE`, or the system's cache location."""
    import platformdirs

    chosen = os.environ.get("UBEND_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("ubend", appauthor=False))


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
