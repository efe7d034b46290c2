"""Draws shapes of annotation files as masks, with COCO's rasteriser."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.portable.run_lengths import coco_masks, decode_rle


@dataclass(frozen=True)
class Shape:
    """An annotated region.

    Attributes:
        value: of its pixels, 0..255.
        polygons: each (x0, y0, x1, y1, ...) in px of the upright image, where pixel (0, 0) extends from 0 to 1;
            at least 3 points; the region is the union of all.
        rle: COCO's run lengths instead of polygons: {"size": [h, w], "counts": list or str}.
        relative: polygon coordinates are fractions of the image's width and height.
    """

    value: int
    polygons: tuple[tuple[float, ...], ...] = ()
    rle: dict[str, Any] | None = None
    relative: bool = False


@dataclass(frozen=True)
class Canvas:
    """A mask on which regions are drawn; later ones cover earlier ones.

    Attributes:
        values: (H, W) uint8: the value of the last region that covers the pixel, else 0.
        covered: (value below, value above) -> number of covered pixels, except of value 0 or by the same value.
    """

    values: NDArray[np.uint8]
    covered: Counter[tuple[int, int]]

    def paint(self, region: NDArray[np.bool_], value: int, top: int = 0, left: int = 0) -> None:
        """Set the pixels of a region, (h, w) bool, whose first pixel is at (top, left)."""
        part = self.values[top : top + region.shape[0], left : left + region.shape[1]]
        below = part[region]
        if below.any():
            for other, count in enumerate(np.bincount(below).tolist()):
                if count and other not in (0, value):
                    self.covered[other, value] += count
        part[region] = value


def draw_shapes(shapes: Sequence[Shape], size_hw: tuple[int, int]) -> Canvas:
    """Draw shapes: a pixel gets the value of a shape that contains its centre.

    Polygons are rounded to 1/5 px (as COCO does); self-crossing polygons are filled by the even-odd rule.

    Args:
        shapes: run lengths must have this size; polygons may extend beyond the image.
        size_hw: (height, width) of the image.
    """
    canvas = Canvas(np.zeros(size_hw, np.uint8), Counter())
    for shape in shapes:
        if shape.rle is not None:
            canvas.paint(decode_rle(shape.rle), shape.value)
        scale = np.array(size_hw[::-1] if shape.relative else (1, 1), np.float64)
        for polygon in shape.polygons:
            _fill(canvas, np.array(polygon, np.float64).reshape(-1, 2) * scale, shape.value)
    return canvas


def _fill(canvas: Canvas, points: NDArray[np.float64], value: int) -> None:
    """Set the pixels inside a polygon, (N, 2) x and y; only its bounding box is processed."""
    size = np.array(canvas.values.shape[::-1])
    if (points < 0).any() or (points > size).any():
        points = _clip(points, size)
    if len(points) < 3:
        return
    low = np.floor(points.min(axis=0)).astype(int)
    high = np.ceil(points.max(axis=0)).astype(int)
    width, height = (high - low).tolist()
    if width > 0 and height > 0:
        rle = coco_masks().frPyObjects([(points - low).ravel().tolist()], height, width)[0]
        inside = decode_rle({"size": (height, width), "counts": rle["counts"].decode()})
        canvas.paint(inside, value, low[1], low[0])


def _clip(points: NDArray[np.float64], size: NDArray[Any]) -> NDArray[np.float64]:
    """Clip a polygon, (N, 2), to the box from (0, 0) to `size`; the result may be empty.

    Clips edge by edge (Sutherland and Hodgman 1974). Separate pieces stay connected along the edge, where there are no
    pixel centres.
    """
    for axis, sign, bound in ((0, 1, 0), (0, -1, -size[0]), (1, 1, 0), (1, -1, -size[1])):
        within = sign * points[:, axis] - bound  # below 0: outside
        following = np.roll(points, -1, axis=0)
        beyond = np.roll(within, -1)
        crosses = (within < 0) != (beyond < 0)
        share = within / np.where(crosses, within - beyond, 1)
        crossings = points + share[:, None] * (following - points)
        crossings[:, axis] = sign * bound
        both = np.stack([points, crossings], axis=1).reshape(-1, 2)
        points = both[np.stack([within >= 0, crosses], axis=1).ravel()]
    return points


def measure_polygon(polygon: Sequence[float]) -> float:
    """The area of (x0, y0, x1, y1, ...), in squares of its unit (Gauss's formula)."""
    x, y = np.array(polygon, np.float64).reshape(-1, 2).T
    return float(abs(x[:-1] @ y[1:] - y[:-1] @ x[1:] + x[-1] * y[0] - y[-1] * x[0])) / 2
