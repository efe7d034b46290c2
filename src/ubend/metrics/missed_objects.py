"""True objects that a prediction misses, by their size.

An object is a set of connected pixels of a class in the ground truth, also across corners. It is missed if less than
`MISSED_BELOW` of its pixels are predicted as its class; its IoU with anything predicted is then below this, too. A
prediction that merges neighbouring objects misses none of them. H x W pixels of an image, N objects.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

MISSED_BELOW = 0.1  # share of an object's pixels
MOST_PIXELS = 2**26  # of an image whose objects are counted: their numbers take 4 bytes per pixel
MOST_OBJECTS = 10_000  # of a class in an image: more are noise
KEPT = 6  # of the missed objects of a class in an image, the largest

_CORNERS = np.ones((3, 3), bool)


class MissedObject(NamedTuple):
    """A missed object.

    Attributes:
        area: pixels.
        covered: share of its pixels that are predicted as its class, 0..1.
        box: top, left, bottom and right, px; bottom and right are exclusive.
    """

    area: int
    covered: float
    box: tuple[int, int, int, int]


class ClassObjects(NamedTuple):
    """The objects of a class in an image.

    Attributes:
        areas: (N,) int64 pixels.
        missed: (N,) bool.
        largest: the largest missed objects, at most `KEPT`.
    """

    areas: NDArray[np.int64]
    missed: NDArray[np.bool_]
    largest: list[MissedObject]


class SizeGroup(NamedTuple):
    """Objects of similar size: the smallest and largest area in px, and how many objects there are and are missed."""

    smallest: int
    largest: int
    objects: int
    missed: int


def find_missed_objects(
    truth: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: Iterable[int]
) -> dict[int, ClassObjects | None]:
    """The objects of each class that occurs in an image.

    Args:
        truth: (H, W) class index, or IGNORED.
        prediction: (H, W) class index.
        classes: the classes whose objects are counted.
    Returns:
        Class index -> its objects; None: not counted, since the image has more than `MOST_PIXELS` pixels, or more than
        `MOST_OBJECTS` objects of the class.
    """
    boxes = scipy.ndimage.find_objects(truth.astype(np.int16) + 1) if truth.size <= MOST_PIXELS else None
    objects = dict[int, ClassObjects | None]()
    for index in classes:
        if boxes is None:
            objects[index] = None
        elif index < len(boxes) and boxes[index] is not None:
            rows, columns = boxes[index]
            region, hit = truth[rows, columns] == index, prediction[rows, columns] == index
            objects[index] = _find_in_region(region, hit, rows.start, columns.start)
    return objects


def _find_in_region(
    region: NDArray[np.bool_], predicted: NDArray[np.bool_], top: int, left: int
) -> ClassObjects | None:
    object_ids, count = scipy.ndimage.label(region, _CORNERS)
    if count > MOST_OBJECTS:
        return None
    areas = np.bincount(object_ids.ravel(), minlength=count + 1)[1:]
    covered = np.bincount(object_ids[predicted], minlength=count + 1)[1:] / areas
    missed = covered < MISSED_BELOW
    worst = np.flatnonzero(missed)
    worst = worst[np.argsort(-areas[worst], kind="stable")][:KEPT]
    boxes = scipy.ndimage.find_objects(object_ids) if len(worst) else []
    largest = []
    for index in worst.tolist():
        rows, columns = boxes[index]
        box = (top + rows.start, left + columns.start, top + rows.stop, left + columns.stop)
        largest.append(MissedObject(int(areas[index]), float(covered[index]), box))
    return ClassObjects(areas, missed, largest)


def group_by_size(areas: NDArray[np.int64], missed: NDArray[np.bool_]) -> list[SizeGroup]:
    """The objects in quarters by their area, the smallest first; fewer groups if many areas are equal.

    Args:
        areas: (N,) pixels.
        missed: (N,) whether each is missed.
    """
    if not len(areas):
        return []
    edges = np.quantile(areas, (0.25, 0.5, 0.75), method="inverted_cdf")
    quarter = np.searchsorted(edges, areas, side="left")
    groups = []
    for index in np.unique(quarter):
        inside = quarter == index
        smallest, largest = int(areas[inside].min()), int(areas[inside].max())
        groups.append(SizeGroup(smallest, largest, int(inside.sum()), int(missed[inside].sum())))
    return groups
