"""GeoTIFFs as GDAL writes and reads them: place, transform, and pixels without data survive, by rows and whole."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import ubend
from support.commands import predict
from support.models import make_bundle
from support.refusal import check, refused_once
from ubend.core.errors import DataError, FilesError
from ubend.io.images import read_image
from ubend.models.model_file import save_bundle
from ubend.portable import mask_job as job
from ubend.portable.pixel_size import PixelSize

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore:Use `@`:PendingDeprecationWarning")  # rasterio's use of affine

SHAPE = (300, 260)


def save_tiler(path: Path, channels: int, dtype: str) -> Path:
    """A model of crops at native scale."""
    bundle = make_bundle(channels=channels, classes=2)
    bundle.window_px, bundle.scale, bundle.dtype = 32, (1.0, 1.0), dtype
    save_bundle(path, bundle)
    return path


def write_geo(path: Path, bands: int, dtype: str, **options: Any) -> np.ndarray:
    """(bands, H, W) drawn pixels; a corner has no data."""
    values = np.random.default_rng(1).integers(1, 255, (bands, *SHAPE)).astype(dtype)
    values[:, :70, :90] = 0
    values[0, 200, 200] = 0  # of one band alone: it was seen
    profile = {"driver": "GTiff", "height": SHAPE[0], "width": SHAPE[1], "count": bands, "dtype": dtype, "nodata": 0}
    place = {
        "crs": rasterio.crs.CRS.from_epsg(32648),
        "transform": rasterio.transform.from_origin(584000.0, 2330000.0, 0.5, 0.25),
    }
    with rasterio.open(path, "w", **{**profile, **place, **options}) as file:
        file.write(values)
    return values


@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize(
    ("bands", "dtype", "options"),
    [
        (3, "uint8", {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}),
        (3, "uint8", {"compress": "lzw", "predictor": 2, "photometric": "RGB"}),
        (8, "uint16", {"tiled": True, "blockxsize": 128, "blockysize": 64, "BIGTIFF": "YES", "interleave": "band"}),
        (5, "uint16", {"BIGTIFF": "YES", "interleave": "pixel", "compress": "zstd"}),
        (6, "float32", {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate", "predictor": 3}),
        (1, "uint8", {"compress": "packbits"}),
    ],
)
def test_place_survives(
    bands: int, dtype: str, options: dict[str, Any], by_rows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_LARGE_PIXELS", 5000 if by_rows else 10**9)
    model = save_tiler(tmp_path / "model.safetensors", bands, dtype)
    values = write_geo(tmp_path / "field.tif", bands, dtype, **options)
    predict(model, tmp_path / "field.tif", "--out", tmp_path / "out", "--tiles", 64, "--prob", "uint16")
    invalid = (values == 0).all(axis=0)
    predictor = ubend.load(model, device="cpu", tiles=64)
    wanted = predictor(read_image(tmp_path / "field.tif", bands), probabilities=True)
    assert wanted.probabilities is not None
    with (
        rasterio.open(tmp_path / "field.tif") as source,
        rasterio.open(tmp_path / "out" / "field.tif") as mask,
        rasterio.open(tmp_path / "out" / "field_prob.tif") as prob,
    ):
        for made in (mask, prob):
            assert made.crs == source.crs
            assert made.transform == source.transform
            assert made.bounds == source.bounds
        assert mask.nodata == 255
        np.testing.assert_array_equal(mask.read(1), np.where(invalid, 255, wanted.mask))
        np.testing.assert_array_equal(mask.read_masks(1) == 0, invalid)
        assert prob.descriptions == wanted.labels.names
        said = json.loads(prob.tags()["TIFFTAG_IMAGEDESCRIPTION"])
        assert said == {"classes": list(wanted.labels.names), "value": "probability = value / 65535"}
        for band, scale in enumerate(prob.scales):
            found = prob.read(band + 1) * scale
            np.testing.assert_allclose(found, np.where(invalid, 0, wanted.probabilities[band]), atol=2e-5)
    shares = (tmp_path / "out" / "shares.csv").read_text().splitlines()[1].split(",")[1:]
    assert [float(share) for share in shares] == pytest.approx(
        [float((wanted.mask[~invalid] == index).mean()) for index in (0, 1)], abs=1e-6
    )


def test_nan_is_declared_as_nodata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float files without a nodata value, by rows as in memory; the files are equal."""
    model = save_tiler(tmp_path / "model.safetensors", 1, "float32")
    values = write_geo(tmp_path / "field.tif", 1, "float32", nodata=None, tiled=True, blockxsize=64, blockysize=64)
    with rasterio.open(tmp_path / "field.tif", "r+") as file:
        file.write(np.where(values == 0, np.nan, values))
    for folder, limit in (("memory", 10**9), ("rows", 5000)):
        monkeypatch.setattr(job, "_LARGE_PIXELS", limit)
        predict(model, tmp_path / "field.tif", "--out", tmp_path / folder, "--tiles", 64)
        with rasterio.open(tmp_path / folder / "field.tif") as mask:
            assert mask.nodata == 255
            np.testing.assert_array_equal(mask.read_masks(1) == 0, values[0] == 0)
    assert not (tmp_path / "rows" / "field_overlay.png").exists()


@pytest.mark.parametrize("by_rows", [True, False])
def test_overviews_and_masks_inside(by_rows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller copies, and a mask of what was seen, lie in the same file; the image is the image."""
    monkeypatch.setattr(job, "_LARGE_PIXELS", 5000 if by_rows else 10**9)
    model = save_tiler(tmp_path / "model.safetensors", 3, "uint8")
    path = tmp_path / "field.tif"
    tiled = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate", "nodata": None}
    values = write_geo(path, 3, "uint8", **tiled)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask((values != 0).any(axis=0))
        file.build_overviews([2, 4], rasterio.enums.Resampling.average)
    predict(model, path, "--out", tmp_path / "out", "--tiles", 64)
    wanted = ubend.load(model, device="cpu", tiles=64)(read_image(path))
    with rasterio.open(path) as source, rasterio.open(tmp_path / "out" / "field.tif") as mask:
        assert (mask.crs, mask.transform) == (source.crs, source.transform)
        seen = source.read_masks(1) > 0
        assert 0 < seen.mean() < 1
        np.testing.assert_array_equal(mask.read_masks(1) > 0, seen)
        np.testing.assert_array_equal(mask.read(1), np.where(seen, wanted.mask, 255))


@pytest.mark.parametrize("inner_mask", [False, True])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_valid_pixels(inner_mask: bool, interleave: str, tmp_path: Path) -> None:
    """As GDAL's mask of the data set, and the pixel size of its transform."""
    path = tmp_path / "field.tif"
    nodata = {"nodata": None} if inner_mask else {}
    values = write_geo(path, 3, "uint16", interleave=interleave, **nodata)
    if inner_mask:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
            file.write_mask((values != 0).any(axis=0))
    image = ubend.read_image(path)
    with rasterio.open(path) as source:
        np.testing.assert_array_equal(image.valid, source.dataset_mask() > 0)
    assert 0 < image.valid.mean() < 1
    np.testing.assert_array_equal(image.pixels, np.moveaxis(values, 0, 2))
    assert image.pixel_size == PixelSize(0.25, 0.5, "m")


def test_a_damaged_mask_inside(tmp_path: Path) -> None:
    """It is that file's error; the others are done all the same."""
    model = save_tiler(tmp_path / "model.safetensors", 3, "uint8")
    values = write_geo(tmp_path / "field.tif", 3, "uint8", nodata=None)
    write_geo(tmp_path / "other.tif", 3, "uint8")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(tmp_path / "field.tif", "r+") as file:
        file.write_mask((values != 0).any(axis=0))
    with tifffile.TiffFile(tmp_path / "field.tif") as file:
        place, size = file.pages[1].dataoffsets[0], file.pages[1].databytecounts[0]
    data = bytearray((tmp_path / "field.tif").read_bytes())
    data[place : place + size] = b"\x55" * size
    (tmp_path / "field.tif").write_bytes(data)
    out = tmp_path / "out"
    error = refused_once("predict", model, tmp_path / "field.tif", tmp_path / "other.tif", "--out", out)
    check(error, FilesError, path=tmp_path / "field.tif")
    assert (out / "other.tif").exists()
    assert not (out / "field.tif").exists()
    assert "field" not in (out / "shares.csv").read_text()


def test_resume_counts_what_was_seen(tmp_path: Path) -> None:
    model = save_tiler(tmp_path / "model.safetensors", 3, "uint8")
    write_geo(tmp_path / "field.tif", 3, "uint8")
    predict(model, tmp_path / "field.tif", "--out", tmp_path / "out")
    before = (tmp_path / "out" / "shares.csv").read_text()
    (tmp_path / "out" / "shares.csv").unlink()
    predict(model, tmp_path / "field.tif", "--out", tmp_path / "out", "--resume")
    assert (tmp_path / "out" / "shares.csv").read_text() == before


def test_too_few_bands(tmp_path: Path) -> None:
    model = save_tiler(tmp_path / "model.safetensors", 8, "uint16")
    write_geo(tmp_path / "field.tif", 5, "uint16")
    error = refused_once("predict", model, tmp_path / "field.tif", "--out", tmp_path / "out")
    check(error, DataError, path=tmp_path / "field.tif", key="data.channels", named=["5", "8"])
