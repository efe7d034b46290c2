"""The decoder's concatenation, written in place, and the network's head with the batch norm and ReLU before it.

Shapes, tiles and the order of sums are those of `norm.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ubend.accel.norm import MAX_PARTS, Map, from_the_end, normalised, parts_of, place, tile
from ubend.accel.norm_gradient import coefficients, finish_gradient

HEAD_CHANNELS = 128  # a program of the head holds all channels of a pixel; with more, the plain layers are used
_HEAD_ROWS = 64
_HEAD_GRADIENT_ROWS = 32  # both the fastest of those measured


@triton.jit
def _add_bias(up, bias, half, rows, channels, half_stride, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    columns, piece = place(channels, CHANNELS)
    row = (piece * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    mask = (row < rows)[:, None] & (columns < channels)[None, :]
    value = tl.load(up + row[:, None] * channels + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    value += tl.load(bias + columns, mask=columns < channels, other=0.0)[None, :]
    tl.store(half + row[:, None] * half_stride + columns[None, :], value.to(half.dtype.element_ty), mask=mask)


@triton.jit
def _copy_and_sum(half, up, partial, rows, channels, half_stride, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    """up = half, as a contiguous copy; partial[part] = the sum over rows."""
    columns = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = columns < channels
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(tl.program_id(1) * ROWS, rows, tl.num_programs(1) * ROWS):
        row = from_the_end(start, rows, ROWS).to(tl.int64)
        mask = (row >= 0)[:, None] & there[None, :]
        value = tl.load(half + row[:, None] * half_stride + columns[None, :], mask=mask, other=0.0)
        tl.store(up + row[:, None] * channels + columns[None, :], value, mask=mask)
        total += value.to(tl.float32)
    tl.store(partial + tl.program_id(1) * channels + columns, tl.sum(total, axis=0), mask=there)


@triton.jit
def _head(
    y,
    stats,
    weight,
    bias,
    logits,
    rows,
    pixels,
    channels,
    classes,
    CHANNELS: tl.constexpr,
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """logits = relu(y * scale + shift) weight^T + bias, in the memory order (N, K, H, W)."""
    columns = tl.arange(0, CHANNELS)
    kind = tl.arange(0, CLASSES)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    mask = (row < rows)[:, None] & (columns < channels)[None, :]
    scale = tl.load(stats + 2 * channels + columns, mask=columns < channels, other=0.0)
    shift = tl.load(stats + 3 * channels + columns, mask=columns < channels, other=0.0)
    _value, act = normalised(y, row[:, None] * channels + columns[None, :], mask, scale, shift)
    weights = _head_weights(weight, kind, columns, channels, classes)
    out = tl.dot(act, tl.trans(weights))
    out += tl.load(bias + kind, mask=kind < classes, other=0.0)[None, :]
    at = (row // pixels * classes * pixels + row % pixels)[:, None] + kind[None, :] * pixels
    tl.store(logits + at, out, mask=(row < rows)[:, None] & (kind < classes)[None, :])


@triton.jit
def _head_weights(weight, kind, columns, channels, classes):
    """(CLASSES, CHANNELS) float32, padded with zeros. Products are TF32: the head is limited by memory anyway."""
    mask = (kind < classes)[:, None] & (columns < channels)[None, :]
    return tl.load(weight + kind[:, None] * channels + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _load_planes(planes, row, rows, pixels, kind, classes):
    """(ROWS, CLASSES) of a (N, K, H, W) tensor."""
    at = (row // pixels * classes * pixels + row % pixels)[:, None] + kind[None, :] * pixels
    there = ((row >= 0) & (row < rows))[:, None] & (kind < classes)[None, :]
    return tl.load(planes + at, mask=there, other=0.0)


@triton.jit
def _head_gradient_moments(
    y,
    stats,
    weight,
    dlogits,
    partial,
    partial_weight,
    rows,
    pixels,
    channels,
    classes,
    CHANNELS: tl.constexpr,
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The same as `_gradient_moments` of norm_gradient.py, and partial_weight[part] = dlogits^T z."""
    columns = tl.arange(0, CHANNELS)
    kind = tl.arange(0, CLASSES)
    there = columns < channels
    mean = tl.load(stats + columns, mask=there, other=0.0)
    inverse = tl.load(stats + channels + columns, mask=there, other=0.0)
    scale = tl.load(stats + 2 * channels + columns, mask=there, other=0.0)
    shift = tl.load(stats + 3 * channels + columns, mask=there, other=0.0)
    weights = _head_weights(weight, kind, columns, channels, classes)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    product = tl.zeros((ROWS, CHANNELS), tl.float32)
    outer = tl.zeros((CLASSES, CHANNELS), tl.float32)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = from_the_end(start, rows, ROWS).to(tl.int64)
        mask = (row >= 0)[:, None] & there[None, :]
        value, act = normalised(y, row[:, None] * channels + columns[None, :], mask, scale, shift)
        down = _load_planes(dlogits, row, rows, pixels, kind, classes)
        g = tl.where(act > 0.0, tl.dot(down, weights), 0.0)
        total += g
        product += g * tl.where(mask, value - mean[None, :], 0.0)
        outer = tl.dot(tl.trans(down), tl.where(mask, act, 0.0), outer)
    out = partial + tl.program_id(0) * 2 * channels + columns
    tl.store(out, tl.sum(total, axis=0), mask=there)
    tl.store(out + channels, tl.sum(product, axis=0) * inverse, mask=there)
    at = partial_weight + tl.program_id(0) * classes * channels + kind[:, None] * channels + columns[None, :]
    tl.store(at, outer, mask=(kind < classes)[:, None] & there[None, :])


@triton.jit
def _head_input_gradient(
    y,
    stats,
    sums,
    weight,
    dlogits,
    dy,
    rows,
    pixels,
    channels,
    classes,
    CHANNELS: tl.constexpr,
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
):
    columns = tl.arange(0, CHANNELS)
    kind = tl.arange(0, CLASSES)
    there = columns < channels
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    mask = (row < rows)[:, None] & there[None, :]
    scale = tl.load(stats + 2 * channels + columns, mask=there, other=0.0)
    shift = tl.load(stats + 3 * channels + columns, mask=there, other=0.0)
    a, b, c = coefficients(stats, sums, rows, columns, there, channels)
    value, act = normalised(y, row[:, None] * channels + columns[None, :], mask, scale, shift)
    weights = _head_weights(weight, kind, columns, channels, classes)
    down = _load_planes(dlogits, row, rows, pixels, kind, classes)
    out = a * tl.where(act > 0.0, tl.dot(down, weights), 0.0) + b * value + c
    tl.store(dy + row[:, None] * channels + columns[None, :], out.to(dy.dtype.element_ty), mask=mask)


def add_bias(up: Tensor, bias: Tensor, half: Tensor) -> None:
    """half = up + bias.

    Args:
        up: (N, C, H, W) channels last.
        half: the same shape, C adjacent channels of a wider feature map.
    """
    layout, sizes = Map(up), tile(up.shape[1])
    grid = (triton.cdiv(layout.channels, sizes["CHANNELS"]) * triton.cdiv(layout.rows, sizes["ROWS"]),)
    _add_bias[grid](up, bias, half, layout.rows, layout.channels, Map(half).stride, **sizes)


def copy_and_sum(half: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) channels of a wider feature map -> a channels-last copy of them, and their (C,) float32 sums."""
    layout, channels, sizes = Map(half), half.shape[1], tile(half.shape[1])
    up = torch.empty(half.shape, dtype=half.dtype, device=half.device, memory_format=torch.channels_last)
    parts = parts_of(layout.rows, channels)
    partial = half.new_empty((parts, channels), dtype=torch.float32)
    grid = (triton.cdiv(channels, sizes["CHANNELS"]), parts)
    _copy_and_sum[grid](half, up, partial, layout.rows, channels, layout.stride, **sizes)
    return up, partial.sum(dim=0)


def head(y: Tensor, stats: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1x1 convolution of relu(batch norm of y).

    Args:
        y: (N, C, H, W) channels last, C <= HEAD_CHANNELS.
        stats: from `measure_statistics`.
        weight: (K, C, 1, 1); bias: (K,); float32.
    Returns:
        (N, K, H, W) float32, contiguous.
    """
    layout, classes = Map(y), weight.shape[0]
    logits = y.new_empty((y.shape[0], classes, *y.shape[2:]), dtype=torch.float32)
    sizes = _head_tile(layout.channels, classes)
    _head[(triton.cdiv(layout.rows, _HEAD_ROWS),)](
        y,
        stats,
        weight,
        bias,
        logits,
        layout.rows,
        y.shape[2] * y.shape[3],
        layout.channels,
        classes,
        ROWS=_HEAD_ROWS,
        **sizes,
    )
    return logits


def differentiate_head(
    y: Tensor, stats: Tensor, weight: Tensor, dlogits: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `head`: of y; (2, C) of batch norm's bias and weight; (K, C, 1, 1) of weight; (K,) of bias."""
    layout, classes, channels = Map(y), weight.shape[0], y.shape[1]
    dlogits = dlogits.float().contiguous()
    pixels, blocks = y.shape[2] * y.shape[3], triton.cdiv(layout.rows, _HEAD_GRADIENT_ROWS)
    sizes, parts = {**_head_tile(channels, classes), "ROWS": _HEAD_GRADIENT_ROWS}, min(blocks, MAX_PARTS)
    partial = y.new_empty((parts, 2, channels), dtype=torch.float32)
    partial_weight = y.new_empty((parts, classes, channels), dtype=torch.float32)
    _head_gradient_moments[(parts,)](
        y, stats, weight, dlogits, partial, partial_weight, layout.rows, pixels, channels, classes, **sizes
    )
    sums = finish_gradient(partial)
    dy = torch.empty_like(y, memory_format=torch.channels_last)
    _head_input_gradient[(blocks,)](
        y, stats, sums, weight, dlogits, dy, layout.rows, pixels, channels, classes, **sizes
    )
    return dy, sums, partial_weight.sum(dim=0).view_as(weight), dlogits.sum(dim=(0, 2, 3))


def _head_tile(channels: int, classes: int) -> dict[str, int]:
    """The block sizes of the head: powers of 2, at least 16 as matrix products require."""
    sides = {"CHANNELS": channels, "CLASSES": classes}
    return {name: max(16, triton.next_power_of_2(side)) for name, side in sides.items()}
