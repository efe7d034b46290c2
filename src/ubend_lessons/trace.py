"""Traces an image through a network: hooks record the input and output of each layer.

C channels, H x W pixels.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ubend.core.i18n import _
from ubend.models.unet import Unpooling

Kind = Literal["input", "convolution", "pooling", "upsampling", "last"]


@dataclass(frozen=True)
class Step:
    """One feature map, and the layers that compute it from the previous one.

    Attributes:
        kind: kind of layer; `last` is a 1x1 convolution.
        label: translated names of the layers; "" for the image.
        features: (1, C, H, W) its values.
        parameters: number of parameters of these layers.
        source: index of the step whose feature map is concatenated with the input (skip connection); None: there is
            none.
    """

    kind: Kind
    label: str
    features: Tensor = field(repr=False)
    parameters: int = 0
    source: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.features.shape[1:]
        return channels, height, width


def trace_network(net: nn.Module, image: Tensor) -> list[Step]:
    """All feature maps from the normalised image to the logits.

    Args:
        net: a network of convolutions (any padding), normalisations, activations, pooling and upsampling; in evaluation
            mode.
        image: (1, C, H, W) raw values.
    """
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen.append((module, inputs[0], output))

    layers = [module for module in net.modules() if isinstance(module, Unpooling) or not list(module.children())]
    hooks = [module.register_forward_hook(watch) for module in layers]
    try:
        with torch.inference_mode():
            net(image)
    finally:
        for hook in hooks:
            hook.remove()
    steps = [Step("input", "", seen[0][1])]
    for module, given, output in seen:
        kind = _kind(module)
        if kind is None:  # batch norm, ReLU and the like belong to the previous step
            steps[-1] = _widen(steps[-1], module, output)
            continue
        if given.shape[-2:] != steps[-1].features.shape[-2:] and given.shape[1] == steps[-1].features.shape[1]:
            steps.append(Step("upsampling", _("resized"), given))
        joins = kind in ("convolution", "last") and given.shape[1] > steps[-1].features.shape[1]
        source = _find_source(steps, given) if joins else None
        steps.append(Step(kind, _describe(module), output, _count(module), source))
    return steps


def _kind(module: nn.Module) -> Kind | None:
    match module:
        case nn.Conv2d():
            return "last" if tuple(module.kernel_size) == (1, 1) else "convolution"
        case nn.MaxPool2d() | nn.AvgPool2d():
            return "pooling"
        case nn.ConvTranspose2d() | nn.Upsample() | Unpooling():
            return "upsampling"
    return None


def _describe(module: nn.Module) -> str:
    """The translated name of a layer."""
    match module:
        case nn.Conv2d():
            return _("convolution {kernel}").format(kernel=_size(module.kernel_size))
        case nn.ConvTranspose2d():
            return _("transposed convolution {kernel}, stride {stride}").format(
                kernel=_size(module.kernel_size), stride=module.stride[0]
            )
        case nn.Upsample():
            return _("{mode} upsampling, x {factor:g}").format(mode=module.mode, factor=module.scale_factor)
        case Unpooling():
            return _("max unpooling: values return to the positions of the maxima")
        case nn.MaxPool2d():
            return _("max pooling {kernel}").format(kernel=_size(module.kernel_size))
        case nn.BatchNorm2d():
            return _("batch norm")
        case nn.ReLU():
            return "ReLU"
    return type(module).__name__


def _size(kernel: Any) -> str:
    height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    return f"{height} x {width}"


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def _widen(step: Step, module: nn.Module, output: Tensor) -> Step:
    label = f"{step.label} + {_describe(module)}"
    return replace(step, label=label, features=output, parameters=step.parameters + _count(module))


def _find_source(steps: list[Step], joined: Tensor) -> int | None:
    """The index of the latest step whose values are concatenated before or after those of the last one in `joined`.

    Its feature map may have been cropped around the middle.
    """
    height, width = joined.shape[-2:]
    for number in reversed(range(len(steps) - 1)):
        earlier = steps[number].features
        channels = earlier.shape[1]
        above, left = (earlier.shape[2] - height) // 2, (earlier.shape[3] - width) // 2
        if channels + steps[-1].features.shape[1] != joined.shape[1] or min(above, left) < 0:
            continue
        cropped = earlier[:, :, above : above + height, left : left + width]
        if torch.equal(joined[:, :channels], cropped) or torch.equal(joined[:, -channels:], cropped):
            return number
    return None
