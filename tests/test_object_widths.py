"""Widths of objects; the size or the crops that `fit` chooses for them; the line that tells of objects that a size that
was asked for makes too narrow."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from support.refusal import TINY
from ubend.cli.app import main
from ubend.core.progress import Reporter
from ubend.core.settings import make_settings
from ubend.dataset import object_widths
from ubend.dataset.dataset import open_dataset
from ubend.dataset.object_widths import find_widths, measure_widths, middle_width
from ubend.dataset.scan import WIDTHS_SUFFIX, read_headers
from ubend.dataset.store import hash_pairs
from ubend.labels.class_table import make_label_map
from ubend.layouts.folder import read_folder

Draw = Callable[[NDArray[np.uint8], np.random.Generator], None]


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


def make_folder(folder: Path, draw: Draw, side: int, count: int = 8) -> Path:
    """Grey images, brighter where the mask that `draw` fills is 255."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        mask = np.zeros((side, side), np.uint8)
        draw(mask, generator)
        image = (mask // 2 + generator.integers(0, 60, mask.shape)).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder


def line(width: int) -> Draw:
    def draw(mask: NDArray[np.uint8], generator: np.random.Generator) -> None:
        top = int(generator.integers(0, len(mask) - width))
        mask[top : top + width] = 255

    return draw


def disc(diameter: int) -> Draw:
    def draw(mask: NDArray[np.uint8], generator: np.random.Generator) -> None:
        y, x = np.ogrid[: len(mask), : len(mask)]
        row, column = generator.integers(diameter // 2, len(mask) - diameter // 2, 2)
        mask[(y - row) ** 2 + (x - column) ** 2 <= diameter**2 / 4] = 255

    return draw


@pytest.mark.parametrize(
    ("draw", "side", "on_cpu", "on_gpu"),
    [
        (line(4), 560, ("native", None, 128), ("native", None, 256)),  # vessels
        (line(5), 128, ("keep", 128, None), ("keep", 128, None)),  # narrow, but not shrunk
        (line(1), 560, ("keep", 128, None), ("keep", 256, None)),  # an outline
        (disc(24), 300, ("keep", 144, None), ("keep", 256, None)),  # a little less than 24 px in the median
        (disc(12), 400, ("native", None, 128), ("keep", 368, None)),
        (disc(20), 700, ("native", None, 128), ("keep", 368, None)),
        (disc(16), 900, ("native", None, 128), ("native", None, 256)),  # in the corner of a large image, too
        (disc(150), 400, ("keep", 128, None), ("keep", 256, None)),
    ],
)
def test_size_follows_from_the_objects(
    draw: Draw, side: int, on_cpu: tuple[Any, ...], on_gpu: tuple[Any, ...], tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "drawn", draw, side)
    settings = make_settings(changes={"data.folder": str(folder)})
    for device, wanted in (("cpu", on_cpu), ("cuda", on_gpu)):
        data = open_dataset(settings, device, tmp_path / "cache", Reporter())
        assert (data.input_format.resize, data.input_format.size, data.input_format.crop) == wanted
        assert data.sizing.size_px == wanted[1]


def test_large_images_do_not_hide_the_small_objects_of_others(tmp_path: Path) -> None:
    """Nuclei at two magnifications: half of the objects' area is in the few large images."""
    folder = make_folder(tmp_path / "drawn", disc(12), 256, count=12)
    for number in range(4):
        mask = np.zeros((696, 696), np.uint8)
        for place in range(60, 640, 80):
            mask[place : place + 50, place : place + 50] = 255
        for kind in ("images", "masks"):
            Image.fromarray(mask).save(folder / kind / f"large{number}.png")
    data = open_dataset(make_settings(changes={"data.folder": str(folder)}), "cpu", tmp_path / "cache", Reporter())
    assert (data.input_format.resize, data.input_format.crop) == ("native", 128)
    (reason,) = [choice.reason for choice in data.input_format.choices if choice.key == "data.resize"]
    assert "at most 11.0 px wide in a quarter of the images" in reason


def test_what_is_requested_for_wins(tmp_path: Path) -> None:
    folder = str(make_folder(tmp_path / "lines", line(4), 320))
    for recipe, changes, wanted in (
        ("modern", {"data.size": 64}, ("keep", 64, None)),
        ("modern", {"data.crop": 64}, ("keep", 128, 64)),
        ("modern", {"data.resize": "keep"}, ("keep", 128, None)),
        ("modern", {"data.resize": "squash"}, ("squash", 128, None)),
        ("modern", {"data.resize": "native", "data.crop": 64}, ("native", None, 64)),
        ("tutorial", {}, ("squash", 128, None)),
        ("paper", {}, ("keep", 128, None)),
    ):
        settings = make_settings(recipe, changes={"data.folder": folder, **changes})  # type: ignore[arg-type]
        images = open_dataset(settings, "cpu", tmp_path / "cache", Reporter()).input_format
        assert (images.resize, images.size, images.crop) == wanted


def say(*words: object) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def notes(*words: object) -> list[str]:
    return [line for line in say(*words).splitlines() if "narrow" in line]


def test_fit_without_a_flag_learns_crops_of_thin_lines(tmp_path: Path) -> None:
    """`data` says it before; settings.toml holds it, so that a run from it, and one that is resumed, are the same."""
    folder, run, again = make_folder(tmp_path / "lines", line(4), 320), tmp_path / "run", tmp_path / "again"
    objects = "objects of class foreground (at most 4.0 px wide in a quarter of the images in all splits) would be"
    chosen = f"chosen: data.resize = native: {objects}"
    assert chosen in say("data", folder, "--out", tmp_path / "data", "--set", "device=cpu")
    stated = say("data", tmp_path / "data" / "data.toml", "--out", tmp_path / "stated", "--set", "device=cpu")
    assert chosen.replace("in all splits", "in the training split") in stated
    small = ["--width", 2, "--epochs", 1, "--device", "cpu"]
    told = say("fit", folder, *small, "--out", run)
    assert chosen in told
    assert "narrow" not in told
    data = tomllib.loads((run / "settings.toml").read_text())["data"]
    assert (data["resize"], data["crop"], "size" in data) == ("native", 128, False)
    assert "chosen: " not in say("fit", "--config", run / "settings.toml", "--out", again)
    assert (again / "settings.toml").read_text() == (run / "settings.toml").read_text()
    assert (again / "model.safetensors").stat().st_size == (run / "model.safetensors").stat().st_size
    assert "chosen: " not in say("fit", "--resume", run)


@pytest.mark.parametrize(
    ("width", "side", "told", "suggestion"),
    [
        (5, 320, "5.0 -> 2.0 px", "--patches"),  # a vessel
        (16, 256, "16.0 -> 8.0 px", "--size 160"),
        (40, 256, None, None),  # 20 px are left
        (5, 128, None, None),  # narrow, but not shrunk
    ],
)
def test_data_tells_of_objects_that_are_shrunk(
    width: int, side: int, told: str | None, suggestion: str | None, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "lines", line(width), side)
    lines = notes("data", folder, "--set", "data.size=128", "--out", tmp_path / "out")
    assert len(lines) == (told is not None)
    for one in lines:
        assert told is not None
        assert suggestion is not None
        assert told in one
        assert "128 px" in one
        assert suggestion in one


def test_fit_tells_of_them_and_the_cure_helps(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "lines", line(5), 128)
    base = ["fit", folder, *TINY, "--epochs", 1]
    (told,) = notes(*base, "--out", tmp_path / "run")
    assert "at 32 px" in told
    assert "--patches" in told
    assert notes(*base, "--patches", "--out", tmp_path / "patches") == []


def test_widths_are_measured_once(discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from the cache afterwards; a damaged file there is recreated, with one line."""
    pairs = read_folder(discs).pairs
    shapes = [header.size_hw for header in read_headers(pairs)]
    hashes, labels = [mask for _image, mask in hash_pairs(pairs)], make_label_map([0, 255])
    measured, said = list[str](), list[str]()
    read = object_widths.read_class_map
    monkeypatch.setattr(
        object_widths, "read_class_map", lambda pair, *more: measured.append(pair.name) or read(pair, *more)
    )

    def find() -> dict[str, Any]:
        measured.clear()
        return find_widths(pairs, shapes, labels, hashes, tmp_path / "cache", said.append)

    first = find()
    assert first
    assert measured
    assert find() == first
    assert not measured
    (path,) = (tmp_path / "cache").glob(f"*{WIDTHS_SUFFIX}")
    whole = path.read_bytes()
    for damage in (b"", whole[: len(whole) // 2], whole.replace(b"classes", b"classez")):
        path.write_bytes(damage)
        said.clear()
        assert find() == first
        assert measured
        assert len(said) == 1
    assert len(object_widths.find_widths(pairs, shapes, labels, ["other"] * len(pairs), tmp_path / "cache")) == 1
    assert measured
