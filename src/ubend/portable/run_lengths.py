"""COCO's run lengths of regions, and its library for them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import missing_package


def coco_masks() -> Any:
    """Import pycocotools' module for polygons and run lengths.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise missing_package(error) from error
    return mask


def decode_rle(rle: dict[str, Any]) -> NDArray[np.bool_]:
    """Decode run lengths to (H, W) bool: column by column, starting with a run of False.

    Raises:
        ValueError: the run lengths are damaged, or do not fill the size.
    """
    counts = read_counts(rle)
    height, width = rle["size"]
    return np.repeat(np.arange(len(counts)) % 2 > 0, counts).reshape(width, height).T


def read_counts(rle: dict[str, Any]) -> NDArray[np.int64]:
    """Run lengths as numbers; a str is compressed as in the COCO API.

    In a str, each letter (minus 48) has 5 bits of a number, lowest first; bit 5 means that more letters follow, and
    bit 4 of the last letter is the sign. From the fourth number on, the numbers are differences to the second number
    before.

    Raises:
        ValueError: they are damaged, or do not fill the size.
    """
    if isinstance(rle["counts"], str):
        letters = np.frombuffer(rle["counts"].encode(), np.uint8).astype(np.int64) - 48
        last = (letters & 32) == 0
        if not len(letters) or not last[-1] or letters.min() < 0 or letters.max() > 63:
            raise ValueError("run lengths")
        starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
        digit = np.arange(len(letters)) - np.repeat(starts, np.diff(starts, append=len(letters)))
        if digit.max() > 6:  # 35 bits: no image has as many pixels
            raise ValueError("run lengths")
        counts = np.add.reduceat((letters & 31) << 5 * digit, starts)
        negative = (letters[last] & 16) > 0
        counts -= negative * (32 << 5 * digit[last])
        for first in (1, 2):
            counts[first::2] = counts[first::2].cumsum()
    else:
        counts = np.array(rle["counts"], np.int64)
    height, width = rle["size"]
    if (counts < 0).any() or counts.sum() != height * width:
        raise ValueError("run lengths")
    return counts
