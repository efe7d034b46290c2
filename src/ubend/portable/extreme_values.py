"""Finds extreme values, far outside the range of all others: undeclared nodata values and hot pixels."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FAR = 100  # minimum gap before an extreme value, as a multiple of the range of all others (docs/decisions.md)
_MAX_SHARE = 0.5  # of the pixels; more common values are not extreme
_MIN_BINS = 8  # other values; the range of fewer, as in drawn images, says nothing
_BINS = 2**16  # the upper half of a float32: sign, exponent and 7 bits of the fraction
_SHOWN_VALUES = 3
_RESOLUTION = 1 / 128  # of a bin, relative to its value


def find_normal_range(pieces: Iterable[NDArray[Any]], channels: int) -> NDArray[np.float64]:
    """(2, C) bounds that exclude the extreme values of each channel; -inf and inf if there are none.

    A value is extreme if the gap between it and all other values is more than 100 times their range.

    Args:
        pieces: (P, C) pixels each, of any real type; P may be 0.
        channels: C.
    """
    counts, middle = np.zeros((channels, _BINS), np.int64), np.full(channels, np.nan, np.float32)
    for piece in filter(len, pieces):
        if np.isnan(middle).any():  # the bins are narrowest near 0, so the median is subtracted
            middle = np.median(piece, axis=0).astype(np.float32)
        for channel in range(channels):
            with np.errstate(over="ignore"):
                values = np.ascontiguousarray(piece[:, channel], np.float32) - middle[channel]
            counts[channel] += np.bincount(values.view(np.uint32) >> 16, minlength=_BINS)
    edges = (np.arange(_BINS, dtype=np.uint32) << 16).view(np.float32)
    bounds = [_bounds(edges[histogram > 0].astype(np.float64), histogram[histogram > 0]) for histogram in counts]
    return np.array(bounds).T + np.nan_to_num(middle)


def name_values(extremes: Iterable[NDArray[Any]]) -> tuple[str, str]:
    """(readable list of the most common values, which may end in dots; the most common one in full precision)."""
    values, counts = np.unique(np.concatenate([*extremes]), return_counts=True)
    common = np.sort(values[np.argsort(-counts, kind="stable")[:_SHOWN_VALUES]])
    shown = [*(f"{value:.6g}" for value in common), *["..."] * (len(values) > len(common))]
    return ", ".join(shown), f"{values[counts.argmax()]:.9g}"


def _bounds(values: NDArray[np.float64], counts: NDArray[np.int64]) -> tuple[float, float]:
    """(low, high) bounds of one channel.

    Args:
        values: (K,) values of the occupied bins, rounded towards 0, in any order.
        counts: (K,) pixels of each.
    """
    order = np.argsort(values)
    values, counts = values[order], counts[order]
    low, high = -np.inf, np.inf
    for end in ("high", "low", "high"):  # extreme values at one end can hide those at the other
        if end == "high" and (far := _count_far(values, counts)):
            high = (values[-far] + values[-far - 1]) / 2
            values, counts = values[:-far], counts[:-far]
        elif end == "low" and (far := _count_far(-values[::-1], counts[::-1])):
            low = (values[far] + values[far - 1]) / 2
            values, counts = values[far:], counts[far:]
    return float(low), float(high)


def _count_far(values: NDArray[np.float64], counts: NDArray[np.int64]) -> int:
    """How many of (K,) ascending values are extreme, at the upper end."""
    if len(values) <= _MIN_BINS:
        return 0
    spread = values[:-1] - values[0] + _RESOLUTION * np.maximum(np.abs(values[:-1]), abs(values[:1]))
    share = np.cumsum(counts[::-1])[::-1][1:] / max(1, counts.sum())
    far = (np.diff(values) > _FAR * spread) & (share <= _MAX_SHARE)
    far[: _MIN_BINS - 1] = False
    return int(len(values) - 1 - np.flatnonzero(far)[0]) if far.any() else 0
