"""Masks beside a model's predictions: objects that a mask lacks, and masks that agree far less than the set's others.

Only pixels count of whose class the model is confident. C classes of the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ubend.core.i18n import _
from ubend.doctor.finding import Finding
from ubend.doctor.inspection import Inspection, lower_bound
from ubend.labels.class_table import IGNORED
from ubend.metrics.overlap import count_confusion, dice_from_confusion

_CONFIDENT = 0.9  # probability
_MIN_CONFIDENT_SHARE = 0.25  # of the pixels of objects, in mask or prediction: with fewer, an image tells nothing
_MIN_IMAGES = 12  # fewer do not say what is usual
# Of the areas on which a class is predicted where the mask holds it: elsewhere it must be larger. A model that is
# seldom confident predicts small areas; at least this share of the masks' areas is demanded.
_SMALL_QUANTILE, _MIN_SMALL_SHARE = 0.1, 0.1
MIN_USUAL_DICE = 0.5  # below it, the model does not know the class


@dataclass(frozen=True)
class Comparison:
    """A mask beside the confident part of the prediction for its image.

    Attributes:
        dice: (C,) of the confident pixels; NaN: the class is in neither.
        marked: (C,) share of the scored pixels that the mask gives to a class.
        predicted: (C,) share that the model confidently gives to a class.
        claimed: (C,) share that the mask or the prediction, confident or not, gives to a class.
        confident: (C,) the confident part of these.
    """

    dice: NDArray[np.float64]
    marked: NDArray[np.float64]
    predicted: NDArray[np.float64]
    claimed: NDArray[np.float64]
    confident: NDArray[np.float64]


def compare_prediction(probabilities: NDArray[np.float32], mask: NDArray[np.uint8]) -> Comparison:
    """Compare a mask with a prediction.

    Args:
        probabilities: (C, H, W).
        mask: (H, W) class indices of the model, or IGNORED.
    """
    classes = len(probabilities)
    predicted, confident = probabilities.argmax(axis=0), probabilities.max(axis=0) >= _CONFIDENT
    whole = count_confusion(predicted, mask, classes)
    part = count_confusion(predicted, np.where(confident, mask, np.uint8(IGNORED)), classes)
    count = max(1, int(whole.sum()))
    claimed, sure = (
        confusion.sum(axis=0) + confusion.sum(axis=1) - confusion.diagonal() for confusion in (whole, part)
    )
    return Comparison(
        dice_from_confusion(part), whole.sum(axis=1) / count, part.sum(axis=0) / count, claimed / count, sure / count
    )


def check_predictions(
    inspection: Inspection, comparisons: Mapping[int, Comparison], names: Sequence[str], objects: Sequence[int]
) -> list[Finding]:
    """The findings.

    Args:
        inspection: the data set.
        comparisons: image -> its comparison.
        names: of the model's classes.
        objects: the class indices that are not background.
    """
    missing = _find_missing(inspection, comparisons, names, objects)
    named = {file for finding in missing for file in finding.files}
    unlike = _find_unlike(inspection, comparisons, objects)
    return [*missing, *(finding for finding in unlike if not named.intersection(finding.files))]


def usual_dice(comparisons: Mapping[int, Comparison], objects: Sequence[int]) -> float:
    """The median over the images with objects of the mean Dice over their classes; NaN: there are none."""
    agreement = _agreement(comparisons, objects)
    return float(np.median(list(agreement.values()))) if agreement else float("nan")


def _find_missing(
    inspection: Inspection, comparisons: Mapping[int, Comparison], names: Sequence[str], objects: Sequence[int]
) -> list[Finding]:
    findings = []
    for class_index in objects:
        holders = [comparison for comparison in comparisons.values() if comparison.marked[class_index] > 0]
        if not holders or np.median(np.nan_to_num([holder.dice[class_index] for holder in holders])) < MIN_USUAL_DICE:
            continue
        marked, predicted = (
            float(np.quantile([getattr(holder, name)[class_index] for holder in holders], _SMALL_QUANTILE))
            for name in ("marked", "predicted")
        )
        bound = max(predicted, _MIN_SMALL_SHARE * marked)
        for index, comparison in comparisons.items():
            if comparison.marked[class_index] == 0 and comparison.predicted[class_index] > bound:
                share = float(comparison.predicted[class_index])
                findings.append(
                    Finding(
                        "missing objects",
                        "warning",
                        _files(inspection, index),
                        _("the mask has no {name}, which the model predicts on {share:.1%} of the image").format(
                            name=names[class_index], share=share
                        ),
                        _("look at the image; annotate it, or leave it out"),
                        {"class": names[class_index], "score": share, "threshold": bound},
                    )
                )
    return findings


def _find_unlike(
    inspection: Inspection, comparisons: Mapping[int, Comparison], objects: Sequence[int]
) -> list[Finding]:
    agreement = _agreement(comparisons, objects)
    if len(agreement) < _MIN_IMAGES or (usual := usual_dice(comparisons, objects)) < MIN_USUAL_DICE:
        return []
    bound = min(lower_bound(np.array(list(agreement.values()))), usual / 2)
    return [
        Finding(
            "unlike prediction",
            "warning",
            _files(inspection, index),
            _("mask and prediction agree far less than those of the other images"),
            _("look at both: the mask may be wrong, or the image unusual"),
            {"score": dice, "usual": usual, "threshold": bound},
        )
        for index, dice in agreement.items()
        if dice < bound and _confident_share(comparisons[index], objects) >= _MIN_CONFIDENT_SHARE
    ]


def _agreement(comparisons: Mapping[int, Comparison], objects: Sequence[int]) -> dict[int, float]:
    """Image -> mean Dice over its classes, for images whose masks hold objects."""
    agreement = {}
    for index, comparison in comparisons.items():
        if comparison.marked[list(objects)].any():
            known = [dice for dice in comparison.dice[list(objects)].tolist() if not np.isnan(dice)]
            agreement[index] = float(np.mean(known or [0.0]))  # none: no class is in the confident pixels
    return agreement


def _confident_share(comparison: Comparison, objects: Sequence[int]) -> float:
    """Of the pixels of objects, in mask or prediction: the share of whose class the model is confident."""
    claimed = comparison.claimed[list(objects)].sum()
    return float(comparison.confident[list(objects)].sum() / max(claimed, 1e-9))


def _files(inspection: Inspection, index: int) -> tuple[Path, Path]:
    return inspection.mask_path(index), inspection.image_path(index)
