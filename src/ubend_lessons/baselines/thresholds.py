"""Segmentation by thresholds of the brightness: one or several for the image, or one that adapts to the surroundings.

Segments are levels, numbered from dark to light. Which level is which class is learned (`rule.py`), so the training
split decides whether objects are dark or light.
"""

import numpy as np
from numpy.typing import NDArray

from ubend_lessons.baselines.pixels import Pixels, blur

_BINS = 64  # of the histogram for several thresholds; the time grows with a power of this number


def threshold_globally(pixels: Pixels, levels: int, blur_px: float) -> NDArray[np.intp]:
    """Thresholds for the whole image that minimise the variance within the levels.

    Args:
        pixels: the image.
        levels: 2 (`otsu`), or more (`multi-otsu`).
        blur_px: standard deviation of the blur before, px at `SIDE_PX`.
    Returns:
        (h, w) 0 (darkest) .. levels - 1 (lightest); an image with fewer grey values has fewer levels, a constant one
        only 0.
    Source: Otsu 1979, IEEE SMC 9(1); several thresholds, Liao, Chen & Chung 2001, JISE 17(5).
    """
    from skimage.filters import threshold_multiotsu, threshold_otsu

    light = blur(pixels.light, blur_px * pixels.unit_px)
    counts, edges = np.histogram(light, _BINS)
    levels = min(levels, int(np.count_nonzero(counts)))
    if levels < 2:
        return np.zeros(light.shape, np.intp)
    if levels == 2:
        limits = np.array([threshold_otsu(light)])
    else:
        limits = threshold_multiotsu(classes=levels, hist=(counts, (edges[:-1] + edges[1:]) / 2))
    return np.searchsorted(limits, light)


def threshold_locally(pixels: Pixels, window_px: float, offset: float) -> NDArray[np.intp]:
    """1 where a pixel is brighter than the Gaussian mean around it plus `offset`, else 0.

    Args:
        pixels: the image.
        window_px: side of the window, px at `SIDE_PX`; the standard deviation of the Gaussian is a sixth of it.
        offset: difference of brightness, -1..1.
    Source: Bradley & Roth 2007, Journal of Graphics Tools 12(2), with scikit-image's Gaussian instead of the plain mean
        and a fixed offset instead of a relative one.
    """
    from skimage.filters import threshold_local

    window = 2 * round(window_px * pixels.unit_px / 2) + 1
    around = threshold_local(pixels.light, max(3, window), method="gaussian", mode="nearest")
    return np.asarray(pixels.light > around + offset, np.intp)
