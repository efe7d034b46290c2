"""The missed objects of a report: a table by size, and thumbnails of the largest ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ubend.core.i18n import _, ngettext
from ubend.dataset.store import read_class_map
from ubend.drawing.encoding import image_uri
from ubend.io.images import read_image
from ubend.labels.class_table import LabelMap, background_class
from ubend.layouts.pairs import Pair
from ubend.portable.overlay import ERROR_COLORS, overlay_mask, to_rgb
from ubend.tasks.report_figures import Example, Figure

_CLASSES = 12  # in the table, those with the most missed objects
_SHOWN = 8  # thumbnails
_CELL_PX = 224  # long side of a thumbnail
_CONTEXT_PX = 24  # around an object, at least; around larger ones half of their size


@dataclass(frozen=True)
class MissedRow:
    """The objects of a class in a range of sizes, as text."""

    name: str
    size: str
    objects: int
    missed: str


@dataclass(frozen=True)
class LargestMissed:
    """A missed object: its image and class, top, left, bottom and right in px, area in px, covered share."""

    image: str
    class_name: str
    box: tuple[int, int, int, int]
    area: int
    covered: float


@dataclass(frozen=True)
class MissedFacts:
    """The missed objects of a run.

    Attributes:
        below: the share of an object's pixels below which it is missed, as text.
        rows: of the table.
        notes: classes that are not listed, and images that are not counted.
        largest: those with a thumbnail.
    """

    below: str
    rows: tuple[MissedRow, ...]
    notes: tuple[str, ...]
    largest: tuple[LargestMissed, ...]


def read_missed(scores: Mapping[str, Any]) -> MissedFacts | None:
    """The missed objects in scores.json; None: the scores are of an earlier version, or there are no objects.

    Raises:
        KeyError, TypeError, ValueError: the scores are damaged.
    """
    missed_objects = scores.get("missed_objects")
    if missed_objects is None:
        return None
    summaries = missed_objects["classes"]
    classes = {name: summary for name, summary in summaries.items() if summary["sizes"] or summary["left_out"]}
    if not classes:
        return None
    most = sorted(classes, key=lambda name: -sum(group["missed"] for group in classes[name]["sizes"]))
    listed = {name: classes[name] for name in classes if name in most[:_CLASSES]}
    rows = [_describe_group(name, group) for name, summary in listed.items() for group in summary["sizes"]]
    notes = []
    if hidden := len(classes) - len(listed):
        line = ngettext(
            "{count} class with fewer missed objects is only in scores.json.",
            "{count} classes with fewer missed objects are only in scores.json.",
            hidden,
        )
        notes.append(line.format(count=hidden))
    if left_out := max(summary["left_out"] for summary in classes.values()):
        line = ngettext(
            "In {count} image the objects of a class are not counted: it is too large, or has too many objects.",
            "In {count} images the objects of a class are not counted: they are too large, or have too many objects.",
            left_out,
        )
        notes.append(line.format(count=left_out))
    return MissedFacts(f"{missed_objects['missed_below']:.0%}", tuple(rows), tuple(notes), tuple(_choose(classes)))


def _describe_group(name: str, group: Mapping[str, int]) -> MissedRow:
    low, high, count, missed = (int(group[key]) for key in ("smallest", "largest", "objects", "missed"))
    size = f"{low:,}" if low == high else f"{low:,}–{high:,}"
    return MissedRow(name, size, count, f"{missed} ({missed / max(1, count):.0%})")


def _choose(classes: Mapping[str, Any]) -> list[LargestMissed]:
    """The objects to show: the largest of each class, then the second largest of each, and so on."""
    largest = [[_read_object(name, entry) for entry in summary["largest_missed"]] for name, summary in classes.items()]
    return [missed for turn in zip_longest(*largest) for missed in turn if missed is not None][:_SHOWN]


def _read_object(class_name: str, entry: Mapping[str, Any]) -> LargestMissed:
    top, left, bottom, right = map(int, entry["box"])
    return LargestMissed(
        entry["image"], class_name, (top, left, bottom, right), int(entry["area"]), float(entry["covered"])
    )


def draw_missed(
    pair: Pair, prediction: NDArray[np.uint8], objects: Sequence[LargestMissed], labels: LabelMap, channels: int
) -> dict[LargestMissed, Example]:
    """Thumbnails of the missed objects of an image: truth and prediction, the object in a frame.

    Args:
        pair: image and mask.
        prediction: (H, W) class index at native size.
        objects: of this image.
        labels: the class table.
        channels: with which the image is read.
    Raises:
        DataError: the image or the mask cannot be read.
    """
    image = read_image(pair.image, channels)
    truth = read_class_map(pair, image.shape[:2], labels).classes
    examples = {}
    for missed in objects:
        area, box = _cut_out(missed.box, truth.shape)
        pixels = _resize(to_rgb(image[area]), Image.Resampling.BOX)
        caption = _("{name}: {class_name}, {area} px, of which {share:.0%} are found").format(
            name=missed.image, class_name=missed.class_name, area=f"{missed.area:,}", share=missed.covered
        )
        figures = []
        for title, mask in ((_("truth"), truth), (_("prediction"), prediction)):
            small = _resize(np.ascontiguousarray(mask[area]), Image.Resampling.NEAREST)
            panel = overlay_mask(pixels, small, labels.colors, background=background_class(labels.names))
            _draw_frame(panel, box, mask[area].shape)
            figures.append(Figure(title, f"{caption}: {title}", image_uri(panel)))
        examples[missed] = Example(caption, figures)
    return examples


def _cut_out(
    box: tuple[int, int, int, int], size_hw: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[int, int, int, int]]:
    """The rows and columns around a box, and the box inside them."""
    top, left, bottom, right = box
    margin = max(_CONTEXT_PX, (bottom - top) // 2, (right - left) // 2)
    rows = slice(max(0, top - margin), min(size_hw[0], bottom + margin))
    columns = slice(max(0, left - margin), min(size_hw[1], right + margin))
    inner = (top - rows.start, left - columns.start, bottom - rows.start, right - columns.start)
    return (rows, columns), inner


def _resize(pixels: NDArray[np.uint8], method: Image.Resampling) -> NDArray[np.uint8]:
    """(h, w) or (h, w, 3) with a long side of about `_CELL_PX`; enlarged by whole factors."""
    height, width = pixels.shape[:2]
    long = max(height, width)
    if long <= _CELL_PX:
        factor = max(1, _CELL_PX // long)
        return pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    size = max(1, round(width * _CELL_PX / long)), max(1, round(height * _CELL_PX / long))
    return np.asarray(Image.fromarray(pixels).resize(size, method))


def _draw_frame(pixels: NDArray[np.uint8], box: tuple[int, int, int, int], size_hw: tuple[int, ...]) -> None:
    """Draw a frame just outside a box, which is given in a cut-out of this height and width."""
    height, width = pixels.shape[:2]
    top, left, bottom, right = box
    rows = max(0, top * height // size_hw[0] - 2), min(height - 1, bottom * height // size_hw[0] + 1)
    columns = max(0, left * width // size_hw[1] - 2), min(width - 1, right * width // size_hw[1] + 1)
    color = ERROR_COLORS["negative"]
    for row in rows:
        pixels[row, columns[0] : columns[1] + 1] = color
    for column in columns:
        pixels[rows[0] : rows[1] + 1, column] = color
