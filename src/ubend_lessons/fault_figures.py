"""Draws two of the tutorial's faults: wrong classes in resized masks, and leaking test items."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ubend.core.i18n import _
from ubend.drawing.panels import draw_grid
from ubend.portable.overlay import color_mask
from ubend_lessons.fault_data import ResizedData

_ROWS = 3  # of each drawing
_CLOSE_PX = 48  # side of the enlarged part of a mask
_WRONG, _UNKNOWN, _RIGHT = (213, 94, 0), (0, 114, 178), (235, 235, 235)


def draw_trimaps(sized: ResizedData) -> Image.Image:
    """Draw enlarged parts of the masks with most errors by bilinear resizing: nearest, bilinear, and the difference."""
    wrong = sized.blurred != sized.masks
    worst = np.argsort(-wrong.sum(axis=(1, 2)) - 1e-6 * sized.unknown.sum(axis=(1, 2)), kind="stable")[:_ROWS]
    rows = []
    for number in worst:
        window = _busiest(wrong[number] | sized.unknown[number])
        pixels = np.full((*wrong[number][window].shape, 3), _RIGHT, np.uint8)
        pixels[sized.unknown[number][window]] = _UNKNOWN
        pixels[wrong[number][window]] = _WRONG
        masks = [color_mask(some[number][window], sized.labels.colors) for some in (sized.masks, sized.blurred)]
        rows.append([sized.images[number][window], *masks, pixels])
    if sized.images.shape[3] == 1:
        rows = [[row[0].repeat(3, axis=2), *row[1:]] for row in rows]
    legend = [*zip(sized.labels.names, sized.labels.colors, strict=True)]
    legend += [(_("wrong class"), _WRONG), (_("value of no class"), _UNKNOWN)]
    return draw_grid(rows, [_("input"), _("by nearest pixel"), _("bilinear"), _("difference")], legend=legend)


def draw_leak(root: Path) -> Image.Image:
    """Draw items of the test split, and items of the same images in the training split.

    Args:
        root: the folder written by `write_leak`.
    """
    splits = dict(line.split(",") for line in (root / "split.csv").read_text(encoding="utf-8").split()[1:])
    leaking = [name for name, split in splits.items() if split == "test" and name.startswith("copy")]
    rows: list[list[NDArray[np.uint8]]] = []
    labels: list[str] = []
    seen = set()
    for name in leaking:
        image = name.rsplit("-", 1)[0]
        if image in seen:
            continue
        seen.add(image)
        siblings = [other for other in splits if other.startswith(f"{image}-") and splits[other] == "train"]
        if len(siblings) > 1 and len(rows) < _ROWS:
            shown = [name, *siblings[:4]]
            rows.append([_read(root / "images" / one) for one in shown])
            count = _("one image: {test} in the test split, {train} in the training split")
            labels.append(count.format(test=name.removesuffix(".png"), train=len(siblings)))
    columns = max((len(row) for row in rows), default=1)
    if not rows:
        rows, labels = [[_read(root / "images" / next(iter(splits)))]], [_("no item of the test split leaks")]
    return draw_grid(rows, [_("test item"), *[_("in training")] * (columns - 1)], labels, cell_px=144)


def _busiest(marked: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The window of the mask with the most marked pixels."""
    height, width = marked.shape
    side_y, side_x = min(_CLOSE_PX, height), min(_CLOSE_PX, width)
    sums = np.pad(marked.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    counts = sums[side_y:, side_x:] - sums[:-side_y, side_x:] - sums[side_y:, :-side_x] + sums[:-side_y, :-side_x]
    top, left = np.unravel_index(int(counts.argmax()), counts.shape)
    return slice(int(top), int(top) + side_y), slice(int(left), int(left) + side_x)


def _read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
