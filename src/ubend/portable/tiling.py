"""Positions of tiles, reading of their pixels, and merging of their logits; independent of the model.

H x W pixels of the native image, h x w of the network's input, C classes, T x T pixels of a tile. Axes are computed
separately; a whole image is one tile. `inference/blending.py` (GPU) and `exporting/web/predict.js` merge alike.

Sources: overlapping tiles, weighted by a Gaussian: Isensee et al. 2021, nnU-Net, doi:10.1038/s41592-020-01008-z.
Mirrored overlap-tile, for convolutions without padding: Ronneberger et al. 2015, arXiv:1505.04597, figure 2.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_SIGMA = 1 / 8  # of a tile's side: nnU-Net's


@dataclass(frozen=True)
class TileSource:
    """An image at the size that the network takes, read by rows: the model's size, or with tiles the native one.

    Attributes:
        read: (top, bottom) -> (bottom - top, w, channels) pixels; called from several threads.
        size_hw: (h, w), px.
        native_hw: (H, W) of the native image, px.
        held_bytes: bytes in memory until the image is predicted; 0 with tiles.
        invalid: (H, W) bool, invalid pixels of the native image, see `LoadedImage`; None: there are none, or it is
            read by rows.
    """

    read: Callable[[int, int], NDArray[Any]]
    size_hw: tuple[int, int]
    native_hw: tuple[int, int]
    held_bytes: int = 0
    invalid: NDArray[np.bool_] | None = None

    @classmethod
    def of_pixels(
        cls,
        pixels: NDArray[Any],
        native_hw: tuple[int, int],
        held_bytes: int = 0,
        invalid: NDArray[np.bool_] | None = None,
    ) -> "TileSource":
        """A source of (h, w, channels) pixels in memory."""
        size_hw = pixels.shape[0], pixels.shape[1]
        return cls(lambda top, bottom: pixels[top:bottom], size_hw, native_hw, held_bytes, invalid)


@dataclass(frozen=True)
class TileAxis:
    """The tiles along one axis of an image.

    Attributes:
        side: side of the image, px.
        tile: output side of a tile, px.
        starts: first pixel of each tile, ascending; multiples of the network stride.
        margin: additional input on each side of a tile, px.
        weights: (tiles, tile) float32; the weights of all tiles at a pixel add up to 1.
    """

    side: int
    tile: int
    starts: tuple[int, ...]
    margin: int
    weights: NDArray[np.float32]

    def input_indices(self, index: int) -> NDArray[np.int64]:
        """(tile + 2 * margin,) input pixel indices of a tile.

        Outside the image it is mirrored, as in the network's own padding; the pixel at the border is not repeated.
        """
        return self._mirror(self.starts[index], self.starts[index])

    def input_indices_of_all(self) -> NDArray[np.int64]:
        """Input pixel indices from the first to the last tile; those of tile i begin at `starts[i]`."""
        return self._mirror(self.starts[0], self.starts[-1])

    def _mirror(self, first: int, last: int) -> NDArray[np.int64]:
        positions = np.arange(first - self.margin, last + self.tile + self.margin)
        there_and_back = max(1, 2 * (self.side - 1))
        positions %= there_and_back
        return np.minimum(positions, there_and_back - positions).clip(0, self.side - 1)

    def completed(self, index: int) -> slice:
        """The pixels completed by this tile, which no later tile covers."""
        last = index + 1 == len(self.starts)
        return slice(self.starts[index], self.side if last else self.starts[index + 1])


@dataclass(frozen=True)
class TilePlan:
    """The tiles of one image: the grid of `rows` and `columns`."""

    rows: TileAxis
    columns: TileAxis

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.rows.starts) * len(self.columns.starts)

    @property
    def input_hw(self) -> tuple[int, int]:
        """(height, width) of the network's input, px; the same for all tiles."""
        return self.rows.tile + 2 * self.rows.margin, self.columns.tile + 2 * self.columns.margin


@lru_cache(maxsize=256)
def plan_whole(size_hw: tuple[int, int], padded_hw: tuple[int, int]) -> TilePlan:
    """A plan with one tile for a whole image of (h, w), padded to the network's input size, px."""
    axes = zip(size_hw, padded_hw, strict=True)
    return TilePlan(*(TileAxis(side, tile, (0,), 0, np.ones((1, tile), np.float32)) for side, tile in axes))


@dataclass(frozen=True)
class Tiling:
    """How images are cut into tiles.

    Attributes:
        tile_px: largest side of a tile, rounded up to `multiple`; a smaller image has smaller tiles.
        overlap: minimum overlap between neighbours, as a fraction of the tile's side, 0 <= overlap < 1; ignored
            with a margin.
        multiple: network stride, 2**depth; all tiles start at multiples of it, so that the pooling grid is the same
            as for the whole image.
        margin: px that convolutions without padding remove from each side; then each pixel comes from one tile.
        edge_px: with a margin, output sides are k * multiple + edge_px, such as 4 + 16 k px. Tiles start at multiples,
            so each tile covers the last `edge_px` px of the one before again.
    """

    tile_px: int
    overlap: float = 0.25
    multiple: int = 16
    margin: int = 0
    edge_px: int = 0

    @lru_cache(maxsize=256)  # noqa: B019 - few and small
    def plan(self, size_hw: tuple[int, int]) -> TilePlan:
        """The tiles of an image of (h, w) px, each at least 1."""
        return TilePlan(self._plan_axis(size_hw[0]), self._plan_axis(size_hw[1]))

    def _plan_axis(self, side: int) -> TileAxis:
        multiple, edge_px = self.multiple, self.edge_px
        maximum = max(multiple, _round_up(self.tile_px - edge_px, multiple))
        padded = _round_up(max(0, side - edge_px), multiple)
        tile = min(padded, maximum) + edge_px
        last_position = (padded + edge_px - tile) // multiple  # for the first pixel of a tile, in steps of `multiple`
        step = max(1, math.floor((1 - (0 if self.margin else self.overlap)) * tile / multiple))
        gaps = math.ceil(last_position / step)
        if self.margin:
            positions = [min(step * index, last_position) for index in range(gaps + 1)]
        else:  # evenly spaced, so that all overlaps are about equal
            positions = [last_position * index // max(1, gaps) for index in range(gaps + 1)]
        starts = tuple(multiple * place for place in positions)
        return TileAxis(side, tile, starts, self.margin, (_weigh_first if self.margin else _weigh)(starts, tile))


def _weigh(starts: tuple[int, ...], tile: int) -> NDArray[np.float32]:
    """(tiles, tile) Gaussian weights of each tile, normalised to a sum of 1 at each pixel.

    Towards the image border the outermost tile has weight 1 before normalisation: it has full context there, unlike
    the next tile, whose edge is nearby.
    """
    away = (np.arange(tile) + 0.5) / tile - 0.5
    bells = np.tile(np.exp(-0.5 * (away / _SIGMA) ** 2), (len(starts), 1))
    bells[0, : tile // 2] = 1
    bells[-1, (tile + 1) // 2 :] = 1
    total = np.zeros(starts[-1] + tile)
    for start, bell in zip(starts, bells, strict=True):
        total[start : start + tile] += bell
    return np.stack([b / total[start : start + tile] for start, b in zip(starts, bells, strict=True)]).astype(
        np.float32
    )


def _weigh_first(starts: tuple[int, ...], tile: int) -> NDArray[np.float32]:
    """(tiles, tile) weights: 1 for the first tile that covers a pixel, otherwise 0."""
    weights = np.ones((len(starts), tile), np.float32)
    for index, (before, start) in enumerate(itertools.pairwise(starts), 1):
        weights[index, : max(0, before + tile - start)] = 0
    return weights


def _round_up(side: int, multiple: int) -> int:
    return side + -side % multiple


class TileRow(NamedTuple):
    """A row of tiles to read: index of the image, index of the row in its plan, plan, source."""

    image_index: int
    row_index: int
    plan: TilePlan
    source: TileSource


def plan_rows(sources: Iterable[TileSource], plan: Callable[[tuple[int, int]], TilePlan]) -> Iterator[TileRow]:
    """The rows of tiles of all images, image by image; `plan` maps (h, w) to a plan."""
    for image, source in enumerate(sources):
        planned = plan(source.size_hw)
        for index in range(len(planned.rows.starts)):
            yield TileRow(image, index, planned, source)


def read_row(row: TileRow) -> tuple[TileRow, NDArray[Any]]:
    """The row, and its (height of a tile, width of the row, channels) pixels: uint8 or float32."""
    rows, columns = row.plan.rows, row.plan.columns
    if rows.margin:
        wanted = rows.input_indices(row.row_index)
        top, bottom = int(wanted.min()), int(wanted.max()) + 1
        pixels = row.source.read(top, bottom)[wanted - top][:, columns.input_indices_of_all()]
    else:  # slices, and fancy indexing only beyond the image: 40 times as fast
        start, height, width = rows.starts[row.row_index], rows.tile, columns.starts[-1] + columns.tile
        below = start + height - rows.side  # mirrored; these rows may lie above the tile, too
        top = max(0, min(start, rows.side - 1 - below))
        pixels = row.source.read(top, min(start + height, rows.side))
        h, w = len(pixels) - (start - top), columns.side
        if (top, h, w) != (start, height, width):
            padded = np.empty((height, width, pixels.shape[2]), pixels.dtype)
            padded[:h, :w] = pixels[start - top :]
            padded[h:, :w] = pixels[rows.input_indices(row.row_index)[h:] - top]
            padded[:, w:] = padded[:, columns.input_indices_of_all()[w:]]
            pixels = padded
    # torch rejects read-only arrays, such as Pillow's
    return row, np.require(pixels, None if pixels.dtype == np.uint8 else np.float32, ["C", "W"])


class Blender:
    """Merges the tiles of one image row by row; keeps only one row of tiles in memory.

    A subclass computes with the arrays of another library: see `_zeros`, `_multiply_add` and `_copy`.
    """

    def __init__(self, plan: TilePlan, classes: int) -> None:
        self.plan = plan
        width = plan.columns.starts[-1] + plan.columns.tile
        self._sums = self._zeros((classes, plan.rows.tile, width))
        self._finished = 0  # rows of the sums that were returned; removed by the next `add`
        self._weights = [self._convert(axis.weights) for axis in (plan.rows, plan.columns)]

    def _zeros(self, shape: tuple[int, int, int]) -> Any:
        """Sums of 0, float32."""
        return np.zeros(shape, np.float32)

    def _convert(self, weights: NDArray[np.float32]) -> Any:
        """Weights as an array of the library."""
        return weights

    def _copy(self, values: Any) -> Any:
        return values.copy()

    def _multiply_add(self, sums: Any, logits: Any, weight: Any) -> None:
        """Add logits times their weights to sums, in place."""
        sums += logits * weight

    def add(self, row: int, column: int, logits: Any) -> tuple[slice, Any] | None:
        """Add a tile; tiles must come from left to right and from top to bottom.

        Args:
            logits: (C, height, width) logits of the tile, float32.
        Returns:
            After the last tile of a row, the completed rows and their (C, rows, w) logits, valid until the next
            `add` overwrites them (a copy would double the memory); otherwise None.
        """
        if self._finished:  # move the incomplete rows to the top
            kept = self._sums.shape[1] - self._finished
            rest = self._sums[:, self._finished :]
            self._sums[:, :kept] = self._copy(rest) if kept > self._finished else rest  # both may overlap
            self._sums[:, kept:] = 0
            self._finished = 0
        rows, columns = self.plan.rows, self.plan.columns
        weight = self._weights[0][row, :, None] * self._weights[1][column]
        start = columns.starts[column]
        self._multiply_add(self._sums[:, :, start : start + columns.tile], logits, weight)
        if column + 1 < len(columns.starts):
            return None
        done = rows.completed(row)
        self._finished = done.stop - done.start
        return done, self._sums[:, : self._finished, : columns.side]
