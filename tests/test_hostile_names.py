"""Whatever files and classes are called, no command lets their control characters reach a terminal."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from support.discs import make_discs
from support.hostile_names import HOSTILE_NAMES
from support.refusal import TINY
from ubend.cli.app import main
from ubend_lessons.commands import lesson

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere refuse such names")

# What rich sends to draw its bar: colours, the cursor hidden and moved within the bar's lines, lines erased.
OWN = re.compile(rb"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[1?A|\x1b\[2K|\r")
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufffd]")

CODE = """
import functools, json, sys
from ubend.cli.app import main
from ubend.tasks import demo
demo._SETTINGS = {"data.size": 32, "model.width": 2, "train.epochs": 1}
demo.draw_sample = functools.partial(demo.draw_sample, count=8, size_px=64)
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


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """`set`, whose images have hostile names; `bad`, the same with every image cut; `breeds`, two of each name."""
    place = tmp_path / "a\x1b]0;owned\x07b"
    make_discs(place / "plain", len(HOSTILE_NAMES))
    for side in ("images", "masks"):
        for old, name in zip(sorted((place / "plain" / side).iterdir()), HOSTILE_NAMES, strict=True):
            new = place / "set" / side / f"{name}.png"
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(old, new)
            bad = place / "bad" / side / f"{name}.png"
            bad.parent.mkdir(parents=True, exist_ok=True)
            bad.write_bytes(old.read_bytes()[:60])
            for number in range(2 * (len(name) < 99)):
                breed = place / "breeds" / side / f"{name}_{number}.png"
                breed.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(old, breed)
    return place


MODEL = "run\x1b[31;7m"
FIT = ["fit", "set", "--out", MODEL, *TINY]
GOOD = [
    FIT,
    ["data", "set", "--out", "data\x1b[31;7m"],
    ["preview", "set", "--out", "samples\x07.png"],
    ["evaluate", MODEL, "--out", "scores\x07.json"],
    ["evaluate", MODEL, "set"],
    ["show", MODEL],
    ["info", MODEL],
    ["runs", "."],
    ["compare", MODEL, "scores\x07.json", "--json", "compared\x07.json"],
    ["report", MODEL],
    ["report", MODEL, "--out", "report\x07.html"],
    ["doctor", "set", "--json", "found\x07.json", "--html", "found\x07.html"],
    ["export", MODEL, "--out", "model\x07.onnx"],
    ["predict", MODEL, "set/images", "--out", "masks\x07", "--device", "cpu"],
    ["predict", MODEL, "set/images", "--out", "masks\x07", "--device", "cpu", "--resume"],
    ["objects", MODEL, "set/images", "--method", "parts", "--export", "coco", "--out", "objects\x07"],
    ["cutout", MODEL, "set/images", "--out", "cutout\x07"],
    ["sample", "drawn\x07", "--count", "1"],
    ["demo", "--out", "demo\x1b[31;7m"],
    ["baseline", "otsu", "set", "--out", "baseline\x07"],
    ["cache"],
    ["cache", "--clear"],
]
TAUGHT = ["--device", "cpu", "--set", "model.width=2", "--set", "train.epochs=1", "--set", "data.size=32"]
TRAINING = [["upsampling"], ["skips"], ["paper"], ["faults"], ["medicine"], ["satellite"], ["driving"]]
BREEDS = [["transfer", "--counts", "8", "--epochs", "1"], ["breeds", "--epochs", "1"]]
LOOKING = [["shapes"], ["shapes", "--model", MODEL], ["traditional-methods"], ["kinds"], ["augmentation"]]
LESSONS = [
    FIT,
    *(["lesson", *words, "--data", "set", *TAUGHT] for words in TRAINING),
    *(["lesson", *words, "--data", "breeds", *TAUGHT] for words in BREEDS),
    *(["lesson", *words, "--data", "set"] for words in LOOKING),
    ["lesson", "transposed-convolution"],
    ["lesson", "architecture", "--model", MODEL],
    ["lesson", "feature-maps", "--model", MODEL, f"set/images/{HOSTILE_NAMES[0]}.png"],
    ["lesson", "training", MODEL],
]
LESSONS[1:] = [[*words, "--out", f"lesson {number}\x1b[31;7m"] for number, words in enumerate(LESSONS[1:])]
IMAGES = [f"set/images/{name}.png" for name in HOSTILE_NAMES]
BAD = [f"bad/images/{name}.png" for name in HOSTILE_NAMES]
REFUSED = [
    ["data", "bad", "--out", "x\x07"],
    ["preview", "bad", "--out", "x\x07.png"],
    ["fit", "bad", "--out", "x\x07", *TINY],
    ["evaluate", MODEL, "bad"],
    ["baseline", "otsu", "bad"],
    ["demo", "--out", MODEL],
    *([command, MODEL, *BAD, "--out", "x\x07"] for command in ("predict", "cutout", "objects")),
    ["predict", MODEL, *IMAGES[:5], "--out", "masks\x07"],
    *(
        [name, word]
        for name in ("info", "show", "data", "fit", "evaluate", "runs", "compare", "report", "doctor", "export")
        for word in HOSTILE_NAMES
    ),
    *(["predict", MODEL, f"none{name}", "--out", f"x{name}"] for name in HOSTILE_NAMES),
    *(["fit", "set", "--set", f"{name}=1", "--out", "y"] for name in HOSTILE_NAMES),
    *(["fit", "set", "--classes", f"{name},b", "--out", "y"] for name in HOSTILE_NAMES if ord(min(name)) < 32),
    *(["baseline", name, "set"] for name in HOSTILE_NAMES),
    *([f"x{name}"] for name in HOSTILE_NAMES),
]
REFUSED_LESSONS = [
    *(["lesson", words[0], "--data", "bad", "--out", "x\x07"] for words in (*TRAINING, *BREEDS, *LOOKING)),
    *(["lesson", "kinds", "--data", name, "--out", "y"] for name in HOSTILE_NAMES),
    *(["lesson", "architecture", "--model", name, "--out", "y"] for name in HOSTILE_NAMES),
    *(["lesson", name, "--", word] for name in ("feature-maps", "training") for word in HOSTILE_NAMES),
    *(["lesson", f"x{name}"] for name in HOSTILE_NAMES),
]


def test_every_command_is_in_the_lists() -> None:
    for group, done in ((main, [*GOOD, *LESSONS]), (lesson, [words[1:] for words in LESSONS[1:]])):
        assert set(group.list_commands(click.Context(group))) <= {words[0] for words in done}


@pytest.mark.slow
@pytest.mark.parametrize(("good", "refused"), [(GOOD, REFUSED), (LESSONS, REFUSED_LESSONS)], ids=["all", "lessons"])
def test_every_command(good: list[list[str]], refused: list[list[str]], place: Path) -> None:
    """With names that it can use: everything is done; with files that are damaged: each is named."""
    check(good, on_terminal(good, place), (0, 3))  # 3: of the longest name no longer one can be made
    check(refused, on_terminal(refused, place), (2,))
