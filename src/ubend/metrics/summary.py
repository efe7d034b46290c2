"""Averages of a measure over images, in several ways, and over classes.

Axis letters: N images, C classes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_DECILE = 0.1


@dataclass(frozen=True)
class ClassScores:
    """One average of a measure for each class, and its means over classes; NaN: undefined.

    Attributes:
        classes: (C,) the score of each class.
        mean: over the classes whose score is defined.
        mean_foreground: the same without the background class.
    """

    classes: tuple[float, ...]
    mean: float
    mean_foreground: float


@dataclass(frozen=True)
class Measure:
    """A measure averaged over images in several ways.

    Attributes:
        per_image: mean of a class's scores over the images in which it is defined; every image has the same weight.
        median: median of the same scores.
        worst_decile: mean of the worst tenth of the same scores, rounded up to at least one image.
        pooled: the score of the counts summed over all images; every pixel has the same weight. None: the measure
            cannot be computed from sums.

    In each of them, the mean over classes is the mean of the per-class numbers; so the per-image mean is *not* the mean
    over images of each image's mean over classes.
    """

    per_image: ClassScores
    median: ClassScores
    worst_decile: ClassScores
    pooled: ClassScores | None

    def to_json(self, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
        """A nested dict for JSON; None stands for NaN."""
        ways = {"per_image": self.per_image, "pooled": self.pooled}
        ways |= {"median": self.median, "worst_decile": self.worst_decile}
        return {way: _plain(scores, names) for way, scores in ways.items() if scores is not None}


class ClassMean:
    """Averages scores over images and classes.

    Args:
        names: (C,) class names.
        background: index of the class left out of `mean_foreground`; None: `mean_foreground` equals `mean`.
        unmapped: indices of classes that cannot occur in the truth: they have no score and are not part of the means.
    Attributes:
        mapped: (C,) whether a class has a score.
        foreground: (C,) whether a class is part of `mean_foreground`.
    Raises:
        ValueError: the background is not a class index.
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
        """Average a measure in all ways.

        Args:
            per_image: (N, C) scores, NaN where undefined; if N is 0, every average is NaN.
            pooled: (C,) the score of the counts of all images.
            worst: whether the lowest or the highest scores are the worst.
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
    """The keys of classes in JSON, distinct from the keys of the means: a class `mean` becomes `class mean`, ..."""
    return [f"class {name}" if name in ("mean", "mean_foreground") else name for name in names]


def mean_defined(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the first axis, ignoring NaN; NaN if all are NaN (np.nanmean would also warn)."""
    defined = ~np.isnan(scores)
    out = np.full(scores.shape[1:], np.nan)
    np.divide(np.where(defined, scores, 0.0).sum(axis=0), defined.sum(axis=0), out=out, where=defined.any(axis=0))
    return out


def divide(above: NDArray[Any], below: NDArray[Any]) -> NDArray[np.float64]:
    """The quotients; NaN where the divisor is 0."""
    out = np.full(np.shape(below), np.nan)
    np.divide(above, below, out=out, where=below != 0)
    return out


def none_for_nan(score: float) -> float | None:
    """The score, or None for NaN, which JSON does not support."""
    return None if math.isnan(score) else score


def _plain(scores: ClassScores, names: Sequence[str]) -> dict[str, float | None]:
    named = zip(class_keys(names), scores.classes, strict=True)
    means = ("mean", scores.mean), ("mean_foreground", scores.mean_foreground)
    return {key: none_for_nan(score) for key, score in (*named, *means)}
