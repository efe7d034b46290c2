"""How wide the objects of each class are, and which of them are too narrow to be learnt at the model's size.

The width is that of the place: twice the distance to the border, along the middle of an object (where that distance is
greatest among its neighbours). So a disc has its diameter, a vessel or a road its width whatever its length, and of
objects that touch in the mask each has its own. H x W pixels.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ubend.core.i18n import _
from ubend.dataset.dataset import Dataset
from ubend.dataset.scan import threads
from ubend.dataset.store import read_class_map

_IMAGES = 16  # of the training split, evenly taken
_SIDE_PX = 512  # larger masks are measured in their middle
_NARROW_PX = 10.0  # at the model's size: an outline half a pixel off on both sides costs a tenth of an object
_SHRUNK = 0.75  # of the original size; objects that are narrow in the images themselves are not shrunk away
_LARGER = 2  # times the size, and four times the work; beyond, crops at native scale are the better way


class Width(NamedTuple):
    """Median width of the objects of a class, px: in the original images, and in these as the model sees them."""

    native_px: float
    model_px: float


def measure_widths(mask: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """(n,) class and (n,) width in px at places along the middle of all objects of an (H, W) mask; n may be 0.

    What touches the rim of the mask goes on beyond it.
    """
    # A grid of half pixels: pixel (y, x) lies at (2y, 2x), and what lies between pixels of two classes is a border.
    classes = mask.repeat(2, axis=0)[:-1].repeat(2, axis=1)[:, :-1]
    border = np.zeros(classes.shape, np.bool_)
    border[1::2] |= classes[:-1:2] != classes[2::2]
    border[:, 1::2] |= classes[:, :-1:2] != classes[:, 2::2]
    border[1::2, 1::2] |= border[1::2, :-1:2] | border[1::2, 2::2]
    if not border.any():
        return np.zeros(0, np.uint8), np.zeros(0)
    depth = ndimage.distance_transform_edt(~border)  # in half pixels, so that it is the whole width in pixels
    middle = ~border & (depth == ndimage.maximum_filter(depth, size=3))
    return classes[middle], depth[middle]


def find_widths(data: Dataset) -> dict[str, Width]:
    """Class name -> width of its objects, of a sample of the training images; without the background, and without
    classes that the sample does not show.

    Raises:
        DataError: masks that have changed since they were read.
    """
    numbers = data.numbers("train")
    numbers = numbers[np.unique(np.linspace(0, len(numbers) - 1, _IMAGES).astype(np.int64))]

    def measure(number: int) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]:
        height, width = map(int, data.store.native_hw[number])
        mask = read_class_map(data.folder.pairs[number], (height, width), data.labels).classes
        top, left = (max(0, (side - _SIDE_PX) // 2) for side in (height, width))
        classes, widths = measure_widths(mask[top : top + _SIDE_PX, left : left + _SIDE_PX])
        return classes, widths, widths * np.sqrt(data.store.shapes_hw[number].prod() / (height * width))

    with ThreadPoolExecutor(threads()) as pool:
        found = list(pool.map(measure, numbers.tolist()))
    classes, native, model = (np.concatenate(column) for column in zip(*found, strict=True))
    return {
        data.labels.names[kind]: Width(*(middle_width(widths[classes == kind]) for widths in (native, model)))
        for kind in data.foreground_classes()
        if (classes == kind).any()
    }


def middle_width(widths: NDArray[np.float64]) -> float:
    """The width with half of the area in narrower places: for its length, a place has as much area as it is wide."""
    rising = np.sort(widths)
    area = rising.cumsum()
    return float(rising[np.searchsorted(area, area[-1] / 2)])


def describe_narrow(data: Dataset) -> list[str]:
    """A line when objects become too narrow at the model's size, with the settings that help; else none."""
    size = data.images.size
    if size is None:
        return []
    narrow = {
        name: width
        for name, width in find_widths(data).items()
        if width.model_px < _NARROW_PX and width.model_px < _SHRUNK * width.native_px
    }
    if not narrow:
        return []
    enough = max(min(_NARROW_PX, own.native_px) / own.model_px for own in narrow.values())
    cure = "--patches" if enough > _LARGER else f"--size {16 * math.ceil(size * enough / 16)}"
    line = _(
        "note: narrow objects are shrunk: {objects} (median width, in the images -> at {size} px); so few pixels show "
        "no detail; train with `ubend fit ... {cure}`"
    )
    objects = ", ".join(f"{name} {own.native_px:.1f} -> {own.model_px:.1f} px" for name, own in narrow.items())
    return [line.format(objects=objects, size=size, cure=cure)]
