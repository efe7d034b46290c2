"""Batch norm + ReLU (+ 2x2 max pooling), and its gradient, each reading its input as few times as can be.

A map in channels-last order is a matrix: R rows (pixels of all pictures) of C channels. Statistics and
arithmetic are float32, maps keep their dtype. Every program of a grid works on CHANNELS columns and on every
`num_programs`-th piece of ROWS rows. Sums over rows are made in two steps, in a fixed order, so they are the
same every time.

Source: Ioffe & Szegedy 2015, Batch Normalization, arXiv:1502.03167, with the usual gradient
    dy = w / s * (g - mean(g) - x * mean(g x)),  x = (y - m) / s,  g = dz where z > 0.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_PARTS = 512  # programs that sum over rows: four for each of an H100's 132 multiprocessors


class Map:
    """A (N, C, H, W) channels-last tensor as kernels see it: rows, their length, and how far they lie apart.

    Args:
        tensor: channels last; its channels may be a slice of a wider map's.
    """

    def __init__(self, tensor: Tensor) -> None:
        n, self.channels, self.height, self.width = tensor.shape
        self.rows, self.stride = n * self.height * self.width, tensor.stride(3)
        laid = (self.height * self.width * self.stride, 1, self.width * self.stride, self.stride)
        # a side of length 1 may have any stride
        if any(s != want for s, want, size in zip(tensor.stride(), laid, tensor.shape, strict=True) if size > 1):
            raise ValueError(f"not channels last: {tuple(tensor.shape)} with strides {tensor.stride()}")
        self.tensor = tensor


def tile(channels: int) -> dict[str, int]:
    """CHANNELS and ROWS of a program: 4096 numbers, rows of at least 32 bytes where there are so many."""
    columns = min(64, triton.next_power_of_2(channels))
    return {"CHANNELS": columns, "ROWS": min(128, 4096 // columns), "num_warps": 8}  # measured: 4 are 2% slower


def parts_of(rows: int, channels: int) -> int:
    """Over how many programs a sum over rows is spread; a function of the shape alone."""
    sizes = tile(channels)
    return max(1, min(int(triton.cdiv(rows, sizes["ROWS"])), _PARTS // int(triton.cdiv(channels, sizes["CHANNELS"]))))


@triton.jit
def _moments(y, partial, rows, channels, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    """partial[part] = (sum, sum of squares) of y - y[0]: the shift keeps the squares from cancelling."""
    columns = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = columns < channels
    shift = tl.load(y + columns, mask=there, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    square = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(tl.program_id(1) * ROWS, rows, tl.num_programs(1) * ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & there[None, :]
        value = tl.load(y + row.to(tl.int64)[:, None] * channels + columns[None, :], mask=mask, other=0.0)
        value = tl.where(mask, value.to(tl.float32) - shift[None, :], 0.0)
        total += value
        square += value * value
    out = partial + tl.program_id(1) * 2 * channels + columns
    tl.store(out, tl.sum(total, axis=0), mask=there)
    tl.store(out + channels, tl.sum(square, axis=0), mask=there)


@triton.jit
def _sum_parts(partial, parts, columns, there, channels, CHANNELS: tl.constexpr, PARTS: tl.constexpr):
    first = tl.zeros((PARTS, CHANNELS), tl.float32)
    second = tl.zeros((PARTS, CHANNELS), tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        mask = (part < parts)[:, None] & there[None, :]
        at = partial + part[:, None] * 2 * channels + columns[None, :]
        first += tl.load(at, mask=mask, other=0.0)
        second += tl.load(at + channels, mask=mask, other=0.0)
    return tl.sum(first, axis=0), tl.sum(second, axis=0)


@triton.jit
def _finish_moments(
    partial,
    parts,
    y,
    weight,
    bias,
    running_mean,
    running_var,
    stats,
    rows,
    channels,
    eps,
    momentum,
    CHANNELS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """stats = (mean, 1 / deviation, scale, shift) of each channel; running statistics moved by `momentum`."""
    columns = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = columns < channels
    total, square = _sum_parts(partial, parts, columns, there, channels, CHANNELS, PARTS)
    offset = total / rows
    var = tl.maximum(square / rows - offset * offset, 0.0)
    mean = tl.load(y + columns, mask=there, other=0.0).to(tl.float32) + offset
    inverse = 1.0 / tl.sqrt(var + eps)
    scale = tl.load(weight + columns, mask=there, other=0.0) * inverse
    shift = tl.load(bias + columns, mask=there, other=0.0) - mean * scale
    tl.store(stats + columns, mean, mask=there)
    tl.store(stats + channels + columns, inverse, mask=there)
    tl.store(stats + 2 * channels + columns, scale, mask=there)
    tl.store(stats + 3 * channels + columns, shift, mask=there)
    old = tl.load(running_mean + columns, mask=there, other=0.0)
    tl.store(running_mean + columns, old + momentum * (mean - old), mask=there)
    old = tl.load(running_var + columns, mask=there, other=0.0)
    tl.store(running_var + columns, old + momentum * (var * (rows / (rows - 1.0)) - old), mask=there)


@triton.jit
def normalised(y, offsets, mask, scale, shift):
    """The map's values there (float32), and relu(y * scale + shift) rounded as it is stored."""
    value = tl.load(y + offsets, mask=mask, other=0.0)
    bright = tl.maximum(value.to(tl.float32) * scale[None, :] + shift[None, :], 0.0)
    return value.to(tl.float32), bright.to(value.dtype).to(tl.float32)


@triton.jit
def place(channels, CHANNELS: tl.constexpr):
    """Columns of a program, and the number of its piece of rows. One axis of a grid: the others end at 65,535."""
    blocks = tl.cdiv(channels, CHANNELS)
    columns = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    return columns, tl.program_id(0) // blocks


@triton.jit
def _apply(y, stats, z, rows, channels, z_stride, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    """z = relu(y * scale + shift)."""
    columns, piece = place(channels, CHANNELS)
    row = (piece * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    mask = (row < rows)[:, None] & (columns < channels)[None, :]
    scale = tl.load(stats + 2 * channels + columns, mask=columns < channels, other=0.0)
    shift = tl.load(stats + 3 * channels + columns, mask=columns < channels, other=0.0)
    _value, bright = normalised(y, row[:, None] * channels + columns[None, :], mask, scale, shift)
    tl.store(z + row[:, None] * z_stride + columns[None, :], bright.to(z.dtype.element_ty), mask=mask)


@triton.jit
def _corners(pooled, width):
    """Row of the upper left of the four pixels that a pooled pixel covers; the large map's sides are even."""
    column = pooled % (width // 2)
    line = pooled // (width // 2)  # over all pictures
    return (2 * line * width + 2 * column).to(tl.int64)


@triton.jit
def _apply_and_pool(
    y,
    stats,
    z,
    pool,
    pixels,
    width,
    channels,
    z_stride,
    KEEP: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """z (if KEEP) as in `_apply`, and pool = its 2x2 maxima."""
    columns, piece = place(channels, CHANNELS)
    pixel = piece * ROWS + tl.arange(0, ROWS)
    mask = (pixel < pixels)[:, None] & (columns < channels)[None, :]
    scale = tl.load(stats + 2 * channels + columns, mask=columns < channels, other=0.0)
    shift = tl.load(stats + 3 * channels + columns, mask=columns < channels, other=0.0)
    corner = _corners(pixel, width)
    most = tl.zeros((ROWS, CHANNELS), tl.float32)  # nothing is below 0 after a ReLU
    for k in tl.static_range(4):
        row = corner + (k // 2) * width + k % 2
        _value, bright = normalised(y, row[:, None] * channels + columns[None, :], mask, scale, shift)
        if KEEP:
            tl.store(z + row[:, None] * z_stride + columns[None, :], bright.to(z.dtype.element_ty), mask=mask)
        most = tl.maximum(most, bright)
    at = pixel.to(tl.int64)[:, None] * channels + columns[None, :]
    tl.store(pool + at, most.to(pool.dtype.element_ty), mask=mask)


@triton.jit
def _gradient_moments(
    y,
    stats,
    dz,
    partial,
    rows,
    channels,
    dz_stride,
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
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        mask = (row < rows)[:, None] & there[None, :]
        value, bright = normalised(y, row[:, None] * channels + columns[None, :], mask, scale, shift)
        g = tl.load(dz + row[:, None] * dz_stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        g = tl.where(bright > 0.0, g, 0.0)
        total += g
        product += g * (value - mean[None, :])
    out = partial + tl.program_id(1) * 2 * channels + columns
    tl.store(out, tl.sum(total, axis=0), mask=there)
    tl.store(out + channels, tl.sum(product, axis=0) * inverse, mask=there)


@triton.jit
def _gradient(dz, row, dz_stride, columns, mask, bright, won, dpool, KEEP: tl.constexpr):
    """g of one of the four pixels: what came for z itself, and the pooled gradient if it won; 0 where z is."""
    g = tl.where(won, dpool, 0.0)
    if KEEP:
        g += tl.load(dz + row[:, None] * dz_stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    return tl.where(bright > 0.0, g, 0.0)


@triton.jit
def _four(y, stats, dz, dpool, corner, mask, columns, width, channels, dz_stride, KEEP: tl.constexpr):
    """y and g of the four pixels under each pooled one; of equal maxima the first in reading order has won."""
    there = columns < channels
    scale = tl.load(stats + 2 * channels + columns, mask=there, other=0.0)
    shift = tl.load(stats + 3 * channels + columns, mask=there, other=0.0)
    at = columns[None, :]
    y0, z0 = normalised(y, corner[:, None] * channels + at, mask, scale, shift)
    y1, z1 = normalised(y, (corner + 1)[:, None] * channels + at, mask, scale, shift)
    y2, z2 = normalised(y, (corner + width)[:, None] * channels + at, mask, scale, shift)
    y3, z3 = normalised(y, (corner + width + 1)[:, None] * channels + at, mask, scale, shift)
    most = tl.maximum(tl.maximum(z0, z1), tl.maximum(z2, z3))
    won0 = z0 == most
    won1 = (z1 == most) & (z0 < most)
    won2 = (z2 == most) & (z0 < most) & (z1 < most)
    won3 = (z0 < most) & (z1 < most) & (z2 < most)
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
    """`_gradient_moments` of a map that was pooled (and kept)."""
    columns = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = columns < channels
    mean = tl.load(stats + columns, mask=there, other=0.0)[None, :]
    inverse = tl.load(stats + channels + columns, mask=there, other=0.0)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    product = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(tl.program_id(1) * ROWS, pixels, tl.num_programs(1) * ROWS):
        pixel = start + tl.arange(0, ROWS)
        mask = (pixel < pixels)[:, None] & there[None, :]
        down = tl.load(dpool + pixel.to(tl.int64)[:, None] * channels + columns[None, :], mask=mask, other=0.0)
        y0, y1, y2, y3, g0, g1, g2, g3 = _four(
            y, stats, dz, down.to(tl.float32), _corners(pixel, width), mask, columns, width, channels, dz_stride, KEEP
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
    """sums = (sum of g, sum of g x): the gradients of bias and weight."""
    columns = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = columns < channels
    total, product = _sum_parts(partial, parts, columns, there, channels, CHANNELS, PARTS)
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
    value, bright = normalised(y, row[:, None] * channels + columns[None, :], mask, scale, shift)
    g = tl.load(dz + row[:, None] * dz_stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    out = a * tl.where(bright > 0.0, g, 0.0) + b * value + c
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
    corner = _corners(pixel, width)
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


def measure_statistics(y: Tensor, norm: torch.nn.BatchNorm2d) -> Tensor:
    """What `norm` makes of a map: (4, C) float32 mean, 1 / deviation, scale, shift.

    While training these are the batch's, and the running statistics move; else the running ones.

    Args:
        y: (N, C, H, W) channels last.
    """
    channels = y.shape[1]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if not norm.training:
        inverse = torch.rsqrt(norm.running_var + norm.eps)
        scale = norm.weight * inverse
        return torch.stack([norm.running_mean, inverse, scale, norm.bias - norm.running_mean * scale])
    rows = Map(y).rows
    parts = parts_of(rows, channels)
    sizes = tile(channels)
    partial = y.new_empty((parts, 2, channels), dtype=torch.float32)
    stats = y.new_empty((4, channels), dtype=torch.float32)
    _moments[(triton.cdiv(channels, sizes["CHANNELS"]), parts)](y, partial, rows, channels, **sizes)
    _finish_moments[(triton.cdiv(channels, 16),)](
        partial,
        parts,
        y,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        stats,
        rows,
        channels,
        norm.eps,
        norm.momentum,
        CHANNELS=16,
        PARTS=128,
    )
    return stats


def apply(y: Tensor, stats: Tensor) -> Tensor:
    """relu(batch norm of y): a map like y."""
    z = torch.empty_like(y, memory_format=torch.channels_last)
    seen, sizes = Map(y), tile(y.shape[1])
    grid = (triton.cdiv(seen.channels, sizes["CHANNELS"]) * triton.cdiv(seen.rows, sizes["ROWS"]),)
    _apply[grid](y, stats, z, seen.rows, seen.channels, seen.channels, **sizes)
    return z


def apply_and_pool(y: Tensor, stats: Tensor, z: Tensor | None) -> Tensor:
    """The 2x2 maxima of relu(batch norm of y), which itself is written into `z`, unless that is None.

    Args:
        y: (N, C, H, W) channels last; H and W even.
        z: like y, or the first C channels of a wider map.
    """
    n, channels, height, width = y.shape
    pool = torch.empty(
        (n, channels, height // 2, width // 2), dtype=y.dtype, device=y.device, memory_format=torch.channels_last
    )
    pixels, sizes = Map(y).rows // 4, _pooled_tile(channels)
    grid = (triton.cdiv(channels, sizes["CHANNELS"]) * triton.cdiv(pixels, sizes["ROWS"]),)
    stride = 0 if z is None else Map(z).stride
    _apply_and_pool[grid](
        y, stats, y if z is None else z, pool, pixels, width, channels, stride, KEEP=z is not None, **sizes
    )
    return pool


def differentiate(y: Tensor, stats: Tensor, dz: Tensor | None, dpool: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradient that goes into y, and (2, C) float32 those of batch norm's bias and weight.

    Args:
        dz: of relu(batch norm of y), channels last, perhaps a slice of a wider map; None: it went nowhere.
        dpool: of its 2x2 maxima, channels last; None: it was not pooled.
    """
    seen, channels = Map(y), y.shape[1]
    dy = torch.empty_like(y, memory_format=torch.channels_last)
    stride = 0 if dz is None else Map(dz).stride
    if dpool is None:
        assert dz is not None
        rows, sizes = seen.rows, tile(channels)
    else:
        rows, sizes = seen.rows // 4, _pooled_tile(channels)
    blocks = triton.cdiv(channels, sizes["CHANNELS"])
    parts = max(1, min(triton.cdiv(rows, sizes["ROWS"]), _PARTS // blocks))
    partial = y.new_empty((parts, 2, channels), dtype=torch.float32)
    grid = (blocks * triton.cdiv(rows, sizes["ROWS"]),)
    if dpool is None:
        _gradient_moments[(blocks, parts)](y, stats, dz, partial, rows, channels, stride, **sizes)
        sums = finish_gradient(partial)
        _input_gradient[grid](y, stats, sums, dz, dy, rows, channels, stride, **sizes)
    else:
        kept = {"KEEP": dz is not None, **sizes}
        given = y if dz is None else dz
        _pooled_gradient_moments[(blocks, parts)](
            y, stats, given, dpool, partial, rows, seen.width, channels, stride, **kept
        )
        sums = finish_gradient(partial)
        _pooled_input_gradient[grid](y, stats, sums, given, dpool, dy, rows, seen.width, channels, stride, **kept)
    return dy, sums


def finish_gradient(partial: Tensor) -> Tensor:
    """(parts, 2, C) -> (2, C), summed in a fixed order."""
    parts, _two, channels = partial.shape
    sums = partial.new_empty((2, channels))
    _finish_gradient[(triton.cdiv(channels, 16),)](partial, parts, sums, channels, CHANNELS=16, PARTS=128)
    return sums


def _pooled_tile(channels: int) -> dict[str, Any]:
    """Of pooled pixels: a quarter of the rows, since each stands for four."""
    sizes = tile(channels)
    return {**sizes, "ROWS": max(16, sizes["ROWS"] // 4)}
