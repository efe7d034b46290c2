"""docs/settings.md has every setting with its default; the change log begins with this version."""

import re
from pathlib import Path
from typing import Any

from ubend._version import __version__
from ubend.core.settings import flatten, make_settings

PAGE = (Path(__file__).parent.parent / "docs" / "settings.md").read_text(encoding="utf-8")


def shown(value: Any) -> str:
    if value is None:
        return "open"
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_settings_are_all_told() -> None:
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| ([^|]+?) \|", PAGE, re.M))
    settings = dict(flatten(make_settings().model_dump()))
    assert set(rows) == set(settings)
    for key, value in settings.items():
        assert rows[key] == shown(value), key


def test_change_log_begins_with_this_version() -> None:
    log = (Path(__file__).parent.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    newest, *_older = re.findall(r"^## (\S+)", log, re.M)
    assert newest == __version__
    assert set(re.findall(r"^### (.+)", log, re.M)) <= {"Added", "Changed", "Fixed"}
