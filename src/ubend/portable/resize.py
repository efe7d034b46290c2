"""Bilinear resizing, antialiased when shrinking, with the values of torch.

The algorithm of torch's `interpolate(mode="bilinear", antialias=True, align_corners=False)` on a CPU: first along the
columns, then along the rows; the filter is a triangle, as wide as the scale. uint8 is computed with weights of 16 bits
and rounded after each direction, float with weights and sums in float32.

Source: ATen/native/cpu/UpSampleKernel.cpp of PyTorch (compared with 2.14). uint8 has its values on any processor. float
has them where torch uses AVX2: its compiler fuses multiplication and addition, except in groups of four terms, see
`_sum_products`; elsewhere the last bit may differ.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_BLOCK_VALUES = 2**19  # of the result that are computed at a time, so that they stay in the processor's cache
_MOST_BITS = 22  # of a weight's fraction


class _Taps(NamedTuple):
    """What the results along a side are sums of.

    Attributes:
        first: (size,) index of the first value of each result.
        weights: (size, taps) float64 or float32; 0 beyond the last one.
        length: (size,) number of values of each result.
    """

    first: NDArray[np.int64]
    weights: NDArray[Any]
    length: NDArray[np.int64]


def resize_pixels(image: NDArray[Any], size_hw: tuple[int, int]) -> NDArray[Any]:
    """Resize an image to what a network takes.

    Args:
        image: (H, W, C) uint8, uint16 or float.
        size_hw: (height, width) in px.
    Returns:
        (height, width, C) of the same dtype; integers are rounded.
    """
    if image.shape[:2] == tuple(size_hw):
        return image
    if image.dtype == np.uint8 and size_hw[1] > 1:
        return _resize_rows(_resize_columns(image, size_hw[1]), size_hw[0])
    values = image.astype(np.float32)
    if size_hw[1] > 1:
        out = _resize_rows(_resize_columns(values, size_hw[1]), size_hw[0])
    else:  # ubend transposes a single column, see `ubend.io.images.resize_image`
        out = _resize_columns(_resize_rows(values, size_hw[0]), size_hw[1])
    return (out if image.dtype.kind == "f" else np.rint(out)).astype(image.dtype, copy=False)


def resize_logits(logits: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Resize logits: (C, h, w) float32 -> (C, height, width) float32."""
    height, width = size_hw
    if width == 1:
        return resize_pixels(logits.transpose(1, 2, 0), size_hw).transpose(2, 0, 1)
    columns = _resize_rows(logits.transpose(2, 0, 1), width)  # (width, C, h): rows are read whole
    return _resize_rows(columns.transpose(2, 1, 0), height).transpose(1, 0, 2)


def _resize_columns(image: NDArray[Any], width: int) -> NDArray[Any]:
    """(H, W, C) -> (H, width, C)."""
    turned = np.ascontiguousarray(image.swapaxes(0, 1))  # rows of it are read whole
    return np.ascontiguousarray(_resize_rows(turned, width).swapaxes(0, 1))


def _resize_rows(image: NDArray[Any], height: int) -> NDArray[Any]:
    """(H, W, C) uint8 or float32 -> (height, W, C) of the same dtype."""
    if len(image) == height:
        return image
    rows = np.ascontiguousarray(image).reshape(len(image), -1)
    out = np.empty((height, rows.shape[1]), rows.dtype)
    compute = _sum_fixed_point if rows.dtype == np.uint8 else _sum_products
    step = max(1, _BLOCK_VALUES // max(1, rows.shape[1]))
    for top in range(0, height, step):
        block = slice(top, top + step)
        out[block] = compute(rows, height, block)
    return out.reshape(height, *image.shape[1:])


def _sum_fixed_point(rows: NDArray[np.uint8], height: int, block: slice) -> NDArray[np.uint8]:
    """Some rows of the result, from weights that are whole numbers of 16 bits."""
    first, weights, bits = _find_whole_weights(len(rows), height)
    first, weights = first[block], weights[block]
    total = np.full((len(first), rows.shape[1]), 1 << (bits - 1), np.int32)
    for tap in range(weights.shape[1]):
        if (weight := weights[:, tap]).any():
            total += np.multiply(rows[np.minimum(first + tap, len(rows) - 1)], weight[:, None], dtype=np.int32)
    total >>= bits
    return total.clip(0, 255).astype(np.uint8)


def _sum_products(rows: NDArray[np.float32], height: int, block: slice) -> NDArray[np.float32]:
    """Some rows of the result, in float32, with the roundings of torch's loop.

    The first product is rounded; so are the next ones in whole groups of four, each before it is added; the rest is
    multiplied and added with one rounding.
    """
    first, weights, length = (part[block] for part in _find_taps(len(rows), height, np.float32))
    rounded = 1 + (length - 1) // 4 * 4
    total = rows[first] * weights[:, :1]
    for tap in range(1, weights.shape[1]):
        weight = weights[:, tap, None]
        if not weight.any():
            continue
        values = rows[np.minimum(first + tap, len(rows) - 1)]
        grouped = tap < rounded
        if grouped.all():
            total += values * weight
            continue
        fused = (total + np.multiply(values, weight, dtype=np.float64)).astype(np.float32)
        total = np.where(grouped[:, None], total + values * weight, fused) if grouped.any() else fused
    return total


@lru_cache(maxsize=64)
def _find_whole_weights(side: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int32], int]:
    """(first, (size, taps) weights as multiples of 2**-bits, bits); the largest one has 15 bits."""
    first, weights, _length = _find_taps(side, size, np.float64)
    largest, bits = float(weights.max()), 0
    while bits < _MOST_BITS and int(0.5 + largest * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    return first, (0.5 + weights * (1 << bits)).astype(np.int32), bits


@lru_cache(maxsize=64)
def _find_taps(side: int, size: int, dtype: type[np.floating[Any]]) -> _Taps:
    """The values of `side` and their weights for each of `size` results, computed in `dtype` as torch does."""
    scale = dtype(side) / dtype(size)
    support = max(scale, dtype(1))
    center = scale * (np.arange(size).astype(dtype) + dtype(0.5))
    first = np.maximum(((center - support).astype(np.float64) + 0.5).astype(np.int64), 0)
    taps = int(np.ceil(np.float32(support))) * 2 + 1
    last = np.minimum(((center + support).astype(np.float64) + 0.5).astype(np.int64), side)
    length = (last - first).clip(0, taps)
    position = np.arange(taps)
    away = (position + first[:, None]).astype(dtype) - center[:, None]
    away = ((away.astype(np.float64) + 0.5) * np.float64(dtype(1) / support)).astype(dtype)
    weights = np.maximum(dtype(1) - np.abs(away), dtype(0))
    weights[position >= length[:, None]] = 0
    total = np.zeros(size, dtype)
    for tap in range(taps):
        total += weights[:, tap]
    return _Taps(first, weights / total[:, None], length)
