"""The functions of gpu.py in plain torch: the same names, arguments and results, for tests on any device.

Used only in tests: where the kernels cannot run, the plain network runs. Feature maps keep their dtype; statistics and
sums are float32. relu(batch norm) is rounded to the dtype of the feature map before it is pooled, multiplied or
compared with 0.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

ALIGNED = 8  # both as in gpu.py
HEAD_CHANNELS = 128
_PIXELS = (0, 2, 3)  # the dimensions over which statistics are computed
_ACTIVATIONS = {"none": lambda map_: map_, "relu": F.relu, "relu6": F.relu6}


def measure_statistics(y: Tensor, norm: torch.nn.BatchNorm2d) -> Tensor:
    """(4, C) mean, 1 / deviation, scale, shift: in training those of the batch, with an update of the running ones."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    mean, var = norm.running_mean, norm.running_var
    if norm.training:
        var, mean = torch.var_mean(y.float(), _PIXELS, correction=0)
        count = y.numel() / y.shape[1]
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var * count / (count - 1), norm.momentum)
    inverse = torch.rsqrt(var + norm.eps)
    scale = norm.weight * inverse
    return torch.stack([mean, inverse, scale, norm.bias - mean * scale])


def apply(y: Tensor, stats: Tensor, activation: str = "relu") -> Tensor:
    """activation(batch norm of y)."""
    _mean, _inverse, scale, shift = stats[..., None, None]
    z: Tensor = _ACTIVATIONS[activation](y.float() * scale + shift).to(y.dtype)
    return z


def apply_and_pool(y: Tensor, stats: Tensor, z: Tensor | None) -> Tensor:
    """2x2 max pooling of relu(batch norm of y); the input of the pooling is written to `z`, unless that is None."""
    act = apply(y, stats)
    if z is not None:
        z.copy_(act)
    return F.max_pool2d(act, 2)


def differentiate(
    y: Tensor, stats: Tensor, dz: Tensor | None, dpool: Tensor | None, activation: str = "relu"
) -> tuple[Tensor, Tensor]:
    """The gradient of y, and (2, C) those of batch norm's bias and weight, given those of `apply` and of pooling."""
    gradient = torch.zeros_like(y, dtype=torch.float32) if dz is None else dz.float()
    if dpool is not None:
        _maxima, indices = F.max_pool2d(apply(y, stats), 2, return_indices=True)
        gradient = gradient + F.max_unpool2d(dpool.float(), indices, [2, 2])
    return _through_norm(y, stats, gradient, activation)


def _through_norm(y: Tensor, stats: Tensor, dz: Tensor, activation: str = "relu") -> tuple[Tensor, Tensor]:
    """The same as `differentiate`, from the gradient of the activation; the formula is in norm_gradient.py."""
    mean, inverse, scale, _shift = stats[..., None, None]
    z = apply(y, stats, activation)
    gradient = dz if activation == "none" else dz * ((z > 0) & (z < (6 if activation == "relu6" else torch.inf)))
    normalised = (y.float() - mean) * inverse
    sums = torch.stack([gradient.sum(_PIXELS), (gradient * normalised).sum(_PIXELS)])
    of_mean, of_deviation = (sums * y.shape[1] / y.numel())[..., None, None]
    dy = scale * (gradient - of_mean - normalised * of_deviation)
    return _channels_last(dy.to(y.dtype)), sums


def add_bias(up: Tensor, bias: Tensor, half: Tensor) -> None:
    """half = up + bias."""
    half.copy_(up.float() + bias[:, None, None])


def copy_and_sum(half: Tensor) -> tuple[Tensor, Tensor]:
    """A contiguous copy of some channels of a wider feature map, and their (C,) sums."""
    return _channels_last(half), half.float().sum(_PIXELS)


def head(y: Tensor, stats: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N, K, H, W) float32: a 1x1 convolution of relu(batch norm of y)."""
    return torch.einsum("nchw,kc->nkhw", apply(y, stats).float(), weight[..., 0, 0]) + bias[:, None, None]


def differentiate_head(
    y: Tensor, stats: Tensor, weight: Tensor, dlogits: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `head`: of y; (2, C) of batch norm's bias and weight; of weight; of bias."""
    dlogits = dlogits.float()
    dy, sums = _through_norm(y, stats, torch.einsum("nkhw,kc->nchw", dlogits, weight[..., 0, 0]))
    dweight = torch.einsum("nkhw,nchw->kc", dlogits, apply(y, stats).float())
    return dy, sums, dweight.view_as(weight), dlogits.sum(_PIXELS)


def _channels_last(map_: Tensor) -> Tensor:
    return map_.contiguous(memory_format=torch.channels_last)
