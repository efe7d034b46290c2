"""Widths of objects, and the line that tells of objects that the model's size makes too narrow."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from support.refusal import TINY
from ubend.cli.app import main
from ubend.dataset.object_widths import measure_widths, middle_width


def widths_of(mask: NDArray[Any], kind: int = 1) -> NDArray[np.float64]:
    classes, widths = measure_widths(mask.astype(np.uint8))
    return widths[classes == kind]


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("turned", [False, True])
def test_lines(width: int, turned: bool) -> None:
    """Whatever their length, and where they leave the image."""
    mask = np.zeros((60, 200))
    mask[20 : 20 + width] = 1
    found = widths_of(mask.T if turned else mask)
    assert len(found) > 100
    assert set(found) == {width}


@pytest.mark.parametrize("diameter", [8, 15, 40])
def test_discs(diameter: int) -> None:
    """Also of discs that touch, which are one component."""
    y, x = np.mgrid[:100, :200]
    centers = (60, 60 + diameter)
    mask = np.any([(y - 50) ** 2 + (x - c) ** 2 <= (diameter / 2) ** 2 for c in centers], axis=0)
    assert middle_width(widths_of(mask)) == pytest.approx(diameter, abs=1.5)


def test_slanting_line() -> None:
    y, x = np.mgrid[:200, :200]
    mask = abs(x - 0.6 * y - 40) / np.hypot(1, 0.6) <= 3.5
    assert middle_width(widths_of(mask)) == pytest.approx(7, abs=1)


def test_classes_that_touch_are_borders_of_each_other() -> None:
    mask = np.zeros((40, 60))
    mask[10:16], mask[16:20] = 1, 2
    assert set(widths_of(mask, 1)) == {6}
    assert set(widths_of(mask, 2)) == {4}


def test_nothing_to_measure() -> None:
    for value in (0, 1):
        assert len(measure_widths(np.full((9, 9), value, np.uint8))[1]) == 0


def make_lines(folder: Path, width: int, side: int, count: int = 24) -> Path:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        mask = np.zeros((side, side), np.uint8)
        top = int(generator.integers(0, side - width))
        mask[top : top + width] = 255
        image = (mask // 2 + generator.integers(0, 60, mask.shape)).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder


def say(*words: object) -> list[str]:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return [line for line in result.output.splitlines() if "narrow" in line]


@pytest.mark.parametrize(
    ("width", "side", "told", "cure"),
    [
        (5, 320, "5.0 -> 2.0 px", "--patches"),  # a vessel
        (16, 256, "16.0 -> 8.0 px", "--size 160"),
        (40, 256, None, None),  # 20 px are left
        (5, 128, None, None),  # narrow, but not shrunk
    ],
)
def test_data_tells_of_objects_that_are_shrunk(
    width: int, side: int, told: str | None, cure: str | None, tmp_path: Path
) -> None:
    lines = say("data", make_lines(tmp_path / "lines", width, side), "--out", tmp_path / "out")
    assert len(lines) == (told is not None)
    for line in lines:
        assert told is not None
        assert cure is not None
        assert told in line
        assert "128 px" in line
        assert cure in line


def test_fit_tells_of_them_and_the_cure_helps(tmp_path: Path) -> None:
    folder = make_lines(tmp_path / "lines", 5, 128)
    base = ["fit", folder, *TINY, "--epochs", 1]
    (line,) = say(*base, "--out", tmp_path / "run")
    assert "at 32 px" in line
    assert "--patches" in line
    assert say(*base, "--patches", "--out", tmp_path / "patches") == []
