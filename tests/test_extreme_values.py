"""Nodata values that no file declares, and hot pixels: said, left out of the statistics; clean sets are untouched."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from support.commands import succeed
from support.models import make_bundle, save_model
from ubend.core.files import default_cache
from ubend.core.progress import Reporter
from ubend.dataset.dataset import Dataset, open_dataset
from ubend.portable import mask_job
from ubend.portable.extreme_values import find_normal_range
from ubend.portable.extremes import ExtremeValues
from ubend.tasks.user_settings import read_user_settings


def values_of(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(3, 3.6, (32, 32)).astype(np.float32)


def open_with(folder: Path, value: float, side: int) -> Dataset:
    """Ten images, of which two have `value` in their corner, `side` px wide."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(10):
        image, mask = values_of(number), np.zeros((32, 32), np.uint8)
        mask[8:20, 8:24] = 255
        if number in (3, 7):
            image[:side, :side] = value
        tifffile.imwrite(folder / "images" / f"{number}.tif", image)
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    settings = read_user_settings(folder, settings={"data.size": 32}).settings
    return open_dataset(settings, "cpu", default_cache(), Reporter())


@pytest.mark.parametrize(("value", "side"), [(-9999, 4), (float(np.finfo("f4").min), 4), (1e6, 1), (-9999, 30)])
def test_extreme_values_are_said_and_left_out(tmp_path: Path, value: float, side: int) -> None:
    data = open_with(tmp_path / "set", value, side)
    (line,) = data.describe_extremes()
    assert all(words in line for words in ("2 images", "3.tif, 7.tif", f"{value:.6g}", f"{value:.9g}"))
    mean, std = data.mean_std()
    assert 3.2 < mean[0] < 3.4
    assert 0.15 < std[0] < 0.2
    low, high = data.value_range()
    assert 3 <= low[0] < high[0] <= 3.6


def test_clean_sets_are_untouched(tmp_path: Path) -> None:
    data = open_with(tmp_path / "set", 3.5, 4)
    assert data.describe_extremes() == []
    values = np.concatenate([data.store.image(number).reshape(-1) for number in data.indices("train")]).astype("f8")
    mean, std = data.mean_std()
    np.testing.assert_allclose((mean[0], std[0]), (values.mean(), values.std()), rtol=1e-9)
    assert data.value_range()[0][0] == values.min()
    assert data.value_range()[1][0] == values.max()


draws = np.random.default_rng(0)
CLEAN = {
    "two values": np.repeat([0.0, 1.0], 500),
    "counts": draws.poisson(5, 5000),
    "black ground": np.where(draws.random(5000) < 0.8, 0, draws.uniform(50, 500, 5000)),
    "heavy tail": draws.lognormal(0, 3, 5000),
    "Hounsfield units": np.append(draws.normal(0, 300, 5000), -1024),
    "a narrow share": np.append(draws.normal(0, 1, 5000), 400),
    "most at the end": np.append(np.full(900, 1e6), draws.uniform(0, 1, 800)),
    "empty": np.zeros(0),
}


@pytest.mark.parametrize("name", CLEAN)
def test_no_false_alarm(name: str) -> None:
    bounds = find_normal_range([CLEAN[name].astype(np.float32)[:, None]], 1)
    np.testing.assert_array_equal(bounds, [[-np.inf], [np.inf]])


@given(st.floats(-1e6, 1e6), st.floats(1, 1e4), st.booleans(), st.booleans())
def test_both_ends_of_one_channel_of_two(center: float, spread: float, low: bool, high: bool) -> None:
    """Each channel has bounds of its own, and the bulk lies within them."""
    bulk = center + spread * np.linspace(-1, 1, 400)
    far = 3000 * (spread + abs(center))
    extremes = [*([-far] if low else []), *([far * 1000] if high else [])]
    values = np.concatenate([bulk, extremes]).astype(np.float32)
    pieces = np.stack([values, np.resize(bulk, len(values)).astype(np.float32)], axis=1)
    bounds = find_normal_range([pieces[:100], pieces[100:]], 2)
    np.testing.assert_array_equal(bounds[:, 1], [-np.inf, np.inf])
    assert (np.isfinite(bounds[:, 0]) == [low, high]).all()
    assert bounds[0, 0] < bulk.min() <= bulk.max() < bounds[1, 0]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Of float images with a mean of 128 and a standard deviation of 64."""
    save_model(tmp_path / "model.safetensors", 1, "float32")
    return tmp_path / "model.safetensors"


def write_images(folder: Path, extremes: dict[str, tuple[float, int]]) -> Path:
    """Float images of 0 to 255 and their masks; name -> a value in the corner, and the corner's side in px."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for name, (value, side) in extremes.items():
        image = (values_of(len(name)) - 3) * 400
        image[:side, :side] = value
        tifffile.imwrite(folder / "images" / f"{name}.tif", image, tile=(16, 16))
        Image.fromarray(np.eye(32, dtype=np.uint8)).save(folder / "masks" / f"{name}.png")
    return folder


MIN = -1e30


@pytest.mark.parametrize(
    "words", [["predict"], ["predict", "--tiles", "16"], ["objects", "--method", "parts"], ["cutout"], ["evaluate"]]
)
def test_predictions_say_it(words: list[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nodata in a corner or nearly everywhere, and of a hot pixel; also where an image is read by rows."""
    if "--tiles" in words:
        monkeypatch.setattr(mask_job, "_LARGE_PIXELS", 100)
    bad = write_images(tmp_path / "bad", {"good": (200, 4), "corner": (MIN, 4), "most": (MIN, 30), "hot": (1e7, 1)})
    clean = write_images(tmp_path / "clean", {"good": (200, 4), "bright": (3000, 4), "dark": (-3000, 30)})
    for folder, named in ((bad, "corner.tif, hot.tif, most.tif"), (clean, None)):
        inputs = [folder] if words[0] == "evaluate" else [folder / "images", "--out", tmp_path / f"out-{folder.name}"]
        result = succeed(words[0], model, *inputs, *words[1:])
        said = " ".join((result.stdout + result.stderr).split())
        assert ("gdal_edit.py" in said) == (named is not None)
        assert named is None or (named in said and "3 images" in said and f"{np.float32(MIN):.9g}" in said)


@given(st.floats(0, 1e4), st.floats(0, 1e4), st.integers(0, 99))
def test_images_of_another_range_are_no_nodata(low: float, high: float, seed: int) -> None:
    """Whatever scale an image has, however many of its pixels are beyond the training images."""
    bundle = make_bundle(channels=1)
    bundle.dtype = "float32"
    found = ExtremeValues(bundle)
    image = np.random.default_rng(seed).uniform(min(low, high), max(low, high) + 1, (24, 24, 1)).astype(np.float32)
    found.look(Path("a"), image * np.float32(1000))
    assert found.describe() == []
