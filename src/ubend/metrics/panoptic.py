"""Panoptic quality and counting error of found objects.

Source: Kirillov et al. 2019, Panoptic Segmentation, arXiv:1801.00868.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MATCH = 0.5  # two objects match if their IoU is above this; so an object has at most one match


@dataclass(frozen=True)
class Quality:
    """The quality of found objects of one class, over any number of images.

    Attributes:
        matched: number of found objects that match a true one.
        extra: number of found objects without a match.
        missed: number of true objects without a match.
        iou: sum of the IoU of all matches.
    """

    matched: int = 0
    extra: int = 0
    missed: int = 0
    iou: float = 0.0

    def __add__(self, other: "Quality") -> "Quality":
        return Quality(
            self.matched + other.matched, self.extra + other.extra, self.missed + other.missed, self.iou + other.iou
        )

    @property
    def recognition(self) -> float:
        """RQ, the F1 score of the objects; NaN without found and true objects."""
        return self._per_object(self.matched)

    @property
    def segmentation(self) -> float:
        """SQ, the mean IoU of the matches; NaN without matches."""
        return self.iou / self.matched if self.matched else float("nan")

    @property
    def panoptic(self) -> float:
        """PQ = SQ * RQ; NaN without found and true objects."""
        return self._per_object(self.iou)

    def _per_object(self, value: float) -> float:
        total = self.matched + 0.5 * (self.extra + self.missed)
        return value / total if total else float("nan")

    @property
    def count_error(self) -> int:
        """Number of found objects minus number of true objects."""
        return self.extra - self.missed


def compare_objects(
    predicted: NDArray[np.uint32],
    found_classes: NDArray[np.uint8],
    true: NDArray[np.uint32],
    true_classes: NDArray[np.uint8],
    classes: int,
) -> list[Quality]:
    """The quality of each class in one image.

    Args:
        predicted, true: (H, W) ids of objects, 0 where there is none.
        found_classes, true_classes: (objects,) class index of object 1, 2, ...
        classes: number of classes.
    """
    found_ids, true_ids = predicted.reshape(-1), true.reshape(-1)
    found_areas = np.bincount(found_ids, minlength=len(found_classes) + 1)
    true_areas = np.bincount(true_ids, minlength=len(true_classes) + 1)
    both = (found_ids > 0) & (true_ids > 0)
    pairs = found_ids[both].astype(np.int64) * len(true_areas) + true_ids[both]
    pairs, common = np.unique(pairs, return_counts=True)  # only pairs of objects that overlap
    found, truth = pairs // len(true_areas), pairs % len(true_areas)
    iou = common / (found_areas[found] + true_areas[truth] - common)
    pair_classes = true_classes[truth - 1]
    same = (iou > _MATCH) & (found_classes[found - 1] == pair_classes)
    qualities = []
    for index in range(classes):
        matches = same & (pair_classes == index)
        matched = int(matches.sum())
        extra, missed = int((found_classes == index).sum()) - matched, int((true_classes == index).sum()) - matched
        qualities.append(Quality(matched, extra, missed, float(iou[matches].sum())))
    return qualities
