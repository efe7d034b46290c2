"""The gradient of batch norm + activation (+ 2x2 max pooling): sums over rows, then one pass that writes the gradient.

Shapes, tiles and the order of sums are those of `norm.py`. The gradient is

    dy = w / s * (g - mean(g) - x * mean(g x)),  x = (y - m) / s,  g = dz where 0 < z (< 6), else 0

Source: Ioffe & Szegedy 2015, Batch Normalization, arXiv:1502.03167.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ubend.accel.norm import (
    FINISH,
    MAX_PARTS,
    Activation,
    Map,
    activated,
    corners,
    fits,
    from_the_end,
    normalised,
    place,
    pooled_tile,
    sum_parts,
    tile,
)


@triton.jit
def _passed(g, act, ACTIVATION: tl.constexpr):
    """The gradient before the activation; `act` is the activation's output or input, rounded to its stored dtype."""
    if ACTIVATION != "none":
        g = tl.where(act > 0.0, g, 0.0)
    if ACTIVATION == "relu6":
        g = tl.where(act < 6.0, g, 0.0)
    return g


@triton.jit
def _gradient_moments(
    y,
    stats,
    dz,
    partial,
    rows,
    channels,
    dz_stride,
    ACTIVATION: tl.constexpr,
    FITS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """partial[part] = (sum of g, sum of g x)."""
    columns = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = columns < channels
    mean = tl.load(stats + columns, mask=there, other=0.0)
    inverse = tl.load(stats + channels + columns, mask=there, other=0.0)
    scale = tl.load(stats + 2 * channels + columns, mask=there, other=0.0)
    shift = tl.load(stats + 3 * channels + columns, mask=there, other=0.0)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    product = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(tl.program_id(1) * ROWS, rows, tl.num_programs(1) * ROWS):
        row = from_the_end(start, rows, ROWS).to(tl.int64)
        mask = ((row >= 0)[:, None] & there[None, :]) | FITS
        value = tl.load(y + row[:, None] * channels + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        act = value * scale[None, :] + shift[None, :]
        if ACTIVATION == "relu6":  # ReLU needs no rounding: only the sign matters
            act = act.to(y.dtype.element_ty).to(tl.float32)
        g = tl.load(dz + row[:, None] * dz_stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        g = _passed(g, act, ACTIVATION)
        total += g
        product += g * (value - mean[None, :])
    out = partial + tl.program_id(1) * 2 * channels + columns
    tl.store(out, tl.sum(total, axis=0), mask=there)
    tl.store(out + channels, tl.sum(product, axis=0) * inverse, mask=there)


@triton.jit
def _gradient(dz, row, dz_stride, columns, mask, act, won, dpool, KEEP: tl.constexpr):
    """g of one of the four pixels: the gradient of z, plus the pooled pixel's if z is its maximum; 0 if z is 0."""
    g = tl.where(won, dpool, 0.0)
    if KEEP:
        g += tl.load(dz + row[:, None] * dz_stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    return tl.where(act > 0.0, g, 0.0)


@triton.jit
def _four(y, stats, dz, dpool, corner, mask, columns, width, channels, dz_stride, KEEP: tl.constexpr):
    """y and g of the four pixels of each pooled one; of equal maxima, the first in reading order gets the gradient."""
    there = columns < channels
    scale = tl.load(stats + 2 * channels + columns, mask=there, other=0.0)
    shift = tl.load(stats + 3 * channels + columns, mask=there, other=0.0)
    at = columns[None, :]
    y0, z0 = normalised(y, corner[:, None] * channels + at, mask, scale, shift)
    y1, z1 = normalised(y, (corner + 1)[:, None] * channels + at, mask, scale, shift)
    y2, z2 = normalised(y, (corner + width)[:, None] * channels + at, mask, scale, shift)
    y3, z3 = normalised(y, (corner + width + 1)[:, None] * channels + at, mask, scale, shift)
    maximum = tl.maximum(tl.maximum(z0, z1), tl.maximum(z2, z3))
    won0 = z0 == maximum
    won1 = (z1 == maximum) & (z0 < maximum)
    won2 = (z2 == maximum) & (z0 < maximum) & (z1 < maximum)
    won3 = (z0 < maximum) & (z1 < maximum) & (z2 < maximum)
    g0 = _gradient(dz, corner, dz_stride, columns, mask, z0, won0, dpool, KEEP)
    g1 = _gradient(dz, corner + 1, dz_stride, columns, mask, z1, won1, dpool, KEEP)
    g2 = _gradient(dz, corner + width, dz_stride, columns, mask, z2, won2, dpool, KEEP)
    g3 = _gradient(dz, corner + width + 1, dz_stride, columns, mask, z3, won3, dpool, KEEP)
    return y0, y1, y2, y3, g0, g1, g2, g3


@triton.jit
def _pooled_gradient_moments(
    y,
    stats,
    dz,
    dpool,
    partial,
    pixels,
    width,
    channels,
    dz_stride,
    KEEP: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The same as `_gradient_moments`, for a feature map that was pooled (and also kept, if KEEP)."""
    columns = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = columns < channels
    mean = tl.load(stats + columns, mask=there, other=0.0)[None, :]
    inverse = tl.load(stats + channels + columns, mask=there, other=0.0)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    product = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(tl.program_id(1) * ROWS, pixels, tl.num_programs(1) * ROWS):
        pixel = from_the_end(start, pixels, ROWS)
        mask = (pixel >= 0)[:, None] & there[None, :]
        down = tl.load(dpool + pixel.to(tl.int64)[:, None] * channels + columns[None, :], mask=mask, other=0.0)
        y0, y1, y2, y3, g0, g1, g2, g3 = _four(
            y, stats, dz, down.to(tl.float32), corners(pixel, width), mask, columns, width, channels, dz_stride, KEEP
        )
        total += g0 + g1 + g2 + g3
        product += g0 * (y0 - mean) + g1 * (y1 - mean) + g2 * (y2 - mean) + g3 * (y3 - mean)
    out = partial + tl.program_id(1) * 2 * channels + columns
    tl.store(out, tl.sum(total, axis=0), mask=there)
    tl.store(out + channels, tl.sum(product, axis=0) * inverse, mask=there)


@triton.jit
def _finish_gradient(
    partial,
    parts,
    sums,
    channels,
    CHANNELS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """sums = (sum of g, sum of g x), which are the gradients of bias and weight."""
    columns = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = columns < channels
    total, product = sum_parts(partial, parts, columns, there, channels, CHANNELS, PARTS)
    tl.store(sums + columns, total, mask=there)
    tl.store(sums + channels + columns, product, mask=there)


@triton.jit
def coefficients(stats, sums, rows, columns, there, channels):
    """(a, b, c) of each channel, so that dy = a * g + b * y + c."""
    mean = tl.load(stats + columns, mask=there, other=0.0)
    inverse = tl.load(stats + channels + columns, mask=there, other=0.0)
    scale = tl.load(stats + 2 * channels + columns, mask=there, other=0.0)
    mean_g = tl.load(sums + columns, mask=there, other=0.0) / rows
    mean_gx = tl.load(sums + channels + columns, mask=there, other=0.0) / rows
    slope = -scale * mean_gx * inverse
    return scale[None, :], slope[None, :], (-scale * mean_g - slope * mean)[None, :]


@triton.jit
def _input_gradient(
    y,
    stats,
    sums,
    dz,
    dy,
    rows,
    channels,
    dz_stride,
    ACTIVATION: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
):
    columns, piece = place(channels, CHANNELS)
    there = columns < channels
    row = (piece * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    mask = (row < rows)[:, None] & there[None, :]
    scale = tl.load(stats + 2 * channels + columns, mask=there, other=0.0)
    shift = tl.load(stats + 3 * channels + columns, mask=there, other=0.0)
    a, b, c = coefficients(stats, sums, rows, columns, there, channels)
    value, act = activated(y, row[:, None] * channels + columns[None, :], mask, scale, shift, ACTIVATION)
    g = tl.load(dz + row[:, None] * dz_stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    out = a * _passed(g, act, ACTIVATION) + b * value + c
    tl.store(dy + row[:, None] * channels + columns[None, :], out.to(dy.dtype.element_ty), mask=mask)


@triton.jit
def _pooled_input_gradient(
    y,
    stats,
    sums,
    dz,
    dpool,
    dy,
    pixels,
    width,
    channels,
    dz_stride,
    KEEP: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
):
    columns, piece = place(channels, CHANNELS)
    there = columns < channels
    pixel = piece * ROWS + tl.arange(0, ROWS)
    mask = (pixel < pixels)[:, None] & there[None, :]
    a, b, c = coefficients(stats, sums, 4 * pixels, columns, there, channels)
    down = tl.load(dpool + pixel.to(tl.int64)[:, None] * channels + columns[None, :], mask=mask, other=0.0)
    corner = corners(pixel, width)
    y0, y1, y2, y3, g0, g1, g2, g3 = _four(
        y, stats, dz, down.to(tl.float32), corner, mask, columns, width, channels, dz_stride, KEEP
    )
    at = columns[None, :]
    tl.store(dy + corner[:, None] * channels + at, (a * g0 + b * y0 + c).to(dy.dtype.element_ty), mask=mask)
    tl.store(dy + (corner + 1)[:, None] * channels + at, (a * g1 + b * y1 + c).to(dy.dtype.element_ty), mask=mask)
    tl.store(dy + (corner + width)[:, None] * channels + at, (a * g2 + b * y2 + c).to(dy.dtype.element_ty), mask=mask)
    tl.store(
        dy + (corner + width + 1)[:, None] * channels + at, (a * g3 + b * y3 + c).to(dy.dtype.element_ty), mask=mask
    )


def differentiate(
    y: Tensor, stats: Tensor, dz: Tensor | None, dpool: Tensor | None, activation: Activation = "relu"
) -> tuple[Tensor, Tensor]:
    """The gradient of y, and (2, C) float32 those of batch norm's bias and weight.

    Args:
        dz: gradient of activation(batch norm of y), channels last, or a slice of a wider feature map; None: it was
            used only for pooling.
        dpool: gradient of its 2x2 max pooling, channels last; None: it was not pooled. Requires ReLU.
    """
    layout, channels = Map(y), y.shape[1]
    dy = torch.empty_like(y, memory_format=torch.channels_last)
    stride = 0 if dz is None else Map(dz).stride
    if dpool is None:
        assert dz is not None
        rows, sizes = layout.rows, tile(channels)
    else:
        rows, sizes = layout.rows // 4, pooled_tile(channels)
    blocks = triton.cdiv(channels, sizes["CHANNELS"])
    parts = max(1, min(triton.cdiv(rows, sizes["ROWS"]), MAX_PARTS // blocks))
    partial = y.new_empty((parts, 2, channels), dtype=torch.float32)
    grid = (blocks * triton.cdiv(rows, sizes["ROWS"]),)
    if dpool is None:
        whole = fits(rows, channels, sizes)
        _gradient_moments[(blocks, parts)](
            y, stats, dz, partial, rows, channels, stride, ACTIVATION=activation, FITS=whole, **sizes
        )
        sums = finish_gradient(partial)
        _input_gradient[grid](y, stats, sums, dz, dy, rows, channels, stride, ACTIVATION=activation, **sizes)
    else:
        kept = {"KEEP": dz is not None, **sizes}
        given = y if dz is None else dz
        _pooled_gradient_moments[(blocks, parts)](
            y, stats, given, dpool, partial, rows, layout.width, channels, stride, **kept
        )
        sums = finish_gradient(partial)
        _pooled_input_gradient[grid](y, stats, sums, given, dpool, dy, rows, layout.width, channels, stride, **kept)
    return dy, sums


def finish_gradient(partial: Tensor) -> Tensor:
    """(parts, 2, C) -> (2, C), summed in a fixed order."""
    parts, _two, channels = partial.shape
    sums = partial.new_empty((2, channels))
    _finish_gradient[(triton.cdiv(channels, FINISH["CHANNELS"]),)](partial, parts, sums, channels, **FINISH)
    return sums
