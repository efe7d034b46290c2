"""Batch norm + ReLU, ReLU6 or no activation (+ 2x2 max pooling), with as few passes over its input as possible.

A feature map in channels-last order is a matrix: R rows (pixels of all images) of C channels. Statistics and
arithmetic are float32; feature maps keep their dtype. Every program of a grid processes CHANNELS columns and every
`num_programs`-th block of ROWS rows. Sums over rows are computed in two steps, in a fixed order, so they are
reproducible.

Source: Ioffe & Szegedy 2015, Batch Normalization, arXiv:1502.03167.
"""

from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

Activation = Literal["none", "relu", "relu6"]  # what follows batch norm


class Map:
    """A (N, C, H, W) channels-last tensor as a matrix: number of rows, their length, and the stride between them.

    Args:
        tensor: channels last; its channels may be a slice of a wider feature map.
    """

    def __init__(self, tensor: Tensor) -> None:
        n, self.channels, self.height, self.width = tensor.shape
        self.rows = n * self.height * self.width
        # a side of length 1 may have any stride
        self.stride = next((tensor.stride(side) for side in (3, 2, 0) if tensor.shape[side] > 1), self.channels)
        laid = (self.height * self.width * self.stride, 1, self.width * self.stride, self.stride)
        if any(s != want for s, want, size in zip(tensor.stride(), laid, tensor.shape, strict=True) if size > 1):
            raise ValueError(f"not channels last: {tuple(tensor.shape)} with strides {tensor.stride()}")
        self.tensor = tensor


MAX_PARTS = 512  # programs that sum over rows: four for each of an H100's 132 multiprocessors
FINISH = {"CHANNELS": 8, "PARTS": MAX_PARTS, "num_warps": 8}  # sizes of a program that adds up their sums


def tile(channels: int) -> dict[str, int]:
    """CHANNELS and ROWS of a program: 4096 values, in rows of at least 32 bytes if there are enough channels."""
    columns = min(64, triton.next_power_of_2(channels))
    return {"CHANNELS": columns, "ROWS": min(128, 4096 // columns), "num_warps": 8}  # measured: 4 are 2% slower


def fits(rows: int, channels: int, sizes: dict[str, int]) -> bool:
    """Whether tiles cover a feature map exactly; kernels then need no masks."""
    return rows % sizes["ROWS"] == 0 and channels % sizes["CHANNELS"] == 0


def parts_of(rows: int, channels: int) -> int:
    """The number of programs that share a sum over rows; it depends only on the shape."""
    sizes = tile(channels)
    return max(
        1, min(int(triton.cdiv(rows, sizes["ROWS"])), MAX_PARTS // int(triton.cdiv(channels, sizes["CHANNELS"])))
    )


@triton.jit
def from_the_end(start, rows, ROWS: tl.constexpr):
    """Row numbers `start` to `start + ROWS` counted from the end of a feature map; negative beyond its beginning.

    A feature map is written from its beginning, so its end may still be in the L2 cache (50 MB of an H100). Sums start
    reading there, and leave the beginning in the cache for the next pass.
    """
    return rows - 1 - start - tl.arange(0, ROWS)


@triton.jit
def _moments(y, partial, rows, channels, FITS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    """partial[part] = (sum, sum of squares) of y - y[0]; the shift avoids cancellation in the variance."""
    columns = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = columns < channels
    shift = tl.load(y + columns, mask=there, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    square = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(tl.program_id(1) * ROWS, rows, tl.num_programs(1) * ROWS):
        row = from_the_end(start, rows, ROWS)
        mask = ((row >= 0)[:, None] & there[None, :]) | FITS
        value = tl.load(y + row.to(tl.int64)[:, None] * channels + columns[None, :], mask=mask, other=0.0)
        value = tl.where(mask, value.to(tl.float32) - shift[None, :], 0.0)
        total += value
        square += value * value
    out = partial + tl.program_id(1) * 2 * channels + columns
    tl.store(out, tl.sum(total, axis=0), mask=there)
    tl.store(out + channels, tl.sum(square, axis=0), mask=there)


@triton.jit
def sum_parts(partial, parts, columns, there, channels, CHANNELS: tl.constexpr, PARTS: tl.constexpr):
    """The two totals of (parts, 2, C) partial sums, for these columns, added in a fixed order."""
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
    """stats = (mean, 1 / deviation, scale, shift) of each channel; also updates the running statistics."""
    columns = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = columns < channels
    total, square = sum_parts(partial, parts, columns, there, channels, CHANNELS, PARTS)
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
    """The values at these offsets (float32), and relu(y * scale + shift) rounded to the stored dtype."""
    value = tl.load(y + offsets, mask=mask, other=0.0)
    act = tl.maximum(value.to(tl.float32) * scale[None, :] + shift[None, :], 0.0)
    return value.to(tl.float32), act.to(value.dtype).to(tl.float32)


@triton.jit
def activated(y, offsets, mask, scale, shift, ACTIVATION: tl.constexpr):
    """The same as `normalised`, with any activation."""
    value = tl.load(y + offsets, mask=mask, other=0.0)
    act = value.to(tl.float32) * scale[None, :] + shift[None, :]
    if ACTIVATION != "none":
        act = tl.maximum(act, 0.0)
    if ACTIVATION == "relu6":
        act = tl.minimum(act, 6.0)
    return value.to(tl.float32), act.to(value.dtype).to(tl.float32)


@triton.jit
def place(channels, CHANNELS: tl.constexpr):
    """Columns of a program, and the number of its block of rows. The grid has one axis: others end at 65,535."""
    blocks = tl.cdiv(channels, CHANNELS)
    columns = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    return columns, tl.program_id(0) // blocks


@triton.jit
def _apply(
    y,
    stats,
    z,
    rows,
    channels,
    z_stride,
    ACTIVATION: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """z = activation(y * scale + shift)."""
    columns, piece = place(channels, CHANNELS)
    row = (piece * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    mask = (row < rows)[:, None] & (columns < channels)[None, :]
    scale = tl.load(stats + 2 * channels + columns, mask=columns < channels, other=0.0)
    shift = tl.load(stats + 3 * channels + columns, mask=columns < channels, other=0.0)
    _value, act = activated(y, row[:, None] * channels + columns[None, :], mask, scale, shift, ACTIVATION)
    tl.store(z + row[:, None] * z_stride + columns[None, :], act.to(z.dtype.element_ty), mask=mask)


@triton.jit
def corners(pooled, width):
    """Row number of the upper left of the four pixels of a pooled one; height and width before pooling are even."""
    column = pooled % (width // 2)
    line = pooled // (width // 2)  # over all images
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
    """z as in `_apply` (if KEEP), and pool = 2x2 max pooling of it."""
    columns, piece = place(channels, CHANNELS)
    pixel = piece * ROWS + tl.arange(0, ROWS)
    mask = (pixel < pixels)[:, None] & (columns < channels)[None, :]
    scale = tl.load(stats + 2 * channels + columns, mask=columns < channels, other=0.0)
    shift = tl.load(stats + 3 * channels + columns, mask=columns < channels, other=0.0)
    corner = corners(pixel, width)
    maximum = tl.zeros((ROWS, CHANNELS), tl.float32)  # values are not negative after ReLU
    for k in tl.static_range(4):
        row = corner + (k // 2) * width + k % 2
        _value, act = normalised(y, row[:, None] * channels + columns[None, :], mask, scale, shift)
        if KEEP:
            tl.store(z + row[:, None] * z_stride + columns[None, :], act.to(z.dtype.element_ty), mask=mask)
        maximum = tl.maximum(maximum, act)
    at = pixel.to(tl.int64)[:, None] * channels + columns[None, :]
    tl.store(pool + at, maximum.to(pool.dtype.element_ty), mask=mask)


def measure_statistics(y: Tensor, norm: torch.nn.BatchNorm2d) -> Tensor:
    """The statistics with which `norm` normalises y: (4, C) float32 mean, 1 / deviation, scale, shift.

    In training these are the statistics of the batch, and the running statistics are updated; otherwise these are the
    running statistics.

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
    grid = (triton.cdiv(channels, sizes["CHANNELS"]), parts)
    _moments[grid](y, partial, rows, channels, FITS=fits(rows, channels, sizes), **sizes)
    _finish_moments[(triton.cdiv(channels, FINISH["CHANNELS"]),)](
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
        **FINISH,
    )
    return stats


def apply(y: Tensor, stats: Tensor, activation: Activation = "relu") -> Tensor:
    """activation(batch norm of y), with the shape and dtype of y."""
    z = torch.empty_like(y, memory_format=torch.channels_last)
    layout, sizes = Map(y), tile(y.shape[1])
    grid = (triton.cdiv(layout.channels, sizes["CHANNELS"]) * triton.cdiv(layout.rows, sizes["ROWS"]),)
    _apply[grid](y, stats, z, layout.rows, layout.channels, layout.channels, ACTIVATION=activation, **sizes)
    return z


def apply_and_pool(y: Tensor, stats: Tensor, z: Tensor | None) -> Tensor:
    """2x2 max pooling of relu(batch norm of y); the input of the pooling is written to `z`, unless that is None.

    Args:
        y: (N, C, H, W) channels last; H and W even.
        z: of the shape of y; may be the first C channels of a wider feature map.
    """
    n, channels, height, width = y.shape
    pool = torch.empty(
        (n, channels, height // 2, width // 2), dtype=y.dtype, device=y.device, memory_format=torch.channels_last
    )
    pixels, sizes = Map(y).rows // 4, pooled_tile(channels)
    grid = (triton.cdiv(channels, sizes["CHANNELS"]) * triton.cdiv(pixels, sizes["ROWS"]),)
    stride = 0 if z is None else Map(z).stride
    _apply_and_pool[grid](
        y, stats, y if z is None else z, pool, pixels, width, channels, stride, KEEP=z is not None, **sizes
    )
    return pool


def pooled_tile(channels: int) -> dict[str, Any]:
    """The tile of pooled pixels: a quarter of the rows, since each pooled pixel reads four."""
    sizes = tile(channels)
    return {**sizes, "ROWS": max(16, sizes["ROWS"] // 4)}
