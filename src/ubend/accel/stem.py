"""The network's first convolution, with normalisation and padding of the image, in one pass over memory.

With so few channels, cuDNN's kernels reach a twentieth of an H100's peak, after separate passes that pad, normalise
and convert. Here a program gathers the 3x3 neighbourhoods of ROWS pixels and multiplies them with all weights at once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ubend.models.segmentation_net import mirror

_MAX_VALUES = 4096  # largest number of values that a program gathers


@triton.jit
def _convolve(
    image,
    mean,
    std,
    weight,
    bias,
    out,
    rows,
    height,
    width,
    height_out,
    width_out,
    of_image,
    of_channel,
    of_row,
    of_column,
    outputs,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    y = row // width_out % height_out
    x = row % width_out
    tap = tl.arange(0, TAPS)
    channel = tap % CHANNELS
    yy = y[:, None] + (tap // CHANNELS // 3 - 1)[None, :]
    xx = x[:, None] + (tap // CHANNELS % 3 - 1)[None, :]
    real = tap < 9 * CHANNELS
    inside = (row < rows)[:, None] & real[None, :] & (yy >= 0) & (yy < height_out) & (xx >= 0) & (xx < width_out)
    at = (row // (height_out * width_out) * of_image)[:, None] + (channel * of_channel)[None, :]
    at += tl.minimum(yy, 2 * (height - 1) - yy) * of_row + tl.minimum(xx, 2 * (width - 1) - xx) * of_column
    value = tl.load(image + at, mask=inside, other=0).to(tl.float32)
    value = (value - tl.load(mean + channel)[None, :]) / tl.load(std + channel)[None, :]
    column = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    there = column < outputs
    weights = tl.load(weight + tap[:, None] * outputs + column[None, :], mask=real[:, None] & there[None, :], other=0)
    value = tl.where(inside, value, 0.0).to(weights.dtype)
    sums = tl.dot(value, weights, input_precision=PRECISION) + tl.load(bias + column, mask=there, other=0)[None, :]
    act = tl.maximum(sums, 0.0).to(out.dtype.element_ty)
    tl.store(out + row[:, None] * outputs + column[None, :], act, mask=(row < rows)[:, None] & there[None, :])


def first_convolution(
    image: Tensor, mean: Tensor, std: Tensor, weight: Tensor, bias: Tensor, padded_hw: tuple[int, int]
) -> Tensor:
    """relu(3x3 convolution of (image - mean) / std + bias); the image is padded as by `pad_to_multiple`.

    Args:
        image: (N, C, H, W) of any dtype, in any memory order.
        mean, std: C numbers, float32.
        weight: (9 * C, K), in the dtype of the computation; ordered by kernel row, kernel column, channel.
        bias: (K,) float32.
        padded_hw: (H', W') >= (H, W), px.
    Returns:
        (N, K, H', W') channels last, of the weight's dtype.
    """
    for dim, padded in ((-2, padded_hw[0]), (-1, padded_hw[1])):
        if padded > 2 * image.shape[dim] - 1:  # mirrored several times
            image = mirror(image, dim, 0, padded)
    n, channels, height, width = image.shape
    outputs = weight.shape[1]
    out = torch.empty(
        (n, outputs, *padded_hw), dtype=weight.dtype, device=image.device, memory_format=torch.channels_last
    )
    rows = n * padded_hw[0] * padded_hw[1]
    taps = max(16, triton.next_power_of_2(9 * channels))
    block = max(16, min(128, triton.next_power_of_2(outputs)))
    size = max(16, min(128, _MAX_VALUES // taps))
    _convolve[(triton.cdiv(rows, size), triton.cdiv(outputs, block))](
        image,
        mean,
        std,
        weight,
        bias,
        out,
        rows,
        height,
        width,
        *padded_hw,
        *image.stride(),
        outputs,
        CHANNELS=channels,
        TAPS=taps,
        OUTPUTS=block,
        ROWS=size,
        PRECISION="ieee" if weight.dtype == torch.float32 else "tf32",
    )
    return out
