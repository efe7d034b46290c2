"""Where the files of a command are: in folders of this machine. `ubend.tasks.url_storage` adds object storage."""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from .decode import without_warnings
from .errors import DataError, reason
from .files import (
    DiskRequirement,
    check_disk_space,
    clear_leftovers,
    explain_write_errors,
    read_text,
    write_text,
)
from .i18n import _
from .lock import locked


@dataclass
class Staged:
    """Local files that stand for inputs and outputs elsewhere.

    Attributes:
        paths: of the inputs.
        out: folder for the outputs.
        wrong: position of an input -> why it could not be fetched.
        meant: local path -> what it stands for.
    """

    paths: list[Path]
    out: Path
    wrong: dict[int, OSError] = field(default_factory=dict)
    meant: dict[Path, Path] = field(default_factory=dict)

    def restore(self, text: str) -> str:
        """A message with the places that are meant instead of the local ones."""
        for local, path in self.meant.items():
            text = text.replace(str(local), str(path))
        return text


class Storage:
    """Everything that the file pipeline does with inputs and outputs, except to decode and encode them."""

    def exists(self, path: Path) -> bool:
        """Whether there is such a file or folder."""
        return os.path.exists(path)

    def size(self, path: Path) -> int:
        """Bytes of a file, or of all files in a folder."""
        return sum(part.stat().st_size for part in (path.iterdir() if path.is_dir() else [path]))

    def describe_outputs(self, outputs: Sequence[Path]) -> dict[str, int]:
        """Name -> bytes of an input's files."""
        return {path.name: self.size(path) for path in outputs}

    def is_whole(self, path: Path) -> bool:
        """Whether an output is complete: not empty, and for an image or archive with its end and correct check sums."""
        return _opens(path)

    def is_same_source(self, path: Path, entry: Mapping[str, Any], output: Path) -> bool:
        """Whether an input is still the one that `output` was made from.

        Args:
            entry: size and digest of the input at that time, see `describe_source`.
        """
        return describe_source(path).items() <= entry.items()

    def fetched(self, path: Path, *, head: bool = False) -> AbstractContextManager[Path]:
        """A context with a local file of the same name and content.

        Args:
            head: the beginning suffices, unless the file is a TIFF.
        Raises:
            OSError: there is no such file, or it cannot be read.
        """
        return contextlib.nullcontext(path)

    def staged(self, inputs: Sequence[Path], out: Path) -> AbstractContextManager["Staged"]:
        """A context with local files of inputs, and a local folder for outputs, see `publish`."""
        return contextlib.nullcontext(Staged([*inputs], out))

    def publish(self, outputs: Sequence[Path], out: Path) -> None:
        """Move complete outputs of the folder of `staged` to `out`, the first one last.

        Raises:
            OutputError: they cannot be written.
        """

    def read_text(self, path: Path) -> str:
        """A text file, see `files.read_text`."""
        return read_text(path)

    def write_text(self, path: Path, text: str) -> None:
        """Write a text file atomically, see `files.write_text`."""
        write_text(path, text)

    def append_line(self, path: Path, line: str) -> None:
        """Add a line to a text file.

        Raises:
            OutputError: it cannot be written.
        """
        with explain_write_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read_lines(self, path: Path) -> Sequence[str]:
        """The lines that `append_line` added; the last one may be cut.

        Raises:
            OSError: there is no such file, or it cannot be read.
        """
        return read_text(path).splitlines()

    def flush(self) -> None:
        """Write the lines of `append_line` that are not written yet."""

    def remove(self, *paths: Path) -> None:
        """Delete files, if they exist."""
        for path in paths:
            path.unlink(missing_ok=True)

    def remove_empty(self, folder: Path) -> None:
        """Delete a folder if it is empty."""
        with contextlib.suppress(OSError):
            folder.rmdir()

    def locked(self, folder: Path) -> AbstractContextManager[None]:
        """Hold the lock of an output folder, see `lock.locked`."""
        return locked(folder)

    def check_space(self, requirements: Sequence[DiskRequirement]) -> None:
        """Fail if there is less free space than the outputs need, see `check_disk_space`."""
        check_disk_space(requirements)

    def clear_leftovers(self, paths: Iterable[Path]) -> None:
        """Delete temporary files that killed writers of `paths` left."""
        clear_leftovers(paths)


LOCAL = Storage()


def describe_source(path: Path) -> dict[str, Any]:
    """Size in bytes and digest of an input, a file or a folder.

    Raises:
        DataError: it cannot be read.
    """
    digest, size = hashlib.blake2b(digest_size=16), 0
    try:
        for part in sorted(path.iterdir()) if path.is_dir() else [path]:
            if part.is_file():
                with part.open("rb") as file:
                    hashlib.file_digest(file, lambda: digest)
                    size += file.tell()
    except OSError as error:
        raise DataError(_("{path}: {reason}").format(path=path, reason=reason(error)), path=path) from error
    return {"size": size, "digest": digest.hexdigest()}


def _opens(path: Path) -> bool:
    """Whether a file is complete: not empty, and for an image or archive with its end and correct check sums."""
    try:
        if path.is_dir():
            return any(path.iterdir())
        if path.suffix == ".png":
            with without_warnings(), Image.open(path) as image:
                image.verify()
        elif path.suffix == ".npz":
            import zipfile

            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
        elif path.suffix == ".tif":
            import tifffile

            with without_warnings(), tifffile.TiffFile(path) as tiff:
                page = tiff.pages.first
                ends = [at + size for at, size in zip(page.dataoffsets, page.databytecounts, strict=True)]
                return max(ends) <= path.stat().st_size
        elif path.suffix == ".gz":
            import gzip

            with gzip.open(path) as packed:
                while packed.read(2**20):
                    pass
        return path.stat().st_size > 0
    except Exception:  # decoders raise many kinds
        return False
