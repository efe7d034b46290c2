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

from ubend.language import _, now


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
