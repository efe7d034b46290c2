"""Confidence intervals of mean scores, and paired comparisons of two models.

The scored images are a sample of the images that a model will meet; an interval describes how much the mean varies
between such samples. Images of one group (patient, video, site) are alike, so groups are resampled, not images. The
variation between trainings with different seeds is not included.

A score is (N,) or (N, C), NaN where undefined. Its mean is that of `ubend.metrics.summary`: over images of each
class, then over the classes that are defined. N images, C classes, G units (groups, or images without groups), B
resamples.

Which bootstrap: docs/experiments.md, "Which interval", made by benchmarks/coverage.py.
Sources: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 12; Schuirmann 1987 (two one-sided
tests), J. Pharmacokinet. Biopharm. 15; Holm 1979, Scand. J. Stat. 6.
"""

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import scipy
from numpy.typing import NDArray

from ubend.core.counter_rng import random_uniform
from ubend.core.i18n import _
from ubend.metrics.summary import none_for_nan

ALPHA = 0.05
MARGIN = 0.01  # difference of scores in 0..1 within which two models count as equal
RESAMPLES = 2000  # measured, 100 images with a mean Dice of 0.91: other draws move the ends by 0.001 to 0.002
_ROUGH_IMAGES, _ROUGH_GROUPS = 50, 20  # with fewer, an interval covers the true mean less often than 95%
# Corrections for few units (images or groups): otherwise intervals are too narrow if most images are good and few are
# bad, and differences are found where there are none. Measured: experiments.md, "Which interval".
_T_BELOW_UNITS = 100  # a mean's interval is never narrower than Student's t
_DIFFERENCE_WIDENING = 0.75  # a difference's standard error is multiplied by 1 + this / sqrt(units)
_FLAT = 0.01  # with a larger share of resamples without spread, the bootstrap is not used
_CELLS = 2**21  # resampling weights in memory at once: 16 MiB

Verdict = Literal["A is better", "B is better", "equal", "not shown"]
ScoreArray = NDArray[np.float64]
Groups = Sequence[Hashable | None]


@dataclass(frozen=True)
class Interval:
    """The 95% interval of a mean; NaN if it is undefined, as for fewer than two units with a score.

    Attributes:
        mean: over all images.
        low, high: by the studentised bootstrap; with fewer than 100 units, each end is the farther one of it and of
            Student's t.
        t_low, t_high: by Student's t, as a check.
        units: number of groups, or of images if there are no groups.
        rough: the bootstrap interval is not reliable; show `t_low` and `t_high`.
    """

    mean: float
    low: float
    high: float
    t_low: float
    t_high: float
    units: int
    rough: bool

    @property
    def reported(self) -> tuple[float, float]:
        """The interval to print."""
        return (self.t_low, self.t_high) if self.rough else (self.low, self.high)

    def to_json(self) -> dict[str, float | bool | None] | None:
        """As in scores.json; None: undefined."""
        if math.isnan(self.mean):
            return None
        ends = {name: none_for_nan(getattr(self, name)) for name in ("low", "high", "t_low", "t_high")}
        return {"mean": self.mean, **ends, "rough": self.rough}


@dataclass(frozen=True)
class Difference:
    """The difference of two models' means on the same images.

    Attributes:
        interval: the 95% interval of A's mean minus B's mean.
        p: two-sided p-value of the hypothesis that there is no difference.
        p_equal: p-value of the hypothesis that the difference is at least the margin (two one-sided tests).
    """

    interval: Interval
    p: float
    p_equal: float

    def verdict(self) -> Verdict:
        """The conclusion at level ALPHA, for scores where more is better.

        A significant difference within the margin is "equal": it is too small to matter.
        """
        if self.p_equal < ALPHA:
            return "equal"
        if self.p >= ALPHA:
            return "not shown"
        return "A is better" if self.interval.mean > 0 else "B is better"


@dataclass(frozen=True)
class Resamples:
    """A mean and its resamples.

    Attributes:
        mean, error: mean of the sample itself, and its standard error.
        influence: (G,) influence of each unit on the mean; they add up to 0.
        means, errors: (B,) mean and standard error of each resample.
        scored: number of units with a defined score.
    """

    mean: float
    error: float
    influence: NDArray[np.float64]
    means: NDArray[np.float64]
    errors: NDArray[np.float64]
    scored: int

    def studentised(self) -> NDArray[np.float64]:
        """(B,) distance of each resample's mean from the mean, divided by the resample's standard error; sorted."""
        away = self.means - self.mean
        without_spread = np.where(away == 0, 0.0, np.copysign(np.inf, away))
        return np.sort(np.divide(away, self.errors, out=without_spread, where=self.errors > 0))

    @property
    def is_flat(self) -> bool:
        """Whether many resamples have no spread, as if all images except one or two have the same score."""
        return bool((self.errors <= 0).mean() > _FLAT)


def mean_intervals(
    scores: Sequence[ScoreArray], groups: Groups | None = None, upper: Sequence[float | None] | None = None
) -> list[Interval]:
    """The intervals of the means of several scores of the same images.

    Args:
        scores: each (N,) or (N, C), NaN where undefined.
        groups: (N,) the group of each image; None: the image is its own group. Without groups, images are resampled.
        upper: the largest possible value of each score, where None is unlimited; without this argument all are 1. The
            smallest is 0.
    """
    limits = [1.0] * len(scores) if upper is None else upper
    resamples, grouped = resample(scores, groups)
    return [
        _interval(column, grouped, least=0.0, greatest=np.inf if high is None else high)
        for column, high in zip(resamples, limits, strict=True)
    ]


def compare_means(a: ScoreArray, b: ScoreArray, groups: Groups | None = None, margin: float = MARGIN) -> Difference:
    """The paired comparison of two models.

    Args:
        a, b: (N,) or (N, C) scores of the same images, NaN where undefined. A class that is undefined for one of the
            two models in all images of a sample is left out for both.
        groups: see `mean_intervals`.
        margin: the largest difference that does not matter.
    """
    (resamples,), grouped = resample([np.stack([a.reshape(len(a), -1), b.reshape(len(b), -1)], axis=1)], groups)
    # symmetric, unlike the interval of a mean: most images differ by nearly nothing and few by much, on either side
    return Difference(
        _interval(resamples, grouped, difference_critical_values),
        _p(resamples, 0.0),
        max(_p_beyond(resamples, m) for m in (margin, -margin)),
    )


def adjust(differences: Sequence[Difference]) -> list[Difference]:
    """Several comparisons with the p-values that `holm` gives; their intervals are not changed."""
    p, p_equal = (holm([getattr(difference, name) for difference in differences]) for name in ("p", "p_equal"))
    return [replace(difference, p=p[n], p_equal=p_equal[n]) for n, difference in enumerate(differences)]


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values of several comparisons: the probability of any false positive is at most ALPHA."""
    order = np.argsort(p, kind="stable")
    raised = np.asarray(p, np.float64)[order] * np.arange(len(p), 0, -1)
    out = np.empty(len(p))
    out[order] = np.minimum(np.maximum.accumulate(raised), 1.0) if len(p) else raised
    return out.tolist()


def resample(scores: Sequence[ScoreArray], groups: Groups | None = None) -> tuple[list[Resamples], bool]:
    """The mean of each score and of its resamples, and whether groups were resampled.

    Args:
        scores: (N,), (N, C), or (N, 2, C) for the difference of two models.
        groups: see `mean_intervals`.
    """
    images = len(scores[0]) if scores else 0
    unit, grouped = _number_units(groups, images)
    units = int(unit.max()) + 1 if images else 0
    sums = [_UnitSums(score, unit, units) for score in scores]
    whole = [unit_sums.estimate(np.ones((1, units))) for unit_sums in sums]
    step = max(1, _CELLS // max(1, units))
    parts: list[list[tuple[Any, Any]]] = [[] for _one in sums]
    for start in range(0, RESAMPLES if units > 1 else 0, step):
        weights = _weights(units, start, min(start + step, RESAMPLES))
        for part, unit_sums in zip(parts, sums, strict=True):
            part.append(unit_sums.estimate(weights)[:2])
    out = []
    for part, unit_sums, (mean, error, influence) in zip(parts, sums, whole, strict=True):
        means, errors = (np.concatenate(arrays) for arrays in zip(*part, strict=True)) if part else (np.zeros(0),) * 2
        defined = ~np.isnan(means)  # no class may be left in a resample
        values = float(mean[0]), float(error[0]), influence[0] * units, means[defined], errors[defined]
        out.append(Resamples(*values, unit_sums.scored))
    return out, grouped


class _UnitSums:
    """The mean over classes, computed from sums over units, so that resampling is a matrix product."""

    def __init__(self, scores: ScoreArray, unit: NDArray[np.int64], units: int) -> None:
        sides = scores.shape[1] if scores.ndim == 3 else 1
        columns = scores.reshape(len(scores), scores.size // max(1, len(scores)))  # (N, sides * C)
        defined = ~np.isnan(columns)
        self._sums, self._counts = np.zeros((2, units, columns.shape[1]))
        np.add.at(self._sums, unit, np.where(defined, columns, 0.0))
        np.add.at(self._counts, unit, defined)
        self.scored = int((self._counts > 0).any(axis=1).sum())  # units with a defined score
        self._sides = sides
        self._signs = np.repeat([1.0, -1.0][:sides], columns.shape[1] // sides)

    def estimate(
        self, weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """(B,) mean and standard error for each row of (B, G) weights, and (B, G) influence of each unit.

        The influence is a first-order Taylor expansion; for one class without gaps, these are those of a plain mean.
        """
        sums, counts = weights @ self._sums, weights @ self._counts
        defined = (counts > 0).reshape(len(weights), self._sides, -1).all(axis=1)
        classes = defined.sum(axis=1, keepdims=True)
        shares = np.tile(np.divide(defined, classes, out=np.zeros(defined.shape), where=classes > 0), self._sides)
        per_count = np.divide(shares * self._signs, counts, out=np.zeros(counts.shape), where=counts > 0)
        means = np.divide(sums, counts, out=np.zeros(counts.shape), where=counts > 0)
        influence = per_count @ self._sums.T
        influence -= (per_count * means) @ self._counts.T
        spread = np.einsum("bg,bg,bg->b", weights, influence, influence)
        mean = np.where(classes[:, 0] > 0, (shares * self._signs * means).sum(axis=1), np.nan)
        spread[spread < 1e-24] = 0.0  # rounding errors of equal scores
        return mean, np.sqrt(spread * self.scored / max(1, self.scored - 1)), influence


def _number_units(groups: Groups | None, images: int) -> tuple[NDArray[np.int64], bool]:
    """(N,) unit of each image, from 0 without gaps, and whether there are groups."""
    if groups is None or all(group is None for group in groups):
        return np.arange(images), False
    known: dict[Any, int] = {}
    keys = [(index,) if group is None else group for index, group in enumerate(groups)]
    return np.array([known.setdefault(key, len(known)) for key in keys], np.int64), True


@functools.lru_cache(maxsize=4)
def _weights(units: int, start: int, stop: int) -> NDArray[np.float64]:
    """(stop - start, G) how often each unit occurs in each resample of G units."""
    rows = np.arange(stop - start)
    resampled = (random_uniform(0, "bootstrap", rows + start, units) * units).astype(np.int64) + rows[:, None] * units
    return np.bincount(resampled.reshape(-1), minlength=len(rows) * units).reshape(-1, units).astype(np.float64)


def mean_critical_values(resamples: Resamples) -> NDArray[np.float64]:
    """(2,) by how many standard errors the mean is above the lower and the upper end of its 95% interval (the second is
    negative): equal-tailed, and with few units never narrower than Student's t."""
    ends: NDArray[np.float64] = np.quantile(resamples.studentised(), [1 - ALPHA / 2, ALPHA / 2])
    if resamples.scored < _T_BELOW_UNITS:
        t = float(scipy.special.stdtrit(resamples.scored - 1, 1 - ALPHA / 2))
        ends = np.array([max(ends[0], t), min(ends[1], -t)])
    return ends


def difference_critical_values(resamples: Resamples) -> NDArray[np.float64]:
    """The same for a difference: symmetric."""
    half = float(np.quantile(np.abs(resamples.studentised()), 1 - ALPHA)) * _widening(resamples)
    return half * np.array([1.0, -1.0])


def _widening(resamples: Resamples) -> float:
    """The factor on the standard error of a difference."""
    return 1 + _DIFFERENCE_WIDENING / math.sqrt(resamples.scored)


def _interval(
    resamples: Resamples,
    grouped: bool,
    critical_values: Callable[[Resamples], NDArray[np.float64]] = mean_critical_values,
    least: float = -np.inf,
    greatest: float = np.inf,
) -> Interval:
    units, scored = len(resamples.influence), resamples.scored
    few = scored < _rough_below(grouped)
    if scored < 2 or np.isnan(resamples.mean):
        return Interval(resamples.mean, math.nan, math.nan, math.nan, math.nan, units, True)
    t = float(scipy.special.stdtrit(scored - 1, 1 - ALPHA / 2)) * resamples.error
    ends = [resamples.mean - t, resamples.mean + t] * 2
    if not resamples.is_flat:
        ends[:2] = (resamples.mean - critical_values(resamples) * resamples.error).tolist()
    low, high, t_low, t_high = np.clip(ends, least, greatest).tolist()
    return Interval(resamples.mean, low, high, t_low, t_high, units, few or resamples.is_flat)


def _rough_below(grouped: bool) -> int:
    """Intervals over fewer images, or groups, are rough."""
    return _ROUGH_GROUPS if grouped else _ROUGH_IMAGES


def explain_rough(units: int, *, grouped: bool) -> str:
    """Why an interval over so many images, or groups, is rough."""
    limit = _rough_below(grouped)
    if units >= limit:
        return _("rough, by Student's t: nearly all scores are equal, or few images have one")
    line = (
        _("rough, by Student's t: only {count} groups, fewer than {limit}")
        if grouped
        else _("rough, by Student's t: only {count} images, fewer than {limit}")
    )
    return line.format(count=units, limit=limit)


def _p(resamples: Resamples, bound: float) -> float:
    """The two-sided p-value of a true mean of `bound`; below ALPHA if the interval excludes it.

    If every unit has the same difference, it is that of the exact sign-flip test: of the 2^n ways to choose the signs
    of n differences, only the two with equal signs give a mean as far from `bound`. So five units or fewer show
    nothing.
    """
    away = abs(resamples.mean - bound)
    if resamples.scored < 2 or np.isnan(away):
        return 1.0
    if resamples.error == 0:  # every unit has the same difference; of equal scores, rounding leaves less than 1e-12
        return 1.0 if away < 1e-12 else 2.0 ** (1 - resamples.scored)
    if resamples.is_flat:
        return float(2 * scipy.special.stdtr(resamples.scored - 1, -away / resamples.error))
    beyond = (np.abs(resamples.studentised()) >= away / (resamples.error * _widening(resamples))).sum()
    return (1 + int(beyond)) / (1 + len(resamples.means))


def _p_beyond(resamples: Resamples, bound: float) -> float:
    """The one-sided p-value of a true mean that is at least as far from 0 as `bound`, on the same side."""
    inside = resamples.mean < bound if bound > 0 else resamples.mean > bound
    return _p(resamples, bound) / 2 if inside else 1 - _p(resamples, bound) / 2
