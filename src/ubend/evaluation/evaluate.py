"""Predictor + pairs -> scores.

Two sizes: *native*, the picture's own, against the untouched mask (the honest one); and *model size*,
the network's, against the mask resized by nearest pixel, for comparison with papers that score there.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ubend.data.store import read_class_map
from ubend.device import tell_out_of_memory
from ubend.errors import DataError
from ubend.folders.pairs import Pair
from ubend.inference.predictor import Predictor, too_large
from ubend.language import _
from ubend.masks.labels import IGNORED, LabelMap, background_class
from ubend.metrics.overlap import (
    count_confusion_batch,
    dice_from_confusion,
    iou_from_confusion,
    summarise_overlap,
)
from ubend.pictures.images import resize_mask
from ubend.training.losses import Loss


def evaluate_pairs(predictor: Predictor, pairs: Sequence[Pair], labels: LabelMap | None = None) -> dict[str, Any]:
    """Scores of a model on pictures with masks.

    Args:
        predictor: the model.
        pairs: pictures with masks.
        labels: what the masks hold, in the order of the model's classes; None: the same as its own masks.

    Returns:
        `native` and `model_size`, each with `dice`, `iou` (per-image mean and pooled, per class, their
        mean, and the mean without the background), `pixel_accuracy`, `cross_entropy` (mean per pixel,
        nats), `true_share` and `predicted_share` of each class; and
        `per_picture`, the native Dice and IoU of each class for every picture.
    Raises:
        DataError: a picture or mask cannot be read, sizes differ, or a mask value has no class.
    """
    labels, plain = labels or predictor.labels, Loss("ce")
    sizes = ("native", "model_size")
    confusions = {size: np.zeros((len(pairs), labels.classes, labels.classes), np.int64) for size in sizes}
    losses = {size: np.zeros((len(pairs), 2)) for size in sizes}
    for logits in predictor.run(pair.image for pair in pairs):
        pair = pairs[logits.number]
        truth = read_class_map(pair, logits.image.shape[:2], labels).classes
        if (truth == IGNORED).all():
            raise DataError(_("{path}: no pixel of this mask has a class").format(path=pair.mask.path))
        h, w = logits.values.shape[-2:]
        with tell_out_of_memory(too_large(logits.image)):
            for size, values, target in (
                ("native", logits.native(), truth),
                ("model_size", logits.values, resize_mask(truth, (int(h), int(w)))),
            ):
                on_device = torch.from_numpy(target).to(values.device)[None]
                confusion = count_confusion_batch(values.argmax(dim=1).to(torch.uint8), on_device, labels.classes)
                confusions[size][logits.number] = confusion[0].cpu().numpy()
                losses[size][logits.number] = float(plain.sum(values, on_device).cross_entropy), int(confusion.sum())
    return {
        **{size: _summary(confusions[size], losses[size], labels) for size in sizes},
        "per_picture": _per_picture(confusions["native"], pairs, labels),
    }


def _summary(confusions: NDArray[np.int64], losses: NDArray[np.float64], labels: LabelMap) -> dict[str, Any]:
    scores = summarise_overlap(confusions, labels.names, background_class(labels.names)).to_json()
    pixels = confusions.sum(axis=0)

    def shares(counts: NDArray[np.int64]) -> dict[str, float]:
        return {name: int(n) / max(1, int(pixels.sum())) for name, n in zip(labels.names, counts, strict=True)}

    return {
        **scores,
        "cross_entropy": float(losses[:, 0].sum() / losses[:, 1].sum()),
        "true_share": shares(pixels.sum(axis=1)),
        "predicted_share": shares(pixels.sum(axis=0)),
    }


def _per_picture(confusions: NDArray[np.int64], pairs: Sequence[Pair], labels: LabelMap) -> dict[str, Any]:
    def named(row: NDArray[np.float64]) -> dict[str, float | None]:
        return {n: None if np.isnan(v) else round(float(v), 6) for n, v in zip(labels.names, row, strict=True)}

    dice, iou = dice_from_confusion(confusions), iou_from_confusion(confusions)
    return {pair.name: {"dice": named(dice[i]), "iou": named(iou[i])} for i, pair in enumerate(pairs)}
