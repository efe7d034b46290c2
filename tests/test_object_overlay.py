"""Overlays of objects: outlines visible on any ground, and the numbers of the table at their objects."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ImageDraw

from ubend.portable import object_overlay
from ubend.portable.object_overlay import draw_objects

DISCS = [(30, 30, 12), (30, 70, 12), (70, 30, 12), (70, 70, 2), (70, 80, 2), (98, 50, 1)]  # row, column, radius


def draw_ids() -> NDArray[np.uint32]:
    """Objects 1 to 6: three large, three too small for a number, the last at the rim."""
    y, x = np.mgrid[:100, :100]
    ids = np.zeros((100, 100), np.uint32)
    for number, (row, column, radius) in enumerate(DISCS, 1):
        ids[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = number
    return ids


def luma(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    weighted: NDArray[np.float64] = pixels @ np.array([0.299, 0.587, 0.114])
    return weighted


@pytest.mark.parametrize(
    "ground", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (120, 60, 160), (70, 20, 120), (0, 200, 0), (250, 220, 60)]
)
def test_outlines_can_be_seen(ground: tuple[int, int, int]) -> None:
    """On fluorescence, bright field, H&E and others: each outline has pixels far lighter or darker than the image."""
    ids = draw_ids()
    image = np.full((*ids.shape, 3), ground, np.uint8)
    page = np.asarray(draw_objects(image, ids))
    scale = len(page) // len(ids)
    for row, column, radius in DISCS[:3]:
        ray = page[row * scale, (column + radius - 3) * scale : (column + radius + 3) * scale]  # across the outline
        assert np.abs(luma(ray) - luma(np.array(ground))).max() > 80
    assert (image == ground).all()  # it is not drawn into


def test_numbers_are_those_of_the_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the object, or beside it where it is too small, and then on no other object and no other number."""
    written: list[tuple[str, float, float]] = []
    real = ImageDraw.ImageDraw.text

    def note(draw: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, **words: object) -> None:
        written.append((text, xy[1], xy[0]))
        real(draw, xy, text, **words)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    ids = draw_ids()
    page = draw_objects(np.zeros((*ids.shape, 3), np.uint8), ids)
    scale = page.width // ids.shape[1]
    assert [text for text, _y, _x in written] == ["1", "2", "3", "4", "5", "6"]
    for text, y, x in written:
        there = np.argwhere(ids == int(text))
        distance = np.hypot(*(there - (y / scale, x / scale)).T).min()
        under = ids[int(y / scale), int(x / scale)]
        if int(text) <= 3:
            assert under == int(text)
        else:
            assert under == 0
            assert distance < 10
    places = np.array([(y, x) for _text, y, x in written])
    apart = np.hypot(*(places[:, None] - places[None]).T) + 1e9 * np.eye(len(places))
    assert apart.min() > 10


def test_a_long_object_has_its_number_inside() -> None:
    """The middle of a ring is not in it; the widest place is."""
    y, x = np.mgrid[:600, :600]
    radius = np.hypot(y - 300, x - 300)
    ring = (radius < 280) & (radius > 180)
    row, column, depth = object_overlay._find_widest(ring)
    assert ring[int(row), int(column)]
    assert depth == pytest.approx(50, abs=4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3000, 8), (40, 2500)])
def test_any_size(shape: tuple[int, int]) -> None:
    """A whole multiple of the image, never longer than 2048 px unless the image is; with and without objects."""
    for ids in (np.zeros(shape, np.uint32), np.ones(shape, np.uint32)):
        page = draw_objects(np.full((*shape, 3), 90, np.uint8), ids)
        scale = page.width // shape[1]
        assert page.size == (shape[1] * scale, shape[0] * scale)
        assert scale == 1 or max(page.size) <= 2048
