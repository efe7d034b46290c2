"""Connected regions of equal values, by runs: stretches of equal values within a row, joined from row to row."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def label_regions(values: NDArray[Any], *, corners: bool) -> tuple[NDArray[np.int32], NDArray[Any]]:
    """The connected regions of equal values, numbered by value, and those of one value by their first pixel.

    Args:
        values: (H, W).
        corners: whether pixels that touch only at a corner are connected: 8-connectivity, otherwise 4-connectivity.
    Returns:
        ((H, W) index of the region of each pixel, (regions,) value of each region).
    """
    height, width = values.shape
    begins = np.empty(values.shape, bool)
    begins[:, :1] = True
    np.not_equal(values[:, 1:], values[:, :-1], out=begins[:, 1:])
    first = np.flatnonzero(begins)
    length = np.diff(first, append=height * width)
    value = values.reshape(-1)[first]
    root = _join(len(first), *_touching_runs(first + first // max(1, width), length, value, width + 1, corners))
    roots = np.flatnonzero(root == np.arange(len(root)))
    order = roots[np.argsort(value[roots], kind="stable")]
    new_index = np.empty(len(root), np.int32)
    new_index[order] = np.arange(len(order), dtype=np.int32)
    return np.repeat(new_index[root], length).reshape(values.shape), value[order]


def _touching_runs(
    start: NDArray[np.int64], length: NDArray[np.int64], value: NDArray[Any], stride: int, corners: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(upper, lower) indices of all runs of equal value that touch a run of the next row.

    Args:
        start, length, value: (runs,) of each run, in the order of the pixels; the rows begin `stride` apart, one more
            than they are wide, so that the end of a row does not touch the start of the next one.
    """
    stop = start + length
    low = np.searchsorted(stop, start + (stride - corners), "right")
    high = np.searchsorted(start, stop + (stride + corners), "left")
    counts = np.maximum(high - low, 0)
    upper = np.repeat(np.arange(len(start)), counts)
    lower = np.arange(len(upper)) + np.repeat(low - (np.cumsum(counts) - counts), counts)
    same = value[upper] == value[lower]
    return upper[same], lower[same]


def _join(count: int, upper: NDArray[np.int64], lower: NDArray[np.int64]) -> NDArray[np.int64]:
    """(count,) the smallest index among all that are connected with each, by pairs of which `upper` is the smaller."""
    root = np.arange(count)
    while len(upper):
        np.minimum.at(root, lower, upper)  # every root that has a smaller neighbour gets one
        while not np.array_equal(following := root[root], root):
            root = following
        upper, lower = root[upper], root[lower]
        apart = upper != lower
        upper, lower = upper[apart], lower[apart]
        upper, lower = np.minimum(upper, lower), np.maximum(upper, lower)
    return root
