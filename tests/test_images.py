"""Reading, writing and resizing of pictures and masks, and what is said of damaged files."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ubend.data.images import (
    model_size,
    read_image,
    read_shape,
    resize_array,
    resize_mask,
    write_mask,
)
from ubend.data.labels import IGNORED, make_label_map
from ubend.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (21, 34, 3)).astype(np.uint8)
GREY = RGB[:, :, 0].copy()
DEEP = GREY.astype(np.uint16) * 257


def test_modes_of_png(tmp_path: Path) -> None:
    """Each mode: its pixels, and the header tells the same shape."""
    alpha = RGB[:, :, 1]
    indexed = Image.fromarray(GREY // 64)
    indexed.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    palette = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    for name, picture, want in (
        ("bits", Image.fromarray(GREY > 127), 255 * (GREY > 127)[:, :, None]),
        ("grey", Image.fromarray(GREY), GREY[:, :, None]),
        ("palette", indexed, palette[GREY // 64]),
        ("grey-alpha", Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)]), GREY[:, :, None]),
        ("rgb", Image.fromarray(RGB), RGB),
        ("rgba", Image.fromarray(np.dstack([RGB, alpha])), RGB),
        ("deep", Image.fromarray(DEEP), DEEP[:, :, None]),
    ):
        path = tmp_path / f"{name}.png"
        picture.save(path)
        check(path, want, np.uint16 if name == "deep" else np.uint8)


def check(path: Path, want: NDArray[Any], dtype: Any) -> None:
    image = read_image(path)
    assert image.dtype == dtype
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, want, err_msg=path.name)
    assert read_shape(path) == image.shape
    assert read_image(path, 1).shape == (*image.shape[:2], 1)
    assert read_image(path, 3).shape == (*image.shape[:2], 3)
    assert read_image(path, 1).dtype == read_image(path, 3).dtype == dtype


DEEP_RGB = RGB.astype(np.uint16) * 257
TIFFS: dict[str, tuple[NDArray[Any], dict[str, Any], NDArray[Any]]] = {
    "grey8": (GREY, {}, GREY[..., None]),
    "rgb8": (RGB, {"photometric": "rgb"}, RGB),
    "rgba8": (np.dstack([RGB, GREY]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, RGB),
    "bits": (GREY > 127, {"photometric": "minisblack"}, 255 * (GREY > 127)[..., None]),
    "grey16": (DEEP, {}, DEEP[..., None]),
    "zipped16": (DEEP, {"compression": "zlib"}, DEEP[..., None]),
    "big-endian16": (DEEP, {"byteorder": ">"}, DEEP[..., None]),
    "grey-alpha16": (
        np.dstack([DEEP, DEEP // 2]),
        {"photometric": "minisblack", "planarconfig": "contig"},
        DEEP[..., None],
    ),
    "rgb16": (DEEP_RGB, {"photometric": "rgb"}, DEEP_RGB),
    "rgba16": (np.dstack([DEEP_RGB, DEEP]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, DEEP_RGB),
    "planes16": (DEEP_RGB.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}, DEEP_RGB),
    "float": (GREY / np.float32(7) - 3, {}, (GREY / np.float32(7) - 3)[..., None]),
    "double": (GREY / 8, {}, (GREY / 8)[..., None]),
    "signed": (GREY.astype(np.int16) - 100, {}, (GREY.astype(np.float32) - 100)[..., None]),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_kinds_of_tiff(tmp_path: Path, kind: str) -> None:
    stored, options, want = TIFFS[kind]
    path = tmp_path / f"{kind}.tif"
    tifffile.imwrite(path, stored, **options)
    dtype = np.uint8 if stored.dtype in (np.uint8, bool) else np.uint16 if stored.dtype == np.uint16 else np.float32
    check(path, want, dtype)


def test_tiff_with_many_channels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stained.tif"
    tifffile.imwrite(path, np.zeros((8, 9, 5), np.uint16), photometric="minisblack", planarconfig="contig")
    with pytest.raises(DataError, match=r"stained\.tif: .*1 or 3 channels"):
        read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "deep.png", "deep.tif"])
def test_orientation(tmp_path: Path, kind: str, orientation: int) -> None:
    """Picture and header agree on what is up; Pillow's own turning of a plain picture is the reference."""
    stored = DEEP if kind.startswith("deep") else RGB
    path = tmp_path / f"picture.{kind}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind == "deep.tif":
        tifffile.imwrite(path, stored, extratags=[(0x0112, 3, 1, orientation, True)])
    else:
        Image.fromarray(stored).save(path, exif=exif, **({"lossless": True} if kind == "webp" else {}))
    image = read_image(path)
    assert read_shape(path) == image.shape
    plain = Image.fromarray(stored)
    plain.getexif()[0x0112] = orientation
    want = np.asarray(ImageOps.exif_transpose(plain))
    want = want[:, :, None] if want.ndim == 2 else want
    assert image.shape == want.shape
    if kind == "jpg":
        assert np.corrcoef(image.reshape(-1), want.reshape(-1))[0, 1] > 0.5
    else:
        np.testing.assert_array_equal(image, want)


def test_png_header_is_read_without_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_self: Any) -> None:
        raise AssertionError("the pixels were decoded")

    for mode in ("L", "P", "RGB", "RGBA"):
        Image.fromarray(RGB).convert(mode).save(tmp_path / f"{mode}.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    for mode in ("L", "P", "RGB", "RGBA"):
        assert read_shape(tmp_path / f"{mode}.png") == (21, 34, 1 if mode == "L" else 3)


def test_grey_is_luma(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    luma = RGB @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read_image(tmp_path / "a.png", 1)[:, :, 0] - luma).max() <= 1
    tifffile.imwrite(tmp_path / "a.tif", RGB.astype(np.uint16) * 200, photometric="rgb")
    assert np.abs(read_image(tmp_path / "a.tif", 1)[:, :, 0] - 200 * luma).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif", "deep.tif", "zip.tif"])
@pytest.mark.parametrize("damage", ["empty", "text", "head", "half"])
@pytest.mark.parametrize("read", [read_image, read_shape])
def test_damaged_files(tmp_path: Path, suffix: str, damage: str, read: Any) -> None:
    path = tmp_path / f"pólyp.{suffix}"
    if "." in suffix:
        options = {"compression": "zlib"} if suffix == "zip.tif" else {}
        tifffile.imwrite(path, np.random.default_rng(1).integers(0, 60_000, (40, 50)).astype(np.uint16), **options)
    else:
        Image.fromarray(RGB).save(path)
    whole = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "text": b"<html>\nno\n" * 99, "head": whole[:16], "half": whole[: len(whole) // 2]}[damage]
    )
    if read is read_shape and damage == "half":
        return  # the header may be whole
    with pytest.raises(DataError) as caught:
        read(path)
    says = str(caught.value)
    assert says.startswith(f"{path}: ")
    assert "\n" not in says
    assert ("the file is empty" in says) == (damage == "empty")


def test_missing_file(tmp_path: Path) -> None:
    for read in (read_image, read_shape):
        for name in ("a.png", "a.tif"):
            with pytest.raises(DataError, match="no such file"):
                read(tmp_path / name)


def test_reading_in_threads_leaves_the_warning_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The filters belong to the process; here two readers overlap, and the first one in is the first out."""
    for name in ("first.png", "second.png"):
        Image.fromarray(GREY).save(tmp_path / name)
    before, opened = list(warnings.filters), Image.open
    entered = {name: threading.Event() for name in ("first.png", "second.png")}
    may_go = {name: threading.Event() for name in entered}

    def wait(file: Any, *arguments: Any, **options: Any) -> Any:
        entered[Path(file).name].set()
        may_go[Path(file).name].wait(20)
        return opened(file, *arguments, **options)

    monkeypatch.setattr(Image, "open", wait)
    with ThreadPoolExecutor(2) as pool:
        jobs = []
        for name in entered:
            jobs.append(pool.submit(read_image, tmp_path / name))
            assert entered[name].wait(20)
        for name, job in zip(may_go, jobs, strict=True):
            may_go[name].set()
            assert job.result(20).shape == (*GREY.shape, 1)
    assert list(warnings.filters) == before


# Masks


def test_written_mask(tmp_path: Path) -> None:
    labels = make_label_map([0, 255, 7])
    index = np.random.default_rng(0).choice([0, 1, 2, IGNORED], (13, 17)).astype(np.uint8)
    write_mask(tmp_path / "new" / "mask.png", index, labels)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "mask.png")), index)
    colors = np.full((256, 3), 128)
    colors[:3] = labels.colors
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "mask.png"), colors[index])


# Sizes

SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60))


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.sampled_from([1, 3]), st.integers(0, 2**32 - 1))
def test_resize_is_pillows_bilinear(old: tuple[int, int], new: tuple[int, int], channels: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*old, channels)).astype(np.uint8)
    out = resize_array(image, new)
    assert out.shape == (*new, channels)
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous
    for channel in range(channels):
        plane = Image.fromarray(np.ascontiguousarray(image[:, :, channel]))
        want = np.asarray(plane.resize(new[::-1], Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(out[:, :, channel] - want).max() <= 1


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES.filter(lambda hw: hw[1] > 1), st.integers(0, 2**32 - 1))
def test_resize_of_deep_pictures(old: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    """Not to a width of 1 px, where torch 2.15 repeats the first row (floats, CPU)."""
    values = np.random.default_rng(seed).integers(0, 65_536, (*old, 1))
    want = np.asarray(Image.fromarray(values[:, :, 0].astype(np.float32)).resize(new[::-1], Image.Resampling.BILINEAR))
    for dtype, off in ((np.uint16, 1), (np.float32, 0.5)):
        out = resize_array(values.astype(dtype), new)
        assert out.dtype == dtype
        assert np.abs(out[:, :, 0].astype(np.float64) - want).max() <= off


@settings(max_examples=100, deadline=None)
@given(SIZES.flatmap(lambda hw: hnp.arrays(np.uint8, hw)), SIZES)
def test_mask_resize_is_pillows_nearest(mask: NDArray[np.uint8], new: tuple[int, int]) -> None:
    out = resize_mask(mask, new)
    assert out.shape == new
    assert set(np.unique(out)) <= set(np.unique(mask))
    want = np.asarray(Image.fromarray(mask).resize(new[::-1], Image.Resampling.NEAREST)).reshape(new)
    # a centre that falls between two pixels is equally near to both
    tied = [(2 * np.arange(n) + 1) * old % (2 * n) == 0 for n, old in zip(new, mask.shape, strict=True)]
    clear = ~(tied[0][:, None] | tied[1][None, :])
    np.testing.assert_array_equal(out[clear], want[clear])


@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.integers(8, 1024))
def test_model_size(shape_hw: tuple[int, int], size_px: int) -> None:
    assert model_size(shape_hw, size_px, False) == (size_px, size_px)
    height, width = model_size(shape_hw, size_px, True)
    factor = size_px / (shape_hw[0] * shape_hw[1]) ** 0.5
    assert abs(height - max(1, shape_hw[0] * factor)) <= 0.5 + 1e-9
    assert abs(width - max(1, shape_hw[1] * factor)) <= 0.5 + 1e-9
    if max(shape_hw) <= 4 * min(shape_hw):
        sides = 0.5 * (height + width) + 0.25
        assert abs(height * width - size_px**2) <= sides
        assert abs(height / width / (shape_hw[0] / shape_hw[1]) - 1) <= 1.1 * (0.5 / height + 0.5 / width) + 0.02


def test_files_that_would_be_read_in_part_are_refused(tmp_path: Path) -> None:
    """A stack, many channels, a deep colour PNG, values that are no numbers: each says what is wrong."""
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((5, 32, 32), np.uint8), photometric="minisblack")
    tifffile.imwrite(tmp_path / "five.tif", np.zeros((32, 32, 5), np.uint16), planarconfig="contig")
    tifffile.imwrite(tmp_path / "nan.tif", np.full((8, 8), np.nan, np.float32))
    size = (8).to_bytes(4, "big")
    header = b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\rIHDR" + size + size + b"\x10\x02\x00\x00\x00"
    (tmp_path / "deep.png").write_bytes(header)
    for name, says in (
        ("stack.tif", "stack of 5"),
        ("five.tif", "channels"),
        ("nan.tif", "finite"),
        ("deep.png", "16 bits"),
    ):
        with pytest.raises(DataError, match=says) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
