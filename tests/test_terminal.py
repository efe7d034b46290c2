"""Names as bytes: what reaches the terminal, CSV and JSON of names with control characters, formulas, bytes that are
not UTF-8."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from support.commands import predict
from support.refusal import invoke
from ubend.core.errors import DataError, OutputError
from ubend.core.files import csv_cell, csv_text, json_text, read_text, write_text
from ubend.core.progress import Reporter
from ubend.core.terminal import printable, printable_line

NAMES = st.text(
    st.one_of(st.characters(), st.sampled_from("\x00\x1b\x9b\r\n\t\u202e\u2028'=+-@")), max_size=8
) | st.binary(max_size=6).map(os.fsdecode)


@given(NAMES)
def test_nothing_hidden_is_printed(name: str) -> None:
    shown = printable_line(name)
    assert not any(ord(letter) < 32 and letter != "\t" for letter in shown)
    assert not set(shown) & set("\x1b\x9b\x7f\u202e\u2028")
    assert printable(shown) == shown


@given(st.lists(NAMES.filter(lambda name: "\x00" not in name), min_size=1, max_size=3))
def test_cells_come_back(names: list[str]) -> None:
    """No cell is a formula; each is read as it was; numbers stay numbers."""
    text = csv_text([names])
    (row,) = csv.reader(io.StringIO(text, newline=""))
    assert [csv_cell(cell) for cell in row] == names
    for cell in row:
        assert cell[:1] not in ("=", "+", "-", "@", "\t", "\r") or float(cell) is not None
    assert csv_text([[-1.5, "-1.5", "+3", 4]]) == "-1.5,-1.5,+3,4\n"


@given(NAMES)
def test_json_is_utf8(name: str) -> None:
    assert json.loads(json_text({name: [name]}).encode()) == {name: [name]}


def test_text_keeps_bytes(tmp_path: Path) -> None:
    write_text(tmp_path / "a", os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "a").read_bytes() == b"caf\xe9"
    assert read_text(tmp_path / "a") == os.fsdecode(b"caf\xe9")


def test_lines_of_errors() -> None:
    """A name with a line feed forges no second line."""
    assert "\n" not in str(OutputError("a\nerror: b: exists"))
    assert "\n" not in str(DataError("a\nerror: b"))
    assert str(DataError(["a\nb", "c"])).count("\n") == 2


def test_doors(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter().report("a\x1b[31m\u202e\nb")
    assert capsys.readouterr().out == "a\\x1b[31m\\u202e\\nb\n"
    for words in (["info", "a\x1b[31mb"], ["a\x1b[31mb"], ["fit", "x", "--set", "a\x1b.b=1"], ["--lang", "\x1b[1m"]):
        result, _error = invoke(*words)
        assert result.exit_code == 2
        assert "\x1b" not in result.output
        assert "x1b" in result.output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_standard_output() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "ubend", "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere refuse such names")
def test_names_that_are_not_utf8(good: Path, tmp_path: Path) -> None:
    """In the command line, in lists, in tables and records, also when continued."""
    raw = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Image.open(good / "data" / "images" / "disc01.png").save(os.fsdecode(raw))
    predict(good / "run", os.fsdecode(raw), "--out", tmp_path / "out")
    assert b"caf\xe9.png" in (tmp_path / "out" / "shares.csv").read_bytes()
    predict(good / "run", os.fsdecode(raw), "--out", tmp_path / "out", "--resume")
