"""Data sources: images of a store, or crops of them, brought to a device as batches on one canvas.

Training and validation use only the interface `ItemSource`, never a subclass by name:

    Images   whole images, kept on the device where they fit
    Patches    images at native size, of which training reads crops
    Windows    fixed crops that cover images, for validation; each pixel counts in one of them

N items, H x W pixels of the canvas, C channels.
"""

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubend.core.device import free_bytes, send
from ubend.core.i18n import _
from ubend.core.plan import AugmentPlan, Plan
from ubend.dataset.augment import WarpParams
from ubend.dataset.dataset import Dataset
from ubend.dataset.regions import Regions, device_dtype, find_regions, read_regions, region_canvas
from ubend.dataset.store import Store
from ubend.labels.class_table import IGNORED

_SLICE_BYTES = 64 * 2**20  # of images brought to the device at once
_RESIDENT_SHARE = 0.4  # of a GPU's free memory that images may take
_VALIDATION_SHARE = 0.5  # of an epoch's pixels, at most, when crops are validated: a sixth of its time
_VALIDATION_PIXELS = 4 * 2**20  # in one forward pass without gradients
_CPU_CROP_PIXELS = 2**19  # likewise, of crops on a CPU, which more make no faster, but take 1 GiB each million


class ItemSource:
    """Images of a store, or crops of them, that are brought to a device as batches on one canvas.

    Args:
        store: where the images are.
        numbers: (n,) which of them.
        device: where they go.
    Attributes:
        numbers: (N,) of each item's image, in the store.
        sources: (N,) the same, counted as in the argument; `source_count`: n.
        corner_yx, shapes_hw: (N, 2) what an item shows of its image, px.
        canvas_hw: (H, W) px, at least as large as what is read of an item.
        shown: (N,) how often an epoch shows each item.
        resident: whether all of them stay on the device; `bytes`: what they would take there.
        images, masks: (N, H, W, C) uint8 or float32 and (N, H, W) uint8 on the device if resident, else empty.
        validation_pixels: of canvases in one forward pass without gradients, where memory allows.
    """

    resident = False
    bytes = 0
    threads = 1  # that read
    validation_pixels = _VALIDATION_PIXELS
    canvas_hw: tuple[int, int]

    def __init__(self, store: Store, numbers: NDArray[np.int64], device: torch.device) -> None:
        self.store, self.numbers, self.device = store, numbers, device
        self.sources, self.source_count = np.arange(len(numbers)), len(numbers)
        self.shapes_hw = store.shapes_hw[numbers]
        self.corner_yx, self.shown = np.zeros_like(self.shapes_hw), np.ones(len(numbers), np.int64)
        self.images = self.masks = torch.empty(0)
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

    def regions(self, items: NDArray[np.int64] | slice) -> Regions:
        """What these items show."""
        return Regions(self.numbers[items], self.corner_yx[items], self.shapes_hw[items])

    def narrow(
        self, params: WarpParams, regions: Regions, crop_hw: tuple[int, int], points: int
    ) -> tuple[WarpParams, Regions]:
        """What the warps of crops look at of items, where only that is read; else the arguments as they are.

        Args:
            params: on the items as wholes.
            regions: the items, from `regions`.
            points: a side of the elastic field, see `elastic_basis`.
        Returns:
            The draws on the crops, and these.
        """
        return params, regions

    def note(self) -> str | None:
        """A sentence for the user about what is left out; None: nothing is."""
        return None

    def take(self, items: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """(n, C, H, W) uint8 or float32 images, channels last, and (n, H, W) uint8 class indices, on the device.

        An item lies at the top left of its canvas and is cut off where that ends; the rest repeats its edge and is
        IGNORED.
        """
        if self.resident:
            where = send(torch.from_numpy(items), self.device)
            pixels, index = self.images[where], self.masks[where]
        else:
            regions = self.regions(items)
            pixels, index = self.read(replace(regions, size_hw=np.minimum(regions.size_hw, self.canvas_hw)))
        return pixels.permute(0, 3, 1, 2), index

    def read(self, regions: Regions) -> tuple[Tensor, Tensor]:
        """(N, H, W, C) images and (N, H, W) class indices of `canvas_hw`, on the device."""
        return read_regions(self.store, regions, self.canvas_hw, self.device)

    def prefetch(self, regions: Regions) -> "Future[tuple[Tensor, Tensor]]":
        """The same, by a reading thread."""
        return self._reader.submit(self.read, regions)


class WholeImages(ItemSource):
    """Whole images, resident on the device when they fit (`room_bytes`), else read from the memory-mapped store.

    Args:
        store, numbers, device: see `ItemSource`.
        room_bytes: how much of the device's memory images may take.
    """

    def __init__(self, store: Store, numbers: NDArray[np.int64], device: torch.device, room_bytes: int) -> None:
        super().__init__(store, numbers, device)
        self.canvas_hw = int(self.shapes_hw[:, 0].max()), int(self.shapes_hw[:, 1].max())
        self.bytes = len(numbers) * self.fetched_bytes
        self.resident = self.bytes <= room_bytes
        if self.resident:
            shape, dtype = (len(self), *self.canvas_hw), device_dtype(store)
            self.images = torch.empty((*shape, store.channels), dtype=dtype, device=device)
            self.masks = torch.empty(shape, dtype=torch.uint8, device=device)
            count = max(1, _SLICE_BYTES // self.fetched_bytes)
            for start in range(0, len(self), count):
                part = slice(start, start + count)
                self.images[part], self.masks[part] = self.read(self.regions(part))


class RandomCrops(ItemSource):
    """The images of a training split, at native size; crops of them are read, never all of them.

    Args:
        store, numbers, device: see `ItemSource`.
        crops: how many of them an epoch shows; each image in proportion to its area, and at least once.
        crop_hw: (H, W) px.
        settings: of the warp; they say how much of an image a crop may look at.
    """

    threads = 4  # what they wait for is the disk

    def __init__(
        self,
        store: Store,
        numbers: NDArray[np.int64],
        device: torch.device,
        crops: int,
        crop_hw: tuple[int, int],
        settings: AugmentPlan,
    ) -> None:
        super().__init__(store, numbers, device)
        self.shown = share_crops(self.shapes_hw.prod(axis=1), crops)
        self.canvas_hw = region_canvas(crop_hw, settings, self.shapes_hw.max(axis=0))

    def narrow(
        self, params: WarpParams, regions: Regions, crop_hw: tuple[int, int], points: int
    ) -> tuple[WarpParams, Regions]:
        """The crop that each warp looks at."""
        moved, *box = find_regions(params, regions.size_hw, crop_hw, self.canvas_hw, points)
        return moved, Regions(regions.numbers, *box)


class FixedCrops(ItemSource):
    """Fixed crops that cover images; each pixel is scored in one of them.

    Args:
        store, numbers, device: see `ItemSource`.
        crop_hw: (H, W) px, at most; smaller where all images are.
        maximum: crops; of more, so many are taken evenly.
    Attributes:
        cover: how many crops cover all images.
    """

    def __init__(
        self, store: Store, numbers: NDArray[np.int64], device: torch.device, crop_hw: tuple[int, int], maximum: int
    ) -> None:
        super().__init__(store, numbers, device)
        self.validation_pixels = _CPU_CROP_PIXELS if device.type == "cpu" else _VALIDATION_PIXELS
        shapes = self.shapes_hw
        counts = np.ceil(shapes / np.array(crop_hw)).astype(np.int64)
        ends = np.cumsum(counts.prod(axis=1))
        self.cover = int(ends[-1])
        chosen = np.arange(self.cover)
        if self.cover > maximum:  # the middle ones of so many equal stretches
            chosen = ((np.arange(maximum) + 0.5) * self.cover / maximum).astype(np.int64)
        self.sources = np.searchsorted(ends, chosen, side="right").astype(np.int64)
        self.numbers, self.shown = numbers[self.sources], np.ones_like(chosen)
        inside = chosen - (ends - counts.prod(axis=1))[self.sources]
        positions = np.stack(np.divmod(inside, counts[self.sources, 1]), axis=1)
        shapes, counts = shapes[self.sources], counts[self.sources]
        self.shapes_hw = np.minimum(shapes, np.array(crop_hw))
        room, gaps = shapes - self.shapes_hw, np.maximum(1, counts - 1)
        self.corner_yx = room * positions // gaps  # spread evenly, so neighbours overlap
        before = np.where(positions > 0, room * (positions - 1) // gaps + self.shapes_hw, 0)
        self._fresh = np.maximum(0, before - self.corner_yx)  # rows and columns that were scored before
        self.canvas_hw = int(self.shapes_hw[:, 0].max()), int(self.shapes_hw[:, 1].max())

    def note(self) -> str | None:
        """How many crops are looked at, if not all."""
        if len(self) == self.cover:
            return None
        return _(
            "note: {cover} crops would cover the validation split; {count} of them, evenly taken, are looked at"
        ).format(cover=self.cover, count=len(self))

    def take(self, items: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """As of any source; what is scored in another crop is IGNORED as well."""
        pixels, index = super().take(items)
        for mask, (rows, columns) in zip(index, self._fresh[items].tolist(), strict=True):
            mask[:rows], mask[:, :columns] = IGNORED, IGNORED
        return pixels, index


def share_crops(areas: NDArray[np.int64], crops: int) -> NDArray[np.int64]:
    """So many crops among images of these areas: in proportion, each at least one; the sum may differ a little."""
    return np.asarray(np.maximum(1, np.rint(crops * (areas / areas.sum()))).astype(np.int64))


def open_sources(
    data: Dataset, plan: Plan, device: torch.device, crop_hw: tuple[int, int]
) -> tuple[ItemSource, ItemSource]:
    """The training and the validation split of a data set, as `data.resize` asks for them; on the device if they fit.

    Images that keep their native size stay in the store, and crops of them are read.

    Args:
        crop_hw: (H, W) px of a training crop.
    """
    numbers, others = data.numbers("train"), data.numbers("val")
    if plan.data.resize == "native":
        crops = plan.data.crops_per_epoch or len(numbers)
        training = RandomCrops(data.store, numbers, device, crops, crop_hw, plan.augment)
        # twice as large: pixels at its border lack surroundings, and count half as often
        maximum = max(len(others), round(_VALIDATION_SHARE * crops / 4))
        return training, FixedCrops(data.store, others, device, (2 * crop_hw[0], 2 * crop_hw[1]), maximum)
    # on the CPU the memory-mapped store is as good
    room = 0 if device.type == "cpu" else int(_RESIDENT_SHARE * free_bytes(device))
    whole = WholeImages(data.store, numbers, device, room)
    return whole, WholeImages(data.store, others, device, room - (whole.bytes if whole.resident else 0))
