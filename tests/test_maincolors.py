"""Colours and palettes: which are classes, which are noise or blends, and what is asked about."""

import numpy as np
import pytest
from PIL import Image

from support.codings import (
    BLACK,
    RED,
    WHITE,
    codes_of,
    colors,
    find,
    jpeg,
    palette_mask,
    refused,
    scribble,
    shapes,
    values,
)
from ubend.labels.class_table import ANY_DISTANCE, IGNORED, NOISE_REACH, ROUNDING_REACH
from ubend.labels.label_values import LabelArray, pack_colors
from ubend.labels.value_table import parse_table


@pytest.mark.parametrize("quality", [60, 75, 95])
@pytest.mark.parametrize("second", [(255, 0, 0), (255, 255, 0), (0, 0, 255), (60, 180, 75)])
def test_jpeg_of_two_colours(second: tuple[int, int, int], quality: int) -> None:
    palette = np.array([(0, 0, 0), second])
    index = shapes(2, 1)
    mask = jpeg(index, palette, quality)
    labels, _remarks = find(mask)
    assert (labels.kind, labels.classes, labels.reach) == ("color", 2, ANY_DISTANCE)
    out, strangers = labels.translate(mask)[:2]
    assert strangers.size == 0
    assert (out != index).mean() < 0.02  # chroma is saved at half the size


def test_jpeg_of_class_indices_is_not_called_empty() -> None:
    assert "too close" in refused(jpeg(shapes(3, 2), None, 100), key="data.masks")
    assert "empty" in refused(jpeg(0 * shapes(3, 2), None, 100), key="data.masks")


def test_jpeg_of_four_colours() -> None:
    palette = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)])
    index = shapes(4, 2)
    labels, remarks = find(jpeg(index, palette, 90))
    assert (labels.classes, labels.reach, labels.others) == (4, NOISE_REACH, IGNORED)
    out, _strangers = labels.translate(jpeg(index, palette, 90))[:2]
    scored = out != IGNORED
    assert scored.mean() > 0.9
    order = [int(labels.classify(pack_colors(color.astype(np.uint8))[None])[0][0]) for color in palette]
    assert (out[scored] == np.array(order)[index][scored]).mean() > 0.99
    assert any("not scored" in remark for remark in remarks)


@pytest.mark.parametrize("quality", [60, 75, 90])
@pytest.mark.parametrize("third", [(0, 255, 0), (0, 0, 255)])
@pytest.mark.parametrize("width", [1, 3])
def test_a_class_in_thin_lines_is_not_lost(third: tuple[int, int, int], width: int, quality: int) -> None:
    """In JPEG a thin line keeps no colour of its own; two classes would be a silent mistake."""
    says = refused(
        *(jpeg(scribble(seed, width), np.array([(0, 0, 0), (255, 0, 0), third]), quality) for seed in (0, 1))
    )
    assert '--values "#' in says
    assert '*=nearest"' in says


@pytest.mark.parametrize("quality", [60, 75, 90])
def test_a_class_between_two_others_is_not_lost(quality: int) -> None:
    """Half a red between black and red: found, or asked for; never blends of the two."""
    masks = [jpeg(scribble(seed, 8), np.array([(0, 0, 0), (255, 0, 0), (128, 0, 0)]), quality) for seed in (0, 1)]
    if quality == 90:
        assert find(*masks)[0].names == ("background", "maroon", "red")
    else:
        assert '--values "#' in refused(*masks)


# Colours


def test_colours_are_classes() -> None:
    labels, remarks = find(colors({0: 90, 0xFF0000: 10}), colors({0: 5, 0x00FF00: 5, 0x123456: 1}))
    assert (labels.kind, codes_of(labels)) == ("color", [0, 0x00FF00, 0x123456, 0xFF0000])
    assert labels.names == ("background", "lime", "#123456", "red")
    assert '--values "#000000=background,#00ff00=lime,#123456=#123456,#ff0000=red"' in remarks[0]
    table = remarks[0].partition("--values ")[2].strip('"').split(",")
    assert parse_table(table).codes == labels.codes
    (remark,) = find(colors({0: 90, 0xFF0000: 10}), names=("ground", "road"))[1]
    assert '--values "#000000=ground,#ff0000=road"' in remark
    says = refused(colors({0: 90, 0xFF0000: 10, 0xFF: 5}), key="data.classes", names=("red", "blue"))
    assert '--values "#000000=background,#0000ff=blue,#ff0000=red"' in says


def test_grey_masks_among_coloured_ones() -> None:
    labels, _remarks = find(values({0: 9}), values({0: 3, 255: 2}), colors({0: 90, 0xFF0000: 10}))
    assert codes_of(labels) == [0, 0xFF0000, 0xFFFFFF]
    refused(values({0: 9, 256: 1}), colors({0: 90, 0xFF0000: 10}), key="color")


def test_colours_that_are_nearly_alike() -> None:
    """A slip of a few pixels is the colour beside it; a common one is a question."""
    labels, remarks = find(colors({0: 900, 0xFF0000: 500, 0xFE0101: 3}))
    assert codes_of(labels) == [0, 0xFF0000]
    assert labels.reach == ROUNDING_REACH
    assert "3 pixels" in remarks[1]
    says = refused(colors({0: 900, 0xFF0000: 500, 0xFE0101: 300}))
    assert "#fe0101, #ff0000" in says
    assert '--values "#000000=name1,#fe0101=name2,#ff0000=name3"' in says
    both = find(colors({0: 900, 0xFF0000: 500, 0xFE0101: 300}), table=("black=ground", "#ff0000=road", "#fe0101=road"))
    assert both[0].codes == ((0,), (0xFF0000, 0xFE0101))


def test_ids_in_the_red_channel_are_requested_about() -> None:
    refused(colors({0: 900, 0x010000: 500, 0x020000: 300}))


@pytest.mark.parametrize("classes", [2, 3])
def test_resampled_colours(classes: int) -> None:
    """Few colours, but most are blends: those are no classes."""
    palette = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0)], np.uint8)[:classes]
    index = shapes(classes, 5, 300)
    small = np.asarray(Image.fromarray(palette[index]).resize((290, 290), Image.Resampling.BILINEAR))
    mask = LabelArray(pack_colors(small), "color")
    assert len(np.unique(mask.values)) > 2 * classes
    labels, remarks = find(mask)
    assert codes_of(labels) == sorted(pack_colors(palette).tolist())
    assert len(remarks) >= 2


def test_a_few_blends_are_no_classes_either() -> None:
    blends = {k << 16: 3 for k in range(20, 240, 20)}
    labels, _remarks = find(colors({0: 9000, 0xFF0000: 3000, **blends}))
    assert codes_of(labels) == [0, 0xFF0000]


def test_a_real_table_of_rare_colours_keeps_them_all() -> None:
    """CamVid's 32 colours, many exactly between others, most of them rare."""
    steps = (0, 64, 128, 192)
    table = [r << 16 | g << 8 | b for r in steps for g in steps for b in steps][::2]
    shares = [max(2, int(200_000 * 0.75**i)) for i in range(32)]
    labels, _remarks = find(colors(dict(zip(table, shares, strict=True))))
    assert codes_of(labels) == sorted(table)


def test_photographs_are_no_masks() -> None:
    rng = np.random.default_rng(0)
    says = refused(LabelArray(rng.integers(0, 2**24, (300, 300)).astype(np.int32), "color"))
    assert "--values" in says
    says = refused(*(LabelArray(rng.integers(0, 256, (60, 60)).astype(np.uint8), "value") for _ in range(3)))
    assert "256" in says


# Palettes


def test_one_palette_is_read_as_indices() -> None:
    masks = [palette_mask({0: 9, 1: 3, 2: 1}, BLACK, RED, WHITE), palette_mask({0: 9, 2: 3}, BLACK, RED, WHITE)]
    labels, remarks = find(*masks)
    assert (labels.kind, codes_of(labels), remarks) == ("value", [0, 1, 2], [])


def test_palettes_that_differ_are_read_as_colours() -> None:
    masks = [palette_mask({0: 9, 1: 3}, BLACK, RED), palette_mask({0: 3, 1: 9}, RED, BLACK)]
    labels, remarks = find(*masks)
    assert (labels.kind, codes_of(labels)) == ("color", [0, 0xFF0000])
    assert "palettes of the masks differ" in remarks[0]
    for mask in masks:
        assert np.bincount(labels.translate(mask)[0].reshape(-1)).tolist() == [9, 3]


def test_a_palette_from_white_to_black() -> None:
    """Index 0 is white: it is not the background."""
    labels, remarks = find(palette_mask({0: 3, 1: 9}, WHITE, BLACK))
    assert codes_of(labels) == [0, 0xFFFFFF]
    assert labels.names == ("background", "white")
    assert "from light to dark" in remarks[0]
    labels, _remarks = find(palette_mask({0: 3, 1: 9}, BLACK, WHITE))
    assert (labels.kind, codes_of(labels)) == ("value", [0, 1])
    labels, _remarks = find(palette_mask({0: 3, 1: 9, 2: 2}, BLACK, BLACK, BLACK))  # no colours at all
    assert (labels.kind, codes_of(labels)) == ("value", [0, 1, 2])
