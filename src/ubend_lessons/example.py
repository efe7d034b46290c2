"""An image with its mask as the example of a lesson: drawn, from a folder, or from arrays."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ubend.core.errors import SettingError
from ubend.core.files import default_cache
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.dataset.dataset import find_folder, scan_folder
from ubend.dataset.sample import SAMPLE_CLASSES, draw_ids, draw_image
from ubend.dataset.scan import read_headers
from ubend.dataset.store import Store, hash_pairs, open_store, read_class_map
from ubend.io.images import Sizing, read_image
from ubend.labels.class_table import IGNORED, MAX_CLASSES, class_colors, make_label_map
from ubend.layouts.folder import read_folder
from ubend.tasks.user_settings import read_user_settings

Colors = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Example:
    """An image and its mask.

    Attributes:
        image: (H, W, C) uint8, uint16 or float32.
        mask: (H, W) uint8 class index, or IGNORED.
        names, colors: of the classes.
        name: of the image.
        ids: (H, W) number of the object at each pixel, 1, 2, ...; 0: no object. None: unknown.
    """

    image: NDArray[Any]
    mask: NDArray[np.uint8]
    names: tuple[str, ...]
    colors: Colors
    name: str = "picture"
    ids: NDArray[Any] | None = None


def take_example(folder: Path | str | None = None, number: int = 0, *, seed: int = 0, size_px: int = 256) -> Example:
    """Take an image of a folder (or named data set), or of the drawn sample.

    Args:
        folder: images and masks; None: the sample, which also has ids.
        number: number of the image, from 0, in the order of the folder.
        seed, size_px: of the sample.
    Raises:
        SettingError: there is no image with this number.
        DataError: the folder, the image or its mask cannot be used.
    """
    if number < 0:
        raise SettingError(_("--number {number}: images are counted from 0").format(number=number), key="--number")
    if folder is None:
        image, mask = draw_image(seed, number, size_px)
        ids = draw_ids(seed, number, size_px)
        return Example(image, mask, SAMPLE_CLASSES, class_colors(SAMPLE_CLASSES), f"cell_{number:03d}", ids)
    settings = read_user_settings(folder).settings
    found = find_folder(settings)
    if number >= len(found.pairs):
        raise SettingError(
            _("--number {number}: {folder} has {count} images, counted from 0").format(
                number=number, folder=folder, count=len(found.pairs)
            ),
            path=folder,
            key="--number",
        )
    label_scan, pair = scan_folder(found, settings, default_cache(), Reporter()), found.pairs[number]
    image = read_image(pair.image, label_scan.channels)
    mask = read_class_map(pair, (image.shape[0], image.shape[1]), label_scan.labels).classes
    return Example(image, mask, label_scan.labels.names, label_scan.labels.colors, pair.name)


def make_example(
    image: NDArray[Any], mask: NDArray[np.uint8], names: tuple[str, ...], ids: NDArray[Any] | None = None
) -> Example:
    """Make an example of arrays.

    Args:
        image: (H, W) or (H, W, C).
        mask, names, ids: see `Example`; the background class is recognised by its name.
    Raises:
        SettingError: sizes differ, or the mask contains a class without a name.
    """
    image = image[:, :, None] if image.ndim == 2 else image
    sizes = {one.shape[:2] for one in (image, mask, *([] if ids is None else [ids]))}
    if image.ndim != 3 or mask.ndim != 2 or len(sizes) != 1 or not image.size:
        raise SettingError(
            _("image {image} and mask {mask} do not fit; give (H, W, C) and (H, W) with equal height and width").format(
                image=image.shape, mask=mask.shape
            ),
            key="mask",
        )
    highest = int(np.max(mask, where=mask != IGNORED, initial=0))
    if not highest < len(names) <= MAX_CLASSES:
        raise SettingError(
            _("the mask contains the class {highest}, but only {count} class names are given").format(
                highest=highest, count=len(names)
            ),
            key="names",
        )
    return Example(image, mask, tuple(names), class_colors(names), ids=ids)


def store_example(example: Example, size_px: int, folder: Path) -> Store:
    """Make a store of this image, as trainings read it.

    Args:
        example: the image and its mask.
        size_px: see `Sizing`.
        folder: an empty folder, to which image, mask and store are written.
    """
    import tifffile

    channels = example.image.shape[2]
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    if example.image.dtype == np.uint8 and channels in (1, 3):
        Image.fromarray(example.image[:, :, 0] if channels == 1 else example.image).save(folder / "images" / "one.png")
    else:
        tifffile.imwrite(folder / "images" / "one.tif", example.image, photometric="minisblack", planarconfig="contig")
    Image.fromarray(example.mask).save(folder / "masks" / "one.png")
    pairs = read_folder(folder).pairs
    shapes = [header.size_hw for header in read_headers(pairs, channels)]
    labels = make_label_map(
        range(len(example.names)), example.names, "value", ignored=(IGNORED,), colors=example.colors
    )
    sizing = Sizing(size_px, True, channels)
    return open_store(pairs, shapes, sizing, labels, hash_pairs(pairs), folder / "store")
