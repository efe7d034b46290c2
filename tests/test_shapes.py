"""Shapes -> masks, against other rasterisers."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco
from scipy.ndimage import binary_dilation
from skimage.draw import polygon2mask

from support.tally import Tally
from ubend.labels.shapes import Shape, draw_shapes, measure_polygon
from ubend.portable.run_lengths import decode_rle, read_counts

SIZE = (23, 31)
sides = st.integers(1, 40)


def box(x0: float, y0: float, x1: float, y1: float) -> tuple[float, ...]:
    return (x0, y0, x1, y0, x1, y1, x0, y1)


def fill(polygon: tuple[float, ...], size_hw: tuple[int, int] = SIZE) -> np.ndarray:
    return draw_shapes([Shape(1, (polygon,))], size_hw).values > 0


@given(st.lists(st.tuples(*[st.integers(-9, 40)] * 4, st.integers(0, 255)), max_size=6))
def test_rectangles_are_exact_and_later_ones_lie_on_earlier_ones(rectangles: list[tuple[int, ...]]) -> None:
    expected = np.zeros(SIZE, np.uint8)
    for x0, y0, x1, y1, value in rectangles:
        xs, ys = sorted((max(0, x0), max(0, x1))), sorted((max(0, y0), max(0, y1)))
        expected[ys[0] : ys[1], xs[0] : xs[1]] = value
    drawn = draw_shapes([Shape(r[4], (box(*r[:4]),)) for r in rectangles], SIZE).values
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, expected)


points = st.tuples(st.floats(-40, 70), st.floats(-40, 70))


@given(st.lists(points, min_size=3, max_size=9))
def test_polygons_agree_with_another_rasteriser_but_for_their_border(corners: list[tuple[float, float]]) -> None:
    drawn = fill(tuple(c for corner in corners for c in corner))
    margin = 80  # so that nothing is clipped there
    rows_columns = np.array(corners)[:, ::-1] - 0.5 + margin
    other = polygon2mask((SIZE[0] + 2 * margin, SIZE[1] + 2 * margin), rows_columns)
    border = outline(np.array(corners) + margin, other.shape)
    crop = slice(margin, margin + SIZE[0]), slice(margin, margin + SIZE[1])
    assert not ((drawn != other[crop]) & ~border[crop]).any()


def outline(corners: np.ndarray, size_hw: tuple[int, ...]) -> np.ndarray:
    """The pixels within one pixel of a polygon's sides."""
    touched = np.zeros(size_hw, bool)
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        steps = np.linspace(start, end, 2 + int(4 * np.abs(end - start).max())).astype(int)
        touched[steps[:, 1], steps[:, 0]] = True
    return binary_dilation(touched, np.ones((3, 3)))


@given(st.lists(points, min_size=3, max_size=9))
def test_shares_of_the_image(corners: list[tuple[float, float]]) -> None:
    shares = tuple(c / side for corner in corners for c, side in zip(corner, SIZE[::-1], strict=True))
    np.testing.assert_array_equal(
        draw_shapes([Shape(1, (shares,), relative=True)], SIZE).values > 0,
        fill(tuple(c / s * s for corner in corners for c, s in zip(corner, SIZE[::-1], strict=True))),
    )


def test_polygons_far_out_of_the_image_take_no_memory() -> None:
    assert fill(box(-1e12, -1e12, 1e12, 1e12)).all()
    assert not fill(box(1e12, 0, 1e15, 9)).any()
    triangle = fill((0, 0, 2e9, 0, 0, 2e9), (4, 4))
    assert triangle.all()


def test_several_polygons_of_one_object_are_joined() -> None:
    both = draw_shapes([Shape(3, (box(1, 1, 6, 6), box(4, 4, 9, 9)))], SIZE).values
    assert both[5, 5] == 3
    assert (both > 0).sum() == 25 + 25 - 4


def test_a_polygon_that_crosses_itself_counts_in_turns() -> None:
    twice_round = (*box(1, 1, 9, 9), 1, 1, *box(3, 3, 6, 6), 3, 3)
    assert fill(twice_round).sum() == 64 - 9


def test_nothing_to_draw() -> None:
    assert not draw_shapes([], SIZE).values.any()
    assert not fill((3, 3, 3, 3, 3, 3)).any()
    assert not fill((2, 3, 9, 3, 4, 3)).any()


masks = st.tuples(sides, sides).flatmap(lambda size: arrays(np.bool_, size))


@given(masks)
def test_run_lengths_are_exact(mask: np.ndarray) -> None:
    packed = coco.encode(np.asfortranarray(mask, np.uint8))
    rle = {"size": list(mask.shape), "counts": packed["counts"].decode()}
    np.testing.assert_array_equal(decode_rle(rle), mask)
    listed = {"size": list(mask.shape), "counts": read_counts(rle).tolist()}
    np.testing.assert_array_equal(draw_shapes([Shape(7, rle=listed)], mask.shape).values, 7 * mask)


@pytest.mark.understood(at_least=0.45)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(masks, st.text(st.characters(min_codepoint=32, max_codepoint=126)), st.integers(0, 20))
def test_damaged_run_lengths_are_refused_or_fill_the_image(
    tally: Tally, mask: np.ndarray, junk: str, place: int
) -> None:
    counts = coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    rle = {"size": list(mask.shape), "counts": counts[:place] + junk + counts[place:]}
    try:
        lengths = read_counts(rle)
    except ValueError:
        tally.add(False)
        return
    tally.add(True)
    assert lengths.min() >= 0
    assert lengths.sum() == mask.size


@pytest.mark.parametrize("counts", ["", "7", "o", "\x00", "é", [3], [3, 40], [-1, 13], []])
def test_run_lengths_that_do_not_fill_the_image(counts: object) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        decode_rle({"size": [3, 4], "counts": counts})


@given(st.integers(-20, 20), st.integers(-20, 20), sides, sides)
def test_areas(x: int, y: int, width: int, height: int) -> None:
    assert measure_polygon(box(x, y, x + width, y + height)) == width * height
    assert measure_polygon(box(x, y, x + width, y + height)[::-1]) == width * height
    assert measure_polygon((x, y, x + width, y, x, y + height)) == width * height / 2
