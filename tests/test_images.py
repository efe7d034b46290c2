"""Images as arrays, written masks, and the one resize; how files are decoded is in test_decode.py."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from ubend.io.images import (
    model_size,
    read_image,
    resize_array,
    resize_image,
    resize_mask,
    write_mask,
)
from ubend.labels.class_table import IGNORED, make_label_map

RGB = np.random.default_rng(0).integers(0, 256, (21, 34, 3)).astype(np.uint8)
GREY = RGB[:, :, 0].copy()


def test_grey_is_luma(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    luma = RGB @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read_image(tmp_path / "a.png", 1)[:, :, 0] - luma).max() <= 1
    tifffile.imwrite(tmp_path / "a.tif", RGB.astype(np.uint16) * 200, photometric="rgb")
    assert np.abs(read_image(tmp_path / "a.tif", 1)[:, :, 0] - 200 * luma).max() <= 1


def test_written_mask(tmp_path: Path) -> None:
    labels = make_label_map([0, 255, 7])
    index = np.random.default_rng(0).choice([0, 1, 2, IGNORED], (13, 17)).astype(np.uint8)
    write_mask(tmp_path / "new" / "mask.png", index, labels.colors)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "mask.png")), index)
    colors = np.full((256, 3), 128)
    colors[:3] = labels.colors
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "mask.png"), colors[index])


# Sizes

SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60))


@settings(max_examples=60)
@given(SIZES, SIZES, st.sampled_from([1, 2, 3, 5, 16]), st.integers(0, 2**32 - 1))
@example((24, 24), (50, 15), 16, 24)
def test_resize_is_pillows_bilinear(old: tuple[int, int], new: tuple[int, int], channels: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*old, channels)).astype(np.uint8)
    out = resize_array(image, new)
    assert out.shape == (*new, channels)
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous
    for channel in range(channels):
        plane = Image.fromarray(np.ascontiguousarray(image[:, :, channel]))
        want = np.asarray(plane.resize(new[::-1], Image.Resampling.BILINEAR)).astype(int)
        apart = np.abs(out[:, :, channel] - want)
        assert apart.max() <= 2  # Pillow rounds between columns and rows, too
        assert (apart > 1).mean() < 0.01


@settings(max_examples=40)
@given(SIZES, SIZES, st.integers(0, 2**32 - 1))
def test_resize_of_deep_images(old: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 65_536, (*old, 1))
    want = np.asarray(Image.fromarray(values[:, :, 0].astype(np.float32)).resize(new[::-1], Image.Resampling.BILINEAR))
    for dtype, off in ((np.uint16, 1), (np.float32, 0.5)):
        out = resize_array(values.astype(dtype), new)
        assert out.dtype == dtype
        assert np.abs(out[:, :, 0].astype(np.float64) - want).max() <= off


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_resize_to_one_column(dtype: type, channels: int) -> None:
    """However the image lies in memory: each of three rows becomes its mean, in the shape of a triangle."""
    image = np.zeros((6, 2, channels), dtype)
    image[:] = 10 * np.arange(1, 7)[:, None, None]
    # a centre of the new rows lies between two of the old, which weigh 3/8 each, their neighbours 1/8 each
    want = np.array([(3 * 10 + 3 * 20 + 30) / 7, 35, (40 + 3 * 50 + 3 * 60) / 7])
    planes = torch.from_numpy(image.astype(np.float32) if dtype == np.uint16 else image).permute(2, 0, 1)[None]
    for given_planes in (planes, planes.contiguous(), planes.expand(2, -1, -1, -1)):
        out = resize_image(given_planes, (3, 1))
        assert out.dtype == planes.dtype
        np.testing.assert_allclose(out[0, :, :, 0].numpy(), np.tile(want, (channels, 1)), atol=0.51)
    np.testing.assert_allclose(resize_array(image, (3, 1))[:, 0, 0], want, atol=0.51)
    assert resize_array(image, (1, 1)).ravel().tolist() == [35] * channels


@pytest.mark.parametrize("shape", [(1, 9, 3), (9, 1, 3), (9, 9, 1)])
def test_resize_of_a_turned_image(shape: tuple[int, int, int]) -> None:
    """One row is called contiguous by numpy also when its stride is negative, which torch does not take."""
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    for turned in (image[::-1], image[:, ::-1], image[::-1, ::-1]):
        np.testing.assert_array_equal(resize_array(turned, (5, 4)), resize_array(turned.copy(), (5, 4)))


@settings(max_examples=100)
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
