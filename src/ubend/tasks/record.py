"""The JSON file in a folder of results that says what made them, and from which files."""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tifffile
from PIL import Image

from ubend._version import __version__
from ubend.core.errors import DataError, OutputError, reason
from ubend.core.files import read_text, telling_writes, write_json
from ubend.core.i18n import _
from ubend.core.progress import Teller
from ubend.io.decode import without_warnings

_FREE = ("ubend", "path")  # may differ


@dataclass
class Record:
    """What made the files of a folder.

    Each input whose files are done becomes a line of a hidden journal at once, so that nothing is lost where the
    process is killed; at the end the lines become the entry `files`, in the order of the inputs.

    Attributes:
        path: of the JSON file.
        facts: the models' hashes, the conditions, what else decides over what is written.
        files: name of an input's first output -> size and digest of the input, and bytes of each output; empty in
            a folder of an earlier version, which kept none.
        is_old: whether the folder was made by a version that kept no `files`, or its record is missing.
    """

    path: Path
    facts: Mapping[str, Any]
    files: dict[str, Any] = field(default_factory=dict)
    is_old: bool = True

    def write(self) -> None:
        """Write it, unless it is there."""
        if not self.path.exists():
            write_json(self.path, {"ubend": __version__, **self.facts, "files": {}})

    @property
    def _journal(self) -> Path:
        return self.path.with_name(f".{self.path.stem}.jsonl")

    def read_files(self) -> None:
        """Take over what is recorded of the files in the folder."""
        with suppress(OSError, ValueError, AttributeError, RecursionError):
            files = json.loads(read_text(self.path)).get("files")
            self.is_old = not isinstance(files, dict)
            self.files.update({} if self.is_old else files)
        with suppress(OSError):
            for line in read_text(self._journal).splitlines():
                with suppress(ValueError, RecursionError):  # the last line may be cut
                    self.files.update(json.loads(line))

    def add(self, outputs: Sequence[Path], source: Mapping[str, Any]) -> None:
        """An input's files are whole; `source` as from `describe_source`."""
        entry = {**source, "outputs": {path.name: _bytes(path) for path in outputs}}
        self.files[outputs[0].name] = entry
        with telling_writes(self._journal), self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps({outputs[0].name: entry}) + "\n")

    def close(self, names: Iterable[str]) -> None:
        """Write the entries of these outputs, in their order, with all others that are in the record."""
        ordered = {name: self.files[name] for name in names if name in self.files}
        files = {**{name: entry for name, entry in self.files.items() if name not in ordered}, **ordered}
        before = json.loads(read_text(self.path))
        if [*before.get("files", {}).items()] != [*files.items()]:
            write_json(self.path, {**before, "files": files})
        self._journal.unlink(missing_ok=True)

    def is_current(self, outputs: Sequence[Path], source: Path) -> bool:
        """Whether the files are those that were made from this very input, as far as is recorded, and are whole."""
        entry = self.files.get(outputs[0].name)
        if not all(os.path.exists(path) for path in outputs):
            return False
        if not isinstance(entry, dict):
            return self.is_old and all(map(_opens, outputs))
        sizes = entry.get("outputs")
        edited = 1 if _tells_damage(outputs[0]) else 0  # a mask may have been mended by hand
        same = isinstance(sizes, dict) and all(sizes.get(path.name) == _bytes(path) for path in outputs[edited:])
        return same and all(map(_opens, outputs)) and describe_source(source).items() <= entry.items()

    def remove(self) -> None:
        """Remove it, and the folder if that is empty then."""
        self.path.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.parent.rmdir()

    def refuse_other(self, teller: Teller, *, resume: bool) -> None:
        """OutputError: other facts made what is in the folder."""
        record = self.path
        if not record.exists():
            if resume and record.parent.is_dir() and any(path.name[0] != "." for path in record.parent.iterdir()):
                said = _("note: {path} is missing, so it is not known whether this model made what is there")
                teller.say(said.format(path=record))
            return
        try:
            was = json.loads(read_text(record))
            differ = [key for key, value in self.facts.items() if _stripped(was.get(key)) != _stripped(value)]
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise OutputError(
                _("{path}: cannot be read ({reason}); choose another --out").format(path=record, reason=error),
                path=record,
                key="--out",
            ) from error
        if differ:
            raise OutputError(
                _(
                    "{folder}: what is there was made by another model or under other conditions ({path} differs in "
                    "{keys}); choose another --out"
                ).format(folder=record.parent, path=record.name, keys=", ".join(differ)),
                path=record,
                key=differ[0],
            )


def describe_source(path: Path) -> dict[str, Any]:
    """Size in bytes and digest of an input: of a file, or of all files in a folder.

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


def _bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(part.stat().st_size for part in (path.iterdir() if path.is_dir() else [path]))


def _tells_damage(path: Path) -> bool:
    """Whether `_opens`, or the one that reads it next, finds out that a file is cut."""
    return path.is_dir() or path.suffix in (".png", ".tif", ".gz")


def _opens(path: Path) -> bool:
    """Whether a file is no part of one: it is not empty, and an image or archive has its end and its check sums."""
    try:
        if path.is_dir():
            return any(path.iterdir())
        if path.suffix == ".png":
            with without_warnings(), Image.open(path) as image:
                image.verify()
        elif path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
        elif path.suffix == ".tif":
            with without_warnings(), tifffile.TiffFile(path) as tiff:
                page = tiff.pages.first
                ends = [at + size for at, size in zip(page.dataoffsets, page.databytecounts, strict=True)]
                return max(ends) <= path.stat().st_size
        return path.stat().st_size > 0
    except Exception:  # decoders raise many kinds
        return False


def _stripped(value: Any) -> Any:
    """As JSON gives it back, without what may differ."""
    if isinstance(value, Mapping):
        return {key: _stripped(one) for key, one in value.items() if key not in _FREE}
    return [_stripped(one) for one in value] if isinstance(value, list | tuple) else value
