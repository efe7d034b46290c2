"""Inputs and outputs in object storage (`s3://bucket/folder`), through fsspec.

`UrlInputs` is for inputs by URL and outputs in a folder, `UrlStorage` also for outputs by URL; `storage_for` chooses.
"""

import contextlib
import datetime
import errno
import os
import platform
import re
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from fnmatch import fnmatch
from pathlib import Path, PosixPath
from typing import Any, NamedTuple

from ubend.core.errors import DataError, MissingPackageError, OutputError, Problem, SettingError, UbendError
from ubend.core.files import DiskRequirement, read_text
from ubend.core.i18n import _
from ubend.portable.files import is_leftover, short_stem
from ubend.portable.image_paths import KNOWN_IMAGE_SUFFIXES
from ubend.portable.lock import LOCK
from ubend.portable.prefetch import prefetch
from ubend.portable.storage import LOCAL, Staged, Storage
from ubend.portable.tiff import is_tiff

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)", re.DOTALL)
_HEAD_BYTES = 2**16  # of an image, read for its header
_FLUSH_S = 5.0  # between two parts of the journal
_LATEST = ("LastModified", "mtime", "last_modified", "updated", "created")  # names of the time in different storage
_PACKAGES = {"s3": "'ubend[cluster]'", "s3a": "'ubend[cluster]'", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}


class UrlPath(PosixPath):
    """A path whose text is a URL; only its names are used as those of a path, never the file system."""

    def __str__(self) -> str:
        scheme, _slash, rest = super().__str__().partition(":/")
        return f"{scheme}://{rest}"


class _Object(NamedTuple):
    """Bytes, and seconds since 1970 (None: not stated) of an object."""

    size: int
    changed: float | None


def as_path(path: Path | str) -> Path:
    """The path of a file, or of a URL such as `s3://bucket/name`, in which `Path` leaves only one slash."""
    if isinstance(path, UrlPath):
        return path
    if os.name == "nt" or not (match := _URL.fullmatch(str(path))):
        return Path(path)
    return UrlPath(f"{match[1]}:/{match[2]}")


def is_url(path: Path | str) -> bool:
    """Whether a path is a URL."""
    return isinstance(as_path(path), UrlPath)


def refuse_urls(paths: Iterable[Path | str]) -> None:
    """Fail if there is a URL among paths that must be files.

    Raises:
        SettingError: there is one.
    """
    for path in map(as_path, paths):
        if is_url(path):
            line = _("{url}: URLs need --cluster auto, or the address of a Ray cluster; see docs/cluster.md")
            raise SettingError(line.format(url=path), path=path, key="--cluster")


def storage_for(paths: Iterable[Path], out: Path) -> Storage:
    """The storage for these inputs and this output folder."""
    if is_url(out):
        return UrlStorage(out)
    return UrlInputs() if any(map(is_url, paths)) else LOCAL


def expand_url(url: Path, inputs: "UrlInputs") -> list[Path]:
    """The files that a URL stands for: of a folder, the images directly in it; of a pattern, those that match.

    Raises:
        SettingError: there is no such bucket, or it cannot be read.
        DataError: there are no images.
    """
    if any(letter in str(url) for letter in "*?["):
        listed = [path for path in inputs.glob(url) if path.name[0] != "."]
    elif url.suffix.lower() in KNOWN_IMAGE_SUFFIXES:
        return [url]  # read, and reported if missing, like other files
    else:
        names = sorted(inputs.list_folder(url))
        listed = [url / name for name in names if name[0] != "." and fnmatch(name.lower(), "*.?*")]
        listed = [path for path in listed if path.suffix.lower() in KNOWN_IMAGE_SUFFIXES]
    if not listed:
        line = _("{url}: no images there; give the URL of the folder that they are directly in, or a pattern")
        raise DataError(line.format(url=url), path=url, key="paths")
    return listed


class UrlInputs(Storage):
    """Inputs by URL or path; outputs in a folder."""

    def __init__(self) -> None:
        self._objects: dict[Path, _Object] = {}

    def list_folder(self, url: Path) -> dict[str, _Object]:
        """Name -> facts of the objects directly in a folder; empty if there is none.

        Raises:
            SettingError: there is no such bucket, or it cannot be read.
        """
        with _all_fatal(url), _explained(url):
            system, place = _open(url)
            try:
                rows = system.ls(place, detail=True, refresh=True)
            except FileNotFoundError:
                if not _has_bucket(system, place):
                    raise
                rows = []
            named = {str(row["name"]).rpartition("/")[2]: row for row in rows if row["type"] == "file"}
            found = {name: _describe(row) for name, row in named.items() if name}
        self._objects |= {url / name: facts for name, facts in found.items()}
        return found

    def glob(self, url: Path) -> list[Path]:
        """The objects that match a pattern, sorted; errors as of `list_folder`."""
        with _all_fatal(url), _explained(url):
            system, place = _open(url)
            rows = {
                as_path(system.unstrip_protocol(name)): row for name, row in system.glob(place, detail=True).items()
            }
            if not rows and not _has_bucket(system, place):
                raise FileNotFoundError
        self._objects |= {path: _describe(row) for path, row in rows.items() if row["type"] == "file"}
        return sorted(path for path, row in rows.items() if row["type"] == "file")

    def read_object(self, url: Path) -> str:
        """The text of an object; errors as of `list_folder`."""
        with _all_fatal(url), self.fetched(url) as local:
            return read_text(local)

    def fetched(self, path: Path, *, head: bool = False) -> AbstractContextManager[Path]:
        return self._fetched(path, head) if is_url(path) else super().fetched(path, head=head)

    @contextlib.contextmanager
    def _fetched(self, url: Path, head: bool) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="ubend-") as folder:
            local = Path(folder) / url.name
            self.download(url, local, head=head)
            try:
                yield local
            except DataError as error:
                lines = [_renamed(line, local, url) for line in error.problems]
                raise DataError(lines, path=url, key=error.key) from error

    def download(self, url: Path, local: Path, *, head: bool = False) -> None:
        """Write an object to a file.

        Args:
            head: see `Storage.fetched`.
        Raises:
            OSError: there is no such object, or it may not be read.
            SettingError: there is no such bucket, or it cannot be reached.
        """
        with _explained(url):
            system, place = _open(url)
            if head:
                data = system.cat_file(place, start=0, end=_HEAD_BYTES)
                if len(data) < _HEAD_BYTES or not is_tiff(data):
                    local.write_bytes(data)
                    return
            system.get_file(place, str(local))

    @contextlib.contextmanager
    def staged(self, inputs: Sequence[Path], out: Path) -> Iterator[Staged]:
        with tempfile.TemporaryDirectory(prefix="ubend-") as folder:
            staged = Staged([*inputs], out)
            self._place_outputs(staged, Path(folder))

            def fetch(position: int) -> None:
                url = inputs[position]
                staged.paths[position] = local = Path(folder) / str(position) / url.name  # names may be alike
                local.parent.mkdir()
                staged.meant[local] = url
                try:
                    self.download(url, local)
                except OSError as error:
                    staged.wrong[position] = error

            for _done in prefetch(fetch, [position for position, path in enumerate(inputs) if is_url(path)]):
                pass
            yield staged

    def _place_outputs(self, staged: Staged, folder: Path) -> None:
        """Replace the folder of the outputs by a local one, if it is not local."""

    def is_same_source(self, path: Path, entry: Mapping[str, Any], output: Path) -> bool:
        """For an object: whether its size is the same, and it was not written after the output."""
        if not is_url(path):
            return super().is_same_source(path, entry, output)
        source, changed = self._describe_object(path), self._changed(output)
        known = source.changed is not None and changed is not None
        return known and source.size == entry.get("size") and source.changed <= changed  # type: ignore[operator]

    def _describe_object(self, url: Path) -> _Object:
        if url not in self._objects:
            with _explained(url):
                system, place = _open(url)
                self._objects[url] = _describe(system.info(place))
        return self._objects[url]

    def _changed(self, output: Path) -> float | None:
        return output.stat().st_mtime


class UrlStorage(UrlInputs):
    """Inputs by URL or path; outputs in object storage.

    The journal is written in parts, since objects cannot be appended to. Nobody holds a lock: its object shows the
    processes on the nodes that they write to the same place.

    Args:
        out: URL of the output folder.
    """

    def __init__(self, out: Path) -> None:
        super().__init__()
        self._out, self._lines = out, list[str]()
        self._journal, self._parts, self._flushed = out, 0, time.monotonic()
        self._outputs: dict[str, _Object] | None = None

    def _listed(self) -> dict[str, _Object]:
        """The objects in the output folder when the command began."""
        if self._outputs is None:
            with _as_output():
                self._outputs = self.list_folder(self._out)
        return self._outputs

    def exists(self, path: Path) -> bool:
        return path.name in self._listed()

    def size(self, path: Path) -> int:
        return self._listed()[path.name].size

    def is_whole(self, path: Path) -> bool:
        """Objects appear as a whole."""
        return self.size(path) > 0

    def _changed(self, output: Path) -> float | None:
        return self._listed()[output.name].changed

    def read_text(self, path: Path) -> str:
        with self.fetched(path) as local:
            return super().read_text(local)

    def write_text(self, path: Path, text: str) -> None:
        self.flush()
        self._put(path, text)

    def _put(self, path: Path, text: str) -> None:
        data = text.encode("utf-8", "surrogateescape")
        with _as_output(), _all_fatal(path), _explained(path):
            system, place = _open(path)
            system.pipe_file(place, data)
        self._listed()[path.name] = _Object(len(data), time.time())

    def upload(self, local: Path, path: Path) -> None:
        """Write a file to an object: under a temporary name, then under its own.

        Raises:
            OutputError: it cannot be written.
        """
        with _as_output(), _all_fatal(path), _explained(path):
            system, place = _open(path)
            folder, _slash, _name = place.rpartition("/")
            temporary = f"{folder}/.{short_stem(path)}-{secrets.token_hex(4)}{path.suffix}"
            system.put_file(str(local), temporary)
            system.cp_file(temporary, place)
            system.rm_file(temporary)

    def _place_outputs(self, staged: Staged, folder: Path) -> None:
        local = folder / "out"
        local.mkdir()
        staged.meant[local] = staged.out
        staged.out = local

    def publish(self, outputs: Sequence[Path], out: Path) -> None:
        for local in reversed(outputs):
            self.upload(local, out / local.name)
            local.unlink()

    def append_line(self, path: Path, line: str) -> None:
        self._journal = path
        self._lines.append(line)
        if time.monotonic() > self._flushed + _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        lines, self._lines, self._flushed = self._lines, [], time.monotonic()
        if lines:
            if not self._parts:
                self._parts = max(0, *map(_part_number, self._names_of_parts(self._journal)), 0)
            self._parts += 1
            part = self._journal.with_name(f"{self._journal.stem}-{self._parts:06d}{self._journal.suffix}")
            self._put(part, "".join(f"{line}\n" for line in lines))

    def _names_of_parts(self, journal: Path) -> list[str]:
        pattern = re.compile(rf"{re.escape(journal.stem)}-\d+{re.escape(journal.suffix)}")
        return sorted(name for name in self._listed() if pattern.fullmatch(name))

    def read_lines(self, path: Path) -> Sequence[str]:
        parts = [self.read_text(path.with_name(name)) for name in self._names_of_parts(path)]
        return [line for part in parts for line in part.splitlines()]

    def remove(self, *paths: Path) -> None:
        if self._journal in paths:
            self._lines = []
        self.flush()
        for path in paths:
            names = [path.name, *self._names_of_parts(path)]
            self._delete([name for name in names if name in self._listed()])

    def _delete(self, names: Iterable[str]) -> None:
        for name in names:
            with _as_output(), _all_fatal(self._out), _explained(self._out), contextlib.suppress(FileNotFoundError):
                system, place = _open(self._out / name)
                system.rm_file(place)
            self._listed().pop(name, None)

    def remove_empty(self, folder: Path) -> None:
        """Nothing: object storage has no folders."""

    @contextlib.contextmanager
    def locked(self, folder: Path) -> Iterator[None]:
        """Write the object that the processes look for, see `is_shared`; it does not keep other commands out."""
        self._put(folder / LOCK, f"{os.getpid()} ({platform.node()})")
        try:
            yield
        except BaseException:
            with contextlib.suppress(UbendError):  # the first error is the one to show
                self.remove(folder / LOCK)
            raise
        self.remove(folder / LOCK)

    def check_space(self, requirements: Sequence[DiskRequirement]) -> None:
        """Nothing: object storage has no limit that could be asked for."""

    def clear_leftovers(self, paths: Iterable[Path]) -> None:
        written = {(short_stem(path), path.suffix) for path in paths}
        with _as_output():
            names = self.list_folder(self._out)
        self._delete(name for name in names if is_leftover(name, written))


def _part_number(name: str) -> int:
    return int(name.rpartition("-")[2].partition(".")[0])


def is_shared(out: Path) -> bool:
    """Whether the driver's lock is in the output folder as this process sees it.

    Raises:
        OutputError: it cannot be read.
    """
    if not is_url(out):
        return os.path.lexists(out / LOCK)
    with _as_output(), _all_fatal(out):
        try:
            with _explained(out):
                system, place = _open(out / LOCK)
                system.info(place)
        except FileNotFoundError:
            return False
    return True


def _open(url: Path) -> tuple[Any, str]:
    """The file system of fsspec for a URL, and the URL's path in it."""
    import fsspec

    system, place = fsspec.core.url_to_fs(str(url), use_listings_cache=False)
    return system, place


def _describe(row: Mapping[str, Any]) -> _Object:
    when = next((row[key] for key in _LATEST if row.get(key) is not None), None)
    if isinstance(when, datetime.datetime):
        when = when.timestamp()
    return _Object(int(row.get("size") or 0), float(when) if isinstance(when, int | float) else None)


def _has_bucket(system: Any, place: str) -> bool:
    bucket = place.lstrip("/").partition("/")[0]
    try:
        system.ls(bucket, detail=True, refresh=True)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _explained(url: Path) -> Iterator[None]:
    """Turn the errors of fsspec, which are of many kinds, into those of `UrlInputs.download`."""
    try:
        yield
    except Exception as error:
        raise _explain(url, error) from error


def _explain(url: Path, error: Exception) -> Exception:
    if isinstance(error, UbendError):
        return error
    why = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, ImportError):
        package = _PACKAGES.get(url.parts[0].rstrip(":"))
        line = _("{url} needs another package ({reason})")
        if package is not None:
            line = _("{url} needs another package; install it with: pip install {package}")
        return MissingPackageError(line.format(url=url, package=package, reason=why), path=url, key="fsspec")
    if isinstance(error, PermissionError):
        line = _("access denied ({reason}); check the credentials and what they permit")
        return PermissionError(errno.EACCES, line.format(reason=why))
    if isinstance(error, FileNotFoundError):
        system, place = _open(url)
        with contextlib.suppress(Exception):  # the bucket cannot be listed: the object is what is missing
            if not _has_bucket(system, place):
                line = _("{url}: there is no such bucket; create it, or check its name and the endpoint")
                return SettingError(line.format(url=url), path=url, key="paths")
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    line = _("{url}: the storage cannot be used ({reason}); check the credentials and the endpoint, docs/cluster.md")
    return SettingError(line.format(url=url, reason=why), path=url, key="paths")


@contextlib.contextmanager
def _all_fatal(url: Path) -> Iterator[None]:
    """Turn an OSError into the error that ends the command."""
    try:
        yield
    except OSError as error:
        line = _("{url}: {reason}").format(url=url, reason=error.strerror or error)
        raise SettingError(line, path=url, key="paths") from error


@contextlib.contextmanager
def _as_output() -> Iterator[None]:
    """Turn a SettingError about the storage into an OutputError about `--out`."""
    try:
        yield
    except MissingPackageError:
        raise
    except SettingError as error:
        raise OutputError(str(error), path=error.path, key="--out") from OSError(errno.EIO, str(error))


def _renamed(line: str, local: Path, url: Path) -> Problem:
    place, key = (line.path, line.key) if isinstance(line, Problem) else (None, None)
    return Problem(line.replace(str(local), str(url)), url if place == local else place, key)
