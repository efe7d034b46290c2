"""Overlap scores (Dice, IoU, precision, recall) and pixel accuracy, computed from confusion matrices.

Pixels are counted once, in a confusion matrix per image; every score is a formula of these counts.

    confusion[t, p] = number of pixels whose true class is t and whose predicted class is p

If a class is in neither truth nor prediction of an image, its scores are undefined (NaN). If it is in only one of the
two, they are 0, except that precision is undefined if the class is not predicted, and recall if it is not in the truth
(both would divide by 0). Axis letters: N images, H rows, W columns, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ubend.labels.class_table import IGNORED
from ubend.metrics.summary import ClassMean, Measure, class_keys, divide, none_for_nan

if TYPE_CHECKING:
    from torch import Tensor  # torch is imported late: scores of saved masks do not need it


def count_confusion(
    pred: NDArray[np.integer[Any]], target: NDArray[np.integer[Any]], classes: int
) -> NDArray[np.int64]:
    """The confusion matrix of one image, or the sum over several.

    Args:
        pred: (H, W) or (N, H, W), any integer type; class index in [0, classes) at every pixel.
        target: same shape; class index in [0, classes), or IGNORED: not counted.
        classes: C.
    Returns:
        (C, C) int64; rows are truth, columns prediction; all 0 if no pixel is scored.
    Raises:
        ValueError: shapes differ, or a value is out of range.
    """
    if pred.shape != target.shape:
        raise ValueError(f"pred has the shape {pred.shape}, target {target.shape}; they must be equal")
    for name, array in (("pred", pred), ("target", target)):
        if array.dtype.kind not in "biu":
            raise ValueError(f"{name} holds {array.dtype}, not class indices; take the argmax first")
    scored = target != IGNORED
    for name, array in (("pred", pred), ("target", target[scored])):
        if array.size and not 0 <= int(array.min()) <= int(array.max()) < classes:
            raise ValueError(f"{name} holds {array.min()}..{array.max()}, outside the classes 0..{classes - 1}")
    pairs = target[scored].astype(np.int64) * classes + pred[scored].astype(np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def count_confusion_batch(pred: "Tensor", target: "Tensor", classes: int) -> "Tensor":
    """The confusion matrix of each image of a batch, on its device, without a synchronisation.

    Values cannot be checked without a synchronisation, so a pixel whose `pred` or `target` is outside [0, classes) is
    not counted; IGNORED is one such value of `target`.

    Args:
        pred: (N, H, W) uint8 or int64 class index.
        target: (N, H, W) uint8 or int64 class index or IGNORED.
        classes: C.
    Returns:
        (N, C, C) int64; rows are truth, columns prediction. Deterministic: only integers are summed, and
        `torch.use_deterministic_algorithms` allows all operations used.
    Raises:
        ValueError: shapes differ.
    """
    if pred.shape != target.shape or pred.ndim != 3:
        raise ValueError(f"pred has the shape {tuple(pred.shape)}, target {tuple(target.shape)}, not (N, H, W)")
    count = _count_by_bins if pred.device.type == "cpu" else _count_by_comparison
    return count(pred, target, classes)


def _count_by_bins(pred: "Tensor", target: "Tensor", classes: int) -> "Tensor":
    """(N, C, C) int64 by one `bincount`, which would synchronise on a GPU."""
    import torch

    images, cells = pred.shape[0], classes * classes
    p, t = pred.flatten(1).long(), target.flatten(1).long()
    counted = (p >= 0) & (p < classes) & (t >= 0) & (t < classes)
    # pixels that are not counted go to an extra bin: selecting the others would be slower
    bins = torch.where(counted, t * classes + p, cells)
    bins += torch.arange(images)[:, None] * (cells + 1)
    counts = torch.bincount(bins.flatten(), minlength=images * (cells + 1)).view(images, cells + 1)
    return counts[:, :cells].reshape(images, classes, classes)


def _count_by_comparison(pred: "Tensor", target: "Tensor", classes: int) -> "Tensor":
    """(N, C, C) int64 by comparisons, one row of the matrix at a time.

    A matrix product is not used: autocast would round the counts to bfloat16. Memory: N * C * H * W bytes.
    """
    import torch

    # int64, since a class index of 256 would overflow in uint8
    p, t = pred.flatten(1).long(), target.flatten(1).long()
    predicted = p[:, None] == torch.arange(classes, device=pred.device)[:, None]  # (N, C, H*W)
    rows = [(predicted & (t == true)[:, None]).sum(dim=-1) for true in range(classes)]
    return torch.stack(rows, dim=1)


def dice_from_confusion(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Dice = 2 |truth and prediction| / (|truth| + |prediction|) of each class, in 0..1.

    Args:
        confusion: (..., C, C) counts, rows truth.
    Returns:
        (..., C) float64; NaN if a class is in neither, 0 if it is in only one of the two.
    Source: Dice 1945, Ecology 26(3).
    """
    both, truth, predicted = _sizes(confusion)
    return divide(2 * both, truth + predicted)


def iou_from_confusion(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """IoU (Jaccard) = |truth and prediction| / |truth or prediction| of each class, in 0..1.

    Args:
        confusion: (..., C, C) counts, rows truth.
    Returns:
        (..., C) float64; NaN if a class is in neither, 0 if it is in only one of the two.
    Source: Jaccard 1912, New Phytologist 11(2).
    """
    both, truth, predicted = _sizes(confusion)
    return divide(both, truth + predicted - both)


def precision_from_confusion(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Precision = |truth and prediction| / |prediction|: (..., C, C) -> (..., C) in 0..1; NaN if not predicted."""
    both, _, predicted = _sizes(confusion)
    return divide(both, predicted)


def recall_from_confusion(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Recall = |truth and prediction| / |truth|: (..., C, C) -> (..., C) in 0..1; NaN if not in the truth."""
    both, truth, _ = _sizes(confusion)
    return divide(both, truth)


def accuracy_from_confusion(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of scored pixels with the correct class: (..., C, C) -> (...,) float64; NaN without scored pixels."""
    both, truth, _ = _sizes(confusion)
    return divide(both.sum(axis=-1), truth.sum(axis=-1))


def _sizes(
    confusion: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(..., C) number of pixels of each class: in both truth and prediction, in truth, in prediction."""
    return np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-1), confusion.sum(axis=-2)


@dataclass(frozen=True)
class OverlapScores:
    """Overlap scores and pixel accuracy of a set of images.

    Attributes:
        names: (C,) class names.
        images: N.
        defined: (C,) number of images in which the class is in truth or prediction.
        pixel_accuracy: share of all scored pixels with the correct class; NaN without scored pixels.
    """

    names: tuple[str, ...]
    images: int
    defined: tuple[int, ...]
    dice: Measure
    iou: Measure
    precision: Measure
    recall: Measure
    pixel_accuracy: float

    def to_json(self) -> dict[str, Any]:
        """A nested dict for JSON; None stands for NaN.

        A class with the name `mean` or `mean_foreground` is called `class mean`, ...
        """
        measures = {"dice": self.dice, "iou": self.iou, "precision": self.precision, "recall": self.recall}
        return {
            **{name: measure.to_json(self.names) for name, measure in measures.items()},
            "pixel_accuracy": none_for_nan(self.pixel_accuracy),
            "pictures": self.images,
            "defined": dict(zip(class_keys(self.names), self.defined, strict=True)),
        }


def summarise_overlap(
    confusions: NDArray[np.int64], names: Sequence[str], background: int | None, unmapped: Sequence[int] = ()
) -> OverlapScores:
    """The scores of a set of images from the confusion matrix of each.

    Args:
        confusions: (N, C, C) int64 counts, rows truth; if N is 0, every score is NaN.
        names, background, unmapped: see `ClassMean`.
    Raises:
        ValueError: shapes, names and background do not fit together.
    """
    if confusions.ndim != 3 or confusions.shape[1:] != (len(names), len(names)):
        raise ValueError(f"confusions have the shape {confusions.shape}, not (N, C, C) with C = {len(names)}")
    classes, total = ClassMean(names, background, unmapped), confusions.sum(axis=0)
    formulas = dice_from_confusion, iou_from_confusion, precision_from_confusion, recall_from_confusion
    dice, iou, precision, recall = (classes.summarise(formula(confusions), formula(total)) for formula in formulas)
    defined = np.isfinite(dice_from_confusion(confusions)).sum(axis=0) * classes.mapped
    accuracy = float(accuracy_from_confusion(total))
    return OverlapScores(tuple(names), len(confusions), tuple(defined.tolist()), dice, iou, precision, recall, accuracy)
