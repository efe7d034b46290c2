"""A lock on output folders: one writing process at a time; the system releases it when the process ends."""

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from .errors import OutputError, reason
from .i18n import _

LOCK = ".ubend.lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of an output folder. The folder is created if missing, and removed if empty at the end.

    Raises:
        OutputError: another process holds it, or the folder cannot be written.
    """
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _open_locked(folder / LOCK)
    except OSError as error:
        line = _("cannot write {path}: {reason}; choose another --out")
        if folder.is_file():
            line = _("{path} is a file, but --out is a folder; choose another --out")
        raise OutputError(line.format(path=folder, reason=reason(error)), path=folder, key="--out") from error
    if file is None:
        holder = _read_holder(folder / LOCK)
        raise OutputError(
            _(
                "{folder}: process {holder} is writing to this folder; wait until it ends, or choose another --out"
            ).format(folder=folder, holder=holder),
            path=folder,
            key="--out",
        )
    try:
        os.truncate(file, 0)
        os.write(file, f"{os.getpid()} ({platform.node()})".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(folder / LOCK)
        os.close(file)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _open_locked(path: Path) -> int | None:
    """The descriptor of the locked file; None: another process holds the lock."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not _lock(file):
            os.close(file)
            return None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        os.close(file)  # the previous holder has deleted it meanwhile


def _lock(file: int) -> bool:
    """Lock the file; returns False if another process holds it. File systems without locks count as free."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(file, 2**30, os.SEEK_SET)  # a byte after the text, so that others can read the text
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            os.lseek(file, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def _read_holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:200] or "?"
    except OSError:
        return "?"
