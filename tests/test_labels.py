"""The class table: codes to class indices, near codes, all other codes; colours and names."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.refusal import raises
from ubend.core.errors import DataError, SettingError
from ubend.labels.class_table import (
    ANY_DISTANCE,
    IGNORED,
    RESERVED_NAMES,
    LabelMap,
    background_class,
    default_colors,
    make_label_map,
    name_color,
)
from ubend.labels.label_values import LabelArray, ValueKind, pack_colors, unpack_color


def values(*rows: list[int], dtype: type = np.uint8) -> LabelArray:
    return LabelArray(np.array(rows, dtype), "value")


def test_black_and_white() -> None:
    labels = make_label_map([0, 255])
    assert labels.names == ("background", "foreground")
    index, strangers = labels.translate(values([0, 255, 7]))[:2]
    assert index.tolist() == [[0, 1, IGNORED]]
    assert strangers.tolist() == [7]
    assert labels.describe() == "0 -> background, 255 -> foreground"


# A naive reading of what LabelMap's docstring promises, one code at a time.


def naive(labels: LabelMap, code: int) -> tuple[int, bool]:
    known = [(c, index) for index, codes in enumerate(labels.codes) for c in codes]
    known += [(c, IGNORED) for c in labels.ignored]
    for c, index in known:
        if c == code:
            return index, True

    def distance(c: int) -> float:
        if labels.kind == "value":
            return abs(c - code)
        return sum((a - b) ** 2 for a, b in zip(unpack_color(c), unpack_color(code), strict=True)) ** 0.5

    if labels.reach:
        nearest, index = min(known, key=lambda one: (distance(one[0]), one[0]))
        elsewhere = [distance(c) for c, other in known if other != index]
        clear = all(2 * distance(nearest) < d for d in elsewhere)
        if labels.reach >= ANY_DISTANCE or (distance(nearest) <= labels.reach and clear):
            return index, True
    return (IGNORED, False) if labels.others is None else (labels.others, True)


@st.composite
def tables(draw: st.DrawFn) -> LabelMap:
    kind: ValueKind = draw(st.sampled_from(["value", "color"]))
    top = 300 if kind == "value" else 0xFFFFFF
    codes = draw(st.lists(st.integers(0, top), min_size=2, max_size=12, unique=True))
    ignored = draw(st.integers(0, min(2, len(codes) - 2)))
    own, left = codes[ignored:], tuple(codes[:ignored])
    cuts = sorted(draw(st.sets(st.integers(1, len(own)), max_size=4)) | {len(own)})
    table = tuple(tuple(own[a:b]) for a, b in zip([0, *cuts], cuts, strict=False))
    names = tuple(f"class {i}" for i in range(len(table)))
    reach = draw(st.sampled_from([0, 3, 8, 64, ANY_DISTANCE]))
    others = draw(st.sampled_from([None, IGNORED, 0]))
    return LabelMap(names, kind, table, default_colors(len(names)), left, reach, others)


@given(tables(), st.data())
def test_every_code_goes_where_the_rules_say(labels: LabelMap, data: st.DataObject) -> None:
    known = [c for codes in labels.codes for c in codes] + list(labels.ignored)
    top = 400 if labels.kind == "value" else 0xFFFFFF
    near = st.builds(lambda c, d: min(max(c + d, 0), top), st.sampled_from(known), st.integers(-6, 6))
    codes = data.draw(st.lists(st.integers(0, top) | near, min_size=1, max_size=30))
    index, found = labels.classify(np.array(codes, np.int32))
    for code, one, is_found in zip(codes, index.tolist(), found.tolist(), strict=True):
        assert (one, is_found) == naive(labels, code), code


@given(tables(), st.integers(0, 2**32))
def test_translation_is_pixel_by_pixel(labels: LabelMap, seed: int) -> None:
    rng = np.random.default_rng(seed)
    known = [c for codes in labels.codes for c in codes] + list(labels.ignored)
    pixels = rng.choice([*known, known[0] ^ 1, 0], (5, 9)).astype(np.int32)
    index, strangers = labels.translate(LabelArray(pixels, labels.kind))[:2]
    assert index.dtype == np.uint8
    wanted = [naive(labels, int(code)) for code in pixels.reshape(-1)]
    assert index.reshape(-1).tolist() == [one for one, _found in wanted]
    assert strangers.tolist() == sorted({int(c) for c, w in zip(pixels.reshape(-1), wanted, strict=True) if not w[1]})


def test_thousands_of_codes_in_bounded_memory() -> None:
    codes = tuple(range(0, 60_000, 2))
    labels = LabelMap(("a", "b"), "value", (codes, (65_535,)), default_colors(2), (), ANY_DISTANCE)
    index, found = labels.classify(np.arange(1, 65_000, 2, dtype=np.int32))
    assert found.all()
    assert index[:29_999].max() == 0
    assert index[-1] == 1


# Colours and values


def test_greys_and_palettes_as_colours() -> None:
    labels = make_label_map([0, 0xFF0000, 0xFFFFFF], kind="color")
    index, strangers = labels.translate(values([0, 255, 7]))[:2]
    assert (index.tolist(), strangers.tolist()) == ([[0, 2, IGNORED]], [0x070707])
    palette = np.zeros((256, 3), np.uint8)
    palette[1] = 255, 0, 0
    index, strangers = labels.translate(LabelArray(np.array([[1, 0]], np.uint8), "value", palette))[:2]
    assert (index.tolist(), strangers.tolist()) == ([[1, 0]], [])


def test_masks_of_the_other_kind() -> None:
    with raises(DataError, key="color"):
        make_label_map([0, 255]).translate(LabelArray(np.array([[0xFF0000]], np.int32), "color"))
    with raises(DataError, key="color", named=["300"]):
        make_label_map([0, 255], kind="color").translate(values([0, 300], dtype=np.uint16))


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=20))
def test_packed_colours(colors: list[tuple[int, int, int]]) -> None:
    packed = pack_colors(np.array(colors, np.uint8))
    assert [f"{code:06x}" for code in packed.tolist()] == ["{:02x}{:02x}{:02x}".format(*color) for color in colors]
    assert [unpack_color(code) for code in packed.tolist()] == colors


def test_colour_names() -> None:
    assert name_color((255, 0, 0)) == "red"
    assert name_color((252, 3, 2)) == "red"
    assert name_color((90, 30, 75)) == "#5a1e4b"
    labels = make_label_map([0, 0xFE0000, 0xFF0000, 0x123456], kind="color")
    assert labels.names == ("background", "#fe0000", "#ff0000", "#123456")
    assert labels.colors == ((0, 0, 0), (254, 0, 0), (255, 0, 0), (18, 52, 86))
    assert labels.describe().startswith("#000000 -> background, #fe0000 -> ")


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


@pytest.mark.parametrize("name", RESERVED_NAMES)
def test_reserved_names(name: str) -> None:
    make_label_map([0, 1], ["background", "object"])
    with raises(DataError, key="data.classes", named=[name]):
        make_label_map([0, 1], ["background", name])


# A model's table and another coding


def test_in_order_of_a_model() -> None:
    model = make_label_map([0, 1, 2], ["background", "cell", "edge"])
    other = LabelMap(("cell", "background"), "color", ((0xFF0000,), ()), default_colors(2), (7,), 8, 1)
    mine = other.in_order_of(model.names, model.colors)
    assert mine.names == model.names
    assert mine.codes == ((), (0xFF0000,), ())
    assert (mine.colors, mine.ignored, mine.reach, mine.others) == (model.colors, (7,), 8, 0)
    assert mine.classify(np.array([0xFF0000, 0x00FF00, 7], np.int32))[0].tolist() == [1, 0, IGNORED]
    with raises(SettingError, key="data.values", named=["moon", "background, cell, edge"]):
        make_label_map([0, 1], ["background", "moon"]).in_order_of(model.names, model.colors)


def test_the_class_of_all_other_values_is_described() -> None:
    colors = default_colors(2)
    assert LabelMap(("a", "b"), "value", ((0,), ()), colors, others=1).describe() == "0 -> a, all others -> b"
    assert LabelMap(("a", "b"), "value", ((0,), (7,)), colors, others=0).describe() == "0, all others -> a, 7 -> b"
    assert LabelMap(("a", "b"), "value", ((0,), (7,)), colors, others=IGNORED).describe() == "0 -> a, 7 -> b"
