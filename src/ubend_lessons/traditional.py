"""The lesson on traditional methods: all of them on one image, next to the truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ubend.core.i18n import _
from ubend.dataset.sample import SAMPLE_CLASSES, draw_image
from ubend.drawing.panels import draw_grid, show_image
from ubend.io.images import Sizing, model_size, resize_array, resize_mask
from ubend.labels.class_table import LabelMap, background_class, make_label_map
from ubend.metrics.overlap import count_confusion, summarise_overlap
from ubend.portable.images import save_png
from ubend.portable.overlay import color_mask, overlay_mask, to_rgb
from ubend_lessons.baselines.baseline import Baseline, Example, Range, learn_baseline
from ubend_lessons.baselines.methods import METHODS, describe_method
from ubend_lessons.convolution_figures import stack

_COLUMNS, _CELL_PX = 4, 224
_IMAGE = "traditional_methods.png"


def draw_examples(count: int = 16, size_px: int = 192) -> tuple[list[Example], Example, LabelMap]:
    """`count` images of the drawn sample with their masks, one more to be shown, and the class table."""
    *examples, shown = (draw_image(0, index, size_px) for index in range(count + 1))
    return examples, shown, make_label_map((0, 1, 2), SAMPLE_CLASSES)


def teach_traditional_methods(
    examples: Sequence[Example],
    shown: Example,
    labels: LabelMap,
    *,
    out: Path | str,
    size_px: int = 192,
    show: bool = False,
) -> list[str]:
    """Fit every traditional method to examples, and draw its result on another image.

    Writes `traditional_methods.png` into `out`: the image, its true mask, both, and each method's mask with its Dice
    (mean over the classes without background).

    Args:
        examples: images (H, W, channels) and masks (H, W) uint8 of class index or IGNORED; any sizes.
        shown: one more image with its mask.
        labels: the class table.
        size_px: largest size at which the methods work: the side of a square of the same area.
        show: also display the image.
    Returns:
        Lines: each method with its Dice and its chosen parameters; then the file.
    Raises:
        SettingError: scikit-image or scikit-learn is missing.
        OutputError: the image cannot be written.
    """
    image, truth = shown
    own_px = max(1, round(float(np.sqrt(truth.size))))
    sizing, background = Sizing(min(size_px, own_px), True, image.shape[2]), background_class(labels.names)
    small = [_resize(example, sizing) for example in examples]
    value_range = _find_range([rgb for rgb, _mask in examples])
    rgb = to_rgb(image)
    both = overlay_mask(rgb, truth, labels.colors, background=background)
    cells = [(_("image"), rgb), (_("truth"), color_mask(truth, labels.colors)), (_("both"), both)]
    lines = []
    for method in METHODS:
        baseline = learn_baseline(method, small, labels, sizing, value_range)
        mask = baseline(image).mask
        scores = summarise_overlap(count_confusion(mask, truth, labels.classes)[None], labels.names, background)
        dice = scores.dice.per_image.mean_foreground
        cells.append((f"{method}: Dice {dice:.2f}", color_mask(mask, labels.colors)))
        lines.append(f"{method:<14}Dice {dice:.2f}  {describe_method(method)} [{_chosen(baseline)}]")
    page = _draw(cells, labels)
    save_png(page, Path(out) / _IMAGE)
    if show:
        show_image(page)
    return [*lines, str(Path(out) / _IMAGE)]


def _resize(example: Example, sizing: Sizing) -> Example:
    image, mask = example
    size_hw = model_size((mask.shape[0], mask.shape[1]), sizing.size_px, sizing.keep_aspect)
    return resize_array(image, size_hw), resize_mask(mask, size_hw)


def _find_range(images: Sequence[NDArray[Any]]) -> Range:
    """Black and white of each channel: 0 and 255, or for other than 8-bit images the smallest and largest value."""
    channels = images[0].shape[2]
    if images[0].dtype == np.uint8:
        return np.zeros(channels), np.full(channels, 255.0)
    flat = np.concatenate([image.reshape(-1, channels) for image in images]).astype(np.float64)
    low, high = flat.min(axis=0), flat.max(axis=0)
    return low, np.where(high > low, high, low + 1)


def _chosen(baseline: Baseline) -> str:
    return ", ".join(f"{key} {value}" for key, value in baseline.parameters.items())


def _draw(cells: Sequence[tuple[str, NDArray[np.uint8]]], labels: LabelMap) -> Image.Image:
    """Draw rows of cells, each with its heading, and the colours of the classes below the last row."""
    grids = []
    for first in range(0, len(cells), _COLUMNS):
        row = cells[first : first + _COLUMNS]
        legend = list(zip(labels.names, labels.colors, strict=True)) if first + _COLUMNS >= len(cells) else []
        grids.append(draw_grid([[cell for _name, cell in row]], [n for n, _cell in row], None, _CELL_PX, legend))
    return stack(grids)
