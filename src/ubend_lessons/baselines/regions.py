"""Segmentation into regions of connected, similar pixels, by colour, texture, or both.

Each function returns (h, w) numbers of the regions, 0, 1, ...; classes are assigned by their descriptors
(`segments.py`). Lengths are px at `SIDE_PX`.
"""

import numpy as np
import scipy
from numpy.typing import NDArray

from ubend_lessons.baselines.clusters import one_thread
from ubend_lessons.baselines.pixels import By, Maps, Pixels, blur

_MAX_SEEDS = 64  # of an image
_GRID = 2  # only every second row and column is used, after a blur: a quarter of the time
_LEFT = 0.02  # growing ends if at most this share of the image is left; these pixels go to the nearest regions
_SMALLEST_PX = 6.0  # side of a square with the area of the smallest region of Felzenszwalb's method
_SLIC_ITERATIONS = 5  # measured on the drawn sample: ten give no more homogeneous superpixels (0.0118, 0.0116)


def grow_regions(pixels: Pixels, by: By, tolerance: float) -> NDArray[np.intp]:
    """Seeded region growing, until nearly all pixels belong to a region.

    Each seed is the remaining pixel with the smallest gradient; its region consists of all connected pixels that differ
    from it by less than `tolerance` (features are 0..1).

    Source: Adams & Bischof 1994, IEEE PAMI 16(6). There, regions grow simultaneously and pixels are compared with their
        means; here, regions grow one after the other and pixels are compared with seeds, by scikit-image's `flood`.
    """
    from skimage.segmentation import flood

    whole = pixels.maps(by)
    maps = blur(whole, pixels.unit_px)[::_GRID, ::_GRID]
    slope = _slope(maps)
    found = np.full(slope.shape, -1, np.intp)
    for index in range(_MAX_SEEDS):
        left = found < 0
        if left.sum() <= _LEFT * left.size:
            break
        seed = np.unravel_index(np.where(left, slope, np.inf).argmin(), slope.shape)
        far = np.where(left, np.linalg.norm(maps - maps[seed], axis=2), np.inf)
        found[flood(far, seed, tolerance=tolerance)] = index
    rows, columns = (np.arange(side) // _GRID for side in whole.shape[:2])
    return _to_nearest(found)[rows[:, None], columns]


def flood_basins(pixels: Pixels, by: By, blur_px: float) -> NDArray[np.intp]:
    """Watershed of the gradient of the feature maps: a basin around each flat area; more blur gives fewer basins.

    Source: Vincent & Soille 1991, IEEE PAMI 13(6); Meyer 1991, as in scikit-image.
    """
    from skimage.segmentation import watershed

    found = watershed(_slope(blur(pixels.maps(by), blur_px * pixels.unit_px)))
    return np.maximum(np.asarray(found, np.intp) - 1, 0)  # a flat image has no basin: 0 everywhere


def merge_graph(pixels: Pixels, by: By, scale: float) -> NDArray[np.intp]:
    """Felzenszwalb's method: regions are merged if the difference between them is small compared with the differences
    inside them; a larger `scale` gives larger regions.

    Source: Felzenszwalb & Huttenlocher 2004, IJCV 59(2).
    """
    from skimage.segmentation import felzenszwalb

    unit_px = pixels.unit_px
    minimum = max(1, round((_SMALLEST_PX * unit_px) ** 2))
    maps = _main_axes(pixels.maps(by), 3)  # scikit-image warns about more than three channels
    found = felzenszwalb(maps, scale * unit_px**2, 0.8 * unit_px, minimum, channel_axis=2)
    return np.asarray(found, np.intp)


def merge_superpixels(pixels: Pixels, by: By, superpixels: int, step: float) -> NDArray[np.intp]:
    """SLIC superpixels; neighbours whose mean features differ by less than `step` are merged.

    Source: Achanta et al. 2012, IEEE PAMI 34(11); merging as by a cut of the region adjacency graph, Trémeau &
        Colantoni 2000, IEEE TIP 9(4).
    """
    from skimage.segmentation import slic

    maps = pixels.maps(by)
    with one_thread():
        found = np.asarray(
            slic(
                maps,
                superpixels,
                compactness=0.1,
                max_num_iter=_SLIC_ITERATIONS,
                convert2lab=False,
                start_label=0,
                channel_axis=2,
            ),
            np.intp,
        )
    return _join_alike(found, maps, step)


def _join_alike(regions: NDArray[np.intp], maps: Maps, step: float) -> NDArray[np.intp]:
    """Merge neighbouring regions whose means differ by less than `step`."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count, flat = int(regions.max()) + 1, maps.reshape(-1, maps.shape[2])
    sums = [np.bincount(regions.reshape(-1), channel, count) for channel in flat.T]
    means = np.stack(sums, axis=1) / np.bincount(regions.reshape(-1), minlength=count).clip(1)[:, None]
    sides = [(regions[1:], regions[:-1]), (regions[:, 1:], regions[:, :-1])]
    one, other = (np.concatenate([side[place].reshape(-1) for side in sides]) for place in (0, 1))
    alike = (one != other) & (np.linalg.norm(means[one] - means[other], axis=1) < step)
    links = coo_array((np.ones(int(alike.sum())), (one[alike], other[alike])), shape=(count, count))
    _count, joined = connected_components(links, directed=False)
    return np.asarray(joined, np.intp)[regions]


def _main_axes(maps: Maps, count: int) -> Maps:
    """(h, w, F) -> (h, w, count) principal components; distances hardly change."""
    if maps.shape[2] <= count:
        return maps
    flat = maps.reshape(-1, maps.shape[2])
    _sizes, axes = np.linalg.eigh(np.cov(flat, rowvar=False))  # ascending
    return np.asarray(maps @ axes[:, -count:].astype(np.float32))


def _slope(maps: Maps) -> Maps:
    """(h, w) magnitude of the gradient over all feature maps (Sobel)."""
    steps = [scipy.ndimage.sobel(maps, axis, mode="nearest") for axis in (0, 1)]
    return np.asarray(np.sqrt(sum((step**2).sum(axis=2) for step in steps)), np.float32)


def _to_nearest(regions: NDArray[np.intp]) -> NDArray[np.intp]:
    """Assign pixels without a region (-1) to the region of the nearest pixel that has one."""
    rows, columns = scipy.ndimage.distance_transform_edt(regions < 0, return_distances=False, return_indices=True)
    return np.asarray(regions[rows, columns])
