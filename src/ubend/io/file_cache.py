"""What files held when they were last read, so that a file that has not changed is not read again.

One small file in the cache for each folder of images. Nothing depends on it but time: what it does not
know, or knows of a file that has changed since, is read.
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
from ubend.io.raster import Header

FILE_CACHE_SUFFIX = ".files.json"
_VERSION = 2  # grows when a header would be read otherwise
# A file may change again in the moment in which it is read and keep its times, as long as its system's clock has
# not ticked: 2 s on FAT, less elsewhere. So what is younger than that when it is read is not remembered.
_TICK_NS = 2 * 10**9


@dataclass
class CachedFile:
    """One file.

    Attributes:
        stamp: size in bytes, times of change of its content and of its entry in ns, and number (inode): what
            the system would change with the file. None: it cannot be looked at, so it is not remembered.
        digest: of its content; None until it is read.
        header: the same, of an image.
        looked_ns: when `stamp` was taken; before the content was read.
    """

    stamp: tuple[int, int, int, int] | None
    digest: str | None = None
    header: Header | None = None
    looked_ns: int = 0


class FileCache:
    """The files of a folder, by path. Two runs may use one folder's at once: the last one's is kept, whole.

    Args:
        cache: where to remember them; None: only as long as this object lives.
        root: the folder.
        channels: see `read_header`, whose answers depend on it.
    Attributes:
        damaged: the file in the cache, where it was not as it was written; None: it was, or there was none.
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
                self._files = {  # a time of looking by which they were sure, as all are that were remembered
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
        """What is known of a file as it is now; what is found out about it may be filled in."""
        name = os.path.abspath(path)
        looked_ns = time.time_ns()
        try:
            stat = os.stat(name)
        except OSError:
            return CachedFile(None)
        stamp = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        found = self._files.get(name)
        if found is None or found.stamp != stamp:
            found = self._files[name] = CachedFile(stamp, looked_ns=looked_ns)
        self._used.add(name)
        return found

    def save(self) -> None:
        """Remember what was looked at, where a change after that would show: a time in the future, of another clock
        than ours, says nothing. Where that cannot be written, it is only found out again."""
        rows = {
            name: [*known.stamp, known.digest, known.header and list(vars(known.header).values())]
            for name, known in sorted(self._files.items())
            if name in self._used and known.stamp and max(known.stamp[1:3]) + _TICK_NS < known.looked_ns
        }
        text = json.dumps(rows, separators=(",", ":"))  # names that are no Unicode are escaped
        text = f"{_digest(text)}\n{text}"
        if self._file is not None and text != self._kept:
            with contextlib.suppress(OutputError):
                write_text(self._file, text)


def _digest(text: str) -> str:
    """By which a damaged file is known."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
