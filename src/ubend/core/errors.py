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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ubend.core.i18n import later, now
from ubend.portable.errors import (
    DataError,
    FilesError,
    MissingPackageError,
    ModelFileError,
    OutputError,
    Problem,
    SettingError,
    UbendError,
    as_problem,
    missing_package,
    reason,
)

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = [
    "Contradiction",
    "DataError",
    "FilesError",
    "MissingPackageError",
    "ModelFileError",
    "OutputError",
    "PairError",
    "Problem",
    "SettingError",
    "TrainingError",
    "UbendError",
    "missing_package",
    "reason",
    "validation_key",
    "validation_reason",
]


class PairError(DataError):
    """Pairs of image and mask that cannot be used.

    Attributes:
        bad: name of the pair -> its problems.
    """

    def __init__(
        self, bad: Mapping[str, Sequence[str]], *, path: Path | str | None = None, key: str | None = None
    ) -> None:
        self.bad: dict[str, list[str]] = {
            name: [as_problem(line, path, key) for line in problems] for name, problems in bad.items()
        }
        every = list(dict.fromkeys(line for problems in self.bad.values() for line in problems))
        super().__init__(every, path=path, key=key)


class TrainingError(UbendError):
    """Training cannot continue."""


class Contradiction(ValueError):
    """Contradictory settings, found by a pydantic validator; `key` is the one to change."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


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
    "tuple": later("must be a list, such as [1, 2]"),
    "list": later("must be a list, such as [1, 2]"),
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
