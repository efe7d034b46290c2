"""The warp against scipy, the tutorial's copies against their anchors, and the colour changes one by one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from ubend.core.counter_rng import random_uniform
from ubend.core.settings import FROZEN_COPIES, AugmentSettings
from ubend.dataset.augment import (
    ELASTIC_POINTS,
    AugmentParams,
    DeviceAugmentParams,
    change_colors,
    identity_params,
    noise_field,
    sample_augmentation,
    sample_frozen,
    warp,
)
from ubend.labels.class_table import IGNORED

WARP = AugmentSettings(kind="warp", orientation="free", rotation_deg=180)
Floats = NDArray[np.float64]


def run_warp(
    image: NDArray[Any],
    mask: NDArray[np.uint8],
    draws: AugmentParams,
    canvas_hw: tuple[int, int],
    shapes_hw: NDArray[np.int64] | None = None,
    ignore_outside: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """`warp` with arrays; image (N, C, h, w)."""
    shapes = np.tile(image.shape[2:], (len(image), 1)) if shapes_hw is None else shapes_hw
    out, target = warp(
        torch.from_numpy(image),
        torch.from_numpy(mask),
        torch.from_numpy(shapes.astype(np.float32)),
        DeviceAugmentParams.unpack(torch.from_numpy(draws.pack()), image.shape[1]),
        canvas_hw,
        ignore_outside,
    )
    assert out.dtype == torch.float32
    assert target.dtype == torch.uint8
    return out.numpy(), target.numpy()


def source_yx(draws: AugmentParams, number: int, shape_hw: NDArray[np.int64], canvas_hw: tuple[int, int]) -> Floats:
    """(2, H, W) where each output pixel is taken from, in float64, from the draws' own words."""
    height, width = canvas_hw
    offset = np.stack(
        np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    )
    source = np.einsum("ij,jyx->iyx", draws.affine[number].astype(np.float64), offset)
    source += ((shape_hw - 1) / 2 + draws.offset_yx[number].astype(np.float64))[:, None, None]
    for axis in range(2):
        source[axis] += spread(draws.elastic[number, axis].astype(np.float64), canvas_hw)
    return source


def spread(coarse: Floats, canvas_hw: tuple[int, int]) -> Floats:
    """(G, G) -> (H, W), Keys' cubic convolution with a = -0.75 and repeated edges, one axis at a time."""

    def weights(length: int) -> Floats:
        out = np.zeros((length, ELASTIC_POINTS))
        for row, place in enumerate(np.linspace(0, ELASTIC_POINTS - 1, length) if length > 1 else [0.0]):
            for point in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
                t, a = abs(place - point), -0.75
                inner, outer = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
                out[row, min(max(point, 0), ELASTIC_POINTS - 1)] += inner if t <= 1 else outer if t < 2 else 0
        return out

    return weights(canvas_hw[0]) @ coarse @ weights(canvas_hw[1]).T


def random_draws(seed: int, count: int, side: float, channels: int = 3) -> AugmentParams:
    rng = np.random.default_rng(seed)
    return replace(
        identity_params(count, channels),
        affine=(np.eye(2) + rng.normal(0, 0.5, (count, 2, 2))).astype(np.float32),
        offset_yx=rng.normal(0, 0.3 * side, (count, 2)).astype(np.float32),
        elastic=rng.normal(0, 0.05 * side, (count, 2, ELASTIC_POINTS, ELASTIC_POINTS)).astype(np.float32),
    )


SIDES = st.integers(2, 40)


@settings(max_examples=40)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_warp_is_scipys(h: int, w: int, height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.random((3, 2, h, w)).astype(np.float32)
    mask = rng.integers(0, 5, (3, h, w)).astype(np.uint8)
    # images of three sizes at the top left of one canvas: what lies beside them must never be seen
    shapes = np.stack([rng.integers(1, [h + 1, w + 1]) for _ in range(3)])
    for number, (rows, columns) in enumerate(shapes):
        image[number, :, rows:], image[number, :, :, columns:] = 9, 9
        mask[number, rows:], mask[number, :, columns:] = 99, 99
    draws = random_draws(seed, 3, (h * w) ** 0.5, 2)
    out, target = run_warp(image, mask, draws, (height, width), shapes)
    hidden = run_warp(image, mask, draws, (height, width), shapes, ignore_outside=True)
    np.testing.assert_array_equal(hidden[0], out)
    for number, (rows, columns) in enumerate(shapes):
        source = source_yx(draws, number, shapes[number], (height, width))
        for channel in range(2):
            plane = image[number, channel, :rows, :columns].astype(np.float64)
            want = ndimage.map_coordinates(plane, source, order=1, mode="reflect")
            assert np.abs(out[number, channel] - want).max() < 2e-3
        want = ndimage.map_coordinates(mask[number, :rows, :columns], source, order=0, mode="reflect")
        clear = (np.abs(source % 1 - 0.5) > 2e-3).all(axis=0)
        np.testing.assert_array_equal(target[number][clear], want[clear])
        size = np.array([rows, columns])[:, None, None]
        outside = ((source < -0.5) | (source > size - 0.5)).any(axis=0)
        np.testing.assert_array_equal(hidden[1][number][clear], np.where(outside, IGNORED, want)[clear])


@pytest.mark.parametrize("size", [(1, 1), (7, 12), (128, 128), (353, 500)])
def test_identity(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.random((2, 3, *size)).astype(np.float32), rng.integers(0, 256, (2, *size)).astype(np.uint8)
    for ignore in (False, True):
        out, target = run_warp(image, mask, identity_params(2, 3), size, ignore_outside=ignore)
        assert np.abs(out - image).max() < 1e-4
        np.testing.assert_array_equal(target, mask)


@pytest.mark.parametrize(("y", "x"), [(-1, 1), (1, -1), (-1, -1)])
@pytest.mark.parametrize("size", [(6, 9), (33, 20)])
def test_flips(y: int, x: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (1, 1, *size)).astype(np.uint8), rng.integers(0, 9, (1, *size)).astype(np.uint8)
    draws = replace(identity_params(1, 1), affine=np.diag([y, x]).astype(np.float32)[None])
    out, target = run_warp(image, mask, draws, size)
    np.testing.assert_array_equal(target[0], mask[0, ::y, ::x])
    assert np.abs(out[0, 0] - image[0, 0, ::y, ::x]).max() < 1e-2


def blob(size: int = 64) -> NDArray[np.uint8]:
    y, x = np.mgrid[:size, :size]
    return (((y - 25) ** 2 / 2 + (x - 36) ** 2) < 150).astype(np.uint8)


@pytest.mark.parametrize("seed", range(4))
def test_image_and_mask_move_together(seed: int) -> None:
    mask = blob()
    draws = sample_augmentation(WARP, seed, np.arange(8), np.full((8, 2), 64), (64, 64), 1)
    masks = np.repeat(mask[None], 8, axis=0)
    out, target = run_warp(masks[:, None] * np.uint8(200), masks, draws, (64, 64))
    for image, moved in zip(out[:, 0] > 100, target.astype(bool), strict=True):
        border = ndimage.binary_dilation(moved, iterations=2) & ~ndimage.binary_erosion(
            moved, iterations=2, border_value=1
        )
        assert not ((image != moved) & ~border).any()
        assert (image != moved).sum() <= 0.3 * border.sum()
    assert len({moved.tobytes() for moved in target}) == 8


def test_ignored_pixels_stay_ignored() -> None:
    mask = np.full((1, 20, 20), IGNORED, np.uint8)
    _out, target = run_warp(np.zeros((1, 1, 20, 20), np.uint8), mask, random_draws(0, 1, 20, 1), (20, 20))
    assert (target == IGNORED).all()


# What is drawn


def test_draws_belong_to_positions() -> None:
    shapes = np.random.default_rng(0).integers(20, 90, (12, 2))
    positions = np.arange(40, 52)
    whole = sample_augmentation(WARP, 5, positions, shapes, (48, 48), 3).pack()
    for part in (np.array([3]), np.array([7, 1, 11])):
        np.testing.assert_array_equal(
            sample_augmentation(WARP, 5, positions[part], shapes[part], (48, 48), 3).pack(), whole[part]
        )
    assert not np.array_equal(sample_augmentation(WARP, 6, positions, shapes, (48, 48), 3).pack(), whole)
    back = DeviceAugmentParams.unpack(torch.from_numpy(whole), 3)
    drawn = sample_augmentation(WARP, 5, positions, shapes, (48, 48), 3)
    for name, value in vars(drawn).items():
        np.testing.assert_array_equal(getattr(back, name).numpy(), value)


def test_ranges_of_warps() -> None:
    n = 4000
    chosen = AugmentSettings(kind="warp", orientation="upright", rotation_deg=15, elastic_share=0.5)
    draws = sample_augmentation(chosen, 0, np.arange(n), np.full((n, 2), 100), (100, 100), 3)
    area = np.linalg.det(draws.affine)
    assert 0.1 < (area < 0).mean() - 0.35 < 0.2  # half are mirrored
    zoom = 0.5 * np.log(np.abs(area))
    assert -0.25 - 1e-5 <= zoom.min() < -0.24
    assert 0.24 < zoom.max() <= 0.25 + 1e-5
    assert (draws.affine[:, 0, 0] > 0).all()  # nothing stands on its head
    angle = np.rad2deg(np.arctan2(draws.affine[:, 1, 0], draws.affine[:, 0, 0]))
    assert 14.5 < np.abs(angle).max() <= 15.001
    assert 9.5 < np.abs(draws.offset_yx).max() <= 10.001
    moved = draws.elastic.reshape(n, -1).any(axis=1)
    assert abs(moved.mean() - 0.5) < 0.03
    assert abs(draws.elastic[moved].std() - 3.0) < 0.05
    free = sample_augmentation(WARP, 0, np.arange(n), np.full((n, 2), 100), (100, 100), 3)
    turn = np.arctan2(free.affine[:, 1, 0], free.affine[:, 0, 0])
    assert np.histogram(turn, 8, (-np.pi, np.pi))[0].min() > 0.8 * n / 8
    assert abs((np.linalg.det(free.affine) < 0).mean() - 0.5) < 0.03
    for share, mirrored in ((0.0, 0.0), (0.2, 2 * 0.2 * 0.8), (1.0, 0.0)):  # both flips are half a turn
        some = WARP.model_copy(update={"flip_share": share})
        flipped = sample_augmentation(some, 0, np.arange(n), np.full((n, 2), 100), (100, 100), 3)
        assert abs((np.linalg.det(flipped.affine) < 0).mean() - mirrored) <= 0.03 * mirrored
    for name, half in (("gamma", 0.25), ("contrast", 0.25), ("gain", 0.1), ("saturation", 0.3)):
        logs = np.log(getattr(draws, name))
        assert 0.98 * half < np.abs(logs).max() <= half + 1e-5
        assert abs(logs.mean()) < 0.05 * half
    assert abs((draws.blur_px > 0).mean() - 0.15) < 0.03
    assert abs((draws.noise > 0).mean() - 0.15) < 0.03
    assert draws.blur_px.max() <= 1
    assert draws.noise.max() <= 0.04


def test_windows_see_all_of_a_large_image() -> None:
    """A window smaller than the image: over many positions every pixel is seen, about equally often."""
    n, shape, window = 1500, (90, 70), (32, 32)
    still = AugmentSettings(
        kind="warp", orientation="upright", rotation_deg=0, scale=0, stretch=0, shift=0, elastic_share=0
    )
    draws = sample_augmentation(still, 0, np.arange(n), np.tile(shape, (n, 1)), window, 1)
    seen = np.zeros(shape, int)
    for number in range(n):
        source = source_yx(draws, number, np.array(shape), window)
        assert (source > -0.5).all()  # wholly inside the image
        assert (source < np.array(shape)[:, None, None] - 0.5).all()
        rows, columns = np.rint(source).astype(int)
        seen[rows, columns] += 1
    assert (seen[3:-3, 3:-3] > 0).all()
    assert seen.any(axis=0).all()
    assert seen.any(axis=1).all()
    inner = seen[32:-32, 32:-32]
    assert inner.min() > 0.5 * inner.max()


# The tutorial's copies

SHAPES = (np.array([[128, 128]]), np.array([[352, 300]]))  # stored, native


def frozen(copy: int, image: int = 3, seed: int = 1, shapes: Any = SHAPES, **changes: Any) -> AugmentParams:
    chosen = AugmentSettings(kind="frozen", **changes)
    return sample_frozen(chosen, seed, np.array([image]), np.array([copy]), shapes, 1)


def test_five_copies() -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.random((1, 1, 128, 128)).astype(np.float32), rng.integers(0, 2, (1, 128, 128)).astype(np.uint8)
    assert FROZEN_COPIES == 5
    outs = [run_warp(image, mask, frozen(copy), (128, 128)) for copy in range(5)]
    for copy, flip in ((0, (1, 1)), (2, (1, -1)), (3, (-1, 1)), (4, (-1, -1))):
        assert np.abs(outs[copy][0][0, 0] - image[0, 0, :: flip[0], :: flip[1]]).max() < 1e-3
        np.testing.assert_array_equal(outs[copy][1][0], mask[0, :: flip[0], :: flip[1]])
    assert np.abs(outs[1][0] - image).max() > 0.1
    elastic = run_warp(image, mask, frozen(4, both_flips="elastic"), (128, 128))
    assert np.abs(elastic[0] - outs[1][0][:, :, ::-1, ::-1]).max() < 1e-2  # elastic first, then both flips


def test_copies_are_frozen() -> None:
    """Image and copy alone decide: not the company, the step or the epoch."""
    one = frozen(1)
    n = 20
    many = sample_frozen(
        AugmentSettings(kind="frozen"),
        1,
        np.arange(n),
        np.ones(n, np.int64),
        tuple(np.repeat(s, n, 0) for s in SHAPES),
        1,
    )  # type: ignore[arg-type]
    np.testing.assert_array_equal(many.affine[3], one.affine[0])
    np.testing.assert_array_equal(many.offset_yx[3], one.offset_yx[0])
    assert len(np.unique(many.affine, axis=0)) == n
    assert not np.array_equal(frozen(1, seed=2).affine, one.affine)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("stored", [(128, 128), (118, 139), (352, 300)])
def test_copy_one_takes_anchors_to_moved_anchors(seed: int, stored: tuple[int, int]) -> None:
    native = SHAPES[1]
    draws = frozen(1, seed=seed, shapes=(np.array([stored]), native))
    third = 300 // 3
    anchors = np.array([[third, third], [third, -third], [-third, -third]], np.float64)
    move = 10 * (2 * random_uniform(seed, "anchors", np.array([3]), 6) - 1).reshape(3, 2)
    assert 0 < np.abs(move).max() <= 10
    share = np.array(stored) / native[0]
    # what stands at a moved anchor in the copy is what stood at the anchor in the image
    for old, new in zip(anchors, anchors + move, strict=True):
        found = draws.affine[0].astype(np.float64) @ (new * share) + draws.offset_yx[0]
        np.testing.assert_allclose(found, old * share, atol=1e-3)
    # and in pixels: a dot at an anchor appears at the moved anchor
    image = np.zeros((1, 1, *stored), np.float32)
    y, x = np.mgrid[: stored[0], : stored[1]]
    centre = (np.array(stored) - 1) / 2
    old, new = centre + anchors[0] * share, centre + (anchors[0] + move[0]) * share
    image[0, 0] = np.exp(-((y - old[0]) ** 2 + (x - old[1]) ** 2) / 18)
    out, _target = run_warp(image, np.zeros((1, *stored), np.uint8), draws, stored)
    peak = np.unravel_index(out[0, 0].argmax(), stored)
    assert np.abs(np.array(peak) - new).max() < 1.0


@pytest.mark.parametrize("native", [(1, 1), (2, 400), (5, 5), (31, 30)])
def test_tiny_images_have_copies_too(native: tuple[int, int]) -> None:
    n = 300
    sizes = np.tile(native, (n, 1))
    draws = sample_frozen(AugmentSettings(kind="frozen"), 0, np.arange(n), np.ones(n, np.int64), (sizes, sizes), 1)
    assert np.isfinite(draws.pack()).all()


# Colours


def colored(
    image: NDArray[np.float32], draws: AugmentParams, low: float = 0.0, high: float = 255.0
) -> NDArray[np.float32]:
    channels = image.shape[1]
    ends = [torch.full((1, channels, 1, 1), end) for end in (low, high)]
    noise = torch.from_numpy(noise_field(7, channels))
    return change_colors(
        torch.from_numpy(image),
        DeviceAugmentParams.unpack(torch.from_numpy(draws.pack()), channels),
        ends[0],
        ends[1],
        noise,
    ).numpy()


def make_image(channels: int, count: int = 2, side: int = 40) -> NDArray[np.float32]:
    return np.random.default_rng(1).uniform(0, 255, (count, channels, side, side)).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
def test_identity_keeps_colors(channels: int) -> None:
    image = make_image(channels)
    assert np.abs(colored(image, identity_params(2, channels)) - image).max() < 1e-3
    deep = image * 257
    assert np.abs(colored(deep, identity_params(2, channels), 0, 65_535) - deep).max() < 65_535 * 1e-5


@settings(max_examples=20)
@given(st.integers(0, 2**40), st.sampled_from([1, 3]), st.sampled_from([(0.0, 255.0), (-3.0, 2.0), (1000.0, 40_000.0)]))
def test_colors_stay_in_the_value_range(seed: int, channels: int, ends: tuple[float, float]) -> None:
    wild = AugmentSettings(
        kind="warp", orientation="free", rotation_deg=9, brightness=1, contrast=2, gamma=2, color=1, saturation=2,
        blur_px=2, blur_share=1, noise=1, noise_share=1,
    )  # fmt: skip
    low, high = ends
    image = make_image(channels, 4, 24) / 255 * (high - low) + low
    draws = sample_augmentation(wild, seed, np.arange(4), np.full((4, 2), 24), (24, 24), channels)
    out = colored(image.astype(np.float32), draws, low, high)
    assert np.isfinite(out).all()
    slack = 1e-5 * (high - low)
    assert out.min() >= low - slack
    assert out.max() <= high + slack


def test_each_color_change_alone() -> None:
    image = make_image(3)
    x = image.astype(np.float64) / 255
    two = np.array([0.7, 1.4], np.float32)
    wide = two[:, None, None, None].astype(np.float64)
    gain = np.array([[0.9, 1.0, 1.1], [1.2, 0.8, 1.0]], np.float32)
    grey = x.mean(axis=1, keepdims=True)
    same = identity_params(2, 3)
    for draws, want in (
        (replace(same, gamma=two), x**wide),
        (replace(same, contrast=two), (x - 0.5) * wide + 0.5),
        (replace(same, brightness=two - 1), x + wide - 1),
        (replace(same, gain=gain), x * gain[:, :, None, None]),
        (replace(same, saturation=two), grey + wide * (x - grey)),
    ):
        assert np.abs(colored(image, draws) / 255 - want.clip(0, 1)).max() < 1e-5


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.0, 2.0])
def test_blur_is_scipys(sigma: float) -> None:
    image = make_image(3)
    draws = replace(identity_params(2, 3), blur_px=np.array([sigma, 0], np.float32))
    out = colored(image, draws)
    want = ndimage.gaussian_filter(image[0], (0, sigma, sigma), mode="nearest", radius=3)
    assert np.abs(out[0] - want).max() < 1e-2
    assert np.abs(out[1] - image[1]).max() < 1e-3


def test_noise() -> None:
    image = np.full((3, 3, 200, 300), 127.5, np.float32)
    level = np.array([0, 0.02, 0.04], np.float32)
    corner = np.array([[0, 0], [250, 10], [3, 200]], np.float32)
    out = colored(image, replace(identity_params(3, 3), noise=level, noise_yx=corner)) / 255 - 0.5
    np.testing.assert_allclose(out.std(axis=(1, 2, 3)), level, atol=1e-3)
    assert np.abs(out.mean(axis=(1, 2, 3))).max() < 1e-3
    field = noise_field(7, 3)
    assert field.shape == (3, 256, 256)
    np.testing.assert_allclose(out[1, :, 10, 20], 0.02 * field[:, (250 + 10) % 256, 10 + 20], atol=1e-5)
    assert abs(np.corrcoef(out[1, 0].reshape(-1), out[1, 1].reshape(-1))[0, 1]) < 0.03
    assert not np.array_equal(noise_field(8, 3), field)


def test_blur_and_noise_of_some_images() -> None:
    """Images that are neither blurred nor noisy are the same bits, whatever their neighbours are."""
    rng = np.random.default_rng(3)
    image = torch.from_numpy(rng.random((5, 3, 20, 24)).astype(np.float32))
    low, high = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    field = torch.from_numpy(noise_field(0, 3))

    def change(blur: list[float], noise: list[float], which: list[int]) -> torch.Tensor:
        draws = replace(identity_params(5, 3), blur_px=np.array(blur, np.float32), noise=np.array(noise, np.float32))
        packed = torch.from_numpy(draws.pack())[which]
        return change_colors(image[which], DeviceAugmentParams.unpack(packed, 3), low, high, field)

    blur, noise = [0.0, 1.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.1, 0.2, 0.0]
    together = change(blur, noise, [0, 1, 2, 3, 4])
    alone = torch.cat([change(blur, noise, [number]) for number in range(5)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    assert torch.equal(together[[0, 4]], change([0.0] * 5, [0.0] * 5, [0, 4]))
    assert [not torch.equal(a, b) for a, b in zip(together, image, strict=True)][1:4] == [True] * 3
