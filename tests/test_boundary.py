"""Agreement of outlines, against all pairs of pixels counted one by one."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from ubend.labels.class_table import IGNORED
from ubend_lessons.boundary import boundary_dice


def outline(mask: NDArray[np.uint8], kind: int, known: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Pixels of a class with a known neighbour, above, below or beside, of another."""
    found = []
    for (y, x), value in np.ndenumerate(mask):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inside = [p for p in around if 0 <= p[0] < mask.shape[0] and 0 <= p[1] < mask.shape[1]]
        if value == kind and known[y, x] and any(known[p] and mask[p] != kind for p in inside):
            found.append((y, x))
    return found


@given(st.data(), st.sampled_from([0.0, 1.0, 2.0, 3.5]))
def test_as_counted_slowly(data: st.DataObject, tolerance: float) -> None:
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    mask = data.draw(arrays(np.uint8, shape, elements=st.integers(0, 1)))
    truth = data.draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 1, IGNORED])))
    found = boundary_dice(mask, truth, 2, tolerance)
    for kind in range(2):
        a, b = outline(mask, kind, truth != IGNORED), outline(truth, kind, truth != IGNORED)
        near = sum(any(math.dist(p, q) <= tolerance for q in b) for p in a)
        near += sum(any(math.dist(p, q) <= tolerance for q in a) for p in b)
        if a or b:
            assert math.isclose(found[kind], near / (len(a) + len(b)))
        else:
            assert math.isnan(found[kind])


def test_a_shifted_square() -> None:
    """Moved by two pixels it agrees within two, and only where it runs along itself within none."""
    truth = np.zeros((20, 20), np.uint8)
    truth[5:12, 5:12] = 1
    moved = np.roll(truth, 2, axis=1)
    assert boundary_dice(moved, truth, 2, 2.0)[1] == 1
    assert 0 < boundary_dice(moved, truth, 2, 0.0)[1] < 0.6
    assert boundary_dice(truth, truth, 2, 0.0).tolist() == [1, 1]
