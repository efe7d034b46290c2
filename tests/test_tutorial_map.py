"""docs/tutorial-map.md names only commands that parse, and tests that are there."""

import re
import shlex

import click
import pytest

from support import ROOT
from support.commands import parse

PAGE = (ROOT / "docs" / "tutorial-map.md").read_text(encoding="utf-8")
ITEMS = set(re.findall(r"`([^`\n]+)`", PAGE))
COMMANDS = sorted(text for text in ITEMS if text.startswith("ubend "))
TESTS = sorted(text for text in ITEMS if text.startswith("test_"))


@pytest.mark.parametrize("text", COMMANDS)
def test_commands_parse(text: str) -> None:
    try:
        parse(shlex.split(text)[1:])
    except click.UsageError as error:
        pytest.fail(f"{text}: {error.format_message()}")


@pytest.mark.parametrize("text", TESTS)
def test_tests_are_there(text: str) -> None:
    name, _colons, function = text.partition("::")
    path = ROOT / "tests" / name
    assert path.exists(), name
    assert not function or f"\ndef {function}(" in path.read_text(encoding="utf-8")


def test_every_statement_has_both() -> None:
    rows = [row for row in re.findall(r"^\| (.+) \|$", PAGE, re.M) if not row.startswith("statement ")]
    assert len(rows) > 50
    assert "on its way" not in PAGE
    for row in rows:
        _statement, commands, tests = row.split(" | ")
        assert commands.startswith("`ubend "), row
        assert tests.startswith("`test_"), row
    assert len(COMMANDS) > 20
    assert len(TESTS) > 30
