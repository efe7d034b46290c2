"""Pixels that were not seen (nodata, inner masks, alpha 0, NaN): what they hold changes nothing anywhere."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

import ubend
from support.commands import succeed
from support.models import make_bundle, prob_of
from support.refusal import raises
from ubend.core.errors import DataError, PairError
from ubend.core.progress import Reporter
from ubend.core.settings import make_settings
from ubend.dataset.dataset import Dataset, open_dataset
from ubend.inference.predictor import Predictor
from ubend.instances.truth import keep_valid
from ubend.io import images as io_images
from ubend.io.images import load_image, read_image, read_into_array
from ubend.labels.class_table import IGNORED
from ubend.models.model_file import Bundle, save_bundle
from ubend.portable import images
from ubend.portable.decode import read_header
from ubend.portable.objects import Objects
from ubend.portable.postprocess import PostprocessOptions, postprocess
from ubend.portable.row_windows import TiffRowReader

Pixels = NDArray[Any]
NODATA = 42113
MIN = repr(float(np.finfo("f8").min))


def nodata(text: str) -> tuple[Any, ...]:
    return (NODATA, 2, len(text) + 1, text, True)


def region(seed: int, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """A random rectangle, and single pixels beside it."""
    rng = np.random.default_rng(seed)
    out = rng.random(size_hw) < 0.03
    top, left = (int(rng.integers(0, side // 2)) for side in size_hw)
    out[top : top + size_hw[0] // 3, left : left + size_hw[1] // 3] = True
    return out


def save_plain(path: Path, values: Pixels, invalid: Pixels, text: str, value: float, **options: Any) -> None:
    stored = np.where(invalid[:, :, None], np.array(value).astype(values.dtype), values)
    kind = "rgb" if values.shape[2] == 3 else "minisblack"
    planes = {"planarconfig": "contig"} if values.shape[2] > 1 else {}
    tags = [nodata(text)] if text else []
    stored = stored if values.shape[2] > 1 else stored[:, :, 0]
    tifffile.imwrite(path, stored, photometric=kind, extratags=tags, metadata=None, **planes, **options)


def save_alpha(path: Path, values: Pixels, invalid: Pixels) -> None:
    stored = np.concatenate([values, np.where(invalid, 0, 255)[:, :, None].astype(values.dtype)], axis=2)
    if path.suffix == ".png":
        Image.fromarray(stored).save(path)
    else:
        kind = "rgb" if values.shape[2] == 3 else "minisblack"
        tifffile.imwrite(path, stored, photometric=kind, extrasamples=["unassalpha"], planarconfig="contig")


def save_inner_mask(path: Path, values: Pixels, invalid: Pixels) -> None:
    with tifffile.TiffWriter(path) as file:
        file.write(values, photometric="rgb", rowsperstrip=5, metadata=None)
        file.write(~invalid, subfiletype=4, photometric="mask", metadata=None)


Save = Callable[[Path, Pixels, Pixels], None]
CARRIERS: dict[str, tuple[str, int, str, Save]] = {
    "nodata of 8 bit": ("uint8", 3, ".tif", lambda *a: save_plain(*a, "0", 0)),
    "nodata of 16 bit": ("uint16", 1, ".tif", lambda *a: save_plain(*a, "65535", 65535, rowsperstrip=4)),
    "nodata of int16": ("int16", 2, ".tif", lambda *a: save_plain(*a, "-32768", -32768)),
    "nodata of float": ("float32", 1, ".tif", lambda *a: save_plain(*a, "-9999", -9999, compression="zlib")),
    "least float64": ("float32", 1, ".tif", lambda *a: save_plain(*a, MIN, np.finfo("f4").min)),
    "in float64": ("float64", 1, ".tif", lambda *a: save_plain(*a, MIN, np.finfo("f8").min)),
    "infinity": ("float32", 1, ".tif", lambda *a: save_plain(*a, "inf", np.inf)),
    "NaN as nodata": ("float32", 3, ".tif", lambda *a: save_plain(*a, "nan", np.nan)),
    "NaN": ("float32", 1, ".tif", lambda *a: save_plain(*a, "", np.nan, rowsperstrip=7)),
    "inner mask": ("uint8", 3, ".tif", save_inner_mask),
    "alpha of a TIFF": ("uint8", 3, ".tif", save_alpha),
    "alpha of 16 bit": ("uint16", 1, ".tif", save_alpha),
    "alpha of a PNG": ("uint8", 3, ".png", save_alpha),
}


def draw(seed: int, dtype: str, channels: int, size_hw: tuple[int, int] = (37, 45)) -> Pixels:
    return np.random.default_rng(seed).integers(1, 250, (*size_hw, channels)).astype(dtype)


@pytest.mark.parametrize("name", CARRIERS)
def test_every_carrier(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read whole, by rows and into a place: the seen pixels as they are, the others their mean."""
    monkeypatch.setattr(images, "_BLOCK_PIXELS", 500)
    monkeypatch.setattr(io_images, "_ROWS_PIXELS", 500)
    dtype, channels, suffix, save = CARRIERS[name]
    values, invalid, path = draw(1, dtype, channels), region(1, (37, 45)), tmp_path / f"a{suffix}"
    save(path, values, invalid)
    image = load_image(path)
    assert image.invalid is not None
    np.testing.assert_array_equal(image.invalid, invalid)
    np.testing.assert_array_equal(image.pixels[~invalid], values[~invalid])
    mean = values[~invalid].mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(image.pixels[invalid], np.broadcast_to(mean, values[invalid].shape), atol=0.5, rtol=0)
    public = ubend.read_image(path)
    np.testing.assert_array_equal(public.valid, ~invalid)
    np.testing.assert_array_equal(public.pixels[~invalid], values[~invalid])
    place = np.empty_like(image.pixels)
    found = read_into_array(path, place)
    assert found is not None
    np.testing.assert_array_equal(found, invalid)
    np.testing.assert_array_equal(place, image.pixels)
    if suffix == ".tif":
        with TiffRowReader(path) as windows:
            rows = np.concatenate([windows.read(top, min(top + 8, 37)) for top in range(0, 37, 8)])
            np.testing.assert_array_equal(rows, image.pixels)
            some = windows.invalid(3, 29)
            assert some is not None
            np.testing.assert_array_equal(some, invalid[3:29])


def test_what_is_seen(tmp_path: Path) -> None:
    """0 in one channel may be a colour, -9999 in one is no measurement; alpha that is counted is data."""
    values = draw(2, "uint8", 3)
    values[4, 5, 1] = values[6, 7] = 0
    save_plain(tmp_path / "a.tif", values, np.zeros((37, 45), bool), "0", 0)
    assert np.argwhere(load_image(tmp_path / "a.tif").invalid).tolist() == [[6, 7]]
    values = draw(2, "float32", 3)
    values[4, 5, 1] = -9999
    save_plain(tmp_path / "b.tif", values, np.zeros((37, 45), bool), "-9999", 0)
    assert np.argwhere(load_image(tmp_path / "b.tif").invalid).tolist() == [[4, 5]]
    save_alpha(tmp_path / "c.png", draw(2, "uint8", 3), region(2, (37, 45)))
    assert load_image(tmp_path / "c.png", 4).invalid is None
    values[1, 2] = np.inf
    save_plain(tmp_path / "d.tif", values, np.zeros((37, 45), bool), "-9999", 0)
    with raises(DataError, path="d.tif", key="value", named=["3"]):
        load_image(tmp_path / "d.tif")


def save_set(root: Path, junk: float, seeds: range = range(12)) -> Path:
    """Float GeoTIFFs with the same border that was not seen, and discs to find; `junk` is what the border holds."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for seed in seeds:
        rng = np.random.default_rng(seed)
        rows, columns = np.mgrid[:40, :48]
        disc = (rows - rng.integers(8, 32)) ** 2 + (columns - rng.integers(20, 40)) ** 2 < 64
        values = (rng.random((40, 48, 1)) + disc[:, :, None]).astype(np.float32)
        invalid = region(seed, (40, 48)) if seed % 3 else np.zeros((40, 48), bool)
        invalid[:, :14] = seed != 0
        save_plain(root / "images" / f"{seed:02}.tif", values, invalid, str(junk), junk)
        Image.fromarray(255 * disc.astype(np.uint8)).save(root / "masks" / f"{seed:02}.png")
    return root


def understand(root: Path, cache: Path) -> Dataset:
    settings = make_settings("modern", changes={"data.folder": str(root), "data.size": 32})
    return open_dataset(settings, "cpu", cache, Reporter())


def test_a_data_set_does_not_know_what_they_hold(tmp_path: Path) -> None:
    """Stored images, masks, thumbnails, splits and statistics; the latter are those of the pixels that were seen."""
    one, other = (understand(save_set(tmp_path / str(junk), junk), tmp_path / "cache") for junk in (-9999.0, 1e20))
    for name in ("images", "masks", "thumbnails", "class_pixels", "has_invalid"):
        np.testing.assert_array_equal(getattr(one.store, name), getattr(other.store, name))
    assert one.splits == other.splits
    assert (one.mean_std(), one.remarks) == (other.mean_std(), other.remarks)
    low, high = one.value_range()
    assert low >= 0
    assert high <= 2
    seen = []
    for number in one.indices("train").tolist():
        invalid = one.store.invalid(number)
        image, mask = one.store.image(number), one.store.mask(number)
        if invalid is not None:
            assert (mask[invalid] == IGNORED).all()
        seen.append(image.reshape(-1) if invalid is None else image[~invalid].reshape(-1))
    values = np.concatenate(seen).astype(np.float64)
    np.testing.assert_allclose(one.mean_std(), ([values.mean()], [values.std()]), rtol=1e-9)
    assert one.store.has_invalid.tolist() == [False, *[True] * 11]
    native = np.asarray(Image.open(tmp_path / "1e+20" / "masks" / "01.png"))
    hidden = load_image(tmp_path / "1e+20" / "images" / "01.tif").invalid
    assert hidden is not None
    assert one.store.class_pixels[1, [0, 1]].tolist() == [int((native[~hidden] == v).sum()) for v in (0, 255)]


def test_an_image_of_which_nothing_was_seen(tmp_path: Path) -> None:
    root = save_set(tmp_path / "set", -9999)
    save_plain(root / "images" / "05.tif", np.zeros((40, 48, 1), np.float32), np.ones((40, 48), bool), "-9999", -9999)
    with raises(PairError, path=root / "images" / "05.tif", key="unseen"):
        understand(root, tmp_path / "cache")


def test_a_fit_scores_as_evaluate_does(tmp_path: Path) -> None:
    """Also at native size, where the store does not hold what was seen."""
    root = save_set(tmp_path / "set", -9999)
    run = tmp_path / "run"
    succeed("fit", root, "--out", run, "--epochs", 1, "--size", 24, "--width", 4, "--batch", 4)
    told = json.loads((run / "scores.json").read_text())
    again = ubend.evaluate(run, device="cpu").to_dict()
    assert told["native"] == again["native"]
    assert told["model_size"] == again["model_size"]
    with (run / "data.csv").open() as file:
        scored = [row for row in csv.DictReader(file) if row["split"] == told["part"]]
    predictor = ubend.load(run, device="cpu")
    total = right = 0
    for row in scored:
        truth, mask = np.asarray(Image.open(row["mask"])) == 255, predictor(row["image"]).mask
        seen = mask != IGNORED
        np.testing.assert_array_equal(seen, ubend.read_image(row["image"]).valid)
        total, right = total + int(seen.sum()), right + int((truth == mask)[seen].sum())
    assert told["native"]["pixel_accuracy"] == pytest.approx(right / total)


def make_tiler(channels: int = 1, dtype: str = "float32") -> Bundle:
    """A model of tiles at native scale, whose network reaches less than 32 px far."""
    bundle = make_bundle(channels=channels, classes=2)
    bundle.window_px, bundle.scale, bundle.dtype = 32, (1.0, 1.0), dtype
    return bundle


@pytest.mark.parametrize("seed", range(3))
def test_a_prediction_is_changed_within_the_networks_reach_alone(seed: int, tmp_path: Path) -> None:
    values = draw(seed, "float32", 1, (96, 160))
    invalid = np.zeros((96, 160), bool)
    invalid[:, : 20 + 10 * seed] = True
    for name, junk in (("a", -9999.0), ("b", 1e30)):
        save_plain(tmp_path / f"{name}.tif", values, invalid, str(junk), junk)
    predictor = Predictor(make_tiler(), "cpu", tiles=64)
    one, other, whole = (prob_of(predictor, image) for image in (tmp_path / "a.tif", tmp_path / "b.tif", values))
    np.testing.assert_array_equal(one, other)
    seen = predictor(tmp_path / "a.tif")
    np.testing.assert_array_equal(seen.mask == IGNORED, invalid)
    np.testing.assert_array_equal(seen.valid, ~invalid)
    assert not one[:, invalid].any()
    first = 20 + 10 * seed
    np.testing.assert_allclose(one[:, :, first + 80 :], whole[:, :, first + 80 :], atol=1e-5)
    masked = prob_of(predictor, np.ma.masked_array(values[:, :, 0], invalid))
    np.testing.assert_array_equal(masked, one)
    assert sum(seen.shares().values()) == pytest.approx(1)


def test_holes_and_small_parts_beside_them() -> None:
    prob = np.zeros((2, 12, 12), np.float32)
    prob[1, 2:10, 2:10] = 1
    prob[1, 4:6, 4:6] = 0  # a hole
    prob[1, 8:9, 8:9] = 0  # a hole at the border of what was not seen
    prob[1, 0, 5] = 1  # a small part beside it, and beside background
    prob[0] = 1 - prob[1]
    invalid = np.zeros((12, 12), bool)
    invalid[9:] = invalid[0, :5] = invalid[0, 6:] = invalid[1, 6:] = True
    mask = postprocess(prob, PostprocessOptions(min_area={1: 5}, fill_holes={1: np.inf}), invalid)
    np.testing.assert_array_equal(mask == IGNORED, invalid)
    assert mask[4, 4] == 1
    assert mask[8, 8] == 0
    assert mask[0, 5] == 0
    invalid[1] = True  # nothing else lies around the part now
    assert postprocess(prob, PostprocessOptions(min_area={1: 5}), invalid)[0, 5] == 1


def test_objects_cut_outs_and_shares(tmp_path: Path) -> None:
    """In a PNG with alpha."""
    save_bundle(tmp_path / "model.safetensors", make_tiler(3, "uint8"))
    values, invalid = draw(3, "uint8", 3, (64, 80)), region(3, (64, 80))
    invalid[:, 60:] = True
    save_alpha(tmp_path / "a.png", values, invalid)
    model, image = tmp_path / "model.safetensors", tmp_path / "a.png"
    succeed("predict", model, image, "--out", tmp_path / "masks", "--prob", "npz", "--fill-holes", "all")
    mask = np.asarray(Image.open(tmp_path / "masks" / "a.png"))
    np.testing.assert_array_equal(mask == IGNORED, invalid)
    with (tmp_path / "masks" / "shares.csv").open() as file:
        shares = [float(value) for value in list(csv.reader(file))[1][1:]]
    assert shares == pytest.approx([(mask[~invalid] == index).mean() for index in (0, 1)], abs=1e-6)
    pytest.importorskip("skimage")
    succeed("objects", model, image, "--out", tmp_path / "objects", "--method", "parts")
    ids = tifffile.imread(tmp_path / "objects" / "a_ids.tif")
    assert ids.any()
    assert not ids[invalid].any()
    for soft in ([], ["--soft", 6]):
        out = tmp_path / f"cut{len(soft)}"
        succeed("cutout", model, image, "--out", out, *soft)
        assert not np.asarray(Image.open(out / "a.png"))[invalid].any()


def test_true_objects_that_were_not_seen() -> None:
    ids = np.array([[1, 1, 2, 3], [0, 1, 2, 3]], np.uint32)
    seen = np.array([[True, True, False, True], [True, False, False, True]])
    left = keep_valid(Objects(ids, np.array([1, 2, 1], np.uint8)), seen)
    assert left.ids.tolist() == [[1, 1, 0, 2], [0, 0, 0, 2]]
    assert left.classes.tolist() == [1, 1]


def test_a_mask_in_a_file_of_its_own(tmp_path: Path) -> None:
    """GDAL's side file; without a look at it, what was not seen would be taken for image."""
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 9), np.uint8))
    read_image(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "a.tif.msk", np.zeros((8, 9), np.uint8))
    for read in (read_image, read_header):
        with raises(DataError, path="a.tif", key="mask", named=["a.tif.msk"]):
            read(tmp_path / "a.tif")
