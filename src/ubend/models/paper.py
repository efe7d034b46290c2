"""The original U-Net: convolutions without padding, cropped skip connections, no batch norm, dropout at the bottom.

Its output is smaller than its input by a margin on each side: 572 -> 388 px at depth 4. For a whole image (`forward`),
the image is extended by this margin, mirrored at its border, as in figure 2 of the paper; so the network is used
like any other one here.

N images of a batch, C channels or classes, H x W pixels.

Source: Ronneberger et al. 2015, arXiv:1505.04597. Where the paper is not specific: "drop-out layers at the end of the
contracting path" are one at each of the two deepest levels (in the upper one, before pooling and skip connection);
biases are initialised to 0.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ubend.core.i18n import later
from ubend.models.segmentation_net import SegmentationNet, check_channels, mirror

EDGE_PX = 4  # sides of the output are k * 2**depth + EDGE_PX


class ValidBlock(nn.Sequential):
    """Two times (3x3 convolution without padding, ReLU): (N, inputs, H, W) -> (N, outputs, H - 4, W - 4)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3),
            nn.ReLU(inplace=True),
        )


class ValidDecoder(nn.Module):
    """Upsampling by 2, concatenation with the cropped skip connection, then a ValidBlock.

    (N, inputs, H, W) and skip features (N, outputs, h, w), h >= 2H, w >= 2W -> (N, outputs, 2H - 4, 2W - 4).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.block = ValidBlock(2 * outputs, outputs)

    def forward(self, features: Tensor, skip_features: Tensor) -> Tensor:
        upsampled = self.up(features)
        out: Tensor = self.block(torch.cat([crop_middle(skip_features, upsampled.shape[-2:]), upsampled], dim=1))
        return out


class PaperUNet(SegmentationNet):
    """The U-Net of the paper, for images of any size; mirroring and normalisation are inside.

    Args:
        dropout: probability of dropping a value at the two deepest levels, in training.
        Others: see `SegmentationNet`.
    """

    kind = "paper"
    options = ("depth", "dropout")
    has_batch_norm = False
    edge_px = EDGE_PX
    summary_template = later("original U-Net, without padding: width {width}, depth {depth}, {parameters:,} parameters")

    def __init__(
        self,
        channels: int = 1,
        classes: int = 2,
        width: int = 64,
        depth: int = 4,
        dropout: float = 0.5,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(channels, classes, width, depth, None, "transposed", mean, std)
        self.margin = valid_margin(depth)
        widths = [width * 2**i for i in range(depth + 1)]  # widths[i] is that of level i + 1
        self.stem = ValidBlock(channels, widths[0])
        self.encoders = nn.ModuleList(ValidBlock(widths[i], widths[i + 1]) for i in range(depth))
        self.decoders = nn.ModuleList(ValidDecoder(widths[i + 1], widths[i]) for i in reversed(range(depth)))
        self.dropout, self.is_stochastic = nn.Dropout(dropout), dropout > 0
        self.head = nn.Conv2d(widths[0], classes, 1)
        initialise_he(self)

    def forward(self, image: Tensor) -> Tensor:
        """See `SegmentationNet.forward`; the image is mirrored at its border."""
        height, width = image.shape[-2:]
        return self.valid(mirror_to_fit(image, self.depth))[..., :height, :width]

    def padded_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        return size_hw  # not padded: it is mirrored on all sides, beyond the padding, too

    def config(self) -> dict[str, Any]:
        shape = {"channels": self.channels, "classes": self.classes, "width": self.width, "depth": self.depth}
        return {"kind": self.kind, **shape, "dropout": self.dropout.p}

    def valid(self, image: Tensor) -> Tensor:
        """The network as in figure 1 of the paper.

        Args:
            image: (N, C, H, W), raw values; both sides as given by `input_side`.
        Returns:
            (N, classes, H - 2 margin, W - 2 margin) logits of the centre.
        Raises:
            ValueError: a side that does not fit: a pooling would get an odd side.
        """
        check_channels(image, self.channels)
        for side in image.shape[-2:]:
            if side != input_side(side - 2 * self.margin, self.depth):
                fits = input_side(max(1, side - 2 * self.margin), self.depth)
                raise ValueError(f"a side of {side} px does not halve {self.depth} times; {fits} px does")
        maps = [self.stem((image - self.mean) / self.std)]
        for encoder in self.encoders:
            if len(maps) == self.depth:
                maps[-1] = self.dropout(maps[-1])
            maps.append(encoder(F.max_pool2d(maps[-1], 2)))
        features = self.dropout(maps.pop())
        for decoder in self.decoders:
            features = decoder(features, maps.pop())
        logits: Tensor = self.head(features)
        return logits

    forward_tiles = valid


def valid_margin(depth: int) -> int:
    """Px that the network removes from each side: 92 at depth 4.

    Each block removes 2 px of its level from each side; a px of level k is 2**(k - 1) px of the image. The deepest
    level has one block, all others have two.
    """
    return 6 * (1 << depth) - 4


def input_side(side: int, depth: int) -> int:
    """The smallest input side, px, for at least `side` px of output: 388 -> 572 at depth 4."""
    multiple = 1 << depth
    return max(0, math.ceil((side - EDGE_PX) / multiple)) * multiple + EDGE_PX + 2 * valid_margin(depth)


def mirror_to_fit(image: Tensor, depth: int) -> Tensor:
    """Extend an image by mirroring to the input that `PaperUNet.valid` needs: (N, C, H, W) -> (N, C, H', W').

    Border pixels are not repeated. An image smaller than the margin is mirrored several times.
    """
    margin = valid_margin(depth)
    for dim in (-2, -1):
        image = mirror(image, dim, -margin, input_side(image.shape[dim], depth) - margin)
    return image


def crop_middle(features: Tensor, size_hw: Sequence[int]) -> Tensor:
    """The centre of a feature map, as a view: (N, C, h, w) -> (N, C, H, W)."""
    top, left = ((have - want) // 2 for have, want in zip(features.shape[-2:], size_hw, strict=True))
    return features[..., top : top + size_hw[0], left : left + size_hw[1]]


@torch.no_grad()
def initialise_he(net: nn.Module) -> None:
    """Initialise weights from a normal distribution with standard deviation sqrt(2 / fan-in), and biases with 0.

    Source: He et al. 2015, arXiv:1502.01852, as stated in the U-Net paper.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            # In a 2x2 transposed convolution with stride 2, each output pixel depends on one tap.
            taps = 1 if isinstance(layer, nn.ConvTranspose2d) else math.prod(layer.kernel_size)
            layer.weight.normal_(0.0, math.sqrt(2.0 / (layer.in_channels * taps)))
            assert layer.bias is not None
            layer.bias.zero_()
