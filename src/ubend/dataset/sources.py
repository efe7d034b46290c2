"""Data sources: read images of a store, or crops of them, to a device, as batches on one canvas.

Training and validation use only the interface `ItemSource`, never a subclass by name:

    WholeImages   whole images, kept on the device if they fit
    RandomCrops   images at native size; training reads crops of them, or keeps small images on the device
    FixedCrops    fixed crops that cover the images, for validation; each pixel is scored in exactly one crop

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
from ubend.dataset.augment import AugmentParams
from ubend.dataset.dataset import Dataset
from ubend.dataset.rectangles import Rectangles, device_dtype, find_rectangles, read_rectangles, rectangle_canvas
from ubend.dataset.store import Store
from ubend.labels.class_table import IGNORED

_SLICE_BYTES = 64 * 2**20  # of images copied to the device at a time
_RESIDENT_SHARE = 0.4  # of a GPU's free memory that images may use
_NATIVE_SHARE = 0.05  # of a GPU's whole memory that images at native size may use
_NATIVE_PIXELS = 2**21  # of such an image, at most: without Triton, each step copies the images of its batch
_VALIDATION_SHARE = 0.5  # maximum pixels of validation crops, relative to an epoch's; a sixth of its time
_VALIDATION_PIXELS = 4 * 2**20  # in one forward pass without gradients
_CPU_CROP_PIXELS = 2**19  # the same for crops on a CPU; more are not faster, and need 1 GiB per million


class ItemSource:
    """Images of a store, or crops of them, read to a device as batches on one canvas.

    Args:
        store: contains the images.
        chosen_images: (n,) indices of the images to use.
        device: the target device.
    Attributes:
        image_indices: (N,) index of each item's image in the store.
        image_of_item: (N,) index of each item's image in the argument `chosen_images`.
        image_count: n.
        corner_yx, shapes_hw: (N, 2) rectangle of the image that an item shows, px.
        canvas_hw: (H, W) px, at least as large as what is read of an item.
        repeats: (N,) how often an epoch shows each item.
        draws_crops: whether each item is a random crop, of the same size for all images.
        resident: whether all items are kept on the device.
        bytes: memory needed for that, if it was considered.
        images, masks: (N, H, W, C) uint8 or float32 and (N, H, W) uint8 on the device if resident, else empty.
        validation_pixels: pixels of canvases in one forward pass without gradients, if memory allows.
    """

    draws_crops = False
    resident = False
    bytes = 0
    threads = 1  # for reading
    validation_pixels = _VALIDATION_PIXELS
    canvas_hw: tuple[int, int]

    def __init__(self, store: Store, chosen_images: NDArray[np.int64], device: torch.device) -> None:
        self.store, self.image_indices, self.device = store, chosen_images, device
        self.image_of_item, self.image_count = np.arange(len(chosen_images)), len(chosen_images)
        self.shapes_hw = store.shapes_hw[chosen_images]
        self.corner_yx, self.repeats = np.zeros_like(self.shapes_hw), np.ones(len(chosen_images), np.int64)
        self.images = self.masks = torch.empty(0)
        self._reader = ThreadPoolExecutor(self.threads, thread_name_prefix="ubend-read")

    def __len__(self) -> int:
        return len(self.image_indices)

    def _keep_on_device(self, budget_bytes: int) -> None:
        """Read all items to the device, if they need at most `budget_bytes`; sets `bytes` and `resident`."""
        self.bytes = len(self) * self.fetched_bytes
        self.resident = self.bytes <= budget_bytes
        if self.resident:
            shape, dtype = (len(self), *self.canvas_hw), device_dtype(self.store)
            self.images = torch.empty((*shape, self.store.channels), dtype=dtype, device=self.device)
            self.masks = torch.empty(shape, dtype=torch.uint8, device=self.device)
            count = max(1, _SLICE_BYTES // self.fetched_bytes)
            for start in range(0, len(self), count):
                part = slice(start, start + count)
                self.images[part], self.masks[part] = self.read(self.rectangles(part))

    @property
    def fetched_bytes(self) -> int:
        """Bytes of one item on the device."""
        return math.prod(self.canvas_hw) * (self.store.channels * device_dtype(self.store).itemsize + 1)

    def image(self, item: int) -> NDArray[Any]:
        """(h, w, C) of one item, in main memory."""
        (top, left), (h, w) = self.corner_yx[item].tolist(), self.shapes_hw[item].tolist()
        return self.store.image(int(self.image_indices[item]))[top : top + h, left : left + w]

    def mask(self, item: int) -> NDArray[np.uint8]:
        """(h, w) class index or IGNORED of one item, in main memory."""
        (top, left), (h, w) = self.corner_yx[item].tolist(), self.shapes_hw[item].tolist()
        return self.store.mask(int(self.image_indices[item]))[top : top + h, left : left + w]

    def rectangles(self, items: NDArray[np.int64] | slice) -> Rectangles:
        """The rectangles that these items show."""
        return Rectangles(self.image_indices[items], self.corner_yx[items], self.shapes_hw[items])

    def narrow(
        self, params: AugmentParams, rectangles: Rectangles, crop_hw: tuple[int, int], points: int
    ) -> tuple[AugmentParams, Rectangles]:
        """Limit what is read to the rectangles that the warps sample; here: returns the arguments unchanged.

        Args:
            params: relative to the whole items.
            rectangles: the items, from `rectangles`.
            crop_hw: (H, W) px of a crop.
            points: points per side of the elastic field, see `elastic_basis`.
        Returns:
            The parameters relative to the rectangles, and the rectangles.
        """
        return params, rectangles

    def note(self) -> str | None:
        """A message for the user about crops that are left out; None: none are."""
        return None

    def take(self, items: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """(n, C, H, W) uint8 or float32 images, channels last, and (n, H, W) uint8 class indices, on the device.

        An item is at the top left of its canvas, and is cut to it; the rest repeats the edge and is IGNORED.
        """
        if self.resident:
            where = send(torch.from_numpy(items), self.device)
            pixels, index = self.images[where], self.masks[where]
        else:
            rectangles = self.rectangles(items)
            pixels, index = self.read(replace(rectangles, size_hw=np.minimum(rectangles.size_hw, self.canvas_hw)))
        return pixels.permute(0, 3, 1, 2), index

    def read(self, rectangles: Rectangles) -> tuple[Tensor, Tensor]:
        """(N, H, W, C) images and (N, H, W) class indices of `canvas_hw`, on the device."""
        return read_rectangles(self.store, rectangles, self.canvas_hw, self.device)

    def prefetch(self, rectangles: Rectangles) -> "Future[tuple[Tensor, Tensor]]":
        """The same as `read`, in a reading thread."""
        return self._reader.submit(self.read, rectangles)


class WholeImages(ItemSource):
    """Whole images, resident on the device if they fit, else read from the memory-mapped store.

    Args:
        store, chosen_images, device: see `ItemSource`.
        budget_bytes: maximum device memory for images.
    """

    def __init__(self, store: Store, chosen_images: NDArray[np.int64], device: torch.device, budget_bytes: int) -> None:
        super().__init__(store, chosen_images, device)
        self.canvas_hw = int(self.shapes_hw[:, 0].max()), int(self.shapes_hw[:, 1].max())
        self._keep_on_device(budget_bytes)


class RandomCrops(ItemSource):
    """Training images at native size: resident on the device if they fit, else only crops of them are read.

    Args:
        store, chosen_images, device: see `ItemSource`.
        crops: crops per epoch; each image has a number proportional to its area, at least one.
        crop_hw: (H, W) px.
        settings: of the warp; they determine how much of an image a crop may sample.
        budget_bytes: maximum device memory for images.
    """

    draws_crops = True
    threads = 4  # which mostly wait for the disk

    def __init__(
        self,
        store: Store,
        chosen_images: NDArray[np.int64],
        device: torch.device,
        crops: int,
        crop_hw: tuple[int, int],
        settings: AugmentPlan,
        budget_bytes: int = 0,
    ) -> None:
        super().__init__(store, chosen_images, device)
        self.repeats = share_crops(self.shapes_hw.prod(axis=1), crops)
        self.canvas_hw = int(self.shapes_hw[:, 0].max()), int(self.shapes_hw[:, 1].max())
        self._keep_on_device(budget_bytes if math.prod(self.canvas_hw) <= _NATIVE_PIXELS else 0)
        if not self.resident:
            self.canvas_hw = rectangle_canvas(crop_hw, settings, self.shapes_hw.max(axis=0))

    def narrow(
        self, params: AugmentParams, rectangles: Rectangles, crop_hw: tuple[int, int], points: int
    ) -> tuple[AugmentParams, Rectangles]:
        """The rectangle that each warp samples; nothing to limit if the images are resident."""
        if self.resident:
            return params, rectangles
        moved, *box = find_rectangles(params, rectangles.size_hw, crop_hw, self.canvas_hw, points)
        return moved, Rectangles(rectangles.image_indices, *box)


class FixedCrops(ItemSource):
    """Fixed crops that cover the images; each pixel is scored in exactly one crop.

    Args:
        store, chosen_images, device: see `ItemSource`.
        crop_hw: (H, W) px, at most; smaller if the images are.
        maximum: number of crops; if more are needed, evenly spaced ones are used, at least one of each image if
            `maximum` allows it.
        budget_bytes: maximum device memory for the crops.
    Attributes:
        cover: number of crops that cover all images.
    """

    def __init__(
        self,
        store: Store,
        chosen_images: NDArray[np.int64],
        device: torch.device,
        crop_hw: tuple[int, int],
        maximum: int,
        budget_bytes: int = 0,
    ) -> None:
        super().__init__(store, chosen_images, device)
        self.validation_pixels = _CPU_CROP_PIXELS if device.type == "cpu" else _VALIDATION_PIXELS
        shapes = self.shapes_hw
        counts = np.ceil(shapes / np.array(crop_hw)).astype(np.int64)
        ends = np.cumsum(counts.prod(axis=1))
        starts, self.cover = ends - counts.prod(axis=1), int(ends[-1])
        chosen = np.arange(self.cover)
        if self.cover > maximum:
            chosen = spread_evenly(self.cover, maximum)
            if len(np.unique(np.searchsorted(ends, chosen, side="right"))) < len(counts) <= maximum:
                # one very large image has nearly all crops: the middle one of each image, then of the others
                middle = starts + counts[:, 0] // 2 * counts[:, 1] + counts[:, 1] // 2
                others = np.delete(np.arange(self.cover), middle)
                chosen = np.sort(np.r_[middle, others[spread_evenly(len(others), maximum - len(middle))]])
        self.image_of_item = np.searchsorted(ends, chosen, side="right").astype(np.int64)
        self.image_indices, self.repeats = chosen_images[self.image_of_item], np.ones_like(chosen)
        inside = chosen - starts[self.image_of_item]
        positions = np.stack(np.divmod(inside, counts[self.image_of_item, 1]), axis=1)
        shapes, counts = shapes[self.image_of_item], counts[self.image_of_item]
        self.shapes_hw = np.minimum(shapes, np.array(crop_hw))
        max_corner, gaps = shapes - self.shapes_hw, np.maximum(1, counts - 1)
        self.corner_yx = max_corner * positions // gaps  # evenly spaced, so that neighbours overlap
        before = np.where(positions > 0, max_corner * (positions - 1) // gaps + self.shapes_hw, 0)
        self._scored_elsewhere = np.maximum(
            0, before - self.corner_yx
        )  # rows and columns already scored in a neighbour
        self.canvas_hw = int(self.shapes_hw[:, 0].max()), int(self.shapes_hw[:, 1].max())
        self._keep_on_device(budget_bytes)

    def note(self) -> str | None:
        """The number of crops used, if not all."""
        if len(self) == self.cover:
            return None
        return _(
            "note: {cover} crops would cover the validation split; {count} of them, evenly spaced, are used"
        ).format(cover=self.cover, count=len(self))

    def take(self, items: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """See `ItemSource.take`; pixels that are scored in another crop are IGNORED, too."""
        pixels, index = super().take(items)
        for mask, (rows, columns) in zip(index, self._scored_elsewhere[items].tolist(), strict=True):
            mask[:rows], mask[:, :columns] = IGNORED, IGNORED
        return pixels, index


def spread_evenly(count: int, wanted: int) -> NDArray[np.int64]:
    """(wanted,) of the numbers 0..count - 1, ascending: the middle one of each of `wanted` equal ranges."""
    return ((np.arange(wanted) + 0.5) * count / max(1, wanted)).astype(np.int64)


def share_crops(areas: NDArray[np.int64], crops: int) -> NDArray[np.int64]:
    """Distribute crops to images in proportion to their areas, at least one each; the sum may differ slightly."""
    return np.asarray(np.maximum(1, np.rint(crops * (areas / areas.sum()))).astype(np.int64))


def native_budget(device: torch.device) -> int:
    """Maximum device memory for images at native size, bytes; 0: crops are read from the store.

    It follows from the size of the GPU, not from what happens to be free, since crops of resident images differ from
    those that are read by rounding, and a resumed training should get the same ones.
    """
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return min(int(_NATIVE_SHARE * total), int(_RESIDENT_SHARE * free))


def open_sources(
    data: Dataset, plan: Plan, device: torch.device, crop_hw: tuple[int, int]
) -> tuple[ItemSource, ItemSource]:
    """Open the sources of training and validation, according to `data.resize`; on the device if they fit.

    Images at native size are kept only on NVIDIA GPUs, whose kernels warp them in place; else crops of them are read.

    Args:
        crop_hw: (H, W) px of a training crop.
    """
    image_indices, others = data.indices("train"), data.indices("val")
    if plan.data.resize == "native":
        crops, budget_bytes = plan.data.crops_per_epoch or len(image_indices), native_budget(device)
        training = RandomCrops(data.store, image_indices, device, crops, crop_hw, plan.augment, budget_bytes)
        # Twice the sides of a training crop, so 4 times its pixels: half as many of them are near a border, where
        # context is missing.
        maximum = max(len(others), round(_VALIDATION_SHARE * crops / 4))
        left_bytes = budget_bytes - (training.bytes if training.resident else 0)
        return training, FixedCrops(data.store, others, device, (2 * crop_hw[0], 2 * crop_hw[1]), maximum, left_bytes)
    # On the CPU, the memory-mapped store is as fast.
    budget_bytes = 0 if device.type == "cpu" else int(_RESIDENT_SHARE * free_bytes(device))
    whole = WholeImages(data.store, image_indices, device, budget_bytes)
    return whole, WholeImages(data.store, others, device, budget_bytes - (whole.bytes if whole.resident else 0))
