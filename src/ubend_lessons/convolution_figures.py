"""Draws convolutions of small matrices: all steps in one image, and as an animation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ubend.core.files import write_file
from ubend.core.i18n import _
from ubend.drawing.panels import load_font
from ubend_lessons.convolution import Matrix, Piece, Steps

_PAPER, _INK, _FAINT = (255, 255, 255), (30, 30, 30), (150, 150, 150)
_PLAIN, _INPUT, _PIECE, _OVERLAP, _CUT = (
    (255, 255, 255),
    (189, 215, 240),
    (255, 217, 160),
    (245, 170, 150),
    (228, 228, 228),
)
_CELL_PX, _GAP_PX, _LINE_PX, _TEXT_PX = 44, 24, 26, 16
MAX_STEPS = 16  # that are drawn; of more, the first ones and the last
Color = tuple[int, int, int]


def draw_transposed(steps: Steps) -> list[Image.Image]:
    """An image for each step (input with the current value, kernel, sum so far), and one of the output."""
    sum_so_far, frames = np.zeros_like(steps.large), []
    for number, piece in enumerate(steps.pieces, 1):
        window = _window(piece, steps.kernel)
        touched = np.zeros(steps.large.shape, bool)
        touched[window] = True
        before = np.zeros(steps.large.shape, bool)
        for earlier in steps.pieces[: number - 1]:
            before[_window(earlier, steps.kernel)] = True
        sum_so_far[window] += piece.values
        value = _number(steps.small[piece.row, piece.column])
        caption = _("step {number}: {value} times the kernel, placed at row {row}, column {column}").format(
            number=number, value=value, row=piece.top + 1, column=piece.left + 1
        )
        colors = _paint(touched & ~before, _PIECE, touched & before, _OVERLAP)
        shown = np.where(touched | before, sum_so_far, np.nan)
        frames.append(_draw_frame(caption, steps, (piece.row, piece.column), shown, colors))
    (p, q), (height, width) = steps.padding, steps.large.shape
    cut = np.ones(steps.large.shape, bool)
    cut[p : height - p, q : width - q] = False
    caption = _("output {height} x {width}: the padding cuts off the grey rows and columns").format(
        height=height - 2 * p, width=width - 2 * q
    )
    if not cut.any():
        caption = _("output {height} x {width}").format(height=height, width=width)
    frames.append(_draw_frame(caption, steps, None, steps.large, _paint(cut, _CUT, ~cut, _PIECE)))
    return frames


def draw_convolution(steps: Steps) -> list[Image.Image]:
    """An image for each step: the input with its window, the kernel, the output so far."""
    frames, so_far = [], np.full_like(steps.small, np.nan)
    for number, piece in enumerate(steps.pieces, 1):
        seen = np.zeros(steps.large.shape, bool)
        seen[_window(piece, steps.kernel)] = True
        so_far[piece.row, piece.column] = piece.values.sum()
        caption = _("step {number}: products of window and kernel add up to {value}").format(
            number=number, value=_number(float(piece.values.sum()))
        )
        now = np.zeros(steps.small.shape, bool)
        now[piece.row, piece.column] = True
        empty: NDArray[np.bool_] = np.zeros(steps.large.shape, bool)
        parts = [
            (_("input"), steps.large, _paint(seen, _INPUT, empty, _PLAIN)),
            (_("kernel"), steps.kernel, None),
            (_("output"), so_far.copy(), _paint(now, _PIECE, np.zeros(now.shape, bool), _PLAIN)),
        ]
        frames.append(_lay_out(caption, parts))
    return frames


def draw_overlaps(counts: Sequence[tuple[str, Matrix]]) -> Image.Image:
    """Draw how many pieces overlap at each pixel: a heat map for each matrix, with its heading."""
    parts: list[tuple[str, Matrix, NDArray[np.uint8] | None]] = []
    for heading, count in counts:
        shade = (count - count.min()) / max(1.0, count.max() - count.min())
        colors = np.array(_PLAIN) + shade[:, :, None] * (np.array(_OVERLAP) - np.array(_PLAIN))
        parts.append((heading, count, colors.astype(np.uint8)))
    return _lay_out(_("how many pieces overlap at each output pixel"), parts)


def stack(frames: Sequence[Image.Image]) -> Image.Image:
    """Draw all steps below each other; of more than `MAX_STEPS`, the first ones and the last."""
    if len(frames) > MAX_STEPS:
        frames = [*frames[: MAX_STEPS - 1], frames[-1]]
    page = Image.new("RGB", (max(f.width for f in frames), sum(f.height for f in frames)), _PAPER)
    top = 0
    for frame in frames:
        page.paste(frame, (0, top))
        top += frame.height
    return page


def save_animation(frames: Sequence[Image.Image], path: Path, seconds: float = 1.2) -> None:
    """Write an animated GIF that repeats; its last image is shown three times as long."""
    width, height = max(f.width for f in frames), max(f.height for f in frames)
    pages = []
    for frame in frames:
        page = Image.new("RGB", (width, height), _PAPER)
        page.paste(frame, (0, 0))
        pages.append(page)
    durations = [round(1000 * seconds)] * (len(pages) - 1) + [round(3000 * seconds)]
    write_file(
        path,
        lambda place: pages[0].save(
            place, format="GIF", save_all=True, append_images=pages[1:], duration=durations, loop=0
        ),
    )


def _draw_frame(
    caption: str, steps: Steps, marked: tuple[int, int] | None, large: Matrix, colors: NDArray[np.uint8]
) -> Image.Image:
    now: NDArray[np.bool_] = np.zeros(steps.small.shape, bool)
    if marked is not None:
        now[marked] = True
    inputs = _paint(now, _INPUT, np.zeros(now.shape, bool), _PLAIN)
    parts = [(_("input"), steps.small, inputs), (_("kernel"), steps.kernel, None), (_("sum"), large, colors)]
    return _lay_out(caption, parts)


def _lay_out(caption: str, parts: Sequence[tuple[str, Matrix, NDArray[np.uint8] | None]]) -> Image.Image:
    """Draw matrices next to each other, each with its heading (NaN: an empty cell), and a line of text above them."""
    font = load_font(_TEXT_PX)
    widths = [max(m.shape[1] * _CELL_PX, round(font.getlength(name))) for name, m, _colors in parts]
    height = max(m.shape[0] for _name, m, _colors in parts) * _CELL_PX
    width = max(sum(widths) + _GAP_PX * (len(parts) - 1), round(font.getlength(caption)))
    page = Image.new("RGB", (width + 2 * _GAP_PX, height + 2 * _LINE_PX + 2 * _GAP_PX), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_GAP_PX, _GAP_PX), caption, fill=_INK, font=font, anchor="lm")
    left = _GAP_PX
    for (name, matrix, colors), room in zip(parts, widths, strict=True):
        draw.text((left, _GAP_PX + _LINE_PX), name, fill=_FAINT, font=font, anchor="lm")
        _draw_matrix(draw, (left, _GAP_PX + 2 * _LINE_PX - _TEXT_PX // 2), matrix, colors)
        left += room + _GAP_PX
    return page


def _draw_matrix(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], matrix: Matrix, colors: NDArray[np.uint8] | None
) -> None:
    for (row, column), value in np.ndenumerate(matrix):
        x, y = at[0] + column * _CELL_PX, at[1] + row * _CELL_PX
        color: Color = _PLAIN if colors is None else tuple(int(c) for c in colors[row, column])  # type: ignore[assignment]
        draw.rectangle((x, y, x + _CELL_PX, y + _CELL_PX), fill=color, outline=_FAINT)
        if not np.isnan(value):
            text = _number(float(value))
            font = load_font(_TEXT_PX if len(text) < 5 else 11)
            draw.text((x + _CELL_PX / 2, y + _CELL_PX / 2), text, fill=_INK, font=font, anchor="mm")


def _paint(first: NDArray[np.bool_], color: Color, second: NDArray[np.bool_], other: Color) -> NDArray[np.uint8]:
    colors = np.full((*first.shape, 3), _PLAIN, np.uint8)
    colors[first], colors[second] = color, other
    return colors


def _window(piece: Piece, kernel: Matrix) -> tuple[slice, slice]:
    height, width = kernel.shape
    return slice(piece.top, piece.top + height), slice(piece.left, piece.left + width)


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1e4 else f"{value:.0e}"
