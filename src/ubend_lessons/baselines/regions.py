"""Regions of pixels that lie together and are alike, by colour, by texture, or by both.

Each function gives (h, w) numbers of the regions, 0, 1, ...; which are which class is learnt from what they look like
(`segments.py`). Lengths are px at `SIDE_PX`.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ubend_lessons.baselines.clusters import one_thread
from ubend_lessons.baselines.pixels import By, Maps, Pixels, blur

_MAX_SEEDS = 64  # of an image
_GRID = 2  # only every second row and column grows, after a blur: a quarter of the time
_LEFT = 0.02  # share of an image that may be left when growing ends; it goes to the nearest regions
_SMALLEST_PX = 6.0  # side of a square that holds as many pixels as the smallest region of Felzenszwalb's
_SLIC_ITERATIONS = 5  # measured on the drawn sample: superpixels of ten are no more alike inside (.0118, .0116)


def grow_regions(pixels: Pixels, by: By, tolerance: float) -> NDArray[np.intp]:
    """Seeded region growing: from the flattest pixel that is left, over all connected ones that differ by less than
    `tolerance` (of the maps, 0..1) from it; until nearly all are taken.

    Source: Adams & Bischof 1994, IEEE PAMI 16(6), whose regions grow side by side and compare with their means; here
        one after the other and with their seeds, by scikit-image's `flood`.
    """
    from skimage.segmentation import flood

    whole = pixels.maps(by)
    maps = blur(whole, pixels.unit_px)[::_GRID, ::_GRID]
    slope = _slope(maps)
    found = np.full(slope.shape, -1, np.intp)
    for number in range(_MAX_SEEDS):
        left = found < 0
        if left.sum() <= _LEFT * left.size:
            break
        seed = np.unravel_index(np.where(left, slope, np.inf).argmin(), slope.shape)
        far = np.where(left, np.linalg.norm(maps - maps[seed], axis=2), np.inf)
        found[flood(far, seed, tolerance=tolerance)] = number
    rows, columns = (np.arange(side) // _GRID for side in whole.shape[:2])
    return _to_nearest(found)[rows[:, None], columns]


def flood_basins(pixels: Pixels, by: By, blur_px: float) -> NDArray[np.intp]:
    """Watershed of the slope of the maps: a basin around each flat place; more blur, fewer basins.

    Source: Vincent & Soille 1991, IEEE PAMI 13(6); Meyer 1991, as in scikit-image.
    """
    from skimage.segmentation import watershed

    found = watershed(_slope(blur(pixels.maps(by), blur_px * pixels.unit_px)))
    return np.maximum(np.asarray(found, np.intp) - 1, 0)  # a flat image has no basin: 0 everywhere


def merge_graph(pixels: Pixels, by: By, scale: float) -> NDArray[np.intp]:
    """Felzenszwalb's: regions are joined where the step between them is small against the steps inside them; the
    larger `scale`, the larger regions.

    Source: Felzenszwalb & Huttenlocher 2004, IJCV 59(2).
    """
    from skimage.segmentation import felzenszwalb

    unit_px = pixels.unit_px
    minimum = max(1, round((_SMALLEST_PX * unit_px) ** 2))
    maps = _main_axes(pixels.maps(by), 3)  # of more channels than three scikit-image warns
    found = felzenszwalb(maps, scale * unit_px**2, 0.8 * unit_px, minimum, channel_axis=2)
    return np.asarray(found, np.intp)


def merge_superpixels(pixels: Pixels, by: By, superpixels: int, step: float) -> NDArray[np.intp]:
    """SLIC's superpixels; then neighbours whose mean maps differ by less than `step` are joined.

    Source: Achanta et al. 2012, IEEE PAMI 34(11); joined as by a cut of the region adjacency graph, Trémeau &
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
    """Neighbouring regions become one where their means differ by less than `step`."""
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
    """(h, w, F) -> (h, w, count) along the axes of the greatest spread; distances hardly change."""
    if maps.shape[2] <= count:
        return maps
    flat = maps.reshape(-1, maps.shape[2])
    _sizes, axes = np.linalg.eigh(np.cov(flat, rowvar=False))  # ascending
    return np.asarray(maps @ axes[:, -count:].astype(np.float32))


def _slope(maps: Maps) -> Maps:
    """(h, w) length of the gradient over all maps (Sobel's)."""
    steps = [ndimage.sobel(maps, axis, mode="nearest") for axis in (0, 1)]
    return np.asarray(np.sqrt(sum((step**2).sum(axis=2) for step in steps)), np.float32)


def _to_nearest(regions: NDArray[np.intp]) -> NDArray[np.intp]:
    """Pixels without a region (-1) get that of the nearest pixel which has one."""
    rows, columns = ndimage.distance_transform_edt(regions < 0, return_distances=False, return_indices=True)
    return np.asarray(regions[rows, columns])
