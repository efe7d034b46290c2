"""The JSON record in a folder of results: how they were made, and from which files."""

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from .decode import without_warnings
from .errors import DataError, OutputError, reason
from .files import explain_write_errors, read_text, write_json
from .i18n import _
from .version import __version__

_FREE = ("ubend", "path")  # may differ


@dataclass
class Record:
    """The record of the files in a folder.

    A line is added to a hidden journal before an input's files are written and when they are done, so that nothing is
    lost if the process is killed. At the end the lines become the entry `files`, in the order of the inputs.

    Attributes:
        path: of the JSON file.
        facts: the models' hashes, the conditions, and everything else that determines the results.
        files: name of an input's first output -> size and digest of the input, and bytes of each output, None until
            all of them are written. The summary files of a command are an entry without an input.
    """

    path: Path
    facts: Mapping[str, Any]
    files: dict[str, Any] = field(default_factory=dict)
    _adding: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def write(self) -> None:
        """Write the record, unless it exists."""
        if not self.path.exists():
            write_json(self.path, {"ubend": __version__, **self.facts, "files": {}})

    @property
    def _journal(self) -> Path:
        return self.path.with_name(f".{self.path.stem}.jsonl")

    def read_files(self) -> None:
        """Read the existing record and journal of the folder.

        Raises:
            OutputError: the record cannot be read, or has other facts.
        """
        if not self.path.exists():
            return
        try:
            was = json.loads(read_text(self.path))
            differ = [key for key, value in self.facts.items() if _stripped(was.get(key)) != _stripped(value)]
            self.files.update(was.get("files") or {})
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise OutputError(
                _("{path}: cannot be read ({reason}); choose another --out").format(path=self.path, reason=error),
                path=self.path,
                key="--out",
            ) from error
        if differ:
            raise OutputError(
                _(
                    "{folder}: its files were made by another model or with other options ({path} differs in {keys}); "
                    "choose another --out"
                ).format(folder=self.path.parent, path=self.path.name, keys=", ".join(differ)),
                path=self.path,
                key=differ[0],
            )
        with suppress(OSError):
            for line in read_text(self._journal).splitlines():
                with suppress(ValueError, RecursionError):  # the last line may be cut
                    self.files.update(json.loads(line))

    def begin(self, outputs: Sequence[Path], source: Mapping[str, Any]) -> None:
        """Record that writing an input's files starts; `source` is from `describe_source`."""
        self.add_entry(outputs[0].name, {**source, "outputs": {path.name: None for path in outputs}})

    def add(self, outputs: Sequence[Path], source: Mapping[str, Any]) -> None:
        """Record that an input's files are complete."""
        self.add_entry(outputs[0].name, {**source, "outputs": describe_outputs(outputs)})

    def add_entry(self, name: str, entry: Mapping[str, Any]) -> None:
        """Record an entry of `files`, under the name of its first output."""
        with self._adding:
            self.files[name] = entry
            with explain_write_errors(self._journal), self._journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps({name: entry}) + "\n")

    def close(self, names: Iterable[str]) -> None:
        """Write the entries of these outputs, in order, and all others whose files exist; without entries, remove the
        record."""
        ordered = {name: self.files[name] for name in names if name in self.files}
        files = {name: entry for name, entry in self.files.items() if name not in ordered and self._is_there(entry)}
        files |= ordered
        if not files:
            self._remove()
            return
        before = json.loads(read_text(self.path))
        if [*before.get("files", {}).items()] != [*files.items()]:
            write_json(self.path, {**before, "files": files})
        self._journal.unlink(missing_ok=True)

    def is_current(self, outputs: Sequence[Path], source: Path) -> bool:
        """Whether the files are complete and were made from the current content of this input."""
        sizes = self._sizes(outputs)
        if None in sizes.values() or not all(path.name in sizes and os.path.exists(path) for path in outputs):
            return False
        edited = 1 if _detects_truncation(outputs[0]) else 0  # a mask may have been edited by hand
        same = all(sizes[path.name] == _bytes(path) for path in outputs[edited:])
        entry = self.files[outputs[0].name]
        return same and all(map(_opens, outputs)) and describe_source(source).items() <= entry.items()

    def foreign(self, outputs: Sequence[Path]) -> list[Path]:
        """The existing files of an input that this command did not write, or that were changed later; truncated or
        damaged files do not count."""
        sizes = self._sizes(outputs)
        return [path for path in outputs if os.path.exists(path) and not _is_own(path, sizes)]

    def _sizes(self, outputs: Sequence[Path]) -> dict[str, int | None]:
        """Name -> recorded bytes of an input's files; empty where nothing is recorded."""
        entry = self.files.get(outputs[0].name)
        sizes = entry.get("outputs") if isinstance(entry, dict) else None
        return sizes if isinstance(sizes, dict) else {}

    def _is_there(self, entry: Mapping[str, Any]) -> bool:
        return any(os.path.exists(self.path.with_name(name)) for name in entry["outputs"])

    def _remove(self) -> None:
        """Remove the record, and the folder if it is empty afterwards."""
        self.path.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.parent.rmdir()


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
                    while data := file.read(2**20):
                        size += len(data)
                        digest.update(data)
    except OSError as error:
        raise DataError(_("{path}: {reason}").format(path=path, reason=reason(error)), path=path) from error
    return {"size": size, "digest": digest.hexdigest()}


def describe_outputs(outputs: Sequence[Path]) -> dict[str, int]:
    """Name -> bytes of an input's files."""
    return {path.name: _bytes(path) for path in outputs}


def _bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(part.stat().st_size for part in (path.iterdir() if path.is_dir() else [path]))


def _is_own(path: Path, sizes: Mapping[str, int | None]) -> bool:
    return path.name in sizes and (sizes[path.name] in (None, _bytes(path)) or not _opens(path))


def _detects_truncation(path: Path) -> bool:
    """Whether truncation of a file is detected, by `_opens` or by its next reader."""
    return path.is_dir() or path.suffix in (".png", ".tif", ".gz")


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


def _stripped(value: Any) -> Any:
    """A value after a round trip through JSON, without the keys that may differ."""
    if isinstance(value, Mapping):
        return {key: _stripped(item) for key, item in value.items() if key not in _FREE}
    return [_stripped(item) for item in value] if isinstance(value, list | tuple) else value
