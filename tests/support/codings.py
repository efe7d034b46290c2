"""What tests of class tables share: masks by their counts, as JPEG, and what is found in them."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ubend.core.errors import DataError
from ubend.labels.class_table import LabelMap
from ubend.labels.classes import LabelHints, find_classes
from ubend.labels.label_values import LabelArray, LabelScan, count_label_values, pack_colors
from ubend.labels.value_table import write_table


def survey(*masks: LabelArray) -> LabelScan:
    """What `scan_masks` would make of these masks."""
    entries = [count_label_values(mask.values) for mask in masks]
    shown = []
    for mask, (codes, _pixels) in zip(masks, entries, strict=True):
        if mask.kind == "color":
            shown.append(codes)
        elif mask.palette is not None:
            shown.append(pack_colors(mask.palette)[codes])
        else:
            shown.append(np.where(codes > 255, -1, codes * 0x010101))
    return LabelScan(
        np.array([mask.kind == "color" for mask in masks]),
        np.array([mask.palette is not None for mask in masks]),
        np.array([mask.lossy for mask in masks]),
        np.concatenate([[0], np.cumsum([len(codes) for codes, _pixels in entries])]),
        np.concatenate([codes for codes, _pixels in entries]),
        np.concatenate([pixels for _codes, pixels in entries]),
        np.concatenate(shown).astype(np.int32),
    )


def values(counts: dict[int, int], **facts: Any) -> LabelArray:
    """A mask that holds each value so often."""
    pixels = np.repeat(list(counts), list(counts.values()))
    return LabelArray(pixels[None].astype(np.uint8 if pixels.max() < 256 else np.uint16), "value", **facts)


def colors(counts: dict[int, int], lossy: bool = False) -> LabelArray:
    return LabelArray(np.repeat(list(counts), list(counts.values())).astype(np.int32)[None], "color", None, lossy)


def find(*masks: LabelArray, **told: Any) -> tuple[LabelMap, list[str]]:
    found = find_classes(survey(*masks), LabelHints(**told))
    again, _remarks = find_classes(survey(*masks), LabelHints(table=write_table(found[0])))
    assert (again.names, again.kind, again.codes, again.ignored) == (
        found[0].names,
        found[0].kind,
        found[0].codes,
        found[0].ignored,
    )
    every = np.unique(survey(*masks).entries(found[0].kind))  # data.toml given back means the same for each code
    for one, other in zip(again.classify(every), found[0].classify(every), strict=True):
        np.testing.assert_array_equal(one, other)
    return found


def refused(*masks: LabelArray, key: str = "data.values", **told: Any) -> str:
    """The sentence with which masks are refused; `key` is the error's."""
    with pytest.raises(DataError) as caught:
        find_classes(survey(*masks), LabelHints(**told))
    assert caught.value.key == key
    says = str(caught.value)
    assert "\n" not in says
    assert "{" not in says
    assert "#-" not in says
    return says


def codes_of(labels: LabelMap) -> list[int]:
    assert all(len(some) == 1 for some in labels.codes)
    return [some[0] for some in labels.codes]


def jpeg(index: NDArray[Any], palette: NDArray[Any] | None, quality: int) -> LabelArray:
    file = io.BytesIO()
    Image.fromarray((index if palette is None else palette[index]).astype(np.uint8)).save(file, "JPEG", quality=quality)
    pixels = np.asarray(Image.open(file))
    return LabelArray(
        pixels if palette is None else pack_colors(pixels), "value" if palette is None else "color", None, True
    )


def shapes(classes: int, seed: int, size: int = 160) -> NDArray[np.uint8]:
    """(size, size) of discs of all classes."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    index = np.zeros((size, size), np.uint8)
    for number in range(1, classes):
        cy, cx, r = *rng.uniform(0.2 * size, 0.8 * size, 2), rng.uniform(0.15, 0.25) * size
        index[(y - cy) ** 2 + (x - cx) ** 2 < r**2] = number
    return index


def scribble(seed: int, width: int) -> NDArray[np.uint8]:
    """A disc of class 1 under eight lines of class 2."""
    image = Image.fromarray(shapes(2, seed))
    rng = np.random.default_rng(seed)
    for _ in range(8):
        ImageDraw.Draw(image).line(rng.uniform(0, 160, 4).tolist(), fill=2, width=width)
    return np.asarray(image)


def palette_mask(index: dict[int, int], *table: tuple[int, int, int]) -> LabelArray:
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(table)] = table
    return values(index, palette=palette)


BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (255, 0, 0)
