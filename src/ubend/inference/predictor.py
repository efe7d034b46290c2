"""Picture of any size -> probabilities -> mask.

C classes, H x W pixels of the picture's own size, h x w of the size that the network sees.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubend.device import attempt, fastest_precision, pick_device, tell_out_of_memory
from ubend.errors import DataError, SettingError
from ubend.language import _
from ubend.masks.labels import LabelMap
from ubend.model.bundle import Bundle, load_bundle
from ubend.pictures.decode import read_header
from ubend.pictures.images import model_size, read_image, resize_array, resize_image
from ubend.pictures.raster import Header

_BATCH_PIXELS = 4 * 2**20  # model pixels in one forward pass: 1 GiB or so of features at width 64
_BATCH_PICTURES = 32  # in one forward pass
_READ_AHEAD = 8  # pictures
_HELD_BYTES = 2**28  # of pictures kept back, at their own size, until others of their model size come


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


@dataclass(frozen=True)
class Logits:
    """The network's answer to one picture.

    Attributes:
        number: of the picture, in the order they came.
        image: (H, W, channels) the picture itself.
        values: (1, C, h, w) float32 logits at model size, on the device.
    """

    number: int
    image: NDArray[Any]
    values: Tensor

    def native(self) -> Tensor:
        """(1, C, H, W) logits at the picture's own size."""
        return resize_image(self.values, (self.image.shape[0], self.image.shape[1]))


class Predictor:
    """A model ready to be used: `predictor(picture).mask`."""

    def __init__(self, bundle: Bundle, device: torch.device | str | None = None) -> None:
        self.bundle = bundle
        self.device = pick_device(None if device is None else str(device))
        self.model = bundle.model.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        low = bundle.precision == "bfloat16" and fastest_precision(self.device)[0] == "bfloat16"
        self.precision = torch.bfloat16 if low else torch.float32
        self._batch_pixels: int | None = None  # instead of _BATCH_PIXELS, since memory ran out

    @property
    def labels(self) -> LabelMap:
        return self.bundle.labels

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
        for logits in self.run(images):
            with tell_out_of_memory(too_large(logits.image)):
                prob = logits.native().softmax(dim=1)[0]
                mask = prob.argmax(dim=0).to(torch.uint8)
                prediction = Prediction(mask.cpu().numpy(), prob.cpu().numpy(), self.labels)
            yield logits.number, prediction

    def run(self, images: Iterable[NDArray[Any] | Path | str]) -> Iterator[Logits]:
        """Logits of pictures; those of one model size share a forward pass, files are read ahead."""
        waiting: dict[tuple[int, int], list[tuple[int, NDArray[Any], NDArray[Any]]]] = {}
        held_bytes = 0
        for number, (image, small) in enumerate(_map_ahead(self._prepare, images)):
            size = (small.shape[0], small.shape[1])
            group = waiting.setdefault(size, [])
            group.append((number, image, small))
            held_bytes += image.nbytes
            full = (
                len(group) * size[0] * size[1] >= (self._batch_pixels or _BATCH_PIXELS) or len(group) >= _BATCH_PICTURES
            )
            if full or held_bytes >= _HELD_BYTES:
                # where nothing is full, the size with the most pictures goes first
                ready = waiting.pop(size if full else max(waiting, key=lambda held: len(waiting[held])))
                held_bytes -= sum(done.nbytes for _number, done, _small in ready)
                yield from self._forward(ready)
        for group in waiting.values():
            yield from self._forward(group)

    @torch.inference_mode()
    def forward(self, small: Tensor) -> Tensor:
        """(N, channels, h, w) raw values at model size -> (N, C, h, w) float32 logits."""
        batch = small.float().to(self.device).contiguous(memory_format=torch.channels_last)
        low = self.precision != torch.float32
        with _no_algorithm_search(), torch.autocast(self.device.type, self.precision, enabled=low):
            logits: Tensor = self.model(batch)
        return logits.float()

    def _forward(self, group: list[tuple[int, NDArray[Any], NDArray[Any]]]) -> Iterator[Logits]:
        logits = attempt(self._forward_stacked, [small for _number, _image, small in group])
        if logits is None:
            if len(group) == 1:
                raise SettingError(too_large(group[0][1]))
            half = len(group) // 2
            self._batch_pixels = half * group[0][2].shape[0] * group[0][2].shape[1]
            yield from self._forward(group[:half])
            yield from self._forward(group[half:])
            return
        for slot, (number, image, _small) in enumerate(group):
            yield Logits(number, image, logits[slot : slot + 1])

    def _forward_stacked(self, pictures: list[NDArray[Any]]) -> Tensor:
        stacked = np.stack(pictures)
        batch = torch.from_numpy(stacked.astype(np.float32) if stacked.dtype == np.uint16 else stacked)
        return self.forward(batch.permute(0, 3, 1, 2))

    def _prepare(self, image: NDArray[Any] | Path | str) -> tuple[NDArray[Any], NDArray[Any]]:
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
                )
            )
        if image.ndim == 2:
            image = image[:, :, None]
        if image.ndim != 3 or image.shape[2] != sizing.channels or 0 in image.shape:
            raise DataError(
                _("a picture of shape {shape} was given, but the model takes (height, width, {channels})").format(
                    shape=image.shape, channels=sizing.channels
                )
            )
        size = model_size((image.shape[0], image.shape[1]), sizing.size_px, sizing.keep_aspect)
        return image, resize_array(image, size)


def refuse_other_kind(path: Path, header: Header, bundle: Bundle) -> None:
    """Fail when a picture has other channels than the model takes, or another depth."""
    problems = []
    if not header.gives(bundle.sizing.channels):
        problems.append(
            _("{path}: has {found} channels, but the model takes {channels}").format(
                path=path, found=header.channels, channels=bundle.sizing.channels
            )
        )
    if header.dtype != bundle.dtype:
        problems.append(
            _("{path}: a {found} picture, but the model takes {dtype}; save it with that depth").format(
                path=path, found=header.dtype, dtype=bundle.dtype
            )
        )
    if problems:
        raise DataError(problems)


def load(path: Path | str, device: str | None = None) -> Predictor:
    """A predictor from a model file or a run folder.

    Raises:
        ModelFileError: the file is missing, truncated, not ours, or newer than this version.
        SettingError: there is no such device.
    """
    with tell_out_of_memory(_("no memory is left for the model; try --device cpu")):
        return Predictor(load_bundle(Path(path)), device)


def too_large(image: NDArray[Any]) -> str:
    """The sentence for an (H, W, channels) picture that memory does not suffice for."""
    return _("out of memory with one picture of {width}x{height} px; try --device cpu, or a smaller picture").format(
        width=image.shape[1], height=image.shape[0]
    )


@contextmanager
def _no_algorithm_search() -> Iterator[None]:
    """Pictures come in many sizes, and cuDNN would search its algorithms anew for each."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _map_ahead(
    prepare: Callable[[Any], tuple[NDArray[Any], NDArray[Any]]], images: Iterable[Any]
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """`map` in threads, in order, with at most _READ_AHEAD results waiting."""
    source = iter(images)
    with ThreadPoolExecutor(4, thread_name_prefix="ubend-read") as pool:
        pending = [pool.submit(prepare, image) for image in islice(source, _READ_AHEAD)]
        while pending:
            yield pending.pop(0).result()
            pending += [pool.submit(prepare, image) for image in islice(source, 1)]
