"""Measures how wide the objects of each class are, and finds those too narrow to be learnt at the model size.

The width is local: twice the distance to the border, along the centre line of an object (the local maxima of that
distance). So a disc has its diameter, a vessel or road its width at any length, and touching objects have their own
widths. H x W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from ubend.core.autoconfig import describe_sample, find_narrow, find_sufficient_size
from ubend.core.errors import DataError
from ubend.core.i18n import _
from ubend.core.plan import Width
from ubend.dataset.scan import WIDTHS_SUFFIX, cached_arrays, threads
from ubend.dataset.store import read_class_map
from ubend.labels.class_table import IGNORED, LabelMap, background_class
from ubend.layouts.pairs import Pair, common_folder

_VERSION = 2  # of the measurement, for the cache
_IMAGES = 16  # size of the sample, evenly spaced
# The scores count all images alike, so the quarter of them with the narrowest objects decides. The median over all
# objects is that of the large ones, and varies from sample to sample.
_QUANTILE = 0.25
_SIDE_PX = 512  # larger masks are measured in a square of this side
_LARGER = 2  # at most this factor is suggested for --size (four times the work); above, --patches is better


def measure_widths(mask: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """(n,) class and (n,) width in px at points on the centre lines of all objects of an (H, W) mask; n may be 0.

    Objects that touch the edge of the mask are taken to continue beyond it.
    """
    # A grid of half pixels: pixel (y, x) is at (2y, 2x), and points between pixels of two classes are borders.
    classes = mask.repeat(2, axis=0)[:-1].repeat(2, axis=1)[:, :-1]
    border = np.zeros(classes.shape, np.bool_)
    border[1::2] |= classes[:-1:2] != classes[2::2]
    border[:, 1::2] |= classes[:, :-1:2] != classes[:, 2::2]
    border[1::2, 1::2] |= border[1::2, :-1:2] | border[1::2, 2::2]
    if not border.any():
        return np.zeros(0, np.uint8), np.zeros(0)
    depth = scipy.ndimage.distance_transform_edt(~border)  # the distance in half pixels equals the width in pixels
    middle = ~border & (depth == scipy.ndimage.maximum_filter(depth, size=3))
    return classes[middle], depth[middle]


def find_widths(
    pairs: Sequence[Pair],
    shapes_hw: Sequence[tuple[int, int]],
    labels: LabelMap,
    digests: Sequence[str],
    cache: Path,
    log: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Width]:
    """Measure objects in a sample of the training split, if one is stated, or of all images: {class name: width}.

    Without the background (or the most common class, if none is called background), and without classes that do not
    occur in the sample. The result is cached.

    Args:
        shapes_hw: native (height, width) of each image.
        digests: of each mask's content.
        cache, log: see `cached_arrays`.
    """
    indices = [index for index, pair in enumerate(pairs) if pair.split in (None, "train")] or range(len(pairs))
    sample = sorted({indices[place] for place in np.linspace(0, len(indices) - 1, _IMAGES).astype(int).tolist()})
    chosen = [(pairs[index], shapes_hw[index]) for index in sample]
    contents = [_VERSION, labels, [(digests[index], shapes_hw[index]) for index in sample]]

    def measure() -> dict[str, Any]:
        widths = _measure_sample(chosen, labels)
        folder = common_folder(path for pair, _shape in chosen for path in (pair.image, *pair.mask.files))
        return {"folder": folder, "classes": list(widths), "widths": np.array([*widths.values()]).reshape(-1, 2)}

    measured = cached_arrays(cache, contents, WIDTHS_SUFFIX, ("classes", "widths"), measure, log)
    is_of_training = all(pair.split == "train" for pair, _shape in chosen)
    return {
        str(name): Width(float(native), float(relative), is_of_training)
        for name, (native, relative) in zip(measured["classes"], measured["widths"], strict=True)
    }


def _measure_sample(chosen: Sequence[tuple[Pair, tuple[int, int]]], labels: LabelMap) -> dict[str, NDArray[np.float64]]:
    """(2,) width in px, and relative to the image, of each class: `find_widths` of these pairs with (height, width)."""

    def measure(pair: Pair, shape_hw: tuple[int, int]) -> tuple[dict[int, float], float, NDArray[np.int64]]:
        try:
            class_map = read_class_map(pair, shape_hw, labels)
        except DataError:  # reported with all others when the images are decoded
            return {}, 1.0, np.zeros(256, np.int64)
        classes, widths = measure_widths(_take_square(class_map.classes, int(class_map.pixels[:IGNORED].argmax())))
        medians = {int(index): middle_width(widths[classes == index]) for index in np.unique(classes)}
        return medians, class_map.classes.size**0.5, class_map.pixels

    with ThreadPoolExecutor(threads()) as pool:
        medians, sides, pixels = zip(*pool.map(lambda item: measure(*item), chosen), strict=True)
    background = background_class(labels.names)
    if background is None:
        background = int(sum(pixels)[: labels.classes].argmax())
    found = {}
    for index, name in enumerate(labels.names):
        widths = [(of[index], of[index] / side) for of, side in zip(medians, sides, strict=True) if index in of]
        if index != background and widths:
            found[name] = np.quantile(np.array(widths), _QUANTILE, axis=0)
    return found


def _take_square(mask: NDArray[np.uint8], commonest: int) -> NDArray[np.uint8]:
    """A square of a mask, at most `_SIDE_PX` wide, around a pixel that is not of its most common class."""
    others = (mask != commonest) & (mask != IGNORED)
    rows = np.flatnonzero(others.any(axis=1))
    if not len(rows):
        return mask[:_SIDE_PX, :_SIDE_PX]
    row = int(rows[len(rows) // 2])
    columns = np.flatnonzero(others[row])
    middle = (row, int(columns[len(columns) // 2]))
    top, left = (max(0, min(at - _SIDE_PX // 2, side - _SIDE_PX)) for at, side in zip(middle, mask.shape, strict=True))
    return mask[top : top + _SIDE_PX, left : left + _SIDE_PX]


def middle_width(widths: NDArray[np.float64]) -> float:
    """The median width weighted by area: half of the area is at narrower points (area is proportional to width)."""
    rising = np.sort(widths)
    area = rising.cumsum()
    return float(rising[np.searchsorted(area, area[-1] / 2)])


def describe_narrow(widths: Mapping[str, Width], size: int | None) -> list[str]:
    """A message, with a setting that helps, if objects become too narrow at the model size; otherwise no line."""
    narrow = find_narrow(widths, size) if size is not None else {}
    if size is None or not narrow:
        return []
    enough = max(map(find_sufficient_size, narrow.values()))
    suggestion = f"--size {enough}" if size < enough <= _LARGER * size else "--patches"
    line = _(
        "note: narrow objects become too narrow to be learnt well: {objects} (a quarter of the images {where} have "
        "objects of this width or less: in the image files -> at {size} px); train with `ubend fit ... {suggestion}`"
    )
    objects = ", ".join(
        f"{name} {width.native_px:.1f} -> {size * width.relative:.1f} px" for name, width in narrow.items()
    )
    where = describe_sample(next(iter(narrow.values())))
    return [line.format(objects=objects, where=where, size=size, suggestion=suggestion)]
