"""Speeds up the training of any network: its convolutions, batch norms, and the concatenation of ubend's decoder.

Where the steps of a network can be captured (captured.py), weights of convolutions are cast together, and their
gradients computed on a second stream; in steps that Python starts kernel by kernel this would take longer. A batch norm
and the ReLU or ReLU6 after it are one kernel: in a training step of an encoder on an H200, torch's batch norm took half
of the time, and the activations a tenth (docs/experiments.md). One kernel writes the decoder's upsampling into the
concatenation and adds its bias; in the backward pass one kernel cuts its part out of the concatenation's gradient and
sums it for the bias. The head includes the batch norm and ReLU before it. All other layers are called unchanged. What
ubend has its own fused version of (the plain U-Net) does not come here.
"""

import copy
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from ubend.accel import fused
from ubend.models.efficientnet_lite import SameConv2d
from ubend.models.encoders import EncodedUNet
from ubend.models.unet import Decoder

_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.ReLU6: "relu6"}
_LAST_NORM = 4  # index of the second batch norm in a `ConvBlock`


def accelerate_layers(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network, with its current modules, as a function; `net` itself if it has no batch norm of torch."""
    batch_norms = [layer for layer in net.modules() if _is_plain_batch_norm(layer)]
    if not batch_norms:
        return net
    twin: Any = _with_faster_layers(net, captured=bool(getattr(net, "can_capture", False))).train()
    if type(net) is EncodedUNet:
        _fuse_head(twin, net)
    replaced = [layer for layer in twin.modules() if isinstance(layer, _Faster)]
    convolutions = [layer.first for layer in replaced if isinstance(layer, _Convolution | _ConcatenatingDecoder)]

    def forward(image: Tensor) -> Tensor:
        kernels = fused.find_kernels(image)
        training = torch.is_grad_enabled() and all(layer.training for layer in batch_norms)
        if kernels is None or not training or batch_norms[0].weight.dtype != torch.float32:
            logits: Tensor = net(image)
            return logits
        convolve = fused.Convolutions(convolutions, image.device)
        for layer in replaced:
            layer.kernels, layer.convolve = kernels, convolve
        logits = twin(image)
        fused.count_batches(net)
        return logits

    return forward


class _Faster(nn.Module):
    """Does the same as the layer that it replaces.

    Attributes:
        kernels: from `find_kernels`; set before each pass, like `convolve`.
        convolve: calls the convolutions of `_Convolution` and `_ConcatenatingDecoder`.
        first: the layer; of several, the first.
    """

    kernels: Any
    convolve: fused.Convolutions

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self._layers = layers  # in a tuple, so that they are not registered as submodules

    @property
    def first(self) -> Any:
        return self._layers[0]


class _Convolution(_Faster):
    """A convolution for which `_can_replace_convolution` is True."""

    def forward(self, features: Tensor) -> Tensor:
        layer = self.first
        features, padding = layer.pad(features) if isinstance(layer, SameConv2d) else (features, layer.padding)
        return self.convolve(layer, fused.channels_last(features), padding)


class _NormActivation(_Faster):
    """A batch norm in training mode and the activation after it: (N, C, H, W) -> the same shape, channels last."""

    def __init__(self, layer: nn.BatchNorm2d, activation: str) -> None:
        super().__init__(layer)
        self._activation = activation

    def forward(self, y: Tensor) -> Tensor:
        layer = self.first
        normalised: Tensor = fused.NormActivation.apply(
            fused.channels_last(y), layer.weight, layer.bias, layer, self.kernels, self._activation
        )
        return normalised


class _ConcatenatingDecoder(_Faster):
    """A `Decoder` for which `_can_concatenate` is True; shapes as there.

    Args:
        block: its block, accelerated.
    """

    def __init__(self, decoder: Decoder, block: nn.Module) -> None:
        super().__init__(decoder.up)
        self.block = block

    def forward(self, features: Tensor, skip_features: Tensor) -> Tensor:
        up = self.first
        upsampled = self.convolve(up, fused.channels_last(features))
        channels = skip_features.shape[1]
        concatenated = fused.empty_map(upsampled, channels + upsampled.shape[1])
        concatenated[:, :channels] = skip_features.detach()
        concatenated = fused.Concatenate.apply(concatenated, skip_features, upsampled, up.bias, self.kernels)
        out: Tensor = self.block(concatenated)
        return out


class _NormHead(_Faster):
    """The last batch norm, the ReLU after it, and the head: (N, C, H, W) -> (N, classes, H, W) float32 logits."""

    def forward(self, y: Tensor) -> Tensor:
        norm, head = self._layers
        return fused.run_head(y, norm, head, self.kernels)


def _can_replace_convolution(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    if not isinstance(module, nn.Conv2d) or type(module) not in (nn.Conv2d, SameConv2d):
        return False
    return module.bias is None and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _can_concatenate(module: nn.Module) -> TypeGuard[Decoder]:
    return type(module) is Decoder and module.skip and type(module.up) is nn.ConvTranspose2d


def _fuse_head(twin: Any, net: Any) -> None:
    """Let the head of the copy include the last batch norm and ReLU of the decoder."""
    norm = net.decoders[-1].block[_LAST_NORM]
    if _is_plain_batch_norm(norm):
        twin.decoders[-1].block[_LAST_NORM] = nn.Identity()
        twin._modules["head"] = _NormHead(norm, net.head)


def _is_plain_batch_norm(layer: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether the layer is torch's own batch norm, not a subclass, with all attributes that the kernels read."""
    return type(layer) is nn.BatchNorm2d and layer.affine and layer.track_running_stats and layer.momentum is not None


def _with_faster_layers(module: nn.Module, *, captured: bool) -> nn.Module:
    """A copy that shares parameters and buffers, with the faster layers of this module.

    Convolutions are replaced only if steps of the network can be `captured`.
    `_NormActivation` replaces each batch norm. It also replaces the activation registered directly after the batch
    norm, but only in `Sequential` and in modules of ubend, whose children are called in their order.
    """
    if _is_plain_batch_norm(module):
        return _NormActivation(module, "none")
    if captured and _can_replace_convolution(module):
        return _Convolution(module)
    if _can_concatenate(module):
        return _ConcatenatingDecoder(module, _with_faster_layers(module.block, captured=captured))
    ordered = isinstance(module, nn.Sequential) or type(module).__module__.startswith("ubend.")
    twin = copy.copy(module)
    twin._modules = {}
    norm: tuple[str, nn.BatchNorm2d] | None = None  # the previous child, if it is a batch norm
    for name, child in module.named_children():
        activation = _ACTIVATIONS.get(type(child))
        if ordered and norm is not None and activation is not None:
            twin._modules[norm[0]] = _NormActivation(norm[1], activation)
            twin._modules[name] = nn.Identity()
        else:
            twin._modules[name] = _with_faster_layers(child, captured=captured)
        norm = (name, child) if _is_plain_batch_norm(child) else None
    return twin
