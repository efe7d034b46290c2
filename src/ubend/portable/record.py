"""The JSON record in a folder of results: how they were made, and from which files."""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import OutputError
from .files import json_text
from .i18n import _
from .printable import enumerate_names
from .reporter import Reporter
from .storage import LOCAL, Storage
from .version import __version__

_FREE = ("ubend", "path")  # may differ
_FLAGS = {  # parameter -> its flag
    "thresholds": "--threshold",
    "min_area": "--min-area",
    "fill_holes": "--fill-holes",
    "window": "--window",
    "prob": "--prob",
    "classes": "--class",
    "background": "--background",
    "soft_px": "--soft",
}
_MODEL_FLAGS = {"views": "--tta", "tiles": "--tiles", "overlap": "--overlap"}  # of an entry of `models`


@dataclass
class Record:
    """The record of the files in a folder.

    A line is added to a hidden journal before an input's files are written and when they are done, so that nothing is
    lost if the process is killed. At the end the lines become the entry `files`, in the order of the inputs.

    Attributes:
        path: of the JSON file.
        parameters: the models' hashes, the options, and everything else that determines the results.
        storage: of the folder.
        files: name of an input's first output -> size and digest of the input, and bytes of each output, None until
            all of them are written. The summary files of a command are an entry without an input.
    """

    path: Path
    parameters: Mapping[str, Any]
    storage: Storage = LOCAL
    files: dict[str, Any] = field(default_factory=dict)
    _adding: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def write(self) -> None:
        """Write the record, unless it exists."""
        if not self.storage.exists(self.path):
            self._write({"ubend": __version__, **self.parameters, "files": {}})

    def _write(self, value: Any) -> None:
        self.storage.write_text(self.path, json_text(value, indent=1) + "\n")

    @property
    def _journal(self) -> Path:
        return self.path.with_name(f".{self.path.stem}.jsonl")

    def read_files(self) -> None:
        """Read the existing record and journal of the folder.

        Raises:
            OutputError: the record cannot be read, or has other parameters.
        """
        if not self.storage.exists(self.path):
            return
        try:
            was = json.loads(self.storage.read_text(self.path))
            differ = _differing_flags(was, self.parameters)
            self.files.update(was.get("files") or {})
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise OutputError(
                _("{path}: cannot be read ({reason}); choose another --out").format(path=self.path, reason=error),
                path=self.path,
                key="--out",
            ) from error
        if differ:
            raise OutputError(
                _(
                    "{folder}: the files there were made with other values of {names} than now (see {path}); use the "
                    "same values again, or choose another --out"
                ).format(folder=self.path.parent, path=self.path.name, names=enumerate_names(differ)),
                path=self.path,
                key=differ[0],
            )
        with suppress(OSError):
            for line in self.storage.read_lines(self._journal):
                with suppress(ValueError, RecursionError):  # the last line may be cut
                    self.files.update(json.loads(line))

    def begin(self, outputs: Sequence[Path], source: Mapping[str, Any]) -> None:
        """Record that writing an input's files starts; `source` is from `describe_source`."""
        self.add_entry(outputs[0].name, {**source, "outputs": {path.name: None for path in outputs}})

    def add(self, outputs: Sequence[Path], source: Mapping[str, Any]) -> None:
        """Record that an input's files are complete."""
        self.add_entry(outputs[0].name, {**source, "outputs": self.storage.describe_outputs(outputs)})

    def add_entry(self, name: str, entry: Mapping[str, Any]) -> None:
        """Record an entry of `files`, under the name of its first output."""
        with self._adding:
            self.files[name] = entry
            self.storage.append_line(self._journal, json.dumps({name: entry}))

    def close(self, names: Iterable[str]) -> None:
        """Write the entries of these outputs, in order, and all others whose files exist; without entries, remove the
        record."""
        ordered = {name: self.files[name] for name in names if name in self.files}
        files = {name: entry for name, entry in self.files.items() if name not in ordered and self._is_there(entry)}
        files |= ordered
        if not files:
            self._remove()
            return
        before = json.loads(self.storage.read_text(self.path))
        if [*before.get("files", {}).items()] != [*files.items()]:
            self._write({**before, "files": files})
        self.storage.remove(self._journal)

    def is_current(self, outputs: Sequence[Path], source: Path) -> bool:
        """Whether the files are complete and were made from the current content of this input."""
        sizes = self._sizes(outputs)
        storage = self.storage
        if None in sizes.values() or not all(path.name in sizes and storage.exists(path) for path in outputs):
            return False
        edited = 1 if _detects_truncation(outputs[0]) else 0  # a mask may have been edited by hand
        same = all(sizes[path.name] == storage.size(path) for path in outputs[edited:])
        entry = self.files[outputs[0].name]
        return same and all(map(storage.is_whole, outputs)) and storage.is_same_source(source, entry, outputs[0])

    def foreign(self, outputs: Sequence[Path]) -> list[Path]:
        """The existing files of an input that this command did not write, or that were changed later; truncated or
        damaged files do not count."""
        sizes = self._sizes(outputs)
        return [path for path in outputs if self.storage.exists(path) and not self._is_own(path, sizes)]

    def _is_own(self, path: Path, sizes: Mapping[str, int | None]) -> bool:
        same = path.name in sizes and sizes[path.name] in (None, self.storage.size(path))
        return same or (path.name in sizes and not self.storage.is_whole(path))

    def _sizes(self, outputs: Sequence[Path]) -> dict[str, int | None]:
        """Name -> recorded bytes of an input's files; empty where nothing is recorded."""
        entry = self.files.get(outputs[0].name)
        sizes = entry.get("outputs") if isinstance(entry, dict) else None
        return sizes if isinstance(sizes, dict) else {}

    def _is_there(self, entry: Mapping[str, Any]) -> bool:
        return any(self.storage.exists(self.path.with_name(name)) for name in entry["outputs"])

    def _remove(self) -> None:
        """Remove the record, and the folder if it is empty afterwards."""
        self.storage.remove(self.path, self._journal)
        self.storage.remove_empty(self.path.parent)


def _detects_truncation(path: Path) -> bool:
    """Whether truncation of a file is detected, by `_opens` or by its next reader."""
    return path.is_dir() or path.suffix in (".png", ".tif", ".gz")


def _differing_flags(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The flags (or MODEL) whose values differ between a record and these parameters."""
    flags = []
    for key, value in now.items():
        before, value = _stripped(was.get(key)), _stripped(value)
        if before != value:
            flags += _differing_of_models(before, value) if key == "models" else [_FLAGS.get(key, key)]
    return flags


def _differing_of_models(was: list[Any], now: list[Any]) -> list[str]:
    """The same for the models; only how they predict differs where the files are the same."""
    hashes, others = ([model["sha256"] for model in models] for models in (was, now))
    if hashes[:1] != others[:1]:
        return ["MODEL"]
    if hashes != others:
        return ["--with"]
    pairs = [*zip(was, now, strict=True)]
    flags = [flag for key, flag in _MODEL_FLAGS.items() if any(a.get(key) != b.get(key) for a, b in pairs)]
    flags = [flag for flag in flags if flag != "--overlap" or "--tiles" not in flags]  # whole images have no overlap
    return flags or ["MODEL"]  # it differs in what this version does not know


def _stripped(value: Any) -> Any:
    """A value after a round trip through JSON, without the keys that may differ."""
    if isinstance(value, Mapping):
        return {key: _stripped(item) for key, item in value.items() if key not in _FREE}
    return [_stripped(item) for item in value] if isinstance(value, list | tuple) else value


@contextmanager
def name_resume(record: Record | None, reporter: Reporter) -> Iterator[None]:
    """Report how to go on if the work is interrupted and has a record."""
    try:
        yield
    except KeyboardInterrupt:
        if record is not None:
            reporter.report(_("stopped; the same command with --resume makes the files that are missing"))
        raise
