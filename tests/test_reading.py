"""`ubend.read_folder` and `ubend.read_image`; `read_scan` is tested with the scans."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import ubend
from support.refusal import raises
from ubend.core.errors import DataError, PairError, SettingError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight noisy images with masks of 0, 100 and 255 and a split file with groups; masks kept in `truth(i)`."""
    rows = ["file,split,group"]
    for number in range(8):
        image = np.random.default_rng(number).integers(0, 255, (20 + number, 30, 3)).astype(np.uint8)
        _save(tmp_path / "set" / "images" / f"{number}.png", image)
        _save(tmp_path / "set" / "masks" / f"{number}.png", np.array([0, 100, 255], np.uint8)[_truth(number)])
        rows.append(f"{number}.png,{('train', 'val', 'test')[number % 3]},g{number // 4}")
    (tmp_path / "split.csv").write_text("\n".join(rows))
    return tmp_path / "set"


def _truth(number: int) -> np.ndarray:
    return np.random.default_rng(100 + number).integers(0, 3, (20 + number, 30)).astype(np.uint8)


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def test_pairs_and_class_maps(folder: Path) -> None:
    data = ubend.read_folder(folder, values=["0=ground", "100=leaf", "255=spot"], split=folder.parent / "split.csv")
    assert data.class_names == ("ground", "leaf", "spot")
    assert [(pair.name, pair.image) for pair in data.pairs] == [
        (str(i), folder / "images" / f"{i}.png") for i in range(8)
    ]
    assert [pair.split for pair in data.pairs] == [("train", "val", "test")[i % 3] for i in range(8)]
    assert [pair.group for pair in data.pairs] == [f"g{i // 4}" for i in range(8)]
    for number, pair in enumerate(data.pairs):
        found = pair.class_map()
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, _truth(number))
    with pytest.raises(FrozenInstanceError):
        data.pairs[0].name = "other"  # type: ignore[misc]


def test_a_folder_that_states_no_split(folder: Path) -> None:
    (folder / "ids").mkdir()
    Image.new("L", (4, 4)).save(folder / "ids" / "a.png")
    data = ubend.read_folder(str(folder), classes="a, b, c")
    assert data.class_names == ("a", "b", "c")
    assert {(pair.split, pair.group) for pair in data.pairs} == {(None, None)}
    assert any("ids/" in note for note in data.notes)
    paths = ubend.read_folder(None, images=folder / "images", masks=folder / "masks", classes=["a", "b", "c"])
    assert [pair.name for pair in paths.pairs] == [pair.name for pair in data.pairs]


def test_pixels_that_are_not_scored(folder: Path) -> None:
    data = ubend.read_folder(folder, values=["0=ground", "100=leaf", "255=ignored"])
    np.testing.assert_array_equal(data.pairs[3].class_map() == ubend.IGNORED, _truth(3) == 2)


def test_settings_are_checked(folder: Path) -> None:
    with raises(SettingError, key="data.clases") as caught:
        ubend.read_folder(folder, settings={"data.clases": ["a"]})
    assert "data.classes" in str(caught.value)
    with raises(SettingError, key="data.channels"):
        ubend.read_folder(folder, channels=0)
    with raises(SettingError, key="data.epochs"):
        ubend.read_folder(folder, settings={"data.epochs": 3})


def test_pairs_that_cannot_be_used(folder: Path) -> None:
    _save(folder / "masks" / "5.png", _truth(4))
    with pytest.raises(PairError) as caught:
        ubend.read_folder(folder, classes="a,b,c")
    assert caught.value.bad.keys() == {"5"}
    data = ubend.read_folder(folder, classes="a,b,c", skip_bad=True)
    assert [pair.name for pair in data.pairs] == ["0", "1", "2", "3", "4", "6", "7"]
    assert set(caught.value.bad["5"]) <= set(data.notes)


def test_a_mask_that_was_changed_afterwards(folder: Path) -> None:
    pair = ubend.read_folder(folder, classes="a,b,c").pairs[2]
    _save(folder / "masks" / "2.png", _truth(3))
    with raises(DataError, path=folder / "masks" / "2.png"):
        pair.class_map()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_an_image(dtype: str, tmp_path: Path) -> None:
    values = (np.random.default_rng(0).random((7, 9, 3)) * 200).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", resolution=(1e4 / 0.5, 1e4 / 0.25),
                     resolutionunit="CENTIMETER")  # fmt: skip
    image = ubend.read_image(str(tmp_path / "a.tif"))
    assert image.pixels.dtype == dtype
    np.testing.assert_array_equal(image.pixels, values)
    assert image.valid.shape == (7, 9)
    assert image.valid.dtype == bool
    assert image.valid.all()
    assert image.pixel_size is not None
    assert image.pixel_size.unit == "um"
    assert (image.pixel_size.height, image.pixel_size.width) == pytest.approx((0.25, 0.5))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_not_valid(mode: str, tmp_path: Path) -> None:
    alpha = np.random.default_rng(1).integers(0, 3, (6, 5)).astype(np.uint8) * 100
    if mode == "P":
        drawing = Image.fromarray((alpha == 0).astype(np.uint8))
        drawing.putpalette([10, 20, 30, 40, 50, 60])
        drawing.save(tmp_path / "a.png", transparency=1)
    else:
        Image.fromarray(np.dstack([*[np.full((6, 5), 9, np.uint8)] * (len(mode) - 1), alpha]), mode).save(
            tmp_path / "a.png"
        )
    image = ubend.read_image(tmp_path / "a.png")
    assert image.pixels.shape == (6, 5, 1 if mode == "LA" else 3)
    np.testing.assert_array_equal(image.valid, alpha != 0)
    assert image.pixel_size is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff(orientation: int, tmp_path: Path) -> None:
    """Pixels and validity are turned alike."""
    values = np.random.default_rng(2).integers(0, 3, (6, 5)).astype(np.uint8)
    tags = [(42113, 2, 2, "0", True), (274, 3, 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=tags)
    image = ubend.read_image(tmp_path / "a.tif")
    assert not image.valid.all()
    np.testing.assert_array_equal(image.valid, image.pixels[:, :, 0] != 0)


def test_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    for name in ("a.png", "missing.png"):
        with raises(DataError, path=tmp_path / name):
            ubend.read_image(tmp_path / name)


def test_paths_begin_as_the_folder_was_given(discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(discs.parent)
    for folder in (discs, Path(discs.name)):
        pairs = ubend.read_folder(folder).pairs
        assert {pair.image.parent for pair in pairs} == {folder / "images"}
    assert {pair.class_map().max() for pair in pairs} == {1}
