"""Unpack an archive that nobody vouches for: ordinary files into a new folder, and nothing else.

Refused: names that lead out of the folder, links, devices, names that are one file on some systems, and
what unpacks to far more than was packed. Files are written here, with the permissions of any new file, so
an archive makes nothing that a later entry of it could lead through.
"""

import lzma
import re
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from gzip import GzipFile
from pathlib import Path
from typing import IO

from ubend.errors import DataError
from ubend.files import telling_writes
from ubend.language import _

_COPIED_BYTES = 2**20
_FREE_BYTES = 2**24  # an archive may unpack to so much, whatever its own size
_NAME = re.compile(r'[^\x00-\x1f\x7f\\:*?"<>|]+')  # no other characters are in a file's name on every system


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to, at most.

    Attributes:
        entries: files and folders.
        size: bytes, all together.
        ratio: unpacked bytes for each packed one (of pictures: about 1).
    """

    entries: int = 100_000
    size: int = 8 * 2**30
    ratio: int = 100


class _UnsafeError(Exception):
    """The archive holds something that is not to be unpacked; `key` says what."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class _Entry:
    """A file of an archive, being read; or a folder, then there is nothing to read."""

    name: str
    source: IO[bytes] | None


def unpack(archive: Path, folder: Path, report: Callable[[int], None], limits: Limits | None = None) -> None:
    """Unpack a `.zip` or `.tar.gz` into a folder that nobody else writes to.

    What was written before something was refused stays; the caller deletes the folder.

    Args:
        report: called with the bytes of the archive that are done.
    Raises:
        DataError: the archive is damaged, or holds what is not to be unpacked.
        OutputError: the disk is full, or the folder cannot be written.
    """
    limits = limits or Limits()
    try:
        with _telling_damage(), archive.open("rb") as packed:
            most = min(limits.size, max(_FREE_BYTES, limits.ratio * archive.stat().st_size))
            entries = _zip_entries(packed) if archive.suffix == ".zip" else _tar_entries(packed, most)
            _write_entries(entries, folder, most, limits.entries, lambda: report(packed.tell()))
    except _UnsafeError as error:
        raise DataError(
            _("{archive}: not unpacked: {reason}; get the archive anew, from its own site").format(
                archive=archive, reason=error
            ),
            path=archive,
            key=error.key,
        ) from error


def _write_entries(
    entries: Iterator[_Entry], folder: Path, most: int, most_entries: int, report: Callable[[], None]
) -> None:
    names, written = _Names(), 0
    for number, entry in enumerate(entries, 1):
        if number > most_entries:
            raise _UnsafeError(_("it holds more than {count} entries").format(count=most_entries), "entries")
        target = folder.joinpath(*names.take(entry.name, entry.source is not None))
        with telling_writes(target):
            (target.parent if entry.source else target).mkdir(parents=True, exist_ok=True)
        if entry.source is None:
            continue
        with telling_writes(target), target.open("xb") as file:
            while data := _read(entry.source):
                written += len(data)
                if written > most:
                    raise _too_much(most)
                file.write(data)
        report()


class _Names:
    """The names so far, as a system sees them that does not tell `A` from `a`."""

    def __init__(self) -> None:
        self._spelt: dict[str, str] = {}
        self._files: set[str] = set()

    def take(self, name: str, is_file: bool) -> list[str]:
        """The parts of a name that is safe and new.

        Raises:
            _UnsafeError: it leads out of the folder, or means what another one means.
        """
        parts = [part for part in name.removesuffix("/").split("/") if part != "."]
        if not all(part != ".." and _NAME.fullmatch(part) for part in parts) or (is_file and not parts):
            raise _UnsafeError(
                _("{name} leads out of its folder, or is no file's name").format(name=repr(name)), "name"
            )
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            key = unicodedata.normalize("NFC", path).casefold()
            whole_file = is_file and depth == len(parts)
            other = self._spelt.setdefault(key, path) if not whole_file else self._spelt.get(key)
            if other not in (path, None) or key in self._files or (whole_file and other is not None):
                raise _UnsafeError(
                    _("{one} and {other} would be the same file on some systems").format(one=other, other=path), "twice"
                )
            if whole_file:
                self._spelt[key] = path
                self._files.add(key)
        return parts


def _zip_entries(packed: IO[bytes]) -> Iterator[_Entry]:
    with zipfile.ZipFile(packed) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _no_file(info.filename)
            if info.flag_bits & 1:
                raise _UnsafeError(_("{name} is encrypted").format(name=repr(info.filename)), "encryption")
            if info.is_dir():
                yield _Entry(info.filename, None)
                continue
            with archive.open(info) as source:
                yield _Entry(info.filename, source)


def _tar_entries(packed: IO[bytes], most: int) -> Iterator[_Entry]:
    """Read as a stream; all of it counts, since headers can be blown up too."""
    with _Counted(packed, most) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise _no_file(member.name)
            yield _Entry(member.name, archive.extractfile(member) if member.isreg() else None)
        while stream.read(_COPIED_BYTES):  # to the checksum at its end
            pass


class _Counted(GzipFile):
    """A stream that ends the unpacking when it has given more than `most` bytes."""

    def __init__(self, packed: IO[bytes], most: int) -> None:
        super().__init__(fileobj=packed, mode="rb")
        self._most, self._given = most, 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self._given += len(data)
        if self._given > self._most:
            raise _too_much(self._most)
        return data


def _read(source: IO[bytes]) -> bytes:
    with _telling_damage():
        return source.read(_COPIED_BYTES)


@contextmanager
def _telling_damage() -> Iterator[None]:
    """What the libraries say of a damaged archive, as one of ours."""
    try:
        yield
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        NotImplementedError,
        zlib.error,
        lzma.LZMAError,
        tarfile.TarError,
        zipfile.BadZipFile,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _UnsafeError(_("it is damaged ({reason})").format(reason=reason), "damage") from error


def _no_file(name: str) -> _UnsafeError:
    return _UnsafeError(_("{name} is a link or a device, not a file").format(name=repr(name)), "kind")


def _too_much(most: int) -> _UnsafeError:
    return _UnsafeError(_("it unpacks to more than {size:.0f} MiB").format(size=most / 2**20), "size")
