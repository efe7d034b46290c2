"""The eight orientations of a square image: turned by multiples of 90 degrees, and flipped."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

VIEWS = 8


def turn(planes: NDArray[Any], view: int) -> NDArray[Any]:
    """(..., h, w) turned by 90 degrees `view % 4` times, and from view 4 on also transposed; `view` below VIEWS."""
    turned = np.rot90(planes, view % 4, axes=(-2, -1))
    return turned.swapaxes(-1, -2) if view >= 4 else turned


def turn_coefficients(coefficients: NDArray[np.float32], view: int) -> NDArray[np.float32]:
    """The cosine transform of turned images, from that of the images.

    A flip changes the signs of the odd frequencies of its axis, and transposition exchanges the axes.

    Args:
        coefficients: (N, F * F) DCT-II coefficients of the F lowest frequencies of each axis.
        view: as in `turn`.
    """
    place, sign = _turned_places(int(np.sqrt(coefficients.shape[1])), view)
    return np.asarray(coefficients[:, place] * sign)


@cache
def _turned_places(side: int, view: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(F * F) place of each coefficient of the turned image in that of the image, and its sign."""
    planes = np.arange(1, side**2 + 1).reshape(side, side)
    signs = (-1) ** np.arange(side)[:, None]
    for _quarter in range(view % 4):
        planes = planes.T * signs  # turning is transposing, then flipping the rows
    flat = (planes.T if view >= 4 else planes).reshape(-1)
    return np.abs(flat) - 1, np.sign(flat).astype(np.float32)


def _compare_views() -> NDArray[np.int64]:
    """(VIEWS, VIEWS): the view r for which `turn(turn(x, r), b)` is `turn(x, a)`, at [a, b]."""
    probe = np.arange(9).reshape(3, 3)
    return np.array(
        [
            [
                next(r for r in range(VIEWS) if np.array_equal(turn(turn(probe, r), b), turn(probe, a)))
                for b in range(VIEWS)
            ]
            for a in range(VIEWS)
        ]
    )


BETWEEN = _compare_views()  # if x in view a is like y in view b, then x in view BETWEEN[a, b] is like y
INVERSE = BETWEEN[0]  # if x in view v is like y, then y in view INVERSE[v] is like x
