"""Where tiles lie on a picture, and how their logits become one: geometry and sums, no model.

H x W pixels of the picture, C classes, T x T pixels of a tile. Tiles lie in a grid, so all that is to be known of
an axis (positions, weights, what lies out of the picture) is known for each axis alone.

Sources: overlapping tiles, weighted by a Gaussian: Isensee et al. 2021, nnU-Net, doi:10.1038/s41592-020-01008-z.
Mirrored overlap-tile, for convolutions without padding: Ronneberger et al. 2015, arXiv:1505.04597, figure 2.
"""

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_SIGMA = 1 / 8  # of a tile's side: nnU-Net's


@dataclass(frozen=True)
class Axis:
    """The tiles along one side of a picture.

    Attributes:
        side: of the picture, px.
        tile: side of what a tile gives, px.
        starts: first pixel of each tile, rising; multiples of what the network divides by.
        margin: what a tile needs on each side beyond what it gives, px.
        weights: (tiles, tile) float32; the weights of all tiles at a pixel add up to 1.
    """

    side: int
    tile: int
    starts: tuple[int, ...]
    margin: int
    weights: NDArray[np.float32]

    def needed(self, number: int) -> NDArray[np.int64]:
        """(tile + 2 * margin,) the picture's pixels that a tile is made of.

        What lies out of the picture is its last pixel again, as inside the network; with a margin, mirrored.
        """
        return self._inside(self.starts[number], self.starts[number])

    def needed_by_all(self) -> NDArray[np.int64]:
        """The same for all tiles together; each tile begins at its own of `starts`."""
        return self._inside(self.starts[0], self.starts[-1])

    def _inside(self, first: int, last: int) -> NDArray[np.int64]:
        places = np.arange(first - self.margin, last + self.tile + self.margin)
        if not self.margin:
            return places.clip(0, self.side - 1)
        there_and_back = max(1, 2 * (self.side - 1))
        places %= there_and_back
        return np.minimum(places, there_and_back - places).clip(0, self.side - 1)

    def finished(self, number: int) -> slice:
        """The pixels that no tile after this one touches, and one before it did."""
        last = number + 1 == len(self.starts)
        return slice(self.starts[number], self.side if last else self.starts[number + 1])


@dataclass(frozen=True)
class TilePlan:
    """The tiles of one picture: each of `rows` with each of `columns`."""

    rows: Axis
    columns: Axis

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.rows.starts) * len(self.columns.starts)

    @property
    def input_hw(self) -> tuple[int, int]:
        """(height, width) of what the network is given, px; the same for all tiles."""
        return self.rows.tile + 2 * self.rows.margin, self.columns.tile + 2 * self.columns.margin


def plan_tiles(
    size_hw: tuple[int, int],
    tile_px: int,
    overlap: float = 0.25,
    *,
    multiple: int = 16,
    margin: int = 0,
    edge: int = 0,
) -> TilePlan:
    """Tiles that cover a picture.

    Args:
        size_hw: (H, W) of the picture, px, each at least 1.
        tile_px: greatest side of a tile, rounded up to `multiple`; a smaller picture has smaller tiles.
        overlap: share of a tile's side that neighbours have in common at least, 0 <= overlap < 1; no use is made
            of it with a margin.
        multiple: what the network divides by, 2**depth; all tiles begin there, so that its poolings fall on the
            same pixels as with the picture as a whole.
        margin: px that convolutions without padding take from each side; every pixel is then given by one tile.
        edge: px that a tile is larger than a multiple, as such a network gives them; the next one gives them, too.
    """
    height, width = (_plan_axis(side, tile_px, overlap, (multiple, margin, edge)) for side in size_hw)
    return TilePlan(height, width)


def _plan_axis(side: int, tile_px: int, overlap: float, network: tuple[int, int, int]) -> Axis:
    multiple, margin, edge = network
    padded, most = _round_up(max(0, side - edge), multiple), max(multiple, _round_up(tile_px - edge, multiple))
    tile = min(padded, most) + edge
    room = (padded + edge - tile) // multiple
    step = max(1, tile // multiple) if margin else max(1, math.floor((1 - overlap) * tile / multiple))
    gaps = math.ceil(room / step)
    if margin:
        places = [min(step * number, room) for number in range(gaps + 1)]
    else:  # spread evenly, so that all neighbours have about the same in common
        places = [room * number // max(1, gaps) for number in range(gaps + 1)]
    starts = tuple(multiple * place for place in places)
    return Axis(side, tile, starts, margin, _weigh_first(starts, tile) if margin else _weigh(starts, tile))


def _weigh(starts: tuple[int, ...], tile: int) -> NDArray[np.float32]:
    """A Gaussian over each tile, divided by the sum of all of them at each pixel.

    Flat towards the picture's own border, which the picture as a whole has too: there the outermost tile is as good
    as it is in its middle, and the next one, whose edge lies there, is not.
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
    """1 where a tile is the first one, else 0."""
    weights = np.ones((len(starts), tile), np.float32)
    for number, (before, start) in enumerate(itertools.pairwise(starts), 1):
        weights[number, : max(0, before + tile - start)] = 0
    return weights


def _round_up(side: int, multiple: int) -> int:
    return side + -side % multiple


class Blender:
    """Adds up the tiles of one picture, row of tiles by row of tiles; holds one row of them, not the picture."""

    def __init__(self, plan: TilePlan, classes: int, device: "torch.device") -> None:
        import torch  # late: where tiles lie is known without it

        self.plan = plan
        width = plan.columns.starts[-1] + plan.columns.tile
        self._sums = torch.zeros(classes, plan.rows.tile, width, device=device)
        self._finished = 0  # rows of sums that were given away and make room before the next tile
        self._weights = [torch.from_numpy(axis.weights).to(device) for axis in (plan.rows, plan.columns)]

    def add(self, row: int, column: int, logits: "Tensor") -> "tuple[slice, Tensor] | None":
        """Take a tile; tiles come from left to right and from top to bottom.

        Args:
            logits: (C, T, T) of the tile, float32.
        Returns:
            After the last tile of each row, the rows that are finished, and (C, rows, W) their logits; to be used
            before the next tile is added, which writes over them: a copy would be as large as all that is held.
        """
        if self._finished:  # the rows that are not finished move to the top
            kept = self._sums.shape[1] - self._finished
            rest = self._sums[:, self._finished :]
            self._sums[:, :kept] = rest.clone() if kept > self._finished else rest  # cloned where both overlap
            self._sums[:, kept:] = 0
            self._finished = 0
        rows, columns = self.plan.rows, self.plan.columns
        weight = self._weights[0][row, :, None] * self._weights[1][column]
        start = columns.starts[column]
        self._sums[:, :, start : start + columns.tile].addcmul_(logits, weight)
        if column + 1 < len(columns.starts):
            return None
        done = rows.finished(row)
        self._finished = done.stop - done.start
        return done, self._sums[:, : self._finished, : columns.side]
