"""The U-Net, a plain nn.Module from raw images to logits.

N images of a batch, C channels or classes, H x W pixels.

Source: Ronneberger et al. 2015, arXiv:1505.04597, as modified in the course text (docs/tutorial-map.md): 'same'
convolutions, batch norm, transposed convolutions with kernel size 4. With width 64 and depth 4 it has the course
text's parameters in the same order (39,393,603 for 3 channels and 3 classes).
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ubend.core.settings import Upsampling
from ubend.models.segmentation_net import SegmentationNet, check_channels, pad_to_multiple


class ConvBlock(nn.Sequential):
    """Two times (3x3 convolution, batch norm, ReLU): (N, inputs, H, W) -> (N, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class Encoder(nn.Sequential):
    """2x2 max pooling, then a ConvBlock: (N, inputs, H, W) -> (N, outputs, H/2, W/2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(OrderedDict(pool=nn.MaxPool2d(2), block=ConvBlock(inputs, outputs)))


class Unpooling(nn.Module):
    """A 3x3 convolution, then max unpooling to the positions of the encoder's maxima; zeros elsewhere.

    Source: Badrinarayanan et al. 2015, SegNet, arXiv:1511.00561.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, features: Tensor, skip_features: Tensor) -> Tensor:
        """(N, inputs, H, W) and the encoder's (N, outputs, 2H, 2W) before pooling -> (N, outputs, 2H, 2W)."""
        _maxima, indices = F.max_pool2d(skip_features, 2, return_indices=True)
        return F.max_unpool2d(self.convolution(features), indices, [2, 2], output_size=skip_features.shape[-2:])


class Decoder(nn.Module):
    """Upsampling by 2, concatenation with the skip connection (if `skip`), then a ConvBlock.

    (N, inputs, H, W) and (N, skip_channels, 2H, 2W) -> (N, outputs, 2H, 2W); `skip_channels` defaults to `outputs`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        skip: bool = True,
        upsampling: Upsampling = "transposed",
        skip_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.up: nn.Module
        if upsampling == "transposed":
            self.up = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
        elif upsampling == "unpool":
            self.up = Unpooling(inputs, outputs)
        else:
            aligned = None if upsampling == "nearest" else False
            grid = nn.Upsample(scale_factor=2, mode=upsampling, align_corners=aligned)
            self.up = nn.Sequential(grid, nn.Conv2d(inputs, outputs, 3, padding=1))
        self.block = ConvBlock(outputs + (skip_channels or outputs) if skip else outputs, outputs)
        self.skip = skip

    def forward(self, features: Tensor, skip_features: Tensor) -> Tensor:
        upsampled = self.up(features, skip_features) if isinstance(self.up, Unpooling) else self.up(features)
        out: Tensor = self.block(torch.cat([skip_features, upsampled], dim=1) if self.skip else upsampled)
        return out


class UNet(SegmentationNet):
    """U-Net, a plain nn.Module: (N, channels, H, W) raw images of any size -> (N, classes, H, W) float32 logits.

    Args:
        channels: number of channels of the image.
        classes: number of classes, including the background.
        width: channels of the first level; doubled at each deeper level.
        depth: number of poolings, 1 or more.
        skips: whether to use the skip connection of each level, full size first; None: all.
        upsampling: how the decoder doubles the resolution: `transposed` convolution with kernel size 4; `nearest` or
            `bilinear` interpolation, then a 3x3 convolution; or `unpool`: a 3x3 convolution, then max unpooling.
        mean: of each channel, in the units of the image (0..255 for 8 bit); None: 0.
        std: standard deviation of each channel, in the units of the image; None: 1.
    Raises:
        ValueError: `skips` does not have `depth` entries, or `mean` or `std` not `channels`.
    """

    can_capture = True

    def __init__(
        self,
        channels: int = 3,
        classes: int = 2,
        *,
        width: int = 64,
        depth: int = 4,
        skips: Sequence[bool] | None = None,
        upsampling: Upsampling = "transposed",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(channels, classes, width, depth, skips, upsampling, mean, std)
        widths = [width * 2**i for i in range(depth + 1)]  # widths[i] and skips[i] are those of level i + 1
        self.stem = ConvBlock(channels, widths[0])
        self.encoders = nn.ModuleList(Encoder(widths[i], widths[i + 1]) for i in range(depth))
        self.decoders = nn.ModuleList(
            Decoder(widths[i + 1], widths[i], self.skips[i], upsampling) for i in reversed(range(depth))
        )
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        check_channels(image, self.channels)
        height, width = image.shape[-2:]
        features = pad_to_multiple((image - self.mean) / self.std, self.input_multiple)
        maps = [self.stem(features)]
        for encoder in self.encoders:
            maps.append(encoder(maps[-1]))
        features = maps.pop()
        for decoder in self.decoders:
            features = decoder(features, maps.pop())
        logits: Tensor = self.head(features)
        return logits[..., :height, :width]
