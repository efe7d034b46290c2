"""The U-Net of unet.py for prediction only: the same function, with the parameters at the time of construction.

Batch norm is folded into the convolution before it, weights are cast once, bias and ReLU are part of the convolution
if cuDNN supports it, and the image is normalised inside the first convolution. The operations between convolutions are
kernels on NVIDIA GPUs. On an H100, an image of 1024x1024 px takes half the time (docs/benchmarks.md).

Source: folding as in Jacob et al. 2018, arXiv:1712.05877, section 3.2.
"""

from functools import cache
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ubend.accel.gate import is_off, usable
from ubend.models.segmentation_net import check_channels, pad_to_multiple
from ubend.models.unet import UNet

_SAME = (1, 1), (1, 1), (1, 1), 1  # stride, padding, dilation, groups


class _Layer(NamedTuple):
    """A convolution with its batch norm folded in.

    Attributes:
        weight: (K, C, 3, 3) channels last, in the dtype of the computation.
        bias: (K,) of the same dtype.
        bias_stats: (4, K) float32 statistics for the kernels of ubend.accel.norm, with which they only add the bias.
    """

    weight: Tensor
    bias: Tensor
    bias_stats: Tensor


class _Upsampling(NamedTuple):
    """A transposed convolution: weight (C, K, 4, 4) in the dtype of the computation, bias (K,) float32."""

    weight: Tensor
    bias: Tensor


class FoldedUNet:
    """A network for inference: (N, C, H, W) raw values of any dtype -> (N, classes, H, W) float32 logits.

    Args:
        net: in `eval` mode; later changes of its parameters have no effect.
        dtype: of the feature maps.
    """

    def __init__(self, net: UNet, dtype: torch.dtype) -> None:
        self._net = net
        decoders: list[Any] = list(net.decoders)
        self._down = [_fold_block(block, dtype) for block in [net.stem, *(level.block for level in net.encoders)]]
        self._up = [_Upsampling(level.up.weight.detach().to(dtype), _bias(level.up)) for level in decoders]
        self._after_concat = [_fold_block(level.block, dtype) for level in decoders]
        self._plain = _Plain(net, self._down[0][0])
        self._kernels = _Kernels(net, self._down[0][0])

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Tensor:
        """Logits of a batch; arguments and result as in `UNet.forward`."""
        check_channels(image, self._net.channels)
        backend = self._kernels if usable(image) else self._plain
        height, width = image.shape[-2:]
        kept: list[Tensor | None] = []
        features = backend.first_block(image)
        last = self._down[0][1]
        for (first, second), skip in zip(self._down[1:], self._net.skips, strict=True):
            skipped, features = backend.downsample(features, last, skip)
            kept.append(skipped)
            features, last = convolve(features, first), second
        for enlarge, (first, second) in zip(self._up, self._after_concat, strict=True):
            upsampled = F.conv_transpose2d(convolve(features, last), enlarge.weight, None, 2, 1)
            features, last = convolve(backend.concatenate(kept.pop(), upsampled, enlarge.bias), first), second
        return backend.finish(features, last)[..., :height, :width]


def can_fold(net: nn.Module) -> TypeGuard[UNet]:
    """Whether `FoldedUNet` supports this network."""
    return type(net) is UNet and net.upsampling == "transposed"


class _Plain:
    """The operations between convolutions, in torch."""

    def __init__(self, net: UNet, first: _Layer) -> None:
        self.net, self.first = net, first
        self.head = net.head.weight.detach(), _bias(net.head)

    def first_block(self, image: Tensor) -> Tensor:
        """relu(the first convolution of the normalised image)."""
        net = self.net
        features = pad_to_multiple((image.float() - net.mean) / net.std, 2**net.depth)
        return convolve(_channels_last(features.to(self.first.weight.dtype)), self.first)

    def downsample(self, features: Tensor, layer: _Layer, skip: bool) -> tuple[Tensor | None, Tensor]:
        """relu(convolution) for the skip connection, in the form of `concatenate`, or None; and its 2x2 max pooling."""
        act = convolve(features, layer)
        return act if skip else None, F.max_pool2d(act, 2)

    def concatenate(self, kept: Tensor | None, upsampled: Tensor, bias: Tensor) -> Tensor:
        """Concatenate the feature map of the skip connection with the upsampled one, after adding its bias."""
        upsampled += bias.to(upsampled.dtype)[:, None, None]
        return upsampled if kept is None else torch.cat([kept, upsampled], dim=1)

    def finish(self, features: Tensor, layer: _Layer) -> Tensor:
        """The logits: the head applied to relu(convolution)."""
        act = convolve(features, layer)
        weight, bias = (tensor.to(act.dtype) for tensor in self.head)
        return F.conv2d(act, weight, bias).float()


class _Kernels(_Plain):
    """The same as kernels on an NVIDIA GPU.

    The feature map of a skip connection is written directly to the decoder's concatenation, and the head applies the
    last ReLU itself.
    """

    def __init__(self, net: UNet, first: _Layer) -> None:
        super().__init__(net, first)
        self._taps = first.weight.permute(2, 3, 1, 0).reshape(-1, first.weight.shape[0]).contiguous()
        self._mean_std = net.mean.flatten(), net.std.flatten()

    def first_block(self, image: Tensor) -> Tensor:
        from ubend.accel.stem import first_convolution

        multiple = 2**self.net.depth
        height, width = (side + -side % multiple for side in image.shape[-2:])
        return first_convolution(image, *self._mean_std, self._taps, self.first.bias_stats[3], (height, width))

    def downsample(self, features: Tensor, layer: _Layer, skip: bool) -> tuple[Tensor | None, Tensor]:
        from ubend.accel.norm import apply_and_pool

        y = _channels_last(F.conv2d(features, layer.weight, None, 1, 1))
        n, channels, height, width = y.shape
        if not skip:
            return None, apply_and_pool(y, layer.bias_stats, None)
        shape = n, 2 * channels, height, width
        concatenated = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)
        return concatenated, apply_and_pool(y, layer.bias_stats, concatenated[:, :channels])

    def concatenate(self, kept: Tensor | None, upsampled: Tensor, bias: Tensor) -> Tensor:
        from ubend.accel.concat import add_bias

        if kept is None:
            return super().concatenate(None, upsampled, bias)
        add_bias(_channels_last(upsampled), bias, kept[:, upsampled.shape[1] :])
        return kept

    def finish(self, features: Tensor, layer: _Layer) -> Tensor:
        from ubend.accel.concat import HEAD_CHANNELS, head

        if features.shape[1] > HEAD_CHANNELS:
            return super().finish(features, layer)
        y = _channels_last(F.conv2d(features, layer.weight, None, 1, 1))
        return head(y, layer.bias_stats, *self.head)


def convolve(features: Tensor, layer: _Layer) -> Tensor:
    """relu(3x3 convolution + bias); one kernel if cuDNN supports it."""
    weight, bias = layer.weight, layer.bias
    aligned = weight.shape[1] % 8 + weight.shape[0] % 8 == 0
    if features.is_cuda and aligned and not is_off() and _fuses(features.device, features.dtype):
        return torch.cudnn_convolution_relu(features, weight, bias, *_SAME)
    return F.conv2d(features, weight, bias, 1, 1).relu_()


@cache
def _fuses(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this cuDNN fuses a convolution with bias and ReLU; tested once on a small input."""
    x = torch.ones(1, 8, 16, 16, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
    try:
        torch.cudnn_convolution_relu(x, _channels_last(x[:, :, :3, :3].expand(8, 8, 3, 3)), x[0, :, 0, 0], *_SAME)
    except RuntimeError:
        return False
    return True


def _fold_block(block: Any, dtype: torch.dtype) -> tuple[_Layer, _Layer]:
    return _fold(block[0], block[1], dtype), _fold(block[3], block[4], dtype)


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d, dtype: torch.dtype) -> _Layer:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
    weight = convolution.weight.detach() * scale[:, None, None, None]
    bias = norm.bias.detach() - norm.running_mean * scale
    ones = torch.ones_like(bias)
    bias_stats = torch.stack([torch.zeros_like(bias), ones, ones, bias])
    return _Layer(_channels_last(weight.to(dtype)), bias.to(dtype), bias_stats)


def _bias(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias.detach()


def _channels_last(map_: Tensor) -> Tensor:
    return map_.contiguous(memory_format=torch.channels_last)
