"""Descriptors of segments: their appearance and position in a few numbers, comparable between images."""

import numpy as np
from numpy.typing import NDArray

from ubend_lessons.baselines.pixels import Pixels


def describe_segments(segments: NDArray[np.intp], pixels: Pixels) -> NDArray[np.float64]:
    """The descriptors of an image's segments.

    Args:
        segments: (h, w) numbers 0 .. n - 1; a number without pixels gives a row of zeros.
    Returns:
        (n, D): mean colour and texture, and both minus the means of the image (so that the brightest segments of a dark
        and a bright image are similar); distance from the centre of the image, and vertical position, -1..1; share of
        the image's border that the segment covers; square root of its share of the image.
    """
    h, w = segments.shape
    flat, count = segments.reshape(-1), int(segments.max()) + 1
    areas = np.bincount(flat, minlength=count)
    some = np.maximum(areas, 1)

    def mean(values: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(flat, np.ascontiguousarray(values).reshape(-1), count) / some)

    maps = pixels.maps("both")
    looks = np.stack([mean(maps[:, :, channel]) for channel in range(maps.shape[2])], axis=1)
    y = np.broadcast_to(np.linspace(-1, 1, h)[:, None], (h, w))
    x = np.broadcast_to(np.linspace(-1, 1, w)[None, :], (h, w))
    places = np.stack([mean(np.sqrt(y**2 + x**2)), mean(y)], axis=1)
    rim = np.concatenate([segments[0], segments[-1], segments[:, 0], segments[:, -1]])
    shares = np.stack([np.bincount(rim, minlength=count) / len(rim), np.sqrt(areas / (h * w))], axis=1)
    found = np.concatenate([looks, looks - maps.mean(axis=(0, 1), dtype=np.float64), places, shares], axis=1)
    return np.where(areas[:, None] > 0, found, 0.0)
