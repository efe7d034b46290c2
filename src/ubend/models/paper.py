"""The original U-Net: convolutions without padding, crop and concatenate, no batch norm, dropout at the bottom.

What the network gives is smaller than what it is given, by a margin on each side: 572 -> 388 px at depth 4. Asked for
an image as a whole (`forward`), it is given the image mirrored at its border by that margin, as in figure 2 of the
paper, and so it is used like any other network here.

N images of a batch, C channels or classes, H x W pixels; D = depth, the number of poolings.

Source: Ronneberger et al. 2015, arXiv:1505.04597. Of the two places where the text is short: "drop-out layers at the
end of the contracting path" are here one at each of the two deepest levels, before the pooling and the skip connection
of the last but one; biases begin at 0.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ubend.core.i18n import later
from ubend.models.segmentation_net import SegmentationNet, check_channels

EDGE_PX = 4  # a side that the network gives is a multiple of 2**depth, and this


class ValidBlock(nn.Sequential):
    """Twice (3x3 convolution without padding, ReLU): (N, inputs, H, W) -> (N, outputs, H - 4, W - 4)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3),
            nn.ReLU(inplace=True),
        )


class ValidDecoder(nn.Module):
    """Double the resolution, crop the skipped map to that and put both together, then a ValidBlock.

    (N, inputs, H, W) and a skipped (N, outputs, h, w), h >= 2H, w >= 2W -> (N, outputs, 2H - 4, 2W - 4).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.block = ValidBlock(2 * outputs, outputs)

    def forward(self, features: Tensor, skipped: Tensor) -> Tensor:
        upsampled = self.up(features)
        out: Tensor = self.block(torch.cat([crop_middle(skipped, upsampled.shape[-2:]), upsampled], dim=1))
        return out


class PaperUNet(SegmentationNet):
    """The U-Net of the paper, for images of any size; mirroring and normalisation are inside.

    Args:
        dropout: share of the values that are dropped at the two deepest levels, while training.
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
        widths = [width * 2**level for level in range(depth + 1)]
        self.stem = ValidBlock(channels, widths[0])
        self.encoders = nn.ModuleList(ValidBlock(widths[i], widths[i + 1]) for i in range(depth))
        self.decoders = nn.ModuleList(ValidDecoder(widths[i + 1], widths[i]) for i in reversed(range(depth)))
        self.dropout, self.is_stochastic = nn.Dropout(dropout), dropout > 0
        self.head = nn.Conv2d(widths[0], classes, 1)
        initialise_he(self)

    def forward(self, image: Tensor) -> Tensor:
        """As in `SegmentationNet`; beyond its border the image is its mirror image."""
        height, width = image.shape[-2:]
        return self.valid(mirror_to_fit(image, self.depth))[..., :height, :width]

    def padded_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        return size_hw  # a repeated edge is another image than a mirrored one

    def shape(self) -> dict[str, Any]:
        shape = {"channels": self.channels, "classes": self.classes, "width": self.width, "depth": self.depth}
        return {"kind": self.kind, **shape, "dropout": self.dropout.p}

    def valid(self, image: Tensor) -> Tensor:
        """The network as it is drawn in the paper's figure 1.

        Args:
            image: (N, C, H, W), raw values; both sides as `input_side` says.
        Returns:
            (N, classes, H - 2 margin, W - 2 margin) unnormalised scores of the middle.
        Raises:
            ValueError: a side that does not go: somewhere a pooling would meet an odd one.
        """
        check_channels(image, self.channels)
        for side in image.shape[-2:]:
            if side != input_side(side - 2 * self.margin, self.depth):
                fits = input_side(max(1, side - 2 * self.margin), self.depth)
                raise ValueError(f"a side of {side} px does not halve {self.depth} times; {fits} px does")
        levels = [self.stem((image - self.mean) / self.std)]
        for encoder in self.encoders:
            if len(levels) == self.depth:
                levels[-1] = self.dropout(levels[-1])
            levels.append(encoder(F.max_pool2d(levels[-1], 2)))
        features = self.dropout(levels.pop())
        for decoder in self.decoders:
            features = decoder(features, levels.pop())
        logits: Tensor = self.head(features)
        return logits

    forward_tiles = valid


def valid_margin(depth: int) -> int:
    """Px that the network takes from each side: 92 at depth 4.

    Two blocks take 2 px each on each side of every level but the deepest, which has one, and a pixel of a level is
    2**level px wide.
    """
    return 6 * (1 << depth) - 4


def input_side(side: int, depth: int) -> int:
    """The least side, px, of an input of which the network gives at least `side` px: 388 -> 572 at depth 4."""
    multiple = 1 << depth
    return max(0, math.ceil((side - EDGE_PX) / multiple)) * multiple + EDGE_PX + 2 * valid_margin(depth)


def mirror_to_fit(image: Tensor, depth: int) -> Tensor:
    """An image, mirrored at its border to what `PaperUNet.valid` needs for all of it: (N, C, H, W) -> (N, C, H', W').

    The border's own pixels are not repeated. An image smaller than the margin is mirrored there and back.
    """
    margin = valid_margin(depth)
    for dim in (-2, -1):
        side = image.shape[dim]
        indices = torch.arange(-margin, input_side(side, depth) - margin, device=image.device)
        there_and_back = max(1, 2 * (side - 1))
        indices = indices % there_and_back
        image = image.index_select(dim, torch.minimum(indices, there_and_back - indices).clamp_max(side - 1))
    return image


def crop_middle(features: Tensor, size_hw: Sequence[int]) -> Tensor:
    """(N, C, h, w) -> (N, C, H, W), a view of its middle; what is left over is even at each level."""
    top, left = ((have - want) // 2 for have, want in zip(features.shape[-2:], size_hw, strict=True))
    return features[..., top : top + size_hw[0], left : left + size_hw[1]]


@torch.no_grad()
def initialise_he(net: nn.Module) -> None:
    """Normal weights of standard deviation sqrt(2 / N), N the number of values that make one value of the output;
    biases 0.

    Source: He et al. 2015, arXiv:1502.01852, as the paper says it.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            # of a 2x2 transposed convolution of stride 2, one tap meets each pixel of the output
            taps = 1 if isinstance(layer, nn.ConvTranspose2d) else math.prod(layer.kernel_size)
            layer.weight.normal_(0.0, math.sqrt(2.0 / (layer.in_channels * taps)))
            assert layer.bias is not None
            layer.bias.zero_()
