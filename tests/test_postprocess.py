"""A mask under conditions: thresholds, holes, smallest regions; and the options that say them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from support.refusal import raises
from ubend.core.errors import SettingError
from ubend.portable.postprocess import (
    PostprocessOptions,
    apply_thresholds,
    drop_small_regions,
    fill_holes,
    parse_areas,
    parse_thresholds,
    postprocess,
)

NAMES = ("background", "polyp", "contour")
CORNERS = np.ones((3, 3), bool)

masks = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3), fill=st.nothing()
)
probabilities = arrays.arrays(
    np.float32,
    st.tuples(st.integers(2, 4), st.integers(1, 6), st.integers(1, 6)),
    elements=st.sampled_from([np.float32(n / 8) for n in range(9)]),
    fill=st.nothing(),
)


def drawn(text: str) -> np.ndarray:
    """A mask as drawn, one figure a pixel."""
    return np.array([[int(figure) for figure in line] for line in text.split()], np.uint8)


def pixel(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 1, 1)


@given(probabilities)
def test_nothing_requested(prob: np.ndarray) -> None:
    mask = postprocess(prob, PostprocessOptions())
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, prob.argmax(axis=0))
    assert not PostprocessOptions()


@pytest.mark.parametrize(
    ("prob", "thresholds", "chosen"),
    [
        (pixel(0.7, 0.2, 0.1), {1: 0.2}, 1),  # reached, though another is more probable
        (pixel(0.3, 0.4, 0.3), {1: 0.5}, 0),  # not reached: the best of the others, of equal ones the first
        (pixel(0.1, 0.5, 0.4), {1: 0.6}, 2),
        (pixel(0.5, 0.2, 0.3), {1: 0.1, 2: 0.1}, 2),  # both reached: the more probable
        (pixel(0.5, 0.25, 0.25), {2: 0.1, 1: 0.1}, 1),
        (pixel(0.4, 0.35, 0.25), {1: 0.9, 2: 0.2}, 2),
        (pixel(0.5, 0.3, 0.2), {0: 0.9, 1: 0.9, 2: 0.9}, 0),  # nobody reaches: the most probable of all
        (pixel(0.5, 0.3, 0.2), {0: 0.9, 1: 0.9, 2: 0.2}, 2),
    ],
)
def test_thresholds(prob: np.ndarray, thresholds: dict[int, float], chosen: int) -> None:
    before = prob.copy()
    assert apply_thresholds(prob, thresholds).item() == chosen
    np.testing.assert_array_equal(prob, before)


@given(probabilities, st.dictionaries(st.integers(0, 1), st.sampled_from([0.125, 0.5, 1.0])))
def test_thresholds_are_kept(prob: np.ndarray, thresholds: dict[int, float]) -> None:
    """A class with a threshold is nowhere below it, unless there is no other; it loses only to one like it."""
    mask = apply_thresholds(prob, thresholds)
    reached = np.array([prob[index] >= least for index, least in thresholds.items()])
    if thresholds:
        assert np.isin(mask[reached.any(axis=0)], list(thresholds)).all()
    if len(thresholds) < len(prob):
        for index, least in thresholds.items():
            assert (prob[index][mask == index] >= least).all()


def test_holes_by_hand() -> None:
    """A hole is closed at corners, of any class; what reaches the rim is none; a limit keeps the large ones."""
    before = drawn("""
        0000000011
        0111100010
        0120110011
        0100100000
        0011000111
        0000000100
        """)
    filled = before.copy()
    fill_holes(filled, {1: math.inf})
    np.testing.assert_array_equal(
        filled,
        drawn("""
        0000000011
        0111100010
        0111110011
        0111100000
        0011000111
        0000000100
        """),
    )
    kept = before.copy()
    fill_holes(kept, {1: 3})
    np.testing.assert_array_equal(kept, before)
    fill_holes(kept, {1: 4})
    np.testing.assert_array_equal(kept, filled)


def test_holes_where_classes_cross_at_corners() -> None:
    """Each encloses the other; the first of the class table fills first, in whatever order they were named."""
    before = drawn("000000 001000 010100 001000 000000")
    for limits in ({0: 1, 1: 1}, {1: 1, 0: 1}):
        mask = before.copy()
        fill_holes(mask, limits)
        assert not mask.any()
    fill_holes(before, {1: 1})
    assert before.sum() == 5


@given(masks, st.permutations([(0, 3.0), (1, math.inf), (2, 5.0), (3, 2.0)]))
def test_holes_against_scipy(mask: np.ndarray, limits: list[tuple[int, float]]) -> None:
    for index in range(4):
        own = mask.copy()
        fill_holes(own, {index: math.inf})
        full = ndimage.binary_fill_holes(mask == index)
        np.testing.assert_array_equal(own, np.where(full, index, mask))
    one, other = mask.copy(), mask.copy()
    fill_holes(one, dict(limits))
    fill_holes(other, dict(reversed(limits)))
    np.testing.assert_array_equal(one, other)


def test_small_parts_by_hand() -> None:
    """To the longest border, not the largest neighbour; corners connect; specks side by side go together."""
    before = drawn("""
        1000002222
        0100002122
        0000302222
        0000332222
        0000000000
        1110000000
        """)
    after = drawn("""
        0000002222
        0000002222
        0000002222
        0000002222
        0000000000
        1110000000
        """)
    dropped = before.copy()
    drop_small_regions(dropped, {1: 3, 3: 4})
    np.testing.assert_array_equal(dropped, after)
    kept = before.copy()
    drop_small_regions(kept, {1: 1, 2: 14, 3: 3})
    np.testing.assert_array_equal(kept[:, :6], before[:, :6])
    cornered = drawn("1000 0100 0000")
    drop_small_regions(cornered, {1: 2})
    assert cornered.sum() == 2
    specks = drawn("""
        00000
        01320
        00000
        """)
    drop_small_regions(specks, {1: 2, 2: 2, 3: 2})
    assert not specks.any()


@settings(max_examples=200)
@given(masks, st.dictionaries(st.integers(0, 3), st.integers(0, 12)))
def test_no_small_part_is_left(mask: np.ndarray, limits: dict[int, float]) -> None:
    after = mask.copy()
    drop_small_regions(after, limits)
    assert set(np.unique(after)) <= set(np.unique(mask)), "no class is invented"
    for index, limit in limits.items():
        parts, _count = ndimage.label(after == index, CORNERS)
        areas = np.bincount(parts.reshape(-1))[1:]
        assert ((areas >= limit) | (areas == mask.size)).all()
    again = after.copy()
    drop_small_regions(again, limits)
    np.testing.assert_array_equal(again, after)
    if not any(limits.values()):
        np.testing.assert_array_equal(after, mask)


def test_holes_are_filled_before_small_parts_go() -> None:
    """A ring counts with what it encloses."""
    ring = drawn("00000 01110 01010 01110 00000")
    prob = np.stack([ring == 0, ring == 1]).astype(np.float32)
    requested = PostprocessOptions({}, {1: 9}, {1: 1})
    assert postprocess(prob, requested).sum() == 9
    assert postprocess(prob, PostprocessOptions({}, {1: 9}, {})).sum() == 0


def test_options() -> None:
    assert parse_thresholds(["polyp=0.3", " contour = 1"], NAMES) == {1: 0.3, 2: 1.0}
    assert parse_thresholds(["a=b=.5"], ["a=b", "a"]) == {0: 0.5}
    assert parse_areas("--min-area", ["20"], NAMES) == {1: 20, 2: 20}
    assert parse_areas("--min-area", ["contour=5", "20"], NAMES) == {1: 20, 2: 5}
    assert parse_areas("--fill-holes", ["all", "background=3"], NAMES) == {0: 3, 1: math.inf, 2: math.inf}
    assert parse_areas("--fill-holes", ["9"], ["a", "b"]) == {0: 9, 1: 9}
    assert parse_areas("--fill-holes", [], NAMES) == parse_thresholds([], NAMES) == {}


@pytest.mark.parametrize("text", ["polyp", "polyp=", "polyp=0", "polyp=1.1", "polyp=nan", "polyp=-1", "0.3", "=x"])
def test_wrong_thresholds(text: str) -> None:
    with raises(SettingError, key="--threshold", named=["polyp=0.3"]) as caught:
        parse_thresholds([text], NAMES)
    assert str(caught.value).startswith(f"--threshold {text}: ")


@pytest.mark.parametrize("text", ["x", "polyp=", "-3", "polyp=nan", "polyp=-1", ""])
def test_wrong_areas(text: str) -> None:
    with raises(SettingError, key="--min-area", named=["polyp=50"]) as caught:
        parse_areas("--min-area", [text], NAMES)
    assert str(caught.value).startswith(f"--min-area {text}: ")


def test_unknown_classes() -> None:
    with raises(SettingError, key="class", named=["polip", "polyp?", "background, polyp, contour"]):
        parse_thresholds(["polip=0.3"], NAMES)
    with raises(SettingError, key="class", named=["background, polyp, contour"]):
        parse_areas("--min-area", ["x=3"], NAMES)
