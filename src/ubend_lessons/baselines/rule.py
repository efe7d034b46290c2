"""The rule from segments to classes, learned from the training split, since traditional methods have no classes.

Segments are sorted into K kinds. If segment numbers have the same meaning in every image (dark and light), the number
is the kind; otherwise the segments of all training images are clustered by their descriptors. Each kind then gets a
class. N images, K kinds, C classes, D descriptors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.metrics.overlap import dice_from_confusion
from ubend_lessons.baselines.clusters import Clusters, find_clusters

_GAIN = 1e-9  # smaller improvements of the Dice are rounding errors
_MAX_ROUNDS = 8  # of changing the class of each kind in turn; measured on the drawn sample: three were enough


@dataclass(frozen=True)
class Kinds:
    """Sorts segments into kinds by their descriptors.

    Attributes:
        mean, spread: (D,) mean and standard deviation over the training segments, weighted by their pixels.
        clusters: of the standardised descriptors.
    """

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    clusters: Clusters

    def sort(self, descriptors: NDArray[np.float64]) -> NDArray[np.intp]:
        """(n, D) descriptors -> (n,) kind of each segment."""
        return self.clusters.nearest((descriptors - self.mean) / self.spread)


def find_kinds(descriptors: NDArray[np.float64], areas: NDArray[np.int64], count: int) -> Kinds:
    """At most `count` kinds of segments with (n, D) descriptors and (n,) areas in px."""
    mean = np.average(descriptors, axis=0, weights=areas)
    spread = np.sqrt(np.average((descriptors - mean) ** 2, axis=0, weights=areas))
    spread = np.where(spread > 1e-9, spread, 1.0)
    return Kinds(mean, spread, find_clusters((descriptors - mean) / spread, count, areas.astype(np.float64)))


def count_kinds(kinds: NDArray[np.intp], counts: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(K, C) pixels of each class in each kind, from the (n,) kinds and (n, C) counts of an image's segments."""
    found = np.zeros((count, counts.shape[1]), np.int64)
    np.add.at(found, kinds, counts)
    return found


def choose_classes(tables: NDArray[np.int64], kinds: Kinds | None) -> NDArray[np.uint8]:
    """Choose the class of each kind, to maximise the Dice.

    The start is the most frequent class of each kind, with or without equal total weight of all classes, whichever
    scores better. Then the class of one kind after the other is changed to the one with the best Dice, until nothing
    changes. A kind without pixels gets the class of the most similar kind; a level without pixels, the most frequent
    class.

    Args:
        tables: (N, K, C) pixels of each class in each kind, for each image.
        kinds: how segments were sorted; None: their numbers are the kinds, which have no similarity.
    Returns:
        (K,) uint8 class index.
    """
    total = tables.sum(axis=0)
    there = np.flatnonzero(total.sum(axis=1))
    even = total / np.maximum(total.sum(axis=0), 1)
    starts = np.stack([total.argmax(axis=1), even.argmax(axis=1)])
    classes = starts[score_classes(tables, starts).argmax()]
    for _round in range(_MAX_ROUNDS):
        before = classes
        for kind in there:
            tried = np.repeat(classes[None], tables.shape[2], axis=0)
            tried[:, kind] = np.arange(tables.shape[2])
            scores = score_classes(tables, tried)
            if scores.max() > scores[classes[kind]] + _GAIN:
                classes = tried[scores.argmax()]
        if (classes == before).all():
            break
    if kinds is not None and len(there):
        alike = Clusters(kinds.clusters.centers[there]).nearest(kinds.clusters.centers)
        classes = classes[there[alike]]
    else:
        classes = np.where(total.any(axis=1), classes, total.sum(axis=0).argmax())
    return np.asarray(classes, np.uint8)


def score_classes(tables: NDArray[np.int64], classes: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """The Dice per image, mean over the classes, of M assignments of classes to kinds; 0 if nothing is scored.

    The background counts as a class: otherwise both levels of a threshold would become objects.

    Args:
        tables: see `choose_classes`.
        classes: (M, K) class index of each kind.
    Returns:
        (M,) the same as the mean of `dice.per_image` in `summarise_overlap`.
    """
    taken = np.eye(tables.shape[2], dtype=np.int64)[classes]  # (M, K, C)
    dice = dice_from_confusion(tables.swapaxes(1, 2)[None] @ taken[:, None])  # (M, N, C)
    images = np.isfinite(dice).sum(axis=1)  # (M, C) number of images in which a class is defined
    means = np.nansum(dice, axis=1) / np.maximum(images, 1)
    return np.asarray(means.sum(axis=1) / np.maximum((images > 0).sum(axis=1), 1))


def halves(count: int) -> Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """(images to learn from, images to score), alternating, and the other way round; a single image is in both."""
    numbers = np.arange(count)
    even, odd = numbers[::2], numbers[1::2]
    return [(even, odd), (odd, even)] if len(odd) else [(even, even)]
