"""Picture of any size -> probabilities -> mask.

C classes, H x W pixels of the picture's own size, h x w of the size that the network sees.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubend.accel.accelerate import accelerate_inference
from ubend.core.device import attempt, fastest_precision, pick_device, send, tell_out_of_memory
from ubend.core.errors import DataError, Problem, SettingError
from ubend.core.i18n import _
from ubend.inference.prefetch import map_ahead
from ubend.inference.strips import Held, Source, Strip, Tiling, blend_rows, cut_rows, fetch_strips, read_row
from ubend.io.decode import read_header
from ubend.io.images import model_size, read_image, resize_array, resize_image, straighten
from ubend.io.raster import Header
from ubend.labels.class_table import LabelMap
from ubend.models.model_file import Bundle, load_bundle
from ubend.models.networks import Network

_BATCH_PIXELS = 4 * 2**20  # model pixels in one forward pass: 1 GiB or so of features at width 64
_BATCH_PICTURES = 32  # in one forward pass
_GPU_BATCH_PICTURES = 128  # likewise: many small ones keep a GPU as busy as few large ones
TILE_BATCH_PIXELS = (2**20, _BATCH_PIXELS)  # of tiles, on a CPU, which larger batches make no faster, and on a GPU
_TILE_PX = 512  # larger ones are little faster; smaller ones have more seams, and more of each is neighbours'
_NATIVE_VALUES = 2**22  # logits at the pictures' own size at once; one picture may have more
_HELD_BYTES = 2**28  # of pictures, and masks of their own size, kept back until others of their model size come


@dataclass(frozen=True)
class Prediction:
    """What the model says of one picture, at the picture's own size.

    Attributes:
        mask: (H, W) uint8 class index.
        prob: (C, H, W) float32 probabilities; they add up to 1 over C.
        labels: the class table.
    """

    mask: NDArray[np.uint8]
    prob: NDArray[np.float32]
    labels: LabelMap

    def shares(self) -> dict[str, float]:
        """Share of the pixels that each class takes, 0..1."""
        counts = np.bincount(self.mask.reshape(-1), minlength=self.labels.classes)
        return {name: int(count) / self.mask.size for name, count in zip(self.labels.names, counts, strict=True)}


class Prepared(NamedTuple):
    """A picture as the network is given it.

    Attributes:
        native_hw: (H, W) of the picture itself, px.
        small: (h, w, channels) the picture at model size.
    """

    native_hw: tuple[int, int]
    small: NDArray[Any]


@dataclass(frozen=True)
class Logits:
    """The network's answer to n pictures of one size.

    Attributes:
        numbers: of the pictures, in the order they came.
        native_hw: (H, W) of each of them, px.
        values: (n, C, h, w) float32 logits at model size, on the device.
    """

    numbers: list[int]
    native_hw: tuple[int, int]
    values: Tensor

    def native(self) -> Tensor:
        """(n, C, H, W) logits at the pictures' own size."""
        return resize_image(self.values, self.native_hw)


class Predictor:
    """A model ready to be used: `predictor(picture).mask`.

    A picture is resized to the size at which the model was trained, or, by a model of windows of pictures at their
    own scale, kept at that scale and cut into tiles that overlap.

    Args:
        bundle: the model.
        device: as of `load`.
        tiles: side of the tiles in px; 0: pictures go through the network whole; None: as the model was trained.
        overlap: share of a tile's side that neighbours have in common, 0 <= overlap < 1.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device | str | None = None,
        *,
        tiles: int | None = None,
        overlap: float = 0.25,
    ) -> None:
        if tiles is not None and tiles < 0:
            raise SettingError(
                _("--tiles {tiles}: give a side in px, or 0 for whole pictures").format(tiles=tiles), key="--tiles"
            )
        if not 0 <= overlap < 1:
            raise SettingError(
                _("--overlap {overlap}: give a share from 0 to less than 1").format(overlap=overlap), key="--overlap"
            )
        self.bundle, self.labels = bundle, bundle.labels
        self.device = pick_device(None if device is None else str(device))
        model: Network = bundle.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model.eval()
        low = bundle.precision == "bfloat16" and fastest_precision(self.device)[0] == "bfloat16"
        self.precision = torch.bfloat16 if low else torch.float32
        plain = partial(_compute, self.model, self.precision)
        self._infer = accelerate_inference(plain, self.model, self.precision)
        self._most_pictures = _GPU_BATCH_PICTURES if self.device.type == "cuda" else _BATCH_PICTURES
        if tiles is None:
            tiles = max(_TILE_PX, bundle.window_px or 0) if bundle.keeps_scale else 0
        net, self.tiling = self.model, None
        if tiles:  # without padding they are seamless side by side; else they are blended
            self.tiling = Tiling(tiles, 0.0 if net.margin else overlap, net.input_multiple, net.margin, net.edge_px)
        self._batch_pixels: int | None = None  # instead of _BATCH_PIXELS, since memory ran out

    def __call__(self, image: NDArray[Any] | Path | str) -> Prediction:
        """Predict one picture.

        Args:
            image: a file, or (H, W) or (H, W, channels) values in the units that the model was trained on
                (0..255 for 8 bit), of its dtype or float.
        Raises:
            DataError: unreadable, empty, or with other channels or another depth than the model's.
        """
        return next(iter(self.predict([image])))[1]

    def predict(self, images: Iterable[NDArray[Any] | Path | str]) -> Iterator[tuple[int, Prediction]]:
        """(number, prediction) of each picture, in the order in which batches of one size get full."""
        for number, prob in self._answer(images, lambda logits: logits.softmax(dim=-3)):
            yield number, Prediction(prob.argmax(axis=0).astype(np.uint8), prob, self.labels)

    def predict_masks(self, images: Iterable[NDArray[Any] | Path | str]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(number, (H, W) class index) of each picture, as in `predict`, without the probabilities in main memory."""
        return self._answer(images, lambda logits: class_index(logits.movedim(-3, 0)))

    def _answer(
        self, images: Iterable[NDArray[Any] | Path | str], make: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """(number, (..., H, W)) of each image, of what `make` makes of (..., C, H, W) logits."""
        if self.tiling is not None:
            yield from self._join(self.strips(map_ahead(self.hold, images, _bytes_given)), make)
            return
        for logits in self.run(map_ahead(self.prepare, images, _bytes_given)):
            with tell_out_of_memory(too_large(logits.native_hw)):
                made = make(logits.native()).cpu().numpy()
            yield from zip(logits.numbers, made, strict=True)

    def strips(self, sources: Iterable[Source]) -> Iterator[Strip]:
        """Logits at the pictures' own scale, from tiles, row of tiles by row of tiles: pictures of any size in the
        memory of a few rows. Tiles are read in threads, and those of several pictures share a forward pass.

        Args:
            sources: pictures of the model's channels and depth.
        Raises:
            SettingError: the predictor was made without tiles.
        """
        if self.tiling is None:
            raise SettingError(_("this predictor takes pictures whole; make it with tiles=512"), key="tiles")
        pixels = TILE_BATCH_PIXELS[self.device.type != "cpu"]
        pixel_bytes = self.bundle.sizing.channels * (1 if self.bundle.dtype == "uint8" else 4)  # as `read_row` gives it
        rows = map_ahead(
            read_row,
            cut_rows(sources, self.tiling),
            lambda row: row.plan.input_hw[0] * row.source.size_hw[1] * pixel_bytes,
        )
        yield from blend_rows(rows, lambda tensor: send(tensor, self.device), self._forward_tiles, batch_pixels=pixels)

    def _join(self, strips: Iterable[Strip], make: Callable[[Tensor], Tensor]) -> Iterator[tuple[int, NDArray[Any]]]:
        """(number, (..., H, W)) of each picture, of what `make` makes of (C, h, W) logits."""
        begun: dict[int, NDArray[Any]] = {}

        def made(logits: Tensor) -> Tensor:
            with tell_out_of_memory(too_large((logits.shape[-2], logits.shape[-1]))):
                return make(logits)

        for strip, part in fetch_strips(strips, made):
            if strip.picture not in begun:
                begun[strip.picture] = np.empty((*part.shape[:-2], *strip.size_hw), part.dtype)
            begun[strip.picture][..., strip.rows, :] = part
            if strip.is_last:
                yield strip.picture, begun.pop(strip.picture)

    def _forward_tiles(self, tiles: Tensor) -> Tensor:
        """Logits of tiles, in as many parts as memory asks for."""
        forward = self._forward_valid if self.model.margin else self.forward
        logits = attempt(forward, tiles)
        if logits is None and len(tiles) == 1:
            raise SettingError(
                _("out of memory with tiles of {size} px; use smaller --tiles, or --device cpu").format(
                    size=max(tiles.shape[-2:])
                ),
                key="--tiles",
            )
        if logits is None:
            return torch.cat([self._forward_tiles(half) for half in tiles.chunk(2)])
        return logits

    def run(self, pictures: Iterable[Prepared]) -> Iterator[Logits]:
        """Logits of pictures; those of one size to the network, its padding counted, share a forward pass."""
        waiting: dict[tuple[int, int], list[tuple[int, Prepared]]] = {}
        held_bytes = 0
        for number, picture in enumerate(pictures):
            size = self._padded(picture)
            group = waiting.setdefault(size, [])
            group.append((number, picture))
            held_bytes += _bytes_held(picture)
            pixels = len(group) * size[0] * size[1]
            full = pixels >= (self._batch_pixels or _BATCH_PIXELS) or len(group) >= self._most_pictures
            if full or held_bytes >= _HELD_BYTES:
                # where nothing is full, the size with the most pictures goes first
                ready = waiting.pop(size if full else max(waiting, key=lambda held: len(waiting[held])))
                held_bytes -= sum(_bytes_held(done) for _number, done in ready)
                yield from self._forward(ready)
        for group in waiting.values():
            yield from self._forward(group)

    @torch.inference_mode()
    def forward(self, small: Tensor) -> Tensor:
        """(N, channels, h, w) raw values at model size -> (N, C, h, w) float32 logits."""
        return self._infer(send(small, self.device))

    @torch.inference_mode()
    def _forward_valid(self, small: Tensor) -> Tensor:
        """The same of tiles with their margin, for the network that pads nothing: logits of their middle."""
        return _compute(self.model.forward_tiles, self.precision, send(small, self.device))

    def _forward(self, group: list[tuple[int, Prepared]]) -> Iterator[Logits]:
        logits = attempt(self._forward_stacked, [picture for _number, picture in group])
        if logits is None:
            if len(group) == 1:
                raise SettingError(too_large(group[0][1].native_hw), key="device")
            half = len(group) // 2
            self._batch_pixels = half * math.prod(self._padded(group[0][1]))
            yield from self._forward(group[:half])
            yield from self._forward(group[half:])
            return
        alike: dict[tuple[int, ...], list[int]] = {}
        for slot, (_number, picture) in enumerate(group):
            alike.setdefault((*picture.small.shape[:2], *picture.native_hw), []).append(slot)
        for (h, w, *native_hw), slots in alike.items():
            most = max(1, _NATIVE_VALUES // (logits.shape[1] * math.prod(native_hw)))
            for some in (slots[start : start + most] for start in range(0, len(slots), most)):
                whole = some[-1] - some[0] + 1 == len(some)
                values = logits[some[0] : some[-1] + 1] if whole else logits[some]
                yield Logits([group[slot][0] for slot in some], group[some[0]][1].native_hw, values[..., :h, :w])

    def _forward_stacked(self, pictures: list[Prepared]) -> Tensor:
        """(N, C, h, w) logits of pictures of one padded size; beyond each picture's own size they mean nothing."""
        height, width = self._padded(pictures[0])
        stacked = np.empty((len(pictures), height, width, self.bundle.sizing.channels), pictures[0].small.dtype)
        for place, (_native_hw, small) in zip(stacked, pictures, strict=True):
            h, w = small.shape[:2]
            place[:h, :w] = small
            place[:h, w:] = small[:, -1:]  # as the network itself would: the edge is repeated
            place[h:] = place[h - 1]
        batch = torch.from_numpy(stacked.astype(np.float32) if stacked.dtype != np.uint8 else stacked)
        return self.forward(batch.permute(0, 3, 1, 2))

    def _padded(self, picture: Prepared) -> tuple[int, int]:
        """(h, w) that pictures have in common which share a forward pass."""
        return self.model.padded_hw((picture.small.shape[0], picture.small.shape[1]))

    def prepare(self, image: NDArray[Any] | Path | str) -> Prepared:
        """A picture at model size; arguments and errors as of a call."""
        sizing, pixels = self.bundle.sizing, self.hold(image).pixels
        native_hw = pixels.shape[0], pixels.shape[1]
        return Prepared(native_hw, resize_array(pixels, model_size(native_hw, sizing.size_px, sizing.keep_aspect)))

    def hold(self, image: NDArray[Any] | Path | str) -> Held:
        """A picture as it is, checked; arguments and errors as of a call."""
        sizing, dtype = self.bundle.sizing, self.bundle.dtype
        if isinstance(image, str | Path):
            path = Path(image)
            refuse_other_kind(path, read_header(path, sizing.channels), self.bundle)
            image = read_image(path, sizing.channels)
        image = np.asarray(image)  # of Pillow pictures and lists too
        if image.dtype != dtype and image.dtype.kind != "f":
            raise DataError(
                _("an array of {found} was given, but the model takes {dtype}, or float in its units").format(
                    found=image.dtype, dtype=dtype
                ),
                key="dtype",
            )
        if image.ndim == 2:
            image = image[:, :, None]
        if image.ndim != 3 or image.shape[2] != sizing.channels or 0 in image.shape:
            raise DataError(
                _("a picture of shape {shape} was given, but the model takes (height, width, {channels})").format(
                    shape=image.shape, channels=sizing.channels
                ),
                key="shape",
            )
        return Held(straighten(image))


def _compute(network: Callable[[Tensor], Tensor], precision: torch.dtype, batch: Tensor) -> Tensor:
    """float32 logits of a batch of raw values of any dtype, computed in this precision."""
    with torch.autocast(batch.device.type, precision, enabled=precision != torch.float32):
        logits = network(batch.float().contiguous(memory_format=torch.channels_last))
    return logits.float()


def class_index(logits: Tensor) -> Tensor:
    """(C, ...) logits -> (...) uint8 index of the largest, the first of equals."""
    if logits.device.type != "cpu":
        return logits.argmax(dim=0).to(torch.uint8)
    # torch's own goes pixel by pixel on a CPU: measured, 5 Mpix/s for two classes, and this 42 (two cores)
    best, index = logits[0].clone(), torch.zeros(logits.shape[1:], dtype=torch.uint8)
    for number in range(1, len(logits)):
        index.masked_fill_(logits[number] > best, number)
        torch.maximum(best, logits[number], out=best)
    return index


def refuse_other_kind(path: Path, header: Header, bundle: Bundle) -> None:
    """Fail when a picture has other channels than the model takes, or another depth."""
    problems = []
    if not header.gives(bundle.sizing.channels):
        line = _("{path}: has {found} channels, but the model takes {channels}").format(
            path=path, found=header.channels, channels=bundle.sizing.channels
        )
        problems.append(Problem(line, path, "data.channels"))
    if header.dtype != bundle.dtype:
        line = _("{path}: a {found} picture, but the model takes {dtype}; save it with that depth").format(
            path=path, found=header.dtype, dtype=bundle.dtype
        )
        problems.append(Problem(line, path, "dtype"))
    if problems:
        raise DataError(problems, path=path)


def load(path: Path | str, device: str | None = None, *, tiles: int | None = None, overlap: float = 0.25) -> Predictor:
    """A predictor from a model file or a run folder; `tiles` and `overlap` as of `Predictor`.

    Raises:
        ModelFileError: the file is missing, truncated, not ours, or newer than this version.
        SettingError: there is no such device, or no such tiles.
    """
    with tell_out_of_memory(_("no memory is left for the model; try --device cpu")):
        return Predictor(load_bundle(Path(path)), device, tiles=tiles, overlap=overlap)


def too_large(native_hw: tuple[int, int]) -> str:
    """The sentence for a picture of that (height, width) in px that memory does not suffice for."""
    return _("out of memory with one picture of {width}x{height} px; try --device cpu, or a smaller picture").format(
        width=native_hw[1], height=native_hw[0]
    )


def _bytes_held(picture: Prepared) -> int:
    return picture.small.nbytes + math.prod(picture.native_hw)


def _bytes_given(image: NDArray[Any] | Path | str) -> int:
    """What a picture that is waited for takes; of files nothing is known yet."""
    return image.nbytes if isinstance(image, np.ndarray) else 0
