"""(store, seed, position) -> device batches; nothing hidden.

Training reads one endless order of positions; step k takes positions k*B to (k+1)*B, of which each of
several processes takes its part. Which picture stands at a position, and what is done to it, are pure
functions of (seed, position).
"""

import math
import mmap
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubend.config import AugmentSettings
from ubend.data.augment import (
    FROZEN_COPIES,
    DeviceDraws,
    Draws,
    change_colors,
    draw_frozen,
    draw_warps,
    elastic_basis,
    noise_field,
    warp,
)
from ubend.data.draws import shuffled_item
from ubend.data.foreground import Foreground
from ubend.data.patches import Crops, Patches, find_crops
from ubend.data.store import Store
from ubend.kernels.gate import usable

_SLICE_BYTES = 64 * 2**20  # of pictures brought to the device at once
_AHEAD = 3  # batches read ahead of the device when the pictures do not fit on it


class Pictures:
    """Some pictures of a store, handed out as device batches on one canvas.

    Resident on the device when they fit (`room_bytes`), else read from the memory-mapped store, a few
    batches ahead, by one thread. Where the device is the CPU, a resident picture is laid down when it is
    first wanted: a training need not wait for all before its first step.

    Args:
        store: where the pictures are.
        numbers: (n,) which of them, in the order in which `take` counts them.
        room_bytes: how much of the device's memory pictures may take.
    """

    def __init__(
        self,
        store: Store,
        numbers: NDArray[np.int64],
        device: torch.device,
        room_bytes: int,
    ) -> None:
        self.store, self.numbers, self.device = store, numbers, device
        self.shapes_hw = store.shapes_hw[numbers]
        self.canvas_hw = (int(self.shapes_hw[:, 0].max()), int(self.shapes_hw[:, 1].max()))
        area = self.canvas_hw[0] * self.canvas_hw[1]
        pixel_bytes = store.channels * (1 if store.dtype == np.uint8 else 4) + 1
        self.bytes = len(numbers) * area * pixel_bytes
        self.resident = self.bytes <= room_bytes
        self.sources, self.source_count = np.arange(len(numbers)), len(numbers)  # as of `Windows`
        self.images = self.masks = torch.empty(0)  # (n, H, W, C) and (n, H, W) on the device, if resident
        self._laid = np.zeros(len(self), np.bool_)  # which of them are there
        if self.resident:
            dtype = torch.uint8 if store.dtype == np.uint8 else torch.float32
            self.images = _reserve((len(self), *self.canvas_hw, store.channels), dtype, device)
            self.masks = _reserve((len(self), *self.canvas_hw), torch.uint8, device)
            if device.type != "cpu":
                self._fill(max(1, _SLICE_BYTES // (area * pixel_bytes)))
        else:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="ubend-read")

    def __len__(self) -> int:
        return len(self.numbers)

    def image(self, item: int) -> NDArray[Any]:
        """(h, w, C) of one picture, in main memory."""
        return self.store.image(int(self.numbers[item]))

    def mask(self, item: int) -> NDArray[np.uint8]:
        """(h, w) class index or IGNORED of one picture, in main memory."""
        return self.store.mask(int(self.numbers[item]))

    def take(self, items: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """(n, C, H, W) pictures, channels last, and (n, H, W) uint8 class indices, on the device."""
        if not self.resident:
            pixels, index = self._to_device(items)
            return pixels.permute(0, 3, 1, 2), index
        self.lay(items)
        where = _send(torch.from_numpy(items), self.device)
        return self.images[where].permute(0, 3, 1, 2), self.masks[where]

    def take_ahead(self, items: NDArray[np.int64]) -> "Future[tuple[Tensor, Tensor]]":
        """(n, H, W, C) and (n, H, W), brought to the device by the reading thread; for pictures not resident."""
        return self._reader.submit(self._to_device, items)

    def lay(self, items: NDArray[np.int64]) -> None:
        """See to it that these are in `images` and `masks`, if resident."""
        if not self.resident or self._laid.all():
            return
        images, masks = self.images.numpy(), self.masks.numpy()  # the tensors' own memory
        for item in np.unique(items[~self._laid[items]]):
            self.store.lay(int(self.numbers[item]), images[item], masks[item])
            self._laid[item] = True

    def _fill(self, count: int) -> None:
        """Bring all pictures to the device, `count` at a time."""
        for start in range(0, len(self), count):
            part = slice(start, start + count)
            self.images[part], self.masks[part] = self._to_device(np.arange(len(self))[part])
        self._laid[:] = True

    def _to_device(self, items: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        images, masks = self.store.read(self.numbers[items], self.canvas_hw)
        if images.dtype == np.uint16:  # torch can do little with it
            images = images.astype(np.float32)
        tensors = [torch.from_numpy(images), torch.from_numpy(masks)]
        if self.device.type == "cuda" and not self.resident:
            tensors = [tensor.pin_memory() for tensor in tensors]
        pixels, index = (tensor.to(self.device, non_blocking=True) for tensor in tensors)
        return pixels, index


def _reserve(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Room on the device. On the CPU its pages are taken when they are first written to, and are small ones:
    torch asks for huge ones, and clearing them around each of 16 pictures takes 0.2 s."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    if sys.platform == "win32":
        pages = mmap.mmap(-1, size)
    else:
        pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


@dataclass(frozen=True)
class Batch:
    """One training step's pictures.

    Attributes:
        image: (B, C, H, W) float32 raw values, augmented, channels last; B is this process's part of the batch.
        target: (B, H, W) uint8 class index or IGNORED.
        more: (B, H, W) float32, what a pixel weighs beyond its class, warped as the picture is; None: nothing.
    """

    image: Tensor
    target: Tensor
    more: Tensor | None = None


class TrainingBatches:
    """The batches of a training; `draw(step)` may be asked for any step, at best in order.

    Args:
        pictures: the training part; of `Patches`, crops are read, and each picture is shown as often as they say.
        settings: what is done to them.
        seed: of the whole run.
        batch: pictures per step, of all processes together.
        window_hw: (H, W) of a training picture.
        value_range: (low, high), each (C,), of the channels.
        foreground: the windows that are laid over objects; None: all lie anywhere.
        part: (rank, number of processes): which part of each batch is drawn here; their number divides the batch.
        more: (pictures, H, W) what pixels weigh beyond their class, on the pictures' canvas; None: nothing.
    Attributes:
        batch: pictures per step that are drawn here.
        waited_s: for pictures that had not been read yet, in all.
    """

    def __init__(
        self,
        pictures: Pictures | Patches,
        settings: AugmentSettings,
        seed: int,
        batch: int,
        window_hw: tuple[int, int],
        value_range: tuple[NDArray[np.float64], NDArray[np.float64]],
        foreground: Foreground | None = None,
        part: tuple[int, int] = (0, 1),
        more: NDArray[np.float16] | None = None,
    ) -> None:
        self.pictures, self.settings, self.seed = pictures, settings, seed
        self.batch, self._whole = batch // part[1], batch
        self._offset = part[0] * self.batch
        self.window_hw, self._foreground, self._more = window_hw, foreground, more
        self.copies = FROZEN_COPIES if settings.kind == "frozen" else 1
        # what one epoch shows
        self.items = int(pictures.shown.sum()) if isinstance(pictures, Patches) else len(pictures) * self.copies
        device = pictures.device
        channels = pictures.store.channels
        low, high = (torch.tensor(v, dtype=torch.float32, device=device).view(1, -1, 1, 1) for v in value_range)
        self._low, self._high = low, high
        self._noise = torch.from_numpy(noise_field(seed, channels)).to(device)
        self._counting = torch.arange(self.batch, dtype=torch.int32, device=device)
        self._ahead: deque[tuple[int, Future[tuple[Tensor, Tensor]]]] = deque()
        self._cut: dict[int, tuple[NDArray[np.float32], Crops]] = {}  # of steps that are being read
        self.waited_s = 0.0

    def draw(self, step: int) -> Batch:
        """The batch of a step, a pure function of (seed, step)."""
        drawn = torch.from_numpy(self.numbers(step))
        if isinstance(self.pictures, Pictures):
            self.pictures.lay(self._items(step)[0] // self.copies)
        numbers = _send(drawn, self.pictures.device)
        batch = self.render(numbers, None if self.pictures.resident else self.fetch(step))
        return batch if self._more is None else replace(batch, more=self._weigh(step, self._more, numbers))

    @property
    def weighs_pixels(self) -> bool:
        """Whether batches have weights of single pixels."""
        return self._more is not None

    def _weigh(self, step: int, weights: NDArray[np.float16], numbers: Tensor) -> Tensor:
        """(B, H, W) the weights of a step's pictures, through the warp of these `numbers`."""
        chosen = _send(torch.from_numpy(weights[self._items(step)[0] // self.copies]), numbers.device)
        if self.settings.kind == "none":
            return chosen.float()
        draws = DeviceDraws.unpack(numbers[:, :-3], self.pictures.store.channels)
        unlabelled = torch.zeros(chosen.shape, dtype=torch.uint8, device=numbers.device)
        points = self.settings.elastic_grid
        return warp(chosen[:, None], unlabelled, numbers[:, -3:-1], draws, self.window_hw, False, points)[0][:, 0]

    def numbers(self, step: int) -> NDArray[np.float32]:
        """(B, K) all that is drawn for a step, for `render`: it travels to the device in one copy.

        A row is `Draws.pack`, the (h, w) of the picture as stored, and its number as the bits of an int32.
        """
        if isinstance(self.pictures, Patches):
            return self._cut_out(step, self.pictures)[0]
        items, positions = self._items(step)
        numbers = items // self.copies
        columns = [self.pictures.shapes_hw[numbers].astype(np.float32)]
        if self.settings.kind != "none":
            columns.insert(0, self._draw(items, positions).pack())
        columns.append(numbers.astype(np.int32).view(np.float32)[:, None])
        return np.concatenate(columns, axis=1)

    def render(self, numbers: Tensor, fetched: tuple[Tensor, Tensor] | None = None) -> Batch:
        """The batch of these numbers: work of the device alone, so that a CUDA graph can hold it.

        Args:
            numbers: (B, K) float32 on the device, from `numbers`.
            fetched: (B, H, W, C) and (B, H, W) pictures that are not resident.
        """
        settings = self.settings
        if fetched is not None:
            images, masks = fetched
        else:
            assert isinstance(self.pictures, Pictures)
            images, masks = self.pictures.images, self.pictures.masks
        # of the pictures at hand
        items = numbers[:, -1].contiguous().view(torch.int32) if fetched is None else self._counting
        if settings.kind == "none":
            chosen = images[items], masks[items]
            return Batch(chosen[0].permute(0, 3, 1, 2).float(), chosen[1])
        ignore, colors = settings.kind == "warp" and settings.out_of_frame == "ignored", settings.kind == "warp"
        if usable(images):
            from ubend.kernels.augment import blur_and_noise
            from ubend.kernels.augment import warp as warp_in_one

            height, width = self.window_hw
            points = settings.elastic_grid
            basis = elastic_basis(height, images.device, points), elastic_basis(width, images.device, points)
            reach = self._low, self._high
            warped, target = warp_in_one(
                images, masks, items, numbers, basis, reach, colors=colors, ignore_outside=ignore
            )
            return Batch(blur_and_noise(warped, numbers, self._noise, reach) if colors else warped, target)
        draws = DeviceDraws.unpack(numbers[:, :-3], images.shape[3])
        chosen = images[items].permute(0, 3, 1, 2), masks[items]
        warped, target = warp(*chosen, numbers[:, -3:-1], draws, self.window_hw, ignore, settings.elastic_grid)
        if colors:
            warped = change_colors(warped, draws, self._low, self._high, self._noise)
        return Batch(warped.contiguous(memory_format=torch.channels_last), target)

    def _cut_out(self, step: int, patches: Patches) -> tuple[NDArray[np.float32], Crops]:
        """What `numbers` gives for a step, and the crops that it belongs to."""
        if step not in self._cut:
            items, positions = self._items(step)
            pictures = patches.pictures_of(items)
            shapes = patches.shapes_hw[pictures]
            shown = self._foreground.draw(pictures, positions) if self._foreground else None
            channels = patches.store.channels
            draws = draw_warps(self.settings, self.seed, positions, shapes, self.window_hw, channels, shown)
            points = self.settings.elastic_grid
            draws, corners, sizes = find_crops(draws, shapes, self.window_hw, patches.crop_hw, points)
            slots = np.arange(self.batch, dtype=np.int32).view(np.float32)[:, None]
            rows = np.concatenate([draws.pack(), sizes.astype(np.float32), slots], axis=1)
            while len(self._cut) > _AHEAD:
                del self._cut[next(iter(self._cut))]
            self._cut[step] = rows, Crops(patches.numbers[pictures], corners, sizes)
        return self._cut[step]

    def _items(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        positions = step * self._whole + self._offset + np.arange(self.batch, dtype=np.int64)
        return shuffled_item(self.seed, self.items, positions), positions

    def _draw(self, items: NDArray[np.int64], positions: NDArray[np.int64]) -> Draws:
        numbers = items // self.copies
        shapes, channels = self.pictures.shapes_hw[numbers], self.pictures.store.channels
        if self.settings.kind == "warp":
            shown = self._foreground.draw(numbers, positions) if self._foreground else None
            return draw_warps(self.settings, self.seed, positions, shapes, self.window_hw, channels, shown)
        native = self.pictures.store.native_hw[self.pictures.numbers[numbers]]
        return draw_frozen(self.settings, self.seed, numbers, items % self.copies, (shapes, native), channels)

    def wait_for_reading(self) -> None:
        """Until what is being read is there, and nothing more is read: while a step is captured, no other thread may
        ask for memory."""
        for _step, reading in self._ahead:
            reading.exception()

    def fetch(self, step: int) -> tuple[Tensor, Tensor]:
        """(B, H, W, C) and (B, H, W): a step's pictures, brought to the device; the next ones are being read."""
        if not self._ahead or self._ahead[0][0] != step:
            self._ahead.clear()  # a jump: after a resume, or when somebody looks at an old batch
        while len(self._ahead) < _AHEAD:
            following = self._ahead[-1][0] + 1 if self._ahead else step
            if isinstance(self.pictures, Patches):
                read = self.pictures.take_ahead(self._cut_out(following, self.pictures)[1])
            else:
                read = self.pictures.take_ahead(self._items(following)[0] // self.copies)
            self._ahead.append((following, read))
        began = time.monotonic()
        fetched = self._ahead.popleft()[1].result()
        self.waited_s += time.monotonic() - began
        return fetched


def _send(values: Tensor, device: torch.device) -> Tensor:
    """To the device, without waiting for what it is doing."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
