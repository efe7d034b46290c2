"""Folders of bright discs: small enough to train on in a second."""

from pathlib import Path

import numpy as np
from PIL import Image

from ubend.dataset.scan import read_headers
from ubend.dataset.store import Store, hash_pairs, open_store
from ubend.io.images import Sizing
from ubend.labels.class_table import LabelMap, make_label_map
from ubend.layouts.folder import read_folder


def draw_disc(seed: int, height: int = 40, width: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc on a dark, noisy ground: (H, W, 3) uint8 image and (H, W) uint8 mask of 0 and 255."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    cy, cx, r = generator.uniform(10, height - 10), generator.uniform(10, width - 10), generator.uniform(5, 10)
    disc = (y - cy) ** 2 + (x - cx) ** 2 < r**2
    image = generator.normal(60, 12, (height, width, 3)) + 110 * disc[..., None]
    return image.clip(0, 255).astype(np.uint8), (255 * disc).astype(np.uint8)


def open_folder(root: Path, cache: Path, sizing: Sizing, labels: LabelMap | None = None) -> Store:
    """The store of a folder; its masks hold 0 and 255 unless `labels` say otherwise."""
    pairs = read_folder(root).pairs
    shapes = [header.size_hw for header in read_headers(pairs)]
    return open_store(pairs, shapes, sizing, labels or make_label_map([0, 255]), hash_pairs(pairs), cache)


def make_discs(folder: Path, count: int) -> None:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        image, mask = draw_disc(number)
        Image.fromarray(image).save(folder / "images" / f"disc{number:02d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"disc{number:02d}.png")


def read_store(store: Store, numbers: np.ndarray, canvas_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, H, W, C) and masks (n, H, W) of a store, each at the top left of a canvas."""
    images = np.empty((len(numbers), *canvas_hw, store.channels), store.dtype)
    masks = np.empty((len(numbers), *canvas_hw), np.uint8)
    for number, image, mask in zip(numbers, images, masks, strict=True):
        store.paint(int(number), image, mask)
    return images, masks
