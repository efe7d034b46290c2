"""The predictor: images of any size -> logits -> masks or probabilities, with one code path for whole images and tiles.

`Predictor.run` is that path: images are read by rows of tiles, tiles of one size share a forward pass, and their
logits are merged. C classes, H x W pixels of an image, h x w pixels at model size, n images of one size.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ubend.accel.accelerate import accelerate_inference
from ubend.core.device import attempt, explain_out_of_memory, fastest_precision, pick_device, send
from ubend.core.errors import SettingError
from ubend.core.i18n import _
from ubend.inference.blending import TorchBlender
from ubend.inference.prediction import Prediction, class_index
from ubend.io.images import LoadedImage, model_size, resize_array, resize_image
from ubend.labels.class_table import IGNORED
from ubend.models.exported import load_model
from ubend.models.model_file import Bundle
from ubend.models.networks import Network
from ubend.portable.input_checks import Image, inspect_file, take_pixels
from ubend.portable.predictors import MaskResult
from ubend.portable.prefetch import prefetch
from ubend.portable.raster import Header
from ubend.portable.session import refuse_not_finite
from ubend.portable.softmax import softmax
from ubend.portable.tile_options import refuse_wrong_tiles
from ubend.portable.tiling import (
    TilePlan,
    TileRow,
    TileSource,
    Tiling,
    plan_rows,
    plan_whole,
    read_row,
)

_BATCH_PIXELS = 4 * 2**20  # model pixels in one forward pass: about 1 GiB of features at width 64
_BATCH_IMAGES = (32, 128)  # maximum whole images in one forward pass (CPU, others); many small ones keep a GPU busy
TILE_BATCH_PIXELS = (2**20, _BATCH_PIXELS)  # of tiles (CPU, others); larger batches are not faster on a CPU
_TILE_PX = 512  # larger tiles are hardly faster; smaller ones have more seams and more overlap
_NATIVE_VALUES = 2**22  # logits at native size at a time; a single image may exceed it
_HELD_BYTES = 2**28  # of images, and their native-size masks, that are waiting for a full batch
_WAITING_BATCHES = 4  # waiting tiles of all sizes together have at most the bytes of this many batches


@dataclass(frozen=True)
class Logits:
    """Logits of n images of one size, or of some rows of one image. Valid until the next item: the buffer is reused.

    Attributes:
        image_indices: of the images in the input, ascending.
        native_hw: (H, W) of each image, px.
        rows: row range in the native image; the ranges of one image come from top to bottom.
        values: (n, C, h, w) float32 logits of these rows at model size, on the device.
    """

    image_indices: list[int]
    native_hw: tuple[int, int]
    rows: slice
    values: Tensor

    def native(self) -> Tensor:
        """(n, C, rows, W) logits at native size."""
        return resize_image(self.values, (self.rows.stop - self.rows.start, self.native_hw[1]))

    @property
    def is_last(self) -> bool:
        """Whether these are the last rows of the images."""
        return bool(self.rows.stop == self.native_hw[0])


class _Tile(NamedTuple):
    """A tile waiting for its forward pass; pixels (h, w, channels), in main memory if it is a whole image."""

    row: TileRow
    column: int
    pixels: Tensor
    held_bytes: int


class Predictor:
    """A model, ready to predict: `predictor(image).mask`.

    Images are resized to the model size; models trained on native-scale crops instead predict overlapping tiles of the
    image at its own scale.

    Args:
        bundle: the model.
        device: cuda, cuda:1, mps or cpu; None: the fastest one available.
        tiles: side of the tiles in px; 0: whole images; None: as the model was trained.
        overlap: overlap between neighbouring tiles, as a fraction of the tile's side, 0 <= overlap < 1.
    Raises:
        SettingError: there is no such device, or `tiles` or `overlap` is out of range.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device | str | None = None,
        *,
        tiles: int | None = None,
        overlap: float = 0.25,
    ) -> None:
        refuse_wrong_tiles(tiles, overlap)
        self.bundle, self.labels = bundle, bundle.labels
        if bundle.model.is_exported:
            if str(device or "cpu") != "cpu":
                raise SettingError(
                    _(
                        "--device {device}: exported models are run on the CPU; leave --device out, or name the run"
                    ).format(device=device),
                    key="--device",
                )
            device = "cpu"
        self.device = pick_device(None if device is None else str(device))
        model: Network = bundle.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model.eval()
        low = bundle.precision == "bfloat16" and fastest_precision(self.device)[0] == "bfloat16"
        self.precision = torch.bfloat16 if low else torch.float32
        if tiles is None:
            tiles = max(_TILE_PX, bundle.window_px or 0) if bundle.keeps_scale else 0
        net, self.tiling = self.model, None
        if tiles:  # networks without padding need no blending, and so no overlap
            self.tiling = Tiling(tiles, 0.0 if net.margin else overlap, net.input_multiple, net.margin, net.edge_px)
        network = self.model.forward_tiles if tiles else self.model
        self._network = accelerate_inference(partial(_autocast, network, self.precision), self.model, self.precision)
        self._batch_pixels = TILE_BATCH_PIXELS[self.device.type != "cpu"] if tiles else _BATCH_PIXELS

    def __repr__(self) -> str:
        return f"{type(self).__name__}(class_names={self.labels.names!r}, device={str(self.device)!r})"

    def __call__(self, image: Image, *, probabilities: bool = False) -> Prediction:
        """Predict one image.

        Args:
            image: a file, or (H, W) or (H, W, channels) values in the units of the training images (0..255 for 8 bit),
                with their dtype or float; masked values of a masked array are invalid pixels.
            probabilities: also return the probability of each class; 4 bytes per pixel and class.
        Raises:
            DataError: the image is unreadable, empty, or differs in channels or bit depth from the model's, or its
                values or the resulting logits are not finite.
        """
        return next(iter(self.predict([image], probabilities=probabilities)))[1]

    def predict(self, images: Iterable[Image], *, probabilities: bool = False) -> Iterator[tuple[int, Prediction]]:
        """Predict several images: yields (index, prediction) in order of completion; see `__call__`."""
        opened: dict[int, LoadedImage] = {}
        for index, result in self._results(images, opened, probabilities):
            loaded = opened.pop(index)
            mask = result.argmax(axis=0).astype(np.uint8) if probabilities else result
            if loaded.invalid is not None:
                mask[loaded.invalid] = IGNORED
                if probabilities:
                    result[:, loaded.invalid] = 0
            yield index, Prediction(mask, self.labels, loaded.pixels, result if probabilities else None)

    def predict_rows(self, source: TileSource, *, probabilities: bool) -> Iterator[tuple[slice, MaskResult]]:
        """Predict an image that is read by rows, from top to bottom: yields (row range, result); only with tiles."""

        def make(logits: Tensor) -> list[Tensor]:
            return [class_index(logits[0]), *([self._softmax(logits)[0]] if probabilities else [])]

        for part, (mask, *prob) in collect(self.run([source]), make):
            yield part.rows, MaskResult(mask, prob[0] if prob else None)

    def _softmax(self, logits: Tensor) -> Tensor:
        """(n, C, h, w) probabilities; of exported models with the values of `ubend-runtime`, to the last bit."""
        if not self.bundle.model.is_exported:
            return logits.softmax(dim=1)
        return torch.from_numpy(np.stack([softmax(values) for values in logits.numpy()]))

    def _results(
        self, images: Iterable[Image], opened: dict[int, LoadedImage], probabilities: bool
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """(index, (C, H, W) probabilities or (H, W) class index) of each image; adds the images to `opened`."""
        started: dict[int, NDArray[Any]] = {}

        def open_image(image: Image) -> tuple[LoadedImage, TileSource]:
            loaded = take_pixels(image, self.bundle)
            return loaded, self.resize_input(loaded, loaded.pixels.nbytes)

        def sources() -> Iterator[TileSource]:
            for index, (loaded, source) in enumerate(prefetch(open_image, images, _bytes_given)):
                opened[index] = loaded
                yield source

        def make(native: Tensor) -> list[Tensor]:
            return [self._softmax(native) if probabilities else class_index(native.movedim(1, 0))]

        for part, (made,) in collect(self.run(sources()), make):
            for index, rows in zip(part.image_indices, made, strict=True):
                if index not in started:
                    started[index] = np.empty((*rows.shape[:-2], *part.native_hw), rows.dtype)
                started[index][..., part.rows, :] = rows
                if part.is_last:
                    yield index, started.pop(index)

    def prepare(self, image: Image, header: Header | None = None) -> TileSource:
        """Convert an image to the input of `run`: at model size, or at native size for tiles.

        Args:
            image: see `__call__`; arrays count as used memory, since the caller may keep them.
            header: the file's header, already checked by `inspect`; None: read it.
        Raises:
            DataError: see `__call__`.
        """
        return self.resize_input(take_pixels(image, self.bundle, header), _bytes_given(image))

    def resize_input(self, image: LoadedImage, held_bytes: int = 0) -> TileSource:
        """Convert an image in memory to the input of `run`, like `prepare`.

        Args:
            image: from `take_pixels`.
            held_bytes: memory that the caller keeps until the image is predicted.
        """
        pixels, sizing = image.pixels, self.bundle.sizing
        native_hw = pixels.shape[0], pixels.shape[1]
        if self.tiling is not None:
            return TileSource.of_pixels(pixels, native_hw, invalid=image.invalid)
        small = resize_array(pixels, model_size(native_hw, sizing.size_px, sizing.keep_aspect))
        return TileSource.of_pixels(small, native_hw, small.nbytes + held_bytes, image.invalid)

    def inspect(self, path: Path) -> Header:
        """Read and check a file's header, for `prepare`.

        Raises:
            DataError: unreadable, or its channels or bit depth differ from the model's.
        """
        return inspect_file(path, self.bundle)

    def run(self, sources: Iterable[TileSource]) -> Iterator[Logits]:
        """Yield the logits of images of any size; needs memory for a few batches and one row of tiles per tiled image.

        Args:
            sources: from `prepare`; if the predictor uses tiles, also sources that read a file by rows.
        Raises:
            DataError: from the sources.
            SettingError: out of memory even with a single tile.
        """
        blenders: dict[int, TorchBlender] = {}
        for tiles in self._batches(sources):
            yield from self._merge(tiles, self._forward_in_memory(tiles), blenders)

    def _batches(self, sources: Iterable[TileSource]) -> Iterator[list[_Tile]]:
        """Batches of tiles of equal padded size, across images."""
        waiting: dict[tuple[int, int], list[_Tile]] = {}
        held_bytes = 0
        for row, array in self._read_rows(sources):
            size, tensor = row.plan.input_hw, torch.from_numpy(array)
            if self.tiling is not None:  # tiles of a row overlap; send their pixels once
                tensor = send(tensor, self.device)
            for column, start in enumerate(row.plan.columns.starts):
                group = waiting.setdefault(size, [])
                pixels = tensor[:, start : start + size[1]]
                group.append(_Tile(row, column, pixels, self._bytes_held(row, pixels)))
                held_bytes += group[-1].held_bytes
                if self._is_full(len(group), math.prod(size)):
                    held_bytes -= sum(tile.held_bytes for tile in group)
                    yield waiting.pop(size)
            maximum = _HELD_BYTES if self.tiling is None else _WAITING_BATCHES * self._batch_pixels * self._pixel_bytes
            if held_bytes >= maximum:  # memory is used up, although no batch is full: predict the largest
                group = waiting.pop(max(waiting, key=lambda input_hw: len(waiting[input_hw]) * math.prod(input_hw)))
                held_bytes -= sum(tile.held_bytes for tile in group)
                yield group
        yield from waiting.values()

    def _read_rows(self, sources: Iterable[TileSource]) -> Iterator[tuple[TileRow, NDArray[Any]]]:
        rows = plan_rows(sources, self._plan)
        if self.tiling is None:  # already read and resized
            return map(read_row, rows)
        return prefetch(read_row, rows, lambda row: row.plan.input_hw[0] * row.source.size_hw[1] * self._pixel_bytes)

    def _plan(self, size_hw: tuple[int, int]) -> TilePlan:
        return self.tiling.plan(size_hw) if self.tiling else plan_whole(size_hw, self.model.padded_hw(size_hw))

    def _bytes_held(self, row: TileRow, tile: Tensor) -> int:
        """Bytes in use until a tile is predicted; for a whole image including its mask and its source."""
        whole = 0 if self.tiling is not None else math.prod(row.source.native_hw) + row.source.held_bytes
        return tile.numel() * tile.element_size() + whole

    @property
    def _pixel_bytes(self) -> int:
        """Bytes per pixel of the arrays of `read_row`."""
        return self.bundle.sizing.channels * (1 if self.bundle.dtype == "uint8" else 4)

    def _is_full(self, count: int, pixels: int) -> bool:
        """Whether a batch of `count` tiles of `pixels` pixels each is full.

        A batch of tiles stays within the limit; one of whole images may exceed it by one image.
        """
        if self.tiling is not None:
            return (count + 1) * pixels > self._batch_pixels
        return count * pixels >= self._batch_pixels or count >= _BATCH_IMAGES[self.device.type != "cpu"]

    def _forward_in_memory(self, tiles: Sequence[_Tile]) -> Tensor:
        """(N, C, h, w) float32 logits of tiles of one size, in as many passes as needed to fit in memory."""
        logits = attempt(self._forward_batch, tiles)
        if logits is not None:
            return logits
        half = len(tiles) // 2
        if not half:
            raise self._out_of_memory(tiles[0])
        self._batch_pixels = half * math.prod(tiles[0].row.plan.input_hw)  # keep the smaller batch size
        return torch.cat([self._forward_in_memory(tiles[:half]), self._forward_in_memory(tiles[half:])])

    def _forward_batch(self, tiles: Sequence[_Tile]) -> Tensor:
        return self.forward(torch.stack([tile.pixels for tile in tiles]).permute(0, 3, 1, 2))

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """(N, channels, h, w) raw values at model size -> (N, C, h, w) float32 logits; for tiles with a margin, logits
        of the centre only."""
        return self._network(send(images, self.device))

    def _out_of_memory(self, tile: _Tile) -> SettingError:
        if self.tiling is None:
            return SettingError(too_large(tile.row.source.native_hw), key="device")
        message = _("out of memory with tiles of {size} px; use smaller --tiles, or --device cpu")
        return SettingError(message.format(size=max(tile.row.plan.input_hw)), key="--tiles")

    def _merge(self, tiles: Sequence[_Tile], logits: Tensor, blenders: dict[int, TorchBlender]) -> Iterator[Logits]:
        """Yield the rows completed by these tiles; whole images are cropped to their size, and grouped by size.

        Args:
            blenders: index of an image -> its partly merged tiles; updated.
        """
        alike: dict[tuple[tuple[int, int], tuple[int, int]], list[int]] = {}
        for slot, (row, column, *_others) in enumerate(tiles):
            if row.plan.count == 1:
                alike.setdefault((row.source.size_hw, row.source.native_hw), []).append(slot)
                continue
            if row.image_index not in blenders:
                blenders[row.image_index] = TorchBlender(
                    row.plan, logits.shape[1], logits.device, fused=not self.bundle.model.is_exported
                )
            done = blenders[row.image_index].add(row.row_index, column, logits[slot])
            if done is not None:
                part = Logits([row.image_index], row.source.native_hw, done[0], done[1][None])
                if part.is_last:
                    del blenders[row.image_index]
                yield part
        for ((h, w), native_hw), slots in alike.items():
            maximum = max(1, _NATIVE_VALUES // (logits.shape[1] * math.prod(native_hw)))
            for chunk in (slots[start : start + maximum] for start in range(0, len(slots), maximum)):
                adjacent = chunk[-1] - chunk[0] + 1 == len(chunk)
                values = logits[chunk[0] : chunk[-1] + 1] if adjacent else logits[chunk]
                image_indices = [tiles[slot].row.image_index for slot in chunk]
                yield Logits(image_indices, native_hw, slice(0, native_hw[0]), values[..., :h, :w])


def collect(
    results: Iterable[Logits], make: Callable[[Tensor], Sequence[Tensor]]
) -> Iterator[tuple[Logits, list[NDArray[Any]]]]:
    """Yield each result, with `make` of its (n, C, rows, W) native-size logits as arrays in main memory.

    The logits of a yielded result may already be overwritten. On a GPU, each result is collected after the next one
    was launched, which keeps the GPU busy.

    Raises:
        DataError: logits that are not finite, which would give the first class for every pixel.
    """
    pinned: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}  # reused: pinning takes milliseconds
    waiting: deque[tuple[Logits, list[Tensor], torch.cuda.Event]] = deque()

    def copy(made: Tensor) -> Tensor:
        free = pinned.setdefault((made.shape, made.dtype), [])
        buffer = free.pop() if free else torch.empty(made.shape, dtype=made.dtype, pin_memory=True)
        return buffer.copy_(made, non_blocking=True)

    def wait() -> tuple[Logits, list[NDArray[Any]]]:
        logits, buffers, done = waiting.popleft()
        done.synchronize()
        *arrays, finite = [buffer.numpy().copy() for buffer in buffers]
        for buffer in buffers:
            pinned[buffer.shape, buffer.dtype].append(buffer)
        refuse_not_finite(bool(finite))
        return logits, arrays

    for logits in results:
        with explain_out_of_memory(too_large(logits.native_hw)):
            made = [*make(logits.native()), logits.values.isfinite().all()]
        if logits.values.device.type != "cuda":
            refuse_not_finite(bool(made.pop()))
            yield logits, [tensor.cpu().numpy() for tensor in made]
            continue
        buffers = [copy(tensor) for tensor in made]
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(logits.values.device))
        waiting.append((logits, buffers, done))
        if len(waiting) > 1:
            yield wait()
    while waiting:
        yield wait()


def _autocast(network: Callable[[Tensor], Tensor], precision: torch.dtype, images: Tensor) -> Tensor:
    """(N, C, h, w) float32 logits of images on their device."""
    with torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
        logits = network(images.float().contiguous(memory_format=torch.channels_last))
    return logits.float()


def load(path: Path | str, device: str | None = None, *, network: nn.Module | None = None, **tiling: Any) -> Predictor:
    """Load a predictor from a model file or a run folder; for `network` see `load_model`, for `tiling` `Predictor`.

    Raises:
        ModelFileError: the file is missing, truncated, not a ubend model, or newer than this version.
        SettingError: no such device, invalid tiles or overlap, or not enough memory for the model.
    """
    with explain_out_of_memory(_("not enough memory for the model; try --device cpu")):
        return Predictor(load_model(Path(path), network), device, **tiling)


def too_large(native_hw: tuple[int, int]) -> str:
    """The message that an image of (height, width) px does not fit in memory."""
    return _("out of memory with one image of {width}x{height} px; try --device cpu, or a smaller image").format(
        width=native_hw[1], height=native_hw[0]
    )


def _bytes_given(image: Image) -> int:
    """Bytes of a queued array; 0 for paths."""
    pixels = image.pixels if isinstance(image, LoadedImage) else image
    return pixels.nbytes if isinstance(pixels, np.ndarray) else 0
