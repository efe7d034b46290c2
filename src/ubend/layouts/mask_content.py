"""What a few masks show: the camera's field of view instead of the truth, or one truth drawn by several annotators."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ubend.core.errors import DataError
from ubend.labels.mask_files import FileMask, read_label_values

_T = TypeVar("_T")
_LOOKED_AT = 5  # images whose masks are read
_MASKS_OF_IMAGE = 4
_FEWEST = 3  # two masks may be alike by chance
_SIDE_PX = 256  # masks are compared at this size
# Field of view: it covers at least half of each image; what is in it, and what is outside, hardly differs.
_COVERED = 0.5
_SAME_INSIDE, _SAME_OUTSIDE = 0.9, 0.8
_SOFT_SHARE = 0.02  # pixels between the two values of a mask, as at edges in JPEG
_SAME_OBJECT = 0.5  # median IoU of an image's masks: objects hardly overlap


def is_field_of_view(masks: Sequence[Path]) -> bool:
    """Whether the masks are practically the same in all images and cover most of each."""
    first = None
    for path in _sample(masks) if len(masks) >= _FEWEST else []:
        inside = _foreground(path, two_values=True)
        if inside is None or inside.mean() < _COVERED:
            return False
        first = inside if first is None else first
        if _iou(first, inside) < _SAME_INSIDE or _iou(~first, ~inside) < _SAME_OUTSIDE:
            return False
    return first is not None


def coincide(masks_of_images: Iterable[Sequence[Path]]) -> bool:
    """Whether the masks of one image mostly cover the same pixels, so that they are not objects."""
    overlaps: list[float] = []
    for paths in _sample([paths for paths in masks_of_images if len(paths) > 1]):
        drawn = [on for on in map(_foreground, paths[:_MASKS_OF_IMAGE]) if on is not None and on.any()]
        overlaps += (_iou(first, second) for first, second in pairwise(drawn))
    return bool(overlaps) and median(overlaps) > _SAME_OBJECT


def _sample(items: Sequence[_T]) -> list[_T]:
    """A few items, evenly spaced."""
    return [items[index] for index in sorted({number * len(items) // _LOOKED_AT for number in range(_LOOKED_AT)})]


def _foreground(path: Path, *, two_values: bool = False) -> NDArray[np.bool_] | None:
    """(side, side) bool: the foreground of a mask; None: it cannot be read, or has more values than it should."""
    try:
        read = read_label_values(FileMask(path), (0, 0))
    except (DataError, OSError, ValueError):
        return None
    rows, columns = (np.arange(_SIDE_PX) * side // _SIDE_PX for side in read.values.shape)
    values = read.values[np.ix_(rows, columns)]
    top = int(values.max(initial=0))
    noise = top // 8 if read.kind == "value" else 0
    if two_values and np.mean((values > noise) & (values < top - noise)) > _SOFT_SHARE:
        return None
    return np.asarray(values > noise)


def _iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 0.0
