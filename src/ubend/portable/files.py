"""Atomic file writes (temporary file, sync, rename), and checks before writing: existing files, inputs."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from .errors import DataError, OutputError, reason
from .i18n import _

EXPORTED_SUFFIX = ".onnx"  # of exported models
_LONGEST_NAME = 255  # bytes of a file name, the limit of common file systems
_OF_THE_DISK = {
    getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "ENODEV")
}


def refuse_existing(paths: Iterable[Path], *, resumable: bool = False) -> None:
    """Fail if a file to be written exists already.

    Args:
        resumable: whether the command has `--resume`.
    Raises:
        OutputError: one exists.
    """
    there = [path for path in paths if os.path.exists(path)]
    if there:
        message = _("{path} exists already; choose another --out")
        if resumable:
            message = _("{path} exists already, and {count} more; choose another --out, or continue with --resume")
        raise OutputError(message.format(path=there[0], count=len(there) - 1), path=there[0], key="--out")


def refuse_inputs(inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    """Fail if a file to be written is one of the inputs.

    Raises:
        OutputError: it is.
    """
    resolve = resolve_many()
    given = set(map(resolve, inputs))
    if path := next((path for path in outputs if resolve(path) in given), None):
        message = _("{path} is an input and would be overwritten; choose another --out")
        raise OutputError(message.format(path=path), path=path, key="--out")


def refuse_shared(files: Iterable[tuple[Path, Sequence[Path]]], what: str) -> None:
    """Fail if two inputs would be written to the same file.

    Args:
        files: each input, and the files to be written for it.
        what: what they would overwrite, for the message.
    Raises:
        DataError: two inputs share an output.
    """
    owners: dict[Path, list[Path]] = {}
    for owner, owned in files:
        for file in owned:
            owners.setdefault(file, []).append(owner)
    twice = sorted({str(path) for paths in owners.values() if len(paths) > 1 for path in paths})
    if twice:
        message = _("{names} would overwrite each other's {what}; run them separately, each with its own --out")
        raise DataError(message.format(names=", ".join(twice[:6]), what=what), path=Path(twice[0]), key="--out")


def regular_file(path: Path) -> Path:
    """Check that a path can be opened as a regular file; pipes and devices could block or never end.

    Raises:
        OSError: neither a file nor a folder, or missing.
    """
    if not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, _("a pipe or a device, not a file"), str(path))
    return path


def is_of_the_disk(error: OutputError) -> bool:
    """Whether a write failed because of the disk or folder, so that all further writes would fail too."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _OF_THE_DISK


def is_too_long(path: Path) -> bool:
    """Whether the file name is too long for common file systems."""
    return len(os.fsencode(path.name)) > _LONGEST_NAME


def resolve_many() -> Callable[[Path], str]:
    """`str(path.resolve())` for thousands of files: resolves each folder once, and files only if they are links."""
    folders: dict[str, str] = {}

    def resolve(path: Path) -> str:
        folder, name = os.path.split(path)
        # On Windows, `resolve` also corrects the case of the name.
        if name in ("", ".", "..") or os.name == "nt" or os.path.islink(path):
            return str(path.resolve())
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        return os.path.join(folders[folder], name)

    return resolve


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """A context that turns an OSError into an error that names the file and the reason.

    Raises:
        OutputError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            _("cannot write {path}: {reason}; free some space, or choose another location").format(
                path=path, reason=reason(error)
            ),
            path=path,
        ) from error


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: `write(temporary)` writes it next to `path`, then it is synced and renamed.

    Readers see the old file or the new one, never a partial one; on failure the old one is kept.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    temporary: Path | None = None
    try:
        with explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{short_stem(path)}-{secrets.token_hex(4)}{path.suffix}")
            temporary.touch(exist_ok=False)  # permissions by the user's umask
            mode = temporary.stat().st_mode
            write(temporary)
            temporary.chmod(mode)  # safetensors replaces the file by one that only the owner can read
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def short_stem(path: Path) -> str:
    """The stem of a file, shortened so that its temporary file's name is not too long."""
    room = _LONGEST_NAME - len(os.fsencode(f".-12345678{path.suffix}"))
    return os.fsdecode(os.fsencode(path.stem)[:room])
