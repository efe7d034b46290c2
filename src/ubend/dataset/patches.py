"""Windows of pictures of any size, at their own scale, cut from the memory-mapped store.

For training, what a window's warp looks at is known before: so much of the picture, and no more, is read and brought
to the device (a *crop*), where the warp is the same as on the picture as a whole. For validation, the windows are
fixed, and each pixel counts in one of them.

N windows, H x W pixels of a window or crop, C channels.
"""

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubend.core.settings import AugmentSettings, settled
from ubend.dataset.augment import ELASTIC_POINTS, Draws, elastic_basis
from ubend.dataset.store import Store
from ubend.labels.class_table import IGNORED

_NODES = 33  # of each axis of a window, at which the warp is looked at; between them it bends by less than _BEND_PX
_BEND_PX = 1
_ELASTIC_DEVIATIONS = 4  # of the elastic field's points, that a crop has room for


@dataclass(frozen=True)
class Crops:
    """Rectangles of pictures.

    Attributes:
        numbers: (N,) of the pictures, in the store.
        corner_yx: (N, 2) their first pixel.
        size_hw: (N, 2) px.
    """

    numbers: NDArray[np.int64]
    corner_yx: NDArray[np.int64]
    size_hw: NDArray[np.int64]


class Source:
    """Images of a store, or windows of them, that are brought to a device as batches on one canvas.

    Args:
        store: where the images are.
        numbers: (n,) which of them.
        device: where they go.
    Attributes:
        numbers: (N,) of each item's image, in the store.
        sources: (N,) the same, counted as in the argument; `source_count`: n.
        corner_yx, shapes_hw: (N, 2) what an item shows of its image, px.
        canvas_hw: (H, W) px, at least as large as each item.
        shown: (N,) how often an epoch shows each item.
        resident: whether all of them stay on the device; `bytes`: what they would take there.
    """

    resident = False
    bytes = 0
    threads = 1  # that read
    canvas_hw: tuple[int, int]

    def __init__(self, store: Store, numbers: NDArray[np.int64], device: torch.device) -> None:
        self.store, self.numbers, self.device = store, numbers, device
        self.sources, self.source_count = np.arange(len(numbers)), len(numbers)
        self.shapes_hw = store.shapes_hw[numbers]
        self.corner_yx, self.shown = np.zeros_like(self.shapes_hw), np.ones(len(numbers), np.int64)
        self._reader = ThreadPoolExecutor(self.threads, thread_name_prefix="ubend-read")

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def fetched_bytes(self) -> int:
        """What one item takes on the device."""
        return math.prod(self.canvas_hw) * (self.store.channels * device_dtype(self.store).itemsize + 1)

    def image(self, item: int) -> NDArray[Any]:
        """(h, w, C) of one item, in main memory."""
        (top, left), (h, w) = self.corner_yx[item].tolist(), self.shapes_hw[item].tolist()
        return self.store.image(int(self.numbers[item]))[top : top + h, left : left + w]

    def mask(self, item: int) -> NDArray[np.uint8]:
        """(h, w) class index or IGNORED of one item, in main memory."""
        (top, left), (h, w) = self.corner_yx[item].tolist(), self.shapes_hw[item].tolist()
        return self.store.mask(int(self.numbers[item]))[top : top + h, left : left + w]

    def crops(self, items: NDArray[np.int64] | slice) -> Crops:
        """What these items show."""
        return Crops(self.numbers[items], self.corner_yx[items], self.shapes_hw[items])

    def read(self, crops: Crops) -> tuple[Tensor, Tensor]:
        """(N, H, W, C) images and (N, H, W) class indices of `canvas_hw`, on the device."""
        return read_crops(self.store, crops, self.canvas_hw, self.device)

    def take_ahead(self, crops: Crops) -> "Future[tuple[Tensor, Tensor]]":
        """The same, by a reading thread."""
        return self._reader.submit(self.read, crops)


class Patches(Source):
    """The images of a training part, at their own size; crops of them are read, never all of them.

    Args:
        store, numbers, device: see `Source`.
        windows: how many of them an epoch shows; each image in proportion to its area, and at least once.
        window_hw: (H, W) px.
        settings: of the warp; they say how much of an image a window may look at.
    """

    threads = 4  # what they wait for is the disk

    def __init__(
        self,
        store: Store,
        numbers: NDArray[np.int64],
        device: torch.device,
        windows: int,
        window_hw: tuple[int, int],
        settings: AugmentSettings,
    ) -> None:
        super().__init__(store, numbers, device)
        self.shown = share_windows(self.shapes_hw.prod(axis=1), windows)
        self.canvas_hw = _reach(window_hw, settings, self.shapes_hw.max(axis=0))


def share_windows(areas: NDArray[np.int64], windows: int) -> NDArray[np.int64]:
    """So many windows among pictures of these areas: in proportion, each at least one; the sum may differ a little."""
    return np.asarray(np.maximum(1, np.rint(windows * (areas / areas.sum()))).astype(np.int64))


def find_crops(
    draws: Draws,
    shapes_hw: NDArray[np.int64],
    window_hw: tuple[int, int],
    crop_hw: tuple[int, int],
    points: int = ELASTIC_POINTS,
) -> tuple[Draws, NDArray[np.int64], NDArray[np.int64]]:
    """What the warp of each window looks at.

    Where that is more than `crop_hw` (an elastic field in a thousand), the crop's border is the picture's.

    Args:
        draws: on pictures as wholes.
        shapes_hw: (N, 2) of the pictures.
        points: a side of the elastic field, as of `elastic_basis`.
    Returns:
        The draws on the crops, and the (N, 2) corners and sizes of these, px.
    """
    centre = (shapes_hw - 1) / 2 + draws.offset_yx.astype(np.float64)
    low, high = _source_bounds(draws, window_hw, points)
    first, last = np.floor(centre + low).astype(np.int64), np.ceil(centre + high).astype(np.int64)
    # out of the picture, the warp sees its reflection: -1 is 0, and `side` is `side - 1`
    mirrored = np.where(first < 0, -1 - first, 0), np.where(last >= shapes_hw, 2 * shapes_hw - 1 - last, shapes_hw)
    first, last = (
        np.clip(np.minimum(first, mirrored[1]), 0, shapes_hw - 1),
        np.clip(np.maximum(last, mirrored[0]), 0, shapes_hw - 1),
    )
    size = np.minimum(last - first + 1, np.array(crop_hw))
    cut = size < last - first + 1
    middle = np.clip(np.rint(centre - size / 2).astype(np.int64), 0, shapes_hw - size)
    corner = np.where(cut, middle, first)
    offset = centre - corner - (size - 1) / 2
    return replace(draws, offset_yx=offset.astype(np.float32)), corner, size


def _source_bounds(
    draws: Draws, window_hw: tuple[int, int], points: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N, 2) least and greatest place that a window looks at, from its centre in the picture, px."""
    places = [np.unique(np.linspace(0, side - 1, min(side, _NODES)).astype(np.int64)) for side in window_hw]
    cpu = torch.device("cpu")
    basis_y, basis_x = (elastic_basis(s, cpu, points).numpy()[at] for s, at in zip(window_hw, places, strict=True))
    y, x = (at - (side - 1) / 2 for side, at in zip(window_hw, places, strict=True))
    a = draws.affine.astype(np.float64)
    source = basis_y @ draws.elastic @ basis_x.T  # (N, 2, nodes, nodes)
    source = source + a[:, :, 0, None, None] * y[:, None] + a[:, :, 1, None, None] * x
    return source.min(axis=(2, 3)) - _BEND_PX, source.max(axis=(2, 3)) + _BEND_PX


def _reach(window_hw: tuple[int, int], settings: AugmentSettings, largest_hw: NDArray[np.int64]) -> tuple[int, int]:
    """(H, W) that hold what a window looks at, but for rare elastic fields; px."""
    turns = np.linspace(0, np.deg2rad(min(90.0, settled(settings.rotation_deg))), 91)
    zoom = math.exp(settings.scale + settings.stretch / 2)
    drawn = settings.elastic * math.sqrt(math.prod(window_hw))
    deviation = drawn if settings.elastic_px is None else settings.elastic_px
    bend = 2 * (_ELASTIC_DEVIATIONS * deviation + _BEND_PX + 1)
    height, width = window_hw
    sides = [(np.cos(turns) * one + np.sin(turns) * other).max() for one, other in ((height, width), (width, height))]
    high, wide = (min(math.ceil(zoom * side + bend), int(most)) for side, most in zip(sides, largest_hw, strict=True))
    return high, wide


def device_dtype(store: Store) -> torch.dtype:
    """Of pixels on the device; torch can do little with uint16."""
    return torch.uint8 if store.dtype == np.uint8 else torch.float32


def read_crops(store: Store, crops: Crops, canvas_hw: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Crops, each at the top left of a canvas, on the device; the rest repeats the edge and is IGNORED.

    Args:
        canvas_hw: at least as large as each of them.
    Returns:
        (N, H, W, C) pictures, uint8 or float32, and (N, H, W) class indices.
    """
    shape, pinned = (len(crops.numbers), *canvas_hw), device.type == "cuda"
    pixels = torch.empty((*shape, store.channels), dtype=device_dtype(store), pin_memory=pinned)
    index = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
    every = zip(crops.numbers.tolist(), crops.corner_yx.tolist(), crops.size_hw.tolist(), strict=True)
    for image, mask, (number, corner_yx, size_hw) in zip(pixels.numpy(), index.numpy(), every, strict=True):
        store.lay(number, image, mask, corner_yx, size_hw)  # into the tensors' own memory
    return pixels.to(device, non_blocking=True), index.to(device, non_blocking=True)


class Windows(Source):
    """Fixed windows that cover images; each pixel is scored in one of them.

    Args:
        store, numbers, device: see `Source`.
        window_hw: (H, W) px, at most; smaller where all images are.
        most: windows; of more, so many are taken evenly.
    Attributes:
        cover: how many windows cover all images.
    """

    def __init__(
        self, store: Store, numbers: NDArray[np.int64], device: torch.device, window_hw: tuple[int, int], most: int
    ) -> None:
        super().__init__(store, numbers, device)
        shapes = self.shapes_hw
        counts = np.ceil(shapes / np.array(window_hw)).astype(np.int64)
        ends = np.cumsum(counts.prod(axis=1))
        self.cover = int(ends[-1])
        chosen = np.arange(self.cover)
        if self.cover > most:  # the middle ones of so many equal stretches
            chosen = ((np.arange(most) + 0.5) * self.cover / most).astype(np.int64)
        self.sources = np.searchsorted(ends, chosen, side="right").astype(np.int64)
        self.numbers = numbers[self.sources]
        inside = chosen - (ends - counts.prod(axis=1))[self.sources]
        places = np.stack(np.divmod(inside, counts[self.sources, 1]), axis=1)
        shapes, counts = shapes[self.sources], counts[self.sources]
        self.shapes_hw = np.minimum(shapes, np.array(window_hw))
        room, gaps = shapes - self.shapes_hw, np.maximum(1, counts - 1)
        self.corner_yx = room * places // gaps  # spread evenly, so neighbours overlap
        before = np.where(places > 0, room * (places - 1) // gaps + self.shapes_hw, 0)
        self._fresh = np.maximum(0, before - self.corner_yx)  # rows and columns that were scored before
        self.canvas_hw = int(self.shapes_hw[:, 0].max()), int(self.shapes_hw[:, 1].max())

    def take(self, items: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) windows, channels last, and (N, H, W) uint8 class indices, on the device."""
        pixels, index = self.read(self.crops(items))
        for mask, (rows, columns) in zip(index, self._fresh[items].tolist(), strict=True):
            mask[:rows], mask[:, :columns] = IGNORED, IGNORED
        return pixels.permute(0, 3, 1, 2), index
