"""The directions that objects show, on drawn masks whose directions are known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ubend.core.plan import Directions
from ubend.dataset.object_directions import measure_directions
from ubend.labels.class_table import IGNORED


def drawn(count: int, height_px: int, width_px: int, *, highest: int = 0, lowest: int = 63) -> list[NDArray[np.uint8]]:
    """Masks of 64 x 96 px, each with a rectangle at random whose rows are within `highest` and `lowest`."""
    random, masks = np.random.default_rng(0), []
    for _number in range(count):
        mask = np.zeros((64, 96), np.uint8)
        y, x = random.integers(highest, lowest - height_px + 2), random.integers(0, 97 - width_px)
        mask[y : y + height_px, x : x + width_px] = 1
        masks.append(mask)
    return masks


@pytest.mark.parametrize(("height_px", "width_px", "edges"), [(4, 60, 0.875), (60, 4, -0.875), (12, 12, 0.0)])
def test_borders_along_rows_or_columns(height_px: int, width_px: int, edges: float) -> None:
    masks = [mask for mask in drawn(40, height_px, width_px, highest=1, lowest=62) if not mask[:, [0, -1]].any()]
    found = measure_directions(masks, 0)
    assert found.edges == pytest.approx(edges)
    assert (found.edge_t > 4) == (edges != 0)


def test_objects_below_the_centre() -> None:
    low = measure_directions(drawn(40, 10, 10, highest=30), 0)
    assert low.upright_t > 4
    assert low.upright_offset > 0.15
    anywhere = measure_directions(drawn(400, 10, 10), 0)
    assert anywhere.upright_t < 4
    assert anywhere.upright_offset < 0.15


def test_turned_masks_show_the_turned_direction() -> None:
    masks = drawn(40, 6, 30)
    flat, turned = measure_directions(masks, 0), measure_directions([np.rot90(mask) for mask in masks], 0)
    assert turned.edges == pytest.approx(-flat.edges)
    assert turned.edge_t == pytest.approx(flat.edge_t)
    assert turned.upright_offset == pytest.approx(-flat.upright_offset)


def test_nothing_is_said_of_few_images() -> None:
    assert measure_directions(drawn(7, 4, 60), 0) == Directions(0.0, 0.0, 0.0, 0.0)
    empty = np.full((64, 96), IGNORED, np.uint8)
    assert measure_directions([empty] * 40, 0) == Directions(0.0, 0.0, 0.0, 0.0)
    assert measure_directions([], 0) == Directions(0.0, 0.0, 0.0, 0.0)
