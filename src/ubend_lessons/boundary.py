"""Boundary Dice: how well the outlines of two masks agree. H x W pixels of an image, C classes.

Source: surface Dice at a tolerance, Nikolov et al. 2018, arXiv:1809.04430, here of pixels.
"""

import numpy as np
import scipy
from numpy.typing import NDArray

from ubend.labels.class_table import IGNORED


def boundary_dice(
    mask: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int, tolerance_px: float = 2.0
) -> NDArray[np.float64]:
    """For each class, the share of the pixels of both outlines that are within a tolerance of the other outline.

    An outline consists of the pixels of a class next to a pixel of another class. The outside of the image and ignored
    pixels do not count as another class.

    Args:
        mask: (H, W) class index.
        truth: (H, W) class index or IGNORED.
        classes: C.
        tolerance_px: largest distance between pixel centres at which outlines agree.
    Returns:
        (C,) 0..1; NaN if neither has an outline.
    """
    known = truth != IGNORED
    return np.array(
        [_agreement(_outline(mask == c, known), _outline(truth == c, known), tolerance_px) for c in range(classes)]
    )


def _outline(there: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    inner: NDArray[np.bool_] = scipy.ndimage.binary_erosion(there | ~known, border_value=1)
    outline: NDArray[np.bool_] = there & known & ~inner
    return outline


def _agreement(a: NDArray[np.bool_], b: NDArray[np.bool_], tolerance_px: float) -> float:
    total = int(a.sum()) + int(b.sum())
    if total == 0:
        return float("nan")
    if not a.any() or not b.any():
        return 0.0
    near = [scipy.ndimage.distance_transform_edt(~other)[own] <= tolerance_px for own, other in ((a, b), (b, a))]
    return float(sum(int(some.sum()) for some in near)) / total
