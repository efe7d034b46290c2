"""Values far beyond all others of a data set: nodata values that no file declares, and hot pixels."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FAR = 100  # times the range of all other values: the gap before a value that is no measurement (docs/decisions.md)
_MAX_SHARE = 0.5  # of the pixels: what more of them hold is no exception
_MIN_BINS = 8  # other values; of fewer, as in drawn images, the range says nothing
_BINS = 2**16  # the upper half of a float32: sign, exponent and 7 bits of the fraction
_SHOWN_VALUES = 3
_RESOLUTION = 1 / 128  # of a bin, relative to its value


def find_normal_range(pieces: Iterable[NDArray[Any]], channels: int) -> NDArray[np.float64]:
    """(2, C) bounds of the values of each channel that are not far beyond all others; -inf and inf where none are.

    A value is far beyond the others where nothing lies between, over 100 times the range of the others.

    Args:
        pieces: (P, C) pixels each, of any real type; P may be 0.
    """
    counts, middle = np.zeros((channels, _BINS), np.int64), np.full(channels, np.nan, np.float32)
    for piece in (some for some in pieces if len(some)):
        if np.isnan(middle).any():  # around it, bins are fine
            middle = np.median(piece, axis=0).astype(np.float32)
        for channel in range(channels):
            with np.errstate(over="ignore"):
                values = np.ascontiguousarray(piece[:, channel], np.float32) - middle[channel]
            counts[channel] += np.bincount(values.view(np.uint32) >> 16, minlength=_BINS)
    edges = (np.arange(_BINS, dtype=np.uint32) << 16).view(np.float32)
    bounds = [_bounds(edges[own > 0].astype(np.float64), own[own > 0]) for own in counts]
    return np.array(bounds).T + np.nan_to_num(middle)


def name_values(found: Iterable[NDArray[Any]]) -> tuple[str, str]:
    """The most common of the values, as a list for people that may end with dots; and the commonest alone, exactly."""
    values, counts = np.unique(np.concatenate([*found]), return_counts=True)
    common = np.sort(values[np.argsort(-counts, kind="stable")[:_SHOWN_VALUES]])
    shown = [*(f"{value:.6g}" for value in common), *["..."] * (len(values) > len(common))]
    return ", ".join(shown), f"{values[counts.argmax()]:.9g}"


def _bounds(values: NDArray[np.float64], counts: NDArray[np.int64]) -> tuple[float, float]:
    """Bounds of one channel.

    Args:
        values: (K,) of the bins that occur, each rounded towards 0, in any order, and how many pixels each has.
    """
    order = np.argsort(values)
    values, counts = values[order], counts[order]
    low, high = -np.inf, np.inf
    for end in ("high", "low", "high"):  # what lies far at one end may hide what lies far at the other
        if end == "high" and (far := _count_far(values, counts)):
            high = (values[-far] + values[-far - 1]) / 2
            values, counts = values[:-far], counts[:-far]
        elif end == "low" and (far := _count_far(-values[::-1], counts[::-1])):
            low = (values[far] + values[far - 1]) / 2
            values, counts = values[far:], counts[far:]
    return float(low), float(high)


def _count_far(values: NDArray[np.float64], counts: NDArray[np.int64]) -> int:
    """How many of the greatest of (K,) ascending values lie far above all others."""
    if len(values) <= _MIN_BINS:
        return 0
    spread = values[:-1] - values[0] + _RESOLUTION * np.maximum(np.abs(values[:-1]), abs(values[:1]))
    share = np.cumsum(counts[::-1])[::-1][1:] / max(1, counts.sum())
    far = (np.diff(values) > _FAR * spread) & (share <= _MAX_SHARE)
    far[: _MIN_BINS - 1] = False
    return int(len(values) - 1 - np.flatnonzero(far)[0]) if far.any() else 0
