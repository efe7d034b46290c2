"""The interface of all networks, from raw images to logits.

N images of a batch, C channels, H x W pixels.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ubend.core.i18n import _, later, now
from ubend.core.settings import AnyNetwork, Upsampling


class Averaging(NamedTuple):
    """What a network's probabilities are averaged over.

    Attributes:
        members: networks that each normalise and pad by themselves.
        views: symmetries of the square in which an image is shown to each: quarter turns against the clock, then
            whether left and right are exchanged.
        class_bias: (classes,) added to the logarithm of the mean probabilities; None: nothing is averaged.
    """

    members: list["SegmentationNet"]
    views: Sequence[tuple[int, bool]] = ((0, False),)
    class_bias: Tensor | None = None


class SegmentationNet(nn.Module):
    """Base class and interface of all networks.

    A subclass defines `forward`, and overrides the attributes and methods below as needed; `models/networks.py` lists
    the subclasses.

    Levels are numbered from 1, full size, to depth + 1, the deepest: the feature maps of level k are 2**(k - 1) times
    smaller than the image. `skips[k - 1]` is the skip connection of level k. `decoders` are in the order of
    computation: `decoders[i]` leads to level depth - i.

    Args:
        channels: C of the image.
        classes: number of classes.
        width: channels of the first level; doubled at each deeper level.
        depth: number of poolings, >= 1.
        skips: whether to use the skip connection of each level, full size first; None: all.
        upsampling: how the decoder doubles the resolution: transposed convolution (as in the tutorial); nearest or
            bilinear interpolation, then a 3x3 convolution; or a 3x3 convolution, then max unpooling.
        mean, std: of each channel, in the units of the image (0..255 for 8 bit); stored as (1, C, 1, 1) buffers.
    Attributes:
        kind: its value of the setting `model.kind`.
        options: settings of `[model]` that are arguments of the class, except width.
        has_batch_norm: whether training needs at least two values per channel at the deepest level.
        is_stochastic: whether a forward pass in training may draw random numbers (dropout, drop path), so that it must
            be seeded.
        can_capture: whether its training step can be captured as a CUDA graph.
        edge_px: sides of the output of `forward_tiles` are k * `input_multiple` + `edge_px`.
        summary_template: text for `describe`, with {width}, {depth}, {parameters} and {skips}.
        margin: px that `forward_tiles` removes from each side; 0: the network pads, and overlapping tiles are blended.
        encoder_name: timm's name of the encoder; None: the network has no separate encoder.
        is_ensemble: whether it consists of several networks, `config()["members"]` of them.
        averages_views: whether a forward pass already averages over mirror images.
        is_exported: whether it is an exported file, which takes and returns tensors on the CPU only.
    """

    kind: ClassVar[AnyNetwork] = "unet"
    options: ClassVar[tuple[str, ...]] = ("depth", "skips", "upsampling")
    has_batch_norm: ClassVar[bool] = True
    summary_template: ClassVar[str] = later(
        "U-Net: width {width}, depth {depth}, {parameters:,} parameters, skip connections at levels {skips}"
    )
    is_stochastic = False
    can_capture = False
    margin = 0
    encoder_name: str | None = None
    is_ensemble = False
    averages_views = False
    is_exported = False
    edge_px = 0
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        channels: int,
        classes: int,
        width: int,
        depth: int,
        skips: Sequence[bool] | None,
        upsampling: Upsampling,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        super().__init__()
        self.channels, self.classes, self.width, self.depth = channels, classes, width, depth
        self.skips, self.upsampling = (True,) * depth if skips is None else tuple(skips), upsampling
        if len(self.skips) != depth:
            raise ValueError(f"skips has {len(self.skips)} entries for depth {depth}")
        for name, values in (("mean", mean or [0.0] * channels), ("std", std or [1.0] * channels)):
            if len(values) != channels:
                raise ValueError(f"{len(values)} values given for {channels} channels")
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).reshape(1, channels, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Logits of a batch: (N, C, H, W) raw values, any H and W >= 1 -> (N, classes, H, W) unnormalised scores.

        Raises:
            ValueError: the image has another shape.
        """
        raise NotImplementedError

    def forward_tiles(self, image: Tensor) -> Tensor:
        """Logits of tiles given with their margin: (N, C, h + 2 margin, w + 2 margin) -> (N, classes, h, w)."""
        logits: Tensor = self(image)
        return logits

    @property
    def input_multiple(self) -> int:
        """Sides of padded images, and distances between tiles, are multiples of this, px."""
        return 1 << self.depth

    def padded_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """(H, W) to which an image may be padded by mirroring below and to the right without changing its logits."""
        height, width = (side + -side % self.input_multiple for side in size_hw)
        return height, width

    def config(self) -> dict[str, Any]:
        """The arguments of `make_network` for a network of the same shape; can be stored as JSON."""
        shape = {"channels": self.channels, "classes": self.classes, "width": self.width, "depth": self.depth}
        return shape | {"skips": list(self.skips), "upsampling": self.upsampling}

    def averaging(self) -> Averaging:
        """The networks whose probabilities are averaged; of most networks it alone, as it is."""
        return Averaging([self])

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters of a separate encoder, which have their own learning rate; empty if there is none."""
        return []

    def first_weight(self) -> str:
        """The name in `state_dict` of the first convolution's weights."""
        return "stem.0.weight"

    def describe(self) -> list[str]:
        """A summary for users, as lines: kind, size, number of parameters."""
        kept = ", ".join(str(level) for level, there in enumerate(self.skips, 1) if there) or _("none")
        parameters = sum(p.numel() for p in self.parameters())
        return [
            now(self.summary_template).format(width=self.width, depth=self.depth, parameters=parameters, skips=kept)
        ]


def check_channels(image: Tensor, channels: int) -> None:
    """Raise ValueError unless a batch is (N, channels, H, W): other shapes could broadcast, or read out of bounds."""
    if image.ndim != 4 or image.shape[1] != channels:
        raise ValueError(f"the network takes (N, {channels}, H, W), got {tuple(image.shape)}")


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Pad H and W to multiples of `multiple` by mirroring below and to the right: (N, C, H, W) -> (N, C, H', W').

    So training images continue beyond their border, too. A repeated last row would be stripes, which look like objects.
    """
    height, width = image.shape[-2:]
    below, right = -height % multiple, -width % multiple
    if not (below or right):
        return image
    if below < height and right < width:  # faster, but mirrors only once
        return F.pad(image, (0, right, 0, below), mode="reflect")
    return mirror(mirror(image, -2, 0, height + below), -1, 0, width + right)


def mirror(image: Tensor, dim: int, first: int, end: int) -> Tensor:
    """Positions `first` to `end` along a dimension of an image that continues as its mirror image, again and again.

    The pixel at the border is not repeated.
    """
    side = image.shape[dim]
    there_and_back = max(1, 2 * (side - 1))
    indices = torch.arange(first, end, device=image.device) % there_and_back
    return image.index_select(dim, torch.minimum(indices, there_and_back - indices).clamp_max(side - 1))
