"""The lesson on shapes: objects cut out by their masks, and a table of their measures. H x W pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ubend.core.errors import DataError, SettingError
from ubend.core.files import default_cache, refuse_existing_results
from ubend.core.i18n import _
from ubend.core.progress import Reporter
from ubend.dataset.dataset import open_dataset
from ubend.dataset.sample import draw_sample
from ubend.dataset.store import read_class_map
from ubend.drawing.panels import load_font, show_image
from ubend.inference.predictor import load
from ubend.io.images import read_image
from ubend.labels.class_table import LabelMap
from ubend.portable.images import save_png
from ubend.portable.object_files import Row, measure, write_table
from ubend.portable.objects import choose_method, separate
from ubend.portable.overlay import to_rgb
from ubend.tasks.cutout import extend_colors, make_alpha
from ubend.tasks.user_settings import read_user_settings
from ubend_lessons.variants import SilentReporter

_SAMPLE, _SAMPLE_PX = 2, 128
_MAX_ROWS = 12  # of the drawn table; the CSV has all
_MIN_SHARE = 1e-3  # share of the image's pixels; smaller objects are left out as fragments
_SOFT_PX = 1.5  # width of a cut-out's edge; a mask has no probabilities to follow
_CELL_PX, _COLUMN_PX, _TEXT_PX, _GAP_PX = 112, 108, 15, 12
_PAPER, _INK, _FAINT = (255, 255, 255), (30, 30, 30), (95, 95, 95)


@dataclass(frozen=True)
class CutOut:
    """One object.

    Attributes:
        row: its measures, see `measure`.
        pixels: (h, w, 4) its bounding box; pixels outside the object are transparent.
    """

    row: Row
    pixels: NDArray[np.uint8]

    @property
    def roundness(self) -> float:
        """4 pi area / perimeter^2: 1 for a disc, smaller for longer outlines; small discs can exceed 1."""
        perimeter = float(self.row["perimeter_px"])
        return 4 * math.pi * float(self.row["area_px"]) / perimeter**2 if perimeter else 1.0


def teach_shapes(
    out: Path | str,
    *,
    folder: Path | str | None = None,
    model: Path | str | None = None,
    images: int = 4,
    show: bool = False,
    reporter: Reporter,
) -> list[CutOut]:
    """Cut out and measure the objects of a few images, by the masks of the folder or of a model.

    Writes `shapes.csv` (every object), `shapes.png` (a table of the largest ones) and `NAME_ID.png` (each cut-out, on a
    transparent background) into `out`.

    Args:
        folder: images and masks; None: a sample is drawn into `out`.
        model: a run folder or model file that finds the objects; None: the masks of the folder are used.
        images: number of images, evenly spaced in the folder.
    Raises:
        OutputError: `out` is not empty.
        SettingError: `images` is less than 1, or scikit-image is not installed.
        DataError: there are no objects.
    """
    if images < 1:
        raise SettingError(_("images: give a number of at least 1"), key="--images")
    out = refuse_existing_results(out)
    if folder is None:
        folder = out / "sample"
        draw_sample(folder, max(_SAMPLE, images), _SAMPLE_PX)
    data = open_dataset(read_user_settings(folder).settings, "cpu", default_cache(), SilentReporter())
    predictor = None if model is None else load(model)
    found: list[CutOut] = []
    numbers = np.linspace(0, len(data.folder.pairs) - 1, min(images, len(data.folder.pairs)), dtype=np.int64)
    for number in numbers:
        pair = data.folder.pairs[number]
        if predictor is None:
            image = read_image(pair.image, data.input_format.channels)
            mask = read_class_map(pair, (image.shape[0], image.shape[1]), data.labels).classes
            found += cut_objects(pair.image, image, mask, data.labels)
        else:
            image = read_image(pair.image, predictor.bundle.sizing.channels)
            found += cut_objects(pair.image, image, predictor(pair.image).mask, predictor.labels)
    if not found:
        raise DataError(
            _("{folder}: no objects in {count} images; use more images").format(folder=folder, count=len(numbers)),
            path=folder,
        )
    for one in found:
        stem = Path(str(one.row["file"])).stem
        save_png(Image.fromarray(one.pixels), out / f"{stem}_{one.row['id']}.png")
    channels = sum(key.startswith("mean_") for key in found[0].row)
    write_table(out / "shapes.csv", [one.row for one in found], channels, [])
    largest = sorted(found, key=lambda one: -int(one.row["area_px"]))[:_MAX_ROWS]
    page = draw_shapes(largest)
    save_png(page, out / "shapes.png")
    said = _("objects: {count}, images: {images}; cut-outs and measures are in {out}")
    reporter.report(said.format(count=len(found), images=len(numbers), out=out))
    if show:
        show_image(page)
    return found


def cut_objects(path: Path, image: NDArray[Any], mask: NDArray[np.uint8], labels: LabelMap) -> list[CutOut]:
    """The objects of one image, without small fragments.

    Args:
        path: the image's name in the table.
        image: (H, W, channels) values.
        mask: (H, W) class index.
        labels: the class table.
    """
    names, colors = labels.names, to_rgb(image)
    objects = separate(mask, names, choose_method(names), max(1, round(_MIN_SHARE * mask.size)))
    cut = []
    for row in measure(path, image, objects, names, None):
        margin = math.ceil(_SOFT_PX)
        box = np.s_[
            max(0, int(row["top"]) - margin) : int(row["bottom"]) + margin,
            max(0, int(row["left"]) - margin) : int(row["right"]) + margin,
        ]
        alpha = make_alpha((objects.ids[box] == row["id"]).astype(np.float32), _SOFT_PX)
        solid = np.rint(255 * alpha[..., None]).astype(np.uint8)
        cut.append(CutOut(row, np.concatenate([extend_colors(colors[box], alpha), solid], axis=2)))
    return cut


def draw_shapes(cut: Sequence[CutOut]) -> Image.Image:
    """Draw a table with a cut-out and its measures in each row."""
    font = load_font(_TEXT_PX)
    headings = ["", _("class"), _("area, px"), _("outline, px"), _("roundness"), _("eccentricity"), _("solidity")]
    width = _CELL_PX + _COLUMN_PX * (len(headings) - 1) + 2 * _GAP_PX
    page = Image.new("RGB", (width, (_CELL_PX + _GAP_PX) * len(cut) + 3 * _TEXT_PX), _PAPER)
    draw = ImageDraw.Draw(page)
    middles = [_GAP_PX + _CELL_PX + _COLUMN_PX * (column + 0.5) for column in range(len(headings) - 1)]
    for heading, x in zip(headings[1:], middles, strict=True):
        draw.text((x, 1.5 * _TEXT_PX), heading, fill=_FAINT, font=font, anchor="mm")
    for index, one in enumerate(cut):
        top, row = 3 * _TEXT_PX + index * (_CELL_PX + _GAP_PX), one.row
        small = Image.fromarray(one.pixels)
        scale = min(_CELL_PX / small.width, _CELL_PX / small.height)
        small = small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))))
        ground = _draw_checks(_CELL_PX)
        ground.paste(small, ((_CELL_PX - small.width) // 2, (_CELL_PX - small.height) // 2), small)
        page.paste(ground, (_GAP_PX, top))
        values = [str(row["class"]), f"{row['area_px']:,}", f"{float(row['perimeter_px']):.0f}", f"{one.roundness:.2f}"]
        values += [f"{float(row['eccentricity']):.2f}", f"{float(row['solidity']):.2f}"]
        for value, x in zip(values, middles, strict=True):
            draw.text((x, top + _CELL_PX / 2), value, fill=_INK, font=font, anchor="mm")
    return page


def _draw_checks(side_px: int) -> Image.Image:
    """Draw a checkerboard, which stands for transparency."""
    y, x = np.mgrid[:side_px, :side_px] // 8
    shade = np.where((y + x) % 2, 255, 225).astype(np.uint8)
    return Image.fromarray(np.repeat(shade[..., None], 3, axis=2))
