"""Draws figures of the original U-Net: its sizes, its weight map, its mirrored tiles.

Source: Ronneberger et al. 2015, arXiv:1505.04597; figures 1, 2 and 3 are redrawn from computed values.
"""

import colorsys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ubend.core.i18n import _
from ubend.drawing.panels import draw_grid, load_font
from ubend.models.paper import EDGE_PX, valid_margin
from ubend.portable.overlay import Color, to_rgb
from ubend.portable.tiling import Tiling

_PAPER, _INK, _FAINT, _FRAME = (255, 255, 255), (30, 30, 30), (95, 95, 95), (120, 120, 120)
_MAP, _COPY = (189, 215, 240), (255, 255, 255)
_CONVOLVE, _POOL, _GROW, _SKIP, _HEAD = (60, 110, 170), (200, 60, 50), (60, 150, 70), (140, 140, 140), (0, 140, 150)
_NEEDED, _GIVEN = (40, 110, 220), (250, 200, 20)  # of a tile: the network's input, and its output
_GOLDEN = 0.618034  # change of hue from object to object, in turns
_TEXT_PX, _SMALL_PX, _LINE_PX = 17, 12, 28
_BOX_PX, _STEP_PX = 26, 64  # width of a feature map; distance from one to the next
_TALLEST_PX, _MIN_PX, _SHRINK = 150, 18, 0.6  # heights of feature maps: a power of their side
_MARGIN_PX, _GAP_PX = 40, 66  # around the drawing; between levels
_CELL_PX = 320  # of a grid
_SHOWN_PX = 640  # longer side of the drawing of tiles
Point = tuple[int, int]


def level_sides(side: int, depth: int) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """The sides of the feature maps, px, before, between and after the two convolutions of each level.

    Args:
        side: of the input, see `input_side`.
    Returns:
        The levels on the way down, full size first, and those on the way up, deepest first.
    """
    down, up = [], []
    for _level in range(depth + 1):
        down.append((side, side - 2, side - 4))
        side = (side - 4) // 2
    side = down[-1][2]
    for _level in range(depth):
        up.append((2 * side, 2 * side - 2, 2 * side - 4))
        side = 2 * side - 4
    return down, up


def draw_sizes(side: int, depth: int, width: int, channels: int, classes: int) -> Image.Image:
    """Draw the network as in figure 1: each feature map with its channels above and its side (px) below.

    Args:
        side: of the input, px, see `input_side`.
        depth, width, channels, classes: see `PaperUNet`.
    """
    down, up = level_sides(side, depth)
    up = up[::-1]  # full size first
    tall = [max(_MIN_PX, round(_TALLEST_PX * (own[0] / side) ** _SHRINK)) for own in down]
    tops = [_MARGIN_PX + _TEXT_PX + sum(tall[:row]) + _GAP_PX * row for row in range(depth + 1)]
    middles = [top + height // 2 for top, height in zip(tops, tall, strict=True)]
    low = [round(tall[row] * up[row][0] / down[row][2]) for row in range(depth)]  # heights on the way up
    widths = [width << row for row in range(depth + 1)]
    legend = [
        (_CONVOLVE, _("3x3 convolution without padding, ReLU")),
        (_SKIP, _("copy and crop")),
        (_POOL, _("2x2 max pooling")),
        (_GROW, _("2x2 transposed convolution")),
        (_HEAD, _("1x1 convolution")),
    ]
    foot = tops[-1] + tall[-1] + _GAP_PX
    page = Image.new(
        "RGB", (2 * _MARGIN_PX + (4 * depth + 3) * _STEP_PX + _BOX_PX, foot + _LINE_PX * len(legend)), _PAPER
    )
    draw = ImageDraw.Draw(page)

    for row in range(depth + 1):
        left, y = _MARGIN_PX + 2 * row * _STEP_PX, middles[row]
        before = channels if row == 0 else widths[row - 1]
        for index, count in enumerate((before, widths[row], widths[row])):
            at = left + index * _STEP_PX
            _draw_map(draw, (at, y), tall[row], str(count), down[row][index])
            if index:
                _draw_arrow(draw, (at - _STEP_PX + _BOX_PX, y), (at, y), _CONVOLVE)
        if row < depth:
            x = left + 2 * _STEP_PX + _BOX_PX // 2
            _draw_arrow(draw, (x, tops[row] + tall[row] + 20), (x, tops[row + 1] - 22), _POOL)
    for row in reversed(range(depth)):
        left, y = _MARGIN_PX + (2 * depth + 2 + 2 * (depth - row - 1)) * _STEP_PX, middles[row]
        last, half = _MARGIN_PX + 2 * (row + 1) * _STEP_PX, low[row] // 2
        # the frame inside the skipped feature map is the part that the crop keeps
        draw.rectangle((last + 3, y - half, last + _BOX_PX - 4, y + half), outline=_SKIP, width=2)
        _draw_arrow(draw, (last + _BOX_PX, y), (left - _BOX_PX, y), _SKIP)
        _draw_map(draw, (left - _BOX_PX, y), low[row], "", None, _COPY)
        _write_channels(draw, (left, y), low[row], f"{widths[row]} + {widths[row]}")  # over both halves
        for index, text in enumerate(("", str(widths[row]), str(widths[row]))):
            at = left + index * _STEP_PX
            _draw_map(draw, (at, y), low[row], text, up[row][index])
            if index:
                _draw_arrow(draw, (at - _STEP_PX + _BOX_PX, y), (at, y), _CONVOLVE)
        below = (low[row + 1] if row + 1 < depth else tall[depth]) // 2
        x = left + _BOX_PX // 2
        _draw_arrow(draw, (x, middles[row + 1] - below - 22), (x, y + half + 20), _GROW)
    x, y = _MARGIN_PX + (4 * depth + 3) * _STEP_PX, middles[0]
    _draw_map(draw, (x, y), low[0], str(classes), up[0][2])
    _draw_arrow(draw, (x - _STEP_PX + _BOX_PX, y), (x, y), _HEAD)
    for index, (color, words) in enumerate(legend):
        y = foot + _LINE_PX * index
        _draw_arrow(draw, (_MARGIN_PX, y), (_MARGIN_PX + 40, y), color)
        draw.text((_MARGIN_PX + 54, y), words, fill=_INK, font=load_font(_TEXT_PX), anchor="lm")
    return page


def draw_weights(image: NDArray[Any], ids: NDArray[Any], weights: NDArray[np.float32]) -> Image.Image:
    """Draw an image, its objects, and the weight map as in figure 3; white: no weight beyond that of the class.

    Args:
        image: (H, W, C); ids: (H, W), 0 where there is no object.
        weights: (H, W) from `border_weights`.
    """
    maximum = max(float(weights.max()), 1e-6)
    headings = [_("input"), _("objects"), _("border weight, 0 to {maximum:.1f}").format(maximum=maximum)]
    return draw_grid([[to_rgb(image), color_ids(ids), _heat(weights / maximum)]], headings, cell_px=_CELL_PX)


def draw_tiles(image: NDArray[Any], depth: int, tile_px: int) -> Image.Image:
    """Draw the tiles as in figure 2: the image, mirrored at its border, with the network's input and output of a tile.

    Args:
        image: (H, W, C).
        depth: of the network.
        tile_px: side of the output of a tile, px, see `Tiling`.
    """
    margin = valid_margin(depth)
    plan = Tiling(tile_px, multiple=1 << depth, margin=margin, edge_px=EDGE_PX).plan(image.shape[:2])
    rows, columns = plan.rows.input_indices_of_all(), plan.columns.input_indices_of_all()
    whole = to_rgb(image[rows[:, None], columns])
    own = np.s_[margin : margin + image.shape[0], margin : margin + image.shape[1]]
    pale = (whole * 0.55 + 255 * 0.45).astype(np.uint8)  # the mirrored border
    pale[own] = whole[own]
    scale = _SHOWN_PX / max(pale.shape[:2])
    size = round(pale.shape[1] * scale), round(pale.shape[0] * scale)
    legend = [
        (_INK, _("the image; outside it, paler, its mirror image")),
        (_NEEDED, _("input of the network: {side} px").format(side=plan.input_hw[0])),
        (
            _GIVEN,
            _("output of the network: {side} px; each pixel is taken from the first tile that contains it").format(
                side=plan.rows.tile
            ),
        ),
    ]
    font = load_font(_TEXT_PX)
    room = max(size[0], 30 + max(round(font.getlength(words)) for _color, words in legend))
    page = Image.new("RGB", (room + 2 * _TEXT_PX, size[1] + _LINE_PX * len(legend) + 2 * _TEXT_PX), _PAPER)
    page.paste(Image.fromarray(pale).resize(size, Image.Resampling.BICUBIC), (_TEXT_PX, _TEXT_PX))
    draw = ImageDraw.Draw(page)

    def frame(top: float, left: float, high: float, wide: float, color: Color, line: int) -> None:
        box = (left, top, left + wide, top + high)
        draw.rectangle([_TEXT_PX + round(scale * place) for place in box], outline=color, width=line)

    for y in plan.rows.starts:
        for x in plan.columns.starts:
            frame(margin + y, margin + x, plan.rows.tile, plan.columns.tile, _GIVEN, 1)
    frame(margin, margin, image.shape[0], image.shape[1], _INK, 3)  # over the tiles, which share its edges
    y, x = plan.rows.starts[0], plan.columns.starts[-1]  # the tile of a corner, where most pixels are mirrored
    frame(y, x, *plan.input_hw, _NEEDED, 4)
    frame(margin + y, margin + x, plan.rows.tile, plan.columns.tile, _GIVEN, 4)
    for index, (color, words) in enumerate(legend):
        middle = _TEXT_PX + size[1] + _LINE_PX * index + _LINE_PX // 2
        draw.rectangle((_TEXT_PX, middle - 6, _TEXT_PX + 20, middle + 6), outline=color, width=3)
        draw.text((_TEXT_PX + 30, middle), words, fill=_INK, font=font, anchor="lm")
    return page


def color_ids(ids: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W) numbers of objects -> (H, W, 3) colours, very different for successive numbers; 0 is black."""
    table = np.array([(0, 0, 0), *map(object_color, range(1, int(ids.max()) + 1))], np.uint8)
    colored: NDArray[np.uint8] = table[ids.astype(np.int64)]
    return colored


def object_color(number: int) -> Color:
    """The colour of the object with this number, from 1."""
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.6, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


def _heat(share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(H, W) values 0..1 -> (H, W, 3) colours: white, yellow, red, black."""
    stops = np.array([[255, 255, 255], [255, 220, 80], [215, 40, 30], [60, 0, 20]], np.float64)
    place = np.clip(share, 0, 1) * (len(stops) - 1)
    first = np.minimum(place.astype(np.int64), len(stops) - 2)
    rest = (place - first)[..., None]
    mixed: NDArray[np.uint8] = (stops[first] * (1 - rest) + stops[first + 1] * rest).astype(np.uint8)
    return mixed


def _draw_map(
    draw: ImageDraw.ImageDraw, at: Point, height: int, channels: str, side: int | None, color: Color = _MAP
) -> None:
    """Draw a feature map; `at` is the middle of its left edge."""
    x, y = at[0], at[1] - height // 2
    draw.rectangle((x, y, x + _BOX_PX, y + height), fill=color, outline=_FRAME)
    middle = x + _BOX_PX // 2
    _write_channels(draw, (middle, at[1]), height, channels)
    if side is not None:
        draw.text((middle, y + height + 10), f"{side}", fill=_FAINT, font=load_font(_SMALL_PX), anchor="mm")


def _write_channels(draw: ImageDraw.ImageDraw, middle: Point, height: int, text: str) -> None:
    """Write the number of channels above one feature map, or above two concatenated ones, of this height."""
    x, y = middle[0], middle[1] - height // 2 - 10
    draw.text((x, y), text, fill=_INK, font=load_font(_SMALL_PX + 1), anchor="mm")


def _draw_arrow(draw: ImageDraw.ImageDraw, begin: Point, end: Point, color: Color) -> None:
    """Draw a horizontal or vertical arrow."""
    draw.line((*begin, *end), fill=color, width=3)
    (x, y), head = end, 8
    if begin[1] == end[1]:
        draw.polygon([(x, y), (x - head, y - 6), (x - head, y + 6)], fill=color)
    else:
        back = head if begin[1] > y else -head
        draw.polygon([(x, y), (x - 6, y + back), (x + 6, y + back)], fill=color)
