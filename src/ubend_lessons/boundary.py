"""How well outlines agree. H x W pixels of an image, C classes.

Source: surface Dice at a tolerance, Nikolov et al. 2018, arXiv:1809.04430, of pixels.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ubend.labels.class_table import IGNORED


def boundary_dice(
    mask: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int, tolerance_px: float = 2.0
) -> NDArray[np.float64]:
    """Share of both outlines' pixels that lie within a tolerance of the other outline, for each class.

    An outline is the pixels of a class beside a pixel of another; the image's rim is none, and neither is the rim of
    ignored pixels.

    Args:
        mask: (H, W) class index.
        truth: (H, W) class index or IGNORED.
        classes: C.
        tolerance_px: distance between pixels' middles that counts as none.
    Returns:
        (C,) 0..1; NaN where neither has an outline.
    """
    known = truth != IGNORED
    return np.array(
        [_agreement(_outline(mask == c, known), _outline(truth == c, known), tolerance_px) for c in range(classes)]
    )


def _outline(there: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    inner: NDArray[np.bool_] = ndimage.binary_erosion(there | ~known, border_value=1)
    outline: NDArray[np.bool_] = there & known & ~inner
    return outline


def _agreement(a: NDArray[np.bool_], b: NDArray[np.bool_], tolerance_px: float) -> float:
    total = int(a.sum()) + int(b.sum())
    if total == 0:
        return float("nan")
    if not a.any() or not b.any():
        return 0.0
    near = [ndimage.distance_transform_edt(~other)[own] <= tolerance_px for own, other in ((a, b), (b, a))]
    return float(sum(int(some.sum()) for some in near)) / total
