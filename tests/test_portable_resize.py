"""Resizing without torch gives torch's values."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ubend.io.images import resize_array, resize_image
from ubend.portable.resize import resize_logits, resize_pixels

RANDOM = np.random.default_rng(5)
SIDES = [1, 2, 3, 7, 16, 64, 200]


def draw_size(largest: int) -> tuple[int, int]:
    height, width = RANDOM.integers(1, largest, 2).tolist()
    return height, width


def draw_image(dtype: str, size_hw: tuple[int, int]) -> NDArray[np.generic]:
    channels = int(RANDOM.integers(1, 7))
    if dtype == "float32":
        return RANDOM.normal(size=(*size_hw, channels)).astype(np.float32)
    return RANDOM.integers(0, np.iinfo(dtype).max, (*size_hw, channels), dtype, endpoint=True)


@pytest.mark.parametrize("largest", [12, 80, 400])
def test_uint8(largest: int) -> None:
    """Exactly, at any size: shrunk, enlarged, or both."""
    for _turn in range(150 if largest < 400 else 30):
        image, size_hw = draw_image("uint8", draw_size(largest)), draw_size(largest)
        np.testing.assert_array_equal(resize_pixels(image, size_hw), resize_array(image, size_hw))


def test_extreme_uint8() -> None:
    """Black and white, so that the sums are the largest; sides of 1."""
    for native in SIDES:
        image = (RANDOM.random((native, 40, 3)) < 0.5).astype(np.uint8) * 255
        for side in SIDES:
            for size_hw in ((side, 40), (side, 1), (1, side)):
                np.testing.assert_array_equal(resize_pixels(image, size_hw), resize_array(image, size_hw))


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_other_dtypes(dtype: str) -> None:
    """Exactly where torch uses AVX2; elsewhere its last bit may differ, and with it the rounding of 16 bits."""
    exact = torch.backends.cpu.get_cpu_capability() == "AVX2"
    for _turn in range(120):
        image, size_hw = draw_image(dtype, draw_size(150)), draw_size(150)
        made, wanted = resize_pixels(image, size_hw), resize_array(image, size_hw)
        assert made.dtype == wanted.dtype
        if exact:
            np.testing.assert_array_equal(made, wanted)
        else:
            np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-5 if dtype == "float32" else 1)


def test_logits_and_their_classes() -> None:
    """Also in the form in which a network gives them: cut from a padded array."""
    exact = torch.backends.cpu.get_cpu_capability() == "AVX2"
    for _turn in range(60):
        (height, width), size_hw = draw_size(90), draw_size(200)
        padded = RANDOM.normal(size=(4, height + 5, width + 3)).astype(np.float32)
        logits = padded[:, :height, :width]
        made = resize_logits(logits, size_hw)
        wanted = resize_image(torch.from_numpy(padded)[None, :, :height, :width], size_hw)[0].numpy()
        np.testing.assert_allclose(made, wanted, rtol=0, atol=2e-6)
        if exact:
            np.testing.assert_array_equal(made, wanted)
        close = np.sort(wanted, axis=0)
        clear = close[-1] - close[-2] > 1e-5
        np.testing.assert_array_equal(made.argmax(axis=0)[clear], wanted.argmax(axis=0)[clear])


def test_the_same_size_is_the_same_image() -> None:
    image = draw_image("uint8", (5, 6))
    assert resize_pixels(image, (5, 6)) is image
