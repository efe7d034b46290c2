"""Scores of a predictor on pairs of image and mask.

Two sizes: *native*, the image's own, against the original mask (the realistic one); and *model size*, the network's,
    against the mask resized by nearest pixel, for comparison with papers that score there. If the network sees images
    at native size, as in tiles, both are the same.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubend.core.device import explain_out_of_memory, send
from ubend.core.errors import DataError, PairError
from ubend.core.i18n import _
from ubend.dataset.store import ignore_invalid, read_class_map
from ubend.inference.input_checks import too_large
from ubend.inference.prediction import class_index
from ubend.inference.predictor import Logits
from ubend.inference.prefetch import prefetch
from ubend.inference.tiling import TileSource
from ubend.io.images import resize_mask
from ubend.io.raster import Header
from ubend.labels.class_table import IGNORED, LabelMap, background_class
from ubend.layouts.pairs import Pair
from ubend.metrics.overlap import (
    count_confusion_batch,
    dice_from_confusion,
    iou_from_confusion,
    summarise_overlap,
)
from ubend.training.losses import sum_cross_entropy

_CELLS_WAITING = 2**22  # confusion matrices kept on the device: 32 MiB


class ScoredPredictor(Protocol):
    """The interface of models that can be scored: `Predictor` and `Baseline`."""

    @property
    def labels(self) -> LabelMap:
        """The class table."""

    def inspect(self, path: Path) -> Header:
        """Check an image file's header; DataError: the image does not fit the model."""

    def prepare(self, image: Path, header: Header) -> TileSource | None:
        """Prepare an image at model size; None: it is not scored."""

    def run(self, sources: Iterable[TileSource]) -> Iterator[Logits]:
        """Logits of each image, in any order."""


class DecodedImage(NamedTuple):
    """A decoded image, as returned by `prepare`, and its (H, W) class indices.

    `truth` None: read from the mask file.
    """

    image: TileSource
    truth: NDArray[np.uint8] | None = None


def evaluate_pairs(
    predictor: ScoredPredictor,
    pairs: Sequence[Pair],
    labels: LabelMap | None = None,
    decoded: Callable[[int], DecodedImage] | None = None,
    *,
    skip_bad: bool = False,
    select: Callable[[list[int]], list[int]] = lambda read: read,
) -> dict[str, Any]:
    """Scores of a model on images with masks.

    Args:
        predictor: the model.
        pairs: images with masks.
        labels: the label map of the masks, in the order of the model's classes; None: that of its own masks. Classes
            without label values have no score.
        decoded: returns an image by its index in `pairs`; None: read the files.
        skip_bad: leave out pairs that cannot be used.
        select: given the indices of all images that were read, returns those to score.
    Returns:
        `native` and `model_size`, each with `dice`, `iou` (per-image mean and pooled, per class, their
        mean, and the mean without the background), `pixel_accuracy`, `cross_entropy` (mean per pixel,
        nats), `true_share` and `predicted_share` of each class; and
        `per_picture`, the native Dice and IoU of each class for every image; `skipped`, only if pairs were left out:
        their names and problems.
    Raises:
        PairError: all pairs of which an image or mask cannot be read, sizes differ, or a mask value has no class.
        DataError: the logits are not finite.
    """
    known = labels or predictor.labels
    native, small = (_Counts(len(pairs), known.classes) for _size in range(2))
    truths: dict[int, NDArray[np.uint8]] = {}
    bad: dict[str, list[str]] = {}
    read: list[int] = []  # places in `pairs` of the images that are predicted

    def sources() -> Iterator[TileSource]:
        for number, found in enumerate(_read(predictor, pairs, known, decoded)):
            if isinstance(found, DataError):
                bad[pairs[number].name] = found.problems
            elif found is not None:
                image, truths[number] = found
                read.append(number)
                yield image

    for logits in predictor.run(sources()):
        numbers = [read[index] for index in logits.numbers]
        truth = np.stack([truths[number][logits.rows] for number in numbers])
        with explain_out_of_memory(too_large(logits.native_hw)):
            counted = native.add(numbers, logits.native(), truth)
            h, w = map(int, logits.values.shape[-2:])
            if truth.shape[1:] == (h, w):
                small.add_counted(numbers, *counted)
            else:
                small.add(numbers, logits.values, resize_mask(truth, (h, w)))
        if logits.is_last:
            for number in numbers:
                del truths[number]
    if bad and not (skip_bad and read):
        raise PairError(bad)
    counting = select(read)
    pairs = [pairs[number] for number in counting]
    (confusions, losses), at_model_size = (counts.fetch(counting) for counts in (native, small))
    for pair, loss in zip(pairs, losses, strict=True):
        if np.isnan(loss):
            line = _(
                "{path}: the model's logits are not finite, because the image's values or the model's weights are too "
                "large"
            )
            raise DataError(line.format(path=pair.image), path=pair.image, key="value")
    scores = {
        "native": _summary(confusions, losses, known),
        "model_size": _summary(*at_model_size, known),
        "per_picture": _per_image(confusions, pairs, known),
    }
    return scores | ({"skipped": bad} if bad else {})


def _read(
    predictor: ScoredPredictor, pairs: Sequence[Pair], labels: LabelMap, decoded: Callable[[int], DecodedImage] | None
) -> Iterator[tuple[TileSource, NDArray[np.uint8]] | DataError | None]:
    """Each image and its (H, W) class indices, or its problem, in the order of the pairs; None: not scored.

    Images are prefetched, fewer if they are large.
    """
    if decoded is not None:

        def take(number: int) -> tuple[TileSource, NDArray[np.uint8]] | DataError:
            try:
                image, truth = decoded(number)
                return image, _read_truth(pairs[number], image, labels) if truth is None else truth
            except DataError as error:
                return error

        return prefetch(take, range(len(pairs)))

    def inspect(pair: Pair) -> tuple[Pair, Header | DataError]:
        try:
            return pair, predictor.inspect(pair.image)
        except DataError as error:
            return pair, error

    def read(inspected: tuple[Pair, Header | DataError]) -> tuple[TileSource, NDArray[np.uint8]] | DataError | None:
        pair, header = inspected
        if isinstance(header, DataError):
            return header
        try:
            image = predictor.prepare(pair.image, header)
            return None if image is None else (image, _read_truth(pair, image, labels))
        except DataError as error:
            return error

    def weigh(inspected: tuple[Pair, Header | DataError]) -> int:
        header = inspected[1]
        return 0 if isinstance(header, DataError) else header.bytes(header.channels)

    return prefetch(read, prefetch(inspect, pairs), weigh)


class _Counts:
    """Confusion matrices and cross entropies of images, kept on the device and fetched in batches to avoid waiting."""

    def __init__(self, images: int, classes: int) -> None:
        self._confusions = np.zeros((images, classes, classes), np.int64)
        self._losses = np.zeros(images)
        self._numbers: list[int] = []
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, numbers: list[int], logits: Tensor, truth: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Count rows of images: (n, C, h, W) logits, (n, h, W) class index or IGNORED; returns what was counted."""
        target = send(torch.from_numpy(truth), logits.device)
        guess = class_index(logits.movedim(1, 0))
        confusion = count_confusion_batch(guess, target, self._confusions.shape[1])
        loss = sum_cross_entropy(logits, target)
        self.add_counted(numbers, confusion, loss)
        return confusion, loss

    def add_counted(self, numbers: list[int], confusion: Tensor, loss: Tensor) -> None:
        """Add the counts of another object's `add`."""
        self._numbers += numbers
        self._waiting.append((confusion, loss))
        if len(self._numbers) * self._confusions.shape[1] ** 2 >= _CELLS_WAITING:
            self.fetch([])

    def fetch(self, numbers: list[int]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(n, C, C) confusions and (n,) cross entropies of these images, summed over the pixels of each."""
        if self._waiting:
            confusions, losses = (torch.cat(some).cpu().numpy() for some in zip(*self._waiting, strict=True))
            np.add.at(self._confusions, self._numbers, confusions)
            np.add.at(self._losses, self._numbers, losses)
            self._numbers, self._waiting = [], []
        return self._confusions[numbers], self._losses[numbers]


def _read_truth(pair: Pair, image: TileSource, labels: LabelMap) -> NDArray[np.uint8]:
    """(H, W) class index of an image's mask at native size; IGNORED where the mask is ignored or the image is
    invalid."""
    truth = ignore_invalid(read_class_map(pair, image.native_hw, labels), image.invalid, pair).classes
    if (truth == IGNORED).all():
        raise DataError(_("{path}: no pixel of this mask has a class").format(path=pair.mask.path), path=pair.mask.path)
    return truth


def _summary(confusions: NDArray[np.int64], losses: NDArray[np.float64], labels: LabelMap) -> dict[str, Any]:
    scores = summarise_overlap(confusions, labels.names, background_class(labels.names), labels.unmapped).to_json()
    pixels = confusions.sum(axis=0)

    def shares(counts: NDArray[np.int64]) -> dict[str, float]:
        return {name: int(n) / max(1, int(pixels.sum())) for name, n in zip(labels.names, counts, strict=True)}

    return {
        **scores,
        "cross_entropy": float(losses.sum() / pixels.sum()),
        "true_share": shares(pixels.sum(axis=1)),
        "predicted_share": shares(pixels.sum(axis=0)),
    }


def _per_image(confusions: NDArray[np.int64], pairs: Sequence[Pair], labels: LabelMap) -> dict[str, Any]:
    def named(row: NDArray[np.float64]) -> dict[str, float | None]:
        scored = (np.nan if n in labels.unmapped else v for n, v in enumerate(row.tolist()))
        return {n: None if np.isnan(v) else round(float(v), 6) for n, v in zip(labels.names, scored, strict=True)}

    dice, iou = dice_from_confusion(confusions), iou_from_confusion(confusions)
    return {pair.name: {"dice": named(dice[i]), "iou": named(iou[i])} for i, pair in enumerate(pairs)}
