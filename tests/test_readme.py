"""The commands of README and docs run as written, in their order; the long ones with a small network and one epoch."""

import ast
import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import ROOT
from support.commands import parse
from support.exports import NEEDS_EXPORT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = ["--epochs", "1", "--width", "2", "--size", "32"]  # click takes the last of two equal flags

pytestmark = pytest.mark.slow


def commands(block: str) -> list[list[str]]:
    return [words for line in block.splitlines() if (words := shlex.split(line, comments=True))]


def page_commands(page: str) -> list[list[str]]:
    """Of all bash blocks of a page, in their order."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)
    return [words for block in blocks for words in commands(block)]


CELLS = ("README.md", "docs/training.md", "docs/predictions.md", "docs/objects.md")  # which use the sample of the first
COURSE = page_commands("docs/tutorial-map.md")
ROWS = re.findall(r"^\|.*\|$", README, re.M)
TABLE = sorted({text for row in ROWS for text in re.findall(r"`ubend ([^`]+)`", row)})
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)


def run(words: list[str], place: Path) -> str:
    environment = os.environ | {"UBEND_CACHE": str(place / "cache"), "MPLBACKEND": "agg"}
    done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def ubend(words: list[str], place: Path) -> str:
    assert words[0] == "ubend"
    small = SMALL if words[1] == "fit" else []
    return run([sys.executable, "-m", "ubend", *words[1:], *small], place)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands on the drawn cells have been run; later ones use what they made."""
    place = tmp_path_factory.mktemp("readme")
    done = set[str]()
    for page in CELLS:
        for words in page_commands(page):
            if shlex.join(words) not in done:  # pages may begin with a command of the README
                ubend(words, place)
            done.add(shlex.join(words))
    return place


def test_blocks_are_found() -> None:
    assert [len(page_commands(page)) for page in CELLS] == [5, 9, 2, 1]
    assert len(COURSE) == 6
    assert len(TABLE) >= 15
    assert len(PYTHON) == 1


@pytest.mark.parametrize("text", TABLE)
def test_commands_of_the_table_parse(text: str) -> None:
    parse(shlex.split(text))


def test_own_images(place: Path) -> None:
    assert (place / "runs" / "cells" / "predictions.png").stat().st_size > 10_000
    assert len(list((place / "masks").glob("*.png"))) == 2 * 64
    assert len(list((place / "counted").glob("*_ids.tif"))) == len(list((place / "cut").glob("*.png"))) == 64
    assert (place / "cells-data" / "samples.png").exists()


@NEEDS_EXPORT
def test_one_file_for_other_programs(place: Path) -> None:
    """The example without ubend finds the classes where `ubend predict` does."""
    for words in page_commands("docs/deploy.md"):
        ubend(words, place)
    assert len(list((place / "masks-onnx").glob("*.png"))) == 2 * 64
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8"), re.S)
    shares = ast.literal_eval(run([sys.executable, "-c", block], place))
    with (place / "masks-onnx" / "shares.csv").open(newline="") as file:
        (row,) = (row for row in csv.DictReader(file) if Path(row["file"]).stem == "cell_000")
    assert {name: pytest.approx(float(row[name]), abs=0.05) for name in shares} == shares  # an unsure model


def test_painted_masks(place: Path) -> None:
    """The cells with the colours that their masks show, as a painting program would save them."""
    for path in sorted((place / "cells" / "images").iterdir()):
        mask = Image.open(place / "cells" / "masks" / path.name).convert("RGB")
        for kind, image in (("images", Image.open(path)), ("masks", mask)):
            (place / "painted" / kind).mkdir(parents=True, exist_ok=True)
            image.save(place / "painted" / kind / path.name)
    said = [ubend(words, place) for words in page_commands("docs/formats.md")]
    assert "#e69f00" in said[0]
    assert "#e69f00 -> cell" in said[1]
    assert len(list((place / "seen").glob("*.png"))) == 2 * 64
    mask = Image.open(place / "seen" / "cell_000.png")
    assert mask.getpalette()[:9] == [0, 0, 0, 230, 159, 0, 86, 180, 233]
    info = ubend(["ubend", "info", "runs/painted"], place)
    assert "1 cell  mask value #e69f00" in info
    assert "2 contour  mask value #56b4e9" in info


def test_contours_from_ids(place: Path) -> None:
    """The example writes masks of which `ubend data` says the classes."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "objects.md").read_text(encoding="utf-8"), re.S)
    run([sys.executable, "-c", block], place)
    words = "ubend data --images cells/images --masks with-contours --values 0=background,1=cell,2=contour"
    said = ubend([*words.split(), "--out", "with-contours-data"], place)
    assert "0 -> background, 1 -> cell, 2 -> contour" in said
    mask = np.array(Image.open(place / "with-contours" / "cell_000.png"))
    ids = np.array(Image.open(place / "cells" / "ids" / "cell_000.png"))
    np.testing.assert_array_equal(mask > 0, ids > 0)  # objects keep their area
    assert 0 < (mask == 2).sum() < (mask == 1).sum()


def test_python(place: Path) -> None:
    (block,) = PYTHON
    checks = "\nassert prediction.mask.shape == (256, 256)\nassert result.scores\n"
    run([sys.executable, "-c", block + checks], place)


def test_two_jobs(tmp_path: Path, real_data: Path) -> None:
    (tmp_path / "data").symlink_to(real_data.resolve())
    for words in (words for words in COURSE if words[1] == "fit"):
        out = ubend(words, tmp_path)
        assert "at model size" in out


def test_lessons(tmp_path: Path) -> None:
    for words in (words for words in COURSE if words[1] == "lesson"):
        ubend(words, tmp_path)
    assert (tmp_path / "lesson" / "transposed_convolution.gif").exists()
    assert list((tmp_path / "net").glob("*.png"))


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
