"""What ubend.model.fused asks of a CPU, in C (norm.c, join.c); gpu.py answers to the same names.

Maps are float32 or bfloat16, parameters and statistics float32. Sums are made in an order that depends on the
shape and the number of threads alone.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from ubend.kernels.compiler import load_kernels
from ubend.kernels.maps import Map

ALIGNED = 1  # a convolution takes any number of channels as it is
HEAD_CHANNELS = 128  # wider maps are faster by a matrix product


def measure_statistics(y: Tensor, norm: torch.nn.BatchNorm2d) -> Tensor:
    """(4, C) mean, 1 / deviation, scale, shift of the batch; the running statistics move."""
    seen, threads = Map(y), torch.get_num_threads()
    if seen.rows == 1:  # in torch's words
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {y.size()}")
    stats = torch.empty(4, seen.channels)
    _call(
        "measure_statistics",
        y,
        seen.rows,
        seen.channels,
        threads,
        norm.weight,
        norm.bias,
        norm.eps,
        norm.momentum,
        norm.running_mean,
        norm.running_var,
        stats,
        _partial(threads, 2 * seen.channels),
    )
    return stats


def apply(y: Tensor, stats: Tensor) -> Tensor:
    """relu(batch norm of y)."""
    z, seen = torch.empty_like(y), Map(y)
    _call("apply", y, stats, z, seen.rows, seen.channels, torch.get_num_threads())
    return z


def apply_and_pool(y: Tensor, stats: Tensor, z: Tensor | None) -> Tensor:
    """The 2x2 maxima of relu(batch norm of y), which is written into `z`."""
    n, channels, height, width = y.shape
    z = torch.empty_like(y) if z is None else z
    pool = _empty_map((n, channels, height // 2, width // 2), y.dtype)
    rows, columns = n * height // 2, width // 2
    _call("apply_and_pool", y, stats, z, Map(z).stride, pool, rows, columns, channels, torch.get_num_threads())
    return pool


def differentiate(y: Tensor, stats: Tensor, dz: Tensor | None, dpool: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradient that goes into y, and (2, C) those of batch norm's bias and weight."""
    seen, threads = Map(y), torch.get_num_threads()
    dy, sums, partial = torch.empty_like(y), torch.empty(2, seen.channels), _partial(threads, 2 * seen.channels)
    dz = torch.zeros_like(y) if dz is None else dz
    if dpool is None:
        assert Map(dz).stride == seen.channels
        _call("differentiate", y, stats, dz, dy, sums, seen.rows, seen.channels, threads, partial)
    else:
        rows, columns = y.shape[0] * seen.height // 2, seen.width // 2
        assert Map(dpool).stride == seen.channels
        _call(
            "differentiate_pooled",
            y,
            stats,
            dz,
            Map(dz).stride,
            dpool,
            dy,
            sums,
            rows,
            columns,
            seen.channels,
            threads,
            partial,
        )
    return dy, sums


def add_bias(up: Tensor, bias: Tensor, half: Tensor) -> None:
    """half = up + bias."""
    seen = Map(up)
    _call("add_bias", up, bias, half, Map(half).stride, seen.rows, seen.channels, torch.get_num_threads())


def copy_and_sum(half: Tensor) -> tuple[Tensor, Tensor]:
    """Channels of a wider map by themselves, and their (C,) sums."""
    seen, threads = Map(half), torch.get_num_threads()
    up, sums = _empty_map(half.shape, half.dtype), torch.empty(seen.channels)
    partial = _partial(threads, seen.channels)
    _call("copy_and_sum", half, seen.stride, up, sums, seen.rows, seen.channels, threads, partial)
    return up, sums


def head(y: Tensor, stats: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N, K, H, W) float32: a 1x1 convolution of relu(batch norm of y)."""
    seen, classes = Map(y), weight.shape[0]
    logits = torch.empty(y.shape[0], classes, seen.height, seen.width)
    area, threads = seen.height * seen.width, torch.get_num_threads()
    _call("head", y, stats, weight.flatten(1), bias, logits, y.shape[0], area, seen.channels, classes, threads)
    return logits


def differentiate_head(
    y: Tensor, stats: Tensor, weight: Tensor, dlogits: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `head` in y; (2, C) batch norm's bias and weight; weight; bias."""
    seen, classes, threads = Map(y), weight.shape[0], torch.get_num_threads()
    dlogits = dlogits.float().contiguous()
    dy, sums, dweight = torch.empty_like(y), torch.empty(2, seen.channels), torch.empty(classes, seen.channels)
    _call(
        "differentiate_head",
        y,
        stats,
        weight.flatten(1),
        dlogits,
        dy,
        sums,
        dweight,
        y.shape[0],
        seen.height * seen.width,
        seen.channels,
        classes,
        threads,
        _partial(threads, (2 + classes) * seen.channels),
    )
    return dy, sums, dweight.view_as(weight), dlogits.sum(dim=(0, 2, 3))


def _empty_map(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


def _partial(threads: int, count: int) -> Tensor:
    """Where each thread adds up `count` sums."""
    return torch.zeros(threads, count, dtype=torch.float64)


def _call(name: str, first: Tensor, *rest: Any) -> None:
    """A function of norm.c or join.c; its integers are long, its numbers double."""
    kernels = load_kernels(first.dtype)
    assert kernels is not None  # `fused.find_kernels` has asked
    getattr(kernels, name)(*map(_as_c, (first, *rest)))


def _as_c(value: Tensor | int | float) -> Any:
    match value:
        case int():
            return ctypes.c_long(value)
        case float():
            return ctypes.c_double(value)
        case Tensor():
            return ctypes.c_void_p(value.data_ptr())
    raise TypeError(value)
