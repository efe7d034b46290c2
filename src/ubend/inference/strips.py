"""Pictures of any size through the network in tiles: rows of tiles in, finished strips of logits out.

No picture is held whole: of each, a row of tiles is read, and a row of sums is kept. C classes, H x W pixels of a
picture, h rows of a strip.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ubend.inference.tiling import Blender, TilePlan, plan_tiles

if TYPE_CHECKING:
    from torch import Tensor

_GROUPS = 4  # batches of tiles of other sizes that wait at most


class Source(Protocol):
    """A picture that is read by rows."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """(H, W), px."""

    def read(self, top: int, bottom: int) -> NDArray[Any]:
        """(bottom - top, W, channels) of it; asked for from several threads."""


@dataclass(frozen=True)
class Held:
    """A picture in memory: (H, W, channels)."""

    pixels: NDArray[Any]

    @property
    def size_hw(self) -> tuple[int, int]:
        """(H, W), px."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def read(self, top: int, bottom: int) -> NDArray[Any]:
        """(bottom - top, W, channels), a view."""
        return self.pixels[top:bottom]


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut.

    Attributes:
        tile_px: as in `plan_tiles`.
        overlap: as in `plan_tiles`.
        multiple: what the network divides by.
        margin, edge: as in `plan_tiles`.
    """

    tile_px: int
    overlap: float
    multiple: int
    margin: int = 0
    edge: int = 0


class Row(NamedTuple):
    """A row of tiles that is to be read; `picture` counts the pictures, `number` the rows of one."""

    picture: int
    number: int
    plan: TilePlan
    source: Source


@dataclass(frozen=True)
class Strip:
    """Finished rows of a picture.

    Attributes:
        picture: its number.
        rows: of the picture; strips come from top to bottom.
        size_hw: (H, W) of the picture, px.
        logits: (C, h, W) float32, on the device; to be used before the next strip is asked for.
    """

    picture: int
    rows: slice
    size_hw: tuple[int, int]
    logits: "Tensor"

    @property
    def is_last(self) -> bool:
        """Whether the picture ends with it."""
        return bool(self.rows.stop == self.size_hw[0])


def cut_rows(sources: Iterable[Source], tiling: Tiling) -> Iterator[Row]:
    """The rows of tiles of all pictures, one picture after the other."""
    for picture, source in enumerate(sources):
        plan = plan_tiles(source.size_hw, **asdict(tiling))
        for number in range(len(plan.rows.starts)):
            yield Row(picture, number, plan, source)


def read_row(row: Row) -> tuple[Row, NDArray[Any]]:
    """The row, and its (height of a tile, width of all, channels) pixels: uint8 or float32."""
    wanted = row.plan.rows.needed(row.number)
    top, bottom = int(wanted.min()), int(wanted.max()) + 1
    pixels = row.source.read(top, bottom)
    if len(wanted) != bottom - top:
        pixels = pixels[wanted - top]
    columns = row.plan.columns.needed_by_all()
    if len(columns) != row.source.size_hw[1]:
        pixels = pixels[:, columns]
    # torch takes no array that is for reading only, as Pillow's are
    return row, np.require(pixels, None if pixels.dtype == np.uint8 else np.float32, ["C", "W"])


def fetch_strips(strips: Iterable[Strip], make: "Callable[[Tensor], Tensor]") -> Iterator[tuple[Strip, NDArray[Any]]]:
    """Each strip, and in main memory what `make` makes of its (C, h, W) logits.

    A GPU has been given the next strip's work before this one is waited for: it never idles meanwhile.
    """
    import torch

    waiting: tuple[Strip, Tensor, torch.cuda.Event] | None = None
    for strip in strips:
        part = make(strip.logits)
        if part.device.type != "cuda":
            yield strip, part.cpu().numpy()
            continue
        place = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
        place.copy_(part, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        waiting, ready = (strip, place, done), waiting
        if ready is not None:
            ready[2].synchronize()
            yield ready[0], ready[1].numpy()
    if waiting is not None:
        waiting[2].synchronize()
        yield waiting[0], waiting[1].numpy()


def blend_rows(
    rows: Iterable[tuple[Row, NDArray[Any]]],
    send: "Callable[[Tensor], Tensor]",
    forward: "Callable[[Tensor], Tensor]",
    *,
    batch_pixels: int,
) -> Iterator[Strip]:
    """Strips of pictures, each from top to bottom; tiles of one size share a pass, whichever pictures they are of.

    Args:
        rows: of `read_row`.
        send: a tensor of main memory to the device.
        forward: (N, channels, h, w) on the device -> (N, C, h, w) float32 logits.
        batch_pixels: of one forward pass.
    """
    import torch

    waiting: dict[tuple[int, int], list[tuple[Row, int, Tensor]]] = {}
    blenders: dict[int, Blender] = {}

    def answer(tiles: "list[tuple[Row, int, Tensor]]") -> Iterator[Strip]:
        for (row, column, _tile), logits in zip(tiles, forward(torch.stack([t[2] for t in tiles])), strict=True):
            if row.picture not in blenders:
                blenders[row.picture] = Blender(row.plan, logits.shape[0], logits.device)
            done = blenders[row.picture].add(row.number, column, logits)
            if done is not None:
                strip = Strip(row.picture, done[0], row.source.size_hw, done[1])
                if strip.is_last:
                    del blenders[row.picture]
                yield strip

    for row, pixels in rows:
        on_device = send(torch.from_numpy(pixels)).permute(2, 0, 1)
        size = row.plan.input_hw
        most = max(1, batch_pixels // math.prod(size))
        for column, start in enumerate(row.plan.columns.starts):
            group = waiting.setdefault(size, [])
            group.append((row, column, on_device[:, :, start : start + size[1]]))
            if len(group) >= most:
                yield from answer(waiting.pop(size))
        held = sum(len(group) * math.prod(size) for size, group in waiting.items())
        if held >= _GROUPS * batch_pixels:
            yield from answer(waiting.pop(max(waiting, key=lambda one: len(waiting[one]) * math.prod(one))))
    for group in waiting.values():
        yield from answer(group)
