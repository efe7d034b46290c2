"""What the checks look at: the data set as it was read, and measures of its images that several checks share.

Axis letters: N images. Nothing is decoded until a check asks for it; what is decoded comes from the store.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ubend.core.settings import Settings
from ubend.dataset.dataset import Dataset
from ubend.dataset.scan import threads

SIDE_PX = 72  # long side of the small images: a shift of 5% is 3.6 px
_COLORS = 3  # channels of a small image, at most


@dataclass(frozen=True)
class Inspection:
    """A data set under inspection.

    Attributes:
        data: the data set.
        settings: with which it was read.
    """

    data: Dataset
    settings: Settings

    def __len__(self) -> int:
        return len(self.data.store)

    def image_path(self, index: int) -> Path:
        return self.data.folder.pairs[index].image

    def mask_path(self, index: int) -> Path:
        return self.data.folder.pairs[index].mask.path

    @cached_property
    def class_pixels(self) -> NDArray[np.int64]:
        """(N, C) pixels of each class at native size."""
        return self.data.store.class_pixels[:, : self.data.labels.classes]

    @cached_property
    def small(self) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """((h, w, c) image 0..255, (h, w) class index) of each image, the long side at most SIDE_PX px."""
        with ThreadPoolExecutor(threads()) as pool:
            return list(pool.map(self._shrink, range(len(self))))

    def _shrink(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        store = self.data.store
        mask = np.ascontiguousarray(store.mask(index))
        scale = min(1.0, SIDE_PX / max(mask.shape))
        size = tuple(max(8, round(side * scale)) for side in mask.shape[::-1])
        pixels = shrink(to_bytes(store.image(index)), size)
        return pixels, np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def to_bytes(image: NDArray[Any]) -> NDArray[np.uint8]:
    """(h, w, C) of any depth -> (h, w, 1 or 3) uint8: the first channels; deep ones stretched to their range."""
    image = image[:, :, : _COLORS if image.shape[2] >= _COLORS else 1]
    if image.dtype == np.uint8:
        return np.asarray(image)
    values = np.nan_to_num(image.astype(np.float32))
    low, high = np.quantile(values[::4, ::4], (0.005, 0.995))
    return np.asarray(((values - low) * (255 / max(high - low, 1e-9))).clip(0, 255), np.uint8)


def shrink(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(h, w, c) uint8 -> the same of size (width, height), by averages."""
    planes = (Image.fromarray(np.ascontiguousarray(image[:, :, channel])) for channel in range(image.shape[2]))
    return np.stack([np.asarray(plane.resize(size, Image.Resampling.BOX)) for plane in planes], axis=-1)


def upper_bound(values: NDArray[Any]) -> float:
    """A bound that ordinary values stay below: 3.8 standard deviations above the median, these taken from the 85%
    quantile, so that neither a long lower tail nor a tenth of bad values moves it."""
    middle, high = np.quantile(values, (0.5, 0.85))
    return float(middle + 3.7 * (high - middle))


def lower_bound(values: NDArray[Any]) -> float:
    """The same below the median."""
    return -upper_bound(-values)
