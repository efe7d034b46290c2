"""What made the files of a folder, kept beside them, so that nothing of another make is put among them."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ubend
from ubend.errors import OutputError
from ubend.files import write_json
from ubend.language import _
from ubend.teller import Teller

_FREE = ("ubend", "path")  # may differ


@dataclass(frozen=True)
class Record:
    """A JSON file: the models' hashes, the conditions, what else decides over what is written.

    Attributes:
        path: in the folder.
        facts: as of `Masks.describe`, and more.
    """

    path: Path
    facts: Mapping[str, Any]

    def refuse_other(self, teller: Teller, *, resume: bool) -> None:
        """Look into the folder; nothing is written.

        Args:
            resume: files of the folder will be left as they are.
        Raises:
            OutputError: something else made what is there, or the file cannot be read.
        """
        if not self.path.exists():
            if resume and self.path.parent.is_dir() and any(self.path.parent.iterdir()):
                said = _("note: {path} is missing, so it is not known whether this model made what is there")
                teller.say(said.format(path=self.path))
            return
        try:
            was = json.loads(self.path.read_text(encoding="utf-8"))
            differ = [key for key, value in self.facts.items() if _stripped(was.get(key)) != _stripped(value)]
        except (OSError, ValueError, AttributeError) as error:
            raise OutputError(
                _("{path}: cannot be read ({reason}); choose another --out").format(path=self.path, reason=error),
                path=self.path,
                key="--out",
            ) from error
        if differ:
            raise OutputError(
                _(
                    "{folder}: what is there was made by another model or under other conditions ({path} differs in "
                    "{keys}); choose another --out"
                ).format(folder=self.path.parent, path=self.path.name, keys=", ".join(differ)),
                path=self.path,
                key=differ[0],
            )

    def write(self) -> None:
        """Write it, unless it is there."""
        if not self.path.exists():
            write_json(self.path, {"ubend": ubend.__version__, **self.facts})

    def withdraw(self) -> None:
        """Nothing was made after all: the file goes, and its folder where that is empty."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.parent.rmdir()


def _stripped(value: Any) -> Any:
    """As JSON gives it back, without what may differ."""
    if isinstance(value, Mapping):
        return {key: _stripped(one) for key, one in value.items() if key not in _FREE}
    return [_stripped(one) for one in value] if isinstance(value, list | tuple) else value
