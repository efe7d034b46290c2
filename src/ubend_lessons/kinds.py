"""The lesson on kinds of output: boxes and semantic, instance and panoptic masks of one image.

Source of the panoptic format (each pixel has a class and, in objects, a number): Kirillov et al. 2019,
arXiv:1801.00868.
"""

import colorsys
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ubend.core.errors import SettingError
from ubend.core.i18n import _
from ubend.drawing.panels import load_font, show_image
from ubend.io.images import resize_array, resize_mask
from ubend.labels.class_table import IGNORED, background_class
from ubend.portable.images import save_png
from ubend.portable.object_overlay import write_inside
from ubend.portable.objects import Objects, choose_method, contour_class, find_boxes, object_classes, separate
from ubend.portable.overlay import color_mask, to_rgb
from ubend_lessons.cards import Card, draw_cards
from ubend_lessons.example import Example

_PANEL_PX = 330
_GOLDEN = 0.618034  # change of hue from object to object, in turns: successive objects have very different colours
_PAINT = 0.6  # opacity of objects over the image
_GROUND = (70, 85, 110)  # drawn instead of black over an image
_LISTED = 3  # objects that are described in numbers


def teach_kinds(example: Example, *, out: Path | str, show: bool = False) -> list[str]:
    """Draw the image, its boxes, and its semantic, instance and panoptic masks next to each other: `kinds.png`.

    Objects are the example's ids, or its mask separated as by `ubend objects`.

    Returns:
        Lines: the output of each kind of network for this image, in numbers; then the file.
    Raises:
        SettingError: there is no class of objects.
        OutputError: the image cannot be written.
    """
    found = find_objects(example)
    meaning = dissolve_contour(example, found)
    page = _draw_page(example, found, meaning)
    target = Path(out) / "kinds.png"
    save_png(page, target)
    if show:
        show_image(page)
    return [*_count_outputs(example, found, meaning), str(target)]


def find_objects(example: Example) -> Objects:
    """The objects of the example, numbered from 1; the class of an object is that of most of its pixels.

    Raises:
        SettingError: there is no class of objects.
    """
    kinds = object_classes(example.names)
    if not kinds:
        raise SettingError(
            _("none of the classes {names} is a class of objects; background and contour are not").format(
                names=", ".join(example.names)
            ),
            key="names",
        )
    if example.ids is None:
        return separate(example.mask, example.names, choose_method(example.names))
    known, place = np.unique(np.append(0, example.ids), return_inverse=True)
    ids = place[1:].reshape(example.ids.shape).astype(np.uint32)
    votes = [np.bincount(ids[example.mask == kind], minlength=len(known)) for kind in kinds]
    return Objects(ids, np.array(kinds, np.uint8)[np.argmax(votes, axis=0)][1:])


def dissolve_contour(example: Example, found: Objects) -> NDArray[np.uint8]:
    """(H, W) class of each pixel, without the contour class: its pixels become part of their object, or background."""
    contour, background = contour_class(example.names), background_class(example.names)
    if contour is None or background is None or choose_method(example.names) != "contour":
        return example.mask
    meaning = example.mask.copy()
    line = meaning == contour
    meaning[line] = np.append(np.uint8(background), found.classes)[found.ids[line]]
    return meaning


def object_colors(count: int) -> NDArray[np.uint8]:
    """(count + 1, 3) uint8: black, then a colour for each object."""
    hues = (np.arange(count) * _GOLDEN) % 1.0
    colors = [colorsys.hsv_to_rgb(hue, 0.75 if n % 2 else 0.95, 0.95) for n, hue in enumerate(hues)]
    table: NDArray[np.uint8] = (255 * np.array([(0.0, 0.0, 0.0), *colors])).round().astype(np.uint8)
    return table


def _draw_page(example: Example, found: Objects, meaning: NDArray[np.uint8]) -> Image.Image:
    scale = _PANEL_PX / max(example.mask.shape)
    size = (max(1, round(example.mask.shape[0] * scale)), max(1, round(example.mask.shape[1] * scale)))
    image = resize_array(to_rgb(example.image), size)
    ids: Any = found.ids  # any integers will do
    objects, classes = Objects(resize_mask(ids, size), found.classes), resize_mask(meaning, size)
    legend = ", ".join(example.names[kind] for kind in np.unique(classes) if kind != IGNORED)
    cards = [
        Card(_("image"), image, _("Only values; nothing states what they show.")),
        Card(
            _("detection: boxes"),
            _draw_boxes(image, objects, example),
            _("Shows how many objects there are, their classes and approximate positions, but not their shapes."),
        ),
        Card(
            _("semantic mask"),
            color_mask(classes, example.colors),
            _(
                "Shows the class of each pixel ({classes}), and so the shapes, but not where one object ends and the"
                " next of the same class begins."
            ).format(classes=legend),
        ),
        Card(
            _("instance masks"),
            _paint_objects(image, objects),
            _("Shows the shape of each object, separated from its neighbours, but nothing of the area between them."),
        ),
        Card(
            _("panoptic mask"),
            _draw_panoptic(image, objects, classes, example),
            _(
                "Shows both: the class of every pixel and the number of every object, but not the hidden parts of"
                " objects."
            ),
        ),
    ]
    return draw_cards(cards, 3)


def _paint_objects(image: NDArray[np.uint8], found: Objects) -> NDArray[np.uint8]:
    """Draw each object in its own colour over a grey image."""
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    there = found.ids > 0
    grey[there] = (1 - _PAINT) * grey[there] + _PAINT * object_colors(len(found.classes))[found.ids[there]]
    return grey.round().astype(np.uint8)


def _draw_boxes(image: NDArray[np.uint8], found: Objects, example: Example) -> NDArray[np.uint8]:
    page = Image.fromarray(image)
    draw = ImageDraw.Draw(page)
    for place, kind in zip(find_boxes(found.ids), found.classes, strict=False):
        if place is not None:  # an object can be too small for the panel
            rows, columns = place
            edge = (columns.start, rows.start, columns.stop - 1, rows.stop - 1)
            draw.rectangle(edge, outline=example.colors[kind], width=2)
    return np.asarray(page)


def _draw_panoptic(
    image: NDArray[np.uint8], found: Objects, classes: NDArray[np.uint8], example: Example
) -> NDArray[np.uint8]:
    """Draw objects in their own colours with their numbers, and other classes in one shade each with their names."""
    others = [kind for kind in np.unique(classes[found.ids == 0]) if kind != IGNORED]
    out = _paint_objects(image, found)
    for kind in others:
        shade = np.array(example.colors[kind] if any(example.colors[kind]) else _GROUND)
        region = (classes == kind) & (found.ids == 0)
        out[region] = (0.25 * image[region] + 0.75 * shade).round()
    page = Image.fromarray(out)
    draw, font = ImageDraw.Draw(page), load_font(12)
    for number, place in enumerate(find_boxes(found.ids), 1):
        if place is not None:
            offset = place[0].start, place[1].start
            write_inside(draw, found.ids[place] == number, offset, str(number), font)
    for kind in others:
        write_inside(draw, (classes == kind) & (found.ids == 0), (0, 0), example.names[kind], font)
    return np.asarray(page)


def _count_outputs(example: Example, found: Objects, meaning: NDArray[np.uint8]) -> list[str]:
    height, width, channels = example.image.shape
    count, pixels = len(found.classes), height * width
    kinds = object_classes(example.names)
    areas = np.bincount(found.ids.reshape(-1), minlength=count + 1)[1:]
    boxes = find_boxes(found.ids)
    sizes = [(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in boxes]
    shares = np.bincount(meaning[meaning != IGNORED], minlength=len(example.names)) / max(
        1, int((meaning != IGNORED).sum())
    )
    parts = sum(scipy.ndimage.label(meaning == kind, np.ones((3, 3)))[1] for kind in kinds)
    lines = [
        _("{name}: {height} x {width} px, {channels} values each").format(
            name=example.name, height=height, width=width, channels=channels
        ),
        _("detection gives {count} boxes: a class and 4 numbers each").format(count=count),
    ]
    for index in range(min(count, _LISTED)):
        (rows, columns), (high, wide) = boxes[index], sizes[index]
        lines.append(
            _(
                "  {number}: {kind}, left {left}, top {top}, width {wide}, height {high}; the object takes {share:.0%}"
                " of the box"
            ).format(
                number=index + 1,
                kind=example.names[found.classes[index]],
                left=columns.start,
                top=rows.start,
                wide=wide,
                high=high,
                share=areas[index] / (high * wide),
            )
        )
    classes = ", ".join(f"{name} {share:.1%}" for name, share in zip(example.names, shares, strict=True) if share)
    lines += [
        _("semantic segmentation gives {pixels} classes, one per pixel: {classes}").format(
            pixels=pixels, classes=classes
        ),
        _("  connected regions of one class: {parts}; objects: {count}").format(parts=parts, count=count),
        _(
            "instance segmentation gives {count} masks of {height} x {width}; {share:.0%} of the pixels are in no mask"
        ).format(count=count, height=height, width=width, share=(found.ids == 0).mean()),
        _("panoptic segmentation gives {pixels} pairs (class, number of the object)").format(pixels=pixels),
    ]
    if meaning is not example.mask:
        lines.append(
            _(
                "note: this mask has a class '{contour}', lines around objects, which makes objects countable in a "
                "semantic mask"
            ).format(contour=example.names[contour_class(example.names) or 0])
        )
    return lines
