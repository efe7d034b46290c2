"""Windows of pictures at their own size: what a crop shows is what the picture shows, each pixel is scored once, and
everything is a function of (seed, position)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import open_folder
from ubend.config import AugmentSettings
from ubend.data.augment import DeviceDraws, draw_warps, warp
from ubend.data.batches import TrainingBatches
from ubend.data.foreground import Foreground
from ubend.data.patches import Crops, Patches, Windows, find_crops, read_crops, share_windows
from ubend.data.store import Store
from ubend.masks.labels import IGNORED
from ubend.pictures.images import Sizing

CPU = torch.device("cpu")
WARP = AugmentSettings(kind="warp", orientation="free", rotation_deg=180.0)
SHAPES = [(150, 210), (40, 300), (64, 64), (23, 31), (220, 90), (97, 101)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Pictures of noise of many shapes; a tenth of each is an object, in one corner."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for k, (h, w) in enumerate(SHAPES):
        coarse = rng.integers(0, 255, (h // 8 + 2, w // 8 + 2, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC).save(root / f"images/{k}.png")
        mask = np.zeros((h, w), np.uint8)
        mask[: h // 3, : w // 3] = 255
        Image.fromarray(mask).save(root / f"masks/{k}.png")
    return open_folder(root, root / "cache", Sizing(None, True, 3))


def make(store: Store, *, share: float = 0.0, batch: int = 6, part: tuple[int, int] = (0, 1), **given: Any):  # noqa: ANN201
    window_hw = given.pop("window_hw", (32, 32))
    settings = WARP.model_copy(update=given)
    patches = Patches(store, np.arange(len(store)), CPU, 90, window_hw, settings)
    foreground = Foreground(patches.mask, len(patches), (1,), share, 3) if share else None
    ends = np.zeros(3), np.full(3, 255.0)
    return TrainingBatches(patches, settings, 3, batch, window_hw, ends, foreground, part)


def test_pictures_keep_their_size(store: Store) -> None:
    assert store.shapes_hw.tolist() == [list(shape) for shape in SHAPES]
    assert store.native_hw.tolist() == store.shapes_hw.tolist()


@pytest.mark.parametrize("ignore", [True, False])
@pytest.mark.parametrize("window_hw", [(32, 32), (48, 16), (64, 64)])
@pytest.mark.parametrize("elastic", [0.0, 0.03, 0.1])
def test_crops_show_what_pictures_show(
    store: Store, window_hw: tuple[int, int], elastic: float, ignore: bool
) -> None:
    """The warp of a crop is the warp of the picture, at its border too."""
    settings = WARP.model_copy(update={"elastic": elastic, "elastic_share": 1.0, "shift": 0.3})
    patches = Patches(store, np.arange(len(store)), CPU, 90, window_hw, settings)
    positions = np.arange(200)
    pictures = positions % len(store)
    shapes = store.shapes_hw[pictures]
    draws = draw_warps(settings, 1, positions, shapes, window_hw, 3)
    canvas = (int(shapes[:, 0].max()), int(shapes[:, 1].max()))
    moved, corners, sizes = find_crops(draws, shapes, window_hw, patches.crop_hw)
    images, masks = store.read(pictures, canvas)
    whole = look(torch.from_numpy(images), torch.from_numpy(masks), shapes, draws, window_hw, ignore)
    crops = read_crops(store, Crops(pictures, corners, sizes), patches.crop_hw, CPU)
    found = look(*crops, sizes, moved, window_hw, ignore)
    assert (corners >= 0).all()
    assert (corners + sizes <= shapes).all()
    assert (sizes <= np.array(patches.crop_hw)).all()
    same = (whole[1] == found[1]).float().mean(dim=(1, 2))  # rounding may turn a pixel on the border of an object
    assert (same > 0.97).float().mean() > 0.99, same.min()
    apart = (whole[0] - found[0]).abs().amax(dim=(1, 2, 3))
    assert (apart < 0.5).float().mean() > 0.99, apart.max()
    assert (sizes.prod(axis=1) < shapes.prod(axis=1)).any(), "less than the picture is read"


def look(image: torch.Tensor, mask: torch.Tensor, shapes: Any, draws: Any, window_hw: tuple[int, int], ignore: bool):  # noqa: ANN201
    packed = DeviceDraws.unpack(torch.from_numpy(draws.pack()), 3)
    sizes = torch.from_numpy(shapes.astype(np.float32))
    return warp(image.permute(0, 3, 1, 2), mask, sizes, packed, window_hw, ignore)
