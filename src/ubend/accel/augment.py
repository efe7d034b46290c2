"""Augmentation of a batch (warp and colours) as two kernels, which read the images on the device directly.

The counterpart of `warp` and `change_colors` in ubend.dataset.augment; it reads their arguments in packed form
(`TrainingBatches.pack`). A program processes PIXELS pixels of one image.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_PIXELS = 256
_GRID = 5  # points per side of the elastic field; ubend.dataset.augment.ELASTIC_POINTS
_BLUR_REACH = 3  # as in ubend.dataset.augment
# Columns of a row of `packed`; those after the gains (one per channel) are shifted by C.
_OFFSET, _ELASTIC, _GAMMA, _CONTRAST, _BRIGHTNESS, _GAIN = (tl.constexpr(v) for v in (4, 6, 56, 57, 58, 59))
_SATURATION, _BLUR, _NOISE, _NOISE_YX, _SHAPE = (tl.constexpr(v) for v in (59, 60, 61, 62, 64))


@triton.jit
def _reflect(source, size):
    """A coordinate mirrored at the borders -0.5 and size - 0.5, into [0, size - 1]."""
    shifted = source + 0.5
    folded = shifted - tl.floor(shifted / (2 * size)) * (2 * size)
    folded = tl.where(folded >= size, 2 * size - folded, folded) - 0.5
    return tl.minimum(tl.maximum(folded, 0.0), size - 1)


@triton.jit
def _warp(
    images,
    masks,
    items,
    packed,
    basis_y,
    basis_x,
    low,
    high,
    out,
    target,
    columns,
    stored_h,
    stored_w,
    height,
    width,
    CHANNELS: tl.constexpr,
    COLORS: tl.constexpr,
    IGNORE: tl.constexpr,
    POINTS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    image = tl.program_id(0)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < height * width
    row, column = pixel // width, pixel % width
    image_row = packed + image * columns
    shift_y = tl.zeros((PIXELS,), tl.float32)
    shift_x = tl.zeros((PIXELS,), tl.float32)
    for h in range(POINTS):
        along_y = tl.zeros((PIXELS,), tl.float32)
        along_x = tl.zeros((PIXELS,), tl.float32)
        for g in tl.static_range(POINTS):
            weight = tl.load(basis_y + row * POINTS + g, mask=inside, other=0.0)
            along_y += weight * tl.load(image_row + _ELASTIC + g * POINTS + h)
            along_x += weight * tl.load(image_row + _ELASTIC + POINTS * POINTS + g * POINTS + h)
        weight = tl.load(basis_x + column * POINTS + h, mask=inside, other=0.0)
        shift_y += weight * along_y
        shift_x += weight * along_x
    y = row.to(tl.float32) - (height - 1) / 2
    x = column.to(tl.float32) - (width - 1) / 2
    size_y, size_x = tl.load(image_row + _SHAPE + CHANNELS), tl.load(image_row + _SHAPE + CHANNELS + 1)
    source_y = (
        shift_y + tl.load(image_row) * y + tl.load(image_row + 1) * x + (size_y - 1) / 2 + tl.load(image_row + _OFFSET)
    )
    source_x = (
        shift_x
        + tl.load(image_row + 2) * y
        + tl.load(image_row + 3) * x
        + (size_x - 1) / 2
        + tl.load(image_row + _OFFSET + 1)
    )
    within_y, within_x = _reflect(source_y, size_y), _reflect(source_x, size_x)

    base = tl.load(items + image).to(tl.int64) * stored_h * stored_w
    nearest_y, nearest_x = tl.floor(within_y + 0.5).to(tl.int32), tl.floor(within_x + 0.5).to(tl.int32)
    index = tl.load(masks + base + nearest_y * stored_w + nearest_x, mask=inside, other=255)
    if IGNORE:
        outside = (source_y < -0.5) | (source_y > size_y - 0.5) | (source_x < -0.5) | (source_x > size_x - 0.5)
        index = tl.where(outside, 255, index)
    at = image.to(tl.int64) * height * width + pixel
    tl.store(target + at, index.to(tl.uint8), mask=inside)

    top, left = tl.floor(within_y), tl.floor(within_x)
    lower, right = within_y - top, within_x - left
    top, left = top.to(tl.int32), left.to(tl.int32)
    bottom = tl.minimum(top + 1, size_y.to(tl.int32) - 1)
    beside = tl.minimum(left + 1, size_x.to(tl.int32) - 1)
    total = tl.zeros((PIXELS,), tl.float32)
    for c in tl.static_range(CHANNELS):
        value = _sample(images, base, top, bottom, left, beside, lower, right, stored_w, inside, c, CHANNELS)
        if COLORS:
            value = _color(value, image_row, low, high, c, CHANNELS)
            total += value
        tl.store(out + at * CHANNELS + c, value, mask=inside)
    if COLORS and CHANNELS == 3:
        # saturation scales about the channels' mean; sampling three values again is cheaper than keeping them
        saturation = tl.load(image_row + _SATURATION + CHANNELS)
        for c in tl.static_range(CHANNELS):
            value = _sample(images, base, top, bottom, left, beside, lower, right, stored_w, inside, c, CHANNELS)
            value = _color(value, image_row, low, high, c, CHANNELS)
            tl.store(out + at * CHANNELS + c, total / 3 + saturation * (value - total / 3), mask=inside)


@triton.jit
def _sample(images, base, top, bottom, left, beside, lower, right, stored_w, inside, c, CHANNELS: tl.constexpr):
    """Bilinear interpolation of channel c."""
    upper_row, lower_row = base + top * stored_w, base + bottom * stored_w
    a = tl.load(images + (upper_row + left) * CHANNELS + c, mask=inside, other=0).to(tl.float32)
    b = tl.load(images + (upper_row + beside) * CHANNELS + c, mask=inside, other=0).to(tl.float32)
    d = tl.load(images + (lower_row + left) * CHANNELS + c, mask=inside, other=0).to(tl.float32)
    e = tl.load(images + (lower_row + beside) * CHANNELS + c, mask=inside, other=0).to(tl.float32)
    return (a * (1 - right) + b * right) * (1 - lower) + (d * (1 - right) + e * right) * lower


@triton.jit
def _color(value, image_row, low, high, c, CHANNELS: tl.constexpr):
    """Gamma, then contrast and gain about mid-range, then brightness; as fractions of the value range."""
    minimum, maximum = tl.load(low + c), tl.load(high + c)
    share = tl.minimum(tl.maximum((value - minimum) / (maximum - minimum), 0.0), 1.0)
    share = tl.where(share > 0.0, tl.exp2(tl.load(image_row + _GAMMA) * tl.log2(tl.maximum(share, 1e-30))), 0.0)
    contrast = tl.load(image_row + _CONTRAST)
    return share * (contrast * tl.load(image_row + _GAIN + c)) + (
        tl.load(image_row + _BRIGHTNESS) + 0.5 - 0.5 * contrast
    )


@triton.jit
def _blur_and_noise(
    warped,
    packed,
    noise,
    low,
    high,
    out,
    columns,
    side,
    height,
    width,
    CHANNELS: tl.constexpr,
    REACH: tl.constexpr,
    PIXELS: tl.constexpr,
):
    image = tl.program_id(0)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < height * width
    row, column = pixel // width, pixel % width
    image_row = packed + image * columns + CHANNELS  # all columns read here are after the gains
    base = image.to(tl.int64) * height * width
    sigma, amount = tl.load(image_row + _BLUR), tl.load(image_row + _NOISE)
    noise_y = (tl.load(image_row + _NOISE_YX).to(tl.int32) + row) % side
    noise_x = (tl.load(image_row + _NOISE_YX + 1).to(tl.int32) + column) % side
    spread = tl.maximum(sigma * sigma, 1e-6)
    norm = 0.0
    for k in range(2 * REACH + 1):
        norm += tl.exp(-0.5 * (k - REACH) * (k - REACH) / spread)
    for c in tl.static_range(CHANNELS):
        value = tl.zeros((PIXELS,), tl.float32)
        if sigma > 0.0:
            for k in range(2 * REACH + 1):
                line = tl.minimum(tl.maximum(row + k - REACH, 0), height - 1)
                along = tl.zeros((PIXELS,), tl.float32)
                for j in range(2 * REACH + 1):
                    place = tl.minimum(tl.maximum(column + j - REACH, 0), width - 1)
                    tap = tl.exp(-0.5 * (j - REACH) * (j - REACH) / spread)
                    at = (base + line * width + place) * CHANNELS + c
                    along += tap * tl.load(warped + at, mask=inside, other=0.0)
                value += tl.exp(-0.5 * (k - REACH) * (k - REACH) / spread) * along
            value = value / (norm * norm)
        else:
            value = tl.load(warped + (base + pixel) * CHANNELS + c, mask=inside, other=0.0)
        if amount > 0.0:
            value += amount * tl.load(noise + (c * side + noise_y) * side + noise_x, mask=inside, other=0.0)
        value = tl.minimum(tl.maximum(value, 0.0), 1.0)
        minimum = tl.load(low + c)
        tl.store(out + (base + pixel) * CHANNELS + c, value * (tl.load(high + c) - minimum) + minimum, mask=inside)


def warp(
    images: Tensor,
    masks: Tensor,
    items: Tensor,
    packed: Tensor,
    basis: tuple[Tensor, Tensor],
    value_range: tuple[Tensor, Tensor],
    *,
    colors: bool,
    ignore_outside: bool,
) -> tuple[Tensor, Tensor]:
    """Warp a batch's images and masks; with `colors` also change gamma, brightness, contrast, gain and saturation.

    Args:
        images: (n, h, w, C) of any dtype, all images; masks: (n, h, w) uint8.
        items: (N,) int32, the indices of the batch's images.
        packed: (N, K) float32, `AugmentParams.pack` followed by the images' (h, w).
        basis: weights of the elastic field, (H, 5) and (W, 5).
        value_range: (low, high), C numbers each.
    Returns:
        (N, C, H, W) float32 channels last, fractions of the value range if `colors`, else raw values; (N, H, W) uint8.
    """
    height, width, channels, n = len(basis[0]), len(basis[1]), images.shape[3], len(items)
    out = packed.new_empty((n, height, width, channels))
    target = torch.empty((n, height, width), dtype=torch.uint8, device=images.device)
    _warp[(n, triton.cdiv(height * width, _PIXELS))](
        images, masks, items, packed, *basis, *value_range, out, target, packed.shape[1], *images.shape[1:3],
        height, width, CHANNELS=channels, COLORS=colors, IGNORE=ignore_outside, POINTS=_GRID, PIXELS=_PIXELS,
    )  # fmt: skip
    return out.permute(0, 3, 1, 2), target


def blur_and_noise(warped: Tensor, packed: Tensor, noise: Tensor, value_range: tuple[Tensor, Tensor]) -> Tensor:
    """Blur, add noise, and convert fractions of the value range to raw values: (N, C, H, W) float32, channels last.

    Args:
        warped: from `warp` with colours.
        noise: (C, S, S) float32.
    """
    shares = warped.permute(0, 2, 3, 1)
    n, height, width, channels = shares.shape
    out = torch.empty_like(shares)
    _blur_and_noise[(n, triton.cdiv(height * width, _PIXELS))](
        shares, packed, noise, *value_range, out, packed.shape[1], noise.shape[1], height, width,
        CHANNELS=channels, REACH=_BLUR_REACH, PIXELS=_PIXELS,
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)
