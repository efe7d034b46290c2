"""Grids of images with headings, labels and a legend; saving and displaying images.

Uses only Pillow: grids are drawn during training, and importing a plotting library would take too long.
"""

import functools
import logging
import math
import os
import sys
import tempfile
import unicodedata
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ubend.core.i18n import _
from ubend.portable.images import save_png
from ubend.portable.overlay import Color

_logger = logging.getLogger(__name__)

_PAPER, _INK, _FAINT, _FRAME = (255, 255, 255), (30, 30, 30), (95, 95, 95), (200, 200, 200)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_grid(
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    headings: Sequence[str],
    labels: Sequence[str] | None = None,
    cell_px: int = 192,
    legend: Sequence[tuple[str, Color]] = (),
) -> Image.Image:
    """Draw a grid on white: a heading over each column, a label under each row, the legend at the bottom.

    Args:
        rows: images (H, W, 3) uint8, each scaled to fit into `cell_px` with its aspect ratio kept; a row may be
            shorter than `headings`.
        headings: one per column; (): none. They are wrapped between words; words and labels that do not fit end in an
            ellipsis.
        labels: one per row; None or "": none.
        cell_px: longest side of an image in the grid.
        legend: class names and colours.
    Returns:
        RGB image; its size depends on the images.
    Raises:
        ValueError: there is no image, more columns than headings, or a different number of labels than rows.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ValueError("a grid needs at least one image")
    if headings and len(headings) < columns:
        raise ValueError(f"{columns} columns have {len(headings)} headings")
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"{len(rows)} rows have {len(labels)} labels")
    text_px = min(20, max(11, cell_px // 13))
    font, gap, line = load_font(text_px), max(6, cell_px // 24), round(text_px * 1.5)

    cells = [[_fit(image, cell_px) for image in row] for row in rows]
    heading_px = [min(math.ceil(font.getlength(_clean(text))), cell_px) for text in headings] or [0] * columns
    widths = [max(heading_px[n], *(row[n].width for row in cells if n < len(row))) for n in range(columns)]
    heights = [max((cell.height for cell in row), default=0) for row in cells]
    inner = sum(widths) + gap * (columns - 1)
    legend_lines = _wrap_legend(legend, font, text_px, inner)
    heads = [_break(heading, font, width) for heading, width in zip(headings, widths, strict=False)]
    head_lines = max(map(len, heads), default=0)
    height = gap + line * head_lines + gap * len(legend_lines[:1]) + line * len(legend_lines)
    height += sum(h + gap for h in heights) + sum(line for label in labels or () if label)

    page = Image.new("RGB", (inner + 2 * gap, height), _PAPER)
    draw = ImageDraw.Draw(page)
    lefts = [gap + sum(widths[:column]) + gap * column for column in range(columns)]
    top = gap
    for head, left, width in zip(heads, lefts, widths, strict=False):
        first = head_lines - len(head)  # headings are aligned at the bottom
        for line_number, text in enumerate(head, first):
            draw.text((left + width / 2, top + line * (line_number + 0.5) - 2), text, fill=_INK, font=font, anchor="mm")
    top += line * head_lines
    for index, (row, row_height) in enumerate(zip(cells, heights, strict=True)):
        for cell, left, width in zip(row, lefts, widths, strict=False):
            x, y = left + (width - cell.width) // 2, top + (row_height - cell.height) // 2
            page.paste(cell, (x, y))
            # a thin frame outside the image, so that white images have a visible edge
            draw.rectangle((x - 1, y - 1, x + cell.width, y + cell.height), outline=_FRAME)
        top += row_height
        if labels and labels[index]:
            text = _shorten(labels[index], font, inner)
            draw.text((gap, top + line / 2 + 2), text, fill=_FAINT, font=font, anchor="lm")
            top += line
        top += gap
    top += gap // 2
    for entries in legend_lines:
        for x, name, color in entries:
            y = top + (line - text_px) // 2
            draw.rectangle((gap + x, y, gap + x + text_px - 1, y + text_px - 1), fill=color, outline=_FRAME)
            at = (gap + x + round(text_px * 1.5), top + line / 2)
            draw.text(at, name, fill=_INK, font=font, anchor="lm")
        top += line
    return page


def show_image(image: Path | Image.Image) -> None:
    """Show an image in the notebook, else in a window, else report the path of its file.

    Without a notebook and a display (a server, a container), an image that is not a file yet is saved to the folder of
    temporary files.
    """
    ipython: Any = sys.modules.get("IPython")
    if ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None:  # not IPython's terminal
        from IPython.display import display  # not a dependency of ubend; it is imported already

        display(_load(image))
        return
    from PIL import ImageShow  # its import searches for viewers, which takes .1 s

    desktop = sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if desktop and ImageShow.show(_load(image)):
        return
    if isinstance(image, Image.Image):
        handle, name = tempfile.mkstemp(prefix="ubend-", suffix=".png")
        os.close(handle)
        save_png(image, Path(name))
        image = Path(name)
    # a warning, because a plain Python session shows no messages below this level
    _logger.warning(_("no display here; the image is in {path}").format(path=image))


def _load(image: Path | Image.Image) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.open(image).copy()


def _fit(pixels: NDArray[np.uint8], cell_px: int) -> Image.Image:
    """Scale an image so that its longer side is `cell_px`; enlarged pixels stay square and sharp."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or pixels.size == 0:
        raise ValueError(f"a cell is (H, W, 3) uint8, not {pixels.shape} {pixels.dtype}")
    image = Image.fromarray(pixels)
    scale = cell_px / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if scale > 1:
        # enlarge by a whole factor, then reduce: nearest-neighbour alone would give pixels of uneven sizes
        steps = math.ceil(scale)
        image = image.resize((image.width * steps, image.height * steps), Image.Resampling.NEAREST)
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def _wrap_legend(
    legend: Sequence[tuple[str, Color]], font: Font, text_px: int, width_px: int
) -> list[list[tuple[int, str, Color]]]:
    """The legend in lines that fit into `width_px`; entries are (left edge, name, colour)."""
    lines: list[list[tuple[int, str, Color]]] = []
    x = 0
    swatch, space = round(text_px * 1.5), text_px
    for name, color in legend:
        text = _shorten(name, font, width_px - swatch)
        width = swatch + math.ceil(font.getlength(text))
        if not lines or x + width > width_px:
            lines.append([])
            x = 0
        lines[-1].append((x, text, color))
        x += width + space
    return lines


def _break(text: str, font: Font, width_px: float) -> list[str]:
    """Wrap the text between words; a word that does not fit is shortened."""
    lines: list[str] = []
    for word in _clean(text).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width_px:
            lines[-1] = longer
        else:
            lines.append(word)
    return [_shorten(text, font, width_px) for text in lines]


def _shorten(text: str, font: Font, width_px: float) -> str:
    """The text, cut to fit, with an ellipsis."""
    text = _clean(text)
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(text + "…") > width_px:
        text = text[:-1].rstrip()
    return text + "…"


def _clean(text: str) -> str:
    """The text as one line of composed letters: macOS decomposes file names, and their accents would be misplaced."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


@functools.cache
def load_font(size_px: int) -> Font:
    """DejaVu Sans from matplotlib's files: Pillow's default font lacks Vietnamese letters (ế, ậ, đ)."""
    try:
        package = find_spec("matplotlib")  # not imported: importing takes ten times as long as drawing a grid
        path = Path(package.origin if package and package.origin else "").parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        return ImageFont.truetype(str(path), size_px)
    except OSError:
        return ImageFont.load_default(size=size_px)
