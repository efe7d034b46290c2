"""What an image alone says about its mask, and the measures of the doctor that are written for speed."""

import numpy as np
import pytest
import scipy
import scipy.stats
from numpy.typing import NDArray

from ubend.doctor.mask_evidence import improves_when_moved, measure_place_fit, measure_rank, measure_separation
from ubend.doctor.masks import _count_small
from ubend.doctor.shift import _compare_distributions

SIDE_PX = 60
Bytes = NDArray[np.uint8]


def draw_disc(y: int, x: int, radius: int = 12, colors: tuple[int, int] = (90, 170)) -> tuple[Bytes, Bytes]:
    """A disc of one grey on another, with noise, and its mask."""
    rows, columns = np.mgrid[:SIDE_PX, :SIDE_PX]
    mask = ((rows - y) ** 2 + (columns - x) ** 2 < radius**2).astype(np.uint8)
    noise = np.random.default_rng((y, x)).normal(0, 8, (SIDE_PX, SIDE_PX))
    return (np.array(colors)[mask] + noise).clip(0, 255).astype(np.uint8)[:, :, None], mask


@pytest.fixture
def pairs() -> list[tuple[Bytes, Bytes]]:
    places = np.random.default_rng(0).integers(14, SIDE_PX - 14, (20, 2)).tolist()
    return [draw_disc(y, x) for y, x in places]


def test_a_right_mask_of_unusual_colours_separates_best(pairs: list[tuple[Bytes, Bytes]]) -> None:
    pairs.append(draw_disc(20, 40, colors=(240, 10)))
    assert measure_rank(pairs, len(pairs) - 1) < 0.1
    pairs[-1] = (pairs[-1][0], draw_disc(42, 16)[1])
    assert measure_rank(pairs, len(pairs) - 1) > 0.3


def test_masks_of_other_sizes_are_compared(pairs: list[tuple[Bytes, Bytes]]) -> None:
    image, mask = draw_disc(20, 40)
    pairs.append((image[:40], mask[:40]))
    assert measure_rank(pairs, len(pairs) - 1) < 0.1
    assert measure_rank(pairs[:1], 0) == 1.0  # nothing to compare with


def test_separation_is_a_share() -> None:
    image, mask = draw_disc(30, 30)
    assert 0.8 < measure_separation(image, mask) <= 1
    assert measure_separation(np.full_like(image, 100), mask) < 0.01


def test_only_a_shifted_mask_improves_when_moved() -> None:
    image, mask = draw_disc(30, 26)
    assert not improves_when_moved(image, mask, (0.05, -0.1))
    assert improves_when_moved(image, np.roll(mask, (-3, 6), (0, 1)), (0.05, -0.1))


def test_the_places_of_an_inverted_mask_contradict_the_others() -> None:
    masks = [draw_disc(30 + i % 5, 28 + i % 3)[1] for i in range(12)]
    masks[4] = 1 - masks[4]
    place_fit = measure_place_fit(masks, 2)
    assert place_fit[4] < -0.8
    assert np.delete(place_fit, 4).min() > 0.8


def test_small_regions_are_counted_as_by_labelling() -> None:
    rng, counts = np.random.default_rng(0), []
    for index in range(120):
        smooth = scipy.ndimage.gaussian_filter(rng.normal(size=(50, 70)), rng.choice([0.5, 1, 2, 4]))
        mask = smooth > rng.choice([0, 0.3, 1]) * smooth.std()
        if index % 3 == 0:
            mask = scipy.ndimage.binary_opening(mask, np.ones((3, 3)))
        labelled, _count = scipy.ndimage.label(mask, np.ones((3, 3)))
        counts.append(int((np.bincount(labelled.reshape(-1))[1:] <= 6).sum()))
        assert _count_small(mask) == counts[-1]
    assert 20 < sum(count > 0 for count in counts) < 110  # both ways of counting were taken
    assert _count_small(np.zeros((4, 4), bool)) == 0


def test_distributions_are_compared_as_by_the_exact_test() -> None:
    rng = np.random.default_rng(0)
    for first, second, shift in ((10, 28, 0.0), (10, 28, 1.5), (800, 100, 0.3), (30, 12, 0.8)):
        values, others = rng.normal(size=first), rng.normal(size=second) + shift
        exact = scipy.stats.ks_2samp(values, others).pvalue
        assert _compare_distributions(values, others) == pytest.approx(exact, rel=0.35)
