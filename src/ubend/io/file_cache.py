"""Caches digests and headers of files, so that unchanged files are not read again.

There is one small cache file for each folder of images. It only saves time: unknown or changed files are read.
"""

import contextlib
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from ubend.core.errors import OutputError
from ubend.core.files import write_text
from ubend.portable.raster import Header

FILE_CACHE_SUFFIX = ".files.json"
_VERSION = 2  # to be increased when headers are read differently
# A file that changes right after it is read may keep its times, within one tick of the file system's clock (2 s on
# FAT, less elsewhere). So files that were modified less than this before reading are not cached.
_TICK_NS = 2 * 10**9


@dataclass
class CachedFile:
    """One file.

    Attributes:
        stamp: size in bytes, modification and status-change times in ns, and inode number. None: the file cannot be
            read, and is not cached.
        digest: of its content; None until it is read.
        header: of an image; None until it is read.
        looked_ns: when `stamp` was taken, before the content was read.
    """

    stamp: tuple[int, int, int, int] | None
    digest: str | None = None
    header: Header | None = None
    looked_ns: int = 0


class FileCache:
    """The cached files of a folder, by path. Two runs may use it at the same time: the last one to save wins.

    Args:
        cache: folder of the cache file; None: keep entries only in memory.
        root: the folder of images.
        channels: see `read_header`, whose result depends on it.
    Attributes:
        damaged: the path of the cache file if it is damaged; None: it is intact or missing.
    """

    def __init__(self, cache: Path | None = None, root: Path = Path(), channels: int | None = None) -> None:
        self._files: dict[str, CachedFile] = {}
        self._used: set[str] = set()
        self._file: Path | None = None
        self._kept = ""
        self.damaged: Path | None = None
        if cache is not None:
            key = json.dumps([_VERSION, str(root.absolute()), channels])
            name = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
            self._file = cache / f"{name}{FILE_CACHE_SUFFIX}"
            try:
                self._kept = self._file.read_text(encoding="utf-8", errors="replace")
            except OSError:  # there is none yet
                return
            digest, _newline, text = self._kept.partition("\n")
            if digest == _digest(text):
                rows = json.loads(text).items()
                self._files = {  # cached entries were old enough when they were read
                    name: CachedFile(
                        (size, mtime, ctime, inode),
                        digest,
                        header and Header(*header),
                        max(mtime, ctime) + _TICK_NS + 1,
                    )
                    for name, (size, mtime, ctime, inode, digest, header) in rows
                }
            else:
                self.damaged = self._file

    def look(self, path: Path) -> CachedFile:
        """The entry of a file in its current state; callers fill in missing fields."""
        name = os.path.abspath(path)
        looked_ns = time.time_ns()
        try:
            stat = os.stat(name)
        except OSError:
            return CachedFile(None)
        stamp = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        cached = self._files.get(name)
        if cached is None or cached.stamp != stamp:
            cached = self._files[name] = CachedFile(stamp, looked_ns=looked_ns)
        self._used.add(name)
        return cached

    def save(self) -> None:
        """Save the entries of files whose later changes will be detected; not of files with a time in the future.

        Ignores errors: without a cache, the files are read again next time.
        """
        rows = {
            name: [*known.stamp, known.digest, known.header and list(vars(known.header).values())]
            for name, known in sorted(self._files.items())
            if name in self._used and known.stamp and max(known.stamp[1:3]) + _TICK_NS < known.looked_ns
        }
        text = json.dumps(rows, separators=(",", ":"))  # names that are not Unicode are escaped
        text = f"{_digest(text)}\n{text}"
        if self._file is not None and text != self._kept:
            with contextlib.suppress(OutputError):
                write_text(self._file, text)


def _digest(text: str) -> str:
    """A checksum that detects a damaged cache file."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
