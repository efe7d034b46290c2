"""Draws the outlines and numbers of objects on their image. H x W pixels."""

import colorsys

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_LEGIBLE_PX = 40  # wanted side of a typical object in the overlay, so that its number fits
_MIN_SIDE_PX = 768  # wanted longer side of the overlay of a small image
_MAX_SCALE = 4
_MAX_SIDE_PX = 2048  # images are enlarged to this longer side at most
_TEXT_SHARE, _TEXT_PX = 0.3, (11, 32)  # height of numbers: share of a typical object's side; minimum and maximum
_LINE_SHARE, _IMAGE_SHARE = 20, 400  # px of a typical object's side, and of the longer side, per px of outline
_GOLDEN = 0.618034  # change of hue from object to object, in turns: successive objects have very different colours
_HUES = 0.10, 0.52  # orange to cyan: different from the violet of H&E, and bright on black
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_SAMPLE_PX = 256  # longer side to which a region is reduced to search its widest point


def draw_objects(image: NDArray[np.uint8], ids: NDArray[np.uint32]) -> Image.Image:
    """Draw the outline and the number of each object on the image.

    Outlines are light lines between dark edges, visible on dark and on light images, within the object's own pixels.
    Numbers are inside the objects, or next to objects that are too small. Images of small objects are enlarged up to 4
    times, to a longer side of at most 2048 px, so that the numbers are legible.

    Args:
        image: (H, W, 3), 0..255.
        ids: (H, W), 0 where there is no object, else 1, 2, ... without gaps.
    Returns:
        RGB image; its size is (H, W) times a whole number.
    """
    import scipy

    areas = np.bincount(ids.reshape(-1))[1:]
    side, longer = float(np.sqrt(np.median(areas))) if len(areas) else float(_LEGIBLE_PX), max(ids.shape)
    wanted = max(round(_LEGIBLE_PX / side), round(_MIN_SIDE_PX / longer))
    scale = max(1, min(wanted, _MAX_SCALE, _MAX_SIDE_PX // longer))
    page = Image.fromarray(image).resize((ids.shape[1] * scale, ids.shape[0] * scale), Image.Resampling.BICUBIC)
    large = ids.repeat(scale, axis=0).repeat(scale, axis=1)
    width = max(1, min(round(side * scale / _LINE_SHARE), round(longer * scale / _IMAGE_SHARE)))
    page = Image.fromarray(_draw_outlines(np.array(page), large, len(areas), width))
    draw, font = ImageDraw.Draw(page), _load_font(int(np.clip(side * scale * _TEXT_SHARE, *_TEXT_PX)))
    taken = large > 0
    for object_id, box in enumerate(scipy.ndimage.find_objects(large.astype(np.int64)), 1):
        _write_number(draw, large[box] == object_id, box, str(object_id), font, taken)
    return page


def write_inside(
    draw: ImageDraw.ImageDraw, region: NDArray[np.bool_], offset: tuple[int, int], text: str, font: Font
) -> None:
    """Write text at the widest point of a region, moved into the page if necessary.

    Args:
        region: (H, W) the region.
        offset: row and column of its first pixel in the page.
    """
    y, x, _depth = _find_widest(region)
    _write(draw, y + offset[0], x + offset[1], text, font)


def _load_font(size_px: int) -> Font:
    """Pillow's own font: it has all digits, and is the same whether matplotlib is installed or not."""
    return ImageFont.load_default(size=size_px)


def _draw_outlines(image: NDArray[np.uint8], ids: NDArray[np.uint32], count: int, width: int) -> NDArray[np.uint8]:
    import scipy
    from skimage.segmentation import find_boundaries

    line = find_boundaries(ids, mode="inner")
    if width > 1:
        line = scipy.ndimage.binary_dilation(line, iterations=width - 1) & (ids > 0)
    square = np.ones((3, 3), bool)
    image[scipy.ndimage.binary_dilation(line, square, iterations=(width + 1) // 2)] = _BLACK
    hues = _HUES[0] + (np.arange(count + 1) * _GOLDEN) % 1 * (_HUES[1] - _HUES[0])
    colors = np.array([colorsys.hsv_to_rgb(hue, 0.85, 1.0) for hue in hues])
    image[line] = np.rint(255 * colors[ids[line]]).astype(np.uint8)
    return image


def _write_number(
    draw: ImageDraw.ImageDraw,
    region: NDArray[np.bool_],
    box: tuple[slice, slice],
    text: str,
    font: Font,
    taken: NDArray[np.bool_],
) -> None:
    """Write a number inside its object if it fits, else at the first free side, else inside; mark its area as taken."""
    half_w, half_h = _half_size(text, font)
    y, x, depth = _find_widest(region)
    y, x = y + box[0].start, x + box[1].start
    positions = [(y, x)]
    if depth < np.hypot(half_w, half_h):
        left, right, top, bottom = box[1].start - half_w, box[1].stop + half_w, box[0].start, box[0].stop
        positions = [(y, right), (y, left), (bottom + half_h, x), (top - half_h, x), *positions]
    for position in positions:
        y, x = _move_inside(position, (half_w, half_h), (taken.shape[1], taken.shape[0]))
        covered = np.s_[int(y - half_h) : int(y + half_h) + 1, int(x - half_w) : int(x + half_w) + 1]
        if not taken[covered].any():
            break
    taken[covered] = True
    _write(draw, y, x, text, font)


def _half_size(text: str, font: Font) -> tuple[float, float]:
    """Half the width and half the height of a text with its border, px."""
    left, top, right, bottom = font.getbbox(text, stroke_width=1)
    return (right - left) / 2, (bottom - top) / 2


def _move_inside(
    position: tuple[float, float], half_wh: tuple[float, float], size_wh: tuple[int, int]
) -> tuple[float, float]:
    """Row and column of a text's centre, moved so that the text is inside a page of this size, as far as it fits."""
    (y, x), (half_w, half_h), (width, height) = position, half_wh, size_wh
    return max(half_h, min(y, height - half_h)), max(half_w, min(x, width - half_w))


def _write(draw: ImageDraw.ImageDraw, y: float, x: float, text: str, font: Font) -> None:
    """Write white text with a dark border, centred at a point, moved into the page if necessary."""
    y, x = _move_inside((y, x), _half_size(text, font), draw.im.size)
    draw.text((x, y), text, fill=_WHITE, font=font, anchor="mm", stroke_width=1, stroke_fill=_BLACK)


def _find_widest(region: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Row, column and distance to the border of the pixel that is farthest from the border."""
    import scipy

    step = max(1, max(region.shape) // _SAMPLE_PX)
    depth = scipy.ndimage.distance_transform_edt(np.pad(region[::step, ::step], 1))
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return (float(y) - 1) * step, (float(x) - 1) * step, float(depth[y, x]) * step
