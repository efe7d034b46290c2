"""How often an interval of the mean score holds the truth, and how often a comparison is wrong.

Data sets are drawn from a population of per-image scores whose mean is known: the per-image Dice of a run's
`scores.json` (class means without the background), and a mixture of two Beta distributions with the mean and spread
that Kvasir-SEG's test images have (.91, .15): most images good, some missed. Groups are alike: the scores of a group
share half of the variance of a normal number that chooses the quantile.

    python benchmarks/coverage.py --scores RUN/scores.json ... --pair A/scores.json B/scores.json

Comparisons are of two models that do not differ in the population: every image's two scores are swapped at random
(swap), or the difference is shifted to 0 on average (shift); and of two that differ by the margin, where "equal" is
wrong.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ubend.evaluation.intervals import (
    ALPHA,
    MARGIN,
    Resamples,
    compare_means,
    difference_critical_values,
    mean_critical_values,
    resample,
)

Values = NDArray[np.float64]
Draw = Callable[[np.random.Generator], tuple[NDArray[np.int64], list[int] | None]]
_ALIKE = 0.5  # share of the variance that a group's images have in common
_TAILS = [ALPHA / 2, 1 - ALPHA / 2]


def percentile(found: Resamples) -> Values:
    ends: Values = np.quantile(found.means, _TAILS)
    return ends


def bca(found: Resamples) -> Values:
    """Bias-corrected and accelerated; the acceleration from the influence of each unit."""
    below = (found.means < found.mean).mean() + (found.means == found.mean).mean() / 2
    bias = stats.norm.ppf(np.clip(below, 1e-6, 1 - 1e-6))
    squares = (found.influence**2).sum()
    acceleration = (found.influence**3).sum() / (6 * squares**1.5) if squares else 0.0
    z = bias + stats.norm.ppf(_TAILS)
    ends: Values = np.quantile(found.means, stats.norm.cdf(bias + z / (1 - acceleration * z)))
    return ends


def studentised(found: Resamples) -> Values:
    if found.is_flat:
        return student(found)
    ends: Values = found.mean - np.quantile(found.studentised(), _TAILS[::-1]) * found.error
    return ends


def symmetric(found: Resamples) -> Values:
    if found.is_flat:
        return student(found)
    half = float(np.quantile(np.abs(found.studentised()), 1 - ALPHA)) * found.error
    return np.array([found.mean - half, found.mean + half])


def student(found: Resamples) -> Values:
    ends: Values = found.mean + found.error * stats.t.ppf(_TAILS, len(found.influence) - 1)
    return ends


def taken(ends: Callable[[Resamples], Values]) -> Callable[[Resamples], Values]:
    """What ubend takes."""
    return lambda found: student(found) if found.is_flat else found.mean - ends(found) * found.error


KINDS: dict[str, Callable[[Resamples], Values]] = {
    "percentile": percentile,
    "BCa": bca,
    "studentised": studentised,
    "symmetric": symmetric,
    "t": student,
    "taken of means": taken(mean_critical_values),
    "taken of differences": taken(difference_critical_values),
}


def read_scores(path: Path) -> Values:
    """(N,) mean Dice of each image over the classes without the background; of a run."""
    rows = json.loads(path.read_text())["per_picture"].values()
    dice = [
        [value for name, value in row["dice"].items() if name != "background" and value is not None] for row in rows
    ]
    return np.array([np.mean(values) for values in dice if values])


def mixture(rng: np.random.Generator, count: int) -> Values:
    missed = rng.random(count) < 0.07
    return np.where(missed, rng.beta(1.5, 2.0, count), rng.beta(22.0, 1.3, count))


def places(rng: np.random.Generator, groups: int) -> tuple[Values, list[int]]:
    """(N,) quantiles in 0..1 and the group of each, of groups of 1 to 20 images."""
    sizes = rng.integers(1, 21, groups)
    of = np.repeat(np.arange(groups), sizes)
    normal = np.sqrt(_ALIKE) * rng.standard_normal(groups)[of] + np.sqrt(1 - _ALIKE) * rng.standard_normal(len(of))
    return stats.norm.cdf(normal), of.tolist()


def pairings(scores: Values, runs: list[Path] | None) -> dict[str, Values]:
    """(N, 2) scores of two models on the same images: two runs; and one that differs much on a tenth of the images."""
    rng = np.random.default_rng(2)
    other = np.where(rng.random(len(scores)) < 0.1, rng.permutation(scores), scores)
    found = {"mixture": np.stack([scores, np.clip(other + rng.normal(0, 0.02, len(scores)), 0, 1)], axis=1)}
    return ({"runs": np.stack([read_scores(path) for path in runs], axis=1)} if runs else {}) | found


def draws(population: Values, units: int, grouped: bool) -> Draw:
    """A function that draws the indices of a data set's images in the sorted population, and their groups."""

    def draw(rng: np.random.Generator) -> tuple[NDArray[np.int64], list[int] | None]:
        if not grouped:
            return rng.integers(0, len(population), units), None
        quantiles, of = places(rng, units)
        return (quantiles * len(population)).astype(np.int64), of

    return draw


def cover(population: Values, draw: Draw, sets: int) -> dict[str, float]:
    """Share of data sets whose interval holds the mean of the population, of each kind."""
    rng, held = np.random.default_rng(0), dict.fromkeys(KINDS, 0)
    truth = float(population.mean())
    for _set in range(sets):
        chosen, groups = draw(rng)
        scores = population[chosen]
        (found,), _grouped = resample([scores], groups)
        for name, kind in KINDS.items():
            low, high = kind(found)
            held[name] += low <= truth <= high
    return {name: int(count) / sets for name, count in held.items()}


def compare(pairs: Values, draw: Draw, sets: int, how: str) -> dict[str, float]:
    """Share of data sets whose interval is above 0, of each kind; of a difference of the margin, with each verdict.

    pairs: (N, 2) scores of two models on the same images, sorted by the first.
    """
    rng, counts = np.random.default_rng(1), Counter[str]()
    shift = pairs[:, 0].mean() - pairs[:, 1].mean() if how != "swap" else 0.0
    for _set in range(sets):
        chosen, groups = draw(rng)
        a, b = pairs[chosen].T + np.array([[0.0], [shift]])
        if how == "swap":
            swapped = rng.random(len(a)) < 0.5
            a, b = np.where(swapped, b, a), np.where(swapped, a, b)
        if how == "margin":
            counts[compare_means(a + MARGIN, b, groups).verdict()] += 1
            continue
        (found,), _grouped = resample([np.stack([a[:, None], b[:, None]], axis=1)], groups)
        counts.update(name for name, kind in KINDS.items() if kind(found)[0] > 0)
    names = ("A is better", "B is better", "equal", "not shown") if how == "margin" else KINDS
    return {name: counts[name] / sets for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, nargs="*", default=[], help="scores.json of runs")
    parser.add_argument("--pair", type=Path, nargs=2, help="scores.json of two runs on the same images")
    parser.add_argument("--sets", type=int, default=4000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    populations = {"mixture": mixture(np.random.default_rng(0), 200_000)}
    populations |= {path.parent.name: read_scores(path) for path in options.scores}
    sizes = [(50, False), (100, False), (200, False), (20, True), (40, True)]
    rows: list[dict[str, Any]] = []

    def report(what: str, units: int, grouped: bool, shares: dict[str, float]) -> None:
        rows.append({"what": what, "units": units, "groups": grouped, **shares})
        cells = "  ".join(f"{name} {100 * share:.1f}" for name, share in shares.items())
        print(f"{what:<40} {units:>4} {'groups' if grouped else 'images'}  {cells}", flush=True)

    for name, pairs in pairings(populations["mixture"], options.pair).items():
        pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
        for how in ("swap", "shift", "margin"):
            for units, grouped in sizes:
                shares = compare(pairs, draws(pairs[:, 0], units, grouped), options.sets, how)
                report(f"{name}, {how}", units, grouped, shares)
    for name, values in reversed(populations.items()):
        population = np.sort(values)
        for units, grouped in sizes:
            report(name, units, grouped, cover(population, draws(population, units, grouped), options.sets))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
