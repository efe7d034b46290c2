"""Separates the objects of a class mask, and numbers them. H x W pixels.

Sources: watershed from markers, Meyer 1991, as in scikit-image; seeds are the h-maxima of the distance map, Soille
1999.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .class_table import background_class
from .errors import MissingPackageError, SettingError
from .i18n import _

Method = Literal["contour", "parts", "distance"]
LIBRARIES = {"skimage": "scikit-image"}  # module -> package; scikit-image brings scipy

_CONTOURS = ("contour", "border", "boundary", "edge", "outline", "viền")
_CORNERS = np.ones((3, 3), bool)  # pixels that touch at a corner are connected
_FRAGMENT = 0.2  # of the largest depth of an inside; measured: 0.15 to 0.3 are as good (docs/experiments.md)
# The smallest values that do not split rods, rings and ellipses; on drawn cells slightly better than 1 px without
# smoothing (measured, docs/experiments.md).
_SMOOTH_PX = 1.0  # standard deviation of the smoothing of the distance map
_STANDING_PX = 0.75  # height by which a seed must exceed its surroundings in the distance map


@dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Attributes:
        ids: (H, W) uint32; 0 where there is none, else 1, 2, ... in reading order of their first pixels.
        classes: (objects,) uint8, class index of object 1, 2, ...
    """

    ids: NDArray[np.uint32]
    classes: NDArray[np.uint8]


def refuse_missing(libraries: Mapping[str, str], extra: str) -> None:
    """Raise MissingPackageError if a library for objects is not installed.

    Args:
        libraries: module -> package.
        extra: what brings them, for pip, such as `ubend[objects]`.
    """
    for module, package in libraries.items():
        if find_spec(module) is None:
            line = _("objects need {package}; install it with: pip install '{extra}'")
            raise MissingPackageError(line.format(package=package, extra=extra), key=package)


def contour_class(names: Sequence[str]) -> int | None:
    """The index of the class that separates touching objects, recognised by its name; None: there is none."""
    plain = [name.strip().lower() for name in names]
    return next((plain.index(name) for name in _CONTOURS if name in plain), None)


def choose_method(names: Sequence[str]) -> Method:
    """The default method: `contour` if there is a contour class and one class of objects, otherwise `parts`."""
    return "contour" if contour_class(names) is not None and len(object_classes(names)) == 1 else "parts"


def separate(mask: NDArray[np.uint8], names: Sequence[str], method: Method, min_area: int = 1) -> Objects:
    """Separate the objects of a mask.

    Args:
        mask: (H, W) class index; indices beyond `names` (ignored pixels) belong to no object.
        names: class names.
        method: `parts`: an object is a set of connected pixels of a class, also across corners. `contour`: each region
            inside a contour is an object; contour pixels, and fragments within contours, belong to the nearest one.
            `distance`: touching objects are split into round pieces, by the distance to the border.
        min_area: smaller objects are left out, px.
    Raises:
        SettingError: there is no class of objects; `contour` without a contour class, or with several classes of
            objects.
    """
    if not object_classes(names):
        line = _("no class of objects: each class is background or contour; the classes are: {names}")
        raise SettingError(line.format(names=", ".join(names)), key="classes")
    if method == "contour":
        ids = _grow_into_contour(mask, names)
    else:
        ids = np.zeros(mask.shape, np.int64)
        for index in object_classes(names):
            region = mask == index
            labels = _label(region) if method == "parts" else _split_by_distance(region)
            ids[region] = labels[region] + ids.max()
    return _number(ids, mask, object_classes(names), min_area)


def object_classes(names: Sequence[str]) -> list[int]:
    """The class indices of objects: all except background and contour."""
    beside = (background_class(names), contour_class(names))
    return [index for index in range(len(names)) if index not in beside]


def find_boxes(ids: NDArray[np.uint32]) -> list[tuple[slice, slice]]:
    """The bounding boxes (row and column slices) of object 1, 2, ...; `ids` has no gaps."""
    import scipy

    boxes: list[tuple[slice, slice]] = scipy.ndimage.find_objects(ids.astype(np.int64))
    return boxes


def _label(region: NDArray[np.bool_]) -> NDArray[np.int64]:
    import scipy

    labels: NDArray[np.int64] = scipy.ndimage.label(region, _CORNERS, output=np.int64)[0]
    return labels


def _grow_into_contour(mask: NDArray[np.uint8], names: Sequence[str]) -> NDArray[np.int64]:
    import scipy

    contour, kinds = contour_class(names), object_classes(names)
    if contour is None or len(kinds) != 1:
        raise SettingError(
            _("--method contour needs one class of objects and a class named contour; the classes are: {names}").format(
                names=", ".join(names)
            ),
            key="--method",
        )
    inside, line = mask == kinds[0], mask == contour
    # not connected across corners, so that a contour of one pixel separates
    labels, _count = scipy.ndimage.label(inside, output=np.int64)
    seeds = _without_fragments(labels, _label(inside | line))
    return _watershed(scipy.ndimage.distance_transform_edt(seeds == 0), seeds, inside | line)


def _without_fragments(insides: NDArray[np.int64], regions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Remove insides that are much thinner than the thickest inside of their region; independent of object size."""
    import scipy

    if not insides.any():
        return insides
    # the edge of the image does not count as a border: objects cut by it may be thick
    depth_px = scipy.ndimage.distance_transform_edt(insides > 0)
    ids = np.arange(insides.max() + 1)
    depths, region = scipy.ndimage.maximum(depth_px, insides, ids), scipy.ndimage.maximum(regions, insides, ids)
    deepest = scipy.ndimage.maximum(depth_px, regions, np.arange(regions.max() + 1))
    kept = depths >= _FRAGMENT * deepest[region]
    return np.where(kept[insides], insides, 0)


def _split_by_distance(region: NDArray[np.bool_]) -> NDArray[np.int64]:
    import scipy
    from skimage.morphology import local_maxima, reconstruction

    depth_px = scipy.ndimage.distance_transform_edt(np.pad(region, 1))[
        1:-1, 1:-1
    ]  # the edge of the image is a border, too
    depth_px = scipy.ndimage.gaussian_filter(depth_px, _SMOOTH_PX) * region
    # Maxima are cut off at `_STANDING_PX` below their top, which gives plateaus. skimage's h_maxima marks only the
    # highest pixels, so a rod, whose ridge has many of them, would be split into many pieces.
    cut = reconstruction(depth_px - _STANDING_PX, depth_px, footprint=_CORNERS)
    seeds = _label(local_maxima(cut, connectivity=2) & region)
    # connected regions without a seed are objects, too
    parts = _label(region)
    lone = ~np.isin(parts, np.unique(parts[seeds > 0])) & region
    seeds[lone] = parts[lone] + seeds.max()
    return _watershed(-depth_px, seeds, region)


def _watershed(height: NDArray[np.float64], seeds: NDArray[np.int64], region: NDArray[np.bool_]) -> NDArray[np.int64]:
    from skimage.segmentation import watershed

    basins: NDArray[np.int64] = watershed(height, seeds, connectivity=_CORNERS, mask=region)
    return basins


def _number(labels: NDArray[np.int64], mask: NDArray[np.uint8], kinds: Sequence[int], min_area: int) -> Objects:
    """Number the objects in reading order, without small ones; an object's class is that of most of its pixels."""
    old_ids, first, place, areas = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    kept = (old_ids > 0) & (areas >= min_area)
    order = np.flatnonzero(kept)[np.argsort(first[kept], kind="stable")]
    new_ids = np.zeros(len(old_ids), np.uint32)
    new_ids[order] = np.arange(1, len(order) + 1)
    ids = new_ids[place].reshape(labels.shape)
    votes = np.stack([np.bincount(ids[mask == index], minlength=len(order) + 1) for index in kinds])
    return Objects(ids, np.array(kinds, np.uint8)[votes.argmax(axis=0)][1:])
