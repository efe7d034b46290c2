"""What mask codes mean: found from all masks together, told, or refused with the flag that settles it."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from support.codings import BLACK, codes_of, colors, find, jpeg, palette_mask, refused, shapes, survey, values
from support.refusal import raises
from ubend.core.errors import DataError, SettingError
from ubend.labels.class_checks import find_unknown_values
from ubend.labels.class_table import ANY_DISTANCE, IGNORED
from ubend.labels.classes import LabelHints, find_classes
from ubend.labels.label_values import LabelArray
from ubend.labels.value_table import parse_table

# Values


def test_black_and_white() -> None:
    labels, remarks = find(values({0: 90, 255: 10}), values({0: 5}))
    assert codes_of(labels) == [0, 255]
    assert labels.names == ("background", "foreground")
    assert (labels.reach, labels.others, remarks) == (0, None, [])


@given(st.integers(0, 200), st.integers(2, 50))
def test_class_numbers_from_anywhere(first: int, classes: int) -> None:
    numbers = range(first, first + classes)
    labels, remarks = find(*(values({a: 5, b: 5}) for a, b in pairwise(numbers)))
    assert codes_of(labels) == list(numbers)
    assert labels.classes == classes == len(labels.colors) == len(set(labels.names))
    assert remarks == []


@given(st.integers(2, 40))
def test_255_beside_class_numbers_is_ignored(classes: int) -> None:
    masks = [values({0: 9, i: 9, 255: 2}) for i in range(1, classes)]
    labels, remarks = find(*masks)
    assert codes_of(labels) == list(range(classes))
    assert labels.ignored == (255,)
    assert len(remarks) == 1
    assert "255" in remarks[0]


@pytest.mark.parametrize("numbers", [(0, 85, 170, 255), (0, 128, 255), (0, 127, 255), (0, 2, 4), (3, 90), (1, 255)])
def test_evenly_spaced_values_are_classes(numbers: tuple[int, ...]) -> None:
    labels, _remarks = find(values(dict.fromkeys(numbers, 5)))
    assert codes_of(labels) == list(numbers)
    assert labels.ignored == ()


def test_a_resampled_mask_is_refused() -> None:
    """Its in-between values are no classes, and 255 still is one; names for all of them settle it."""
    masks = values({0: 900, 255: 90}), values({0: 90, 13: 1, 64: 2, 200: 1, 255: 9})
    says = refused(*masks)
    assert "0=name1,13=name2,64=name3" in says
    assert "*=nearest" in says
    assert codes_of(find(*masks, names=("a", "b", "c", "d", "e"))[0]) == [0, 13, 64, 200, 255]
    labels, remarks = find(*masks, table=("0=ground", "255=object", "*=nearest"))
    assert labels.classify(np.array([13, 64, 200], np.int32))[0].tolist() == [0, 0, 1]
    assert "4 pixels" in remarks[0]


def test_255_beside_unnamed_classes_is_offered_as_ignored() -> None:
    says = refused(LabelArray(np.array([[0, 1, 15, 255]], np.uint8), "value"))
    assert '--values "0=name1,1=name2,15=name3,255=ignored"' in says


def test_a_bilinear_set_is_refused() -> None:
    disc = Image.fromarray((255 * (np.hypot(*np.mgrid[-32:32, -32:32]) < 20)).astype(np.uint8))
    masks = [LabelArray(np.asarray(disc.resize((k, k), Image.Resampling.BILINEAR)), "value") for k in (100, 91, 77)]
    says = refused(*masks)
    assert '--values "0=background,255=object,*=nearest"' in says or "*=nearest" in says
    labels, _remarks = find(*masks, table=("0=a", "255=b", "*=nearest"))
    assert codes_of(labels) == [0, 255]


def test_names_for_all_values_make_255_a_class() -> None:
    assert codes_of(find(values({0: 5, 1: 5, 255: 5}), names=("a", "b", "c"))[0]) == [0, 1, 255]


def test_two_codings_of_one_thing() -> None:
    """0 and 1 in some masks, 0 and 255 in others: is 255 the foreground, or not scored? Nobody knows."""
    masks = values({0: 9, 1: 3}), values({0: 9, 255: 3}), values({0: 7})
    says = refused(*masks)
    assert "255" in says
    for table in ("0=background,1=class 1,255=class 1", "0=background,1=class 1,255=ignored"):
        assert f'--values "{table}"' in says
        assert find(*masks, table=tuple(table.split(",")))[0].classes == 2
    assert find(*masks, values({0: 1, 1: 1, 255: 1}))[0].ignored == (255,)  # a border tells


def test_objects_counted_up() -> None:
    masks = [values(dict.fromkeys(range(k + 1), 9)) for k in (3, 20, 7, 15, 40)]
    says = refused(*masks)
    assert "41" in says
    assert '--values "0=background,*=object"' in says
    labels, _remarks = find(*masks, table=("0=background", "*=object"))
    assert labels.classify(np.arange(300, dtype=np.int32))[0].tolist() == [0] + [1] * 299


def test_few_objects_counted_up() -> None:
    """No classes: each mask holds 1, 2, ..., k without a gap. Four classes of which one is missing somewhere are."""
    masks = [values(dict.fromkeys(range(k + 1), 9)) for k in (1, 3, 2, 4, 4, 0)]
    says = refused(*masks)
    assert '--values "0=background,*=object"' in says
    assert '--values "0=background,1=class 1,2=class 2,3=class 3,4=class 4"' in says
    assert find(*masks, names=("background", "a", "b", "c", "d"))[0].classes == 5
    assert find(*masks, values({0: 9, 2: 9}))[0].classes == 5
    assert (
        find(*(values(dict.fromkeys(range(k + 1), 9)) for k in (0, 1, 2, 3)))[0].classes == 4
    )  # may be nested classes


def test_soft_edges_are_offered_as_the_nearest_class() -> None:
    masks = values({0: 900, 255: 90}), values({0: 90, **dict.fromkeys(range(10, 250, 20), 1), 255: 9})
    assert '--values "0=background,255=object,*=nearest"' in refused(*masks)
    ids = values({0: 9000, **dict.fromkeys(range(1, 70, 4), 10), 77: 10})  # one object of many is no edge
    assert '*=nearest"' not in refused(ids)
    assert '--values "0=background,*=object"' in refused(ids)


def test_a_background_of_few_pixels_is_said() -> None:
    """REFUGE: the cup is 0, the disc 128, all else 255."""
    masks = [values({0: 5, 128: 10, 255: 985})]
    (remark,) = find(*masks)[1]
    suggestion = "255=background,0=class 1,128=class 2"
    assert f'--values "{suggestion}"' in remark
    labels, remarks = find(*masks, table=tuple(suggestion.split(",")))
    assert (labels.names, remarks) == (("background", "class 1", "class 2"), [])
    assert find(*masks, names=("cup", "disc", "rest"))[1] == []
    (remark,) = find(values({0: 50, 255: 950}))[1]
    assert '--values "255=background,0=foreground"' in remark
    assert find(values({0: 300, 255: 700}))[1] == []


def test_many_classes_are_no_objects() -> None:
    """Of 21 classes each image shows some, not the first ones."""
    labels, _remarks = find(*(values({0: 9, i: 9}) for i in range(1, 21)))
    assert codes_of(labels) == list(range(21))


@pytest.mark.parametrize("top", [300, 40_000])
def test_deep_ids(top: int) -> None:
    says = refused(values({0: 9, **dict.fromkeys(range(top - 100, top), 2)}))
    assert "101" in says
    assert "*=object" in says
    labels, _remarks = find(values({0: 9, top: 2}))
    assert codes_of(labels) == [0, top]


def test_empty_masks() -> None:
    assert " 0;" in refused(values({0: 100}), key="data.masks")
    assert " 0;" in refused(values({0: 10_000, 1: 3}, lossy=True), key="data.masks")
    assert "#ff0000" in refused(colors({0xFF0000: 9}), key="data.masks")


def test_more_classes_than_can_be_learnt() -> None:
    names = tuple(f"c{i}" for i in range(300))
    says = refused(values(dict.fromkeys(range(300), 1)), names=names, key="data.classes")
    assert "300" in says
    assert "254" in says


# Names


def test_wrong_names() -> None:
    mask = values({0: 5, 255: 5})
    says = refused(mask, names=("a", "b", "c"), key="data.classes")
    assert "(0, 255)" in says
    assert "(a, b, c)" in says
    assert "--classes" in says
    assert "a, a" in refused(mask, names=("a", "a"), key="data.classes")
    assert "near" in refused(mask, names=("a", "near"), key="data.classes")
    assert find(mask, names=("a", "b"))[0].names == ("a", "b")


def test_a_layout_that_knows_its_values() -> None:
    told = {"names": ("pet", "background", "contour"), "values": (1, 2, 3)}
    labels, remarks = find(values({1: 5, 2: 5}), **told)
    assert codes_of(labels) == [1, 2, 3]  # a class that no mask holds is a class all the same, and it is reported
    assert len(remarks) == 1
    assert "contour" in remarks[0]
    masks = survey(values({1: 5, 2: 5}), values({1: 2, 7: 10, 9: 1}), values({3: 1}))
    assert {k: v.tolist() for k, v in find_unknown_values(masks, labels).items()} == {1: [7, 9]}


# JPEG


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_jpeg_of_black_and_white(quality: int) -> None:
    index = shapes(2, 0)
    mask = jpeg(255 * index, None, quality)
    pixels = np.bincount(mask.values.reshape(-1), minlength=256)
    assert np.count_nonzero(pixels) > 10  # or this is no test
    labels, remarks = find(mask)
    assert codes_of(labels) == [0, 255]
    out, strangers = labels.translate(mask)[:2]
    assert strangers.size == 0
    assert set(np.unique(out)) == {0, 1}
    assert (out != index).mean() < 0.005
    assert remarks == [
        f"pixels with in-between values ({np.count_nonzero(pixels[1:255])} values, {pixels[1:255].sum()} pixels, "
        f"{pixels[1:255].sum() / pixels.sum():.2%}) were assigned to the nearest class"
    ]


def test_photographs_are_no_masks() -> None:
    """More pixels between two values than with them: nothing is assigned to the nearest class."""
    between = dict.fromkeys(range(1, 255), 40)
    hints = LabelHints(table=("0=a", "255=b", "*=nearest"))
    with raises(DataError, key="data.values", named=["photographs", "--masks"]):
        find_classes(survey(values({0: 3000, 255: 3000} | between)), hints)


def test_a_small_foreground_of_jpeg_is_found() -> None:
    assert codes_of(find(values({0: 100_000, **dict.fromkeys(range(250, 256), 30)}, lossy=True))[0]) == [0, 255]


@given(st.sets(st.integers(0, 8), min_size=2, max_size=6), st.integers(0, 2**32))
def test_jpeg_noise_goes_to_the_nearest_of_many_classes(steps: set[int], seed: int) -> None:
    numbers = sorted(30 * step for step in steps)
    rng = np.random.default_rng(seed)
    assume(any(24 <= value < 232 for value in numbers))  # else black and white
    noise = rng.choice([v for v in range(256) if v not in numbers], 20)
    labels, _remarks = find(values(dict.fromkeys(numbers, 10_000) | dict.fromkeys(noise.tolist(), 1), lossy=True))
    assert codes_of(labels) == numbers
    index = labels.classify(noise.astype(np.int32))[0]
    distance = np.abs(noise[:, None] - np.array(numbers)[None])
    assert (distance[np.arange(20), index] == distance.min(axis=1)).all()


def test_masks_of_two_codings_beside_each_other() -> None:
    """Some JPEG of 0 and 255, others PNG of 0, 1, 2: those would all be background."""
    says = refused(jpeg(255 * shapes(2, 0), None, 80), values({0: 900, 1: 50, 2: 50}))
    assert "1, 2" in says
    assert "--values" in says
    labels, _remarks = find(jpeg(255 * shapes(2, 0), None, 80), values({0: 900, 255: 50}))
    assert codes_of(labels) == [0, 255]
    assert "300" in refused(jpeg(255 * shapes(2, 0), None, 80), values({0: 900, 300: 50}))


def test_jpeg_beside_a_told_table() -> None:
    mask = jpeg(255 * shapes(2, 0), None, 80)
    labels, _remarks = find(mask, table=("0=ground", "255=polyp"))
    assert labels.reach == ANY_DISTANCE
    assert not labels.translate(mask)[1].size
    strict = find_classes(survey(mask), LabelHints(table=("0=ground", "255=polyp", "*=ignored")))[0]
    assert set(np.unique(strict.translate(mask)[0])) == {0, 1, IGNORED}


# A class table in the folder

TABLE: dict[str, Any] = {"names": ("void", "road", "sky"), "colors": (BLACK, (128, 64, 128), (70, 130, 180))}


def test_a_table_of_colours() -> None:
    labels, remarks = find(colors({0: 9, 0x804080: 3}), **TABLE)
    assert labels.names == ("void", "road", "sky")
    assert labels.colors == TABLE["colors"]
    assert "(1): sky;" in remarks[0]
    labels, remarks = find(colors({0: 9, 0x804080: 3, 0x83427D: 1}), **TABLE)  # off by a few
    assert labels.classify(np.array([0x83427D], np.int32))[0].tolist() == [1]
    assert "1 pixels" in remarks[1]


def test_names_for_a_table() -> None:
    """--classes beside --values names the classes of the table, in their order."""
    masks, table = survey(colors({0: 9, 0x804080: 3})), ("#000000=a", "#804080=b", "#ffffff=ignored")
    labels, _remarks = find_classes(masks, LabelHints(table=table, names=("ground", "road")))
    assert labels.names == ("ground", "road")
    assert labels == parse_table(("#000000=ground", "#804080=road", "#ffffff=ignored"))
    with raises(SettingError, key="data.classes", named=["ground, road, sky"]):
        find_classes(masks, LabelHints(table=table, names=("ground", "road", "sky")))


def test_a_wholly_unknown_colour_is_found() -> None:
    masks = survey(colors({0: 9, 0x804080: 3}), colors({0: 9, 0x00FF00: 3}))
    labels, _remarks = find_classes(masks, LabelHints(**TABLE))
    assert {k: v.tolist() for k, v in find_unknown_values(masks, labels).items()} == {1: [0x00FF00]}


def test_a_table_and_masks_of_numbers() -> None:
    labels, remarks = find(values({0: 9, 2: 3}), values({1: 3, 255: 1}), **TABLE)
    assert (labels.kind, codes_of(labels), labels.ignored) == ("value", [0, 1, 2], (255,))
    assert labels.colors == TABLE["colors"]
    assert "255" in remarks[0]
    masks = survey(values({0: 9, 7: 3}))
    assert find_unknown_values(masks, find_classes(masks, LabelHints(**TABLE))[0])[0].tolist() == [7]


def test_a_table_and_palettes_in_its_colours() -> None:
    """Read by colour, whatever the index."""
    labels, _remarks = find(palette_mask({0: 9, 1: 3}, BLACK, (70, 130, 180)), **TABLE)
    assert labels.kind == "color"
    assert labels.translate(palette_mask({0: 9, 1: 3}, BLACK, (70, 130, 180)))[0].max() == 2


def test_a_table_with_one_colour_twice() -> None:
    refused(colors({0: 9, 1: 2}), names=("a", "b"), colors=(BLACK, BLACK), key="class table")


# Strangers


def test_strangers_of_the_other_kind() -> None:
    masks = survey(values({0: 9, 255: 3}), colors({0: 9, 0xFF0000: 3}))
    labels, _remarks = find_classes(masks, LabelHints(table=("0=a", "255=b")))
    assert {k: v.tolist() for k, v in find_unknown_values(masks, labels).items()} == {1: [-1, -1]}


@given(st.lists(st.sets(st.integers(0, 12), min_size=1), min_size=1, max_size=20))
def test_strangers_are_named_by_mask(held: list[set[int]]) -> None:
    masks = survey(*(values(dict.fromkeys(sorted(mine), 1)) for mine in held))
    labels = parse_table(["0=a", "1..4=b", "9=ignored"])
    known = {0, 1, 2, 3, 4, 9}
    want = {number: sorted(mine - known) for number, mine in enumerate(held) if mine - known}
    assert {k: v.tolist() for k, v in find_unknown_values(masks, labels).items()} == want


@given(st.sets(st.integers(1, 30), min_size=1), st.integers(0, 9), st.booleans())
def test_names_of_classes_that_occur_in_no_mask(others: set[int], more: int, white: bool) -> None:
    """Value k is the name in line k, however many of the names occur."""
    names = ("null", *(f"class of line {i}" for i in range(1, max(others) + 1 + more)))
    held = {**dict.fromkeys((0, *others), 5), **({255: 1} if white else {})}
    assume(len(held) < len(names))
    labels, remarks = find(values(held), names=names)
    assert labels.names == names
    assert [names[i] for i in labels.classify(np.array(sorted(others), np.int32))[0]] == [
        names[i] for i in sorted(others)
    ]
    assert labels.ignored == ((255,) if white else ())
    absent = [name for number, name in enumerate(names) if number not in held]
    assert f"({len(absent)})" in remarks[0]
    assert absent[0] in remarks[0]


@pytest.mark.parametrize("numbers", [(0, 255), (1, 2, 4), (0, 1, 9)])
def test_names_that_do_not_tell_their_values(numbers: tuple[int, ...]) -> None:
    """Black and white, numbers that may begin with 0 or 1, and numbers beyond the names."""
    says = refused(values(dict.fromkeys(numbers, 5)), key="data.classes", names=("a", "b", "c", "d", "e"))
    assert "5 class names" in says


@pytest.mark.parametrize(
    "mask",
    [values({0: 90, 255: 10}), values({0: 90, 1: 10}), jpeg(255 * shapes(2, 3), None, 80)],
    ids=["255", "1", "JPEG"],
)
def test_one_name_of_two_is_that_of_the_foreground(mask: LabelArray) -> None:
    """Of more names than one, any may be the missing one."""
    labels, remarks = find(mask, names=("polyp",))
    assert labels.names == ("background", "polyp")
    assert "background" in remarks[0]
    assert '--classes "background,cat,dog"' in refused(
        values({0: 5, 1: 5, 2: 5}), key="data.classes", names=("cat", "dog")
    )
