"""Which segments are which class: learnt from the training split, since a traditional method knows no classes.

Segments are sorted into K kinds. Where segments mean the same in every image (dark and light), the segment is the
kind; else the segments of all training images are clustered by their descriptors. Each kind then gets a class.
N images, K kinds, C classes, D descriptors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ubend.metrics.overlap import dice_from_confusion
from ubend_lessons.baselines.clusters import Clusters, find_clusters

_GAIN = 1e-9  # of Dice, below which it is rounding
_MAX_ROUNDS = 8  # of changing each kind's class in turn; measured on the drawn sample: three were enough


@dataclass(frozen=True)
class Kinds:
    """How segments are sorted by their descriptors.

    Attributes:
        mean, spread: (D,) of the training segments, each weighing by its pixels.
        clusters: of the descriptors less their mean, over their spread.
    """

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    clusters: Clusters

    def sort(self, descriptors: NDArray[np.float64]) -> NDArray[np.intp]:
        """(n, D) -> (n,) kind of each segment."""
        return self.clusters.nearest((descriptors - self.mean) / self.spread)


def find_kinds(descriptors: NDArray[np.float64], areas: NDArray[np.int64], count: int) -> Kinds:
    """At most `count` kinds of (n, D) segments of so many pixels each."""
    mean = np.average(descriptors, axis=0, weights=areas)
    spread = np.sqrt(np.average((descriptors - mean) ** 2, axis=0, weights=areas))
    spread = np.where(spread > 1e-9, spread, 1.0)
    return Kinds(mean, spread, find_clusters((descriptors - mean) / spread, count, areas.astype(np.float64)))


def count_kinds(kinds: NDArray[np.intp], counts: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(K, C) pixels of each class in each kind, of an image whose (n,) segments have (n, C) of them."""
    found = np.zeros((count, counts.shape[1]), np.int64)
    np.add.at(found, kinds, counts)
    return found


def choose_classes(tables: NDArray[np.int64], kinds: Kinds | None) -> NDArray[np.uint8]:
    """The class of each kind.

    It begins with the class that most of a kind's pixels have, or, where that scores better, the one that most have
    when the pixels of all classes weigh the same in all. Then one kind after the other takes the class with which the
    Dice is best, until none changes. A kind of which there are no pixels gets the class of the kind most like it;
    a level of which there are none, the commonest class.

    Args:
        tables: (N, K, C) pixels of each class in each kind, for each image.
        kinds: how segments were sorted; None: their numbers are the kinds, and none is like another.
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
    """Dice per image of kinds with these classes, mean over the classes; 0 where nothing is scored.

    The background counts as a class: a threshold has two levels, and would else give both to objects.

    Args:
        tables: see `choose_classes`.
        classes: (M, K) class index of each kind, M times.
    Returns:
        (M,) the same as `summarise_overlap` has as the mean of `dice.per_image`.
    """
    taken = np.eye(tables.shape[2], dtype=np.int64)[classes]  # (M, K, C)
    dice = dice_from_confusion(tables.swapaxes(1, 2)[None] @ taken[:, None])  # (M, N, C)
    images = np.isfinite(dice).sum(axis=1)  # (M, C) in which a class is defined
    means = np.nansum(dice, axis=1) / np.maximum(images, 1)
    return np.asarray(means.sum(axis=1) / np.maximum((images > 0).sum(axis=1), 1))


def halves(count: int) -> Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """(images that teach, images that judge): every other one, then the other way round; one alone does both."""
    numbers = np.arange(count)
    even, odd = numbers[::2], numbers[1::2]
    return [(even, odd), (odd, even)] if len(odd) else [(even, even)]
