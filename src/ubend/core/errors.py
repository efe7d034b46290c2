"""Errors that the user can fix, shown as one line: what is wrong, where, and how to fix it.

UbendError                the command line prints the message and exits with 2: nothing was done
├── DataError             images, masks, folders, splits; may hold many problems, all reported at once
│   ├── PairError         pairs that cannot be used; `--skip-bad` continues without them
│   └── FilesError        some of the files failed, the results of all others are written; exit code 3
├── SettingError          a setting or a flag: unknown, out of range, contradictory
│   └── MissingPackageError   a library that is not installed, or cannot be loaded
├── OutputError           a file or folder that cannot be written, or would be overwritten
├── ModelFileError        a model file that is truncated, not written by ubend, or newer than this version
└── TrainingError         a training that cannot continue (loss not finite, run folder changed)

The message is for users and may be reworded at any time. Code and tests use the class and two fields:

path    the file or folder that the error is about
key     the setting, flag, column or field that it is about: the dotted name of a setting if there is one
        ("data.values", also for its flag `--values`), else the flag as typed ("--tiles"), else the name of the column
        or field; for a folder that cannot be read, the kind of problem as in `layouts/problems.py` ("no mask")

Both are None if not applicable. Each line of a DataError has its own `path` and `key`, see `Problem`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ubend.core.i18n import _, later, now

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_Value = TypeVar("_Value")
_ALIKE, _NAMED = 3, 10  # lines that differ only in their file are shown as one if there are more; names shown of it
_PACKAGES = {"yaml": "pyyaml", "PIL": "pillow", "skimage": "scikit-image"}  # modules -> packages whose names differ


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


def _problem(line: str, path: Path | str | None, key: str | None) -> Problem:
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
        listed = [_problem(line, path, key) for line in lines]
        heading = _("{count} problems:").format(count=len(listed))
        super().__init__(
            str(listed[0]) if len(listed) == 1 else "\n  - ".join([heading, *_group_alike(listed)]),
            path=_shared(line.path for line in listed) if path is None else path,
            key=_shared(line.key for line in listed) if key is None else key,
        )
        self.problems: list[str] = list(listed)


def _group_alike(lines: Sequence[Problem]) -> Iterator[str]:
    """The lines, where those that differ only in their file are one line with the names of the other files."""
    groups: dict[str, list[Problem]] = {}
    for line in lines:
        groups.setdefault(line.removeprefix(str(line.path)), []).append(line)
    for alike in groups.values():
        if len(alike) <= _ALIKE or alike[0].path is None:
            yield from alike
            continue
        names = [line.path.name for line in alike[1:] if line.path is not None]
        rest = _("the same in {count} other files: {names}")
        shown = ", ".join([*names[:_NAMED], "..."] if len(names) > _NAMED else names)
        yield f"{alike[0]}\n    {rest.format(count=len(names), names=shown)}"


class PairError(DataError):
    """Pairs of image and mask that cannot be used.

    Attributes:
        bad: name of the pair -> its problems.
    """

    def __init__(
        self, bad: Mapping[str, Sequence[str]], *, path: Path | str | None = None, key: str | None = None
    ) -> None:
        self.bad: dict[str, list[str]] = {
            name: [_problem(line, path, key) for line in problems] for name, problems in bad.items()
        }
        every = list(dict.fromkeys(line for problems in self.bad.values() for line in problems))
        super().__init__(every, path=path, key=key)


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


class TrainingError(UbendError):
    """Training cannot continue."""


class Contradiction(ValueError):
    """Contradictory settings, found by a pydantic validator; `key` is the one to change."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def _shared(values: Iterable[_Value]) -> _Value | None:
    every = set(values)
    return every.pop() if len(every) == 1 else None


def missing_package(error: ImportError) -> MissingPackageError:
    """Make the error for a library that could not be imported; its key is the package to install."""
    module = (error.name or "ubend").partition(".")[0]  # imagecodecs names no module for a codec that is not built in
    package = _PACKAGES.get(module, module)
    line = _("{package} is not installed or cannot be loaded ({reason}); install it with: pip install {package}")
    return MissingPackageError(line.format(package=package, reason=reason(error)), key=package)


def reason(error: Exception) -> str:
    """The system's message, such as "No such file or directory", or else the error's own text."""
    return now(getattr(error, "strerror", None) or str(error))


# Prefixes of pydantic's error types, specific ones first.
_VALIDATION_REASONS = {
    "greater_than_equal": later("must be {ge} or more"),
    "greater_than": later("must be greater than {gt}"),
    "less_than_equal": later("must be {le} or less"),
    "less_than": later("must be less than {lt}"),
    "literal_error": later("must be one of: {expected}"),
    "finite_number": later("must be a finite number"),
    "missing": later("is missing"),
    "int": later("must be a whole number"),
    "float": later("must be a number"),
    "bool": later("must be true or false"),
    "string_pattern": later("is not one of the allowed values"),
    "string": later("must be text"),
    "tuple": later("must be a list"),
    "list": later("must be a list"),
    "model": later("must be a table of names and values"),
    "dict": later("must be a table of names and values"),
    "dataclass": later("must be a table of names and values"),
}


def validation_reason(problem: "ErrorDetails") -> str:
    """Why a value is invalid, translated; `problem` is pydantic's error with its context."""
    facts = {name: str(fact).replace(" or ", ", ") for name, fact in problem.get("ctx", {}).items()}
    line = next((sentence for kind, sentence in _VALIDATION_REASONS.items() if problem["type"].startswith(kind)), None)
    return problem["msg"].removeprefix("Value error, ") if line is None else now(line).format(**facts)


def validation_key(problem: "ErrorDetails") -> str | None:
    """The dotted name of the invalid setting."""
    cause = problem.get("ctx", {}).get("error")
    return cause.key if isinstance(cause, Contradiction) else ".".join(map(str, problem["loc"])) or None
