"""What a person sees when something is wrong: one line, saying what, where, and how to mend it.

UbendError                the command line prints the message and exits with 2
├── DataError             pictures, masks, folders, splits; may hold many problems, all told at once
│   └── PairError         pairs that cannot be used; `--skip-bad` goes on without them
├── SettingError          a setting or a flag: unknown, out of range, contradictory
├── OutputError           a file or folder that cannot be written, or would be overwritten
├── ModelFileError        a model file that is truncated, not ours, or newer than this version
└── TrainingError         a training that cannot go on (loss not finite, run changed under it)
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ubend.language import _, now

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class UbendError(Exception):
    """Base of all errors that a user can mend; `str(error)` is fit to be shown as it is."""


class DataError(UbendError):
    """Problems of a data set. One problem is one line; several are listed, worst first."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            heading = _("{count} problems:").format(count=len(self.problems))
            super().__init__("\n".join([heading, *(f"  - {problem}" for problem in self.problems)]))


class PairError(DataError):
    """Pairs of picture and mask that cannot be used.

    Attributes:
        bad: name of the pair -> its problems.
    """

    def __init__(self, bad: Mapping[str, Sequence[str]]) -> None:
        self.bad = {name: list(problems) for name, problems in bad.items()}
        super().__init__(list(dict.fromkeys(line for problems in self.bad.values() for line in problems)))


class SettingError(UbendError):
    """A setting is unknown, out of range, or contradicts another."""


class OutputError(UbendError):
    """Something cannot be written, or would be overwritten."""


class ModelFileError(UbendError):
    """A model file cannot be used."""


class TrainingError(UbendError):
    """Training cannot go on."""


def reason(error: Exception) -> str:
    """What the system says of a file, such as "No such file or directory"; else the error's own words."""
    return now(getattr(error, "strerror", None) or str(error))


def unfit(problem: "ErrorDetails") -> str:
    """Why a value does not fit, in our words: pydantic's are English. `problem` with its context."""
    kind, facts = problem["type"], problem.get("ctx", {})
    match kind:
        case "greater_than":
            return _("must be greater than {gt}").format(**facts)
        case "greater_than_equal":
            return _("must be {ge} or more").format(**facts)
        case "less_than":
            return _("must be less than {lt}").format(**facts)
        case "less_than_equal":
            return _("must be {le} or less").format(**facts)
        case "literal_error":
            return _("must be one of: {expected}").format(expected=facts["expected"].replace(" or ", ", "))
        case "finite_number":
            return _("must be a finite number")
        case "missing":
            return _("is missing")
    if kind.startswith("int"):
        return _("must be a whole number")
    if kind.startswith("float"):
        return _("must be a number")
    if kind.startswith("bool"):
        return _("must be true or false")
    if kind.startswith("string"):
        return _("must be text")
    if kind.startswith(("tuple", "list")):
        return _("must be a list")
    if kind.startswith(("model", "dict", "dataclass")):
        return _("must be a table of names and values")
    return problem["msg"].removeprefix("Value error, ")
