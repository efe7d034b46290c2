"""docs/settings.md is made from the settings' descriptions; the change log begins with this version."""

import re

import settings_page
from support import ROOT
from ubend.core.settings import known_keys
from ubend.portable.version import __version__


def test_every_setting_has_a_description() -> None:
    """Otherwise: a string below the field, in `core/settings.py`."""
    descriptions = settings_page.describe_settings()
    assert list(descriptions) == known_keys()
    assert all(descriptions.values())
    assert not [key for key, text in descriptions.items() if "|" in text]  # which would end the cell of the table


def test_the_page_of_settings_is_up_to_date() -> None:
    """Otherwise: `make settings-page`."""
    page = settings_page.PAGE.read_text(encoding="utf-8")
    assert page == settings_page.render(page)
    assert len(re.findall(r"^\| `", page, re.M)) == len(known_keys())


def test_change_log_begins_with_this_version() -> None:
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest, *_older = re.findall(r"^## (\S+)", log, re.M)
    assert newest == __version__
    assert set(re.findall(r"^### (.+)", log, re.M)) <= {"Added", "Changed", "Fixed"}


def test_the_index_of_decisions_leads_to_every_heading() -> None:
    page = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    headings = [
        re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in re.findall(r"^##+ (.+)", page, re.M)
    ]
    index, _text = page.split("\n## ", 1)
    assert re.findall(r"\]\(#([^)]+)\)", index) == headings
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) == set(headings)
