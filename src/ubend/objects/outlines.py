"""Objects as polygons along the borders of their pixels, so that their area is the number of pixels. H x W pixels."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

if TYPE_CHECKING:
    from shapely import MultiPolygon, Polygon


def trace(ids: NDArray[np.uint32]) -> "list[Polygon | MultiPolygon]":
    """The outline of each object, with its holes; in several polygons where its pixels meet at corners only.

    Args:
        ids: (H, W), 0 where there is no object, else 1, 2, ... without gaps.
    Returns:
        Of object 1, 2, ...: valid, x is the column and y the row, 0 the outer border of the first pixel; a corner
        wherever the outline turns, none between.
    """
    return [_trace_one(ids[place] == number, place) for number, place in enumerate(find_boxes(ids), 1)]


def find_boxes(ids: NDArray[np.uint32]) -> list[tuple[slice, slice]]:
    """Rows and columns of object 1, 2, ...; ids as of `trace`."""
    boxes: list[tuple[slice, slice]] = ndimage.find_objects(ids.astype(np.int64))
    return boxes


def _trace_one(there: NDArray[np.bool_], place: tuple[slice, slice]) -> "Polygon | MultiPolygon":
    """The union of each row's runs."""
    import shapely

    steps = np.diff(np.pad(there, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    _rows, ends = np.nonzero(steps == -1)
    top, left = rows + place[0].start, place[1].start
    whole = shapely.union_all(shapely.box(left + starts, top, left + ends, top + 1))
    outline: Polygon | MultiPolygon = shapely.simplify(whole, 0)
    return outline
