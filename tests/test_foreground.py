"""Crops that are placed on objects: they show them, at the share asked for, whoever asks and when."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ubend.core.settings import AugmentSettings
from ubend.dataset.augment import DeviceAugmentParams, sample_augmentation, warp
from ubend.dataset.foreground import Foreground
from ubend.labels.class_table import IGNORED

H, W, WINDOW = 160, 224, 48


def speck(seed: int) -> np.ndarray:
    """(H, W) class index: ground 0, much of class 1, five pixels of class 2, some ignored."""
    generator = np.random.default_rng(seed)
    mask = np.zeros((H, W), np.uint8)
    mask[generator.random((H, W)) < 0.3] = 1
    mask[:, -7:] = IGNORED
    y, x = int(generator.integers(1, H - 1)), int(generator.integers(1, W - 8))
    mask[[y, y - 1, y + 1, y, y], [x, x, x, x - 1, x + 1]] = 2
    return mask


MASKS = [speck(n) for n in range(6)] + [np.zeros((H, W), np.uint8)]


def foreground(share: float, seed: int = 3, classes: tuple[int, ...] = (1, 2)) -> Foreground:
    return Foreground(lambda item: MASKS[item], len(MASKS), classes, share, seed)


def test_pixel_belongs_to_a_class_drawn_fairly() -> None:
    """In images with both, the class of five pixels is drawn as often as that of ten thousand."""
    items, positions = np.arange(600) % 6, np.arange(600)
    drawn = foreground(1.0).sample(items, positions)
    found = [MASKS[item][int(y), int(x)] for item, (y, x) in zip(items, drawn[:, :2], strict=True)]
    assert set(found) == {1, 2}
    assert abs(np.mean(np.array(found) == 2) - 0.5) < 4 * 0.5 / 600**0.5
    assert (np.abs(drawn[:, 2:]) <= 1).all()
    pixels = {tuple(row) for row, item in zip(drawn[:, :2].tolist(), items, strict=True) if item == 0}
    assert len(pixels) > 30, "not always the same few pixels"


@pytest.mark.parametrize("share", [0.0, 1 / 3, 0.8, 1.0])
def test_share(share: float) -> None:
    count = 3000
    drawn = foreground(share).sample(np.zeros(count, np.int64), np.arange(count))
    met = np.mean(~np.isnan(drawn[:, 0]))
    assert abs(met - share) <= 4 * (share * (1 - share) / count) ** 0.5


def test_image_without_foreground() -> None:
    assert np.isnan(foreground(1.0).sample(np.array([6, 6]), np.arange(2))).all()


@settings(max_examples=40)
@given(seed=st.integers(0, 2**40), start=st.integers(0, 10**9), cut=st.integers(1, 19))
def test_draws_belong_to_positions(seed: int, start: int, cut: int) -> None:
    """The same for any batch size, in any order, and after a resume, when nothing is remembered."""
    positions = np.arange(start, start + 20)
    items = positions % 7
    whole = foreground(0.6, seed).sample(items, positions)
    other = foreground(0.6, seed)
    late = other.sample(items[cut:], positions[cut:])
    np.testing.assert_array_equal(np.concatenate([other.sample(items[:cut], positions[:cut]), late]), whole)
    for k in (0, 19):
        np.testing.assert_array_equal(
            foreground(0.6, seed).sample(items[k : k + 1], positions[k : k + 1]), whole[k : k + 1]
        )


def test_candidates_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ubend.dataset.foreground._MAX_BYTES", 8 * 7 * 2 * 11)
    drawer = foreground(1.0)
    drawer.sample(np.arange(7), np.arange(7))
    assert [len(pixels) for pixels in drawer._candidates(0)] == [11, 5]
    assert drawer.sample(np.zeros(500, np.int64), np.arange(500)).shape == (500, 4)


@pytest.mark.parametrize("orientation", ["free", "upright"])
@pytest.mark.parametrize("elastic", [0.0, 0.03])
def test_windows_show_the_class(orientation: str, elastic: float) -> None:
    """Every forced crop shows a pixel of the class, wherever in the image it lies, through rotation,
    zoom and bending; and crops are mostly image, not what lies beyond."""
    rare = foreground(1.0, classes=(2,))
    given_settings = AugmentSettings(
        kind="warp", orientation=orientation, rotation_deg=180 if orientation == "free" else 15, elastic=elastic,
        elastic_share=1.0,
    )  # fmt: skip
    positions = np.arange(300)
    items = positions % 6
    shapes = np.tile(np.array([[H, W]]), (300, 1))
    shown = rare.sample(items, positions)
    draws = sample_augmentation(given_settings, 3, positions, shapes, (WINDOW, WINDOW), 3, shown)
    target = warped(items, shapes, draws)
    # a disc about the speck, so that it is not lost between nearest pixels when the crop zooms out
    seen = (target == 2).any(axis=(1, 2))
    assert seen.all(), positions[~seen]
    anywhere = sample_augmentation(given_settings, 3, positions, shapes, (WINDOW, WINDOW), 3)
    assert (warped(items, shapes, anywhere) == 2).any(axis=(1, 2)).mean() < 0.4
    assert (target != IGNORED).mean() > 0.75
    middle = np.abs(np.argwhere(target == 2)[:, 1:] - (WINDOW - 1) / 2) / (WINDOW / 2)
    assert 0.15 < middle.mean() < 0.5, "spread over the crop, not always at its middle"


def warped(items: np.ndarray, shapes: np.ndarray, draws: object) -> np.ndarray:
    """(n, WINDOW, WINDOW) class index or IGNORED; specks are grown to 5 x 5 pixels."""
    masks = []
    for item in items:
        mask = MASKS[item].copy()
        y, x = np.argwhere(mask == 2).mean(axis=0).astype(int)
        mask[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = 2
        masks.append(mask)
    packed = DeviceAugmentParams.unpack(torch.from_numpy(draws.pack()), 3)  # type: ignore[attr-defined]
    mask = torch.from_numpy(np.stack(masks))
    image = torch.zeros(len(items), 3, H, W)
    return warp(image, mask, torch.from_numpy(shapes.astype(np.float32)), packed, (WINDOW, WINDOW), True)[1].numpy()


def test_other_draws_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the crop lies changes, and only in the crops that are forced."""
    given_settings = AugmentSettings(kind="warp", orientation="free", rotation_deg=180)
    positions, shapes = np.arange(50), np.tile(np.array([[H, W]]), (50, 1))
    shown = foreground(0.5).sample(positions % 7, positions)
    plain = sample_augmentation(given_settings, 3, positions, shapes, (WINDOW, WINDOW), 3)
    laid = sample_augmentation(given_settings, 3, positions, shapes, (WINDOW, WINDOW), 3, shown)
    free = np.isnan(shown[:, 0])
    assert 0 < free.sum() < 50
    np.testing.assert_array_equal(laid.offset_yx[free], plain.offset_yx[free])
    assert (laid.offset_yx[~free] != plain.offset_yx[~free]).any(axis=1).all()
    np.testing.assert_array_equal(laid.affine, plain.affine)
    np.testing.assert_array_equal(laid.elastic, plain.elastic)
