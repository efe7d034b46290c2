"""The lesson on traditional methods: what it says is what it draws, in both languages, of drawn and of own images."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from support.discs import make_discs
from support.refusal import check, refused_once
from ubend.cli.app import main
from ubend.core.errors import DataError
from ubend_lessons.baselines.methods import METHODS
from ubend_lessons.traditional import draw_examples, teach_traditional_methods


def test_from_python(tmp_path: Path) -> None:
    """Every method in its line; the truth in the image, in the colours of its classes."""
    examples, shown, labels = draw_examples(3, 64)
    lines = teach_traditional_methods(examples, shown, labels, out=tmp_path, size_px=64)
    assert [line.split()[0] for line in lines[:-1]] == list(METHODS)
    assert all(0 <= float(line.split()[2]) <= 1 for line in lines[:-1])
    with Image.open(lines[-1]) as image:
        colors = {color for _count, color in image.getcolors(2**24)}
    assert set(labels.colors) <= colors
    assert teach_traditional_methods(examples, shown, labels, out=tmp_path, size_px=64) == lines


def test_what_is_shown_teaches_nothing(tmp_path: Path) -> None:
    examples, (image, mask), labels = draw_examples(3, 64)
    one = teach_traditional_methods(examples, (image, mask), labels, out=tmp_path, size_px=64)
    other = teach_traditional_methods(examples, (image, np.roll(mask, 9)), labels, out=tmp_path, size_px=64)
    assert [line.partition("[")[2] for line in one] == [line.partition("[")[2] for line in other]
    assert one != other


@pytest.mark.parametrize("language", ["en", "vi"])
def test_command(language: str, tmp_path: Path) -> None:
    make_discs(tmp_path / "discs", 12)
    words = ["lesson", "traditional-methods", "--data", tmp_path / "discs", "--out", tmp_path / "out"]
    run = CliRunner().invoke(main, [*map(str, words), "--lang", language])
    assert run.exit_code == 0, run.output
    assert ("thresholds: two" in run.output) == (language == "en")
    with Image.open(tmp_path / "out" / "traditional_methods.png") as image:
        assert image.width > 800


def test_a_bad_folder_is_one_line(tmp_path: Path) -> None:
    error = refused_once("lesson", "traditional-methods", "--data", tmp_path / "none", "--out", tmp_path)
    check(error, DataError, path=tmp_path / "none")
