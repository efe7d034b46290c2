"""Whatever files and classes are called, no command lets their control characters reach a terminal."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from support.discs import make_discs
from support.hostile_names import HOSTILE_NAMES
from support.refusal import TINY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere refuse such names")

# What rich sends to draw its bar: colours, the cursor hidden and moved within the bar's lines, lines erased.
OWN = re.compile(rb"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[1?A|\x1b\[2K|\r")
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufffd]")

CODE = """
import json, sys
from ubend.cli.app import main
for number, words in enumerate(json.loads(sys.stdin.readline())):
    try:
        main(words, prog_name="ubend")
        code = 0
    except SystemExit as end:
        code = end.code
    print(f"<exit {code}>", flush=True)
"""


class Shown(NamedTuple):
    """Of a command: its exit code, and what reached the terminal."""

    code: int
    text: bytes


def on_terminal(commands: list[list[str]], folder: Path) -> list[Shown]:
    """Run commands one after another in one process whose output and errors are a pseudo-terminal."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", CODE],
        stdin=subprocess.PIPE,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "200"},
    )
    os.close(theirs)
    assert process.stdin is not None
    process.stdin.write((json.dumps(commands) + "\n").encode())
    process.stdin.close()
    text = b""
    try:
        while some := os.read(ours, 65536):
            text += some
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    process.wait()
    *parts, rest = re.split(rb"<exit (\d+)>", text)
    assert len(parts) == 2 * len(commands), rest[-2000:].decode(errors="replace")
    return [Shown(int(code), said) for said, code in zip(parts[::2], parts[1::2], strict=True)]


def check(commands: list[list[str]], shown: list[Shown], codes: tuple[int, ...]) -> None:
    for words, (code, text) in zip(commands, shown, strict=True):
        said = OWN.sub(b"", text).decode("utf-8", "replace")
        assert b"Traceback" not in text, said
        assert code in codes, (words, code, said)
        assert b"31;7m" not in re.findall(rb"\x1b\[([0-9;]*m)", text), words
        assert (found := FORBIDDEN.search(said)) is None, (words, said[max(0, found.start() - 200) : found.end() + 50])
        assert not any(line.startswith("error: b") for line in said.splitlines()), words


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`set`, whose images have hostile names; `bad`, the same with every image cut; `run`, trained on `set`."""
    place = tmp_path_factory.mktemp("names") / "a\x1b]0;owned\x07b"
    make_discs(place / "plain", len(HOSTILE_NAMES))
    for side in ("images", "masks"):
        for old, name in zip(sorted((place / "plain" / side).iterdir()), HOSTILE_NAMES, strict=True):
            new = place / "set" / side / f"{name}.png"
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(old, new)
            bad = place / "bad" / side / f"{name}.png"
            bad.parent.mkdir(parents=True, exist_ok=True)
            bad.write_bytes(old.read_bytes()[:60])
    return place


def test_every_command(place: Path) -> None:
    """With names that it can use: everything is done; with files that are damaged: each is named."""
    images = [f"set/images/{name}.png" for name in HOSTILE_NAMES]
    bad = [f"bad/images/{name}.png" for name in HOSTILE_NAMES]
    model = "run\x1b[31;7m"
    good = [
        ["data", "set", "--out", "data\x1b[31;7m"],
        ["samples", "set", "--out", "samples\x07.png"],
        ["fit", "set", "--out", model, *TINY],
        ["evaluate", model, "--out", "scores\x07.json"],
        ["evaluate", model, "set"],
        ["show", model],
        ["info", model],
        ["predict", model, "set/images", "--out", "masks\x07", "--device", "cpu"],
        ["predict", model, "set/images", "--out", "masks\x07", "--device", "cpu", "--resume"],
        ["objects", model, "set/images", "--method", "parts", "--export", "coco", "--out", "objects\x07"],
        ["cutout", model, "set/images", "--out", "cutout\x07"],
        ["sample", "drawn\x07", "--count", "1"],
        ["baseline", "otsu", "set", "--out", "baseline\x07"],
        ["cache"],
        ["cache", "--clear"],
    ]
    shown = on_terminal(good, place)
    check(good, shown, (0, 3))  # 3: of the longest name no longer one can be made
    refused = [
        ["data", "bad", "--out", "x\x07"],
        ["samples", "bad", "--out", "x\x07.png"],
        ["fit", "bad", "--out", "x\x07", *TINY],
        ["evaluate", model, "bad"],
        *([command, model, *bad, "--out", "x\x07"] for command in ("predict", "cutout", "objects")),
        *([command, model, *images[:5], "--out", "masks\x07"] for command in ("predict",)),
        *([command, name] for command in ("info", "show", "data", "fit", "evaluate") for name in HOSTILE_NAMES),
        *(["predict", model, f"none{name}", "--out", f"x{name}"] for name in HOSTILE_NAMES),
        *(["fit", "set", "--set", f"{name}=1", "--out", "y"] for name in HOSTILE_NAMES),
        *(["fit", "set", "--classes", f"{name},b", "--out", "y"] for name in HOSTILE_NAMES if ord(min(name)) < 32),
        *([f"x{name}"] for name in HOSTILE_NAMES),
    ]
    check(refused, on_terminal(refused, place), (2,))
