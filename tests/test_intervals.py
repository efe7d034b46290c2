"""Intervals and comparisons: by brute force, against scipy, and how often they are right on drawn data."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from ubend.evaluation import intervals
from ubend.evaluation.intervals import (
    ALPHA,
    Difference,
    Interval,
    adjust,
    compare_means,
    explain_rough,
    holm,
    mean_intervals,
    resample,
)
from ubend.metrics.summary import mean_defined


def draw_scores(rng: np.random.Generator, *shape: int, gaps: float = 0.0) -> NDArray[np.float64]:
    return np.where(rng.random(shape) < gaps, np.nan, rng.beta(8, 2, shape))


def by_brute_force(scores: NDArray[np.float64], groups: list[Any], weights: NDArray[np.float64]) -> list[float]:
    """The mean of each resample from the images themselves."""
    keys = list(dict.fromkeys(groups))
    members = [[n for n, group in enumerate(groups) if group == key] for key in keys]
    out = []
    for row in weights.astype(int):
        chosen = [n for unit, times in enumerate(row) for n in members[unit] * times]
        out.append(float(mean_defined(mean_defined(scores[chosen]))))
    return out


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3]), st.sampled_from([0.0, 0.3]), st.booleans())
@settings(max_examples=25)
def test_resamples_are_those_of_images_or_groups(seed: int, classes: int, gaps: float, grouped: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = draw_scores(rng, 14, classes, gaps=gaps)
    groups = [*rng.integers(0, 5, 14).tolist()] if grouped else [*range(14)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "RESAMPLES", 40)
        patch.setattr(intervals, "_CELLS", 70)  # some resamples at a time
        (found,), said = resample([scores], groups if grouped else None)
    assert said is grouped
    units = len(set(groups))
    want = np.array(by_brute_force(scores, groups, intervals._weights(units, 0, 40)))
    np.testing.assert_allclose(found.means, want[~np.isnan(want)])
    np.testing.assert_allclose(found.mean, by_brute_force(scores, groups, np.ones((1, units)))[0])
    if not math.isnan(found.mean):
        assert abs(found.influence.sum()) < 1e-9


def test_error_is_that_of_the_mean() -> None:
    scores = draw_scores(np.random.default_rng(0), 60)
    (found,), _grouped = resample([scores])
    np.testing.assert_allclose((found.mean, found.error), (scores.mean(), stats.sem(scores)))
    interval = mean_intervals([scores])[0]
    want = stats.t.interval(0.95, 59, scores.mean(), stats.sem(scores))
    np.testing.assert_allclose((interval.t_low, interval.t_high), want)


def test_with_gaps_and_groups_the_error_is_that_of_the_jackknife() -> None:
    """To first order, so within some percent, of two classes with gaps in groups of unequal size."""
    rng = np.random.default_rng(3)
    scores, groups = draw_scores(rng, 400, 2, gaps=0.3), np.sort(rng.integers(0, 60, 400))
    (found,), _grouped = resample([scores], groups.tolist())
    left_out = [mean_defined(mean_defined(scores[groups != group])) for group in np.unique(groups)]
    jackknife = math.sqrt((len(left_out) - 1) * np.var(left_out))
    assert found.error == pytest.approx(jackknife, rel=0.03)


def test_few_units_have_no_narrower_interval_than_students_t() -> None:
    """Of means; and a difference needs more than the bootstrap's distance. With many it is the bootstrap's alone."""
    rng, narrower = np.random.default_rng(8), 0
    for images in (50, 99, 100):
        for _set in range(20):
            scores = draw_scores(rng, images)
            interval = mean_intervals([scores])[0]
            inside = interval.low > interval.t_low or interval.high < interval.t_high
            narrower += inside
            assert not (inside and images < 100)
    assert narrower > 0
    a, b = draw_scores(rng, 50), draw_scores(rng, 50)
    (found,), _grouped = resample([np.stack([a, b], axis=1)[:, :, None]])
    plain = float(np.quantile(np.abs(found.studentised()), 0.95)) * found.error
    interval = compare_means(a, b).interval
    assert (interval.high - interval.low) / 2 == pytest.approx(plain * (1 + 0.75 / math.sqrt(50)))


@pytest.mark.parametrize("groups", [0, 25])
def test_intervals_hold_the_truth(groups: int) -> None:
    """93 to 97% of the time; benchmarks/coverage.py asks it of 4,000 sets of more kinds."""
    rng, held, sets = np.random.default_rng(0), 0, 600
    for _set in range(sets):
        if groups:
            of = np.repeat(np.arange(groups), rng.integers(1, 9, groups))
            scores = 0.8 + 0.05 * rng.standard_normal(groups)[of] + 0.05 * rng.standard_normal(len(of))
            interval = mean_intervals([scores], of.tolist())[0]
        else:
            interval = mean_intervals([rng.beta(8, 2, 60)])[0]
        held += interval.low <= 0.8 <= interval.high
    assert 0.925 <= held / sets <= 0.975  # a standard error of .009


def test_images_of_a_group_do_not_count_as_many() -> None:
    """Each image ten times over: groups leave the interval as wide as it was."""
    scores = draw_scores(np.random.default_rng(1), 60)
    once = mean_intervals([scores])[0]
    copies, groups = np.repeat(scores, 10), np.repeat(np.arange(60), 10).tolist()
    grouped, alone = mean_intervals([copies], groups)[0], mean_intervals([copies])[0]
    np.testing.assert_allclose((grouped.low, grouped.high), (once.low, once.high))
    assert grouped.units == 60
    assert alone.high - alone.low < 0.5 * (once.high - once.low)


@pytest.mark.parametrize(("units", "grouped", "rough"), [(49, 0, True), (50, 0, False), (19, 1, True), (20, 1, False)])
def test_few_units_are_rough(units: int, grouped: int, rough: bool) -> None:
    scores = draw_scores(np.random.default_rng(2), 3 * units)
    groups = np.arange(3 * units) % units if grouped else None
    interval = mean_intervals([scores if grouped else scores[:units]], None if groups is None else groups.tolist())[0]
    assert (interval.units, interval.rough) == (units, rough)
    assert interval.reported == ((interval.t_low, interval.t_high) if rough else (interval.low, interval.high))
    kind = "groups" if grouped else "images"
    assert (f"{units} {kind}" in explain_rough(units, grouped=bool(grouped))) == rough


def test_images_without_a_group_are_groups_of_their_own() -> None:
    interval = mean_intervals([draw_scores(np.random.default_rng(2), 6)], ["a", None, "a", None, "b", "b"])[0]
    assert interval.units == 4


@pytest.mark.parametrize(
    ("scores", "mean"), [([], math.nan), ([0.5], 0.5), ([math.nan] * 60, math.nan)], ids=["none", "one", "undefined"]
)
def test_without_a_spread_there_is_no_interval(scores: list[float], mean: float) -> None:
    interval = mean_intervals([np.array(scores)])[0]
    np.testing.assert_equal(interval.mean, mean)
    assert np.isnan(interval.reported).all()


@pytest.mark.parametrize(("units", "verdict"), [(2, "not shown"), (5, "not shown"), (6, "A is better")])
@pytest.mark.parametrize("grouped", [False, True])
def test_equal_differences_of_few_units_show_nothing(units: int, verdict: str, grouped: bool) -> None:
    """By the exact sign-flip test: two of the 2^n choices of signs give so large a mean."""
    scores = np.full(3 * units if grouped else units, 0.75)
    groups = (np.arange(len(scores)) % units).tolist() if grouped else None
    found = compare_means(scores, scores - 0.25, groups)
    assert found.p == 2.0 ** (1 - units)
    assert found.verdict() == verdict
    same = compare_means(scores, scores, groups)
    assert same.p == 1.0
    assert same.verdict() == ("not shown" if units < 5 else "equal")


def test_nearly_equal_scores_have_a_finite_interval_in_bounds() -> None:
    """A third of all resamples lack the one image that differs."""
    interval = mean_intervals([np.r_[np.ones(99), 0.0]])[0]
    assert interval.rough
    assert 0 < interval.low < 0.99 < interval.high == 1.0
    high = mean_intervals([np.r_[np.zeros(99), 300.0]], upper=[None])[0]
    assert high.high > 3.0


def test_the_same_at_every_call() -> None:
    scores = draw_scores(np.random.default_rng(4), 70, 3, gaps=0.2)
    assert mean_intervals([scores]) == mean_intervals([scores])
    assert mean_intervals([scores, scores[:, 0]])[0] == mean_intervals([scores])[0]


def test_what_differs_is_shown_and_what_does_not_is_not() -> None:
    rng = np.random.default_rng(5)
    a = draw_scores(rng, 100)
    noise = rng.normal(0, 0.05, 100)
    noise -= noise.mean()
    assert compare_means(a + 0.05, a + noise).verdict() == "A is better"
    assert compare_means(a + noise, a + 0.05).verdict() == "B is better"
    assert compare_means(a + 0.3 * noise, a).verdict() == "equal"
    assert compare_means(a + 5 * noise, a).verdict() == "not shown"
    assert compare_means(a, a).verdict() == "equal"
    assert compare_means(a + 0.002, a).verdict() == "equal"  # shown, and too little to matter
    assert compare_means(a + 0.002, a, margin=0.001).verdict() == "A is better"
    assert adjust([compare_means(a + 0.05, a + noise)])[0].verdict() == "A is better"


def test_the_interval_of_a_difference_says_what_its_p_value_says() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        found = compare_means(draw_scores(rng, 60) + 0.02, draw_scores(rng, 60), margin=0.02)
        low, high = found.interval.low, found.interval.high
        if abs(found.p - ALPHA) > 0.002:  # a resample
            assert (found.p < ALPHA) == (not low <= 0 <= high)
        if found.p_equal < ALPHA / 2 - 0.002:
            assert -0.02 <= low <= high <= 0.02


def test_no_difference_is_seldom_taken_for_one() -> None:
    """Two-sided at most 5%, of differences that are nearly always small and seldom large."""
    rng, wrong, sets = np.random.default_rng(6), 0, 500
    for _set in range(sets):
        a = draw_scores(rng, 60)
        d = np.where(rng.random(60) < 0.1, 0.5, 0.02) * rng.standard_normal(60)
        found = compare_means(a + d, a)
        wrong += found.verdict() in ("A is better", "B is better")
    assert wrong / sets <= 0.05


def test_a_paired_difference_is_of_the_means_of_each() -> None:
    """Classes that one model finds where they are not are undefined for the other."""
    rng = np.random.default_rng(7)
    a, b = draw_scores(rng, 50, 3, gaps=0.3), draw_scores(rng, 50, 3, gaps=0.3)
    want = mean_defined(mean_defined(a)) - mean_defined(mean_defined(b))
    assert compare_means(a, b).interval.mean == pytest.approx(float(want))


def test_holm_by_hand() -> None:
    """Holm 1979: the least times three, the next times two; never below an earlier one, never above 1."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_verdict_by_hand() -> None:
    interval = Interval(-0.05, -0.08, -0.02, -0.08, -0.02, 60, False)
    assert Difference(interval, 0.001, 0.9).verdict() == "B is better"
    assert Difference(interval, 0.2, 0.9).verdict() == "not shown"


def test_only_images_with_a_score_count() -> None:
    """The recall of a class is undefined where it is not: a single image has no interval, a few have a wide one."""
    scores = np.full(60, np.nan)
    scores[7] = 0.759
    (one,) = mean_intervals([scores])
    assert one.mean == 0.759
    assert np.isnan([one.low, one.high, one.t_low, one.t_high]).all()
    scores[:5] = 0.5, 0.6, 0.7, 0.8, 0.9
    (few,), (alone,) = mean_intervals([scores]), mean_intervals([scores[~np.isnan(scores)]])
    assert few.rough
    assert (few.t_low, few.t_high) == pytest.approx((alone.t_low, alone.t_high))
