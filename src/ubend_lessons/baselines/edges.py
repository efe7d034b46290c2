"""Segmentation by edges, which are closed to outlines and filled."""

import numpy as np
import scipy
from numpy.typing import NDArray

from ubend_lessons.baselines.pixels import Pixels

_WEAK = 2  # share of weak edges / share of strong ones; weak edges count if they touch a strong one (hysteresis)
_CORNERS = np.ones((3, 3), bool)


def fill_edges(pixels: Pixels, sigma_px: float, share: float, close_px: float) -> NDArray[np.intp]:
    """Find edges by Canny's method, close gaps, and fill the areas that they enclose.

    Args:
        pixels: the image.
        sigma_px: standard deviation of the Gaussian before the gradient, px at `SIDE_PX`.
        share: share of the pixels whose gradient is above the strong threshold, 0..1.
        close_px: gaps of up to twice this width are closed, px at `SIDE_PX`. The edge of the image does not close an
            outline: areas cut by it are not filled.
    Returns:
        (h, w) 0 outside, 1 inside an outline, 2 on an edge. The learned rule gives each a class; so an edge can be the
        class between touching objects.
    Source: Canny 1986, IEEE PAMI 8(6), as in scikit-image.
    """
    from skimage.feature import canny

    weak, strong = max(0.0, 1 - _WEAK * share), 1 - share
    edges = canny(
        pixels.light, sigma_px * pixels.unit_px, low_threshold=weak, high_threshold=strong, use_quantiles=True
    )
    reach = max(1, round(close_px * pixels.unit_px))
    around = np.pad(edges, reach)
    closed = scipy.ndimage.binary_closing(around, _CORNERS, iterations=reach)[reach:-reach, reach:-reach]
    filled = scipy.ndimage.binary_fill_holes(closed)
    found: NDArray[np.intp] = filled.astype(np.intp)
    found[edges] = 2
    return found
