"""docs/settings.md tells every setting, with the default that it has."""

import re
from pathlib import Path
from typing import Any

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
