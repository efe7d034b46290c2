"""Coloured masks, masks blended over images, and conversion of any image to 8-bit RGB.

Axis letters: H rows, W columns, C channels. Uses only NumPy, a few milliseconds per image, because it runs during
training.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .class_table import IGNORED

Color = tuple[int, int, int]

IGNORED_COLOR: Color = (128, 128, 128)  # mid-grey, in none of the default class colours
# kinds of wrong pixels: false positive, false negative, wrong class
ERROR_COLORS: dict[str, Color] = {"positive": (214, 30, 30), "negative": (30, 60, 220), "class": (170, 0, 170)}
NEAR_COLOR: Color = (0, 100, 40)  # of wrong pixels near a true outline; in none of the default class colours
_OUTLINE_SHARE = 256  # pixels of the longer side per pixel of outline: 1 px up to 384, 2 px up to 640
_BAND = 1 << 20  # pixels blended at a time
_SAMPLE = 1 << 16  # values used for the percentiles of an image; more make no visible difference


def color_mask(mask: NDArray[np.uint8], colors: Sequence[Color]) -> NDArray[np.uint8]:
    """The mask in the colours of its classes; ignored pixels are mid-grey.

    Args:
        mask: (H, W) uint8 class index, or IGNORED.
        colors: class index -> (red, green, blue), 0..255.
    Returns:
        (H, W, 3) uint8.
    Raises:
        ValueError: the mask contains a class without a colour.
    """
    return _color_table(mask, colors)[mask]


def overlay_mask(
    image: NDArray[Any],
    mask: NDArray[np.uint8],
    colors: Sequence[Color],
    opacity: float = 0.45,
    background: int | None = 0,
) -> NDArray[np.uint8]:
    """Blend the classes over the image, each region with an outline in its full colour.

    The outline is within the region's own pixels, so that the background stays unchanged; it is at least 1 px wide, and
    wider in large images. The edge of the image is not outlined.

    Args:
        image: (H, W, C) or (H, W); uint8, else stretched as in `to_rgb`.
        mask: (H, W) uint8 class index, or IGNORED: blended with mid-grey, without an outline.
        colors: class index -> (red, green, blue), 0..255.
        opacity: weight of the colour inside a region, 0..1.
        background: the class that is not painted; None: there is none.
    Returns:
        (H, W, 3) uint8; `image` itself is not changed.
    Raises:
        ValueError: sizes differ, or the mask contains a class without a colour.
    """
    if image.shape[:2] != mask.shape:
        raise ValueError(f"the image has the size {image.shape[:2]}, its mask {mask.shape}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is {opacity}, outside 0..1")
    table = _color_table(mask, colors)
    out = to_rgb(image).copy()
    outline = _outline(mask, max(1, round(max(mask.shape) / _OUTLINE_SHARE)))
    weight = round(opacity * 256)  # fixed point, 1/256: the blend of 255 with 255 stays 255
    rows = max(1, _BAND // mask.shape[1])
    for top in range(0, mask.shape[0], rows):  # in bands, since blending needs several times the memory of the pixels
        band = slice(top, top + rows)
        classes, shown = mask[band], out[band]
        painted = np.ones_like(classes, dtype=bool) if background is None else classes != background
        mixed = shown[painted].astype(np.uint16) * (256 - weight) + table[classes[painted]].astype(np.uint16) * weight
        shown[painted] = (mixed + 128) >> 8
        edge = outline[band] & painted & (classes != IGNORED)
        shown[edge] = table[classes[edge]]
    return out


def draw_errors(
    image: NDArray[Any],
    truth: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    background: int | None = 0,
    near_px: int = 0,
) -> NDArray[np.uint8]:
    """Draw the wrong pixels of a prediction in the colours of `ERROR_COLORS`, on the image in pale grey.

    Args:
        image: (H, W, C) or (H, W), as in `to_rgb`.
        truth: (H, W) uint8 class index, or IGNORED: never an error.
        prediction: (H, W) uint8 class index.
        background: the background class; None: there is none, and every error is a wrong class.
        near_px: wrong pixels within this distance of an outline of the truth are drawn in `NEAR_COLOR`.
    Returns:
        (H, W, 3) uint8.
    """
    grey = to_rgb(image).mean(axis=2, keepdims=True) / 2 + 112  # 112..239, so that black and white do not hide errors
    out = np.repeat(grey.astype(np.uint8), 3, axis=2)
    wrong = (truth != prediction) & (truth != IGNORED)
    out[wrong] = ERROR_COLORS["class"]
    if background is not None:
        out[wrong & (truth == background)] = ERROR_COLORS["positive"]
        out[wrong & (prediction == background)] = ERROR_COLORS["negative"]
    if near_px:
        out[wrong & _outline(truth, near_px)] = NEAR_COLOR
    return out


def to_rgb(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert any image for display: (H, W) or (H, W, C), uint8, uint16, float or bool -> (H, W, 3) uint8.

    One channel is grey; two are red and green; of three or more, the first three are red, green, blue. uint8 is not
    changed; other types are stretched from their 1st..99th percentile to 0..255 (from minimum..maximum if these
    percentiles are equal; a constant image is black). Three channels are stretched together, which preserves the hue;
    with any other number, each channel is stretched separately, since bands may have different units. NaN is black.

    Raises:
        ValueError: the image does not have two or three axes, or has no channel.
    """
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] == 0:
        raise ValueError(f"an image has the axes (H, W, C), not the shape {image.shape}")
    shown = image[:, :, :3]
    if shown.dtype != np.uint8:
        apart = 1 if image.shape[2] != 3 else 3
        shown = np.concatenate([_stretch(shown[:, :, i : i + apart]) for i in range(0, shown.shape[2], apart)], axis=2)
    if shown.shape[2] == 1:
        return np.repeat(shown, 3, axis=2)
    if shown.shape[2] == 2:
        return np.concatenate([shown, np.zeros_like(shown[:, :, :1])], axis=2)
    return np.ascontiguousarray(shown)


def _stretch(image: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W, C) of any number type -> uint8, 1st..99th percentile to 0..255."""
    values = image.astype(np.float32)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite[:: max(1, finite.size // _SAMPLE)], (1, 99)) if finite.size else (0, 0)
    if low == high and finite.size:  # sparse bright spots on black
        low, high = finite.min(), finite.max()
    if low == high:
        return np.zeros(image.shape, dtype=np.uint8)
    with np.errstate(over="ignore"):  # nodata values such as -3.4e38; clipped below
        scaled = (values - np.float32(low)) * np.float32(255 / (float(high) - float(low)))
    clipped: NDArray[np.float32] = np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255)
    return np.rint(clipped).astype(np.uint8)


def _color_table(mask: NDArray[np.uint8], colors: Sequence[Color]) -> NDArray[np.uint8]:
    """(256, 3) uint8: class index or IGNORED -> colour."""
    highest = int(np.max(mask, where=mask != IGNORED, initial=0))
    if highest >= len(colors):
        raise ValueError(f"the mask holds the class {highest}, but only {len(colors)} colours are given")
    table = np.full((256, 3), IGNORED_COLOR, dtype=np.uint8)
    table[: min(len(colors), IGNORED)] = colors[:IGNORED]
    return table


def _outline(mask: NDArray[np.uint8], width_px: int) -> NDArray[np.bool_]:
    """(H, W): pixels with another class at most `width_px` rows or columns away."""
    out = np.zeros(mask.shape, dtype=bool)
    for classes, outline in ((mask, out), (mask.T, out.T)):
        edge = classes[1:] != classes[:-1]
        for shift in range(min(width_px, len(edge))):
            outline[shift + 1 :] |= edge[: len(edge) - shift]
            outline[: len(edge) - shift] |= edge[shift:]
    return out
