"""The images on which the tutorial's faults are measured: resized once, and written as folders that ubend reads.

N images of S x S pixels, C channels.
"""

import csv
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ubend.core.errors import DataError
from ubend.core.files import write_file, write_text
from ubend.core.i18n import _
from ubend.core.plan import AugmentPlan
from ubend.core.settings import FROZEN_COPIES
from ubend.dataset.augment import DeviceAugmentParams, sample_frozen, warp
from ubend.dataset.dataset import Dataset
from ubend.dataset.store import read_class_map
from ubend.io.images import write_mask
from ubend.labels.class_table import IGNORED, LabelMap
from ubend.layouts.pairs import SplitName
from ubend.portable.prefetch import prefetch

HELD = "held"  # prefix of the names of copies whose image has no copy in the training split
_HELD_SHARE, _VAL_SHARE, _TEST_SHARE = 0.15, 0.15, 0.15  # of the images; of the copies (both), as in the text
_SLICE = 64  # images warped at once


@dataclass(frozen=True)
class ResizedData:
    """Images and masks at the size of the network.

    Attributes:
        images: (N, S, S, C) uint8.
        masks: (N, S, S) uint8 class index or IGNORED, resized by nearest pixel.
        blurred: the same, but the label values are resized bilinearly, and then replaced by the nearest class.
        unknown: (N, S, S) bool: whether the bilinear value is not that of a class.
        splits: train, val or test, for each image.
        native_hw: (N, 2) px.
        labels: the class table.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    blurred: NDArray[np.uint8]
    unknown: NDArray[np.bool_]
    splits: tuple[SplitName, ...]
    native_hw: NDArray[np.int64]
    labels: LabelMap


def size_images(data: Dataset) -> ResizedData:
    """Read the images and masks of a data set; masks are also resized in the wrong way.

    Raises:
        DataError: the images are not 8-bit grey or colour, or a split is missing.
    """
    store, numbers = data.store, np.arange(len(data.folder.pairs))
    if store.dtype != np.uint8 or store.channels not in (1, 3):
        raise DataError(
            _("this lesson needs 8-bit images, grey or colour; these are {dtype} with {channels} channels").format(
                dtype=store.dtype.name, channels=store.channels
            ),
            path=data.folder.root,
            key="dtype",
        )
    missing = {"train", "val", "test"} - set(data.splits)
    if missing:
        raise DataError(
            _("no images in the {split} split; add images, or give another --split").format(split=min(missing)),
            path=data.folder.root,
            key="data.split",
        )
    masks = np.stack([store.mask(int(number)) for number in numbers])

    def blur(number: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        height, width = store.native_hw[number].tolist()
        index = read_class_map(data.folder.pairs[number], (height, width), data.labels).classes
        return resize_bilinear(index, masks.shape[1:], data.labels)

    blurred = list(prefetch(blur, range(len(numbers))))
    found = np.stack([index for index, _unknown in blurred])
    found[masks == IGNORED] = IGNORED
    return ResizedData(
        np.stack([store.image(int(number)) for number in numbers]),
        masks,
        found,
        np.stack([unknown for _index, unknown in blurred]),
        data.splits,
        store.native_hw,
        data.labels,
    )


def resize_bilinear(
    index: NDArray[np.uint8], size_hw: tuple[int, ...], labels: LabelMap
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Resize a mask as if its label values were brightness, which is the fault.

    Args:
        index: (H, W) class index or IGNORED.
        size_hw: (height, width).
        labels: the label value of each class; for masks of colours, values evenly from 0 to 255 are used.
    Returns:
        (height, width) class with the nearest label value, and whether the resized value differs from it.
    """
    count = labels.classes
    codes = np.linspace(0, 255, count).astype(np.int64)
    if labels.kind == "value" and all(labels.codes) and max(some[0] for some in labels.codes) < 256:
        codes = np.array([some[0] for some in labels.codes])
    values = np.append(codes, np.zeros(256 - count, np.int64))[np.where(index < count, index, 0)].astype(np.uint8)
    small = np.asarray(Image.fromarray(values).resize((size_hw[1], size_hw[0]), Image.Resampling.BILINEAR))
    far = np.abs(small[..., None].astype(np.int64) - codes)
    return far.argmin(axis=-1).astype(np.uint8), np.asarray(far.min(axis=-1) > 0)


def make_copies(
    images: NDArray[np.uint8], masks: NDArray[np.uint8], native_hw: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(5 N, S, S, C) images and (5 N, S, S) masks: each image followed by its four copies, as in the course text."""
    originals = np.arange(len(images)).repeat(FROZEN_COPIES)
    copies = np.tile(np.arange(FROZEN_COPIES), len(images))
    stored = np.full((len(originals), 2), images.shape[1:3], np.int64)
    settings, channels = AugmentPlan(kind="frozen", orientation="free", rotation_deg=0.0), images.shape[3]
    params = sample_frozen(settings, seed, originals, copies, (stored, native_hw[originals]), channels).pack()
    out_images = np.empty((len(originals), *images.shape[1:]), np.uint8)
    out_masks = np.empty((len(originals), *masks.shape[1:]), np.uint8)
    for start in range(0, len(originals), _SLICE):
        some = slice(start, start + _SLICE)
        image, mask = warp(
            torch.from_numpy(images[originals[some]]).permute(0, 3, 1, 2),
            torch.from_numpy(masks[originals[some]]),
            torch.from_numpy(stored[some]).float(),
            DeviceAugmentParams.unpack(torch.from_numpy(params[some]), channels),
            images.shape[1:3],
            ignore_outside=False,
        )
        out_images[some] = image.round().byte().permute(0, 2, 3, 1).numpy()
        out_masks[some] = mask.numpy()
    return out_images, out_masks


def write_images(
    root: Path,
    images: NDArray[np.uint8],
    masks: NDArray[np.uint8],
    names: Sequence[str],
    splits: Sequence[str],
    labels: LabelMap,
) -> dict[str, Any]:
    """Write a folder of images and masks with its split; returns the settings to read it.

    Raises:
        OutputError: it cannot be written.
    """

    def write(number: int) -> None:
        pixels = images[number] if images.shape[3] == 3 else images[number, :, :, 0]
        image = Image.fromarray(pixels)
        target = root / "images" / f"{names[number]}.png"
        write_file(target, lambda temporary: image.save(temporary, "PNG", compress_level=1))
        write_mask(root / "masks" / f"{names[number]}.png", masks[number], labels.colors)

    with ThreadPoolExecutor() as threads:
        list(threads.map(write, range(len(names))))
    table = io.StringIO()
    csv.writer(table).writerows([("file", "split"), *((f"{n}.png", p) for n, p in zip(names, splits, strict=True))])
    write_text(root / "split.csv", table.getvalue())
    values = [f"{number}={name}" for number, name in enumerate(labels.names)]
    return {
        "data.folder": str(root),
        "data.split": str(root / "split.csv"),
        "data.values": (*values, f"{IGNORED}=ignored"),
    }


def write_leak(root: Path, sized: ResizedData, maximum: int, seed: int) -> dict[str, Any]:
    """Write augmented copies with a random split of the copies, as in the course text; some images are held out.

    All images are used, whatever their split was: random ones are held out with all their copies, so that over several
    seeds neither side is more difficult. Names consist of `HELD` or `copy`, the image's number, and the copy's number.

    Args:
        root: the folder to write.
        sized: images and masks.
        maximum: largest number of images; of more, an evenly spaced selection is used.
        seed: random seed.
    """
    random = np.random.default_rng([seed, 8])
    chosen = np.unique(np.linspace(0, len(sized.images) - 1, min(maximum, len(sized.images))).astype(np.int64))
    images, masks = make_copies(sized.images[chosen], sized.masks[chosen], sized.native_hw[chosen], seed)
    held = np.zeros(len(chosen), np.bool_)
    held[random.permutation(len(chosen))[: max(1, round(_HELD_SHARE * len(chosen)))]] = True
    held = held.repeat(FROZEN_COPIES)
    order = random.permutation(np.flatnonzero(~held))
    val, test = round(_VAL_SHARE * len(order)), round(_TEST_SHARE * len(order))
    splits = np.full(len(images), "train", dtype=object)
    splits[order[:val]], splits[order[val : val + test]], splits[held] = "val", "test", "test"
    names = [
        f"{HELD if held[index] else 'copy'}-{index // FROZEN_COPIES:05d}-{index % FROZEN_COPIES}"
        for index in range(len(images))
    ]
    return write_images(root, images, masks, names, splits.tolist(), sized.labels)
