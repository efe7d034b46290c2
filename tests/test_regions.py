"""Connected regions without scipy, compared with scipy's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import ndimage

from ubend.portable.regions import label_regions

MASKS = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 3), fill=st.nothing()
)


def label_by_scipy(mask: NDArray[np.uint8], corners: bool) -> tuple[NDArray[np.int64], list[int]]:
    parts, classes = np.zeros(mask.shape, np.int64), list[int]()
    for index in np.unique(mask):
        region = mask == index
        components, count = ndimage.label(region, np.ones((3, 3)) if corners else None)
        parts[region] = components[region] + (len(classes) - 1)
        classes += [int(index)] * count
    return parts, classes


def draw_spiral(side: int) -> NDArray[np.uint8]:
    """A line of one pixel that meets itself only from row to row, at distances of all sizes."""
    rows, columns = np.mgrid[:side, :side] - side // 2
    ring = np.maximum(abs(rows), abs(columns))
    line = (ring % 2).astype(np.uint8)
    line[(columns == rows + 1) & (columns > 0)] ^= 1  # from each ring to the next
    return line


def draw_large(name: str, side: int = 600) -> NDArray[np.uint8]:
    random = np.random.default_rng(3)
    if name == "noise":
        return random.integers(0, 3, (side, side), np.uint8)
    if name == "blobs":
        smooth = ndimage.gaussian_filter(random.random((side, side)), 5)
        return np.digitize(smooth, np.quantile(smooth, [0.3, 0.5, 0.8])).astype(np.uint8)
    if name == "comb":
        comb = np.tile(np.array([0, 1], np.uint8), (side, side // 2))
        comb[-1] = 1
        return comb
    return draw_spiral(side) if name == "spiral" else np.zeros((side, side), np.uint8)


@settings(max_examples=300)
@given(MASKS, st.booleans())
def test_random_masks(mask: NDArray[np.uint8], corners: bool) -> None:
    parts, values = label_regions(mask, corners=corners)
    wanted_parts, wanted_values = label_by_scipy(mask, corners)
    np.testing.assert_array_equal(parts, wanted_parts)
    assert values.tolist() == wanted_values


@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("name", ["noise", "blobs", "comb", "spiral", "empty"])
def test_large_masks(name: str, corners: bool) -> None:
    for mask in (draw_large(name), draw_large(name).T, draw_large(name)[:7], draw_large(name)[:, :1]):
        parts, values = label_regions(mask, corners=corners)
        wanted_parts, wanted_values = label_by_scipy(mask, corners)
        np.testing.assert_array_equal(parts, wanted_parts)
        assert values.tolist() == wanted_values


def test_other_values() -> None:
    """Of any type: bool, and values that are no class indices."""
    parts, values = label_regions(np.array([[True, False], [False, True]]), corners=False)
    assert parts.tolist() == [[2, 0], [1, 3]]
    assert values.tolist() == [False, False, True, True]
    parts, values = label_regions(np.array([[7, -2], [-2, 7]]), corners=True)
    assert parts.tolist() == [[1, 0], [0, 1]]
    assert values.tolist() == [-2, 7]
