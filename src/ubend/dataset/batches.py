"""Makes the training batches, as a pure function of (store, seed, step).

Training reads an endless sequence of positions. Step k uses positions k * batch to (k + 1) * batch, of which each
process takes B. The image at a position and its augmentation are pure functions of (seed, position).
With a batch of 16, step 3 uses positions 48 to 63; these are slots of the shuffled epoch, and a slot stands for an
item: an image or crop of the store.
"""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubend.core.counter_rng import shuffled_item
from ubend.core.device import send
from ubend.core.plan import AugmentPlan
from ubend.core.settings import FROZEN_COPIES
from ubend.dataset.augment import (
    ITEM,
    PARAMS,
    SIZE_HW,
    Augment,
    AugmentConstants,
    DeviceAugmentParams,
    augment,
    noise_field,
    sample_augmentation,
    sample_frozen,
    warp,
)
from ubend.dataset.foreground import Foreground
from ubend.dataset.rectangles import Rectangles
from ubend.dataset.sources import ItemSource

_PREFETCH = 3  # batches read ahead, if the images do not fit on the device


@dataclass(frozen=True)
class Batch:
    """The images of one training step.

    Attributes:
        image: (B, C, H, W) float32, augmented, channels last; in the units of the files (0..255 for 8 bit): the
            network normalises.
        target: (B, H, W) uint8 class index or IGNORED.
        pixel_weights: (B, H, W) float32, added to the class weight of each pixel, warped with the image; None: zero.
    """

    image: Tensor
    target: Tensor
    pixel_weights: Tensor | None = None

    def split(self, size: int) -> "Iterator[Batch]":
        """Split into batches of `size` images; the last one may be smaller."""
        images = torch.split(self.image, size)
        pixel_weights = [None] * len(images) if self.pixel_weights is None else torch.split(self.pixel_weights, size)
        return map(Batch, images, torch.split(self.target, size), pixel_weights)


@dataclass(frozen=True)
class BatchOrder:
    """Which positions of the endless sequence a step reads, and how the sequence is shuffled.

    Attributes:
        seed: of the run.
        batch: images per step, of all processes together.
        shard: (rank, number of processes): selects this process's share of each batch; the number must divide `batch`.
    """

    seed: int
    batch: int
    shard: tuple[int, int] = (0, 1)

    @property
    def batch_per_process(self) -> int:
        """Images per step of this process."""
        return self.batch // self.shard[1]

    def positions(self, step: int) -> NDArray[np.int64]:
        """(B,) int64: the positions of this process's images of a step."""
        first = step * self.batch + self.shard[0] * self.batch_per_process
        return first + np.arange(self.batch_per_process, dtype=np.int64)


@dataclass(frozen=True)
class Augmentation:
    """How stored images become training images.

    Attributes:
        settings: what is varied, and how much.
        crop_hw: (H, W) of a training image.
        value_range: (low, high), each (C,), of the channels.
        augment: `ubend.dataset.augment.augment`, or a faster function with the same arguments.
    """

    settings: AugmentPlan
    crop_hw: tuple[int, int]
    value_range: tuple[NDArray[np.float64], NDArray[np.float64]]
    augment: Augment = augment


class TrainingBatches:
    """The batches of a training; `sample(step)` works for any step, and is fastest in order.

    Args:
        source: the training split; an epoch shows each item `source.repeats` times.
        foreground: places a fraction of the crops on objects; None: crops are placed at random.
        pixel_weights: (images, H, W), added to the class weights, on the images' canvas; None: zero.
    Attributes:
        batch_per_process: images per step of this process.
        crop_hw: (H, W) of a training image.
        items_per_epoch: images or crops of an epoch, copies included.
        weighs_pixels: whether batches have weights for single pixels.
        waited_s: total time spent waiting for images to be read, s.
    """

    def __init__(
        self,
        source: ItemSource,
        order: BatchOrder,
        augmentation: Augmentation,
        *,
        foreground: Foreground | None = None,
        pixel_weights: NDArray[np.float16] | None = None,
    ) -> None:
        self.source, self._foreground = source, foreground
        self._order, self.seed, self.batch_per_process = order, order.seed, order.batch_per_process
        self.settings = settings = augmentation.settings
        self.crop_hw, self._augment = augmentation.crop_hw, augmentation.augment
        self._pixel_weights, self.weighs_pixels = pixel_weights, pixel_weights is not None
        self.copies = FROZEN_COPIES if settings.kind == "frozen" else 1
        self._ends = np.cumsum(source.repeats * self.copies)
        self.items_per_epoch = int(self._ends[-1])
        device = source.device
        channels = source.store.channels
        low, high = (
            torch.tensor(v, dtype=torch.float32, device=device).view(1, -1, 1, 1) for v in augmentation.value_range
        )
        changes_colors = settings.kind == "warp"
        self._constants = AugmentConstants(
            self.crop_hw,
            (low, high),
            torch.from_numpy(noise_field(self.seed, channels)).to(device) if changes_colors else None,
            changes_colors and settings.out_of_frame == "ignored",
            settings.elastic_grid,
        )
        self._counting = torch.arange(self.batch_per_process, dtype=torch.int32, device=device)
        self._prefetched: deque[tuple[int, Future[tuple[Tensor, Tensor]]]] = deque()
        self._rows: dict[int, tuple[NDArray[np.float32], Rectangles]] = {}  # of steps being read
        self.waited_s = 0.0

    def sample(self, step: int) -> Batch:
        """The batch of a step, a pure function of (seed, step)."""
        packed = send(torch.from_numpy(self.pack(step)), self.source.device)
        batch = self.render(packed, None if self.source.resident else self.fetch(step))
        if self._pixel_weights is None:
            return batch
        return replace(batch, pixel_weights=self._weigh(step, self._pixel_weights, packed))

    def _weigh(self, step: int, weights: NDArray[np.float16], packed: Tensor) -> Tensor:
        """(B, H, W) the pixel weights of a step's images, warped as they are."""
        chosen = send(torch.from_numpy(weights[self._items(step)[2]]), packed.device)
        if self.settings.kind == "none":
            return chosen.float()
        params = DeviceAugmentParams.unpack(packed[:, PARAMS], self.source.store.channels)
        unlabelled = torch.zeros(chosen.shape, dtype=torch.uint8, device=packed.device)
        points = self.settings.elastic_grid
        return warp(chosen[:, None], unlabelled, packed[:, SIZE_HW], params, self.crop_hw, False, points)[0][:, 0]

    def pack(self, step: int) -> NDArray[np.float32]:
        """Pack what `render` needs of a step into one (B, K) array, so that one copy sends it to the device.

        The columns are PARAMS (none without augmentation), SIZE_HW and ITEM, see `ubend.dataset.augment`.
        """
        return self._rows_of_step(step)[0]

    def render(self, packed: Tensor, fetched: tuple[Tensor, Tensor] | None = None) -> Batch:
        """Make the batch of a step; runs on the device only, so that a CUDA graph can capture it.

        Args:
            packed: (B, K) float32 on the device, from `pack`.
            fetched: (B, H, W, C) and (B, H, W) images that are not resident.
        """
        images, masks = (self.source.images, self.source.masks) if fetched is None else fetched
        # indices into these images
        items = packed[:, ITEM].contiguous().view(torch.int32) if fetched is None else self._counting
        if self.settings.kind == "none":
            chosen = images[items], masks[items]
            return Batch(chosen[0].permute(0, 3, 1, 2).float(), chosen[1])
        return Batch(*self._augment(images, masks, items, packed, self._constants))

    def _rows_of_step(self, step: int) -> tuple[NDArray[np.float32], Rectangles]:
        """(result of `pack`, rectangles to read) for a step."""
        if step not in self._rows:
            slots, positions, items = self._items(step)
            rectangles, channels, rows = self.source.rectangles(items), self.source.store.channels, []
            if self.settings.kind == "frozen":
                native = self.source.store.native_hw[rectangles.image_indices]
                shapes = rectangles.size_hw, native
                params = sample_frozen(self.settings, self.seed, items, slots % self.copies, shapes, channels)
                rows.append(params.pack())
            elif self.settings.kind == "warp":
                targets = self._foreground.sample(items, positions) if self._foreground else None
                params = sample_augmentation(
                    self.settings, self.seed, positions, rectangles.size_hw, self.crop_hw, channels, targets
                )
                params, rectangles = self.source.narrow(params, rectangles, self.crop_hw, self.settings.elastic_grid)
                rows.append(params.pack())
            rows += [rectangles.size_hw.astype(np.float32), items.astype(np.int32).view(np.float32)[:, None]]
            while len(self._rows) > _PREFETCH:
                del self._rows[next(iter(self._rows))]
            self._rows[step] = np.concatenate(rows, axis=1), rectangles
        return self._rows[step]

    def _items(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(slots, positions, items) of a step, each (B,).

        Positions are those of the endless sequence, slots those of the epoch (0..`items_per_epoch` - 1) in shuffled
        order, and items those of `source`, which may have several slots.
        """
        positions = self._order.positions(step)
        slots = shuffled_item(self.seed, self.items_per_epoch, positions)
        return slots, positions, np.searchsorted(self._ends, slots, side="right")

    def wait_for_reading(self) -> None:
        """Wait until no thread is reading: while a step is captured, no other thread may allocate memory."""
        for _step, reading in self._prefetched:
            reading.exception()

    def fetch(self, step: int) -> tuple[Tensor, Tensor]:
        """(B, H, W, C) images and (B, H, W) masks of a step, on the device; starts reading the next steps."""
        if not self._prefetched or self._prefetched[0][0] != step:
            self._prefetched.clear()  # not the next step: after a resume, or to look at an old batch
        while len(self._prefetched) < _PREFETCH:
            following = self._prefetched[-1][0] + 1 if self._prefetched else step
            self._prefetched.append((following, self.source.prefetch(self._rows_of_step(following)[1])))
        started = time.monotonic()
        fetched = self._prefetched.popleft()[1].result()
        self.waited_s += time.monotonic() - started
        return fetched
