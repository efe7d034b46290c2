"""Edges that are closed to outlines and filled."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ubend_lessons.baselines.pixels import Pixels

_WEAK = 2  # times the share of strong edges: these count where they touch a strong one (hysteresis)
_CORNERS = np.ones((3, 3), bool)


def fill_edges(pixels: Pixels, sigma_px: float, share: float, close_px: float) -> NDArray[np.intp]:
    """Canny's edges; gaps are closed; what they surround is filled.

    Args:
        sigma_px: deviation of the Gaussian before the gradient, px at `SIDE_PX`.
        share: of the pixels whose gradient is above the strong threshold, 0..1.
        close_px: gaps up to twice so wide are closed, px at `SIDE_PX`. The frame of the image closes nothing: what it
            cuts is not filled.
    Returns:
        (h, w) 0 outside, 1 inside an outline, 2 on an edge. The learnt rule says which is which class; an edge may so
        be the class between touching objects.
    Source: Canny 1986, IEEE PAMI 8(6), as in scikit-image.
    """
    from skimage.feature import canny

    weak, strong = max(0.0, 1 - _WEAK * share), 1 - share
    edges = canny(
        pixels.light, sigma_px * pixels.unit_px, low_threshold=weak, high_threshold=strong, use_quantiles=True
    )
    reach = max(1, round(close_px * pixels.unit_px))
    around = np.pad(edges, reach)
    closed = ndimage.binary_closing(around, _CORNERS, iterations=reach)[reach:-reach, reach:-reach]
    filled = ndimage.binary_fill_holes(closed)
    found: NDArray[np.intp] = filled.astype(np.intp)
    found[edges] = 2
    return found
