"""Boundary scores: boundary F1, Hausdorff distance and surface distance of the outlines of true and predicted masks.

The outline of a class consists of its pixels that have a pixel of another class above, below, left or right. Pixels
outside the image, and pixels that are not scored, count as another class, in truth and prediction alike. Distances are
measured between pixel centres.

A class that is in neither truth nor prediction is undefined (NaN) for that image. If it is in only one of the two, its
boundary F1 is 0 and its distances are the diagonal of the image, which is more than any distance between two pixels. If
such images were left out instead, a model could improve its score by predicting nothing in difficult images. H x W
pixels of an image, C classes.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from ubend.labels.class_table import IGNORED
from ubend.metrics.summary import divide

TOLERANCE_PX = 2.0  # of the boundary F1; outlines of one object by two people differ by about this distance
_PERCENTILE = 95.0  # of the Hausdorff distance
_BLOCK_PX = 2**22  # pixels processed at once; for larger images, memory grows only with the length of the outlines
# With at most so many px of area per px of outline a distance map is faster than a k-d tree. Measured on noise, 352 px,
# one CPU core.
_MAX_AREA_PER_OUTLINE_PX = 4


class BoundaryCounts(NamedTuple):
    """The counts and distances of each class from which boundary scores are computed.

    Of one image, or of several with stacked arrays.

    Attributes:
        truth_px, predicted_px: (..., C) int64 number of pixels of the outline.
        truth_near, predicted_near: (..., C) int64 number of these pixels within the tolerance of the other outline.
        distance_sum: (..., C) float64 sum of the distances of all pixels of both outlines to the other outline.
        hausdorff_95: (..., C) float64 the larger of the 95th percentiles of the two outlines' distances; NaN if the
            class is in neither.
    """

    truth_px: NDArray[np.int64]
    predicted_px: NDArray[np.int64]
    truth_near: NDArray[np.int64]
    predicted_near: NDArray[np.int64]
    distance_sum: NDArray[np.float64]
    hausdorff_95: NDArray[np.float64]


def count_boundaries(
    pred: NDArray[np.integer[Any]],
    target: NDArray[np.integer[Any]],
    classes: int,
    tolerance_px: float = TOLERANCE_PX,
    spacing: tuple[float, float] = (1.0, 1.0),
) -> BoundaryCounts:
    """The counts and distances of one image.

    Args:
        pred: (H, W) class index in [0, classes).
        target: (H, W) class index in [0, classes), or IGNORED: not scored, whatever `pred` says.
        classes: C, at most 255.
        tolerance_px: largest distance at which outlines agree; in px, also with `spacing`.
        spacing: height and width of a pixel in the unit of the distances.
    Raises:
        ValueError: shapes differ, or are not (H, W).
    """
    if pred.shape != target.shape or pred.ndim != 2:
        raise ValueError(f"pred has the shape {pred.shape}, target {target.shape}; they must be equal, and (H, W)")
    true, predicted = (_split_outline(labels, target, classes) for labels in (target, pred))
    diagonal = float(np.hypot(pred.shape[0] * spacing[0], pred.shape[1] * spacing[1]))
    near, distances, hausdorff = np.zeros((2, classes), np.int64), np.zeros(classes), np.full(classes, np.nan)
    for index, (a, b) in enumerate(zip(true, predicted, strict=True)):
        if len(a) and len(b):
            both = _distances(a, b, (1.0, 1.0))
            near[:, index] = [(distances_px <= tolerance_px).sum() for distances_px in both]
            if spacing != (1.0, 1.0):
                both = _distances(a, b, spacing)
            distances[index] = sum(float(distances_px.sum()) for distances_px in both)
            hausdorff[index] = max(float(np.percentile(distances_px, _PERCENTILE)) for distances_px in both)
        elif len(a) or len(b):
            distances[index], hausdorff[index] = diagonal * (len(a) + len(b)), diagonal
    sizes = np.array([[len(points) for points in points_of] for points_of in (true, predicted)], np.int64)
    return BoundaryCounts(sizes[0], sizes[1], near[0], near[1], distances, hausdorff)


def boundary_f1(counts: BoundaryCounts) -> NDArray[np.float64]:
    """(..., C) boundary F1: the harmonic mean of the shares of each outline within the tolerance of the other, 0..1.

    Source: Csurka et al. 2013, What is a good evaluation measure for semantic segmentation?, BMVC.
    """
    precision, recall = divide(counts.predicted_near, counts.predicted_px), divide(counts.truth_near, counts.truth_px)
    f1 = np.nan_to_num(divide(2 * precision * recall, np.nan_to_num(precision + recall)))
    return np.where(counts.truth_px + counts.predicted_px > 0, f1, np.nan)


def surface_distance(counts: BoundaryCounts) -> NDArray[np.float64]:
    """(..., C) average symmetric surface distance: the mean distance of all pixels of both outlines to the other."""
    return divide(counts.distance_sum, counts.truth_px + counts.predicted_px)


def in_truth_xor_prediction(counts: BoundaryCounts) -> NDArray[np.bool_]:
    """(..., C) whether the class is in only one of truth and prediction."""
    return np.not_equal(counts.truth_px > 0, counts.predicted_px > 0)


def _distances(
    a: NDArray[np.int64], b: NDArray[np.int64], spacing: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) and (m,) distances from each point of an outline to the other outline."""
    corner = np.minimum(a.min(axis=0), b.min(axis=0))
    shape = np.maximum(a.max(axis=0), b.max(axis=0)) - corner + 1
    if shape.prod() <= min(_BLOCK_PX, _MAX_AREA_PER_OUTLINE_PX * (len(a) + len(b))):
        maps = []
        for points in (b, a):
            away = np.ones(shape, bool)
            away[tuple((points - corner).T)] = False
            maps.append(scipy.ndimage.distance_transform_edt(away, sampling=spacing))
        return maps[0][tuple((a - corner).T)], maps[1][tuple((b - corner).T)]
    from scipy.spatial import cKDTree  # its import takes .1 s or more, which the start of a training need not wait for

    # time and memory of a tree depend on the length of the outline, those of a distance map on the area
    trees = [cKDTree(points * np.array(spacing), compact_nodes=False, balanced_tree=False) for points in (a, b)]
    return trees[1].query(trees[0].data)[0], trees[0].query(trees[1].data)[0]


def _split_outline(
    labels: NDArray[np.integer[Any]], target: NDArray[np.integer[Any]], classes: int
) -> list[NDArray[np.int64]]:
    """(n, 2) row and column of the pixels of each class's outline."""
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
