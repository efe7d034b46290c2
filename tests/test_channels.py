"""Sets of 1 to 16 channels: agreed on from headers, measured, trained on, scored, predicted, drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner
from PIL import Image

import ubend
from support.discs import draw_disc
from support.models import prob_of
from support.refusal import TINY, check, contents, raises, refused, refused_once
from ubend.cli.app import main
from ubend.core.autoconfig import resolve
from ubend.core.errors import DataError, PairError, SettingError
from ubend.core.progress import Reporter
from ubend.core.settings import make_settings
from ubend.dataset.augment import sample_augmentation
from ubend.dataset.dataset import open_dataset
from ubend.dataset.scan import agree_channels, read_headers
from ubend.io.images import read_image
from ubend.layouts.folder import read_folder
from ubend.portable.overlay import to_rgb
from ubend.tasks.fit import scan

KINDS = [(5, "uint16"), (2, "float32"), (16, "uint8"), (1, "uint8"), (3, "uint16")]


def draw_bands(seed: int, channels: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """A disc in (H, W, channels); each band in units of its own, unless the images are 8 bit."""
    image, mask = draw_disc(seed)
    bands = np.repeat(image[:, :, :1], channels, axis=2).astype(np.float64)
    bands += np.random.default_rng(seed).normal(0, 3, bands.shape)
    if dtype == "uint8":
        return bands.clip(0, 255).astype(np.uint8), mask
    bands *= 10.0 ** (np.arange(channels) % 3)
    return (bands.clip(0, 65_535) if dtype == "uint16" else bands / 1000 - 2).astype(dtype), mask


def write_tiff(path: Path, image: np.ndarray) -> None:
    kind = "rgb" if image.shape[2] == 3 else "minisblack"
    if image.shape[2] == 1:
        tifffile.imwrite(path, image[:, :, 0])
    else:
        tifffile.imwrite(path, image, photometric=kind, planarconfig="contig", compression="zlib")


def make_bands(folder: Path, channels: int, dtype: str, count: int = 12) -> Path:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        image, mask = draw_bands(number, channels, dtype)
        write_tiff(folder / f"images/disc{number:02d}.tif", image)
        Image.fromarray(mask).save(folder / f"masks/disc{number:02d}.png")
    return folder


def run(*words: object) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_from_folder_to_prediction(tmp_path: Path, channels: int, dtype: str) -> None:
    folder = make_bands(tmp_path / "set", channels, dtype)
    run("fit", folder, "--out", tmp_path / "run", *TINY)
    assert f"data.channels = {channels}: " in (tmp_path / "run" / "run.json").read_text(encoding="utf-8")
    run("evaluate", tmp_path / "run")
    run("predict", tmp_path / "run", folder / "images", "--out", tmp_path / "masks")
    run("show", tmp_path / "run")
    run("preview", folder, "--out", tmp_path / "samples.png")
    assert f"{channels} channels" in run("info", tmp_path / "run")
    assert len(list((tmp_path / "run/panels").iterdir())) == 2
    predictor = ubend.load(tmp_path / "run")  # on the device of the command, so that no pixel may differ
    net = predictor.bundle.model
    assert (net.channels, predictor.bundle.dtype) == (channels, dtype)
    path = folder / "images/disc00.tif"
    image = read_image(path)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "masks/disc00.png")), predictor(path).mask)
    np.testing.assert_array_equal(prob_of(predictor, path), prob_of(predictor, image))
    for given in (image.astype(np.float32), image[:, :, 0] if channels == 1 else image):
        np.testing.assert_allclose(prob_of(predictor, given), prob_of(predictor, path), atol=0.03)  # resized as float


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_numbers_of_the_weights_are_for_8_bits(dtype: str, tmp_path: Path) -> None:
    """Others have no white: one hot pixel would set the scale of all."""
    settings = make_settings(changes={"data.folder": str(make_bands(tmp_path / "set", 3, dtype)), "data.size": 44})
    found = scan(settings, torch.device("cpu"), Reporter())
    assert (found.facts.pretrained is not None) == (dtype == "uint8")
    plan = resolve(settings, found.facts)
    assert plan.model.pretrained
    assert (plan.data.mean is not None) == (dtype == "uint8")


def test_numbers_per_channel(tmp_path: Path) -> None:
    """Range, mean and deviation of the training split are numpy's; the network carries them."""
    folder = make_bands(tmp_path / "set", 5, "uint16")
    settings = make_settings(changes={"data.folder": str(folder), "data.size": 44})
    data = open_dataset(settings, "cpu", tmp_path / "cache", Reporter())
    pixels = np.concatenate([data.store.image(int(i)).reshape(-1, 5) for i in data.indices("train")]).astype(float)
    mean, std = data.mean_std()
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(std, pixels.std(axis=0), rtol=1e-6)
    low, high = data.value_range()
    np.testing.assert_array_equal(low, pixels.min(axis=0))
    np.testing.assert_array_equal(high, pixels.max(axis=0))
    assert mean[1] > 5 * mean[0]
    net = ubend.UNet(channels=5, classes=2, width=4, mean=mean, std=std)
    assert net.mean.flatten().tolist() == torch.tensor(mean).tolist()


# What a set must have in common


def make_mixed(folder: Path, images: dict[str, np.ndarray | Image.Image]) -> Path:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number, (name, image) in enumerate(images.items()):
        path = folder / "images" / name
        if isinstance(image, np.ndarray):
            write_tiff(path, image)
        else:
            image.save(path)
        Image.fromarray(draw_disc(number)[1]).save(folder / f"masks/{path.stem}.png")
    return folder


def agree(folder: Path, wanted: int | None) -> tuple[int, list[str]]:
    pairs = read_folder(folder).pairs
    return agree_channels(read_headers(pairs, wanted), pairs, wanted)


def color(number: int) -> Image.Image:
    return Image.fromarray(draw_disc(number)[0])


def mix_of_greys(folder: Path) -> Path:
    images = {f"c{i}.png": color(i) for i in range(8)} | {f"g{i}.jpg": color(i).convert("L") for i in range(5)}
    return make_mixed(folder, images)


@pytest.mark.filterwarnings("ignore:.* images (is|are) (grey|in colour)")
def test_grey_among_colour_is_read_in_colour_and_said(tmp_path: Path) -> None:
    folder = mix_of_greys(tmp_path / "set")
    channels, (line,) = agree(folder, None)
    assert channels == 3
    assert all(word in line for word in ("5 of 13", "g0, g1, g2, ...", "--channels 1"))
    assert line in run("data", folder, "--out", tmp_path / "data")
    for channels in (1, 3):
        assert agree(folder, channels) == (channels, [])
        run("fit", folder, "--channels", channels, "--out", tmp_path / f"run{channels}", *TINY)
        predictor = ubend.load(tmp_path / f"run{channels}", device="cpu")
        assert predictor.bundle.model.channels == channels
        for name in ("c0.png", "g0.jpg"):
            assert predictor(folder / "images" / name).mask.shape == (40, 48)
    run("preview", folder, "--channels", 3, "--out", tmp_path / "samples.png")


def test_other_mixtures(tmp_path: Path) -> None:
    bands = {f"b{i}.tif": draw_bands(i, 4, "uint8")[0] for i in range(3)}
    folder = make_mixed(tmp_path / "set", {**bands, "odd.png": color(7)})
    with raises(DataError, key="data.channels", named=["(b0, b1, b2)", "(odd)", "--channels 4 --skip-bad"]):
        agree(folder, None)
    with raises(PairError, key="data.channels", named=["(odd)", "--skip-bad"]) as caught:
        agree(folder, 4)
    assert list(caught.value.bad) == ["odd"]
    with raises(PairError, key="data.channels", named=["4"]) as caught:
        agree(folder, 3)
    assert sorted(caught.value.bad) == ["b0", "b1", "b2"]
    with pytest.raises(PairError) as caught:
        agree(folder, 7)
    assert len(caught.value.bad) == 4
    assert "--skip-bad" not in str(caught.value)


def test_more_than_sixteen(tmp_path: Path) -> None:
    folder = make_mixed(tmp_path / "set", {f"b{i}.tif": draw_bands(i, 17, "uint8")[0] for i in range(3)})
    with raises(DataError, key="data.channels", named=["17", "16"]):
        agree(folder, None)
    error = refused_once("fit", folder, "--channels", 17, "--out", tmp_path / "run")
    check(error, SettingError, key="data.channels")


def test_depths_must_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found from the headers; the rarer depth is what --skip-bad leaves out."""
    images = {f"a{i}.tif": draw_bands(i, 1, "uint8")[0] for i in range(10)}
    folder = make_mixed(tmp_path / "set", {**images, "deep.tif": draw_bands(11, 1, "uint16")[0]})
    monkeypatch.setattr(
        "ubend.dataset.dataset.open_store", lambda *_a: pytest.fail("decoded before the depths were compared")
    )
    named = ["10", "(a0, a1, a2, ...)", "1", "(deep)"]
    with raises(PairError, key="dtype", named=named) as caught:
        agree(folder, None)
    assert list(caught.value.bad) == ["deep"]
    check(refused("fit", folder, "--out", tmp_path / "run"), PairError, key="dtype", named=named)
    monkeypatch.undo()
    run("fit", folder, "--skip-bad", "--out", tmp_path / "run", *TINY)
    assert "deep" in (tmp_path / "run/skipped.csv").read_text()


def test_what_is_done_to_images_is_said(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    clear, inks = color(0).convert("RGBA"), color(1).convert("CMYK")
    folder = make_mixed(tmp_path / "set", {"clear.png": clear, "inks.jpg": inks, "plain.png": color(2)})
    color(3).save(folder / "images/plain.png", exif=exif)
    channels, remarks = agree(folder, None)
    assert channels == 3
    assert remarks == [
        "alpha is dropped in 1 of 3 images; --channels 4 keeps it, if all have it",
        "CMYK is converted to RGB in 1 of 3 images",
        "1 of 3 images is rotated according to its EXIF orientation",
    ]
    assert f"note: {remarks[0]}" in run("data", folder, "--out", tmp_path / "out")


def test_alpha_is_a_channel_if_it_is_counted(tmp_path: Path) -> None:
    images = {}
    for i in range(10):
        image, mask = draw_disc(i)
        images[f"a{i}.png"] = Image.fromarray(np.dstack([image, mask]))
    folder = make_mixed(tmp_path / "set", images)
    assert agree(folder, 4) == (4, [])
    run("fit", folder, "--channels", 4, "--out", tmp_path / "run", *TINY)
    assert ubend.load(tmp_path / "run", device="cpu").bundle.model.channels == 4


def test_pages_told_to_be_channels(tmp_path: Path) -> None:
    """Arrays (C, H, W) saved without a word: refused with the flag that settles it, and then the whole job."""
    folder = make_bands(tmp_path / "set", 5, "uint16")
    for path in (folder / "images").iterdir():
        tifffile.imwrite(path, np.moveaxis(read_image(path), 2, 0))
    lines = refused("fit", folder, "--out", tmp_path / "run").problems
    assert all("--channels 5" in line for line in lines)
    assert len(lines) == 12
    run("data", folder, "--channels", 5, "--out", tmp_path / "understood")
    run("fit", tmp_path / "understood/data.toml", "--out", tmp_path / "run", *TINY)
    run("evaluate", tmp_path / "run")
    run("predict", tmp_path / "run", folder / "images", "--out", tmp_path / "masks")


def test_images_that_the_model_does_not_take(tmp_path: Path, good: Path) -> None:
    """all reported at once, and nothing written."""
    write_tiff(tmp_path / "bands.tif", draw_bands(0, 5, "uint8")[0])
    write_tiff(tmp_path / "deep.tif", draw_bands(0, 3, "uint16")[0])
    before = contents(tmp_path)
    told = refused("predict", good / "run", *map(str, sorted(tmp_path.iterdir())), "--out", tmp_path / "masks")
    assert [(line.path.name, line.key) for line in told.problems] == [
        ("bands.tif", "data.channels"),
        ("deep.tif", "dtype"),
    ]
    assert contents(tmp_path) == before
    predictor = ubend.load(good / "run", device="cpu")
    for given in (tmp_path / "bands.tif", np.zeros((8, 9, 5), np.uint8)):
        with raises(DataError, named=["5"]):
            predictor(given)


# Augmenting and drawing


@pytest.mark.parametrize("channels", [1, 2, 5, 16])
def test_each_of_several_channels_has_its_gain(channels: int) -> None:
    """One channel has none: its contrast is drawn already."""
    settings = make_settings(changes={"augment.orientation": "free", "augment.rotation_deg": 180.0}).augment
    shapes = np.full((64, 2), 32)
    gain = sample_augmentation(settings, 0, np.arange(64), shapes, (32, 32), channels).gain
    assert gain.shape == (64, channels)
    if channels == 1:
        assert (gain == 1).all()
    else:
        assert np.abs(np.log(gain)).max() <= settings.color + 1e-6
        assert len(np.unique(gain)) > 60 * channels


@pytest.mark.parametrize(("channels", "dtype"), [(2, "float32"), (5, "uint16"), (16, "uint8")])
def test_bands_are_shown_each_in_its_own_range(channels: int, dtype: Any) -> None:
    """The first three: a dim band beside a bright one is not black."""
    image, _mask = draw_bands(0, channels, dtype)
    shown = to_rgb(image)
    assert shown.dtype == np.uint8
    assert shown.shape == (*image.shape[:2], 3)
    if dtype == "uint8":
        np.testing.assert_array_equal(shown, image[:, :, :3])
        return
    for band in range(min(3, channels)):
        np.testing.assert_array_equal(shown[:, :, band], to_rgb(image[:, :, band])[:, :, 0])
        assert np.ptp(shown[:, :, band]) > 200
    assert channels > 2 or not shown[:, :, 2].any()
