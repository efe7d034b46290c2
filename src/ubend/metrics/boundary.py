"""How far apart two outlines are: counts and distances -> boundary F1, Hausdorff distance, surface distance.

The outline of a class is its pixels with a pixel of something else above, below, left or right of them. What lies
outside the image is something else, and so are pixels that are not scored, in truth and prediction alike. Distances
are between the middles of pixels.

A class in neither truth nor prediction is undefined (NaN) for that image. In one of the two, its boundary F1 is 0
and its distances are the diagonal of the image, more than any two of its pixels are apart: left out, they would make
a model better that finds nothing where it is hard. H x W pixels of an image, C classes.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from ubend.labels.class_table import IGNORED

TOLERANCE_PX = 2.0  # of the boundary F1; two people who outline one object differ by about as much
_PERCENTILE = 95.0  # of the Hausdorff distance
_BLOCK_PX = 2**22  # that are looked at at once: beyond them, memory grows with the outlines only
_DENSE = 4  # px of area per px of outline; below, distance maps are faster: measured on noise of 352 px, one CPU core


class BoundaryCounts(NamedTuple):
    """What the measures are made of, for each class of one image, or of several: the arrays stacked.

    Attributes:
        truth, predicted: (..., C) int64 pixels of the outline.
        truth_near, predicted_near: (..., C) int64 those of them within the tolerance of the other outline.
        distances: (..., C) float64 sum of the distances of all pixels of both outlines to the other outline.
        hausdorff: (..., C) float64 the larger of the 95th percentiles of the two outlines' distances; NaN in neither.
    """

    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    truth_near: NDArray[np.int64]
    predicted_near: NDArray[np.int64]
    distances: NDArray[np.float64]
    hausdorff: NDArray[np.float64]


def count_boundaries(
    pred: NDArray[np.integer[Any]],
    target: NDArray[np.integer[Any]],
    classes: int,
    tolerance_px: float = TOLERANCE_PX,
    spacing: tuple[float, float] = (1.0, 1.0),
) -> BoundaryCounts:
    """Counts and distances of one image.

    Args:
        pred: (H, W) class index in [0, classes).
        target: (H, W) class index in [0, classes), or IGNORED: not scored, whatever `pred` says.
        classes: C, at most 255.
        tolerance_px: distance in px at which outlines agree.
        spacing: height and width of a pixel in the unit of the distances.
    Raises:
        ValueError: shapes differ, or are not (H, W).
    """
    if pred.shape != target.shape or pred.ndim != 2:
        raise ValueError(f"pred has the shape {pred.shape}, target {target.shape}; they must be equal, and (H, W)")
    true, found = (_split_outline(labels, target, classes) for labels in (target, pred))
    diagonal = float(np.hypot(pred.shape[0] * spacing[0], pred.shape[1] * spacing[1]))
    near, distances, hausdorff = np.zeros((2, classes), np.int64), np.zeros(classes), np.full(classes, np.nan)
    for index, (a, b) in enumerate(zip(true, found, strict=True)):
        if len(a) and len(b):
            both = _distances(a, b, (1.0, 1.0))
            near[:, index] = [(some <= tolerance_px).sum() for some in both]
            if spacing != (1.0, 1.0):
                both = _distances(a, b, spacing)
            distances[index] = sum(float(some.sum()) for some in both)
            hausdorff[index] = max(float(np.percentile(some, _PERCENTILE)) for some in both)
        elif len(a) or len(b):
            distances[index], hausdorff[index] = diagonal * (len(a) + len(b)), diagonal
    sizes = np.array([[len(points) for points in points_of] for points_of in (true, found)], np.int64)
    return BoundaryCounts(sizes[0], sizes[1], near[0], near[1], distances, hausdorff)


def boundary_f1(counts: BoundaryCounts) -> NDArray[np.float64]:
    """(..., C) harmonic mean of the shares of both outlines that lie within the tolerance of the other, 0..1.

    Source: Csurka et al. 2013, What is a good evaluation measure for semantic segmentation?, BMVC.
    """
    precision, recall = _divide(counts.predicted_near, counts.predicted), _divide(counts.truth_near, counts.truth)
    f1 = np.nan_to_num(_divide(2 * precision * recall, np.nan_to_num(precision + recall)))
    return np.where(counts.truth + counts.predicted > 0, f1, np.nan)


def surface_distance(counts: BoundaryCounts) -> NDArray[np.float64]:
    """(..., C) average symmetric surface distance: the mean distance of all pixels of both outlines to the other."""
    return _divide(counts.distances, counts.truth + counts.predicted)


def in_one_of_two(counts: BoundaryCounts) -> NDArray[np.bool_]:
    """(..., C) whether the class is in the truth or in the prediction but not in both."""
    return np.not_equal(counts.truth > 0, counts.predicted > 0)


def _divide(above: NDArray[Any], below: NDArray[Any]) -> NDArray[np.float64]:
    out = np.full(np.shape(below), np.nan)
    np.divide(above, below, out=out, where=below != 0)
    return out


def _distances(
    a: NDArray[np.int64], b: NDArray[np.int64], spacing: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) and (m,) distances of the points of each of two outlines to the other."""
    corner = np.minimum(a.min(axis=0), b.min(axis=0))
    shape = np.maximum(a.max(axis=0), b.max(axis=0)) - corner + 1
    if shape.prod() <= min(_BLOCK_PX, _DENSE * (len(a) + len(b))):
        maps = []
        for points in (b, a):
            away = np.ones(shape, bool)
            away[tuple((points - corner).T)] = False
            maps.append(ndimage.distance_transform_edt(away, sampling=spacing))
        return maps[0][tuple((a - corner).T)], maps[1][tuple((b - corner).T)]
    # work and memory of a tree grow with the outline, those of a distance map with the image
    trees = [cKDTree(points * np.array(spacing), compact_nodes=False, balanced_tree=False) for points in (a, b)]
    return trees[1].query(trees[0].data)[0], trees[0].query(trees[1].data)[0]


def _split_outline(
    labels: NDArray[np.integer[Any]], target: NDArray[np.integer[Any]], classes: int
) -> list[NDArray[np.int64]]:
    """(n, 2) row and column of the outline's pixels, of each class."""
    height, width = labels.shape
    points, kinds = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.int64)]
    step = max(1, _BLOCK_PX // max(1, width))
    for start in range(0, height, step):
        rows = slice(max(0, start - 1), start + step + 1)
        block = np.where(target[rows] == IGNORED, IGNORED, labels[rows]).astype(np.uint8)
        padding = (int(start == 0), int(start + step >= height)), (1, 1)
        padded = np.pad(block, padding, constant_values=IGNORED)
        inner = padded[1:-1, 1:-1]
        edge = (inner != padded[:-2, 1:-1]) | (inner != padded[2:, 1:-1])
        edge |= (inner != padded[1:-1, :-2]) | (inner != padded[1:-1, 2:])
        edge &= inner != IGNORED
        points.append(np.argwhere(edge) + np.array([start, 0]))
        kinds.append(inner[edge].astype(np.int64))
    kind = np.concatenate(kinds)
    order = np.argsort(kind, kind="stable")
    ends = np.searchsorted(kind[order], np.arange(classes + 1))
    ordered = np.concatenate(points)[order]
    return [ordered[begin:end] for begin, end in pairwise(ends)]
