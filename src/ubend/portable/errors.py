"""Errors that the user can fix, shown as one line; `ubend.core.errors` lists all of ubend's."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from .i18n import _, now
from .printable import some_names

_Value = TypeVar("_Value")
_ALIKE, _NAMED = 3, 10  # lines that differ only in file and sizes are shown as one if there are more; names shown
_SIZE = re.compile(r"\d+x\d+")  # `48x32 px`
_PACKAGES = {"yaml": "pyyaml", "PIL": "pillow", "skimage": "scikit-image"}  # modules -> packages whose names differ
_RUNTIME = "ubend_runtime"  # the package that has a copy of this one
_RUNTIME_EXTRAS = {"tifffile": "tiff", "imagecodecs": "tiff", "openvino": "openvino"}  # package -> what brings it there

# Messages of torch's allocators; only CUDA has an exception class for it.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "ALLOC_FAILED",
    "could not create a memory",
)


class UbendError(Exception):
    """Base class of all errors that a user can fix; `str(error)` can be shown unchanged.

    Attributes:
        path: the file or folder that it is about.
        key: the setting, flag, column or field that it is about.
    """

    _has_lines = False

    def __init__(self, message: str, *, path: Path | str | None = None, key: str | None = None) -> None:
        super().__init__(message if self._has_lines else message.replace("\n", "\\n"))  # line feeds in names
        self.path = None if path is None else Path(path)
        self.key = key


class Problem(str):
    """One line of a DataError: text with the `path` and `key` that it is about, or None."""

    path: Path | None
    key: str | None

    def __new__(cls, line: str, path: Path | str | None = None, key: str | None = None) -> "Problem":
        problem = super().__new__(cls, line.replace("\n", "\\n"))  # line feeds in names
        problem.path = None if path is None else Path(path)
        problem.key = key
        return problem


def as_problem(line: str, path: Path | str | None, key: str | None) -> Problem:
    """The line as a `Problem`; one that is a `Problem` already keeps its own path and key."""
    return line if isinstance(line, Problem) else Problem(line, path, key)


class DataError(UbendError):
    """Problems of a data set. One problem is one line; several are listed, worst first.

    Attributes:
        problems: the lines, each a `Problem`. `path` and `key` of the error are set if all lines share them.
    """

    _has_lines = True

    def __init__(
        self, problems: str | Sequence[str], *, path: Path | str | None = None, key: str | None = None
    ) -> None:
        lines = [problems] if isinstance(problems, str) else problems
        listed = [as_problem(line, path, key) for line in lines]
        shown = [*_group_alike(listed)]
        heading = _("{count} problems:").format(count=len(shown))
        super().__init__(
            shown[0] if len(shown) == 1 else "\n  - ".join([heading, *shown]),
            path=_shared(line.path for line in listed) if path is None else path,
            key=_shared(line.key for line in listed) if key is None else key,
        )
        self.problems: list[str] = list(listed)


def _group_alike(lines: Sequence[Problem]) -> Iterator[str]:
    """The lines, where those that differ only in file and sizes are one line with the names of the other files."""
    groups: dict[str, list[Problem]] = {}
    for line in lines:
        groups.setdefault(_SIZE.sub("", line.removeprefix(str(line.path))), []).append(line)
    for alike in groups.values():
        if len(alike) <= _ALIKE or alike[0].path is None:
            yield from alike
            continue
        names = [line.path.name for line in alike[1:] if line.path is not None]
        rest = _("the same in {count} other files: {names}")
        yield f"{alike[0]}\n    {rest.format(count=len(names), names=some_names(names, _NAMED))}"


class FilesError(DataError):
    """Some of the input files failed; the results of all others are written."""


class SettingError(UbendError):
    """A setting is unknown, out of range, or contradicts another."""


class MissingPackageError(SettingError):
    """A library is not installed or cannot be loaded. It ends the command, since every file would fail."""


class OutputError(UbendError):
    """Something cannot be written, or would be overwritten."""


class ModelFileError(UbendError):
    """A model file cannot be used."""


def _shared(values: Iterable[_Value]) -> _Value | None:
    every = set(values)
    return every.pop() if len(every) == 1 else None


def missing_package(error: ImportError) -> MissingPackageError:
    """Make the error for a library that could not be imported; its key is the package to install."""
    module = (error.name or "ubend").partition(".")[0]  # imagecodecs names no module for a codec that is not built in
    package = _PACKAGES.get(module, module)
    source = package
    if __name__.startswith(_RUNTIME) and package in _RUNTIME_EXTRAS:
        source = f"'ubend-runtime[{_RUNTIME_EXTRAS[package]}]'"
    line = _("{package} is not installed or cannot be loaded ({reason}); install it with: pip install {source}")
    return MissingPackageError(line.format(package=package, reason=reason(error), source=source), key=package)


def reason(error: Exception) -> str:
    """The system's message, such as "No such file or directory", or else the error's own text."""
    return now(getattr(error, "strerror", None) or str(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means out of memory, on any device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
