"""Codes of masks, counted and replaced: against numpy's plain ways, on any array."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from support.refusal import raises
from ubend.core.errors import DataError
from ubend.labels.label_values import LabelArray, count_label_values, format_values, replace_values

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=12)


@st.composite
def masks(draw: st.DrawFn) -> NDArray[Any]:
    """Any shape, empty too, of one of the dtypes of codes; few codes, so that there are runs."""
    dtype, top = draw(st.sampled_from([(np.uint8, 255), (np.uint16, 65535), (np.int32, 0xFFFFFF)]))
    few = draw(st.lists(st.integers(0, top), min_size=1, max_size=6, unique=True))
    return draw(hnp.arrays(dtype, SHAPES, elements=st.sampled_from(few)))


@given(masks())
def test_counts_are_numpys(values: NDArray[Any]) -> None:
    codes, pixels = count_label_values(values)
    want, counts = np.unique(values, return_counts=True)
    assert (codes.dtype, pixels.dtype) == (np.int32, np.int64)
    np.testing.assert_array_equal(codes, want)
    np.testing.assert_array_equal(pixels, counts)


@given(masks(), st.integers(0, 2**32))
def test_replacing_is_a_lookup(values: NDArray[Any], seed: int) -> None:
    before = values.copy()
    codes, _pixels = count_label_values(values)
    replacements = np.random.default_rng(seed).integers(0, 256, len(codes)).astype(np.uint8)
    out = replace_values(values, codes, replacements)
    assert (out.dtype, out.shape) == (np.uint8, values.shape)
    table = dict(zip(codes.tolist(), replacements.tolist(), strict=True))
    assert out.reshape(-1).tolist() == [table[code] for code in values.reshape(-1).tolist()]
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_arrays_that_do_not_lie_in_a_row(dtype: Any) -> None:
    values = np.random.default_rng(0).integers(0, 5, (20, 30)).astype(dtype)[::-2, 3::3]
    codes, pixels = count_label_values(values)
    want, counts = np.unique(values, return_counts=True)
    assert (codes.tolist(), pixels.tolist()) == (want.tolist(), counts.tolist())
    np.testing.assert_array_equal(replace_values(values, codes, codes.astype(np.uint8)), values)


@given(hnp.arrays(np.uint8, SHAPES), hnp.arrays(np.uint8, (256, 3)))
def test_values_as_colours(values: NDArray[np.uint8], palette: NDArray[np.uint8]) -> None:
    grey = LabelArray(values, "value").of_kind("color")
    assert grey.kind == "color"
    np.testing.assert_array_equal(grey.values, values.astype(int) * 0x010101)
    shown = LabelArray(values, "value", palette).of_kind("color").values
    want = [int("{:02x}{:02x}{:02x}".format(*palette[index]), 16) for index in values.reshape(-1)]
    assert shown.reshape(-1).tolist() == want


def test_what_cannot_be_read_so() -> None:
    codes = LabelArray(np.array([[0, 256]], np.uint16), "value")
    assert codes.of_kind("value") is codes
    with raises(DataError, key="color", named=["256"]):
        codes.of_kind("color")
    with raises(DataError, key="color"):
        LabelArray(np.zeros((1, 1), np.int32), "color").of_kind("value")


def test_words() -> None:
    assert format_values([0, 255], "value") == "0, 255"
    assert format_values([0, 0xFF0000], "color") == "#000000, #ff0000"
    assert format_values([1, 2, 3], "value", 2) == "1, 2, ..."
    assert format_values([], "value") == ""
