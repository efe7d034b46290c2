"""Thresholds of the light: one for the image, several, or one that follows the light around each pixel.

Segments are levels, numbered from dark to light. Which level is which class is learnt (`rule.py`): the training split
so chooses the side on which the objects lie.
"""

import numpy as np
from numpy.typing import NDArray

from ubend_lessons.baselines.pixels import Pixels, blur

_BINS = 64  # of the histogram for several thresholds, whose time grows with a power of it


def threshold_globally(pixels: Pixels, levels: int, blur_px: float) -> NDArray[np.intp]:
    """Levels with the least variance inside them, for the whole image.

    Args:
        levels: 2 (`otsu`), or more (`multi-otsu`).
        blur_px: the light is blurred before, px at `SIDE_PX`.
    Returns:
        (h, w) 0 darkest .. levels - 1 lightest; an image of fewer greys has fewer levels, a flat one only 0.
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
    """1 where a pixel is lighter than the Gaussian mean around it by more than `offset`, else 0.

    Args:
        window_px: side of the window, px at `SIDE_PX`; its Gaussian has a sixth of it as deviation.
        offset: of light, 0..1; below 0 only what is darker than its surroundings by so much is left out.
    Source: Bradley & Roth 2007, Journal of Graphics Tools 12(2), with scikit-image's Gaussian instead of the plain
        mean and a fixed offset instead of a share.
    """
    from skimage.filters import threshold_local

    window = 2 * round(window_px * pixels.unit_px / 2) + 1
    around = threshold_local(pixels.light, max(3, window), method="gaussian", mode="nearest")
    return np.asarray(pixels.light > around + offset, np.intp)
