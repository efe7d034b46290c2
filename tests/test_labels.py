"""What mask values mean: class numbers, ignored borders, JPEG noise, and what is refused."""

import io

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from ubend.data.labels import (
    IGNORED,
    LabelMap,
    background_class,
    default_colors,
    detect_label_map,
    make_label_map,
)
from ubend.errors import DataError


def count(**values: int) -> NDArray[np.int64]:
    """count(v0=10, v255=3) -> (256,) pixels per value."""
    pixels = np.zeros(256, np.int64)
    for name, number in values.items():
        pixels[int(name[1:])] = number
    return pixels


def refused(pixels: NDArray[np.int64], lossy: bool = False, **others: list[str] | list[int]) -> str:
    with pytest.raises(DataError) as caught:
        detect_label_map(pixels, lossy, **others)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert "{" not in str(caught.value)
    return str(caught.value)


def test_black_and_white() -> None:
    labels, remarks = detect_label_map(count(v0=90, v255=10), lossy=False)
    assert labels.values == (0, 255)
    assert labels.names == ("background", "foreground")
    assert remarks == []
    index = labels.index(np.array([[0, 255, 7]], np.uint8))
    assert index.tolist() == [[0, 1, IGNORED]]
    assert labels.describe() == "0 -> background, 255 -> foreground"


@given(st.integers(0, 200), st.integers(2, 50))
def test_class_numbers_from_anywhere(first: int, classes: int) -> None:
    pixels = np.zeros(256, np.int64)
    pixels[first : first + classes] = 5
    labels, remarks = detect_label_map(pixels, lossy=False)
    assert labels.values == tuple(range(first, first + classes))
    assert labels.classes == classes == len(labels.colors) == len(labels.names)
    assert len(remarks) == (classes > 12)  # so many are perhaps objects
    assert labels.index(np.arange(first, first + classes, dtype=np.uint8)[None]).tolist() == [list(range(classes))]


@given(st.integers(2, 40))
def test_255_beside_class_numbers_is_ignored(classes: int) -> None:
    pixels = np.zeros(256, np.int64)
    pixels[:classes] = pixels[255] = 9
    labels, remarks = detect_label_map(pixels, lossy=False)
    assert labels.values == tuple(range(classes))
    assert labels.index(np.array([[255]], np.uint8)).item() == IGNORED
    assert len(remarks) == 1 + (classes > 12)
    assert "255" in remarks[0]
    assert labels.ignored == (255,)


@pytest.mark.parametrize("values", [(0, 85, 170, 255), (0, 128, 255), (0, 127, 255), (0, 2, 4), (3, 90)])
def test_evenly_spaced_values_are_classes(values: tuple[int, ...]) -> None:
    labels, _remarks = detect_label_map(count(**{f"v{value}": 5 for value in values}), lossy=False)
    assert labels.values == values
    assert labels.ignored == ()


def test_resampled_mask_is_refused() -> None:
    """One bilinearly resized mask among good ones: its in-between values are no classes, and 255 still is one."""
    pixels = count(v0=900, v255=90, v13=1, v64=2, v200=1)
    assert "do not tell the classes" in refused(pixels)
    labels, _remarks = detect_label_map(pixels, lossy=False, names=["a", "b", "c", "d", "e"])
    assert labels.values == (0, 13, 64, 200, 255)


def test_names_for_all_values_make_255_a_class() -> None:
    labels, _remarks = detect_label_map(count(v0=5, v1=5, v255=5), lossy=False, names=["a", "b", "c"])
    assert labels.values == (0, 1, 255)


def test_small_spread_foreground_of_jpeg_is_found() -> None:
    pixels = count(v0=100_000)
    pixels[250:256] = 30  # 0.2 % in all
    assert detect_label_map(pixels, lossy=True)[0].values == (0, 255)


def test_255_with_two_values_is_a_class() -> None:
    assert detect_label_map(count(v1=5, v255=5), lossy=False)[0].values == (1, 255)


@pytest.mark.parametrize("quality", [60, 90])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_mask_has_exactly_two_classes(quality: int, mode: str) -> None:
    y, x = np.mgrid[:120, :160]
    disc = ((y - 60) ** 2 + (x - 80) ** 2 < 35**2).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(disc * 255).convert(mode).save(file, "JPEG", quality=quality)
    saved = np.asarray(Image.open(file).convert("L"))
    pixels = np.bincount(saved.reshape(-1), minlength=256).astype(np.int64)
    assert np.count_nonzero(pixels) > 10  # or this is no test
    labels, remarks = detect_label_map(pixels, lossy=True)
    assert labels.values == (0, 255)
    index = labels.index(saved)
    assert set(np.unique(index)) == {0, 1}
    assert (index != disc).mean() < 0.005
    moved, kinds = int(pixels[1:255].sum()), np.count_nonzero(pixels[1:255])
    assert len(remarks) == 1
    assert remarks[0].startswith(f"{moved} pixels")
    assert f"with {kinds} in-between values" in remarks[0]


@given(st.sets(st.integers(0, 8), min_size=2, max_size=6), st.integers(0, 2**32))
def test_jpeg_noise_goes_to_the_nearest_of_many_classes(steps: set[int], seed: int) -> None:
    values = sorted(30 * step for step in steps)
    rng = np.random.default_rng(seed)
    assume(any(24 <= value < 232 for value in values))  # else black and white
    pixels = np.zeros(256, np.int64)
    pixels[values] = 10_000
    strangers = [v for v in range(256) if v not in values]
    noise = rng.choice(strangers, 20)
    pixels[noise] += 1
    labels, _remarks = detect_label_map(pixels, lossy=True)
    assert list(labels.values) == values
    index = labels.index(noise.astype(np.uint8)[None])[0]
    distance = np.abs(noise[:, None] - np.array(labels.values)[None])
    assert (distance[np.arange(20), index] == distance.min(axis=1)).all()


def test_empty_masks() -> None:
    assert "single value 0" in refused(count(v0=100))
    assert "single value 0" in refused(count(v0=10_000, v1=3), lossy=True)
    assert "all masks are empty" in refused(np.zeros(256, np.int64))


def test_too_many_values() -> None:
    says = refused(np.full(256, 4, np.int64))
    assert "256 different values" in says
    assert "PNG" in says
    pixels = np.zeros(256, np.int64)
    pixels[:64] = 1
    assert detect_label_map(pixels, lossy=False)[0].classes == 64
    pixels[64] = 1
    assert "65 different values" in refused(pixels)


def test_wrong_number_of_names() -> None:
    says = refused(count(v0=5, v255=5), names=["a", "b", "c"])
    assert "2 classes (values 0, 255)" in says
    assert "3 class names" in says
    assert "--classes" in says
    assert "differ" in refused(count(v0=5, v255=5), names=["a", "a"])
    assert detect_label_map(count(v0=5, v255=5), False, ["a", "b"])[0].names == ("a", "b")


def test_known_values() -> None:
    labels, remarks = detect_label_map(count(v1=5, v2=5), False, ["pet", "background", "contour"], [1, 2, 3])
    assert labels.values == (1, 2, 3)  # a class that no mask holds is a class all the same
    assert remarks == []
    says = refused(count(v1=5, v2=5, v7=10), names=["pet", "background", "contour"], known=[1, 2, 3])
    assert "7 (50.00%)" in says
    assert "1 -> pet" in says


@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=60, unique=True),
    st.booleans(),
    st.lists(st.integers(0, 255), max_size=3),
)
def test_tables_are_whole_and_survive_json(values: list[int], snap: bool, ignored: list[int]) -> None:
    labels = make_label_map(values, ignored=tuple(ignored), snap=snap)
    assert LabelMap.from_json(labels.to_json()) == labels
    table = labels.lookup()
    assert table.shape == (256,)
    assert table.dtype == np.uint8
    assert set(table.tolist()) <= {*range(len(values)), IGNORED}
    for index, value in enumerate(values):
        assert table[value] == (IGNORED if value in ignored else index)
    if not snap:
        assert (np.delete(table, values) == IGNORED).all()


@settings(max_examples=30)
@given(st.integers(2, 40))
def test_colors_differ(classes: int) -> None:
    colors = default_colors(classes)
    assert colors[0] == (0, 0, 0)
    assert len(set(colors)) == classes
    assert all(0 <= channel <= 255 for color in colors for channel in color)


def test_background_by_name() -> None:
    assert background_class(["pet", " Background", "contour"]) == 1
    assert background_class(["Nền", "khối u"]) == 0
    assert background_class(["cat", "dog"]) is None


def test_the_background_is_black_wherever_it_stands() -> None:
    colors = make_label_map([1, 2, 3], ["pet", "background", "contour"]).colors
    assert colors[1] == (0, 0, 0)
    assert len(set(colors)) == 3
    assert make_label_map([0, 1], ["a", "b"]).colors[0] == (0, 0, 0)
