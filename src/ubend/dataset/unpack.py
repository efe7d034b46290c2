"""Unpacks untrusted archives: only regular files, into a new folder.

Refused are names that lead out of the folder, links, devices, different names that are one file on some systems, and
archives that unpack to far more than their packed size, in memory or on disk. Files are written by this module with
default permissions, so an archive cannot create links for later entries to follow.
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

from ubend.core.errors import DataError
from ubend.core.files import explain_write_errors
from ubend.core.i18n import _

_COPIED_BYTES = 2**20
_FREE_BYTES = 2**24  # always allowed, even for a tiny archive
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # with others, zipfile unpacks whole blocks into memory
_MAX_TAR_NAME = 2**20  # bytes of an extension header, which tarfile reads into memory
_NAME = re.compile(r'[^\x00-\x1f\x7f\\:*?"<>|]+')  # characters allowed in file names on all systems


@dataclass(frozen=True)
class Limits:
    """Limits for the content of an archive.

    Attributes:
        entries: maximum number of files and folders.
        size: maximum bytes in total.
        ratio: maximum ratio of unpacked to packed bytes (about 1 for images).
    """

    entries: int = 100_000
    size: int = 8 * 2**30
    ratio: int = 100


class _UnsafeError(Exception):
    """The archive contains something that must not be unpacked; `key` says what."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


def unpack(archive: Path, folder: Path, report: Callable[[int], None], limits: Limits | None = None) -> None:
    """Unpack a `.zip` or `.tar.gz` into a folder that no other process writes to.

    On an error, files already written remain; the caller deletes the folder.

    Args:
        report: called with the number of processed bytes of the archive.
        limits: None: the defaults of `Limits`.
    Raises:
        DataError: the archive is damaged, or contains something that must not be unpacked.
        OutputError: the disk is full, or the folder cannot be written.
    """
    limits, seen = limits or Limits(), dict[str, tuple[str, bool]]()
    try:
        with _explain_damage(), archive.open("rb") as packed:
            maximum = min(limits.size, max(_FREE_BYTES, limits.ratio * archive.stat().st_size))
            entries = _zip_entries(packed, maximum) if archive.suffix == ".zip" else _tar_entries(packed, maximum)
            for count, (name, source) in enumerate(entries, 1):
                if count > limits.entries:
                    raise _UnsafeError(_("it has more than {count} entries").format(count=limits.entries), "entries")
                target = folder.joinpath(*_safe_parts(name, source is not None, seen))
                with explain_write_errors(target):
                    (target.parent if source else target).mkdir(parents=True, exist_ok=True)
                    if source:
                        with target.open("xb") as file:
                            while data := _read(source):
                                file.write(data)
                report(packed.tell())
    except _UnsafeError as error:
        raise DataError(
            _("{archive}: not unpacked: {reason}; download the archive again, from its original site").format(
                archive=archive, reason=error
            ),
            path=archive,
            key=error.key,
        ) from error


def _safe_parts(name: str, is_file: bool, seen: dict[str, tuple[str, bool]]) -> list[str]:
    """The path components of an entry's name, if it is safe and new.

    Args:
        seen: name as on a case-insensitive system -> (spelling, whether it is a file), for all paths so far; this one
            is added.
    Raises:
        _UnsafeError: the name leads out of the folder, or is the same file as another one on some systems.
    """
    parts = [part for part in name.removesuffix("/").split("/") if part != "."]
    if not all(part != ".." and _NAME.fullmatch(part) for part in parts) or (is_file and not parts):
        raise _UnsafeError(_("{name} leads out of the folder, or is no valid name").format(name=repr(name)), "name")
    for depth in range(1, len(parts) + 1):
        entry = "/".join(parts[:depth]), is_file and depth == len(parts)
        key = unicodedata.normalize("NFC", entry[0]).casefold()
        if key in seen and (seen[key] != entry or entry[1]):
            raise _UnsafeError(
                _("{one} and {other} would be the same file on some systems").format(one=seen[key][0], other=entry[0]),
                "twice",
            )
        seen[key] = entry
    return parts


def _zip_entries(packed: IO[bytes], maximum: int) -> Iterator[tuple[str, IO[bytes] | None]]:
    """(name, content) of each entry, None for a folder; zipfile never yields more than the size stated in the entry."""
    with zipfile.ZipFile(packed) as archive:
        if sum(info.file_size for info in archive.infolist()) > maximum:
            raise _too_much(maximum)
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if the archive was not made on Unix
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _no_file(info.filename)
            if info.flag_bits & 1:
                raise _UnsafeError(_("{name} is encrypted").format(name=repr(info.filename)), "encryption")
            if info.compress_type not in _ZIP_METHODS:
                line = _("{name} is compressed with an unsupported method; only deflate is supported")
                raise _UnsafeError(line.format(name=repr(info.filename)), "compression")
            yield info.filename, None if info.is_dir() else archive.open(info)


def _tar_entries(packed: IO[bytes], maximum: int) -> Iterator[tuple[str, IO[bytes] | None]]:
    """The same for a tar, read as a stream; the limit includes headers, since these can be large, too."""
    with _LimitedStream(packed, maximum) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
        for member in archive:
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise _no_file(member.name)
            yield member.name, archive.extractfile(member) if member.isreg() else None
        while stream.read(_COPIED_BYTES):  # to the end, where the checksum is verified
            pass


class _Member(tarfile.TarInfo):
    """An entry of a tar file; limits the size of extension headers (long names)."""

    @property  # checked here and not in `frombuf`, which newer Python versions do not call
    def size(self) -> int:
        extends = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
        if self.type in (*extends, tarfile.SOLARIS_XHDTYPE) and self._size > _MAX_TAR_NAME:
            raise _too_much(_MAX_TAR_NAME)
        return self._size

    @size.setter
    def size(self, size: int) -> None:
        self._size = size


class _LimitedStream(GzipFile):
    """A gzip stream that raises `_UnsafeError` after more than `maximum` unpacked bytes."""

    def __init__(self, packed: IO[bytes], maximum: int) -> None:
        super().__init__(fileobj=packed, mode="rb")
        self._most, self._given = maximum, 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self._given += len(data)
        if self._given > self._most:
            raise _too_much(self._most)
        return data


def _read(source: IO[bytes]) -> bytes:
    with _explain_damage():
        return source.read(_COPIED_BYTES)


@contextmanager
def _explain_damage() -> Iterator[None]:
    """Turn the errors that the libraries raise for damaged archives into `_UnsafeError`."""
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


def _too_much(maximum: int) -> _UnsafeError:
    return _UnsafeError(_("it unpacks to more than {size:.0f} MiB").format(size=maximum / 2**20), "size")
