"""Scores of a predictor on pairs of image and mask.

Images are scored at two sizes: *native*, the image's own, against the original mask (the realistic one); and *model
size*, the network's, against the mask resized by nearest pixel, for comparison with papers that score at this size. If
the network sees images at native size, as in tiles, both are the same. Boundary measures, calibration and intervals
are of the native size. docs/scores.md defines each score.
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
from ubend.evaluation.intervals import mean_intervals
from ubend.evaluation.score_tables import DISTANCES
from ubend.inference.prediction import class_index
from ubend.inference.predictor import Logits, too_large
from ubend.io.images import resize_mask
from ubend.labels.class_table import IGNORED, LabelMap, background_class
from ubend.layouts.pairs import Pair
from ubend.metrics.boundary import (
    TOLERANCE_PX,
    BoundaryCounts,
    boundary_f1,
    count_boundaries,
    in_truth_xor_prediction,
    surface_distance,
)
from ubend.metrics.calibration import BINS, count_calibration_batch, expected_calibration_error
from ubend.metrics.missed_objects import KEPT, MISSED_BELOW, ClassObjects, find_missed_objects, group_by_size
from ubend.metrics.overlap import (
    count_confusion_batch,
    dice_from_confusion,
    iou_from_confusion,
    precision_from_confusion,
    recall_from_confusion,
    summarise_overlap,
)
from ubend.metrics.summary import ClassMean, class_keys, none_for_nan
from ubend.portable.pixel_size import PixelSize, read_spatial_info
from ubend.portable.prefetch import prefetch
from ubend.portable.raster import Header
from ubend.portable.tiling import TileSource
from ubend.training.losses import sum_cross_entropy

_CELLS_WAITING = 2**22  # of counts on the device: 32 MiB


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
    """Score a model on images with masks.

    Args:
        predictor: the model.
        pairs: images with masks.
        labels: the label map of the masks, in the order of the model's classes; None: the model's own. Classes without
            label values have no score.
        decoded: returns an image by its index in `pairs`; None: read the files.
        skip_bad: leave out pairs that cannot be used.
        select: given the indices of all images that were read, returns those to score.
    Returns:
        `native` and `model_size`, each with `dice`, `iou`, `precision`, `recall` (per image: mean, median and worst
        decile; and pooled; per class, their mean, and the mean without the background), `pixel_accuracy`,
        `cross_entropy` (mean per pixel, nats; None if no pixel has a class at this size), `true_share` and
        `predicted_share` of each class; and, at native size, `boundary`: `f1`, `hausdorff_95`, `surface_distance` in
        the same ways, the distances in `unit`;
        `calibration`; `confusion`: pixels at native size, true class -> predicted class; `missed_objects`: true objects
        that are missed, by size; `intervals` of the per-image means; `per_picture`, the scores of each class for every
        image; `skipped`, only if pairs were skipped: their names and problems.
    Raises:
        PairError: lists all pairs whose image or mask cannot be read, whose sizes differ, or whose mask has a value
            without a class.
        DataError: the logits are not finite.
    """
    label_map = labels or predictor.labels
    counter = _ImageCounter(predictor, pairs, label_map)
    for logits in predictor.run(counter.sources(decoded)):
        counter.add(logits)
    if counter.bad and not (skip_bad and counter.read):
        raise PairError(counter.bad)
    counted = select(counter.read)
    scores = _summarise(counter.fetch(counted), [pairs[index] for index in counted], label_map)
    return scores | ({"skipped": counter.bad} if counter.bad else {})


class _ImageCounts(NamedTuple):
    """The counts of n images, from which all scores follow.

    Attributes:
        confusions: (n, C, C) pixels at native size, true class x predicted class.
        losses: (n,) cross entropy at native size, summed over the pixels.
        calibration: (n, BINS, 3).
        model_size: confusions and losses at model size.
        boundary: of each image and class.
        objects: class index -> its true objects; None: not counted.
        unit: of the distances in `boundary`.
    """

    confusions: NDArray[np.int64]
    losses: NDArray[np.float64]
    calibration: NDArray[np.float64]
    model_size: tuple[NDArray[np.int64], NDArray[np.float64]]
    boundary: BoundaryCounts
    objects: list[dict[int, ClassObjects | None]]
    unit: str


class _ImageCounter:
    """Reads images with their masks for a predictor, and counts its logits.

    Attributes:
        bad: name of a pair that cannot be used -> problems.
        read: indices of the pairs that were read, in the order in which the predictor gets them.
    """

    def __init__(self, predictor: ScoredPredictor, pairs: Sequence[Pair], labels: LabelMap) -> None:
        self._predictor, self._pairs, self._labels = predictor, pairs, labels
        self._native, self._model_size = _Counts(len(pairs), labels.classes), _Counts(len(pairs), labels.classes)
        self._spacings, self._unit = _read_spacings(pairs)
        self._truths: dict[int, NDArray[np.uint8]] = {}
        self._partial_masks: dict[int, NDArray[np.uint8]] = {}  # of images that are predicted in blocks of rows
        self._boundary: dict[int, BoundaryCounts] = {}
        self._objects: dict[int, dict[int, ClassObjects | None]] = {}
        self.bad: dict[str, list[str]] = {}
        self.read: list[int] = []

    def sources(self, decoded: Callable[[int], DecodedImage] | None) -> Iterator[TileSource]:
        """Each image that can be used; for `decoded` see `evaluate_pairs`."""
        for index, read in enumerate(_read(self._predictor, self._pairs, self._labels, decoded)):
            if isinstance(read, DataError):
                self.bad[self._pairs[index].name] = read.problems
            elif read is not None:
                image, self._truths[index] = read
                self.read.append(index)
                yield image

    def add(self, logits: Logits) -> None:
        """Count the logits of images, or of a block of their rows."""
        indices = [self.read[position] for position in logits.image_indices]
        truth = np.stack([self._truths[index][logits.rows] for index in indices])
        with explain_out_of_memory(too_large(logits.native_hw)):
            values = logits.native()
            predicted, target = class_index(values.movedim(1, 0)), send(torch.from_numpy(truth), values.device)
            counts = self._native.add(indices, values, predicted, target)
            h, w = map(int, logits.values.shape[-2:])
            if truth.shape[1:] != (h, w):
                target = send(torch.from_numpy(resize_mask(truth, (h, w))), values.device)
                self._model_size.add(indices, logits.values, class_index(logits.values.movedim(1, 0)), target)
            else:
                self._model_size.add_counted(indices, *counts)
            masks = predicted.cpu().numpy()
        for index, rows in zip(indices, masks, strict=True):
            if not logits.is_last or index in self._partial_masks:
                self._partial_masks.setdefault(index, np.empty(logits.native_hw, np.uint8))[logits.rows] = rows
            if logits.is_last:
                self._add_mask(index, self._partial_masks.pop(index, rows), self._truths.pop(index))

    def _add_mask(self, index: int, mask: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
        spacing = self._spacings[index]
        self._boundary[index] = count_boundaries(mask, truth, self._labels.classes, spacing=spacing)
        self._objects[index] = find_missed_objects(truth, mask, _object_classes(self._labels))

    def fetch(self, indices: list[int]) -> _ImageCounts:
        """The counts of these images."""
        return _ImageCounts(
            *self._native.fetch(indices),
            self._model_size.fetch(indices)[:2],
            BoundaryCounts(*map(np.stack, zip(*(self._boundary[index] for index in indices), strict=True))),
            [self._objects[index] for index in indices],
            self._unit,
        )


def _object_classes(labels: LabelMap) -> list[int]:
    """The classes whose objects are counted: all that masks can contain except the background."""
    without = (background_class(labels.names), *labels.unmapped)
    return [index for index in range(labels.classes) if index not in without]


def _summarise(counts: _ImageCounts, pairs: Sequence[Pair], labels: LabelMap) -> dict[str, Any]:
    """The result of `evaluate_pairs`, without `skipped`."""
    confusions, boundary, names = counts.confusions, counts.boundary, labels.names
    for pair, loss in zip(pairs, counts.losses, strict=True):
        if np.isnan(loss):
            line = _(
                "{path}: the model's logits are not finite, because the image's values or the model's weights are too "
                "large"
            )
            raise DataError(line.format(path=pair.image), path=pair.image, key="value")
    per_image = {
        "dice": dice_from_confusion(confusions),
        "iou": iou_from_confusion(confusions),
        "precision": precision_from_confusion(confusions),
        "recall": recall_from_confusion(confusions),
        "boundary_f1": boundary_f1(boundary),
        "hausdorff_95": boundary.hausdorff_95,
        "surface_distance": surface_distance(boundary),
    }
    rows = zip(names, confusions.sum(axis=0).tolist(), strict=True)
    return {
        "native": _summarise_overlap(confusions, counts.losses, labels),
        "model_size": _summarise_overlap(*counts.model_size, labels),
        "boundary": _summarise_boundary(boundary, labels, counts.unit),
        "calibration": _summarise_calibration(counts.calibration.sum(axis=0)),
        "confusion": {name: dict(zip(names, row, strict=True)) for name, row in rows},
        "missed_objects": _summarise_objects(counts.objects, pairs, labels),
        "intervals": _intervals(per_image, pairs, labels),
        "per_picture": _per_image(per_image, pairs, labels),
    }


def identify_images(pairs: Iterable[Pair], hashes: Iterable[Sequence[str]]) -> dict[str, dict[str, str | None]]:
    """What `images` of scores.json holds, by which other scores of the same images are recognised.

    Args:
        pairs: the scored ones.
        hashes: of the image and the mask of each, see `hash_pairs`.
    """
    return {
        pair.name: {"image_hash": image, "mask_hash": mask, "group": pair.group}
        for pair, (image, mask) in zip(pairs, hashes, strict=True)
    }


def _read(
    predictor: ScoredPredictor, pairs: Sequence[Pair], labels: LabelMap, decoded: Callable[[int], DecodedImage] | None
) -> Iterator[tuple[TileSource, NDArray[np.uint8]] | DataError | None]:
    """Each image and its (H, W) class indices, or its problem, in the order of the pairs; None: not scored.

    Images are prefetched, fewer if they are large.
    """
    if decoded is not None:

        def take(index: int) -> tuple[TileSource, NDArray[np.uint8]] | DataError:
            try:
                image, truth = decoded(index)
                return image, _read_truth(pairs[index], image, labels) if truth is None else truth
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
    """Confusion matrices, cross entropies and calibration counts of images.

    They stay on the device until there are many, since fetching them waits for the device.
    """

    def __init__(self, images: int, classes: int) -> None:
        self._confusions = np.zeros((images, classes, classes), np.int64)
        self._losses = np.zeros(images)
        self._calibration = np.zeros((images, BINS, 3))
        self._indices: list[int] = []
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, indices: list[int], logits: Tensor, guess: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Count rows of images: (n, C, h, W) logits, (n, h, W) predicted class index, class index or IGNORED; returns
        the counts."""
        confusion = count_confusion_batch(guess, target, self._confusions.shape[1])
        counted = confusion, sum_cross_entropy(logits, target), count_calibration_batch(logits, target)
        self.add_counted(indices, *counted)
        return counted

    def add_counted(self, indices: list[int], confusion: Tensor, loss: Tensor, calibration: Tensor) -> None:
        """Add counts that `add` of another object returned."""
        self._indices += indices
        self._waiting.append((confusion, loss, calibration))
        if len(self._indices) * self._confusions.shape[1] ** 2 >= _CELLS_WAITING:
            self._sum_waiting()

    def fetch(self, indices: list[int]) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """(n, C, C) confusions, (n,) cross entropies and (n, BINS, 3) calibration of these images, summed over the
        pixels of each."""
        self._sum_waiting()
        return self._confusions[indices], self._losses[indices], self._calibration[indices]

    def _sum_waiting(self) -> None:
        """Add the counts that still are on the device to the sums."""
        if self._waiting:
            for sums, tensors in zip(
                (self._confusions, self._losses, self._calibration), zip(*self._waiting, strict=True), strict=True
            ):
                np.add.at(sums, self._indices, torch.cat(tensors).cpu().numpy())
            self._indices, self._waiting = [], []


def _read_spacings(pairs: Sequence[Pair]) -> tuple[list[tuple[float, float]], str]:
    """Height and width of each image's pixels, and their unit: the files' if all state the same one, else px."""
    sizes: list[PixelSize] = []
    for pair in pairs:
        try:
            pixel = read_spatial_info(pair.image).pixel
        except (DataError, OSError):  # reported when the image is read
            pixel = None
        if pixel is None or (sizes and pixel.unit != sizes[0].unit):
            return [(1.0, 1.0)] * len(pairs), "px"
        sizes.append(pixel)
    return [(size.height, size.width) for size in sizes], sizes[0].unit if sizes else "px"


def _read_truth(pair: Pair, image: TileSource, labels: LabelMap) -> NDArray[np.uint8]:
    """(H, W) class index of an image's mask at native size; IGNORED where the mask is ignored or the image is
    invalid."""
    truth = ignore_invalid(read_class_map(pair, image.native_hw, labels), image.invalid, pair).classes
    if (truth == IGNORED).all():
        raise DataError(_("{path}: no pixel of this mask has a class").format(path=pair.mask.path), path=pair.mask.path)
    return truth


def _summarise_overlap(confusions: NDArray[np.int64], losses: NDArray[np.float64], labels: LabelMap) -> dict[str, Any]:
    scores = summarise_overlap(confusions, labels.names, background_class(labels.names), labels.unmapped).to_json()
    confusion = confusions.sum(axis=0)

    def shares(counts: NDArray[np.int64]) -> dict[str, float]:
        return {name: int(n) / max(1, int(confusion.sum())) for name, n in zip(labels.names, counts, strict=True)}

    return {
        **scores,
        "cross_entropy": float(losses.sum() / confusion.sum()) if confusion.any() else None,
        "true_share": shares(confusion.sum(axis=1)),
        "predicted_share": shares(confusion.sum(axis=0)),
    }


def _class_mean(labels: LabelMap) -> ClassMean:
    return ClassMean(labels.names, background_class(labels.names), labels.unmapped)


def _summarise_boundary(counts: BoundaryCounts, labels: LabelMap, unit: str) -> dict[str, Any]:
    """The boundary measures of (N, C) counts."""
    classes, total = _class_mean(labels), BoundaryCounts(*(array.sum(axis=0) for array in counts))
    one_sided = in_truth_xor_prediction(counts).sum(axis=0) * classes.mapped
    return {
        "tolerance_px": TOLERANCE_PX,
        "unit": unit,
        "f1": classes.summarise(boundary_f1(counts), boundary_f1(total)).to_json(labels.names),
        "hausdorff_95": classes.summarise(counts.hausdorff_95, worst="highest").to_json(labels.names),
        "surface_distance": classes.summarise(surface_distance(counts), worst="highest").to_json(labels.names),
        "in_truth_or_prediction_only": dict(zip(class_keys(labels.names), one_sided.tolist(), strict=True)),
    }


def _summarise_objects(
    images: Sequence[dict[int, ClassObjects | None]], pairs: Sequence[Pair], labels: LabelMap
) -> dict[str, Any]:
    """The missed objects of images; `left_out` is the number of images in which a class is not counted."""
    summary = {}
    for index in _object_classes(labels):
        in_images = [(pair.name, image[index]) for pair, image in zip(pairs, images, strict=True) if index in image]
        counted = [(name, objects) for name, objects in in_images if objects is not None]
        areas, missed = np.zeros(0, np.int64), np.zeros(0, np.bool_)
        if counted:
            areas = np.concatenate([objects.areas for _name, objects in counted])
            missed = np.concatenate([objects.missed for _name, objects in counted])
        largest = [(name, missed_object) for name, objects in counted for missed_object in objects.largest]
        largest.sort(key=lambda both: (-both[1].area, both[0]))
        summary[labels.names[index]] = {
            "left_out": len(in_images) - len(counted),
            "sizes": [group._asdict() for group in group_by_size(areas, missed)],
            "largest_missed": [
                {"image": name, **missed_object._asdict(), "box": [*missed_object.box]}
                for name, missed_object in largest[:KEPT]
            ],
        }
    return {"missed_below": MISSED_BELOW, "classes": summary}


def _summarise_calibration(counts: NDArray[np.float64]) -> dict[str, Any]:
    """The calibration of (BINS, 3) counts."""
    pixels, confidence, right = counts.T
    return {
        "expected_error": none_for_nan(expected_calibration_error(counts)),
        "bins": [
            {"pixels": int(n), "confidence": float(sure / n) if n else None, "accuracy": float(hit / n) if n else None}
            for n, sure, hit in zip(pixels, confidence, right, strict=True)
        ],
    }


def _intervals(per_image: dict[str, NDArray[np.float64]], pairs: Sequence[Pair], labels: LabelMap) -> dict[str, Any]:
    """The 95% intervals of the per-image means of (N, C) scores."""
    classes, keys = _class_mean(labels), [*class_keys(labels.names), "mean", "mean_foreground"]
    unmapped = ~classes.mapped
    columns, limits = [], []
    for name, scores in per_image.items():
        scored = np.where(unmapped, np.nan, scores)
        columns += [*scored.T, scored[:, classes.mapped], scored[:, classes.foreground]]
        limits += [None if name in DISTANCES else 1.0] * len(keys)
    groups = [pair.group for pair in pairs]
    intervals = mean_intervals(columns, groups, limits)
    plain = (interval.to_json() for interval in intervals)
    out: dict[str, Any] = {name: {key: next(plain) for key in keys} for name in per_image}
    over = "images" if all(group is None for group in groups) else "groups"
    return {"over": over, "count": intervals[0].units, **out}


def _per_image(per_image: dict[str, NDArray[np.float64]], pairs: Sequence[Pair], labels: LabelMap) -> dict[str, Any]:
    def named(row: NDArray[np.float64]) -> dict[str, float | None]:
        scored = (np.nan if n in labels.unmapped else v for n, v in enumerate(row.tolist()))
        return {n: None if np.isnan(v) else round(float(v), 6) for n, v in zip(labels.names, scored, strict=True)}

    return {
        pair.name: {measure: named(scores[i]) for measure, scores in per_image.items()} for i, pair in enumerate(pairs)
    }
