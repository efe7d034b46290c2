"""One measure of a set of images: of each class, averaged over images in several ways, and over classes.

Axis letters: N images, C classes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_DECILE = 0.1


@dataclass(frozen=True)
class ClassScores:
    """One score under one averaging; NaN is undefined.

    Attributes:
        classes: (C,) the score of each class.
        mean: over the classes that are defined.
        mean_foreground: the same without the background class.
    """

    classes: tuple[float, ...]
    mean: float
    mean_foreground: float


@dataclass(frozen=True)
class Measure:
    """One measure under several averagings.

    Attributes:
        per_image: a class's score in each image, averaged over the images where it is defined; every image weighs the
            same.
        median: of the same scores.
        worst_decile: mean of the worst tenth of them, rounded up to one image at least.
        pooled: the score of the counts summed over all images; every pixel weighs the same. None: the measure is none
            of sums.

    The mean over classes is, for each, the mean of the per-class numbers; so the per-image mean is *not* the mean over
    images of each image's mean over classes.
    """

    per_image: ClassScores
    median: ClassScores
    worst_decile: ClassScores
    pooled: ClassScores | None

    def to_json(self, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
        """A nested plain dict; None stands for NaN, which JSON does not know."""
        ways = {"per_image": self.per_image, "pooled": self.pooled}
        ways |= {"median": self.median, "worst_decile": self.worst_decile}
        return {way: _plain(scores, names) for way, scores in ways.items() if scores is not None}


class ClassMean:
    """Which classes have a score, and which count in the means.

    Args:
        names: (C,) class names.
        background: index of the class left out of `mean_foreground`; None: it equals `mean`.
        unmapped: indices of classes that the truth cannot hold: they have no score and do not count in the means.
    Attributes:
        mapped: (C,) whether a class has a score.
        foreground: (C,) whether it also counts in `mean_foreground`.
    Raises:
        ValueError: the background is none of the classes.
    """

    def __init__(self, names: Sequence[str], background: int | None, unmapped: Iterable[int] = ()) -> None:
        if background is not None and not 0 <= background < len(names):
            raise ValueError(f"background is {background}, outside the classes 0..{len(names) - 1}")
        self.mapped = ~np.isin(np.arange(len(names)), list(unmapped))
        self.foreground = self.mapped & (np.arange(len(names)) != (-1 if background is None else background))

    def summarise(
        self,
        per_image: NDArray[np.float64],
        pooled: NDArray[np.float64] | None = None,
        worst: Literal["lowest", "highest"] = "lowest",
    ) -> Measure:
        """All averagings of a measure.

        Args:
            per_image: (N, C), NaN where undefined; N may be 0: every score is then NaN.
            pooled: (C,) the score of the counts of all images.
            worst: which scores are.
        """
        sign = 1.0 if worst == "lowest" else -1.0
        columns = [np.sort(sign * column[~np.isnan(column)]) * sign for column in per_image.T]
        medians = [float(np.median(column)) if len(column) else math.nan for column in columns]
        tails = [column[: math.ceil(_DECILE * len(column))] for column in columns]
        deciles = [float(tail.mean()) if len(tail) else math.nan for tail in tails]
        return Measure(
            self._average(mean_defined(per_image)),
            self._average(np.array(medians)),
            self._average(np.array(deciles)),
            None if pooled is None else self._average(pooled),
        )

    def _average(self, classes: NDArray[np.float64]) -> ClassScores:
        classes = np.where(self.mapped, classes, np.nan)
        means = float(mean_defined(classes)), float(mean_defined(classes[self.foreground]))
        return ClassScores(tuple(classes.tolist()), *means)


def class_keys(names: Sequence[str]) -> list[str]:
    """The names of classes beside the keys of means: one that is itself called `mean` is `class mean`, ..."""
    return [f"class {name}" if name in ("mean", "mean_foreground") else name for name in names]


def mean_defined(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the first axis of what is not NaN; NaN if nothing is (np.nanmean would also warn)."""
    defined = ~np.isnan(scores)
    out = np.full(scores.shape[1:], np.nan)
    np.divide(np.where(defined, scores, 0.0).sum(axis=0), defined.sum(axis=0), out=out, where=defined.any(axis=0))
    return out


def none_for_nan(score: float) -> float | None:
    """A number that JSON knows."""
    return None if math.isnan(score) else score


def _plain(scores: ClassScores, names: Sequence[str]) -> dict[str, float | None]:
    named = zip(class_keys(names), scores.classes, strict=True)
    means = ("mean", scores.mean), ("mean_foreground", scores.mean_foreground)
    return {key: none_for_nan(score) for key, score in (*named, *means)}
