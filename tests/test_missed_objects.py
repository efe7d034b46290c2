"""Missed objects: which of the true ones a prediction misses, by size, and what is not counted."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from ubend.labels.class_table import IGNORED
from ubend.metrics import missed_objects
from ubend.metrics.missed_objects import MISSED_BELOW, find_missed_objects, group_by_size


def draw_squares(sides: list[int]) -> tuple[NDArray[np.uint8], list[tuple[slice, slice]]]:
    """A mask with a square of each side in a row, 3 px apart, and their slices."""
    mask = np.zeros((max(sides) + 2, sum(sides) + 3 * len(sides)), np.uint8)
    places, left = [], 1
    for side in sides:
        places.append((slice(1, 1 + side), slice(left, left + side)))
        mask[places[-1]] = 1
        left += side + 3
    return mask, places


def test_an_object_is_missed_if_less_than_a_tenth_of_it_is_predicted() -> None:
    truth, places = draw_squares([10, 10, 10, 20])
    prediction = np.zeros_like(truth)
    prediction[places[0]] = 1
    prediction[1, places[1][1]] = 1  # a tenth
    prediction[1:10, places[2][1].start] = 1  # 9 of 100
    prediction[places[3]] = 2  # another class
    (objects,) = find_missed_objects(truth, prediction, [1]).values()
    assert objects is not None
    assert objects.areas.tolist() == [100, 100, 100, 400]
    assert objects.missed.tolist() == [False, False, True, True]
    first, second = objects.largest  # the largest first
    assert (first.area, first.covered, second.area, second.covered) == (400, 0.0, 100, 0.09)
    for one, (rows, columns) in zip(objects.largest, [places[3], places[2]], strict=True):
        assert one.box == (rows.start, columns.start, rows.stop, columns.stop)


def test_merged_neighbours_are_not_missed_and_corners_connect() -> None:
    truth, _places = draw_squares([4, 4, 4])
    (objects,) = find_missed_objects(truth, np.ones_like(truth), [1]).values()
    assert objects is not None
    assert not objects.missed.any()
    diagonal = np.eye(7, dtype=np.uint8)
    (objects,) = find_missed_objects(diagonal, np.zeros_like(diagonal), [1]).values()
    assert objects is not None
    assert objects.areas.tolist() == [7]


def test_only_the_named_classes_count_and_ignored_pixels_are_no_object() -> None:
    truth = np.zeros((9, 9), np.uint8)
    truth[0, 0], truth[4, 4], truth[8, 8] = 1, 2, IGNORED
    assert set(find_missed_objects(truth, truth, [1])) == {1}
    assert set(find_missed_objects(truth, truth, [1, 2, 3])) == {1, 2}


def test_what_is_too_large_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, _places = draw_squares([2] * 5)
    monkeypatch.setattr(missed_objects, "MOST_OBJECTS", 4)
    assert find_missed_objects(truth, truth, [1]) == {1: None}
    monkeypatch.setattr(missed_objects, "MOST_OBJECTS", 5)
    assert find_missed_objects(truth, truth, [1])[1] is not None
    monkeypatch.setattr(missed_objects, "MOST_PIXELS", truth.size - 1)
    assert find_missed_objects(truth, truth, [1]) == {1: None}


def test_at_most_a_few_missed_objects_are_kept() -> None:
    truth, _places = draw_squares([*range(1, 12)])
    (objects,) = find_missed_objects(truth, np.zeros_like(truth), [1]).values()
    assert objects is not None
    assert [one.area for one in objects.largest] == [side**2 for side in (11, 10, 9, 8, 7, 6)]


def test_quarters_hold_equal_numbers_of_objects() -> None:
    areas = np.arange(1, 101)
    groups = group_by_size(areas, areas <= 30)
    assert [(group.smallest, group.largest) for group in groups] == [(1, 25), (26, 50), (51, 75), (76, 100)]
    assert [(group.objects, group.missed) for group in groups] == [(25, 25), (25, 5), (25, 0), (25, 0)]
    assert group_by_size(np.zeros(0, np.int64), np.zeros(0, np.bool_)) == []
    (equal,) = group_by_size(np.full(9, 4), np.ones(9, np.bool_))
    assert equal == (4, 4, 9, 9)


@pytest.mark.parametrize("seed", range(5))
def test_a_missed_object_has_a_small_iou_with_every_prediction(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = (ndimage.gaussian_filter(rng.normal(size=(90, 90)), 3) > 0.05).astype(np.uint8)
    prediction = (ndimage.gaussian_filter(rng.normal(size=(90, 90)), 3) > 0.1).astype(np.uint8)
    (objects,) = find_missed_objects(truth, prediction, [1]).values()
    assert objects is not None
    true, count = ndimage.label(truth, np.ones((3, 3)))
    guess, guesses = ndimage.label(prediction, np.ones((3, 3)))
    assert len(objects.areas) == count
    for number in np.flatnonzero(objects.missed) + 1:
        for other in range(1, guesses + 1):
            both = (true == number) & (guess == other)
            assert both.sum() < MISSED_BELOW * ((true == number) | (guess == other)).sum()


def test_scores_hold_them(good: Path) -> None:
    scores = json.loads((good / "run" / "scores.json").read_text())["missed_objects"]
    assert scores["missed_below"] == MISSED_BELOW
    assert list(scores["classes"]) == ["foreground"]
    found = scores["classes"]["foreground"]
    assert sum(group["objects"] for group in found["sizes"]) == 4  # a disc in each test image
    assert sum(group["missed"] for group in found["sizes"]) == len(found["largest_missed"])
    assert found["left_out"] == 0
