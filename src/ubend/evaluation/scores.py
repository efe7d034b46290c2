"""Predictor + pairs -> scores.

Two sizes: *native*, the picture's own, against the untouched mask (the honest one); and *model size*,
the network's, against the mask resized by nearest pixel, for comparison with papers that score there. Where the
predictor cuts pictures into tiles, both are one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubend.core.device import send, tell_out_of_memory
from ubend.core.errors import DataError
from ubend.core.i18n import _
from ubend.dataset.store import read_class_map
from ubend.inference.predictor import Logits, Predictor, Prepared, class_index, too_large
from ubend.inference.prefetch import map_ahead
from ubend.inference.strips import Held
from ubend.io.decode import read_header
from ubend.io.images import resize_mask
from ubend.labels.class_table import IGNORED, LabelMap, background_class
from ubend.layouts.pairs import Pair
from ubend.metrics.overlap import (
    count_confusion_batch,
    dice_from_confusion,
    iou_from_confusion,
    summarise_overlap,
)
from ubend.training.losses import sum_cross_entropy, sums_dtype

_LARGE_PIXELS = 2**24  # of a picture
_CELLS_WAITING = 2**22  # of confusion matrices on the device: 32 MiB


class Answering(Protocol):
    """What can be scored on whole pictures: a `Predictor` without tiles, or a `Baseline`, which answers in the same
    way."""

    @property
    def labels(self) -> LabelMap:
        """The class table."""

    def prepare(self, image: Path) -> Prepared:
        """A picture's file at the size at which it is looked at."""

    def run(self, pictures: Iterable[Prepared]) -> Iterator[Logits]:
        """Logits of each picture, in any order."""


def evaluate_pairs(
    predictor: Predictor,
    pairs: Sequence[Pair],
    labels: LabelMap | None = None,
    prepare: Callable[[int], Prepared] | None = None,
    hold: Callable[[int], tuple[Held, NDArray[np.uint8]]] | None = None,
) -> dict[str, Any]:
    """Scores of a model on pictures with masks.

    Args:
        predictor: the model.
        pairs: pictures with masks.
        labels: what the masks hold, in the order of the model's classes; None: the same as its own masks.
        prepare: gives a picture, by its place in `pairs`, at model size, as the predictor would make it of the file;
            None: it does so.
        hold: the same for a predictor that cuts tiles: a picture at its own size, and its (H, W) class indices.

    Returns:
        `native` and `model_size`, each with `dice`, `iou` (per-image mean and pooled, per class, their
        mean, and the mean without the background), `pixel_accuracy`, `cross_entropy` (mean per pixel,
        nats), `true_share` and `predicted_share` of each class; and
        `per_picture`, the native Dice and IoU of each class for every picture.
    Raises:
        DataError: a picture or mask cannot be read, sizes differ, or a mask value has no class.
    """
    known = labels or predictor.labels
    if predictor.tiling is None:
        return evaluate_whole(predictor, pairs, known, prepare)
    confusions, losses = _score_strips(predictor, pairs, known, hold)
    both = _summary(confusions, losses, known)
    return {"native": both, "model_size": both, "per_picture": _per_picture(confusions, pairs, known)}


def evaluate_whole(
    predictor: Answering,
    pairs: Sequence[Pair],
    known: LabelMap,
    prepare: Callable[[int], Prepared] | None = None,
) -> dict[str, Any]:
    """`evaluate_pairs` of what looks at whole pictures; `known` are its `labels`."""
    counts = {size: _Counts(len(pairs), known.classes) for size in ("native", "model_size")}
    truths: dict[int, NDArray[np.uint8]] = {}

    def look(number: int) -> tuple[Prepared, NDArray[np.uint8]]:
        picture = prepare(number) if prepare else predictor.prepare(pairs[number].image)
        return picture, _read_truth(pairs[number], picture.native_hw, known)

    def pictures() -> Iterator[Prepared]:
        for number, (picture, truth) in enumerate(map_ahead(look, range(len(pairs)))):
            truths[number] = truth
            yield picture

    for logits in predictor.run(pictures()):
        truth = np.stack([truths.pop(number) for number in logits.numbers])
        with tell_out_of_memory(too_large(logits.native_hw)):
            h, w = logits.values.shape[-2:]
            counts["native"].add(logits.numbers, logits.native(), truth)
            counts["model_size"].add(logits.numbers, logits.values, resize_mask(truth, (int(h), int(w))))
    found = {size: count.fetch() for size, count in counts.items()}
    return {
        **{size: _summary(*found[size], known) for size in counts},
        "per_picture": _per_picture(found["native"][0], pairs, known),
    }


def _score_strips(
    predictor: Predictor,
    pairs: Sequence[Pair],
    labels: LabelMap,
    hold: Callable[[int], tuple[Held, NDArray[np.uint8]]] | None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(N, C, C) confusions and (N,) cross entropies at native size, strip by strip: no picture's logits are whole."""
    classes, device = labels.classes, predictor.device
    confusions = torch.zeros((len(pairs), classes, classes), dtype=torch.int64, device=device)
    losses = torch.zeros(len(pairs), dtype=sums_dtype(device), device=device)
    truths: dict[int, NDArray[np.uint8]] = {}

    def look(number: int) -> tuple[Held, NDArray[np.uint8]]:
        if hold:
            return hold(number)
        picture = predictor.hold(pairs[number].image)
        return picture, _read_truth(pairs[number], picture.size_hw, labels)

    # several large ones that are read ahead would fill the memory
    headers = [] if hold else [read_header(pair.image, predictor.bundle.sizing.channels) for pair in pairs]
    large = any(header.height * header.width > _LARGE_PIXELS for header in headers)

    def pictures() -> Iterator[Held]:
        found = map(look, range(len(pairs))) if large else map_ahead(look, range(len(pairs)))
        for number, (picture, truth) in enumerate(found):
            truths[number] = truth
            yield picture

    for strip in predictor.strips(pictures()):
        number, logits = strip.picture, strip.logits[None]
        with tell_out_of_memory(too_large(strip.size_hw)):
            # a copy: what is mapped from a file cannot be written to, which torch warns of
            target = send(torch.from_numpy(np.array(truths[number][strip.rows])), device)[None]
            guess = class_index(strip.logits)[None]
            confusions[number] += count_confusion_batch(guess, target, classes)[0]
            losses[number] += sum_cross_entropy(logits, target)[0]
        if strip.is_last:
            del truths[number]
    return confusions.cpu().numpy(), losses.cpu().double().numpy()


class _Counts:
    """Confusions and cross entropies of pictures; they stay on the device until there are many, since to fetch
    them is to wait for it."""

    def __init__(self, pictures: int, classes: int) -> None:
        self._confusions = np.zeros((pictures, classes, classes), np.int64)
        self._losses = np.zeros(pictures)
        self._numbers: list[int] = []
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, numbers: list[int], logits: Tensor, truth: NDArray[np.uint8]) -> None:
        """Count pictures of one size: (n, C, H, W) logits, (n, H, W) class index or IGNORED."""
        classes = self._confusions.shape[1]
        target = send(torch.from_numpy(truth), logits.device)
        confusion = count_confusion_batch(logits.argmax(dim=1).to(torch.uint8), target, classes)
        self._numbers += numbers
        self._waiting.append((confusion, sum_cross_entropy(logits, target)))
        if len(self._numbers) * classes**2 >= _CELLS_WAITING:
            self.fetch()

    def fetch(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(N, C, C) confusions and (N,) cross entropies, summed over the pixels of each picture."""
        if self._waiting:
            confusions, losses = (torch.cat(some).cpu().numpy() for some in zip(*self._waiting, strict=True))
            self._confusions[self._numbers], self._losses[self._numbers] = confusions, losses
            self._numbers, self._waiting = [], []
        return self._confusions, self._losses


def _read_truth(pair: Pair, native_hw: tuple[int, int], labels: LabelMap) -> NDArray[np.uint8]:
    """(H, W) class index or IGNORED of a picture's mask, as it is."""
    truth = read_class_map(pair, native_hw, labels).classes
    if (truth == IGNORED).all():
        raise DataError(_("{path}: no pixel of this mask has a class").format(path=pair.mask.path), path=pair.mask.path)
    return truth


def _summary(confusions: NDArray[np.int64], losses: NDArray[np.float64], labels: LabelMap) -> dict[str, Any]:
    scores = summarise_overlap(confusions, labels.names, background_class(labels.names)).to_json()
    pixels = confusions.sum(axis=0)

    def shares(counts: NDArray[np.int64]) -> dict[str, float]:
        return {name: int(n) / max(1, int(pixels.sum())) for name, n in zip(labels.names, counts, strict=True)}

    return {
        **scores,
        "cross_entropy": float(losses.sum() / pixels.sum()),
        "true_share": shares(pixels.sum(axis=1)),
        "predicted_share": shares(pixels.sum(axis=0)),
    }


def _per_picture(confusions: NDArray[np.int64], pairs: Sequence[Pair], labels: LabelMap) -> dict[str, Any]:
    def named(row: NDArray[np.float64]) -> dict[str, float | None]:
        return {n: None if np.isnan(v) else round(float(v), 6) for n, v in zip(labels.names, row, strict=True)}

    dice, iou = dice_from_confusion(confusions), iou_from_confusion(confusions)
    return {pair.name: {"dice": named(dice[i]), "iou": named(iou[i])} for i, pair in enumerate(pairs)}
