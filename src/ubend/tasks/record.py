"""The JSON file in a folder of results that says what made them."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ubend._version import __version__
from ubend.core.errors import OutputError
from ubend.core.files import write_json
from ubend.core.i18n import _
from ubend.core.progress import Teller

_FREE = ("ubend", "path")  # may differ


@dataclass(frozen=True)
class Record:
    """What made the files of a folder.

    Attributes:
        path: of the JSON file.
        facts: the models' hashes, the conditions, what else decides over what is written.
    """

    path: Path
    facts: Mapping[str, Any]

    def write(self) -> None:
        """Write it, unless it is there."""
        if not self.path.exists():
            write_json(self.path, {"ubend": __version__, **self.facts})

    def remove(self) -> None:
        """Remove it, and the folder if that is empty then."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.parent.rmdir()

    def refuse_other(self, teller: Teller, *, resume: bool) -> None:
        """OutputError: other facts made what is in the folder."""
        record = self.path
        if not record.exists():
            if resume and record.parent.is_dir() and any(record.parent.iterdir()):
                said = _("note: {path} is missing, so it is not known whether this model made what is there")
                teller.say(said.format(path=record))
            return
        try:
            was = json.loads(record.read_text(encoding="utf-8"))
            differ = [key for key, value in self.facts.items() if _stripped(was.get(key)) != _stripped(value)]
        except (OSError, ValueError, AttributeError) as error:
            raise OutputError(
                _("{path}: cannot be read ({reason}); choose another --out").format(path=record, reason=error),
                path=record,
                key="--out",
            ) from error
        if differ:
            raise OutputError(
                _(
                    "{folder}: what is there was made by another model or under other conditions ({path} differs in "
                    "{keys}); choose another --out"
                ).format(folder=record.parent, path=record.name, keys=", ".join(differ)),
                path=record,
                key=differ[0],
            )


def _stripped(value: Any) -> Any:
    """As JSON gives it back, without what may differ."""
    if isinstance(value, Mapping):
        return {key: _stripped(one) for key, one in value.items() if key not in _FREE}
    return [_stripped(one) for one in value] if isinstance(value, list | tuple) else value
